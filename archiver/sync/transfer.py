"""One medium's transfer: download it, check it, put it into each store."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from .. import audio
from ..audio.spool import Spool, SpoolSink
from ..catalog.catalog import Catalog
from ..common.traces import span
from ..errors import (
    NotReady,
    SourceError,
    SpoolDown,
    StoreError,
    TooSlow,
)
from ..model import (
    Body,
    Claim,
    Copy,
    Download,
    Listing,
    ListingKey,
    Outcome,
    Window,
)
from ..ports import FetchesBatches
from ..proof import layout
from ..wire.last_answer import LastAnswer, last_answer
from .check import checked, evidence, inspected
from .failures import (
    MISMATCH,
    UNDETAILED,
    explain,
    postponed,
    refused_object,
    store_failed,
)
from .feeds import Feed, Outlet
from .record import Polled, record
from .windows import next_try

log = structlog.get_logger()

#: A first attempt that stands still for so many times as long as downloads that came lately, and for no less than so
#: many seconds, gives way where others wait; until so many gave way in a row and nothing came: the recorder is slow.
#: Nor for less than such a part of its source's time-out: who sets a long one says that the recorder is slow.
PATIENCE, PATIENCE_LEAST, GAVE_WAY_MOST, PATIENCE_PART = 4, 2.0, 5, 1 / 30
#: What a store can't take of one object is tried again no sooner.
OBJECT_AGAIN = timedelta(hours=1)
#: What only an operator can mend is looked at again so often.
STUCK = timedelta(minutes=15)


# -- transfer ----------------------------------------------------------------------------------------------------------


async def transfer(feed: Feed, claim: Claim, catalog: Catalog, spool: Spool) -> Download | Outcome:
    """Transfer one medium: download, check, put. Everything that can go wrong ends in an Outcome."""
    with span("transfer", **_about(claim)) as tell, spool.sink() as sink:
        result = await _transfer(feed, claim, catalog, spool, sink)
        tell(**_came(result))
        return result


async def _transfer(feed: Feed, claim: Claim, catalog: Catalog, spool: Spool, sink: SpoolSink) -> Download | Outcome:
    try:
        spool.demand_room()
        with last_answer() as last:
            if (claim.error or "").startswith(MISMATCH):
                claim = await _asked_anew(feed, claim, catalog)
            body, found = await obtain(feed, claim, sink, catalog, last)
    except SourceError as error:
        answer = last.fingerprint(sink.length, sink.sha256)
        return replace(await explain(feed, claim, catalog, error), answer=answer)
    except SpoolDown as error:
        return postponed(claim, catalog.clock.now() + timedelta(minutes=1), str(error))
    return await deliver(feed, claim, catalog, body, found)


async def transfer_batch(
    feed: Feed,
    source: FetchesBatches,
    claims: list[Claim],
    catalog: Catalog,
    spool: Spool,
    done: Callable[[Download | Outcome], Awaitable[None]],
) -> list[Claim]:
    """Many media in one answer; ``done`` gets each that it held. Returns the claims of the others."""
    async with contextlib.AsyncExitStack() as stack:
        sinks = {c.medium.recording_id: stack.enter_context(spool.sink()) for c in claims}
        try:
            spool.demand_room()
            with span("download", source=feed.name, media=len(claims)):
                delivered = await source.fetch_batch([c.medium for c in claims], sinks)
        except (SourceError, SpoolDown) as error:
            log.info("batch.failed", source=feed.name, error=str(error))
            return claims
        for claim in claims:
            if claim.medium.recording_id in delivered:
                with span("transfer", **_about(claim)) as tell:
                    result = await _check_and_deliver(feed, claim, catalog, sinks[claim.medium.recording_id])
                    tell(**_came(result))
                await done(result)
        return [c for c in claims if c.medium.recording_id not in delivered]


async def _check_and_deliver(feed: Feed, claim: Claim, catalog: Catalog, sink: SpoolSink) -> Download | Outcome:
    try:
        body = await sink.body()
        found = await checked(feed, claim, body, catalog, sink.content_type)
    except SourceError as error:
        return await explain(feed, claim, catalog, error)
    except SpoolDown as error:
        return postponed(claim, catalog.clock.now() + timedelta(minutes=1), str(error))
    return await deliver(feed, claim, catalog, body, found)


def _about(claim: Claim) -> dict[str, str]:
    return {"source": claim.source, "recording_id": claim.medium.recording_id}


def _came(result: Download | Outcome) -> dict[str, str | int]:
    """What a span tells of how a transfer ended; not why, for that is others' text."""
    if isinstance(result, Outcome):
        return {"outcome": result.what}
    return {"outcome": "stored in part" if result.error else "stored", "size": result.size}


async def _asked_anew(feed: Feed, claim: Claim, catalog: Catalog) -> Claim:
    """The claim by a new listing of its call: what the last one said did not fit the bytes. Raises SourceError."""
    if not getattr(feed.source, "lists_by_time", True):
        return claim
    by_end = feed.source.listing_key is ListingKey.END and claim.ended_at is not None
    moment = claim.ended_at if by_end and claim.ended_at is not None else claim.started_at
    around = Window(moment - timedelta(seconds=1), moment + timedelta(seconds=1))
    listing = await feed.source.list(around)
    found = [r for r in listing.recordings if r.recording_id == claim.medium.recording_id]
    if found:
        await record(feed, catalog, Listing(found), Polled(), anew=True)
    medium = await catalog.medium(*claim.id)
    return replace(claim, medium=medium) if medium is not None else claim


