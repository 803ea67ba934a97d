// Package outage is what a package needs to live with a Redis that is away.
package outage

import (
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Tolerated is how many failures in a row open a circuit.
const Tolerated = 3

var epoch = time.Now()

// Now is what MayProbe and Heard take. It is not the time of day, which may be set back, and then no probe would begin.
func Now() int64 { return int64(time.Since(epoch)) }

// A Circuit keeps requests from waiting for a Redis that does not answer. After so many failures in a row
// no request waits; now and then one probe may, and its success ends that. It is safe for concurrent use.
type Circuit struct {
	failures atomic.Int32
	retry    atomic.Int64 // when the next probe may begin
	refusing atomic.Int64 // until when writes are not tried; 0: they are
	min, max int64
	_        [24]byte // a cache line
}

// Open reports whether only a probe may ask Redis.
func (c *Circuit) Open() bool { return c.failures.Load() >= Tolerated }

// MayProbe claims the probe that may begin now; now is Now, or nanoseconds of another clock that is never set back.
func (c *Circuit) MayProbe(now int64) bool {
	at := c.retry.Load()
	return now >= at && c.retry.CompareAndSwap(at, now+c.pause())
}

// pause doubles with each probe that fails, and is jittered by a fourth.
func (c *Circuit) pause() int64 {
	d := c.min << min(max(c.failures.Load()-Tolerated, 0), 10)
	d = min(d, c.max)
	return d - d/4 + rand.N(max(d/2, 1))
}

// Heard counts how a call ended. Of an open circuit only probes say how it is: the others began before.
func (c *Circuit) Heard(ok, probe bool, now int64) {
	switch {
	case ok:
		if c.failures.Load() != 0 { // a line that all requests read is not written for nothing
			c.failures.Store(0)
		}
	case c.Open() && !probe:
	case c.failures.Add(1) == Tolerated:
		c.retry.Store(now + c.pause())
	}
}

// refusalLasts is for how long writes that may be left out are, after one was refused: clients try again and again, and
// the request would wait for that.
const refusalLasts = time.Second

// Refused says that Redis answers and takes no writes.
func (c *Circuit) Refused() { c.refusing.Store(Now() + int64(refusalLasts)) }

// MayTakeWrites is false for a second after Refused.
func (c *Circuit) MayTakeWrites() bool {
	until := c.refusing.Load()
	return until == 0 || Now() >= until
}

// A Group is the circuits of one client.
type Group []Circuit

// groups is among how many circuits the slots of a Redis Cluster are divided: one node that is down takes
// the keys of no other with it.
const (
	groups = 64
	// ClusterSlots is how many slots a Redis Cluster has.
	ClusterSlots = 1 << 14
)

// For is one circuit, or many for a client that has many servers. Between two probes of one are about
// shortest at first, and longest in the end.
func For(client redis.UniversalClient, shortest, longest time.Duration) Group {
	g := make(Group, 1)
	switch client.(type) {
	case *redis.ClusterClient, *redis.Ring:
		g = make(Group, groups)
	}
	for i := range g {
		g[i].min, g[i].max = int64(shortest), int64(longest)
	}
	return g
}

// Of is the circuit of a key in Redis.
func (g Group) Of(key string) *Circuit {
	if len(g) == 1 {
		return &g[0]
	}
	return &g[SlotOf(key)/(ClusterSlots/groups)]
}

// SlotOf is the slot of a key in a Redis Cluster (its specification, "Key distribution model" and "Hash
// tags"): CRC-16/XMODEM of the key or of the first text in braces.
func SlotOf(key string) int {
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
	return int(crc) & (ClusterSlots - 1)
}

// Prompt reports whether a client gives up at the deadline of a context, so that a request can call it
// itself and is spared two switches of goroutines.
func Prompt(client redis.UniversalClient) bool {
	switch c := client.(type) {
	case *redis.Client:
		return c.Options().ContextTimeoutEnabled
	case *redis.ClusterClient:
		return c.Options().ContextTimeoutEnabled
	case *redis.Ring:
		return c.Options().ContextTimeoutEnabled
	}
	return false
}
