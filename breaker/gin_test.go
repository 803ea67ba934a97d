package breaker

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

func init() { gin.SetMode(gin.TestMode) }

// get asks h for path with ctx, and returns the answer.
func get(ctx context.Context, h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx)
	h.ServeHTTP(w, req)
	return w
}

// guarded is an engine with one route, GET /x/:id, behind g.
func guarded(g Circuits, h gin.HandlerFunc, opts ...Option) *gin.Engine {
	r := gin.New()
	r.Use(Middleware(g, opts...))
	r.GET("/x/:id", h)
	return r
}

func TestTheStatusIsTheOutcome(t *testing.T) {
	for status, want := range map[int][2]uint64{
		200: {1, 0}, 204: {1, 0}, 304: {1, 0}, 400: {1, 0}, 404: {1, 0}, 429: {0, 0}, 499: {0, 0},
		500: {1, 1}, 501: {1, 1}, 503: {1, 1}, 599: {1, 1},
	} {
		g := NewGroup(Options{})
		get(t.Context(), guarded(g, func(c *gin.Context) { c.Status(status) }), "/x/1")
		wantCounts(t, g.Get("GET /x/:id"), want[0], want[1], 0)
	}
}

func TestAnOpenCircuitAnswers503AndSaysWhenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(Options{})
		served, rejected := 0, 0
		r := gin.New()
		r.Use(func(c *gin.Context) {
			c.Next()
			if Rejected(c) {
				rejected++
			}
		}, Middleware(g))
		r.GET("/x/:id", func(c *gin.Context) {
			served++
			c.Status(http.StatusInternalServerError)
		})
		r.GET("/y", func(c *gin.Context) { c.Status(http.StatusNoContent) })
		for range 20 {
			get(t.Context(), r, "/x/1")
		}
		w := get(t.Context(), r, "/x/2")
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "5" || served != 20 || rejected != 1 {
			t.Errorf("%d, Retry-After %q, served %d, rejected %d; want 503, 5, 20, 1",
				w.Code, w.Header().Get("Retry-After"), served, rejected)
		}
		if got := w.Header().Get("Content-Type"); got != "application/problem+json" ||
			!strings.Contains(w.Body.String(), `"type":"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"`) {
			t.Errorf("answer = %s %s", got, w.Body)
		}
		if w := get(t.Context(), r, "/y"); w.Code != http.StatusNoContent {
			t.Errorf("another route: %d, want 204", w.Code)
		}
	})
}

func TestWhatMatchesNoRouteSharesACircuit(t *testing.T) {
	g := NewGroup(Options{})
	r := guarded(g, func(*gin.Context) {})
	for _, path := range []string{"/a", "/b", "/c"} {
		get(t.Context(), r, path)
	}
	wantCounts(t, g.Get("unmatched"), 3, 0, 0)
	if n := len(g.Snapshots()); n != 1 {
		t.Errorf("%d circuits, want 1", n)
	}
}

func TestUncommonMethodsShareANamePerRoute(t *testing.T) {
	r := newRoutes()
	for method, want := range map[string]string{"GET": "GET /a", "PROPFIND": "OTHER /a", "X": "OTHER /a"} {
		if got := r.add(route{method, "/a"}); got != want {
			t.Errorf("name = %q, want %q", got, want)
		}
	}
	if n := len(*r.names.Load()); n != 1 {
		t.Errorf("%d names kept, want 1", n)
	}
}

func TestTheFallbackAnswersForAnOpenCircuit(t *testing.T) {
	g := NewGroup(Options{})
	g.Get("GET /x/:id").ForceOpen()
	outer := NewGroup(Options{})
	var rejected bool
	r := gin.New()
	r.Use(func(c *gin.Context) {
		c.Next()
		rejected = Rejected(c)
	}, Middleware(outer), Middleware(g, WithFallback(func(c *gin.Context) {
		c.Next() // runs nothing
		c.String(http.StatusInternalServerError, "default")
	})))
	r.GET("/x/:id", func(*gin.Context) { t.Error("the handler ran") })
	if w := get(t.Context(), r, "/x/1"); w.Body.String() != "default" || !rejected {
		t.Errorf("answer = %q, Rejected %v; want default, true", w.Body, rejected)
	}
	wantCounts(t, outer.Get("GET /x/:id"), 0, 0, 0)
}

