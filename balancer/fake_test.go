package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

var (
	errReset   = errors.New("connection reset by peer")
	errRefused = &dialError{errors.New("connection refused")}
)

// at makes instances whose IDs are their addresses.
func at(addrs ...string) (in []discovery.Instance) {
	for _, a := range addrs {
		in = append(in, discovery.Instance{ID: a, Addr: a})
	}
	return in
}

// peers is a transport of instances that behave as the test says, and a record of what they were asked.
type peers struct {
	mu    sync.Mutex // guards the fields below
	do    map[string]func(*http.Request) (*http.Response, error)
	calls []string
}

func newPeers() *peers {
	return &peers{do: make(map[string]func(*http.Request) (*http.Response, error))}
}

// set says what the instance at addr does.
func (p *peers) set(addr string, do func(*http.Request) (*http.Response, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.do[addr] = do
}

// asked returns the addresses in the order in which they were called, and forgets them.
func (p *peers) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	calls := p.calls
	p.calls = nil
	return calls
}

func (p *peers) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	p.calls = append(p.calls, r.URL.Host)
	do := p.do[r.URL.Host]
	p.mu.Unlock()
	if r.Body != nil {
		defer r.Body.Close()
	}
	if do == nil {
		return answer(http.StatusOK), nil
	}
	return do(r)
}

func answer(status int) *http.Response {
	return &http.Response{
		StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)), Header: http.Header{},
		Body: io.NopCloser(strings.NewReader("body")), ContentLength: 4,
	}
}

func status(code int) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return answer(code), nil }
}

func fails(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

// takes answers 200 after d, or the context's error.
func takes(d time.Duration) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		if !sleep(r.Context(), d) {
			return nil, r.Context().Err()
		}
		return answer(http.StatusOK), nil
	}
}

func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// open makes a balancer of the service "orders" that is closed with the test.
func open(t *testing.T, src discovery.Source, o Options) *Balancer {
	t.Helper()
	b := New(src, o)
	t.Cleanup(func() { b.Close() })
	return b
}

func orders(addrs ...string) discovery.Static { return discovery.Static{"orders": at(addrs...)} }

// get is one GET of orders; its body is read and closed.
func get(t *testing.T, b *Balancer) (int, error) {
	t.Helper()
	return send(t, b, http.MethodGet, nil)
}

func send(t *testing.T, b *Balancer, method string, body io.Reader) (int, error) {
	t.Helper()
	return roundTrip(b, request(t.Context(), method, body))
}

func request(ctx context.Context, method string, body io.Reader) *http.Request {
	req, err := http.NewRequestWithContext(ctx, method, "http://orders/v1/42?x=1", body)
	if err != nil {
		panic(err)
	}
	return req
}

func roundTrip(rt http.RoundTripper, req *http.Request) (int, error) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// choose is one Select of orders.
func choose(t *testing.T, b *Balancer) Selection {
	t.Helper()
	sel, err := b.Select(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

// statusOf is the status of one instance of orders.
func statusOf(t *testing.T, b *Balancer, addr string) NodeStatus {
	t.Helper()
	for _, s := range b.Status("orders") {
		if s.Addr == addr {
			return s
		}
	}
	t.Fatalf("no instance %s in %v", addr, b.Status("orders"))
	return NodeStatus{}
}

// journal collects events.
type journal struct {
	mu     sync.Mutex // guards the field below
	events []Event
}

func (j *journal) add(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

// last is the newest event, once all goroutines of the bubble have told theirs.
func (j *journal) last() Event {
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.events[len(j.events)-1]
}

// of returns the events of a kind as their addresses.
func (j *journal) of(kind string) (addrs []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if e.Kind == kind {
			addrs = append(addrs, e.Instance.Addr)
		}
	}
	return addrs
}

// only is a Strategy that takes the instance at addr while it is usable.
func only(addr string) Strategy {
	return func(nodes []*Node) Picker {
		pick := nodes[0]
		for _, n := range nodes {
			if n.Instance().Addr == addr {
				pick = n
			}
		}
		return func(Call) *Node { return pick }
	}
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}
