package jwtauth

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/internal/memnet"
)

// rsaJWK is a JWK of rsaKey with more members.
func rsaJWK(kid, more string) string {
	pub := &rsaKey().PublicKey
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":%q%s}`, kid, b64(pub.N.Bytes()), b64(big.NewInt(int64(pub.E)).Bytes()), more)
}

func set(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

// idp publishes keys in a bubble.
type idp struct {
	body   atomic.Value // string
	status atomic.Int64
	hang   atomic.Bool
	n      atomic.Int64 // fetches
}

func (p *idp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.n.Add(1)
	if p.hang.Load() {
		<-r.Context().Done()
		return
	}
	w.WriteHeader(int(p.status.Load()))
	_, _ = w.Write([]byte(p.body.Load().(string)))
}

// published runs f with a KeySet of keys "a" that has not fetched yet.
func published(t *testing.T, o JWKSOptions, f func(p *idp, start func() *KeySet)) {
	t.Helper()
	rsaKey()
	synctest.Test(t, func(t *testing.T) {
		p := &idp{}
		p.body.Store(set(rsaJWK("a", "")))
		p.status.Store(http.StatusOK)
		o.AllowHTTP, o.Transport = true, memnet.Serve(t, p)
		f(p, func() *KeySet {
			k := JWKS("http://idp/jwks", o)
			t.Cleanup(func() { _ = k.Close() })
			return k
		})
	})
}

// forever is a context that bubbles of t can share.
func forever(t *testing.T) context.Context {
	t.Helper()
	return context.WithoutCancel(t.Context())
}

// find wants n keys for kid, or the error.
func find(t *testing.T, k *KeySet, kid string, n int, want error) {
	t.Helper()
	got, err := k.Find(forever(t), kid, "RS256")
	if len(got) != n || !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("Find(%q) = %d keys, %v; want %d, %v", kid, len(got), err, n, want)
	}
}

