package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// errPerTry is the cause of a try's end by Retry.PerTry.
var errPerTry error = perTryError{}

type perTryError struct{}

func (perTryError) Error() string   { return "no answer in the time for one try" }
func (perTryError) Timeout() bool   { return true }
func (perTryError) Is(e error) bool { return e == context.DeadlineExceeded }

// RoundTrip sends http://service/path to an instance of service, by the policy of [Retry]. req is not
// changed; Host and the TLS server name stay the service's; the response's Request is req; and the call
// is in flight until its body is read to the end or closed. A host that the source does not know is
// ErrNoInstances, never a call to the internet. The error names every try and its cause.
func (b *Balancer) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || req.URL.Host == "" {
		closeBody(req)
		return nil, errors.New("balancer: the request has no host; the URL's host is the name of a service")
	}
	sel, err := b.Select(req.Context(), req.URL.Host)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	s := sel.node.service
	if https := req.URL.Scheme == "https"; s.https.Load() != https {
		s.https.Store(https)
	}
	repeatable := mayRepeat(req)
	if repeatable && b.o.Retry.Hedge > 0 && req.Header["Upgrade"] == nil {
		return hedged(sel, req)
	}
	return retried(sel, req, repeatable)
}

// retried makes one try after the other.
func retried(sel Selection, req *http.Request, repeatable bool) (*http.Response, error) {
	s := sel.node.service
	var t *tries // made when the first try has failed
	var perTry time.Duration
	if repeatable {
		perTry = s.b.o.Retry.PerTry
	}
	body := replay{req: req}
	for {
		stream, err := body.next()
		if err != nil { // of GetBody, for a retry
			sel.done(Neutral, nil)
			t.fail(sel, err)
			return nil, t.error()
		}
		a := newAttempt(sel, req, perTry, perTry > 0)
		resp, err := a.roundTrip(stream)
		why := a.failure(resp, err)
		if why == nil {
			body.close()
			return resp, err
		}
		if t == nil {
			t = newTries(req.Context(), sel)
		}
		t.fail(sel, why)
		if repeatable || err != nil && unsent(err) && body.untouched() {
			if again, ok := t.next(); ok {
				a.discard(resp)
				sel = again
				continue
			}
		}
		body.close()
		if err != nil {
			return nil, t.error()
		}
		return resp, nil
	}
}

// An attempt is one try of a request: all that it needs in one allocation, of 512 bytes at most. One of more
// would cost Go's allocator twice the time.
type attempt struct {
	sel    Selection
	caller *http.Request
	req    http.Request
	url    url.URL
	limit  *limit        // nil: the try has no end of its own
	body   io.ReadCloser // the answer's

	done    atomic.Uint32 // what has been done, of which each is done once
	outcome int8
}

// What an attempt does once.
const (
	reported = 1 << iota // to the instance, by whoever was first: the try or the hedge that beat it
	ended                // the call is off its instance
)

func (a *attempt) first(what uint32) bool { return a.done.Or(what)&what == 0 }

func (a *attempt) report(o Outcome, cause error) {
	if a.first(reported) {
		a.sel.report(o, cause)
	}
}

// A limit is the end of a try before the end of its call.
type limit struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer // nil: only a hedge ends it
	began  time.Time
}

