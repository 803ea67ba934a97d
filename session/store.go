package session

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"

	gorilla "github.com/gorilla/sessions"
)

// Get returns the session of r by this name, the same one for each call with r or a copy of it. It is never
// nil; the error says why it is read only.
func (s *Store) Get(r *http.Request, name string) (*gorilla.Session, error) {
	if err := checkName(name); err != nil {
		return gorilla.NewSession(s, name), err
	}
	return gorilla.GetRegistry(r).Get(s, name)
}

// New reads the session of r by this name. It is never nil; the error says why it is read only.
func (s *Store) New(r *http.Request, name string) (*gorilla.Session, error) {
	h := s.identify(r, name)
	session := gorilla.NewSession(s, name)
	*session.Options = s.options(r)
	session.Values = s.load(r, h)
	session.ID, session.IsNew = h.id, h.id == ""
	s.holds.put(session, h)
	return session, h.err
}

// Save writes a session and, if that is due, its cookie. With a negative MaxAge it ends the session. A
// session that is not of New or Get is stored as a new one.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *gorilla.Session) error {
	h := s.holds.get(session)
	if h == nil {
		h = &hold{name: session.Name()}
		s.holds.put(session, h)
	}
	err := s.commit(r, w, h, session.Values, session.Options)
	session.ID = h.id
	return err
}

// commit is Save of a hold.
func (s *Store) commit(r *http.Request, w http.ResponseWriter, h *hold, values map[any]any, o *gorilla.Options) error {
	if err := checkName(h.name); err != nil {
		return err
	}
	switch {
	case o.MaxAge < 0:
		err := s.end(r, h)
		setCookie(w, gorilla.NewCookie(h.name, "", o))
		return err
	case h.state != Live:
		return ErrUnavailable
	case h.id == "" && len(values) == 0:
		return nil // there is nothing to keep
	case h.id == "" && headersOut(w):
		return ErrTooLate
	}
	isNew := h.id == ""
	if err := s.save(r, h, values); err != nil {
		return err
	}
	h.due = h.due || isNew || *o != s.options(r)
	s.renew(w, h, o)
	return nil
}

// renew sends the cookie if it is due and the headers are not out.
func (s *Store) renew(w http.ResponseWriter, h *hold, o *gorilla.Options) {
	if !h.due || headersOut(w) {
		return
	}
	h.due = false
	value := s.signer.encode(h.name, h.id, time.Now())
	if value == "" { // another codec's id, of a form that only its cookies can have
		return
	}
	setCookie(w, gorilla.NewCookie(h.name, value, o))
}

func checkName(name string) error {
	if err := (&http.Cookie{Name: name}).Valid(); err != nil {
		return fmt.Errorf("session: %q is not the name of a cookie", name)
	}
	return nil
}

// headersOut reports whether it is too late for a cookie. Only gin's writer knows.
func headersOut(w http.ResponseWriter) bool {
	out, ok := w.(interface{ Written() bool })
	return ok && out.Written()
}

// setCookie sends c, in the place of another of that name.
func setCookie(w http.ResponseWriter, c *http.Cookie) {
	const field, cache = "Set-Cookie", "Cache-Control"
	v := c.String()
	if v == "" {
		return
	}
	header := w.Header()
	header[field] = append(slices.DeleteFunc(header[field], func(line string) bool {
		return strings.HasPrefix(line, c.Name+"=")
	}), v)
	if len(header[cache]) == 0 { // RFC 9111 section 5.2.2.4: no cache gives a session to another client
		header.Set(cache, `no-cache="Set-Cookie"`)
	}
}

// holds finds the hold of a session that gorilla's interface hands back. An entry goes with its session.
type holds struct {
	m sync.Map // weak.Pointer[gorilla.Session] to *hold
}

func (hs *holds) put(s *gorilla.Session, h *hold) {
	p := weak.Make(s)
	hs.m.Store(p, h)
	runtime.AddCleanup(s, func(p weak.Pointer[gorilla.Session]) { hs.m.Delete(p) }, p)
}

func (hs *holds) get(s *gorilla.Session) *hold {
	h, _ := hs.m.Load(weak.Make(s))
	found, _ := h.(*hold)
	return found
}
