"""Search in a large archive, as a page asks for it; and what filling it costs whoever lists.

The calls are made up in the database, and the tables of the search filled there as the archiver fills them: one call
at a time would take hours.
"""

from __future__ import annotations

import statistics

from .cases import Result, step
from .lab import Place

#: 20 sources, 3,000 agents, 40 queues, a customer's number 20 times, 200 numbers of the house; once among all calls
#: a source and an agent that have 20 calls. Text: 25 of 5,000 words, some more frequent, and one that occurs once.
_CALLS = """
SET synchronous_commit = off;
SET maintenance_work_mem = '512MB';
ALTER TABLE recordings DISABLE TRIGGER USER;
INSERT INTO sources (name, kind, start_at) SELECT 's' || n, 'chronicall', '2020-01-01' FROM generate_series(0, 20) n;
INSERT INTO recordings (source, recording_id, key_at, started_at, ended_at, duration, direction, caller, callee, agent,
    queue, parties, raw, digest, undescribed, first_listed_at, by_window)
SELECT CASE WHEN rare THEN 's20' ELSE 's' || n %% 20 END, md5(n::text), at, at, at + interval '1 minute',
    interval '1 minute', 'inbound', number, house, agent, 'Queue ' || n %% 40,
    jsonb_build_array(jsonb_build_object('number', number, 'role', 'caller'),
        jsonb_build_object('number', house, 'role', 'callee'),
        jsonb_build_object('number', extension, 'name', agent, 'role', 'agent')),
    json_build_object('id', md5(n::text), 'note', (
        SELECT string_agg('word' || (5000 * power(((n * 48271 + k * 69621) %% 65537) / 65537.0, 3))::int, ' ')
        FROM generate_series(1, 25) k) || ' needle' || n),
    '\\x00', false, at, true
FROM (SELECT n, n %% (%(count)d / 20) = 7 AS rare,
        timestamptz '2015-01-01' + n * 3650.0 / %(count)d * interval '1 day' AS at,
        '+49' || lpad((n * 7919 %% (%(count)d / 20) * 104729 %% 10000000000)::text, 10, '0') AS number,
        '+4930901' || lpad((n %% 200)::text, 3, '0') AS house,
        CASE WHEN n %% (%(count)d / 20) = 7 THEN 'Rare Bird (9999)' ELSE 'Agent ' || n %% 3000 END AS agent,
        CASE WHEN n %% (%(count)d / 20) = 7 THEN '9999' ELSE (n %% 3000 + 2000)::text END AS extension
    FROM generate_series(1::bigint, %(count)d) n) t;
"""
_INDEX = """
SET synchronous_commit = off;
SET maintenance_work_mem = '512MB';
ALTER TABLE search_calls DROP CONSTRAINT search_calls_source_recording_id_key;
DROP INDEX search_calls_by_source, search_calls_by_words;
ALTER TABLE search_postings DROP CONSTRAINT search_postings_pkey;
CREATE TEMP TABLE named AS SELECT r.source, r.recording_id, n.kind, n.value FROM recordings r CROSS JOIN LATERAL (
    VALUES ('number', reverse(substr(caller, 2))), ('number', reverse(substr(callee, 2))), ('agent', lower(agent)),
        ('number', reverse(parties->2->>'number')), ('agent', parties->2->>'number'), ('queue', lower(queue))
    ) AS n (kind, value);
INSERT INTO search_names (kind, value) SELECT DISTINCT kind, value FROM named;
ANALYZE search_names;
INSERT INTO search_calls (source, recording_id, started_at, names, words)
SELECT r.source, r.recording_id, r.started_at, n.names, search_words_of(r)
FROM recordings r JOIN (
    SELECT source, recording_id, array_agg(name ORDER BY name) AS names FROM named JOIN search_names USING (kind, value)
    GROUP BY 1, 2) n USING (source, recording_id) ORDER BY r.started_at;
DROP TABLE named;
INSERT INTO search_postings SELECT DISTINCT n, started_at, call FROM search_calls, unnest(names) n ORDER BY 1, 2, 3;
ALTER TABLE search_postings ADD PRIMARY KEY (name, started_at, call);
ALTER TABLE search_calls ADD UNIQUE (source, recording_id);
CREATE INDEX search_calls_by_source ON search_calls (source, started_at) INCLUDE (call);
CREATE INDEX search_calls_by_words ON search_calls USING gin (words) WITH (gin_pending_list_limit = 512);
ALTER TABLE recordings ENABLE TRIGGER USER;
"""
#: Milliseconds.
_MUST = {
    "text that occurs once": 100,
    "text that occurs nowhere": 100,
    "a word that is frequent": 100,
    "number by its last digits": 100,
    "rare agent": 50,
    "frequent agent": 50,
    "newest of everything": 50,
    "newest of one source": 50,
    "newest of a rare source": 50,
    "newest of a scope of 300 agents": 50,
}


def search(place: Place, count: int) -> list[Result]:
    """The 95th percentile of a page of 50, without a span."""
    folder = place.work()
    place.nginx.recorder("none", 0, 0)
    url = place.config(folder, "none", "file")
    for statement in (_CALLS % {"count": count}, _INDEX, "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"):
        place.database.execute(statement, url)
    found, timing = step(folder, "search", str(count))
    bytes_ = place.database.value(
        "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE relname LIKE 'search\\_%' AND relkind = 'r'",
        url,
    )
    filled = step(folder, "search_filled", "20000")[0]
    told = f"{count:,} recordings, {bytes_ / count:,.0f} bytes each for the search"
    place.database.drop(url)
    return [
        Result(f"search, {name}: ms", must, found[name], "", told, rss=timing.rss, ceiling=True)
        for name, must in _MUST.items()
    ] + [
        Result("search, calls/s taken in", 200, filled["rate"], "", f"beside {count:,}"),
    ]


def discovery_beside(place: Place, rows: int) -> Result:
    """Listing while the search is being filled, as the daemon does it, ÷ listing without a search."""
    place.nginx.recorder("many", rows, 0)
    ratios = []
    for _ in range(place.runs):
        rates = []
        for on in ("on", "off"):
            folder = place.work()
            url = place.config(folder, "many", "file")
            found = step(folder, "discovery_beside", on)[0]
            rates.append(found["rows"] / found["seconds"])
            place.database.drop(url)
            place.database.execute("CHECKPOINT")
        ratios.append(rates[0] / rates[1])
    spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
    return Result("discovery, search on ÷ off", 0.85, statistics.median(ratios), spread, f"{rows:,} in one window")
