package cache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

func TestAThousandCallersLoadOnce(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[string]{Timeout: patient})
	s := &source{v: "v"}
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() { expectAny(t, c, "1", s.load, "v") })
	}
	all.Wait()
	if n := s.calls.Load(); n != 1 {
		t.Errorf("%d loads, want 1", n)
	}
}

func expectAny(t *testing.T, c *Cache[string], key string, load func(context.Context) (string, error), want string) {
	t.Helper()
	if v, _, err := c.Get(t.Context(), key, load); v != want || err != nil {
		t.Errorf("Get = %q, %v; want %q", v, err, want)
	}
}

func TestAnotherLoadsWhenTheOneWhoLoadsGoesAwayOrPanics(t *testing.T) {
	for name, end := range map[string]func(context.Context) (string, error){
		"goes away": func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() },
		"panics":    func(ctx context.Context) (string, error) { <-ctx.Done(); panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := New[string](nil, Options[string]{})
				ctx, cancel := context.WithCancel(t.Context())
				panicked := make(chan any, 1)
				go func() {
					defer func() { panicked <- recover() }()
					_, _, _ = c.Get(ctx, "1", end)
				}()
				synctest.Wait()
				s := &source{v: "v"}
				for range 10 {
					go expectAny(t, c, "1", s.load, "v")
				}
				synctest.Wait()
				cancel()
				synctest.Wait()
				if v := <-panicked; (v != nil) != (name == "panics") {
					t.Errorf("the caller of the loader recovered %v", v)
				}
				if n := s.calls.Load(); n < 1 || len(c.flights) != 0 || len(c.loads) != 0 {
					t.Errorf("%d loads, %d flights, %d slots are left", n, len(c.flights), len(c.loads))
				}
			})
		})
	}
}

func TestThoseWhoWaitShareWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New[string](nil, Options[string]{Loads: 1})
		ten := func(key string, want error, took time.Duration) (loads int64) {
			t.Helper()
			var calls atomic.Int64
			var all sync.WaitGroup
			start := time.Now()
			for range 10 {
				all.Go(func() {
					_, _, err := c.Get(t.Context(), key, func(context.Context) (string, error) {
						calls.Add(1)
						time.Sleep(time.Second)
						return "", errDown
					})
					if d := time.Since(start); !errors.Is(err, want) || d != took {
						t.Errorf("%s: %v after %v, want %v after %v", key, err, d, want, took)
					}
				})
			}
			all.Wait()
			return calls.Load()
		}
		if n := ten("1", errDown, time.Second); n != 1 {
			t.Errorf("%d loads of what fails, want 1", n)
		}
		stop := make(chan struct{})
		go func() {
			_, _, _ = c.Get(t.Context(), "2", func(context.Context) (string, error) { <-stop; return "", nil })
		}()
		synctest.Wait()
		if n := ten("3", ErrBusy, 50*time.Millisecond); n != 0 {
			t.Errorf("%d loads without a place", n)
		}
		close(stop)
	})
}

func TestAWaitingCallersContextEndsItsGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New[string](nil, Options[string]{})
		stop := make(chan struct{})
		go func() {
			_, _, _ = c.Get(t.Context(), "1", func(context.Context) (string, error) { <-stop; return "v", nil })
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := c.Get(ctx, "1", (&source{}).load); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get = %v, want the deadline", err)
		}
		close(stop)
	})
}
