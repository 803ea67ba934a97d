package session

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/boj/redistore"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/gorilla/securecookie"
	gorilla "github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// A record in Redis is a byte that says so, the tag of the write it comes from, when the session began, in
// milliseconds, and what redistore's serializer made of the values. Without that byte it is only the last:
// stock redistore wrote it.
const (
	recordForm = 0xB1
	tagEnd     = 1 + 12
	recordHead = tagEnd + 8
)

func began(record string) (ms int64, values string) {
	if len(record) < recordHead || record[0] != recordForm {
		return 0, record
	}
	return int64(binary.BigEndian.Uint64([]byte(record[tagEnd:recordHead]))), record[recordHead:]
}

// tag tells a record from all others of its session.
func tag(record string) string {
	if len(record) < recordHead || record[0] != recordForm {
		return record
	}
	return record[:tagEnd]
}

// write is a compare-and-set: KEYS[1] has a record with the tag ARGV[1], or none if that is empty, and gets
// ARGV[2] for ARGV[3] ms, or is deleted if that is empty. It returns 1, 0 if there is no record any more,
// or the record that another has written. A write that is repeated, because its reply was lost, is done.
var write = redis.NewScript(`
local is = redis.call('GET', KEYS[1])
if ARGV[2] == '' then
  if not is then return 0 end
  if string.sub(is, 1, #ARGV[1]) ~= ARGV[1] then return is end
  redis.call('DEL', KEYS[1])
  return 1
end
if is and string.sub(is, 1, 13) == string.sub(ARGV[2], 1, 13) then return 1 end
if ARGV[1] == '' and is then return is end
if ARGV[1] ~= '' and not is then return 0 end
if is and string.sub(is, 1, #ARGV[1]) ~= ARGV[1] then return is end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
`)

// A call is a redistore for one step with one session: it is all of its connections, and its codec.
type call struct {
	notPiped
	store *Store
	id    string
	ctx   context.Context // with a deadline
	asked context.Context // what that was made of
	from  string          // the record that was read; empty: there should be none
	start int64           // when the session began, ms
	only  bool            // DEL only what is still from

	key      string // in Redis
	record   string // as read or written
	conflict string // the record of another, instead
	err      error  // of Redis, not of what it sent

	redis redistore.RediStore
	pool  redigo.Pool
	codec [1]securecookie.Codec
	feed  bool // GET is answered with record
}

func (s *Store) call(ctx, asked context.Context, id string) *call {
	c := &call{store: s, id: id, ctx: ctx, asked: asked, redis: *s.redis}
	c.pool.Dial = c.dial
	c.codec[0] = c
	c.redis.Pool, c.redis.Codecs = &c.pool, c.codec[:]
	return c
}

func (c *call) dial() (redigo.Conn, error) { return c, nil }

// asks is a request with a cookie that the codec of a call takes for its id: redistore reads no session
// without.
var asks = &http.Request{Header: http.Header{"Cookie": {"s=s"}}}

// read is what redistore reads. found is false also when err is not nil.
func (c *call) read() (values map[any]any, found bool, err error) {
	s, err := c.redis.New(asks, "s")
	if c.err != nil {
		return nil, false, c.err
	}
	return s.Values, err == nil && !s.IsNew, err
}

// readFrom is what redistore reads of a record that is here.
func (c *call) readFrom(record string) (map[any]any, error) {
	c.feed, c.record, c.err = true, record, nil
	values, _, err := c.read()
	c.feed = false
	return values, err
}

// write has redistore write values for an hour, which Do knows better.
func (c *call) write(values map[any]any) error {
	return c.redis.Save(nil, nowhere{}, &gorilla.Session{ID: c.id, Values: values, Options: &gorilla.Options{MaxAge: 3600}})
}

// end has redistore delete the session.
func (c *call) end() error {
	return c.redis.Save(nil, nowhere{}, &gorilla.Session{ID: c.id, Options: &gorilla.Options{MaxAge: -1}})
}

// nowhere takes the cookies of redistore, which are none: the name is not one.
type nowhere struct{ http.ResponseWriter }

func (nowhere) Header() http.Header { return nil }

// Encode is securecookie's.
func (c *call) Encode(string, any) (string, error) { return "", nil }

// Decode is securecookie's.
func (c *call) Decode(_, _ string, dst any) error {
	*dst.(*string) = c.id
	return nil
}

