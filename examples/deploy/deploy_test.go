// Package deploy holds everything in this folder to what examples/service really does.
package deploy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

var (
	dir   string     // of what is built once for all tests
	build sync.Mutex // held while it is
)

func TestMain(m *testing.M) {
	var err error
	if dir, err = os.MkdirTemp("", "deploy-*"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func service(tb testing.TB) (path string) {
	tb.Helper()
	build.Lock()
	defer build.Unlock()
	path = filepath.Join(dir, "service")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := os.Rename(rig.Build(tb, "../service"), path); err != nil {
		tb.Fatal(err)
	}
	return path
}

// start runs the service on a real Redis; what is said last of a variable counts.
func start(tb testing.TB, redis *rig.RedisServer, env ...string) *rig.ProgramServer {
	tb.Helper()
	return rig.With(tb, service(tb), append([]string{
		"REDIS_ADDRS=" + redis.Addr, "PASSWORD=secret",
		"SESSION_KEYS=" + strings.Repeat("ab12", 8), "TOKEN_KEYS=" + strings.Repeat("cd34", 8),
		"DRAIN_DELAY=200ms", "RATE=100000", "TRUSTED_PROXIES=127.0.0.0/8",
	}, env...)...)
}

func read(tb testing.TB, name string) string {
	tb.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

var client = &http.Client{Timeout: 10 * time.Second}

func get(tb testing.TB, url string, header ...string) (status int, body string) {
	tb.Helper()
	return do(tb, client, url, header...)
}

// getFrom is get of a client at another loopback address, where the kernel has more than one.
func getFrom(tb testing.TB, ip, url string) (status int, body string) {
	tb.Helper()
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	return do(tb, &http.Client{Timeout: client.Timeout, Transport: &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true}}, url)
}

func do(tb testing.TB, client *http.Client, url string, header ...string) (status int, body string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

func split(tb testing.TB, addr string) (host, port string) {
	tb.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	return host, port
}

// tool runs a program that ends by itself, and fails the test unless that is well.
func tool(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), rig.Tool(tb, name, "run `make servers`"), args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// replaced is text with each of these, which must be in it, replaced by what follows.
func replaced(tb testing.TB, text string, oldnew ...string) string {
	tb.Helper()
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			tb.Fatalf("%q is not in:\n%s", oldnew[i], text)
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	return text
}

func TestNginxBothForms(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"plain", "tuned"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			redis := rig.Redis(t)
			one, two := start(t, redis), start(t, redis)
			conf := replaced(t, read(t, "nginx/"+form+".conf"), "listen 80;", "listen ADDR;", "127.0.0.1:8081", one.Addr, "127.0.0.1:8082", two.Addr)
			front := "http://" + rig.Nginx(t, conf).Addr
			for i := range 20 {
				if status, body := get(t, front+"/prices/tea", "X-Forwarded-For", "203.0.113.7"); status != http.StatusOK {
					t.Fatalf("request %d: %d %s", i, status, body)
				}
			}
			if status, body := getFrom(t, "127.0.0.9", front+"/prices/tea"); status != http.StatusOK {
				t.Fatalf("%d %s", status, body)
			}
			logs := one.Log() + two.Log()
			if !strings.Contains(logs, `"ip":"127.0.0.9"`) {
				t.Error("the service does not know the address of a client of nginx's")
			}
			for _, s := range []*rig.ProgramServer{one, two} {
				if !strings.Contains(s.Log(), `"route":"/prices/:item"`) {
					t.Errorf("%s got nothing to do", s.Addr)
				}
			}
			// In front of everything, nginx knows the client; what the client says of itself must not count.
			if forged := strings.Contains(logs, "203.0.113.7"); forged != (form == "plain") {
				t.Errorf("a client chose its address: %v", forged)
			}
			status, _ := get(t, front+"/metrics")
			if hidden := status == http.StatusNotFound; hidden != (form == "tuned") {
				t.Errorf("/metrics from outside: %d", status)
			}
			one.Kill()
			for i := range 50 {
				if status, body := get(t, front+"/prices/tea"); status != http.StatusOK {
					t.Fatalf("request %d after the death of an instance: %d %s", i, status, body)
				}
			}
		})
	}
}

func TestNginxTakesTheFilesAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"plain", "tuned"} {
		dir := t.TempDir()
		here, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		conf := fmt.Sprintf("pid nginx.pid;\nevents {}\nhttp { include %s/nginx/%s.conf; }\n", here, form)
		if err := os.WriteFile(dir+"/nginx.conf", []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		// nginx -t also binds the port, which only root may; that is not what is asked here.
		nginx := rig.Tool(t, "nginx", "install nginx (Debian: apt-get install nginx)")
		out, err := exec.CommandContext(t.Context(), nginx, "-t", "-q", "-p", dir, "-c", dir+"/nginx.conf", "-e", "stderr").CombinedOutput()
		if err != nil && !strings.Contains(string(out), "bind()") {
			t.Errorf("%s: %v\n%s", form, err, out)
		}
	}
}

func TestConsulTakesTheDefinition(t *testing.T) {
	t.Parallel()
	agent := rig.Consul(t)
	service := start(t, rig.Redis(t))
	host, port := split(t, service.Addr)
	file := t.TempDir() + "/orders.json"
	text := replaced(t, read(t, "consul/orders.json"), `"127.0.0.1"`, `"`+host+`"`, "127.0.0.1:8080", service.Addr, `"port": 8080`, `"port": `+port)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "consul", "services", "register", "-http-addr="+agent.Addr, file)
	passing := func(want bool) func() error {
		return func() error {
			_, body := get(t, "http://"+agent.Addr+"/v1/health/service/orders?passing")
			if got := strings.Contains(body, `"orders-1"`); got != want {
				return fmt.Errorf("passing: %v, want %v: %s", got, want, body)
			}
			return nil
		}
	}
	rig.Poll(t, 10*time.Second, passing(true))
	service.Kill()
	rig.Poll(t, 10*time.Second, passing(false))
}
