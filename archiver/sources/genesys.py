"""Genesys Web Services and Interaction Recording Web Services: ``GET /recordings`` (the vendor's page of Nov 2013).

A search finds what started after ``startTime`` and ended before ``endTime``, both: a call that crosses a window's edge
needs a span that begins ``longest_call`` earlier. Rows come by the hundred, in no stated order.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from yarl import URL

from ..descriptors import MediaOptions, Storage, opened
from ..errors import BadData, NotReady, SourceError, TryAgain
from ..http import Client, basic, below
from ..model import Listing, ListingKey, Medium, Recording, Window
from ..options import Duration, SourceOptions
from ..ports import Sink
from ..rows import listing, segment, text
from ..sinks import AudioOnly
from ..targets.genesys import AccountOptions, Registrar, judged, moment_text
from .genesys_rows import (
    address,
    goes_on,
    merged,
    named_id,
    next_page,
    recording,
    registered,
    row_id,
    rows_of,
    stopped,
    too_deep,
)

_PASSES = 5


class GenesysOptions(SourceOptions, AccountOptions, MediaOptions):
    window: Duration = timedelta(hours=8)
    poll: str = "15m"
    settle: Duration = timedelta(minutes=5)
    concurrency: int = Field(default=2, ge=1, le=1000)
    #: Where a medium is played whose own address is on another host.
    play_path: str = Field(default="/recordings/{id}/play/{name}", pattern=r"^/[^{}]*\{id\}[^{}]*\{name\}[^{}]*$")
    page_size: int = Field(default=100, ge=1, le=100)
    time_format: Literal["epoch_ms", "iso"] = "epoch_ms"
    #: Sent as ``fields``, where a server answers with URIs unless it is asked for more ("*").
    fields: str | None = None
    #: Added at both ends of the span that is asked for: "after" and "before" may be exclusive.
    overlap: Duration = timedelta(seconds=1)
    #: A listing that reaches this offset is halved.
    deepest_offset: int = Field(default=5000, ge=1)
    #: Which media must have the ``size`` that the API tells: those not encrypted, all, none.
    sizes: Literal["clear", "always", "never"] = "clear"
    #: Fetch media from other hosts, without credentials, where an answer names such.
    foreign_media: bool = False
    #: Leave out recordings that ``register`` put there.
    skip_registered: bool = False
    #: Tell Web Services of what was archived from any recorder, as recordings of ``region`` (archiver/targets).
    register_archived: bool = Field(default=False, alias="register")

    @property
    def sees_as(self) -> str:
        return f"{self.username} {self.contact_center}" if self.contact_center else self.username

    @model_validator(mode="after")
    def _region_is_mandatory(self) -> Self:
        if self.register_archived and not self.region:
            raise ValueError("register needs region: a recording is posted with one")
        return self


class Genesys:
    Options: ClassVar[type[GenesysOptions]] = GenesysOptions
    listing_key: ClassVar[ListingKey] = ListingKey.END
    #: The session's and the load balancer's.
    cookies: ClassVar[bool] = True

    #: What is registered may come from any recorder.
    hears_all: ClassVar[bool] = True

    def __init__(self, name: str, options: GenesysOptions, http: Client) -> None:
        self.name = name
        self.acknowledges = options.register_archived
        self._registrar = Registrar(options, http)
        self._options = options
        self._http = http
        self._secret = options.password.get_secret_value()
        self._storage = Storage(options, options, http)
        http.authorise(basic(options.username, self._secret))
        self._path = options.recordings_path
        # The page asks for lists at /recordings/recordings too, for one recording at /recordings/{id} only.
        self._one_path = re.sub(r"(/recordings)+$", "/recordings", self._path)

    async def check(self) -> str:
        rows = rows_of(await self._search(self._path, {"startTime": 0, "limit": 1}))
        region = next((text(r.get("region")) for r in rows if isinstance(r, Mapping)), None)
        seen = f"some of region {region}" if region else "some" if rows else "none"
        try:
            version = text((await self._http.json("GET", "/diagnostics/version"))["version"])
        except (SourceError, KeyError, TypeError):
            version = None
        return f"Web Services {(version or 'of unknown version')[:40]}, logged in; recordings: {seen[:80]}"

    async def list(self, window: Window) -> Listing:
        rows: dict[str, Any] = {}
        for again in range(_PASSES):
            known = len(rows)
            steady = await self._read(window, rows)
            # Where rows moved once, only a pass that brings nothing new ends it.
            if len(rows) == known or (steady and not again):
                break
        else:
            raise TryAgain("rows keep moving from page to page")

        def read_if_in(row: Any) -> Recording | None:
            found, ended = self._recording(row), stopped(row, self._options.zone)
            early = ended is not None and ended < window.start - self._options.overlap
            return None if early or (self._options.skip_registered and registered(row)) else found

        return listing(rows.values(), read_if_in)

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        """By recording id. NOT_FOUND yields none: the id is unknown, or of another region."""
        rows = [await self._one(f"{self._path}/{segment(call_id)}") for call_id in call_ids]
        try:
            return Listing([self._recording(row) for row in rows if row is not None])
        except (ValueError, TypeError, AttributeError) as error:
            raise BadData(str(error)[:200]) from None

    async def fetch(self, medium: Medium, into: Sink) -> None:
        audio = AudioOnly(into)
        if self._options.direct and "storage" in medium.ref:
            await self._storage.fetch(medium.ref["storage"], audio)
        elif "at" in medium.ref:
            await self._http.download(str(medium.ref["at"]), audio)
        else:
            raise NotReady("the recording names no address of this medium that is on the configured host")
        if (said := await audio.finish()) is not None:
            raise self._not_audio(said)

    def _not_audio(self, said: bytes) -> SourceError:
        try:
            judged(json.loads(said), self._secret)
        except SourceError as error:
            return error
        except (ValueError, RecursionError):
            return TryAgain("it answered text in place of audio")
        return TryAgain("it answered JSON in place of audio")

    def decrypted(self, document: Mapping[str, Any], media_id: str, data: bytes) -> bytes:
        """The clear bytes of an archived medium (``document``: its recording's JSON); ``data`` where it is clear.

        Blocking. Raises cms.Undecipherable.
        """
        told = (document.get("attributes") or {}).get("media", {}).get(media_id, {})
        return opened(self._options, told, data)

    async def acknowledge(self, document: Mapping[str, Any]) -> None:
        await self._registrar.acknowledge(document)

    # -- the search --------------------------------------------------------------------------------------------------

    async def _read(self, window: Window, rows: dict[str, Any]) -> bool:
        """One pass over all pages into ``rows`` (by id). False where a row may have slipped between two pages."""
        o, offset, seen, back, steady = self._options, 0, 0, 0, True
        asked = {
            "startTime": self._moment(window.start - o.longest_call - o.overlap),
            "endTime": self._moment(window.end + o.overlap),
            **({"fields": o.fields} if o.fields else {}),
            "limit": o.page_size,
        }
        path, params, before = self._path, {**asked, "offset": 0}, list[str]()
        while True:
            answer = await self._search(path, params)
            page = rows_of(answer)
            ids = [row_id(row) for row in page]
            if page and ids == before:
                raise TryAgain("the next page is the same again")
            steady &= not back or goes_on(before, ids)
            for key, row in zip(ids, await self._whole(page), strict=True):
                rows[key] = merged(rows[key], row) if key in rows else row
            # A partial success (7) names what failed: no recordings, so they end among the rejected rows.
            rows.update({json.dumps(entry): entry for entry in answer.get("failed") or ()})
            onward = next_page(self._http.base, self._path, answer.get("nextUri"))
            if not page or (onward is None and len(page) < o.page_size):
                return steady
            offset, seen = offset + len(page), seen + len(page)
            if offset >= o.deepest_offset or seen > 2 * o.deepest_offset:
                raise too_deep(window, o.longest_call, o.deepest_offset)
            # A page begins with the last row of the one before: is it not there, then rows have moved up.
            offset -= (back := 1 if len(page) > 1 else 0)
            path, params, before = self._path, {**asked, "offset": offset}, ids
            if onward is not None:
                there = URL(onward, encoded=True).query.get("offset")
                if there is not None and (not there.isdecimal() or int(there) < offset + back):
                    raise TryAgain("nextUri leads back")
                back = back if there is not None else 0
                path = onward if there is None else str(URL(onward, encoded=True).update_query(offset=offset))
                params = {}

    async def _search(self, path: str, params: Mapping[str, str | int]) -> Mapping[str, Any]:
        try:
            return judged(await self._http.json("GET", path, params=params), self._secret)
        except NotReady as error:
            raise BadData(f"no recordings there ({error}); see base_url, list_path, contact_center") from None

    async def _whole(self, page: Iterable[Any]) -> Sequence[Any]:
        """The rows; what is but a URI (``uris``) is read by itself."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._entry(row)) for row in page]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _entry(self, row: Any) -> Any:
        if not isinstance(row, str):
            return row
        told = named_id(row)
        for path in filter(None, (told and f"{self._one_path}/{told}", below(self._http.base, row))):
            if (found := await self._one(path)) is not None:
                return found
        return f"it was listed, but is not found: {row}"

    async def _one(self, path: str) -> Any:
        try:
            answer = judged(await self._http.json("GET", path), self._secret)
        except NotReady:
            return None
        return answer.get("recording", answer)

    def _moment(self, at: datetime) -> str | int:
        at = max(at, datetime.fromtimestamp(0, UTC))
        return moment_text(at) if self._options.time_format == "iso" else int(at.timestamp() * 1000)

    def _recording(self, row: Any) -> Recording:
        o, base = self._options, self._http.base

        def where(recording_id: str, file: Mapping[str, Any]) -> str | None:
            def play(name: str) -> str:
                return o.play_path.format(id=segment(recording_id), name=name)

            return address(base, file, play, foreign=o.foreign_media)

        return recording(row, where, sizes=o.sizes, zone=o.zone)
