package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/discovery/consul"
)

const service = "quickstart"

// serveInstance is one instance: an ordinary Gin service whose work takes 20 ms.
func serveInstance(ctx context.Context, name, addr, consulAddr string) error {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the quickstart
		cancel()
	}()
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.GET("/health", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"status": "healthy"}) })
	r.Any("/work", func(c *gin.Context) {
		time.Sleep(20 * time.Millisecond)
		c.Header("X-Instance", name)
		c.JSON(http.StatusOK, gin.H{"instance": name})
	})
	s := &http.Server{Addr: addr, Handler: r, ReadHeaderTimeout: 5 * time.Second}
	serving := make(chan error, 1)
	go func() { serving <- s.ListenAndServe() }()
	if consulAddr != "" {
		client, err := api.NewClient(&api.Config{Address: consulAddr})
		if err != nil {
			return err
		}
		registered, err := consul.New(client, consul.Options{}).Register(ctx, consul.Registration{
			Service: service, ID: service + "-" + name, Addr: addr, TTL: 3 * time.Second,
			DeregisterCriticalAfter: time.Minute, // one that was killed cannot do it itself
		})
		if err != nil {
			return fmt.Errorf("registering with Consul at %s: %w", consulAddr, err)
		}
		defer func() { _ = registered.Deregister(context.WithoutCancel(ctx)) }()
	}
	select {
	case err := <-serving:
		return err
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return s.Shutdown(end)
	}
}

// A fleet is the instances that run, by name.
type fleet map[string]*process

type process struct {
	cmd    *exec.Cmd
	addr   string
	stdin  io.Closer
	output *strings.Builder
}

// start starts an instance and waits until it answers.
func (f *fleet) start(ctx context.Context, name, addr, consulAddr string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, "-instance", name, "-listen", addr, "-consul", consulAddr)
	p := &process{cmd: cmd, addr: addr, output: new(strings.Builder)}
	cmd.Stderr = p.output
	cmd.SysProcAttr = dieWithParent()
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if *f == nil {
		*f = make(fleet)
	}
	(*f)[name] = p
	return p.ready(ctx)
}

func (p *process) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+"/health", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			return resp.Body.Close()
		}
		if err := wait(ctx, 20*time.Millisecond); errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("the instance on %s does not answer: %s", p.addr, p.output)
		} else if err != nil {
			return err
		}
	}
}

func (f *fleet) signal(name string, s syscall.Signal) error {
	p := (*f)[name]
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signalling instance %s: %w", name, err)
	}
	if s == syscall.SIGKILL {
		_ = p.cmd.Wait() // its exit status says that it was killed
	}
	return nil
}

// end lets every instance deregister and end, and kills those that cannot.
func (f *fleet) end() {
	for _, p := range *f {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.stdin.Close()
		late := time.AfterFunc(5*time.Second, func() { _ = p.cmd.Process.Kill() })
		_ = p.cmd.Wait()
		late.Stop()
	}
}
