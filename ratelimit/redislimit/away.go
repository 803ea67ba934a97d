package redislimit

import (
	"context"
	"time"

	"github.com/highball-go/highball/ratelimit"
)

// away decides while Redis is away.
func (l *Limiter) away(ctx context.Context, e *entry, b *bucket, key string, n int) (ratelimit.Decision, error) {
	d := ratelimit.Decision{Limit: int(b.burst), Window: b.window}
	var err error
	switch l.o.OnDown {
	case FailOpen:
		d.Allowed, d.Remaining = true, d.Limit
	case FailClosed:
		err = ratelimit.ErrUnavailable
	default:
		d, err = l.fallback().AllowN(ctx, key, n)
		e.fell.Store(true)
	}
	d.Source = "fallback"
	return d, err
}

// newFallback is this instance's share of the limits. It is made when Redis is away for the first time.
func (l *Limiter) newFallback() *ratelimit.Local {
	return ratelimit.New(share(l.limit, l.instances()), ratelimit.Options{
		LimitFor: func(key string) (ratelimit.Limit, bool) {
			limit := l.limit
			if l.o.LimitFor != nil {
				if own, ok := l.o.LimitFor(key); ok {
					limit = own
				}
			}
			return share(limit, l.instances()), true
		},
		Admission: l.o.Admission,
	})
}

const (
	minPause = 100 * time.Millisecond // between two calls while Redis is away
	maxPause = time.Second
)

// available reports whether a request may wait for Redis, and sees to it that somebody looks now and then.
func (l *Limiter) available(e *entry, b *bucket, now int64) bool {
	if l.client == nil || l.closed.Load() {
		return false
	}
	if !e.circuit.Open() {
		return true
	}
	if e.circuit.MayProbe(now) {
		l.startUnasked(e, b, job{need: 1, want: 1}) // a token, to see whether Redis takes writes
	}
	return false
}
