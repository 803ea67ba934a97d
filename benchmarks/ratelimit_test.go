package benchmarks

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sethvargo/go-limiter/memorystore"
	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/store/memory"
	"golang.org/x/time/rate"

	"github.com/highball-go/highball/ratelimit"
)

const plenty = 1 << 40 // tokens: nothing is refused

// takeOne takes a token of a key, and reports whether it was there.
type takeOne func(key string) bool

// keyed are the limiters that have many keys; make expects so many of them.
var keyed = []struct {
	impl string
	make func(b *testing.B, keys int) takeOne
}{
	{"highball", func(_ *testing.B, keys int) takeOne {
		l := ratelimit.New(ratelimit.PerSecond(1e9, 1<<30), ratelimit.Options{Keys: keys})
		return func(key string) bool {
			d, err := l.AllowN(context.Background(), key, 1)
			return err == nil && d.Allowed
		}
	}},
	{"go-limiter", func(b *testing.B, keys int) takeOne {
		b.Helper()
		store, err := memorystore.New(&memorystore.Config{Tokens: plenty, Interval: time.Hour, InitialAlloc: keys})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = store.Close(context.Background()) })
		return func(key string) bool {
			_, _, _, ok, err := store.Take(context.Background(), key)
			return err == nil && ok
		}
	}},
	{"ulule", func(*testing.B, int) takeOne {
		l := limiter.New(memory.NewStore(), limiter.Rate{Period: time.Hour, Limit: plenty})
		return func(key string) bool {
			c, err := l.Get(context.Background(), key)
			return err == nil && !c.Reached
		}
	}},
}

func BenchmarkRatelimitOneKey(b *testing.B) {
	ctx := context.Background()
	own := ratelimit.New(ratelimit.PerSecond(1e9, 1<<30), ratelimit.Options{})
	runPeer(b, "highball", func() bool {
		d, _ := own.AllowN(ctx, "key", 1)
		return d.Allowed
	})
	for _, l := range keyed[1:] {
		take := l.make(b, 1024)
		runPeer(b, l.impl, func() bool { return take("key") })
	}
	xr := rate.NewLimiter(1e9, 1<<30)
	runPeer(b, "x-time-rate", xr.Allow)
}

func BenchmarkRatelimit100kKeys(b *testing.B) {
	const n = 100_000
	keys := randomKeys(n)
	asked := make([]string, n) // in another order, each copied: a request brings its key along, just made
	for i, j := range rand.Perm(n) {
		asked[i] = strings.Clone(keys[j])
	}
	for _, l := range keyed {
		take := l.make(b, n)
		for _, key := range keys {
			if !take(key) {
				b.Fatal("a new key was refused")
			}
		}
		b.Run("mode=serial/impl="+l.impl, func(b *testing.B) {
			i := 0
			runSerial(b, func() bool {
				i++
				return take(asked[i%n])
			})
		})
		b.Run("mode=parallel/impl="+l.impl, func(b *testing.B) {
			b.ReportAllocs()
			var starts atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(starts.Add(n / 7)); pb.Next(); i++ {
					if !take(asked[i%n]) {
						b.Error("the work was not done")
						return
					}
				}
			})
		})
	}
}

// randomKeys are addresses.
func randomKeys(n int) []string {
	rnd := rand.New(rand.NewPCG(1, 2))
	keys := make([]string, n)
	for i := range keys {
		keys[i] = netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), byte(rnd.Uint32())}).String()
	}
	return keys
}

// BenchmarkRatelimitMemory holds a million keys: what each costs, and a forced garbage collection (ns/op).
func BenchmarkRatelimitMemory(b *testing.B) {
	const n = 1_000_000
	for _, l := range keyed {
		b.Run("impl="+l.impl, func(b *testing.B) {
			before := heap()
			take := l.make(b, n)
			for i := range n {
				if !take("user:" + strconv.Itoa(i)) {
					b.Fatal("a new key was refused")
				}
			}
			bytes := float64(heap()) - float64(before)
			for b.Loop() {
				runtime.GC()
			}
			b.ReportMetric(bytes/n, "B/key")
			if !take("user:0") {
				b.Fatal("a key was refused")
			}
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
