"""Certificates of days: what each source listed of a day (UTC), and what became of it, for anyone to check.

A day gets its certificate once its lookback has passed, complete or not, and another one when something of it changes.
One process at a time issues them: a day's list goes into the stores first, then its certificate into the log
(:mod:`.public_log`), then a checkpoint over all of them is signed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from typing import Any

import structlog

from .. import __version__
from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Document, Entry
from ..errors import ArchiverError, StoreError
from ..model import Body, State, Window, utc_text
from ..ports import lists_by_time
from ..proof import certificates
from ..proof.certificates import Gap, Issued, Leaf, Leaves, Listings, Medium
from ..proof.layout import ulid
from ..proof.note import ProofError
from ..settings.config import Config
from ..sync.feeds import Feed, Outlet
from ..sync.windows import subtract
from .public_log import PublicLog, identity

log = structlog.get_logger()

DAY = timedelta(days=1)
#: So many certificates go into the log together.
_BATCH = 500
#: Days that were not complete are looked at again so often.
NIGHTLY = timedelta(hours=20)


@dataclass(slots=True)
class Report:
    """What came of it."""

    #: By source, how many were issued; and how many of these were not complete.
    issued: dict[str, int] = field(default_factory=dict)
    incomplete: dict[str, int] = field(default_factory=dict)
    #: Entries of the log, and where its newest checkpoint lies.
    size: int = 0
    stores: list[str] = field(default_factory=list)
    #: By store why it does not hold it yet.
    away: dict[str, str] = field(default_factory=dict)
    #: Another process issues them just now.
    busy: bool = False


async def certify(
    config: Config,
    catalog: Catalog,
    spool: Spool,
    outlets: Mapping[str, Outlet],
    feeds: Mapping[str, Feed],
    *,
    days: Sequence[date] | None = None,
    thorough: bool = True,
) -> Report:
    """Issue the certificates that are due, of ``feeds``, and bring every store up to the newest checkpoint.

    ``days``: only these. ``thorough``: days that were not complete are looked at again. Raises ProofError (nothing was
    signed), CatalogDown, SpoolDown.
    """
    report = Report()
    now = catalog.clock.now() if thorough else None
    async with catalog.only_one("proof") as mine:
        if not mine:
            report.busy = True
            return report
        try:
            await _issue_all(report, config, catalog, spool, outlets, feeds, days, thorough=thorough)
        except ArchiverError as error:
            await catalog.certified(now, str(error))
            raise
        await catalog.certified(now, "; ".join(report.away.values()) or None)
    return report


async def _issue_all(
    report: Report,
    config: Config,
    catalog: Catalog,
    spool: Spool,
    outlets: Mapping[str, Outlet],
    feeds: Mapping[str, Feed],
    days: Sequence[date] | None,
    *,
    thorough: bool,
) -> None:
    public = PublicLog(catalog, spool, await asyncio.to_thread(identity, config), outlets)
    await public.open()
    try:
        for feed in feeds.values():
            wanted = await due(catalog, feed, days, thorough=thorough)
            batch: list[Entry] = []
            previous = await catalog.newest_certificate(feed.name)
            for day in wanted:
                issuing = Issuing(catalog, spool, public, feed, day)
                entry = await issuing.entry(previous)
                if entry is None:
                    await catalog.looked_at(feed.name, day)
                    continue
                previous = entry.entry
                batch.append(entry)
                report.issued[feed.name] = report.issued.get(feed.name, 0) + 1
                if entry.complete is False:
                    report.incomplete[feed.name] = report.incomplete.get(feed.name, 0) + 1
                if len(batch) >= _BATCH:
                    await public.add(batch)
                    batch = []
            await public.add(batch)
        await public.publish()
    finally:
        report.away = public.away
        report.stores = sorted(public.heads)
        report.size = public.size
    if report.issued:
        log.info("certificates.issued", certificates=sum(report.issued.values()), size=public.size)


async def due(catalog: Catalog, feed: Feed, only: Sequence[date] | None = None, *, thorough: bool = True) -> list[date]:
    """The days of a source that are to be certified now, oldest first.

    ``only``: these, though their lookback has not passed, if they are over; and those before them that have none.
    """
    begin = await first_day(catalog, feed)
    now = catalog.clock.now().astimezone(UTC)
    # The last day whose lookback has passed.
    waits = feed.options.relisted(feed.source.listing_key) if only is None else timedelta()
    end = (now - waits).date() - DAY
    if begin is None or begin > end:
        return []
    done = await catalog.certified_days(feed.name)
    if done is None:
        days = set(_days(begin, end))
    else:
        days = {*_days(begin, done[0] - DAY), *_days(done[1] + DAY, end)}
        days |= {*await catalog.days_again(feed.name, end, incomplete=thorough)}
    if only is not None:
        # Without those before it the log would leave days out.
        last = done[1] if done is not None else None
        days = {day for day in days if day in only or (day < max(only) and (last is None or day > last))}
        days |= {day for day in only if begin <= day <= end}
    return sorted(days)


async def first_day(catalog: Catalog, feed: Feed) -> date | None:
    """The day from which on a source has certificates; None: there is nothing yet."""
    moment = await _start(catalog, feed)
    return moment.astimezone(UTC).date() if moment is not None else None


async def _start(catalog: Catalog, feed: Feed) -> datetime | None:
    if not lists_by_time(feed.source):
        return await catalog.first_key(feed.name)
    rows = await catalog.sources([feed.name])
    if not rows:
        return None
    covered: list[Window] = rows[0]["covered"]
    start: datetime = rows[0]["start_at"]
    return min([start, *(window.start for window in covered[:1])])


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


class Issuing:
    """One day of one source on its way into the log."""

    def __init__(self, catalog: Catalog, spool: Spool, public: PublicLog, feed: Feed, day: date) -> None:
        self.catalog = catalog
        self.spool = spool
        self.public = public
        self.feed = feed
        self.day = day
        self.span = Window(midnight := datetime.combine(day, time(), UTC), midnight + DAY)

    async def entry(self, previous: bytes | None) -> Entry | None:
        """The certificate, its list in the stores; None: it would say what the newest one says."""
        name = self.feed.name
        by_time = lists_by_time(self.feed.source)
        start = await _start(self.catalog, self.feed) or self.span.start
        covered, gaps = await self._coverage(start, by_time=by_time)
        heard = await self.catalog.heard(name, self.span)
        before = await self.catalog.certificate_of(name, self.day)
        earlier = await self._earlier(before[1]) if before is not None else []
        await self.catalog.give_handles(name, self.span)
        leaves, folders = Leaves(earlier), set[str]()
        prefixes = {head.outlet.name: head.outlet.prefix for head in self.public.heads.values()}
        with self.spool.sink() as sink:
            async with self.catalog.of_day(name, self.span) as pages:
                async for page in pages:
                    lines, found = await asyncio.to_thread(_lines, leaves, page, prefixes)
                    folders |= found
                    await sink.write(lines)
            await sink.write(leaves.finish())
            content = _content(leaves, covered, gaps, heard.unreadable, self.feed.kind, folders)
            if before is not None and _same(before, content):
                return None
            issued = certificates.issue(
                leaves,
                source=name,
                kind=self.feed.kind,
                day=self.day,
                revision=before[2] + 1 if before is not None else 1,
                previous=sha256(previous).hexdigest() if previous is not None else None,
                issued_at=self.catalog.clock.now(),
                software=f"archiver {__version__}",
                settings=None,
                basis="window" if by_time else "ids",
                covered=covered,
                first_day=start > self.span.start,
                gaps=gaps,
                listings=Listings(heard.times, heard.first_at, heard.last_at, heard.rows, heard.unreadable),
                folders=folders,
                stamp=ulid(self.catalog.clock.now()),
            )
            await self._put(issued, await sink.body())
        return Entry(issued.entry, name, self.day, before[2] + 1 if before else 1, issued.complete, content)

    async def _put(self, issued: Issued, lines: Body) -> None:
        if issued.leaves_name is not None:
            await self.public.put_everywhere(issued.leaves_name, lines)
        for name, data in issued.objects:
            if not name.endswith(".certificate.json"):
                await self.public.put_everywhere(name, Body.of(data))

    async def _coverage(self, start: datetime, *, by_time: bool) -> tuple[tuple[datetime, datetime], list[Gap]]:
        """The day, on a source's first from its start on; and what of that was not listed to its end."""
        span = Window(max(self.span.start, start), self.span.end)
        if not by_time:
            return (self.span.start, self.span.end), []
        row = (await self.catalog.sources([self.feed.name]))[0]
        if span.end <= row["start_at"]:
            why = "before the start of this source's archive"
        elif row["poll_error"]:
            # Not in the recorder's words: they may name people, and nothing here may.
            why = "the recorder could not be listed"
        else:
            why = "not listed"
        gaps = [Gap(gap.start, gap.end, why) for gap in subtract([span], row["covered"])]
        return (span.start, span.end), gaps

    async def _earlier(self, entry: bytes) -> list[str]:
        """The handles that the day's newest certificate told of."""
        told = json.loads(entry)
        if not told["leaves"]["size"]:
            return []
        data = await self.public.read_anywhere(f"{told['name']}.leaves.jsonl")
        if data is None:
            log.error("proof.list_lost", key=f"_proof/{told['name']}.leaves.jsonl")
            return []
        try:
            return await asyncio.to_thread(lambda: list(certificates.handles(data.splitlines())))
        except ValueError as error:
            raise ProofError(f"_proof/{told['name']}.leaves.jsonl: {error}") from None


