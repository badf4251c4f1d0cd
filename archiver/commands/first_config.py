"""`archiver init`: a first config by asking step by step, each part tried before it is written."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from ..common.words import reason_of
from ..errors import ConfigError
from .common import UNREACHABLE, run

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ..settings.config import SourceConfig, StoreConfig

_Section = Literal["sources", "stores"]
_Table = dict[str, Any]
#: Optional, but most will want to be asked.
_ASKED = {"sources": ("start",), "stores": ("endpoint_url", "username", "password")}
#: Given together or not at all: the second is asked where the first was answered.
_PAIRED = {"password": "username", "secret_access_key": "access_key_id"}
_REFERENCES = ("env", "file", "credential")


class Talk:
    """Asks people on a terminal; reads a line an answer where standard input is something else."""

    def __init__(self) -> None:
        self._terminal = sys.stdin.isatty()

    def says(self, text: str = "") -> None:
        """A line; on a terminal folded to its width, below where its words begin."""
        if text and sys.stderr.isatty():
            begin = " " * (len(text) - len(text.lstrip(" ")))
            text = click.wrap_text(text.strip(), shutil.get_terminal_size().columns, begin, begin)
        click.echo(text, err=True)

    def asks(self, what: str, default: str | None = None, *, hidden: bool = False) -> str:
        """The answer, stripped; the default where there is none (None: one is needed)."""
        while True:
            answer = self._line(what, default, hidden=hidden).strip()
            if answer or default is not None:
                return answer or default or ""

    def chooses(self, what: str, known: list[str], default: str | None = None) -> str:
        while (answer := self.asks(what, default)) not in known:
            self.says(f'  there is no "{answer}"; known are {", ".join(known)}')
        return answer

    def agrees(self, what: str, *, default: bool = False) -> bool:
        answer = self.asks(f"{what} [{'Y/n' if default else 'y/N'}]", "yes" if default else "no")
        return answer.lower() in {"y", "yes"}

    def _line(self, what: str, default: str | None, *, hidden: bool) -> str:
        if self._terminal:
            shown = bool(default) and default not in {"yes", "no"}
            return click.prompt(what, default=default or "", show_default=shown, hide_input=hidden, err=True)
        click.echo(f"{what}: ", err=True)
        if not (line := sys.stdin.readline()):
            raise click.UsageError(f'standard input ended before an answer to "{what}"; nothing was written')
        return line


@click.command(short_help="Write a first config by asking.")
@click.option("--answers", metavar="FILE", help="Ask nothing: a config whose secrets may stand in it as they are.")
@click.option("--force", is_flag=True, help="Write over a config that is there.")
@click.option("--no-check", is_flag=True, help="Write it even where a source or store can't be reached now.")
@click.pass_context
def init(ctx: click.Context, answers: str | None, force: bool, no_check: bool) -> None:
    """Write a first config by asking, trying each source and store on the way.

    The file is --config, else $ARCHIVER_CONFIG, else ./archiver.toml. Secrets go into files of their own beside it,
    or are named: env:NAME (an environment variable), credential:NAME (systemd's), file:PATH.
    """
    target = Path(ctx.find_root().params["config_path"] or os.environ.get("ARCHIVER_CONFIG") or "archiver.toml")
    if not target.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {target.absolute().parent}: make it, or name another --config")
    talk = Talk()
    kept = target.exists() and not force
    if kept and (answers is not None or not talk.agrees(f"{target} is there already: write over it?")):
        raise click.UsageError(f"{target} is there already; name another --config, or --force writes over it")
    document = _read(Path(answers)) if answers is not None else _asked(talk, target)
    _write(talk, target, document, check=not no_check, insist=answers is not None)


def _read(path: Path) -> _Table:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--answers {path} can't be read: {reason_of(error)}; write it like a config") from None


# -- asking ------------------------------------------------------------------------------------------------------------


def _asked(talk: Talk, target: Path) -> _Table:
    talk.says(f"This writes {target}. Ctrl-C ends it; nothing is written before the end.")
    talk.says("An empty answer takes what stands in [brackets], or leaves an option as it is by itself.")
    talk.says("Secrets are not shown; env:NAME, credential:NAME and file:PATH name one that is kept elsewhere.")
    document: _Table = {}
    for section, one, example in (("sources", "source", "hq"), ("stores", "store", "main")):
        tables: _Table = {}
        talk.says()
        talk.says(f"{one.title()}: {'a recorder to archive from' if one == 'source' else 'where recordings go'}")
        while not tables or talk.agrees(f"Another {one}?"):
            name, table = _entry(talk, section, tables, example, target)  # type: ignore[arg-type]
            tables[name] = table
        document[section] = tables
    talk.says()
    talk.says("Database: embedded (a PostgreSQL of its own), or postgresql://user@host/database of a server")
    url = talk.asks("database", "embedded")
    return ({} if url == "embedded" else {"database": {"url": _reference(url)}}) | document


def _entry(talk: Talk, section: _Section, others: _Table, example: str, target: Path) -> tuple[str, _Table]:
    """One source or store that works, or that the person wants all the same."""
    from ..settings.config import kinds

    known = kinds(f"archiver.{section}")  # type: ignore[arg-type]
    for kind, point in known.items():
        told = (sys.modules[point.load().__module__].__doc__ or "").strip().split("\n")[0]
        talk.says(f"  {kind}: {told.partition(': ')[0].rstrip('.:')}")
    kind = talk.chooses("kind", list(known))
    while (name := talk.asks("name", next(n for n in (example, kind, f"{kind}2") if n not in others))) in others:
        talk.says(f"  {name} is taken")
    table: _Table = {"kind": kind}
    fields = _fields(known[kind].load().Options)
    wanted = [key for key, about in fields.items() if about.is_required()]
    wanted += [key for key in _ASKED[section] if key in fields and key not in wanted]
    while True:
        for key in wanted:
            if key not in _PAIRED or fields[key].is_required() or _PAIRED[key] in table:
                _ask(talk, target, section, name, table, key, fields[key])
        optional = [key for key in fields if key not in wanted]
        more = talk.asks("other options to set (names, ? lists them)", "none").replace(",", " ").split()
        if more == ["?"]:
            _tell(talk, optional, known[kind].load().Options, fields)
            more = talk.asks("other options to set", "none").replace(",", " ").split()
        for key in (key for key in more if key != "none"):
            if key in fields:
                _ask(talk, target, section, name, table, key, fields[key])
            else:
                talk.says(f'  {kind} has no option "{key}" that can be asked for; it can be added to the file')
        entry, problems = _tried(target, section, name, table)
        for _, problem in problems:
            talk.says(f"  {problem}")
        if entry is not None and not problems:
            talk.says("trying it …")
            if _works(talk, entry) or talk.chooses("(a)sk again, or (k)eep it as it is", ["a", "k"], "a") == "k":
                return name, table


def _fields(model: Any) -> dict[str, FieldInfo]:
    """The options that a line of text can set; tables are left to the file."""
    fields = {about.alias or name: about for name, about in model.model_fields.items()}
    return {key: about for key, about in fields.items() if key not in {"kind", "stores"} and not _is_table(about)}


def _is_table(about: FieldInfo) -> bool:
    from pydantic import BaseModel

    from ..settings.options import Rate

    parts = [about.annotation, *get_args(about.annotation)]
    return any(isinstance(p, type) and issubclass(p, BaseModel) and p is not Rate for p in parts)


def _tell(talk: Talk, keys: list[str], model: Any, fields: dict[str, FieldInfo]) -> None:
    from ..settings.options import descriptions

    told = descriptions(model)
    for key in keys:
        talk.says(f"  {key}: {told[key] or _choices(fields[key])}".rstrip(": "))


def _choices(about: FieldInfo) -> str:
    for annotation in (about.annotation, *get_args(about.annotation)):
        if get_origin(annotation) is Literal:
            return "|".join(map(str, get_args(annotation)))
    return ""


def _ask(talk: Talk, target: Path, section: _Section, name: str, table: _Table, key: str, about: FieldInfo) -> None:
    """Until the answer is one that the option takes."""
    from ..settings.options import descriptions

    if told := descriptions(_model(section, table["kind"])).get(key):
        talk.says(f"  {told}")
    secret = "SecretStr" in str(about.annotation)
    choices = _choices(about)
    default = None if about.is_required() else ""
    if key in table:
        # It was answered before: an empty answer keeps it.
        default = "" if secret else str(table[key])
    while True:
        answer = talk.asks(f"{key} ({choices})" if choices else key, default, hidden=secret)
        if not answer:
            return
        value = _reference(answer) if secret else _value(answer, about)
        _, problems = _tried(target, section, name, table | {key: value})
        if all(of != key for of, _ in problems):
            table[key] = value
            return
        for problem in (problem for of, problem in problems if of == key):
            talk.says(f"  {problem.partition(': ')[2] or problem}")


def _model(section: _Section, kind: str) -> Any:
    from ..settings.config import kinds

    return kinds(f"archiver.{section}")[kind].load().Options  # type: ignore[arg-type]


def _reference(answer: str) -> str | dict[str, str]:
    how, colon, what = answer.partition(":")
    return {how: what} if colon and how in _REFERENCES and what else answer


def _value(answer: str, about: FieldInfo) -> Any:
    """The text as TOML has it: a number, a truth, a date, a text."""
    kinds = {about.annotation, *get_args(about.annotation)}
    if bool in kinds and answer.lower() in {"true", "false", "yes", "no"}:
        return answer.lower() in {"true", "yes"}
    with contextlib.suppress(ValueError):
        if int in kinds:
            return int(answer)
        return date.fromisoformat(answer)
    return answer


# -- trying ------------------------------------------------------------------------------------------------------------


def _tried(
    target: Path, section: _Section, name: str, table: _Table
) -> tuple[SourceConfig | StoreConfig | None, list[tuple[str, str]]]:
    from ..settings import config

    return config.entry(target, section, name, table)


def _works(talk: Talk, entry: SourceConfig | StoreConfig) -> bool:
    from ..common import log
    from ..service import checks

    log.configure(level="error", secrets=[])
    for value in entry.options.__dict__.values():
        if hasattr(value, "get_secret_value"):
            log.add_secrets([value.get_secret_value()])
    result = run(checks.one(entry))
    talk.says(checks.line(result))
    return result.ok


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(talk: Talk, target: Path, document: _Table, *, check: bool, insist: bool) -> None:
    """Write it and its secrets; with ``insist`` only where every part of it works."""
    from ..common import log
    from ..service import checks
    from ..settings import config

    document = _apart(talk, target, document)
    secrets = dict(_secrets(document))
    folder = target.absolute().parent
    # With its secrets inside, to try; nobody else may read it, and it does not stay.
    trial = _saved(folder, _toml(document))
    try:
        loaded = config.load(trial)
        if (owner := config.owner_of(loaded.data_dir)) is not None and owner.resolve() != target.resolve():
            told = f"data_dir: {loaded.data_dir} is that of {owner}; give this archive one of its own"
            raise ConfigError([f"{target.name}: {told}"])
        if check and insist:
            log.configure(level="error", secrets=loaded.secrets)
            works = [_works(talk, entry) for tables in (loaded.stores, loaded.sources) for entry in tables.values()]
            if not all(works):
                talk.says("nothing was written; mend it, or --no-check writes it all the same")
                sys.exit(UNREACHABLE)
    except ConfigError as error:
        name = target.name
        raise ConfigError([problem.replace(trial.name, name) for problem in error.problems]) from None
    finally:
        trial.unlink()
    files = [target]
    for place, (wish, text) in secrets.items():
        files.append(_kept(folder, wish, text))
        _put(document, place, {"file": files[-1].name})
    _saved(folder, _toml(document)).replace(target)
    loaded = config.load(target)
    config.own(loaded)
    log.configure(level="error", secrets=loaded.secrets)
    talk.says()
    talk.says(f"written, for your eyes only (mode 0600): {', '.join(str(target.parent / f.name) for f in files)}")
    if os.geteuid() == 0:
        talk.says(f"they are root's: where the daemon is another user's, `chown` them ({folder})")
    if check:
        results = run(checks.check(loaded, offline=False))
        for result in results:
            talk.says(checks.line(result))
    _next(talk, target, next(iter(loaded.sources)))
    if check and not all(result.ok for result in results):
        sys.exit(UNREACHABLE)


def _apart(talk: Talk, target: Path, document: _Table) -> _Table:
    """With a data_dir of its own, where the one that it would have by default is another config's."""
    from ..settings import config

    default = config.default_data_dir()
    if "data_dir" in document or default is None:
        return document

    def free(folder: Path) -> bool:
        owner = config.owner_of(folder)
        return owner is None or owner.resolve() == target.resolve()

    if free(default):
        return document
    folder = next(f for n in itertools.count(2) if free(f := default.with_name(f"{default.name}-{n}")))
    talk.says(f"{default} is the data_dir of {config.owner_of(default)}: this archive gets {folder}")
    return {"data_dir": str(folder)} | document


def _next(talk: Talk, target: Path, source: str) -> None:
    from ..settings import config

    with contextlib.suppress(ConfigError):
        if config.find().absolute() == target.absolute():
            target = Path()
    program = "archiver" if target == Path() else f"archiver --config {target}"
    talk.says()
    talk.says("next:")
    talk.says(f"  {program} sync {source}   one pass, to see it work")
    talk.says(f"  {program} run   the daemon; as a service: systemctl enable --now archiver")
    talk.says(f"  {program} status   how it goes, and what to do")


def _secrets(document: _Table) -> Iterator[tuple[tuple[str, ...], tuple[str, str]]]:
    """Where in the document a secret stands as it is: the file's name for it, and the secret."""
    from ..settings.config import kinds

    for section in ("sources", "stores"):
        for name, table in _tables(document.get(section)):
            point = kinds(f"archiver.{section}").get(str(table.get("kind")))  # type: ignore[arg-type]
            for key, about in _fields(point.load().Options).items() if point else ():
                if "SecretStr" in str(about.annotation) and isinstance(table.get(key), str):
                    yield (section, name, key), (f"{name}.{key}", table[key])
    url = document.get("database", {}).get("url") if isinstance(document.get("database"), dict) else None
    if isinstance(url, str) and "@" in url:
        yield ("database", "url"), ("database.url", url)


def _tables(section: Any) -> list[tuple[str, _Table]]:
    return [(n, t) for n, t in section.items() if isinstance(t, dict)] if isinstance(section, dict) else []


def _put(document: _Table, place: tuple[str, ...], value: Any) -> None:
    for step in place[:-1]:
        document = document[step]
    document[place[-1]] = value


def _kept(folder: Path, wish: str, secret: str) -> Path:
    """The file that holds the secret: one of this name that held another one is left as it is."""
    names = itertools.chain([wish], (f"{wish}{number}" for number in itertools.count(2)))
    path = next(folder / name for name in names if not (folder / name).exists())
    return _saved(folder, secret + "\n").replace(path)


def _saved(folder: Path, text: str) -> Path:
    """A new file in the folder, readable by its owner only, that still needs its name."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".archiver-", suffix=".toml")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _toml(document: _Table) -> str:
    lines = ["# Written by `archiver init`. Every option: config/archiver.toml of the project's documentation."]
    lines += [f"{key} = {_literal(value)}" for key, value in document.items() if not isinstance(value, dict)]
    for section, table in document.items():
        if section in {"sources", "stores"}:
            for name, inner in _tables(table):
                lines += ["", f"[{section}.{_key(name)}]"]
                lines += [f"{key} = {_literal(value)}" for key, value in inner.items()]
        elif isinstance(table, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_literal(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_literal(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one character that TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _literal(name)
