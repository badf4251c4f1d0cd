-- What a certificate calls a recording without telling whose it is: 96 random bits; and 128 that hide what is committed
-- to. Both are made at first sight and told by the manifests, so that a rebuilt catalog has the same. NULL: known from
-- before, and in no certificate yet. (gen_random_uuid has 122 random bits.)
ALTER TABLE recordings ADD COLUMN handle bytea CHECK (octet_length(handle) = 12),
    ADD COLUMN salt bytea CHECK (octet_length(salt) = 16);
ALTER TABLE recordings
    ALTER COLUMN handle SET DEFAULT substring(sha256(uuid_send(gen_random_uuid())) FROM 1 FOR 12),
    ALTER COLUMN salt SET DEFAULT
        substring(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) FROM 1 FOR 16);
