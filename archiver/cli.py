"""The commands (contract: "Commands"). Standard output is the answer, standard error the talk.

Exit codes: 0 done and complete · 1 not complete · 2 usage or config error · 3 something needed can't be reached ·
130 and 143 ended by SIGINT and SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from .errors import ArchiverError, CatalogDown, ConfigError, SourceError, StoreError

if TYPE_CHECKING:
    from .catalog import Catalog
    from .config import Config
    from .engine import Engine
    from .model import Copy

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
        from .options import duration

        try:
            return duration(value)
        except ValueError as error:
            self.fail(f'"{value}" {error}', param, ctx)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
wait = click.option("--wait", type=Span(), default="0s", help="Also wait for retries that fall due within this time.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    help="The config; else $ARCHIVER_CONFIG, ./archiver.toml, /etc/archiver/archiver.toml.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="How much to log to standard error."
)
@click.version_option(__version__, "-V", "--version", prog_name="archiver")
@click.pass_context
def cli(context: click.Context, config_path: str | None, log_level: str | None) -> None:
    """Keep phone call recordings safe outside the recorder that made them, and prove that none is missing."""
    context.obj = {"config": config_path, "level": log_level}


def load(*, quiet: bool = True) -> Config:
    """The config, with logging set up by it; ``quiet`` commands log warnings only. Raises ConfigError."""
    from . import config, log

    given = click.get_current_context().obj
    loaded = config.load(config.find(given["config"]))
    level = given["level"] or ("warning" if quiet else loaded.log_level)
    log.configure(level=level, json=None, secrets=loaded.secrets)
    for warning in config.warnings(loaded):
        click.echo(f"warning: {warning}", err=True)
    return loaded


def answer(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(_json(document, indent=2 if sys.stdout.isatty() else None))


def _json(document: Any, indent: int | None = None) -> str:
    utf8 = sys.stdout.encoding.lower() in {"utf-8", "utf8"}
    return json.dumps(document, ensure_ascii=not utf8, indent=indent)


def run(work: Coroutine[Any, Any, _T], interrupted: str = "", code: int | None = None) -> _T:
    """Run to the end. SIGTERM ends it as Ctrl-C does: in order, so that leases are given back at once.

    Says ``interrupted`` then and exits with ``code`` (default: 128 and the signal's number).
    """
    ended_by = signal.SIGINT

    def terminate(*_: object) -> None:
        nonlocal ended_by
        ended_by = signal.SIGTERM
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, terminate)
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        if interrupted:
            click.echo(interrupted, err=True)
        sys.exit(128 + ended_by if code is None else code)


def console(*, err: bool = False) -> Any:
    from rich.console import Console

    # Off a terminal lines are as long as they are: others grep them.
    width = None if (sys.stderr if err else sys.stdout).isatty() else 250
    return Console(stderr=err, highlight=False, emoji=False, width=width)


@asynccontextmanager
async def catalog_of(config: Config) -> AsyncIterator[Catalog]:
    """The catalog alone, for commands that only read."""
    from .wiring import read_only

    async with read_only(config) as catalog:
        yield catalog


def known(config: Config, name: str) -> None:
    """Raises click.UsageError where the config has no such source."""
    if name not in config.sources:
        raise click.UsageError(f'there is no source "{name}"; the config has {", ".join(sorted(config.sources))}')


def chosen(config: Config, names: tuple[str, ...]) -> list[str]:
    """The named sources, or all that are enabled. Raises click.UsageError for one that is unknown or off."""
    for name in names:
        known(config, name)
        if not config.sources[name].options.enabled:
            raise click.UsageError(f'source "{name}" is switched off (enabled = false)')
    return list(names) or [n for n, s in config.sources.items() if s.options.enabled]


# -- doing -------------------------------------------------------------------------------------------------------------


@cli.command("run")
def run_daemon() -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    from . import daemon, wiring

    config = load(quiet=False)

    async def serve() -> None:
        async with wiring.opened(config) as archive:
            await daemon.Daemon(archive).run()

    run(serve(), code=0)


@cli.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@wait
@as_json
def sync(sources: tuple[str, ...], wait: timedelta, as_json: bool) -> None:
    """One pass: list everything up to now, transfer until nothing is due, print a summary."""
    config = load(quiet=sys.stderr.isatty())
    names = chosen(config, sources)
    finish(config, names, as_json, wait=wait)


@cli.command()
@click.option("--source", required=True, help="The source to read.")
@click.option("--from", "start", type=Moment(), help="The first moment (UTC unless it carries a zone).")
@click.option("--to", "end", type=Moment(), help="The first moment that is no longer wanted.")
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
    """Archive the history between two moments (or of given call ids); run again it goes on where it stopped."""
    from .model import Window
    from .ports import LooksUp

    config = load(quiet=sys.stderr.isatty())
    names = chosen(config, (source,))
    if ids is not None:
        if not issubclass(config.sources[source].cls, LooksUp):
            kind = config.sources[source].options.kind
            raise click.UsageError(f"{source} can't be asked for single call ids ({kind}); use --from and --to")
        if start or end or relist or dry_run:
            raise click.UsageError("--ids goes alone (with --source, --wait and --json)")
        call_ids = [line.strip() for line in ids if line.strip() and not line.startswith("#")]
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


def finish(config: Config, names: list[str], as_json: bool, **how: Any) -> None:
    """Run once, print the summary, exit by it."""
    from . import daemon, render, report, wiring

    async def work() -> dict[str, daemon.Summary]:
        async with wiring.opened(config) as archive:
            with progress() as on_engine:
                return await daemon.run_once(archive, names, on_engine=on_engine, **how)

    summaries = run(work(), "interrupted; the same command goes on where it stopped")
    document = report.summary(summaries)
    if as_json:
        answer(document)
    else:
        render.summary(console(), document)
    if not document["complete"]:
        from_the_start = [s for s in summaries.values() if s.polled.error and not s.polled.windows and not s.archived]
        sys.exit(UNREACHABLE if len(from_the_start) == len(summaries) else INCOMPLETE)


def count(config: Config, source: str, wanted: Any, relist: bool, as_json: bool) -> None:
    from . import daemon, render, wiring

    async def work() -> daemon.Summary:
        async with wiring.opened(config) as archive:
            return await daemon.count_only(archive, source, wanted, relist=relist)

    summary = run(work())
    document = {
        "source": source,
        "windows": summary.polled.windows,
        "recordings": summary.polled.listed,
        "bytes": summary.bytes or None,
        "requests": summary.requests,
        "error": summary.polled.error,
    }
    if as_json:
        answer(document)
    else:
        size = render.size(summary.bytes) if summary.bytes else "size not told by the source"
        click.echo(
            f"{source}: {summary.polled.listed} recordings in {summary.polled.windows} windows not yet listed, {size},"
            f" about {summary.requests} requests to the source; nothing was written"
        )
        if summary.polled.error:
            click.echo(render.plain(f"the listing stopped at {summary.polled.error}"), err=True)
    if summary.polled.error:
        sys.exit(UNREACHABLE if not summary.polled.windows else INCOMPLETE)


@contextlib.contextmanager
def progress() -> Any:
    """On a terminal a bar that counts finished media; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TransferSpeedColumn(), console=console(err=True), transient=True) as bars:
        bar = bars.add_task("archived", total=None)

        def watch(engine: Engine) -> None:
            engine.on_settled = lambda *_: bars.advance(bar)

        yield watch


