// Package accesslog writes one zap line per request, whatever becomes of it: also when a handler panics, when
// the connection is aborted and when the client leaves.
//
// The line's message is always "request", and its keys are always these, so that Filebeat and Elasticsearch
// take the JSON as it is:
//
//	method      string
//	route       string   the pattern, such as /orders/:id; "unmatched" without one
//	path        string   as the client sent it, decoded
//	query       string   secrets masked
//	status      integer  499 when the client went away, 500 when a panic leaves without an answer
//	latency     float    seconds
//	size        integer  bytes of the body
//	ip          string   by gin's rules for trusted proxies
//	user_agent  string
//	request_id  string
//	error       string   what handlers gave to c.Error; only if they did
//	aborted     true     only if the answer was cut
//	slow        true     only if it took longer than WithSlow allows
//
// 5xx is ERROR and so is an answer that was cut, 4xx is WARN, the rest INFO.
//
// The values of these query parameters are masked, in any case and encoding: token, access_token,
// refresh_token, id_token, code, password, passwd, secret, client_secret, api_key, apikey, key, sig and
// signature. They are masked in the texts of errors too. Nothing that a client sends can start a new line or
// colour a terminal, whatever the encoder does: control characters are escaped before it sees them, and long
// values are cut.
package accesslog

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/highball-go/highball/internal/redact"
)

const (
	maxID   = 128
	maxText = 2 << 10 // bytes of one field
	idBytes = 16
	batch   = 64 // ids made at once
)

// safeID reports whether id may go to a log and back to the client as it is.
func safeID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// ids has request ids made in advance, each also as the value of a header, so that one costs no allocation.
type ids struct {
	values [batch]string
	left   int
}

var idPool = sync.Pool{New: func() any { return new(ids) }}

// newID is 128 random bits in hex, as a header's value.
func newID() []string {
	p := idPool.Get().(*ids)
	if p.left == 0 {
		p = new(ids) // the values of the old one are still out
		var random [batch * idBytes]byte
		var digits [2 * len(random)]byte
		_, _ = rand.Read(random[:]) // never fails
		hex.Encode(digits[:], random[:])
		text := string(digits[:])
		for i := range p.values {
			p.values[i], text = text[:2*idBytes], text[2*idBytes:]
		}
		p.left = batch
	}
	p.left--
	v := p.values[p.left : p.left+1 : p.left+1]
	idPool.Put(p)
	return v
}

// plainIP is the address of remoteAddr, if it has the form that net/http gives it and no header of h can say
// anything else about the client's: then it costs nothing to know.
func plainIP(remoteAddr string, h http.Header) (string, bool) {
	for name := range h {
		if !harmless(name) {
			return "", false
		}
	}
	colon := strings.LastIndexByte(remoteAddr, ':')
	if colon <= 0 {
		return "", false
	}
	host := strings.TrimSuffix(strings.TrimPrefix(remoteAddr[:colon], "["), "]")
	if strings.IndexByte(host, '%') >= 0 {
		return "", false
	}
	if isIPv4(host) {
		return host, true
	}
	ip, err := netip.ParseAddr(host)
	return host, err == nil && ip.Is6() && !ip.Is4In6()
}

// isIPv4 is netip's answer for four plain numbers, in less time.
func isIPv4(s string) bool {
	dots, n, digits := 0, 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if digits == 0 || dots == 3 {
				return false
			}
			dots, n, digits = dots+1, 0, 0
		case c < '0' || c > '9' || digits > 0 && n == 0: // no leading zero
			return false
		default:
			if n = 10*n + int(c-'0'); n > 255 {
				return false
			}
			digits++
		}
	}
	return dots == 3 && digits > 0
}

// harmless reports whether nobody would read a client's address from the header name.
func harmless(name string) bool {
	switch name {
	case "Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control",
		"Connection", "Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Date", "Dnt", "Expect",
		"Idempotency-Key", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since",
		"Keep-Alive", "Origin", "Pragma", "Priority", "Range", "Referer", "Sec-Ch-Ua", "Sec-Ch-Ua-Mobile",
		"Sec-Ch-Ua-Platform", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-User", "Te",
		"Traceparent", "Tracestate", "Trailer", "Upgrade-Insecure-Requests", "User-Agent", "X-Api-Key",
		"X-Csrf-Token", "X-Request-Id", "X-Requested-With":
		return true
	}
	return false
}

// A line is what is known of a request when it ends.
type line struct {
	method, route, path, query, ip, userAgent, requestID, errors string

	status, size  int
	latency       time.Duration
	aborted, slow bool
}

func (l *line) level() zapcore.Level {
	switch {
	case l.status >= http.StatusInternalServerError || l.aborted:
		return zapcore.ErrorLevel
	case l.status >= http.StatusBadRequest || l.slow:
		return zapcore.WarnLevel
	}
	return zapcore.InfoLevel
}

// fields appends the line's fields to f.
func (l *line) fields(f []zap.Field) []zap.Field {
	f = append(f,
		zap.String("method", redact.Clean(l.method, maxText)),
		zap.String("route", l.route),
		zap.String("path", redact.Clean(l.path, maxText)),
		zap.String("query", redact.Clean(redact.Query(l.query), maxText)),
		zap.Int("status", l.status),
		zap.Float64("latency", l.latency.Seconds()),
		zap.Int("size", l.size),
		zap.String("ip", redact.Clean(l.ip, maxText)), // a trusted platform's header is taken as it comes
		zap.String("user_agent", redact.Clean(l.userAgent, maxText)),
		zap.String("request_id", l.requestID),
	)
	if l.errors != "" {
		f = append(f, zap.String("error", redact.Message(l.errors, maxText)))
	}
	if l.aborted {
		f = append(f, zap.Bool("aborted", true))
	}
	if l.slow {
		f = append(f, zap.Bool("slow", true))
	}
	return f
}

// fieldPool has slices that are written into lines. A zapcore.Core must not keep the fields it is given, and
// zap's own cores do not.
var fieldPool = sync.Pool{New: func() any {
	f := make([]zap.Field, 0, 20)
	return &f
}}
