"""`rebuild`: an empty catalog filled from what one store says about itself; or tried out beside the live one (a drill).

Manifests are streamed. How far it has come is committed with what was read, so that the same command goes on there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime

from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Document, Drill, RebuildProgress, Retold
from ..common.scope import listed
from ..errors import ConfigError
from ..model import ListingKey
from ..proof import manifests
from ..proof.layout import safe
from ..sync.feeds import Outlet
from ..sync.windows import subtract
from . import audit

#: Recordings to one transaction, or bytes of their lines, at least.
BATCH = 5000
BATCH_BYTES = 4 << 20
#: Recordings that a drill compares at once.
COMPARED = 500

_Only = Callable[[Sequence[manifests.Recording]], Awaitable[Sequence[manifests.Recording]]]
#: Differences that a drill names; it counts them all.
NAMED = 100


@dataclass(slots=True)
class Rebuilt:
    manifests: int = 0
    lines: int = 0
    recordings: int = 0
    ledgers: int = 0
    #: Manifests that could not be read, and why.
    damaged: list[str] = field(default_factory=list)
    #: What no manifest tells of though it should.
    untold: list[str] = field(default_factory=list)
    #: It went on where an earlier one had stopped.
    resumed: bool = False

    @property
    def complete(self) -> bool:
        return not (self.damaged or self.untold)


@dataclass(slots=True)
class Drilled:
    """How a rebuild would differ from the live catalog. The lists name the first hundred each."""

    compared: int = 0
    same: int = 0
    #: Not compared: it changed while the drill ran.
    changed_meanwhile: int = 0
    #: Not compared, for no store could tell it: how many recordings, by reason.
    left_out: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    different: int = 0
    unknown: int = 0
    names: list[Document] = field(default_factory=list)
    #: Sources of which the store says that more was listed than the live catalog does.
    ledgers: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Nothing differs; and where nothing was compared, nothing is proved."""
        return self.compared > 0 and not (
            self.missing or self.different or self.unknown or self.ledgers or self.damaged
        )


async def rebuild(
    catalog: Catalog,
    outlet: Outlet,
    keys: Mapping[str, ListingKey],
    spool: Spool,
    *,
    on_lines: Callable[[int], None] | None = None,
) -> Rebuilt:
    """Read every manifest and ledger of the store. ``keys``: by source, what its listings go by.

    Raises ConfigError where the catalog holds recordings already that no interrupted rebuild brought, StoreError.
    """
    async with catalog.only_one("rebuild") as mine:
        if not mine:
            raise ConfigError(["another rebuild is under way"])
        begun = await catalog.rebuilding()
        if begun is None and not await catalog.is_empty():
            raise ConfigError(
                ["the catalog is not empty: rebuild fills an empty one only (point [database] at a new one)"]
            )
        if begun is not None and begun.store != outlet.name:
            raise ConfigError([f"a rebuild from store {begun.store} was interrupted: end that one first"])
        report = await _fill(catalog, outlet, keys, spool, begun, None, on_lines)
        report.resumed = begun is not None
        report.damaged += await audit.read_back(catalog, outlet, spool)
        report.untold = await _untold(outlet, keys)
        return report


async def _untold(outlet: Outlet, sources: Iterable[str]) -> list[str]:
    """What no manifest tells of: everything, or the media of a source. Raises StoreError."""
    base = f"{outlet.prefix}_manifests/"
    if not await _any(outlet, base):
        place = ", ".join(what for name, what in outlet.store.location(base).items() if name != "kind")
        media = " Objects lie there that no manifest describes" if await _any(outlet, outlet.prefix) else ""
        return [f"no manifest below {place}; is this the right bucket and prefix?{media}"]
    return [
        f"source {name}: its media lie there, and no manifest describes them"
        for name in map(safe, sources)
        if await _any(outlet, f"{outlet.prefix}{name}/") and not await _any(outlet, f"{base}{name}/")
    ]


async def _any(outlet: Outlet, prefix: str) -> bool:
    """Does anything lie there? What can't be listed is something."""
    async with aclosing(listed(outlet.store, prefix)) as found:
        async for _ in found:
            return True
    return False


async def _fill(
    catalog: Catalog,
    outlet: Outlet,
    keys: Mapping[str, ListingKey],
    spool: Spool,
    begun: RebuildProgress | None,
    only: _Only | None,
    on_lines: Callable[[int], None] | None = None,
) -> Rebuilt:
    progress = await _recordings(catalog, outlet, keys, spool, begun, only, on_lines)
    report = Rebuilt(progress.manifests, progress.lines, progress.recordings, damaged=list(progress.damaged))
    async with aclosing(manifests.read_verified(outlet.store, outlet.prefix, spool)) as found:
        async for part in found:
            report.damaged += [f"{part.key}: {part.problem}"] if part.problem is not None else []
            for line in part.documents:
                moment = datetime.fromisoformat(line["verified_at"])
                await catalog.rebuild_verified(line["store"], line["keys"], moment)
    async with aclosing(manifests.read_ledgers(outlet.store, outlet.prefix, spool)) as found:
        async for part in found:
            report.damaged += [f"{part.key}: {part.problem}"] if part.problem is not None else []
            for ledger in part.documents:
                # What a damaged manifest told is unknown: its source is listed again from its start.
                lost = safe(ledger["source"]) in progress.distrusted
                await catalog.rebuild_ledger(ledger | {"covered": [], "cursor": None} if lost else ledger)
                report.ledgers += 1
    await catalog.rebuilt()
    return report


