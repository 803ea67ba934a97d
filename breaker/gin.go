package breaker

import (
	"bufio"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

// statusClientClosedRequest is nginx' 499.
const statusClientClosedRequest = 499

// An Option configures [Middleware].
type Option func(*guard)

type guard struct {
	circuits Circuits
	key      func(*gin.Context) string
	fallback gin.HandlerFunc
	classify func(*gin.Context) Outcome
}

// WithKey names the circuit of a request, instead of its method and FullPath. Keys should come from a
// known set: a [Group] has 4096 names and lets all others share one circuit. nil: the default.
func WithKey(key func(*gin.Context) string) Option {
	return func(g *guard) {
		if key != nil {
			g.key = key
		}
	}
}

// WithFallback answers in the place of an open circuit; it runs on the request's goroutine after c was
// aborted, so c.Next does nothing there. [Rejected] is true for its answer whatever the status, and no
// Highball engine counts it.
func WithFallback(h gin.HandlerFunc) Option { return func(g *guard) { g.fallback = h } }

// WithClassify decides the outcome of a request that was answered, instead of its status. It is not
// asked about answers that Highball refused, that were too late for the Timeout, or whose client is gone. nil:
// the default.
func WithClassify(f func(*gin.Context) Outcome) Option {
	return func(g *guard) {
		if f != nil {
			g.classify = f
		}
	}
}

// Middleware guards each route with its own circuit: method and FullPath, all that match no route
// together. An open circuit, or one at MaxConcurrentRequests, answers 503 with Retry-After and
// problem+json, or runs the fallback.
//
// Success, Failure or Neutral follow from the status: 5xx fail; 429, 499, a client gone (the request's
// context was cancelled) and a refusal by Highball itself are Neutral; the rest succeed. A panic is a
// Failure and is passed on; http.ErrAbortHandler, by which a handler breaks off its answer on purpose,
// is Neutral when the client is gone, and else a Failure, for the client got half an answer.
//
// Options.Timeout is a deadline on the context of c.Request, which afterwards is the request as it was
// before. A handler that ran into it is a Timeout, whatever it answered. An answer that is a stream
// (text/event-stream, or a connection that was upgraded and hijacked) has no meaningful duration: it is
// judged by its status alone, and when it begins if the request has asked for it with Accept or Upgrade, so
// that a circuit does not have to wait for the end of a probe that may last for hours. It is in flight until
// then. The deadline ends its context too, so give such routes a circuit without a Timeout.
func Middleware(c Circuits, opts ...Option) gin.HandlerFunc {
	g := &guard{circuits: c, key: newRoutes().key, classify: byStatus}
	for _, o := range opts {
		o(g)
	}
	return g.serve
}

// Rejected reports that a circuit, not the handler, answered this request.
func Rejected(c *gin.Context) bool { return refusal.By(c) == "breaker" }

func (g *guard) serve(c *gin.Context) {
	permit, err := g.circuits.Acquire(g.key(c))
	if err != nil {
		g.refuse(c, err)
		return
	}
	r := request{guard: g, permit: permit, ctx: c.Request.Context()}
	if !asksForStream(c.Request.Header) { // who streams unasked is judged at its end: a watch per request is not free
		r.run(c)
		return
	}
	w, watched := c.Writer, r
	c.Writer = &watch{w, c, &watched}
	defer func() { c.Writer = w }() // also when a panic passes: what answers it is no part of the stream
	watched.run(c)
}

func (g *guard) refuse(c *gin.Context, err error) {
	if g.fallback != nil {
		refusal.Mark(c, "breaker")
		c.Abort()
		g.fallback(c)
		return
	}
	p := refusal.Problem{
		Status: http.StatusServiceUnavailable,
		Type:   "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
		Detail: "This service is failing and is given time to recover.",
	}
	if open := (*OpenError)(nil); errors.As(err, &open) {
		p.RetryAfter = open.RetryAfter
	} else if errors.Is(err, ErrMaxConcurrency) {
		p.Detail = "Too many requests at once are waiting for this service."
	}
	refusal.Answer(c, "breaker", p)
}

// A request is one that was admitted.
type request struct {
	guard      *guard
	permit     Permit
	ctx, inner context.Context // as it came, and with the Timeout
	stream     bool            // has begun
	judged     bool            // when it began
	returned   bool            // the handlers did: no panic, no Goexit
}

// run runs the handlers.
func (r *request) run(c *gin.Context) {
	r.inner = r.ctx
	defer r.end(c)
	if d := r.permit.Timeout(); d > 0 {
		ctx, cancel := context.WithTimeoutCause(r.ctx, d, errTimeout)
		r.inner = ctx
		defer cancel() // runs before end, which needs only the cause
		defer lend(c, ctx)()
	}
	c.Next()
	r.returned = true
}

// begun judges an answer that is a stream.
func (r *request) begun(c *gin.Context, hijacked bool) {
	if r.stream || !hijacked && !isEventStream(c) {
		return
	}
	r.stream = true
	b, ok := r.permit.by.(*Breaker)
	if !ok { // a Finisher is told at the end
		return
	}
	outcome := Neutral
	if refusal.By(c) == "" && !clientGone(r.ctx) {
		outcome = r.guard.classify(c)
	}
	r.permit.begun(b, outcome)
	r.judged = true
}

// end reports the outcome and passes a panic on. It must be deferred itself, for it recovers.
func (r *request) end(c *gin.Context) {
	if r.returned {
		r.report(c)
		return
	}
	v := recover() // nil: runtime.Goexit
	outcome := Failure
	if isAbort(v) && clientGone(r.ctx) {
		outcome = Neutral
	}
	defer r.permit.Done(outcome)
	if v != nil {
		panic(v)
	}
}

// isAbort survives an error whose own Is or Unwrap panics, such as a nil *net.OpError.
func isAbort(v any) (is bool) {
	defer func() { _ = recover() }()
	err, ok := v.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}

func (r *request) report(c *gin.Context) {
	outcome, stream := Failure, r.stream || isEventStream(c)
	defer func() { // also when the hook that classifies panics
		if stream {
			r.permit.untimed(outcome)
		} else {
			r.permit.Done(outcome)
		}
	}()
	switch {
	case r.judged, refusal.By(c) != "":
		outcome = Neutral
	case !stream && timedOut(r.ctx, r.inner):
		outcome = Timeout
	case clientGone(r.ctx):
		outcome = Neutral
	default:
		outcome = r.guard.classify(c)
	}
}

func asksForStream(h http.Header) bool {
	accepts := func(v string) bool { return strings.Contains(v, eventStream) }
	return h["Upgrade"] != nil || slices.ContainsFunc(h["Accept"], accepts)
}

func isEventStream(c *gin.Context) bool {
	return strings.HasPrefix(c.Writer.Header().Get("Content-Type"), eventStream)
}

// A watch sees an answer begin.
type watch struct {
	gin.ResponseWriter
	c *gin.Context
	r *request
}

func (w *watch) Write(b []byte) (int, error) {
	w.r.begun(w.c, false)
	return w.ResponseWriter.Write(b)
}

func (w *watch) WriteString(s string) (int, error) {
	w.r.begun(w.c, false)
	return w.ResponseWriter.WriteString(s)
}

func (w *watch) WriteHeaderNow() {
	w.r.begun(w.c, false)
	w.ResponseWriter.WriteHeaderNow()
}

func (w *watch) Flush() {
	w.r.begun(w.c, false)
	w.ResponseWriter.Flush()
}

func (w *watch) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := w.ResponseWriter.Hijack()
	if err == nil {
		w.r.begun(w.c, true)
	}
	return conn, rw, err
}

