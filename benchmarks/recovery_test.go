package benchmarks

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	ginzap "github.com/gin-contrib/zap"
	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/highball-go/highball/recovery"
)

// toNowhere is a logger that encodes each line as JSON, as in production, and throws it away.
func toNowhere() *zap.Logger { return jsonTo(io.Discard) }

func jsonTo(w io.Writer) *zap.Logger {
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(enc, zapcore.AddSync(w), zapcore.InfoLevel))
}

// answer is a http.ResponseWriter that keeps the status and nothing else.
type answer struct {
	h      http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.h }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }
func (a *answer) WriteHeader(status int)      { a.status = status }

// serve measures requests to r, and fails when one has another status.
func serve(b *testing.B, r http.Handler, req *http.Request, status int) {
	b.Helper()
	w := &answer{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		w.status = http.StatusOK
		r.ServeHTTP(w, req)
		if w.status != status {
			b.Fatalf("status %d, want %d", w.status, status)
		}
	}
}

type recoveryPeer struct {
	impl string
	mw   gin.HandlerFunc
}

func recoveryPeers() []recoveryPeer {
	return []recoveryPeer{
		{"highball", recovery.Middleware(toNowhere())},
		{"gin", gin.RecoveryWithWriter(io.Discard)},
		{"gin-contrib-zap", ginzap.RecoveryWithZap(toNowhere(), true)},
	}
}

func BenchmarkRecoveryWithoutPanic(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	for _, p := range append(recoveryPeers(), recoveryPeer{"none", func(*gin.Context) {}}) {
		b.Run("impl="+p.impl, func(b *testing.B) {
			r := gin.New()
			r.Use(p.mw)
			r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })
			serve(b, r, httptest.NewRequest(http.MethodGet, "/", nil), http.StatusNoContent)
		})
	}
}

// BenchmarkRecoveryPanic is the same panic again and again, most of whose lines Highball suppresses.
func BenchmarkRecoveryPanic(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	for _, p := range recoveryPeers() {
		b.Run("impl="+p.impl, func(b *testing.B) {
			r := gin.New()
			r.Use(p.mw)
			r.GET("/", func(*gin.Context) { panic("boom") })
			serve(b, r, httptest.NewRequest(http.MethodGet, "/", nil), http.StatusInternalServerError)
		})
	}
}

// BenchmarkRecoveryPanicLogged has Highball log every panic too: each tenth is under a new Middleware.
func BenchmarkRecoveryPanicLogged(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	log := toNowhere()
	for _, p := range recoveryPeers() {
		b.Run("impl="+p.impl, func(b *testing.B) {
			mw, n := p.mw, 0
			r := gin.New()
			r.Use(func(c *gin.Context) { mw(c) })
			r.GET("/", func(*gin.Context) {
				if n++; n%10 == 0 && p.impl == "highball" {
					mw = recovery.Middleware(log)
				}
				panic("boom")
			})
			serve(b, r, httptest.NewRequest(http.MethodGet, "/", nil), http.StatusInternalServerError)
		})
	}
}
