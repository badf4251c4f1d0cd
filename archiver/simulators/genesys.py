"""Web Services' recordings API, as the vendor's page of Nov 2013 describes it ("Recording Access").

What the page leaves open is set to the harder case: bounds are exclusive, the newest call comes first, nodes tell
addresses on hosts that nobody else can reach, the storage is another server.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web

from ..model import CallEvent, Direction, Party
from . import audio
from .base import AGENTS, Call, Clock, Expected, Simulator, json_body

_HTTP = {1: 400, 2: 400, 3: 403, 4: 500, 5: 403, 6: 404, 10: 400, 20: 401}
_QUERY = {"callerPhoneNumber", "dialedPhoneNumber", "startTime", "endTime", "userName", "userData"}
_PAGING = {"offset", "limit", "fields"}
_GET_ONLY = ("mediaUri", "originalMediaDescriptor")
MOST = 100
Encrypt = Callable[[bytes], tuple[bytes, str]]


class WrongRequest(Exception):
    """A request that the page does not allow: a statusCode and why."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class GenesysSimulator(Simulator):
    """Its switches.

    ``soft``: errors come under HTTP 200 · ``uris_only``: lists tell URIs unless asked for ``fields`` · ``ops``: may our
    account use the internal twin? · ``csrf``: must POST and DELETE bring the token? · ``order``: newest, oldest or
    shuffled · ``names_next``: does a page tell nextUri? · ``between``: called with the offset after each page ·
    ``ignores_offset`` · ``encrypt``: how media of calls with ``extra["encrypted"]`` are hidden · ``posted``: what POSTs
    left, by id · ``node_root``: the root in the addresses that nodes tell, where a proxy serves the API below another ·
    ``newer``: rows as servers tell them today (callType on the recording, no events, the agent and seconds in media).

    A call's ``extra``: ``region`` · ``encrypted`` · ``data`` (of its events) · ``later`` ((when it is told of, seconds)
    of media that come later). Own faults: ``status_code`` (``value``, under HTTP 200) and, of ``list``, ``bad_row``.
    """

    kind = "genesys"
    takes_any_id = True
    own_faults: ClassVar[frozenset[str]] = frozenset({"status_code", "bad_row"})
    root: ClassVar[str] = "/api/v2"
    contact_center: ClassVar[str] = "a5539ef5-7dd5-4150-818f-ee1bcd447cbe"
    bucket: ClassVar[str] = "stage-recordings"

    def __init__(self, *, seed: int = 1, clock: Clock | None = None) -> None:
        super().__init__(seed=seed, clock=clock)
        self.username = "archive@hq"
        self.password = "W3b-Services pass"  # noqa: S105 - of a simulator
        self.region = "development"
        self.node = "http://gws-node-3.internal:8080"
        self.node_root = self.root
        self.soft = self.uris_only = self.ignores_offset = self.newer = False
        self.ops = self.csrf = self.names_next = True
        self.order = "newest"
        self.encrypt: Encrypt = _hidden
        self.between: Callable[[int], None] | None = None
        self.posted: dict[str, dict[str, Any]] = {}
        self.deleted: set[str] = set()
        self.undeletable: set[str] = set()
        #: What lies in the storage that this server is too, by bucket/path or, on WebDAV, path.
        self.objects: dict[str, bytes] = {}
        self.storage_url: str | None = None
        self._sessions: dict[str, str] = {}
        self._encrypted: dict[str, tuple[bytes, str]] = {}
        self._sizes: dict[str, int] = {}

    def routes(self) -> Sequence[web.RouteDef]:
        # Each path has an internal twin; both go by one name, so that a fault meets both.
        every = self.root + "{twin:(?:/ops/contact-centers/[^/]+)?}/recordings"
        play = f"{self.root}/recordings/{{id}}/play/{{name}}"
        return [
            web.get(f"{self.root}/diagnostics/version", self._version, name="version", allow_head=False),
            web.get(f"{self.root}/me", self._guarded(self._me), name="me", allow_head=False),
            web.get(f"{self.root}/ops/contact-centers", self._guarded(self._centers), name="centers", allow_head=False),
            # The page's examples ask for /recordings/recordings too.
            web.get(f"{every}{{again:(?:/recordings)?}}", self._guarded(self._list), name="list", allow_head=False),
            web.post(f"{every}{{slash:/?}}", self._guarded(self._post), name="post"),
            web.get(f"{every}/{{id}}", self._guarded(self._detail), name="detail", allow_head=False),
            web.delete(f"{every}/{{id}}", self._guarded(self._delete), name="delete"),
            web.get(play, self._guarded(self._play), name="audio", allow_head=False),
            web.get("/s3/{path:.+}", self._s3, allow_head=False, name="s3"),
            web.get("/dav/{path:.+}", self._dav, allow_head=False, name="dav"),
        ]

    def options(self) -> dict[str, Any]:
        return {
            "kind": "genesys",
            "base_url": self.base_url + self.root,
            "username": self.username,
            "password": self.password,
        }

    # -- what a call is to this recorder -----------------------------------------------------------------------------

    def expected(self, call: Call) -> dict[str, Expected]:
        now, region = self.clock.now(), call.extra.get("region", self.region)
        if region != self.region or (call.deleted_at is not None and call.deleted_at <= now):
            return {}
        parts = [p for p in self.parts(call) if p.told_at <= now]
        if not parts:
            return {}
        people = [Party(number=c["phoneNumber"], name=" ".join(filter(None, (c["firstName"], c["lastName"]))) or None,
                        user=c["userName"], role="agent" if c["type"] == "User" else "external")
                  for c in _contacts(call)]  # fmt: skip
        agent = next(p for p in people if p.role == "agent")
        if self.newer:
            agent = Party(user=agent.user, role="agent")
            people = [agent]
        kept = {k for k, v in (self.told(call, parts[0])).items() if v} - {
            "mediaUri",
            "size",
            "duration",
            "accessgroup",
        }
        media = {
            p.uuid: {
                **{k: v for k, v in self.told(call, p).items() if k in kept and v},
                "accessgroups": ["US", "US/CA"],
            }
            for p in parts
        }
        ended = max(p.end for p in parts)
        fields = {
            "call_id": call.uuid,
            "started_at": call.start,
            "ended_at": ended,
            "duration": ended - call.start,
            "direction": call.direction if self.newer or call.index % 2 == 0 else Direction.UNKNOWN,
            "caller": call.caller,
            "callee": call.callee,
            "agent": agent.user if self.newer else f"{agent.name} ({agent.number})",
            "queue": None,
            "parties": tuple(people),
            "events": ()
            if self.newer
            else tuple(
                CallEvent(at=at, event=event, party=p.number)
                for at, event in ((call.start, "joined"), (call.end, "left"))
                for p in people
            ),
            "attributes": {
                "region": region,
                **({"data": data} if (data := call.extra.get("data")) else {}),
                "media": media,
            },
        }
        return {recording_id(call): Expected(fields=fields, audio={p.uuid: self.body(call, p)[0] for p in parts})}

    def parts(self, call: Call) -> list[Part]:
        """A call's media: every fourth call was recorded in two pieces; some come later."""
        half = call.start + call.duration / 2
        half = half.replace(microsecond=half.microsecond // 1000 * 1000)
        spans = [(call.start, half), (half, call.end)] if call.index % 4 == 3 else [(call.start, call.end)]
        parts = [Part(call, n, *span, call.listed_at) for n, span in enumerate(spans)]
        at = call.end
        for told_at, seconds in call.extra.get("later", ()):
            parts.append(Part(call, len(parts), at, at + timedelta(seconds=seconds), told_at))
            at = parts[-1].end
        return parts

    def body(self, call: Call, part: Part) -> tuple[bytes, str]:
        """A medium's bytes, and its pkcs7 (empty where it is not encrypted)."""
        if part.uuid in self._encrypted:
            return self._encrypted[part.uuid]
        seconds = max(1.0, (part.end - part.start).total_seconds())
        clear = audio.make("mp3", seconds=seconds, seed=f"{call.uuid}/{part.number}")
        if not call.extra.get("encrypted"):
            return clear, ""
        return self._encrypted.setdefault(part.uuid, self.encrypt(clear))

    def _size(self, call: Call, part: Part) -> int:
        if part.uuid not in self._sizes:
            self._sizes[part.uuid] = len(self.body(call, part)[0])
        return self._sizes[part.uuid]

    def told(self, call: Call, part: Part) -> dict[str, Any]:
        pkcs7 = self.body(call, part)[1] if call.extra.get("encrypted") else ""
        parameters: dict[str, Any] = {"record": "source", "recorddn": call.agent[1]}
        length = (part.end - part.start) / timedelta(milliseconds=1)
        agent = next(c for c in _contacts(call) if c["type"] == "User")["userName"]
        if self.newer:
            # Not all name the agent in the same place.
            parameters |= {"agentId": agent} if call.index % 2 else {"contact": {"userName": agent}}
        elif call.index % 2 == 0:
            parameters["callType"] = call.direction.value.capitalize()
        named = f"{call.uuid}_{part.start:%Y-%m-%d_%H-%M-%S}-{part.number}.mp3"
        told = {
            "startTime": time_text(part.start),
            "stopTime": time_text(part.end),
            "callUUID": call.uuid,
            "mediaUri": self._media_uri(recording_id(call), f"{part.uuid}.mp3"),
            "mediaId": named,
            "type": "audio/mp3",
            "duration": str(length / 1000) if self.newer else str(int(length)),
            "tenant": "Environment",
            "ivrprofile": "DefaultProfile",
            "size": str(self._size(call, part)),
            "parameters": parameters,
            "masks": [{"time": time_text(part.start).replace("+0000", "Z"), "type": "paused"}] * (call.index % 5 == 2),
            "partitions": ["part1", "part2"],
            "accessgroup": ["US", "US/CA"],
        }
        return told | ({"pkcs7": pkcs7, "certAlias": ["cert1", "cert2"]} if pkcs7 else {})

    def stored(self) -> dict[str, bytes]:
        """What of the listed calls lies in the storage; another simulator may serve it as ``objects``."""
        return {
            f"{self.bucket}/{path}" if call.index % 2 == 0 else path: self.body(call, part)[0]
            for call in self.listed()
            for part in self.parts(call)
            for path in [f"{recording_id(call)}/{part.uuid}.mp3"]
        }

    def _descriptor(self, call: Call, part: Part) -> dict[str, Any]:
        path = f"{recording_id(call)}/{part.uuid}.mp3"
        if call.index % 2 == 0:
            return {"storage": "awsS3", "path": path, "data": {"bucket": self.bucket}}
        return {"storage": "webDAV", "path": f"{self.storage_url or self.base_url}/dav/{path}"}

    def _media_uri(self, rid: str, name: str) -> str:
        return f"{self.node}{self.node_root}/recordings/{quote(rid, safe='')}/play/{name}"

    def _recordings(self, only: str | None = None) -> dict[str, dict[str, Any]]:
        """Everything there is now (or the one of an id), as an OPS admin sees it, with both kinds of address."""
        now, found = self.clock.now(), {}
        for call in self.listed():
            if (call.deleted_at is not None and call.deleted_at <= now) or only not in {None, recording_id(call)}:
                continue
            found[recording_id(call)] = {
                "id": recording_id(call),
                "callerPhoneNumber": call.caller,
                "dialedPhoneNumber": call.callee,
                "mediaFiles": [
                    {**self.told(call, p), "originalMediaDescriptor": self._descriptor(call, p)}
                    for p in self.parts(call)
                    if p.told_at <= now
                ],
                "eventHistory": [
                    {
                        "occurredAt": time_text(at),
                        "contact": contact,
                        "event": event,
                        "data": call.extra.get("data", {}),
                    }
                    for at, event in ((call.start, "Joined"), (call.end, "Left"))
                    for contact in _contacts(call)
                    if not self.newer
                ],
                **({"callType": call.direction.value.capitalize()} if self.newer else {}),
                "region": call.extra.get("region", self.region),
            }
        for rid, posted in self.posted.items():
            found[rid] = upserted(found.get(rid), posted)
        for recording in found.values():
            recording["startTime"] = min(m["startTime"] for m in recording["mediaFiles"])
            recording["stopTime"] = max(m["stopTime"] for m in recording["mediaFiles"])
        return {rid: r for rid, r in found.items() if r["region"] == self.region and rid not in self.deleted}

    # -- requests ----------------------------------------------------------------------------------------------------

    def _guarded(self, handler: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                self._admit(request)
                if fault := self.take_fault(request.match_info.route.name or "", request.path_qs, "status_code"):
                    return web.json_response({"statusCode": fault.value, "statusMessage": "as you wished"})
                response: web.StreamResponse = await handler(request)
            except WrongRequest as wrong:
                body = {"statusCode": wrong.code, "statusMessage": str(wrong)}
                response = web.json_response(body, status=200 if self.soft else _HTTP[wrong.code])
            if request.method == "GET" and self.csrf:
                session = request.cookies.get("JSESSIONID", "")
                if session not in self._sessions:
                    session = secrets.token_hex(8)
                    response.set_cookie("JSESSIONID", session, path="/")
                token = self._sessions.setdefault(session, secrets.token_hex(16))
                response.headers.update({"X-CSRF-HEADER": "X-CSRF-TOKEN", "X-CSRF-TOKEN": token})
            return response

        return guarded

    def _admit(self, request: web.Request) -> None:
        wanted = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {wanted}":
            raise WrongRequest(20, "Access denied")
        if "/ops/" in request.path:
            if not self.ops:
                raise WrongRequest(5, "OPS Admin permission needed")
            if request.match_info.get("twin", self.contact_center).rsplit("/", 1)[-1] != self.contact_center:
                raise WrongRequest(6, "no such contact center")
        if request.method == "GET" or not self.csrf:
            return
        token = self._sessions.get(request.cookies.get("JSESSIONID", ""))
        if token is None or request.headers.get("X-CSRF-TOKEN") != token:
            raise web.HTTPForbidden(text="Missing or invalid Csrf token")

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"statusCode": 0, "version": "8.5.200.50"})

    async def _me(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"statusCode": 0, "user": {"userName": self.username}})

    async def _centers(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"statusCode": 0, "uris": [f"{self.node}{self.node_root}/ops/contact-centers/{self.contact_center}"]}
        )

    async def _list(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if not query:
            raise WrongRequest(1, "a query parameter is needed")
        if unknown := set(query) - _QUERY - _PAGING:
            raise WrongRequest(2, f"no such parameter: {min(unknown)}")
        try:
            offset, limit = int(query.get("offset", 0)), min(int(query.get("limit", MOST)), MOST)
        except ValueError:
            raise WrongRequest(2, "offset and limit are numbers") from None
        if offset < 0 or limit < 1:
            raise WrongRequest(2, "offset and limit are positive")
        found = [r for r in self._recordings().values() if _matches(r, query)]
        found.sort(key=lambda r: (str(r["startTime"]), str(r["id"])), reverse=self.order == "newest")
        if self.order == "shuffled":
            self.random.shuffle(found)
        start = 0 if self.ignores_offset else offset
        page: list[Any] = [self._shown(request, r) for r in found[start : start + limit]]
        if page and self.take_fault("list", request.path_qs, "bad_row"):
            page[0] = {"id": page[0]["id"], "mediaFiles": "none"}
        twin = f"{self.node}{self.node_root}{request.match_info['twin']}"
        if self.uris_only and query.get("fields") != "*":
            answer: dict[str, Any] = {
                "statusCode": 0,
                "uris": [f"{twin}/recordings/{quote(r['id'], safe='')}" for r in page],
            }
        else:
            answer = {"statusCode": 0, "recordings": page}
        around = {"prevUri": (offset - limit, offset > 0), "nextUri": (offset + limit, offset + limit < len(found))}
        for name, (at, there) in around.items():
            if there and self.names_next:
                asked = urlencode({**query, "offset": max(0, at), "limit": limit})
                path = request.path.removeprefix(self.root)
                answer[name] = f"{self.node}{self.node_root}{path}?{asked}"
        if self.between is not None:
            self.between(offset)
        return web.json_response(answer)

    def _shown(self, request: web.Request, recording: Mapping[str, Any]) -> dict[str, Any]:
        """As this account sees it: the storage is for OPS admins only."""
        hidden = () if "/ops/" in request.path else ("originalMediaDescriptor",)
        files = [{k: v for k, v in f.items() if k not in hidden} for f in recording["mediaFiles"]]
        events = [{k: v for k, v in e.items() if k != "data" or v} for e in recording["eventHistory"]]
        return {**recording, "mediaFiles": files, "eventHistory": events}

    def _found(self, request: web.Request) -> dict[str, Any]:
        recording = self._recordings(request.match_info["id"]).get(request.match_info["id"])
        if recording is None:
            raise WrongRequest(6, "NOT_FOUND")
        return recording

    async def _detail(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"statusCode": 0, "recording": self._shown(request, self._found(request))})

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        if "/ops/" not in request.path:
            raise WrongRequest(5, "OPS Admin permission needed")
        recording = self._found(request)
        self.deleted.add(recording["id"])
        failed = [
            {
                "id": str(uuid.uuid4()),
                "mediaDescriptor": d,
                "statusCode": 4,
                "statusMessage": f"can't delete {d['path']}",
            }
            for f in recording["mediaFiles"]
            if (d := f["originalMediaDescriptor"])["path"] in self.undeletable
            and request.query.get("subresources") == "*"
        ]
        return web.json_response({"statusCode": 7, "failed": failed} if failed else {"statusCode": 0})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = json_body(await request.text())
        problem = _problem(body)
        if problem is not None:
            raise WrongRequest(10, problem)
        rid = body["id"]
        media = [
            {
                **{k: v for k, v in f.items() if k not in {"mediaDescriptor", *_GET_ONLY}},
                "startTime": time_text(_time(f["startTime"])),
                "stopTime": time_text(_time(f["stopTime"])),
                "originalMediaDescriptor": f["mediaDescriptor"],
                "mediaUri": self._media_uri(rid, _played_as(f["mediaDescriptor"])),
            }
            for f in body["mediaFiles"]
        ]
        events = [{**e, "occurredAt": time_text(_time(e["occurredAt"]))} for e in body["eventHistory"]]
        self.posted[rid] = upserted(self.posted.get(rid), {**body, "mediaFiles": media, "eventHistory": events})
        self.deleted.discard(rid)
        return web.json_response({"statusCode": 0})

    async def _play(self, request: web.Request) -> web.StreamResponse:
        recording, name = self._found(request), request.match_info["name"]
        for file in recording["mediaFiles"]:
            played = file["mediaUri"].endswith(f"/{name}")
            if played and (body := await self._bytes(recording["id"], file)) is not None:
                return web.Response(body=body, content_type="audio/mpeg")
        raise WrongRequest(6, "NOT_FOUND")

    async def _bytes(self, rid: str, file: Mapping[str, Any]) -> bytes | None:
        for call in self.calls:
            if recording_id(call) == rid:
                for part in self.parts(call):
                    if part.uuid in file["mediaUri"]:
                        return self.body(call, part)[0] if call.ready_at <= self.clock.now() else None
        kept = file["originalMediaDescriptor"]
        if kept["storage"] == "awsS3":
            return self.objects.get(f"{kept['data']['bucket']}/{kept['path']}")
        async with aiohttp.ClientSession() as session, session.get(kept["path"]) as response:
            return await response.read() if response.status == 200 else None

    # -- the storage beside it -----------------------------------------------------------------------------------------

    async def _s3(self, request: web.Request) -> web.StreamResponse:
        body = self.objects.get(request.match_info["path"])
        if "X-Amz-Signature" not in request.query or "Authorization" in request.headers:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        return web.Response(body=body) if body is not None else web.Response(status=404, text="<Error/>")

    async def _dav(self, request: web.Request) -> web.StreamResponse:
        body = self.objects.get(request.match_info["path"])
        wanted = "Basic " + base64.b64encode(b"dav:dav-secret").decode()
        if request.headers.get("Authorization") != wanted:
            return web.Response(status=401)
        return web.Response(body=body) if body is not None else web.Response(status=404)


