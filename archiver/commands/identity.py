"""Who is who: sources whose recorder changed, and what has another name now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ..ports import Marked
from .common import INCOMPLETE, answer, as_json, catalog_of, known, load, run
from .completing import SOURCE, STORE

if TYPE_CHECKING:
    from ..settings.config import Config
    from ..upkeep.renaming import Renamed


@click.command(short_help="Say whether a source is still the same recorder.")
@click.argument("name", type=SOURCE, metavar="NAME")
@click.option("--same", "answered", flag_value="same", help="The same recorder: what was listed counts on.")
@click.option(
    "--another", "answered", flag_value="another", help="Another one: all of it is listed; nothing archived is lost."
)
@as_json
def source(name: str, answered: str | None, as_json: bool) -> None:
    """Say whether a source whose kind, address or account changed is still the same recorder.

    Without an answer: what is asked. A daemon hears of it with its next poll.
    """
    config = load()
    known(config, source=name)
    document = run(_answer(config, name, answered))
    if as_json:
        answer(document)
    elif answered == "same":
        click.echo(f"{name} is the recorder that was listed before; it is polled again")
    elif answered == "another":
        lost = document["gone"]
        more = f"; {lost} media of the old one were never archived and are gone" if lost else ""
        click.echo(f"{name} is another recorder: nothing of it is listed yet; what was archived stays{more}")
    else:
        click.echo(f"{name}: {document['question'] or 'nothing is to be answered'}")


async def _answer(config: Config, name: str, answered: str | None) -> dict[str, Any]:
    from ..service.identity import anew, ask

    options = config.sources[name].options
    async with catalog_of(config, "SAME" if answered else "READABLE") as catalog:
        asked = await ask(catalog, name, options, config.sources)
        document: dict[str, Any] = {"source": name, "question": asked, "answer": answered, "gone": 0}
        if answered is None:
            return document
        there = bool(await catalog.sources([name]))
        if asked is None and answered == "another" and await anew(catalog, name) is None:
            raise click.UsageError(f"nothing is to be answered of {name}: it is the recorder that was listed before")
        if asked is None and answered == "same":
            return document
        if answered == "same" and not there:
            raise click.UsageError(str(asked))
        whom = options.kind, options.origin, options.account
        if answered == "same":
            await catalog.bind(name, *whom)
        elif there:
            document["gone"] = await catalog.replaced(name, *whom)
        else:
            await catalog.adopt(name, *whom, start=options.start)
        return document


@click.command(short_help="Say that a store's folder is on the right disk.")
@click.argument("name", type=STORE, metavar="NAME")
@click.option("--accept", is_flag=True, help="What lies there now is the store.")
@as_json
def store(name: str, accept: bool, as_json: bool) -> None:
    """Say that what lies at a store's path now is the store, although its disk is another than before.

    Without --accept: whether it is. `archiver verify --store NAME` brings back what that disk lacks.
    """
    from ..catalog.catalog import Need
    from ..service import wiring

    config = load()
    if name not in config.stores:
        raise click.UsageError(f'there is no store "{name}"; the config has {", ".join(sorted(config.stores))}')

    async def work() -> tuple[str | None, str | None]:
        async with wiring.opened(config, Need.SAME) as archive:
            outlet = archive.outlets[name]
            if accept:
                await wiring.accept(outlet, archive.catalog)
            there = await outlet.store.marker() if isinstance(outlet.store, Marked) else None
            return await archive.catalog.marker(name), there

    known, there = run(work())
    if as_json:
        answer({"store": name, "known": known, "there": there, "right": known is None or known == there})
    elif known is None:
        click.echo(f"{name}: no disk is known of it; any will do")
    else:
        click.echo(f"{name}: {'its own disk' if known == there else 'another disk than before'} is there")
    if known is not None and known != there:
        sys.exit(INCOMPLETE)


@click.group(short_help="Take over a new name from the config.")
def rename() -> None:
    """Take over the new name of a store or a source, after the same change in the config of every host.

    Catalog, manifests and ledgers follow. Objects stay where they are; nothing is fetched or stored twice.
    """


@rename.command("store")
@click.argument("old", metavar="OLD")
@click.argument("new", type=STORE, metavar="NEW")
@as_json
def rename_store(old: str, new: str, as_json: bool) -> None:
    """The store that was called OLD is NEW in the config now."""
    _rename("store", old, new, as_json)


@rename.command("source")
@click.argument("old", metavar="OLD")
@click.argument("new", type=SOURCE, metavar="NEW")
@as_json
def rename_source(old: str, new: str, as_json: bool) -> None:
    """The source that was called OLD is NEW in the config now."""
    _rename("source", old, new, as_json)


def _rename(what: str, old: str, new: str, as_json: bool) -> None:
    from ..catalog.catalog import Need
    from ..service import wiring
    from ..upkeep import renaming

    config = load()
    configured = list(config.stores if what == "store" else config.sources)
    if (refused := renaming.refusal(what, old, new, configured)) is not None:
        raise click.UsageError(refused)
    work = renaming.rename_store if what == "store" else renaming.rename_source

    async def renamed() -> Renamed:
        async with wiring.opened(config, Need.SAME) as archive:
            return await work(archive.catalog, archive.outlets, archive.feeds, old, new)

    found = run(renamed(), "interrupted; the same command goes on where it stopped")
    if as_json:
        answer({"what": what, "old": old, "new": new, "described": found.described, "ledgers": found.ledgers})
    else:
        click.echo(f"{what} {old} is {new} now; {found.described} recordings were described anew")
