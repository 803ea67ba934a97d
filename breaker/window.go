package breaker

import (
	"sync/atomic"
	"time"
)

// Each word of a ring holds two counts of one bucket and the lap in which they were made:
// lap:24 | high:20 | low:20. A bucket that is full counts no further: its shares stay right.
const (
	lapShift  = 40
	highShift = 20
	countMask = 1<<highShift - 1
	lapMask   = 1<<24 - 1
	full      = countMask - 1<<12 // leaves room for goroutines between the check and the add
)

// What a ring adds per event.
const (
	low  = 1
	high = 1 << highShift
)

// A window holds what was counted over a sliding span of time, in three rings so that the usual call
// touches one word.
type window struct {
	width  int64 // of a bucket, in nanoseconds
	calls  ring  // low: total, high: errors
	times  ring  // low: slow, high: timeouts
	denied ring  // low: rejected, high: short-circuited
}

func newWindow(span time.Duration, buckets int) window {
	words := make([]atomic.Uint64, 3*buckets)
	return window{
		width:  max(int64(span)/int64(buckets), 1),
		calls:  words[:buckets:buckets],
		times:  words[buckets : 2*buckets : 2*buckets],
		denied: words[2*buckets:],
	}
}

// A place is a bucket in time: the tick is its number, lap and slot are where it is in a ring.
type place struct {
	tick int64
	lap  uint64
	slot int
}

func (w *window) at(now int64) place {
	tick := now / w.width
	n := int64(len(w.calls))
	lap := tick / n
	return place{tick: tick, lap: uint64(lap) & lapMask, slot: int(tick - lap*n)}
}

// reset forgets everything. A count that is being added at the same time may survive.
func (w *window) reset() {
	for _, r := range []ring{w.calls, w.times, w.denied} {
		for i := range r {
			r[i].Store(0)
		}
	}
}

// A ring has one word per bucket.
type ring []atomic.Uint64

// add counts one event at p. The word may move on to the next lap between the load and the add: then one
// event counts a window late, which is harmless, and no caller ever waits for another.
func (r ring) add(p place, what uint64) {
	word := &r[p.slot]
	for {
		old := word.Load()
		switch lap := old >> lapShift; {
		case lap == p.lap && old != 0:
			if old&countMask < full && old>>highShift&countMask < full {
				word.Add(what)
			}
			return
		case lap == (p.lap+1)&lapMask && old != 0:
			return // this caller slept for a whole window: the bucket is gone
		default:
			if word.CompareAndSwap(old, p.lap<<lapShift|what) {
				return
			}
		}
	}
}

// sum adds up the counts of the window that ends with p's bucket.
func (r ring) sum(p place) (lows, highs uint64) {
	before := (p.lap - 1) & lapMask
	for i := range r {
		lap := p.lap
		if i > p.slot {
			lap = before
		}
		if word := r[i].Load(); word>>lapShift == lap {
			lows += word & countMask
			highs += word >> highShift & countMask
		}
	}
	return lows, highs
}
