"""Acme Voice as its vendor describes it: strict where the page is strict, awkward where it says nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any, ClassVar

from aiohttp import web
from archiver.model import Direction
from archiver.simulators import audio
from archiver.simulators.base import Call, Expected, Simulator, refused

from acme_archiver import EPOCH, MS

WORDS = {Direction.INBOUND: "in", Direction.OUTBOUND: "out", Direction.INTERNAL: "internal"}


@cache
def sound(call_id: str, duration: timedelta) -> bytes:
    return audio.make("ulaw", seconds=max(1.0, duration.total_seconds()), seed=call_id)


class AcmeSimulator(Simulator):
    kind: ClassVar[str] = "acme"
    own_faults: ClassVar[frozenset[str]] = frozenset({"bad_row"})
    token = "acme-key-of-a-simulator"
    largest_page = 20

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/api/calls", self._list, name="list", allow_head=False),
            web.get("/api/calls/{id}/audio", self._audio, name="audio", allow_head=False),
        ]

    def options(self) -> dict[str, Any]:
        return {"kind": self.kind, "base_url": self.base_url, "token": self.token}

    def expected(self, call: Call) -> dict[str, Expected]:
        fields = {
            "call_id": call.uuid, "started_at": call.start, "ended_at": call.end, "duration": call.duration,
            "direction": call.direction, "caller": call.caller, "callee": call.callee, "agent": call.agent[0],
        }  # fmt: skip
        return {call.uuid: Expected(fields=fields, audio={"audio": sound(call.uuid, call.duration)})}

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("X-Acme-Key") != self.token:
            return refused(401)
        asked = {name: int(value) for name, value in request.query.items() if name != "after"}
        low, high = (EPOCH + asked.get(name, default) * MS for name, default in (("from", 0), ("to", 1 << 42)))
        found = sorted((c for c in self.listed() if low < c.start < high), key=lambda c: (c.start, c.uuid))
        begin = next((i for i, c in enumerate(found, 1) if c.uuid == request.query.get("after")), 0)
        page = found[begin : begin + min(asked["limit"], self.largest_page)]
        rows: list[Any] = [self._row(c) for c in page]
        if rows and self.take_fault("list", request.path_qs, "bad_row"):
            rows[0]["start_ms"] = "noon"
        last = begin + len(page) == len(found)
        return web.json_response({"calls": rows, "next": None if last else page[-1].uuid})

    def _row(self, call: Call) -> dict[str, Any]:
        data = sound(call.uuid, call.duration)
        ready = call.ready_at <= self.clock.now()
        return {
            "id": call.uuid, "start_ms": (call.start - EPOCH) // MS, "length_ms": call.duration // MS,
            "direction": WORDS[call.direction], "from": call.caller, "to": call.callee, "agent": call.agent[0],
            "state": "done" if ready else "recording", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("X-Acme-Key") != self.token:
            return refused(401)
        call = next((c for c in self.listed() if c.uuid == request.match_info["id"]), None)
        if call is None or call.ready_at > self.clock.now():
            return refused(404)
        return web.Response(body=sound(call.uuid, call.duration), content_type="audio/wav")
