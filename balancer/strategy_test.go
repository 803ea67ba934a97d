package balancer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/discovery"
)

// weighted makes instances a, b, c … with these weights.
func weighted(weights ...int) (in []discovery.Instance) {
	for i, w := range weights {
		addr := fmt.Sprintf("%c:1", 'a'+i)
		in = append(in, discovery.Instance{ID: addr, Addr: addr, Weight: w})
	}
	return in
}

// picker builds strategy on instances, outside of any call.
func picker(t *testing.T, strategy Strategy, in ...discovery.Instance) (Picker, []*Node) {
	t.Helper()
	b := open(t, discovery.Static{"orders": in}, Options{Strategy: strategy})
	choose(t, b).Done(nil)
	set := (*b.services.Load())["orders"].set.Load()
	return set.pick, set.nodes
}

// sequence is the picks for the cursor's 0 to n-1, a letter each.
func sequence(pick Picker, n int) string {
	var s strings.Builder
	for i := range n {
		s.WriteByte(pick(Call{Seq: uint64(i)}).addr()[0])
	}
	return s.String()
}

func TestRoundRobinTakesTurns(t *testing.T) {
	pick, _ := picker(t, RoundRobin(), weighted(1, 5, 1)...)
	if got := sequence(pick, 7); got != "abcabca" {
		t.Errorf("sequence = %s, want abcabca", got)
	}
}

func TestRoundRobinStartsAtRandom(t *testing.T) {
	first := make(map[string]int)
	for range 300 {
		b := New(orders("a:1", "b:1", "c:1"), Options{Strategy: RoundRobin()})
		sel := choose(t, b)
		first[sel.Addr()]++
		sel.Done(nil)
		b.Close()
	}
	for _, addr := range []string{"a:1", "b:1", "c:1"} {
		if n := first[addr]; n < 50 || n > 150 { // 100 ± 6 sigma
			t.Errorf("%d of 300 balancers started with %s", n, addr)
		}
	}
}

func TestWeightedRoundRobinIsNginxsSequence(t *testing.T) {
	for weights, want := range map[[3]int]string{
		{5, 1, 1}:    "aabacaa" + "aabacaa", // nginx's own example
		{1, 1, 1}:    "abcabc",
		{2, 2, 4}:    "cabc" + "cabc",
		{0, 1, 2}:    "cabc", // 0 means 1
		{30, 20, 10}: "abacba",
	} {
		pick, _ := picker(t, WeightedRoundRobin(), weighted(weights[:]...)...)
		if want == "abacba" {
			want = nginx(3, 2, 1)
		}
		if got := sequence(pick, len(want)); got != want {
			t.Errorf("weights %v: %s, want %s", weights, got, want)
		}
	}
}

// nginx is a round of ngx_http_upstream_get_peer's loop, written out.
func nginx(weights ...int) string {
	type peer struct{ weight, current int }
	peers := make([]peer, len(weights))
	total := 0
	for i, w := range weights {
		peers[i].weight = w
		total += w
	}
	var s strings.Builder
	for range total {
		best := -1
		for i := range peers {
			peers[i].current += peers[i].weight
			if best < 0 || peers[i].current > peers[best].current {
				best = i
			}
		}
		peers[best].current -= total
		s.WriteByte(byte('a' + best))
	}
	return s.String()
}

func TestWeightedRoundRobinOfManyWeightsIsNginxs(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		weights := make([]int, 2+random.IntN(8))
		for i := range weights {
			weights[i] = 1 + random.IntN(40)
		}
		want := nginx(weights...)
		pick, _ := picker(t, WeightedRoundRobin(), weighted(weights...)...)
		if got := sequence(pick, len(want)); got != want {
			t.Fatalf("weights %v: %s, want %s", weights, got, want)
		}
	}
}

func TestHugeWeightsAreScaledAndNobodyIsLeftOut(t *testing.T) {
	pick, nodes := picker(t, WeightedRoundRobin(), weighted(math.MaxInt32, math.MaxInt32/2, 1)...)
	turns := make(map[*Node]int)
	for i := range uint64(1 << 16) {
		turns[pick(Call{Seq: i})]++
	}
	if a, b, c := turns[nodes[0]], turns[nodes[1]], turns[nodes[2]]; c == 0 || math.Abs(float64(a)/float64(b)-2) > 0.01 {
		t.Errorf("turns = %d, %d, %d; want 2 : 1 : at least one", a, b, c)
	}
}

