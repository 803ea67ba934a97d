package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery/consul"
	"github.com/highball-go/highball/internal/rig"
)

// instance is a service of the test's own process, registered in Consul.
type instance struct {
	*httptest.Server
	calls   atomic.Int64
	healthy atomic.Bool
	reg     *consul.Registered
}

func newInstance(t *testing.T, c *consul.Consul, name string) *instance {
	t.Helper()
	in := new(instance)
	in.healthy.Store(true)
	in.Server = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { in.calls.Add(1) }))
	t.Cleanup(in.Close)
	reg, err := c.Register(t.Context(), consul.Registration{
		Service: "orders", ID: "orders-" + name, Addr: in.Listener.Addr().String(), TTL: 2 * time.Second,
		Check: func(context.Context) error {
			if in.healthy.Load() {
				return nil
			}
			return fmt.Errorf("%s is unwell", name)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.reg = reg
	t.Cleanup(func() { _ = reg.Deregister(context.Background()) })
	return in
}

// load sends a request every 5 ms until stop, which returns how many were sent and the errors.
func load(b *balancer.Balancer) (stop func() (int, []error)) {
	quit := make(chan struct{})
	var (
		mu     sync.Mutex // guards failed
		failed []error
		sent   int
		loop   sync.WaitGroup
	)
	loop.Go(func() {
		var calls sync.WaitGroup
		defer calls.Wait()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			sent++
			calls.Go(func() {
				if err := call(b); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed = append(failed, err)
				}
			})
		}
	})
	return func() (int, []error) {
		close(quit)
		loop.Wait()
		return sent, failed
	}
}

func call(b *balancer.Balancer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://orders/", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := b.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

func TestNoRequestFailsWhileConsulLosesItsLeaderAndTheAgentRestarts(t *testing.T) {
	servers := rig.ConsulCluster(t)
	agent := servers.Agent(t)
	client, err := api.NewClient(&api.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	registrar := consul.New(client, consul.Options{})
	a, b := newInstance(t, registrar, "a"), newInstance(t, registrar, "b")
	lb := balancer.New(consul.New(client, consul.Options{}), balancer.Options{Retry: balancer.Retry{Attempts: 1}})
	t.Cleanup(func() { lb.Close() })
	rig.Poll(t, 30*time.Second, func() error { return found(lb, 2) })

	stop := load(lb)
	c := newInstance(t, registrar, "c")
	rig.Poll(t, time.Second, func() error { return called(c) }) // all is well: within a second

	leader := servers.Leader(t)
	leader.Kill()
	next := servers.Leader(t)
	agent.Restart()
	rig.Poll(t, 30*time.Second, func() error {
		services, err := client.Agent().Services()
		if err == nil && len(services) != 3 {
			err = fmt.Errorf("the agent has %d services", len(services))
		}
		return err
	})

	// And news arrives again.
	d := newInstance(t, registrar, "d")
	rig.Poll(t, 30*time.Second, func() error { return called(d) })
	// One whose check fails leaves within the time of its check.
	b.healthy.Store(false)
	rig.Poll(t, 10*time.Second, func() error { return found(lb, 3) })
	// And one that deregisters leaves before it stops.
	if err := a.reg.Deregister(t.Context()); err != nil {
		t.Error(err)
	}
	rig.Poll(t, 10*time.Second, func() error { return found(lb, 2) })

	sent, failed := stop()
	if len(failed) > 0 || sent < 100 {
		t.Errorf("%d of %d requests failed: %v", len(failed), sent, failed[:min(len(failed), 3)])
	}
	if next == leader || a.calls.Load() == 0 || b.calls.Load() == 0 {
		t.Errorf("calls: a %d, b %d", a.calls.Load(), b.calls.Load())
	}
	t.Logf("%d requests, none failed", sent)
}

func called(in *instance) error {
	if in.calls.Load() == 0 {
		return errors.New("no call of the new instance")
	}
	return nil
}

func found(lb *balancer.Balancer, want int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if sel, err := lb.Select(ctx, "orders"); err == nil {
		sel.Done(nil)
	}
	if got := len(lb.Status("orders")); got != want {
		return fmt.Errorf("%d instances, want %d", got, want)
	}
	return nil
}
