// Package degrade switches non-essential work off when the service as a whole is unwell.
//
// A [Controller] watches a few signals by [Rule]: how long requests take, how many fail, how busy the
// CPU is, how many are in flight, or any number of yours. A rule that has been over its limit for long
// enough fires; the rules that fire make a score from 0 to 100; at Options.Threshold the service is
// degraded, and it recovers when the score has been under Options.Recover for Options.RecoverFor, so that
// a score which swings around the threshold does not flap. While it is degraded, [Middleware] gives
// requests that are not essential a fallback, or 503 with Retry-After.
//
// By default the points are summed ([SumScores]: 30 for latency, 25 for errors, 15 for CPU), so that 60
// needs all three. With [SumWeights] (40, 35, 25) any two reach 60, and with [Normalised], score times
// weight, latency and one other do.
//
// A signal without a reading is silent: it adds nothing, and takes nothing from what the others add. A
// rule that waits (its For is not zero) keeps what it has seen through a gap as long as For: the gap
// neither fires nor clears it.
//
// The score decides what to switch off. How many requests to let in at all is for a [Concurrency] limit, off by
// default, which sheds an overload before the score has to act.
//
// [Controller.Degraded] is one atomic load and [Controller.Observe] two atomic adds; neither reads a
// clock, takes a lock or allocates. One goroutine of the Controller, which [Controller.Close] ends, reads
// the counters and all signals four times a second: what is said here of a time is true to a quarter of a
// second, and never early.
//
// Sources: the rules and their points are those of a weighted health score; the forecast is Holt's
// linear method: C. C. Holt, "Forecasting seasonals and trends by exponentially weighted moving averages"
// (1957), reprinted in International Journal of Forecasting 20(1), 2004.
package degrade

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// pace is the time between two evaluations.
const pace = time.Second / 4

// Options configures [New]. The zero value has the rules Latency(500 ms, 10 s, 30, 40), ErrorRate(0.1,
// 5 min, 25, 35) and CPU(0.85, 15, 25), and the threshold 60.
type Options struct {
	// Rules are the signals that count. Nil: the three above. Empty but not nil: none, so that only Force
	// degrades.
	Rules []Rule
	// Threshold is the score at which the service is degraded. Not more than zero, or not finite: 60.
	Threshold float64
	// Recover is the score under which it has to be for RecoverFor to be well again. Not more than
	// zero, or not finite: 40. It is never more than Threshold.
	Recover float64
	// RecoverFor is how long. It is also what refused clients find in Retry-After. Zero or less: 10 s.
	RecoverFor time.Duration
	// Scoring makes one number of the rules that fired. Zero, or a value unknown: SumScores.
	Scoring Scoring
	// MinRequests is how many requests there must be in the window of ErrorRate, or in the last For of
	// Latency (a second at least), for the rule to have a reading at all. Zero or less: 20.
	MinRequests int
	// CPU is what CPU rules read, 0 to 1; ok false: no reading. It must not block. Nil: the mean of the
	// last 5 s of this process's cgroup (v2 or v1) against its quota, or against all CPUs where there is
	// none; without a cgroup the machine, and else the process itself.
	CPU func() (used float64, ok bool)
	// Forecast, if more than zero, lets a rule fire at once, without waiting For, when its signal is rising
	// so that by Holt's linear method it will be over its limit within that time. Level and trend are
	// smoothed over a quarter of it; a signal that jumps looks like one that rises, for about as long.
	Forecast time.Duration
	// OnChange, if not nil, is called after each change of Degraded, one call after the other and with no
	// lock held. It must not call Close. A panic in it ends with the call.
	OnChange func(Change)
}

// A Contribution is what one rule adds to the score, and why.
type Contribution struct {
	Rule   string
	Value  float64   // the last reading; 0 without one
	Fired  bool      // the rule adds Points
	Since  time.Time // over its limit since then; zero when it is not
	Points float64   // to the score; 0 if it did not fire
}

