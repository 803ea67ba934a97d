package accesslog_test

import (
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/highball-go/highball/accesslog"
)

func ExampleMiddleware() {
	gin.SetMode(gin.ReleaseMode)
	// Elasticsearch expects @timestamp, message and log.level; "" leaves the time out of this example.
	enc := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "", EncodeTime: zapcore.RFC3339NanoTimeEncoder,
		MessageKey: "message", LevelKey: "log.level", EncodeLevel: zapcore.LowercaseLevelEncoder,
	})
	log := zap.New(zapcore.NewCore(enc, os.Stdout, zapcore.InfoLevel))

	r := gin.New()
	r.Use(accesslog.Middleware(log,
		accesslog.WithSkip(func(c *gin.Context) bool { return c.FullPath() == "/health" }),
		accesslog.WithFields(func(c *gin.Context, f []zap.Field) []zap.Field {
			f[5] = zap.Float64("latency", 0.012) // so that the output is always the same
			return append(f, zap.String("tenant", c.GetString("tenant")))
		}),
	))
	r.GET("/health", func(c *gin.Context) { c.Status(http.StatusOK) })
	r.GET("/orders/:id", func(c *gin.Context) {
		c.Set("tenant", "acme")
		c.String(http.StatusOK, "order %s", c.Param("id"))
	})

	for _, target := range []string{"/health", "/orders/7?token=abc&page=2"} {
		req := httptest.NewRequest(http.MethodGet, target, nil)
		req.Header.Set("X-Request-Id", "req-1")
		r.ServeHTTP(httptest.NewRecorder(), req)
	}

	// Output:
	// {"log.level":"info","message":"request","method":"GET","route":"/orders/:id","path":"/orders/7","query":"token=***&page=2","status":200,"latency":0.012,"size":7,"ip":"192.0.2.1","user_agent":"","request_id":"req-1","tenant":"acme"}
}
