package ratelimit

import (
	"math"
	"time"
)

// Times in a bucket are in units of 1/scale ns since the limiter was made. One scale holds for all
// buckets of a limiter, chosen so that the time between two tokens of its default limit is a whole
// number where that is possible: 3 tokens a second then make exactly 3 in each second.
const maxScale = 16

// frozen is where the clock of a bucket stands that is never refilled: its instants count tokens, and lie
// after all others.
const frozen = int64(1) << 62

// longest is what filling a bucket may take, in ns: at the largest scale it is just below 1<<60 units.
const longest = 2 * 365 * 24 * float64(time.Hour)

// A bucket is a Limit in integers.
type bucket struct {
	burst    int64
	interval int64 // between two tokens, in units; 0: the bucket is always full
	span     int64 // burst * interval
	still    bool  // never refilled
	window   time.Duration
}

// scaleFor is the scale that suits l.
func scaleFor(l Limit) int64 {
	ns := float64(time.Second) / l.Rate
	for s := 1.0; s <= maxScale; s++ {
		if whole(ns * s) {
			return int64(s)
		}
	}
	return 1
}

// whole allows for the error of the float that a Rate is.
func whole(f float64) bool { return math.Abs(f-math.Round(f)) <= f*1e-14 }

// bucketOf is l in units of 1/scale ns.
func bucketOf(l Limit, scale int64) bucket {
	b := bucket{burst: min(int64(max(l.Burst, 0)), frozen/4)}
	ns := float64(time.Second) / l.Rate
	switch {
	case math.IsInf(l.Rate, 1):
		return b
	case math.IsNaN(l.Rate) || l.Rate <= 0 || ns*float64(max(b.burst, 1)) > longest:
		b.still, b.interval, b.span = true, 1, b.burst
		return b
	}
	units := ns * float64(scale)
	if whole(units) {
		units = math.Round(units)
	}
	b.interval = max(int64(math.Ceil(units)), 1)
	b.span = b.burst * b.interval
	b.window = time.Duration((b.span + scale - 1) / scale)
	return b
}

// at is the instant of the bucket's own clock at t.
func (b *bucket) at(t int64) int64 {
	if b.still {
		return frozen
	}
	return t
}

// take is the instant full after n of the tokens were taken at t, or ok is false and it is as it was.
func (b *bucket) take(full, t, n int64) (after int64, ok bool) {
	full = max(full, b.at(t))
	if n > b.burst {
		return full, false
	}
	if after = full + n*b.interval; after-b.at(t) > b.span {
		return full, false
	}
	return after, true
}

// give is full after n tokens were given back at t.
func (b *bucket) give(full, t, n int64) int64 {
	n = min(n, b.burst)
	return max(full-n*b.interval, b.at(t))
}
