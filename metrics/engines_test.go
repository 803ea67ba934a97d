package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/degrade"
	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/metrics"
	"github.com/highball-go/highball/ratelimit"

	"github.com/prometheus/client_golang/prometheus"
)

var errDown = errors.New("down")

// cluster is a metrics.Cluster.
type cluster struct{}

func (cluster) Admission() float64 { return 0.5 }
func (cluster) Instances() int     { return 3 }

// state is as session.State.
type state int

// use has m watch one engine of each kind, of which something has happened.
func use(t *testing.T, m *metrics.Metrics) {
	t.Helper()
	circuits := breaker.NewGroup(breaker.Options{RequestVolumeThreshold: 2, OnChange: m.BreakerChange})
	for range 2 {
		p, err := circuits.Acquire("GET /pay")
		if err != nil {
			t.Fatal(err)
		}
		p.Done(breaker.Failure)
	}
	_, _ = circuits.Acquire("GET /pay")
	m.WatchBreakers(circuits.Snapshots)

	lb := balancer.New(discovery.Static{"orders": {{ID: "a", Addr: "127.0.0.1:1"}, {ID: "b", Addr: "127.0.0.1:2", Weight: -1}}},
		balancer.Options{Ejection: balancer.Ejection{Consecutive: 1, Panic: -1}, OnEvent: m.BalancerEvent})
	t.Cleanup(func() { _ = lb.Close() })
	sel, err := lb.Select(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	sel.Done(errDown)
	m.WatchBalancer(lb)

	d := degrade.New(degrade.Options{
		Rules:    []degrade.Rule{{Name: "queue", Over: 1, Score: 70, Value: func() (float64, bool) { return 2, true }}},
		OnChange: m.DegradeChange,
	})
	t.Cleanup(func() { _ = d.Close() })
	d.Force(true, 0)
	m.WatchDegrade(d)
	m.WatchConcurrency(degrade.NewConcurrency(degrade.ConcurrencyOptions{}))

	limiter := m.Limiter("api", ratelimit.New(ratelimit.PerSecond(1, 1), ratelimit.Options{OnDeny: m.RateLimitDeny}))
	for range 2 {
		if _, err := limiter.AllowN(t.Context(), "somebody", 1); err != nil {
			t.Fatal(err)
		}
	}
	metrics.SessionState[state](m)(1, errDown)
	m.WatchDiscovery(func() map[string]time.Duration { return map[string]time.Duration{"orders": 3 * time.Second} })
	m.WatchCluster(cluster{})
}

func TestEveryEnginesStateIsExposed(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	use(t, metrics.New(reg, metrics.Options{}))
	expect(t, reg, `
		# HELP highball_balancer_events_total News of a service's instances.
		# TYPE highball_balancer_events_total counter
		highball_balancer_events_total{event="added",service="orders"} 2
		highball_balancer_events_total{event="ejected",service="orders"} 1
		# HELP highball_balancer_node_failures_total Of these, those that failed.
		# TYPE highball_balancer_node_failures_total counter
		highball_balancer_node_failures_total{node="a",service="orders"} 1
		highball_balancer_node_failures_total{node="b",service="orders"} 0
		# HELP highball_balancer_nodes Instances of a service by state.
		# TYPE highball_balancer_nodes gauge
		highball_balancer_nodes{service="orders",state="draining"} 1
		highball_balancer_nodes{service="orders",state="ejected"} 1
		highball_balancer_nodes{service="orders",state="ready"} 0
		# HELP highball_breaker_state 1 for the state that the circuit is in.
		# TYPE highball_breaker_state gauge
		highball_breaker_state{circuit="GET /pay",state="closed"} 0
		highball_breaker_state{circuit="GET /pay",state="half-open"} 0
		highball_breaker_state{circuit="GET /pay",state="open"} 1
		# HELP highball_breaker_transitions_total Changes of a circuit's state.
		# TYPE highball_breaker_transitions_total counter
		highball_breaker_transitions_total{circuit="GET /pay",from="closed",to="open"} 1
		# HELP highball_breaker_window_errors Of these, those that failed.
		# TYPE highball_breaker_window_errors gauge
		highball_breaker_window_errors{circuit="GET /pay"} 2
		# HELP highball_breaker_window_short_circuited Calls within the window that the open circuit refused.
		# TYPE highball_breaker_window_short_circuited gauge
		highball_breaker_window_short_circuited{circuit="GET /pay"} 1
		# HELP highball_cluster_admission The share of their rates that the limiters admit.
		# TYPE highball_cluster_admission gauge
		highball_cluster_admission 0.5
		# HELP highball_cluster_instances Live instances of this service.
		# TYPE highball_cluster_instances gauge
		highball_cluster_instances 3
		# HELP highball_degrade_changes_total Changes to degraded and back.
		# TYPE highball_degrade_changes_total counter
		highball_degrade_changes_total{to="degraded"} 1
		# HELP highball_degrade_degraded 1 while the service is degraded.
		# TYPE highball_degrade_degraded gauge
		highball_degrade_degraded 1
		# HELP highball_discovery_age_seconds Since the registry last answered for a service.
		# TYPE highball_discovery_age_seconds gauge
		highball_discovery_age_seconds{service="orders"} 3
		# HELP highball_ratelimit_decisions_total Decisions of a limiter, by who made them.
		# TYPE highball_ratelimit_decisions_total counter
		highball_ratelimit_decisions_total{decision="allowed",limiter="api",source="local"} 1
		highball_ratelimit_decisions_total{decision="denied",limiter="api",source="local"} 1
		# HELP highball_ratelimit_denied_total Requests over a limit, by who decided.
		# TYPE highball_ratelimit_denied_total counter
		highball_ratelimit_denied_total{source="local"} 1
		# HELP highball_session_state 1 for the state that the session store is in.
		# TYPE highball_session_state gauge
		highball_session_state{state="live"} 0
		highball_session_state{state="stale"} 1
		highball_session_state{state="unavailable"} 0
	`,
		"highball_balancer_events_total", "highball_balancer_node_failures_total", "highball_balancer_nodes",
		"highball_breaker_state", "highball_breaker_transitions_total", "highball_breaker_window_errors",
		"highball_breaker_window_short_circuited", "highball_cluster_admission", "highball_cluster_instances",
		"highball_degrade_changes_total", "highball_degrade_degraded", "highball_discovery_age_seconds",
		"highball_ratelimit_decisions_total", "highball_ratelimit_denied_total", "highball_session_state")
}

func TestEnginesOfTheSameNameAddUp(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg, metrics.Options{})
	use(t, m)
	use(t, metrics.New(reg, metrics.Options{}))
	circuits := breaker.NewGroup(breaker.Options{}) // a closed one beside two that are open
	circuits.Get("GET /pay")
	m.WatchBreakers(circuits.Snapshots)
	expect(t, reg, `
		# HELP highball_balancer_node_requests_total Calls of an instance that have ended.
		# TYPE highball_balancer_node_requests_total counter
		highball_balancer_node_requests_total{node="a",service="orders"} 2
		highball_balancer_node_requests_total{node="b",service="orders"} 0
		# HELP highball_breaker_state 1 for the state that the circuit is in.
		# TYPE highball_breaker_state gauge
		highball_breaker_state{circuit="GET /pay",state="closed"} 0
		highball_breaker_state{circuit="GET /pay",state="half-open"} 0
		highball_breaker_state{circuit="GET /pay",state="open"} 1
		# HELP highball_breaker_window_errors Of these, those that failed.
		# TYPE highball_breaker_window_errors gauge
		highball_breaker_window_errors{circuit="GET /pay"} 4
	`, "highball_balancer_node_requests_total", "highball_breaker_state", "highball_breaker_window_errors")
}

