package ratelimit

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ask is one AllowN of a Local, which never fails.
func ask(l Limiter, key string, n int) Decision {
	d, err := l.AllowN(context.Background(), key, n)
	if err != nil {
		panic(err)
	}
	return d
}

// drain counts how many single tokens are there.
func drain(l Limiter, key string) (n int) {
	for ask(l, key, 1).Allowed {
		n++
	}
	return n
}

func TestABucketIsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(PerSecond(10, 5), Options{})
		for left := 4; left >= 0; left-- {
			want := Decision{
				Allowed: true, Limit: 5, Remaining: left, Source: "local",
				ResetAfter: time.Duration(5-left) * 100 * time.Millisecond, Window: 500 * time.Millisecond,
			}
			if got := ask(l, "a", 1); got != want {
				t.Fatalf("decision = %+v, want %+v", got, want)
			}
		}
		want := Decision{Limit: 5, Source: "local", RetryAfter: 100 * time.Millisecond, ResetAfter: 500 * time.Millisecond, Window: 500 * time.Millisecond}
		if got := ask(l, "a", 1); got != want {
			t.Fatalf("decision = %+v, want %+v", got, want)
		}
		if got := ask(l, "a", 3).RetryAfter; got != 300*time.Millisecond {
			t.Errorf("RetryAfter of 3 = %v, want 300ms", got)
		}
		if !ask(l, "b", 5).Allowed {
			t.Error("another key was refused")
		}
		time.Sleep(100*time.Millisecond - 1)
		if ask(l, "a", 1).Allowed {
			t.Error("admitted a nanosecond early")
		}
		time.Sleep(time.Nanosecond)
		if !ask(l, "a", 1).Allowed {
			t.Error("refused when RetryAfter had passed")
		}
		time.Sleep(time.Hour)
		if n := drain(l, "a"); n != 5 {
			t.Errorf("%d tokens after an hour, want 5", n)
		}
	})
}

func TestRatesThatDoNotDivideASecondAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rate := range []int{1, 3, 6, 7, 9, 11, 13, 15, 60, 90, 700, 1000} {
			l := New(PerSecond(float64(rate), rate), Options{})
			drain(l, "a")
			for i := range 100 {
				time.Sleep(time.Second)
				if n := drain(l, "a"); n != rate {
					t.Fatalf("%d tokens in second %d, want %d", n, i, rate)
				}
			}
		}
		l := New(Every(time.Minute, 100, 100), Options{})
		drain(l, "a")
		time.Sleep(time.Minute)
		if n := drain(l, "a"); n != 100 {
			t.Errorf("%d tokens in a minute, want 100", n)
		}
	})
}

func TestWhatCanNeverBeAdmittedSaysSo(t *testing.T) {
	for _, tt := range []struct {
		name      string
		limit     Limit
		n         int
		allowed   bool
		remaining int
		retry     time.Duration
	}{
		{"more than burst", PerSecond(1, 5), 6, false, 5, -1},
		{"more than burst by far", PerSecond(1, 5), math.MaxInt, false, 5, -1},
		{"burst 0", PerSecond(1, 0), 1, false, 0, -1},
		{"negative burst", PerSecond(1, -3), 1, false, 0, -1},
		{"rate 0", PerSecond(0, 5), 5, true, 0, 0},
		{"rate 0, more than burst", PerSecond(0, 5), 6, false, 5, -1},
		{"negative rate", PerSecond(-1, 5), 5, true, 0, 0},
		{"not a number", PerSecond(math.NaN(), 5), 5, true, 0, 0},
		{"infinite", PerSecond(math.Inf(1), 5), 5, true, 5, 0},
		{"infinite, more than burst", PerSecond(math.Inf(1), 5), 6, false, 5, -1},
		{"look", PerSecond(1, 5), 0, true, 5, 0},
		{"negative n", PerSecond(1, 5), -7, true, 5, 0},
		{"largest burst", PerSecond(1, math.MaxInt), 1 << 40, true, 1<<60 - 1<<40, 0},
		{"largest burst, never refilled", PerSecond(0, math.MaxInt), math.MaxInt, false, 1 << 60, -1},
		{"very fast", PerSecond(1e300, 5), 5, true, 0, 0},
		{"very slow", PerSecond(1e-300, 5), 5, true, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(tt.limit, Options{})
				d := ask(l, "a", tt.n)
				if d.Allowed != tt.allowed || d.Remaining != tt.remaining || d.RetryAfter != tt.retry {
					t.Errorf("decision = %+v, want %v, %d remaining, retry %v", d, tt.allowed, tt.remaining, tt.retry)
				}
			})
		})
	}
}

func TestABucketOfRateZeroIsNeverRefilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limit := range []Limit{{Burst: 3}, Every(0, 0, 3), {Rate: 1e-12, Burst: 3}} {
			l := New(limit, Options{})
			if n := drain(l, "a"); n != 3 {
				t.Errorf("%v: %d tokens, want 3", limit, n)
			}
			time.Sleep(10 * 365 * 24 * time.Hour)
			if d := ask(l, "a", 1); d.Allowed || d.RetryAfter >= 0 || d.ResetAfter >= 0 || d.Window != 0 {
				t.Errorf("%v: decision after ten years = %+v, want never", limit, d)
			}
			l.Refund("a", 2)
			if d := ask(l, "a", 0); d.Remaining != 2 || !d.Allowed {
				t.Errorf("%v: after a refund %+v, want 2 remaining", limit, d)
			}
		}
	})
}

func TestEvery(t *testing.T) {
	for _, tt := range []struct {
		got, want Limit
	}{
		{Every(time.Second, 5, 7), Limit{5, 7}},
		{Every(time.Minute, 30, 1), Limit{0.5, 1}},
		{Every(0, 5, 7), Limit{math.Inf(1), 7}},
		{Every(time.Second, 0, 7), Limit{0, 7}},
	} {
		if tt.got != tt.want {
			t.Errorf("Every = %v, want %v", tt.got, tt.want)
		}
	}
}

func TestRefundGivesBackNeverAboveBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(PerSecond(1, 5), Options{})
		l.Refund("a", 100)
		if n := drain(l, "a"); n != 5 {
			t.Errorf("%d tokens, want 5", n)
		}
		l.Refund("a", 2)
		l.Refund("a", 0)
		l.Refund("a", -2)
		if n := drain(l, "a"); n != 2 {
			t.Errorf("%d tokens after a refund of 2, want 2", n)
		}
		l.Refund("a", math.MaxInt)
		if n := drain(l, "a"); n != 5 {
			t.Errorf("%d tokens after a large refund, want 5", n)
		}
	})
}

func TestAKeyMayHaveALimitOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(PerSecond(1, 1), Options{LimitFor: func(key string) (Limit, bool) { return PerSecond(10, 10), key == "vip" }})
		if vip, other := drain(l, "vip"), drain(l, "x"); vip != 10 || other != 1 {
			t.Errorf("%d and %d tokens, want 10 and 1", vip, other)
		}
		l.Refund("vip", 3)
		if n := drain(l, "vip"); n != 3 {
			t.Errorf("%d tokens after a refund, want 3", n)
		}
	})
}

func TestAdmissionChangesWhatComesAndNotWhatIsSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		admission := 1.0
		l := New(PerSecond(10, 10), Options{Admission: func() float64 { return admission }})
		if n := drain(l, "empty"); n != 10 {
			t.Fatalf("%d tokens, want 10", n)
		}
		ask(l, "half", 5)
		admission = 0.5
		if empty, half := ask(l, "empty", 0).Remaining, ask(l, "half", 0).Remaining; empty != 0 || half != 5 {
			t.Errorf("%d and %d tokens when admission fell, want 0 and 5", empty, half)
		}
		if d := ask(l, "empty", 1); d.RetryAfter != 200*time.Millisecond {
			t.Errorf("RetryAfter = %v, want 200ms at half the rate", d.RetryAfter)
		}
		time.Sleep(time.Second)
		if n := drain(l, "empty"); n != 5 {
			t.Errorf("%d tokens in a second of half the rate, want 5", n)
		}
		admission = 0
		ask(l, "empty", 0)
		time.Sleep(time.Hour)
		if n := drain(l, "empty"); n != 0 {
			t.Errorf("%d tokens at no rate, want 0", n)
		}
		admission = math.NaN() // who should know does not
		ask(l, "empty", 0)
		time.Sleep(500 * time.Millisecond)
		if n := drain(l, "empty"); n != 5 {
			t.Errorf("%d tokens in half a second of the whole rate, want 5", n)
		}
	})
}

