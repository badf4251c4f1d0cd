"""Bytes in a store that nothing describes: adopted where a medium waits for them, else listed.

They are left behind where a process dies between putting bytes and committing them, and the source then no longer
gives them. An adopted one goes the way of every download: checked, put into every store, described, committed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import unquote

import structlog

from ..audio.spool import Spool
from ..catalog.catalog import Catalog
from ..common.scope import Row, Unlisted, listed
from ..errors import SourceError, SpoolDown, StoreError
from ..model import State
from ..proof.layout import OURS, safe
from ..sync import check, commit, transfer
from ..sync.feeds import Feed, Outlet

log = structlog.get_logger()

#: Keys looked up at a time.
PAGE = 500
LEASE = timedelta(minutes=15)


@dataclass(slots=True)
class Orphans:
    """What a store holds beyond its copies."""

    objects: int = 0
    adopted: list[str] = field(default_factory=list)
    #: Key, size, and why it was not adopted.
    left: list[tuple[str, int, str]] = field(default_factory=list)
    #: Folders that could not be listed, and why: what lies there is not known.
    unlisted: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None

    @property
    def complete(self) -> bool:
        return not (self.left or self.unlisted or self.error)


async def find(catalog: Catalog, outlet: Outlet, feeds: Mapping[str, Feed], spool: Spool) -> Orphans:
    """Look through all that the store holds below its prefix."""
    report, row = Orphans(), Row()
    page: dict[str, int] = {}
    known = {outlet.name, *(name for feed in feeds.values() for name in feed.outlets)}

    async def look() -> None:
        unknown = await catalog.unknown_keys(outlet.name, list(page))
        renamed = await catalog.kept_elsewhere(known, unknown)
        for key in unknown:
            why = (
                f"a copy in store {renamed[key]}, as the catalog has it; was that renamed?" if key in renamed else None
            )
            why = why or await _adopt(catalog, outlet, feeds, spool, key, row)
            # Between the listing and now a running transfer may have been committed.
            if why is not None and await catalog.unknown_keys(outlet.name, [key]):
                report.left.append((key, page[key], why))
            elif why is None:
                report.adopted.append(key)
                log.info("orphan.adopted", store=outlet.name, key=key)
        page.clear()

    try:
        async for found in listed(outlet.store, outlet.prefix, "", row):
            if found.key.removeprefix(outlet.prefix).startswith(OURS):
                continue
            if isinstance(found, Unlisted):
                report.unlisted.append((found.key, found.why))
                continue
            report.objects += 1
            page[found.key] = found.size
            if len(page) == PAGE:
                await look()
        await look()
    except StoreError as error:
        report.error = f"store {outlet.name}: {error}"
    return report


async def _adopt(
    catalog: Catalog, outlet: Outlet, feeds: Mapping[str, Feed], spool: Spool, key: str, row: Row
) -> str | None:
    """None where it is archived now, else why not. Raises StoreError of the store."""
    parts = key.removeprefix(outlet.prefix).split("/")
    named = re.fullmatch(r"(.+)-([0-9a-f]{12})\.[a-z0-9]+", parts[-1])
    feed = next((f for name, f in feeds.items() if safe(name) == parts[0]), None)
    if len(parts) != 6 or named is None:
        return "no name that we give"
    if feed is None:
        return "of no source that is configured and enabled"
    recording_id = unquote(parts[4])
    found = (await catalog.documents([(feed.name, recording_id)])).get((feed.name, recording_id))
    if found is None:
        return "of a recording that is not in the catalog"
    medium = next((m for m in found[0]["media"] if safe(m["media_id"]) == named[1]), None)
    if medium is None:
        return "of a medium that is not in the catalog"
    if medium["state"] == State.ARCHIVED:
        return "its medium is archived with other bytes, or under another name"
    told = await catalog.medium(feed.name, recording_id, medium["media_id"])
    assert told is not None
    with spool.sink() as sink:
        try:
            await outlet.store.get(key, sink)
            body = await sink.body()
            if body.sha256[:12] != named[2]:
                return "its bytes are not those that its name promises"
            audio = await check.verified(told, body)
        except (SourceError, SpoolDown) as error:
            return str(error)
        except StoreError as error:
            if await row.concerns_store(outlet.store, error, key):
                raise
            return f"it can't be read: {error}"
        row.worked(key)
        claim = await catalog.claim_one(feed.name, recording_id, medium["media_id"], LEASE)
        if claim is None:
            return "its medium is being worked on"
        result = await transfer.deliver(feed, claim, catalog, body, audio)
        settled = await commit.commit(dict(feeds), catalog, [result])
        return None if settled.get(claim.token) is State.ARCHIVED else result.error or "its claim was lost"
