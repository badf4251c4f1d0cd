"""Rows of the database as nouns and as JSON documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..model import Claim, Copy, Download, Medium, State, Window, utc_text
from .to_rows import optional_text

Document = dict[str, Any]

FINISHED = {state: rank for rank, state in enumerate(State)}


def looked_at_from(rows: Sequence[Any]) -> list[tuple[tuple[str, str, str], Copy, datetime]]:
    """(medium's id, copy, when it was last read or made) of each row."""
    return [((r["source"], r["recording_id"], r["media_id"]), copy_from(r), r["looked_at"]) for r in rows]


def finding_document(row: Any) -> Document:
    """What was wrong with a copy, as JSON."""
    return {
        "key": row["key"],
        "problem": row["problem"],
        "first_at": utc_text(row["first_at"]),
        "last_at": utc_text(row["last_at"]),
        "times": row["times"],
        "repaired_at": utc_text(row["repaired_at"]) if row["repaired_at"] else None,
        "repaired_by": row["repaired_by"],
    }


def flagged_from(rows: Sequence[Any]) -> dict[tuple[str, str], tuple[int, int]]:
    """By (source, flag) how many media, and how many of them lately."""
    return {(row["source"], row["flag"]): (row["count"], row["lately"]) for row in rows}


def windows_from(multirange: Any) -> tuple[Window, ...]:
    """The spans of a multirange; those without an end are left out."""
    return tuple(Window(r.lower, r.upper) for r in multirange or () if r.lower is not None and r.upper is not None)


def claim_from(row: Any, held: Mapping[tuple[str, str, str], Sequence[Copy]]) -> Claim:
    """A claim, with those of its medium's copies that hold the content of now. ``held``: copies by medium."""
    medium = medium_from(row)
    copies = held.get((row["source"], row["recording_id"], row["media_id"]), ())
    return Claim(
        source=row["source"],
        medium=medium,
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        token=row["token"],
        attempts=row["attempts"],
        failing_since=row["failing_since"],
        error=row["error"],
        troubled=row["troubled"],
        seen_sha256=row["seen_sha256"],
        seen_at=row["seen_at"],
        stores=tuple(row["stores"]),
        copies=tuple(c for c in copies if c.sha256 == row["sha256"] and c.store in row["held"]),
    )


def medium_from(row: Any) -> Medium:
    """A medium as its source told it."""
    return Medium(
        recording_id=row["recording_id"],
        media_id=row["media_id"],
        size=row["told_size"],
        sha256=row["told_sha256"],
        duration=row["told_duration"],
        content_type=row["told_type"],
        opaque=row["opaque"],
        urgent=row["urgent"],
        ref=row["ref"],
    )


def copy_from(row: Any) -> Copy:
    """A copy."""
    return Copy(
        store=row["store"],
        key=row["key"],
        size=row["size"],
        sha256=row["sha256"],
        archived_at=row["archived_at"],
        verified_at=row["verified_at"],
    )


def overall(states: Iterable[str]) -> str:
    """A recording's state: that of its least finished medium; without media there is nothing to get."""
    return min((State(s) for s in states), key=FINISHED.__getitem__, default=State.EMPTY).value


def copy_document(copy: Copy) -> Document:
    """A copy as JSON."""
    return {
        "store": copy.store,
        "key": copy.key,
        "archived_at": utc_text(copy.archived_at),
        "verified_at": utc_text(copy.verified_at) if copy.verified_at else None,
        "size": copy.size,
        "sha256": copy.sha256,
    }


def medium_document(row: Any, copies: list[Document]) -> Document:
    """A medium as JSON, with the JSON of its copies."""
    return {
        "media_id": row["media_id"],
        "state": row["state"],
        "content_type": row["content_type"] or row["told_type"],
        "size": row["size"],
        "sha256": row["sha256"],
        "duration": _seconds(row["duration"]),
        "coding": row["coding"],
        "flags": list(row["flags"]),
        "note": row["note"],
        "attempts": row["attempts"],
        "error": row["error"],
        "stores": list(row["stores"]),
        "copies": copies,
    }


def recording_document(row: Any, media: list[Document]) -> Document:
    """A recording as JSON, with the JSON of its media."""
    return {
        "source": row["source"],
        "kind": row["kind"],
        "recording_id": row["recording_id"],
        "call_id": row["call_id"],
        "state": overall(m["state"] for m in media),
        "started_at": utc_text(row["started_at"]),
        "ended_at": utc_text(row["ended_at"]) if row["ended_at"] else None,
        "duration": _seconds(row["duration"]),
        "direction": row["direction"],
        "caller": row["caller"],
        "callee": row["callee"],
        "agent": row["agent"],
        "queue": row["queue"],
        "parties": row["parties"],
        "events": row["events"],
        "attributes": row["attributes"],
        "flags": list(row["flags"]),
        "missing_since": utc_text(row["missing_since"]) if row["missing_since"] else None,
        "handle": row["handle"].hex() if row["handle"] is not None else None,
        "salt": row["salt"].hex() if row["salt"] is not None else None,
        "media": media,
        "raw": row["raw"],
    }


def without_salt(document: Document) -> Document:
    """For whoever is no store: with the salt what a certificate commits to could be guessed by others."""
    return {name: value for name, value in document.items() if name != "salt"}


def _seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None


def with_results(document: Document, downloads: Sequence[Download]) -> Document:
    """The document as it will be once these downloads are committed."""
    done = {d.claim.medium.media_id: d for d in downloads}
    media = []
    for medium in document["media"]:
        download = done.get(medium["media_id"])
        if download is None:
            media.append(medium)
            continue
        known = {(c["store"], c["key"]) for c in medium["copies"]}
        copies = medium["copies"] + [copy_document(c) for c in download.copies if (c.store, c.key) not in known]
        # As COPIES_OF_RECORDINGS has them.
        copies.sort(key=lambda c: (datetime.fromisoformat(c["archived_at"]), c["store"]))
        whole = {c.store for c in download.copies} >= set(download.claim.stores)
        if medium["state"] == State.ARCHIVED.value and not whole:
            # It comes too late: another has archived it meanwhile, and less than that is not to be told.
            media.append(medium | {"copies": copies})
            continue
        media.append(
            medium
            | {
                "state": State.ARCHIVED.value if whole else medium["state"],
                "content_type": download.content_type,
                "size": download.size,
                "sha256": download.sha256,
                "duration": _seconds(download.duration),
                "coding": download.coding,
                "flags": [flag.value for flag in download.flags],
                "note": optional_text(download.note),
                "attempts": medium["attempts"] + 1,
                "error": download.error,
                "copies": copies,
            }
        )
    return document | {"media": media, "state": overall(m["state"] for m in media)}
