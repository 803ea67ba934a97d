package idempotency

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"
)

// A run is one call that has its key. It is reached through the context of its request.
type run struct {
	context.Context // the request's, which ends with ErrLost when the key is lost
	lose            context.CancelCauseFunc

	key  string // as the client sent it
	keep atomic.Int32

	s    *Store // nil: Redis was away when it began, and it has no lock
	name string // of the key in Redis
	lock string // what is there while it runs

	asking context.Context // of the renewals
	stop   context.CancelFunc
	timer  *time.Timer // of the next renewal

	mu    sync.Mutex // held while Redis is asked, so that no renewal comes after the end
	heard time.Time  // the lock was ours when we asked then
	lost  bool
	ended bool
}

// What Keep said.
const (
	keepByDefault = iota
	keepAlways
	keepNever
)

type runKey struct{}

// Value is context.Context's.
func (r *run) Value(key any) any {
	if key == (runKey{}) {
		return r
	}
	return r.Context.Value(key)
}

// runOf is the run that a context belongs to, or nil.
func runOf(ctx context.Context) *run {
	r, _ := ctx.Value(runKey{}).(*run)
	return r
}

// newLock is what a key holds while a call of the request with that fingerprint runs.
func (s *Store) newLock(fingerprint [fingerprintSize]byte) string {
	b := make([]byte, 0, headSize+tokenSize+len(s.terms))
	b = append(append(b, isRunning), fingerprint[:]...)
	b = b[:headSize+tokenSize]
	_, _ = rand.Read(b[headSize:]) // never fails
	return string(append(b, s.terms...))
}

// newRun is of a call that got its lock when it asked at heard.
func (s *Store) newRun(ctx context.Context, key, name, lock string, heard time.Time) *run {
	r := &run{key: key, s: s, name: name, lock: lock, heard: heard}
	r.Context, r.lose = context.WithCancelCause(ctx)
	r.asking, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.mu.Lock() // the timer may fire before it is here
	r.timer = time.AfterFunc(s.o.Lease/4, r.renew)
	r.mu.Unlock()
	return r
}

// renew runs four times in a lease, on a goroutine of its own, until finish.
func (r *run) renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	_ = r.hold(r.asking) // an outage ends or does not: there is nothing else to do
	if !r.lost && !r.ended {
		r.timer.Reset(r.s.o.Lease / 4)
	}
}

// hold asks Redis for the lock, under mu.
func (r *run) hold(ctx context.Context) error {
	now := time.Now()
	ours, err := r.s.settle(ctx, r.name, r.lock, r.lock, r.s.o.Lock)
	switch {
	case err != nil:
		return err
	case !ours:
		r.lost = true
		r.lose(ErrLost)
		return ErrLost
	}
	r.heard = now
	return nil
}

// confirm is nil when nobody can have taken the key over. It asks Redis only when the half of a lease has gone by since
// it was asked last.
func (r *run) confirm() error {
	if r.s == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.lost:
		return ErrLost
	case r.ended || time.Since(r.heard) < r.s.o.Lease/2:
		return nil
	}
	return r.hold(r.asking)
}

// finish replaces the lock by record, or frees the key if that is empty. What Redis does not take now it is offered
// again until the lock would be over.
func (r *run) finish(record string) {
	if r.s == nil {
		return
	}
	r.stop()
	r.timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.lose(nil)
	r.ended = true
	if r.lost {
		return
	}
	ctx := context.WithoutCancel(r.Context)
	if _, err := r.s.settle(ctx, r.name, r.lock, record, r.s.o.TTL); err == nil {
		return
	}
	if r.s.unstored.Add(1) > maxUnstored {
		r.s.unstored.Add(-1)
		return
	}
	later := &unstored{s: r.s, name: r.name, lock: r.lock, record: record, until: time.Now().Add(r.s.o.Lock)}
	time.AfterFunc(r.s.o.Lease/4, later.store)
}

// An unstored outcome of a call waits for Redis, without anything of its request.
type unstored struct {
	s                  *Store
	name, lock, record string
	until              time.Time
}

func (u *unstored) store() {
	for {
		_, err := u.s.settle(context.Background(), u.name, u.lock, u.record, u.s.o.TTL)
		if err == nil || time.Until(u.until) <= 0 {
			u.s.unstored.Add(-1)
			return
		}
		time.Sleep(u.s.o.Lease / 4)
	}
}
