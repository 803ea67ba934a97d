package cluster

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/breaker"
)

var _ breaker.Peers = (*Cluster)(nil)

func TestWhatAQuorumReportsIsKnownEverywhereWithinTwoIntervals(t *testing.T) {
	for range 20 { // the phases of the instances are random
		synctest.Test(t, func(t *testing.T) {
			h := newHub()
			a, b, c := h.instance(t, "a", Options{}), h.instance(t, "b", Options{}), h.instance(t, "c", Options{})
			intervals(3.3)
			a.Report("x", 30, 20)
			b.Report("x", 30, 10)
			c.Report("x", 30, 0)
			intervals(2)
			for _, each := range []*Cluster{a, b, c} {
				wantSums(t, each, "x", 90, 30, 3)
			}
		})
	}
}

func TestACircuitThatFailsOnAQuorumOpensOnAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		var circuits [3]*breaker.Breaker
		for i := range circuits { // none of them sees enough to open by itself
			circuits[i] = breaker.New("x", breaker.Options{Peers: h.instance(t, fmt.Sprint(i), Options{})})
		}
		for range 5 {
			call(circuits[0], 3, breaker.Failure)
			call(circuits[1], 3, breaker.Failure)
			call(circuits[2], 3, breaker.Success)
			time.Sleep(time.Second)
		}
		for i, b := range circuits {
			if s := b.Snapshot(); s.State != breaker.Open || s.Reason != "cluster" {
				t.Errorf("circuit of %d is %v by %q, want open by cluster", i, s.State, s.Reason)
			}
		}
	})
}

func call(b *breaker.Breaker, n int, o breaker.Outcome) {
	for range n {
		if p, err := b.Allow(); err == nil {
			p.Done(o)
		}
	}
}

func TestOneBadInstanceOpensOnlyItsOwnCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		var circuits [5]*breaker.Breaker
		for i := range circuits {
			circuits[i] = breaker.New("x", breaker.Options{Peers: h.instance(t, fmt.Sprint(i), Options{})})
		}
		for range 8 {
			call(circuits[0], 1000, breaker.Failure) // most of all there are
			for _, b := range circuits[1:] {
				call(b, 10, breaker.Success)
			}
			time.Sleep(time.Second)
		}
		for i, b := range circuits {
			if open := b.State() != breaker.Closed; open != (i == 0) {
				t.Errorf("circuit of %d: open is %v", i, open)
			}
		}
	})
}

func TestQuorum(t *testing.T) {
	for _, tt := range []struct {
		quorum     float64
		live, want int
	}{
		{0, 1, 1},
		{0, 2, 2},
		{0, 3, 2},
		{0, 4, 2},
		{0, 5, 3},
		{0, 100, 50},
		{math.NaN(), 7, 4},
		{-1, 7, 4},
		{0.01, 1, 1},
		{0.01, 99, 2}, // one alone is never enough
		{0.2, 15, 3},
		{0.7, 10, 7},
		{1, 3, 3},
		{7, 3, 3},
		{math.Inf(1), 3, 3},
	} {
		c := &Cluster{o: withDefaults(Options{Quorum: tt.quorum})}
		if got := c.quorum(tt.live); got != tt.want {
			t.Errorf("%v of %d instances are %d, want %d", tt.quorum, tt.live, got, tt.want)
		}
	}
}

func TestAdmissionHalvesToTheFloorAndClimbsByATenthASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []float64
		h := newHub()
		a := h.instance(t, "a", Options{OnChange: func(x float64) { told = append(told, x) }})
		b := h.instance(t, "b", Options{Floor: 0.3})
		intervals(1.1)
		a.Report("x", 20, 0)
		b.Report("y", 20, 21) // 21 of 41 is over 50 %
		intervals(2)
		wantAdmission(t, a, 0.25, 0.5)
		wantAdmission(t, b, 0.3, 0.5)
		intervals(4)
		wantAdmission(t, a, 0.1, 0.1)
		wantAdmission(t, b, 0.3, 0.3)
		for a.Admission() == 0.1 {
			time.Sleep(time.Millisecond)
		}
		for was, begin := a.Admission(), time.Now(); a.Admission() < 1; time.Sleep(time.Millisecond) {
			if got, most := a.Admission(), was+0.1*(time.Since(begin).Seconds()+0.001); got > most || got < most-0.11 {
				t.Fatalf("%v after %v, want a tenth a second", got, time.Since(begin))
			}
		}
		synctest.Wait()
		if len(told) < 12 || !slices.Equal(told[:4], []float64{0.5, 0.25, 0.125, 0.1}) || !slices.IsSorted(told[4:]) || told[len(told)-1] != 1 {
			t.Errorf("OnChange was told %v", told)
		}
		intervals(5)
		wantAdmission(t, a, 1, 1)
	})
}

