package metrics_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/internal/memnet"
	"github.com/highball-go/highball/internal/rig"
	"github.com/highball-go/highball/metrics"
	"github.com/highball-go/highball/recovery"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	os.Exit(m.Run())
}

// setUp returns a registry, its metrics, and an engine that is measured.
func setUp(o metrics.Options) (*prometheus.Registry, *metrics.Metrics, *gin.Engine) {
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg, o)
	r := gin.New()
	r.Use(metrics.Middleware(m))
	return reg, m, r
}

// do sends a request in this goroutine; a panic of a handler ends here.
func do(h http.Handler, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	defer func() { _ = recover() }()
	req := httptest.NewRequest(http.MethodGet, target, nil)
	req.Method = method
	h.ServeHTTP(w, req)
	return w
}

// expect fails the test unless the named metrics of reg are as given.
func expect(t *testing.T, reg prometheus.Gatherer, want string, names ...string) {
	t.Helper()
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

func TestARequestIsCountedByMethodRouteAndStatus(t *testing.T) {
	reg, _, r := setUp(metrics.Options{})
	r.GET("/orders/:id", func(c *gin.Context) { c.String(http.StatusOK, "order") })
	r.POST("/orders", func(c *gin.Context) { c.Status(http.StatusCreated) })
	for range 3 {
		do(r, http.MethodGet, fmt.Sprintf("/orders/%d", rand.Int()))
	}
	do(r, http.MethodPost, "/orders")
	do(r, http.MethodGet, "/nowhere")
	expect(t, reg, `
		# HELP http_requests_total Requests that have ended.
		# TYPE http_requests_total counter
		http_requests_total{method="GET",route="/orders/:id",status="200"} 3
		http_requests_total{method="POST",route="/orders",status="201"} 1
		http_requests_total{method="GET",route="unmatched",status="404"} 1
	`, "http_requests_total")
}

func TestDurationSizeAndActiveRequestsAreMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, _, r := setUp(metrics.Options{Buckets: []float64{1, 0.2, math.NaN(), 1}})
		during := 0.0
		r.GET("/slow", func(c *gin.Context) {
			time.Sleep(500 * time.Millisecond)
			during = value(t, reg, "http_server_active_requests")
			c.String(http.StatusOK, strings.Repeat("x", 150))
		})
		do(r, http.MethodGet, "/slow")
		if during != 1 {
			t.Errorf("%v active requests in a handler, want 1", during)
		}
		expect(t, reg, `
			# HELP http_server_active_requests Requests that are being handled.
			# TYPE http_server_active_requests gauge
			http_server_active_requests 0
			# HELP http_server_request_duration_seconds Time from a request's arrival to the end of its answer.
			# TYPE http_server_request_duration_seconds histogram
			http_server_request_duration_seconds_bucket{method="GET",route="/slow",status="200",le="0.2"} 0
			http_server_request_duration_seconds_bucket{method="GET",route="/slow",status="200",le="1"} 1
			http_server_request_duration_seconds_bucket{method="GET",route="/slow",status="200",le="+Inf"} 1
			http_server_request_duration_seconds_sum{method="GET",route="/slow",status="200"} 0.5
			http_server_request_duration_seconds_count{method="GET",route="/slow",status="200"} 1
		`, "http_server_active_requests", "http_server_request_duration_seconds")
		if n := series(t, reg, "http_server_response_body_size_bytes"); n != 1 {
			t.Errorf("%d series of sizes, want 1", n)
		}
	})
}

