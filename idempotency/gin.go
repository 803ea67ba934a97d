package idempotency

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

// Options configures [New]. The zero value is ready to use; durations of zero or less are the default, and of less than a
// millisecond are one.
type Options struct {
	// TTL is how long a response is kept. 24 h.
	TTL time.Duration
	// Lock is how long a key stays locked of which nobody is heard any more. It is renewed while the handler runs. 30 s.
	Lock time.Duration
	// Lease is when a repeat takes a running call for dead: nothing was heard of it for so long, while Redis was
	// there and the repeat watched for half of it at least. A process that pauses longer, and then goes on, loses its
	// key: see [Confirm]. A repeat waits a fourth longer for the first call, 1 s at most, before it is 409.
	// Zero: 500 ms. Negative, or more than Lock: Lock, so that no running call is taken for dead before its lock expires.
	Lease time.Duration
	// MaxBytes is how large a response is kept, in bytes with its headers. A larger one passes, and is 409 on repeat.
	// Zero: 64 KiB. Negative: none is kept, so that each repeat is 409.
	MaxBytes int
	// MaxBody is how large a body a request with a key may have, in bytes. It is read before the handler runs, since it
	// tells a repeat from another request. A larger one is 413: to run it without its key would be to break a promise.
	// Zero or less: 1 MiB.
	MaxBody int
	// Scope is who the key belongs to, such as the subject of a JWT. Without it, or where it is "", the key is
	// every caller's: one who guesses another's key gets the other's response.
	Scope func(*gin.Context) string
	// Required makes a POST or PATCH without the header 400.
	Required bool
	// Timeout bounds one call of Redis. 150 ms.
	Timeout time.Duration
	// FailOpen runs a request with a key while Redis is away. By default it is 503.
	FailOpen bool
	// Prefix begins each key in Redis. Services that share a Redis need different ones. "highball:idempotency:".
	Prefix string
}

// by is who refuses.
const by = "idempotency"

// Middleware runs a POST or PATCH with an Idempotency-Key once. Its own answers are problem+json: 400 for a key that is
// malformed, or missing where it is required, 409 while the first call runs and where its response cannot be had again,
// 413 (Options.MaxBody), 422 for another request under the key, 503 without Redis. A request without the header, or of
// another method, costs nothing. It belongs behind what authenticates the caller, and in front of
// whatever sets headers that are to be repeated. Behind another one it does nothing.
func Middleware(s *Store) gin.HandlerFunc {
	return func(c *gin.Context) {
		if c.Request.Method != http.MethodPost && c.Request.Method != http.MethodPatch {
			return
		}
		values, ok := c.Request.Header["Idempotency-Key"]
		if !ok && !s.o.Required || runOf(c.Request.Context()) != nil {
			return
		}
		if len(values) == 1 {
			if key, ok := parseKey(values[0]); ok {
				s.serve(c, key)
				return
			}
		}
		detail := "one Idempotency-Key is required"
		if ok {
			detail = "the Idempotency-Key must be one string of 1 to 255 visible ASCII characters"
		}
		refuse(c, http.StatusBadRequest, never, detail)
	}
}

func (s *Store) serve(c *gin.Context, key string) {
	body, ok := s.readBody(c)
	if !ok {
		return
	}
	scope := ""
	if s.o.Scope != nil {
		scope = s.o.Scope(c)
	}
	fingerprint := fingerprintOf(c.Request, body)
	name, lock := s.nameOf(scope, key), s.newLock(fingerprint)
	heard := time.Now()
	found, err := s.begin(c.Request.Context(), name, lock)
	switch {
	case err != nil && s.o.FailOpen:
		s.run(c, &run{Context: c.Request.Context(), key: key}, fingerprint, body)
	case err != nil:
		_ = c.Error(err)
		refuse(c, http.StatusServiceUnavailable, 0, "whether this request has run cannot be told now")
	case found == locked:
		s.run(c, s.newRun(c.Request.Context(), key, name, lock, heard), fingerprint, body)
	case found == otherRequest:
		refuse(c, http.StatusUnprocessableEntity, never, "the Idempotency-Key belongs to another request")
	case found == stillRunning:
		refuse(c, http.StatusConflict, 0, "the first request with this Idempotency-Key is running")
	default:
		replay(c, found)
	}
}

// readBody has the body in memory. It answers if it cannot.
func (s *Store) readBody(c *gin.Context) ([]byte, bool) {
	r := c.Request
	if r.Body == nil || r.Body == http.NoBody {
		return nil, true
	}
	large := r.ContentLength > int64(s.o.MaxBody)
	var b bytes.Buffer
	if !large {
		_, err := b.ReadFrom(io.LimitReader(r.Body, int64(s.o.MaxBody)+1))
		var tooLarge *http.MaxBytesError // of who stands in front
		if large = errors.As(err, &tooLarge) || b.Len() > s.o.MaxBody; err != nil && !large {
			_ = c.Error(err)
			refuse(c, http.StatusBadRequest, never, "the request's body broke off")
			return nil, false
		}
	}
	if large {
		refuse(c, http.StatusRequestEntityTooLarge, never, "the body is too large for a request with an Idempotency-Key")
		return nil, false
	}
	return b.Bytes(), true
}

