package accesslog

import (
	"context"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/highball-go/highball/internal/refusal"
)

const header = "X-Request-Id"

// Option changes what [Middleware] does.
type Option func(*logger)

// WithFields has add append fields to each line, after the handlers have run. It must not keep the slice. What
// it takes from the request it must make safe itself.
func WithFields(add func(*gin.Context, []zap.Field) []zap.Field) Option {
	return func(l *logger) { l.add = add }
}

// WithSkip leaves out the lines of requests for which skip reports true. It is asked after the handlers have
// run, so it can look at the status too, and not at all for a request that ends in a panic.
func WithSkip(skip func(*gin.Context) bool) Option {
	return func(l *logger) { l.skip = skip }
}

// WithSlow marks requests that take longer than d, and raises their lines to WARN. Zero or less: none.
func WithSlow(d time.Duration) Option {
	return func(l *logger) { l.slow = d }
}

// logger is what one Middleware shares between its requests.
type logger struct {
	log  *zap.Logger
	add  func(*gin.Context, []zap.Field) []zap.Field
	skip func(*gin.Context) bool
	slow time.Duration
}

// Middleware logs every request to l, see the package documentation, and gives it an id, see [RequestID]. It
// belongs in front of everything whose work is to be seen. A nil l discards the lines. What a handler gives to
// gin's Engine.HandleContext goes through the chain again, and has a line each time, of the same id.
func Middleware(l *zap.Logger, opts ...Option) gin.HandlerFunc {
	if l == nil {
		l = zap.NewNop()
	}
	lg := &logger{log: l.WithOptions(zap.WithCaller(false), zap.AddStacktrace(zapcore.InvalidLevel))}
	for _, o := range opts {
		o(lg)
	}
	return func(c *gin.Context) {
		// What is logged is what came in, whatever handlers make of c.Request. Its context above all: one that
		// a handler has derived and canceled is not a client that left.
		r := c.Request
		e := entry{start: time.Now(), ctx: r.Context(), method: r.Method, path: r.URL.Path, query: r.URL.RawQuery}
		e.id = RequestID(c)
		done, skip := false, false
		defer func() { // no recover: a panic goes on as it is
			if !skip {
				lg.write(c, &e, done)
			}
		}()
		c.Next()
		skip = lg.skip != nil && lg.skip(c)
		done = true
	}
}

// RequestID is the id of the request: the one in its X-Request-Id when that is safe to log, at most 128 of
// A-Z, a-z, 0-9, dot, dash and underscore; else a new one of 128 random bits in hex. It is echoed in the
// answer's X-Request-Id, where a middleware in front of accesslog may have put another one that is safe.
func RequestID(c *gin.Context) string {
	h := c.Writer.Header()
	if v := h[header]; len(v) > 0 && safeID(v[0]) {
		return v[0]
	}
	v := c.Request.Header[header]
	if len(v) == 0 || !safeID(v[0]) {
		v = newID()
	}
	h[header] = v[:1:1]
	return v[0]
}

// entry is what is known of a request when it comes in.
type entry struct {
	start               time.Time
	ctx                 context.Context
	method, path, query string
	id                  string
}

// write logs the request that c was, if its level is enabled. done is false while a panic passes.
func (lg *logger) write(c *gin.Context, e *entry, done bool) {
	latency := time.Since(e.start)
	l := line{
		method: e.method, path: e.path, query: e.query, requestID: e.id,
		size:    max(c.Writer.Size(), 0),
		latency: latency, slow: lg.slow > 0 && latency > lg.slow,
	}
	l.status, l.aborted = refusal.Status(c, e.ctx, done)
	ce := lg.log.Check(l.level(), "request")
	if ce == nil {
		return
	}
	if l.route = c.FullPath(); l.route == "" {
		l.route = "unmatched"
	}
	if v := c.Request.Header["User-Agent"]; len(v) > 0 {
		l.userAgent = v[0]
	}
	l.ip = clientIP(c)
	if len(c.Errors) > 0 {
		l.errors = strings.Join(c.Errors.Errors(), "; ")
	}

	pooled := fieldPool.Get().(*[]zap.Field)
	f := l.fields((*pooled)[:0])
	defer func() { // also when add panics
		ce.Write(f...)
		clear(f) // strings of this request must not live on
		*pooled = f
		fieldPool.Put(pooled)
	}()
	if lg.add != nil {
		f = lg.add(c, f)
	}
}

func clientIP(c *gin.Context) string {
	if ip, ok := plainIP(c.Request.RemoteAddr, c.Request.Header); ok {
		return ip
	}
	return c.ClientIP()
}
