"""Imagicle's Recordings WebAPI, as its pages 536, 540 and 628 and the OpenAPI file of 2025.Winter.1 describe it.

What they leave open is set to the harder case: bounds are exclusive, times have .NET's seven digits, ids change their
letter case from list to detail.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from aiohttp import web

from ..model import Direction, Party
from .base import AGENTS, Call, Clock, Expected, Simulator, refused

ROOT = "/fw/Apps/Recorder/WebAPI/Recordings"
_PAGING = {"page", "pageSize"}
_TIMES = {"startTime", "endTime"}

Keeps = Callable[[Call], bool]


class ImagicleSimulator(Simulator):
    """``level`` is what the account may see: ``admin`` all, ``group`` its group's, ``own`` its own, ``none`` nothing.

    ``release`` 2022 or 2025 decides the names of fields; ``encoding`` is that of the hash: hex, base64, none or odd.
    ``audit`` holds every download as (account, recording id). Own faults of ``list``: ``before`` (calls ``value``),
    ``bad_row``; of ``detail``: ``wrong_hash``, ``wrong_size``.
    """

    kind = "imagicle"
    own_faults: ClassVar[frozenset[str]] = frozenset({"before", "bad_row", "wrong_hash", "wrong_size"})

    def __init__(self, *, seed: int = 1, clock: Clock | None = None) -> None:
        super().__init__(seed=seed, clock=clock)
        self.username = "archive"
        self.password = "rec0rder-Pässword"  # noqa: S105 - of a simulator
        self.level = "admin"
        self.release = 2022
        self.encoding = "hex"
        self.largest_page: int | None = None
        self.counts = True
        self.zone = "Z"
        self.audit: list[tuple[str, str]] = []
        self._facts: dict[str, tuple[bytes, int]] = {}

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get(ROOT + "{slash:/?}", self._guarded(self._list), name="list", allow_head=False),
            web.get(ROOT + "/{id}", self._guarded(self._detail), name="detail", allow_head=False),
            web.get(ROOT + "/{id}/Media", self._guarded(self._media), name="audio", allow_head=False),
        ]

    def options(self) -> dict[str, Any]:
        return {
            "kind": "imagicle",
            "base_url": self.base_url,
            "username": self.username,
            "password": self.password,
        }

    # -- what a call is to this recorder -----------------------------------------------------------------------------

    def expected(self, call: Call) -> dict[str, Expected]:
        if not self._completed(call):
            return {}
        owner, local, remote = self._owner(call), *_numbers(call)
        shown = _direction(call)
        preserver = self._preserver(call)
        attributes = {
            "referenceNumber": _reference(call),
            "group": owner and owner["group"],
            "department": owner and owner["department"],
            "note": call.note or None,
            "noteOwner": "admin" if call.note else None,
            "preservingUser": preserver and preserver["username"],
            "pbxInfo": {"callId": _pbx_call_id(call)} if self.release >= 2025 else None,
        }
        name = f"{owner['firstName']} {owner['lastName']}" if owner else None
        fields = {
            "call_id": _pbx_call_id(call),
            "started_at": call.start,
            "ended_at": call.end,
            "duration": call.duration,
            "direction": {1: Direction.INBOUND, 2: Direction.OUTBOUND}.get(shown, Direction.UNKNOWN),
            "caller": {1: remote, 2: local}.get(shown),
            "callee": {1: local, 2: remote}.get(shown),
            "agent": owner and f"{name} ({owner['phoneNumber']})",
            "queue": None,
            "parties": (
                Party(number=local, name=name, user=owner["username"] if owner else None, role="agent"),
                Party(number=remote, role={1: "caller", 2: "callee"}.get(shown)),
            ),
            "events": (),
            "attributes": {k: v for k, v in attributes.items() if v},
        }
        return {call.uuid.lower(): Expected(fields=fields, audio={"audio": self._bytes(call)})}

    def _bytes(self, call: Call) -> bytes:
        return self.sound(call, call.extra.get("format", "mp3"))

    def _completed(self, call: Call) -> bool:
        now = self.clock.now()
        return max(call.end, call.listed_at) <= now and (call.deleted_at is None or call.deleted_at > now)

    @staticmethod
    def _owner(call: Call) -> dict[str, Any] | None:
        """None where the user was deleted; some users have no recording group."""
        if call.index % 11 == 5:
            return None
        return _user(*call.agent)

    @staticmethod
    def _preserver(call: Call) -> dict[str, Any] | None:
        return _user(*AGENTS[0]) if call.index % 6 == 2 else None

    def _visible(self) -> list[Call]:
        """The completed recordings that the account may see, newest first."""
        calls = sorted(filter(self._completed, self.calls), key=lambda c: (c.start, c.index), reverse=True)
        return [c for c in calls if self._may_see(c)]

    def _may_see(self, call: Call) -> bool:
        if self.level == "admin":
            return True
        owner = self._owner(call)
        account = self.username.split("\\")[-1].split("@")[0].lower()
        mine = next((_user(*a) for a in AGENTS if _user(*a)["username"] == account), None)
        if owner is None or mine is None:
            return False
        same_group = self.level == "group" and owner["group"] is not None and owner["group"] == mine["group"]
        return bool(same_group or owner["username"] == account)

    # -- the pages ---------------------------------------------------------------------------------------------------

    def _guarded(self, handler: Callable[[web.Request], Any]) -> Any:
        async def guarded(request: web.Request) -> web.StreamResponse:
            login = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            if request.headers.get("Authorization") != f"Basic {login}":
                response = refused(401, message="No authentication provided or wrong user credentials")
                response.headers["WWW-Authenticate"] = 'Basic realm="IAS"'
                return response
            if self.level == "none":
                return refused(403, message="Call Recording Base Access is required")
            answer: web.StreamResponse = await handler(request)
            return answer

        return guarded

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if (fault := self.take_fault("list", request.path_qs, "before")) is not None:
            fault.value()
        keeps: list[Keeps] = []
        for name, value in request.query.items():
            if name not in _PAGING:
                keep = self._filter(name, value)
                if keep is None or len(request.query.getall(name)) > 1:
                    return refused(400, reason=0, message=f"Invalid filter {name}: {value}")
                keeps.append(keep)
        page, size = request.query.get("page", "0"), request.query.get("pageSize")
        if not page.isdecimal() or (size is not None and not (size.isdecimal() and int(size))):
            return refused(400, reason=1, message="Invalid paging")
        matching = [c for c in self._visible() if all(keep(c) for keep in keeps)]
        length = min(int(size), self.largest_page or int(size)) if size else max(1, len(matching))
        begin = int(page) * length
        rows: list[Any] = [self._row(c) for c in matching[begin : begin + length]]
        if rows and self.take_fault("list", request.path_qs, "bad_row"):
            rows[0] = {**rows[0], "startTime": "yesterday"}
        counted = {"totalCount": len(matching)} if self.counts else {}
        return web.json_response(counted | {"recordings": rows})

    async def _detail(self, request: web.Request) -> web.StreamResponse:
        call = self._found(request)
        if isinstance(call, web.Response):
            return call
        owner = self._owner(call)
        if call.uuid not in self._facts:
            data = self._bytes(call)
            self._facts[call.uuid] = hashlib.sha256(data).digest(), len(data)
        digest, size = self._facts[call.uuid]
        if self.take_fault("detail", request.path_qs, "wrong_hash"):
            digest = hashlib.sha256(digest).digest()
        if self.take_fault("detail", request.path_qs, "wrong_size"):
            size += 16
        row = self._row(call) | {"id": call.uuid if call.index % 2 else call.uuid.upper()}
        del row["ownerUsername"]
        pbx = {"pbxInfo": {"callId": _pbx_call_id(call)}} if self.release >= 2025 else {"pbxCallId": _pbx_call_id(call)}
        note = {"owner": {"username": "admin"} if call.note else None, "text": call.note}
        return web.json_response(
            row
            | pbx
            | {"owner": owner, "preservingUser": self._preserver(call), "note": note, "size": size}
            | {"hash": None if self.encoding == "none" else {"SHA256": self._written(digest)}}
        )

    async def _media(self, request: web.Request) -> web.StreamResponse:
        call = self._found(request)
        if isinstance(call, web.Response):
            return call
        if call.ready_at > self.clock.now():
            return refused(404, message="Recording does not exist")
        self.audit.append((self.username, call.uuid))
        return web.Response(body=self._bytes(call), content_type="audio/mpeg")

    def _found(self, request: web.Request) -> Call | web.Response:
        try:
            wanted = UUID(request.match_info["id"])
        except ValueError:
            return refused(400, message="Id is not a valid GUID")
        call = next((c for c in self.calls if UUID(c.uuid) == wanted and self._completed(c)), None)
        if call is None:
            return refused(404, message="Recording does not exist")
        if not self._may_see(call):
            return refused(403, message="The user has no sufficient privileges to access the requested recording")
        return call

    def _row(self, call: Call) -> dict[str, Any]:
        local, remote = _numbers(call)
        owner = self._owner(call)
        return {
            "id": call.uuid.upper() if call.index % 2 else call.uuid,
            "referenceNumber": _reference(call),
            "startTime": _moment(call.start, call.index, self.zone),
            "duration": _iso_duration(call.duration),
            "direction": _direction(call),
            "localPartyNumber": local,
            "remoteParty" if self.release >= 2025 else "remotePartyNumber": remote,
            "ownerUsername": owner and owner["username"],
        }

    def _written(self, digest: bytes) -> str:
        if self.encoding == "base64":
            return base64.b64encode(digest).decode()
        return digest.hex().upper() if self.encoding == "hex" else "(odd)"

    # -- filters -----------------------------------------------------------------------------------------------------

    def _filter(self, name: str, value: str) -> Keeps | None:
        """The RHS-colon filter, or None where the vendor refuses it."""
        operator, _, rest = value.partition(":")
        if name in _TIMES:
            return _time_filter(name, operator, rest, value)
        if name == ("remoteParty" if self.release >= 2025 else "remotePartyNumber"):
            if operator == "contains":
                return lambda c: rest in _numbers(c)[1]
            return lambda c: _numbers(c)[1] == value
        plain: dict[str, Callable[[Call], Any]] = {
            "localPartyNumber": lambda c: _numbers(c)[0],
            "ownerUsername": lambda c: (self._owner(c) or {}).get("username"),
            "direction": lambda c: str(_direction(c)),
        }
        if name not in plain or (name == "direction" and value not in {"0", "1", "2"}):
            return None
        return lambda c: bool(plain[name](c) == value)


def _time_filter(name: str, operator: str, rest: str, value: str) -> Keeps | None:
    def of(call: Call) -> datetime:
        return call.start if name == "startTime" else call.end

    try:
        match operator:
            case "after":
                after = _asked(rest)
                return lambda c: of(c) > after
            case "before":
                before = _asked(rest)
                return lambda c: of(c) < before
            case "between":
                first, last = map(_asked, rest.split(","))
                return lambda c: first < of(c) < last
        exact = _asked(value)
    except ValueError:
        return None
    return lambda c: of(c) == exact


def _asked(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment


def _user(name: str, extension: str) -> dict[str, Any]:
    first, last = name.split(" ", 1)
    return {
        "username": name.lower().replace(" ", "_"),
        "firstName": first,
        "lastName": last,
        "phoneNumber": extension,
        "group": {"1573": "sales", "1564": "sales", "1580": "claims"}.get(extension),
        "department": "IT" if extension == "1573" else None,
    }


def _numbers(call: Call) -> tuple[str, str]:
    """The recording telephone's number, and the other one."""
    return (call.callee, call.caller) if call.direction is Direction.INBOUND else (call.caller, call.callee)


def _direction(call: Call) -> int:
    """Internal calls are outgoing ones to the telephone that records them; of some the recorder does not know."""
    if call.direction is Direction.UNKNOWN or call.index % 13 == 4:
        return 0
    return 1 if call.direction is Direction.INBOUND else 2


def _reference(call: Call) -> str:
    return f"{call.start:%Y%m%d}{call.index:06}"


def _pbx_call_id(call: Call) -> str:
    return str(call.extra.get("pbx_call_id", 1_000_000 + call.index))


def _moment(moment: datetime, index: int, zone: str) -> str:
    """.NET writes seven digits, or drops the zeros at the end."""
    text = f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"
    fraction = f"{moment.microsecond:06}0"
    if index % 2:
        fraction = fraction.rstrip("0")
    return text + (f".{fraction}" if fraction else "") + zone


def _iso_duration(length: timedelta) -> str:
    minutes, seconds = divmod(length, timedelta(minutes=1))
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds.total_seconds():.3f}".rstrip("0").rstrip(".")
    return "PT" + (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "") + f"{text}S"
