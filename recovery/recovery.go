// Package recovery turns a panic into one honest answer and one log line.
//
// What the client sees of a panic depends on what it has already. If nothing was written it gets 500 with
// application/problem+json (RFC 9457), without the headers that belonged to the answer that was not to be.
// If a part of the body or only the headers are out, the connection is aborted, so that a cut response never
// looks complete: HTTP/1.1 clients read an unexpected EOF, HTTP/2 clients a RST_STREAM. A connection that the
// handler has hijacked is left alone. http.ErrAbortHandler, also wrapped, passes through as it was meant to,
// and runtime.Goexit is none of our business.
//
// The log gets one line at ERROR per panic: its value, the route and the frames from where it happened,
// collected without opening a source file. No header, no cookie and no query is in it; name=value pairs of
// secrets inside the value are masked. The same panic (same line of code, same route) writes at most ten
// lines at once and one a second after that; the next line says how many were suppressed.
//
// A write to a client that is gone is no bug: EPIPE and ECONNRESET are one WARN line with status 499 and no
// stack, unless the error names another peer than the client. That is then a panic like any other.
package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/highball-go/highball/internal/redact"
)

const (
	maxFrames = 32
	maxText   = 2 << 10 // bytes of a panic's value in the log

	burst    = 10          // lines of one panic at once
	interval = time.Second // between lines after that
	maxSites = 256         // panics told apart
)

// Panic is what is known of a panic.
type Panic struct {
	// Value is what panic was called with. A panic(nil) under GODEBUG=panicnil=1 is a *runtime.PanicNilError.
	Value any
	// Stack has the frames from the panic down, at most 32, in the form of debug.Stack and without source
	// text.
	Stack []byte
	// Route is the pattern of the route, or "unmatched"; "" for [Go].
	Route string
}

// Go runs fn on a goroutine whose panic is one ERROR line in l, not the end of the process. ctx is passed to
// fn, which should end when ctx does. A nil l discards the line. What fn needs of a request it must be given
// by value: a *gin.Context is used again for another request once its handlers have returned.
func Go(ctx context.Context, l *zap.Logger, fn func(context.Context)) {
	go func() {
		done := false
		defer func() {
			v := recover()
			if done {
				return
			}
			var pcs [maxFrames]uintptr
			if at := callers(&pcs); at != nil {
				plain(l).Error("panic", fields(orNil(v), frames(at), "", "", 0)...)
			}
		}()
		fn(ctx)
		done = true
	}()
}

// plain is l without what costs time at every line: the line's own place in this file says nothing.
func plain(l *zap.Logger) *zap.Logger {
	if l == nil {
		return zap.NewNop()
	}
	return l.WithOptions(zap.WithCaller(false), zap.AddStacktrace(zapcore.InvalidLevel))
}

func fields(v any, stack []byte, route, requestID string, suppressed int) []zap.Field {
	f := []zap.Field{zap.String("panic", text(v)), zap.ByteString("stack", stack)}
	if route != "" {
		f = append(f, zap.String("route", route))
	}
	if requestID != "" {
		f = append(f, zap.String("request_id", requestID))
	}
	if suppressed > 0 {
		f = append(f, zap.Int("suppressed", suppressed))
	}
	return f
}

// text renders the value of a panic as the runtime does: what is made to be read is, and of all else, a
// request for example, only the type.
func text(v any) string {
	switch v.(type) {
	case error, string, fmt.Stringer:
	default:
		switch reflect.TypeOf(v).Kind() {
		case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint,
			reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr, reflect.Float32,
			reflect.Float64, reflect.Complex64, reflect.Complex128, reflect.String:
		default:
			return fmt.Sprintf("(%T)", v)
		}
	}
	return redact.Message(fmt.Sprint(v), maxText) // Sprint survives a String that panics
}

func orNil(v any) any {
	if v == nil {
		return new(runtime.PanicNilError)
	}
	return v
}

