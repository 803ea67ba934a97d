package hystrixgo_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/afex/hystrix-go/hystrix"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/breaker/hystrixgo"
)

func Example() {
	gin.SetMode(gin.ReleaseMode)
	hystrix.ConfigureCommand("GET /users/:id", hystrix.CommandConfig{Timeout: 500, MaxConcurrentRequests: 1})

	r := gin.New()
	r.Use(breaker.Middleware(hystrixgo.New(hystrix.CommandConfig{})))
	r.GET("/users/:id", func(c *gin.Context) {
		second := httptest.NewRecorder() // a request while this one runs
		r.ServeHTTP(second, httptest.NewRequest(http.MethodGet, "/users/8", nil))
		fmt.Println("second:", second.Code)
		c.Status(http.StatusOK)
	})
	first := httptest.NewRecorder()
	r.ServeHTTP(first, httptest.NewRequest(http.MethodGet, "/users/7", nil))
	fmt.Println("first:", first.Code)

	// Output:
	// second: 503
	// first: 200
}
