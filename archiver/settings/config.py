"""The config file: TOML in, typed settings out; every problem at once, each in one plain line, none with a secret.

What a source or a store can be told stands in the options model beside its class, which its kind's entry point names.
The file's other tables stand in ``tables``, what is read in ``loaded``, how it is read in ``reader``.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..common import libpq
from ..common.words import visible
from ..errors import ConfigError
from .loaded import Config, SourceConfig, Stamp, StoreConfig, kinds, stamp
from .reader import LARGEST, Reader, default_data_dir
from .tables import Alerts, Email, Web, listen_address
from .wording import dotted

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
    "default_data_dir",
    "diff",
    "entry",
    "find",
    "kinds",
    "listen_address",
    "load",
    "own",
    "owner_of",
    "shared",
    "stamp",
    "warnings",
]

_PLACES = ("archiver.toml", "/etc/archiver/archiver.toml")
#: What a running daemon takes from the file besides sources and stores (``archiver serve`` reads web when it starts).
_SETTINGS = (
    "data_dir",
    "transfers",
    "memory",
    "reserve",
    "database_url",
    "http_listen",
    "heartbeat_url",
    "log_level",
    "verify",
    "alerts",
    "proof",
    "traces_endpoint",
)

#: Below data_dir: the path of the config file whose data_dir it is.
_OWNER = "run/config"


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


def load(path: Path, files: dict[Path, Stamp] | None = None, *, asks_recorders: bool = True) -> Config:
    """Read the config file, and what it refers to. Raises ConfigError with every problem found.

    ``files`` gets every file that was looked at, also where that raises. Without ``asks_recorders`` the secrets that
    recorders and alerts need may be out of sight; what is loaded is good for neither then.
    """
    return Reader(path, {} if files is None else files, asks_recorders=asks_recorders).read()


def data_dir_of(path: Path) -> Path | None:
    """The data_dir that a file seems to name although it can't be loaded; None where that can't be told."""
    try:
        top = re.split(r"(?m)^\s*\[", path.read_text("utf-8-sig", "replace")[:LARGEST], maxsplit=1)[0]
    except OSError:
        return None
    named = re.search(r"""(?m)^\s*data_dir\s*=\s*(?:"([^"\\\n]+)"|'([^'\n]+)')""", top)
    if named is None:
        return default_data_dir()
    return path.absolute().parent / Path(named[1] or named[2]).expanduser()


def owner_of(data_dir: Path) -> Path | None:
    """The config file that took this data_dir first, where that is still there and still names it."""
    try:
        path = Path((data_dir / _OWNER).read_text("utf-8"))
        named = data_dir_of(path) if path.is_file() else None
    except (OSError, ValueError):
        return None
    return path if named is not None and named.resolve() == data_dir.resolve() else None


def own(config: Config) -> None:
    """The config takes its data_dir, where no other one has it."""
    if owner_of(config.data_dir) is None:
        # Who can't write there is told by what he wanted to do.
        with contextlib.suppress(OSError):
            place = config.data_dir / _OWNER
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(config.path.resolve()), "utf-8")


def shared(config: Config) -> str | None:
    """That another config has this data_dir, if so."""
    owner = owner_of(config.data_dir)
    if owner is None or owner.resolve() == config.path.resolve():
        return None
    return f"data_dir {config.data_dir} is that of {owner}, too: give this archive a data_dir of its own"


def entry(
    path: Path, section: Literal["sources", "stores"], name: str, table: Mapping[str, Any]
) -> tuple[SourceConfig | StoreConfig | None, list[tuple[str, str]]]:
    """One source or store as it would stand in the file at ``path``; the key and text of each problem.

    Other sections are not looked at: whether stores that a source names exist is not told.
    """
    reader = Reader(path, {})
    found = dict(reader.entries(section, {name: dict(table)}))
    where = f"{dotted((section, name))}."
    return found.get(name), [
        (problem.removeprefix(where).partition(": ")[0].split(".")[0], visible(problem)) for problem in reader.problems
    ]


def diff(old: Config, new: Config) -> Changes:
    """What another reading of the file changes."""
    return Changes(
        sources_added=tuple(sorted(new.sources.keys() - old.sources.keys())),
        sources_removed=tuple(sorted(old.sources.keys() - new.sources.keys())),
        sources_changed=_changed(old.sources, new.sources),
        stores_added=tuple(sorted(new.stores.keys() - old.stores.keys())),
        stores_removed=tuple(sorted(old.stores.keys() - new.stores.keys())),
        stores_changed=_changed(old.stores, new.stores),
        settings_changed=tuple(name for name in _SETTINGS if getattr(old, name) != getattr(new, name)),
    )


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name]))


def warnings(config: Config) -> list[str]:
    """What works but should not stay so, one line each."""
    name = config.path.name
    said: list[str] = [f"{name}: {twice}"] if (twice := shared(config)) is not None else []
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
        unlocked = [s for s in source.stores if getattr(config.stores[s].options, "object_lock", None) is None]
        if options.policy == "worm" and unlocked:
            said.append(
                f'{name}: sources.{source.name}.policy is "worm", and {", ".join(unlocked)} locks nothing: what lies'
                " there can be deleted; set object_lock for it, or give the source other stores"
            )
    url = config.database_url.get_secret_value()
    said += [f"{name}: database.url: leave out {ignored}" for ignored in libpq.read(url).ignored]
    email = config.alerts.email
    if email is not None and email.tls == "none" and email.password is not None:
        said.append(f"{name}: alerts.email.tls is none: the password goes to the mail server in the clear")
    if not any(source.options.enabled for source in config.sources.values()):
        said.append(f"{name}: no source is enabled")
    return said
