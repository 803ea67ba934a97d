package jwtauth

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Token is a verified token. It may be shared with other requests: do not change it, nor what it holds.
type Token struct {
	ID, Subject, Issuer          string
	Audience                     []string
	IssuedAt, NotBefore, Expires time.Time // zero if the token does not say
	Scopes                       []string  // from scope or scp
	KeyID, Alg                   string    // of the key that verified it
	Payload                      []byte    // the token's JSON

	realm string // of the Auth that verified it
}

// parseClaims reads the claims of RFC 7519 section 4.1, and the scopes of RFC 8693 section 4.2.
func parseClaims(payload []byte) (*Token, error) {
	t := &Token{Payload: payload}
	err := object(payload, func(name, value []byte) (err error) {
		switch string(name) {
		case "jti":
			t.ID, err = text(value)
		case "sub":
			t.Subject, err = text(value)
		case "iss":
			t.Issuer, err = text(value)
		case "aud":
			t.Audience, err = texts(value)
		case "iat":
			t.IssuedAt, err = date(value)
		case "nbf":
			t.NotBefore, err = date(value)
		case "exp":
			t.Expires, err = date(value)
		case "scope", "scp":
			var all []string
			all, err = texts(value)
			for _, s := range all {
				t.Scopes = append(t.Scopes, strings.Fields(s)...)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// date is the NumericDate that value is: seconds since 1970, whole or not, before the year 10000.
func date(value []byte) (time.Time, error) {
	const most = 253402300799
	if c := value[0]; c < '0' || c > '9' {
		return time.Time{}, errType // negative ones too
	}
	if whole, err := strconv.ParseInt(string(value), 10, 64); err == nil && whole <= most { // as most are
		return time.Unix(whole, 0), nil
	}
	f, err := strconv.ParseFloat(string(value), 64)
	if err != nil || f > most {
		return time.Time{}, errType
	}
	s, frac := math.Modf(f)
	return time.Unix(int64(s), int64(frac*1e9)), nil
}
