package ratelimit

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"
)

// allow is what a caller is told whose clock reads t, in units.
func (l *Local) allow(t int64, key string, n int) (d Decision) {
	l.decide(&d, t, key, n)
	return d
}

// An admission is one entry of a history: n tokens, by a caller whose clock read at.
type admission struct {
	at, n int64
}

// excess is by how many units a history is over what its limit allows; 0 or less: over each interval of
// the callers' own clocks at most burst + rate × time was admitted. A bucket that forgets nothing owes, at
// each admission, the most that any interval that ends there is over its rate.
func excess(h []admission, b bucket) int64 {
	slices.SortFunc(h, func(x, y admission) int { return cmp.Compare(x.at, y.at) })
	owed, last, worst := int64(0), int64(0), int64(0)
	for _, a := range h {
		owed = max(owed-(a.at-last), 0) + a.n*b.interval
		last, worst = a.at, max(worst, owed)
	}
	return worst - b.span
}

// TestNeverMoreThanBurstPlusRateTimesTime has 64 goroutines whose clocks are behind by random amounts, more
// live keys than the table expects and refunds of nothing in between.
func TestNeverMoreThanBurstPlusRateTimesTime(t *testing.T) {
	for _, tt := range []struct {
		name         string
		keys, expect int
	}{{"one key", 1, 16}, {"as many as expected", 64, 64}, {"far more than expected", 3000, 16}} {
		t.Run(tt.name, func(t *testing.T) {
			l := New(PerSecond(1000, 20), Options{Keys: tt.expect})
			var mu sync.Mutex
			histories := make([][]admission, tt.keys)
			var clock int64 // of all, goes on with each call
			var callers sync.WaitGroup
			for g := range 64 {
				callers.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(g), 7))
					for range 1000 {
						mu.Lock()
						clock += rnd.Int64N(2 * l.bucket.interval / 16)
						now := max(clock-rnd.Int64N(40*l.bucket.interval), 0)
						mu.Unlock()
						key, n := rnd.IntN(tt.keys), 1+rnd.IntN(3)
						if d := l.allow(now, fmt.Sprint(key), n); d.Allowed {
							mu.Lock()
							histories[key] = append(histories[key], admission{now, int64(n)})
							mu.Unlock()
						}
					}
				})
			}
			callers.Wait()
			admitted := 0
			for _, h := range histories {
				admitted += len(h)
				if over := excess(h, l.bucket); over > 0 {
					t.Fatalf("%d units over burst + rate × time, in %d admissions", over, len(h))
				}
			}
			if admitted < 100 {
				t.Errorf("only %d of 64000 were admitted: the history proves nothing", admitted)
			}
		})
	}
}

func TestExcessFindsTheTokenTooMany(t *testing.T) {
	b := bucketOf(PerSecond(1, 2), 1)
	for at, want := range map[int64]bool{b.interval - 1: true, b.interval: false} {
		if got := excess([]admission{{at, 1}, {0, 2}}, b) > 0; got != want {
			t.Errorf("two tokens at once and one %d ns later: too many = %v, want %v", at, got, want)
		}
	}
}

// TestATableIsTheExactModel compares with a map that forgets nothing, while the table is not overfull.
func TestATableIsTheExactModel(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		l := New(PerSecond(100, 10), Options{Keys: 64})
		model := map[string]int64{}
		now := int64(1)
		for step := range 5000 {
			now += rnd.Int64N(l.bucket.interval / 4)
			key, n := fmt.Sprint(rnd.IntN(64)), rnd.Int64N(4)
			if rnd.IntN(10) == 0 {
				l.refund(now, key, int(n))
				if n > 0 {
					model[key] = l.bucket.give(model[key], now, n)
				}
				continue
			}
			full, ok := l.bucket.take(model[key], now, n)
			if d := l.allow(now, key, int(n)); d.Allowed != ok {
				t.Fatalf("seed %d, step %d: Allowed = %v, the model says %v", seed, step, d.Allowed, ok)
			}
			model[key] = full
		}
	}
}

func TestIdleKeysLeaveWithoutLoss(t *testing.T) {
	l := New(PerSecond(1, 2), Options{Keys: 1})
	for i := range 1000 { // one live key at a time, in a table for one
		now := int64(i) * 2 * l.bucket.interval
		for want := 1; want >= 0; want-- {
			if d := l.allow(now, fmt.Sprint(i), 1); !d.Allowed || d.Remaining != want {
				t.Fatalf("key %d: %+v, want a full bucket", i, d)
			}
		}
	}
}

func TestAFloodOfKeysGrowsNothingAndExpectedKeysAreUnhurt(t *testing.T) {
	l := New(PerSecond(1, 10), Options{Keys: 1000})
	before := cap(l.table.sets)
	for i := range 1000 {
		if d := l.allow(0, fmt.Sprint("expected", i), 1); d.Remaining != 9 {
			t.Fatalf("key %d of those expected: %+v, want a full bucket", i, d)
		}
	}
	refused := 0
	for i := range 100_000 {
		if !l.allow(0, fmt.Sprint("flood", i), 1).Allowed {
			refused++
		}
	}
	if cap(l.table.sets) != before || refused == 0 {
		t.Errorf("%d sets, want %d; %d refused, want some", cap(l.table.sets), before, refused)
	}
	later := 10 * l.bucket.interval
	if d := l.allow(later, "new", 1); d.Remaining != 9 {
		t.Errorf("a new key after the flood: %+v, want a full bucket", d)
	}
}

func TestMemoryPerKey(t *testing.T) {
	l := New(PerSecond(1, 10), Options{Keys: 1_000_000})
	bytes := uintptr(len(l.table.sets))*unsafe.Sizeof(set{}) + uintptr(len(l.table.shards))*unsafe.Sizeof(shard{})
	if per := float64(bytes) / 1e6; per > 40 {
		t.Errorf("%.1f bytes a key, want at most 40", per)
	}
}

func TestCallersWithLateClocksFindNoForgottenKeyFresh(t *testing.T) {
	l := New(PerSecond(1, 1), Options{Keys: 1})
	slots := len(l.table.sets) * ways
	if !l.allow(0, "a", 1).Allowed {
		t.Fatal("the first was refused")
	}
	later := l.bucket.interval
	for i := range slots * 4 { // a is idle by then, and loses its slot
		l.allow(later, fmt.Sprint(i), 1)
	}
	if l.allow(1, "a", 1).Allowed {
		t.Error("a caller whose clock is late got a second token within the first second")
	}
}
