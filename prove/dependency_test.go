package prove

import (
	"net/http"
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
				if quick := quickly(records); p.breaker && (res.Failed > 0 || quick == 0) {
					t.Errorf("%d failed, %d fallbacks did not wait for the dependency", res.Failed, quick)
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

// quickly is how many fallbacks came before the second was over that the dependency has to answer.
func quickly(records []record) (n int) {
	for i := range records {
		if r := &records[i]; r.status == http.StatusNonAuthoritativeInfo && r.took() < time.Second {
			n++
		}
	}
	return n
}
