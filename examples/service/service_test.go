package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery/consul"
	"github.com/highball-go/highball/internal/rig"
)

// production is what every instance on a real Redis has to be told.
var production = []string{
	"SESSION_KEYS=" + strings.Repeat("ab12", 8), "TOKEN_KEYS=" + strings.Repeat("cd34", 8), "PASSWORD=secret",
	"DRAIN_DELAY=1s", "RATE=1000",
}

// A user has a browser.
type user struct {
	t      *testing.T
	client *http.Client
	token  string
	key    string // Idempotency-Key; "": none
}

func newUser(t *testing.T) *user {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &user{t: t, client: &http.Client{Jar: jar, Timeout: 10 * time.Second}}
}

// do sends a request and returns the status, the header and the body of its answer.
func (u *user) do(method, url, body string) (int, http.Header, string) {
	u.t.Helper()
	req, err := http.NewRequestWithContext(u.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		u.t.Fatal(err)
	}
	if u.token != "" {
		req.Header.Set("Authorization", "Bearer "+u.token)
	}
	if u.key != "" {
		req.Header.Set("Idempotency-Key", u.key)
	}
	resp, err := u.client.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		u.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

// expect sends a request and fails unless the answer has this status and holds these texts.
func (u *user) expect(method, url, body string, status int, texts ...string) http.Header {
	u.t.Helper()
	got, header, answer := u.do(method, url, body)
	if got != status {
		u.t.Errorf("%s %s: %d %s, want %d", method, url, got, answer, status)
	}
	for _, text := range texts {
		if !strings.Contains(answer, text) {
			u.t.Errorf("%s %s has no %s: %s", method, url, text, answer)
		}
	}
	return header
}

// login keeps the cookie and the token.
func (u *user) login(base, password string) error {
	u.t.Helper()
	status, _, answer := u.do(http.MethodPost, base+"/login", fmt.Sprintf(`{"user":"bob","password":%q}`, password))
	var got struct{ Token string }
	if err := json.Unmarshal([]byte(answer), &got); err != nil || status != http.StatusOK || got.Token == "" {
		return fmt.Errorf("login: %d %s (%w)", status, answer, err)
	}
	u.token = got.Token
	return nil
}

// becomes waits until a GET has this answer.
func (u *user) becomes(url, answer string) {
	u.t.Helper()
	rig.Poll(u.t, rig.FailoverWithin, func() error {
		if status, _, got := u.do(http.MethodGet, url, ""); got != answer {
			return fmt.Errorf("%d %s", status, got)
		}
		return nil
	})
}

func TestTwoInstancesAreOneService(t *testing.T) {
	t.Parallel()
	path, server, agent := rig.Build(t, "."), rig.Redis(t), rig.Consul(t)
	env := append([]string{"REDIS_ADDRS=" + server.Addr, "CONSUL_ADDR=" + agent.Addr}, production...)
	one, two := rig.With(t, path, env...), rig.With(t, path, env...)
	a, b := "http://"+one.Addr, "http://"+two.Addr
	client, err := api.NewClient(&api.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	registered := func(want int) func() error {
		return func() error {
			entries, _, err := client.Health().Service("orders", "", true, nil)
			if err == nil && len(entries) != want {
				err = fmt.Errorf("%d instances are well in Consul, want %d", len(entries), want)
			}
			return err
		}
	}
	rig.Poll(t, 30*time.Second, registered(2))

	u := newUser(t)
	u.expect(http.MethodGet, a+"/me", "", http.StatusUnauthorized)
	u.expect(http.MethodPost, a+"/orders", "", http.StatusUnauthorized)
	u.expect(http.MethodPost, a+"/login", `{"user":"bob","password":"wrong"}`, http.StatusUnauthorized)
	u.expect(http.MethodPost, a+"/login", `{`, http.StatusBadRequest)
	// On a busy machine Redis may be too late once for anything that asks it.
	rig.Poll(t, 10*time.Second, func() error { return u.login(a, "secret") })
	u.becomes(b+"/me", `{"session":"live","user":"bob"}`)
	u.expect(http.MethodPost, b+"/orders", "", http.StatusCreated, `"user":"bob"`)
	u.key = "key-1"
	_, _, first := u.do(http.MethodPost, a+"/orders", "")
	if h := u.expect(http.MethodPost, b+"/orders", "", http.StatusCreated, first); h.Get("Idempotency-Replayed") != "true" {
		t.Error("the order was placed twice, on two instances")
	}
	u.key = ""
	if h := u.expect(http.MethodGet, a+"/prices/tea", "", http.StatusOK, `"price":300`); h.Get("X-Cache") != "miss" {
		t.Errorf("the first look-up is a %s", h.Get("X-Cache"))
	}
	rig.Poll(t, 5*time.Second, func() error {
		if h := u.expect(http.MethodGet, b+"/prices/tea", "", http.StatusOK, `"price":300`); h.Get("X-Cache") != "hit" {
			return fmt.Errorf("the second one, on the other instance, is a %s", h.Get("X-Cache"))
		}
		return nil
	})
	for name, values := range u.expect(http.MethodGet, a+"/stock/tea", "", http.StatusOK, `"stock":7`) {
		if len(values) > 1 {
			t.Errorf("the answer by way of a peer has %s twice: %q", name, values)
		}
	}
	u.expect(http.MethodGet, a+"/metrics", "", http.StatusOK,
		`http_requests_total{method="POST",route="/login",status="200"} 1`,
		`highball_balancer_nodes{service="orders",state="ready"} 2`,
		`highball_session_state{state="live"} 1`,
		`highball_discovery_age_seconds{service="orders"}`,
		`highball_ratelimit_decisions_total{decision="allowed",limiter="requests",source=`)

	t.Log("Redis goes away")
	server.Kill()
	u.expect(http.MethodGet, b+"/me", "", http.StatusOK, `"user":"bob"`, `"session":"stale"`)
	u.expect(http.MethodPost, a+"/orders", "", http.StatusCreated)
	u.expect(http.MethodGet, a+"/prices/tea", "", http.StatusOK, `"price":300`)
	u.expect(http.MethodGet, a+"/readyz", "", http.StatusOK)
	server.Restart()
	rig.Poll(t, 10*time.Second, func() error { return u.login(a, "secret") })
	u.expect(http.MethodPost, b+"/logout", "", http.StatusNoContent)
	u.expect(http.MethodGet, a+"/me", "", http.StatusUnauthorized)

	t.Log("an instance drains under load")
	failed, sent := drain(t, client, one)
	if failed > 0 || sent < 150 {
		t.Errorf("%d of %d requests failed", failed, sent)
	}
	rig.Poll(t, 10*time.Second, registered(1))
	for line := range strings.Lines(two.Log()) {
		if strings.Contains(line, `"request"`) && !json.Valid([]byte(line)) {
			t.Errorf("not a line of JSON: %s", line)
		}
	}
}

// drain has one asked to end while callers that find it through Consul, and repeat nothing, go on.
func drain(t *testing.T, client *api.Client, one *rig.ProgramServer) (failed, sent int64) {
	t.Helper()
	lb := balancer.New(consul.New(client, consul.Options{}), balancer.Options{Retry: balancer.Retry{Attempts: -1}})
	defer lb.Close()
	var failures, all atomic.Int64
	var callers sync.WaitGroup
	begun, ended := make(chan struct{}), make(chan struct{})
	for range 8 {
		callers.Go(func() {
			c := http.Client{Transport: lb, Timeout: 10 * time.Second}
			for last := false; !last; {
				select {
				case <-ended:
					last = true
				default:
				}
				resp, err := c.Get("http://orders/prices/tea")
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				if err != nil || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusTooManyRequests {
					failures.Add(1)
					t.Logf("failed: %v", err)
				}
				if all.Add(1) == 100 {
					close(begun)
				}
			}
		})
	}
	<-begun
	one.Terminate()
	close(ended)
	callers.Wait()
	return failures.Load(), all.Load()
}

func TestTheLimitIsOneForAllInstances(t *testing.T) {
	t.Parallel()
	path, server := rig.Build(t, "."), rig.Redis(t)
	env := append([]string{"REDIS_ADDRS=" + server.Addr}, production...)
	env = append(env, "RATE=20") // the last one counts
	one, two := rig.With(t, path, env...), rig.With(t, path, env...)
	u := newUser(t)
	start, passed := time.Now(), 0
	var refused http.Header
	for i := range 200 {
		status, header, _ := u.do(http.MethodGet, "http://"+[]string{one.Addr, two.Addr}[i%2]+"/prices/tea", "")
		switch status {
		case http.StatusOK:
			passed++
		case http.StatusTooManyRequests:
			refused = header
		default:
			t.Fatalf("status %d", status)
		}
	}
	// One burst, and what comes in that time; and one more if Redis was late once, for then each goes by its share.
	most := 2*20 + int(20*time.Since(start).Seconds()) + 1
	if passed < 20 || passed > most {
		t.Errorf("%d of 200 passed in %v, want 20 to %d", passed, time.Since(start), most)
	}
	if refused.Get("Retry-After") == "" {
		t.Errorf("429 without Retry-After: %v", refused)
	}
}

func TestSessionsOutliveTheRedisPrimary(t *testing.T) {
	t.Parallel()
	group := rig.Sentinel(t)
	env := append([]string{"REDIS_ADDRS=" + strings.Join(group.SentinelAddrs, " "), "REDIS_MASTER=" + group.MasterName}, production...)
	base := "http://" + rig.With(t, rig.Build(t, "."), env...).Addr
	u := newUser(t)
	rig.Poll(t, 10*time.Second, func() error { return u.login(base, "secret") })
	u.becomes(base+"/me", `{"session":"live","user":"bob"}`)
	keys := func(server *rig.RedisServer) []string {
		client := redis.NewClient(&redis.Options{Addr: server.Addr})
		defer client.Close()
		return client.Keys(t.Context(), "orders:session:*").Val()
	}
	rig.Poll(t, 5*time.Second, func() error { // replication is asynchronous
		if p, r := keys(group.Primary), keys(group.Replica); len(p) != 1 || !slices.Equal(p, r) {
			return fmt.Errorf("the primary has %q, the replica %q", p, r)
		}
		return nil
	})
	group.Primary.Kill()
	u.expect(http.MethodGet, base+"/me", "", http.StatusOK, `"session":"stale"`)
	u.becomes(base+"/me", `{"session":"live","user":"bob"}`)
}

func TestItRunsWithNothing(t *testing.T) {
	t.Parallel()
	base := "http://" + rig.With(t, rig.Build(t, ".")).Addr
	u := newUser(t)
	if err := u.login(base, "demo"); err != nil {
		t.Fatal(err)
	}
	u.expect(http.MethodGet, base+"/me", "", http.StatusOK, `"user":"bob"`)
	u.expect(http.MethodGet, base+"/stock/tea", "", http.StatusOK, `"stock":7`)
	for range 20 {
		if u.login(base, "wrong") == nil {
			t.Fatal("a wrong password will do")
		}
	}
	u.expect(http.MethodPost, base+"/login", "{}", http.StatusTooManyRequests)
}

func TestMisconfigurationIsAnErrorThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	path := rig.Build(t, ".")
	for _, c := range []struct {
		want string
		env  []string
	}{
		{"needs the same SESSION_KEYS", []string{"REDIS_ADDRS=127.0.0.1:1", "PASSWORD=secret"}},
		{"32", []string{"REDIS_ADDRS=127.0.0.1:1", "PASSWORD=secret", "SESSION_KEYS=short", "TOKEN_KEYS=" + strings.Repeat("cd34", 8)}},
		{"32", []string{"REDIS_ADDRS=127.0.0.1:1", "PASSWORD=secret", "TOKEN_KEYS=short", "SESSION_KEYS=" + strings.Repeat("ab12", 8)}},
		{"RATE", []string{"RATE=many"}},
		{"GRACE", []string{"GRACE=25"}},
		{"DRAIN_DELAY", []string{"DRAIN_DELAY=soon"}},
		{"everybody", []string{"TRUSTED_PROXIES=everybody"}},
	} {
		cmd := exec.CommandContext(t.Context(), path)
		cmd.Env = append([]string{"LISTEN=127.0.0.1:0"}, c.env...)
		out, err := cmd.CombinedOutput()
		if exit := new(exec.ExitError); !errors.As(err, &exit) || !strings.Contains(string(out), c.want) {
			t.Errorf("%q: %v, %s, want an error about %s", c.env, err, out, c.want)
		}
	}
}

// TestItIsSmall counts the lines that are neither empty nor a comment.
func TestItIsSmall(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
				lines++
			}
		}
	}
	if lines == 0 || lines >= 250 {
		t.Errorf("%d lines of code, want fewer than 250", lines)
	}
}
