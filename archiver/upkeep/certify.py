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

import structlog

from .. import __version__
from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Document, Entry
from ..errors import ArchiverError, StoreError
from ..model import Body, State, Window
from ..ports import lists_by_time
from ..proof import certificates
from ..proof.certificates import Gap, Leaf, Leaves, Listings, Medium
from ..proof.layout import ulid
from ..proof.note import ProofError
from ..settings.config import Config
from ..sync.feeds import Feed, Outlet
from ..sync.windows import subtract
from .public_log import NoStoreError, PublicLog, identity

log = structlog.get_logger()

DAY = timedelta(days=1)
#: So many certificates go into the log together.
_BATCH = 500
#: Days that were not complete are looked at again so often.
NIGHTLY = timedelta(hours=20)


@dataclass(slots=True)
class Report:
    """What came of it."""

    #: By source, how many were issued; how many of its days stand as not complete; and why one could not be certified.
    issued: dict[str, int] = field(default_factory=dict)
    incomplete: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    #: Entries of the log, and the stores that hold all of them.
    size: int = 0
    stores: list[str] = field(default_factory=list)
    #: By store why it does not hold it yet.
    away: dict[str, str] = field(default_factory=dict)
    #: Another process issues them just now.
    busy: bool = False

    @property
    def problem(self) -> str | None:
        """What is not as it should be, in one line."""
        failed = [f"source {name}: {why}" for name, why in self.failed.items()]
        return "; ".join([*failed, *self.away.values()]) or None


@dataclass(frozen=True, slots=True)
class Listed:
    """What is known of how a source was listed. Read before its recordings: what is listed later is not claimed."""

    by_time: bool
    #: From here on it has certificates; and what the config calls its start.
    begin: datetime
    start: datetime
    covered: Sequence[Window]
    #: Its last poll failed.
    failing: bool

    def gaps(self, span: Window) -> list[Window]:
        """What of the span was not listed to its end."""
        return subtract([span], self.covered) if self.by_time else []


