package idempotency

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// A response is what a repeat gets.
type response struct {
	status int
	header http.Header
	body   []byte
}

// A capture is what a handler has answered so far.
type capture struct {
	most   int         // bytes of the body
	before http.Header // what was set in front of the handler; of its answer are only the headers that differ

	began    bool // the headers are out
	header   http.Header
	body     []byte
	streamed bool // it cannot be had again
}

// begin takes the headers as they go out. The first call counts.
func (p *capture) begin(h http.Header) {
	if p.began {
		return
	}
	p.began = true
	p.header = ownHeaders(h, p.before)
	if strings.HasPrefix(strings.ToLower(h.Get("Content-Type")), "text/event-stream") {
		p.stream()
	}
}

// add takes a piece of the body.
func (p *capture) add(n int, appendTo func([]byte) []byte) {
	switch {
	case p.streamed:
	case len(p.body)+n > p.most:
		p.stream()
	default:
		p.body = appendTo(p.body)
	}
}

func (p *capture) stream() { p.streamed, p.body = true, nil }

// whole is false when the body is not as long as its Content-Length says.
func (p *capture) whole() bool {
	v := p.header.Get("Content-Length")
	if v == "" || p.streamed {
		return true
	}
	n, err := strconv.Atoi(v)
	return err == nil && n == len(p.body)
}

// oneTime are the headers that belong to one answer, and not to its repeats.
var oneTime = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true, "Proxy-Connection": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
	"Set-Cookie": true, "Date": true, "Age": true,
	"X-Request-Id": true, "X-Correlation-Id": true, "Traceparent": true, "Tracestate": true, "Server-Timing": true,
	"Idempotency-Replayed": true,
}

// ownHeaders are those of h that before does not have, and that a repeat may get.
func ownHeaders(h, before http.Header) http.Header {
	own := make(http.Header, len(h))
	for name, values := range h {
		if !oneTime[name] && !strings.HasPrefix(name, http.TrailerPrefix) && !slices.Equal(values, before[name]) {
			own[name] = slices.Clone(values)
		}
	}
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			own.Del(strings.TrimSpace(name))
		}
	}
	return own
}

// encode is the record of a response, after the byte isResponse and the fingerprint: status, number of headers, their
// names and values each behind its length, and the body.
func encode(fingerprint [fingerprintSize]byte, r response) []byte {
	b := make([]byte, 0, headSize+256+len(r.body))
	b = append(append(b, isResponse), fingerprint[:]...)
	b = binary.AppendUvarint(b, uint64(r.status))
	lines := 0
	for _, values := range r.header {
		lines += len(values)
	}
	b = binary.AppendUvarint(b, uint64(lines))
	for _, name := range slices.Sorted(maps.Keys(r.header)) {
		for _, v := range r.header[name] {
			b = appendText(appendText(b, name), v)
		}
	}
	return append(b, r.body...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errRecord = errors.New("idempotency: not a record of ours")

// decode reads what encode wrote.
func decode(record string) (response, error) {
	d := decoder{rest: record}
	if d.take(headSize); d.bad || record[0] != isResponse {
		return response{}, errRecord
	}
	r := response{status: int(min(d.number(), 1000)), header: make(http.Header)}
	for lines := d.number(); lines > 0 && !d.bad; lines-- {
		name, value := d.text(), d.text()
		r.header[name] = append(r.header[name], value)
	}
	if d.bad || r.status < 200 || r.status > 999 {
		return response{}, errRecord
	}
	r.body = []byte(d.rest)
	return r, nil
}

type decoder struct {
	rest string
	bad  bool
}

func (d *decoder) take(n uint64) string {
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return ""
	}
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) number() uint64 {
	head := d.rest[:min(len(d.rest), binary.MaxVarintLen64)]
	n, size := binary.Uvarint([]byte(head))
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.take(uint64(size))
	return n
}

func (d *decoder) text() string { return d.take(d.number()) }
