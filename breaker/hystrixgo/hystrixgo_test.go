package hystrixgo

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/afex/hystrix-go/hystrix"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/breaker"
)

// hystrix-go's circuits are global and its goroutines never end, so these tests are in real time, each with
// a command of its own.

// eventually polls until ok, for hystrix-go counts on another goroutine.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func acquire(t *testing.T, c *Circuits, name string) breaker.Permit {
	t.Helper()
	p, err := c.Acquire(name)
	if err != nil {
		t.Fatalf("Acquire = %v, want a permit", err)
	}
	return p
}

var runs atomic.Int64

// fresh is a command that no run of a test has used.
func fresh(t *testing.T) string {
	t.Helper()
	return fmt.Sprint(t.Name(), runs.Add(1))
}

// open makes the circuit of name open, and returns what was admitted before.
func open(t *testing.T, c *Circuits, name string) breaker.Permit {
	t.Helper()
	early := acquire(t, c, name)
	for range 20 {
		acquire(t, c, name).Done(breaker.Failure)
	}
	eventually(t, "opening", circuit(t, name).IsOpen)
	return early
}

func circuit(t *testing.T, name string) *hystrix.CircuitBreaker {
	t.Helper()
	cb, _, err := hystrix.GetCircuit(name)
	if err != nil {
		t.Fatal(err)
	}
	return cb
}

func TestTheCommandsSettingsHold(t *testing.T) {
	name := fresh(t)
	hystrix.ConfigureCommand(name, hystrix.CommandConfig{Timeout: 1234, SleepWindow: 60_000})
	c := New(hystrix.CommandConfig{Timeout: 1})
	if got := acquire(t, c, name).Timeout(); got != 1234*time.Millisecond {
		t.Errorf("Timeout = %v, want 1.234s", got)
	}
	if got := acquire(t, c, name+"/other").Timeout(); got != time.Millisecond {
		t.Errorf("Timeout of a name not configured = %v, want the default's 1ms", got)
	}
	open(t, c, name)
	var refused *breaker.OpenError
	if _, err := c.Acquire(name); !errors.As(err, &refused) || refused.RetryAfter != time.Minute || refused.Name != name {
		t.Errorf("Acquire = %v, want an OpenError with the command's sleep window", err)
	}
}

func TestALateSuccessDoesNotCloseTheCircuit(t *testing.T) {
	name := fresh(t)
	c := New(hystrix.CommandConfig{SleepWindow: 3_600_000})
	early := open(t, c, name)
	if early.Done(breaker.Success) || !circuit(t, name).IsOpen() {
		t.Error("a call from before closed the circuit")
	}
}

func TestAProbeClosesTheCircuitAndNothingReopensIt(t *testing.T) {
	for range 10 { // in hystrix-go short-circuits that were reported reopen it
		c := New(hystrix.CommandConfig{SleepWindow: 20})
		name := fresh(t)
		open(t, c, name).Done(breaker.Neutral)
		for range 100 {
			p, _ := c.Acquire(name)
			p.Done(breaker.Neutral)
		}
		eventually(t, "closing", func() bool {
			p, err := c.Acquire(name)
			return err == nil && p.Done(breaker.Success)
		})
		for range 100 {
			acquire(t, c, name).Done(breaker.Neutral)
		}
	}
}

func TestOneProbeAtATimeAlsoWhenItIsSlow(t *testing.T) {
	name := fresh(t)
	c := New(hystrix.CommandConfig{SleepWindow: 1, Timeout: 3_600_000})
	open(t, c, name)
	var probe breaker.Permit
	eventually(t, "a probe", func() (ok bool) {
		var err error
		probe, err = c.Acquire(name)
		return err == nil
	})
	for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
		if _, err := c.Acquire(name); !errors.Is(err, breaker.ErrOpen) {
			t.Fatalf("Acquire beside a probe = %v, want ErrOpen", err)
		}
	}
	if !probe.Done(breaker.Success) || circuit(t, name).IsOpen() {
		t.Error("the probe did not close the circuit")
	}
}

func TestTheSleepWindowCountsFromTheFailedProbe(t *testing.T) {
	name := fresh(t)
	hystrix.ConfigureCommand(name, hystrix.CommandConfig{SleepWindow: 1})
	c := New(hystrix.CommandConfig{})
	open(t, c, name)
	var probe breaker.Permit
	eventually(t, "a probe", func() (ok bool) {
		var err error
		probe, err = c.Acquire(name)
		return err == nil
	})
	hystrix.ConfigureCommand(name, hystrix.CommandConfig{SleepWindow: 3_600_000})
	c.refresh()
	probe.Done(breaker.Failure)
	var refused *breaker.OpenError
	if _, err := c.Acquire(name); !errors.As(err, &refused) || refused.RetryAfter < 59*time.Minute || refused.RetryAfter > time.Hour {
		t.Errorf("Acquire after a failed probe = %v, want an OpenError with the whole sleep window", err)
	}
}

