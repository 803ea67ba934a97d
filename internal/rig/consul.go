package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"
)

// ConsulAgent is a Consul agent.
type ConsulAgent struct {
	*Process
	Addr string // of its HTTP API
	Node string // its name

	rpc, serf string // addresses of a server's RPC, and of the gossip
}

// Consul starts one agent that is a server of its own and keeps nothing on disk (-dev): a restarted one
// has forgotten every registration. The arguments are added to its command line.
func Consul(tb testing.TB, extraArgs ...string) *ConsulAgent {
	tb.Helper()
	return consulAgent(tb, "dev", func(string) []string { return append([]string{"-dev"}, extraArgs...) })
}

// ConsulServers is a cluster of three Consul servers. A quorum is two.
type ConsulServers struct {
	Servers []*ConsulAgent
}

// ConsulCluster starts three servers and waits until they have a leader.
func ConsulCluster(tb testing.TB) *ConsulServers {
	tb.Helper()
	c := new(ConsulServers)
	for i := range 3 {
		c.Servers = append(c.Servers, consulAgent(tb, fmt.Sprintf("server-%d", i), func(dir string) []string {
			return append(c.join(), "-server", "-bootstrap-expect", "3", "-data-dir", dir)
		}))
	}
	c.Leader(tb)
	return c
}

// Agent starts a client agent that is a member of the cluster, and waits until it is in the catalog.
func (c *ConsulServers) Agent(tb testing.TB) *ConsulAgent {
	tb.Helper()
	a := consulAgent(tb, "client", func(dir string) []string {
		return append(c.join(), "-data-dir", dir)
	})
	Poll(tb, startWithin, func() error {
		var node *struct{}
		if err := getJSON(a.Addr, "/v1/catalog/node/"+a.Node, &node); err != nil {
			return err
		}
		if node == nil {
			return errors.New("the agent is not in the catalog")
		}
		return nil
	})
	return a
}

// Leader waits until every running server names the same leader, which runs, and returns that.
func (c *ConsulServers) Leader(tb testing.TB) *ConsulAgent {
	tb.Helper()
	var leader *ConsulAgent
	Poll(tb, startWithin, func() error {
		leader = nil
		for _, s := range c.Servers {
			if !s.running() {
				continue
			}
			var rpc string
			if err := getJSON(s.Addr, "/v1/status/leader", &rpc); err != nil {
				return err
			}
			i := slices.IndexFunc(c.Servers, func(s *ConsulAgent) bool { return s.rpc == rpc })
			if i < 0 || !c.Servers[i].running() || leader != nil && leader != c.Servers[i] {
				return fmt.Errorf("%s names %q as the leader", s.Node, rpc)
			}
			leader = c.Servers[i]
		}
		return nil
	})
	return leader
}

func (c *ConsulServers) join() []string {
	var args []string
	for _, s := range c.Servers {
		args = append(args, "-retry-join", s.serf)
	}
	return append(args, "-retry-interval", "1s")
}

func consulAgent(tb testing.TB, node string, args func(dir string) []string) *ConsulAgent {
	tb.Helper()
	p := start(tb, server{
		binary:  "consul",
		install: "run `make servers`, which builds Consul into .bin",
		ports:   4,
		args: func(dir string, ports []int) []string {
			return append([]string{
				"agent", "-node", node, "-bind", host, "-client", host, "-log-level", "warn",
				"-http-port", strconv.Itoa(ports[0]), "-server-port", strconv.Itoa(ports[1]),
				"-serf-lan-port", strconv.Itoa(ports[2]), "-serf-wan-port", strconv.Itoa(ports[3]),
				"-dns-port", "-1", "-grpc-port", "-1", "-grpc-tls-port", "-1",
				// Elections within a second or so, as HashiCorp advises for production.
				"-hcl", "performance { raft_multiplier = 1 }", "-hcl", "disable_update_check = true",
			}, args(dir)...)
		},
		ready: func(p *Process) error { return consulAnswers(p, node) },
	})
	return &ConsulAgent{Process: p, Node: node, Addr: p.addr(0), rpc: p.addr(1), serf: p.addr(2)}
}

// consulAnswers is nil if the agent is the one that was started and, unless it waits for others, has a
// leader.
func consulAnswers(p *Process, node string) error {
	var self struct{ Config struct{ NodeName string } }
	err := getJSON(p.addr(0), "/v1/agent/self", &self)
	switch {
	case errors.Is(err, errForbidden): // by ACLs that extraArgs asked for
	case err != nil:
		return err
	case self.Config.NodeName != node:
		return fmt.Errorf("another agent, %q, answers at %s", self.Config.NodeName, p.addr(0))
	}
	if node != "dev" {
		return nil
	}
	var leader string
	if err := getJSON(p.addr(0), "/v1/status/leader", &leader); err != nil || leader != "" {
		return err
	}
	return errors.New("no leader yet")
}

// getJSON decodes what a Consul agent answers.
func getJSON(addr, path string, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	resp, err := oneShot.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusForbidden {
		return errForbidden
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

var errForbidden = errors.New("forbidden")

// oneShot leaves no connection behind, which a killed server would reset, and no goroutine.
var oneShot = http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
