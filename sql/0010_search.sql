-- Search: what calls are found by, filled behind discovery (archiver/catalog/searching.py). Expendable.

-- Each number, agent and queue once.
CREATE TABLE search_names (
    name  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- number: its digits from the last to the first, so that those with the same last digits are neighbours; party: a
    -- number without digits, as it is; agent, queue: in lower case
    kind  text NOT NULL COLLATE "C" CHECK (kind IN ('number', 'party', 'agent', 'queue')),
    value text NOT NULL COLLATE "C",
    UNIQUE (kind, value)
);

-- A call as it is found.
CREATE TABLE search_calls (
    call         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source       text NOT NULL,
    recording_id text NOT NULL,
    started_at   timestamptz NOT NULL,
    names        integer[] NOT NULL,
    words        tsvector NOT NULL,
    UNIQUE (source, recording_id)
);
-- No index of the starts alone: for a source with few calls it would be walked to its end.
CREATE INDEX search_calls_by_source ON search_calls (source, started_at) INCLUDE (call);
-- What waits outside of the index is read with each search: little.
CREATE INDEX search_calls_by_words ON search_calls USING gin (words) WITH (gin_pending_list_limit = 512);

-- The calls of a name in order of time: the newest of a rare one are found as fast as those of a common one.
CREATE TABLE search_postings (
    name       integer NOT NULL,
    started_at timestamptz NOT NULL,
    call       bigint NOT NULL,
    PRIMARY KEY (name, started_at, call)
);

-- Recordings that are new or have changed and are not found by that yet. No cursor: it would pass over what was
-- committed late.
CREATE TABLE search_pending (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text NOT NULL,
    ids    text[] NOT NULL
);

-- Names of recordings that were deleted; they go with their last call.
CREATE TABLE search_orphans (
    name integer NOT NULL
);

-- What was there before these tables is filled in from the newest to the oldest: all that began before this moment is
-- still to do. Without a row: nothing.
CREATE TABLE search_backlog (
    before timestamptz NOT NULL
);
INSERT INTO search_backlog SELECT 'infinity' WHERE EXISTS (SELECT FROM recordings);

-- The words of a text, of letters and digits alone. The parser is to see no addresses, fractions or signs.
CREATE FUNCTION search_words(told text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT strip(to_tsvector('pg_catalog.simple',
        translate(told, '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32))))
$$;

-- What a text with all of these words matches; a * at an end stands for any end of the words before it.
CREATE FUNCTION search_query(told text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT string_agg('''' || word || '''' || CASE WHEN part LIKE '%*' THEN ':*' ELSE '' END, ' & ')::tsquery
    FROM regexp_split_to_table(told, '\s+') AS part
    CROSS JOIN LATERAL unnest(tsvector_to_array(search_words(part))) AS word
$$;

-- The words of a recording: 16,000 characters of what is told of it, without what JSON escapes.
CREATE FUNCTION search_words_of(r recordings) RETURNS tsvector LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT search_words(replace(replace(replace(replace(left(
        concat_ws(' ', r.recording_id, r.call_id, r.caller, r.callee, r.agent, r.queue, r.attributes, r.raw), 16000),
        '\\', ' '), '\n', ' '), '\r', ' '), '\t', ' '))
$$;

CREATE FUNCTION search_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO search_pending (source, ids)
    SELECT source, array_agg(recording_id)
    FROM (SELECT source, recording_id, (row_number() OVER () - 1) / 1000 AS part FROM added) AS parts
    GROUP BY source, part;
    RETURN NULL;
END $$;
CREATE TRIGGER search_added AFTER INSERT ON recordings REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION search_added();

CREATE FUNCTION search_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO search_pending (source, ids) VALUES (NEW.source, ARRAY[NEW.recording_id]);
    RETURN NULL;
END $$;
CREATE TRIGGER search_changed
    AFTER UPDATE OF started_at, call_id, caller, callee, agent, queue, parties, attributes, raw ON recordings
    FOR EACH ROW EXECUTE FUNCTION search_changed();

-- What waits for a renamed source is renamed by who renames it.
CREATE FUNCTION search_renamed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE search_calls SET source = NEW.source, recording_id = NEW.recording_id
    WHERE source = OLD.source AND recording_id = OLD.recording_id;
    IF NEW.recording_id <> OLD.recording_id THEN
        INSERT INTO search_pending (source, ids) VALUES (NEW.source, ARRAY[NEW.recording_id]);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER search_renamed AFTER UPDATE OF source, recording_id ON recordings
    FOR EACH ROW WHEN ((OLD.source, OLD.recording_id) IS DISTINCT FROM (NEW.source, NEW.recording_id))
    EXECUTE FUNCTION search_renamed();

CREATE FUNCTION search_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (
        DELETE FROM search_calls c USING deleted d WHERE c.source = d.source AND c.recording_id = d.recording_id
        RETURNING c.call, c.started_at, c.names),
    names AS (SELECT g.call, g.started_at, n.name FROM gone g CROSS JOIN LATERAL unnest(g.names) AS n (name)),
    orphans AS (INSERT INTO search_orphans SELECT DISTINCT name FROM names)
    DELETE FROM search_postings p USING names n
    WHERE p.name = n.name AND p.started_at = n.started_at AND p.call = n.call;
    RETURN NULL;
END $$;
CREATE TRIGGER search_deleted AFTER DELETE ON recordings REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION search_deleted();
