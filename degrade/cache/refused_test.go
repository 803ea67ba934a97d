package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

func TestARedisThatStoresNothingIsToldAndLoadsAreBounded(t *testing.T) {
	r := rig.Redis(t)
	var mu sync.Mutex
	var told error
	c := New(clientOf(t, r.Addr), Options[string]{Timeout: patient, Loads: 2, OnOrigin: func(_ string, _ Origin, err error) {
		mu.Lock()
		defer mu.Unlock()
		told = err
	}})
	expect(t, c, "kept", &source{v: "v"}, "v", Miss, nil)
	r.BreakDisk()
	expect(t, c, "1", &source{v: "v"}, "v", Miss, nil)
	expect(t, c, "1", &source{v: "v"}, "v", Miss, nil)
	if !errors.Is(told, ErrRedis) || !strings.Contains(told.Error(), "MISCONF") {
		t.Errorf("told %v, want ErrRedis and why", told)
	}
	expect(t, c, "kept", &source{}, "v", Hit, nil)

	var now, most atomic.Int64
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			expectAny(t, c, fmt.Sprint(i), func(context.Context) (string, error) {
				n := now.Add(1)
				defer now.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(time.Millisecond) // the others come
				return "v", nil
			}, "v")
		})
	}
	all.Wait()
	expect(t, c, "kept", &source{}, "v", Hit, nil) // what refuses writes is still read
	if most.Load() > 2 {
		t.Errorf("%d loads at once, want 2 at most", most.Load())
	}

	r.MendDisk()
	expect(t, c, "1", &source{v: "v"}, "v", Miss, nil)
	expect(t, c, "1", &source{}, "v", Hit, nil)
	expect(t, c, "2", &source{v: "v"}, "v", Miss, nil)
	if told != nil {
		t.Errorf("told %v of a Redis that stores again", told)
	}
}

func TestAListenerThatPanicsInTheBackgroundEndsNothing(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	told := make(chan error, 10)
	c := New(client, Options[string]{Timeout: patient, OnOrigin: func(_ string, _ Origin, err error) {
		if err != nil {
			told <- err
			panic("a bug of the listener's")
		}
	}})
	expect(t, c, "1", &source{v: "old"}, "old", Miss, nil)
	expire(t, client, c, "1")
	expect(t, c, "1", &source{err: errDown}, "old", Stale, nil)
	if err := <-told; !errors.Is(err, errDown) {
		t.Errorf("told %v", err)
	}
	rig.Poll(t, patient, func() error {
		if len(c.renewals) > 0 {
			return errors.New("its place is not free again")
		}
		return nil
	})
}

func TestWhatIsLoadedForAClientThatHasGoneIsStored(t *testing.T) {
	c := New(clientOf(t, rig.Redis(t).Addr), Options[string]{Timeout: patient})
	ctx, cancel := context.WithCancel(t.Context())
	_, _, _ = c.Get(ctx, "1", func(context.Context) (string, error) {
		cancel() // as a deadline that the loader does not heed
		return "v", nil
	})
	expect(t, c, "1", &source{}, "v", Hit, nil)
}

func TestALeaderAsksRedisOnceMoreForWhatAnotherHasJustLoaded(t *testing.T) {
	c := New(clientOf(t, rig.Redis(t).Addr), Options[string]{Timeout: patient})
	expect(t, c, "there", &source{v: "v"}, "v", Miss, nil)
	expect(t, c, "absent", &source{err: ErrNotFound}, "", Miss, ErrNotFound)
	s := &source{v: "again"}
	for key, want := range map[string]error{"there": nil, "absent": ErrNotFound} {
		if _, err := c.load(t.Context(), wanted[string]{key: key, load: s.load}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", key, err, want)
		}
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("%d loads, want none", n)
	}
}

// looks is a hook as tracers have: it looks into the context when the call is over.
type looks struct{ saw chan any }

func (looks) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}
func (looks) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (l looks) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if cmds[0].Name() == "get" {
			l.saw <- ctx.Value("request")
		}
		return err
	}
}

func TestAClientThatIgnoresDeadlinesDoesNotSeeTheGinContextOfAnotherRequest(t *testing.T) {
	r := rig.Redis(t)
	client := redis.NewClient(&redis.Options{Addr: r.Addr, MaxRetries: -1, ReadTimeout: patient})
	defer client.Close()
	hook := looks{make(chan any, 10)}
	client.AddHook(hook)
	c := New(client, Options[string]{})
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.GET("/:n", func(g *gin.Context) {
		g.Set("request", g.Param("n"))
		if g.Param("n") == "1" {
			expectAny(t, c, "1", func(context.Context) (string, error) { return "w", nil }, "w")
			_, _, _ = c.Get(g, "1", func(context.Context) (string, error) { return "w", nil })
		}
	})
	r.Hang()
	for n := range 3 {
		e.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, fmt.Sprint("/", n), nil))
	}
	r.Resume()
	for range 2 {
		if saw := <-hook.saw; saw != nil {
			t.Errorf("the client sees request %v", saw)
		}
	}
}
