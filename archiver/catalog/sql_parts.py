"""Conditions that statements of several chapters share."""

from __future__ import annotations

#: Each part is the condition of an index: one over all would take in every new medium twice.
PENDING = "(state = 'pending' AND NOT troubled OR state = 'pending' AND troubled)"
UNFINISHED = f"({PENDING} OR state IN ('failed', 'gone', 'empty'))"

#: Nobody has it in hand now ($1): one look by key, whatever PostgreSQL knows or guesses of the tables.
UNCLAIMED = """NOT coalesce((
            SELECT true FROM claims c
            WHERE (c.source, c.recording_id, c.media_id) = (media.source, media.recording_id, media.media_id)
                AND c.generation = media.generation AND c.until > $1), false)"""

#: What is ours of the claims told: the token says so.
OURS = """
USING unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS t (source, recording_id, media_id, token)
WHERE (c.source, c.recording_id, c.media_id, c.token) = (t.source, t.recording_id, t.media_id, t.token)"""
