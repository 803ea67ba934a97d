package session

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"
	"time"
)

const (
	idBytes       = 32
	idLen         = 43 // base64 of that
	signed        = idBytes + 5
	cookieOf      = signed + sha256.Size
	form          = 0x80 // of the byte after the id; its low bits are the highest of when the cookie was made
	fromRedistore = 0x40 // also of that byte: redistore gave the id
)

// redistore's ids are base32 of as many bytes.
var (
	stockIDs   = base32.StdEncoding.WithPadding(base32.NoPadding)
	stockIDLen = stockIDs.EncodedLen(idBytes)
)

// errCookie is for a cookie that is not ours. Why, is of no use to who made it up.
var errCookie = errors.New("session: not a cookie of ours")

// encoding has one text for one value.
var encoding = base64.RawURLEncoding.Strict()

// A ticket is what a cookie says.
type ticket struct {
	id     string
	made   time.Time // zero if the cookie was made by another codec
	newest bool      // it is signed with the first key
}

// A signer makes cookies of ids: base64url of the id, of when the cookie was made, and of the HMAC-SHA256
// of both with the name of the cookie (RFC 2104). It is a securecookie.Codec, and a tenth of the price of
// securecookie's own.
type signer struct {
	keys []sync.Pool // of *mac
}

type mac struct {
	hash.Hash
	sum  [sha256.Size]byte
	raw  [cookieOf]byte
	text [(cookieOf*8 + 5) / 6]byte // base64 of that
}

func newSigner(keys [][]byte) *signer {
	s := &signer{keys: make([]sync.Pool, len(keys))}
	for i, k := range keys {
		k = append([]byte(nil), k...)
		s.keys[i].New = func() any { return &mac{Hash: hmac.New(sha256.New, k)} }
	}
	return s
}

func newID() string {
	var raw [idBytes]byte
	_, _ = rand.Read(raw[:]) // it never fails
	return encoding.EncodeToString(raw[:])
}

// sign leaves the HMAC of the first bytes of m.raw in m.sum.
func (m *mac) sign(name string) {
	m.Reset()
	_, _ = m.Write(m.raw[:signed])
	_, _ = m.Write([]byte(name))
	m.Sum(m.sum[:0])
}

func (s *signer) encode(name, id string, now time.Time) string {
	m := s.keys[0].Get().(*mac)
	defer s.keys[0].Put(m)
	m.raw[idBytes] = form | byte(now.Unix()>>32)&^(form|fromRedistore)
	n, err := 0, error(nil)
	switch len(id) {
	case idLen:
		n, err = encoding.Decode(m.raw[:idBytes], []byte(id))
	case stockIDLen:
		m.raw[idBytes] |= fromRedistore
		n, err = stockIDs.Decode(m.raw[:idBytes], []byte(id))
	}
	if err != nil || n != idBytes {
		return "" // no id of a store
	}
	binary.BigEndian.PutUint32(m.raw[idBytes+1:], uint32(now.Unix()))
	m.sign(name)
	copy(m.raw[signed:], m.sum[:])
	return string(encoding.AppendEncode(m.text[:0], m.raw[:]))
}

func (s *signer) decode(name, value string) (t ticket, ok bool) {
	if len(value) != len(mac{}.text) {
		return t, false
	}
	for i := range s.keys {
		if t, ok = s.decodeWith(i, name, value); ok {
			return t, true
		}
	}
	return t, false
}

func (s *signer) decodeWith(i int, name, value string) (t ticket, ok bool) {
	m := s.keys[i].Get().(*mac)
	defer s.keys[i].Put(m)
	if n, err := encoding.Decode(m.raw[:], m.text[:copy(m.text[:], value)]); err != nil || n != cookieOf || m.raw[idBytes]&form == 0 {
		return t, false
	}
	m.sign(name)
	if !hmac.Equal(m.sum[:], m.raw[signed:]) {
		return t, false
	}
	seconds := int64(m.raw[idBytes]&^(form|fromRedistore))<<32 | int64(binary.BigEndian.Uint32(m.raw[idBytes+1:]))
	t = ticket{made: time.Unix(seconds, 0), newest: i == 0}
	if m.raw[idBytes]&fromRedistore != 0 {
		t.id = stockIDs.EncodeToString(m.raw[:idBytes])
	} else {
		t.id = string(encoding.AppendEncode(m.text[:0], m.raw[:idBytes]))
	}
	return t, true
}

// Encode is securecookie's.
func (s *signer) Encode(name string, value any) (string, error) {
	id, ok := value.(string)
	if v := s.encode(name, id, time.Now()); ok && v != "" {
		return v, nil
	}
	return "", fmt.Errorf("session: %T is not an id", value)
}

// Decode is securecookie's.
func (s *signer) Decode(name, value string, dst any) error {
	id, ok := dst.(*string)
	t, valid := s.decode(name, value)
	if !ok || !valid {
		return errCookie
	}
	*id = t.id
	return nil
}
