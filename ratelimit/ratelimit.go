// Package ratelimit admits a bounded rate of requests with a token bucket: a key has at most Burst tokens,
// Rate new ones come each second, and a request takes some. Over any span of time a key gets at most
// Burst + Rate × time, whatever the clocks of the callers read.
//
// A [Limiter] decides; [Local] does it in this process, ratelimit/redislimit for all instances together,
// [All] makes one of several, and [Middleware] puts it before the handlers of a gin engine: 429 with
// Retry-After, the RateLimit fields of the IETF draft, and problem+json.
//
// The bucket is kept as one number per key, the theoretical arrival time of the generic cell rate
// algorithm (ITU-T I.371, annex A): the instant at which the bucket will be full. A key whose instant has
// passed is as good as one never seen, so forgetting it loses nothing.
package ratelimit

import (
	"context"
	"errors"
	"math"
	"time"
)

// ErrUnavailable says that nobody could decide; [Middleware] answers 503.
var ErrUnavailable = errors.New("ratelimit: unavailable")

// Limit is a token bucket: Rate tokens a second, at most Burst saved up.
type Limit struct {
	// Rate is how many tokens come each second; the time between two is rounded up to a nanosecond. 0,
	// less, or NaN: the bucket is never refilled, and so it is when filling it would take more than two
	// years. +Inf: it is always full.
	Rate float64
	// Burst is how many tokens a bucket holds; it begins full. 0 or less: it holds none, and nothing that
	// costs a token is admitted.
	Burst int
}

// PerSecond is n tokens a second, at most burst saved up.
func PerSecond(n float64, burst int) Limit { return Limit{Rate: n, Burst: burst} }

// Every is n tokens every d, at most burst saved up. d of 0 or less: an infinite rate, or none when n is
// not positive.
func Every(d time.Duration, n, burst int) Limit {
	switch {
	case n <= 0:
		return Limit{Burst: burst}
	case d <= 0:
		return Limit{Rate: math.Inf(1), Burst: burst}
	}
	return Limit{Rate: float64(n) * float64(time.Second) / float64(d), Burst: burst}
}

// Limiter decides. AllowN takes n tokens of key, or none if there are too few; with n of 0 or less it only
// looks, and Allowed is true. A decision that had to be made without Redis has the Source "fallback" and
// no error; ErrUnavailable is FailClosed's. A Limiter is safe for concurrent use.
type Limiter interface {
	AllowN(ctx context.Context, key string, n int) (Decision, error)
}

// Refunder gives back n tokens taken for key, never above Burst. Local and redislimit are Refunders.
type Refunder interface{ Refund(key string, n int) }

// Decision is the answer of a Limiter, and the bucket as it is afterwards.
type Decision struct {
	Allowed    bool
	Limit      int           // burst
	Remaining  int           // whole tokens
	RetryAfter time.Duration // until n tokens are there; negative: never (n > Burst or Rate 0)
	ResetAfter time.Duration // until the bucket is full; negative: never
	Window     time.Duration // that fills an empty bucket; 0: none does, or it is always full
	Source     string        // "local", "redis", "lease", "fallback"
}

// never is the RetryAfter and ResetAfter of what no wait brings.
const never = time.Duration(-1)
