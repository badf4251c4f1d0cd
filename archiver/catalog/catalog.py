"""The catalog in PostgreSQL: one method, one conversation; the only module that speaks SQL.

Raises errors.CatalogDown where the database can't be reached; every statement may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import re
import socket
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from importlib import resources
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID, uuid4

import asyncpg
import msgspec
import structlog

from ..common import libpq
from ..common.clock import Clock
from ..errors import (
    CatalogBusy,
    CatalogDamaged,
    CatalogDown,
    CatalogForbidden,
    CatalogFull,
    CatalogMisfit,
    CatalogPooled,
    CatalogReadOnly,
    CatalogRefused,
    with_advice,
)
from ..model import (
    Availability,
    Claim,
    Copy,
    Download,
    Listing,
    ListingKey,
    Medium,
    Outcome,
    Recording,
    State,
    Window,
    Writer,
    holdable,
    holdable_tree,
    is_flat,
    utc_text,
)
from ..proof import manifests
from . import happened as happenings
from . import sqlstates

#: Moments outside these were never a call's; kept and flagged, never used to move anything.
ANCIENT = datetime(1990, 1, 1, tzinfo=UTC)
#: So many rows of a listing, or bytes of what their recorder sent, are taken in at once; so few are not worth a thread.
ROWS = 8000
ROWS_BYTES = 8 << 20
FEW = 200
#: Ids to one question.
IDS = 10_000
#: A clock that was ahead by more was wrong; by less it is corrected all the time.
AHEAD_BY = timedelta(seconds=30)
#: No lease (of media, of a share) is longer, and no pause of a source.
LONGEST_LEASE, LONGEST_PAUSE = timedelta(minutes=2), timedelta(minutes=15)
CLOCK_WORDS = "it was ahead: waits that it made too long are cut, and what it covered too early is listed again"
#: A statement may take so long, in seconds; but for a migration's.
PATIENCE = 60.0
#: How often it is said that a migration is under way, in seconds.
PROGRESS = 10.0
#: After the server's start its processes get so long to connect again.
SETTLING = timedelta(seconds=20)
#: What was archived within this time is recent.
LATELY = timedelta(days=1)
#: A window is listed again so long after its first listing.
REVISIT_AFTER = (timedelta(hours=1), timedelta(days=1), timedelta(days=7))
#: A host that is cut off says no farewell: the server finds out by asking, and lets go of its locks and transactions.
#: It asks nothing while an answer of its own is on the way: that it would send again for a quarter of an hour.
KEEPALIVES = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
#: Media that are not archived are counted by these; the words of sync.explain.
REASON_CLASSES = (
    "failed",
    "mismatch",
    "not ready",
    "unfinished",
    "unchecked",
    "cut",
    "short",
    "account refused",
    "refused",
    "gave up",
    "gone",
    "empty",
    "asked for again",
)

log = structlog.get_logger()

Document = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")

# Statements are made of each other, never of a value.
# ruff: noqa: S608
# -- statements -----------------------------------------------------------------------------------------------------

#: The tables and sequences of ours ($1) that are not there, and those that the role may not use.
LACKING_TABLES = """
SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NULL ORDER BY 1"""

FORBIDDEN_TABLES = """
SELECT name FROM unnest($1::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name)
WHERE NOT CASE WHEN relkind = 'S' THEN has_sequence_privilege(c.oid, 'USAGE') ELSE
    has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
    AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE') END ORDER BY 1"""

#: May the role change the tables, as a newer version of archiver needs to?
FOREIGN_TABLES = """
SELECT name FROM unnest($1::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name)
WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1"""

#: Of no meaning to anybody, and undone at once.
TRY_WRITE = """INSERT INTO processes (process) VALUES ($1)"""

#: How far the clock was ahead once of what it says now ($1): nothing can have been polled, or be covered, later; and
#: over how long it was so.
AHEAD = """
SELECT max(at) - $1 AS back,
    (SELECT coalesce(max(first_at) - min(first_at), '0') FROM listings WHERE first_at > $1) AS lasted
FROM sources, unnest(ARRAY[polled_at, upper(covered)]) AS at WHERE at > $1"""

#: What was listed of a time that is still to come is listed when it has come. A start that nobody configured moves too.
SET_BACK_SOURCES = """
UPDATE sources SET covered = covered * tstzmultirange(tstzrange(NULL, $1)), polled_at = least(polled_at, $1),
    paused_until = least(paused_until, $3), next_request_at = least(next_request_at, $1),
    next_listing_at = least(next_listing_at, $1),
    start_at = CASE WHEN start_at > $1 - interval '1 day' THEN start_at - $2::interval ELSE start_at END"""

SET_BACK_LISTINGS = """
WITH of_later AS (DELETE FROM listings WHERE upper(span) > $1)
UPDATE listings SET first_at = least(first_at, $1), last_at = least(last_at, $1)
WHERE greatest(first_at, last_at) > $1 AND upper(span) <= $1"""

SET_BACK_CLAIMS = """UPDATE claims SET until = $1 WHERE until > $1"""
SET_BACK_SHARES = """UPDATE shares SET until = $1 WHERE until > $1"""

#: What was to begin later begins so much sooner ($2).
SET_BACK_MEDIA = """
UPDATE media SET due_at = greatest($1, due_at - $2::interval), failing_since = least(failing_since, $1)
WHERE state = 'pending' AND due_at > $1"""
SET_BACK_OUTBOX = """UPDATE outbox SET due_at = greatest($1, due_at - $2::interval) WHERE due_at > $1"""
SET_BACK_LOOKUPS = """UPDATE lookups SET due_at = greatest($1, due_at - $2::interval) WHERE due_at > $1"""

#: Whom it is bound to stays until somebody says otherwise (BIND).
UPSERT_SOURCE = """
INSERT INTO sources AS s (name, kind, start_at, origin, account) VALUES ($1, $2, $3, $5, $6)
ON CONFLICT (name) DO UPDATE SET start_at = coalesce($4, s.start_at), origin = coalesce(s.origin, excluded.origin),
    kind = CASE WHEN s.origin IS NULL AND excluded.origin IS NOT NULL THEN excluded.kind ELSE s.kind END,
    account = CASE WHEN s.origin IS NULL THEN excluded.account ELSE s.account END
RETURNING start_at, covered, cursor, paused_until, paused_why"""

SOURCES = """
SELECT name, kind, start_at, covered, cursor, polled_at, poll_error, paused_until, paused_why, origin, account
FROM sources WHERE $1::text[] IS NULL OR name = ANY($1) ORDER BY name"""

KNOWN = """
SELECT recording_id, digest, call_id, missing_since IS NOT NULL AS missing FROM recordings
WHERE source = $1 AND recording_id = ANY($2)"""

EXISTING = """SELECT recording_id FROM recordings WHERE source = $1 AND recording_id = ANY($2)"""

UPSERT_RECORDINGS = """
INSERT INTO recordings AS r (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller,
    callee, agent, queue, parties, events, attributes, raw, flags, digest, first_listed_at, by_window)
SELECT t.source, t.recording_id, t.key_at::timestamptz, t.started_at::timestamptz, t.ended_at::timestamptz,
    t.duration::interval, t.call_id, t.direction, t.caller, t.callee, t.agent, t.queue, t.parties::jsonb,
    t.events::jsonb, t.attributes::jsonb, t.raw::json, t.flags::text[], t.digest::bytea, t.now::timestamptz,
    t.by_window::bool
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::text[], $20::text[])
    AS t (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller, callee, agent,
          queue, parties, events, attributes, raw, flags, digest, now, by_window)
ORDER BY t.recording_id
ON CONFLICT (source, recording_id) DO UPDATE SET
    key_at = excluded.key_at, started_at = excluded.started_at, ended_at = excluded.ended_at,
    duration = excluded.duration, call_id = coalesce(excluded.call_id, r.call_id), direction = excluded.direction,
    caller = excluded.caller, callee = excluded.callee, agent = excluded.agent, queue = excluded.queue,
    parties = excluded.parties, events = excluded.events, attributes = excluded.attributes, raw = excluded.raw,
    flags = excluded.flags, digest = excluded.digest, missing_since = NULL, revision = r.revision + 1,
    undescribed = true, by_window = r.by_window OR excluded.by_window"""

#: What failed keeps its own schedule, however often its row changes. A told size or hash that changed is new content:
#: what is archived is fetched again, the old copy stays beside it; what is on its way (claimed, or held by some stores
#: only) starts anew. Where nothing was told before (a manifest does not say it), what is told now is compared with what
#: is held.
UPSERT_MEDIA = """
INSERT INTO media AS m (source, recording_id, media_id, state, due_at, error, told_size, told_sha256, told_duration,
    told_type, opaque, urgent, ref, stores)
SELECT t.source, t.recording_id, t.media_id, t.state, t.due_at::timestamptz, t.error, t.told_size::bigint,
    t.told_sha256, t.told_duration::interval, t.told_type, t.opaque::bool, t.urgent::bool, t.ref::jsonb,
    t.stores::text[]
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[])
    AS t (source, recording_id, media_id, state, due_at, error, told_size, told_sha256, told_duration, told_type,
          opaque, urgent, ref, stores)
ORDER BY t.recording_id, t.media_id
ON CONFLICT (source, recording_id, media_id) DO UPDATE SET
    told_size = excluded.told_size, told_sha256 = excluded.told_sha256, told_duration = excluded.told_duration,
    told_type = excluded.told_type, opaque = excluded.opaque, urgent = excluded.urgent, ref = excluded.ref,
    (state, due_at, error, generation, attempts, failing_since, held, size, sha256, archived_at, troubled, seen_sha256,
     seen_at, coding, flags, note) = (
        SELECT CASE WHEN again THEN 'pending' WHEN ends THEN excluded.state ELSE m.state END,
               CASE WHEN again OR fresh THEN excluded.due_at ELSE m.due_at END,
               CASE WHEN again OR ends OR fresh THEN excluded.error ELSE m.error END,
               m.generation + (again OR ends)::int,
               CASE WHEN again THEN 0 ELSE m.attempts END,
               CASE WHEN again OR ends THEN NULL ELSE m.failing_since END,
               CASE WHEN again THEN '{}' ELSE m.held END,
               CASE WHEN again THEN NULL ELSE m.size END,
               CASE WHEN again THEN NULL ELSE m.sha256 END,
               CASE WHEN again THEN NULL ELSE m.archived_at END,
               m.troubled AND NOT (again OR fresh),
               CASE WHEN again THEN NULL ELSE m.seen_sha256 END,
               CASE WHEN again THEN NULL ELSE m.seen_at END,
               CASE WHEN again THEN NULL ELSE m.coding END,
               CASE WHEN again THEN '{}' ELSE m.flags END,
               CASE WHEN again THEN NULL ELSE m.note END
        FROM (SELECT m.state = 'pending' AND (NOT m.troubled OR m.attempts = 0 AND m.error LIKE 'not ready%')
                         AS fresh, excluded.state = 'pending' AND (
                         m.state IN ('gone', 'empty')
                         OR (m.state IN ('archived', 'pending') AND (
                             coalesce(coalesce(lower(m.told_sha256), m.sha256) <> lower(excluded.told_sha256), false)
                             OR coalesce(coalesce(m.told_size, m.size) <> excluded.told_size, false))))
                         AS again,
                     excluded.state <> 'pending' AND m.state IN ('pending', 'failed') AS ends) AS change)"""

EXPIRE_BY = """
UPDATE sources SET retention = $2 WHERE name = $1 AND retention IS DISTINCT FROM $2 RETURNING true"""

#: Each part is the condition of an index: one over all would take in every new medium twice.
PENDING = "(state = 'pending' AND NOT troubled OR state = 'pending' AND troubled)"
UNFINISHED = f"({PENDING} OR state IN ('failed', 'gone', 'empty'))"

EXPIRES = f"""
UPDATE media m SET expires_at = r.started_at + $2::interval FROM recordings r
WHERE m.source = $1 AND r.source = $1 AND r.recording_id = m.recording_id AND {UNFINISHED}
    AND ($3::text[] IS NULL OR m.recording_id = ANY($3))"""

EXPIRING = f"""
SELECT date_bin('1 hour', expires_at, '2000-01-01Z') AS hour, count(*) AS count FROM media
WHERE source = $1 AND ({PENDING} OR state = 'failed') AND expires_at IS NOT NULL GROUP BY 1 ORDER BY 1"""

ARCHIVED_SINCE = """
SELECT count(DISTINCT (recording_id, media_id)) AS count, min(archived_at) AS first FROM copies
WHERE store = ANY($1) AND source = $2 AND coalesce(read_at, archived_at) > $3 AND archived_at > $3"""

#: By the facts of the ledger alone: nobody keeps a calendar. $4: how long before the retention ends.
REVISITS = """
SELECT lower(span) AS start, upper(span) AS "end" FROM listings l
WHERE source = $1 AND last_at < (
    SELECT max(due) FROM (
        SELECT l.first_at + t.after AS due FROM unnest($3::interval[]) AS t (after)
        UNION ALL
        SELECT lower(l.span) + $4::interval - $5::interval WHERE upper(l.span) + $4::interval > $2) AS dues
    WHERE due <= $2)
ORDER BY lower(span) LIMIT $6"""

REVISITED = """UPDATE listings SET last_at = $4 WHERE source = $1 AND span = tstzrange($2, $3)"""

IN_WINDOWS = """
SELECT w.n, (SELECT count(*) FROM recordings r WHERE r.source = $1 AND r.key_at >= w.start AND r.key_at < w.end)
FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS w (start, "end", n) ORDER BY w.n"""

SHRUNK = """
SELECT count(*) AS known, count(missing_since) AS missing, min(missing_since) AS since FROM recordings
WHERE source = $1 AND key_at >= $2 AND by_window"""

#: Nobody has it in hand now ($1): one look by key, whatever PostgreSQL knows or guesses of the tables.
UNCLAIMED = """NOT coalesce((
            SELECT true FROM claims c
            WHERE (c.source, c.recording_id, c.media_id) = (media.source, media.recording_id, media.media_id)
                AND c.generation = media.generation AND c.until > $1), false)"""

STILL = f"""
SELECT count(*) AS count, min(due_at) AS since FROM media
WHERE source = $2 AND {PENDING} AND due_at <= $3 AND NOT urgent AND {UNCLAIMED}"""

WITHIN = """
SELECT r.recording_id, r.started_at, r.missing_since, array_agg(m.state) AS states
FROM recordings r LEFT JOIN media m USING (source, recording_id)
WHERE r.source = $1 AND r.key_at >= $2 AND r.key_at < $3 AND r.by_window
GROUP BY r.source, r.recording_id ORDER BY r.started_at, r.recording_id"""

ADD_COVERED = """
UPDATE sources SET covered = covered + tstzmultirange(tstzrange($2, $3)) WHERE name = $1"""

ADD_LISTING = """
WITH swallowed AS (
    DELETE FROM listings WHERE source = $1 AND span <@ tstzrange($2, $3) AND span <> tstzrange($2, $3)
        AND lower(span) >= $2 AND lower(span) < $3
    RETURNING first_at, times)
INSERT INTO listings AS l (source, span, first_at, last_at, times, listed, rejected)
SELECT $1, tstzrange($2, $3), coalesce((SELECT min(first_at) FROM swallowed), $4), $4,
       1 + coalesce((SELECT sum(times) FROM swallowed), 0), $5, $6
ON CONFLICT (source, span) DO UPDATE SET
    last_at = $4, times = l.times + excluded.times, listed = excluded.listed, rejected = excluded.rejected"""

MISSING = """
UPDATE recordings SET missing_since = $5, revision = revision + 1, undescribed = true
WHERE source = $1 AND key_at >= $2 AND key_at < $3 AND by_window AND missing_since IS NULL
    AND NOT EXISTS (SELECT FROM unnest($4::text[]) AS seen (id) WHERE seen.id = recording_id)
RETURNING recording_id"""

RETURNED = """
UPDATE recordings SET missing_since = NULL, revision = revision + 1, undescribed = true
WHERE source = $1 AND recording_id = ANY($2) AND missing_since IS NOT NULL RETURNING recording_id"""

#: A channel on which processes hear of each other's listings (NOTIFY, delivered when the transaction is committed).
LISTED = "archiver_listed"

#: And that one has come, has left or needs less than it did, where others have a share of the same source.
SHARED = "archiver_shared"

TELL = "SELECT pg_notify($1, $2)"

UNSHARE = """
WITH gone AS (DELETE FROM shares WHERE process = $1 AND source = ANY($2) RETURNING source)
SELECT pg_notify($3, $4 || source) FROM gone
WHERE EXISTS (SELECT FROM shares s WHERE s.source = gone.source AND s.process <> $1)"""

BY_WINDOW = """
UPDATE recordings SET by_window = true WHERE source = $1 AND recording_id = ANY($2) AND NOT by_window"""

WAKE_RETURNED = """
UPDATE media SET due_at = $3 WHERE source = $1 AND recording_id = ANY($2) AND state = 'pending'"""

REJECT = """
INSERT INTO rejected AS r (source, digest, raw, reason, span, first_at, last_at)
SELECT $1, t.digest, t.raw, t.reason, tstzrange($5, $6), $7, $7
FROM unnest($2::bytea[], $3::text[], $4::text[]) AS t (digest, raw, reason) ORDER BY t.digest
ON CONFLICT (source, digest) DO UPDATE SET last_at = $7, times = r.times + 1, reason = excluded.reason"""

HISTORY = """
INSERT INTO history AS h (source, recording_id, media_id, what, detail, answer, first_at, last_at, times)
SELECT t.source, t.recording_id, t.media_id, t.what, t.detail, max(t.answer), $7, $7, count(*)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS t (source, recording_id, media_id, what, detail, answer)
GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (source, recording_id, media_id, what, detail) DO UPDATE SET
    last_at = excluded.last_at, times = h.times + excluded.times, answer = coalesce(excluded.answer, h.answer)"""

#: Also claims that were made while their maker was interrupted, of which nobody heard.
LEAVE = """
WITH freed AS (DELETE FROM claims WHERE holder = $1)
DELETE FROM processes WHERE process = $1"""

#: Dead is who neither holds its lock nor has any connection; after the server's own start all are to connect first.
FREE_DEAD = """
WITH dead AS (
    DELETE FROM processes p WHERE p.process <> $1 AND pg_postmaster_start_time() < clock_timestamp() - $2::interval
        AND NOT EXISTS (
            SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended('process:' || p.process, 8410))
        AND NOT EXISTS (
            SELECT FROM pg_stat_activity a
            WHERE a.datname = current_database() AND a.application_name = 'archiver ' || p.process)
    RETURNING p.process), unshared AS (
    DELETE FROM shares s USING dead WHERE s.process = dead.process), freed AS (
    DELETE FROM claims c USING dead WHERE c.holder = dead.process)
SELECT (SELECT count(*) FROM dead) AS dead, EXISTS (
    SELECT FROM shares mine JOIN shares other USING (source)
    WHERE mine.process = $1 AND other.process <> $1
        AND (least(mine.slots, other.slots) = 0 OR abs(mine.slots - other.slots) > 1)) AS uneven"""

#: Of each source's two queues the first.
_FIRST_DUE = " UNION ALL ".join(
    f"""
    SELECT m.* FROM unnest($2::text[]) AS s (name)
    CROSS JOIN LATERAL (
        SELECT source, due_at FROM media WHERE source = s.name AND state = 'pending' AND {which} AND {UNCLAIMED}
        ORDER BY due_at LIMIT 1) m"""
    for which in ("NOT troubled", "troubled")
)

DUE = f"""
SELECT source, min(due_at) AS due_at FROM ({_FIRST_DUE}
    UNION ALL
    SELECT source, until FROM claims WHERE source = ANY($2) AND until > $1 AND token <> ALL($3::bigint[])) AS due
GROUP BY source"""

LEASED = """SELECT max(until) FROM claims WHERE until > $1 AND source = ANY($2)"""

