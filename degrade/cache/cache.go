// Package cache answers from Redis, else from the loader, else with a default, and says which.
//
//	users := cache.New(client, cache.Options[User]{Prefix: "user:", Default: func(string) (User, bool) { return guest, true }})
//	user, origin, err := users.Get(ctx, id, func(ctx context.Context) (User, error) { return db.User(ctx, id) })
//
// What is loaded goes back into Redis, fresh for TTL and, for when the loader fails, kept for Stale beyond it. An
// expired value is served at once while one goroutine renews it. In this process a key is loaded once at a time,
// whoever asks for it; the others wait for that, and if its caller goes away another one of them loads.
//
// A Redis that is away is not a cache that is empty: no Get waits for it after a few have failed, and no more than Loads
// loader calls run at once, so that its outage does not become one of what is behind the loader. A Get that finds no
// place within Timeout gets the default. So it is with a Redis that answers but stores nothing, for want of memory or
// disk, or as a replica.
//
// Stale values are those of RFC 5861 (stale-while-revalidate and stale-if-error). Age is by Redis' clock.
package cache

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
)

var (
	// ErrNotFound is a loader's answer, wrapped or not: it is remembered for Negative and returned, with no default
	// in its place.
	ErrNotFound = errors.New("cache: not found")
	// ErrBusy is returned where there is no default when Redis is away and Loads loader calls run already.
	ErrBusy = errors.New("cache: too many loads while Redis is away")
	// ErrRedis is what [Cache.Delete] returns, and OnOrigin is told, when Redis does not do its part.
	ErrRedis = errors.New("cache: redis")

	errNoLoader = errors.New("cache: there is no loader")
)

// Origin says where a value is from.
type Origin int

// Origins.
const (
	Hit     Origin = iota // fresh, from Redis
	Miss                  // loaded, and stored where Redis answers
	Stale                 // expired, served because the loader failed or while it is being renewed
	Default               // nothing better: the default value
)

// String is hit, miss, stale or degraded.
func (o Origin) String() string {
	switch o {
	case Hit:
		return "hit"
	case Miss:
		return "miss"
	case Stale:
		return "stale"
	default:
		return "degraded"
	}
}

// Options configures [New]. The zero value is ready to use, but two caches on one Redis need their own Prefix.
type Options[T any] struct {
	// Prefix is that of the keys in Redis.
	Prefix string
	// TTL is how long a value is fresh, less up to 5 %, by chance, so that what was loaded together does not
	// expire together. Zero or less: 1 min.
	TTL time.Duration
	// Stale is how long a value is kept beyond TTL. Zero: 10 min. Negative: not at all.
	Stale time.Duration
	// Negative is how long ErrNotFound is remembered. Zero: 5 s. Negative: not at all.
	Negative time.Duration
	// Timeout bounds one call of Redis. Zero or less: 50 ms.
	Timeout time.Duration
	// Loads is how many loader calls may run at once while Redis is away or takes nothing, and how many values are
	// renewed at once in the background. Zero or less: 8.
	Loads int
	// Default, if not nil, is the value for when there is nothing better; ok false: there is none for this key.
	Default func(key string) (v T, ok bool)
	// Encode and Decode make bytes of a value and back. Nil: JSON.
	Encode func(T) ([]byte, error)
	Decode func([]byte) (T, error)
	// OnOrigin, if not nil, is called once for each Get, on its goroutine, and for each renewal that fails, on that
	// one's, where a panic in it ends with the call. err is why it is not better: what the loader said or, wrapped in
	// ErrRedis, Redis.
	OnOrigin func(key string, o Origin, err error)
}

const (
	renewWithin = 10 * time.Second // else its context ends
	renewPause  = time.Second      // after one that failed
	maxResting  = 1000             // keys that pause
)

// Cache is safe for concurrent use. It has a goroutine only for each renewal that runs, which takes 10 s at most if
// the loader heeds its context.
type Cache[T any] struct {
	client   redis.UniversalClient
	o        Options[T]
	guard    *outage.Guard
	loads    chan struct{} // slots of loads while Redis is away
	renewals chan struct{}

	landed  atomic.Uint64         // flights that have ended
	refused atomic.Pointer[error] // why Redis did not take what was loaded last; nil: it did

	mu      sync.Mutex // guards the fields below; taken where something is to be loaded, and by Delete
	flights map[string]*flight[T]
	resting map[string]struct{} // keys whose renewal has just failed
}

