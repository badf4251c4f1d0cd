"""What only reads."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, StoreError
from .common import INCOMPLETE, Moment, answer, as_json, as_text, catalog_of, console, known, load, run
from .running import tell_live

if TYPE_CHECKING:
    from ..model import Copy


@click.command()
@as_json
def status(as_json: bool) -> None:
    """Per source: lag, coverage, gaps, counts, last error; per store: copies and bytes."""
    from .. import render, report

    try:
        config = load()
    except ConfigError:
        tell_live(as_json)
        raise

    async def work() -> dict[str, Any]:
        async with catalog_of(config) as catalog:
            return await report.status(config, catalog)

    document = run(work())
    if as_json:
        answer(document)
    else:
        render.status(console(), document)


@click.command("list")
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
    from .. import render
    from ..catalog import Query

    config = load()
    most = None if limit or as_json or not sys.stdout.isatty() else 100
    query = Query(limit=most + 1 if most else limit, **filters)

    async def work() -> list[dict[str, Any]]:
        found = []
        async with catalog_of(config) as catalog:
            async for document in catalog.find(query):
                if as_json:
                    click.echo(as_text(document))
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


@click.command()
@click.argument("source")
@click.argument("recording_id")
@as_json
def show(source: str, recording_id: str, as_json: bool) -> None:
    """One recording with its media, copies, attempts and events."""
    from .. import render, report

    document = _one(report.show, source, recording_id)
    if as_json:
        answer(document)
    else:
        render.recording(console(), document)


@click.command()
@click.argument("source")
@click.argument("recording_id")
@as_json
def why(source: str, recording_id: str, as_json: bool) -> None:
    """A recording's history: the windows that listed it, each attempt and what came of it."""
    from .. import render, report

    document = _one(report.why, source, recording_id)
    if as_json:
        answer(document)
    else:
        render.story(console(), document)


@click.command()
@click.argument("source")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@as_json
def rejected(source: str, limit: int, as_json: bool) -> None:
    """Rows of a source's listings that could not be read, as they came."""
    from .. import render

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


@click.command()
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

    from .. import render, wiring
    from ..ports import Decrypts

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
    from ..model import Body

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
