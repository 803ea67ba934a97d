package ratelimit

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	ways      = 8   // slots per set
	maxShards = 256 // a power of two
	minSets   = 16  // per shard, before there is a second one
	golden    = 0x9e3779b97f4a7c15
)

// A table keeps one instant per key, by the 64-bit hash of the key, in memory that never grows. A key may
// be in either of two sets of eight slots, which fills evenly (Azar et al., "Balanced Allocations", STOC
// 1994): at half the slots in use, none is missing.
//
// A key that is there is found and changed without a lock. A new one takes a slot whose instant has
// passed, for its key is as good as never seen, in the set that has more of them. When there is none, the key that will be full first loses
// its slot, and the new key begins with the debt of those around it instead of a full bucket: whoever
// comes back owes at least what it did.
type table struct {
	slots  []slot
	sets   uint64 // per shard
	shards []shard
}

// A slot is free or has lost its key while hash is 0. It is read full first, then hash: see [shard.add].
type slot struct {
	hash atomic.Uint64
	full atomic.Int64
}

type shard struct {
	mu   sync.Mutex // held to give slots to new keys
	now  int64      // latest time of such a change: older callers must not find what it forgot fresh
	debt int64      // latest instant of a key that lost its slot before its time
	_    [40]byte
}

// newTable has two slots for each of the keys.
func newTable(keys int) *table {
	sets := (uint64(keys)*2 + ways - 1) / ways
	shards := uint64(1)
	for shards < maxShards && sets/(shards*2) >= minSets {
		shards *= 2
	}
	perShard := max((sets+shards-1)/shards, 2)
	return &table{
		slots:  make([]slot, shards*perShard*ways),
		sets:   perShard,
		shards: make([]shard, shards),
	}
}

// find returns the shard of hash, and its two sets there.
func (t *table) find(hash uint64) (sh *shard, one, two []slot) {
	i := hash & uint64(len(t.shards)-1)
	a, _ := bits.Mul64(hash, t.sets)
	b, _ := bits.Mul64(bits.RotateLeft64(hash, 32)*golden, t.sets)
	if a == b {
		b = (b + 1) % t.sets
	}
	base := i * t.sets
	return &t.shards[i], t.set(base + a), t.set(base + b)
}

func (t *table) set(i uint64) []slot { return t.slots[i*ways : i*ways+ways : i*ways+ways] }

// slotOf is the slot of hash, or nil.
func slotOf(one, two []slot, hash uint64) *slot {
	for i := range one {
		if one[i].hash.Load() == hash {
			return &one[i]
		}
	}
	for i := range two {
		if two[i].hash.Load() == hash {
			return &two[i]
		}
	}
	return nil
}

// change takes n tokens of hash's bucket b, or gives them back, if there is a slot for it.
func (t *table) change(hash uint64, b bucket, now, n int64, give bool) (full int64, ok, found bool) {
	_, one, two := t.find(hash)
	for {
		s := slotOf(one, two, hash)
		if s == nil {
			return 0, false, false
		}
		old := s.full.Load()
		if s.hash.Load() != hash {
			continue // it lost its slot between the two
		}
		if give {
			full, ok = b.give(old, now, n), true
			if full >= old {
				return old, true, true
			}
		} else if full, ok = b.take(old, now, n); !ok || n == 0 {
			return full, ok, true
		}
		if s.full.CompareAndSwap(old, full) {
			return full, ok, true
		}
	}
}

// take takes n tokens of hash's bucket b. full is the instant afterwards, and at the time that counted.
func (t *table) take(hash uint64, b bucket, now, n int64) (full, at int64, ok bool) {
	full, ok, found := t.change(hash, b, now, n, false)
	if found {
		return full, now, ok
	}
	sh, one, two := t.find(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for {
		if full, ok, found = t.change(hash, b, now, n, false); found {
			return full, now, ok
		}
		sh.now = max(sh.now, now)
		now = sh.now
		full, ok, again := sh.add(one, two, hash, b, now, n)
		if !again {
			return full, now, ok
		}
	}
}

// give gives back n tokens to hash's bucket b.
func (t *table) give(hash uint64, b bucket, now, n int64) { t.change(hash, b, now, n, true) }

// add is take for a key without a slot. Whoever changes a slot without the lock has loaded full before it
// saw its key's hash there; here the hash goes first, and full changes only from what was seen. So either
// that change is made first, and the slot is left to its key, or it fails.
func (sh *shard) add(one, two []slot, hash uint64, b bucket, now, n int64) (full int64, ok, again bool) {
	first, second := look(one, now), look(two, now)
	if second.free > first.free || first.free == 0 && second.full < first.full {
		first, second = second, first
	}
	victim, old := first.slot, first.full
	start := int64(0)
	if old > now || sh.debt > now { // it may be one of those that lost their slot
		start = max(old, second.full)
	}
	full, ok = b.take(start, now, n)
	if !ok || n == 0 {
		return full, ok, false
	}
	was := victim.hash.Load()
	victim.hash.Store(0)
	if !victim.full.CompareAndSwap(old, full) {
		victim.hash.Store(was)
		return 0, false, true
	}
	victim.hash.Store(hash)
	if old > now {
		sh.debt = max(sh.debt, old)
	}
	return full, true, false
}

// A view is what a new key sees of a set.
type view struct {
	*slot       // whose bucket will be full first, or is so
	full  int64 // its instant
	free  int   // slots whose instant has passed
}

func look(set []slot, now int64) view {
	v := view{slot: &set[0], full: math.MaxInt64}
	for i := range set {
		full := set[i].full.Load()
		if full <= now {
			v.free++
		}
		if full < v.full {
			v.slot, v.full = &set[i], full
		}
	}
	return v
}
