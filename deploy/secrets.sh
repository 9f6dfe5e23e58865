#!/usr/bin/env bash
# Creates the files that compose.yaml names under secrets/, with random passwords. Keeps existing files.
#
# Other users cannot open the directory. The files in it are readable, because they are mounted into
# containers whose users have other ids.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p secrets
chmod 700 secrets
umask 022

random_hex() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

# new FILE: succeeds if the file does not exist yet.
new() { [[ ! -e secrets/$1 ]]; }

new postgres-password && random_hex 24 >secrets/postgres-password
new garage-rpc && random_hex 32 >secrets/garage-rpc
if new rabbitmq.conf; then
  printf 'default_user = safelight\ndefault_pass = %s\n' "$(random_hex 24)" >secrets/rabbitmq.conf
fi
if new safelight.toml; then
  postgres=$(<secrets/postgres-password)
  rabbitmq=$(sed -n 's/^default_pass = //p' secrets/rabbitmq.conf)
  cat >secrets/safelight.toml <<END
database_url = "postgres://safelight:$postgres@postgres/safelight"
queue_url = "amqp://safelight:$rabbitmq@rabbitmq/%2f"
END
fi
if new s3.env; then
  key=GK$(random_hex 12)
  secret=$(random_hex 32)
  cat >secrets/s3.env <<END
AWS_ACCESS_KEY_ID=$key
AWS_SECRET_ACCESS_KEY=$secret
GARAGE_DEFAULT_ACCESS_KEY=$key
GARAGE_DEFAULT_SECRET_KEY=$secret
END
fi
chmod 644 secrets/*
echo "secrets/ is ready" >&2
