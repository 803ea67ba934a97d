// Package metrics exposes Prometheus metrics of requests and of every Highball engine.
//
//	m := metrics.New(prometheus.DefaultRegisterer, metrics.Options{})
//	r.Use(metrics.Middleware(m))
//	r.GET("/metrics", metrics.Handler(prometheus.DefaultGatherer))
//
//	circuits := breaker.NewGroup(breaker.Options{OnChange: m.BreakerChange})
//	m.WatchBreakers(circuits.Snapshots)
//
// # Requests
//
//	http_requests_total{method,route,status}                       counter
//	http_server_request_duration_seconds{method,route,status}      histogram
//	http_server_response_body_size_bytes{method,route}             histogram
//	http_server_active_requests                                    gauge
//
// route is gin's FullPath. A request that ends in a panic counts as 500, also where its status line was
// written and the answer then broke off, and one whose client went away as 499. That is so wherever
// recovery stands in the chain. A stream counts when it ends, with all of its time.
//
// Nothing that a client sends makes a label value: a method that is not in RFC 9110 or 5789 is "_OTHER", a
// path without a route "unmatched", and a status that IANA has not registered goes by its class, as "4xx".
//
// # Engines
//
// What an engine tells through its hook is counted: give [Metrics.BreakerChange] and the others as OnChange,
// OnEvent and OnDeny. What it is asked for at each scrape is exposed for those that a Watch method has been
// given; they live as long as the Metrics. Labels hold names that the program chose or that discovery knows:
//
//	highball_breaker_state{circuit,state}                          gauge, one state is 1
//	highball_breaker_transitions_total{circuit,from,to}            counter
//	highball_breaker_window_requests{circuit}                      gauge
//	highball_breaker_window_errors{circuit}                        gauge
//	highball_breaker_window_short_circuited{circuit}               gauge
//	highball_breaker_in_flight{circuit}                            gauge
//	highball_ratelimit_denied_total{source}                        counter
//	highball_ratelimit_decisions_total{limiter,decision,source}    counter
//	highball_balancer_events_total{service,event}                  counter: ejected, retried, hedged, …
//	highball_balancer_nodes{service,state}                         gauge: ready, ejected, draining
//	highball_balancer_node_requests_total{service,node}            counter
//	highball_balancer_node_failures_total{service,node}            counter
//	highball_balancer_node_in_flight{service,node}                 gauge
//	highball_balancer_node_latency_seconds{service,node}           gauge
//	highball_balancer_retry_budget{service}                        gauge: retries that are left
//	highball_degrade_degraded                                      gauge, 0 or 1
//	highball_degrade_changes_total{to}                             counter
//	highball_degrade_score                                         gauge
//	highball_degrade_points{rule}                                  gauge, what it adds to the score
//	highball_degrade_signal{rule}                                  gauge, what it read last
//	highball_degrade_concurrency_limit                             gauge
//	highball_degrade_concurrency_in_flight                         gauge
//	highball_session_state{state}                                  gauge, one state is 1
//	highball_discovery_age_seconds{service}                        gauge, since the registry last answered
//	highball_cluster_admission                                     gauge
//	highball_cluster_instances                                     gauge
//
// Two engines with the same names in one process add up, and of their states the worst is shown.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Options configures [New]. The zero value is ready to use.
type Options struct {
	// Buckets are the upper bounds of http_server_request_duration_seconds, in seconds, in any order. Nil:
	// those that OpenTelemetry advises for http.server.request.duration, 5 ms to 10 s.
	Buckets []float64
	// Exemplar, if not nil, is asked for the exemplar of each request, say its trace id, with the context that
	// the handlers left in the request. Nil or empty: none. One that OpenMetrics does not allow (more than
	// 128 characters in all, or a name that is no label name) is left out.
	Exemplar func(context.Context) prometheus.Labels
}

// Metrics counts requests and what engines tell. It is safe for concurrent use, starts no goroutine and needs
// no Close.
type Metrics struct {
	requests *requests
	engines  *engines
	exemplar func(context.Context) prometheus.Labels
}

// New registers with reg; nil: [prometheus.DefaultRegisterer]. A second Metrics on the same registry shares
// what is counted, and the first one's Buckets, so that several gin engines may each have theirs.
//
// It panics, as prometheus.MustRegister does, when reg has another collector's metric of the same name: a
// process should then choose one of them, or set a prefix with [prometheus.WrapRegistererWithPrefix].
func New(reg prometheus.Registerer, o Options) *Metrics {
	if reg == nil {
		reg = prometheus.DefaultRegisterer
	}
	c := &collector{requests: newRequests(buckets(o.Buckets)), engines: newEngines()}
	if err := reg.Register(c); err != nil {
		var twice prometheus.AlreadyRegisteredError
		if !errors.As(err, &twice) {
			panic(fmt.Sprintf("metrics: the registry has other metrics of these names, "+
				"see prometheus.WrapRegistererWithPrefix: %v", err))
		}
		c = twice.ExistingCollector.(*collector) // nobody else has all of its descriptions
	}
	return &Metrics{requests: c.requests, engines: c.engines, exemplar: o.Exemplar}
}

// buckets of OpenTelemetry's semantic conventions for HTTP metrics, v1.23.
func buckets(in []float64) []float64 {
	if in == nil {
		return []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}
	}
	out := slices.DeleteFunc(slices.Clone(in), math.IsNaN)
	slices.Sort(out)
	return slices.Compact(out)
}

// A collector is all that a registry sees, in one piece, so that New registers all of it or nothing.
type collector struct {
	requests *requests
	engines  *engines
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	c.requests.describe(to)
	c.engines.describe(to)
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	c.requests.collect(to)
	c.engines.collect(to)
}
