"""What is known of the archive at one moment: of each source, of each store, of this host. Pure.

``status`` and the daemon's survey are both made of these, so that they can't say different things (conditions/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..catalog.catalog import Document, Numbers
from ..common.room import reserve_of
from ..model import State, Window
from ..settings.options import SourceOptions, VerifyOptions
from ..sync.windows import merge, subtract
from .schedule import late, next_poll

#: Free and all bytes of a disk.
Room = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """One enabled source. Durations in seconds."""

    name: str
    kind: str
    #: The age of the newest closed window, and how far that is past its time by the schedule.
    lag: float = 0.0
    overdue: float = 0.0
    #: When its last poll ended, and whether one was left out since.
    polled_at: datetime | None = None
    missed: bool = False
    #: What went wrong with the last poll.
    error: str | None = None
    #: Is somebody to say first which recorder it is (Survey.identity)? Until then it is not polled.
    asked: bool = False
    gaps: int = 0
    gap_seconds: float = 0.0
    first_gap: Window | None = None
    #: Unfinished media by state and reason; archived ones.
    queue: Mapping[tuple[str, str], int] = field(default_factory=dict)
    archived: int = 0
    bytes: int = 0
    #: By flag how many media are kept as evidence, and how many of these were archived in the last day.
    flagged: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    #: How long the longest waiting medium has been waiting, and the longest failing one failing.
    waiting: float = 0.0
    failing: float = 0.0
    rejected: int = 0
    #: How long ago a row was last seen that nobody could read; None: never.
    rejected_ago: float | None = None
    #: Call ids that can't be looked up, and why the first of them can't.
    lookups: tuple[int, str] = (0, "")
    #: What alarms.watch says of it, by kind.
    warnings: Mapping[str, str] = field(default_factory=dict)
    #: Why media are pending or failed, the commonest reasons first: state, error, count.
    reasons: tuple[Document, ...] = ()
    #: Our account or an option is refused: why, and until when it is left alone.
    paused_why: str | None = None
    paused_until: datetime | None = None
    #: The breaker is open: why.
    breaker_why: str | None = None
    #: Requests that may run at once in this process.
    slots: int = 0

    @property
    def paused(self) -> bool:
        return self.paused_why is not None

    @property
    def breaker_open(self) -> bool:
        return self.breaker_why is not None

    def count(self, state: State) -> int:
        return sum(count for (of, _), count in self.queue.items() if of == state)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    name: str
    #: Why it does not take what is put, where it does not.
    down_why: str | None = None
    copies: int = 0
    bytes: int = 0
    bad: int = 0
    #: How long ago the copy that was longest unread was last read back (or made), in seconds; None without copies.
    unverified: float | None = None
    #: How far that is past the cycle of [verify].
    verify_overdue: float = 0.0
    #: Does the daemon read copies back?
    verified_by_itself: bool = True
    #: Of the disk, where it is one of this host's; and how much of it is to stay free (None: see room.py).
    disk: Room | None = None
    reserve: int | None = None
    #: What it did not take yet: count, the commonest error, some of the media.
    waiting: Document = field(default_factory=dict)
    #: Media that were archived before it was a store of their source.
    lacking: int = 0
    #: How reading back goes, as `status` tells it.
    verify: Document = field(default_factory=dict)

    @property
    def up(self) -> bool:
        return self.down_why is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Where ``blind`` the database does not answer: what it held then is the last known, its ages as of now."""

    at: datetime
    #: What is wrong with the database.
    database: str | None = None
    blind: bool = False
    sources: Mapping[str, SourceView] = field(default_factory=dict)
    stores: Mapping[str, StoreView] = field(default_factory=dict)
    #: Parts of the daemon that are under way and have not moved for too long.
    stuck: tuple[str, ...] = ()
    #: Of the disk that holds data_dir; and how much of it is to stay free (None: see room.py).
    disk: Room | None = None
    reserve: int | None = None
    #: Why the daemon does not run with the config on disk.
    stale_config: tuple[str, ...] = ()
    #: Who is who: condition, of, what, do (identity.problems).
    identity: tuple[Document, ...] = ()
    #: This host's daemon was killed, and none runs.
    died: bool = False
    #: Was the heartbeat not taken for too long?
    heartbeat_missing: bool = False
    #: Did the last news reach nobody?
    undelivered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What only the daemon sees, of itself and of those it works with; it tells other processes of this host."""

    database: str | None = None
    stuck: tuple[str, ...] = ()
    #: By source and by store why it is not asked just now.
    sources: Mapping[str, str] = field(default_factory=dict)
    stores: Mapping[str, str] = field(default_factory=dict)
    heartbeat_missing: bool = False
    undelivered: bool = False

    def document(self) -> Document:
        return {
            "database": self.database,
            "stuck": list(self.stuck),
            "sources": dict(self.sources),
            "stores": dict(self.stores),
            "heartbeat_missing": self.heartbeat_missing,
            "undelivered": self.undelivered,
        }

    @classmethod
    def read(cls, document: Document) -> Seen:
        """What a daemon told, perhaps one of an earlier version."""
        return cls(
            database=document.get("database"),
            stuck=tuple(document.get("stuck", ())),
            sources=document.get("sources", {}),
            stores=document.get("stores", {}),
            heartbeat_missing=bool(document.get("heartbeat_missing")),
            undelivered=bool(document.get("undelivered")),
        )


def source_view(
    name: str,
    options: SourceOptions,
    numbers: Numbers | None,
    now: datetime,
    *,
    began: datetime,
    stores: Iterable[str],
    told: Document,
    paused: tuple[str, datetime] | None = None,
    breaker_why: str | None = None,
    slots: int = 0,
) -> SourceView:
    """``began``: since when it should have been listed where nobody knows. ``stores``: of the whole config.

    ``told``: its part of `status`. ``paused``: why and until when, where this process knows better than the catalog.
    """
    # What a store did not take is told there.
    held_up = tuple(f"store {store}: " for store in stores)
    row = numbers.sources.get(name) if numbers else None
    if paused is None and row is not None and row["paused_until"] is not None:
        paused = row["paused_why"], row["paused_until"]
    covered = merge(row["covered"]) if row else []
    start = row["start_at"] if row else began
    polled_at = row["polled_at"] if row else None
    newest = covered[-1].end if covered else start
    if not covered and polled_at is not None and not (row and row["poll_error"]):
        # It has no windows: its ids come from elsewhere.
        newest = polled_at
    gaps = subtract([Window(start, newest)], covered) if covered and start < newest else []
    due = next_poll(options.poll, newest + options.settle)
    queue = {(s, r): v for (of, s, r), v in numbers.queue.items() if of == name} if numbers else {}
    failing = [since for _, since in queue.values() if since is not None]
    archived = numbers.totals.get((name, ""), (0, 0)) if numbers else (0, 0)
    rejected = numbers.rejected.get(name) if numbers else None
    waiting = numbers.waiting.get(name) if numbers else None
    return SourceView(
        name=name,
        kind=options.kind,
        lag=age(newest, now),
        overdue=age(due, now),
        polled_at=polled_at,
        missed=polled_at is not None and late(options.poll, polled_at, now),
        error=row["poll_error"] if row else None,
        asked=bool(told.get("asked")),
        gaps=len(gaps),
        gap_seconds=sum(gap.length.total_seconds() for gap in gaps),
        first_gap=gaps[0] if gaps else None,
        queue={key: count for key, (count, _) in queue.items()},
        archived=archived[0],
        bytes=archived[1],
        flagged={flag: n for (of, flag), n in numbers.flagged.items() if of == name} if numbers else {},
        waiting=age(waiting, now) if waiting is not None else 0.0,
        failing=age(min(failing), now) if failing else 0.0,
        rejected=rejected[0] if rejected else 0,
        rejected_ago=age(rejected[1], now) if rejected else None,
        lookups=numbers.lookups.get(name, (0, "")) if numbers else (0, ""),
        warnings={warning["kind"]: warning["text"] for warning in told.get("warnings", ())},
        reasons=tuple(
            reason
            for reason in told.get("reasons", ())
            if reason["state"] == State.FAILED or not reason["error"].startswith(held_up)
        ),
        paused_why=paused[0] if paused else None,
        paused_until=paused[1] if paused else None,
        breaker_why=breaker_why,
        slots=slots,
    )


def store_view(
    name: str,
    numbers: Numbers | None,
    now: datetime,
    verify: VerifyOptions,
    *,
    told: Document,
    down_why: str | None = None,
    disk: Room | None = None,
    reserve: int | None = None,
) -> StoreView:
    held = [value for (_, of), value in numbers.totals.items() if of == name] if numbers else []
    unverified = numbers.unverified.get(name) if numbers else None
    return StoreView(
        name=name,
        down_why=down_why,
        copies=sum(count for count, _ in held),
        bytes=sum(size for _, size in held),
        bad=numbers.bad.get(name, 0) if numbers else 0,
        unverified=age(unverified, now) if unverified is not None else None,
        verify_overdue=age(unverified + verify.cycle + verify.period, now) if unverified is not None else 0.0,
        verified_by_itself=verify.enabled,
        disk=disk,
        reserve=reserve,
        waiting=told.get("waiting", {}),
        lacking=told.get("lacking", 0),
        verify=told.get("verify", {}),
    )


def part(document: Mapping[str, Any] | None, of: str, name: str) -> Document:
    """What `status` says of a source or store; nothing where it was not asked yet."""
    found: Document = document[of].get(name, {}) if document is not None else {}
    return found


def age(moment: datetime, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds())


def places(survey: Survey) -> Iterable[tuple[str, Room, int]]:
    """The disks of this host by what they hold: their room, and how much of it is to stay free."""
    told = [("data_dir", survey.disk, survey.reserve)]
    told += [(name, store.disk, store.reserve) for name, store in survey.stores.items()]
    for name, room, reserve in told:
        if room is not None:
            yield name, room, reserve_of(room[1]) if reserve is None else reserve
