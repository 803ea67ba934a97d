package rig

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

const installRedis = "install redis-server (Debian: apt-get install redis-server redis-sentinel)"

// RedisServer is a redis-server that keeps nothing on disk: a restarted one is empty.
type RedisServer struct {
	*Process
	Addr string
}

// Redis starts a redis-server. The arguments are added to its command line, as in
// Redis(t, "--requirepass", "secret") or Redis(t, "--maxmemory", "1mb").
func Redis(tb testing.TB, extraArgs ...string) *RedisServer {
	tb.Helper()
	p := start(tb, server{
		binary:  "redis-server",
		install: installRedis,
		ports:   2,
		args: func(dir string, ports []int) []string {
			return append([]string{
				// What it says to peers comes from host too: they take its address from the connection.
				// Protected mode takes nothing but 127.0.0.1 for loopback.
				"--bind", host, "--bind-source-addr", host, "--protected-mode", "no",
				"--port", strconv.Itoa(ports[0]), "--cluster-port", strconv.Itoa(ports[1]),
				"--dir", dir, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0",
			}, extraArgs...)
		},
		ready: redisAnswers,
	})
	return &RedisServer{Process: p, Addr: p.addr(0)}
}

// redisAnswers is nil if the server at the first port is p and not one that was there before. A server
// with a password answers without saying who it is.
func redisAnswers(p *Process) error {
	info, err := command(p.addr(0), "INFO", "server")
	switch {
	case err != nil && strings.Contains(err.Error(), "NOAUTH"):
		return nil
	case err != nil:
		return err
	case !strings.Contains(info, fmt.Sprintf("process_id:%d\r\n", p.PID())):
		return fmt.Errorf("another Redis answers at %s", p.addr(0))
	}
	return nil
}
