package cluster_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/cluster"
	"github.com/highball-go/highball/internal/rig"
	"github.com/highball-go/highball/ratelimit"
)

const (
	patient  = 30 * time.Second // on a busy machine
	interval = 100 * time.Millisecond
	window   = 3 * time.Second
	burst    = 60
)

// An instance of a service whose one route works or fails.
type instance struct {
	*gin.Engine
	cluster *cluster.Cluster
	limiter *ratelimit.Local
	circuit *breaker.Breaker
	backend *backend
}

// A backend is what the handlers of all instances depend on.
type backend struct {
	failing atomic.Bool
	served  atomic.Int64
}

func newInstance(tb testing.TB, client redis.UniversalClient, b *backend) *instance {
	tb.Helper()
	gin.SetMode(gin.TestMode)
	c := cluster.New(client, cluster.Options{Service: "orders", Interval: interval, Window: window, Floor: 0.5})
	tb.Cleanup(func() { _ = c.Close() })
	l := ratelimit.New(ratelimit.Every(time.Second, burst, burst), ratelimit.Options{Admission: c.Admission})
	g := breaker.NewGroup(breaker.Options{Peers: c, Window: window, Buckets: 30, SleepWindow: 500 * time.Millisecond})
	r := gin.New()
	r.Use(ratelimit.Middleware(l, ratelimit.WithRefund(breaker.Rejected)), breaker.Middleware(g))
	r.GET("/", func(c *gin.Context) {
		b.served.Add(1)
		if b.failing.Load() {
			c.Status(http.StatusInternalServerError)
		}
	})
	return &instance{r, c, l, g.Get("GET /"), b}
}

// newInstances starts three, that are seen by each other. Their clients ignore deadlines, as go-redis does
// by default: only the loop may notice when Redis hangs.
func newInstances(tb testing.TB, client func() redis.UniversalClient) (all []*instance) {
	tb.Helper()
	b := new(backend)
	for range 3 {
		c := client()
		tb.Cleanup(func() { _ = c.Close() })
		all = append(all, newInstance(tb, c, b))
	}
	wantInstances(tb, 3, all)
	return all
}

// get sends n requests from as many callers as it takes to meet no limit of a caller, and counts the
// statuses; one caller if from is not empty.
func (i *instance) get(n int, from string) map[int]int {
	got := map[int]int{}
	for range n {
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		if req.RemoteAddr = from; from == "" {
			req.RemoteAddr = fmt.Sprintf("[2001:db8:%x::1]:1", callers.Add(1)%(1<<16))
		}
		w := httptest.NewRecorder()
		i.ServeHTTP(w, req)
		got[w.Code]++
	}
	return got
}

var callers atomic.Uint32

func wantInstances(tb testing.TB, n int, all []*instance) {
	tb.Helper()
	rig.Poll(tb, patient, func() error {
		for who, i := range all {
			if got := i.cluster.Instances(); got != n {
				return fmt.Errorf("%d sees %d instances, want %d", who, got, n)
			}
		}
		return nil
	})
}

// until sends each instance n requests from new callers, again and again, until ok is true of all.
func until(tb testing.TB, what string, all []*instance, n int, ok func(*instance) bool) {
	tb.Helper()
	rig.Poll(tb, patient, func() error {
		var late error
		for who, i := range all {
			i.get(n, "")
			if !ok(i) {
				late = fmt.Errorf("%d is not %s: circuit %+v, admission %v", who, what, i.circuit.Snapshot(), i.cluster.Admission())
			}
		}
		return late
	})
}

func stopped(i *instance) bool {
	return i.circuit.State() != breaker.Closed && i.cluster.Admission() < 1
}

func well(i *instance) bool {
	return i.circuit.State() == breaker.Closed && i.cluster.Admission() == 1
}

func TestThreeInstancesDecideTogether(t *testing.T) {
	server := rig.Redis(t)
	all := newInstances(t, func() redis.UniversalClient { return redis.NewClient(&redis.Options{Addr: server.Addr}) })
	a, b, c := all[0], all[1], all[2]

	overTheLimit(t, a, all)

	t.Log("errors over 50 % on a quorum: circuits open and admission falls everywhere, also where nothing fails")
	errorsEverywhere(t, all)
	a.backend.failing.Store(false)
	until(t, "well", all, 1, well)

	t.Log("Redis is killed: each is for itself, and refuses and recovers by itself")
	server.Kill()
	wantInstances(t, 1, all)
	a.backend.failing.Store(true)
	until(t, "stopped", all[:1], 5, stopped)
	a.backend.failing.Store(false)
	until(t, "closed", all[:1], 1, func(i *instance) bool { return i.circuit.State() == breaker.Closed })
	if !well(b) || !well(c) {
		t.Error("what fails on one instance reached another without Redis")
	}

	t.Log("Redis is back, and empty")
	server.Restart()
	wantInstances(t, 3, all)
	until(t, "well", all, 1, well)

	t.Log("Redis hangs: no request waits for it")
	server.Hang()
	begin := time.Now()
	a.backend.failing.Store(true)
	for range 100 {
		for _, i := range all {
			i.get(1, "")
		}
	}
	if took := time.Since(begin); took > 3*time.Second { // what the client waits for
		t.Errorf("300 requests took %v", took)
	}
	wantInstances(t, 1, all)
	until(t, "stopped", all, 5, stopped)
	a.backend.failing.Store(false)
	server.Resume()
	wantInstances(t, 3, all)
	until(t, "well", all, 1, well)

	t.Log("one that leaves is missed at once by those that stay")
	_ = c.cluster.Close()
	wantInstances(t, 2, all[:2])
}

