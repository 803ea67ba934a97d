package breaker

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// call makes one call that ends at once, and reports whether it was admitted.
func call(b *Breaker, o Outcome) bool {
	p, err := b.Allow()
	if err != nil {
		return false
	}
	p.Done(o)
	return true
}

func calls(b *Breaker, n int, o Outcome) {
	for range n {
		call(b, o)
	}
}

// allow asks for a permit that must be there.
func allow(t *testing.T, b *Breaker) Permit {
	t.Helper()
	p, err := b.Allow()
	if err != nil {
		t.Fatalf("Allow = %v, want a permit; %+v", err, b.Snapshot())
	}
	return p
}

func wantState(t *testing.T, b *Breaker, want State) {
	t.Helper()
	if got := b.State(); got != want {
		t.Fatalf("State = %v, want %v; %+v", got, want, b.Snapshot())
	}
}

func TestTheCircuitOpensAtTheVolumeAndThePercentage(t *testing.T) {
	for _, tt := range []struct {
		name              string
		failures, success int
		percent, volume   int
		want              State
	}{
		{"below the volume", 19, 0, 0, 0, Closed},
		{"all fail", 20, 0, 0, 0, Open},
		{"exactly half", 10, 10, 0, 0, Open},
		{"49.5 per cent is not 50", 99, 101, 0, 200, Closed},
		{"57 of 100 at 57 per cent, which Netflix truncates to 56", 57, 43, 57, 100, Open},
		{"29 of 100 at 29 per cent", 29, 71, 29, 100, Open},
		{"1 per cent", 1, 99, 1, 100, Open},
		{"over 100 per cent never", 100, 0, 101, 0, Closed},
		{"no errors", 0, 100, 0, 0, Closed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New("x", Options{RequestVolumeThreshold: tt.volume, ErrorPercentThreshold: tt.percent})
				calls(b, tt.success, Success)
				calls(b, tt.failures, Failure)
				wantState(t, b, tt.want)
			})
		})
	}
}

func TestASuccessThatCompletesTheVolumeOpens(t *testing.T) {
	b := New("x", Options{})
	calls(b, 19, Failure)
	wantState(t, b, Closed)
	call(b, Success) // gobreaker and cep21 stay closed here
	wantState(t, b, Open)
}

func TestCallsInFlightAreInNoCount(t *testing.T) {
	b := New("x", Options{})
	var open []Permit
	for range 30 {
		open = append(open, allow(t, b))
	}
	for _, p := range open[:19] {
		p.Done(Failure)
	}
	wantState(t, b, Closed)
	if s := b.Snapshot(); s.Total != 19 || s.InFlight != 11 {
		t.Errorf("Total, InFlight = %d, %d; want 19, 11", s.Total, s.InFlight)
	}
	open[19].Done(Failure)
	wantState(t, b, Open)
}

func TestNeutralIsInNoCount(t *testing.T) {
	b := New("x", Options{})
	calls(b, 90, Neutral)
	calls(b, 10, Failure) // hystrix-go would read 10 %, and a volume of 100
	wantState(t, b, Closed)
	if s := b.Snapshot(); s.Total != 10 || s.Errors != 10 {
		t.Errorf("Total, Errors = %d, %d; want 10, 10", s.Total, s.Errors)
	}
	calls(b, 10, Failure)
	wantState(t, b, Open)
}

func TestOutcomesThatAreNoneAreFailures(t *testing.T) {
	b := New("x", Options{})
	calls(b, 10, Outcome(-1))
	calls(b, 10, Outcome(4))
	wantState(t, b, Open)
}

func TestTheWindowForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{})
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
		calls(b, 19, Failure)
		time.Sleep(11 * time.Second)
		call(b, Failure)
		wantState(t, b, Closed)
		if s := b.Snapshot(); s.Total != 1 {
			t.Errorf("Total = %d after a window, want 1", s.Total)
		}
	})
}

func TestTheSleepWindowMustHavePassedStrictly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{})
		calls(b, 20, Failure)
		_, err := b.Allow()
		var open *OpenError
		if !errors.As(err, &open) || !errors.Is(err, ErrOpen) || open.RetryAfter != 5*time.Second || open.Name != "x" {
			t.Fatalf("Allow = %#v, want an OpenError of x with 5s", err)
		}
		if got := b.Snapshot().OpenUntil; !got.Equal(time.Now().Add(5 * time.Second)) {
			t.Errorf("OpenUntil = %v, want in 5s", got)
		}
		time.Sleep(5 * time.Second)
		if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter <= 0 {
			t.Fatalf("Allow after exactly the sleep window = %v, want refused with a wait", err)
		}
		time.Sleep(time.Nanosecond)
		p := allow(t, b)
		wantState(t, b, HalfOpen)
		if call(b, Success) {
			t.Error("a second call was admitted beside the probe")
		}
		if !p.Done(Success) {
			t.Error("Done of the probe = false")
		}
		wantState(t, b, Closed)
		if s := b.Snapshot(); s.Total != 0 {
			t.Errorf("Total = %d after closing, want an empty window", s.Total)
		}
	})
}

// opened returns a breaker that has just opened.
func opened(o Options) *Breaker {
	b := New("x", o)
	calls(b, b.o.RequestVolumeThreshold, Failure)
	return b
}