func TestFirstRequestsWaitForTheFirstFetch(t *testing.T) {
	published(t, JWKSOptions{}, func(p *idp, start func() *KeySet) {
		k := start()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { find(t, k, "a", 1, nil) })
		}
		all.Wait()
		find(t, k, "", 1, nil)
		if got := p.n.Load(); got != 1 {
			t.Errorf("%d fetches, want 1", got)
		}
		if err := k.Check(forever(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestOneFetchForAnyNumberOfUnknownKidsPerCooldown(t *testing.T) {
	published(t, JWKSOptions{Cooldown: 30 * time.Second}, func(p *idp, start func() *KeySet) {
		k := start()
		find(t, k, "a", 1, nil)
		flood := func() {
			var all sync.WaitGroup
			for i := range 1000 {
				all.Go(func() { find(t, k, fmt.Sprint("forged", i), 0, nil) })
			}
			all.Wait()
		}
		flood()
		flood()
		if got := p.n.Load(); got != 2 {
			t.Errorf("%d fetches after the flood, want the first and one more", got)
		}
		time.Sleep(30 * time.Second)
		flood()
		if got := p.n.Load(); got != 3 {
			t.Errorf("%d fetches after the cooldown, want 3", got)
		}
		p.body.Store(set(rsaJWK("b", "")))
		time.Sleep(30 * time.Second)
		find(t, k, "b", 1, nil) // the first request after a rotation
		find(t, k, "a", 0, nil)
	})
}

func TestKnownKidNeverWaits(t *testing.T) {
	published(t, JWKSOptions{}, func(p *idp, start func() *KeySet) {
		k := start()
		find(t, k, "a", 1, nil)
		p.hang.Store(true)
		waiting := make(chan struct{})
		go func() { find(t, k, "forged", 0, ErrUnavailable); close(waiting) }()
		synctest.Wait()
		begin := time.Now()
		find(t, k, "a", 1, nil)
		if _, err := k.Find(forever(t), "a", "ES256"); err != nil { // known, of another algorithm
			t.Error(err)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("a known kid waited %v", took)
		}
		<-waiting
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("the unknown kid waited %v, want the timeout of 5s", took)
		}
	})
}

func TestRefreshInTheBackground(t *testing.T) {
	published(t, JWKSOptions{Refresh: 10 * time.Minute}, func(p *idp, start func() *KeySet) {
		k := start()
		find(t, k, "a", 1, nil)
		p.body.Store(set(rsaJWK("b", "")))
		time.Sleep(11 * time.Minute)
		if got := p.n.Load(); got != 2 {
			t.Errorf("%d fetches after 11 min, want 2", got)
		}
		find(t, k, "b", 1, nil)
		if got := p.n.Load(); got != 2 {
			t.Errorf("%d fetches, want none more", got)
		}
	})
}

func TestLastGoodKeysOutliveADeadEndpoint(t *testing.T) {
	for name, spoil := range map[string]func(p *idp){
		"500":          func(p *idp) { p.status.Store(500) },
		"no JSON":      func(p *idp) { p.body.Store("<html>") },
		"no keys":      func(p *idp) { p.body.Store(set()) },
		"no good keys": func(p *idp) { p.body.Store(set(`{"kty":"oct","kid":"a","k":"AAAA"}`)) },
		"too long":     func(p *idp) { p.body.Store(set(rsaJWK("a", `,"x5c":"`+strings.Repeat("x", 4<<10)+`"`))) },
		"twice":        func(p *idp) { p.body.Store(`{"keys":[],"keys":[` + rsaJWK("b", "") + `]}`) },
	} {
		t.Run(name, func(t *testing.T) {
			published(t, JWKSOptions{MaxBytes: 4 << 10}, func(p *idp, start func() *KeySet) {
				k := start()
				find(t, k, "a", 1, nil)
				begin := time.Now()
				spoil(p)
				time.Sleep(20 * time.Minute)
				if err := k.Check(forever(t)); err == nil || errors.Is(err, ErrUnavailable) {
					t.Errorf("Check = %v, want an error that keys are old", err)
				}
				time.Sleep(23*time.Hour - time.Since(begin))
				find(t, k, "a", 1, nil)
				find(t, k, "new", 0, ErrUnavailable) // 503 and not 401: it may be a new key
				time.Sleep(24*time.Hour + time.Second - time.Since(begin))
				find(t, k, "a", 0, ErrUnavailable)
				find(t, k, "", 0, ErrUnavailable)
				if err := k.Check(forever(t)); !errors.Is(err, ErrUnavailable) {
					t.Errorf("Check = %v, want ErrUnavailable", err)
				}
				if n := p.n.Load(); n > 24*60*60/30+10 {
					t.Errorf("%d fetches in a day, more than one in 30 s", n)
				}
				p.status.Store(200)
				p.body.Store(set(rsaJWK("a", "")))
				time.Sleep(31 * time.Second)
				find(t, k, "a", 1, nil)
				if err := k.Check(forever(t)); err != nil {
					t.Errorf("Check = %v, want nil", err)
				}
			})
		})
	}
}

func TestEndpointDeadAtBootComesUpSoon(t *testing.T) {
	published(t, JWKSOptions{}, func(p *idp, start func() *KeySet) {
		p.status.Store(503)
		k := start()
		find(t, k, "a", 0, ErrUnavailable)
		if err := k.Check(forever(t)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Check = %v, want ErrUnavailable", err)
		}
		p.status.Store(200)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := p.n.Load(); n != 2 {
			t.Errorf("%d fetches after a second, want a second one that nobody asked for", n)
		}
		find(t, k, "a", 1, nil)
	})
}

func TestFindEndsWithItsContext(t *testing.T) {
	published(t, JWKSOptions{}, func(p *idp, start func() *KeySet) {
		p.hang.Store(true)
		k := start()
		ctx, cancel := context.WithTimeout(forever(t), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := k.Find(ctx, "a", "RS256"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Find = %v", err)
		}
		if err := k.Check(ctx); !errors.Is(err, ErrUnavailable) || time.Since(begin) != time.Second {
			t.Errorf("Check = %v after %v", err, time.Since(begin))
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		find(t, k, "a", 0, ErrUnavailable)
		if err := k.Check(forever(t)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Check after Close = %v", err)
		}
	})
}

func TestPlainHTTPIsRefused(t *testing.T) {
	for _, url := range []string{"http://idp/jwks", "ftp://idp/", "https://", "idp/jwks", "://", ""} {
		r := &redirector{}
		k := JWKS(url, JWKSOptions{Transport: r})
		find(t, k, "a", 0, ErrUnavailable)
		if err := k.Check(forever(t)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Check of %q = %v", url, err)
		}
		if err := k.Close(); err != nil || r.plain != 0 {
			t.Errorf("%q: Close = %v, %d requests", url, err, r.plain)
		}
	}
}

// redirector answers https URLs with a redirect, to plain http if it has no other place.
type redirector struct {
	to    string
	plain int
}

func (r *redirector) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		r.plain++
		return nil, errors.New("asked over plain http")
	}
	h := http.Header{"Location": {cmp.Or(r.to, "http://idp/jwks")}}
	return &http.Response{StatusCode: http.StatusFound, Header: h, Body: http.NoBody, Request: req}, nil
}

func TestRedirectToPlainHTTPIsNotFollowed(t *testing.T) {
	r := &redirector{}
	k := JWKS("https://idp/jwks", JWKSOptions{Transport: r})
	_, err := k.Find(forever(t), "a", "RS256")
	_ = k.Close()
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "not an https URL") || r.plain != 0 {
		t.Errorf("Find = %v, %d requests over plain http", err, r.plain)
	}
}

func TestRedirectsAreFollowedAFewTimes(t *testing.T) {
	r := &redirector{to: "https://idp/jwks"}
	k := JWKS("https://idp/jwks", JWKSOptions{Transport: r})
	_, err := k.Find(forever(t), "a", "RS256")
	_ = k.Close()
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "too many redirects") {
		t.Errorf("Find = %v, want too many redirects", err)
	}
}

