package cluster

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestTheLastWordStandsForThreeIntervalsThenEachIsForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		a, b := h.instance(t, "a", Options{}), h.instance(t, "b", Options{})
		intervals(2)
		a.Report("x", 30, 10)
		b.Report("x", 30, 10)
		intervals(2)
		h.set(func() { h.away = true })
		intervals(1.9)
		wantSums(t, a, "x", 60, 20, 2)
		intervals(2.2) // of the last word up to one had passed, and one is to notice
		wantSums(t, a, "x", 30, 10, 1)
		a.Report("x", 30, 30)
		intervals(1)
		wantSums(t, a, "x", 60, 40, 1)
		wantSums(t, b, "x", 30, 10, 1)
		wantAdmission(t, a, 0.25, 0.5)
		wantAdmission(t, b, 1, 1)
		h.set(func() { h.away = false })
		intervals(2)
		wantSums(t, b, "x", 90, 50, 2) // what was counted meanwhile is told
	})
}

func TestWithoutRedisAnInstanceIsForItselfAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(nil, Options{})
		defer c.Close()
		synctest.Wait() // its first exchange
		c.Report("x", 100, 60)
		wantSums(t, c, "x", 0, 0, 1)
		intervals(1)
		wantSums(t, c, "x", 100, 60, 1)
		wantAdmission(t, c, 0.5, 0.5)
	})
}

func TestARedisThatComesBackEmptyKnowsAllAfterOneInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		a, b := h.instance(t, "a", Options{}), h.instance(t, "b", Options{})
		a.Report("x", 30, 10)
		b.Report("x", 30, 10)
		intervals(3)
		h.set(func() { clear(h.told) })
		intervals(2)
		wantSums(t, a, "x", 60, 20, 2)
		wantSums(t, b, "x", 60, 20, 2)
	})
}

func TestAHungRedisHoldsUpNobodyAndItsLateWordCountsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		a, b := h.instance(t, "a", Options{}), h.instance(t, "b", Options{})
		a.Report("x", 30, 10)
		b.Report("x", 30, 10)
		intervals(2)
		hung := make(chan struct{})
		h.set(func() { h.hung = hung })
		intervals(5)
		begin := time.Now()
		a.Report("x", 70, 70)
		wantSums(t, a, "x", 30, 10, 1)
		if waited := time.Since(begin); waited != 0 {
			t.Errorf("a request waited for %v", waited)
		}
		intervals(1)
		wantSums(t, a, "x", 100, 80, 1)
		h.set(func() { h.hung = nil })
		close(hung)
		synctest.Wait()
		wantSums(t, a, "x", 100, 80, 1) // it answered what was asked six intervals ago
		intervals(2)
		wantSums(t, a, "x", 130, 90, 2)
		h.set(func() {
			if h.most > 2 {
				t.Errorf("%d exchanges at once of two instances", h.most)
			}
		})
	})
}

func TestCloseTakesTheInstanceOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		a, b := h.instance(t, "a", Options{}), h.instance(t, "b", Options{})
		b.Report("x", 100, 100)
		intervals(3)
		wantAdmission(t, b, 0.1, 0.3)
		begin := time.Now()
		for range 3 {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(begin); took != 0 || h.instances() != 1 {
			t.Errorf("Close took %v, and %d instances are left", took, h.instances())
		}
		wantSums(t, b, "x", 0, 0, 1)
		wantAdmission(t, b, 1, 1)
		b.Report("x", 1, 1)
		intervals(2)
		wantSums(t, a, "x", 0, 0, 1)
	}) // which fails if a goroutine is left
}

func TestCloseWaitsForAnExchangeThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		c := h.instance(t, "a", Options{})
		hung := make(chan struct{})
		h.set(func() { h.hung = hung })
		intervals(1.5)
		time.AfterFunc(100*time.Millisecond, func() { close(hung) })
		begin := time.Now()
		_ = c.Close()
		if took := time.Since(begin); took != 100*time.Millisecond || h.instances() != 0 {
			t.Errorf("Close took %v, and %d instances are left", took, h.instances())
		}
	})
}

func TestCloseDoesNotWaitForAHungRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		hung := make(chan struct{})
		h.hung = hung
		c := h.instance(t, "a", Options{})
		intervals(1)
		begin := time.Now()
		_ = c.Close()
		if took := time.Since(begin); took > closeWithin {
			t.Errorf("Close took %v", took)
		}
		close(hung) // its client gives up, and with it ends the last goroutine
	})
}

func TestOnChangeMayClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Cluster
		c = newHub().instance(t, "a", Options{OnChange: func(float64) { _ = c.Close() }})
		synctest.Wait()
		c.Report("x", 100, 100)
		intervals(2)
		wantAdmission(t, c, 1, 1)
	})
}
