package redislimit

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// take is the whole of the decision. What is stored, as MessagePack, is what the bucket lacks in units, when
// that was in microseconds of Redis' clock, and how many units a microsecond has. A clock that is set back
// refills nothing once; one that is set forward refills a bucket too early, as Redis expires keys too early
// then.
var take = redis.NewScript(`
local interval, burst, scale, parts = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local need, want, keep, back = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8] or 0)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local owed, write = 0, false

if ARGV[9] then -- of a lease that ends as much has died as the bucket has refilled since
  local left, size, born = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
  left = math.min(left, size - math.ceil((now - born) * scale / interval))
  back = back + math.max(left, 0)
end

local stored = redis.call('GET', KEYS[1])
if stored then
  local at, unit, more
  owed, at, unit, more = cmsgpack.unpack(stored)
  if type(owed) ~= 'number' or type(at) ~= 'number' or type(unit) ~= 'number' or at < 1e15 or more then
    return redis.error_reply('ERR redislimit: the key holds something else')
  end
  if unit ~= scale then
    owed = math.ceil(owed * scale / unit)
  end
  if now > at then
    owed = owed - math.floor((now - at) * scale * parts / 1024)
  end
  write = now < at
end
owed = math.min(math.max(owed - back * interval, 0), burst * interval)

local granted = math.min(want, math.floor((burst * interval - owed) / interval))
if granted < need then
  granted = -1
else
  owed = owed + granted * interval
end
if write or back > 0 or granted > 0 then
  if owed > 0 then
    local ms = math.min(math.ceil(owed / scale / 1000 * 1024 / math.max(parts, 1)) + 1000, keep)
    redis.call('SET', KEYS[1], cmsgpack.pack(owed, now, scale), 'PX', ms)
  else
    redis.call('DEL', KEYS[1])
  end
end
return {granted, owed, now}
`)

const (
	keep      = 2 * 365 * 24 * 3600 * 1000 // ms, of what takes longer to refill
	keepStill = 30 * 24 * 3600 * 1000      // ms, of what is never refilled, after its last use
)

var errReply = errors.New("redislimit: Redis' reply makes no sense")

// An ask is what a call wants of Redis.
type ask struct {
	parts      int64
	need, want int64 // tokens, at least and at most
	back       int64 // tokens to give back
	ended      *lease
	left       int64 // of that
}

// A verdict is what Redis says.
type verdict struct {
	granted int64 // -1: there are too few
	owed    int64 // what the bucket lacks now, in units
	at      int64 // by Redis' clock, in microseconds
}

func (l *Limiter) askRedis(ctx context.Context, key string, b *bucket, a ask) (verdict, error) {
	ms := int64(keep)
	if b.still {
		ms = keepStill
	}
	args := append(make([]any, 0, 11), b.interval, b.burst, b.scale, a.parts, a.need, a.want, ms)
	if a.back > 0 || a.left > 0 {
		args = append(args, a.back)
	}
	if a.left > 0 {
		args = append(args, a.left, a.ended.size, a.ended.at)
	}
	got, err := take.Run(ctx, l.client, []string{key}, args...).Int64Slice()
	if err != nil {
		return verdict{}, err
	}
	if len(got) != 3 || got[0] != -1 && (got[0] < a.need || got[0] > a.want) || got[1] < 0 || got[1] > b.span() || got[2] <= 0 {
		return verdict{}, fmt.Errorf("%w: %v", errReply, got)
	}
	return verdict{got[0], got[1], got[2]}, nil
}
