package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

func TestPromtoolTakesConfigurationAndRules(t *testing.T) {
	t.Parallel()
	tool(t, "promtool", "check", "config", "prometheus/prometheus.yml")
	tool(t, "promtool", "test", "rules", "prometheus/alerts_test.yml")
}

// A stock is the service that the first instance calls: a peer that the test slows and breaks.
type stock struct {
	mode atomic.Value // "", "slow" (and every third fails), "down"
	n    atomic.Int64
}

func (s *stock) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch mode := s.mode.Load(); {
	case mode == "down":
		w.WriteHeader(http.StatusServiceUnavailable)
	case mode == "slow" && r.URL.Path != "/health":
		select {
		case <-time.After(750 * time.Millisecond):
		case <-r.Context().Done():
		}
		if s.n.Add(1)%3 == 0 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
}

// A site is two instances, what they depend on, and a Prometheus that watches them.
type site struct {
	t          *testing.T
	redis      *rig.RedisServer
	consul     *rig.ConsulAgent
	peer       stock
	one, two   *rig.ProgramServer
	prometheus string // URL
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, redis: rig.Redis(t), consul: rig.Consul(t)}
	s.peer.mode.Store("")
	peer := httptest.NewServer(&s.peer)
	t.Cleanup(peer.Close)
	s.one = start(t, s.redis, "RATE=200", "PEERS="+peer.Listener.Addr().String())
	s.two = start(t, s.redis, "RATE=200", "CONSUL_ADDR="+s.consul.Addr)

	// As they are but for the times: of what takes minutes in production a test waits for seconds.
	dir := t.TempDir()
	rules := replaced(t, read(t, "prometheus/alerts.yml"), "[5m]", "[3s]", "[1m]", "[3s]", "> 60", "> 13")
	rules = regexp.MustCompile(`for: \d+m`).ReplaceAllString(rules, "for: 500ms")
	conf := replaced(t, read(t, "prometheus/prometheus.yml"), "15s", "250ms")
	targets := replaced(t, read(t, "prometheus/targets.json"), "127.0.0.1:8081", s.one.Addr, "127.0.0.1:8082", s.two.Addr)
	for name, text := range map[string]string{"alerts.yml": rules, "prometheus.yml": conf, "targets.json": targets} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := rig.Tool(t, "prometheus", "install prometheus (Debian: apt-get install prometheus)")
	s.prometheus = "http://" + rig.Program(t, program, func(addr string) []string {
		return []string{"--web.listen-address=" + addr, "--config.file=" + dir + "/prometheus.yml", "--storage.tsdb.path=" + dir + "/data"}
	}).Addr
	return s
}

// query returns the values of an instant query, and their labels.
func (s *site) query(promql string) (series []map[string]string, err error) {
	status, body := get(s.t, s.prometheus+"/api/v1/query?query="+url.QueryEscape(promql))
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("%s: %d %s", promql, status, body)
	}
	for _, r := range answer.Data.Result {
		series = append(series, r.Metric)
	}
	return series, nil
}

// fires waits for an alert.
func (s *site) fires(alert string, within time.Duration) {
	s.t.Helper()
	start := time.Now()
	rig.Poll(s.t, within, func() error {
		series, err := s.query(`ALERTS{alertstate="firing",alertname="` + alert + `"}`)
		if err == nil && len(series) == 0 {
			err = fmt.Errorf("%s does not fire", alert)
		}
		return err
	})
	s.t.Logf("%s fires, %.1f s after that", alert, time.Since(start).Seconds())
}

// under sends requests to an instance, so many a second, until the function that it returns is called.
func (s *site) under(c *http.Client, rate int, urls ...string) (end func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			all.Go(func() {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, urls[i%len(urls)], nil)
				if err != nil {
					return
				}
				if resp, err := c.Do(req); err == nil {
					_ = resp.Body.Close()
				}
			})
		}
	})
	return func() {
		cancel()
		all.Wait()
	}
}

// panels returns the queries of the dashboard, by the titles of their panels.
func panels(tb testing.TB) map[string][]string {
	tb.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(tb, "grafana/dashboard.json")), &dashboard); err != nil {
		tb.Fatal(err)
	}
	all := make(map[string][]string)
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all[p.Title] = append(all[p.Title], strings.ReplaceAll(target.Expr, "$__rate_interval", "5s"))
		}
	}
	return all
}

