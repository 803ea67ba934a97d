package rig

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
)

// Tool returns the path of a program that ends by itself, such as promtool: see find.
func Tool(tb testing.TB, name, install string) string {
	tb.Helper()
	return find(tb, server{binary: name, install: install})
}

// find returns the path of s's binary: in PATH, else in the folder .bin beside a go.mod above us (`make
// servers` puts Consul there), else where Debian puts daemons.
func find(tb testing.TB, s server) string {
	tb.Helper()
	if path, err := exec.LookPath(s.binary); err == nil {
		return path
	}
	dir, _ := os.Getwd()
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		path := filepath.Join(dir, ".bin", s.binary)
		if exists(filepath.Join(dir, "go.mod")) && exists(path) {
			return path
		}
	}
	if path := filepath.Join("/usr/sbin", s.binary); exists(path) {
		return path
	}
	if os.Getenv("HIGHBALL_SERVERS") == "required" {
		tb.Fatalf("rig: no %s: %s", s.binary, s.install)
	}
	tb.Skipf("no %s: %s", s.binary, s.install)
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lastPort is the last port given out. They are below the range from which kernels take the ports of
// outgoing connections, so that a killed server finds its own free when it restarts.
var lastPort atomic.Uint32

// freePorts returns n ports of host on which nobody listens. No two calls return the same one, and on
// Linux no other process has the same host.
func freePorts(tb testing.TB, n int) []int {
	tb.Helper()
	const first, many = 10_000, 20_000
	lastPort.CompareAndSwap(0, uint32(os.Getpid()))
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		if tries == many {
			tb.Fatalf("rig: no free port on %s", host)
		}
		port := first + int(lastPort.Add(1)%many)
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))) //nolint:noctx // nothing to wait for
		if err != nil {
			continue
		}
		_ = l.Close()
		ports = append(ports, port)
	}
	return ports
}
