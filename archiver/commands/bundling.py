"""Calls on their way to somebody else: the evidence bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..common.words import number, plain, size
from . import progress
from .common import INCOMPLETE, known_here, load, me, run
from .completing import SOURCE
from .getting import PAGE, listed_in
from .reading import filtered, query_of, unknown

if TYPE_CHECKING:
    from ..catalog.catalog import Catalog, Document, Query
    from ..service.wiring import Archive
    from ..settings.config import Config
    from ..upkeep.bundling import Bundler, Clear, Proofs, Signing
    from ..upkeep.public_log import Identity


@click.command(short_help="Take calls out as evidence, with all that proves them.")
@click.argument("named", type=SOURCE, required=False, metavar="[SOURCE")
@click.argument("recording_ids", nargs=-1, metavar="RECORDING_ID...]")
@click.option("-o", "--output", required=True, metavar="OUT", help="A folder, or a file that ends in .zip; a new one.")
@click.option(
    "--listed", type=click.File("r", encoding="utf-8"), help="Those that `archiver list --json` printed (- for a pipe)."
)
@filtered
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--wav", is_flag=True, help="Also a WAV beside each recording that can be decoded.")
@click.option("--reason", help="Why they are taken out.")
@click.option("--case", help="The number of the case.")
@click.option("--recipient", help="Who gets them; goes with --purpose.")
@click.option("--purpose", help="What the recipient gets them for; goes with --recipient.")
def bundle(
    named: str | None,
    recording_ids: tuple[str, ...],
    output: str,
    listed: Any,
    limit: int | None,
    wav: bool,
    reason: str | None,
    case: str | None,
    recipient: str | None,
    purpose: str | None,
    **filters: Any,
) -> None:
    """Write an evidence bundle: audio as recorded, what is known of the calls, and what proves it.

    Anybody can check it, without this program.

    Which calls: SOURCE RECORDING_ID..., or --listed FILE, or the filters of `archiver list`. It is a BagIt bag with a
    cover page (data/cover.html) that says what is in it and how to check it. The audit says of each call that it was
    taken out, before its first byte is written. What can't be read is named on the cover page; the rest is whole.
    """
    from ..catalog.catalog import Need
    from ..service import wiring

    chosen = any(value for value in filters.values())
    if (named is not None) + (listed is not None) + chosen != 1 or (named is not None and not recording_ids):
        raise click.UsageError("say which calls, in one way: SOURCE RECORDING_ID..., --listed FILE, or filters")
    if limit is not None and not chosen:
        raise click.UsageError("--limit goes with filters")
    if bool(recipient) != bool(purpose):
        raise click.UsageError("--recipient and --purpose go together")
    if wav and find_spec("av") is None:
        raise click.UsageError(f'--wav needs PyAV: {sys.executable} -m pip install "archiver[web]"')
    wanted = [(named, one) for one in recording_ids] if named is not None else list(listed_in(listed) if listed else ())
    wanted = list(dict.fromkeys(wanted))
    config = load()
    query = query_of(config, filters, limit) if chosen else None
    target = Path(os.path.abspath(output))  # noqa: PTH100  resolve() would follow a link that has the name
    told = {"reason": reason, "case": case, "recipient": recipient, "purpose": purpose}

    async def work() -> tuple[Bundler, bool]:
        async with wiring.opened(config, Need.READABLE) as archive:
            await known_here(config, archive.catalog, named or (query.source if query else None))
            with progress.bar("calls", total=len(wanted) or None) as shown:
                made = _bundler(config, archive, target, told, wav=wav)
                made.on_call = lambda _: shown.advance()
                documents = _found(archive.catalog, query) if query else _documents(archive.catalog, wanted)
                return made, await made.write(target, documents)

    made, written = run(work(), f"ended; nothing was left at {output}")
    if not written:
        if not made.problems:
            click.echo("no recording matches; fewer filters find more", err=True)
        sys.exit(INCOMPLETE)
    counts = made.counts
    click.echo(
        f"{output}: {number(counts.calls, 'call')}, {number(counts.media, 'recording')} ({size(counts.bytes)}), "
        + (f"{number(counts.wavs, 'WAV file')}, " if wav else "")
        + f"{counts.certified} certified; "
        + (f"signed by {made.told.origin}" if made.signing else "not signed: the archive has no signing key")
    )
    if made.problems:
        click.echo(f"{number(made.problems, 'problem')}; the cover page names them", err=True)
        sys.exit(INCOMPLETE)


def _bundler(config: Config, archive: Archive, target: Path, told: dict[str, str | None], *, wav: bool) -> Bundler:
    from ..catalog.face import Event
    from ..ports import Decrypts
    from ..proof.cover import Told
    from ..proof.layout import ulid
    from ..upkeep.bundling import Bundler

    now = archive.catalog.clock.now()
    id_ = ulid(now)
    details = {k: told[k] for k in ("recipient", "purpose") if told[k]}
    event = Event(
        who=me(),
        role="",
        means="command",
        address="",
        action="export",
        reason=told["reason"],
        case=told["case"],
        details={"bundle": id_, "output": target.name, **details},
    )
    clear: dict[str, Clear] = {
        name: feed.source.decrypted for name, feed in archive.feeds.items() if isinstance(feed.source, Decrypts)
    }
    return Bundler(
        catalog=archive.catalog,
        outlets=archive.outlets,
        spool=archive.spool,
        told=Told(id=id_, made_at=now, made_by=me(), software=f"archiver {__version__}", wav=wav, **told),
        event=event,
        proofs=_proofs(config, archive),
        signing=_signing(config),
        decode=_decode if wav else None,
        clear=clear,
        on_problem=lambda text: click.echo(plain(text), err=True),
        on_note=lambda text: click.echo(plain(text), err=True),
    )


def _proofs(config: Config, archive: Archive) -> Proofs:
    """What the archive signed about its recordings."""
    from ..upkeep.bundling import Unproved
    from ..upkeep.proofs import Proofs as Signed

    who = _who(config)
    return Signed(archive.catalog, archive.spool, who, archive.outlets) if who is not None else Unproved()


def _signing(config: Config) -> Signing | None:
    """The name and key of the archive's log."""
    from ..upkeep.bundling import Signing

    who = _who(config)
    return Signing(who.origin, who.key) if who is not None else None


def _who(config: Config) -> Identity | None:
    """Nobody, where nothing was ever certified here: there is no key yet."""
    from ..upkeep.public_log import identity

    if config.proof.key is None and not (config.data_dir / "proof" / "key").exists():
        return None
    return identity(config)


async def _decode(source: Path, length: int, ext: str, content_type: str | None, target: Path) -> None:
    from ..web.playback import decode

    job = {"source": str(source), "target": str(target), "size": length, "ext": ext, "content_type": content_type}
    await decode(job)


async def _found(catalog: Catalog, query: Query) -> AsyncIterator[Document | str]:
    async for document in catalog.find(query):
        yield document


async def _documents(catalog: Catalog, wanted: list[tuple[str, str]]) -> AsyncIterator[Document | str]:
    """Each recording's JSON, in this order; in place of one that there is not, a line that says so."""
    for start in range(0, len(wanted), PAGE):
        page = wanted[start : start + PAGE]
        found = await catalog.documents(page)
        for source, recording_id in page:
            if (source, recording_id) in found:
                yield found[source, recording_id][0]
            else:
                yield unknown(source, recording_id)
