package recovery_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"

	"github.com/highball-go/highball/recovery"
)

func ExampleMiddleware() {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Use(recovery.Middleware(zap.NewNop(), // zap.NewProduction() in a service
		recovery.OnPanic(func(p recovery.Panic) { fmt.Println("counted:", p.Route, p.Value) }),
	))
	r.GET("/orders/:id", func(*gin.Context) { panic("no stock") })

	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/orders/7", nil))
	fmt.Println(w.Code, w.Header().Get("Content-Type"))
	fmt.Println(w.Body)

	// Output:
	// counted: /orders/:id no stock
	// 500 application/problem+json
	// {"title":"Internal Server Error","status":500}
}
