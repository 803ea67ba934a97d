package prove

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The READMEs that show the results, and their words for what the tables say.
var readmes = map[string]map[string]string{
	"../README.md": {},
	"../README.zh-CN.md": {
		"1 of 3 fails": "3 个实例之 1 故障", "the seed's figures": "原文数据", "what": "项目", "front": "前端",
		"SIGKILL": "SIGKILL(强杀)", "SIGSTOP": "SIGSTOP(挂起)", "packets dropped": "丢弃全部数据包",
		"each killed and restarted in turn": "逐个强杀并重启", "SIGTERM, one after the other": "逐个 SIGTERM",
		"every GET": "GET 全部成功", "GETs lost": "个 GET 丢失", "POSTs lost": "个 POST 丢失",
		"every keyed POST": "带幂等键的 POST 全部成功且只执行一次", "keyed lost": "个带键请求丢失", "keys run twice": "个键执行两次",
		"POSTs run twice": "个 POST 执行两次", "failover": "切换", "nginx, the usual configuration": "nginx(常用配置,原文)", "nginx, tuned": "nginx(调优)",
		"HAProxy, tuned": "HAProxy(调优)", "Highball, hedge 60 ms": "Highball,对冲 60 ms",
		"goodput": "有效吞吐", "of the peak": "占峰值", "p99 of what was admitted": "已接纳请求 p99", "calm p99": "平稳时 p99",
		"nothing": "无保护", "Highball: ratelimit at 800/s, adaptive concurrency": "Highball:限流 800/s 加自适应并发", "nginx: limit_req 800/s": "nginx:limit_req 800/s",
		"HAProxy: maxconn 8, known beforehand": "HAProxy:maxconn 8(事先已知)",
		"answered":                             "得到应答", "within 250 ms": "250 ms 内", "the fallback alone": "只有降级应答", "Highball: a breaker of 2 s too": "Highball:再加 2 s 窗口的熔断器",
		"Highball: the same, 32 calls at once": "Highball:同上,并限 32 个并发调用",
		"nginx, tuned, before the dependency":  "依赖之前放调优的 nginx",
		"loop":                                 "压测方式", "closed, as wrk": "闭环(wrk)", "open": "开环", "success": "成功率", "longest": "最长", "mean": "平均",
		"killed": "强杀", "hung": "挂起", "fault": "故障",
		"requests": "请求成功", "writes fail for": "写失败持续", "lost after they were acknowledged": "已确认却丢失",
		"of which Sentinel took": "其中 Sentinel 切换用时", "the Consul leader is killed": "Consul 主节点被杀", "the Redis primary is killed": "Redis 主节点被杀",
	},
}

// A report makes the tables of one language.
type report struct {
	words map[string]string
	by    map[string][]result // by experiment and front
	b     strings.Builder
}

func newReport(all []result, words map[string]string) *report {
	r := &report{words: words, by: make(map[string][]result)}
	for _, res := range all {
		key := res.Experiment + "/" + res.Front
		r.by[key] = append(r.by[key], res)
	}
	return r
}

// say is the language's word.
func (r *report) say(word string) string {
	if w, ok := r.words[word]; ok {
		return w
	}
	return word
}

func (r *report) row(cells ...string) { fmt.Fprintf(&r.b, "| %s |\n", strings.Join(cells, " | ")) }

func (r *report) head(cells ...string) {
	r.row(cells...)
	r.b.WriteString(strings.Repeat("|---", len(cells)) + "|\n")
}

// sum adds up the runs of one experiment behind one front; times and shares are those of the worst run.
func sum(runs []result) (s result) {
	s = runs[0]
	for _, r := range runs[1:] {
		s.Sent, s.Failed = s.Sent+r.Sent, s.Failed+r.Failed
		s.FailedGET, s.FailedPOST, s.FailedKey = s.FailedGET+r.FailedGET, s.FailedPOST+r.FailedPOST, s.FailedKey+r.FailedKey
		s.Twice, s.TwiceKey, s.MissingKey = s.Twice+r.Twice, s.TwiceKey+r.TwiceKey, s.MissingKey+r.MissingKey
		s.Failover, s.Mean, s.P99 = max(s.Failover, r.Failover), max(s.Mean, r.Mean), max(s.P99, r.P99)
		s.P999, s.Max, s.CalmP99 = max(s.P999, r.P999), max(s.Max, r.Max), max(s.CalmP99, r.CalmP99)
		s.More = worse(s.More, r.More)
	}
	return s
}

