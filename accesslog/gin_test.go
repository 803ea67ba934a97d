package accesslog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/highball-go/highball/recovery"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.TestMode)
	m.Run()
}

// engine logs to what it returns. The handler of /x/:id is h.
func engine(h gin.HandlerFunc, opts ...Option) (*gin.Engine, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.DebugLevel)
	r := gin.New()
	r.Use(Middleware(zap.New(core), opts...))
	r.Any("/x/:id", h)
	return r, logs
}

// do serves one request, swallows its panic as net/http would, and returns the answer.
func do(r http.Handler, req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }()
		r.ServeHTTP(w, req)
	}()
	return w
}

func get(target string) *http.Request { return httptest.NewRequest(http.MethodGet, target, nil) }

// one is the only line of logs.
func one(t *testing.T, logs *observer.ObservedLogs) (zapcore.Entry, map[string]any) {
	t.Helper()
	all := logs.TakeAll()
	if len(all) != 1 {
		t.Fatalf("%d lines, want 1: %v", len(all), all)
	}
	return all[0].Entry, all[0].ContextMap()
}

func TestLineHasStableKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		l := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), zapcore.AddSync(&buf), zapcore.DebugLevel))
		r := gin.New()
		r.Use(Middleware(l))
		r.POST("/x/:id", func(c *gin.Context) {
			time.Sleep(1500 * time.Millisecond)
			c.String(http.StatusCreated, "hello")
		})
		req := httptest.NewRequest(http.MethodPost, "/x/7?a=1", nil)
		req.Header.Set("User-Agent", "ua/1")
		req.Header.Set("X-Request-Id", "r-1")
		w := do(r, req)
		const want = `{"msg":"request","method":"POST","route":"/x/:id","path":"/x/7","query":"a=1","status":201,"latency":1.5,"size":5,"ip":"192.0.2.1","user_agent":"ua/1","request_id":"r-1"}`
		if got := strings.TrimSpace(buf.String()); got != want {
			t.Errorf("line = %s\nwant   %s", got, want)
		}
		if got := w.Header().Get("X-Request-Id"); got != "r-1" {
			t.Errorf("echoed id = %q, want r-1", got)
		}
	})
}

func TestLevelIsThatOfTheStatus(t *testing.T) {
	for status, want := range map[int]zapcore.Level{
		200: zapcore.InfoLevel, 302: zapcore.InfoLevel, 400: zapcore.WarnLevel, 404: zapcore.WarnLevel,
		500: zapcore.ErrorLevel, 503: zapcore.ErrorLevel,
	} {
		r, logs := engine(func(c *gin.Context) { c.Status(status) })
		do(r, get("/x/1"))
		if e, f := one(t, logs); e.Level != want || f["status"] != int64(status) {
			t.Errorf("%d is %v with status %v, want %v", status, e.Level, f["status"], want)
		}
	}
}

func TestManyErrorsAreOneLine(t *testing.T) {
	r, logs := engine(func(c *gin.Context) {
		_ = c.Error(errors.New("first\nforged\npassword=hunter2"))
		_ = c.Error(&url.Error{Op: "Get", URL: "http://h/?token=hunter2", Err: io.EOF})
		c.Status(http.StatusOK)
	})
	do(r, get("/x/1"))
	e, f := one(t, logs)
	if want := `first\nforged\npassword=***; Get "http://h/?token=***": EOF`; f["error"] != want || e.Level != zapcore.InfoLevel {
		t.Errorf("%v with error %q, want INFO with %q", e.Level, f["error"], want)
	}
}

func TestUnmatchedRouteHasItsLine(t *testing.T) {
	r, logs := engine(func(*gin.Context) {})
	do(r, get("/nowhere"))
	if _, f := one(t, logs); f["route"] != "unmatched" || f["status"] != int64(404) || f["path"] != "/nowhere" {
		t.Errorf("line = %v", f)
	}
}