// Do is redigo's: redistore asks for one of these.
func (c *call) Do(cmd string, args ...any) (any, error) {
	if cmd == "" {
		return nil, nil
	}
	c.name(args[0].(string))
	switch cmd {
	case "GET":
		if !c.feed {
			c.record, c.err = c.get()
		}
		if c.err != nil || c.record == "" {
			return nil, c.err
		}
		_, values := began(c.record)
		return values, nil
	case "SETEX":
		return "OK", c.set(args[2].([]byte))
	case "DEL":
		if c.only {
			return nil, c.run(tag(c.from), "", 0)
		}
		return nil, c.del()
	}
	return nil, fmt.Errorf("session: redistore asks for %s", cmd)
}

// name sets the key in Redis. Who reads it there cannot make a cookie of it, unless stock redistore gave
// the id: its sessions stay where they are.
func (c *call) name(key string) {
	if c.key != "" {
		return
	}
	c.key = key
	if len(c.id) == idLen {
		sum := sha256.Sum256([]byte(c.id))
		c.key = string(encoding.AppendEncode(append(make([]byte, 0, 96), strings.TrimSuffix(key, c.id)...), sum[:]))
	}
}

// get reads the record and lets it live for Idle from now; "": there is none.
func (c *call) get() (string, error) {
	s := c.store
	if s.copies.ended(c.key) { // and the news may not have reached Redis
		return "", c.del()
	}
	sent := time.Now()
	record, err := ask(c.ctx, c.asked, s, c.key, func(ctx context.Context) (string, error) {
		if circuit := s.circuits.Of(c.key); circuit.MayTakeWrites() {
			record, err := s.client.GetEx(ctx, c.key, s.o.Idle).Result()
			if err == nil || !refusesWrites(err) {
				return record, err
			}
			circuit.Refused()
		}
		return s.client.Get(ctx, c.key).Result()
	})
	if errors.Is(err, redis.Nil) || err == nil && s.over(record, sent) {
		s.copies.drop(c.key)
		return "", nil
	}
	if err == nil && s.o.Stale > 0 && len(record) <= s.o.MaxBytes+recordHead {
		s.copies.put(c.key, record, sent)
	}
	return record, err
}

// over reports whether a session has had its time.
func (s *Store) over(record string, now time.Time) bool {
	ms, _ := began(record)
	return ms != 0 && now.UnixMilli()-ms >= s.o.Absolute.Milliseconds()
}

func (c *call) set(values []byte) error {
	if len(values) > c.store.o.MaxBytes {
		return fmt.Errorf("%w: %d bytes, %d are the most", ErrTooLarge, len(values), c.store.o.MaxBytes)
	}
	now := time.Now().UnixMilli()
	c.start = cmp.Or(c.start, now)
	left := min(c.store.o.Idle.Milliseconds(), c.start+c.store.o.Absolute.Milliseconds()-now)
	if left <= 0 {
		return ErrGone
	}
	head := [recordHead]byte{recordForm}
	binary.BigEndian.PutUint32(head[1:], rand.Uint32()) // it need not be secret, only unlike all others
	binary.BigEndian.PutUint64(head[5:], rand.Uint64())
	binary.BigEndian.PutUint64(head[tagEnd:], uint64(c.start))
	var b strings.Builder
	b.Grow(recordHead + len(values))
	_, _ = b.Write(head[:])
	_, _ = b.Write(values)
	c.record = b.String()
	return c.run(tag(c.from), c.record, left)
}

// run calls the script.
func (c *call) run(from, to string, left int64) error {
	s := c.store
	v, err := ask(c.ctx, c.asked, s, c.key, func(ctx context.Context) (any, error) {
		return write.Run(ctx, s.client, []string{c.key}, from, to, left).Result()
	})
	if err != nil {
		c.err = err
		return err
	}
	switch v := v.(type) {
	case string:
		c.conflict = v
		return nil
	case int64:
		s.health.well(s.circuits.Of(c.key), true)
		switch {
		case v == 0:
			s.copies.drop(c.key)
			return ErrGone
		case to == "":
			s.copies.end(c.key)
		case s.o.Stale > 0:
			s.copies.put(c.key, to, time.Now())
		}
		return nil
	}
	c.err = fmt.Errorf("%w: the script returned a %T", ErrUnavailable, v)
	return c.err
}

// del ends the session here, whatever Redis says.
func (c *call) del() error {
	s := c.store
	s.copies.end(c.key)
	_, err := ask(c.ctx, c.asked, s, c.key, func(ctx context.Context) (int64, error) {
		return s.client.Del(ctx, c.key).Result()
	})
	c.err = err
	return err
}
