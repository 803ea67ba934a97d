package balancer

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

// dialer is a transport whose instances answer, and whose TCP connections succeed while up.
type dialer struct {
	mu    sync.Mutex // guards the fields below
	up    map[string]bool
	dials []string
}

func (d *dialer) start(addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addrs {
		d.up[a] = true
	}
}

// dialled returns the addresses so far.
func (d *dialer) dialled() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.dials)
}

func (d *dialer) transport() *http.Transport {
	return &http.Transport{DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.dials = append(d.dials, addr)
		if !d.up[addr] {
			return nil, errors.New("connection refused")
		}
		conn, other := net.Pipe()
		_ = other.Close()
		return conn, nil
	}}
}

// fail reports n failures of the instance at addr.
func fail(t *testing.T, b *Balancer, addr string, n int) {
	t.Helper()
	for _, node := range (*b.services.Load())["orders"].set.Load().all {
		if node.addr() == addr {
			for range n {
				node.calls.Add(1)
				Selection{node: node}.Done(errReset)
			}
		}
	}
}

func TestConsecutiveFailuresEject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		var j journal
		b := open(t, orders("a:1", "b:1"), Options{Strategy: RoundRobin(), Transport: d.transport(), OnEvent: j.add})
		choose(t, b).Done(nil)
		synctest.Wait() // the instances' arrival is told
		fail(t, b, "a:1", 2)
		if s := statusOf(t, b, "a:1"); s.Ejected {
			t.Error("ejected after two failures")
		}
		fail(t, b, "a:1", 1)
		s := statusOf(t, b, "a:1")
		if !s.Ejected || !s.Until.Equal(time.Now().Add(time.Second)) {
			t.Errorf("after three: ejected %v until %v, want for 1s", s.Ejected, time.Until(s.Until))
		}
		if got := j.last(); got.Kind != Ejected || !errors.Is(got.Err, errReset) || got.Service != "orders" {
			t.Errorf("event = %+v, want why a:1 was ejected", got)
		}
		for range 10 {
			sel := choose(t, b)
			if sel.Addr() != "b:1" {
				t.Error("a call went to the ejected instance")
			}
			sel.Done(nil)
		}
	})
}

func TestASuccessBetweenFailuresKeepsAnInstanceIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1")})
		for range 10 {
			choose(t, b).Done(errReset)
			choose(t, b).Done(context.DeadlineExceeded)
			choose(t, b).Done(nil)
		}
		if s := statusOf(t, b, "a:1"); s.Ejected || s.Failures != 20 {
			t.Errorf("status = %+v, want in service with 20 failures", s)
		}
	})
}

func TestACallersCancelCountsAsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1")})
		choose(t, b).Done(errReset)
		choose(t, b).Done(errReset)
		for range 10 {
			choose(t, b).Done(context.Canceled)
		}
		if s := statusOf(t, b, "a:1"); s.Ejected || s.Failures != 2 || s.InFlight != 0 {
			t.Errorf("status = %+v, want two failures", s)
		}
		choose(t, b).Done(errReset) // the cancels did not end the row either
		if s := statusOf(t, b, "a:1"); !s.Ejected {
			t.Error("the third failure in a row did not eject")
		}
	})
}

func TestAnInstanceComesBackThroughAProbeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{up: map[string]bool{}}
		var j journal
		b := open(t, orders("a:1", "b:1"), Options{Strategy: RoundRobin(), Transport: d.transport(), OnEvent: j.add})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 3)
		time.Sleep(999 * time.Millisecond)
		if len(d.dialled()) != 0 {
			t.Error("probed before its time")
		}
		time.Sleep(5 * time.Second)
		if n := len(d.dialled()); n < 5 || n > 7 || statusOf(t, b, "a:1").Ejected == false {
			t.Errorf("a dead instance was probed %d times in 5s, want about each second", n)
		}
		d.start("a:1")
		time.Sleep(time.Second)
		if s := statusOf(t, b, "a:1"); s.Ejected || s.Latency != 0 {
			t.Errorf("status = %+v, want back with an unknown latency", s)
		}
		if got := j.of(Restored); !slices.Equal(got, []string{"a:1"}) {
			t.Errorf("restored: %v", got)
		}
		if !slices.Contains(d.dialled(), "a:1") || slices.Contains(d.dialled(), "b:1") {
			t.Errorf("probed %v, want a:1 only", d.dialled())
		}
	})
}

func TestEachEjectionInARowLastsTwiceAsLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{up: map[string]bool{"a:1": true}}
		b := open(t, orders("a:1", "b:1"), Options{Transport: d.transport(), Ejection: Ejection{Base: time.Second, Max: 5 * time.Second}})
		choose(t, b).Done(nil)
		for _, want := range []time.Duration{1, 2, 4, 5, 5} {
			fail(t, b, "a:1", 3)
			if got := time.Until(statusOf(t, b, "a:1").Until); got != want*time.Second {
				t.Errorf("ejected for %v, want %v", got, want*time.Second)
			}
			time.Sleep(want * time.Second)
			synctest.Wait()
			if statusOf(t, b, "a:1").Ejected {
				t.Fatal("not back after its time although it is up")
			}
		}
		time.Sleep(5*time.Second + 1) // as long in service as it was out
		fail(t, b, "a:1", 3)
		if got := time.Until(statusOf(t, b, "a:1").Until); got != time.Second {
			t.Errorf("after a while in service: ejected for %v, want 1s", got)
		}
	})
}

func TestWithTooFewLeftEjectionsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{up: map[string]bool{}}
		b := open(t, orders("a:1", "b:1", "c:1", "d:1"), Options{Strategy: RoundRobin(), Transport: d.transport()})
		choose(t, b).Done(nil)
		usable := func() int { return len((*b.services.Load())["orders"].set.Load().nodes) }
		for i, want := range []int{3, 2, 4, 4} { // 1 of 4 is under 30 %
			addr := []string{"a:1", "b:1", "c:1", "d:1"}[i]
			fail(t, b, addr, 3)
			if got := usable(); got != want {
				t.Errorf("with %d ejected %d are used, want %d", i+1, got, want)
			}
		}
		if s := statusOf(t, b, "a:1"); !s.Ejected {
			t.Error("the status does not say that it is ejected")
		}
		d.start("a:1", "b:1")
		time.Sleep(2 * time.Second)
		if got := usable(); got != 2 {
			t.Errorf("with two back %d are used, want 2", got)
		}
	})
}

func TestPanicNegativeMayEjectAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		b := open(t, orders("a:1"), Options{Transport: d.transport(), Ejection: Ejection{Panic: -1}})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 3)
		if _, err := b.Select(t.Context(), "orders"); !errors.Is(err, ErrNoInstances) {
			t.Errorf("Select = %v, want ErrNoInstances", err)
		}
	})
}

func TestConsecutiveNegativeEjectsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1", "b:1"), Options{Ejection: Ejection{Consecutive: -1}})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 100)
		if statusOf(t, b, "a:1").Ejected {
			t.Error("ejected")
		}
	})
}

func TestASuccessWhileEjectionsAreIgnoredIsProbedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{up: map[string]bool{"a:1": true}}
		b := open(t, orders("a:1"), Options{Transport: d.transport()})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 3)
		choose(t, b).Done(nil)
		synctest.Wait()
		if statusOf(t, b, "a:1").Ejected || len(d.dialled()) != 1 {
			t.Errorf("ejected %v after %d probes, want back after one", statusOf(t, b, "a:1").Ejected, len(d.dialled()))
		}
	})
}

func TestALateSuccessDoesNotEndAnEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{up: map[string]bool{"a:1": true}}
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: d.transport()})
		early := choose(t, b)
		fail(t, b, "a:1", 3)
		early.Done(nil)
		synctest.Wait()
		if !statusOf(t, b, "a:1").Ejected || len(d.dialled()) != 0 {
			t.Error("a call from before the ejection ended it")
		}
	})
}

func TestProbePathAsksTheInstanceItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		var code atomic.Int32
		code.Store(http.StatusServiceUnavailable)
		p.set("a:1", func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet || r.URL.String() != "http://a:1/health" || r.Host != "orders" {
				t.Errorf("probe = %s %s of %s", r.Method, r.URL, r.Host)
			}
			return answer(int(code.Load())), nil
		})
		b := open(t, orders("a:1", "b:1"), Options{Transport: p, Ejection: Ejection{ProbePath: "/health"}})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 3)
		time.Sleep(3 * time.Second)
		if !statusOf(t, b, "a:1").Ejected {
			t.Error("back although its probe answers 503")
		}
		code.Store(http.StatusNoContent)
		time.Sleep(time.Second)
		if statusOf(t, b, "a:1").Ejected {
			t.Error("not back although its probe answers 204")
		}
	})
}

func TestAProbeThatHangsIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", hangs)
		b := open(t, orders("a:1", "b:1"), Options{Transport: p, Ejection: Ejection{ProbePath: "/health", ProbeTimeout: 300 * time.Millisecond}})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 3)
		time.Sleep(time.Minute)
		if n := len(p.asked()); !statusOf(t, b, "a:1").Ejected || n < 40 {
			t.Errorf("%d probes in a minute", n)
		}
	})
}

func TestAnEjectedInstanceThatLeavesIsNotProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{up: map[string]bool{"a:1": true}}
		m := discovery.NewMemory()
		m.Set("orders", at("a:1", "b:1")...)
		var j journal
		b := open(t, m, Options{Transport: d.transport(), OnEvent: j.add})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 3)
		m.Set("orders", at("b:1")...)
		time.Sleep(time.Minute)
		if len(d.dialled()) != 0 || j.of(Restored) != nil {
			t.Errorf("probed %d times, restored %v", len(d.dialled()), j.of(Restored))
		}
	})
}

func TestAnEjectionSurvivesUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		m := discovery.NewMemory()
		m.Set("orders", at("a:1", "b:1")...)
		b := open(t, m, Options{Strategy: RoundRobin(), Transport: d.transport()})
		choose(t, b).Done(nil)
		fail(t, b, "a:1", 3)
		m.Set("orders", at("a:1", "b:1", "c:1")...)
		synctest.Wait()
		for range 6 {
			sel := choose(t, b)
			if sel.Addr() == "a:1" {
				t.Error("an update let the ejected instance in")
			}
			sel.Done(nil)
		}
	})
}
