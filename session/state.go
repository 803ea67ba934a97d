package session

import (
	"sync"
	"sync/atomic"

	"github.com/highball-go/highball/internal/outage"
)

// health knows whether Redis is away, or refuses writes, and tells of each change once.
type health struct {
	onState  func(State, error)
	troubles atomic.Int32 // len(ill) + len(refused), for requests that need no lock

	mu      sync.Mutex               // guards what follows
	ill     map[*outage.Circuit]bool // away
	refused map[*outage.Circuit]bool // reads are answered, writes are not
	queue   []change
	telling bool
}

type change struct {
	state State
	err   error
}

// failed says that a call failed, for a request that is left in this state.
func (h *health) failed(c *outage.Circuit, state State, err error) {
	h.mu.Lock()
	set := &h.ill
	if refusesWrites(err) {
		set = &h.refused
	}
	if *set == nil {
		*set = make(map[*outage.Circuit]bool)
	}
	(*set)[c] = true
	h.changed(change{state, err})
}

// well says that a call was answered; only a write says that writes are taken again.
func (h *health) well(c *outage.Circuit, write bool) {
	if h.troubles.Load() == 0 {
		return
	}
	h.mu.Lock()
	delete(h.ill, c)
	if write {
		delete(h.refused, c)
	}
	h.changed(change{Live, nil})
}

// changed queues what there is to tell, unlocks, and calls the hook in the order of the changes: if another
// request is at it, that one does.
func (h *health) changed(to change) {
	was, is := h.troubles.Load(), int32(len(h.ill)+len(h.refused))
	h.troubles.Store(is)
	if h.onState != nil && (was == 0) != (is == 0) {
		h.queue = append(h.queue, to)
	}
	if h.telling {
		h.mu.Unlock()
		return
	}
	h.telling = true
	defer func() {
		h.telling = false
		h.mu.Unlock()
	}()
	for len(h.queue) > 0 {
		next := h.queue[0]
		h.queue = h.queue[1:]
		h.tell(next)
	}
}

func (h *health) tell(c change) {
	h.mu.Unlock()
	defer h.mu.Lock()
	h.onState(c.state, c.err)
}
