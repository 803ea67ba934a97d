package redislimit

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
	"github.com/highball-go/highball/internal/rig"
	"github.com/highball-go/highball/ratelimit"
)

// becomes waits until decisions on a key have a source.
func becomes(tb testing.TB, l *Limiter, key, source string) {
	tb.Helper()
	rig.Poll(tb, 15*time.Second, func() error {
		d, err := l.AllowN(context.Background(), key, 1)
		if err != nil || d.Source != source {
			return errors.Join(err, fmt.Errorf("%+v, want the source %q", d, source))
		}
		return nil
	})
}

// costs is how long so many decisions take in a row, the longest of them, and the sources they had.
func costs(tb testing.TB, l *Limiter, times int) (all, longest time.Duration, sources map[string]int) {
	tb.Helper()
	sources = map[string]int{}
	began := time.Now()
	for i := range times {
		before := time.Now()
		sources[allow(tb, l, "k"+strconv.Itoa(i%10), 1).Source]++
		longest = max(longest, time.Since(before))
	}
	return time.Since(began), longest, sources
}

func TestAHungRedisCostsNextToNothingAndIsFoundAgain(t *testing.T) {
	r := rig.Redis(t)
	for name, c := range map[string]*redis.Client{
		"ignores deadlines": redis.NewClient(&redis.Options{Addr: r.Addr}),
		"keeps deadlines":   redis.NewClient(&redis.Options{Addr: r.Addr, ContextTimeoutEnabled: true}),
	} {
		t.Run(name, func(t *testing.T) {
			defer c.Close()
			l := limiter(t, c, ratelimit.PerSecond(1e6, 1e6), Options{Lease: -1, Timeout: 200 * time.Millisecond})
			becomes(t, l, "k0", "redis")
			r.Hang()
			all, longest, sources := costs(t, l, 1000)
			r.Resume()
			if sources["fallback"] != 1000 || longest > 3*time.Second || all > 10*time.Second {
				t.Errorf("1000 decisions took %v, one %v, from %v", all, longest, sources)
			}
			becomes(t, l, "k0", "redis")
		})
	}
}

func TestAKilledRedisCostsNextToNothingAndIsFoundAgain(t *testing.T) {
	r := rig.Redis(t)
	l := limiter(t, clientOf(t, r.Addr), ratelimit.PerSecond(1e6, 1e6), Options{Lease: -1, Timeout: 200 * time.Millisecond})
	becomes(t, l, "k0", "redis")
	for range 2 {
		r.Kill()
		if all, _, sources := costs(t, l, 1000); sources["fallback"] < 999 || all > 10*time.Second {
			t.Errorf("1000 decisions took %v, from %v", all, sources)
		}
		r.Restart()
		becomes(t, l, "k0", "redis")
	}
}

func TestManyRequestsAtOnceWaitForAHungRedisOnce(t *testing.T) {
	r := rig.Redis(t)
	l := limiter(t, clientOf(t, r.Addr), ratelimit.PerSecond(1e6, 1e6), Options{Timeout: 100 * time.Millisecond})
	becomes(t, l, "k", "redis")
	r.Hang()
	defer r.Resume()
	began := time.Now()
	var requests sync.WaitGroup
	for i := range 1000 {
		requests.Go(func() {
			for j := range 10 {
				if d := allow(t, l, fmt.Sprint(i, j), 1); d.Source != "fallback" {
					t.Errorf("%+v", d)
				}
			}
		})
	}
	requests.Wait()
	if took := time.Since(began); took > 5*time.Second { // 10000 × 100 ms / 1000 would be a second, at least
		t.Errorf("it took %v", took)
	}
	if len(l.running) > maxCalls {
		t.Errorf("%d calls", len(l.running))
	}
}

