package rig

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// comesBack is what every server must do: answer, be gone when it is killed, answer at the same address
// after a restart, fall silent when it hangs, and go on.
func comesBack(t *testing.T, p *Process, answers func() error) {
	t.Helper()
	Poll(t, startWithin, answers) // at once, but for a busy machine
	p.Kill()
	if err := answers(); err == nil {
		t.Fatal("it answers after Kill")
	}
	p.Restart()
	Poll(t, startWithin, answers)
	p.Hang()
	if err := answers(); err == nil {
		t.Fatal("it answers while it hangs")
	}
	p.Resume()
	Poll(t, startWithin, answers)
	p.Hang()
	p.Restart()
	Poll(t, startWithin, answers)
}

func get(addr string) error {
	client := http.Client{Timeout: time.Second, Transport: oneShot.Transport}
	resp, err := client.Get("http://" + addr)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello" {
		err = fmt.Errorf("answer %q, want hello", body)
	}
	return err
}

func TestRedisComesBack(t *testing.T) {
	t.Parallel()
	r := Redis(t)
	comesBack(t, r.Process, func() error { return replyHas(r.Addr, "PONG", "PING") })
}

func TestARedisThatLoadsSaysSoAndHasWhatItHad(t *testing.T) {
	t.Parallel()
	r := Redis(t, SlowLoad...)
	must(t, r.Addr, "SET", "key", "kept")
	r.Load()
	r.Loaded()
	if err := replyHas(r.Addr, "kept", "GET", "key"); err != nil {
		t.Error(err)
	}
}

func TestARedisWithABrokenDiskRefusesWrites(t *testing.T) {
	t.Parallel()
	r := Redis(t)
	for range 2 {
		must(t, r.Addr, "SET", "key", "kept")
		r.BreakDisk()
		if _, err := commandWithin(startWithin, r.Addr, "SET", "key", "lost"); err == nil || !strings.Contains(err.Error(), "MISCONF") {
			t.Errorf("SET: %v, want MISCONF", err)
		}
		if err := replyHas(r.Addr, "kept", "GET", "key"); err != nil {
			t.Error(err)
		}
		r.MendDisk()
	}
}

func TestRedisTakesArguments(t *testing.T) {
	t.Parallel()
	r := Redis(t, "--requirepass", "secret")
	if _, err := commandWithin(startWithin, r.Addr, "PING"); err == nil || !strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("PING without the password: %v, want NOAUTH", err)
	}
}

func TestNginxComesBack(t *testing.T) {
	t.Parallel()
	n := Nginx(t, `server { listen ADDR; location / { return 200 hello; } }`)
	comesBack(t, n.Process, func() error { return get(n.Addr) })
}

func TestConsulComesBack(t *testing.T) {
	t.Parallel()
	c := Consul(t)
	comesBack(t, c.Process, func() error { return consulAnswers(c.Process, c.Node) })
}

func TestSentinelFailsOverToTheReplica(t *testing.T) {
	t.Parallel()
	g := Sentinel(t)
	g.Primary.Kill()
	for _, addr := range g.SentinelAddrs {
		want := strings.ReplaceAll(g.Replica.Addr, ":", "\n")
		Poll(t, FailoverWithin, func() error {
			return replyHas(addr, want, "SENTINEL", "get-master-addr-by-name", g.MasterName)
		})
	}
	Poll(t, FailoverWithin, func() error { return replyHas(g.Replica.Addr, "OK", "SET", "key", "value") })
	comesBack(t, g.Sentinels[0], func() error { return replyHas(g.SentinelAddrs[0], "PONG", "PING") })
}

func TestEverySlotOfRedisClusterIsServed(t *testing.T) {
	t.Parallel()
	c := RedisCluster(t)
	for i := range 100 {
		served := 0
		for _, addr := range c.Addrs {
			_, err := commandWithin(startWithin, addr, "SET", fmt.Sprintf("key-%d", i), "value")
			if err == nil {
				served++
			} else if !strings.Contains(err.Error(), "MOVED") {
				t.Fatal(err)
			}
		}
		if served != 1 {
			t.Fatalf("key %d: %d nodes take it, want one", i, served)
		}
	}
}

func TestConsulClusterElectsAnotherLeader(t *testing.T) {
	t.Parallel()
	c := ConsulCluster(t)
	agent := c.Agent(t)
	first := c.Leader(t)
	first.Kill()
	second := c.Leader(t)
	if second == first {
		t.Errorf("the leader is still %s", first.Node)
	}
	first.Restart()
	c.Leader(t)
	comesBack(t, agent.Process, func() error { return consulAnswers(agent.Process, agent.Node) })
}

// recorder is a testing.TB that skips and fails for itself; what came first counts.
type recorder struct {
	*testing.T
	what string
}

func (r *recorder) Skipf(format string, args ...any)  { r.note("skip: "+format, args...) }
func (r *recorder) Fatalf(format string, args ...any) { r.note("fatal: "+format, args...) }
func (r *recorder) note(format string, args ...any) {
	if r.what == "" {
		r.what = fmt.Sprintf(format, args...)
	}
}

func TestAMissingServerSkipsUnlessServersAreRequired(t *testing.T) {
	s := server{binary: "no-such-server", install: "get it somewhere"}
	for required, want := range map[string]string{"": "skip:", "required": "fatal:"} {
		t.Setenv("HIGHBALL_SERVERS", required)
		tb := &recorder{T: t}
		find(tb, s)
		if !strings.HasPrefix(tb.what, want) || !strings.Contains(tb.what, s.install) {
			t.Errorf("HIGHBALL_SERVERS=%q: %q, want %s and %q", required, tb.what, want, s.install)
		}
	}
}

func TestATakenPortIsAnsweredWithAnother(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).Port
	tries := 0
	p := start(t, server{
		binary: "redis-server", install: installRedis, ports: 1,
		args: func(_ string, ports []int) []string {
			if tries++; tries == 1 {
				ports[0] = taken // as if somebody had been faster
			}
			return []string{"--bind", host, "--port", fmt.Sprint(ports[0]), "--save", ""}
		},
		ready: redisAnswers,
	})
	if tries != 2 || p.ports[0] == taken {
		t.Errorf("after %d tries it listens on %d", tries, p.ports[0])
	}
}

func TestAServerEndsWithItsTest(t *testing.T) {
	t.Parallel()
	var r *RedisServer
	t.Run("inner", func(t *testing.T) { r = Redis(t) })
	if r == nil {
		t.Skip("no Redis") // the inner test said what to install
	}
	if r.running() || alive(r.PID()) {
		t.Error("it runs after the end of its test")
	}
}

// TestServersDieWithAKilledTestBinary runs this test again in a child, which starts a server and waits to
// be killed.
func TestServersDieWithAKilledTestBinary(t *testing.T) {
	const inChild = "HIGHBALL_RIG_CHILD"
	if os.Getenv(inChild) != "" {
		fmt.Println("pid", Redis(t).PID())
		select {}
	}
	find(t, server{binary: "redis-server", install: installRedis})
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("only Linux has a signal for the death of a parent")
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), inChild+"=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "pid %d", &pid)
	}
	if pid == 0 || !alive(pid) {
		t.Fatalf("the child's server (%d) does not run", pid)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	Poll(t, startWithin, func() error {
		if alive(pid) {
			return errors.New("the server outlives the test binary")
		}
		return nil
	})
}

// alive reports whether a process runs, as Linux tells; one that nobody has waited for yet does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
