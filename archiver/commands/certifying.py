"""Certificates of days: issue them, show them, and hand out what a stranger needs to check them."""

from __future__ import annotations

import sys
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import click

from ..common.words import number, plain
from .common import INCOMPLETE, answer, as_json, console, known, load, run
from .completing import SOURCE

if TYPE_CHECKING:
    from ..upkeep.certify import Report

_sources = click.option("--source", "sources", type=SOURCE, multiple=True, metavar="NAME", help="Only this source.")


class Day(click.ParamType[date]):
    """A day, UTC."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        if isinstance(value, date):
            return value
        try:
            return datetime.strptime(value, "%Y-%m-%d").date()  # noqa: DTZ007
        except ValueError:
            self.fail(f'"{value}" is no day; write it like 2024-05-17', param, ctx)


@click.command(short_help="Issue the certificates that are due.")
@_sources
@click.option("--day", "days", type=Day(), multiple=True, help="This day (UTC), though its lookback has not passed.")
@as_json
def certify(sources: tuple[str, ...], days: tuple[date, ...], as_json: bool) -> None:
    """Issue the certificates that are due, and a signed checkpoint over them; the daemon does it by itself.

    A certificate tells what a source listed of a day (UTC) and what became of it. A day is due once its lookback has
    passed. Exit code 1 where a day is not complete, or a store does not hold the log yet.
    """
    from ..service import wiring
    from ..upkeep import certify as certifying

    config = load()
    for name in sources:
        known(config, source=name)

    async def work() -> Report:
        async with wiring.opened(config) as archive:
            feeds = {name: feed for name, feed in archive.feeds.items() if not sources or name in sources}
            return await certifying.certify(
                config, archive.catalog, archive.spool, archive.outlets, feeds, days=days or None
            )

    report = run(work())
    if as_json:
        answer(
            {
                "issued": report.issued,
                "incomplete": report.incomplete,
                "failed": report.failed,
                "size": report.size,
                "stores": report.stores,
                "away": report.away,
                "busy": report.busy,
            }
        )
    elif report.busy:
        click.echo("another process issues certificates just now")
    else:
        for name, count in sorted(report.issued.items()):
            click.echo(f"{name}: {number(count, 'certificate')}")
        for name, count in sorted(report.incomplete.items()):
            told = number(count, "day is", "days are")
            click.echo(f"{name}: {told} not complete (`archiver proof status --source {name}` tells why)")
        for name, why in sorted(report.failed.items()):
            click.echo(plain(f"{name}: no further day can be certified: {why}"), err=True)
        if not report.issued:
            click.echo("nothing is due")
        entries, stores = number(report.size, "entry", "entries"), ", ".join(report.stores) or "no store"
        click.echo(f"the log has {entries}; it lies in {stores}")
        for why in report.away.values():
            click.echo(plain(f"not brought up: {why}"), err=True)
    if report.incomplete or report.problem or report.busy:
        sys.exit(INCOMPLETE)


@click.group(short_help="Show certificates, the key, the stranger's script.")
def proof() -> None:
    """What an outsider needs to check this archive, and what it would tell."""


@proof.command(short_help="A line a source and day.")
@_sources
@click.option("--from", "first", type=Day(), help="From this day on (UTC).")
@click.option("--to", "last", type=Day(), help="Up to this day, and with it.")
@as_json
def status(sources: tuple[str, ...], first: date | None, last: date | None, as_json: bool) -> None:
    """Coverage, counts and certificate of each day; why it is not complete.

    Exit code 1 where a day that is due has no certificate, or one that is not complete.
    """
    from ..service import proof as of_service
    from ..service.wiring import opened

    config = load()
    for name in sources:
        known(config, source=name)

    async def work() -> list[dict[str, Any]]:
        from ..catalog.catalog import Need

        async with opened(config, Need.READABLE) as archive:
            return await of_service.status(archive.catalog, archive.feeds, sources or None, first, last)

    rows = run(work())
    if as_json:
        answer(rows)
    else:
        table = console()
        for row in rows:
            table.print(of_service.line(row), markup=False)
        if not rows:
            click.echo("no day is due yet")
    if any(row["certificate"] is None or row["complete"] is False for row in rows):
        sys.exit(INCOMPLETE)


@proof.command(short_help="The public key.")
@as_json
def key(as_json: bool) -> None:
    """The public key, as verifier key (for verify.py) and as a line of allowed_signers (for ssh-keygen).

    Give it to whoever is to check this archive, by another way than the store.
    """
    from ..proof.note import allowed_signers
    from ..upkeep.public_log import identity

    who = identity(load())
    line = allowed_signers(who.origin, who.verifier.public).strip()
    if as_json:
        answer({"origin": who.origin, "vkey": who.verifier.vkey, "allowed_signers": line})
    else:
        click.echo(who.verifier.vkey)
        click.echo(line)


@proof.command(short_help="The stranger's checker, on standard output.")
def script() -> None:
    """One Python file that checks a copy of a store and needs nothing else."""
    from ..proof import handout

    sys.stdout.buffer.write(handout.script())
