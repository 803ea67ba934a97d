package balancer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/discovery"
)

// edge is a gin engine that forwards everything to orders.
func edge(b *Balancer, opts ...ProxyOption) *gin.Engine {
	gin.SetMode(gin.TestMode)
	r := gin.New()
	_ = r.SetTrustedProxies(nil)
	r.NoRoute(Proxy(b, "orders", opts...))
	return r
}

// front serves edge on a real socket.
func front(t *testing.T, b *Balancer, opts ...ProxyOption) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(edge(b, opts...))
	s.Config.ErrorLog = nil
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func TestProxyForwardsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", func(r *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(r.Body)
			resp := answer(http.StatusTeapot)
			resp.Header.Set("X-Saw", fmt.Sprint(r.Method, " ", r.URL, " ", r.Host, " ", string(body), " ", r.Header.Get("X-A")))
			resp.Header.Set("Connection", "X-Hop")
			resp.Header.Set("X-Hop", "1")
			return resp, nil
		})
		b := open(t, orders("a:1"), Options{Transport: p})
		req := httptest.NewRequest(http.MethodPost, "/v1/a%2Fb?q=1;2&r=%20", strings.NewReader("hi"))
		req.Header.Set("X-A", "1")
		w := httptest.NewRecorder()
		edge(b).ServeHTTP(w, req)
		want := "POST http://a:1/v1/a%2Fb?q=1;2&r=%20 orders hi 1"
		if got := w.Header().Get("X-Saw"); w.Code != http.StatusTeapot || got != want || w.Body.String() != "body" {
			t.Errorf("answer = %d %q, the instance saw\n%s, want\n%s", w.Code, w.Body, got, want)
		}
		if w.Header().Get("X-Hop") != "" {
			t.Error("a hop-by-hop header was passed on")
		}
	})
}

func TestAHeaderThatIsSetInFrontStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", func(*http.Request) (*http.Response, error) {
			resp := answer(http.StatusOK)
			for name, value := range map[string]string{
				"X-Request-Id": "theirs", "Access-Control-Allow-Origin": "*", "Vary": "Accept", "Set-Cookie": "b=2", "Etag": "e",
			} {
				resp.Header.Set(name, value)
			}
			return resp, nil
		})
		b := open(t, orders("a:1"), Options{Transport: p})
		gin.SetMode(gin.TestMode)
		r := gin.New()
		r.Use(func(c *gin.Context) {
			for name, value := range map[string]string{
				"X-Request-Id": "ours", "Access-Control-Allow-Origin": "https://a.example", "Vary": "Origin", "Set-Cookie": "a=1",
			} {
				c.Header(name, value)
			}
		})
		r.NoRoute(Proxy(b, "orders"))
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		for name, want := range map[string]string{
			"X-Request-Id": "[ours]", "Access-Control-Allow-Origin": "[https://a.example]", "Vary": "[Origin Accept]", "Set-Cookie": "[a=1 b=2]", "Etag": "[e]",
		} {
			if got := fmt.Sprint(w.Header()[name]); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	})
}

func TestProxyTellsTheInstanceOnlyWhatGinTrusts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got http.Header
		p := newPeers()
		p.set("a:1", func(r *http.Request) (*http.Response, error) { got = r.Header; return answer(http.StatusOK), nil })
		b := open(t, orders("a:1"), Options{Transport: p})
		for _, tt := range []struct {
			name                       string
			trusted                    []string
			wantFor, host, proto, real string
		}{
			{"untrusted", nil, "192.0.2.1", "shop.example", "http", "192.0.2.1"},
			{"trusted", []string{"192.0.2.1"}, "203.0.113.9, 192.0.2.1", "original.example", "https", "203.0.113.9"},
		} {
			r := edge(b)
			if err := r.SetTrustedProxies(tt.trusted); err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest(http.MethodGet, "http://shop.example/", nil) // from 192.0.2.1
			req.Header.Set("X-Forwarded-For", "6.6.6.6, 203.0.113.9")
			req.Header.Set("X-Forwarded-Host", "original.example")
			req.Header.Set("X-Forwarded-Proto", "https")
			req.Header.Set("X-Real-Ip", "6.6.6.6")
			req.Header.Set("Forwarded", "for=6.6.6.6")
			r.ServeHTTP(httptest.NewRecorder(), req)
			for name, want := range map[string]string{
				"X-Forwarded-For": tt.wantFor, "X-Forwarded-Host": tt.host, "X-Forwarded-Proto": tt.proto, "X-Real-Ip": tt.real, "Forwarded": "",
			} {
				if v := got.Get(name); v != want {
					t.Errorf("%s: %s = %q, want %q", tt.name, name, v, want)
				}
			}
		}
	})
}

