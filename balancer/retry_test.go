package balancer

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

func TestTheFirstRetryGoesAtOnceToAnUntriedInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errReset))
		var j journal
		b := open(t, orders("a:1", "b:1", "c:1"), Options{Strategy: only("a:1"), Transport: p, OnEvent: j.add, Ejection: Ejection{Consecutive: -1}})
		for range 50 {
			start := time.Now()
			code, err := get(t, b)
			if err != nil || code != http.StatusOK || time.Since(start) != 0 {
				t.Fatalf("GET = %d, %v after %v", code, err, time.Since(start))
			}
			if calls := p.asked(); len(calls) != 2 || calls[0] != "a:1" || calls[1] == "a:1" {
				t.Fatalf("tried %v", calls)
			}
		}
		if got := j.of(Retried); len(got) != 50 || got[0] != "a:1" {
			t.Errorf("%d retried events", len(got))
		}
	})
}

func TestRetriesOfADeadInstanceAreSpreadOverTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errReset))
		b := open(t, orders("a:1", "b:1", "c:1", "d:1"), Options{
			Strategy: RoundRobin(), Transport: p, Retry: Retry{Budget: 10}, Ejection: Ejection{Consecutive: -1},
		})
		for range 4000 {
			if _, err := get(t, b); err != nil {
				t.Fatal(err)
			}
		}
		calls := p.asked()
		for _, addr := range []string{"b:1", "c:1", "d:1"} {
			if n := count(calls, addr); n < 1230 || n > 1440 { // a fourth and a third of a fourth
				t.Errorf("%s got %d of %d calls, want 1333", addr, n, len(calls))
			}
		}
	})
}

func TestATriedInstanceIsTriedAgainOnlyWhenNoOtherIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errReset))
		p.set("b:1", fails(errReset))
		b := open(t, orders("a:1", "b:1"), Options{Transport: p, Retry: Retry{Attempts: 4, Budget: 10}, Ejection: Ejection{Consecutive: -1}})
		for range 20 {
			start := time.Now()
			_, err := get(t, b)
			calls := p.asked()
			if err == nil || len(calls) != 4 || calls[0] == calls[1] {
				t.Fatalf("tried %v: %v", calls, err)
			}
			if waited := time.Since(start); waited > 25*time.Millisecond+50*time.Millisecond {
				t.Errorf("waited %v, want 25ms and 50ms at most", waited)
			}
		}
	})
}

func TestBackoffIsFullJitterUpToItsCap(t *testing.T) {
	r := Retry{}.orDefault()
	for n, most := range []time.Duration{25, 50, 100, 200, 250, 250} {
		var low, high bool
		for range 500 {
			d := r.backoff(n)
			if d < 0 || d > most*time.Millisecond {
				t.Fatalf("backoff(%d) = %v, want at most %v", n, d, most*time.Millisecond)
			}
			low = low || d < most*time.Millisecond/4
			high = high || d > most*time.Millisecond*3/4
		}
		if !low || !high {
			t.Errorf("backoff(%d) does not reach over all of its range", n)
		}
	}
	if d := r.backoff(1000); d > 250*time.Millisecond {
		t.Errorf("backoff(1000) = %v", d)
	}
}

