package session

import (
	"container/list"
	"hash/maphash"
	"sync"
	"time"
)

// copies has the sessions that this process read or wrote last, as Redis had them, and knows those that it
// ended. It is divided, so that requests do not wait for each other.
type copies struct {
	seed   maphash.Seed
	shards []shard
	most   int // in a shard
}

type shard struct {
	mu   sync.Mutex // guards the fields below
	byID map[string]*list.Element
	used list.List // of *kept, the last used first
	_    [64]byte
}

type kept struct {
	key    string
	record string // "" once ended
	at     time.Time
	ended  bool
}

func newCopies(entries int) copies {
	n := 32
	for n > 1 && entries < 16*n { // few entries in many shards would push each other out
		n /= 2
	}
	c := copies{seed: maphash.MakeSeed(), shards: make([]shard, n), most: max(entries/n, 1)}
	for i := range c.shards {
		c.shards[i].byID = make(map[string]*list.Element)
	}
	return c
}

func (c *copies) of(key string) *shard {
	return &c.shards[maphash.String(c.seed, key)%uint64(len(c.shards))]
}

// put keeps a record as it was at now, unless a later one is here or its session was ended here.
func (c *copies) put(key, record string, now time.Time) {
	c.set(kept{key: key, record: record, at: now})
}

// end forgets a record, and remembers that the session must not come back.
func (c *copies) end(key string) { c.set(kept{key: key, ended: true}) }

func (c *copies) set(k kept) {
	s := c.of(k.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.byID[k.key]; ok {
		s.used.MoveToFront(e)
		if old := e.Value.(*kept); !old.ended && (k.ended || !k.at.Before(old.at)) {
			*old = k
		}
		return
	}
	s.byID[k.key] = s.used.PushFront(&k)
	if s.used.Len() > c.most {
		s.forget(s.used.Back())
	}
}

func (s *shard) forget(e *list.Element) {
	s.used.Remove(e)
	delete(s.byID, e.Value.(*kept).key)
}

// drop forgets a record that Redis has no more.
func (c *copies) drop(key string) {
	s := c.of(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.byID[key]; ok && !e.Value.(*kept).ended {
		s.forget(e)
	}
}

// get is the record as it was read or written at some time.
func (c *copies) get(key string) (record string, at time.Time, ok bool) {
	s := c.of(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byID[key]
	if !ok || e.Value.(*kept).ended {
		return "", time.Time{}, false
	}
	k := e.Value.(*kept)
	return k.record, k.at, true
}

// ended reports whether the session was ended here.
func (c *copies) ended(key string) bool {
	s := c.of(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byID[key]
	return ok && e.Value.(*kept).ended
}