class Part:
    """One medium of a call: from, to, and from when on the recorder tells of it."""

    def __init__(self, call: Call, number: int, start: datetime, end: datetime, told_at: datetime) -> None:
        self.number = number
        self.start = start
        self.end = end
        self.told_at = told_at
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{call.uuid}/{number}"))


def recording_id(call: Call) -> str:
    return str(call.extra["id"]) if "id" in call.extra else "00PV" + call.uuid.replace("-", "").upper()[:28]


def time_text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}+0000"


def _time(told: str) -> datetime:
    """Epoch milliseconds, a date (GMT) or ISO 8601 with a zone. Raises WrongRequest."""
    try:
        if told.isdecimal():
            return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(told))
        at = datetime.fromisoformat(told)
    except (ValueError, OverflowError, AttributeError):
        raise WrongRequest(2, "no valid date") from None
    if at.tzinfo is None and len(told) > 10:
        raise WrongRequest(2, "no valid date")
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _hidden(clear: bytes) -> tuple[bytes, str]:
    """Bytes that look like an envelope and that nobody can open."""
    return b"\x30\x82" + bytes(b ^ 0xA5 for b in clear), base64.b64encode(clear[:30]).decode()


def _contacts(call: Call) -> list[dict[str, Any]]:
    outside = {"type": "External", "userName": None, "firstName": None, "lastName": None}
    agent = _user(call.agent)
    match call.direction:
        case Direction.INBOUND:
            return [{**outside, "phoneNumber": call.caller}, agent]
        case Direction.OUTBOUND:
            return [agent, {**outside, "phoneNumber": call.callee}]
    other = next(_user(a) for a in AGENTS if a[1] == call.callee)
    return [agent, other] if other != agent else [agent]


