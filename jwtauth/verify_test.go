package jwtauth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	secret  = []byte("0123456789abcdef0123456789abcdef")
	now     = time.Unix(1_800_000_000, 0)
	rsaKey  = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	b64     = base64.RawURLEncoding.EncodeToString
	options = Options{Issuer: "iss", Audience: "aud"}
)

const hs256 = `{"alg":"HS256"}`

// claims are right at now.
func claims(more string) string {
	return fmt.Sprintf(`{"iss":"iss","aud":"aud","sub":"bob","exp":%d%s}`, now.Unix()+60, more)
}

// sign makes a token of any header and payload with secret.
func sign(header, payload string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(signed))
	return signed + "." + b64(m.Sum(nil))
}

func source(tb testing.TB, keys ...Key) KeySource {
	tb.Helper()
	s, err := Static(keys...)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func auth(tb testing.TB, o Options) *Auth {
	tb.Helper()
	a, err := New(source(tb, Key{Alg: "HS256", Key: secret}), o)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func TestValidToken(t *testing.T) {
	got, err := auth(t, options).verify(t.Context(), sign(`{"typ":"JWT","alg":"HS256","kid":"k"}`, claims(`,"jti":"1","scope":"a b","iat":1799999990,"nbf":1799999990.5,"x":{"y":[1,null,true,-1.5e3,"é😀"]}`)), now)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != "1" || got.Subject != "bob" || got.Issuer != "iss" || got.Audience[0] != "aud" || got.Alg != "HS256" ||
		fmt.Sprint(got.Scopes) != "[a b]" || got.Expires.Unix() != now.Unix()+60 || got.IssuedAt.Unix() != 1799999990 ||
		got.NotBefore.UnixNano() != 1799999990_500000000 {
		t.Errorf("token = %+v", got)
	}
}

// TestLooseReadingsAreRefused has what golang-jwt, gin-jwt and jwx accept, or did.
func TestLooseReadingsAreRefused(t *testing.T) {
	good := sign(hs256, claims(""))
	parts := strings.Split(good, ".")
	a := auth(t, options)
	if _, err := a.verify(t.Context(), good, now); err != nil {
		t.Fatal(err)
	}
	// The last character of 32 bytes in base64 has two bits that mean nothing.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, good[len(good)-1])
	for name, tt := range map[string]struct {
		token string
		want  error
	}{
		"alg none":             {b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", errAlg},
		"alg nOnE":             {sign(`{"alg":"nOnE"}`, claims("")), errAlg},
		"no alg":               {sign(`{}`, claims("")), errAlg},
		"alg of another key":   {sign(`{"alg":"HS512"}`, claims("")), errKey},
		"alg twice":            {sign(`{"alg":"none","alg":"HS256"}`, claims("")), errTwice},
		"alg twice, escaped":   {sign(`{"alg":"HS256","\u0061lg":"HS256"}`, claims("")), errTwice},
		"alg of another type":  {sign(`{"alg":["HS256"]}`, claims("")), errType},
		"kid of another type":  {sign(`{"alg":"HS256","kid":7}`, claims("")), errType},
		"an endless kid":       {sign(`{"alg":"HS256","kid":"`+strings.Repeat("k", 257)+`"}`, claims("")), errSize},
		"unknown crit":         {sign(`{"alg":"HS256","crit":["exp"],"exp":1}`, claims("")), errCrit},
		"empty crit":           {sign(`{"alg":"HS256","crit":[]}`, claims("")), errCrit},
		"b64":                  {sign(`{"alg":"HS256","b64":false}`, claims("")), errCrit},
		"claim twice":          {sign(hs256, claims(`,"sub":"eve"`)), errTwice},
		"nested twice":         {sign(hs256, claims(`,"x":[{"a":1,"a":2}]`)), errTwice},
		"line break":           {good[:10] + "\n" + good[10:], errForm},
		"carriage return":      {good + "\r", errForm},
		"line break first":     {"\n" + good, errForm},
		"return first":         {"\r" + good, errForm},
		"padding":              {good + "=", errForm},
		"trailing bits":        {good[:len(good)-1] + alphabet[last^1:last^1+1], errForm},
		"standard base64":      {strings.ReplaceAll(good, "-", "+") + "+/", errForm},
		"two parts":            {parts[0] + "." + parts[1], errForm},
		"four parts":           {good + ".", errForm},
		"no signature":         {parts[0] + "." + parts[1] + ".", errSignature},
		"signature cut":        {good[:len(good)-3], errSignature},
		"JSON after the JSON":  {sign(hs256, claims("")+"{}"), errJSON},
		"no object":            {sign(hs256, `["iss"]`), errJSON},
		"not JSON":             {sign(hs256, `{'iss':'iss'}`), errJSON},
		"broken UTF-8":         {sign(hs256, claims(",\"x\":\"\xff\"")), errJSON},
		"lone surrogate":       {sign(hs256, claims(`,"x":"\ud800"`)), errJSON},
		"control character":    {sign(hs256, claims(",\"x\":\"\n\"")), errJSON},
		"nested too deep":      {sign(hs256, claims(`,"x":`+strings.Repeat("[", 100)+strings.Repeat("]", 100))), errJSON},
		"too long":             {sign(hs256, claims(`,"x":"`+strings.Repeat("x", 8<<10)+`"`)), errSize},
		"exp as a string":      {sign(hs256, `{"iss":"iss","aud":"aud","exp":"1900000000"}`), errType},
		"exp null":             {sign(hs256, `{"iss":"iss","aud":"aud","exp":null}`), errType},
		"exp in milliseconds":  {sign(hs256, `{"iss":"iss","aud":"aud","exp":1900000000000}`), errType},
		"exp without end":      {sign(hs256, `{"iss":"iss","aud":"aud","exp":1e999}`), errType},
		"exp below zero":       {sign(hs256, `{"iss":"iss","aud":"aud","exp":-1}`), errType},
		"no exp":               {sign(hs256, `{"iss":"iss","aud":"aud"}`), errNoExp},
		"Exp is not exp":       {sign(hs256, `{"iss":"iss","aud":"aud","Exp":1900000000}`), errNoExp},
		"expired":              {sign(hs256, `{"iss":"iss","aud":"aud","exp":1799999970}`), ErrExpired},
		"not yet":              {sign(hs256, claims(`,"nbf":1800000031`)), errEarly},
		"issued in the future": {sign(hs256, claims(`,"iat":1800000031`)), errEarly},
		"wrong issuer":         {sign(hs256, `{"iss":"eve","aud":"aud","exp":1900000000}`), errIssuer},
		"no issuer":            {sign(hs256, `{"aud":"aud","exp":1900000000}`), errIssuer},
		"issuer of two":        {sign(hs256, `{"iss":["iss"],"aud":"aud","exp":1900000000}`), errType},
		"wrong audience":       {sign(hs256, `{"iss":"iss","aud":["a","b"],"exp":1900000000}`), errAudience},
		"empty audience":       {sign(hs256, `{"iss":"iss","aud":[],"exp":1900000000}`), errAudience},
		"audience of numbers":  {sign(hs256, `{"iss":"iss","aud":[1],"exp":1900000000}`), errType},
		"subject of a number":  {sign(hs256, claims(`,"jti":1`)), errType},
		"dots only":            {"..", errJSON},
	} {
		got, err := a.verify(t.Context(), tt.token, now)
		if got != nil || err != tt.want || !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrMissing) { //nolint:errorlint // this very reason
			t.Errorf("%s: %v, %v; want %v", name, got, err, tt.want)
		}
	}
	if _, err := a.Verify(t.Context(), ""); !errors.Is(err, ErrMissing) || errors.Is(err, ErrInvalid) {
		t.Errorf("no token: %v, want ErrMissing", err)
	}
}

func TestLeewayAndAges(t *testing.T) {
	strict, old := options, options
	strict.Leeway = -1
	old.MaxAge, old.NoExpiry = time.Minute, true
	ancient := options
	ancient.MaxAge, ancient.Leeway = math.MaxInt64, math.MaxInt64
	for name, tt := range map[string]struct {
		o       Options
		payload string
		want    error
	}{
		"within the leeway":      {options, `{"iss":"iss","aud":["x","aud"],"exp":1799999971}`, nil},
		"at exp":                 {strict, `{"iss":"iss","aud":"aud","exp":1800000000}`, ErrExpired},
		"before exp":             {strict, `{"iss":"iss","aud":"aud","exp":1800000000.5}`, nil},
		"at nbf":                 {strict, claims(`,"nbf":1800000000`), nil},
		"before nbf":             {strict, claims(`,"nbf":1800000000.5`), errEarly},
		"without iat":            {old, `{"iss":"iss","aud":"aud"}`, errNoIat},
		"young":                  {old, `{"iss":"iss","aud":"aud","iat":1799999911}`, nil},
		"never too old":          {ancient, `{"iss":"iss","aud":"aud","exp":1,"iat":1}`, nil},
		"old":                    {old, `{"iss":"iss","aud":"aud","iat":1799999910}`, ErrExpired},
		"any issuer, any aud":    {Options{AnyIssuer: true, AnyAudience: true}, `{"exp":1900000000}`, nil},
		"no expiry at all":       {Options{AnyIssuer: true, AnyAudience: true, NoExpiry: true}, `{}`, nil},
		"exp counts if there is": {Options{AnyIssuer: true, AnyAudience: true, NoExpiry: true}, `{"exp":1}`, ErrExpired},
	} {
		if _, err := auth(t, tt.o).verify(t.Context(), sign(hs256, tt.payload), now); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestTypeIsCheckedWhenAskedFor(t *testing.T) {
	o := options
	o.Type = "at+jwt"
	for header, want := range map[string]error{
		`{"alg":"HS256","typ":"at+jwt"}`:             nil,
		`{"alg":"HS256","typ":"AT+JWT"}`:             nil,
		`{"alg":"HS256","typ":"application/at+jwt"}`: nil,
		`{"alg":"HS256","typ":"JWT"}`:                errTyp,
		hs256:                                        errTyp,
	} {
		if _, err := auth(t, o).verify(t.Context(), sign(header, claims("")), now); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", header, err, want)
		}
	}
}

func TestPublicKeyIsNoSecret(t *testing.T) {
	pub := &rsaKey().PublicKey
	a, err := New(source(t, Key{ID: "k", Alg: "RS256", Key: pub}), options)
	if err != nil {
		t.Fatal(err)
	}
	forged := sign(`{"alg":"HS256","kid":"k"}`, claims(""))
	if _, err := a.verify(t.Context(), forged, now); !errors.Is(err, errKey) {
		t.Errorf("HS256 against an RSA key: %v", err)
	}
	// A source that answers with whatever it has does not help either.
	for _, k := range []Key{
		{Alg: "HS256", Key: pub},
		{Alg: "HS256", Key: []byte{}},
		{Alg: "HS256"},
		{Alg: "HS256", Key: secret[:31]},
		{Alg: "RS256", Key: secret},
		{Alg: "HS256", Key: (*rsa.PublicKey)(nil)},
		{Alg: "none", Key: secret},
	} {
		a, _ := New(loose{k}, options)
		m := hmac.New(sha256.New, nil)
		signed := b64([]byte(hs256)) + "." + b64([]byte(claims("")))
		m.Write([]byte(signed))
		for _, token := range []string{forged, signed + "." + b64(m.Sum(nil))} {
			if _, err := a.verify(t.Context(), token, now); !errors.Is(err, ErrInvalid) {
				t.Errorf("key %v: %v", k, err)
			}
		}
	}
}

type loose []Key

func (l loose) Find(context.Context, string, string) ([]Key, error) { return l, nil }

func TestWeakKeysDoNotGetIn(t *testing.T) {
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for name, k := range map[string]Key{
		"empty secret":           {Alg: "HS256", Key: []byte{}},
		"nil secret":             {Alg: "HS256", Key: []byte(nil)},
		"short secret":           {Alg: "HS256", Key: secret[:31]},
		"too short for HS384":    {Alg: "HS384", Key: secret},
		"too short for HS512":    {Alg: "HS512", Key: secret},
		"all zeros":              {Alg: "HS256", Key: make([]byte, 32)},
		"RSA of 1024 bits":       {Alg: "RS256", Key: small},
		"no RSA":                 {Alg: "RS256", Key: (*rsa.PublicKey)(nil)},
		"even exponent":          {Alg: "RS256", Key: &rsa.PublicKey{N: rsaKey().N, E: 4}},
		"RSA for ES256":          {Alg: "ES256", Key: rsaKey()},
		"P-256 for ES384":        {Alg: "ES384", Key: p256},
		"no EC":                  {Alg: "ES256", Key: (*ecdsa.PublicKey)(nil)},
		"short Ed25519":          {Alg: "EdDSA", Key: ed25519.PublicKey{1, 2}},
		"none":                   {Alg: "none", Key: secret},
		"no algorithm":           {Key: secret},
		"a string":               {Alg: "HS256", Key: string(secret)},
		"nothing":                {Alg: "HS256"},
		"a nil private key":      {Alg: "RS256", Key: (*rsa.PrivateKey)(nil)},
		"a short private key":    {Alg: "EdDSA", Key: ed25519.PrivateKey{1}},
		"an unlisted EC (ES256)": {Alg: "ES256", Key: &ecdsa.PublicKey{Curve: elliptic.P224()}},
	} {
		if _, err := Static(k); err == nil || !strings.HasPrefix(err.Error(), "jwtauth: ") {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
	if _, err := Static(); err == nil {
		t.Error("no keys: want an error")
	}
	if _, err := Static(Key{ID: "a", Alg: "HS256", Key: secret}, Key{ID: "a", Alg: "HS256", Key: secret}); err == nil {
		t.Error("the same ID twice: want an error")
	}
	if _, err := HMAC(secret, []byte("short")); err == nil {
		t.Error("a short previous key: want an error")
	}
	many := make([]Key, maxKeys+1)
	for i := range many {
		many[i] = Key{Alg: "HS256", Key: secret}
	}
	if _, err := Static(many...); err == nil {
		t.Error("more keys without an ID than a token is tried with: want an error")
	}
	if _, err := Static(many[1:]...); err != nil {
		t.Errorf("as many as a token is tried with: %v", err)
	}
	if _, err := PublicKey("", "HS256", secret); err == nil {
		t.Error("a secret as a public key: want an error")
	}
}

func TestEarlierSecretsAreAccepted(t *testing.T) {
	keys, err := HMAC([]byte("fedcba9876543210fedcba9876543210"), secret)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := New(keys, options)
	if _, err := a.verify(t.Context(), sign(`{"alg":"HS256","kid":"whatever"}`, claims("")), now); err != nil {
		t.Error(err)
	}
}

func TestPSSSaltIsAsLongAsTheHash(t *testing.T) {
	a, _ := New(source(t, Key{Alg: "PS256", Key: rsaKey()}), options)
	for salt, want := range map[int]error{32: nil, 0: errSignature, 20: errSignature, 64: errSignature} {
		o := &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256}
		if salt == 0 {
			o.SaltLength = 1
		}
		signed := b64([]byte(`{"alg":"PS256"}`)) + "." + b64([]byte(claims("")))
		digest := sha256.Sum256([]byte(signed))
		sig, err := rsa.SignPSS(rand.Reader, rsaKey(), crypto.SHA256, digest[:], o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.verify(t.Context(), signed+"."+b64(sig), now); !errors.Is(err, want) {
			t.Errorf("salt of %d: %v, want %v", o.SaltLength, err, want)
		}
	}
}

// TestRFCVectors has the examples of RFC 7515 appendix A.1 and A.3 and RFC 8037 appendix A.4.
func TestRFCVectors(t *testing.T) {
	dec := func(s string) []byte { b, _ := base64.RawURLEncoding.DecodeString(s); return b }
	ec := jwk{Kty: "EC", Crv: "P-256", X: "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", Y: "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
	p256, err := ec.key()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		key     Key
		raw     string
		payload string
	}{
		"A.1": {
			Key{Alg: "HS256", Key: dec("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")},
			"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
			"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
		},
		"A.3": {
			p256,
			"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
			"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
		},
		"RFC 8037": {
			Key{Alg: "EdDSA", Key: ed25519.PublicKey(dec("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"))},
			"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
			"Example of Ed25519 signing",
		},
	} {
		payload, k, err := VerifySignature(t.Context(), source(t, tt.key), tt.raw)
		if err != nil || string(payload) != tt.payload || k.Alg != tt.key.Alg {
			t.Errorf("%s: %q, %v", name, payload, err)
		}
		broken := tt.raw[:len(tt.raw)-8] + "AAAA" + tt.raw[len(tt.raw)-4:]
		if _, _, err := VerifySignature(t.Context(), source(t, tt.key), broken); !errors.Is(err, errSignature) {
			t.Errorf("%s, broken: %v", name, err)
		}
	}
}

func TestSourceThatFailsIsUnavailable(t *testing.T) {
	a, _ := New(broken{}, options)
	if _, err := a.verify(t.Context(), sign(hs256, claims("")), now); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrInvalid) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

type broken struct{}

func (broken) Find(context.Context, string, string) ([]Key, error) { return nil, errors.New("vault") }

func TestRevocation(t *testing.T) {
	revoked, down := false, error(nil)
	o := options
	o.Revoked = func(_ context.Context, t *Token) (bool, error) { return revoked && t.ID == "1", down }
	a := auth(t, o)
	token := sign(hs256, claims(`,"jti":"1"`))
	if _, err := a.verify(t.Context(), token, now); err != nil {
		t.Fatal(err)
	}
	revoked = true // at once, remembered or not
	if _, err := a.verify(t.Context(), token, now); !errors.Is(err, ErrInvalid) {
		t.Errorf("revoked: %v, want ErrInvalid", err)
	}
	down = errors.New("redis: connection refused")
	if _, err := a.verify(t.Context(), token, now); !errors.Is(err, ErrUnavailable) || !errors.Is(err, down) || errors.Is(err, ErrInvalid) {
		t.Errorf("no answer: %v, want ErrUnavailable", err)
	}
}

// switchable is a source whose key can be withdrawn, and counts how often it is asked.
type switchable struct {
	KeySource
	n    int
	gone bool
}

func (s *switchable) Find(ctx context.Context, kid, alg string) ([]Key, error) {
	if s.n++; s.gone {
		return nil, nil
	}
	return s.KeySource.Find(ctx, kid, alg)
}

func TestCacheNeverOutlivesExpNorAKeyByMoreThanAMinute(t *testing.T) {
	src := &switchable{KeySource: source(t, Key{Alg: "HS256", Key: secret})}
	o := options
	o.Leeway = -1
	a, _ := New(src, o)
	token := sign(hs256, `{"iss":"iss","aud":"aud","exp":1800000090}`)
	at := func(after time.Duration, asked int, want error) {
		t.Helper()
		if _, err := a.verify(t.Context(), token, now.Add(after)); !errors.Is(err, want) || src.n != asked {
			t.Errorf("after %v: %v, the source was asked %d times; want %v, %d", after, err, src.n, want, asked)
		}
	}
	at(0, 1, nil)
	at(59*time.Second, 1, nil)
	at(61*time.Second, 2, nil)
	at(90*time.Second, 2, ErrExpired)
	src.gone = true
	at(89*time.Second, 2, nil)
	at(29*time.Second+time.Minute+2*time.Second, 2, ErrExpired)

	b, _ := New(src, o)
	src.gone, src.n = false, 0
	if _, err := b.verify(t.Context(), token, now); err != nil {
		t.Fatal(err)
	}
	src.gone = true
	if _, err := b.verify(t.Context(), token, now.Add(time.Minute)); !errors.Is(err, errKey) {
		t.Errorf("a minute after its key has gone: %v, want an unknown key", err)
	}
}

func TestCacheIsBoundedAndTokensAreNotMixedUp(t *testing.T) {
	o := options
	o.Cache = 64
	a := auth(t, o)
	for round := range 2 {
		for i := range 1000 {
			want := fmt.Sprint("user", i)
			got, err := a.verify(t.Context(), sign(hs256, fmt.Sprintf(`{"iss":"iss","aud":"aud","exp":1900000000,"sub":%q}`, want)), now)
			if err != nil || got.Subject != want {
				t.Fatalf("round %d: %v, %v; want %s", round, got, err, want)
			}
		}
	}
	n := 0
	for i := range a.cache.slots {
		if a.cache.slots[i].Load() != nil {
			n++
		}
	}
	if len(a.cache.slots) != 64 || n < 48 {
		t.Errorf("%d of %d slots in use, want most of 64", n, len(a.cache.slots))
	}
	o.Cache = -1
	if a := auth(t, o); a.cache != nil {
		t.Error("a cache, want none")
	}
}

func TestWrongTokensAreNotRemembered(t *testing.T) {
	a := auth(t, options)
	for i := range 1000 {
		_, _ = a.verify(t.Context(), sign(hs256, claims(""))+fmt.Sprint(i), now)
		_, _ = a.verify(t.Context(), sign(hs256, fmt.Sprintf(`{"iss":"eve","aud":"aud","exp":1900000000,"n":%d}`, i)), now)
	}
	for i := range a.cache.slots {
		if e := a.cache.slots[i].Load(); e != nil {
			t.Fatalf("remembered %q", e.raw)
		}
	}
}

func TestVerifyIsSafeForConcurrentUse(t *testing.T) {
	o := options
	o.Cache = 4
	a := auth(t, o)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 200 {
				want := fmt.Sprint((g + i) % 9)
				got, err := a.verify(t.Context(), sign(hs256, claims(`,"jti":"`+want+`"`)), now)
				if err != nil || got.ID != want {
					t.Errorf("%v, %v; want %s", got, err, want)
				}
			}
		})
	}
	all.Wait()
}

func TestMisconfigurationFails(t *testing.T) {
	keys := source(t, Key{Alg: "HS256", Key: secret})
	for name, o := range map[string]Options{
		"no issuer":     {Audience: "a"},
		"no audience":   {Issuer: "i"},
		"both":          {Issuer: "i", AnyIssuer: true, AnyAudience: true},
		"both aud":      {AnyIssuer: true, Audience: "a", AnyAudience: true},
		"MaxAge":        {Issuer: "i", Audience: "a", MaxAge: -1},
		"MaxBytes":      {Issuer: "i", Audience: "a", MaxBytes: -1},
		"Cache":         {Issuer: "i", Audience: "a", Cache: math.MaxInt},
		"cookie":        {Issuer: "i", Audience: "a", Cookie: "a b"},
		"realm":         {Issuer: "i", Audience: "a", Realm: "a\r\nSet-Cookie: x=y"},
		"realm unicode": {Issuer: "i", Audience: "a", Realm: "é"},
	} {
		if a, err := New(keys, o); a != nil || err == nil {
			t.Errorf("%s: %v, %v; want an error", name, a, err)
		}
	}
	if _, err := New(nil, options); err == nil {
		t.Error("no keys: want an error")
	}
}

func FuzzVerify(f *testing.F) {
	good := sign(hs256, claims(`,"scope":"a b","x":{"y":[1,"\u00e9"]}`))
	f.Add(good, `{"alg":"HS256"}`, claims(""))
	f.Add("a.b.c", `{"alg":"HS256","kid":"k","\u0061lg":1}`, `{"a":"\ud83d\ude00","b":[{}]}`)
	f.Add("..", `{"alg":`, "{\"x\":\"\xff\"}")
	a := auth(f, options)
	f.Fuzz(func(t *testing.T, raw, header, payload string) {
		if tok, err := a.verify(t.Context(), raw, now); (tok == nil) == (err == nil) {
			t.Errorf("verify(%q) = %v, %v", raw, tok, err)
		} else if err == nil {
			// A token has one form: taken apart and put together again it is the same.
			h, _, _ := strings.Cut(raw, ".")
			head, _ := base64.RawURLEncoding.DecodeString(h)
			if sign(string(head), string(tok.Payload)) != raw {
				t.Errorf("%q is accepted as another form of %q", raw, sign(string(head), string(tok.Payload)))
			}
		}
		// What is accepted as JSON is JSON, and means the same to encoding/json.
		_, _ = a.verify(t.Context(), sign(header, payload), now)
		seen := map[string]bool{}
		if err := object([]byte(payload), func(name, value []byte) error {
			seen[string(name)] = json.Valid(value)
			return nil
		}); err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal([]byte(payload), &want); err != nil || len(want) != len(seen) {
			t.Fatalf("object(%q) has %v, encoding/json says %v, %v", payload, seen, want, err)
		}
		for name := range want {
			if !seen[name] {
				t.Errorf("object(%q) does not have %q", payload, name)
			}
		}
	})
}
