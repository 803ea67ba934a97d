package session

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A fakeRedis answers a client in its hook, by the clock of a synctest bubble. What the real one does, the
// other tests show.
type fakeRedis struct {
	mu     sync.Mutex // guards the fields below
	data   map[string]fakeRecord
	err    error
	asked  []string
	repeat bool // scripts run twice
	hangs  bool
	refuse error // of writes
}

type fakeRecord struct {
	value string
	until time.Time
}

func newFake() *fakeRedis { return &fakeRedis{data: make(map[string]fakeRecord)} }

func (f *fakeRedis) client(tb testing.TB) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", ContextTimeoutEnabled: true}) // no name to look up
	c.AddHook(f)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// A reply is an error that Redis answers with.
type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

func (f *fakeRedis) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeRedis) hang(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangs = yes
}

func (f *fakeRedis) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := f.asked
	f.asked = nil
	return asked
}

func (f *fakeRedis) DialHook(redis.DialHook) redis.DialHook {
	return func(context.Context, string, string) (net.Conn, error) { panic("it dials") }
}

func (f *fakeRedis) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (f *fakeRedis) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked = append(f.asked, strings.ToLower(cmd.Name()))
		err := f.err
		if cmd.Name() != "get" && err == nil {
			err = f.refuse
		}
		if f.hangs {
			<-ctx.Done()
			err = ctx.Err()
		}
		if err == nil {
			err = f.answer(cmd)
		}
		cmd.SetErr(err)
		return err
	}
}

func (f *fakeRedis) get(key string) (string, bool) {
	r, ok := f.data[key]
	return r.value, ok && time.Now().Before(r.until)
}

func (f *fakeRedis) answer(cmd redis.Cmder) error {
	args := cmd.Args()
	switch c := cmd.(type) {
	case *redis.StringCmd:
		key := args[1].(string)
		v, ok := f.get(key)
		if !ok {
			return redis.Nil
		}
		f.data[key] = fakeRecord{v, time.Now().Add(defaultIdle)}
		if args[0] == "getex" && len(args) == 4 {
			unit := map[any]time.Duration{"px": time.Millisecond, "ex": time.Second}[args[2]]
			f.data[key] = fakeRecord{v, time.Now().Add(time.Duration(args[3].(int64)) * unit)}
		}
		c.SetVal(v)
	case *redis.Cmd:
		c.SetVal(f.script(args[3].(string), args[4].(string), args[5].(string), args[6].(int64)))
		if f.repeat {
			c.SetVal(f.script(args[3].(string), args[4].(string), args[5].(string), args[6].(int64)))
		}
	case *redis.IntCmd:
		delete(f.data, args[1].(string))
		c.SetVal(1)
	}
	return nil
}

// script does what write does.
func (f *fakeRedis) script(key, from, to string, left int64) any {
	is, ok := f.get(key)
	switch {
	case to == "" && ok && strings.HasPrefix(is, from):
		delete(f.data, key)
		return int64(1)
	case to != "" && ok && strings.HasPrefix(is, to[:tagEnd]):
		return int64(1)
	case ok && (from == "" || !strings.HasPrefix(is, from)):
		return is
	case !ok && from != "":
		return int64(0)
	}
	f.data[key] = fakeRecord{to, time.Now().Add(time.Duration(left) * time.Millisecond)}
	return int64(1)
}
