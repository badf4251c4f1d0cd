"""The other direction: tell Genesys Web Services of what is archived, so that it can play it.

POST /recordings as the vendor's page of Nov 2013 describes it. Posting twice changes nothing: a medium is known by
where it lies, an event by its time, kind and phone number.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from pydantic import Field, SecretStr

from ..common.words import one_line
from ..errors import BadData, NotReady, Refused, SourceError, TryAgain
from ..settings.options import Strict
from ..wire.recorder import Client, basic
from .kit.descriptors import describe
from .kit.rows import mapping, moment, text

#: Where a statusCode is no success; any other is tried again.
_MEANING: dict[str, type[SourceError]] = {"1": BadData, "2": BadData, "10": BadData, "6": NotReady}
_MEANING |= dict.fromkeys(("3", "5", "8", "20"), Refused)
#: The parameter by which a recording that we registered is known again.
MARK = "archiver"
#: Any GET names the CSRF header and its value; this one is small.
_ANY = "/me"
_NEVER = {"authorization", "cookie", "host", "content-length", "content-type", "transfer-encoding"}


class AccountOptions(Strict):
    username: str = Field(min_length=1)
    password: SecretStr
    list_path: str = Field(default="/recordings", pattern="^/")
    #: Use the internal twin for OPS admins, of this contact center.
    contact_center: str | None = Field(default=None, pattern=r"^[\w-][\w.-]*$")
    region: str | None = None

    @property
    def recordings_path(self) -> str:
        twin = f"/ops/contact-centers/{self.contact_center}/recordings"
        return twin if self.contact_center else self.list_path


def judged(answer: Any, secret: str = "") -> Mapping[str, Any]:
    """The answer, where its statusCode says success (0, or 7: partial). Raises what any other means.

    Never Gone: NOT_FOUND (6) is also what a server of another region says.
    """
    if not isinstance(answer, Mapping):
        raise BadData("the answer is no JSON object")
    code = answer.get("statusCode", 0)
    if str(code) in {"0", "7"}:
        return answer
    said = (text(answer.get("statusMessage")) or "")[:1000].replace(secret or "\0", "***")[:160]
    told = f"statusCode {str(code)[:20]}" + (f": {said}" if said else "")
    raise _MEANING.get(str(code), TryAgain)(one_line(told))


def moment_text(at: datetime) -> str:
    """As the page writes times: ``2013-05-17T19:45:32.000+0000``."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "+0000")


class Registrar:
    """Posts to one Web Services server. ``http`` keeps cookies: the CSRF token belongs to a session."""

    def __init__(self, options: AccountOptions, http: Client) -> None:
        self._region = options.region or ""
        self._http = http
        self._secret = options.password.get_secret_value()
        self._path = options.recordings_path
        self._csrf: Mapping[str, str] | None = None
        #: Two that ask at once would begin two sessions, and mix their cookies.
        self._asking = asyncio.Lock()
        http.authorise(basic(options.username, self._secret))

    async def acknowledge(self, document: Mapping[str, Any]) -> None:
        """:meth:`register` each medium where its copy in S3 or else WebDAV lies; a file store can't be played from."""
        descriptors: dict[str, Mapping[str, Any]] = {}
        for medium in document.get("media") or ():
            for copy in sorted(medium["copies"], key=lambda copy: str(copy.get("location", {}).get("kind"))):
                if described := describe(copy.get("location", {})):
                    descriptors.setdefault(medium["media_id"], described)
        await self.register(document, descriptors)

    async def register(self, document: Mapping[str, Any], descriptors: Mapping[str, Mapping[str, Any]]) -> bool:
        """Tell of one recording (its JSON): the archived media that have a descriptor, by media_id.

        A descriptor is made by :func:`describe`. Returns False where there is nothing to post: no
        such medium, or a recording that was itself put there by :meth:`register`. May be called again.
        Raises TryAgain, Refused, BadData.
        """
        if not self._region:
            raise BadData("region is mandatory when a recording is posted")
        body = posting(document, descriptors, self._region)
        if body is None:
            return False
        token = await self._token()
        try:
            await self._post(body, token)
        except Refused:
            # The session may have ended, and its token with it.
            await self._post(body, await self._token(stale=token))
        return True

    async def _post(self, body: Mapping[str, Any], token: Mapping[str, str]) -> None:
        how: Any = {"json": body, "headers": token, "accept": frozenset({200, 201, 204})}
        answer = await self._http.beginning("POST", self._path, **how)
        try:
            judged(json.loads(answer) if answer.strip() else {}, self._secret)
        except (ValueError, RecursionError):
            raise TryAgain("the answer to a POST is no JSON") from None

    async def _token(self, stale: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """The header that a POST must carry; none where the server does not protect itself so."""
        async with self._asking:
            if self._csrf is not None and self._csrf is not stale:
                return self._csrf
            async with self._http.request("GET", _ANY, accept=frozenset({200, 404})) as response:
                name, token = response.headers.get("X-CSRF-HEADER", ""), response.headers.get("X-CSRF-TOKEN", "")
            if name and (not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name) or name.lower() in _NEVER):
                raise BadData("X-CSRF-HEADER names no usable header")
            self._csrf = {name: token} if name and token else {}
            return self._csrf


