package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

func TestTheCallersRequestIsNotChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errReset))
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p, Retry: Retry{PerTry: time.Second}})
		req := request(t.Context(), http.MethodPut, strings.NewReader("x"))
		req.Header.Set("X-A", "1")
		before := req.Clone(t.Context())
		before.GetBody, before.Body = nil, nil
		resp, err := b.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.Request != req {
			t.Error("the response's Request is not the caller's")
		}
		after := *req
		after.GetBody, after.Body = nil, nil
		if !reflect.DeepEqual(before, &after) {
			t.Errorf("the request was %+v\nand is     %+v", before, &after)
		}
	})
}

func TestHostStaysTheServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var host, url string
		p := newPeers()
		p.set("a:1", func(r *http.Request) (*http.Response, error) {
			host, url = r.Host, r.URL.String()
			return answer(http.StatusOK), nil
		})
		b := open(t, orders("a:1"), Options{Transport: p})
		_, _ = get(t, b)
		if host != "orders" || url != "http://a:1/v1/42?x=1" {
			t.Errorf("Host %s, URL %s", host, url)
		}
		req := request(t.Context(), http.MethodGet, nil)
		req.Host = "shop.example"
		_, _ = roundTrip(b, req)
		if host != "shop.example" {
			t.Errorf("Host %s, want the caller's own", host)
		}
	})
}

func TestACallIsInFlightUntilItsBodyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1"), Options{Transport: newPeers()})
		for name, end := range map[string]func(io.ReadCloser){
			"read to the end": func(body io.ReadCloser) { _, _ = io.Copy(io.Discard, body) },
			"closed":          func(body io.ReadCloser) { body.Close() },
			"both and twice":  func(body io.ReadCloser) { _, _ = io.Copy(io.Discard, body); body.Close(); body.Close() },
		} {
			resp, err := b.RoundTrip(request(t.Context(), http.MethodGet, nil))
			if err != nil {
				t.Fatal(err)
			}
			if got := statusOf(t, b, "a:1").InFlight; got != 1 {
				t.Errorf("%s: %d in flight before", name, got)
			}
			end(resp.Body)
			if got := statusOf(t, b, "a:1").InFlight; got != 0 {
				t.Errorf("%s: %d in flight after", name, got)
			}
			resp.Body.Close()
		}
	})
}

func TestABodyThatBreaksOffIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", func(*http.Request) (*http.Response, error) {
			resp := answer(http.StatusOK)
			resp.Body = io.NopCloser(io.MultiReader(strings.NewReader("bo"), broken{}))
			return resp, nil
		})
		b := open(t, orders("a:1"), Options{Transport: p})
		if _, err := get(t, b); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error = %v", err)
		}
		if s := statusOf(t, b, "a:1"); s.Failures != 1 || s.Requests != 1 || s.InFlight != 0 {
			t.Errorf("status = %+v", s)
		}
	})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestATransportThatPanicsDoesNotLeakTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", func(*http.Request) (*http.Response, error) { panic("boom") })
		b := open(t, orders("a:1"), Options{Transport: p})
		func() {
			defer func() { _ = recover() }()
			_, _ = get(t, b)
		}()
		if got := statusOf(t, b, "a:1").InFlight; got != 0 {
			t.Errorf("%d in flight", got)
		}
	})
}

func TestAnUnknownHostIsAnErrorAndItsBodyIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		b := open(t, discovery.Static{}, Options{Transport: p})
		for _, url := range []string{"http://example.com/", "http://orders:8080/", "/path"} {
			body := &closing{Reader: strings.NewReader("x")}
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
			_, err := b.RoundTrip(req)
			if err == nil || !body.closed || len(p.asked()) != 0 {
				t.Errorf("%s: %v, body closed %v", url, err, body.closed)
			}
		}
	})
}

func TestABodyThatComesOnceIsClosedInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errRefused))
		p.set("b:1", fails(errRefused))
		b := open(t, orders("a:1", "b:1"), Options{Transport: p})
		body := &closing{Reader: strings.NewReader("x")}
		req := request(t.Context(), http.MethodPost, nil)
		req.Body = body
		if _, err := b.RoundTrip(req); err == nil || !body.closed || len(p.asked()) != 3 {
			t.Errorf("error = %v, closed %v", err, body.closed)
		}
	})
}

func TestAGetBodyThatFailsIsTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		p.set("a:1", fails(errReset))
		b := open(t, orders("a:1", "b:1"), Options{Strategy: only("a:1"), Transport: p})
		req := request(t.Context(), http.MethodPut, strings.NewReader("x"))
		gone := errors.New("gone")
		req.GetBody = func() (io.ReadCloser, error) { return nil, gone }
		if _, err := b.RoundTrip(req); !errors.Is(err, gone) || !errors.Is(err, errReset) {
			t.Errorf("error = %v", err)
		}
		if a, bb := statusOf(t, b, "a:1"), statusOf(t, b, "b:1"); a.InFlight+bb.InFlight != 0 || bb.Failures != 0 {
			t.Errorf("a: %+v\nb: %+v", a, bb)
		}
	})
}

