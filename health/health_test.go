package health

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.TestMode)
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	os.Exit(m.Run())
}

var errSecret = errors.New("dial redis://:hunter2@10.0.0.9")

// bubble runs f with a Health that ends with it.
func bubble(t *testing.T, o Options, f func(h *Health)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := New(o)
		defer h.Close()
		f(h)
	})
}

// goroutines of the bubble of its caller: those of the tests before may still be ending.
func goroutines(t *testing.T) int {
	t.Helper()
	own, all := make([]byte, 256), make([]byte, 1<<20)
	mark := regexp.MustCompile(`, synctest bubble \d+\]`).Find(own[:runtime.Stack(own, false)])
	if mark == nil {
		t.Fatalf("not in a bubble: %s", own)
	}
	return bytes.Count(all[:runtime.Stack(all, true)], mark)
}

func probe(h *Health, method, path string) *httptest.ResponseRecorder {
	r := gin.New()
	Register(h, r)
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func wantProbe(t *testing.T, h *Health, path string, status int, body string) {
	t.Helper()
	w := probe(h, http.MethodGet, path)
	if w.Code != status || w.Body.String() != body {
		t.Errorf("%s = %d %s, want %d %s", path, w.Code, w.Body, status, body)
	}
}

func TestEndpointsWithoutChecks(t *testing.T) {
	h := New(Options{})
	wantProbe(t, h, "/health", 200, `{"status":"healthy"}`)
	wantProbe(t, h, "/livez", 200, `{"status":"pass"}`)
	wantProbe(t, h, "/readyz", 200, `{"checks":{},"status":"pass"}`)
	h.Close()
	wantProbe(t, h, "/health", 503, `{"status":"unhealthy"}`)
	wantProbe(t, h, "/livez", 200, `{"status":"pass"}`)
	wantProbe(t, h, "/readyz", 503, `{"checks":{},"draining":true,"status":"fail"}`)
}

func TestProbesAreNotCachedAndHeadWorks(t *testing.T) {
	h := New(Options{})
	defer h.Close()
	r := gin.New()
	Register(h, r)
	s := httptest.NewServer(r)
	defer s.Close()
	for _, path := range []string{"/health", "/livez", "/readyz"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			req, _ := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
			resp, err := s.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s %s = %d, Cache-Control %q", method, path, resp.StatusCode, resp.Header.Get("Cache-Control"))
			}
		}
	}
}

func TestFailingCheckFailsAndItsTextStaysInside(t *testing.T) {
	bubble(t, Options{}, func(h *Health) {
		h.Add("redis", func(context.Context) error { return errSecret })
		wantProbe(t, h, "/readyz", 503, `{"checks":{"redis":"fail"},"status":"fail"}`)
		wantProbe(t, h, "/health", 503, `{"status":"unhealthy"}`)
		wantProbe(t, h, "/livez", 200, `{"status":"pass"}`)
	})
}

func TestOptionalCheckWarns(t *testing.T) {
	bubble(t, Options{}, func(h *Health) {
		h.Add("cache", func(context.Context) error { return errSecret }, Optional())
		h.Add("db", func(context.Context) error { return nil })
		wantProbe(t, h, "/readyz", 200, `{"checks":{"cache":"warn","db":"pass"},"status":"warn"}`)
		wantProbe(t, h, "/health", 200, `{"status":"healthy"}`)
		if !h.Ready() {
			t.Error("not ready for want of something optional")
		}
	})
}

func TestNotReadyBeforeTheFirstResultAndProbesWaitForIt(t *testing.T) {
	bubble(t, Options{}, func(h *Health) {
		h.Add("db", func(context.Context) error { time.Sleep(time.Second); return nil })
		if h.Ready() {
			t.Error("ready before the check has passed")
		}
		start := time.Now()
		wantProbe(t, h, "/readyz", 200, `{"checks":{"db":"pass"},"status":"pass"}`)
		if got := time.Since(start); got != time.Second {
			t.Errorf("the probe took %v, want 1s", got)
		}
	})
}

func TestCheckRunsOncePerIntervalHoweverManyProbesAsk(t *testing.T) {
	bubble(t, Options{}, func(h *Health) {
		runs := 0
		h.Add("db", func(context.Context) error { runs++; return nil }, Every(time.Second))
		for range 10_000 {
			probe(h, http.MethodGet, "/readyz")
		}
		time.Sleep(9500 * time.Millisecond)
		synctest.Wait()
		if runs != 10 {
			t.Errorf("%d runs in 9.5 s, want 10", runs)
		}
	})
}

func TestHysteresis(t *testing.T) {
	bubble(t, Options{}, func(h *Health) {
		var fail atomic.Bool
		h.Add("db", func(context.Context) error {
			if fail.Load() {
				return errSecret
			}
			return nil
		}, Every(time.Second), FailAfter(3))
		ready := func(after time.Duration, want bool, why string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if h.Ready() != want {
				t.Errorf("ready = %v %s", !want, why)
			}
		}
		ready(500*time.Millisecond, true, "after the first pass")
		fail.Store(true)
		ready(2*time.Second, true, "after two failures")
		fail.Store(false)
		ready(time.Second, true, "after a success in between")
		fail.Store(true)
		ready(2*time.Second, true, "after two failures again")
		ready(time.Second, false, "after three failures in a row")
		fail.Store(false)
		ready(time.Second, true, "after a success")
	})
}

