package jwtauth

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.TestMode)
	m.Run()
}

// fresh is a token that is right now.
func fresh(tb testing.TB, claims any) string {
	tb.Helper()
	i, err := NewIssuer(Key{Alg: "HS256", Key: secret}, IssuerOptions{Issuer: "iss", Audience: "aud"})
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := i.Issue("bob", claims)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

type request struct {
	auth, cookies []string
}

func serve(r http.Handler, q request) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	if q.auth != nil {
		req.Header["Authorization"] = q.auth
	}
	for _, c := range q.cookies {
		req.Header.Add("Cookie", c)
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	return w
}

func engine(handlers ...gin.HandlerFunc) *gin.Engine {
	r := gin.New()
	r.GET("/", append(handlers, func(c *gin.Context) {
		t, ok := From(c)
		if !ok {
			c.String(http.StatusOK, "nobody")
			return
		}
		c.String(http.StatusOK, t.Subject)
	})...)
	return r
}

func TestAnswersAreThoseOfRFC6750(t *testing.T) {
	o := options
	o.Realm, o.Cookie = `the "api"`, "jwt"
	a := auth(t, o)
	good := fresh(t, nil)
	expired := sign(hs256, `{"iss":"iss","aud":"aud","exp":1}`)
	const realm = `Bearer realm="the \"api\""`
	const invalid = realm + `, error="invalid_token", error_description="the token is invalid"`
	const two = realm + `, error="invalid_request", error_description="send one bearer token"`
	for name, tt := range map[string]struct {
		q       request
		status  int
		www     string
		withOpt int // the status of Optional
	}{
		"nothing":            {request{}, 401, realm, 200},
		"another scheme":     {request{auth: []string{"Basic Ym9iOng="}}, 401, realm, 200},
		"as long a scheme":   {request{auth: []string{"Digest " + good}}, 401, realm, 200},
		"no scheme":          {request{auth: []string{"x"}}, 401, realm, 200},
		"empty":              {request{auth: []string{""}}, 401, realm, 200},
		"a longer scheme":    {request{auth: []string{"BearerX " + good}}, 401, realm, 200},
		"good":               {request{auth: []string{"Bearer " + good}}, 200, "", 200},
		"lower case":         {request{auth: []string{"bearer " + good}}, 200, "", 200},
		"upper case, spaces": {request{auth: []string{"BEARER   " + good}}, 200, "", 200},
		"cookie":             {request{cookies: []string{"a=b; jwt=" + good}}, 200, "", 200},
		"cookie and Basic":   {request{auth: []string{"Basic Ym9iOng="}, cookies: []string{"jwt=" + good}}, 200, "", 200},
		"expired":            {request{auth: []string{"Bearer " + expired}}, 401, realm + `, error="invalid_token", error_description="the token expired"`, 401},
		"garbage":            {request{auth: []string{"Bearer x.y.z"}}, 401, invalid, 401},
		"bad cookie":         {request{cookies: []string{"jwt=x"}}, 401, invalid, 401},
		"two headers":        {request{auth: []string{"Bearer " + good, "Bearer " + good}}, 400, two, 400},
		"header and cookie":  {request{auth: []string{"Bearer " + good}, cookies: []string{"jwt=" + good}}, 400, two, 400},
		"two cookies":        {request{cookies: []string{"jwt=" + good, "jwt=" + good}}, 400, two, 400},
		"two in one":         {request{auth: []string{"Bearer " + good + ", Bearer " + good}}, 400, two, 400},
		"scheme only":        {request{auth: []string{"Bearer"}}, 400, two, 400},
		"scheme and space":   {request{auth: []string{"Bearer "}}, 400, two, 400},
	} {
		w := serve(engine(Middleware(a)), tt.q)
		if w.Code != tt.status || w.Header().Get("WWW-Authenticate") != tt.www {
			t.Errorf("%s: %d %s\nwant %d %s", name, w.Code, w.Header().Get("WWW-Authenticate"), tt.status, tt.www)
		}
		if h := w.Header(); tt.status != 200 && (h.Get("Content-Type") != "application/problem+json" || h.Get("Cache-Control") != "no-store") {
			t.Errorf("%s: %v %s, want a problem that nobody stores", name, h, w.Body)
		}
		if tt.status == 200 && w.Body.String() != "bob" {
			t.Errorf("%s: %s, want bob", name, w.Body)
		}
		if w := serve(engine(Optional(a)), tt.q); w.Code != tt.withOpt {
			t.Errorf("%s, optional: %d, want %d", name, w.Code, tt.withOpt)
		}
	}
	if w := serve(engine(Middleware(auth(t, options))), request{}); w.Header().Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("without a realm: %q", w.Header().Get("WWW-Authenticate"))
	}
}

