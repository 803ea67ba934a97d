package consul

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/highball-go/highball/discovery"
)

const (
	// A query without an index is answered at once; a server may hold it for 7 s while it has no leader.
	answerWithin = 10 * time.Second
	// How much later than Consul must a blocking query may be answered.
	slack = 5 * time.Second
	// At most burst queries at once and one each interval after that: ten in any second. The first
	// changes after a quiet time are seen without delay.
	burst    = 5
	interval = time.Second / 5
)

// errGraceOver ends a blocking query at the end of EmptyGrace, so that one that does not block can confirm
// that there are no instances.
var errGraceOver = errors.New("consul: the grace is over")

// A poll asks for the instances of one service, one query after the other.
type poll struct {
	*Consul
	service string
	watch   *watch

	index    uint64    // of the last answer; 0: the next query does not block
	failures int       // in a row
	empty    time.Time // of the first answer of those without instances that are not yet believed
	pace     pace
}

func (p *poll) run(ctx context.Context) {
	var pause time.Duration
	for {
		sleep(ctx, max(pause, p.pace.take(time.Now())))
		if ctx.Err() != nil {
			return
		}
		pause = 0
		found, err := p.query(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			p.failures = 0
			p.watch.found(p.believe(found, time.Now()))
		case errors.Is(err, errGraceOver):
			p.index = 0
		default:
			p.failures++
			pause = backoff(p.failures)
			// Whoever answers next may count from elsewhere, and must not wait for a change to answer.
			p.index, p.empty = 0, time.Time{}
			p.watch.failed(err)
			p.o.OnError(p.service, err)
		}
	}
}

// believe returns what found means: no instances mean the last set, until they have lasted.
func (p *poll) believe(found []discovery.Instance, now time.Time) []discovery.Instance {
	last := p.watch.now.Load().instances
	if len(found) > 0 || len(last) == 0 || p.o.EmptyGrace < 0 {
		p.empty = time.Time{}
		return found
	}
	if p.empty.IsZero() {
		p.empty = now
	}
	if now.Before(p.empty.Add(p.o.EmptyGrace)) {
		return last
	}
	p.empty = time.Time{}
	return found
}

// query asks once. It blocks until something has changed if there is an index.
func (p *poll) query(ctx context.Context) ([]discovery.Instance, error) {
	if p.client == nil {
		return nil, errNoClient
	}
	timeout, cause := answerWithin, fmt.Errorf("consul: no answer within %v: %w", answerWithin, context.DeadlineExceeded)
	if p.index > 0 {
		timeout = p.o.Wait + p.o.Wait/16 + slack
		cause = fmt.Errorf("consul: no answer within %v: %w", timeout, context.DeadlineExceeded)
		if !p.empty.IsZero() {
			timeout, cause = min(timeout, time.Until(p.empty.Add(p.o.EmptyGrace))), errGraceOver
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, cause)
	defer cancel()

	q := &api.QueryOptions{Datacenter: p.o.Datacenter, Filter: p.filter, WaitIndex: p.index, WaitTime: p.o.Wait}
	passing := !p.o.IncludeWarning
	entries, meta, err := p.client.Health().Service(p.service, "", passing, q.WithContext(ctx))
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("consul: %w", err)
	case meta.ResultsFilteredByACLs:
		return nil, ErrFiltered
	case !meta.KnownLeader && meta.QueryBackend != api.QueryBackendStreaming:
		// A client agent answers from its stream of a server's events and then never names a leader.
		return nil, ErrNoLeader
	}
	p.index = next(p.index, meta.LastIndex)
	return instances(entries, p.o.IncludeWarning), nil
}

// next is the index to wait for. One that went backwards starts over, since what it counted is gone (a
// restored snapshot, a new cluster); and it is at least 1, since a query with 0 does not block.
func next(last, answered uint64) uint64 {
	if answered < last {
		return 0
	}
	return max(answered, 1)
}

// A pace is a token bucket, as the virtual scheduling algorithm of ITU-T I.371: full is when it will be
// full again.
type pace struct{ full time.Time }

// take takes a token and returns how long to wait for it.
func (p *pace) take(now time.Time) time.Duration {
	if p.full.Before(now) {
		p.full = now
	}
	p.full = p.full.Add(interval)
	return max(p.full.Sub(now)-burst*interval, 0)
}
