"""The nouns: what a recorder tells, what we hold, where it lies. Frozen and pure.

Times are aware UTC datetimes, durations timedeltas, sizes bytes, hashes lower-case hex.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from json.encoder import c_make_encoder, encode_basestring, encode_basestring_ascii  # type: ignore[attr-defined]
from pathlib import Path
from types import NoneType
from typing import Any

import msgspec

CHUNK = 1 << 18
#: Bytes that an id may have; an index row of PostgreSQL holds two of them.
LONGEST_ID = 800


class ListingKey(StrEnum):
    """Which moment of a call a source's time filter really looks at."""

    START = "start"
    END = "end"


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"
    INTERNAL = "internal"
    UNKNOWN = "unknown"


class State(StrEnum):
    """Where a medium stands; the order is from least to most finished."""

    FAILED = "failed"
    PENDING = "pending"
    GONE = "gone"
    EMPTY = "empty"
    ARCHIVED = "archived"


class Availability(StrEnum):
    """What the source says of a medium's bytes when it lists the call."""

    READY = "ready"
    #: The call still runs, or the recorder still works on the file.
    NOT_READY = "not_ready"
    #: The source says that the file was deleted.
    DELETED = "deleted"
    #: The source holds no audio for it.
    EMPTY = "empty"


class Verdict(StrEnum):
    """What walking bytes to their end says of them."""

    GOOD = "good"
    #: Readable to its last byte, but the mark of its end is missing: its writer may still be at work, or was killed.
    UNFINISHED = "unfinished"
    #: Audio as far as anybody can tell, but not checked: a container or coding that we can't walk.
    UNCHECKED = "unchecked"
    #: Less than its own header promises, or damaged.
    CUT = "cut"
    #: A header without audio, or no byte at all.
    EMPTY = "empty"


class Flag(StrEnum):
    """Why an archived medium is evidence, not certainly a whole recording."""

    UNFINISHED = "unfinished"
    UNCHECKED = "unchecked"
    #: Far less audio than the source told of.
    SHORT = "short"


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A half-open span of time, ``[start, end)``."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("a window's bounds carry a time zone")
        if self.start >= self.end:
            raise ValueError(f"a window starts before it ends: {self}")

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def __str__(self) -> str:
        return f"[{utc_text(self.start)}, {utc_text(self.end)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    number: str | None = None
    name: str | None = None
    user: str | None = None
    #: caller, callee, agent, external …
    role: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent:
    at: datetime
    event: str
    party: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """One audio file of a recording, as the source tells it."""

    recording_id: str
    media_id: str
    availability: Availability = Availability.READY
    #: Bytes, hash and duration that *these* bytes must have; None where the source does not say.
    size: int | None = None
    sha256: str | None = None
    duration: timedelta | None = None
    content_type: str | None = None
    #: May these bytes be something that is no audio we know (encrypted, a log)?
    opaque: bool = False
    #: What the source itself needs to fetch it again, beyond the two ids.
    ref: Mapping[str, Any] = field(default_factory=dict)
    #: True where the source warns that it will delete this one soon: fetched first.
    urgent: bool = False


