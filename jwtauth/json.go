package jwtauth

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// maxDepth is how deep JSON may nest.
const maxDepth = 32

// A scanner reads JSON as strictly as RFC 7493 (I-JSON) asks for: no name twice in one object at any depth,
// also when it is escaped another way, no broken UTF-8 and no lone surrogate. encoding/json takes the last of
// two members, and another library the first: what one checks the other may not use.
type scanner struct {
	b     []byte
	i     int
	depth int
}

// object calls f with each member of the object that b is, and nothing but it: the unescaped name, and the
// value as it stands.
func object(b []byte, f func(name, value []byte) error) error {
	s := scanner{b: b}
	s.space()
	if s.i == len(b) || b[s.i] != '{' {
		return errJSON
	}
	if err := s.object(f); err != nil {
		return err
	}
	if s.space(); s.i != len(b) {
		return errJSON
	}
	return nil
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

// eat skips space and then c, if it is there.
func (s *scanner) eat(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

func (s *scanner) object(f func(name, value []byte) error) error {
	if s.depth++; s.depth > maxDepth || !s.eat('{') {
		return errJSON
	}
	defer func() { s.depth-- }()
	if s.eat('}') {
		return nil
	}
	var seen names
	for {
		s.space()
		name, ok := s.str()
		if !ok {
			return errJSON
		}
		if !seen.add(name) {
			return errTwice
		}
		if !s.eat(':') {
			return errJSON
		}
		s.space()
		start := s.i
		if err := s.value(); err != nil {
			return err
		}
		if f != nil {
			if err := f(name, s.b[start:s.i]); err != nil {
				return err
			}
		}
		if s.eat('}') {
			return nil
		}
		if !s.eat(',') {
			return errJSON
		}
	}
}

// names is a set that is cheap, on the stack, while it is small, and never slow.
type names struct {
	few  [16][]byte
	n    int // of few
	many map[string]struct{}
}

func (n *names) add(name []byte) bool {
	if n.many != nil {
		if _, ok := n.many[string(name)]; ok {
			return false
		}
		n.many[string(name)] = struct{}{}
		return true
	}
	for _, other := range n.few[:n.n] {
		if bytes.Equal(other, name) {
			return false
		}
	}
	n.few[n.n] = name
	if n.n++; n.n == len(n.few) {
		n.many = make(map[string]struct{}, 2*n.n)
		for _, other := range n.few {
			n.many[string(other)] = struct{}{}
		}
	}
	return true
}

func (s *scanner) array() error {
	if s.depth++; s.depth > maxDepth || !s.eat('[') {
		return errJSON
	}
	defer func() { s.depth-- }()
	if s.eat(']') {
		return nil
	}
	for {
		s.space()
		if err := s.value(); err != nil {
			return err
		}
		if s.eat(']') {
			return nil
		}
		if !s.eat(',') {
			return errJSON
		}
	}
}

func (s *scanner) value() error {
	if s.i == len(s.b) {
		return errJSON
	}
	ok := false
	switch s.b[s.i] {
	case '{':
		return s.object(nil)
	case '[':
		return s.array()
	case '"':
		_, ok = s.str()
	case 't':
		ok = s.word("true")
	case 'f':
		ok = s.word("false")
	case 'n':
		ok = s.word("null")
	default:
		ok = s.number()
	}
	if !ok {
		return errJSON
	}
	return nil
}

func (s *scanner) word(w string) bool {
	if !bytes.HasPrefix(s.b[s.i:], []byte(w)) {
		return false
	}
	s.i += len(w)
	return true
}

func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}

func (s *scanner) peek(chars string) bool {
	return s.i < len(s.b) && bytes.IndexByte([]byte(chars), s.b[s.i]) >= 0
}

func (s *scanner) number() bool {
	if s.peek("-") {
		s.i++
	}
	if s.peek("0") {
		s.i++
	} else if !s.digits() {
		return false
	}
	if s.peek(".") {
		s.i++
		if !s.digits() {
			return false
		}
	}
	if s.peek("eE") {
		s.i++
		if s.peek("+-") {
			s.i++
		}
		return s.digits()
	}
	return true
}

// str reads a string and returns it unescaped.
func (s *scanner) str() ([]byte, bool) {
	if s.i == len(s.b) || s.b[s.i] != '"' {
		return nil, false
	}
	start, escaped := s.i, false
	for s.i++; s.i < len(s.b); {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			if !escaped {
				return s.b[start+1 : s.i-1], true
			}
			var text string
			err := json.Unmarshal(s.b[start:s.i], &text)
			return []byte(text), err == nil
		case c == '\\':
			escaped = true
			if !s.escape() {
				return nil, false
			}
		case c < ' ':
			return nil, false
		case c < utf8.RuneSelf:
			s.i++
		default:
			r, n := utf8.DecodeRune(s.b[s.i:])
			if r == utf8.RuneError && n == 1 {
				return nil, false
			}
			s.i += n
		}
	}
	return nil, false
}

// escape skips one escape, or the two of a surrogate pair.
func (s *scanner) escape() bool {
	rest := s.b[s.i+1:]
	if len(rest) == 0 {
		return false
	}
	if rest[0] != 'u' {
		s.i += 2
		return bytes.IndexByte([]byte(`"\/bfnrt`), rest[0]) >= 0
	}
	r, ok := hex4(rest[1:])
	s.i += 6
	switch {
	case !ok || 0xdc00 <= r && r < 0xe000:
		return false
	case 0xd800 <= r && r < 0xdc00:
		if !bytes.HasPrefix(s.b[s.i:], []byte(`\u`)) {
			return false
		}
		low, ok := hex4(s.b[s.i+2:])
		s.i += 6
		return ok && 0xdc00 <= low && low < 0xe000
	}
	return true
}

func hex4(b []byte) (v int, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | int(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			v = v<<4 | int(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

// text is the string that value is.
func text(value []byte) (string, error) {
	s := scanner{b: value}
	b, ok := s.str()
	if !ok {
		return "", errType
	}
	return string(b), nil
}

// texts is the string, or the array of strings, that value is.
func texts(value []byte) ([]string, error) {
	if value[0] == '"' {
		one, err := text(value)
		return []string{one}, err
	}
	s := scanner{b: value}
	if !s.eat('[') {
		return nil, errType
	}
	if s.eat(']') {
		return nil, nil
	}
	var all []string
	for {
		s.space()
		one, ok := s.str()
		if !ok {
			return nil, errType
		}
		all = append(all, string(one))
		if !s.eat(',') {
			return all, nil // the scanner has seen that it ends
		}
	}
}