func TestFailAfterSaysHowManyFailuresInARow(t *testing.T) {
	for n, want := range map[int]int{1: 1, 5: 5, 0: 3, -1: 3} {
		bubble(t, Options{}, func(h *Health) {
			runs := 0
			h.Add("db", func(context.Context) error {
				if runs++; runs > 1 {
					return errSecret
				}
				return nil
			}, Every(time.Second), FailAfter(n))
			for synctest.Wait(); h.Ready(); synctest.Wait() {
				time.Sleep(time.Second)
			}
			if runs-1 != want {
				t.Errorf("FailAfter(%d): not ready after %d failures, want %d", n, runs-1, want)
			}
		})
	}
}

func TestTimesOfZeroOrLessAreTheDefaults(t *testing.T) {
	for _, d := range []time.Duration{0, -1} {
		bubble(t, Options{}, func(h *Health) {
			var starts []time.Duration
			var limit time.Duration
			begin := time.Now()
			h.Add("db", func(ctx context.Context) error {
				starts = append(starts, time.Since(begin))
				at, _ := ctx.Deadline()
				limit = time.Until(at)
				return nil
			}, Every(d), Timeout(d))
			time.Sleep(15 * time.Second)
			synctest.Wait()
			if limit != 2*time.Second || len(starts) != 2 || starts[1] != 10*time.Second {
				t.Errorf("runs at %v of at most %v, want at 0 and 10s of 2s", starts, limit)
			}
		})
	}
}

func TestTimeoutFailsTheRun(t *testing.T) {
	var got error
	bubble(t, Options{OnChange: func(_ string, _ Status, err error) { got = err }}, func(h *Health) {
		h.Add("db", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, Timeout(time.Second))
		time.Sleep(time.Second + 1)
		synctest.Wait()
		if h.Ready() || !errors.Is(got, context.DeadlineExceeded) {
			t.Errorf("ready %v, error %v; want false, deadline exceeded", h.Ready(), got)
		}
	})
}

func TestCheckThatIgnoresItsContextDoesNotPileUp(t *testing.T) {
	bubble(t, Options{}, func(h *Health) {
		release := make(chan struct{})
		running, most := 0, 0
		var mu sync.Mutex
		h.Add("hung", func(context.Context) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-release
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		}, Every(time.Second), Timeout(100*time.Millisecond))
		synctest.Wait()
		before := goroutines(t)
		time.Sleep(100 * time.Second)
		synctest.Wait()
		if most != 1 || h.Ready() {
			t.Errorf("%d at once, ready %v; want 1, false", most, h.Ready())
		}
		if n := goroutines(t); n != before {
			t.Errorf("%d goroutines, %d before", n, before)
		}
		close(release)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if !h.Ready() {
			t.Error("not ready once the check comes back")
		}
	})
}

func TestPanicOfACheckIsItsFailure(t *testing.T) {
	bubble(t, Options{OnChange: func(string, Status, error) { panic("hook") }}, func(h *Health) {
		runs := 0
		h.Add("panics", func(context.Context) error { runs++; panic("boom") }, Every(time.Second))
		h.Add("exits", func(context.Context) error { runtime.Goexit(); return nil }, Every(time.Second))
		h.Add("nil", nil)
		wantProbe(t, h, "/readyz", 503, `{"checks":{"exits":"fail","nil":"fail","panics":"fail"},"status":"fail"}`)
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		if runs != 3 {
			t.Errorf("%d runs, want 3: it goes on", runs)
		}
	})
}

func TestOnChangeHearsChangesOnly(t *testing.T) {
	var heard []string
	o := Options{OnChange: func(name string, s Status, err error) {
		heard = append(heard, name+" "+string(s))
		if (err != nil) != (s == Fail) {
			heard = append(heard, "wrong error")
		}
	}}
	bubble(t, o, func(h *Health) {
		n := 0
		h.Add("db", func(context.Context) error {
			if n++; n > 2 && n < 7 {
				return errSecret
			}
			return nil
		}, Every(time.Second), FailAfter(2))
		time.Sleep(10*time.Second + 1)
		synctest.Wait()
		if got := strings.Join(heard, ", "); got != "db pass, db fail, db pass" {
			t.Errorf("heard %q", got)
		}
	})
}

func TestSecondCheckOfANameTakesThePlaceOfTheFirst(t *testing.T) {
	bubble(t, Options{}, func(h *Health) {
		h.Add("db", func(ctx context.Context) error { <-ctx.Done(); return errSecret })
		h.Add("db", func(context.Context) error { return nil })
		wantProbe(t, h, "/readyz", 200, `{"checks":{"db":"pass"},"status":"pass"}`)
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine is left
		h := New(Options{OnChange: func(check string, s Status, err error) {
			if check != "cache" {
				t.Errorf("OnChange is told that %s is %s, %v, which Close has ended", check, s, err)
			}
		}})
		h.Add("db", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		h.Add("cache", func(context.Context) error { return nil })
		synctest.Wait()
		for range 2 {
			if err := h.Close(); err != nil || h.Ready() {
				t.Errorf("Close = %v, ready %v; want nil, false", err, h.Ready())
			}
		}
		h.Add("late", func(context.Context) error { t.Error("ran after Close"); return nil })
	})
}
