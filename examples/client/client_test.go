package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/internal/rig"
)

// echo answers each line with its name and the line, until the test ends; a hung one accepts and says nothing.
func echo(t *testing.T, name string, hung bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					if !hung {
						_, _ = fmt.Fprintf(conn, "%s: %s\n", name, lines.Text())
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// nobody is an address at which nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestALineIsAnsweredWhileOneInstanceIsWell(t *testing.T) {
	t.Parallel()
	lb := balancer.New(discovery.Static{"echo": {
		{Addr: nobody(t)}, {Addr: echo(t, "hung", true)}, {Addr: echo(t, "well", false)},
	}}, balancer.Options{Retry: balancer.Retry{PerTry: 200 * time.Millisecond}})
	defer lb.Close()
	for i := range 20 {
		line := fmt.Sprintf("line %d", i)
		if got, err := say(t.Context(), lb, line); err != nil || got != "well: "+line {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func TestRedisIsDialledAtAnInstanceThatIsWell(t *testing.T) {
	t.Parallel()
	server := rig.Redis(t)
	lb := balancer.New(discovery.Static{"redis": instances(nobody(t) + " " + server.Addr)}, balancer.Options{Strategy: balancer.RoundRobin()})
	defer lb.Close()
	rig.Poll(t, 10*time.Second, func() error {
		client := newRedis(lb) // a new connection each time
		defer client.Close()
		if err := client.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		for _, s := range lb.Status("redis") {
			if left := s.Addr != server.Addr; left != s.Ejected {
				return fmt.Errorf("%s: ejected: %v, after %d of %d failed", s.Addr, s.Ejected, s.Failures, s.Requests)
			}
		}
		return nil
	})
}

func TestTheProgramSaysWhatItWasTold(t *testing.T) {
	t.Parallel()
	if err := run(t.Context(), echo(t, "well", false), rig.Redis(t).Addr, []string{"hello", "world"}); err != nil {
		t.Error(err)
	}
	err := run(t.Context(), "", "", []string{"hello"})
	if err == nil || !strings.Contains(err.Error(), "echo") {
		t.Errorf("without an instance: %v, want an error that names the service", err)
	}
}
