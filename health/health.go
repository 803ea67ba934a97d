// Package health tells load balancers the truth about an instance: whether it lives, whether it is ready for
// requests, and early enough that it is about to go.
//
// Checks run in the background, each once per interval however many probes ask, with a timeout, and with
// hysteresis: one that has passed fails only after some failures in a row, one that fails passes again at its
// next success. A check that panics has failed; one that ignores its context is not started again before it
// has come back. What an error says stays inside, see [Options.OnChange].
//
// [Health.Serve] runs a server through its whole life. On SIGTERM the instance is not ready at once and is
// deregistered; for DrainDelay it goes on to answer, closing the connections of its clients as it does, so
// that who follows readiness is gone before the listener is; then requests and streams have Grace to end.
package health

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrForced is what [Health.Serve] returns when a second signal ended it at once.
var ErrForced = errors.New("health: ended by a second signal")

// ErrDraining is the cause (context.Cause) with which requests end that Serve could not wait for any longer.
var ErrDraining = errors.New("health: the server is going down")

// A Status is the state of a check, and of the instance.
type Status string

// What a check and an instance can be; of an instance, Warn is ready too.
const (
	Pass Status = "pass"
	Warn Status = "warn" // something optional fails
	Fail Status = "fail"
)

// Options configures [New]. The zero value is ready to use.
type Options struct {
	// DrainDelay is how long Serve still answers new requests once it is not ready: at least what a load
	// balancer needs to notice, its probe interval times its threshold. Zero: 3 s. Negative: none.
	DrainDelay time.Duration
	// Grace is how long requests and streams in flight have to end after that. Zero: 25 s. Negative: none.
	// With Kubernetes DrainDelay and Grace together should be below terminationGracePeriodSeconds, 30 s.
	Grace time.Duration
	// OnChange, if not nil, is called when the status of a check changes and with its first result, with what
	// the check returned: this is the place to log it. It is called with no lock held, and by one goroutine
	// per check, for which Close waits: it must not call Close.
	OnChange func(check string, s Status, err error)
}

// Health is the health of one process. It is safe for concurrent use.
type Health struct {
	drainDelay, grace time.Duration
	onChange          func(string, Status, error)

	ctx      context.Context // ends the checks
	stop     context.CancelFunc
	running  sync.WaitGroup // the goroutines of checks
	draining chan struct{}
	inFlight atomic.Int64

	mu     sync.Mutex // guards the fields below
	checks map[string]*check
	starts []startFunc
	served bool
	drain  bool // draining is closed
	closed bool
}

// New returns a Health that is ready as long as the checks it is given pass. Every Options value has a
// meaning, so New cannot fail. Close it, or run [Health.Serve], which does.
func New(o Options) *Health {
	h := &Health{
		drainDelay: orDefault(o.DrainDelay, 3*time.Second),
		grace:      orDefault(o.Grace, 25*time.Second),
		onChange:   o.OnChange,
		draining:   make(chan struct{}),
		checks:     make(map[string]*check),
	}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return max(d, 0)
}

// Add has check run in the background from now on, until Close. Until its first result the instance is not
// ready, unless the check is Optional. The name appears in /readyz; a second check of the same name takes the
// place of the first. After Close, Add does nothing.
func (h *Health) Add(name string, f func(context.Context) error, opts ...CheckOption) {
	c := &check{
		name: name, f: f, every: 10 * time.Second, timeout: 2 * time.Second, failAfter: 3,
		known: make(chan struct{}), onChange: h.onChange,
	}
	for _, o := range opts {
		o(c)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	ctx, cancel := context.WithCancel(h.ctx)
	c.cancel, c.canceled = cancel, ctx.Done()
	if old := h.checks[name]; old != nil {
		old.cancel()
	}
	h.checks[name] = c
	h.running.Go(func() { c.run(ctx) })
}

// Ready reports whether the instance is to get requests: no check fails that is not Optional, and nothing has
// asked it to go. It never waits.
func (h *Health) Ready() bool {
	s, _, _ := h.status()
	return s != Fail
}

// Draining is closed when the instance is about to go. Handlers of streams should end them then.
func (h *Health) Draining() <-chan struct{} { return h.draining }

// Close ends the checks and makes the instance not ready. It waits for the goroutines that run checks, but not
// for a check that ignores its context.
func (h *Health) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.startDrain()
	h.stop()
	h.running.Wait()
	return nil
}

func (h *Health) startDrain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.drain {
		h.drain = true
		close(h.draining)
	}
}

// status is the state of the instance, of each check, and whether it is draining.
func (h *Health) status() (s Status, checks map[string]Status, draining bool) {
	h.mu.Lock()
	all, draining := slices.Collect(maps.Values(h.checks)), h.drain
	h.mu.Unlock()

	s, checks = Pass, make(map[string]Status, len(all))
	for _, c := range all {
		one := c.status()
		checks[c.name] = one
		switch {
		case one == Fail:
			s = Fail
		case one == Warn && s == Pass:
			s = Warn
		}
	}
	if draining {
		s = Fail
	}
	return s, checks, draining
}

// settle waits until every check has a result, or has had the time for one, or ctx ends: a probe that comes
// right after the start is not answered out of ignorance.
func (h *Health) settle(ctx context.Context) {
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.checks))
	h.mu.Unlock()
	for _, c := range all {
		select {
		case <-c.known:
		case <-c.canceled:
		case <-h.draining:
			return
		case <-ctx.Done():
			return
		}
	}
}
