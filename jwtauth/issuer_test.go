package jwtauth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEveryAlgorithmIssuesAndVerifies(t *testing.T) {
	long := slices.Repeat(secret, 2)
	ec := func(c elliptic.Curve) any { k, _ := ecdsa.GenerateKey(c, rand.Reader); return k }
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	keys := map[string]any{
		"HS256": secret, "HS384": long, "HS512": long,
		"RS256": rsaKey(), "RS384": rsaKey(), "RS512": rsaKey(), "PS256": rsaKey(), "PS384": rsaKey(), "PS512": rsaKey(),
		"ES256": ec(elliptic.P256()), "ES384": ec(elliptic.P384()), "ES512": ec(elliptic.P521()), "EdDSA": ed,
	}
	for alg, key := range keys {
		k := Key{ID: "k-" + alg, Alg: alg, Key: key}
		i, err := NewIssuer(k, IssuerOptions{Issuer: "iss", Audience: "aud", Type: "at+jwt"})
		if err != nil {
			t.Fatal(err)
		}
		o := options
		o.Type = "at+jwt"
		a, err := New(source(t, k), o)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := i.Issue("bob", map[string]any{"role": "admin"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Verify(t.Context(), raw)
		if err != nil || got.Alg != alg || got.KeyID != k.ID || got.Subject != "bob" || len(got.ID) < 26 || !strings.Contains(string(got.Payload), `"role":"admin"`) {
			t.Errorf("%s: %+v, %v", alg, got, err)
		}
		// One bit of the signature, or of the payload, and it is refused.
		for _, at := range []int{len(raw) - 10, strings.IndexByte(raw, '.') + 10} {
			b := []byte(raw)
			b[at] ^= 1
			if _, err := a.Verify(t.Context(), string(b)); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s with another bit at %d: %v", alg, at, err)
			}
		}
	}
}

func TestTimesOfAnIssuedToken(t *testing.T) {
	i, _ := NewIssuer(Key{Alg: "HS256", Key: secret}, IssuerOptions{Issuer: "iss", Audience: "aud"})
	raw, err := i.issue("bob", nil, now)
	if err != nil {
		t.Fatal(err)
	}
	o := options
	o.Leeway = -1
	got, err := auth(t, o).verify(t.Context(), raw, now)
	if err != nil || !got.IssuedAt.Equal(now) || !got.Expires.Equal(now.Add(15*time.Minute)) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := auth(t, o).verify(t.Context(), raw, now.Add(15*time.Minute)); !errors.Is(err, ErrExpired) {
		t.Errorf("15 min later: %v", err)
	}
}

func TestClaimsCannotForgeRegisteredOnes(t *testing.T) {
	i, _ := NewIssuer(Key{Alg: "HS256", Key: secret}, IssuerOptions{Issuer: "iss", Audience: "aud"})
	for _, name := range []string{"iss", "sub", "aud", "iat", "exp"} {
		if raw, err := i.Issue("bob", map[string]any{name: 1}); err == nil {
			t.Errorf("%s in the claims: %s", name, raw)
		}
	}
	for _, claims := range []any{7, "text", []int{1}, func() {}, map[string]any{"nbf": "soon"}, map[string]any{"jti": 1}} {
		if raw, err := i.Issue("bob", claims); err == nil {
			t.Errorf("claims %v: %s", claims, raw)
		}
	}
	raw, err := i.Issue("bob", struct {
		Jti string `json:"jti"`
	}{"mine"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := auth(t, options).Verify(t.Context(), raw); err != nil || got.ID != "mine" {
		t.Errorf("%+v, %v; want the jti of the claims", got, err)
	}
}

func TestRotation(t *testing.T) {
	other := []byte("fedcba9876543210fedcba9876543210")
	i, _ := NewIssuer(Key{ID: "1", Alg: "HS256", Key: secret}, IssuerOptions{Issuer: "iss", Audience: "aud"})
	before, _ := i.Issue("bob", nil)
	if err := i.Rotate(Key{ID: "2", Alg: "HS256", Key: []byte("short")}); err == nil {
		t.Error("rotated to a weak key")
	}
	if err := i.Rotate(Key{ID: "2", Alg: "HS256", Key: other}); err != nil {
		t.Fatal(err)
	}
	after, _ := i.Issue("bob", nil)
	a, _ := New(source(t, Key{ID: "1", Alg: "HS256", Key: secret}, Key{ID: "2", Alg: "HS256", Key: other}), options)
	for kid, raw := range map[string]string{"1": before, "2": after} {
		if got, err := a.Verify(t.Context(), raw); err != nil || got.KeyID != kid {
			t.Errorf("%+v, %v; want it signed by %s", got, err, kid)
		}
	}
}

func TestIssuerNeedsAKeyToSignWith(t *testing.T) {
	for name, k := range map[string]Key{
		"public":    {Alg: "RS256", Key: &rsaKey().PublicKey},
		"weak":      {Alg: "HS256", Key: secret[:8]},
		"none":      {Alg: "none", Key: secret},
		"mismatch":  {Alg: "ES256", Key: rsaKey()},
		"long kid":  {ID: strings.Repeat("k", 1000), Alg: "HS256", Key: secret},
		"nil":       {Alg: "RS256"},
		"empty key": {},
	} {
		if _, err := NewIssuer(k, IssuerOptions{}); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if _, err := NewIssuer(Key{Alg: "HS256", Key: secret}, IssuerOptions{TTL: -1}); err == nil {
		t.Error("negative TTL: want an error")
	}
}
