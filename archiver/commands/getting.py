"""Archived audio on its way out."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..common.words import plain
from ..errors import SourceError, StoreError
from . import progress
from .common import INCOMPLETE, known_here, load, run
from .completing import SOURCE
from .reading import unknown

if TYPE_CHECKING:
    from ..catalog.catalog import Document
    from ..model import Copy
    from ..service.wiring import Archive

#: Recordings looked up at a time.
PAGE = 100


@click.command()
@click.argument("source", type=SOURCE, required=False)
@click.argument("recording_id", required=False)
@click.argument("media_id", required=False)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="PATH",
    help="A file, a folder (several media), or - (standard output).",
)
@click.option(
    "--listed", type=click.File("r", encoding="utf-8"), help="Those that `archiver list --json` printed (- for a pipe)."
)
@click.option("--raw", is_flag=True, help="The bytes as archived, encrypted ones too.")
def get(
    source: str | None, recording_id: str | None, media_id: str | None, output: str, listed: Any, raw: bool
) -> None:
    """Write archived audio, after checking its SHA-256.

    Into a folder go all media of a recording, named by when it started. Many recordings:
    archiver list --json --caller 1573 | archiver get --listed - -o calls/

    Encrypted media are decrypted where the source's options hold the key (--raw: not even then).
    """
    from ..catalog.catalog import Need
    from ..service import wiring

    folder = Path(output) if output != "-" and (output.endswith("/") or Path(output).is_dir()) else None
    if listed is not None:
        if source is not None or folder is None:
            raise click.UsageError("--listed goes with a folder and without SOURCE: -o calls/")
        wanted = list(listed_in(listed))
    elif source is None or recording_id is None:
        raise click.UsageError("say which: SOURCE RECORDING_ID, or --listed FILE")
    else:
        wanted = [(source, recording_id)]
    config = load()

    async def work() -> list[str]:
        if folder is not None:
            folder.mkdir(exist_ok=True)
        async with wiring.opened(config, Need.READABLE) as archive:
            await known_here(config, archive.catalog, source)
            with progress.bar("recordings", total=len(wanted)) as shown:
                return [p async for p in _got(archive, wanted, media_id, folder or output, shown, raw=raw)]

    problems = run(work())
    for problem in problems:
        click.echo(plain(problem), err=True)
    if problems:
        sys.exit(INCOMPLETE)


def listed_in(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Raises click.UsageError for a line that is no recording's JSON."""
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            yield str(told["source"]), str(told["recording_id"])
        except (ValueError, TypeError, KeyError):
            raise click.UsageError(f"--listed: line {number} is no line of `archiver list --json`") from None


async def _got(
    archive: Archive,
    wanted: list[tuple[str, str]],
    media_id: str | None,
    output: Path | str,
    shown: progress.Bar,
    *,
    raw: bool,
) -> Any:
    """Write them all; yields what went wrong with one of them, and goes on."""
    for start in range(0, len(wanted), PAGE):
        page = wanted[start : start + PAGE]
        found = await archive.catalog.documents(page)
        for source, recording_id in page:
            if (source, recording_id) not in found:
                yield unknown(source, recording_id)
                continue
            document = found[source, recording_id][0]
            several = isinstance(output, Path)
            media = [m["media_id"] for m in document["media"]]
            if media_id is None and len(media) != 1 and not several:
                yield f"it has {len(media)} media, say which: {', '.join(media)}; or name a folder: -o calls/"
                continue
            if media_id is not None and media_id not in media:
                yield f'it has no medium "{media_id}"; it has {", ".join(media)}'
                continue
            for medium in media if media_id is None else [media_id]:
                problem = await _one(archive, document, medium, output, raw=raw)
                if problem:
                    yield f"{source} {recording_id} {medium}: {problem}" if several else problem
            shown.advance()


async def _one(archive: Archive, document: Document, media_id: str, output: Path | str, *, raw: bool) -> str | None:
    """Write one medium; what is wrong with it, if so."""
    from ..ports import Decrypts

    source = document["source"]
    copies = await archive.catalog.copies_of(source, document["recording_id"], media_id)
    feed, clear = archive.feeds.get(source), None
    if not raw and feed is not None and isinstance(feed.source, Decrypts):
        clear = partial(feed.source.decrypted, document, media_id)
    if isinstance(output, Path):
        at = datetime.fromisoformat(document["started_at"])
        name = copies[-1].key.rpartition("/")[2] if copies else media_id
        output /= f"{at:%Y%m%dT%H%M%SZ}-{name}"
    return await _write(archive, copies, output, clear)


async def _write(
    archive: Any, copies: list[Copy], output: Path | str, clear: Callable[[bytes], bytes] | None
) -> str | None:
    """The newest content (an older one is not what was asked for) from the first store that has it whole.

    A Path is a name that we made: what was decrypted ends there as its own format does.
    """
    from ..audio import inspect
    from ..audio.cms import Undecipherable
    from ..model import Body

    problems = []
    newest = max(copies, key=lambda c: c.archived_at).sha256 if copies else None
    for copy in (c for c in copies if c.sha256 == newest):
        outlet = archive.outlets.get(copy.store)
        if outlet is None:
            problems.append(f"store {copy.store} is not in the config: add it again to read its copies")
            continue
        with archive.spool.sink() as sink:
            try:
                await outlet.store.get(copy.key, sink)
            except StoreError as error:
                problems.append(f"store {copy.store}: {error}")
                continue
            body = await sink.body()
            if body.sha256 != copy.sha256:
                problems.append(
                    f"store {copy.store}: the bytes of {copy.key} are not those that were archived: `archiver verify`"
                )
                continue
            if clear is not None:
                try:
                    body = Body.of(clear(await asyncio.to_thread(body.read)))
                except Undecipherable as error:
                    return f"{error} (--raw writes it as it is)"
                if body.sha256 != copy.sha256 and isinstance(output, Path):
                    # Of audio that is cut nobody knows the format for sure; it is written all the same.
                    with suppress(SourceError):
                        output = output.with_suffix(f".{inspect(body, opaque=True).ext}")
            await asyncio.to_thread(_save, body, str(output))
            if isinstance(output, str) and (odd := _other_suffix(output, copy.key)):
                click.echo(plain(odd), err=True)
            return None
    return "; ".join(problems) or "it is not archived yet; `archiver why` tells why"


def _other_suffix(output: str, key: str) -> str | None:
    """A line where a file's name promises another format than it holds: many players go by the name."""
    held, named = Path(key).suffix.lower(), Path(output).suffix.lower()
    if output == "-" or named in {"", held} or held in {"", ".bin"}:
        return None
    return f"{output} holds {held.removeprefix('.')} audio, as the recorder made it: call it {Path(output).stem}{held}"


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