func TestWhatBecomesOfRequestsWhileRedisIsAway(t *testing.T) {
	limit := ratelimit.Every(time.Hour, 12, 12)
	for _, tt := range []struct {
		name      string
		o         Options
		admits    int
		wantError error
	}{
		{"a share of the limit", Options{Instances: func() int { return 3 }}, 4, nil},
		{"a token at least", Options{Instances: func() int { return 100 }}, 1, nil},
		{"all of it without others", Options{Instances: func() int { return -1 }}, 12, nil},
		{"all", Options{OnDown: FailOpen}, 50, nil},
		{"none", Options{OnDown: FailClosed}, 0, ratelimit.ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := limiter(t, clientOf(t, unused(t)), limit, tt.o)
			got := 0
			for range 50 {
				d, err := l.AllowN(t.Context(), "k", 1)
				if d.Source != "fallback" || !errors.Is(err, tt.wantError) {
					t.Fatalf("%+v, %v", d, err)
				}
				if d.Allowed {
					got++
				}
			}
			if got != tt.admits {
				t.Errorf("%d admitted, want %d", got, tt.admits)
			}
		})
	}
}

func TestFailLocalDividesByTheInstancesThatRedisHasSeen(t *testing.T) {
	r := rig.Redis(t)
	var all []*Limiter
	for range 3 {
		all = append(all, limiter(t, clientOf(t, r.Addr), ratelimit.Every(time.Hour, 12, 12), Options{Timeout: patient}))
	}
	for _, l := range all {
		allow(t, l, "x", 1)
	}
	for _, l := range all {
		rig.Poll(t, 10*time.Second, func() error {
			if n := l.instances(); n != 3 {
				return fmt.Errorf("%d instances", n)
			}
			return nil
		})
	}
	r.Kill()
	for _, l := range all {
		becomes(t, l, "x", "fallback")
		if got := admitted(t, l, "y", 50); got != 4 {
			t.Errorf("%d admitted, want 4", got)
		}
	}
}

func TestARefundOfWhatWasAdmittedWithoutRedis(t *testing.T) {
	l := limiter(t, clientOf(t, unused(t)), ratelimit.PerSecond(0, 2), Options{})
	if got := admitted(t, l, "k", 5); got != 2 {
		t.Fatalf("%d admitted, want 2", got)
	}
	l.Refund("k", 1)
	if got := admitted(t, l, "k", 5); got != 1 {
		t.Errorf("%d admitted after a refund, want 1", got)
	}
}

func TestRepliesThatMakeNoSenseAreARedisThatIsAway(t *testing.T) {
	for _, reply := range []string{
		"-READONLY You can't write against a read only replica.\r\n",
		"-LOADING Redis is loading the dataset in memory\r\n",
		"-MASTERDOWN Link with MASTER is down\r\n",
		"+OK\r\n",
		"$-1\r\n",
		packed(99, 0, 1),
		packed(-2, 0, 1),
		packed(1, -5, 1),
		packed(1, 4*3600e6, 1),
		packed(1, 0.5, 1),
		packed(1, math.NaN(), 1),
		packed(1, 1, math.Inf(1)),
		packed(1, 1, 0),
		"*3\r\n:1\r\n:1\r\n:1\r\n",
		"$2\r\nxy\r\n",
		"*2\r\n$1\r\nx\r\n:1\r\n",
		"HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		l := limiter(t, clientOf(t, answering(t, reply)), ratelimit.Every(time.Hour, 3, 3), Options{Timeout: patient})
		if got := admitted(t, l, "k", 10); got != 3 {
			t.Errorf("%q: %d admitted, want the 3 of the fallback", reply, got)
		}
		if d := allow(t, l, "k", 1); d.Source != "fallback" {
			t.Errorf("%q: %+v", reply, d)
		}
	}
}

// packed is a reply as the script gives it.
func packed(granted, owed, at float64) string {
	b := []byte("$24\r\n")
	for _, f := range []float64{granted, owed, at} {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(f))
	}
	return string(b) + "\r\n"
}

func TestAKeyThatHoldsSomethingElseIsNotOverwritten(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	c.Set(t.Context(), "ratelimit:text", "mine", 0)
	c.Set(t.Context(), "ratelimit:long", "mine, of 24 bytes, as it", 0)
	c.Set(t.Context(), "ratelimit:bits", strings.Repeat("\xff", 24), 0)
	c.LPush(t.Context(), "ratelimit:list", "mine")
	l := limiter(t, c, ratelimit.Every(time.Hour, 3, 3), Options{Timeout: patient})
	for _, key := range []string{"text", "long", "bits", "list"} {
		if d := allow(t, l, key, 1); d.Source != "fallback" {
			t.Errorf("%s: %+v", key, d)
		}
	}
	if got := c.Get(t.Context(), "ratelimit:text").Val(); got != "mine" {
		t.Errorf("the key holds %q", got)
	}
}

