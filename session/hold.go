package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"time"

	gorilla "github.com/gorilla/sessions"
)

// A hold is what the store knows of the session of a request.
type hold struct {
	name   string
	ticket ticket // of the cookie, if that is ours
	id     string // of the session that is stored; "": none is yet
	call   *call  // that read it, to be used again
	record string // as it was read or written last
	start  int64  // when it began, ms; 0: not known
	state  State
	due    bool  // the cookie is to be sent
	err    error // why it could not be read
}

const maxCookies = 8 // of one name; more are not ours

// identify finds the cookie that is ours. Another host or path may have set more of that name.
func (s *Store) identify(r *http.Request, name string) *hold {
	h := &hold{name: name}
	cookies := r.CookiesNamed(name)
	for _, c := range cookies[:min(len(cookies), maxCookies)] {
		for _, codec := range s.redis.Codecs {
			if own, ok := codec.(*signer); ok {
				if h.ticket, ok = own.decode(name, c.Value); ok {
					return h
				}
			} else if codec.Decode(name, c.Value, &h.ticket.id) == nil && h.ticket.id != "" {
				return h
			}
			h.ticket = ticket{}
		}
	}
	return h
}

// load reads the session that h's ticket is for.
func (s *Store) load(r *http.Request, h *hold) map[any]any {
	if h.ticket.id == "" {
		return map[any]any{}
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.o.Timeout)
	defer cancel()
	c := s.call(ctx, r.Context(), h.ticket.id)
	values, found, err := c.read()
	switch {
	case c.err != nil:
		return s.degrade(h, c)
	case found:
		h.id, h.call, h.record = h.ticket.id, c, c.record
		h.start, _ = began(c.record)
		h.due = !h.ticket.newest || s.halfOver(h.ticket.made)
		return values
	}
	h.err = err // it is there but cannot be read: it stays as it is, and the next write makes a new one
	return map[any]any{}
}

// degrade is the copy that there is, or nothing.
func (s *Store) degrade(h *hold, c *call) map[any]any {
	h.err, h.state = c.err, Unavailable
	values := map[any]any{}
	record, at, ok := s.copies.get(c.key)
	if now := time.Now(); ok && s.o.Stale > 0 && now.Sub(at) <= s.o.Stale && !s.over(record, now) {
		if copied, err := c.readFrom(record); err == nil {
			h.state, h.id, values = Stale, h.ticket.id, copied
		}
	}
	s.failed(h, c)
	return values
}

// failed tells why the request of h is not served as it should be.
func (s *Store) failed(h *hold, c *call) {
	if h.err != ErrUnavailable && c.asked.Err() == nil { //nolint:errorlint // that very one: it was not asked
		s.health.failed(s.circuits.Of(c.key), h.state, h.err)
	}
}

// answers asks Redis whether it is there and could be written to.
func (s *Store) answers(asked context.Context) bool {
	ctx, cancel := context.WithTimeout(asked, s.o.Timeout)
	defer cancel()
	h, c := &hold{state: Unavailable}, s.call(ctx, asked, "")
	if _, _, h.err = c.read(); h.err != nil {
		s.failed(h, c)
	}
	return h.err == nil
}

// save writes values, and those that others have written since.
func (s *Store) save(r *http.Request, h *hold, values map[any]any) error {
	id := h.id
	if id == "" {
		id = newID()
	}
	// A client that goes away now does not undo what its request did.
	asked := context.WithoutCancel(r.Context())
	ctx, cancel := context.WithTimeout(asked, s.o.Timeout)
	defer cancel()
	c := h.call
	if c == nil {
		c = s.call(ctx, asked, id)
	}
	c.ctx, c.asked, c.from, c.start = ctx, asked, h.record, h.start
	c.conflict, c.err = "", nil
	for {
		if err := c.write(values); err != nil {
			return s.notSaved(h, c, err)
		}
		if c.conflict == "" {
			h.id, h.call, h.record, h.start = id, c, c.record, c.start
			return nil
		}
		if err := s.merge(h, values, c); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: others wrote this session again and again", ErrUnavailable)
		}
	}
}