func TestTheSemaphoreFollowsTheSettings(t *testing.T) {
	name := fresh(t)
	c := New(hystrix.CommandConfig{MaxConcurrentRequests: 1})
	p := acquire(t, c, name)
	if _, err := c.Acquire(name); !errors.Is(err, breaker.ErrMaxConcurrency) {
		t.Errorf("Acquire = %v, want ErrMaxConcurrency", err)
	}
	hystrix.ConfigureCommand(name, hystrix.CommandConfig{MaxConcurrentRequests: 2}) // hystrix-go ignores this
	c.read.Store(now() - refresh)
	acquire(t, c, name).Done(breaker.Success)
	p.Done(breaker.Success)
	if n := c.mustCommand(t, name).running.Load(); n != 0 {
		t.Errorf("%d running, want 0", n)
	}
}

func (c *Circuits) mustCommand(t *testing.T, name string) *command {
	t.Helper()
	cmd, err := c.command(name)
	if err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestRefusalsOfTheSemaphoreOpenTheCircuit(t *testing.T) {
	name := fresh(t)
	c := New(hystrix.CommandConfig{MaxConcurrentRequests: 1, SleepWindow: 3_600_000})
	p := acquire(t, c, name)
	for range 20 {
		_, _ = c.Acquire(name)
	}
	eventually(t, "opening", circuit(t, name).IsOpen)
	p.Done(breaker.Neutral)
	if _, err := c.Acquire(name); !errors.Is(err, breaker.ErrOpen) {
		t.Errorf("Acquire after 20 refusals = %v, want ErrOpen", err)
	}
}

func TestAFloodOfNamesMakesFewCommands(t *testing.T) {
	name := fresh(t)
	hystrix.ConfigureCommand(name+"/planned", hystrix.CommandConfig{Timeout: 77})
	c := New(hystrix.CommandConfig{MaxConcurrentRequests: 1})
	c.most = 10 // each is never freed, also not after a test
	before := len(hystrix.GetCircuitSettings())
	for i := range 3000 {
		acquire(t, c, fmt.Sprint(name, i)).Done(breaker.Neutral)
	}
	acquire(t, c, strings.Repeat("x", maxNameLen+1)).Done(breaker.Neutral)
	if n := len(hystrix.GetCircuitSettings()) - before; n > c.most+1 {
		t.Errorf("%d commands, want at most %d", n, c.most+1)
	}
	if got := acquire(t, c, name+"/planned").Timeout(); got != 77*time.Millisecond {
		t.Errorf("Timeout of a configured command after the flood = %v, want its own 77ms", got)
	}
}

func TestDroppedEventsAreCounted(t *testing.T) {
	name := fresh(t)
	c := New(hystrix.CommandConfig{MaxConcurrentRequests: 1 << 10})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for c.Dropped() == 0 {
				p, err := c.Acquire(name)
				if err != nil {
					t.Errorf("Acquire = %v", err)
					return
				}
				p.Done(breaker.Success)
			}
		})
	}
	callers.Wait()
}

func TestFlushMakesNewCircuits(t *testing.T) {
	name := fresh(t)
	c := New(hystrix.CommandConfig{SleepWindow: 3_600_000})
	open(t, c, name)
	hystrix.Flush()
	c.read.Store(now() - refresh)
	acquire(t, c, name).Done(breaker.Success)
}

func TestUnderLoad(t *testing.T) {
	name := fresh(t)
	c := New(hystrix.CommandConfig{MaxConcurrentRequests: 5, SleepWindow: 1, RequestVolumeThreshold: 1})
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for j := range 300 {
				if p, err := c.Acquire(name); err == nil {
					p.Done(breaker.Outcome((i + j) % 5))
				}
			}
		})
	}
	callers.Wait()
	if n := c.mustCommand(t, name).running.Load(); n != 0 {
		t.Errorf("%d running, want 0", n)
	}
}

func TestMiddlewareOnHystrixCommands(t *testing.T) {
	name := fresh(t)
	gin.SetMode(gin.TestMode)
	c := New(hystrix.CommandConfig{SleepWindow: 3_600_000})
	r := gin.New()
	r.Use(breaker.Middleware(c, breaker.WithKey(func(*gin.Context) string { return name })))
	r.GET("/", func(c *gin.Context) {
		if _, ok := c.Request.Context().Deadline(); !ok {
			t.Error("the request has no deadline")
		}
		c.Status(http.StatusInternalServerError)
	})
	var w *httptest.ResponseRecorder
	eventually(t, "a refusal", func() bool {
		w = httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w.Code == http.StatusServiceUnavailable
	})
	if got := w.Header().Get("Retry-After"); got != "3600" {
		t.Errorf("Retry-After = %q, want 3600", got)
	}
}