func TestOnDenyIsToldWithNoLockHeld(t *testing.T) {
	var l *Local
	var told []string
	l = New(PerSecond(0, 1), Options{OnDeny: func(key string, d Decision) {
		told = append(told, fmt.Sprint(key, d.Remaining))
		ask(l, "other", 0)
		l.Refund(key, 0)
	}})
	ask(l, "a", 1)
	ask(l, "a", 1)
	if !slices.Equal(told, []string{"a0"}) {
		t.Errorf("told %v, want a0", told)
	}
}

func TestADecisionDoesNotAllocate(t *testing.T) {
	l := New(PerSecond(1e9, 1<<30), Options{Admission: func() float64 { return 0.3 }})
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		_, _ = l.AllowN(ctx, "key", 1)
		l.Refund("key", 1)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestAllTakesFromAllOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second, minute := New(PerSecond(5, 5), Options{}), New(Every(time.Minute, 7, 7), Options{})
		both := All(minute, second)
		if n := drain(both, "a"); n != 5 {
			t.Errorf("%d tokens, want 5", n)
		}
		if n := ask(minute, "a", 0).Remaining; n != 2 {
			t.Errorf("%d tokens of the minute left, want 2: a refusal must give back", n)
		}
		time.Sleep(time.Second)
		if n := drain(both, "a"); n != 2 {
			t.Errorf("%d tokens in the next second, want 2", n)
		}
		if n := ask(second, "a", 0).Remaining; n != 3 {
			t.Errorf("%d tokens of the second left, want 3", n)
		}
		both.(Refunder).Refund("a", 2)
		if d := ask(both, "a", 0); d.Remaining != 2 || d.Limit != 7 {
			t.Errorf("after a refund %+v, want 2 of 7", d)
		}
		if !ask(All(), "a", 1).Allowed {
			t.Error("no limiters refused")
		}
	})
}

type failing struct{}

func (failing) AllowN(context.Context, string, int) (Decision, error) {
	return Decision{}, ErrUnavailable
}

func TestAllAsksLastWhoCannotGiveBack(t *testing.T) {
	local := New(PerSecond(0, 5), Options{})
	l := All(failing{}, All(failing{}, local), All())
	if _, err := l.AllowN(t.Context(), "a", 1); err != ErrUnavailable { //nolint:errorlint // it must be as it is
		t.Errorf("err = %v, want ErrUnavailable", err)
	}
	if n := drain(local, "a"); n != 5 {
		t.Errorf("%d tokens left, want 5", n)
	}
}

// plain admits everything, counts it, and cannot give back.
type plain struct{ given *int }

func (p plain) AllowN(_ context.Context, _ string, n int) (Decision, error) {
	*p.given += n
	return Decision{Allowed: true, Remaining: 100}, nil
}

func TestWhoCannotGiveBackLosesNothingToARefusal(t *testing.T) {
	given := 0
	empty := New(PerSecond(0, 0), Options{})
	for name, l := range map[string]Limiter{
		"first":         All(plain{&given}, empty),
		"within an All": All(All(), All(plain{&given}), empty),
	} {
		if ask(l, "a", 1).Allowed || given != 0 {
			t.Errorf("%s: it has given %d to a request that another refused", name, given)
		}
	}
	if !ask(All(plain{&given}, New(PerSecond(0, 1), Options{})), "a", 1).Allowed || given != 1 {
		t.Errorf("%d given to a request that all admit, want 1", given)
	}
}

func TestManyGoroutinesNeverGetMoreThanTheBurst(t *testing.T) {
	l := New(PerSecond(0, 1000), Options{Keys: 4})
	var mu sync.Mutex
	got := map[string]int{}
	var callers sync.WaitGroup
	for i := range 64 {
		callers.Go(func() {
			key := fmt.Sprint(i % 3)
			n := drain(l, key)
			mu.Lock()
			got[key] += n
			mu.Unlock()
		})
	}
	callers.Wait()
	for key, n := range got {
		if n != 1000 {
			t.Errorf("key %s got %d, want 1000", key, n)
		}
	}
}
