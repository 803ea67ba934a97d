package idempotency

import (
	"context"
	"errors"
	"io"
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

// counter counts the commands of a client.
type counter struct{ n atomic.Int64 }

func (c *counter) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !strings.HasPrefix(cmd.Name(), "hello") && !strings.HasPrefix(cmd.Name(), "client") {
			c.n.Add(1)
		}
		return next(ctx, cmd)
	}
}

func (c *counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next // of the handshake
}

func TestAFirstCallTakesTwoRoundTripsAndAReplayOne(t *testing.T) {
	client := connect(t, rig.Redis(t).Addr)
	s := New(client, patient)
	h := engine(s, func(c *gin.Context) { c.String(200, "done") })
	send(h, "POST", "/run", "scripts-are-loaded", "")
	var n counter
	client.AddHook(&n)
	for want, key := range map[int64]string{2: "k", 1: "scripts-are-loaded", 0: ""} {
		n.n.Store(0)
		if send(h, "POST", "/run", key, ""); n.n.Load() != want {
			t.Errorf("key %q: %d round trips, want %d", key, n.n.Load(), want)
		}
	}
	client.ScriptFlush(t.Context())
	if w := send(h, "POST", "/run", "after-a-script-flush", ""); w.Code != 200 {
		t.Errorf("without its scripts: %d", w.Code)
	}
	if w := send(h, "POST", "/run", "k", ""); w.Header().Get("Idempotency-Replayed") != "true" {
		t.Error("a replay without its scripts")
	}
}

func TestRedisAwayIs503AndNoRequestWaitsLong(t *testing.T) {
	hung, gone, away := rig.Redis(t), rig.Redis(t), rig.Redis(t, "--requirepass", "secret")
	garbage := garbageServer(t)
	impatient := redis.NewClient(&redis.Options{Addr: hung.Addr}) // ignores the deadlines of contexts
	defer impatient.Close()
	o := Options{Timeout: 100 * time.Millisecond}
	open := o
	open.FailOpen = true
	hung.Hang()
	gone.Kill()
	loads, broken := rig.Redis(t, rig.SlowLoad...), rig.Redis(t)
	loads.Load()
	broken.BreakDisk()
	for name, client := range map[string]redis.UniversalClient{
		"hung": connect(t, hung.Addr), "hung, and no deadlines": impatient, "gone": connect(t, gone.Addr),
		"no password": connect(t, away.Addr), "garbage": connect(t, garbage), "no client": nil,
		"loading": connect(t, loads.Addr), "MISCONF": connect(t, broken.Addr),
		"READONLY": connect(t, rig.Redis(t, "--replicaof", "127.0.0.1", "1").Addr),
		"OOM":      connect(t, rig.Redis(t, "--maxmemory", "1").Addr),
	} {
		runs := 0
		handler := func(c *gin.Context) { runs++; c.String(200, "done %s %v", Key(c), Confirm(c)) }
		closed, opened := engine(New(client, o), handler), engine(New(client, open), handler)
		var slow int
		for range 10 {
			start := time.Now()
			wantProblem(t, send(closed, "POST", "/run", "k", ""), 503, "1")
			if w := send(opened, "POST", "/run", "k", ""); w.Code != 200 || w.Body.String() != "done k <nil>" {
				t.Errorf("%s: FailOpen answers %d %s", name, w.Code, w.Body)
			}
			switch d := time.Since(start); {
			case d > 2*time.Second: // of a busy machine; two calls of 100 ms each
				t.Errorf("%s: two requests took %v", name, d)
			case d > 90*time.Millisecond:
				slow++
			}
		}
		if runs != 10 || slow > 8 {
			t.Errorf("%s: %d runs, want 10; %d waited", name, runs, slow)
		}
	}
}

func garbageServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, strings.Repeat("HTTP/1.1 400 Bad Request\r\n\r\n", 3))
			}()
		}
	}()
	return l.Addr().String()
}

