package balancer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

// TestNothingIsLostUnderChurn has 64 goroutines call a service whose instances come, go, drain, fail and are
// ejected meanwhile: each call ends on the instance it began on, and none is in flight in the end.
func TestNothingIsLostUnderChurn(t *testing.T) {
	for name, strategy := range strategies() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const callers, calls, instances = 64, 100, 12
				p := newPeers()
				var ran atomic.Int64
				for i := range instances {
					p.set(fmt.Sprintf("i%d:1", i), func(r *http.Request) (*http.Response, error) {
						ran.Add(1)
						if !sleep(r.Context(), rand.N(5*time.Millisecond)) {
							return nil, r.Context().Err()
						}
						if rand.IntN(4) == 0 {
							return nil, errReset
						}
						return answer(http.StatusOK), nil
					})
				}
				m := discovery.NewMemory()
				m.Set("orders", someOf(instances)...)
				b := open(t, m, Options{
					Strategy: strategy, Transport: p, SlowStart: 20 * time.Millisecond, Zone: "z0",
					Retry:    Retry{Budget: 1, Hedge: 4 * time.Millisecond, PerTry: 20 * time.Millisecond, Backoff: 1},
					Ejection: Ejection{Base: 5 * time.Millisecond, Max: 20 * time.Millisecond, ProbePath: "/health"},
				})
				done := make(chan struct{})
				var churn, load sync.WaitGroup
				churn.Go(func() {
					for {
						select {
						case <-done:
							return
						case <-time.After(3 * time.Millisecond):
							m.Set("orders", someOf(instances)...)
						}
					}
				})
				for range callers {
					load.Go(func() {
						ctx := WithKey(t.Context(), fmt.Sprint(rand.IntN(10_000)))
						for range calls {
							ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
							_, err := roundTrip(b, request(ctx, http.MethodGet, nil))
							cancel()
							if err != nil && !errors.Is(err, errReset) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errHedge) {
								t.Errorf("call: %v", err)
								return
							}
							_ = b.Status("orders")
						}
					})
				}
				load.Wait()
				close(done)
				churn.Wait()
				synctest.Wait()
				for _, s := range b.Status("orders") {
					if s.InFlight != 0 {
						t.Errorf("%s has %d calls in flight in the end", s.Addr, s.InFlight)
					}
				}
				if ran.Load() < callers*calls {
					t.Errorf("only %d tries of %d calls", ran.Load(), callers*calls)
				}
			})
		})
	}
}

// someOf is at least two of n instances, with any weight.
func someOf(n int) (in []discovery.Instance) {
	for i := range n {
		if i < 2 || rand.IntN(2) == 0 {
			addr := fmt.Sprintf("i%d:1", i)
			weight := rand.IntN(6) - 1 // -1 drains
			if i < 2 {
				weight = 1
			}
			in = append(in, discovery.Instance{ID: addr, Addr: addr, Weight: weight, Zone: fmt.Sprintf("z%d", i%3)})
		}
	}
	return in
}
