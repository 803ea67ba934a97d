package consul

import (
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/highball-go/highball/discovery"
)

// Watch yields the instances of service as Consul knows them, the whole set at each change, until ctx
// ends. An error (of the query, [ErrFiltered], [ErrNoLeader]) is yielded once per failed query, and the
// last set stands.
//
// All watches of one service share one poll: a later one gets the current set at once, a slow one skips to
// the newest, and the last one to end ends it.
func (c *Consul) Watch(ctx context.Context, service string) iter.Seq2[[]discovery.Instance, error] {
	return func(yield func([]discovery.Instance, error) bool) {
		if ctx.Err() != nil {
			return
		}
		w := c.join(service)
		leave := sync.OnceFunc(func() { c.leave(service, w) })
		// The end of ctx counts even while the caller is busy with what was yielded.
		stop := context.AfterFunc(ctx, leave)
		defer func() {
			stop()
			leave()
			if w.ctx.Err() != nil {
				<-w.done // no goroutine is left when the last watch returns
			}
		}()

		var set, failures int // the last that was yielded
		for ctx.Err() == nil {
			now := w.now.Load()
			switch {
			case set != now.set:
				set = now.set
				if !yield(now.instances, nil) {
					return
				}
			case now.err != nil && failures != now.failures:
				failures = now.failures
				if !yield(nil, now.err) {
					return
				}
			default:
				select {
				case <-now.next:
				case <-ctx.Done():
				}
			}
		}
	}
}

// join returns the watch of service, started if there was none.
func (c *Consul) join(service string) *watch {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.watches[service]
	if w == nil {
		w = &watch{done: make(chan struct{})}
		w.ctx, w.cancel = context.WithCancel(context.Background())
		w.now.Store(&news{next: make(chan struct{})})
		c.watches[service] = w
		p := &poll{Consul: c, service: service, watch: w}
		go func() {
			defer close(w.done)
			p.run(w.ctx)
		}()
	}
	w.users++
	return w
}

func (c *Consul) leave(service string, w *watch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.users--
	if w.users == 0 {
		delete(c.watches, service)
		w.cancel()
	}
}

// Age is how long ago Consul last answered, by watched service; one that it has not answered for yet is left
// out. While all is well that is at most Options.Wait and a little, for that is how long a poll may take.
func (c *Consul) Age() map[string]time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	ages := make(map[string]time.Duration, len(c.watches))
	for service, w := range c.watches {
		if at := w.answered.Load(); at != nil {
			ages[service] = time.Since(*at)
		}
	}
	return ages
}

// A watch is what the users of one service share. Its poll writes now, they read it.
type watch struct {
	users  int // guarded by Consul.mu
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when the poll has ended
	now    atomic.Pointer[news]

	answered atomic.Pointer[time.Time] // by Consul, last; nil: never
}

// news is replaced, never changed; next is closed when later news are in its place.
type news struct {
	instances []discovery.Instance
	set       int   // numbers the set; 0: none yet
	err       error // nil once a query has succeeded
	failures  int   // numbers err
	next      chan struct{}
}

// found is called after a query that succeeded. A set equal to the last one is none.
func (w *watch) found(in []discovery.Instance) {
	answered := time.Now()
	w.answered.Store(&answered)
	old := w.now.Load()
	same := old.set > 0 && slices.EqualFunc(old.instances, in, discovery.Instance.Equal)
	switch {
	case !same:
		w.replace(old, news{instances: in, set: old.set + 1, failures: old.failures})
	case old.err != nil:
		w.replace(old, news{instances: old.instances, set: old.set, failures: old.failures})
	}
}

func (w *watch) failed(err error) {
	old := w.now.Load()
	w.replace(old, news{instances: old.instances, set: old.set, err: err, failures: old.failures + 1})
}

func (w *watch) replace(old *news, by news) {
	by.next = make(chan struct{})
	w.now.Store(&by)
	close(old.next)
}
