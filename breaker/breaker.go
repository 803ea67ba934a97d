// Package breaker stops calling what is failing, with the semantics of Netflix Hystrix: a sliding window
// of outcomes, a volume below which nothing is decided, an error percentage that opens the circuit, a
// sleep window after which one probe may try again, and a fallback.
//
// A [Breaker] guards one thing: call [Breaker.Do] or [Run], or the pair [Breaker.Allow] and
// [Permit.Done] where a function does not fit. [Middleware] guards the routes of a gin engine, one
// circuit of a [Group] each, and [Transport] guards an outbound HTTP client.
//
// Everything runs on the caller's goroutine. Allow on a closed circuit is one atomic load and one add,
// Done reads the monotonic clock once; the pair allocates nothing. The window is evaluated at each Done,
// successes too, in integers: a circuit opens when errors*100 >= threshold*total, so 49.5 % never reads
// as 50. Each change of state starts a new generation, and the result of a call that an earlier
// generation admitted decides nothing.
//
// An answer that says nothing of the dependency's health is [Neutral]: it is in no count, and a probe
// that ends so frees its slot.
//
// Sources: Netflix Hystrix 1.5.18, HystrixCircuitBreaker and HystrixCommandMetrics, for the automaton and
// its defaults; Nygard, "Release It!" (2nd ed., 2018), chapter 5, for the pattern. Unlike Netflix'
// the percentage is exact, a neutral probe leaves the circuit half-open, and there is no timer.
package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// ErrOpen says that the circuit refuses calls. errors.Is(err, ErrOpen) holds for each [*OpenError].
var ErrOpen = errors.New("breaker: open")

// ErrMaxConcurrency says that Options.MaxConcurrentRequests calls are running already.
var ErrMaxConcurrency = errors.New("breaker: too many calls at once")

// maxBuckets bounds the work of a Done, which looks at each bucket.
const maxBuckets = 100

// Options is Hystrix's vocabulary. The zero value is Hystrix's defaults, with no timeout and no
// concurrency limit.
type Options struct {
	// Window is how far back outcomes count; it slides by one bucket at a time. Zero or less: 10 s.
	Window time.Duration
	// Buckets is how many parts the window has, at most 100. Zero or less: 10.
	Buckets int
	// RequestVolumeThreshold is how many calls must have ended within the window before the circuit may
	// open. Zero or less: 20.
	RequestVolumeThreshold int
	// ErrorPercentThreshold opens the circuit when errors*100 >= ErrorPercentThreshold*total. Zero or
	// less: 50. More than 100: errors never open it.
	ErrorPercentThreshold int
	// SlowCall is how long a success may take before it counts as slow; a slow probe fails. Zero or less:
	// off.
	SlowCall time.Duration
	// SlowPercentThreshold opens the circuit when slow*100 >= SlowPercentThreshold*total. Zero or less: 50.
	// More than 100: slow calls never open it.
	SlowPercentThreshold int
	// SleepWindow is how long the circuit stays open, counted from when it opened or from the failed
	// probe; strictly more must have passed. Zero or less: 5 s.
	SleepWindow time.Duration
	// MaxSleepWindow, if longer than SleepWindow, makes the sleep window double with each failed probe in
	// a row, up to this.
	MaxSleepWindow time.Duration
	// Probes is how many probes must succeed before the circuit closes; at most so many run at once. Zero
	// or less: 1.
	Probes int
	// ProbeLease is how long a probe may take. One that has not ended by then is given up: its slot is
	// free and its result decides nothing. Zero or less: the longer of SleepWindow and Timeout.
	ProbeLease time.Duration
	// MaxConcurrentRequests is how many calls may run at once. A refusal by it counts as a failure of the
	// circuit, as in Hystrix. Zero or less: off.
	MaxConcurrentRequests int
	// Timeout is a deadline on the context of Do, Run, Middleware and Transport, never a goroutine: a call
	// that ends later than this after its Allow is a [Timeout]. Zero or less: off.
	Timeout time.Duration
	// Peers, if not nil, is told of this circuit's counts and can open it.
	Peers Peers
	// OnChange, if not nil, is called after each change of [Breaker.State], in order, with no lock held,
	// on the goroutine of one of the callers. A panic of it is passed on to that caller.
	OnChange func(Change)
}

