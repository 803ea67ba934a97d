package benchmarks

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	ginprometheus "github.com/zsais/go-gin-prometheus"

	"github.com/highball-go/highball/metrics"
)

// BenchmarkMetrics is one measured request. Highball's has a histogram by route and status, and the active requests,
// in addition.
func BenchmarkMetrics(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	reg := prometheus.NewRegistry()
	ours := metrics.New(reg, metrics.Options{})
	theirs := ginprometheus.NewPrometheus("bench") // registers itself with the default registry, once
	theirs.ReqCntURLLabelMappingFn = func(c *gin.Context) string { return c.FullPath() }
	for _, p := range []struct {
		impl    string
		mw      gin.HandlerFunc
		counted func() float64
	}{
		{"none", func(*gin.Context) {}, nil},
		{"highball", metrics.Middleware(ours), func() float64 { return counted(b, reg, "http_requests_total") }},
		{"go-gin-prometheus", theirs.HandlerFunc(), func() float64 {
			return counted(b, prometheus.DefaultGatherer, "bench_requests_total")
		}},
	} {
		b.Run("impl="+p.impl, func(b *testing.B) {
			r := gin.New()
			r.Use(p.mw)
			r.GET("/orders/:id", func(c *gin.Context) { c.Status(http.StatusNoContent) })
			req := httptest.NewRequest(http.MethodGet, "/orders/42?page=3", nil)
			before := 0.0
			if p.counted != nil {
				before = p.counted()
			}
			serve(b, r, req, http.StatusNoContent)
			if p.counted != nil && p.counted()-before < float64(b.N) {
				b.Fatalf("%v requests counted of %d", p.counted()-before, b.N)
			}
		})
	}
}

// counted is the sum of a counter's series.
func counted(tb testing.TB, g prometheus.Gatherer, name string) float64 {
	tb.Helper()
	families, err := g.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, s := range f.GetMetric() {
				sum += s.GetCounter().GetValue()
			}
		}
	}
	return sum
}
