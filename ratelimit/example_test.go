package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/ratelimit"
)

func ExampleMiddleware() {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	_ = r.SetTrustedProxies(nil) // nobody is in front: headers about the client's address are ignored
	r.Use(ratelimit.Middleware(ratelimit.New(ratelimit.Every(time.Hour, 2, 2), ratelimit.Options{})))
	r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })

	for range 3 {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		fmt.Println(strings.TrimSpace(fmt.Sprint(w.Code, " ", w.Header().Get("RateLimit"), " ", w.Header().Get("Retry-After"))))
	}

	// Output:
	// 204 "default";r=1;t=1800
	// 204 "default";r=0;t=1800
	// 429 "default";r=0;t=1800 1800
}

func ExampleAll() {
	api := ratelimit.All(
		ratelimit.New(ratelimit.PerSecond(5, 5), ratelimit.Options{}),
		ratelimit.New(ratelimit.Every(time.Hour, 7, 7), ratelimit.Options{}),
	)
	admitted := 0
	for range 10 {
		if d, err := api.AllowN(context.Background(), "ann", 1); err == nil && d.Allowed {
			admitted++
		}
	}
	fmt.Println(admitted)

	// Output: 5
}
