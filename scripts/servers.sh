#!/usr/bin/env bash
# Puts the real servers that the tests start on this machine: Debian's packages where this is Debian and
# we are root, and Consul and the tools of examples/deploy from Go's module proxy into .bin. What is there
# already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A package=(
  [redis-server]=redis-server [redis-sentinel]=redis-sentinel [nginx]=nginx [haproxy]=haproxy
  [promtool]=prometheus [prometheus]=prometheus [nft]=nftables [ip]=iproute2
)
PATH=$PATH:/usr/sbin:/sbin
missing=() packages=()
for command in "${!package[@]}"; do
  command -v "$command" >/dev/null || { missing+=("$command"); packages+=("${package[$command]}"); }
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "servers: please install ${missing[*]} (on Debian, as root, this script does it: ${packages[*]})" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # RUNLEVEL=1 keeps the packages from starting their services: the tests start their own.
  RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if [ ! -x .bin/consul ] || [ tools/consul/go.sum -nt .bin/consul ]; then
  echo "servers: building Consul (about four minutes, seconds from Go's build cache)"
  mkdir -p .bin
  (cd tools/consul && go build -o ../../.bin/consul github.com/hashicorp/consul)
  touch .bin/consul
fi

if [ ! -x .bin/opa ] || [ ! -x .bin/kubectl-validate ] || [ tools/deploy/go.sum -nt .bin/opa ]; then
  echo "servers: building opa and kubectl-validate (about two minutes, seconds from Go's build cache)"
  mkdir -p .bin
  (cd tools/deploy && go build -o ../../.bin/ github.com/open-policy-agent/opa sigs.k8s.io/kubectl-validate)
  touch .bin/opa
fi
