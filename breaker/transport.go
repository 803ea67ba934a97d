package breaker

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Transport guards an outbound http.RoundTripper; a nil next is http.DefaultTransport. 5xx and errors
// fail, a request whose own context was cancelled and 429 are Neutral, the rest succeed. Options.Timeout
// covers the body; it ends at the body's Close. A call ends with its body, by its end, an error or
// Close, so a body that breaks off fails too; but SlowCall looks at the time until the headers. Nobody may
// leave a body open: it would count as a call in flight. An answer that is a stream, text/event-stream or 101
// Switching Protocols, is a Success at once; the body of the latter stays an io.Writer.
//
// A refusal is the error of [Breaker.Allow] and sends nothing.
func Transport(b *Breaker, next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	return &transport{b: b, next: next}
}

const eventStream = "text/event-stream"

type transport struct {
	b    *Breaker
	next http.RoundTripper
}

// CloseIdleConnections makes [http.Client.CloseIdleConnections] reach the guarded transport.
func (t *transport) CloseIdleConnections() {
	if next, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		next.CloseIdleConnections()
	}
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	permit, err := t.b.Allow()
	if err != nil {
		if req.Body != nil {
			req.Body.Close() // a RoundTripper must, also on errors
		}
		return nil, err
	}
	c := &exchange{b: t.b, permit: permit, ctx: req.Context(), inner: req.Context(), cancel: func() {}}
	if d := t.b.o.Timeout; d > 0 {
		c.inner, c.cancel = context.WithTimeoutCause(c.ctx, d, errTimeout)
		req = req.WithContext(c.inner)
	}
	returned := false
	defer func() {
		if !returned { // a panic or Goexit, passed on, or an answer that is none
			c.end(Failure)
			c.cancel()
		}
	}()
	res, err := t.next.RoundTrip(req)
	if err != nil {
		c.end(outcomeOf(c.ctx, c.inner, err))
		c.cancel()
	} else {
		c.guard(res)
	}
	returned = true
	return res, err
}

// An exchange is one request on its way, until its body ends.
type exchange struct {
	b          *Breaker
	permit     Permit
	ctx, inner context.Context // the request's own, and the one with the Timeout
	cancel     context.CancelFunc
	answered   bool
	took       time.Duration // until the headers
	once       sync.Once
}

// guard decides by the headers of res what can be, and leaves the rest to its body.
func (c *exchange) guard(res *http.Response) {
	c.answered = true
	if c.b.timed {
		c.took = time.Duration(now() - c.permit.start)
	}
	writer, writes := res.Body.(io.Writer)
	switch {
	case res.StatusCode >= http.StatusInternalServerError:
		c.end(Failure)
	case res.StatusCode == http.StatusTooManyRequests:
		c.end(Neutral)
	case res.StatusCode == http.StatusSwitchingProtocols,
		strings.HasPrefix(res.Header.Get("Content-Type"), eventStream):
		c.end(Success)
	}
	switch {
	case res.Body == nil || res.Body == http.NoBody:
		c.end(Success)
		c.cancel()
	case writes:
		res.Body = &upgradedBody{body{res.Body, c}, writer}
	default:
		res.Body = &body{res.Body, c}
	}
}

// end reports the first outcome that it is told.
func (c *exchange) end(o Outcome) {
	c.once.Do(func() {
		t := now()
		took := c.took
		if !c.answered {
			took = time.Duration(t - c.permit.start)
		}
		c.b.done(c.permit, o, t, took)
	})
}

// A body ends its call.
type body struct {
	io.ReadCloser
	call *exchange
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		if err == io.EOF {
			b.call.end(Success)
		} else {
			b.call.end(outcomeOf(b.call.ctx, b.call.inner, err))
		}
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.call.end(b.closing())
	b.call.cancel()
	return err
}

// closing is the outcome of a call whose caller did not read to the end.
func (b *body) closing() Outcome {
	if timedOut(b.call.ctx, b.call.inner) {
		return Timeout
	}
	return Success
}

// An upgradedBody is that of 101 Switching Protocols.
type upgradedBody struct {
	body
	io.Writer
}
