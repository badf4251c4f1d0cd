"""The config file: TOML in, typed settings out; every problem at once, each in one plain line, none with a secret.

What a source or a store can be told stands in the options model beside its class, which its kind's entry point names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationError, model_validator

from ..common import libpq
from ..common.words import nearest
from ..errors import ConfigError
from .options import Duration, ProxyOption, Size, SourceOptions, StoreOptions, Strict, VerifyOptions

__all__ = [
    "Alerts",
    "Changes",
    "Config",
    "Email",
    "SourceConfig",
    "Stamp",
    "StoreConfig",
    "Web",
    "data_dir_of",
    "diff",
    "entry",
    "find",
    "kinds",
    "load",
    "stamp",
    "warnings",
]

#: Keys from the top of the file down.
_Where: TypeAlias = tuple[str, ...]
_M = TypeVar("_M", bound=Strict)
#: What tells one state of a file from another: device, inode, size, mtime; or why it can't be had.
Stamp: TypeAlias = tuple[int, ...]

#: What traces need, by module.
_OPENTELEMETRY = {
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
_PLACES = ("archiver.toml", "/etc/archiver/archiver.toml")
_LARGEST = 1 << 20
_DEEPEST = 16
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Folders of our own beside the sources' in a store.
_RESERVED = {"_manifests", "_ledger", "_verified", "_renamed", "_canary", "_audit"}
#: Hosts that nobody but this machine reaches.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
#: What may stand in place of any string.
_REFERENCES = ("env", "file", "credential")
#: What archiver makes in its data_dir.
OWN_FOLDERS = ("postgres", "spool", "run", "web")


@dataclass(frozen=True, slots=True)
class StoreConfig:
    name: str
    cls: type[Any]
    options: StoreOptions
    #: SHA-256 of the files of its certificates, which are read once, when the store is opened.
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class SourceConfig:
    name: str
    cls: type[Any]
    options: SourceOptions
    #: The stores that get a copy; never empty.
    stores: tuple[str, ...]
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    data_dir: Path
    #: Concurrent transfers of this process.
    transfers: int
    #: Bytes of media held in memory at most.
    memory: int
    #: Bytes of data_dir's disk that stay free; None: see room.py.
    reserve: int | None
    #: ``embedded`` or ``postgresql://…``
    database_url: SecretStr
    #: None: nothing is served.
    http_listen: tuple[str, int] | None
    web: Web
    heartbeat_url: SecretStr | None
    alerts: Alerts
    #: Where OpenTelemetry traces go, by OTLP over HTTP.
    traces_endpoint: SecretStr | None
    log_level: Literal["debug", "info", "warning", "error"]
    verify: VerifyOptions
    stores: Mapping[str, StoreConfig]
    sources: Mapping[str, SourceConfig]
    #: Whatever must not be shown anywhere.
    secrets: frozenset[str] = field(repr=False)
    #: The secret options that stand in the file itself, as dotted keys.
    literal_secrets: frozenset[str]
    #: SHA-256 of the file.
    sha256: str
    #: Every file that was read, as it was when it was read.
    files: Mapping[Path, Stamp] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload changes, by name, sorted."""

    sources_added: tuple[str, ...] = ()
    sources_removed: tuple[str, ...] = ()
    sources_changed: tuple[str, ...] = ()
    stores_added: tuple[str, ...] = ()
    stores_removed: tuple[str, ...] = ()
    stores_changed: tuple[str, ...] = ()
    #: Fields of Config outside sources and stores.
    settings_changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)