def _user(agent: tuple[str, str]) -> dict[str, Any]:
    first, last = agent[0].split()
    return {"type": "User", "userName": f"{agent[1]}@hq", "firstName": first, "lastName": last, "phoneNumber": agent[1]}


def _matches(recording: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    for name in ("callerPhoneNumber", "dialedPhoneNumber"):
        if name in query and not _like(str(recording.get(name, "")), query[name]):
            return False
    if "startTime" in query and not _time(recording["startTime"]) > _time(query["startTime"]):
        return False
    if "endTime" in query and not _time(recording["stopTime"]) < _time(query["endTime"]):
        return False
    contacts = [e["contact"] for e in recording["eventHistory"]]
    names = [str(c.get(n) or "").lower() for c in contacts for n in ("userName", "firstName", "lastName")]
    if "userName" in query:
        wanted = query["userName"].lower()
        every = " and " in wanted
        terms = wanted.split(" and ") if every else wanted.split()
        if not (all if every else any)(any(_like(n, t.strip()) for n in names) for t in terms):
            return False
    values = [str(v) for e in recording["eventHistory"] for v in (e.get("data") or {}).values()]
    return "userData" not in query or any(_like(v, t) for v in values for t in query["userData"].split())


def _like(value: str, wanted: str) -> bool:
    return fnmatch.fnmatchcase(value, wanted.replace("[", "[[]").replace("?", "[?]"))


def upserted(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """The page's two tips: what a POST does to a resource that exists."""
    files: dict[str, Any] = {}
    events: dict[tuple[str, ...], Any] = {}
    for recording in filter(None, (old, new)):
        for file in recording["mediaFiles"]:
            kept = file["originalMediaDescriptor"]
            files[json.dumps([kept["storage"], kept.get("data", {}).get("bucket"), kept["path"]])] = file
        for event in recording["eventHistory"]:
            events[event["occurredAt"], event["event"], event["contact"]["phoneNumber"]] = event
    return {**(old or {}), **new, "mediaFiles": list(files.values()), "eventHistory": list(events.values())}


def _played_as(descriptor: Mapping[str, Any]) -> str:
    where = json.dumps([descriptor["storage"], descriptor.get("data", {}).get("bucket"), descriptor["path"]])
    return f"{uuid.uuid5(uuid.NAMESPACE_URL, where)}.{descriptor['path'].rsplit('.', 1)[-1]}"


def _filled(values: Iterable[Any]) -> bool:
    return all(isinstance(v, str) and v and v == v.strip() for v in values)


def _problem(body: Any) -> str | None:  # noqa: C901 - the page's tables, row by row
    """What of the page's "valid values" a POST breaks, or None."""
    if not isinstance(body, dict):
        return "no JSON object"
    if not _filled(body.get(k) for k in ("id", "callerPhoneNumber", "dialedPhoneNumber", "region")):
        return "id, callerPhoneNumber, dialedPhoneNumber and region are non-empty strings without spaces around"
    for file in body.get("mediaFiles") or [None]:
        if not isinstance(file, dict) or not _filled([file.get("callUUID")]):
            return "mediaFiles must not be empty; each has a callUUID"
        kept = file.get("mediaDescriptor")
        if (
            not isinstance(kept, dict)
            or kept.get("storage") not in {"awsS3", "webDAV"}
            or not _filled([kept.get("path")])
        ):
            return "no valid mediaDescriptor"
        if kept["storage"] == "awsS3" and not _filled([(kept.get("data") or {}).get("bucket")]):
            return "awsS3 needs a bucket"
        try:
            if _time(file["startTime"]) > _time(file["stopTime"]):
                return "it stops before it starts"
        except (KeyError, WrongRequest):
            return "startTime and stopTime are valid dates"
        texts = ("mediaId", "type", "duration", "size", "tenant", "ivrprofile", "pkcs7")
        if not all(isinstance(file.get(k, ""), str) for k in texts) or any(k in file for k in _GET_ONLY):
            return "a value of the wrong type, or one that is for GET only"
    for event in body.get("eventHistory") or [None]:
        contact = event.get("contact") if isinstance(event, dict) else None
        if not isinstance(contact, dict) or event.get("event") not in {"Joined", "Left"}:
            return "eventHistory must not be empty; each event is Joined or Left and has a contact"
        if not _filled([contact.get("phoneNumber")]) or contact.get("type") not in {"User", "External"}:
            return "a contact has a phoneNumber and a type"
        if not {"userName", "firstName", "lastName"} <= set(contact):
            return "each of a contact's names is mandatory, if only empty"
        if contact["type"] == "User" and not _filled(contact.get(k) for k in ("userName", "firstName", "lastName")):
            return "a user has a userName, a firstName and a lastName"
        try:
            _time(event["occurredAt"])
        except (KeyError, WrongRequest):
            return "occurredAt is a valid date"
    return None
