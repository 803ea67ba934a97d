package benchmarks

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/p2c"
	"github.com/go-kratos/kratos/v2/selector/wrr"
	grpcbalancer "google.golang.org/grpc/balancer"
	_ "google.golang.org/grpc/balancer/leastrequest"
	_ "google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/connectivity"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
)

var sizes = []int{10, 1000}

// BenchmarkPick is what one call costs beside its network: our Select, with the service's name looked up,
// and Done, beside the bare picks of the peers.
func BenchmarkPick(b *testing.B) {
	for _, n := range sizes {
		for _, bm := range []struct {
			name     string
			strategy balancer.Strategy
			peer     string
			pick     func(*testing.B, int) func() bool
		}{
			{"RoundRobin", balancer.RoundRobin(), "grpc", grpcPick("round_robin")},
			{"LeastConnections", balancer.LeastConnections(), "grpc", grpcPick("least_request_experimental")},
			{"PowerOfTwo", balancer.PowerOfTwo(), "kratos", kratosPick(p2c.New)},
			{"WeightedRoundRobin", balancer.WeightedRoundRobin(), "kratos", kratosPickWRR},
			{"IPHash", balancer.IPHash(), "caddy", caddyPick},
			{"ResponseTime", balancer.ResponseTime(), "", nil},
			{"Random", balancer.Random(), "", nil},
		} {
			b.Run(fmt.Sprintf("strategy=%s/nodes=%d", bm.name, n), func(b *testing.B) {
				key := ""
				if bm.name == "IPHash" {
					key = "203.0.113.77"
				}
				runPeer(b, "highball", highballPick(b, bm.strategy, key, n))
				if bm.pick != nil {
					runPeer(b, bm.peer, bm.pick(b, n))
				}
			})
		}
	}
}

func peerAddr(i int) string { return fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1) }

func highballPick(b *testing.B, strategy balancer.Strategy, key string, n int) func() bool {
	b.Helper()
	var in []discovery.Instance
	for i := range n {
		in = append(in, discovery.Instance{ID: peerAddr(i), Addr: peerAddr(i)})
	}
	lb := balancer.New(discovery.Static{"orders": in}, balancer.Options{Strategy: strategy})
	b.Cleanup(func() { lb.Close() })
	ctx := context.Background()
	if key != "" {
		ctx = balancer.WithKey(ctx, key)
	}
	return func() bool {
		sel, err := lb.Select(ctx, "orders")
		if err != nil {
			return false
		}
		sel.Done(nil)
		return sel.Addr() != ""
	}
}

// grpcPick drives one of grpc-go's balancers with connections that are ready at once.
func grpcPick(name string) func(*testing.B, int) func() bool {
	return func(b *testing.B, n int) func() bool {
		b.Helper()
		builder := grpcbalancer.Get(name)
		cc := &clientConn{}
		lb := builder.Build(cc, grpcbalancer.BuildOptions{})
		b.Cleanup(lb.Close)
		state := grpcbalancer.ClientConnState{}
		for i := range n {
			a := resolver.Address{Addr: peerAddr(i)}
			state.ResolverState.Addresses = append(state.ResolverState.Addresses, a)
			state.ResolverState.Endpoints = append(state.ResolverState.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{a}})
		}
		if parser, ok := builder.(grpcbalancer.ConfigParser); ok {
			cfg, err := parser.ParseConfig(json.RawMessage("{}"))
			if err != nil {
				b.Fatal(err)
			}
			state.BalancerConfig = cfg
		}
		if err := lb.UpdateClientConnState(state); err != nil {
			b.Fatal(err)
		}
		for len(cc.later) > 0 {
			do := cc.later[0]
			cc.later = cc.later[1:]
			do()
		}
		if cc.state.ConnectivityState != connectivity.Ready {
			b.Fatalf("grpc's %s is %v", name, cc.state.ConnectivityState)
		}
		info := grpcbalancer.PickInfo{Ctx: context.Background()}
		picker := cc.state.Picker
		return func() bool {
			res, err := picker.Pick(info)
			if err != nil {
				return false
			}
			if res.Done != nil {
				res.Done(grpcbalancer.DoneInfo{})
			}
			return res.SubConn != nil
		}
	}
}

