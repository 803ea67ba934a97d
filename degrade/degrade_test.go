package degrade

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// start returns a Controller that is closed when the test ends.
func start(t *testing.T, o Options) *Controller {
	t.Helper()
	d := New(o)
	t.Cleanup(func() { d.Close() })
	return d
}

// wait lets dur pass, and what is due then happen.
func wait(dur time.Duration) {
	time.Sleep(dur)
	synctest.Wait()
}

// A dial is a signal that a test sets.
type dial struct{ v atomic.Uint64 }

func (s *dial) set(v float64) { s.v.Store(math.Float64bits(v)) }

// value has no reading for NaN.
func (s *dial) value() (float64, bool) {
	v := math.Float64frombits(s.v.Load())
	return v, !math.IsNaN(v)
}

// traffic observes n requests of that latency each quarter of a second, of which so many failed.
func traffic(d *Controller, dur time.Duration, n, failed int, latency time.Duration) {
	for range dur / pace {
		for i := range n {
			d.Observe(latency, i < failed)
		}
		wait(pace)
	}
}

func fired(d *Controller) (names []string) {
	_, why := d.Score()
	for _, c := range why {
		if c.Fired {
			names = append(names, c.Rule)
		}
	}
	return names
}

func TestEachRowOfTheTruthTable(t *testing.T) {
	for _, row := range []struct {
		latency, errs, cpu                   bool
		sumScores, sumWeights, normalised100 float64 // the last times 24.5, for it is not round
	}{
		{false, false, false, 0, 0, 0},
		{true, false, false, 30, 40, 12},
		{false, true, false, 25, 35, 8.75},
		{false, false, true, 15, 25, 3.75},
		{true, true, false, 55, 75, 20.75},
		{true, false, true, 45, 65, 15.75},
		{false, true, true, 40, 60, 12.5},
		{true, true, true, 70, 100, 24.5},
	} {
		for scoring, want := range map[Scoring]float64{
			SumScores: row.sumScores, SumWeights: row.sumWeights, Normalised: row.normalised100 / 0.245, 99: row.sumScores,
		} {
			synctest.Test(t, func(t *testing.T) {
				failed, latency, cpu := 2, 500*time.Millisecond, 0.85 // none is strictly over
				if row.errs {
					failed = 3
				}
				if row.latency {
					latency += 100 * time.Microsecond
				}
				if row.cpu {
					cpu = 0.851
				}
				d := start(t, Options{Scoring: scoring, CPU: func() (float64, bool) { return cpu, true }})
				traffic(d, 11*time.Second, 20, failed, latency)
				score, why := d.Score()
				sum := 0.0
				for i, over := range []bool{row.latency, row.errs, row.cpu} {
					sum += why[i].Points
					if why[i].Fired != over || over != (why[i].Points > 0) || over == why[i].Since.IsZero() {
						t.Errorf("%+v, scoring %d: %+v", row, scoring, why[i])
					}
				}
				if math.Abs(score-want) > 1e-9 || math.Abs(sum-score) > 1e-9 || d.Degraded() != (want >= 60) {
					t.Errorf("%+v, scoring %d: score %v of points %v, degraded %v; want %v", row, scoring, score, sum, d.Degraded(), want)
				}
			})
		}
	}
}

func TestLatencyFiresAfterItsTimeAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t, Options{Rules: []Rule{Latency(500*time.Millisecond, 10*time.Second, 60, 100)}})
		traffic(d, 20*time.Second, 20, 0, 500*time.Millisecond)
		traffic(d, 10*time.Second, 20, 0, 501*time.Millisecond)
		if got := fired(d); got != nil { // seen first a quarter of a second after it began
			t.Errorf("after 9.75 s over: fired %v", got)
		}
		traffic(d, pace, 20, 0, 501*time.Millisecond)
		_, why := d.Score()
		if !why[0].Fired || time.Since(why[0].Since) != 10*time.Second || !d.Degraded() {
			t.Errorf("after 10 s over: %+v, degraded %v", why[0], d.Degraded())
		}
		traffic(d, time.Second, 20, 0, 0)
		if got := fired(d); got != nil {
			t.Errorf("under again: fired %v", got)
		}
	})
}

func TestLatencyIsTheMeanOfTheLastSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t, Options{Rules: []Rule{Latency(time.Hour, 0, 60, 100)}})
		traffic(d, 5*time.Second, 20, 0, 100*time.Millisecond)
		traffic(d, pace, 60, 0, 300*time.Millisecond)
		if _, why := d.Score(); why[0].Value != 0.2 { // 60 of each in the second
			t.Errorf("mean = %v s, want 0.2", why[0].Value)
		}
		traffic(d, 3*pace, 1, 0, 300*time.Millisecond)
		if _, why := d.Score(); why[0].Value != 0.3 {
			t.Errorf("a second later: mean = %v s, want 0.3", why[0].Value)
		}
	})
}

func TestAGapInTheSamplesNeitherFiresNorClearsBeforeTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t, Options{Rules: []Rule{Latency(500*time.Millisecond, 10*time.Second, 60, 100)}})
		traffic(d, 8*time.Second, 20, 0, time.Second)
		wait(5 * time.Second)
		if got := fired(d); got != nil {
			t.Errorf("without samples: fired %v", got)
		}
		traffic(d, pace, 20, 0, time.Second)
		if got := fired(d); got == nil {
			t.Error("the gap has cleared what was seen before it")
		}
		wait(10 * time.Second) // the last reading is of 0.75 s into this
		if got := fired(d); got == nil {
			t.Error("a gap shorter than the hold clears")
		}
		wait(time.Second)
		if _, why := d.Score(); why[0].Fired || why[0].Value != 0 || !why[0].Since.IsZero() {
			t.Errorf("after the hold: %+v", why[0])
		}
	})
}

func TestErrorRateNeedsMoreThanItsShareOfEnoughRequests(t *testing.T) {
	for _, tc := range []struct {
		requests, failed, least int
		want                    bool
	}{
		{100, 10, 0, false},
		{100, 11, 0, true},
		{1, 1, 0, false},
		{19, 19, 0, false},
		{20, 20, 0, true},
		{1, 1, 1, true},
		{99, 99, 100, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := start(t, Options{Rules: []Rule{ErrorRate(0.1, 0, 60, 100)}, MinRequests: tc.least})
			traffic(d, pace, tc.requests, tc.failed, 0)
			if got := fired(d) != nil; got != tc.want || d.Degraded() != tc.want {
				t.Errorf("%d of %d, at least %d: fired %v", tc.failed, tc.requests, tc.least, got)
			}
		})
	}
}

func TestErrorRateForgetsAfterItsWindow(t *testing.T) {
	for _, window := range []time.Duration{time.Second, 10 * time.Second, 5 * time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			d := start(t, Options{Rules: []Rule{ErrorRate(0.1, window, 60, 100)}})
			traffic(d, pace, 50, 50, 0)
			wait(window - max(window/60, pace) - pace)
			if fired(d) == nil {
				t.Errorf("window %v: forgotten after %v", window, window-max(window/60, pace))
			}
			wait(max(window/60, pace) + pace)
			if fired(d) != nil {
				t.Errorf("window %v: remembered for longer", window)
			}
		})
	}
}

func TestASignalWithoutAReadingIsSilent(t *testing.T) {
	for name, cpu := range map[string]func() (float64, bool){
		"no reading": func() (float64, bool) { return 1, false },
		"NaN":        func() (float64, bool) { return math.NaN(), true },
		"infinite":   func() (float64, bool) { return math.Inf(1), true },
		"panic":      func() (float64, bool) { panic("no CPU") },
	} {
		synctest.Test(t, func(t *testing.T) {
			d := start(t, Options{CPU: cpu, Scoring: Normalised})
			traffic(d, 11*time.Second, 20, 20, time.Second)
			score, why := d.Score()
			if why[2].Fired || why[2].Value != 0 || math.Abs(score-20.75/0.245) > 1e-9 {
				t.Errorf("%s: score %v, %+v", name, score, why[2])
			}
		})
	}
}

func TestAScoreAroundTheThresholdDoesNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a, b dial
		var changes []bool
		d := start(t, Options{
			Rules: []Rule{
				{Value: a.value, Score: 39}, {Value: b.value, Score: 22}, // 39 is under Recover, 61 over Threshold
			},
			OnChange: func(c Change) { changes = append(changes, c.Degraded) },
		})
		a.set(1)
		for i := range 20 { // 9 s low, 1 s high
			b.set(0)
			wait(9 * time.Second)
			b.set(1)
			wait(time.Second)
			if !d.Degraded() {
				t.Fatalf("round %d: well", i)
			}
		}
		b.set(0)
		wait(10 * time.Second)
		if !d.Degraded() {
			t.Error("well before RecoverFor is over")
		}
		wait(pace)
		if d.Degraded() || !slices.Equal(changes, []bool{true, false}) {
			t.Errorf("degraded %v after %v", d.Degraded(), changes)
		}
	})
}

func TestAScoreThatIsNotUnderRecoverStaysDegraded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a, b dial
		a.set(1)
		b.set(1)
		d := start(t, Options{Rules: []Rule{{Value: a.value, Score: 40}, {Value: b.value, Score: 20}}})
		wait(pace)
		b.set(0)
		wait(time.Hour)
		if score, _ := d.Score(); score != 40 || !d.Degraded() {
			t.Errorf("score %v, degraded %v; want 40, true", score, d.Degraded())
		}
	})
}

func TestForceHoldsForItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v dial
		var changes []Change
		d := start(t, Options{
			Rules:    []Rule{{Name: "mine", Value: v.value, Score: 80}},
			OnChange: func(c Change) { changes = append(changes, c) },
		})
		d.Force(true, time.Minute+time.Millisecond)
		wait(time.Minute)
		if !d.Degraded() {
			t.Error("not degraded while forced")
		}
		wait(time.Millisecond)
		if d.Degraded() {
			t.Error("degraded when the time is over")
		}
		v.set(1)
		wait(pace)
		d.Force(false, 0)
		wait(time.Hour)
		if score, _ := d.Score(); d.Degraded() || score != 80 {
			t.Errorf("forced to be well: degraded %v, score %v", d.Degraded(), score)
		}
		d.Force(false, time.Minute) // replaces the one before
		d.Force(false, time.Hour)
		wait(2 * time.Minute)
		if d.Degraded() {
			t.Error("a Force that was replaced has ended the one that replaced it")
		}
		d.Force(true, -1)
		d.Auto()
		if !d.Degraded() {
			t.Error("Auto does not say what the score says")
		}
		want := []Change{{Degraded: true, Forced: true}, {}, {Degraded: true, Score: 80}, {Score: 80, Forced: true}, {Degraded: true, Score: 80}}
		if len(changes) != len(want) {
			t.Fatalf("changes = %+v", changes)
		}
		for i, c := range changes {
			if c.Degraded != want[i].Degraded || c.Score != want[i].Score || c.Forced != want[i].Forced || c.Why[0].Rule != "mine" {
				t.Errorf("change %d = %+v, want %+v", i, c, want[i])
			}
		}
	})
}

func TestOnChangeIsCalledOnceAtATimeWithoutALockAndMayPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d *Controller
		var got []bool
		running := false
		d = start(t, Options{Rules: []Rule{}, OnChange: func(c Change) {
			got = append(got, c.Degraded)
			if running {
				t.Error("it is called while it runs")
			}
			running = true
			defer func() { running = false }()
			d.Score()
			if c.Degraded {
				d.Auto()
			}
			panic("a bug of the listener's")
		}})
		d.Force(true, 0)
		d.Force(true, time.Second)
		wait(time.Minute)
		if want := []bool{true, false, true, false}; !slices.Equal(got, want) || d.Degraded() {
			t.Errorf("changes %v, degraded %v; want %v", got, d.Degraded(), want)
		}
	})
}

