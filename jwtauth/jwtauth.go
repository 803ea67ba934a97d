// Package jwtauth verifies and issues JSON Web Tokens by RFC 7519, with the best current practices of RFC 8725,
// and answers for them by RFC 6750.
//
// It is built on the standard library and strict where a loose reading has been a hole elsewhere. A key is
// bound to one algorithm, and weak keys do not get in. Base64 and JSON have one form only: no padding, no line
// break, no name twice. A token with crit is refused, for no extension is understood. The size is limited
// before anything is decoded, and the signature is checked before a claim is read. exp is required, and iss
// and aud have to be what [Options] says unless that waives them by name.
//
// Keys that cannot be had are not the client's fault: that is [ErrUnavailable] and 503, never 401.
//
// Revocation is a function, asked at every request. With Redis, for tokens by their jti and for all that a
// user had before some moment:
//
//	Revoked: func(ctx context.Context, t *jwtauth.Token) (bool, error) {
//		v, err := rdb.MGet(ctx, "revoked:jti:"+t.ID, "revoked:before:"+t.Subject).Result()
//		if err != nil {
//			return false, err // 503; return false, nil to go on without Redis
//		}
//		before, _ := v[1].(string)
//		s, _ := strconv.ParseInt(before, 10, 64)
//		return v[0] != nil || t.IssuedAt.Unix() < s, nil
//	}
//
// Set the keys with an expiry as long as a token lives.
package jwtauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Errors of [Auth.Verify].
var (
	ErrMissing           = errors.New("jwtauth: no token")
	ErrInvalid           = errors.New("jwtauth: invalid token") // every refusal of a token is it, ErrExpired too; ErrMissing and ErrUnavailable are not
	ErrExpired     error = invalid("token expired")
	ErrUnavailable       = errors.New("jwtauth: keys unavailable") // 503, not 401
)

// invalid is why a token is refused. It never holds anything of the token.
type invalid string

func (e invalid) Error() string        { return "jwtauth: " + string(e) }
func (e invalid) Is(target error) bool { return target == ErrInvalid }

const (
	errSize      = invalid("token too long")
	errForm      = invalid("not a compact JWS in strict base64url")
	errJSON      = invalid("malformed JSON")
	errTwice     = invalid("a name twice in one JSON object")
	errType      = invalid("a header or claim of the wrong type")
	errCrit      = invalid("critical header not understood")
	errAlg       = invalid("unknown algorithm")
	errTyp       = invalid("wrong type of token")
	errKey       = invalid("unknown key")
	errSignature = invalid("wrong signature")
	errIssuer    = invalid("wrong issuer")
	errAudience  = invalid("wrong audience")
	errNoExp     = invalid("no expiry")
	errNoIat     = invalid("no time of issue")
	errEarly     = invalid("token not valid yet")
	errRevoked   = invalid("token revoked")
)

// cacheFor is how long a token is not verified again, so that one whose key has been withdrawn is not accepted
// for longer.
const cacheFor = time.Minute

// maxCache is the most tokens that are remembered.
const maxCache = 1 << 20

// Options configures [New]. Issuer and Audience, or the waivers, are required.
type Options struct {
	// Issuer and Audience are the iss and the aud that tokens must have. New fails without them, unless
	// AnyIssuer and AnyAudience say that any and none will do.
	Issuer, Audience       string
	AnyIssuer, AnyAudience bool
	// Leeway is how far clocks may differ. Zero: 30 s. Negative: none.
	Leeway time.Duration
	// MaxAge is how long after its iat a token is accepted, which it then needs. Zero: off.
	MaxAge time.Duration
	// MaxBytes limits the token. Zero: 8 KiB.
	MaxBytes int
	// Type is the typ that tokens must have, such as at+jwt (RFC 9068). "": any and none.
	Type string
	// Cookie names a cookie that may hold the token. "": it is taken from Authorization only. A cookie is sent
	// by the browser unasked: it needs SameSite or another defence against forged requests.
	Cookie string
	// Realm is named in WWW-Authenticate. "": none.
	Realm string
	// Cache is how many verified tokens are remembered, each for a minute at most and never past its exp,
	// rounded up to a power of two. Zero: 4096. Negative: none. At most 1<<20. Revoked is asked for remembered
	// tokens too.
	Cache int
	// NoExpiry accepts tokens without exp; with MaxAge they still end.
	NoExpiry bool
	// Revoked, if not nil, is asked at each request for a token that is right otherwise. An error is
	// ErrUnavailable.
	Revoked func(ctx context.Context, t *Token) (bool, error)
}

