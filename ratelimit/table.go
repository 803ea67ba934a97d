package ratelimit

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	ways      = 5   // slots per set
	maxShards = 256 // a power of two
	minSets   = 16  // per shard, before there is a second one
	golden    = 0x9e3779b97f4a7c15
)

// A table keeps one instant per key in memory that never grows. It knows a key by a 64-bit hash: half of it
// is stored, the rest says in which two sets of five slots it may be. The emptier one is taken, so that
// the sets fill evenly (Azar et al., "Balanced Allocations", STOC 1994): with two keys per set, none is
// without a slot. That two of a million keys share a bucket has a chance of one in a thousand.
//
// A key that is there is found and changed without a lock. A new one takes a slot whose instant has
// passed, for its key is as good as never seen, in the set that has more of them. When there is none, the key that will be full first loses
// its slot, and the new key begins with the debt of those around it instead of a full bucket: whoever
// comes back owes at least what it did.
type table struct {
	sets   []set
	per    uint64 // sets per shard
	mask   uint64 // shards - 1
	shards []shard
}

// A set is one line of the processor's cache. A slot is free, or has lost its key, while its tag is 0. It
// is read full first, then tag: see [shard.add].
type set struct {
	tag  [ways]atomic.Uint32
	_    uint32
	full [ways]atomic.Int64
}

// A place is where a key may be.
type place struct {
	one, two *set
	tag      uint32
}

type shard struct {
	mu   sync.Mutex // held to give slots to new keys
	now  int64      // latest time of such a change: older callers must not find what it forgot fresh
	debt int64      // latest instant of a key that lost its slot before its time
	_    [40]byte
}

// newTable has a set for every two keys.
func newTable(keys int) *table {
	sets := (uint64(keys) + 1) / 2
	shards := uint64(1)
	for shards < maxShards && sets/(shards*2) >= minSets {
		shards *= 2
	}
	per := max((sets+shards-1)/shards, 2)
	return &table{sets: make([]set, shards*per), per: per, mask: shards - 1, shards: make([]shard, shards)}
}

// find returns the place of hash: two sets of its shard.
func (t *table) find(hash uint64) place {
	a, _ := bits.Mul64(hash, t.per)
	b, _ := bits.Mul64(hash*golden, t.per)
	if a == b {
		if b++; b == t.per {
			b = 0
		}
	}
	base := hash & t.mask * t.per
	return place{&t.sets[base+a], &t.sets[base+b], max(uint32(hash>>8), 1)}
}

// search returns the slot of the key at p, or -1. It looks at both sets by turns, so that the processor
// waits for the memory of both at once.
func (p place) search() (*set, int) {
	for i := range ways {
		if p.one.tag[i].Load() == p.tag {
			return p.one, i
		}
		if p.two.tag[i].Load() == p.tag {
			return p.two, i
		}
	}
	return p.one, -1
}

// take takes n tokens of the bucket b at p, if there is a slot for it.
func (p place) take(b *bucket, now, n int64) (full int64, ok, found bool) {
	for {
		s, i := p.search()
		if i < 0 || i >= ways {
			return 0, false, false
		}
		for {
			old := s.full[i].Load()
			if s.tag[i].Load() != p.tag {
				break // it lost its slot between the two
			}
			if full, ok = b.take(old, now, n); !ok || n == 0 {
				return full, ok, true
			}
			if s.full[i].CompareAndSwap(old, full) {
				return full, true, true
			}
		}
	}
}

// give gives back n tokens to the bucket b at p. A key without a slot has a full one.
func (p place) give(b *bucket, now, n int64) {
	for {
		s, i := p.search()
		if i < 0 {
			return
		}
		old := s.full[i].Load()
		if s.tag[i].Load() != p.tag {
			continue
		}
		if full := b.give(old, now, n); full >= old || s.full[i].CompareAndSwap(old, full) {
			return
		}
	}
}

// takeNew is take for a key that has no slot, as far as the caller saw. full is the instant afterwards, at
// the time that counted.
func (t *table) takeNew(hash uint64, p place, b *bucket, now, n int64) (full, at int64, ok bool) {
	sh := &t.shards[hash&t.mask]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for {
		full, ok, found := p.take(b, now, n)
		if found {
			return full, now, ok
		}
		sh.now = max(sh.now, now)
		now = sh.now
		full, ok, again := sh.add(p, b, now, n)
		if !again {
			return full, now, ok
		}
	}
}

// add is take for a key without a slot. Whoever changes a slot without the lock has loaded full before it
// saw its key's tag there; here the tag goes first, and full changes only from what was seen. So either
// that change is made first, and the slot is left to its key, or it fails.
func (sh *shard) add(p place, b *bucket, now, n int64) (full int64, ok, again bool) {
	first, second := look(p.one, now), look(p.two, now)
	if second.free > first.free || first.free == 0 && second.full < first.full {
		first, second = second, first
	}
	victim, i, old := first.set, first.i, first.full
	start := int64(0)
	if old > now || sh.debt > now { // it may be one of those that lost their slot
		start = max(old, second.full)
	}
	full, ok = b.take(start, now, n)
	if !ok || n == 0 {
		return full, ok, false
	}
	was := victim.tag[i].Load()
	victim.tag[i].Store(0)
	if !victim.full[i].CompareAndSwap(old, full) {
		victim.tag[i].Store(was)
		return 0, false, true
	}
	victim.tag[i].Store(p.tag)
	if old > now {
		sh.debt = max(sh.debt, old)
	}
	return full, true, false
}

// A view is what a new key sees of a set.
type view struct {
	*set
	i    int   // slot whose bucket will be full first, or is so
	full int64 // its instant
	free int   // slots whose instant has passed
}

func look(s *set, now int64) view {
	v := view{set: s, full: math.MaxInt64}
	for i := range s.full {
		full := s.full[i].Load()
		if full <= now {
			v.free++
		}
		if full < v.full {
			v.i, v.full = i, full
		}
	}
	return v
}
