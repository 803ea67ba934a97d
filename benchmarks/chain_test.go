package benchmarks

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/zeromicro/go-zero/core/conf"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/stat"
	"github.com/zeromicro/go-zero/rest"
	"github.com/zeromicro/go-zero/rest/router"

	"github.com/highball-go/highball/accesslog"
	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/metrics"
	"github.com/highball-go/highball/ratelimit"
	"github.com/highball-go/highball/recovery"
)

// BenchmarkChain is an empty handler behind each framework's whole chain, and behind its bare router: what the
// chains cost is the difference. go-zero's is its default, to which Highball's answers part for part, but that
// go-zero has no limit of requests, and its metrics are off until an agent is configured.
func BenchmarkChain(b *testing.B) {
	handler := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	var ours, theirs lines
	for _, p := range []struct {
		impl    string
		handler http.Handler
		log     *lines
	}{
		{"gin", chain(handler), nil},
		{"highball", chain(handler, highballChain(&ours)...), &ours},
		{"go-zero-router", goZeroRouter(b, handler), nil},
		{"go-zero", goZeroChain(b, handler, &theirs), &theirs},
	} {
		b.Run("impl="+p.impl, func(b *testing.B) {
			req := httptest.NewRequest(http.MethodGet, "/orders/42?page=3", nil)
			req.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
			serve(b, p.handler, req, http.StatusNoContent)
			if p.log != nil && p.log.n < b.N {
				b.Fatalf("%d lines of log for %d requests", p.log.n, b.N)
			}
		})
	}
}

func chain(h http.HandlerFunc, mws ...gin.HandlerFunc) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Use(mws...)
	r.GET("/orders/:id", gin.WrapF(h))
	return r
}

func highballChain(log io.Writer) []gin.HandlerFunc {
	l := jsonTo(log)
	return []gin.HandlerFunc{
		accesslog.Middleware(l),
		metrics.Middleware(metrics.New(prometheus.NewRegistry(), metrics.Options{})),
		recovery.Middleware(l),
		ratelimit.Middleware(ratelimit.New(ratelimit.PerSecond(1e9, 1e6), ratelimit.Options{}), ratelimit.WithRefund(breaker.Rejected)),
		breaker.Middleware(breaker.NewGroup(breaker.Options{})),
	}
}

func goZeroRouter(tb testing.TB, h http.HandlerFunc) http.Handler {
	tb.Helper()
	r := router.NewRouter()
	if err := r.Handle(http.MethodGet, "/orders/:id", h); err != nil {
		tb.Fatal(err)
	}
	return r
}

func goZeroChain(tb testing.TB, h http.HandlerFunc, log io.Writer) http.Handler {
	tb.Helper()
	var c rest.RestConf
	if err := conf.LoadFromJsonBytes([]byte(`{"Name":"bench","Host":"127.0.0.1","Port":1,"DevServer":{"Enabled":false}}`), &c); err != nil {
		tb.Fatal(err)
	}
	s, err := rest.NewServer(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Stop)
	stat.DisableLog()
	logx.SetWriter(logx.NewWriter(log)) // after NewServer, which sets its own
	s.AddRoute(rest.Route{Method: http.MethodGet, Path: "/orders/:id", Handler: h})
	built, err := rest.NewServerless(s)
	if err != nil {
		tb.Fatal(err)
	}
	return http.HandlerFunc(built.Serve)
}
