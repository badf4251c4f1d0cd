"""What every simulated recorder shares: a clock, the true calls, a server on loopback, faults.

A simulator is strict to its vendor's page; tests, the demo and benchmarks archive from it over real HTTP.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self

from aiohttp import web

from ..model import Direction
from . import audio

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

AGENTS = (("Joe Dalton", "1573"), ("Dino Falconetti", "1564"), ("Zoé Müller", "1580"), ("Aiko Tanaka", "1591"))
QUEUES = (("hotline", "3556"), ("oneforone", "3555"), ("claims", "3560"), None)


class Clock:
    """The recorder's own time: real time, shifted and perhaps faster."""

    def __init__(self, now: datetime | None = None, speed: float = 1.0) -> None:
        self._began = datetime.now(UTC)
        self._start = now or self._began
        self.speed = speed

    def now(self) -> datetime:
        return self._start + (datetime.now(UTC) - self._began) * self.speed

    def advance(self, by: timedelta) -> None:
        self._start += by


@dataclass(slots=True, kw_only=True)
class Call:
    """One true call. Vendors show what of it their API can tell."""

    index: int
    uuid: str
    start: datetime
    duration: timedelta
    direction: Direction
    caller: str
    callee: str
    agent: tuple[str, str]
    queue: tuple[str, str] | None
    note: str = ""
    #: Not listed before; audio not there before; deleted by the recorder at.
    listed_at: datetime
    ready_at: datetime
    deleted_at: datetime | None = None
    #: Raised when the recorder changes what it tells of the call.
    revision: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> datetime:
        return self.start + self.duration


@dataclass(slots=True, kw_only=True)
class Expected:
    """What an archive must hold of one recording: fields as in model.Recording, and the bytes by media id."""

    fields: Mapping[str, Any]
    audio: Mapping[str, bytes]