func value(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

// series counts those of the named metric, or of all.
func series(t *testing.T, g prometheus.Gatherer, names ...string) int {
	t.Helper()
	n, err := testutil.GatherAndCount(g, names...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAPanicCountsAs500WhereverRecoveryStands(t *testing.T) {
	cases := map[string]func(*gin.Context){
		"before an answer": func(*gin.Context) { panic("oops") },
		"after the status": func(c *gin.Context) { c.String(http.StatusOK, "half an ans"); panic("oops") },
		"abort":            func(*gin.Context) { panic(http.ErrAbortHandler) },
	}
	for name, handler := range cases {
		for _, where := range []string{"outside", "inside", "nowhere"} {
			t.Run(name+", recovery "+where, func(t *testing.T) {
				reg := prometheus.NewPedanticRegistry()
				mw, rec := metrics.Middleware(metrics.New(reg, metrics.Options{})), recovery.Middleware(zap.NewNop())
				r := gin.New()
				switch where {
				case "outside":
					r.Use(rec, mw)
				case "inside":
					r.Use(mw, rec)
				default:
					r.Use(mw)
				}
				r.GET("/", handler)
				do(r, http.MethodGet, "/")
				expect(t, reg, `
					# HELP http_requests_total Requests that have ended.
					# TYPE http_requests_total counter
					http_requests_total{method="GET",route="/",status="500"} 1
					# HELP http_server_active_requests Requests that are being handled.
					# TYPE http_server_active_requests gauge
					http_server_active_requests 0
				`, "http_requests_total", "http_server_active_requests")
			})
		}
	}
}

func TestAClientGoneCountsAs499(t *testing.T) {
	reg, _, r := setUp(metrics.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	r.GET("/", func(c *gin.Context) { cancel(); c.Status(http.StatusOK) })
	r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
	expect(t, reg, `
		# HELP http_requests_total Requests that have ended.
		# TYPE http_requests_total counter
		http_requests_total{method="GET",route="/",status="499"} 1
	`, "http_requests_total")
}

func TestAFloodMakesABoundedNumberOfSeries(t *testing.T) {
	reg, _, r := setUp(metrics.Options{})
	r.Any("/echo/*path", func(c *gin.Context) { // as a proxy passes on what an instance answers
		var status int
		_, _ = fmt.Sscan(c.GetHeader("X-Status"), &status)
		c.Status(status)
	})
	status := 200
	send := func(method, target, host string) {
		req := httptest.NewRequest(http.MethodGet, target, nil)
		req.Method, req.Host = method, host
		req.Header.Set("X-Status", fmt.Sprint(status))
		r.ServeHTTP(httptest.NewRecorder(), req)
	}
	for i := range 3000 {
		send(fmt.Sprintf("M%d", i), "/echo/x", "a")
		send(http.MethodGet, fmt.Sprintf("/random/%d?q=%d", i, i), "a")
		send(http.MethodGet, fmt.Sprintf("/echo/%d?q=%d", i, i), fmt.Sprintf("host%d", i))
		send(http.MethodGet, "/echo/\xff\xfe", "a")
	}
	// _OTHER has no route, as gin registers Any for the known methods.
	if n := series(t, reg, "http_requests_total"); n != 3 {
		t.Errorf("%d series after 12 000 requests, want 3", n)
	}
	for status = 100; status < 1000; status++ {
		send(http.MethodGet, "/echo/x", "a")
	}
	if n := series(t, reg, "http_requests_total"); n > 80 {
		t.Errorf("%d series after every status, want at most 80", n)
	}
}

func TestAStatusWithoutANameGoesByItsClass(t *testing.T) {
	reg, _, r := setUp(metrics.Options{})
	for i, status := range []int{299, 298, 599, 999} {
		r.GET(fmt.Sprint("/", i), func(c *gin.Context) { c.Status(status) })
		do(r, http.MethodGet, fmt.Sprint("/", i))
	}
	expect(t, reg, `
		# HELP http_requests_total Requests that have ended.
		# TYPE http_requests_total counter
		http_requests_total{method="GET",route="/0",status="2xx"} 1
		http_requests_total{method="GET",route="/1",status="2xx"} 1
		http_requests_total{method="GET",route="/2",status="5xx"} 1
		http_requests_total{method="GET",route="/3",status="other"} 1
	`, "http_requests_total")
}

func TestTwoEnginesShareARegistry(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	for range 2 {
		r := gin.New()
		r.Use(metrics.Middleware(metrics.New(reg, metrics.Options{})))
		r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })
		do(r, http.MethodGet, "/")
	}
	expect(t, reg, `
		# HELP http_requests_total Requests that have ended.
		# TYPE http_requests_total counter
		http_requests_total{method="GET",route="/",status="204"} 2
	`, "http_requests_total")
	wrapped := prometheus.WrapRegistererWithPrefix("shop_", reg)
	metrics.New(wrapped, metrics.Options{})
	metrics.New(wrapped, metrics.Options{})
}

func TestARegistryWithForeignMetricsOfTheSameNameIsToldAndUnchanged(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(prometheus.NewCounterVec(prometheus.CounterOpts{Name: "http_requests_total", Help: "x"}, []string{"code"}))
	defer func() {
		if v := recover(); v == nil || !strings.Contains(fmt.Sprint(v), "WrapRegistererWithPrefix") {
			t.Errorf("panic is %v, want advice", v)
		}
		if n := series(t, reg); n != 0 {
			t.Errorf("%d series were registered", n)
		}
	}()
	metrics.New(reg, metrics.Options{})
}

func TestAnExemplarIsExposedAndABadOneIsLeftOut(t *testing.T) {
	var labels prometheus.Labels
	reg, _, r := setUp(metrics.Options{Exemplar: func(context.Context) prometheus.Labels { return labels }})
	r.GET("/", func(c *gin.Context) { c.Status(http.StatusOK) })
	r.GET("/metrics", metrics.Handler(reg))
	scrape := func() string {
		w := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		req.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
		labels = nil
		r.ServeHTTP(w, req)
		return w.Body.String()
	}
	for _, bad := range []prometheus.Labels{
		{"trace_id": strings.Repeat("x", 121)}, {"trace-id": "1"}, {"": "1"}, {"__name__": "1"}, {"1st": "1"}, {"trace_id": "\xff"},
	} {
		labels = bad
		do(r, http.MethodGet, "/")
		if strings.Contains(scrape(), "# {") {
			t.Errorf("the exemplar %q was taken", bad)
		}
	}
	labels = prometheus.Labels{"trace_id": "4bf92f3577b34da6"}
	do(r, http.MethodGet, "/")
	if got := scrape(); strings.Count(got, `# {trace_id="4bf92f3577b34da6"}`) != 2 {
		t.Errorf("want an exemplar of the count and one of the duration, got\n%s", got)
	}
	expect(t, reg, `
		# HELP http_requests_total Requests that have ended.
		# TYPE http_requests_total counter
		http_requests_total{method="GET",route="/",status="200"} 7
		http_requests_total{method="GET",route="/metrics",status="200"} 7
	`, "http_requests_total")
}

func TestARequestCountsAlsoWhenTheExemplarHookPanics(t *testing.T) {
	reg, _, r := setUp(metrics.Options{Exemplar: func(context.Context) prometheus.Labels { panic("hook") }})
	r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })
	do(r, http.MethodGet, "/")
	expect(t, reg, `
		# HELP http_requests_total Requests that have ended.
		# TYPE http_requests_total counter
		http_requests_total{method="GET",route="/",status="204"} 1
		# HELP http_server_active_requests Requests that are being handled.
		# TYPE http_server_active_requests gauge
		http_server_active_requests 0
	`, "http_requests_total", "http_server_active_requests")
}