def find(explicit: str | None = None) -> Path:
    """The first of --config, $ARCHIVER_CONFIG and the usual places. Raises ConfigError."""
    for name, how in ((explicit, "--config"), (os.environ.get("ARCHIVER_CONFIG"), "$ARCHIVER_CONFIG")):
        if name:
            if not Path(name).exists():
                raise ConfigError([f"{how}: there is no file {name}; `archiver init` writes a first config"])
            return Path(name)
    for place in map(Path, _PLACES):
        try:
            if place.is_file():
                return place
        except PermissionError:
            # A service's user often can't look into the folder that root calls it in.
            if place.is_absolute():
                raise ConfigError([f"{place}: you may not look there; run as root or as the service's user"]) from None
    places = " or ".join(_PLACES)
    raise ConfigError([f"there is no config file ({places}): `archiver init` writes one; --config names another"])


def kinds(group: Literal["archiver.sources", "archiver.stores"]) -> dict[str, EntryPoint]:
    """The installed kinds of sources or stores, ours and others', not loaded yet."""
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)}


def load(path: Path, files: dict[Path, Stamp] | None = None) -> Config:
    """Read the config file, and what it refers to. Raises ConfigError with every problem found.

    ``files`` gets every file that was looked at, also where that raises.
    """
    return _Reader(path, {} if files is None else files).read()


def stamp(path: Path) -> Stamp:
    """The state of a file, by which a change is noticed."""
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or -1,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def data_dir_of(path: Path) -> Path | None:
    """The data_dir that a file seems to name although it can't be loaded; None where that can't be told."""
    try:
        top = re.split(r"(?m)^\s*\[", path.read_text("utf-8-sig", "replace")[:_LARGEST], maxsplit=1)[0]
    except OSError:
        return None
    named = re.search(r"""(?m)^\s*data_dir\s*=\s*(?:"([^"\\\n]+)"|'([^'\n]+)')""", top)
    if named is None:
        return _default_data_dir()
    return path.absolute().parent / Path(named[1] or named[2]).expanduser()


def entry(
    path: Path, section: Literal["sources", "stores"], name: str, table: Mapping[str, Any]
) -> tuple[SourceConfig | StoreConfig | None, list[tuple[str, str]]]:
    """One source or store as it would stand in the file at ``path``; the key and text of each problem.

    Other sections are not looked at: whether stores that a source names exist is not told.
    """
    reader = _Reader(path, {})
    found = dict(reader.entries(section, {name: dict(table)}))
    where = f"{_dotted((section, name))}."
    return found.get(name), [
        (problem.removeprefix(where).partition(": ")[0].split(".")[0], _one_line(problem))
        for problem in reader.problems
    ]


def diff(old: Config, new: Config) -> Changes:
    plain = (
        "data_dir",
        "transfers",
        "memory",
        "reserve",
        "database_url",
        "http_listen",
        "heartbeat_url",
        "log_level",
        "verify",
    )
    more = ("alerts", "traces_endpoint", "reserve")
    return Changes(
        sources_added=tuple(sorted(new.sources.keys() - old.sources.keys())),
        sources_removed=tuple(sorted(old.sources.keys() - new.sources.keys())),
        sources_changed=_changed(old.sources, new.sources),
        stores_added=tuple(sorted(new.stores.keys() - old.stores.keys())),
        stores_removed=tuple(sorted(old.stores.keys() - new.stores.keys())),
        stores_changed=_changed(old.stores, new.stores),
        settings_changed=tuple(name for name in (*plain, *more) if getattr(old, name) != getattr(new, name)),
    )


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name]))


