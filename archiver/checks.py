"""`check`: the config, the database, each store, each source; one line each saying what is wrong and what to do."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import NamedTuple

from .catalog import Catalog
from .config import Config
from .errors import ArchiverError, CatalogDown
from .log import redact
from .render import plain
from .report import status
from .sync import Outlet
from .wiring import make_feed, open_catalog, open_outlets


class Result(NamedTuple):
    what: str
    ok: bool
    line: str
    #: It can be reached, and yet something is wrong.
    warning: bool = False


async def check(config: Config, *, offline: bool) -> list[Result]:
    """Everything that can be tried, tried at once; a failure hides no other."""
    sources, stores = len(config.sources), len(config.stores)
    results = [Result("config", True, f"{config.path}: {sources} sources, {stores} stores")]
    if offline:
        return results
    async with AsyncExitStack() as stack:
        catalog, result = await _database(config, stack)
        results.append(result)
        outlets = open_outlets(config, stack)
        results += await asyncio.gather(*(_store(outlet) for outlet in outlets.values()))
        results += await asyncio.gather(*(_source(config, name, outlets, catalog, stack) for name in config.sources))
        if catalog is not None:
            results += await _warnings(config, catalog)
    return [result._replace(line=redact(plain(" ".join(result.line.split())))) for result in results]


async def _database(config: Config, stack: AsyncExitStack) -> tuple[Catalog | None, Result]:
    try:
        catalog, embedded = await open_catalog(config, stack, size=2)
        version = await catalog.version()
    except CatalogDown as error:
        return None, Result("database", False, f"{error}; is [database] url right, and is the server running?")
    kind = f"embedded in {config.data_dir}" if embedded else "given by url"
    if not version:
        # Without tables no rate can be kept either.
        return None, Result("database", True, f"{kind}, still empty")
    return catalog, Result("database", True, f"{kind}, schema version {version}")


async def _store(outlet: Outlet) -> Result:
    try:
        return Result(f"store {outlet.name}", True, await outlet.store.check())
    except ArchiverError as error:
        return Result(f"store {outlet.name}", False, str(error))


async def _warnings(config: Config, catalog: Catalog) -> list[Result]:
    """What `status` warns of."""
    try:
        document = await status(config, catalog)
    except CatalogDown as error:
        return [Result("database", False, str(error))]
    return [
        Result(f"source {name}", False, warning["text"], warning=True)
        for name, source in document["sources"].items()
        for warning in source["warnings"]
    ]


async def _source(
    config: Config, name: str, outlets: dict[str, Outlet], catalog: Catalog | None, stack: AsyncExitStack
) -> Result:
    source = config.sources[name]
    if not source.options.enabled:
        return Result(f"source {name}", True, "switched off (enabled = false), not tried")
    try:
        feed = make_feed(source, outlets, catalog, stack)
        feed.gate.limit = source.options.concurrency
        return Result(f"source {name}", True, await feed.source.check())
    except ArchiverError as error:
        return Result(f"source {name}", False, str(error))
    except OSError as error:
        return Result(f"source {name}", False, f"ca_file {source.options.ca_file}: {error.strerror or error}")