// New never dials; it cannot fail: every value of o has a meaning. With a nil client Redis is away.
func New[T any](client redis.UniversalClient, o Options[T]) *Cache[T] {
	o.TTL = cmp.Or(max(o.TTL, 0), time.Minute)
	o.Stale = max(cmp.Or(o.Stale, 10*time.Minute), 0)
	o.Negative = max(cmp.Or(o.Negative, 5*time.Second), 0)
	o.Timeout = cmp.Or(max(o.Timeout, 0), 50*time.Millisecond)
	o.Loads = cmp.Or(max(o.Loads, 0), 8)
	if o.Default == nil {
		o.Default = func(string) (v T, ok bool) { return v, false }
	}
	if o.Encode == nil {
		o.Encode = func(v T) ([]byte, error) { return json.Marshal(v) }
	}
	if o.Decode == nil {
		o.Decode = func(b []byte) (v T, err error) { return v, json.Unmarshal(b, &v) }
	}
	if o.OnOrigin == nil {
		o.OnOrigin = func(string, Origin, error) {}
	}
	return &Cache[T]{
		client: client, o: o,
		guard:    outage.NewGuard(client, 100*time.Millisecond, time.Second),
		loads:    make(chan struct{}, o.Loads),
		renewals: make(chan struct{}, o.Loads),
		flights:  make(map[string]*flight[T]),
		resting:  make(map[string]struct{}),
	}
}

// Get never fails because Redis is away: then it loads, and if that fails, serves the default. The error is the
// loader's, and only when there is no default; it is [ErrBusy] for a load that could not begin, and what ctx says when
// ctx ends. load gets ctx, or in the background a context of its own, without ctx's values.
func (c *Cache[T]) Get(ctx context.Context, key string, load func(context.Context) (T, error)) (T, Origin, error) {
	if load == nil {
		load = func(context.Context) (v T, err error) { return v, errNoLoader }
	}
	w := wanted[T]{key: key, load: load, landed: c.landed.Load()}
	r := c.read(ctx, key)
	switch {
	case r.absent:
		c.o.OnOrigin(key, Hit, nil)
		return r.v, Hit, ErrNotFound
	case r.found && r.fresh:
		c.o.OnOrigin(key, Hit, nil)
		return r.v, Hit, nil
	case r.found:
		c.renew(w)
		c.o.OnOrigin(key, Stale, nil)
		return r.v, Stale, nil
	}
	if w.away = r.err; w.away == nil {
		if refused := c.refused.Load(); refused != nil {
			w.away = *refused
		}
	}
	v, err := c.load(ctx, w)
	switch {
	case err == nil:
		c.o.OnOrigin(key, Miss, w.away)
		return v, Miss, nil
	case errors.Is(err, ErrNotFound):
		c.o.OnOrigin(key, Miss, w.away)
		return v, Miss, err
	}
	def, ok := c.o.Default(key)
	c.o.OnOrigin(key, Default, err)
	if ok {
		return def, Default, nil
	}
	return def, Default, err
}

// Delete has the next Get of each key load it anew. When it fails ([ErrRedis]) what Redis holds may still be served. A
// load that runs in this process meanwhile is not stored; one in another process may be, and what it read
// before is then served for TTL at most.
func (c *Cache[T]) Delete(ctx context.Context, keys ...string) error {
	c.forget(keys)
	if len(keys) == 0 {
		return nil
	}
	if c.client == nil {
		return fmt.Errorf("%w: there is no client", ErrRedis)
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	_, err := outage.Call(ctx, c.guard.Caller, func(ctx context.Context) ([]redis.Cmder, error) {
		ctx = c.own(ctx)
		return c.client.Pipelined(ctx, func(p redis.Pipeliner) error { // one by one: they may be on several nodes
			for _, key := range keys {
				p.Del(ctx, c.o.Prefix+key)
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRedis, err)
	}
	return nil
}
