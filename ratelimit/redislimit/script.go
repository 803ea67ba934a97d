package redislimit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/redis/go-redis/v9"
)

// take is the whole of the decision. What it is asked, what it stores and what it answers are doubles, packed
// into one string each: that costs Redis less than as many arguments. What is stored is what the bucket lacks
// in units, when that was in microseconds of Redis' clock, and how many units a microsecond has. A clock that
// is set back refills nothing once; one that is set forward refills a bucket too early, as Redis expires keys
// too early then.
var take = redis.NewScript(`
local interval, burst, scale, parts, need, want, keep, back, left, size, born = struct.unpack('<ddddddddddd', ARGV[1])
local call, ceil = redis.call, math.ceil
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local owed, write = 0, false

if left > 0 then -- of a lease that ends as much has died as the bucket has refilled since
  left = math.min(left, size - ceil((now - born) * scale / interval))
  back = back + math.max(left, 0)
end

local stored = call('GET', KEYS[1])
if stored then
  local at, unit = 0, 0
  if #stored == 24 then
    owed, at, unit = struct.unpack('<ddd', stored)
  end
  if not (owed >= 0 and owed <= 9e15 and at >= 1e15 and at <= 9e15 and unit >= 1 and unit <= 1000) then
    return redis.error_reply('ERR redislimit: the key holds something else')
  end
  if unit ~= scale then
    owed = ceil(owed * scale / unit)
  end
  if now > at then
    owed = owed - math.floor((now - at) * scale * parts / 1024)
  end
  write = now < at
end
owed = owed - back * interval
if owed < 0 then owed = 0 end
local span = burst * interval
if owed > span then owed = span end

local granted = math.floor((span - owed) / interval)
if granted > want then granted = want end
if granted < need then
  granted = -1
else
  owed = owed + granted * interval
end
if write or back > 0 or granted > 0 then
  if owed > 0 then
    local ms = ceil(owed / scale / 1000 * 1024 / math.max(parts, 1)) + 1000
    if ms > keep then ms = keep end
    call('SET', KEYS[1], struct.pack('<ddd', owed, now, scale), 'PX', string.format('%.0f', ms))
  else
    call('DEL', KEYS[1])
  end
end
return struct.pack('<ddd', granted, owed, now)
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
	var size, born int64
	if a.left > 0 {
		size, born = a.ended.size, a.ended.at
	}
	packed := pack(b.interval, b.burst, b.scale, a.parts, a.need, a.want, ms, a.back, a.left, size, born)
	got, err := take.Run(ctx, l.client, []string{key}, packed).Text()
	if err != nil {
		return verdict{}, err
	}
	v, ok := unpack(got)
	if !ok || v.granted != -1 && (v.granted < a.need || v.granted > a.want) || v.owed < 0 || v.owed > b.span() || v.at <= 0 {
		return verdict{}, fmt.Errorf("%w: %q", errReply, got)
	}
	return v, nil
}

// pack is numbers as doubles, for the struct.unpack of Redis' Lua: whole ones up to 1<<53 stay what they are.
func pack(numbers ...int64) []byte {
	b := make([]byte, 0, 11*8)
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(float64(n)))
	}
	return b
}

// unpack is the verdict that the script packed, if that is what it is.
func unpack(reply string) (v verdict, ok bool) {
	if len(reply) != 3*8 {
		return v, false
	}
	var numbers [3]int64
	for i := range numbers {
		f := math.Float64frombits(binary.LittleEndian.Uint64([]byte(reply[8*i : 8*i+8])))
		if !(math.Abs(f) < 1<<53) || f != math.Trunc(f) {
			return v, false
		}
		numbers[i] = int64(f)
	}
	return verdict{granted: numbers[0], owed: numbers[1], at: numbers[2]}, true
}
