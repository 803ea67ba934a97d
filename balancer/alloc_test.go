//go:build !race

package balancer

import (
	"context"
	"net/http"
	"testing"
	"unsafe"
)

func TestSelectAndDoneAllocateNothing(t *testing.T) {
	for name, strategy := range strategies() {
		b := open(t, fleet(10), Options{Strategy: strategy})
		ctx := WithKey(context.Background(), "203.0.113.77")
		if got := testing.AllocsPerRun(1000, func() {
			sel, _ := b.Select(ctx, "orders")
			sel.Done(nil)
		}); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}

func TestRoundTripAllocatesThreeTimesAtMost(t *testing.T) {
	b := open(t, fleet(10), Options{Transport: roundTripFunc(nop)})
	allocations := func(rt http.RoundTripper) float64 {
		req := request(context.Background(), http.MethodGet, nil)
		return testing.AllocsPerRun(1000, func() { _, _ = roundTrip(rt, req) })
	}
	if bare, got := allocations(roundTripFunc(nop)), allocations(b); got > bare+3 {
		t.Errorf("%v allocations, %v without the balancer", got, bare)
	}
}

func TestAnAttemptIsWithinTheCheapAllocations(t *testing.T) {
	if size := unsafe.Sizeof(attempt{}); size > 512 {
		t.Errorf("an attempt has %d bytes, want 512 at most", size)
	}
}