func TestLineIsWrittenWhateverHappens(t *testing.T) {
	part := func(c *gin.Context) { c.String(http.StatusOK, "half") }
	for name, tt := range map[string]struct {
		h       gin.HandlerFunc
		inner   bool // recovery behind us
		status  int64
		aborted any
	}{
		"panic":                           {func(*gin.Context) { panic("boom") }, false, 500, nil},
		"panic, recovered":                {func(*gin.Context) { panic("boom") }, true, 500, nil},
		"panic after a part":              {func(c *gin.Context) { part(c); panic("boom") }, false, 200, true},
		"panic after a part, recovered":   {func(c *gin.Context) { part(c); panic("boom") }, true, 200, true},
		"abort":                           {func(*gin.Context) { panic(http.ErrAbortHandler) }, true, 500, true},
		"abort after a part":              {func(c *gin.Context) { part(c); panic(http.ErrAbortHandler) }, true, 200, true},
		"abort after a part, no recovery": {func(c *gin.Context) { part(c); panic(http.ErrAbortHandler) }, false, 200, true},
	} {
		core, logs := observer.New(zapcore.DebugLevel)
		r := gin.New()
		r.Use(Middleware(zap.New(core)))
		if tt.inner {
			r.Use(recovery.Middleware(nil))
		}
		r.GET("/x/:id", tt.h)
		do(r, get("/x/1"))
		if e, f := one(t, logs); f["status"] != tt.status || f["aborted"] != tt.aborted || e.Level != zapcore.ErrorLevel {
			t.Errorf("%s: %v with status %v, aborted %v; want ERROR, %v, %v", name, e.Level, f["status"], f["aborted"], tt.status, tt.aborted)
		}
	}
}

func TestRecoveryOutermostAnswers500AndTheLineSaysSo(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	r := gin.New()
	r.Use(gin.CustomRecoveryWithWriter(io.Discard, func(c *gin.Context, _ any) { c.AbortWithStatus(500) }), Middleware(zap.New(core)))
	r.GET("/x/:id", func(*gin.Context) { panic("boom") })
	w := do(r, get("/x/1"))
	if _, f := one(t, logs); w.Code != 500 || f["status"] != int64(500) {
		t.Errorf("answer %d, line %v; want 500 in both", w.Code, f)
	}
}

func TestPanicOfAHookStillWritesTheLine(t *testing.T) {
	for name, o := range map[string]Option{
		"WithFields": WithFields(func(*gin.Context, []zap.Field) []zap.Field { panic("hook") }),
		"WithSkip":   WithSkip(func(*gin.Context) bool { panic("hook") }),
	} {
		r, logs := engine(func(*gin.Context) {}, o)
		do(r, get("/x/1"))
		if _, f := one(t, logs); f["path"] != "/x/1" {
			t.Errorf("%s: line = %v", name, f)
		}
	}
}

func TestGoexitHasItsLine(t *testing.T) {
	r, logs := engine(func(*gin.Context) { runtime.Goexit() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(r, get("/x/1"))
	}()
	<-done
	one(t, logs)
}

func TestClientThatLeavesIs499(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	r, logs := engine(func(c *gin.Context) {
		leave()
		<-c.Request.Context().Done()
		c.Status(http.StatusOK)
	})
	s := httptest.NewServer(r)
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/x/1", nil)
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Error("answered, want the client to leave before")
	}
	s.Close()
	if e, f := one(t, logs); f["status"] != int64(499) || e.Level != zapcore.WarnLevel {
		t.Errorf("%v with status %v, want WARN with 499", e.Level, f["status"])
	}
}

func TestCanceledContextOfAHandlerIsNotAClientThatLeft(t *testing.T) {
	r, logs := engine(func(c *gin.Context) {
		ctx, cancel := context.WithCancel(c.Request.Context())
		c.Request = c.Request.WithContext(ctx)
		cancel()
		c.Status(http.StatusOK)
	})
	do(r, get("/x/1"))
	if _, f := one(t, logs); f["status"] != int64(200) {
		t.Errorf("status %v, want 200", f["status"])
	}
}

func TestServerThatEndsARequestIsNotAClientThatLeft(t *testing.T) {
	r, logs := engine(func(c *gin.Context) { c.Status(http.StatusOK) })
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("draining"))
	do(r, get("/x/1").WithContext(ctx))
	if _, f := one(t, logs); f["status"] != int64(200) {
		t.Errorf("status %v, want 200", f["status"])
	}
}

func TestWhatCameInIsLogged(t *testing.T) {
	r, logs := engine(func(c *gin.Context) {
		c.Request.URL.Path, c.Request.URL.RawQuery, c.Request.Method = "/other", "b=2", "PUT"
	})
	do(r, get("/x/1?a=1"))
	if _, f := one(t, logs); f["path"] != "/x/1" || f["query"] != "a=1" || f["method"] != "GET" {
		t.Errorf("line = %v", f)
	}
}

