"""What proves and repairs the archive."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from ..common.words import plain
from ..errors import ConfigError
from ..model import utc_text
from . import progress
from .common import INCOMPLETE, UNREACHABLE, Moment, answer, as_json, chosen, console, known, known_here, load, run
from .completing import SOURCE, STORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..settings.config import Config


@click.command(short_help="Read copies back, compare them, repair what is spoilt.")
@click.option("--store", type=STORE, metavar="NAME", help="Only this store.")
@click.option("--source", type=SOURCE, metavar="NAME", help="Only this source's copies.")
@click.option("--budget", metavar="SIZE", help="Stop after reading so much, like 10GiB; the next run goes on there.")
@click.option("--even-if-empty", is_flag=True, help="Repair a store in which not one copy is found.")
@click.option("--orphans", is_flag=True, help="Instead: find bytes that nothing describes; adopt what is waited for.")
@as_json
def verify(
    store: str | None, source: str | None, budget: str | None, even_if_empty: bool, orphans: bool, as_json: bool
) -> None:
    """Read copies back, longest unread first, compare their SHA-256, repair what is spoilt."""
    from ..catalog.catalog import Need
    from ..service import identity, wiring
    from ..settings.options import size as parsed
    from ..sync.commit import write_ledgers, write_verified
    from . import render

    config = load(quiet=sys.stderr.isatty())
    known(config, store=store)
    try:
        limit = parsed(budget) if budget is not None else None
    except ValueError as error:
        raise click.UsageError(f"--budget {error}") from None
    if orphans:
        if source or budget or even_if_empty:
            raise click.UsageError("--orphans goes alone (with --store and --json)")
        find_orphans(config, store, as_json)
        return

    async def work() -> dict[str, Any]:
        async with wiring.opened(config, Need.SAME) as archive:
            await known_here(config, archive.catalog, source)
            engine, left, found = archive.engine(), limit, {}
            outlets = [name for name in archive.outlets if store in {None, name}]
            for name in outlets if even_if_empty else ():
                await wiring.accept(archive.outlets[name], archive.catalog)
            totals = (await archive.catalog.totals()).items()
            held = sum(size for (of, name), (_, size) in totals if name in outlets and source in {None, of})
            with progress.bar("read", of_bytes=True, total=min(held, limit or held)) as shown:
                async with engine.shares.sharing():
                    for name in outlets:
                        reader = wiring.verifier(archive, engine, name)
                        reader.source, reader.even_if_empty, reader.on_read = source, even_if_empty, shown.advance
                        found[name] = await reader.stalest(budget=left)
                        left = max(left - found[name].bytes, 0) if left is not None else None
                    await write_verified(archive.feeds, archive.catalog)
                    await write_ledgers(archive.feeds, archive.catalog)
            away.append(await identity.elsewhere(config, archive.catalog))
            return found

    away: list[tuple[str, str] | None] = []
    found = run(work())
    counts = ("read", "bytes", "good", "bad", "missing", "unreadable", "repaired", "cold", "undescribed", "described")
    stores = {name: {n: getattr(v, n) for n in (*counts, "error", "findings")} for name, v in found.items()}
    # Where nothing was read, nothing is proved.
    complete = all(v.complete for v in found.values()) and any(v.read for v in found.values()) and not any(away)
    if as_json:
        answer({"stores": stores, "elsewhere": _elsewhere(away), "complete": complete})
    else:
        render.verified(console(), stores, complete)
        for line in _elsewhere(away):
            click.echo(line)
    if not complete:
        lost = [v for v in found.values() if v.error and not v.read]
        sys.exit(UNREACHABLE if len(lost) == len(found) else INCOMPLETE)


def _elsewhere(away: Sequence[tuple[str, str] | None]) -> list[str]:
    """What is archived and not looked at, for no store of the config holds it."""
    return [f"{what} → {do}" for what, do in filter(None, away)]


def _demand_answer(source: str, asked: str | None) -> None:
    if asked is not None:
        raise ConfigError([f"source {source}: {asked}"])


def find_orphans(config: Config, store: str | None, as_json: bool) -> None:
    """Exit code 1 where bytes are left that nothing describes."""
    from ..catalog.catalog import Need
    from ..service import wiring
    from ..upkeep import orphans

    async def work() -> dict[str, orphans.Orphans]:
        async with wiring.opened(config, Need.SAME) as archive:
            return {
                name: await orphans.find(archive.catalog, outlet, archive.feeds, archive.spool)
                for name, outlet in archive.outlets.items()
                if store in {None, name}
            }

    found = run(work())
    complete = all(o.complete for o in found.values())
    if as_json:
        stores = {
            name: {
                "objects": o.objects,
                "adopted": o.adopted,
                "orphans": [{"key": key, "size": size, "why": why} for key, size, why in o.left],
                "unlisted": [{"folder": key, "why": why} for key, why in o.unlisted],
                "error": o.error,
            }
            for name, o in found.items()
        }
        answer({"stores": stores, "complete": complete})
    else:
        for name, o in found.items():
            click.echo(f"{name}: {o.objects} objects, {len(o.adopted)} orphans adopted, {len(o.left)} left")
            for line in [f"  adopted {key}" for key in o.adopted] + [f"  {key}: {why}" for key, _, why in o.left]:
                click.echo(plain(line))
            for key, why in o.unlisted:
                click.echo(plain(f"  {key} can't be listed, and what lies there is not known: {why}"))
            if o.error:
                click.echo(plain(f"  {o.error}"))
    if not complete:
        sys.exit(INCOMPLETE)


@click.command()
@click.option("--store", type=STORE, metavar="NAME", required=True, help="The store whose manifests to read.")
@click.option("--drill", is_flag=True, help="Try it out beside the live catalog and compare; nothing is changed.")
@click.option("--sample", type=click.IntRange(min=1), help="With --drill: compare so many recordings, by chance.")
@as_json
def rebuild(store: str, drill: bool, sample: int | None, as_json: bool) -> None:
    """Fill an empty catalog from a store's manifests alone; interrupted, the same command goes on where it stopped."""
    from ..catalog.catalog import Need
    from ..proof import manifests
    from ..service import wiring
    from ..upkeep.rebuild import rebuild as read_manifests

    config = load(quiet=sys.stderr.isatty())
    known(config, store=store)

    if sample is not None and not drill:
        raise click.UsageError("--sample goes with --drill")
    if drill:
        try_rebuild(config, store, sample, as_json)
        return

    async def work() -> Any:
        async with wiring.opened(config, Need.MADE) as archive:
            keys = {name: source.cls.listing_key for name, source in config.sources.items()}
            outlet = archive.outlets[store]
            with progress.bar("read manifests") as shown:
                if shown.shown:
                    shown.of(0, await manifests.count(outlet.store, outlet.prefix))
                return await read_manifests(
                    archive.catalog, outlet, keys, archive.spool, on_lines=lambda _: shown.advance()
                )

    report = run(work(), "interrupted; the same command goes on where it stopped")
    if as_json:
        names = ("manifests", "lines", "recordings", "ledgers", "damaged", "untold", "resumed", "complete")
        answer({n: getattr(report, n) for n in names})
    else:
        click.echo(
            f"{report.recordings} recordings from {report.manifests} manifests ({report.lines} lines),"
            f" ledgers of {report.ledgers} sources"
        )
        for line in report.damaged:
            click.echo(plain(f"damaged: {line}"), err=True)
        for line in report.untold:
            click.echo(plain(line), err=True)
    if not report.complete:
        sys.exit(INCOMPLETE)


