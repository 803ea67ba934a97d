package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

// changes collects what OnState is told.
type changes struct {
	mu  sync.Mutex // guards all
	all []State
	err error // the last that was not nil
}

func (cs *changes) on(s State, err error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.all = append(cs.all, s)
	if err != nil {
		cs.err = err
	}
}

func (cs *changes) take() []State {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	all := cs.all
	cs.all = nil
	return all
}

// quick is a Timeout that requests of a test wait for now and then.
const quick = 400 * time.Millisecond

// A trouble is something that may happen to a Redis.
type trouble struct {
	begin, end func(tb testing.TB, r *rig.RedisServer, admin *redis.Client)
}

func config(tb testing.TB, admin *redis.Client, name, value string) {
	tb.Helper()
	if err := admin.ConfigSet(tb.Context(), name, value).Err(); err != nil {
		tb.Fatal(err)
	}
}

var troubles = map[string]trouble{
	"hung": {
		func(_ testing.TB, r *rig.RedisServer, _ *redis.Client) { r.Hang() },
		func(_ testing.TB, r *rig.RedisServer, _ *redis.Client) { r.Resume() },
	},
	"READONLY": {
		func(tb testing.TB, _ *rig.RedisServer, admin *redis.Client) {
			tb.Helper()
			_ = admin.ReplicaOf(tb.Context(), "127.0.0.1", "1").Err() // of nobody
		},
		func(tb testing.TB, _ *rig.RedisServer, admin *redis.Client) {
			tb.Helper()
			_ = admin.ReplicaOf(tb.Context(), "NO", "ONE").Err()
		},
	},
	"LOADING": {
		func(tb testing.TB, r *rig.RedisServer, _ *redis.Client) { tb.Helper(); r.Load() },
		func(tb testing.TB, r *rig.RedisServer, _ *redis.Client) { tb.Helper(); r.Loaded() },
	},
	"NOAUTH": {
		func(tb testing.TB, _ *rig.RedisServer, admin *redis.Client) {
			tb.Helper()
			config(tb, admin, "requirepass", "secret")
			_ = admin.ClientKillByFilter(tb.Context(), "TYPE", "normal", "SKIPME", "yes").Err()
		},
		func(tb testing.TB, _ *rig.RedisServer, admin *redis.Client) {
			tb.Helper()
			config(tb, admin, "requirepass", "")
		},
	},
}

// adminOf has one connection, which stays signed in.
func adminOf(tb testing.TB, addr string) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 1})
	tb.Cleanup(func() { _ = c.Close() })
	if err := c.Ping(tb.Context()).Err(); err != nil {
		tb.Fatal(err)
	}
	return c
}

func TestNobodyIsLoggedOutAndNothingOverwrittenWhileRedisIsAway(t *testing.T) {
	for name, tr := range troubles {
		for kind, prompt := range map[string]bool{"keeps deadlines": true, "ignores deadlines": false} {
			t.Run(name+", the client "+kind, func(t *testing.T) {
				r := rig.Redis(t, rig.SlowLoad...)
				admin := adminOf(t, r.Addr)
				c := redis.NewClient(&redis.Options{Addr: r.Addr, ContextTimeoutEnabled: prompt})
				defer c.Close()
				awayAndBack(t, c, r.Addr, func() { tr.begin(t, r, admin) }, func() { tr.end(t, r, admin) })
			})
		}
	}
}