async def _recordings(
    catalog: Catalog,
    outlet: Outlet,
    keys: Mapping[str, ListingKey],
    spool: Spool,
    begun: RebuildProgress | None,
    only: _Only | None,
    on_lines: Callable[[int], None] | None,
) -> RebuildProgress:
    """What all manifests tell; the next batch is read and made ready while the database works on this one."""
    progress = begun or RebuildProgress(store=outlet.name)
    waiting: list[manifests.Recording] = []
    lines = size = 0
    writing: asyncio.Future[RebuildProgress] | None = None

    async def flush() -> None:
        nonlocal progress, size, writing
        retold = await asyncio.to_thread(Retold, await only(waiting) if only else waiting, keys, catalog.clock.now())
        waiting.clear()
        size = 0
        if writing is not None:
            progress = replace(progress, recordings=(await writing).recordings)
        writing = asyncio.ensure_future(catalog.rebuild(retold, progress))

    try:
        async with aclosing(manifests.read(outlet.store, outlet.prefix, spool, after=progress.after)) as parts:
            async for part in parts:
                waiting += part.documents
                lines += len(part.documents)
                size += part.size
                if part.problem is not None:
                    # Of one that can't be listed (a folder) nobody knows which manifests it holds.
                    progress = replace(
                        progress,
                        damaged=list(dict.fromkeys([*progress.damaged, f"{part.key}: {part.problem}"])),
                        distrusted=sorted({*progress.distrusted, part.folder}),
                    )
                if part.last:
                    read = progress.manifests + (not part.key.endswith("/"))
                    progress = replace(progress, after=part.key, manifests=read, lines=progress.lines + lines)
                    lines = 0
                if part.last and on_lines is not None:
                    on_lines(len(part.documents))
                if len(waiting) >= BATCH or size >= BATCH_BYTES:
                    await flush()
        await flush()
        return await writing if writing is not None else progress
    finally:
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)


async def drill(
    catalog: Catalog, outlet: Outlet, keys: Mapping[str, ListingKey], spool: Spool, *, sample: int | None = None
) -> Drilled:
    """Rebuild all, or a sample of so many recordings, in a scratch schema, and compare; nothing else is written.

    All manifests are read either way. Raises ConfigError where another drill runs, StoreError.
    """
    async with catalog.drill(outlet.name, sample) as scratch:
        if scratch is None:
            raise ConfigError(["another drill is under way"])
        rebuilt = await _fill(scratch.scratch, outlet, keys, spool, None, scratch.wanted)
        report = Drilled(damaged=rebuilt.damaged, left_out=scratch.left_out)
        await _compare(scratch, report)
        if not scratch.sampled:
            for source, recording_id in await scratch.unknown(NAMED):
                report.unknown += 1
                report.names.append(_name(source, recording_id, "unknown here"))
        live = {row["name"]: row["covered"] for row in await catalog.sources()}
        for row in await scratch.scratch.sources():
            if subtract(row["covered"], live.get(row["name"], ())):
                report.ledgers.append(row["name"])
        return report


async def _compare(scratch: Drill[Catalog], report: Drilled) -> None:
    after = ("", "")
    while found := await scratch.keys(after, COMPARED):
        after = found[-1][:2]
        wanted = [(source, recording_id) for source, recording_id, same in found if same]
        report.changed_meanwhile += len(found) - len(wanted)
        live, again = await scratch.live.documents(wanted), await scratch.scratch.documents(wanted)
        for key in wanted:
            report.compared += 1
            if key not in again:
                report.missing += 1
                problem: str | None = "not in the store's manifests"
            else:
                fields = differences(live[key][0], again[key][0]) if key in live else []
                report.different += bool(fields)
                problem = f"other {', '.join(fields)}" if fields else None
            if problem is None:
                report.same += 1
            elif len(report.names) < NAMED:
                report.names.append(_name(*key, problem))


def differences(live: Document, again: Document) -> list[str]:
    """The fields in which two documents of a recording differ.

    When its copies were verified does not count. Nor does a coding that the store does not tell: earlier versions wrote
    none, and `verify` fills it in.
    """
    others = {m["media_id"]: _timeless(m) for m in again["media"]}
    media = {m["media_id"]: _timeless(m) for m in live["media"]}
    for name in media.keys() & others.keys():
        if others[name]["coding"] is None:
            media[name]["coding"] = None
    fields = [name for name in live if name != "media" and live[name] != again.get(name)]
    return fields + [f"medium {name}" for name in sorted({*media, *others}) if media.get(name) != others.get(name)]


def _timeless(medium: Document) -> Document:
    return medium | {"copies": [c | {"verified_at": None} for c in medium["copies"]]}


def _name(source: str, recording_id: str, problem: str) -> Document:
    return {"source": source, "recording_id": recording_id, "problem": problem}
