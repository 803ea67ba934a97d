package breaker

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTooManyAtOnceIsAFailureOfTheCircuit(t *testing.T) {
	b := New("x", Options{MaxConcurrentRequests: 2, RequestVolumeThreshold: 5})
	one, two := allow(t, b), allow(t, b)
	for range 4 {
		if _, err := b.Allow(); !errors.Is(err, ErrMaxConcurrency) {
			t.Fatalf("Allow = %v, want ErrMaxConcurrency", err)
		}
	}
	one.Done(Success)
	if s := b.Snapshot(); s.Rejected != 4 || s.Errors != 4 || s.Total != 5 || s.InFlight != 1 {
		t.Errorf("Rejected, Errors, Total, InFlight = %d, %d, %d, %d; want 4, 4, 5, 1", s.Rejected, s.Errors, s.Total, s.InFlight)
	}
	wantState(t, b, Open)
	two.Done(Success)
}

func TestNeverMoreAtOnceThanAllowed(t *testing.T) {
	b := New("x", Options{MaxConcurrentRequests: 3, ErrorPercentThreshold: 101})
	var running, most, refused atomic.Int64
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for range 2000 {
				p, err := b.Allow()
				if err != nil {
					refused.Add(1)
					continue
				}
				n := running.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				running.Add(-1)
				p.Done(Success)
			}
		})
	}
	callers.Wait()
	if most.Load() > 3 || b.Snapshot().InFlight != 0 {
		t.Errorf("%d at once, %d left in flight; want at most 3 and 0", most.Load(), b.Snapshot().InFlight)
	}
}

func TestSlowCallsOpenTheCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{SlowCall: time.Second, RequestVolumeThreshold: 4})
		slow := func(d time.Duration) {
			p := allow(t, b)
			time.Sleep(d)
			p.Done(Success)
		}
		slow(0)
		slow(time.Second) // not slower than SlowCall
		slow(time.Second + 1)
		wantState(t, b, Closed)
		slow(2 * time.Second)
		wantState(t, b, Open)
		if s := b.Snapshot(); s.Slow != 2 || s.Errors != 0 || s.Reason != "slow" {
			t.Errorf("Slow, Errors, Reason = %d, %d, %q; want 2, 0, slow", s.Slow, s.Errors, s.Reason)
		}
		time.Sleep(5*time.Second + 1)
		slow(2 * time.Second)
		wantState(t, b, Open) // a slow probe is a failed one
		time.Sleep(5*time.Second + 1)
		slow(time.Second)
		wantState(t, b, Closed)
	})
}

func TestFewerSlowCallsThanTheirPercentageOpenNothing(t *testing.T) {
	for percent, most := range map[int]int{0: 9, 90: 17} { // of 20, at the default of 50 too
		synctest.Test(t, func(t *testing.T) {
			b := New("x", Options{SlowCall: time.Millisecond, SlowPercentThreshold: percent})
			calls(b, 20-most, Success)
			for range most {
				p := allow(t, b)
				time.Sleep(2 * time.Millisecond)
				p.Done(Success)
			}
			wantState(t, b, Closed)
			if s := b.Snapshot(); s.Slow != uint64(most) || s.Total != 20 {
				t.Errorf("Slow, Total = %d, %d; want %d, 20", s.Slow, s.Total, most)
			}
		})
	}
}

func TestACallThatOverranItsTimeoutIsATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{Timeout: time.Second})
		for _, o := range []Outcome{Success, Failure, Neutral} {
			p := allow(t, b)
			time.Sleep(time.Second)
			p.Done(o)
		}
		if s := b.Snapshot(); s.Timeouts != 2 || s.Errors != 2 || s.Total != 2 {
			t.Errorf("Timeouts, Errors, Total = %d, %d, %d; want 2, 2, 2", s.Timeouts, s.Errors, s.Total)
		}
	})
}

