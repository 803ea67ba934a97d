package degrade

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/memnet"
	"github.com/highball-go/highball/internal/refusal"
)

// engine has one route, GET /, behind d.
func engine(d *Controller, h gin.HandlerFunc, opts ...Option) *gin.Engine {
	gin.SetMode(gin.TestMode)
	r := gin.New()
	r.Use(Middleware(d, opts...))
	r.GET("/", h)
	return r
}

func get(ctx context.Context, h http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
	return w
}

// wantCounts compares all that d has counted.
func wantCounts(t *testing.T, what string, d *Controller, want sample) {
	t.Helper()
	if got := d.counters.read(0).sample; got != want {
		t.Errorf("%s: counted %+v, want %+v", what, got, want)
	}
}

func TestTheStatusSaysWhetherARequestFailed(t *testing.T) {
	for status, want := range map[int]sample{
		200: {1, 0, 1, 1e9}, 304: {1, 0, 1, 1e9}, 404: {1, 0, 1, 1e9}, 429: {1, 0, 1, 1e9},
		499: {}, 500: {1, 1, 1, 1e9}, 503: {1, 1, 1, 1e9},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := start(t, Options{})
			get(t.Context(), engine(d, func(c *gin.Context) {
				time.Sleep(time.Second)
				c.Status(status)
			}))
			wantCounts(t, http.StatusText(status), d, want)
		})
	}
}

func TestOwnRefusalsAndClientsGoneAreNotObserved(t *testing.T) {
	d := start(t, Options{})
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		get(t.Context(), engine(d, func(c *gin.Context) {
			refusal.Answer(c, "ratelimit", refusal.Problem{Status: status})
		}))
	}
	get(t.Context(), engine(d, func(c *gin.Context) { refusal.MarkEnd(c, refusal.EndGone) }))
	ctx, cancel := context.WithCancel(t.Context())
	get(ctx, engine(d, func(c *gin.Context) {
		cancel()
		c.Status(http.StatusInternalServerError)
	}))
	wantCounts(t, "refused and gone", d, sample{})
}

func TestAnInnerContextThatEndedIsNoClientGone(t *testing.T) {
	d := start(t, Options{})
	get(t.Context(), engine(d, func(c *gin.Context) {
		ctx, cancel := context.WithCancel(c.Request.Context())
		cancel()
		c.Request = c.Request.WithContext(ctx)
		c.Status(http.StatusInternalServerError)
	}))
	if got := d.counters.failed.Load(); got != 1 {
		t.Errorf("failed = %d, want 1", got)
	}
}

func TestAPanicIsAFailureAndIsPassedOn(t *testing.T) {
	d := start(t, Options{})
	defer func() {
		if v := recover(); v != "boom" {
			t.Errorf("recovered %v, want boom", v)
		}
		if failed, in := d.counters.failed.Load(), d.inFlight.Load(); failed != 1 || in != 0 {
			t.Errorf("failed %d, in flight %d; want 1, 0", failed, in)
		}
	}()
	get(t.Context(), engine(d, func(*gin.Context) { panic("boom") }))
}

func TestADegradedServiceAnswers503AndSaysWhenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t, Options{RecoverFor: 7 * time.Second})
		by, served := "", 0
		gin.SetMode(gin.TestMode)
		r := gin.New()
		r.Use(func(c *gin.Context) { c.Next(); by = refusal.By(c) }, Middleware(d))
		r.GET("/", func(*gin.Context) { served++ })

		d.Force(true, 0)
		w := get(t.Context(), r)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "7" || w.Header().Get("X-Degraded") != "true" ||
			w.Header().Get("Content-Type") != "application/problem+json" || by != "degrade" || served != 0 {
			t.Errorf("answer %d %v, marked by %q, served %d", w.Code, w.Header(), by, served)
		}
		d.Force(true, time.Minute)
		wait(10 * time.Second)
		if got := get(t.Context(), r).Header().Get("Retry-After"); got != "50" {
			t.Errorf("forced for another 50 s: Retry-After = %q", got)
		}
		wantCounts(t, "refused", d, sample{})

		d.Auto()
		if w := get(t.Context(), r); w.Code != http.StatusOK || len(w.Header()) != 0 || served != 1 || by != "" {
			t.Errorf("well: %d %v, marked by %q, served %d", w.Code, w.Header(), by, served)
		}
	})
}

func TestTheFallbackAnswersAndIsNotCounted(t *testing.T) {
	d := start(t, Options{})
	d.Force(true, 0)
	served, by := 0, ""
	w := get(t.Context(), engine(d, func(*gin.Context) { served++ }, WithFallback(func(c *gin.Context) {
		c.Next()
		by = refusal.By(c)
		c.String(http.StatusOK, "yesterday's")
	})))
	if w.Code != http.StatusOK || w.Body.String() != "yesterday's" || w.Header().Get("X-Degraded") != "true" || served != 0 || by != "degrade" {
		t.Errorf("answer %d %q %v, marked by %q, served %d", w.Code, w.Body, w.Header(), by, served)
	}
	wantCounts(t, "fallback", d, sample{})
}

