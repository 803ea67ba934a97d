package health

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/memnet"
)

// rig is a server under Health.serve in a bubble.
type rig struct {
	t       *testing.T
	h       *Health
	client  *http.Client
	signals chan os.Signal
	end     context.CancelFunc
	over    chan error
	start   time.Time // of the drain
	ended   time.Time // when serve returned, once over says so
}

func startRig(t *testing.T, o Options, routes func(r *gin.Engine, h *Health)) *rig {
	t.Helper()
	h := New(o)
	r := gin.New()
	r.Use(Middleware(h))
	Register(h, r)
	r.GET("/work", func(c *gin.Context) { c.String(http.StatusOK, "done") })
	if routes != nil {
		routes(r, h)
	}
	l, tr := memnet.Listen()
	ctx, cancel := context.WithCancel(context.Background())
	g := &rig{t: t, h: h, client: &http.Client{Transport: tr}, signals: make(chan os.Signal, 4), end: cancel, over: make(chan error, 1)}
	go func() {
		err := h.serve(ctx, &http.Server{Handler: r}, l, h.starts, g.signals)
		g.ended = time.Now()
		g.over <- err
		h.Close()
	}()
	t.Cleanup(func() { cancel(); tr.CloseIdleConnections() })
	synctest.Wait()
	return g
}

func (g *rig) drain() { g.start = time.Now(); g.signals <- syscall.SIGTERM; synctest.Wait() }

// get is the status of path, its Connection header, and its error.
func (g *rig) get(path string) (int, bool, error) {
	resp, err := g.client.Get("http://h" + path)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Close, err
}

func (g *rig) wantEnd(err error, after time.Duration) {
	g.t.Helper()
	got := <-g.over
	if !errors.Is(got, err) || err == nil && got != nil {
		g.t.Errorf("Serve = %v, want %v", got, err)
	}
	// Shutdown looks for idle connections again and again, at most half a second apart.
	if took := g.ended.Sub(g.start); took < after || took > after+600*time.Millisecond {
		g.t.Errorf("Serve ended %v after the signal, want %v", took, after)
	}
	g.client.CloseIdleConnections()
}

func TestDrainAnswersUntilItsDelayIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startRig(t, Options{}, nil)
		if code, closes, err := g.get("/work"); code != 200 || closes || err != nil {
			t.Errorf("before: %d, close %v, %v", code, closes, err)
		}
		g.drain()
		if g.h.Ready() {
			t.Error("ready while draining")
		}
		if code, _, _ := g.get("/readyz"); code != http.StatusServiceUnavailable {
			t.Errorf("/readyz = %d, want 503", code)
		}
		for range 29 {
			if code, closes, err := g.get("/work"); code != 200 || !closes || err != nil {
				t.Errorf("while draining: %d, close %v, %v; want 200, true", code, closes, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		g.wantEnd(nil, 3*time.Second)
		if _, _, err := g.get("/work"); err == nil {
			t.Error("answered after Serve has ended")
		}
	})
}

func TestRequestInFlightEndsWithinGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startRig(t, Options{DrainDelay: time.Second, Grace: 10 * time.Second}, func(r *gin.Engine, _ *Health) {
			r.GET("/slow", func(c *gin.Context) { time.Sleep(7 * time.Second); c.String(http.StatusOK, "done") })
		})
		result := make(chan int)
		go func() { code, _, _ := g.get("/slow"); result <- code }()
		synctest.Wait()
		g.drain()
		if code := <-result; code != http.StatusOK {
			t.Errorf("status %d, want 200", code)
		}
		g.wantEnd(nil, 7*time.Second)
	})
}

func TestStreamsEndCleanly(t *testing.T) {
	for name, tt := range map[string]struct {
		until func(c *gin.Context, h *Health) <-chan struct{}
		after time.Duration
	}{
		"by Draining":    {func(_ *gin.Context, h *Health) <-chan struct{} { return h.Draining() }, time.Second},
		"by its context": {func(c *gin.Context, _ *Health) <-chan struct{} { return c.Request.Context().Done() }, 9 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var cause error
				g := startRig(t, Options{DrainDelay: time.Second, Grace: 10 * time.Second}, func(r *gin.Engine, h *Health) {
					r.GET("/stream", func(c *gin.Context) {
						c.Writer.Flush()
						<-tt.until(c, h)
						cause = context.Cause(c.Request.Context())
					})
				})
				result := make(chan error)
				go func() { _, _, err := g.get("/stream"); result <- err }()
				synctest.Wait()
				g.drain()
				if err := <-result; err != nil {
					t.Errorf("the stream ends with %v, want a clean end", err)
				}
				if cause != nil && !errors.Is(cause, ErrDraining) {
					t.Errorf("cause = %v, want ErrDraining", cause)
				}
				g.wantEnd(nil, tt.after)
			})
		})
	}
}

func TestWhatDoesNotEndIsCutAndReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		g := startRig(t, Options{DrainDelay: -1, Grace: 5 * time.Second}, func(r *gin.Engine, _ *Health) {
			r.GET("/stuck", func(c *gin.Context) { c.Writer.Flush(); <-release })
		})
		result := make(chan error)
		go func() { _, _, err := g.get("/stuck"); result <- err }()
		synctest.Wait()
		g.drain()
		if err := <-result; err == nil {
			t.Error("the stream ends cleanly, want it cut")
		}
		err := <-g.over
		if took := time.Since(g.start); err == nil || !strings.Contains(err.Error(), "did not end within 5s") || took != 5*time.Second {
			t.Errorf("Serve = %v after %v, want an error after 5s", err, took)
		}
		close(release)
	})
}

func TestHandlerOfAHijackedConnectionIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startRig(t, Options{DrainDelay: -1, Grace: 10 * time.Second}, func(r *gin.Engine, h *Health) {
			r.GET("/ws", func(c *gin.Context) {
				conn, _, err := c.Writer.Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				<-h.Draining()
				time.Sleep(4 * time.Second)
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbye")
			})
		})
		result := make(chan error)
		go func() { _, _, err := g.get("/ws"); result <- err }()
		synctest.Wait()
		g.drain()
		if err := <-result; err != nil {
			t.Errorf("the connection ends with %v", err)
		}
		g.wantEnd(nil, 4*time.Second)
	})
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		g := startRig(t, Options{}, func(r *gin.Engine, _ *Health) {
			r.GET("/stuck", func(*gin.Context) { <-release })
		})
		result := make(chan error)
		go func() { _, _, err := g.get("/stuck"); result <- err }()
		synctest.Wait()
		g.drain()
		time.Sleep(time.Second)
		g.signals <- syscall.SIGTERM
		g.wantEnd(ErrForced, time.Second)
		if err := <-result; err == nil {
			t.Error("the request was answered")
		}
		close(release)
	})
}

func TestSignalThatEndsTheContextTooIsTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startRig(t, Options{}, nil)
		g.start = time.Now()
		g.end() // as signal.NotifyContext does
		synctest.Wait()
		g.signals <- syscall.SIGTERM
		g.wantEnd(nil, 3*time.Second)
	})
}

func TestTwoSignalsAfterTheEndOfTheContextEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startRig(t, Options{}, nil)
		g.start = time.Now()
		g.end()
		for range 2 {
			synctest.Wait()
			g.signals <- syscall.SIGTERM
		}
		g.wantEnd(ErrForced, 0)
	})
}

func TestServeSpeaksTLSAndHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS() // for its certificate
	defer s.Close()
	cert := s.TLS.Certificates[0]
	for name, config := range map[string]*tls.Config{
		"Certificates":       {Certificates: []tls.Certificate{cert}},
		"GetCertificate":     {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }},
		"GetConfigForClient": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.TLS, nil }},
	} {
		h := New(Options{DrainDelay: -1})
		r := gin.New()
		Register(h, r)
		addr, over := make(chan string, 1), make(chan error, 1)
		ctx, end := context.WithCancel(t.Context())
		go func() {
			over <- h.Serve(ctx, &http.Server{
				Addr: "127.0.0.1:0", Handler: r, TLSConfig: config,
				BaseContext: func(l net.Listener) context.Context {
					addr <- l.Addr().String()
					return context.Background()
				},
			})
		}()
		client := s.Client()
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
		resp, err := client.Get("https://" + <-addr + "/livez")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp.Body.Close()
		if want := map[bool]int{true: 1, false: 2}[config.GetConfigForClient != nil]; resp.StatusCode != http.StatusOK || resp.ProtoMajor != want {
			t.Errorf("%s: %d over HTTP/%d, want 200 over HTTP/%d", name, resp.StatusCode, resp.ProtoMajor, want)
		}
		end()
		if err := <-over; err != nil {
			t.Errorf("%s: Serve = %v", name, err)
		}
	}
}

func TestStopsRunFirstAndInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		h := New(Options{})
		add := func(name string, err error) {
			h.OnServe(func(context.Context) (func(context.Context) error, error) {
				order = append(order, "start "+name)
				return func(context.Context) error {
					if h.Ready() {
						t.Error("ready while it is deregistered")
					}
					order = append(order, "stop "+name)
					return err
				}, nil
			})
		}
		errStop := errors.New("consul is away")
		add("a", nil)
		add("b", errStop)
		var life context.Context
		h.OnServe(func(ctx context.Context) (func(context.Context) error, error) {
			life = ctx
			return nil, nil
		})
		l, _ := memnet.Listen()
		signals := make(chan os.Signal, 1)
		over := make(chan error, 1)
		go func() { over <- h.serve(t.Context(), &http.Server{}, l, h.starts, signals) }()
		synctest.Wait()
		signals <- syscall.SIGTERM
		synctest.Wait()
		if got := strings.Join(order, ", "); got != "start a, start b, stop b, stop a" {
			t.Errorf("order = %s", got)
		}
		if life.Err() != nil {
			t.Error("the context of a start that has ended is over before Serve")
		}
		if err := <-over; !errors.Is(err, errStop) {
			t.Errorf("Serve = %v, want the error of the stop", err)
		}
		if life.Err() == nil {
			t.Error("the context of the starts lasts longer than Serve")
		}
		h.Close()
	})
}

func TestStopThatHangsDoesNotHoldTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		g := startWith(t, Options{}, func(context.Context) (func(context.Context) error, error) {
			return func(context.Context) error { <-release; return nil }, nil
		})
		g.drain()
		err := <-g.over
		if took := time.Since(g.start); !errors.Is(err, context.DeadlineExceeded) || took > 9*time.Second {
			t.Errorf("Serve = %v after %v, want a deadline exceeded after about 8s", err, took)
		}
		close(release)
	})
}

// startWith is startRig with a start.
func startWith(t *testing.T, o Options, start startFunc) *rig {
	t.Helper()
	return startRig(t, o, func(_ *gin.Engine, h *Health) { h.OnServe(start) })
}

func TestErrorOfAStartEndsServe(t *testing.T) {
	errStart := errors.New("no consul")
	for name, start := range map[string]startFunc{
		"error": func(context.Context) (func(context.Context) error, error) { return nil, errStart },
		"panic": func(context.Context) (func(context.Context) error, error) { panic("boom") },
	} {
		synctest.Test(t, func(t *testing.T) {
			stopped := false
			h := New(Options{DrainDelay: -1})
			h.OnServe(func(context.Context) (func(context.Context) error, error) {
				return func(context.Context) error { stopped = true; return nil }, nil
			})
			h.OnServe(start)
			l, _ := memnet.Listen()
			err := h.serve(t.Context(), &http.Server{}, l, h.starts, nil)
			h.Close()
			if err == nil || name == "error" && !errors.Is(err, errStart) || !stopped {
				t.Errorf("%s: Serve = %v, the start before was stopped: %v", name, err, stopped)
			}
		})
	}
}

func TestStartThatHangsIsGivenUpOnASignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startWith(t, Options{}, func(ctx context.Context) (func(context.Context) error, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		g.drain()
		g.wantEnd(nil, 3*time.Second)
	})
}

func TestAddressInUseIsAClearError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := New(Options{DrainDelay: -1})
	h.OnServe(func(context.Context) (func(context.Context) error, error) {
		t.Error("registered without listening")
		return nil, nil
	})
	err = h.Serve(t.Context(), &http.Server{Addr: l.Addr().String()})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Serve = %v, want address in use with the address", err)
	}
	if h.Ready() {
		t.Error("ready, want it closed by Serve")
	}
	if err := h.Serve(t.Context(), &http.Server{}); err == nil {
		t.Error("Serve again = nil, want an error")
	}
}
