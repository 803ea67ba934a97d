package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

func clientOf(tb testing.TB, addr string) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// memberOf is a store without a loop, so that the test says when it exchanges.
func memberOf(c redis.UniversalClient, name string) *redisStore {
	return newRedisStore(c, withDefaults(Options{Instance: name}))
}

func exchanged(tb testing.TB, s *redisStore, own counts) *snapshot {
	tb.Helper()
	got, err := s.exchange(tb.Context(), own)
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

// wantExactly ignores the others where there are none.
func wantExactly(tb testing.TB, got *snapshot, instances int, want map[string]sum) {
	tb.Helper()
	if got.circuits[others] == (sum{}) {
		delete(got.circuits, others)
	}
	if got.instances != instances || !maps.Equal(got.circuits, want) {
		tb.Errorf("%d instances and %v, want %d and %v", got.instances, got.circuits, instances, want)
	}
}

// The model is the hub of the other tests, which so are about what really happens.
func TestTheScriptDoesWhatTheModelDoes(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	random := rand.New(rand.NewPCG(1, 2))
	model := newHub()
	names := []string{"", "x", "GET /users/:id", "\x00\xff\n{}%", "ü 1 2\n", strings.Repeat("z", maxName)}
	for range 400 {
		who := fmt.Sprint("instance ", random.IntN(5))
		if random.IntN(10) == 0 {
			if err := memberOf(client, who).leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = member{model, who}.leave(t.Context())
			continue
		}
		own := counts{}
		for range random.IntN(5) {
			errs := random.Int64N(3)
			own[names[random.IntN(len(names))]] = count{errs + 1 + random.Int64N(1<<40), errs}
		}
		want, _ := member{model, who}.exchange(t.Context(), own)
		wantExactly(t, exchanged(t, memberOf(client, who), own), want.instances, want.circuits)
		if t.Failed() {
			return
		}
	}
}

func TestWhatIsToldTwiceCountsOnce(t *testing.T) {
	s := memberOf(clientOf(t, rig.Redis(t).Addr), "a")
	for range 3 {
		wantExactly(t, exchanged(t, s, counts{"x": {7, 3}}), 1, map[string]sum{"x": {count{7, 3}, 1}})
	}
}

// Those of the past died; those of the future were heard of before the clock of Redis was set back.
func TestWhoIsNotHeardOfNowIsForgotten(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	a, b, c := memberOf(client, "a"), memberOf(client, "b"), memberOf(client, "c")
	exchanged(t, a, counts{"x": {10, 5}})
	exchanged(t, b, counts{"x": {10, 0}, "y": {1, 1}})
	wantExactly(t, exchanged(t, c, nil), 3, map[string]sum{"x": {count{20, 5}, 1}, "y": {count{1, 1}, 1}})
	now := time.Now()
	client.ZAdd(t.Context(), a.keys[0],
		redis.Z{Score: float64(now.Add(-5 * time.Second).UnixMilli()), Member: "a"},
		redis.Z{Score: float64(now.Add(time.Hour).UnixMilli()), Member: "b"})
	wantExactly(t, exchanged(t, c, nil), 1, map[string]sum{})
	wantExactly(t, exchanged(t, b, counts{"y": {2, 2}}), 2, map[string]sum{"y": {count{2, 2}, 1}})
}

func TestWhatRedisEvictsIsToldAnew(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	a, b := memberOf(client, "a"), memberOf(client, "b")
	for _, key := range a.keys {
		exchanged(t, a, counts{"x": {10, 5}})
		exchanged(t, b, counts{"x": {10, 5}})
		client.Del(t.Context(), key)
		wantExactly(t, exchanged(t, a, counts{"x": {10, 5}}), 1, map[string]sum{"x": {count{10, 5}, 1}})
		wantExactly(t, exchanged(t, b, counts{"x": {10, 5}}), 2, map[string]sum{"x": {count{20, 10}, 2}})
	}
}

func TestNothingStaysInRedis(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	s := memberOf(client, "a")
	exchanged(t, s, counts{"x": {10, 5}})
	for _, key := range s.keys {
		if d, err := client.PTTL(t.Context(), key).Result(); err != nil || d <= 0 || d > 8*time.Second {
			t.Errorf("%s lives for %v, %v; want 8 s at most", key, d, err)
		}
	}
}

func TestRedisTellsApartOnlySoManyCircuits(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	a, b := memberOf(client, "a"), memberOf(client, "b")
	first, second := counts{}, counts{}
	for i := range maxCircuits {
		first.add(fmt.Sprint("first", i), count{2, 1})
		second.add(fmt.Sprint("second", i), count{3, 1})
	}
	exchanged(t, a, first)
	for range 2 {
		s := exchanged(t, b, second)
		all, rest := s.all(), s.circuits[others]
		if len(s.circuits) > maxCircuits+1 || all != (count{5 * maxCircuits, 2 * maxCircuits}) || rest.total < 3*(maxCircuits-1) {
			t.Fatalf("%d circuits, %+v in all and %+v of the others", len(s.circuits), all, rest)
		}
	}
	if err := a.leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := exchanged(t, b, second); len(s.circuits) != maxCircuits+1 && len(s.circuits) != maxCircuits ||
		s.circuits["second7"] != (sum{count{3, 1}, 1}) || s.all() != (count{3 * maxCircuits, maxCircuits}) {
		t.Errorf("%d circuits, %+v in all, after the first has left", len(s.circuits), s.all())
	}
}

func TestServicesDoNotMeet(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	for _, service := range []string{"a", "{a}", "}a{", "a:told", "", "ü"} {
		s := newRedisStore(client, withDefaults(Options{Service: service}))
		wantExactly(t, exchanged(t, s, counts{"x": {1, 0}}), 1, map[string]sum{"x": {count{1, 0}, 0}})
	}
}

func TestAKeyOfSomebodyElseIsAnError(t *testing.T) {
	client := clientOf(t, rig.Redis(t).Addr)
	s := memberOf(client, "a")
	exchanged(t, s, nil)
	client.HSet(t.Context(), s.keys[2], "x", "theirs")
	if got, err := s.exchange(t.Context(), counts{"x": {1, 0}}); err == nil {
		t.Errorf("%+v, want an error", got)
	}
	if got := client.HGetAll(t.Context(), s.keys[1]).Val()["a"]; got != "" {
		t.Errorf("%q was written all the same", got)
	}
}

func TestParse(t *testing.T) {
	s, err := parse([]any{int64(3), "GET+%2Fx", "10 5 2", "%00others", "0 0 0"})
	if err != nil || s.instances != 3 || s.circuits["GET /x"] != (sum{count{10, 5}, 2}) || len(s.circuits) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range [][]any{
		nil,
		{},
		{nil},
		{"1"},
		{int64(0)},
		{int64(-1)},
		{int64(1), "x"},
		{int64(1), "x", nil},
		{int64(1), nil, "1 1 1"},
		{int64(1), "x", int64(1)},
		{int64(1), "x", ""},
		{int64(1), "x", "1 1"},
		{int64(1), "x", "1 1 1 1"},
		{int64(1), "x", "1 2 1"}, // more errors than requests
		{int64(1), "x", "2 1 2"}, // more instances than errors
		{int64(1), "x", "-1 0 0"},
		{int64(1), "x", "1 0 0\n"},
		{int64(1), "x", "1e3 0 0"},
		{int64(1), "x", "9007199254740993 0 0"},
		{int64(1), "%zz", "1 0 0"},
		slices.Repeat([]any{int64(1)}, 2*maxCircuits+5),
	} {
		if s, err := parse(bad); err == nil {
			t.Errorf("parse(%.200q) = %+v, want an error", bad, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(int64(3), "GET+%2Fx", "10 5 2")
	f.Add(int64(-1), "%", "1 2 3")
	f.Fuzz(func(t *testing.T, live int64, name, text string) {
		s, err := parse([]any{live, name, text})
		if err != nil {
			return
		}
		for _, n := range s.circuits {
			if s.instances < 1 || n.errors < 0 || n.errors > n.total || n.seeing < 0 || int64(n.seeing) > n.errors {
				t.Errorf("parse(%d, %q, %q) = %+v", live, name, text, s)
			}
		}
	})
}

func FuzzLinesNameTheirCircuits(f *testing.F) {
	f.Add("GET /users/:id")
	f.Add(" 1 2\n\x00{")
	f.Fuzz(func(t *testing.T, circuit string) {
		line := lines(counts{circuit: {7, 3}})
		name, sums, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		s, err := parse([]any{int64(1), name, sums + " 1"})
		if err != nil || strings.ContainsAny(name, " \n") || s.circuits[circuit] != (sum{count{7, 3}, 1}) {
			t.Errorf("%q is told as %q: %+v, %v", circuit, line, s, err)
		}
	})
}
