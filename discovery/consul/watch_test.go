package consul

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

var _ discovery.Source = (*Consul)(nil)

func fail(w http.ResponseWriter, _ *http.Request, _ int) bool {
	http.Error(w, "No cluster leader", http.StatusInternalServerError)
	return true
}

func TestAChangeIsSeenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		expect(t, got, "")
		start := time.Now()
		for _, ids := range []string{"a", "ab", "b"} { // and the first two without any pause
			f.set("orders", ids)
			expect(t, got, ids)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("it took %v", d)
		}
	})
}

func TestWatchersOfAServiceShareOnePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		c := New(f.client(t), Options{})
		first, leave := context.WithCancel(t.Context())
		one := follow(first, c, "orders")
		expect(t, one, "a")
		time.Sleep(time.Second)
		two := follow(t.Context(), c, "orders")
		expect(t, two, "a") // a late one, at once
		if n := f.pending(); n != 1 {
			t.Errorf("%d queries wait, want one for both", n)
		}
		f.set("orders", "ab")
		expect(t, one, "ab")
		expect(t, two, "ab")
		leave()
		expect(t, one)
		f.set("orders", "b")
		expect(t, two, "b")
		if n := len(f.asked()); n != 4 {
			t.Errorf("%d queries, want 4: the first, and one after each answer", n)
		}
	})
}

func TestServicesDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.setIndex(500, "orders", entry("a"))
		c := New(f.client(t), Options{})
		orders, users := follow(t.Context(), c, "orders"), follow(t.Context(), c, "users")
		expect(t, orders, "a")
		expect(t, users, "")
		f.set("users", "x")
		expect(t, users, "x")
		expect(t, orders) // the same payload under a new index is no news
	})
}

func TestTheEndOfTheContextEndsThePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		c := New(f.client(t), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		got := follow(ctx, c, "orders")
		expect(t, got, "a")
		start := time.Now()
		cancel()
		if s, ok := <-got; ok {
			t.Errorf("%q came after the end of ctx", s)
		}
		synctest.Wait()
		if d := time.Since(start); d != 0 || f.pending() != 0 || len(c.watches) != 0 {
			t.Errorf("after %v: %d polls, %d watches; want none", d, f.pending(), len(c.watches))
		}
	})
}

// The caller of an iterator may be busy with a set when ctx ends.
func TestTheEndOfTheContextEndsThePollWhileTheCallerIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		c := New(f.client(t), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range c.Watch(ctx, "orders") {
			synctest.Wait()
			if f.pending() != 1 {
				t.Error("no poll")
			}
			cancel()
			synctest.Wait()
			if n := f.pending(); n != 0 {
				t.Errorf("%d polls after the end of ctx", n)
			}
		}
	})
}

func TestLeavingAWatchEndsThePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f.client(t), Options{})
		for range c.Watch(t.Context(), "orders") {
			break
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range c.Watch(ended, "orders") {
			t.Error("a watch of an ended context yields")
		}
		synctest.Wait()
		if f.pending() != 0 || len(c.watches) != 0 {
			t.Errorf("%d polls, %d watches; want none", f.pending(), len(c.watches))
		}
	})
}

func TestAnErrorIsReportedOncePerQueryNotPerWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.respond(fail)
		var c *Consul
		reports := 0
		c = New(f.client(t), Options{OnError: func(service string, err error) {
			reports++
			if service != "orders" || !strings.Contains(err.Error(), "No cluster leader") {
				t.Errorf("OnError(%q, %v)", service, err)
			}
			c.mu.Lock() // no lock is held
			defer c.mu.Unlock()
		}})
		ctx, cancel := context.WithCancel(t.Context())
		one, two := follow(ctx, c, "orders"), follow(ctx, c, "orders")
		time.Sleep(time.Minute)
		_, failures := drain(one)
		if _, also := drain(two); failures != also || failures != reports || failures != len(f.asked()) || failures == 0 {
			t.Errorf("watchers saw %d and %d errors, OnError %d, of %d queries", failures, also, reports, len(f.asked()))
		}
		late := follow(ctx, c, "orders")
		synctest.Wait()
		if sets, failures := drain(late); len(sets) != 0 || failures != 1 {
			t.Errorf("a late watcher saw %q and %d errors, want the last error", sets, failures)
		}
		cancel()
		synctest.Wait()
	})
}