func TestARefusalOfHighballIsNeutral(t *testing.T) {
	g := NewGroup(Options{})
	r := guarded(g, func(c *gin.Context) {
		refusal.Answer(c, "balancer", refusal.Problem{Status: http.StatusServiceUnavailable})
	}, WithClassify(func(*gin.Context) Outcome { return Failure }))
	get(t.Context(), r, "/x/1")
	wantCounts(t, g.Get("GET /x/:id"), 0, 0, 0)
}

func TestAClientThatIsGoneIsNeutral(t *testing.T) {
	g := NewGroup(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	get(ctx, guarded(g, func(c *gin.Context) {
		cancel()
		c.Status(http.StatusInternalServerError)
	}), "/x/1")
	wantCounts(t, g.Get("GET /x/:id"), 0, 0, 0)
}

func TestOtherKeysAndClassification(t *testing.T) {
	g := NewGroup(Options{})
	r := guarded(g, func(c *gin.Context) { c.Status(http.StatusNotFound) },
		WithKey(func(c *gin.Context) string { return c.Param("id") }),
		WithClassify(func(c *gin.Context) Outcome {
			if c.Writer.Status() == http.StatusNotFound {
				return Failure
			}
			return Success
		}))
	get(t.Context(), r, "/x/ann")
	wantCounts(t, g.Get("ann"), 1, 1, 0)
}

func TestOptionsThatAreNilAreTheDefaults(t *testing.T) {
	g := NewGroup(Options{RequestVolumeThreshold: 1})
	r := guarded(g, func(c *gin.Context) { c.Status(http.StatusBadGateway) }, WithKey(nil), WithClassify(nil), WithFallback(nil))
	for _, want := range []int{http.StatusBadGateway, http.StatusServiceUnavailable} {
		if w := get(t.Context(), r, "/x/1"); w.Code != want {
			t.Errorf("status %d, want %d", w.Code, want)
		}
	}
	wantCounts(t, g.Get("GET /x/:id"), 1, 1, 0)
}

func TestAPanicOfTheHandlerIsAFailureAndPassedOn(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name        string
		ctx         context.Context
		value       any
		total, errs uint64
	}{
		{"panic", t.Context(), "boom", 1, 1},
		{"panic with the client gone", gone, "boom", 1, 1},
		{"an error whose Unwrap panics", t.Context(), (*net.OpError)(nil), 1, 1},
		{"abort", t.Context(), http.ErrAbortHandler, 1, 1},
		{"abort with the client gone", gone, http.ErrAbortHandler, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := NewGroup(Options{Timeout: time.Minute})
			r := guarded(g, func(*gin.Context) { panic(tt.value) })
			func() {
				defer func() {
					if v := recover(); v != tt.value {
						t.Errorf("recovered %v, want %v", v, tt.value)
					}
				}()
				get(tt.ctx, r, "/x/1")
			}()
			wantCounts(t, g.Get("GET /x/:id"), tt.total, tt.errs, 0)
		})
	}
}

func TestAPanicOfTheClassificationIsAFailureOfTheCall(t *testing.T) {
	for _, kind := range []string{"text/plain", "text/event-stream"} {
		g := NewGroup(Options{})
		r := guarded(g, func(c *gin.Context) { c.Data(http.StatusOK, kind, []byte("x")) },
			WithClassify(func(*gin.Context) Outcome { panic("hook") }))
		for _, accept := range []string{"*/*", "text/event-stream"} {
			func() {
				defer func() {
					if v := recover(); v != "hook" {
						t.Errorf("recovered %v, want the hook's panic", v)
					}
				}()
				req := httptest.NewRequest(http.MethodGet, "/x/1", nil)
				req.Header.Set("Accept", accept)
				r.ServeHTTP(httptest.NewRecorder(), req)
			}()
		}
		wantCounts(t, g.Get("GET /x/:id"), 2, 2, 0)
	}
}

