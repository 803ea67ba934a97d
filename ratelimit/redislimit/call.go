package redislimit

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/highball-go/highball/ratelimit"
)

const (
	maxCalls = 128                   // that run at once, with those that requests no longer wait for
	gather   = 10 * time.Millisecond // tokens to give back
)

// A call asks Redis, on a goroutine of the Limiter: a client may take seconds to notice that Redis hangs.
// It ends in one of three ways for the request that began it.
type call struct {
	state    atomic.Int32
	done     chan struct{} // closed when what follows is known
	ok       bool
	decision ratelimit.Decision
}

const (
	waited  = iota // for its result
	decided        // the request has it
	late           // the request gave up after Timeout: that has been counted as a failure
	unasked        // no request waits for it
)

// call begins a call for tokens of e, or finds one that takes a lease already; nil if too many run.
func (l *Limiter) call(e *entry, b *bucket, tokens, parts int64, busy bool, deadline time.Time) (c *call, mine bool) {
	want := tokens
	if busy && tokens > 0 {
		want = max(l.leaseSize(b), tokens)
	}
	c = &call{done: make(chan struct{})}
	if want > tokens {
		for !e.asking.CompareAndSwap(nil, c) {
			if other := e.asking.Load(); other != nil {
				return other, false
			}
		}
	}
	if !l.start(e, b, c, job{parts: parts, need: tokens, want: want, deadline: deadline}, l.prompt) {
		e.asking.CompareAndSwap(c, nil)
		c.end(false) // for those who have found it
		return nil, false
	}
	return c, true
}

// leaseSize is how many tokens come in the time of a lease; never more than half of what each instance
// has of the burst, so that one that has become idle holds up none of the others for long.
func (l *Limiter) leaseSize(b *bucket) int64 {
	if b.still || l.o.Lease < 0 {
		return 0
	}
	units := float64(l.o.Lease.Microseconds()) * float64(b.scale)
	return int64(min(units/float64(b.interval), float64(b.burst/(2*int64(l.instances())))))
}

// A job is what a call asks for.
type job struct {
	parts, need, want int64
	deadline          time.Time
}

// start runs c if there is a slot for it, here or on a goroutine of the Limiter.
func (l *Limiter) start(e *entry, b *bucket, c *call, j job, here bool) bool {
	select {
	case l.running <- struct{}{}:
	default:
		return false
	}
	if l.closed.Load() { // Close takes all slots
		<-l.running
		return false
	}
	l.begin.Do(func() { go l.loop() })
	if here {
		defer func() { <-l.running }()
		l.run(e, b, c, j)
		return true
	}
	bucket := *b
	go func() {
		defer func() { <-l.running }()
		l.run(e, &bucket, c, j)
	}()
	return true
}

// run asks Redis, and deals with its answer whether or not somebody still waits for it.
func (l *Limiter) run(e *entry, b *bucket, c *call, j job) {
	sent := l.now()
	a := ask{parts: j.parts, need: j.need, want: j.want, back: e.back.Swap(0)}
	if j.need > 0 {
		if old := e.lease.Swap(nil); old != nil && old.bucket == *b { // it has less than that
			a.ended, a.left = old, old.end()
		}
	}
	ctx, cancel := context.WithDeadline(l.ctx, j.deadline)
	got, err := l.askRedis(ctx, e.redis, b, a)
	cancel()
	inTime := err == nil && l.now()-sent <= int64(l.o.Timeout)

	claimed := c.state.CompareAndSwap(waited, decided)
	if claimed || c.state.Load() == unasked {
		e.circuit.Heard(inTime, c.state.Load() == unasked, l.now())
	}
	if err != nil { // nobody knows whether they have been given back: better lost than given twice
		e.asking.CompareAndSwap(c, nil)
		c.end(false)
		return
	}
	e.hear(&reply{bucket: *b, at: sent, owed: got.owed, parts: j.parts})
	held := max(got.granted, 0)
	if claimed {
		e.fell.Store(false)
		held -= min(j.need, held)
	}
	if held > 0 && l.o.Lease > 0 {
		lease := &lease{bucket: *b, born: sent, at: got.at, size: got.granted}
		lease.left.Store(held)
		e.lease.Store(lease)
	}
	if j.need == 0 {
		held = e.lease.Load().remaining(sent)
	}
	c.decision = b.decision(got.granted >= 0, j.need, got.owed, held, j.parts)
	c.decision.Source = "redis"
	e.asking.CompareAndSwap(c, nil)
	c.end(true)
}

func (c *call) end(ok bool) {
	c.ok = ok
	close(c.done)
}

// hear keeps the reply to the call that began last.
func (e *entry) hear(r *reply) {
	for {
		last := e.said.Load()
		if last != nil && last.at > r.at || e.said.CompareAndSwap(last, r) {
			return
		}
	}
}

// wait returns whether c has brought an answer before the deadline of the request.
func (l *Limiter) wait(ctx context.Context, e *entry, c *call, mine bool, deadline time.Time) bool {
	select {
	case <-c.done:
		return c.ok
	default:
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	how := int32(late)
	select {
	case <-c.done:
		return c.ok
	case <-timer.C:
	case <-ctx.Done():
		how = unasked
	}
	switch {
	case !mine:
		return false
	case !c.state.CompareAndSwap(waited, how):
		<-c.done // it is being decided
		return c.ok
	case how == late:
		e.circuit.Heard(false, false, l.now())
	}
	return false
}

// giveBack tells Redis of tokens that came back, after a moment in which more may come, unless a call has
// done so by then.
func (l *Limiter) giveBack(e *entry, b *bucket) {
	if l.client == nil || e.circuit.Open() || !e.giving.CompareAndSwap(false, true) {
		return // they go with the next call
	}
	bucket := *b
	time.AfterFunc(gather, func() {
		e.giving.Store(false)
		if e.back.Load() > 0 {
			l.startUnasked(e, &bucket, job{})
		}
	})
}

// startUnasked begins a call for which nobody waits.
func (l *Limiter) startUnasked(e *entry, b *bucket, j job) {
	c := &call{done: make(chan struct{})}
	c.state.Store(unasked)
	j.parts, j.deadline = l.parts(b), time.Now().Add(l.o.Timeout)
	l.start(e, b, c, j, false)
}
