package benchmarks

import (
	"net/http"
	"net/http/httptest"
	"testing"

	ginzap "github.com/gin-contrib/zap"
	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/highball-go/highball/accesslog"
)

// lines counts the bytes and lines written to it.
type lines struct{ n, bytes int }

func (l *lines) Write(b []byte) (int, error) {
	l.n++
	l.bytes += len(b)
	return len(b), nil
}

// BenchmarkAccesslog is one line of JSON per request. Highball's has the route, the size and the request's id
// in addition, and no secret of the query.
func BenchmarkAccesslog(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	for _, query := range []string{"plain", "secret"} {
		for _, p := range []struct {
			impl string
			mw   func(*zap.Logger) gin.HandlerFunc
		}{
			{"highball", func(l *zap.Logger) gin.HandlerFunc { return accesslog.Middleware(l) }},
			{"gin-contrib-zap", func(l *zap.Logger) gin.HandlerFunc { return ginzap.Ginzap(l, "", true) }},
			{"gin-contrib-zap-rfc3339", func(l *zap.Logger) gin.HandlerFunc { return ginzap.Ginzap(l, "2006-01-02T15:04:05Z07:00", true) }},
		} {
			b.Run("query="+query+"/impl="+p.impl, func(b *testing.B) {
				var out lines
				enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
				r := gin.New()
				r.Use(p.mw(zap.New(zapcore.NewCore(enc, zapcore.AddSync(&out), zapcore.InfoLevel))))
				r.GET("/orders/:id", func(c *gin.Context) { c.Status(http.StatusNoContent) })
				target := "/orders/42?page=3&sort=name"
				if query == "secret" {
					target += "&access_token=abcdefghijkl"
				}
				req := httptest.NewRequest(http.MethodGet, target, nil)
				req.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
				req.Header.Set("Accept", "*/*")
				serve(b, r, req, http.StatusNoContent)
				if out.n < b.N || out.bytes < 100*b.N {
					b.Fatalf("%d lines, %d bytes for %d requests", out.n, out.bytes, b.N)
				}
			})
		}
	}
}
