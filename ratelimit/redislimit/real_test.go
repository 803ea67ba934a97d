package redislimit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
	"github.com/highball-go/highball/ratelimit"
)

// A decision on a machine with few processors that are busy takes its time: where a test is not about
// Timeout, this is it.
const patient = 2 * time.Second

func clientOf(tb testing.TB, addr string) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func limiter(tb testing.TB, c redis.UniversalClient, l ratelimit.Limit, o Options) *Limiter {
	tb.Helper()
	lim := New(c, l, o)
	tb.Cleanup(func() { _ = lim.Close() })
	return lim
}

func allow(tb testing.TB, l *Limiter, key string, n int) ratelimit.Decision {
	tb.Helper()
	d, err := l.AllowN(context.Background(), key, n)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// admitted asks so many times for a token, and counts.
func admitted(tb testing.TB, l *Limiter, key string, times int) (n int) {
	tb.Helper()
	for range times {
		if allow(tb, l, key, 1).Allowed {
			n++
		}
	}
	return n
}

func TestInstancesShareABucket(t *testing.T) {
	r := rig.Redis(t)
	for name, lease := range map[string]time.Duration{"leases": 0, "no leases": -1} {
		t.Run(name, func(t *testing.T) {
			o := Options{Prefix: name, Lease: lease, Timeout: patient}
			limit := ratelimit.Every(time.Hour, 50, 50)
			a, b := limiter(t, clientOf(t, r.Addr), limit, o), limiter(t, clientOf(t, r.Addr), limit, o)
			got := 0
			for range 100 {
				got += admitted(t, a, "k", 1) + admitted(t, b, "k", 1)
			}
			if got != 50 {
				t.Errorf("%d of 200 admitted, want 50", got)
			}
		})
	}
}

func TestADecisionExplainsItself(t *testing.T) {
	c, limit, o := clientOf(t, rig.Redis(t).Addr), ratelimit.Every(time.Hour, 4, 4), Options{Timeout: patient, Lease: -1}
	l, other := limiter(t, c, limit, o), limiter(t, c, limit, o)
	first, denied := allow(t, l, "k", 3), allow(t, l, "k", 2)
	asked, too := allow(t, other, "k", 2), allow(t, l, "other", 5)
	near := func(got, want time.Duration) bool { return got <= want && got > want-10*time.Second }
	if !first.Allowed || first.Limit != 4 || first.Remaining != 1 || first.Source != "redis" ||
		first.Window != time.Hour || !near(first.ResetAfter, 45*time.Minute) {
		t.Errorf("first: %+v", first)
	}
	if denied.Allowed || denied.Remaining != 1 || denied.Source != "local" || !near(denied.RetryAfter, 15*time.Minute) {
		t.Errorf("denied: %+v", denied)
	}
	if asked.Allowed || asked.Remaining != 1 || asked.Source != "redis" || !near(asked.RetryAfter, 15*time.Minute) {
		t.Errorf("asked of another instance: %+v", asked)
	}
	if too.Allowed || too.RetryAfter >= 0 {
		t.Errorf("more than the burst: %+v, want a negative RetryAfter", too)
	}
}

func TestRetryAfterIsWhenTheTokenComes(t *testing.T) {
	l := limiter(t, clientOf(t, rig.Redis(t).Addr), ratelimit.PerSecond(5, 1), Options{Timeout: patient})
	d := allow(t, l, "k", 1)
	for d.Allowed { // on a busy machine a token may have come in between
		d = allow(t, l, "k", 1)
	}
	until := time.Now().Add(d.RetryAfter)
	rig.Poll(t, patient, func() error {
		early := time.Now().Before(until.Add(-5 * time.Millisecond)) // the replies were under way
		if d := allow(t, l, "k", 1); !d.Allowed {
			return fmt.Errorf("%+v", d)
		}
		if early {
			return errors.New("it came before")
		}
		return nil
	})
	if late := time.Since(until); d.RetryAfter <= 0 || late > time.Second {
		t.Errorf("RetryAfter %v, and the token came %v later", d.RetryAfter, late)
	}
}

func TestAScriptFlushIsSurvived(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	l := limiter(t, c, ratelimit.Every(time.Hour, 10, 10), Options{Timeout: patient, Lease: -1})
	for i := range 10 {
		if err := c.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if d := allow(t, l, "k", 1); !d.Allowed || d.Source != "redis" || d.Remaining != 9-i {
			t.Fatalf("after flush %d: %+v", i, d)
		}
	}
}

func TestAHotKeyCostsRedisNextToNothing(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	var calls atomic.Int64
	c.AddHook(counter{&calls})
	l := limiter(t, c, ratelimit.PerSecond(100_000, 100_000), Options{Timeout: patient})
	leased := 0
	for range 20_000 {
		d := allow(t, l, "hot", 1)
		if !d.Allowed {
			t.Fatalf("%+v", d)
		}
		if d.Source == "lease" {
			leased++
		}
	}
	if leased < 19_000 || calls.Load() > 200 {
		t.Errorf("%d of 20000 from leases, in %d calls", leased, calls.Load())
	}
}

func TestAKeyOverItsLimitCostsRedisNextToNothing(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	var calls atomic.Int64
	c.AddHook(counter{&calls})
	l := limiter(t, c, ratelimit.Every(time.Hour, 1, 1), Options{Timeout: patient})
	if got := admitted(t, l, "k", 10_000); got != 1 || calls.Load() > 30 {
		t.Errorf("%d admitted in %d calls", got, calls.Load())
	}
}

type counter struct{ n *atomic.Int64 }

func (c counter) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if strings.HasPrefix(cmd.Name(), "eval") {
			c.n.Add(1)
		}
		return next(ctx, cmd)
	}
}

