// Package benchmarks measures Highball beside its peers, in one run and on one machine: only the ratios
// mean anything. It is a module of its own so that no peer is ever a dependency of Highball.
package benchmarks

import (
	"errors"
	"testing"
)

var errFailed = errors.New("failed")

// runPeer measures one implementation on one goroutine and on several. do does the work once, and reports
// whether it was really done.
func runPeer(b *testing.B, impl string, do func() bool) {
	b.Helper()
	b.Run("mode=serial/impl="+impl, func(b *testing.B) { runSerial(b, do) })
	b.Run("mode=parallel/impl="+impl, func(b *testing.B) { runParallel(b, do) })
}

// runSerial measures f on one goroutine, and fails when it reports even once that the work was not done.
func runSerial(b *testing.B, f func() bool) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		if !f() {
			b.Fatal("the work was not done")
		}
	}
}

// runParallel is runSerial on GOMAXPROCS goroutines.
func runParallel(b *testing.B, f func() bool) {
	b.Helper()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if !f() {
				b.Error("the work was not done")
				return
			}
		}
	})
}
