-- The face (`archiver serve`): who is logged in, and who did what.

-- One log-in; gone with the catalog, which means: log in again.
CREATE TABLE sessions (
    -- SHA-256 of what the browser holds.
    id      bytea PRIMARY KEY,
    name    text NOT NULL,
    -- Of the account as it was at the log-in: another password, role or scope ends the session.
    account bytea NOT NULL,
    address text NOT NULL,
    since   timestamptz NOT NULL,
    seen    timestamptz NOT NULL
);
CREATE INDEX sessions_by_name ON sessions (name);

-- What was done by whom. Rows are added and never changed.
CREATE TABLE audit (
    id           text PRIMARY KEY,
    at           timestamptz NOT NULL,
    who          text NOT NULL,
    role         text NOT NULL,
    -- session, token, command
    means        text NOT NULL,
    address      text NOT NULL,
    action       text NOT NULL,
    source       text,
    recording_id text,
    reason       text,
    case_number  text,
    outcome      text NOT NULL DEFAULT 'ok',
    details      jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_by_time ON audit (at DESC, id DESC);
CREATE INDEX audit_by_call ON audit (source, recording_id, at DESC) WHERE recording_id IS NOT NULL;

-- How far each store holds the audit, too: the last event that was put there.
CREATE TABLE audit_shipped (
    store text PRIMARY KEY,
    id    text NOT NULL
);
