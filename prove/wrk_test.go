package prove

import (
	"testing"
	"time"
)

// TestAClosedLoopDoesNotSeeAHang is the pressure test as wrk does it: what waits for a hung instance counts once.
func TestAClosedLoopDoesNotSeeAHang(t *testing.T) {
	for _, f := range faults[:2] { // killed, hung
		for _, i := range []int{0, 2, 3} {
			if !*full && (f.name != "hang" || i != 2) { // the claim; the rest is for comparison
				continue
			}
			t.Run(f.name+"/"+fronts[i].name, func(t *testing.T) {
				all, _ := three(t, config{Work: 20 * time.Millisecond})
				addr := fronts[i].start(t, [3]string{all[0].Addr, all[1].Addr, all[2].Addr})
				l := closedLoop{load{base: "http://" + addr, during: scale(12*time.Second, 6*time.Second), timeout: time.Minute, next: gets("/work")}, 40}
				answers(t, l.base+"/work")
				l.events = f.inject(t, all)
				if f.name == "hang" {
					l.events = append(l.events, event{l.during, all[2].Resume})
				}
				records := l.run(t)
				res := summarise("wrk "+f.name, fronts[i].name, l.load, faultAt, records)
				res.add(t)
				if f.name == "hang" && (res.Failed > 0 || i == 2 && res.Max < 2000) {
					t.Errorf("%d failed, the slowest took %.0f ms: it should not fail, and wait for the hung instance", res.Failed, res.Max)
				}
			})
		}
	}
}
