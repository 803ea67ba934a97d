package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/outage"
)

func TestARequestWaitsForTimeoutAtMostAndThenNotAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 100 * time.Millisecond
		takes := func(what string, want time.Duration, s *site, b *browser, handler gin.HandlerFunc) {
			t.Helper()
			began := time.Now()
			if s.do(b, handler); time.Since(began) != want {
				t.Errorf("%s takes %v, want %v", what, time.Since(began), want)
			}
		}
		read := func(c *gin.Context) { sessions.Default(c).Get("k") }
		for what, handler := range map[string]gin.HandlerFunc{
			"a read":               read,
			"a write":              func(c *gin.Context) { sessions.Default(c).Set("k", 2) },
			"a logout":             func(c *gin.Context) { _ = Destroy(c) },
			"a new id":             func(c *gin.Context) { _ = Regenerate(c) },
			"Require":              Require(),
			"all that can be done": func(c *gin.Context) { Require()(c); read(c); _ = Regenerate(c); _ = sessions.Default(c).Save() },
		} {
			s, f := fakeSite(t, Options{Timeout: timeout})
			b := newBrowser()
			s.set(b, "k", 1)
			takes("with Redis, "+what, 0, s, b.copy(), read)
			f.hang(true)
			for range outage.Tolerated {
				takes(what, timeout, s, b.copy(), handler)
			}
			takes("known to be away, "+what, 0, s, b.copy(), handler)
			f.hang(false)
			time.Sleep(2 * timeout) // a probe may begin
			takes("back, "+what, 0, s, b.copy(), read)
		}
		s, f := fakeSite(t, Options{Timeout: timeout})
		b := newBrowser()
		s.set(b, "k", 1)
		takes("a Redis that hangs between a read and a write", timeout, s, b, func(c *gin.Context) {
			read(c)
			f.hang(true)
			sessions.Default(c).Set("k", 2)
		})
	})
}

func TestWhyASessionCannotBeReadIsInTheErrorsOfTheRequest(t *testing.T) {
	f := newFake()
	var errs []error
	r := gin.New()
	r.Use(func(c *gin.Context) {
		c.Next()
		for _, e := range c.Errors {
			errs = append(errs, e.Err)
		}
	}, Middleware("session", newStore(t, f.client(t), Options{})))
	r.NoRoute(func(c *gin.Context) { c.Request.Context().Value(doKey{}).(gin.HandlerFunc)(c) })
	s, b := &site{t, r}, newBrowser()
	s.set(b, "k", 1)
	f.fail(errors.New("boom"))
	s.wants(b, "k", 1, Stale)
	if len(errs) != 1 || !errors.Is(errs[0], ErrUnavailable) || !strings.Contains(errs[0].Error(), "boom") {
		t.Errorf("errors %v, want ErrUnavailable and why", errs)
	}
}

func TestARedisThatRefusesWritesIsAskedToRenewOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := fakeSite(t, Options{})
		b := newBrowser()
		s.set(b, "k", 1)
		f.take()
		f.refuse = reply("NOREPLICAS Not enough good replicas to write.")
		for range 5 {
			for range 100 {
				s.wants(b, "k", 1, Live)
			}
			time.Sleep(time.Second)
		}
		renewals := 0
		for _, cmd := range f.take() {
			if cmd == "getex" {
				renewals++
			}
		}
		if renewals != 5 {
			t.Errorf("%d renewals were tried in five seconds, want one a second", renewals)
		}
		f.refuse = nil
		for range 4 { // whoever uses it keeps it
			s.wants(b, "k", 1, Live)
			time.Sleep(defaultIdle - time.Minute)
		}
		s.wants(b, "k", 1, Live)
	})
}

func TestARefusalToWriteIsKnownInTheWordsOfEachRedis(t *testing.T) {
	for text, want := range map[string]bool{
		"OOM command not allowed when used memory > 'maxmemory'. script: 5d, on @user_script:10.":                                              true, // 7.0
		"ERR Error running script (call to f_5d): @user_script:10: @user_script: 10: -OOM command not allowed when used memory > 'maxmemory'.": true, // 6.2
		"ERR Error running script (call to f_5d): @user_script:10: @user_script: 10: -MISCONF Redis is configured to save RDB snapshots, but":  true,
		"ERR Error running script (call to f_5d): @user_script:10: @user_script: 10: -READONLY You can't write against a read only replica.":   false,
		"ERR unknown command 'GETEX', with args beginning with: 'OOM '":                                                                        false,
		"LOADING Redis is loading the dataset in memory":                                                                                       false,
	} {
		if got := refusesWrites(fmt.Errorf("%w: %w", ErrUnavailable, reply(text))); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if refusesWrites(errors.New("OOM of somebody else")) {
		t.Error("not an answer of Redis")
	}
}

func TestASessionThatHoldsNothingIsNotStored(t *testing.T) {
	s, f := fakeSite(t, Options{})
	b := newBrowser()
	w := s.do(b, func(c *gin.Context) {
		session := sessions.Default(c)
		session.Set("k", 1)
		session.Delete("k")
		session.Options(sessions.Options{Path: "/"})
		if err := session.Save(); err != nil {
			t.Error(err)
		}
	})
	if asked, lines := f.take(), setCookies(w); len(asked) != 0 || len(lines) != 0 {
		t.Errorf("Redis was asked %q, the cookies are %q", asked, lines)
	}
}
