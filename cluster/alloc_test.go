package cluster

import (
	"testing"
	"time"
)

func TestWhatRequestsCallAllocatesNothing(t *testing.T) {
	o := withDefaults(Options{Interval: time.Hour})
	c := newHub().instance(t, "a", o)
	c.Report("x", 1, 1)
	total := 0
	n := testing.AllocsPerRun(1000, func() {
		c.Report("x", 1, 1)
		got, _, _ := c.Cluster("x")
		total += got + int(c.Admission())
	})
	if n != 0 || total < 1000 {
		t.Errorf("%v allocations a request, %d", n, total)
	}
}

func TestAllocationsOfAnInterval(t *testing.T) {
	l := newLoop(&Cluster{o: withDefaults(Options{}), pending: counts{}})
	report := func() {
		l.Report("x", 1, 1)
		l.Report("y", 1, 1)
		clear(l.take())
	}
	report()
	report()
	if n := testing.AllocsPerRun(1000, report); n != 0 {
		t.Errorf("%v allocations for the first reports of an interval", n)
	}
}
