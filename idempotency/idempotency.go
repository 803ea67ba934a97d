package idempotency

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
)

// Errors of [Confirm].
var (
	// ErrLost says that another call has the key by now. It is also the cause of the end of the request's context.
	ErrLost = errors.New("idempotency: the key is another call's by now")
	// ErrRedis says that Redis is away. It wraps why.
	ErrRedis = errors.New("idempotency: redis")
)

// What a repeat's wait for the first call is made of.
const (
	longestWait = time.Second           // whatever the lease
	firstPoll   = 10 * time.Millisecond // then twice as long each time
	longestPoll = 50 * time.Millisecond
	maxWaiting  = 256 // of a Store at once; further repeats do not wait
	maxUnstored = 256 // outcomes that a Store keeps for a Redis that is away
)

// A Store is the keys and responses of a service. It is safe for concurrent use. It has no goroutine but of requests, and
// for at most Options.Lock of responses that Redis has not taken yet.
type Store struct {
	o      Options
	client redis.UniversalClient
	guard  *outage.Guard
	terms  string // of a lock: its life and its lease, in milliseconds

	waiting  atomic.Int32
	unstored atomic.Int32
}

// New keeps responses in Redis. It calls nothing, so Redis may come up later; the client stays the caller's to close.
// Nil is a Redis that is away. It needs EVALSHA, EVAL, GET, SET, DEL and PTTL, on one key each time.
func New(client redis.UniversalClient, o Options) *Store {
	o.TTL = atLeastMilli(cmp.Or(max(o.TTL, 0), 24*time.Hour))
	o.Lock = atLeastMilli(cmp.Or(max(o.Lock, 0), 30*time.Second))
	o.Lease = cmp.Or(o.Lease, 500*time.Millisecond)
	if o.Lease < 0 || o.Lease > o.Lock {
		o.Lease = o.Lock
	}
	o.Lease = atLeastMilli(o.Lease)
	o.MaxBytes = cmp.Or(o.MaxBytes, 64<<10)
	o.MaxBody = cmp.Or(max(o.MaxBody, 0), 1<<20)
	o.Timeout = cmp.Or(max(o.Timeout, 0), 150*time.Millisecond)
	o.Prefix = cmp.Or(o.Prefix, "highball:idempotency:")
	return &Store{
		o: o, client: client,
		guard: outage.NewGuard(client, 100*time.Millisecond, time.Second),
		terms: fmt.Sprintf("%d %d", o.Lock.Milliseconds(), o.Lease.Milliseconds()),
	}
}

func atLeastMilli(d time.Duration) time.Duration { return max(d, time.Millisecond) }

// begin locks the key in Redis for the call whose lock is given, or says why not: the record that is there. It waits for
// another call that runs, and takes the key over from one that is dead. It costs one round trip where nothing is
// waited for.
func (s *Store) begin(ctx context.Context, name, lock string) (record string, err error) {
	asking := context.WithoutCancel(ctx) // or a client that goes away would look like a Redis that is
	var began time.Time                  // of the wait
	poll := firstPoll
	for {
		watched, asked := "0", time.Now()
		if !began.IsZero() && asked.Sub(began) >= s.o.Lease/2 {
			watched = "1" // two renewals should have come, so Redis being away is not why its holder is silent
		}
		found, err := s.ask(asking, name, false, beginScript, lock, s.o.Lock.Milliseconds(), watched)
		if err != nil && !began.IsZero() {
			return stillRunning, nil // as it was when Redis was there
		}
		if err != nil || found != stillRunning {
			return found, err
		}
		if began.IsZero() {
			if s.waiting.Add(1) > maxWaiting {
				s.waiting.Add(-1)
				return stillRunning, nil
			}
			defer s.waiting.Add(-1)
			began = time.Now()
		}
		// By when it asked: a Redis that is slow to answer must not make it leave before it has watched for long enough.
		if asked.Sub(began) >= min(s.o.Lease+s.o.Lease/4, longestWait) || !sleep(ctx, poll) {
			return stillRunning, nil
		}
		poll = min(2*poll, longestPoll)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// settle replaces the lock by record, or by nothing if that is empty. False: the key is another call's.
func (s *Store) settle(ctx context.Context, name, lock, record string, life time.Duration) (bool, error) {
	said, err := s.ask(ctx, name, true, settleScript, lock, life.Milliseconds(), record)
	return said == "1", err
}

// ask runs a script on the key within Timeout; also while Redis is known to be away if anyway, which is for calls that no
// request waits for or that end one. Its error is an ErrRedis.
func (s *Store) ask(ctx context.Context, name string, anyway bool, script *redis.Script, args ...any) (string, error) {
	if s.client == nil {
		return "", fmt.Errorf("%w: there is no client", ErrRedis)
	}
	said, err := outage.Ask(ctx, s.guard, name, s.o.Timeout, anyway, func(ctx context.Context) (string, error) {
		v, err := script.Run(ctx, s.client, []string{name}, args...).Result()
		switch v := v.(type) {
		case string:
			return v, err
		case int64:
			return strconv.FormatInt(v, 10), err
		}
		return "", cmp.Or(err, errors.New("an answer of another kind"))
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrRedis, err)
	}
	return said, nil
}
