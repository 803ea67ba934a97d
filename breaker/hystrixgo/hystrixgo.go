// Package hystrixgo puts afex/hystrix-go's circuits behind [breaker.Middleware], for services that
// configure hystrix commands already: their settings, collectors and dashboards stay as they are. It
// calls AllowRequest and ReportEvent on the request's own goroutine, never hystrix.Do, which runs the
// handler on another one. A service without such commands should use [breaker.NewGroup].
//
// Mended from outside: the success of a call that was admitted before the circuit opened does not close
// it, and its failure is not queued to reopen it later. Short-circuits are not reported, for hystrix-go
// counts them as errors and may apply them after the circuit has closed. One probe runs at a time, also
// when it takes longer than the sleep window, and a failed one lets the sleep window begin anew.
// MaxConcurrentRequests is a semaphore of this package, which follows a later ConfigureCommand, or Flush,
// within a second. A Neutral outcome is not reported. Names not configured are capped at 1024, for a circuit of
// hystrix-go costs 24 KB and two goroutines and is never freed; all others, and names of more than 256
// bytes, share the command "(overflow)". Events that hystrix-go drops are counted: see [Circuits.Dropped].
//
// Not to be mended from outside: the window is of 11 wall-clock seconds; the error percentage is rounded,
// so 49.5 % opens at 50; health is computed later on another goroutine, and a circuit opens only with a
// later call; of more than 2000 events waiting the rest are dropped; an event costs about a microsecond
// and four allocations; a Neutral probe leaves the circuit open for another sleep window; there is no
// half-open state, no forcing, no slow call. What other users of the same command report, such as
// hystrix.Do, counts as it always did: a success of theirs closes the circuit, and where only they see
// errors a late success here does too.
package hystrixgo

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/afex/hystrix-go/hystrix"

	"github.com/highball-go/highball/breaker"
)

const (
	maxNames   = 1024
	maxNameLen = 256 // bytes
	overflow   = "(overflow)"
	refresh    = int64(time.Second) // of the settings
)

// Circuits makes hystrix commands available to [breaker.Middleware]. It is safe for concurrent use, and
// needs no Close; hystrix-go starts two goroutines per command that never end.
type Circuits struct {
	defaults hystrix.CommandConfig
	most     int                                 // commands that are not configured
	commands atomic.Pointer[map[string]*command] // replaced, never changed
	dropped  atomic.Uint64
	read     atomic.Int64 // when the settings were read last
	known    atomic.Pointer[map[string]*hystrix.Settings]
	shared   atomic.Pointer[command] // that of the overflow, once no further name gets its own

	mu        sync.Mutex // held by who adds a command
	unplanned int        // commands that were not configured beforehand
}

var _ breaker.Circuits = (*Circuits)(nil)

// New uses the commands as hystrix.ConfigureCommand set them; defaults are for names not configured. In
// both, zero means hystrix-go's default (a timeout of 1 s, 10 requests at once, 20 in the window, 50 %, a
// sleep window of 5 s); in defaults, so does less than zero.
func New(defaults hystrix.CommandConfig) *Circuits {
	for _, n := range []*int{
		&defaults.Timeout, &defaults.MaxConcurrentRequests, &defaults.RequestVolumeThreshold,
		&defaults.SleepWindow, &defaults.ErrorPercentThreshold,
	} {
		*n = max(*n, 0)
	}
	c := &Circuits{defaults: defaults, most: maxNames}
	c.commands.Store(&map[string]*command{})
	c.refresh()
	return c
}

// Acquire asks to make one call of command. The error is a [*breaker.OpenError] or
// breaker.ErrMaxConcurrency; hystrix-go counts the latter as an error.
func (c *Circuits) Acquire(command string) (breaker.Permit, error) {
	t := now()
	if last := c.read.Load(); t-last >= refresh && c.read.CompareAndSwap(last, t) {
		c.refresh()
	}
	cmd, err := c.command(command)
	if err != nil {
		return breaker.Permit{}, err
	}
	return cmd.acquire(t)
}

// Dropped counts the events that hystrix-go did not take because its queue was full: its window knows
// nothing of those calls.
func (c *Circuits) Dropped() uint64 { return c.dropped.Load() }

func (c *Circuits) command(name string) (*command, error) {
	if cmd := c.find(name); cmd != nil {
		return cmd, nil
	}
	if shared := c.shared.Load(); shared != nil && (*c.known.Load())[name] == nil {
		return shared, nil
	}
	return c.add(name)
}

func (c *Circuits) add(name string) (*command, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cmd := c.find(name); cmd != nil {
		return cmd, nil
	}
	settings := hystrix.GetCircuitSettings()[name]
	full := c.unplanned >= c.most
	if settings == nil {
		if full || len(name) > maxNameLen {
			name = overflow
		}
		if cmd := c.find(name); cmd != nil {
			if full {
				c.shared.Store(cmd)
			}
			return cmd, nil
		}
		c.unplanned++
		name = strings.Clone(name) // it may be a part of a large request
		hystrix.ConfigureCommand(name, c.defaults)
		settings = hystrix.GetCircuitSettings()[name]
	}
	circuit, _, err := hystrix.GetCircuit(name)
	if err != nil {
		return nil, err
	}
	cmd := &command{owner: c, name: name}
	cmd.settings.Store(settings)
	cmd.circuit.Store(circuit)
	if circuit.IsOpen() { // by what was reported before
		cmd.suspect.Store(now())
	}
	commands := maps.Clone(*c.commands.Load())
	commands[name] = cmd
	c.commands.Store(&commands)
	if full && name == overflow {
		c.shared.Store(cmd)
	}
	return cmd, nil
}

func (c *Circuits) find(name string) *command { return (*c.commands.Load())[name] }

// refresh makes the commands follow a ConfigureCommand that came after their first use, and a Flush.
func (c *Circuits) refresh() {
	all := hystrix.GetCircuitSettings()
	c.known.Store(&all)
	for name, cmd := range *c.commands.Load() {
		if s := all[name]; s != nil {
			cmd.settings.Store(s)
		}
		if circuit, _, err := hystrix.GetCircuit(name); err == nil {
			cmd.circuit.Store(circuit)
		}
	}
}

var epoch = time.Now()

// now is never 0, which says "never".
func now() int64 { return int64(time.Since(epoch)) + 1 }