func TestHooksAloneShowTheState(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg, metrics.Options{})
	m.BreakerChange(breaker.Change{Name: "bad \xff name", From: breaker.Open, To: breaker.HalfOpen})
	m.DegradeChange(degrade.Change{Degraded: true})
	m.DegradeChange(degrade.Change{Degraded: false})
	expect(t, reg, `
		# HELP highball_breaker_state 1 for the state that the circuit is in.
		# TYPE highball_breaker_state gauge
		highball_breaker_state{circuit="bad � name",state="closed"} 0
		highball_breaker_state{circuit="bad � name",state="half-open"} 1
		highball_breaker_state{circuit="bad � name",state="open"} 0
		# HELP highball_degrade_degraded 1 while the service is degraded.
		# TYPE highball_degrade_degraded gauge
		highball_degrade_degraded 0
	`, "highball_breaker_state", "highball_degrade_degraded")
}

func TestAFloodOfCircuitsIsBounded(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg, metrics.Options{})
	for i := range 10_000 {
		m.BreakerChange(breaker.Change{Name: fmt.Sprint("circuit ", i), To: breaker.Open})
	}
	if n := series(t, reg, "highball_breaker_transitions_total"); n != 4097 {
		t.Errorf("%d series of transitions, want 4096 and one of all others", n)
	}
}

func TestACountedLimiterStaysWhatItWas(t *testing.T) {
	m := metrics.New(prometheus.NewPedanticRegistry(), metrics.Options{})
	local := ratelimit.New(ratelimit.PerSecond(1, 1), ratelimit.Options{})
	r, ok := m.Limiter("a", local).(ratelimit.Refunder)
	if !ok {
		t.Fatal("a counted Refunder is none any more")
	}
	_, _ = local.AllowN(t.Context(), "k", 1)
	r.Refund("k", 1)
	if d, _ := local.AllowN(t.Context(), "k", 1); !d.Allowed {
		t.Error("the refund did not arrive")
	}
	if _, ok := m.Limiter("b", failing{}).(ratelimit.Refunder); ok {
		t.Error("a limiter that is no Refunder has become one")
	}
}

// failing is a Limiter that cannot decide.
type failing struct{}

func (failing) AllowN(context.Context, string, int) (ratelimit.Decision, error) {
	return ratelimit.Decision{}, ratelimit.ErrUnavailable
}

func TestADecisionThatFailedIsAnErrorAndALookIsNone(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	l := metrics.New(reg, metrics.Options{}).Limiter("a", failing{})
	if _, err := l.AllowN(t.Context(), "k", 1); !errors.Is(err, ratelimit.ErrUnavailable) {
		t.Errorf("AllowN = %v, want ErrUnavailable", err)
	}
	local := metrics.New(reg, metrics.Options{}).Limiter("b", ratelimit.New(ratelimit.PerSecond(1, 1), ratelimit.Options{}))
	_, _ = local.AllowN(t.Context(), "k", 0)
	expect(t, reg, `
		# HELP highball_ratelimit_decisions_total Decisions of a limiter, by who made them.
		# TYPE highball_ratelimit_decisions_total counter
		highball_ratelimit_decisions_total{decision="error",limiter="a",source=""} 1
	`, "highball_ratelimit_decisions_total")
}
