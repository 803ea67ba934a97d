// Package redislimit shares one limit among all instances of a service through Redis: a token bucket per
// key, of which they together take at most Burst + Rate × time over any span of time.
//
// One script decides, in integers, by the clock of Redis, on one key, in one round trip. Busy keys take
// tokens for about 100 ms at once and serve requests from an atomic; a key that is over its limit is
// remembered until it may come back, and costs Redis nothing until then. Leased tokens die as fast as the
// bucket refills, and those left over are given back, so that a lease never admits what the bucket would
// not have: at any instant the leases hold no more than the bucket lacks.
//
// No request waits longer than Options.Timeout, and none waits at all once Redis is known to be away: then
// [OnDown] says what happens. What Redis forgets, in a restart without persistence or a failover to a
// replica that lags, is forgotten here too: those buckets are full again. The script needs the struct library
// of Redis' Lua: a server without it, such as miniredis, is a Redis that is away.
//
// Source: the generic cell rate algorithm (ITU-T I.371, annex A), kept as what the bucket lacks and since
// when rather than as one instant, so that a clock of Redis that is set back holds up nobody.
package redislimit

import (
	"cmp"
	"context"
	"crypto/rand"
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
	"github.com/highball-go/highball/ratelimit"
)

// OnDown is what becomes of requests while Redis is away.
type OnDown int

// What can become of them.
const (
	FailLocal  OnDown = iota // rate and burst / instances in this process: the default
	FailOpen                 // admit all
	FailClosed               // admit none: ratelimit.ErrUnavailable
)

// Options configures [New]. The zero value is ready to use.
type Options struct {
	// Prefix is of all keys in Redis; limiters with the same one share their buckets. Empty: "ratelimit:".
	Prefix string
	// Lease is for how long a busy key takes tokens at once, at the rate of its limit, and never more than
	// half of what each instance has of the burst; a key is busy that is asked for twice within this
	// time. 0: 100 ms. Negative: each decision asks Redis.
	Lease time.Duration
	// Timeout is how long a request waits for Redis at most. Zero or less: 20 ms.
	Timeout time.Duration
	// OnDown is what becomes of requests while Redis is away. An unknown value is FailLocal.
	OnDown OnDown
	// Instances is among how many FailLocal divides the limit; less than 1 is 1. nil: as many as Redis
	// has last seen with this Prefix, 1 before it has seen any.
	Instances func() int
	// LimitFor, if not nil, is asked for another limit of this key; false: the default. All instances
	// should say the same.
	LimitFor func(key string) (ratelimit.Limit, bool)
	// Admission, from 0 to 1, multiplies the rate of every key from now on; what is saved up stays.
	// Rounded down to 1/1024. nil or NaN: 1. *cluster.Cluster's Admission is one.
	Admission func() float64
}

const (
	defaultLease   = 100 * time.Millisecond
	defaultTimeout = 20 * time.Millisecond
	defaultPrefix  = "ratelimit:"
)

// Limiter is safe for concurrent use. It never dials in New and never lets a request wait longer than
// Timeout, also with a client that ignores deadlines (go-redis without ContextTimeoutEnabled): calls run
// on goroutines of the Limiter, at most 128 at once, and their owner is Close.
//
// The Source of a Decision is "redis" when Redis was asked, "lease" when the tokens were taken from it
// before, "local" when what Redis said last was enough to refuse, and "fallback" when Redis is away.
type Limiter struct {
	client   redis.UniversalClient
	bucket   bucket
	limit    ratelimit.Limit
	o        Options
	id       string // of this instance in the heartbeat
	epoch    time.Time
	seed     maphash.Seed
	table    table
	circuits outage.Group
	prompt   bool // the client gives up in time by itself
	fallback func() *ratelimit.Local
	seen     atomic.Int64 // instances

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	closed  atomic.Bool
	running chan struct{} // a slot for each call that runs
	begin   sync.Once     // starts the loop
	close   sync.Once
	ended   chan struct{} // closed when the loop has ended
}

