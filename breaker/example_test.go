package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/breaker"
)

func ExampleMiddleware() {
	gin.SetMode(gin.ReleaseMode)
	circuits := breaker.NewGroup(breaker.Options{
		RequestVolumeThreshold: 10,
		OnChange:               func(c breaker.Change) { fmt.Println(c.Name, "is", c.To) },
	})
	r := gin.New()
	r.Use(breaker.Middleware(circuits, breaker.WithFallback(func(c *gin.Context) {
		c.JSON(http.StatusOK, gin.H{"name": "Unknown"})
	})))
	r.GET("/users/:id", func(c *gin.Context) { c.Status(http.StatusBadGateway) })

	for range 11 {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/users/7", nil))
		if w.Code == http.StatusOK {
			fmt.Println(w.Body)
		}
	}
	s := circuits.Snapshots()[0]
	fmt.Printf("%d of %d failed, %d short-circuited\n", s.Errors, s.Total, s.ShortCircuited)

	// Output:
	// GET /users/:id is open
	// {"name":"Unknown"}
	// 10 of 10 failed, 1 short-circuited
}

func ExampleRun() {
	users := breaker.New("users", breaker.Options{RequestVolumeThreshold: 1})
	fetch := func(context.Context) (string, error) { return "", errors.New("connection refused") }
	unknown := func(_ context.Context, err error) (string, error) { return "Unknown", nil }

	name, err := breaker.Run(context.Background(), users, fetch, unknown)
	fmt.Println(name, err, users.State())

	// Output: Unknown <nil> open
}
