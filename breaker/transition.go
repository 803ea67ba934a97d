package breaker

import (
	"slices"
	"time"
)

// Everything here is off the path of a healthy call: changes of state happen under b.mu, and are told
// after it is released.

// trip opens a closed circuit of generation gen.
func (b *Breaker) trip(gen uint64, t int64, why int32) {
	b.mu.Lock()
	word := b.word.Load()
	if word>>4 != gen || State(word&stateMask) != Closed {
		b.mu.Unlock()
		return
	}
	b.failed = 0
	b.open(t, why)
	b.unlockAndTell()
}

// open needs the lock.
func (b *Breaker) open(t int64, why int32) {
	b.probes, b.successes = b.probes[:0], 0
	b.gate.Store(after(t, b.sleep()))
	b.why.Store(why)
	b.become(Open, t)
}

// sleep is the sleep window, doubled for each failed probe in a row where MaxSleepWindow says so.
func (b *Breaker) sleep() time.Duration {
	d, most := b.o.SleepWindow, b.o.MaxSleepWindow
	for i := 0; i < b.failed && d < most; i++ {
		if d > most/2 {
			return most
		}
		d *= 2
	}
	return d
}

// probe asks to probe a circuit that is not closed: from Open it becomes half-open when its time has
// come, and half-open it has Probes slots, less those that have succeeded. The caller is in flight already.
func (b *Breaker) probe(t int64) (token uint64, ok bool) {
	b.mu.Lock()
	switch word := b.word.Load(); State(word & stateMask) {
	case Closed: // since this call looked: it passes as any other does
		b.mu.Unlock()
		return word >> 4 << tokenShift, true
	case Open:
		if t <= b.gate.Load() {
			b.mu.Unlock()
			return 0, false
		}
		b.become(HalfOpen, t)
	case HalfOpen:
		b.probes = slices.DeleteFunc(b.probes, func(p probe) bool { return p.until < t })
	}
	if ok = len(b.probes)+b.successes < b.o.Probes; ok {
		b.lastID++
		b.probes = append(b.probes, probe{id: b.lastID, until: after(t, b.o.ProbeLease)})
		token = b.lastID<<tokenShift | uint64(HalfOpen)
	}
	b.setGate()
	told := false
	defer func() {
		if told {
			return
		}
		b.inflight.Add(-1) // OnChange has panicked, and nobody gets the Permit
		if ok {
			b.doneProbe(token>>tokenShift, Neutral, false, t)
		}
	}()
	b.unlockAndTell()
	told = true
	return token, ok
}

// setGate lets calls come for a probe slot when one is free, or when the next lease ends. It needs the
// lock.
func (b *Breaker) setGate() {
	if len(b.probes)+b.successes < b.o.Probes {
		b.gate.Store(anyTime)
		return
	}
	gate := b.probes[0].until
	for _, p := range b.probes[1:] {
		gate = min(gate, p.until)
	}
	b.gate.Store(gate)
}

// doneProbe ends the probe id.
func (b *Breaker) doneProbe(id uint64, o Outcome, slow bool, t int64) bool {
	b.mu.Lock()
	i := slices.IndexFunc(b.probes, func(p probe) bool { return p.id == id })
	if i < 0 { // its lease has run out, or another probe has decided
		b.mu.Unlock()
		return false
	}
	late := b.probes[i].until < t
	b.probes = slices.Delete(b.probes, i, i+1)
	at := b.window.at(t)
	if !late {
		b.count(at, o, slow)
	}
	switch {
	case late || o == Neutral:
		b.setGate()
	case o != Success || slow:
		b.failed++
		b.open(t, byProbe)
	default:
		if b.successes++; b.successes >= b.o.Probes {
			b.close(t)
		} else {
			b.setGate()
		}
	}
	b.unlockAndTell()
	b.report(at.tick)
	return !late
}

// close needs the lock. The window is emptied before anybody can count into the new generation.
func (b *Breaker) close(t int64) {
	b.probes, b.successes, b.failed = b.probes[:0], 0, 0
	b.window.reset()
	b.quiet.Store(after(t, b.o.Window))
	b.become(Closed, t)
}

// become starts a new generation in state s. It needs the lock.
func (b *Breaker) become(s State, t int64) {
	word := b.word.Load()
	b.set(word&^stateMask+generation|uint64(s), t)
}

// set publishes word, and queues the change if State has changed. It needs the lock.
func (b *Breaker) set(word uint64, t int64) {
	from, to := visible(b.word.Load()), visible(word)
	b.word.Store(word)
	if from != to && b.o.OnChange != nil {
		b.changes = append(b.changes, Change{Name: b.name, From: from, To: to, Snapshot: b.snapshot(t)})
	}
}

// unlockAndTell releases the lock and calls OnChange for what is queued, in order. One goroutine tells at
// a time; what others queue meanwhile, it tells too. If the hook does not return, the next one goes on.
func (b *Breaker) unlockAndTell() {
	if b.telling || len(b.changes) == 0 {
		b.mu.Unlock()
		return
	}
	b.telling = true
	defer func() {
		b.telling = false
		b.mu.Unlock()
	}()
	for len(b.changes) > 0 {
		b.tell()
	}
}

// tell calls OnChange for the first queued change. It needs the lock and gives it back, also when the
// hook panics.
func (b *Breaker) tell() {
	c := b.changes[0]
	b.changes = slices.Delete(b.changes, 0, 1)
	b.mu.Unlock()
	defer b.mu.Lock()
	b.o.OnChange(c)
}
