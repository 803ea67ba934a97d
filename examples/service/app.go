package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/accesslog"
	"github.com/highball-go/highball/degrade/cache"
	"github.com/highball-go/highball/jwtauth"
	"github.com/highball-go/highball/ratelimit"
	"github.com/highball-go/highball/session"
)

// An app is what you replace.
type app struct {
	password string
	issuer   *jwtauth.Issuer
	prices   *cache.Cache[int]
	once     gin.HandlerFunc // runs a POST with an Idempotency-Key once
	peers    gin.HandlerFunc // forwards a request to one of them
}

func (a app) routes(r gin.IRouter) {
	guesses := ratelimit.New(ratelimit.Every(time.Minute, 10, 10), ratelimit.Options{}) // of passwords, by a client
	r.POST("/login", ratelimit.Middleware(guesses), answer(a.login))
	r.POST("/logout", answer(func(c *gin.Context) (int, any, error) { return http.StatusNoContent, nil, session.Destroy(c) }))
	r.GET("/me", answer(a.me))
	r.GET("/prices/:item", answer(a.price))
	r.GET("/stock/:item", a.stock)
	r.POST("/orders", jwtauth.Scope("order"), a.once, answer(order))
}

// answer is a handler that says what f returns. An error is for the log, and no more than 503 for the client.
func answer(f func(*gin.Context) (status int, body any, err error)) gin.HandlerFunc {
	return func(c *gin.Context) {
		status, body, err := f(c)
		if err != nil {
			_ = c.Error(err)
			status, body = http.StatusServiceUnavailable, gin.H{"title": "try again"}
		}
		c.JSON(status, body)
	}
}

func isPeer(c *gin.Context) bool {
	t, ok := jwtauth.From(c)
	return ok && slices.Contains(t.Scopes, "peer")
}

// isPost is what goes on while the service is degraded.
func isPost(c *gin.Context) bool { return c.Request.Method == http.MethodPost }

func (a app) login(c *gin.Context) (int, any, error) {
	var in struct{ User, Password string }
	if err := c.ShouldBindJSON(&in); err != nil || in.User == "" || len(in.User) > 64 {
		return http.StatusBadRequest, gin.H{"title": "user and password, please"}, nil
	}
	if subtle.ConstantTimeCompare([]byte(in.Password), []byte(a.password)) != 1 { // ask your own users' store here
		return http.StatusUnauthorized, gin.H{"title": "wrong user or password"}, nil
	}
	err := session.Regenerate(c) // who planted an id does not have this session
	s := sessions.Default(c)
	s.Set("user", in.User)
	token, err2 := a.issuer.Issue(in.User, gin.H{"scope": "order"})
	return http.StatusOK, gin.H{"token": token}, errors.Join(err, err2, s.Save())
}

func (a app) me(c *gin.Context) (int, any, error) {
	user, ok := sessions.Default(c).Get("user").(string)
	if !ok {
		return http.StatusUnauthorized, gin.H{"title": "nobody is logged in"}, nil
	}
	return http.StatusOK, gin.H{"user": user, "session": session.StateOf(c).String()}, nil
}

func (a app) price(c *gin.Context) (int, any, error) {
	item := c.Param("item")
	price, origin, err := a.prices.Get(c.Request.Context(), item, func(context.Context) (int, error) { return 100 * len(item), nil }) // your database
	c.Header("X-Cache", origin.String())
	return http.StatusOK, gin.H{"item": item, "price": price}, err
}

// stock is known to one of the peers, which is asked through the balancer, with a token of ours.
func (a app) stock(c *gin.Context) {
	if isPeer(c) {
		c.JSON(http.StatusOK, gin.H{"item": c.Param("item"), "stock": 7}) // your warehouse
		return
	}
	token, err := a.issuer.Issue("peer", gin.H{"scope": "peer"})
	if err != nil {
		panic(err) // never with a key that New took
	}
	c.Request.Header.Set("Authorization", "Bearer "+token)
	c.Request.Header.Set("X-Request-Id", accesslog.RequestID(c))
	a.peers(c)
}

func order(c *gin.Context) (int, any, error) {
	return http.StatusCreated, gin.H{"id": rand.Text(), "user": subject(c)}, nil
}

func subject(c *gin.Context) string {
	t, _ := jwtauth.From(c)
	return t.Subject
}
