package benchmarks

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/health"
)

// BenchmarkHealth is what the counting costs each request, beside nothing, and a probe.
func BenchmarkHealth(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	h := health.New(health.Options{})
	b.Cleanup(func() { _ = h.Close() })
	h.Add("db", func(context.Context) error { return nil })
	for _, p := range []struct {
		impl, path string
		mw         gin.HandlerFunc
	}{
		{"highball", "/work", health.Middleware(h)},
		{"none", "/work", func(*gin.Context) {}},
		{"highball-readyz", "/readyz", health.Middleware(h)},
	} {
		b.Run("impl="+p.impl, func(b *testing.B) {
			r := gin.New()
			r.Use(p.mw)
			health.Register(h, r)
			r.GET("/work", func(c *gin.Context) { c.Status(http.StatusOK) })
			serve(b, r, httptest.NewRequest(http.MethodGet, p.path, nil), http.StatusOK)
		})
	}
}
