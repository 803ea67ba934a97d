package session

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

// A call on a machine with few processors that are busy takes its time: where a test is not about Timeout,
// this is it.
const patient = 2 * time.Second

var testKey = []byte("0123456789abcdef0123456789abcdef")

func clientOf(tb testing.TB, addr string) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func newStore(tb testing.TB, c redis.UniversalClient, o Options) *Store {
	tb.Helper()
	if o.Keys == nil {
		o.Keys = [][]byte{testKey}
	}
	if o.Timeout == 0 {
		o.Timeout = patient
	}
	s, err := New(c, o)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// A site is a Gin service with a session; each request says what its handler does.
type site struct {
	tb testing.TB
	r  *gin.Engine
}

type doKey struct{}

func newSite(tb testing.TB, s *Store, more ...gin.HandlerFunc) *site {
	tb.Helper()
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Use(Middleware("session", s))
	r.Use(more...)
	r.NoRoute(func(c *gin.Context) { c.Request.Context().Value(doKey{}).(gin.HandlerFunc)(c) })
	return &site{tb, r}
}

// A browser keeps the cookies of a site.
type browser struct {
	mu      sync.Mutex // guards cookies
	cookies map[string]string
}

func newBrowser() *browser { return &browser{cookies: make(map[string]string)} }

func (b *browser) copy() *browser {
	return &browser{cookies: map[string]string{"session": b.cookies["session"]}}
}

// do sends a request, and takes the cookies of the answer.
func (s *site) do(b *browser, handler gin.HandlerFunc) *httptest.ResponseRecorder {
	s.tb.Helper()
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	req = req.WithContext(context.WithValue(req.Context(), doKey{}, gin.HandlerFunc(func(c *gin.Context) {
		c.Status(http.StatusOK)
		handler(c)
	})))
	b.mu.Lock()
	for name, value := range b.cookies {
		req.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	b.mu.Unlock()
	w := httptest.NewRecorder()
	s.r.ServeHTTP(w, req)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range w.Result().Cookies() {
		if b.cookies[c.Name] = c.Value; c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		}
	}
	return w
}

// set has the session saved with this value.
func (s *site) set(b *browser, key, value any) {
	s.tb.Helper()
	s.do(b, func(c *gin.Context) {
		sessions.Default(c).Set(key, value)
		if err := sessions.Default(c).Save(); err != nil {
			s.tb.Errorf("set %v: %v", key, err)
		}
	})
}

// get is a value, and the state of the request that asked for it.
func (s *site) get(b *browser, key any) (v any, state State) {
	s.tb.Helper()
	s.do(b, func(c *gin.Context) { v, state = sessions.Default(c).Get(key), StateOf(c) })
	return v, state
}

func (s *site) wants(b *browser, key, value any, state State) {
	s.tb.Helper()
	if v, is := s.get(b, key); v != value || is != state {
		s.tb.Errorf("%v is %v, %v; want %v, %v", key, v, is, value, state)
	}
}

// becomes is nil once a value is read of Redis.
func (s *site) becomes(b *browser, key, value any) error {
	s.tb.Helper()
	if v, state := s.get(b, key); v != value || state != Live {
		return fmt.Errorf("%v is %v, %v; want %v, live", key, v, state, value)
	}
	return nil
}

// setCookies is how often an answer sets the session's cookie.
func setCookies(w *httptest.ResponseRecorder) (lines []string) {
	for _, line := range w.Header()["Set-Cookie"] {
		if strings.HasPrefix(line, "session=") {
			lines = append(lines, line)
		}
	}
	return lines
}

func clusterOf(tb testing.TB, nodes *rig.RedisClusterNodes) *redis.ClusterClient {
	tb.Helper()
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes.Addrs, ContextTimeoutEnabled: true})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}
