package balancer

import (
	"io"
	"net/http"
	"sync/atomic"
)

// mayRepeat reports whether req may be sent again after an instance may have seen it: RFC 9110 section
// 9.2.2, or an Idempotency-Key, and a body that can be had again.
func mayRepeat(req *http.Request) bool {
	if hasBody(req) && req.GetBody == nil {
		return false
	}
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return req.Header.Get("Idempotency-Key") != ""
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// replay hands out a request's body for one try after the other.
type replay struct {
	req  *http.Request
	n    int
	once *untouched // the body, when it cannot be had again
}

func (r *replay) next() (io.ReadCloser, error) {
	r.n++
	switch {
	case !hasBody(r.req):
		return r.req.Body, nil
	case r.req.GetBody == nil:
		if r.once == nil {
			r.once = &untouched{body: r.req.Body}
		}
		return r.once, nil
	case r.n == 1:
		return r.req.Body, nil
	}
	return r.req.GetBody()
}

// untouched reports whether another try would send the body whole.
func (r *replay) untouched() bool { return r.once == nil || !r.once.read.Load() }

// close ends the body when there will be no other try.
func (r *replay) close() {
	if r.once != nil && !r.once.read.Load() {
		_ = r.once.body.Close()
	}
}

// untouched keeps a body open that a transport closes without having read of it, as it does when it
// finds no connection.
type untouched struct {
	body io.ReadCloser
	read atomic.Bool
}

func (u *untouched) Read(p []byte) (int, error) {
	u.read.Store(true)
	return u.body.Read(p)
}

func (u *untouched) Close() error {
	if u.read.Load() {
		return u.body.Close()
	}
	return nil
}