func TestWhatMayBeRepeatedIsAndTheRestIsNot(t *testing.T) {
	withKey := func(r *http.Request) { r.Header.Set("Idempotency-Key", "k") }
	withoutGetBody := func(r *http.Request) { r.GetBody = nil }
	for _, tt := range []struct {
		name, method, body string
		change             func(*http.Request)
		fails              error
		status             int
		tries              int
	}{
		{name: "GET, reset", method: "GET", fails: errReset, tries: 2},
		{name: "HEAD, reset", method: "HEAD", fails: errReset, tries: 2},
		{name: "OPTIONS, reset", method: "OPTIONS", fails: errReset, tries: 2},
		{name: "TRACE, reset", method: "TRACE", fails: errReset, tries: 2},
		{name: "PUT, reset", method: "PUT", body: "x", fails: errReset, tries: 2},
		{name: "DELETE, reset", method: "DELETE", fails: errReset, tries: 2},
		{name: "POST, reset", method: "POST", body: "x", fails: errReset, tries: 1},
		{name: "PATCH, reset", method: "PATCH", body: "x", fails: errReset, tries: 1},
		{name: "CONNECT, reset", method: "CONNECT", fails: errReset, tries: 1},
		{name: "POST, refused", method: "POST", body: "x", fails: errRefused, tries: 2},
		{name: "POST whose body comes once, refused", method: "POST", body: "x", change: withoutGetBody, fails: errRefused, tries: 2},
		{name: "PUT whose body comes once, reset", method: "PUT", body: "x", change: withoutGetBody, fails: errReset, tries: 1},
		{name: "POST with a key, reset", method: "POST", body: "x", change: withKey, fails: errReset, tries: 2},
		{name: "POST with a key, 503", method: "POST", body: "x", change: withKey, status: 503, tries: 2},
		{name: "POST, 503", method: "POST", body: "x", status: 503, tries: 1},
		{name: "GET, 502", method: "GET", status: 502, tries: 2},
		{name: "GET, 503", method: "GET", status: 503, tries: 2},
		{name: "GET, 504", method: "GET", status: 504, tries: 2},
		{name: "GET, 500", method: "GET", status: 500, tries: 1},
		{name: "GET, 429", method: "GET", status: 429, tries: 1},
		{name: "GET, 404", method: "GET", status: 404, tries: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeers()
				p.set("a:1", status(tt.status))
				if tt.fails != nil {
					p.set("a:1", fails(tt.fails))
				}
				var got string
				p.set("b:1", func(r *http.Request) (*http.Response, error) {
					if r.Body != nil {
						sent, _ := io.ReadAll(r.Body)
						got = string(sent)
					}
					return answer(http.StatusOK), nil
				})
				b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p})
				var body io.Reader
				if tt.body != "" {
					body = strings.NewReader(tt.body)
				}
				req := request(t.Context(), tt.method, body)
				if tt.change != nil {
					tt.change(req)
				}
				code, err := roundTrip(b, req)
				if tries := len(p.asked()); tries != tt.tries {
					t.Fatalf("%d tries, want %d", tries, tt.tries)
				}
				switch {
				case tt.tries == 2 && (err != nil || code != http.StatusOK || got != tt.body):
					t.Errorf("second try = %d, %v with body %q", code, err, got)
				case tt.tries == 1 && tt.fails != nil && !errors.Is(err, tt.fails):
					t.Errorf("error = %v, want %v", err, tt.fails)
				case tt.tries == 1 && tt.fails == nil && code != tt.status:
					t.Errorf("status = %d, want %d passed on", code, tt.status)
				}
			})
		})
	}
}

func TestWhenTheTriesAreUsedUpTheLastAnswerIsReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errReset))
		p.set("b:1", status(http.StatusServiceUnavailable))
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{Attempts: 2}})
		resp, err := b.RoundTrip(request(t.Context(), http.MethodGet, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusServiceUnavailable || string(body) != "body" || err != nil {
			t.Errorf("answer = %d %q, %v; want the 503 as it is", resp.StatusCode, body, err)
		}
	})
}

func TestTheErrorNamesEveryTryAndItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", status(http.StatusBadGateway))
		p.set("b:1", fails(errRefused))
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{Attempts: 2}})
		_, err := get(t, b)
		want := "balancer: orders failed: a:1: answered 502 Bad Gateway; b:1: connection refused"
		if err == nil || err.Error() != want || !errors.Is(err, errRefused) {
			t.Errorf("error = %v\nwant    %s", err, want)
		}
	})
}

func TestTheLosingResponseIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, length := range []int64{4, -1, 1 << 20} {
			body := &closing{Reader: strings.NewReader("body")}
			p := newPeers()
			p.set("a:1", func(*http.Request) (*http.Response, error) {
				resp := answer(http.StatusServiceUnavailable)
				resp.Body, resp.ContentLength = body, length
				return resp, nil
			})
			b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p})
			if code, err := get(t, b); code != http.StatusOK || err != nil {
				t.Fatalf("GET = %d, %v", code, err)
			}
			if drained := body.Len() == 0; !body.closed || drained != (length == 4) {
				t.Errorf("length %d: closed %v, drained %v", length, body.closed, drained)
			}
			if s := statusOf(t, b, "a:1"); s.InFlight != 0 {
				t.Errorf("%d calls in flight", s.InFlight)
			}
		}
	})
}

