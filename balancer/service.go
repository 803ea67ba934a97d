package balancer

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/highball-go/highball/discovery"
)

// A service is one name: its nodes, its cursor and its retry budget.
type service struct {
	b        *Balancer
	name     string
	strategy Strategy
	budget   budget

	set   atomic.Pointer[set] // nil until the first snapshot
	ready chan struct{}       // closed with the first snapshot
	err   atomic.Pointer[error]

	https atomic.Bool   // the last request was
	timed atomic.Bool   // somebody looks at latencies
	mean  atomic.Uint64 // a measurement: of the known latencies, now and then

	mu    sync.Mutex // guards the field below and changes of set; never held while picking
	nodes map[identity]*Node

	_   [128]byte
	seq atomic.Uint64 // the cursor; one more each call
	_   [128]byte
}

// identity tells instances apart. One that moved to another address is another one.
type identity struct{ id, addr string }

// A set is what a pick looks at; it is replaced as a whole.
type set struct {
	all   []*Node // in the order of their IDs
	nodes []*Node // the usable ones
	pick  Picker  // nil: there are none
	panic bool    // too few are usable: ejections are ignored
}

func newService(b *Balancer, name string) *service {
	strategy := b.o.Strategies[name]
	if strategy == nil {
		strategy = b.o.Strategy
	}
	s := &service{b: b, name: name, strategy: strategy, ready: make(chan struct{}), nodes: make(map[identity]*Node)}
	s.seq.Store(rand.Uint64()) // or all clients would start with the same instance
	s.budget.open(b.o.Retry, time.Now(), s.seq.Load())
	return s
}

// watch follows the source until Close.
func (s *service) watch() {
	for s.b.ctx.Err() == nil {
		for instances, err := range s.b.source.Watch(s.b.ctx, s.name) {
			if err != nil {
				s.err.Store(&err)
				continue
			}
			s.err.Store(nil)
			s.update(instances)
		}
		sleep(s.b.ctx, time.Second) // a source should not end before its context; ask it again
	}
}

// update makes instances the service's, and keeps what is known of those that stay.
func (s *service) update(instances []discovery.Instance) {
	s.mu.Lock()
	first := s.set.Load() == nil
	events, changed := s.merge(instances, first)
	if changed || first {
		s.rebuild()
	}
	if first {
		close(s.ready)
	}
	s.mu.Unlock()
	s.b.emit(events)
}

// merge brings nodes up to date. The caller holds mu.
func (s *service) merge(instances []discovery.Instance, first bool) (events []Event, changed bool) {
	gone := maps.Clone(s.nodes)
	for _, in := range instances {
		id := identity{cmp.Or(in.ID, in.Addr), in.Addr}
		n := s.nodes[id]
		delete(gone, id)
		switch {
		case n == nil:
			s.nodes[id] = s.newNode(id, in, !first)
			events = append(events, Event{Kind: Added, Service: s.name, Instance: in})
			changed = true
		case !n.Instance().Equal(in):
			n.inst.Store(&in)
			n.setWeight()
			changed = true
		}
	}
	for id, n := range gone {
		delete(s.nodes, id)
		n.leave()
		n.closeIdle() // and those that a running call still holds, when it gives them back
		events = append(events, Event{Kind: Removed, Service: s.name, Instance: n.Instance()})
		changed = true
	}
	return events, changed
}

func (s *service) newNode(id identity, in discovery.Instance, ramp bool) *Node {
	n := &Node{service: s, hash: hash(id.id), ramp: 1, carrier: s.b.carrier(s.name)}
	n.inst.Store(&in)
	n.life, n.leave = context.WithCancel(s.b.ctx)
	if ramp && s.b.o.SlowStart > 0 {
		n.ramp = 1.0 / rampSteps
		s.b.start(func() { s.slowStart(n) })
	}
	n.setWeight()
	return n
}

const rampSteps = 10

