package session

import (
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	gorilla "github.com/gorilla/sessions"

	"github.com/highball-go/highball/internal/outage"
)

type registered struct{ Name string }

func init() { gob.Register(registered{}) }

func encoded(tb testing.TB, values map[any]any) []byte {
	tb.Helper()
	b, err := serializer{}.Serialize(&gorilla.Session{Values: values})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func decoded(b []byte) (map[any]any, error) {
	s := &gorilla.Session{Values: map[any]any{}}
	err := serializer{}.Deserialize(b, s)
	return s.Values, err
}

func TestValuesKeepTheirTypes(t *testing.T) {
	values := map[any]any{
		"nil": nil, "true": true, "false": false, "string": "häl\x00lo", "bytes": []byte{0, 255},
		"int": -5, "big": math.MinInt, "int64": int64(math.MaxInt64), "uint": uint(7), "uint64": uint64(math.MaxUint64),
		"float": 1.5, "time": time.Date(2026, 11, 22, 13, 0, 0, 5, time.UTC), "strings": []string{"a", ""},
		"list": []any{1, "x", nil, []any{true}}, "map": map[string]any{"a": map[string]any{"b": int64(1)}},
		"int32": int32(3), "struct": registered{"bob"}, 5: "a key that is an int", true: false,
	}
	got, err := decoded(encoded(t, values))
	if err != nil || !reflect.DeepEqual(got, values) {
		t.Errorf("%v\ngot  %#v\nwant %#v", err, got, values)
	}
}

func TestWhatIsCutOffIsCorrupt(t *testing.T) {
	whole := encoded(t, map[any]any{"k": []any{"value", 5, 1.5, time.Now()}})
	for n := range whole {
		if _, err := decoded(whole[:n]); !errors.Is(err, errCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	if _, err := decoded(append(whole, 0)); !errors.Is(err, errCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
}

func FuzzDeserialize(f *testing.F) {
	f.Add(encoded(f, map[any]any{"k": []any{"v", 5, map[string]any{"x": []string{"y"}}}, 1: registered{"bob"}}))
	f.Add([]byte(`{"k":1}`))
	f.Add([]byte{compact, 1, kindList, 0, kindNil})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0 && b[0] != compact {
			return // gob's or JSON's own
		}
		values, err := decoded(b)
		if err != nil {
			return
		}
		again, err := decoded(encoded(t, values))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(values) {
			t.Errorf("%v\n%v\n%v", err, values, again)
		}
	})
}

func TestACookieIsOnlyItself(t *testing.T) {
	s := newSigner([][]byte{testKey})
	id, now := newID(), time.Unix(1_800_000_000, 0)
	value := s.encode("session", id, now)
	if got, ok := s.decode("session", value); !ok || got.id != id || !got.made.Equal(now) || !got.newest {
		t.Errorf("%+v, %v", got, ok)
	}
	for i := range value {
		b := []byte(value)
		if b[i]++; s.Decode("session", string(b), new(string)) == nil {
			t.Errorf("byte %d can be changed", i)
		}
	}
	for _, other := range []string{"", value + "A", value[1:], value + "=", "\n" + value[1:]} {
		if _, ok := s.decode("session", other); ok {
			t.Errorf("%q is taken", other)
		}
	}
	if _, ok := s.decode("other", value); ok {
		t.Error("the cookie of one name is taken for another")
	}
	var back string
	if v, err := s.Encode("session", id); err != nil || s.Decode("session", v, &back) != nil || back != id {
		t.Errorf("as a codec: %v, %q", err, back)
	}
	if _, err := s.Encode("session", "eve"); err == nil {
		t.Error("what is not an id is signed")
	}
}

func TestCopiesAreBoundedAndTheEndedStayEnded(t *testing.T) {
	for _, most := range []int{1, 10, 1000} {
		c, now := newCopies(most), time.Now()
		for i := range 5 * most {
			c.put(fmt.Sprint(i), "record", now)
		}
		n := 0
		for i := range c.shards {
			n += c.shards[i].used.Len()
			if c.shards[i].used.Len() != len(c.shards[i].byID) {
				t.Error("list and map differ")
			}
		}
		if n > most || n == 0 {
			t.Errorf("%d copies, %d are the most", n, most)
		}
	}
	c := newCopies(10)
	c.put("k", "record", time.Now())
	c.end("k")
	c.put("k", "again", time.Now())
	c.drop("k")
	if record, _, ok := c.get("k"); ok || !c.ended("k") {
		t.Errorf("ended, and there is %q", record)
	}
	c.put("other", "new", time.Now())
	c.put("other", "read before that was written", time.Now().Add(-time.Second))
	if record, _, _ := c.get("other"); record != "new" {
		t.Errorf("of two copies the one that stays is %q", record)
	}
	c.drop("other")
	if _, _, ok := c.get("other"); ok || c.ended("other") {
		t.Error("dropped, and there")
	}
}

func TestOnStateIsToldOnceInOrderWithoutALock(t *testing.T) {
	var told []State
	var h health
	a, b := new(outage.Circuit), new(outage.Circuit)
	h.onState = func(s State, _ error) {
		told = append(told, s) // one at a time, or the race detector says so
		h.well(a, false)       // as a request in the hook would
	}
	boom := errors.New("boom")
	h.failed(a, Stale, boom) // the hook heals it
	h.failed(b, Unavailable, boom)
	h.failed(b, Stale, boom)
	h.failed(a, Stale, boom)
	h.well(a, false)
	h.well(b, false)
	h.well(b, true)
	if want := []State{Stale, Live, Unavailable, Live}; !reflect.DeepEqual(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	var many sync.WaitGroup
	for range 8 {
		many.Go(func() {
			for range 100 {
				h.failed(b, Stale, boom)
				h.well(b, false)
			}
		})
	}
	many.Wait()
	for i, s := range told {
		if (s == Live) != (i%2 == 1) {
			t.Fatalf("%d is %v", i, s)
		}
	}
}

// fakeSite is a site on a Redis that a test makes up.
func fakeSite(t *testing.T, o Options) (*site, *fakeRedis) {
	t.Helper()
	f := newFake()
	return newSite(t, newStore(t, f.client(t), o)), f
}

func TestACopyIsServedForStaleAndNoLonger(t *testing.T) {
	for name, tt := range map[string]struct {
		o     Options
		until time.Duration
	}{
		"default":       {Options{}, 5 * time.Minute},
		"never more":    {Options{Stale: time.Hour}, 5 * time.Minute},
		"less":          {Options{Stale: time.Minute}, time.Minute},
		"none":          {Options{Stale: -1}, -1},
		"idle is less":  {Options{Idle: 2 * time.Minute}, 2 * time.Minute},
		"end is before": {Options{Absolute: 3 * time.Minute}, 3*time.Minute - time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, f := fakeSite(t, tt.o)
				b := newBrowser()
				s.set(b, "user", "bob")
				f.fail(errors.New("gone"))
				if tt.until > 0 {
					time.Sleep(tt.until)
					s.wants(b, "user", "bob", Stale)
				}
				time.Sleep(time.Second)
				s.wants(b, "user", nil, Unavailable)
				f.fail(nil)
				time.Sleep(10 * time.Second)
				if tt.o.Absolute == 0 && tt.o.Idle == 0 {
					s.wants(b, "user", "bob", Live)
				}
			})
		})
	}
}