// TestEveryPanelHasDataAndEveryAlertFires breaks one thing after the other.
func TestEveryPanelHasDataAndEveryAlertFires(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	one, two := "http://"+s.one.Addr, "http://"+s.two.Addr
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	user := &http.Client{Jar: jar, Timeout: 10 * time.Second}
	resp, err := user.Post(one+"/login", "application/json", strings.NewReader(`{"user":"bob","password":"secret"}`))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("login: %v, %v", resp, err)
	}
	_ = resp.Body.Close()

	end := s.under(user, 10, one+"/stock/tea", one+"/prices/tea", one+"/me", two+"/stock/tea")
	s.everyPanelHasData()
	s.everyMetricIsExposed(one, two)
	// Slow is left out: how fast this machine is, with all the other tests on it, says nothing of the rule.
	if firing, err := s.query(`ALERTS{alertstate="firing",alertname!="Slow"}`); err != nil || len(firing) > 0 {
		t.Errorf("fires while all is well: %v, %v", firing, err)
	}
	end()

	t.Log("Redis is killed")
	s.redis.Kill()
	end = s.under(user, 10, one+"/me")
	s.fires("SessionsWithoutRedis", 15*time.Second)
	end()
	s.redis.Restart()

	t.Log("Consul is killed, and the peer of one instance fails")
	s.consul.Kill()
	s.peer.mode.Store("down")
	end = s.under(user, 20, one+"/stock/tea")
	s.fires("Errors", 15*time.Second)
	s.fires("PeerEjected", 15*time.Second)
	s.fires("CircuitOpen", 20*time.Second)
	s.fires("AdmissionLowered", 20*time.Second)
	end()

	t.Log("the peer is slow")
	s.peer.mode.Store("slow")
	end = s.under(user, 20, one+"/stock/tea")
	s.fires("Slow", 20*time.Second)
	s.fires("Degraded", 40*time.Second)
	end()

	t.Log("too many requests")
	end = s.under(user, 500, one+"/me")
	s.fires("RateLimited", 15*time.Second)
	end()

	s.fires("RegistrySilent", 30*time.Second)
	t.Log("an instance is killed")
	s.two.Kill()
	s.fires("InstanceDown", 10*time.Second)

	fired, err := s.query(`count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[10m]))`)
	if want := strings.Count(read(t, "prometheus/alerts.yml"), "- alert:"); err != nil || len(fired) != want {
		t.Errorf("%d of %d alerts have fired: %v, %v", len(fired), want, fired, err)
	}
}

func (s *site) everyPanelHasData() {
	s.t.Helper()
	all := panels(s.t)
	if len(all) < 10 {
		s.t.Fatalf("the dashboard has %d panels", len(all))
	}
	for title, queries := range all {
		for _, q := range queries {
			rig.Poll(s.t, 20*time.Second, func() error {
				series, err := s.query(q)
				if err == nil && len(series) == 0 {
					err = errors.New("no data")
				}
				if err != nil {
					return fmt.Errorf("panel %q, %s: %w", title, q, err)
				}
				return nil
			})
		}
	}
}

// everyMetricIsExposed holds the names in rules and dashboard against what the instances say.
func (s *site) everyMetricIsExposed(instances ...string) {
	s.t.Helper()
	var exposed []string
	for _, base := range instances {
		_, text := get(s.t, base+"/metrics")
		for _, m := range regexp.MustCompile(`(?m)^([a-z_]+)[{ ]`).FindAllStringSubmatch(text, -1) {
			exposed = append(exposed, m[1])
		}
	}
	texts := read(s.t, "prometheus/alerts.yml") + read(s.t, "prometheus/alerts_test.yml") + read(s.t, "grafana/dashboard.json")
	names := regexp.MustCompile(`\b(http|highball|process|go)_[a-z_]+`).FindAllString(texts, -1)
	if len(names) < 30 {
		s.t.Fatalf("only %d names of metrics are in the files", len(names))
	}
	for _, name := range names {
		if !slices.Contains(exposed, name) {
			s.t.Errorf("nobody exposes %s", name)
		}
	}
}
