#!/usr/bin/env bash
# The dependency audit (deny.toml): licenses, bans, sources, and advisories.
#
#   scripts/audit.sh                  fails if the database of advisories cannot be reached
#   scripts/audit.sh --offline-ok     passes then, and says last that advisories were NOT CHECKED;
#                                     SAFELIGHT_AUDIT_OFFLINE=1 does the same
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

offline_ok=${SAFELIGHT_AUDIT_OFFLINE:-0}
for argument in "$@"; do
  case $argument in
    --offline-ok) offline_ok=1 ;;
    *)
      echo "usage: scripts/audit.sh [--offline-ok]" >&2
      exit 2
      ;;
  esac
done

version=0.20.2
root=$PWD/target/tools
deny=${SAFELIGHT_CARGO_DENY:-$root/bin/cargo-deny}

# An unoptimized build takes a minute, and still checks this workspace in seconds.
if ! command -v "$deny" >/dev/null; then
  echo "installing: cargo-deny $version (into target/tools)" >&2
  cargo install --quiet cargo-deny --version "$version" --locked --debug --root "$root" \
    --target-dir target/tools/build
  rm -rf target/tools/build
fi

"$deny" --locked check licenses bans sources

if output=$("$deny" fetch db 2>&1); then
  "$deny" --locked check advisories
  exit
fi

# What was not checked has not passed.
why=$(grep -m1 -o 'fatal: .*' <<<"$output" || echo "cargo deny fetch db failed")
if [[ $offline_ok != 1 ]]; then
  echo "error: the database of advisories cannot be reached ($why)" >&2
  echo "hint: connect to github.com, or accept an incomplete audit: SAFELIGHT_AUDIT_OFFLINE=1" >&2
fi
echo "advisories NOT CHECKED: their database cannot be reached ($why)"
[[ $offline_ok == 1 ]]
