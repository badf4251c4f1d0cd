"""How Noojee's recording API is asked: POST only, signed anew each time, errors inside 200 OK.

Facts: "1.0 Authentication" (server time, SHA-256, ten seconds, five at once), "9.4 Retrieve recording list" (one call a
minute). Secrets travel in the query string, so no address enters a message.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

from ..common.words import one_line
from ..errors import BadData, Gone, NotReady, Refused, SourceError, TryAgain
from ..ports import Sink
from ..wire.gate import Gate
from ..wire.recorder import Client
from .kit.sinks import AudioOnly

_POST: dict[str, Any] = {
    "data": b"",
    "headers": {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"},
}
#: The server takes five authentications at once, each for ten seconds; we keep below both.
_AT_ONCE, _STAMP_LIFE = 4, 9.0
_HEAD = 1 << 12
_REMEMBERED = 5
#: No error numbers are published, so the words decide: the first line that fits.
_DELETED = r"(recording|call|leg|file|audio)s?\b.{0,40}(deleted|purged|removed)|no longer (exist|stored)"
_ABSENT = r"not found|not exist|no such|no (matching )?(call|record|leg)|unknown (call|record|leg|tag|unique)"
_MEANINGS: tuple[tuple[type[SourceError], str], ...] = (
    (TryAgain, r"expired|too (many|often)|same time|simultaneous|concurrent|rate limit|busy"),
    (Refused, r"\bhash|authent|authori|api ?key|time ?stamp|denied|permission|forbidden|white.?list"),
    (BadData, r"(method|path|page|service|resource)\b.{0,40}not found|unknown (method|command)"),
    (Gone, _DELETED),
    (NotReady, rf"{_ABSENT}|in progress|not (yet )?(available|ready|finished)"),
)
#: An hour without calls is an empty array; only words as plain as these mean the same.
_QUIET_HOUR = r"\bno (matching )?(call|record|leg)\w*( were| was)? found"


def meaning(text: str) -> SourceError:
    """What the words of an error come to."""
    for kind, words in _MEANINGS:
        if re.search(words, text, re.IGNORECASE):
            return kind(text)
    return TryAgain(text or "an answer of another kind than asked for")


def message(body: bytes) -> str:
    """What an error envelope (or page) says, on one line."""
    text = body.decode("utf-8", "replace")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict):
        text = str(told.get("Message") or told.get("message") or text)
    return one_line(text)


def unwrapped(answer: Any, nothing: str) -> Sequence[Any]:
    """The rows of a 200 OK; none where its words say that there is ``nothing``. Raises what its error comes to."""
    if answer is None or isinstance(answer, list):
        return answer or []
    if not isinstance(answer, dict):
        raise BadData("the answer is neither rows nor an error")
    if "UniqueId" in answer:
        return [answer]
    code = str(answer.get("Code", answer.get("code", "")))
    rows = answer.get("entities")
    if isinstance(rows, list) and not code.startswith("-"):
        return rows
    said = message(json.dumps(answer).encode())
    error = meaning(said)
    if not isinstance(error, NotReady | Gone):
        raise error
    if not re.search(nothing, said, re.IGNORECASE):
        raise TryAgain(said)
    return []


class Api:
    """The calls. Raises only SourceError, with no secret in it."""

    def __init__(
        self, http: Client, *, key: str, by_hash: bool, root: str, time_path: str, hour_interval: timedelta
    ) -> None:
        self._http = http
        self._key = key
        self._by_hash = by_hash
        self._root = root
        self._time_path = time_path
        self._hour_interval = hour_interval
        self._turns = Gate(_AT_ONCE)
        self._hourly = asyncio.Lock()
        self._past: dict[tuple[date, int], tuple[float, Sequence[Any]]] = {}

    async def rows(
        self, method: str, params: Mapping[str, str], nothing: str = f"{_ABSENT}|{_DELETED}"
    ) -> Sequence[Any]:
        """What a method of the recording API answers. Raises NotReady for 404 only."""
        async with self._signed() as auth:
            path = f"{self._root}/RecordingAPI/{method}"
            try:
                answer = await self._http.json("POST", path, params={**params, **auth}, **_POST)
            except Gone as error:
                raise TryAgain(str(error)) from None
            return unwrapped(answer, nothing)

    async def hour(self, day: date, hour: int) -> Sequence[Any]:
        """What ended in an hour of the server's clock; one a minute over all hosts, from the last one's end.

        Neighbouring windows share an hour: what is long past is remembered until the next ones have been asked.
        """
        pause = self._hour_interval
        async with self._hourly:
            now = time.monotonic()
            self._past = {k: v for k, v in self._past.items() if now - v[0] < _REMEMBERED * pause.total_seconds()}
            if (day, hour) in self._past:
                return self._past[day, hour][1]
            asked = {"date": f"{day:%Y/%m/%d}", "hour": str(hour)}
            try:
                async with self._http.gate.listing(pause):
                    rows = await self.rows("retrieveMetaDataByHour", asked, _QUIET_HOUR)
            except Refused:
                raise
            except TryAgain as error:
                error.retry_after = error.retry_after or pause
                raise
            except SourceError as error:
                # Which status a call too many gets is not published; a wrong prefix reads the same.
                raise TryAgain(f"no listing of {day} {hour} h: {error}", retry_after=pause) from None
            if day < datetime.now(UTC).date() - timedelta(days=1):
                self._past[day, hour] = (time.monotonic(), rows)
            return rows

    async def audio(self, path: str, into: Sink) -> None:
        """The bytes of a leg. Raises what an error in their place comes to."""
        audio = AudioOnly(into)
        async with self._signed() as auth:
            await self._http.download(path, audio, method="POST", params=auth, **_POST)
            if said := await audio.finish():
                raise meaning(message(said))

    @asynccontextmanager
    async def _signed(self) -> AsyncIterator[dict[str, str]]:
        """The parameters that authenticate one call, which is to be made within; its errors lose every secret.

        No more turns than the client's gate has places: nobody waits between the server's time and the call. While it
        has none, one waits at the gate itself: a turn that waits for others to come would wait for ever.
        """
        self._turns.limit = max(1, min(_AT_ONCE, self._http.gate.limit) if self._by_hash else self._http.gate.limit)
        async with self._turns.slot():
            signed_at = time.monotonic()
            try:
                if self._by_hash:
                    stamp = await self._server_time()
                    signed_at = time.monotonic()
                    digest = hashlib.sha256(f"{self._key}:{stamp}".encode()).hexdigest()
                    yield {"timeStamp": stamp, "hash": digest}
                else:
                    yield {"apiKey": self._key}
            except SourceError as error:
                late = self._by_hash and time.monotonic() - signed_at > _STAMP_LIFE
                if isinstance(error, Refused) and (late or isinstance(meaning(str(error)), TryAgain)):
                    raise TryAgain(self._hidden(str(error))) from None
                error.args = (self._hidden(str(error)),)
                raise

    def _hidden(self, text: str) -> str:
        for length in range(len(self._key), min(7, len(self._key) - 1), -1):
            text = text.replace(self._key[:length], "***").replace(quote(self._key[:length], safe=""), "***")
        text = re.sub(r"(?i)(api_?key|hash)(\W{0,2}[=:]\W{0,2})[^\s&]+", r"\1\2***", text)
        return re.sub(r"[0-9A-Fa-f]{16,}", "***", text)

    async def _server_time(self) -> str:
        """The server's own clock, as it writes it. Its errors say nothing of the call that is to follow."""
        try:
            said: object = message(await self._http.beginning("POST", self._time_path, limit=_HEAD, **_POST))
            if re.fullmatch("[0-9]{9,19}", str(said)):
                return str(said)
            if isinstance(meaning(str(said)), Refused):
                raise Refused(str(said))
        except (NotReady, Gone, BadData) as error:
            said = error
        raise TryAgain(f"the server tells no time at {self._time_path}; is time_path right? ({said})")