#: A claim leaves the medium's row as it is and so costs no writing into its indexes, of which a big archive has many
#: pages. Who looked at what is due before another's claim was committed finds it when it would write its own.
_CLAIMED = """
claimed AS (
    INSERT INTO claims AS c (source, recording_id, media_id, generation, until, holder)
    SELECT source, recording_id, media_id, generation, $2, $3 FROM due
    ON CONFLICT (source, recording_id, media_id) DO UPDATE SET
        token = excluded.token, generation = excluded.generation, until = excluded.until, holder = excluded.holder
    WHERE c.until <= $1 OR c.generation <> excluded.generation
    RETURNING source, recording_id, media_id, token)"""
_CLAIMS = """
SELECT m.source, m.recording_id, m.media_id, claimed.token, m.attempts, m.failing_since, m.told_size, m.told_sha256,
    m.told_duration, m.told_type, m.opaque, m.urgent, m.ref, m.stores, m.held, m.sha256, m.error, m.troubled,
    m.seen_sha256, m.seen_at, r.started_at, r.ended_at
FROM due m JOIN claimed USING (source, recording_id, media_id) JOIN recordings r USING (source, recording_id)"""

CLAIM = f"""
WITH due AS (
    SELECT m.* FROM unnest($4::text[], $5::int[]) AS want (source, count)
    CROSS JOIN LATERAL (
        SELECT * FROM media
        WHERE media.source = want.source AND state = 'pending' AND NOT troubled AND due_at <= $1 AND {UNCLAIMED}
        ORDER BY due_at LIMIT want.count FOR UPDATE SKIP LOCKED) m),{_CLAIMED}{_CLAIMS}"""

#: What failed when it was last tried, or was not ready.
CLAIM_TROUBLED = CLAIM.replace("NOT troubled", "troubled")

#: From the other end of the queue.
CLAIM_NEWEST = CLAIM.replace("ORDER BY due_at", "ORDER BY due_at DESC")

#: Of sources that delete by age: what expires first.
CLAIM_EXPIRING = CLAIM.replace("due_at <= $1", "due_at <= $1 AND expires_at IS NOT NULL").replace(
    "ORDER BY due_at", "ORDER BY (NOT urgent), expires_at"
)

#: And these from the other end.
CLAIM_EXPIRING_NEWEST = CLAIM_EXPIRING.replace(
    "ORDER BY (NOT urgent), expires_at", "ORDER BY (NOT urgent) DESC, expires_at DESC"
)

#: One medium that nobody has in hand, whatever became of it before.
CLAIM_ONE = f"""
WITH due AS (
    SELECT * FROM media WHERE (source, recording_id, media_id) = ($4, $5, $6) AND state <> 'archived' FOR UPDATE
),{_CLAIMED},
woken AS (
    UPDATE media m SET state = 'pending', due_at = $1 FROM claimed t
    WHERE (m.source, m.recording_id, m.media_id) = (t.source, t.recording_id, t.media_id) AND m.state <> 'pending'
){_CLAIMS}"""

MEDIUM = """
SELECT recording_id, media_id, told_size, told_sha256, told_duration, told_type, opaque, urgent, ref FROM media
WHERE source = $1 AND recording_id = $2 AND media_id = $3"""

#: What is ours of the claims told: the token says so.
_OURS = """
USING unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS t (source, recording_id, media_id, token)
WHERE (c.source, c.recording_id, c.media_id, c.token) = (t.source, t.recording_id, t.media_id, t.token)"""

RENEW = f"""UPDATE claims c SET until = $5{_OURS.replace("USING", "FROM")}"""

RELEASE = f"""DELETE FROM claims c{_OURS}"""

#: Each by its index, whatever PostgreSQL knows or guesses of the table (OFFSET 0 keeps it from choosing another way).
COPIES_OF = """
SELECT c.* FROM unnest($1::text[], $2::text[], $3::text[]) AS k (source, recording_id, media_id)
CROSS JOIN LATERAL (
    SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at FROM copies
    WHERE (source, recording_id, media_id) = (k.source, k.recording_id, k.media_id) OFFSET 0) c
ORDER BY archived_at, store"""

SETTLE_ARCHIVED = f"""
WITH ended AS (DELETE FROM claims c{_OURS} RETURNING c.*)
UPDATE media m SET state = CASE WHEN m.stores <@ t.held THEN 'archived' ELSE 'pending' END,
    held = t.held, size = t.size, sha256 = t.sha256, content_type = t.content_type, duration = t.duration,
    coding = t.coding, flags = t.flags, note = t.note, troubled = t.error IS NOT NULL, seen_sha256 = NULL,
    seen_at = NULL, archived_at = CASE WHEN m.stores <@ t.held THEN $10::timestamptz END, due_at = t.due_at,
    error = t.error, attempts = m.attempts + 1, failing_since = NULL
FROM (SELECT ended.*, u.size, u.sha256, u.content_type, u.duration, string_to_array(u.held, ',') AS held, u.due_at,
             u.error, u.coding, string_to_array(u.flags, ',') AS flags, u.note
      FROM unnest($4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::interval[], $9::text[], $11::timestamptz[],
                  $12::text[], $13::text[], $14::text[], $15::text[])
      AS u (token, size, sha256, content_type, duration, held, due_at, error, coding, flags, note)
      JOIN ended USING (token)) t
WHERE (m.source, m.recording_id, m.media_id, m.generation) = (t.source, t.recording_id, t.media_id, t.generation)
    AND m.state = 'pending'
RETURNING t.token, m.state"""

ADD_COPIES = """
INSERT INTO copies (store, key, source, recording_id, media_id, size, sha256, archived_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
    $8::timestamptz[])
ON CONFLICT (store, key) DO NOTHING RETURNING source, store, size"""

DESCRIBED = """
UPDATE recordings r SET revision = r.revision + t.step, undescribed = (r.revision <> t.revision)
FROM unnest($1::text[], $2::text[], $3::int[], $4::int[]) AS t (source, recording_id, revision, step)
WHERE (r.source, r.recording_id) = (t.source, t.recording_id)
RETURNING NOT r.undescribed"""

ADD_TOTALS = """
INSERT INTO totals AS o (source, store, count, bytes)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) ORDER BY 1, 2
ON CONFLICT (source, store) DO UPDATE SET count = o.count + excluded.count, bytes = o.bytes + excluded.bytes"""

SETTLE_OTHERS = f"""
WITH ended AS (DELETE FROM claims c{_OURS} RETURNING c.*)
UPDATE media m SET state = u.state, due_at = u.due_at, error = u.error, attempts = u.attempts,
    failing_since = u.failing_since, troubled = u.troubled, flags = string_to_array(u.flags, ','), note = u.note,
    seen_sha256 = coalesce(u.seen, m.seen_sha256),
    seen_at = CASE WHEN u.seen IS NULL OR u.seen = m.seen_sha256 THEN m.seen_at ELSE $14 END
FROM unnest($4::bigint[], $5::text[], $6::timestamptz[], $7::text[], $8::int[], $9::timestamptz[], $10::bool[],
            $11::text[], $12::text[], $13::text[])
    AS u (token, state, due_at, error, attempts, failing_since, troubled, seen, flags, note) JOIN ended t USING (token)
WHERE (m.source, m.recording_id, m.media_id, m.generation) = (t.source, t.recording_id, t.media_id, t.generation)
    AND m.state = 'pending'
RETURNING t.token, m.state"""

TOUCH_RECORDINGS = """
UPDATE recordings r SET revision = r.revision + 1, undescribed = true
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[])) AS t (source, recording_id)
WHERE (r.source, r.recording_id) = (t.source, t.recording_id)"""

RECORDINGS_OF = """
SELECT r.*, s.kind FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
CROSS JOIN LATERAL (
    SELECT * FROM recordings WHERE (source, recording_id) = (k.source, k.recording_id) OFFSET 0) r
JOIN sources s ON s.name = r.source"""

MEDIA_OF = """
SELECT m.* FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
CROSS JOIN LATERAL (
    SELECT source, recording_id, media_id, state, content_type, told_type, size, sha256, duration, coding, flags, note,
        attempts, error, stores
    FROM media WHERE (source, recording_id) = (k.source, k.recording_id) OFFSET 0) m
ORDER BY source, recording_id, media_id"""

COPIES_OF_RECORDINGS = """
SELECT c.* FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
CROSS JOIN LATERAL (
    SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at FROM copies
    WHERE (source, recording_id) = (k.source, k.recording_id) OFFSET 0) c
ORDER BY archived_at, store"""

UNDESCRIBED = """
SELECT source, recording_id FROM recordings
WHERE undescribed AND source = ANY($1) AND (revision > 1 OR first_listed_at < $3) LIMIT $2"""

REVISE = """
WITH was AS (
    SELECT source, recording_id, undescribed FROM recordings
    WHERE (source, recording_id) IN (SELECT * FROM unnest($1::text[], $2::text[])) ORDER BY 1, 2 FOR UPDATE),
revised AS (
    UPDATE recordings SET revision = revision + 1, undescribed = true
    WHERE (source, recording_id) IN (SELECT source, recording_id FROM was))
SELECT source, recording_id FROM was WHERE NOT undescribed"""

#: Nothing where a recording is not described yet: a ledger in a store must not claim what that store does not tell.
UNTOLD = """
SELECT name, kind, start_at, covered, cursor, origin, account FROM sources
WHERE name = ANY($1) AND told IS DISTINCT FROM concat(covered, cursor)
    AND NOT EXISTS (SELECT FROM recordings r WHERE r.source = sources.name AND r.undescribed)"""

#: Of these stores those that every medium of the source is meant for: what is there describes all of it.
WHOLE = """
SELECT s.name FROM unnest($2::text[]) AS s (name)
WHERE NOT EXISTS (SELECT FROM media WHERE source = $1 AND NOT s.name = ANY(stores))"""

#: What waits goes where the config says now; what is under way ends as it began.
AIM = f"""
UPDATE media SET stores = $3, due_at = CASE WHEN state = 'pending' AND $3 <@ held THEN $1 ELSE due_at END
WHERE source = $2 AND (state = 'pending' OR state = 'failed') AND NOT (stores <@ $3 AND stores @> $3) AND {UNCLAIMED}"""

#: What is archived, and not in this store.
LACKING = """
SELECT m.source, m.recording_id, m.media_id, m.sha256, r.started_at
FROM media m JOIN recordings r USING (source, recording_id)
WHERE m.state = 'archived' AND NOT $1 = ANY(m.held) AND ($2::text IS NULL OR m.source = $2)
    AND ($3::timestamptz IS NULL OR r.started_at >= $3) AND ($4::timestamptz IS NULL OR r.started_at < $4)
    AND (m.source, m.recording_id, m.media_id) > ($5, $6, $7)
ORDER BY m.source, m.recording_id, m.media_id LIMIT $8"""

#: A store of the source (in $6) is from now on meant to hold it; another merely does.
HOLD = """
UPDATE media m SET held = array_append(m.held, $1),
    stores = CASE WHEN m.source = ANY($6) AND NOT $1 = ANY(m.stores) THEN array_append(m.stores, $1) ELSE m.stores END
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS t (source, recording_id, media_id, sha256)
WHERE (m.source, m.recording_id, m.media_id, m.sha256) = (t.source, t.recording_id, t.media_id, t.sha256)
    AND m.state = 'archived' AND NOT $1 = ANY(m.held)"""

#: What is not archived is to be described there too, and then the ledger.
WIDEN = f"""
WITH wider AS (
    UPDATE media SET stores = array_append(stores, $3)
    WHERE source = $2 AND {UNFINISHED} AND NOT $3 = ANY(stores) AND {UNCLAIMED} RETURNING recording_id),
heard AS (UPDATE sources SET told = NULL WHERE name = $2)
UPDATE recordings SET undescribed = true, revision = revision + 1
WHERE source = $2 AND recording_id IN (SELECT recording_id FROM wider)"""

UNTELL = """UPDATE sources SET told = NULL WHERE name = $1"""

TOLD = """UPDATE sources SET told = concat($2::tstzmultirange, $3::text) WHERE name = $1"""

STALEST = """
SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at,
    coalesce(read_at, archived_at) AS looked_at FROM copies
WHERE store = $1 AND ($2::text IS NULL OR source = $2) AND coalesce(read_at, archived_at) < $3
    AND (coalesce(read_at, archived_at), key) > ($4, $5)
ORDER BY coalesce(read_at, archived_at), key LIMIT $6"""

BAD_ONES = """
SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at,
    coalesce(read_at, archived_at) AS looked_at FROM copies
WHERE store = $1 AND bad IS NOT NULL AND coalesce(read_at, archived_at) < $2
ORDER BY coalesce(read_at, archived_at), key LIMIT $3"""

READ_SINCE = """
SELECT coalesce(sum(size), 0)::bigint FROM copies
WHERE store = $1 AND coalesce(read_at, archived_at) > $2 AND read_at > $2"""

VERIFIED = """
UPDATE copies c SET verified_at = coalesce(t.verified_at, c.verified_at), bad = t.bad, read_at = $5,
    untold = c.untold OR t.verified_at IS NOT NULL
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[]) AS t (store, key, verified_at, bad)
WHERE (c.store, c.key) = (t.store, t.key)"""

UNCODED = """
SELECT m.source, m.recording_id, m.media_id
FROM unnest($1::text[], $2::text[], $3::text[]) AS k (source, recording_id, media_id)
CROSS JOIN LATERAL (
    SELECT source, recording_id, media_id, coding FROM media
    WHERE (source, recording_id, media_id) = (k.source, k.recording_id, k.media_id) OFFSET 0) m
WHERE m.coding IS NULL"""

#: An older copy may hold other bytes than the medium has now.
CODED = """
UPDATE media m SET coding = t.coding
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS t (source, recording_id, media_id, sha256, coding)
WHERE (m.source, m.recording_id, m.media_id, m.sha256) = (t.source, t.recording_id, t.media_id, t.sha256)
    AND m.coding IS NULL"""

FOUND = """
INSERT INTO findings AS f (store, key, problem, first_at, last_at)
SELECT $1, t.key, t.problem, $4, $4 FROM unnest($2::text[], $3::text[]) AS t (key, problem)
ON CONFLICT (store, key, problem) DO UPDATE SET
    last_at = $4, times = f.times + 1, repaired_at = NULL, repaired_by = NULL"""

RIGHT_AGAIN = """
UPDATE findings f SET repaired_at = $4, repaired_by = t.by FROM unnest($2::text[], $3::text[]) AS t (key, by)
WHERE (f.store, f.key) = ($1, t.key) AND f.repaired_at IS NULL"""

REPAIRED = """
SELECT key, max(repaired_at) AS at FROM findings WHERE store = $1 AND key = ANY($2) AND repaired_at IS NOT NULL
GROUP BY key"""

ADD_VERIFICATION = """
INSERT INTO verifications AS v (store, day, read, bytes, seconds, bad, repaired)
VALUES ($1, ($2::timestamptz AT TIME ZONE 'UTC')::date, $3, $4, $5, $6, $7)
ON CONFLICT (store, day) DO UPDATE SET read = v.read + excluded.read, bytes = v.bytes + excluded.bytes,
    seconds = v.seconds + excluded.seconds, bad = v.bad + excluded.bad, repaired = v.repaired + excluded.repaired"""

VERIFY_ERROR = """
INSERT INTO verifications (store, day, error) VALUES ($1, ($2::timestamptz AT TIME ZONE 'UTC')::date, $3)
ON CONFLICT (store, day) DO UPDATE SET error = excluded.error"""

VERIFICATION = """
SELECT read, bytes, seconds, error FROM verifications
WHERE store = $1 AND day = ($2::timestamptz AT TIME ZONE 'UTC')::date"""

OLDEST = """
SELECT coalesce(read_at, archived_at) FROM copies WHERE store = $1 ORDER BY coalesce(read_at, archived_at) LIMIT 1"""

NEWEST_COPIES = """
SELECT key FROM copies WHERE store = $1 AND bad IS NULL ORDER BY coalesce(read_at, archived_at) DESC LIMIT $2"""

SET_ASIDE = """UPDATE copies SET read_at = $3 WHERE store = $1 AND key = ANY($2)"""

OVERDUE = """SELECT count(*), coalesce(sum(size), 0)::bigint FROM copies
WHERE store = $1 AND coalesce(read_at, archived_at) < $2"""

FINDINGS = """
SELECT f.store, f.key, f.problem, f.first_at, f.last_at, f.times, f.repaired_at, f.repaired_by, c.source,
    c.recording_id, c.media_id
FROM findings f JOIN copies c USING (store, key)
WHERE f.store = $1 AND (f.repaired_at IS NULL OR f.last_at > $2)
ORDER BY f.repaired_at IS NULL DESC, f.last_at DESC, f.key LIMIT $3"""

FINDINGS_COUNT = """
SELECT count(*) AS found, count(repaired_at) AS repaired FROM findings
WHERE store = $1 AND (repaired_at IS NULL OR last_at > $2)"""

FINDINGS_OF = """
SELECT f.store, f.key, f.problem, f.first_at, f.last_at, f.times, f.repaired_at, f.repaired_by, c.media_id
FROM findings f JOIN copies c USING (store, key) WHERE c.source = $1 AND c.recording_id = $2 ORDER BY f.first_at"""

UNTOLD_VERIFIED = """
SELECT source, store, key, verified_at FROM copies WHERE untold AND source = ANY($1)
ORDER BY source, store, verified_at LIMIT $2"""

TOLD_VERIFIED = """
UPDATE copies c SET untold = false FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS t (store, key, verified_at)
WHERE (c.store, c.key, c.verified_at) = (t.store, t.key, t.verified_at)"""

NOTED = """
UPDATE copies c SET verified_at = $3, read_at = $3 FROM unnest($2::text[]) AS t (key)
WHERE c.store = $1 AND c.key = t.key AND (c.verified_at IS NULL OR c.verified_at < $3)"""

BAD = """SELECT source, store, count(*) AS count FROM copies WHERE bad IS NOT NULL GROUP BY source, store"""

IS_EMPTY = """SELECT NOT EXISTS (SELECT FROM recordings) AND NOT EXISTS (SELECT FROM copies)"""

REBUILDING = """SELECT store, after, manifests, lines, recordings, damaged, distrusted FROM rebuilding"""

REBUILT_SO_FAR = """
INSERT INTO rebuilding VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (store) DO UPDATE SET after = excluded.after, manifests = excluded.manifests, lines = excluded.lines,
    recordings = excluded.recordings, damaged = excluded.damaged, distrusted = excluded.distrusted"""

#: What a drill leaves out, and why.
DRILL_LEFT = """
SELECT why, count(*) FROM (
    SELECT CASE WHEN NOT EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id)
            THEN 'without media'
        WHEN EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
                     AND m.state = 'pending') THEN 'not archived yet'
        WHEN EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
                     AND NOT $1 = ANY(m.stores)) THEN 'not meant for this store'
        WHEN undescribed THEN 'not described yet' END AS why
    FROM recordings r) AS one
WHERE why IS NOT NULL GROUP BY why ORDER BY why"""

#: {schema} is a name of ours. What is not described, or not finished, no store could tell.
DRILLED = """
CREATE TABLE {schema}.drilled AS SELECT source, recording_id, revision FROM recordings r
WHERE NOT undescribed
    AND NOT EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
                    AND (m.state = 'pending' OR NOT $1 = ANY(m.stores)))
    AND EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id)"""

DRILL_KEYS = """
SELECT d.source, d.recording_id, r.revision = d.revision AND NOT r.undescribed AS same
FROM {schema}.drilled d JOIN recordings r USING (source, recording_id)
WHERE (d.source, d.recording_id) > ($1, $2) ORDER BY d.source, d.recording_id LIMIT $3"""

DRILL_WANTED = """
SELECT source, recording_id FROM drilled
WHERE (source, recording_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))"""

DRILL_UNKNOWN = """
SELECT source, recording_id FROM {schema}.recordings s
WHERE NOT EXISTS (SELECT FROM recordings r WHERE r.source = s.source AND r.recording_id = s.recording_id)
ORDER BY source, recording_id LIMIT $1"""

KNOWN_KEYS = """SELECT key FROM copies WHERE store = $1 AND key = ANY($2)"""

#: Where no ledger tells since when it is archived, it is since the first call that is known.
REBUILD_KIND = """
INSERT INTO sources (name, kind, start_at) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, start_at = least(sources.start_at, excluded.start_at)"""

