package recovery

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/highball-go/highball/internal/refusal"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.TestMode)
	m.Run()
}

// engine has one route that runs h behind Middleware, and what that logs.
func engine(h gin.HandlerFunc, opts ...Option) (*gin.Engine, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.DebugLevel)
	r := gin.New()
	r.Use(Middleware(zap.New(core), opts...))
	r.Any("/x/:id", h)
	return r, logs
}

func get(r http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/x/1", nil))
	return w
}

// panicOf is what h panics with.
func panicOf(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

func TestUnwrittenAnswerIsOneProblem(t *testing.T) {
	r, logs := engine(func(c *gin.Context) {
		for _, name := range []string{"Content-Length", "ETag", "Content-Encoding", "Cache-Control", "Content-Type", "Last-Modified"} {
			c.Header(name, "17")
		}
		c.Header("X-Kept", "yes")
		c.Header("X-Request-Id", "r-1")
		c.Status(http.StatusCreated)
		panic("boom")
	})
	w := get(r)
	if want := `{"title":"Internal Server Error","status":500}`; w.Code != http.StatusInternalServerError || w.Body.String() != want {
		t.Errorf("answer = %d %s, want 500 %s", w.Code, w.Body, want)
	}
	want := http.Header{"Content-Length": {"46"}, "Content-Type": {"application/problem+json"}, "X-Kept": {"yes"}, "X-Request-Id": {"r-1"}}
	if got := w.Header(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("headers = %v, want %v", got, want)
	}
	if logs.Len() != 1 || logs.All()[0].Level != zapcore.ErrorLevel || logs.All()[0].Message != "panic" {
		t.Fatalf("log = %v, want one line at ERROR", logs.All())
	}
	if got := logs.All()[0].ContextMap(); got["panic"] != "boom" || got["route"] != "/x/:id" || got["request_id"] != "r-1" {
		t.Errorf("fields = %v", got)
	}
}

func TestCutAnswerNeverLooksComplete(t *testing.T) {
	parts := map[string]gin.HandlerFunc{
		"headers only": func(c *gin.Context) { c.Writer.Flush() },
		"a part of the body": func(c *gin.Context) {
			c.String(http.StatusOK, "the first half")
			c.Writer.Flush()
		},
		"a part of a counted body": func(c *gin.Context) {
			c.Header("Content-Length", "100")
			c.String(http.StatusOK, "the first half")
			c.Writer.Flush()
		},
	}
	for name, part := range parts {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %v", name, http2), func(t *testing.T) {
				r, logs := engine(func(c *gin.Context) {
					part(c)
					panic("boom")
				})
				s := httptest.NewUnstartedServer(r)
				s.EnableHTTP2 = http2
				s.StartTLS()
				defer s.Close()
				resp, err := s.Client().Get(s.URL + "/x/1")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if want := 1 + map[bool]int{true: 1}[http2]; resp.ProtoMajor != want {
					t.Fatalf("HTTP/%d, want %d", resp.ProtoMajor, want)
				}
				_, err = io.ReadAll(resp.Body)
				if http2 && (err == nil || !strings.Contains(err.Error(), "INTERNAL_ERROR")) {
					t.Errorf("body ends with %v, want RST_STREAM with INTERNAL_ERROR", err)
				}
				if !http2 && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("body ends with %v, want unexpected EOF", err)
				}
				if logs.FilterMessage("panic").Len() != 1 {
					t.Errorf("log = %v, want one panic", logs.All())
				}
			})
		}
	}
}

func TestAbortHandlerPassesThrough(t *testing.T) {
	for _, v := range []error{http.ErrAbortHandler, fmt.Errorf("proxy: %w", http.ErrAbortHandler)} {
		var end refusal.End
		core, logs := observer.New(zapcore.DebugLevel)
		r := gin.New()
		r.Use(func(c *gin.Context) {
			defer func() { end = refusal.EndOf(c) }()
			c.Next()
		}, Middleware(zap.New(core)))
		r.GET("/x/:id", func(*gin.Context) { panic(v) })
		if got := panicOf(func() { get(r) }); got != any(http.ErrAbortHandler) {
			t.Errorf("panic(%v) becomes panic(%v), want http.ErrAbortHandler itself", v, got)
		}
		if logs.Len() != 0 || end != refusal.EndAborted {
			t.Errorf("log = %v, end = %v; want nothing, aborted", logs.All(), end)
		}
	}
}

