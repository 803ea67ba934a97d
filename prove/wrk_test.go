package prove

import (
	"testing"
	"time"
)

// TestAClosedLoopDoesNotSeeAHang is the pressure test as wrk does it: what waits for a hung instance counts once.
func TestAClosedLoopDoesNotSeeAHang(t *testing.T) {
	if !*full {
		t.Skip("only a comparison of methods: it is part of make prove")
	}
	for _, f := range faults[:2] { // killed, hung
		for _, i := range []int{0, 2, 3} {
			t.Run(f.name+"/"+fronts[i].name, func(t *testing.T) {
				all, _ := three(t, config{Work: 20 * time.Millisecond})
				addr := fronts[i].start(t, [3]string{all[0].Addr, all[1].Addr, all[2].Addr})
				l := closedLoop{load{base: "http://" + addr, during: 12 * time.Second, timeout: time.Minute, next: gets("/work")}, 40}
				answers(t, l.base+"/work")
				l.events = f.inject(t, all)
				if f.name == "hang" {
					l.events = append(l.events, event{l.during, all[2].Resume})
				}
				records := l.run(t)
				res := summarise("wrk "+f.name, fronts[i].name, l.load, faultAt, records)
				res.add(t)
			})
		}
	}
}
