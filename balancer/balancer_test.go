package balancer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

// sourceFunc is a Source.
type sourceFunc func(ctx context.Context, service string) iter.Seq2[[]discovery.Instance, error]

func (f sourceFunc) Watch(ctx context.Context, service string) iter.Seq2[[]discovery.Instance, error] {
	return f(ctx, service)
}

// silent never yields.
var silent = sourceFunc(func(ctx context.Context, _ string) iter.Seq2[[]discovery.Instance, error] {
	return func(func([]discovery.Instance, error) bool) { <-ctx.Done() }
})

func TestSelectWaitsForTheFirstSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := sourceFunc(func(ctx context.Context, _ string) iter.Seq2[[]discovery.Instance, error] {
			return func(yield func([]discovery.Instance, error) bool) {
				sleep(ctx, time.Second)
				yield(at("a:1"), nil)
				<-ctx.Done()
			}
		})
		b := open(t, late, Options{})
		start := time.Now()
		sel := choose(t, b)
		sel.Done(nil)
		if got := time.Since(start); sel.Addr() != "a:1" || got != time.Second {
			t.Errorf("Select = %s after %v, want a:1 after 1s", sel.Addr(), got)
		}
	})
}

func TestSelectEndsWithItsContextAndSaysWhatTheSourceReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := sourceFunc(func(ctx context.Context, _ string) iter.Seq2[[]discovery.Instance, error] {
			return func(yield func([]discovery.Instance, error) bool) {
				yield(nil, errors.New("no leader"))
				<-ctx.Done()
			}
		})
		b := open(t, down, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := b.Select(ctx, "orders")
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no leader") {
			t.Errorf("Select = %v, want the deadline and the source's report", err)
		}
	})
}

func TestSelectThatWaitsEndsWithClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, silent, Options{})
		time.AfterFunc(time.Second, func() { b.Close() })
		if _, err := b.Select(t.Context(), "orders"); !errors.Is(err, ErrClosed) {
			t.Errorf("Select = %v, want ErrClosed", err)
		}
	})
}

func TestAClosedBalancerRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1"), Options{})
		choose(t, b).Done(nil)
		b.Close()
		b.Close() // again is harmless
		for _, service := range []string{"orders", "users"} {
			if _, err := b.Select(t.Context(), service); !errors.Is(err, ErrClosed) {
				t.Errorf("Select(%s) = %v, want ErrClosed", service, err)
			}
		}
	})
}

func TestAServiceWithoutInstancesIsAnErrorAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, discovery.Static{"drained": {{ID: "a", Addr: "a:1", Weight: -1}}}, Options{})
		for _, service := range []string{"unknown", "drained", "example.com:80"} {
			start := time.Now()
			_, err := b.Select(t.Context(), service)
			if !errors.Is(err, ErrNoInstances) || !strings.Contains(err.Error(), service) || time.Since(start) != 0 {
				t.Errorf("Select(%s) = %v after %v, want ErrNoInstances at once", service, err, time.Since(start))
			}
		}
	})
}

func TestTheNumberOfServicesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, discovery.Static{}, Options{})
		for i := range maxServices + 10 {
			_, err := b.Select(t.Context(), fmt.Sprint("s", i))
			if !errors.Is(err, ErrNoInstances) {
				t.Fatalf("Select of service %d = %v", i, err)
			}
			if i >= maxServices != strings.Contains(err.Error(), "requests") {
				t.Fatalf("Select of service %d = %v", i, err)
			}
		}
		if got := len(b.Services()); got != maxServices {
			t.Errorf("%d services, want %d", got, maxServices)
		}
	})
}

func TestStatisticsSurviveUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := discovery.NewMemory()
		m.Set("orders", at("a:1")...)
		b := open(t, m, Options{})
		running := choose(t, b)
		slow := choose(t, b)
		time.Sleep(100 * time.Millisecond)
		slow.Done(nil)
		choose(t, b).Done(errReset)

		m.Set("orders", discovery.Instance{ID: "a:1", Addr: "a:1", Weight: 7, Tags: []string{"new"}}, at("b:1")[0])
		synctest.Wait()
		s := statusOf(t, b, "a:1")
		if s.InFlight != 1 || s.Requests != 2 || s.Failures != 1 || s.Latency == 0 || s.Weight != 7 {
			t.Errorf("after the update: %+v", s)
		}
		running.Done(nil)
		if s := statusOf(t, b, "a:1"); s.InFlight != 0 || s.Requests != 3 {
			t.Errorf("after the end of a call begun before it: %+v", s)
		}
	})
}

func TestTheCursorSurvivesUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []uint64
		m := discovery.NewMemory()
		b := open(t, m, Options{Strategy: func(nodes []*Node) Picker {
			return func(c Call) *Node { seen = append(seen, c.Seq); return nodes[0] }
		}})
		for _, addrs := range [][]string{{"a:1"}, {"a:1", "b:1"}, {"b:1"}} {
			m.Set("orders", at(addrs...)...)
			synctest.Wait()
			choose(t, b).Done(nil)
			choose(t, b).Done(nil)
		}
		for i, seq := range seen {
			if seq != seen[0]+uint64(i) {
				t.Fatalf("cursor went %v, want one more each time", seen)
			}
		}
	})
}

func TestAnEqualSnapshotRebuildsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		builds := 0
		m := discovery.NewMemory()
		m.Set("orders", at("a:1", "b:1")...)
		b := open(t, m, Options{Strategy: func(nodes []*Node) Picker { builds++; return RoundRobin()(nodes) }})
		choose(t, b).Done(nil)
		m.Set("orders", at("b:1", "a:1")...)
		synctest.Wait()
		if builds != 1 {
			t.Errorf("%d builds for two equal snapshots, want 1", builds)
		}
	})
}

func TestARemovedInstanceDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		m := discovery.NewMemory()
		m.Set("orders", at("a:1", "b:1")...)
		b := open(t, m, Options{Strategy: only("a:1"), OnEvent: j.add})
		running := choose(t, b)
		m.Set("orders", at("b:1")...)
		synctest.Wait()
		if sel := choose(t, b); sel.Addr() != "b:1" {
			t.Errorf("a new call went to %s", sel.Addr())
		} else {
			sel.Done(nil)
		}
		for range 5 {
			running.node.calls.Add(1)
			running.Done(errReset) // of an instance that left: it is not ejected any more
		}
		if running.Addr() != "a:1" || j.of(Ejected) != nil {
			t.Errorf("the running call is on %s; ejected: %v", running.Addr(), j.of(Ejected))
		}
		if got := j.of(Removed); !slices.Equal(got, []string{"a:1"}) {
			t.Errorf("removed: %v", got)
		}
	})
}

func TestAnInstanceThatDrainsKeepsItsCallsAndGetsNoNewOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := discovery.NewMemory()
		m.Set("orders", at("a:1", "b:1")...)
		b := open(t, m, Options{Strategy: only("a:1")})
		running := choose(t, b)
		m.Set("orders", discovery.Instance{ID: "a:1", Addr: "a:1", Weight: -1}, at("b:1")[0])
		synctest.Wait()
		sel := choose(t, b)
		sel.Done(nil)
		if s := statusOf(t, b, "a:1"); sel.Addr() != "b:1" || s.InFlight != 1 {
			t.Errorf("a new call went to %s; in flight on a: %d", sel.Addr(), s.InFlight)
		}
		running.Done(nil)
	})
}

func TestAnInstanceThatMovesIsAnotherOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := discovery.NewMemory()
		m.Set("orders", discovery.Instance{ID: "a", Addr: "a:1"})
		b := open(t, m, Options{})
		choose(t, b).Done(errReset)
		m.Set("orders", discovery.Instance{ID: "a", Addr: "a:2"})
		synctest.Wait()
		if s := b.Status("orders"); len(s) != 1 || s[0].Addr != "a:2" || s[0].Failures != 0 {
			t.Errorf("status = %+v, want a fresh a:2", s)
		}
	})
}

func TestTheSameInstanceTwiceIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1", "a:1"), Options{})
		choose(t, b).Done(nil)
		if s := b.Status("orders"); len(s) != 1 {
			t.Errorf("status = %+v, want one instance", s)
		}
	})
}

func TestASourceThatEndsIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		watches := 0
		short := sourceFunc(func(context.Context, string) iter.Seq2[[]discovery.Instance, error] {
			return func(yield func([]discovery.Instance, error) bool) {
				watches++
				yield(at(fmt.Sprintf("a:%d", watches)), nil)
			}
		})
		b := open(t, short, Options{})
		choose(t, b).Done(nil)
		time.Sleep(1500 * time.Millisecond)
		if s := b.Status("orders"); len(s) != 1 || s[0].Addr != "a:2" {
			t.Errorf("status = %+v, want a:2 of the second watch", s)
		}
	})
}

func TestStatusIsNilBeforeTheFirstCall(t *testing.T) {
	b := open(t, orders("a:1"), Options{})
	if s := b.Status("orders"); s != nil {
		t.Errorf("Status = %v", s)
	}
}

func TestEveryChangeOfMembershipIsAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		m := discovery.NewMemory()
		m.Set("orders", at("a:1")...)
		b := open(t, m, Options{OnEvent: j.add})
		choose(t, b).Done(nil)
		m.Set("orders", at("b:1")...)
		synctest.Wait()
		added, removed := j.of(Added), j.of(Removed)
		if !slices.Equal(added, []string{"a:1", "b:1"}) || !slices.Equal(removed, []string{"a:1"}) {
			t.Errorf("added %v, removed %v", added, removed)
		}
	})
}

func TestAHookMayUseTheBalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := discovery.NewMemory()
		m.Set("orders", at("a:1")...)
		var b *Balancer
		calls := 0
		b = open(t, m, Options{OnEvent: func(Event) {
			calls++
			b.Status("orders")
			choose(t, b).Done(nil)
		}})
		choose(t, b).Done(nil)
		synctest.Wait()
		if calls != 1 {
			t.Errorf("%d events, want 1", calls)
		}
	})
}

func TestServicesHaveStrategiesOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := discovery.Static{"orders": at("a:1", "b:1"), "users": at("a:1", "b:1")}
		b := open(t, src, Options{Strategy: only("a:1"), Strategies: map[string]Strategy{"users": only("b:1")}})
		for service, want := range map[string]string{"orders": "a:1", "users": "b:1"} {
			sel, err := b.Select(t.Context(), service)
			if err != nil || sel.Addr() != want {
				t.Errorf("Select(%s) = %s, %v; want %s", service, sel.Addr(), err, want)
			}
			sel.Done(nil)
		}
	})
}

func TestAStrategyThatPicksNothingIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1"), Options{Strategy: func([]*Node) Picker { return func(Call) *Node { return nil } }})
		if _, err := b.Select(t.Context(), "orders"); !errors.Is(err, ErrNoInstances) {
			t.Errorf("Select = %v, want ErrNoInstances", err)
		}
	})
}

func TestZoneIsPreferredWhileHalfOfItIsUsable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := at("a:1", "a:2", "b:1", "b:2")
		in[0].Zone, in[1].Zone, in[2].Zone, in[3].Zone = "a", "a", "b", "b"
		b := open(t, discovery.Static{"orders": in}, Options{Strategy: RoundRobin(), Zone: "a", Ejection: Ejection{Base: time.Hour, Max: time.Hour}})
		usable := func() string {
			seen := make(map[string]bool)
			for range 8 {
				sel := choose(t, b)
				seen[sel.Addr()] = true
				sel.Done(nil)
			}
			var all []string
			for a := range seen {
				all = append(all, a)
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
		if got := usable(); got != "a:1 a:2" {
			t.Errorf("all well: %s, want the zone", got)
		}
		s := *b.services.Load()
		nodes := s["orders"].set.Load().all
		s["orders"].eject(nodes[0], errReset)
		if got := usable(); got != "a:2" {
			t.Errorf("half the zone ejected: %s, want the rest of it", got)
		}
		s["orders"].eject(nodes[1], errReset)
		if got := usable(); got != "b:1 b:2" {
			t.Errorf("the zone ejected: %s, want the other one", got)
		}
	})
}

func TestSlowStartRampsANewInstanceUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, strategy := range map[string]Strategy{
			"RoundRobin": RoundRobin(), "WeightedRoundRobin": WeightedRoundRobin(), "Random": Random(),
		} {
			m := discovery.NewMemory()
			m.Set("orders", at("a:1")...)
			b := open(t, m, Options{Strategy: strategy, SlowStart: 9 * time.Second})
			choose(t, b).Done(nil)
			m.Set("orders", at("a:1", "b:1")...)
			synctest.Wait()
			share := func() float64 {
				const calls = 11000
				n := 0
				for range calls {
					sel := choose(t, b)
					if sel.Addr() == "b:1" {
						n++
					}
					sel.Done(nil)
				}
				return float64(n) / calls
			}
			for _, want := range []float64{1.0 / 11, 2.0 / 12, 3.0 / 13} {
				if got := share(); got < want-0.02 || got > want+0.02 {
					t.Errorf("%s: share of the new instance = %.3f, want %.3f", name, got, want)
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}
			time.Sleep(10 * time.Second)
			if got := share(); got < 0.48 || got > 0.52 {
				t.Errorf("%s: share after the ramp = %.3f, want 0.5", name, got)
			}
			b.Close()
		}
	})
}
