"""What only reads."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..common.words import plain
from ..errors import CatalogDown, ConfigError
from ..model import Flag
from .common import INCOMPLETE, Moment, Span, answer, as_json, as_text, catalog_of, console, known_here, load, run
from .completing import SOURCE
from .running import tell_live

if TYPE_CHECKING:
    from ..catalog.catalog import Query
    from ..settings.config import Config

FLAGS = [flag.value for flag in Flag]
#: `status --watch`: seconds between two looks, and of no answer.
EVERY, PATIENCE = 2.0, 30.0
_F = TypeVar("_F", bound=Callable[..., Any])


@click.command()
@click.option("--watch", "live", is_flag=True, help="Look again every 2 s, until Ctrl-C.")
@as_json
def status(live: bool, as_json: bool) -> None:
    """How each source and store is, what is wrong, and what to do.

    Per source: lag (how far behind now its listing is), gaps in it, media by state, the last error; per store: copies
    and bytes.
    """
    from ..service import report
    from . import render

    if live and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch is for a terminal; a program asks `archiver status --json` again and again")
    try:
        config = load()
    except ConfigError:
        tell_live(as_json)
        raise
    if live:
        run(_watch(config), code=0)
        return

    async def work() -> dict[str, Any]:
        async with catalog_of(config) as catalog:
            return await report.status(config, catalog)

    document = run(work())
    if as_json:
        answer(document)
    else:
        render.status(console(), document)


async def _watch(config: Config) -> None:
    """Show the status anew for ever; where the database is lost, the last one with a line that says so."""
    from rich.console import Group
    from rich.live import Live

    from ..common.log import redact
    from ..service import report
    from . import render

    screen = console()
    parts: list[Any] = []
    title = "[bold]archiver[/]; Ctrl-C ends"
    async with catalog_of(config) as catalog:
        with Live(console=screen, auto_refresh=False, screen=True, vertical_overflow="crop") as view:
            while True:
                began, trouble = time.monotonic(), []
                try:
                    async with asyncio.timeout(PATIENCE):
                        parts = render.status_parts(screen, await report.status(config, catalog))
                    title = f"[bold]archiver[/] at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, every 2 s; Ctrl-C ends"
                except (CatalogDown, TimeoutError) as error:
                    why = redact(render.clean(error)) or f"no answer within {PATIENCE:.0f} s"
                    trouble = [f"[red]the database can't be reached:[/] {why}", "[dim]as it was before:[/]"]
                view.update(Group(title, *trouble, "", *parts), refresh=True)
                # A large catalog is not asked all the time.
                await asyncio.sleep(max(EVERY, 5 * (time.monotonic() - began)) if not trouble else EVERY)


#: What chooses recordings; `bundle` takes them, too.
FILTERS = (
    click.option("--source", "source", type=SOURCE, metavar="NAME", help="Only this source."),
    click.option(
        "--from", "start", type=Moment(), help="Started at this moment or later (UTC unless it carries a zone)."
    ),
    click.option("--to", "end", type=Moment(), help="Started before this moment."),
    click.option("--caller", help="Number; * is a wildcard."),
    click.option("--callee", help="Number; * is a wildcard."),
    click.option(
        "--direction",
        type=click.Choice(["inbound", "outbound", "internal", "unknown"]),
        help="As seen from the company.",
    ),
    click.option(
        "--state",
        type=click.Choice(["pending", "archived", "failed", "gone", "empty"]),
        help="Of its least finished medium.",
    ),
    click.option(
        "--flag",
        type=click.Choice(FLAGS),
        help="Kept as evidence: the end mark is missing, nobody could check it, far less audio than told.",
    ),
    click.option(
        "--text",
        help="Words of ids, names, queues, attributes and what the vendor sent, all of which occur;"
        " * at the end of one: its beginning.",
    ),
    click.option("--longer-than", type=Span(), help="Calls that last longer, like 90s."),
    click.option("--shorter-than", type=Span(), help="Calls that last less."),
    click.option("--number", help="Of either party, however written."),
    click.option("--agent", help="Part of an agent's name, number or user; * is a wildcard."),
    click.option("--queue", help="Part of a queue's name; * is a wildcard."),
    click.option("--newest", is_flag=True, help="Newest first."),
)


def filtered(command: _F) -> _F:
    """A command that takes :data:`FILTERS`."""
    for option in reversed(FILTERS):
        command = option(command)
    return command


def query_of(config: Config, filters: dict[str, Any], limit: int | None) -> Query:
    """Raises click.UsageError for a number that is none."""
    from ..catalog.catalog import Query
    from ..common.numbers import understood

    if filters["number"] is not None:
        try:
            number = understood(filters["number"], config.countries)
        except ValueError as error:
            raise click.UsageError(f"--number: {plain(error)}") from None
        filters = filters | {"number": number.ending, "code": number.code, "abroad": number.abroad}
    return Query(limit=limit, **filters)


@click.command("list")
@filtered
@click.option("--limit", type=click.IntRange(min=1), help="At most so many (on a terminal: 100).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
def list_recordings(as_json: bool, limit: int | None, **filters: Any) -> None:
    """Recordings, oldest first."""
    from . import render

    config = load()
    most = None if limit or as_json or not sys.stdout.isatty() else 100
    query = query_of(config, filters, most + 1 if most else limit)

    async def work() -> list[dict[str, Any]]:
        found = []
        async with catalog_of(config) as catalog:
            await known_here(config, catalog, query.source)
            async for document in catalog.find(query):
                if as_json:
                    click.echo(as_text(document))
                else:
                    found.append(document)
        return found

    found = run(work())
    if not as_json:
        if not found:
            click.echo("no recording matches; fewer filters find more", err=True)
            return
        render.recordings(console(), found[:most])
        if most and len(found) > most:
            click.echo("there are more: give a --limit, or filters", err=True)


def _one(read: Callable[..., Any], source: str, recording_id: str) -> dict[str, Any]:

    config = load()

    async def work() -> Any:
        async with catalog_of(config) as catalog:
            await known_here(config, catalog, source)
            return await read(catalog, source, recording_id)

    document: dict[str, Any] | None = run(work())
    if document is None:
        click.echo(plain(unknown(source, recording_id)), err=True)
        sys.exit(INCOMPLETE)
    return document


def unknown(source: str, recording_id: str) -> str:
    return f'there is no recording "{recording_id}" of source "{source}"; `archiver list --source {source}` shows them'


@click.command()
@click.argument("source", type=SOURCE)
@click.argument("recording_id")
@as_json
def show(source: str, recording_id: str, as_json: bool) -> None:
    """One recording with its media, copies, attempts and events."""
    from ..service import report
    from . import render

    document = _one(report.show, source, recording_id)
    if as_json:
        answer(document)
    else:
        render.recording(console(), document)


@click.command(short_help="What happened to a recording, and when; or at a moment.")
@click.argument("source", type=SOURCE, required=False)
@click.argument("recording_id", required=False)
@click.option("--source", "of", type=SOURCE, metavar="NAME", help="With --at: whose moment.")
@click.option("--at", "at", type=Moment(), help="In place of a recording: a moment (UTC unless it carries a zone).")
@click.option("--number", help="With --at: only calls of this number, however written.")
@as_json
def why(
    source: str | None,
    recording_id: str | None,
    of: str | None,
    at: datetime | None,
    number: str | None,
    as_json: bool,
) -> None:
    """Why a call is here, or is not.

    SOURCE RECORDING_ID: a recording's history, which is the windows that listed it, each attempt and what came of it.
    --source S --at T: that moment, which is when its window was listed and how often, which calls the recorder told of
    around it, which of them fit, and what is not known.
    """
    from ..service import account, report
    from . import render

    if at is None and (source is None or recording_id is None):
        raise click.UsageError("name a recording (SOURCE RECORDING_ID), or a moment (--source S --at T)")
    if at is None and (of is not None or number is not None):
        raise click.UsageError("--source and --number go with --at")
    if at is None:
        document = _one(report.why, str(source), str(recording_id))
    elif recording_id is not None or (of is None) == (source is None):
        raise click.UsageError("with --at name the source once, and no recording: --source S --at T")
    else:
        config, name = load(), str(of or source)

        async def work() -> dict[str, Any]:
            async with catalog_of(config) as catalog:
                await known_here(config, catalog, name)
                return await account.moment(config, catalog, name, at, number)

        document = run(work())
    if as_json:
        answer(document)
    elif at is None:
        render.story(console(), document)
    else:
        render.around(console(), document)


@click.command()
@click.option("--since", type=Moment(), help="From this moment on (UTC unless it carries a zone); default: 24 h ago.")
@click.option("--until", type=Moment(), help="Up to this moment; default: now.")
@as_json
def report(since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """What happened: listed, new, archived, failed, healed, repaired, by source and store; by default in the last 24 h.

    Healed: archived after it had failed. Below the tables stands what is wrong now.
    """
    from ..service import account
    from . import render

    config = load()

    async def work() -> dict[str, Any]:
        async with catalog_of(config) as catalog:
            end = until or catalog.clock.now()
            start = since or end - timedelta(days=1)
            if start >= end:
                raise click.UsageError("--since must lie before --until")
            return await account.happened(config, catalog, start, end)

    document = run(work())
    if as_json:
        answer(document)
    else:
        render.happened(console(), document)


@click.command(short_help="Rows of a source's listings that could not be read.")
@click.argument("source", type=SOURCE)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@as_json
def rejected(source: str, limit: int, as_json: bool) -> None:
    """Rows of a source's listings that could not be read, as they came."""

    config = load()

    async def work() -> list[dict[str, Any]]:
        async with catalog_of(config) as catalog:
            await known_here(config, catalog, source)
            return await catalog.rejected(source, limit)

    rows = run(work())
    if as_json:
        answer(rows)
        return
    if not rows:
        click.echo("every row of its listings could be read")
    for row in rows:
        told = f"{row['last_at']} ({row['times']}×) {plain(row['reason'])}"
        click.echo(f"{told}\n    {plain(row['raw'][:500])}")