func TestTheSleepWindowCountsFromTheFailedProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{})
		time.Sleep(5*time.Second + 1)
		p := allow(t, b)
		time.Sleep(3 * time.Second)
		p.Done(Failure)
		wantState(t, b, Open)
		time.Sleep(5 * time.Second)
		if call(b, Success) {
			t.Error("admitted before the sleep window from the failure was over")
		}
		time.Sleep(time.Nanosecond)
		if !call(b, Success) {
			t.Error("refused after it")
		}
		wantState(t, b, Closed)
	})
}

func TestTheSleepWindowDoublesUpToItsMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{SleepWindow: time.Second, MaxSleepWindow: 7 * time.Second})
		for i, want := range []time.Duration{1, 2, 4, 7, 7} {
			var open *OpenError
			if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter != want*time.Second {
				t.Fatalf("after %d failed probes: %v, want %ds", i, err, want)
			}
			time.Sleep(open.RetryAfter + 1)
			allow(t, b).Done(Failure)
		}
		time.Sleep(7*time.Second + 1)
		allow(t, b).Done(Success)
		calls(b, 20, Failure)
		var open *OpenError
		if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter != time.Second {
			t.Errorf("after it has closed once: %v, want 1s again", err)
		}
	})
}

func TestALateResultDecidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{})
		late, later := allow(t, b), allow(t, b)
		calls(b, 20, Failure)
		if late.Done(Success) { // in hystrix-go this closes the circuit
			t.Error("Done of a call from before = true")
		}
		wantState(t, b, Open)
		time.Sleep(5*time.Second + 1)
		probe := allow(t, b)
		if later.Done(Failure) || b.State() != HalfOpen {
			t.Error("a late failure decided the half-open circuit")
		}
		probe.Done(Success)
		wantState(t, b, Closed)
		if s := b.Snapshot(); s.Total != 0 || s.InFlight != 0 {
			t.Errorf("Total, InFlight = %d, %d; want 0, 0", s.Total, s.InFlight)
		}
	})
}

func TestALostProbeWedgesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{ProbeLease: 2 * time.Second})
		time.Sleep(5*time.Second + 1)
		lost := allow(t, b)
		var open *OpenError
		if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter != 2*time.Second {
			t.Fatalf("Allow beside the probe = %v, want an OpenError with its lease", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := b.Allow(); !errors.As(err, &open) || open.RetryAfter > 2*time.Second {
			t.Fatalf("Allow within the lease = %v, want an OpenError", err)
		}
		time.Sleep(time.Nanosecond)
		second := allow(t, b)
		if lost.Done(Failure) {
			t.Error("Done of a probe without a lease = true")
		}
		wantState(t, b, HalfOpen)
		if !second.Done(Success) {
			t.Error("Done of the second probe = false")
		}
		wantState(t, b, Closed)
	})
}

func TestAProbeThatEndsAfterItsLeaseDecidesNothingThoughNobodyTookItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{ProbeLease: time.Second})
		time.Sleep(5*time.Second + 1)
		p := allow(t, b)
		time.Sleep(time.Second + 1)
		if p.Done(Success) || b.State() != HalfOpen {
			t.Errorf("it decided: %v", b.State())
		}
		if !call(b, Success) {
			t.Error("its slot is not free")
		}
		wantState(t, b, Closed)
	})
}

func TestTheLeaseIsTheLongerOfSleepWindowAndTimeout(t *testing.T) {
	for _, o := range []Options{{SleepWindow: 3 * time.Second, Timeout: time.Second}, {SleepWindow: time.Second, Timeout: 3 * time.Second}} {
		if got := New("x", o).o.ProbeLease; got != 3*time.Second {
			t.Errorf("ProbeLease = %v, want 3s", got)
		}
	}
}

func TestANeutralProbeFreesItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{})
		time.Sleep(5*time.Second + 1)
		if !allow(t, b).Done(Neutral) {
			t.Error("Done(Neutral) of the probe = false")
		}
		wantState(t, b, HalfOpen)
		if !call(b, Success) {
			t.Error("the slot is not free")
		}
		wantState(t, b, Closed)
	})
}

func TestEveryOneOfSeveralProbesMustSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{Probes: 3})
		time.Sleep(5*time.Second + 1)
		one, two := allow(t, b), allow(t, b)
		one.Done(Success)
		three := allow(t, b)
		if call(b, Success) {
			t.Error("a fourth probe was admitted")
		}
		two.Done(Success)
		wantState(t, b, HalfOpen)
		three.Done(Success)
		wantState(t, b, Closed)

		calls(b, 20, Failure)
		time.Sleep(5*time.Second + 1)
		one, two = allow(t, b), allow(t, b)
		one.Done(Failure)
		wantState(t, b, Open)
		if two.Done(Success) {
			t.Error("Done of a probe after another has failed = true")
		}
	})
}

func TestExactlyOneProbeAmongAThousandCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{})
		time.Sleep(5*time.Second + 1)
		var admitted atomic.Int32
		var callers sync.WaitGroup
		begin := make(chan struct{})
		for range 1000 {
			callers.Go(func() {
				<-begin
				if _, err := b.Allow(); err == nil {
					admitted.Add(1)
				}
			})
		}
		close(begin)
		callers.Wait()
		if n := admitted.Load(); n != 1 {
			t.Errorf("%d probes, want 1", n)
		}
		if s := b.Snapshot(); s.ShortCircuited != 999 || s.InFlight != 1 {
			t.Errorf("ShortCircuited, InFlight = %d, %d; want 999, 1", s.ShortCircuited, s.InFlight)
		}
	})
}
