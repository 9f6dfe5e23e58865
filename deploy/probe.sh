#!/usr/bin/env bash
# probe PATH [PORT]   exits 0 if the server in this container answers PATH with 200 (default port
# 8080): a health check for an image without curl.
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${2:-8080}"
printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "${1:-/readyz}" >&3
read -r status <&3
[[ $status == HTTP/1.?" 200 "* ]]
