// Package rig starts real servers for tests: Redis, Sentinel, Redis Cluster, Consul and nginx. Each runs on
// loopback, in a folder of its own, and ends with the test, or with the test binary if that is killed.
//
// Where a server's binary is missing the test skips with a line that says what to install; with
// HIGHBALL_SERVERS=required in the environment, as `make test` sets it, the test fails instead.
package rig

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	startWithin = 30 * time.Second // of a server, on a busy machine
	startTries  = 5                // each on other ports
)

// A server is what start needs to know of a program.
type server struct {
	binary  string // its name
	install string // what to do where there is none
	ports   int    // how many it listens on
	args    func(dir string, ports []int) []string
	ready   func(p *Process) error // nil once this very process answers
}

// A Process is a running server. Its methods fail the test on error, and are not safe for concurrent use.
type Process struct {
	tb    testing.TB
	path  string
	args  []string
	dir   string
	ports []int
	ready func(p *Process) error

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been waited for
}

// start runs s until it answers, on other ports if somebody else has taken one in the meantime.
func start(tb testing.TB, s server) *Process {
	tb.Helper()
	p := &Process{tb: tb, path: find(tb, s), dir: tb.TempDir(), ready: s.ready}
	tb.Cleanup(func() {
		p.end()
		if tb.Failed() {
			tb.Logf("the end of the log of %s:\n%s", s.binary, p.logTail())
		}
	})
	for try := 1; ; try++ {
		p.ports = freePorts(tb, s.ports)
		p.args = s.args(p.dir, p.ports)
		err := p.run()
		if err == nil {
			return p
		}
		if try == startTries || !strings.Contains(strings.ToLower(p.logTail()), "address already in use") {
			tb.Fatalf("rig: %s does not start: %v\nThe end of its log:\n%s", s.binary, err, p.logTail())
		}
	}
}

// run starts the process once and waits until it answers.
func (p *Process) run() error {
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...) //nolint:noctx // it ends with the test, or by Kill
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = p.dir, log, log, dieWithParent()
	if err := launch(cmd); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	p.cmd, p.exited = cmd, exited

	err = poll(startWithin, exited, func() error { return p.ready(p) })
	if err != nil {
		p.end()
	}
	return err
}

// PID is the id of the running process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process with SIGKILL and returns when it is gone.
func (p *Process) Kill() {
	p.tb.Helper()
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// Hang stops the process with SIGSTOP: its sockets stay open and nothing answers.
func (p *Process) Hang() {
	p.tb.Helper()
	p.signal(sigstop)
}

// Resume lets a hung process go on.
func (p *Process) Resume() {
	p.tb.Helper()
	p.signal(sigcont)
}

// Restart starts the process anew on the same ports and waits until it answers. A process that still runs
// is killed first.
func (p *Process) Restart() {
	p.tb.Helper()
	p.end()
	if err := p.run(); err != nil {
		p.tb.Fatalf("rig: %s does not start again: %v\nThe end of its log:\n%s", filepath.Base(p.path), err, p.logTail())
	}
}

func (p *Process) signal(s syscall.Signal) {
	p.tb.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.tb.Fatalf("rig: %v to %s: %v", s, filepath.Base(p.path), err)
	}
}

func (p *Process) end() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// running reports whether the process has not ended.
func (p *Process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *Process) logFile() string { return filepath.Join(p.dir, "log") }

func (p *Process) logTail() string {
	const most = 4 << 10
	log, _ := os.ReadFile(p.logFile())
	if len(log) > most {
		log = log[len(log)-most:]
	}
	return string(bytes.TrimSpace(log))
}

func (p *Process) addr(port int) string { return fmt.Sprintf("%s:%d", host, p.ports[port]) }

// Poll calls f until it returns nil, and fails the test with f's last error after the given time.
func Poll(tb testing.TB, within time.Duration, f func() error) {
	tb.Helper()
	if err := poll(within, nil, f); err != nil {
		tb.Fatalf("not within %v: %v", within, err)
	}
}

func poll(within time.Duration, exited <-chan struct{}, f func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-tick.C:
		case <-exited:
			return fmt.Errorf("it ended: %w", err)
		}
	}
}

// launcher starts every child on one thread that lives as long as the test binary: Linux sends the signal
// of dieWithParent when the thread that forked ends, not the process.
var launcher = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

func launch(cmd *exec.Cmd) error {
	err := make(chan error)
	launcher() <- func() { err <- cmd.Start() }
	return <-err
}