def warnings(config: Config) -> list[str]:
    """What works but should not stay so, one line each."""
    name = config.path.name
    said: list[str] = []
    if config.literal_secrets and stat.S_IMODE(config.path.stat().st_mode) & 0o077:
        first = min(config.literal_secrets)
        said.append(f"{name}: others may read it, and it holds secrets (such as {first}): chmod 600 {config.path}")
    for section, entries in (("sources", config.sources), ("stores", config.stores)):
        said += [
            f"{name}: {section}.{entry.name}.verify_tls is off: anyone on the way can read and change what it transfers"
            for entry in entries.values()
            if getattr(entry.options, "verify_tls", True) is False
        ]
    said += [
        f"{name}: sources.{source.name}.legacy_tls is on: with some effort others can read what it sends"
        for source in config.sources.values()
        if source.options.legacy_tls
    ]
    stores = list(config.stores.values())
    said += [
        f"{name}: stores.{one.name} and stores.{other.name} are the same place: two copies there are one"
        for i, one in enumerate(stores)
        for other in stores[i + 1 :]
        if one.options == other.options
    ]
    now = datetime.now(UTC)
    for source in config.sources.values():
        if source.options.start is not None and source.options.start > now:
            said.append(f"{name}: sources.{source.name}.start lies in the future: nothing is archived until then")
        options = source.options
        if options.retention is not None and options.retention < options.lookback:
            said.append(
                f"{name}: sources.{source.name}.retention is shorter than its lookback: the recorder deletes calls that"
                " are still to be looked for; set lookback to less than retention"
            )
    url = config.database_url.get_secret_value()
    said += [f"{name}: database.url: leave out {ignored}" for ignored in libpq.read(url).ignored]
    email = config.alerts.email
    if email is not None and email.tls == "none" and email.password is not None:
        said.append(f"{name}: alerts.email.tls is none: the password goes to the mail server in the clear")
    if not any(source.options.enabled for source in config.sources.values()):
        said.append(f"{name}: no source is enabled")
    return said


def listen_address(value: Any) -> tuple[str, int] | None:
    """Host and port of ``HOST:PORT``; None: nowhere. Raises ValueError."""
    if value == "":
        return None
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]*)):([0-9]{1,5})", value) if _is_text(value) else None
    if match is None or int(match[3]) > 65535:
        raise ValueError('is no address; write it like "127.0.0.1:8410" or "[::1]:8410"')
    return match[1] or match[2], int(match[3])


def _server(value: Any) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@]+)):([0-9]{1,5})", value) if _is_text(value) else None
    if match is None or not 0 < int(match[3]) < 65536:
        raise ValueError('is no server; write it like "smtp.example.com:587"')
    return match[1] or match[2], int(match[3])


def _web_address(value: Any) -> Any:
    """For addresses that we are given to call, whose path or query may be secret."""
    if value is not None and not (_is_text(value) and re.fullmatch(r"https?://[^\s/?#]+([/?#]\S*)?", value)):
        raise ValueError('is no URL; write it like "https://hc.example.com/ping/…"')
    return value


def _with_opentelemetry(value: Any) -> Any:
    if value is not None:
        try:
            missing = [name for name in _OPENTELEMETRY if find_spec(name) is None]
        except ModuleNotFoundError:
            missing = list(_OPENTELEMETRY)
        if missing:
            packages = " ".join(sorted(_OPENTELEMETRY.values()))
            raise ValueError(f"needs the extra archiver[traces]: {sys.executable} -m pip install {packages}")
    return value


def _mailbox(value: Any) -> Any:
    if _is_text(value) and not re.fullmatch(r"[^\s@<>,\"]+@[^\s@<>,\"]+", value):
        raise ValueError('is no mail address; write it like "ops@example.com"')
    return value


def _database(value: Any) -> Any:
    if _is_text(value) and value != "embedded" and not re.match(r"postgres(ql)?://\S", value):
        raise ValueError('is neither "embedded" nor like "postgresql://user@host/database"')
    if _is_text(value) and value != "embedded":
        libpq.read(value)
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class _Database(Strict):
    url: Annotated[SecretStr, BeforeValidator(_database)] = SecretStr("embedded")


class _Http(Strict):
    listen: Annotated[tuple[str, int] | None, BeforeValidator(listen_address)] = ("127.0.0.1", 8410)


def _origin(value: Any) -> Any:
    if _is_text(value) and not re.fullmatch(r"https?://[^\s/?#@]+", value):
        raise ValueError('is no origin; write it without a path, like "https://calls.example.com"')
    return value.lower() if _is_text(value) else value


