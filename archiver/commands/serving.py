"""What lets people in: the face, its accounts and tokens, and who did what there."""

from __future__ import annotations

import getpass
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ..common import cells
from ..errors import ConfigError
from .common import INCOMPLETE, Moment, Span, answer, as_json, as_text, catalog_of, console, load, me, run
from .completing import SOURCE

if TYPE_CHECKING:
    from ..catalog.face import Event
    from ..web.accounts import Account, AccountsFile, Scope

_NEEDED = ("argon2", "av", "babel", "jinja2", "phonenumbers")


def _need() -> None:
    """Raises ConfigError where the extra is not installed; PyAV alone may be missing, then nothing is converted."""
    missing = [name for name in _NEEDED if name != "av" and find_spec(name) is None]
    if missing:
        raise ConfigError([f'the face needs the extra archiver[web]: {sys.executable} -m pip install "archiver[web]"'])


@click.command(short_help="Serve pages: find a call and hear it.")
@click.option("--listen", metavar="HOST:PORT", help="In place of the config's.")
def serve(listen: str | None) -> None:
    """Serve pages to people over HTTP until SIGTERM or SIGINT.

    A process of its own: it reads the catalog and the stores, and never asks a recorder.
    """
    from ..settings.config import listen_address

    _need()
    from ..web import serving

    try:
        where = listen_address(listen) if listen else None
    except ValueError as error:
        raise click.UsageError(f"--listen: {listen} {error}") from None
    config = load(quiet=False, asks_recorders=False)
    run(serving.serve(config, where, lambda address: click.echo(f"open {address}", err=True)), code=0)


def _scope(sources: tuple[str, ...], queues: tuple[str, ...], agents: tuple[str, ...]) -> Scope:
    from ..web.accounts import Scope

    return Scope(sources=sources, queues=queues, agents=agents)


def _file() -> tuple[AccountsFile, Any]:
    _need()
    from ..web.desk import accounts_file

    config = load(asks_recorders=False)
    return accounts_file(config), config


def _password(file: Any) -> str:
    if file is not None:
        return str(file.read()).removesuffix("\n").removesuffix("\r")
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for the password: --password-file FILE, or - for a pipe")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise click.UsageError("these are two passwords; nothing was changed")
    return password


def _told(account: Account) -> dict[str, Any]:
    return {
        "name": account.name,
        "role": account.role,
        "sources": list(account.scope.sources),
        "queues": list(account.scope.queues),
        "agents": list(account.scope.agents),
        "made": account.made.isoformat(),
        "expires": account.expires.isoformat() if account.expires else None,
    }


def _listed(accounts: list[Account], as_json_: bool) -> None:
    if as_json_:
        answer([_told(account) for account in accounts])
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("name", "role", "sources", "queues", "agents", "expires"):
        table.add_column(heading)
    for account in accounts:
        told = _told(account)
        scope = [", ".join(told[key]) or "all" for key in ("sources", "queues", "agents")]
        table.add_row(account.name, account.role, *scope, told["expires"] or "never")
    console().print(table)


def _record(config: Any, action: str, name: str) -> None:
    """Changes of accounts are in the audit too. Raises CatalogDown."""
    from ..catalog.face import write_down

    async def work() -> None:
        async with catalog_of(config, "MIGRATED") as catalog:
            await write_down(catalog, _mine(action, {"name": name}))

    run(work())


def _mine(action: str, details: dict[str, Any]) -> Event:
    from ..catalog.face import Event

    return Event(who=me(), role="", means="command", address="", action=action, details=details)


_role = click.option("--role", required=True, help="agent, supervisor, compliance, auditor or admin.")
_sources = click.option("--source", "sources", type=SOURCE, multiple=True, help="Only calls of this source.")
_queues = click.option("--queue", "queues", multiple=True, help="Only calls of this queue; * is a wildcard.")
_agents = click.option("--agent", "agents", multiple=True, help="Only calls of this agent: number, name or user.")
_password_file = click.option("--password-file", type=click.File("r"), help="Its first line; - for a pipe.")


@click.group(short_help="Accounts of the face: add, list, passwd, remove.")
def user() -> None:
    """Accounts of people, in the file that [web] accounts names."""


@user.command("add")
@click.argument("name")
@_role
@_sources
@_queues
@_agents
@_password_file
def user_add(
    name: str,
    role: str,
    sources: tuple[str, ...],
    queues: tuple[str, ...],
    agents: tuple[str, ...],
    password_file: Any,
) -> None:
    """Make an account; its password is asked for."""
    file, config = _file()
    from ..web import accounts

    scope = _scope(sources, queues, agents)
    accounts.checked(name, role, scope)
    held = file.read()
    accounts.free(held, name)
    secret = accounts.hashed(_password(password_file))
    made = accounts.Account(name=name, role=role, scope=scope, secret=secret, made=datetime.now(UTC))
    _record(config, "account.made", name)
    file.write(accounts.with_user(held, made))
    click.echo(f'"{name}" may log in as {role}', err=True)


