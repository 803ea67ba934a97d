package outage

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestACallEndsWithItsContextWhateverTheClientDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCaller(nil)
		hang := make(chan struct{})
		for range maxCalls + 1 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			_, err := Call(ctx, c, func(context.Context) (int, error) { <-hang; return 1, nil })
			if d := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || d != time.Second {
				t.Fatalf("%v after %v, want the deadline", err, d)
			}
			cancel()
		}
		close(hang)
		synctest.Wait()
		if v, err := Call(t.Context(), c, func(context.Context) (int, error) { return 7, nil }); v != 7 || err != nil || len(c.slots) > 1 {
			t.Errorf("when all are back: %d, %v, %d slots taken", v, err, len(c.slots))
		}
	})
}

func TestMoreCallsThanSlotsAllRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCaller(nil)
		var ran atomic.Int64
		for range 10 * maxCalls {
			go func() {
				_, _ = Call(t.Context(), c, func(context.Context) (int, error) {
					time.Sleep(time.Millisecond)
					return int(ran.Add(1)), nil
				})
			}()
		}
		time.Sleep(time.Second)
		if n := ran.Load(); n != 10*maxCalls {
			t.Errorf("%d calls ran, want all", n)
		}
	})
}

func TestAClientWithDeadlinesIsCalledOnTheCallersGoroutine(t *testing.T) {
	for _, client := range []redis.UniversalClient{
		redis.NewClient(&redis.Options{ContextTimeoutEnabled: true}),
		redis.NewClusterClient(&redis.ClusterOptions{ContextTimeoutEnabled: true}),
		redis.NewRing(&redis.RingOptions{ContextTimeoutEnabled: true}),
	} {
		c := NewCaller(client)
		for range 2 * maxCalls { // no slot is taken
			if _, err := Call(t.Context(), c, func(context.Context) (int, error) { return len(c.slots), nil }); err != nil || len(c.slots) > 0 {
				t.Fatal("a slot was taken")
			}
		}
		_ = client.Close()
	}
}
