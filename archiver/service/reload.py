"""A new config for a running daemon: noticed, read, judged, and taken as a whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ..common.log import redact
from ..common.words import reason_of
from ..errors import ArchiverError, CatalogDown, ConfigError
from ..settings import config as configs
from ..settings.config import Changes, Config, Stamp
from ..sync.engine import Engine
from ..sync.feeds import Feed, Outlet
from ..wire.tls import BadFile
from . import identity
from .wiring import Archive, recognise

log = structlog.get_logger()

#: Fields of Config that open what can't be changed under running work.
_FIXED = {
    "data_dir": "data_dir",
    "database_url": "database.url",
    "http_listen": "http.listen",
    "traces_endpoint": "traces.endpoint",
}


class Watch:
    """Notices that the config file, or one that it refers to, is another than the one that was read.

    Only what stays the same from one look to the next: an editor may be half-way through.
    """

    def __init__(self, files: Mapping[Path, Stamp]) -> None:
        self.files = dict(files)
        self._last: dict[Path, Stamp] = {}

    def changed(self) -> bool:
        now = {path: configs.stamp(path) for path in self.files}
        settled, self._last = now == self._last, now
        return settled and now != self.files


@dataclass(slots=True)
class Taken:
    """What a new config changed in the archive."""

    changes: Changes
    #: Sources that were opened (anew), and those that no longer run.
    renewed: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    #: What nothing new uses any more; to be closed once nobody does.
    retired: list[Feed | Outlet] = field(default_factory=list)


def read(path: Path, files: dict[Path, Stamp]) -> Config:
    """The config as it is now; ``files`` gets what was looked at. Raises ConfigError."""
    for _ in range(3):
        files.clear()
        try:
            loaded = configs.load(path, files)
        except ConfigError:
            if all(configs.stamp(file) == at for file, at in files.items()):
                raise
        else:
            if all(configs.stamp(file) == at for file, at in files.items()):
                return loaded
        # Someone wrote while we read.
    raise ConfigError([f"{path.name}: changes while it is read; it is read again when that has ended"])


def digest(path: Path) -> str | None:
    """SHA-256 of a file that could not be taken, where it can be read at all."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


async def take(archive: Archive, engine: Engine, new: Config) -> Taken:
    """Work by the new config from now on. Raises ConfigError, having changed nothing.

    What is under way ends with the source and the stores that it began with. A store that is new or changed must pass
    its canary first, so that a mistyped key does not stop an archive that works.
    """
    old = archive.config
    taken = Taken(configs.diff(old, new))
    fixed = [_FIXED[name] for name in taken.changes.settings_changed if name in _FIXED]
    if fixed:
        raise ConfigError(
            [f"{new.path.name}: {name}: needs a restart, it can't change while running" for name in fixed]
        )
    opened: list[Feed | Outlet] = []
    try:
        outlets = await _outlets(archive, new, taken.changes, opened)
        feeds = _feeds(archive, new, taken.changes, outlets, opened)
    except BaseException:
        await archive.close(*opened)
        raise
    questions = await _questions(archive, new)
    taken.renewed = sorted(feeds)
    taken.stopped = sorted(n for n in archive.feeds if n not in new.sources or not new.sources[n].options.enabled)
    taken.retired = [archive.feeds[name] for name in archive.feeds if name in feeds or name in taken.stopped]
    taken.retired += [outlet for name, outlet in archive.outlets.items() if outlets.get(name) is not outlet]
    # At once, so that nobody sees half of it.
    _replace(archive.outlets, outlets)
    kept = {name: feed for name, feed in archive.feeds.items() if name not in taken.stopped}
    _replace(archive.feeds, kept | feeds)
    archive.config, archive.spool.memory, engine.transfers = new, new.memory, new.transfers
    archive.spool.reserve = new.reserve
    for name, asked in questions.items():
        archive.feeds[name].question = asked
    for feed in feeds.values():
        engine.put(feed)
    for name in taken.stopped:
        await engine.remove(name)
    return taken


async def _questions(archive: Archive, new: Config) -> dict[str, str | None]:
    """By enabled source what is to be answered before it is polled; a database that is away is asked with each poll."""
    enabled = {name: source.options for name, source in new.sources.items() if source.options.enabled}
    try:
        rows = {row["name"]: row for row in await archive.catalog.sources()}
        asked = {name: identity.question(name, options, rows, new.sources) for name, options in enabled.items()}
        return {name: str(question) if question is not None else None for name, question in asked.items()}
    except CatalogDown:
        return {}


def _replace(there: dict[str, Feed] | dict[str, Outlet], new: Mapping[str, Feed] | Mapping[str, Outlet]) -> None:
    there.clear()
    there.update(new)  # type: ignore[arg-type]


async def _outlets(archive: Archive, new: Config, changes: Changes, opened: list[Feed | Outlet]) -> dict[str, Outlet]:
    """All stores of the new config: those that stay as they are, and those that were opened and proved."""
    fresh = {}
    for name in (*changes.stores_added, *changes.stores_changed):
        fresh[name] = archive.open_outlet(new.stores[name])
        opened.append(fresh[name])
    results = await asyncio.gather(*(_proved(outlet, archive) for outlet in fresh.values()))
    if problems := [redact(f"{new.path.name}: {problem}") for problem in results if problem]:
        raise ConfigError(problems)
    return {name: fresh.get(name) or archive.outlets[name] for name in new.stores}


async def _proved(outlet: Outlet, archive: Archive) -> str | None:
    try:
        await recognise(outlet, archive.catalog)
        await outlet.store.check()
    except ArchiverError as error:
        return " ".join(f"stores.{outlet.name}: {error}".split())
    return None


def _feeds(
    archive: Archive, new: Config, changes: Changes, outlets: Mapping[str, Outlet], opened: list[Feed | Outlet]
) -> dict[str, Feed]:
    """The sources that are new, changed, or write to a store that is."""
    feeds = {}
    for name, source in new.sources.items():
        same = name in archive.feeds and source == archive.config.sources[name]
        if not source.options.enabled or (same and not set(source.stores) & set(changes.stores_changed)):
            continue
        try:
            feeds[name] = archive.open_feed(source, outlets)
        except BadFile as error:
            raise ConfigError([f"{new.path.name}: sources.{name}: {reason_of(error)}"]) from None
        except Exception as error:
            log.exception("source.unusable", source=name)
            raise ConfigError([f"{new.path.name}: sources.{name}: can't be opened ({type(error).__name__})"]) from None
        opened.append(feeds[name])
    return feeds
