"""What comes before, and the demo."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .common import INCOMPLETE, UNREACHABLE, answer, as_json, catalog_of, console, load, run


@click.command(short_help="Try the config, the database, each store and each source.")
@click.option("--offline", is_flag=True, help="Only the config file.")
@as_json
def check(offline: bool, as_json: bool) -> None:
    """Validate the config; try the database, each store and each source: one line each.

    Exits with 3 where one can't be reached, with 1 where all can but `status` says that something is wrong. What it
    only notes is marked NOTE.
    """
    from ..service import checks
    from . import render

    config = load()
    results = run(checks.check(config, offline=offline))
    if as_json:
        answer({"checks": [r._asdict() for r in results], "ok": all(r.ok for r in results)})
    elif sys.stdout.isatty():
        render.checks(console(), [(checks.mark(r), r.what, r.line) for r in results])
    else:
        # Others grep these lines.
        for result in results:
            click.echo(checks.line(result))
    if not all(r.ok for r in results):
        sys.exit(INCOMPLETE if all(r.ok or r.warning or r.refused for r in results) else UNREACHABLE)


@click.command()
@as_json
def migrate(as_json: bool) -> None:
    """Bring the database schema up to date."""
    config = load()

    async def work() -> int:
        async with catalog_of(config, "MIGRATED") as catalog:
            return await catalog.version()

    version = run(work())
    if as_json:
        answer({"version": version})
    else:
        click.echo(f"the schema is at version {version}")


@click.command(short_help="Simulated recorders and a fresh archive: nothing to configure.")
@click.option("--folder", default=".demo", show_default=True, metavar="PATH", help="Where the demo's archive lives.")
@click.option(
    "--calls", default=300, show_default=True, type=click.IntRange(10, 5000), help="How many calls of yesterday."
)
def demo(folder: str, calls: int) -> None:
    """Simulated recorders, a fresh archive with its own database: nothing to configure."""
    from . import demo as demonstration

    sys.exit(demonstration.main(Path(folder), calls))
