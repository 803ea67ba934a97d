package recovery

import (
	"bytes"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"

	"github.com/highball-go/highball/internal/redact"
	"github.com/highball-go/highball/internal/refusal"
)

// Option changes what [Middleware] does.
type Option func(*recoverer)

// WithHandler has answer write the answer to a panic instead of problem+json. It is only called while nothing
// is written, with the status set to 500 and stale headers removed; what it leaves unwritten is an empty 500.
// A panic of its own is logged and gets the usual answer.
func WithHandler(answer func(*gin.Context, Panic)) Option {
	return func(r *recoverer) { r.answer = answer }
}

// OnPanic has f called for each panic, also when its log line is suppressed, to count them say. It is not
// called for http.ErrAbortHandler and for clients that are gone. A panic of f is logged.
func OnPanic(f func(Panic)) Option {
	return func(r *recoverer) { r.onPanic = f }
}

// recoverer is what one Middleware shares between its requests.
type recoverer struct {
	log     *zap.Logger
	answer  func(*gin.Context, Panic)
	onPanic func(Panic)
	limit   limiter
}

// Middleware recovers panics of the handlers behind it, logs them to l and answers for them; see the package
// documentation. It is right at any place of the chain; behind accesslog and metrics these two know how the
// request ended. A nil l discards the lines.
func Middleware(l *zap.Logger, opts ...Option) gin.HandlerFunc {
	r := &recoverer{log: plain(l), limit: limiter{sites: make(map[site]*state)}}
	for _, o := range opts {
		o(r)
	}
	return func(c *gin.Context) {
		w, done := c.Writer, false
		defer func() {
			v := recover()
			if !done {
				r.recovered(c, w, v)
			}
		}()
		c.Next()
		done = true
	}
}

// recovered ends c after the panic v, or after runtime.Goexit. Only a deferred function may call it.
func (r *recoverer) recovered(c *gin.Context, w gin.ResponseWriter, v any) {
	var pcs [maxFrames]uintptr
	at := callers(&pcs)
	if at == nil {
		return // runtime.Goexit goes on by itself
	}
	c.Abort()    // else a middleware in front of us would run the rest of the chain
	c.Writer = w // what wrapped it, a compressor say, is gone with its handler
	switch kindOf(v, c.Request) {
	case abort:
		cut(c)
	case gone:
		r.gone(c, v, at[0])
	default:
		r.panicked(c, Panic{Value: orNil(v), Route: route(c)}, at)
	}
}

// gone ends a request whose client does not read the answer any more.
func (r *recoverer) gone(c *gin.Context, v any, pc uintptr) {
	refusal.MarkEnd(c, refusal.EndGone)
	if n, ok := r.limit.allow(site{pc, c.FullPath()}, time.Now()); ok {
		f := []zap.Field{zap.Int("status", refusal.StatusClientClosedRequest), zap.String("route", route(c)), zap.String("error", text(v))}
		if n > 0 {
			f = append(f, zap.Int("suppressed", n))
		}
		r.log.Warn("client gone", f...)
	}
	switch {
	case hijacked(c):
	case c.Writer.Written():
		panic(http.ErrAbortHandler) // should somebody read it after all, it must not look complete
	default:
		c.Status(refusal.StatusClientClosedRequest)
	}
}

func (r *recoverer) panicked(c *gin.Context, p Panic, at []uintptr) {
	s := site{at[0], c.FullPath()}
	n, logged := r.limit.allow(s, time.Now())
	hooked := r.onPanic != nil || r.answer != nil
	if logged || hooked {
		stack := r.limit.stack(s, at)
		if logged {
			r.log.Error("panic", fields(p.Value, stack, p.Route, requestID(c), n)...)
		}
		if hooked {
			p.Stack = bytes.Clone(stack) // theirs to keep and change
		}
	}
	if r.onPanic != nil {
		r.guard(p.Route, func() { r.onPanic(p) })
	}
	if hijacked(c) {
		return
	}
	if !c.Writer.Written() {
		removeStale(c.Writer.Header())
		if r.answer != nil {
			c.Status(http.StatusInternalServerError)
			if r.guard(p.Route, func() { r.answer(c, p) }) {
				return
			}
		}
	}
	if c.Writer.Written() {
		cut(c)
	}
	removeStale(c.Writer.Header())
	refusal.Write(c, refusal.Problem{Status: http.StatusInternalServerError})
}

// guard runs a hook, logs its panic and reports whether there was none. http.ErrAbortHandler passes.
func (r *recoverer) guard(route string, hook func()) (ok bool) {
	defer func() {
		v := recover()
		if ok {
			return
		}
		var pcs [maxFrames]uintptr
		at := callers(&pcs)
		if at == nil {
			return
		}
		if err, isErr := v.(error); isErr && err == http.ErrAbortHandler { //nolint:errorlint // an error's own Is may panic
			panic(http.ErrAbortHandler)
		}
		if n, logged := r.limit.allow(site{at[0], route}, time.Now()); logged {
			r.log.Error("panic in a hook of recovery", fields(orNil(v), frames(at), route, "", n)...)
		}
	}()
	hook()
	return true
}

// cut has net/http cut the connection, or reset the stream, without a word in its log.
func cut(c *gin.Context) {
	refusal.MarkEnd(c, refusal.EndAborted)
	panic(http.ErrAbortHandler)
}

// hijacked reports whether the connection is not net/http's any more. A write of nothing tells.
func hijacked(c *gin.Context) bool {
	if !c.Writer.Written() {
		return false
	}
	_, err := c.Writer.Write(nil)
	return err == http.ErrHijacked //nolint:errorlint // this very error, not one about it
}

// removeStale removes the headers that describe the answer that will not come.
func removeStale(h http.Header) {
	for _, name := range [...]string{
		"Accept-Ranges", "Age", "Cache-Control", "Cdn-Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language",
		"Content-Length", "Content-Location", "Content-Range", "Content-Type", "Etag", "Expires", "Last-Modified",
		"Location", "Surrogate-Control", "Trailer", "Transfer-Encoding",
	} {
		delete(h, name)
	}
}

func route(c *gin.Context) string {
	if p := c.FullPath(); p != "" {
		return p
	}
	return "unmatched"
}

// requestID is what a middleware in front echoes, to find the request's other lines by.
func requestID(c *gin.Context) string {
	return redact.Clean(c.Writer.Header().Get("X-Request-Id"), 128)
}