func TestGoexitOfTheHandlerIsAFailure(t *testing.T) {
	g := NewGroup(Options{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		get(t.Context(), guarded(g, func(*gin.Context) { runtime.Goexit() }), "/x/1")
		t.Error("Goexit was not passed on")
	}()
	<-done
	wantCounts(t, g.Get("GET /x/:id"), 1, 1, 0)
}

func TestTheTimeoutIsADeadlineOnTheRequestsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(Options{Timeout: time.Second})
		var after error
		r := gin.New()
		r.Use(func(c *gin.Context) {
			c.Next()
			after = c.Request.Context().Err()
		}, Middleware(g))
		r.GET("/x/:id", func(c *gin.Context) {
			if _, ok := c.Request.Context().Deadline(); !ok {
				t.Error("the context has no deadline")
			}
			<-c.Request.Context().Done()
			c.Status(http.StatusOK) // too late
		})
		get(t.Context(), r, "/x/1")
		wantCounts(t, g.Get("GET /x/:id"), 1, 1, 1)
		if after != nil {
			t.Errorf("the outer middleware found a context with %v", after)
		}
	})
}

func TestAHandlerThatRanIntoTheTimeoutIsATimeoutWhateverItAnswered(t *testing.T) {
	for _, status := range []int{200, 404, 429, 499, 500} {
		synctest.Test(t, func(t *testing.T) {
			g := NewGroup(Options{Timeout: time.Second})
			get(t.Context(), guarded(g, func(c *gin.Context) {
				time.Sleep(time.Second + 1)
				c.Status(status)
			}, WithClassify(func(*gin.Context) Outcome { return Neutral })), "/x/1")
			wantCounts(t, g.Get("GET /x/:id"), 1, 1, 1)
		})
	}
}

func TestTheOuterRequestKeepsTheFormThatAHandlerParsed(t *testing.T) {
	g := NewGroup(Options{Timeout: time.Minute})
	req := httptest.NewRequest(http.MethodGet, "/x/1?a=b", nil)
	guarded(g, func(c *gin.Context) { _ = c.Request.ParseForm() }).ServeHTTP(httptest.NewRecorder(), req)
	if req.Form.Get("a") != "b" {
		t.Errorf("Form = %v, want a=b", req.Form)
	}
}

func TestAStreamIsNotTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(Options{SlowCall: time.Second, Timeout: time.Minute})
		get(t.Context(), guarded(g, func(c *gin.Context) {
			c.Header("Content-Type", "text/event-stream")
			time.Sleep(time.Hour)
		}), "/x/1")
		wantCounts(t, g.Get("GET /x/:id"), 1, 0, 0)
		if s := g.Get("GET /x/:id").Snapshot(); s.Slow != 0 {
			t.Errorf("Slow = %d, want 0", s.Slow)
		}
	})
}

// TestAStreamThatWasAskedForIsJudgedWhenItBegins has a circuit that has opened, on a route of streams that last
// for an hour: its probe must not have to end before the next stream is admitted.
func TestAStreamThatWasAskedForIsJudgedWhenItBegins(t *testing.T) {
	for _, how := range []string{"write", "write string", "header", "flush", "hijack"} {
		t.Run(how, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { streams(t, how) }) })
	}
}

func TestWhatAnswersAPanicIsNotTheStreamThatWasToBegin(t *testing.T) {
	g := NewGroup(Options{})
	r := gin.New()
	r.Use(gin.CustomRecoveryWithWriter(io.Discard, func(c *gin.Context, _ any) { c.AbortWithStatus(http.StatusInternalServerError) }), Middleware(g))
	r.GET("/x/:id", func(c *gin.Context) {
		c.Header("Content-Type", "text/event-stream")
		panic("before it began")
	})
	req := httptest.NewRequest(http.MethodGet, "/x/1", nil)
	req.Header.Set("Accept", "text/event-stream")
	r.ServeHTTP(httptest.NewRecorder(), req)
	wantCounts(t, g.Get("GET /x/:id"), 1, 1, 0)
}