class Web(Strict):
    """The face: pages and APIs of `archiver serve`."""

    #: None: nothing is served.
    listen: Annotated[tuple[str, int] | None, BeforeValidator(listen_address)] = None
    #: The one public origin; None: the loopback address that it listens on.
    url: Annotated[str | None, BeforeValidator(_origin)] = None
    #: Users and tokens; relative to the config file.
    accounts: Path = Path("accounts.toml")
    #: Bytes of converted audio that are kept below data_dir/web.
    cache: Size = Field(default=5 << 30, ge=1 << 20)
    #: Before hearing; None: as the role has it.
    reason: Literal["required", "optional", "none"] | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Web:
        if self.listen is not None and self.url is None and self.listen[0] not in LOOPBACK:
            raise ValueError('url: is missing; name the address that people open, like "https://calls.example.com"')
        return self


Mailbox = Annotated[str, BeforeValidator(_mailbox)]
WebAddress = Annotated[SecretStr, BeforeValidator(_web_address)]


class Email(Strict):
    """Where mails go, and through which server."""

    to: Annotated[tuple[Mailbox, ...], Field(min_length=1)]
    sender: Mailbox = Field(alias="from")
    server: Annotated[tuple[str, int], BeforeValidator(_server)]
    tls: Literal["starttls", "tls", "none"] = "starttls"
    username: str | None = None
    password: SecretStr | None = None
    #: The certificate of the server's issuer, where no public authority issued it; read for each mail.
    ca_file: Path | None = None


class Alerts(Strict):
    """Who is told what is wrong, and from when on it is."""

    webhook: WebAddress | None = None
    email: Email | None = None
    #: The webhook, and heartbeat_url, go through this proxy; none: as the environment says; "none": directly.
    proxy: ProxyOption | None = None
    #: A problem is told of when it has lasted so long, and over when it was not seen for so long.
    after: Duration = timedelta(minutes=5)
    #: A source's next window may be past its time by so much.
    stale: Duration = timedelta(minutes=15)
    #: A recording may wait so long to be archived.
    lag: Duration = timedelta(hours=4)

    @property
    def told(self) -> bool:
        return self.webhook is not None or self.email is not None


class _Traces(Strict):
    endpoint: Annotated[WebAddress | None, BeforeValidator(_with_opentelemetry)] = None


class _Top(Strict):
    """Everything but sources and stores."""

    data_dir: Path | None = None
    transfers: int = Field(default=32, ge=1, le=10_000)
    memory: Size = Field(default=256 << 20, ge=1 << 20)
    reserve: Size | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    heartbeat_url: WebAddress | None = None
    verify: VerifyOptions = VerifyOptions()
    database: _Database = _Database()
    http: _Http = _Http()
    web: Web = Web()
    alerts: Alerts = Alerts()
    traces: _Traces = _Traces()


