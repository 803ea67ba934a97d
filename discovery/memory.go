package discovery

import (
	"context"
	"iter"
	"slices"
	"sync"
)

// Memory is a [Source] that the program itself sets: the embedded default, and tests. Before the first
// Set a service has no instances. It is safe for concurrent use and starts no goroutine.
type Memory struct {
	mu       sync.Mutex // guards the field below
	services map[string]*snapshot
}

// A snapshot is replaced, never changed; next is closed when a later one is in its place.
type snapshot struct {
	instances []Instance
	next      chan struct{}
}

// NewMemory returns a Memory without services.
func NewMemory() *Memory { return &Memory{services: make(map[string]*snapshot)} }

// Set replaces the instances of service; every watcher sees it at once. A watcher that is still busy
// with an earlier snapshot sees only the newest afterwards.
func (m *Memory) Set(service string, in ...Instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.services[service]
	m.services[service] = &snapshot{instances: slices.Clone(in), next: make(chan struct{})}
	if old != nil {
		close(old.next)
	}
}

// Watch yields the instances of service, and again after each Set, until ctx ends.
func (m *Memory) Watch(ctx context.Context, service string) iter.Seq2[[]Instance, error] {
	return func(yield func([]Instance, error) bool) {
		for ctx.Err() == nil {
			now := m.current(service)
			if !yield(now.instances, nil) {
				return
			}
			select {
			case <-now.next:
			case <-ctx.Done():
			}
		}
	}
}

func (m *Memory) current(service string) *snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.services[service]
	if s == nil {
		s = &snapshot{next: make(chan struct{})}
		m.services[service] = s
	}
	return s
}
