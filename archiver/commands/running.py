"""What concerns a running daemon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .common import INCOMPLETE, UNREACHABLE, USAGE, answer, as_json

#: In seconds: proving a new store may take its time.
SHOWN = 5
PATIENCE = 150.0


@click.command(short_help="Have the daemon take its config now.")
@as_json
def reload(as_json: bool) -> None:
    """Have the daemon take its config now; tell whether it did, or why not."""
    from ..service import live
    from ..settings import config

    path = config.find(click.get_current_context().obj["config"])
    found = live.find(path, data_dir(path))
    if found is None:
        told(as_json, None, f"no daemon runs with {path}; `archiver run` starts one, or systemctl start archiver")
        sys.exit(UNREACHABLE)
    document = live.ask(found[0], PATIENCE)
    if document is None:
        told(as_json, None, "the daemon did not answer: it is ending, or proves a store; `archiver status` tells later")
        sys.exit(INCOMPLETE)
    problems = document["refused"]["problems"] if document["refused"] else []
    told(as_json, document, *problems, *news(document))
    if problems:
        sys.exit(USAGE)


def tell_live(as_json: bool) -> None:
    """What a running daemon works with where the config on disk can't be used."""
    from ..service import live
    from ..settings import config

    found = live.find(config.find(click.get_current_context().obj["config"]))
    if found is None:
        return
    _, document = found
    if as_json:
        answer({"daemon": document})
    at = document["config"]["loaded_at"]
    click.echo(f"config on disk is not the live one: the daemon goes on with what it loaded at {at}, because", err=True)


def data_dir(path: Path) -> Path | None:
    """As the file names it; None where it can't be loaded (from here: the daemon may have other credentials)."""
    from ..errors import ConfigError
    from ..settings import config

    try:
        return config.load(path).data_dir
    except ConfigError:
        return None


def news(document: dict[str, Any]) -> list[str]:
    live = document["config"]
    which = f"{live['path']} as loaded at {live['loaded_at']} (SHA-256 {live['sha256'][:12]})"
    if document["refused"]:
        return [f"refused: the daemon goes on with {which}"]
    added = document["changes"].get("stores_added", [])
    hints = [
        f"store {name} is new: `archiver copy --to {name}` brings there what is archived already" for name in added
    ]
    asked = [f"source {name}: {question}" for name, question in document.get("questions", {}).items()]
    changed = [f"{kind.replace('_', ' ')}: {some(names)}" for kind, names in document["changes"].items()]
    lead = "the last edit: " if changed else "no edit since it started"
    return [f"the daemon runs with {which}", lead + "; ".join(changed), *hints, *asked]


def some(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def told(as_json: bool, document: dict[str, Any] | None, *lines: str) -> None:
    if as_json:
        answer({"taken": document is not None and not document["refused"], "daemon": document})
    for line in lines if document is None or document["refused"] or not as_json else ():
        click.echo(line, err=document is None or bool(document["refused"]))
