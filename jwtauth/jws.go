package jwtauth

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	maxJWS  = 1 << 20 // bytes, for VerifySignature
	maxKid  = 256     // bytes
	maxKeys = 16      // tried for one token
)

// A header is what is used of the header of a JWS.
type header struct {
	alg      algorithm
	kid, typ string
}

// verifyJWS checks form and signature of raw, a compact JWS by RFC 7515. accept, if not nil, can refuse the
// header before the signature is looked at.
func verifyJWS(ctx context.Context, keys KeySource, raw string, limit int, accept func(header) error) (payload []byte, k Key, err error) {
	if len(raw) > limit {
		return nil, Key{}, errSize
	}
	h, signed, payload, sig, err := parse(raw)
	if err != nil {
		return nil, Key{}, err
	}
	if accept != nil {
		if err := accept(h); err != nil {
			return nil, Key{}, err
		}
	}
	found, err := keys.Find(ctx, h.kid, h.alg.name)
	if err != nil {
		if errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) {
			return nil, Key{}, err
		}
		return nil, Key{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if len(found) == 0 {
		return nil, Key{}, errKey
	}
	for _, k := range found[:min(len(found), maxKeys)] {
		if k.Alg == h.alg.name && h.alg.wrong(k.Key) == "" && h.alg.verify(k.Key, signed, sig) {
			return payload, k, nil
		}
	}
	return nil, Key{}, errSignature
}

// parse takes raw apart. Base64 is strict: no padding, no line break, no bit that means nothing, so that a
// token has one form only.
func parse(raw string) (h header, signed, payload, sig []byte, err error) {
	fail := func(err error) (header, []byte, []byte, []byte, error) { return header{}, nil, nil, nil, err }
	one := strings.IndexByte(raw, '.')
	two := strings.LastIndexByte(raw, '.')
	if one < 0 || two == one || strings.IndexByte(raw[one+1:two], '.') >= 0 ||
		strings.IndexByte(raw, '\r') >= 0 || strings.IndexByte(raw, '\n') >= 0 {
		return fail(errForm)
	}
	b := []byte(raw)
	out := make([]byte, 0, base64.RawURLEncoding.DecodedLen(len(b)))
	strict := base64.RawURLEncoding.Strict()
	var parts [3][]byte
	for i, seg := range [...][]byte{b[:one], b[one+1 : two], b[two+1:]} {
		start := len(out)
		if out, err = strict.AppendDecode(out, seg); err != nil {
			return fail(errForm)
		}
		parts[i] = out[start:len(out):len(out)]
	}
	if h, err = parseHeader(parts[0]); err != nil {
		return fail(err)
	}
	return h, b[:two], parts[1], parts[2], nil
}

// parseHeader reads a JOSE header. Keys that it brings along (jwk, jku, x5c, x5u) are never used.
func parseHeader(b []byte) (h header, err error) {
	known := false
	err = object(b, func(name, value []byte) (err error) {
		switch string(name) {
		case "alg":
			if len(value) < 2 || value[0] != '"' {
				return errType
			}
			h.alg, known = algorithmOf(bytes.Trim(value, `"`))
		case "kid":
			if h.kid, err = text(value); err == nil && len(h.kid) > maxKid {
				return errSize
			}
		case "typ":
			h.typ, err = text(value)
		case "crit", "b64": // RFC 7515 section 4.1.11: not understood; b64 (RFC 7797) needs crit
			return errCrit
		}
		return err
	})
	if err == nil && !known {
		err = errAlg
	}
	return h, err
}

// sameType compares typ values as RFC 7515 section 4.1.9 says: media types, whose application/ may be left out.
func sameType(a, b string) bool {
	const prefix = "application/"
	short := func(s string) string {
		if len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) && !strings.Contains(s[len(prefix):], "/") {
			return s[len(prefix):]
		}
		return s
	}
	return strings.EqualFold(short(a), short(b))
}

// VerifySignature checks the form and the signature of a compact JWS of at most 1 MiB, whatever its payload
// is. Its errors are ErrInvalid and ErrUnavailable.
func VerifySignature(ctx context.Context, keys KeySource, raw string) (payload []byte, k Key, err error) {
	return verifyJWS(ctx, keys, raw, maxJWS, nil)
}
