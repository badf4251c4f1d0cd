-- The proof: what a certificate calls a recording, and the log of certificates as the stores hold it.

-- What a certificate calls a recording without telling whose it is: 96 random bits; and 128 that hide what is committed
-- to. Both are made at first sight and told by the manifests, so that a rebuilt catalog has the same. NULL: known from
-- before, and in no certificate yet. (gen_random_uuid has 122 random bits.)
ALTER TABLE recordings ADD COLUMN handle bytea CHECK (octet_length(handle) = 12),
    ADD COLUMN salt bytea CHECK (octet_length(salt) = 16);
ALTER TABLE recordings
    ALTER COLUMN handle SET DEFAULT substring(sha256(uuid_send(gen_random_uuid())) FROM 1 FOR 12),
    ALTER COLUMN salt SET DEFAULT
        substring(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) FROM 1 FOR 16);

-- The log's entries, as far as this catalog has read or written them. The stores hold the log; this is a copy of it.
-- Those at and behind the size of the checkpoint wait for the next one.
CREATE TABLE certificates (
    -- Its place in the log: 0, 1, 2, ...
    position  bigint PRIMARY KEY,
    entry     bytea NOT NULL,
    -- NULL: the entry is no certificate.
    source    text,
    day       date,
    revision  integer,
    -- NULL: its source is listed by ids, and nothing is claimed.
    complete  boolean,
    -- A later one of the same day is there.
    replaced  boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX certificates_by_day ON certificates (source, day, revision) WHERE source IS NOT NULL;
CREATE INDEX certificates_incomplete ON certificates (source, day) WHERE NOT complete AND NOT replaced;

-- Days with a certificate of which something has changed since, and how often: who looks at one takes away no more marks
-- than it saw before it looked.
CREATE TABLE certify_again (
    source text NOT NULL,
    day    date NOT NULL,
    marks  bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (source, day)
);

-- A recording that is listed on another day now: the day that it was on tells of it too.
CREATE FUNCTION certify_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO certify_again AS a (source, day)
    SELECT DISTINCT c.source, c.day FROM certificates c
    WHERE c.source = OLD.source AND c.day = (OLD.key_at AT TIME ZONE 'UTC')::date
    ON CONFLICT (source, day) DO UPDATE SET marks = a.marks + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER certify_moved AFTER UPDATE OF key_at ON recordings FOR EACH ROW
    WHEN ((OLD.key_at AT TIME ZONE 'UTC')::date <> (NEW.key_at AT TIME ZONE 'UTC')::date)
    EXECUTE FUNCTION certify_moved();

-- One row, once there is a log: the newest checkpoint that was put.
CREATE TABLE checkpoint (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    size   bigint NOT NULL DEFAULT 0,
    note   bytea,
    -- The catalog was made again from a store: what the stores hold of the log is taken as it is.
    adopt  boolean NOT NULL DEFAULT false,
    -- When all days were looked at last; why the last run failed.
    run_at timestamptz,
    error  text
);
