package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

// patient is a Timeout for tests that are not about it.
const patient = 5 * time.Second

var errDown = errors.New("the database is down")

func clientOf(tb testing.TB, addr string) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// A source counts the calls of its load.
type source struct {
	calls atomic.Int64
	v     string
	err   error
}

func (s *source) load(context.Context) (string, error) {
	s.calls.Add(1)
	return s.v, s.err
}

// expect fails the test unless a Get is as given.
func expect(t *testing.T, c *Cache[string], key string, s *source, want string, from Origin, wantErr error) {
	t.Helper()
	v, o, err := c.Get(t.Context(), key, s.load)
	if v != want || o != from || !errors.Is(err, wantErr) {
		t.Errorf("Get(%s) = %q, %v, %v; want %q, %v, %v", key, v, o, err, want, from, wantErr)
	}
}

func unknown(string) (string, bool) { return "unknown", true }

func TestAMissIsLoadedOnceAndThenAHit(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	s := &source{v: "ann"}
	expect(t, New(client, Options[string]{Timeout: patient}), "1", s, "ann", Miss, nil)
	expect(t, New(client, Options[string]{Timeout: patient}), "1", s, "ann", Hit, nil) // another instance
	if n := s.calls.Load(); n != 1 {
		t.Errorf("%d loads, want 1", n)
	}
	c := New(client, Options[string]{Timeout: patient, Prefix: "other:"})
	expect(t, c, "1", &source{v: "bob"}, "bob", Miss, nil)
}

func TestWhatIsStoredLivesForTTLWithJitterAndStale(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[string]{Timeout: patient, TTL: 100 * time.Second, Stale: 1000 * time.Second})
	lives := make(map[int64]bool)
	for i := range 50 {
		key := fmt.Sprint(i)
		expect(t, c, key, &source{v: "v"}, "v", Miss, nil)
		left := client.PTTL(t.Context(), key).Val()
		if left < 1090*time.Second || left > 1100*time.Second {
			t.Errorf("it lives for %v, want 1095 to 1100 s", left)
		}
		lives[int64(left/(100*time.Millisecond))] = true
	}
	if len(lives) < 10 {
		t.Errorf("50 values have %d lives: no jitter", len(lives))
	}
}

// expire makes the value of key as old as TTL.
func expire(t *testing.T, client *redis.Client, c *Cache[string], key string) {
	t.Helper()
	if !client.PExpire(t.Context(), c.o.Prefix+key, c.o.Stale).Val() {
		t.Fatalf("there is no %s", key)
	}
}

func TestAnExpiredValueIsServedWhileOneRenewsIt(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[string]{Timeout: patient})
	expect(t, c, "1", &source{v: "old"}, "old", Miss, nil)
	expire(t, client, c, "1")

	begun, goOn := make(chan struct{}), make(chan struct{})
	var renewals atomic.Int64
	load := func(context.Context) (string, error) {
		renewals.Add(1)
		close(begun) // a second one would panic
		<-goOn
		return "new", t.Context().Err()
	}
	for range 10 {
		if v, o, err := c.Get(t.Context(), "1", load); v != "old" || o != Stale || err != nil {
			t.Errorf("Get = %q, %v, %v; want what there is", v, o, err)
		}
	}
	<-begun
	close(goOn)
	rig.Poll(t, patient, func() error {
		if v, o, _ := c.Get(t.Context(), "1", load); v != "new" || o != Hit {
			return fmt.Errorf("Get = %q, %v", v, o)
		}
		return nil
	})
	if n := renewals.Load(); n != 1 {
		t.Errorf("%d renewals, want 1", n)
	}
}

func TestAnExpiredValueIsServedWhenTheLoaderFailsAndThatIsTold(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	told := make(chan error, 100)
	c := New(client, Options[string]{Timeout: patient, OnOrigin: func(_ string, o Origin, err error) {
		if o == Stale && err != nil {
			told <- err
		}
	}})
	for _, load := range []func(context.Context) (string, error){
		func(context.Context) (string, error) { return "", errDown },
		func(context.Context) (string, error) { panic(errDown.Error()) },
	} {
		key := fmt.Sprintf("%p", load)
		expect(t, c, key, &source{v: "old"}, "old", Miss, nil)
		expire(t, client, c, key)
		for range 5 {
			if v, o, err := c.Get(t.Context(), key, load); v != "old" || o != Stale || err != nil {
				t.Errorf("Get = %q, %v, %v; want what there is", v, o, err)
			}
			if err := <-told; !strings.Contains(err.Error(), errDown.Error()) {
				t.Errorf("told %v", err)
			}
			c.mu.Lock()
			clear(c.resting) // or the next would come in a second
			c.mu.Unlock()
		}
	}
}

