package idempotency

import "github.com/redis/go-redis/v9"

// A key in Redis holds one of these bytes, the request's fingerprint of 32 bytes, and then
const (
	isRunning    = 'r' // the token of the call that runs, of 16 bytes, and the terms of its lock
	isResponse   = 'd' // its response
	isUnrepeated = 'u' // nothing: it cannot be had again
)

// Answers of beginScript that are no record.
const (
	locked       = ""  // by this call
	otherRequest = "o" // the key belongs to another request
	stillRunning = "r" // another call
)

const (
	fingerprintSize = 32
	tokenSize       = 16
	headSize        = 1 + fingerprintSize
)

// beginScript locks a key. ARGV: the lock, its life in ms, "1" if a holder of which nothing was heard for its lease is to be
// taken for dead. A client that sends it twice, having lost the answer, locks once.
var beginScript = redis.NewScript(`
local found = redis.call('GET', KEYS[1])
if found then
  if string.sub(found, 2, 33) ~= string.sub(ARGV[1], 2, 33) then return 'o' end
  if string.sub(found, 1, 1) ~= 'r' then return found end
  if string.sub(found, 34, 49) ~= string.sub(ARGV[1], 34, 49) then
    local life, lease = string.match(found, '^(%d+) (%d+)$', 50)
    if ARGV[3] ~= '1' or life - redis.call('PTTL', KEYS[1]) < tonumber(lease) then return 'r' end
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''`)

// settleScript replaces a lock. ARGV: the lock, the life of what follows in ms, what replaces it, be it the lock itself or
// nothing. It is 0 when another call has the key. A key that Redis has lost is free to be replaced.
var settleScript = redis.NewScript(`
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[3] and string.sub(found, 1, 49) ~= string.sub(ARGV[1], 1, 49) then return 0 end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
end
return 1`)
