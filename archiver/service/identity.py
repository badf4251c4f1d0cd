"""To whom belongs what is known: which recorder was listed, and where the copies lie.

What was listed is bound to whom it was listed from: kind, origin (scheme, host, port, root), and the account where that
decides what is shown. A config that says otherwise is a question. Until it is answered the source is not asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from ..catalog.catalog import Catalog, Document
from ..settings.config import Config, SourceConfig
from ..settings.options import SourceOptions

#: Calls with other ids than before are looked for so far back; so many of them are a sign.
LOOKED_BACK, ENOUGH = timedelta(days=7), 3


class Question(NamedTuple):
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what} → {self.do}"


async def ask(catalog: Catalog, name: str, options: SourceOptions, configured: Collection[str]) -> str | None:
    """Whether this source is the recorder that was listed under its name: what is to be answered first, if anything.

    ``configured``: the names of all sources of the config. Raises CatalogDown.
    """
    # All of them only where it is new: with hundreds of sources each asks before each poll.
    rows = await catalog.sources([name]) or await catalog.sources()
    asked = question(name, options, {row["name"]: row for row in rows}, configured)
    return str(asked) if asked is not None else None


def question(
    name: str, options: SourceOptions, rows: Mapping[str, Mapping[str, Any]], configured: Collection[str]
) -> Question | None:
    """The same, of what the catalog knows of all sources."""
    row = rows.get(name)
    if row is None:
        return _renamed(name, options, rows, configured)
    changes = _changes(row, options)
    if not changes:
        return None
    return Question(
        f"is it still the recorder that was listed before? {', '.join(changes)}; it is not polled until you say",
        f"`archiver source {name} --same` (the same recorder: what was listed counts on) or `archiver source {name}"
        " --another` (another one: all of it is listed; what is archived stays)",
    )


def _changes(row: Mapping[str, Any], options: SourceOptions) -> list[str]:
    if row["origin"] is None:
        # Of an earlier version.
        return []
    pairs = (("kind", row["kind"], options.kind), ("address", row["origin"], options.origin))
    changes = [f"its {what} was {was} and is now {now}" for what, was, now in pairs if was != now]
    if not changes and row["account"] != options.account:
        changes.append("its account is another one")
    return changes


def _renamed(
    name: str, options: SourceOptions, rows: Mapping[str, Mapping[str, Any]], configured: Collection[str]
) -> Question | None:
    """A source that is new, and looks like one that left the config."""
    wanted = options.kind, options.origin, options.account
    for old, row in rows.items():
        listed = old not in configured and (row["covered"] or row["cursor"])
        if listed and (row["kind"], row["origin"], row["account"]) == wanted:
            return Question(
                f"is it the recorder that was called {old} before? It is not polled until you say",
                f"`archiver rename source {old} {name}` (the same recorder: nothing is fetched twice) or"
                f" `archiver source {name} --another` (all of it is listed and fetched)",
            )
    return None


async def anew(catalog: Catalog, name: str) -> Question | None:
    """The same address, and all calls have other ids: a recorder that was set up anew."""
    missing, again = await catalog.other_ids(name, catalog.clock.now() - LOOKED_BACK)
    if again < ENOUGH or again * 4 < missing * 3:
        return None
    return Question(
        f"{again} calls that are no longer listed are listed under other ids; was the recorder set up anew?",
        f"`archiver source {name} --another` if so: what has the id of another call now does not take its place",
    )


async def problems(config: Config, catalog: Catalog) -> list[Document]:
    """What is wrong with who is who, by the names of conditions (conditions/of_identity.py). Raises CatalogDown."""
    rows = {row["name"]: row for row in await catalog.sources()}
    found = []
    for name, source in config.sources.items():
        if not source.options.enabled:
            continue
        if (asked := question(name, source.options, rows, config.sources)) is not None:
            found.append(_problem("SourceChanged", name, *asked))
        elif name in rows and (asked := await anew(catalog, name)) is not None:
            found.append(_problem("RecorderAnew", name, *asked))
    found += [_problem("SourceTwice", name, what, do) for name, what, do in twins(config)]
    stranded = await elsewhere(config, catalog)
    if stranded is not None:
        return [*found, _problem("CopiesElsewhere", "", *stranded)]
    totals = await catalog.totals()
    away = {store for (_, store), (count, _) in totals.items() if count} - {"", *config.stores}
    found += [
        _problem(
            "StoreForgotten",
            store,
            "copies lie there, and it is no store of this config",
            f"where only its name changed: {_rename([store], config.stores)}; else none: nobody looks at them any more",
        )
        for store in sorted(away)
    ]
    return found


def twins(config: Config) -> list[tuple[str, str, str]]:
    """Sources that are one recorder under two names: the second name, what is wrong, what to do."""
    found = []
    sources = [source for source in config.sources.values() if source.options.enabled]
    for number, one in enumerate(sources):
        twin = next((other for other in sources[:number] if _same(one, other)), None)
        if twin is not None:
            what = f"it is the same recorder and account as source {twin.name}: each call is fetched and stored twice"
            found.append((one.name, what, "take one of the two out of the config"))
    return found


def _same(one: SourceConfig, other: SourceConfig) -> bool:
    a, b = one.options, other.options
    same = (a.kind, a.origin, a.account) == (b.kind, b.origin, b.account)
    return same and (not a.many_tenants or getattr(a, "token", None) == getattr(b, "token", None))


async def elsewhere(config: Config, catalog: Catalog) -> tuple[str, str] | None:
    """What no store of the config holds although it is archived, and what to do about it; None: nothing."""
    count, stores = await catalog.stranded(list(config.stores))
    if not count:
        return None
    media = f"{count} media have" if count != 1 else "1 medium has"
    what = f"{media} no copy in any store of this config; they lie in {', '.join(stores)}"
    return what, f"add {_sections(stores)} again, or where only the name changed: {_rename(stores, config.stores)}"


def _sections(stores: Sequence[str]) -> str:
    return "this section" if len(stores) == 1 else "these sections"


def _rename(stores: Sequence[str], configured: Collection[str]) -> str:
    return " or ".join(f"`archiver rename store {old} {new}`" for old in stores[:1] for new in list(configured)[:3])


def _problem(condition: str, of: str, what: str, do: str) -> Document:
    return {"condition": condition, "of": of, "what": what, "do": do}
