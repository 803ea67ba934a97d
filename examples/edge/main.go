// Command edge is a small front of a service: it forwards every request to a live instance, and answers
// /health itself. Copy it, or run it as it is:
//
//	go run ./examples/edge -peers 127.0.0.11:9001,127.0.0.12:9002,127.0.0.13:9003
//	go run ./examples/edge -consul 127.0.0.1:8500 -service orders -strategy LeastConnections
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/discovery/consul"
)

var strategies = map[string]balancer.Strategy{
	"RoundRobin":         balancer.RoundRobin(),
	"WeightedRoundRobin": balancer.WeightedRoundRobin(),
	"LeastConnections":   balancer.LeastConnections(),
	"IPHash":             balancer.IPHash(), // by the client's address
	"ResponseTime":       balancer.ResponseTime(),
	"PowerOfTwo":         balancer.PowerOfTwo(),
	"Random":             balancer.Random(),
}

type config struct {
	listen, peers, consul, service, strategy string
	retry                                    balancer.Retry
}

func main() {
	var c config
	flag.StringVar(&c.listen, "listen", "127.0.0.1:8080", "address to listen on")
	flag.StringVar(&c.peers, "peers", "", "instances, host:port separated by commas")
	flag.StringVar(&c.consul, "consul", "", "find the instances through the Consul agent at this address instead")
	flag.StringVar(&c.service, "service", "backend", "name of the service")
	flag.StringVar(&c.strategy, "strategy", "PowerOfTwo", "RoundRobin, WeightedRoundRobin, LeastConnections, IPHash, ResponseTime, PowerOfTwo or Random")
	flag.DurationVar(&c.retry.PerTry, "per-try", time.Second, "longest wait for the headers of one try; 0: none")
	flag.DurationVar(&c.retry.Hedge, "hedge", 0, "start a second try after so long without headers; 0: never")
	flag.Parse()
	if err := run(c); err != nil {
		log.Fatal("edge: ", err)
	}
}

func run(c config) error {
	strategy, ok := strategies[c.strategy]
	if !ok {
		return fmt.Errorf("no strategy %q; see -help", c.strategy)
	}
	source, err := source(c)
	if err != nil {
		return err
	}
	lb := balancer.New(source, balancer.Options{
		Strategy: strategy,
		Retry:    c.retry,
		Ejection: balancer.Ejection{ProbePath: "/health"},
		OnEvent:  report,
	})
	defer lb.Close()

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.GET("/health", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"status": "healthy"}) })
	r.NoRoute(balancer.Proxy(lb, c.service, balancer.WithAffinity((*gin.Context).ClientIP)))

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: c.listen, Handler: r, ReadHeaderTimeout: 10 * time.Second}
	serving := make(chan error, 1)
	go func() { serving <- server.ListenAndServe() }()
	select {
	case err := <-serving:
		return err
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := server.Shutdown(end)
		for _, s := range lb.Status(c.service) {
			log.Printf("%s had %d calls, %d of them failed", s.Addr, s.Requests, s.Failures)
		}
		return err
	}
}

// report logs what changes; retries are too many to log.
func report(e balancer.Event) {
	switch e.Kind {
	case balancer.Ejected:
		log.Printf("%s %s: %v", e.Kind, e.Instance.Addr, e.Err)
	case balancer.Added, balancer.Removed, balancer.Restored:
		log.Print(e.Kind, " ", e.Instance.Addr)
	}
}

func source(c config) (discovery.Source, error) {
	switch {
	case (c.peers == "") == (c.consul == ""):
		return nil, errors.New("give either -peers or -consul")
	case c.peers != "":
		return discovery.Static{c.service: instances(c.peers)}, nil
	}
	client, err := api.NewClient(&api.Config{Address: c.consul})
	if err != nil {
		return nil, err
	}
	return consul.New(client, consul.Options{OnError: func(service string, err error) { log.Print(service, ": ", err) }}), nil
}

func instances(peers string) (in []discovery.Instance) {
	for addr := range strings.SplitSeq(peers, ",") {
		if addr != "" {
			in = append(in, discovery.Instance{ID: addr, Addr: addr})
		}
	}
	return in
}
