"""PostgreSQL's URLs as its own tools read them: what our driver does not know is translated, left out or refused.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import parse_qsl, urlencode

#: The driver's own.
_KNOWN = {
    "host", "port", "dbname", "database", "user", "password", "passfile", "service", "sslmode", "sslcert", "sslkey",
    "sslpassword", "sslrootcert", "sslcrl", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version",
    "target_session_attrs", "krbsrvname", "gsslib",
}  # fmt: skip
#: What archiver does anyway, or what changes nothing for it.
_NEEDLESS = {
    "keepalives": "archiver sets them itself",
    "keepalives_idle": "archiver sets them itself",
    "keepalives_interval": "archiver sets them itself",
    "keepalives_count": "archiver sets them itself",
    "tcp_user_timeout": "archiver sets it itself",
    "application_name": "archiver names its connections itself, to see which of its processes live",
    "fallback_application_name": "archiver names its connections itself",
    "client_encoding": "it is always UTF-8",
    "timezone": "it is always UTC",
    "TimeZone": "it is always UTC",
    "sslcompression": "TLS is not compressed any more",
    "sslsni": "it is always sent",
    "sslcertmode": "a certificate of ours is sent where sslcert names one",
    "sslkeylogfile": "archiver writes no keys to a file",
    "load_balance_hosts": "the hosts are tried in turn",
    "min_protocol_version": "archiver speaks protocol 3.0",
    "max_protocol_version": "archiver speaks protocol 3.0",
    "gssdelegation": "archiver hands on no credentials",
    "pgbouncer": "set pool_mode = session in the pooler in its place",
    "schema": "write options=-csearch_path=NAME in its place",
}
#: By parameter the values that ask for no more than archiver does.
_HARMLESS = {
    "channel_binding": {"disable", "prefer"},
    "gssencmode": {"disable", "prefer"},
    "replication": {"false", "off", "no", "0"},
}
_CANT = {
    "channel_binding": "archiver can't bind to the TLS channel: write channel_binding=prefer (and sslmode=verify-full)",
    "gssencmode": "archiver can't encrypt by GSSAPI: write gssencmode=disable, and sslmode=verify-full",
    "replication": "archiver needs a plain connection: leave replication out",
    "hostaddr": "write the address in place of the host name",
    "requirepeer": "archiver can't check the server's user: leave requirepeer out",
    "require_auth": "archiver can't choose how it is asked for its password: leave require_auth out",
    "sslcrldir": "name one file: sslcrl=FILE",
    "servicefile": "set the environment variable PGSERVICEFILE in its place",
    "scram_client_key": "archiver needs the password itself",
    "scram_server_key": "archiver needs the password itself",
}
_NAME = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(slots=True)
class Target:
    """What to connect to, and how."""

    #: Without all that the driver does not know.
    url: str
    #: The server's own settings that the URL asks for.
    settings: dict[str, str] = field(default_factory=dict)
    #: To connect, in seconds.
    timeout: float = 10.0
    #: sslrootcert=system: the certificate must be one that this host's own authorities vouch for.
    public: bool = False
    #: What is left out, and why; of no value that may be secret.
    ignored: list[str] = field(default_factory=list)


def read(url: str) -> Target:
    """Raises ValueError: what can't be done as the URL says, and what to write."""
    before, question, query = url.partition("?")
    target = Target(url)
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True) if question else ():
        if name == "sslrootcert" and value == "system":
            target.public = True
        elif name in _KNOWN:
            kept.append((name, value))
        elif name == "connect_timeout":
            target.timeout = _seconds(value) or target.timeout
        elif name == "options":
            target.settings |= _options(value)
        elif name in _NEEDLESS:
            target.ignored.append(f"{name}: {_NEEDLESS[name]}")
        elif name in _HARMLESS and value in _HARMLESS[name]:
            pass
        elif name in _CANT:
            raise ValueError(f"{name}: {_CANT[name]}")
        elif _NAME.fullmatch(name):
            # No libpq takes these so; the driver always has.
            target.settings[name] = value
        else:
            raise ValueError("has a parameter whose name is none")
    modes = [value for name, value in kept if name == "sslmode"]
    if target.public and modes[-1:] not in ([], ["verify-full"]):
        raise ValueError("sslrootcert=system: goes with sslmode=verify-full only")
    if target.public:
        kept = [(name, value) for name, value in kept if name != "sslmode"]
    target.url = before + (f"?{urlencode(kept)}" if kept else "")
    return target


def _seconds(value: str) -> float | None:
    """None: as long as we would wait anyway. As libpq has it less than two are two, and none or 0 are no limit."""
    if not re.fullmatch(r"-?\d{1,6}", value.strip()):
        raise ValueError("connect_timeout: must be a whole number of seconds")
    return float(max(2, int(value))) if int(value) > 0 else None


def _options(value: str) -> dict[str, str]:
    """``-c name=value`` and ``--name=value``, as the server's command line takes them."""
    found: dict[str, str] = {}
    try:
        # A backslash keeps a space, as there.
        words = shlex.split(value.replace("'", "\\'").replace('"', '\\"'))
    except ValueError:
        _no_options()
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word = words.pop(0)
        elif word.startswith(("-c", "--")):
            word = word[2:]
        else:
            _no_options()
        name, equals, setting = word.partition("=")
        if not equals or not _NAME.fullmatch(name.replace("-", "_")):
            _no_options()
        found[name.replace("-", "_")] = setting
    return found


def _no_options() -> NoReturn:
    raise ValueError("options: must be settings only, like options=-csearch_path=archiver (%20 between several)")
