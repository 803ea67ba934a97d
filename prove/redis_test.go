package prove

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

const users = 50

func TestTheRedisPrimaryIsKilled(t *testing.T) {
	for _, name := range names("run", false) {
		t.Run(name, killTheRedisPrimary)
	}
}

// killTheRedisPrimary reads and writes the sessions of 50 users, a fifth of the requests being writes, while Sentinel makes
// the replica the primary.
func killTheRedisPrimary(t *testing.T) {
	t.Helper()
	group := rig.Sentinel(t)
	all, _ := three(t, config{Sentinels: group.SentinelAddrs, Master: group.MasterName})
	addr := edge(t, "-peers", all[0].Addr+","+all[1].Addr+","+all[2].Addr)
	l := load{base: "http://" + addr, rate: 50, during: users / 50 * time.Second, timeout: 5 * time.Second}

	l.next = func(int) request { return request{method: http.MethodPost, path: "/session/user"} }
	logins := l.run(t)
	// Each instance has to know each session: what it has never seen it cannot serve without Redis.
	l.next = func(i int) request {
		return request{method: http.MethodGet, path: "/session/user", cookie: logins[i%users].cookie}
	}
	for _, p := range all {
		warm := l
		warm.base = "http://" + p.Addr
		warm.run(t)
	}
	replicated(t, group)

	l.rate, l.during = scale(500, 100), scale(15*time.Second, 9*time.Second)
	l.next = func(i int) request {
		r := request{method: http.MethodGet, path: "/session/user", cookie: logins[i%users].cookie}
		if i%5 == 0 {
			r.method, r.path = http.MethodPost, "/session/"+strconv.Itoa(i)
		}
		return r
	}
	switched := time.Duration(0) // from the kill until a sentinel names another primary
	l.events = []event{{faultAt, group.Primary.Kill}, {faultAt, func() { switched = switchover(t, group) }}}
	records := l.run(t)
	res := summarise("redis", "Highball", l, faultAt, records)
	reads, writes := failing(records)
	res.More = map[string]float64{"writes fail for": ms(writes), "reads fail for": ms(reads), "sentinel": ms(switched), "lost": lost(t, l.base, records)}
	res.add(t)
	if res.FailedGET > 0 {
		t.Errorf("%d reads failed", res.FailedGET)
	}
	if res.FailedPOST == 0 {
		t.Error("no write failed: was the primary killed?")
	}
	// Sentinel's down-after is a second, and the rest of its time is its own.
	if most := switched + scale(500*time.Millisecond, 2*time.Second); writes > most {
		t.Errorf("writes failed for %v, want %v at most", writes, most)
	}
}

// switchover is how long it takes a sentinel to name another primary.
func switchover(tb testing.TB, g *rig.SentinelGroup) time.Duration {
	tb.Helper()
	c := redis.NewSentinelClient(&redis.Options{Addr: g.SentinelAddrs[0]})
	defer c.Close()
	start := time.Now()
	rig.Poll(tb, 20*time.Second, func() error {
		at, err := c.GetMasterAddrByName(context.Background(), g.MasterName).Result()
		if err == nil && at[0]+":"+at[1] == g.Primary.Addr {
			err = errors.New("not yet")
		}
		return err
	})
	return time.Since(start)
}

// replicated waits until the replica has all that was written.
func replicated(tb testing.TB, g *rig.SentinelGroup) {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: g.Primary.Addr})
	defer c.Close()
	if n, err := c.Wait(context.Background(), 1, 5*time.Second).Result(); n < 1 || err != nil {
		tb.Fatalf("no replica has it all: %v", err)
	}
}

// failing is from when the first request that failed was due to when the last one was.
func failing(records []record) (reads, writes time.Duration) {
	first := map[string]time.Duration{}
	for i := range records {
		r := &records[i]
		if ok(r) {
			continue
		}
		if _, seen := first[r.method]; !seen {
			first[r.method] = r.at
		}
		if r.method == http.MethodGet {
			reads = r.at - first[r.method]
		} else {
			writes = r.at - first[r.method]
		}
	}
	return reads, writes
}

// lost counts the writes that were acknowledged and are not in their session afterwards. Redis replicates asynchronously:
// those of the primary's last moments may be.
func lost(tb testing.TB, base string, records []record) float64 {
	tb.Helper()
	client := newClient(5 * time.Second)
	missing := 0
	for i := range records {
		r := &records[i]
		if !ok(r) || r.method != http.MethodPost {
			continue
		}
		again := record{request: request{method: http.MethodGet, path: r.path, cookie: r.request.cookie}}
		if again.status, _ = (load{base: base}).try(client, &again); again.status == http.StatusNotFound {
			missing++
		} else if again.status != http.StatusOK {
			tb.Errorf("%s: status %d", r.path, again.status)
		}
	}
	return float64(missing)
}
