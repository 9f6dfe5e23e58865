#!/usr/bin/env bash
# scripts/fuzz.sh [SECONDS [TARGET…]]   sends arbitrary bytes to the imaging code: all targets of
# fuzz/fuzz_targets, or those named, for SECONDS each (60).
#
# Exits 0 if nothing was found, 1 on a finding (and prints where its bytes are), 2 if it cannot run.
# Everything that it creates is in target/fuzz; the corpus there grows from run to run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.13.2
root=$PWD/target/tools
fuzzer=$root/bin/cargo-fuzz
made=$PWD/target/fuzz
corpus=$made/corpus
findings=$made/findings

# `SECONDS` is a variable of bash.
duration=${1:-60}
targets=("${@:2}")
if [[ ! $duration =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: scripts/fuzz.sh [SECONDS [TARGET…]]" >&2
  exit 2
fi
if ((${#targets[@]} == 0)); then
  targets=(header render two_pictures)
fi
for target in "${targets[@]}"; do
  if [[ ! -e fuzz/fuzz_targets/$target.rs ]]; then
    echo "error: no fuzz target \`$target\`; the targets are: header, render, two_pictures" >&2
    exit 2
  fi
done

# Only a nightly compiler supports sanitizers.
if ! host=$(rustup run nightly rustc -vV 2>/dev/null | sed -n 's/^host: //p') || [[ -z $host ]]; then
  echo "error: fuzzing needs a nightly toolchain, and none is installed" >&2
  echo "hint: rustup toolchain install nightly --profile minimal" >&2
  exit 2
fi

# An unoptimized build is enough: it only calls cargo.
if [[ $("$fuzzer" --version 2>/dev/null) != "cargo-fuzz $version" ]]; then
  echo "installing: cargo-fuzz $version (into target/tools)" >&2
  cargo install --quiet cargo-fuzz --version "$version" --locked --debug --root "$root" \
    --target-dir target/tools/build
  rm -rf target/tools/build
fi

# Fuzz the same versions that the product uses.
cp Cargo.lock fuzz/Cargo.lock
# -O: fuzz/Cargo.toml selects the code with debug assertions; without -O all code gets them.
RUSTUP_TOOLCHAIN=nightly "$fuzzer" fuzz build -O --fuzz-dir fuzz --target-dir "$made"
built=$made/$host/release
"$built/corpus" "$corpus"

status=0
for target in "${targets[@]}"; do
  log=$made/$target.log
  mkdir -p "$findings/$target"
  before=$(find "$findings/$target" -type f | wc -l)
  result=0
  LSAN_OPTIONS=suppressions=fuzz/leaks.supp:print_suppressions=0 \
    "$built/$target" "$corpus/$target" -artifact_prefix="$findings/$target/" -dict=fuzz/pictures.dict \
    -max_total_time="$duration" -timeout=10 -rss_limit_mb=1024 -max_len=8192 -print_final_stats=1 \
    >"$log" 2>&1 || result=$?
  found=$(($(find "$findings/$target" -type f | wc -l) - before))
  stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
  coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -1 || true)
  echo "$target: $(stat number_of_executed_units) runs, $(stat average_exec_per_sec)/s," \
    "coverage ${coverage#cov: }, $(find "$corpus/$target" -type f | wc -l) inputs kept," \
    "$(stat peak_rss_mb) MiB, $found findings"
  if ((result != 0)); then
    status=1
    if file=$(sed -n "s/.*Test unit written to //p" "$log" | tail -1) && [[ -n $file ]]; then
      echo "FOUND by $target: ${file#"$PWD/"}" >&2
      echo "  reproduce: ${built#"$PWD/"}/$target ${file#"$PWD/"}" >&2
      echo "  minimize: ${built#"$PWD/"}/$target -minimize_crash=1 -max_total_time=60 \\" >&2
      echo "    -exact_artifact_path=target/fuzz/small ${file#"$PWD/"}" >&2
    fi
    echo "  log of the fuzzer: ${log#"$PWD/"}" >&2
  fi
done
exit $status