async def listed(catalog: Catalog, feed: Feed) -> Listed | None:
    """None: there is nothing to certify yet."""
    rows = await catalog.sources([feed.name])
    if not rows:
        return None
    start, covered = rows[0]["start_at"], rows[0]["covered"]
    by_time = lists_by_time(feed.source)
    begin = min([start, *(window.start for window in covered[:1])]) if by_time else await catalog.first_key(feed.name)
    return Listed(by_time, begin, start, covered, bool(rows[0]["poll_error"])) if begin is not None else None


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

    ``days``, ``thorough``: as for :func:`due`. What is wrong with one source holds up no other (``Report.failed``).
    Raises ProofError (nothing was signed), CatalogDown, SpoolDown.
    """
    report = Report()
    now = catalog.clock.now() if thorough else None
    async with catalog.only_one("proof") as mine:
        if not mine:
            report.busy = True
            return report
        try:
            public = PublicLog(catalog, spool, await asyncio.to_thread(identity, config), outlets)
            await public.open()
            for feed in feeds.values():
                await _issue_of(report, public, feed, days, thorough=thorough)
            await public.publish()
        except ArchiverError as error:
            await catalog.certified(now, str(error))
            raise
        report.size, report.stores, report.away = public.size, sorted(public.heads), public.away
        await catalog.certified(now, report.problem)
        report.incomplete = {name: count for name, (count, _) in (await catalog.incomplete_days(list(feeds))).items()}
    if report.issued:
        log.info("certificates.issued", certificates=sum(report.issued.values()), size=report.size)
    return report


async def _issue_of(
    report: Report, public: PublicLog, feed: Feed, days: Sequence[date] | None, *, thorough: bool
) -> None:
    """Those of one source. They are a chain without a hole: behind a day that fails none is issued."""
    catalog = public.catalog
    of = await listed(catalog, feed)
    if of is None:
        return
    previous = await catalog.newest_certificate(feed.name)
    batch: list[tuple[Entry, date, int]] = []

    async def flush() -> None:
        await public.add([entry for entry, _, _ in batch])
        for _, day, marks in batch:
            await catalog.looked_at(feed.name, day, marks)
        batch.clear()

    try:
        for day in await due(catalog, feed, of, days, thorough=thorough):
            marks = await catalog.marks(feed.name, day)
            entry = await _entry(public, feed, of, day, previous)
            if entry is None:
                await catalog.looked_at(feed.name, day, marks)
                continue
            previous = entry.entry
            batch.append((entry, day, marks))
            report.issued[feed.name] = report.issued.get(feed.name, 0) + 1
            if len(batch) >= _BATCH:
                await flush()
    except NoStoreError:
        raise
    except (ProofError, StoreError, ValueError) as error:
        report.failed[feed.name] = str(error)
        log.error("certificates.failed", source=feed.name, error=str(error))
    await flush()


async def due(
    catalog: Catalog, feed: Feed, of: Listed, only: Sequence[date] | None = None, *, thorough: bool = True
) -> list[date]:
    """The days of a source that are to be certified now, oldest first.

    ``only``: these, though their lookback has not passed, if they are over; and those before them that have none.
    ``thorough``: also those that were not complete, or may be so no more.
    """
    now = catalog.clock.now().astimezone(UTC)
    waits = feed.options.relisted(feed.source.listing_key) if only is None else timedelta()
    first, last = of.begin.astimezone(UTC).date(), (now - waits).date() - DAY
    possible = set(_days(first, last))
    done = await catalog.certified_days(feed.name)
    if done is None:
        days = set(possible)
    else:
        days = {*_days(first, done[0] - DAY), *_days(done[1] + DAY, last)}
        days |= await catalog.days_again(feed.name, last, incomplete=thorough)
        if thorough and possible:
            span = Window(of.begin, _midnight(last + DAY))
            # Also of days that were covered once.
            days |= {day for gap in of.gaps(span) for day in _days(gap.start.date(), gap.end.date())}
    if only is not None:
        # Without those before it the log would leave days out.
        days = {day for day in days if day < max(only) and (done is None or day > done[1])} | {*only}
    return sorted(days & possible)


async def any_due(catalog: Catalog, feeds: Mapping[str, Feed]) -> bool:
    """Is there a day without a certificate, or one that has changed, whose lookback has passed?"""
    for feed in feeds.values():
        of = await listed(catalog, feed)
        if of is not None and await due(catalog, feed, of, thorough=False):
            return True
    return False


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


async def _entry(public: PublicLog, feed: Feed, of: Listed, day: date, previous: bytes | None) -> Entry | None:
    """The day's certificate, its list in the stores; None: it would say what the newest one says."""
    catalog, name = public.catalog, feed.name
    whole = Window(_midnight(day), _midnight(day + DAY))
    # On a source's first day from its start on.
    span = Window(max(whole.start, of.begin), whole.end) if of.by_time else whole
    heard = await catalog.heard(name, whole)
    before = await catalog.certificate_of(name, day)
    earlier = await _earlier(public, before[0]) if before is not None else []
    await catalog.give_handles(name, whole)
    leaves, folders = Leaves(earlier), set[str]()
    prefixes = {head.outlet.name: head.outlet.prefix for head in public.heads.values()}
    with public.spool.sink() as sink:
        async with catalog.of_day(name, whole) as pages:
            async for page in pages:
                lines, found = await asyncio.to_thread(_lines, leaves, page, prefixes)
                folders |= found
                await sink.write(lines)
        await sink.write(leaves.finish())
        revision = before[1] + 1 if before is not None else 1
        issued = certificates.issue(
            leaves,
            source=name,
            kind=feed.kind,
            day=day,
            revision=revision,
            previous=sha256(previous).hexdigest() if previous is not None else None,
            issued_at=catalog.clock.now(),
            software=f"archiver {__version__}",
            settings=None,
            basis="window" if of.by_time else "ids",
            covered=(span.start, span.end),
            first_day=span.start > whole.start,
            gaps=[Gap(gap.start, gap.end, _why(of, span)) for gap in of.gaps(span)],
            listings=Listings(heard.times, heard.first_at, heard.last_at, heard.rows, heard.unreadable),
            folders=folders,
            stamp=ulid(catalog.clock.now()),
        )
        if before is not None and _facts(before[0]) == _facts(issued.entry):
            return None
        if issued.leaves_name is not None:
            await public.put_everywhere(issued.leaves_name, await sink.body())
        for told, data in issued.objects:
            if not told.endswith(".certificate.json"):
                await public.put_everywhere(told, Body.of(data))
    return Entry(issued.entry, name, day, revision, issued.complete)


def _why(of: Listed, span: Window) -> str:
    """Why a part of it was not listed. Not in the recorder's words: they may name people, and nothing here may."""
    if span.end <= of.start:
        return "before the start of this source's archive"
    return "the recorder could not be listed" if of.failing else "not listed"


async def _earlier(public: PublicLog, entry: bytes) -> list[str]:
    """The handles that the day's newest certificate told of."""
    told = json.loads(entry)
    if not told["leaves"]["size"]:
        return []
    name = f"{told['name']}.leaves.jsonl"
    data = await public.read_anywhere(name)
    if data is None:
        log.error("proof.list_lost", key=f"_proof/{name}")
        return []
    try:
        return await asyncio.to_thread(lambda: list(certificates.handles(data.splitlines())))
    except ValueError as error:
        raise ProofError(f"_proof/{name}: {error}") from None


def _facts(entry: bytes) -> Document:
    """What a certificate says of its day, where another of it is a reason for a revision: not when it was listed."""
    told: Document = json.loads(entry)
    gaps = told["coverage"]["gaps"]
    return {name: told[name] for name in ("kind", "basis", "counts", "flags", "folders", "leaves", "complete")} | {
        "span": [told["coverage"]["from"], told["coverage"]["to"]],
        "gaps": [[gap["from"], gap["to"]] for gap in gaps] if isinstance(gaps, list) else gaps,
        "unreadable": told["listings"]["unreadable"],
    }


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
