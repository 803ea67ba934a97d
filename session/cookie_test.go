package session

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/rig"
)

func TestDeadExpiredAndForeignIDsAreNotAdopted(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	s := newSite(t, newStore(t, c, Options{}))
	other := newSite(t, newStore(t, c, Options{Keys: [][]byte{[]byte(strings.Repeat("x", 32))}}))
	valid, foreign, tampered, gone := newBrowser(), newBrowser(), newBrowser(), newBrowser()
	s.set(gone, "user", "bob")
	if n := c.Del(t.Context(), c.Keys(t.Context(), "session_*").Val()...).Val(); n != 1 {
		t.Fatalf("%d sessions, want 1", n)
	}
	s.set(valid, "user", "bob")
	other.set(foreign, "user", "eve")
	last := "A"
	if strings.HasSuffix(valid.cookies["session"], last) {
		last = "E"
	}
	tampered.cookies["session"] = valid.cookies["session"][:len(valid.cookies["session"])-1] + last
	for name, b := range map[string]*browser{
		"foreign": foreign, "tampered": tampered,
		"made up":         {cookies: map[string]string{"session": "bob"}},
		"long":            {cookies: map[string]string{"session": strings.Repeat("A", 100_000)}},
		"for another use": {cookies: map[string]string{"session": newSigner([][]byte{testKey}).encode("login", newID(), time.Now())}},
		"never issued":    {cookies: map[string]string{"session": newSigner([][]byte{testKey}).encode("session", newID(), time.Now())}},
		"expired":         gone,
	} {
		before := b.cookies["session"]
		s.wants(b, "user", nil, Live)
		if b.cookies["session"] != before {
			t.Errorf("%s: reading set a cookie", name)
		}
		s.set(b, "user", "new")
		if got := b.cookies["session"]; got == "" || len(before) >= idLen && got[:idLen] == before[:idLen] {
			t.Errorf("%s: adopted", name)
		}
		s.wants(b, "user", "new", Live)
	}
	s.wants(valid, "user", "bob", Live)
}

func TestAKeyRotationSignsCookiesAnew(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	newer := []byte(strings.Repeat("n", 32))
	before := newSite(t, newStore(t, c, Options{}))
	during := newSite(t, newStore(t, c, Options{Keys: [][]byte{newer, testKey}}))
	after := newSite(t, newStore(t, c, Options{Keys: [][]byte{newer}}))
	b := newBrowser()
	before.set(b, "user", "bob")
	old := b.copy()
	for i, want := range []int{1, 0} {
		w := during.do(b, func(c *gin.Context) { sessions.Default(c).Get("user") }) // reading is enough
		if lines := setCookies(w); len(lines) != want {
			t.Errorf("request %d: %d cookies, want %d", i, len(lines), want)
		}
	}
	after.wants(b, "user", "bob", Live)
	after.wants(old, "user", nil, Live)
}

func TestTheCookieHasTheAttributesOfTheOptions(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	for _, tt := range []struct {
		name     string
		cookie   Cookie
		verbatim *sessions.Options
		tls      bool
		want     []string
		not      []string
	}{
		{name: "zero", want: []string{"Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=1800"}, not: []string{"Secure", "Domain"}},
		{name: "TLS", tls: true, want: []string{"Secure"}},
		{name: "insecure", cookie: Cookie{Insecure: true}, tls: true, not: []string{"Secure"}},
		{name: "browser", cookie: Cookie{Browser: true}, want: []string{"HttpOnly"}, not: []string{"Max-Age", "Expires"}},
		{
			name: "all", cookie: Cookie{Domain: "example.com", Path: "/a", Secure: true, SameSite: http.SameSiteNoneMode, Partitioned: true},
			want: []string{"Path=/a", "Domain=example.com", "Secure", "SameSite=None", "Partitioned"},
		},
		{name: "Options", verbatim: &sessions.Options{Path: "/b", MaxAge: 7}, want: []string{"Path=/b", "Max-Age=7"}, not: []string{"HttpOnly", "SameSite", "Secure"}},
		{name: "MaxAge 0", verbatim: &sessions.Options{Path: "/"}, not: []string{"Max-Age", "Expires"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			store := newStore(t, c, Options{Cookie: tt.cookie})
			if tt.verbatim != nil {
				store.Options(*tt.verbatim)
			}
			r := gin.New()
			r.Use(Middleware("session", store))
			r.GET("/", func(c *gin.Context) { sessions.Default(c).Set("k", 1) })
			req := httptest.NewRequest(http.MethodGet, "/", nil)
			if tt.tls {
				req.TLS = &tls.ConnectionState{}
			}
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			lines := setCookies(w)
			if len(lines) != 1 {
				t.Fatalf("cookies %q", lines)
			}
			for _, want := range tt.want {
				if !strings.Contains(lines[0]+";", "; "+want+";") {
					t.Errorf("%q lacks %s", lines[0], want)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(lines[0], not) {
					t.Errorf("%q has %s", lines[0], not)
				}
			}
		})
	}
}

func TestASessionWithMaxAgeZeroIsStored(t *testing.T) {
	s, b := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{})), newBrowser()
	s.do(b, func(c *gin.Context) {
		sessions.Default(c).Set("user", "bob")
		sessions.Default(c).Options(sessions.Options{Path: "/"})
	})
	s.wants(b, "user", "bob", Live)
}

