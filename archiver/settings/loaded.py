"""What a config file becomes once it is read: its settings, sources and stores, and the state of the files it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import SecretStr

from .options import SourceOptions, StoreOptions, VerifyOptions
from .tables import Alerts, Proof, Web

#: What tells one state of a file from another: device, inode, size, mtime; or why it can't be had.
Stamp: TypeAlias = tuple[int, ...]


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
    proof: Proof
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

    @property
    def countries(self) -> dict[str, str]:
        """By source the country whose national numbers it tells, where that is known."""
        return {name: source.options.country for name, source in self.sources.items() if source.options.country}


def kinds(group: Literal["archiver.sources", "archiver.stores"]) -> dict[str, EntryPoint]:
    """The installed kinds of sources or stores, ours and others', not loaded yet."""
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)}


def stamp(path: Path) -> Stamp:
    """The state of a file, by which a change is noticed."""
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or -1,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
