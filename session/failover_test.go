package session

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
	"github.com/highball-go/highball/internal/rig"
)

// A counter counts up in a session of its own, and remembers what was acknowledged.
type counter struct {
	b    *browser
	is   int
	last time.Time // when a write failed last
	fail int
}

func (w *counter) write(s *site) (err error) {
	s.tb.Helper()
	s.do(w.b, func(c *gin.Context) {
		session := sessions.Default(c)
		session.Set("n", w.is+1)
		if err = session.Save(); err == nil {
			w.is++
		}
	})
	if err != nil {
		w.fail, w.last = w.fail+1, time.Now()
	}
	return err
}

// load has each counter count and read until it is stopped.
func load(t *testing.T, s *site, counters []*counter, mayFail bool) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var running sync.WaitGroup
	for _, w := range counters {
		running.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				if err := w.write(s); err != nil && (!mayFail || !errors.Is(err, ErrUnavailable)) {
					t.Errorf("a write failed with %v", err)
				}
				v, state := s.get(w.b, "n")
				if n, _ := v.(int); n == 0 || state == Unavailable || state != Live && !mayFail {
					t.Errorf("a read was answered %v, %v", v, state)
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(done)
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func countersOf(t *testing.T, s *site, n int) []*counter {
	t.Helper()
	all := make([]*counter, n)
	for i := range all {
		all[i] = &counter{b: newBrowser()}
		rig.Poll(t, 10*time.Second, func() error { return all[i].write(s) })
		all[i].fail = 0
	}
	return all
}

func TestASentinelFailoverIsServedThroughout(t *testing.T) {
	g := rig.Sentinel(t)
	c := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: g.MasterName, SentinelAddrs: g.SentinelAddrs, ContextTimeoutEnabled: true,
	})
	defer c.Close()
	s := newSite(t, newStore(t, c, Options{}))
	settled := newBrowser()
	s.set(settled, "user", "bob") // acknowledged, and replicated
	counters := countersOf(t, s, 4)
	admin := adminOf(t, g.Primary.Addr)
	rig.Poll(t, 10*time.Second, func() error {
		if n, err := admin.Wait(t.Context(), 1, time.Second).Result(); err != nil || n != 1 {
			return fmt.Errorf("%d replicas: %w", n, err)
		}
		return nil
	})

	sentinel := redis.NewSentinelClient(&redis.Options{Addr: g.SentinelAddrs[0]})
	defer sentinel.Close()
	stop := load(t, s, counters, true)
	killed := time.Now()
	g.Primary.Kill()
	rig.Poll(t, rig.FailoverWithin, func() error {
		addr, err := sentinel.GetMasterAddrByName(t.Context(), g.MasterName).Result()
		if err == nil && net.JoinHostPort(addr[0], addr[1]) == g.Primary.Addr {
			err = errors.New("there is no new primary")
		}
		return err
	})
	promoted := time.Since(killed)
	rig.Poll(t, rig.FailoverWithin, func() error {
		return s.becomes(settled, "user", "bob")
	})
	// Enough to see that it stays so.
	for _, w := range []*counter{{b: settled}, {b: newBrowser()}} {
		rig.Poll(t, rig.FailoverWithin, func() error { return w.write(s) })
	}
	stop()
	failed, lost, last := 0, 0, time.Duration(0)
	for i, w := range counters {
		v, state := s.get(w.b, "n")
		n, _ := v.(int)
		if state != Live {
			t.Errorf("counter %d: %v", i, state)
		}
		failed, lost = failed+w.fail, lost+max(w.is-n, 0)
		if w.fail > 0 {
			last = max(last, w.last.Sub(killed))
		}
	}
	s.wants(settled, "user", "bob", Live)
	if last > promoted+5*time.Second { // on a machine that is busy; docs/sessions.md has it for one that is not
		t.Errorf("Sentinel had a new primary after %v, writes failed for %v", promoted, last)
	}
	t.Logf("a new primary after %v; writes failed for %v, %d of them; %d were acknowledged and not replicated", promoted, last, failed, lost)
}

func TestASlotOfAClusterMovesUnderLoadWithoutAnError(t *testing.T) {
	nodes := rig.RedisCluster(t)
	c := clusterOf(t, nodes)
	s := newSite(t, newStore(t, c, Options{}))
	counters := countersOf(t, s, 8)
	from, to := adminOf(t, nodes.Addrs[0]), adminOf(t, nodes.Addrs[1])
	var keys []string
	for range 100 { // one of the sessions is on the first node, or soon will be
		if keys = from.Keys(t.Context(), "session_*").Val(); len(keys) > 0 {
			break
		}
		counters = append(counters, countersOf(t, s, 1)...)
	}
	stop := load(t, s, counters, false)
	moved := map[int]bool{}
	for _, key := range keys {
		if slot := outage.SlotOf(key); !moved[slot] {
			moveSlot(t, strconv.Itoa(slot), from, to, nodes)
			moved[slot] = true
		}
	}
	stop()
	for i, w := range counters {
		if v, state := s.get(w.b, "n"); v != w.is || state != Live {
			t.Errorf("counter %d: %v of %d, %v", i, v, w.is, state)
		}
	}
	for _, key := range keys {
		if n := to.Exists(t.Context(), key).Val(); n != 1 {
			t.Errorf("%s has not moved: the test proves nothing", key)
		}
	}
}

// moveSlot moves a slot as redis-cli --cluster reshard does.
func moveSlot(t *testing.T, slot string, from, to *redis.Client, nodes *rig.RedisClusterNodes) {
	t.Helper()
	ctx := t.Context()
	do := func(c *redis.Client, args ...any) string {
		t.Helper()
		v, err := c.Do(ctx, args...).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			t.Fatalf("%v: %v", args, err)
		}
		return fmt.Sprint(v)
	}
	fromID, toID := do(from, "CLUSTER", "MYID"), do(to, "CLUSTER", "MYID")
	do(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
	do(from, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	target := to.Options().Addr
	n, _ := strconv.Atoi(slot)
	for {
		keys := from.ClusterGetKeysInSlot(ctx, n, 10).Val()
		if len(keys) == 0 {
			break
		}
		for _, key := range keys {
			ip, port, _ := net.SplitHostPort(target)
			do(from, "MIGRATE", ip, port, key, "0", "5000")
		}
	}
	for _, c := range []*redis.Client{to, from} {
		do(c, "CLUSTER", "SETSLOT", slot, "NODE", toID)
	}
	do(adminOf(t, nodes.Addrs[2]), "CLUSTER", "SETSLOT", slot, "NODE", toID)
}