func (s *Store) notSaved(h *hold, c *call, err error) error {
	if c.err == nil { // redistore, its serializer, or a session that is gone
		return err
	}
	h.err, h.state = c.err, Stale
	if h.id == "" {
		h.state = Unavailable
	}
	s.failed(h, c)
	return c.err
}

// merge takes into values what another has written since c.from, but for what this request has changed. From then on
// that is what h's values are compared with, also if they cannot be written now.
func (s *Store) merge(h *hold, values map[any]any, c *call) error {
	record := c.conflict
	base, err := c.readFrom(c.from)
	if err != nil {
		return err
	}
	theirs, err := c.readFrom(record)
	if err != nil {
		return err
	}
	for k, was := range base {
		if is, ok := values[k]; !ok || !reflect.DeepEqual(is, was) {
			continue // this request's change
		}
		if now, ok := theirs[k]; ok {
			values[k] = now
		} else {
			delete(values, k)
		}
	}
	for k, now := range theirs {
		_, known := base[k]
		if _, set := values[k]; !known && !set {
			values[k] = now
		}
	}
	c.from, c.conflict = record, ""
	c.start, _ = began(record)
	h.record, h.start = c.from, c.start
	return nil
}

// regenerate moves the session to a new id. What others write under the old one until it is gone moves too.
func (s *Store) regenerate(r *http.Request, h *hold, values map[any]any) error {
	moved := &hold{name: h.name, ticket: h.ticket, due: true}
	asked := context.WithoutCancel(r.Context())
	ctx, cancel := context.WithTimeout(asked, s.o.Timeout)
	defer cancel()
	c := s.call(ctx, asked, h.id)
	c.from, c.only = h.record, true
	for {
		if err := s.save(r, moved, values); err != nil {
			return err
		}
		err := c.end()
		switch {
		case err == nil && c.conflict != "":
			if err := s.merge(h, values, c); err != nil {
				return err
			}
			continue
		case errors.Is(err, ErrGone): // somebody has logged out: then so has the new one
			_ = s.call(ctx, asked, moved.id).end()
			return err
		}
		*h = *moved
		if err != nil { // the old one may live on in Redis, but no longer here
			s.copies.end(c.key)
			s.failed(&hold{state: Stale, err: err}, c)
			return fmt.Errorf("the id before may still be valid until it expires: %w", err)
		}
		return nil
	}
}

// end deletes the session, and with it what every write in flight needs.
func (s *Store) end(r *http.Request, h *hold) error {
	id := h.id
	if id == "" {
		id = h.ticket.id
	}
	*h = hold{name: h.name}
	if id == "" {
		return nil
	}
	asked := context.WithoutCancel(r.Context())
	ctx, cancel := context.WithTimeout(asked, s.o.Timeout)
	defer cancel()
	c := s.call(ctx, asked, id)
	if err := c.end(); err != nil {
		h.err, h.state = err, Unavailable
		s.failed(h, c)
		return err
	}
	return nil
}

// options are those that the cookie of a new session has.
func (s *Store) options(r *http.Request) gorilla.Options {
	if o := s.verbatim.Load(); o != nil {
		return *o
	}
	c := s.o.Cookie
	o := gorilla.Options{
		Path: c.Path, Domain: c.Domain, HttpOnly: true, SameSite: c.SameSite, Partitioned: c.Partitioned,
		Secure: c.Secure || r.TLS != nil && !c.Insecure,
	}
	if o.Path == "" {
		o.Path = "/"
	}
	if o.SameSite == 0 {
		o.SameSite = http.SameSiteLaxMode
	}
	if !c.Browser {
		o.MaxAge = int((s.o.Idle*3/2 + time.Second - 1) / time.Second)
	}
	return o
}

// halfOver reports whether a cookie that was made then is to be sent again.
func (s *Store) halfOver(made time.Time) bool {
	half := s.o.Idle / 2
	if o := s.verbatim.Load(); o != nil {
		half = time.Duration(o.MaxAge) * time.Second / 2
	} else if s.o.Cookie.Browser {
		half = 0
	}
	return half > 0 && time.Since(made) > half
}
