package benchmarks

import (
	"testing"
	"time"

	"github.com/afex/hystrix-go/hystrix"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/sony/gobreaker/v2"

	"github.com/highball-go/highball/breaker"
	"github.com/highball-go/highball/breaker/hystrixgo"
)

// BenchmarkBreakerClosed makes calls through closed circuits that open at 50 % of 20 calls within ten
// seconds.
func BenchmarkBreakerClosed(b *testing.B) {
	own := breaker.New("bench", breaker.Options{})
	gb := gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Interval: 10 * time.Second, BucketPeriod: time.Second,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.Requests >= 20 && c.TotalFailures*100 >= 50*c.Requests },
	})
	fs := circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(0.5, 20, 10*time.Second).Build()
	hystrix.ConfigureCommand("bench", hystrix.CommandConfig{MaxConcurrentRequests: 1 << 20})
	hx, _, err := hystrix.GetCircuit("bench")
	if err != nil {
		b.Fatal(err)
	}
	runPeer(b, "highball", func() bool {
		p, err := own.Allow()
		return err == nil && p.Done(breaker.Success)
	})
	runPeer(b, "gobreaker", func() bool {
		done, err := gb.Allow()
		if err == nil {
			done(nil)
		}
		return err == nil
	})
	runPeer(b, "failsafe", func() bool {
		if !fs.TryAcquirePermit() {
			return false
		}
		fs.RecordSuccess()
		return true
	})
	runPeer(b, "hystrix", func() bool {
		if !hx.AllowRequest() {
			return false
		}
		_ = hx.ReportEvent([]string{"success"}, time.Now(), 0) // its queue is full: it drops most events
		return true
	})
	hg := hystrixgo.New(hystrix.CommandConfig{})
	runPeer(b, "hystrixgo", func() bool { // the same command: it is to cost little more than the raw calls
		p, err := hg.Acquire("bench")
		p.Done(breaker.Success)
		return err == nil
	})
	runPeer(b, "hystrix.Do", func() bool {
		return hystrix.Do("bench", func() error { return nil }, nil) == nil
	})
}

// BenchmarkBreakerOpen is the price of a refusal. Highball's allocates its error, which says how long to
// wait.
func BenchmarkBreakerOpen(b *testing.B) {
	own := breaker.New("bench", breaker.Options{SleepWindow: time.Hour})
	for range 20 {
		p, _ := own.Allow()
		p.Done(breaker.Failure)
	}
	gb := gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Timeout: time.Hour, ReadyToTrip: func(gobreaker.Counts) bool { return true },
	})
	done, _ := gb.Allow()
	done(errFailed)
	fs := circuitbreaker.NewBuilder[any]().WithDelay(time.Hour).Build()
	fs.RecordFailure()
	runPeer(b, "highball", func() bool {
		_, err := own.Allow()
		return err != nil
	})
	runPeer(b, "gobreaker", func() bool {
		_, err := gb.Allow()
		return err != nil
	})
	runPeer(b, "failsafe", func() bool { return !fs.TryAcquirePermit() })
}
