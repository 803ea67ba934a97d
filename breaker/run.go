package breaker

import (
	"context"
	"errors"
)

// errTimeout is the cause of a context that Options.Timeout ended. net/http returns causes as errors, so
// it is what its callers expect of a deadline too: a context.DeadlineExceeded, and a net.Error.
var errTimeout error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string   { return "breaker: timeout" }
func (timeoutError) Unwrap() error   { return context.DeadlineExceeded }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// Do runs fn on the caller's goroutine, or returns the error of [Breaker.Allow]. nil is Success;
// context.Canceled of ctx is Neutral; a deadline set by Timeout is Timeout, also when fn overran it and
// returned nil; any other error (a deadline of the caller's own too), a panic (passed on) or Goexit is
// Failure. The error of fn is returned as it is.
func (b *Breaker) Do(ctx context.Context, fn func(context.Context) error) error {
	p, err := b.Allow()
	if err != nil {
		return err
	}
	outcome := Failure // unless fn returns
	defer func() { p.Done(outcome) }()
	inner := ctx
	if b.o.Timeout > 0 {
		var cancel context.CancelFunc
		inner, cancel = context.WithTimeoutCause(ctx, b.o.Timeout, errTimeout)
		defer cancel()
	}
	err = fn(inner)
	outcome = outcomeOf(ctx, inner, err)
	return err
}

// outcomeOf classifies err, which a call with the context inner, made from ctx, returned.
func outcomeOf(ctx, inner context.Context, err error) Outcome {
	switch {
	case timedOut(ctx, inner):
		return Timeout
	case err == nil:
		return Success
	case errors.Is(ctx.Err(), context.Canceled) &&
		(errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))):
		return Neutral
	}
	return Failure
}

// timedOut reports whether inner, made from ctx, ended by its own circuit's Timeout, and not by that of
// a circuit around it.
func timedOut(ctx, inner context.Context) bool {
	return inner != ctx && errors.Is(context.Cause(inner), errTimeout) && !errors.Is(context.Cause(ctx), errTimeout)
}

// Run is Do with a value and a fallback, which gets ctx without the Timeout and the error: an
// [*OpenError], ErrMaxConcurrency or fn's own. What the fallback does is in no count. A nil fallback
// returns the error.
func Run[T any](ctx context.Context, b *Breaker, fn func(context.Context) (T, error), fallback func(context.Context, error) (T, error)) (T, error) {
	var v T
	err := b.Do(ctx, func(ctx context.Context) (err error) {
		v, err = fn(ctx)
		return err
	})
	if err != nil && fallback != nil {
		return fallback(ctx, err)
	}
	return v, err
}