@cli.command()
@click.option("--source", help="Only this source.")
@click.option("--state", type=click.Choice(["failed", "gone", "empty"]), default="failed", show_default=True)
@as_json
def retry(source: str | None, state: str, as_json: bool) -> None:
    """Make failed (or gone, or empty) media due again now."""
    from .model import State

    config = load()
    if source is not None:
        chosen(config, (source,))

    async def work() -> int:
        async with catalog_of(config) as catalog:
            return await catalog.retry(source, State(state))

    number = run(work())
    if as_json:
        answer({"due": number})
    else:
        click.echo(f"{number} {state} media are due again; `archiver sync` or the daemon fetches them")


@cli.command()
@as_json
def migrate(as_json: bool) -> None:
    """Bring the database schema up to date."""
    config = load()

    async def work() -> int:
        async with catalog_of(config) as catalog:
            return await catalog.version()

    version = run(work())
    if as_json:
        answer({"version": version})
    else:
        click.echo(f"the schema is at version {version}")


@cli.command()
@click.option("--offline", is_flag=True, help="Only the config file.")
@as_json
def check(offline: bool, as_json: bool) -> None:
    """Validate the config; try the database, each store and each source: one line each."""
    from . import checks

    config = load()
    results = run(checks.check(config, offline=offline))
    if as_json:
        answer({"checks": [r._asdict() for r in results], "ok": all(r.ok for r in results)})
    else:
        for result in results:
            mark = "ok     " if result.ok else "FAILED "
            click.echo(f"{mark} {result.what}: {result.line}")
    if not all(r.ok for r in results):
        sys.exit(UNREACHABLE)


