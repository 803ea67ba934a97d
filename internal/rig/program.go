package rig

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// ProgramServer is a program of ours.
type ProgramServer struct {
	*Process
	Addr string
}

// Program starts the program at path, which listens on the address that its arguments are made with, and waits
// until it accepts connections.
func Program(tb testing.TB, path string, args func(addr string) []string) *ProgramServer {
	tb.Helper()
	p := start(tb, server{
		binary:  path,
		install: "install it",
		ports:   1,
		args: func(_ string, ports []int) []string {
			return args(net.JoinHostPort(host, strconv.Itoa(ports[0])))
		},
		ready: func(p *Process) error {
			conn, err := net.DialTimeout("tcp", p.addr(0), time.Second) //nolint:noctx // it has a timeout
			if err == nil {
				_ = conn.Close()
			}
			return err
		},
	})
	return &ProgramServer{Process: p, Addr: p.addr(0)}
}

// Terminate asks the process to end, with SIGTERM, and returns when it has.
func (p *Process) Terminate() {
	p.tb.Helper()
	p.signal(syscall.SIGTERM)
	<-p.exited
}

// Build compiles the program in a folder, which is relative to that of the test, and returns its path.
func Build(tb testing.TB, folder string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "program")
	if out, err := exec.Command("go", "build", "-o", path, folder).CombinedOutput(); err != nil { //nolint:noctx // it ends
		tb.Fatalf("rig: building %s: %v: %s", folder, err, out)
	}
	return path
}

// With is Program with these variables, as NAME=value, in its environment, and that address in the one named LISTEN.
func With(tb testing.TB, path string, env ...string) *ProgramServer {
	tb.Helper()
	return Program(tb, Tool(tb, "env", "install coreutils"), func(addr string) []string {
		return slices.Concat([]string{"LISTEN=" + addr}, env, []string{path})
	})
}

// Log is all that the process has written.
func (p *Process) Log() string {
	p.tb.Helper()
	log, err := os.ReadFile(p.logFile())
	if err != nil {
		p.tb.Fatalf("rig: %v", err)
	}
	return string(log)
}