// run calls the handler, and keeps or frees the key whatever becomes of it.
func (s *Store) run(c *gin.Context, r *run, fingerprint [fingerprintSize]byte, body []byte) {
	outer, writer := c.Request, c.Writer
	c.Request = outer.WithContext(r)
	if outer.Body != nil && outer.Body != http.NoBody {
		c.Request.Body = reread{bytes.NewReader(body), outer.Body}
	}
	w := &recorder{ResponseWriter: writer, capture: capture{most: s.o.MaxBytes, before: maps.Clone(writer.Header())}}
	c.Writer = w
	ended := false
	defer func() { // also when a panic passes
		if outer.MultipartForm == nil {
			outer.MultipartForm = c.Request.MultipartForm // net/http removes its files
		}
		c.Request, c.Writer = outer, writer
		record := ""
		if ended && settles(c, r) {
			record = s.record(w, fingerprint)
		}
		r.finish(record)
	}()
	c.Next()
	ended = true
}

// settles reports whether the answer of c is to be kept.
func settles(c *gin.Context, r *run) bool {
	switch r.keep.Load() {
	case keepAlways:
		return true
	case keepNever:
		return false
	}
	if refusal.By(c) != "" || refusal.EndOf(c) != refusal.EndAnswered {
		return false
	}
	switch status := c.Writer.Status(); status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired, http.StatusRequestTimeout, http.StatusTooEarly,
		http.StatusTooManyRequests, refusal.StatusClientClosedRequest:
		return false // each asks for the same request again
	default:
		return status < http.StatusInternalServerError
	}
}

// record is what Redis keeps of the answer in w, or "" for one that broke off.
func (s *Store) record(w *recorder, fingerprint [fingerprintSize]byte) string {
	if w.Written() && !w.began {
		w.stream() // it went past us
	}
	w.begin(w.Header())
	if !w.whole() {
		return ""
	}
	if !w.streamed && s.o.MaxBytes >= 0 {
		b := encode(fingerprint, response{w.Status(), w.header, w.body})
		if len(b)-headSize <= s.o.MaxBytes {
			return string(b)
		}
	}
	return string(append([]byte{isUnrepeated}, fingerprint[:]...))
}

func replay(c *gin.Context, record string) {
	r, err := decode(record)
	if err != nil { // or isUnrepeated
		refuse(c, http.StatusConflict, never, "the request has run, and its response cannot be repeated")
		return
	}
	maps.Copy(c.Writer.Header(), r.header)
	c.Header("Idempotency-Replayed", "true")
	c.Abort()
	c.Status(r.status)
	c.Writer.WriteHeaderNow()
	if len(r.body) > 0 {
		_, _ = c.Writer.Write(r.body) // the client has gone
	}
}

const never = -1 * time.Second // no wait would help

func refuse(c *gin.Context, status int, retryAfter time.Duration, detail string) {
	refusal.Answer(c, by, refusal.Problem{Status: status, RetryAfter: retryAfter, Detail: detail})
}

// Key is the Idempotency-Key under which the handler runs, or "" where there is none. Whoever has its effect under
// this key, within the caller's scope, and in the same transaction has it once.
func Key(c *gin.Context) string {
	if r := runOf(c.Request.Context()); r != nil {
		return r.key
	}
	return ""
}

// Confirm is nil when the handler's call has its key still, so that no other call has begun; it is [ErrLost] when one may have, and
// [ErrRedis] when nobody knows. Called right before an effect that must not happen twice, it keeps an instance that
// was stopped for longer than Options.Lease, and then goes on, from it. It asks Redis only in a handler that was not heard of for half
// of that. It is nil where there is no key, or no Redis under Options.FailOpen.
func Confirm(c *gin.Context) error {
	if r := runOf(c.Request.Context()); r != nil {
		return r.confirm()
	}
	return nil
}

// Keep decides whether the response is kept, whatever its status: of a 500 that a repeat would only have again, or of
// a 200 that says "not yet". A panic is never kept.
func Keep(c *gin.Context, keep bool) {
	r := runOf(c.Request.Context())
	switch {
	case r == nil:
	case keep:
		r.keep.Store(keepAlways)
	default:
		r.keep.Store(keepNever)
	}
}

// reread is a body that was read already.
type reread struct {
	*bytes.Reader
	io.Closer
}

// A recorder writes through and keeps a copy.
type recorder struct {
	gin.ResponseWriter
	capture
}

// Write is http.ResponseWriter's. What the client did not get is kept too.
func (w *recorder) Write(b []byte) (int, error) {
	w.begin(w.Header())
	w.add(len(b), func(body []byte) []byte { return append(body, b...) })
	return w.ResponseWriter.Write(b)
}

// WriteString is gin.ResponseWriter's.
func (w *recorder) WriteString(s string) (int, error) {
	w.begin(w.Header())
	w.add(len(s), func(body []byte) []byte { return append(body, s...) })
	return w.ResponseWriter.WriteString(s)
}

// WriteHeaderNow is gin.ResponseWriter's.
func (w *recorder) WriteHeaderNow() {
	w.begin(w.Header())
	w.ResponseWriter.WriteHeaderNow()
}

// Flush is http.Flusher's. An answer of unknown length that is flushed is a stream.
func (w *recorder) Flush() {
	w.begin(w.Header())
	if w.header.Get("Content-Length") == "" {
		w.stream()
	}
	w.ResponseWriter.Flush()
}

// Hijack is http.Hijacker's.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := w.ResponseWriter.Hijack()
	if err == nil {
		w.begin(w.Header())
		w.stream()
	}
	return conn, rw, err
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

var _ context.Context = (*run)(nil)
