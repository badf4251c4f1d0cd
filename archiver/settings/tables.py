"""The tables of the config file besides its sources and stores: what each key may be, and its default."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from ..common import libpq
from .options import Duration, ProxyOption, Size, Strict, VerifyOptions

#: What traces need, by module.
_OPENTELEMETRY = {
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
#: Hosts that nobody but this machine reaches.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: The port that an address of this scheme leaves out.
PORTS = {"http": ":80", "https": ":443"}


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


def _origin(value: Any) -> Any:
    if _is_text(value) and not re.fullmatch(r"https?://[^\s/?#@]+", value):
        raise ValueError('is no origin; write it without a path, like "https://calls.example.com"')
    if not _is_text(value):
        return value
    # As browsers write it.
    scheme, _, host = value.lower().partition("://")
    return f"{scheme}://{host.removesuffix(PORTS[scheme])}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


Mailbox = Annotated[str, BeforeValidator(_mailbox)]
WebAddress = Annotated[SecretStr, BeforeValidator(_web_address)]


class Database(Strict):
    url: Annotated[SecretStr, BeforeValidator(_database)] = SecretStr("embedded")


class Http(Strict):
    listen: Annotated[tuple[str, int] | None, BeforeValidator(listen_address)] = ("127.0.0.1", 8410)


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


class Proof(Strict):
    """The log of certificates."""

    #: The log's name for ever; None: made once, kept in data_dir/proof.
    origin: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")] | None = None
    #: An OpenSSH or PEM private key (Ed25519, without a passphrase); None: made once, kept in data_dir/proof.
    key: SecretStr | None = None


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


class Traces(Strict):
    endpoint: Annotated[WebAddress | None, BeforeValidator(_with_opentelemetry)] = None


class Top(Strict):
    """Everything but sources and stores."""

    data_dir: Path | None = None
    transfers: int = Field(default=32, ge=1, le=10_000)
    memory: Size = Field(default=256 << 20, ge=1 << 20)
    reserve: Size | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    heartbeat_url: WebAddress | None = None
    verify: VerifyOptions = VerifyOptions()
    database: Database = Database()
    http: Http = Http()
    web: Web = Web()
    proof: Proof = Proof()
    alerts: Alerts = Alerts()
    traces: Traces = Traces()
