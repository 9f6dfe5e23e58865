#!/usr/bin/env bash
# The dependency audit (deny.toml): licenses, bans, sources, and advisories. Prints a line if the
# database of advisories cannot be reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
root=$PWD/target/tools
deny=$root/bin/cargo-deny

# An unoptimized build takes a minute, and still checks this workspace in seconds.
if ! command -v "$deny" >/dev/null; then
  echo "installing: cargo-deny $version (into target/tools)" >&2
  cargo install --quiet cargo-deny --version "$version" --locked --debug --root "$root" \
    --target-dir target/tools/build
  rm -rf target/tools/build
fi

"$deny" --locked check licenses bans sources

# An unreachable database is not a finding, and an old copy is better than none.
if output=$("$deny" fetch db 2>&1); then
  "$deny" --locked check advisories
else
  echo "advisories NOT CHECKED: their database cannot be reached ($(grep -m1 -o 'fatal: .*' <<<"$output" || echo 'cargo deny fetch db failed'))"
fi