// overTheLimit is for the first row: 429, of which neither the breaker nor the cluster hears.
func overTheLimit(t *testing.T, a *instance, all []*instance) {
	t.Helper()
	got := a.get(5*burst, "192.0.2.1:1")
	if got[http.StatusOK] < burst || got[http.StatusTooManyRequests] == 0 || len(got) != 2 {
		t.Fatalf("statuses %v, want at least %d of 200, and the rest 429", got, burst)
	}
	if s := a.circuit.Snapshot(); s.Total > uint64(got[http.StatusOK]) || s.Errors != 0 {
		t.Errorf("the breaker counted %d calls and %d errors of %v", s.Total, s.Errors, got)
	}
	until(t, "told", all, 1, func(i *instance) bool {
		total, _, _ := i.cluster.Cluster("GET /")
		return total > 0
	})
	for _, i := range all {
		total, errs, _ := i.cluster.Cluster("GET /")
		if served := a.backend.served.Load(); int64(total) > served || errs != 0 || i.cluster.Admission() != 1 {
			t.Errorf("the cluster has %d requests and %d errors of %d that passed; admission %v", total, errs, served, i.cluster.Admission())
		}
	}
}

// errorsEverywhere is for the second row. Two of three instances fail; the third, which nobody calls
// meanwhile, is told to stop before it has seen enough to do so by itself.
func errorsEverywhere(t *testing.T, all []*instance) {
	t.Helper()
	third := all[2]
	if got := third.refill(t, "before"); got > time.Second {
		t.Errorf("a bucket fills in %v, want a second", got)
	}
	all[0].backend.failing.Store(true)
	until(t, "stopped", all[:2], 15, stopped)
	until(t, "stopped", all[2:], 0, func(i *instance) bool {
		total, errs, _ := i.cluster.Cluster("GET /")
		return i.cluster.Admission() < 1 && total >= 20 && 2*errs >= total
	})
	until(t, "open", all[2:], 1, func(i *instance) bool { return i.circuit.State() == breaker.Open })
	if s := third.circuit.Snapshot(); s.State != breaker.Open || s.Reason != "cluster" {
		t.Errorf("the third circuit is %v by %q, want open by cluster", s.State, s.Reason)
	}
	if got := third.refill(t, "after"); got < 1500*time.Millisecond {
		t.Errorf("a bucket fills in %v at admission %v", got, third.cluster.Admission())
	}
	served := third.backend.served.Load()
	for who, i := range all {
		if got := i.get(200, "")[http.StatusServiceUnavailable]; got < 190 { // the rest are probes
			t.Errorf("%d answered %d of 200 with 503 behind an open circuit", who, got)
		}
	}
	if more := third.backend.served.Load() - served; more > 30 {
		t.Errorf("%d of 600 requests came to the backend", more)
	}
	rig.Poll(t, patient, func() error { // what the cluster has counted was served, and leaves with the window
		total, _, _ := third.cluster.Cluster("GET /")
		if int64(total) > third.backend.served.Load() {
			t.Fatalf("the cluster has counted %d requests, and %d were served", total, served)
		}
		if total > 0 {
			return fmt.Errorf("%d requests", total)
		}
		return nil
	})
}

// refill is how long an empty bucket takes to fill.
func (i *instance) refill(tb testing.TB, key string) time.Duration {
	tb.Helper()
	for range 2 {
		d, err := i.limiter.AllowN(tb.Context(), key, burst)
		if err != nil {
			tb.Fatal(err)
		}
		if !d.Allowed {
			return d.RetryAfter
		}
	}
	tb.Fatal("a limiter admitted twice its burst")
	return 0
}

func TestInstancesMeetOnARedisCluster(t *testing.T) {
	nodes := rig.RedisCluster(t)
	all := newInstances(t, func() redis.UniversalClient {
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes.Addrs})
	})
	all[0].backend.failing.Store(true)
	until(t, "stopped", all, 3, stopped)
	for _, n := range nodes.Nodes {
		n.Kill()
	}
	wantInstances(t, 1, all)
	for _, n := range nodes.Nodes {
		n.Restart()
	}
	wantInstances(t, 3, all)
	all[0].backend.failing.Store(false)
	until(t, "closed", all, 1, func(i *instance) bool { return i.circuit.State() == breaker.Closed })
}
