package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/internal/rig"
)

// clientOf returns a client of a real agent.
func clientOf(tb testing.TB, a *rig.ConsulAgent) *api.Client {
	tb.Helper()
	tr := &http.Transport{}
	tb.Cleanup(tr.CloseIdleConnections)
	c, err := api.NewClient(&api.Config{Address: a.Addr, HttpClient: &http.Client{Transport: tr}})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// A seen is what a watch has yielded so far.
type seen struct {
	mu   sync.Mutex
	sets [][]discovery.Instance
	errs int
}

// see watches orders until the end of the test.
func see(t *testing.T, c *Consul) *seen {
	t.Helper()
	s := new(seen)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for in, err := range c.Watch(ctx, "orders") {
			s.mu.Lock()
			if err != nil {
				s.errs++
			} else {
				s.sets = append(s.sets, in)
			}
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		cancel()
		watching.Wait()
	})
	return s
}

func (s *seen) all() [][]discovery.Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sets)
}

// becomes waits until the IDs of the newest set are these.
func (s *seen) becomes(t *testing.T, ids ...string) {
	t.Helper()
	rig.Poll(t, 30*time.Second, func() error {
		sets := s.all()
		if len(sets) == 0 {
			return errors.New("nothing yet")
		}
		var got []string
		for _, i := range sets[len(sets)-1] {
			got = append(got, i.ID)
		}
		if !slices.Equal(got, ids) {
			return fmt.Errorf("instances %q, want %q", got, ids)
		}
		return nil
	})
}

func mustRegister(t *testing.T, c *Consul, r Registration) *Registered {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	reg, err := c.Register(context.WithoutCancel(ctx), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reg.Deregister(context.Background()) })
	return reg
}

func TestRealInstancesComeAndGo(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	c := New(clientOf(t, a), Options{})
	s := see(t, c)
	s.becomes(t)
	start := time.Now()
	one := mustRegister(t, c, Registration{
		Service: "orders", ID: "one", Addr: "[2001:db8::1]:80", Weight: 7,
		Tags: []string{"v2"}, Meta: map[string]string{"k": "v"},
	})
	s.becomes(t, "one")
	t.Logf("seen after %v", time.Since(start))
	want := discovery.Instance{
		ID: "one", Addr: "[2001:db8::1]:80", Weight: 7, Tags: []string{"v2"}, Meta: map[string]string{"k": "v"},
	}
	sets := s.all()
	if got := sets[len(sets)-1][0]; !got.Equal(want) {
		t.Errorf("instance %+v, want %+v", got, want)
	}
	mustRegister(t, c, Registration{Service: "orders", Addr: "10.0.0.1:80"})
	s.becomes(t, "one", "orders-10.0.0.1-80")
	if err := one.Deregister(t.Context()); err != nil {
		t.Error(err)
	}
	s.becomes(t, "orders-10.0.0.1-80")
}

func TestRealTagsAreMatchedExactly(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	client := clientOf(t, a)
	const evil = `a" in Service.Tags or "\x22` + "`"
	register := New(client, Options{})
	mustRegister(t, register, Registration{Service: "orders", ID: "plain", Addr: "h:1", Tags: []string{"a"}})
	mustRegister(t, register, Registration{Service: "orders", ID: "evil", Addr: "h:2", Tags: []string{evil, "b"}})
	see(t, New(client, Options{Tags: []string{evil, "b"}})).becomes(t, "evil")
	see(t, New(client, Options{Tags: []string{"a"}})).becomes(t, "plain")
	see(t, New(client, Options{Tags: []string{"b"}, Filter: `Service.ID == "plain" or Service.ID == "evil"`})).becomes(t, "evil")
	see(t, New(client, Options{Tags: []string{"a", "b"}})).becomes(t)
}

func TestARealInstanceThatFailsItsCheckLeaves(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	c := New(clientOf(t, a), Options{})
	s := see(t, c)
	var sick atomic.Bool
	mustRegister(t, c, Registration{Service: "orders", ID: "steady", Addr: "h:1"})
	mustRegister(t, c, Registration{
		Service: "orders", ID: "checked", Addr: "h:2", TTL: time.Second,
		Check: func(context.Context) error {
			if sick.Load() {
				return errors.New("no disk")
			}
			return nil
		},
	})
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(health.Close)
	mustRegister(t, c, Registration{Service: "orders", ID: "polled", Addr: "h:3", HTTP: health.URL, Interval: time.Second})
	s.becomes(t, "checked", "polled", "steady")
	sick.Store(true)
	s.becomes(t, "steady")
	sick.Store(false)
	s.becomes(t, "checked", "polled", "steady")
}