func TestARenewalThatFailedRestsForASecond(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	told := make(chan struct{}, 100)
	c := New(client, Options[string]{Timeout: patient, OnOrigin: func(_ string, _ Origin, err error) {
		if err != nil {
			told <- struct{}{}
		}
	}})
	expect(t, c, "1", &source{v: "old"}, "old", Miss, nil)
	expire(t, client, c, "1")
	s := &source{err: errDown}
	expect(t, c, "1", s, "old", Stale, nil)
	<-told
	for range 100 {
		expect(t, c, "1", s, "old", Stale, nil)
	}
	if n := s.calls.Load(); n > 2 { // 100 Gets may have taken more than a second
		t.Errorf("%d renewals, want 1", n)
	}
	rig.Poll(t, patient, func() error {
		_, _, _ = c.Get(t.Context(), "1", s.load)
		if s.calls.Load() < 3 {
			return errors.New("it is never renewed again")
		}
		return nil
	})
}

func TestNotFoundIsRememberedAndHasNoDefault(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[string]{Timeout: patient, Default: unknown})
	s := &source{err: fmt.Errorf("user 7: %w", ErrNotFound)}
	expect(t, c, "7", s, "", Miss, ErrNotFound)
	expect(t, c, "7", s, "", Hit, ErrNotFound)
	if n := s.calls.Load(); n != 1 {
		t.Errorf("%d loads, want 1", n)
	}
	if left := client.PTTL(t.Context(), "7").Val(); left <= 0 || left > 5*time.Second {
		t.Errorf("it is remembered for %v, want 5 s", left)
	}
	c = New(client, Options[string]{Timeout: patient, Prefix: "p:", Negative: -1})
	expect(t, c, "7", s, "", Miss, ErrNotFound)
	expect(t, c, "7", s, "", Miss, ErrNotFound)
}

func TestALoaderThatFailsGetsTheDefaultOrItsError(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	s := &source{err: errDown}
	expect(t, New(client, Options[string]{Timeout: patient, Default: unknown}), "1", s, "unknown", Default, nil)
	expect(t, New(client, Options[string]{Timeout: patient}), "1", s, "", Default, errDown)
	expect(t, New(client, Options[string]{Timeout: patient}), "2", &source{v: "x"}, "x", Miss, nil)
	if _, _, err := New(client, Options[string]{Timeout: patient}).Get(t.Context(), "3", nil); !errors.Is(err, errNoLoader) {
		t.Errorf("without a loader: %v", err)
	}
}

func TestEachGetIsToldOnce(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	type call struct {
		key    string
		origin Origin
		err    error
	}
	var told []call
	o := Options[string]{Timeout: patient, OnOrigin: func(key string, o Origin, err error) { told = append(told, call{key, o, err}) }}
	c := New(client, o)
	well, down, absent := &source{v: "v"}, &source{err: errDown}, &source{err: ErrNotFound}
	expect(t, c, "1", well, "v", Miss, nil)
	expect(t, c, "1", well, "v", Hit, nil)
	expect(t, c, "2", absent, "", Miss, ErrNotFound)
	expect(t, c, "2", absent, "", Hit, ErrNotFound)
	expect(t, c, "3", down, "", Default, errDown)
	o.Default = unknown
	expect(t, New(client, o), "3", down, "unknown", Default, nil)
	want := []call{{"1", Miss, nil}, {"1", Hit, nil}, {"2", Miss, nil}, {"2", Hit, nil}, {"3", Default, errDown}, {"3", Default, errDown}}
	if !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

func TestWhileRedisIsAwayLoadsAreBoundedAndTheRestGetTheDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New[string](nil, Options[string]{Loads: 3, Default: unknown})
		var now, most, defaults atomic.Int64
		var all sync.WaitGroup
		start := time.Now()
		for i := range 100 {
			all.Go(func() {
				_, o, err := c.Get(t.Context(), fmt.Sprint(i), func(context.Context) (string, error) {
					most.Store(max(most.Load(), now.Add(1)))
					defer now.Add(-1)
					time.Sleep(time.Second)
					return "v", nil
				})
				if err != nil {
					t.Error(err)
				}
				if o == Default {
					defaults.Add(1)
					if d := time.Since(start); d != 50*time.Millisecond {
						t.Errorf("a default after %v, want Timeout", d)
					}
				}
			})
		}
		all.Wait()
		if most.Load() != 3 || defaults.Load() != 97 {
			t.Errorf("%d loads at once, %d defaults; want 3, 97", most.Load(), defaults.Load())
		}
		if _, _, err := New[string](nil, Options[string]{}).Get(t.Context(), "k", (&source{v: "v"}).load); err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutADefaultALoadThatCannotBeginIsErrBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New[string](nil, Options[string]{Loads: 1})
		stop := make(chan struct{})
		go func() {
			_, _, _ = c.Get(t.Context(), "1", func(context.Context) (string, error) { <-stop; return "", nil })
		}()
		synctest.Wait()
		if _, _, err := c.Get(t.Context(), "2", (&source{}).load); !errors.Is(err, ErrBusy) {
			t.Errorf("Get = %v, want ErrBusy", err)
		}
		close(stop)
	})
}

