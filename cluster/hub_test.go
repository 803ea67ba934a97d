package cluster

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"
)

// A hub is where instances meet in a test: what the script does, without Redis.
type hub struct {
	mu      sync.Mutex
	away    bool
	hung    chan struct{} // not nil: exchanges wait for it, whatever their context says
	told    map[string]counts
	running int
	most    int // that ran at once
}

func newHub() *hub { return &hub{told: map[string]counts{}} }

var errAway = errors.New("away")

func (h *hub) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *hub) instances() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.told)
}

// instance starts one on h; it is closed with the test.
func (h *hub) instance(tb testing.TB, name string, o Options) *Cluster {
	tb.Helper()
	o.Instance = name
	c := start(member{h, name}, withDefaults(o))
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

type member struct {
	*hub
	name string
}

func (m member) exchange(_ context.Context, own counts) (*snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running++
	m.most = max(m.most, m.running)
	defer func() { m.running-- }()
	if hung := m.hung; hung != nil {
		m.mu.Unlock()
		<-hung
		m.mu.Lock()
	}
	if m.away {
		return nil, errAway
	}
	m.told[m.name] = maps.Clone(own)
	return m.sums(), nil
}

func (h *hub) sums() *snapshot {
	s := &snapshot{circuits: map[string]sum{}, instances: len(h.told)}
	for _, own := range h.told {
		for circuit, n := range own {
			old := s.circuits[circuit]
			s.circuits[circuit] = sum{count{old.total + n.total, old.errors + n.errors}, old.seeing + int(min(n.errors, 1))}
		}
	}
	return s
}

func (m member) leave(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.told, m.name)
	return nil
}

func wantSums(tb testing.TB, c *Cluster, circuit string, total, errs, instances int) {
	tb.Helper()
	gotTotal, gotErrs, gotInstances := c.Cluster(circuit)
	if gotTotal != total || gotErrs != errs || gotInstances != instances {
		tb.Errorf("%s: Cluster(%.20q) = %d, %d, %d, want %d, %d, %d",
			c.o.Instance, circuit, gotTotal, gotErrs, gotInstances, total, errs, instances)
	}
}

func wantAdmission(tb testing.TB, c *Cluster, low, high float64) {
	tb.Helper()
	if got := c.Admission(); !(got >= low-1e-9 && got <= high+1e-9) {
		tb.Errorf("%s: Admission() = %v, want %v to %v", c.o.Instance, got, low, high)
	}
}

// intervals sleeps for so many of a second; what begins then has happened.
func intervals(n float64) { time.Sleep(time.Duration(n*float64(time.Second)) + time.Nanosecond) }
