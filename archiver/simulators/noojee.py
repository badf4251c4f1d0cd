"""A Noojee server: legs of calls, the hour listing, hash or key, as the vendor's pages have it.

Strict: POST with a form's Content-Type only, known parameters only, one use of a time stamp, ten seconds, five at once.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal
from zoneinfo import ZoneInfo

from aiohttp import web

from ..model import CallEvent, Direction, Party
from . import audio
from .base import AGENTS, Call, Clock, Expected, Fault, Handler, Simulator

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DIGITS = {Direction.INBOUND: "0", Direction.OUTBOUND: "1", Direction.INTERNAL: "2"}
_WORDS = {Direction.INBOUND: "Inbound", Direction.OUTBOUND: "Outbound", Direction.INTERNAL: "Internal"}
#: The user of the route, who owns the legs that nobody has answered.
ROUTE_USER = "Administrator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    number: int
    record: str
    start: datetime
    seconds: int
    user: str
    source: str
    destination: str
    did: str
    tag: str
    #: When the server begins to tell of it.
    shown_at: datetime

    @property
    def end(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds)


class NoojeeSimulator(Simulator):
    """``call.extra`` may hold ``legs`` (how many), ``tag``, ``late`` (seconds until recording is switched on)."""

    kind = "noojee"
    takes_any_id = True
    api_key = "f863246a-973e-11e6-8784-08002718f5b5"
    timezone = "Australia/Melbourne"
    auth: Literal["hash", "key"] = "key"
    listing: Literal["none", "hour"] = "hour"
    #: Seconds of this machine between two hour listings.
    hour_interval = 0.0
    #: The status of one too many; the page tells no number.
    too_often = 429
    stamp_life = 10.0
    at_once = 5
    #: Do look-ups write dates and directions like the hour listing does?
    words_everywhere = False
    #: Do look-ups tell of a leg that still runs?
    shows_running = False
    #: Do errors come inside 200 OK?
    errors_in_200 = False
    own_faults: ClassVar[frozenset[str]] = frozenset({"error_in_200", "bad_row", "no_id"})
    lists_closed_hours: ClassVar[bool] = True

    def __init__(self, *, seed: int = 1, clock: Clock | None = None) -> None:
        super().__init__(seed=seed, clock=clock)
        self.stamps: dict[str, float] = {}
        self.used: set[str] = set()
        self.most_waiting = 0
        self.hours_asked: list[tuple[str, int]] = []
        self._hour_at = float("-inf")
        self.refused_hours = 0

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def prefix(self) -> str:
        return "/njadmin/rest" if self.auth == "key" else "/rest"

    def routes(self) -> Sequence[web.RouteDef]:
        api = f"{self.prefix}/RecordingAPI"
        return [
            web.route("*", "/servicemanager/rest/Time", self.handle_time, name="time"),
            web.route("*", f"{api}/retrieveMetaDataByHour", self.handle_hour, name="list"),
            web.route("*", f"{api}/retrieveMetaDataByUniqueId", self.handle_unique_id, name="unique_id"),
            web.route("*", f"{api}/retrieveMetaData", self.handle_tag, name="tag"),
            web.route("*", f"{api}/retrieveByUniqueId", self.handle_audio, name="audio"),
            web.route("*", f"{api}/retrieve", self.handle_audio_by_tag, name="audio_by_tag"),
            web.route("*", "/{path:.*}", self.handle_unknown, name="unknown"),
        ]

    def options(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "base_url": self.base_url,
            "api_key": self.api_key,
            "timezone": self.timezone,
            "auth": self.auth,
            "listing": self.listing,
            "hour_interval": f"{self.hour_interval}s",
        }

    # -- the truth ---------------------------------------------------------------------------------------------------

    def unique_id(self, call: Call) -> str:
        return str(call.extra["id"]) if "id" in call.extra else f"{int(call.start.timestamp())}.{call.index}"

    def legs(self, call: Call) -> list[Leg]:
        """The legs of a call: whole seconds, one after the other."""
        dice = random.Random(call.uuid)
        begin = call.start.replace(microsecond=0)
        total = max(1, int(call.duration.total_seconds()))
        late = int(call.extra.get("late", 1 if total > 2 else 0))
        begin, total = begin + timedelta(seconds=late), max(1, total - late)
        count = min(int(call.extra.get("legs") or dice.randint(1, 5)), total)
        cuts = [0, *sorted(dice.sample(range(1, total), count - 1)), total]
        tag = call.extra.get("tag", dice.choice(("", f"case {call.index} & more")))
        if call.revision:
            tag = f"{tag} rev {call.revision}".strip()
        lateness = max(timedelta(), call.listed_at - call.end)
        return [
            self._leg(call, n, count, begin + timedelta(seconds=cuts[n - 1]), cuts[n] - cuts[n - 1], tag, lateness)
            for n in range(1, count + 1)
        ]

    def _leg(
        self, call: Call, number: int, count: int, start: datetime, seconds: int, tag: str, lateness: timedelta
    ) -> Leg:
        waiting = call.direction is Direction.INBOUND and number == 1 and count > 1
        other = AGENTS[(call.index + number) % len(AGENTS)]
        agent = call.agent if number <= 2 else other
        destination = call.callee
        if call.direction is Direction.INBOUND:
            destination = (call.queue or ("", ""))[1] if waiting else agent[1]
        did = {Direction.INBOUND: f"0386{call.index % 10000:04}", Direction.INTERNAL: "internal"}.get(
            call.direction, ""
        )
        return Leg(
            number=number,
            record=str(100_000 + call.index * 10 + number),
            start=start,
            seconds=seconds,
            user=ROUTE_USER if waiting else agent[0],
            source=call.caller,
            destination=destination,
            did=did,
            tag=tag,
            shown_at=start + timedelta(seconds=seconds) + lateness,
        )

    def sound_of(self, call: Call, leg: Leg) -> bytes:
        return audio.make("wav", seconds=leg.seconds, seed=f"{call.uuid}/{leg.number}")

    def expected(self, call: Call) -> dict[str, Expected]:
        legs = self.legs(call)
        answered = [leg for leg in legs if leg.user != ROUTE_USER]
        attributes: dict[str, Any] = {}
        if call.direction is Direction.INBOUND:
            attributes["did"] = legs[0].did
        if legs[0].tag:
            attributes["tags"] = [legs[0].tag]
        own = [(leg.source if call.direction is Direction.OUTBOUND else leg.destination, leg.user) for leg in answered]
        fields = {
            "call_id": self.unique_id(call),
            "started_at": legs[0].start,
            "ended_at": legs[-1].end,
            "duration": legs[-1].end - legs[0].start,
            "direction": call.direction,
            "caller": call.caller,
            "callee": answered[0].destination,
            "agent": answered[0].user,
            "queue": None,
            "parties": (
                Party(number=call.caller, role="caller"),
                *(Party(number=n, user=u, role="agent") for n, u in dict.fromkeys(own)),
            ),
            "events": tuple(CallEvent(at=leg.start, event=f"leg {leg.number}", party=leg.user) for leg in legs),
            "attributes": attributes,
        }
        return {
            self.unique_id(call): Expected(fields=fields, audio={leg.record: self.sound_of(call, leg) for leg in legs})
        }

    # -- rows --------------------------------------------------------------------------------------------------------

    def row(self, call: Call, leg: Leg, *, words: bool) -> dict[str, str]:
        local = leg.start.astimezone(self.zone)
        row = {
            "Source": leg.source,
            "Leg": str(leg.number),
            "Start": self._date(local) if words else f"{local:%Y-%m-%d %H:%M:%S}.0",
            "Tag": leg.tag,
            "Duration": str(leg.seconds),
            "Username": leg.user,
            "CallRecordId": leg.record,
            "UniqueId": self.unique_id(call),
            "DID": leg.did,
            "Direction": (_WORDS if words else _DIGITS)[call.direction],
            "Destination": leg.destination,
        }
        if self.take_fault("row", self.unique_id(call), "bad_row"):
            row["Start"] = "31st of never"
        if self.take_fault("row", self.unique_id(call), "no_id"):
            del row["UniqueId"]
        return row

    @staticmethod
    def _date(local: datetime) -> str:
        """As Java's Date.toString writes it."""
        day, month = _DAYS[local.weekday()], _MONTHS[local.month - 1]
        return f"{day} {month} {local.day:02} {local:%H:%M:%S} {local.tzname()} {local.year}"

    def _shown(self, call: Call) -> list[Leg]:
        return [leg for leg in self.legs(call) if leg.shown_at <= self.clock.now()]

    def _rows(self, calls: Sequence[Call]) -> web.Response:
        rows = [self.row(call, leg, words=self.words_everywhere) for call in calls for leg in self._shown(call)]
        if self.shows_running:
            now = self.clock.now()
            rows += [
                self.row(call, leg, words=self.words_everywhere) | {"Duration": "0"}
                for call in calls
                for leg in self.legs(call)
                if leg.start <= now < leg.shown_at
            ]
        return web.json_response(rows)

    # -- answers -----------------------------------------------------------------------------------------------------

    async def handle_time(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            return self._error(405, "POST only")
        self._expire()
        waiting = len(self.stamps)
        if waiting >= self.at_once:
            return self._error(503, "too many authentication attempts at the same time")
        stamp = int(self.clock.now().timestamp() * 1000)
        while str(stamp) in self.stamps or str(stamp) in self.used:
            stamp += 1
        self.stamps[str(stamp)] = time.monotonic()
        self.most_waiting = max(self.most_waiting, waiting + 1)
        return web.Response(text=str(stamp))

    async def handle_hour(self, request: web.Request) -> web.Response:
        if error := self._refusal(request, "date", "hour"):
            return error
        now = time.monotonic()
        if now - self._hour_at < self.hour_interval:
            self.refused_hours += 1
            return self._error(self.too_often, "this may be called once a minute")
        self._hour_at = now
        day, hour = request.query["date"], request.query["hour"]
        if not re.fullmatch(r"\d{4}/\d{2}/\d{2}", day) or not re.fullmatch(r"1?\d|2[0-3]", hour):
            return self._error(400, "date is YYYY/MM/DD, hour 0 to 23")
        if not self._exists(day, int(hour)):
            return self._error(400, "this hour does not exist")
        self.hours_asked.append((day, int(hour)))
        rows = []
        for call in self.calls:
            for leg in self._shown(call):
                end = leg.end.astimezone(self.zone)
                if (f"{end:%Y/%m/%d}", end.hour) == (day, int(hour)):
                    rows.append(self.row(call, leg, words=True) | {"callend": self._date(end)})
        self.random.shuffle(rows)
        return web.json_response(rows)

    async def handle_unique_id(self, request: web.Request) -> web.Response:
        if error := self._refusal(request, "uniqueId"):
            return error
        return self._rows([c for c in self.calls if self.unique_id(c) == request.query["uniqueId"]])

    async def handle_tag(self, request: web.Request) -> web.Response:
        if error := self._refusal(request, "tag"):
            return error
        tag = request.query["tag"]
        return self._rows([c for c in self.calls if tag and self.legs(c)[0].tag == tag])

    async def handle_audio(self, request: web.Request) -> web.StreamResponse:
        if error := self._refusal(request, "uniqueId", "leg"):
            return error
        return self._audio([c for c in self.calls if self.unique_id(c) == request.query["uniqueId"]], request)

    async def handle_audio_by_tag(self, request: web.Request) -> web.StreamResponse:
        if error := self._refusal(request, "tag", "leg"):
            return error
        return self._audio([c for c in self.calls if self.legs(c)[0].tag == request.query["tag"]], request)

    def _audio(self, calls: Sequence[Call], request: web.Request) -> web.Response:
        now = self.clock.now()
        for call in calls:
            for leg in self._shown(call):
                ready = leg.end + max(timedelta(), call.ready_at - call.end) <= now
                there = ready and (call.deleted_at is None or now < call.deleted_at)
                if str(leg.number) == request.query["leg"] and there:
                    return web.Response(body=self.sound_of(call, leg), content_type="audio/x-wav")
        return self._not_found()

    async def handle_unknown(self, request: web.Request) -> web.Response:
        return self._not_found()

    async def _spoil(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What goes wrong goes wrong after authentication: the stamp is used."""
        stamp = request.query.get("timeStamp", "")
        if fault.kind in {
            "status",
            "retry_after",
            "stall",
            "reset",
            "html",
            "json",
            "empty",
            "redirect",
            "header_only",
        }:
            self.stamps.pop(stamp, None)
        return await super()._spoil(fault, request, handler)

    # -- refusals ----------------------------------------------------------------------------------------------------

    def _refusal(self, request: web.Request, *names: str) -> web.Response | None:
        if request.method != "POST":
            return self._error(405, "POST only")
        if request.headers.get("Content-Type") != "application/x-www-form-urlencoded; charset=UTF-8":
            return self._error(415, "not a form")
        signed = {"timeStamp", "hash"} if self.auth == "hash" else {"apiKey"}
        if sorted(request.query) != sorted({*names, *signed}):
            return self._error(400 if signed <= set(request.query) else 401, f"parameters are {', '.join(names)}")
        if error := self._unsigned(request):
            return error
        fault = self.take_fault(request.match_info.route.name or "", request.path_qs, "error_in_200")
        return web.json_response({"Code": -1, "Message": fault.value}) if fault else None

    def _unsigned(self, request: web.Request) -> web.Response | None:
        if self.auth == "key":
            return None if request.query["apiKey"] == self.api_key else self._error(401, "invalid apiKey")
        self._expire()
        stamp = request.query["timeStamp"]
        known = self.stamps.pop(stamp, None) is not None
        digest = hashlib.sha256(f"{self.api_key}:{stamp}".encode()).hexdigest()
        if stamp in self.used:
            return self._error(401, "invalid timeStamp: used before")
        self.used.add(stamp)
        if request.query["hash"] != digest:
            return self._error(401, "invalid hash")
        return None if known else self._error(401, "timeStamp unknown or expired")

    def _expire(self) -> None:
        now = time.monotonic()
        self.stamps = {s: at for s, at in self.stamps.items() if now - at < self.stamp_life}

    def _exists(self, day: str, hour: int) -> bool:
        """Does the clock of the zone show any minute of that hour?"""
        begin = datetime.strptime(day, "%Y/%m/%d").replace(hour=hour, tzinfo=self.zone)
        minutes = (begin.replace(minute=m) for m in range(0, 60, 15))
        return any(datetime.fromtimestamp(m.timestamp(), self.zone).hour == hour for m in minutes)

    def _error(self, status: int, message: str) -> web.Response:
        return web.json_response({"Code": -1, "Message": message}, status=200 if self.errors_in_200 else status)

    @staticmethod
    def _not_found() -> web.Response:
        return web.Response(
            status=404, text="<html><body>HTTP Status 404 - Not Found</body></html>", content_type="text/html"
        )
