package metrics

import (
	"cmp"
	"maps"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/degrade"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("highball_"+name, help, labels, nil)
}

// What is asked for at each scrape.
var (
	breakerState    = desc("breaker_state", "1 for the state that the circuit is in.", "circuit", "state")
	breakerRequests = desc("breaker_window_requests", "Calls that ended within the circuit's window.", "circuit")
	breakerErrors   = desc("breaker_window_errors", "Of these, those that failed.", "circuit")
	breakerShort    = desc("breaker_window_short_circuited", "Calls within the window that the open circuit refused.", "circuit")
	breakerInFlight = desc("breaker_in_flight", "Calls that run.", "circuit")
	nodes           = desc("balancer_nodes", "Instances of a service by state.", "service", "state")
	nodeRequests    = desc("balancer_node_requests_total", "Calls of an instance that have ended.", "service", "node")
	nodeFailures    = desc("balancer_node_failures_total", "Of these, those that failed.", "service", "node")
	nodeInFlight    = desc("balancer_node_in_flight", "Calls of an instance that run.", "service", "node")
	nodeLatency     = desc("balancer_node_latency_seconds", "Decayed peak of an instance's latency.", "service", "node")
	retryBudget     = desc("balancer_retry_budget", "Retries that the service's budget could pay for now.", "service")
	degraded        = desc("degrade_degraded", "1 while the service is degraded.")
	degradeScore    = desc("degrade_score", "The score of the last evaluation.")
	degradePoints   = desc("degrade_points", "What a rule adds to the score.", "rule")
	degradeSignal   = desc("degrade_signal", "What a rule read last.", "rule")
	concurrency     = desc("degrade_concurrency_limit", "Requests that the adaptive limit lets run at once.")
	concurrent      = desc("degrade_concurrency_in_flight", "Requests that run of those.")
	sessionState    = desc("session_state", "1 for the state that the session store is in.", "state")
	discoveryAge    = desc("discovery_age_seconds", "Since the registry last answered for a service.", "service")
	clusterFactor   = desc("cluster_admission", "The share of their rates that the limiters admit.")
	clusterSize     = desc("cluster_instances", "Live instances of this service.")
)

func (e *engines) describe(to chan<- *prometheus.Desc) {
	for _, v := range e.vectors() {
		v.Describe(to)
	}
	for _, d := range []*prometheus.Desc{
		breakerState, breakerRequests, breakerErrors, breakerShort, breakerInFlight,
		nodes, nodeRequests, nodeFailures, nodeInFlight, nodeLatency, retryBudget,
		degraded, degradeScore, degradePoints, degradeSignal, concurrency, concurrent, sessionState, discoveryAge, clusterFactor, clusterSize,
	} {
		to <- d
	}
}

func (e *engines) collect(to chan<- prometheus.Metric) {
	for _, v := range e.vectors() {
		v.Collect(to)
	}
	e.mu.Lock()
	w, states, sessions, hook := e.watched, maps.Clone(e.states), e.sessions, e.degraded
	e.mu.Unlock()

	s := scrape{to}
	s.breakers(w.breakers, states)
	s.balancers(w.balancers)
	s.degraders(w.degraders, hook)
	s.limits(w.limits)
	for state, is := range sessions {
		s.gauge(sessionState, is01(is), state)
	}
	s.ages(w.ages)
	s.clusters(w.clusters)
}

// A scrape sends metrics, each series once: engines of the same name are added up first.
type scrape struct{ to chan<- prometheus.Metric }

func (s scrape) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s scrape) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s.to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func is01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// breakers sends what the groups say, and of other circuits the state that the hook was told.
func (s scrape) breakers(groups []func() []breaker.Snapshot, states map[string]breaker.State) {
	sums := make(map[string]breaker.Snapshot)
	for _, snapshots := range groups {
		for _, snap := range snapshots() {
			name := label(snap.Name)
			sum := sums[name]
			if worse(snap.State, sum.State) {
				sum.State = snap.State
			}
			sum.Total += snap.Total
			sum.Errors += snap.Errors
			sum.ShortCircuited += snap.ShortCircuited
			sum.InFlight += snap.InFlight
			sums[name] = sum
		}
	}
	for name, sum := range sums {
		states[name] = sum.State
		s.gauge(breakerRequests, float64(sum.Total), name)
		s.gauge(breakerErrors, float64(sum.Errors), name)
		s.gauge(breakerShort, float64(sum.ShortCircuited), name)
		s.gauge(breakerInFlight, float64(sum.InFlight), name)
	}
	for name, is := range states {
		for _, state := range [...]breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen} {
			s.gauge(breakerState, is01(is == state), name, state.String())
		}
	}
}

