package idempotency_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/idempotency"
)

func ExampleMiddleware() {
	server, err := miniredis.Run() // in place of a real one
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), ContextTimeoutEnabled: true, DialerRetries: 1})
	defer client.Close()

	gin.SetMode(gin.ReleaseMode)
	store := idempotency.New(client, idempotency.Options{
		Timeout: 2 * time.Second,                                              // for a machine that runs tests; the default is for a service
		Scope:   func(c *gin.Context) string { return c.GetHeader("X-User") }, // better: the subject of a verified token
	})
	orders := 0
	r := gin.New()
	r.POST("/orders", idempotency.Middleware(store), func(c *gin.Context) {
		orders++ // better: INSERT INTO orders (key, …), where key is unique
		c.JSON(http.StatusCreated, gin.H{"order": orders, "key": idempotency.Key(c)})
	})

	post := func(user, key, body string) {
		req := httptest.NewRequest(http.MethodPost, "/orders", strings.NewReader(body))
		req.Header.Set("X-User", user)
		req.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		fmt.Printf("%d %q %s\n", w.Code, w.Header().Get("Idempotency-Replayed"), w.Body)
	}
	post("ann", `"8e03978e"`, "one tea")
	post("ann", `"8e03978e"`, "one tea")
	post("bob", `"8e03978e"`, "one tea")
	post("ann", `"8e03978e"`, "two teas")
	server.Close() // Redis is away
	post("ann", `"8e03978e"`, "one tea")

	// Output:
	// 201 "" {"key":"8e03978e","order":1}
	// 201 "true" {"key":"8e03978e","order":1}
	// 201 "" {"key":"8e03978e","order":2}
	// 422 "" {"title":"Unprocessable Entity","status":422,"detail":"the Idempotency-Key belongs to another request"}
	// 503 "" {"title":"Service Unavailable","status":503,"detail":"whether this request has run cannot be told now"}
}

func ExampleConfirm() {
	charge := func(key string) error { return nil } // of a payment service that knows no keys of ours
	handler := func(c *gin.Context) {
		if err := idempotency.Confirm(c); err != nil { // this instance hung, and another runs the request by now
			_ = c.AbortWithError(http.StatusServiceUnavailable, err)
			return
		}
		if err := charge(idempotency.Key(c)); err != nil {
			idempotency.Keep(c, true) // to try again might charge twice
			_ = c.AbortWithError(http.StatusBadGateway, err)
			return
		}
		c.Status(http.StatusNoContent)
	}
	r := gin.New()
	r.POST("/payments", handler)
}