// slowStart lets the weight of a new node grow to the whole.
func (s *service) slowStart(n *Node) {
	for step := 2; step <= rampSteps; step++ {
		if !sleep(n.life, s.b.o.SlowStart/(rampSteps-1)) {
			return
		}
		s.mu.Lock()
		n.ramp = float64(step) / rampSteps
		n.setWeight()
		s.rebuild()
		s.mu.Unlock()
	}
}

// rebuild makes the set anew from nodes. The caller holds mu.
func (s *service) rebuild() {
	next := &set{}
	for _, n := range s.nodes {
		next.all = append(next.all, n)
	}
	slices.SortFunc(next.all, func(a, b *Node) int {
		x, y := a.inst.Load(), b.inst.Load()
		return cmp.Or(cmp.Compare(x.ID, y.ID), cmp.Compare(x.Addr, y.Addr))
	})
	next.nodes, next.panic = s.usable(next.all)
	if len(next.nodes) > 0 {
		next.pick = s.strategy(next.nodes)
	}
	s.set.Store(next)
}

// usable leaves out what is drained or ejected, and prefers the zone.
func (s *service) usable(all []*Node) (nodes []*Node, panicking bool) {
	serving := slices.DeleteFunc(slices.Clone(all), (*Node).drains)
	in := slices.DeleteFunc(slices.Clone(serving), (*Node).ejected)
	if len(in) < len(serving) && len(in)*100 < len(serving)*s.b.o.Ejection.Panic {
		return serving, true
	}
	if zone := s.b.o.Zone; zone != "" {
		elsewhere := func(n *Node) bool { return n.inst.Load().Zone != zone }
		near := slices.DeleteFunc(slices.Clone(in), elsewhere)
		total := len(slices.DeleteFunc(serving, elsewhere))
		if len(near) > 0 && 2*len(near) >= total {
			return near, false
		}
	}
	return in, false
}

// first picks the instance of a call's first try.
func (s *service) first(ctx context.Context, set *set) (Selection, error) {
	c := Call{Seq: s.seq.Add(1)}
	if key, ok := ctx.Value(affinity{}).(string); ok {
		c.Key = key
	}
	if s.timed.Load() {
		c.now = s.b.now()
	}
	n := set.pick(c)
	if n == nil {
		return Selection{}, fmt.Errorf("%w of %q: its strategy picked none", ErrNoInstances, s.name)
	}
	n.calls.Add(1)
	return Selection{node: n, start: c.now, trial: set.panic}, nil
}

// measure turns the measuring of latencies on.
func (s *service) measure() {
	if !s.timed.Load() {
		s.timed.Store(true)
	}
}

// latency of n in nanoseconds; unknown: the mean of the known ones, or 0.
func (s *service) latency(n *Node, now uint32) float32 {
	if ns, ok := measurement(n.latency.Load()).at(now); ok {
		return ns
	}
	return s.meanLatency(now)
}

// meanLatency is worked out at most ten times a second, by whoever asks.
func (s *service) meanLatency(now uint32) float32 {
	const fresh = 100 // ms
	old := s.mean.Load()
	if ns, taken := measurement(old).split(); old != 0 && since(taken, now) < fresh {
		return ns
	}
	set := s.set.Load()
	if set == nil {
		return 0
	}
	var sum float32
	var known int
	for _, n := range set.nodes {
		if ns, ok := measurement(n.latency.Load()).at(now); ok {
			sum += ns
			known++
		}
	}
	if known == 0 {
		return 0
	}
	s.mean.CompareAndSwap(old, uint64(measured(sum/float32(known), now)))
	return sum / float32(known)
}

func (s *service) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		n.leave()
		n.closeIdle()
	}
}

func (b *Balancer) emit(events []Event) {
	for _, e := range events {
		b.o.OnEvent(e)
	}
}

// sleep is false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// news is what the source last reported, for an error's text.
func (s *service) news() string {
	if err := s.err.Load(); err != nil {
		return fmt.Sprintf(" (the source reports: %v)", *err)
	}
	return ""
}
