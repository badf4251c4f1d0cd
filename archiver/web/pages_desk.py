"""What the pages need of the application around them: who asks, what they may, what the archive holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from aiohttp import web

from ..ports import Sink

Document = dict[str, Any]
#: Characters of an id that somebody made up, as they are written down.
LONGEST_ID = 500


class Reader(Protocol):
    """Who asks."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A page of a search or of the audit."""

    rows: Sequence[Document]
    #: Where the next page begins; None: there is none.
    next: str | None = None
    #: How many seconds the search is behind the archive; None: not at all, or not known.
    behind: float | None = None
    #: What began before this moment, and was archived by an older version, is not found yet; None: all is.
    before: datetime | None = None
    #: How a number was understood, where it was.
    number: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What somebody looks for, as it was typed; times are UTC texts."""

    values: Mapping[str, str] = field(default_factory=dict)
    after: str | None = None


class Desk(Protocol):
    """Every method that reads the catalog raises CatalogDown where it is away."""

    def who(self, request: web.Request) -> Reader | None: ...
    def session(self, request: web.Request) -> str:
        """What tells this log-in from others; empty where there is none."""

    def may(self, who: Reader, right: str) -> bool:
        """Rights: find, hear, download, audit (of all), tokens."""

    def reason(self, who: Reader) -> str:
        """Before hearing: required, optional or none."""

    def sources(self, who: Reader) -> Sequence[str]: ...
    def zone(self, source: str) -> str | None: ...
    def scope(self, who: Reader) -> Mapping[str, Sequence[str]]:
        """Sources, queues and agents that this account's calls are limited to; empty: no limit."""

    async def search(self, who: Reader, filters: Filters) -> Found:
        """Raises ValueError, in words, where a filter can't be read."""

    async def call(self, who: Reader, source: str, recording_id: str) -> Document | None: ...
    def reads(self, copies: Sequence[Document]) -> list[tuple[str, Callable[[Sink], Awaitable[None]]]]:
        """How to read each of a medium's copies, those of its newest content."""

    def clear(self, document: Document, media_id: str) -> Callable[[bytes], bytes] | None:
        """What decrypts a medium; None where it is not encrypted."""

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
    ) -> None:
        """Committed when this returns. Raises CatalogDown."""

    async def heard(self, who: Reader, source: str, recording_id: str) -> Sequence[Document] | None:
        """Who saw and heard a call, newest first; None where this role may not know."""

    async def audit(self, who: Reader, filters: Filters) -> Found: ...
    async def events(self, who: Reader, filters: Filters, limit: int) -> tuple[list[Document], str | None]:
        """The same as JSON, and where the next page begins."""

    async def tokens(self) -> Sequence[Document]: ...
    async def sessions(self, who: Reader, request: web.Request) -> Sequence[Document]: ...
    async def end_session(self, who: Reader, id_: str) -> None: ...


async def call_of(desk: Desk, request: web.Request, who: Reader) -> Document:
    """The call that the address names. Raises HTTPNotFound (see not_found)."""
    document = await desk.call(who, request.match_info["source"], request.match_info["recording_id"])
    if document is None:
        raise await not_found(desk, request)
    return document


async def not_found(desk: Desk, request: web.Request) -> web.HTTPNotFound:
    """The error to raise; that somebody asked is written down first.

    What does not exist and what is out of scope are told apart nowhere: everybody can read their own audit.
    """
    await desk.record(request, "access.denied", **asked(request), outcome="not found")
    return web.HTTPNotFound()


def asked(request: web.Request) -> dict[str, Any]:
    """What was asked for, as it is written down where it is refused: the call that the address names, and the path."""
    told = {key: request.match_info.get(key) for key in ("source", "recording_id")}
    call = {key: value[:LONGEST_ID] if value is not None else None for key, value in told.items()}
    return {**call, "details": {"path": request.path[: 2 * LONGEST_ID]}}
