package consul

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
)

// answers makes f answer the nth query at once with the nth index, and block after the last.
func answers(f *fake, indexes ...uint64) {
	f.respond(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if n > len(indexes) {
			<-r.Context().Done()
			return true
		}
		headers(w, indexes[n-1])
		_ = json.NewEncoder(w).Encode([]*api.ServiceEntry{entry("a")})
		return true
	})
}

func TestIndexRules(t *testing.T) {
	for name, tt := range map[string]struct {
		answered []uint64
		asked    string
	}{
		"forward":            {[]uint64{100, 150, 151}, " 100 150 151"},
		"backwards resets":   {[]uint64{100, 150, 20, 21}, " 100 150  21"},
		"zero is made one":   {[]uint64{0, 7}, " 1 7"},
		"back to zero":       {[]uint64{100, 0, 7}, " 100  7"},
		"the same goes on":   {[]uint64{100, 100}, " 100 100"},
		"one step backwards": {[]uint64{100, 99, 99}, " 100  99"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				answers(f, tt.answered...)
				got := follow(t.Context(), New(f.client(t), Options{}), "orders")
				expect(t, got, "a")
				var asked []string
				for _, q := range f.asked() {
					asked = append(asked, q.Get("index"))
				}
				if s := strings.Join(asked, " "); s != tt.asked {
					t.Errorf("asked with indexes %q, want %q", s, tt.asked)
				}
			})
		})
	}
}

func TestAnswersAtOnceForEverAreNoBusyLoop(t *testing.T) {
	for name, index := range map[string]func(n int) uint64{
		"new index":  func(n int) uint64 { return uint64(n) },
		"same index": func(int) uint64 { return 7 },
		"zero":       func(int) uint64 { return 0 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.respond(func(w http.ResponseWriter, _ *http.Request, n int) bool {
					headers(w, index(n))
					_ = json.NewEncoder(w).Encode([]*api.ServiceEntry{entry("a")})
					return true
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for s := range follow(ctx, New(f.client(t), Options{}), "orders") {
					if s != "a" {
						t.Errorf("news %q", s)
					}
				}
				asked := f.asked()
				if len(asked) < 60 {
					t.Errorf("%d queries in a minute: it is not limited but stuck", len(asked))
				}
				for i := 10; i < len(asked); i++ {
					if d := asked[i].at.Sub(asked[i-10].at); d <= time.Second {
						t.Fatalf("queries %d to %d within %v, want ten in any second", i-10, i, d)
					}
				}
			})
		})
	}
}

func TestAnAnswerMayTakeTheWaitAndASixteenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		f.respond(func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n > 1 {
				time.Sleep(55*time.Second + 55*time.Second/16)
			}
			headers(w, 7)
			_ = json.NewEncoder(w).Encode([]*api.ServiceEntry{entry("a")})
			return true
		})
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		expect(t, got, "a")
		time.Sleep(2 * time.Minute)
		expect(t, got)
		if n := len(f.asked()); n != 4 {
			t.Errorf("%d queries, want 4: none was given up", n)
		}
	})
}

func TestASilentAgentIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		f.respond(func(_ http.ResponseWriter, r *http.Request, n int) bool {
			if n > 1 {
				<-r.Context().Done()
			}
			return n > 1
		})
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		expect(t, got, "a")
		time.Sleep(64 * time.Second) // 55 s + 55 s/16 + 5 s, and the backoff
		expect(t, got, "error: consul: no answer within 1m3.4375s: context deadline exceeded")
		f.mu.Lock()
		f.services["orders"] = []*api.ServiceEntry{entry("b")}
		f.mu.Unlock()
		f.respond(nil)
		time.Sleep(21 * time.Second) // a query that does not block is given up after 10 s
		if sets, _ := drain(got); len(sets) != 1 || sets[0] != "b" {
			t.Errorf("sets after the agent came back: %q, want b", sets)
		}
	})
}

func TestTheLastSetIsKeptThroughErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "ab")
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		expect(t, got, "ab")
		before := len(f.asked())
		f.respond(fail)
		f.set("orders", "")
		time.Sleep(2 * time.Hour)
		sets, failures := drain(got)
		if len(sets) != 0 || failures < 700 { // one in at most 10 s
			t.Errorf("in two hours of errors: sets %q, %d errors", sets, failures)
		}
		asked := f.asked()[before:]
		for i, q := range asked {
			if i > 0 && q.Has("index") {
				t.Fatalf("%v after an error: a server that counts from elsewhere would not answer", q)
			}
			if i > 1 && q.at.Sub(asked[i-1].at) > 10*time.Second {
				t.Fatalf("query %d came after %v", i, q.at.Sub(asked[i-1].at))
			}
		}
		f.respond(nil)
		f.set("orders", "bc")
		time.Sleep(10 * time.Second)
		expect(t, got, "bc")
	})
}

func TestAWatchThatFailsAtFirstRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		f.respond(fail)
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		time.Sleep(time.Hour)
		if sets, failures := drain(got); len(sets) != 0 || failures == 0 {
			t.Errorf("sets %q, %d errors; want only errors", sets, failures)
		}
		f.respond(nil)
		time.Sleep(10 * time.Second)
		expect(t, got, "a")
		f.set("orders", "b")
		expect(t, got, "b") // and at once again
	})
}

func TestNoInstancesAreBelievedAfterAGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		expect(t, got, "a")
		f.set("orders", "")
		time.Sleep(10*time.Second - 1)
		expect(t, got)
		f.set("users", "x") // a new index with the same payload does not start it anew
		time.Sleep(time.Nanosecond)
		expect(t, got, "")
		asked := f.asked()
		if q := asked[len(asked)-2]; q.Has("index") {
			t.Errorf("believed without asking again: the query before the last is %v", q)
		}
		f.set("orders", "a")
		expect(t, got, "a")
	})
}

func TestInstancesThatComeBackWithinTheGraceWereNeverGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		got := follow(t.Context(), New(f.client(t), Options{EmptyGrace: time.Minute, Wait: 2 * time.Second}), "orders")
		expect(t, got, "a")
		for range 3 {
			f.set("orders", "")
			time.Sleep(59 * time.Second)
			f.set("orders", "a")
			time.Sleep(59 * time.Second)
		}
		expect(t, got)
	})
}

func TestAnErrorStartsTheGraceAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		expect(t, got, "a")
		f.set("orders", "")
		time.Sleep(9 * time.Second)
		f.respond(fail)
		f.set("orders", "")
		time.Sleep(time.Minute)
		f.respond(nil)
		time.Sleep(10 * time.Second) // one backoff at most
		if sets, _ := drain(got); len(sets) != 0 {
			t.Errorf("sets %q before the grace is over", sets)
		}
		time.Sleep(10 * time.Second)
		expect(t, got, "")
	})
}

func TestANegativeGraceBelievesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		got := follow(t.Context(), New(f.client(t), Options{EmptyGrace: -1}), "orders")
		expect(t, got, "a")
		f.set("orders", "")
		expect(t, got, "")
	})
}

func TestAServiceThatNobodyRegisteredCostsNoWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		expect(t, got, "")
		f.set("orders", "") // and stays no news
		expect(t, got)
	})
}

func TestWhatIsNotBelieved(t *testing.T) {
	for name, tt := range map[string]struct {
		header, value string
		want          error
	}{
		"filtered by ACLs": {"X-Consul-Results-Filtered-By-ACLs", "true", ErrFiltered},
		"no leader":        {"X-Consul-KnownLeader", "false", ErrNoLeader},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.set("orders", "ab")
				var reported error
				c := New(f.client(t), Options{EmptyGrace: -1, OnError: func(_ string, err error) { reported = err }})
				got := follow(t.Context(), c, "orders")
				expect(t, got, "ab")
				for _, entries := range [][]*api.ServiceEntry{{}, {entry("a")}} {
					f.respond(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
						headers(w, 99).Set(tt.header, tt.value)
						_ = json.NewEncoder(w).Encode(entries)
						return true
					})
					f.set("orders", "ab") // wakes the query that waits
					time.Sleep(time.Minute)
					if sets, failures := drain(got); len(sets) != 0 || failures == 0 || !errors.Is(reported, tt.want) {
						t.Errorf("sets %q, %d errors, the last %v; want %v", sets, failures, reported, tt.want)
					}
				}
				f.respond(nil)
				f.set("orders", "bc")
				time.Sleep(10 * time.Second)
				expect(t, got, "bc")
			})
		})
	}
}

// A client agent with the streaming backend, the default, says KnownLeader: false in every such answer.
func TestAStreamingAgentNamesNoLeaderAndIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set("orders", "a")
		f.respond(func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n != 2 {
				return false
			}
			h := headers(w, 50)
			h.Set("X-Consul-KnownLeader", "false")
			h.Set("X-Consul-Query-Backend", "streaming")
			_ = json.NewEncoder(w).Encode([]*api.ServiceEntry{entry("b")})
			return true
		})
		got := follow(t.Context(), New(f.client(t), Options{}), "orders")
		time.Sleep(time.Second)
		if s := <-got; s != "a" && s != "b" {
			t.Errorf("first news %q", s)
		}
		for _, q := range f.asked() {
			if q.Get("index") == "50" {
				return
			}
		}
		t.Errorf("the streamed answer was not taken: %v", f.asked())
	})
}
