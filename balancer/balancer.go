// Package balancer calls live instances of a service from inside the client.
//
// A [Balancer] watches a [discovery.Source] and is an [http.RoundTripper] whose URL hosts are names of
// services:
//
//	lb := balancer.New(consul.New(client, consul.Options{}), balancer.Options{})
//	defer lb.Close()
//	peers := &http.Client{Transport: lb}
//	resp, err := peers.Get("http://orders/v1/42")
//
// [Proxy] is the same as a gin handler, [Do] serves clients that do not speak HTTP, and [Balancer.Select]
// is the bare choice under them.
//
// # What is kept where
//
// Statistics live on the [Node] and survive membership updates; the cursor of a strategy lives on the
// service and survives rebuilds. A [Strategy] builds a [Picker] when the usable set or a weight changes,
// never per call, so a pick takes no lock and allocates nothing.
//
// # Failure
//
// An instance that fails several times in a row is ejected and comes back through a probe of the
// balancer's own, never through a caller's request. With too few instances left, ejections are ignored
// (Envoy's panic threshold). A call that failed is tried again on an instance not tried yet, within a
// budget in proportion to the traffic (Finagle's retry budget), so that retries cannot become the
// outage. A hedge is a retry that does not wait for the failure.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/highball-go/highball/discovery"
)

var (
	// ErrNoInstances is returned when a service has no usable instance. It names the service, and its
	// text says what the source last reported.
	ErrNoInstances = errors.New("balancer: no instances")
	// ErrClosed is returned after [Balancer.Close].
	ErrClosed = errors.New("balancer: closed")
)

// maxServices bounds the watches of one Balancer, should names of services come from outside.
const maxServices = 4096

// Options configures [New]. The zero value is ready: PowerOfTwo, three attempts within a budget, ejection.
type Options struct {
	// Strategy chooses among the usable instances. Nil: PowerOfTwo.
	Strategy Strategy
	// Strategies overrides Strategy for single services, by name.
	Strategies map[string]Strategy
	// Retry is when a failed call is tried on another instance.
	Retry Retry
	// Ejection is when a failing instance is left alone.
	Ejection Ejection
	// Transport carries the requests. An [http.Transport] is cloned for each instance, so its limits are
	// per instance, the connections of one that left can be closed, and the TLS server name is the
	// service's. Any other RoundTripper is shared as it is, without those three. Nil: a clone of
	// [http.DefaultTransport] without a proxy, with 1 s to connect and 256 idle connections.
	Transport http.RoundTripper
	// SlowStart is the ramp of an instance that appears after the first snapshot: its weight grows from
	// a tenth to the whole in ten steps. Zero or less: off.
	SlowStart time.Duration
	// Zone prefers the instances of this zone while at least half of those are usable; then the calls
	// spill over to all. Empty: off.
	Zone string
	// Classify says what an answer tells of the instance; a Failure of an error, or of a 502, 503 or 504,
	// is what Retry is for. [Do] calls it with a nil response and fn's error. What the caller cancelled is
	// Neutral without asking. Nil: errors, 500, 502, 503 and 504 are Failure, 429 is Neutral, the rest
	// is Success.
	Classify func(*http.Response, error) Outcome
	// OnEvent is called after each change, with no lock held, on the goroutine that saw it.
	OnEvent func(Event)
}

// Outcome is what a call tells of its instance.
type Outcome int

// The outcomes of a call.
const (
	Success Outcome = iota
	Failure
	Neutral // nothing can be said of the instance: the caller went away
)

// Kinds of [Event].
const (
	Added    = "added"
	Removed  = "removed"
	Ejected  = "ejected"
	Restored = "restored"
	Retried  = "retried"
	Hedged   = "hedged"
)

// Event is news of an instance. Of Retried and Hedged it is the instance that the call leaves behind; Err
// is why, also of Ejected.
type Event struct {
	Kind, Service string
	Instance      discovery.Instance
	Err           error
}

// Balancer calls services by name. It is safe for concurrent use; one per process is enough, for all
// services. A service's watch starts with the first call of it and ends with Close.
type Balancer struct {
	source discovery.Source
	o      Options
	epoch  time.Time // the zero of now
	base   *http.Transport
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	services atomic.Pointer[map[string]*service] // copied on write, so that a pick takes no lock

	mu     sync.Mutex // guards the fields below, and writes of services
	closed bool
	tasks  sync.WaitGroup
}

