"""Makes a config's parts into an archive: database, stores, sources, spool. The only wiring there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import structlog

from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Need
from ..catalog.embedded import Embedded
from ..common.journal import notify
from ..common.traces import exporting
from ..errors import ConfigError, StoreError
from ..ports import LocksApart, Marked
from ..proof.layout import safe
from ..settings.config import Config, SourceConfig, StoreConfig, own
from ..sync.commit import describe_changes, write_ledgers
from ..sync.engine import Engine
from ..sync.feeds import Feed, Outlet
from ..upkeep.verify import Verifier
from ..wire.gate import Gate
from ..wire.pace import Pace
from ..wire.recorder import Client
from . import identity

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Archive:
    """Everything that a command works with; a daemon's changes with its config."""

    config: Config
    catalog: Catalog
    database: Embedded | None
    outlets: dict[str, Outlet]
    feeds: dict[str, Feed]
    spool: Spool
    #: By source; it outlives a change of the config, as the requests under way do.
    gates: dict[str, Gate] = field(default_factory=dict)
    #: By id of a source or a store, what closes it.
    _closers: dict[int, AsyncExitStack] = field(default_factory=dict)

    def engine(self, names: Sequence[str] | None = None) -> Engine:
        feeds = {n: f for n, f in self.feeds.items() if names is None or n in names}
        return Engine(self.catalog, feeds, self.spool, transfers=self.config.transfers)

    def open_outlet(self, store: StoreConfig) -> Outlet:
        """A store, not asked yet, until :meth:`close`."""
        stack = AsyncExitStack()
        # Of the config as it is when something is put.
        outlet = make_outlet(store, stack, self.catalog, lambda: worm(self.config))
        self._closers[id(outlet)] = stack
        return outlet

    def open_feed(self, source: SourceConfig, outlets: Mapping[str, Outlet]) -> Feed:
        """A source, not asked yet, until :meth:`close`. Raises tls.BadFile where a certificate's file can't be used."""
        stack, old = AsyncExitStack(), self.feeds.get(source.name)
        gate = self.gates.setdefault(source.name, old.gate if old is not None else Gate(0, pace=Pace()))
        feed = make_feed(source, outlets, self.catalog, stack, gate)
        # Of all sources that the config has when it is asked.
        feed.ask = lambda: identity.ask(self.catalog, source.name, source.options, self.config.sources)
        self._closers[id(feed)] = stack
        return feed

    async def ask(self) -> dict[str, str]:
        """By source what is to be answered before it is polled (see identity.py). Raises CatalogDown."""
        for feed in self.feeds.values():
            feed.question = await feed.ask() if feed.ask is not None else None
        return {name: feed.question for name, feed in self.feeds.items() if feed.question is not None}

    async def close(self, *things: Feed | Outlet) -> None:
        for thing in things:
            stack = self._closers.pop(id(thing), None)
            if stack is not None:
                await stack.aclose()

    async def close_all(self) -> None:
        async with AsyncExitStack() as stack:
            for closer in self._closers.values():
                stack.push_async_callback(closer.aclose)
        self._closers.clear()


def verifier(archive: Archive, engine: Engine, store: str) -> Verifier:
    """What reads a store's copies back; bytes of sources come through the engine's share of them."""
    return Verifier(
        catalog=archive.catalog,
        outlet=archive.outlets[store],
        # As they are now: a new config replaces them while this one reads.
        outlets=dict(archive.outlets),
        feeds=dict(archive.feeds),
        spool=archive.spool,
        lend=engine.shares.lending,
    )


async def describe_all(archive: Archive, store: str, names: Sequence[str]) -> None:
    """A store that came later holds all that is archived of these sources: now it hears of the rest, and the ledger."""
    for name in names:
        await archive.catalog.widen(name, store)
    feeds = {name: archive.feeds[name] for name in names if name in archive.feeds}
    await describe_changes(feeds, archive.catalog)
    await write_ledgers(feeds, archive.catalog)


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


def open_outlets(config: Config, stack: AsyncExitStack, catalog: Catalog | None = None) -> dict[str, Outlet]:
    """The stores, not asked yet, until the stack ends. ``catalog``: knows the disks of those that are folders."""
    return {name: make_outlet(store, stack, catalog, partial(worm, config)) for name, store in config.stores.items()}


def worm(config: Config) -> frozenset[str]:
    """The folders, as names are written in keys, of the sources whose manifests are locked like their recordings."""
    return frozenset(safe(name) for name, source in config.sources.items() if source.options.policy == "worm")


