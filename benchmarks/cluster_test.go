package benchmarks

import (
	"testing"
	"time"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/cluster"
)

// BenchmarkClusterBreaker makes calls through a closed circuit, which tells a Cluster of them or does not.
// Its exchanges are off the path of the calls, so without Redis it is the same to them.
func BenchmarkClusterBreaker(b *testing.B) {
	c := cluster.New(nil, cluster.Options{Interval: 100 * time.Millisecond})
	defer c.Close()
	heard := false
	for impl, peers := range map[string]breaker.Peers{"alone": nil, "cluster": c} {
		own := breaker.New("bench", breaker.Options{Peers: peers})
		runPeer(b, impl, func() bool {
			p, err := own.Allow()
			return err == nil && p.Done(breaker.Success)
		})
		for deadline := time.Now().Add(10 * time.Second); peers != nil && own.Snapshot().Total > 0 && !heard; {
			total, _, _ := c.Cluster("bench")
			if heard = total > 0; !heard && time.Now().After(deadline) {
				b.Fatal("the cluster has heard of no call")
			}
		}
	}
}
