#!/usr/bin/env bash
# Set up all that Gossamer needs on a Debian 12 machine: Debian packages, merged kernel headers, .venv, compiled parts,
# BPF programs.
# Idempotent; every step leaves a stamp with the hash of what it was made from, so that a second run does nothing.
# usage: setup.sh [runtime|test]
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
want=${1:-runtime}
venv=$top/.venv
headers=${GOSSAMER_HEADERS:-/var/cache/gossamer/headers}

runtime=(python3 python3-venv python3-dev python3-bpfcc libbpf1 linux-headers-amd64 gcc libc6-dev libssl-dev libnghttp2-dev
         iproute2 nftables dnsmasq-base bubblewrap util-linux curl tcpdump ca-certificates make)
tests=(mount openssl procps tshark clang libclang-rt-dev)
faster=libipsec-mb-dev  # AES by AVX-512 for OpenSSL 3.0; without it all works, and streams cost a quarter more

bullet='•'; [ -t 2 ] && bullet=$'\033[36m•\033[0m'
step() { printf '  %s %s\n' "$bullet" "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root: it installs Debian packages and loads BPF programs; run it with sudo"
command -v apt-get >/dev/null || die "apt-get not found: the lab is made for Debian 12; elsewhere install the packages named in $0 by hand"

packages() {
  local wanted=("${runtime[@]}") missing=()
  [ "$want" = test ] && wanted+=("${tests[@]}")
  local installed  # dpkg-query fails where it does not know one of the names: on every fresh machine
  installed=$({ dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' "${wanted[@]}" 2>/dev/null || true; } | awk '$2 == "ii" {print $1}')
  local p; for p in "${wanted[@]}"; do grep -qx -- "$p" <<<"$installed" || missing+=("$p"); done
  [ ${#missing[@]} = 0 ] && return
  step "Debian packages: ${missing[*]}"
  # Nothing that we install may start a service of its own.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; made=1; fi
  local rc=0
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1 || rc=$?
  [ -n "$made" ] && rm -f $policy
  [ $rc = 0 ] || { tail -20 "$log" >&2; die "apt-get failed (whole log: $log)"; }
}

# What cannot be had is asked for once.
faster_package() {
  local asked; asked=$(dirname "$headers")/asked-for-$faster
  { [ "$(uname -m)" = x86_64 ] && [ ! -e /usr/include/intel-ipsec-mb.h ] && [ ! -e "$asked" ]; } || return 0
  local apt=(apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=0 -o Acquire::http::Timeout=15)
  step "Debian package: $faster"
  { apt-cache show "$faster" || "${apt[@]}" update; } >"$log" 2>&1 || true
  DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "$faster" >>"$log" 2>&1 && return
  step "$faster is not to be had here; that costs speed, nothing else ($asked)"
  mkdir -p "$(dirname "$asked")"; touch "$asked"
}

# bcc wants one tree of kernel headers; Debian ships two. Only UAPI structs are used, so any version serves any kernel.
merged_headers() {
  local common amd64 version
  amd64=$(find /usr/src -maxdepth 1 -name 'linux-headers-*-amd64' | sort -V | tail -1)
  [ -n "$amd64" ] || die "no /usr/src/linux-headers-*-amd64: is linux-headers-amd64 installed?"
  common=${amd64%-amd64}-common
  version=$(basename "$amd64")
  [ "$(cat "$headers/.version" 2>/dev/null)" = "$version" ] && return
  step "merged kernel headers: $headers"
  rm -rf "$headers.new"; mkdir -p "$headers.new"
  cp -rs "$common/." "$headers.new"
  cp -rs --remove-destination "$amd64/." "$headers.new"
  echo "$version" >"$headers.new/.version"
  rm -rf "$headers"; mv "$headers.new" "$headers"
}

python() {
  local extra='' stamp now
  [ "$want" = test ] && extra='[test]'
  stamp=$venv/.gossamer-$want
  now=$(cd "$top" && { find mesh ztunnel -name '*.pyx' -o -name '*.px[di]' -o -name '*.h' | sort | xargs cat pyproject.toml
    cat /usr/include/intel-ipsec-mb.h 2>/dev/null; } | sha256sum | cut -d' ' -f1)
  [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && return
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then  # none, or one that was interrupted
    step "virtual environment: .venv (system site packages, for Debian's bcc)"
    # bcc's Python binding comes from Debian and is made for Debian's Python; PyPI's "bcc" is another thing.
    /usr/bin/python3 -m venv --clear --system-site-packages "$venv"
  fi
  step "Python packages and compiled parts (gossamer-mesh$extra)"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --root-user-action=ignore -e "$top$extra" >"$log" 2>&1 \
    || { tail -30 "$log" >&2; die "pip failed (whole log: $log)"; }
  echo "$now" >"$stamp"
  [ "$want" = test ] && echo "$now" >"$venv/.gossamer-runtime"
  return 0
}

# Agents compile what is not in the cache themselves; done here, the first one need not, and what is wrong shows early.
bpf_programs() {
  local stamp=$venv/.gossamer-bpf now
  now=$(cd "$top" && cat bpf/src/* bpf/compile.py bpf/artifact.py "$headers/.version" | sha256sum | cut -d' ' -f1)
  [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && return
  step "BPF programs"
  if (cd "$top" && GOSSAMER_HEADERS=$headers "$venv/bin/python" -m bpf.compile) >"$log" 2>&1; then
    echo "$now" >"$stamp"
  else  # an unprivileged machine can still lint and build
    tail -5 "$log" >&2
    step "BPF programs were not compiled; an agent will not start here until this is cured"
  fi
}

log=$(mktemp /tmp/gossamer-setup.XXXXXX)
# Two make targets at once must not install over each other.
exec 9>/run/gossamer-setup.lock
flock -n 9 || { step "waiting for another set-up on this machine"; flock 9; }
packages
faster_package
merged_headers
python
bpf_programs
rm -f "$log"
