"""A source and a store as the algorithm sees them: what it remembers of each while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ..common.scope import Row
from ..common.tally import Timings
from ..model import (
    Window,
)
from ..ports import FetchesBatches, Source, Store
from ..settings.options import SourceOptions
from ..wire.gate import Gate

#: So many media refused, and none delivered in between, are no matter of single recordings.
REFUSALS = 5


@dataclass(slots=True)
class Health:
    """A breaker. Failures in a row are a reason to ask; what is open stays so for longer each time it fails again."""

    #: So many in a row, with nothing good in between, are asked about.
    allowed: int
    first: timedelta
    cap: timedelta
    failures: int = 0
    #: How often it was opened without having worked since.
    opened: int = 0
    until: datetime | None = None
    why: str = ""
    #: A canary worked, and the one medium that is let through decides (stores).
    trying: bool = False

    def suspects(self) -> bool:
        """One more failure; are there so many now that somebody should ask?"""
        self.failures += 1
        return self.failures >= self.allowed or self.probing

    def opens(self, now: datetime, why: str, asked: timedelta | None = None, *, wait: timedelta | None = None) -> None:
        """For longer each time, and no shorter than ``asked``; or for just so long (``wait``)."""
        longer = min(self.cap, self.first * float(2 ** min(self.opened, 20)))
        self.opened += wait is None
        self.until, self.why, self.trying = now + (wait or max(longer, asked or timedelta())), why, False

    def worked(self) -> None:
        self.failures, self.opened, self.until, self.why, self.trying = 0, 0, None, "", False

    def open(self, now: datetime) -> bool:
        return self.until is not None and now < self.until

    @property
    def probing(self) -> bool:
        """Has it been open, and nothing worked since?"""
        return self.until is not None


@dataclass(frozen=True, slots=True)
class Stuck:
    """One thing that fails while the rest works (a window, a description): tried again on its own schedule."""

    due_at: datetime
    attempts: int
    why: str


@dataclass(slots=True)
class Outlet:
    """A store as the engine sees it."""

    name: str
    store: Store
    prefix: str
    health: Health = field(default_factory=lambda: Health(1, timedelta(seconds=2), timedelta(minutes=1)))
    #: What could not be put although a canary works.
    refused_objects: Row = field(default_factory=Row)
    #: Recordings whose description it refuses: tried again on their own schedule.
    refused_manifests: dict[tuple[str, str], Stuck] = field(default_factory=dict)
    #: How many work with it (see :func:`using`): one that left the config is closed after the last.
    users: int = 0
    #: What was put since the beginning: how long each took, all bytes, and how many failed.
    puts: Timings = field(default_factory=Timings)
    bytes_put: int = 0
    failed_puts: int = 0
    #: By source and key the id of recordings that were not found where a manifest must describe them, and when such
    #: were last looked for in all manifests (see described.py).
    doubtful: dict[str, dict[str, str]] = field(default_factory=dict)
    sought_at: datetime | None = None


@dataclass(slots=True)
class Feed:
    """A source as the engine sees it."""

    name: str
    kind: str
    source: Source
    options: SourceOptions
    outlets: dict[str, Outlet]
    gate: Gate
    health: Health = field(default_factory=lambda: Health(5, timedelta(seconds=5), timedelta(minutes=10)))
    #: The account is refused: nothing is asked before.
    paused_until: datetime | None = None
    paused_why: str = ""
    pauses: int = 0
    #: When the account was last seen to work, so that a refused item does not cost a login each.
    account_worked_at: datetime | None = None
    logging_in: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: When the recorder itself was last seen to work, so that failing items do not cost a question each.
    alive_at: datetime | None = None
    #: Windows that fail although the recorder works: when to try them again, how often it was tried, and why.
    stuck: dict[Window, Stuck] = field(default_factory=dict)
    #: How many work with it (see :func:`using`): one that left the config is closed after the last.
    users: int = 0
    #: Asks whether it is still the recorder that was listed before; what is to be answered before it is polled on.
    ask: Callable[[], Awaitable[str | None]] | None = None
    question: str | None = None
    #: The media that were refused since audio last came, though the account is welcome; and those of them that were
    #: taken from the other end of the queue, to see whether all are.
    refused: set[tuple[str, str, str]] = field(default_factory=set)
    refused_newest: set[tuple[str, str, str]] = field(default_factory=set)
    #: When audio last came.
    delivered_at: datetime | None = None
    #: Until when the queue is taken from its other end (monotonic clock), and how many gave way in a row.
    other_end_until: float = float("-inf")
    gave_way: int = 0
    #: How long, in seconds, downloads that came lately stood still.
    longest_pause: float = 0.0
    #: The source, where it delivers many media in one answer.
    batches: FetchesBatches | None = field(init=False)

    @property
    def samples(self) -> bool:
        """Do so many fail in a row that others, from the other end of the queue, are to be tried first?"""
        return len(self.refused) >= REFUSALS or time.monotonic() < self.other_end_until

    def __post_init__(self) -> None:
        # Asked for each medium, and Python looks at every method of a protocol each time.
        self.batches = self.source if isinstance(self.source, FetchesBatches) else None


def retain(*things: Feed | Outlet) -> None:
    """Keep these open although a new config replaces them, until :func:`release`; a source with its stores."""
    for thing in _parts(things):
        thing.users += 1


def release(*things: Feed | Outlet) -> None:
    """Undo one :func:`retain`."""
    for thing in _parts(things):
        thing.users -= 1


@contextlib.contextmanager
def using(*things: Feed | Outlet) -> Iterator[None]:
    """Retain them meanwhile."""
    retain(*things)
    try:
        yield
    finally:
        release(*things)


def _parts(things: Sequence[Feed | Outlet]) -> list[Feed | Outlet]:
    return [*things, *(outlet for feed in things if isinstance(feed, Feed) for outlet in feed.outlets.values())]
