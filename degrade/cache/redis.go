package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
)

// A record in Redis is one of these bytes, and after isValue what Encode made of it.
const (
	isValue  = 'v'
	isAbsent = 'n' // the loader said ErrNotFound
)

// What read found in Redis. Neither found nor absent: nothing, and err is why if Redis is away.
type reading[T any] struct {
	v                    T
	found, fresh, absent bool
	err                  error
}

// read takes one round trip.
func (c *Cache[T]) read(ctx context.Context, key string) (r reading[T]) {
	type answer struct {
		record string
		left   time.Duration
	}
	got, err := ask(ctx, c, key, func(ctx context.Context, key string) (answer, error) {
		var record *redis.StringCmd
		var left *redis.DurationCmd
		_, err := c.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			record, left = p.Get(ctx, key), p.PTTL(ctx, key)
			return nil
		})
		if err != nil {
			return answer{}, err
		}
		return answer{record.Val(), left.Val()}, nil
	})
	if err != nil {
		if !errors.Is(err, redis.Nil) {
			r.err = err
		}
		return r
	}
	switch {
	case got.record == "":
	case got.record[0] == isAbsent:
		r.absent = true
	case got.record[0] == isValue:
		v, err := c.o.Decode([]byte(got.record[1:]))
		if err == nil { // else it is of another version, and loaded anew
			r.v, r.found, r.fresh = v, true, got.left > c.o.Stale
		}
	}
	return r
}

// write stores what was loaded; absent for ErrNotFound.
func (c *Cache[T]) write(ctx context.Context, key string, v T, absent bool) error {
	record, life := []byte{isAbsent}, c.o.Negative
	if !absent {
		encoded, err := c.o.Encode(v)
		if err != nil {
			return fmt.Errorf("cache: encode: %w", err)
		}
		record = append([]byte{isValue}, encoded...)
		life = c.o.TTL - rand.N(c.o.TTL/20+1) + c.o.Stale
	}
	if life < time.Millisecond {
		return nil
	}
	refusal, err := ask(ctx, c, key, func(ctx context.Context, key string) (refusal, err error) {
		if err = c.client.Set(ctx, key, record, life).Err(); err != nil && refusesWrites(err) {
			return err, nil // it is there, and read as ever
		}
		return nil, err
	})
	if refusal != nil {
		err = fmt.Errorf("%w: %w", ErrRedis, refusal)
	}
	if err != nil {
		c.refused.Store(&err)
	} else if c.refused.Load() != nil { // all who load read it
		c.refused.Store(nil)
	}
	return err
}

// refusesWrites reports whether Redis says that it is out of memory, cannot save to its disk, lacks replicas or is one.
func refusesWrites(err error) bool {
	return slices.ContainsFunc([]string{"OOM", "MISCONF", "NOREPLICAS", "READONLY"}, func(code string) bool {
		return redis.HasErrorPrefix(err, code)
	})
}

// ask is a call of Redis within Timeout, if it is not known to be away. Its error is ErrRedis, or redis.Nil.
func ask[T, R any](ctx context.Context, c *Cache[T], key string, f func(context.Context, string) (R, error)) (r R, err error) {
	if c.client == nil {
		return r, fmt.Errorf("%w: there is no client", ErrRedis)
	}
	key = c.o.Prefix + key
	r, err = outage.Ask(ctx, c.guard, key, c.o.Timeout, false, func(ctx context.Context) (R, error) { return f(c.own(ctx), key) })
	if err == nil || errors.Is(err, redis.Nil) {
		return r, err
	}
	return r, fmt.Errorf("%w: %w", ErrRedis, err)
}

// own is ctx for the client. One that ignores deadlines may look at it when Get has returned, and a *gin.Context behind
// it is another request's by then: it gets no values.
func (c *Cache[T]) own(ctx context.Context) context.Context {
	if outage.Prompt(c.client) {
		return ctx
	}
	return valueless{ctx}
}

type valueless struct{ context.Context }

func (valueless) Value(any) any { return nil }
