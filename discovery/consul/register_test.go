package consul

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAWrongRegistrationIsRefusedBeforeConsulHearsOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f.client(t), Options{})
		for name, tt := range map[string]struct {
			change func(r *Registration)
			want   string
		}{
			"no service":      {func(r *Registration) { r.Service = "" }, "Service"},
			"no address":      {func(r *Registration) { r.Addr = "" }, "Addr"},
			"no port":         {func(r *Registration) { r.Addr = "10.0.0.1" }, "Addr"},
			"no host":         {func(r *Registration) { r.Addr = ":8080" }, "no host that peers could call"},
			"any host":        {func(r *Registration) { r.Addr = "0.0.0.0:8080" }, "no host that peers could call"},
			"any IPv6 host":   {func(r *Registration) { r.Addr = "[::]:8080" }, "no host that peers could call"},
			"port zero":       {func(r *Registration) { r.Addr = "h:0" }, "port"},
			"port too high":   {func(r *Registration) { r.Addr = "h:65536" }, "port"},
			"port name":       {func(r *Registration) { r.Addr = "h:http" }, "port"},
			"TTL and HTTP":    {func(r *Registration) { r.TTL, r.HTTP = time.Second, "http://h:1/health" }, "both"},
			"Check with HTTP": {func(r *Registration) { r.HTTP, r.Check = "http://h:1/", func(context.Context) error { return nil } }, "Check"},
			"no URL":          {func(r *Registration) { r.HTTP = "h:80/health" }, "URL"},
			"no HTTP URL":     {func(r *Registration) { r.HTTP = "ftp://h/health" }, "URL"},
			"negative TTL":    {func(r *Registration) { r.TTL = -1 }, "negative"},
			"negative weight": {func(r *Registration) { r.WeightWarning = -1 }, "negative"},
			"forgotten early": {func(r *Registration) { r.DeregisterCriticalAfter = 59 * time.Second }, "at least 1m"},
			"negative":        {func(r *Registration) { r.DeregisterCriticalAfter = -1 }, "at least 1m"},
		} {
			r := Registration{Service: "orders", Addr: "10.0.0.1:8080"}
			tt.change(&r)
			reg, err := c.Register(t.Context(), r)
			if reg != nil || err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "consul: ") {
				t.Errorf("%s: %v, want an error with %q", name, err, tt.want)
			}
		}
		if len(f.calls) != 0 {
			t.Errorf("the agent was called: %v", f.calls)
		}
	})
}

// registered starts a registration that ends with the test.
func registered(t *testing.T, f *fake, r Registration) (*Registered, context.CancelFunc) {
	t.Helper()
	c := New(f.client(t), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { // before the server's
		cancel()
		synctest.Wait()
	})
	r.Service, r.Addr = "orders", "[2001:db8::1]:8080"
	reg, err := c.Register(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return reg, cancel
}

const id = "orders-2001:db8::1-8080" // of registered, by default

func TestTheDefaultIsATTLCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		registered(t, f, Registration{Weight: 5, DeregisterCriticalAfter: time.Minute})
		r := f.registered[id]
		if r == nil || r.Name != "orders" || r.Address != "2001:db8::1" || r.Port != 8080 {
			t.Fatalf("registered %+v", f.registered)
		}
		if r.Weights.Passing != 5 || r.Weights.Warning != 1 {
			t.Errorf("weights %+v, want 5 and 1", r.Weights)
		}
		if c := r.Check; c.TTL != "15s" || c.HTTP != "" || c.Status != "passing" || c.DeregisterCriticalServiceAfter != "1m0s" {
			t.Errorf("check %+v", c)
		}
		before := f.called("check/update")
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := f.called("check/update") - before; n != 12 {
			t.Errorf("%d heartbeats a minute, want one every 5 s", n)
		}
	})
}

func TestHTTPIsAskedByTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		registered(t, f, Registration{ID: "mine", HTTP: "http://h:1/health"})
		c := f.registered["mine"].Check
		if c.HTTP != "http://h:1/health" || c.Interval != "10s" || c.Timeout != "2s" || c.TTL != "" || c.Status != "passing" {
			t.Errorf("check %+v", c)
		}
		time.Sleep(time.Minute)
		if n := f.called("check/update"); n != 0 {
			t.Errorf("%d heartbeats, want none", n)
		}
	})
}

func TestALostRegistrationComesBackWithinAHeartbeat(t *testing.T) {
	for name, r := range map[string]Registration{"TTL": {TTL: 15 * time.Second}, "HTTP": {HTTP: "http://h:1/health"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				registered(t, f, r)
				for range 3 { // the agent restarts
					f.forget()
					time.Sleep(5 * time.Second)
					synctest.Wait()
					if f.registered[id] == nil || f.check() != "passing" {
						t.Fatalf("registered %v, checks %v", f.registered, f.checks)
					}
				}
				f.mu.Lock()
				clear(f.checks) // or loses only the check
				f.mu.Unlock()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if f.check() != "passing" {
					t.Errorf("checks %v", f.checks)
				}
				before := f.called("service/register")
				time.Sleep(time.Hour)
				if n := f.called("service/register") - before; n != 0 {
					t.Errorf("registered %d times more while nothing was wrong", n)
				}
			})
		})
	}
}

func TestRegisterTriesUntilTheAgentAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		up := time.Now().Add(time.Hour)
		f.agent = func(w http.ResponseWriter, _ *http.Request) bool {
			if time.Now().Before(up) {
				http.Error(w, "starting", http.StatusInternalServerError)
			}
			return time.Now().Before(up)
		}
		reports := 0
		c := New(f.client(t), Options{OnError: func(string, error) { reports++ }})
		reg, err := c.Register(t.Context(), Registration{Service: "orders", Addr: "h:1"})
		if err != nil || reports < 360 || time.Since(up) > 10*time.Second {
			t.Errorf("Register = %v after %d reports, %v late", err, reports, time.Since(up))
		}
		if err := reg.Deregister(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestRegisterEndsWithItsContextOrWhenItIsOfNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		code := http.StatusInternalServerError
		f.agent = func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "no", code)
			return true
		}
		c, start := New(f.client(t), Options{}), time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r := Registration{Service: "orders", Addr: "h:1"}
		if _, err := c.Register(ctx, r); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "500 (no)") {
			t.Errorf("Register = %v, want the deadline and what the agent said", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("it took %v, want a minute", d)
		}
		code = http.StatusBadRequest
		if _, err := c.Register(t.Context(), r); err == nil || !strings.Contains(err.Error(), "400 (no)") {
			t.Errorf("Register = %v, want what the agent said", err)
		}
	})
}

func TestCheckDecidesTheHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var result atomic.Value
		result.Store(func(context.Context) error { return errors.New("warming up") })
		registered(t, f, Registration{TTL: 3 * time.Second, Check: func(ctx context.Context) error {
			return result.Load().(func(context.Context) error)(ctx)
		}})
		if s := f.registered[id].Check.Status; s != "critical" {
			t.Errorf("registered as %s, want critical", s)
		}
		for _, step := range []struct {
			check func(context.Context) error
			want  string
		}{
			{func(context.Context) error { return nil }, "passing"},
			{func(context.Context) error { return errors.New("no disk") }, "critical no disk"},
			{func(context.Context) error { panic("boom") }, "critical panic: boom"},
			{func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, "critical context deadline exceeded"},
			{func(context.Context) error { return nil }, "passing"},
		} {
			result.Store(step.check)
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if got := f.check(); got != step.want {
				t.Errorf("check %q, want %q", got, step.want)
			}
		}
		f.forget()
		result.Store(func(context.Context) error { return errors.New("no disk") })
		time.Sleep(2 * time.Second)
		if got := f.check(); got != "critical no disk" {
			t.Errorf("after a restart of the agent: check %q, want what Check says", got)
		}
	})
}

