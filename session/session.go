// Package session keeps sessions in Redis, on boj/redistore, and keeps answering when Redis is away.
// Handlers use gin-contrib's sessions.Default(c) as ever.
//
//	store, err := session.New(client, session.Options{Keys: [][]byte{key}})
//	r.Use(session.Middleware("session", store))
//
// The client is any go-redis UniversalClient: one server, Sentinel, Cluster, with TLS and ACLs. Redis 6.2 or
// newer has what is used of it: GETEX, SET, DEL and scripts on one key. Give the client ContextTimeoutEnabled,
// and for a quick failover DialerRetries: 1 and a PoolSize such as 256: by default go-redis takes half a second
// to believe that a connection was refused, and after PoolSize failures looks only once a second.
//
// # What is kept
//
// Each write is a compare-and-set: if the session has changed since this request read it, what this
// request changed is merged into what is there, key by key, and of two writers of the same key the last
// one wins. A session that was ended meanwhile stays ended, with [ErrGone]. An id that Redis does not know,
// because it expired, was never issued or comes from elsewhere, is never adopted: the next write makes a
// new one. Ids have 256 random bits, are signed in the cookie, and hashed in Redis.
//
// A session ends Options.Idle after it was last read or written and Options.Absolute after it began or
// was given a new id by [Regenerate], which belongs into every login.
//
// Values keep their Go types. What is not a basic type, a time.Time, or a slice or map of such is written
// with encoding/gob and has to be known to gob.Register. Sessions that stock redistore wrote, as gob or
// JSON, are still read if their cookies are signed with one of Options.Keys; for other keys, or pairs with
// encryption, append securecookie.CodecsFromPairs(old...) to Store.RediStore().Codecs before the first
// request. Once written they are in this package's form, which stock redistore cannot read: replace all
// instances in one go.
//
// # While Redis is away
//
// Away is a Redis that is down, hangs, loads, is read only, wants a password, or answers nonsense. A
// request waits for it for Options.Timeout at most, and after three failures in a row not at all, but for
// one that looks now and then. It is served from a copy in this process where there is one ([Stale]), else
// an empty session ([Unavailable]). Either is read only: Save returns [ErrUnavailable], nothing is written
// later, and the cookie stays as it is, so that everybody is still logged in when Redis is back. A Redis
// that answers but refuses writes, for want of memory or disk, is read as ever.
//
// A copy is what this instance read or wrote itself, at most Options.Stale ago, and never of a session that
// was ended here. One that was ended on another instance may be served for as long: put [Require] on routes
// where that must not happen.
//
// Redis replicates asynchronously. When a primary dies, Sentinel or Cluster promote a replica that may lack
// the writes of the last moments, although they were acknowledged: a session begun then is unknown, a
// change is undone, a logout may be undone except on the instance that did it. Only min-replicas-to-write
// makes that rarer; nothing makes it impossible.
package session

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/boj/redistore"
	"github.com/gin-contrib/sessions"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/gorilla/securecookie"
	gorilla "github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/outage"
)

// What Save, [Regenerate] and [Destroy] may return; compare with errors.Is.
var (
	// ErrUnavailable is for a session that is read only because Redis is or was away in this request. If it
	// comes from a call that timed out, nobody knows whether that was done.
	ErrUnavailable = errors.New("session: store unavailable")
	// ErrTooLarge is for more than Options.MaxBytes. What was stored before stays as it was.
	ErrTooLarge = errors.New("session: too large")
	// ErrGone is for a session that was ended, by another request or by its age, since this one read it.
	ErrGone = errors.New("session: ended meanwhile")
	// ErrTooLate is for what needs a cookie once the headers are out. Nothing is stored.
	ErrTooLate = errors.New("session: the headers are out, no cookie can be set")
)

// Options configures [New]. Only Keys have to be given.
type Options struct {
	// Keys sign the cookies, newest first; each has at least 32 random bytes. A cookie signed with another
	// than the first is accepted and signed anew.
	Keys [][]byte
	// Idle is how long a session lives since its last use. 0: 20 min.
	Idle time.Duration
	// Absolute is how long a session lives since its login, used or not. 0: 24 h.
	Absolute time.Duration
	// Timeout is how long a request waits for a read of Redis, and for a write. 0: 150 ms.
	Timeout time.Duration
	// Prefix is of all keys in Redis. Empty: "session_".
	Prefix string
	// MaxBytes is how large the values of a session may be when encoded. 0: 4096.
	MaxBytes int
	// Cookie has the attributes of the cookie.
	Cookie Cookie
	// Stale is how old a copy in this process may be that is served while Redis is away; more than 5 min
	// is 5 min. 0: 5 min. Negative: none is.
	Stale time.Duration
	// StaleEntries is how many copies there are at most, of MaxBytes each. 0: 10 000.
	StaleEntries int
	// OnState, if not nil, is called when Redis goes away, with the state of the request that noticed and
	// the reason, and with Live and nil when it is back. Once per change, in order, with no lock held.
	OnState func(State, error)
}

const (
	defaultIdle     = 20 * time.Minute
	defaultAbsolute = 24 * time.Hour
	defaultTimeout  = 150 * time.Millisecond
	defaultPrefix   = "session_"
	defaultMaxBytes = 4096
	maxStale        = 5 * time.Minute
	defaultEntries  = 10_000
	minKey          = 32
)