func TestAnAnswerIsGivenAndKeptWhenRedisGoesWhileTheHandlerRuns(t *testing.T) {
	server := rig.Redis(t)
	s := New(connect(t, server.Addr), Options{Lease: time.Second})
	runs := 0
	h := engine(s, func(c *gin.Context) {
		if runs++; runs == 1 {
			server.Hang()
		}
		c.String(200, "done")
	})
	if w := send(h, "POST", "/run", "k", ""); w.Code != 200 || w.Body.String() != "done" {
		t.Errorf("the client got %d %s", w.Code, w.Body)
	}
	wantProblem(t, send(h, "POST", "/run", "k", ""), 503, "1")
	server.Resume()
	rig.Poll(t, 20*time.Second, func() error {
		if s.unstored.Load() > 0 {
			return errors.New("it is not stored")
		}
		return nil
	})
	rig.Poll(t, 20*time.Second, func() error {
		if w := send(h, "POST", "/run", "k", ""); w.Header().Get("Idempotency-Replayed") != "true" {
			return errors.New(w.Body.String())
		}
		return nil
	})
	if runs != 1 {
		t.Errorf("%d runs, want 1", runs)
	}
}

func TestARunningCallPutsItsLockBackInARedisThatLostIt(t *testing.T) {
	server := rig.Redis(t)
	client := connect(t, server.Addr)
	s := New(client, Options{Lease: 2 * time.Second, Timeout: 2 * time.Second})
	began, end := make(chan struct{}), make(chan struct{})
	runs := 0
	h := engine(s, func(c *gin.Context) { runs++; close(began); <-end; c.String(200, "done") })
	var first sync.WaitGroup
	first.Go(func() { send(h, "POST", "/run", "k", "") })
	<-began
	server.Restart() // it is empty
	rig.Poll(t, 20*time.Second, func() error {
		if n, err := client.DBSize(t.Context()).Result(); n != 1 {
			return errors.Join(errors.New("no lock"), err)
		}
		return nil
	})
	wantProblem(t, send(h, "POST", "/run", "k", ""), 409, "1")
	close(end)
	first.Wait()
	if w := send(h, "POST", "/run", "k", ""); w.Header().Get("Idempotency-Replayed") != "true" || runs != 1 {
		t.Errorf("%d %s, %d runs", w.Code, w.Body, runs)
	}
}

func TestALockThatIsLostOverwritesNothing(t *testing.T) {
	client := connect(t, rig.Redis(t).Addr)
	s := New(client, patient)
	var deep *httptest.ResponseRecorder
	runs := 0
	var h *gin.Engine
	h = engine(s, func(c *gin.Context) {
		runs++
		n := runs
		if n == 1 {
			client.FlushAll(t.Context()) // as if it had expired
			deep = send(h, "POST", "/run", "k", "")
			r := runOf(c.Request.Context())
			r.mu.Lock()
			r.heard = time.Now().Add(-time.Hour)
			r.mu.Unlock()
			if err := Confirm(c); !errors.Is(err, ErrLost) || !errors.Is(context.Cause(c.Request.Context()), ErrLost) {
				t.Errorf("Confirm: %v; the context's cause: %v", err, context.Cause(c.Request.Context()))
			}
		}
		c.String(200, "run %d", n)
	})
	if w := send(h, "POST", "/run", "k", ""); w.Body.String() != "run 1" || w.Code != 200 {
		t.Errorf("the loser: %d %s", w.Code, w.Body)
	}
	if w := send(h, "POST", "/run", "k", ""); w.Body.String() != "run 2" || deep.Body.String() != "run 2" || w.Header().Get("Idempotency-Replayed") != "true" || runs != 2 {
		t.Errorf("the repeat got %s, want %s; %d runs", w.Body, deep.Body, runs)
	}
}

func TestALoserThatDoesNotKnowOverwritesNothing(t *testing.T) {
	client := connect(t, rig.Redis(t).Addr)
	s := New(client, patient)
	lock, other := s.newLock([32]byte{1}), s.newLock([32]byte{1})
	ctx := t.Context()
	if got, err := s.begin(ctx, "k", lock); got != locked || err != nil {
		t.Fatal(got, err)
	}
	if got, err := s.begin(ctx, "k", lock); got != locked || err != nil { // the client has lost the answer
		t.Errorf("the same call again: %q, %v", got, err)
	}
	client.Del(ctx, "k")
	if got, _ := s.begin(ctx, "k", other); got != locked {
		t.Fatal(got)
	}
	for _, record := range []string{lock, "", "result"} {
		if ours, err := s.settle(ctx, "k", lock, record, time.Minute); ours || err != nil {
			t.Errorf("%q: ours %v, %v", record, ours, err)
		}
	}
	for range 2 { // the second is the client's
		if ours, err := s.settle(ctx, "k", other, "result", time.Minute); !ours || err != nil {
			t.Errorf("the holder: ours %v, %v", ours, err)
		}
	}
}

