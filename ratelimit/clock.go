package ratelimit

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// A clock is the time by which buckets fill. It runs slower while admission is less than 1, so that what
// was saved or spent before stays so, and only what comes is less.
type clock struct {
	epoch     time.Time
	scale     int64
	admission func() float64
	pace      atomic.Pointer[pace]
}

// A pace is how fast the clock goes since an instant. It is replaced when the admission changes.
type pace struct {
	since int64 // real time in units
	shown int64 // what the clock showed then
	parts int64 // of 1024
}

const (
	paceShift = 10
	fullPace  = 1 << paceShift
)

func newClock(scale int64, admission func() float64) *clock {
	c := &clock{epoch: time.Now(), scale: scale, admission: admission}
	c.pace.Store(&pace{parts: fullPace})
	return c
}

// real is the time since the epoch in units.
func (c *clock) real() int64 { return int64(time.Since(c.epoch)) * c.scale }

// shown is what the clock shows at the real time t, and its pace.
func (c *clock) shown(t int64) (int64, int64) {
	if c.admission == nil {
		return max(t, 0), fullPace
	}
	parts := partsOf(c.admission())
	for {
		p := c.pace.Load()
		shown := p.at(t)
		if p.parts == parts {
			return shown, parts
		}
		next := &pace{since: max(t, p.since), shown: shown, parts: parts}
		if c.pace.CompareAndSwap(p, next) {
			return shown, parts
		}
	}
}

// at never goes back: a caller that is late sees the pace's beginning.
func (p *pace) at(t int64) int64 {
	gone := uint64(max(t-p.since, 0))
	hi, lo := bits.Mul64(gone, uint64(p.parts))
	return p.shown + int64(hi<<(64-paceShift)|lo>>paceShift)
}

// partsOf rounds down, so that never more is admitted. What is not a number admits all, for then the one
// who should know does not.
func partsOf(admission float64) int64 {
	if math.IsNaN(admission) || admission >= 1 {
		return fullPace
	}
	return int64(max(admission, 0) * fullPace)
}

// wait is the real duration of so many units at a pace. At a pace of 0 it says what it would be at a full
// one, for the pace will change.
func (c *clock) wait(units, parts int64) time.Duration {
	if parts > 0 && parts < fullPace {
		hi, lo := bits.Mul64(uint64(units), fullPace)
		if hi >= uint64(parts) {
			return math.MaxInt64
		}
		q, rest := bits.Div64(hi, lo, uint64(parts))
		if rest > 0 {
			q++
		}
		units = int64(min(q, math.MaxInt64))
	}
	if c.scale == 1 {
		return time.Duration(units)
	}
	d := units / c.scale
	if units%c.scale != 0 {
		d++
	}
	return time.Duration(d)
}
