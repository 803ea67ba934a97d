package benchmarks

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/boj/redistore"
	"github.com/gin-contrib/sessions"
	stock "github.com/gin-contrib/sessions/redis"
	"github.com/gin-gonic/gin"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
	"github.com/highball-go/highball/session"
)

var sessionKey = []byte("0123456789abcdef0123456789abcdef")

// sessionPeer is a service whose requests have sessions of three values, which its handlers read, or read and
// write.
type sessionPeer struct {
	impl    string
	engine  *gin.Engine
	cookies []string
	turn    atomic.Uint32
}

const manySessions = 64 // in turn: requests at the same time are of different ones

// newSessionPeer logs in.
func newSessionPeer(b *testing.B, impl string, middleware gin.HandlerFunc) *sessionPeer {
	b.Helper()
	gin.SetMode(gin.ReleaseMode)
	p := &sessionPeer{impl: impl, engine: gin.New()}
	p.engine.Use(middleware)
	p.engine.GET("/login", func(c *gin.Context) {
		s := sessions.Default(c)
		s.Set("user", "bob@example.com")
		s.Set("role", "admin")
		s.Set("n", 0)
		if s.Save() == nil {
			c.Status(http.StatusNoContent)
		}
	})
	p.engine.GET("/read", func(c *gin.Context) {
		if sessions.Default(c).Get("user") == "bob@example.com" {
			c.Status(http.StatusNoContent)
		}
	})
	p.engine.GET("/write", func(c *gin.Context) {
		s := sessions.Default(c)
		n, _ := s.Get("n").(int)
		s.Set("n", n+1)
		if n < 0 || s.Get("role") != "admin" || s.Save() != nil {
			return
		}
		c.Status(http.StatusNoContent)
	})
	for range manySessions {
		w := httptest.NewRecorder()
		p.engine.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/login", nil))
		cookies := w.Result().Cookies()
		if len(cookies) != 1 {
			b.Fatalf("%s: %d cookies after the login", impl, len(cookies))
		}
		p.cookies = append(p.cookies, cookies[0].Name+"="+cookies[0].Value)
	}
	return p
}

// do sends a request to a path, and reports whether its handler was content.
func (p *sessionPeer) do(path string) func() bool {
	var requests []*http.Request
	for _, cookie := range p.cookies {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Cookie", cookie)
		requests = append(requests, r)
	}
	return func() bool {
		r := *requests[p.turn.Add(1)%manySessions] // gorilla/sessions changes it
		w := sessionWriter{header: make(http.Header)}
		p.engine.ServeHTTP(&w, &r)
		return w.status == http.StatusNoContent
	}
}

type sessionWriter struct {
	header http.Header
	status int
}

func (w *sessionWriter) Header() http.Header         { return w.header }
func (w *sessionWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *sessionWriter) WriteHeader(status int)      { w.status = status }

func newSession(b *testing.B, c redis.UniversalClient) gin.HandlerFunc {
	b.Helper()
	s, err := session.New(c, session.Options{Keys: [][]byte{sessionKey}})
	if err != nil {
		b.Fatal(err)
	}
	return session.Middleware("session", s)
}

// BenchmarkSession has requests that read, or read and write, a session of a real Redis.
func BenchmarkSession(b *testing.B) {
	addr := rig.Redis(b).Addr
	c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	defer c.Close()
	store, err := stock.NewStore(10, "tcp", addr, "", "", sessionKey)
	if err != nil {
		b.Fatal(err)
	}
	peers := []*sessionPeer{
		newSessionPeer(b, "highball", newSession(b, c)),
		newSessionPeer(b, "redistore", sessions.Sessions("session", store)),
	}
	for _, path := range []string{"/read", "/write"} {
		b.Run("op="+path[1:], func(b *testing.B) {
			for _, p := range peers {
				runPeer(b, p.impl, p.do(path))
			}
		})
	}
}

