package session

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"slices"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	gorilla "github.com/gorilla/sessions"

	"github.com/highball-go/highball/internal/refusal"
)

var errNoMiddleware = errors.New("session: not behind session.Middleware")

// Middleware is sessions.Sessions that saves a changed session by itself before the headers go out, or
// after the handlers if they answered nothing. A session that nobody touches costs Redis nothing. When an
// automatic Save fails the answer is what the handler made it, and the error is in c.Errors; call Save to
// decide otherwise. What a handler changed and did not save is dropped when it panics. It belongs behind
// recovery and access logs, and only one of it on a route: handlers find the innermost.
//
// A name that is not one of a cookie is an error of Save.
func Middleware(name string, s *Store) gin.HandlerFunc {
	return func(c *gin.Context) {
		m := &session{store: s, name: name, request: c.Request}
		m.out = writer{c.Writer, m}
		c.Writer = &m.out
		c.Set(sessions.DefaultKey, m)
		defer func() {
			if c.Writer == &m.out { // also when a handler panics: the answer to that is not its own
				c.Writer = m.out.ResponseWriter
			}
		}()
		c.Next()
		m.finish()
		if m.err != nil {
			_ = c.Error(m.err)
		}
	}
}

// from is the session that Middleware gave c.
func from(c *gin.Context) (*session, bool) {
	v, _ := c.Get(sessions.DefaultKey)
	m, ok := v.(*session)
	return m, ok
}

// Regenerate gives the session a new id and a new start, and ends the old one: at login and at every change
// of privilege, so that nobody who has planted an id has the session (OWASP Session Management, "Renew the
// Session ID After Any Privilege Level Change"). What was changed so far is saved. A session that is not
// stored yet gets its first id when it is. ErrUnavailable, ErrTooLarge, ErrGone or ErrTooLate mean that
// nothing has changed, except that when the old one cannot be deleted the new one stands, with
// ErrUnavailable.
func Regenerate(c *gin.Context) error {
	m, ok := from(c)
	if !ok {
		return errNoMiddleware
	}
	m.load()
	switch {
	case m.hold.state != Live:
		return ErrUnavailable
	case m.hold.id == "":
		return nil
	case headersOut(m.out.ResponseWriter):
		return ErrTooLate
	}
	before := m.hold.id
	err := m.store.regenerate(m.request, m.hold, m.values)
	if m.hold.id != before { // what was changed has moved
		m.written = false
	}
	m.store.renew(m.out.ResponseWriter, m.hold, &m.options)
	return err
}

// Destroy is logout: the session is deleted, a write in flight does not bring it back, and the cookie is
// cleared. With ErrUnavailable the cookie is cleared and this instance serves the session no more, but it
// may live on in Redis until it expires or its cookie is seen here. What is set afterwards begins a new one.
func Destroy(c *gin.Context) error {
	m, ok := from(c)
	if !ok {
		return errNoMiddleware
	}
	if m.hold == nil {
		m.hold, m.options = m.store.identify(m.request, m.name), m.store.options(m.request)
	}
	o := m.options
	o.MaxAge = -1
	clear(m.values)
	err := m.store.commit(m.request, m.out.ResponseWriter, m.hold, nil, &o)
	m.values, m.written = map[any]any{}, false
	return err
}

// StateOf says what the request knows of its session, which it reads for that. Without Middleware it is
// Unavailable.
func StateOf(c *gin.Context) State {
	m, ok := from(c)
	if !ok {
		return Unavailable
	}
	m.load()
	return m.hold.state
}

// Require answers 503 with Retry-After instead of serving without a live session store: also for a request
// without a session, for which it asks Redis whether it is there. It belongs behind Middleware.
func Require() gin.HandlerFunc {
	return func(c *gin.Context) {
		if m, ok := from(c); ok && StateOf(c) == Live && (m.hold.id != "" || m.store.answers(m.request.Context())) {
			return
		}
		refusal.Answer(c, "session", refusal.Problem{
			Status: http.StatusServiceUnavailable, Detail: "sessions cannot be read at the moment",
		})
	}
}

// A session is gin-contrib's Session of one request. Like that it is for one goroutine at a time.
type session struct {
	store   *Store
	name    string
	request *http.Request
	out     writer

	hold    *hold // nil until something is asked
	values  map[any]any
	options gorilla.Options
	written bool
	err     error // of saving without being asked to
}

func (m *session) load() map[any]any {
	if m.hold == nil {
		m.hold, m.options = m.store.identify(m.request, m.name), m.store.options(m.request)
		m.values = m.store.load(m.request, m.hold)
		if m.hold.err != nil {
			m.err = m.hold.err
		}
	}
	return m.values
}

func (m *session) ID() string {
	m.load()
	return m.hold.id
}

func (m *session) Get(key any) any { return m.load()[key] }

func (m *session) Set(key, value any) {
	m.load()[key] = value
	m.written = true
}

func (m *session) Delete(key any) {
	if _, ok := m.load()[key]; ok {
		delete(m.values, key)
		m.written = true
	}
}

func (m *session) Clear() {
	m.written = len(m.load()) > 0 || m.written
	clear(m.values)
}

// A key of flashes, as gorilla/sessions has it.
func flashKey(vars []string) string {
	if len(vars) > 0 {
		return vars[0]
	}
	return "_flash"
}

func (m *session) AddFlash(value any, vars ...string) {
	key := flashKey(vars)
	flashes, _ := m.load()[key].([]any)
	m.Set(key, append(slices.Clip(flashes), value))
}

func (m *session) Flashes(vars ...string) []any {
	key := flashKey(vars)
	flashes, _ := m.load()[key].([]any)
	m.Delete(key)
	return flashes
}

func (m *session) Options(o sessions.Options) {
	m.load()
	m.options = *o.ToGorillaOptions()
	m.written = true
}

func (m *session) Save() error {
	if !m.written {
		return nil
	}
	err := m.store.commit(m.request, m.out.ResponseWriter, m.hold, m.values, &m.options)
	if err == nil {
		m.written = false
		if m.hold.id == "" { // it was ended, and what comes begins a new one
			clear(m.values)
		}
	}
	return err
}

// finish saves what is not saved, and sends the cookie if that is due.
func (m *session) finish() {
	if m.hold == nil {
		return
	}
	if m.written {
		if err := m.Save(); err != nil {
			m.err = err
			m.written = false // once is enough
		}
	}
	if m.hold.id != "" {
		m.store.renew(m.out.ResponseWriter, m.hold, &m.options)
	}
}

// A writer saves the session before the headers go out.
type writer struct {
	gin.ResponseWriter
	session *session
}

func (w *writer) before() {
	if w.session.hold != nil && !w.Written() {
		w.session.finish()
	}
}

func (w *writer) Write(b []byte) (int, error) {
	w.before()
	return w.ResponseWriter.Write(b)
}

func (w *writer) WriteString(s string) (int, error) {
	w.before()
	return w.ResponseWriter.WriteString(s)
}

func (w *writer) WriteHeaderNow() {
	w.before()
	w.ResponseWriter.WriteHeaderNow()
}

func (w *writer) Flush() {
	w.before()
	w.ResponseWriter.Flush()
}

func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.before()
	return w.ResponseWriter.Hijack()
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

var _ sessions.Session = (*session)(nil)
