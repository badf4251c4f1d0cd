"""A listing is saved: its rows, and the mark "this window is listed", in one transaction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import structlog

from ..catalog.catalog import Catalog, Ledger, Recorded
from ..errors import (
    CatalogDown,
    SourceError,
    TryAgain,
)
from ..model import (
    Availability,
    Listing,
    Recording,
    Rejected,
    Window,
)
from ..ports import Details
from .failures import UNDETAILED
from .feeds import Feed

log = structlog.get_logger()

#: Of a long listing so many recordings are written first, so that the stores need not wait for the others.
FIRST = 250


@dataclass(slots=True)
class Polled:
    """What a poll did. Counts are recordings, but ``windows``."""

    windows: int = 0
    listed: int = 0
    new: int = 0
    changed: int = 0
    missing: int = 0
    rejected: int = 0
    bytes: int = 0
    error: str | None = None
    #: The recorder itself does not work: nothing more was asked.
    down: bool = False
    #: Another process was polling this source, or had all of it.
    busy: bool = False
    #: There are gaps left to list.
    more: bool = False

    def add(self, recorded: Recorded) -> None:
        self.listed += recorded.listed
        self.new += recorded.new
        self.changed += recorded.changed
        self.missing += recorded.missing
        self.rejected += recorded.rejected


async def awaits_answer(feed: Feed, catalog: Catalog, report: Polled) -> bool:
    """Must an operator say first whether this is another recorder? Until then nothing is asked of it."""
    before, feed.question = feed.question, await feed.ask() if feed.ask is not None else None
    if feed.question is None:
        return False
    if feed.question != before:
        log.error("source.another", source=feed.name, error=feed.question)
    report.error = feed.question
    await catalog.polled(feed.name, report.error)
    return True


async def ledger_of(feed: Feed, catalog: Catalog) -> Ledger:
    """What was listed of this source; its entry is made where there is none yet."""
    options, default = feed.options, catalog.clock.now() - timedelta(hours=24)
    whom = {"origin": options.origin, "account": options.account}
    return await catalog.source(feed.name, feed.kind, default_start=default, start=options.start, **whom)


async def record(
    feed: Feed,
    catalog: Catalog,
    listing: Listing,
    report: Polled,
    *,
    window: Window | None = None,
    cover: bool = False,
    cursor: str | None = None,
    anew: bool = False,
) -> None:
    """Save a listing. ``anew``: all of it counts as new, whatever the catalog holds.

    Raises CatalogDown, and SourceError where no details can be had.
    """
    unique = {recording.recording_id: recording for recording in listing.recordings}
    odd = [(recording, reason) for recording in unique.values() if (reason := recording.problem()) is not None]
    rejected = [Rejected(raw=json.dumps(r.raw, default=str)[:4096], reason=reason) for r, reason in odd]
    kept = [recording for recording in unique.values() if recording.problem() is None] if odd else list(unique.values())
    listing = Listing(kept, [*listing.rejected, *rejected])
    unknown = list(listing.recordings) if anew else await catalog.unknown(feed.name, listing.recordings)
    if unknown:
        # A recorder that stood here before may have given one of these ids to another call.
        await catalog.set_former_aside(feed.name, unknown)
    digests: dict[str, bytes] = {}
    if isinstance(feed.source, Details) and getattr(feed.source, "asks_details", True):
        # By their rows alone the next listing is to know them.
        digests = {recording.recording_id: recording.digest() for recording in unknown}
        unknown = await _detailed(feed.source, feed.gate.limit, unknown, digests)

    async def write(listed: Listing, news: Sequence[Recording], **of: Any) -> None:
        recorded = await catalog.record(
            feed.name,
            listed,
            news,
            digests=digests,
            listing_key=feed.source.listing_key,
            stores=list(feed.outlets),
            retention=feed.options.retention,
            window=window,
            **of,
        )
        report.add(recorded)
        if recorded.rejected:
            log.warning("rows.rejected", source=feed.name, count=recorded.rejected)

    if len(unknown) > 2 * FIRST:
        # Their transfers begin while the others are still being written.
        await write(Listing(unknown[:FIRST]), unknown[:FIRST], part=True)
        unknown = unknown[FIRST:]
    await write(listing, unknown, cover=cover, cursor=cursor)


async def _detailed(
    source: Details, width: int, news: Sequence[Recording], digests: dict[str, bytes]
) -> list[Recording]:
    """Each with its details. One whose details can't be had waits for them, and the next listing asks again.

    Raises TryAgain where not one can be had.
    """
    failures: list[SourceError] = []

    async def one(recording: Recording) -> Recording:
        try:
            return await source.detail(recording)
        except SourceError as error:
            failures.append(error)
            digests[recording.recording_id] = b"again"
            return _waiting(recording)

    detailed: list[Recording] = []
    step = max(1, width) * 4
    for start in range(0, len(news), step):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(new)) for new in news[start : start + step]]
        except* CatalogDown as lost:
            raise lost.exceptions[0] from None
        detailed += [task.result() for task in tasks]
        if len(failures) == len(detailed) and isinstance(failures[-1], TryAgain):
            raise failures[-1]
    return detailed


def _waiting(recording: Recording) -> Recording:
    """The recording by its row alone; nothing of it is fetched before its details are known."""
    media = (replace(m, availability=Availability.NOT_READY, ref={**m.ref, UNDETAILED: True}) for m in recording.media)
    return replace(recording, media=tuple(media))