// A Change is from degraded to well, or back.
type Change struct {
	Degraded bool
	Score    float64
	Why      []Contribution // in the order of the rules
	Forced   bool           // by Force, not by the score
}

// A Controller decides whether the service is degraded. It is safe for concurrent use.
type Controller struct {
	counters counters
	inFlight atomic.Int64
	_        [64]byte // what is written all the time stays away from what is read all the time

	degraded atomic.Bool
	until    atomic.Int64 // when a forced state ends, since epoch; 0: it does not, or none is
	picture  atomic.Pointer[picture]

	o       Options
	epoch   time.Time
	total   float64   // of score x weight
	rules   []*rule   // owned by the goroutine of run, as is all that they read
	windows []*window // what run fills from the counters
	last    reading   // of the counters

	stop chan struct{}
	done chan struct{}

	mu       sync.Mutex // guards the fields below, and writes to degraded and until
	auto     bool       // what the score says
	below    time.Time  // the score has been under Recover since then; zero: it is not
	forced   bool
	forcedTo bool
	forces   int         // calls of Force and Auto
	timer    *time.Timer // ends what is forced; nil: nothing does
	closed   bool
	changes  []Change // not told yet
	telling  bool
}

// New starts a Controller; [Controller.Close] ends it. It cannot fail: every value of Options has a
// meaning.
func New(o Options) *Controller {
	d := &Controller{epoch: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	d.o = withDefaults(o)
	d.addRules(d.o.Rules)
	d.picture.Store(d.score())
	go d.run()
	return d
}

func withDefaults(o Options) Options {
	if o.Rules == nil {
		o.Rules = []Rule{
			Latency(500*time.Millisecond, 10*time.Second, 30, 40),
			ErrorRate(0.1, 5*time.Minute, 25, 35),
			CPU(0.85, 15, 25),
		}
	}
	o.Rules = slices.Clone(o.Rules)
	o.Threshold = cmp.Or(points(o.Threshold), 60)
	o.Recover = cmp.Or(points(o.Recover), 40)
	o.Recover = min(o.Recover, o.Threshold)
	if o.RecoverFor <= 0 {
		o.RecoverFor = 10 * time.Second
	}
	if o.MinRequests <= 0 {
		o.MinRequests = 20
	}
	return o
}

// Observe records one request; [Middleware] calls it. A latency of less than zero counts as zero, one of
// more than an hour as an hour.
func (d *Controller) Observe(latency time.Duration, failed bool) { d.counters.add(latency, failed) }

// Degraded reports whether the service is degraded.
func (d *Controller) Degraded() bool { return d.degraded.Load() }

// Score explains the last evaluation: the score, and what each rule adds to it, in the order of
// Options.Rules. It says what the signals say, also while Force holds the state. With [Normalised], or
// where the sum is more than 100, the score may differ from the sum of the points.
func (d *Controller) Score() (float64, []Contribution) {
	p := d.picture.Load()
	return p.score, slices.Clone(p.why)
}

// Force holds the state by hand for ttl. Zero: until Auto. Less: the time is over, so it is like Auto.
// After Close it does nothing.
func (d *Controller) Force(degraded bool, ttl time.Duration) {
	d.mu.Lock()
	d.release()
	if ttl >= 0 && !d.closed {
		d.forced, d.forcedTo = true, degraded
	}
	if ttl > 0 && !d.closed {
		force := d.forces
		d.until.Store(int64(time.Since(d.epoch) + ttl))
		d.timer = time.AfterFunc(ttl, func() { d.expire(force) })
	}
	d.settle()
	d.unlockAndTell()
}

// Auto lets the score decide again. After Close it does nothing.
func (d *Controller) Auto() {
	d.mu.Lock()
	d.release()
	d.settle()
	d.unlockAndTell()
}

// Close ends the goroutine of the Controller and waits for it. Degraded and Score keep what they last
// said. It returns nil, however often it is called.
func (d *Controller) Close() error {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		d.stopTimer()
		close(d.stop)
	}
	d.mu.Unlock()
	<-d.done
	return nil
}
