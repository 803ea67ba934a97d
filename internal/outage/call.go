package outage

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// maxCalls of a Caller run at once on goroutines of their own; further ones wait.
const maxCalls = 128

// A Caller calls a client that may not give up at the deadline of a context.
type Caller struct {
	prompt bool
	slots  chan struct{}
}

// NewCaller is for client.
func NewCaller(client redis.UniversalClient) *Caller {
	return &Caller{prompt: Prompt(client), slots: make(chan struct{}, maxCalls)}
}

// Call is f(ctx), which calls the client, until ctx ends: here, or where the client ignores deadlines on a goroutine
// that may come back too late.
func Call[T any](ctx context.Context, c *Caller, f func(context.Context) (T, error)) (v T, err error) {
	if c.prompt {
		return f(ctx)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done(): // too many have not come back
		return v, ctx.Err()
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-c.slots }()
		v, err := f(ctx)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}
