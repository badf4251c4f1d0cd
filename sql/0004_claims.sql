-- Claims lie in a small table of their own. In media each one wrote the whole row again, and into every index of it: at
-- ten million recordings that took 2.7 times as long as at 100,000. Claims that run are given up: every process was
-- stopped, and what they had is due when they would have ended.
ALTER SEQUENCE claims RENAME TO tokens;
CREATE TABLE claims (
    source       text NOT NULL,
    recording_id text NOT NULL,
    media_id     text NOT NULL,
    -- The fencing token.
    token        bigint NOT NULL DEFAULT nextval('tokens'),
    -- Which content of the medium it is about.
    generation   integer NOT NULL,
    -- The process that has it, and when its lease ends.
    holder       uuid NOT NULL,
    until        timestamptz NOT NULL,
    PRIMARY KEY (source, recording_id, media_id)
);

ALTER TABLE media DROP COLUMN claim, DROP COLUMN holder;
-- How often the source told of other content than before: who still has the old one in hand comes too late.
ALTER TABLE media ADD COLUMN generation integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN media.due_at IS 'When to try next.';

-- Of what is not archived nearly all is pending, and media_due has it: a new medium goes into one index less.
DROP INDEX media_unfinished;
CREATE INDEX media_ended ON media (source, state) WHERE state IN ('failed', 'gone', 'empty');
-- What was started in the same microsecond is sorted when it is read: ids would be most of this index.
DROP INDEX recordings_by_start;
CREATE INDEX recordings_by_start ON recordings (started_at);
