package cluster

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// memory is for how many intervals what Redis said last is honoured.
const memory = 3

// A store is where the instances meet.
type store interface {
	// exchange replaces what this instance has told by own, and returns the sums.
	exchange(ctx context.Context, own counts) (*snapshot, error)
	// leave takes back what this instance has told.
	leave(ctx context.Context) error
}

// A loop has what only the goroutine of a Cluster touches.
type loop struct {
	*Cluster
	spare   counts // takes the place of pending
	window  window
	heard   time.Time      // when Redis last answered
	judged  time.Time      // when the admission was last set
	results chan *snapshot // of the exchange that runs; nil in it: it failed
	running bool           // an exchange is
	late    bool           // the one that runs: what it will say is too old
}

func newLoop(c *Cluster) *loop {
	return &loop{
		Cluster: c,
		spare:   counts{},
		window:  window{span: c.o.Window},
		judged:  time.Now(),
		results: make(chan *snapshot, 1), // so that an exchange ends also when nobody hears it
	}
}

// run exchanges counts until ctx ends. An exchange runs on a goroutine of its own, one at a time, for a
// client may take seconds to notice that Redis hangs: the loop goes on meanwhile.
func (l *loop) run(ctx context.Context) {
	defer close(l.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			l.forget()
			l.leave()
			return
		case <-timer.C:
			timer.Reset(l.pause())
			l.tick(ctx)
		case said := <-l.results:
			if l.running = false; !l.late {
				l.decide(said)
			}
			l.late = false
		}
	}
}

// pause is never more than Interval, so that what is reported here is known everywhere within two.
func (l *loop) pause() time.Duration {
	return l.o.Interval - rand.N(l.o.Interval/10)
}

// tick begins an interval.
func (l *loop) tick(ctx context.Context) {
	l.window.add(l.take(), time.Now())
	clear(l.spare)
	if l.running || l.store == nil {
		l.late = l.running
		l.decide(nil)
		return
	}
	l.running = true
	own := l.window.sums()
	go func() {
		ctx, cancel := context.WithTimeout(ctx, l.o.Interval*4/5) // before the next tick
		defer cancel()
		said, err := l.store.exchange(ctx, own)
		if err != nil {
			said = nil
		}
		l.results <- said
	}()
}

// take returns what is pending, in a map that is the loop's until it takes again.
func (l *loop) take() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending, l.spare = l.spare, l.pending
	return l.spare
}

// decide is called once an interval, with what Redis said; nil: nothing.
func (l *loop) decide(said *snapshot) {
	now := time.Now()
	switch {
	case said != nil:
		l.heard = now
		l.snap.Store(said)
	case l.heard.IsZero() || now.Sub(l.heard) > memory*l.o.Interval:
		l.snap.Store(l.window.sums().alone())
	}
	l.judge(now)
}

// judge sets the admission.
func (l *loop) judge(now time.Time) {
	all := l.snap.Load().all()
	was := l.Admission()
	next := min(was+0.1*now.Sub(l.judged).Seconds(), 1)
	if all.total >= minVolume && float64(all.errors)*100 > float64(l.o.ErrorPercent)*float64(all.total) {
		next = max(was/2, l.o.Floor)
	}
	l.judged = now
	if next == was {
		return
	}
	l.factor.Store(math.Float64bits(next))
	if l.o.OnChange != nil {
		l.o.OnChange(next)
	}
}

// leave takes this instance off the live ones, after an exchange that runs: else that would put it back.
func (l *loop) leave() {
	if l.store == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin/2)
	defer cancel()
	if l.running {
		select {
		case <-l.results:
		case <-ctx.Done(): // it hangs, and so would this
			return
		}
	}
	_ = l.store.leave(ctx)
}