func TestBrokenPipeIs499WithoutAnAnswer(t *testing.T) {
	for _, v := range []error{
		syscall.EPIPE,
		fmt.Errorf("write: %w", os.NewSyscallError("write", syscall.ECONNRESET)),
		&net.OpError{Op: "write", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1234}, Err: syscall.EPIPE},
	} {
		r, logs := engine(func(*gin.Context) { panic(v) })
		w := get(r)
		if w.Code != 499 || w.Body.Len() != 0 {
			t.Errorf("answer = %d %q, want none", w.Code, w.Body)
		}
		if logs.Len() != 1 || logs.All()[0].ContextMap()["status"] != int64(499) || logs.All()[0].Level != zapcore.WarnLevel {
			t.Errorf("log = %v, want one WARN with 499", logs.All())
		}
	}
}

// TestAClientGoneIs499ForWhoStandsInFront is about what accesslog and metrics ask.
func TestAClientGoneIs499ForWhoStandsInFront(t *testing.T) {
	for _, part := range []string{"", "the first half"} {
		var status int
		var aborted bool
		r := gin.New()
		r.Use(func(c *gin.Context) {
			ctx, done := c.Request.Context(), false
			defer func() { status, aborted = refusal.Status(c, ctx, done) }()
			c.Next()
			done = true
		}, Middleware(nil))
		r.GET("/x/:id", func(c *gin.Context) {
			if part != "" {
				c.String(http.StatusOK, part)
			}
			panic(syscall.EPIPE)
		})
		v := panicOf(func() { get(r) })
		if cut := v == any(http.ErrAbortHandler); cut != (part != "") {
			t.Errorf("after %q: panic(%v), want http.ErrAbortHandler only if something was written", part, v)
		}
		if status != 499 || aborted {
			t.Errorf("after %q: status %d, aborted %v; want 499, false", part, status, aborted)
		}
	}
}

func TestLinesOfClientsGoneAreLimitedWithACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, logs := engine(func(*gin.Context) { panic(syscall.EPIPE) })
		for range 100 {
			get(r)
		}
		time.Sleep(interval)
		get(r)
		all := logs.All()
		if len(all) != burst+1 {
			t.Fatalf("%d lines of 101, want %d", len(all), burst+1)
		}
		for i, line := range all {
			n, said := line.ContextMap()["suppressed"]
			if last := i == burst; said != last || last && n != int64(100-burst) {
				t.Errorf("line %d says that %v were suppressed", i, n)
			}
		}
	})
}

func TestBrokenPipeToAnotherServerIsAPanic(t *testing.T) {
	r, logs := engine(func(*gin.Context) {
		panic(&net.OpError{Op: "write", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 6379}, Err: syscall.EPIPE})
	})
	if w := get(r); w.Code != http.StatusInternalServerError || logs.FilterMessage("panic").Len() != 1 {
		t.Errorf("answer = %d, log = %v; want 500 and a panic", w.Code, logs.All())
	}
}

func TestClientThatLeavesIs499(t *testing.T) {
	r, logs := engine(func(c *gin.Context) {
		for {
			if _, err := c.Writer.WriteString(strings.Repeat("x", 1<<10)); err != nil {
				panic(err)
			}
			c.Writer.Flush()
		}
	})
	s := httptest.NewServer(r)
	resp, err := http.Get(s.URL + "/x/1")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(resp.Body, make([]byte, 100))
	resp.Body.Close()
	s.Close() // waits for the handler
	if logs.Len() != 1 || logs.All()[0].ContextMap()["status"] != int64(499) {
		t.Errorf("log = %v, want one line with 499", logs.All())
	}
}

