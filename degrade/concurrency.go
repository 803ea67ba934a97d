package degrade

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	leastLimit   = 4                      // a limit is never lower
	leastWindow  = 250 * time.Millisecond // between two changes of it
	leastSamples = 20                     // so many requests make a window
	probeEvery   = 10 * time.Second       // while requests are refused
)

// ConcurrencyOptions configures [NewConcurrency]. The zero value is ready to use.
type ConcurrencyOptions struct {
	// Initial is the limit to begin with, and the one to which it falls back when less than half of it is used.
	// Zero or less: 20.
	Initial int
	// Max is the highest limit. Zero or less: 1000; less than 4: 4.
	Max int
	// Tolerance is how many times its calm value the mean latency may be before the limit is lowered. Not more
	// than 1, or not finite: 1.25.
	Tolerance float64
}

// Concurrency limits how many requests run at once to as many as the service can serve without a queue, which it
// finds by itself: give it to [Middleware] with [WithConcurrency]. It is safe for concurrent use, starts no goroutine
// and takes no lock but once a window.
//
// A window is a quarter of a second or four times the calm latency, whichever is longer, and at least 20
// requests. After each in which half of the limit or more was used, the limit is multiplied by what Tolerance times the
// calm latency is of the mean latency (not more than 1, not less than a half), and its square root is added as
// headroom; with less than half of it used, it falls by a twentieth, down to Initial. The calm latency is the
// least mean of a window, and follows the mean slowly while less than half of the limit is used. As that alone would
// drift up in a lasting overload, every ten seconds of refusals the limit is halved, for a window at a time, until that
// makes nothing faster any more: the queue has drained, and the calm latency is measured anew.
//
// A stream holds its slot for as long as it lasts: keep routes that stream out of the group that has the limit.
//
// Sources: the gradient is that of Envoy's adaptive concurrency filter and of Netflix's concurrency-limits
// (Gradient2Limit); the drain is BBR's ProbeRTT: Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM
// Queue 14(5), 2016.
type Concurrency struct {
	tolerance     float64
	initial, most float64

	inFlight atomic.Int64
	limit    atomic.Int64
	peak     atomic.Int64 // of inFlight in this window
	refused  atomic.Int64 // in this window
	window   atomic.Pointer[span]

	mu      sync.Mutex    // guards the fields below; only one that gets it at once judges a window
	exact   float64       // the limit
	calm    time.Duration // 0: not known yet
	probing bool
	probed  time.Time     // last began; zero: never
	before  time.Duration // the mean of the window before in this probe; 0: it is the first
}

// A span adds up the latencies of requests that started since.
type span struct {
	since time.Time
	calm  time.Duration // as it was known then; 0: not yet
	n     atomic.Int64
	sum   atomic.Int64 // ns
}

// NewConcurrency cannot fail: every value of o has a meaning.
func NewConcurrency(o ConcurrencyOptions) *Concurrency {
	if o.Initial <= 0 {
		o.Initial = 20
	}
	if o.Max <= 0 {
		o.Max = 1000
	}
	if !(o.Tolerance > 1) || math.IsInf(o.Tolerance, 1) {
		o.Tolerance = 1.25
	}
	l := &Concurrency{tolerance: o.Tolerance, initial: float64(o.Initial), most: float64(max(o.Max, leastLimit))}
	l.set(float64(o.Initial))
	l.window.Store(&span{since: time.Now()})
	return l
}

// Limit is how many requests may run at once now.
func (l *Concurrency) Limit() int { return int(l.limit.Load()) }

// InFlight is how many do.
func (l *Concurrency) InFlight() int { return int(l.inFlight.Load()) }

// acquire takes a slot, of which there is always one for the essential. What got one must release it.
func (l *Concurrency) acquire(essential bool) bool {
	n := l.inFlight.Add(1)
	if n > l.limit.Load() && !essential {
		l.inFlight.Add(-1)
		l.refused.Add(1)
		return false
	}
	for {
		peak := l.peak.Load()
		if n <= peak || l.peak.CompareAndSwap(peak, n) {
			return true
		}
	}
}

// release gives a slot back.
func (l *Concurrency) release() { l.inFlight.Add(-1) }

// observe learns from a request that has ended. One that failed sooner than others succeed says nothing.
func (l *Concurrency) observe(start, now time.Time, failed bool) {
	w := l.window.Load()
	latency := now.Sub(start)
	if start.Before(w.since) || failed && latency < w.calm {
		return
	}
	w.sum.Add(int64(latency))
	if w.n.Add(1) >= leastSamples && now.Sub(w.since) >= max(leastWindow, 4*w.calm) && l.mu.TryLock() {
		if l.window.Load() == w {
			l.judge(w, now)
		}
		l.mu.Unlock()
	}
}

// judge ends a window. The caller holds mu.
func (l *Concurrency) judge(w *span, now time.Time) {
	mean := time.Duration(w.sum.Load() / w.n.Load())
	refused, half := l.refused.Swap(0) > 0, float64(l.peak.Swap(l.inFlight.Load())) < l.exact/2
	switch {
	case l.probing:
		l.probe(mean)
	case refused && now.Sub(l.probed) >= probeEvery:
		l.probing, l.probed, l.before = true, now, 0
		l.set(l.next(mean) / 2)
	default:
		l.learn(mean, half)
		if half {
			l.set(max(l.exact*19/20, min(l.exact, l.initial)))
		} else {
			l.set(l.next(mean))
		}
	}
	l.window.Store(&span{since: now, calm: l.calm})
}

// probe goes on halving the limit while that makes the service faster, unless it is as fast as it is known to be
// when calm. Then the queue has drained, and the latency is that of the service without one.
func (l *Concurrency) probe(mean time.Duration) {
	faster := l.before == 0 || mean < l.before*9/10
	if faster && mean > l.calm*11/10 && l.exact > leastLimit {
		l.before = mean
		l.set(l.exact / 2)
		return
	}
	l.probing = false
	l.calm = mean
	l.set(l.exact * 2)
}

// learn has calm follow the mean: down at once, up slowly, and only while half of the limit is not used.
func (l *Concurrency) learn(mean time.Duration, half bool) {
	switch {
	case l.calm == 0 || mean < l.calm:
		l.calm = mean
	case half:
		l.calm += (mean - l.calm) / 20
	}
}

// next is the limit by the gradient.
func (l *Concurrency) next(mean time.Duration) float64 {
	gradient := l.tolerance * float64(max(l.calm, 1)) / float64(max(mean, 1))
	return l.exact*min(max(gradient, 0.5), 1) + math.Sqrt(l.exact)
}

func (l *Concurrency) set(limit float64) {
	l.exact = min(max(limit, leastLimit), l.most)
	l.limit.Store(int64(l.exact))
}
