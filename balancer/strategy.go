package balancer

import (
	"context"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sort"
	"sync/atomic"
	"time"
)

// Call is what a [Picker] may look at.
type Call struct {
	// Key is the affinity key, see [WithKey].
	Key string
	// Seq is a cursor per service, one more each call. It survives rebuilds and starts at random.
	Seq uint64

	now   int64   // the call's clock reading; 0: nobody looks at latencies
	tried []*Node // that a keyed pick must avoid
}

// A Picker chooses among the nodes it was built with; it neither blocks nor allocates, and is safe for
// concurrent use.
type Picker func(Call) *Node

// A Strategy builds a [Picker] when the usable set or a weight changes, never per call. It is called with
// at least one node, in the order of their IDs, and must not keep or change the slice's array beyond the
// Picker's life.
type Strategy func([]*Node) Picker

type affinity struct{}

// WithKey sets the affinity key for [IPHash]: c.ClientIP(), a user, a session.
func WithKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, affinity{}, key)
}

// RoundRobin takes the instances in turn, whatever their weights. While slow start ramps an instance up,
// it is left out of as many rounds as it lacks of its weight.
func RoundRobin() Strategy {
	return func(nodes []*Node) Picker {
		ramps := make([]int, len(nodes))
		whole := true
		for i, n := range nodes {
			ramps[i] = int(math.Round(n.Weight() / float64(max(n.inst.Load().Weight, 1)) * rampSteps))
			whole = whole && ramps[i] == rampSteps
		}
		if !whole {
			return inTurn(nodes, ramps)
		}
		n := uint64(len(nodes))
		return func(c Call) *Node { return nodes[c.Seq%n] }
	}
}

// WeightedRoundRobin is nginx's smooth sequence, which spreads an instance's turns over the round:
// weights 5, 1, 1 give a a b a c a a. The round is worked out once (it is as long as the sum of the
// weights over their greatest common divisor); a sum of more than 65 536, or of 4 194 304 over the number
// of instances, is scaled down to that, and no instance below one turn.
//
// Source: Igor Sysoev, nginx commit 52327e0627f4, "Upstream: smooth weighted round-robin balancing".
func WeightedRoundRobin() Strategy {
	return func(nodes []*Node) Picker {
		weights := make([]int, len(nodes))
		for i, n := range nodes {
			weights[i] = max(int(math.Round(n.Weight()*rampSteps)), 1) // a ramp has tenths
		}
		return inTurn(nodes, weights)
	}
}

// inTurn walks the smooth sequence of weights.
func inTurn(nodes []*Node, weights []int) Picker {
	round := smooth(fit(weights, min(1<<16, 1<<22/len(nodes))))
	n := uint64(len(round))
	return func(c Call) *Node { return nodes[round[c.Seq%n]] }
}

// fit divides weights by their greatest common divisor, and scales them down where their sum is over most.
func fit(weights []int, most int) []int {
	sum, gcd := 0, 0
	for _, w := range weights {
		sum += w
		for a, b := w, gcd; ; a, b = b, a%b {
			if b == 0 {
				gcd = a
				break
			}
		}
	}
	fitted := slices.Clone(weights)
	for i, w := range weights {
		if sum/gcd > most {
			fitted[i] = max(int(float64(w)*float64(most)/float64(sum)), 1)
		} else {
			fitted[i] = w / gcd
		}
	}
	return fitted
}