// worse orders the states: closed, half-open, open.
func worse(a, b breaker.State) bool {
	return a != b && (b == breaker.Closed || a == breaker.Open)
}

// A node is one instance of a service.
type node struct{ service, id string }

func (s scrape) balancers(all []*balancer.Balancer) {
	sums := make(map[node]balancer.NodeStatus)
	budgets := make(map[string]float64)
	for _, b := range all {
		for _, service := range b.Services() {
			budgets[label(service)] += b.Budget(service)
			for _, n := range b.Status(service) {
				at := node{label(service), label(cmp.Or(n.ID, n.Addr))}
				sum := sums[at]
				sum.Weight = n.Weight
				sum.Ejected = sum.Ejected || n.Ejected
				sum.InFlight += n.InFlight
				sum.Latency = max(sum.Latency, n.Latency)
				sum.Requests += n.Requests
				sum.Failures += n.Failures
				sums[at] = sum
			}
		}
	}
	count := make(map[node]float64) // by state in the place of the id
	for service, left := range budgets {
		s.gauge(retryBudget, left, service)
		for _, state := range [...]string{"ready", "ejected", "draining"} {
			count[node{service, state}] = 0
		}
	}
	for at, n := range sums {
		count[node{at.service, nodeState(n)}]++
		s.counter(nodeRequests, n.Requests, at.service, at.id)
		s.counter(nodeFailures, n.Failures, at.service, at.id)
		s.gauge(nodeInFlight, float64(n.InFlight), at.service, at.id)
		s.gauge(nodeLatency, n.Latency.Seconds(), at.service, at.id)
	}
	for at, n := range count {
		s.gauge(nodes, n, at.service, at.id)
	}
}

func nodeState(n balancer.NodeStatus) string {
	switch {
	case n.Ejected:
		return "ejected"
	case n.Weight < 0:
		return "draining"
	default:
		return "ready"
	}
}

// degraders sends the worst of them, and without any what the hook was told.
func (s scrape) degraders(all []*degrade.Controller, hook *bool) {
	is, score, known := false, 0.0, hook != nil
	if known && len(all) == 0 {
		is = *hook
	}
	rules := make(map[string]degrade.Contribution)
	for _, d := range all {
		known = true
		is = is || d.Degraded()
		points, why := d.Score()
		score = max(score, points)
		for _, c := range why {
			name := label(c.Rule)
			worst := rules[name]
			worst.Points = max(worst.Points, c.Points)
			worst.Value = max(worst.Value, c.Value)
			rules[name] = worst
		}
	}
	if known {
		s.gauge(degraded, is01(is))
	}
	if len(all) > 0 {
		s.gauge(degradeScore, score)
	}
	for rule, c := range rules {
		s.gauge(degradePoints, c.Points, rule)
		s.gauge(degradeSignal, c.Value, rule)
	}
}

func (s scrape) limits(all []*degrade.Concurrency) {
	if len(all) == 0 {
		return
	}
	limit, running := 0, 0
	for _, l := range all {
		limit += l.Limit()
		running += l.InFlight()
	}
	s.gauge(concurrency, float64(limit))
	s.gauge(concurrent, float64(running))
}

func (s scrape) ages(all []func() map[string]time.Duration) {
	oldest := make(map[string]time.Duration)
	for _, age := range all {
		for service, d := range age() {
			oldest[label(service)] = max(oldest[label(service)], d)
		}
	}
	for service, d := range oldest {
		s.gauge(discoveryAge, d.Seconds(), service)
	}
}

// clusters sends the lowest of each.
func (s scrape) clusters(all []Cluster) {
	if len(all) == 0 {
		return
	}
	factor, size := math.Inf(1), math.Inf(1)
	for _, c := range all {
		factor, size = min(factor, c.Admission()), min(size, float64(c.Instances()))
	}
	s.gauge(clusterFactor, factor)
	s.gauge(clusterSize, size)
}
