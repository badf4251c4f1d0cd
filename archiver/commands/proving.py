"""What proves and repairs the archive."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click

from .common import INCOMPLETE, UNREACHABLE, Moment, answer, as_json, console, load, run


@click.command()
@click.option("--store", help="Only this store.")
@click.option("--source", help="Only this source's copies.")
@click.option("--budget", metavar="SIZE", help="Stop after reading so much, like 10GiB; the next run goes on there.")
@click.option("--even-if-empty", is_flag=True, help="Repair a store in which not one copy is found.")
@as_json
def verify(store: str | None, source: str | None, budget: str | None, even_if_empty: bool, as_json: bool) -> None:
    """Read copies back, longest unread first, compare their SHA-256, repair what is spoilt."""
    from .. import render, wiring
    from ..options import size
    from ..sync import tell_verified

    config = load(quiet=sys.stderr.isatty())
    for name, known, what in ((store, config.stores, "store"), (source, config.sources, "source")):
        if name is not None and name not in known:
            raise click.UsageError(f'there is no {what} "{name}"; the config has {", ".join(sorted(known))}')
    try:
        limit = size(budget) if budget is not None else None
    except ValueError as error:
        raise click.UsageError(f"--budget {error}") from None

    async def work() -> dict[str, Any]:
        async with wiring.opened(config) as archive:
            engine, left, found = archive.engine(), limit, {}
            async with engine.sharing():
                for name in archive.outlets:
                    if store in {None, name}:
                        reader = wiring.verifier(archive, engine, name)
                        reader.source, reader.even_if_empty = source, even_if_empty
                        found[name] = await reader.stalest(budget=left)
                        left = max(left - found[name].bytes, 0) if left is not None else None
                await tell_verified(archive.feeds, archive.catalog)
            return found

    found = run(work())
    names = ("read", "bytes", "good", "bad", "missing", "repaired", "error", "findings")
    stores = {name: {n: getattr(v, n) for n in names} for name, v in found.items()}
    complete = all(v.complete for v in found.values())
    if as_json:
        answer({"stores": stores, "complete": complete})
    else:
        render.verified(console(), stores, complete)
    if not complete:
        lost = [v for v in found.values() if v.error and not v.read]
        sys.exit(UNREACHABLE if len(lost) == len(found) else INCOMPLETE)


@click.command()
@click.option("--store", required=True, help="The store whose manifests to read.")
@as_json
def rebuild(store: str, as_json: bool) -> None:
    """Fill an empty catalog from a store's manifests alone."""
    from .. import wiring
    from ..rebuild import rebuild as read_manifests

    config = load(quiet=sys.stderr.isatty())
    if store not in config.stores:
        raise click.UsageError(f'there is no store "{store}"; the config has {", ".join(sorted(config.stores))}')

    async def work() -> Any:
        async with wiring.opened(config) as archive:
            keys = {name: source.cls.listing_key for name, source in config.sources.items()}
            return await read_manifests(archive.catalog, archive.outlets[store], keys, archive.spool)

    report = run(work())
    if as_json:
        names = ("manifests", "lines", "recordings", "ledgers", "damaged")
        answer({n: getattr(report, n) for n in names} | {"complete": not report.damaged})
    else:
        click.echo(
            f"{report.recordings} recordings from {report.manifests} manifests ({report.lines} lines),"
            f" ledgers of {report.ledgers} sources"
        )
        for line in report.damaged:
            click.echo(f"damaged: {line}", err=True)
    if report.damaged:
        sys.exit(INCOMPLETE)


@click.command()
@click.option("--to", "store", required=True, help="The store to copy into.")
@click.option("--source", help="Only this source's recordings.")
@click.option("--from", "start", type=Moment(), help="Only recordings that began then or later.")
@click.option("--until", "end", type=Moment(), help="Only recordings that began before.")
@as_json
def copy(store: str, source: str | None, start: datetime | None, end: datetime | None, as_json: bool) -> None:
    """Bring what is archived elsewhere into a store that came later; run again it goes on where it stopped."""
    from .. import render, wiring
    from ..copying import Copier

    config = load(quiet=sys.stderr.isatty())
    if store not in config.stores:
        raise click.UsageError(f'there is no store "{store}"; the config has {", ".join(sorted(config.stores))}')
    meant = {name for name, of in config.sources.items() if store in of.stores}

    async def work() -> Any:
        async with wiring.opened(config) as archive, archive.catalog.only_one(f"copy:{store}") as mine:
            if not mine:
                return None
            copier = Copier(
                catalog=archive.catalog,
                target=archive.outlets[store],
                outlets=archive.outlets,
                spool=archive.spool,
                meant=meant,
            )
            report = await copier.copy(source, (start, end))
            if report.complete and start is None and end is None:
                await wiring.describe_all(archive, store, [name for name in meant if source in {None, name}])
            return report

    report = run(work(), "interrupted; the same command goes on where it stopped")
    if report is None:
        click.echo(f"another `archiver copy --to {store}` is under way", err=True)
        sys.exit(INCOMPLETE)
    names = ("copies", "bytes", "failed")
    sources = {name: {n: getattr(of, n) for n in names} for name, of in report.sources.items()}
    if as_json:
        told = {"store": store, "sources": sources, "findings": report.findings, "error": report.error}
        answer(told | {"complete": report.complete})
    else:
        render.copied(console(), store, sources, [*report.findings, *filter(None, [report.error])])
    if not report.complete:
        sys.exit(UNREACHABLE if report.error and not report.sources else INCOMPLETE)