@cli.command()
@click.option("--store", help="Only this store.")
@click.option("--source", help="Only this source's copies.")
@click.option("--budget", metavar="SIZE", help="Stop after reading so much, like 10GiB; the next run goes on there.")
@click.option("--even-if-empty", is_flag=True, help="Repair a store in which not one copy is found.")
@as_json
def verify(store: str | None, source: str | None, budget: str | None, even_if_empty: bool, as_json: bool) -> None:
    """Read copies back, longest unread first, compare their SHA-256, repair what is spoilt."""
    from . import render, wiring
    from .options import size
    from .verify import verify as read_back

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
            left, found = limit, {}
            for name, outlet in archive.outlets.items():
                if store in {None, name}:
                    how = archive.catalog, outlet, archive.outlets, archive.feeds, archive.spool
                    found[name] = await read_back(*how, source=source, budget=left, even_if_empty=even_if_empty)
                    left = max(left - found[name].bytes, 0) if left is not None else None
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


@cli.command()
@click.option("--store", required=True, help="The store whose manifests to read.")
@as_json
def rebuild(store: str, as_json: bool) -> None:
    """Fill an empty catalog from a store's manifests alone."""
    from . import wiring
    from .rebuild import rebuild as read_manifests

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


# -- reading -----------------------------------------------------------------------------------------------------------


@cli.command()
@as_json
def status(as_json: bool) -> None:
    """Per source: lag, coverage, gaps, counts, last error; per store: copies and bytes."""
    from . import render, report

    config = load()

    async def work() -> dict[str, Any]:
        async with catalog_of(config) as catalog:
            return await report.status(config, catalog)

    document = run(work())
    if as_json:
        answer(document)
    else:
        render.status(console(), document)


