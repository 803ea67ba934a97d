package jwtauth

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
	"time"
)

// A cache remembers tokens whose signature and claims were right. It is an array of slots without a lock: a
// token has four slots that it can be in, by a hash that clients cannot foresee, and takes the first that is
// free or over, else one of them. Only verified tokens get in, so nobody can fill it with garbage.
type cache struct {
	seed  maphash.Seed
	slots []atomic.Pointer[cached]
}

const ways = 4

type cached struct {
	hash  uint64
	raw   string
	token *Token
	until time.Time
}

// newCache remembers about n tokens: rounded up to a power of two.
func newCache(n int) *cache {
	size := ways
	for size < n {
		size *= 2
	}
	return &cache{seed: maphash.MakeSeed(), slots: make([]atomic.Pointer[cached], size)}
}

func (c *cache) slot(hash, i uint64) *atomic.Pointer[cached] {
	return &c.slots[(hash+i)&uint64(len(c.slots)-1)]
}

func (c *cache) get(raw string, now time.Time) *Token {
	hash := maphash.String(c.seed, raw)
	for i := range uint64(ways) {
		if e := c.slot(hash, i).Load(); e != nil && e.hash == hash && e.raw == raw && now.Before(e.until) {
			return e.token
		}
	}
	return nil
}

func (c *cache) put(raw string, t *Token, now, until time.Time) {
	hash := maphash.String(c.seed, raw)
	at := hash >> 62
	for i := range uint64(ways) {
		if e := c.slot(hash, i).Load(); e == nil || e.raw == raw || !now.Before(e.until) {
			at = i
			break
		}
	}
	c.slot(hash, at).Store(&cached{hash, strings.Clone(raw), t, until})
}
