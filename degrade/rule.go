package degrade

import (
	"math"
	"strconv"
	"time"
)

// A Rule adds Score while its signal has been over Over for at least For. The functions of this package
// make rules on what the Controller itself measures; a literal is a rule on a signal of yours.
type Rule struct {
	// Name says which rule it is in Contribution. Empty: "rule1" for the first rule, and so on.
	Name string
	// Value reads the signal; ok false (or a value that is NaN or infinite, or a panic): no reading, the
	// rule is silent. It is called four times a second by one goroutine, and must not block. Rules made by
	// Latency, ErrorRate, CPU and InFlight have none; if it is set, it is read instead.
	Value func() (v float64, ok bool)
	// Over is the limit: the signal has to be strictly over it.
	Over float64
	// For is how long. Zero or less: the rule fires with the first reading over Over.
	For time.Duration
	// Score is what the rule adds by SumScores, in points. Less than zero, or NaN: 0.
	Score float64
	// Weight is in per cent, for SumWeights and Normalised. Less than zero, or NaN: 0.
	Weight float64

	signal signal
	window time.Duration // of byErrors
}

// A signal is what the Controller measures for a rule without Value.
type signal uint8

const (
	byValue signal = iota
	byLatency
	byErrors
	byCPU
	byInFlight
)

// Latency fires when the mean latency over the last second has been over for at least so long. Its value
// is in seconds.
func Latency(over, forAtLeast time.Duration, score, weight float64) Rule {
	return Rule{Name: "latency", Over: over.Seconds(), For: forAtLeast, Score: score, Weight: weight, signal: byLatency}
}

// ErrorRate fires when the share of failed requests, 0 to 1, in a sliding window is over. A window of zero
// or less is 5 min. The window moves in sixtieths, of a quarter of a second at least: nothing in it is
// older than that.
func ErrorRate(over float64, window time.Duration, score, weight float64) Rule {
	if window <= 0 {
		window = 5 * time.Minute
	}
	return Rule{Name: "error_rate", Over: over, Score: score, Weight: weight, signal: byErrors, window: window}
}

// CPU fires when Options.CPU, 0 to 1, is over.
func CPU(over float64, score, weight float64) Rule {
	return Rule{Name: "cpu", Over: over, Score: score, Weight: weight, signal: byCPU}
}

// InFlight fires when more than so many requests are in [Middleware] at once.
func InFlight(over int, score, weight float64) Rule {
	return Rule{Name: "in_flight", Over: float64(over), Score: score, Weight: weight, signal: byInFlight}
}

// Scoring turns the rules that fired into one number, 0 to 100.
type Scoring int

const (
	// SumScores adds the scores of the rules that fired: of the three by default all have to, for 60.
	SumScores Scoring = iota
	// SumWeights adds their weights: of the three by default any two make 60.
	SumWeights
	// Normalised adds score x weight, as per cent of what all rules together would make.
	Normalised
)

// share is what r adds before the sum is scaled.
func (s Scoring) share(r *Rule) float64 {
	switch s {
	case SumWeights:
		return r.Weight
	case Normalised:
		return r.Score * r.Weight
	default:
		return r.Score
	}
}

// A rule is a Rule and what it has seen.
type rule struct {
	Rule
	read  func(now time.Duration) (float64, bool)
	trend trend

	value float64
	over  bool
	since time.Time // over since
	seen  time.Time // the last reading
	fired bool
}

// update takes the reading of now.
func (r *rule) update(now time.Time, v float64, ok bool, forecast time.Duration) {
	if !ok || math.IsNaN(v) || math.IsInf(v, 0) {
		if now.Sub(r.seen) >= r.For { // the gap has lasted as long as the hold: it is over
			r.value, r.over, r.fired, r.trend = 0, false, false, trend{}
		}
		return
	}
	ahead := forecast > 0 && r.trend.add(now, v, forecast) > r.Over
	if v > r.Over && !r.over {
		r.since = now
	}
	r.value, r.over, r.seen = v, v > r.Over, now
	r.fired = r.over && now.Sub(r.since) >= r.For || ahead
}

func (r *rule) contribution() Contribution {
	c := Contribution{Rule: r.Name, Value: r.value, Fired: r.fired}
	if r.over {
		c.Since = r.since
	}
	return c
}

// name is the rule's, or its number's.
func name(r Rule, i int) string {
	if r.Name != "" {
		return r.Name
	}
	return "rule" + strconv.Itoa(i+1)
}

// A trend is Holt's linear method for readings that may come irregularly: an exponentially smoothed level,
// and an exponentially smoothed slope per second.
type trend struct {
	at           time.Time
	level, slope float64
}

// add takes a reading and returns what is expected after the time ahead; for a signal that does not rise,
// nothing (minus infinity).
func (t *trend) add(now time.Time, v float64, ahead time.Duration) float64 {
	dt := now.Sub(t.at).Seconds()
	if t.at.IsZero() || dt <= 0 {
		t.level, t.at = v, now
		return math.Inf(-1)
	}
	a := 1 - math.Exp(-4*dt/ahead.Seconds()) // a time constant of a quarter of the horizon
	before := t.level
	t.level = a*v + (1-a)*(t.level+t.slope*dt)
	t.slope = a*(t.level-before)/dt + (1-a)*t.slope
	t.at = now
	if t.slope <= 0 {
		return math.Inf(-1)
	}
	return t.level + t.slope*ahead.Seconds()
}
