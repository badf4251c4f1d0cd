-- What each store holds of the audit, by a mark at each event: an id in its place is made by a clock, which may be set
-- back, and what was committed late has a low one.

-- The stores that hold the event; is there one in the config that does not? (All else of a row is never changed.)
ALTER TABLE audit ADD COLUMN stores text[] NOT NULL DEFAULT '{}', ADD COLUMN due boolean NOT NULL DEFAULT true;
CREATE INDEX audit_due ON audit (id) WHERE due;

-- The stores that "due" is meant for; where the config has others, it is set anew.
CREATE TABLE audit_stores (
    store text PRIMARY KEY
);

-- It may have passed over some: each store gets all events once more, and who reads them back takes each once.
DROP TABLE audit_shipped;
