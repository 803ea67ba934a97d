package consul_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/discovery/consul"
)

// agent stands in for the Consul agent of this machine: it knows two instances of orders.
func agent(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Consul-Index", "7")
	w.Header().Set("X-Consul-LastContact", "0")
	w.Header().Set("X-Consul-KnownLeader", "true")
	switch {
	case strings.HasPrefix(r.URL.Path, "/v1/agent/"): // takes every registration
	case r.URL.Query().Get("index") == "7":
		<-r.Context().Done() // nothing changes
	default:
		fmt.Fprint(w, `[
			{"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "orders-1", "Port": 8080, "Weights": {"Passing": 3, "Warning": 1}}},
			{"Node": {"Address": "10.0.0.2"}, "Service": {"ID": "orders-2", "Port": 8080, "Address": "2001:db8::2"}}
		]`)
	}
}

func ExampleNew() {
	server := httptest.NewServer(http.HandlerFunc(agent))
	defer server.Close()

	client, err := api.NewClient(&api.Config{Address: server.URL}) // api.DefaultConfig() finds the real one
	if err != nil {
		panic(err)
	}
	peers := consul.New(client, consul.Options{
		OnError: func(service string, err error) { fmt.Println(service, err) },
	})

	// A balancer reads this for you: balancer.New(peers, …).
	for instances, err := range peers.Watch(context.Background(), "orders") {
		if err != nil {
			continue // news about Consul: the last instances stand
		}
		for _, i := range instances {
			fmt.Println(i.ID, i.Addr, i.Weight)
		}
		break
	}
	// Output:
	// orders-1 10.0.0.1:8080 3
	// orders-2 [2001:db8::2]:8080 1
}

func ExampleConsul_Register() {
	server := httptest.NewServer(http.HandlerFunc(agent))
	defer server.Close()
	client, err := api.NewClient(&api.Config{Address: server.URL})
	if err != nil {
		panic(err)
	}

	ctx, stop := context.WithCancel(context.Background()) // in a service: signal.NotifyContext
	registered, err := consul.New(client, consul.Options{}).Register(ctx, consul.Registration{
		Service: "orders",
		Addr:    "10.0.0.1:8080",
		HTTP:    "http://10.0.0.1:8080/health",
	})
	fmt.Println("registered:", err)

	// Before the server drains, so that peers stop calling it; the end of ctx would do the same.
	fmt.Println("deregistered:", registered.Deregister(ctx))
	stop()
	// Output:
	// registered: <nil>
	// deregistered: <nil>
}