func TestASilentHolderIsTakenForDeadAndALiveOneIsNot(t *testing.T) {
	client := connect(t, rig.Redis(t).Addr)
	s := New(client, Options{Timeout: 5 * time.Second})
	ctx := t.Context()
	dead := s.newLock([32]byte{1})
	if got, err := s.begin(ctx, "dead", dead); got != locked || err != nil {
		t.Fatal(got, err)
	}
	start := time.Now()
	if got, err := s.begin(ctx, "dead", s.newLock([32]byte{1})); got != locked || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if d := time.Since(start); d < s.o.Lease-50*time.Millisecond {
		t.Errorf("taken over after %v, want a lease", d)
	}
	slow := New(client, Options{Timeout: 5 * time.Second, Lease: 4 * time.Second})
	live := slow.newLock([32]byte{1})
	heard := time.Now()
	if got, err := slow.begin(ctx, "live", live); got != locked || err != nil {
		t.Fatal(got, err)
	}
	r := slow.newRun(ctx, "key", "live", live, heard)
	defer r.finish("")
	for range 6 { // its terms count, not those of who asks
		if got, err := s.begin(ctx, "live", s.newLock([32]byte{1})); got != stillRunning || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestALockExpiresAndAResponseToo(t *testing.T) {
	client := connect(t, rig.Redis(t).Addr)
	s := New(client, Options{TTL: time.Hour, Lock: time.Minute, Timeout: 5 * time.Second})
	life := func() time.Duration {
		keys := client.Keys(t.Context(), "*").Val()
		if len(keys) != 1 {
			t.Fatal(keys)
		}
		return client.PTTL(t.Context(), keys[0]).Val()
	}
	h := engine(s, func(c *gin.Context) {
		if d := life(); d > time.Minute || d < 50*time.Second {
			t.Errorf("the lock lives %v", d)
		}
		c.Status(200)
	})
	send(h, "POST", "/run", "k", "")
	if d := life(); d > time.Hour || d < 59*time.Minute {
		t.Errorf("the response lives %v", d)
	}
}

func TestALockIsRenewedWhileTheHandlerRuns(t *testing.T) {
	client := connect(t, rig.Redis(t).Addr)
	s := New(client, Options{Lock: 4 * time.Second, Lease: -1, Timeout: 5 * time.Second})
	h := engine(s, func(c *gin.Context) {
		last := time.Hour
		rig.Poll(t, 30*time.Second, func() error {
			now := client.PTTL(t.Context(), s.nameOf("", "k")).Val()
			if now <= 0 {
				t.Fatal("the lock is gone")
			}
			if last, now = now, last; now < last {
				return nil // it has grown
			}
			return errors.New("not renewed")
		})
		c.Status(200)
	})
	if w := send(h, "POST", "/run", "k", ""); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestARecordThatIsNotOursIsNeverTakenForAnAnswer(t *testing.T) {
	client := connect(t, rig.Redis(t).Addr)
	s := New(client, patient)
	h := engine(s, func(*gin.Context) { t.Error("it ran") })
	r := httptest.NewRequest(http.MethodPost, "/run", nil)
	fingerprint := fingerprintOf(r, nil)
	name := s.nameOf("", "k")
	client.Set(t.Context(), name, "d"+string(fingerprint[:])+"\xff", 0)
	wantProblem(t, send(h, "POST", "/run", "k", ""), 409, "")
	client.Set(t.Context(), name, "hello", 0)
	wantProblem(t, send(h, "POST", "/run", "k", ""), 422, "")
	client.Del(t.Context(), name)
	client.LPush(t.Context(), name, "hello")
	wantProblem(t, send(h, "POST", "/run", "k", ""), 503, "1")
}

func TestOnARedisClusterAKeyIsInOneSlot(t *testing.T) {
	nodes := rig.RedisCluster(t)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes.Addrs, ContextTimeoutEnabled: true})
	defer client.Close()
	o := patient
	o.Timeout = 10 * time.Second
	runs := 0
	h := engine(New(client, o), func(c *gin.Context) { runs++; c.String(200, Key(c)) })
	for i := range 50 {
		key := strings.Repeat("k", i+1)
		for _, replayed := range []string{"", "true"} {
			if w := send(h, "POST", "/run", key, ""); w.Code != 200 || w.Body.String() != key || w.Header().Get("Idempotency-Replayed") != replayed {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		}
	}
	if runs != 50 {
		t.Errorf("%d runs", runs)
	}
}
