package balancer

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// A bodyError came from the caller's side of the body, and tells nothing of the instance.
type bodyError struct{ error }

func (e *bodyError) Unwrap() error { return e.error }

var errNotKept = &bodyError{errors.New("the request's body is too long to be repeated")}

// A tee lets the body of an incoming request be read again while it is still coming in: each reader
// gets it from the start. It keeps up to most bytes; a longer body only the reader that is furthest gets
// whole.
type tee struct {
	source io.Reader
	most   int64

	front sync.Mutex // held by the reader that waits for the source; taken before mu

	mu   sync.Mutex // guards the fields below
	kept []byte
	seen int64 // of the source
	err  error // of the source, io.EOF in the end
}

// again is http.Request.GetBody.
func (t *tee) again() (io.ReadCloser, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost() {
		return nil, errNotKept
	}
	return &teeReader{t: t}, nil
}

// lost reports whether the source was longer than what may be kept.
func (t *tee) lost() bool { return t.seen > t.most }

// read copies into p what comes at offset from.
func (t *tee) read(p []byte, from int64) (int, error) {
	if n, err := t.known(p, from); n > 0 || err != nil {
		return n, err
	}
	t.front.Lock()
	defer t.front.Unlock()
	if n, err := t.known(p, from); n > 0 || err != nil { // another reader was there first
		return n, err
	}
	n, err := t.source.Read(p)

	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen += int64(n)
	if t.lost() {
		t.kept = nil
	} else {
		t.kept = append(t.kept, p[:n]...)
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		t.err = io.EOF
	default:
		t.err = &bodyError{err}
	}
	return n, t.err
}

// known is read as far as the source need not be asked.
func (t *tee) known(p []byte, from int64) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case from == t.seen:
		return 0, t.err
	case t.lost():
		return 0, errNotKept
	}
	return copy(p, t.kept[from:]), nil
}

type teeReader struct {
	t      *tee
	from   int64
	closed atomic.Bool
}

func (r *teeReader) Read(p []byte) (int, error) {
	if r.closed.Load() {
		return 0, &bodyError{errors.New("read after close")}
	}
	n, err := r.t.read(p, r.from)
	r.from += int64(n)
	return n, err
}

// Close leaves the source open, for the next reader; the server closes it.
func (r *teeReader) Close() error {
	r.closed.Store(true)
	return nil
}
