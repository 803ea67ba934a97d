// Package discovery says which instances of a service are alive.
//
// A [Source] yields complete snapshots, so that whoever reads it never has to merge anything. The package
// itself has [Static] and [Memory]; discovery/consul watches HashiCorp Consul; a source of your own is
// one method.
package discovery

import (
	"context"
	"iter"
	"maps"
	"slices"
)

// Instance is one endpoint of a service. Its identity is ID: an instance with the same ID in a later
// snapshot is the same one, and what has been learnt of it is kept. It is immutable once published:
// whoever receives an Instance must not change its Tags or Meta.
type Instance struct {
	// ID is unique within the service. Empty: Addr is the identity.
	ID string
	// Addr is host:port as [net.JoinHostPort] makes it, so an IPv6 host is in brackets.
	Addr string
	// Weight is the relative capacity, at least 1. Zero means 1. A negative one drains the instance:
	// calls that run may end, new ones go elsewhere.
	Weight int
	// Zone is the failure domain, as the balancer's Options.Zone names it. Empty: none.
	Zone string
	Tags []string
	Meta map[string]string
}

// Equal reports whether i and j are the same in every field.
func (i Instance) Equal(j Instance) bool {
	return i.ID == j.ID && i.Addr == j.Addr && i.Weight == j.Weight && i.Zone == j.Zone &&
		slices.Equal(i.Tags, j.Tags) && maps.Equal(i.Meta, j.Meta)
}

// Source yields complete snapshots of a service until ctx ends. A non-nil error is news about the
// registry, not the end: the last snapshot stands. An equal snapshot may be yielded again. A Source is
// safe for concurrent use, and the slices that it yields are not changed afterwards.
type Source interface {
	Watch(ctx context.Context, service string) iter.Seq2[[]Instance, error]
}

// Static is a [Source] that never changes, keyed by service. A service it does not have has no instances.
type Static map[string][]Instance

// Watch yields the instances of service once and then waits for the end of ctx.
func (s Static) Watch(ctx context.Context, service string) iter.Seq2[[]Instance, error] {
	return func(yield func([]Instance, error) bool) {
		if ctx.Err() != nil || !yield(s[service], nil) {
			return
		}
		<-ctx.Done()
	}
}
