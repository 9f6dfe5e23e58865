#!/usr/bin/env bash
# The dependency audit (deny.toml): licences, bans, sources; advisories where their database can be
# reached, and a line that says so where it cannot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
root=$PWD/target/tools
deny=$root/bin/cargo-deny

# Unoptimised: it builds in a minute, and checks this workspace in seconds all the same.
if ! command -v "$deny" >/dev/null; then
  echo "installing: cargo-deny $version (into target/tools)" >&2
  cargo install --quiet cargo-deny --version "$version" --locked --debug --root "$root" \
    --target-dir target/tools/build
  rm -rf target/tools/build
fi

"$deny" --locked check licenses bans sources

# A database that cannot be fetched is no finding; a fetched one that is old is better than none.
if said=$("$deny" fetch db 2>&1); then
  "$deny" --locked check advisories
else
  echo "advisories NOT CHECKED: their database cannot be reached ($(grep -m1 -o 'fatal: .*' <<<"$said" || echo 'cargo deny fetch db failed'))"
fi
