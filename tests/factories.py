"""Nouns for the tests, each valid as it is; name only what a test is about."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from archiver.common.clock import Clock
from archiver.model import Listing, Medium, Recording, Rejected, Window

NOON = datetime(2024, 5, 18, 12, 0, tzinfo=UTC)
_numbers = itertools.count(1)


class ManualClock(Clock):
    """Stands still until it is told otherwise; no database sets it."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now

    def set(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta = timedelta(), **parts: float) -> datetime:
        """``advance(minutes=5)``; returns the new time."""
        self._now += by + timedelta(**parts)
        return self._now


def at(text: str) -> datetime:
    """``"10:30"`` of the day of NOON, ``"17T10:30"`` of that May, or a whole ISO moment; UTC."""
    day, _, time = text.rpartition("T")
    if len(day) > 2:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    return datetime.fromisoformat(f"2024-05-{int(day or 18):02}T{time}").replace(tzinfo=UTC)


def a_window(start: str, end: str) -> Window:
    return Window(at(start), at(end))


def a_medium(**changes: Any) -> Medium:
    return Medium(**{"recording_id": "r1", "media_id": "m1"} | changes)


def a_recording(**changes: Any) -> Recording:
    """A call of two minutes that began half an hour before noon, with one medium that is ready."""
    recording_id = changes.setdefault("recording_id", f"r{next(_numbers)}")
    changes.setdefault("started_at", NOON - timedelta(minutes=30))
    changes.setdefault("ended_at", changes["started_at"] + timedelta(minutes=2))
    changes.setdefault("media", (a_medium(recording_id=recording_id),))
    changes.setdefault("raw", {"id": recording_id})
    return Recording(**changes)


def a_listing(*recordings: Recording, rejected: tuple[Rejected, ...] = ()) -> Listing:
    return Listing(list(recordings), rejected)


#: A medium and a recording as a manifest tells them.
MANIFEST_MEDIUM: dict[str, Any] = {
    "media_id": "audio",
    "state": "gone",
    "content_type": None,
    "size": None,
    "sha256": None,
    "duration": None,
    "attempts": 0,
    "error": None,
    "stores": ["disk"],
    "copies": [],
}
MANIFEST_LINE: dict[str, Any] = {
    **dict.fromkeys(("call_id", "ended_at", "duration", "caller", "callee", "agent", "queue")),
    "source": "pbx",
    "kind": "xivo",
    "recording_id": "1",
    "started_at": "2024-05-18T11:30:00Z",
    "direction": "inbound",
    "parties": [],
    "events": [],
    "attributes": {},
    "media": [MANIFEST_MEDIUM],
    "raw": {},
}
