package benchmarks

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	ginjwt "github.com/appleboy/gin-jwt/v2"
	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt/v5"

	"github.com/highball-go/highball/jwtauth"
)

var jwtSecret = []byte("0123456789abcdef0123456789abcdef")

// hs256 is a token as they are seen in services.
func hs256(b *testing.B) string {
	b.Helper()
	i, err := jwtauth.NewIssuer(jwtauth.Key{Alg: "HS256", Key: jwtSecret}, jwtauth.IssuerOptions{
		Issuer: "https://login.example.com", Audience: "orders", TTL: time.Hour,
	})
	if err != nil {
		b.Fatal(err)
	}
	raw, err := i.Issue("bob", map[string]any{"identity": "bob", "scope": "orders:read orders:write", "orig_iat": time.Now().Unix()})
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

func jwtAuth(b *testing.B, cache int) *jwtauth.Auth {
	b.Helper()
	keys, err := jwtauth.HMAC(jwtSecret)
	if err != nil {
		b.Fatal(err)
	}
	a, err := jwtauth.New(keys, jwtauth.Options{Issuer: "https://login.example.com", Audience: "orders", Cache: cache})
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// BenchmarkJWTVerify is signature and claims of HS256, nothing remembered.
func BenchmarkJWTVerify(b *testing.B) {
	raw := hs256(b)
	auth := jwtAuth(b, -1)
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithIssuer("https://login.example.com"),
		jwt.WithAudience("orders"), jwt.WithExpirationRequired())
	key := func(*jwt.Token) (any, error) { return jwtSecret, nil }
	b.Run("impl=highball", func(b *testing.B) {
		runSerial(b, func() bool {
			t, err := auth.Verify(b.Context(), raw)
			return err == nil && t.Subject == "bob"
		})
	})
	b.Run("impl=golang-jwt-map", func(b *testing.B) {
		runSerial(b, func() bool {
			t, err := parser.Parse(raw, key)
			return err == nil && t.Valid
		})
	})
	b.Run("impl=golang-jwt-registered", func(b *testing.B) {
		runSerial(b, func() bool {
			t, err := parser.ParseWithClaims(raw, &jwt.RegisteredClaims{}, key)
			return err == nil && t.Valid
		})
	})
}

// BenchmarkJWTMiddleware is a request with a token through gin.
func BenchmarkJWTMiddleware(b *testing.B) {
	gin.SetMode(gin.ReleaseMode)
	raw := hs256(b)
	mw, err := ginjwt.New(&ginjwt.GinJWTMiddleware{Realm: "orders", Key: jwtSecret, Timeout: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range []struct {
		impl string
		mw   gin.HandlerFunc
	}{
		{"highball", jwtauth.Middleware(jwtAuth(b, 0))},
		{"highball-uncached", jwtauth.Middleware(jwtAuth(b, -1))},
		{"gin-jwt", mw.MiddlewareFunc()},
	} {
		b.Run("impl="+p.impl, func(b *testing.B) {
			r := gin.New()
			r.Use(p.mw)
			r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })
			req := httptest.NewRequest(http.MethodGet, "/", nil)
			req.Header.Set("Authorization", "Bearer "+raw)
			serve(b, r, req, http.StatusNoContent)
		})
	}
}
