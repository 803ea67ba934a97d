package degrade

import (
	"math"
	"os"
	"time"
)

// A picture is the result of an evaluation. It never changes.
type picture struct {
	score float64
	why   []Contribution
}

// run evaluates the rules until Close.
func (d *Controller) run() {
	defer close(d.done)
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-ticker.C:
			d.evaluate(time.Now())
		}
	}
}

func (d *Controller) evaluate(now time.Time) {
	at := now.Sub(d.epoch)
	next := d.counters.read(at)
	for _, w := range d.windows {
		w.add((d.last.at+at)/2, next.minus(d.last))
	}
	d.last = next
	for _, r := range d.rules {
		v, ok := ask(r, at)
		r.update(now, v, ok, d.o.Forecast)
	}
	p := d.score()

	d.mu.Lock()
	d.picture.Store(p)
	d.decide(now, p.score)
	d.settle()
	d.unlockAndTell()
}

// ask reads the signal of r. One that panics has no reading: what watches the service must not end it.
func ask(r *rule, at time.Duration) (v float64, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	return r.read(at)
}

func (d *Controller) score() *picture {
	p := &picture{why: make([]Contribution, len(d.rules))}
	scale := 1.0
	if d.o.Scoring == Normalised && d.total > 0 {
		scale = 100 / d.total
	}
	sum := 0.0
	for i, r := range d.rules {
		p.why[i] = r.contribution()
		if r.fired {
			share := d.o.Scoring.share(&r.Rule)
			p.why[i].Points = share * scale
			sum += share
		}
	}
	if d.o.Scoring == Normalised && sum == d.total && sum > 0 {
		p.score = 100 // not 99.99999
	} else {
		p.score = min(sum*scale, 100)
	}
	return p
}

// addRules makes the rules, and what they read.
func (d *Controller) addRules(rules []Rule) {
	second := d.addWindow(time.Second)
	cpu := d.o.CPU
	var meter *cpuMeter
	for i, r := range rules {
		r.Name = name(r, i)
		r.For = max(r.For, 0)
		r.Score, r.Weight = points(r.Score), points(r.Weight)
		d.total += Normalised.share(&r)
		added := &rule{Rule: r}
		switch {
		case r.Value != nil:
			added.read = func(time.Duration) (float64, bool) { return r.Value() }
		case r.signal == byLatency:
			added.read = d.latency(second, d.addWindow(max(r.For, time.Second)))
		case r.signal == byErrors:
			added.read = d.errorRate(d.addWindow(r.window))
		case r.signal == byCPU && cpu != nil:
			added.read = func(time.Duration) (float64, bool) { return cpu() }
		case r.signal == byCPU:
			if meter == nil {
				meter = newCPUMeter(os.DirFS("/"))
			}
			added.read = meter.read
		case r.signal == byInFlight:
			added.read = func(time.Duration) (float64, bool) { return float64(d.inFlight.Load()), true }
		default:
			added.read = func(time.Duration) (float64, bool) { return 0, false }
		}
		d.rules = append(d.rules, added)
	}
}

func (d *Controller) addWindow(span time.Duration) *window {
	w := newWindow(span)
	d.windows = append(d.windows, w)
	return w
}

// latency is the mean over the last second, in seconds, if there were enough requests in all.
func (d *Controller) latency(second, all *window) func(time.Duration) (float64, bool) {
	return func(now time.Duration) (float64, bool) {
		s := second.sum(now)
		if s.timed == 0 || all.sum(now).timed < uint64(d.o.MinRequests) {
			return 0, false
		}
		return time.Duration(s.nanos / s.timed).Seconds(), true
	}
}

func (d *Controller) errorRate(w *window) func(time.Duration) (float64, bool) {
	return func(now time.Duration) (float64, bool) {
		s := w.sum(now)
		if s.requests < uint64(d.o.MinRequests) {
			return 0, false
		}
		return float64(s.failed) / float64(s.requests), true
	}
}

// points is p, or 0 if p cannot be points.
func points(p float64) float64 {
	if p > 0 && !math.IsInf(p, 0) {
		return p
	}
	return 0
}