// worse is the worse of two runs in each figure, and what was lost in both.
func worse(a, b map[string]float64) map[string]float64 {
	w := maps.Clone(a)
	for name, v := range b {
		switch name {
		case "lost":
			w[name] += v
		case "goodput", "of the peak", "fast":
			w[name] = min(w[name], v)
		default:
			w[name] = max(w[name], v)
		}
	}
	return w
}

func (r *report) cell(fault, front string) string {
	runs := r.by[fault+"/"+front]
	if len(runs) == 0 {
		return "–"
	}
	s := sum(runs)
	parts := []string{fmt.Sprintf("%.3f %%", s.success())}
	count := func(n int, word, none string) {
		switch {
		case n > 0:
			parts = append(parts, fmt.Sprintf("%d %s", n, r.say(word)))
		case none != "":
			parts = append(parts, r.say(none))
		}
	}
	count(s.FailedGET, "GETs lost", "every GET")
	count(s.FailedPOST, "POSTs lost", "")
	if s.TwiceKey+s.MissingKey+s.FailedKey == 0 {
		parts = append(parts, r.say("every keyed POST"))
	}
	count(s.FailedKey, "keyed lost", "")
	count(s.Twice, "POSTs run twice", "")
	count(s.TwiceKey+s.MissingKey, "keys run twice", "")
	if fault != "rolling" && fault != "drain" {
		parts = append(parts, fmt.Sprintf("%s %.0f ms", r.say("failover"), s.Failover), fmt.Sprintf("p99.9 %.0f ms", s.P999))
	}
	return strings.Join(parts, "; ")
}

// failover is the table of faults and fronts.
func (r *report) failover() {
	cells := []string{r.say("1 of 3 fails")}
	for _, f := range fronts {
		cells = append(cells, r.say(f.name))
	}
	r.head(cells...)
	for _, f := range faults {
		cells = []string{fmt.Sprintf("%s, %d/s", r.say(f.title), f.rate)}
		for _, front := range fronts {
			cells = append(cells, r.cell(f.name, front.name))
		}
		r.row(cells...)
	}
}

func (r *report) wrk() {
	r.head(r.say("fault"), r.say("front"), r.say("loop"), r.say("success"), r.say("mean"), "p99", r.say("longest"))
	for i, name := range []string{"killed", "hung"} {
		for _, front := range []string{fronts[2].name, fronts[3].name, fronts[0].name} {
			for _, loop := range []string{"wrk ", ""} {
				runs := r.by[loop+faults[i].name+"/"+front]
				if len(runs) == 0 {
					continue
				}
				s := sum(runs)
				word := map[string]string{"wrk ": "closed, as wrk", "": "open"}[loop]
				r.row(r.say(name), r.say(front), r.say(word), fmt.Sprintf("%.3f %%", s.success()), fmt.Sprintf("%.0f ms", s.Mean), fmt.Sprintf("%.0f ms", s.P99), fmt.Sprintf("%.0f ms", s.Max))
			}
		}
	}
}

func (r *report) overload() {
	r.head(r.say("what"), r.say("goodput"), r.say("of the peak"), r.say("p99 of what was admitted"), r.say("calm p99"))
	for _, p := range protections {
		if runs := r.by["overload/"+p.name]; len(runs) > 0 {
			s := sum(runs)
			r.row(r.say(p.name), fmt.Sprintf("%.0f/s", s.More["goodput"]), fmt.Sprintf("%.0f %%", s.More["of the peak"]),
				fmt.Sprintf("%.0f ms", s.P99), fmt.Sprintf("%.0f ms", s.CalmP99))
		}
	}
}