func streams(t *testing.T, how string) {
	t.Helper()
	g := NewGroup(Options{MaxConcurrentRequests: 100})
	b := g.Get("GET /x/:id")
	status, judged := http.StatusInternalServerError, 0
	r := guarded(g, func(c *gin.Context) {
		c.Header("Content-Type", "text/event-stream")
		if c.Status(status); status != http.StatusOK {
			return
		}
		switch how {
		case "write":
			_, _ = c.Writer.Write([]byte("data: 1\n\n"))
		case "write string":
			_, _ = c.Writer.WriteString("data: 1\n\n")
		case "header":
			c.Writer.WriteHeaderNow()
		case "flush":
			_ = http.NewResponseController(c.Writer).Flush()
		case "hijack":
			if _, _, err := c.Writer.Hijack(); err != nil {
				t.Error(err)
			}
		}
		if time.Sleep(time.Hour); how != "hijack" {
			panic("too late to matter")
		}
	}, WithClassify(func(c *gin.Context) Outcome {
		judged++
		return byStatus(c)
	}))
	ask := func() {
		defer func() { _ = recover() }()
		req := httptest.NewRequest(http.MethodGet, "/x/1", nil)
		req.Header.Set("Accept", "text/html, text/event-stream")
		if how == "hijack" {
			req.Header = http.Header{"Upgrade": {"websocket"}}
		}
		r.ServeHTTP(&hijackable{ResponseRecorder: httptest.NewRecorder()}, req)
	}
	for range 20 {
		ask()
	}
	wantState(t, b, Open)
	status = http.StatusOK
	time.Sleep(5*time.Second + 1)
	for range 3 {
		go ask()
		synctest.Wait()
		wantState(t, b, Closed)
	}
	if s := b.Snapshot(); s.InFlight != 3 || s.Total != 2 || s.Errors != 0 {
		t.Errorf("InFlight, Total, Errors = %d, %d, %d; want 3, 2, 0", s.InFlight, s.Total, s.Errors)
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	wantCounts(t, b, 0, 0, 0)
	if judged != 23 {
		t.Errorf("%d answers were judged, want each of 23 once", judged)
	}
}

func TestAHijackedConnectionIsNotTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(Options{SlowCall: time.Second, Timeout: 2 * time.Second})
		client, server := net.Pipe()
		req := httptest.NewRequest(http.MethodGet, "/x/1", nil)
		req.Header.Set("Upgrade", "websocket")
		r := gin.New()
		r.Use(func(c *gin.Context) {
			w := c.Writer
			c.Next()
			if c.Writer != w {
				t.Error("the outer middleware does not find its writer again")
			}
		}, Middleware(g))
		r.GET("/x/:id", func(c *gin.Context) {
			conn, _, err := http.NewResponseController(c.Writer).Hijack()
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			conn.Close()
		})
		r.ServeHTTP(&hijackable{ResponseRecorder: httptest.NewRecorder(), conn: server}, req)
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("Read = %v, want EOF", err)
		}
		wantCounts(t, g.Get("GET /x/:id"), 1, 0, 0)
		if s := g.Get("GET /x/:id").Snapshot(); s.Slow != 0 {
			t.Errorf("Slow = %d, want 0", s.Slow)
		}
	})
}

type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.conn, nil, nil }

func TestTooManyAtOnceAnswer503(t *testing.T) {
	g := NewGroup(Options{MaxConcurrentRequests: 1})
	var inner *httptest.ResponseRecorder
	var r *gin.Engine
	r = guarded(g, func(c *gin.Context) { inner = get(t.Context(), r, "/x/2") })
	get(t.Context(), r, "/x/1")
	if inner.Code != http.StatusServiceUnavailable || inner.Header().Get("Retry-After") != "1" {
		t.Errorf("answer = %d, Retry-After %q; want 503, 1", inner.Code, inner.Header().Get("Retry-After"))
	}
	if !strings.Contains(inner.Body.String(), "Too many requests at once") {
		t.Errorf("answer = %s, want the reason", inner.Body)
	}
}

func TestTheMiddlewareDoesNotAllocateOnAHealthyRoute(t *testing.T) {
	guard := Middleware(NewGroup(Options{}))
	r := gin.New()
	r.GET("/x/:id", func(c *gin.Context) {
		// c counts its handlers in an int8: few runs
		if n := testing.AllocsPerRun(50, func() { guard(c) }); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
	})
	get(t.Context(), r, "/x/1")
}