REBUILD_SOURCE = """
INSERT INTO sources (name, kind, start_at, covered, cursor, origin, account) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (name) DO UPDATE SET kind = $2, start_at = $3, covered = sources.covered + $4, cursor = $5, origin = $6,
    account = $7"""

REBUILD_RECORDINGS = """
INSERT INTO recordings AS r (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller,
    callee, agent, queue, parties, events, attributes, raw, flags, digest, first_listed_at, missing_since, undescribed,
    handle, salt)
SELECT t.source, t.recording_id, t.key_at::timestamptz, t.started_at::timestamptz, t.ended_at::timestamptz,
    t.duration::interval, t.call_id, t.direction, t.caller, t.callee, t.agent, t.queue, t.parties::jsonb,
    t.events::jsonb, t.attributes::jsonb, t.raw::json, t.flags::text[], t.digest::bytea, t.now::timestamptz,
    t.missing_since::timestamptz, t.undescribed::bool, t.handle::bytea, t.salt::bytea
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::text[], $20::text[], $21::text[], $22::text[], $23::text[])
    AS t (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller, callee, agent,
          queue, parties, events, attributes, raw, flags, digest, now, missing_since, undescribed, handle, salt)
ON CONFLICT (source, recording_id) DO UPDATE SET
    key_at = excluded.key_at, started_at = excluded.started_at, ended_at = excluded.ended_at,
    duration = excluded.duration, call_id = excluded.call_id, direction = excluded.direction, caller = excluded.caller,
    callee = excluded.callee, agent = excluded.agent, queue = excluded.queue, parties = excluded.parties,
    events = excluded.events, attributes = excluded.attributes, raw = excluded.raw, flags = excluded.flags,
    missing_since = excluded.missing_since, handle = coalesce(excluded.handle, r.handle),
    salt = CASE WHEN excluded.handle IS NULL THEN r.salt ELSE excluded.salt END"""

REBUILD_MEDIA = """
INSERT INTO media AS m (source, recording_id, media_id, state, due_at, attempts, error, stores, held, size, sha256,
    content_type, duration, coding, flags, note, archived_at)
SELECT t.source, t.recording_id, t.media_id, t.state, t.due_at::timestamptz, t.attempts::int, t.error,
    t.stores::text[], t.held::text[], t.size::bigint, t.sha256, t.content_type, t.duration::interval, t.coding,
    t.flags::text[], t.note, t.archived_at::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[])
    AS t (source, recording_id, media_id, state, due_at, attempts, error, stores, held, size, sha256, content_type,
          duration, coding, flags, note, archived_at)
ON CONFLICT (source, recording_id, media_id) DO UPDATE SET
    state = excluded.state, attempts = excluded.attempts, error = excluded.error, stores = excluded.stores,
    held = excluded.held, size = excluded.size, sha256 = excluded.sha256, content_type = excluded.content_type,
    duration = excluded.duration, coding = excluded.coding, flags = excluded.flags, note = excluded.note,
    archived_at = excluded.archived_at
WHERE NOT (m.state = 'archived' AND excluded.state = 'pending' AND excluded.sha256 IS NULL)"""

REBUILD_COPIES = """
INSERT INTO copies (source, recording_id, media_id, store, key, size, sha256, archived_at, verified_at, read_at)
SELECT t.source, t.recording_id, t.media_id, t.store, t.key, t.size::bigint, t.sha256, t.archived_at::timestamptz,
    t.verified_at::timestamptz, t.read_at::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[])
    AS t (source, recording_id, media_id, store, key, size, sha256, archived_at, verified_at, read_at)
ON CONFLICT (store, key) DO UPDATE SET
    archived_at = excluded.archived_at, verified_at = excluded.verified_at, read_at = excluded.verified_at"""

REBUILD_TOTALS = """
INSERT INTO totals (source, store, count, bytes)
SELECT source, store, count(*), sum(size) FROM copies GROUP BY source, store
UNION ALL
SELECT source, '', count(*), sum(size) FROM media WHERE state = 'archived' GROUP BY source
ON CONFLICT (source, store) DO UPDATE SET count = excluded.count, bytes = excluded.bytes"""

#: What is not finished must be listed again, for a manifest does not tell how to fetch it.
UNCOVER_UNFINISHED = """
UPDATE sources s SET covered = s.covered - coalesce((
    SELECT range_agg(tstzrange(date_trunc('hour', r.key_at), date_trunc('hour', r.key_at) + interval '1 hour'))
    FROM recordings r JOIN media m USING (source, recording_id)
    WHERE r.source = s.name AND (m.state = 'pending' OR m.state = 'failed')), '{}')"""

MISSING_SINCE = """SELECT missing_since FROM recordings WHERE source = $1 AND recording_id = $2"""

DOUBTFUL = """
SELECT DISTINCT r.key_at FROM media m JOIN recordings r USING (source, recording_id)
WHERE m.source = $1 AND m.state = 'pending' AND r.missing_since IS NULL AND r.key_at < $2 AND m.error LIKE 'not ready%'
ORDER BY r.key_at DESC LIMIT 24"""

PAUSE = """UPDATE sources SET paused_until = $2, paused_why = $3 WHERE name = $1"""
POLLED = """UPDATE sources SET polled_at = $2, poll_error = $3 WHERE name = $1"""
CURSOR = """UPDATE sources SET cursor = $2 WHERE name = $1"""

RESERVE = """
UPDATE sources SET next_request_at = greatest(next_request_at, $2) + $3::interval WHERE name = $1
RETURNING next_request_at - $3::interval AS at"""

LISTING_AT = """SELECT next_listing_at FROM sources WHERE name = $1 AND next_listing_at > $2"""
LISTING_ENDED = """UPDATE sources SET next_listing_at = greatest(next_listing_at, $2) WHERE name = $1"""

COUNTS = f"""
SELECT source, state, count(*) AS count, min(due_at) AS due_at FROM media
WHERE {UNFINISHED} AND ($1::text[] IS NULL OR source = ANY($1)) GROUP BY source, state"""

COUNTS_WITHIN = f"""
SELECT m.state, count(*) AS count, min(m.due_at) AS due_at FROM media m JOIN recordings r USING (source, recording_id)
WHERE {UNFINISHED} AND m.source = $1 AND r.key_at >= $2 AND r.key_at < $3 GROUP BY m.state"""

REASONS = f"""
SELECT source, state, error, count(*) AS count FROM media
WHERE ({PENDING} OR state = 'failed') AND error IS NOT NULL AND ($1::text[] IS NULL OR source = ANY($1))
GROUP BY source, state, error ORDER BY count DESC LIMIT 50"""

#: How many are kept as evidence, and how many of these since then.
FLAGGED = """
SELECT source, flag, count(*) AS count, count(*) FILTER (WHERE archived_at > $1) AS lately
FROM media CROSS JOIN LATERAL unnest(flags) AS flag
WHERE flags <> '{}' AND ($2::text[] IS NULL OR source = ANY($2)) GROUP BY source, flag"""

#: Of what some stores did not take yet: which, and why; as sync.deliver writes it, several reasons in one.
_UNPUT = """
LATERAL (SELECT split_part(part, ': ', 1) AS store, substr(part, strpos(part, ': ') + 2) AS error
         FROM regexp_split_to_table(substr(m.error, 7), '; store ') AS part WHERE strpos(part, ': ') > 0) u"""

WAITING_FOR = f"""
SELECT u.store, count(*) AS count, mode() WITHIN GROUP (ORDER BY u.error) AS error FROM media m CROSS JOIN {_UNPUT}
WHERE {PENDING} AND m.error LIKE 'store %' AND u.store = ANY($1) GROUP BY u.store"""

WAITING_FOR_IT = f"""
SELECT m.source, m.recording_id, m.media_id, u.error FROM media m CROSS JOIN {_UNPUT}
WHERE {PENDING} AND m.error LIKE 'store %' AND u.store = $1 ORDER BY m.source, m.recording_id, m.media_id LIMIT $2"""

#: The reasons are classes, not messages: those of sync.explain; all that has no class of its own is "other".
QUEUE = f"""
SELECT source, state, CASE WHEN error IS NULL THEN 'new' WHEN class = ANY($1) THEN class
        WHEN error LIKE 'store %' OR error LIKE 'no manifest%' THEN 'store failed' ELSE 'other' END AS reason,
    count(*) AS count, min(failing_since) AS failing_since
FROM (SELECT source, state, error, failing_since, split_part(error, ':', 1) AS class FROM media
      WHERE {UNFINISHED}) m
GROUP BY 1, 2, 3"""

#: Of what has not failed by itself. Whatever waits longest is due first, and so a look at the first few tells.
_FIRST = """
    SELECT source, recording_id FROM media m
    WHERE m.source = s.source AND state = 'pending' AND {of} AND failing_since IS NULL
        AND coalesce(error, '') NOT LIKE 'not ready%'
    ORDER BY due_at LIMIT 500"""
WAITING = f"""
SELECT s.source, min(r.first_listed_at) AS since
FROM unnest($1::text[]) AS s (source), LATERAL (
    ({_FIRST.format(of="NOT troubled")}) UNION ALL ({_FIRST.format(of="troubled")})) m
JOIN recordings r ON (r.source, r.recording_id) = (m.source, m.recording_id)
GROUP BY s.source"""

UNVERIFIED = """
SELECT s.store, (SELECT coalesce(read_at, archived_at) FROM copies c WHERE c.store = s.store
                 ORDER BY coalesce(read_at, archived_at), key LIMIT 1) AS since
FROM unnest($1::text[]) AS s (store)"""

TOTALS = """SELECT source, store, count, bytes FROM totals"""
REJECTED_COUNTS = """SELECT source, count(*) AS count, max(last_at) AS last_at FROM rejected GROUP BY source"""
REJECTED = """
SELECT raw, reason, span, first_at, last_at, times FROM rejected WHERE source = $1 ORDER BY last_at DESC LIMIT $2"""

RETRY = """
UPDATE media SET state = 'pending', due_at = $3, error = 'asked for again', failing_since = NULL, attempts = 0,
    troubled = false, flags = '{}', note = NULL
WHERE state = $2 AND ($1::text IS NULL OR source = $1) RETURNING source, recording_id, media_id"""

FORGIVE = """
UPDATE media m SET state = 'pending', due_at = $5 FROM unnest($1::text[], $2::text[], $3::text[]) AS t(s, r, i)
WHERE (m.source, m.recording_id, m.media_id) = (t.s, t.r, t.i) AND m.state = 'failed' AND m.error LIKE $4"""

DELIVERED = """SELECT EXISTS (SELECT FROM totals WHERE source = $1 AND count > 0)"""

HISTORY_OF = """
SELECT media_id, what, detail, answer, first_at, last_at, times FROM history
WHERE source = $1 AND recording_id = $2 ORDER BY first_at, last_at"""

LISTINGS_OF = """
SELECT lower(span) AS start, upper(span) AS "end", first_at, last_at, times, listed, rejected FROM listings
WHERE source = $1 AND span @> $2::timestamptz ORDER BY first_at"""

OUTBOX_ADD = """
INSERT INTO outbox (target, source, recording_id, due_at)
SELECT t.target, t.source, t.recording_id, $4 FROM unnest($1::text[], $2::text[], $3::text[])
    AS t (target, source, recording_id)
WHERE (SELECT bool_and(m.state <> 'pending') AND bool_or(m.state = 'archived') FROM media m
       WHERE m.source = t.source AND m.recording_id = t.recording_id)
ON CONFLICT (target, source, recording_id) DO UPDATE SET due_at = excluded.due_at, attempts = 0, error = NULL"""

OUTBOX_DUE = """
UPDATE outbox o SET due_at = $3 FROM (
    SELECT target, source, recording_id FROM outbox WHERE target = $1 AND due_at <= $2
    ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED) t
WHERE (o.target, o.source, o.recording_id) = (t.target, t.source, t.recording_id)
RETURNING o.source, o.recording_id, o.attempts"""

OUTBOX_DONE = """DELETE FROM outbox WHERE target = $1 AND source = $2 AND recording_id = $3"""
OUTBOX_LATER = """
UPDATE outbox SET due_at = $4, attempts = attempts + 1, error = $5
WHERE target = $1 AND source = $2 AND recording_id = $3"""

#: A call id may be learnt, or the call go on, long after its recording was first listed: that is a change.
CALL_IDS = """
SELECT call_id, max(at) AS at FROM (
    SELECT call_id, first_listed_at AS at FROM recordings WHERE source = $1 AND first_listed_at >= $2
    UNION ALL
    SELECT r.call_id, h.last_at FROM history h JOIN recordings r USING (source, recording_id)
    WHERE h.source = $1 AND h.media_id = '' AND h.what = 'changed' AND h.last_at >= $2
) AS known
WHERE call_id IS NOT NULL AND (at, call_id) > ($2, $3) GROUP BY call_id ORDER BY 2, 1 LIMIT $4"""

TELLS_NO_CALL_IDS = """
SELECT EXISTS (SELECT FROM recordings WHERE source = $1)
    AND NOT EXISTS (SELECT FROM recordings WHERE source = $1 AND call_id IS NOT NULL)"""


UNCOVER = """UPDATE sources SET covered = covered - tstzmultirange(tstzrange($2, $3)) WHERE name = $1"""

LOOKUPS = """
SELECT call_id, attempts FROM lookups WHERE source = $1 AND due_at <= $2 ORDER BY due_at, call_id LIMIT $3"""

FAILED_LOOKUPS = """SELECT call_id FROM lookups WHERE source = $1 AND call_id = ANY($2)"""

LOOKUP_TROUBLE = """
SELECT call_id, error, count(*) OVER () AS count FROM lookups
WHERE source = $1 ORDER BY attempts DESC, call_id LIMIT 1"""

LOOK_UP_LATER = """
INSERT INTO lookups AS l (source, call_id, due_at, error)
SELECT $1, t.call_id, $4, t.error FROM unnest($2::text[], $3::text[]) AS t (call_id, error)
ON CONFLICT (source, call_id) DO UPDATE SET due_at = $4, attempts = l.attempts + 1, error = excluded.error"""

LOOKUPS_FAILING = """
SELECT source, count(*) AS count, (array_agg(error ORDER BY due_at, call_id))[1] AS error FROM lookups
WHERE $1::text[] IS NULL OR source = ANY($1) GROUP BY source"""

LOOKED_UP = """DELETE FROM lookups WHERE source = $1 AND call_id = $2"""

#: Does anything lie in a store that is none of these?
ELSEWHERE = """SELECT EXISTS (SELECT FROM totals WHERE store <> '' AND count > 0 AND NOT store = ANY($1))"""

#: Archived media of which no copy lies in these stores, by the stores in which copies lie.
STRANDED = """
WITH s AS (SELECT held, count(*) AS n FROM media WHERE state = 'archived' AND NOT held && $1::text[] GROUP BY held)
SELECT coalesce((SELECT sum(n) FROM s), 0)::bigint AS count,
    array(SELECT DISTINCT unnest(held) FROM s) AS stores"""

KEPT_IN = """SELECT key, min(store) FROM copies WHERE store = ANY($1) AND key = ANY($2) GROUP BY key"""

RENAME_STORE = (
    # Put a second time under its new name, before anybody said that it is the same place: one copy, not two.
    "DELETE FROM copies c WHERE store = $1 AND EXISTS (SELECT FROM copies n WHERE n.store = $2 AND n.key = c.key)",
    """UPDATE recordings r SET undescribed = true, revision = revision + 1
WHERE EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
              AND ($1 = ANY(m.stores) OR $1 = ANY(m.held)) AND $1 <> $2)""",
    "UPDATE copies SET store = $2 WHERE store = $1",
    """UPDATE media SET stores = array(SELECT DISTINCT unnest(array_replace(stores, $1, $2))),
    held = array(SELECT DISTINCT unnest(array_replace(held, $1, $2))) WHERE $1 = ANY(stores) OR $1 = ANY(held)""",
    """INSERT INTO verifications AS v SELECT $2, day, read, bytes, seconds, bad, repaired, error FROM verifications
WHERE store = $1 ON CONFLICT (store, day) DO UPDATE SET read = v.read + excluded.read, bytes = v.bytes + excluded.bytes,
    seconds = v.seconds + excluded.seconds, bad = v.bad + excluded.bad, repaired = v.repaired + excluded.repaired""",
    "DELETE FROM verifications WHERE store = $1 AND store <> $2",
    "DELETE FROM totals WHERE store IN ($1, $2)",
    """INSERT INTO totals SELECT source, store, count(*), sum(size) FROM copies WHERE store = $2 AND store <> $1
GROUP BY source, store""",
    "INSERT INTO stores SELECT $2, marker FROM stores WHERE name = $1 ON CONFLICT (name) DO NOTHING",
    "DELETE FROM stores WHERE name = $1 AND name <> $2",
    "UPDATE sources SET told = NULL WHERE $1::text <> $2::text",
)

RENAME_SOURCE = (
    "DELETE FROM sources WHERE name = $2 AND name <> $1",
    """INSERT INTO sources (name, kind, start_at, covered, cursor, polled_at, retention, origin, account)
SELECT $2, kind, start_at, covered, cursor, polled_at, retention, origin, account FROM sources WHERE name = $1""",
    *(f"UPDATE {table} SET source = $2 WHERE source = $1" for table in ("listings", "rejected", "lookups")),
    "DELETE FROM claims WHERE source IN ($1, $2)",
    "DELETE FROM shares WHERE source IN ($1, $2)",
    "DELETE FROM totals WHERE source = $2 AND source <> $1",
    *(f"UPDATE {table} SET source = $2 WHERE source = $1" for table in ("media", "copies", "history", "totals")),
    "UPDATE outbox SET source = $2 WHERE source = $1",
    "UPDATE outbox SET target = $2 WHERE target = $1",
    """UPDATE recordings SET source = $2, undescribed = true, revision = revision + 1 WHERE source = $1""",
    "DELETE FROM sources WHERE name = $1 AND name <> $2",
)

#: Some copies of a store: its newest, and some by their names.
SOME_COPIES = """
(SELECT key, size FROM copies WHERE store = $1 AND bad IS NULL ORDER BY coalesce(read_at, archived_at) DESC LIMIT 5)
UNION (SELECT key, size FROM copies WHERE store = $1 AND bad IS NULL ORDER BY key LIMIT 5)
UNION (SELECT key, size FROM copies WHERE store = $1 AND bad IS NULL ORDER BY key DESC LIMIT 5)"""

#: Recordings that are no longer listed, and those of them that another one of the same moment stands for.
OTHER_IDS = """
SELECT count(*) AS missing, count(*) FILTER (WHERE EXISTS (
    SELECT FROM recordings n WHERE n.source = r.source AND n.started_at = r.started_at AND n.missing_since IS NULL
        AND n.recording_id <> r.recording_id AND n.first_listed_at > r.first_listed_at)) AS again
FROM recordings r WHERE source = $1 AND key_at >= $2 AND missing_since IS NOT NULL"""

BIND = """
UPDATE sources SET kind = $2, origin = $3, account = $4, told = NULL, poll_error = NULL WHERE name = $1"""

#: The reason of what was not archived when its recorder was replaced.
REPLACED_WHY = "its recorder was replaced before it was archived"

#: Another recorder stands behind the name: nothing of it was listed.
REPLACED = (
    """UPDATE sources SET covered = '{}', cursor = NULL, told = NULL, polled_at = NULL, poll_error = NULL,
    paused_until = NULL, paused_why = NULL WHERE name = $1""",
    "DELETE FROM listings WHERE source = $1",
    "DELETE FROM lookups WHERE source = $1",
    "DELETE FROM claims WHERE source = $1",
    """UPDATE recordings SET former = true, by_window = false, missing_since = NULL WHERE source = $1""",
)

#: What of the old one was not archived, and can't be any more.
LOST_WITH_IT = f"""
WITH lost AS (
    UPDATE media SET state = 'gone', error = $2
    WHERE source = $1 AND ({PENDING} OR state = 'failed') RETURNING source, recording_id, media_id),
told AS (
    -- Listed again, from whomever, it is news.
    UPDATE recordings r SET digest = '', undescribed = true, revision = revision + 1
    FROM (SELECT DISTINCT source, recording_id FROM lost) AS l
    WHERE (r.source, r.recording_id) = (l.source, l.recording_id))
SELECT source, recording_id, media_id FROM lost"""