class Writer(json.JSONEncoder):
    """Compact JSON of what was JSON, or is as simple; anything else as its text.

    Python's own makes an encoder anew for each value, which takes longer than a row does.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(separators=(",", ":"), default=str, check_circular=False, **how)
        write = encode_basestring_ascii if self.ensure_ascii else encode_basestring
        self._parts = c_make_encoder and c_make_encoder(
            None, str, write, None, ":", ",", self.sort_keys, self.skipkeys, self.allow_nan
        )

    def encode(self, o: Any) -> str:
        return "".join(self._parts(o, 0)) if self._parts else super().encode(o)


_DIGESTED = Writer(sort_keys=True)
_FLAT_DIGESTED = msgspec.json.Encoder(order="sorted")
_FLAT = {str, int, bool, NoneType}


def is_flat(value: Any) -> bool:
    """An object that holds texts, whole numbers, booleans and nulls alone, as most rows do."""
    return type(value) is dict and _FLAT.issuperset(map(type, value.values()))


def _digested(raw: Mapping[str, Any], media: list[list[Any]]) -> bytes:
    """As Python writes it, by what is ten times as fast where that writes the same: flat, in ASCII, without DEL."""
    if is_flat(raw) and all(is_flat(told[-1]) for told in media):
        try:
            written = _FLAT_DIGESTED.encode([raw, media])
        except (ValueError, TypeError):
            pass
        else:
            if written.isascii() and b"\x7f" not in written:
                return written
    return _DIGESTED.encode([raw, media]).encode()


def _is_id(told: str) -> bool:
    return 0 < len(told) <= LONGEST_ID and (told.isascii() or len(told.encode("utf-8", "surrogatepass")) <= LONGEST_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One call (or part of one) as the source tells it; identity (source, recording_id)."""

    recording_id: str
    started_at: datetime
    media: tuple[Medium, ...]
    ended_at: datetime | None = None
    duration: timedelta | None = None
    call_id: str | None = None
    direction: Direction = Direction.UNKNOWN
    caller: str | None = None
    callee: str | None = None
    agent: str | None = None
    queue: str | None = None
    parties: tuple[Party, ...] = ()
    events: tuple[CallEvent, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    #: What the vendor sent, whole.
    raw: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.recording_id:
            raise ValueError("a recording has an id")
        if self.started_at.tzinfo is None or (self.ended_at and self.ended_at.tzinfo is None):
            raise ValueError("a recording's times carry a time zone")

    def key(self, listing_key: ListingKey) -> datetime:
        """The moment by which its source's listings find it."""
        if listing_key is ListingKey.END and self.ended_at is not None:
            return self.ended_at
        return self.started_at

    def problem(self) -> str | None:
        """Why no catalog could hold it, if so: ids and sizes that a row must not have."""
        if not _is_id(self.recording_id):
            return f"the recording's id is empty or longer than {LONGEST_ID} bytes"
        for medium in self.media:
            if not _is_id(medium.media_id):
                return f"the medium's id is empty or longer than {LONGEST_ID} bytes"
            if medium.size is not None and not 0 <= medium.size < 1 << 63:
                return "a size that no file has"
        return None

    def digest(self) -> bytes:
        """16 bytes that change when anything the source told changes."""
        media = [
            [m.media_id, m.availability, m.size, m.sha256, m.content_type, m.opaque, m.urgent, dict(m.ref)]
            for m in self.media
        ]
        return hashlib.blake2b(_digested(self.raw, media), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row of a listing that could not be read: kept as it came, counted and shown."""

    raw: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Every recording of a window (more is fine, fewer never), and the rows nobody could read."""

    recordings: Sequence[Recording] = ()
    rejected: Sequence[Rejected] = ()
    #: Call ids that could not be looked up, each with the reason.
    failed: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Chapter:
    """What a source that is followed by a cursor had next, and where to go on."""

    listing: Listing
    cursor: str
    #: True where there is more to read at once.
    more: bool


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes that know their length and hash and can be sent again.

    They lie in memory (``data``) or in a file of the spool (``path``).
    """

    length: int
    sha256: str
    data: bytes | None = None
    path: Path | None = None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The bytes from the start; blocking where they lie in a file (call it off the loop)."""
        if self.data is not None:
            yield from (self.data[i : i + size] for i in range(0, self.length, size))
        elif self.path is not None:
            with self.path.open("rb") as file:
                while chunk := file.read(size):
                    yield chunk

    def read(self) -> bytes:
        """All bytes at once; blocking where they lie in a file."""
        if self.data is not None:
            return self.data
        return self.path.read_bytes() if self.path is not None else b""

    @classmethod
    def of(cls, data: bytes) -> Body:
        return cls(len(data), hashlib.sha256(data).hexdigest(), data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a store says of one object. ``sha256`` where the store itself keeps or checked one."""

    key: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One medium's bytes in one store."""

    store: str
    key: str
    size: int
    sha256: str
    archived_at: datetime
    verified_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lease on a due medium, with what is needed to fetch, check, name and commit it."""

    source: str
    medium: Medium
    started_at: datetime
    ended_at: datetime | None
    #: The fencing token: a commit under a token that is no longer the row's is refused.
    token: int
    attempts: int
    failing_since: datetime | None
    #: Names of the stores that shall hold it, and copies of the wanted content already made.
    stores: tuple[str, ...]
    copies: tuple[Copy, ...] = ()

    @property
    def id(self) -> tuple[str, str, str]:
        return self.source, self.medium.recording_id, self.medium.media_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A claim whose bytes were fetched, checked and put: ready to be committed."""

    claim: Claim
    sha256: str
    size: int
    content_type: str
    duration: timedelta | None
    #: How its samples are coded (``pcm_s16le``, ``ulaw``, ``gsm``, ``speex`` …); None: unknown.
    coding: str | None = None
    #: Why it is kept as evidence, and what was seen; none: nothing odd.
    flags: tuple[Flag, ...] = ()
    note: str | None = None
    #: Every copy of these bytes, those that were there before included.
    copies: tuple[Copy, ...]
    #: Where a store could not take it: why, and when to try that one again.
    error: str | None = None
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A claim that ended otherwise: what to write down, and when it is due again."""

    claim: Claim
    state: State
    due_at: datetime
    error: str | None
    attempts: int
    failing_since: datetime | None
    #: The class of what happened, for the history: failed, not ready, refused, gone, empty …
    what: str
    #: The fingerprint of what the source answered, where it did: ``503, text/html, 812 bytes, SHA-256 1f2e3d4c5b6a``.
    answer: str | None = None


def utc_text(moment: datetime) -> str:
    """``2024-05-17T11:45:32.000Z``; microseconds only where there are any below the millisecond."""
    moment = moment.astimezone(UTC)
    text = moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")
    return text.removesuffix("+00:00") + "Z"


_UNHOLDABLE = re.compile("[\x00\ud800-\udfff]")


def holdable(text: str) -> str:
    r"""The text with what PostgreSQL can't hold (NUL, lone surrogates) written out as ``\uXXXX``."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNHOLDABLE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def holdable_tree(value: Any) -> Any:
    """:func:`holdable` through every key and text of a JSON value; NaN and infinities as texts."""
    if isinstance(value, str):
        return holdable(value)
    if isinstance(value, Mapping):
        return {holdable(str(k)): holdable_tree(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [holdable_tree(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