func TestASessionEndsAbsoluteAfterItsLoginHoweverUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := fakeSite(t, Options{})
		b := newBrowser()
		s.set(b, "user", "bob")
		for range 24*4 - 1 {
			time.Sleep(15 * time.Minute)
			s.set(b, "seen", time.Now().Unix())
		}
		s.wants(b, "user", "bob", Live)
		time.Sleep(15 * time.Minute)
		s.wants(b, "user", nil, Live)
	})
}

func TestRegenerateBeginsTheAbsoluteLifetimeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := fakeSite(t, Options{Idle: 20 * time.Hour})
		b := newBrowser()
		s.set(b, "cart", "apples")
		time.Sleep(16 * time.Hour)
		s.do(b, func(c *gin.Context) {
			if err := Regenerate(c); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(16 * time.Hour)
		s.wants(b, "cart", "apples", Live)
	})
}

func TestACookieOutlivesItsSessionWhateverTheRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := fakeSite(t, Options{})
		for _, rhythm := range []time.Duration{time.Minute, 9 * time.Minute, 11 * time.Minute, 19 * time.Minute} {
			b := newBrowser()
			sent := time.Now()
			s.set(b, "user", "bob")
			for range 20 {
				time.Sleep(rhythm)
				if age := time.Since(sent); age >= 30*time.Minute { // Max-Age
					t.Fatalf("every %v: the browser has dropped a cookie %v old", rhythm, age)
				}
				w := s.do(b, func(c *gin.Context) {
					if sessions.Default(c).Get("user") != "bob" {
						t.Errorf("every %v: the session is gone", rhythm)
					}
				})
				if len(setCookies(w)) > 0 {
					sent = time.Now()
				}
			}
		}
	})
}

