package health

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

var (
	errHangs = errors.New("health: the check has not come back since its timeout")
	errNoEnd = errors.New("health: the check ended its goroutine")
)

// CheckOption changes how [Health.Add] runs a check.
type CheckOption func(*check)

// Optional is for what the instance can do without: failing it warns, and the instance stays ready.
func Optional() CheckOption { return func(c *check) { c.optional = true } }

// Every is the time from one run to the next. Zero or less: 10 s.
func Every(d time.Duration) CheckOption {
	return func(c *check) {
		if d > 0 {
			c.every = d
		}
	}
}

// Timeout is when the context of a run ends, and the run has failed. Zero or less: 2 s.
func Timeout(d time.Duration) CheckOption {
	return func(c *check) {
		if d > 0 {
			c.timeout = d
		}
	}
}

// FailAfter is how many runs in a row must fail before a check that has passed fails. Zero or less: 3. The
// first run of all decides by itself.
func FailAfter(n int) CheckOption {
	return func(c *check) {
		if n > 0 {
			c.failAfter = n
		}
	}
}

// The state of a check, but for Optional.
const (
	unknown int32 = iota
	passes
	fails
)

type check struct {
	name           string
	f              func(context.Context) error
	every, timeout time.Duration
	failAfter      int
	optional       bool
	onChange       func(string, Status, error)
	cancel         context.CancelFunc
	canceled       <-chan struct{}

	state atomic.Int32
	known chan struct{} // closed at the first result

	// Of run only.
	failures int
	hanging  <-chan struct{} // closed at the end of a run that is over its timeout
}

func (c *check) status() Status {
	switch {
	case c.state.Load() == passes:
		return Pass
	case c.optional:
		return Warn
	}
	return Fail
}

// run runs the check until ctx ends. There is at most one more goroutine, that in which f runs.
func (c *check) run(ctx context.Context) {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		c.record(err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// once is the result of one run, which it waits for no longer than the timeout.
func (c *check) once(ctx context.Context) error {
	if c.hanging != nil {
		select {
		case <-c.hanging:
			c.hanging = nil
		default:
			return errHangs
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err, done := errNoEnd, make(chan struct{}) // err is the run's until done is closed
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("health: the check panicked: %v", v)
			}
		}()
		err = c.f(ctx)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case <-done: // both at once: the result counts
		return err
	default:
		c.hanging = done
		return ctx.Err()
	}
}

// record counts a result.
func (c *check) record(err error) {
	was := c.state.Load()
	is := passes
	if err == nil {
		c.failures = 0
	} else if c.failures++; was != passes || c.failures >= c.failAfter {
		is = fails
	}
	c.state.Store(is)
	if was == unknown {
		close(c.known)
	}
	if is != was && c.onChange != nil {
		_ = safely(func() error { c.onChange(c.name, c.status(), err); return nil })
	}
}
