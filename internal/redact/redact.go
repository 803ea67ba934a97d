// Package redact makes text that somebody else chose fit for a log line: secrets masked by their names,
// nothing that starts a line or colours a terminal, and never longer than the caller allows.
package redact

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	mask     = "***"
	ellipsis = "…"
	longest  = 128 // bytes of a decoded name that are looked at
)

// Clean returns s with everything unprintable (control characters, C1 and bidirectional controls, line
// separators, invalid UTF-8) escaped as Go would, cut to about limit bytes. It allocates only when there
// is something to change.
func Clean(s string, limit int) string {
	if len(s) <= limit && isPlain(s) {
		return s
	}
	b := make([]byte, 0, min(len(s), limit)+len(ellipsis))
	for i := 0; i < len(s); {
		if len(b) >= limit {
			return string(b) + ellipsis
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'x', hex[s[i]>>4], hex[s[i]&15])
		case strconv.IsPrint(r):
			b = append(b, s[i:i+n]...)
		default:
			q := strconv.AppendQuoteRuneToASCII(nil, r)
			b = append(b, q[1:len(q)-1]...)
		}
		i += n
	}
	return string(b)
}

func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Query masks the values of secrets in a raw query, by the names that [Secret] knows. Order and encoding
// of everything else stay as they are, and a query without secrets is returned as it is.
func Query(raw string) string { return maskIn(raw, &inQuery) }

// Text masks name=value pairs of secrets in free text, such as the URL within an error. What stands in front of
// a name does not hide it.
func Text(s string) string { return maskIn(s, &inText) }

// Message is the beginning of a free text that is fit for a line: at most about limit bytes of it, with secrets
// masked as Text does and the rest as Clean leaves it. Masking comes first: once a line break is \n, it is a part
// of the name that follows it.
func Message(s string, limit int) string {
	if len(s) > limit {
		s, limit = s[:limit]+ellipsis, limit+len(ellipsis)
	}
	return Clean(Text(s), limit)
}

// What ends a pair. In free text = does too, for a value may hold another pair: x=token=abc.
var (
	inQuery = [256]bool{'&': true, ';': true}
	inText  = [256]bool{
		'&': true, ';': true, '?': true, '#': true, ',': true, '|': true, '{': true, '}': true, ' ': true,
		'\t': true, '\r': true, '\n': true, '"': true, '\'': true, '`': true, '<': true, '>': true, '(': true,
		')': true, '=': true,
	}
)

func maskIn(s string, ends *[256]bool) string {
	var b strings.Builder
	done, start := 0, 0 // of s: up to done it is in b, at start a name begins
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			if ends[s[i]] {
				start = i + 1
			}
			continue
		}
		name, value := s[start:i], i+1
		start = value
		secret := Secret(name)
		if ends['='] { // in free text
			if secret = secret || secretAfter(name); !secret {
				continue
			}
		}
		for i = value; i < len(s) && (!ends[s[i]] || s[i] == '='); i++ {
		}
		if i > value && secret {
			if done == 0 {
				b.Grow(len(s))
			}
			b.WriteString(s[done:value])
			b.WriteString(mask)
			done = i
		}
		start = i + 1
	}
	if done == 0 {
		return s
	}
	b.WriteString(s[done:])
	return b.String()
}

// secretAfter reports whether text ends with the name of a secret after a character that is in no name, such as
// a colon. After a backslash the name may begin one later, for the text may be quoted: "\ntoken=abc".
func secretAfter(text string) bool {
	i := strings.LastIndexFunc(text, func(r rune) bool {
		return r < utf8.RuneSelf && !strings.ContainsRune("_-.[]%", r) &&
			(r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
	if i < 0 {
		return false
	}
	name := text[i+1:]
	return Secret(name) || text[i] == '\\' && name != "" && Secret(name[1:])
}

// Secret reports whether name is that of a secret: token, access_token, refresh_token, id_token, code,
// password, passwd, secret, client_secret, api_key, apikey, key, sig or signature; in any case, with or
// without _ and -, percent-encoded or not, and also as a part of a name like user[password].
func Secret(name string) bool {
	var buf [longest]byte
	n := 0
	for i := 0; i < len(name) && n < longest; i++ {
		c := name[i]
		if c == '%' && i+2 < len(name) {
			hi, ok1 := unhex(name[i+1])
			lo, ok2 := unhex(name[i+2])
			if ok1 && ok2 {
				c = hi<<4 | lo
				i += 2
			}
		}
		switch {
		case c == '_' || c == '-':
		case c == '[' || c == ']' || c == '.':
			if known(buf[:n]) {
				return true
			}
			n = 0
		case 'A' <= c && c <= 'Z':
			buf[n] = c + 'a' - 'A'
			n++
		default:
			buf[n] = c
			n++
		}
	}
	return known(buf[:n])
}

func known(name []byte) bool {
	switch string(name) {
	case "token", "accesstoken", "refreshtoken", "idtoken", "code", "password", "passwd", "secret",
		"clientsecret", "apikey", "key", "sig", "signature":
		return true
	}
	return false
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