class _Reader:
    """Reads one file; gathers problems, secrets and what could not be resolved on the way."""

    def __init__(self, path: Path, files: dict[Path, Stamp]) -> None:
        self._path = path
        self._files = files
        self._sha256 = ""
        self._folder = path.absolute().parent
        self.problems: list[str] = []
        self._secrets: set[str] = set()
        self._resolved: set[_Where] = set()
        self._broken: set[_Where] = set()
        self._literal: set[str] = set()

    def read(self) -> Config:
        document = self._parse()
        stores, sources = document.pop("stores", None), document.pop("sources", None)
        top = self._validated(_Top, document, ())
        store_configs = {name: c for name, c in self.entries("stores", stores) if isinstance(c, StoreConfig)}
        source_configs = {name: c for name, c in self.entries("sources", sources) if isinstance(c, SourceConfig)}
        if isinstance(sources, dict):
            self._check_names(sources, source_configs, stores if isinstance(stores, dict) else {})
        data_dir = self._data_dir(top)
        self._check_places(data_dir, store_configs)
        # One of the last two is missing only where there is a problem.
        if self.problems or top is None or data_dir is None:
            raise ConfigError([f"{self._path.name}: {_one_line(problem)}" for problem in self.problems])
        return Config(
            path=self._path.absolute(),
            data_dir=data_dir,
            transfers=top.transfers,
            memory=top.memory,
            reserve=top.reserve,
            database_url=top.database.url,
            http_listen=top.http.listen,
            web=top.web,
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
                data = file.read(_LARGEST + 1)
            self._sha256 = hashlib.sha256(data).hexdigest()
            if len(data) > _LARGEST:
                self._fail("is too large for a config file")
            return tomllib.loads(data.decode("utf-8-sig"))
        except OSError as error:
            self._fail(f"can't be read: {error.strerror or error}")
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
        raise ConfigError([f"{self._path.name}: {_one_line(problem)}"]) from None

    def _data_dir(self, top: _Top | None) -> Path | None:
        if top is not None and top.data_dir is not None:
            return top.data_dir
        if (default := _default_data_dir()) is None:
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
            if not _NAME.fullmatch(name):
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
                told.update(hashlib.sha256(file.read(_LARGEST)).digest())
        return told.hexdigest()

    def _class(self, section: str, where: _Where, table: dict[str, Any]) -> type[Any] | None:
        known = kinds("archiver.sources" if section == "sources" else "archiver.stores")
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
                    self._say((*where, "stores"), f"there is no store {_key(store)}{_did_you_mean(store, stores)}")
                if len(set(named)) < len(named):
                    self._say((*where, "stores"), "names a store twice")
            others = [source for source in tables if source != name]
            if isinstance(other, str) and other not in others:
                self._say((*where, "ids_from"), f"there is no other source {_key(other)}{_did_you_mean(other, others)}")

    def _check_audio(self, where: _Where, options: SourceOptions) -> None:
        if options.audio is not None:
            from ..audio import raw_format

            try:
                raw_format(options.audio)
            except ValueError as error:
                self._say((*where, "audio"), str(error))

    def _check_times(self, where: _Where, options: SourceOptions) -> None:
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

    def _validated(self, model: type[_M], table: dict[str, Any], where: _Where) -> _M | None:
        plain = {key: self._resolve(value, (*where, key)) for key, value in table.items()}
        self._keep_secrets(model, plain, where)
        broken = [place for place in self._broken if place[: len(where)] == where]
        try:
            options = model.model_validate(plain)
            return None if broken else self._absolute(options)
        except ValidationError as error:
            for told in error.errors(include_url=False, include_input=False):
                place = (*where, *_steps(told["loc"], plain))
                # What can't be resolved is told already; nor can a rule over several values be judged then.
                if not any(place[: len(b)] == b[: len(place)] for b in broken):
                    self._say(place, self._hidden(_in_plain_words(told, model, place[len(where) :])))
        except Exception as error:  # noqa: BLE001 - anything may go wrong in others' validators
            self._say(where, f"can't be used ({type(error).__name__})")
        return None

    def _resolve(self, value: Any, place: _Where) -> Any:
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

    def _referred(self, how: str, name: str, place: _Where) -> str | None:
        if not name or "\0" in name:
            return self._broke(place, f"names no {how}")
        try:
            if how == "env":
                text = os.environ.get(name)
                if text is None:
                    return self._broke(place, f"environment variable {name} is not set; set it where archiver runs")
                what = f"environment variable {name}"
            elif how == "credential":
                folder = os.environ.get("CREDENTIALS_DIRECTORY")
                if not folder:
                    return self._broke(place, f"no credential {name}: $CREDENTIALS_DIRECTORY is not set (systemd does)")
                if "/" in name or name in {".", ".."}:
                    return self._broke(place, f"{name} is no credential's name")
                text, what = self._content(Path(folder) / name), f"credential {name}"
            else:
                text, what = self._content(self._folder / Path(name).expanduser()), f"file {name}"
        except (OSError, RuntimeError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            why = "is not UTF-8" if isinstance(error, UnicodeError) else f"{why}; make it, readable by this user"
            return self._broke(place, f"{how} {name} can't be read: {why}")
        if not text or "\0" in text:
            return self._broke(place, f"{what} {'holds a NUL character' if text else 'is empty'}")
        self._secrets.add(text)
        self._resolved.add(place)
        return text

    def _content(self, path: Path) -> str:
        self._files[path] = stamp(path)
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8")
        return text.removesuffix("\n").removesuffix("\r")

    def _broke(self, place: _Where, problem: str) -> str | None:
        self._broken.add(place)
        self._say(place, problem)
        return None

    def _keep_secrets(self, model: type[BaseModel], table: Mapping[str, Any], where: _Where) -> None:
        """Note the values of the secret fields, whether the table turns out to be valid or not."""
        for name, about in model.model_fields.items():
            key = about.alias or name
            value, place = table.get(key), (*where, key)
            inner = _inner_model(about.annotation)
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
                    self._literal.add(_dotted(place))

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

    def _say(self, place: _Where, problem: str) -> None:
        self.problems.append(f"{_dotted(place)}: {problem}" if place else problem)

    def _hidden(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) >= 4:
                text = text.replace(secret, "***")
        return text


# -- words -----------------------------------------------------------------------------------------------------------

_WORDS = {
    "missing": "is missing; add it",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
    "string_pattern_mismatch": "must match {pattern}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "has too few entries",
    "too_long": "has too many entries",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}
_DATES = "is no date; write it like 2024-01-31 or 2024-01-31T08:00:00Z"


def _in_plain_words(told: Mapping[str, Any], model: type[BaseModel], place: _Where) -> str:
    """One of pydantic's findings, without the value and without pydantic's words."""
    kind, context = told["type"], told.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields(model, place[:-1]) + (["stores", "sources"] if model is _Top and len(place) == 1 else [])
        return f"unknown key{_did_you_mean(place[-1], known) or _nearest_of(place[-1], known)}"
    if kind == "missing" and place == ("timezone",):
        return 'is missing: the times of this API carry no zone; write it like "Europe/Paris"'
    if kind in {"value_error", "assertion_error"}:
        return str(context.get("error") or "is not valid")
    if kind.startswith(("date", "time")):
        return _DATES
    if kind in _WORDS:
        return _WORDS[kind].format_map({name: str(value).replace("'", '"') for name, value in context.items()})
    return "is not valid"


def _nearest_of(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f'; the nearest known one is "{found[0]}"' if found else ""


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known, cutoff=0.6)
    return f'; did you mean "{found[0]}"?' if found else ""


def _steps(location: Iterable[int | str], table: Any) -> Iterator[str]:
    """A pydantic location as it stands in the file: without the steps into the branches of a union."""
    here = table
    for step in location:
        if isinstance(here, dict) and isinstance(step, str) and (step in here or _NAME.fullmatch(step)):
            here = here.get(step)
            yield step
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
            yield str(step)


def _fields(model: type[BaseModel], place: _Where) -> list[str]:
    for step in place:
        inner = next(
            (_inner_model(f.annotation) for n, f in model.model_fields.items() if step == (f.alias or n)), None
        )
        if inner is None:
            return []
        model = inner
    return [about.alias or name for name, about in model.model_fields.items()]


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_inner_model, get_args(annotation)) if m is not None), None)


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


def _default_data_dir() -> Path | None:
    if state := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(state)
    try:
        return Path.home() / ".local" / "share" / "archiver"
    except RuntimeError:
        return None


def _dotted(place: _Where) -> str:
    return ".".join(map(_key, place))


def _key(name: str) -> str:
    """A key as TOML writes it."""
    return name if _NAME.fullmatch(name) else json.dumps(name[:64])


def _one_line(text: str) -> str:
    flat = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in re.sub(r"[\r\n\t]+", " ", text[:1000]))
    return flat if len(flat) <= 500 else flat[:499] + "…"
