"""Turns what the prober, the ledger and the edge said of one run into a line of JSON."""
import collections
import json
import re
import sys

front, fault, run, work = sys.argv[1:]
text = open(work + "/probe").read()


def find(pattern, default=None):
    m = re.search(pattern, text)
    return m.group(1) if m else default


total = int(find(r"total=(\d+)", "0"))
ok = int(find(r"ok=(\d+)", "0"))
classes = find(r"fail classes: map\[(.*)\]", "")
gets = sum(int(n) for method, n in re.findall(r"(GET|POST) .*?:(\d+)(?= (?:GET|POST) |$)", classes) if method == "GET")
failed = total - ok
ledger = collections.Counter(tuple(line.split()[:2]) for line in open(work + "/ledger") if line.count(" ") >= 2)
twice = collections.Counter(method for (_, method), n in ledger.items() if n > 1)
front_log = open(work + "/front.log").read()
tries = sum(int(n) for n in re.findall(r"had (\d+) calls", front_log))
ejected = re.findall(r"^\S+ (\S+) ejected", front_log, re.M)
json.dump({
    "front": front, "fault": fault, "run": int(run), "total": total, "failed": failed, "failed_gets": gets, "classes": classes,
    "success": round(100 * ok / max(total, 1), 4),
    "failover": find(r"scheduled at (\S+) \(= failover"),
    "p99_after": find(r"after: p50=\S+ p99=(\S+)"), "p999_after": find(r"p99\.9=(\S+)"), "max_after": find(r"p99\.9=\S+ max=(\S+)"),
    "twice_get": twice["GET"], "twice_post": twice["POST"], "shares": find(r"ok by instance, whole run map\[(.*?)\]"),
    "tries": tries, "log": [line for line in front_log.splitlines() if "ejected" in line or "restored" in line][:40],
}, sys.stdout)
print()