// New never fails and does not ask src for anything yet; each value of o has a meaning. The caller must
// Close the Balancer.
func New(src discovery.Source, o Options) *Balancer {
	o.Strategies = maps.Clone(o.Strategies)
	if o.Strategy == nil {
		o.Strategy = PowerOfTwo()
	}
	if o.Classify == nil {
		o.Classify = classify
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	o.Retry, o.Ejection = o.Retry.orDefault(), o.Ejection.orDefault()
	b := &Balancer{source: src, o: o, epoch: time.Now()}
	b.base = baseTransport(o.Transport)
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.services.Store(&map[string]*service{})
	return b
}

// Select picks an instance of service, waiting for the first snapshot until ctx ends (ctx.Err()) or Close
// (ErrClosed). Without a usable instance it is ErrNoInstances at once. Done must be called exactly once
// on the Selection. A Select and Done pair allocates nothing, takes no lock, and reads the clock only
// where the strategy looks at latency.
func (b *Balancer) Select(ctx context.Context, service string) (Selection, error) {
	if s := (*b.services.Load())[service]; s != nil {
		if set := s.set.Load(); set != nil && set.pick != nil {
			return s.first(ctx, set)
		}
	}
	s, set, err := b.await(ctx, service)
	if err != nil {
		return Selection{}, err
	}
	return s.first(ctx, set)
}

// Status explains the instances of service, in the order of their IDs: also those that are ejected or
// drained. It is nil for a service that has not been called yet.
func (b *Balancer) Status(service string) []NodeStatus {
	s := (*b.services.Load())[service]
	if s == nil {
		return nil
	}
	set := s.set.Load()
	if set == nil {
		return nil
	}
	all := make([]NodeStatus, len(set.all))
	for i, n := range set.all {
		all[i] = n.status()
	}
	return all
}

// Services lists the names that have been called, in no order.
func (b *Balancer) Services() []string {
	var names []string
	for name := range *b.services.Load() {
		names = append(names, name)
	}
	return names
}

// Budget is how many retries of service the budget would pay for now, see [Retry]. It is 0 for a service that
// has not been called yet.
func (b *Balancer) Budget(service string) float64 {
	s := (*b.services.Load())[service]
	if s == nil {
		return 0
	}
	return s.budget.left(time.Now(), s.seq.Load())
}

// Close ends all watches and probes, waits for them, and closes idle connections. Calls that run may
// end; new ones get ErrClosed. It returns nil, also when called again.
func (b *Balancer) Close() error {
	b.mu.Lock()
	services := *b.services.Load()
	b.services.Store(&map[string]*service{})
	b.closed = true
	b.mu.Unlock()

	b.cancel()
	b.tasks.Wait()
	for _, s := range services {
		s.close()
	}
	return nil
}

// await is the slow path of Select: the first call of a service, or one without instances.
func (b *Balancer) await(ctx context.Context, name string) (*service, *set, error) {
	s, err := b.service(name)
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-s.ready:
	case <-b.ctx.Done():
		return nil, nil, ErrClosed
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("balancer: waiting for the first instances of %q%s: %w", name, s.news(), ctx.Err())
	}
	set := s.set.Load()
	if b.ctx.Err() != nil {
		return nil, nil, ErrClosed
	}
	if set.pick == nil {
		return nil, nil, fmt.Errorf("%w of %q%s", ErrNoInstances, name, s.news())
	}
	return s, set, nil
}

// service returns the service of that name, and starts its watch when it is new.
func (b *Balancer) service(name string) (*service, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := *b.services.Load()
	if s := known[name]; s != nil {
		return s, nil
	}
	if b.closed {
		return nil, ErrClosed
	}
	if len(known) >= maxServices {
		return nil, fmt.Errorf("%w of %q: this balancer watches %d services already; do not take their names from requests", ErrNoInstances, name, maxServices)
	}
	s := newService(b, name)
	services := maps.Clone(known)
	services[name] = s
	b.services.Store(&services)
	b.tasks.Go(s.watch)
	return s, nil
}

// start runs f on a goroutine that Close waits for, unless Close has been called.
func (b *Balancer) start(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.tasks.Go(f)
	}
}

// now is a monotonic clock in nanoseconds, about half the price of time.Now. It is never 0.
func (b *Balancer) now() int64 { return int64(time.Since(b.epoch)) + 1 }