// Unwrap is for http.ResponseController.
func (w *watch) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func clientGone(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }

func byStatus(c *gin.Context) Outcome {
	switch status := c.Writer.Status(); {
	case status == http.StatusTooManyRequests, status == statusClientClosedRequest:
		return Neutral
	case status >= http.StatusInternalServerError:
		return Failure
	}
	return Success
}

// lend gives the handlers a request with ctx, and returns what takes it back: whoever comes after must not
// find a context that has ended. The forms that were parsed meanwhile stay with the request, for net/http
// removes the files of the one that it made.
func lend(c *gin.Context, ctx context.Context) func() {
	own := c.Request
	lent := own.WithContext(ctx)
	c.Request = lent
	return func() {
		own.Form, own.PostForm, own.MultipartForm = lent.Form, lent.PostForm, lent.MultipartForm
		c.Request = own
	}
}

// routes makes names of method and FullPath, and keeps them, for making one allocates. Both come from the
// routes of the engine, so there are few; the map is bounded all the same.
type routes struct {
	names atomic.Pointer[map[route]string]
	mu    sync.Mutex // held by who replaces the map
}

type route struct{ method, path string }

func newRoutes() *routes {
	r := new(routes)
	r.names.Store(&map[route]string{})
	return r
}

func (r *routes) key(c *gin.Context) string {
	at := route{c.Request.Method, c.FullPath()}
	if at.path == "" {
		return "unmatched"
	}
	if name, ok := (*r.names.Load())[at]; ok {
		return name
	}
	return r.add(at)
}

func (r *routes) add(at route) string {
	method := at.method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
	default:
		method = "OTHER"
	}
	name := method + " " + at.path
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := *r.names.Load(); len(old) < maxNames && method == at.method {
		names := maps.Clone(old)
		names[at] = name
		r.names.Store(&names)
	}
	return name
}