func TestConcurrentRequestsAreAllCounted(t *testing.T) {
	reg, m, r := setUp(metrics.Options{})
	for i := range 50 {
		r.GET(fmt.Sprint("/", i), func(c *gin.Context) { c.Status(200 + i%10) })
	}
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			for i := range 200 {
				do(r, http.MethodGet, fmt.Sprint("/", (g+i)%50))
				m.BreakerChange(breaker.Change{Name: fmt.Sprint(i), To: breaker.Open})
				if i%50 == 0 {
					series(t, reg)
				}
			}
		})
	}
	all.Wait()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		for _, s := range f.GetMetric() {
			if f.GetName() == "http_requests_total" {
				total += s.GetCounter().GetValue()
			}
		}
	}
	if total != 16*200 {
		t.Errorf("%v requests counted, want 3200", total)
	}
}

// everything is a registry on which every metric has a series.
func everything(t *testing.T) *prometheus.Registry {
	t.Helper()
	reg, m, r := setUp(metrics.Options{})
	r.GET("/", func(c *gin.Context) { c.Status(http.StatusOK) })
	do(r, http.MethodGet, "/")
	use(t, m)
	return reg
}

func TestPromtoolHasNothingToSay(t *testing.T) {
	promtool := rig.Tool(t, "promtool", "install prometheus (Debian: apt-get install prometheus)")
	r := gin.New()
	r.GET("/metrics", metrics.Handler(everything(t)))
	body, err := io.ReadAll(do(r, http.MethodGet, "/metrics").Body)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = bytes.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

func TestTheDocumentationListsEveryMetric(t *testing.T) {
	doc, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	var listed, got []string
	for _, found := range regexp.MustCompile(`(?m)^//\t(https?_\w+|highball_\w+)`).FindAllSubmatch(doc, -1) {
		listed = append(listed, string(found[1]))
	}
	families, err := everything(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		got = append(got, f.GetName())
	}
	slices.Sort(listed)
	if !slices.Equal(listed, got) {
		t.Errorf("the package comment lists\n%s\nbut there are\n%s", listed, got)
	}
}

func TestAStreamCountsWhenItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, _, r := setUp(metrics.Options{Buckets: []float64{2, 4}})
		r.GET("/stream", func(c *gin.Context) {
			for range 3 {
				_, _ = c.Writer.WriteString("data: x\n\n")
				c.Writer.Flush()
				time.Sleep(time.Second)
			}
		})
		resp, err := (&http.Client{Transport: memnet.Serve(t, r)}).Get("http://service/stream")
		if err != nil {
			t.Fatal(err)
		}
		if n := series(t, reg, "http_requests_total"); n != 0 {
			t.Errorf("%d series while the stream runs, want none", n)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		synctest.Wait()
		expect(t, reg, `
			# HELP http_server_request_duration_seconds Time from a request's arrival to the end of its answer.
			# TYPE http_server_request_duration_seconds histogram
			http_server_request_duration_seconds_bucket{method="GET",route="/stream",status="200",le="2"} 0
			http_server_request_duration_seconds_bucket{method="GET",route="/stream",status="200",le="4"} 1
			http_server_request_duration_seconds_bucket{method="GET",route="/stream",status="200",le="+Inf"} 1
			http_server_request_duration_seconds_sum{method="GET",route="/stream",status="200"} 3
			http_server_request_duration_seconds_count{method="GET",route="/stream",status="200"} 1
		`, "http_server_request_duration_seconds")
	})
}