func TestProxyAnswersForInstancesThatDoNot(t *testing.T) {
	tests := []struct {
		name   string
		peer   func(*http.Request) (*http.Response, error)
		body   io.Reader
		status int
		retry  string
	}{
		{name: "no try was answered", peer: fails(errRefused), status: http.StatusBadGateway},
		{name: "the last one timed out", peer: hangs, status: http.StatusGatewayTimeout},
		{name: "the instance's own 500 is passed on", peer: status(http.StatusInternalServerError), status: http.StatusInternalServerError},
		{name: "the instance's own 503 is passed on", peer: status(http.StatusServiceUnavailable), status: http.StatusServiceUnavailable},
		{name: "the client's body broke off", peer: reads, body: broken{}, status: http.StatusBadRequest},
		{name: "no instance", status: http.StatusServiceUnavailable, retry: "1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeers()
				src := discovery.Static{}
				if tt.peer != nil {
					src = orders("a:1")
					p.set("a:1", tt.peer)
				}
				b := open(t, src, Options{Transport: p, Retry: Retry{PerTry: time.Second}})
				w := httptest.NewRecorder()
				edge(b).ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/", tt.body))
				if got := w.Header().Get("Retry-After"); w.Code != tt.status || got != tt.retry {
					t.Errorf("answer = %d %s, Retry-After %q; want %d, %q", w.Code, w.Body, got, tt.status, tt.retry)
				}
				if own := w.Body.String() != "body"; own && w.Header().Get("Content-Type") != "application/problem+json" {
					t.Errorf("Content-Type = %q", w.Header().Get("Content-Type"))
				}
				if tt.body != nil && statusOf(t, b, "a:1").Failures != 0 {
					t.Error("the client's broken body was held against the instance")
				}
			})
		})
	}
}

// reads takes the whole body.
func reads(r *http.Request) (*http.Response, error) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return nil, err
	}
	return answer(http.StatusOK), nil
}

func TestProxySaysTooLargeForABodyOverItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", reads)
		b := open(t, orders("a:1"), Options{Transport: p})
		gin.SetMode(gin.TestMode)
		r := gin.New()
		r.Use(func(c *gin.Context) { c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, 3) })
		r.POST("/", Proxy(b, "orders"))
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader("four")))
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("status = %d, want 413", w.Code)
		}
	})
}

func TestProxyGivesAClientThatWentAwayA499(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", hangs)
		b := open(t, orders("a:1"), Options{Transport: p})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		var code int
		r := edge(b)
		r.Use(func(c *gin.Context) { c.Next(); code = c.Writer.Status() })
		r.NoRoute(Proxy(b, "orders"))
		r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
		if code != 499 || statusOf(t, b, "a:1").Failures != 0 {
			t.Errorf("status = %d with %d failures, want 499 with none", code, statusOf(t, b, "a:1").Failures)
		}
	})
}

