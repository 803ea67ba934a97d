package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
)

// callWithin bounds one call to the agent about a registration.
const callWithin = 5 * time.Second

// Registration describes this process to Consul. Exactly one of TTL and HTTP is the check; neither: a TTL
// check of 15 s.
type Registration struct {
	// Service is the name under which peers find it.
	Service string
	// ID is unique on the agent. Empty: service-host-port.
	ID string
	// Addr is the host:port that peers call, so its host is neither empty nor 0.0.0.0.
	Addr string
	// Weight and WeightWarning are the relative capacity while the checks pass and while one warns. Zero: 1.
	Weight, WeightWarning int
	Tags                  []string
	Meta                  map[string]string

	// TTL is how long the agent lets the process live without a heartbeat, which comes every TTL/3.
	TTL time.Duration
	// Check, with TTL, is called before each heartbeat: nil passes, an error or a panic fails the check with
	// its text. Its ctx ends after TTL/3. Nil: passes.
	Check func(context.Context) error

	// HTTP is the URL that the agent polls, as in http://host:port/health. The registration starts as
	// passing, so that it gets traffic before the first poll.
	HTTP string
	// Interval and Timeout are of HTTP. Zero: 10 s and 2 s.
	Interval, Timeout time.Duration

	// DeregisterCriticalAfter is how long the check may fail before Consul forgets the registration. Zero:
	// for ever. Else at least one minute, Consul's own minimum.
	DeregisterCriticalAfter time.Duration
}

// Register tries until the agent accepts, refuses as malformed, or ctx ends. It keeps the registration
// alive, also through an agent restart, until [Registered.Deregister] or the end of ctx, which deregisters
// too, within 5 s of its own; a process that is about to exit calls Deregister to wait for that. Failures
// meanwhile go to Options.OnError.
func (c *Consul) Register(ctx context.Context, r Registration) (*Registered, error) {
	if c.client == nil {
		return nil, errNoClient
	}
	host, port, err := r.complete()
	if err != nil {
		return nil, err
	}
	reg := &Registered{c: c, r: r, checkID: "service:" + r.ID, kept: make(chan struct{})}
	reg.service = api.AgentServiceRegistration{
		ID: r.ID, Name: r.Service, Address: host, Port: port, Tags: slices.Clone(r.Tags), Meta: maps.Clone(r.Meta),
		Weights: &api.AgentWeights{Passing: r.Weight, Warning: r.WeightWarning},
	}
	reg.status, reg.output = reg.check(ctx)
	if err := reg.first(ctx); err != nil {
		return nil, err
	}
	keep, stop := context.WithCancel(ctx)
	reg.stop = stop
	go reg.keep(keep)
	reg.mu.Lock() // ctx may end at once
	defer reg.mu.Unlock()
	reg.forget = context.AfterFunc(ctx, func() {
		if err := reg.Deregister(ctx); err != nil {
			c.o.OnError(r.Service, err)
		}
	})
	return reg, nil
}

// first registers; it returns an error when ctx ends, or when trying again would not help.
func (r *Registered) first(ctx context.Context) error {
	for failures := 1; ; failures++ {
		err := r.register(ctx)
		var status api.StatusError
		if err == nil || errors.As(err, &status) && status.Code == http.StatusBadRequest {
			return err
		}
		if ctx.Err() == nil {
			r.c.o.OnError(r.r.Service, err)
			sleep(ctx, backoff(failures))
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
	}
}

// complete checks r and sets its defaults.
func (r *Registration) complete() (host string, port int, err error) {
	host, port, err = splitAddr(r.Addr)
	switch {
	case r.Service == "":
		err = errors.New("no Service, which is the name under which peers find this process")
	case err != nil:
		err = fmt.Errorf("bad Addr: %w", err)
	case r.Weight < 0 || r.WeightWarning < 0:
		err = errors.New("negative Weight or WeightWarning")
	default:
		err = r.wrongCheck()
	}
	if err != nil {
		return "", 0, fmt.Errorf("consul: Registration: %w", err)
	}
	if r.HTTP == "" {
		r.TTL = cmp.Or(r.TTL, 15*time.Second)
	}
	r.ID = cmp.Or(r.ID, fmt.Sprintf("%s-%s-%d", r.Service, host, port))
	r.Interval, r.Timeout = cmp.Or(r.Interval, 10*time.Second), cmp.Or(r.Timeout, 2*time.Second)
	r.Weight, r.WeightWarning = cmp.Or(r.Weight, 1), cmp.Or(r.WeightWarning, 1)
	return host, port, nil
}

func (r *Registration) wrongCheck() error {
	switch u, err := url.Parse(r.HTTP); {
	case r.TTL < 0 || r.Interval < 0 || r.Timeout < 0:
		return errors.New("negative TTL, Interval or Timeout")
	case r.DeregisterCriticalAfter != 0 && r.DeregisterCriticalAfter < time.Minute:
		return fmt.Errorf("DeregisterCriticalAfter is %v: Consul makes one minute of anything shorter, and looks "+
			"only every 30 s; use at least 1m, or 0 for never", r.DeregisterCriticalAfter)
	case r.HTTP == "":
		return nil
	case r.TTL > 0:
		return errors.New("both TTL and HTTP are set: a registration has one check")
	case r.Check != nil:
		return errors.New("both HTTP and Check are set: with HTTP the agent asks the URL, and nobody calls Check")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("HTTP is %q: it must be a URL like http://host:port/health", r.HTTP)
	}
	return nil
}

// splitAddr splits an address that others can call.
func splitAddr(addr string) (host string, port int, err error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		return "", 0, fmt.Errorf("%q has no host that peers could call", addr)
	}
	if port, err = strconv.Atoi(service); err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("%q has no port from 1 to 65535", addr)
	}
	return host, port, nil
}
