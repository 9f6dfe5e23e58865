#!/usr/bin/env bash
# certbot runs this after each renewal: HAProxy needs chain and key in one file.
set -euo pipefail
target=${TARGET:-/etc/haproxy/safelight.pem}
umask 077
cat "$RENEWED_LINEAGE/fullchain.pem" "$RENEWED_LINEAGE/privkey.pem" >"$target.new"
mv "$target.new" "$target"
if systemctl --quiet is-active haproxy; then systemctl reload haproxy; fi
