package breaker

import (
	"math"
	"time"
)

// The parts of Breaker.word.
const (
	stateMask   = 3
	forcedMask  = 3 << 2
	forcedOpen  = 1 << 2
	forcedShut  = 2 << 2
	generation  = 1 << 4
	anyTime     = math.MinInt64 // as a gate: a probe may start now
	tokenShift  = 2
	countedOnly = uint64(Open) // as a token: admitted by force, decides nothing
	settled     = uint64(3)    // as a token: has been counted and has decided, and still runs
)

// Why a circuit opened last, as Snapshot.Reason says it.
const (
	byErrors int32 = iota + 1
	bySlowness
	byCluster
	byProbe
)

// Allow asks to make one call. The error is an [*OpenError], or ErrMaxConcurrency. On success Done must
// be called exactly once on the Permit; the pair allocates nothing.
func (b *Breaker) Allow() (Permit, error) {
	word := b.word.Load()
	if word&(stateMask|forcedMask) != uint64(Closed) {
		return b.allowSlow(word, now())
	}
	if b.o.MaxConcurrentRequests > 0 && !b.enter() {
		return Permit{}, b.reject(now())
	} else if b.o.MaxConcurrentRequests <= 0 {
		b.inflight.Add(1)
	}
	p := Permit{by: b, token: word >> 4 << tokenShift}
	if b.timed {
		p.start = now()
	}
	return p, nil
}

// enter takes a place of MaxConcurrentRequests. It never counts a call that it refuses, so that refusals
// cannot crowd out a call for which there is room.
func (b *Breaker) enter() bool {
	for {
		n := b.inflight.Load()
		if n >= int64(b.o.MaxConcurrentRequests) {
			return false
		}
		if b.inflight.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// allowSlow is Allow for a circuit that is not closed, or is forced.
func (b *Breaker) allowSlow(word uint64, t int64) (Permit, error) {
	forced := word & forcedMask
	if forced == forcedOpen {
		return b.refuse(t, b.o.SleepWindow)
	}
	state, gate := State(word&stateMask), b.gate.Load()
	shut := state != Closed && t <= gate
	if shut && forced == 0 {
		return b.refuse(t, time.Duration(gate-t))
	}
	if b.o.MaxConcurrentRequests <= 0 {
		b.inflight.Add(1)
	} else if !b.enter() {
		return Permit{}, b.reject(t)
	}
	p := Permit{by: b, token: word >> 4 << tokenShift, start: t}
	if state == Closed {
		return p, nil
	}
	if !shut {
		var ok bool
		if p.token, ok = b.probe(t); ok {
			return p, nil
		}
	}
	if forced == 0 {
		b.inflight.Add(-1)
		return b.refuse(t, time.Duration(max(b.gate.Load(), t)-t))
	}
	p.token = countedOnly
	return p, nil
}

// refuse short-circuits one call.
func (b *Breaker) refuse(t int64, wait time.Duration) (Permit, error) {
	at := b.window.at(t)
	b.window.denied.add(at, high)
	b.report(at.tick) // an open circuit has no Done that would tell the peers why it opened
	return Permit{}, &OpenError{Name: b.name, RetryAfter: max(wait, 1)}
}

// reject refuses a call by MaxConcurrentRequests: a failure of the circuit.
func (b *Breaker) reject(t int64) error {
	at := b.window.at(t)
	b.window.denied.add(at, low)
	b.count(at, Failure, false)
	b.judge(b.word.Load()>>4, at, t)
	return ErrMaxConcurrency
}

// done ends the call of p, which took so long.
func (b *Breaker) done(p Permit, o Outcome, t int64, took time.Duration) bool {
	b.inflight.Add(-1)
	if p.token&stateMask == settled {
		return false
	}
	return b.settle(p, o, t, took)
}

// settle is done for a call that may go on.
func (b *Breaker) settle(p Permit, o Outcome, t int64, took time.Duration) bool {
	if o < Success || o > Neutral {
		o = Failure
	}
	if b.o.Timeout > 0 && took >= b.o.Timeout && o != Neutral {
		o = Timeout
	}
	slow := b.o.SlowCall > 0 && took > b.o.SlowCall && o == Success
	switch State(p.token & stateMask) {
	case HalfOpen:
		return b.doneProbe(p.token>>tokenShift, o, slow, t)
	case Open: // countedOnly
		b.count(b.window.at(t), o, slow)
		return false
	}
	gen := p.token >> tokenShift
	if b.word.Load()>>4 != gen {
		return false
	}
	at := b.window.at(t)
	b.count(at, o, slow)
	b.judge(gen, at, t)
	return true
}

// count puts an outcome into the window, and aside for the peers.
func (b *Breaker) count(at place, o Outcome, slow bool) {
	var what, pending uint64
	switch o {
	case Neutral:
		return
	case Success:
		what, pending = low, 1
	default:
		what, pending = low+high, 1<<32+1
	}
	b.window.calls.add(at, what)
	if (o != Success || slow) && b.bad.Load() < at.tick {
		b.bad.Store(at.tick)
	}
	if slow {
		b.window.times.add(at, low)
	} else if o == Timeout {
		b.window.times.add(at, high)
	}
	if b.o.Peers != nil {
		b.pending.Add(pending)
	}
}

// judge opens the circuit, if it is still in generation gen, when the window or the cluster says so.
func (b *Breaker) judge(gen uint64, at place, t int64) {
	why := int32(0)
	if at.tick-b.bad.Load() < int64(b.o.Buckets) { // else the window holds nothing to open for
		why = b.verdict(at)
	}
	if b.o.Peers == nil {
		// this instance decides alone
	} else if b.report(at.tick) && why == 0 && t >= b.quiet.Load() {
		if total, errs, _ := b.o.Peers.Cluster(b.name); total > 0 && errs > 0 &&
			b.over(uint64(total), uint64(errs), b.o.ErrorPercentThreshold) {
			why = byCluster
		}
	}
	if why != 0 {
		b.trip(gen, t, why)
	}
}

// verdict is why the window's counts should open the circuit; 0: they should not.
func (b *Breaker) verdict(at place) int32 {
	total, errs := b.window.calls.sum(at)
	if b.over(total, errs, b.o.ErrorPercentThreshold) {
		return byErrors
	}
	if b.o.SlowCall > 0 {
		if slow, _ := b.window.times.sum(at); b.over(total, slow, b.o.SlowPercentThreshold) {
			return bySlowness
		}
	}
	return 0
}

func (b *Breaker) over(total, bad uint64, percent int) bool {
	return total >= uint64(b.o.RequestVolumeThreshold) && bad*100 >= uint64(percent)*total
}

// report tells the peers what was counted since the last time, unless that was in the same bucket. It
// reports whether it did.
func (b *Breaker) report(tick int64) bool {
	if b.o.Peers == nil || b.pending.Load() == 0 {
		return false
	}
	last := b.reported.Load()
	if last == tick+1 || !b.reported.CompareAndSwap(last, tick+1) { // 0: never
		return false
	}
	n := b.pending.Swap(0)
	b.o.Peers.Report(b.name, int(n&math.MaxUint32), int(n>>32))
	return true
}