// callers are the frames of the panic that a deferred function, the caller of callers, is called for: those
// below the runtime's own. They are nil if that function runs for runtime.Goexit and not for a panic.
func callers(pcs *[maxFrames]uintptr) []uintptr {
	var all [maxFrames + 8]uintptr
	n := runtime.Callers(2, all[:]) // from the deferred function
	panicking := false
	for i, pc := range all[:n] {
		name := funcName(pc)
		switch {
		case name == "runtime.Goexit":
			return nil
		case name == "runtime.gopanic":
			panicking = true
		case panicking && !strings.HasPrefix(name, "runtime."): // panicIndex, sigpanic and the like
			return pcs[:copy(pcs[:], all[i:n])]
		}
	}
	return nil
}

func funcName(pc uintptr) string {
	if f := runtime.FuncForPC(pc - 1); f != nil {
		return f.Name()
	}
	return ""
}

// frames renders pcs, one frame in two lines as in debug.Stack.
func frames(pcs []uintptr) []byte {
	var b bytes.Buffer
	b.Grow(100 * len(pcs))
	for all := runtime.CallersFrames(pcs); ; {
		f, more := all.Next()
		b.WriteString(f.Function)
		b.WriteString("\n\t")
		b.WriteString(f.File)
		b.WriteByte(':')
		b.Write(strconv.AppendInt(b.AvailableBuffer(), int64(f.Line), 10))
		b.WriteByte('\n')
		if !more {
			return b.Bytes()
		}
	}
}

// A kind is what is to be done about a panic.
type kind uint8

const (
	bug   kind = iota // log it, answer for it
	abort             // http.ErrAbortHandler: the connection is to be cut
	gone              // the client's connection is broken
)

func kindOf(v any, r *http.Request) (k kind) {
	err, ok := v.(error)
	if !ok {
		return bug
	}
	defer func() { // an error's own Is or Unwrap may panic, on a nil pointer say
		if recover() != nil {
			k = bug
		}
	}()
	switch {
	case errors.Is(err, http.ErrAbortHandler):
		return abort
	case isGone(err, r):
		return gone
	}
	return bug
}

// isGone reports whether err says that the client's connection is broken. An error that names its peer says
// so of that peer, which may be a server behind us; once the context of r has ended it is the client in any
// case, for net/http ends it when a write to the client fails.
func isGone(err error, r *http.Request) bool {
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return false
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Addr == nil || op.Addr.String() == r.RemoteAddr {
		return true
	}
	return errors.Is(r.Context().Err(), context.Canceled)
}

// A site is where a panic comes from.
type site struct {
	pc    uintptr
	route string
}

// A limiter decides which panics are logged, per site, by GCRA: burst at once, then one per interval. Sites
// are code and routes, nothing that a client chooses; past maxSites all others share one.
type limiter struct {
	mu    sync.Mutex // guards sites
	sites map[site]*state
}

type state struct {
	tat        time.Time // when the burst will be whole again
	suppressed int
	pcs        []uintptr // of the last panic here whose frames were asked for
	stack      []byte    // they, rendered; never changed
}

// stack is frames of a panic at s. The same panic again costs no rendering, which is dearer than all else that
// is done about one.
func (l *limiter) stack(s site, pcs []uintptr) []byte {
	l.mu.Lock()
	var stack []byte
	if st := l.sites[s]; st != nil && slices.Equal(st.pcs, pcs) {
		stack = st.stack
	}
	l.mu.Unlock()
	if stack != nil {
		return stack
	}
	stack = frames(pcs)
	l.mu.Lock()
	defer l.mu.Unlock()
	if st := l.sites[s]; st != nil {
		st.pcs, st.stack = slices.Clone(pcs), stack
	}
	return stack
}

// allow reports whether the panic at s is to be logged, and how many before it were not.
func (l *limiter) allow(s site, now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.sites[s]
	if st == nil {
		if len(l.sites) >= maxSites {
			s = site{}
			st = l.sites[s]
		}
		if st == nil {
			st = new(state)
			l.sites[s] = st
		}
	}
	if st.tat.Before(now) {
		st.tat = now
	}
	if st.tat.Sub(now) > (burst-1)*interval {
		st.suppressed++
		return 0, false
	}
	st.tat = st.tat.Add(interval)
	suppressed, st.suppressed = st.suppressed, 0
	return suppressed, true
}