func TestHijackedConnectionIsUntouched(t *testing.T) {
	conns := make(chan net.Conn, 1)
	returned := make(chan struct{})
	core, logs := observer.New(zapcore.DebugLevel)
	r := gin.New()
	r.Use(func(c *gin.Context) { c.Next(); close(returned) }, Middleware(zap.New(core)))
	r.GET("/", func(c *gin.Context) {
		conn, _, err := c.Writer.Hijack()
		if err != nil {
			t.Error(err)
		}
		conns <- conn
		panic("boom")
	})
	s := httptest.NewServer(r)
	defer s.Close()
	client, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fmt.Fprint(client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	conn := <-conns
	defer conn.Close()
	<-returned
	fmt.Fprintln(conn, "still here")
	_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if line, err := bufio.NewReader(client).ReadString('\n'); line != "still here\n" {
		t.Errorf("client reads %q, %v; want what the handler's own code writes", line, err)
	}
	if logs.FilterMessage("panic").Len() != 1 {
		t.Errorf("log = %v, want one panic", logs.All())
	}
}

func TestGoexitIsNotSwallowed(t *testing.T) {
	r, logs := engine(func(*gin.Context) { runtime.Goexit() })
	var returned atomic.Bool
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/x/1", nil))
		returned.Store(true)
	}()
	<-done
	if returned.Load() || w.Body.Len() != 0 || logs.Len() != 0 {
		t.Errorf("returned %v, body %q, log %v; want none of it", returned.Load(), w.Body, logs.All())
	}
}

func TestRestOfTheChainDoesNotRun(t *testing.T) {
	answer := WithHandler(func(c *gin.Context, _ Panic) { c.String(http.StatusInternalServerError, "sorry") })
	for _, tt := range []struct {
		value  any
		opts   []Option
		status int
	}{
		{"boom", nil, 500},
		{"boom", []Option{answer}, 500},
		{syscall.EPIPE, nil, 499},
	} {
		ran := false
		r := gin.New()
		r.Use(func(*gin.Context) {}, Middleware(nil, tt.opts...))
		r.GET("/x/:id", func(*gin.Context) { panic(tt.value) }, func(*gin.Context) { ran = true })
		if w := get(r); w.Code != tt.status || ran {
			t.Errorf("panic(%v): status %d, the next handler ran: %v; want %d, false", tt.value, w.Code, ran, tt.status)
		}
	}
}

func TestWrapperOfTheWriterIsGoneWithItsHandler(t *testing.T) {
	r, _ := engine(func(c *gin.Context) {
		c.Header("Content-Encoding", "gzip")
		c.Writer = &shout{c.Writer}
		panic("boom")
	})
	if w := get(r); !strings.HasPrefix(w.Body.String(), `{"title"`) {
		t.Errorf("body = %q, want the plain problem", w.Body)
	}
}

type shout struct{ gin.ResponseWriter }

func (w *shout) Write(b []byte) (int, error) { return w.ResponseWriter.Write(bytes.ToUpper(b)) }

func TestLogHasNoSecretOfTheRequest(t *testing.T) {
	for _, console := range []bool{false, true} {
		var buf bytes.Buffer
		enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
		if console {
			enc = zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())
		}
		l := zap.New(zapcore.NewCore(enc, zapcore.AddSync(&buf), zapcore.DebugLevel))
		r := gin.New()
		r.Use(Middleware(l))
		values := []any{
			errors.New("get http://h/?access_token=hunter2&a=1: EOF\npassword=hunter2"), "forged\n2026 INFO line\x1b[31m\u009b31m",
		}
		r.GET("/:v", func(c *gin.Context) {
			switch c.Param("v") {
			case "request":
				panic(c.Request)
			case "0":
				panic(values[0])
			default:
				panic(values[1])
			}
		})
		for _, path := range []string{"/request?token=hunter2", "/0", "/1"} {
			req := httptest.NewRequest(http.MethodGet, path, nil)
			req.Header.Set("Authorization", "Bearer hunter2")
			req.Header.Set("Cookie", "sid=hunter2")
			req.Header.Set("X-Api-Key", "hunter2")
			r.ServeHTTP(httptest.NewRecorder(), req)
		}
		log := buf.String()
		if !strings.Contains(log, "access_token=***") || !strings.Contains(log, "(*http.Request)") || strings.Contains(log, "hunter2") {
			t.Errorf("console %v: log tells secrets or nothing:\n%s", console, log)
		}
		if n := strings.Count(log, "\n"); n != 3 || strings.ContainsAny(log, "\x1b\u009b") {
			t.Errorf("console %v: %d lines, want 3 and no escape codes:\n%q", console, n, log)
		}
	}
}