async def obtain(
    feed: Feed, claim: Claim, sink: SpoolSink, catalog: Catalog, last: LastAnswer
) -> tuple[Body, audio.Audio]:
    """The checked bytes: from a store that holds them already, else from the source. Raises SourceError."""
    for copy in claim.copies:
        outlet = feed.outlets.get(copy.store)
        if outlet is None:
            continue
        try:
            await outlet.store.get(copy.key, sink)
        except StoreError as error:
            log.warning("copy.unreadable", source=feed.name, store=copy.store, error=str(error))
        else:
            body = await sink.body()
            if body.sha256 == copy.sha256:
                return body, await inspected(body, claim.medium, feed)
        await sink.restart()
    if claim.medium.ref.get(UNDETAILED):
        raise NotReady("its details could not be read yet")
    with span("download", source=feed.name) as tell:
        async with _giving_way(feed, claim, last):
            await feed.source.fetch(claim.medium, sink)
        body = await sink.body()
        tell(size=body.length)
    return body, await checked(feed, claim, body, catalog, sink.content_type)


@contextlib.asynccontextmanager
async def _giving_way(feed: Feed, claim: Claim, last: LastAnswer) -> AsyncIterator[None]:
    """A first attempt that stands still gives way to others that wait for the recorder; the next has all its time.

    Raises TooSlow.
    """
    timeout = feed.options.timeout.total_seconds()
    patience = max(PATIENCE_LEAST, timeout * PATIENCE_PART, feed.longest_pause * PATIENCE)
    if claim.attempts or claim.troubled or feed.gave_way >= GAVE_WAY_MOST or timeout <= patience:
        yield
        feed.longest_pause = max(feed.longest_pause * 0.9, last.longest_pause)
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    try:
        async with asyncio.timeout(None) as limit:

            def look() -> None:
                nonlocal timer
                still = time.monotonic() - last.moved_at if last.moved_at is not None else 0.0
                # After one that gave way the next ones get half of it.
                if still > patience / (2 if feed.gave_way else 1) and feed.gate.waiting:
                    limit.reschedule(loop.time())
                else:
                    timer = loop.call_later(patience / 8, look)

            timer = loop.call_later(patience / 2, look)
            try:
                yield
                feed.longest_pause = max(feed.longest_pause * 0.9, last.longest_pause)
            finally:
                if timer is not None:
                    timer.cancel()
    except TimeoutError:
        feed.gave_way += 1
        raise TooSlow("it stood still while others waited; the next try has all its time") from None


async def deliver(feed: Feed, claim: Claim, catalog: Catalog, body: Body, found: audio.Audio) -> Download | Outcome:
    """Put the bytes into each store that lacks them; at least one taking them is a Download."""
    flags, note = evidence(found, claim.medium.duration)
    odd = audio.plausible(found, claim.medium.duration)
    if odd:
        log.info("recording.odd_duration", source=feed.name, recording_id=claim.medium.recording_id, detail=odd)
    copies = {c.store: c for c in claim.copies if c.sha256 == body.sha256}
    missing = [outlet for name, outlet in feed.outlets.items() if name in claim.stores and name not in copies]
    if len(missing) == 1:
        made = [await _put(feed, missing[0], claim, catalog, body, found.ext)]
    else:
        made = await asyncio.gather(*(_put(feed, outlet, claim, catalog, body, found.ext) for outlet in missing))
    problems = [result for result in made if isinstance(result, _NotPut)]
    copies |= {result.store: result for result in made if isinstance(result, Copy)}
    stuck = catalog.clock.now() + STUCK
    lost = set(claim.stores) - set(feed.outlets) - set(copies)
    problems += [_NotPut(f"store {name} is not in the config", stuck) for name in sorted(lost)]
    error = "; ".join(problem.why for problem in problems)
    due_at = max((problem.due_at for problem in problems), default=None)
    if not copies:
        of_object = any(problem.of_object for problem in problems)
        return (
            refused_object(feed, claim, catalog, due_at or stuck, error)
            if of_object
            else postponed(claim, due_at or stuck, error)
        )
    return Download(
        claim=claim,
        sha256=body.sha256,
        size=body.length,
        content_type=found.content_type,
        duration=found.duration,
        coding=found.coding,
        flags=flags,
        note=note,
        copies=tuple(copies.values()),
        error=error or None,
        due_at=due_at,
    )


@dataclass(frozen=True, slots=True)
class _NotPut:
    """Why a store did not take the bytes, and when to try again."""

    why: str
    due_at: datetime
    #: The store takes others, but not these.
    of_object: bool = False


async def _put(feed: Feed, outlet: Outlet, claim: Claim, catalog: Catalog, body: Body, ext: str) -> Copy | _NotPut:
    key = layout.media_key(
        outlet.prefix,
        claim.source,
        claim.started_at,
        claim.medium.recording_id,
        claim.medium.media_id,
        body.sha256,
        ext,
    )
    began = time.monotonic()
    try:
        with span("put", store=outlet.name, size=body.length):
            await outlet.store.put(key, body)
    except StoreError as error:
        outlet.failed_puts += 1
        until = await store_failed(outlet, catalog, error, key)
        if until is not None:
            return _NotPut(f"store {outlet.name}: {error}", until)
        log.error("object.refused", store=outlet.name, key=key, error=str(error))
        wait = max(OBJECT_AGAIN, next_try(claim.attempts + 1, feed.options.retry, random.random()))  # noqa: S311
        return _NotPut(f"store {outlet.name}: refused this object: {error}", catalog.clock.now() + wait, of_object=True)
    outlet.refused_objects.worked()
    outlet.puts.add(time.monotonic() - began)
    outlet.bytes_put += body.length
    return Copy(store=outlet.name, key=key, size=body.length, sha256=body.sha256, archived_at=catalog.clock.now())
