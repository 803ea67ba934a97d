package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/internal/memnet"
)

// fake answers like a Consul agent whose catalog a test sets.
type fake struct {
	mu       sync.Mutex
	index    uint64
	services map[string][]*api.ServiceEntry
	changed  chan struct{}
	queries  []query
	running  int

	answer func(w http.ResponseWriter, r *http.Request, n int) bool // if not nil, may answer the nth query, from 1

	registered map[string]*api.AgentServiceRegistration
	checks     map[string]string // status and output of a check
	calls      []string          // to the agent: what and when, in order
	agent      func(w http.ResponseWriter, r *http.Request) bool
}

type query struct {
	url.Values
	service string
	at      time.Time
}

func newFake() *fake {
	return &fake{
		index: 1, services: map[string][]*api.ServiceEntry{}, changed: make(chan struct{}),
		registered: map[string]*api.AgentServiceRegistration{}, checks: map[string]string{},
	}
}

// client returns a client of f.
func (f *fake) client(tb testing.TB) *api.Client {
	tb.Helper()
	c, err := api.NewClient(&api.Config{
		Address:    "http://consul.test",
		HttpClient: &http.Client{Transport: memnet.Serve(tb, f)},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// entry is a passing instance. IDs name their ports in these tests: "a" is 1, "b" is 2.
func entry(id string) *api.ServiceEntry {
	return &api.ServiceEntry{
		Node:    &api.Node{Node: "node-1", Address: "10.0.0.1"},
		Service: &api.AgentService{ID: id, Port: int(id[0]-'a') + 1, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
		Checks:  api.HealthChecks{{CheckID: "serfHealth", Status: "passing"}},
	}
}

// set makes the instances of service what ids says, one letter each, under the next index.
func (f *fake) set(service, ids string) {
	var entries []*api.ServiceEntry
	for _, id := range ids {
		entries = append(entries, entry(string(id)))
	}
	f.setEntries(service, entries...)
}

func (f *fake) setEntries(service string, entries ...*api.ServiceEntry) {
	f.setIndex(0, service, entries...)
}

// setIndex with index 0 takes the next.
func (f *fake) setIndex(index uint64, service string, entries ...*api.ServiceEntry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.services[service] = entries
	f.index++
	if index > 0 {
		f.index = index
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// respond makes f answer every query by itself.
func (f *fake) respond(answer func(w http.ResponseWriter, r *http.Request, n int) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

// asked returns the queries so far.
func (f *fake) asked() []query {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]query(nil), f.queries...)
}

// pending returns how many queries wait for an answer.
func (f *fake) pending() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}

func headers(w http.ResponseWriter, index uint64) http.Header {
	h := w.Header()
	h.Set("X-Consul-Index", strconv.FormatUint(index, 10))
	h.Set("X-Consul-LastContact", "0")
	h.Set("X-Consul-KnownLeader", "true")
	return h
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	service, ok := strings.CutPrefix(r.URL.Path, "/v1/health/service/")
	if !ok {
		f.serveAgent(w, r)
		return
	}
	f.mu.Lock()
	f.queries = append(f.queries, query{r.URL.Query(), service, time.Now()})
	answer, n := f.answer, len(f.queries)
	f.running++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.running--
		f.mu.Unlock()
	}()
	if answer == nil || !answer(w, r, n) {
		f.serveHealth(w, r, service)
	}
}

// serveHealth blocks as Consul does.
func (f *fake) serveHealth(w http.ResponseWriter, r *http.Request, service string) {
	q := r.URL.Query()
	after, _ := strconv.ParseUint(q.Get("index"), 10, 64)
	wait, _ := time.ParseDuration(q.Get("wait"))
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	for {
		f.mu.Lock()
		index, entries, changed := f.index, f.services[service], f.changed
		f.mu.Unlock()
		if after == 0 || index != after || ctx.Err() != nil {
			headers(w, index)
			_ = json.NewEncoder(w).Encode(entries)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (f *fake) serveAgent(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what := strings.TrimPrefix(r.URL.Path, "/v1/agent/")
	i := strings.LastIndex(what, "/")
	what, id := what[:i], strings.TrimPrefix(what[i+1:], "service:")
	if id == "register" {
		what = "service/register"
	}
	f.calls = append(f.calls, what)
	if f.agent != nil && f.agent(w, r) {
		return
	}
	switch what {
	case "service/register":
		var reg api.AgentServiceRegistration
		_ = json.NewDecoder(r.Body).Decode(&reg)
		f.registered[reg.ID] = &reg
		f.checks[reg.Check.CheckID] = reg.Check.Status
	case "check/update":
		if _, ok := f.checks["service:"+id]; !ok {
			http.Error(w, `Unknown check ID "`+id+`"`, http.StatusNotFound)
			return
		}
		var update struct{ Status, Output string }
		_ = json.NewDecoder(r.Body).Decode(&update)
		f.checks["service:"+id] = strings.TrimSpace(update.Status + " " + update.Output)
	case "service/deregister":
		if f.registered[id] == nil {
			http.Error(w, "Unknown service ID", http.StatusNotFound)
			return
		}
		delete(f.registered, id)
		delete(f.checks, "service:"+id)
	case "health/service/id":
		if f.registered[id] == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		info := api.AgentServiceChecksInfo{Checks: api.HealthChecks{}}
		if status, ok := f.checks["service:"+id]; ok {
			info.Checks = append(info.Checks, &api.HealthCheck{CheckID: "service:" + id, Status: status})
		}
		_ = json.NewEncoder(w).Encode(info)
	default:
		http.Error(w, "the fake does not know "+r.URL.Path, http.StatusTeapot)
	}
}

// forget is what a restart of an agent does to what it keeps in memory.
func (f *fake) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.registered)
	clear(f.checks)
}

// check returns the status and output of the check of the registration id, "" if there is none.
func (f *fake) check() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checks["service:"+id]
}

// called returns how often the agent was asked to do what.
func (f *fake) called(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == what {
			n++
		}
	}
	return n
}

// follow watches service and sends what comes: the IDs of a set, or "error: …".
func follow(ctx context.Context, c *Consul, service string) <-chan string {
	out := make(chan string, 1000)
	go func() {
		defer close(out)
		for in, err := range c.Watch(ctx, service) {
			s := ""
			for _, i := range in {
				s += i.ID
			}
			if err != nil {
				s = "error: " + err.Error()
			}
			out <- s
		}
	}()
	return out
}

// expect fails unless exactly these came, once everything stands still.
func expect(t *testing.T, got <-chan string, want ...string) {
	t.Helper()
	synctest.Wait()
	for i, w := range want {
		select {
		case s := <-got:
			if s != w {
				t.Errorf("news %d is %q, want %q", i, s, w)
			}
		default:
			t.Errorf("news %d has not come, want %q", i, w)
		}
	}
	if len(got) > 0 {
		t.Errorf("more has come: %q", <-got)
	}
}

// drain returns all that came and counts the errors among it.
func drain(got <-chan string) (sets []string, failures int) {
	synctest.Wait()
	for len(got) > 0 {
		if s := <-got; strings.HasPrefix(s, "error: ") {
			failures++
		} else {
			sets = append(sets, s)
		}
	}
	return sets, failures
}

func (q query) String() string { return fmt.Sprintf("%s?%s", q.service, q.Encode()) }