func TestGetOutlivesARedisThatIsKilledHungAndRestarted(t *testing.T) {
	r := rig.Redis(t)
	for name, client := range map[string]redis.UniversalClient{
		"a client with deadlines": redis.NewClient(&redis.Options{Addr: r.Addr, ContextTimeoutEnabled: true}),
		"a client without":        redis.NewClient(&redis.Options{Addr: r.Addr}),
	} {
		t.Run(name, func(t *testing.T) {
			defer client.Close()
			c := New(client, Options[string]{Prefix: name, Default: unknown})
			s := &source{v: "v"}
			slowest := time.Duration(0)
			get := func(times int) {
				t.Helper()
				for range times {
					start := time.Now()
					expectAny(t, c, "1", s.load, "v")
					slowest = max(slowest, time.Since(start))
				}
			}
			back := func() {
				t.Helper()
				rig.Poll(t, patient, func() error {
					if _, o, _ := c.Get(t.Context(), "1", s.load); o != Hit {
						return fmt.Errorf("origin %v", o)
					}
					return nil
				})
			}
			back()
			r.Hang()
			get(50)
			r.Resume()
			back()
			r.Kill()
			get(50)
			if !c.guard.Of(name + "1").Open() {
				t.Error("after 50 failures each Get still asks a Redis that is away")
			}
			r.Restart()
			back()
			if slowest > 2*time.Second { // Timeout is 50 ms; a busy machine may need more, but go-redis' own would be 3 s and more
				t.Errorf("a Get took %v", slowest)
			}
		})
	}
}

func TestGarbageFromRedisIsNoAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	c := New(clientOf(t, l.Addr().String()), Options[string]{Timeout: patient})
	var told error
	c.o.OnOrigin = func(_ string, _ Origin, err error) { told = err }
	expect(t, c, "1", &source{v: "v"}, "v", Miss, nil)
	if !errors.Is(told, ErrRedis) {
		t.Errorf("told %v, want ErrRedis", told)
	}
}

func TestARecordThatCannotBeReadIsLoadedAnew(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[string]{Timeout: patient})
	for _, record := range []string{"", "v", "v{", "x", "\x00", "vnull and void"} {
		client.Set(t.Context(), "1", record, time.Hour)
		expect(t, c, "1", &source{v: "v"}, "v", Miss, nil)
		expect(t, c, "1", &source{}, "v", Hit, nil)
	}
	client.Del(t.Context(), "1")
	client.LPush(t.Context(), "1", "not a string")
	expect(t, c, "1", &source{v: "v"}, "v", Miss, nil)
}

func TestAValueThatCannotBeEncodedIsServedAndNotStored(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[func()]{Timeout: patient})
	for range 2 {
		v, o, err := c.Get(t.Context(), "1", func(context.Context) (func(), error) { return func() {}, nil })
		if v == nil || o != Miss || err != nil {
			t.Errorf("Get = %v, %v, %v", v == nil, o, err)
		}
	}
}

func TestDeleteHasTheNextGetLoadAnew(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[string]{Timeout: patient})
	expect(t, c, "1", &source{v: "old"}, "old", Miss, nil)
	expect(t, c, "2", &source{err: ErrNotFound}, "", Miss, ErrNotFound)
	if err := c.Delete(t.Context(), "1", "2", "3"); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "1", &source{v: "new"}, "new", Miss, nil)
	expect(t, c, "2", &source{v: "found"}, "found", Miss, nil)
	if err := c.Delete(t.Context()); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	if err := New[string](nil, Options[string]{}).Delete(t.Context(), "1"); !errors.Is(err, ErrRedis) {
		t.Errorf("without Redis: %v, want ErrRedis", err)
	}
}

func TestALoadThatRunsDuringDeleteIsNotStored(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	c := New(client, Options[string]{Timeout: patient})
	v, _, err := c.Get(t.Context(), "1", func(ctx context.Context) (string, error) {
		if err := c.Delete(ctx, "1"); err != nil {
			t.Error(err)
		}
		expect(t, c, "1", &source{v: "new"}, "new", Miss, nil) // who comes after the Delete does not get the old one
		return "old", nil
	})
	if v != "old" || err != nil {
		t.Errorf("Get = %q, %v", v, err)
	}
	expect(t, c, "1", &source{v: "newer"}, "new", Hit, nil)
}

func TestKeysOfARedisClusterMayBeOnSeveralNodes(t *testing.T) {
	nodes := rig.RedisCluster(t)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes.Addrs})
	defer client.Close()
	c := New[string](client, Options[string]{Timeout: patient})
	var keys []string
	for i := range 50 {
		keys = append(keys, fmt.Sprint(i))
		expect(t, c, keys[i], &source{v: "v"}, "v", Miss, nil)
		expect(t, c, keys[i], &source{}, "v", Hit, nil)
	}
	if err := c.Delete(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
	expect(t, c, keys[0], &source{v: "w"}, "w", Miss, nil)
}
