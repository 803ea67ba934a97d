package redislimit

import (
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"math"
	"strings"
	"sync/atomic"
)

const (
	slots  = 1 << 14
	ways   = 4
	maxKey = 128 // bytes of a key that is stored as it is
)

// A table remembers at most slots keys: what asks for more makes others forgotten, which costs them a
// round trip. Finding takes no lock.
type table [slots]atomic.Pointer[entry]

// entry finds or makes the entry of a key. Two that race may each make one: the loser's is used once and
// forgotten.
func (l *Limiter) entry(key string) *entry {
	long := len(key) > maxKey
	if long {
		sum := sha256.Sum256([]byte(key))
		key = hex.EncodeToString(sum[:])
	}
	hash := maphash.String(l.seed, key)
	set := l.table[hash&(slots-1)&^(ways-1):][:ways]
	victim, oldest := 0, int64(math.MaxInt64)
	var found *entry // in the victim's slot
	for i := range set {
		e := set[i].Load()
		if e != nil && e.hash == hash && e.key == key && e.long == long {
			return e
		}
		seen := int64(math.MinInt64)
		if e != nil {
			seen = e.last.Load()
		}
		if seen < oldest {
			victim, oldest, found = i, seen, e
		}
	}
	e := l.newEntry(key, long, hash)
	set[victim].CompareAndSwap(found, e)
	return e
}

func (l *Limiter) newEntry(key string, long bool, hash uint64) *entry {
	e := &entry{key: strings.Clone(key), long: long, hash: hash}
	e.redis = l.o.Prefix + escaped(key)
	if long {
		e.redis = l.o.Prefix + "%sha256:" + key // no short key is escaped to this
	}
	e.circuit = l.circuits.Of(e.redis)
	e.last.Store(math.MinInt64 / 2)
	return e
}

// escaped is a key for Redis that no other key has: what is not printable ASCII, the percent sign, and the
// braces, which choose the slot of a Redis Cluster, become %XX.
func escaped(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; c <= ' ' || c > '~' || c == '%' || c == '{' || c == '}' {
			b.WriteByte('%')
			b.WriteString(hex.EncodeToString([]byte{c}))
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