func TestAbsurdOptionsMeanWhatTheySay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, percent := range []int{101, 1 << 62, math.MaxInt} {
			b := New("x", Options{ErrorPercentThreshold: percent, SlowPercentThreshold: percent})
			calls(b, 100, Failure)
			wantState(t, b, Closed)
		}
		b := opened(Options{
			Window: math.MaxInt64, Buckets: math.MaxInt, SleepWindow: math.MaxInt64, MaxSleepWindow: math.MaxInt64,
			Probes: math.MaxInt, Timeout: math.MaxInt64, SlowCall: math.MaxInt64,
		})
		wantState(t, b, Open)
		time.Sleep(50 * 365 * 24 * time.Hour)
		var open *OpenError
		if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter < 100*365*24*time.Hour {
			t.Errorf("Allow after 50 years = %v, want an OpenError", err)
		}
		b = opened(Options{ProbeLease: math.MaxInt64, Window: 1})
		time.Sleep(5*time.Second + 1)
		p := allow(t, b)
		time.Sleep(50 * 365 * 24 * time.Hour)
		if call(b, Success) || !p.Done(Success) {
			t.Error("the lease of the probe has ended")
		}
	})
}

func TestForcedStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{})
		b.ForceOpen()
		var open *OpenError
		if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter != 5*time.Second {
			t.Errorf("Allow under ForceOpen = %v, want an OpenError with the SleepWindow", err)
		}
		if s := b.Snapshot(); s.State != Open || s.Forced != "open" || !s.OpenUntil.IsZero() {
			t.Errorf("Snapshot = %+v, want forced open", s)
		}
		time.Sleep(time.Hour)
		if call(b, Success) {
			t.Error("ForceOpen ended by itself")
		}
		b.Auto()
		wantState(t, b, Closed)

		b.ForceClosed()
		calls(b, 100, Failure)
		if s := b.Snapshot(); s.State != Closed || s.Forced != "closed" || s.Total != 100 {
			t.Errorf("Snapshot = %+v, want forced closed with 100 calls counted", s)
		}
		b.Auto()
		wantState(t, b, Open) // it opened beneath
		b.ForceClosed()
		if !call(b, Failure) {
			t.Error("refused under ForceClosed")
		}
		time.Sleep(5*time.Second + 1)
		call(b, Success) // the probe that there would have been
		b.Auto()
		wantState(t, b, Closed)
	})
}

func TestForcingAnOpenCircuitKeepsItsSleepWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{})
		b.ForceClosed()
		time.Sleep(3 * time.Second)
		b.Auto()
		var open *OpenError
		if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter != 2*time.Second {
			t.Errorf("Allow = %v, want an OpenError with 2s", err)
		}
	})
}

func TestOnChangeIsToldInOrderWithNoLockHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *Breaker
		var seen []string
		b = New("x", Options{OnChange: func(c Change) {
			seen = append(seen, fmt.Sprintf("%v>%v %d/%d", c.From, c.To, c.Snapshot.Errors, c.Snapshot.Total))
			if c.Snapshot.State != c.To || c.Name != "x" {
				t.Errorf("Change = %+v, want a snapshot after it", c)
			}
			b.Snapshot() // in gobreaker this deadlocks
			if c.To == Open && len(seen) == 1 {
				b.ForceClosed() // a change within a change is told after it
				b.Auto()
			}
		}})
		calls(b, 20, Failure)
		time.Sleep(5*time.Second + 1)
		call(b, Success)
		want := []string{
			"closed>open 20/20", "open>closed 20/20", "closed>open 20/20",
			"open>half-open 20/20", "half-open>closed 0/0",
		}
		if !slices.Equal(seen, want) {
			t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestAHookThatPanicsCorruptsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		b := New("x", Options{OnChange: func(Change) {
			told++
			panic("hook")
		}})
		calls(b, 19, Failure)
		func() {
			defer func() {
				if v := recover(); v != "hook" {
					t.Errorf("recovered %v, want the hook's panic", v)
				}
			}()
			call(b, Failure)
		}()
		wantState(t, b, Open)
		time.Sleep(5*time.Second + 1)
		func() {
			defer func() { _ = recover() }()
			_, _ = b.Allow()
		}()
		if told != 2 {
			t.Errorf("told %d times, want 2", told)
		}
		if s := b.Snapshot(); s.State != HalfOpen {
			t.Errorf("State = %v, want half-open", s.State)
		}
	})
}

func TestAHookThatPanicsInAllowKeepsNoPlaceOfTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		b := New("x", Options{MaxConcurrentRequests: 1, OnChange: func(c Change) {
			if told++; c.To == HalfOpen {
				panic("hook")
			}
		}})
		calls(b, 20, Failure)
		time.Sleep(5*time.Second + 1)
		func() {
			defer func() {
				if v := recover(); v != "hook" {
					t.Errorf("recovered %v, want the hook's panic", v)
				}
			}()
			_, _ = b.Allow()
		}()
		if s := b.Snapshot(); s.State != HalfOpen || s.InFlight != 0 {
			t.Errorf("%v with %d in flight, want half-open with 0", s.State, s.InFlight)
		}
		if !call(b, Success) {
			t.Error("the next call is refused, want it to probe")
		}
		wantState(t, b, Closed)
		if told != 3 {
			t.Errorf("told %d times, want 3", told)
		}
	})
}

