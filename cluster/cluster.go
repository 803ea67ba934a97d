// Package cluster lets the instances of a service decide on their common health: each publishes its
// request counts to Redis about once a second, off the request path, and reads the sums.
//
// A [Cluster] is the Peers of a breaker and the Admission of a limiter. A circuit that a quorum of the live
// instances see fail opens on all of them, while one that fails on a single instance opens there alone; and
// while more than half of all requests fail, the limiters of all instances admit half as much each second.
//
// One loop per Cluster talks to Redis, with one script on three keys of one hash slot. An instance tells
// the whole of its window each time rather than what has been added to it: what was told twice counts once,
// what was lost is told a second later, and a Redis that comes back empty knows all after one interval.
// The window slides by the monotonic clock of the instance, who lives is decided by the clock of Redis: no
// two clocks are ever compared.
//
// What requests call, [Cluster.Report], [Cluster.Cluster] and [Cluster.Admission], works in memory and
// allocates nothing: no request ever waits for Redis. Refusals of Highball's own are in no count, for no
// breaker counts them.
//
// Source: additive increase and multiplicative decrease, Chiu and Jain, "Analysis of the Increase and
// Decrease Algorithms for Congestion Avoidance in Computer Networks", 1989.
package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Options configures [New]. The zero value is ready to use; the instances of one service should have the
// same.
type Options struct {
	// Service is the name that the instances share. Empty: "default".
	Service string
	// Instance is the name of this one, which no other may have. Empty: host name, process id and a random
	// part.
	Instance string
	// Interval is the time between two exchanges, of which up to a tenth is taken off at random. Zero or
	// less: 1 s. At least 10 ms.
	Interval time.Duration
	// Window is how far back counts go; it should be that of the breakers. Zero or less: 10 s. At least
	// Interval.
	Window time.Duration
	// Quorum is the share of the live instances, and at least two of them when there are several, that must
	// see errors of a circuit before the cluster's error rate opens it here. Zero, less, or NaN: 0.5.
	Quorum float64
	// ErrorPercent is the error rate over which admission is lowered: when errors*100 > ErrorPercent*total.
	// Zero or less: 50. 100 or more: never.
	ErrorPercent int
	// Floor is the lowest admission, at most 1. Zero, less, or NaN: 0.1.
	Floor float64
	// OnChange, if not nil, is called after each change of the admission but that by Close, with no lock
	// held, on the goroutine of the Cluster, whose next exchange waits for it. Nobody
	// recovers its panic.
	OnChange func(admission float64)
}

const (
	minInterval = 10 * time.Millisecond
	minVolume   = 20 // requests in the window, below which the admission is not lowered
	closeWithin = 500 * time.Millisecond
)

// Cluster is safe for concurrent use. It implements breaker.Peers, and its Admission fits
// ratelimit.Options and redislimit.Options.
//
// It tells apart 4096 circuits; what more there are, and those whose names have more than 256 bytes, count
// together, for the admission only.
//
// With Redis away it honours what it last knew for three intervals, then goes by this instance's own counts,
// and [Cluster.Instances] is 1. Redis is away, too, when it answers later than the next exchange is due.
type Cluster struct {
	o      Options
	store  store                    // nil: Redis is away
	snap   atomic.Pointer[snapshot] // never nil
	factor atomic.Uint64            // the bits of the admission

	mu      sync.Mutex // guards pending; a breaker takes it once per bucket, not per request
	pending counts     // what was reported since the last exchange

	cancel context.CancelFunc
	ended  chan struct{}
	close  sync.Once
}

// New starts the loop of a Cluster, which [Cluster.Close] ends. It waits for nothing, and cannot fail: every
// value of o has a meaning. With a nil client Redis is away. Close does not close the client.
func New(client redis.UniversalClient, o Options) *Cluster {
	o = withDefaults(o)
	if client == nil {
		return start(nil, o)
	}
	return start(newRedisStore(client, o), o)
}

func withDefaults(o Options) Options {
	o.Service = cmp.Or(o.Service, "default")
	o.Instance = cmp.Or(o.Instance, instanceName())
	o.Interval = max(cmp.Or(max(o.Interval, 0), time.Second), minInterval)
	o.Window = max(cmp.Or(max(o.Window, 0), 10*time.Second), o.Interval)
	if !(o.Quorum > 0) { // nor NaN
		o.Quorum = 0.5
	}
	if o.ErrorPercent <= 0 {
		o.ErrorPercent = 50
	}
	if !(o.Floor > 0) {
		o.Floor = 0.1
	}
	o.Floor = min(o.Floor, 1)
	return o
}

func instanceName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text()[:8])
}

func start(s store, o Options) *Cluster {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cluster{o: o, store: s, pending: counts{}, cancel: cancel, ended: make(chan struct{})}
	c.forget()
	go newLoop(c).run(ctx)
	return c
}

// forget makes all be well, as far as anybody knows.
func (c *Cluster) forget() {
	c.snap.Store(&snapshot{instances: 1})
	c.factor.Store(math.Float64bits(1))
}

// Report adds to the counts of a circuit. Less than nothing is nothing, and every error is a request too.
func (c *Cluster) Report(circuit string, total, errors int) {
	n := count{errors: int64(min(max(errors, 0), math.MaxInt32))}
	n.total = max(int64(min(max(total, 0), math.MaxInt32)), n.errors)
	if n.total == 0 {
		return
	}
	c.mu.Lock()
	c.pending.add(circuit, n)
	c.mu.Unlock()
}

// Cluster sums over the window and all instances, as of the last exchange; errors is 0 until a quorum of
// the live ones see errors. Without Redis it is what this instance counts, and instances is 1.
func (c *Cluster) Cluster(circuit string) (total, errors, instances int) {
	s := c.snap.Load()
	sum := s.circuits[circuit]
	if sum.seeing >= c.quorum(s.instances) {
		errors = int(sum.errors)
	}
	return int(sum.total), errors, s.instances
}

// quorum is how many of the live instances must see errors.
func (c *Cluster) quorum(live int) int {
	const rounding = 1e-9 // 0.2 of 15 are three
	need := int(math.Ceil(min(c.o.Quorum, 1)*float64(live) - rounding))
	return max(need, min(live, 2), 1)
}

// Admission is 1 when all is well. It halves once an interval while the error rate, summed over all circuits
// and instances, is over ErrorPercent, from 20 requests in the window on; then it climbs back by a tenth a
// second. It is never under Floor.
func (c *Cluster) Admission() float64 { return math.Float64frombits(c.factor.Load()) }

// Instances is how many live, as of the last exchange; 1 without Redis.
func (c *Cluster) Instances() int { return c.snap.Load().instances }

// Close ends the loop and takes this instance off the live ones; then the admission is 1, and Cluster knows
// of nothing. It waits half a second at most: an exchange that hangs ends when its client gives up, which is
// at once with ContextTimeoutEnabled. It returns nil, and may be called more than once.
func (c *Cluster) Close() error {
	c.close.Do(func() {
		c.cancel()
		limit := time.NewTimer(closeWithin)
		defer limit.Stop()
		select {
		case <-c.ended:
		case <-limit.C:
		}
	})
	return nil
}