func (c counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestARefundComesBackOnEachInstance(t *testing.T) {
	r := rig.Redis(t)
	for name, lease := range map[string]time.Duration{"leases": 0, "no leases": -1} {
		t.Run(name, func(t *testing.T) {
			o, limit := Options{Prefix: name, Timeout: patient, Lease: lease}, ratelimit.PerSecond(0, 10)
			a, b := limiter(t, clientOf(t, r.Addr), limit, o), limiter(t, clientOf(t, r.Addr), limit, o)
			if got := admitted(t, a, "k", 20); got != 10 {
				t.Fatalf("%d admitted, want 10", got)
			}
			a.Refund("k", 1)
			rig.Poll(t, patient, func() error { // at once, unless the 10 ms are over and it is on its way
				if d := allow(t, a, "k", 1); !d.Allowed {
					return fmt.Errorf("after a refund %+v, want it admitted", d)
				}
				return nil
			})
			if got := admitted(t, a, "k", 5); got != 0 {
				t.Errorf("%d admitted after that, want none", got)
			}
			a.Refund("k", 3)
			rig.Poll(t, patient, func() error {
				if d := allow(t, b, "k", 0); d.Remaining != 3 {
					return fmt.Errorf("the other instance sees %+v, want 3 remaining", d)
				}
				return nil
			})
			a.Refund("fresh", 5)
			if d := allow(t, a, "fresh", 0); d.Remaining != 10 {
				t.Errorf("after a refund of nothing taken: %+v, want no more than the burst", d)
			}
		})
	}
}

func TestAnotherLimitForAKeyAndAdmission(t *testing.T) {
	factor := 1.0
	l := limiter(t, clientOf(t, rig.Redis(t).Addr), ratelimit.Every(time.Hour, 10, 10), Options{
		Timeout: patient, Lease: -1,
		LimitFor: func(key string) (ratelimit.Limit, bool) {
			return ratelimit.Every(time.Hour, 3, 3), key == "small"
		},
		Admission: func() float64 { return factor },
	})
	if small, def := admitted(t, l, "small", 20), admitted(t, l, "other", 20); small != 3 || def != 10 {
		t.Errorf("%d and %d admitted, want 3 and 10", small, def)
	}
	full := allow(t, l, "other", 1)
	factor = 0.5
	if half := allow(t, l, "other", 1); half.Allowed || half.RetryAfter < full.RetryAfter*19/10 {
		t.Errorf("RetryAfter %v at half the admission, %v at the full one", half.RetryAfter, full.RetryAfter)
	}
}

func TestKeysOfClientsStayInTheirPlace(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	l := limiter(t, c, ratelimit.Every(time.Hour, 1, 1), Options{Timeout: patient, Prefix: "rl:"})
	long := strings.Repeat("x", 1<<16)
	keys := []string{"a", "{a}", "%7ba%7d", "{instances}", "a b", "a\nb", "", "Ünïcode", long, long + "y"}
	for _, key := range keys {
		if !allow(t, l, key, 1).Allowed {
			t.Errorf("%.20q shares the bucket of another", key)
		}
	}
	for _, stored := range c.Keys(t.Context(), "*").Val() {
		if !strings.HasPrefix(stored, "rl:") || len(stored) > 3*maxKey+len("rl:") ||
			stored != "rl:{instances}" && strings.ContainsAny(stored, "{} \n") {
			t.Errorf("key %.80q in Redis", stored)
		}
		if c.PTTL(t.Context(), stored).Val() <= 0 {
			t.Errorf("%s stays for ever", stored)
		}
		// A key that looks like the digest of another is another.
		if forged, ok := strings.CutPrefix(stored, "rl:%sha256:"); ok {
			if !allow(t, l, "%sha256:"+forged, 1).Allowed || !allow(t, l, forged, 1).Allowed {
				t.Error("the bucket of a long key can be had by its digest")
			}
		}
	}
}

func TestInstancesAreCountedAndLeave(t *testing.T) {
	r := rig.Redis(t)
	o := Options{Timeout: patient}
	a, b := New(clientOf(t, r.Addr), ratelimit.PerSecond(1, 1), o), limiter(t, clientOf(t, r.Addr), ratelimit.PerSecond(1, 1), o)
	sees := func(n int64) {
		t.Helper()
		rig.Poll(t, 10*time.Second, func() error {
			if got := b.seen.Load(); got != n {
				return fmt.Errorf("%d instances seen, want %d", got, n)
			}
			return nil
		})
	}
	allow(t, a, "k", 1)
	allow(t, b, "k", 1)
	sees(2)
	_ = a.Close()
	sees(1)
}

// A stay is a call that was admitted: not before began, not after over.
type stay struct{ Began, Over, Tokens int64 }

// excess is by how many tokens the calls that lie within some span of time are over what the limit
// allows in it.
func excess(h []stay, l ratelimit.Limit) float64 {
	slices.SortFunc(h, func(x, y stay) int { return int(x.Over - y.Over) })
	worst := 0.0
	for _, from := range h {
		sum := int64(0)
		for _, s := range h {
			if s.Began >= from.Began {
				sum += s.Tokens
				worst = max(worst, float64(sum)-float64(l.Burst)-l.Rate*float64(s.Over-from.Began)/1e9)
			}
		}
	}
	return worst
}

func TestExcessFindsTheTokenTooMany(t *testing.T) {
	limit := ratelimit.PerSecond(1, 2)
	if e := excess([]stay{{0, 0, 2}, {9e8, 1e9, 1}}, limit); e > 0 {
		t.Errorf("excess of a fair history: %v", e)
	}
	if e := excess([]stay{{0, 0, 2}, {8e8, 9e8, 1}}, limit); e < 0.05 {
		t.Errorf("excess of a history with a token too many: %v", e)
	}
}

const (
	historyAddr  = "HIGHBALL_HISTORY_ADDR"
	historyLease = "HIGHBALL_HISTORY_LEASE"
)

var historyLimit = ratelimit.PerSecond(1000, 200)

// TestNeverMoreThanBurstPlusRateTimesTime has three processes of 64 goroutines on one key, and somebody who flushes the scripts.
func TestNeverMoreThanBurstPlusRateTimesTime(t *testing.T) {
	if addr := os.Getenv(historyAddr); addr != "" {
		lease, _ := time.ParseDuration(os.Getenv(historyLease))
		if err := json.NewEncoder(os.Stdout).Encode(history(addr, lease)); err != nil {
			t.Fatal(err)
		}
		os.Exit(0) // before the test binary prints anything
	}
	for _, lease := range []time.Duration{100 * time.Millisecond, -1} {
		t.Run("lease "+lease.String(), func(t *testing.T) {
			r := rig.Redis(t)
			histories := make([][]stay, 3)
			var processes sync.WaitGroup
			for i := range histories {
				processes.Go(func() {
					cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+strings.SplitN(t.Name(), "/", 2)[0]+"$")
					cmd.Env = append(os.Environ(), historyAddr+"="+r.Addr, historyLease+"="+lease.String())
					out, err := cmd.Output()
					if err == nil {
						err = json.Unmarshal(out, &histories[i])
					}
					if err != nil {
						t.Errorf("process %d: %v: %.200s", i, err, out)
					}
				})
			}
			c := clientOf(t, r.Addr)
			finished := make(chan struct{})
			go func() { processes.Wait(); close(finished) }()
			for tick := time.NewTicker(100 * time.Millisecond); ; {
				select {
				case <-tick.C:
					_ = c.ScriptFlush(t.Context()).Err()
					continue
				case <-finished:
				}
				break
			}
			all := slices.Concat(histories...)
			if over := excess(all, historyLimit); over > 0 {
				t.Errorf("%.2f tokens too many", over)
			}
			tokens := int64(0)
			for _, s := range all {
				tokens += s.Tokens
			}
			if tokens < int64(historyLimit.Burst) {
				t.Errorf("only %d admitted: the history proves nothing", tokens)
			}
			t.Logf("%d tokens in %d calls", tokens, len(all))
		})
	}
}

// history is what 64 goroutines of this process got.
func history(addr string, lease time.Duration) (h []stay) {
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	l := New(c, historyLimit, Options{Lease: lease, Timeout: 10 * time.Second, OnDown: FailClosed})
	defer l.Close()
	var mu sync.Mutex
	var callers sync.WaitGroup
	end := time.Now().Add(1500 * time.Millisecond)
	for g := range 64 {
		callers.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				n := 1 + (g+i)%3
				began := time.Now().UnixNano()
				d, err := l.AllowN(context.Background(), "hot", n)
				over := time.Now().UnixNano()
				switch {
				case err != nil || !d.Allowed:
					time.Sleep(time.Millisecond) // as a client that was refused
				default:
					mu.Lock()
					h = append(h, stay{began, over, int64(n)})
					mu.Unlock()
				}
			}
		})
	}
	callers.Wait()
	return h
}
