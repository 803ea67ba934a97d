package idempotency

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/refusal"
	"github.com/highball-go/highball/internal/rig"
)

func init() { gin.SetMode(gin.TestMode) }

func connect(tb testing.TB, addr string) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// patient are options of a test that shares its processors with others.
var patient = Options{Timeout: 5 * time.Second, Lease: 5 * time.Second}

// engine runs handler at /run, behind Recovery.
func engine(s *Store, handler ...gin.HandlerFunc) *gin.Engine {
	r := gin.New()
	r.Use(gin.CustomRecoveryWithWriter(io.Discard, func(c *gin.Context, _ any) { c.AbortWithStatus(500) }))
	r.Any("/run", append([]gin.HandlerFunc{Middleware(s)}, handler...)...)
	return r
}

func send(h http.Handler, method, target, key, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func wantProblem(t *testing.T, w *httptest.ResponseRecorder, status int, retryAfter string) {
	t.Helper()
	if w.Code != status || w.Header().Get("Retry-After") != retryAfter || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d, Retry-After %q, %s; want a problem %d, %q", w.Code, w.Header().Get("Retry-After"), w.Body, status, retryAfter)
	}
}

func TestARepeatGetsTheFirstResponse(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	runs := 0
	h := engine(s, func(c *gin.Context) {
		runs++
		body, _ := io.ReadAll(c.Request.Body)
		c.Header("Location", "/orders/7")
		c.Header("X-Request-Id", fmt.Sprint(runs))
		c.SetCookie("a", "b", 1, "/", "", true, true)
		c.String(http.StatusCreated, "run %d of %s by %s", runs, body, Key(c))
		c.Header("X-Late", "1")
	})
	first := send(h, "POST", "/run?x=1", `"k"`, "hello")
	if first.Code != 201 || first.Body.String() != "run 1 of hello by k" || first.Header().Get("Idempotency-Replayed") != "" || first.Header().Get("Set-Cookie") == "" {
		t.Fatalf("the first call: %d %v %s", first.Code, first.Header(), first.Body)
	}
	for range 3 {
		w := send(h, "POST", "/run?x=1", "k", "hello")
		if w.Code != 201 || w.Body.String() != first.Body.String() || w.Header().Get("Idempotency-Replayed") != "true" ||
			w.Header().Get("Location") != "/orders/7" || w.Header().Get("Content-Type") != first.Header().Get("Content-Type") {
			t.Errorf("the repeat: %d %v %s", w.Code, w.Header(), w.Body)
		}
		if w.Header().Get("Set-Cookie") != "" || w.Header().Get("X-Request-Id") != "" || w.Header().Get("X-Late") != "" {
			t.Errorf("the repeat has headers of the first call: %v", w.Header())
		}
	}
	for _, c := range [][3]string{{"PATCH", "/run?x=1", "hello"}, {"POST", "/run?x=2", "hello"}, {"POST", "/run?x=1", "hullo"}} {
		wantProblem(t, send(h, c[0], c[1], "k", c[2]), 422, "")
	}
	if runs != 1 {
		t.Errorf("%d runs, want 1", runs)
	}
	send(h, "PUT", "/run?x=1", "k", "hello")
	send(h, "POST", "/run?x=1", "", "hello")
	if runs != 3 {
		t.Error("another method, or no key, did not run")
	}
}

func TestAResponseWithoutBodyIsRepeated(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	h := engine(s, func(c *gin.Context) { c.Header("Etag", `"1"`); c.Status(http.StatusNoContent) })
	for _, replayed := range []string{"", "true"} {
		w := send(h, "PATCH", "/run", "k", "")
		if w.Code != 204 || w.Header().Get("Etag") != `"1"` || w.Header().Get("Idempotency-Replayed") != replayed {
			t.Errorf("%d %v", w.Code, w.Header())
		}
	}
}