func TestLeastConnectionsIsExact(t *testing.T) {
	pick, nodes := picker(t, LeastConnections(), weighted(1, 2, 4)...)
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		load := func(n *Node) float64 { return float64(n.InFlight()) / n.Weight() }
		least := math.Inf(1)
		for _, n := range nodes {
			least = min(least, load(n))
		}
		n := pick(Call{})
		if load(n) != least {
			t.Fatalf("picked a load of %v where the least is %v", load(n), least)
		}
		if n.calls.Add(1); random.IntN(3) == 0 {
			n.calls.Store(0)
		}
	}
}

func TestLeastConnectionsBreaksTiesAtRandom(t *testing.T) {
	for _, weights := range [][]int{{1, 1, 1, 1}, {1, 2, 3, 4}} {
		pick, nodes := picker(t, LeastConnections(), weighted(weights...)...)
		const calls = 20000
		got := shares(pick, calls)
		sum := 0
		for _, w := range weights {
			sum += w
		}
		for i, n := range nodes {
			if want := float64(weights[i]) / float64(sum); math.Abs(got[n.addr()]-want) > 0.02 {
				t.Errorf("weights %v: share of %s among equals = %.3f, want %.3f", weights, n.addr(), got[n.addr()], want)
			}
		}
	}
}

// shares of the picks.
func shares(pick Picker, calls int) map[string]float64 {
	got := make(map[string]float64)
	for range calls {
		got[pick(Call{}).addr()] += 1 / float64(calls)
	}
	return got
}

func TestRandomGoesByWeight(t *testing.T) {
	for _, weights := range [][]int{{1, 1, 1}, {1, 2, 5}} {
		pick, _ := picker(t, Random(), weighted(weights...)...)
		got := shares(pick, 20000)
		for i, w := range weights {
			want := float64(w) / float64(weights[0]+weights[1]+weights[2])
			if addr := fmt.Sprintf("%c:1", 'a'+i); math.Abs(got[addr]-want) > 0.02 {
				t.Errorf("weights %v: share of %s = %.3f, want %.3f", weights, addr, got[addr], want)
			}
		}
	}
}

func TestIPHashIsTheSameInEveryProcess(t *testing.T) {
	// Worked out once; a change of these is a change that moves every client of every user.
	want := map[string]string{"203.0.113.1": "c:1", "203.0.113.2": "c:1", "2001:db8::1": "a:1", "alice": "c:1"}
	pick, _ := picker(t, IPHash(), weighted(1, 1, 1)...)
	for key, addr := range want {
		if got := pick(Call{Key: key}).addr(); got != addr {
			t.Errorf("%s goes to %s, want %s", key, got, addr)
		}
	}
}

func TestIPHashMovesOnlyTheKeysOfAnInstanceThatLeaves(t *testing.T) {
	for _, weights := range [][]int{{1, 1, 1, 1}, {1, 2, 3, 4}} {
		all := weighted(weights...)
		before, _ := picker(t, IPHash(), all...)
		after, _ := picker(t, IPHash(), all[:3]...)
		for i := range 2000 {
			c := Call{Key: fmt.Sprint("key-", i)}
			if was, is := before(c).addr(), after(c).addr(); was != is && was != "d:1" {
				t.Fatalf("weights %v: %s moved from %s to %s when d:1 left", weights, c.Key, was, is)
			}
		}
	}
}

func TestIPHashSpreadsKeysByWeight(t *testing.T) {
	weights := []int{1, 2, 3, 4}
	pick, nodes := picker(t, IPHash(), weighted(weights...)...)
	got := make(map[*Node]float64)
	const keys = 20000
	for i := range keys {
		got[pick(Call{Key: fmt.Sprint("10.0.", i/250, ".", i%250)})] += 1.0 / keys
	}
	for i, n := range nodes {
		if want := float64(weights[i]) / 10; math.Abs(got[n]-want) > 0.02 {
			t.Errorf("share of %s = %.3f, want %.3f", n.addr(), got[n], want)
		}
	}
}

func TestIPHashWithEqualWeightsDoesNotDependOnTheWay(t *testing.T) {
	pick, _ := picker(t, IPHash(), weighted(3, 3, 3, 3)...)
	stranger := []*Node{{}} // makes the pick go the long way
	for i := range 2000 {
		key := fmt.Sprint("key-", i)
		if a, b := pick(Call{Key: key}), pick(Call{Key: key, tried: stranger}); a != b {
			t.Fatalf("%s goes to %s or to %s", key, a.addr(), b.addr())
		}
	}
}

