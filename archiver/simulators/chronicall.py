"""Chronicall's REST API as its vendor's page tells it; v2 (Xima CCaaS) by ``api_version = "v2"``.

A call has one recording, every fourth call two (one for each event). Assumed, since no page tells: the list goes by
the start (``rule``), how the ZIP's members are named (``zip_name``), and the types of the answers.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar, Literal

from aiohttp import web

from ..model import Direction, Party
from . import audio
from .base import AGENTS, Call, Clock, Expected, Fault, Simulator, json_body, refused

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Version = Literal["v1", "v2"]
_FORMATS = ("spx", "wav")


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


@lru_cache(maxsize=512)
def _sound(fmt: str, milliseconds: int, seed: str) -> bytes:
    return audio.make(fmt, seconds=max(1.0, milliseconds / 1000), seed=seed)


@dataclass(frozen=True, slots=True)
class Part:
    """One recording: one event of a call."""

    call: Call
    number: int
    start: datetime
    duration: timedelta
    uuid: str

    @property
    def key(self) -> str:
        if "id" in self.call.extra:
            return str(self.call.extra["id"]) + "/" * self.number
        return f"{self.uuid}-{_ms(self.start - _EPOCH)}"

    def sound(self, fmt: str) -> bytes:
        return _sound(fmt, _ms(self.duration), f"{self.call.uuid}/{self.number}")


class ChronicallSimulator(Simulator):
    """Set ``call.extra["status"]`` for a status that the clock does not give, ``["hidden"]`` for a call out of rights.

    Own faults. Of the list: ``row`` (one more row, ``value``), ``limit`` (nothing is answered for a window longer than
    ``value``), ``no_content`` (204). Of the ZIP, for the member that ``value`` numbers (0): ``zip_hostile`` (a name
    that climbs), ``zip_absolute``, ``zip_twice``, ``zip_missing``, ``zip_encrypted``, ``zip_crc``, ``zip_lies`` (tells
    fewer bytes than it has), ``zip_bomb``, ``zip_other`` (some other recording's name), ``zip_torn`` (no directory).
    """

    kind: ClassVar[str] = "chronicall"
    takes_any_id: ClassVar[bool] = True
    api_version: Version = "v1"
    format: str = "spx"
    fetch: str = "single"
    token = "0f3c9d7e-service-user-key"  # noqa: S105 - opens nothing but this simulator
    rule: Literal["start", "after", "end", "inside"] = "start"
    zip_name = "recordings/{key}.{format}"
    listen_address: str | None = "http://www.my-chronicall.com"
    own_faults = frozenset(
        {"row", "limit", "no_content", "zip_hostile", "zip_absolute", "zip_twice", "zip_missing", "zip_encrypted"}
        | {"zip_crc", "zip_lies", "zip_bomb", "zip_other", "zip_torn"}
    )

    def __init__(self, *, seed: int = 1, clock: Clock | None = None, api_version: Version | None = None) -> None:
        super().__init__(seed=seed, clock=clock)
        self.api_version = api_version or self.api_version
        self._calls_by_key: dict[str, Call] = {}

    def routes(self) -> Sequence[web.RouteDef]:
        api = f"/rest/api/{self.api_version}"
        return [
            web.get(f"{api}/recordings", self._list, name="list", allow_head=False),
            web.get(f"{api}/calls/{{key}}/recordings", self._of_call, name="call", allow_head=False),
            web.get(f"{api}/recordings/{{key}}/audio", self._audio, name="audio", allow_head=False),
            web.post(f"{api}/recordings/audio", self._zip, name="zip"),
            web.post(f"{api}/recordings/{{key}}/external-listen-link", self._link, name="link"),
        ]

    def options(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "base_url": self.base_url,
            "token": self.token,
            "api_version": self.api_version,
            "format": self.format,
            "fetch": self.fetch,
        }

    # -- the truth ---------------------------------------------------------------------------------------------------

    def parts(self, call: Call) -> list[Part]:
        """The recordings of a call, one after the other."""
        if call.index % 4:
            return [Part(call, 0, call.start, call.duration, call.uuid)]
        first = timedelta(milliseconds=_ms(call.duration) // 3)
        second = str(uuid.uuid5(uuid.UUID(call.uuid), "second"))
        return [
            Part(call, 0, call.start, first, call.uuid),
            Part(call, 1, call.start + first, call.duration - first, second),
        ]

    def call_key(self, call: Call) -> str:
        return f"{call.uuid}-{_ms(call.start - _EPOCH)}-{_ms(call.end - _EPOCH)}"

    def status(self, call: Call) -> str:
        now = self.clock.now()
        if "status" in call.extra:
            return str(call.extra["status"])
        if call.deleted_at is not None and call.deleted_at <= now:
            return "DELETED_TIME"
        return "SAVED" if call.ready_at <= now else "PENDING"

    def expected(self, call: Call) -> dict[str, Expected]:
        if call.extra.get("hidden") or self.status(call).startswith("DELETED_"):
            return {}
        told = self._expected_of_v2(call) if self.api_version == "v2" else {"call_id": None, "attributes": {}}
        blank = {"direction": Direction.UNKNOWN, "caller": None, "callee": None, "agent": None, "queue": None}
        return {
            part.key: Expected(
                fields={
                    **blank,
                    "parties": (),
                    **told,
                    "events": (),
                    "started_at": part.start,
                    "ended_at": part.start + part.duration,
                    "duration": part.duration,
                },
                audio={part.key: part.sound(self.format)},
            )
            for part in self.parts(call)
        }

    def _expected_of_v2(self, call: Call) -> dict[str, Any]:
        name, number = call.agent
        inside = {number: name for name, number in AGENTS}
        return {
            "call_id": self.call_key(call),
            "direction": call.direction,
            "caller": call.caller,
            "callee": call.callee,
            "agent": f"{name} ({number})",
            "queue": call.queue[0] if call.queue else None,
            "parties": (
                Party(number=call.caller, name=inside.get(call.caller), role="caller"),
                Party(number=call.callee, name=inside.get(call.callee), role="callee"),
                Party(number=number, name=name, role="agent"),
            ),
            "attributes": {"tagData": call.note or "Default", "tenantName": "acme-ns"},
        }

    # -- the API -----------------------------------------------------------------------------------------------------

    def _row(self, part: Part) -> dict[str, Any]:
        call = part.call
        row: dict[str, Any] = {
            "recordingKey": part.key,
            "startTime": _ms(part.start - _EPOCH),
            "duration": _ms(part.duration),
            "size": self.told_size(part),
            "eventId": 50165 + 10 * call.index + part.number,
            "recordingSystemId": 1,
            "status": self.status(call),
        }
        if self.api_version == "v1":
            return row | {"poolId": str(uuid.UUID(int=0xD25839A1, version=4))} | dict(call.extra.get("row", {}))
        inside = {number: f"{name}({number})" for name, number in AGENTS}
        row |= {
            "callKey": self.call_key(call),
            "callingParty": inside.get(call.caller, call.caller),
            "receivingParty": inside.get(call.callee, call.callee),
            "tenantName": "acme-ns",
            "tagData": call.note or "Default",
            "callDirection": call.direction.value.upper(),
            "skill": call.queue[0] if call.queue else "",
            "agent": inside[call.agent[1]],
        }
        return row | dict(call.extra.get("row", {}))

    def told_size(self, part: Part) -> int:
        """v1: of the spx. v2's sample row tells 9,111 bytes for 3,606 ms: 20 kbit/s, which is some other file's."""
        return len(part.sound("spx")) if self.api_version == "v1" else _ms(part.duration) * 9111 // 3606

    def _is_authorised(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.token}"

    def _may_see(self, part: Part) -> bool:
        return not part.call.extra.get("hidden")

    def _found(self, key: str) -> Part | None:
        if key not in self._calls_by_key:
            self._calls_by_key = {p.key: c for c in self.calls for p in self.parts(c)}
        call = self._calls_by_key.get(key)
        if call is None or call.listed_at > self.clock.now():
            return None
        return next((p for p in self.parts(call) if p.key == key), None)

    def _time(self, text: str) -> datetime | None:
        """v1: milliseconds since 1970; v2: ISO 8601 with an offset."""
        try:
            if self.api_version == "v1":
                return _EPOCH + timedelta(milliseconds=int(text))
            moment = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            return None
        return moment if moment.tzinfo is not None else None

    def _within(self, start: datetime, end: datetime) -> list[Part]:
        def lies_within(part: Part) -> bool:
            over = part.start + part.duration
            match self.rule:
                case "start":
                    return start <= part.start <= end
                case "after":
                    return start < part.start < end
                case "end":
                    return start <= over <= end
            return start <= part.start and over <= end

        return [p for c in self.listed() for p in self.parts(c) if lies_within(p) and self._may_see(p)]

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if not self._is_authorised(request):
            return refused(401)
        if set(request.query) != {"startTime", "endTime"}:
            return refused(400)
        start, end = self._time(request.query["startTime"]), self._time(request.query["endTime"])
        if start is None or end is None or end < start:
            return refused(400)
        for fault in self.faults:
            if fault.kind == "limit" and fault.times and end - start > fault.value:
                fault.times -= 1
                fault.hits += 1
                await asyncio.sleep(3600)
        if self.take_fault("list", request.path_qs, "no_content"):
            return web.Response(status=204)
        rows: list[Any] = [self._row(p) for p in self._within(start, end)]
        if added := self.take_fault("list", request.path_qs, "row"):
            rows.append(added.value)
        return web.json_response(rows)

    async def _of_call(self, request: web.Request) -> web.StreamResponse:
        if not self._is_authorised(request):
            return refused(401)
        call = next((c for c in self.listed() if self.call_key(c) == request.match_info["key"]), None)
        if call is None:
            return refused(404)
        if call.extra.get("hidden"):
            return refused(403)
        return web.json_response([self._row(p) for p in self.parts(call)])

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        fmt = request.query.get("format", "spx")
        part = self._found(request.match_info["key"])
        if not self._is_authorised(request):
            return refused(401)
        if fmt not in _FORMATS:
            return refused(400)
        if part is None or not self._is_there(part):
            return refused(404)
        if not self._may_see(part):
            return refused(403)
        return web.Response(body=part.sound(fmt), content_type="audio/ogg" if fmt == "spx" else "audio/wav")

    def _is_there(self, part: Part) -> bool:
        status = self.status(part.call)
        return status == "SAVED" or status.startswith("PENDING_DELETE_")

    async def _link(self, request: web.Request) -> web.StreamResponse:
        part = self._found(request.match_info["key"])
        if not self._is_authorised(request):
            return refused(401)
        if part is None:
            return refused(404)
        if not self._may_see(part):
            return refused(403)
        if self.listen_address is None:
            return refused(500, error="Externally Accessible Address is not set")
        link = f"{self.listen_address}/extlisten/recording/index.html?id={uuid.uuid5(uuid.UUID(part.uuid), 'link')}"
        part.call.extra.setdefault("links", []).append(link)
        # The page shows the equals sign escaped.
        text = json.dumps({"listenLink": link}).replace("=", "\\u003d")
        return web.Response(text=text, content_type="application/json")

    async def _zip(self, request: web.Request) -> web.StreamResponse:
        if not self._is_authorised(request):
            return refused(401)
        fmt = request.query.get("format", "spx")
        parts = self._wanted(json_body(await request.text()))
        if fmt not in _FORMATS or parts is None:
            return refused(400)
        if not all(self._may_see(p) for p in parts):
            return refused(403)
        fault = self.take_fault("zip", request.path_qs, *(k for k in self.own_faults if k.startswith("zip_")))
        body = self._packed([p for p in parts if self._is_there(p)], fmt, fault)
        return web.Response(body=body, content_type="application/zip")

    def _wanted(self, body: Any) -> list[Part] | None:
        """The recordings that a body asks for, None for a malformed one; unknown keys are passed over."""
        match body:
            case {"recordingKeys": [*keys], **rest} if not rest:
                return [p for k in keys if (p := self._found(str(k))) is not None]
            case {"startTime": str(start), "endTime": str(end), **rest} if not rest:
                since, until = self._time(start), self._time(end)
                return None if since is None or until is None else self._within(since, until)
        return None

    def _packed(self, parts: list[Part], fmt: str, fault: Fault | None) -> bytes:
        kind, at = (fault.kind, int(fault.value or 0)) if fault else ("", 0)
        packed = io.BytesIO()
        spoilt = ""
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, part in enumerate(parts):
                hit = kind if number == at else ""
                name = self.zip_name.format(key=part.key, uuid=part.uuid, format=fmt)
                sound = part.sound(fmt)
                match hit:
                    case "zip_missing":
                        continue
                    case "zip_hostile":
                        name = f"../../etc/{part.key}.{fmt}"
                    case "zip_absolute":
                        name = f"/etc/{part.key}.{fmt}"
                    case "zip_other":
                        name = f"{part.uuid}-{_ms(part.start - _EPOCH) + 1}.{fmt}"
                    case "zip_bomb":
                        sound = sound[:4] + bytes(64 << 20)
                    case "zip_twice":
                        archive.writestr(f"copy/{part.key}.{fmt}", sound)
                archive.writestr(name, sound)
                spoilt = name if hit else spoilt
            archive.writestr("details.json", json.dumps([self._row(p) for p in parts]))
            info = archive.NameToInfo.get(spoilt)
        return _spoilt(packed.getvalue(), kind, info)


def _spoilt(packed: bytes, kind: str, info: zipfile.ZipInfo | None) -> bytes:
    """What no ZIP writer would write."""
    body = bytearray(packed)
    if kind == "zip_torn":
        return bytes(body[: len(body) * 3 // 4])
    if info is None:
        return packed
    entry = info.orig_filename.encode()
    central = body.rfind(entry) - 46
    if kind == "zip_encrypted":
        for at in (info.header_offset + 6, central + 8):
            body[at] |= 1
    if kind == "zip_crc":
        body[central + 16] ^= 0xFF
        body[info.header_offset + 14] ^= 0xFF
    if kind == "zip_lies":
        struct.pack_into("<L", body, central + 24, info.file_size - 100)
    return bytes(body)
