package balancer

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/highball-go/highball/discovery"
)

// fleet is a source of n instances of the service "orders".
func fleet(n int) discovery.Source {
	var in []discovery.Instance
	for i := range n {
		in = append(in, discovery.Instance{ID: fmt.Sprintf("i%04d", i), Addr: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)})
	}
	return discovery.Static{"orders": in}
}

func BenchmarkSelectDone(b *testing.B) {
	for name, s := range strategies() {
		for _, n := range []int{10, 1000} {
			lb := New(fleet(n), Options{Strategy: s})
			defer lb.Close()
			ctx := b.Context()
			if name == "IPHash" {
				ctx = WithKey(ctx, "203.0.113.77")
			}
			b.Run(fmt.Sprintf("%s/nodes=%d/serial", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					sel, _ := lb.Select(ctx, "orders")
					sel.Done(nil)
				}
			})
			b.Run(fmt.Sprintf("%s/nodes=%d/parallel", name, n), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						sel, _ := lb.Select(ctx, "orders")
						sel.Done(nil)
					}
				})
			})
		}
	}
}

func strategies() map[string]Strategy {
	return map[string]Strategy{
		"RoundRobin": RoundRobin(), "WeightedRoundRobin": WeightedRoundRobin(), "LeastConnections": LeastConnections(),
		"IPHash": IPHash(), "ResponseTime": ResponseTime(), "PowerOfTwo": PowerOfTwo(), "Random": Random(),
	}
}

// roundTripFunc answers at once.
type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func nop(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("ok"))}, nil
}

func BenchmarkRoundTrip(b *testing.B) {
	lb := New(fleet(10), Options{Transport: roundTripFunc(nop)})
	defer lb.Close()
	for name, rt := range map[string]http.RoundTripper{"bare": roundTripFunc(nop), "balancer": lb} {
		b.Run(name, func(b *testing.B) {
			client := &http.Client{Transport: rt}
			req, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://orders/v1", nil)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := client.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}
