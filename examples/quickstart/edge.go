package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/discovery/consul"
)

// edge is the service in front: all that it has of Highball is a balancer and its Proxy.
type edge struct {
	lb     *balancer.Balancer
	server *http.Server
}

func startEdge(ctx context.Context, listen, consulAddr string, f fleet, story *story) (*edge, error) {
	source, err := source(consulAddr, f)
	if err != nil {
		return nil, err
	}
	lb := balancer.New(source, balancer.Options{
		Retry:    balancer.Retry{PerTry: 500 * time.Millisecond},
		Ejection: balancer.Ejection{ProbePath: "/health"},
		OnEvent:  story.event,
	})
	if err := allFound(ctx, lb); err != nil {
		_ = lb.Close()
		return nil, err
	}
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Any("/work", balancer.Proxy(lb, service))

	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		_ = lb.Close()
		return nil, err
	}
	e := &edge{lb: lb, server: &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}}
	go func() { _ = e.server.Serve(l) }()
	return e, nil
}

func source(consulAddr string, f fleet) (discovery.Source, error) {
	if consulAddr == "" {
		var in []discovery.Instance
		for name, p := range f {
			in = append(in, discovery.Instance{ID: service + "-" + name, Addr: p.addr})
		}
		return discovery.Static{service: in}, nil
	}
	client, err := api.NewClient(&api.Config{Address: consulAddr})
	if err != nil {
		return nil, err
	}
	return consul.New(client, consul.Options{}), nil
}

// allFound waits for the three instances.
func allFound(ctx context.Context, lb *balancer.Balancer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		if sel, err := lb.Select(ctx, service); err == nil {
			sel.Done(nil)
		}
		if len(lb.Status(service)) == 3 {
			return nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("found %d of 3 instances: %w", len(lb.Status(service)), err)
		}
	}
}

func (e *edge) close() {
	_ = e.server.Close()
	_ = e.lb.Close()
}