func TestScopesShareNoKey(t *testing.T) {
	o := patient
	o.Scope = func(c *gin.Context) string { return c.GetHeader("X-User") }
	s := New(connect(t, rig.Redis(t).Addr), o)
	h := engine(s, func(c *gin.Context) { c.String(200, c.GetHeader("X-User")) })
	for range 2 {
		for _, user := range []string{"ann", "bob"} {
			r := httptest.NewRequest(http.MethodPost, "/run", nil)
			r.Header.Set("Idempotency-Key", "k")
			r.Header.Set("X-User", user)
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Body.String() != user {
				t.Errorf("%s got the answer of %s", user, w.Body)
			}
		}
	}
}

func TestABadKeyIs400(t *testing.T) {
	o := patient
	o.Required = true
	h := engine(New(nil, o), func(*gin.Context) { t.Error("it ran") })
	wantProblem(t, send(h, "POST", "/run", "", ""), 400, "")
	wantProblem(t, send(h, "POST", "/run", strings.Repeat("x", 256), ""), 400, "")
	r := httptest.NewRequest(http.MethodPost, "/run", nil)
	r.Header["Idempotency-Key"] = []string{"a", "b"}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	wantProblem(t, w, 400, "")
}

func TestALargeBodyIs413(t *testing.T) {
	o := patient
	o.MaxBody = 8
	var runs int
	h := engine(New(connect(t, rig.Redis(t).Addr), o), func(c *gin.Context) { runs++; c.Status(200) })
	for _, declared := range []int64{9, -1} {
		r := httptest.NewRequest(http.MethodPost, "/run", strings.NewReader("123456789"))
		r.ContentLength = declared
		r.Header.Set("Idempotency-Key", "k")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		wantProblem(t, w, 413, "")
	}
	if w := send(h, "POST", "/run", "k", "12345678"); w.Code != 200 || runs != 1 {
		t.Errorf("%d, %d runs", w.Code, runs)
	}
	r := httptest.NewRequest(http.MethodPost, "/run", io.MultiReader(strings.NewReader("1"), brokenReader{}))
	r.Header.Set("Idempotency-Key", "l")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	wantProblem(t, w, 400, "")
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestWhatSettlesARequestIsKept runs each handler twice with one key, and asks how often it ran.
func TestWhatSettlesARequestIsKept(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	status := func(code int) gin.HandlerFunc { return func(c *gin.Context) { c.Status(code) } }
	for name, c := range map[string]struct {
		runs    int
		handler gin.HandlerFunc
	}{
		"200":     {1, status(200)},
		"303":     {1, status(303)},
		"400":     {1, status(400)},
		"409":     {1, status(409)},
		"401":     {2, status(401)},
		"429":     {2, status(429)},
		"499":     {2, status(499)},
		"500":     {2, status(500)},
		"503":     {2, status(503)},
		"panic":   {2, func(c *gin.Context) { c.String(200, "half"); panic("x") }},
		"abort":   {2, func(*gin.Context) { panic(http.ErrAbortHandler) }},
		"refused": {2, func(c *gin.Context) { refusal.Answer(c, "breaker", refusal.Problem{Status: 403}) }},
		"gone":    {2, func(c *gin.Context) { refusal.MarkEnd(c, refusal.EndGone) }},
		"short":   {2, func(c *gin.Context) { c.Header("Content-Length", "9"); c.String(200, "half") }},

		"a 500 to keep":  {1, func(c *gin.Context) { Keep(c, true); c.Status(500) }},
		"a 200 to free":  {2, func(c *gin.Context) { Keep(c, false); c.Status(200) }},
		"a 200 for good": {1, func(c *gin.Context) { Keep(c, false); Keep(c, true); c.Status(200) }},
	} {
		var runs int
		h := engine(s, func(g *gin.Context) { runs++; c.handler(g) })
		for range 2 {
			send(h, "POST", "/run", `"key of `+name+`"`, "")
		}
		if runs != c.runs {
			t.Errorf("%s: %d runs, want %d", name, runs, c.runs)
		}
	}
}

func TestLargeAndStreamedResponsesPassAndAre409OnRepeat(t *testing.T) {
	o := patient
	o.MaxBytes = 100
	s := New(connect(t, rig.Redis(t).Addr), o)
	large := strings.Repeat("x", 101)
	for name, c := range map[string]struct {
		body    string
		handler gin.HandlerFunc
	}{
		"large":         {large, func(c *gin.Context) { c.String(200, large) }},
		"large headers": {"", func(c *gin.Context) { c.Header("X-Large", large) }},
		"in pieces":     {large + large, func(c *gin.Context) { _, _ = c.Writer.WriteString(large); _, _ = c.Writer.WriteString(large) }},
		"flushed":       {"ab", func(c *gin.Context) { c.String(200, "a"); c.Writer.Flush(); c.String(200, "b") }},
		"controlled": {"a", func(c *gin.Context) {
			c.String(200, "a")
			if err := http.NewResponseController(c.Writer).Flush(); err != nil {
				t.Error(err)
			}
		}},
		"events": {"data: 1\n\n", func(c *gin.Context) { c.Data(200, "text/event-stream", []byte("data: 1\n\n")) }},
		"bypassed": {"a", func(c *gin.Context) {
			_, _ = c.Writer.(interface{ Unwrap() http.ResponseWriter }).Unwrap().Write([]byte("a"))
		}},
	} {
		h := engine(s, c.handler)
		if w := send(h, "POST", "/run", `"`+name+`"`, ""); w.Code != 200 || w.Body.String() != c.body {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		wantProblem(t, send(h, "POST", "/run", `"`+name+`"`, ""), 409, "")
	}
	h := engine(s, func(c *gin.Context) {
		c.Header("Content-Length", "1")
		c.String(200, "a")
		c.Writer.Flush()
	})
	for range 2 {
		if w := send(h, "POST", "/run", "of-known-length", ""); w.Code != 200 || w.Body.String() != "a" {
			t.Errorf("flushed, but of known length: %d %s", w.Code, w.Body)
		}
	}
}

func TestAConnectionTakenOverIs409OnRepeat(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	server := httptest.NewServer(engine(s, func(c *gin.Context) {
		conn, rw, err := c.Writer.Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
		_ = rw.Flush()
	}))
	defer server.Close()
	for i, want := range []string{"200 OK", "409 Conflict"} {
		var got string
		rig.Poll(t, 10*time.Second, func() error { // the connection is there before the handler has ended
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				return err
			}
			defer conn.Close()
			fmt.Fprint(conn, "POST /run HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			got = resp.Status
			return nil
		})
		if got != want {
			t.Errorf("answer %d is %s, want %s", i, got, want)
		}
	}
}

func TestAThousandAtOnceRunOnce(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	var runs, replays, conflicts atomic.Int32
	enough := make(chan struct{})
	h := engine(s, func(c *gin.Context) {
		runs.Add(1)
		<-enough
		c.String(201, "done")
	})
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() {
			switch w := send(h, "POST", "/run", "k", "body"); {
			case w.Code == 409 && w.Header().Get("Retry-After") == "1":
				if conflicts.Add(1) == 500 {
					close(enough)
				}
			case w.Code == 201 && w.Body.String() == "done":
				replays.Add(1)
			default:
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	all.Wait()
	if runs.Load() != 1 || replays.Load() < 1 || replays.Load()+conflicts.Load() != 1000 {
		t.Errorf("%d runs, %d got its response, %d were told to wait", runs.Load(), replays.Load(), conflicts.Load())
	}
}

func TestARepeatWaitsForAShortFirstCall(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	began, end := make(chan struct{}), make(chan struct{})
	h := engine(s, func(c *gin.Context) { close(began); <-end; c.String(200, "done") })
	var first sync.WaitGroup
	first.Go(func() { send(h, "POST", "/run", "k", "") })
	<-began
	repeat := make(chan *httptest.ResponseRecorder)
	go func() { repeat <- send(h, "POST", "/run", "k", "") }()
	rig.Poll(t, 5*time.Second, func() error {
		if s.waiting.Load() == 0 {
			return errors.New("it does not wait")
		}
		return nil
	})
	wantProblem(t, send(h, "POST", "/run", "k", "another"), 422, "")
	close(end)
	if w := <-repeat; w.Code != 200 || w.Header().Get("Idempotency-Replayed") != "true" {
		t.Errorf("the repeat: %d %s", w.Code, w.Body)
	}
	first.Wait()
	if s.waiting.Load() != 0 {
		t.Error("somebody still waits")
	}
}

func TestAClientThatGoesAwayGetsItsAnswerWhenItIsBack(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	h := engine(s, func(c *gin.Context) {
		runs++
		cancel()
		<-c.Request.Context().Done()
		if errors.Is(context.Cause(c.Request.Context()), ErrLost) || Confirm(c) != nil {
			t.Error("the key is lost")
		}
		c.String(201, "done")
	})
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/run", nil)
	r.Header.Set("Idempotency-Key", "k")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if w := send(h, "POST", "/run", "k", ""); w.Code != 201 || runs != 1 {
		t.Errorf("%d, %d runs", w.Code, runs)
	}
}

func TestAClientThatIsGoneAlreadyIsNoReasonToRunWithoutALock(t *testing.T) {
	o := patient
	o.FailOpen = true
	s := New(connect(t, rig.Redis(t).Addr), o)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	runs := 0
	h := engine(s, func(c *gin.Context) { runs++; c.Status(200) })
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/run", nil)
	r.Header.Set("Idempotency-Key", "k")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if w := send(h, "POST", "/run", "k", ""); w.Header().Get("Idempotency-Replayed") != "true" || runs != 1 {
		t.Errorf("%d runs", runs)
	}
}

func TestTheMiddlewareTwiceIsOne(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	r := gin.New()
	r.Use(Middleware(s))
	r.POST("/run", Middleware(s), func(c *gin.Context) { c.String(200, "once") })
	r.POST("/again", func(c *gin.Context) { c.Request.URL.Path = "/run"; r.HandleContext(c) })
	for _, path := range []string{"/run", "/again"} {
		if w := send(r, "POST", path, `"`+path+`"`, ""); w.Code != 200 || w.Body.String() != "once" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestWhatStandsInFrontSeesItsOwnRequest(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	r := gin.New()
	r.Use(func(c *gin.Context) {
		before, writer := c.Request, c.Writer
		c.Next()
		if c.Request != before || c.Writer != writer || c.Request.Context().Err() != nil {
			t.Error("it is another request's")
		}
	}, Middleware(s))
	r.POST("/run", func(c *gin.Context) { c.Status(200) })
	send(r, "POST", "/run", "k", "body")
}

func TestTheFilesOfAFormAreTheServersToRemove(t *testing.T) {
	s := New(connect(t, rig.Redis(t).Addr), patient)
	r := gin.New()
	var form *multipart.Form
	r.Use(func(c *gin.Context) {
		c.Next()
		if form == nil || c.Request.MultipartForm != form { // net/http removes those of the request that it made
			t.Error("the form is lost")
		}
	}, Middleware(s))
	r.POST("/run", func(c *gin.Context) {
		var err error
		if form, err = c.MultipartForm(); err != nil || form.Value["a"][0] != "b" {
			t.Errorf("%v, %v", form, err)
		}
	})
	var body strings.Builder
	w := multipart.NewWriter(&body)
	_ = w.WriteField("a", "b")
	_ = w.Close()
	req := httptest.NewRequest(http.MethodPost, "/run", strings.NewReader(body.String()))
	req.Header.Set("Content-Type", w.FormDataContentType())
	req.Header.Set("Idempotency-Key", "k")
	r.ServeHTTP(httptest.NewRecorder(), req)
}
