-- Verification as a job of the daemon, retention of sources, and claims that end with the process that holds them.

-- How long the source keeps its recordings, as the config says.
ALTER TABLE sources ADD COLUMN retention interval;
-- When the next listing may begin, over all hosts (recorders that want a pause between two).
ALTER TABLE sources ADD COLUMN next_listing_at timestamptz NOT NULL DEFAULT '-infinity';

-- The process that has the running claim.
ALTER TABLE media ADD COLUMN holder uuid;
-- When the source deletes it, where its retention is known.
ALTER TABLE media ADD COLUMN expires_at timestamptz;
CREATE INDEX media_expiring ON media (source, (NOT urgent), expires_at) WHERE state = 'pending' AND expires_at IS NOT NULL;

-- When a copy was last read back, whatever came of it; and whether the stores are yet to hear of verified_at.
ALTER TABLE copies ADD COLUMN read_at timestamptz, ADD COLUMN untold boolean NOT NULL DEFAULT false;
UPDATE copies SET read_at = verified_at, untold = true WHERE verified_at IS NOT NULL;
DROP INDEX copies_by_age;
CREATE INDEX copies_by_age ON copies (store, (coalesce(read_at, archived_at)), key);
CREATE INDEX copies_untold ON copies (source) WHERE untold;

-- What the source answered when it happened last: status, type, bytes, the beginning of their SHA-256.
ALTER TABLE history ADD COLUMN answer text;

-- What reading copies back found wrong, and what mended it: kept for ever.
CREATE TABLE findings (
    store       text NOT NULL,
    key         text NOT NULL,
    problem     text NOT NULL,
    first_at    timestamptz NOT NULL,
    last_at     timestamptz NOT NULL,
    times       integer NOT NULL DEFAULT 1,
    -- Since when it is right again, and thanks to whom; found once more it is open again.
    repaired_at timestamptz,
    repaired_by text,
    PRIMARY KEY (store, key, problem),
    FOREIGN KEY (store, key) REFERENCES copies ON DELETE CASCADE,
    CHECK ((repaired_at IS NULL) = (repaired_by IS NULL))
);
CREATE INDEX findings_by_time ON findings (store, last_at);

-- A rebuild under way: how far it has come, so that the same command goes on there.
CREATE TABLE rebuilding (
    store      text PRIMARY KEY,
    after      text NOT NULL,
    manifests  bigint NOT NULL,
    lines      bigint NOT NULL,
    recordings bigint NOT NULL,
    damaged    text[] NOT NULL,
    -- Sources of which something could not be read.
    distrusted text[] NOT NULL
);

-- What was read back of each store, by day (UTC).
CREATE TABLE verifications (
    store    text NOT NULL,
    day      date NOT NULL,
    read     bigint NOT NULL DEFAULT 0,
    bytes    bigint NOT NULL DEFAULT 0,
    seconds  double precision NOT NULL DEFAULT 0,
    bad      bigint NOT NULL DEFAULT 0,
    repaired bigint NOT NULL DEFAULT 0,
    -- Why it could not be read on the last time.
    error    text,
    PRIMARY KEY (store, day)
);

-- Processes at work. Each holds an advisory lock for as long as it is connected: one without it is dead.
CREATE TABLE processes (
    process uuid PRIMARY KEY
);
