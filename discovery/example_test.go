package discovery_test

import (
	"context"
	"fmt"

	"github.com/highball-go/highball/discovery"
)

func ExampleMemory() {
	peers := discovery.NewMemory()
	peers.Set("orders",
		discovery.Instance{ID: "a", Addr: "10.0.0.1:8080", Weight: 3},
		discovery.Instance{ID: "b", Addr: "10.0.0.2:8080"},
	)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for in, err := range peers.Watch(ctx, "orders") {
		fmt.Println(len(in), "instances,", err)
		if len(in) == 2 {
			peers.Set("orders", discovery.Instance{ID: "a", Addr: "10.0.0.1:8080"}) // b is gone
			continue
		}
		cancel()
	}
	// Output:
	// 2 instances, <nil>
	// 1 instances, <nil>
}
