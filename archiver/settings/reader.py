"""Reads one config file: resolves what it refers to, checks every value, and gathers all problems and secrets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, SecretStr, ValidationError

from ..common.words import nearest, reason_of, visible
from ..errors import ConfigError
from .loaded import Config, SourceConfig, Stamp, StoreConfig, kinds, stamp
from .options import SourceOptions, StoreOptions, Strict
from .tables import Top
from .wording import NAME, Where, did_you_mean, dotted, in_plain_words, inner_model, key_text, steps

_M = TypeVar("_M", bound=Strict)
LARGEST = 1 << 20
_DEEPEST = 16
#: Folders of our own beside the sources' in a store.
_RESERVED = {"_audit", "_canary", "_ledger", "_manifests", "_proof", "_renamed", "_verified"}
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
#: What may stand in place of any string.
_REFERENCES = ("env", "file", "credential")
#: Tables and keys that tell how to ask recorders, and whom to tell of trouble.
_OF_THE_DAEMON = {"sources", "alerts", "heartbeat_url", "traces"}
#: What archiver makes in its data_dir.
OWN_FOLDERS = ("postgres", "spool", "run", "web", "proof")


@dataclass(frozen=True, slots=True)
class _Withheld:
    """A value that this process may do without, and why it can't be had."""

    why: str


