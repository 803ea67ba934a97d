// Command quickstart shows what the balancer does when an instance dies or hangs. It starts three Gin
// instances as processes of their own and an edge that calls them, sends requests at a constant rate,
// kills one instance and restarts it, hangs another, and says what became of every request.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -consul 127.0.0.1:8500   # the same, found through a real Consul
//
// It exits with 0 only if what it promises held.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	runtime.LockOSThread() // instances die with the thread that started them: see process_linux.go
	var (
		listen   = flag.String("listen", "127.0.0.1:8080", "address of the edge; the instances listen on the next three ports")
		rate     = flag.Int("rate", 400, "requests per second, one in five a POST")
		consul   = flag.String("consul", "", "address of a Consul agent to register with and to find the instances through")
		instance = flag.String("instance", "", "run as the instance of this name (quickstart does this itself)")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	var err error
	if *instance != "" {
		err = serveInstance(ctx, *instance, *listen, *consul)
	} else {
		err = show(ctx, *listen, *consul, *rate)
	}
	switch {
	case errors.Is(err, context.Canceled):
		log.Fatal("quickstart: interrupted; every instance has been ended")
	case err != nil:
		log.Fatal("quickstart: ", err)
	}
}

// show runs the whole of it.
func show(ctx context.Context, listen, consul string, rate int) error {
	addrs, err := addresses(listen)
	if err != nil {
		return err
	}
	story := new(story)
	var fleet fleet
	defer fleet.end()
	for i, name := range []string{"a", "b", "c"} {
		if err := fleet.start(ctx, name, addrs[i+1], consul); err != nil {
			return err
		}
	}
	edge, err := startEdge(ctx, listen, consul, fleet, story)
	if err != nil {
		return err
	}
	defer edge.close()

	story.begin()
	fmt.Printf("three instances behind http://%s, %d requests/s, one in five a POST\n\n", listen, rate)
	load := startLoad(ctx, "http://"+listen+"/work", rate, story)
	steps := []struct {
		at  time.Duration
		say string
		do  func() error
	}{
		{4 * time.Second, "kill -9 b", func() error { return fleet.signal("b", syscall.SIGKILL) }},
		{7 * time.Second, "b is started again", func() error { return fleet.start(ctx, "b", addrs[2], consul) }},
		{11 * time.Second, "kill -STOP c: it hangs", func() error { return fleet.signal("c", syscall.SIGSTOP) }},
		{14 * time.Second, "kill -CONT c", func() error { return fleet.signal("c", syscall.SIGCONT) }},
		{19 * time.Second, "", func() error { return nil }},
	}
	for _, step := range steps {
		if err := wait(ctx, time.Until(story.start.Add(step.at))); err != nil {
			return err
		}
		if step.say != "" {
			story.tell("%s", step.say)
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	return report(load.stop(), story)
}

// addresses are the edge's and the instances', each free.
func addresses(listen string) ([]string, error) {
	base, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("-listen: %w", err)
	}
	var all []string
	for i := range 4 {
		addr := net.JoinHostPort(base.IP.String(), fmt.Sprint(base.Port+i))
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("%s cannot be listened on (%w); choose four free ports with -listen 127.0.0.1:PORT", addr, err)
		}
		_ = l.Close()
		all = append(all, addr)
	}
	return all, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
