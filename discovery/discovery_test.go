package discovery

import (
	"context"
	"iter"
	"testing"
	"testing/synctest"
)

// ids follows a watch and sends the IDs of each snapshot, joined.
func ids(watch iter.Seq2[[]Instance, error]) <-chan string {
	out := make(chan string, 16)
	go func() {
		defer close(out)
		for in, err := range watch {
			s := ""
			if err != nil {
				s = err.Error()
			}
			for _, i := range in {
				s += i.ID
			}
			out <- s
		}
	}()
	return out
}

func TestStaticYieldsOnceAndEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		got := ids(Static{"orders": {{ID: "a"}, {ID: "b"}}}.Watch(ctx, "orders"))
		if s := <-got; s != "ab" {
			t.Errorf("first snapshot = %q, want ab", s)
		}
		synctest.Wait()
		if len(got) != 0 {
			t.Errorf("a second snapshot %q came", <-got)
		}
		cancel()
		if s, ok := <-got; ok {
			t.Errorf("snapshot %q after the end of ctx", s)
		}
	})
}

func TestStaticHasNoInstancesOfAnUnknownService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if s, ok := <-ids(Static{}.Watch(t.Context(), "orders")); s != "" || !ok {
			t.Errorf("snapshot = %q, %v; want an empty one", s, ok)
		}
	})
}

func TestEveryWatcherOfMemorySeesASetAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		one, two := ids(m.Watch(t.Context(), "orders")), ids(m.Watch(t.Context(), "orders"))
		for _, w := range []<-chan string{one, two} {
			if s := <-w; s != "" {
				t.Errorf("before the first Set: %q, want none", s)
			}
		}
		m.Set("orders", Instance{ID: "a"})
		m.Set("users", Instance{ID: "x"})
		synctest.Wait()
		for _, w := range []<-chan string{one, two} {
			if s := <-w; s != "a" {
				t.Errorf("after Set: %q, want a", s)
			}
			if len(w) != 0 {
				t.Errorf("another service's Set was seen: %q", <-w)
			}
		}
	})
}

func TestASlowWatcherSeesOnlyTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		next, stop := iter.Pull2(m.Watch(t.Context(), "orders"))
		defer stop()
		_, _, _ = next()
		m.Set("orders", Instance{ID: "a"})
		m.Set("orders", Instance{ID: "b"})
		if in, _, _ := next(); len(in) != 1 || in[0].ID != "b" {
			t.Errorf("snapshot = %v, want b", in)
		}
	})
}

func TestSetCopiesItsArguments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		in := []Instance{{ID: "a"}}
		m.Set("orders", in...)
		in[0].ID = "changed"
		if s := <-ids(m.Watch(t.Context(), "orders")); s != "a" {
			t.Errorf("snapshot = %q, want a", s)
		}
	})
}

func TestAWatchThatIsLeftEnds(t *testing.T) {
	m := NewMemory()
	for range m.Watch(t.Context(), "orders") {
		break
	}
	for range (Static{}).Watch(t.Context(), "orders") {
		break
	}
}

func TestEqualLooksAtEveryField(t *testing.T) {
	a := Instance{ID: "a", Addr: "h:1", Weight: 2, Zone: "z", Tags: []string{"t"}, Meta: map[string]string{"k": "v"}}
	if !a.Equal(a) {
		t.Error("an instance does not equal itself")
	}
	for _, change := range []func(*Instance){
		func(i *Instance) { i.ID = "b" },
		func(i *Instance) { i.Addr = "h:2" },
		func(i *Instance) { i.Weight = 3 },
		func(i *Instance) { i.Zone = "" },
		func(i *Instance) { i.Tags = nil },
		func(i *Instance) { i.Meta = map[string]string{"k": "w"} },
	} {
		b := a
		change(&b)
		if a.Equal(b) {
			t.Errorf("%v equals %v", a, b)
		}
	}
}
