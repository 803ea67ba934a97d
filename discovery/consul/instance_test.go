package consul

import (
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/discovery"
)

func TestAnEntryBecomesAnInstance(t *testing.T) {
	zone := func(z string) *api.Locality { return &api.Locality{Region: "r", Zone: z} }
	for name, tt := range map[string]struct {
		change func(e *api.ServiceEntry)
		want   discovery.Instance
	}{
		"node address when the service has none": {
			func(*api.ServiceEntry) {},
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 1},
		},
		"the service's address first": {
			func(e *api.ServiceEntry) { e.Service.Address = "svc" },
			discovery.Instance{Addr: "svc:1", Weight: 1},
		},
		"IPv6": {
			func(e *api.ServiceEntry) { e.Service.Address = "2001:db8::1" },
			discovery.Instance{Addr: "[2001:db8::1]:1", Weight: 1},
		},
		"the default of several ports": {
			func(e *api.ServiceEntry) {
				e.Service.Ports = api.ServicePorts{{Name: "admin", Port: 9}, {Name: "web", Port: 80, Default: true}}
			},
			discovery.Instance{Addr: "10.0.0.1:80", Weight: 1},
		},
		"passing weight": {
			func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{Passing: 10, Warning: 2} },
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 10},
		},
		"no weights": {
			func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{} },
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 1},
		},
		"warning weight": {
			func(e *api.ServiceEntry) {
				e.Service.Weights = api.AgentWeights{Passing: 10, Warning: 2}
				e.Checks = append(e.Checks, &api.HealthCheck{Status: "warning"})
			},
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 2},
		},
		"warning weight of zero drains": {
			func(e *api.ServiceEntry) {
				e.Service.Weights = api.AgentWeights{Passing: 10}
				e.Checks[0].Status = "warning"
			},
			discovery.Instance{Addr: "10.0.0.1:1", Weight: -1},
		},
		"no weights, warning": {
			func(e *api.ServiceEntry) {
				e.Service.Weights = api.AgentWeights{}
				e.Checks[0].Status = "warning"
			},
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 1},
		},
		"zone of the service": {
			func(e *api.ServiceEntry) {
				e.Service.Locality, e.Node.Locality = zone("s"), zone("n")
				e.Node.Meta = map[string]string{"zone": "m"}
			},
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 1, Zone: "s"},
		},
		"zone of the node": {
			func(e *api.ServiceEntry) {
				e.Service.Locality, e.Node.Locality = zone(""), zone("n")
				e.Node.Meta = map[string]string{"zone": "m"}
			},
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 1, Zone: "n"},
		},
		"zone in the node's metadata": {
			func(e *api.ServiceEntry) { e.Node.Meta = map[string]string{"zone": "m"} },
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 1, Zone: "m"},
		},
		"tags and metadata": {
			func(e *api.ServiceEntry) {
				e.Service.Tags, e.Service.Meta = []string{"x"}, map[string]string{"k": "v"}
			},
			discovery.Instance{Addr: "10.0.0.1:1", Weight: 1, Tags: []string{"x"}, Meta: map[string]string{"k": "v"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := entry("a")
			tt.change(e)
			tt.want.ID = "a"
			if got := instances([]*api.ServiceEntry{e}, true); len(got) != 1 || !got[0].Equal(tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestWhoCannotBeCalledIsLeftOut(t *testing.T) {
	for name, change := range map[string]func(e *api.ServiceEntry){
		"no port":                 func(e *api.ServiceEntry) { e.Service.Port = 0 },
		"no address":              func(e *api.ServiceEntry) { e.Node.Address = "" },
		"a critical check":        func(e *api.ServiceEntry) { e.Checks = append(e.Checks, &api.HealthCheck{Status: "critical"}) },
		"a dead node":             func(e *api.ServiceEntry) { e.Checks[0].Status = "critical" },
		"maintenance of the node": func(e *api.ServiceEntry) { e.Checks[0].CheckID = api.NodeMaint },
		"an unknown status":       func(e *api.ServiceEntry) { e.Checks[0].Status = "?" },
		"no node":                 func(e *api.ServiceEntry) { e.Node = nil },
		"no service":              func(e *api.ServiceEntry) { e.Service = nil },
	} {
		e := entry("a")
		change(e)
		if got := instances([]*api.ServiceEntry{e, nil}, true); len(got) != 0 {
			t.Errorf("%s: got %v, want none", name, got)
		}
	}
	warns := entry("a")
	warns.Checks[0].Status = "warning"
	if got := instances([]*api.ServiceEntry{warns}, false); len(got) != 0 {
		t.Errorf("a warning instance without IncludeWarning: %v, want none", got)
	}
}

func TestInstancesHaveTheirOwnIDsInTheSameOrder(t *testing.T) {
	a1, a2, b, c := entry("a"), entry("a"), entry("b"), entry("c")
	a2.Node = &api.Node{Node: "node-2", Address: "10.0.0.2"}
	c.Service.Port = b.Service.Port // two IDs at one address are two instances
	for _, entries := range [][]*api.ServiceEntry{{a1, a2, b, c}, {c, b, a2, a1}} {
		got := ""
		for _, i := range instances(entries, false) {
			got += i.ID + "=" + i.Addr + " "
		}
		const want = "a@node-1=10.0.0.1:1 a@node-2=10.0.0.2:1 b=10.0.0.1:2 c=10.0.0.1:2 "
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
