package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

var errCheckLost = errors.New("the agent has lost the check")

// Registered is a registration that is kept alive. It is safe for concurrent use.
type Registered struct {
	c       *Consul
	r       Registration
	service api.AgentServiceRegistration // without its check
	checkID string

	status, output string             // of the last check; the heartbeat's
	stop           context.CancelFunc // of the heartbeat
	kept           chan struct{}      // closed when the heartbeat has stopped

	mu     sync.Mutex  // guards the fields below, and is held during a deregistration
	forget func() bool // the end of Register's ctx
	gone   bool
}

// Deregister stops the heartbeat and then removes the registration, within 5 s, whether or not ctx has
// ended: at shutdown it usually has. After a success further calls do nothing; after an error they try
// again.
func (r *Registered) Deregister(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return nil
	}
	r.forget()
	r.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callWithin)
	defer cancel()
	// A Check that does not heed its ctx holds the heartbeat, but can send nothing any more.
	select {
	case <-r.kept:
	case <-time.After(time.Second):
	}
	err := r.deregister(ctx)
	for failures := 1; err != nil && ctx.Err() == nil; failures++ { // the agent may just be restarting
		sleep(ctx, min(backoff(failures), time.Second))
		if ctx.Err() == nil {
			err = r.deregister(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("consul: deregistering %s: %w", r.r.ID, err)
	}
	r.gone = true
	return nil
}

func (r *Registered) deregister(ctx context.Context) error {
	err := r.c.client.Agent().ServiceDeregisterOpts(r.r.ID, new(api.QueryOptions).WithContext(ctx))
	var status api.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return nil // the agent has forgotten it already
	}
	return err
}

// keep sends heartbeats until ctx ends. Whatever is wrong with one, the answer is to register again, which
// changes nothing where all is well, and to come back soon, since an agent that restarts has forgotten us.
func (r *Registered) keep(ctx context.Context) {
	defer close(r.kept)
	for failures := 0; ctx.Err() == nil; {
		pause := r.every()
		if err := r.beat(ctx); err == nil {
			failures = 0
		} else {
			failures++
			pause = min(pause, backoff(failures), time.Second)
			if err := r.register(ctx); err != nil && ctx.Err() == nil {
				r.c.o.OnError(r.r.Service, err)
			}
		}
		sleep(ctx, pause)
	}
}

// every is the time between two heartbeats. With HTTP they only look whether the registration is there.
func (r *Registered) every() time.Duration {
	if r.r.HTTP != "" {
		return max(r.r.Interval/2, time.Second)
	}
	return max(r.r.TTL/3, time.Millisecond)
}

// beat fails if the agent does not have the registration with its check.
func (r *Registered) beat(ctx context.Context) error {
	agent := r.c.client.Agent()
	if r.r.HTTP == "" {
		r.status, r.output = r.check(ctx)
		ctx, cancel := context.WithTimeout(ctx, callWithin)
		defer cancel()
		return agent.UpdateTTLOpts(r.checkID, r.output, r.status, new(api.QueryOptions).WithContext(ctx))
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	_, info, err := agent.AgentHealthServiceByIDOpts(r.r.ID, new(api.QueryOptions).WithContext(ctx))
	if err != nil || info == nil {
		return errors.Join(err, errCheckLost)
	}
	for _, check := range info.Checks {
		if check.CheckID == r.checkID {
			return nil
		}
	}
	return errCheckLost
}

// register tells the agent all about r. The state of a check that the agent knows is left as it is.
func (r *Registered) register(ctx context.Context) error {
	check := &api.AgentServiceCheck{CheckID: r.checkID, Status: r.status}
	if r.r.HTTP != "" {
		check.HTTP, check.Interval, check.Timeout = r.r.HTTP, r.r.Interval.String(), r.r.Timeout.String()
	} else {
		check.TTL = r.r.TTL.String()
	}
	if after := r.r.DeregisterCriticalAfter; after > 0 {
		check.DeregisterCriticalServiceAfter = after.String()
	}
	service := r.service
	service.Check = check
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	// A check that somebody else left under this ID would count.
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	if err := r.c.client.Agent().ServiceRegisterOpts(&service, opts); err != nil {
		return fmt.Errorf("consul: registering %s: %w", r.r.ID, err)
	}
	return nil
}

// check calls the user's Check and returns Consul's word for the result, and its text.
func (r *Registered) check(ctx context.Context) (status, output string) {
	if r.r.Check == nil {
		return api.HealthPassing, ""
	}
	ctx, cancel := context.WithTimeout(ctx, r.every())
	defer cancel()
	if err := guard(ctx, r.r.Check); err != nil {
		return api.HealthCritical, err.Error()
	}
	return api.HealthPassing, ""
}

// guard makes a panic an error.
func guard(ctx context.Context, f func(context.Context) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return f(ctx)
}
