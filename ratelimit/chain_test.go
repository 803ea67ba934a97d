package ratelimit_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/ratelimit"
)

// serve sends n requests through the chain, and counts the statuses.
func serve(n, status int, chain ...gin.HandlerFunc) map[int]int {
	gin.SetMode(gin.TestMode)
	r := gin.New()
	r.Use(chain...)
	r.GET("/", func(c *gin.Context) { c.Status(status) })
	got := map[int]int{}
	for range n {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		got[w.Code]++
	}
	return got
}

func TestTheBreakerHearsNothingOfARefusalInEitherOrder(t *testing.T) {
	for _, limiterFirst := range []bool{true, false} {
		g := breaker.NewGroup(breaker.Options{RequestVolumeThreshold: 1})
		limit := ratelimit.Middleware(ratelimit.New(ratelimit.PerSecond(0, 5), ratelimit.Options{}))
		chain := []gin.HandlerFunc{limit, breaker.Middleware(g)}
		if !limiterFirst {
			chain = []gin.HandlerFunc{breaker.Middleware(g), limit}
		}
		got := serve(50, http.StatusOK, chain...)
		if s := g.Get("GET /").Snapshot(); got[200] != 5 || got[429] != 45 || s.Total != 5 || s.Errors != 0 || s.InFlight != 0 {
			t.Errorf("limiter first %v: statuses %v, the breaker counted %d and %d errors; want 5 and 45, 5 and 0", limiterFirst, got, s.Total, s.Errors)
		}
	}
}

func TestAnOpenCircuitGivesTheTokenBack(t *testing.T) {
	g := breaker.NewGroup(breaker.Options{})
	l := ratelimit.New(ratelimit.PerSecond(0, 30), ratelimit.Options{})
	got := serve(100, http.StatusInternalServerError,
		ratelimit.Middleware(l, ratelimit.WithRefund(breaker.Rejected)), breaker.Middleware(g))
	d, _ := l.AllowN(t.Context(), "192.0.2.1", 0)
	if got[500] != 20 || got[503] != 80 || d.Remaining != 10 {
		t.Errorf("statuses %v, %d tokens left; want 20 of 500, 80 of 503, and 10", got, d.Remaining)
	}
}
