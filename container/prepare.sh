#!/bin/sh
# Secrets for compose.yaml, and a config to begin with. What is there already stays.
set -eu
cd "$(dirname "$0")"
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# Readable by the containers' users, whose numbers are not ours; the folder above is not.
umask 022
mkdir -p secrets
if [ ! -e secrets/s3.json ]; then
    password=$(random); key=$(random); secret=$(random)
    printf '%s' "$password" > secrets/postgres_password
    printf 'postgresql://archiver:%s@postgres/archiver' "$password" > secrets/database
    printf '%s' "$key" > secrets/s3_key
    printf '%s' "$secret" > secrets/s3_secret
    cat > secrets/s3.json <<JSON
{"identities": [{"name": "archiver", "credentials": [{"accessKey": "$key", "secretKey": "$secret"}],
                 "actions": ["Read:calls", "Write:calls", "List:calls", "Tagging:calls"]}]}
JSON
fi
[ -e archiver.toml ] || cp archiver.toml.example archiver.toml
chmod 700 .
echo "next: name your recorders in container/archiver.toml, then docker compose up -d"
