package jwtauth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"math/big"
)

// minRSA is the least length of an RSA key in bits, RFC 7518 section 3.3.
const minRSA = 2048

// Key is one verification or signing key, bound to one algorithm: a token that names another is refused
// before its signature is looked at, which is what keeps a public key from being used as an HMAC secret.
type Key struct {
	ID  string // kid; "" fits tokens with any kid and with none
	Alg string // HS256 HS384 HS512 RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA
	Key any    // []byte, *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey; to sign: the private one
}

// A KeySource finds the keys that may have signed a token with this kid, "" for none, and alg. No key is no
// error; what keeps it from knowing is. It must be safe for concurrent use. [Auth.Verify] checks again that a
// key is of alg and strong enough.
type KeySource interface {
	Find(ctx context.Context, kid, alg string) ([]Key, error)
}

// An algorithm is one of RFC 7518 section 3, or EdDSA of RFC 8037.
type algorithm struct {
	name string
	kind byte // of the key: H, R(SA PKCS#1), P(SS), E(C), (E)d
	hash crypto.Hash
	mac  func() hash.Hash
}

func algorithmOf(name []byte) (a algorithm, ok bool) {
	switch string(name) { // no allocation
	case "HS256":
		return algorithm{"HS256", 'H', crypto.SHA256, sha256.New}, true
	case "HS384":
		return algorithm{"HS384", 'H', crypto.SHA384, sha512.New384}, true
	case "HS512":
		return algorithm{"HS512", 'H', crypto.SHA512, sha512.New}, true
	case "RS256":
		return algorithm{"RS256", 'R', crypto.SHA256, sha256.New}, true
	case "RS384":
		return algorithm{"RS384", 'R', crypto.SHA384, sha512.New384}, true
	case "RS512":
		return algorithm{"RS512", 'R', crypto.SHA512, sha512.New}, true
	case "PS256":
		return algorithm{"PS256", 'P', crypto.SHA256, sha256.New}, true
	case "PS384":
		return algorithm{"PS384", 'P', crypto.SHA384, sha512.New384}, true
	case "PS512":
		return algorithm{"PS512", 'P', crypto.SHA512, sha512.New}, true
	case "ES256":
		return algorithm{"ES256", 'E', crypto.SHA256, sha256.New}, true
	case "ES384":
		return algorithm{"ES384", 'E', crypto.SHA384, sha512.New384}, true
	case "ES512":
		return algorithm{"ES512", 'E', crypto.SHA512, sha512.New}, true
	case "EdDSA":
		return algorithm{"EdDSA", 'd', 0, nil}, true
	}
	return algorithm{}, false
}

// curve is that of an ES algorithm.
func (a algorithm) curve() elliptic.Curve {
	switch a.name {
	case "ES256":
		return elliptic.P256()
	case "ES384":
		return elliptic.P384()
	}
	return elliptic.P521()
}

// public is k with the public half of a private key.
func (k Key) public() Key {
	switch p := k.Key.(type) {
	case *rsa.PrivateKey:
		if p != nil {
			k.Key = &p.PublicKey
		}
	case *ecdsa.PrivateKey:
		if p != nil {
			k.Key = &p.PublicKey
		}
	case ed25519.PrivateKey:
		if len(p) == ed25519.PrivateKeySize {
			k.Key = p.Public()
		}
	}
	return k
}

// check reports what is wrong with a key that is to verify.
func (k Key) check() (algorithm, error) {
	a, ok := algorithmOf([]byte(k.Alg))
	if !ok {
		return a, fmt.Errorf("jwtauth: key %q: unknown algorithm %q", k.ID, k.Alg)
	}
	if why := a.wrong(k.Key); why != "" {
		return a, fmt.Errorf("jwtauth: key %q for %s: %s", k.ID, k.Alg, why)
	}
	return a, nil
}

// wrong says why key may not verify for a, "" if it may.
func (a algorithm) wrong(key any) string {
	switch p := key.(type) {
	case []byte:
		if a.kind == 'H' {
			return a.wrongSecret(p)
		}
	case *rsa.PublicKey:
		if a.kind == 'R' || a.kind == 'P' {
			return wrongRSA(p)
		}
	case *ecdsa.PublicKey:
		if a.kind != 'E' {
			break
		}
		if p == nil || p.Curve != a.curve() {
			return "not on the curve of the algorithm"
		}
		return ""
	case ed25519.PublicKey:
		if a.kind != 'd' {
			break
		}
		if len(p) != ed25519.PublicKeySize {
			return "of the wrong length"
		}
		return ""
	}
	return fmt.Sprintf("a %T is no key of this algorithm", key)
}

