package hystrixgo

import (
	"sync/atomic"
	"time"

	"github.com/afex/hystrix-go/hystrix"

	"github.com/highball-go/highball/breaker"
)

// A command is one hystrix command. The token of a Permit is when the call began, twice, plus one for a
// probe.
type command struct {
	owner    *Circuits
	name     string
	settings atomic.Pointer[hystrix.Settings]
	circuit  atomic.Pointer[hystrix.CircuitBreaker] // hystrix.Flush makes new ones
	running  atomic.Int64
	probe    atomic.Uint64 // token of the probe that decides; 0: none
	gate     atomic.Int64  // no probe before this instant
	suspect  atomic.Int64  // when an error was reported or a call refused last; 0: not within the window
}

// window is how long hystrix-go remembers an error, and a second for its queue.
const window = int64(12 * time.Second)

// events are what hystrix-go calls the outcomes. It reads the slices later, on another goroutine.
var events = [...][]string{
	breaker.Success: {"success"},
	breaker.Failure: {"failure"},
	breaker.Timeout: {"timeout"},
}

var rejected = []string{"rejected"}

// Timeout is the deadline that the command's settings ask for; breaker.Middleware sets it.
func (c *command) Timeout() time.Duration { return c.settings.Load().Timeout }

// isOpen asks circuit whether it is open, unless it cannot be: nothing has failed here for a window. The
// question costs half as much as a whole call.
func (c *command) isOpen(circuit *hystrix.CircuitBreaker, t int64) bool {
	since := c.suspect.Load()
	if since == 0 {
		return false
	}
	if circuit.IsOpen() {
		return true
	}
	if t-since > window {
		c.suspect.CompareAndSwap(since, 0)
	}
	return false
}

func (c *command) acquire(t int64) (breaker.Permit, error) {
	circuit := c.circuit.Load()
	open := c.isOpen(circuit, t)
	if gate := c.gate.Load(); open && t <= gate {
		return c.refuse(time.Duration(gate - t))
	}
	if !c.enter() {
		c.suspect.Store(t)
		c.report(circuit, rejected, t, 0)
		return breaker.Permit{}, breaker.ErrMaxConcurrency
	}
	if !circuit.AllowRequest() { // it takes the probe, so it must be asked once, and last
		c.running.Add(-1)
		c.suspect.Store(t)
		return c.refuse(c.settings.Load().SleepWindow)
	}
	token := uint64(t) << 1
	if open {
		s := c.settings.Load()
		token |= 1
		c.probe.Store(token)
		c.gate.Store(t + int64(max(s.SleepWindow, s.Timeout)))
	}
	return breaker.PermitOf(c, token), nil
}

func (c *command) refuse(wait time.Duration) (breaker.Permit, error) {
	return breaker.Permit{}, &breaker.OpenError{Name: c.name, RetryAfter: max(wait, 1)}
}

func (c *command) enter() bool {
	limit := int64(c.settings.Load().MaxConcurrentRequests)
	for {
		n := c.running.Load()
		if n >= limit {
			return false
		}
		if c.running.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Finish ends the call of token. It is false when the outcome was late, or hystrix-go dropped it.
func (c *command) Finish(token uint64, o breaker.Outcome) bool {
	c.running.Add(-1)
	if o < breaker.Success || o > breaker.Neutral {
		o = breaker.Failure
	}
	circuit, t := c.circuit.Load(), now()
	failed := o == breaker.Failure || o == breaker.Timeout
	if token&1 != 0 {
		if !c.probe.CompareAndSwap(token, 0) {
			return false // another probe has taken over
		}
		c.gate.Store(0)
		if failed {
			c.gate.Store(t + int64(c.settings.Load().SleepWindow))
		}
	} else if c.isOpen(circuit, t) {
		return false // a success would close it, a failure would wait to reopen it
	}
	if o == breaker.Neutral {
		return true
	}
	if failed {
		c.suspect.Store(t)
	}
	start := int64(token >> 1)
	return c.report(circuit, events[o], start, time.Duration(t-start))
}

func (c *command) report(circuit *hystrix.CircuitBreaker, event []string, start int64, took time.Duration) bool {
	if circuit.ReportEvent(event, epoch.Add(time.Duration(start)), took) != nil {
		c.owner.dropped.Add(1)
		return false
	}
	return true
}
