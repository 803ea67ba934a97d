package rig

import (
	"fmt"
	"testing"
)

// RedisClusterNodes is a Redis Cluster of primaries, without replicas.
type RedisClusterNodes struct {
	Nodes []*RedisServer
	Addrs []string
}

// RedisCluster starts three nodes that share the slots evenly.
func RedisCluster(tb testing.TB) *RedisClusterNodes {
	tb.Helper()
	const slots, nodes = 16384, 3
	c := new(RedisClusterNodes)
	for i := range nodes {
		n := Redis(tb, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
		c.Nodes, c.Addrs = append(c.Nodes, n), append(c.Addrs, n.Addr)

		first, after := slots*i/nodes, slots*(i+1)/nodes
		must(tb, n.Addr, "CLUSTER", "ADDSLOTSRANGE", fmt.Sprint(first), fmt.Sprint(after-1))
		// Nodes start with the same epoch, and settle that one at a time if nobody tells them apart.
		must(tb, n.Addr, "CLUSTER", "SET-CONFIG-EPOCH", fmt.Sprint(i+1))
	}
	for _, n := range c.Nodes[1:] {
		must(tb, c.Addrs[0], "CLUSTER", "MEET", host, fmt.Sprint(n.ports[0]), fmt.Sprint(n.ports[1]))
	}
	for _, addr := range c.Addrs {
		Poll(tb, startWithin, func() error {
			if err := replyHas(addr, fmt.Sprintf("cluster_known_nodes:%d\r\n", nodes), "CLUSTER", "INFO"); err != nil {
				return err
			}
			return replyHas(addr, "cluster_state:ok\r\n", "CLUSTER", "INFO")
		})
	}
	return c
}

func must(tb testing.TB, addr string, args ...string) {
	tb.Helper()
	if _, err := commandWithin(startWithin, addr, args...); err != nil {
		tb.Fatalf("rig: %v", err)
	}
}