func TestTheHeartbeatStopsBeforeDeregistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		reg, _ := registered(t, f, Registration{})
		for range 3 { // idempotent
			if err := reg.Deregister(t.Context()); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Hour)
		if f.registered[id] != nil || f.called("service/deregister") != 1 || f.calls[len(f.calls)-1] != "service/deregister" {
			t.Errorf("calls %v, want one deregistration at the end", f.calls)
		}
	})
}

func TestTheEndOfTheContextDeregisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		reg, cancel := registered(t, f, Registration{})
		cancel()
		synctest.Wait()
		if f.registered[id] != nil || f.calls[len(f.calls)-1] != "service/deregister" {
			t.Errorf("calls %v", f.calls)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := reg.Deregister(ended); err != nil || f.called("service/deregister") != 1 {
			t.Errorf("Deregister after that = %v, %d deregistrations", err, f.called("service/deregister"))
		}
	})
}

func TestDeregisterWorksWithAnEndedContextAndGivesUpAfterFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		reg, _ := registered(t, f, Registration{})
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		f.mu.Lock()
		f.agent = func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "restarting", http.StatusInternalServerError)
			return strings.Contains(r.URL.Path, "deregister")
		}
		f.mu.Unlock()
		start := time.Now()
		if err := reg.Deregister(ended); err == nil || time.Since(start) != 5*time.Second {
			t.Errorf("Deregister = %v after %v, want an error after 5 s", err, time.Since(start))
		}
		f.mu.Lock()
		f.agent = nil
		f.mu.Unlock()
		if err := reg.Deregister(ended); err != nil || f.registered[id] != nil {
			t.Errorf("Deregister once the agent is back = %v", err)
		}
	})
}

func TestDeregisterTakesAForgottenRegistrationForGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		reg, _ := registered(t, f, Registration{})
		f.forget()
		if err := reg.Deregister(t.Context()); err != nil {
			t.Errorf("Deregister = %v, want nil", err)
		}
	})
}

func TestACheckThatHangsDoesNotHoldDeregistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		hang := make(chan struct{})
		var calls atomic.Int32
		reg, _ := registered(t, f, Registration{Check: func(context.Context) error {
			if calls.Add(1) > 1 {
				<-hang // and does not heed its ctx
			}
			return nil
		}})
		if err := reg.Deregister(t.Context()); err != nil || f.registered[id] != nil {
			t.Errorf("Deregister = %v", err)
		}
		close(hang)
		synctest.Wait()
		time.Sleep(time.Minute)
		if f.registered[id] != nil || f.calls[len(f.calls)-1] != "service/deregister" {
			t.Errorf("calls %v: the registration rose from the dead", f.calls)
		}
	})
}

func TestAFailingAgentIsReportedAndAskedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var reports []error
		c := New(f.client(t), Options{OnError: func(_ string, err error) { reports = append(reports, err) }})
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := c.Register(ctx, Registration{Service: "orders", Addr: "h:1", TTL: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.agent = func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "down", http.StatusInternalServerError)
			return true
		}
		f.mu.Unlock()
		time.Sleep(11 * time.Second)
		f.forget()
		f.mu.Lock()
		f.agent = nil
		f.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if f.registered["orders-h-1"] == nil {
			t.Errorf("not registered again 1 s after the agent is back: %v", f.calls)
		}
		cancel()
		synctest.Wait()
		if len(reports) == 0 || !strings.Contains(reports[0].Error(), "down") {
			t.Errorf("reports %v", reports)
		}
	})
}

func TestARegistrationKeepsItsOwnTagsAndMeta(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		tags, meta := []string{"a"}, map[string]string{"k": "v"}
		registered(t, f, Registration{Tags: tags, Meta: meta})
		tags[0], meta["k"] = "changed", "changed"
		f.forget()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if r := f.registered[id]; !slices.Equal(r.Tags, []string{"a"}) || r.Meta["k"] != "v" {
			t.Errorf("registered again with %v and %v", r.Tags, r.Meta)
		}
	})
}
