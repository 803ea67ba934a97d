package balancer

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

// ProxyOption configures [Proxy].
type ProxyOption func(*proxy)

type proxy struct {
	b       *Balancer
	service string
	replay  int64
	key     func(*gin.Context) string
}

// WithReplayBytes sets how much of a request's body is kept to be repeated, in bytes. Default: 64 KiB.
// Zero or less: nothing, so that no request with a body is repeated once a byte of it was sent.
func WithReplayBytes(n int64) ProxyOption { return func(p *proxy) { p.replay = n } }

// WithAffinity sets the [IPHash] key of each request, e.g. func(c) string { return c.ClientIP() }.
func WithAffinity(key func(*gin.Context) string) ProxyOption { return func(p *proxy) { p.key = key } }

// Proxy forwards requests to service: the dynamic load-balancing middleware. It streams the request and the
// answer, flushes server-sent events at once, passes upgrades (WebSocket) and trailers on, and removes
// hop-by-hop headers. The instance gets X-Forwarded-For, -Host and -Proto and X-Real-Ip: what came in of
// them counts only if gin trusts who sent it (Engine.SetTrustedProxies), and the path, query and method
// as they are; Host is the service's name.
//
// The body is streamed and kept on the way, up to [WithReplayBytes], so that a request may be repeated.
//
// Answers of its own are problem+json: 503 with Retry-After without an instance, 502 when no try was
// answered, 504 when the last one timed out; an instance's own answer, also a 5xx, is passed on. A header that a
// middleware in front has set, such as X-Request-Id, RateLimit or those of CORS, stands in the place of the instance's,
// but for those of which there may be many: Set-Cookie, Vary, Link, Server-Timing, Via, WWW-Authenticate. When the
// client has gone away the status is 499, for the log. An answer that breaks off ends with
// [http.ErrAbortHandler], so that the client sees it break off too.
func Proxy(b *Balancer, service string, opts ...ProxyOption) gin.HandlerFunc {
	p := &proxy{b: b, service: service, replay: 64 << 10}
	for _, o := range opts {
		o(p)
	}
	reverse := &httputil.ReverseProxy{
		Transport: b,
		Rewrite:   p.rewrite,
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode != http.StatusSwitchingProtocols { // there Connection is the instance's to say
				yield(r.Header, forwardingOf(r.Request).front)
			}
			return nil
		},
		FlushInterval: -1,
		BufferPool:    &buffers{},
		ErrorLog:      log.New(io.Discard, "", 0), // a library does not print; the client sees it too
		ErrorHandler:  func(_ http.ResponseWriter, r *http.Request, err error) { forwardingOf(r).err = err },
	}
	return func(c *gin.Context) { p.serve(c, reverse) }
}

// forwarding is what rewrite and the error handler need to know of a gin request; it travels in the
// request's context, since gin's own must not.
type forwarding struct {
	client, host, proto string
	front               http.Header // of the answer, set by who is in front
	body                *tee        // nil: there is none, or it is not kept
	err                 error       // why no instance answered
}

type forwardingKey struct{}

func forwardingOf(r *http.Request) *forwarding {
	return r.Context().Value(forwardingKey{}).(*forwarding)
}

func (p *proxy) serve(c *gin.Context, reverse *httputil.ReverseProxy) {
	f := forward(c)
	ctx := context.WithValue(c.Request.Context(), forwardingKey{}, f)
	if p.key != nil {
		ctx = WithKey(ctx, p.key(c))
	}
	ctx, cancel := context.WithCancel(ctx) // gin's CloseNotify panics on some writers; with a Done channel nobody asks it
	defer cancel()

	r := c.Request.WithContext(ctx)
	if p.replay > 0 && hasBody(r) {
		f.body = &tee{source: r.Body, most: p.replay}
		r.Body = &teeReader{t: f.body}
	}
	reverse.ServeHTTP(c.Writer, r)
	if f.err != nil {
		refuse(c, f.err)
	}
}

// forward works out what the instance may believe of the client.
func forward(c *gin.Context) *forwarding {
	client, peer := c.ClientIP(), c.RemoteIP()
	f := &forwarding{client: client, host: c.Request.Host, proto: "http", front: c.Writer.Header()}
	if c.Request.TLS != nil {
		f.proto = "https"
	}
	if client != peer { // gin trusts the peer, a proxy
		f.client = client + ", " + peer
		if host := c.GetHeader("X-Forwarded-Host"); host != "" {
			f.host = host
		}
		if proto := c.GetHeader("X-Forwarded-Proto"); proto == "http" || proto == "https" {
			f.proto = proto
		}
	}
	return f
}

func (p *proxy) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", p.service, ""
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as it is: the instance decides what a semicolon means
	f := forwardingOf(r.In)
	r.Out.Header.Set("X-Forwarded-For", f.client)
	r.Out.Header.Set("X-Forwarded-Host", f.host)
	r.Out.Header.Set("X-Forwarded-Proto", f.proto)
	real, _, _ := strings.Cut(f.client, ",")
	r.Out.Header.Set("X-Real-Ip", real)
	if f.body != nil {
		r.Out.GetBody = f.body.again
	}
}

// yield leaves out of an instance's header what is set in front: two of it would contradict each other, and browsers
// refuse two of CORS.
func yield(header, front http.Header) {
	for name := range front {
		switch name {
		case "Set-Cookie", "Vary", "Link", "Server-Timing", "Via", "Www-Authenticate":
		default:
			delete(header, name)
		}
	}
}

// refuse answers for an instance that did not.
func refuse(c *gin.Context, err error) {
	_ = c.Error(err)
	problem := refusal.Problem{Status: http.StatusBadGateway, Detail: "no instance answered"}
	switch {
	case errors.Is(c.Request.Context().Err(), context.Canceled):
		c.AbortWithStatus(refusal.StatusClientClosedRequest)
		return
	case is[*http.MaxBytesError](err):
		problem = refusal.Problem{Status: http.StatusRequestEntityTooLarge}
	case is[*bodyError](err):
		problem = refusal.Problem{Status: http.StatusBadRequest, Detail: "the request's body broke off"}
	case errors.Is(err, ErrNoInstances), errors.Is(err, ErrClosed):
		problem = refusal.Problem{Status: http.StatusServiceUnavailable, Detail: "no instance is available"}
		c.Header("Retry-After", refusal.RetryAfter(0))
	case isTimeout(err):
		problem = refusal.Problem{Status: http.StatusGatewayTimeout, Detail: "no instance answered in time"}
	}
	refusal.Write(c, problem)
}

// buffers are what answers are copied through.
type buffers struct{ pool sync.Pool }

type buffer [32 << 10]byte

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*buffer); ok {
		return p[:]
	}
	return new(buffer)[:]
}

func (b *buffers) Put(p []byte) { b.pool.Put((*buffer)(p)) }
