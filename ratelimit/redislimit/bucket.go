package redislimit

import (
	"math"
	"time"

	"github.com/highball-go/highball/ratelimit"
)

const (
	fullPace = 1024           // parts of an admission of 1
	largest  = int64(1) << 52 // what the doubles of Redis' Lua count exactly, with room for one more
	never    = time.Duration(-1)
	longest  = 2 * 365 * 24 * float64(time.Hour/time.Microsecond) // to fill a bucket
)

// A bucket is a limit in integers. What it lacks is counted in units, of which there are scale in a
// microsecond: as many as make the time between two tokens a whole number, so that 3 tokens a second are
// exactly 3 in each.
type bucket struct {
	burst    int64
	interval int64 // between two tokens, in units
	scale    int64
	still    bool // never refilled
	endless  bool // always full
	window   time.Duration
}

// bucketOf gives a limit the meaning that package ratelimit says.
func bucketOf(l ratelimit.Limit) bucket {
	b := bucket{burst: min(int64(max(l.Burst, 0)), largest), scale: 1, interval: 1}
	us := float64(time.Second/time.Microsecond) / l.Rate
	switch {
	case math.IsInf(l.Rate, 1):
		b.endless = true
		return b
	case math.IsNaN(l.Rate) || l.Rate <= 0 || us*float64(max(b.burst, 1)) > longest:
		b.still = true
		return b
	}
	b.scale = scaleFor(us, b.burst)
	units := us * float64(b.scale)
	if whole(units) {
		units = math.Round(units)
	}
	b.interval = max(int64(math.Ceil(units)), 1)
	b.burst = min(b.burst, largest/b.interval)
	b.window = b.wait(b.span(), fullPace)
	return b
}

func scaleFor(us float64, burst int64) int64 {
	for s := 1.0; s <= 16; s++ {
		if us*s >= 1 && whole(us*s) {
			return int64(s)
		}
	}
	if us*1000*float64(burst) < float64(largest) {
		return 1000
	}
	return 1
}

// whole allows for the error of the float that a Rate is.
func whole(f float64) bool { return math.Abs(f-math.Round(f)) <= f*1e-14 }

func (b *bucket) span() int64 { return b.burst * b.interval }

// certain decides what Redis need not be asked.
func (b *bucket) certain(tokens int64) (d ratelimit.Decision, ok bool) {
	if !b.endless && b.burst > 0 {
		return d, false
	}
	d = ratelimit.Decision{Allowed: tokens <= b.burst, Limit: int(b.burst), Remaining: int(b.burst), Source: "local"}
	if !d.Allowed {
		d.RetryAfter = never
	}
	return d, true
}

// wait is how long so many units take to come, at a pace. At a pace of 0 it says what it would be at a full
// one, for the pace will change.
func (b *bucket) wait(units, parts int64) time.Duration {
	ns := (units*1000 + b.scale - 1) / b.scale
	if parts > 0 && parts < fullPace {
		return time.Duration(min(math.Ceil(float64(ns)*fullPace/float64(parts)), math.MaxInt64/2))
	}
	return time.Duration(ns)
}

// decision is about tokens of a bucket that lacks owed, of which the caller holds back held.
func (b *bucket) decision(allowed bool, tokens, owed, held, parts int64) ratelimit.Decision {
	owed = max(owed-held*b.interval, 0)
	d := ratelimit.Decision{
		Allowed:   allowed || tokens == 0,
		Limit:     int(b.burst),
		Remaining: int(max(b.span()-owed, 0) / b.interval),
		Window:    b.window,
	}
	switch {
	case !b.still:
		d.ResetAfter = b.wait(owed, parts)
	case owed > 0:
		d.ResetAfter = never
	}
	switch {
	case d.Allowed:
	case b.still || tokens > b.burst:
		d.RetryAfter = never
	default:
		d.RetryAfter = max(b.wait(max(owed+tokens*b.interval-b.span(), 0), parts), 1)
	}
	return d
}

// share is a limit divided among so many instances; each has a burst of 1 at least.
func share(l ratelimit.Limit, instances int) ratelimit.Limit {
	if l.Burst > 0 {
		l.Burst = max(l.Burst/instances, 1)
	}
	l.Rate /= float64(instances)
	return l
}