// BenchmarkSessionCPU is the same without a network, without a Redis: what the processor has to do.
func BenchmarkSessionCPU(b *testing.B) {
	c := redis.NewClient(&redis.Options{ContextTimeoutEnabled: true})
	defer c.Close()
	c.AddHook(&memoryHook{data: map[string]string{}})
	conn := &memoryConn{data: map[string][]byte{}}
	rs, err := redistore.NewRediStoreWithPool(&redigo.Pool{MaxIdle: 10, Dial: func() (redigo.Conn, error) { return conn, nil }}, sessionKey)
	if err != nil {
		b.Fatal(err)
	}
	peers := []*sessionPeer{
		newSessionPeer(b, "highball", newSession(b, c)),
		newSessionPeer(b, "redistore", sessions.Sessions("session", ginStore{rs})),
	}
	for _, path := range []string{"/read", "/write"} {
		b.Run("op="+path[1:], func(b *testing.B) {
			for _, p := range peers {
				b.Run("impl="+p.impl, func(b *testing.B) { runSerial(b, p.do(path)) })
			}
		})
	}
}

// BenchmarkSessionUntouched is a request whose handler has no interest in its session, beside one without,
// and one for which something sets any value in gin's context, which costs the map.
func BenchmarkSessionUntouched(b *testing.B) {
	c := redis.NewClient(&redis.Options{ContextTimeoutEnabled: true})
	defer c.Close()
	sets := func(c *gin.Context) { c.Set("request", "id") }
	none := func(*gin.Context) {}
	for _, bench := range []struct {
		name     string
		handlers []gin.HandlerFunc
	}{
		{"impl=none", []gin.HandlerFunc{none, none}},
		{"impl=gin.Set", []gin.HandlerFunc{sets, none}},
		{"impl=highball", []gin.HandlerFunc{sets, newSession(b, c)}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			gin.SetMode(gin.ReleaseMode)
			r := gin.New()
			r.Use(bench.handlers...)
			r.GET("/", func(c *gin.Context) { c.Status(http.StatusNoContent) })
			req, w := httptest.NewRequest(http.MethodGet, "/", nil), &sessionWriter{header: http.Header{}}
			runSerial(b, func() bool {
				w.status = 0
				r.ServeHTTP(w, req)
				return w.status == http.StatusNoContent
			})
		})
	}
}

type ginStore struct{ *redistore.RediStore }

func (s ginStore) Options(o sessions.Options) { s.RediStore.Options = o.ToGorillaOptions() }

// memoryConn is a redigo connection to nothing, for one goroutine.
type memoryConn struct{ data map[string][]byte }

func (*memoryConn) Close() error              { return nil }
func (*memoryConn) Err() error                { return nil }
func (*memoryConn) Send(string, ...any) error { return nil }
func (*memoryConn) Flush() error              { return nil }
func (*memoryConn) Receive() (any, error)     { return nil, nil }
func (c *memoryConn) Do(cmd string, args ...any) (any, error) {
	switch cmd {
	case "GET":
		return c.data[args[0].(string)], nil
	case "SETEX":
		c.data[args[0].(string)] = args[2].([]byte)
		return "OK", nil
	}
	return "PONG", nil
}

// memoryHook answers go-redis in the place of a server.
type memoryHook struct{ data map[string]string }

func (*memoryHook) DialHook(redis.DialHook) redis.DialHook {
	return func(context.Context, string, string) (net.Conn, error) { panic("it dials") }
}

func (*memoryHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (h *memoryHook) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, cmd redis.Cmder) error {
		args := cmd.Args()
		switch c := cmd.(type) {
		case *redis.StringCmd: // GETEX key
			v, ok := h.data[args[1].(string)]
			if !ok {
				return redis.Nil
			}
			c.SetVal(v)
		case *redis.Cmd: // EVALSHA sha 1 key from to ms
			h.data[args[3].(string)] = args[5].(string)
			c.SetVal(int64(1))
		}
		return nil
	}
}
