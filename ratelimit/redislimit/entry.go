package redislimit

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/highball-go/highball/internal/outage"
	"github.com/highball-go/highball/ratelimit"
)

// An entry is what is known here of a key.
type entry struct {
	key     string // as the caller has it, or its digest
	long    bool   // it is the digest
	redis   string // as Redis has it
	hash    uint64
	circuit *outage.Circuit

	last   atomic.Int64          // when it was last asked for
	lease  atomic.Pointer[lease] // tokens taken before they are needed
	said   atomic.Pointer[reply] // what Redis said last
	asking atomic.Pointer[call]  // that takes a lease just now
	back   atomic.Int64          // tokens to give back with the next call
	giving atomic.Bool           // a call for that alone is on its way
	fell   atomic.Bool           // the last that were admitted, were so without Redis
}

// A lease is tokens that were taken from the bucket at once. As time goes by the bucket refills, and those
// of a lease die as fast: so what all leases hold is never more than the bucket lacks, and what they and
// it together admit at an instant never more than Burst.
type lease struct {
	bucket bucket
	born   int64 // before the tokens were taken
	at     int64 // when they were, by Redis' clock
	size   int64
	left   atomic.Int64 // less what has died since the last were spent; negative: it has ended
}

const (
	ended       = math.MinInt64 / 2
	rememberFor = int64(time.Second)
)

// spendable is how many of the tokens are alive.
func (l *lease) spendable(left, now int64) int64 {
	age := min(max(now-l.born, 0), int64(time.Hour)) // older ones have nothing left
	units := (age*l.bucket.scale + 999) / 1000
	refilled := (units + l.bucket.interval - 1) / l.bucket.interval
	return min(left, l.size-refilled)
}

// remaining is how many may be spent now.
func (l *lease) remaining(now int64) int64 {
	if l == nil {
		return 0
	}
	return max(l.spendable(l.left.Load(), now), 0)
}

// take spends tokens.
func (l *lease) take(tokens, now int64) (left int64, ok bool) {
	if l == nil {
		return 0, false
	}
	for {
		had := l.left.Load()
		left = l.spendable(had, now) - tokens
		if left < 0 {
			return 0, false
		}
		if l.left.CompareAndSwap(had, left) {
			return left, true
		}
	}
}

// end returns what is left, once.
func (l *lease) end() int64 { return max(l.left.Swap(ended), 0) }

// serve decides from the lease.
func (e *entry) serve(b *bucket, now, tokens int64) (d ratelimit.Decision, ok bool) {
	if tokens == 0 {
		return d, false
	}
	left, ok := e.lease.Load().take(tokens, now)
	if !ok {
		return d, false
	}
	var owed, parts int64
	if r := e.said.Load(); r != nil {
		owed, parts = r.owedAt(now), r.parts
	}
	d = b.decision(true, tokens, owed, left, parts)
	d.Source = "lease"
	return d, true
}

// A reply is what a bucket lacked after a call, and when the call began.
type reply struct {
	bucket bucket
	at     int64
	owed   int64
	parts  int64
}

// owedAt is what it lacks by now if nobody has taken more.
func (r *reply) owedAt(now int64) int64 {
	gone := float64(max(now-r.at, 0)) / 1000 * float64(r.bucket.scale) * float64(r.parts) / fullPace
	return max(r.owed-int64(min(gone, float64(largest))), 0)
}

// remembered refuses what the bucket cannot have by now, as Redis said last. Others can only have taken
// more since, unless they gave back: for that Redis is asked again after a second.
func (e *entry) remembered(b *bucket, now, tokens, parts int64) (d ratelimit.Decision, ok bool) {
	r := e.said.Load()
	if tokens == 0 || r == nil || r.bucket != *b || r.parts != parts || now-r.at > rememberFor || e.back.Load() > 0 {
		return d, false
	}
	owed := r.owedAt(now)
	if owed+tokens*b.interval <= b.span() {
		return d, false
	}
	d = b.decision(false, tokens, owed, 0, parts)
	d.Source = "local"
	return d, true
}
