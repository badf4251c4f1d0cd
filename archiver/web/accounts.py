"""Accounts of people, and tokens of programs: one file beside the config, which only its owner may read.

Passwords are kept as argon2id, tokens as SHA-256. The file is written by `archiver user` and `archiver token`. A
running `archiver serve` takes a change at once, and a removed or changed account ends its log-ins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from ..common.words import nearest, reason_of
from ..errors import ConfigError

ROLES = ("agent", "supervisor", "compliance", "auditor", "admin")
#: What each role may do (docs/face.md has the table).
RIGHTS: dict[str, frozenset[str]] = {
    "agent": frozenset({"find", "hear"}),
    "supervisor": frozenset({"find", "hear"}),
    "compliance": frozenset({"find", "hear", "download"}),
    "auditor": frozenset({"find", "audit", "tokens"}),
    "admin": frozenset({"tokens"}),
}
#: Before hearing, unless the config says otherwise.
REASONS = {"agent": "none", "supervisor": "required", "compliance": "required", "auditor": "none", "admin": "none"}
TOKEN = "arch_"  # noqa: S105 – how one begins
SHORTEST_PASSWORD = 10
_NAME = re.compile(r"[\w.@+-]{1,64}")
_HEAD = "# Accounts and tokens of the face, written by `archiver user` and `archiver token`. Keep it private.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which calls: of one of these sources and queues and agents; an empty part limits nothing. ``*`` is a wildcard."""

    sources: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody, or a program's token."""

    name: str
    role: str
    scope: Scope = Scope()
    #: argon2id of a password, SHA-256 of a token.
    secret: str = field(repr=False)
    made: datetime
    expires: datetime | None = None

    def digest(self) -> bytes:
        """Changes when anything about the account changes: what was logged in with it before is logged in no more."""
        told = [self.name, self.role, self.scope.sources, self.scope.queues, self.scope.agents, self.secret]
        return hashlib.sha256(json.dumps(told).encode()).digest()


@dataclass(frozen=True, slots=True)
class Accounts:
    """All there are, as the file tells them."""

    users: Mapping[str, Account] = field(default_factory=dict)
    tokens: Mapping[str, Account] = field(default_factory=dict)

    def token(self, told: str) -> Account | None:
        """The one whose secret this is, unless it has expired."""
        digest = hashlib.sha256(told.encode()).hexdigest()
        for account in self.tokens.values():
            if secrets.compare_digest(account.secret, digest):
                return account if account.expires is None or account.expires > datetime.now(UTC) else None
        return None


class AccountsFile:
    """The file; read anew when it has changed. Everything here blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] = ()
        self._held = Accounts()

    def read(self) -> Accounts:
        """What it tells now; nobody where there is none. Raises ConfigError where it can't be read."""
        try:
            with self.path.open("rb") as file:
                told = os.fstat(file.fileno())
                seen = told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns
                if seen != self._seen:
                    if stat.S_IMODE(told.st_mode) & 0o077:
                        raise ConfigError([f"{self.path}: others may read it: chmod 600 {self.path}"])
                    self._held = _parsed(file.read())
                    self._seen = seen
        except FileNotFoundError:
            self._held, self._seen = Accounts(), ()
        except OSError as error:
            raise ConfigError([f"{self.path}: can't be read: {reason_of(error)}"]) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError([f"{self.path}: is no file of accounts: {error}"]) from None
        return self._held

    def write(self, accounts: Accounts) -> None:
        """In one step: a reader finds the old or the new. Raises OSError."""
        lines = [_HEAD]
        for section, several in (("users", accounts.users), ("tokens", accounts.tokens)):
            for account in several.values():
                lines += [f"\n[{section}.{_quoted(account.name)}]\n", *(f"{k} = {v}\n" for k, v in _told(account))]
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write("".join(lines))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _parsed(data: bytes) -> Accounts:
    document = tomllib.loads(data.decode("utf-8"))

    def account(name: str, told: Mapping[str, Any]) -> Account:
        if told["role"] not in ROLES:
            raise ValueError(f'"{told["role"]}" is no role')
        parts = {key: tuple(map(str, told.get(key, ()))) for key in ("sources", "queues", "agents")}
        return Account(
            name=name,
            role=told["role"],
            scope=Scope(**parts),
            secret=str(told["secret"]),
            made=told["made"],
            expires=told.get("expires"),
        )

    return Accounts(
        users={name: account(name, told) for name, told in document.get("users", {}).items()},
        tokens={name: account(name, told) for name, told in document.get("tokens", {}).items()},
    )


