//go:build !race

package idempotency

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"
)

func TestAllocNothingWithoutAKey(t *testing.T) {
	s := New(nil, Options{})
	middleware := Middleware(s)
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	for name, r := range map[string]*http.Request{
		"no key":         httptest.NewRequest(http.MethodPost, "/", nil),
		"another method": httptest.NewRequest(http.MethodGet, "/", nil),
	} {
		if name == "another method" {
			r.Header.Set("Idempotency-Key", "k")
		}
		c.Request = r
		if n := testing.AllocsPerRun(100, func() { middleware(c) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
