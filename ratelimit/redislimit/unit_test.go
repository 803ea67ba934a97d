package redislimit

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/highball-go/highball/ratelimit"
)

func TestALeaseDiesAsFastAsTheBucketRefills(t *testing.T) {
	ms := int64(time.Millisecond)
	l := &lease{bucket: bucketOf(ratelimit.PerSecond(1000, 100)), born: ms, size: 10}
	l.left.Store(10)
	for _, step := range []struct {
		at, take int64
		ok       bool
		left     int64
	}{
		{1 * ms, 1, true, 9},
		{5 * ms, 1, true, 5},   // 4 of 10 are gone
		{5 * ms, 6, false, 5},  // more than are left
		{5*ms + 1, 3, true, 2}, // rounded up, 5 of 10 are gone, and of 5 spent 3
		{9 * ms, 2, true, 0},   // they lived as long as the youngest
		{9 * ms, 1, false, 0},  // none is left
		{99 * ms, 1, false, 0}, // nor later
		{math.MaxInt64, 1, false, 0},
	} {
		if _, ok := l.take(step.take, step.at); ok != step.ok || l.left.Load() != step.left {
			t.Fatalf("%+v: %v, %d left", step, ok, l.left.Load())
		}
	}
	if l.left.Store(3); l.end() != 3 || l.end() != 0 {
		t.Error("what is left of a lease is to be given back once")
	}
	if _, ok := l.take(1, ms); ok {
		t.Error("a lease that has ended gave a token")
	}
}

func TestAFloodOfKeysGrowsNothingBeyondTheTable(t *testing.T) {
	l := limiter(t, nil, ratelimit.PerSecond(1, 1), Options{OnDown: FailOpen})
	for i := range 100_000 {
		allow(t, l, fmt.Sprint("key", i), 1)
	}
	kept := 0
	for i := range l.table {
		if e := l.table[i].Load(); e != nil {
			kept++
			if len(e.key) > maxKey {
				t.Fatalf("a key of %d bytes", len(e.key))
			}
		}
	}
	if kept != slots {
		t.Errorf("%d keys kept, want %d", kept, slots)
	}
	newest := l.entry("key99999")
	if again := l.entry("key99999"); again != newest {
		t.Error("the newest key is not kept")
	}
}

func TestBucketsAreExact(t *testing.T) {
	for _, tt := range []struct {
		l      ratelimit.Limit
		tokens int64         // that come
		in     time.Duration // in this time, and no more
	}{
		{ratelimit.PerSecond(3, 3), 3, time.Second},
		{ratelimit.PerSecond(7, 10), 7, time.Second},
		{ratelimit.PerSecond(1e6, 100), 1e6, time.Second},
		{ratelimit.PerSecond(1e9, 100), 1e9, time.Second},
		{ratelimit.Every(24*time.Hour, 1, 1), 1, 24 * time.Hour},
	} {
		b := bucketOf(tt.l)
		if got := b.wait(tt.tokens*b.interval, fullPace); got != tt.in {
			t.Errorf("%+v: %d tokens come in %v, want %v", tt.l, tt.tokens, got, tt.in)
		}
	}
	for _, l := range []ratelimit.Limit{{Rate: math.NaN(), Burst: 3}, {Rate: -1, Burst: 3}, {Rate: 1e-12, Burst: 3}} {
		if b := bucketOf(l); !b.still || b.span() != 3 {
			t.Errorf("%+v: %+v, want one that is never refilled", l, b)
		}
	}
	if b := bucketOf(ratelimit.PerSecond(1, math.MaxInt)); b.span() > largest || b.span() <= 0 {
		t.Errorf("an enormous burst: %+v", b)
	}
}

func TestLimitsThatNeedNoRedis(t *testing.T) {
	for _, tt := range []struct {
		l    ratelimit.Limit
		n    int
		want bool
	}{
		{ratelimit.PerSecond(math.Inf(1), 5), 5, true},
		{ratelimit.PerSecond(math.Inf(1), 5), 6, false},
		{ratelimit.PerSecond(5, 0), 1, false},
		{ratelimit.PerSecond(5, 0), 0, true},
		{ratelimit.PerSecond(5, -1), math.MaxInt, false},
	} {
		l := limiter(t, nil, tt.l, Options{OnDown: FailClosed})
		d := allow(t, l, "k", tt.n)
		if d.Allowed != tt.want || d.Source != "local" || !d.Allowed && d.RetryAfter >= 0 {
			t.Errorf("%+v, %d: %+v", tt.l, tt.n, d)
		}
	}
}