def _told(account: Account) -> list[tuple[str, str]]:
    told = [("role", _quoted(account.role)), ("secret", _quoted(account.secret)), ("made", _moment(account.made))]
    parts = {key: getattr(account.scope, key) for key in ("sources", "queues", "agents")}
    told += [(key, f"[{', '.join(map(_quoted, values))}]") for key, values in parts.items() if values]
    if account.expires is not None:
        told.append(("expires", _moment(account.expires)))
    return told


def _quoted(text: str) -> str:
    # JSON's texts are TOML's, but for the one control character that JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def checked(name: str, role: str, scope: Scope) -> None:
    """Raises ConfigError where no account can be so."""
    if not _NAME.fullmatch(name):
        raise ConfigError([f'"{name}" is no name for an account: letters, digits and . @ + - _, at most 64'])
    if role not in ROLES:
        raise ConfigError(
            [f'there is no role "{role}"; there are {", ".join(ROLES)}; the nearest is "{nearest(role, ROLES)[0]}"']
        )
    if role == "agent" and not scope.agents:
        raise ConfigError(["an agent's own calls are found by --agent: the number or the name that the recorder tells"])


def free(accounts: Accounts, name: str) -> None:
    """Raises ConfigError where somebody has the name: the audit tells who it was by the name alone."""
    if name in accounts.users:
        raise ConfigError([f'there is an account "{name}": remove it first (user remove), or take another name'])
    if name in accounts.tokens:
        raise ConfigError([f'there is a token "{name}": revoke it first (token revoke), or take another name'])


def with_user(accounts: Accounts, account: Account) -> Accounts:
    """The same with this user, new or in place of the one with the name."""
    return replace(accounts, users={**accounts.users, account.name: account})


def without_user(accounts: Accounts, name: str) -> Accounts:
    """The same without them. Raises KeyError."""
    left = dict(accounts.users)
    del left[name]
    return replace(accounts, users=left)


def with_token(accounts: Accounts, account: Account) -> Accounts:
    """The same with this token."""
    return replace(accounts, tokens={**accounts.tokens, account.name: account})


def without_token(accounts: Accounts, name: str) -> Accounts:
    """The same without it. Raises KeyError."""
    left = dict(accounts.tokens)
    del left[name]
    return replace(accounts, tokens=left)


_HASHER = PasswordHasher()
#: Of nobody: an unknown name costs as much as a wrong password.
_NOBODY = _HASHER.hash(secrets.token_urlsafe(16))


def hashed(password: str) -> str:
    """For the file. Takes a fifth of a second. Raises ConfigError where it is too short."""
    if len(password) < SHORTEST_PASSWORD:
        raise ConfigError([f"a password has {SHORTEST_PASSWORD} characters or more"])
    return _HASHER.hash(password)


def fits(account: Account | None, password: str) -> bool:
    """Is it the account's? Takes the same time where there is none."""
    try:
        return _HASHER.verify(account.secret if account is not None else _NOBODY, password) and account is not None
    except (Argon2Error, InvalidHashError):
        return False


def new_token() -> tuple[str, str]:
    """A secret to be shown once, and what is kept of it."""
    secret = TOKEN + secrets.token_urlsafe(32)
    return secret, hashlib.sha256(secret.encode()).hexdigest()


def reason(role: str, configured: Literal["required", "optional", "none"] | None) -> str:
    """Before hearing: required, optional or none."""
    return configured or REASONS[role]