// Peers is what the rest of the cluster sees of the same circuit; *cluster.Cluster is one. Both methods
// are called on the request's goroutine, with no lock held, at most once per bucket: they must be quick
// and safe for concurrent use.
type Peers interface {
	// Report adds the calls that have ended here since the last Report.
	Report(circuit string, total, errors int)
	// Cluster sums over the window and all instances; errors is 0 until a quorum of the live ones see
	// errors. The breaker applies its own volume and percentage to the sums. For one Window after
	// the circuit has closed it ignores them: they still hold what was before.
	Cluster(circuit string) (total, errors, instances int)
}

// State is what a circuit does with calls.
type State int

// The states of a circuit.
const (
	Closed   State = iota // calls pass
	Open                  // calls are refused
	HalfOpen              // only probes pass
)

// String returns "closed", "open" or "half-open".
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// Outcome is how a call ended. A value that is none of the constants counts as a Failure.
type Outcome int

// The outcomes of a call.
const (
	Success Outcome = iota
	Failure
	Timeout // a failure, counted apart
	Neutral // neither total nor error: the client went away, a bad request
)

// Change is what Options.OnChange is told.
type Change struct {
	Name     string
	From, To State
	Snapshot Snapshot // as it was right after the change
}

// Breaker is one circuit. It is safe for concurrent use, starts no goroutine and needs no Close. Its
// zero value is of no use: see [New].
type Breaker struct {
	name   string
	o      Options // with the defaults filled in
	timed  bool    // Allow must read the clock
	window window

	_        [64]byte      // what follows is written by each call
	word     atomic.Uint64 // generation<<4 | forced<<2 | state
	inflight atomic.Int64
	_        [48]byte

	bad      atomic.Int64  // tick of the last error or slow call
	gate     atomic.Int64  // while not closed: calls up to this instant are refused without the lock
	quiet    atomic.Int64  // until then the cluster's sums are ignored
	reported atomic.Int64  // tick of the last report
	pending  atomic.Uint64 // errors<<32 | total since the last report
	why      atomic.Int32  // index into reasons

	mu        sync.Mutex // guards the fields below and each change of word and gate
	probes    []probe    // that run
	successes int        // of probes, since the circuit became half-open
	failed    int        // failed probes in a row
	lastID    uint64     // of a probe
	changes   []Change   // not told yet
	telling   bool       // some goroutine is in OnChange
}

// A probe is a call that decides what becomes of a half-open circuit.
type probe struct {
	id    uint64
	until int64 // its lease
}

// New returns a closed circuit. It cannot fail: every value of o has a meaning.
func New(name string, o Options) *Breaker {
	def := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	o.Window = cmp.Or(max(o.Window, 0), 10*time.Second)
	def(&o.Buckets, 10)
	o.Buckets = min(o.Buckets, maxBuckets)
	def(&o.RequestVolumeThreshold, 20)
	def(&o.ErrorPercentThreshold, 50)
	def(&o.SlowPercentThreshold, 50)
	o.ErrorPercentThreshold, o.SlowPercentThreshold = min(o.ErrorPercentThreshold, 101), min(o.SlowPercentThreshold, 101)
	def(&o.Probes, 1)
	o.SlowCall, o.Timeout = max(o.SlowCall, 0), max(o.Timeout, 0)
	o.SleepWindow = cmp.Or(max(o.SleepWindow, 0), 5*time.Second)
	o.ProbeLease = cmp.Or(max(o.ProbeLease, 0), max(o.SleepWindow, o.Timeout))
	return &Breaker{
		name:   name,
		o:      o,
		timed:  o.SlowCall > 0 || o.Timeout > 0,
		window: newWindow(o.Window, o.Buckets),
	}
}

// epoch is 50 years before the process began, so that an instant is never negative: the clock of a
// testing/synctest bubble starts in the year 2000.
var epoch = time.Now().Add(-50 * 365 * 24 * time.Hour)

// now is in nanoseconds of the monotonic clock.
func now() int64 { return int64(time.Since(epoch)) }

// after is t + d, never past the end of time.
func after(t int64, d time.Duration) int64 {
	if t > math.MaxInt64-int64(d) {
		return math.MaxInt64
	}
	return t + int64(d)
}
