// Command service is a highly available Gin service to copy: all that Highball has, in the recommended order.
// README.md walks through it, and has the table of its environment variables.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gin-gonic/gin"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/highball-go/highball/accesslog"
	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/cluster"
	"github.com/highball-go/highball/degrade"
	"github.com/highball-go/highball/degrade/cache"
	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/discovery/consul"
	"github.com/highball-go/highball/health"
	"github.com/highball-go/highball/idempotency"
	"github.com/highball-go/highball/jwtauth"
	"github.com/highball-go/highball/metrics"
	"github.com/highball-go/highball/ratelimit"
	"github.com/highball-go/highball/ratelimit/redislimit"
	"github.com/highball-go/highball/recovery"
	"github.com/highball-go/highball/session"
)

func main() {
	if err := run(); err != nil {
		log.Fatal("service: ", err)
	}
}

func run() error {
	service, listen := env("SERVICE", "orders"), env("LISTEN", "127.0.0.1:8080")
	rate, err1 := strconv.ParseFloat(env("RATE", "100"), 64)
	drainDelay, err2 := time.ParseDuration(env("DRAIN_DELAY", "3s"))
	grace, err3 := time.ParseDuration(env("GRACE", "25s"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("RATE, DRAIN_DELAY or GRACE: %w", err)
	}
	redisAddrs, password := strings.Fields(env("REDIS_ADDRS", "")), env("PASSWORD", "")
	sessionKeys, tokenKeys := bytes.Fields([]byte(env("SESSION_KEYS", ""))), bytes.Fields([]byte(env("TOKEN_KEYS", "")))
	if len(redisAddrs) == 0 { // alone, on a developer's machine: all ends with the process
		embedded, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer embedded.Close()
		redisAddrs, password = []string{embedded.Addr()}, cmp.Or(password, "demo")
		sessionKeys, tokenKeys = [][]byte{[]byte(rand.Text() + rand.Text())}, [][]byte{[]byte(rand.Text() + rand.Text())}
	}
	if len(sessionKeys) == 0 || len(tokenKeys) == 0 || password == "" {
		return errors.New("with REDIS_ADDRS, every instance needs the same SESSION_KEYS, TOKEN_KEYS and PASSWORD")
	}

	logs := zap.NewProductionConfig()
	logs.Sampling, logs.EncoderConfig.EncodeTime = nil, zapcore.RFC3339NanoTimeEncoder
	logger := zap.Must(logs.Build())
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := metrics.New(registry, metrics.Options{})
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: redisAddrs, MasterName: env("REDIS_MASTER", ""), Password: env("REDIS_PASSWORD", ""),
		ContextTimeoutEnabled: true, DialerRetries: 1, PoolSize: 256, // see package session
	})
	defer client.Close()
	h := health.New(health.Options{DrainDelay: cmp.Or(drainDelay, -1), Grace: grace})
	defer h.Close()
	// Optional: all goes on without Redis, and its outage must not take every instance out.
	h.Add("redis", func(ctx context.Context) error { return client.Ping(ctx).Err() }, health.Optional())

	peers, err4 := discover(service, env("ADVERTISE", listen), h, m, logger)
	lb := balancer.New(peers, balancer.Options{
		Retry: balancer.Retry{PerTry: time.Second}, Ejection: balancer.Ejection{ProbePath: "/health"},
		SlowStart: 10 * time.Second, OnEvent: m.BalancerEvent,
	})
	defer lb.Close()
	m.WatchBalancer(lb)
	// The instances decide together whether what they call fails for all of them, and how much to admit.
	together := cluster.New(client, cluster.Options{Service: service})
	defer together.Close()
	m.WatchCluster(together)
	limiter := redislimit.New(client, ratelimit.PerSecond(rate, int(rate)), redislimit.Options{Prefix: service + ":rate:", Admission: together.Admission})
	defer limiter.Close()
	circuits := breaker.NewGroup(breaker.Options{Timeout: 5 * time.Second, Peers: together, OnChange: m.BreakerChange})
	m.WatchBreakers(circuits.Snapshots)
	controller := degrade.New(degrade.Options{Scoring: degrade.SumWeights, OnChange: m.DegradeChange})
	defer controller.Close()
	m.WatchDegrade(controller)
	slots := degrade.NewConcurrency(degrade.ConcurrencyOptions{})
	m.WatchConcurrency(slots)
	sessions := session.Options{Keys: sessionKeys, Prefix: service + ":session:", OnState: metrics.SessionState[session.State](m)}
	store, err5 := session.New(client, sessions)
	verify, err6 := jwtauth.HMAC(tokenKeys[0], tokenKeys[1:]...)
	auth, err7 := jwtauth.New(verify, jwtauth.Options{Issuer: service, Audience: service})
	issuer, err8 := jwtauth.NewIssuer(jwtauth.Key{Alg: "HS256", Key: tokenKeys[0]}, jwtauth.IssuerOptions{Issuer: service, Audience: service})

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	err9 := r.SetTrustedProxies(strings.Fields(env("TRUSTED_PROXIES", "")))
	if err := errors.Join(err4, err5, err6, err7, err8, err9); err != nil {
		return err
	}
	health.Register(h, r) // in front of the chain: probes are not logged, limited or shed
	r.GET("/metrics", metrics.Handler(registry))
	r.Use(
		health.Middleware(h),
		accesslog.Middleware(logger, accesslog.WithSlow(time.Second)),
		metrics.Middleware(m),
		recovery.Middleware(logger),
		session.Middleware("session", store), // asks Redis only for handlers that ask for the session
		jwtauth.Optional(auth),
		ratelimit.Middleware(m.Limiter("requests", limiter), ratelimit.WithSkip(isPeer), ratelimit.WithRefund(breaker.Rejected)),
		breaker.Middleware(circuits),
		degrade.Middleware(controller, degrade.WithConcurrency(slots), degrade.WithEssential(isPost)),
	)
	app{
		password, issuer, cache.New(client, cache.Options[int]{Prefix: service + ":price:"}),
		idempotency.Middleware(idempotency.New(client, idempotency.Options{Prefix: service + ":once:", Scope: subject})), balancer.Proxy(lb, service),
	}.routes(r)
	return h.Serve(context.Background(), &http.Server{
		Addr: listen, Handler: http.MaxBytesHandler(r, 1<<20), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, // a proxy in front has to close idle connections first
	})
}

// discover finds the peers in Consul, where this instance is registered while it serves, or else in PEERS.
func discover(service, self string, h *health.Health, m *metrics.Metrics, logger *zap.Logger) (discovery.Source, error) {
	addr := env("CONSUL_ADDR", "")
	if addr == "" {
		fixed := discovery.Static{}
		for peer := range strings.FieldsSeq(env("PEERS", self)) {
			fixed[service] = append(fixed[service], discovery.Instance{Addr: peer})
		}
		return fixed, nil
	}
	client, err := api.NewClient(&api.Config{Address: addr})
	found := consul.New(client, consul.Options{Wait: 10 * time.Second, OnError: func(_ string, err error) { logger.Warn("consul", zap.Error(err)) }})
	m.WatchDiscovery(found.Age)
	h.OnServe(func(ctx context.Context) (func(context.Context) error, error) {
		registered, err := found.Register(ctx, consul.Registration{
			Service: service, Addr: self, HTTP: "http://" + self + "/health", Interval: 5 * time.Second, DeregisterCriticalAfter: time.Minute,
		})
		return registered.Deregister, err
	})
	return found, err
}

func env(name, otherwise string) string { return cmp.Or(os.Getenv(name), otherwise) }
