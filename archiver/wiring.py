"""Makes a config's parts into an archive: database, stores, sources, spool. The only wiring there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from .catalog import Catalog
from .config import Config, SourceConfig
from .embedded import Embedded
from .engine import Engine
from .http import Client, Gate
from .spool import Spool
from .sync import Feed, Outlet
from .verify import Verifier


@dataclass(slots=True, kw_only=True)
class Archive:
    """Everything that a command works with."""

    config: Config
    catalog: Catalog
    database: Embedded | None
    outlets: dict[str, Outlet]
    feeds: dict[str, Feed]
    spool: Spool

    def engine(self, names: Sequence[str] | None = None) -> Engine:
        feeds = {n: f for n, f in self.feeds.items() if names is None or n in names}
        return Engine(self.catalog, feeds, self.spool, transfers=self.config.transfers)


def verifier(archive: Archive, engine: Engine, store: str) -> Verifier:
    """What reads a store's copies back; bytes of sources come through the engine's share of them."""
    return Verifier(
        catalog=archive.catalog,
        outlet=archive.outlets[store],
        outlets=archive.outlets,
        feeds=archive.feeds,
        spool=archive.spool,
        lend=engine.lending,
    )


async def open_catalog(config: Config, stack: AsyncExitStack, *, size: int = 6) -> tuple[Catalog, Embedded | None]:
    """The database as it is, embedded or not, until the stack ends. Raises CatalogDown."""
    database, url = None, config.database_url.get_secret_value()
    if url == "embedded":
        database = Embedded(config.data_dir / "postgres")
        stack.push_async_callback(database.stop)
        url = await database.start()
    catalog = await Catalog.open(url, size=size)
    stack.push_async_callback(catalog.close)
    return catalog, database


def open_outlets(config: Config, stack: AsyncExitStack) -> dict[str, Outlet]:
    """The stores, not asked yet, until the stack ends."""
    outlets = {}
    for name, store in config.stores.items():
        outlets[name] = Outlet(name, store.cls(name, store.options), store.options.prefix)
        stack.push_async_callback(outlets[name].store.close)
    return outlets


@asynccontextmanager
async def read_only(config: Config) -> AsyncIterator[Catalog]:
    """The catalog alone, migrated; for commands that only read. Raises CatalogDown."""
    async with AsyncExitStack() as stack:
        catalog, _ = await open_catalog(config, stack, size=2)
        await catalog.migrate()
        yield catalog


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Archive]:
    """Database (migrated), stores and enabled sources. Raises CatalogDown; stores and sources are not asked yet."""
    async with AsyncExitStack() as stack:
        catalog, database = await open_catalog(config, stack)
        await catalog.migrate()
        outlets = open_outlets(config, stack)
        spool = Spool(config.data_dir / "spool", config.memory)
        spool.clear()
        archive = Archive(config=config, catalog=catalog, database=database, outlets=outlets, feeds={}, spool=spool)
        for name, source in config.sources.items():
            if source.options.enabled:
                archive.feeds[name] = make_feed(source, outlets, catalog, stack)
        yield archive


def make_feed(
    source: SourceConfig, outlets: Mapping[str, Outlet], catalog: Catalog | None, stack: AsyncExitStack
) -> Feed:
    """A source with its client, its limits and its stores; without a catalog its rate is not reserved."""
    options = source.options
    reserve = None
    if options.rate is not None and catalog is not None:
        interval = options.rate.interval

        async def reserve() -> timedelta:
            return await catalog.reserve(source.name, interval)

    gate = Gate(0, reserve)
    client = Client.of(options, gate, cookies=getattr(source.cls, "cookies", False))
    stack.push_async_callback(client.close)
    return Feed(
        source.name,
        options.kind,
        source.cls(source.name, options, client),
        options,
        {name: outlets[name] for name in source.stores},
        gate,
    )