func TestTheConcurrencyLimitHoldsForProbesAndUnderForceClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{MaxConcurrentRequests: 2, Probes: 5})
		refused := func(when string) {
			t.Helper()
			if _, err := b.Allow(); !errors.Is(err, ErrMaxConcurrency) {
				t.Errorf("%s: Allow of the third = %v, want ErrMaxConcurrency", when, err)
			}
			if n := b.Snapshot().InFlight; n != 2 {
				t.Errorf("%s: %d in flight, want 2", when, n)
			}
		}
		calls(b, 20, Failure)
		time.Sleep(5*time.Second + 1)
		one, two := allow(t, b), allow(t, b)
		refused("half-open")
		one.Done(Failure)
		two.Done(Failure)
		b.ForceClosed()
		one, two = allow(t, b), allow(t, b)
		refused("forced")
		one.Done(Success)
		two.Done(Success)
		wantCounts(t, b, 25, 23, 0) // with two refusals, without the probe that another decided for
	})
}

// TestAProbeSlotThatWasTakenMeanwhileRefusesTheCall is what happens to one of two that saw the gate open.
func TestAProbeSlotThatWasTakenMeanwhileRefusesTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{})
		time.Sleep(5*time.Second + 1)
		probe := allow(t, b)
		b.gate.Store(anyTime) // as the second has read it before
		if call(b, Success) {
			t.Error("a second probe was admitted")
		}
		if n := b.Snapshot().InFlight; n != 1 {
			t.Errorf("%d in flight, want the probe", n)
		}
		probe.Done(Failure)
		if _, ok := b.probe(now()); ok || b.State() != Open { // as the second asks when the first has failed
			t.Errorf("a probe within the sleep window: %v, %v", ok, b.State())
		}
	})
}

func TestAChangeWaitsForTheHookThatIsToldTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		release := make(chan struct{})
		b := New("x", Options{OnChange: func(c Change) {
			if c.To == Open {
				<-release
			}
			seen = append(seen, c.From.String()+">"+c.To.String())
		}})
		go calls(b, 20, Failure)
		synctest.Wait()
		b.ForceClosed() // which waits for nobody
		b.ForceOpen()
		b.Auto()
		b.ForceClosed()
		if len(seen) != 0 {
			t.Errorf("told %v while the first change was being told", seen)
		}
		close(release)
		synctest.Wait()
		want := []string{"closed>open", "open>closed", "closed>open", "open>closed"}
		if !slices.Equal(seen, want) {
			t.Errorf("told %v, want %v", seen, want)
		}
	})
}

func TestChangesAreToldInOrderUnderLoad(t *testing.T) {
	var mu sync.Mutex
	var seen []Change
	b := New("x", Options{
		RequestVolumeThreshold: 1, SleepWindow: 1, ProbeLease: time.Minute,
		OnChange: func(c Change) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, c)
		},
	})
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for j := range 2000 {
				call(b, Outcome((i+j)%2))
			}
		})
	}
	callers.Wait()
	if len(seen) < 10 {
		t.Fatalf("only %d changes", len(seen))
	}
	for i := 1; i < len(seen); i++ {
		if seen[i].From != seen[i-1].To {
			t.Fatalf("change %d is %v>%v after %v>%v", i, seen[i].From, seen[i].To, seen[i-1].From, seen[i-1].To)
		}
	}
	if got := b.State(); got != seen[len(seen)-1].To || b.Snapshot().InFlight != 0 {
		t.Errorf("ended %v with %d in flight, last told %v", got, b.Snapshot().InFlight, seen[len(seen)-1].To)
	}
}

func TestAllowAndDoneDoNotAllocate(t *testing.T) {
	for name, o := range map[string]Options{
		"plain": {}, "all": {SlowCall: time.Minute, Timeout: time.Minute, MaxConcurrentRequests: 10, Peers: &peers{}},
	} {
		b := New("x", o)
		if n := testing.AllocsPerRun(1000, func() { call(b, Success) }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}
