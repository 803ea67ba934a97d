package breaker

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// peers is a cluster of which the test says what the others see.
type peers struct {
	mu            sync.Mutex
	reports       [][2]int
	total, errors int
}

func (p *peers) Report(_ string, total, errors int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reports = append(p.reports, [2]int{total, errors})
}

func (p *peers) Cluster(string) (total, errors, instances int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total, p.errors, 3
}

func (p *peers) see(total, errors int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total, p.errors = total, errors
}

func TestPeersAreToldAtMostOnceABucketAndMissNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(peers)
		b := New("x", Options{Peers: p, RequestVolumeThreshold: 1000})
		for range 10 {
			calls(b, 50, Success)
			calls(b, 5, Failure)
			calls(b, 9, Neutral)
			time.Sleep(time.Second)
		}
		call(b, Neutral)
		var total, errs int
		for _, r := range p.reports {
			total, errs = total+r[0], errs+r[1]
		}
		if len(p.reports) != 11 || total != 550 || errs != 50 {
			t.Errorf("%d reports of %d calls and %d errors, want 11 of 550 and 50", len(p.reports), total, errs)
		}
	})
}

func TestAnOpenCircuitStillTellsItsPeersWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(peers)
		b := opened(Options{Peers: p})
		time.Sleep(time.Second)
		call(b, Success)
		wantState(t, b, Open)
		if len(p.reports) != 2 || p.reports[0][1]+p.reports[1][1] != 20 {
			t.Errorf("reports = %v, want all 20 errors in two", p.reports)
		}
	})
}

func TestTheClusterOpensACircuitByTheBreakersOwnThresholds(t *testing.T) {
	for _, tt := range []struct {
		name          string
		total, errors int
		want          State
	}{
		{"below the volume", 19, 19, Closed},
		{"below the percentage", 200, 99, Closed},
		{"over both", 200, 100, Open},
		{"no quorum", 200, 0, Closed},
		{"nothing", 0, 0, Closed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := new(peers)
				b := New("x", Options{Peers: p})
				p.see(tt.total, tt.errors)
				call(b, Success)
				wantState(t, b, tt.want)
				if s := b.Snapshot(); tt.want == Open && s.Reason != "cluster" {
					t.Errorf("Reason = %q, want cluster", s.Reason)
				}
			})
		})
	}
}

func TestTheClustersOldErrorsDoNotReopenACircuitThatHasClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(peers)
		b := New("x", Options{Peers: p})
		p.see(100, 100)
		call(b, Success)
		wantState(t, b, Open)
		time.Sleep(5*time.Second + 1)
		call(b, Success)
		for range 9 {
			time.Sleep(time.Second)
			call(b, Success)
			wantState(t, b, Closed)
		}
		time.Sleep(time.Second)
		call(b, Success) // a window later they would be new errors
		wantState(t, b, Open)
	})
}
