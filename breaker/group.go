package breaker

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	maxNames   = 4096
	maxNameLen = 256  // bytes
	chains     = 1024 // a power of two
	overflow   = "(overflow)"
)

// A Group makes one Breaker per name, at most 4096 of them. When it is full, the idle ones are let go:
// those that are closed with no call in flight and nothing in the window, so that nothing is lost. While
// none is idle, all further names share one more circuit, called "(overflow)", and so do names of more
// than 256 bytes always. A Group is safe for concurrent use; a look-up takes no lock and allocates
// nothing.
//
// A Breaker that was let go still works for whoever holds it, but is no longer the one that Get returns:
// call Get each time rather than keeping what it returned, unless the names are few.
type Group struct {
	o        Options
	seed     maphash.Seed
	overflow *Breaker
	chains   [chains]atomic.Pointer[link]
	fullTill atomic.Int64 // until then nobody looks for idle ones: nothing was a moment ago

	mu sync.Mutex // guards the count and each change of a chain
	n  int
}

// A link is never changed once it is in a chain.
type link struct {
	name string
	b    *Breaker
	next *link
}

// NewGroup returns an empty Group whose breakers are made with o.
func NewGroup(o Options) *Group {
	return &Group{o: o, seed: maphash.MakeSeed(), overflow: New(overflow, o)}
}

// Get returns the Breaker of name, a new one if there is none.
func (g *Group) Get(name string) *Breaker { return g.get(name, -1) }

// get takes the time as an argument; negative: to be read if needed.
func (g *Group) get(name string, t int64) *Breaker {
	if len(name) > maxNameLen {
		return g.overflow
	}
	chain := &g.chains[maphash.String(g.seed, name)&(chains-1)]
	if b := find(chain.Load(), name); b != nil {
		return b
	}
	if t < 0 {
		t = now()
	}
	if t < g.fullTill.Load() {
		return g.overflow
	}
	return g.add(chain, name, t)
}

func find(l *link, name string) *Breaker {
	for ; l != nil; l = l.next {
		if l.name == name {
			return l.b
		}
	}
	return nil
}

func (g *Group) add(chain *atomic.Pointer[link], name string, t int64) *Breaker {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := find(chain.Load(), name); b != nil {
		return b
	}
	if g.n >= maxNames && t >= g.fullTill.Load() {
		g.sweep(t)
	}
	if g.n >= maxNames {
		return g.overflow
	}
	name = strings.Clone(name) // it may be a part of a large request
	b := New(name, g.o)
	chain.Store(&link{name: name, b: b, next: chain.Load()})
	g.n++
	return b
}

// sweep lets all idle breakers go, at most once per bucket when there are none. It needs the lock.
func (g *Group) sweep(t int64) {
	for i := range g.chains {
		var kept *link
		dropped := 0
		for l := g.chains[i].Load(); l != nil; l = l.next {
			if l.b.idle(t) {
				dropped++
				continue
			}
			kept = &link{name: l.name, b: l.b, next: kept}
		}
		if dropped > 0 {
			g.chains[i].Store(kept)
			g.n -= dropped
		}
	}
	if g.n >= maxNames {
		g.fullTill.Store(t + g.overflow.window.width)
	}
}

// Acquire is Allow on the Breaker of name.
func (g *Group) Acquire(name string) (Permit, error) { return g.Get(name).Allow() }

// Snapshots explains all circuits of the Group, sorted by name; that of the overflow is among them once
// it has been used.
func (g *Group) Snapshots() []Snapshot {
	t := now()
	var all []Snapshot
	for i := range g.chains {
		for l := g.chains[i].Load(); l != nil; l = l.next {
			all = append(all, l.b.snapshot(t))
		}
	}
	if s := g.overflow.snapshot(t); s.Total+s.ShortCircuited > 0 || s.InFlight > 0 || s.State != Closed {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Circuits is what [Middleware] needs: a *Group, or hystrixgo's. An error of Acquire refuses the request.
type Circuits interface {
	Acquire(name string) (Permit, error)
}
