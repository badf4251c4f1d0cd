"""`verify`: read copies back, compare their SHA-256, mend what is spoilt from another store or from the source."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from .catalog import Catalog
from .errors import SourceError, StoreConflict, StoreError, StoreMissing
from .model import Body, Copy, Medium
from .spool import Spool
from .sync import Feed, Outlet

log = structlog.get_logger()

Identity = tuple[str, str, str]
#: Copies read at once, and looked up at a time.
WIDTH = 8
#: So many copies missing at once, and not one there, look like another disk.
FEW = 4
PAGE = 256


@dataclass(slots=True)
class Verified:
    """What was found in one store. ``bad``: what was wrong, missing included; ``repaired``: what is right again."""

    read: int = 0
    bytes: int = 0
    good: int = 0
    missing: int = 0
    bad: int = 0
    repaired: int = 0
    #: The store could not be read on.
    error: str | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.error is None and self.repaired == self.bad


class _Digest:
    """A sink that keeps nothing but length and hash."""

    def __init__(self) -> None:
        self.length = 0
        self.hash = hashlib.sha256()

    async def write(self, chunk: bytes) -> None:
        self.length += len(chunk)
        self.hash.update(chunk)

    def told(self, *, content_type: str | None = None) -> None:
        """Only the bytes matter here."""

    async def restart(self) -> None:
        self.length, self.hash = 0, hashlib.sha256()


async def verify(
    catalog: Catalog,
    outlet: Outlet,
    outlets: Mapping[str, Outlet],
    feeds: Mapping[str, Feed],
    spool: Spool,
    *,
    source: str | None = None,
    budget: int | None = None,
    even_if_empty: bool = False,
    on_read: Callable[[int], None] | None = None,
) -> Verified:
    """Read the store's copies back, the longest unread first, until all or ``budget`` bytes were read.

    What was read is remembered at once, so that the next run goes on behind it. A store in which not one copy is found
    is taken for one that is not mounted, and left alone, unless ``even_if_empty``.
    """
    found = Verified()
    try:
        await outlet.store.check()
    except StoreError as error:
        found.error = f"store {outlet.name}: {error}"
        return found
    began = catalog.clock.now()
    after: tuple[datetime, str] = (began.min.replace(tzinfo=began.tzinfo), "")
    while budget is None or found.bytes < budget:
        page = await catalog.stalest(outlet.name, source, began, after, PAGE)
        if not page:
            break
        last = page[-1][1]
        after = (last.verified_at or last.archived_at, last.key)
        for start in range(0, len(page), WIDTH):
            if budget is not None and found.bytes >= budget:
                return found
            part = page[start : start + WIDTH]
            try:
                problems = await asyncio.gather(*(read_back(outlet, copy) for _, copy in part))
            except StoreError as error:
                found.error = f"store {outlet.name}: {error}"
                return found
            if not even_if_empty and found.good == 0 and len(part) >= FEW and set(problems) == {MISSING}:
                found.error = (
                    f"store {outlet.name}: not one of {len(part)} copies is there; is the right disk mounted, the right"
                    " bucket named? Nothing was repaired (--even-if-empty does it all the same)"
                )
                return found
            results = []
            for (identity, copy), problem in zip(part, problems, strict=True):
                found.read += 1
                found.bytes += copy.size
                if on_read is not None:
                    on_read(copy.size)
                done = ""
                if problem is None:
                    found.good += 1
                else:
                    found.bad += 1
                    found.missing += problem == MISSING
                    mended = await repair(catalog, outlet, outlets, feeds, spool, identity, copy)
                    found.repaired += mended is not None
                    done = f"copy repaired from {mended}" if mended else "copy bad"
                    found.findings.append(f"{outlet.name} {copy.key}: {problem}; {done}")
                    log.error("copy.bad", store=outlet.name, key=copy.key, problem=problem, repaired_from=mended)
                    problem = f"was {problem}" if mended else problem
                results.append((identity, copy, None if done.startswith("copy repaired") else problem, done))
            await catalog.verified(results)
    return found


MISSING = "missing"


async def read_back(outlet: Outlet, copy: Copy) -> str | None:
    """None where the copy is whole, else what is wrong with it. Raises StoreError where the store can't be read."""
    digest = _Digest()
    try:
        await outlet.store.get(copy.key, digest)
    except StoreMissing:
        return MISSING
    if digest.length != copy.size:
        return f"{digest.length} bytes in place of {copy.size}"
    if digest.hash.hexdigest() != copy.sha256:
        return "other bytes (SHA-256)"
    return None


async def repair(
    catalog: Catalog,
    outlet: Outlet,
    outlets: Mapping[str, Outlet],
    feeds: Mapping[str, Feed],
    spool: Spool,
    identity: Identity,
    copy: Copy,
) -> str | None:
    """Put the right bytes back, from another store or else from the source; who gave them, or None."""
    with spool.sink() as sink:
        for other in await catalog.copies_of(*identity):
            giver = outlets.get(other.store)
            if giver is None or other.store == copy.store or other.sha256 != copy.sha256:
                continue
            with contextlib.suppress(StoreError):
                await giver.store.get(other.key, sink)
                body = await sink.body()
                if body.sha256 == copy.sha256 and await _replace(outlet, copy, body):
                    return f"store {other.store}"
            await sink.restart()
        feed, medium = feeds.get(identity[0]), await catalog.medium(*identity)
        if feed is None or medium is None:
            return None
        return f"source {feed.name}" if await _from_source(feed, medium, outlet, copy, spool) else None


async def _from_source(feed: Feed, medium: Medium, outlet: Outlet, copy: Copy, spool: Spool) -> bool:
    feed.gate.limit = max(feed.gate.limit, 1)
    with spool.sink() as sink:
        try:
            await feed.source.fetch(medium, sink)
        except SourceError as error:
            log.warning("repair.failed", source=feed.name, error=str(error))
            return False
        body = await sink.body()
        return body.sha256 == copy.sha256 and await _replace(outlet, copy, body)


async def _replace(outlet: Outlet, copy: Copy, body: Body) -> bool:
    """The one place where an object goes: spoilt bytes make room for the right ones, which are in hand."""
    try:
        try:
            await outlet.store.put(copy.key, body)
        except StoreConflict:
            await outlet.store.delete(copy.key)
            await outlet.store.put(copy.key, body)
        return await read_back(outlet, copy) is None
    except StoreError as error:
        log.error("repair.failed", store=outlet.name, key=copy.key, error=str(error))
        return False
