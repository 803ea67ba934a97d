package jwtauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

var errClosed = errors.New("jwtauth: the KeySet is closed")

// JWKSOptions configures [JWKS]. The zero value is ready to use.
type JWKSOptions struct {
	// Refresh is the time between fetches in the background, give or take a tenth. Zero or less: 15 min.
	// After a failed one the next comes sooner, after a second at first and then with longer waits.
	Refresh time.Duration
	// Stale is how long keys are used after the last fetch that succeeded. Zero or less: 24 h.
	Stale time.Duration
	// Cooldown is the least time between fetches for kids that are not known. Zero or less: 30 s.
	Cooldown time.Duration
	// Timeout is for one fetch. Zero or less: 5 s.
	Timeout time.Duration
	// MaxBytes limits an answer. Zero or less: 1 MiB.
	MaxBytes int64
	// AllowHTTP allows plain http, for tests. Without it every Find and Check fails for such a URL.
	AllowHTTP bool
	// Transport makes the requests. nil: one like http.DefaultTransport.
	Transport http.RoundTripper
}

// JWKS fetches keys from url in the background; requests with a known kid never wait for it. Only a kid that is
// not known makes requests wait, for one fetch per Cooldown whatever their number, and so does the first fetch
// of all. Redirects are followed as long as they stay with https. Close the KeySet when it is no longer used.
//
// A key without alg is bound to the algorithm of its kind, RS256 for RSA. See [KeySet.Check] for readiness.
func JWKS(url string, o JWKSOptions) *KeySet {
	k := &KeySet{url: url, o: o.withDefaults(), asked: make(chan struct{}, 1)}
	k.wrong = checkURL(url, o.AllowHTTP)
	k.client = &http.Client{Transport: o.Transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 3 {
			return errors.New("jwtauth: too many redirects")
		}
		return checkURL(r.URL.String(), o.AllowHTTP)
	}}
	if std, ok := http.DefaultTransport.(*http.Transport); ok && o.Transport == nil {
		k.client.Transport = std.Clone() // so that Close does not close the connections of others
	}
	k.ctx, k.stop = context.WithCancel(context.Background())
	if k.wrong == nil {
		k.current = &attempt{done: make(chan struct{})}
		k.running.Go(k.run)
	}
	return k
}

func (o JWKSOptions) withDefaults() JWKSOptions {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Refresh, 15*time.Minute)
	def(&o.Stale, 24*time.Hour)
	def(&o.Cooldown, 30*time.Second)
	def(&o.Timeout, 5*time.Second)
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 20
	}
	return o
}

func checkURL(raw string, allowHTTP bool) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return fmt.Errorf("jwtauth: JWKS: %w", err)
	case u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !allowHTTP):
		return fmt.Errorf("jwtauth: JWKS: %s is not an https URL", u.Redacted())
	}
	return nil
}

// KeySet is a source of keys that are published at a URL. It is safe for concurrent use.
type KeySet struct {
	url    string
	o      JWKSOptions
	wrong  error // of url
	client *http.Client

	ctx     context.Context // ends run
	stop    context.CancelFunc
	running sync.WaitGroup
	asked   chan struct{} // wakes run up

	keys atomic.Pointer[keys]

	mu      sync.Mutex // guards the fields below; never taken for a known kid
	current *attempt   // that which runs, or the last
	last    time.Time  // when a fetch for an unknown kid began
}

// keys is what one fetch found.
type keys struct {
	all []Key
	at  time.Time
}

// An attempt is one fetch.
type attempt struct {
	done chan struct{} // closed when err is set
	err  error
}

func (a *attempt) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// Find is the keys for kid and alg; see [KeySource]. It is ErrUnavailable when there are none that are not too
// old, and when a kid is not known while the URL does not answer: it may be a new one.
func (k *KeySet) Find(ctx context.Context, kid, alg string) ([]Key, error) {
	if k.wrong != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, k.wrong)
	}
	if found, known := k.look(kid, alg, time.Now()); known {
		return found, nil
	}
	a := k.want(time.Now())
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	case <-k.ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, errClosed)
	}
	found, known := k.look(kid, alg, time.Now())
	if !known && a.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, a.err)
	}
	return found, nil
}

// look is what the keys at hand say. kid is known if there is one of them with it, whatever its algorithm.
func (k *KeySet) look(kid, alg string, now time.Time) (found []Key, known bool) {
	set := k.fresh(now)
	if set == nil {
		return nil, false
	}
	if found = match(set.all, kid, alg); len(found) > 0 || kid == "" {
		return found, true
	}
	for i := range set.all {
		if set.all[i].ID == kid {
			return nil, true
		}
	}
	return nil, false
}

func (k *KeySet) fresh(now time.Time) *keys {
	set := k.keys.Load()
	if set == nil || now.Sub(set.at) > k.o.Stale {
		return nil
	}
	return set
}

// want is the fetch that runs, or a new one unless there was one lately, or else the last.
func (k *KeySet) want(now time.Time) *attempt {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.current.over() || !k.last.IsZero() && now.Sub(k.last) < k.o.Cooldown {
		return k.current
	}
	k.last = now
	k.current = &attempt{done: make(chan struct{})}
	k.asked <- struct{}{} // it has room: run took the last one before it ended that attempt
	return k.current
}

// run fetches at once, then when asked, and by the clock.
func (k *KeySet) run() {
	defer k.client.CloseIdleConnections()
	wait := time.Second // after a failure
	for {
		k.mu.Lock()
		if k.current.over() {
			k.current = &attempt{done: make(chan struct{})}
		}
		a := k.current
		k.mu.Unlock()
		select {
		case <-k.asked: // this is the fetch
		default:
		}

		set, err := k.fetch()
		if err == nil {
			k.keys.Store(&keys{all: set, at: time.Now()})
		}
		a.err = err
		close(a.done)

		next := time.Duration(float64(k.o.Refresh) * (0.9 + 0.2*rand.Float64())) //nolint:gosec // spreads the load, is no secret
		if err != nil {
			next = min(next, wait)
			wait = min(2*wait, max(k.o.Cooldown, time.Second))
		} else {
			wait = time.Second
		}
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-k.asked:
		case <-k.ctx.Done():
		}
		t.Stop()
		if k.ctx.Err() != nil {
			return
		}
	}
}

func (k *KeySet) fetch() ([]Key, error) {
	ctx, cancel := context.WithTimeout(k.ctx, k.o.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("jwtauth: JWKS: the answer is %d", resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, k.o.MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > k.o.MaxBytes {
		return nil, fmt.Errorf("jwtauth: JWKS: the answer is longer than %d bytes", k.o.MaxBytes)
	}
	return parseJWKS(b)
}

// Check is for readiness, best as an optional check: it is nil while keys are fetched, an error that tells their
// age while old ones are used, and ErrUnavailable when there are none.
func (k *KeySet) Check(ctx context.Context) error {
	if k.wrong != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, k.wrong)
	}
	k.mu.Lock()
	a := k.current
	k.mu.Unlock()
	now := time.Now()
	set := k.fresh(now)
	if set == nil { // the first fetch, perhaps
		select {
		case <-a.done:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		case <-k.ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, errClosed)
		}
		if set = k.fresh(now); set == nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, a.err)
		}
	}
	if a.over() && a.err != nil {
		return fmt.Errorf("jwtauth: using keys that are %v old: %w", now.Sub(set.at).Round(time.Second), a.err)
	}
	return nil
}

// Close ends the fetching and waits for it. Keys that are there go on to be found until they are stale.
func (k *KeySet) Close() error {
	k.stop()
	k.running.Wait()
	return nil
}