#: Of an earlier recorder, with the ids that are told now; is it the same call (of a recorder that was moved)?
FORMER = """
SELECT r.recording_id,
    (r.started_at, r.caller, r.callee) IS NOT DISTINCT FROM (t.started_at, t.caller, t.callee) AS same
FROM unnest($2::text[], $3::timestamptz[], $4::text[], $5::text[]) AS t (recording_id, started_at, caller, callee)
JOIN recordings r ON r.source = $1 AND r.recording_id = t.recording_id WHERE r.former ORDER BY 1"""

#: What could not be had from the old recorder can be had from the new one.
STILL_THERE = (
    """UPDATE recordings SET former = false
WHERE source = $1 AND recording_id = ANY($2) AND first_listed_at <= $3""",
    f"""UPDATE media SET state = 'pending', error = NULL, due_at = $3
WHERE source = $1 AND recording_id = ANY($2) AND state = 'gone' AND error = '{REPLACED_WHY}'""",
)

SET_RECORDING_ASIDE = (
    """UPDATE recordings SET recording_id = $3, undescribed = true, revision = revision + 1
WHERE source = $1 AND recording_id = $2""",
    *(
        f"UPDATE {table} SET recording_id = $3 WHERE source = $1 AND recording_id = $2"
        for table in ("media", "copies", "history", "outbox")
    ),
)

MARKER = """SELECT marker FROM stores WHERE name = $1"""
MARK = """INSERT INTO stores (name, marker) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET marker = excluded.marker"""
HOLDS = """SELECT EXISTS (SELECT FROM copies WHERE store = $1)"""


# -- what is asked and answered ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What the catalog knows of one source."""

    start_at: datetime
    covered: tuple[Window, ...]
    cursor: str | None
    paused_until: datetime | None = None
    paused_why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What one listing changed. Counts are recordings."""

    listed: int = 0
    new: int = 0
    changed: int = 0
    missing: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading one copy back found."""

    identity: tuple[str, str, str]
    copy: Copy
    #: What was wrong; None: nothing.
    problem: str | None = None
    #: Who gave the right bytes, where that put it right.
    mended_by: str | None = None
    #: How its samples are coded, where the catalog did not know and its bytes are whole.
    coding: str | None = None

    @property
    def right(self) -> bool:
        """Is it as it should be now?"""
        return self.problem is None or self.mended_by is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildProgress:
    """How far a rebuild from a store has come: its last manifest, and what was read so far."""

    store: str
    after: str = ""
    manifests: int = 0
    lines: int = 0
    recordings: int = 0
    damaged: Sequence[str] = ()
    distrusted: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What the watching is made of, as the database had it at one moment."""

    at: datetime
    #: Rows of SOURCES by name.
    sources: Mapping[str, Mapping[str, Any]]
    #: By (source, state, reason) unfinished media, and since when the first of them has been failing.
    queue: Mapping[tuple[str, str, str], tuple[int, datetime | None]]
    #: By source when the longest waiting medium that never failed was first listed.
    waiting: Mapping[str, datetime]
    #: By (source, store) copies and bytes; the store '' stands for archived media.
    totals: Mapping[tuple[str, str], tuple[int, int]]
    #: By source how many rows could not be read, and when the last was seen.
    rejected: Mapping[str, tuple[int, datetime]]
    #: By source and flag how many media are kept as evidence, and how many of these were archived lately.
    flagged: Mapping[tuple[str, str], tuple[int, int]]
    #: By store how many copies are known to be bad, and when the one longest unread was last read or made.
    bad: Mapping[str, int]
    unverified: Mapping[str, datetime]
    #: By source how many call ids can't be looked up, and why the first of them can't.
    lookups: Mapping[str, tuple[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Filters of ``list``; None: any."""

    source: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    caller: str | None = None
    callee: str | None = None
    direction: str | None = None
    state: str | None = None
    text: str | None = None
    longer_than: timedelta | None = None
    #: Of one of its media.
    flag: str | None = None
    limit: int | None = None