func TestAdmissionStaysWithoutCause(t *testing.T) {
	for _, tt := range []struct {
		name          string
		total, errors int
		percent       int
	}{
		{"too few requests", 19, 19, 0},
		{"not over 50 %", 40, 20, 0},
		{"not over its own", 100, 80, 80},
		{"never", 100, 100, 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newHub().instance(t, "a", Options{ErrorPercent: tt.percent})
				c.Report("x", tt.total, tt.errors)
				intervals(3)
				wantAdmission(t, c, 1, 1)
				if total, _, _ := c.Cluster("x"); total != tt.total {
					t.Errorf("%d requests seen, want %d", total, tt.total)
				}
			})
		})
	}
}

func TestCountsLeaveWithTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		a, b := h.instance(t, "a", Options{Window: 4 * time.Second}), h.instance(t, "b", Options{Window: 4 * time.Second})
		a.Report("x", 5, 1)
		b.Report("x", 5, 1)
		intervals(3.5)
		wantSums(t, a, "x", 10, 2, 2)
		intervals(4)
		wantSums(t, a, "x", 0, 0, 2)
		h.set(func() {
			if n := len(h.sums().circuits); n != 0 {
				t.Errorf("%d circuits are still told", n)
			}
		})
	})
}

func TestAWindowOfManyIntervalsHasAHundredBuckets(t *testing.T) {
	w := window{span: time.Minute}
	begin := time.Now()
	for i := range 100_000 {
		w.add(counts{"x": {2, 1}}, begin.Add(time.Duration(i)*10*time.Millisecond))
		if len(w.buckets) > maxBuckets {
			t.Fatalf("%d buckets after %d intervals", len(w.buckets), i)
		}
	}
	if got := w.sums()["x"]; got.total < 11_800 || got.total > 12_000 || got.errors*2 != got.total {
		t.Errorf("%+v, want about a minute's 12000 and half as many", got)
	}
}

func TestAFloodOfNamesGrowsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		c := h.instance(t, "a", Options{})
		intervals(1)
		c.Report("known", 10, 1)
		long := strings.Repeat("x", maxName+1)
		c.Report(long, 10, 1)
		for second := range 5 {
			for i := range 20_000 {
				c.Report(fmt.Sprint("flood", second, "-", i), 1, 0)
			}
			c.mu.Lock()
			n := len(c.pending)
			c.mu.Unlock()
			if n > maxCircuits+1 {
				t.Fatalf("%d circuits pending", n)
			}
			intervals(1)
		}
		s := c.snap.Load()
		if n := len(s.circuits); n > maxCircuits+1 || n < maxCircuits {
			t.Errorf("%d circuits, want %d", n, maxCircuits)
		}
		if all := s.all(); all.total != 100_020 || all.errors != 2 {
			t.Errorf("%+v in all, want 100020 and 2", all)
		}
		wantSums(t, c, "known", 10, 1, 1)
		wantSums(t, c, long, 0, 0, 1) // counted with the others
	})
}

func TestReportTakesAnyNumbers(t *testing.T) {
	for _, tt := range []struct {
		total, errors int
		want          count
	}{
		{0, 0, count{}},
		{-5, -1, count{}},
		{math.MinInt, math.MinInt, count{}},
		{5, -1, count{5, 0}},
		{-5, 3, count{3, 3}},
		{2, 3, count{3, 3}},
		{math.MaxInt, math.MaxInt, count{math.MaxInt32, math.MaxInt32}},
	} {
		c := &Cluster{pending: counts{}}
		if c.Report("x", tt.total, tt.errors); c.pending["x"] != tt.want {
			t.Errorf("Report(%d, %d) counts %+v, want %+v", tt.total, tt.errors, c.pending["x"], tt.want)
		}
	}
}

func TestOptionsHaveAMeaningWhateverTheyAre(t *testing.T) {
	o := withDefaults(Options{})
	if o.Service != "default" || o.Interval != time.Second || o.Window != 10*time.Second || o.Quorum != 0.5 || o.ErrorPercent != 50 || o.Floor != 0.1 {
		t.Errorf("the defaults are %+v", o)
	}
	if other := withDefaults(Options{}); o.Instance == other.Instance {
		t.Errorf("two instances are called %q", o.Instance)
	}
	o = withDefaults(Options{Interval: 1, Window: -1, Quorum: -1, ErrorPercent: -1, Floor: math.Inf(1)})
	if o.Interval != minInterval || o.Window != 10*time.Second || o.Quorum != 0.5 || o.ErrorPercent != 50 || o.Floor != 1 {
		t.Errorf("%+v", o)
	}
	if o = withDefaults(Options{Interval: time.Minute, Floor: math.NaN()}); o.Window != time.Minute || o.Floor != 0.1 {
		t.Errorf("%+v", o)
	}
}
