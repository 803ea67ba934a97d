package breaker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

var errBoom = errors.New("boom")

// wantCounts checks what the one call of a test was counted as.
func wantCounts(t *testing.T, b *Breaker, total, errs, timeouts uint64) {
	t.Helper()
	if s := b.Snapshot(); s.Total != total || s.Errors != errs || s.Timeouts != timeouts || s.InFlight != 0 {
		t.Errorf("Total, Errors, Timeouts, InFlight = %d, %d, %d, %d; want %d, %d, %d, 0",
			s.Total, s.Errors, s.Timeouts, s.InFlight, total, errs, timeouts)
	}
}

func TestDoClassifies(t *testing.T) {
	cause := errors.New("the user closed the window")
	for _, tt := range []struct {
		name                  string
		timeout               time.Duration
		fn                    func(ctx context.Context, cancel context.CancelCauseFunc) error
		want                  error
		total, errs, timeouts uint64
	}{
		{"nil", 0, func(context.Context, context.CancelCauseFunc) error { return nil }, nil, 1, 0, 0},
		{"error", 0, func(context.Context, context.CancelCauseFunc) error { return errBoom }, errBoom, 1, 1, 0},
		{
			"cancelled by the caller, wrapped", 0,
			func(ctx context.Context, cancel context.CancelCauseFunc) error {
				cancel(nil)
				return fmt.Errorf("query: %w", ctx.Err())
			}, context.Canceled, 0, 0, 0,
		},
		{
			"cancelled with a cause", 0,
			func(ctx context.Context, cancel context.CancelCauseFunc) error {
				cancel(cause)
				return context.Cause(ctx)
			}, cause, 0, 0, 0,
		},
		{
			"an error of its own when cancelled", 0,
			func(_ context.Context, cancel context.CancelCauseFunc) error {
				cancel(nil)
				return errBoom
			}, errBoom, 1, 1, 0,
		},
		{
			"a Canceled that is not the caller's", 0,
			func(context.Context, context.CancelCauseFunc) error { return context.Canceled }, context.Canceled, 1, 1, 0,
		},
		{
			"timeout", time.Second,
			func(ctx context.Context, _ context.CancelCauseFunc) error {
				<-ctx.Done()
				return ctx.Err()
			}, context.DeadlineExceeded, 1, 1, 1,
		},
		{
			"timeout overrun", time.Second,
			func(context.Context, context.CancelCauseFunc) error {
				time.Sleep(time.Second)
				return nil
			}, nil, 1, 1, 1,
		},
		{
			"in time", time.Second,
			func(context.Context, context.CancelCauseFunc) error {
				time.Sleep(time.Second - 1)
				return nil
			}, nil, 1, 0, 0,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New("x", Options{Timeout: tt.timeout})
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				err := b.Do(ctx, func(ctx context.Context) error { return tt.fn(ctx, cancel) })
				if !errors.Is(err, tt.want) {
					t.Errorf("Do = %v, want %v", err, tt.want)
				}
				wantCounts(t, b, tt.total, tt.errs, tt.timeouts)
			})
		})
	}
}

func TestADeadlineOfTheCallersIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("x", Options{Timeout: time.Minute})
		wait := func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Do(ctx, wait); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v", err)
		}
		wantCounts(t, b, 1, 1, 0)

		outer := New("outer", Options{Timeout: time.Second})
		_ = outer.Do(t.Context(), func(ctx context.Context) error { return b.Do(ctx, wait) })
		wantCounts(t, outer, 1, 1, 1)
		wantCounts(t, b, 2, 2, 0) // the outer circuit's Timeout is not the inner one's
	})
}

func TestPanicAndGoexitAreFailuresAndPassedOn(t *testing.T) {
	b := New("x", Options{})
	func() {
		defer func() {
			if v := recover(); v != "boom" {
				t.Errorf("recovered %v, want boom", v)
			}
		}()
		_ = b.Do(t.Context(), func(context.Context) error { panic("boom") })
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Do(t.Context(), func(context.Context) error {
			runtime.Goexit()
			return nil
		})
		t.Error("Goexit was not passed on")
	}()
	<-done
	wantCounts(t, b, 2, 2, 0)
}

func TestAProbeThatPanicsOrExitsReopensTheCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // gobreaker stays half-open for ever after a Goexit
		b := opened(Options{})
		time.Sleep(5*time.Second + 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = b.Do(t.Context(), func(context.Context) error {
				runtime.Goexit()
				return nil
			})
		}()
		<-done
		wantState(t, b, Open)
	})
}

func TestRunFallsBack(t *testing.T) {
	b := New("x", Options{RequestVolumeThreshold: 1})
	fallback := func(_ context.Context, err error) (string, error) { return "default, for " + err.Error(), nil }
	run := func(v string, err error) (string, error) {
		return Run(t.Context(), b, func(context.Context) (string, error) { return v, err }, fallback)
	}
	if v, err := run("ann", nil); v != "ann" || err != nil {
		t.Errorf("Run = %q, %v; want ann", v, err)
	}
	if v, err := run("", errBoom); v != "default, for boom" || err != nil {
		t.Errorf("Run = %q, %v; want the default", v, err)
	}
	wantState(t, b, Open)
	if v, err := run("ann", nil); v[:12] != "default, for" || err != nil {
		t.Errorf("Run = %q, %v; want the default", v, err)
	}
	if _, err := Run[string](t.Context(), b, nil, nil); !errors.Is(err, ErrOpen) {
		t.Errorf("Run without a fallback = %v, want ErrOpen", err)
	}
}
