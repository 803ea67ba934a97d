package metrics

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/degrade"
	"github.com/highball-go/highball/ratelimit"
)

// maxCircuits is how many names of circuits a process may have here; all others share one. A breaker.Group has
// that many too, but over time it may have others.
const maxCircuits = 4096

// engines are the metrics of the engines: vectors for what hooks count, and what is asked at each scrape.
type engines struct {
	transitions, decisions, denied, events, changes *prometheus.CounterVec

	mu       sync.Mutex               // guards the fields below
	states   map[string]breaker.State // by circuit, as the hook said last
	degraded *bool                    // as the hook said last
	sessions map[string]bool          // the states of a session store, of which one is true
	watched  watched
}

// watched is asked at each scrape.
type watched struct {
	breakers  []func() []breaker.Snapshot
	balancers []*balancer.Balancer
	degraders []*degrade.Controller
	limits    []*degrade.Concurrency
	ages      []func() map[string]time.Duration
	clusters  []Cluster
}

func newEngines() *engines {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &engines{
		transitions: counter("highball_breaker_transitions_total", "Changes of a circuit's state.", "circuit", "from", "to"),
		decisions:   counter("highball_ratelimit_decisions_total", "Decisions of a limiter, by who made them.", "limiter", "decision", "source"),
		denied:      counter("highball_ratelimit_denied_total", "Requests over a limit, by who decided.", "source"),
		events:      counter("highball_balancer_events_total", "News of a service's instances.", "service", "event"),
		changes:     counter("highball_degrade_changes_total", "Changes to degraded and back.", "to"),
		states:      make(map[string]breaker.State),
	}
}

func (e *engines) vectors() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{e.transitions, e.decisions, e.denied, e.events, e.changes}
}

// BreakerChange is for breaker.Options.OnChange.
func (m *Metrics) BreakerChange(c breaker.Change) {
	m.engines.mu.Lock()
	name := m.engines.circuit(c.Name)
	m.engines.states[name] = c.To
	m.engines.mu.Unlock()
	m.engines.transitions.WithLabelValues(name, c.From.String(), c.To.String()).Inc()
}

// circuit is the label value for a circuit. The caller holds mu.
func (e *engines) circuit(name string) string {
	name = label(name)
	if _, known := e.states[name]; !known && len(e.states) >= maxCircuits {
		return "(other)"
	}
	return name
}

// BalancerEvent is for balancer.Options.OnEvent.
func (m *Metrics) BalancerEvent(ev balancer.Event) {
	m.engines.events.WithLabelValues(label(ev.Service), label(ev.Kind)).Inc()
}

// DegradeChange is for degrade.Options.OnChange.
func (m *Metrics) DegradeChange(c degrade.Change) {
	m.engines.mu.Lock()
	m.engines.degraded = &c.Degraded
	m.engines.mu.Unlock()
	to := "well"
	if c.Degraded {
		to = "degraded"
	}
	m.engines.changes.WithLabelValues(to).Inc()
}

// RateLimitDeny is for the OnDeny of ratelimit.Options and redislimit.Options. The key is in no label.
func (m *Metrics) RateLimitDeny(_ string, d ratelimit.Decision) {
	m.engines.denied.WithLabelValues(label(d.Source)).Inc()
}

// Limiter is l with its decisions counted under name: allowed, denied, or error when it could not decide.
func (m *Metrics) Limiter(name string, l ratelimit.Limiter) ratelimit.Limiter {
	c := counted{Limiter: l, name: label(name), decisions: m.engines.decisions}
	if r, ok := l.(ratelimit.Refunder); ok {
		return countedRefunder{c, r}
	}
	return c
}

type counted struct {
	ratelimit.Limiter
	name      string
	decisions *prometheus.CounterVec
}

// countedRefunder keeps the limiter a Refunder, where it is one.
type countedRefunder struct {
	counted
	ratelimit.Refunder
}

func (c counted) AllowN(ctx context.Context, key string, n int) (ratelimit.Decision, error) {
	d, err := c.Limiter.AllowN(ctx, key, n)
	decision := "allowed"
	switch {
	case err != nil:
		decision = "error"
	case n <= 0:
		return d, nil // it only looked
	case !d.Allowed:
		decision = "denied"
	}
	c.decisions.WithLabelValues(c.name, decision, label(d.Source)).Inc()
	return d, err
}

// WatchBreakers exposes the circuits of a Group: give its Snapshots.
func (m *Metrics) WatchBreakers(snapshots func() []breaker.Snapshot) {
	m.engines.watch(func(w *watched) { w.breakers = append(slices.Clip(w.breakers), snapshots) })
}

// WatchBalancer exposes the instances and the retry budget of every service that b has called.
func (m *Metrics) WatchBalancer(b *balancer.Balancer) {
	m.engines.watch(func(w *watched) { w.balancers = append(slices.Clip(w.balancers), b) })
}

// WatchDegrade exposes the score of d and what each rule adds to it.
func (m *Metrics) WatchDegrade(d *degrade.Controller) {
	m.engines.watch(func(w *watched) { w.degraders = append(slices.Clip(w.degraders), d) })
}

// WatchConcurrency exposes the limit of l and what it counts.
func (m *Metrics) WatchConcurrency(l *degrade.Concurrency) {
	m.engines.watch(func(w *watched) { w.limits = append(slices.Clip(w.limits), l) })
}

// WatchDiscovery exposes how long ago the registry answered last, by service: give consul.Consul's Age.
func (m *Metrics) WatchDiscovery(age func() map[string]time.Duration) {
	m.engines.watch(func(w *watched) { w.ages = append(slices.Clip(w.ages), age) })
}

// Cluster is a cluster.Cluster.
type Cluster interface {
	Admission() float64
	Instances() int
}

// WatchCluster exposes the admission and the live instances of c.
func (m *Metrics) WatchCluster(c Cluster) {
	m.engines.watch(func(w *watched) { w.clusters = append(slices.Clip(w.clusters), c) })
}

func (e *engines) watch(add func(*watched)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	add(&e.watched)
}

// SessionState makes a session.Options.OnState that exposes the state of the store:
//
//	session.Options{OnState: metrics.SessionState[session.State](m)}
//
// The states are live until the first call, then as session has them.
func SessionState[S ~int](m *Metrics) func(S, error) {
	m.engines.session(0)
	return func(s S, _ error) { m.engines.session(int(s)) }
}

func (e *engines) session(now int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sessions = make(map[string]bool, 3)
	for i, state := range []string{"live", "stale", "unavailable"} {
		e.sessions[state] = i == now
	}
}
