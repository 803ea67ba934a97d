package idempotency

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
)

// maxKey is how many bytes a key may have.
const maxKey = 255

// parseKey reads the value of an Idempotency-Key: a String of RFC 9651 section 3.3.3, whose parameters mean nothing
// here, or the bare text that most clients send, of visible ASCII but for the quote and the comma. Both name the same key.
func parseKey(v string) (key string, ok bool) {
	v = strings.Trim(v, " \t")
	if quoted, ok := strings.CutPrefix(v, `"`); ok {
		return parseString(quoted)
	}
	return v, v != "" && len(v) <= maxKey && strings.IndexFunc(v, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '"' || r == ','
	}) < 0
}

// parseString reads what follows the first quote.
func parseString(v string) (key string, ok bool) {
	var b []byte
	for i := 0; i < len(v) && len(b) <= maxKey; i++ {
		c := v[i]
		if c == '"' {
			return string(b), len(b) > 0 && isParameters(v[i+1:])
		}
		if c < ' ' || c > '~' {
			return "", false
		}
		if c == '\\' {
			if i++; i == len(v) || v[i] != '"' && v[i] != '\\' {
				return "", false
			}
		}
		b = append(b, v[i])
	}
	return "", false
}

// isParameters is no parser: it makes sure that nothing else follows a String, such as a second key.
func isParameters(v string) bool {
	return v == "" || v[0] == ';' && len(v) <= maxKey && strings.IndexFunc(v, func(r rune) bool {
		return r < ' ' || r > '~' || r == ','
	}) < 0
}

// nameOf is a key's name in Redis: no client can make it that of another scope.
func (s *Store) nameOf(scope, key string) string {
	sum := hash([]byte(scope), []byte(key))
	return s.o.Prefix + base64.RawURLEncoding.EncodeToString(sum[:])
}

// fingerprintOf tells a repeat from another request.
func fingerprintOf(r *http.Request, body []byte) [fingerprintSize]byte {
	return hash([]byte(r.Method), []byte(r.URL.EscapedPath()), []byte(r.URL.RawQuery), []byte(r.Header.Get("Content-Type")), body)
}

// hash is SHA-256 of the parts, each behind its length.
func hash(parts ...[]byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	var length []byte
	for _, p := range parts {
		length = binary.BigEndian.AppendUint64(length[:0], uint64(len(p)))
		_, _ = h.Write(length)
		_, _ = h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}
