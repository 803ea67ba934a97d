package breaker

import "time"

// Permit is the right to make one call. It is a value: pass it on as you like, but call Done exactly
// once. The zero Permit belongs to no circuit; its Done does nothing.
type Permit struct {
	by    any    // a *Breaker or a Finisher; one more word and a Permit would no longer fit registers
	token uint64 // for a Breaker: generation or probe id, <<2 | the state that admitted the call
	start int64  // when the Breaker is timed
}

// Finisher lets another engine make a Permit without allocating: Done calls Finish with the token. A
// Finisher that also has a method Timeout() time.Duration tells [Permit.Timeout] so.
type Finisher interface {
	Finish(token uint64, o Outcome) bool
}

// PermitOf returns a Permit whose Done calls f.Finish(token, o).
func PermitOf(f Finisher, token uint64) Permit { return Permit{by: f, token: token} }

// Done reports the outcome. It is false when that no longer decides anything: the circuit has changed
// state since Allow, or the probe's lease has run out. A Neutral probe frees its slot; the circuit
// stays half-open.
func (p Permit) Done(o Outcome) bool {
	if b, ok := p.by.(*Breaker); ok {
		t := now()
		return b.done(p, o, t, time.Duration(t-p.start))
	}
	if f, ok := p.by.(Finisher); ok {
		return f.Finish(p.token, o)
	}
	return false
}

// Timeout is the deadline that the circuit gives the call, counted from Allow; 0: none. Do, Run,
// Middleware and Transport set it on the context themselves.
func (p Permit) Timeout() time.Duration {
	if b, ok := p.by.(*Breaker); ok {
		return b.o.Timeout
	}
	if f, ok := p.by.(interface{ Timeout() time.Duration }); ok {
		return f.Timeout()
	}
	return 0
}

// untimed is Done for a call whose duration says nothing, such as a stream.
func (p Permit) untimed(o Outcome) bool {
	if b, ok := p.by.(*Breaker); ok {
		return b.done(p, o, now(), 0)
	}
	return p.Done(o)
}

// begun is untimed for a call that goes on: it is in flight until Done, which decides nothing more.
func (p *Permit) begun(b *Breaker, o Outcome) {
	b.settle(*p, o, now(), 0)
	p.token = settled
}