func TestHandlerAnswers(t *testing.T) {
	r, _ := engine(func(c *gin.Context) {
		c.Header("Content-Length", "1000")
		panic("boom")
	}, WithHandler(func(c *gin.Context, p Panic) {
		if got := c.Writer.Header().Get("Content-Length"); got != "" {
			t.Errorf("Content-Length of the answer that was not to be = %s", got)
		}
		c.String(http.StatusTeapot, "%v %s %v", p.Value, p.Route, len(p.Stack) > 0)
	}))
	if w := get(r); w.Code != http.StatusTeapot || w.Body.String() != "boom /x/:id true" {
		t.Errorf("answer = %d %q", w.Code, w.Body)
	}
	r, _ = engine(func(*gin.Context) { panic("boom") }, WithHandler(func(*gin.Context, Panic) {}))
	if w := get(r); w.Code != http.StatusInternalServerError || w.Body.Len() != 0 {
		t.Errorf("a handler that writes nothing: %d %q, want an empty 500", w.Code, w.Body)
	}
}

func TestPanicOfAHookIsLoggedAndAnswered(t *testing.T) {
	for name, o := range map[string]Option{
		"WithHandler": WithHandler(func(c *gin.Context, _ Panic) {
			c.Header("Content-Length", "1000")
			panic("hook")
		}),
		"OnPanic": OnPanic(func(Panic) { panic("hook") }),
	} {
		r, logs := engine(func(*gin.Context) { panic("boom") }, o)
		w := get(r)
		if w.Code != http.StatusInternalServerError || !strings.HasPrefix(w.Body.String(), `{"title"`) || w.Header().Get("Content-Length") == "1000" {
			t.Errorf("%s: answer = %d %q %v", name, w.Code, w.Body, w.Header())
		}
		if logs.Len() != 2 || logs.All()[1].ContextMap()["panic"] != "hook" {
			t.Errorf("%s: log = %v, want both panics", name, logs.All())
		}
	}
}

func TestHandlerThatPanicsHalfwayAborts(t *testing.T) {
	r, _ := engine(func(*gin.Context) { panic("boom") }, WithHandler(func(c *gin.Context, _ Panic) {
		c.String(http.StatusInternalServerError, "sor")
		panic("hook")
	}))
	if got := panicOf(func() { get(r) }); got != any(http.ErrAbortHandler) {
		t.Errorf("panic(%v), want http.ErrAbortHandler", got)
	}
}

func TestOnPanicHearsEveryOne(t *testing.T) {
	n := 0
	r, logs := engine(func(*gin.Context) { panic("boom") }, OnPanic(func(p Panic) {
		if p.Route == "/x/:id" {
			n++
		}
	}))
	for range 100 {
		get(r)
	}
	if n != 100 || logs.Len() >= 50 {
		t.Errorf("OnPanic heard %d of 100, the log has %d lines", n, logs.Len())
	}
}

//go:noinline
func fail() { panic("boom") }

func TestTheSameLineReachedAnotherWayHasAStackOfItsOwn(t *testing.T) {
	ways := []func(){func() { fail() }, func() { fail() }, fail}
	n := 0
	r, logs := engine(func(*gin.Context) {
		way := ways[n%len(ways)]
		n++
		way()
	})
	for range 2 * len(ways) {
		get(r)
	}
	seen := map[any]int{}
	for _, line := range logs.All() {
		seen[line.ContextMap()["stack"]]++
	}
	if len(seen) != len(ways) {
		t.Fatalf("%d stacks for %d ways to one line", len(seen), len(ways))
	}
	for stack, times := range seen {
		if times != 2 {
			t.Errorf("%d times, want twice:\n%s", times, stack)
		}
	}
}

func TestAHookMayKeepAndChangeTheStack(t *testing.T) {
	var stacks [][]byte
	r, logs := engine(func(*gin.Context) { panic("boom") }, OnPanic(func(p Panic) {
		stacks = append(stacks, bytes.Clone(p.Stack))
		clear(p.Stack)
	}))
	for range 20 {
		get(r)
	}
	for i, s := range stacks {
		if !bytes.Equal(s, stacks[0]) || !bytes.HasPrefix(s, []byte("github.com/highball-go/highball/recovery.")) {
			t.Fatalf("stack of panic %d: %q", i, s)
		}
	}
	if got := logs.All()[burst-1].ContextMap()["stack"]; got != string(stacks[0]) {
		t.Errorf("stack in the log: %q", got)
	}
}
