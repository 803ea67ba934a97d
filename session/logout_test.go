package session

import (
	"errors"
	"strings"
	"testing"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/rig"
)

func TestALogoutStaysALogout(t *testing.T) {
	addr := rig.Redis(t).Addr
	here, there := newSite(t, newStore(t, clientOf(t, addr), Options{})), newSite(t, newStore(t, clientOf(t, addr), Options{}))
	for name, logout := range map[string]gin.HandlerFunc{
		"Destroy": func(c *gin.Context) {
			if err := Destroy(c); err != nil {
				t.Error(err)
			}
		},
		"Destroy of a session that was read": func(c *gin.Context) {
			sessions.Default(c).Get("user")
			if err := Destroy(c); err != nil {
				t.Error(err)
			}
		},
		"MaxAge -1": func(c *gin.Context) { sessions.Default(c).Options(sessions.Options{Path: "/", MaxAge: -1}) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBrowser()
			here.set(b, "user", "bob")
			stolen := b.copy()
			here.do(b.copy(), func(c *gin.Context) {
				session := sessions.Default(c)
				session.Set("last", "page")
				w := there.do(b, logout) // while this one is in flight
				if lines := setCookies(w); len(lines) != 1 || !strings.Contains(lines[0], "Max-Age=0") {
					t.Errorf("the logout sets %q", lines)
				}
				if err := session.Save(); !errors.Is(err, ErrGone) {
					t.Errorf("the write in flight: %v, want ErrGone", err)
				}
			})
			if _, ok := b.cookies["session"]; ok {
				t.Error("the cookie is still there")
			}
			here.wants(stolen, "user", nil, Live)
			there.wants(stolen, "user", nil, Live)
			before := stolen.cookies["session"]
			if here.set(stolen, "user", "eve"); stolen.cookies["session"][:idLen] == before[:idLen] {
				t.Error("the id lives again")
			}
		})
	}
}

func TestALogoutEndsTheSessionThatTheRequestHasBegun(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	s := newSite(t, newStore(t, client, Options{}))
	known := newBrowser()
	s.set(known, "k", 1)
	for what, b := range map[string]*browser{"a new session": newBrowser(), "a new id": known} {
		s.do(b, func(c *gin.Context) {
			session := sessions.Default(c)
			session.Set("user", "bob")
			if err := errors.Join(session.Save(), Regenerate(c), Destroy(c)); err != nil {
				t.Error(err)
			}
		})
		if b.cookies["session"] != "" {
			t.Errorf("%s: the cookie is not cleared", what)
		}
	}
	if keys := client.Keys(t.Context(), "*").Val(); len(keys) != 0 {
		t.Errorf("%q live on", keys)
	}
}

func TestWhatIsSetAfterALogoutBeginsANewSession(t *testing.T) {
	s := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{}))
	b := newBrowser()
	s.set(b, "user", "bob")
	old := b.copy()
	w := s.do(b, func(c *gin.Context) {
		_ = Destroy(c)
		sessions.Default(c).AddFlash("bye")
	})
	if lines := setCookies(w); len(lines) != 1 {
		t.Errorf("%d cookies: %q", len(lines), lines)
	}
	s.wants(b, "user", nil, Live)
	s.wants(old, "user", nil, Live)
	s.do(b, func(c *gin.Context) {
		if f := sessions.Default(c).Flashes(); len(f) != 1 || f[0] != "bye" {
			t.Errorf("flashes %v", f)
		}
	})
}

func TestRegenerateLeavesThePlantedIDBehind(t *testing.T) {
	s := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{}))
	b := newBrowser()
	s.set(b, "cart", "apples")
	planted := b.copy()
	w := s.do(b, func(c *gin.Context) {
		sessions.Default(c).Set("user", "bob")
		s.set(planted.copy(), "seen", 1) // meanwhile, under the old one
		if err := Regenerate(c); err != nil {
			t.Error(err)
		}
		sessions.Default(c).Set("later", true)
	})
	if lines := setCookies(w); len(lines) != 1 {
		t.Errorf("%d cookies: %q", len(lines), lines)
	}
	for key, want := range map[string]any{"cart": "apples", "user": "bob", "seen": 1, "later": true} {
		s.wants(b, key, want, Live)
	}
	s.wants(planted, "cart", nil, Live)
	s.wants(planted, "user", nil, Live)
}

func TestRegenerateDoesNotUndoALogout(t *testing.T) {
	s := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{}))
	b := newBrowser()
	s.set(b, "user", "bob")
	s.do(b, func(c *gin.Context) {
		sessions.Default(c).Get("user")
		s.do(b.copy(), func(c *gin.Context) { _ = Destroy(c) })
		if err := Regenerate(c); !errors.Is(err, ErrGone) {
			t.Errorf("%v, want ErrGone", err)
		}
	})
	s.wants(b, "user", nil, Live)
}
