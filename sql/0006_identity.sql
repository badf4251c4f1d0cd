-- To whom belongs what is known: the recorder that was listed, the disk that was written to.

-- From where the ledger was listed: scheme, host, port and root; and a hash of the account, where that decides what is
-- seen. NULL: not known yet, it is bound to the config with the next poll.
ALTER TABLE sources ADD COLUMN origin text, ADD COLUMN account text;

-- Recordings of a recorder that stood behind the source's name before the present one: another call with the same id
-- must not take their place.
ALTER TABLE recordings ADD COLUMN former boolean NOT NULL DEFAULT false;
CREATE INDEX recordings_former ON recordings (source, recording_id) WHERE former;

-- The random id in the root of a store that is a folder: it tells one disk from another.
CREATE TABLE stores (
    name   text PRIMARY KEY,
    marker text NOT NULL CHECK (marker <> '')
);

-- A copy follows its store's name.
ALTER TABLE findings DROP CONSTRAINT findings_store_key_fkey,
    ADD FOREIGN KEY (store, key) REFERENCES copies ON UPDATE CASCADE ON DELETE CASCADE;
