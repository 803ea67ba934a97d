package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Retry says when a call is tried again; its zero value is the default policy. Tried again on another
// instance: any request of which no byte was sent; after an error, a PerTry timeout or 502, 503, 504 also
// what may be repeated (GET, HEAD, OPTIONS, TRACE, PUT, DELETE, or an Idempotency-Key; a body needs
// GetBody). When the tries are used up the last response is returned as it is. An instance that has been
// tried is tried again only when no other is left.
type Retry struct {
	// Attempts is how many tries a call has, the first included. Zero: 3. 1 or negative: no retries.
	Attempts int
	// PerTry bounds one try of a request that may be repeated, until the headers of its answer. Zero or
	// less: only the caller's deadline does.
	PerTry time.Duration
	// Backoff is the first wait; it doubles with each try, up to MaxBackoff, and the wait is drawn from
	// between nothing and that (full jitter). The first retry does not wait while there is an instance not
	// tried yet. Zero: 25 ms, 250 ms.
	Backoff, MaxBackoff time.Duration
	// Budget is how many retries there may be for each call, over the last 10 s. Zero: 0.2. Negative: none.
	// While every instance is ejected nothing is drawn from it: a retry would hardly save the call.
	Budget float64
	// MinPerSec retries a second are free on top of Budget, and may be saved up for 10 s, as they are at
	// the start. Zero: 10. Negative: none.
	MinPerSec float64
	// Hedge, if positive, starts a second try on another instance when the first has no headers after so
	// long, for requests that may be repeated, inside the budget. The first answer is taken. Do does not
	// hedge. Set it above the 99th percentile of a healthy instance: an instance that loses counts as
	// failed. A 409 with Retry-After to a request with an Idempotency-Key, whose other try has the key, is no answer.
	Hedge time.Duration
}

func (r Retry) orDefault() Retry {
	r.Attempts = max(cmp.Or(r.Attempts, 3), 1)
	r.Backoff = cmp.Or(max(r.Backoff, 0), 25*time.Millisecond)
	r.MaxBackoff = max(cmp.Or(max(r.MaxBackoff, 0), 250*time.Millisecond), r.Backoff)
	r.Budget = max(cmp.Or(r.Budget, 0.2), 0)
	r.MinPerSec = max(cmp.Or(r.MinPerSec, 10), 0)
	return r
}

// backoff is the wait before a call's nth retry that has to wait, from 0.
func (r Retry) backoff(n int) time.Duration {
	most := r.Backoff << min(n, 20)
	if most <= 0 || most > r.MaxBackoff {
		most = r.MaxBackoff
	}
	return rand.N(most + 1)
}

// A budget pays for the retries of one service, after Finagle's RetryBudget: calls pay in a share each,
// which is good for 10 s, and some retries a second are free. It is asked only when a call has failed.
type budget struct {
	perCall, perSec float64

	mu       sync.Mutex // guards the fields below
	paid     float64    // by calls
	free     float64    // of the free ones
	last     time.Time
	lastCall uint64
}

const budgetWindow = 10 * time.Second

func (b *budget) open(r Retry, now time.Time, calls uint64) {
	b.perCall, b.perSec = r.Budget, r.MinPerSec
	b.free = b.perSec * budgetWindow.Seconds()
	b.last, b.lastCall = now, calls
}

// take pays for one retry. calls counts the service's calls so far; spare forbids what they have paid in.
func (b *budget) take(now time.Time, calls uint64, spare bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now, calls)
	switch {
	case b.paid >= 1 && !spare:
		b.paid--
	case b.free >= 1:
		b.free--
	default:
		return false
	}
	return true
}

// left is how many retries take would pay for now.
func (b *budget) left(now time.Time, calls uint64) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now, calls)
	return b.paid + b.free
}

// fill brings both accounts up to now. What calls paid in runs out evenly over the window.
func (b *budget) fill(now time.Time, calls uint64) {
	fresh := b.perCall * float64(calls-b.lastCall)
	if windows := now.Sub(b.last).Seconds() / budgetWindow.Seconds(); windows < 1 {
		b.paid = b.paid*(1-windows) + fresh
		b.free = min(b.free+b.perSec*windows*budgetWindow.Seconds(), b.perSec*budgetWindow.Seconds())
	} else {
		b.paid = fresh / windows
		b.free = b.perSec * budgetWindow.Seconds()
	}
	b.last, b.lastCall = now, calls
}

// tries is one call's way through the instances.
type tries struct {
	s      *service
	ctx    context.Context
	nodes  []*Node // tried, or being tried
	failed []failure
	waited int
}

// newTries begins with the call's first instance.
func newTries(ctx context.Context, first Selection) *tries {
	return &tries{s: first.node.service, ctx: ctx, nodes: []*Node{first.node}}
}

// A failure of a try: err is why, be it an error or an answer.
type failure struct {
	node *Node
	err  error
}

