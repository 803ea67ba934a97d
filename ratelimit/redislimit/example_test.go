package redislimit_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/ratelimit"
	"github.com/highball-go/highball/ratelimit/redislimit"
)

// Nobody is at this address: each of three instances admits a third by itself, and no request fails.
func ExampleNew() {
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:                 []string{"127.0.0.1:1"},
		ContextTimeoutEnabled: true, // spares each call a goroutine
	})
	defer client.Close()
	l := redislimit.New(client, ratelimit.Every(time.Hour, 6, 6), redislimit.Options{
		Instances: func() int { return 3 },
	})
	defer l.Close()

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	_ = r.SetTrustedProxies(nil)
	r.Use(ratelimit.Middleware(l))
	r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })

	for range 4 {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		fmt.Print(w.Code, " ")
	}

	// Output: 204 204 429 429
}
