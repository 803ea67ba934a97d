package outage

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestAskDoesNotWaitForARedisThatIsKnownToBeAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard(nil, time.Minute, time.Minute)
		hang := func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }
		well := func(context.Context) (int, error) { return 7, nil }
		for range Tolerated {
			if _, err := Ask(t.Context(), g, "k", time.Second, false, hang); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("Ask = %v, want the deadline", err)
			}
		}
		start := time.Now()
		if _, err := Ask(t.Context(), g, "k", time.Second, false, well); !errors.Is(err, ErrAway) || time.Since(start) != 0 {
			t.Errorf("Ask = %v after %v, want ErrAway at once", err, time.Since(start))
		}
		if v, err := Ask(t.Context(), g, "k", time.Second, true, well); v != 7 || err != nil || g.Of("k").Open() {
			t.Errorf("anyway: %d, %v", v, err)
		}
	})
}

func TestNeitherNilNorACallerThatLeavesIsAFailureOfRedis(t *testing.T) {
	g := NewGuard(nil, time.Minute, time.Minute)
	left, leave := context.WithCancel(t.Context())
	leave()
	for range 2 * Tolerated {
		_, _ = Ask(t.Context(), g, "k", time.Second, false, func(context.Context) (int, error) { return 0, redis.Nil })
		_, _ = Ask(left, g, "k", time.Second, false, func(ctx context.Context) (int, error) { return 0, ctx.Err() })
	}
	if g.Of("k").Open() {
		t.Error("the circuit is open")
	}
}
