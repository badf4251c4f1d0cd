"""What every source and every store can be told, and how durations, sizes and rates are written.

A source's or store's own options live beside its class, in a model that extends these.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import inspect
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from yarl import URL

from ..model import ListingKey

__all__ = [
    "DIRECT",
    "Duration",
    "ProxyOption",
    "Rate",
    "Retry",
    "SecretStr",
    "Size",
    "SourceOptions",
    "StoreOptions",
    "Strict",
    "VerifyOptions",
    "allowance",
    "duration",
    "own_certificate",
    "proxy",
    "proxy_url",
    "rate",
    "size",
]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_SIZES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdwy])")


def duration(value: Any) -> timedelta:
    """``"90s"``, ``"5m"``, ``"1h30m"``, ``"7d"`` as a timedelta."""
    if isinstance(value, timedelta):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if not text or _PART.sub("", text).strip():
        raise ValueError('is not a duration; write it like "90s", "5m", "1h" or "7d"')
    try:
        return timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text)))
    except OverflowError:
        raise ValueError("is too long a duration") from None


def size(value: Any) -> int:
    """``"64MiB"``, ``"10GB"`` or a plain number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?i?B?)\s*", value) if isinstance(value, str) else None
    if match is None or match[2] not in _SIZES:
        raise ValueError('is not a size; write it like "64MiB" or "10GB"')
    return int(float(match[1]) * _SIZES[match[2]])


class Rate(BaseModel):
    """So many requests per so long."""

    model_config = ConfigDict(frozen=True)

    count: int
    per: timedelta

    @property
    def interval(self) -> timedelta:
        return self.per / self.count

    def __str__(self) -> str:
        seconds = f"{self.per.total_seconds():g}"
        return f"{self.count}/{'' if seconds == '1' else seconds}s"


def rate(value: Any) -> Rate:
    """``"10/s"``, ``"20/m"``, ``"1/3s"``."""
    if isinstance(value, Rate):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d*)\s*([smhd])\s*", value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0 or match[2] == "0":
        raise ValueError('is not a rate; write it like "10/s", "20/m" or "1/3s"')
    return Rate(count=int(match[1]), per=timedelta(seconds=int(match[2] or 1) * _UNITS[match[3]]))


#: In place of a proxy: none, whatever the environment says.
DIRECT = "none"


def proxy_url(text: str) -> URL | None:
    """A proxy's address, with user and password where it has them; None where it is none that can be used."""
    if not re.fullmatch(r"https?://([^\s/?#@]+@)?[^\s/?#@]+/?", text):
        return None
    try:
        url = URL(text)
    except ValueError:
        return None
    return url if url.host and url.port else None


def proxy(value: Any) -> Any:
    """``"http://proxy.example.com:3128"``, or ``"none"``."""
    if isinstance(value, str) and value != DIRECT and proxy_url(value) is None:
        raise ValueError(f'is no proxy; write it like "http://proxy.example.com:3128", or "{DIRECT}" for none')
    return value


Duration = Annotated[timedelta, BeforeValidator(duration)]
Size = Annotated[int, BeforeValidator(size)]
RateOption = Annotated[Rate, BeforeValidator(rate)]
ProxyOption = Annotated[SecretStr, BeforeValidator(proxy)]