func TestTheCookieIsSentOnceAndOnlyWhenItIsDue(t *testing.T) {
	signer := newSigner([][]byte{testKey})
	s, b := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{})), newBrowser()
	saves := func(c *gin.Context) {
		for i := range 3 {
			sessions.Default(c).Set("n", i)
			if err := sessions.Default(c).Save(); err != nil {
				t.Error(err)
			}
		}
		c.String(http.StatusOK, "ok")
		c.String(http.StatusOK, "ok")
	}
	w := s.do(b, saves)
	if lines := setCookies(w); len(lines) != 1 || w.Header().Get("Cache-Control") != `no-cache="Set-Cookie"` {
		t.Errorf("at first: %v", w.Header())
	}
	if lines := setCookies(s.do(b, saves)); len(lines) != 0 {
		t.Errorf("again: %q", lines)
	}
	old, ok := signer.decode("session", b.cookies["session"])
	if !ok {
		t.Fatal("not a cookie of ours")
	}
	b.cookies["session"] = signer.encode("session", old.id, time.Now().Add(-11*time.Minute))
	for name, want := range map[string]int{"past half of Idle": 1} {
		if lines := setCookies(s.do(b, func(c *gin.Context) { sessions.Default(c).Get("n") })); len(lines) != want {
			t.Errorf("%s: %q", name, lines)
		}
	}
	if lines := setCookies(s.do(b, func(*gin.Context) {})); len(lines) != 0 {
		t.Errorf("untouched: %q", lines)
	}
}

func TestAChangeIsSavedBeforeTheHeaders(t *testing.T) {
	s := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{}))
	for name, answer := range map[string]gin.HandlerFunc{
		"nothing":        func(*gin.Context) {},
		"status":         func(c *gin.Context) { c.Status(http.StatusNoContent) },
		"body":           func(c *gin.Context) { c.String(http.StatusOK, "ok") },
		"WriteString":    func(c *gin.Context) { _, _ = c.Writer.WriteString("ok") },
		"WriteHeaderNow": func(c *gin.Context) { c.Writer.WriteHeaderNow() },
		"flush":          func(c *gin.Context) { c.Writer.Flush() },
		"controller":     func(c *gin.Context) { _ = http.NewResponseController(c.Writer).Flush() },
		"abort":          func(c *gin.Context) { c.AbortWithStatus(http.StatusTeapot) },
	} {
		b := newBrowser()
		s.do(b, func(c *gin.Context) {
			sessions.Default(c).Set("k", 1)
			answer(c)
		})
		if v, _ := s.get(b, "k"); v != 1 {
			t.Errorf("%s: k is %v", name, v)
		}
	}
}

func TestTooLateIsAnErrorAndOnlyWhereACookieIsNeeded(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	var errs []error
	s := newSite(t, newStore(t, c, Options{}), func(c *gin.Context) {})
	outer := gin.New()
	outer.Use(func(c *gin.Context) {
		c.Next()
		for _, e := range c.Errors {
			errs = append(errs, e.Err)
		}
	})
	outer.Use(s.r.Handlers...)
	outer.NoRoute(func(c *gin.Context) { c.Request.Context().Value(doKey{}).(gin.HandlerFunc)(c) })
	s.r = outer
	b := newBrowser()
	s.do(b, func(c *gin.Context) {
		c.String(http.StatusOK, "ok")
		sessions.Default(c).Set("k", 1)
		if err := sessions.Default(c).Save(); !errors.Is(err, ErrTooLate) {
			t.Errorf("Save: %v", err)
		}
	})
	if len(errs) != 1 || !errors.Is(errs[0], ErrTooLate) {
		t.Errorf("c.Errors: %v", errs)
	}
	if keys := c.Keys(t.Context(), "*").Val(); len(keys) != 0 {
		t.Errorf("stored nevertheless: %v", keys)
	}
	s.set(b, "k", 1)
	s.do(b, func(c *gin.Context) {
		c.String(http.StatusOK, "ok")
		sessions.Default(c).Set("k", 2)
		if err := Regenerate(c); !errors.Is(err, ErrTooLate) {
			t.Errorf("Regenerate: %v", err)
		}
	})
	s.wants(b, "k", 2, Live)
}

func TestABadNameIsAnErrorAndNoPanic(t *testing.T) {
	store := newStore(t, clientOf(t, "127.0.0.1:1"), Options{})
	for _, mw := range []gin.HandlerFunc{Middleware("a:b;c", store), sessions.Sessions("a:b;c", store)} {
		r := gin.New()
		r.GET("/", mw, func(c *gin.Context) {
			sessions.Default(c).Set("k", 1)
			if err := sessions.Default(c).Save(); err == nil || !strings.Contains(err.Error(), "a:b;c") {
				t.Errorf("Save: %v", err)
			}
		})
		r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	}
}
