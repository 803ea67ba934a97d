package outage

import (
	"testing"
	"time"
)

func TestSlotsAreThoseOfTheSpecification(t *testing.T) {
	for key, want := range map[string]int{"123456789": 0x31C3, "{123456789}x": 0x31C3, "foo{}{123456789}": 4273} {
		if got := SlotOf(key); got != want%ClusterSlots {
			t.Errorf("slot of %q = %d, want %d", key, got, want%ClusterSlots)
		}
	}
}

func TestAnOpenCircuitLetsOneProbeThroughAtATime(t *testing.T) {
	const ms = int64(time.Millisecond)
	c := &For(nil, 100*time.Millisecond, 200*time.Millisecond)[0]
	for i := range Tolerated {
		if c.Open() {
			t.Fatalf("open after %d failures", i)
		}
		c.Heard(false, false, 0)
	}
	now := int64(0)
	for i, pause := range []int64{100 * ms, 100 * ms, 200 * ms, 200 * ms} { // give or take a fourth
		if !c.Open() || c.MayProbe(now+pause*3/4-1) {
			t.Fatalf("%d: closed, or a probe too early", i)
		}
		now += pause * 5 / 4
		if !c.MayProbe(now) || c.MayProbe(now) {
			t.Fatalf("%d: not exactly one probe", i)
		}
		c.Heard(false, false, now) // of a call that began before it opened: says nothing
		c.Heard(false, true, now)
	}
	c.Heard(true, true, now)
	if c.Open() {
		t.Error("open after a probe that was answered")
	}
}
