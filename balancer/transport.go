package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"
)

// idlePerInstance is how many idle connections an instance keeps; net/http's two would churn.
const idlePerInstance = 256

// baseTransport is what the instances' transports are clones of; nil when rt is not an http.Transport.
func baseTransport(rt http.RoundTripper) *http.Transport {
	if rt == nil {
		t, ok := http.DefaultTransport.(*http.Transport)
		if !ok { // somebody has put an instrumented one in its place
			t = &http.Transport{ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
		}
		t = t.Clone()
		t.Proxy = nil // peers are called by their own addresses
		t.DialContext = (&net.Dialer{Timeout: time.Second, KeepAlive: 15 * time.Second}).DialContext
		t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, idlePerInstance
		return t
	}
	t, _ := rt.(*http.Transport)
	return t
}

// carrier is the RoundTripper of one instance. A transport of its own lets the connections of an instance
// that left be closed, and has the service's name for TLS although it dials an address.
func (b *Balancer) carrier(service string) http.RoundTripper {
	if b.base == nil {
		return b.o.Transport
	}
	t := b.base.Clone()
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if t.TLSClientConfig.ServerName == "" {
		t.TLSClientConfig.ServerName = service
	}
	t.DialContext = b.dial
	return t
}

// dial marks its errors, for a request that met one has not sent a byte.
func (b *Balancer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := b.dialer()(ctx, network, addr)
	if err != nil {
		return nil, &dialError{err}
	}
	return conn, nil
}

// dialer is the one of Options.Transport.
func (b *Balancer) dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	switch {
	case b.base == nil:
	case b.base.DialContext != nil:
		return b.base.DialContext
	case b.base.Dial != nil: //nolint:staticcheck // deprecated, but whoever has set it means it
		return func(_ context.Context, network, addr string) (net.Conn, error) { return b.base.Dial(network, addr) } //nolint:staticcheck // the same
	}
	return (&net.Dialer{}).DialContext
}

type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }
func (e *dialError) Timeout() bool { return isTimeout(e.error) }

// unsent reports whether err came before the first byte of the request: no connection, or no TLS.
func unsent(err error) bool {
	op, isOp := errors.AsType[*net.OpError](err)
	return isOp && op.Op == "dial" || is[*dialError](err) ||
		is[*tls.CertificateVerificationError](err) || is[tls.RecordHeaderError](err)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// closeIdle closes the node's idle connections, and those in use as soon as they become idle.
func (n *Node) closeIdle() {
	if n.service.b.base == nil {
		return // shared with other instances, and with others than us
	}
	if t, ok := n.carrier.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}
