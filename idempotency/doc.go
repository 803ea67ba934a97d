// Package idempotency runs a request with an Idempotency-Key once and answers its repeats with the same response, so
// that a POST may be retried (IETF draft-ietf-httpapi-idempotency-key-header). Keys and responses are in Redis; every
// instance of a service that shares it knows them.
//
// # What a repeat gets
//
// The response of the first call, with Idempotency-Replayed: true, once that has ended. While it runs, the repeat waits
// a little (see Options.Lease) for that response, then it is 409 with Retry-After. With another method, path, query,
// content type or body the key is 422. Only POST and PATCH are looked at: the other methods are idempotent already.
//
// What makes a response worth keeping is that it settles the request. A panic, a 5xx, a refusal of another Highball
// middleware and a status that asks for the same request again (401, 407, 408, 425, 429, 499) leave the key free.
// [Keep] decides otherwise. Kept are status, body and the headers that were set behind this middleware, but for
// hop-by-hop ones, Set-Cookie, Date, Age, and those that name one request (X-Request-Id, X-Correlation-Id, Traceparent,
// Tracestate, Server-Timing). A response above Options.MaxBytes, a stream (flushed without a Content-Length, or an event stream) and
// a connection taken over pass through unchanged, and the repeat is told by 409, without Retry-After, that they cannot
// be had again. A client that goes away changes nothing: what the handler answers is kept.
//
// # What happens once
//
// A key is locked by one call at a time. Its lock is renewed while the handler runs, and a repeat takes it over only
// when nothing was heard of its holder for Options.Lease: when an instance is killed, or hangs, the repeat that a
// balancer sends elsewhere waits that half a second and runs. So a balancer's time for one try should be well above it.
//
// No lock can make an effect happen once by itself. A process may die after the effect and before its response is
// kept: the repeat runs again. It may stop before the effect and go on when another has taken the key over. Two things
// close these gaps, and a handler that moves money wants the first:
//
//   - Have the effect under [Key], in the same transaction: a unique column, or a lookup before. This is exactly once.
//   - Call [Confirm] right before the effect: it fails when the key is another's by now. It closes the second gap but
//     for the instant between the two, and not the first.
//
// The same holds when Redis loses what it had acknowledged: by a failover, since replication is asynchronous, by a
// restart without its data, or by an eviction (use maxmemory-policy noeviction). A running handler puts its lock back
// when Redis returns without it.
//
// # When Redis is away
//
// A keyed request is 503 with Retry-After, or runs without any of this under Options.FailOpen. No call of Redis takes
// longer than Options.Timeout, and after three failures requests no longer wait, but for a probe now and then. If Redis
// goes while the handler runs, the client gets its answer all the same, and this process offers it to Redis until
// Options.Lock is over, so that it is there before a repeat may take the key over. It is not when the process ends
// meanwhile, when Redis stays away longer, or when 256 others wait for the same: then a repeat runs the request again.
//
// A response takes Redis memory for Options.TTL, and a client may send any number of keys: put a rate limit in front.
package idempotency
