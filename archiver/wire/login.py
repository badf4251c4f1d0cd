"""Log-ins of HTTP: Basic (RFC 7617), and Digest (RFC 7616), which answers a server's challenge.

Of Digest's ``qop`` only ``auth`` is spoken (and none at all, as before RFC 2617): ``auth-int`` hashes a body before its
first byte is sent. MD5, SHA-256 and SHA-512/256, each also as ``-sess``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Sequence

_HASHES = {"MD5": "md5", "SHA-256": "sha256", "SHA-512-256": "sha512_256"}
#: The strongest first.
_ALGORITHMS = [f"{name}{sess}" for name in ("SHA-512-256", "SHA-256", "MD5") for sess in ("", "-SESS")]
_PART = re.compile(r'\s*,?\s*(?:([\w!#$%&\'*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))|([\w-]+)(?=[\s,]|$))')


def basic(username: str, password: str) -> dict[str, str]:
    """The header of HTTP Basic (in UTF-8)."""
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}


def schemes(told: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """What WWW-Authenticate offers, in one header or several: each scheme in small letters, and its parameters."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in told:
        at = 0
        while match := _PART.match(header, at):
            at = match.end()
            name, quoted, plain, scheme = match.groups()
            if scheme is not None:
                found.append((scheme.lower(), {}))
            elif found:
                found[-1][1][name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
    return found


class Login:
    """How one server is told who we are: by Digest where it takes nothing else, or where all can read what is sent."""

    def __init__(self, username: str, password: str, *, open_to_all: bool) -> None:
        """``open_to_all``: there is no TLS."""
        self._basic = basic(username, password)
        self._digest = Digest(username, password)
        self._open_to_all = open_to_all
        #: Does the server take it, and do we use it?
        self.by_digest = False

    def challenged(self, told: Sequence[str]) -> bool:
        """A request was refused, with this in WWW-Authenticate; False where no other answer to it is left."""
        if not self._digest.challenged(told):
            return False
        if not self.by_digest:
            self.by_digest = self._open_to_all or "basic" not in dict(schemes(told))
        return self.by_digest

    @property
    def stale(self) -> bool:
        """Was the last answer refused for its age alone?"""
        return self.by_digest and self._digest.stale

    def headers(self, method: str, target: str) -> dict[str, str]:
        """Of a request."""
        return self._digest.answer(method, target) if self.by_digest else self._basic


class Digest:
    """Answers one server's challenges, which may change at any time."""

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._password = password
        self._challenge: dict[str, str] = {}
        self._algorithm = ""
        self._count = 0

    def challenged(self, told: Iterable[str]) -> bool:
        """Take the strongest challenge that WWW-Authenticate holds; False where there is none that can be answered."""
        offered: dict[str, dict[str, str]] = {}
        for scheme, parameters in schemes(told):
            qop = {each.strip().lower() for each in parameters.get("qop", "").split(",")} - {""}
            if scheme == "digest" and "nonce" in parameters and "realm" in parameters and (not qop or "auth" in qop):
                offered.setdefault(parameters.get("algorithm", "MD5").upper(), parameters)
        self._algorithm = next((name for name in _ALGORITHMS if name in offered and _known(name)), "")
        self._challenge = offered.get(self._algorithm, {})
        self._count = 0
        return bool(self._challenge)

    @property
    def stale(self) -> bool:
        return self._challenge.get("stale", "").lower() == "true"

    def answer(self, method: str, target: str) -> dict[str, str]:
        """The header for a request; none before the first challenge."""
        told = self._challenge
        if not told:
            return {}
        self._count += 1
        hashed = _hash(self._algorithm)
        nonce, count, own = told["nonce"], f"{self._count:08x}", secrets.token_hex(16)
        secret = hashed(f"{self._username}:{told['realm']}:{self._password}")
        if self._algorithm.endswith("-SESS"):
            secret = hashed(f"{secret}:{nonce}:{own}")
        asked = hashed(f"{method}:{target}")
        fields = {
            "username": _quoted(self._username),
            "realm": _quoted(told["realm"]),
            "nonce": _quoted(nonce),
            "uri": _quoted(target),
        }
        if told.get("qop"):
            fields["response"] = _quoted(hashed(f"{secret}:{nonce}:{count}:{own}:auth:{asked}"))
            fields |= {"qop": "auth", "nc": count, "cnonce": _quoted(own)}
        else:
            fields["response"] = _quoted(hashed(f"{secret}:{nonce}:{asked}"))
            if self._algorithm.endswith("-SESS"):
                fields["cnonce"] = _quoted(own)
        if "algorithm" in told:
            fields["algorithm"] = told["algorithm"]
        if "opaque" in told:
            fields["opaque"] = _quoted(told["opaque"])
        return {"Authorization": "Digest " + ", ".join(f"{name}={value}" for name, value in fields.items())}


def _hash(algorithm: str) -> Callable[[str], str]:
    name = _HASHES[algorithm.removesuffix("-SESS")]
    # What it protects is the password on the way; the server chooses.
    return lambda text: hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()


def _known(algorithm: str) -> bool:
    return _HASHES[algorithm.removesuffix("-SESS")] in hashlib.algorithms_available


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
