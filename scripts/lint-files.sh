#!/usr/bin/env bash
# Checks the files that no compiler reads: shell scripts, the Dockerfile, compose.yaml, the Kubernetes
# manifests, alert rules, the dashboard, the configurations of HAProxy and Varnish, the systemd unit.
# None of this needs a Docker engine or a cluster. Prints one line for each check that cannot run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$PWD/target/tools/python
crds=$PWD/target/tools/crd-schemas
wanted=scripts/lint-requirements.txt
status=0

# Installs again when the list changes.
install_tools() {
  cmp -s "$wanted" "$tools/requirements.txt" && return
  echo "installing: $(grep -o '^[a-z].*==[0-9.]*' "$wanted" | paste -sd' ') (into target/tools)" >&2
  rm -rf "$tools"
  python3 -m venv "$tools" &&
    "$tools/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
      --only-binary :all: --no-deps -r "$wanted" &&
    cp "$wanted" "$tools/requirements.txt"
}

# The schemas of KEDA's and the Prometheus operator's objects come from npm. Installs again when the list
# changes.
install_crds() {
  cmp -s scripts/crd-schemas/package-lock.json "$crds/installed.json" && cp scripts/crd-schemas/validate.mjs "$crds" && return
  command -v node >/dev/null && command -v npm >/dev/null || return
  echo "installing: the schemas of KEDA and the Prometheus operator (into target/tools)" >&2
  rm -rf "$crds"
  mkdir -p "$crds" &&
    cp scripts/crd-schemas/* "$crds" &&
    npm ci --prefix "$crds" --silent --ignore-scripts --no-audit --no-fund >&2 &&
    cp scripts/crd-schemas/package-lock.json "$crds/installed.json"
}

# Validates a copy with secrets like an operator's, so that no secrets remain here.
# shellcheck disable=SC2329 # called by check
check_compose() {
  local copy
  copy=$(mktemp -d)
  # shellcheck disable=SC2064 # expanded now: the name is local
  trap "rm -rf '$copy'" RETURN
  cp -r compose.yaml Dockerfile deploy "$copy"
  "$copy/deploy/secrets.sh" 2>/dev/null || return
  DOCKER_CONFIG=$copy "$tools/bin/docker-compose" -f "$copy/compose.yaml" config --quiet
}

# check NAME COMMAND…
check() {
  local name=$1
  shift
  if "$@"; then echo "$name ok"; else echo "$name FAILED" >&2; status=1; fi
}

if install_tools; then
  mapfile -t scripts < <(git ls-files '*.sh' .ci/run benches/imaging/run benches/suite/run benches/queue/run)
  check "shell scripts" "$tools/bin/shellcheck" "${scripts[@]}"
  check "spelling" "$tools/bin/typos" --config typos.toml
  check "Dockerfile" "$tools/bin/hadolint" Dockerfile
  check "compose.yaml" check_compose
  custom=(--crds "$crds")
  if ! install_crds; then
    custom=()
    echo "keda.yaml, podmonitor.yaml NOT CHECKED against their schemas: these could not be installed from npm"
  fi
  check "Kubernetes, alerts, dashboard" "$tools/bin/python" scripts/check-deploy.py --self-test "${custom[@]}"
else
  rm -rf "$tools"
  echo "shell scripts, spelling, Dockerfile, compose.yaml, Kubernetes, dashboard NOT CHECKED: their linters could not be installed"
fi

check "docs/bundled-sources.md" scripts/sbom.py --check

if promtool=$(command -v promtool); then
  check "alerts' tests" "$promtool" test rules deploy/prometheus/alerts.test.yaml
else
  echo "alerts' tests NOT RUN: no promtool on this machine (Debian: prometheus)"
fi

# --threshold=20: an exposure level of at most 2.0, which an unprivileged service should reach.
# shellcheck disable=SC2329 # called by check
check_service() {
  local folder
  folder=$(mktemp -d)
  # shellcheck disable=SC2064 # expanded now: the name is local
  trap "rm -rf '$folder'" RETURN
  for unit in safelight.service safelight-backup.service safelight-backup.timer; do
    sed 's#^ExecStart=/usr/local/bin/safelight#ExecStart=/bin/true#' "deploy/systemd/$unit" >"$folder/$unit"
  done
  "$analyze" verify "$folder/safelight.service" "$folder/safelight-backup.service" \
    "$folder/safelight-backup.timer" &&
    "$analyze" security --offline=true --threshold=20 --no-pager "$folder/safelight.service" >/dev/null
}

# Creates a certificate for this check.
# shellcheck disable=SC2329 # called by check
check_public_haproxy() {
  local identity
  identity=$(mktemp)
  # shellcheck disable=SC2064 # expanded now: the name is local
  trap "rm -f '$identity'" RETURN
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost \
    -keyout - 2>/dev/null >"$identity" || return
  "$haproxy" -c -q -f <(sed "s#/etc/haproxy/safelight.pem#$identity#" deploy/haproxy-public.cfg)
}

if analyze=$(command -v systemd-analyze); then
  # The binary need not exist: the check uses /bin/true.
  check "safelight.service" check_service
else
  echo "safelight.service NOT CHECKED: no systemd-analyze on this machine"
fi

if haproxy=$(PATH="$PATH:/usr/sbin" command -v haproxy); then
  # The names of the nodes resolve only in the compose network.
  check "haproxy-public.cfg" check_public_haproxy
  check "haproxy.cfg" "$haproxy" -c -q -f <(sed 's/ api-[12]:8080$/ 127.0.0.1:8080/' deploy/haproxy.cfg)
else
  echo "haproxy.cfg NOT CHECKED: no haproxy on this machine"
fi

# Varnish compiles its configuration to check it, and needs a directory for that.
# shellcheck disable=SC2329 # called by check
check_varnish() {
  local folder
  folder=$(mktemp -d)
  # shellcheck disable=SC2064 # expanded now: the name is local
  trap "rm -rf '$folder'" RETURN
  sed 's/"api-[12]"/"127.0.0.1"/' deploy/varnish.vcl >"$folder/varnish.vcl"
  "$varnish" -j none -C -n "$folder/work" -f "$folder/varnish.vcl" >"$folder/output" 2>&1 || { cat "$folder/output" >&2; return 1; }
}

if varnish=$(PATH="$PATH:/usr/sbin" command -v varnishd); then
  check "varnish.vcl" check_varnish
else
  echo "varnish.vcl NOT CHECKED: no varnishd on this machine"
fi
exit $status