func awayAndBack(t *testing.T, c *redis.Client, addr string, begin, end func()) {
	t.Helper()
	var told changes
	here := newSite(t, newStore(t, c, Options{Timeout: quick, OnState: told.on}))
	there := newSite(t, newStore(t, clientOf(t, addr), Options{})) // wrote a session that here has no copy of
	known, unknown := newBrowser(), newBrowser()
	here.set(known, "user", "bob")
	there.set(unknown, "user", "eve")
	cookies := [2]string{known.cookies["session"], unknown.cookies["session"]}

	begin()
	writes := func(c *gin.Context) {
		sessions.Default(c).Set("user", "nobody")
		sessions.Default(c).Set("x", 1)
		if err := sessions.Default(c).Save(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Save: %v, want ErrUnavailable", err)
		}
	}
	began := time.Now()
	const rounds = 200
	for range rounds {
		here.wants(known, "user", "bob", Stale)
		here.wants(unknown, "user", nil, Unavailable)
		for _, b := range []*browser{known, unknown} {
			if lines := setCookies(here.do(b, writes)); len(lines) != 0 {
				t.Fatalf("cookies %q", lines)
			}
		}
	}
	// 800 requests that wait would be 320 s; one in 600 ms does, and so does the host.
	if took := time.Since(began); took > 60*time.Second {
		t.Errorf("it took %v", took)
	}
	if all := told.take(); len(all) != 1 || all[0] != Stale || told.err == nil {
		t.Errorf("OnState was told %v, %v", all, told.err)
	}
	end()

	rig.Poll(t, 15*time.Second, func() error { return here.becomes(known, "user", "bob") })
	here.wants(unknown, "user", "eve", Live)
	here.wants(known, "x", nil, Live)
	if all := told.take(); len(all) != 1 || all[0] != Live {
		t.Errorf("OnState was told %v", all)
	}
	if cookies != [2]string{known.cookies["session"], unknown.cookies["session"]} {
		t.Error("a cookie has changed")
	}
	here.set(known, "user", "bob2")
	here.wants(known, "user", "bob2", Live)
}

func TestAKilledRedisIsFoundAgain(t *testing.T) {
	r := rig.Redis(t)
	var told changes
	s, b := newSite(t, newStore(t, clientOf(t, r.Addr), Options{Timeout: quick, OnState: told.on})), newBrowser()
	s.set(b, "user", "bob")
	for range 2 {
		told.take()
		r.Kill()
		for range 50 {
			s.wants(b, "user", "bob", Stale)
		}
		r.Restart() // empty: the session is gone
		rig.Poll(t, 15*time.Second, func() error { return s.becomes(b, "user", nil) })
		if all := told.take(); len(all) != 2 || all[0] != Stale || all[1] != Live {
			t.Errorf("OnState was told %v", all)
		}
		s.set(b, "user", "bob")
	}
}

func TestRedisMayComeUpLater(t *testing.T) {
	r := rig.Redis(t)
	r.Kill()
	s, b := newSite(t, newStore(t, clientOf(t, r.Addr), Options{Timeout: quick})), newBrowser()
	s.do(b, func(c *gin.Context) {
		sessions.Default(c).Set("user", "bob")
		if err := sessions.Default(c).Save(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Save: %v", err)
		}
	})
	r.Restart()
	rig.Poll(t, 15*time.Second, func() error {
		var err error
		s.do(b, func(c *gin.Context) {
			sessions.Default(c).Set("user", "bob")
			err = sessions.Default(c).Save()
		})
		return err
	})
	s.wants(b, "user", "bob", Live)
}

func TestNewNeverDials(t *testing.T) {
	var dialed atomic.Int32
	c := redis.NewClient(&redis.Options{Dialer: func(context.Context, string, string) (net.Conn, error) {
		dialed.Add(1)
		return nil, io.EOF
	}})
	defer c.Close()
	s, b := newSite(t, newStore(t, c, Options{})), newBrowser()
	s.do(b, func(*gin.Context) {})
	s.wants(b, "k", nil, Live) // there is no cookie, and nothing to ask for
	if n := dialed.Load(); n != 0 {
		t.Errorf("%d dials", n)
	}
}

