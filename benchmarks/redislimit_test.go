package benchmarks

import (
	"context"
	"testing"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
	"github.com/highball-go/highball/ratelimit"
	"github.com/highball-go/highball/ratelimit/redislimit"
)

// BenchmarkRedislimit decides on one hot key, with a real Redis: by leases, and by asking it each time as
// redis_rate does.
func BenchmarkRedislimit(b *testing.B) {
	const rate = 10_000_000
	ctx := context.Background()
	c := redis.NewClient(&redis.Options{Addr: rig.Redis(b).Addr, ContextTimeoutEnabled: true})
	defer c.Close()
	for impl, lease := range map[string]time.Duration{"highball-lease": 0, "highball": -1} {
		l := redislimit.New(c, ratelimit.PerSecond(rate, rate), redislimit.Options{
			Prefix: impl, Lease: lease, Timeout: time.Second, OnDown: redislimit.FailClosed,
		})
		defer l.Close()
		runPeer(b, impl, func() bool {
			d, err := l.AllowN(ctx, "hot", 1)
			return err == nil && d.Allowed
		})
	}
	peer, limit := redis_rate.NewLimiter(c), redis_rate.Limit{Rate: rate, Burst: rate, Period: time.Second}
	runPeer(b, "redis_rate", func() bool {
		r, err := peer.Allow(ctx, "hot", limit)
		return err == nil && r.Allowed == 1
	})
}
