package breaker

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAGroupHasOneBreakerPerName(t *testing.T) {
	g := NewGroup(Options{})
	a := g.Get("a")
	if g.Get("a") != a || g.Get("b") == a {
		t.Error("Get does not tell names apart")
	}
	calls(a, 20, Failure)
	if _, err := g.Acquire("a"); err == nil {
		t.Error("Acquire of an open circuit = nil")
	}
	if _, err := g.Acquire("b"); err != nil {
		t.Errorf("Acquire of another = %v", err)
	}
	all := g.Snapshots()
	if len(all) != 2 || all[0].Name != "a" || all[0].State != Open || all[1].Name != "b" {
		t.Errorf("Snapshots = %+v, want a and b", all)
	}
}

func TestAFloodOfNamesGrowsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(Options{})
		flood := func(from int) {
			for i := range 100_000 {
				call(g.Get(fmt.Sprint("name", from+i)), Success)
			}
		}
		flood(0)
		if n := len(g.Snapshots()); n > maxNames+1 {
			t.Fatalf("%d circuits, want at most %d", n, maxNames+1)
		}
		if g.Get("late") != g.overflow {
			t.Error("a name too many has a circuit of its own")
		}
		time.Sleep(12 * time.Second)
		if b := g.Get("late"); b == g.overflow || g.Get("late") != b {
			t.Error("idle circuits were not let go")
		}
		flood(100_000)
		if n := len(g.Snapshots()); n > maxNames+1 {
			t.Fatalf("%d circuits after a second flood, want at most %d", n, maxNames+1)
		}
	})
}

func TestWhatIsNotIdleStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(Options{SleepWindow: time.Hour})
		open, running, forced := g.Get("open"), g.Get("running"), g.Get("forced")
		calls(open, 20, Failure)
		p := allow(t, running)
		forced.ForceClosed()
		for i := range 3 {
			time.Sleep(time.Minute)
			for j := range maxNames {
				call(g.Get(fmt.Sprint(i, "/", j)), Success)
			}
		}
		if g.Get("open") != open || g.Get("running") != running || g.Get("forced") != forced {
			t.Error("a circuit that was not idle was let go")
		}
		p.Done(Success)
	})
}

func TestWhoAddsANameThatIsThereByNowGetsItsBreaker(t *testing.T) {
	g := NewGroup(Options{})
	first := g.Get("a")
	for i := range g.chains { // as one that has looked before the other added it
		if chain := &g.chains[i]; chain.Load() != nil && g.add(chain, "a", now()) != first {
			t.Error("a second breaker of one name")
		}
	}
	if n := len(g.Snapshots()); n != 1 {
		t.Errorf("%d circuits, want 1", n)
	}
}

func TestLongNamesShareACircuit(t *testing.T) {
	g := NewGroup(Options{})
	if g.Get(strings.Repeat("x", maxNameLen+1)) != g.overflow || g.Get(strings.Repeat("x", maxNameLen)) == g.overflow {
		t.Error("names longer than the limit, and only those, must share")
	}
}

func TestAGroupUnderLoad(t *testing.T) {
	g := NewGroup(Options{Window: time.Millisecond})
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for j := range 3000 {
				if b := g.Get(fmt.Sprint(i%2, j)); b != g.overflow && b.name != fmt.Sprint(i%2, j) {
					t.Errorf("Get(%d%d) = %s", i%2, j, b.name)
				}
				call(g.Get("hot"), Success)
			}
		})
	}
	callers.Wait()
	if n := len(g.Snapshots()); n > maxNames+1 || n != countLinks(g) && n != countLinks(g)+1 {
		t.Errorf("%d circuits, %d links", n, countLinks(g))
	}
}

func countLinks(g *Group) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

func TestALookUpDoesNotAllocate(t *testing.T) {
	g := NewGroup(Options{})
	if n := testing.AllocsPerRun(1000, func() {
		p, _ := g.Acquire("GET /users/:id")
		p.Done(Success)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestAPermitOfAnotherEngine(t *testing.T) {
	var f finisher
	if !PermitOf(&f, 7).Done(Timeout) || f != (finisher{7, Timeout}) {
		t.Errorf("Finish was called with %v, want 7, Timeout", f)
	}
	if PermitOf(&f, 7).Timeout() != 0 || (Permit{}).Done(Success) {
		t.Error("a Finisher without Timeout, or no circuit at all, has none")
	}
}

type finisher struct {
	token uint64
	o     Outcome
}

func (f *finisher) Finish(token uint64, o Outcome) bool {
	*f = finisher{token, o}
	return true
}
