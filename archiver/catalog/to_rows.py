"""Nouns as rows of the database: what a listing told, what manifests told, what became of claims."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import msgspec

from ..model import (
    Availability,
    Claim,
    Download,
    ListingKey,
    Medium,
    Outcome,
    Recording,
    State,
    Writer,
    holdable,
    holdable_tree,
    is_flat,
    utc_text,
)
from ..proof import manifests

T = TypeVar("T")


class Encoded(str):
    """JSON text that is encoded already."""

    __slots__ = ()


#: Moments outside these were never a call's; kept and flagged, never used to move anything.
ANCIENT = datetime(1990, 1, 1, tzinfo=UTC)
#: So many rows of a listing, or bytes of what their recorder sent, are taken in at once; so few are not worth a thread.
ROWS = 8000
ROWS_BYTES = 8 << 20
FEW = 200

_WRITER = Writer(ensure_ascii=False, allow_nan=False)
#: The same, and faster, for what is flat.
_FLAT_WRITER = msgspec.json.Encoder()
_NOTHING, _NONE = Encoded("{}"), Encoded("[]")

Row = tuple[Any, ...]
#: Ids, what is to be copied in of recordings and of media, the rows of those that are told again, bytes of raw.
_Chunk = tuple[list[str], list[bytes], list[list[Row]], int]

RECORDING_COLUMNS = [
    "source",
    "recording_id",
    "key_at",
    "started_at",
    "ended_at",
    "duration",
    "call_id",
    "direction",
    "caller",
    "callee",
    "agent",
    "queue",
    "parties",
    "events",
    "attributes",
    "raw",
    "flags",
    "digest",
    "first_listed_at",
    "by_window",
]
MEDIUM_COLUMNS = [
    "source",
    "recording_id",
    "media_id",
    "state",
    "due_at",
    "error",
    "told_size",
    "told_sha256",
    "told_duration",
    "told_type",
    "opaque",
    "urgent",
    "ref",
    "stores",
]
_RAW = RECORDING_COLUMNS.index("raw")
REBUILT_RECORDING_COLUMNS = [*RECORDING_COLUMNS[:-1], "missing_since", "undescribed"]
REBUILT_MEDIUM_COLUMNS = [
    "source",
    "recording_id",
    "media_id",
    "state",
    "due_at",
    "attempts",
    "error",
    "stores",
    "held",
    "size",
    "sha256",
    "content_type",
    "duration",
    "coding",
    "flags",
    "note",
    "archived_at",
]
REBUILT_COPY_COLUMNS = [
    "source",
    "recording_id",
    "media_id",
    "store",
    "key",
    "size",
    "sha256",
    "archived_at",
    "verified_at",
    "read_at",
]

_TOLD_STATE = {
    Availability.READY: (State.PENDING, None),
    Availability.NOT_READY: (State.PENDING, "not ready: the source says so"),
    Availability.DELETED: (State.GONE, "the source says that it was deleted"),
    Availability.EMPTY: (State.EMPTY, "the source holds no audio for it"),
}

_ANCIENT = ANCIENT.isoformat()


def dump_json(value: Any) -> str:
    """Any value as JSON text, for the driver."""
    return value if isinstance(value, Encoded) else json.dumps(value, ensure_ascii=False, default=str)


def as_json(value: Any) -> Encoded:
    """Any value as JSON text. Not in ASCII: ``raw`` is kept, and searched, as it is written here."""
    if not value and isinstance(value, (dict, list, Mapping)):
        return _NONE if isinstance(value, list) else _NOTHING
    try:
        if is_flat(value):
            text = _FLAT_WRITER.encode(value).decode()
        else:
            text = _WRITER.encode(dict(value) if isinstance(value, Mapping) else value)
    except ValueError:
        text = "\0"
    if "\\u0000" in text or holdable(text) != text:
        text = json.dumps(holdable_tree(value), default=str, separators=(",", ":"), ensure_ascii=False)
    return Encoded(text)


def optional_text(value: str | None) -> str | None:
    """As :func:`model.holdable`; None stays None."""
    return holdable(value) if value is not None else None


def multirange(spans: Sequence[Sequence[str]]) -> list[Any]:
    """(start, end) as texts, as a multirange's parts."""
    return [asyncpg.Range(moment_from(start), moment_from(end)) for start, end in spans]


