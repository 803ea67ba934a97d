package prove

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

// fronts are what is in front of three instances.
var fronts = []struct {
	name  string
	start func(tb testing.TB, addrs [3]string) string
}{
	{"Highball", highball},
	{"Highball, hedge 60 ms", hedged},
	{"nginx, the usual configuration", usual},
	{"nginx, tuned", tuned},
	{"HAProxy, tuned", haproxy},
}

func highball(tb testing.TB, a [3]string) string {
	tb.Helper()
	return edge(tb, "-peers", strings.Join(a[:], ","))
}

func hedged(tb testing.TB, a [3]string) string {
	tb.Helper()
	return edge(tb, "-hedge", "60ms", "-peers", strings.Join(a[:], ","))
}

func usual(tb testing.TB, a [3]string) string {
	tb.Helper()
	return rig.Nginx(tb, nginxUsual(a)).Addr
}

func tuned(tb testing.TB, a [3]string) string {
	tb.Helper()
	return rig.Nginx(tb, nginxTuned(a)).Addr
}

func nginxUsual(a [3]string) string {
	return fmt.Sprintf(`upstream gin { least_conn; server %s weight=1; server %s weight=2; server %s weight=3; }
server { listen ADDR backlog=4096; location / { proxy_pass http://gin; proxy_http_version 1.1; proxy_set_header Connection ""; } }`, a[0], a[1], a[2])
}

func nginxTuned(a [3]string) string {
	return fmt.Sprintf(`upstream gin { least_conn; zone gin 64k; keepalive 256;
server %s max_fails=2 fail_timeout=5s; server %s max_fails=2 fail_timeout=5s; server %s max_fails=2 fail_timeout=5s; }
server { listen ADDR backlog=4096; location / { proxy_pass http://gin; proxy_http_version 1.1; proxy_set_header Connection "";
proxy_connect_timeout 250ms; proxy_read_timeout 1s; proxy_next_upstream error timeout http_502 http_503 http_504;
proxy_next_upstream_tries 3; proxy_next_upstream_timeout 2s; } }`, a[0], a[1], a[2])
}

func haproxy(tb testing.TB, a [3]string) string {
	tb.Helper()
	return haproxyWith(tb, fmt.Sprintf(`  timeout connect 250ms
  timeout server 1s
  timeout queue 2s
  timeout check 500ms
  option redispatch 1
  retries 3
  retry-on conn-failure empty-response response-timeout
frontend f
  bind ADDR
  default_backend gin
backend gin
  balance leastconn
  option httpchk GET /health
  default-server inter 500ms fastinter 100ms downinter 500ms fall 2 rise 2 observe layer4 error-limit 2 on-error mark-down on-marked-down shutdown-sessions
  server a %s check
  server b %s check
  server c %s check
`, a[0], a[1], a[2]))
}

// haproxyWith starts HAProxy with the rest of a configuration, in which ADDR is where it listens.
func haproxyWith(tb testing.TB, rest string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "haproxy.cfg")
	path := rig.Tool(tb, "haproxy", "install haproxy (Debian: apt-get install haproxy)")
	return rig.Program(tb, path, func(addr string) []string {
		text := "global\n  maxconn 8192\n  nbthread 2\ndefaults\n  mode http\n  timeout client 30s\n" + strings.ReplaceAll(rest, "ADDR", addr)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		return []string{"-db", "-f", file}
	}).Addr
}

// A fault of three instances.
type fault struct {
	name   string
	title  string
	rate   int
	during time.Duration
	inject func(tb testing.TB, all [3]*rig.ProgramServer) []event
	consul bool // says where the instances are, and that one is about to go; to Highball, that is
}

const faultAt = 3 * time.Second

