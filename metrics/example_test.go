package metrics_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/metrics"
)

func ExampleMiddleware() {
	reg := prometheus.NewRegistry() // or prometheus.DefaultRegisterer
	m := metrics.New(reg, metrics.Options{})
	circuits := breaker.NewGroup(breaker.Options{RequestVolumeThreshold: 1, OnChange: m.BreakerChange})
	m.WatchBreakers(circuits.Snapshots)

	r := gin.New()
	r.GET("/metrics", metrics.Handler(reg)) // before Use: scrapes are not counted
	r.Use(metrics.Middleware(m), breaker.Middleware(circuits))
	r.GET("/orders/:id", func(c *gin.Context) { c.Status(http.StatusBadGateway) })

	for _, target := range []string{"/orders/7", "/orders/8", "/metrics"} {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		for line := range strings.Lines(w.Body.String()) {
			if strings.HasPrefix(line, "http_requests_total") || strings.HasPrefix(line, "highball_breaker_state") {
				fmt.Print(line)
			}
		}
	}

	// Output:
	// highball_breaker_state{circuit="GET /orders/:id",state="closed"} 0
	// highball_breaker_state{circuit="GET /orders/:id",state="half-open"} 0
	// highball_breaker_state{circuit="GET /orders/:id",state="open"} 1
	// http_requests_total{method="GET",route="/orders/:id",status="502"} 1
	// http_requests_total{method="GET",route="/orders/:id",status="503"} 1
}
