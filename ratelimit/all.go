package ratelimit

import (
	"context"
	"slices"
)

// All admits what every limiter admits, and takes tokens from all or from none: when one refuses or fails,
// the others get back what they gave. In between, a concurrent request may be refused by tokens that
// come back; never is one admitted too many. Limiters that are no [Refunder] are asked last; of several
// such, the earlier ones lose what they gave when a later one refuses.
//
// The Decision is the one that refused, or else the one with the fewest tokens remaining. What All returns
// is a Refunder. With no limiters it admits everything.
func All(limiters ...Limiter) Limiter {
	a := all(slices.Clone(limiters))
	slices.SortStableFunc(a, func(x, y Limiter) int { return rank(x) - rank(y) })
	return a
}

// rank is 0 for a limiter that gives back all that it takes.
func rank(l Limiter) int {
	switch l := l.(type) {
	case all:
		if len(l) > 0 {
			return rank(l[len(l)-1]) // they are sorted
		}
	case Refunder:
	default:
		return 1
	}
	return 0
}

type all []Limiter

func (a all) AllowN(ctx context.Context, key string, n int) (Decision, error) {
	tightest := Decision{Allowed: true, Source: "local"}
	for i, l := range a {
		d, err := l.AllowN(ctx, key, n)
		if err != nil || !d.Allowed {
			a[:i].Refund(key, n)
			return d, err
		}
		if i == 0 || d.Remaining < tightest.Remaining {
			tightest = d
		}
	}
	return tightest, nil
}

func (a all) Refund(key string, n int) {
	for _, l := range a {
		if r, ok := l.(Refunder); ok {
			r.Refund(key, n)
		}
	}
}