def _same(before: tuple[int, bytes, int, bytes | None], content: bytes) -> bool:
    """Does the newest certificate say that already? One that was read back from a store tells by its own words."""
    return before[3] == content if before[3] is not None else _content_of(before[1]) == content


def _content(
    leaves: Leaves,
    covered: tuple[datetime, datetime],
    gaps: Sequence[Gap],
    unreadable: int,
    kind: str,
    folders: set[str],
) -> bytes:
    """A digest of what a certificate says, but when it was listed and issued."""
    told = [[utc_text(gap.start), utc_text(gap.end)] for gap in gaps]
    of_gaps: Any = told
    return _digest(leaves.size, leaves.root.hex(), [*map(utc_text, covered)], of_gaps, unreadable, kind, folders)


def _content_of(entry: bytes) -> bytes:
    told = json.loads(entry)
    cover, gaps = told["coverage"], told["coverage"]["gaps"]
    of_gaps = [[gap["from"], gap["to"]] for gap in gaps] if isinstance(gaps, list) else gaps
    span = [cover["from"], cover["to"]]
    unreadable = told["listings"]["unreadable"]
    root = told["leaves"]["root"]
    return _digest(told["leaves"]["size"], root, span, of_gaps, unreadable, told["kind"], set(told["folders"]))