type clientConn struct {
	grpcbalancer.ClientConn
	state grpcbalancer.State
	later []func() // news of connections, not to be told from within the balancer's own calls
}

func (c *clientConn) NewSubConn(_ []resolver.Address, o grpcbalancer.NewSubConnOptions) (grpcbalancer.SubConn, error) {
	return &subConn{cc: c, listen: o.StateListener}, nil
}
func (c *clientConn) UpdateState(s grpcbalancer.State)        { c.state = s }
func (c *clientConn) ResolveNow(resolver.ResolveNowOptions)   {}
func (c *clientConn) RemoveSubConn(grpcbalancer.SubConn)      {}
func (c *clientConn) Target() string                          { return "orders" }
func (c *clientConn) MetricsRecorder() estats.MetricsRecorder { return recorder{} }

type recorder struct{ estats.MetricsRecorder }

func (recorder) RecordInt64Count(*estats.Int64CountHandle, int64, ...string)             {}
func (recorder) RecordInt64UpDownCount(*estats.Int64UpDownCountHandle, int64, ...string) {}

type subConn struct {
	grpcbalancer.SubConn
	cc     *clientConn
	listen func(grpcbalancer.SubConnState)
}

func (s *subConn) Connect() {
	s.cc.later = append(s.cc.later, func() {
		s.listen(grpcbalancer.SubConnState{ConnectivityState: connectivity.Connecting})
		s.listen(grpcbalancer.SubConnState{ConnectivityState: connectivity.Ready})
	})
}
func (s *subConn) Shutdown()                          {}
func (s *subConn) UpdateAddresses([]resolver.Address) {}
func (s *subConn) RegisterHealthListener(f func(grpcbalancer.SubConnState)) {
	s.cc.later = append(s.cc.later, func() { f(grpcbalancer.SubConnState{ConnectivityState: connectivity.Ready}) })
}

func kratosPick(makeSelector func(...p2c.Option) selector.Selector) func(*testing.B, int) func() bool {
	return func(_ *testing.B, n int) func() bool { return kratosSelect(makeSelector(), n) }
}

func kratosPickWRR(_ *testing.B, n int) func() bool { return kratosSelect(wrr.New(), n) }

func kratosSelect(s selector.Selector, n int) func() bool {
	var nodes []selector.Node
	for i := range n {
		nodes = append(nodes, selector.NewNode("http", peerAddr(i), &registry.ServiceInstance{ID: peerAddr(i), Name: "orders"}))
	}
	s.Apply(nodes)
	ctx := context.Background()
	return func() bool {
		node, done, err := s.Select(ctx)
		if err != nil {
			return false
		}
		done(ctx, selector.DoneInfo{})
		return node.Address() != ""
	}
}

func caddyPick(_ *testing.B, n int) func() bool {
	var pool reverseproxy.UpstreamPool
	for i := range n {
		pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: peerAddr(i)})
	}
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	req.RemoteAddr = "203.0.113.77:4711"
	var policy reverseproxy.IPHashSelection
	return func() bool { return policy.Select(pool, req, nil) != nil }
}

// BenchmarkRoundTrip is what the balancer adds to an http.Client on a transport that answers at once.
func BenchmarkRoundTrip(b *testing.B) {
	nop := roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("ok"))}, nil
	})
	var in []discovery.Instance
	for i := range 10 {
		in = append(in, discovery.Instance{ID: peerAddr(i), Addr: peerAddr(i)})
	}
	lb := balancer.New(discovery.Static{"orders": in}, balancer.Options{Transport: nop})
	b.Cleanup(func() { lb.Close() })
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://orders/v1/42", nil)
	if err != nil {
		b.Fatal(err)
	}
	fetch := func(rt http.RoundTripper) func() bool {
		client := &http.Client{Transport: rt}
		return func() bool {
			resp, err := client.Do(req)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			n, err := io.Copy(io.Discard, resp.Body)
			return n == 2 && err == nil
		}
	}
	runPeer(b, "highball", fetch(lb))
	runPeer(b, "nethttp", fetch(nop))
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