func TestNewNeverDialsAndCloseIsQuick(t *testing.T) {
	dialed := make(chan struct{}, 100)
	c := redis.NewClient(&redis.Options{Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dialed <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	defer c.Close()
	l := New(c, ratelimit.PerSecond(1, 1), Options{})
	select {
	case <-dialed:
		t.Error("New dials")
	default:
	}
	allow(t, l, "k", 1)
	began := time.Now()
	if err := l.Close(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(began))
	}
	if d := allow(t, l, "k2", 1); d.Source != "fallback" || !d.Allowed {
		t.Errorf("after Close: %+v", d)
	}
	_ = l.Close()
}

func TestWithoutAClientRedisIsAway(t *testing.T) {
	l := limiter(t, nil, ratelimit.PerSecond(1, 1), Options{})
	if d := allow(t, l, "k", 1); !d.Allowed || d.Source != "fallback" {
		t.Errorf("%+v", d)
	}
	l.Refund("k", 1)
}

func TestARequestThatIsGoneDoesNotWait(t *testing.T) {
	r := rig.Redis(t)
	l := limiter(t, clientOf(t, r.Addr), ratelimit.PerSecond(1, 1), Options{Timeout: time.Minute})
	r.Hang()
	defer r.Resume()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := l.AllowN(ctx, "k", 1); err != nil || d.Source != "fallback" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestAFailoverBySentinelIsSurvived(t *testing.T) {
	g := rig.Sentinel(t)
	c := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: g.MasterName, SentinelAddrs: g.SentinelAddrs})
	defer c.Close()
	l := limiter(t, c, ratelimit.PerSecond(1000, 1000), Options{Lease: -1, Timeout: 200 * time.Millisecond})
	becomes(t, l, "k", "redis")
	g.Primary.Kill()
	becomes(t, l, "k", "fallback")
	becomes(t, l, "k", "redis")
}

func TestANodeOfAClusterTakesOnlyItsKeysWithIt(t *testing.T) {
	nodes := rig.RedisCluster(t)
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes.Addrs})
	defer c.Close()
	l := limiter(t, c, ratelimit.PerSecond(1000, 1000), Options{Lease: -1, Timeout: 200 * time.Millisecond})
	// As rig shares the slots.
	of := make([]string, len(nodes.Nodes))
	for i := range 100 {
		key := "k" + strconv.Itoa(i)
		of[outage.SlotOf("ratelimit:"+key)*len(of)/outage.ClusterSlots] = key
	}
	for _, key := range of {
		becomes(t, l, key, "redis")
	}
	nodes.Nodes[0].Hang()
	defer nodes.Nodes[0].Resume()
	for range outage.Tolerated {
		_ = allow(t, l, of[0], 1)
	}
	becomes(t, l, of[1], "redis") // on a busy machine one call may be late
	if d := allow(t, l, of[0], 1); d.Source != "fallback" {
		t.Errorf("a key of the node that hangs: %+v, while one of another is decided by Redis", d)
	}
}

// unused is an address at which nobody listens.
func unused(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// answering is the address of a server that has one answer to every script.
func answering(tb testing.TB, reply string) string {
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
			go answer(conn, reply)
		}
	}()
	return ln.Addr().String()
}

func answer(conn net.Conn, reply string) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
		var name string
		for i := range n {
			size, _ := r.ReadString('\n')
			length, _ := strconv.Atoi(strings.TrimSpace(size[1:]))
			text := make([]byte, length+2)
			if _, err := io.ReadFull(r, text); err != nil {
				return
			}
			if i == 0 {
				name = strings.ToLower(string(text[:length]))
			}
		}
		out := "+OK\r\n"
		switch {
		case strings.HasPrefix(name, "eval"):
			out = reply
		case name == "hello":
			out = "-ERR unknown command\r\n"
		}
		if _, err := io.WriteString(conn, out); err != nil {
			return
		}
	}
}
