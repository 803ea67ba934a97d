package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// exchange replaces what an instance has told, notes that it lives, and returns the sums, which are kept up
// to date rather than computed: its cost does not grow with the number of instances.
//
// KEYS: instances, a sorted set by when they were last heard of, in ms; told, a hash of what each has told,
// lines of "circuit total errors"; sums, a hash of "total errors seeing" by circuit. Without ARGV[5] the
// instance leaves. Circuits are escaped, so there is no space in them.
var exchange = redis.NewScript(`
local instances, told, kept = KEYS[1], KEYS[2], KEYS[3]
local me, dead, most, others, mine = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function number(n) return string.format('%.0f', n) end

-- Redis may have evicted one of them; they mean something only together.
if redis.call('EXISTS', instances, told, kept) < 3 then
  redis.call('DEL', instances, told, kept)
end

local sums, was, many = {[others] = {0, 0, 0}}, {}, 0
local all = redis.call('HGETALL', kept)
for i = 1, #all, 2 do
  local total, errors, seeing = string.match(all[i + 1], '^(%d+) (%d+) (%d+)$')
  if not total then
    return redis.error_reply('ERR cluster: the key holds something else')
  end
  sums[all[i]] = {tonumber(total), tonumber(errors), tonumber(seeing)}
  was[all[i]] = all[i + 1]
  many = many + 1
end

local function add(lines, sign)
  local as = {}
  for circuit, total, errors in string.gmatch(lines, '([^ ]*) (%d+) (%d+)\n') do
    if not sums[circuit] then
      if many < most then
        sums[circuit] = {0, 0, 0}
        many = many + 1
      else
        circuit = others
      end
    end
    local sum = sums[circuit]
    sum[1] = sum[1] + sign * total
    sum[2] = sum[2] + sign * errors
    if errors ~= '0' then
      sum[3] = sum[3] + sign
    end
    as[#as + 1] = circuit .. ' ' .. total .. ' ' .. errors .. '\n'
  end
  return table.concat(as)
end
local function forget(instance)
  add(redis.call('HGET', told, instance) or '', -1)
  redis.call('HDEL', told, instance)
  redis.call('ZREM', instances, instance)
end

-- Those of the future were heard of before the clock was set back.
local gone = redis.call('ZRANGEBYSCORE', instances, '-inf', '(' .. number(now - dead))
local future = redis.call('ZRANGEBYSCORE', instances, '(' .. number(now + dead), '+inf')
for _, instance in ipairs(gone) do forget(instance) end
for _, instance in ipairs(future) do forget(instance) end
forget(me)
if mine then
  redis.call('HSET', told, me, add(mine, 1))
  redis.call('ZADD', instances, number(now), me)
end

local out = {redis.call('ZCARD', instances)}
for circuit, sum in pairs(sums) do
  if sum[1] == 0 and circuit ~= others then
    redis.call('HDEL', kept, circuit)
  else
    local is = number(sum[1]) .. ' ' .. number(sum[2]) .. ' ' .. number(sum[3])
    if is ~= was[circuit] then
      redis.call('HSET', kept, circuit, is)
    end
    out[#out + 1] = circuit
    out[#out + 1] = is
  end
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, 2 * dead) end
return out
`)

var errReply = errors.New("cluster: Redis' reply makes no sense")

// A redisStore is a store for the instances of one service.
type redisStore struct {
	client redis.UniversalClient
	keys   []string
	args   []any // of every exchange
}

// newRedisStore puts all keys of a service into one slot of a Redis Cluster. Names are escaped, so that
// braces in them change nothing.
func newRedisStore(client redis.UniversalClient, o Options) *redisStore {
	stem := "cluster:{" + url.QueryEscape(o.Service) + "}:"
	dead := (memory + 1) * o.Interval.Milliseconds()
	return &redisStore{
		client: client,
		keys:   []string{stem + "instances", stem + "told", stem + "sums"},
		args:   []any{o.Instance, dead, maxCircuits, url.QueryEscape(others)},
	}
}

func (s *redisStore) exchange(ctx context.Context, own counts) (*snapshot, error) {
	args := append(slices.Clip(s.args), lines(own))
	got, err := exchange.Run(ctx, s.client, s.keys, args...).Slice()
	if err != nil {
		return nil, err
	}
	return parse(got)
}

func (s *redisStore) leave(ctx context.Context) error {
	return exchange.Run(ctx, s.client, s.keys, s.args...).Err()
}

func lines(own counts) string {
	var b strings.Builder
	for circuit, n := range own {
		fmt.Fprintf(&b, "%s %d %d\n", url.QueryEscape(circuit), n.total, n.errors)
	}
	return b.String()
}

// parse reads how many instances live, and of each circuit its name and sums.
func parse(reply []any) (*snapshot, error) {
	if len(reply)%2 != 1 || len(reply) > 2*(maxCircuits+1)+1 {
		return nil, fmt.Errorf("%w: %d values", errReply, len(reply))
	}
	live, ok := reply[0].(int64)
	if !ok || live < 1 {
		return nil, fmt.Errorf("%w: %v instances", errReply, reply[0])
	}
	s := &snapshot{circuits: make(map[string]sum, len(reply)/2), instances: int(live)}
	for i := 1; i < len(reply); i += 2 {
		name, named := reply[i].(string)
		text, told := reply[i+1].(string)
		circuit, err := url.QueryUnescape(name)
		n, ok := parseSum(text)
		if !named || !told || err != nil || !ok {
			return nil, fmt.Errorf("%w: %.100q", errReply, reply[i:i+2])
		}
		s.circuits[circuit] = n
	}
	return s, nil
}

// parseSum reads "total errors seeing".
func parseSum(text string) (sum, bool) {
	total, rest, _ := strings.Cut(text, " ")
	errs, seeing, _ := strings.Cut(rest, " ")
	var n [3]int64
	for i, digits := range []string{total, errs, seeing} {
		const bits = 53 // what Lua counts exactly
		got, err := strconv.ParseUint(digits, 10, bits)
		if err != nil {
			return sum{}, false
		}
		n[i] = int64(got)
	}
	return sum{count{n[0], n[1]}, int(n[2])}, n[1] <= n[0] && n[2] <= n[1]
}