def _repeated(transaction: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Begin again where PostgreSQL ended a deadlock by us: a listing and a commit may want the same rows crosswise.

    Also where another inserted a row that was not there when we looked: now it is.
    """

    @functools.wraps(transaction)
    async def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(5):
            try:
                return await transaction(*args, **kwargs)
            except asyncpg.UniqueViolationError:
                continue
            except CatalogDown as error:
                if not isinstance(error.__cause__, asyncpg.DeadlockDetectedError | asyncpg.SerializationError):
                    raise
        return await transaction(*args, **kwargs)

    return repeated


class Need(Enum):
    """Of the tables, before a command begins (see :meth:`Catalog.ready`)."""

    #: Any version, to be read as far as that goes; nothing is written.
    READABLE = auto()
    #: Of this version.
    SAME = auto()
    #: Of this version; made where the database is empty.
    MADE = auto()
    #: Brought up to this version.
    MIGRATED = auto()


class Catalog:
    """Open it with :func:`Catalog.open`; close it at the end."""

    def __init__(
        self,
        url: str,
        pool: Any = None,
        clock: Clock | None = None,
        process: UUID | None = None,
        schema: str | None = None,
    ) -> None:
        self._url = url
        self.clock = clock or Clock()
        #: Identifies this process among those that share the database.
        self.process = process or uuid4()
        self._pool = pool
        self._target = _target(url)
        self._settings = KEEPALIVES | self._target.settings | ({"search_path": schema} if schema else {})
        #: The schema's version where it is not ours; it explains what fails.
        self._other: int | None = None
        #: It was found good: what fails from now on was lost on the way.
        self._proven = False
        self._locks: Any = None
        #: Called when any process, this one too, has written down recordings that are new or have changed.
        self.on_listed: Callable[[], None] | None = None
        #: Called with a source of which another process has come for a share, has left, or needs less than before.
        self.on_shared: Callable[[str], None] | None = None
        self._held: set[str] = set()
        self._announced = False
        self._claims = False
        self._locking = asyncio.Lock()
        #: One description of changes at a time: two would undo what each other marks.
        self.describing = asyncio.Lock()

    @classmethod
    async def open(cls, url: str, *, clock: Clock | None = None, size: int = 6, schema: str | None = None) -> Catalog:
        """Connect; to the tables of that schema, where one is named. Raises CatalogDown."""
        catalog = cls(url, clock=clock, schema=schema)
        with catalog._translated(connecting=True):
            how = catalog._how(command_timeout=PATIENCE)
            catalog._pool = await asyncpg.create_pool(
                min_size=1, max_size=size, init=catalog._prepare, reset=_nothing, **how
            )
        await catalog.ping()
        return catalog

    def _how(self, *, command_timeout: float | None) -> dict[str, Any]:
        """How to connect. A pooler knows these two settings; the others are set afterwards."""
        target, how = self._target, dict[str, Any]()
        if target.public:
            how["ssl"] = ssl.create_default_context()
        how["server_settings"] = {"timezone": "UTC", "application_name": f"archiver {self.process}"}
        return {"dsn": target.url, "timeout": target.timeout, "command_timeout": command_timeout, **how}

    async def _prepare(self, connection: Any) -> None:
        await connection.execute(
            f"SELECT {', '.join(f'set_config({_literal(n)}, {_literal(v)}, false)' for n, v in self._settings.items())}"
        )
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(kind, encoder=_dump, decoder=json.loads, schema="pg_catalog")

    @asynccontextmanager
    async def _own(self, *, command_timeout: float | None = 30) -> AsyncIterator[Any]:
        """A connection beside the pool's."""
        with self._translated(connecting=True):
            connection = await asyncpg.connect(**self._how(command_timeout=command_timeout))
        if command_timeout is None:
            # Nothing else would tell that the server is gone.
            _keep_alive(connection)
        try:
            with self._translated(connecting=True):
                await self._prepare(connection)
            with self._translated():
                yield connection
        finally:
            connection.terminate()

    async def close(self) -> None:
        if self._announced or self._claims:
            with contextlib.suppress(CatalogDown, TimeoutError):
                async with asyncio.timeout(2), self._connection() as c:
                    await c.execute(LEAVE, self.process)
        if self._locks is not None:
            self._locks.terminate()
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        with self._translated():
            async with self._pool.acquire(timeout=30) as connection:
                yield connection

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with self._connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def _undone(self) -> AsyncIterator[Any]:
        """A transaction of which nothing stays."""
        async with self._connection() as connection:
            undone = connection.transaction()
            await undone.start()
            try:
                yield connection
            finally:
                await undone.rollback()

    async def ping(self) -> None:
        """Is it there? Sets the clock by it."""
        async with self._connection() as c:
            now = await c.fetchval("SELECT clock_timestamp()")
        if type(self.clock) is Clock:
            self.clock.set(now)

    async def set_right(self) -> timedelta | None:
        """Where the clock was ahead and has been set back: cut what was reckoned by it. How far that was; None: not so.

        Any process may do it, any number of times: what is cut is no longer ahead.
        """
        now = self.clock.now()
        async with self._connection() as c:
            if _ahead(await c.fetchrow(AHEAD, now)) is None:
                return None
        async with self._transaction() as c:
            await c.execute("SELECT pg_advisory_xact_lock(hashtext('archiver.clock'))")
            if (back := _ahead(await c.fetchrow(AHEAD, now))) is None:
                return None
            await c.execute(SET_BACK_SOURCES, now, back, now + LONGEST_PAUSE, timeout=600)
            await c.execute(SET_BACK_LISTINGS, now, timeout=600)
            for statement in (SET_BACK_CLAIMS, SET_BACK_SHARES):
                await c.execute(statement, now + LONGEST_LEASE, timeout=600)
            for statement in (SET_BACK_MEDIA, SET_BACK_OUTBOX, SET_BACK_LOOKUPS):
                await c.execute(statement, now, back, timeout=600)
        log.warning("clock.set_back", seconds=round(back.total_seconds()), error=CLOCK_WORDS)
        return back

    @contextlib.contextmanager
    def _translated(self, *, connecting: bool = False) -> Iterator[None]:
        """Turns what has its cause outside of us into CatalogDown, of the class that tells whose it is."""
        try:
            yield
        except CatalogDown:
            raise
        except Exception as error:
            down = self._down(error, connecting=connecting)
            if down is None:
                raise
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # asyncpg may answer a cancellation with a time-out; swallowed, it would keep a stop waiting for ever.
                raise asyncio.CancelledError from error
            down.lost = self._proven
            raise down from error

    def _down(self, error: Exception, *, connecting: bool) -> CatalogDown | None:
        """What it says of the database; None: nothing, it is a defect of ours."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found = sqlstates.meaning(error, connecting=connecting)
        if found is not None:
            if found.kind is CatalogMisfit and self._other is not None:
                return other_version(self._other)
            return found.kind(f"{_WORDS[found.kind]}: {reason}", found.remedy)
        if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
            return CatalogReadOnly("no host of [database] url is as target_session_attrs wants it")
        if connecting and isinstance(error, ValueError):
            # Its text quotes the URL, password included, where it is not asyncpg's own.
            ours = isinstance(error, asyncpg.ClientConfigurationError)
            return CatalogRefused(
                f"[database] url can't be used: {reason}"
                if ours
                else "database.url can't be read; a password's special characters are %-encoded"
            )
        if isinstance(error, TimeoutError):
            return CatalogDown("the database can't be reached: it did not answer in time")
        return CatalogDown(f"the database can't be reached: {reason}") if isinstance(error, _LOST) else None

    # -- schema -----------------------------------------------------------------------------------------------------

    async def version(self) -> int:
        """The schema's version; 0 where there is none."""
        async with self._connection() as c:
            return await _version(c)

    async def ready(self, need: Need, tell: Callable[[str, float], None] | None = None) -> None:
        """See that the tables are as what follows needs them. Raises CatalogDown, of the class that tells why not.

        ``tell``: as for :meth:`migrate`.
        """
        if need is not Need.READABLE:
            await self.prove_locks()
        version = await self.version()
        if need is Need.MIGRATED or (need is Need.MADE and not version):
            await self.migrate(tell)
        elif not version:
            empty = CatalogMisfit("the database has no tables yet", "`archiver run`, `sync` or `migrate` makes them")
            # As good as not there.
            empty.lasting = False
            raise empty
        elif version != newest():
            self._other = version
            if need is not Need.READABLE:
                raise other_version(version)
            log.warning("schema.other", error=with_advice(other_version(version)))
        if need is not Need.READABLE:
            await self.prove()
            await self.set_right()
        self._proven = True

    async def prove(self) -> None:
        """Try what archiving needs: our tables, our rights, a small write that is undone. Raises CatalogDown."""
        async with self._undone() as c:
            if (version := await _version(c)) != newest():
                raise other_version(version)
            if lacking := [row[0] for row in await c.fetch(LACKING_TABLES, tables())]:
                raise CatalogMisfit(f"the database lacks tables of ours: {', '.join(lacking)}")
            if forbidden := [row[0] for row in await c.fetch(FORBIDDEN_TABLES, tables())]:
                raise CatalogForbidden(f"{_WORDS[CatalogForbidden]}: it may not read and write {', '.join(forbidden)}")
            await c.execute(TRY_WRITE, uuid4())

    async def check(self) -> str:
        """Try all that archiving needs, longer than :meth:`prove` does; what was found. Raises CatalogDown."""
        await self.prove_locks()
        version = await self.version()
        if not version:
            # All is made, and undone: rights and the server's age show.
            async with self._undone() as c:
                for _, _, text in migrations():
                    await c.execute(text, timeout=60)
            return "still empty"
        if version > newest():
            raise other_version(version)
        if version < newest():
            async with self._undone() as c:
                if foreign := [row[0] for row in await c.fetch(FOREIGN_TABLES, tables())]:
                    raise CatalogForbidden(f"{_WORDS[CatalogForbidden]}: others own {', '.join(foreign)}")
                await c.execute("CREATE TABLE archiver_probe (); DROP TABLE archiver_probe")
            return f"schema version {version}; `archiver run` or `migrate` brings it to {newest()}"
        await self.prove()
        async with self._undone() as c:
            for name, statement in statements().items():
                try:
                    await c.prepare(statement)
                except asyncpg.SyntaxOrAccessError as error:
                    raise CatalogMisfit(f"a table is not as version {version} has it ({name}): {error}") from error
        return f"schema version {version}"

    async def prove_locks(self) -> None:
        """A lock must hold for as long as its connection: behind some poolers it does not. Raises CatalogPooled."""
        what = str(uuid4())
        async with self._own() as one, self._own() as other:
            first = await one.fetchval("SELECT pg_backend_pid()")
            await one.fetchval("SELECT pg_advisory_lock(hashtextextended($1, 8410))", what)
            for _ in range(2):
                async with other.transaction():
                    # The pooler may give it the very session that the first has just left.
                    taken = await other.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 8410))", what)
                    same = await one.fetchval("SELECT pg_backend_pid()") == first
                if taken or not same:
                    raise CatalogPooled(
                        "locks do not hold in this database: a pooler gives each transaction another session"
                    )

    async def migrate(self, tell: Callable[[str, float], None] | None = None) -> list[str]:
        """Apply what is missing, each file in one transaction, one process at a time; the names applied.

        It may take as long as it takes; ``tell`` hears now and then which file is at work, and for how many seconds.
        Raises CatalogDown where the schema is newer than this program.
        """
        if (version := await self.version()) > newest():
            raise other_version(version)
        if version == newest():
            return []
        applied = []
        # Of its own, for no statement here has a time limit: begun anew it would only take as long again.
        async with self._own(command_timeout=None) as c:
            await c.execute(
                "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false)"
            )
            for number, name, text in migrations():
                began = time.monotonic()
                async with c.transaction(), _telling(tell, name):
                    await c.execute("SELECT pg_advisory_xact_lock(hashtext('archiver.migrate'))")
                    await c.execute(
                        "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, name text NOT NULL,"
                        " applied_at timestamptz NOT NULL DEFAULT now())"
                    )
                    if await c.fetchval("SELECT true FROM schema_version WHERE version = $1", number):
                        continue
                    await c.execute(text)
                    await c.execute("INSERT INTO schema_version (version, name) VALUES ($1, $2)", number, name)
                applied.append(name)
                log.info("schema.migrated", file=name, seconds=round(time.monotonic() - began, 1))
        return applied

    # -- locks, shares and rates: over all processes ----------------------------------------------------------------

    @asynccontextmanager
    async def only_one(self, what: str) -> AsyncIterator[bool]:
        """Hold the lock of that name over all processes while inside; False where another holds it.

        The lock lives on a connection of its own (a pooled one gives up its locks when it is returned) and ends
        with it.
        """
        if what in self._held:
            # PostgreSQL gives a session what it has once more.
            yield False
            return
        self._held.add(what)
        try:
            taken = await self._lock("SELECT pg_try_advisory_lock(hashtextextended($1, 8410))", what)
            try:
                yield taken
            finally:
                if taken:
                    await asyncio.shield(self._unlock(what))
        finally:
            self._held.discard(what)

    async def _lock(self, statement: str, what: str) -> bool:
        async with self._locking:
            with self._translated():
                if self._locks is None or self._locks.is_closed():
                    with self._translated(connecting=True):
                        self._locks = await asyncpg.connect(**self._how(command_timeout=30))
                        await self._prepare(self._locks)
                    await self._locks.add_listener(LISTED, self._heard)
                    await self._locks.add_listener(SHARED, self._heard_of_share)
                return bool(await self._locks.fetchval(statement, what))

    def _heard(self, *_: object) -> None:
        if self.on_listed is not None:
            self.on_listed()

    def _heard_of_share(self, _connection: object, _pid: int, _channel: str, told: object) -> None:
        process, _, source = str(told).partition(" ")
        if self.on_shared is not None and process != str(self.process):
            self.on_shared(source)

    async def _unlock(self, what: str) -> None:
        try:
            await self._lock("SELECT pg_advisory_unlock(hashtextextended($1, 8410))", what)
        except CatalogDown:
            # The lock is to die with its connection, which may only have been slow.
            locks, self._locks = self._locks, None
            if locks is not None:
                locks.terminate()

    @_repeated
    async def stay_alive(self) -> tuple[int, bool]:
        """Show that this process lives, and free at once what those held that are dead.

        Returns how many these were, and whether this process and another have uneven shares of a source.
        A process that was only cut off commits nothing late: the claims that it had are no longer its own.
        """
        me = f"process:{self.process}"
        lost = self._locks is None or self._locks.is_closed()
        if lost or not self._announced:
            await self._lock("SELECT pg_try_advisory_lock(hashtextextended($1, 8410))", me)
            async with self._connection() as c:
                await c.execute("INSERT INTO processes VALUES ($1) ON CONFLICT DO NOTHING", self.process)
            self._announced = True
        async with self._connection() as c:
            row = await c.fetchrow(FREE_DEAD, self.process, SETTLING)
        return row["dead"], row["uneven"]

    async def share(self, wanted: Mapping[str, tuple[int, int]], lease: timedelta) -> dict[str, int]:
        """By source this process's share of ``(limit, in use)`` requests, leased; limits hold over all processes.

        What is in use and exceeds the share stays its own until it asks again. The others hear of it when that may
        change their shares (:attr:`on_shared`).
        """
        now = self.clock.now()
        names = sorted(wanted)
        shares = {}
        async with self._transaction() as c:
            await c.execute("SELECT pg_advisory_xact_lock(hashtext('archiver.shares'))")
            await c.execute("DELETE FROM shares WHERE until < $1", now)
            found = {
                row["source"]: (row["slots"], row["peers"], row["rank"], row["mine"])
                for row in await c.fetch(
                    "SELECT source, coalesce(sum(slots) FILTER (WHERE process <> $1), 0)::int AS slots,"
                    " count(*) FILTER (WHERE process <> $1)::int AS peers,"
                    " count(*) FILTER (WHERE process < $1)::int AS rank,"
                    " max(slots) FILTER (WHERE process = $1) AS mine"
                    " FROM shares WHERE source = ANY($2) GROUP BY source",
                    self.process,
                    names,
                )
            }
            for name in names:
                limit, in_use = wanted[name]
                taken, peers, rank, before = found.get(name, (0, 0, 0, None))
                # What does not divide goes to the first of them.
                fair = limit // (peers + 1) + (rank < limit % (peers + 1))
                shares[name] = max(min(fair, limit - taken), 0)
                slots = max(shares[name], min(in_use, limit - taken))
                await c.execute(
                    "INSERT INTO shares VALUES ($1, $2, $3, $4)"
                    " ON CONFLICT (source, process) DO UPDATE SET slots = excluded.slots, until = excluded.until",
                    name,
                    self.process,
                    slots,
                    now + lease,
                )
                if peers and (before is None or slots < before):
                    await c.execute(TELL, SHARED, f"{self.process} {name}")
        return shares

    async def unshare(self, sources: Sequence[str]) -> None:
        """Give the shares back."""
        async with self._connection() as c:
            await c.execute(UNSHARE, self.process, list(sources), SHARED, f"{self.process} ")

    async def reserve(self, source: str, interval: timedelta) -> timedelta:
        """Take the next place in a source's rate; how long to wait for it."""
        now = self.clock.now()
        async with self._connection() as c:
            at = await c.fetchval(RESERVE, source, now, interval)
        return max(at - now, timedelta()) if at is not None else timedelta()

    async def listing_wait(self, source: str) -> timedelta:
        """How long until the source's next listing may begin, whoever made the last one."""
        now = self.clock.now()
        async with self._connection() as c:
            at = await c.fetchval(LISTING_AT, source, now)
        return at - now if at is not None else timedelta()

    async def listing_ended(self, source: str, pause: timedelta) -> None:
        """The next one may begin after that pause."""
        async with self._connection() as c:
            await c.execute(LISTING_ENDED, source, self.clock.now() + pause)

    # -- discovery --------------------------------------------------------------------------------------------------

    async def source(
        self,
        name: str,
        kind: str,
        *,
        default_start: datetime,
        start: datetime | None,
        origin: str | None = None,
        account: str | None = None,
    ) -> Ledger:
        """The source's ledger, made where there is none; a configured ``start`` replaces the stored one.

        Where it is bound to nobody yet it is from now on to that kind, ``origin`` and ``account``.
        """
        async with self._connection() as c:
            row = await c.fetchrow(UPSERT_SOURCE, name, kind, start or default_start, start, origin, account)
        return _ledger(row)

    async def sources(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        async with self._connection() as c:
            return [dict(row) | {"covered": _windows(row["covered"])} for row in await c.fetch(SOURCES, names)]

    async def unknown(self, source: str, recordings: Sequence[Recording]) -> list[Recording]:
        """Those that the catalog does not hold, or holds otherwise than the source tells them now."""
        known: dict[str, tuple[bytes, str | None]] = {}
        async with self._connection() as c:
            for some in _batched([holdable(r.recording_id) for r in recordings], IDS):
                rows = await c.fetch(KNOWN, source, some)
                # What was missing is told anew: its media may have been given up as gone.
                known |= {row["recording_id"]: (row["digest"], row["call_id"]) for row in rows if not row["missing"]}

        def is_news(recording: Recording) -> bool:
            if (row := known.get(holdable(recording.recording_id))) is None:
                return True
            digest, call_id = row
            # A call id is told only where one asked for it; it adds to what the plain row said.
            return digest != recording.digest() or (recording.call_id is not None and call_id is None)

        return [recording for recording in recordings if is_news(recording)]

    @_repeated
    async def record(
        self,
        source: str,
        listing: Listing,
        news: Sequence[Recording],
        *,
        digests: Mapping[str, bytes] | None = None,
        listing_key: ListingKey,
        stores: Sequence[str],
        retention: timedelta | None = None,
        window: Window | None = None,
        part: bool = False,
        cover: bool = False,
        cursor: str | None = None,
    ) -> Recorded:
        """A listing's rows and, with ``cover``, its window's place in the ledger: in one transaction.

        ``part``: some rows of a listing that comes whole in a moment; of what these lack nothing is said.
        ``news`` are the recordings that are new or changed, details included; ``digests`` by id those of the rows of
        such as were told more than their row. Of a recording that is told twice the last telling counts.
        """
        now = self.clock.now()
        listed_ids = [holdable(r.recording_id) for r in listing.recordings]
        told = {holdable(new.recording_id): new for new in news}
        new = changed = 0
        missing: list[str] = []
        back: set[str] = set()
        async with self._transaction() as c:
            known: set[str] = set()
            for some in _batched(list(told), IDS):
                known |= {row[0] for row in await c.fetch(EXISTING, source, some)}
            there = [i for i in listed_ids if i in known or i not in told]
            if there:
                back = {row[0] for row in await c.fetch(RETURNED, source, there)}
                if back:
                    await c.execute(WAKE_RETURNED, source, list(back), now)
                    await c.execute(TELL, LISTED, "")
                    await self._remember(c, now, [(source, i, "", "listed again", "") for i in back])
            if window is not None and not part and not listing.rejected:
                # Else the row that nobody could read may be the one that is not seen. Before the new ones are there,
                # none of which is missing.
                gone = await c.fetch(MISSING, source, window.start, window.end, listed_ids, now)
                missing = [row[0] for row in gone]
            telling = _Telling(source, listing_key, now, window is not None, stores, digests or {}, known)
            async for ids, fresh, told_again, _ in telling.chunks(list(told.values())):
                new += len(ids) - len(told_again[0])
                await c.execute(TELL, LISTED, "")
                await _copy_in(c, "recordings", _RECORDING, fresh[0])
                await _copy_in(c, "media", _MEDIUM, fresh[1])
                if told_again[0]:
                    await c.execute(UPSERT_RECORDINGS, *_columns(told_again[0], len(_RECORDING)))
                    await c.execute(UPSERT_MEDIA, *_columns(told_again[1], len(_MEDIUM)))
                if retention is not None:
                    await c.execute(EXPIRES, source, retention, ids)
                changes = [i for i in ids if i in known and i not in back]
                changed += len(changes)
                await self._remember(c, now, [(source, i, "", "changed", "") for i in changes])
            if window is not None and not part:
                await c.execute(BY_WINDOW, source, [i for i in listed_ids if i not in told])
                await self._remember(c, now, [(source, i, "", "no longer listed", "") for i in missing])
                await c.execute(
                    ADD_LISTING, source, window.start, window.end, now, len(listed_ids), len(listing.rejected)
                )
            if listing.rejected:
                raws = [holdable(r.raw) for r in listing.rejected]
                await c.execute(
                    REJECT,
                    source,
                    *_unique_rejects(raws, [holdable(r.reason) for r in listing.rejected]),
                    window.start if window else None,
                    window.end if window else None,
                    now,
                )
            if cover and window is not None:
                await c.execute(ADD_COVERED, source, window.start, window.end)
            if cursor is not None:
                await c.execute(CURSOR, source, cursor)
        return Recorded(
            listed=0 if part else len(listed_ids),
            new=new,
            changed=changed,
            missing=len(missing),
            rejected=len(listing.rejected),
        )

    async def doubtful(self, source: str, before: datetime) -> list[datetime]:
        """Listing keys of media that were promised and are not there, too old for the lookback to list again."""
        async with self._connection() as c:
            return [row[0] for row in await c.fetch(DOUBTFUL, source, before)]

    async def revisits(self, source: str, retention: timedelta | None, limit: int = 24) -> list[Window]:
        """Windows to list again: so long after their first listing, and before the source's retention ends."""
        async with self._connection() as c:
            margin = min(timedelta(days=2), retention / 4) if retention is not None else None
            rows = await c.fetch(REVISITS, source, self.clock.now(), REVISIT_AFTER, retention, margin, limit)
        return [Window(row["start"], row["end"]) for row in rows]

    async def revisited(self, source: str, window: Window) -> None:
        """All of that window was listed again."""
        async with self._connection() as c:
            await c.execute(REVISITED, source, window.start, window.end, self.clock.now())

    async def expire_by(self, source: str, retention: timedelta | None) -> None:
        """The source's retention is that from now on."""
        async with self._transaction() as c:
            if await c.fetchval(EXPIRE_BY, source, retention):
                await c.execute(EXPIRES, source, retention, None)

    async def within(self, source: str, window: Window) -> list[Document]:
        """What the source's listing of a window should tell of: ids, starts, states, and since when it is missing."""
        async with self._connection() as c:
            rows = await c.fetch(WITHIN, source, window.start, window.end)
        return [
            {
                "recording_id": row["recording_id"],
                "started_at": utc_text(row["started_at"]),
                "state": overall(state for state in row["states"] if state is not None),
                "missing_since": utc_text(row["missing_since"]) if row["missing_since"] else None,
            }
            for row in rows
        ]

    async def kept(self, source: str, recording_ids: Sequence[str]) -> set[str]:
        """Those ids that the catalog holds."""
        async with self._connection() as c:
            return {row["recording_id"] for row in await c.fetch(KNOWN, source, list(recording_ids))}

    # -- what is wrong although nothing fails -------------------------------------------------------------------------

    async def expiring(self, source: str) -> list[tuple[datetime, int]]:
        """By hour in which the source deletes them, how many media are not archived."""
        async with self._connection() as c:
            return [(row["hour"], row["count"]) for row in await c.fetch(EXPIRING, source)]

    async def archived_since(self, source: str, stores: Sequence[str], since: datetime) -> tuple[int, datetime | None]:
        """How many media were archived since then, and when the first of them."""
        async with self._connection() as c:
            row = await c.fetchrow(ARCHIVED_SINCE, list(stores), source, since)
        return row["count"], row["first"]

    async def counts_in(self, source: str, windows: Sequence[Window]) -> list[int]:
        """How many recordings of a source lie in each window."""
        async with self._connection() as c:
            rows = await c.fetch(IN_WINDOWS, source, [w.start for w in windows], [w.end for w in windows])
        return [row[1] for row in rows]

    async def shrunk(self, source: str, since: datetime) -> tuple[int, int, datetime | None]:
        """Of a source's recordings since then: known, no longer listed, and since when the first of these."""
        async with self._connection() as c:
            row = await c.fetchrow(SHRUNK, source, since)
        return row["known"], row["missing"], row["since"]

    async def standing(self, source: str, since: datetime) -> tuple[int, datetime | None]:
        """How many media have been due since then or longer and nobody has them in hand; since when the first."""
        async with self._connection() as c:
            row = await c.fetchrow(STILL, self.clock.now(), source, since)
        return row["count"], row["since"]

    async def uncover(self, source: str, window: Window) -> None:
        """That window can't be listed (any more): it is a gap."""
        async with self._connection() as c:
            await c.execute(UNCOVER, source, window.start, window.end)

    async def lookups(self, source: str, limit: int) -> list[tuple[str, int]]:
        """Call ids that could not be looked up and are due again, and how often it was tried."""
        async with self._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(LOOKUPS, source, self.clock.now(), limit)]

    async def failed_lookups(self, source: str, call_ids: Sequence[str]) -> set[str]:
        """Those of these call ids that could not be looked up, due again or not."""
        async with self._connection() as c:
            rows = await c.fetch(FAILED_LOOKUPS, source, [holdable(call_id) for call_id in call_ids])
        return {row[0] for row in rows}

    async def lookup_trouble(self, source: str) -> tuple[int, str, str]:
        """How many call ids can't be looked up; one of them, and why."""
        async with self._connection() as c:
            row = await c.fetchrow(LOOKUP_TROUBLE, source)
        return (row["count"], row["call_id"], row["error"]) if row else (0, "", "")

    async def look_up_later(self, source: str, failed: Sequence[tuple[str, str]], due_at: datetime) -> None:
        """These call ids could not be looked up, for that reason: they are due again then."""
        reasons = {holdable(call_id): holdable(why)[:500] for call_id, why in failed}
        async with self._connection() as c:
            await c.execute(LOOK_UP_LATER, source, list(reasons), list(reasons.values()), due_at)

    async def looked_up(self, source: str, call_id: str) -> None:
        async with self._connection() as c:
            await c.execute(LOOKED_UP, source, holdable(call_id))

    async def polled(self, source: str, error: str | None) -> None:
        async with self._connection() as c:
            await c.execute(POLLED, source, self.clock.now(), holdable(error) if error else None)

    async def pause(self, source: str, until: datetime | None, why: str | None) -> None:
        """The source refuses our account: leave it alone until then (None: no longer)."""
        async with self._connection() as c:
            await c.execute(PAUSE, source, until, holdable(why) if why else None)

    async def call_ids(self, source: str, after: datetime, beyond: str, limit: int) -> list[tuple[str, datetime]]:
        """Call ids of another source in the order in which they became known or their calls last changed.

        One listing makes many known in the same moment: ``beyond`` is the last id of the moment ``after``.
        """
        async with self._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(CALL_IDS, source, after, beyond, limit)]

    async def tells_no_call_ids(self, source: str) -> bool:
        """Has it recordings, and not one of them a call id?"""
        async with self._connection() as c:
            return bool(await c.fetchval(TELLS_NO_CALL_IDS, source))

    # -- transfer ---------------------------------------------------------------------------------------------------

    async def due(self, sources: Sequence[str], in_hand: Collection[int] = ()) -> dict[str, datetime]:
        """By source, when its next medium is due (past or future) beside those claimed by the tokens ``in_hand``.

        A claim whose answer never came is not among these: its medium is due when the lease ends.
        """
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(DUE, self.clock.now(), list(sources), list(in_hand))}

    async def leased(self, sources: Sequence[str]) -> datetime | None:
        """Until when the last of what these sources' processes have in hand is theirs; None where that is nothing."""
        async with self._connection() as c:
            return cast("datetime | None", await c.fetchval(LEASED, self.clock.now(), list(sources)))

    @_repeated
    async def claim(
        self,
        wanted: Mapping[str, int],
        lease: timedelta,
        expiring: Collection[str] = (),
        *,
        newest: Collection[str] = (),
        troubled: Mapping[str, tuple[int, int]] | None = None,
    ) -> list[Claim]:
        """Lease so many due media of each source to this process; of ``expiring`` sources what they delete first.

        What failed before comes behind what never did: ``troubled`` says by source how many of those there may be at
        the most, and at the least although others wait (where they are due); None: as many as there is room for.
        ``newest``: sources whose queue is taken from its other end.
        """
        now = self.clock.now()
        self._claims = True
        async with self._transaction() as c:
            mine = now, now + lease, self.process

            async def take(statement: str, most: Mapping[str, int]) -> list[Any]:
                most = {name: count for name, count in most.items() if count > 0}
                return await c.fetch(statement, *mine, list(most), list(most.values())) if most else []

            def left(rows: Sequence[Any]) -> dict[str, int]:
                got = Counter(row["source"] for row in rows)
                return {name: count - got[name] for name, count in wanted.items()}

            other = {n: count for n, count in wanted.items() if n in newest}
            rows = await take(CLAIM_EXPIRING_NEWEST, {n: count for n, count in other.items() if n in expiring})
            rows += await take(CLAIM_NEWEST, {n: count for n, count in left(rows).items() if n in other})
            sampled = {row["token"] for row in rows}
            rows += await take(CLAIM_EXPIRING, {n: count for n, count in left(rows).items() if n in expiring})
            rows += await take(CLAIM, left(rows))
            behind = left(rows)
            for name, (most, least) in (troubled or {}).items():
                behind[name] = min(most, max(behind[name], least))
            rows += await take(CLAIM_TROUBLED, behind)
            partial = [row for row in rows if row["held"]]
            held = await self._copies(c, partial) if partial else {}
        claims = [_claim(row, held) for row in rows]
        return [replace(claim, newest=claim.token in sampled) for claim in claims] if sampled else claims

    @_repeated
    async def claim_one(self, source: str, recording_id: str, media_id: str, lease: timedelta) -> Claim | None:
        """Lease this medium, due or not, unless it is archived or another has it in hand."""
        now = self.clock.now()
        self._claims = True
        async with self._transaction() as c:
            row = await c.fetchrow(CLAIM_ONE, now, now + lease, self.process, source, recording_id, media_id)
            held = await self._copies(c, [row]) if row else {}
        return _claim(row, held) if row else None

    async def _copies(self, c: Any, rows: Sequence[Any]) -> dict[tuple[str, str, str], list[Copy]]:
        copies: dict[tuple[str, str, str], list[Copy]] = defaultdict(list)
        ids = dict.fromkeys((row["source"], row["recording_id"], row["media_id"]) for row in rows)
        for row in await c.fetch(COPIES_OF, *_columns(list(ids), 3)):
            copies[row["source"], row["recording_id"], row["media_id"]].append(_copy(row))
        return copies

    async def copies_of(self, source: str, recording_id: str, media_id: str) -> list[Copy]:
        """The copies of a medium, oldest first."""
        async with self._connection() as c:
            row = {"source": source, "recording_id": recording_id, "media_id": media_id}
            return (await self._copies(c, [row])).get((source, recording_id, media_id), [])

    async def medium(self, source: str, recording_id: str, media_id: str) -> Medium | None:
        """A medium with what is needed to fetch it again."""
        async with self._connection() as c:
            row = await c.fetchrow(MEDIUM, source, recording_id, media_id)
        return _medium(row) if row else None

    @_repeated
    async def renew(self, claims: Sequence[Claim], lease: timedelta) -> None:
        async with self._connection() as c:
            await c.execute(RENEW, *_claim_columns(claims), self.clock.now() + lease)

    @_repeated
    async def release(self, claims: Sequence[Claim]) -> None:
        """Give claims back untouched: due as they were."""
        async with self._connection() as c:
            await c.execute(RELEASE, *_claim_columns(claims))

    @_repeated
    async def settle(
        self,
        downloads: Sequence[Download],
        outcomes: Sequence[Outcome],
        *,
        revisions: Mapping[tuple[str, str], int],
        targets: Mapping[str, Sequence[str]],
    ) -> dict[int, State]:
        """Commit finished media in one transaction; by the claim's token the states that took effect.

        A claim that is no longer the row's is refused: its token is missing from the answer. ``revisions`` are those
        of the descriptions that the manifests hold; ``targets`` by source who wants to hear of what is archived.
        """
        now = self.clock.now()
        settled: dict[int, State] = {}
        async with self._transaction() as c:
            if downloads:
                downloads = sorted(downloads, key=lambda d: d.claim.id)
                rows = await c.fetch(SETTLE_ARCHIVED, *_download_columns(downloads, now))
                settled |= {row[0]: State(row[1]) for row in rows}
                await self._add_copies(c, [d for d in downloads if d.claim.token in settled], settled, revisions, now)
                # Their manifests are written and may sort last: what counts is described once more.
                lost = [d.claim for d in downloads if d.claim.token not in settled]
                if lost:
                    await c.execute(TOUCH_RECORDINGS, [x.source for x in lost], [x.medium.recording_id for x in lost])
            if outcomes:
                outcomes = sorted(outcomes, key=lambda o: o.claim.id)
                rows = await c.fetch(SETTLE_OTHERS, *_outcome_columns(outcomes, now))
                settled |= {row[0]: State(row[1]) for row in rows}
                kept = [o for o in outcomes if o.claim.token in settled]
                await self._remember(
                    c, now, [(*o.claim.id, o.what, o.error or "") for o in kept], [o.answer for o in kept]
                )
                ended = [o.claim for o in kept if o.state is not State.PENDING]
                await c.execute(TOUCH_RECORDINGS, [e.source for e in ended], [e.medium.recording_id for e in ended])
            claims = [d.claim for d in downloads] + [o.claim for o in outcomes]
            ended_ids = {x.id[:2] for x in claims if settled.get(x.token, State.PENDING) is not State.PENDING}
            hearers = [(target, *i) for i in sorted(ended_ids) for target in targets.get(i[0], ())]
            if hearers:
                await c.execute(OUTBOX_ADD, *([h[n] for h in hearers] for n in range(3)), now)
        return settled

    async def _add_copies(
        self,
        c: Any,
        downloads: Sequence[Download],
        settled: Mapping[int, State],
        revisions: Mapping[tuple[str, str], int],
        now: datetime,
    ) -> None:
        done = [d for d in downloads if settled[d.claim.token] is State.ARCHIVED]
        copies = [(copy, d.claim.id) for d in downloads for copy in d.copies]
        added = await self._insert_copies(c, copies)
        touched = sorted({d.claim.id[:2] for d in downloads})
        await self._described(c, {t: revisions.get(t, -1) for t in touched}, step=1)
        late = [d for d in downloads if settled[d.claim.token] is not State.ARCHIVED]
        await self._remember(c, now, [(*d.claim.id, "stored in part", d.error or "") for d in late])
        await self._add_totals(c, [*added, *((d.claim.source, "", d.size) for d in done)])

    async def _insert_copies(
        self, c: Any, copies: Sequence[tuple[Copy, tuple[str, str, str]]]
    ) -> list[tuple[str, str, int]]:
        """Copies, each with its medium's id; (source, store, size) of those that are new."""
        rows = await c.fetch(
            ADD_COPIES,
            [copy.store for copy, _ in copies],
            [copy.key for copy, _ in copies],
            *([identity[i] for _, identity in copies] for i in range(3)),
            [copy.size for copy, _ in copies],
            [copy.sha256 for copy, _ in copies],
            [copy.archived_at for copy, _ in copies],
        )
        return [(row[0], row[1], row[2]) for row in rows]

    async def _add_totals(self, c: Any, added: Sequence[tuple[str, str, int]]) -> None:
        """Late in a transaction: until its end nobody else's counts of the same source can enter."""
        sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for source, store, size in added:
            sums[source, store][0] += 1
            sums[source, store][1] += size
        if sums:
            await c.execute(
                ADD_TOTALS,
                [k[0] for k in sums],
                [k[1] for k in sums],
                [v[0] for v in sums.values()],
                [v[1] for v in sums.values()],
            )

    async def _described(self, c: Any, revisions: Mapping[tuple[str, str], int], *, step: int) -> int:
        keys = sorted(revisions)
        rows = await c.fetch(
            DESCRIBED, [k[0] for k in keys], [k[1] for k in keys], [revisions[k] for k in keys], [step] * len(keys)
        )
        return sum(row[0] for row in rows)

    @_repeated
    async def described(self, revisions: Mapping[tuple[str, str], int]) -> int:
        """Manifests now hold these revisions; of how many that is still the newest."""
        async with self._connection() as c:
            return await self._described(c, revisions, step=0)

    async def undescribed(
        self, sources: Sequence[str], limit: int, *, new_before: datetime | None = None
    ) -> list[tuple[str, str]]:
        """Recordings that no manifest describes as they are: changed ones, and new ones listed before that moment."""
        async with self._connection() as c:
            before = new_before or self.clock.now() + timedelta(days=1)
            return [(row[0], row[1]) for row in await c.fetch(UNDESCRIBED, list(sources), limit, before)]

    @_repeated
    async def revise(self, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """A new revision of each: who read an earlier one can't say any more that a manifest describes it.

        Returns those that manifests described as they are until now.
        """
        async with self._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(REVISE, [k[0] for k in keys], [k[1] for k in keys])]

    async def untold_ledgers(self, sources: Sequence[str]) -> list[Document]:
        """Ledgers that the stores were not told of yet, where every recording that they cover is described."""
        async with self._connection() as c:
            rows = await c.fetch(UNTOLD, list(sources))
        return [
            {
                "source": row["name"],
                "kind": row["kind"],
                "start": utc_text(row["start_at"]),
                "covered": [[utc_text(w.start), utc_text(w.end)] for w in _windows(row["covered"])],
                "cursor": row["cursor"],
                "origin": row["origin"],
                "account": row["account"],
            }
            for row in rows
        ]

    async def whole(self, source: str, stores: Sequence[str]) -> list[str]:
        """Those of these stores that every medium of the source is meant for."""
        async with self._connection() as c:
            return [row[0] for row in await c.fetch(WHOLE, source, list(stores))]

    @_repeated
    async def aim(self, source: str, stores: Sequence[str]) -> None:
        """The source's stores are these from now on, also for what was listed before and is not archived yet."""
        async with self._connection() as c:
            await c.execute(AIM, self.clock.now(), source, list(stores))

    async def untell(self, source: str) -> None:
        """The stores are to be told the source's ledger again."""
        async with self._connection() as c:
            await c.execute(UNTELL, source)

    async def told_ledger(self, ledger: Document) -> None:
        """The stores hold that ledger now."""
        async with self._connection() as c:
            await c.execute(TOLD, ledger["source"], _multirange(ledger["covered"]), ledger["cursor"])

    async def _remember(
        self,
        c: Any,
        now: datetime,
        events: Sequence[tuple[str, str, str, str, str]],
        answers: Sequence[str | None] | None = None,
    ) -> None:
        if events:
            columns = [[holdable(event[i])[: 500 if i > 2 else None] for event in events] for i in range(5)]
            await c.execute(HISTORY, *columns, answers or [None] * len(events), now)

    async def missing_since(self, source: str, recording_id: str) -> datetime | None:
        async with self._connection() as c:
            return cast("datetime | None", await c.fetchval(MISSING_SINCE, source, recording_id))

    # -- the outbox: who wants to hear that a recording is archived -------------------------------------------------

    async def outbox(self, target: str, lease: timedelta, limit: int) -> list[tuple[str, str, int]]:
        """Recordings to tell ``target`` about: (source, recording_id, attempts), leased."""
        now = self.clock.now()
        async with self._connection() as c:
            return [(r[0], r[1], r[2]) for r in await c.fetch(OUTBOX_DUE, target, now, now + lease, limit)]

    async def told(self, target: str, source: str, recording_id: str) -> None:
        async with self._connection() as c:
            await c.execute(OUTBOX_DONE, target, source, recording_id)

    async def tell_later(self, target: str, source: str, recording_id: str, due_at: datetime, error: str) -> None:
        async with self._connection() as c:
            await c.execute(OUTBOX_LATER, target, source, recording_id, due_at, holdable(error)[:500])

    # -- reading ----------------------------------------------------------------------------------------------------

    async def documents(
        self, keys: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[Document, int, list[str]]]:
        """By (source, recording_id) the recording's JSON, its revision, and the stores its media are meant for."""
        async with self._connection() as c:
            return await self._documents(c, keys)

    async def _documents(
        self, c: Any, keys: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[Document, int, list[str]]]:
        unique = dict.fromkeys((holdable(k[0]), holdable(k[1])) for k in keys)
        columns = [k[0] for k in unique], [k[1] for k in unique]
        # As of one moment: what is archived between two questions would be told without its copies.
        async with c.transaction(isolation="repeatable_read", readonly=True):
            recordings, of_copies, of_media = [
                await c.fetch(statement, *columns) for statement in (RECORDINGS_OF, COPIES_OF_RECORDINGS, MEDIA_OF)
            ]
        copies: dict[tuple[str, str, str], list[Document]] = defaultdict(list)
        for row in of_copies:
            copies[row["source"], row["recording_id"], row["media_id"]].append(copy_document(_copy(row)))
        media: dict[tuple[str, str], list[Document]] = defaultdict(list)
        stores: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in of_media:
            key = row["source"], row["recording_id"]
            media[key].append(_medium_document(row, copies[(*key, row["media_id"])]))
            stores[key].update(row["stores"])
        return {
            (r["source"], r["recording_id"]): (
                _document(r, media[r["source"], r["recording_id"]]),
                r["revision"],
                sorted(stores[r["source"], r["recording_id"]]),
            )
            for r in recordings
        }

    async def find(self, query: Query) -> AsyncIterator[Document]:
        """Recordings by start, oldest first; streamed in batches, so that the archive may be large."""
        where, values = _conditions(query)
        left = query.limit
        after: tuple[datetime, str, str] | None = None
        while left is None or left > 0:
            size = min(500, left) if left is not None else 500
            conditions, arguments = list(where), list(values)
            if after is not None:
                n = len(arguments)
                conditions.append(f"(r.started_at, r.source, r.recording_id) > (${n + 1}, ${n + 2}, ${n + 3})")
                arguments += after
            # Only column names of ours are put together here; every value is an argument.
            statement = (
                "SELECT r.started_at, r.source, r.recording_id FROM recordings r"
                + (" WHERE " + " AND ".join(conditions) if conditions else "")
                + f" ORDER BY r.started_at, r.source, r.recording_id LIMIT {size}"
            )
            async with self._connection() as c:
                rows = await c.fetch(statement, *arguments)
                found = await self._documents(c, [(r[1], r[2]) for r in rows])
            for row in rows:
                if (row[1], row[2]) in found:
                    yield found[row[1], row[2]][0]
            if len(rows) < size:
                return
            after = (rows[-1][0], rows[-1][1], rows[-1][2])
            left = left - len(rows) if left is not None else None

    async def history(self, source: str, recording_id: str) -> list[Document]:
        """What happened to a recording and its media, oldest first."""
        async with self._connection() as c:
            return [
                {
                    "media_id": row["media_id"] or None,
                    "what": row["what"],
                    "detail": row["detail"] or None,
                    "answer": row["answer"],
                    "first_at": utc_text(row["first_at"]),
                    "last_at": utc_text(row["last_at"]),
                    "times": row["times"],
                }
                for row in await c.fetch(HISTORY_OF, holdable(source), holdable(recording_id))
            ]

    async def listings(self, source: str, recording_id: str) -> tuple[datetime, datetime | None, list[Document]] | None:
        """When a recording was first listed and has been missing since, and the windows that should have seen it."""
        async with self._connection() as c:
            row = await c.fetchrow(
                "SELECT key_at, first_listed_at, missing_since FROM recordings WHERE source = $1 AND recording_id = $2",
                holdable(source),
                holdable(recording_id),
            )
            if row is None:
                return None
            windows = [
                {k: utc_text(v) if isinstance(v, datetime) else v for k, v in window.items()}
                for window in await c.fetch(LISTINGS_OF, source, row["key_at"])
            ]
        return row["first_listed_at"], row["missing_since"], windows

    async def happened(self, start: datetime, end: datetime) -> tuple[dict[str, Document], dict[str, Document]]:
        """By source, and by store, what came about in [start, end): counts and bytes."""
        async with self._connection() as c, c.transaction(isolation="repeatable_read", readonly=True):
            return await happenings.happened(c, start, end)

    async def around(
        self, source: str, at: datetime, near: timedelta, longest: timedelta, most: int
    ) -> tuple[list[Document], list[str], list[Document]]:
        """The windows that held a moment, the ids of calls near it, and rows of its listings that can't be read."""
        async with self._connection() as c:
            return await happenings.around(c, holdable(source), at, near, longest, most)

    async def counts(
        self, sources: Sequence[str] | None = None, within: Window | None = None
    ) -> dict[str, dict[str, tuple[int, datetime]]]:
        """By source and state (all but archived) how many media, and when the first is due.

        ``within`` needs exactly one source: only its recordings of that window count.
        """
        counted: dict[str, dict[str, tuple[int, datetime]]] = defaultdict(dict)
        async with self._connection() as c:
            if within is not None and sources is not None:
                for row in await c.fetch(COUNTS_WITHIN, sources[0], within.start, within.end):
                    counted[sources[0]][row["state"]] = (row["count"], row["due_at"])
            else:
                for row in await c.fetch(COUNTS, sources):
                    counted[row["source"]][row["state"]] = (row["count"], row["due_at"])
        return counted

    async def reasons(self, sources: Sequence[str] | None = None) -> list[Document]:
        """Why media are pending or failed: the commonest reasons first."""
        async with self._connection() as c:
            return [dict(row) for row in await c.fetch(REASONS, sources)]

    async def flagged(
        self, since: datetime, sources: Sequence[str] | None = None
    ) -> dict[tuple[str, str], tuple[int, int]]:
        """By source and flag how many media are kept as evidence, and how many of these were archived since then."""
        async with self._connection() as c:
            return _flagged(await c.fetch(FLAGGED, since, sources))

    async def waiting_for(self, stores: Sequence[str], limit: int = 5) -> dict[str, Document]:
        """By store what it did not take yet: how many media, the commonest reason, and some of them with theirs."""
        told: dict[str, Document] = {}
        async with self._connection() as c:
            for row in await c.fetch(WAITING_FOR, list(stores)):
                media = [dict(medium) for medium in await c.fetch(WAITING_FOR_IT, row["store"], limit)]
                told[row["store"]] = {"count": row["count"], "error": row["error"], "media": media}
        return told

    async def numbers(self, sources: Sequence[str], stores: Sequence[str]) -> Numbers:
        """All that watching needs, in one go."""
        async with self._connection() as c:
            ledgers = await c.fetch(SOURCES, list(sources))
            queue = await c.fetch(QUEUE, REASON_CLASSES)
            waiting = await c.fetch(WAITING, list(sources))
            totals = await c.fetch(TOTALS)
            rejected = await c.fetch(REJECTED_COUNTS)
            flagged = await c.fetch(FLAGGED, self.clock.now() - LATELY, list(sources))
            bad = await c.fetch(BAD)
            unverified = await c.fetch(UNVERIFIED, list(stores))
            lookups = await c.fetch(LOOKUPS_FAILING, list(sources))
        spoilt: Counter[str] = Counter()
        for row in bad:
            spoilt[row["store"]] += row["count"]
        return Numbers(
            at=self.clock.now(),
            sources={r["name"]: dict(r) | {"covered": _windows(r["covered"])} for r in ledgers},
            queue={(r["source"], r["state"], r["reason"]): (r["count"], r["failing_since"]) for r in queue},
            waiting={r["source"]: r["since"] for r in waiting},
            totals={(r["source"], r["store"]): (r["count"], r["bytes"]) for r in totals},
            rejected={r["source"]: (r["count"], r["last_at"]) for r in rejected},
            flagged=_flagged(flagged),
            bad=spoilt,
            unverified={r["store"]: r["since"] for r in unverified if r["since"] is not None},
            lookups={r["source"]: (r["count"], r["error"]) for r in lookups},
        )

    async def totals(self) -> dict[tuple[str, str], tuple[int, int]]:
        """By (source, store) copies and bytes; the store '' stands for archived media."""
        async with self._connection() as c:
            return {(r[0], r[1]): (r[2], r[3]) for r in await c.fetch(TOTALS)}

    async def rejected_counts(self) -> dict[str, int]:
        """By source how many rows of listings could not be read."""
        async with self._connection() as c:
            return {row["source"]: row["count"] for row in await c.fetch(REJECTED_COUNTS)}

    async def rejected(self, source: str, limit: int = 20) -> list[Document]:
        async with self._connection() as c:
            return [
                {
                    "raw": r["raw"],
                    "reason": r["reason"],
                    "first_at": utc_text(r["first_at"]),
                    "last_at": utc_text(r["last_at"]),
                    "times": r["times"],
                }
                for r in await c.fetch(REJECTED, source, limit)
            ]

    # -- copies into a store that came later ---------------------------------------------------------------------------

    async def lacking(
        self,
        store: str,
        source: str | None,
        started: tuple[datetime | None, datetime | None],
        after: tuple[str, str, str],
        limit: int,
    ) -> list[tuple[tuple[str, str, str], str, datetime, list[Copy]]]:
        """Media that are archived, but not in this store, by id from ``after`` on: id, SHA-256, start, copies.

        ``started``: half-open; None: any.
        """
        async with self._connection() as c:
            rows = await c.fetch(LACKING, store, source, *started, *after, limit)
            copies = await self._copies(c, rows) if rows else {}
        ids = [(r["source"], r["recording_id"], r["media_id"]) for r in rows]
        return [(i, r["sha256"], r["started_at"], copies.get(i, [])) for i, r in zip(ids, rows, strict=True)]

    @_repeated
    async def copied(
        self,
        store: str,
        copies: Sequence[tuple[Copy, tuple[str, str, str]]],
        *,
        meant: Sequence[str],
        revisions: Mapping[tuple[str, str], int],
    ) -> None:
        """The store holds these copies, and a manifest there tells so; ``meant``: the sources whose store it is.

        ``revisions``: of the descriptions that every store holds now.
        """
        async with self._transaction() as c:
            added = await self._insert_copies(c, copies)
            columns = [[identity[n] for _, identity in copies] for n in range(3)]
            await c.execute(HOLD, store, *columns, [copy.sha256 for copy, _ in copies], list(meant))
            touched = sorted({identity[:2] for _, identity in copies})
            await self._described(c, {t: revisions.get(t, -1) for t in touched}, step=1)
            await self._add_totals(c, added)

    @_repeated
    async def widen(self, source: str, store: str) -> None:
        """All that the store lacks of the source now is what is not archived: that is described there too."""
        async with self._connection() as c:
            await c.execute(WIDEN, self.clock.now(), source, store)

    # -- verify and rebuild --------------------------------------------------------------------------------------------

    async def stalest(
        self, store: str, source: str | None, before: datetime, after: tuple[datetime, str], limit: int
    ) -> list[tuple[tuple[str, str, str], Copy, datetime]]:
        """Copies of a store last read (or made) before a moment, and when; the longest ago first, from a place on."""
        async with self._connection() as c:
            return _looked_at(await c.fetch(STALEST, store, source, before, *after, limit))

    async def bad_ones(
        self, store: str, before: datetime, limit: int
    ) -> list[tuple[tuple[str, str, str], Copy, datetime]]:
        """Copies known to be bad that were last read before a moment, and when; the longest ago first."""
        async with self._connection() as c:
            return _looked_at(await c.fetch(BAD_ONES, store, before, limit))

    async def uncoded(self, ids: Sequence[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
        """Those media of which it is not known how their samples are coded: earlier versions did not ask."""
        async with self._connection() as c:
            return {(row[0], row[1], row[2]) for row in await c.fetch(UNCODED, *_columns(list(ids), 3))}

    async def newest_copies(self, store: str, count: int) -> list[str]:
        """Keys of the copies that were read or made last, and are not known to be bad."""
        async with self._connection() as c:
            return [row[0] for row in await c.fetch(NEWEST_COPIES, store, count)]

    async def set_aside(self, store: str, keys: Sequence[str]) -> None:
        """These copies can't be read now, and nothing is wrong with them: they are looked at again after all others."""
        async with self._connection() as c:
            await c.execute(SET_ASIDE, store, list(keys), self.clock.now())

    async def repaired(self, store: str, keys: Sequence[str]) -> dict[str, datetime]:
        """When each of these copies was last put right, where that ever was."""
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(REPAIRED, store, list(keys))}

    @_repeated
    async def described_again(self, store: str, keys: Sequence[str], problem: str, at: datetime) -> None:
        """Of these copies that are there no manifest told; one does since then."""
        async with self._transaction() as c:
            await c.execute(FOUND, store, list(keys), [problem] * len(keys), at)
            await c.execute(RIGHT_AGAIN, store, list(keys), ["a new manifest"] * len(keys), at)

    async def read_since(self, store: str, moment: datetime) -> int:
        """Bytes of the copies that were read back since then."""
        async with self._connection() as c:
            return int(await c.fetchval(READ_SINCE, store, moment))

    @_repeated
    async def verified(self, store: str, readings: Sequence[Reading], seconds: float) -> None:
        """What reading copies of a store back found, and how long it took."""
        now = self.clock.now()
        async with self._transaction() as c:
            await c.execute(
                VERIFIED,
                [store] * len(readings),
                [r.copy.key for r in readings],
                [now if r.right else None for r in readings],
                [None if r.right else _text(r.problem) for r in readings],
                now,
            )
            coded = [(*r.identity, r.copy.sha256, r.coding) for r in readings if r.coding is not None]
            if coded:
                await c.execute(CODED, *_columns(sorted(coded), 5))
            wrong = [r for r in readings if r.problem is not None]
            right = [r for r in readings if r.right]
            if wrong:
                await c.execute(FOUND, store, [r.copy.key for r in wrong], [_text(r.problem) for r in wrong], now)
            by = [r.mended_by or "found right when read again" for r in right]
            await c.execute(RIGHT_AGAIN, store, [r.copy.key for r in right], by, now)
            odd = [
                (
                    *r.identity,
                    f"copy repaired from {r.mended_by}" if r.mended_by else "copy bad",
                    f"store {store}: {r.problem}",
                )
                for r in wrong
            ]
            await self._remember(c, now, odd)
            counts = len(readings), sum(r.copy.size for r in readings), seconds, len(wrong)
            await c.execute(ADD_VERIFICATION, store, now, *counts, sum(r.right for r in wrong))

    async def verify_ended(self, store: str, error: str | None) -> None:
        """Why a store could not be read on, if so."""
        async with self._connection() as c:
            await c.execute(VERIFY_ERROR, store, self.clock.now(), _text(error))

    async def verification(self, store: str) -> tuple[int, int, float]:
        """What was read of a store today (UTC): copies, bytes, seconds."""
        async with self._connection() as c:
            row = await c.fetchrow(VERIFICATION, store, self.clock.now())
        return (row["read"], row["bytes"], row["seconds"]) if row else (0, 0, 0.0)

    async def verify_state(self, store: str, overdue: datetime, since: datetime, limit: int = 5) -> Document:
        """How far reading back has come, and what it found wrong: unrepaired, or since then."""
        async with self._connection() as c:
            oldest = await c.fetchval(OLDEST, store)
            late = await c.fetchrow(OVERDUE, store, overdue)
            today = await c.fetchrow(VERIFICATION, store, self.clock.now())
            found = await c.fetchrow(FINDINGS_COUNT, store, since)
            rows = await c.fetch(FINDINGS, store, since, limit)
        return {
            "oldest_read_at": utc_text(oldest) if oldest else None,
            "overdue": late[0],
            "overdue_bytes": late[1],
            "read_today": today["read"] if today else 0,
            "bytes_today": today["bytes"] if today else 0,
            "error": today["error"] if today else None,
            "found": found["found"],
            "repaired": found["repaired"],
            "findings": [{n: row[n] for n in ("source", "recording_id", "media_id")} | _finding(row) for row in rows],
        }

    async def findings_of(self, source: str, recording_id: str) -> list[Document]:
        """What was ever wrong with a recording's copies."""
        async with self._connection() as c:
            rows = await c.fetch(FINDINGS_OF, holdable(source), holdable(recording_id))
        return [{"media_id": row["media_id"], "store": row["store"]} | _finding(row) for row in rows]

    async def untold_verified(self, sources: Sequence[str], limit: int) -> list[tuple[str, str, str, datetime]]:
        """Verified copies that the stores were not told of yet: (source, store, key, verified at), in that order."""
        async with self._connection() as c:
            return [(r[0], r[1], r[2], r[3]) for r in await c.fetch(UNTOLD_VERIFIED, list(sources), limit)]

    @_repeated
    async def told_verified(self, copies: Sequence[tuple[str, str, str, datetime]]) -> None:
        """The stores hold these now."""
        async with self._connection() as c:
            await c.execute(TOLD_VERIFIED, [k[1] for k in copies], [k[2] for k in copies], [k[3] for k in copies])

    async def bad_copies(self) -> dict[tuple[str, str], int]:
        """By (source, store) how many copies are known to be bad."""
        async with self._connection() as c:
            return {(r["source"], r["store"]): r["count"] for r in await c.fetch(BAD)}

    async def is_empty(self) -> bool:
        async with self._connection() as c:
            return bool(await c.fetchval(IS_EMPTY))

    async def rebuild_ledger(self, ledger: Document) -> None:
        async with self._connection() as c:
            await c.execute(
                REBUILD_SOURCE,
                ledger["source"],
                ledger["kind"],
                _moment(ledger["start"]),
                _multirange(ledger["covered"]),
                ledger["cursor"],
                ledger.get("origin"),
                ledger.get("account"),
            )

    async def rebuilding(self) -> RebuildProgress | None:
        """How far a rebuild has come that was begun and not ended."""
        async with self._connection() as c:
            row = await c.fetchrow(REBUILDING)
        return RebuildProgress(**dict(row)) if row else None

    @_repeated
    async def rebuild(self, retold: Retold, progress: RebuildProgress) -> RebuildProgress:
        """Recordings as manifests told them and (in the same transaction) how far it has come.

        Returns the progress with those counted that were not known before.
        """
        async with self._transaction() as c:
            known: set[tuple[str, str]] = set()
            for name, (kind, first) in retold.sources.items():
                await c.execute(REBUILD_KIND, name, kind, _moment(first))
                ids = [recording_id for source, recording_id in retold.told if source == name]
                known |= {(name, row[0]) for row in await c.fetch(EXISTING, name, ids)}
            copied, again = retold.copied, retold.rows(())
            if known:
                copied, again = await asyncio.to_thread(retold.apart, known)
            await _copy_in(c, "recordings", _REBUILT_RECORDING, copied[0])
            await _copy_in(c, "media", _REBUILT_MEDIUM, copied[1])
            await c.execute(REBUILD_RECORDINGS, *_columns(list(again[0]), len(_REBUILT_RECORDING)))
            await c.execute(REBUILD_MEDIA, *_columns(list(again[1]), len(_REBUILT_MEDIUM)))
            try:
                async with c.transaction():
                    await _copy_in(c, "copies", _REBUILT_COPY, copied[2])
            except asyncpg.UniqueViolationError:
                # A copy of that name is there, of another recording.
                again = retold.rows(retold.told.values())
            await c.execute(REBUILD_COPIES, *_columns(list(again[2]), len(_REBUILT_COPY)))
            new = len(retold.told) - len(known)
            progress = replace(progress, recordings=progress.recordings + new)
            await c.execute(REBUILT_SO_FAR, *(getattr(progress, name) for name in RebuildProgress.__slots__))
        return progress

    async def rebuild_verified(self, store: str, keys: Sequence[str], moment: datetime) -> None:
        """These copies were verified then."""
        async with self._connection() as c:
            await c.execute(NOTED, store, list(keys), moment)

    async def rebuilt(self) -> None:
        """The last step: sums, and what must be listed again."""
        async with self._transaction() as c:
            await c.execute(REBUILD_TOTALS)
            await c.execute(UNCOVER_UNFINISHED)
            await c.execute("DELETE FROM rebuilding")

    @asynccontextmanager
    async def drill(self, store: str, sample: int | None) -> AsyncIterator[Drill | None]:
        """A scratch catalog beside this one, and which of its recordings a rebuild from a store must give again.

        ``sample``: so many of them, by chance; None: all. It is gone afterwards. None where another drill runs.
        """
        async with self.only_one("drill") as mine:
            if not mine:
                yield None
                return
            schema = f"archiver_drill_{uuid4().hex[:12]}"
            chance = f" ORDER BY random() LIMIT {int(sample)}" if sample is not None else ""
            async with self._transaction() as c:
                # A killed one's remains.
                for row in await c.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'archiver\\_drill\\_%'"):
                    await c.execute(f"DROP SCHEMA {row[0]} CASCADE")
                await c.execute(f"CREATE SCHEMA {schema}")
                await c.execute(DRILLED.format(schema=schema) + chance, store, timeout=3600)
                left_out = {row[0]: row[1] for row in await c.fetch(DRILL_LEFT, store, timeout=3600)}
                await c.execute(f"CREATE UNIQUE INDEX ON {schema}.drilled (source, recording_id)", timeout=3600)
            scratch = await Catalog.open(self._url, clock=self.clock, size=2, schema=schema)
            try:
                await scratch.migrate()
                yield Drill(self, scratch, schema, left_out, sampled=sample is not None)
            finally:
                await scratch.close()
                async with self._connection() as c:
                    await c.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE", timeout=600)

    async def unknown_keys(self, store: str, keys: Sequence[str]) -> list[str]:
        """Those keys of a store that belong to no copy."""
        async with self._connection() as c:
            known = {row[0] for row in await c.fetch(KNOWN_KEYS, store, [holdable(key) for key in keys])}
        return [key for key in keys if key not in known]

    @_repeated
    async def retry(self, source: str | None, state: State) -> int:
        """Make media of that state due again now; how many."""
        now = self.clock.now()
        async with self._transaction() as c:
            rows = await c.fetch(RETRY, source, state.value, now)
            await self._remember(c, now, [(r[0], r[1], r[2], "asked for again", f"was {state.value}") for r in rows])
        return len(rows)

    @_repeated
    async def forgive(self, ids: Iterable[tuple[str, str, str]], what: str, due_at: datetime) -> None:
        """Make those of the media due then that failed for that reason, though not one of them was to blame."""
        async with self._connection() as c:
            await c.execute(FORGIVE, *_columns(list(ids), 3), f"{what}: %", due_at)

    async def delivered(self, source: str) -> bool:
        """Was any medium of this source ever archived?"""
        async with self._connection() as c:
            return bool(await c.fetchval(DELIVERED, source))

    # -- to whom belongs what is known -----------------------------------------------------------------------------

    async def stranded(self, stores: Sequence[str]) -> tuple[int, list[str]]:
        """Of how many archived media no copy lies in these stores, and in which other ones they lie."""
        async with self._connection() as c:
            # `status` stays quick: all media are looked at only where something lies elsewhere.
            if not await c.fetchval(ELSEWHERE, list(stores)):
                return 0, []
            row = await c.fetchrow(STRANDED, list(stores), timeout=600)
            return row["count"], sorted(filter(None, row["stores"]))

    async def kept_elsewhere(self, known: Collection[str], keys: Sequence[str]) -> dict[str, str]:
        """By key, where it is that of a copy in a store that is none of the known ones, the name of that store."""
        stores = sorted({store for _, store in await self.totals()} - {"", *known})
        if not stores:
            return {}
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(KEPT_IN, stores, [holdable(key) for key in keys])}

    async def some_copies(self, store: str) -> dict[str, int]:
        """By key the sizes of a few of the store's copies."""
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(SOME_COPIES, store)}

    async def other_ids(self, source: str, since: datetime) -> tuple[int, int]:
        """Recordings since then that are no longer listed, and how many of them came back with another id."""
        async with self._connection() as c:
            row = await c.fetchrow(OTHER_IDS, source, since)
            return row["missing"], row["again"]

    async def recordings_of(self, source: str) -> int:
        async with self._connection() as c:
            return int(await c.fetchval("SELECT count(*) FROM recordings WHERE source = $1", source, timeout=600))

    @_repeated
    async def rename_store(self, old: str, new: str) -> None:
        """What is held, or meant to be held, in one store is in the other; every recording of it is to be told anew."""
        async with self._transaction() as c:
            for statement in RENAME_STORE:
                await c.execute(statement, old, new, timeout=7200)

    @_repeated
    async def rename_source(self, old: str, new: str) -> None:
        """All of a source is another's, of which no recording is known; every one of them is to be told anew."""
        async with self._transaction() as c:
            for statement in RENAME_SOURCE:
                await c.execute(statement, old, new, timeout=7200)

    @_repeated
    async def bind(self, source: str, kind: str, origin: str, account: str | None) -> None:
        """What was listed of the source so far was listed from there."""
        async with self._connection() as c:
            await c.execute(BIND, source, kind, origin, account)

    async def adopt(self, source: str, kind: str, origin: str, account: str | None, *, start: datetime | None) -> None:
        """A source of which nothing is known yet is bound before its first poll."""
        default = self.clock.now() - timedelta(hours=24)
        await self.source(source, kind, default_start=default, start=start, origin=origin, account=account)

    @_repeated
    async def replaced(self, source: str, kind: str, origin: str, account: str | None) -> int:
        """Another recorder is there: nothing of it is listed yet. How many media of the old one were never archived.

        They are gone, with REPLACED_WHY as reason; what is archived stays.
        """
        now = self.clock.now()
        async with self._transaction() as c:
            for statement in REPLACED:
                await c.execute(statement, source, timeout=3600)
            lost = await c.fetch(LOST_WITH_IT, source, REPLACED_WHY, timeout=3600)
            await self._remember(c, now, [(*row, "gone", REPLACED_WHY) for row in lost])
            await c.execute(BIND, source, kind, origin, account)
        return len(lost)

    @_repeated
    async def set_former_aside(self, source: str, told: Sequence[Recording]) -> list[str]:
        """Recordings of an earlier recorder whose ids other calls have now get another id; which ones."""
        now = self.clock.now()
        columns = [
            list(column)
            for column in zip(*((r.recording_id, r.started_at, r.caller, r.callee) for r in told), strict=True)
        ]
        async with self._transaction() as c:
            rows = await c.fetch(FORMER, source, *columns)
            found = [row["recording_id"] for row in rows if not row["same"]]
            for recording_id in found:
                for statement in SET_RECORDING_ASIDE:
                    await c.execute(statement, source, recording_id, f"{recording_id}~{now:%Y%m%dT%H%M%S}")
            if same := [row["recording_id"] for row in rows if row["same"]]:
                for statement in STILL_THERE:
                    await c.execute(statement, source, same, now)
        return found

    async def marker(self, store: str) -> str | None:
        """The id of the folder that the store is."""
        async with self._connection() as c:
            return cast("str | None", await c.fetchval(MARKER, store))

    async def mark(self, store: str, marker: str) -> None:
        async with self._connection() as c:
            await c.execute(MARK, store, marker)

    async def holds(self, store: str) -> bool:
        """Is any copy known there?"""
        async with self._connection() as c:
            return bool(await c.fetchval(HOLDS, store))


