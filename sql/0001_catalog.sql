-- The catalog: what was listed, what is due, what is held where. Expendable: `archiver rebuild` makes it again from a store.
-- Plain SQL for PostgreSQL 14 and later; psql can run it. Times are UTC; "told" columns hold what the source says.

CREATE TABLE sources (
    name            text PRIMARY KEY,
    kind            text NOT NULL,
    start_at        timestamptz NOT NULL,
    -- The ledger: the union of all windows that were listed to their natural end.
    covered         tstzmultirange NOT NULL DEFAULT '{}',
    cursor          text,
    -- The ledger and cursor that the stores were last told of.
    told            text,
    polled_at       timestamptz,
    poll_error      text,
    paused_until    timestamptz,
    paused_why      text,
    -- When the next request may start, over all hosts (sources with a rate).
    next_request_at timestamptz NOT NULL DEFAULT '-infinity',
    CHECK ((paused_until IS NULL) = (paused_why IS NULL))
);

-- Which windows were listed when, for `why`; a window that lies in a later, longer one is replaced by it.
CREATE TABLE listings (
    source   text NOT NULL REFERENCES sources (name) ON DELETE CASCADE,
    span     tstzrange NOT NULL,
    first_at timestamptz NOT NULL,
    last_at  timestamptz NOT NULL,
    times    integer NOT NULL DEFAULT 1,
    listed   integer NOT NULL,
    rejected integer NOT NULL DEFAULT 0,
    PRIMARY KEY (source, span)
);

CREATE TABLE recordings (
    source          text NOT NULL REFERENCES sources (name),
    recording_id    text NOT NULL CHECK (recording_id <> ''),
    -- The moment by which the source's listings find it: its start or its end.
    key_at          timestamptz NOT NULL,
    started_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    duration        interval,
    call_id         text,
    direction       text NOT NULL CHECK (direction IN ('inbound', 'outbound', 'internal', 'unknown')),
    caller          text,
    callee          text,
    agent           text,
    queue           text,
    parties         jsonb NOT NULL DEFAULT '[]',
    events          jsonb NOT NULL DEFAULT '[]',
    attributes      jsonb NOT NULL DEFAULT '{}',
    raw             json NOT NULL DEFAULT '{}',
    -- Oddities kept and shown: future, ancient.
    flags           text[] NOT NULL DEFAULT '{}',
    digest          bytea NOT NULL,
    revision        integer NOT NULL DEFAULT 1,
    -- New, or changed since a manifest last described it.
    undescribed     boolean NOT NULL DEFAULT true,
    first_listed_at timestamptz NOT NULL,
    -- Found by a window's listing (and not only by a cursor or a call id): a later one without it says something.
    by_window       boolean NOT NULL DEFAULT false,
    missing_since   timestamptz,
    PRIMARY KEY (source, recording_id)
);
CREATE INDEX recordings_by_key ON recordings (source, key_at);
CREATE INDEX recordings_by_start ON recordings (started_at, source, recording_id);
CREATE INDEX recordings_by_call ON recordings (call_id) WHERE call_id IS NOT NULL;
CREATE INDEX recordings_undescribed ON recordings (source) WHERE undescribed;

CREATE SEQUENCE claims;

CREATE TABLE media (
    source        text NOT NULL,
    recording_id  text NOT NULL,
    media_id      text NOT NULL CHECK (media_id <> ''),
    state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'archived', 'failed', 'gone', 'empty')),
    -- When to try next; while claimed, when the lease ends.
    due_at        timestamptz NOT NULL,
    -- The fencing token of the running claim.
    claim         bigint,
    attempts      integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    error         text,
    told_size     bigint CHECK (told_size >= 0),
    told_sha256   text,
    told_duration interval,
    told_type     text,
    opaque        boolean NOT NULL DEFAULT false,
    urgent        boolean NOT NULL DEFAULT false,
    ref           jsonb NOT NULL DEFAULT '{}',
    -- The stores it is meant for, and those that hold it.
    stores        text[] NOT NULL CHECK (cardinality(stores) > 0),
    held          text[] NOT NULL DEFAULT '{}',
    size          bigint CHECK (size >= 0),
    sha256        text CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    content_type  text,
    duration      interval,
    archived_at   timestamptz,
    PRIMARY KEY (source, recording_id, media_id),
    FOREIGN KEY (source, recording_id) REFERENCES recordings ON DELETE CASCADE,
    CHECK ((state = 'archived')
           = (size IS NOT NULL AND sha256 IS NOT NULL AND archived_at IS NOT NULL AND stores <@ held)),
    CHECK (state = 'pending' OR claim IS NULL)
);
CREATE INDEX media_due ON media (source, due_at) WHERE state = 'pending';
CREATE INDEX media_unfinished ON media (source, state) WHERE state <> 'archived';

CREATE TABLE copies (
    store        text NOT NULL,
    key          text NOT NULL,
    source       text NOT NULL,
    recording_id text NOT NULL,
    media_id     text NOT NULL,
    size         bigint NOT NULL CHECK (size >= 0),
    sha256       text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    archived_at  timestamptz NOT NULL,
    -- When the bytes were last read back and found right; what is wrong with them since, if anything.
    verified_at  timestamptz,
    bad          text,
    PRIMARY KEY (store, key),
    FOREIGN KEY (source, recording_id, media_id) REFERENCES media ON DELETE CASCADE
);
CREATE INDEX copies_by_medium ON copies (source, recording_id, media_id);
CREATE INDEX copies_by_age ON copies (store, (coalesce(verified_at, archived_at)), key);
CREATE INDEX copies_bad ON copies (store) WHERE bad IS NOT NULL;

-- What happened to a medium, one row for each different thing; the same thing again only counts.
CREATE TABLE history (
    source       text NOT NULL,
    recording_id text NOT NULL,
    media_id     text NOT NULL DEFAULT '',
    what         text NOT NULL,
    detail       text NOT NULL DEFAULT '',
    first_at     timestamptz NOT NULL,
    last_at      timestamptz NOT NULL,
    times        integer NOT NULL DEFAULT 1,
    PRIMARY KEY (source, recording_id, media_id, what, detail)
);

-- Rows of listings that could not be read, as they came.
CREATE TABLE rejected (
    source   text NOT NULL REFERENCES sources (name) ON DELETE CASCADE,
    digest   bytea NOT NULL,
    raw      text NOT NULL,
    reason   text NOT NULL,
    span     tstzrange,
    first_at timestamptz NOT NULL,
    last_at  timestamptz NOT NULL,
    times    integer NOT NULL DEFAULT 1,
    PRIMARY KEY (source, digest)
);

-- Each process's share of a source's concurrency, leased.
CREATE TABLE shares (
    source  text NOT NULL,
    process uuid NOT NULL,
    slots   integer NOT NULL CHECK (slots >= 0),
    until   timestamptz NOT NULL,
    PRIMARY KEY (source, process)
);

-- Who still wants to hear that a recording is archived.
CREATE TABLE outbox (
    target       text NOT NULL,
    source       text NOT NULL,
    recording_id text NOT NULL,
    due_at       timestamptz NOT NULL,
    attempts     integer NOT NULL DEFAULT 0,
    error        text,
    PRIMARY KEY (target, source, recording_id)
);
CREATE INDEX outbox_due ON outbox (target, due_at);

-- Sums kept with each commit, so that `status` stays quick: per source and store ('' counts media, not copies).
CREATE TABLE totals (
    source text NOT NULL,
    store  text NOT NULL,
    count  bigint NOT NULL DEFAULT 0,
    bytes  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (source, store)
);
