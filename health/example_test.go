package health_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/health"
)

func ExampleRegister() {
	gin.SetMode(gin.ReleaseMode)
	h := health.New(health.Options{})
	defer h.Close()
	h.Add("mysql", func(context.Context) error { return nil })
	h.Add("recommendations", func(context.Context) error { return errors.New("down") }, health.Optional())

	r := gin.New()
	r.Use(health.Middleware(h))
	health.Register(h, r)

	for _, path := range []string{"/health", "/livez", "/readyz"} {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Println(path, w.Code, w.Body)
	}
	// Output:
	// /health 200 {"status":"healthy"}
	// /livez 200 {"status":"pass"}
	// /readyz 200 {"checks":{"mysql":"pass","recommendations":"warn"},"status":"warn"}
}

func ExampleHealth_Serve() {
	gin.SetMode(gin.ReleaseMode)
	h := health.New(health.Options{DrainDelay: 10 * time.Millisecond})
	h.OnServe(func(context.Context) (func(context.Context) error, error) {
		fmt.Println("registered in Consul")
		return func(context.Context) error {
			fmt.Println("deregistered, ready:", h.Ready())
			return nil
		}, nil
	})
	r := gin.New()
	r.Use(health.Middleware(h))
	health.Register(h, r)

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond) // or until SIGTERM
	defer cancel()
	err := h.Serve(ctx, &http.Server{Addr: "127.0.0.1:0", Handler: r, ReadHeaderTimeout: 5 * time.Second})
	fmt.Println("ended:", err)
	// Output:
	// registered in Consul
	// deregistered, ready: false
	// ended: <nil>
}
