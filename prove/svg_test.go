package prove

import (
	"fmt"
	"html"
	"math"
	"strings"
	"testing"
)

const (
	laneWidth, laneHeight = 640.0, 70.0
	left, gap             = 60.0, 34.0
)

// svg is a lane for each front: bars are the requests that failed, of all that were due in a quarter of a second, and
// the line is the p99 of those that were answered, from 1 ms to 10 s on a logarithmic scale.
func svg(lanes []result) string {
	var b strings.Builder
	height := float64(len(lanes))*(laneHeight+gap) + 24
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="11">`+"\n", left+laneWidth+20, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	for i, l := range lanes {
		lane(&b, l, float64(i)*(laneHeight+gap)+20)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func lane(b *strings.Builder, l result, top float64) {
	seconds := float64(len(l.Timeline)) * tick.Seconds()
	x := func(s float64) float64 { return left + s/seconds*laneWidth }
	y := func(ms float64) float64 { // 1 ms to 10 s
		return top + laneHeight*(1-math.Log10(min(max(ms, 1), 10_000))/4)
	}
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f">%s: %.3f %%</text>`+"\n", left, top-5, html.EscapeString(l.Front), l.success())
	for _, ms := range []float64{1, 100, 10_000} {
		fmt.Fprintf(b, `<path d="M%.0f %.1fH%.0f" stroke="#ddd"/><text x="4" y="%.1f">%g ms</text>`+"\n", left, y(ms), left+laneWidth, y(ms)+4, ms)
	}
	var line []string
	for i, p := range l.Timeline {
		at := float64(i) * tick.Seconds()
		if p.Failed > 0 {
			share := float64(p.Failed) / float64(p.Failed+p.OK)
			h := max(share*laneHeight, 2)
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#d33"/>`+"\n", x(at), top+laneHeight-h, laneWidth*tick.Seconds()/seconds-1, h)
		}
		if p.OK > 0 {
			line = append(line, fmt.Sprintf("%.1f,%.1f", x(at+tick.Seconds()/2), y(p.P99)))
		}
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="#27c" stroke-width="1.5"/>`+"\n", strings.Join(line, " "))
	if l.FaultAt > 0 {
		fmt.Fprintf(b, `<path d="M%.1f %.1fV%.1f" stroke="#000" stroke-dasharray="3"/>`+"\n", x(l.FaultAt), top, top+laneHeight)
	}
}

func TestAPictureShowsWhatFailed(t *testing.T) {
	l := result{Front: "a < b", Sent: 40, Failed: 10, FaultAt: 0.5, Timeline: []point{{OK: 10, P99: 20}, {OK: 10, P99: 30}, {Failed: 10}, {OK: 10, P99: 25}}}
	got := svg([]result{l, l})
	if n := strings.Count(got, `fill="#d33"`); n != 2 {
		t.Errorf("%d bars of failures, want one a lane", n)
	}
	if strings.Contains(got, "a < b") || !strings.Contains(got, "a &lt; b: 75.000 %") {
		t.Errorf("the title is missing or not escaped:\n%s", got)
	}
}