def _digest(size: int, root: str, span: list[str], gaps: Any, unreadable: int, kind: str, folders: set[str]) -> bytes:
    return sha256(json.dumps([size, root, span, gaps, unreadable, kind, sorted(folders)]).encode()).digest()


def _lines(leaves: Leaves, page: Sequence[Document], prefixes: Mapping[str, str]) -> tuple[bytes, set[str]]:
    """The lines of these recordings, and the folders that their media lie in."""
    return b"".join(leaves.add(leaf(document)) for document in page), {
        "/".join(copy["key"].removeprefix(prefixes.get(copy["store"], "")).split("/")[:-2])
        for document in page
        for medium in document["media"]
        for copy in medium["copies"]
        if copy["store"] in prefixes and medium["state"] == State.ARCHIVED.value
    }


def disclosed(document: Document) -> str:
    """What opens the ``about`` of a recording's line, from its JSON with a handle."""
    return certificates.disclosure(bytes.fromhex(document["salt"]), document)


def leaf(document: Document) -> Leaf:
    """The line of a recording, from its JSON with a handle."""
    archived = [medium for medium in document["media"] if medium["state"] == State.ARCHIVED.value]
    holding = [{c["store"] for c in medium["copies"] if c["sha256"] == medium["sha256"]} for medium in archived]
    return Leaf(
        document["handle"],
        document["state"],
        certificates.about(disclosed(document)),
        sorted({*document["flags"], *(flag for medium in document["media"] for flag in medium["flags"])}),
        [
            Medium(size=medium["size"], sha256=medium["sha256"])
            if medium["state"] == State.ARCHIVED.value
            else Medium(medium["state"])
            for medium in document["media"]
        ],
        sorted(set.intersection(*holding)) if holding else [],
    )


__all__ = ["Report", "StoreError", "certify", "due", "first_day", "leaf"]
