package breaker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/internal/memnet"
)

// fetch asks rt for a page, reads its body and closes it.
func fetch(ctx context.Context, rt http.RoundTripper) (string, error) {
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://up.test/", nil)
	res, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	page, err := io.ReadAll(res.Body)
	return fmt.Sprint(res.StatusCode, " ", string(page)), err
}

func TestTransportCountsByTheStatus(t *testing.T) {
	for status, want := range map[int][2]uint64{200: {1, 0}, 404: {1, 0}, 429: {0, 0}, 500: {1, 1}, 503: {1, 1}, 204: {1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			b := New("up", Options{})
			rt := Transport(b, memnet.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })))
			if _, err := fetch(t.Context(), rt); err != nil {
				t.Fatal(err)
			}
			wantCounts(t, b, want[0], want[1], 0)
		})
	}
}

func TestAnOpenTransportSendsNothing(t *testing.T) {
	b := New("up", Options{})
	b.ForceOpen()
	rt := Transport(b, roundTripper(func(*http.Request) (*http.Response, error) {
		t.Error("a request was sent")
		return nil, errBoom
	}))
	body := &closeWatch{Reader: strings.NewReader("x")}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://up.test/", body)
	if _, err := (&http.Client{Transport: rt}).Do(req); !errors.Is(err, ErrOpen) || !body.closed {
		t.Errorf("Do = %v, body closed %v; want ErrOpen, true", err, body.closed)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type closeWatch struct {
	io.Reader
	closed bool
}

func (c *closeWatch) Close() error {
	c.closed = true
	return nil
}

func TestTheTimeoutCoversTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("up", Options{Timeout: time.Second})
		rt := Transport(b, memnet.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})))
		start := time.Now()
		page, err := fetch(t.Context(), rt)
		if page != "200 half" || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%q, %v after %v; want half a page and the deadline after 1s", page, err, time.Since(start))
		}
		wantCounts(t, b, 1, 1, 1)
	})
}

func TestTheTimeoutEndsWithTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("up", Options{Timeout: time.Minute})
		var ctx context.Context
		rt := Transport(b, roundTripper(func(r *http.Request) (*http.Response, error) {
			ctx = r.Context()
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("page"))}, nil
		}))
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://up.test/", nil)
		res, err := rt.RoundTrip(req)
		if err != nil || ctx.Err() != nil || b.Snapshot().InFlight != 1 {
			t.Fatalf("%v; before Close the context has %v, %d in flight", err, ctx.Err(), b.Snapshot().InFlight)
		}
		res.Body.Close()
		if ctx.Err() == nil {
			t.Error("Close did not end the context")
		}
		wantCounts(t, b, 1, 0, 0)
	})
}

func TestABodyThatBreaksOffIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("up", Options{})
		rt := Transport(b, memnet.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
		})))
		if _, err := fetch(t.Context(), rt); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("err = %v, want an unexpected EOF", err)
		}
		wantCounts(t, b, 1, 1, 0)
	})
}

func TestARequestThatItsOwnerCancelledIsNeutral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("up", Options{Timeout: time.Minute})
		rt := Transport(b, memnet.Serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := fetch(ctx, rt); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v, want Canceled", err)
		}
		wantCounts(t, b, 0, 0, 0)
	})
}

func TestSlowCallLooksAtTheHeadersNotTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("up", Options{SlowCall: time.Second})
		rt := Transport(b, memnet.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Slow") != "" {
				time.Sleep(2 * time.Second)
			}
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Hour)
		})))
		if _, err := fetch(t.Context(), rt); err != nil {
			t.Fatal(err)
		}
		if s := b.Snapshot(); s.Slow != 0 || s.Reason != "" {
			t.Errorf("Slow = %d, want 0", s.Slow)
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://up.test/", nil)
		req.Header.Set("Slow", "yes")
		res, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if s := b.Snapshot(); s.Slow != 1 {
			t.Errorf("Slow = %d, want 1", s.Slow)
		}
	})
}

func TestAStreamIsASuccessWhenItBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(Options{})
		rt := Transport(b, memnet.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})))
		time.Sleep(5*time.Second + 1)
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://up.test/", nil)
		res, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		wantState(t, b, Closed)
		res.Body.Close()
		wantCounts(t, b, 0, 0, 0)
	})
}

func TestAnUpgradedBodyIsStillAWriter(t *testing.T) {
	b := New("up", Options{Timeout: time.Minute})
	pipe := struct {
		io.Reader
		io.Writer
		io.Closer
	}{strings.NewReader("in"), new(strings.Builder), io.NopCloser(nil)}
	rt := Transport(b, roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: pipe}, nil
	}))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://up.test/", nil)
	res, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	wantCounts(t, b, 1, 0, 0)
	w, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatal("the body is no io.ReadWriteCloser")
	}
	if _, err := io.WriteString(w, "out"); err != nil || pipe.Writer.(*strings.Builder).String() != "out" {
		t.Errorf("Write = %v", err)
	}
	_ = w.Close()
	wantCounts(t, b, 1, 0, 0)
}

func TestAPanicOfTheTransportIsAFailure(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, next := range map[string]roundTripper{
		"panic":                        func(*http.Request) (*http.Response, error) { panic("boom") },
		"no answer and no error":       func(*http.Request) (*http.Response, error) { return nil, nil },
		"an error whose Unwrap panics": func(*http.Request) (*http.Response, error) { return nil, (*net.OpError)(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			b := New("up", Options{})
			defer func() {
				if recover() == nil {
					t.Error("the panic was not passed on")
				}
				wantCounts(t, b, 1, 1, 0)
			}()
			_, _ = fetch(gone, Transport(b, next))
		})
	}
}

func TestCloseIdleConnectionsReachesTheGuardedTransport(t *testing.T) {
	var c idleCloser
	(&http.Client{Transport: Transport(New("up", Options{}), &c)}).CloseIdleConnections()
	if !c.closed {
		t.Error("it did not")
	}
}

type idleCloser struct {
	roundTripper
	closed bool
}

func (c *idleCloser) CloseIdleConnections() { c.closed = true }
