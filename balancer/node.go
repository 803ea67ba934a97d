package balancer

import (
	"context"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/highball-go/highball/discovery"
)

// Peak EWMA, from Finagle (com.twitter.finagle.loadbalancer.PeakEwma): the latency jumps up to each new
// peak and decays over tau, so that an instance that has become slow is left alone at once and asked
// again after a while.
const (
	tauMs = 10_000 // the decay, in milliseconds
	// oldMs is when a measurement says no more. Without it, a slow instance that was left alone would
	// look like the fastest of all, and be flooded until its first answer.
	oldMs = 3 * tauMs
	// What fails fast has few calls in flight and would be loved for it. So a failure makes a node dearer,
	// failureCost times at first, and less and less over failureMs: long enough to notice an instance that
	// fails all the time, short enough to give one that has been restarted its share back.
	failureCost = 10
	failureMs   = 3_000
)

// Counters of a node share one word: completed calls above, calls in flight in the low bits. One atomic
// add begins a call, and one ends it.
const (
	inFlightBits = 20
	inFlightMask = 1<<inFlightBits - 1
	completed    = 1<<inFlightBits - 1 // one more completed, one less in flight
)

// Node is an instance with its live numbers, which survive membership updates. It is safe for concurrent
// use.
type Node struct {
	service *service
	hash    uint64 // of the identity, for IPHash
	inst    atomic.Pointer[discovery.Instance]
	weight  atomic.Uint64 // float64 bits: the instance's, times the ramp
	carrier http.RoundTripper

	out atomic.Pointer[ejection] // nil: in service

	life   context.Context // ends when the node leaves, and with it the ramp and the probes
	leave  context.CancelFunc
	ramp   float64 // of slow start, 0..1; guarded by service.mu
	record record  // guarded by service.mu

	_       [128]byte // the fields below change with each call: keep other nodes off their cache line
	calls   atomic.Uint64
	fails   atomic.Int64  // failures in a row
	latency atomic.Uint64 // a measurement; 0: unknown
	failing atomic.Uint32 // stamp of the last failure; 0: none
	failed  atomic.Uint64
	_       [128]byte
}

// Instance is what the source last said of the instance.
func (n *Node) Instance() discovery.Instance { return *n.inst.Load() }

// InFlight counts the calls that have been selected and are not done.
func (n *Node) InFlight() int64 { return int64(n.calls.Load() & inFlightMask) }

// Latency is the peak EWMA of the time to the answer, decaying over 10 s. Unknown, or not measured for
// 30 s: the mean of the known ones, or 0. The first call of Latency by anybody turns the measuring of
// the service on; until then no call of it reads the clock.
func (n *Node) Latency() time.Duration {
	n.service.measure()
	return time.Duration(n.service.latency(n, stamp(n.service.b.now())))
}

// Weight is the instance's weight, at least 1, times its slow start's ramp.
func (n *Node) Weight() float64 { return math.Float64frombits(n.weight.Load()) }

// setWeight follows a change of the instance or of the ramp. The caller holds service.mu.
func (n *Node) setWeight() {
	n.weight.Store(math.Float64bits(n.ramp * float64(max(n.inst.Load().Weight, 1))))
}

func (n *Node) addr() string { return n.inst.Load().Addr }

// drains reports whether the source wants no new calls on n.
func (n *Node) drains() bool { return n.inst.Load().Weight < 0 }

// NodeStatus explains an instance: why it is chosen, or is not.
type NodeStatus struct {
	discovery.Instance
	InFlight           int64
	Latency            time.Duration // decayed peak EWMA; 0: unknown, or nothing looks at it
	Ejected            bool
	Until              time.Time // earliest probe of an ejected instance
	Requests, Failures uint64    // that have ended
}

func (n *Node) status() NodeStatus {
	calls := n.calls.Load()
	s := NodeStatus{
		Instance: n.Instance(),
		InFlight: int64(calls & inFlightMask),
		Requests: calls >> inFlightBits,
		Failures: n.failed.Load(),
	}
	if v, ok := measurement(n.latency.Load()).at(stamp(n.service.b.now())); ok {
		s.Latency = time.Duration(v)
	}
	if o := n.out.Load(); o != nil {
		s.Ejected, s.Until = true, o.until
	}
	return s
}

// observe takes in the latency of one call, in nanoseconds.
func (n *Node) observe(ns float32, at uint32) {
	for {
		old := measurement(n.latency.Load())
		next := old.with(ns, at)
		if next == old || n.latency.CompareAndSwap(uint64(old), uint64(next)) {
			return
		}
	}
}

// penalty is how many times dearer than its latency a recent failure makes n.
func (n *Node) penalty(now uint32) float32 {
	at := n.failing.Load()
	if at == 0 {
		return 1
	}
	age := since(at, now)
	if age >= failureMs {
		return 1
	}
	return failureCost - (failureCost-1)*float32(age)/failureMs
}

// A measurement packs a latency (float32 nanoseconds, above) and when it was taken (a stamp, below) into
// one word, so that both change together. 0 is none.
type measurement uint64

func measured(ns float32, at uint32) measurement {
	return measurement(math.Float32bits(max(ns, 1)))<<32 | measurement(at)
}

func (m measurement) split() (ns float32, at uint32) {
	return math.Float32frombits(uint32(m >> 32)), uint32(m)
}

// at is the latency as it has decayed by now; false: unknown.
func (m measurement) at(now uint32) (float32, bool) {
	ns, taken := m.split()
	age := since(taken, now)
	if m == 0 || age > oldMs {
		return 0, false
	}
	return ns * decay(age), true
}

func (m measurement) with(ns float32, now uint32) measurement {
	old, taken := m.split()
	age := since(taken, now)
	switch {
	case m == 0 || age > oldMs || ns >= old:
		return measured(ns, now)
	case age == 0:
		return m // too early to decay; its stamp stays, so the next one weighs more
	}
	w := decay(age)
	return measured(old*w+ns*(1-w), now)
}

// A stamp is a clock in milliseconds that wraps after 49 days.
func stamp(now int64) uint32 { return uint32(now / int64(time.Millisecond)) }

// since is the time between two stamps; callers whose clock readings overtook each other are at 0.
func since(then, now uint32) uint32 {
	if d := now - then; d < 1<<31 {
		return d
	}
	return 0
}

// decay is exp(-ms/tau), by its series where that is exact enough: busy nodes are measured all the time.
func decay(ms uint32) float32 {
	x := float32(ms) / tauMs
	if x < 1.0/16 {
		return 1 - x + x*x/2
	}
	return float32(math.Exp(-float64(x)))
}

// Selection is one chosen instance; it is a value, so that a Select and Done pair allocates nothing.
type Selection struct {
	node  *Node
	start int64 // 0: nobody looks at the latency
	trial bool  // the node was ejected, and chosen because too few others are left
}

// Addr is the instance's host:port.
func (s Selection) Addr() string { return s.node.addr() }

// Instance is the chosen instance.
func (s Selection) Instance() discovery.Instance { return s.node.Instance() }

// A record is a node's history of ejections; service.mu guards it.
type record struct {
	inARow   int
	last     time.Duration // the last ejection's
	restored time.Time
}
