"""Prints a Markdown table of Highball's time over its peers', from the output of `go test -bench`.

    python3 scripts/ratios.py .tmp/bench.txt

Each figure is the median of the runs.
"""
import collections
import re
import statistics
import sys

runs = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open(sys.argv[1]):
    m = re.match(r"Benchmark(\S+?)/impl=(\S+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op(?:.*?\s(\d+) allocs/op)?", line)
    if m:
        runs[m[1]][m[2]].append((float(m[3]), int(m[4] or 0)))

print("| benchmark | Highball | peer | peer's time | ratio |\n|---|---|---|---|---|")
for name, impls in runs.items():
    own = impls.pop("highball", None)
    if not own:
        continue
    ours = statistics.median(t for t, _ in own)
    title = re.sub(r"\b(strategy|mode|nodes)=", lambda m: "nodes " if m[1] == "nodes" else "", name).replace("/", ", ")
    for impl, peer in impls.items():
        theirs = statistics.median(t for t, _ in peer)
        print(f"| {title} | {ours:.3g} ns, {own[0][1]} allocs | {impl} | {theirs:.3g} ns, {peer[0][1]} allocs | {ours / theirs:.2f} |")
