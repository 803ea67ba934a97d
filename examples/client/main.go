// Command client calls services by name from outside any of them, and not by HTTP only: a line protocol over TCP
// through balancer.Do, and a Redis client that dials by balancer.Select.
//
//	go run ./examples/client -echo "127.0.0.1:9001 127.0.0.1:9002" -redis "127.0.0.1:6379" hello world
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
)

func main() {
	echo := flag.String("echo", "", "instances of the echo service, which says every line again")
	kept := flag.String("redis", "", "instances of Redis, any of which will do: read replicas, or proxies; empty: none")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := run(ctx, *echo, *kept, flag.Args()); err != nil {
		log.Print("client: ", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, echo, kept string, lines []string) error {
	lb := balancer.New(discovery.Static{"echo": instances(echo), "redis": instances(kept)}, balancer.Options{
		Retry: balancer.Retry{PerTry: time.Second}, // a line may be said twice, so Do may repeat it
	})
	defer lb.Close()
	for _, line := range lines {
		answer, err := say(ctx, lb, line)
		if err != nil {
			return err
		}
		fmt.Println(answer)
	}
	if kept == "" {
		return nil
	}
	client := newRedis(lb)
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return err
	}
	for _, s := range lb.Status("redis") {
		fmt.Printf("%s: %d connections, %d failed\n", s.Addr, s.Requests, s.Failures)
	}
	return nil
}

// say sends a line to an instance of echo, to another one if that fails, and returns the answer.
func say(ctx context.Context, lb *balancer.Balancer, line string) (string, error) {
	return balancer.Do(ctx, lb, "echo", func(ctx context.Context, addr string) (string, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // a hung instance has PerTry
		if _, err := fmt.Fprintln(conn, line); err != nil {
			return "", err
		}
		answer, err := bufio.NewReader(conn).ReadString('\n')
		return strings.TrimSpace(answer), err
	})
}

// newRedis returns a client each of whose connections goes to an instance that the balancer chooses.
func newRedis(lb *balancer.Balancer) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr:                  "redis", // names the service
		ContextTimeoutEnabled: true,
		Dialer: func(ctx context.Context, _, service string) (net.Conn, error) {
			selected, err := lb.Select(ctx, service)
			if err != nil {
				return nil, err
			}
			conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", selected.Addr())
			selected.Done(err) // exactly once: what it says decides whether the instance is left alone
			return conn, err
		},
	})
}

func instances(addrs string) (in []discovery.Instance) {
	for addr := range strings.FieldsSeq(addrs) {
		in = append(in, discovery.Instance{Addr: addr})
	}
	return in
}