class Drill:
    """A rebuild tried out in a schema of its own, to be compared with the live catalog."""

    def __init__(
        self, live: Catalog, scratch: Catalog, schema: str, left_out: Mapping[str, int], *, sampled: bool
    ) -> None:
        self.live = live
        self.scratch = scratch
        self.sampled = sampled
        #: How many recordings no store could tell, by reason.
        self.left_out = dict(left_out)
        self._schema = schema

    async def wanted(self, told: Sequence[manifests.Recording]) -> Sequence[manifests.Recording]:
        """Those that the sample holds."""
        if not self.sampled:
            return told
        async with self.scratch._connection() as c:
            columns = [r.source for r in told], [r.recording_id for r in told]
            wanted = {(row[0], row[1]) for row in await c.fetch(DRILL_WANTED, *columns)}
        return [r for r in told if (r.source, r.recording_id) in wanted]

    async def keys(self, after: tuple[str, str], limit: int) -> list[tuple[str, str, bool]]:
        """What must be there again, from a place on; False where it changed meanwhile."""
        async with self.live._connection() as c:
            rows = await c.fetch(DRILL_KEYS.format(schema=self._schema), *after, limit)
        return [(row[0], row[1], row[2]) for row in rows]

    async def unknown(self, limit: int) -> list[tuple[str, str]]:
        """Recordings that the store tells of and the live catalog does not know."""
        async with self.live._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(DRILL_UNKNOWN.format(schema=self._schema), limit)]


