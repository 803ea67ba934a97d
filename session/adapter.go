package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
)

// RedigoPool lets gin-contrib's own redis.NewStoreWithPool, or redistore, run on Sentinel or Cluster. Its
// connections send one command at a time: Send, Flush and Receive are errors. Deadlines are the client's
// own timeouts. Closing the pool does not close the client.
func RedigoPool(client redis.UniversalClient) *redigo.Pool {
	return &redigo.Pool{
		Dial:        func() (redigo.Conn, error) { return adapter{client: client}, nil },
		DialContext: func(context.Context) (redigo.Conn, error) { return adapter{client: client}, nil },
	}
}

// errOneByOne is what redistore never asks for.
var errOneByOne = errors.New("session: this connection has no pipeline")

// notPiped is what is the same for all connections here.
type notPiped struct{}

func (notPiped) Close() error              { return nil }
func (notPiped) Err() error                { return nil }
func (notPiped) Send(string, ...any) error { return errOneByOne }
func (notPiped) Flush() error              { return errOneByOne }
func (notPiped) Receive() (any, error)     { return nil, errOneByOne }

// An adapter is a redigo connection that is go-redis.
type adapter struct {
	notPiped
	client redis.UniversalClient
}

func (a adapter) Do(cmd string, args ...any) (any, error) {
	return a.DoContext(context.Background(), cmd, args...)
}

func (a adapter) DoContext(ctx context.Context, cmd string, args ...any) (any, error) {
	if cmd == "" { // redigo flushes so before it takes a connection back
		return nil, nil
	}
	v, err := a.client.Do(ctx, append([]any{cmd}, args...)...).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return v, err
}

func (a adapter) DoWithTimeout(d time.Duration, cmd string, args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return a.DoContext(ctx, cmd, args...)
}

func (adapter) ReceiveContext(context.Context) (any, error)   { return nil, errOneByOne }
func (adapter) ReceiveWithTimeout(time.Duration) (any, error) { return nil, errOneByOne }

// pong is a connection that has a server in good health.
type pong struct{ notPiped }

func (pong) Do(string, ...any) (any, error) { return "PONG", nil }

// ask is a call of Redis, until the deadline of ctx, if it is not known to be away. asked is ctx or what it
// was made of: if that has ended, the client has gone and Redis is not to blame.
func ask[T any](ctx, asked context.Context, s *Store, key string, f func(context.Context) (T, error)) (v T, err error) {
	circuit, probe := s.circuits.Of(key), false
	if circuit.Open() {
		if probe = circuit.MayProbe(outage.Now()); !probe {
			return v, ErrUnavailable
		}
	}
	v, err = outage.Call(ctx, s.caller, f)
	switch {
	case err == nil || errors.Is(err, redis.Nil):
		circuit.Heard(true, probe, 0)
		s.health.well(circuit, false)
		return v, err
	case refusesWrites(err):
		circuit.Heard(true, probe, 0)
		s.health.well(circuit, false)
	case asked.Err() != nil:
	default:
		circuit.Heard(false, probe, outage.Now())
	}
	return v, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// refusesWrites reports whether Redis is there and only takes no writes at the moment: it is out of memory,
// cannot save to its disk, or lacks replicas.
func refusesWrites(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	text := reply.Error()
	if strings.HasPrefix(text, "ERR Error running script") { // Redis 6.2 wraps what a script got
		_, text, _ = strings.Cut(text, ": -")
	}
	code, _, _ := strings.Cut(text, " ")
	return code == "OOM" || code == "MISCONF" || code == "NOREPLICAS"
}
