package degrade

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A plant is a service with so many workers, each of which takes the time of work, in fake time.
type plant struct {
	workers chan struct{}
	work    time.Duration
	limit   *Concurrency
	fails   bool

	mu      sync.Mutex
	served  []time.Duration
	refused int
}

func newPlant(workers int, work time.Duration, o ConcurrencyOptions) *plant {
	return &plant{workers: make(chan struct{}, workers), work: work, limit: NewConcurrency(o)}
}

// offer sends requests at a constant rate for so long, and waits until they have ended.
func (p *plant) offer(perSecond int, during time.Duration) (served []time.Duration, refused int) {
	p.served, p.refused = nil, 0
	var all sync.WaitGroup
	for range int(float64(perSecond) * during.Seconds()) {
		all.Go(p.request)
		time.Sleep(time.Second / time.Duration(perSecond))
	}
	all.Wait()
	slices.Sort(p.served)
	return p.served, p.refused
}

func (p *plant) request() {
	start := time.Now()
	if p.limit != nil && !p.limit.acquire(false) {
		p.mu.Lock()
		p.refused++
		p.mu.Unlock()
		return
	}
	p.workers <- struct{}{}
	// No two requests are the same; the mean is that of work.
	time.Sleep(p.work/2 + rand.N(p.work))
	<-p.workers
	if p.limit != nil {
		p.limit.observe(start, time.Now(), p.fails)
		p.limit.release()
	}
	p.mu.Lock()
	p.served = append(p.served, time.Since(start))
	p.mu.Unlock()
}

func p99(sorted []time.Duration) time.Duration { return sorted[len(sorted)*99/100] }

func TestOverloadIsShedAndWhatIsAdmittedStaysFast(t *testing.T) {
	for name, o := range map[string]ConcurrencyOptions{
		"from the default":       {},
		"from far too high":      {Initial: 1000},
		"from far too low":       {Initial: 1},
		"with another tolerance": {Tolerance: 1.3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlant(10, 20*time.Millisecond, o) // 500/s
				calm, refused := p.offer(200, 20*time.Second)
				if refused > 0 && o.Initial != 1 {
					t.Errorf("%d refused at 40 %% of the capacity", refused)
				}
				p.offer(5000, 10*time.Second)                      // it may take a while to notice
				overload, refused := p.offer(5000, 60*time.Second) // and must then last
				if goodput := float64(len(overload)) / 60; goodput < 450 {
					t.Errorf("goodput %.0f/s of 500/s at ten times the capacity", goodput)
				}
				if refused < 200_000 {
					t.Errorf("%d refused", refused)
				}
				if c, o := p99(calm), p99(overload); o > 2*c {
					t.Errorf("p99 of the admitted is %v, and was %v when calm", o, c)
				}
				if _, refused := p.offer(200, 20*time.Second); refused > 0 {
					t.Errorf("%d refused after the overload", refused)
				}
			})
		})
	}
}

func TestAnOverloadFromTheFirstRequestOnIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(10, 20*time.Millisecond, ConcurrencyOptions{Initial: 500})
		p.offer(5000, 20*time.Second)
		overload, _ := p.offer(5000, 30*time.Second)
		if n := p99(overload); n > 100*time.Millisecond {
			t.Errorf("p99 of the admitted is %v", n)
		}
		if goodput := float64(len(overload)) / 30; goodput < 450 {
			t.Errorf("goodput %.0f/s of 500/s", goodput)
		}
	})
}

func TestAServiceThatBecomesSlowerForGoodIsNotThrottledForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(100, 20*time.Millisecond, ConcurrencyOptions{})
		p.offer(400, 10*time.Second)
		p.work = 100 * time.Millisecond // 40 in flight of 100 workers
		p.offer(400, 30*time.Second)
		if _, refused := p.offer(400, 30*time.Second); refused > 120 {
			t.Errorf("%d of 12 000 refused although there are workers", refused)
		}
	})
}

func TestTheLimitGrowsWithWhatTheServiceCanDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(400, 100*time.Millisecond, ConcurrencyOptions{Initial: 10})
		p.offer(3000, 20*time.Second)
		if _, refused := p.offer(3000, 20*time.Second); refused > 600 {
			t.Errorf("%d of 60 000 refused with 300 in flight of 400 workers; the limit is %d", refused, p.limit.Limit())
		}
	})
}

func TestFastFailuresTeachNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(10, 20*time.Millisecond, ConcurrencyOptions{})
		p.offer(200, 10*time.Second)
		p.fails, p.work = true, time.Millisecond
		p.offer(200, 10*time.Second)
		p.fails, p.work = false, 20*time.Millisecond
		if _, refused := p.offer(200, 10*time.Second); refused > 0 {
			t.Errorf("%d refused after a burst of fast failures; the limit is %d", refused, p.limit.Limit())
		}
	})
}

func TestTheLimitIsLoweredWhenTheLatencyIsOverTolerance(t *testing.T) {
	for tolerance, want := range map[float64]float64{0: 1.25, 2: 2, 1: 1.25, -3: 1.25, math.Inf(1): 1.25, math.NaN(): 1.25} {
		l := NewConcurrency(ConcurrencyOptions{Initial: 100, Tolerance: tolerance})
		l.calm = 100 * time.Millisecond
		at := time.Duration(want * float64(l.calm))
		if got := l.next(at); got != 110 {
			t.Errorf("tolerance %v: at %v times the calm latency the limit becomes %v, want 110", tolerance, want, got)
		}
		if got := l.next(at * 11 / 10); got >= 101 {
			t.Errorf("tolerance %v: above %v times the calm latency the limit becomes %v", tolerance, want, got)
		}
	}
}

func TestTheLimitStaysWithinItsBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(1, time.Second, ConcurrencyOptions{Initial: 1e6, Max: 20})
		if n := p.limit.Limit(); n != 20 {
			t.Errorf("the limit is %d at first, want Max", n)
		}
		p.offer(100, 2*time.Minute)
		if n := p.limit.Limit(); n < leastLimit || n > 20 {
			t.Errorf("the limit is %d", n)
		}
		if n := p.limit.InFlight(); n != 0 {
			t.Errorf("%d in flight when all have ended", n)
		}
		for _, o := range []ConcurrencyOptions{{Max: 1}, {Initial: -1, Max: -1, Tolerance: math.NaN()}, {Tolerance: math.Inf(1)}} {
			if n := NewConcurrency(o).Limit(); n != leastLimit && n != 20 {
				t.Errorf("with %+v the limit is %d", o, n)
			}
		}
	})
}