# -- rows to nouns and back ----------------------------------------------------------------------------------------


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, text) of each file of sql/, in order."""
    folder = resources.files("archiver") / "sql"
    files: Iterable[Any] = folder.iterdir() if folder.is_dir() else (Path(__file__).parents[2] / "sql").iterdir()
    return sorted((int(f.name[:4]), f.name, f.read_text("utf-8")) for f in files if f.name.endswith(".sql"))


@functools.cache
def newest() -> int:
    """The schema's version that this program knows."""
    return migrations()[-1][0]


@functools.cache
def tables() -> list[str]:
    """Names of all tables and sequences that the files of sql/ make and leave."""
    text = "\n".join(text for _, _, text in migrations())
    made = re.findall(r"(?m)^CREATE (?:UNLOGGED )?(?:TABLE|SEQUENCE) (?:IF NOT EXISTS )?(\w+)", text)
    return sorted({*made} - {*re.findall(r"(?m)^DROP (?:TABLE|SEQUENCE) (?:IF EXISTS )?(\w+)", text)})


def statements() -> dict[str, str]:
    """Every statement that can be prepared as it stands, by its name here."""
    prepared = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
    named = {name: value for name, value in globals().items() if name.isupper()}
    found = {name: value for name, value in named.items() if isinstance(value, str)}
    for name, several in named.items():
        if isinstance(several, tuple) and all(isinstance(one, str) for one in several):
            found |= {f"{name}_{number}": one for number, one in enumerate(several)}
    # Parts of others begin with _, and a drill's tables are there while it runs only.
    return {n: s for n, s in found.items() if not n.startswith(("_", "DRILL")) and prepared.match(s)}


async def _nothing(_: Any) -> None:
    """Nothing here outlasts its transaction, so a connection needs no query more before its next user."""


