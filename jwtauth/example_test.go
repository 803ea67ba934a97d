package jwtauth_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/jwtauth"
)

func ExampleMiddleware() {
	gin.SetMode(gin.ReleaseMode)
	secret := []byte("32 random bytes from a secret...")
	keys, err := jwtauth.HMAC(secret)
	if err != nil {
		panic(err)
	}
	revoked := map[string]bool{}
	auth, err := jwtauth.New(keys, jwtauth.Options{
		Issuer: "https://login.example.com", Audience: "orders", Realm: "orders",
		// In a service this asks Redis; see the package documentation.
		Revoked: func(_ context.Context, t *jwtauth.Token) (bool, error) { return revoked[t.Subject], nil },
	})
	if err != nil {
		panic(err)
	}

	r := gin.New()
	r.Use(jwtauth.Middleware(auth))
	r.GET("/orders", jwtauth.Scope("orders:read"), func(c *gin.Context) {
		claims, _ := jwtauth.Claims[struct {
			Tenant string `json:"tenant"`
		}](c)
		c.String(http.StatusOK, "orders of %s", claims.Tenant)
	})
	get := func(token string) {
		req := httptest.NewRequest(http.MethodGet, "/orders", nil)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		fmt.Println(w.Code, w.Header().Get("WWW-Authenticate"), w.Body)
	}

	issuer, err := jwtauth.NewIssuer(jwtauth.Key{Alg: "HS256", Key: secret}, jwtauth.IssuerOptions{
		Issuer: "https://login.example.com", Audience: "orders",
	})
	if err != nil {
		panic(err)
	}
	token, _ := issuer.Issue("bob", map[string]any{"tenant": "acme", "scope": "orders:read"})
	get(token)
	get("")
	revoked["bob"] = true
	get(token)

	// Output:
	// 200  orders of acme
	// 401 Bearer realm="orders" {"title":"Unauthorized","status":401,"detail":"a token is required"}
	// 401 Bearer realm="orders", error="invalid_token", error_description="the token is invalid" {"title":"Unauthorized","status":401,"detail":"the token is invalid"}
}

func ExampleJWKS() {
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"2026","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`)
	}))
	defer idp.Close()

	keys := jwtauth.JWKS(idp.URL, jwtauth.JWKSOptions{AllowHTTP: true}) // for the example only
	defer keys.Close()
	fmt.Println(keys.Check(context.Background())) // health.Add("jwks", keys.Check, health.Optional())
	found, err := keys.Find(context.Background(), "2026", "EdDSA")
	fmt.Println(len(found), err)

	// Output:
	// <nil>
	// 1 <nil>
}
