package redislimit

import (
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A circuit keeps requests from waiting for a Redis that does not answer. After so many failures in a row
// no request waits; one in a while begins a call without waiting for it, and its success ends that.
type circuit struct {
	failures atomic.Int32
	retry    atomic.Int64 // when the next call may begin
	_        [48]byte
}

const (
	tolerated = 3 // failures in a row
	minPause  = 100 * time.Millisecond
	maxPause  = time.Second
)

func (c *circuit) open() bool { return c.failures.Load() >= tolerated }

// mayProbe claims the call that may begin now.
func (c *circuit) mayProbe(now int64) bool {
	at := c.retry.Load()
	return now >= at && c.retry.CompareAndSwap(at, now+c.pause())
}

// pause doubles with each call that fails, and is jittered.
func (c *circuit) pause() int64 {
	d := minPause << min(max(c.failures.Load()-tolerated, 0), 10)
	d = min(d, maxPause)
	return int64(d - d/4 + rand.N(d/2))
}

// heard counts how a call ended. Of an open circuit only calls that no request waits for say how it is:
// the others began before.
func (c *circuit) heard(ok, unasked bool, now int64) {
	switch {
	case ok:
		c.failures.Store(0)
	case c.open() && !unasked:
	case c.failures.Add(1) == tolerated:
		c.retry.Store(now + c.pause())
	}
}

// available reports whether a request may wait for Redis, and sees to it that somebody looks now and then.
func (l *Limiter) available(e *entry, b *bucket, now int64) bool {
	if l.client == nil || l.closed.Load() {
		return false
	}
	if !e.circuit.open() {
		return true
	}
	if e.circuit.mayProbe(now) {
		l.startUnasked(e, b, job{need: 1, want: 1}) // a token, to see whether Redis takes writes
	}
	return false
}

// groups is among how many circuits the slots of a Redis Cluster are divided: one node that is down takes
// the keys of no other with it.
const (
	groups       = 64
	clusterSlots = 1 << 14
)

// circuitsFor is one circuit, or many for a client that has many servers.
func circuitsFor(client redis.UniversalClient) []circuit {
	switch client.(type) {
	case *redis.ClusterClient, *redis.Ring:
		return make([]circuit, groups)
	}
	return make([]circuit, 1)
}

func (l *Limiter) circuitOf(redisKey string) *circuit {
	if len(l.circuits) == 1 {
		return &l.circuits[0]
	}
	return &l.circuits[slotOf(redisKey)/(clusterSlots/groups)]
}

// slotOf is the slot of a key in a Redis Cluster (its specification, "Key distribution model" and "Hash
// tags"): CRC-16/XMODEM of the key or of the first text in braces.
func slotOf(key string) int {
	if _, after, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			key = tag
		}
	}
	crc := uint16(0)
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			top := crc & 0x8000
			crc <<= 1
			if top != 0 {
				crc ^= 0x1021
			}
		}
	}
	return int(crc) & (clusterSlots - 1)
}
