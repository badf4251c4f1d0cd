"""Acknowledgements: a recorder that wants it gets to know which recordings are archived, and where."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta

import structlog

from ..catalog.catalog import Catalog, Document, without_salt
from ..errors import Scope, SourceError
from ..ports import Acknowledges
from .feeds import Feed, Outlet, using
from .shares import Shares
from .windows import next_try

log = structlog.get_logger()


async def acknowledge(feeds: Mapping[str, Feed], catalog: Catalog, shares: Shares, lease: timedelta) -> None:
    """Tell each recorder that wants it what was archived. One that is slow to answer keeps no other waiting.

    ``lease``: so long no other process tells the same. Raises CatalogDown.
    """
    outlets = {name: outlet for feed in feeds.values() for name, outlet in feed.outlets.items()}
    await asyncio.gather(*(_acknowledge(feed, outlets, catalog, shares, lease) for feed in feeds.values()))


async def _acknowledge(
    feed: Feed, outlets: Mapping[str, Outlet], catalog: Catalog, shares: Shares, lease: timedelta
) -> None:
    source = feed.source
    if not isinstance(source, Acknowledges) or not source.acknowledges:
        return
    if feed.question or feed.paused_until or feed.health.open(catalog.clock.now()):
        return
    with using(feed):
        for of, recording_id, attempts in await catalog.outbox(feed.name, lease, 50):
            document = (await catalog.documents([(of, recording_id)])).get((of, recording_id))
            try:
                async with shares.polling(feed.name):
                    if document is not None:
                        await source.acknowledge(_located(without_salt(document[0]), outlets))
                await catalog.told(feed.name, of, recording_id)
            except SourceError as error:
                later = next_try(attempts + 1, feed.options.retry, 0.5)
                due_at = catalog.clock.now() + later
                await catalog.tell_later(feed.name, of, recording_id, due_at, str(error))
                log.info("acknowledge.deferred", source=feed.name, recording_id=recording_id, error=str(error))
                if error.scope is not Scope.ITEM:
                    # The rest of these is due again when their lease ends.
                    return


def _located(document: Document, outlets: Mapping[str, Outlet]) -> Document:
    """The document with each copy's place, as others reach it."""
    media = []
    for medium in document["media"]:
        copies = [
            copy | {"location": outlets[copy["store"]].store.location(copy["key"])}
            if copy["store"] in outlets
            else copy
            for copy in medium["copies"]
        ]
        media.append(medium | {"copies": copies})
    return document | {"media": media}