class Reader:
    """Reads one file; gathers problems, secrets and what could not be resolved on the way."""

    def __init__(self, path: Path, files: dict[Path, Stamp], *, asks_recorders: bool = True) -> None:
        """Where nobody ``asks_recorders``, nor alerts, the secrets for that may be out of this process's sight."""
        self._asks_recorders = asks_recorders
        self._path = path
        self._files = files
        self._sha256 = ""
        self._folder = path.absolute().parent
        self.problems: list[str] = []
        self._secrets: set[str] = set()
        self._resolved: set[Where] = set()
        self._broken: set[Where] = set()
        self._literal: set[str] = set()
        self._kinds: dict[str, dict[str, EntryPoint]] = {}

    def read(self) -> Config:
        document = self._parse()
        stores, sources = document.pop("stores", None), document.pop("sources", None)
        top = self._validated(Top, document, ())
        store_configs = {name: c for name, c in self.entries("stores", stores) if isinstance(c, StoreConfig)}
        source_configs = {name: c for name, c in self.entries("sources", sources) if isinstance(c, SourceConfig)}
        if isinstance(sources, dict):
            self._check_names(sources, source_configs, stores if isinstance(stores, dict) else {})
        data_dir = self._data_dir(top)
        self._check_places(data_dir, store_configs)
        # One of the last two is missing only where there is a problem.
        if self.problems or top is None or data_dir is None:
            raise ConfigError([f"{self._path.name}: {visible(problem)}" for problem in self.problems])
        return Config(
            path=self._path.absolute(),
            data_dir=data_dir,
            transfers=top.transfers,
            memory=top.memory,
            reserve=top.reserve,
            database_url=top.database.url,
            http_listen=top.http.listen,
            web=top.web,
            proof=top.proof,
            heartbeat_url=top.heartbeat_url,
            alerts=top.alerts,
            traces_endpoint=top.traces.endpoint,
            log_level=top.log_level,
            verify=top.verify,
            stores=store_configs,
            sources={
                name: replace(source, stores=tuple(store_configs)) if source.options.stores is None else source
                for name, source in source_configs.items()
            },
            secrets=frozenset(filter(None, self._secrets)),
            literal_secrets=frozenset(self._literal),
            sha256=self._sha256,
            files=self._files,
        )

    # -- the file ----------------------------------------------------------------------------------------------------

    def _parse(self) -> dict[str, Any]:
        try:
            self._files[self._path.absolute()] = stamp(self._path)
            with self._path.open("rb") as file:
                data = file.read(LARGEST + 1)
            self._sha256 = hashlib.sha256(data).hexdigest()
            if len(data) > LARGEST:
                self._fail("is too large for a config file")
            return tomllib.loads(data.decode("utf-8-sig"))
        except OSError as error:
            self._fail(f"can't be read: {reason_of(error)}")
        except UnicodeDecodeError as error:
            self._fail(f"line {data[: error.start].count(10) + 1}: is not UTF-8")
        except RecursionError:
            self._fail("is nested too deeply")
        except ValueError as error:
            match = re.fullmatch(r"(.*) \(at (?:(line \d+), column \d+|end of document)\)", str(error), re.DOTALL)
            where = (match and match[2]) or "the last line"
            what = match[1] if match else str(error)
            self._fail(f"{where}: is no TOML: {what[:1].lower()}{what[1:]}")

    def _fail(self, problem: str) -> NoReturn:
        raise ConfigError([f"{self._path.name}: {visible(problem)}"]) from None

    def _data_dir(self, top: Top | None) -> Path | None:
        if top is not None and top.data_dir is not None:
            return top.data_dir
        if (default := default_data_dir()) is None:
            self.problems.append("data_dir: is missing, and this user has no home folder to put it in")
        return default

    def _check_places(self, data_dir: Path | None, stores: Mapping[str, StoreConfig]) -> None:
        """A folder of recordings may hold nothing else: what lies in it is compared, copied and looked through."""
        for name, store in stores.items():
            path = getattr(store.options, "path", None)
            if data_dir is None or not isinstance(path, Path):
                continue
            here, ours = path.absolute(), data_dir.absolute()
            if ours == here or here in ours.parents:
                self._say(("stores", name, "path"), f"holds data_dir ({data_dir}): name a folder of its own")
            elif any(ours / own in (here, *here.parents) for own in OWN_FOLDERS):
                self._say(("stores", name, "path"), "is a folder that archiver itself uses: name another one")

    # -- sources and stores ------------------------------------------------------------------------------------------

    def entries(self, section: str, tables: Any) -> Iterator[tuple[str, StoreConfig | SourceConfig]]:
        one = section.removesuffix("s")
        if tables is None or tables == {}:
            self.problems.append(f"there is no {one}: add a section [{section}.NAME]")
            return
        if not isinstance(tables, dict):
            self.problems.append(f"{section}: must be a table; write a section [{section}.NAME]")
            return
        for name, table in tables.items():
            where = (section, name)
            if not NAME.fullmatch(name):
                self._say(where, "is no name: only letters, digits, - and _, at most 64")
            elif name in _RESERVED:
                self._say(where, "is a reserved name; choose another")
            elif not isinstance(table, dict):
                self._say(where, f"must be a table; write a section [{section}.{name}]")
            elif (cls := self._class(section, where, table)) is not None:
                options = self._validated(cls.Options, table, where)
                if isinstance(options, SourceOptions):
                    self._check_times(where, options)
                    self._check_audio(where, options)
                    yield name, SourceConfig(name, cls, options, options.stores or (), self._issuer(options))
                elif isinstance(options, StoreOptions):
                    yield name, StoreConfig(name, cls, options, self._issuer(options))

    def _issuer(self, options: SourceOptions | StoreOptions) -> str | None:
        paths = [getattr(options, name, None) for name in ("ca_file", "client_cert", "client_key")]
        if not any(paths):
            return None
        told = hashlib.sha256()
        for path in paths:
            if path is None:
                continue
            self._files[path] = stamp(path)
            # Whoever opens it says so.
            with contextlib.suppress(OSError), path.open("rb") as file:
                told.update(hashlib.sha256(file.read(LARGEST)).digest())
        return told.hexdigest()

    def _known(self, section: str) -> dict[str, EntryPoint]:
        """The kinds, looked up once: that reads files of every installed package."""
        if section not in self._kinds:
            self._kinds[section] = kinds("archiver.sources" if section == "sources" else "archiver.stores")
        return self._kinds[section]

    def _class(self, section: str, where: Where, table: dict[str, Any]) -> type[Any] | None:
        known = self._known(section)
        kind = self._resolve(table.get("kind"), (*where, "kind"))
        if (*where, "kind") in self._broken:
            return None
        if not isinstance(kind, str) or kind not in known:
            found = nearest(kind if isinstance(kind, str) else "", known)
            what = "is missing" if kind is None else "must be text" if not isinstance(kind, str) else "is not known"
            self._say((*where, "kind"), f"{what}; known are {', '.join(found) or 'none'}")
            return None
        model = SourceOptions if section == "sources" else StoreOptions
        try:
            cls = known[kind].load()
            if not issubclass(cls.Options, model):
                raise TypeError(f"its Options are no {model.__name__}")
        except Exception as error:  # noqa: BLE001 - anything may go wrong in others' modules
            self._say((*where, "kind"), f"{kind} can't be loaded: {type(error).__name__}: {error}")
            return None
        return cls  # type: ignore[no-any-return]

    def _check_names(
        self, tables: Mapping[str, Any], sources: Mapping[str, SourceConfig], stores: Iterable[str]
    ) -> None:
        """Whether the stores and sources that sources name are there; as well as can be told of a spoilt section."""
        for name, table in tables.items():
            given: Any = sources[name].options.__dict__ if name in sources else table
            if not isinstance(given, dict):
                continue
            where, wanted, other = ("sources", name), given.get("stores"), given.get("ids_from")
            if isinstance(wanted, list | tuple):
                named = [store for store in wanted if isinstance(store, str)]
                if not wanted:
                    self._say((*where, "stores"), "is empty; name a store, or leave it out for every store")
                for store in sorted(set(named) - set(stores)):
                    self._say((*where, "stores"), f"there is no store {key_text(store)}{did_you_mean(store, stores)}")
                if len(set(named)) < len(named):
                    self._say((*where, "stores"), "names a store twice")
            others = [source for source in tables if source != name]
            if isinstance(other, str) and other not in others:
                self._say(
                    (*where, "ids_from"), f"there is no other source {key_text(other)}{did_you_mean(other, others)}"
                )

    def _check_audio(self, where: Where, options: SourceOptions) -> None:
        if options.audio is not None:
            from ..audio import raw_format

            try:
                raw_format(options.audio)
            except ValueError as error:
                self._say((*where, "audio"), str(error))

    def _check_times(self, where: Where, options: SourceOptions) -> None:
        retry, none = options.retry, timedelta()
        if len(options.poll.split()) == 5:
            from apscheduler.triggers.cron import CronTrigger

            try:
                CronTrigger.from_crontab(options.poll, timezone=UTC)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
                self._say((*where, "poll"), 'is no cron expression; write it like "*/5 * * * *", or "5m"')
        if options.start is not None and options.start < _EARLIEST:
            self._say((*where, "start"), "lies before 1990")
        if options.retention is not None and options.retention < timedelta(hours=1):
            self._say((*where, "retention"), "is too short; it is how long the recorder keeps a recording")
        if options.timeout <= none:
            self._say((*where, "timeout"), "must be longer than nothing")
        if retry.first <= none:
            self._say((*where, "retry", "first"), "must be longer than nothing")
        if retry.cap < retry.first:
            self._say((*where, "retry", "cap"), "must not be shorter than retry.first")
        if retry.give_up_after < retry.first:
            self._say((*where, "retry", "give_up_after"), "must not be shorter than retry.first")

    # -- tables ------------------------------------------------------------------------------------------------------

    def _validated(self, model: type[_M], table: dict[str, Any], where: Where) -> _M | None:
        plain = {key: self._resolve(value, (*where, key)) for key, value in table.items()}
        self._keep_secrets(model, plain, where)
        self._do_without(model, plain, where)
        broken = [place for place in self._broken if place[: len(where)] == where]
        try:
            options = model.model_validate(plain)
            return None if broken else self._absolute(options)
        except ValidationError as error:
            for told in error.errors(include_url=False, include_input=False):
                place = (*where, *steps(told["loc"], plain))
                # What can't be resolved is told already; nor can a rule over several values be judged then.
                if not any(place[: len(b)] == b[: len(place)] for b in broken):
                    self._say(place, self._hidden(in_plain_words(told, model, place[len(where) :])))
        except Exception as error:  # noqa: BLE001 - anything may go wrong in others' validators
            self._say(where, f"can't be used ({type(error).__name__})")
        return None

    def _resolve(self, value: Any, place: Where) -> Any:
        """The value with all that it refers to in its place; None, and a problem, where that is not to be had."""
        if len(place) > _DEEPEST:
            return self._broke(place, "is nested too deeply")
        if isinstance(value, list):
            return [self._resolve(item, (*place, str(i))) for i, item in enumerate(value)]
        if isinstance(value, dict):
            (how, name), *more = [*value.items(), (None, None)]
            if len(more) == 1 and how in _REFERENCES and isinstance(name, str):
                return self._referred(how, name, place)
            return {key: self._resolve(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, str) and "\0" in value:
            return self._broke(place, "holds a NUL character")
        return value

    def _referred(self, how: str, name: str, place: Where) -> str | _Withheld | None:
        if not name or "\0" in name:
            return self._broke(place, f"names no {how}")
        try:
            if how == "env":
                text = os.environ.get(name)
                if text is None:
                    return self._not_had(place, f"environment variable {name} is not set; set it where archiver runs")
                what = f"environment variable {name}"
            elif how == "credential":
                folder = os.environ.get("CREDENTIALS_DIRECTORY")
                if not folder:
                    why = f"no credential {name}: $CREDENTIALS_DIRECTORY is not set (systemd does)"
                    return self._not_had(place, why)
                if "/" in name or name in {".", ".."}:
                    return self._broke(place, f"{name} is no credential's name")
                text, what = self._content(Path(folder) / name), f"credential {name}"
            else:
                text, what = self._content(self._folder / Path(name).expanduser()), f"file {name}"
        except (OSError, RuntimeError, ValueError) as error:
            said = f"{reason_of(error)}; make it, readable by this user"
            if isinstance(error, UnicodeError):
                said = "is not UTF-8"
            return self._not_had(place, f"{how} {name} can't be read: {said}")
        if not text or "\0" in text:
            return self._broke(place, f"{what} {'holds a NUL character' if text else 'is empty'}")
        self._secrets.add(text)
        self._resolved.add(place)
        return text

    def _content(self, path: Path) -> str:
        self._files[path] = stamp(path)
        with path.open("rb") as file:
            text = file.read(LARGEST).decode("utf-8")
        return text.removesuffix("\n").removesuffix("\r")

    def _not_had(self, place: Where, problem: str) -> _Withheld | None:
        if not self._asks_recorders and place[0] in _OF_THE_DAEMON:
            return _Withheld(problem)
        self._broke(place, problem)
        return None

    def _do_without(self, model: type[BaseModel], table: dict[str, Any], where: Where) -> None:
        """Leave out what is withheld; what must be there becomes a text that is no secret."""
        for name, about in model.model_fields.items():
            key = about.alias or name
            value, inner = table.get(key), inner_model(about.annotation)
            if inner is not None and isinstance(value, dict):
                self._do_without(inner, value, (*where, key))
            elif isinstance(value, _Withheld) and not about.is_required():
                del table[key]
            elif isinstance(value, _Withheld):
                table[key] = "withheld"
                if not _mentions(about.annotation, SecretStr):
                    self._broke((*where, key), value.why)

    def _broke(self, place: Where, problem: str) -> str | None:
        self._broken.add(place)
        self._say(place, problem)
        return None

    def _keep_secrets(self, model: type[BaseModel], table: Mapping[str, Any], where: Where) -> None:
        """Note the values of the secret fields, whether the table turns out to be valid or not."""
        for name, about in model.model_fields.items():
            key = about.alias or name
            value, place = table.get(key), (*where, key)
            inner = inner_model(about.annotation)
            if inner is not None and isinstance(value, dict):
                self._keep_secrets(inner, value, place)
            if not _mentions(about.annotation, SecretStr):
                continue
            for text in _texts(value):
                if not text and about.default != SecretStr(""):
                    self._broke(place, "is empty; leave it out, or name what it is kept in")
                    continue
                password = _password(text)
                if place == ("database", "url") or key == "proxy":
                    # Without a password such an address is no secret.
                    if password is None:
                        continue
                    self._secrets |= {password, unquote(password)}
                self._secrets.add(text)
                if text and place not in self._resolved:
                    self._literal.add(dotted(place))

    def _absolute(self, options: _M) -> _M:
        """Its paths, and those of the tables in it, from the config file's folder on."""
        found: dict[str, Any] = {}
        for name in type(options).model_fields:
            value = getattr(options, name)
            if isinstance(value, Path):
                found[name] = self._folder / value.expanduser()
            elif isinstance(value, Strict):
                found[name] = self._absolute(value)
        return options.model_copy(update=found)

    def _say(self, place: Where, problem: str) -> None:
        self.problems.append(f"{dotted(place)}: {problem}" if place else problem)

    def _hidden(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) >= 4:
                text = text.replace(secret, "***")
        return text


def _mentions(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_mentions(argument, wanted) for argument in get_args(annotation))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))


def _password(url: str) -> str | None:
    """The password in a URL: before the host, or among a PostgreSQL URL's parameters."""
    try:
        parts = urlsplit(url)
        return parts.password or dict(parse_qsl(parts.query)).get("password")
    except ValueError:
        return None


def default_data_dir() -> Path | None:
    if state := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(state)
    try:
        return Path.home() / ".local" / "share" / "archiver"
    except RuntimeError:
        return None