func TestIPHashWithoutAKeyIsRandom(t *testing.T) {
	pick, _ := picker(t, IPHash(), weighted(1, 1)...)
	if got := shares(pick, 5000)["a:1"]; math.Abs(got-0.5) > 0.05 {
		t.Errorf("share of a = %.3f, want 0.5", got)
	}
}

func TestTheKeyComesFromTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1", "b:1", "c:1"), Options{Strategy: IPHash()})
		ctx := WithKey(t.Context(), "203.0.113.1")
		seen := make(map[string]bool)
		for range 50 {
			sel, err := b.Select(ctx, "orders")
			if err != nil {
				t.Fatal(err)
			}
			seen[sel.Addr()] = true
			sel.Done(nil)
		}
		if len(seen) != 1 {
			t.Errorf("one key went to %v", seen)
		}
	})
}

// measured makes nodes whose latencies are known.
func known(t *testing.T, strategy Strategy, latencies ...time.Duration) Picker {
	t.Helper()
	in := weighted(make([]int, len(latencies))...)
	_, nodes := picker(t, strategy, in...)
	for i, n := range nodes {
		n.latency.Store(0)
		if latencies[i] > 0 {
			n.observe(float32(latencies[i]), stamp(n.service.b.now()))
		}
	}
	return strategy(nodes)
}

func TestResponseTimeIsInProportionToTheInverseOfLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pick := known(t, ResponseTime(), 10*time.Millisecond, 20*time.Millisecond, 40*time.Millisecond)
		got := shares(pick, 20000)
		for addr, want := range map[string]float64{"a:1": 4.0 / 7, "b:1": 2.0 / 7, "c:1": 1.0 / 7} {
			if math.Abs(got[addr]-want) > 0.02 {
				t.Errorf("share of %s = %.3f, want %.3f", addr, got[addr], want)
			}
		}
	})
}

func TestResponseTimeFollowsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pick, nodes := picker(t, ResponseTime(), weighted(1, 1)...)
		for _, n := range nodes {
			n.latency.Store(0)
		}
		nodes[0].observe(float32(90*time.Millisecond), stamp(nodes[0].service.b.now()))
		nodes[1].observe(float32(10*time.Millisecond), stamp(nodes[0].service.b.now()))
		time.Sleep(time.Second)
		if got := shares(pick, 20000)["a:1"]; math.Abs(got-0.1) > 0.02 {
			t.Errorf("share of the slow one = %.3f, want 0.1", got)
		}
	})
}

func TestPowerOfTwoGoesByLatencyTimesCallsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pick := known(t, PowerOfTwo(), 10*time.Millisecond, 30*time.Millisecond)
		var got strings.Builder
		for range 8 {
			n := pick(Call{})
			n.calls.Add(1)
			got.WriteByte(n.addr()[0])
		}
		// 10, 20, (30 is a tie with b's 30: either) … a must have three times b's calls
		if a := strings.Count(got.String(), "a"); a != 6 {
			t.Errorf("of 8 calls in flight %d are on the instance that is three times as fast, want 6 (%s)", a, got.String())
		}
	})
}

func TestPowerOfTwoDrawsTwoDistinctInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pick := known(t, PowerOfTwo(), time.Second, time.Millisecond, time.Millisecond)
		if got := shares(pick, 5000)["a:1"]; got != 0 {
			t.Errorf("the slowest of three was drawn against itself: share %.4f", got)
		}
	})
}

func TestPowerOfTwoGoesByWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pick, _ := picker(t, PowerOfTwo(), weighted(1, 3)...)
		n := make(map[byte]int)
		for range 400 {
			node := pick(Call{})
			node.calls.Add(1)
			n[node.addr()[0]]++
		}
		if a := n['a']; a < 98 || a > 102 {
			t.Errorf("of 400 calls in flight %d are on the instance with a fourth of the weight, want 100", a)
		}
	})
}

func TestAnInstanceThatFailsFastDoesNotAttractCalls(t *testing.T) {
	for name, strategy := range map[string]Strategy{"PowerOfTwo": PowerOfTwo(), "ResponseTime": ResponseTime()} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeers()
			p.set("a:1", fails(errReset)) // in no time
			p.set("b:1", takes(10*time.Millisecond))
			p.set("c:1", takes(10*time.Millisecond))
			b := open(t, orders("a:1", "b:1", "c:1"), Options{
				Strategy: strategy, Transport: p, Retry: Retry{Attempts: 1}, Ejection: Ejection{Consecutive: -1},
			})
			for range 2000 {
				_, _ = get(t, b)
				time.Sleep(time.Millisecond)
			}
			if got := float64(count(p.asked(), "a:1")) / 2000; got > 0.1 {
				t.Errorf("%s: share of the instance that fails fast = %.3f, want a tenth at most", name, got)
			}
		})
	}
}