@cli.command("list")
@click.option("--source")
@click.option("--from", "start", type=Moment())
@click.option("--to", "end", type=Moment())
@click.option("--caller", help="Number; * is a wildcard.")
@click.option("--callee", help="Number; * is a wildcard.")
@click.option("--direction", type=click.Choice(["inbound", "outbound", "internal", "unknown"]))
@click.option("--state", type=click.Choice(["pending", "archived", "failed", "gone", "empty"]))
@click.option("--text", help="Anywhere in ids, names, queues, attributes and what the vendor sent.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many (on a terminal: 100).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
def list_recordings(as_json: bool, limit: int | None, **filters: Any) -> None:
    """Recordings, oldest first."""
    from . import render
    from .catalog import Query

    config = load()
    most = None if limit or as_json or not sys.stdout.isatty() else 100
    query = Query(limit=most + 1 if most else limit, **filters)

    async def work() -> list[dict[str, Any]]:
        found = []
        async with catalog_of(config) as catalog:
            async for document in catalog.find(query):
                if as_json:
                    click.echo(_json(document))
                else:
                    found.append(document)
        return found

    found = run(work())
    if not as_json:
        render.recordings(console(), found[:most])
        if most and len(found) > most:
            click.echo("there are more: give a --limit, or filters", err=True)


def _one(read: Callable[..., Any], source: str, recording_id: str) -> dict[str, Any]:
    config = load()

    async def work() -> Any:
        async with catalog_of(config) as catalog:
            return await read(catalog, source, recording_id)

    document: dict[str, Any] | None = run(work())
    if document is None:
        click.echo(
            f'there is no recording "{recording_id}" of source "{source}"; `archiver list` shows what there is',
            err=True,
        )
        sys.exit(INCOMPLETE)
    return document


@cli.command()
@click.argument("source")
@click.argument("recording_id")
@as_json
def show(source: str, recording_id: str, as_json: bool) -> None:
    """One recording with its media, copies, attempts and events."""
    from . import render, report

    document = _one(report.show, source, recording_id)
    if as_json:
        answer(document)
    else:
        render.recording(console(), document)


@cli.command()
@click.argument("source")
@click.argument("recording_id")
@as_json
def why(source: str, recording_id: str, as_json: bool) -> None:
    """A recording's history: the windows that listed it, each attempt and what came of it."""
    from . import render, report

    document = _one(report.why, source, recording_id)
    if as_json:
        answer(document)
    else:
        render.story(console(), document)


@cli.command()
@click.argument("source")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@as_json
def rejected(source: str, limit: int, as_json: bool) -> None:
    """Rows of a source's listings that could not be read, as they came."""
    from . import render

    config = load()

    async def work() -> list[dict[str, Any]]:
        async with catalog_of(config) as catalog:
            return await catalog.rejected(source, limit)

    rows = run(work())
    if not rows:
        known(config, source)
    if as_json:
        answer(rows)
        return
    for row in rows:
        told = f"{row['last_at']} ({row['times']}×) {render.plain(row['reason'])}"
        click.echo(f"{told}\n    {render.plain(row['raw'][:500])}")


@cli.command()
@click.argument("source")
@click.argument("recording_id")
@click.argument("media_id", required=False)
@click.option("-o", "--output", required=True, metavar="PATH", help="Where to write; - is standard output.")
@click.option("--raw", is_flag=True, help="The bytes as archived, encrypted ones too.")
def get(source: str, recording_id: str, media_id: str | None, output: str, raw: bool) -> None:
    """Write the archived bytes of a recording's audio, after checking their SHA-256.

    Encrypted media are decrypted where the source's options hold the key (--raw: not even then).
    """
    from functools import partial

    from . import render, wiring
    from .ports import Decrypts

    config = load()

    async def work() -> str | None:
        async with wiring.opened(config) as archive:
            found = await archive.catalog.documents([(source, recording_id)])
            if (source, recording_id) not in found:
                return f'there is no recording "{recording_id}" of source "{source}"'
            media = [m["media_id"] for m in found[source, recording_id][0]["media"]]
            if media_id is None and len(media) != 1:
                return f"it has {len(media)} media, say which: {', '.join(media)}"
            wanted = media_id or media[0]
            if wanted not in media:
                return f'it has no medium "{wanted}"; it has {", ".join(media)}'
            copies = await archive.catalog.copies_of(source, recording_id, wanted)
            feed, clear = archive.feeds.get(source), None
            if not raw and feed is not None and isinstance(feed.source, Decrypts):
                clear = partial(feed.source.decrypted, found[source, recording_id][0], wanted)
            return await _write(archive, copies, output, clear)

    problem = run(work())
    if problem:
        click.echo(render.plain(problem), err=True)
        sys.exit(INCOMPLETE)


async def _write(archive: Any, copies: list[Copy], output: str, clear: Callable[[bytes], bytes] | None) -> str | None:
    """The newest content (an older one is not what was asked for) from the first store that has it whole."""
    from .model import Body

    problems = []
    newest = max(copies, key=lambda c: c.archived_at).sha256 if copies else None
    for copy in (c for c in copies if c.sha256 == newest):
        outlet = archive.outlets.get(copy.store)
        if outlet is None:
            problems.append(f"store {copy.store} is not in the config")
            continue
        with archive.spool.sink() as sink:
            try:
                await outlet.store.get(copy.key, sink)
            except StoreError as error:
                problems.append(f"store {copy.store}: {error}")
                continue
            body = await sink.body()
            if body.sha256 != copy.sha256:
                problems.append(f"store {copy.store}: the bytes of {copy.key} are not those that were archived")
                continue
            if clear is not None:
                body = Body.of(clear(await asyncio.to_thread(body.read)))
            await asyncio.to_thread(_save, body, output)
            return None
    return "; ".join(problems) or "it is not archived yet; see `archiver why`"


def _save(body: Any, output: str) -> None:
    if output == "-":
        for chunk in body.chunks():
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    target = Path(output)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent)) from None
    temporary = Path(name)
    try:
        digest = hashlib.sha256()
        with os.fdopen(handle, "wb") as file:
            for chunk in body.chunks():
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != body.sha256:
            raise StoreError("the bytes changed while they were written")
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@cli.command()
@click.option("--folder", default=".demo", show_default=True, metavar="PATH", help="Where the demo's archive lives.")
@click.option(
    "--calls", default=300, show_default=True, type=click.IntRange(10, 5000), help="How many calls of yesterday."
)
def demo(folder: str, calls: int) -> None:
    """Simulated recorders, a fresh archive with its own database: nothing to configure."""
    from . import demo as demonstration

    sys.exit(demonstration.main(Path(folder), calls))


def main() -> None:
    """The console script: every error is one clear line, and the contract's exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(standalone_mode=True)
    except BaseExceptionGroup as group:
        _fail(_first(group))
    except (ArchiverError, OSError) as error:
        _fail(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(error: BaseException) -> None:
    from .log import redact
    from .render import plain

    if isinstance(error, ConfigError):
        click.echo(str(error), err=True)
        sys.exit(USAGE)
    if isinstance(error, CatalogDown | StoreError | SourceError):
        click.echo(plain(redact(f"archiver: {error}")), err=True)
        sys.exit(UNREACHABLE)
    if isinstance(error, OSError):
        click.echo(redact(f"archiver: {error.strerror or error}: {error.filename or ''}".rstrip(": ")), err=True)
        sys.exit(INCOMPLETE)
    if isinstance(error, ArchiverError):
        click.echo(plain(redact(f"archiver: {error}")), err=True)
        sys.exit(INCOMPLETE)
    raise error
