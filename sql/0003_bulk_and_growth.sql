-- A recording's medium, a medium's copy and a recording's source were looked up again with each row, and the row found
-- was written to for its lock: a third of what a discovered row and half of what a rebuilt one cost. All three are
-- written in one transaction, by one statement each, and nothing ever deletes them.
ALTER TABLE recordings DROP CONSTRAINT recordings_source_fkey;
ALTER TABLE media DROP CONSTRAINT media_source_recording_id_fkey;
ALTER TABLE copies DROP CONSTRAINT copies_source_recording_id_media_id_fkey;

-- What is asked for does not grow with the archive: the calls of a number, and what was promised and is not there yet.
CREATE INDEX recordings_by_caller ON recordings (caller text_pattern_ops) WHERE caller IS NOT NULL;
CREATE INDEX recordings_by_callee ON recordings (callee text_pattern_ops) WHERE callee IS NOT NULL;
CREATE INDEX media_doubtful ON media (source) WHERE state = 'pending' AND error LIKE 'not ready%';