class Strict(BaseModel):
    """Refuses what it does not know; frozen; says nothing of the values it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


class Retry(Strict):
    first: Duration = timedelta(seconds=30)
    cap: Duration = timedelta(hours=6)
    give_up_after: Duration = timedelta(days=14)


def allowance(value: Any) -> int | timedelta | None:
    """``"10GiB"`` as bytes, ``"2h"`` as a timedelta."""
    if value is None or isinstance(value, timedelta):
        return value
    for read in (size, duration):
        try:
            return read(value)
        except ValueError:
            continue
    raise ValueError('is neither a size like "10GiB" nor a duration like "2h"')


class VerifyOptions(Strict):
    """How the daemon reads copies back."""

    enabled: bool = True
    #: Every copy is read once within this time.
    cycle: Duration = timedelta(days=90)
    #: Of each store a day (UTC): bytes, or time spent reading. None: as much as the cycle takes.
    budget: Annotated[int | timedelta | None, BeforeValidator(allowance)] = None

    @field_validator("cycle")
    @classmethod
    def _cycle_is_positive(cls, cycle: timedelta) -> timedelta:
        if cycle < timedelta(seconds=1):
            raise ValueError('is too short; write it like "90d"')
        return cycle

    @field_validator("budget")
    @classmethod
    def _budget_is_positive(cls, given: int | timedelta | None) -> int | timedelta | None:
        if given in {0, timedelta()} or (isinstance(given, timedelta) and given < timedelta()):
            raise ValueError("must be more than nothing; to read no copies, set enabled = false")
        return given

    @property
    def period(self) -> timedelta:
        """Within so long its part of the cycle is read; what is younger is not read again."""
        return min(timedelta(days=1), self.cycle / 8)

    @property
    def beat(self) -> timedelta:
        """How often to look for what is due."""
        return max(min(timedelta(hours=1), self.cycle / 100), timedelta(seconds=0.2))


class StoreOptions(Strict):
    kind: str
    #: Stands before every key.
    prefix: str = ""
    #: Of no progress, not of a whole transfer.
    timeout: Duration = timedelta(seconds=60)

    @field_validator("prefix")
    @classmethod
    def _prefix_is_relative(cls, prefix: str) -> str:
        parts = prefix.split("/")
        if prefix.startswith("/") or ".." in parts or "." in parts or "\x00" in prefix:
            raise ValueError('is no prefix; write it like "archive/"')
        return prefix


def own_certificate(cert: Path | None, key: Path | None) -> tuple[Path, Path | None] | None:
    """What a server that asks who we are is shown. Raises ValueError for a key without its certificate."""
    if cert is None and key is not None:
        raise ValueError("client_key needs client_cert, the certificate of that key")
    return None if cert is None else (cert, key)


class SourceOptions(Strict):
    kind: str
    #: Scheme, host and port (and the API's root where the sheet says so).
    base_url: str
    #: Names of stores; None: every store.
    stores: tuple[str, ...] | None = None
    enabled: bool = True
    #: IANA name of the zone of the API's zone-less times.
    timezone: str | None = None
    #: The country whose national numbers it tells, like GB: what is typed nationally is understood by it.
    country: str | None = None
    #: Calls are archived from this moment on, like 2024-01-01; none: from 24 h before the first start.
    start: datetime | None = None
    #: How often to look for calls: a duration or a cron expression.
    poll: str = "5m"
    #: The longest span one listing asks for.
    window: Duration = timedelta(hours=1)
    #: The newest moments are not listed yet.
    settle: Duration = timedelta(minutes=2)
    #: Listed again on every poll, for late arrivals.
    lookback: Duration = timedelta(hours=24)
    #: For APIs whose filter drops calls that cross a window's edge.
    longest_call: Duration = timedelta(hours=8)
    #: The source deletes its recordings when they are so old; None: nobody says.
    retention: Duration | None = None
    #: plain: manifests and ledgers can be erased; worm: a store's object_lock locks them like the recordings.
    policy: Literal["plain", "worm"] = "plain"
    #: Concurrent requests to this source, over all hosts together.
    concurrency: int = Field(default=4, ge=1, le=1000)
    #: Requests to this source, like 10/s or 1/3s; none: no limit.
    # Named outside the class: within it, ``rate`` is this field's default.
    rate: RateOption | None = None
    #: Of no progress, not of a whole download.
    timeout: Duration = timedelta(seconds=60)
    retry: Retry = Retry()
    #: The certificate of the server's issuer, where no public authority issued it.
    ca_file: Path | None = None
    #: false: anyone on the way can read and change what is transferred.
    verify_tls: bool = True
    #: true: TLS 1.0 and 1.1 too, and other old ways that can be broken; for recorders that know no better.
    legacy_tls: bool = False
    #: What a recorder that asks who we are is shown: a certificate (PEM) and its key, which may be in the same file.
    client_cert: Path | None = None
    client_key: Path | None = None
    #: Requests go through this proxy; none: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say; "none": directly.
    proxy: ProxyOption | None = None
    #: No recording is larger: a body that never ends is cut off here.
    largest: Size = 8 << 30
    #: Where the recordings have no container: their coding and rate, like raw:ulaw:8000.
    audio: str | None = None

    @field_validator("country")
    @classmethod
    def _country_is_known(cls, region: str | None) -> str | None:
        if region is not None:
            # It takes a while to load; few name one.
            from ..common.numbers import is_country

            if not is_country(region):
                raise ValueError(f'"{region}" is no country; write its two letters, like "GB"')
        return region

    @field_validator("base_url")
    @classmethod
    def _base_url_is_http(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise ValueError('is no base URL; write it like "http://10.0.0.101:9080", without user, query or fragment')
        return url.rstrip("/")

    @field_validator("base_url")
    @classmethod
    def _port_is_one(cls, url: str) -> str:
        try:
            urlsplit(url).port  # noqa: B018 - it raises
        except ValueError:
            raise ValueError("has a port that is no number up to 65535") from None
        return url

    @field_validator("timezone")
    @classmethod
    def _timezone_is_known(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                ZoneInfo(name)
            except (KeyError, ValueError, OSError):
                raise ValueError('is no IANA time zone; write it like "Europe/Paris"') from None
        return name

    @field_validator("start", mode="before")
    @classmethod
    def _start_is_utc(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("is no date; write it like 2024-01-31 or 2024-01-31T08:00:00Z") from None
        if isinstance(value, dt.date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return value

    @field_validator("window")
    @classmethod
    def _window_is_positive(cls, window: timedelta) -> timedelta:
        if window < timedelta(seconds=1):
            raise ValueError("is too short; a window is at least a second long")
        return window

    @field_validator("poll")
    @classmethod
    def _poll_is_a_schedule(cls, poll: str) -> str:
        if len(poll.split()) != 5 and duration(poll) < timedelta(seconds=1):
            raise ValueError("is too short; poll at most once a second")
        return poll

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> SourceOptions:
        own_certificate(self.client_cert, self.client_key)
        return self

    @property
    def origin(self) -> str:
        """Where the recorder is: scheme, host, port and the API's root, however they are written."""
        parts = urlsplit(self.base_url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"

    @property
    def sees_as(self) -> str | None:
        """Who asks, where that decides what is shown. Not a token: those are changed, and show the same."""
        return getattr(self, "username", None)

    @property
    def many_tenants(self) -> bool:
        """Is its address one for many customers, told apart by their tokens?"""
        return False

    @property
    def account(self) -> str | None:
        """A hash of :attr:`sees_as`, of use only to see whether it is another."""
        if (who := self.sees_as) is None:
            return None
        return hashlib.sha256(f"{self.kind}\0{self.origin}\0{who}".encode()).hexdigest()[:16]

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone or "UTC")

    def relisted(self, listing_key: ListingKey) -> timedelta:
        """How far back each poll lists again.

        Where the filter looks at the start of a call, a call that is listed only once it has ended
        may turn up as late as the longest call takes.
        """
        return max(self.lookback, self.longest_call) if listing_key is ListingKey.START else self.lookback


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """By option, what its model's source says of it in ``#:`` comments above; nothing where that is not to be had."""
    told: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        comment: list[str] = []
        try:
            lines = inspect.getsource(cls).splitlines() if cls.__module__ != "builtins" else []
        except (OSError, TypeError):
            continue
        for line in lines:
            if match := re.fullmatch(r" {4}#: ?(.*)", line):
                comment.append(match[1].replace("``", ""))
                continue
            if re.match(r" {4}# ", line):
                continue
            if (match := re.match(r" {4}(\w+): ", line)) and (comment or match[1] not in told):
                told[match[1]] = " ".join(comment)
            comment = []
    fields = model.model_fields.items()
    return {about.alias or name: about.description or told.get(name, "") for name, about in fields}


Kind = Literal["source", "store"]
