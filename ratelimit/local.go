package ratelimit

import (
	"context"
	"hash/maphash"
)

const (
	defaultKeys = 65536
	mostKeys    = 1 << 30
)

// Options configures [New]. The zero value is ready to use.
type Options struct {
	// Keys is how many live keys are expected: those whose bucket is not full. The table takes 32 bytes
	// for each at once, and never grows. Idle keys leave without loss. When many more than Keys are live,
	// the one that will be full first is forgotten, and new keys and those that come back begin with what
	// the fullest around them have left: none ever gets more than its limit, but new ones may get less.
	// Zero or less: 65536.
	Keys int
	// LimitFor, if not nil, is asked for another limit of this key; false: the default. It should say
	// the same for a key each time: a bucket holds time, not tokens.
	LimitFor func(key string) (Limit, bool)
	// Admission, from 0 to 1, multiplies the rate of every key from now on; what is saved up stays.
	// Rounded down to 1/1024. nil or NaN: 1. *cluster.Cluster's Admission is one.
	Admission func() float64
	// OnDeny, if not nil, is called for each refusal, with no lock held, on the caller's goroutine.
	OnDeny func(key string, d Decision)
}

// Local limits in this process. It is safe for concurrent use, starts no goroutine and needs no Close. A
// decision allocates nothing.
type Local struct {
	bucket bucket
	o      Options
	clock  *clock
	seed   maphash.Seed // so that nobody outside can choose keys that meet in a slot
	table  *table
}

// New cannot fail: every value of l and o has a meaning.
func New(l Limit, o Options) *Local {
	if o.Keys <= 0 {
		o.Keys = defaultKeys
	}
	scale := scaleFor(l)
	return &Local{
		bucket: bucketOf(l, scale),
		o:      o,
		clock:  newClock(scale, o.Admission),
		seed:   maphash.MakeSeed(),
		table:  newTable(min(o.Keys, mostKeys)),
	}
}

// AllowN takes n tokens of key, or none if there are too few. It never fails, and does not look at ctx.
func (l *Local) AllowN(_ context.Context, key string, n int) (d Decision, _ error) {
	l.decide(&d, l.clock.real(), key, n)
	if !d.Allowed && l.o.OnDeny != nil {
		l.o.OnDeny(key, d)
	}
	return d, nil
}

// Refund gives back n tokens taken for key, never above its Burst.
func (l *Local) Refund(key string, n int) { l.refund(l.clock.real(), key, n) }

// decide fills in d at the real time t, in units.
func (l *Local) decide(d *Decision, t int64, key string, n int) {
	b := &l.bucket
	if l.o.LimitFor != nil {
		own := l.bucketFor(key)
		b = &own
	}
	now, parts := max(t, 0), int64(fullPace)
	if l.clock.admission != nil {
		now, parts = l.clock.shown(t)
	}
	d.Limit, d.Source = int(b.burst), "local"
	tokens := int64(max(n, 0))
	if b.interval == 0 {
		d.Remaining, d.Allowed = d.Limit, tokens <= b.burst
		if !d.Allowed {
			d.RetryAfter = never
		}
		return
	}
	hash, asked := l.hash(key), min(tokens, b.burst+1)
	place := l.table.find(hash)
	full, ok, found := place.take(b, now, asked)
	if !found {
		full, now, ok = l.table.takeNew(hash, place, b, now, asked)
	}
	d.Allowed = ok || tokens == 0
	owed := max(full-b.at(now), 0)
	l.explain(d, b, owed, parts)
	switch {
	case d.Allowed:
	case b.still || tokens > b.burst:
		d.RetryAfter = never
	default:
		d.RetryAfter = l.clock.wait(owed+tokens*b.interval-b.span, parts)
	}
}

// explain fills in what a bucket holds that lacks owed.
func (l *Local) explain(d *Decision, b *bucket, owed, parts int64) {
	d.Remaining = int(max(b.span-owed, 0) / b.interval)
	if !b.still {
		d.ResetAfter = l.clock.wait(owed, parts)
		d.Window = b.window
	} else if owed > 0 {
		d.ResetAfter = never
	}
}

func (l *Local) refund(t int64, key string, n int) {
	b := l.bucketFor(key)
	if n <= 0 || b.interval == 0 {
		return
	}
	now, _ := l.clock.shown(t)
	l.table.find(l.hash(key)).give(&b, now, int64(n))
}

func (l *Local) bucketFor(key string) bucket {
	if l.o.LimitFor != nil {
		if limit, ok := l.o.LimitFor(key); ok {
			return bucketOf(limit, l.clock.scale)
		}
	}
	return l.bucket
}

func (l *Local) hash(key string) uint64 { return maphash.String(l.seed, key) }

var _ interface {
	Limiter
	Refunder
} = (*Local)(nil)