func TestKeysOfASet(t *testing.T) {
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	pt, _ := p384.PublicKey.Bytes()
	ed, _, _ := ed25519.GenerateKey(rand.Reader)
	small := `{"kty":"RSA","kid":"small","n":"` + b64([]byte(strings.Repeat("x", 128))) + `","e":"AQAB"}`
	ec := func(x, y []byte) string {
		return fmt.Sprintf(`{"kty":"EC","kid":"ec","crv":"P-384","x":%q,"y":%q}`, b64(x), b64(y))
	}
	for name, tt := range map[string]struct{ jwk, alg string }{
		"RSA":                   {rsaJWK("a", ""), "RS256"},
		"RSA with alg":          {rsaJWK("a", `,"alg":"PS384","use":"sig","key_ops":["verify"],"unknown":{}`), "PS384"},
		"RSA for encryption":    {rsaJWK("a", `,"use":"enc"`), ""},
		"RSA to sign with":      {rsaJWK("a", `,"key_ops":["sign"]`), ""},
		"RSA with alg of EC":    {rsaJWK("a", `,"alg":"ES256"`), ""},
		"RSA with alg of HMAC":  {rsaJWK("a", `,"alg":"HS256"`), ""},
		"RSA-OAEP":              {rsaJWK("a", `,"alg":"RSA-OAEP"`), ""},
		"private RSA":           {rsaJWK("a", `,"d":"AQAB"`), ""},
		"small RSA":             {small, ""},
		"EC":                    {ec(pt[1:49], pt[49:]), "ES384"},
		"EC off its curve":      {ec(pt[1:49], pt[1:49]), ""},
		"EC too short":          {ec(pt[1:48], pt[49:]), ""},
		"EC on another curve":   {`{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}`, ""},
		"Ed25519":               {fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q}`, b64(ed)), "EdDSA"},
		"X25519":                {fmt.Sprintf(`{"kty":"OKP","crv":"X25519","x":%q}`, b64(ed)), ""},
		"a secret":              {`{"kty":"oct","k":"` + b64(secret) + `","alg":"HS256"}`, ""},
		"a number":              {`7`, ""},
		"a huge exponent":       {`{"kty":"RSA","n":"` + b64(rsaKey().N.Bytes()) + `","e":"AQABAQABAQAB"}`, ""},
		"an endless kid":        {rsaJWK(strings.Repeat("k", 1000), ""), ""},
		"padding in the number": {`{"kty":"RSA","n":"` + b64(rsaKey().N.Bytes()) + `==","e":"AQAB"}`, ""},
	} {
		keys, err := parseJWKS([]byte(set(tt.jwk)))
		if tt.alg == "" {
			if err == nil || errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v, %v; want an error", name, keys, err)
			}
			continue
		}
		if err != nil || len(keys) != 1 || keys[0].Alg != tt.alg {
			t.Errorf("%s: %v, %v; want a key for %s", name, keys, err, tt.alg)
		}
	}
	keys, err := parseJWKS([]byte(set(`7`, small, rsaJWK("a", ""))))
	if err != nil || len(keys) != 1 {
		t.Errorf("a good key among bad ones: %v, %v", keys, err)
	}
}

func FuzzJWKS(f *testing.F) {
	f.Add(set(rsaJWK("a", "")))
	f.Add(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","x":""}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		keys, err := parseJWKS([]byte(body))
		if (len(keys) == 0) == (err == nil) || err == nil && !json.Valid([]byte(body)) {
			t.Errorf("parseJWKS(%q) = %v, %v", body, keys, err)
		}
		for _, k := range keys {
			if _, err := k.check(); err != nil {
				t.Error(err)
			}
		}
	})
}