func TestARedisThatRefusesWritesIsReadAsEver(t *testing.T) {
	for name, refuse := range map[string]func(r *rig.RedisServer, admin *redis.Client, yes bool){
		"OOM": func(_ *rig.RedisServer, admin *redis.Client, yes bool) {
			config(t, admin, "maxmemory-policy", "noeviction")
			config(t, admin, "maxmemory", map[bool]string{true: "1", false: "0"}[yes])
		},
		"NOREPLICAS": func(_ *rig.RedisServer, admin *redis.Client, yes bool) {
			config(t, admin, "min-replicas-to-write", map[bool]string{true: "1", false: "0"}[yes])
		},
		"MISCONF": func(r *rig.RedisServer, _ *redis.Client, yes bool) {
			if yes {
				r.BreakDisk()
			} else {
				r.MendDisk()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.Redis(t)
			admin := adminOf(t, r.Addr)
			var told changes
			s, b := newSite(t, newStore(t, clientOf(t, r.Addr), Options{OnState: told.on})), newBrowser()
			s.set(b, "user", "bob")
			refuse(r, admin, true)
			for range 10 {
				s.wants(b, "user", "bob", Live)
				s.do(b, func(c *gin.Context) {
					sessions.Default(c).Set("user", "eve")
					if err := sessions.Default(c).Save(); !errors.Is(err, ErrUnavailable) || !refusesWrites(err) {
						t.Errorf("Save: %v", err)
					}
					if state := StateOf(c); state != Stale {
						t.Errorf("after a write that was refused: %v", state)
					}
				})
			}
			refuse(r, admin, false)
			s.wants(b, "user", "bob", Live)
			s.set(b, "user", "bob2")
			s.wants(b, "user", "bob2", Live)
			if all := told.take(); len(all) != 2 || all[0] != Stale || all[1] != Live {
				t.Errorf("OnState was told %v", all)
			}
		})
	}
}

// garbled is the address of a server that answers every read with the same.
func garbled(tb testing.TB, reply string) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 1<<16)
				for {
					if _, err := conn.Read(b); err != nil {
						return
					}
					if _, err := io.WriteString(conn, reply); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestGarbageIsARedisThatIsAway(t *testing.T) {
	for _, reply := range []string{
		"HTTP/1.1 400 Bad Request\r\n\r\n", "\x00\x01\x02\r\n", "*3\r\n", "$99999999999999\r\n",
		"-LOADING Redis is loading the dataset in memory\r\n", "-MASTERDOWN Link with MASTER is down\r\n",
		"-NOAUTH Authentication required.\r\n", "-READONLY You can't write against a read only replica.\r\n",
		"-ERR unknown command\r\n",
	} {
		t.Run(fmt.Sprintf("%.12q", reply), func(t *testing.T) {
			var told changes
			c := redis.NewClient(&redis.Options{Addr: garbled(t, reply), ContextTimeoutEnabled: true, DisableIdentity: true})
			defer c.Close()
			s, b := newSite(t, newStore(t, c, Options{Timeout: quick, OnState: told.on})), newBrowser()
			b.cookies["session"] = newSigner([][]byte{testKey}).encode("session", newID(), time.Now())
			before := b.cookies["session"]
			for range 20 {
				s.wants(b, "user", nil, Unavailable)
			}
			if all := told.take(); len(all) != 1 || all[0] != Unavailable {
				t.Errorf("OnState was told %v", all)
			}
			if b.cookies["session"] != before {
				t.Error("the cookie has changed")
			}
		})
	}
}

func TestManyRequestsAtOnceWaitForAHungRedisOnce(t *testing.T) {
	r := rig.Redis(t)
	for kind, prompt := range map[string]bool{"keeps deadlines": true, "ignores deadlines": false} {
		t.Run(kind, func(t *testing.T) {
			c := redis.NewClient(&redis.Options{Addr: r.Addr, ContextTimeoutEnabled: prompt})
			defer c.Close()
			store := newStore(t, c, Options{Timeout: quick})
			s, b := newSite(t, store), newBrowser()
			s.set(b, "user", "bob")
			r.Hang()
			defer r.Resume()
			began := time.Now()
			var requests sync.WaitGroup
			for range 300 {
				requests.Go(func() {
					for range 10 {
						if v, state := s.get(b.copy(), "user"); v != "bob" || state != Stale {
							t.Errorf("%v, %v", v, state)
						}
					}
				})
			}
			requests.Wait()
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}
