package balancer

import (
	"context"
	"errors"
)

// Do calls fn with the address of an instance, for clients that are not HTTP. After an error that
// Options.Classify takes as a Failure, which by default is each but the caller's cancel, fn is called
// again with another instance under the policy of [Retry], so it must be safe to repeat. An answer that
// is not the instance's fault, such as "not found", should be a value of T, or Neutral by Classify. ctx of
// fn ends after Retry.PerTry. The error is fn's own after a single try, else it names every try.
func Do[T any](ctx context.Context, b *Balancer, service string, fn func(ctx context.Context, addr string) (T, error)) (T, error) {
	var zero T
	sel, err := b.Select(ctx, service)
	if err != nil {
		return zero, err
	}
	var t *tries // made when the first call has failed
	for {
		v, outcome, err := callOnce(ctx, sel, fn)
		if err == nil {
			return v, nil
		}
		if outcome != Failure {
			return v, err
		}
		if t == nil {
			t = newTries(ctx, sel)
		}
		t.fail(sel, err)
		again, ok := t.next()
		if !ok && len(t.failed) == 1 {
			return v, err
		}
		if !ok {
			return v, t.error()
		}
		sel = again
	}
}

// callOnce calls fn once, and reports how it went also when fn panics.
func callOnce[T any](ctx context.Context, sel Selection, fn func(context.Context, string) (T, error)) (v T, outcome Outcome, err error) {
	b := sel.node.service.b
	call := ctx
	if b.o.Retry.PerTry > 0 {
		var cancel context.CancelFunc
		call, cancel = context.WithTimeoutCause(ctx, b.o.Retry.PerTry, errPerTry)
		defer cancel()
	}
	outcome = Neutral // of a panic: it is the program's, not the instance's
	defer func() { sel.done(outcome, err) }()
	v, err = fn(call, sel.Addr())
	switch {
	case err == nil:
		outcome = Success
	case errors.Is(ctx.Err(), context.Canceled):
	default:
		outcome = b.o.Classify(nil, err)
	}
	return v, outcome, err
}
