package prove

import (
	"encoding/json"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// A result is of one run: a line of docs/results.json.
type result struct {
	Experiment, Front string

	Rate    int     // requests a second; 0: a closed loop
	Seconds float64 // of load
	FaultAt float64 // seconds; 0: none

	Sent, Failed                     int
	FailedGET, FailedPOST, FailedKey int     // of Failed; Key: with an Idempotency-Key
	Refused                          int     // 429 and 503, in Failed too
	Twice, TwiceKey, MissingKey      int     // effects: POSTs run twice, keys run twice, keys answered without
	Failover                         float64 // ms from the fault until the last failing request was due
	Mean, P50, P99, P999, Max        float64 // ms, of what was answered from the fault on
	CalmP99                          float64 // ms, before it

	More     map[string]float64 `json:",omitempty"`
	Timeline []point
}

// A point is a quarter of a second by when requests were due.
type point struct {
	OK, Failed int
	P99        float64 // ms, of those that were answered
}

const tick = 250 * time.Millisecond

// ok also takes a fallback.
func ok(r *record) bool {
	return r.status == http.StatusOK || r.status == http.StatusNonAuthoritativeInfo
}

func ms(d time.Duration) float64 { return math.Round(float64(d)/1e4) / 100 }

// summarise makes a result of the records; fault is when it happened, 0: never.
func summarise(experiment, front string, l load, fault time.Duration, records []record) result {
	res := result{Experiment: experiment, Front: front, Rate: l.rate, Seconds: l.during.Seconds(), FaultAt: fault.Seconds(), Sent: len(records)}
	var calm, after []time.Duration
	buckets := make([][]time.Duration, int(l.during/tick)+1)
	res.Timeline = make([]point, len(buckets))
	for i := range records {
		r := &records[i]
		b := min(int(r.at/tick), len(buckets)-1)
		if !ok(r) {
			res.Timeline[b].Failed++
			res.fail(r, fault)
			continue
		}
		res.Timeline[b].OK++
		buckets[b] = append(buckets[b], r.took())
		if fault > 0 && r.end < fault {
			calm = append(calm, r.took())
		} else {
			after = append(after, r.took())
		}
	}
	for i, b := range buckets {
		res.Timeline[i].P99 = ms(quantile(b, 0.99))
	}
	res.CalmP99 = ms(quantile(calm, 0.99))
	res.P50, res.P99, res.P999, res.Max = ms(quantile(after, 0.5)), ms(quantile(after, 0.99)), ms(quantile(after, 0.999)), ms(quantile(after, 1))
	sum := time.Duration(0)
	for _, d := range after {
		sum += d
	}
	res.Mean = ms(sum / time.Duration(max(len(after), 1)))
	return res
}

func (res *result) fail(r *record, fault time.Duration) {
	res.Failed++
	switch {
	case r.key != "":
		res.FailedKey++
	case r.method == http.MethodPost:
		res.FailedPOST++
	default:
		res.FailedGET++
	}
	if r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable {
		res.Refused++
	}
	if fault > 0 {
		res.Failover = max(res.Failover, ms(r.at-fault))
	}
}

// quantile sorts d.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[int(q*float64(len(d)-1))]
}

// audit compares the effects with the answers.
func (res *result) audit(tb testing.TB, ledger string, records []record) {
	tb.Helper()
	text, err := os.ReadFile(ledger)
	if err != nil {
		tb.Fatal(err)
	}
	effects := make(map[string]int)
	for line := range strings.Lines(string(text)) {
		method, id, _ := strings.Cut(strings.TrimSpace(line), " ")
		if method == http.MethodPost {
			effects[id]++
		}
	}
	for i := range records {
		r := &records[i]
		n := effects[r.id]
		switch {
		case r.key == "" && n > 1:
			res.Twice++
		case r.key != "" && n > 1:
			res.TwiceKey++
		case r.key != "" && n == 0 && ok(r):
			res.MissingKey++
		}
	}
}

const resultsFile = "../docs/results.json"

// measured are the results of this process, in the order in which they were made.
var measured []result

func (res *result) add(tb testing.TB) {
	tb.Helper()
	measured = append(measured, *res)
	tb.Logf("%s, %s: %.3f %% of %d, lost %d GET %d POST %d keyed, twice %d/%d, missing %d, failover %.0f ms, p50 %.1f p99 %.1f p99.9 %.1f max %.1f ms (calm p99 %.1f) %v",
		res.Experiment, res.Front, res.success(), res.Sent, res.FailedGET, res.FailedPOST, res.FailedKey, res.Twice, res.TwiceKey, res.MissingKey,
		res.Failover, res.P50, res.P99, res.P999, res.Max, res.CalmP99, res.More)
}

func (res *result) success() float64 {
	return 100 * float64(res.Sent-res.Failed) / float64(max(res.Sent, 1))
}

func readResults() (all []result, err error) {
	text, err := os.ReadFile(resultsFile)
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(text, &all)
}

// writeResults puts what was measured into docs/results.json, in the place of what was there of the same experiments.
func writeResults() error {
	all, err := readResults()
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	fresh := make(map[string]bool)
	for _, r := range measured {
		fresh[r.Experiment] = true
	}
	all = slices.DeleteFunc(all, func(r result) bool { return fresh[r.Experiment] })
	all = append(all, measured...)
	var b strings.Builder
	for i, r := range all { // a line each, for diffs
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		b.WriteString(map[bool]string{true: "[", false: ",\n"}[i == 0])
		b.Write(line)
	}
	b.WriteString("]\n")
	return os.WriteFile(resultsFile, []byte(b.String()), 0o644)
}
