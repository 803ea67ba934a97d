package session

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/boj/redistore"
	"github.com/gin-contrib/sessions"
	stock "github.com/gin-contrib/sessions/redis"
	"github.com/gin-gonic/gin"
	gorilla "github.com/gorilla/sessions"

	"github.com/highball-go/highball/internal/rig"
)

func TestFiveConcurrentWritersOfDifferentKeysAllSurvive(t *testing.T) {
	s := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{}))
	b := newBrowser()
	s.set(b, "old", "stays")
	s.set(b, "gone", 1)
	const writers = 5
	var read, done sync.WaitGroup
	read.Add(writers)
	for i := range writers {
		done.Go(func() {
			s.do(b.copy(), func(c *gin.Context) {
				session := sessions.Default(c)
				session.Get("old")
				read.Done()
				read.Wait() // all have read the same
				session.Set(fmt.Sprint("k", i), i)
				if i == 0 {
					session.Delete("gone")
				}
				if err := session.Save(); err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
			})
		})
	}
	done.Wait()
	for i := range writers {
		s.wants(b, fmt.Sprint("k", i), i, Live)
	}
	s.wants(b, "old", "stays", Live)
	s.wants(b, "gone", nil, Live)
}

func TestAValueThatWasChangedInPlaceIsAChange(t *testing.T) {
	s := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{}))
	b := newBrowser()
	s.set(b, "cart", map[string]any{"apples": 1})
	s.do(b, func(c *gin.Context) {
		session := sessions.Default(c)
		cart, _ := session.Get("cart").(map[string]any)
		cart["pears"] = 2
		session.Set("cart", cart)
		s.set(b.copy(), "other", 1) // meanwhile
	})
	cart, _ := s.get(b, "cart")
	if want := map[string]any{"apples": 1, "pears": 2}; !reflect.DeepEqual(cart, want) {
		t.Errorf("cart is %v, want %v", cart, want)
	}
	s.wants(b, "other", 1, Live)
}

func TestIdleAndAbsoluteLifetime(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	store := newStore(t, c, Options{Idle: time.Hour, Absolute: 90 * time.Minute})
	s, b := newSite(t, store), newBrowser()
	s.set(b, "user", "bob")
	key := c.Keys(t.Context(), "session_*").Val()[0]
	lives := func(least, most time.Duration) {
		t.Helper()
		if ttl := c.PTTL(t.Context(), key).Val(); ttl < least || ttl > most {
			t.Errorf("it lives for %v, want %v to %v", ttl, least, most)
		}
	}
	lives(59*time.Minute, time.Hour)
	c.PExpire(t.Context(), key, time.Minute)
	s.wants(b, "user", "bob", Live) // reading renews
	lives(59*time.Minute, time.Hour)

	began := func(ago time.Duration) {
		t.Helper()
		values, _ := serializer{}.Serialize(&gorilla.Session{Values: map[any]any{"user": "bob"}})
		call := store.call(t.Context(), t.Context(), "")
		call.key, call.start = key, time.Now().Add(-ago).UnixMilli()
		c.Del(t.Context(), key)
		if err := call.set(values); err != nil {
			t.Fatal(err)
		}
	}
	began(80 * time.Minute)
	lives(9*time.Minute, 10*time.Minute)
	s.wants(b, "user", "bob", Live)
	s.set(b, "x", 1) // a write does not begin it anew
	lives(9*time.Minute, 10*time.Minute)
	s.wants(b, "user", "bob", Live) // Redis keeps it for Idle now
	raw := []byte(c.Get(t.Context(), key).Val())
	copy(raw[tagEnd:], make([]byte, 5)) // long ago
	raw[recordHead-1] |= 1
	c.Set(t.Context(), key, raw, time.Hour)
	s.wants(b, "user", nil, Live)
}

func TestAnIdleSessionEnds(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	s, b := newSite(t, newStore(t, c, Options{Idle: 500 * time.Millisecond})), newBrowser()
	s.set(b, "user", "bob")
	rig.Poll(t, 10*time.Second, func() error { // asking for the session would renew it
		if n := c.DBSize(t.Context()).Val(); n != 0 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
	s.wants(b, "user", nil, Live)
}

func TestAPanicDropsWhatWasNotSaved(t *testing.T) {
	s, b := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{})), newBrowser()
	s.set(b, "k", 1)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		s.do(b, func(c *gin.Context) {
			sessions.Default(c).Set("k", 2)
			panic("half way")
		})
	}()
	s.wants(b, "k", 1, Live)
}

