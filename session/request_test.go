package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/outage"
	"github.com/highball-go/highball/internal/rig"
)

func TestALogoutWhileRedisIsAwayHoldsHere(t *testing.T) {
	r := rig.Redis(t)
	s, b := newSite(t, newStore(t, clientOf(t, r.Addr), Options{Timeout: quick})), newBrowser()
	s.set(b, "user", "bob")
	stolen, waits := b.copy(), newBrowser()
	s.set(waits, "k", 1)
	r.Hang()
	w := s.do(b, func(c *gin.Context) {
		if err := Destroy(c); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Destroy: %v", err)
		}
		if state := StateOf(c); state != Unavailable {
			t.Errorf("after a logout that failed: %v", state)
		}
	})
	if lines := setCookies(w); len(lines) != 1 || b.cookies["session"] != "" {
		t.Errorf("the cookie is not cleared: %q", lines)
	}
	s.wants(stolen, "user", nil, Unavailable)
	r.Resume()
	rig.Poll(t, 15*time.Second, func() error { return s.becomes(waits, "k", 1) })
	s.wants(stolen, "user", nil, Live)
	rig.Poll(t, 5*time.Second, func() error {
		if n := adminOf(t, r.Addr).DBSize(t.Context()).Val(); n != 1 {
			return fmt.Errorf("%d sessions, want 1", n)
		}
		return nil
	})
}

func TestRequireAnswers503WhileRedisIsAway(t *testing.T) {
	r := rig.Redis(t)
	store := newStore(t, clientOf(t, r.Addr), Options{Timeout: quick})
	open, strict := newSite(t, store), newSite(t, store, Require())
	b, nobody := newBrowser(), newBrowser()
	open.set(b, "user", "bob")
	ok := func(c *gin.Context) { c.String(http.StatusOK, "ok") }
	for _, b := range []*browser{b, nobody} {
		if w := strict.do(b, ok); w.Code != http.StatusOK {
			t.Errorf("with Redis: %d", w.Code)
		}
	}
	r.Hang()
	for _, b := range []*browser{b, nobody} {
		w := strict.do(b, func(*gin.Context) { t.Error("the handler ran") })
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("without Redis: %d, %v", w.Code, w.Header())
		}
	}
	r.Resume()
	rig.Poll(t, 15*time.Second, func() error {
		if w := strict.do(nobody, ok); w.Code != http.StatusOK {
			return fmt.Errorf("%d", w.Code)
		}
		return nil
	})
}

func TestAClientThatLeavesIsNotRedisBeingAway(t *testing.T) {
	r := rig.Redis(t)
	var told changes
	store := newStore(t, clientOf(t, r.Addr), Options{OnState: told.on})
	s, b := newSite(t, store), newBrowser()
	s.set(b, "user", "bob")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	req.AddCookie(&http.Cookie{Name: "session", Value: b.cookies["session"]})
	for range 2 * outage.Tolerated {
		if session, err := store.New(req, "session"); session == nil || !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	}
	s.wants(b, "user", "bob", Live)
	if all := told.take(); len(all) != 0 {
		t.Errorf("OnState was told %v", all)
	}
}

func TestAWriteOutlivesAClientThatLeaves(t *testing.T) {
	r := rig.Redis(t)
	s, b := newSite(t, newStore(t, clientOf(t, r.Addr), Options{})), newBrowser()
	s.set(b, "user", "bob")
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(context.WithValue(ctx, doKey{}, gin.HandlerFunc(func(c *gin.Context) {
		sessions.Default(c).Set("paid", true)
		cancel()
	})), http.MethodGet, "/", nil)
	req.AddCookie(&http.Cookie{Name: "session", Value: b.cookies["session"]})
	s.r.ServeHTTP(discard{}, req)
	s.wants(b, "paid", true, Live)
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}
