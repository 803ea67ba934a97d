package recovery

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func index(s []int, i int) int { return s[i] }

var debugStack = regexp.MustCompile(`^(\S+\n\t\S+:\d+\n)+$`)

func TestFramesStartWhereItPanicked(t *testing.T) {
	var (
		none  *struct{ x int }
		noMap map[string]int
	)
	for name, h := range map[string]func(){
		"call":      func() { panic("boom") },
		"index":     func() { index(nil, 3) },
		"nil":       func() { none.x++ },
		"map":       func() { noMap["a"] = 1 },
		"repanic":   func() { defer func() { panic(recover()) }(); panic("boom") },
		"interface": func() { _ = any(1).(string) },
	} {
		var p Panic
		r, _ := engine(func(*gin.Context) { h() }, OnPanic(func(got Panic) { p = got }))
		get(r)
		top, _, _ := strings.Cut(string(p.Stack), "\n")
		if !strings.Contains(top, "recovery.index") && !strings.Contains(top, "TestFramesStartWhereItPanicked") {
			t.Errorf("%s: first frame %q, want that of the panic; all:\n%s", name, top, p.Stack)
		}
		if !debugStack.Match(p.Stack) {
			t.Errorf("%s: not in the form of debug.Stack:\n%s", name, p.Stack)
		}
		if !strings.Contains(string(p.Stack), "recovery_test.go:") || strings.Contains(string(p.Stack), "boom") {
			t.Errorf("%s: stack without places or with source text:\n%s", name, p.Stack)
		}
	}
}

type nilDeref struct{ err error }

func (e *nilDeref) Error() string { return e.err.Error() }
func (e *nilDeref) Unwrap() error { return e.err }

type rude struct{}

func (rude) String() string { panic("in String") }

func TestAnyValueCanBeLogged(t *testing.T) {
	type private struct{ password string }
	for _, tt := range []struct {
		v    any
		want string
	}{
		{"text", "text"},
		{errors.New("an error"), "an error"},
		{42, "42"},
		{time.Second, "1s"},
		{private{"hunter2"}, "(recovery.private)"},
		{[]string{"hunter2"}, "([]string)"},
		{(*nilDeref)(nil), "<nil>"},
		{rude{}, "%!v(PANIC=String method: in String)"},
		{strings.Repeat("x", 1<<20), strings.Repeat("x", maxText) + "…"},
	} {
		r, logs := engine(func(*gin.Context) { panic(tt.v) })
		if w := get(r); w.Code != http.StatusInternalServerError {
			t.Errorf("panic(%T): status %d, want 500", tt.v, w.Code)
		}
		if got := logs.All()[0].ContextMap()["panic"]; got != tt.want {
			t.Errorf("panic(%T) is logged as %.100q, want %.100q", tt.v, got, tt.want)
		}
	}
}

// TestPanicNil runs itself again under GODEBUG=panicnil=1, where recover returns nil for panic(nil).
func TestPanicNil(t *testing.T) {
	if os.Getenv("GODEBUG") != "panicnil=1" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPanicNil$")
		cmd.Env = append(os.Environ(), "GODEBUG=panicnil=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("under GODEBUG=panicnil=1: %v\n%s", err, out)
		}
	}
	r, logs := engine(func(*gin.Context) { panic(nil) }) //nolint:govet // on purpose
	if w := get(r); w.Code != http.StatusInternalServerError || logs.FilterMessage("panic").Len() != 1 {
		t.Errorf("status %d, log %v; want 500 and a panic", w.Code, logs.All())
	}
}

func TestTenThousandPanicsASecondLeaveAFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, logs := engine(func(*gin.Context) { panic("boom") })
		storm := func() {
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() {
					for range 100 {
						if w := get(r); w.Code != http.StatusInternalServerError {
							t.Errorf("status %d, want 500", w.Code)
						}
					}
				})
			}
			all.Wait()
		}
		storm()
		if logs.Len() != burst {
			t.Errorf("%d lines of 10 000 panics at once, want %d", logs.Len(), burst)
		}
		time.Sleep(interval)
		storm()
		all := logs.TakeAll()
		if len(all) != burst+1 {
			t.Fatalf("%d lines after another 10 000 a second later, want one more", len(all))
		}
		if got := all[burst].ContextMap()["suppressed"]; got != int64(10_000-burst) {
			t.Errorf("the next line says that %v were suppressed, want %d", got, 10_000-burst)
		}
	})
}

func TestPanicsAreToldApartInBoundedMemory(t *testing.T) {
	l := limiter{sites: make(map[site]*state)}
	now, lines := time.Now(), 0
	for i := range uintptr(100_000) {
		_, ok := l.allow(site{pc: i + 1}, now)
		if !ok && i < maxSites {
			t.Fatalf("the first panic at site %d is suppressed", i)
		}
		if ok {
			lines++
		}
	}
	if lines != maxSites+burst {
		t.Errorf("%d lines, want one of each site and %d of all others", lines, burst)
	}
	if len(l.sites) > maxSites+1 {
		t.Errorf("%d sites remembered, want %d at most", len(l.sites), maxSites+1)
	}
	if _, ok := l.allow(site{pc: 7}, now); !ok {
		t.Error("a known site pays for the flood of others")
	}
}

func TestPanicOfAGoroutineIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.DebugLevel)
		type key struct{}
		ctx := context.WithValue(t.Context(), key{}, 7)
		Go(ctx, zap.New(core), func(ctx context.Context) { panic(ctx.Value(key{})) })
		Go(ctx, nil, func(context.Context) { panic("nobody hears it") })
		Go(ctx, zap.New(core), func(context.Context) {})
		synctest.Wait()
		if logs.Len() != 1 || logs.All()[0].ContextMap()["panic"] != "7" {
			t.Errorf("log = %v, want the one panic", logs.All())
		}
	})
}
