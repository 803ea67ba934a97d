package balancer

import (
	"context"
	"errors"
)

// Done reports how the call went: nil, or an error, which is a Failure ([context.DeadlineExceeded] too);
// [context.Canceled] is Neutral. It must be called exactly once.
func (s Selection) Done(err error) {
	switch {
	case err == nil:
		s.done(Success, nil)
	case errors.Is(err, context.Canceled):
		s.done(Neutral, nil)
	default:
		s.done(Failure, err)
	}
}

func (s Selection) done(o Outcome, cause error) {
	s.report(o, cause)
	s.end()
}

// end takes the call off the node. A response whose body is still read has been reported, but has not
// ended.
func (s Selection) end() { s.node.calls.Add(completed) }

// report says what the call tells of the instance.
func (s Selection) report(o Outcome, cause error) {
	n := s.node
	switch o {
	case Success:
		if n.fails.Load() != 0 { // a load is cheaper than a store that every core sees
			n.fails.Store(0)
		}
		if s.trial {
			n.proved()
		}
	case Failure:
		n.failed.Add(1)
		if fails, limit := n.fails.Add(1), n.service.b.o.Ejection.Consecutive; limit > 0 && fails >= int64(limit) {
			n.service.eject(n, cause)
		}
	case Neutral:
		return
	}
	if s.start != 0 {
		s.measure(o)
	}
}

func (s Selection) measure(o Outcome) {
	n := s.node
	now := n.service.b.now()
	ns, at := float32(now-s.start), stamp(now)
	if o == Failure {
		n.failing.Store(max(at, 1))
		if known := n.service.latency(n, at); known == 0 || ns < known {
			return // that it failed fast does not make it fast
		}
	}
	n.observe(ns, at)
}