def _keep_alive(connection: Any) -> None:
    """Have the kernel ask whether the other host is still there, as the server does of us."""
    found = connection._transport.get_extra_info("socket")
    # Not of a Unix socket, nor on every system.
    with contextlib.suppress(OSError, AttributeError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, option in (("idle", "TCP_KEEPIDLE"), ("interval", "TCP_KEEPINTVL"), ("count", "TCP_KEEPCNT")):
            value = int(KEEPALIVES[f"tcp_keepalives_{name}"])
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _ahead(row: Any) -> timedelta | None:
    """How far the clock was ahead, where it was."""
    back: timedelta | None = row["back"]
    if back is None or back < AHEAD_BY:
        return None
    if back > timedelta(days=1) and row["lasted"] > back / 2:
        # All those days went by one after the other: it is the clock of now that is wrong.
        log.error(
            "clock.behind", seconds=round(back.total_seconds()), error="set the clock of the database's host right"
        )
        return None
    return back


async def _version(connection: Any) -> int:
    if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
        return 0
    return int(await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version"))


def other_version(version: int) -> CatalogMisfit:
    """What to raise where the schema is not the one that this program knows."""
    told = f"the database has schema {version}, and this version knows {newest()}"
    if version > newest():
        return CatalogMisfit(
            f"{told} at most",
            "run the newer version, or make the catalog again (`archiver rebuild`, into an empty database)",
        )
    return CatalogMisfit(told, "stop older daemons, then `archiver migrate` (`run` and `sync` do it themselves)")


def _target(url: str) -> libpq.Target:
    try:
        return libpq.read(url)
    except ValueError as error:
        raise CatalogRefused(f"[database] url: {error}", "mend [database] url, then `archiver check`") from None


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@asynccontextmanager
async def _telling(tell: Callable[[str, float], None] | None, name: str) -> AsyncIterator[None]:
    async def forever() -> None:
        began = time.monotonic()
        while tell is not None:
            await asyncio.sleep(PROGRESS)
            tell(name, time.monotonic() - began)

    telling = asyncio.create_task(forever())
    try:
        yield
    finally:
        telling.cancel()


def _dump(value: Any) -> str:
    return value if isinstance(value, Encoded) else json.dumps(value, ensure_ascii=False, default=str)


class Encoded(str):
    """JSON text that is encoded already."""

    __slots__ = ()


_WRITER = Writer(ensure_ascii=False, allow_nan=False)
#: The same, and faster, for what is flat.
_FLAT_WRITER = msgspec.json.Encoder()
_NOTHING, _NONE = Encoded("{}"), Encoded("[]")


def _json(value: Any) -> Encoded:
    """Not in ASCII: ``raw`` is kept, and searched, as it is written here."""
    if not value and isinstance(value, (dict, list, Mapping)):
        return _NONE if isinstance(value, list) else _NOTHING
    try:
        if is_flat(value):
            text = _FLAT_WRITER.encode(value).decode()
        else:
            text = _WRITER.encode(dict(value) if isinstance(value, Mapping) else value)
    except ValueError:
        text = "\0"
    if "\\u0000" in text or holdable(text) != text:
        text = json.dumps(holdable_tree(value), default=str, separators=(",", ":"), ensure_ascii=False)
    return Encoded(text)


def _looked_at(rows: Sequence[Any]) -> list[tuple[tuple[str, str, str], Copy, datetime]]:
    return [((r["source"], r["recording_id"], r["media_id"]), _copy(r), r["looked_at"]) for r in rows]


def _finding(row: Any) -> Document:
    return {
        "key": row["key"],
        "problem": row["problem"],
        "first_at": utc_text(row["first_at"]),
        "last_at": utc_text(row["last_at"]),
        "times": row["times"],
        "repaired_at": utc_text(row["repaired_at"]) if row["repaired_at"] else None,
        "repaired_by": row["repaired_by"],
    }


def _text(value: str | None) -> str | None:
    return holdable(value) if value is not None else None


#: Beside what PostgreSQL itself says (sqlstates.py): what its driver says where a connection died.
_LOST = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError)

#: How a message begins.
_WORDS: dict[type[CatalogDown], str] = {
    CatalogBusy: "the database has nothing left for archiver",
    CatalogDamaged: "the database is damaged, or its disk is",
    CatalogDown: "the database can't be reached",
    CatalogForbidden: "the role of [database] url lacks rights",
    CatalogFull: "the disk of the database is full",
    CatalogMisfit: "the tables of the database are not as this version needs them",
    CatalogPooled: "a pooler stands before the database, and does not keep a session together",
    CatalogReadOnly: "the database can only be read",
    CatalogRefused: "the database refuses [database] url",
}


def _flagged(rows: Sequence[Any]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(row["source"], row["flag"]): (row["count"], row["lately"]) for row in rows}


def _windows(multirange: Any) -> tuple[Window, ...]:
    return tuple(Window(r.lower, r.upper) for r in multirange or () if r.lower is not None and r.upper is not None)


def _ledger(row: Any) -> Ledger:
    return Ledger(
        start_at=row["start_at"],
        covered=_windows(row["covered"]),
        cursor=row["cursor"],
        paused_until=row["paused_until"],
        paused_why=row["paused_why"],
    )


def _multirange(spans: Sequence[Sequence[str]]) -> list[Any]:
    return [asyncpg.Range(_moment(start), _moment(end)) for start, end in spans]


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _flags(started_at: datetime, soon: datetime) -> str:
    return "{ancient}" if started_at < ANCIENT else "{future}" if started_at > soon else "{}"


_Row = tuple[Any, ...]
#: Ids, what is to be copied in of recordings and of media, the rows of those that are told again, bytes of raw.
_Chunk = tuple[list[str], list[bytes], list[list[_Row]], int]

_RECORDING = [
    "source",
    "recording_id",
    "key_at",
    "started_at",
    "ended_at",
    "duration",
    "call_id",
    "direction",
    "caller",
    "callee",
    "agent",
    "queue",
    "parties",
    "events",
    "attributes",
    "raw",
    "flags",
    "digest",
    "first_listed_at",
    "by_window",
]
_MEDIUM = [
    "source",
    "recording_id",
    "media_id",
    "state",
    "due_at",
    "error",
    "told_size",
    "told_sha256",
    "told_duration",
    "told_type",
    "opaque",
    "urgent",
    "ref",
    "stores",
]
_RAW = _RECORDING.index("raw")
_REBUILT_RECORDING = [*_RECORDING[:-1], "missing_since", "undescribed", "handle", "salt"]
_REBUILT_MEDIUM = [
    "source",
    "recording_id",
    "media_id",
    "state",
    "due_at",
    "attempts",
    "error",
    "stores",
    "held",
    "size",
    "sha256",
    "content_type",
    "duration",
    "coding",
    "flags",
    "note",
    "archived_at",
]
_REBUILT_COPY = [
    "source",
    "recording_id",
    "media_id",
    "store",
    "key",
    "size",
    "sha256",
    "archived_at",
    "verified_at",
    "read_at",
]


def _copied(rows: Iterable[_Row]) -> bytes:
    """Rows as COPY reads them: https://www.postgresql.org/docs/current/sql-copy.html – "Text Format"."""
    # No text here holds a NUL (see holdable), and so one can stand for what separates until the rest is escaped.
    text = "\0r".join(["\0f".join(["\0n" if value is None else value for value in row]) for row in rows]).encode()
    for told, written in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n"), (b"\r", b"\\r")):
        if told in text:
            text = text.replace(told, written)
    return text.replace(b"\0f", b"\t").replace(b"\0r", b"\n").replace(b"\0n", b"\\N")


async def _copy_in(c: Any, table: str, columns: Sequence[str], copied: bytes) -> None:
    """Rows that are not there yet, for half of what INSERT costs. Raises UniqueViolationError where one is."""

    async def whole() -> AsyncIterator[bytes]:
        # In one piece: for each, the loop would wait for the interpreter while a thread makes the next rows.
        yield copied

    if copied:
        await c.copy_to_table(table, columns=columns, source=whole())


@functools.lru_cache(1024)
def _array(*texts: str) -> str:
    return "{" + ",".join(['"' + t.replace("\\", "\\\\").replace('"', '\\"') + '"' for t in texts]) + "}"


def _interval(duration: timedelta | None) -> str | None:
    if duration is None:
        return None
    return f"{duration.days} days {duration.seconds} seconds {duration.microseconds} microseconds"


_TOLD_STATE = {
    Availability.READY: (State.PENDING, None),
    Availability.NOT_READY: (State.PENDING, "not ready: the source says so"),
    Availability.DELETED: (State.GONE, "the source says that it was deleted"),
    Availability.EMPTY: (State.EMPTY, "the source holds no audio for it"),
}


@dataclass(frozen=True, slots=True)
class _Telling:
    """What a source told, as rows of texts that PostgreSQL reads."""

    source: str
    key: ListingKey
    now: datetime
    by_window: bool
    stores: Sequence[str]
    digests: Mapping[str, bytes]
    #: Ids that the catalog holds.
    known: Collection[str]

    async def chunks(self, news: Sequence[Recording]) -> AsyncIterator[_Chunk]:
        """Of recordings and of their media, some at a time.

        Off the loop where there are many, and the next ones while PostgreSQL works on these.
        """
        if len(news) <= FEW:
            if news:
                yield self._chunk(news)
            return
        start, end = 0, FEW
        making = asyncio.create_task(asyncio.to_thread(self._chunk, news[start:end]))
        try:
            while start < len(news):
                made = await making
                # As long as what the last ones were lets expect.
                start, end = end, end + min(ROWS, 1 + ROWS_BYTES * len(made[0]) // (made[3] + 1))
                if start < len(news):
                    making = asyncio.create_task(asyncio.to_thread(self._chunk, news[start:end]))
                yield made
        finally:
            making.cancel()

    def _chunk(self, news: Sequence[Recording]) -> _Chunk:
        media = {(holdable(r.recording_id), holdable(m.media_id)): (r, m) for r in news for m in r.media}
        told = self._recordings(news), self._media(media.values())
        fresh = [_copied([row for row in rows if row[1] not in self.known]) for rows in told]
        again = [[row for row in rows if row[1] in self.known] for rows in told] if self.known else [[], []]
        return [row[1] for row in told[0]], fresh, again, sum(len(row[_RAW]) for row in told[0])

    def _recordings(self, news: Sequence[Recording]) -> list[_Row]:
        now, soon = self.now.isoformat(), self.now + timedelta(hours=1)
        by_window = "t" if self.by_window else "f"
        return [
            (
                self.source,
                holdable(r.recording_id),
                (key := r.key(self.key).isoformat()),
                r.started_at.isoformat() if self.key is ListingKey.END else key,
                r.ended_at.isoformat() if r.ended_at is not None else None,
                _interval(r.duration),
                _text(r.call_id),
                r.direction.value,
                _text(r.caller),
                _text(r.callee),
                _text(r.agent),
                _text(r.queue),
                _json([{"number": p.number, "name": p.name, "user": p.user, "role": p.role} for p in r.parties]),
                _json([{"at": utc_text(e.at), "event": e.event, "party": e.party} for e in r.events]),
                _json(r.attributes),
                _json(r.raw),
                _flags(r.started_at, soon),
                "\\x" + (self.digests.get(r.recording_id) or r.digest()).hex(),
                now,
                by_window,
            )
            for r in news
        ]

    def _media(self, media: Iterable[tuple[Recording, Medium]]) -> list[_Row]:
        rows: list[_Row] = []
        stores = _array(*self.stores)
        for recording, medium in media:
            state, error = _TOLD_STATE[medium.availability]
            later = timedelta(minutes=1) if medium.availability is Availability.NOT_READY else timedelta()
            sooner = timedelta(days=3650) if medium.urgent else timedelta()
            rows.append(
                (
                    self.source,
                    holdable(recording.recording_id),
                    holdable(medium.media_id),
                    state.value,
                    (self.now + later - sooner).isoformat(),
                    error,
                    str(medium.size) if medium.size is not None else None,
                    _text(medium.sha256),
                    _interval(medium.duration),
                    _text(medium.content_type),
                    "t" if medium.opaque else "f",
                    "t" if medium.urgent else "f",
                    _json(medium.ref),
                    stores,
                )
            )
        return rows


class Retold:
    """What manifests told, as COPY reads it. Blocking where there is much.

    Of a recording, and of a copy, that is told twice the last telling counts.
    """

    def __init__(self, told: Iterable[manifests.Recording], keys: Mapping[str, ListingKey], now: datetime) -> None:
        self.told: dict[tuple[str, str], manifests.Recording] = {}
        for r in told:
            if r.handle is None and (earlier := self.told.get((r.source, r.recording_id))) is not None:
                # An earlier version wrote this line: what has a handle keeps it.
                r.handle, r.salt = earlier.handle, earlier.salt
            self.told[r.source, r.recording_id] = r
        #: By source its kind and the first call that is told of it.
        self.sources: dict[str, tuple[str, str]] = {}
        self._by_end = {name for name, key in keys.items() if key is ListingKey.END}
        self._now = now.isoformat()
        for r in self.told.values():
            _, first = self.sources.get(r.source, ("", self._now))
            at = self._key_at(r)
            self.sources[r.source] = r.kind, (min(first, at) if at >= _ANCIENT else first)
        self.copied = [_copied(rows) for rows in self.rows(self.told.values())]

    def apart(self, known: Collection[tuple[str, str]]) -> tuple[list[bytes], list[Iterable[_Row]]]:
        """What is to be copied in without these recordings; and the rows of these."""
        fresh = self.rows([r for key, r in self.told.items() if key not in known])
        return [_copied(rows) for rows in fresh], self.rows([r for key, r in self.told.items() if key in known])

    def rows(self, of: Collection[manifests.Recording]) -> list[Iterable[_Row]]:
        """Of recordings, of media, of copies, each made when it is asked for."""
        copies = {(c.store, c.key): (r, m, c) for r in of for m in r.media for c in m.copies}
        return [
            (_retold_recording(r, self._key_at(r), self._now) for r in of),
            (_retold_medium(r, m, self._now) for r in of for m in r.media),
            (_retold_copy(*one) for one in copies.values()),
        ]

    def _key_at(self, r: manifests.Recording) -> str:
        return (r.ended_at or r.started_at) if r.source in self._by_end else r.started_at


_ANCIENT = ANCIENT.isoformat()


def _retold_recording(r: manifests.Recording, key_at: str, now: str) -> _Row:
    return (
        r.source,
        r.recording_id,
        key_at,
        r.started_at,
        r.ended_at,
        _lasting(r.duration),
        r.call_id,
        r.direction,
        r.caller,
        r.callee,
        r.agent,
        r.queue,
        str(r.parties, "utf-8"),
        str(r.events, "utf-8"),
        str(r.attributes, "utf-8"),
        str(r.raw, "utf-8"),
        _array(*r.flags),
        "\\x00",
        now,
        r.missing_since,
        "f",
        _bytea(r.handle),
        _bytea(r.salt),
    )


def _bytea(digits: str | None) -> str | None:
    """Hexadecimal digits as PostgreSQL reads bytes."""
    return None if digits is None else "\\x" + digits


def _retold_medium(r: manifests.Recording, m: manifests.Medium, now: str) -> _Row:
    of_now = [c for c in m.copies if c.sha256 == m.sha256]
    held = sorted({c.store for c in of_now})
    archived = m.state == State.ARCHIVED.value
    stores = m.stores or held
    if archived and not set(stores) <= set(held):
        stores = held
    return (
        r.source,
        r.recording_id,
        m.media_id,
        m.state,
        now,
        str(m.attempts),
        m.error,
        _array(*dict.fromkeys([*stores, *(() if archived else held)])),
        _array(*held),
        str(m.size) if m.size is not None else None,
        m.sha256,
        m.content_type,
        _lasting(m.duration),
        m.coding,
        _array(*m.flags),
        m.note,
        max(c.archived_at for c in of_now) if archived else None,
    )


def _retold_copy(r: manifests.Recording, m: manifests.Medium, c: manifests.Copy) -> _Row:
    times = c.archived_at, c.verified_at, c.verified_at
    return r.source, r.recording_id, m.media_id, c.store, c.key, str(c.size), c.sha256, *times


def _lasting(seconds: float | None) -> str | None:
    return _interval(timedelta(seconds=seconds)) if seconds is not None else None


def _unique_rejects(raws: Sequence[str], reasons: Sequence[str]) -> tuple[list[bytes], list[str], list[str]]:
    unique = {
        hashlib.blake2b(raw.encode(), digest_size=16).digest(): (raw, reason)
        for raw, reason in zip(raws, reasons, strict=True)
    }
    return list(unique), [v[0] for v in unique.values()], [v[1] for v in unique.values()]


def _claim(row: Any, held: Mapping[tuple[str, str, str], Sequence[Copy]]) -> Claim:
    medium = _medium(row)
    copies = held.get((row["source"], row["recording_id"], row["media_id"]), ())
    return Claim(
        source=row["source"],
        medium=medium,
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        token=row["token"],
        attempts=row["attempts"],
        failing_since=row["failing_since"],
        error=row["error"],
        troubled=row["troubled"],
        seen_sha256=row["seen_sha256"],
        seen_at=row["seen_at"],
        stores=tuple(row["stores"]),
        copies=tuple(c for c in copies if c.sha256 == row["sha256"] and c.store in row["held"]),
    )


def _medium(row: Any) -> Medium:
    return Medium(
        recording_id=row["recording_id"],
        media_id=row["media_id"],
        size=row["told_size"],
        sha256=row["told_sha256"],
        duration=row["told_duration"],
        content_type=row["told_type"],
        opaque=row["opaque"],
        urgent=row["urgent"],
        ref=row["ref"],
    )


def _copy(row: Any) -> Copy:
    return Copy(
        store=row["store"],
        key=row["key"],
        size=row["size"],
        sha256=row["sha256"],
        archived_at=row["archived_at"],
        verified_at=row["verified_at"],
    )


def _claim_columns(claims: Sequence[Claim]) -> list[list[Any]]:
    return [
        [c.source for c in claims],
        [c.medium.recording_id for c in claims],
        [c.medium.media_id for c in claims],
        [c.token for c in claims],
    ]


def _download_columns(downloads: Sequence[Download], now: datetime) -> list[Any]:
    held = [",".join(sorted({c.store for c in d.copies})) for d in downloads]
    return [
        *_claim_columns([d.claim for d in downloads]),
        [d.size for d in downloads],
        [d.sha256 for d in downloads],
        [d.content_type for d in downloads],
        [d.duration for d in downloads],
        held,
        now,
        [d.due_at or now for d in downloads],
        [_text(d.error) for d in downloads],
        [d.coding for d in downloads],
        [",".join(d.flags) for d in downloads],
        [_text(d.note) for d in downloads],
    ]


def _outcome_columns(outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    return [
        *_claim_columns([o.claim for o in outcomes]),
        [o.state.value for o in outcomes],
        [o.due_at for o in outcomes],
        [_text(o.error) for o in outcomes],
        [o.attempts for o in outcomes],
        [o.failing_since for o in outcomes],
        [o.troubled for o in outcomes],
        [o.seen for o in outcomes],
        [",".join(o.flags) for o in outcomes],
        [_text(o.note) for o in outcomes],
        now,
    ]


_FINISHED = {state: rank for rank, state in enumerate(State)}


def overall(states: Iterable[str]) -> str:
    """A recording's state: that of its least finished medium; without media there is nothing to get."""
    return min((State(s) for s in states), key=_FINISHED.__getitem__, default=State.EMPTY).value


def copy_document(copy: Copy) -> Document:
    return {
        "store": copy.store,
        "key": copy.key,
        "archived_at": utc_text(copy.archived_at),
        "verified_at": utc_text(copy.verified_at) if copy.verified_at else None,
        "size": copy.size,
        "sha256": copy.sha256,
    }


def _medium_document(row: Any, copies: list[Document]) -> Document:
    return {
        "media_id": row["media_id"],
        "state": row["state"],
        "content_type": row["content_type"] or row["told_type"],
        "size": row["size"],
        "sha256": row["sha256"],
        "duration": _seconds(row["duration"]),
        "coding": row["coding"],
        "flags": list(row["flags"]),
        "note": row["note"],
        "attempts": row["attempts"],
        "error": row["error"],
        "stores": list(row["stores"]),
        "copies": copies,
    }


def _document(row: Any, media: list[Document]) -> Document:
    return {
        "source": row["source"],
        "kind": row["kind"],
        "recording_id": row["recording_id"],
        "call_id": row["call_id"],
        "state": overall(m["state"] for m in media),
        "started_at": utc_text(row["started_at"]),
        "ended_at": utc_text(row["ended_at"]) if row["ended_at"] else None,
        "duration": _seconds(row["duration"]),
        "direction": row["direction"],
        "caller": row["caller"],
        "callee": row["callee"],
        "agent": row["agent"],
        "queue": row["queue"],
        "parties": row["parties"],
        "events": row["events"],
        "attributes": row["attributes"],
        "flags": list(row["flags"]),
        "missing_since": utc_text(row["missing_since"]) if row["missing_since"] else None,
        "handle": row["handle"].hex() if row["handle"] is not None else None,
        "salt": row["salt"].hex() if row["salt"] is not None else None,
        "media": media,
        "raw": row["raw"],
    }


def _seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None


def with_results(document: Document, downloads: Sequence[Download]) -> Document:
    """The document as it will be once these downloads are committed."""
    done = {d.claim.medium.media_id: d for d in downloads}
    media = []
    for medium in document["media"]:
        download = done.get(medium["media_id"])
        if download is None:
            media.append(medium)
            continue
        known = {(c["store"], c["key"]) for c in medium["copies"]}
        copies = medium["copies"] + [copy_document(c) for c in download.copies if (c.store, c.key) not in known]
        # As COPIES_OF_RECORDINGS has them.
        copies.sort(key=lambda c: (datetime.fromisoformat(c["archived_at"]), c["store"]))
        whole = {c.store for c in download.copies} >= set(download.claim.stores)
        if medium["state"] == State.ARCHIVED.value and not whole:
            # It comes too late: another has archived it meanwhile, and less than that is not to be told.
            media.append(medium | {"copies": copies})
            continue
        media.append(
            medium
            | {
                "state": State.ARCHIVED.value if whole else medium["state"],
                "content_type": download.content_type,
                "size": download.size,
                "sha256": download.sha256,
                "duration": _seconds(download.duration),
                "coding": download.coding,
                "flags": [flag.value for flag in download.flags],
                "note": _text(download.note),
                "attempts": medium["attempts"] + 1,
                "error": download.error,
                "copies": copies,
            }
        )
    return document | {"media": media, "state": overall(m["state"] for m in media)}


def _conditions(query: Query) -> tuple[list[str], list[Any]]:
    values: list[Any] = []

    def value(given: Any) -> str:
        values.append(holdable(given) if isinstance(given, str) else given)
        return f"${len(values)}"

    where = []
    compared = {
        "source =": query.source,
        "direction =": query.direction,
        "started_at >=": query.start,
        "started_at <": query.end,
        "duration >": query.longer_than,
    }
    for condition, given in compared.items():
        if given is not None:
            where.append(f"r.{condition} {value(given)}")
    for column, given in (("caller", query.caller), ("callee", query.callee)):
        if given is not None:
            where.append(f"r.{column} LIKE {value(like(given))}")
    if query.state is not None:
        n = value(query.state)
        less = [s.value for s in State if _FINISHED[s] < _FINISHED[State(query.state)]]
        of = "SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id"
        none = f" OR NOT EXISTS ({of})" if query.state == State.EMPTY else ""
        where.append(f"(EXISTS ({of} AND m.state = {n}){none})")
        if less:
            where.append(f"NOT EXISTS ({of} AND m.state = ANY({value(less)}))")
    if query.text is not None:
        n = value("%" + like(query.text, wild=False) + "%")
        columns = "r.recording_id", "r.call_id", "r.caller", "r.callee", "r.agent", "r.queue", "r.raw::text"
        where.append("(" + " OR ".join(f"{c} ILIKE {n}" for c in (*columns, "r.attributes::text")) + ")")
    if query.flag is not None:
        flagged = f"SELECT source, recording_id FROM media WHERE flags <> '{{}}' AND {value(query.flag)} = ANY(flags)"
        where.append(f"(r.source, r.recording_id) IN ({flagged})")
    return where, values


def like(pattern: str, *, wild: bool = True) -> str:
    """A LIKE pattern: ``*`` is the wildcard, everything else stands for itself."""
    escaped = holdable(pattern).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%") if wild else escaped
