package session_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/alicebob/miniredis/v2"
	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
	"github.com/highball-go/highball/jwtauth"
	"github.com/highball-go/highball/session"
)

var secret = []byte("32 random bytes from a secret...")

// requester sends requests of one client, which keeps its cookies, and prints the answers.
func requester(h http.Handler) func(method, path string) {
	cookies := map[string]*http.Cookie{}
	return func(method, path string) {
		req := httptest.NewRequest(method, path, nil)
		for _, c := range cookies {
			req.AddCookie(c)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		for _, c := range w.Result().Cookies() {
			cookies[c.Name] = c
		}
		fmt.Println(strings.TrimSpace(fmt.Sprintln(method, path, w.Code, w.Body)))
	}
}

// Redis goes away between two requests: bob stays logged in, and nothing is lost.
func Example() {
	server, err := miniredis.Run() // in a service: Sentinel or Cluster
	if err != nil {
		panic(err)
	}
	defer server.Close()
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: []string{server.Addr()}, ContextTimeoutEnabled: true,
	})
	defer client.Close()
	store, err := session.New(client, session.Options{
		Keys:    [][]byte{secret},
		Cookie:  session.Cookie{Secure: true},
		OnState: func(s session.State, _ error) { fmt.Println("sessions are", s) },
	})
	if err != nil {
		panic(err)
	}

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Use(session.Middleware("session", store))
	r.POST("/login", func(c *gin.Context) {
		if err := session.Regenerate(c); err != nil { // whoever planted an id does not have this one
			c.String(http.StatusServiceUnavailable, "try again")
			return
		}
		sessions.Default(c).Set("user", "bob")
		c.String(http.StatusOK, "welcome")
	})
	r.GET("/me", func(c *gin.Context) {
		user, _ := sessions.Default(c).Get("user").(string)
		c.String(http.StatusOK, "%s, %s", user, session.StateOf(c))
	})
	r.POST("/pay", session.Require(), func(c *gin.Context) { c.String(http.StatusOK, "paid") })
	r.POST("/logout", func(c *gin.Context) {
		if err := session.Destroy(c); err != nil {
			c.String(http.StatusServiceUnavailable, "logged out here; try again for all")
			return
		}
		c.String(http.StatusOK, "bye")
	})

	request := requester(r)
	request("POST", "/login")
	server.SetError("LOADING Redis is loading the dataset in memory")
	request("GET", "/me")
	request("POST", "/pay")
	server.SetError("")
	request("GET", "/me")
	request("POST", "/logout")
	request("GET", "/me")

	// Output:
	// POST /login 200 welcome
	// sessions are stale
	// GET /me 200 bob, stale
	// POST /pay 503 {"title":"Service Unavailable","status":503,"detail":"sessions cannot be read at the moment"}
	// sessions are live
	// GET /me 200 bob, live
	// POST /logout 200 bye
	// GET /me 200 , live
}

// No affinity: any instance serves any client, for all sessions are in Redis, here behind three sentinels.
func ExampleNew() {
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		MasterName:            "sessions",
		Addrs:                 []string{"10.0.0.11:26379", "10.0.0.12:26379", "10.0.0.13:26379"},
		ContextTimeoutEnabled: true,
		DialerRetries:         1,   // a refused connection is not tried again within the request
		PoolSize:              256, // go-redis looks once a second after so many failed dials
	})
	defer client.Close()
	store, err := session.New(client, session.Options{Keys: [][]byte{secret}})
	if err != nil {
		panic(err)
	}
	r := gin.New()
	r.Use(session.Middleware("session", store))
	fmt.Println("New dials nobody")

	// Output: New dials nobody
}

// By IP hash: each client's calls go to one instance while that is well.
func ExampleNew_ipHash() {
	var at []string
	for _, name := range []string{"a", "b", "c"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, name) }))
		defer s.Close()
		at = append(at, s.Listener.Addr().String())
	}

	peers := discovery.Static{"shop": {{Addr: at[0]}, {Addr: at[1]}, {Addr: at[2]}}}
	lb := balancer.New(peers, balancer.Options{Strategy: balancer.IPHash()})
	defer lb.Close()
	r := gin.New()
	_ = r.SetTrustedProxies(nil) // or whoever is in front, else ClientIP is what the client says
	r.Any("/*path", balancer.Proxy(lb, "shop", balancer.WithAffinity(func(c *gin.Context) string { return c.ClientIP() })))

	answers := map[string]bool{}
	for range 20 {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		answers[w.Body.String()] = true
	}
	fmt.Println("instances that served this client:", len(answers))

	// Output: instances that served this client: 1
}

// A JWT at the client: nothing is stored, and any instance with the key can check it.
func ExampleNew_jwt() {
	issuer, err := jwtauth.NewIssuer(jwtauth.Key{Alg: "HS256", Key: secret}, jwtauth.IssuerOptions{Issuer: "shop", Audience: "shop"})
	if err != nil {
		panic(err)
	}
	keys, err := jwtauth.HMAC(secret)
	if err != nil {
		panic(err)
	}
	auth, err := jwtauth.New(keys, jwtauth.Options{Issuer: "shop", Audience: "shop", Cookie: "token"})
	if err != nil {
		panic(err)
	}
	r := gin.New()
	r.POST("/login", func(c *gin.Context) {
		token, err := issuer.Issue("bob", nil)
		if err != nil {
			c.Status(http.StatusInternalServerError)
			return
		}
		http.SetCookie(c.Writer, &http.Cookie{Name: "token", Value: token, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
	})
	r.GET("/me", jwtauth.Middleware(auth), func(c *gin.Context) {
		token, _ := jwtauth.From(c)
		c.String(http.StatusOK, token.Subject)
	})

	request := requester(r)
	request("POST", "/login")
	request("GET", "/me")

	// Output:
	// POST /login 200
	// GET /me 200 bob
}
