"""Certificates: what a source listed of one UTC day and what became of it, as bytes that anyone can check.

A certificate is an entry of the log (:mod:`.log`). It counts, and it commits to a *list*: a line a recording, a Merkle
leaf each, ascending by the recording's handle. Neither holds a number, a name or a vendor's id: they may lie under a
lock for ever. All bytes are hashed as they are stored; nobody has to write the same JSON again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from ..model import utc_text
from . import tree
from .layout import safe
from .log import LONGEST_ENTRY

TYPE: Final = "archiver/certificate/v1"
#: The type of the entry that makes another key known: ``{"type", "vkey", "at"}``.
KEY_TYPE: Final = "archiver/key/v1"
#: What may have become of a recording. ``excluded``: kept out by a rule; ``erased`` and ``expired``: deleted here;
#: ``moved``: an earlier certificate of that day told of it, the recorder has it on another day now.
STATES: Final = ("archived", "empty", "gone", "failed", "pending", "excluded", "erased", "expired", "moved")
#: What of a recording's JSON its line commits to: what the recorder told of the call. Not the source, which may be
#: renamed.
FACTS: Final = (
    "kind",
    "recording_id",
    "call_id",
    "started_at",
    "ended_at",
    "duration",
    "direction",
    "caller",
    "callee",
    "agent",
    "queue",
    "parties",
    "events",
    "attributes",
    "raw",
)
#: Of the reason of a gap so many characters are told.
_LONGEST_WHY = 300

_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Medium(Struct, omit_defaults=True, gc=False, frozen=True):
    """A medium with bytes has a size and their SHA-256; another has a state."""

    state: str | None = None
    size: Annotated[int, Meta(ge=0)] | None = None
    sha256: _Sha256 | None = None


class Leaf(Struct, omit_defaults=True, gc=False, frozen=True):
    """A line of a list."""

    #: The handle: 24 hex digits, random.
    recording: Annotated[str, Meta(pattern=r"^[0-9a-f]{24}\Z")]
    state: Literal[STATES]  # type: ignore[valid-type]
    #: The digest of what is in :func:`disclosure`.
    about: str | None = None
    #: What is odd about it or its media, sorted.
    flags: list[str] = []
    media: list[Medium] = []
    #: The stores that hold every archived medium of it, sorted.
    stores: list[str] = []


def moved(recording: str) -> Leaf:
    """The line that stays of a recording that an earlier certificate of that day told of."""
    return Leaf(recording, "moved")


_LEAF = msgspec.json.Decoder(Leaf)
_line = msgspec.json.Encoder().encode
#: The standard library's: it must write the same bytes again in ten years, and numbers of any length.
_sorted = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def read_leaf(line: bytes) -> Leaf:
    """Raises ValueError where it is no line of a list."""
    try:
        return _LEAF.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"no line of a list: {error}") from None


def handles(lines: Iterable[bytes]) -> Iterator[str]:
    """The handles in the lines of a list, as :class:`Leaves` takes those of an earlier one. Raises ValueError."""
    for line in lines:
        yield read_leaf(line).recording


def disclosure(salt: bytes, facts: Mapping[str, Any]) -> str:
    """What opens a line's ``about``: the salt and the facts (:data:`FACTS`), in the form of RFC 9901 (SD-JWT).

    It goes to whoever may know about that call. Without the salt, ``about`` tells nothing.
    """
    text = _sorted([_unpadded(salt), "recording", {name: facts.get(name) for name in FACTS}])
    return _unpadded(text.encode("utf-8", "surrogatepass"))


def about(disclosed: str) -> str:
    """The digest of a disclosure: base64url, 43 characters."""
    return _unpadded(sha256(disclosed.encode("ascii")).digest())


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Leaves:
    """A list in the making: takes leaves in their order, gives the lines to write, and counts; memory stays flat.

    ``earlier``: the handles that the day's last certificate told of, in their order. Those that come no more are
    written as :func:`moved`: what was told once is never left out afterwards.
    """

    def __init__(self, earlier: Iterable[str] = ()) -> None:
        self.size = 0
        self.media = 0
        self.bytes = 0
        self.flags: dict[str, int] = {}
        self.counts: dict[str, int] = dict.fromkeys(STATES, 0)
        self._earlier = iter(earlier)
        self._next = next(self._earlier, None)
        self._last = ""
        self._stack = tree.Stack()

    def add(self, leaf: Leaf) -> bytes:
        """The lines (with newlines) to write for it: those of what moved before it, and its own.

        Raises ValueError where it does not come behind the one before.
        """
        if leaf.recording <= self._last:
            raise ValueError(f"the list is out of order at {leaf.recording}")
        lines = b""
        while self._next is not None and self._next < leaf.recording:
            lines += self._add(moved(self._next))
            self._next = next(self._earlier, None)
        if self._next == leaf.recording:
            self._next = next(self._earlier, None)
        return lines + self._add(leaf)

    def finish(self) -> bytes:
        """The lines of what moved and lies behind the last leaf; to be called when all are added."""
        lines = b""
        while self._next is not None:
            lines += self._add(moved(self._next))
            self._next = next(self._earlier, None)
        return lines

    @property
    def finished(self) -> bool:
        return self._next is None

    def _add(self, leaf: Leaf) -> bytes:
        line = _line(leaf)
        self._stack.add(tree.leaf_hash(line))
        self._last = leaf.recording
        self.size += 1
        self.counts[leaf.state] += 1
        for medium in leaf.media:
            if medium.size is not None:
                self.media += 1
                self.bytes += medium.size
        for flag in leaf.flags:
            self.flags[flag] = self.flags.get(flag, 0) + 1
        return line + b"\n"

    @property
    def root(self) -> bytes:
        """The Merkle root (32 bytes) over all lines so far."""
        return self._stack.root()


@dataclass(frozen=True, slots=True)
class Gap:
    """What was not listed of a day, and why: in words without a person's data."""

    start: datetime
    end: datetime
    why: str

    def _told(self) -> dict[str, str]:
        return {"from": utc_text(self.start), "to": utc_text(self.end), "why": self.why[:_LONGEST_WHY]}


