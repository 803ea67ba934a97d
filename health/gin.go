package health

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// Register adds, for GET and HEAD and never cached,
//
//   - /health: 200 {"status":"healthy"}, or 503 {"status":"unhealthy"} when the instance is not ready. It is
//     what Consul and load balancers that know one check only should ask.
//   - /livez: 200 as long as the process answers. A failing dependency is no reason to restart an instance.
//   - /readyz: 200 with status pass or warn, or 503 with fail, and the status of each check by its name. The
//     first probes wait for checks that have no result yet, no longer than the probe does.
//
// The texts of errors are in none of them.
func Register(h *Health, r gin.IRouter) {
	add := func(path string, handler gin.HandlerFunc) {
		r.GET(path, handler)
		r.HEAD(path, handler)
	}
	add("/livez", func(c *gin.Context) { answer(c, true, gin.H{"status": Pass}) })
	add("/health", func(c *gin.Context) {
		h.settle(c.Request.Context())
		status := "healthy"
		ready := h.Ready()
		if !ready {
			status = "unhealthy"
		}
		answer(c, ready, gin.H{"status": status})
	})
	add("/readyz", func(c *gin.Context) {
		h.settle(c.Request.Context())
		s, checks, draining := h.status()
		body := gin.H{"status": s, "checks": checks}
		if draining {
			body["draining"] = true
		}
		answer(c, s != Fail, body)
	})
}

func answer(c *gin.Context, ok bool, body gin.H) {
	c.Header("Cache-Control", "no-store")
	status := http.StatusOK
	if !ok {
		status = http.StatusServiceUnavailable
	}
	c.JSON(status, body)
}

// Middleware counts the requests in flight, for [Health.Serve] to wait for also when a handler has hijacked
// its connection, and asks clients to close theirs while h drains: by Connection: close, which net/http turns
// into a GOAWAY for HTTP/2. It belongs in front of everything.
func Middleware(h *Health) gin.HandlerFunc {
	return func(c *gin.Context) {
		h.inFlight.Add(1)
		defer h.inFlight.Add(-1)
		select {
		case <-h.draining:
			c.Header("Connection", "close")
		default:
		}
		c.Next()
	}
}
