#!/usr/bin/env bash
# Measures failover from outside: three servers of 20 ms, something in front of them, a constant rate of
# requests (an open loop), a fault in mid-run. Writes one line of JSON per run.
#
#   scripts/failover.sh OUT.json RUNS [FRONT...]     FRONT: highball highball-hedge nginx-seed nginx-tuned haproxy
#
# RIG is the folder with the prober, the servers and the proxies' configurations. LOCK, if set, is a file
# that is locked during the runs, and LOCK.wanted is there meanwhile; GAP seconds are left between the faults.
set -uo pipefail
out=$(realpath "$1") runs=$2; shift 2
fronts=${*:-highball highball-hedge nginx-seed nginx-tuned haproxy}
here=$(cd "$(dirname "$0")/.." && pwd)
rig=$(realpath "${RIG:-$here/../shared/rig}")
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
(cd "$rig" && go build -o "$bin/" ./backend ./prober) || exit 2
(cd "$here" && go build -o "$bin/edge" ./examples/edge) || exit 2
PATH=$PATH:/usr/sbin:/sbin

peers=127.0.0.11:9001,127.0.0.12:9002,127.0.0.13:9003
declare -A pid

server() { # start instance $1
  "$bin/backend" -addr "127.0.0.1$1:900$1" -name "$(echo abc | cut -c"$1")" -log "$work/ledger" >/dev/null 2>&1 &
  pid[$1]=$!
}

front() { # start what is in front
  case $1 in
    highball)       "$bin/edge" -peers $peers >"$work/front.log" 2>&1 & ;;
    highball-hedge) "$bin/edge" -peers $peers -hedge 60ms >"$work/front.log" 2>&1 & ;;
    nginx-seed)     nginx -p "$work" -c "$rig/conf/nginx-seed.conf" >"$work/front.log" 2>&1 & ;;
    nginx-tuned)    nginx -p "$work" -c "$rig/conf/nginx-tuned-safe.conf" >"$work/front.log" 2>&1 & ;;
    haproxy)        haproxy -db -f "$rig/conf/haproxy-tuned.cfg" >"$work/front.log" 2>&1 & ;;
  esac
  pid[front]=$!
}

probe() { "$bin/prober" -tag "$front-$fault-$run" "$@" >"$work/probe" 2>"$work/probe.err" & pid[probe]=$!; }

run() { # one front, one fault
  work=$(mktemp -d); mkdir -p "$work/run" "$work/logs"
  for i in 1 2 3; do server $i; done
  front "$front"
  for _ in $(seq 100); do curl -sf -o /dev/null http://127.0.0.1:8080/health && break; sleep 0.05; done
  curl -s -o /dev/null http://127.0.0.1:8080/ # one through to an instance
  case $fault in
    kill) probe -rate 1000 -dur 10s -at 4s -event "kill -9 ${pid[3]}" ;;
    hang) probe -rate 500 -dur 12s -at 4s -event "kill -STOP ${pid[3]}" ;;
    drop) probe -rate 500 -dur 12s -at 4s -event "nft -f $rig/conf/drop.nft" ;;
    term) probe -rate 1000 -dur 12s -at 3s -event "kill -TERM ${pid[3]}"; sleep 6; kill -TERM "${pid[2]}" ;;
    soak) probe -rate 1000 -dur 20s
      sleep 3; for i in 3 2 1 3; do kill -9 "${pid[$i]}"; sleep 2; server $i; sleep 2; done ;;
    dead) probe -rate 500 -dur 15s -at 3s -event "kill -9 ${pid[1]} ${pid[2]} ${pid[3]}"
      sleep 9; server 2 ;;
  esac
  wait "${pid[probe]}"
  [ "$fault" = drop ] && nft delete table inet blackhole
  kill -CONT "${pid[3]}" 2>/dev/null
  kill -TERM "${pid[front]}" 2>/dev/null; wait "${pid[front]}" 2>/dev/null
  for i in 1 2 3; do kill -9 "${pid[$i]}" 2>/dev/null; done; wait 2>/dev/null
  python3 "$here/scripts/failover.py" "$front" "$fault" "$run" "$work" >>"$out"
  rm -rf "$work"
}

quietly() { # a command while nothing else is measured or built
  if [ -z "${LOCK:-}" ]; then "$@"; return; fi
  touch "$LOCK.wanted"
  exec 9>"$LOCK"; flock -x 9
  sleep 1; "$@" 9>&-
  flock -u 9; rm -f "$LOCK.wanted"
  sleep "${GAP:-0}"
}

all() { # one fault on every front
  for front in $fronts; do
    case $front/$fault in
      */dead | */term) [ "$front" = highball ] || continue ;;
      highball-hedge/kill | highball-hedge/soak) continue ;;
    esac
    run
    tail -1 "$out"
  done
}

for run in $(seq "$runs"); do
  for fault in kill drop hang soak dead term; do quietly all; done
done
