package breaker

import (
	"fmt"
	"time"
)

// Snapshot explains the breaker: the window's counts and what they decide. Its counts are read one after
// another while calls go on, so they may differ by calls that end meanwhile.
type Snapshot struct {
	Name           string
	State          State
	Total          uint64 // calls that ended within the window, and those that MaxConcurrentRequests refused
	Errors         uint64 // of Total: failures, timeouts and such refusals
	Slow           uint64 // successes that took longer than SlowCall
	Timeouts       uint64 // of Errors
	Rejected       uint64 // of Errors: refused by MaxConcurrentRequests
	ShortCircuited uint64 // refused because the circuit was not closed; in no other count
	ErrorPercent   float64
	OpenUntil      time.Time // when a probe may start; zero unless State is Open, or when it was forced
	InFlight       int
	Forced         string // "", "open", "closed"
	Reason         string // why the circuit opened last: "", "errors", "slow", "cluster" or "probe"
}

var reasons = [...]string{"", "errors", "slow", "cluster", "probe"}

// OpenError is returned while the circuit is open.
type OpenError struct {
	Name       string
	RetryAfter time.Duration // until a probe may start; at least 1 ns
}

// Error says which circuit is open, and for how long yet.
func (e *OpenError) Error() string {
	return fmt.Sprintf("breaker: circuit %q is open; retry after %v", e.Name, e.RetryAfter)
}

// Is makes errors.Is(e, ErrOpen) true.
func (e *OpenError) Is(target error) bool { return target == ErrOpen }

// State is what the circuit does with calls; forced, it is Open or Closed. An Open circuit whose sleep
// window has passed becomes HalfOpen with the first call that comes.
func (b *Breaker) State() State { return visible(b.word.Load()) }

func visible(word uint64) State {
	switch word & forcedMask {
	case forcedOpen:
		return Open
	case forcedShut:
		return Closed
	}
	return State(word & stateMask)
}

// Snapshot explains the circuit as it is now.
func (b *Breaker) Snapshot() Snapshot { return b.snapshot(now()) }

func (b *Breaker) snapshot(t int64) Snapshot {
	at, word := b.window.at(t), b.word.Load()
	s := Snapshot{
		Name:     b.name,
		State:    visible(word),
		InFlight: int(max(b.inflight.Load(), 0)),
		Reason:   reasons[b.why.Load()],
	}
	s.Total, s.Errors = b.window.calls.sum(at)
	s.Slow, s.Timeouts = b.window.times.sum(at)
	s.Rejected, s.ShortCircuited = b.window.denied.sum(at)
	if s.Total > 0 {
		s.ErrorPercent = float64(s.Errors) * 100 / float64(s.Total)
	}
	switch word & forcedMask {
	case forcedOpen:
		s.Forced = "open"
	case forcedShut:
		s.Forced = "closed"
	default:
		if s.State == Open {
			s.OpenUntil = time.Now().Add(time.Duration(max(b.gate.Load(), 0) - t))
		}
	}
	return s
}

// ForceOpen refuses every call, with SleepWindow as RetryAfter, until ForceClosed or Auto.
func (b *Breaker) ForceOpen() { b.force(forcedOpen) }

// ForceClosed lets every call pass and still counts it, until ForceOpen or Auto. MaxConcurrentRequests
// holds on.
func (b *Breaker) ForceClosed() { b.force(forcedShut) }

// Auto ends ForceOpen and ForceClosed. The circuit goes on as if nothing had been forced: beneath
// ForceClosed it has opened, probed and closed by what it saw.
func (b *Breaker) Auto() { b.force(0) }

func (b *Breaker) force(bits uint64) {
	t := now()
	b.mu.Lock()
	b.set(b.word.Load()&^forcedMask|bits, t)
	b.unlockAndTell()
}

// idle reports whether forgetting the circuit would lose nothing.
func (b *Breaker) idle(t int64) bool {
	if b.word.Load()&(stateMask|forcedMask) != uint64(Closed) || b.inflight.Load() > 0 {
		return false
	}
	total, _ := b.window.calls.sum(b.window.at(t))
	return total == 0
}