// Auth verifies tokens. It is safe for concurrent use.
type Auth struct {
	keys   KeySource
	o      Options
	cache  *cache
	accept func(header) error
}

// New returns an Auth that takes its keys from keys, or an error that says what to change in o.
func New(keys KeySource, o Options) (*Auth, error) {
	if keys == nil {
		return nil, errors.New("jwtauth: no keys: use HMAC, Static or JWKS")
	}
	if err := o.wrong(); err != nil {
		return nil, err
	}
	if o.Leeway == 0 {
		o.Leeway = 30 * time.Second
	}
	o.Leeway = max(o.Leeway, 0)
	if o.MaxBytes == 0 {
		o.MaxBytes = 8 << 10
	}
	a := &Auth{keys: keys, o: o}
	if o.Cache == 0 {
		o.Cache = 4096
	}
	if o.Cache > 0 {
		a.cache = newCache(o.Cache)
	}
	if o.Type != "" {
		a.accept = func(h header) error {
			if !sameType(h.typ, o.Type) {
				return errTyp
			}
			return nil
		}
	}
	return a, nil
}

// wrong says what to change in o.
func (o *Options) wrong() error {
	switch {
	case (o.Issuer == "") != o.AnyIssuer:
		return errors.New("jwtauth: set either Options.Issuer or AnyIssuer")
	case (o.Audience == "") != o.AnyAudience:
		return errors.New("jwtauth: set either Options.Audience or AnyAudience")
	case o.MaxAge < 0 || o.MaxBytes < 0:
		return errors.New("jwtauth: Options.MaxAge and MaxBytes cannot be negative")
	case o.Cache > maxCache:
		return fmt.Errorf("jwtauth: Options.Cache cannot be more than %d", maxCache)
	case o.Cookie != "" && (&http.Cookie{Name: o.Cookie, Value: "x"}).Valid() != nil:
		return fmt.Errorf("jwtauth: %q cannot be the name of a cookie", o.Cookie)
	case strings.ContainsFunc(o.Realm, func(r rune) bool { return r < ' ' || r > '~' }):
		return fmt.Errorf("jwtauth: Options.Realm %q is not printable ASCII", o.Realm)
	}
	return nil
}

// Verify checks everything but the HTTP around the token. Its errors are ErrMissing for "", ErrInvalid and
// ErrUnavailable, each perhaps with more to say.
func (a *Auth) Verify(ctx context.Context, raw string) (*Token, error) {
	return a.verify(ctx, raw, time.Now())
}

func (a *Auth) verify(ctx context.Context, raw string, now time.Time) (*Token, error) {
	if raw == "" {
		return nil, ErrMissing
	}
	var t *Token
	if a.cache != nil {
		t = a.cache.get(raw, now)
	}
	fresh := t == nil
	if fresh {
		payload, k, err := verifyJWS(ctx, a.keys, raw, a.o.MaxBytes, a.accept)
		if err != nil {
			return nil, err
		}
		if t, err = parseClaims(payload); err != nil {
			return nil, err
		}
		t.KeyID, t.Alg, t.realm = k.ID, k.Alg, a.o.Realm
	}
	if err := a.check(t, now); err != nil {
		return nil, err
	}
	if fresh && a.cache != nil {
		a.cache.put(raw, t, now, now.Add(cacheFor))
	}
	if a.o.Revoked != nil {
		revoked, err := a.o.Revoked(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("%w: revocation: %w", ErrUnavailable, err)
		}
		if revoked {
			return nil, errRevoked
		}
	}
	return t, nil
}

// check checks the claims.
func (a *Auth) check(t *Token, now time.Time) error {
	o := &a.o
	switch {
	case !o.AnyIssuer && t.Issuer != o.Issuer:
		return errIssuer
	case !o.AnyAudience && !slices.Contains(t.Audience, o.Audience):
		return errAudience
	case t.Expires.IsZero() && !o.NoExpiry:
		return errNoExp
	case !t.Expires.IsZero() && !now.Before(t.Expires.Add(o.Leeway)):
		return ErrExpired
	case !t.NotBefore.IsZero() && now.Before(t.NotBefore.Add(-o.Leeway)):
		return errEarly
	}
	return o.checkAge(t.IssuedAt, now)
}

func (o *Options) checkAge(issued, now time.Time) error {
	switch {
	case issued.IsZero():
		if o.MaxAge > 0 {
			return errNoIat
		}
	case now.Before(issued.Add(-o.Leeway)):
		return errEarly
	case o.MaxAge > 0 && !now.Before(issued.Add(o.MaxAge).Add(o.Leeway)):
		return ErrExpired
	}
	return nil
}
