package metrics

import (
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/highball-go/highball/internal/refusal"
)

// Middleware counts each request and measures its time. It belongs in front of everything whose work is to be
// seen; panics pass it as they are. What a handler gives to gin's Engine.HandleContext goes through the chain
// again, and counts each time.
func Middleware(m *Metrics) gin.HandlerFunc {
	return func(c *gin.Context) {
		// The method and the context are those that came in, whatever handlers make of c.Request.
		start, method, ctx, done := time.Now(), c.Request.Method, c.Request.Context(), false
		m.requests.active.Add(1)
		defer func() { // no recover: a panic goes on as it is
			m.requests.active.Add(-1)
			status, aborted := refusal.Status(c, ctx, done)
			if aborted {
				status = 500 // what the client was promised it did not get
			}
			took := time.Since(start)
			var exemplar prometheus.Labels
			defer func() { // also when the hook panics
				m.requests.ended(method, c.FullPath(), status, c.Writer.Size(), took, exemplar)
			}()
			if m.exemplar != nil {
				exemplar = m.exemplar(c.Request.Context())
			}
		}()
		c.Next()
		done = true
	}
}

// Handler serves what g gathers, for r.GET("/metrics", …), in the format that the scraper asks for. Nil:
// [prometheus.DefaultGatherer]. At most four scrapes at once are served, the others get 503.
func Handler(g prometheus.Gatherer) gin.HandlerFunc {
	if g == nil {
		g = prometheus.DefaultGatherer
	}
	return gin.WrapH(promhttp.HandlerFor(g, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4}))
}