// fail notes why a try failed.
func (t *tries) fail(sel Selection, err error) {
	t.failed = append(t.failed, failure{sel.node, err})
}

// next picks the instance for another try after the last one failed, and waits when it must. It is false
// when the attempts or the budget are used up, no instance is left, or the caller's time is over.
func (t *tries) next() (Selection, bool) {
	sel, fresh, ok := t.again()
	if !ok || !t.pay() {
		return Selection{}, false
	}
	if !fresh || len(t.nodes) > 1 {
		wait := t.s.b.o.Retry.backoff(t.waited)
		t.waited++
		if !sleep(t.ctx, wait) {
			return Selection{}, false
		}
		if sel, _, ok = t.again(); !ok { // much may have changed meanwhile
			return Selection{}, false
		}
	}
	last := t.failed[len(t.failed)-1]
	return t.begin(sel, Retried, last.node, last.err), true
}

// hedge picks the instance for a try beside the one on slow, if there is an untried one.
func (t *tries) hedge(slow *Node) (Selection, bool) {
	sel, fresh, ok := t.again()
	if !ok || !fresh || !t.pay() {
		return Selection{}, false
	}
	return t.begin(sel, Hedged, slow, nil), true
}

// pay takes the price of a further try from the budget. With every instance ejected, only the free
// retries are left: others would be load and no help.
func (t *tries) pay() bool {
	set := t.s.set.Load()
	none := set.panic && !slices.ContainsFunc(set.nodes, func(n *Node) bool { return !n.ejected() })
	return t.s.budget.take(time.Now(), t.s.seq.Load(), none)
}

// begin takes the call to the node of sel, from another one.
func (t *tries) begin(sel Selection, kind string, from *Node, why error) Selection {
	t.s.b.o.OnEvent(Event{Kind: kind, Service: t.s.name, Instance: from.Instance(), Err: why})
	if t.s.timed.Load() {
		sel.start = t.s.b.now()
	}
	sel.node.calls.Add(1)
	t.nodes = append(t.nodes, sel.node)
	return sel
}

// again chooses for a further try: the key's next instance where there is a key, else the less loaded of
// two drawn from those not tried. To go on in turn would give all that a dead instance refuses to its
// neighbour. fresh is false when all have been tried, ok when there may be no further try.
func (t *tries) again() (sel Selection, fresh, ok bool) {
	set := t.s.set.Load()
	if len(t.nodes) >= t.s.b.o.Retry.Attempts || t.ctx.Err() != nil || set.pick == nil {
		return Selection{}, false, false
	}
	sel.trial = set.panic
	left := slices.DeleteFunc(slices.Clone(set.nodes), t.tried)
	if len(left) == 0 {
		sel.node = t.lessLoaded(set.nodes)
		return sel, false, true
	}
	if key, keyed := t.ctx.Value(affinity{}).(string); keyed {
		n := set.pick(Call{Key: key, Seq: t.s.seq.Load(), now: t.s.b.now(), tried: t.nodes})
		if n != nil && !t.tried(n) {
			sel.node = n
			return sel, true, true
		}
	}
	sel.node = t.lessLoaded(left)
	return sel, true, true
}

func (t *tries) lessLoaded(nodes []*Node) *Node {
	a, b := nodes[rand.IntN(len(nodes))], nodes[rand.IntN(len(nodes))]
	at := stamp(t.s.b.now())
	if t.s.cost(b, at)/b.Weight() < t.s.cost(a, at)/a.Weight() {
		return b
	}
	return a
}

func (t *tries) tried(n *Node) bool { return slices.Contains(t.nodes, n) }

// error names every try and its cause, and the end of the caller's time if it came between two tries.
func (t *tries) error() error {
	e := &callError{service: t.s.name, tries: slices.Clone(t.failed)}
	if err := t.ctx.Err(); err != nil && !errors.Is(e.last(), err) {
		e.ended = err
	}
	return e
}

type callError struct {
	service string
	tries   []failure
	ended   error
}

func (e *callError) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "balancer: %s failed", e.service)
	for i, t := range e.tries {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&text, "%s%s: %v", sep, t.node.addr(), t.err)
	}
	if e.ended != nil {
		fmt.Fprintf(&text, "; then %v", e.ended)
	}
	return text.String()
}

func (e *callError) last() error { return e.tries[len(e.tries)-1].err }

// Unwrap lets errors.Is and errors.As look at the causes, the last one first.
func (e *callError) Unwrap() []error {
	var errs []error
	if e.ended != nil {
		errs = append(errs, e.ended)
	}
	for _, t := range slices.Backward(e.tries) {
		errs = append(errs, t.err)
	}
	return errs
}

// Timeout reports whether the last try timed out, as net.Error has it.
func (e *callError) Timeout() bool {
	return errors.Is(e.ended, context.DeadlineExceeded) || isTimeout(e.last())
}

// Temporary is there for net.Error's sake.
func (e *callError) Temporary() bool { return e.Timeout() }

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}
