package idempotency

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// scripted is a Redis that answers each script as it is told.
type scripted struct {
	redis.UniversalClient
	asked  atomic.Int64
	mu     sync.Mutex // held in answer
	answer func(n int64, args []any) (any, error)
}

func (c *scripted) EvalSha(ctx context.Context, _ string, _ []string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.answer(c.asked.Add(1), args)
	cmd.SetVal(v)
	cmd.SetErr(err)
	return cmd
}

func TestARepeatOfARunningCallWaitsALeaseAndAFourth(t *testing.T) {
	for lease, want := range map[time.Duration]time.Duration{
		0:                500 * time.Millisecond * 5 / 4,
		time.Minute:      longestWait,
		-1:               longestWait,
		time.Millisecond: firstPoll,
	} {
		synctest.Test(t, func(t *testing.T) {
			watched := time.Duration(-1)
			start := time.Now()
			client := &scripted{answer: func(_ int64, args []any) (any, error) {
				if args[2] == "1" && watched < 0 {
					watched = time.Since(start)
				}
				return stillRunning, nil
			}}
			s := New(client, Options{Lease: lease})
			got, err := s.begin(t.Context(), "name", "lock")
			if took := time.Since(start); got != stillRunning || err != nil || took < want || took > want+longestPoll {
				t.Errorf("lease %v: %q, %v after %v, want %v", lease, got, err, took, want)
			}
			if lease == 0 && (watched < 250*time.Millisecond || watched > 250*time.Millisecond+longestPoll) {
				t.Errorf("it watched for %v, want half a lease", watched)
			}
			if n := client.asked.Load(); n > 25 {
				t.Errorf("it asked %d times", n)
			}
		})
	}
}

func TestARepeatWatchesLongEnoughAlsoIfRedisIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		client := &scripted{answer: func(_ int64, args []any) (any, error) {
			if args[2] == "1" {
				return locked, nil // its holder is dead
			}
			if time.Since(start) > 200*time.Millisecond {
				time.Sleep(500 * time.Millisecond) // once
			}
			return stillRunning, nil
		}}
		if got, err := New(client, Options{Timeout: time.Second}).begin(t.Context(), "name", "lock"); got != locked || err != nil {
			t.Errorf("%q, %v: it left without the key of a dead holder", got, err)
		}
	})
}

func TestARedisThatGoesDuringTheWaitLeavesTheKeyRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		s := New(&scripted{answer: func(n int64, _ []any) (any, error) {
			if n > 2 {
				return nil, away
			}
			return stillRunning, nil
		}}, Options{FailOpen: true})
		if got, err := s.begin(t.Context(), "name", "lock"); got != stillRunning || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestNoMoreWaitThanMayWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(&scripted{answer: func(int64, []any) (any, error) { return stillRunning, nil }}, Options{})
		for range maxWaiting {
			go func() { _, _ = s.begin(t.Context(), "name", "lock") }()
		}
		synctest.Wait()
		start := time.Now()
		if got, _ := s.begin(t.Context(), "name", "lock"); got != stillRunning || time.Since(start) > 0 {
			t.Errorf("%q after %v", got, time.Since(start))
		}
		time.Sleep(longestWait)
		synctest.Wait()
		if n := s.waiting.Load(); n != 0 {
			t.Errorf("%d wait after all have gone", n)
		}
	})
}

func TestARunningCallIsRenewedAndConfirmsWithoutAskingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail error
		ours := int64(1)
		client := &scripted{answer: func(int64, []any) (any, error) { return ours, fail }}
		set := func(o int64, err error) {
			client.mu.Lock()
			defer client.mu.Unlock()
			ours, fail = o, err
		}
		s := New(client, Options{})
		r := s.newRun(t.Context(), "key", "name", "lock", time.Now())
		for range 100 {
			time.Sleep(10 * time.Millisecond)
			if err := r.confirm(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := client.asked.Load(); n != 8 {
			t.Errorf("in a second it asked %d times, want 8", n)
		}
		away := errors.New("away")
		set(1, away)
		time.Sleep(time.Second)
		if err := r.confirm(); !errors.Is(err, ErrRedis) || !errors.Is(err, away) || r.Err() != nil {
			t.Errorf("while Redis is away: %v, and the request's context %v", err, r.Err())
		}
		set(0, nil)
		<-r.Done()
		if err := r.confirm(); !errors.Is(err, ErrLost) || !errors.Is(context.Cause(r), ErrLost) {
			t.Errorf("of a lost key: %v, and the request ended for %v", err, context.Cause(r))
		}
		client.asked.Store(0)
		r.finish("result")
		time.Sleep(time.Minute)
		if client.asked.Load() != 0 {
			t.Error("it asks for a key that is lost")
		}
	})
}

func TestWhatRedisDoesNotTakeIsOfferedUntilTheLockIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		client := &scripted{answer: func(n int64, _ []any) (any, error) {
			if n < 5 {
				return nil, away
			}
			return int64(1), nil
		}}
		s := New(client, Options{})
		s.newRun(t.Context(), "key", "name", "lock", time.Now()).finish("result")
		time.Sleep(10 * time.Second)
		if n := client.asked.Load(); n != 5 || s.unstored.Load() != 0 {
			t.Errorf("asked %d times, %d are left", n, s.unstored.Load())
		}
		client.asked.Store(-1 << 30)
		for range maxUnstored + 1 {
			s.newRun(t.Context(), "key", "name", "lock", time.Now()).finish("result")
		}
		if n := s.unstored.Load(); n != maxUnstored {
			t.Errorf("%d are kept", n)
		}
		time.Sleep(31 * time.Second)
		if s.unstored.Load() != 0 {
			t.Error("it never ends")
		}
	})
}
