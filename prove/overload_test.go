package prove

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

// One instance of eight workers and 20 ms can do 400 requests a second.
const (
	workers  = 8
	capacity = 400
)

// protections are what stands between the overload and the workers.
var protections = []struct {
	name  string
	start func(tb testing.TB, c config) string
}{
	{"nothing", unprotected},
	{"Highball: ratelimit at 800/s, adaptive concurrency", protected},
	{"nginx: limit_req 800/s", limitedByNginx},
	{"HAProxy: maxconn 8, known beforehand", limitedByHAProxy},
}

func unprotected(tb testing.TB, c config) string {
	tb.Helper()
	return start(tb, c).Addr
}

func protected(tb testing.TB, c config) string {
	tb.Helper()
	c.Protect, c.Rate = true, 2*capacity // as wrong as such a limit is wont to be
	return start(tb, c).Addr
}

func limitedByNginx(tb testing.TB, c config) string {
	tb.Helper()
	return rig.Nginx(tb, fmt.Sprintf(`limit_req_zone $server_name zone=all:1m rate=%dr/s; limit_req_status 429;
upstream gin { server %s; keepalive 256; }
server { listen ADDR backlog=4096; location / { limit_req zone=all burst=80 nodelay;
proxy_pass http://gin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 1s; } }`, 2*capacity, start(tb, c).Addr)).Addr
}

func limitedByHAProxy(tb testing.TB, c config) string {
	tb.Helper()
	return haproxyWith(tb, fmt.Sprintf(`  timeout connect 250ms
  timeout server 1s
  timeout queue 20ms
frontend f
  bind ADDR
  default_backend gin
backend gin
  server a %s maxconn %d
`, start(tb, c).Addr, workers))
}

func TestOverload(t *testing.T) {
	for i, p := range protections {
		if !*full && i != 1 {
			continue
		}
		for _, name := range names(p.name, i != 1) {
			t.Run(name, func(t *testing.T) {
				addr := p.start(t, config{Name: "a", Workers: workers, Work: 20 * time.Millisecond, Ledger: filepath.Join(t.TempDir(), "ledger")})
				l := load{base: "http://" + addr, timeout: time.Second, next: gets("/work")}
				answers(t, l.base+"/work")

				l.rate, l.during = capacity/2, scale(5*time.Second, 2*time.Second)
				calm := summarise("", "", l, 0, l.run(t))
				l.rate = capacity * 95 / 100
				peak := summarise("", "", l, 0, l.run(t))
				l.rate, l.during = scale(10, 3)*capacity, scale(12*time.Second, 4*time.Second)
				records := l.run(t)
				res := summarise("overload", p.name, l, 0, records)
				res.CalmP99 = calm.P99
				goodput, most := float64(res.Sent-res.Failed)/res.Seconds, float64(peak.Sent-peak.Failed)/peak.Seconds
				res.More = map[string]float64{"goodput": goodput, "of the peak": 100 * goodput / most}
				res.add(t)
				if i == 1 && (res.Refused == 0 || goodput < most*scale(0.9, 0.2)) { // of what a busy machine leaves
					t.Errorf("goodput %.0f/s, and %.0f/s at the peak", goodput, most)
				}
			})
		}
	}
}