// Cookie has the attributes of the cookie. Its zero value is HttpOnly, SameSite=Lax, Path=/, Secure when
// the request came by TLS, and a Max-Age of one and a half times Idle: it is sent again once Idle/2 have
// passed, so that it never ends before the session does. It is sent when the id is new, half of Idle has
// passed since, or its key is no longer the newest, in at most one Set-Cookie. Options set through
// sessions.Session or Store.Options replace these attributes verbatim, as gin-contrib has it; their MaxAge
// is the cookie's, while Idle and Absolute end the session.
type Cookie struct {
	// Domain is of all hosts that get the cookie. Empty: only the one that set it.
	Domain string
	// Path is of all requests that get the cookie. Empty: "/".
	Path string
	// Secure is for TLS that ends in front of the service, which cannot see it then.
	Secure bool
	// Insecure is never Secure.
	Insecure bool
	// SameSite is http.SameSiteLaxMode if 0.
	SameSite http.SameSite
	// Partitioned is for a cookie of its own under each top-level site (CHIPS); it needs Secure.
	Partitioned bool
	// Browser is for a cookie that ends with the browser: no Max-Age.
	Browser bool
}

// State is what a request knows of its session.
type State int

// What it can be.
const (
	Live        State = iota // as Redis has it
	Stale                    // a copy from this process; read only
	Unavailable              // Redis is away and there is no copy: empty and read only, the cookie untouched
)

// String is the name of the state.
func (s State) String() string {
	switch s {
	case Live:
		return "live"
	case Stale:
		return "stale"
	case Unavailable:
		return "unavailable"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// Store is a gin-contrib sessions.Store, safe for concurrent use. Behind [Middleware] it does all that the
// package says; behind gin-contrib's own sessions.Sessions nothing is saved without Save, and a cookie is
// renewed only then.
type Store struct {
	client   redis.UniversalClient
	redis    *redistore.RediStore
	o        Options
	signer   *signer
	verbatim atomic.Pointer[gorilla.Options] // set by Options

	circuits outage.Group
	caller   *outage.Caller
	health   health
	copies   copies
	holds    holds
}

// New never dials, so that Redis may come up later; an error means that the options make no sense. The
// client stays the caller's, who closes it. One without ContextTimeoutEnabled ignores deadlines: its calls
// run on goroutines, at most 128 at once, which end when the client's own timeouts say so.
func New(client redis.UniversalClient, o Options) (*Store, error) {
	if client == nil {
		return nil, errors.New("session: a client is needed")
	}
	o.Idle = cmp.Or(o.Idle, defaultIdle)
	o.Absolute = cmp.Or(o.Absolute, defaultAbsolute)
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	o.Prefix = cmp.Or(o.Prefix, defaultPrefix)
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultMaxBytes)
	o.Stale = min(cmp.Or(o.Stale, maxStale), maxStale, o.Idle)
	o.StaleEntries = cmp.Or(o.StaleEntries, defaultEntries)
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Store{
		client: client, o: o, signer: newSigner(o.Keys),
		circuits: outage.For(client, o.Timeout/2, o.Timeout),
		caller:   outage.NewCaller(client),
		health:   health{onState: o.OnState},
		copies:   newCopies(o.StaleEntries),
	}
	// redistore asks for a PING when it is made. This one is answered without a server.
	rs, err := redistore.NewRediStoreWithPool(&redigo.Pool{Dial: func() (redigo.Conn, error) { return pong{}, nil }})
	if err != nil {
		return nil, err
	}
	rs.Pool = RedigoPool(client)
	rs.Codecs = []securecookie.Codec{s.signer}
	for _, k := range o.Keys {
		rs.Codecs = append(rs.Codecs, securecookie.New(k, nil))
	}
	rs.SetKeyPrefix(o.Prefix)
	rs.SetSerializer(serializer{})
	rs.SetMaxLength(0) // call looks to it
	s.redis = rs
	return s, nil
}

func (o *Options) check() error {
	if len(o.Keys) == 0 {
		return errors.New("session: Keys: at least one is needed, of 32 random bytes or more")
	}
	for i, k := range o.Keys {
		if len(k) < minKey {
			return fmt.Errorf("session: Keys[%d] has %d bytes, %d are the least", i, len(k), minKey)
		}
	}
	switch {
	case o.Idle < time.Millisecond || o.Absolute < time.Millisecond || o.Timeout < time.Millisecond:
		return fmt.Errorf("session: Idle %v, Absolute %v, Timeout %v: each has to be a millisecond at least", o.Idle, o.Absolute, o.Timeout)
	case o.MaxBytes < 0 || o.StaleEntries < 0:
		return fmt.Errorf("session: MaxBytes %d, StaleEntries %d: neither may be negative", o.MaxBytes, o.StaleEntries)
	}
	return o.Cookie.check()
}

func (c *Cookie) check() error {
	cookie := http.Cookie{Name: "x", Path: c.Path, Domain: c.Domain}
	switch {
	case c.Secure && c.Insecure:
		return errors.New("session: a cookie cannot be Secure and Insecure")
	case c.Insecure && (c.SameSite == http.SameSiteNoneMode || c.Partitioned):
		return errors.New("session: browsers take SameSite=None and Partitioned only with Secure")
	case c.Path != "" && c.Path[0] != '/':
		return fmt.Errorf("session: the path of a cookie begins with a slash, not as %q", c.Path)
	}
	if err := cookie.Valid(); err != nil {
		return fmt.Errorf("session: Cookie: %w", err)
	}
	return nil
}

// Options replaces the attributes of the cookie from now on.
func (s *Store) Options(o sessions.Options) { s.verbatim.Store(o.ToGorillaOptions()) }

// RediStore is the redistore underneath, for its settings: SetSerializer, SetKeyPrefix, and Codecs for
// cookies of an earlier deployment. They are for before the first request. Its own Get, New and Save know
// nothing of what this package adds.
func (s *Store) RediStore() *redistore.RediStore { return s.redis }