func TestALateWatcherHearsNothingOfErrorsThatAreOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		c := New(f.client(t), Options{})
		got := follow(t.Context(), c, "orders")
		expect(t, got, "a")
		f.respond(fail)
		f.set("orders", "a")
		time.Sleep(time.Minute)
		if _, failures := drain(got); failures == 0 {
			t.Error("no errors")
		}
		f.respond(nil)
		time.Sleep(10 * time.Second)
		expect(t, got) // the same set again is no news
		expect(t, follow(t.Context(), c, "orders"), "a")
	})
}

func TestWithoutAClientAWatchSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, err := range New(nil, Options{}).Watch(t.Context(), "orders") {
			if !errors.Is(err, errNoClient) {
				t.Errorf("error %v, want %v", err, errNoClient)
			}
			break
		}
		if _, err := New(nil, Options{}).Register(t.Context(), Registration{}); !errors.Is(err, errNoClient) {
			t.Errorf("Register: %v, want %v", err, errNoClient)
		}
	})
}

func TestOptionsBecomeParameters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f.client(t), Options{Tags: []string{"v2"}, Filter: `Node.Node == "n" or Node.Node == "m"`, Datacenter: "dc2", Wait: time.Hour})
		got := follow(t.Context(), c, "orders")
		expect(t, got, "")
		q := f.asked()[0]
		want := map[string]string{
			"filter": `(Node.Node == "n" or Node.Node == "m") and "v2" in Service.Tags`,
			"dc":     "dc2", "wait": "600000ms", "passing": "1",
			"tag": "", "near": "", "stale": "", "cached": "", "index": "", // near turns streaming off, tag is deprecated
		}
		for k, v := range want {
			if q.Get(k) != v {
				t.Errorf("%s = %q, want %q", k, q.Get(k), v)
			}
		}
	})
}

func TestIncludeWarningAsksForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		warns := entry("a")
		warns.Checks[0].Status = "warning"
		f.setEntries("orders", warns)
		got := follow(t.Context(), New(f.client(t), Options{IncludeWarning: true}), "orders")
		expect(t, got, "a")
		if q := f.asked()[0]; q.Has("passing") {
			t.Errorf("%v hides what warns", q)
		}
	})
}

func TestATagCannotEscapeItsFilter(t *testing.T) {
	for tag, want := range map[string]string{
		`v2`:                `"v2"`,
		`" or "" == "`:      `"\x22 or \x22\x22 == \x22"`,
		`\`:                 `"\\"`,
		`\"`:                `"\\\x22"`,
		"`\n":               "\"`\\n\"",
		`a" in X or "a\" b`: `"a\x22 in X or \x22a\\\x22 b"`,
	} {
		if got := quote(tag); got != want || strings.Count(got, `"`) != 2 {
			t.Errorf("quote(%s) = %s, want %s", tag, got, want)
		}
	}
	if got := filter(nil, "  "); got != "" {
		t.Errorf("no tags, no filter: %q", got)
	}
}

func TestBackoffIsJitteredAndAtMostTenSeconds(t *testing.T) {
	for n := 1; n < 100; n++ {
		var all []time.Duration
		for range 50 {
			all = append(all, backoff(n))
		}
		slices.Sort(all)
		most := 10 * time.Second
		if n <= 7 {
			most = 100 * time.Millisecond << (n - 1)
		}
		if all[0] < most/2 || all[49] > most || all[0] == all[49] {
			t.Errorf("after %d failures from %v to %v, want spread over [%v, %v]", n, all[0], all[49], most/2, most)
		}
	}
}

func TestAgeIsTheTimeSinceConsulLastAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		c := New(f.client(t), Options{Wait: time.Minute})
		expect(t, follow(t.Context(), c, "orders"), "a")
		f.respond(fail)
		time.Sleep(time.Hour)
		got := c.Age()
		// One poll may have been answered after a minute and its sixteenth.
		if d := got["orders"]; len(got) != 1 || d < 58*time.Minute || d > time.Hour {
			t.Errorf("Age = %v, want about an hour", got)
		}
		f.respond(nil)
		time.Sleep(time.Minute + 15*time.Second)
		if d := c.Age()["orders"]; d > time.Minute+5*time.Second {
			t.Errorf("Age = %v after Consul is back, want a poll's time at most", d)
		}
		f.respond(fail)
		follow(t.Context(), c, "users")
		synctest.Wait()
		if _, ok := c.Age()["users"]; ok {
			t.Error("a service that Consul never answered for has an age")
		}
	})
}
