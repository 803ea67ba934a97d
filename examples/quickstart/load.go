package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/highball-go/highball/balancer"
)

// A story is what happened, told as it happens.
type story struct {
	start time.Time

	mu     sync.Mutex // guards the fields below, and the output
	begun  bool       // before that nothing is worth telling
	events []event
	line   string // what must be printed before a line; "": nothing
}

type event struct {
	at   time.Duration
	kind string // of the balancer; "": a step of the quickstart
	id   string
	text string
}

func (s *story) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start, s.begun = time.Now(), true
}

func (s *story) tell(format string, args ...any) { s.add(event{text: fmt.Sprintf(format, args...)}) }

// event hears what the balancer does.
func (s *story) event(e balancer.Event) {
	why := ""
	switch e.Kind {
	case balancer.Ejected:
		why = e.Err.Error()
	case balancer.Restored:
		why = "its probe was answered"
	case balancer.Removed:
		why = "its health check fails"
	case balancer.Added:
		why = "it is registered and healthy"
	default:
		return // retries are too many to tell
	}
	s.add(event{kind: e.Kind, id: e.Instance.ID, text: fmt.Sprintf("  %s %s: %s", e.Kind, e.Instance.ID, why)})
}

// left reports whether the balancer stopped calling id, and whether it called it again after that: an
// ejected instance is restored by a probe, or by Consul when it was removed there meanwhile.
func (s *story) left(id string) (left, back bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		switch {
		case e.id != id:
		case e.kind == balancer.Ejected:
			left = true
		default:
			back = left && e.kind != balancer.Removed
		}
	}
	return left, back
}

func (s *story) add(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return
	}
	e.at = time.Since(s.start)
	s.events = append(s.events, e)
	fmt.Printf("%s%6.2fs  %s\n", s.line, e.at.Seconds(), e.text)
}

// progress rewrites the last line of a terminal.
func (s *story) progress(text string) {
	if out, err := os.Stdout.Stat(); err != nil || out.Mode()&os.ModeCharDevice == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line = "\r\033[K" // clears what is there
	fmt.Print(s.line, text)
}

// A result is one request. Its latency counts from when it was due, so that a stall is charged to every
// request that it holds up.
type result struct {
	due, latency time.Duration
	method       string
	instance     string
	failed       string // why; "": answered
}

// A load sends requests when they are due, whatever became of the earlier ones: an open loop.
type load struct {
	client  *http.Client
	url     string
	story   *story
	quit    context.CancelFunc
	done    chan struct{}
	sent    atomic.Int64
	failed  atomic.Int64
	mu      sync.Mutex // guards the field below
	results []result
}

func startLoad(ctx context.Context, url string, rate int, story *story) *load {
	ctx, quit := context.WithCancel(ctx)
	l := &load{
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1024}},
		url:    url, story: story, quit: quit, done: make(chan struct{}),
	}
	go l.run(ctx, time.Second/time.Duration(max(rate, 1)))
	return l
}

func (l *load) run(ctx context.Context, every time.Duration) {
	defer close(l.done)
	var running sync.WaitGroup
	defer running.Wait()
	for i := 0; ; i++ {
		due := time.Duration(i) * every
		if wait(ctx, time.Until(l.story.start.Add(due))) != nil {
			return
		}
		method := http.MethodGet
		if i%5 == 0 {
			method = http.MethodPost
		}
		running.Go(func() { l.send(method, due) })
		if l.sent.Add(1); i%100 == 0 {
			l.story.progress(fmt.Sprintf("%6.1fs  %d requests, %d failed", due.Seconds(), l.sent.Load(), l.failed.Load()))
		}
	}
}

func (l *load) send(method string, due time.Duration) {
	r := result{due: due, method: method}
	req, err := http.NewRequestWithContext(context.Background(), method, l.url, strings.NewReader("{}"))
	if err == nil {
		var resp *http.Response
		if resp, err = l.client.Do(req); err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			r.instance = resp.Header.Get("X-Instance")
			if resp.StatusCode != http.StatusOK {
				r.failed = resp.Status
			}
		}
	}
	if err != nil {
		r.failed = err.Error()
	}
	if r.failed != "" {
		l.failed.Add(1)
	}
	r.latency = time.Since(l.story.start) - due
	l.mu.Lock()
	defer l.mu.Unlock()
	l.results = append(l.results, r)
}

// stop waits for what is under way.
func (l *load) stop() []result {
	l.quit()
	<-l.done
	return l.results
}
