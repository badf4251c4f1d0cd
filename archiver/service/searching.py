"""Keeps the tables of the search up to date behind what is archived, and out of its way."""

from __future__ import annotations

import asyncio
import time

import structlog

from ..catalog.catalog import Catalog
from ..errors import CatalogDown

log = structlog.get_logger()

#: How often to look whether there is anything to do, in seconds.
LOOK = 1.0
#: While calls are being listed it works one part of its time in so many; else half of it.
POLITE, IDLE = 7, 2
#: Batches of a `sync`: some seconds' worth.
BATCHES = 10
#: While calls are being listed, what came last waits for so many seconds: most listings are over then.
WAIT = 3.0
#: After a database that is away, in seconds.
AGAIN = 10.0


async def keep(catalog: Catalog) -> None:
    """Take in what is new, has changed, or was there before; for ever."""
    while True:
        try:
            pause = await _some(catalog)
        except CatalogDown as error:
            log.warning("search.behind", error=str(error))
            pause = AGAIN
        await asyncio.sleep(pause)


async def some(catalog: Catalog) -> None:
    """Take in a part, where no daemon may ever do it: a `sync` each hour does all in the end."""
    try:
        for _ in range(BATCHES):
            if not await catalog.index():
                return
    except CatalogDown as error:
        log.warning("search.behind", error=str(error))


async def _some(catalog: Catalog) -> float:
    """A batch; how long to pause now, in seconds."""
    waiting, listing = await catalog.waiting()
    if not waiting:
        return LOOK
    if listing and ((await catalog.behind()).seconds or WAIT) < WAIT:
        return LOOK
    began = time.monotonic()
    if not await catalog.index():
        # Nothing, or another process is at it.
        return LOOK
    return (time.monotonic() - began) * ((POLITE if listing else IDLE) - 1)
