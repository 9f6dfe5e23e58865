#!/usr/bin/env bash
# scripts/setup.sh build|test|nextest|test-api|bench-imaging|bench-delivery|bench-queue|fuzz…   installs
# what is missing to build Safelight, to test it (or only its API), to run a benchmark, or to fuzz it.
#
# Quiet and quick when nothing is missing. Installs Debian packages as root or with passwordless sudo;
# otherwise prints what to install and exits 1. Never starts, stops or changes a service: the tests
# run their own engines on free ports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing=()
nextest=
schemathesis=

# need COMMAND PACKAGE: adds the package if the command is missing. Servers are in sbin, which may not
# be in an ordinary user's PATH.
need() {
  PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null || missing+=("$2")
}

# The crates of SQLite, libjpeg-turbo, libwebp, ring and mimalloc compile their C sources. cmake builds
# libjpeg-turbo; nasm assembles its inner loops and those of the AV1 codecs.
need_for_build() {
  need cc gcc
  need make make
  need cmake cmake
  need nasm nasm
  [[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
}

need_for_test() {
  need haproxy haproxy
  need pgbouncer pgbouncer
  need rabbitmq-server rabbitmq-server
  need redis-server redis-server
  need varnishd varnish
  need nginx nginx-light
  need curl curl
  need faketime faketime
  need unshare util-linux
  need mkfs.ext4 e2fsprogs
  need mount mount
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
  need_for_test_api
}

# The test runner. An unoptimized build of it takes two minutes.
install_nextest() {
  local version=0.9.143
  PATH="$PWD/target/tools/bin:$PATH" cargo nextest --version >/dev/null 2>&1 && return
  echo "installing: cargo-nextest $version (into target/tools)" >&2
  cargo install --quiet cargo-nextest --version "$version" --locked --debug --root target/tools \
    --target-dir target/tools/build
  rm -rf target/tools/build
}

# Schemathesis comes from PyPI.
need_for_test_api() {
  need python3 python3
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  schemathesis=wanted
}

# Installs into target/tools/schemathesis; again when the list changes.
install_schemathesis() {
  local wanted=scripts/test-api-requirements.txt folder=target/tools/schemathesis
  cmp -s "$wanted" "$folder/requirements.txt" && return
  echo "installing: $(grep -o '^schemathesis==[0-9.]*' "$wanted") (into $folder)" >&2
  rm -rf "$folder"
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
    --no-deps -r "$wanted"
  cp "$wanted" "$folder/requirements.txt"
}

# The engines that imaging is compared with come from npm and PyPI.
need_for_bench_imaging() {
  need python3 python3
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  need node nodejs
  need npm npm
}

# The queues that ours is compared with come from PyPI and npm.
need_for_bench_queue() {
  need_for_bench_imaging
}

# The server that delivery is compared with, and the load generator.
need_for_bench_delivery() {
  need nginx nginx-light
  need wrk wrk
}

# The fuzzer's instrumented C++ runtime.
need_for_fuzz() {
  need c++ g++
}

# Installing a server starts it, unless policy-rc.d forbids it (exit 101). This script sets that rule
# only for the installation, and restores an existing one.
install_quietly() {
  local as_root=("$@") policy=/usr/sbin/policy-rc.d kept=""
  if [[ -e $policy ]]; then
    kept=$policy.before-safelight
    "${as_root[@]}" mv "$policy" "$kept"
  fi
  # shellcheck disable=SC2064 # expanded now: the names are local
  trap "${as_root[*]} rm -f $policy; [[ -z '$kept' ]] || ${as_root[*]} mv '$kept' $policy" EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  "${as_root[@]}" apt-get update -qq
  # The tests create their own PostgreSQL clusters.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_missing() {
  ((${#missing[@]})) || return 0
  echo "installing: ${missing[*]}" >&2
  if ! command -v apt-get >/dev/null; then
    echo "error: this machine lacks: ${missing[*]}" >&2
    echo "hint: install the content of these Debian packages, then try again" >&2
    exit 1
  elif [[ $(id -u) == 0 ]]; then
    install_quietly
  elif sudo -n true 2>/dev/null; then
    install_quietly sudo -n
  else
    echo "error: this needs packages, and root to install them" >&2
    echo "hint: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
}

# Cargo.toml names the oldest Rust that builds Safelight; Debian's own is older.
check_rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  if ! command -v cargo >/dev/null; then
    echo "error: no cargo on this machine; Safelight needs Rust $wanted or newer" >&2
    echo "hint: install rustup (https://rustup.rs), then: rustup toolchain install stable" >&2
    exit 1
  fi
  found=$(cargo --version | awk '{ print $2 }')
  if [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -1) != "$wanted" ]]; then
    echo "error: cargo is $found; Safelight needs Rust $wanted or newer" >&2
    echo "hint: rustup update stable (Debian's own rustc is too old: use https://rustup.rs)" >&2
    exit 1
  fi
}

usage() {
  echo "usage: scripts/setup.sh build|test|nextest|test-api|bench-imaging|bench-delivery|bench-queue|fuzz…" >&2
  exit 2
}

(($#)) || usage
for what in "$@"; do
  case $what in
    build) need_for_build ;;
    test) need_for_test ;;
    nextest) nextest=wanted ;;
    test-api) need_for_test_api ;;
    bench-imaging) need_for_bench_imaging ;;
    bench-delivery) need_for_bench_delivery ;;
    bench-queue) need_for_bench_queue ;;
    fuzz) need_for_fuzz ;;
    *) usage ;;
  esac
done
install_missing
[[ -z $schemathesis ]] || install_schemathesis
check_rust
[[ -z $nextest ]] || install_nextest
