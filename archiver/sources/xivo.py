"""XiVO's recording server: search by local time, audio by file id, channel events (CEL) by id.

Facts are from the vendor's page "Recording server REST API"; what it leaves open is an option.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any, ClassVar
from urllib.parse import quote

import structlog
from pydantic import Field, field_validator

from ..errors import BadData, Gone, NotReady, Overflow, TryAgain
from ..http import Client
from ..model import Availability, Chapter, Listing, ListingKey, Medium, Party, Recording, Rejected, Window, utc_text
from ..options import Duration, SecretStr, SourceOptions
from ..ports import Sink

log = structlog.get_logger()

#: A list in a class that has a method of that name.
_List = list[Any]
_JSON = {"Accept": "application/json"}
_NDJSON = "application/x-ndjson"
_SECOND, _QUARTER = timedelta(seconds=1), timedelta(minutes=15)
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
        self._warned: set[str] = set()
        self._heard: dict[tuple[str, str], tuple[datetime, list[Any]]] = {}
        self.acknowledges = options.attach is not None
        http.authorise({"X-Auth-Token": options.token.get_secret_value()})

    # -- calls ---------------------------------------------------------------------------------------------------

    async def check(self) -> str:
        """Search the last week's calls, one small page; with ``cel`` also read one channel event."""
        now = datetime.now(UTC)
        body = self._filter(Window(now - timedelta(days=7), now))
        with _there():
            rows, more = await self._search("/records/search", json=body, params={"page": 1, "pageSize": 20})
        listing = self._listing(rows)
        said = [f"{len(rows)}{'+' if more else ''} calls in the last 7 days"]
        if off := _zone_error(listing.recordings):
            said.append(
                f"timezone {self._options.timezone} is off by {_signed(off)}, so say the file ids: set it right"
            )
        if listing.rejected:
            said.append(f"{len(listing.rejected)} of them unreadable ({listing.rejected[0].reason})")
        if self.acknowledges and rows and not any(self._call_data_id(r.raw) for r in listing.recordings):
            said.append(f"attach can't be written back: the rows hold no {self._options.call_data_id_field}")
        if self._options.cel:
            held, _ = await self._cel(self._options.cel_from, 1)
            said.append("channel events can be read" if held else "it holds no channel events")
        return "; ".join(said)

    async def list(self, window: Window) -> Listing:
        """The calls that begin (or, more than asked, end) in the window, page by page to the end.

        Rows that arrive meanwhile move others down a page: duplicates. A row that is deleted moves others up,
        perhaps onto a page already read: so several pages are read until nothing vanished between two readings.
        """
        body = self._filter(window)
        rows: dict[str, Any] = {}
        before: set[str] | None = None
        for _ in range(5):
            seen, pages = await self._pages(body, rows)
            if pages == 1 or (before is not None and before <= seen):
                return self._listing([*rows.values()])
            before = seen
        raise TryAgain("its rows keep being deleted while they are read")

    async def _pages(self, body: Mapping[str, Any], rows: dict[str, Any]) -> tuple[set[str], int]:
        """One reading of all pages into ``rows``: the ids seen, and how many pages there were."""
        seen: set[str] = set()
        previous, repeats = None, 0
        for page in range(1, _PAGES + 1):
            params = {"page": page, "pageSize": self._options.page_size}
            with _there():
                found, more = await self._search("/records/search", json=body, params=params)
            new = {str(r.get("id")) if isinstance(r, dict) and r.get("id") else json.dumps(r): r for r in found}
            rows |= new
            seen |= new.keys()
            if not more or not found:
                return seen, page
            repeats = repeats + 1 if new.keys() == previous else 0
            if repeats == 3:
                raise TryAgain(f"page after page of its listing is the same (to page {page})")
            previous = new.keys()
        raise Overflow(f"the listing has more than {_PAGES} pages")

    async def _search(self, path: str, **how: Any) -> tuple[_List, bool]:
        answer = await self._http.json("POST", self._path(path), headers=_JSON, **how)
        rows, more = (answer.get(k) for k in ("records", "hasNext")) if isinstance(answer, dict) else (None, None)
        if not isinstance(rows, list) or not isinstance(more, bool):
            raise BadData("its answer to a search has no records or no hasNext")
        return rows, more

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        """The recordings of those calls, answered or not."""
        found: dict[str, Recording] = {}
        rejected: list[Rejected] = []
        for call_id in dict.fromkeys(i.strip() for i in call_ids if i.strip()):
            try:
                rows, more = await self._search("/records/callid_search", params={"callid": call_id})
            except NotReady:
                continue
            listing = self._listing(rows, call_id)
            found |= {r.recording_id: r for r in listing.recordings}
            rejected += listing.rejected
            if more:
                rejected.append(Rejected(raw=call_id, reason="this call has more recordings than one answer holds"))
        return Listing(list(found.values()), rejected)

    async def fetch(self, medium: Medium, into: Sink) -> None:
        """The audio of a file id (the server writes one line of its access log), or channel events as JSON lines."""
        if medium.media_id == "cel":
            return await self._fetch_cel(medium, into)
        path = self._path(self._options.audio_path.replace("{id}", quote(medium.recording_id, safe="")))
        try:
            await self._http.download(path, into, headers={"Accept": self._options.accept})
        except NotReady as error:
            ended = datetime.fromisoformat(str(medium.ref.get("ended", "1970-01-01T00:00:00Z")))
            fresh = datetime.now(UTC) - ended < self._options.audio_settle
            why = "not copied from the gateway yet?" if fresh else "purged by the recorder, or is audio_path wrong?"
            raise NotReady(f"{error} ({why})") from None

    async def acknowledge(self, document: Mapping[str, Any]) -> None:
        """Attach the moment at which the call was archived, where its row told a call-data id."""
        raw = document.get("raw") or {}
        copies = [c["archived_at"] for m in document.get("media", ()) for c in m.get("copies", ())]
        if not self.acknowledges or not copies or "cel" in raw:
            return
        call_data_id = self._call_data_id(raw)
        if call_data_id is None:
            self._warn("source.attach_impossible", missing=self._options.call_data_id_field)
            return
        path = self._path(f"/call_data/{quote(call_data_id, safe='')}/attached_data")
        told = [{"key": self._options.attach, "value": max(copies)}]
        async with self._http.request("POST", path, json=told, headers=_JSON, accept=frozenset({200, 201, 204})):
            pass

    # -- rows ----------------------------------------------------------------------------------------------------

    def _listing(self, rows: Sequence[Any], call_id: str | None = None) -> Listing:
        recordings, rejected = [], []
        for row in rows:
            try:
                recordings.append(self._recording(row if isinstance(row, dict) else {}, call_id))
            except (ValueError, OverflowError) as error:
                rejected.append(Rejected(raw=json.dumps(row)[:4096], reason=str(error)))
        if off := _zone_error(recordings):
            self._warn("source.timezone_mismatch", timezone=self._options.timezone, off=_signed(off))
        return Listing(recordings, rejected)

    def _recording(self, row: dict[str, Any], call_id: str | None) -> Recording:
        recording_id = _text(row.get("id"))
        if recording_id is None or recording_id in {".", ".."} or not recording_id.isprintable():
            raise ValueError("the row has no usable id")
        attached = row.get("attached_data")
        if isinstance(attached, dict) and self._options.attach in attached:
            # Our own mark is no news of the call: without it here, writing it would look like a change.
            attached = {k: v for k, v in attached.items() if k != self._options.attach}
            row = {**row, "attached_data": attached}
        started, guessed = self._utc(row.get("start"), _epoch(recording_id))
        length = _length(row.get("duration"))
        # A row that never got its duration is tried all the same once no call could still be running.
        running = length is None and datetime.now(UTC) - started < self._options.longest_call
        ended = started + length if length is not None else None
        caller, callee, agent = (_text(row.get(k)) for k in ("src_num", "dst_num", "agent"))
        name, number = _numbered(agent)
        parties = (Party(number=caller, role="caller"), Party(number=callee, role="callee"))
        medium = Medium(
            recording_id=recording_id,
            media_id="audio",
            availability=Availability.NOT_READY if running else Availability.READY,
            ref={"ended": utc_text(ended or started)},
        )
        return Recording(
            recording_id=recording_id,
            started_at=started,
            ended_at=ended,
            duration=length,
            call_id=call_id,
            caller=caller,
            callee=callee,
            agent=agent,
            queue=_text(row.get("queue")),
            parties=(
                *(p for p in parties if p.number),
                *([Party(number=number, name=name, role="agent")] * bool(agent)),
            ),
            attributes={
                **({"status": status} if (status := _text(row.get("status"))) else {}),
                **({"start_ambiguous": True} if guessed else {}),
                **(attached if isinstance(attached, dict) else {}),
            },
            media=(medium,),
            raw=row,
        )

    def _call_data_id(self, row: Mapping[str, Any]) -> str | None:
        return _text(row.get(self._options.call_data_id_field))

    # -- local time ------------------------------------------------------------------------------------------------

    def _filter(self, window: Window) -> dict[str, str]:
        """The span of local time that holds every moment of the window, both folds of a double hour included.

        One second wider at the start ("after" leaves out the second itself), and never inside a skipped hour.
        """
        zone = self._options.zone
        days = range(window.length.days + 1)
        moments = [*(window.start + timedelta(days=n) for n in days), window.end]
        offsets = [m.astimezone(zone).utcoffset() or timedelta() for m in moments]
        start, end = (m.astimezone(UTC).replace(tzinfo=None) for m in (window.start, window.end))
        first = start.replace(microsecond=0) + min(offsets) - _SECOND
        last = end.replace(microsecond=0) + max(offsets) + _SECOND * bool(end.microsecond)
        bounds = {"start": (first, 1), "end": (last, 0)}
        return {
            # Through UTC and back: a skipped moment goes to the hour before it (fold 1) or after it (fold 0).
            k: at.replace(tzinfo=zone, fold=fold)
            .astimezone(UTC)
            .astimezone(zone)
            .strftime(self._options.filter_time_format)
            for k, (at, fold) in bounds.items()
        } | {"direction": "all"}

    def _utc(self, text: Any, epoch: datetime | None) -> tuple[datetime, bool]:
        """A local time in UTC: in a double hour the moment nearest to the epoch, or (True) a guess without one."""
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the row has no time")
        try:
            local = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError("the row's time can't be read") from None
        if local.tzinfo is not None:
            return local.astimezone(UTC), False
        first, second = (local.replace(tzinfo=self._options.zone, fold=f).astimezone(UTC) for f in (0, 1))
        if first == second:
            return first, False
        if epoch is None or min(abs(first - epoch), abs(second - epoch)) > timedelta(hours=12):
            return first, True
        return min(first, second, key=lambda m: abs(m - epoch)), False

    # -- channel events ----------------------------------------------------------------------------------------------

    async def follow(self, cursor: str | None) -> Chapter:
        """The settled channel events from the cursor (a CEL id) on, as one document, and the calls that ended in them.

        Rows are taken up to the first fresh one: ids that are given out are not yet rows that are written.
        """
        options = self._options
        if not options.cel:
            return Chapter(Listing(), cursor or "", more=False)
        rows, rejected = await self._cel(int(cursor) if cursor else options.cel_from, options.cel_limit)
        now = datetime.now(UTC)
        times = {number: self._event_time(row) for number, row in rows}
        taken = list(takewhile(lambda r: abs(now - times[r[0]]) >= options.cel_settle, rows))
        if not taken:
            return Chapter(Listing(), cursor or "", more=False)
        first, last = taken[0][0], taken[-1][0]
        span = sorted(times[number] for number, _ in taken)
        chapter = Chapter(Listing(), str(last + 1), more=len(taken) == len(rows))
        if options.start and span[-1] < options.start:
            return chapter
        ref = {"from": first, "last": last, "count": len(taken)}
        recording_id = f"cel-{first}-{last}"
        document = Recording(
            recording_id=recording_id,
            started_at=span[0],
            ended_at=span[-1],
            media=(Medium(recording_id=recording_id, media_id="cel", opaque=True, content_type=_NDJSON, ref=ref),),
            raw={"cel": {"first": first, "last": last, "count": len(taken)}},
        )
        # Asterisk says LINKEDID_END, the vendor's page LINKED_END.
        ends = [_text(r.get("linkedid")) for _, r in taken if r.get("eventtype") in {"LINKEDID_END", "LINKED_END"}]
        calls = await self.look_up([i for i in ends if i]) if options.cel_look_up else Listing()
        return replace(chapter, listing=Listing([document, *calls.recordings], [*rejected, *calls.rejected]))

    async def _cel(self, at: int, limit: int) -> tuple[_List, _List]:
        """Channel events from that id on, by id.

        Asked from one id before: the vendor's example has from=10 and answers 11, so it may mean "after".
        """
        params = {"from": max(at - 1, 0), "limit": limit + 1}
        with _there():
            answer = await self._http.json("GET", self._path("/cel"), params=params, headers=_JSON)
        if not isinstance(answer, list):
            raise BadData("its answer holds no list of channel events")
        known = {str(r["id"]): r for r in answer if isinstance(r, dict) and re.fullmatch(r"\d{1,18}", str(r.get("id")))}
        odd = [r for r in answer if not isinstance(r, dict) or str(r.get("id")) not in known]
        rows = sorted(((int(i), r) for i, r in known.items()), key=lambda r: r[0])
        if (rows and rows[0][0] < at - 1) or (odd and not rows):
            raise TryAgain("its channel events are not those that were asked for")
        reason = "the channel event has no usable id"
        return [r for r in rows if r[0] >= at][:limit], [Rejected(raw=json.dumps(r)[:4096], reason=reason) for r in odd]

    def _event_time(self, row: Mapping[str, Any]) -> datetime:
        """When it happened; the epoch of its channel, or 1970, where it does not say."""
        epoch = _epoch(str(row.get("uniqueid") or ""))
        try:
            return self._utc(row.get("eventtime"), epoch)[0]
        except (ValueError, OverflowError):
            return epoch or datetime.fromtimestamp(0, UTC)

    async def _fetch_cel(self, medium: Medium, into: Sink) -> None:
        at, last, count = (int(medium.ref[k]) for k in ("from", "last", "count"))
        into.told(content_type=_NDJSON)
        found, answered = 0, False
        while at <= last:
            rows, _ = await self._cel(at, min(self._options.cel_limit, last - at + 2))
            if not rows:
                break
            answered = True
            wanted = [row for number, row in rows if number <= last]
            await into.write("".join(json.dumps(r, sort_keys=True) + "\n" for r in wanted).encode())
            found += len(wanted)
            at = rows[-1][0] + 1
        if answered and not found:
            raise Gone("the recorder has purged these channel events")
        if found < count:
            raise TryAgain(f"it holds {found} of these {count} channel events")

    # -- call history ------------------------------------------------------------------------------------------------

    async def detail(self, recording: Recording) -> Recording:
        """With ``history``: the names of both parties (agent's history) and the waiting time (customer's history)."""
        if not self._options.history or "cel" in recording.raw:
            return recording
        number = _numbered(recording.agent)[1]
        told: dict[str, Any] = {}
        if number and datetime.now(UTC) - recording.started_at < timedelta(days=self._options.history_days):
            days = {"days": self._options.history_days}
            rows = await self._history(recording, "agent", {"agentNum": number}, params=days)
            same = {"src_num": recording.caller, "dst_num": recording.callee}
            told["agent"] = next((r for r in rows if all(_text(r.get(k)) == v for k, v in same.items())), None)
        if recording.queue and recording.caller:
            by = {"field": "src_num", "operator": "=", "value": recording.caller}
            asked = {"filters": [by], "size": self._options.history_size}
            rows = await self._history(recording, "customer", asked)
            told["customer"] = next((r for r in rows if _text(r.get("agent_num")) == number), None)
        told = {k: v for k, v in told.items() if v}
        names = {role: _full_name(told.get("agent", {}), end) for role, end in (("caller", "src"), ("callee", "dst"))}
        waited = _text(told.get("customer", {}).get("wait_time"))
        return replace(
            recording,
            parties=tuple(replace(p, name=p.name or names.get(p.role or "")) for p in recording.parties),
            attributes={**recording.attributes, **({"wait_time": waited} if waited else {})},
            raw={**recording.raw, **({"history": told} if told else {})},
        )

    async def _history(self, call: Recording, of: str, asked: dict[str, Any], **how: Any) -> _List:
        """The rows of that history that begin when the call does; one answer serves all calls that ended before it."""
        now = datetime.now(UTC)
        key = of, json.dumps(asked)
        when, rows = self._heard.get(key, (datetime.fromtimestamp(0, UTC), []))
        if when < (call.ended_at or now) or now - when > timedelta(minutes=10):
            try:
                answer = await self._http.json("POST", self._path(f"/history/{of}"), json=asked, headers=_JSON, **how)
            except (NotReady, BadData) as error:
                self._warn("source.history_unreadable", of=of, error=type(error).__name__)
                return []
            told = answer.get("list") if isinstance(answer, dict) else answer
            rows = [r for r in told if isinstance(r, dict)] if isinstance(told, list) else []
            self._heard = {k: v for k, v in self._heard.items() if now - v[0] < timedelta(minutes=10)}
            self._heard[key] = now, rows
        return [r for r in rows if self._begins_with(r, call)]

    def _begins_with(self, row: Mapping[str, Any], call: Recording) -> bool:
        try:
            return abs(self._utc(row.get("start"), call.started_at)[0] - call.started_at) <= _SECOND
        except (ValueError, OverflowError):
            return False

    # -- small things ------------------------------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        return f"/{self._options.path_prefix.strip('/')}".rstrip("/") + path

    def _warn(self, event: str, **facts: Any) -> None:
        if event not in self._warned:
            self._warned.add(event)
            log.warning(event, source=self._name, **facts)


@contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except NotReady as error:
        raise TryAgain(f"{error} (is path_prefix right?)") from None


def _text(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def _numbered(text: str | None) -> tuple[str | None, str | None]:
    """``Joe Dalton (1573)`` as name and number; what is written otherwise is all name."""
    match = re.fullmatch(r"(.*?)\s*\((\w+)\)", text or "", re.DOTALL)
    return (match[1] or None, match[2]) if match else (text, None)


def _full_name(row: Mapping[str, Any], end: str) -> str | None:
    return " ".join(n for k in ("firstname", "lastname") if (n := _text(row.get(f"{end}_{k}")))) or None


def _length(value: Any) -> timedelta | None:
    """``HH:MM:SS``; none while the call runs ("")."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    match = re.fullmatch(r"\s*(\d{1,5}):(\d\d):(\d\d)\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("the row's duration can't be read")
    return timedelta(hours=int(match[1]), minutes=int(match[2]), seconds=int(match[3]))


def _epoch(unique_id: str) -> datetime | None:
    """When Asterisk made a unique id (``xivocc_gateway-1459433866.13971``): a moment without any zone."""
    match = re.fullmatch(r"(?:.*-)?(\d{9,10})\.\d+", unique_id, re.DOTALL | re.ASCII)
    return datetime.fromtimestamp(int(match[1]), UTC) if match else None


def _zone_error(recordings: Sequence[Recording]) -> timedelta | None:
    """By how many quarters of an hour most of (at least three) calls stand away from the epochs of their ids."""
    gaps = [r.started_at - epoch for r in recordings if (epoch := _epoch(r.recording_id))]
    quarters = Counter(n for g in gaps if abs(g - (n := round(g / _QUARTER)) * _QUARTER) < timedelta(minutes=1))
    number, count = max(quarters.items(), key=lambda q: q[1], default=(0, 0))
    return number * _QUARTER if number and count >= 3 and count * 2 > len(gaps) else None


def _signed(off: timedelta) -> str:
    return f"{'-' if off < timedelta() else '+'}{abs(off)}"