func TestALostReplyIsNoConflict(t *testing.T) {
	s, f := fakeSite(t, Options{})
	b := newBrowser()
	s.set(b, "n", 1)
	f.repeat = true // as go-redis does when a connection breaks before the reply
	s.set(b, "n", 2)
	s.wants(b, "n", 2, Live)
}

func TestARegenerateThatFailsForgetsNoChange(t *testing.T) {
	s, f := fakeSite(t, Options{})
	b := newBrowser()
	s.set(b, "n", 1)
	old, _ := newSigner([][]byte{testKey}).decode("session", b.cookies["session"])
	b.cookies["session"] = newSigner([][]byte{testKey}).encode("session", old.id, time.Now().Add(-time.Hour)) // it is due
	s.do(b, func(c *gin.Context) {
		session := sessions.Default(c)
		session.Set("n", 2)
		f.fail(errors.New("gone"))
		if err := Regenerate(c); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Regenerate: %v", err)
		}
		if err := session.Save(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Save: %v", err)
		}
	})
	f.fail(nil)
	s.wants(b, "n", 1, Live)
}

func TestWithoutAChangeNothingIsWritten(t *testing.T) {
	s, f := fakeSite(t, Options{})
	b := newBrowser()
	s.set(b, "n", 1)
	f.take()
	s.do(b, func(*gin.Context) {})
	if got := f.take(); len(got) != 0 {
		t.Errorf("untouched: %v", got)
	}
	s.do(b, func(c *gin.Context) {
		session := sessions.Default(c)
		session.Get("n")
		session.Flashes()
		session.Delete("x")
		_ = session.Save()
	})
	if got := f.take(); !reflect.DeepEqual(got, []string{"getex"}) {
		t.Errorf("read: %v", got)
	}
	s.set(b, "n", 2)
	if got := f.take(); !reflect.DeepEqual(got, []string{"getex", "evalsha"}) {
		t.Errorf("read and written: %v", got)
	}
	nobody := newBrowser()
	s.do(nobody, func(c *gin.Context) { sessions.Default(c).Clear() })
	if got := f.take(); len(got) != 0 || len(nobody.cookies) != 0 {
		t.Errorf("nothing to keep: %v, %v", got, nobody.cookies)
	}
}

func TestTheStatesHaveNames(t *testing.T) {
	if got := fmt.Sprint(Live, Stale, Unavailable, State(7)); got != "live stale unavailable State(7)" {
		t.Error(got)
	}
}
