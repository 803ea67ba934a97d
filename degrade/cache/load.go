package cache

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A flight is a load that runs, for all who want its key.
type flight[T any] struct {
	done chan struct{} // closed when what follows is known

	v   T
	err error
	own bool // the error is about who loaded, not about the key: its context ended, or it panicked

	forgotten bool // by Delete: not to be stored; guarded by Cache.mu
}

// wanted is what a flight is for.
type wanted[T any] struct {
	key    string
	load   func(context.Context) (T, error)
	away   error  // why Redis is, or nil
	landed uint64 // flights that had ended before Redis was asked
}

// load has one caller at a time load a key, on its own goroutine, for the others too.
func (c *Cache[T]) load(ctx context.Context, w wanted[T]) (T, error) {
	for {
		f, mine := c.join(w.key)
		if mine {
			return c.lead(ctx, f, w)
		}
		select {
		case <-f.done:
			if !f.own {
				return f.v, f.err
			}
		case <-ctx.Done():
			var zero T
			return zero, ctx.Err()
		}
	}
}

// join returns the flight of key, started if there was none.
func (c *Cache[T]) join(key string) (f *flight[T], mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f = c.flights[key]; f != nil {
		return f, false
	}
	f = &flight[T]{done: make(chan struct{})}
	c.flights[key] = f
	return f, true
}

// leave ends f for those who wait.
func (c *Cache[T]) leave(key string, f *flight[T]) {
	c.mu.Lock()
	if c.flights[key] == f {
		delete(c.flights, key)
	}
	c.landed.Add(1)
	c.mu.Unlock()
	close(f.done)
}

// forget keeps flights of the keys from storing what they load, and from being joined.
func (c *Cache[T]) forget(keys []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		if f := c.flights[key]; f != nil {
			f.forgotten = true
			delete(c.flights, key)
		}
	}
}

func (c *Cache[T]) isForgotten(f *flight[T]) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f.forgotten
}

// lead loads and stores. While Redis is away it needs one of the slots.
func (c *Cache[T]) lead(ctx context.Context, f *flight[T], w wanted[T]) (T, error) {
	f.own = true // unless load returns
	defer c.leave(w.key, f)
	if w.away != nil {
		if err := c.slot(ctx); err != nil {
			f.err, f.own = err, ctx.Err() != nil
			return f.v, f.err
		}
		defer func() { <-c.loads }()
	} else if c.landed.Load() != w.landed { // another flight may have had this key
		switch r := c.read(ctx, w.key); {
		case r.fresh:
			f.v, f.own = r.v, false
			return f.v, nil
		case r.absent:
			f.err, f.own = ErrNotFound, false
			return f.v, f.err
		}
	}
	v, err := w.load(ctx)
	f.v, f.err, f.own = v, err, err != nil && ctx.Err() != nil
	if absent := errors.Is(err, ErrNotFound); (err == nil || absent) && !c.isForgotten(f) {
		// Whose client has gone meanwhile loads for the next. That one is told why what was loaded is not there.
		_ = c.write(context.WithoutCancel(ctx), w.key, v, absent)
	}
	return f.v, f.err
}

// slot takes a place among the loads while Redis is away.
func (c *Cache[T]) slot(ctx context.Context) error {
	select {
	case c.loads <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(c.o.Timeout)
	defer timer.Stop()
	select {
	case c.loads <- struct{}{}:
		return nil
	case <-timer.C:
		return ErrBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// renew loads an expired value in the background, if nobody does, there is a slot, and it did not fail just now.
func (c *Cache[T]) renew(w wanted[T]) {
	select {
	case c.renewals <- struct{}{}:
	default:
		return // a later Get will
	}
	c.mu.Lock()
	_, rests := c.resting[w.key]
	rests = rests || len(c.resting) >= maxResting // the loader fails anyway
	c.mu.Unlock()
	var f *flight[T]
	mine := false
	if !rests {
		f, mine = c.join(w.key)
	}
	if !mine {
		<-c.renewals
		return
	}
	go func() {
		defer func() {
			_ = recover() // of OnOrigin: a listener must not take the service down
			<-c.renewals
		}()
		if err := c.renewed(f, w); err != nil {
			c.rest(w.key)
			c.o.OnOrigin(w.key, Stale, err)
		}
	}()
}

// renewed is lead with a context of its own, for that of Get may be a *gin.Context, which is another request's by
// now. A panic is an error here: there is no caller who could recover it.
func (c *Cache[T]) renewed(f *flight[T], w wanted[T]) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), renewWithin)
	defer cancel()
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("cache: the loader panicked: %v", v)
		}
	}()
	if _, err = c.lead(ctx, f, w); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// rest keeps key from being renewed for a while.
func (c *Cache[T]) rest(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resting[key] = struct{}{}
	time.AfterFunc(renewPause, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.resting, key)
	})
}