var faults = []fault{
	{"kill", "SIGKILL", 1000, 9 * time.Second, func(_ testing.TB, all [3]*rig.ProgramServer) []event {
		return []event{{faultAt, all[2].Kill}}
	}, false},
	{"hang", "SIGSTOP", 500, 12 * time.Second, func(_ testing.TB, all [3]*rig.ProgramServer) []event {
		return []event{{faultAt, all[2].Hang}}
	}, false},
	{"drop", "packets dropped", 500, 12 * time.Second, blackholed, false},
	{"rolling", "each killed and restarted in turn", 1000, 16 * time.Second, func(_ testing.TB, all [3]*rig.ProgramServer) []event {
		var events []event
		for i, k := range []int{2, 1, 0} {
			at := faultAt + time.Duration(i)*4*time.Second
			events = append(events, event{at, all[k].Kill}, event{at + 2*time.Second, all[k].Restart})
		}
		return events
	}, false},
	{"drain", "SIGTERM, one after the other", 1000, 9 * time.Second, func(_ testing.TB, all [3]*rig.ProgramServer) []event {
		return []event{{faultAt, all[2].Terminate}, {faultAt + 3*time.Second, all[1].Terminate}}
	}, true},
}

func blackholed(tb testing.TB, all [3]*rig.ProgramServer) []event {
	tb.Helper()
	return []event{{faultAt, func() { blackhole(tb, all[2]) }}}
}

// blackhole has the kernel drop every packet from and to an instance.
func blackhole(tb testing.TB, p *rig.ProgramServer) {
	tb.Helper()
	host, port := split(tb, p.Addr)
	rules := fmt.Sprintf(`table inet highball_prove {
  chain in { type filter hook input priority 0; ip daddr %[1]s tcp dport %[2]s drop; ip saddr %[1]s tcp sport %[2]s drop; }
}`, host, port)
	if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
		tb.Errorf("nft: %v: %s", err, out)
	}
	tb.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "highball_prove").Run() })
}

// measure is one fault behind one front.
func measure(t *testing.T, f fault, front int) result {
	t.Helper()
	c := config{Work: 20 * time.Millisecond, Redis: rig.Redis(t).Addr}
	if f.consul && front == 0 {
		c.Consul = rig.Consul(t).Addr
	}
	all, ledger := three(t, c)
	var addr string
	if c.Consul != "" {
		addr = edge(t, "-consul", c.Consul, "-service", "orders")
		answers(t, "http://"+addr+"/work")
	} else {
		addr = fronts[front].start(t, [3]string{all[0].Addr, all[1].Addr, all[2].Addr})
	}
	l := load{base: "http://" + addr, rate: f.rate, during: f.during, timeout: 5 * time.Second, next: mix("/work")}
	warm := load{base: l.base, rate: 50, during: 500 * time.Millisecond, timeout: time.Second, next: gets("/work")}
	warm.run(t)
	l.events = f.inject(t, all)
	records := l.run(t)
	res := summarise(f.name, fronts[front].name, l, faultAt, records)
	res.audit(t, ledger, records)
	res.add(t)
	return res
}

func TestFailover(t *testing.T) {
	for _, f := range faults {
		for i := range fronts {
			switch {
			case !*full && (i > 0 || f.name == "drop"): // it needs root; the peers are for comparison
				continue
			case i == 1 && f.name != "hang" && f.name != "drop": // a hedge is for what does not answer
				continue
			}
			if !*full {
				f.rate /= 10
			}
			for _, name := range names(f.name+"/"+fronts[i].name, i > 1) {
				t.Run(name, func(t *testing.T) {
					res := measure(t, f, i)
					if i > 1 { // the peers are as they are
						return
					}
					if res.FailedGET > 0 || res.Twice > 0 {
						t.Errorf("%d GETs lost, %d POSTs run twice", res.FailedGET, res.Twice)
					}
					if res.FailedKey > 0 || res.TwiceKey > 0 || res.MissingKey > 0 {
						t.Errorf("of those with a key %d were lost, %d ran twice, %d are answered without effect", res.FailedKey, res.TwiceKey, res.MissingKey)
					}
					if f.name == "drain" && res.Failed > 0 {
						t.Errorf("%d requests lost in a drain", res.Failed)
					}
				})
			}
		}
	}
}