type closing struct {
	*strings.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

func TestALosingResponseThatHangsIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", func(*http.Request) (*http.Response, error) {
			resp := answer(http.StatusServiceUnavailable)
			resp.Body, _ = io.Pipe()
			return resp, nil
		})
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p})
		start := time.Now()
		if code, err := get(t, b); code != http.StatusOK || err != nil || time.Since(start) > 10*time.Millisecond {
			t.Errorf("GET = %d, %v after %v", code, err, time.Since(start))
		}
	})
}

func TestPerTryEndsOneTryAndNotTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", hangs)
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{PerTry: time.Second}})
		start := time.Now()
		code, err := get(t, b)
		if code != http.StatusOK || err != nil || time.Since(start) != time.Second {
			t.Errorf("GET = %d, %v after %v; want 200 after 1s", code, err, time.Since(start))
		}
		if s := statusOf(t, b, "a:1"); s.Failures != 1 || s.InFlight != 0 {
			t.Errorf("status = %+v, want one failure", s)
		}
	})
}

func TestPerTryIsAboutHeadersNotBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", func(r *http.Request) (*http.Response, error) {
			resp := answer(http.StatusOK)
			pipe, w := io.Pipe()
			go func() {
				sleep(r.Context(), 10*time.Second)
				w.CloseWithError(r.Context().Err())
			}()
			resp.Body = pipe
			return resp, nil
		})
		b := open(t, orders("a:1"), Options{Transport: p, Retry: Retry{PerTry: time.Second}})
		if code, err := get(t, b); code != http.StatusOK || err != nil {
			t.Errorf("GET with a body of 10s = %d, %v", code, err)
		}
	})
}

func TestPerTryDoesNotBoundWhatMayNotBeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", takes(10*time.Second))
		b := open(t, orders("a:1"), Options{Transport: p, Retry: Retry{PerTry: time.Second}})
		if code, err := send(t, b, http.MethodPost, strings.NewReader("x")); code != http.StatusOK || err != nil {
			t.Errorf("POST of 10s = %d, %v", code, err)
		}
	})
}

func TestTheCallersDeadlineEndsTheCallAndIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", hangs)
		p.set("b:1", hangs)
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{PerTry: time.Second}})
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := roundTrip(b, request(ctx, http.MethodGet, nil))
		var timeout interface{ Timeout() bool }
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != 1500*time.Millisecond {
			t.Errorf("error = %v after %v, want a timeout after 1.5s", err, time.Since(start))
		}
		if a, b := statusOf(t, b, "a:1").Failures, statusOf(t, b, "b:1").Failures; a != 1 || b != 1 {
			t.Errorf("failures = %d, %d; want one each", a, b)
		}
	})
}

func TestTheCallersCancelEndsTheCallAndSaysNothingOfTheInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", hangs)
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{PerTry: time.Hour}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := roundTrip(b, request(ctx, http.MethodGet, nil))
		if tries := len(p.asked()); !errors.Is(err, context.Canceled) || tries != 1 {
			t.Errorf("error = %v after %d tries", err, tries)
		}
		if s := statusOf(t, b, "a:1"); s.Failures != 0 || s.InFlight != 0 || s.Requests != 1 {
			t.Errorf("status = %+v, want no failure", s)
		}
	})
}

func TestTheBudgetBoundsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		b := open(t, orders("a:1", "b:1"), Options{Transport: p, Ejection: Ejection{Consecutive: -1}, Retry: Retry{Backoff: 1, MaxBackoff: 1}})
		load := func(seconds int) (calls, tries int) {
			for range seconds * 100 {
				_, _ = get(t, b)
				time.Sleep(10 * time.Millisecond)
			}
			return seconds * 100, len(p.asked())
		}
		load(30) // all is well
		p.set("a:1", fails(errReset))
		p.set("b:1", fails(errReset))
		calls, tries := load(60)
		// 20 % of the calls of the 60 s and of the 10 s before, 10/s, and 10 s of that saved up
		if most := calls + calls/5 + 200 + 600 + 100; tries > most+2 || tries < most-60 {
			t.Errorf("%d tries of %d calls, want about %d", tries, calls, most)
		}
	})
}

func TestABudgetOpensWithTenSecondsOfItsMinimum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b budget
		b.open(Retry{}.orDefault(), time.Now(), 5)
		if left := b.left(time.Now(), 15); left != 102 {
			t.Errorf("%v retries left at the start and after 10 calls, want 100 + 2", left)
		}
		b.open(Retry{}.orDefault(), time.Now(), 5)
		b.paid = 0
		n := 0
		for b.take(time.Now(), 5, false) {
			n++
		}
		if n != 100 {
			t.Errorf("%d retries at the start, want 100", n)
		}
		time.Sleep(time.Second)
		for n = 0; b.take(time.Now(), 105, false); n++ {
		}
		if n != 30 {
			t.Errorf("%d retries after 1s and 100 calls, want 10 + 20", n)
		}
		if b.take(time.Now(), 205, true) {
			t.Error("what calls have paid in was spent although it must be spared")
		}
		time.Sleep(time.Hour)
		for n = 0; b.take(time.Now(), 205, false); n++ {
		}
		if n != 100 {
			t.Errorf("%d retries after an hour, want 100: what calls paid in has run out", n)
		}
	})
}

func TestWithEveryInstanceEjectedRetriesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		for _, addr := range []string{"a:1", "b:1", "c:1"} {
			p.set(addr, fails(errRefused))
		}
		b := open(t, orders("a:1", "b:1", "c:1"), Options{Transport: p, Ejection: Ejection{ProbePath: "/health"}})
		const calls = 20 * 1000
		for range calls {
			if _, err := get(t, b); err == nil {
				t.Fatal("an answer from nowhere")
			}
			time.Sleep(time.Millisecond)
		}
		if tries := float64(len(p.asked())) / calls; tries > 1.03 {
			t.Errorf("%.3f tries per call, want hardly more than one", tries)
		}
	})
}

func TestAttemptsOneTurnsRetriesOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errRefused))
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{Attempts: 1}})
		if _, err := get(t, b); err == nil || len(p.asked()) != 1 {
			t.Errorf("error = %v", err)
		}
	})
}

func TestAKeysRetryGoesToTheSameInstanceEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		b := open(t, orders("a:1", "b:1", "c:1", "d:1"), Options{Strategy: IPHash(), Transport: p, Ejection: Ejection{Consecutive: -1}})
		ctx := WithKey(t.Context(), "alice")
		_, _ = roundTrip(b, request(ctx, http.MethodGet, nil))
		home := p.asked()[0]
		p.set(home, fails(errReset))
		second := make(map[string]bool)
		for range 20 {
			if _, err := roundTrip(b, request(ctx, http.MethodGet, nil)); err != nil {
				t.Fatal(err)
			}
			second[p.asked()[1]] = true
		}
		if len(second) != 1 {
			t.Errorf("retries of one key went to %v", second)
		}
	})
}

func TestDoRetriesAndReturnsTheValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1")})
		got, err := Do(t.Context(), b, "orders", func(_ context.Context, addr string) (string, error) {
			if addr == "a:1" {
				return "", errReset
			}
			return "from " + addr, nil
		})
		if got != "from b:1" || err != nil {
			t.Errorf("Do = %q, %v", got, err)
		}
		if a, b := statusOf(t, b, "a:1"), statusOf(t, b, "b:1"); a.Failures != 1 || b.Requests != 1 || a.InFlight+b.InFlight != 0 {
			t.Errorf("status = %+v, %+v", a, b)
		}
	})
}