@dataclass(slots=True, kw_only=True)
class Fault:
    """Something that goes wrong.

    ``kind``: status (``value``: the code) · retry_after (429, ``value`` seconds) · reset · stall · html · json ·
    empty · truncate (promises all, sends half) · clean_cut (sends half, promises nothing) · header_only (44-byte WAV) ·
    flip (one byte changed) · drip (``value`` seconds between pieces) · mislabel (right bytes, wrong Content-Type) ·
    redirect (to ``value``) · torn (half of a JSON answer, as whole) · or a vendor's own, by its simulator.
    """

    kind: str
    on: str = "*"
    times: int = 1
    #: Only requests whose path or query holds this text.
    match: str = ""
    chance: float = 1.0
    value: Any = None
    hits: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that arrived. ``on`` is the name of its route (list, audio, …)."""

    on: str
    method: str
    path: str
    query: str
    status: int
    headers: Mapping[str, str]


class Simulator:
    """A recorder on a free loopback port.

    A vendor sets ``kind``, adds its routes (each with a name: ``list``, ``audio`` …) and says what it ``expects`` an
    archive to hold. ``calls`` is the truth; tests may change it while the server runs.
    """

    kind: ClassVar[str]
    #: Does it take any text in a call's ``extra["id"]`` for its recording's id?
    takes_any_id: ClassVar[bool] = False
    #: Where it listens.
    address = "127.0.0.1"

    def __init__(self, *, seed: int = 1, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.random = random.Random(seed)
        self.seed = seed
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.running = 0
        self.most_running = 0
        self._runner: web.AppRunner | None = None
        self._port = 0

    # -- what a vendor gives ---------------------------------------------------------------------------------------

    def routes(self) -> Sequence[web.RouteDef]:
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The ``[sources.X]`` table of a config that archives from here (plain values)."""
        raise NotImplementedError

    def expected(self, call: Call) -> dict[str, Expected]:
        """By recording_id, what an archive must hold of a call; empty where it holds nothing of it."""
        raise NotImplementedError

    # -- the truth ---------------------------------------------------------------------------------------------------

    def add_calls(
        self, start: datetime, end: datetime, count: int, *, shortest: float = 2.0, longest: float = 20.0
    ) -> list[Call]:
        """So many calls, begun between the two moments (whole seconds and milliseconds, unsorted)."""
        span = (end - start).total_seconds()
        new = []
        for _ in range(count):
            at = start + timedelta(milliseconds=int(self.random.random() * span * 1000))
            new.append(self.add_call(at, timedelta(seconds=round(self.random.uniform(shortest, longest), 3))))
        return new

    def add_call(self, start: datetime, duration: timedelta, **changes: Any) -> Call:
        direction = self.random.choice((Direction.INBOUND, Direction.OUTBOUND, Direction.INTERNAL))
        outside = f"+1650{self.random.randrange(10**7):07}"
        agent = self.random.choice(AGENTS)
        inside = agent[1]
        caller, callee = (outside, inside) if direction is Direction.INBOUND else (inside, outside)
        if direction is Direction.INTERNAL:
            callee = self.random.choice(AGENTS)[1]
        call = Call(
            index=len(self.calls),
            uuid=str(uuid.UUID(int=self.random.getrandbits(128), version=4)),
            start=start,
            duration=duration,
            direction=direction,
            caller=caller,
            callee=callee,
            agent=agent,
            queue=self.random.choice(QUEUES) if direction is Direction.INBOUND else None,
            listed_at=start + duration,
            ready_at=start + duration,
        )
        call = replace(call, **changes)
        self.calls.append(call)
        return call

    def listed(self) -> list[Call]:
        """The calls that the recorder would list now."""
        now = self.clock.now()
        return [c for c in self.calls if c.listed_at <= now]

    def truth(self) -> dict[str, Expected]:
        """What an archive of everything listed now must hold."""
        held: dict[str, Expected] = {}
        for call in self.listed():
            held |= self.expected(call)
        return held

    def sound(self, call: Call, fmt: str, part: str = "") -> bytes:
        """The true bytes of (a part of) a call's audio."""
        return audio.make(fmt, seconds=max(1.0, call.duration.total_seconds()), seed=f"{call.uuid}/{part}")

    # -- the server --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on a free port (the same one again after a stop)."""
        app = web.Application(middlewares=[self._watch], client_max_size=64 << 20)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.address, self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def count(self, on: str) -> int:
        """How many requests of that name arrived."""
        return sum(1 for seen in self.seen if seen.on == on)

    # -- faults ------------------------------------------------------------------------------------------------

    def fault(self, kind: str, on: str = "*", **how: Any) -> Fault:
        """Switch a fault on; it wears off after ``times`` hits (-1: never)."""
        fault = Fault(kind=kind, on=on, **how)
        self.faults.append(fault)
        return fault

    def take_fault(self, on: str, text: str, *kinds: str) -> Fault | None:
        """The first fault that applies (of those kinds, where given), counted as hit."""
        for fault in self.faults:
            if (
                fault.times != 0
                and fault.on in {"*", on}
                and (not kinds or fault.kind in kinds)
                and fault.match in text
                and (fault.chance >= 1 or self.random.random() < fault.chance)
            ):
                fault.times -= 1
                fault.hits += 1
                return fault
        return None

    #: Faults that a vendor's handlers apply themselves (a bad row, a wrong size …).
    own_faults: ClassVar[frozenset[str]] = frozenset()
    #: True where calls are listed by whole hours, once these are over.
    lists_closed_hours: ClassVar[bool] = False

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        on = request.match_info.route.name or "unknown"
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        status = 0
        try:
            fault = self.take_fault(on, request.path_qs, *self._common_faults())
            response = await (handler(request) if fault is None else self._spoil(fault, request, handler))
            status = response.status
        except web.HTTPException as refusal:
            status = refusal.status
            raise
        else:
            return response
        finally:
            self.running -= 1
            self.seen.append(
                Seen(on, request.method, request.path, request.query_string, status, dict(request.headers))
            )

    def _common_faults(self) -> list[str]:
        return [f.kind for f in self.faults if f.kind not in self.own_faults] or ["-"]

    async def _spoil(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        match fault.kind:
            case "status":
                return web.Response(status=int(fault.value), text="out of order")
            case "retry_after":
                return web.Response(status=429, headers={"Retry-After": str(fault.value)}, text="slow down")
            case "stall":
                await asyncio.sleep(3600)
            case "reset":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            case "html":
                return web.Response(
                    text="<!DOCTYPE html><html><body>Please log in</body></html>", content_type="text/html"
                )
            case "json":
                return web.json_response({"error": "temporarily unavailable"})
            case "empty":
                return web.Response(body=b"")
            case "redirect":
                return web.Response(status=302, headers={"Location": str(fault.value)})
            case "header_only":
                return web.Response(body=HEADER_ONLY, content_type="audio/wav")
        return await self._distort(fault, request, await handler(request))

    async def _distort(self, fault: Fault, request: web.Request, whole: web.StreamResponse) -> web.StreamResponse:
        body = bytes(whole.body) if isinstance(whole, web.Response) and isinstance(whole.body, bytes) else b""
        headers = {"Content-Type": whole.headers.get("Content-Type", "application/octet-stream")}
        match fault.kind:
            case "flip":
                # Elsewhere each time, as on a bad line: what comes twice alike is what a recorder holds.
                at = self._somewhere(body)
                body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
            case "mislabel":
                headers["Content-Type"] = "text/html"
            case "clean_cut":
                body = body[: self._somewhere(body)]
            case "torn":
                body = body[: len(body) // 2]
            case "truncate" | "drip":
                return await self._stream(fault, request, body, headers)
        return web.Response(status=whole.status, body=body, headers=headers)

    def _somewhere(self, body: bytes) -> int:
        """In its middle third."""
        return self.random.randrange(len(body) // 3, max(len(body) * 2 // 3, len(body) // 3 + 1))

    @staticmethod
    async def _stream(fault: Fault, request: web.Request, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
        await response.prepare(request)
        if fault.kind == "truncate":
            await response.write(body[: len(body) // 2])
            if request.transport is not None:
                request.transport.close()
            return response
        step = max(1, len(body) // 8)
        for at in range(0, len(body), step):
            await response.write(body[at : at + step])
            await asyncio.sleep(float(fault.value or 0.05))
        return response


HEADER_ONLY = bytes.fromhex(
    "52494646 24000000 57415645 666d7420 10000000 0100 0100 401f0000 803e0000 0200 1000 64617461 00000000"
)


def refused(status: int, **body: Any) -> web.Response:
    """A JSON error answer."""
    return web.json_response(body or {"error": status}, status=status)


def json_body(text: str) -> Any:
    """The request's JSON, or None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