// newAttempt makes a try that ends after perTry without headers, if that is positive. With own it can be
// cancelled by itself.
func newAttempt(sel Selection, req *http.Request, perTry time.Duration, own bool) *attempt {
	a := &attempt{sel: sel, caller: req}
	if !own {
		a.req = *req
		return a
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	a.req, a.limit = *req.WithContext(ctx), &limit{cancel: cancel, began: time.Now()}
	if perTry > 0 {
		a.limit.timer = time.AfterFunc(perTry, func() { cancel(errPerTry) })
	}
	return a
}

// inTime is false when the try's time was over before its answer came.
func (l *limit) inTime() bool { return l == nil || l.timer == nil || l.timer.Stop() }

// roundTrip sends the request to the attempt's instance. The instance has heard of a failure when it
// returns; of an answer the call ends with its body.
func (a *attempt) roundTrip(body io.ReadCloser) (*http.Response, error) {
	a.url = *a.caller.URL
	a.url.Host = a.sel.node.addr()
	a.req.URL, a.req.Body = &a.url, body
	if a.req.Host == "" {
		a.req.Host = a.caller.URL.Host
	}
	returned := false
	defer func() {
		if !returned { // the transport panicked
			a.finish()
		}
	}()
	resp, err := a.sel.node.carrier.RoundTrip(&a.req)
	returned = true
	if !a.limit.inTime() && err == nil {
		_ = resp.Body.Close() // the answer came just when its time was over
		resp, err = nil, errPerTry
	}
	if err != nil {
		err = a.cause(err)
	}
	outcome := a.classify(resp, err)
	a.outcome = int8(outcome)
	if err != nil {
		a.report(outcome, err)
		a.finish()
		return nil, err
	}
	a.report(outcome, statusError(resp, outcome))
	resp.Request = a.caller
	a.track(resp)
	return resp, nil
}

// classify asks Options.Classify, except where the caller has ended the try.
func (a *attempt) classify(resp *http.Response, err error) Outcome {
	if err != nil {
		if is[*bodyError](err) || errors.Is(a.caller.Context().Err(), context.Canceled) {
			return Neutral
		}
	}
	return a.sel.node.service.b.o.Classify(resp, err)
}

// cause is why the try failed, when it was us who ended it.
func (a *attempt) cause(err error) error {
	if a.limit != nil && a.caller.Context().Err() == nil {
		if c := context.Cause(a.req.Context()); c != nil {
			return c
		}
	}
	return err
}

// failure is why the call is to be tried again, or nil.
func (a *attempt) failure(resp *http.Response, err error) error {
	switch {
	case err != nil:
		if Outcome(a.outcome) == Failure {
			return err
		}
		return nil
	case Outcome(a.outcome) == Failure && retryable(resp.StatusCode):
		return statusError(resp, Failure)
	}
	return nil
}

// finish takes the call off its instance, once.
func (a *attempt) finish() {
	if a.first(ended) {
		a.sel.end()
		if a.limit != nil {
			a.limit.cancel(nil)
		}
	}
}

// track keeps the call in flight until the body ends.
func (a *attempt) track(resp *http.Response) {
	switch body := resp.Body.(type) {
	case nil:
		a.finish()
	case io.ReadWriteCloser: // of 101 Switching Protocols
		a.body = body
		resp.Body = upgraded{a, body}
	default:
		if body == http.NoBody {
			a.finish()
			return
		}
		a.body = body
		resp.Body = a
	}
}

// Read reads the answer's body. A body that breaks off is the instance's failure, unless the caller ended
// the request.
func (a *attempt) Read(p []byte) (int, error) {
	n, err := a.body.Read(p)
	if err == nil {
		return n, nil
	}
	if err != io.EOF && a.done.Load()&ended == 0 && Outcome(a.outcome) == Success && a.caller.Context().Err() == nil {
		a.sel.start = 0 // its latency was taken when the headers came
		a.sel.report(Failure, err)
	}
	a.finish()
	return n, err
}

// Close ends the call.
func (a *attempt) Close() error {
	defer a.finish()
	return a.body.Close()
}

type upgraded struct {
	*attempt
	rw io.ReadWriteCloser
}

func (u upgraded) Write(p []byte) (int, error) { return u.rw.Write(p) }

// discard drains a losing response, so that its connection can be used again, as long as that costs
// nothing to speak of, and closes it.
func (a *attempt) discard(resp *http.Response) {
	if resp == nil {
		return
	}
	const most, patience = 4 << 10, 10 * time.Millisecond
	if resp.ContentLength >= 0 && resp.ContentLength <= most {
		late := time.AfterFunc(patience, func() { _ = resp.Body.Close() })
		_, _ = io.Copy(io.Discard, resp.Body)
		late.Stop()
	}
	_ = resp.Body.Close()
}

// classify is the default of Options.Classify.
func classify(resp *http.Response, err error) Outcome {
	if err != nil {
		return Failure
	}
	switch resp.StatusCode {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return Failure
	case http.StatusTooManyRequests:
		return Neutral
	}
	return Success
}

func retryable(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
}

func statusError(resp *http.Response, o Outcome) error {
	if o != Failure {
		return nil
	}
	return fmt.Errorf("answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
}