func TestSessionsOfStockRedistoreAreStillRead(t *testing.T) {
	addr := rig.Redis(t).Addr
	for name, keys := range map[string][][]byte{"signed": {testKey}, "encrypted": {[]byte("short"), []byte("0123456789abcdef")}} {
		for form, serializer := range map[string]redistore.SessionSerializer{"gob": redistore.GobSerializer{}, "json": redistore.JSONSerializer{}} {
			t.Run(name+" "+form, func(t *testing.T) {
				old, err := stock.NewStore(1, "tcp", addr, "", "", keys...)
				if err != nil {
					t.Fatal(err)
				}
				rs, _ := stock.GetRedisStore(old)
				rs.SetSerializer(serializer)
				r := gin.New()
				r.Use(sessions.Sessions("session", old))
				before, b := &site{t, r}, newBrowser()
				r.NoRoute(func(c *gin.Context) { c.Request.Context().Value(doKey{}).(gin.HandlerFunc)(c) })
				before.set(b, "user", "bob")

				store := newStore(t, clientOf(t, addr), Options{})
				store.RediStore().Codecs = append(store.RediStore().Codecs, rs.Codecs...)
				after, stolen := newSite(t, store), b.copy()
				after.wants(b, "user", "bob", Live)
				if b.cookies["session"] == stolen.cookies["session"] {
					t.Error("the cookie was not made anew")
				}
				after.set(b, "n", 1)
				after.wants(b, "user", "bob", Live)
				after.wants(b, "n", 1, Live)
				after.do(b, func(c *gin.Context) { _ = Destroy(c) })
				after.wants(stolen, "user", nil, Live)
			})
		}
	}
}

func TestASessionThatIsTooLargeLeavesTheOldDataIntact(t *testing.T) {
	s, b := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{})), newBrowser()
	s.set(b, "k", "old")
	s.do(b, func(c *gin.Context) {
		sessions.Default(c).Set("k", strings.Repeat("x", 5000))
		if err := sessions.Default(c).Save(); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v", err)
		}
	})
	s.wants(b, "k", "old", Live)
}

// What others wrote is in the values by then, and no change of this request.
func TestASaveThatFailsAfterItMergedUndoesNothingOfOthersLater(t *testing.T) {
	for what, save := range map[string]func(c *gin.Context) error{
		"Save":       func(c *gin.Context) error { return sessions.Default(c).Save() },
		"Regenerate": Regenerate,
	} {
		s, b := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{})), newBrowser()
		half := strings.Repeat("x", defaultMaxBytes*2/3)
		s.set(b, "n", 0)
		s.do(b, func(c *gin.Context) {
			session := sessions.Default(c)
			session.Set("mine", half)
			s.do(b.copy(), func(c *gin.Context) {
				sessions.Default(c).Set("theirs", half)
				sessions.Default(c).Set("n", 1)
			})
			if err := save(c); !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s: %v, want ErrTooLarge", what, err)
			}
			s.set(b.copy(), "n", 2)
			session.Delete("mine")
			session.Set("small", 1)
			if err := session.Save(); err != nil {
				t.Errorf("after %s: %v", what, err)
			}
		})
		s.wants(b, "n", 2, Live)
		s.wants(b, "small", 1, Live)
		s.wants(b, "theirs", half, Live)
	}
}

func TestWhatCannotBeEncodedIsAnErrorThatSaysSo(t *testing.T) {
	s, b := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{})), newBrowser()
	s.set(b, "k", "old")
	loop := map[string]any{}
	loop["self"] = loop
	for _, v := range []any{make(chan int), loop, struct{ X int }{1}} {
		s.do(b, func(c *gin.Context) {
			sessions.Default(c).Set("k", v)
			if err := sessions.Default(c).Save(); err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "the value of k") {
				t.Errorf("%T: %v", v, err)
			}
		})
	}
	s.wants(b, "k", "old", Live)
}

func TestWhatCannotBeReadIsNotOverwritten(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	s, b := newSite(t, newStore(t, c, Options{})), newBrowser()
	s.set(b, "k", "old")
	key := c.Keys(t.Context(), "*").Val()[0]
	c.Set(t.Context(), key, "rubbish", 0)
	s.wants(b, "k", nil, Live)
	s.set(b, "k", "new")
	s.wants(b, "k", "new", Live)
	if v := c.Get(t.Context(), key).Val(); v != "rubbish" {
		t.Errorf("it is %q", v)
	}
}

