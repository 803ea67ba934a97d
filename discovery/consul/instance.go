package consul

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/discovery"
)

// instances is what a balancer needs of Consul's answer, sorted by ID. Entries that nobody can call,
// without a port or an address, are left out.
func instances(entries []*api.ServiceEntry, warning bool) []discovery.Instance {
	in := make([]discovery.Instance, 0, len(entries))
	nodes := make(map[string]int, len(entries)) // how many nodes have an instance of this ID
	for _, e := range entries {
		if e != nil && e.Service != nil {
			nodes[e.Service.ID]++
		}
	}
	for _, e := range entries {
		if e == nil || e.Service == nil || e.Node == nil {
			continue
		}
		host, port := cmp.Or(e.Service.Address, e.Node.Address), e.Service.DefaultPort()
		weight, ok := weight(e, warning)
		if !ok || host == "" || port <= 0 {
			continue
		}
		id := e.Service.ID
		if nodes[id] > 1 { // an ID is unique only on its agent
			id += "@" + e.Node.Node
		}
		in = append(in, discovery.Instance{
			ID:     id,
			Addr:   net.JoinHostPort(host, strconv.Itoa(port)),
			Weight: weight,
			Zone:   zone(e),
			Tags:   e.Service.Tags,
			Meta:   e.Service.Meta,
		})
	}
	slices.SortStableFunc(in, func(a, b discovery.Instance) int { return strings.Compare(a.ID, b.ID) })
	return in
}

// weight is false for an entry that may not be called: one of its checks, or of its node's, fails, or is in
// maintenance, or warns where that is not asked for.
func weight(e *api.ServiceEntry, warning bool) (int, bool) {
	switch e.Checks.AggregatedStatus() {
	case api.HealthPassing:
		return max(e.Service.Weights.Passing, 1), true
	case api.HealthWarning:
		w := e.Service.Weights
		if w.Passing > 0 && w.Warning == 0 {
			return -1, warning // somebody said so; without any weights both are 1
		}
		return max(w.Warning, 1), warning
	}
	return 0, false
}

func zone(e *api.ServiceEntry) string {
	for _, l := range []*api.Locality{e.Service.Locality, e.Node.Locality} {
		if l != nil && l.Zone != "" {
			return l.Zone
		}
	}
	return e.Node.Meta["zone"]
}

// filter is an expression for entries that match the given one and have all the tags. Consul's own
// parameter for tags is deprecated.
func filter(tags []string, expression string) string {
	var all []string
	if strings.TrimSpace(expression) != "" {
		all = append(all, "("+expression+")")
	}
	for _, tag := range tags {
		all = append(all, fmt.Sprintf("%s in Service.Tags", quote(tag)))
	}
	return strings.Join(all, " and ")
}

// quote makes a string literal of go-bexpr's grammar: it ends at the next quotation mark, escaped or not,
// and is then read like Go's. So a quotation mark in s must not appear as one.
func quote(s string) string {
	q := strconv.Quote(s)
	return `"` + strings.ReplaceAll(q[1:len(q)-1], `\"`, `\x22`) + `"`
}
