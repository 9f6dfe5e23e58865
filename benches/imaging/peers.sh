# shellcheck shell=bash
# To be sourced with `set -euo pipefail`: installs sharp, libvips and Pillow from their registries into
# target/tools/imaging, again when the pinned versions change.
imaging=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$(cd "$imaging/../.." && pwd)/target/tools/imaging

fail() {
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 2
}

check_tools() {
  command -v python3 >/dev/null || fail "no python3 on this machine" "apt-get install python3 python3-venv"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "python3 is older than 3.11" "put a newer python3 first in PATH"
  command -v node >/dev/null || fail "no node on this machine" "install Node.js 20.9 or newer"
  command -v npm >/dev/null || fail "no npm on this machine" "apt-get install npm"
}

# ensure NAME FILE…   runs install_NAME in a new directory, unless it already ran for the same FILEs.
ensure() {
  local name=$1 folder=$tools/$1
  shift
  cmp -s <(cat "$@") "$folder/.installed-for" && return
  echo "installing: imaging's $name peers (into target/tools/imaging)" >&2
  rm -rf "$folder"
  mkdir -p "$folder"
  "install_$name" "$folder"
  cat "$@" >"$folder/.installed-for" # last, so that an interrupted installation is repeated
}

install_python() {
  python3 -m venv "$1" ||
    fail "python3 cannot make a virtual environment" "apt-get install python3-venv"
  "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$imaging/requirements.txt" ||
    fail "pip could not install requirements.txt" "see its message above; is the registry reachable?"
}

install_node() {
  cp "$imaging/package.json" "$imaging/package-lock.json" "$1"
  npm ci --prefix "$1" --silent --no-audit --no-fund >&2 ||
    fail "npm could not install package-lock.json" "see its message above; is the registry reachable?"
}

check_tools
ensure python "$imaging/requirements.txt"
ensure node "$imaging/package.json" "$imaging/package-lock.json"