@dataclass(frozen=True, slots=True)
class Listings:
    """How often a day was listed."""

    times: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    #: Rows of all answers, and those that nobody could read.
    rows: int = 0
    unreadable: int = 0
    #: The Merkle root over the SHA-256 of each answer, in order of time.
    answers: bytes | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, and what lies beside it in a store."""

    #: Its bytes: the log's entry.
    entry: bytes
    #: Where its list must lie; None: the list is empty, and nobody writes it.
    leaves_name: str | None
    #: What else to put, in this order: names below ``{prefix}_proof/`` and bytes.
    objects: list[tuple[str, bytes]] = field(repr=False)
    #: No gap and nothing left to do; None: a source by ids, which claims no completeness.
    complete: bool | None

    @property
    def sha256(self) -> str:
        """What the next certificate of this source calls ``previous``."""
        return sha256(self.entry).hexdigest()


def issue(
    leaves: Leaves,
    *,
    source: str,
    kind: str,
    day: date,
    revision: int,
    previous: str | None,
    issued_at: datetime,
    software: str,
    settings: str | None,
    basis: Literal["window", "ids"],
    covered: tuple[datetime, datetime],
    first_day: bool,
    gaps: Sequence[Gap],
    listings: Listings,
    folders: Collection[str],
    stamp: str,
) -> Issued:
    """The certificate over a finished list; its objects are ``days/{source}/{YYYY}/{MM}/{DD}/{stamp}.…`` (a ULID).

    ``covered`` is the UTC day, on a source's first from the moment on that its archive starts with; ``previous`` the
    SHA-256 of this source's last certificate, of whatever day; ``folders`` those in which its media lie, prefix and
    the last two parts of their keys taken off. Raises ValueError where the list is not finished, or where it can't fit
    into an entry of the log.
    """
    if not leaves.finished:
        raise ValueError("the list is not finished")
    midnight = datetime.combine(day, time(), UTC)
    whole = covered[1] == midnight + timedelta(days=1) and (
        covered[0] == midnight or (first_day and midnight < covered[0] < covered[1])
    )
    open_ = leaves.counts["failed"] + leaves.counts["pending"] + listings.unreadable
    complete = whole and not gaps and not open_ if basis == "window" else None
    stem = f"days/{safe(source)}/{day:%Y/%m/%d}/{stamp}"
    coverage: dict[str, Any] = {"from": utc_text(covered[0]), "to": utc_text(covered[1])}
    objects = []

    def entry(of_gaps: Any) -> bytes:
        return _json(
            {
                "type": TYPE,
                "name": stem,
                "source": source,
                "kind": kind,
                "day": day.isoformat(),
                "revision": revision,
                "previous": previous,
                "issued_at": utc_text(issued_at),
                "software": software,
                "settings": settings,
                "basis": basis,
                "coverage": {**coverage, "gaps": of_gaps},
                "listings": {
                    "times": listings.times,
                    "first_at": utc_text(listings.first_at) if listings.first_at else None,
                    "last_at": utc_text(listings.last_at) if listings.last_at else None,
                    "rows": listings.rows,
                    "unreadable": listings.unreadable,
                    "answers": listings.answers.hex() if listings.answers is not None else None,
                },
                "counts": {"listed": leaves.size - leaves.counts["moved"], **leaves.counts},
                "media": leaves.media,
                "bytes": leaves.bytes,
                "flags": dict(sorted(leaves.flags.items())),
                "folders": sorted(set(folders)),
                "leaves": {"size": leaves.size, "root": leaves.root.hex()},
                "complete": complete,
            }
        )

    told = [gap._told() for gap in gaps]
    made = entry(told)
    if len(made) > LONGEST_ENTRY:
        lines = b"".join(_json(gap) + b"\n" for gap in told)
        objects.append((f"{stem}.gaps.jsonl", lines))
        made = entry({"size": len(told), "sha256": sha256(lines).hexdigest()})
        if len(made) > LONGEST_ENTRY:
            raise ValueError(
                f"the certificate of {source} for {day} has {len(made)} bytes; it may have {LONGEST_ENTRY}"
            )
    objects.append((f"{stem}.certificate.json", made + b"\n"))
    return Issued(made, f"{stem}.leaves.jsonl" if leaves.size else None, objects, complete)


def objects_of(entry: bytes) -> list[tuple[str, bool]]:
    """The names of what lies beside an entry in a store; False: it is the certificate, whose bytes the entry has."""
    told = json.loads(entry)
    if told.get("type") != TYPE:
        return []
    gaps = told["coverage"]["gaps"]
    found = [(f"{told['name']}.leaves.jsonl", True)] if told["leaves"]["size"] else []
    found += [(f"{told['name']}.gaps.jsonl", True)] if isinstance(gaps, dict) else []
    return [*found, (f"{told['name']}.certificate.json", False)]


def key_entry(vkey: str, at: datetime) -> bytes:
    """The log's entry that makes another key known; the first checkpoint that covers it is signed by both keys."""
    return _json({"type": KEY_TYPE, "vkey": vkey, "at": utc_text(at)})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
