package benchmarks

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/idempotency"
	"github.com/highball-go/highball/internal/rig"
)

// BenchmarkIdempotency is a POST of 100 bytes with a key of its own, and the replay of one, with a real Redis. Beside it
// are the handler without anything, and what a first call cannot do without: a lock that is set, and a response that
// replaces it (impl=commands), each a plain command.
func BenchmarkIdempotency(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	client := redis.NewClient(&redis.Options{Addr: rig.Redis(b).Addr, ContextTimeoutEnabled: true})
	defer client.Close()
	body := strings.Repeat("x", 100)
	answer := func(c *gin.Context) { c.String(http.StatusCreated, body) }
	commands := func(c *gin.Context) {
		key := c.GetHeader("Idempotency-Key")
		ctx := c.Request.Context()
		if err := client.SetArgs(ctx, key, "lock", redis.SetArgs{Mode: "NX", TTL: 30 * time.Second}).Err(); err != nil {
			c.AbortWithStatus(http.StatusConflict)
			return
		}
		c.Next()
		if err := client.Set(ctx, key, body, time.Minute).Err(); err != nil {
			_ = c.Error(err)
		}
	}
	store := idempotency.New(client, idempotency.Options{TTL: time.Minute, Timeout: 5 * time.Second})
	with := func(middleware ...gin.HandlerFunc) http.Handler {
		r := gin.New()
		r.POST("/", append(middleware, answer)...)
		return r
	}
	var seq atomic.Int64
	post := func(h http.Handler, key, replayed string) func() bool {
		return func() bool {
			r, err := http.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			if err != nil {
				return false
			}
			if key == "" {
				r.Header.Set("Idempotency-Key", "k"+strconv.FormatInt(seq.Add(1), 10))
			} else {
				r.Header.Set("Idempotency-Key", key)
			}
			w := discard{header: make(http.Header)}
			h.ServeHTTP(&w, r)
			return w.status == http.StatusCreated && w.n == len(body) && w.header.Get("Idempotency-Replayed") == replayed
		}
	}
	h := with(idempotency.Middleware(store))
	b.Run("call=first", func(b *testing.B) {
		runPeer(b, "bare", post(with(), "", ""))
		runPeer(b, "commands", post(with(commands), "", ""))
		runPeer(b, "highball", post(h, "", ""))
	})
	if !post(h, "repeated", "")() {
		b.Fatal("the first call failed")
	}
	b.Run("call=replay", func(b *testing.B) { runPeer(b, "highball", post(h, "repeated", "true")) })
}

// discard is a client that looks at status, headers and length.
type discard struct {
	header http.Header
	status int
	n      int
}

func (w *discard) Header() http.Header { return w.header }
func (w *discard) WriteHeader(s int)   { w.status = s }
func (w *discard) Write(p []byte) (int, error) {
	w.n += len(p)
	return len(p), nil
}
