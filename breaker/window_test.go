package breaker

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// model is what the window should be: every event with its tick, counted one by one.
type model struct {
	width   int64
	buckets int64
	events  []event
}

type event struct {
	tick int64
	err  bool
}

func (m *model) sum(now int64) (total, errs uint64) {
	for _, e := range m.events {
		if age := now/m.width - e.tick; age >= 0 && age < m.buckets {
			total++
			if e.err {
				errs++
			}
		}
	}
	return total, errs
}

func TestTheWindowIsTheExactModel(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		buckets := 1 + rnd.IntN(12)
		span := time.Duration(buckets) * time.Duration(1+rnd.IntN(1000))
		w := newWindow(span, buckets)
		m := model{width: w.width, buckets: int64(buckets)}
		now := rnd.Int64N(1 << 60)
		for step := range 500 {
			switch rnd.IntN(20) {
			case 0:
				now += rnd.Int64N(3 * int64(span))
			case 1:
				now += int64(span) // the same slots, a lap later
			default:
				now += rnd.Int64N(w.width + 1)
			}
			isErr := rnd.IntN(2) == 0
			what := uint64(low)
			if isErr {
				what += high
			}
			w.calls.add(w.at(now), what)
			m.events = append(m.events, event{now / w.width, isErr})
			total, errs := w.calls.sum(w.at(now))
			if wantTotal, wantErrs := m.sum(now); total != wantTotal || errs != wantErrs {
				t.Fatalf("seed %d, step %d, %d buckets of %d ns: %d/%d, want %d/%d",
					seed, step, buckets, w.width, errs, total, wantErrs, wantTotal)
			}
		}
	}
}

func TestALapThatComesRoundAgainIsNotTakenForTheOldOne(t *testing.T) {
	w := newWindow(10, 10)
	for _, lap := range []int64{0, 1, lapMask / 2, lapMask/2 + 2, lapMask - 1, lapMask} {
		w.calls.add(w.at(lap*10), low)
		if total, _ := w.calls.sum(w.at(lap * 10)); total != 1 {
			t.Errorf("lap %d: total = %d, want 1", lap, total)
		}
	}
}

func TestWhoSleptForAWholeWindowCountsNothing(t *testing.T) {
	w := newWindow(10, 10)
	w.calls.add(w.at(15), low)
	w.calls.add(w.at(5), low) // the same slot, one lap before
	if total, _ := w.calls.sum(w.at(15)); total != 1 {
		t.Errorf("total = %d, want 1", total)
	}
}

func TestAFullBucketKeepsItsShare(t *testing.T) {
	w := newWindow(10, 1)
	for i := range 3 * countMask {
		w.calls.add(w.at(1), low+uint64(i&1)*high)
	}
	total, errs := w.calls.sum(w.at(1))
	if total < full || total > countMask || errs*2 < total-1 || errs*2 > total+1 {
		t.Errorf("%d errors of %d, want half of a full bucket", errs, total)
	}
}

func TestNoCountIsLostWithinABucket(t *testing.T) {
	w := newWindow(1000, 10)
	var counters sync.WaitGroup
	for range 8 {
		counters.Go(func() {
			for range 5000 {
				w.calls.add(w.at(50), low+high)
			}
		})
	}
	counters.Wait()
	if total, errs := w.calls.sum(w.at(50)); total != 40000 || errs != 40000 {
		t.Errorf("total, errs = %d, %d; want 40000 each", total, errs)
	}
}
