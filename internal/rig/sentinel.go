package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FailoverWithin is how long to wait for sentinels on a busy machine. A failover takes 2 s; but one that was not
// scheduled for 2 s, or waited so long for its disk, does not trust its clock and does nothing for 30 s (TILT).
const FailoverWithin = 90 * time.Second

// SentinelGroup is a primary with one replica, watched by three sentinels of which two must agree. A
// primary that does not answer for a second is failed over.
type SentinelGroup struct {
	MasterName       string
	SentinelAddrs    []string
	Primary, Replica *RedisServer // as they started; a failover changes the roles, not these
	Sentinels        []*Process
}

// Sentinel starts a primary, a replica that is in sync with it, and three sentinels that know each other.
func Sentinel(tb testing.TB) *SentinelGroup {
	tb.Helper()
	g := &SentinelGroup{MasterName: "highball", Primary: Redis(tb)}
	g.Replica = Redis(tb, "--replicaof", host, fmt.Sprint(g.Primary.ports[0]))
	// A sentinel asks the primary for its replicas at once, then only every 10 s.
	Poll(tb, startWithin, func() error {
		return replyHas(g.Primary.Addr, "state=online", "INFO", "replication")
	})
	for range 3 {
		s := g.sentinel(tb)
		g.Sentinels = append(g.Sentinels, s)
		g.SentinelAddrs = append(g.SentinelAddrs, s.addr(0))
	}
	for _, addr := range g.SentinelAddrs {
		Poll(tb, startWithin, func() error {
			return replyHas(addr, "num-slaves\n1\nnum-other-sentinels\n2\n", "SENTINEL", "MASTER", g.MasterName)
		})
	}
	return g
}

func (g *SentinelGroup) sentinel(tb testing.TB) *Process {
	tb.Helper()
	return start(tb, server{
		binary:  "redis-sentinel",
		install: installRedis,
		ports:   1,
		args: func(dir string, ports []int) []string {
			conf := filepath.Join(dir, "sentinel.conf")
			text := fmt.Sprintf(`
bind %[1]s
bind-source-addr %[1]s
protected-mode no
port %[2]d
dir %[3]s
sentinel monitor %[4]s %[1]s %[5]d 2
sentinel down-after-milliseconds %[4]s 1000
sentinel failover-timeout %[4]s 3000
`, host, ports[0], dir, g.MasterName, g.Primary.ports[0])
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				tb.Fatal(err)
			}
			return []string{conf}
		},
		ready: redisAnswers,
	})
}

// replyHas is nil if the reply to a command holds a text.
func replyHas(addr, text string, args ...string) error {
	reply, err := command(addr, args...)
	if err == nil && !strings.Contains(reply, text) {
		err = fmt.Errorf("%s at %s has no %q:\n%s", strings.Join(args, " "), addr, text, reply)
	}
	return err
}
