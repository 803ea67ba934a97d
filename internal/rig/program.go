package rig

import (
	"net"
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
