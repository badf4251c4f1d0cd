"""What the commands share: arguments, the config, the answer on standard output, the end by a signal."""

from __future__ import annotations

import asyncio
import gc
import getpass
import json
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..common.words import nearest

if TYPE_CHECKING:
    from types import FrameType

    from ..catalog.catalog import Catalog
    from ..settings.config import Config

INCOMPLETE, USAGE, UNREACHABLE = 1, 2, 3
_T = TypeVar("_T")


class Moment(click.ParamType[datetime]):
    """A date or date-time; without a zone it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f'"{value}" is no time; write it like 2024-05-17 or 2024-05-17T11:45:00Z', param, ctx)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Span(click.ParamType[timedelta]):
    """A duration like 90s, 5m, 1h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        from ..settings.options import duration

        try:
            return duration(value)
        except ValueError as error:
            self.fail(f'"{value}" {error}', param, ctx)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
wait = click.option("--wait", type=Span(), default="0s", help="Also wait for retries that fall due within this time.")


def load(*, quiet: bool = True, asks_recorders: bool = True) -> Config:
    """The config, with logging set up by it; ``quiet`` commands log warnings only. Raises ConfigError.

    ``asks_recorders``: as for config.load.
    """
    from ..common import log
    from ..settings import config

    given = click.get_current_context().obj
    loaded = config.load(config.find(given["config"]), asks_recorders=asks_recorders)
    level = given["level"] or ("warning" if quiet else loaded.log_level)
    log.configure(level=level, json=None, secrets=loaded.secrets)
    for warning in config.warnings(loaded):
        click.echo(f"warning: {warning}", err=True)
    return loaded


def answer(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(as_text(document, indent=2 if sys.stdout.isatty() else None))


def as_text(document: Any, indent: int | None = None) -> str:
    utf8 = sys.stdout.encoding.lower() in {"utf-8", "utf8"}
    return json.dumps(document, ensure_ascii=not utf8, indent=indent)


def run(work: Coroutine[Any, Any, _T], interrupted: str = "", code: int | None = None) -> _T:
    """Run to the end. SIGTERM ends it as Ctrl-C does: in order, so that leases are given back at once.

    Says ``interrupted`` then and exits with ``code`` (default: 128 and the signal's number).
    """
    ended_by = signal.SIGINT
    interrupt: Any = signal.default_int_handler
    # A shell's script starts what runs in its background so: Ctrl-C is not meant for it. But SIGTERM is.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal ended_by
        ended_by = signal.SIGTERM
        interrupt(number, frame)

    async def begun() -> _T:
        nonlocal interrupt
        # The runner's own, which it sets in place of Python's default only.
        interrupt = signal.getsignal(signal.SIGINT)
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return await work

    signal.signal(signal.SIGTERM, terminate)
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # What is loaded by now stays; and the recordings on their way are no garbage yet.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(begun())
    except KeyboardInterrupt:
        # It may not have begun.
        work.close()
        if interrupted:
            click.echo(interrupted, err=True)
        sys.exit(128 + ended_by if code is None else code)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        # No wheel for this platform; it is only faster.
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def console(*, err: bool = False) -> Any:
    from rich.console import Console

    # Off a terminal lines are as long as they are: others grep them.
    width = None if (sys.stderr if err else sys.stdout).isatty() else 250
    return Console(stderr=err, highlight=False, emoji=False, width=width)


@asynccontextmanager
async def catalog_of(config: Config, need: str = "READABLE") -> AsyncIterator[Catalog]:
    """The catalog alone. ``need``: of catalog.Need."""
    from ..catalog.catalog import Need
    from ..service.wiring import opened_catalog

    async with opened_catalog(config, Need[need]) as catalog:
        yield catalog


def known(config: Config, *, source: str | None = None, store: str | None = None) -> None:
    """Raises click.UsageError, which tells the nearest name, where the config has no such source, or no such store."""
    for what, name, names in (("source", source, config.sources), ("store", store, config.stores)):
        if name is not None and name not in names:
            alike = nearest(name, names)
            told = ", ".join(sorted(alike[:10])) + (" …" if len(alike) > 10 else "")
            raise click.UsageError(f'there is no {what} "{name}"; the config has {told}; the nearest is "{alike[0]}"')


async def known_here(config: Config, catalog: Catalog, source: str | None) -> None:
    """The same for what asks the catalog: it still knows sources that have left the config."""
    if source not in {None, *config.sources} and source not in {row["name"] for row in await catalog.sources()}:
        known(config, source=source)


def me() -> str:
    """Who types this, as the audit says it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "?"


def chosen(config: Config, names: tuple[str, ...]) -> list[str]:
    """The named sources, or all that are enabled. Raises click.UsageError for one that is unknown or off."""
    for name in names:
        known(config, source=name)
        if not config.sources[name].options.enabled:
            raise click.UsageError(f'source "{name}" is switched off: set enabled = true in the config')
    return list(names) or [n for n, s in config.sources.items() if s.options.enabled]
