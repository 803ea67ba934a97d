package outage

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrAway is what [Ask] returns instead of waiting for a Redis that is known to be away.
var ErrAway = errors.New("it is away")

// A Guard asks Redis for requests that must not wait for one that is away.
type Guard struct {
	*Caller
	Group // a circuit for each key
}

// NewGuard is for client; see [For].
func NewGuard(client redis.UniversalClient, shortest, longest time.Duration) *Guard {
	return &Guard{Caller: NewCaller(client), Group: For(client, shortest, longest)}
}

// Ask is f, which calls Redis about key, within timeout; also while Redis is known to be away if anyway, which is for
// calls that no request waits for. redis.Nil is an answer, and when ctx ends Redis is not to blame.
func Ask[T any](ctx context.Context, g *Guard, key string, timeout time.Duration, anyway bool, f func(context.Context) (T, error)) (v T, err error) {
	circuit, probe := g.Of(key), anyway
	if circuit.Open() && !anyway {
		if probe = circuit.MayProbe(Now()); !probe {
			return v, ErrAway
		}
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v, err = Call(within, g.Caller, f)
	switch {
	case err == nil || errors.Is(err, redis.Nil):
		circuit.Heard(true, probe, 0)
	case ctx.Err() == nil:
		circuit.Heard(false, probe, Now())
	}
	return v, err
}
