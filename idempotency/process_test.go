package idempotency

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/internal/rig"
)

// An instance is a service in a process of its own. Its handler takes 20 ms, then confirms its key and has its effect:
// "runs" counts it, "effects" has it under the key.
const (
	redisOf = "IDEMPOTENCY_TEST_REDIS" // what the instance of a child process is to use
	stallAt = "IDEMPOTENCY_TEST_STALL" // "before" or "after" the effect, until "go" is set in Redis
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(redisOf); addr != "" {
		serveInstance(addr, os.Getenv(stallAt))
	}
	os.Exit(m.Run())
}

func serveInstance(addr, stall string) {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with who started this
		os.Exit(1)
	}()
	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	ctx := context.Background()
	wait := func(at string) {
		if at != stall {
			return
		}
		client.Incr(ctx, "stalled")
		for client.Exists(ctx, "go").Val() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.POST("/run", Middleware(New(client, Options{Timeout: 3 * time.Second})), func(c *gin.Context) {
		time.Sleep(20 * time.Millisecond)
		wait("before")
		if err := Confirm(c); err != nil {
			client.Incr(ctx, "lost")
			c.AbortWithStatus(http.StatusServiceUnavailable)
			return
		}
		client.HIncrBy(ctx, "runs", Key(c), 1)
		client.HSetNX(ctx, "effects", Key(c), 1)
		wait("after")
		c.String(http.StatusCreated, Key(c))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(2)
	}
	fmt.Println(l.Addr())
	_ = http.Serve(l, r)
	os.Exit(2)
}

type instance struct {
	addr string
	cmd  *exec.Cmd
}

func startInstance(t *testing.T, redisAddr, stall string) *instance {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), redisOf+"="+redisAddr, stallAt+"="+stall)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal("the instance does not start: ", err)
	}
	return &instance{strings.TrimSpace(addr), cmd}
}

func (i *instance) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := i.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// front is the URL of a balancer.Proxy before the instances.
func front(t *testing.T, perTry time.Duration, instances ...*instance) string {
	t.Helper()
	var peers []discovery.Instance
	for _, i := range instances {
		peers = append(peers, discovery.Instance{Addr: i.addr})
	}
	lb := balancer.New(discovery.Static{"orders": peers}, balancer.Options{Retry: balancer.Retry{PerTry: perTry}})
	t.Cleanup(func() { _ = lb.Close() })
	r := gin.New()
	r.POST("/run", balancer.Proxy(lb, "orders"))
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return s.URL + "/run"
}

// post is one try of a client's.
func post(ctx context.Context, url, key string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("body"))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// load sends n keyed POSTs at once through url, after a first one that makes connections, and returns a wait for them.
func load(t *testing.T, url string, n int) (wait func()) {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			key := fmt.Sprint("k", i)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if status, body, err := post(ctx, url, key); status != http.StatusCreated || body != key {
				t.Errorf("%s: %d %s, %v", key, status, body, err)
			}
		})
	}
	return all.Wait
}

// stalled waits until a handler is where it is to be killed.
func stalled(t *testing.T, client *redis.Client) {
	t.Helper()
	rig.Poll(t, 30*time.Second, func() error {
		if client.Exists(t.Context(), "stalled").Val() == 0 {
			return errors.New("no handler is there")
		}
		return nil
	})
}

// wantOnce reads the ledger.
func wantOnce(t *testing.T, client *redis.Client, ledger string, keys int) {
	t.Helper()
	got := client.HGetAll(t.Context(), ledger).Val()
	for key, times := range got {
		if times != "1" {
			t.Errorf("%s: %s had %s", ledger, key, times)
		}
	}
	if len(got) != keys {
		t.Errorf("%s: %d keys, want %d", ledger, len(got), keys)
	}
}

func TestAKeyedPostLostWithItsInstanceRunsOnceOnAnother(t *testing.T) {
	server := rig.Redis(t)
	client := connect(t, server.Addr)
	dies := startInstance(t, server.Addr, "before")
	lives := startInstance(t, server.Addr, "")
	const posts = 20
	answered := load(t, front(t, 0, dies, lives), posts)
	stalled(t, client)
	dies.signal(t, syscall.SIGKILL)
	answered()
	wantOnce(t, client, "runs", posts)
}

