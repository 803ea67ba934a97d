package degrade

import (
	"sync/atomic"
	"time"
)

// counters only ever grow, or wrap around: the difference of two readings is right all the same. So who
// counts needs no clock and no buckets; the goroutine that evaluates sorts the differences into windows.
type counters struct {
	succeeded, failed           atomic.Uint64
	streamSucceeded, streamFail atomic.Uint64 // requests whose duration says nothing
	nanos                       atomic.Uint64 // of succeeded and failed
}

func (c *counters) add(latency time.Duration, failed bool) {
	c.nanos.Add(uint64(min(max(latency, 0), time.Hour)))
	if failed {
		c.failed.Add(1)
	} else {
		c.succeeded.Add(1)
	}
}

func (c *counters) addStream(failed bool) {
	if failed {
		c.streamFail.Add(1)
	} else {
		c.streamSucceeded.Add(1)
	}
}

// A reading is of all counters.
type reading struct {
	at time.Duration
	sample
}

// read is not atomic over all counters: a request that is just being counted may have its latency in this
// reading, and itself in the next.
func (c *counters) read(at time.Duration) reading {
	succeeded, failed := c.succeeded.Load(), c.failed.Load()
	streams, streamFail := c.streamSucceeded.Load(), c.streamFail.Load()
	return reading{at, sample{
		requests: succeeded + failed + streams + streamFail,
		failed:   failed + streamFail,
		timed:    succeeded + failed,
		nanos:    c.nanos.Load(),
	}}
}

func (r reading) minus(before reading) sample {
	return sample{
		requests: r.requests - before.requests,
		failed:   r.failed - before.failed,
		timed:    r.timed - before.timed,
		nanos:    r.nanos - before.nanos,
	}
}

// A sample is what was counted in some time.
type sample struct{ requests, failed, timed, nanos uint64 }

func (s *sample) add(more sample) {
	s.requests += more.requests
	s.failed += more.failed
	s.timed += more.timed
	s.nanos += more.nanos
}

// A window holds the samples of a sliding span of time in buckets. It is for one goroutine.
type window struct {
	width, span time.Duration
	buckets     []bucket
}

type bucket struct {
	number int64 // of the bucket since the beginning of time
	sample
}

// newWindow has sixty buckets, or as many as there are evaluations in span. In the latter case there is no
// bucket half full, so one more is needed for the window to be full.
func newWindow(span time.Duration) *window {
	const buckets = 60
	w := &window{width: span / buckets, span: span}
	if w.width < pace {
		w.width = pace
		w.span = (span+pace-1)/pace*pace + pace
	}
	w.buckets = make([]bucket, w.span/w.width+2)
	return w
}

// add puts s into the bucket of the time at, the middle of the time it is of.
func (w *window) add(at time.Duration, s sample) {
	number := int64(at / w.width)
	b := &w.buckets[number%int64(len(w.buckets))]
	if b.number != number {
		*b = bucket{number: number}
	}
	b.add(s)
}

// sum is of the buckets that began within the span that ends now.
func (w *window) sum(now time.Duration) (all sample) {
	for i := range w.buckets {
		b := &w.buckets[i]
		if time.Duration(b.number)*w.width > now-w.span {
			all.add(b.sample)
		}
	}
	return all
}