// A process that is killed sends no heartbeat.
func TestARealInstanceThatDiesLeavesWithinItsTTL(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	client := clientOf(t, a)
	c := New(client, Options{})
	s := see(t, c)
	mustRegister(t, c, Registration{Service: "orders", ID: "steady", Addr: "h:1"})
	err := client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		Name: "orders", ID: "dead", Address: "h", Port: 2,
		Check: &api.AgentServiceCheck{TTL: "1s", Status: "passing"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.becomes(t, "dead", "steady")
	s.becomes(t, "steady")
}

func TestARealWarningHasItsWeight(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	client := clientOf(t, a)
	mustRegister(t, New(client, Options{}), Registration{Service: "orders", ID: "one", Addr: "h:1", Weight: 9, WeightWarning: 4})
	check := &api.AgentCheckRegistration{ID: "extra", Name: "extra", ServiceID: "one"}
	check.TTL, check.Status = "1h", "warning"
	if err := client.Agent().CheckRegister(check); err != nil {
		t.Fatal(err)
	}
	see(t, New(client, Options{})).becomes(t)
	s := see(t, New(client, Options{IncludeWarning: true}))
	s.becomes(t, "one")
	if sets := s.all(); sets[len(sets)-1][0].Weight != 4 {
		t.Errorf("instance %+v, want the warning weight 4", sets[len(sets)-1][0])
	}
}

func TestRealRegistrationsSurviveARestartOfTheAgent(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	c := New(clientOf(t, a), Options{})
	s := see(t, c)
	health := httptest.NewServer(http.NotFoundHandler()) // passes until the first poll, an hour away
	t.Cleanup(health.Close)
	mustRegister(t, c, Registration{Service: "orders", ID: "ttl", Addr: "h:1", TTL: 3 * time.Second})
	mustRegister(t, c, Registration{Service: "orders", ID: "http", Addr: "h:2", HTTP: health.URL, Interval: 2 * time.Second})
	s.becomes(t, "http", "ttl")
	before := len(s.all())
	a.Kill()
	a.Restart() // and has forgotten everything
	see(t, New(clientOf(t, a), Options{})).becomes(t, "http", "ttl")
	s.becomes(t, "http", "ttl")
	for _, set := range s.all()[before:] {
		if len(set) == 0 {
			t.Error("the watch believed that there are no instances")
		}
	}
}

// Three servers, a client agent that streams, as in production.
func TestARealWatchOutlivesTheLeader(t *testing.T) {
	t.Parallel()
	cluster := rig.ConsulCluster(t)
	a := cluster.Agent(t)
	client := clientOf(t, a)
	var leaderless atomic.Bool
	c := New(client, Options{OnError: func(_ string, err error) {
		if errors.Is(err, ErrNoLeader) {
			leaderless.Store(true)
		}
	}})
	s := see(t, c)
	mustRegister(t, c, Registration{Service: "orders", ID: "a", Addr: "h:1"})
	mustRegister(t, c, Registration{Service: "orders", ID: "b", Addr: "h:2"})
	s.becomes(t, "a", "b")
	if leaderless.Load() {
		t.Error("streamed answers were taken for leaderless ones")
	}
	before := len(s.all())

	leader := cluster.Leader(t)
	leader.Kill()
	cluster.Leader(t)
	mustRegister(t, c, Registration{Service: "orders", ID: "c", Addr: "h:3"})
	s.becomes(t, "a", "b", "c")
	for _, set := range s.all()[before:] {
		if len(set) < 2 {
			t.Errorf("the watch lost instances with the leader: %v", set)
		}
	}

	a.Kill()
	a.Restart() // keeps its registrations on disk
	s.becomes(t, "a", "b", "c")
	mustRegister(t, c, Registration{Service: "orders", ID: "d", Addr: "h:4"})
	s.becomes(t, "a", "b", "c", "d")
}

// A client without any token is not told that something was hidden from it; one with a token is.
func TestRealACLsAreNotBelieved(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t, "-hcl", `acl { enabled = true, default_policy = "deny", tokens { initial_management = "root", agent = "root" } }`)
	root := clientOf(t, a)
	root.AddHeader("X-Consul-Token", "root")
	c := New(root, Options{})
	mustRegister(t, c, Registration{Service: "orders", ID: "a", Addr: "h:1"})
	see(t, c).becomes(t, "a")

	token, _, err := root.ACL().TokenCreate(&api.ACLToken{}, nil) // may do nothing
	if err != nil {
		t.Fatal(err)
	}
	client := clientOf(t, a)
	client.AddHeader("X-Consul-Token", token.SecretID)
	var hidden atomic.Bool
	nobody := New(client, Options{OnError: func(_ string, err error) { hidden.Store(errors.Is(err, ErrFiltered)) }})
	s := see(t, nobody)
	rig.Poll(t, 30*time.Second, func() error {
		if !hidden.Load() {
			return errors.New("no ErrFiltered")
		}
		return nil
	})
	if sets := s.all(); len(sets) != 0 {
		t.Errorf("sets %v, want none", sets)
	}
}

// A blocked poll must not hold a process that ends.
func TestARealPollEndsWithItsContext(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	c := New(clientOf(t, a), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ended time.Time
	for range c.Watch(ctx, "orders") {
		time.AfterFunc(50*time.Millisecond, func() {
			ended = time.Now()
			cancel()
		})
	}
	if d := time.Since(ended); d > 100*time.Millisecond {
		t.Errorf("the watch ended %v after its context", d)
	}
}

func TestARealAgentThatHangsIsOutlived(t *testing.T) {
	t.Parallel()
	a := rig.Consul(t)
	c := New(clientOf(t, a), Options{Wait: time.Second})
	s := see(t, c)
	mustRegister(t, c, Registration{Service: "orders", ID: "a", Addr: "h:1", TTL: 30 * time.Second})
	s.becomes(t, "a")
	before := len(s.all())
	a.Hang()
	rig.Poll(t, 30*time.Second, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.errs == 0 {
			return errors.New("the poll has not been given up")
		}
		return nil
	})
	a.Resume()
	mustRegister(t, c, Registration{Service: "orders", ID: "b", Addr: "h:2"})
	s.becomes(t, "a", "b")
	for _, set := range s.all()[before:] {
		if !strings.HasPrefix(set[0].ID, "a") {
			t.Errorf("set %v without a", set)
		}
	}
}