def make_outlet(
    store: StoreConfig, stack: AsyncExitStack, catalog: Catalog | None, locked: Callable[[], Collection[str]]
) -> Outlet:
    """``locked``: asks for the folders whose manifests a store's object lock locks, too."""
    outlet = Outlet(store.name, store.cls(store.name, store.options), store.options.prefix)
    if isinstance(outlet.store, LocksApart):
        outlet.store.worm = locked
    if catalog is not None and isinstance(outlet.store, Marked):
        outlet.store.known = partial(catalog.marker, store.name)
    stack.push_async_callback(outlet.store.close)
    return outlet


@asynccontextmanager
async def opened_catalog(config: Config, need: Need = Need.READABLE) -> AsyncIterator[Catalog]:
    """The catalog alone. Raises CatalogDown."""
    async with AsyncExitStack() as stack:
        catalog, _ = await open_catalog(config, stack, size=2)
        await catalog.ready(need, _migrating)
        yield catalog


def _migrating(file: str, seconds: float) -> None:
    """A big catalog takes its time. Nobody may take that for a hang: systemd would end it, and it would begin anew."""
    log.warning("schema.migrating", file=file, seconds=round(seconds))
    notify(f"EXTEND_TIMEOUT_USEC={60_000_000}")


@asynccontextmanager
async def opened(config: Config, need: Need = Need.MIGRATED) -> AsyncIterator[Archive]:
    """Database, stores and enabled sources. Raises CatalogDown; stores and sources are not asked yet."""
    async with exporting(config.traces_endpoint), AsyncExitStack() as stack:
        catalog, database = await open_catalog(config, stack)
        await catalog.ready(need, _migrating)
        spool = Spool(config.data_dir / "spool", config.memory, config.reserve)
        spool.clear()
        own(config)
        archive = Archive(config=config, catalog=catalog, database=database, outlets={}, feeds={}, spool=spool)
        stack.push_async_callback(archive.close_all)
        archive.outlets |= {name: archive.open_outlet(store) for name, store in config.stores.items()}
        enabled = {name: source for name, source in config.sources.items() if source.options.enabled}
        archive.feeds |= {name: archive.open_feed(source, archive.outlets) for name, source in enabled.items()}
        await archive.ask()
        yield archive


def make_feed(
    source: SourceConfig,
    outlets: Mapping[str, Outlet],
    catalog: Catalog | None,
    stack: AsyncExitStack,
    gate: Gate | None = None,
) -> Feed:
    """A source with its client, its limits and its stores; without a catalog its pace is this process's own.

    Raises tls.BadFile where a certificate's file can't be used.
    """
    options = source.options
    reserve: Callable[[], Awaitable[timedelta]] | None = None
    if options.rate is not None and catalog is not None:
        interval = options.rate.interval

        async def reserve() -> timedelta:
            return await catalog.reserve(source.name, interval)

    gate = gate or Gate(0, pace=Pace())
    gate.reserve = reserve
    if catalog is not None:
        gate.listing_wait = partial(catalog.listing_wait, source.name)
        gate.listing_ended = partial(catalog.listing_ended, source.name)
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


async def prove_stores(archive: Archive, names: Sequence[str] | None = None) -> None:
    """A canary through every store that the sources need. Raises StoreError naming the store.

    Raises ConfigError where a rebuild is not finished: what is listed now would be taken for what was.
    """
    if (rebuild := await archive.catalog.rebuilding()) is not None:
        raise ConfigError([f"a rebuild was interrupted: end it first with `archiver rebuild --store {rebuild.store}`"])
    needed = {s for n, f in archive.feeds.items() if names is None or n in names for s in f.outlets}

    async def prove(name: str) -> None:
        try:
            await recognise(archive.outlets[name], archive.catalog)
            await archive.outlets[name].store.check()
        except StoreError as error:
            raise type(error)(f"store {name}: {error}") from error

    await asyncio.gather(*(prove(name) for name in sorted(needed)))


async def recognise(outlet: Outlet, catalog: Catalog) -> None:
    """A folder that is a store gets an id, which the catalog knows too, unless it is known already.

    Raises StoreError where another disk seems to be mounted there.
    """
    store = outlet.store
    if not isinstance(store, Marked) or await catalog.marker(outlet.name) is not None:
        return
    known = await catalog.some_copies(outlet.name)
    if known and await store.marker() is None and not any([await store.stat(key) for key in known]):
        raise store.stranger(None)
    await accept(outlet, catalog)


async def accept(outlet: Outlet, catalog: Catalog) -> str | None:
    """The folder that lies there now is the store from now on; its id, where it is a folder."""
    if not isinstance(outlet.store, Marked):
        return None
    marker = await outlet.store.mark()
    await catalog.mark(outlet.name, marker)
    return marker
