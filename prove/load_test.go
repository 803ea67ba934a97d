package prove

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A request of a load.
type request struct {
	method, path string
	key          string // Idempotency-Key; "": none
	cookie       string
}

// A record is what became of one.
type record struct {
	request
	id      string
	at, end time.Duration // when it was due, and when it had ended
	status  int           // 0: no answer, or one that broke off
	cookie  string        // that the answer set
}

func (r *record) took() time.Duration { return r.end - r.at }

// A load is an open loop: requests are due at a constant rate whatever becomes of the earlier ones, and latency counts
// from when each was due. A closed loop, as wrk is one, waits for a hung server and then counts it once.
type load struct {
	base    string // URL
	rate    int    // a second
	during  time.Duration
	timeout time.Duration // of a client
	next    func(i int) request
	events  []event // in the order in which they happen
}

// An event happens in the middle of a load.
type event struct {
	at time.Duration
	do func()
}

// happen has events happen one after the other: a process of the rig is for one goroutine.
func happen(events []event, start time.Time) {
	for _, e := range events {
		time.Sleep(time.Until(start.Add(e.at)))
		e.do()
	}
}

// mix is 80 % GET and 20 % POST, every second of which has an Idempotency-Key.
func mix(path string) func(int) request {
	return func(i int) request {
		switch i % 10 {
		case 0:
			return request{method: http.MethodPost, path: path}
		case 5:
			return request{method: http.MethodPost, path: path, key: "key-" + strconv.Itoa(i)}
		default:
			return request{method: http.MethodGet, path: path}
		}
	}
}

func gets(path string) func(int) request {
	return func(int) request { return request{method: http.MethodGet, path: path} }
}

func newClient(timeout time.Duration) *http.Client {
	return &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 4096, DisableCompression: true},
		Timeout:   timeout,
	}
}

// run sends the load and returns what became of each request, in the order in which they were due.
func (l load) run(tb testing.TB) []record {
	tb.Helper()
	client := newClient(l.timeout)
	defer client.CloseIdleConnections()
	records := make([]record, int(float64(l.rate)*l.during.Seconds()))
	var all, events sync.WaitGroup
	start := time.Now()
	events.Go(func() { happen(l.events, start) })
	for i := range records {
		at := time.Duration(i) * time.Second / time.Duration(l.rate)
		time.Sleep(time.Until(start.Add(at)))
		all.Go(func() {
			r := &records[i]
			r.request, r.id, r.at = l.next(i), strconv.Itoa(i), at
			l.send(client, r, start)
		})
	}
	all.Wait()
	events.Wait()
	return records
}

func (l load) send(client *http.Client, r *record, start time.Time) {
	defer func() { r.end = time.Since(start) }()
	for {
		status, wait := l.try(client, r)
		r.status = status
		// As the draft has it, a client that is told to come back does so with its key.
		if r.key == "" || wait == 0 || time.Since(start)-r.at+wait > l.timeout {
			return
		}
		time.Sleep(wait)
	}
}

// try sends r once, and says how long to wait before its key may be tried again; 0: it may not.
func (l load) try(client *http.Client, r *record) (status int, wait time.Duration) {
	connections := 0
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connections++ }})
	var body io.Reader
	if r.method == http.MethodPost {
		body = strings.NewReader(`{"amount":1}`)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, l.base+r.path, body)
	if err != nil {
		return 0, 0
	}
	req.Header.Set("X-Request-Id", r.id)
	if r.key != "" {
		req.Header.Set("Idempotency-Key", r.key)
	}
	if r.request.cookie != "" {
		req.Header.Set("Cookie", r.request.cookie)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if err != nil || connections > 1 && r.key == "" { // Go repeated it on another connection; others would have seen an error
		return 0, 0
	}
	if c := resp.Cookies(); len(c) > 0 {
		r.cookie = c[0].Name + "=" + c[0].Value
	}
	if resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusServiceUnavailable {
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		wait = time.Duration(seconds) * time.Second
	}
	return resp.StatusCode, wait
}

// A closedLoop is what wrk does: so many connections, each of which sends its next request when it has the answer to the last.
type closedLoop struct {
	load
	connections int
}

func (l closedLoop) run(tb testing.TB) []record {
	tb.Helper()
	client := newClient(0) // wrk waits
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var records []record
	var all, events sync.WaitGroup
	start := time.Now()
	events.Go(func() { happen(l.events, start) })
	for range l.connections {
		all.Go(func() {
			for i := 0; time.Since(start) < l.during; i++ {
				r := record{request: l.next(i), at: time.Since(start)}
				l.send(client, &r, start)
				mu.Lock()
				records = append(records, r)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	events.Wait()
	return records
}