def moment_from(text: str | None) -> datetime | None:
    """The moment that a text in ISO 8601 names; None for none."""
    return datetime.fromisoformat(text) if text else None


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Parts of so many items, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def by_column(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows of that many values, turned: a list a column."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _flags(started_at: datetime, soon: datetime) -> str:
    return "{ancient}" if started_at < ANCIENT else "{future}" if started_at > soon else "{}"


def copy_text(rows: Iterable[Row]) -> bytes:
    """Rows as COPY reads them: https://www.postgresql.org/docs/current/sql-copy.html – "Text Format"."""
    # No text here holds a NUL (see holdable), and so one can stand for what separates until the rest is escaped.
    text = "\0r".join(["\0f".join(["\0n" if value is None else value for value in row]) for row in rows]).encode()
    for told, written in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n"), (b"\r", b"\\r")):
        if told in text:
            text = text.replace(told, written)
    return text.replace(b"\0f", b"\t").replace(b"\0r", b"\n").replace(b"\0n", b"\\N")


async def copy_in(c: Any, table: str, columns: Sequence[str], copied: bytes) -> None:
    """Rows that are not there yet, for half of what INSERT costs. Raises UniqueViolationError where one is."""

    async def whole() -> AsyncIterator[bytes]:
        # In one piece: for each, the loop would wait for the interpreter while a thread makes the next rows.
        yield copied

    if copied:
        await c.copy_to_table(table, columns=columns, source=whole())


@functools.lru_cache(1024)
def _array(*texts: str) -> str:
    return "{" + ",".join(['"' + t.replace("\\", "\\\\").replace('"', '\\"') + '"' for t in texts]) + "}"


def _interval(duration: timedelta | None) -> str | None:
    if duration is None:
        return None
    return f"{duration.days} days {duration.seconds} seconds {duration.microseconds} microseconds"


@dataclass(frozen=True, slots=True)
class Telling:
    """What a source told, as rows of texts that PostgreSQL reads."""

    source: str
    key: ListingKey
    now: datetime
    by_window: bool
    stores: Sequence[str]
    digests: Mapping[str, bytes]
    #: Ids that the catalog holds.
    known: Collection[str]

    async def chunks(self, news: Sequence[Recording]) -> AsyncIterator[_Chunk]:
        """Of recordings and of their media, some at a time.

        Off the loop where there are many, and the next ones while PostgreSQL works on these.
        """
        if len(news) <= FEW:
            if news:
                yield self._chunk(news)
            return
        start, end = 0, FEW
        making = asyncio.create_task(asyncio.to_thread(self._chunk, news[start:end]))
        try:
            while start < len(news):
                made = await making
                # As long as what the last ones were lets expect.
                start, end = end, end + min(ROWS, 1 + ROWS_BYTES * len(made[0]) // (made[3] + 1))
                if start < len(news):
                    making = asyncio.create_task(asyncio.to_thread(self._chunk, news[start:end]))
                yield made
        finally:
            making.cancel()

    def _chunk(self, news: Sequence[Recording]) -> _Chunk:
        media = {(holdable(r.recording_id), holdable(m.media_id)): (r, m) for r in news for m in r.media}
        told = self._recordings(news), self._media(media.values())
        fresh = [copy_text([row for row in rows if row[1] not in self.known]) for rows in told]
        again = [[row for row in rows if row[1] in self.known] for rows in told] if self.known else [[], []]
        return [row[1] for row in told[0]], fresh, again, sum(len(row[_RAW]) for row in told[0])

    def _recordings(self, news: Sequence[Recording]) -> list[Row]:
        now, soon = self.now.isoformat(), self.now + timedelta(hours=1)
        by_window = "t" if self.by_window else "f"
        return [
            (
                self.source,
                holdable(r.recording_id),
                (key := r.key(self.key).isoformat()),
                r.started_at.isoformat() if self.key is ListingKey.END else key,
                r.ended_at.isoformat() if r.ended_at is not None else None,
                _interval(r.duration),
                optional_text(r.call_id),
                r.direction.value,
                optional_text(r.caller),
                optional_text(r.callee),
                optional_text(r.agent),
                optional_text(r.queue),
                as_json([{"number": p.number, "name": p.name, "user": p.user, "role": p.role} for p in r.parties]),
                as_json([{"at": utc_text(e.at), "event": e.event, "party": e.party} for e in r.events]),
                as_json(r.attributes),
                as_json(r.raw),
                _flags(r.started_at, soon),
                "\\x" + (self.digests.get(r.recording_id) or r.digest()).hex(),
                now,
                by_window,
            )
            for r in news
        ]

    def _media(self, media: Iterable[tuple[Recording, Medium]]) -> list[Row]:
        rows: list[Row] = []
        stores = _array(*self.stores)
        # Made once: nearly all are due at the same moment.
        due = {
            (waits, urgent): (self.now + timedelta(minutes=waits, days=-3650 * urgent)).isoformat()
            for waits in (False, True)
            for urgent in (False, True)
        }
        for recording, medium in media:
            state, error = _TOLD_STATE[medium.availability]
            rows.append(
                (
                    self.source,
                    holdable(recording.recording_id),
                    holdable(medium.media_id),
                    state.value,
                    due[medium.availability is Availability.NOT_READY, medium.urgent],
                    error,
                    str(medium.size) if medium.size is not None else None,
                    optional_text(medium.sha256),
                    _interval(medium.duration),
                    optional_text(medium.content_type),
                    "t" if medium.opaque else "f",
                    "t" if medium.urgent else "f",
                    as_json(medium.ref),
                    stores,
                )
            )
        return rows


class Retold:
    """What manifests told, as COPY reads it. Blocking where there is much.

    Of a recording, and of a copy, that is told twice the last telling counts.
    """

    def __init__(self, told: Iterable[manifests.Recording], keys: Mapping[str, ListingKey], now: datetime) -> None:
        self.told = {(r.source, r.recording_id): r for r in told}
        #: By source its kind and the first call that is told of it.
        self.sources: dict[str, tuple[str, str]] = {}
        self._by_end = {name for name, key in keys.items() if key is ListingKey.END}
        self._now = now.isoformat()
        for r in self.told.values():
            _, first = self.sources.get(r.source, ("", self._now))
            at = self._key_at(r)
            self.sources[r.source] = r.kind, (min(first, at) if at >= _ANCIENT else first)
        self.copied = [copy_text(rows) for rows in self.rows(self.told.values())]

    def apart(self, known: Collection[tuple[str, str]]) -> tuple[list[bytes], list[Iterable[Row]]]:
        """What is to be copied in without these recordings; and the rows of these."""
        fresh = self.rows([r for key, r in self.told.items() if key not in known])
        return [copy_text(rows) for rows in fresh], self.rows([r for key, r in self.told.items() if key in known])

    def rows(self, of: Collection[manifests.Recording]) -> list[Iterable[Row]]:
        """Of recordings, of media, of copies, each made when it is asked for."""
        copies = {(c.store, c.key): (r, m, c) for r in of for m in r.media for c in m.copies}
        return [
            (_retold_recording(r, self._key_at(r), self._now) for r in of),
            (_retold_medium(r, m, self._now) for r in of for m in r.media),
            (_retold_copy(*one) for one in copies.values()),
        ]

    def _key_at(self, r: manifests.Recording) -> str:
        return (r.ended_at or r.started_at) if r.source in self._by_end else r.started_at


def _retold_recording(r: manifests.Recording, key_at: str, now: str) -> Row:
    return (
        r.source,
        r.recording_id,
        key_at,
        r.started_at,
        r.ended_at,
        _lasting(r.duration),
        r.call_id,
        r.direction,
        r.caller,
        r.callee,
        r.agent,
        r.queue,
        str(r.parties, "utf-8"),
        str(r.events, "utf-8"),
        str(r.attributes, "utf-8"),
        str(r.raw, "utf-8"),
        _array(*r.flags),
        "\\x00",
        now,
        r.missing_since,
        "f",
    )


def _retold_medium(r: manifests.Recording, m: manifests.Medium, now: str) -> Row:
    of_now = [c for c in m.copies if c.sha256 == m.sha256]
    held = sorted({c.store for c in of_now})
    archived = m.state == State.ARCHIVED.value
    stores = m.stores or held
    if archived and not set(stores) <= set(held):
        stores = held
    return (
        r.source,
        r.recording_id,
        m.media_id,
        m.state,
        now,
        str(m.attempts),
        m.error,
        _array(*dict.fromkeys([*stores, *(() if archived else held)])),
        _array(*held),
        str(m.size) if m.size is not None else None,
        m.sha256,
        m.content_type,
        _lasting(m.duration),
        m.coding,
        _array(*m.flags),
        m.note,
        max(c.archived_at for c in of_now) if archived else None,
    )


def _retold_copy(r: manifests.Recording, m: manifests.Medium, c: manifests.Copy) -> Row:
    times = c.archived_at, c.verified_at, c.verified_at
    return r.source, r.recording_id, m.media_id, c.store, c.key, str(c.size), c.sha256, *times


def _lasting(seconds: float | None) -> str | None:
    return _interval(timedelta(seconds=seconds)) if seconds is not None else None


def unique_rejects(raws: Sequence[str], reasons: Sequence[str]) -> tuple[list[bytes], list[str], list[str]]:
    """Hash (16 bytes), text and reason of each, the same text once."""
    unique = {
        hashlib.blake2b(raw.encode(), digest_size=16).digest(): (raw, reason)
        for raw, reason in zip(raws, reasons, strict=True)
    }
    return list(unique), [v[0] for v in unique.values()], [v[1] for v in unique.values()]


def claim_columns(claims: Sequence[Claim]) -> list[list[Any]]:
    """The first four arguments of OURS: source, recording_id, media_id, token."""
    return [
        [c.source for c in claims],
        [c.medium.recording_id for c in claims],
        [c.medium.media_id for c in claims],
        [c.token for c in claims],
    ]


def download_columns(downloads: Sequence[Download], now: datetime) -> list[Any]:
    """The arguments of SETTLE_ARCHIVED."""
    held = [",".join(sorted({c.store for c in d.copies})) for d in downloads]
    return [
        *claim_columns([d.claim for d in downloads]),
        [d.size for d in downloads],
        [d.sha256 for d in downloads],
        [d.content_type for d in downloads],
        [d.duration for d in downloads],
        held,
        now,
        [d.due_at or now for d in downloads],
        [optional_text(d.error) for d in downloads],
        [d.coding for d in downloads],
        [",".join(d.flags) for d in downloads],
        [optional_text(d.note) for d in downloads],
    ]


def outcome_columns(outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    """The arguments of SETTLE_OTHERS."""
    return [
        *claim_columns([o.claim for o in outcomes]),
        [o.state.value for o in outcomes],
        [o.due_at for o in outcomes],
        [optional_text(o.error) for o in outcomes],
        [o.attempts for o in outcomes],
        [o.failing_since for o in outcomes],
        [o.troubled for o in outcomes],
        [o.seen for o in outcomes],
        [",".join(o.flags) for o in outcomes],
        [optional_text(o.note) for o in outcomes],
        now,
    ]
