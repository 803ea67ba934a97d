package degrade

import (
	"slices"
	"time"
)

// expire ends what the call of Force with that number has forced.
func (d *Controller) expire(force int) {
	d.mu.Lock()
	if d.forces == force {
		d.release()
		d.settle()
	}
	d.unlockAndTell()
}

// release forgets what was forced. It needs the lock.
func (d *Controller) release() {
	d.forces++
	if !d.closed {
		d.forced = false
		d.until.Store(0)
	}
	d.stopTimer()
}

// stopTimer needs the lock.
func (d *Controller) stopTimer() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// decide lets the score of now decide, with hysteresis. It needs the lock.
func (d *Controller) decide(now time.Time, score float64) {
	switch {
	case !d.auto:
		d.auto = score >= d.o.Threshold
		d.below = time.Time{}
	case score >= d.o.Recover:
		d.below = time.Time{}
	case d.below.IsZero():
		d.below = now
	case now.Sub(d.below) >= d.o.RecoverFor:
		d.auto = false
	}
}

// settle publishes the state, and queues the change if it is one. It needs the lock.
func (d *Controller) settle() {
	degraded := d.auto
	if d.forced {
		degraded = d.forcedTo
	}
	if d.closed || degraded == d.degraded.Load() {
		return
	}
	d.degraded.Store(degraded)
	if d.o.OnChange != nil {
		p := d.picture.Load()
		d.changes = append(d.changes, Change{
			Degraded: degraded, Score: p.score, Why: slices.Clone(p.why), Forced: d.forced,
		})
	}
}

// unlockAndTell releases the lock and calls OnChange for what is queued, in order. One goroutine tells at
// a time; what others queue meanwhile, it tells too. If the hook does not return, the next one goes on.
func (d *Controller) unlockAndTell() {
	if d.telling {
		d.mu.Unlock()
		return
	}
	d.telling = true
	defer func() {
		d.telling = false
		d.mu.Unlock()
	}()
	for len(d.changes) > 0 {
		d.tell()
	}
}

// tell calls OnChange for the first queued change. It needs the lock and gives it back, also when the
// hook panics: a listener must not take the service down.
func (d *Controller) tell() {
	c := d.changes[0]
	d.changes = slices.Delete(d.changes, 0, 1)
	d.mu.Unlock()
	defer func() {
		_ = recover()
		d.mu.Lock()
	}()
	d.o.OnChange(c)
}

// retryAfter is when a client that is refused now may find the service well, at the soonest.
func (d *Controller) retryAfter() time.Duration {
	if until := d.until.Load(); until > 0 {
		return time.Duration(until) - time.Since(d.epoch)
	}
	return d.o.RecoverFor
}