@user.command("list")
@as_json
def user_list(as_json: bool) -> None:
    """All accounts, without their passwords."""
    file, _ = _file()
    _listed(list(file.read().users.values()), as_json)


@user.command("passwd")
@click.argument("name")
@_password_file
def user_passwd(name: str, password_file: Any) -> None:
    """Give an account another password; its log-ins end."""
    file, config = _file()
    from dataclasses import replace

    from ..web import accounts

    held = file.read()
    known = _known(held.users, name, "account")
    secret = accounts.hashed(_password(password_file))
    _record(config, "account.changed", name)
    file.write(accounts.with_user(held, replace(known, secret=secret)))


@user.command("remove")
@click.argument("name")
def user_remove(name: str) -> None:
    """Remove an account; its log-ins end."""
    file, config = _file()
    from ..web import accounts

    held = file.read()
    _known(held.users, name, "account")
    _record(config, "account.removed", name)
    file.write(accounts.without_user(held, name))


def _known(held: Any, name: str, what: str) -> Account:
    if name not in held:
        raise ConfigError([f'there is no {what} "{name}"; there are {", ".join(sorted(held)) or "none"}'])
    account: Account = held[name]
    return account


@click.group(short_help="Tokens of programs: add, list, revoke.")
def token() -> None:
    """Tokens of programs, in the file that [web] accounts names."""


@token.command("add")
@click.argument("name")
@_role
@_sources
@_queues
@_agents
@click.option("--expires", type=Span(), help="It is good for so long, like 90d; else until it is revoked.")
def token_add(
    name: str,
    role: str,
    sources: tuple[str, ...],
    queues: tuple[str, ...],
    agents: tuple[str, ...],
    expires: timedelta | None,
) -> None:
    """Make a token. It is printed once; only a hash of it is kept."""
    file, config = _file()
    from ..web import accounts

    scope = _scope(sources, queues, agents)
    accounts.checked(name, role, scope)
    held = file.read()
    accounts.free(held, name)
    now = datetime.now(UTC)
    secret, digest = accounts.new_token()
    end = now + expires if expires is not None else None
    made = accounts.Account(name=name, role=role, scope=scope, secret=digest, made=now, expires=end)
    _record(config, "token.made", name)
    file.write(accounts.with_token(held, made))
    click.echo(secret)


@token.command("list")
@as_json
def token_list(as_json: bool) -> None:
    """All tokens, without their secrets."""
    file, _ = _file()
    _listed(list(file.read().tokens.values()), as_json)


@token.command("revoke")
@click.argument("name")
def token_revoke(name: str) -> None:
    """Revoke a token; it is good for nothing at once."""
    file, config = _file()
    from ..web import accounts

    held = file.read()
    _known(held.tokens, name, "token")
    _record(config, "token.revoked", name)
    file.write(accounts.without_token(held, name))


@click.command(short_help="Who searched, saw, heard, took, changed what.")
@click.option("--from", "start", type=Moment(), help="At this moment or later.")
@click.option("--to", "end", type=Moment(), help="Before this moment.")
@click.option("--who", help="The name of an account or a token.")
@click.option("--action", help="login, search, view, listen, download …")
@click.option("--source", type=SOURCE, help="Of calls of this source.")
@click.option("--recording", help="Of the recording with this id.")
@click.option("--csv", "as_csv", is_flag=True, help="For a spreadsheet.")
@as_json
def audit(as_json: bool, as_csv: bool, **filters: Any) -> None:
    """Who searched, saw, heard, took and changed what, newest first; --json: one event a line."""
    config = load(asks_recorders=False)
    filters["recording_id"] = filters.pop("recording")
    given = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in filters.items() if v is not None}

    async def work() -> int:
        from ..catalog.face import all_events, write_down
        from ..errors import CatalogReadOnly

        shown = 0
        async with catalog_of(config) as catalog:
            # A standby takes no entries; the database that it copies is where people are let in.
            with suppress(CatalogReadOnly):
                await write_down(catalog, _mine("audit.read", given))
            async for event in all_events(catalog, **filters):
                if as_json:
                    click.echo(as_text(event))
                elif as_csv:
                    click.echo(("" if shown else cells.heading()) + cells.row(event), nl=False)
                else:
                    click.echo(_line(event))
                shown += 1
        return shown

    if not run(work()) and not as_json:
        click.echo("nothing was written down that matches", err=True)
        sys.exit(INCOMPLETE)


def _line(event: dict[str, Any]) -> str:
    from ..common.words import plain

    call = f"{event['source']} {event['recording_id']}" if event["recording_id"] else ""
    why = event["reason"] or ""
    parts = (event["at"], event["who"] or "-", event["action"], event["outcome"], call, why, event["address"])
    return plain("  ".join(part for part in parts if part))