// smooth is one round: at each turn every node gains its weight, and the first of the highest is taken
// and pays the sum.
func smooth(weights []int) []int32 {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	current := make([]int, len(weights))
	round := make([]int32, sum)
	for turn := range round {
		best := 0
		for i, w := range weights {
			current[i] += w
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= sum
		round[turn] = int32(best)
	}
	return round
}

// LeastConnections takes the instance with the fewest calls in flight in proportion to its weight, exactly;
// among equals one at random, by weight. While some are idle a few draws find one; when all are busy it
// looks at each.
func LeastConnections() Strategy {
	const draws = 4
	return func(nodes []*Node) Picker {
		weights, inverse := weightsOf(nodes)
		draw := atRandom(nodes)
		return func(c Call) *Node {
			for range draws {
				if n := draw(c); n.calls.Load()&inFlightMask == 0 {
					return n // nobody has fewer, and to draw again and again favours none of the idle
				}
			}
			random := uint32(rand.Uint64())
			best, least, sum := nodes[0], math.Inf(1), 0.0
			for i, n := range nodes {
				load := float64(n.calls.Load()&inFlightMask) * inverse[i]
				if load > least {
					continue
				}
				if load < least {
					best, least, sum = n, load, weights[i]
					continue
				}
				// One of the equals so far is best; let n take its place by its share of them.
				sum += weights[i]
				random = random*1664525 + 1013904223 // Knuth's generator: one draw of rand for all
				if float64(random)*sum < weights[i]*(1<<32) {
					best = n
				}
			}
			return best
		}
	}
}

// Random takes an instance at random, by weight.
func Random() Strategy { return atRandom }

func atRandom(nodes []*Node) Picker {
	up := make([]float64, len(nodes)) // the sums of the weights up to here
	sum := 0.0
	for i, n := range nodes {
		sum += n.Weight()
		up[i] = sum
	}
	if up[0]*float64(len(nodes)) == sum && !slices.ContainsFunc(nodes, func(n *Node) bool { return n.Weight() != up[0] }) {
		n := uint64(len(nodes))
		return func(Call) *Node { return nodes[below(rand.Uint64(), n)] }
	}
	return func(Call) *Node {
		return nodes[min(sort.SearchFloat64s(up, rand.Float64()*sum), len(nodes)-1)]
	}
}

// below maps a random x to [0, n) without a division.
func below(x, n uint64) uint64 {
	hi, _ := bits.Mul64(x, n)
	return hi
}

// IPHash sends calls with the same key (see [WithKey]) to the same instance, in every process, by
// weighted rendezvous: when an instance comes or goes, only its own keys move, in proportion to its
// weight. A retry goes to the key's next instance. Without a key it is Random.
//
// Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1),
// 1998; weights by Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005.
func IPHash() Strategy {
	return func(nodes []*Node) Picker {
		random := atRandom(nodes)
		weights, inverse := weightsOf(nodes)
		hashes := make([]uint64, len(nodes))
		for i, n := range nodes {
			hashes[i] = n.hash
		}
		equal := !slices.ContainsFunc(weights, func(w float64) bool { return w != weights[0] })
		return func(c Call) *Node {
			switch {
			case c.Key == "":
				return random(c)
			case equal && len(c.tried) == 0:
				return nodes[highest(hash(c.Key), hashes)]
			}
			key := hash(c.Key)
			var best *Node
			least := math.Inf(1)
			for i, n := range nodes {
				// An exponential variate with the weight as its rate: the chance to be the least of all
				// is the share of the weight. With equal weights it is least where mix is highest.
				u := (float64(mix(key^hashes[i])>>11) + 0.5) / (1 << 53)
				if v := -math.Log(u) * inverse[i]; v < least && !slices.Contains(c.tried, n) {
					best, least = n, v
				}
			}
			return best
		}
	}
}

func highest(key uint64, hashes []uint64) int {
	best, top := 0, uint64(0)
	for i, h := range hashes {
		if v := mix(key ^ h); v > top {
			best, top = i, v
		}
	}
	return best
}

// hash is FNV-1a with a finaliser: unkeyed, for it must be the same in every process.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix is MurmurHash3's 64-bit finaliser.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// PowerOfTwo draws two distinct instances and takes the one where a new call costs less: peak-EWMA
// latency × (calls in flight + 1) / weight. A failure makes an instance dearer for three seconds, ten
// times at first, or one that fails fast would seem the fastest.
//
// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001;
// the cost is Finagle's.
func PowerOfTwo() Strategy {
	return func(nodes []*Node) Picker {
		s := nodes[0].service
		s.measure()
		_, inverse := weightsOf(nodes)
		n := uint64(len(nodes))
		if n == 1 {
			return func(Call) *Node { return nodes[0] }
		}
		return func(c Call) *Node {
			x := rand.Uint64()
			i, j := (x>>32*n)>>32, (x&math.MaxUint32*(n-1))>>32
			if j >= i {
				j++
			}
			at := s.at(c)
			if s.cost(nodes[j], at)*inverse[j] < s.cost(nodes[i], at)*inverse[i] {
				return nodes[j]
			}
			return nodes[i]
		}
	}
}

// at is the clock reading of c, or one of its own where c has none.
func (s *service) at(c Call) uint32 {
	if c.now == 0 {
		return stamp(s.b.now())
	}
	return stamp(c.now)
}

// cost is what a further call on n is expected to take: its latency for each call that would be in flight.
func (s *service) cost(n *Node, at uint32) float64 {
	latency := s.latency(n, at)
	if latency == 0 {
		latency = 1 // nothing is known of any node: go by the calls in flight
	}
	return float64(latency*n.penalty(at)) * float64(n.calls.Load()&inFlightMask+1)
}

// ResponseTime takes an instance at random, with a chance in proportion to weight / latency (peak EWMA),
// and a tenth of that just after a failure. The chances are worked out anew four times a second.
func ResponseTime() Strategy {
	return func(nodes []*Node) Picker {
		s := nodes[0].service
		s.measure()
		c := &chances{nodes: nodes, up: make([]atomic.Uint64, len(nodes))}
		c.refresh(s, stamp(s.b.now()))
		return func(call Call) *Node {
			at := s.at(call)
			if last := c.at.Load(); since(last, at) >= chancesLast && c.at.CompareAndSwap(last, at) {
				c.refresh(s, at)
			}
			return c.draw(rand.Float64())
		}
	}
}

const chancesLast = uint32(250 * time.Millisecond / time.Millisecond)

// chances are rewritten in place, so that nothing is allocated; who draws meanwhile sees some old and
// some new ones, which is as good a choice as either.
type chances struct {
	nodes []*Node
	at    atomic.Uint32
	up    []atomic.Uint64 // float64 bits: the sums of the chances up to here
}

func (c *chances) refresh(s *service, at uint32) {
	c.at.Store(at)
	sum := 0.0
	for i, n := range c.nodes {
		sum += n.Weight() / float64(max(s.latency(n, at), 1)*n.penalty(at))
		c.up[i].Store(math.Float64bits(sum))
	}
}

func (c *chances) draw(random float64) *Node {
	last := len(c.nodes) - 1
	x := random * math.Float64frombits(c.up[last].Load())
	return c.nodes[sort.Search(last, func(i int) bool { return math.Float64frombits(c.up[i].Load()) > x })]
}

func weightsOf(nodes []*Node) (weights, inverse []float64) {
	weights, inverse = make([]float64, len(nodes)), make([]float64, len(nodes))
	for i, n := range nodes {
		weights[i] = n.Weight()
		inverse[i] = 1 / weights[i]
	}
	return weights, inverse
}
