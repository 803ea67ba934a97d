package jwtauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// IssuerOptions configures [NewIssuer].
type IssuerOptions struct {
	// Issuer and Audience are the iss and the aud of the tokens. "": none.
	Issuer, Audience string
	// TTL is how long tokens live. Zero: 15 min.
	TTL time.Duration
	// Type is the typ of the tokens, such as at+jwt. "": JWT.
	Type string
}

// Issuer issues tokens. It is safe for concurrent use.
type Issuer struct {
	o      IssuerOptions
	signer atomic.Pointer[signer]
}

type signer struct {
	alg    algorithm
	key    any
	header string // encoded, with the dot
}

// NewIssuer returns an Issuer that signs with key: a secret or a private key, as strong as one to verify has to
// be.
func NewIssuer(key Key, o IssuerOptions) (*Issuer, error) {
	if o.TTL < 0 {
		return nil, errors.New("jwtauth: IssuerOptions.TTL cannot be negative")
	}
	if o.TTL == 0 {
		o.TTL = 15 * time.Minute
	}
	if o.Type == "" {
		o.Type = "JWT"
	}
	i := &Issuer{o: o}
	if err := i.Rotate(key); err != nil {
		return nil, err
	}
	return i, nil
}

// Rotate has new tokens signed with key. Whoever verifies must know it before, and its predecessor for a TTL
// after. After an error the old key goes on to sign.
func (i *Issuer) Rotate(key Key) error {
	switch key.Key.(type) {
	case []byte, *rsa.PrivateKey, *ecdsa.PrivateKey, ed25519.PrivateKey:
	default:
		return fmt.Errorf("jwtauth: key %q: a %T cannot sign", key.ID, key.Key)
	}
	if secret, ok := key.Key.([]byte); ok {
		key.Key = append([]byte(nil), secret...)
	}
	alg, err := key.public().check()
	if err != nil {
		return err
	}
	if len(key.ID) > maxKid {
		return errors.New("jwtauth: the kid is too long")
	}
	h, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Kid string `json:"kid,omitempty"`
		Typ string `json:"typ"`
	}{key.Alg, key.ID, i.o.Type})
	if err != nil {
		return err
	}
	i.signer.Store(&signer{alg, key.Key, base64.RawURLEncoding.EncodeToString(h) + "."})
	return nil
}

// Issue returns a token for subject with claims, a struct or map, or nil, beside the registered ones: iss, sub,
// aud, iat, exp and a random jti. claims may bring a jti and an nbf of its own; any of the others is an error.
func (i *Issuer) Issue(subject string, claims any) (string, error) {
	return i.issue(subject, claims, time.Now())
}

func (i *Issuer) issue(subject string, claims any, now time.Time) (string, error) {
	more, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("jwtauth: claims: %w", err)
	}
	if string(more) == "null" {
		more = []byte("{}")
	}
	jti := rand.Text()
	err = object(more, func(name, value []byte) (err error) {
		switch string(name) {
		case "iss", "sub", "aud", "iat", "exp":
			return fmt.Errorf("jwtauth: claims cannot bring %s", name)
		case "jti":
			jti = ""
			_, err = text(value)
		case "nbf":
			_, err = date(value)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("jwtauth: claims do not make a token: %w", err)
	}
	own, err := json.Marshal(struct {
		Iss string `json:"iss,omitempty"`
		Sub string `json:"sub,omitempty"`
		Aud string `json:"aud,omitempty"`
		Iat int64  `json:"iat"`
		Exp int64  `json:"exp"`
		Jti string `json:"jti,omitempty"`
	}{i.o.Issuer, subject, i.o.Audience, now.Unix(), now.Add(i.o.TTL).Unix(), jti})
	if err != nil {
		return "", err
	}
	if len(more) > len("{}") {
		own = append(append(own[:len(own)-1], ','), more[1:]...)
	}
	s := i.signer.Load()
	signed := s.header + base64.RawURLEncoding.EncodeToString(own)
	sig, err := s.alg.sign(s.key, []byte(signed))
	if err != nil {
		return "", fmt.Errorf("jwtauth: %w", err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// sign signs with a key that Rotate has let in.
func (a algorithm) sign(key any, signed []byte) ([]byte, error) {
	if secret, ok := key.([]byte); ok {
		m := hmac.New(a.mac, secret)
		m.Write(signed)
		return m.Sum(nil), nil
	}
	if p, ok := key.(ed25519.PrivateKey); ok {
		return ed25519.Sign(p, signed), nil
	}
	h := a.mac()
	h.Write(signed)
	digest := h.Sum(nil)
	if p, ok := key.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, p, digest)
		if err != nil {
			return nil, err
		}
		size := (p.Curve.Params().BitSize + 7) / 8
		sig := make([]byte, 2*size)
		r.FillBytes(sig[:size])
		s.FillBytes(sig[size:])
		return sig, nil
	}
	var o crypto.SignerOpts = a.hash
	if a.kind == 'P' {
		o = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: a.hash}
	}
	return key.(*rsa.PrivateKey).Sign(rand.Reader, digest, o)
}
