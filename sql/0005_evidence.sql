-- What is odd about a medium is kept beside it, and what failed waits behind what never did.
ALTER TABLE media
    -- How its samples are coded; NULL: unknown, or archived by an earlier version (verify fills it in).
    ADD COLUMN coding text,
    -- Why it is kept as evidence (unfinished, unchecked, short), and what was seen.
    ADD COLUMN flags text[] NOT NULL DEFAULT '{}',
    ADD COLUMN note text,
    -- The bytes that came last and were not accepted, and since when these same bytes come.
    ADD COLUMN seen_sha256 text CHECK (seen_sha256 ~ '^[0-9a-f]{64}$'),
    ADD COLUMN seen_at timestamptz,
    -- It failed, or was not ready, when it was last tried: it waits behind what never did.
    ADD COLUMN troubled boolean NOT NULL DEFAULT false,
    ADD CHECK ((seen_sha256 IS NULL) = (seen_at IS NULL));
UPDATE media SET troubled = true WHERE state = 'pending' AND (attempts > 0 OR error LIKE 'not ready%');

-- Each pending medium stands in one of the two.
DROP INDEX media_due;
CREATE INDEX media_due ON media (source, due_at) WHERE state = 'pending' AND NOT troubled;
CREATE INDEX media_troubled ON media (source, due_at) WHERE state = 'pending' AND troubled;
DROP INDEX media_expiring;
CREATE INDEX media_expiring ON media (source, (NOT urgent), expires_at)
    WHERE state = 'pending' AND NOT troubled AND expires_at IS NOT NULL;
CREATE INDEX media_flagged ON media (source) WHERE flags <> '{}';

-- Call ids that could not be looked up: asked again one by one, and no other waits for them.
CREATE TABLE lookups (
    source   text NOT NULL REFERENCES sources (name) ON DELETE CASCADE,
    call_id  text NOT NULL CHECK (call_id <> ''),
    due_at   timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    error    text NOT NULL,
    PRIMARY KEY (source, call_id)
);
CREATE INDEX lookups_due ON lookups (source, due_at);