func TestEssentialRequestsAreUntouchedAndObserved(t *testing.T) {
	d := start(t, Options{})
	d.Force(true, 0)
	w := get(t.Context(), engine(d, func(c *gin.Context) { c.String(http.StatusInternalServerError, "as it is") },
		WithEssential(func(c *gin.Context) bool { return c.FullPath() == "/" }),
		WithFallback(func(*gin.Context) { t.Error("the fallback ran") })))
	if w.Code != http.StatusInternalServerError || w.Body.String() != "as it is" || w.Header().Get("X-Degraded") != "" {
		t.Errorf("answer %d %q %v", w.Code, w.Body, w.Header())
	}
	if got := d.counters.failed.Load(); got != 1 {
		t.Errorf("failed = %d, want 1", got)
	}
}

func TestAStreamCountsWithoutItsDuration(t *testing.T) {
	d := start(t, Options{})
	get(t.Context(), engine(d, func(c *gin.Context) { c.Data(http.StatusOK, "text/event-stream", []byte("data: 1\n\n")) }))
	wantCounts(t, "event stream", d, sample{requests: 1})
}

func TestAHijackedConnectionCountsWithoutItsDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t, Options{})
		server := memnet.Serve(t, engine(d, func(c *gin.Context) {
			conn, rw, err := c.Writer.Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			talk(conn, rw)
		}))
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/", nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := server.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("upgrade: %v, %v", resp, err)
		}
		defer resp.Body.Close()
		wait(time.Minute)
		wantCounts(t, "hijacked", d, sample{requests: 1})
	})
}

// talk answers 101 and hangs up after a minute.
func talk(conn net.Conn, rw *bufio.ReadWriter) {
	defer conn.Close()
	rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	rw.Flush()
	time.Sleep(time.Minute)
}

func TestAnUpgradeThatIsNotTakenIsTimed(t *testing.T) {
	d := start(t, Options{})
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	req.Header.Set("Upgrade", "h2c")
	engine(d, func(c *gin.Context) { c.Status(http.StatusOK) }).ServeHTTP(httptest.NewRecorder(), req)
	if got := d.counters.succeeded.Load(); got != 1 {
		t.Errorf("timed = %d, want 1", got)
	}
}

func TestInFlightCountsRequestsInTheMiddleware(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t, Options{Rules: []Rule{InFlight(2, 60, 100)}})
		release := make(chan struct{})
		h := engine(d, func(*gin.Context) { <-release })
		done := make(chan struct{})
		for n := 1; n <= 3; n++ {
			go func() { get(t.Context(), h); done <- struct{}{} }()
			wait(pace)
			_, why := d.Score()
			if why[0].Value != float64(n) || why[0].Fired != (n > 2) || d.Degraded() != (n > 2) {
				t.Errorf("%d in flight: %+v", n, why[0])
			}
		}
		close(release)
		for range 3 {
			<-done
		}
		wait(pace)
		if _, why := d.Score(); why[0].Value != 0 || why[0].Fired {
			t.Errorf("none in flight: %+v", why[0])
		}
	})
}

func TestAServiceThatOnlyRefusesFindsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := true
		d := start(t, Options{Rules: []Rule{Latency(500*time.Millisecond, 5*time.Second, 60, 100)}, MinRequests: 2})
		h := engine(d, func(*gin.Context) {
			if slow {
				time.Sleep(time.Second)
			}
		})
		for range 20 {
			get(t.Context(), h)
		}
		if !d.Degraded() {
			t.Fatal("a second per request does not degrade")
		}
		slow = false
		refused := 0
		for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(100 * time.Millisecond) {
			if get(t.Context(), h).Code == http.StatusServiceUnavailable {
				refused++
			}
		}
		if d.Degraded() || refused < 140 || refused > 170 { // the hold of 5 s, and 10 s to recover
			t.Errorf("a minute later: degraded %v, refused %d", d.Degraded(), refused)
		}
	})
}

func TestWhatFindsNoSlotIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, limit := start(t, Options{}), NewConcurrency(ConcurrencyOptions{Initial: 4})
		r := engine(d, func(c *gin.Context) {
			if c.Query("panic") != "" {
				panic("boom")
			}
			time.Sleep(time.Second)
		}, WithConcurrency(limit), WithEssential(func(c *gin.Context) bool { return c.Query("essential") != "" }))
		send := func(query string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			defer func() { _ = recover() }()
			r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?"+query, nil))
			return w
		}
		send("panic=1") // gives its slot back
		for range 4 {
			go send("")
		}
		synctest.Wait()
		if w := send(""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" || w.Header().Get("X-Degraded") != "true" {
			t.Errorf("the fifth of four: %d %v", w.Code, w.Header())
		}
		if w := send("essential=1"); w.Code != http.StatusOK {
			t.Errorf("an essential one: %d", w.Code)
		}
		wait(time.Second)
		if n := limit.InFlight(); n != 0 {
			t.Errorf("%d in flight when all have ended", n)
		}
		if w := send(""); w.Code != http.StatusOK {
			t.Errorf("when all have ended: %d", w.Code)
		}
		wantCounts(t, "all", d, sample{requests: 7, failed: 1, timed: 7, nanos: uint64(6 * time.Second)})
	})
}
