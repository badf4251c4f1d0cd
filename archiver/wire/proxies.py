"""Which proxy a request goes through: the one that the config names, else the one that the environment names.

The environment's are HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, in capitals or not. What NO_PROXY lists goes directly:
names with all below them, addresses and networks (10.0.0.0/8), each with a port or without, or ``*``. So does this
host itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from pydantic import SecretStr
from yarl import URL

from ..settings.options import DIRECT, proxy_url
from .exchange import Origin
from .login import basic


class Proxy(NamedTuple):
    """A proxy, and who named it. Its address may hold a password: only ``name`` is for people."""

    url: URL
    by: str

    @property
    def name(self) -> str:
        return f"{self.url.host}:{self.url.port}"

    @property
    def address(self) -> URL:
        """Without user and password."""
        return self.url.with_user(None)

    @property
    def login(self) -> dict[str, str]:
        """The header for the proxy, where it has a user."""
        if self.url.user is None:
            return {}
        told = basic(self.url.user, self.url.password or "")
        return {"Proxy-Authorization": told["Authorization"]}


def proxy_for(
    origin: Origin, configured: SecretStr | None, environment: Mapping[str, str] | None = None
) -> Proxy | None:
    """The proxy for requests to that origin; None: they go directly."""
    if configured is not None:
        told = configured.get_secret_value()
        return None if told == DIRECT else Proxy(URL(told), "proxy in the config")
    environment = os.environ if environment is None else environment
    for name in _names(origin, environment):
        if told := environment.get(name, "").strip():
            # Curl and others take it without a scheme.
            url = proxy_url(told if "://" in told else f"http://{told}")
            return None if url is None or _excepted(origin, environment) else Proxy(url, name)
    return None


def way(origin: Origin, configured: SecretStr | None) -> str | None:
    """How requests to that origin go, in words; None where there is nothing to say."""
    proxy = proxy_for(origin, configured)
    if proxy is not None:
        return f"through the proxy {proxy.name} ({proxy.by})"
    if configured is None and not _excepted(origin, os.environ):
        for name in _names(origin, os.environ):
            if os.environ.get(name, "").strip():
                return f"directly: {name} names a proxy that is neither http:// nor https://"
    return None


def _names(origin: Origin, environment: Mapping[str, str]) -> list[str]:
    """The variables that may name a proxy, the first that does counts."""
    names = [f"{origin.scheme}_proxy", f"{origin.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    # A web server's CGI hands a request's header Proxy on as HTTP_PROXY.
    return [name for name in names if name != "HTTP_PROXY" or "REQUEST_METHOD" not in environment]


def _excepted(origin: Origin, environment: Mapping[str, str]) -> bool:
    host = origin.host.rstrip(".")
    try:
        here = ip_address(host)
    except ValueError:
        here = None
    if host == "localhost" or host.endswith(".localhost") or (here is not None and here.is_loopback):
        return True
    for entry in (environment.get("no_proxy") or environment.get("NO_PROXY") or "").lower().split(","):
        name, port = _without_port(entry.strip())
        if not name or port not in {None, origin.port}:
            continue
        if name == "*":
            return True
        if here is None:
            plain = name.removeprefix("*").lstrip(".")
            if plain and (host == plain or host.endswith(f".{plain}")):
                return True
        else:
            try:
                if here in ip_network(name, strict=False):
                    return True
            except ValueError:
                continue
    return False


def _without_port(entry: str) -> tuple[str, int | None]:
    """``host:8080`` and ``[::1]:8080`` in two; an IPv6 address alone has no port."""
    match = re.fullmatch(r"\[([^\]]*)\](?::(\d{1,5}))?|([^:]*):(\d{1,5})", entry)
    if match is None:
        return entry, None
    port = match[2] or match[4]
    return match[1] if match[3] is None else match[3], int(port) if port else None
