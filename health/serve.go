package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// errServed is returned by a second Serve: an instance that is going cannot come back.
var errServed = errors.New("health: Serve can be called once")

// OnServe has start run once Serve listens, to register in Consul say. Its ctx ends when the instance drains
// while it still starts, else when Serve returns. The stop that it returns, if not nil, runs first when
// draining, in reverse order of the starts, and has a fifth of Grace. An error of start ends Serve.
func (h *Health) OnServe(start func(ctx context.Context) (stop func(context.Context) error, err error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.starts = append(h.starts, start)
}

// Serve runs s, with TLS if s.TLSConfig has a certificate, until ctx ends or SIGTERM or SIGINT comes. Then
//
//  1. Ready is false, /readyz is 503 and [Health.Draining] is closed,
//  2. the stops of OnServe run,
//  3. for DrainDelay new requests are still answered, with Connection: close through [Middleware],
//  4. the listener closes, and what is in flight has Grace to end. That includes handlers that have hijacked
//     their connection, if they run behind [Middleware]. When four fifths of Grace are over the contexts of
//     what is left are canceled with the cause [ErrDraining], and at its end connections are closed.
//
// It closes h and returns nil after a clean end, else an error that says what was not: the address could not
// be listened on, a start or a stop failed, requests did not end within Grace. A second signal ends it at once
// with [ErrForced]; one that came with the end of ctx counts as the first. s must not be running elsewhere;
// Serve wraps its BaseContext. It can be called once.
func (h *Health) Serve(ctx context.Context, s *http.Server) error {
	h.mu.Lock()
	again := h.served
	h.served = true
	starts := slices.Clone(h.starts)
	h.mu.Unlock()
	if again {
		return errServed
	}
	defer h.Close()

	l, err := listen(ctx, s)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)
	return h.serve(ctx, s, l, starts, signals)
}

type startFunc = func(context.Context) (func(context.Context) error, error)

func (h *Health) serve(ctx context.Context, s *http.Server, l net.Listener, starts []startFunc, signals <-chan os.Signal) error {
	sv := &serving{h: h, s: s, ended: make(chan error, 1), started: make(chan struct{})}
	endRequests := sv.wrapContext()
	defer endRequests(ErrDraining)
	go func() { sv.ended <- sv.accept(l) }()

	life, endLife := context.WithCancel(context.WithoutCancel(ctx))
	defer endLife()
	go func() {
		defer close(sv.started)
		sv.startErr = sv.start(life, starts)
	}()

	signaled, err := sv.until(ctx, signals)
	h.startDrain()
	patience, force := context.WithCancel(context.Background())
	defer force()
	over := make(chan error, 1)
	go func() { over <- errors.Join(err, sv.drain(patience, endLife, endRequests)) }()
	for {
		select {
		case err := <-over:
			return err
		case <-signals:
			if signaled {
				_ = s.Close()
				force()
				return errors.Join(ErrForced, <-over)
			}
			signaled = true
		}
	}
}

func listen(ctx context.Context, s *http.Server) (net.Listener, error) {
	addr := s.Addr
	if addr == "" {
		addr = ":http"
		if hasTLS(s.TLSConfig) {
			addr = ":https"
		}
	}
	l, err := new(net.ListenConfig).Listen(context.WithoutCancel(ctx), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("health: cannot serve: %w", err) // net names the address
	}
	return l, nil
}

func hasTLS(c *tls.Config) bool {
	return c != nil && (len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil)
}

// serving is one run of Serve.
type serving struct {
	h       *Health
	s       *http.Server
	ended   chan error    // what ended the accepting
	started chan struct{} // closed when start has ended

	startErr error // of start, once it has ended

	mu    sync.Mutex // guards stops
	stops []func(context.Context) error
}

func (sv *serving) accept(l net.Listener) error {
	if hasTLS(sv.s.TLSConfig) {
		return sv.s.ServeTLS(l, "", "")
	}
	return sv.s.Serve(l)
}

// wrapContext makes the contexts of all requests end with the function it returns.
func (sv *serving) wrapContext() context.CancelCauseFunc {
	base := sv.s.BaseContext
	end, cancel := context.WithCancelCause(context.Background())
	sv.s.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			ctx = base(l)
		}
		ctx, cancelOne := context.WithCancelCause(ctx)
		context.AfterFunc(end, func() { cancelOne(context.Cause(end)) })
		return ctx
	}
	return cancel
}

// start runs starts one after the other, as long as they succeed and ctx lasts.
func (sv *serving) start(ctx context.Context, starts []startFunc) error {
	for _, start := range starts {
		if ctx.Err() != nil {
			return nil // draining already
		}
		var stop func(context.Context) error
		err := safely(func() (err error) { stop, err = start(ctx); return err })
		if stop != nil {
			sv.mu.Lock()
			sv.stops = append(sv.stops, stop)
			sv.mu.Unlock()
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("health: start: %w", err)
		}
	}
	return nil
}

// until waits for the reason to drain: a signal, the end of ctx or an error.
func (sv *serving) until(ctx context.Context, signals <-chan os.Signal) (signaled bool, err error) {
	for started := sv.started; ; {
		select {
		case <-started:
			if sv.startErr != nil {
				return false, sv.startErr
			}
			started = nil // seen
		case err := <-sv.ended:
			return false, fmt.Errorf("health: cannot serve: %w", err)
		case <-ctx.Done():
			return false, nil
		case <-signals:
			return true, nil
		}
	}
}

// drain ends everything in order, and at once when patience ends.
func (sv *serving) drain(patience context.Context, endLife func(), endRequests context.CancelCauseFunc) error {
	h := sv.h
	wait := func(d time.Duration, c <-chan struct{}) {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c:
		case <-patience.Done():
		}
	}
	select {
	case <-sv.started:
	default: // what has not started by now need not
		endLife()
		wait(h.grace/5, sv.started)
	}
	err := sv.stop(patience)
	wait(h.drainDelay, nil)

	ctx, cancel := context.WithTimeout(patience, h.grace)
	defer cancel()
	hurry := time.AfterFunc(h.grace-h.grace/5, func() { endRequests(ErrDraining) })
	defer hurry.Stop()
	if sv.s.Shutdown(ctx) == nil && h.idle(ctx) {
		return err
	}
	n := h.inFlight.Load()
	endRequests(ErrDraining)
	_ = sv.s.Close()
	if patience.Err() != nil {
		return err
	}
	return errors.Join(err, fmt.Errorf("health: requests did not end within %v, %d are known to be in flight", h.grace, n))
}

// stop runs the stops that starts have returned, the last first.
func (sv *serving) stop(patience context.Context) error {
	sv.mu.Lock()
	stops := slices.Clone(sv.stops)
	sv.mu.Unlock()
	if len(stops) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(patience, max(sv.h.grace/5, time.Second))
	defer cancel()
	done := make(chan error, 1)
	go func() {
		var errs []error
		for _, stop := range slices.Backward(stops) {
			if err := safely(func() error { return stop(ctx) }); err != nil {
				errs = append(errs, fmt.Errorf("health: stop: %w", err))
			}
		}
		done <- errors.Join(errs...)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done(): // a stop that ignores its context must not hold the drain
		select {
		case err := <-done:
			return err
		case <-time.After(100 * time.Millisecond):
			return fmt.Errorf("health: stop: %w", ctx.Err())
		}
	}
}

// idle waits until no handler runs behind Middleware, and reports whether that was before ctx ended.
func (h *Health) idle(ctx context.Context) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for h.inFlight.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// safely is f with a panic as an error.
func safely(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return f()
}
