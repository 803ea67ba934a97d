package ratelimit

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

// A Key names the bucket of a request. What it returns should be short: a Limiter on Redis stores it.
type Key func(*gin.Context) string

// An Option configures [Middleware].
type Option func(*gate)

// A gate is what a Middleware is made of.
type gate struct {
	limiter Limiter
	key     Key
	cost    func(*gin.Context) int
	refund  func(*gin.Context) bool
	skip    func(*gin.Context) bool
	denied  gin.HandlerFunc
	shadow  bool
	policy  atomic.Pointer[policy]
}

// WithKey chooses the bucket of a request. The default, and nil, is [ByClientIP].
func WithKey(k Key) Option {
	return func(g *gate) {
		if k != nil {
			g.key = k
		}
	}
}

// WithCost says how many tokens a request takes; 0 or less: it takes none and passes. The default is 1.
func WithCost(cost func(*gin.Context) int) Option { return func(g *gate) { g.cost = cost } }

// WithRefund gives the tokens back when given, asked after the handlers, is true; for example
// breaker.Rejected, so that a request which an open circuit answered costs nothing. It needs a limiter
// that is a [Refunder]. After a panic nobody is asked and nothing given back.
func WithRefund(given func(*gin.Context) bool) Option { return func(g *gate) { g.refund = given } }

// WithShadow decides and reports to OnDeny, but never refuses and shows the client nothing.
func WithShadow() Option { return func(g *gate) { g.shadow = true } }

// WithDenied answers in the place of the problem+json. It runs after c was aborted and the status line is
// still its own to choose; Retry-After and the RateLimit fields are set already.
func WithDenied(h gin.HandlerFunc) Option { return func(g *gate) { g.denied = h } }

// WithSkip passes requests for which skip is true: no tokens, no fields.
func WithSkip(skip func(*gin.Context) bool) Option { return func(g *gate) { g.skip = skip } }

// Middleware answers 429 with Retry-After, RateLimit and RateLimit-Policy
// (draft-ietf-httpapi-ratelimit-headers-11) and problem+json when the key of a request is over its limit;
// without Retry-After where no wait would help. Admitted answers carry the RateLimit fields too: policy
// "default", q the burst, w the whole seconds that refill it, r the tokens left, t the seconds until
// there is one more. When the limiter cannot decide the answer is 503.
//
// Its own answers are marked: no Highball engine counts them as failures.
func Middleware(l Limiter, opts ...Option) gin.HandlerFunc {
	g := &gate{limiter: l, key: ByClientIP}
	for _, o := range opts {
		o(g)
	}
	return g.serve
}

func (g *gate) serve(c *gin.Context) {
	if g.skip != nil && g.skip(c) {
		return
	}
	n := 1
	if g.cost != nil {
		n = max(g.cost(c), 0)
	}
	key := g.key(c)
	d, err := g.limiter.AllowN(c.Request.Context(), key, n)
	if !g.shadow && !g.admit(c, d, err) {
		return
	}
	if g.refund == nil || err != nil || !d.Allowed || n == 0 {
		return
	}
	c.Next()
	if r, ok := g.limiter.(Refunder); ok && g.refund(c) {
		r.Refund(key, n)
	}
}

// admit shows the client what was decided, and reports whether the request may go on.
func (g *gate) admit(c *gin.Context, d Decision, err error) bool {
	if err != nil {
		refusal.Answer(c, "ratelimit", refusal.Problem{
			Status: http.StatusServiceUnavailable,
			Type:   "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
			Detail: "Nobody can tell at the moment whether this request is within its limit.",
		})
		return false
	}
	if d.Limit > 0 || !d.Allowed {
		c.Header(policyField, g.policyFor(d))
		c.Header(limitField, fields(d))
	}
	if d.Allowed {
		return true
	}
	if g.denied == nil {
		refusal.Answer(c, "ratelimit", refusal.Problem{
			Status:           http.StatusTooManyRequests,
			Type:             "https://iana.org/assignments/http-problem-types#quota-exceeded",
			Title:            "Request cannot be satisfied as assigned quota has been exceeded",
			RetryAfter:       d.RetryAfter,
			ViolatedPolicies: []string{policyName},
		})
		return false
	}
	refusal.Mark(c, "ratelimit")
	c.Abort()
	if d.RetryAfter >= 0 {
		c.Header("Retry-After", refusal.RetryAfter(d.RetryAfter))
	}
	g.denied(c)
	return false
}

// The fields of the draft, in net/http's spelling, which spares it to make it so each time.
const (
	policyField = "Ratelimit-Policy"
	limitField  = "Ratelimit"
	policyName  = "default"
)

// A policy is the RateLimit-Policy field of the last limit that was shown: most often there is one.
type policy struct {
	limit  int
	window time.Duration
	field  string
}

func (g *gate) policyFor(d Decision) string {
	if p := g.policy.Load(); p != nil && p.limit == d.Limit && p.window == d.Window {
		return p.field
	}
	field := `"` + policyName + `";q=` + strconv.Itoa(d.Limit)
	if d.Window > 0 {
		field += ";w=" + refusal.RetryAfter(d.Window)
	}
	g.policy.Store(&policy{d.Limit, d.Window, field})
	return field
}

// fields is the RateLimit field.
func fields(d Decision) string {
	b := make([]byte, 0, 48)
	b = append(b, `"`+policyName+`";r=`...)
	b = strconv.AppendInt(b, int64(d.Remaining), 10)
	if next := untilMore(d); next > 0 {
		b = append(b, ";t="...)
		b = append(b, refusal.RetryAfter(next)...)
	}
	return string(b)
}

// untilMore is the time until one token more is there, or for a refusal until it would be none; 0: there
// will be none.
func untilMore(d Decision) time.Duration {
	if !d.Allowed {
		return max(d.RetryAfter, 0)
	}
	missing := d.Limit - d.Remaining
	if missing <= 0 || d.Window <= 0 {
		return 0
	}
	return max(d.ResetAfter-d.Window/time.Duration(d.Limit)*time.Duration(missing-1), 1)
}

// ByClientIP is the client's address as gin's ClientIP finds it, which believes headers only of the
// proxies in Engine.SetTrustedProxies: gin trusts all until that is called. IPv6 clients go by their /64,
// for that is what one of them is given; an IPv4-mapped address is an IPv4 one. All of whom no address is
// known share the key "unknown".
func ByClientIP(c *gin.Context) string {
	ip := c.ClientIP()
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return "unknown"
	}
	if addr.Is4() {
		return ip
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return addr.String()
	}
	return netip.PrefixFrom(addr, 64).Masked().String()
}

// ByRoute is the request's method and FullPath, so that all clients of a route share a bucket, as do all
// requests that match no route.
func ByRoute(c *gin.Context) string {
	if c.FullPath() == "" {
		return "unmatched"
	}
	return c.Request.Method + " " + c.FullPath()
}

// maxHeader is the longest header value, in bytes, that is a key as it is.
const maxHeader = 64

// ByHeader is the value of a header that something in front has checked, for a client can send whatever it
// likes. A value of more than 64 bytes is replaced by its SHA-256. All without the header share a bucket.
func ByHeader(name string) Key {
	return func(c *gin.Context) string {
		v := c.GetHeader(name)
		if len(v) <= maxHeader {
			return v
		}
		sum := sha256.Sum256([]byte(v))
		return "sha256:" + hex.EncodeToString(sum[:])
	}
}