func (r *report) dependency() {
	r.head(r.say("what"), r.say("answered"), r.say("within 250 ms"), r.say("mean"), "p99")
	for _, p := range guards {
		if runs := r.by["dependency/"+p.name]; len(runs) > 0 {
			s := sum(runs)
			r.row(r.say(p.name), fmt.Sprintf("%.3f %%", s.success()), fmt.Sprintf("%.1f %%", s.More["fast"]), fmt.Sprintf("%.0f ms", s.Mean), fmt.Sprintf("%.0f ms", s.P99))
		}
	}
}

// leaders is what became of the requests while Consul and Redis lost theirs.
func (r *report) leaders() {
	r.head(r.say("what"), r.say("requests"), r.say("GETs lost"), r.say("writes fail for"), r.say("lost after they were acknowledged"))
	if runs := r.by["consul/Highball"]; len(runs) > 0 {
		s := sum(runs)
		r.row(r.say("the Consul leader is killed"), fmt.Sprintf("%.3f %%", s.success()), fmt.Sprint(s.FailedGET), "–", "–")
	}
	if runs := r.by["redis/Highball"]; len(runs) > 0 {
		s, longest := sum(runs), slices.MaxFunc(runs, func(a, b result) int { return cmp.Compare(a.More["writes fail for"], b.More["writes fail for"]) })
		r.row(r.say("the Redis primary is killed"), fmt.Sprintf("%.3f %%", s.success()), fmt.Sprint(s.FailedGET),
			fmt.Sprintf("%.2f s, %s %.2f s", longest.More["writes fail for"]/1000, r.say("of which Sentinel took"), longest.More["sentinel"]/1000), fmt.Sprint(s.More["lost"]))
	}
}

// tables are what stands between `<!-- prove:NAME -->` and `<!-- /prove:NAME -->`.
var tables = map[string]func(*report){
	"failover": (*report).failover, "leaders": (*report).leaders, "wrk": (*report).wrk, "overload": (*report).overload, "dependency": (*report).dependency,
}

// fill puts the tables into a README; a table that it has no place for is an error.
func fill(text string, all []result, words map[string]string) (string, error) {
	for name, table := range tables {
		begin, end := "<!-- prove:"+name+" -->\n", "<!-- /prove:"+name+" -->"
		before, rest, found := strings.Cut(text, begin)
		_, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			return "", fmt.Errorf("there is no place for the table %s", name)
		}
		r := newReport(all, words)
		table(r)
		text = before + begin + r.b.String() + end + after
	}
	return text, nil
}

func TestTheReadmesShowTheResults(t *testing.T) {
	all, err := readResults()
	if err != nil {
		t.Fatal(err)
	}
	for name, words := range readmes {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := fill(string(text), all, words)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if want != string(text) {
			t.Errorf("%s does not show docs/results.json; go test ./prove -run Report -full writes it", name)
		}
	}
}

// report writes results, pictures and READMEs.
func writeReport() error {
	if err := writeResults(); err != nil {
		return err
	}
	all, err := readResults()
	if err != nil {
		return err
	}
	if err := draw(all); err != nil {
		return err
	}
	for name, words := range readmes {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		filled, err := fill(string(text), all, words)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(name, []byte(filled), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// draw writes a picture per experiment: for each front, what failed and the p99 of what was answered, over time.
func draw(all []result) error {
	const dir = "../docs/img"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var names []string
	lanes := make(map[string][]result)
	for _, r := range all {
		if slices.ContainsFunc(lanes[r.Experiment], func(l result) bool { return l.Front == r.Front }) {
			continue // the first run
		}
		if !slices.Contains(names, r.Experiment) {
			names = append(names, r.Experiment)
		}
		lanes[r.Experiment] = append(lanes[r.Experiment], r)
	}
	for _, name := range names {
		file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".svg")
		if err := os.WriteFile(file, []byte(svg(lanes[name])), 0o644); err != nil {
			return err
		}
	}
	return nil
}
