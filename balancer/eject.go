package balancer

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"
)

// Ejection says when an instance that fails is left alone. Its zero value is the default policy. An
// ejected instance comes back through one successful probe, never through a caller's request; give
// ProbePath, for a TCP probe is content with an instance that accepts and then answers 503, or hangs.
type Ejection struct {
	// Consecutive failures in a row eject; one that lost against its hedge counts. Zero: 3. Negative:
	// nothing is ever ejected.
	Consecutive int
	// Base is how long the first ejection lasts at least; each further one in a row lasts twice as long,
	// up to Max. An instance that has then been in service for as long as it was last ejected starts
	// again at Base. After that time it is probed, every Base until a probe succeeds. Zero: 1 s, 30 s.
	Base, Max time.Duration
	// Panic is the least share of the instances, in per cent, that must be usable; with fewer, ejections
	// are ignored. Zero: 30. Negative: never ignored, so that all may be ejected.
	Panic int
	// ProbePath is the path that a probe GETs; any answer below 400 is a success. Empty: a TCP connection
	// is the probe.
	ProbePath string
	// ProbeTimeout bounds one probe. Zero: 1 s.
	ProbeTimeout time.Duration
}

func (e Ejection) orDefault() Ejection {
	e.Consecutive = cmp.Or(e.Consecutive, 3)
	e.Base = cmp.Or(max(e.Base, 0), time.Second)
	e.Max = max(cmp.Or(max(e.Max, 0), 30*time.Second), e.Base)
	e.Panic = cmp.Or(e.Panic, 30)
	e.ProbeTimeout = cmp.Or(max(e.ProbeTimeout, 0), time.Second)
	return e
}

// An ejection is the state of a node that is out of service.
type ejection struct {
	until time.Time
	proof chan struct{} // a caller's request has succeeded meanwhile: probe at once
}

func (n *Node) ejected() bool { return n.out.Load() != nil }

// proved hears that a call on an ejected node has succeeded, as happens while ejections are ignored.
func (n *Node) proved() {
	if out := n.out.Load(); out != nil {
		select {
		case out.proof <- struct{}{}:
		default:
		}
	}
}

// eject takes n out of service and has it probed.
func (s *service) eject(n *Node, cause error) {
	s.mu.Lock()
	if n.ejected() || n.life.Err() != nil {
		s.mu.Unlock()
		return
	}
	now := time.Now()
	r, e := &n.record, s.b.o.Ejection
	if now.Sub(r.restored) > r.last {
		r.inARow = 0
	}
	r.last = min(e.Base<<min(r.inARow, 20), e.Max)
	if r.last <= 0 { // shifted out
		r.last = e.Max
	}
	r.inARow++
	out := &ejection{until: now.Add(r.last), proof: make(chan struct{}, 1)}
	n.out.Store(out)
	s.rebuild()
	s.mu.Unlock()

	n.closeIdle() // they lead to what has just failed
	s.b.start(func() { s.revive(n, out) })
	s.b.o.OnEvent(Event{Kind: Ejected, Service: s.name, Instance: n.Instance(), Err: cause})
}

// revive probes n until a probe succeeds, or n leaves.
func (s *service) revive(n *Node, out *ejection) {
	wait := time.NewTimer(time.Until(out.until))
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-out.proof:
		case <-n.life.Done():
			return
		}
		if s.probe(n) == nil {
			s.restore(n)
			return
		}
		base := s.b.o.Ejection.Base
		wait.Reset(base - rand.N(base/10+1)) // many clients should not probe in step
	}
}

func (s *service) restore(n *Node) {
	s.mu.Lock()
	if n.life.Err() != nil {
		s.mu.Unlock()
		return
	}
	n.record.restored = time.Now()
	n.fails.Store(0)
	n.latency.Store(0) // what it was says nothing of what it is
	n.failing.Store(0)
	n.out.Store(nil)
	s.rebuild()
	s.mu.Unlock()
	s.b.o.OnEvent(Event{Kind: Restored, Service: s.name, Instance: n.Instance()})
}

func (s *service) probe(n *Node) error {
	ctx, cancel := context.WithTimeout(n.life, s.b.o.Ejection.ProbeTimeout)
	defer cancel()
	if s.b.o.Ejection.ProbePath == "" {
		conn, err := s.b.dial(ctx, "tcp", n.addr())
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	scheme := "http"
	if s.https.Load() {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+n.addr()+s.b.o.Ejection.ProbePath, nil)
	if err != nil {
		return err
	}
	req.Host = s.name
	resp, err := n.carrier.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("balancer: probe answered %s", resp.Status)
	}
	return nil
}