// An instance that does not answer, but goes on later, is the case in which only Confirm prevents a second effect.
func TestAKeyedPostOnAnInstanceThatHangsRunsOnceOnAnother(t *testing.T) {
	server := rig.Redis(t)
	client := connect(t, server.Addr)
	hangs := startInstance(t, server.Addr, "before")
	lives := startInstance(t, server.Addr, "")
	const posts = 10
	answered := load(t, front(t, 5*time.Second, hangs, lives), posts)
	stalled(t, client)
	hangs.signal(t, syscall.SIGSTOP)
	answered()
	wantOnce(t, client, "runs", posts)
	began, _ := client.Get(t.Context(), "stalled").Int64()
	client.Set(t.Context(), "go", 1, 0)
	hangs.signal(t, syscall.SIGCONT)
	rig.Poll(t, 30*time.Second, func() error {
		// some were hung before they stalled
		lost, _ := client.Get(t.Context(), "lost").Int64()
		all, _ := client.Get(t.Context(), "stalled").Int64()
		if lost < began || lost != all {
			return fmt.Errorf("%d of %d have seen that their key is lost", lost, all)
		}
		return nil
	})
	wantOnce(t, client, "runs", posts)
}

// The window that no lock can close: the effect is there, the response is not.
func TestAnEffectUnderItsKeyHappensOnceAlsoWhenItsProcessDiesRightAfterIt(t *testing.T) {
	server := rig.Redis(t)
	client := connect(t, server.Addr)
	dies := startInstance(t, server.Addr, "after")
	lives := startInstance(t, server.Addr, "")
	const posts = 20
	answered := load(t, front(t, 0, dies, lives), posts)
	stalled(t, client)
	began := client.HLen(t.Context(), "effects").Val()
	dies.signal(t, syscall.SIGKILL)
	answered()
	wantOnce(t, client, "effects", posts)
	twice := 0
	for _, times := range client.HGetAll(t.Context(), "runs").Val() {
		if times == "2" {
			twice++
		}
	}
	if twice == 0 {
		t.Errorf("none of %d ran again: the test has not shown the window", began)
	}
}

// Under load an instance is killed at any point of its work, again and again. A client repeats as the draft tells it to.
func TestUnderLoadEveryKeyedPostIsAnsweredAndHasItsEffectOnce(t *testing.T) {
	server := rig.Redis(t)
	client := connect(t, server.Addr)
	a, b, c := startInstance(t, server.Addr, ""), startInstance(t, server.Addr, ""), startInstance(t, server.Addr, "")
	url := front(t, 0, a, b, c)
	var sent, repeated atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stop := make(chan struct{})
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				sent.Add(1)
				key := fmt.Sprint("w", w, "i", i)
				for try := 0; ; try++ {
					status, body, err := post(ctx, url, key)
					if status == http.StatusCreated && body == key {
						break
					}
					if try == 10 || status != http.StatusConflict && status < 500 {
						t.Errorf("%s: %d %s, %v", key, status, body, err)
						break
					}
					repeated.Add(1)
					sleep(ctx, time.Second)
				}
			}
		})
	}
	after := func(n int64) {
		rig.Poll(t, time.Minute, func() error {
			if sent.Load() < n {
				return errors.New("too few are sent")
			}
			return nil
		})
	}
	after(200)
	a.signal(t, syscall.SIGKILL)
	after(sent.Load() + 400)
	b.signal(t, syscall.SIGKILL)
	after(sent.Load() + 400)
	close(stop)
	all.Wait()
	wantOnce(t, client, "effects", int(sent.Load()))
	twice := 0
	for _, times := range client.HGetAll(t.Context(), "runs").Val() {
		if times != "1" {
			twice++
		}
	}
	t.Logf("%d keys; clients repeated %d times; %d ran again, whose process died between effect and response", sent.Load(), repeated.Load(), twice)
	if most := 2 * 16; twice > most {
		t.Errorf("%d ran again, more than can have been in flight", twice)
	}
}

func TestTheKeyOfADeadProcessIsFreeAfterALease(t *testing.T) {
	server := rig.Redis(t)
	client := connect(t, server.Addr)
	dies := startInstance(t, server.Addr, "before")
	first := make(chan error)
	go func() {
		_, _, err := post(t.Context(), "http://"+dies.addr+"/run", "k")
		first <- err
	}()
	stalled(t, client)
	lives := startInstance(t, server.Addr, "")
	dies.signal(t, syscall.SIGKILL)
	if err := <-first; err == nil {
		t.Error("a killed instance answers")
	}
	start := time.Now()
	status, body, err := post(t.Context(), "http://"+lives.addr+"/run", "k")
	if status != http.StatusCreated || body != "k" || err != nil {
		t.Errorf("%d %s %v", status, body, err)
	}
	t.Logf("the repeat took %v", time.Since(start))
	wantOnce(t, client, "runs", 1)
}
