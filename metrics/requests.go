package metrics

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// methods that are label values: those of RFC 9110 and PATCH of RFC 5789. The first is of all others.
var methods = [...]string{
	"_OTHER", http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace,
}

// methodIndex is m's place in methods.
func methodIndex(m string) int {
	if m == http.MethodGet {
		return 1
	}
	return max(slices.Index(methods[1:], m)+1, 0)
}

// statusText is the label value of a status: itself where it has a name, else its class.
func statusText(status int) string {
	switch {
	case http.StatusText(status) != "" || status == 499:
		return strconv.Itoa(status)
	case status >= 100 && status <= 599:
		return string(rune('0'+status/100)) + "xx"
	default:
		return "other"
	}
}

// requests are the metrics of requests. A request finds its series in maps that are replaced, never changed, so
// it takes no lock and makes nothing once its series are there. There are no more of them than the program has
// routes, times methods and known statuses.
type requests struct {
	total          *prometheus.CounterVec
	duration, size *prometheus.HistogramVec
	active         atomic.Int64
	activeDesc     *prometheus.Desc

	routes [len(methods)]atomic.Pointer[map[string]*route] // by method, then by gin's FullPath
	mu     sync.Mutex                                      // held while a map or a list of series is replaced
}

// A route has the series of one method and route.
type route struct {
	method, path string
	size         prometheus.Observer
	byStatus     atomic.Pointer[[]*series]
}

// series are those of one status. Several statuses may share them.
type series struct {
	status   int
	total    prometheus.Counter
	duration prometheus.Observer
}

func newRequests(buckets []float64) *requests {
	r := &requests{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Requests that have ended.",
		}, []string{"method", "route", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_server_request_duration_seconds", Help: "Time from a request's arrival to the end of its answer.",
			Buckets: buckets,
		}, []string{"method", "route", "status"}),
		size: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_server_response_body_size_bytes", Help: "Bytes of the answers' bodies.",
			Buckets: prometheus.ExponentialBuckets(100, 10, 7),
		}, []string{"method", "route"}),
		activeDesc: prometheus.NewDesc("http_server_active_requests", "Requests that are being handled.", nil, nil),
	}
	for i := range r.routes {
		r.routes[i].Store(&map[string]*route{})
	}
	return r
}

func (r *requests) describe(to chan<- *prometheus.Desc) {
	r.total.Describe(to)
	r.duration.Describe(to)
	r.size.Describe(to)
	to <- r.activeDesc
}

func (r *requests) collect(to chan<- prometheus.Metric) {
	r.total.Collect(to)
	r.duration.Collect(to)
	r.size.Collect(to)
	to <- prometheus.MustNewConstMetric(r.activeDesc, prometheus.GaugeValue, float64(r.active.Load()))
}

// ended counts a request. path is gin's FullPath.
func (r *requests) ended(method, path string, status, size int, d time.Duration, exemplar prometheus.Labels) {
	at := r.route(methodIndex(method), path)
	s := at.find(status)
	if s == nil {
		s = r.add(at, status)
	}
	if ok(exemplar) {
		s.total.(prometheus.ExemplarAdder).AddWithExemplar(1, exemplar)
		s.duration.(prometheus.ExemplarObserver).ObserveWithExemplar(d.Seconds(), exemplar)
	} else {
		s.total.Inc()
		s.duration.Observe(d.Seconds())
	}
	at.size.Observe(float64(max(size, 0)))
}

func (r *requests) route(method int, path string) *route {
	if at := (*r.routes[method].Load())[path]; at != nil {
		return at
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := *r.routes[method].Load()
	if at := known[path]; at != nil {
		return at
	}
	at := &route{method: methods[method], path: "unmatched"}
	if path != "" {
		at.path = label(path)
	}
	at.size = r.size.WithLabelValues(at.method, at.path)
	at.byStatus.Store(new([]*series))
	more := maps.Clone(known)
	more[path] = at
	r.routes[method].Store(&more)
	return at
}

func (at *route) find(status int) *series {
	for _, s := range *at.byStatus.Load() {
		if s.status == status {
			return s
		}
	}
	return nil
}

func (r *requests) add(at *route, status int) *series {
	text := statusText(status)
	s := &series{
		status:   status,
		total:    r.total.WithLabelValues(at.method, at.path, text),
		duration: r.duration.WithLabelValues(at.method, at.path, text),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// An instance behind a proxy may answer with any status: what has no name is not kept here.
	if at.find(status) == nil && text == strconv.Itoa(status) {
		more := append(slices.Clip(*at.byStatus.Load()), s)
		at.byStatus.Store(&more)
	}
	return s
}

// label is s as a label value may be.
func label(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// ok reports whether OpenMetrics allows the exemplar; client_golang panics at one that it does not.
func ok(exemplar prometheus.Labels) bool {
	size := 0
	for name, value := range exemplar {
		if !labelName(name) || !utf8.ValidString(value) {
			return false
		}
		size += utf8.RuneCountInString(name) + utf8.RuneCountInString(value)
	}
	return len(exemplar) > 0 && size <= prometheus.ExemplarMaxRunes
}

func labelName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && !strings.HasPrefix(s, "__")
}
