//go:build !race

package session

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
)

// Something else in the chain sets a value of its own first: gin's map is not ours to pay.
func TestAllocsOfAnUntouchedSession(t *testing.T) {
	gin.SetMode(gin.ReleaseMode)
	cost := func(handlers ...gin.HandlerFunc) float64 {
		r := gin.New()
		r.Use(func(c *gin.Context) { c.Set("request", "id") })
		r.Use(handlers...)
		r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })
		req, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
		req.Header.Set("Cookie", "session="+newSigner([][]byte{testKey}).encode("session", newID(), time.Now()))
		return testing.AllocsPerRun(100, func() { r.ServeHTTP(w, req) })
	}
	nothing, untouched := cost(), cost(Middleware("session", newStore(t, newFake().client(t), Options{})))
	if untouched > nothing+1 {
		t.Errorf("%v allocations, without a session %v", untouched, nothing)
	}
}
