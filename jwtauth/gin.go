package jwtauth

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

// errTwo is a request that RFC 6750 calls invalid: more than one token, or none where one was announced.
var errTwo = errors.New("jwtauth: malformed or more than one credential")

// tokenKey is where a gin.Context has its token.
type tokenKey struct{}

// Middleware lets requests with a valid token pass; see [From] and [Claims]. The others get problem+json and a
// WWW-Authenticate by RFC 6750 section 3: 401 without an error code for no token, 401 invalid_token, or 400
// invalid_request for two credentials. When keys or revocations cannot be had it is 503 with Retry-After. Why,
// is in c.Errors for the log, and not in the answer.
func Middleware(a *Auth) gin.HandlerFunc {
	return func(c *gin.Context) { a.admit(c, false) }
}

// Optional is [Middleware] that lets requests without a token pass as well. A bad one does not.
func Optional(a *Auth) gin.HandlerFunc {
	return func(c *gin.Context) { a.admit(c, true) }
}

func (a *Auth) admit(c *gin.Context, optional bool) {
	raw, err := a.credential(c.Request)
	if err == nil {
		var t *Token
		if t, err = a.Verify(c.Request.Context(), raw); err == nil {
			c.Set(tokenKey{}, t)
			return
		}
	}
	if optional && errors.Is(err, ErrMissing) {
		return
	}
	_ = c.Error(err)
	switch realm := a.o.Realm; {
	case errors.Is(err, ErrMissing):
		challenge(c, http.StatusUnauthorized, realm, "", "a token is required")
	case errors.Is(err, ErrExpired):
		challenge(c, http.StatusUnauthorized, realm, "invalid_token", "the token expired")
	case errors.Is(err, ErrInvalid):
		challenge(c, http.StatusUnauthorized, realm, "invalid_token", "the token is invalid")
	case errors.Is(err, errTwo):
		challenge(c, http.StatusBadRequest, realm, "invalid_request", "send one bearer token")
	default:
		refusal.Answer(c, "jwtauth", refusal.Problem{Status: http.StatusServiceUnavailable, Detail: "tokens cannot be verified at the moment"})
	}
}

// challenge ends c with a WWW-Authenticate by RFC 6750 section 3.
func challenge(c *gin.Context, status int, realm, code, detail string, more ...string) {
	var params []string
	if realm != "" {
		params = append(params, "realm="+quote(realm))
	}
	if code != "" {
		params = append(params, "error="+quote(code), "error_description="+quote(detail))
	}
	v := "Bearer"
	if params = append(params, more...); len(params) > 0 {
		v += " " + strings.Join(params, ", ")
	}
	c.Header("WWW-Authenticate", v)
	c.Header("Cache-Control", "no-store")
	refusal.Write(c, refusal.Problem{Status: status, Detail: detail})
}

// quote makes a quoted-string of RFC 9110 section 5.6.4.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// credential is the one token of r.
func (a *Auth) credential(r *http.Request) (string, error) {
	raw, err := bearer(r.Header["Authorization"])
	if err != nil || a.o.Cookie == "" {
		return raw, err
	}
	for _, c := range r.CookiesNamed(a.o.Cookie) {
		if raw != "" {
			return "", errTwo
		}
		raw = c.Value
	}
	return raw, nil
}

// bearer is the token in the Authorization headers of a request, "" for other schemes. The scheme is compared
// without regard to case, RFC 9110 section 11.1.
func bearer(headers []string) (string, error) {
	const scheme = "bearer"
	switch len(headers) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", errTwo
	}
	h := headers[0]
	if len(h) < len(scheme) || !strings.EqualFold(h[:len(scheme)], scheme) {
		return "", nil
	}
	token := strings.TrimLeft(h[len(scheme):], " ")
	switch {
	case len(h) > len(scheme) && h[len(scheme)] != ' ':
		return "", nil // a longer scheme
	case token == "" || strings.ContainsAny(token, " \t,"):
		return "", errTwo
	}
	return token, nil
}

// Scope lets requests pass whose token has all of these scopes; it belongs behind [Middleware] or [Optional].
// Others get 403 insufficient_scope, and 401 without a token.
func Scope(all ...string) gin.HandlerFunc {
	need := strings.Fields(strings.Join(all, " "))
	return func(c *gin.Context) {
		t, ok := From(c)
		if !ok {
			_ = c.Error(ErrMissing)
			challenge(c, http.StatusUnauthorized, "", "", "a token is required")
			return
		}
		for _, s := range need {
			if !slices.Contains(t.Scopes, s) {
				challenge(c, http.StatusForbidden, t.realm, "insufficient_scope", "the token lacks a scope",
					"scope="+quote(strings.Join(need, " ")))
				return
			}
		}
	}
}

// From is the verified token of the request.
func From(c *gin.Context) (*Token, bool) {
	v, _ := c.Get(tokenKey{})
	t, ok := v.(*Token)
	return t, ok
}

// Claims is the payload of the request's token as a T, by encoding/json, which takes names in any case: where an
// issuer lets users name claims, read those of RFC 7519 from [From]. It is ErrMissing without a token.
func Claims[T any](c *gin.Context) (T, error) {
	var claims T
	t, ok := From(c)
	if !ok {
		return claims, ErrMissing
	}
	err := json.Unmarshal(t.Payload, &claims)
	return claims, err
}
