package redislimit

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	beatEvery   = time.Second
	deadAfter   = 5 * time.Second
	closeWithin = time.Second
)

// beat notes an instance and counts those that live, by the clock of Redis. No key of a caller ends in
// braces, so nobody outside can name this one.
var beat = redis.NewScript(`
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]))
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('%.0f', now + ARGV[2]), '+inf')
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[2])
return redis.call('ZCARD', KEYS[1])
`)

// loop tells the others that this instance lives, and counts them, until Close.
func (l *Limiter) loop() {
	defer close(l.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.ctx.Done():
			l.leave()
			return
		case <-timer.C:
			l.beat()
			timer.Reset(beatEvery - beatEvery/4 + rand.N(beatEvery/2))
		}
	}
}

func (l *Limiter) heart() string { return l.o.Prefix + "{instances}" }

// beat keeps the last count while Redis is away.
func (l *Limiter) beat() {
	ctx, cancel := context.WithTimeout(l.ctx, beatEvery)
	defer cancel()
	n, err := beat.Run(ctx, l.client, []string{l.heart()}, l.id, deadAfter.Milliseconds()).Int64()
	if err == nil && n > 0 {
		l.seen.Store(n)
	}
}

func (l *Limiter) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin/4)
	defer cancel()
	_ = l.client.ZRem(ctx, l.heart(), l.id).Err()
}
