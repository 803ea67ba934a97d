package cluster_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/cluster"
	"github.com/highball-go/highball/ratelimit"
)

// One Cluster is behind the limiter and the breaker. Nobody is at this address of Redis: the instance
// decides by what it has counted itself, and no request waits or fails for that.
func Example() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", ContextTimeoutEnabled: true, DialerRetries: 1})
	defer client.Close()
	lowered := make(chan float64, 100)

	c := cluster.New(client, cluster.Options{
		Service:  "orders",
		Interval: 50 * time.Millisecond, // the default is a second
		OnChange: func(admission float64) { lowered <- admission },
	})
	defer c.Close()
	l := ratelimit.New(ratelimit.Every(time.Hour, 30, 30), ratelimit.Options{Admission: c.Admission})
	g := breaker.NewGroup(breaker.Options{Peers: c, Buckets: 100}) // a breaker reports once a bucket, here of 100 ms

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	_ = r.SetTrustedProxies(nil)
	r.Use(ratelimit.Middleware(l, ratelimit.WithRefund(breaker.Rejected)), breaker.Middleware(g))
	r.GET("/orders", func(c *gin.Context) { c.Status(http.StatusOK) })
	r.GET("/stock", func(c *gin.Context) { c.Status(http.StatusBadGateway) })

	get := func(path string) int {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code
	}
	show := func(path string, n int) {
		answers := map[int]int{}
		for range n {
			answers[get(path)]++
		}
		fmt.Println(path, answers)
	}
	show("/stock", 100) // the circuit opens at 20 calls; the rest give their tokens back

	for c.Admission() == 1 { // every call that was served has failed
		get("/stock")
	}
	fmt.Println("admission", <-lowered)

	show("/orders", 15) // another circuit; ten tokens are left

	// Output:
	// /stock map[502:20 503:80]
	// admission 0.5
	// /orders map[200:10 429:5]
}