func TestDoReturnsAnErrorThatIsNotTheInstancesFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		notFound := errors.New("not found")
		b := open(t, orders("a:1", "b:1"), Options{Classify: func(_ *http.Response, err error) Outcome {
			if errors.Is(err, notFound) {
				return Neutral
			}
			return Failure
		}})
		calls := 0
		for range 10 {
			_, err := Do(t.Context(), b, "orders", func(context.Context, string) (int, error) { calls++; return 0, notFound })
			if err != notFound { //nolint:errorlint // it is returned as it is
				t.Fatalf("Do = %v", err)
			}
		}
		if calls != 10 {
			t.Errorf("%d calls, want 10", calls)
		}
	})
}

func TestDoBoundsEachTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1", "b:1"), Options{Retry: Retry{PerTry: time.Second, Attempts: 2}})
		start := time.Now()
		_, err := Do(t.Context(), b, "orders", func(ctx context.Context, _ string) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Errorf("Do = %v after %v", err, time.Since(start))
		}
	})
}

func TestDoGivesTheInstanceBackWhenFnPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1"), Options{})
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_, _ = Do(t.Context(), b, "orders", func(context.Context, string) (int, error) { panic("boom") })
		}()
		if s := statusOf(t, b, "a:1"); s.InFlight != 0 || s.Failures != 0 {
			t.Errorf("status = %+v", s)
		}
	})
}

func TestDoFindsNoInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, discovery.Static{}, Options{})
		_, err := Do(t.Context(), b, "orders", func(context.Context, string) (int, error) { return 0, nil })
		if !errors.Is(err, ErrNoInstances) {
			t.Errorf("Do = %v, want ErrNoInstances", err)
		}
	})
}

func TestHedging(t *testing.T) {
	hedging := Options{Strategy: only("a:1"), Retry: Retry{Hedge: 60 * time.Millisecond, Attempts: 3}}
	for _, tt := range []struct {
		name     string
		a, b     func(*http.Request) (*http.Response, error)
		method   string
		took     time.Duration
		tries    int
		failures uint64 // of a
		status   int
	}{
		{name: "a fast answer needs no hedge", a: takes(59 * time.Millisecond), took: 59 * time.Millisecond, tries: 1, status: 200},
		{name: "a slow one loses to its hedge and has failed", a: hangs, b: takes(20 * time.Millisecond), took: 80 * time.Millisecond, tries: 2, failures: 1, status: 200},
		{name: "a slow one that is first after all has not", a: takes(70 * time.Millisecond), b: takes(20 * time.Millisecond), took: 70 * time.Millisecond, tries: 2, status: 200},
		{name: "a failure is retried at once", a: fails(errReset), b: takes(20 * time.Millisecond), took: 20 * time.Millisecond, tries: 2, failures: 1, status: 200},
		{name: "a hedge that fails leaves the first try be", a: takes(200 * time.Millisecond), b: fails(errReset), took: 200 * time.Millisecond, tries: 2, status: 200},
		{name: "a POST is not hedged", method: http.MethodPost, a: takes(time.Second), took: time.Second, tries: 1, status: 200},
		{name: "what both answer is the answer", a: status(503), b: status(503), tries: 2, failures: 1, status: 503},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeers()
				p.set("a:1", tt.a)
				p.set("b:1", tt.b)
				o := hedging
				o.Transport = p
				if tt.status == 503 {
					o.Retry.Attempts = 2
				}
				b := open(t, orders("a:1", "b:1"), o)
				start := time.Now()
				code, err := send(t, b, tt.method, nil)
				if code != tt.status || err != nil || time.Since(start) != tt.took {
					t.Errorf("answer = %d, %v after %v; want %d after %v", code, err, time.Since(start), tt.status, tt.took)
				}
				synctest.Wait()
				calls := p.asked()
				if len(calls) != tt.tries {
					t.Errorf("tried %v, want %d tries", calls, tt.tries)
				}
				a, bb := statusOf(t, b, "a:1"), statusOf(t, b, "b:1")
				if a.Failures != tt.failures || a.InFlight+bb.InFlight != 0 {
					t.Errorf("a: %+v\nb: %+v\nwant %d failures of a and nothing in flight", a, bb, tt.failures)
				}
			})
		})
	}
}

func TestHedgesThatLoseEjectASickInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", hangs)
		var j journal
		b := open(t, orders("a:1", "b:1"), Options{
			Strategy: only("a:1"), Transport: p, OnEvent: j.add, Retry: Retry{Hedge: 60 * time.Millisecond},
			Ejection: Ejection{ProbePath: "/health"},
		})
		for range 10 {
			if code, err := get(t, b); code != http.StatusOK || err != nil {
				t.Fatalf("GET = %d, %v", code, err)
			}
		}
		if got := j.of(Ejected); !slices.Equal(got, []string{"a:1"}) {
			t.Errorf("ejected: %v", got)
		}
		if n := len(j.of(Hedged)); n != 3 {
			t.Errorf("%d hedges, want 3", n)
		}
	})
}

func TestHedgesArePaidFromTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", takes(100*time.Millisecond))
		p.set("b:1", takes(100*time.Millisecond))
		b := open(t, orders("a:1", "b:1"), Options{
			Transport: p, Ejection: Ejection{Consecutive: -1},
			Retry: Retry{Hedge: 60 * time.Millisecond, Budget: -1, MinPerSec: -1},
		})
		for range 10 {
			if _, err := get(t, b); err != nil {
				t.Fatal(err)
			}
		}
		if tries := len(p.asked()); tries != 10 {
			t.Errorf("%d tries of 10 calls without a budget", tries)
		}
		if left := b.Budget("orders") + b.Budget("nobody called"); left != 0 {
			t.Errorf("%v retries left of none", left)
		}
	})
}

// A hedge of a request with an Idempotency-Key finds its key in use by the first try.
func TestAHedgeThatMeetsItsOwnKeyDoesNotBeatTheFirstTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for first, want := range map[string]int{"ends": http.StatusOK, "dies": http.StatusConflict} {
			p := newPeers()
			p.set("a:1", func(r *http.Request) (*http.Response, error) {
				time.Sleep(time.Second)
				if first == "dies" {
					return nil, errReset
				}
				return nop(r)
			})
			p.set("b:1", func(r *http.Request) (*http.Response, error) {
				resp, err := nop(r)
				resp.StatusCode = http.StatusConflict
				resp.Header = http.Header{"Retry-After": {"1"}}
				return resp, err
			})
			b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{Hedge: 60 * time.Millisecond}})
			req := request(t.Context(), http.MethodPost, nil)
			req.Header = http.Header{"Idempotency-Key": {"k"}}
			code, err := roundTrip(b, req)
			if code != want || err != nil || statusOf(t, b, "a:1").InFlight+statusOf(t, b, "b:1").InFlight != 0 {
				t.Errorf("the first try %s: %d, %v", first, code, err)
			}
		}
	})
}

func TestACallersCancelEndsAllHedges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", hangs)
		p.set("b:1", hangs)
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{Hedge: 60 * time.Millisecond}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := roundTrip(b, request(ctx, http.MethodGet, nil))
		synctest.Wait()
		a, bb := statusOf(t, b, "a:1"), statusOf(t, b, "b:1")
		if !errors.Is(err, context.Canceled) || a.Failures+bb.Failures != 0 || a.InFlight+bb.InFlight != 0 {
			t.Errorf("error = %v\na: %+v\nb: %+v", err, a, bb)
		}
	})
}

func TestAnAnswerThatComesTooLateIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := &closing{Reader: strings.NewReader("body")}
		p := newPeers()
		p.set("a:1", func(*http.Request) (*http.Response, error) { // a transport that does not hear of the cancel
			time.Sleep(time.Second)
			resp := answer(http.StatusOK)
			resp.Body = late
			return resp, nil
		})
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{Hedge: 60 * time.Millisecond}})
		if code, err := get(t, b); code != http.StatusOK || err != nil {
			t.Fatalf("GET = %d, %v", code, err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := statusOf(t, b, "a:1"); !late.closed || s.InFlight != 0 {
			t.Errorf("closed %v, in flight %d", late.closed, s.InFlight)
		}
	})
}
