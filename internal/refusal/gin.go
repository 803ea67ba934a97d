package refusal

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

// key marks a gin.Context whose answer is a refusal of Highball's own, not the handler's.
type key struct{}

// Mark says that the answer to c is a refusal of the package by (for example "breaker").
func Mark(c *gin.Context, by string) { c.Set(key{}, by) }

// By names the package that refused c, or is "".
func By(c *gin.Context) string { return c.GetString(key{}) }

// An End says how a request ended when its status does not.
type End uint8

// How a request ended.
const (
	EndAnswered End = iota // or nobody knows better
	EndGone                // the client's connection broke
	EndAborted             // the connection is cut on purpose, http.ErrAbortHandler
)

type endKey struct{}

// MarkEnd says how c ends, for who stands in front.
func MarkEnd(c *gin.Context, e End) { c.Set(endKey{}, e) }

// EndOf is what [MarkEnd] said of c.
func EndOf(c *gin.Context) End {
	v, _ := c.Get(endKey{})
	e, _ := v.(End)
	return e
}

// Status is how a request ended for who counts or logs it: the status, which is 499 when the client has gone
// and 500 when a panic passes, and aborted when the answer breaks off whatever its status line says. ctx is
// the context that the request came in with; done is false while a panic passes.
func Status(c *gin.Context, ctx context.Context, done bool) (status int, aborted bool) {
	end := EndOf(c)
	switch {
	case end == EndGone || ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled):
		// a server that ends its requests gives another cause
		return StatusClientClosedRequest, false
	case done:
		return c.Writer.Status(), false
	case !c.Writer.Written():
		return http.StatusInternalServerError, end == EndAborted
	default:
		return c.Writer.Status(), true
	}
}

// Problem is an answer by RFC 9457.
type Problem struct {
	Status int    // HTTP status
	Type   string // URI of the problem type; "": about:blank, left out
	Title  string // "": the status text
	Detail string // what happened, fit for a client to read; "": left out
	// RetryAfter becomes the header of that name. Zero: one second. Negative: no header, for no wait
	// would help.
	RetryAfter time.Duration
	// ViolatedPolicies are the names of quota policies that were exceeded, as
	// draft-ietf-httpapi-ratelimit-headers has it. None: left out.
	ViolatedPolicies []string
}

// Answer marks c as refused by the package by, and ends it with p as application/problem+json. It
// writes nothing when the headers are out already.
func Answer(c *gin.Context, by string, p Problem) {
	Mark(c, by)
	if p.RetryAfter >= 0 {
		c.Header("Retry-After", RetryAfter(p.RetryAfter))
	}
	Write(c, p)
}

// Write ends c with p as application/problem+json without marking it: for answers that are about the
// request itself, such as a missing token. It sets no Retry-After.
func Write(c *gin.Context, p Problem) {
	c.Abort()
	if c.Writer.Written() {
		return
	}
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	body, err := json.Marshal(struct {
		Type   string `json:"type,omitempty"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`

		ViolatedPolicies []string `json:"violated-policies,omitempty"`
	}{p.Type, p.Title, p.Status, p.Detail, p.ViolatedPolicies})
	if err != nil { // strings and an int: it cannot fail
		body = []byte(`{}`)
	}
	c.Data(p.Status, "application/problem+json", body)
}
