"""`check`: the config, the database, each store, each source; one line each saying what is wrong and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import NamedTuple

from yarl import URL

from ..catalog.catalog import Catalog, newest
from ..common.log import redact
from ..common.words import number, plain, reason_of
from ..errors import ArchiverError, CatalogDown, WrongZone, with_advice
from ..proof.note import ProofError
from ..settings.config import Config, SourceConfig, StoreConfig
from ..sync.feeds import Outlet
from ..upkeep.public_log import identity
from ..wire.exchange import Origin
from ..wire.proxies import way
from ..wire.tls import BadFile
from .conditions import BY_NAME, Level
from .report import status
from .wiring import make_feed, open_catalog, open_outlets


class Result(NamedTuple):
    what: str
    ok: bool
    line: str
    #: It can be reached, and yet something is wrong.
    warning: bool = False
    #: It can be reached, and is not used until this is mended.
    refused: bool = False
    #: Nothing is wrong enough for another exit code.
    note: bool = False


def line(result: Result) -> str:
    """As people read it."""
    return f"{mark(result):<8}{result.what}: {result.line}"


def mark(result: Result) -> str:
    return ("NOTE" if result.note else "ok") if result.ok else "WARNING" if result.warning else "FAILED"


async def check(config: Config, *, offline: bool) -> list[Result]:
    """Everything that can be tried, tried at once; a failure hides no other."""
    sources, stores = number(len(config.sources), "source"), number(len(config.stores), "store")
    results = [Result("config", True, f"{config.path}: {sources}, {stores}")]
    if offline:
        return results
    async with AsyncExitStack() as stack:
        catalog, result = await _database(config, stack)
        results.append(result)
        results += _messages(config)
        results += await asyncio.to_thread(_proof, config)
        outlets = open_outlets(config, stack, catalog)
        results += await asyncio.gather(*(_store(outlet) for outlet in outlets.values()))
        tried = (_source(source, outlets, catalog, stack) for source in config.sources.values())
        results += await asyncio.gather(*tried)
        if catalog is not None:
            failed = {result.what for result in results if not result.ok}
            results += await _conditions(config, catalog, failed)
    return [_shown(result) for result in results]


def _proof(config: Config) -> list[Result]:
    """The key that signs the certificates, once there is one."""
    if config.proof.key is None and not (config.data_dir / "proof" / "key").exists():
        return []
    try:
        who = identity(config, make=config.proof.key is not None)
    except ProofError as error:
        return [Result("proof", False, str(error), warning=True)]
    line = f"certificates are signed as {who.verifier.vkey}"
    if config.proof.key is None:
        line += f"; the key lies in {config.data_dir / 'proof'} only: keep a copy elsewhere, or name it in [proof] key"
    return [Result("proof", True, line, note=config.proof.key is None)]


async def one(entry: SourceConfig | StoreConfig) -> Result:
    """A single source or store, before there is an archive."""
    async with AsyncExitStack() as stack:
        if isinstance(entry, SourceConfig):
            return _shown(await _source(replace(entry, stores=()), {}, None, stack))
        outlet = Outlet(entry.name, entry.cls(entry.name, entry.options), entry.options.prefix)
        stack.push_async_callback(outlet.store.close)
        return _shown(await _store(outlet))


def _shown(result: Result) -> Result:
    return result._replace(line=redact(plain(" ".join(result.line.split()))))


async def _database(config: Config, stack: AsyncExitStack) -> tuple[Catalog | None, Result]:
    try:
        catalog, embedded = await open_catalog(config, stack, size=2)
        found = await catalog.check()
        if embedded:
            embedded.check_room()
        version = await catalog.version()
    except CatalogDown as error:
        return None, Result("database", False, with_advice(error))
    kind = f"embedded in {config.data_dir}" if embedded else "given by url"
    # Without our tables no rate can be kept either.
    return catalog if version == newest() else None, Result("database", True, f"{kind}, {found}")


def _messages(config: Config) -> list[Result]:
    """Where they go through a proxy; none is sent."""
    found = []
    for what, url in (("webhook", config.alerts.webhook), ("heartbeat", config.heartbeat_url)):
        if url is not None and (by := way(Origin.of(URL(url.get_secret_value())), config.alerts.proxy)):
            found.append(Result(what, True, f"{by}, not tried"))
    return found


async def _store(outlet: Outlet) -> Result:
    try:
        return Result(f"store {outlet.name}", True, await outlet.store.check())
    except ArchiverError as error:
        return Result(f"store {outlet.name}", False, with_advice(error))


async def _conditions(config: Config, catalog: Catalog, failed: Collection[str]) -> list[Result]:
    """What `status` says is wrong, but for what was just tried, and failed."""
    try:
        document = await status(config, catalog)
    except CatalogDown as error:
        return [Result("database", False, with_advice(error))]
    found = []
    for problem in document["problems"]:
        of, name = problem["of"], problem["name"]
        what = f"{of} {name}" if of != name else name
        condition = BY_NAME[problem["condition"]]
        if condition.idle or (condition.tried and what in failed):
            continue
        wrong = condition.level is Level.ERROR
        line = f"{problem['what']} → {problem['do']}"
        found.append(Result(what, not wrong, line, warning=wrong, note=not wrong))
    return found


async def _source(
    source: SourceConfig, outlets: dict[str, Outlet], catalog: Catalog | None, stack: AsyncExitStack
) -> Result:
    name = source.name
    if not source.options.enabled:
        return Result(f"source {name}", True, "switched off (enabled = false), not tried")
    try:
        feed = make_feed(source, outlets, catalog, stack)
        feed.gate.limit = source.options.concurrency
        seen = await feed.source.check()
        by = way(Origin.of(URL(source.options.base_url)), source.options.proxy)
        return Result(f"source {name}", True, "; ".join(filter(None, [seen, by])))
    except WrongZone as error:
        return Result(f"source {name}", False, with_advice(error), refused=True)
    except ArchiverError as error:
        return Result(f"source {name}", False, with_advice(error))
    except BadFile as error:
        line = f"{reason_of(error)} → name a PEM file that this user may read"
        return Result(f"source {name}", False, line)
