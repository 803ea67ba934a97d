package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// A part of the run, and what is in it.
type part struct {
	name     string
	from, to time.Duration
}

var parts = []part{
	{"all is well", 0, 4 * time.Second},
	{"b killed", 4 * time.Second, 7 * time.Second},
	{"b back", 7 * time.Second, 11 * time.Second},
	{"c hangs", 11 * time.Second, 14 * time.Second},
	{"c back", 14 * time.Second, 17 * time.Second},
	{"all is well again", 17 * time.Second, 19 * time.Second},
}

// report prints the table, and is an error unless what the quickstart promises held.
func report(results []result, story *story) error {
	story.progress("")
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\trequests\tanswered\tfailover\tp50\tp99\tmax\ta\tb\tc\t")
	for _, p := range parts {
		line(w, p, results)
	}
	line(w, part{"in all", 0, time.Hour}, results)
	_ = w.Flush()
	fmt.Println()
	return errors.Join(promises(results, story)...)
}

func line(w *tabwriter.Writer, p part, results []result) {
	in := within(p, results)
	ok, last := 0, time.Duration(-1)
	share := make(map[string]int)
	var latencies []time.Duration
	for _, r := range in {
		latencies = append(latencies, r.latency)
		if r.failed == "" {
			ok++
			share[r.instance]++
		} else {
			last = max(last, r.due-p.from)
		}
	}
	slices.Sort(latencies)
	at := func(q float64) string {
		if len(latencies) == 0 {
			return "-"
		}
		return latencies[int(q*float64(len(latencies)-1))].Round(100 * time.Microsecond).String()
	}
	failover := "-"
	if last >= 0 {
		failover = last.Round(time.Millisecond).String()
	}
	n := max(len(in), 1)
	fmt.Fprintf(w, "%s\t%d\t%.3f %%\t%s\t%s\t%s\t%s\t%d %%\t%d %%\t%d %%\t\n", p.name, len(in), 100*float64(ok)/float64(n),
		failover, at(0.5), at(0.99), at(1), 100*share["a"]/n, 100*share["b"]/n, 100*share["c"]/n)
}

func within(p part, results []result) (in []result) {
	for _, r := range results {
		if r.due >= p.from && r.due < p.to {
			in = append(in, r)
		}
	}
	return in
}

// promises checks what the README says, one error for each that did not hold.
func promises(results []result, story *story) (broken []error) {
	promise := func(held bool, text string) {
		if held {
			fmt.Println("held:  ", text)
		} else {
			fmt.Println("BROKEN:", text)
			broken = append(broken, errors.New("not held: "+text))
		}
	}
	gets, killed, hung, rest := failures(results)
	promise(gets == 0, "every GET was answered")
	promise(killed <= 10, fmt.Sprintf("of the POSTs only those in flight on b were lost when it was killed (%d; no proxy can repeat them)", killed))
	promise(hung <= 10, fmt.Sprintf("of the POSTs only those that c had taken were lost when it hung (%d)", hung))
	promise(rest == 0, "nothing was lost at any other time")
	for _, id := range []string{service + "-b", service + "-c"} {
		left, back := story.left(id)
		promise(left && back, id+" was ejected, and is back")
	}
	share := make(map[string]float64)
	last := within(parts[len(parts)-1], results)
	for _, r := range last {
		share[r.instance] += 1 / float64(len(last))
	}
	promise(min(share["a"], share["b"], share["c"]) > 0.2, "in the end each of the three has its share again")
	return broken
}

// failures counts GETs, and POSTs by when they were due.
func failures(results []result) (gets, killed, hung, rest int) {
	for _, r := range results {
		switch {
		case r.failed == "":
		case r.method == http.MethodGet:
			gets++
		case parts[1].near(r.due):
			killed++
		case parts[3].near(r.due):
			hung++
		default:
			rest++
		}
	}
	return gets, killed, hung, rest
}

// near is within the part, or just before it: requests in flight at its start.
func (p part) near(due time.Duration) bool {
	return due >= p.from-100*time.Millisecond && due < p.to
}
