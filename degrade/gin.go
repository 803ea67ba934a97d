package degrade

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/hijack"
	"github.com/highball-go/highball/internal/refusal"
)

// An Option configures [Middleware].
type Option func(*guard)

type guard struct {
	controller *Controller
	fallback   gin.HandlerFunc
	essential  func(*gin.Context) bool
	limit      *Concurrency
}

// WithFallback answers in the handler's place while the service is degraded. It runs on the request's
// goroutine after c was aborted, so c.Next does nothing there; X-Degraded is set already, and no Highball
// engine counts its answer.
func WithFallback(h gin.HandlerFunc) Option { return func(g *guard) { g.fallback = h } }

// WithEssential names the requests that are never degraded: their handlers run, and their answers are
// observed, as if all were well.
func WithEssential(f func(*gin.Context) bool) Option { return func(g *guard) { g.essential = f } }

// WithConcurrency also refuses what would not find a slot of l, in the way of a degraded service, with a
// Retry-After of one second. What is essential is never refused, but takes a slot. Nil, or without this Option:
// off.
func WithConcurrency(l *Concurrency) Option { return func(g *guard) { g.limit = l } }

// Middleware observes every request; while degraded, requests that are not essential get the fallback, or
// 503 with Retry-After (Options.RecoverFor, or what is left of the time of Force) and problem+json, and
// the header X-Degraded: true.
//
// A 5xx and a panic, which is passed on, are failures. Not observed at all are answers that Highball itself
// refused, here or elsewhere in the chain, and clients that went away (the request's context was cancelled,
// or status 499). An answer that is a stream (text/event-stream, or a connection that was upgraded and
// hijacked) has no meaningful duration: it counts for ErrorRate alone.
func Middleware(d *Controller, opts ...Option) gin.HandlerFunc {
	g := &guard{controller: d}
	for _, o := range opts {
		o(g)
	}
	return g.serve
}

func (g *guard) serve(c *gin.Context) {
	d := g.controller
	d.inFlight.Add(1)
	defer d.inFlight.Add(-1)
	essential := g.essential != nil && (g.limit != nil || d.Degraded()) && g.essential(c)
	if !essential && d.Degraded() {
		g.refuse(c, d.retryAfter())
		return
	}
	if g.limit != nil {
		if !g.limit.acquire(essential) {
			g.refuse(c, time.Second)
			return
		}
		defer g.limit.release()
	}
	r := request{limit: g.limit, controller: d, ctx: c.Request.Context(), start: time.Now()}
	defer r.end(c)
	if c.GetHeader("Upgrade") == "" {
		c.Next()
	} else {
		w := &hijack.Watch{ResponseWriter: c.Writer}
		c.Writer = w
		c.Next()
		c.Writer = w.ResponseWriter
		r.stream = w.Hijacked
	}
	r.returned = true
}

func (g *guard) refuse(c *gin.Context, retryAfter time.Duration) {
	c.Header("X-Degraded", "true")
	if g.fallback != nil {
		refusal.Mark(c, "degrade")
		c.Abort()
		g.fallback(c)
		return
	}
	refusal.Answer(c, "degrade", refusal.Problem{
		Status:     http.StatusServiceUnavailable,
		Type:       "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
		Detail:     "This service is overloaded and answers only what is essential.",
		RetryAfter: max(retryAfter, 0),
	})
}

// A request is one whose handlers run.
type request struct {
	controller *Controller
	limit      *Concurrency    // nil: off
	ctx        context.Context // as it came: handlers may put another in its place, and end that
	start      time.Time
	stream     bool
	returned   bool // the handlers did: no panic, no Goexit
}

func (r *request) end(c *gin.Context) {
	status := c.Writer.Status()
	switch {
	case refusal.By(c) != "", refusal.EndOf(c) == refusal.EndGone,
		errors.Is(r.ctx.Err(), context.Canceled), status == refusal.StatusClientClosedRequest:
		return
	case r.stream, strings.HasPrefix(c.Writer.Header().Get("Content-Type"), "text/event-stream"):
		r.controller.counters.addStream(!r.returned || status >= http.StatusInternalServerError)
	default:
		failed := !r.returned || status >= http.StatusInternalServerError || refusal.EndOf(c) == refusal.EndAborted
		now := time.Now()
		r.controller.Observe(now.Sub(r.start), failed)
		if r.limit != nil {
			r.limit.observe(r.start, now, failed)
		}
	}
}