@click.command(short_help="Bring what is archived into a store that came later.")
@click.option("--to", "store", type=STORE, metavar="NAME", required=True, help="The store to copy into.")
@click.option("--source", type=SOURCE, metavar="NAME", help="Only this source's recordings.")
@click.option("--from", "start", type=Moment(), help="Only recordings that began then or later.")
@click.option("--until", "end", type=Moment(), help="Only recordings that began before.")
@as_json
def copy(store: str, source: str | None, start: datetime | None, end: datetime | None, as_json: bool) -> None:
    """Bring what is archived elsewhere into a store that came later; run again it goes on where it stopped."""
    from ..catalog.catalog import Need
    from ..service import wiring
    from ..upkeep.copying import Copier
    from . import render

    config = load(quiet=sys.stderr.isatty())
    known(config, store=store)
    meant = {name for name, of in config.sources.items() if store in of.stores}

    async def work() -> Any:
        async with wiring.opened(config, Need.SAME) as archive, archive.catalog.only_one(f"copy:{store}") as mine:
            await known_here(config, archive.catalog, source)
            if not mine:
                return None
            copier = Copier(
                catalog=archive.catalog,
                target=archive.outlets[store],
                outlets=archive.outlets,
                spool=archive.spool,
                meant=meant,
            )
            totals = (await archive.catalog.totals()).items()
            every = sum(count for (of, name), (count, _) in totals if not name and source in {None, of})
            there = sum(count for (of, name), (count, _) in totals if name == store and source in {None, of})
            whole = start is None and end is None
            with progress.bar("copied", total=max(every - there, 0) if whole else None) as shown:
                copier.on_copied = lambda size: shown.advance(1, size)
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