def posting(
    document: Mapping[str, Any], descriptors: Mapping[str, Mapping[str, Any]], region: str
) -> dict[str, Any] | None:
    """The body to post for a recording's JSON; None where there is nothing to post. Raises BadData."""
    started = moment(document.get("started_at"))
    if started is None:
        raise BadData("a recording without a start can't be registered")
    ended = moment(document.get("ended_at")) or started + timedelta(seconds=float(document.get("duration") or 0))
    known = mapping(mapping(document.get("attributes")).get("media")) if document.get("kind") == "genesys" else {}
    if any(MARK in mapping(mapping(told).get("parameters")) for told in known.values()):
        return None
    files = [
        _file(document, medium, mapping(known.get(medium["media_id"])), started, ended)
        | {"mediaDescriptor": dict(descriptors[medium["media_id"]])}
        for medium in document.get("media") or ()
        if medium.get("state") == "archived" and medium["media_id"] in descriptors
    ]
    if not files:
        return None
    return {
        "id": _id(document),
        "callerPhoneNumber": _known(document.get("caller")),
        "dialedPhoneNumber": _known(document.get("callee")),
        "region": region,
        "mediaFiles": files,
        "eventHistory": list(_told_events(document) or _made_events(document, started, max(started, ended))),
    }


def _id(document: Mapping[str, Any]) -> str:
    """Unique over all sources, and the same again each time; plain enough to stand in a path."""
    told = str(document["recording_id"])
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", told)
    if plain != told or len(plain) > 100:
        plain = f"{plain[:80]}-{blake2b(told.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"
    return f"{document['source']}~{plain}"


def _file(
    document: Mapping[str, Any],
    medium: Mapping[str, Any],
    known: Mapping[str, Any],
    started: datetime,
    ended: datetime,
) -> dict[str, Any]:
    """``known`` is what Web Services itself once told of this medium: encryption, masks and rights stay with it."""
    start = moment(known.get("startTime")) or started
    length = timedelta(seconds=float(medium.get("duration") or 0))
    stop = moment(known.get("stopTime")) or (start + length if length else ended)
    parameters = {
        **mapping(known.get("parameters")),
        MARK: str(document["source"]),
        "recordingId": str(document["recording_id"]),
        "sha256": str(medium.get("sha256")),
        **{k: str(document[k]) for k in ("queue", "agent") if document.get(k)},
    }
    if document.get("direction") in {"inbound", "outbound", "internal"}:
        parameters["callType"] = str(document["direction"]).capitalize()
    told = {
        "startTime": moment_text(start),
        "stopTime": moment_text(max(start, stop)),
        "callUUID": _known(known.get("callUUID") or document.get("call_id") or document["recording_id"]),
        "mediaId": f"{_id(document)}_{medium['media_id']}",
        "type": medium.get("content_type"),
        "duration": str(round(length.total_seconds() * 1000)) if length else None,
        "size": str(medium["size"]) if medium.get("size") else None,
        "parameters": parameters,
        **{k: known.get(k) for k in ("tenant", "ivrprofile", "masks", "pkcs7", "certAlias", "partitions")},
        # The page's table says accessgroups, its examples accessgroup.
        "accessgroup": known.get("accessgroups"),
    }
    return {k: v for k, v in told.items() if v not in (None, "", [], {})}


def _told_events(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    parties = {p.get("number"): p for p in _parties(document)}
    return [
        _event(at, what, parties.get(event.get("party"), {"number": event.get("party")}))
        for event in document.get("events") or ()
        if (at := moment(event.get("at"))) and (what := str(event.get("event")).capitalize()) in {"Joined", "Left"}
    ]


def _made_events(document: Mapping[str, Any], started: datetime, ended: datetime) -> Iterator[dict[str, Any]]:
    """eventHistory must not be empty: everyone joins when the recording starts and leaves when it ends."""
    for at, what in ((started, "Joined"), (ended, "Left")):
        for party in _parties(document):
            yield _event(at, what, party)


def _parties(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if document.get("parties"):
        return list(document["parties"])
    agent = re.fullmatch(r"(.*?)\s*(?:\(([^()]*)\))?", str(document.get("agent") or "").strip(), re.DOTALL)
    named = {"name": agent[1], "number": agent[2] or None, "role": "agent"} if agent and agent[1] else {}
    numbers = [n for n in (document.get("caller"), document.get("callee")) if n and n != named.get("number")]
    found: list[Mapping[str, Any]] = [{"number": n, "role": "external"} for n in numbers]
    return [*found, named] if named else found or [{"role": "external"}]


def _event(at: datetime, what: str, party: Mapping[str, Any]) -> dict[str, Any]:
    name, user = (str(party.get(key) or "").strip() for key in ("name", "user"))
    first, _, last = (name or user).partition(" ")
    # A user has all three names; an external contact need not.
    is_user = party.get("role") == "agent" and bool(first)
    contact = {
        "type": "User" if is_user else "External",
        "phoneNumber": _known(party.get("number")),
        "userName": user or (name if is_user else ""),
        "firstName": first,
        "lastName": last.strip() or (first if is_user else ""),
    }
    return {"occurredAt": moment_text(at), "contact": contact, "event": what}


def _known(value: Any) -> str:
    return str(value).strip() or "UNKNOWN" if value is not None else "UNKNOWN"
