package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
)

const childEnv = "HIGHBALL_HEALTH_CHILD" // the DrainDelay of a server to be

// child is a server in a process of its own. It prints its address and serves until it is told to end.
func child() {
	delay, _ := time.ParseDuration(os.Getenv(childEnv))
	h := New(Options{DrainDelay: delay, Grace: 20 * time.Second})
	r := gin.New()
	r.Use(Middleware(h))
	Register(h, r)
	work := func(d time.Duration) gin.HandlerFunc {
		return func(c *gin.Context) {
			<-time.After(d)
			c.String(http.StatusOK, "done")
		}
	}
	r.POST("/work", work(5*time.Millisecond))
	r.GET("/slow", work(3*time.Second))
	r.GET("/stuck", work(time.Hour))
	r.GET("/stream", func(c *gin.Context) {
		fmt.Fprintln(c.Writer, "first")
		c.Writer.Flush()
		<-h.Draining()
		fmt.Fprintln(c.Writer, "last")
	})
	err := h.Serve(context.Background(), &http.Server{
		Addr: "127.0.0.1:0", Handler: r,
		BaseContext: func(l net.Listener) context.Context {
			fmt.Println(l.Addr())
			return context.Background()
		},
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
}

type process struct {
	cmd    *exec.Cmd
	url    string
	exited chan error
}

func startChild(t *testing.T, delay time.Duration) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+delay.String())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, exited: make(chan error, 1)}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p.url = "http://" + strings.TrimSpace(addr)
	go func() { p.exited <- cmd.Wait() }()
	return p
}

func (p *process) wantExit(t *testing.T, code int) {
	t.Helper()
	select {
	case err := <-p.exited:
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() != code || err == nil && code != 0 {
			t.Errorf("the process ends with %v, want code %d", err, code)
		}
	case <-time.After(30 * time.Second):
		t.Error("the process does not end")
	}
}

// get reports what GET path answers on a connection of its own.
func (p *process) get(path string) error {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return err
}

// TestDrainUnderLoadLosesNothing sends 1000 requests a second, open loop, to a process that gets SIGTERM. The
// client follows readiness as a load balancer does: it asks every 100 ms, and sends nothing more after the third
// no in a row. Where that takes it most of the DrainDelay, as on a machine that has other things to do, the delay
// was too short for this balancer, and it begins again with a longer one.
func TestDrainUnderLoadLosesNothing(t *testing.T) {
	for _, delay := range []time.Duration{2 * time.Second, 6 * time.Second, 20 * time.Second} {
		d := drainUnderLoad(t, delay)
		t.Logf("DrainDelay %v: %d requests, %d after SIGTERM, of which the client heard %v later", delay, d.sent.Load(), d.afterSignal.Load(), d.heard)
		if d.heard > delay/2 && delay < 20*time.Second {
			continue
		}
		if d.lost.Load() != 0 || d.sent.Load() < 500 || d.afterSignal.Load() < 100 {
			t.Errorf("%d of %d requests lost, %d of them sent after SIGTERM", d.lost.Load(), d.sent.Load(), d.afterSignal.Load())
		}
		for path, err := range d.held {
			if err != nil {
				t.Errorf("%s, in flight at SIGTERM: %v", path, err)
			}
		}
		return
	}
}

// A drained is what came of a drain under load.
type drained struct {
	sent, lost, afterSignal atomic.Int64
	heard                   time.Duration    // from SIGTERM until the client followed
	held                    map[string]error // of requests in flight at SIGTERM
}

func drainUnderLoad(t *testing.T, delay time.Duration) *drained {
	t.Helper()
	p := startChild(t, delay)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}
	defer client.CloseIdleConnections()

	d := &drained{held: map[string]error{}}
	var noes atomic.Int64
	var signaled, gone atomic.Bool
	var wg sync.WaitGroup
	one := func() {
		d.sent.Add(1)
		if signaled.Load() {
			d.afterSignal.Add(1)
		}
		resp, err := client.Post(p.url+"/work", "text/plain", strings.NewReader("x"))
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if (err != nil || resp.StatusCode != http.StatusOK) && d.lost.Add(1) < 10 {
			t.Logf("lost: %v", err)
		}
	}
	held := map[string]chan error{"/slow": make(chan error, 1), "/stream": make(chan error, 1)}
	hold := time.After(300 * time.Millisecond)
	term := time.After(500 * time.Millisecond)
	tick, probe := time.NewTicker(time.Millisecond), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	defer probe.Stop()
	var at time.Time // of SIGTERM
	for begin, due := time.Now(), int64(0); !gone.Load() || d.afterSignal.Load() < 100; {
		select {
		case <-tick.C:
			for ; due < time.Since(begin).Milliseconds(); due++ { // what a late tick owes
				wg.Go(one)
			}
		case <-hold:
			for path, result := range held {
				go func() { result <- p.get(path) }()
			}
		case <-term:
			at = time.Now()
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			signaled.Store(true)
		case <-probe.C:
			wg.Go(func() {
				if p.get("/readyz") == nil {
					noes.Store(0)
				} else if signaled.Load() && noes.Add(1) == 3 {
					gone.Store(true)
				}
			})
		}
	}
	d.heard = time.Since(at)
	wg.Wait()
	for path, result := range held {
		d.held[path] = <-result
	}
	p.wantExit(t, 0)
	return d
}

func TestSecondSIGTERMEndsTheProcess(t *testing.T) {
	p := startChild(t, time.Minute)
	stuck := make(chan error, 1)
	go func() { stuck <- p.get("/stuck") }()
	until(t, func() bool { return p.get("/readyz") == nil })
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	until(t, func() bool { return p.get("/readyz") != nil })
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.wantExit(t, 3)
	if err := <-stuck; err == nil {
		t.Error("the stuck request was answered")
	}
}

// until polls f until it is true.
func until(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to be")
		}
	}
}
