"""Prints the README's failover table from the lines that failover.sh wrote.

    python3 scripts/failover_table.py docs/failover.json
"""
import collections
import json
import sys

runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    r = json.loads(line)
    runs[r["front"], r["fault"]].append(r)

FRONTS = [
    ("highball", "Highball"), ("highball-hedge", "Highball, hedge 60 ms"),
    ("nginx-seed", "nginx, the usual configuration"), ("nginx-tuned", "nginx, tuned"), ("haproxy", "HAProxy, tuned"),
]
FAULTS = [
    ("kill", "SIGKILL, 1000/s"), ("drop", "packets dropped, 500/s"), ("hang", "SIGSTOP, 500/s"),
    ("soak", "each killed and restarted in turn, 1000/s"),
]


def ms(text):
    """A duration of the prober's in milliseconds."""
    return float(text.removesuffix("ms")) if text else 0.0


def failover(r):
    """How long after the fault the last request was due that failed, in seconds."""
    if r["failover"] in (None, "none"):
        return 0.0
    return max(float(r["failover"].removesuffix("s")), 0.0)


def cell(rs):
    if not rs:
        return "–"
    lost, total = sum(r["failed"] for r in rs), sum(r["total"] for r in rs)
    gets, twice = sum(r["failed_gets"] for r in rs), sum(r["twice_post"] for r in rs)
    parts = [f"{100 * (total - lost) / total:.3f} %"]
    parts.append("every GET" if gets == 0 else f"{gets} GETs lost")
    if twice:
        parts.append(f"{twice} POSTs run twice")
    if rs[0]["fault"] != "soak":
        parts.append(f"failover {max(map(failover, rs)) * 1000:.0f} ms")
        parts.append(f"p99.9 {max(ms(r['p999_after']) for r in rs):.0f} ms")
    return ", ".join(parts)


print("| 1 of 3 fails | " + " | ".join(name for _, name in FRONTS) + " |")
print("|---" * (len(FRONTS) + 1) + "|")
for fault, title in FAULTS:
    print(f"| {title} | " + " | ".join(cell(runs[front, fault]) for front, _ in FRONTS) + " |")
print()
for fault in ("dead", "term"):
    for r in runs["highball", fault]:
        print(f"<!-- {fault} {r['run']}: {r['success']} %, failover {r['failover']}, {r['tries'] / max(r['total'], 1):.3f} tries a request -->")
