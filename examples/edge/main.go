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

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
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

func main() {
	var (
		listen   = flag.String("listen", "127.0.0.1:8080", "address to listen on")
		peers    = flag.String("peers", "", "instances, host:port separated by commas")
		service  = flag.String("service", "backend", "name of the service")
		strategy = flag.String("strategy", "PowerOfTwo", "RoundRobin, WeightedRoundRobin, LeastConnections, IPHash, ResponseTime, PowerOfTwo or Random")
		perTry   = flag.Duration("per-try", time.Second, "longest wait for the headers of one try; 0: none")
		hedge    = flag.Duration("hedge", 0, "start a second try after so long without headers; 0: never")
	)
	flag.Parse()
	if err := run(*listen, *peers, *service, *strategy, balancer.Retry{PerTry: *perTry, Hedge: *hedge}); err != nil {
		log.Fatal("edge: ", err)
	}
}

func run(listen, peers, service, strategy string, retry balancer.Retry) error {
	s, ok := strategies[strategy]
	if !ok {
		return fmt.Errorf("no strategy %q", strategy)
	}
	lb := balancer.New(discovery.Static{service: instances(peers)}, balancer.Options{
		Strategy: s,
		Retry:    retry,
		Ejection: balancer.Ejection{ProbePath: "/health"},
		OnEvent:  func(e balancer.Event) { log.Println(e.Kind, e.Instance.Addr, e.Err) },
	})
	defer lb.Close()

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.GET("/health", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"status": "healthy"}) })
	r.NoRoute(balancer.Proxy(lb, service, balancer.WithAffinity((*gin.Context).ClientIP)))

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: listen, Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = server.Shutdown(end)
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func instances(peers string) (in []discovery.Instance) {
	for _, addr := range strings.Split(peers, ",") {
		if addr != "" {
			in = append(in, discovery.Instance{ID: addr, Addr: addr})
		}
	}
	return in
}
