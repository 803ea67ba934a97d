// Package consul discovers and registers services in HashiCorp Consul.
//
// [Consul.Watch] follows the healthy instances of a service with blocking queries, by the rules of
// https://developer.hashicorp.com/consul/api-docs/features/blocking, and keeps the last good set whatever
// happens to Consul. [Consul.Register] keeps this process registered, also through a restart of the agent.
package consul

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

var (
	// ErrFiltered is news from a watch: Consul left instances out because the client's token may not see
	// them. It needs service:read and node:read on all of the service's instances. The last set stands.
	// Consul does not tell a client without a token.
	ErrFiltered = errors.New("consul: ACLs hide instances from this token")
	// ErrNoLeader is news from a watch: the server that answered knows no leader, so what it says may be
	// old. The last set stands.
	ErrNoLeader = errors.New("consul: the answer is from a server without a leader")

	errNoClient = errors.New("consul: New was given no client")
)

// Options configures [New]. The zero value watches a service's passing instances in the agent's
// datacenter. Queries are long polls, at most ten in any second per service, backed off to at most 10 s
// while Consul fails. An instance's Zone is its Consul locality's zone, else the node's metadata "zone".
type Options struct {
	// Tags must all be present.
	Tags []string
	// Filter is a Consul filter expression over an entry of the health endpoint, as in
	// `Service.Meta.version == "2"`. Empty: all.
	Filter string
	// Datacenter is where watches look. Empty: the agent's.
	Datacenter string
	// Wait is how long one poll waits for a change, at most 10 min. Zero or less: 55 s. A poll that is not
	// answered within Wait, the sixteenth that Consul may add, and 5 s is given up.
	Wait time.Duration
	// EmptyGrace is how long "no instances" must last before it is believed, where there were some: a
	// Consul that restarts and a token that got lost look the same. It starts anew after an
	// error, and ends with a query that confirms it. Zero: 10 s. Negative: believe at once.
	//
	// A watch that has never seen an instance believes at once, so that a service that nobody has
	// registered costs no waiting.
	EmptyGrace time.Duration
	// IncludeWarning takes in instances whose checks warn, with their warning weight; a warning weight of
	// zero drains them. Otherwise every check of an instance and of its node must pass.
	IncludeWarning bool
	// OnError, if not nil, is called with each failure of a watch's query, once however many watch that
	// service, and with each failure to keep a registration. It runs with no lock held, but what it is
	// about waits for it: it must not block.
	OnError func(service string, err error)
}

// Consul is a [discovery.Source] and a registrar. It is safe for concurrent use, and runs a goroutine only
// per watched service and per registration.
type Consul struct {
	client *api.Client
	o      Options
	filter string

	mu      sync.Mutex // guards the field below, and users of each watch
	watches map[string]*watch
}

// New cannot fail: every Options value has a meaning. The client's HTTP client must have no timeout shorter
// than Options.Wait, or each poll ends as an error.
func New(client *api.Client, o Options) *Consul {
	o.Wait = min(cmp.Or(max(o.Wait, 0), 55*time.Second), 10*time.Minute) // Consul allows no more
	o.EmptyGrace = cmp.Or(o.EmptyGrace, 10*time.Second)
	if o.OnError == nil {
		o.OnError = func(string, error) {}
	}
	return &Consul{client: client, o: o, filter: filter(o.Tags, o.Filter), watches: make(map[string]*watch)}
}

// sleep returns after d, or at the end of ctx, whichever is first.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// backoff is how long to wait after the given number of failures in a row: 100 ms, doubled each time, at
// most 10 s, and half of it random, so that the watchers of one agent do not come back together.
func backoff(failures int) time.Duration {
	d := min(100*time.Millisecond<<min(failures-1, 10), 10*time.Second)
	return d/2 + rand.N(d/2) //nolint:gosec // nothing secret
}