func TestProxyRepeatsABodyUpToItsLimit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		size   int
		opts   []ProxyOption
		repeat bool
	}{
		{name: "small", size: 10, repeat: true},
		{name: "64 KiB", size: 64 << 10, repeat: true},
		{name: "more", size: 64<<10 + 1},
		{name: "more, allowed", size: 100 << 10, opts: []ProxyOption{WithReplayBytes(100 << 10)}, repeat: true},
		{name: "none allowed", size: 10, opts: []ProxyOption{WithReplayBytes(0)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeers()
				p.set("a:1", func(r *http.Request) (*http.Response, error) {
					_, _ = io.Copy(io.Discard, r.Body)
					return nil, errReset
				})
				var got int64
				p.set("b:1", func(r *http.Request) (*http.Response, error) {
					got, _ = io.Copy(io.Discard, r.Body)
					return answer(http.StatusOK), nil
				})
				b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p})
				req := httptest.NewRequest(http.MethodPut, "/", io.LimitReader(zeros{}, int64(tt.size))) // of unknown length
				w := httptest.NewRecorder()
				edge(b, tt.opts...).ServeHTTP(w, req)
				if repeated := w.Code == http.StatusOK && got == int64(tt.size); repeated != tt.repeat {
					t.Errorf("answer = %d after %d bytes, repeated %v, want %v", w.Code, got, repeated, tt.repeat)
				}
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestProxyStreamsTheRequestsBody(t *testing.T) {
	got := make(chan string)
	s := server(t, func(_ http.ResponseWriter, r *http.Request) {
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			got <- lines.Text()
		}
	})
	f := front(t, open(t, orders(addr(s)), Options{}))
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, f.URL, pr)
		_, err := roundTrip(http.DefaultTransport, req)
		done <- err
	}()
	for _, word := range []string{"one", "two", "three"} {
		fmt.Fprintln(pw, word)
		if line := <-got; line != word { // before the next one is sent
			t.Fatalf("the instance got %q, want %q", line, word)
		}
	}
	pw.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProxyPassesServerSentEventsOnAtOnce(t *testing.T) {
	next := make(chan struct{})
	s := server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})
	resp := fetch(t, front(t, open(t, orders(addr(s)), Options{})).URL)
	r := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := r.ReadString('\n')
		if want := fmt.Sprintf("data: %d\n", i); line != want {
			t.Fatalf("event = %q, %v; want %q", line, err, want)
		}
		_, _ = r.ReadString('\n')
		next <- struct{}{}
	}
}

func fetch(t *testing.T, url string) *http.Response {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestProxyPassesTrailersOn(t *testing.T) {
	s := server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprint(w, "body")
		w.Header().Set("X-Sum", "42")
	})
	resp := fetch(t, front(t, open(t, orders(addr(s)), Options{})).URL)
	_, _ = io.Copy(io.Discard, resp.Body)
	if got := resp.Trailer.Get("X-Sum"); got != "42" {
		t.Errorf("trailer = %q, want 42", got)
	}
}

func TestProxyPassesUpgradesOn(t *testing.T) {
	s := server(t, echo)
	b := open(t, orders(addr(s)), Options{Retry: Retry{Hedge: time.Millisecond}})
	f := front(t, b)
	conn, err := net.Dial("tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answer = %v, %v", resp, err)
	}
	for range 3 {
		fmt.Fprintln(conn, "hello")
		if line, err := r.ReadString('\n'); line != "hello\n" {
			t.Fatalf("echo = %q, %v", line, err)
		}
	}
	if got := statusOf(t, b, addr(s)).InFlight; got != 1 {
		t.Errorf("%d calls in flight, want 1", got)
	}
	conn.Close()
	eventually(t, "end of the call", func() bool { return statusOf(t, b, addr(s)).InFlight == 0 })
}

func TestProxyBreaksOffWhatTheInstanceBreaksOff(t *testing.T) {
	s := server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	resp := fetch(t, front(t, open(t, orders(addr(s)), Options{})).URL)
	if body, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("body = %q, %v; want it to break off", body, err)
	}
}

func TestProxyKeepsAClientOnItsInstance(t *testing.T) {
	var calls [3]atomic.Int32
	var addrs []string
	for i := range calls {
		addrs = append(addrs, addr(server(t, func(http.ResponseWriter, *http.Request) { calls[i].Add(1) })))
	}
	b := open(t, orders(addrs...), Options{Strategy: IPHash()})
	f := front(t, b, WithAffinity((*gin.Context).ClientIP))
	for range 20 {
		fetch(t, f.URL).Body.Close()
	}
	busy := 0
	for i := range calls {
		if calls[i].Load() > 0 {
			busy++
		}
	}
	if busy != 1 {
		t.Errorf("one client was served by %d instances", busy)
	}
}
