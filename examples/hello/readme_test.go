package main

import (
	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/cluster"
	"github.com/highball-go/highball/ratelimit"
)

// What the README says of deciding together compiles: see TestReadme.
var _ = together

func together(redisClient redis.UniversalClient) {
	c := cluster.New(redisClient, cluster.Options{Service: "orders"})
	defer c.Close()
	l := ratelimit.New(ratelimit.PerSecond(100, 200), ratelimit.Options{Admission: c.Admission})
	g := breaker.NewGroup(breaker.Options{Peers: c})

	r := gin.Default()
	r.Use(ratelimit.Middleware(l, ratelimit.WithRefund(breaker.Rejected)), breaker.Middleware(g))
	_ = r.Run()
}
