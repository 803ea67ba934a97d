package jwtauth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// jwk is a JSON Web Key, RFC 7517 section 4 and RFC 7518 section 6.
type jwk struct {
	Kty string   `json:"kty"`
	Kid string   `json:"kid"`
	Alg string   `json:"alg"`
	Use string   `json:"use"`
	Ops []string `json:"key_ops"`
	Crv string   `json:"crv"`
	N   string   `json:"n"`
	E   string   `json:"e"`
	X   string   `json:"x"`
	Y   string   `json:"y"`
	D   string   `json:"d"`
}

// parseJWKS reads a JWK Set. A key in it that cannot be used here, another kind, a weak one or one for
// encryption, is left out, as RFC 7517 section 5 asks for; why has the reasons if none is left.
func parseJWKS(b []byte) (keys []Key, why error) {
	if err := object(b, func(_, _ []byte) error { return nil }); err != nil {
		return nil, fmt.Errorf("jwtauth: not a JWK Set: %s", strings.TrimPrefix(err.Error(), "jwtauth: "))
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("jwtauth: not a JWK Set: %w", err)
	}
	var errs []error
	for _, raw := range set.Keys {
		var j jwk
		err := json.Unmarshal(raw, &j)
		if err == nil {
			var k Key
			if k, err = j.key(); err == nil {
				keys = append(keys, k)
				continue
			}
		}
		errs = append(errs, err)
	}
	if len(keys) == 0 {
		return nil, errors.Join(append([]error{errors.New("jwtauth: no usable key in the JWK Set")}, errs...)...)
	}
	return keys, nil
}

// key is the verification key that j is, bound to its alg, or to the one that its kind says: RS256 for RSA.
func (j *jwk) key() (Key, error) {
	switch {
	case j.Use != "" && j.Use != "sig":
		return Key{}, fmt.Errorf("jwtauth: key %q is not for signatures", j.Kid)
	case len(j.Ops) > 0 && !slices.Contains(j.Ops, "verify"):
		return Key{}, fmt.Errorf("jwtauth: key %q is not to verify with", j.Kid)
	case j.D != "":
		return Key{}, fmt.Errorf("jwtauth: key %q is private and published", j.Kid)
	case len(j.Kid) > maxKid:
		return Key{}, errors.New("jwtauth: a kid is too long")
	}
	switch j.Kty {
	case "RSA":
		n, err1 := segment(j.N)
		e, err2 := segment(j.E)
		if err1 != nil || err2 != nil || len(e) > 4 {
			return Key{}, fmt.Errorf("jwtauth: key %q: n or e is wrong", j.Kid)
		}
		pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
		return PublicKey(j.Kid, j.algOr("RS256"), pub)
	case "EC":
		return j.ec()
	case "OKP":
		x, err := segment(j.X)
		if err != nil || j.Crv != "Ed25519" {
			return Key{}, fmt.Errorf("jwtauth: key %q is not on Ed25519", j.Kid)
		}
		return PublicKey(j.Kid, j.algOr("EdDSA"), ed25519.PublicKey(x))
	}
	return Key{}, fmt.Errorf("jwtauth: key %q: kty %q", j.Kid, j.Kty) // oct is no key to publish
}

func (j *jwk) ec() (Key, error) {
	var curve elliptic.Curve
	var alg string
	switch j.Crv {
	case "P-256":
		curve, alg = elliptic.P256(), "ES256"
	case "P-384":
		curve, alg = elliptic.P384(), "ES384"
	case "P-521":
		curve, alg = elliptic.P521(), "ES512"
	default:
		return Key{}, fmt.Errorf("jwtauth: key %q: curve %q", j.Kid, j.Crv)
	}
	x, err1 := segment(j.X)
	y, err2 := segment(j.Y)
	size := (curve.Params().BitSize + 7) / 8
	if err1 != nil || err2 != nil || len(x) != size || len(y) != size {
		return Key{}, fmt.Errorf("jwtauth: key %q: x or y is wrong", j.Kid)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y)) // on the curve, too
	if err != nil {
		return Key{}, fmt.Errorf("jwtauth: key %q: %w", j.Kid, err)
	}
	return PublicKey(j.Kid, j.algOr(alg), pub)
}

func (j *jwk) algOr(def string) string {
	if j.Alg != "" {
		return j.Alg
	}
	return def
}

func segment(s string) ([]byte, error) {
	if s == "" || strings.ContainsAny(s, "\r\n") {
		return nil, errForm
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}