func TestQuerySecretsAreMasked(t *testing.T) {
	r, logs := engine(func(*gin.Context) {})
	do(r, get("/x/1?page=2&ACCESS_TOKEN=hunter2&p%61ssword=hunter2&b=1"))
	if _, f := one(t, logs); f["query"] != "page=2&ACCESS_TOKEN=***&p%61ssword=***&b=1" {
		t.Errorf("query = %v", f["query"])
	}
}

func TestNothingAClientSendsLeavesItsLine(t *testing.T) {
	for _, console := range []bool{false, true} {
		var buf bytes.Buffer
		enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
		if console {
			enc = zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())
		}
		r := gin.New()
		r.Use(Middleware(zap.New(zapcore.NewCore(enc, zapcore.AddSync(&buf), zapcore.DebugLevel))))
		const evil = "a\r\n2026 ERROR forged \x1b[31m\u009b31m\u2028\u202e\xff\x00"
		req := get("/x/1")
		req.URL.Path, req.URL.RawQuery, req.Method = "/"+evil, evil, evil
		req.Header = http.Header{"User-Agent": {evil}, "X-Request-Id": {evil}, "X-Forwarded-For": {evil}}
		w := do(r, req)
		log := strings.TrimSuffix(buf.String(), "\n")
		if !strings.Contains(log, "forged") {
			t.Fatalf("nothing was logged: %q", log)
		}
		if i := strings.IndexFunc(log, func(c rune) bool {
			return c < ' ' && c != '\t' || 0x7f <= c && c < 0xa0 || c == 0x2028 || c == 0x202e || c == 0xfffd
		}); i >= 0 {
			t.Errorf("console %v: %q at %d of %q", console, log[i], i, log)
		}
		if id := w.Header().Get("X-Request-Id"); !safeID(id) {
			t.Errorf("echoed id = %q", id)
		}
	}
}

func TestLineIsBounded(t *testing.T) {
	var buf bytes.Buffer
	r := gin.New()
	r.Use(Middleware(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&buf), zapcore.DebugLevel))))
	long := strings.Repeat("x", 1<<20)
	req := get("/" + long + "?" + long)
	req.Header.Set("User-Agent", long)
	do(r, req)
	if buf.Len() > 8<<10 || !json.Valid(buf.Bytes()) {
		t.Errorf("a line of %d bytes for a request of 3 MiB", buf.Len())
	}
}

func TestRequestIDIsSafe(t *testing.T) {
	for in, kept := range map[string]bool{
		"abc-1_2.Z": true, "azAZ09": true, strings.Repeat("a", 128): true,
		"": false, strings.Repeat("a", 129): false, "a b": false, "a\tb": false, "é": false, "a\"b": false, "<script>": false,
	} {
		var seen string
		r, logs := engine(func(c *gin.Context) { seen = RequestID(c) })
		req := get("/x/1")
		req.Header["X-Request-Id"] = []string{in}
		w := do(r, req)
		_, f := one(t, logs)
		if got := w.Header().Values("X-Request-Id"); len(got) != 1 || got[0] != seen || f["request_id"] != seen || !safeID(seen) {
			t.Errorf("%q: echoed %q, in the handler %q, logged %v", in, got, seen, f["request_id"])
		}
		if (seen == in) != kept {
			t.Errorf("%q becomes %q, want it kept: %v", in, seen, kept)
		}
	}
}

func TestNewRequestIDsAreDifferent(t *testing.T) {
	all := make(map[string]bool)
	r, _ := engine(func(c *gin.Context) { all[RequestID(c)] = true })
	for range 1000 {
		do(r, get("/x/1"))
	}
	if len(all) != 1000 {
		t.Errorf("%d different ids of 1000", len(all))
	}
}

func TestAnIDStaysWhatItIsWhileOthersAreMade(t *testing.T) {
	var headers [][]string
	var were []string
	for range 10 * batch {
		v := newID()
		headers, were = append(headers, v), append(were, v[0])
	}
	for i, v := range headers {
		if v[0] != were[i] {
			t.Fatalf("id %d was %s and has become %s", i, were[i], v[0])
		}
	}
}

func TestRequestIDWithoutMiddleware(t *testing.T) {
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	c.Request = get("/")
	if a, b := RequestID(c), RequestID(c); a != b || len(a) != 32 {
		t.Errorf("RequestID = %q, then %q; want one id of 32 digits", a, b)
	}
}

