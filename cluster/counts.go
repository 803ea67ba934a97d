package cluster

import (
	"maps"
	"time"
)

const (
	maxCircuits = 4096         // that are told apart
	maxName     = 256          // bytes
	others      = "\x00others" // where the rest counts
	maxBuckets  = 100          // of a window
)

// A count is of the requests of one circuit. errors <= total.
type count struct{ total, errors int64 }

// counts is by circuit, and has at most maxCircuits of them and the others.
type counts map[string]count

func (c counts) add(circuit string, n count) {
	old, known := c[circuit]
	if !known && (len(circuit) > maxName || len(c) >= maxCircuits) {
		circuit = others
		old = c[others]
	}
	c[circuit] = count{total: old.total + n.total, errors: old.errors + n.errors}
}

// A window holds what this instance has counted.
type window struct {
	span    time.Duration
	buckets []bucket // the oldest first
}

// A bucket is what was counted in about an interval.
type bucket struct {
	at     time.Time // when it was begun
	counts counts
}

// add counts what was reported up to now, and drops what is too old. When there are many intervals in a
// window several of them share a bucket.
func (w *window) add(fresh counts, now time.Time) {
	old := 0
	for old < len(w.buckets) && now.Sub(w.buckets[old].at) >= w.span {
		old++
	}
	clear(w.buckets[:old])
	w.buckets = w.buckets[old:]
	if len(fresh) == 0 {
		return
	}
	if n := len(w.buckets); n > 0 && now.Sub(w.buckets[n-1].at) < w.span/maxBuckets {
		for circuit, n := range fresh {
			w.buckets[len(w.buckets)-1].counts.add(circuit, n)
		}
		return
	}
	w.buckets = append(w.buckets, bucket{at: now, counts: maps.Clone(fresh)})
}

func (w *window) sums() counts {
	all := counts{}
	for _, b := range w.buckets {
		for circuit, n := range b.counts {
			all.add(circuit, n)
		}
	}
	return all
}

// A snapshot is what is known of all instances. It does not change.
type snapshot struct {
	circuits  map[string]sum
	instances int
}

// A sum is of all live instances.
type sum struct {
	count
	seeing int // instances with errors
}

// alone is the snapshot of an instance that knows of no other.
func (c counts) alone() *snapshot {
	s := &snapshot{circuits: make(map[string]sum, len(c)), instances: 1}
	for circuit, n := range c {
		s.circuits[circuit] = sum{n, int(min(n.errors, 1))}
	}
	return s
}

// all sums over the circuits.
func (s *snapshot) all() (all count) {
	for _, n := range s.circuits {
		all.total, all.errors = all.total+n.total, all.errors+n.errors
	}
	return all
}