func TestTheReasonIsForTheLogOnly(t *testing.T) {
	var got []string
	r := engine(func(c *gin.Context) { c.Next(); got = c.Errors.Errors() }, Middleware(auth(t, options)))
	token := sign(`{"alg":"HS256","crit":["x"]}`, claims(""))
	w := serve(r, request{auth: []string{"Bearer " + token}})
	if len(got) != 1 || got[0] != errCrit.Error() || strings.Contains(w.Body.String()+w.Header().Get("WWW-Authenticate"), "crit") {
		t.Errorf("errors %v, answer %v %s", got, w.Header(), w.Body)
	}
}

func TestUnavailableKeysAre503(t *testing.T) {
	a, _ := New(broken{}, options)
	by := ""
	r := engine(func(c *gin.Context) { c.Next(); by = refusal.By(c) }, Middleware(a))
	w := serve(r, request{auth: []string{"Bearer " + fresh(t, nil)}})
	if w.Code != 503 || w.Header().Get("Retry-After") != "1" || w.Header().Get("WWW-Authenticate") != "" || by != "jwtauth" {
		t.Errorf("%d %v by %q, want 503 with Retry-After", w.Code, w.Header(), by)
	}
	if w := serve(engine(Optional(a)), request{auth: []string{"Bearer " + fresh(t, nil)}}); w.Code != 503 {
		t.Errorf("optional: %d, want 503", w.Code)
	}
}

func TestScope(t *testing.T) {
	o := options
	o.Realm = "api"
	a := auth(t, o)
	for name, tt := range map[string]struct {
		claims map[string]any
		need   []string
		status int
	}{
		"has both":       {map[string]any{"scope": "read write admin"}, []string{"read", "write"}, 200},
		"in one string":  {map[string]any{"scope": "read write"}, []string{"read write"}, 200},
		"as scp":         {map[string]any{"scp": []string{"read", "write"}}, []string{"write"}, 200},
		"none needed":    {nil, nil, 200},
		"lacks one":      {map[string]any{"scope": "read"}, []string{"read", "write"}, 403},
		"lacks all":      {nil, []string{"read"}, 403},
		"a part of one":  {map[string]any{"scope": "readonly"}, []string{"read"}, 403},
		"in other words": {map[string]any{"scopes": "read"}, []string{"read"}, 403},
	} {
		w := serve(engine(Middleware(a), Scope(tt.need...)), request{auth: []string{"Bearer " + fresh(t, tt.claims)}})
		if w.Code != tt.status {
			t.Errorf("%s: %d, want %d", name, w.Code, tt.status)
		}
		want := `Bearer realm="api", error="insufficient_scope", error_description="the token lacks a scope", scope="` + strings.Join(tt.need, " ") + `"`
		if got := w.Header().Get("WWW-Authenticate"); tt.status == 403 && got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
	if w := serve(engine(Optional(a), Scope("read")), request{}); w.Code != 401 || w.Header().Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("no token: %d %v, want 401", w.Code, w.Header())
	}
}

func TestClaimsAreTyped(t *testing.T) {
	type mine struct {
		Role string `json:"role"`
		Exp  int64  `json:"exp"`
	}
	var got mine
	var err error
	r := engine(Middleware(auth(t, options)), func(c *gin.Context) { got, err = Claims[mine](c) })
	serve(r, request{auth: []string{"Bearer " + fresh(t, map[string]any{"role": "admin"})}})
	if err != nil || got.Role != "admin" || got.Exp < time.Now().Unix() {
		t.Errorf("Claims = %+v, %v", got, err)
	}
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	if _, err := Claims[mine](c); !errors.Is(err, ErrMissing) {
		t.Errorf("without a token: %v, want ErrMissing", err)
	}
}

func TestRevokedTokenIs401(t *testing.T) {
	o := options
	o.Revoked = func(context.Context, *Token) (bool, error) { return true, nil }
	if w := serve(engine(Middleware(auth(t, o))), request{auth: []string{"Bearer " + fresh(t, nil)}}); w.Code != 401 {
		t.Errorf("%d, want 401", w.Code)
	}
}