func (a algorithm) wrongSecret(p []byte) string {
	switch {
	case len(p) < a.hash.Size():
		return fmt.Sprintf("%d bytes, at least %d are needed (RFC 7518 section 3.2)", len(p), a.hash.Size())
	case bytes.Count(p, p[:1]) == len(p):
		return "all bytes are the same"
	}
	return ""
}

func wrongRSA(p *rsa.PublicKey) string {
	switch {
	case p == nil || p.N == nil || p.N.BitLen() < minRSA:
		return fmt.Sprintf("less than %d bits", minRSA)
	case p.E < 3 || p.E%2 == 0:
		return "the exponent is not odd and 3 at least"
	}
	return ""
}

// verify checks sig over signed with a key of a.
func (a algorithm) verify(key any, signed, sig []byte) bool {
	if a.kind == 'd' {
		return ed25519.Verify(key.(ed25519.PublicKey), signed, sig)
	}
	var buf [64]byte
	if a.kind == 'H' {
		m := hmac.New(a.mac, key.([]byte))
		m.Write(signed)
		return hmac.Equal(m.Sum(buf[:0]), sig)
	}
	h := a.mac()
	h.Write(signed)
	digest := h.Sum(buf[:0])
	switch a.kind {
	case 'R':
		return rsa.VerifyPKCS1v15(key.(*rsa.PublicKey), a.hash, digest, sig) == nil
	case 'P':
		o := rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: a.hash} // RFC 7518 section 3.5
		return rsa.VerifyPSS(key.(*rsa.PublicKey), a.hash, digest, sig, &o) == nil
	}
	size := (a.curve().Params().BitSize + 7) / 8
	if len(sig) != 2*size {
		return false
	}
	r, s := new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])
	return ecdsa.Verify(key.(*ecdsa.PublicKey), digest, r, s)
}

// PublicKey is a key to verify with, checked: an error says what is wrong with it. A private key is reduced
// to its public half.
func PublicKey(kid, alg string, k crypto.PublicKey) (Key, error) {
	key := Key{ID: kid, Alg: alg, Key: k}.public()
	if _, ok := k.([]byte); ok {
		return Key{}, errors.New("jwtauth: a secret is no public key, use HMAC or Static")
	}
	if _, err := key.check(); err != nil {
		return Key{}, err
	}
	return key, nil
}

// HMAC is HS256 with the current key, and at most 15 earlier ones accepted as long as their tokens live; each at
// least 32 random bytes.
func HMAC(current []byte, previous ...[]byte) (KeySource, error) {
	keys := []Key{{Alg: "HS256", Key: current}}
	for _, p := range previous {
		keys = append(keys, Key{Alg: "HS256", Key: p})
	}
	return Static(keys...)
}

// Static is a source of these keys. Weak keys are an error, and so are two with the same ID and algorithm, and more than
// 16 without an ID, for no token is tried with more.
func Static(keys ...Key) (KeySource, error) {
	if len(keys) == 0 {
		return nil, errors.New("jwtauth: no keys")
	}
	all, anonymous := make(static, 0, len(keys)), 0
	for _, k := range keys {
		if k.ID == "" {
			anonymous++
		}
		k = k.public()
		if secret, ok := k.Key.([]byte); ok {
			k.Key = bytes.Clone(secret)
		}
		if _, err := k.check(); err != nil {
			return nil, err
		}
		for _, other := range all {
			if k.ID != "" && k.ID == other.ID && k.Alg == other.Alg {
				return nil, fmt.Errorf("jwtauth: two keys %q for %s", k.ID, k.Alg)
			}
		}
		all = append(all, k)
	}
	if anonymous > maxKeys {
		return nil, fmt.Errorf("jwtauth: %d keys without an ID, %d are the most: give them IDs, or drop those whose tokens have expired", anonymous, maxKeys)
	}
	return all, nil
}

type static []Key

func (s static) Find(_ context.Context, kid, alg string) ([]Key, error) {
	return match(s, kid, alg), nil
}

// match is those of keys that fit kid and alg.
func match(keys []Key, kid, alg string) []Key {
	fits := func(k *Key) bool { return k.Alg == alg && (kid == "" || k.ID == "" || k.ID == kid) }
	first := -1
	for i := range keys {
		if !fits(&keys[i]) {
			continue
		}
		if first >= 0 { // more than one
			var all []Key
			for j := first; j < len(keys); j++ {
				if fits(&keys[j]) {
					all = append(all, keys[j])
				}
			}
			return all
		}
		first = i
	}
	if first < 0 {
		return nil
	}
	return keys[first : first+1 : first+1]
}