func TestForecastFiresBeforeTheLimitIsReached(t *testing.T) {
	for _, tc := range []struct {
		name     string
		forecast time.Duration
		signal   func(s float64) float64 // of the seconds since the start
		from, to float64                 // fires first between, in seconds; 0: never in a minute
	}{
		{"rising", 10 * time.Second, func(s float64) float64 { return 2 * s }, 39, 46},
		{"rising, no forecast", 0, func(s float64) float64 { return 2 * s }, 50, 51},
		{"flat below", 10 * time.Second, func(float64) float64 { return 99 }, 0, 0},
		{"flat at the limit", 10 * time.Second, func(float64) float64 { return 100 }, 0, 0},
		{"falling", 10 * time.Second, func(s float64) float64 { return 99 - s }, 0, 0},
		{"rising too slowly", 10 * time.Second, func(s float64) float64 { return s }, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			value := func() (float64, bool) { return tc.signal(time.Since(began).Seconds()), true }
			d := start(t, Options{Rules: []Rule{{Value: value, Over: 100, Score: 60}}, Forecast: tc.forecast})
			first := 0.0
			for range 60 * time.Second / pace {
				if wait(pace); first == 0 && fired(d) != nil {
					first = time.Since(began).Seconds()
				}
			}
			if first < tc.from || first > tc.to {
				t.Errorf("%s: fired after %v s, want between %v and %v", tc.name, first, tc.from, tc.to)
			}
		})
	}
}

func TestBadRulesAndOptionsHaveTheirMeaning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var on dial
		on.set(1)
		d := start(t, Options{Threshold: math.NaN(), Recover: -1, Rules: []Rule{
			{},
			{Value: on.value, Score: math.NaN(), For: -1},
			{Value: on.value, Score: -5},
			{Value: on.value, Score: 60},
			{Value: on.value, Score: 70},
		}})
		wait(pace)
		score, why := d.Score()
		if score != 100 || why[0].Fired || why[0].Rule != "rule1" || !why[1].Fired || why[1].Points != 0 || why[2].Points != 0 {
			t.Errorf("score %v, %+v", score, why)
		}
		why[0].Rule = "mine"
		if _, why := d.Score(); why[0].Rule != "rule1" {
			t.Error("who asks for the score can change it")
		}
		if o := withDefaults(Options{Threshold: 30}); o.Recover != 30 {
			t.Errorf("Recover = %v over a Threshold of 30", o.Recover)
		}
	})
}

func TestCloseEndsItAndMayBeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v dial
		d := New(Options{Rules: []Rule{{Value: v.value, Score: 60}}})
		d.Force(true, time.Minute)
		for range 2 {
			if err := d.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		}
		d.Force(false, 0)
		d.Auto()
		v.set(1)
		wait(time.Hour)
		if score, _ := d.Score(); !d.Degraded() || score != 0 {
			t.Errorf("after Close: degraded %v, score %v", d.Degraded(), score)
		}
	})
}

func TestNoRequestIsLostAmongMany(t *testing.T) {
	d := start(t, Options{Rules: []Rule{ErrorRate(0.5, time.Hour, 60, 100)}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 1000 {
				d.Observe(time.Millisecond, n%4 == 0)
				d.Score()
				if n%100 == 0 {
					d.Force(i%2 == 0, time.Microsecond)
				}
				d.Degraded()
			}
		})
	}
	wg.Wait()
	d.Close()
	d.evaluate(time.Now())
	if got, want := d.windows[1].sum(time.Since(d.epoch)), (sample{8000, 2000, 8000, uint64(8 * time.Second)}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

func BenchmarkObserve(b *testing.B) {
	d := New(Options{})
	defer d.Close()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			d.Observe(time.Millisecond, false)
		}
	})
	if got := d.counters.succeeded.Load(); got < uint64(b.N) {
		b.Errorf("%d of %d observed", got, b.N)
	}
}
