//go:build !race

package metrics_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/metrics"
)

func TestARequestAllocatesNothing(t *testing.T) {
	_, _, r := setUp(metrics.Options{})
	r.GET("/orders/:id", func(c *gin.Context) { c.Status(http.StatusNoContent) })
	w, req := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/orders/7", nil)
	if n := testing.AllocsPerRun(1000, func() { r.ServeHTTP(w, req) }); n != 0 {
		t.Errorf("%v allocations a request, want none", n)
	}
}
