"""XiVO's recording server, as its vendor's page describes it: strict paths, methods, parameters and field names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from aiohttp import web

from ..model import Direction, Party
from .base import Call, Expected, Handler, Simulator, json_body

#: The token of the vendor's own examples.
TOKEN = "u@pf#41[gYHJm<]9N[a0iWDQQ7`e9k"  # noqa: S105 - printed on the vendor's page
FILTERS = {"agent", "queue", "start", "end", "callee", "caller", "direction", "queueCallStatus", "key", "value"}
STATUSES = {
    "abandoned", "answered", "divert_ca_ratio", "divert_waittime", "closed", "full", "joinempty", "leaveempty",
    "timeout",
}  # fmt: skip
DIRECTIONS = {"incoming": Direction.INBOUND, "outgoing": Direction.OUTBOUND}
CEL = (
    "cid_name", "cid_num", "cid_ani", "cid_rdnis", "cid_dnid", "exten", "context", "channame", "appname", "appdata",
    "amaflags", "accountcode", "peeraccount", "userfield", "peer", "call_log_id", "extra", "userdeftype",
)  # fmt: skip


class XivoSimulator(Simulator):
    """``call.extra["answered"] = False``: a recorded call that nobody answered."""

    kind: ClassVar[str] = "xivo"
    takes_any_id: ClassVar[bool] = True
    token: str = TOKEN
    timezone: str = "Europe/Paris"
    prefix: str = "/recording"
    #: Do the search rows hold the call-data id? (The vendor's page shows none.)
    tells_call_data_id: bool = False
    #: The vendor's example has from=10 and answers id 11: is ``from`` itself left out?
    cel_after: bool = False
    #: The most CEL rows one answer holds, whatever is asked.
    cel_most: int = 100_000
    #: Called after each search, with the page it answered.
    after_page: Callable[[int], None] | None = None
    own_faults: ClassVar[frozenset[str]] = frozenset({"bad_row", "phantom_page", "same_page"})

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        #: (action, file id) of every audio request.
        self.access_log: list[tuple[str, str]] = []
        #: What was attached, by call index.
        self.attached: dict[int, dict[str, str]] = {}
        self.cel: list[dict[str, str]] = []
        self._told: set[tuple[int, str]] = set()
        self._cel_id = 0
        self._files: dict[str, Call] = {}

    def options(self) -> dict[str, Any]:
        return {"kind": self.kind, "base_url": self.base_url, "token": self.token, "timezone": self.timezone}

    # -- the truth ---------------------------------------------------------------------------------------------------

    @staticmethod
    def file_id(call: Call) -> str:
        """The gateway makes it at the call's beginning, up to a second before."""
        made = int(call.start.timestamp()) - call.index % 2
        return str(call.extra.get("id") or call.extra.get("file_id", f"xivocc_gateway-{made}.{13000 + call.index}"))

    @staticmethod
    def call_id(call: Call) -> str:
        """The main PBX's unique id, which is not the gateway's."""
        return str(call.extra.get("call_id", f"{int(call.start.timestamp()) - 1}.{286000 + call.index}"))

    @staticmethod
    def answered(call: Call) -> bool:
        return bool(call.extra.get("answered", True))

    def attached_data(self, call: Call) -> dict[str, Any]:
        note = {"note": call.note} if call.note else {}
        return {"recording": self.file_id(call), **note, **self.attached.get(call.index, {})}

    def expected(self, call: Call) -> dict[str, Expected]:
        if not self.answered(call):
            return {}
        return {self.file_id(call): self.told_of(call)}

    def told_of(self, call: Call) -> Expected:
        """What an archive must hold of a call once it is found."""
        start = call.start.astimezone(UTC).replace(microsecond=0)
        duration = timedelta(seconds=int(call.duration.total_seconds()))
        parties = (
            Party(number=call.caller, role="caller"),
            Party(number=call.callee, role="callee"),
            Party(number=call.agent[1], name=call.agent[0], role="agent"),
        )
        fields = {
            "started_at": start,
            "duration": duration,
            "ended_at": start + duration,
            "direction": Direction.UNKNOWN,
            "caller": call.caller,
            "callee": call.callee,
            "agent": _named(call.agent),
            "queue": _named(call.queue) if call.queue else None,
            "parties": parties,
            "events": (),
            "attributes": {"status": self._status(call), **self.attached_data(call)},
        }
        return Expected(fields=fields, audio={"audio": self.sound(call, "wav")})

    def _status(self, call: Call) -> str:
        return "answered" if self.answered(call) else "abandoned"

    # -- the server --------------------------------------------------------------------------------------------------

    def routes(self) -> Sequence[web.RouteDef]:
        table: list[tuple[str, str, str, Handler]] = [
            ("POST", "/records/search", "list", self._search),
            ("POST", "/records/callid_search", "look_up", self._callid_search),
            ("GET", "/records/{id}/audio/{action}", "audio", self._audio),
            ("POST", "/call_data/{id}/attached_data", "attach", self._attach),
            ("POST", "/history", "history", self._history),
            ("POST", "/history/agent", "history_agent", self._history),
            ("POST", "/history/customer", "history_customer", self._history_customer),
            ("GET", "/last_agent", "last_agent", self._last_agent),
            ("GET", "/cel", "cel", self._cel),
        ]
        return [web.route(method, self.prefix + path, self._guarded(do), name=name) for method, path, name, do in table]

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            given = request.headers.get("X-Auth-Token")
            if given != self.token:
                return web.json_response({"error": "token"}, status=401 if given is None else 403)
            return await handler(request)

        return guarded

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(ZoneInfo(self.timezone)).replace(tzinfo=None)

    def _row(self, call: Call) -> dict[str, Any]:
        duration = "" if self.clock.now() < call.end else _clock(call.duration)
        row = {
            "agent": _named(call.agent),
            "attached_data": self.attached_data(call),
            "dst_num": call.callee,
            "duration": duration,
            "id": self.file_id(call),
            "queue": _named(call.queue) if call.queue else "",
            "src_num": call.caller,
            "start": f"{self._local(call.start):%Y-%m-%d %H:%M:%S}",
            "status": self._status(call),
        }
        return row | ({"call_data_id": 761000 + call.index} if self.tells_call_data_id else {})

    def _held(self, wanted: Callable[[Call], bool] = lambda _: True) -> list[Call]:
        """Listed, not purged and wanted, newest first by local time."""
        there = [c for c in self.listed() if not self._purged(c) and wanted(c)]
        return sorted(there, key=lambda c: (self._local(c.start), c.index), reverse=True)

    def _purged(self, call: Call) -> bool:
        return call.deleted_at is not None and call.deleted_at <= self.clock.now()

    def _of_file(self, file_id: str) -> Call | None:
        if len(self._files) != len(self.calls):
            self._files = {self.file_id(c): c for c in self.calls}
        call = self._files.get(file_id)
        return None if call is None or self._purged(call) else call

    async def _search(self, request: web.Request) -> web.StreamResponse:
        body = await self._object(request, FILTERS)
        query = self._query(request, "page", "pageSize")
        page, size = int(query.get("page", "1")), int(query.get("pageSize", "10"))
        if page < 1 or size < 1:
            raise _bad("page counts from 1")
        self._check_filter(body)
        found = self._held(lambda c: self.answered(c) and self._matches(c, body))
        fault = self.take_fault("list", request.path_qs, *self.own_faults)
        if fault and fault.kind == "same_page":
            page, found = 1, found * 2
        rows = [self._row(c) for c in found[(page - 1) * size : page * size]]
        answer = {"hasNext": len(found) > page * size, "records": rows}
        if fault and fault.kind == "phantom_page":
            answer["hasNext"] = True
        elif fault and fault.kind == "bad_row":
            rows.append(fault.value)
        if self.after_page is not None:
            self.after_page(page)
        return web.json_response(answer)

    @staticmethod
    def _check_filter(body: dict[str, Any]) -> None:
        if body.get("direction", "all") not in {"all", *DIRECTIONS}:
            raise _bad("direction")
        if body.get("queueCallStatus", "answered") not in STATUSES:
            raise _bad("queueCallStatus")
        if ("key" in body) != ("value" in body):
            raise _bad("key goes along with value")
        for bound in ("start", "end"):
            if bound in body and not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", str(body[bound])):
                raise _bad("date")

    def _matches(self, call: Call, body: dict[str, Any]) -> bool:
        begun, ended = self._local(call.start), self._local(call.end)
        after = datetime.fromisoformat(body.get("start", "0001-01-01 00:00:00"))
        before = datetime.fromisoformat(body.get("end", "9999-01-01 00:00:00"))
        if not ((begun > after or ended > after) and begun < before):
            return False
        texts = {"agent": _named(call.agent), "queue": _named(call.queue) if call.queue else ""}
        numbers = {"caller": call.caller, "callee": call.callee}
        wanted = DIRECTIONS.get(body.get("direction", "all"), call.direction)
        return (
            call.direction is wanted
            and all(str(body[k]).lower() in text.lower() for k, text in texts.items() if k in body)
            and all(_like(str(body[k]), number) for k, number in numbers.items() if k in body)
            and ("key" not in body or self.attached_data(call).get(body["key"]) == body["value"])
            and body.get("queueCallStatus", "answered") == "answered"
        )

    async def _callid_search(self, request: web.Request) -> web.StreamResponse:
        wanted = self._query(request, "callid").get("callid")
        if wanted is None:
            raise _bad("callid")
        rows = [self._row(c) for c in self._held(lambda c: self.call_id(c) == wanted)]
        more = self.take_fault("look_up", request.path_qs, "phantom_page") is not None
        return web.json_response({"hasNext": more, "records": rows})

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        file_id, action = request.match_info["id"], request.match_info["action"]
        self._query(request)
        if action not in {"result", "listen", "download"}:
            raise _bad("action")
        self.access_log.append((action, file_id))
        call = self._of_file(file_id)
        if call is None or call.ready_at > self.clock.now():
            return web.json_response({"error": "no such file"}, status=404)
        if action == "result":
            return web.json_response(self._row(call))
        if action == "listen":
            return web.Response()
        headers = {"Content-Disposition": f'attachment; filename="{file_id}.wav"'}
        return web.Response(body=self.sound(call, "wav"), content_type="audio/wav", headers=headers)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        pairs = json_body(await request.text())
        if not isinstance(pairs, list) or not all(isinstance(p, dict) and set(p) == {"key", "value"} for p in pairs):
            raise _bad("an array of key and value")
        call = next((c for c in self._held() if str(761000 + c.index) == request.match_info["id"]), None)
        if call is None:
            return web.json_response({"error": "no such call data"}, status=404)
        self.attached.setdefault(call.index, {}).update({str(p["key"]): str(p["value"]) for p in pairs})
        return web.json_response({})

    # -- history -----------------------------------------------------------------------------------------------------

    async def _history(self, request: web.Request) -> web.StreamResponse:
        field = "agentNum" if request.path.endswith("/agent") else "interface"
        body = await self._object(request, {field})
        query = self._query(request, "size", "days")
        if field not in body:
            raise _bad(field)
        if len(query) == 2:
            return web.json_response({"error": "size and days at the same time"}, status=500)
        calls = [c for c in self._held() if c.agent[1] == str(body[field]).rpartition("/")[2]]
        if "days" in query or field == "agentNum":
            since = self.clock.now() - timedelta(days=int(query.get("days", "7")))
            calls = [c for c in calls if c.start >= since]
        if "days" not in query:
            calls = calls[: int(query.get("size", "10"))]
        return web.json_response([self._history_row(c) for c in calls])

    def _history_row(self, call: Call) -> dict[str, Any]:
        names = {number: name for name, number in (call.agent,)}
        row: dict[str, Any] = {
            "start": f"{self._local(call.start):%Y-%m-%d %H:%M:%S}",
            "duration": _clock(call.duration),
            "src_num": call.caller,
            "dst_num": call.callee,
            "status": "emitted" if call.direction is Direction.OUTBOUND else self._status(call),
        }
        for end, number in (("src", call.caller), ("dst", call.callee)):
            first, _, last = names.get(number, "").partition(" ")
            row |= {f"{end}_firstname": first or None, f"{end}_lastname": last or f"Poste {number}"}
        return row

    async def _history_customer(self, request: web.Request) -> web.StreamResponse:
        body = await self._object(request, {"filters", "size"})
        self._query(request)
        calls = [c for c in self._held() if c.queue]
        for rule in body.get("filters", []):
            if set(rule) != {"field", "operator", "value"} or rule["operator"] not in {"=", "<", ">"}:
                raise _bad("a filter has field, operator and value")
            if rule["field"] not in {"src_num", "key", "value"}:
                raise _bad("field")
            if rule["field"] == "src_num" and rule["operator"] == "=":
                calls = [c for c in calls if c.caller == rule["value"]]
        rows = [
            {
                "start": f"{self._local(c.start):%Y-%m-%d %H:%M:%S}",
                "duration": _clock(c.duration),
                "wait_time": _clock(timedelta(seconds=c.index % 60)),
                "agent_name": c.agent[0],
                "agent_num": c.agent[1],
                "queue_name": c.queue[0] if c.queue else "",
                "queue_num": c.queue[1] if c.queue else "",
                "status": self._status(c),
            }
            for c in calls
        ]
        return web.json_response({"total": len(rows), "list": rows[: int(body.get("size", 10))]})

    async def _last_agent(self, request: web.Request) -> web.StreamResponse:
        query = self._query(request, "callerNo", "since")
        last = next((c for c in self._held() if c.caller == query.get("callerNo") and self.answered(c)), None)
        return web.json_response({"agentNumber": last.agent[1]} if last else {})

    # -- channel events ----------------------------------------------------------------------------------------------

    async def _cel(self, request: web.Request) -> web.StreamResponse:
        query = self._query(request, "from", "limit")
        if len(query) != 2:
            raise _bad("from and limit")
        self._log_events()
        first = int(query["from"]) + self.cel_after
        rows: list[Any] = [row for row in self.cel if int(row["id"]) >= first]
        rows = rows[: min(int(query["limit"]), self.cel_most)]
        fault = self.take_fault("cel", request.path_qs, "bad_row")
        return web.json_response([*rows, fault.value] if fault else rows)

    def _log_events(self) -> None:
        """Write what has happened since: rows in the order in which they are written, ids with gaps."""
        now, new = self.clock.now(), []
        for call in self.calls:
            steps = [
                ("CHAN_START", call.start),
                ("ANSWER", call.start),
                ("HANGUP", call.end),
                ("LINKEDID_END", call.end),
            ]
            for event, at in steps:
                told = (call.index, event)
                if at <= now and told not in self._told and (event != "ANSWER" or self.answered(call)):
                    self._told.add(told)
                    new.append((at, call, event))
        for at, call, event in sorted(new, key=lambda e: e[0]):
            self._cel_id += 1 + (self._cel_id % 7 == 6)
            self.cel.append(self._event(at, call, event))

    def _event(self, at: datetime, call: Call, event: str) -> dict[str, str]:
        call_id = self.call_id(call)
        row = {
            "id": str(self._cel_id),
            "eventtype": event,
            "eventtime": f"{self._local(at):%Y-%m-%d %H:%M:%S.%f}",
            "uniqueid": call_id,
            "linkedid": call_id,
        }
        told = {"cid_num": call.caller, "cid_ani": call.caller, "exten": "s", "amaflags": "3"}
        return row | {name: told.get(name, "") for name in CEL}

    # -- requests ----------------------------------------------------------------------------------------------------

    @staticmethod
    async def _object(request: web.Request, allowed: set[str]) -> dict[str, Any]:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="expecting application/json")
        body = json_body(await request.text())
        if not isinstance(body, dict) or not set(body) <= allowed:
            raise _bad("body")
        return body

    @staticmethod
    def _query(request: web.Request, *allowed: str) -> dict[str, str]:
        query = dict(request.query)
        if not set(query) <= set(allowed) or len(query) != len(request.query):
            raise _bad("unknown parameter")
        if any(not v.isdigit() for k, v in query.items() if k not in {"callid", "callerNo"}):
            raise _bad("number")
        return query


def _bad(what: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=f'{{"error": "{what}"}}', content_type="application/json")


def _named(of: tuple[str, str]) -> str:
    return f"{of[0]} ({of[1]})"


def _clock(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _like(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(re.escape(p) for p in pattern.split("%")), text) is not None