// New cannot fail: every value has a meaning. With a nil client Redis is away. The first request starts
// the background loop; Close ends it.
func New(client redis.UniversalClient, l ratelimit.Limit, o Options) *Limiter {
	o.Prefix = cmp.Or(o.Prefix, defaultPrefix)
	o.Lease = cmp.Or(o.Lease, defaultLease)
	o.Timeout = cmp.Or(max(o.Timeout, 0), defaultTimeout)
	lim := &Limiter{
		client:   client,
		bucket:   bucketOf(l),
		limit:    l,
		o:        o,
		id:       rand.Text(),
		epoch:    time.Now(),
		seed:     maphash.MakeSeed(),
		circuits: outage.For(client, minPause, maxPause),
		prompt:   outage.Prompt(client),
		running:  make(chan struct{}, maxCalls),
		ended:    make(chan struct{}),
	}
	lim.seen.Store(1)
	lim.fallback = sync.OnceValue(lim.newFallback)
	lim.ctx, lim.cancel = context.WithCancel(context.Background())
	return lim
}

// AllowN takes n tokens of key, or none if there are too few; with n of 0 or less it only looks. The only
// error is ratelimit.ErrUnavailable, and only with FailClosed. A request whose ctx ends while it waits is
// decided as if Redis were away; with a client that keeps deadlines (ContextTimeoutEnabled) it waits on, for
// Timeout at most.
func (l *Limiter) AllowN(ctx context.Context, key string, n int) (ratelimit.Decision, error) {
	b := l.bucketFor(key)
	tokens := min(int64(max(n, 0)), b.burst+1)
	if d, ok := b.certain(tokens); ok {
		return d, nil
	}
	e := l.entry(key)
	now := l.now()
	busy := now-e.last.Swap(now) < int64(l.o.Lease)
	var deadline time.Time // of this request; zero until it has to wait
	for {
		if d, ok := e.serve(&b, now, tokens); ok {
			return d, nil
		}
		parts := l.parts(&b)
		if !l.available(e, &b, now) {
			break
		}
		if d, ok := e.remembered(&b, now, tokens, parts); ok {
			return d, nil
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(l.o.Timeout)
		}
		c, mine := l.call(e, &b, tokens, parts, busy, deadline)
		if c == nil || !l.wait(ctx, e, c, mine, deadline) {
			break
		}
		if mine {
			return c.decision, nil
		}
		now = l.now() // somebody else has asked for this key: look again
	}
	return l.away(ctx, e, &b, key, n)
}

// Refund gives back n tokens taken for key, never above its Burst. It does not wait: they go to Redis with
// the next call for key, or by themselves 10 ms later. Those that Redis could not be told of are lost.
func (l *Limiter) Refund(key string, n int) {
	b := l.bucketFor(key)
	if _, ok := b.certain(1); n <= 0 || ok {
		return
	}
	e, tokens := l.entry(key), min(int64(n), b.burst)
	if e.fell.Load() {
		l.fallback().Refund(key, n)
		return
	}
	e.back.Add(tokens)
	l.giveBack(e, &b)
}

// Close ends what the Limiter has begun and takes this instance off the count of those that live. It waits
// a second at most; a call that a client without deadlines does not give up ends later. Requests after it
// are decided as if Redis were away.
func (l *Limiter) Close() error {
	l.close.Do(func() {
		l.closed.Store(true)
		l.cancel()
		limit := time.After(closeWithin)
		l.begin.Do(func() { close(l.ended) }) // it never began
		for range maxCalls {
			select {
			case l.running <- struct{}{}:
			case <-limit:
				return
			}
		}
		select {
		case <-l.ended:
		case <-limit:
		}
	})
	return nil
}

// now is in nanoseconds of the monotonic clock, never 0 or less.
func (l *Limiter) now() int64 { return int64(time.Since(l.epoch)) + 1 }

func (l *Limiter) bucketFor(key string) bucket {
	if l.o.LimitFor != nil {
		if limit, ok := l.o.LimitFor(key); ok {
			return bucketOf(limit)
		}
	}
	return l.bucket
}

// parts is the admission in parts of fullPace, rounded down so that never more is admitted.
func (l *Limiter) parts(b *bucket) int64 {
	switch {
	case b.still:
		return 0
	case l.o.Admission == nil:
		return fullPace
	}
	a := l.o.Admission()
	if math.IsNaN(a) || a >= 1 {
		return fullPace
	}
	return int64(max(a, 0) * fullPace)
}

func (l *Limiter) instances() int {
	n := l.seen.Load()
	if l.o.Instances != nil {
		n = int64(l.o.Instances())
	}
	return int(max(n, 1))
}

var _ interface {
	ratelimit.Limiter
	ratelimit.Refunder
} = (*Limiter)(nil)
