package prove

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	ginsessions "github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/hashicorp/consul/api"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/degrade"
	"github.com/highball-go/highball/discovery/consul"
	"github.com/highball-go/highball/health"
	"github.com/highball-go/highball/idempotency"
	"github.com/highball-go/highball/ratelimit"
	"github.com/highball-go/highball/session"
)

// A config is what an instance is told.
type config struct {
	Name, Addr string
	Ledger     string        // a line for each effect, by one write(2) each: it survives SIGKILL
	Work       time.Duration // that a request takes
	Workers    int           // requests that are worked on at once; 0: any number
	Protect    bool          // with ratelimit and degrade
	Rate       float64       // of ratelimit
	Dependency string        // URL of what /dependency calls
	Breaker    bool          // in front of it
	AtOnce     int           // its MaxConcurrentRequests
	Redis      string        // address of the one that Idempotency-Keys are in
	Consul     string        // agent to register with
	Sentinels  []string      // of the Redis that sessions are in
	Master     string        // its name there
}

// serve is an instance: /work takes Work of one worker and then has its effect.
func serve(c config) error {
	gin.SetMode(gin.ReleaseMode)
	h := health.New(health.Options{DrainDelay: 500 * time.Millisecond})
	defer h.Close()
	r := gin.New()
	_ = r.SetTrustedProxies(nil)
	health.Register(h, r)
	r.Use(health.Middleware(h))
	if c.Protect {
		protect(r, c)
	}
	work, err := worker(c)
	if err != nil {
		return err
	}
	once := func(*gin.Context) {}
	if c.Redis != "" {
		client := redis.NewClient(&redis.Options{Addr: c.Redis, ContextTimeoutEnabled: true, DialerRetries: 1, PoolSize: 256})
		once = idempotency.Middleware(idempotency.New(client, idempotency.Options{}))
	}
	r.Any("/work", once, work)
	r.GET("/dependency", dependency(c))
	if len(c.Sentinels) > 0 {
		if err := sessions(r, c); err != nil {
			return err
		}
	}
	if c.Consul != "" {
		client, err := api.NewClient(&api.Config{Address: c.Consul})
		if err != nil {
			return err
		}
		h.OnServe(func(ctx context.Context) (func(context.Context) error, error) {
			reg, err := consul.New(client, consul.Options{}).Register(ctx, consul.Registration{Service: "orders", ID: c.Name, Addr: c.Addr, HTTP: "http://" + c.Addr + "/health", Interval: time.Second, Timeout: time.Second})
			if err != nil {
				return nil, err
			}
			return reg.Deregister, nil
		})
	}
	return h.Serve(context.Background(), &http.Server{Addr: c.Addr, Handler: r, ReadHeaderTimeout: 10 * time.Second})
}

func protect(r *gin.Engine, c config) {
	limit := ratelimit.New(ratelimit.PerSecond(c.Rate, int(c.Rate/10)+1), ratelimit.Options{})
	r.Use(
		ratelimit.Middleware(limit, ratelimit.WithKey(ratelimit.ByRoute)),
		degrade.Middleware(degrade.New(degrade.Options{}), degrade.WithConcurrency(degrade.NewConcurrency(degrade.ConcurrencyOptions{}))),
	)
}

func worker(c config) (gin.HandlerFunc, error) {
	ledger, err := os.OpenFile(c.Ledger, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	workers := make(chan struct{}, max(c.Workers, 1))
	return func(ctx *gin.Context) {
		if c.Workers > 0 {
			select {
			case workers <- struct{}{}:
				defer func() { <-workers }()
			case <-ctx.Request.Context().Done():
				return
			}
		}
		_, _ = io.Copy(io.Discard, ctx.Request.Body)
		time.Sleep(c.Work)
		if idempotency.Confirm(ctx) != nil { // another instance has the key: it was thought dead, and it is not for this one to act
			ctx.AbortWithStatus(http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(ledger, "%s %s\n", ctx.Request.Method, ctx.GetHeader("X-Request-Id"))
		ctx.Header("X-Instance", c.Name)
		ctx.JSON(http.StatusOK, gin.H{"instance": c.Name})
	}, nil
}

// dependency calls another service, with a second to answer, and has something to say without it.
func dependency(c config) gin.HandlerFunc {
	transport := http.RoundTripper(&http.Transport{MaxIdleConnsPerHost: 256})
	if c.Breaker {
		transport = breaker.Transport(breaker.New("dependency", breaker.Options{Window: 2 * time.Second, SleepWindow: time.Second, MaxConcurrentRequests: c.AtOnce}), transport)
	}
	client := &http.Client{Transport: transport, Timeout: time.Second}
	return func(ctx *gin.Context) {
		req, err := http.NewRequestWithContext(ctx.Request.Context(), http.MethodGet, c.Dependency, nil)
		if err != nil {
			ctx.AbortWithStatus(http.StatusInternalServerError)
			return
		}
		resp, err := client.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if err != nil || resp.StatusCode != http.StatusOK {
			ctx.String(http.StatusNonAuthoritativeInfo, "fallback")
			return
		}
		ctx.String(http.StatusOK, "fresh")
	}
}

// sessions adds POST /session, which sets a key of a session, and GET, which asks for one.
func sessions(r *gin.Engine, c config) error {
	client := redis.NewFailoverClient(&redis.FailoverOptions{SentinelAddrs: c.Sentinels, MasterName: c.Master, ContextTimeoutEnabled: true, DialerRetries: 1, PoolSize: 256})
	store, err := session.New(client, session.Options{Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}})
	if err != nil {
		return err
	}
	g := r.Group("/session", session.Middleware("session", store))
	g.GET("/:key", func(ctx *gin.Context) {
		switch {
		case ginsessions.Default(ctx).Get(ctx.Param("key")) != nil:
			ctx.String(http.StatusOK, "it is there")
		case session.StateOf(ctx) != session.Live:
			ctx.Status(http.StatusServiceUnavailable)
		default:
			ctx.Status(http.StatusNotFound)
		}
	})
	g.POST("/:key", func(ctx *gin.Context) {
		s := ginsessions.Default(ctx)
		s.Set(ctx.Param("key"), true)
		if err := s.Save(); err != nil {
			ctx.Status(http.StatusServiceUnavailable)
			return
		}
		ctx.String(http.StatusOK, "it is stored")
	})
	return nil
}
