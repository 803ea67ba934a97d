package balancer

import (
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"
)

// errHedge ends a try that another one has beaten.
var errHedge = errors.New("a try on another instance was faster")

// hedge is a call that may have several tries at once. Their goroutines end with the tries, and those
// with the call.
type hedge struct {
	t        *tries
	body     replay
	running  []*attempt // in the order of their start
	arrivals chan arrival

	mu   sync.Mutex // guards the field below
	over bool
}

// An arrival is what a try came to.
type arrival struct {
	a    *attempt
	resp *http.Response
	err  error
}

// hedged makes a second try when the first has no headers after Retry.Hedge, and takes the first answer.
func hedged(sel Selection, req *http.Request) (*http.Response, error) {
	s := sel.node.service
	h := &hedge{
		t:        newTries(req.Context(), sel),
		body:     replay{req: req},
		arrivals: make(chan arrival, s.b.o.Retry.Attempts), // so that no sender ever waits
	}
	defer h.end()
	if err := h.launch(sel); err != nil {
		return nil, err
	}
	late := time.NewTimer(s.b.o.Retry.Hedge)
	defer late.Stop()
	for {
		select {
		case <-late.C:
			if sel, ok := h.t.hedge(h.running[0].sel.node); ok {
				_ = h.launch(sel) // the first try still runs
			}
		case got := <-h.arrivals:
			h.running = slices.DeleteFunc(h.running, func(a *attempt) bool { return a == got.a })
			why := got.a.failure(got.resp, got.err)
			if why == nil && len(h.running) > 0 && keyInUse(got.resp) {
				got.a.discard(got.resp) // by the try that still runs; should that fail, this instance is as good as untried
				h.t.nodes = slices.DeleteFunc(h.t.nodes, func(n *Node) bool { return n == got.a.sel.node })
				continue
			}
			if why == nil {
				h.cancelLosers(got)
				return got.resp, got.err
			}
			h.t.fail(got.a.sel, why)
			if len(h.running) > 0 { // its answer may be better
				got.a.discard(got.resp)
				continue
			}
			sel, ok := h.t.next()
			if !ok && got.err != nil {
				return nil, h.t.error()
			}
			if !ok {
				return got.resp, nil
			}
			got.a.discard(got.resp)
			if err := h.launch(sel); err != nil {
				return nil, err
			}
			late.Reset(s.b.o.Retry.Hedge)
		}
	}
}

// keyInUse reports whether an answer says that a request with the same Idempotency-Key is running
// (draft-ietf-httpapi-idempotency-key-header section 2.6), and when to come back.
func keyInUse(resp *http.Response) bool {
	return resp != nil && resp.StatusCode == http.StatusConflict && resp.Header.Get("Retry-After") != "" &&
		resp.Request.Header.Get("Idempotency-Key") != ""
}

// launch starts a try on sel.
func (h *hedge) launch(sel Selection) error {
	stream, err := h.body.next()
	if err != nil {
		sel.done(Neutral, nil)
		h.t.fail(sel, err)
		return h.t.error()
	}
	a := newAttempt(sel, h.body.req, h.t.s.b.o.Retry.PerTry, true)
	h.running = append(h.running, a)
	go func() {
		resp, err := a.roundTrip(stream)
		if !h.deliver(arrival{a, resp, err}) {
			a.discard(resp)
		}
	}()
	return nil
}

// deliver is false when the call is over, and the answer nobody's.
func (h *hedge) deliver(got arrival) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.arrivals <- got
	}
	return !h.over
}

// cancelLosers ends the tries that still run. Those begun before the one that was answered have lost against
// their hedge: a failure of their instance, or hedging would hide a sick one. The others were not needed.
func (h *hedge) cancelLosers(won arrival) {
	for _, a := range h.running {
		if won.err == nil && a.limit.began.Before(won.a.limit.began) {
			a.report(Failure, errHedge)
		} else {
			a.report(Neutral, nil)
		}
		a.limit.cancel(errHedge)
	}
}

// end lets go of answers that came too late.
func (h *hedge) end() {
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	for {
		select {
		case got := <-h.arrivals:
			got.a.discard(got.resp)
		default:
			return
		}
	}
}