func TestAnInstanceThatFailedIsGivenItsShareBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		for _, addr := range []string{"a:1", "b:1", "c:1"} {
			p.set(addr, takes(10*time.Millisecond))
		}
		b := open(t, orders("a:1", "b:1", "c:1"), Options{Transport: p, Retry: Retry{Attempts: 1}})
		load := func(d time.Duration) float64 {
			p.asked()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
				go func() { _, _ = get(t, b) }()
			}
			calls := p.asked()
			return float64(count(calls, "a:1")) / float64(len(calls))
		}
		load(time.Second)
		for n := 0; n < 2; { // not enough to be ejected
			sel := choose(t, b)
			if sel.Addr() == "a:1" {
				n++
				sel.Done(errReset)
			} else {
				sel.Done(context.Canceled)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := load(500 * time.Millisecond); got > 0.2 {
			t.Errorf("share just after two failures = %.2f, want less than its own", got)
		}
		load(4 * time.Second)
		if got := load(time.Second); got < 0.28 || got > 0.38 {
			t.Errorf("share 4.5s after = %.2f, want a third", got)
		}
	})
}

func TestLatencyJumpsUpAndDecays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, orders("a:1"), Options{})
		call := func(d time.Duration) {
			sel := choose(t, b)
			time.Sleep(d)
			sel.Done(nil)
		}
		latency := func() time.Duration { return statusOf(t, b, "a:1").Latency }
		call(10 * time.Millisecond)
		call(100 * time.Millisecond)
		if got := latency(); got != 100*time.Millisecond {
			t.Errorf("after a peak of 100ms: %v", got)
		}
		call(10 * time.Millisecond)
		if got := latency(); got < 99*time.Millisecond || got > 100*time.Millisecond {
			t.Errorf("after one faster call: %v, want hardly less than 100ms", got)
		}
		time.Sleep(10 * time.Second)
		if got := latency(); got < 36*time.Millisecond || got > 37*time.Millisecond {
			t.Errorf("after 10s: %v, want 100ms/e", got)
		}
		time.Sleep(21 * time.Second)
		if got := latency(); got != 0 {
			t.Errorf("after 31s: %v, want unknown", got)
		}
	})
}

func TestUnknownLatencyIsTheMeanOfTheKnownOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nodes := picker(t, PowerOfTwo(), weighted(1, 1, 1)...)
		for _, n := range nodes {
			n.latency.Store(0)
		}
		if got := nodes[2].Latency(); got != 0 {
			t.Errorf("nothing known: %v, want 0", got)
		}
		time.Sleep(time.Second)
		now := stamp(nodes[0].service.b.now())
		nodes[0].observe(float32(10*time.Millisecond), now)
		nodes[1].observe(float32(30*time.Millisecond), now)
		if got := nodes[2].Latency(); got != 20*time.Millisecond {
			t.Errorf("Latency = %v, want 20ms", got)
		}
	})
}

func TestAStrategyThatDoesNotLookAtLatencyReadsNoClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, strategy := range strategies() {
			b := open(t, orders("a:1", "b:1"), Options{Strategy: strategy})
			choose(t, b).Done(nil)
			timed := choose(t, b).start != 0
			if want := name == "PowerOfTwo" || name == "ResponseTime"; timed != want {
				t.Errorf("%s reads the clock: %v, want %v", name, timed, want)
			}
			b.Close()
		}
	})
}

func TestACustomStrategyThatLooksAtLatencyGetsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fastest := func(nodes []*Node) Picker {
			return func(Call) *Node {
				return slices.MinFunc(nodes, func(a, b *Node) int { return int(a.Latency() - b.Latency()) })
			}
		}
		b := open(t, orders("a:1", "b:1"), Options{Strategy: fastest})
		choose(t, b).Done(nil)
		sel := choose(t, b)
		time.Sleep(time.Second)
		sel.Done(nil)
		if got := statusOf(t, b, sel.Addr()).Latency; got != time.Second {
			t.Errorf("Latency = %v, want 1s", got)
		}
	})
}
