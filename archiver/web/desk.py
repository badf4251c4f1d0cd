"""What stands between the pages and the archive: an account's calls, copies and rights, and what is written down."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from ..catalog.catalog import Limits, Query
from ..catalog.face import PAGE, Event, FaceCatalog
from ..common import numbers
from ..model import Flag, State
from ..ports import Decrypts, Sink, Source, Store
from ..service import report
from ..settings.config import Config
from ..settings.options import duration
from . import accounts
from .accounts import Account, AccountsFile
from .pages_desk import Document, Filters, Found, Reader

#: A log-in that is not used ends, and each ends some day.
IDLE, LONGEST = timedelta(minutes=30), timedelta(hours=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Who asks: an account, by a log-in or a token."""

    account: Account
    means: str
    address: str
    #: Of the session; empty for a token.
    session: str = ""

    @property
    def name(self) -> str:
        return self.account.name

    @property
    def role(self) -> str:
        return self.account.role


WHO: web.RequestKey[Who] = web.RequestKey("who", Who)


class ArchiveDesk:
    """pages_desk.Desk over one archive."""

    def __init__(
        self,
        config: Config,
        catalog: FaceCatalog,
        stores: Mapping[str, Store],
        sources: Mapping[str, Source],
        file: AccountsFile,
    ) -> None:
        """``sources``: those whose recordings may be encrypted; they are never asked anything."""
        self.config = config
        self.catalog = catalog
        self.stores = stores
        self.decrypting = {name: source for name, source in sources.items() if isinstance(source, Decrypts)}
        self.file = file

    # -- who, and what they may --------------------------------------------------------------------------------------

    def who(self, request: web.Request) -> Who | None:
        return request.get(WHO)

    def session(self, request: web.Request) -> str:
        who = self.who(request)
        return who.session if who is not None else ""

    def may(self, who: Reader, right: str) -> bool:
        return right in accounts.RIGHTS[who.role]

    def reason(self, who: Reader) -> str:
        return accounts.reason(who.role, self.config.web.reason)

    def sources(self, who: Reader) -> Sequence[str]:
        limited = self.limits(who).sources
        return [name for name in self.config.sources if not limited or name in limited]

    def zone(self, source: str) -> str | None:
        told = self.config.sources.get(source)
        return str(told.options.timezone) if told is not None and told.options.timezone else None

    def scope(self, who: Reader) -> Mapping[str, Sequence[str]]:
        limits = self.limits(who)
        return {"sources": limits.sources, "queues": limits.queues, "agents": limits.agents}

    def limits(self, who: Reader) -> Limits:
        """What its account's calls are limited to, for every question about calls."""
        assert isinstance(who, Who)
        scope = who.account.scope
        return Limits(sources=scope.sources, queues=scope.queues, agents=scope.agents)

    # -- calls -------------------------------------------------------------------------------------------------------

    async def search(self, who: Reader, filters: Filters, limit: int = PAGE) -> Found:
        told = filters.values
        start, end = _moment(told, "from"), _moment(told, "to")
        number = numbers.understood(told["number"], self.config.countries) if told.get("number") else None
        query = Query(
            source=told.get("source"),
            start=start,
            end=end,
            caller=told.get("caller"),
            callee=told.get("callee"),
            direction=_one_of(told, "direction", ("inbound", "outbound", "internal", "unknown")),
            state=_one_of(told, "state", tuple(State)),
            flag=_one_of(told, "flag", tuple(Flag)),
            text=told.get("text"),
            longer_than=_span(told, "longer_than"),
            shorter_than=_span(told, "shorter_than"),
            number=number.ending if number is not None else None,
            code=number.code if number is not None else None,
            abroad=number.abroad if number is not None else (),
            agent=told.get("agent"),
            queue=told.get("queue"),
            newest=told.get("order") != "oldest",
        )
        rows, next_ = await self.catalog.look(self.limits(who), query, limit, after=filters.after)
        behind = await self.catalog.behind()
        shown = number.shown if number is not None else None
        return Found(rows=rows, next=next_, number=shown, behind=behind.seconds, before=behind.before)

    async def call(self, who: Reader, source: str, recording_id: str) -> Document | None:
        found = await self.catalog.call(self.limits(who), source, recording_id)
        return found[0] if found is not None else None

    async def story(self, who: Reader, source: str, recording_id: str) -> Document | None:
        """What `why` tells of a call in scope; None where there is none any more."""
        told = await report.why(self.catalog, source, recording_id)
        limits = self.limits(who)
        if told is not None and (limits.queues or limits.agents):
            # How many calls of others the recorder told of is none of this account's business.
            told["windows"] = [{k: w[k] for k in w.keys() - {"listed", "rejected"}} for w in told["windows"]]
        return told

    def reads(self, copies: Sequence[Document]) -> list[tuple[str, Callable[[Sink], Awaitable[None]]]]:
        newest = max((c["archived_at"], c["sha256"]) for c in copies)[1] if copies else None
        return [
            (copy["store"], partial(self.stores[copy["store"]].get, copy["key"]))
            for copy in copies
            if copy["sha256"] == newest and copy["store"] in self.stores
        ]

    def clear(self, document: Document, media_id: str) -> Callable[[bytes], bytes] | None:
        source = self.decrypting.get(document["source"])
        medium = next((m for m in document["media"] if m["media_id"] == media_id), None)
        if source is None or medium is None or not all(c["key"].endswith(".bin") for c in medium["copies"]):
            return None
        return partial(source.decrypted, document, media_id)

    # -- what is written down ----------------------------------------------------------------------------------------

    async def record(
        self,
        request: web.Request,
        action: str,
        *,
        source: str | None = None,
        recording_id: str | None = None,
        reason: str | None = None,
        case: str | None = None,
        details: Mapping[str, Any] | None = None,
        outcome: str = "ok",
        name: str | None = None,
    ) -> None:
        """``name``: of whom nobody is logged in yet."""
        who = self.who(request)
        await self.catalog.write_down(
            Event(
                who=who.name if who is not None else name or "",
                role=who.role if who is not None else "",
                means=who.means if who is not None else "session",
                address=address_of(request),
                action=action,
                source=source,
                recording_id=recording_id,
                reason=reason,
                case=case,
                outcome=outcome,
                details=details or {},
            )
        )

    async def heard(self, who: Reader, source: str, recording_id: str) -> Sequence[Document] | None:
        if who.role == "admin":
            return None
        return (await self.heard_by(who, source, recording_id))[0]

    async def heard_by(
        self, who: Reader, source: str, recording_id: str, *, after: str | None = None, limit: int = PAGE
    ) -> tuple[list[Document], str | None]:
        """A page of a call's audit, one's own events for who may know no others; and where the next page begins.

        Raises ValueError for a bad place.
        """
        mine = None if who.role in ("compliance", "auditor") else who.name
        return await self.catalog.audit(source=source, recording_id=recording_id, who=mine, after=after, limit=limit)

    async def audit(self, who: Reader, filters: Filters) -> Found:
        rows, next_ = await self.events(who, filters)
        for row in rows:
            row["details"] = "; ".join(f"{key}: {value}" for key, value in sorted(row["details"].items()))
        return Found(rows=rows, next=next_)

    async def events(self, who: Reader, filters: Filters, limit: int = PAGE) -> tuple[list[Document], str | None]:
        """What was written down, of all in scope for who may see that, else one's own; where the next page begins."""
        told = filters.values
        every = self.may(who, "audit")
        return await self.catalog.audit(
            who=told.get("who") if every else who.name,
            seen_by=(self.limits(who), who.name) if every else None,
            action=told.get("action"),
            start=_moment(told, "from"),
            end=_moment(told, "to"),
            source=told.get("source"),
            recording_id=told.get("recording"),
            after=filters.after,
            limit=limit,
        )

    async def tokens(self) -> Sequence[Document]:
        told = (await asyncio.to_thread(self.file.read)).tokens.values()
        return [
            {
                "name": t.name,
                "role": t.role,
                "sources": t.scope.sources,
                "queues": t.scope.queues,
                "agents": t.scope.agents,
                "made": t.made,
                "expires": t.expires,
                "used": None,
            }
            for t in told
        ]

    async def sessions(self, who: Reader, request: web.Request) -> Sequence[Document]:
        mine = hashlib.sha256(self.session(request).encode()).digest()
        rows = await self.catalog.sessions_of(who.name, IDLE)
        return [
            {
                "id": row["id"].hex(),
                "since": row["since"],
                "seen": row["seen"],
                "address": row["address"],
                "this": row["id"] == mine,
            }
            for row in rows
        ]

    async def end_session(self, who: Reader, id_: str) -> None:
        if re.fullmatch(r"[0-9a-f]{64}", id_):
            await self.catalog.log_out(bytes.fromhex(id_), who.name)


def address_of(request: web.Request) -> str:
    """Where a request came from: by the word of a proxy on this host, whose entry is the last one, else its peer."""
    peer = request.remote or ""
    if peer in ("127.0.0.1", "::1") and (told := request.headers.get("X-Forwarded-For")):
        last = told.rpartition(",")[2].strip()
        return last if re.fullmatch(r"[0-9A-Fa-f:.]{2,45}", last) else peer
    return peer


def _moment(told: Mapping[str, str], key: str) -> datetime | None:
    return datetime.fromisoformat(told[key]) if told.get(key) else None


def _span(told: Mapping[str, str], key: str) -> timedelta | None:
    if not told.get(key):
        return None
    try:
        return duration(told[key])
    except ValueError as error:
        raise ValueError(f'"{told[key]}" {error}') from None


def _one_of(told: Mapping[str, str], key: str, known: Sequence[str]) -> str | None:
    value = told.get(key)
    if value and value not in list(map(str, known)):
        raise ValueError(f'"{value}" is no {key}; there are {", ".join(map(str, known))}')
    return value or None


def accounts_file(config: Config) -> AccountsFile:
    """The file that the config names."""
    return AccountsFile(Path(config.web.accounts))
