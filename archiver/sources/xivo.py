"""XiVO's recording server: search by local time, audio by file id, channel events (CEL) by id.

Facts are from the vendor's page "Recording server REST API"; what it leaves open is an option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar

from pydantic import Field, field_validator

from ..errors import BadData, NotReady, Overflow, TryAgain, WrongZone
from ..model import Chapter, Listing, ListingKey, Medium, Recording, Rejected, Window
from ..ports import Sink
from ..settings.options import Duration, SecretStr, SourceOptions
from ..wire.recorder import Client
from .kit.localtime import ZoneProof, bounds
from .kit.rows import as_told, listing, looked_up, mapping, segment
from .xivo_cel import ChannelEvents
from .xivo_history import History, Once
from .xivo_rows import read, why_missing

Rows = list[Any]  # the class below has a method of that name
_JSON = {"Accept": "application/json"}
_PAGES = 1000


class XivoOptions(SourceOptions):
    #: IANA name of the recording server's zone: its times carry none.
    timezone: str
    #: PLAY_AUTH_TOKEN of the recording server's custom.env, as it stands there.
    token: SecretStr
    #: Before every path; "" for servers of 2017.
    path_prefix: str = "/recording"
    #: Rows per page of a search.
    page_size: int = Field(default=100, ge=1, le=10_000)
    #: Where a file's audio lies, below path_prefix.
    audio_path: str = Field(default="/records/{id}/audio/download", pattern=r"^/.*\{id\}")
    #: The Accept header of a download.
    accept: str = "*/*"
    #: How long after a call's end its file may be on its way from the gateway; a 404 is then nothing to wonder at.
    audio_settle: Duration = timedelta(minutes=30)
    #: How start and end of a search are written (strftime); it must tell the second.
    filter_time_format: str = "%Y-%m-%d %H:%M:%S"
    #: Key of the attached data that is written back to an archived call; none: nothing is written.
    attach: str | None = Field(default=None, min_length=1)
    #: The field of a search row that holds the call-data id, which `attach` needs.
    call_data_id_field: str = "call_data_id"
    #: Archive the channel events (CEL) too.
    cel: bool = False
    #: Channel events per request, and per archived document.
    cel_limit: int = Field(default=1000, ge=1, le=100_000)
    #: The first channel event to archive.
    cel_from: int = Field(default=0, ge=0)
    #: Channel events younger than this are left for the next poll.
    cel_settle: Duration = timedelta(minutes=10)
    #: Look up each finished call of the channel events: finds recorded calls that nobody answered.
    cel_look_up: bool = True
    #: Ask the call history for names and waiting times (one or two more requests for most calls).
    history: bool = False
    #: How many days of an agent's history to ask for; the more, the heavier for its database.
    history_days: int = Field(default=7, ge=1)
    #: How many calls of a customer's history to ask for.
    history_size: int = Field(default=100, ge=1)

    @field_validator("filter_time_format")
    @classmethod
    def _tells_the_second(cls, form: str) -> str:
        moment = datetime(2024, 11, 22, 13, 14, 15)  # noqa: DTZ001 - the server's local time has no zone
        if datetime.strptime(moment.strftime(form), form) != moment:  # noqa: DTZ007
            raise ValueError('does not tell date and time to the second; write it like "%Y-%m-%dT%H:%M:%S"')
        return form


class Xivo:
    """One recording server."""

    Options: ClassVar[type[XivoOptions]] = XivoOptions
    listing_key: ClassVar[ListingKey] = ListingKey.START

    def __init__(self, name: str, options: XivoOptions, http: Client) -> None:
        self._name = name
        self._options = options
        self._http = http
        self._warn = Once(name)
        self._zone = ZoneProof(late=timedelta(minutes=1))
        self._cel = ChannelEvents(http, self._path("/cel"), options.zone, options.cel_limit)
        days, size = options.history_days, options.history_size
        self._history = History(http, self._path("/history"), options.zone, days=days, size=size, warn=self._warn)
        self.acknowledges = options.attach is not None
        self.asks_details = options.history
        http.authorise({"X-Auth-Token": options.token.get_secret_value()})

    async def check(self) -> str:
        """Lists one page of the last week, with ``cel`` one event; the line begins with ``warning:`` where it must."""
        options, wrong = self._options, []
        rows, more = await self._week(datetime.now(UTC))
        with _there():
            events = (await self._cel.rows(options.cel_from, 1))[0] if options.cel else []
        told = self._listing(rows)
        if told.rejected:
            wrong.append(f"{len(told.rejected)} rows are unreadable ({told.rejected[0].reason})")
        if self.acknowledges and rows and not any(self._call_data_id(r.raw) for r in told.recordings):
            wrong.append(f"attach can't be written back: the rows hold no {options.call_data_id_field}")
        if options.cel and not events:
            wrong.append("it holds no channel events")
        seen = f"{len(rows)}{'+' if more else ''} calls in the last 7 days"
        return f"warning: {'; '.join(wrong)} ({seen})" if wrong else seen

    async def list(self, window: Window) -> Listing:
        """The calls that begin (or, more than asked, end) in the window, page by page to the end.

        Rows that arrive meanwhile move others down a page: duplicates. A row that is deleted moves others up,
        perhaps onto a page already read: so several pages are read until nothing vanished between two readings.
        """
        rows, before = dict[str, Any](), None
        for _ in range(5):
            seen, pages = await self._pages(self._filter(window), rows)
            if pages == 1 or (before is not None and before <= seen):
                listing = self._listing([*rows.values()])
                if self._zone.wants_more():
                    # A wrong zone hides calls as well: of those of the week some may be seen.
                    self._listing((await self._week(window.end))[0])
                return listing
            before = seen
        raise TryAgain("its rows keep being deleted while they are read")

    async def _week(self, until: datetime) -> tuple[Rows, bool]:
        """Some calls of the seven days before, and whether there are more."""
        week = self._filter(Window(until - timedelta(days=7), until))
        with _there():
            return await self._search("/records/search", json=week, params={"page": 1, "pageSize": 20})

    async def _pages(self, body: Mapping[str, Any], rows: dict[str, Any]) -> tuple[set[str], int]:
        """One reading of all pages into ``rows``: the ids seen, and how many pages there were."""
        seen, previous, repeats = set[str](), None, 0
        for page in range(1, _PAGES + 1):
            with _there():
                asked = {"page": page, "pageSize": self._options.page_size}
                found, more = await self._search("/records/search", json=body, params=asked)
            new = {str(r.get("id")) if isinstance(r, dict) and r.get("id") else json.dumps(r): r for r in found}
            rows |= new
            seen |= new.keys()
            if not more or not found:
                return seen, page
            repeats, previous = (repeats + 1 if new.keys() == previous else 0), new.keys()
            if repeats == 3:
                raise TryAgain(f"page after page of its listing is the same (to page {page})")
        raise Overflow(f"the listing has more than {_PAGES} pages")

    async def _search(self, path: str, **how: Any) -> tuple[Rows, bool]:
        answer = await self._http.json("POST", self._path(path), headers=_JSON, **how)
        known = answer if isinstance(answer, dict) else {}
        if isinstance(known.get("records"), list) and isinstance(known.get("hasNext"), bool):
            return known["records"], known["hasNext"]
        raise BadData("its answer to a search has no records or no hasNext")

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        """The recordings of those calls, answered or not."""
        ask = partial(self._search, "/records/callid_search")
        answers, failed = await looked_up(call_ids, lambda call_id: ask(params={"callid": call_id}))
        found: dict[str, Recording] = {}
        rejected: list[Rejected] = []
        for call_id, (rows, more) in answers.items():
            told = self._listing(rows, call_id)
            found |= {r.recording_id: r for r in told.recordings}
            rejected += told.rejected
            if more:
                rejected.append(Rejected(raw=call_id, reason="this call has more recordings than one answer holds"))
        return Listing(list(found.values()), rejected, failed)

    async def fetch(self, medium: Medium, into: Sink) -> None:
        """The audio of a file id (the server writes one line of its access log), or channel events as JSON lines."""
        if medium.media_id == "cel":
            with _there():
                return await self._cel.fetch(medium, into)
        path = self._path(self._options.audio_path.replace("{id}", segment(medium.recording_id)))
        try:
            await self._http.download(path, into, headers={"Accept": self._options.accept})
        except NotReady as error:
            raise NotReady(f"{error} ({why_missing(medium, self._options.audio_settle)})") from None

    async def acknowledge(self, document: Mapping[str, Any]) -> None:
        """Attach the moment at which the call was archived, where its row told a call-data id."""
        raw = document.get("raw") or {}
        copies = [c["archived_at"] for m in document.get("media", ()) for c in m.get("copies", ())]
        if "cel" in raw or not (self.acknowledges and copies):
            return
        if (call_data_id := self._call_data_id(raw)) is None:
            self._warn("source.attach_impossible", missing=self._options.call_data_id_field)
            return
        path = self._path(f"/call_data/{segment(call_data_id)}/attached_data")
        told = [{"key": self._options.attach, "value": max(copies)}]
        async with self._http.request("POST", path, json=told, headers=_JSON, accept=frozenset({200, 201, 204})):
            pass

    async def follow(self, cursor: str | None) -> Chapter:
        """With ``cel``: the next channel events (the cursor is an id) as a document, and the calls that ended in it."""
        options = self._options
        with _there():
            # A rebuilt catalog has the cursor that a store told it.
            at = int(cursor) if cursor and re.fullmatch(r"\d{1,18}", cursor, re.ASCII) else options.cel_from
            page = await self._cel.page(at, options.cel_settle) if options.cel else None
        if page is None:
            return Chapter(Listing(), cursor or "", more=False)
        if options.start and page.document.key(ListingKey.END) < options.start:
            return Chapter(Listing(), str(page.next), more=page.more)
        calls = await self.look_up(page.ended) if options.cel_look_up else Listing()
        told = Listing([page.document, *calls.recordings], [*page.rejected, *calls.rejected], calls.failed)
        return Chapter(told, str(page.next), more=page.more)

    async def detail(self, recording: Recording) -> Recording:
        """With ``history``: the names of both parties and the waiting time."""
        asks = self._options.history and "cel" not in recording.raw
        return await self._history.add_to(recording) if asks else recording

    def _listing(self, rows: Sequence[Any], call_id: str | None = None) -> Listing:
        o = self._options
        how: dict[str, Any] = {"mark": o.attach, "longest_call": o.longest_call, "call_id": call_id}
        told = listing(rows, lambda row: read(mapping(row), o.zone, **how))
        if off := self._zone.wrong((r.recording_id, r.started_at) for r in told.recordings):
            raise WrongZone(o.timezone, off)
        return told

    def _filter(self, window: Window) -> dict[str, str]:
        start, end = (at.strftime(self._options.filter_time_format) for at in bounds(window, self._options.zone))
        return {"start": start, "end": end, "direction": "all"}

    def _call_data_id(self, row: Mapping[str, Any]) -> str | None:
        return as_told(row.get(self._options.call_data_id_field))

    def _path(self, path: str) -> str:
        return f"/{self._options.path_prefix.strip('/')}".rstrip("/") + path


@contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except NotReady as error:
        raise TryAgain(f"{error} (is path_prefix right?)") from None