def try_rebuild(config: Config, store: str, sample: int | None, as_json: bool) -> None:
    """Exit code 1 where a rebuild would differ from the live catalog."""
    from ..catalog.catalog import Need
    from ..service import identity, wiring
    from ..upkeep import public_log
    from ..upkeep.rebuild import drill as rebuild_beside

    async def work() -> Any:
        async with wiring.opened(config, Need.SAME) as archive:
            keys = {name: source.cls.listing_key for name, source in config.sources.items()}
            away.append(await identity.elsewhere(config, archive.catalog))
            catalog, outlet, spool = archive.catalog, archive.outlets[store], archive.spool
            report = await rebuild_beside(catalog, outlet, keys, spool, sample=sample)
            report.damaged += await public_log.drill(config, catalog, spool, outlet)
            return report

    away: list[tuple[str, str] | None] = []
    report = run(work())
    complete = report.complete and not any(away)
    if as_json:
        counts = ("compared", "same", "missing", "different", "unknown", "changed_meanwhile", "left_out")
        names = (*counts, "ledgers", "damaged")
        differences = {"differences": report.names, "elsewhere": _elsewhere(away), "complete": complete}
        answer({"store": store} | {n: getattr(report, n) for n in names} | differences)
    else:
        click.echo(f"{store}: {report.compared} recordings compared, {report.same} the same")
        left = report.left_out | ({"changed meanwhile": n} if (n := report.changed_meanwhile) else {})
        if left:
            total = report.compared + sum(left.values())
            why = ", ".join(f"{count} {reason}" for reason, count in left.items())
            of = "" if sample is not None else f" of {total}"
            click.echo(f"  {sum(left.values())}{of} not compared: {why}")
        if not report.compared:
            click.echo("  nothing was compared: that proves nothing")
        for name in report.names:
            click.echo(plain(f"  {name['source']} {name['recording_id']}: {name['problem']}"))
        for source in report.ledgers:
            click.echo(f"  {source}: the store says that more was listed than the catalog does")
        for line in [*(f"damaged: {line}" for line in report.damaged), *_elsewhere(away)]:
            click.echo(plain(f"  {line}"))
    if not complete:
        sys.exit(INCOMPLETE)


@click.command()
@click.option("--source", type=SOURCE, metavar="NAME", required=True, help="The source to list again.")
@click.option("--from", "start", type=Moment(), required=True, help="The first moment (UTC unless it carries a zone).")
@click.option("--to", "end", type=Moment(), required=True, help="The first moment that is no longer wanted.")
@click.option("--dry-run", is_flag=True, help="Compare only; write nothing.")
@as_json
def reconcile(source: str, start: datetime, end: datetime, dry_run: bool, as_json: bool) -> None:
    """List some time again and compare both ways; what is missing here falls due.

    Exits with 1 where something is at the source and not here, changed, or gone from there before it was archived.
    """
    from ..catalog.catalog import Need
    from ..model import Window
    from ..service import wiring
    from ..upkeep.reconcile import reconcile as compare

    config = load(quiet=sys.stderr.isatty())
    chosen(config, (source,))
    end = min(end, datetime.now(UTC) - config.sources[source].options.settle)
    if start >= end:
        raise click.UsageError("--from must lie before --to and before now (less the source's settle time)")

    async def work() -> Any:
        async with wiring.opened(config, Need.SAME) as archive:
            _demand_answer(source, archive.feeds[source].question)
            engine, options = archive.engine([source]), config.sources[source].options
            default = archive.catalog.clock.now() - timedelta(hours=24)
            await archive.catalog.source(source, options.kind, default_start=default, start=options.start)
            async with engine.shares.sharing(), engine.shares.lending(source):
                return await compare(archive.feeds[source], archive.catalog, Window(start, end), dry_run=dry_run)

    report = run(work(), "interrupted; run it again")
    names = ("not_here", "no_longer_there", "changed")
    document = {
        "source": source,
        "from": utc_text(start),
        "to": utc_text(end),
        "windows": report.windows,
        "listed": len(report.listed),
        "same": len(report.listed - report.not_here.keys() - report.changed.keys()),
        **{name: list(getattr(report, name).values()) for name in names},
        "rejected": report.rejected,
        "never_listed": [str(window) for window in report.new],
        "failed": report.failed,
        "error": report.error,
        "complete": report.complete,
    }
    if as_json:
        answer(document)
    else:
        click.echo(f"{source}: {document['listed']} recordings listed, {document['same']} as the catalog has them")
        if report.all_new:
            click.echo("  nothing of this time was ever listed before: there was nothing to compare with")
        elif report.new:
            click.echo(
                f"  never listed before: {', '.join(map(str, report.new[:10]))}{' …' if report.new[10:] else ''}"
            )
        words = "at the source and not here", "here and no longer at the source", "changed"
        for name, what in zip(names, words, strict=True):
            for d in getattr(report, name).values():
                state = f", {d['state']}" if "state" in d else ""
                click.echo(plain(f"  {what}: {d['started_at']} {d['recording_id']}{state}"))
        if report.rejected:
            click.echo(f"  {report.rejected} rows could not be read")
        for line in report.failed:
            click.echo(plain(f"could not be listed: {line}"), err=True)
        if report.error:
            click.echo(plain(f"the listing stopped at {report.error}"), err=True)
    if not report.complete:
        sys.exit(UNREACHABLE if report.error and not report.windows else INCOMPLETE)
