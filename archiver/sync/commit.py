"""The end of a transfer: a manifest in each store, then the catalog. Later changes and ledgers go to the stores too."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

import structlog

from ..catalog.catalog import Catalog, Document, with_results
from ..errors import (
    StoreError,
)
from ..model import (
    Download,
    Outcome,
    State,
)
from ..ports import Acknowledges
from ..proof import layout, manifests
from .failures import postponed, store_failed
from .feeds import Feed, Outlet, Stuck
from .windows import next_try

log = structlog.get_logger()


# -- commit ------------------------------------------------------------------------------------------------------------


async def commit(feeds: dict[str, Feed], catalog: Catalog, finished: Sequence[Download | Outcome]) -> dict[int, State]:
    """Write manifests, then the catalog; by token the states that took effect (a lost claim's is missing).

    Where a store could not take its manifest, its copies do not count yet: those media stay due.
    """
    downloads = [f for f in finished if isinstance(f, Download)]
    outcomes = [f for f in finished if isinstance(f, Outcome)]
    revisions: dict[tuple[str, str], int] = {}
    if downloads:
        by_recording: dict[tuple[str, str], list[Download]] = defaultdict(list)
        for download in downloads:
            by_recording[download.claim.id[:2]].append(download)
        known = await catalog.documents(sorted(by_recording))
        described = {
            key: (with_results(document, by_recording[key]), stores) for key, (document, _, stores) in known.items()
        }
        revisions = {key: revision for key, (_, revision, _) in known.items()}
        now = catalog.clock.now()
        # Made after the reading: it sorts behind a description that was begun before (see describe_changes).
        lost = await _describe(feeds, catalog, described, now, layout.ulid(now))
        downloads, without = _without(downloads, lost)
        outcomes += without
        revisions = {key: rev for key, rev in revisions.items() if not any(key == missed[:2] for missed in lost)}
    targets = {name: tuple(_acknowledgers(feeds, name)) for name in feeds}
    return await catalog.settle(downloads, outcomes, revisions=revisions, targets=targets)


def _acknowledgers(feeds: dict[str, Feed], source: str) -> list[str]:
    """The sources that want an acknowledgement of each archived recording of this source."""
    return [
        name
        for name, feed in feeds.items()
        if isinstance(feed.source, Acknowledges)
        and feed.source.acknowledges
        and (name == source or getattr(feed.source, "hears_all", False))
    ]


#: (source, recording_id, store) that no manifest could be written for, and when to try again.
_Lost: TypeAlias = dict[tuple[str, str, str], datetime]


async def _describe(
    feeds: dict[str, Feed],
    catalog: Catalog,
    described: dict[tuple[str, str], tuple[Document, list[str]]],
    now: datetime,
    stamp: str,
) -> _Lost:
    """One manifest per source and store; what could not be described where."""
    lines: dict[tuple[str, str], list[Document]] = defaultdict(list)
    lost: _Lost = {}
    for (source, recording_id), (document, stores) in described.items():
        for store in stores:
            if source not in feeds:
                # It left the config while its last media were on their way.
                lost[source, recording_id, store] = now
            elif store in feeds[source].outlets:
                lines[source, store].append(document)

    writes = [_write_manifest(feeds[of[0]], of[1], catalog, documents, now, stamp) for of, documents in lines.items()]
    for missed in await asyncio.gather(*writes):
        lost |= missed
    return lost


async def _write_manifest(
    feed: Feed, store: str, catalog: Catalog, documents: list[Document], now: datetime, stamp: str
) -> _Lost:
    """One manifest; in halves where the store does not take it whole."""
    outlet = feed.outlets[store]
    ids = [document["recording_id"] for document in documents]
    until = outlet.health.until if outlet.health.open(now) and not outlet.health.trying else None
    if until is None:
        try:
            await manifests.write(outlet.store, outlet.prefix, feed.name, documents, now, stamp)
        except StoreError as error:
            until = await store_failed(outlet, catalog, error, f"{feed.name} {ids[0]}")
            if until is None and len(ids) > 1:
                # Too long for it, perhaps, or one of them is at fault.
                half = len(ids) // 2
                first = await _write_manifest(feed, store, catalog, documents[:half], now, layout.ulid(now))
                return first | await _write_manifest(feed, store, catalog, documents[half:], now, layout.ulid(now))
            if until is None:
                until = _manifest_refused(outlet, feed, (feed.name, ids[0]), now, str(error))
        else:
            for recording_id in ids:
                outlet.refused_manifests.pop((feed.name, recording_id), None)
            # Not before: a store that takes audio and no manifests is of no use. Nor for what was put before it failed.
            if outlet.health.trying or not outlet.health.probing:
                outlet.health.worked()
            return {}
    return {(feed.name, recording_id, store): until for recording_id in ids}


def _manifest_refused(outlet: Outlet, feed: Feed, key: tuple[str, str], now: datetime, why: str) -> datetime:
    """The store refuses the description of this recording alone; when to try again."""
    known = outlet.refused_manifests.get(key)
    attempts = known.attempts + 1 if known is not None else 1
    due_at = now + next_try(attempts, feed.options.retry, random.random())  # noqa: S311
    outlet.refused_manifests[key] = Stuck(due_at, attempts, why)
    log.error("manifest.refused", store=outlet.name, source=key[0], recording_id=key[1], error=why)
    return due_at


def _without(downloads: Sequence[Download], lost: _Lost) -> tuple[list[Download], list[Outcome]]:
    """The downloads less the copies that no manifest describes; those with none left as outcomes."""
    kept, gone = [], []
    for d in downloads:
        source, recording_id, _ = d.claim.id
        missed = [lost[source, recording_id, c.store] for c in d.copies if (source, recording_id, c.store) in lost]
        if not missed:
            kept.append(d)
            continue
        copies = tuple(c for c in d.copies if (source, recording_id, c.store) not in lost)
        error = "no manifest could be written"
        if copies:
            kept.append(replace(d, copies=copies, error=error, due_at=max(missed)))
        else:
            gone.append(postponed(d.claim, max(missed), error))
    return kept, gone


async def describe_changes(
    feeds: dict[str, Feed], catalog: Catalog, *, new_after: timedelta = timedelta(), limit: int = 200
) -> int:
    """Write manifests for recordings that no manifest describes as they are; how many.

    New ones get ``new_after`` to be archived, which describes them anyhow.

    Meanwhile others may describe the same recordings, and this may end at any await. So that the last line about one
    in a store is never an old one for good: the ULID comes first, then the new revision, then the reading. Who
    commits what was read before that revision leaves the recording undescribed; who reads later has a later ULID.
    """
    done = 0
    async with catalog.describing:
        waiting = _waiting_descriptions(feeds, catalog.clock.now())
        while keys := await catalog.undescribed(
            list(feeds), limit + len(waiting), new_before=catalog.clock.now() - new_after
        ):
            found, keys = len(keys), [key for key in keys if key not in waiting]
            if not keys:
                break
            now = catalog.clock.now()
            stamp = layout.ulid(now)
            await catalog.revise(keys)
            known = await catalog.documents(keys)
            described = {key: (document, stores) for key, (document, _, stores) in known.items()}
            lost = await _describe(feeds, catalog, described, now, stamp)
            written = {
                key: rev for key, (_, rev, stores) in known.items() if not any((*key, s) in lost for s in stores)
            }
            ended = await catalog.described(written)
            done += ended
            # None: another process describes the same ones, and each would undo the other's for ever.
            if found < limit + len(waiting) or lost or not ended:
                break
    return done


def _waiting_descriptions(feeds: dict[str, Feed], now: datetime) -> set[tuple[str, str]]:
    """Recordings whose description a store refused, and that are not due again."""
    outlets = {id(o): o for feed in feeds.values() for o in feed.outlets.values()}.values()
    return {key for o in outlets for key, stuck in o.refused_manifests.items() if stuck.due_at > now}


async def write_verified(feeds: dict[str, Feed], catalog: Catalog, *, limit: int = 5000) -> int:
    """Write into each store which copies were verified when, so that a rebuild knows; how many copies."""
    written = 0
    failed: set[str] = set()
    while untold := await catalog.untold_verified([name for name in feeds if name not in failed], limit):
        now = catalog.clock.now()
        by_source: dict[str, list[tuple[str, str, str, datetime]]] = defaultdict(list)
        for copy in untold:
            by_source[copy[0]].append(copy)
        for source, copies in by_source.items():
            try:
                for outlet in feeds[source].outlets.values():
                    await manifests.write_verified(
                        outlet.store, outlet.prefix, source, [copy[1:] for copy in copies], now
                    )
            except StoreError as error:
                await store_failed(outlet, catalog, error, f"_verified {source}")
                failed.add(source)
                continue
            await catalog.told_verified(copies)
            written += len(copies)
        if len(untold) < limit:
            break
    return written


async def write_ledgers(feeds: dict[str, Feed], catalog: Catalog) -> int:
    """Write into each store what was listed, once all that was found is described there; how many ledgers."""
    written = 0
    for ledger in await catalog.untold_ledgers(list(feeds)):
        now = catalog.clock.now()
        outlets = feeds[ledger["source"]].outlets
        try:
            # One added later does not hold what was archived before (`copy` brings it there).
            for name in await catalog.whole(ledger["source"], list(outlets)):
                await manifests.write_ledger(outlets[name].store, outlets[name].prefix, ledger, now)
        except StoreError as error:
            await store_failed(outlets[name], catalog, error, f"_ledger {ledger['source']}")
        else:
            await catalog.told_ledger(ledger)
            written += 1
    return written