func TestAddressIsGins(t *testing.T) {
	for _, remote := range []string{"192.0.2.7:80", "[2001:db8::7]:80", "[::ffff:192.0.2.7]:80", "[fe80::1%eth0]:80", "@", "", "nonsense", "1.2.3:4"} {
		for _, header := range []string{"", "X-Forwarded-For", "X-Real-Ip", "Cf-Connecting-Ip"} {
			var want string
			r, logs := engine(func(c *gin.Context) { want = c.ClientIP() })
			r.TrustedPlatform = gin.PlatformCloudflare
			req := get("/x/1")
			req.RemoteAddr = remote
			req.Header.Set("Accept", "*/*")
			if header != "" {
				req.Header.Set(header, "198.51.100.9")
			}
			do(r, req)
			if _, f := one(t, logs); f["ip"] != want {
				t.Errorf("from %q with %q: ip = %v, want gin's %q", remote, header, f["ip"], want)
			}
		}
	}
}

func TestANilLoggerDiscardsTheLines(t *testing.T) {
	r := gin.New()
	r.Use(Middleware(nil))
	r.GET("/x/:id", func(c *gin.Context) { c.Status(http.StatusNoContent) })
	if w := do(r, get("/x/1")); w.Code != http.StatusNoContent || w.Header().Get("X-Request-Id") == "" {
		t.Errorf("%d with id %q, want 204 with one", w.Code, w.Header().Get("X-Request-Id"))
	}
}

func TestSkipKnowsTheStatus(t *testing.T) {
	status := http.StatusOK
	r, logs := engine(func(c *gin.Context) { c.Status(status) }, WithSkip(func(c *gin.Context) bool { return c.Writer.Status() == http.StatusOK }))
	do(r, get("/x/1"))
	if logs.Len() != 0 {
		t.Errorf("log = %v, want none", logs.All())
	}
	status = http.StatusServiceUnavailable
	do(r, get("/x/1"))
	one(t, logs)
}

func TestSlowRequestIsWarn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for took, want := range map[time.Duration]zapcore.Level{time.Second: zapcore.InfoLevel, time.Second + 1: zapcore.WarnLevel} {
			r, logs := engine(func(*gin.Context) { time.Sleep(took) }, WithSlow(time.Second))
			do(r, get("/x/1"))
			if e, f := one(t, logs); e.Level != want || (f["slow"] == true) != (want == zapcore.WarnLevel) {
				t.Errorf("%v is %v, slow %v; want %v", took, e.Level, f["slow"], want)
			}
		}
	})
}

func TestFieldsAreAdded(t *testing.T) {
	r, logs := engine(func(*gin.Context) {}, WithFields(func(c *gin.Context, f []zap.Field) []zap.Field {
		for i := range 30 { // more than the pool's slices hold
			f = append(f, zap.Int(fmt.Sprint("k", i), i))
		}
		return f
	}))
	for range 3 {
		do(r, get("/x/1"))
		if _, f := one(t, logs); len(f) != 40 || f["k29"] != int64(29) {
			t.Errorf("%d fields, want 40", len(f))
		}
	}
}

func TestDisabledLevelIsNotLogged(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	r := gin.New()
	r.Use(Middleware(zap.New(core)))
	do(r, get("/"))
	if _, f := one(t, logs); f["status"] != int64(404) {
		t.Error("no 404 at WARN")
	}
}

func TestHijackedConnectionHasItsLine(t *testing.T) {
	r, logs := engine(func(c *gin.Context) {
		conn, _, err := c.Writer.Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(conn, "HTTP/1.1 204 No Content\r\n\r\n")
		conn.Close()
	})
	served := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer close(served)
		r.ServeHTTP(w, req)
	}))
	defer s.Close()
	resp, err := http.Get(s.URL + "/x/1")
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Errorf("answer = %v, %v", resp, err)
	}
	<-served
	one(t, logs)
}

func FuzzRequestID(f *testing.F) {
	f.Add("abc")
	f.Add("a\nb")
	f.Add(strings.Repeat("x", 200))
	f.Fuzz(func(t *testing.T, in string) {
		c, _ := gin.CreateTestContext(httptest.NewRecorder())
		c.Request = get("/")
		c.Request.Header["X-Request-Id"] = []string{in}
		id := RequestID(c)
		line, err := bufio.NewReader(strings.NewReader(id + "\n")).ReadString('\n')
		if err != nil || line != id+"\n" || !safeID(id) || url.QueryEscape(id) != id {
			t.Errorf("RequestID of %q = %q", in, id)
		}
	})
}