func TestRedisDoesNotHaveIDsThatMakeCookies(t *testing.T) {
	c := clientOf(t, rig.Redis(t).Addr)
	s, b := newSite(t, newStore(t, c, Options{})), newBrowser()
	s.set(b, "k", 1)
	got, _ := newSigner([][]byte{testKey}).decode("session", b.cookies["session"])
	for _, key := range c.Keys(t.Context(), "*").Val() {
		if strings.Contains(key, got.id) {
			t.Errorf("the id %s is in the key %s", got.id, key)
		}
	}
}

func TestThePoolRunsStockRedistore(t *testing.T) {
	nodes := rig.RedisCluster(t)
	store, err := stock.NewStoreWithPool(RedigoPool(clusterOf(t, nodes)), testKey)
	if err != nil {
		t.Fatal(err)
	}
	r := gin.New()
	r.Use(sessions.Sessions("session", store))
	r.NoRoute(func(c *gin.Context) { c.Request.Context().Value(doKey{}).(gin.HandlerFunc)(c) })
	s := &site{t, r}
	for i := range 30 { // on all nodes
		b := newBrowser()
		s.set(b, "k", i)
		s.do(b, func(c *gin.Context) {
			if v := sessions.Default(c).Get("k"); v != i {
				t.Errorf("k is %v, want %d", v, i)
			}
		})
	}
}

func TestASessionOfGorillasInterfaceStaysTheSameOne(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	store := newStore(t, client, Options{})
	var cookies []*http.Cookie
	var ids []string
	for i := range 3 {
		r, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
		for _, c := range cookies {
			r.AddCookie(c)
		}
		session, err := store.Get(r, "session")
		if err != nil || session.IsNew != (i == 0) || len(session.Values) != i {
			t.Fatalf("request %d: %v, new %v, %v", i, err, session.IsNew, session.Values)
		}
		session.Values[i] = i
		for range 2 { // the second Save is of what the first has written
			if err := session.Save(r, w); err != nil {
				t.Fatal(err)
			}
		}
		if set := w.Result().Cookies(); len(set) > 0 {
			cookies = set
		}
		ids = append(ids, session.ID)
	}
	if n := client.DBSize(t.Context()).Val(); n != 1 || ids[0] == "" || ids[1] != ids[0] || ids[2] != ids[0] {
		t.Errorf("%d sessions with the ids %q, want one", n, ids)
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	keys, c := [][]byte{testKey}, clientOf(t, "127.0.0.1:1")
	for want, o := range map[string]Options{
		"Keys":          {},
		"Keys[1]":       {Keys: [][]byte{testKey, []byte("short")}},
		"Idle":          {Keys: keys, Idle: -1},
		"MaxBytes":      {Keys: keys, MaxBytes: -1},
		"Insecure":      {Keys: keys, Cookie: Cookie{Secure: true, Insecure: true}},
		"SameSite=None": {Keys: keys, Cookie: Cookie{Insecure: true, SameSite: http.SameSiteNoneMode}},
		"slash":         {Keys: keys, Cookie: Cookie{Path: "a"}},
		"Domain":        {Keys: keys, Cookie: Cookie{Domain: "a;b"}},
	} {
		if _, err := New(c, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something of %s", err, want)
		}
	}
	if _, err := New(nil, Options{Keys: keys}); err == nil {
		t.Error("no client is no error")
	}
}

func TestWithoutMiddlewareThereIsNoSession(t *testing.T) {
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	if err := errors.Join(Regenerate(c), Destroy(c)); err == nil || StateOf(c) != Unavailable {
		t.Errorf("%v, %v", err, StateOf(c))
	}
}

func TestAConcurrentReaderOfTheRequestIsNoRace(t *testing.T) {
	s, b := newSite(t, newStore(t, clientOf(t, rig.Redis(t).Addr), Options{})), newBrowser()
	s.do(b, func(c *gin.Context) {
		r := c.Request
		var reader sync.WaitGroup
		reader.Go(func() { _ = r.Context().Err() })
		sessions.Default(c).Get("k")
		reader.Wait()
	})
}
