// Command hello is a Gin service that calls the instances of another one through the balancer.
package main

import (
	"log"
	"net/http"
	"net/url"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
)

func main() {
	// Where the instances are: a fixed list here, Consul with discovery/consul.
	peers := discovery.Static{"orders": {{Addr: "127.0.0.1:9001"}, {Addr: "127.0.0.1:9002"}}}
	lb := balancer.New(peers, balancer.Options{Retry: balancer.Retry{PerTry: time.Second}})
	defer lb.Close()

	r := gin.Default()

	// Call a service: the URL's host is its name.
	orders := &http.Client{Transport: lb}
	r.GET("/total/:id", func(c *gin.Context) {
		req, err := http.NewRequestWithContext(c.Request.Context(), http.MethodGet, "http://orders/v1/"+url.PathEscape(c.Param("id")), nil)
		if err != nil {
			c.AbortWithStatus(http.StatusBadRequest)
			return
		}
		resp, err := orders.Do(req)
		if err != nil {
			_ = c.AbortWithError(http.StatusBadGateway, err) // names every instance that was tried, and why it failed
			return
		}
		defer resp.Body.Close()
		c.DataFromReader(resp.StatusCode, resp.ContentLength, resp.Header.Get("Content-Type"), resp.Body, nil)
	})

	// Or forward to it whole.
	r.Any("/v1/*path", balancer.Proxy(lb, "orders"))

	log.Print(r.Run("127.0.0.1:8080"))
}
