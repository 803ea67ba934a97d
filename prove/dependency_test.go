package prove

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

// guards are what stands between a service and the dependency that hangs.
var guards = []struct {
	name    string
	breaker bool
	atOnce  int
	nginx   bool
}{
	{"the fallback alone", false, 0, false},
	{"Highball: a breaker of 2 s too", true, 0, false},
	{"Highball: the same, 32 calls at once", true, 32, false},
	{"nginx, tuned, before the dependency", false, 0, true},
}

func TestADependencyHangs(t *testing.T) {
	for _, p := range guards {
		if !*full && (!p.breaker || p.atOnce > 0) {
			continue
		}
		for _, name := range names(p.name, !p.breaker) {
			t.Run(name, func(t *testing.T) {
				ledger := filepath.Join(t.TempDir(), "ledger")
				dependency := start(t, config{Name: "dependency", Work: 5 * time.Millisecond, Ledger: ledger})
				at := dependency.Addr
				if p.nginx {
					at = rig.Nginx(t, nginxTuned([3]string{at, at, at})).Addr
				}
				service := start(t, config{Name: "a", Ledger: ledger, Dependency: "http://" + at + "/work", Breaker: p.breaker, AtOnce: p.atOnce})
				l := load{
					base: "http://" + service.Addr, rate: scale(300, 50), during: scale(15*time.Second, 9*time.Second), timeout: 5 * time.Second, next: gets("/dependency"),
					events: []event{{faultAt, dependency.Hang}, {scale(3*faultAt, 2*faultAt), dependency.Resume}},
				}
				answers(t, l.base+"/dependency")
				records := l.run(t)
				res := summarise("dependency", p.name, l, faultAt, records)
				res.More = map[string]float64{"fast": fast(records)}
				res.add(t)
				// What is slow is what waits for the dependency until the circuit opens, and a probe a second.
				if p.breaker && (res.Failed > 0 || res.More["fast"] < 50) {
					t.Errorf("%d failed, %.1f %% were fast", res.Failed, res.More["fast"])
				}
			})
		}
	}
}

// fast is the share, in per cent, that was answered within a quarter of a second.
func fast(records []record) float64 {
	n := 0
	for i := range records {
		if ok(&records[i]) && records[i].took() < 250*time.Millisecond {
			n++
		}
	}
	return 100 * float64(n) / float64(len(records))
}
