"""What copies recordings: the daemon, one pass, history, another try."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from . import progress
from .common import INCOMPLETE, UNREACHABLE, Moment, answer, as_json, catalog_of, chosen, console, load, run, wait
from .completing import SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..model import Window
    from ..settings.config import Config


@click.command("run")
def run_daemon() -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    from ..service import daemon, wiring

    # Until the daemon listens to it, a wish to reload must not end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config = load(quiet=False)
    level = click.get_current_context().obj["level"]

    async def serve() -> None:
        async with wiring.opened(config) as archive:
            await daemon.Daemon(archive, log_level=level).run()

    run(serve(), code=0)


@click.command(short_help="One pass: list up to now, transfer all that is due, end.")
@click.argument("sources", nargs=-1, type=SOURCE, metavar="[SOURCE]...")
@wait
@as_json
def sync(sources: tuple[str, ...], wait: timedelta, as_json: bool) -> None:
    """One pass: list everything up to now, transfer until nothing is due, print a summary."""
    config = load(quiet=sys.stderr.isatty())
    names = chosen(config, sources)
    finish(config, names, as_json, wait=wait)


@click.command(short_help="Archive the calls between two moments.")
@click.option("--source", type=SOURCE, metavar="NAME", required=True, help="The source to read.")
@click.option("--from", "start", type=Moment(), help="Calls that began from then on (UTC unless it carries a zone).")
@click.option("--to", "end", type=Moment(), help="And before then.")
@click.option(
    "--ids", type=click.File("r", encoding="utf-8"), help="A file of call ids, one a line (- for standard input)."
)
@click.option("--relist", is_flag=True, help="List all of it again, not only what was never listed.")
@click.option("--dry-run", is_flag=True, help="List and count only; write nothing.")
@wait
@as_json
def backfill(
    source: str,
    start: datetime | None,
    end: datetime | None,
    ids: Any,
    relist: bool,
    dry_run: bool,
    wait: timedelta,
    as_json: bool,
) -> None:
    """Archive the calls that began between two moments (or of given ids); run again it goes on where it stopped."""
    from ..model import Window
    from ..ports import LooksUp

    config = load(quiet=sys.stderr.isatty())
    names = chosen(config, (source,))
    if ids is not None:
        if not issubclass(config.sources[source].cls, LooksUp):
            kind = config.sources[source].options.kind
            raise click.UsageError(f"{source} can't be asked for single call ids ({kind}); use --from and --to")
        if start or end or relist or dry_run:
            raise click.UsageError("--ids goes alone (with --source, --wait and --json)")
        call_ids = list(dict.fromkeys(ids_of(ids)))
        finish(config, names, as_json, wait=wait, call_ids=call_ids)
        return
    if start is None or end is None:
        raise click.UsageError("say which time: --from T --to T (or --ids FILE)")
    end = min(end, datetime.now(UTC) - config.sources[source].options.settle)
    if start >= end:
        raise click.UsageError("--from must lie before --to and before now (less the source's settle time)")
    if dry_run:
        count(config, source, Window(start, end), relist, as_json)
        return
    finish(config, names, as_json, wait=wait, wanted=Window(start, end), relist=relist)


def ids_of(lines: Iterable[str]) -> Iterator[str]:
    """The ids of a file, one a line."""
    from ..sources.kit.idfile import line_id

    for number, line in enumerate(lines, 1):
        try:
            told = line_id(line.removeprefix("\ufeff"))
        except ValueError:
            raise click.UsageError(f"line {number} of --ids is no id: {line.strip()[:40]!a}") from None
        if told is not None:
            yield told


def finish(config: Config, names: list[str], as_json: bool, **how: Any) -> None:
    """Run once, print the summary, exit by it."""
    from ..service import once, report, wiring

    async def work() -> dict[str, once.Summary]:
        async with wiring.opened(config) as archive, progress.archiving(names, how.get("wanted")) as on_engine:
            return await once.run_once(archive, names, on_engine=on_engine, **how)

    summaries = run(work(), "interrupted; the same command goes on where it stopped")
    document = report.summary(summaries)
    if as_json:
        answer(document)
    else:
        from . import render

        render.summary(console(), document)
    if not document["complete"]:
        from_the_start = [s for s in summaries.values() if s.polled.error and not s.polled.windows and not s.archived]
        sys.exit(UNREACHABLE if len(from_the_start) == len(summaries) else INCOMPLETE)


def count(config: Config, source: str, wanted: Window, relist: bool, as_json: bool) -> None:
    """List, print what the backfill would take, exit by whether it was all listed."""
    from ..catalog.catalog import Need
    from ..service import once, wiring

    async def work() -> once.Cost:
        async with (
            wiring.opened(config, Need.MADE) as archive,
            progress.listing("listed windows", archive.feeds[source]) as shown,
        ):
            return await once.count_only(archive, source, wanted, relist=relist, on_window=shown.of)

    cost = run(work())
    document = {"source": source, **cost.document()}
    if as_json:
        answer(document)
    else:
        from . import render

        render.cost(console(), document, wanted, config.sources[source])
    if cost.error:
        sys.exit(UNREACHABLE if not cost.windows else INCOMPLETE)


@click.command()
@click.option("--source", type=SOURCE, metavar="NAME", help="Only this source.")
@click.option(
    "--state", type=click.Choice(["failed", "gone", "empty"]), default="failed", show_default=True, help="Which."
)
@as_json
def retry(source: str | None, state: str, as_json: bool) -> None:
    """Make failed (or gone, or empty) media due again now."""
    from ..model import State

    config = load()
    if source is not None:
        chosen(config, (source,))

    async def work() -> int:
        async with catalog_of(config, "SAME") as catalog:
            return await catalog.retry(source, State(state))

    number = run(work())
    if as_json:
        answer({"due": number})
    else:
        click.echo(f"{number} {state} media are due again; `archiver sync` or the daemon fetches them")
