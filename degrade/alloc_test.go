//go:build !race

package degrade

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
)

func TestAHealthyRequestAllocatesNothing(t *testing.T) {
	d := start(t, Options{})
	if n := testing.AllocsPerRun(1000, func() { d.Observe(time.Millisecond, d.Degraded()) }); n != 0 {
		t.Errorf("Observe and Degraded: %v allocations", n)
	}
	gin.SetMode(gin.TestMode)
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	c.Request = httptest.NewRequest(http.MethodGet, "/", nil)
	middleware := Middleware(d)
	// c counts its handlers in an int8: few runs
	if n := testing.AllocsPerRun(50, func() { middleware(c) }); n != 0 {
		t.Errorf("Middleware: %v allocations", n)
	}
	if got := d.counters.succeeded.Load(); got < 1050 {
		t.Errorf("%d requests observed", got)
	}
}