// server starts an instance on a real socket.
func server(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func addr(s *httptest.Server) string { return s.Listener.Addr().String() }

func TestIdleConnectionsOfARemovedInstanceAreClosed(t *testing.T) {
	closed := make(chan struct{}, 10)
	watch := func(s *httptest.Server) {
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				closed <- struct{}{}
			}
		}
	}
	hold := make(chan struct{})
	gone := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("hold") {
			<-hold
		}
	}))
	watch(gone)
	gone.Start()
	t.Cleanup(gone.Close)
	other := server(t, func(http.ResponseWriter, *http.Request) {})

	m := discovery.NewMemory()
	m.Set("orders", at(addr(gone))...)
	b := open(t, m, Options{})
	if code, err := get(t, b); code != http.StatusOK || err != nil {
		t.Fatalf("GET = %d, %v", code, err)
	}
	running := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://orders/?hold", nil)
		_, err := roundTrip(b, req)
		running <- err
	}()
	eventually(t, "a call in flight", func() bool { return statusOf(t, b, addr(gone)).InFlight == 1 })
	_, _ = get(t, b) // on a second connection, which is idle now
	m.Set("orders", at(addr(other))...)
	<-closed // the idle one
	close(hold)
	if err := <-running; err != nil {
		t.Errorf("the running call: %v", err)
	}
	<-closed // and the other when its call had ended
}

// eventually waits for what the claim says.
func eventually(t *testing.T, claim string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within 10s", claim)
		}
	}
}

func TestTLSServerNameIsTheServices(t *testing.T) {
	var name atomic.Value
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name.Store(h.ServerName)
		return nil, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	// httptest's certificate is for example.com
	b := open(t, discovery.Static{"example.com": at(addr(s))}, Options{Transport: tr})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://example.com/", nil)
	if code, err := roundTrip(b, req); code != http.StatusOK || err != nil || name.Load() != "example.com" {
		t.Errorf("GET = %d, %v with the server name %v", code, err, name.Load())
	}
}

func TestACertificateForAnotherNameIsNotTriedTwiceOnTheSameInstanceAndIsUnsent(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") }))
	s.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	b := open(t, orders(addr(s)), Options{Retry: Retry{Attempts: 1}})
	req := request(t.Context(), http.MethodPost, strings.NewReader("x"))
	req.URL.Scheme = "https"
	if _, err := b.RoundTrip(req); err == nil || !unsent(err) {
		t.Errorf("error = %v, want one from before the first byte", err)
	}
}

func TestAPOSTIsRetriedWhenNoConnectionWasMade(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	l.Close()
	var body string
	s := server(t, func(_ http.ResponseWriter, r *http.Request) {
		sent, _ := io.ReadAll(r.Body)
		body = string(sent)
	})
	b := open(t, orders(dead, addr(s)), Options{Strategy: only(dead), Ejection: Ejection{Consecutive: -1}})
	for range 5 {
		req := request(t.Context(), http.MethodPost, io.LimitReader(strings.NewReader("once"), 4)) // no GetBody
		if code, err := roundTrip(b, req); code != http.StatusOK || err != nil || body != "once" {
			t.Fatalf("POST = %d, %v with body %q", code, err, body)
		}
	}
}

func TestTheDialerOfTheTransportIsUsed(t *testing.T) {
	s := server(t, func(http.ResponseWriter, *http.Request) {})
	dialled := ""
	dial := func(network, address string) (net.Conn, error) {
		dialled = address
		return net.Dial(network, addr(s))
	}
	for name, tr := range map[string]*http.Transport{
		"DialContext": {DialContext: func(_ context.Context, network, address string) (net.Conn, error) { return dial(network, address) }},
		"Dial":        {Dial: dial}, // deprecated, but some still set it
	} {
		b := open(t, orders("a.internal:1"), Options{Transport: tr})
		if code, err := get(t, b); code != http.StatusOK || err != nil || dialled != "a.internal:1" {
			t.Errorf("%s: GET = %d, %v through %q", name, code, err, dialled)
		}
		dialled = ""
	}
}

func TestAPOSTThatWasSentIsNotSentAgain(t *testing.T) {
	var posts atomic.Int32
	s := server(t, func(w http.ResponseWriter, _ *http.Request) {
		posts.Add(1)
		conn, _, _ := http.NewResponseController(w).Hijack()
		conn.Close()
	})
	b := open(t, orders(addr(s)), Options{})
	if _, err := send(t, b, http.MethodPost, strings.NewReader("x")); err == nil || posts.Load() != 1 {
		t.Errorf("error = %v after %d executions", err, posts.Load())
	}
}

func TestAnUpgradeGivesAConnectionToReadAndWrite(t *testing.T) {
	s := server(t, echo)
	b := open(t, orders(addr(s)), Options{})
	req := request(t.Context(), http.MethodGet, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := b.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		t.Fatalf("answer = %d with a %T", resp.StatusCode, resp.Body)
	}
	fmt.Fprintln(rw, "hello")
	line, err := bufio.NewReader(rw).ReadString('\n')
	if line != "hello\n" || err != nil || statusOf(t, b, addr(s)).InFlight != 1 {
		t.Errorf("echo = %q, %v; in flight %d", line, err, statusOf(t, b, addr(s)).InFlight)
	}
	rw.Close()
	if got := statusOf(t, b, addr(s)).InFlight; got != 0 {
		t.Errorf("%d in flight after Close", got)
	}
}

// echo switches protocols and sends back what comes.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
	rw.Flush()
	_, _ = io.Copy(conn, rw)
}

func TestAnHTTPClientOnTopFollowsRedirectsToTheService(t *testing.T) {
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			http.Redirect(w, r, "/new", http.StatusFound)
			return
		}
		fmt.Fprint(w, r.URL.Path)
	})
	b := open(t, orders(addr(s)), Options{})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders/old", nil)
	resp, err := (&http.Client{Transport: b}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "/new" || resp.Request.URL.String() != "http://orders/new" {
		t.Errorf("answer = %q of %s", body, resp.Request.URL)
	}
}
