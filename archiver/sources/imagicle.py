"""Imagicle Call Recording (UCX Suite, formerly IAS): the Recordings WebAPI.

Facts: the vendor's pages Get Recordings List (628), Get Recording (536) and Download Recording (540), and its OpenAPI
file of 2025.Winter.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar

import structlog
from pydantic import Field

from ..errors import BadData, NotReady, Overflow, Refused, TryAgain
from ..model import Listing, ListingKey, Medium, Recording, Window
from ..ports import Sink
from ..settings.options import Duration, SecretStr, SourceOptions
from ..wire.recorder import Client, basic
from .imagicle_rows import HashCheck, guid, has_zone, read
from .kit.rows import UNREADABLE, listing, segment, text
from .kit.sinks import Measured

log = structlog.get_logger()

_JSON = {"Accept": "application/json", "Content-Type": "application/json"}


class ImagicleOptions(SourceOptions):
    #: A suite account; without the administrator role its listings are silently partial.
    username: str = Field(pattern="^[^:]+$")
    password: SecretStr
    #: Rows of one page; the vendor names no maximum.
    page_size: int = Field(default=100, ge=1)
    #: What the detail tells of size and SHA-256: strict refuses other bytes, warn logs them, off takes any.
    hash_check: HashCheck = "strict"
    list_path: str = Field(default="/fw/Apps/Recorder/WebAPI/Recordings", pattern="^/")
    #: The name below a recording, or a whole path that holds {id}.
    media_path: str = Field(default="Media", pattern=r"^([^/{}?#]+|/[^{}?#]*\{id\}[^{}?#]*)$")
    #: Ask for endTime=between: with this text, such as "{start},{end}"; else for startTime=after: and endTime=before:.
    between: str = ""
    #: Asked for beyond a window on both sides: nobody says whether the vendor's bounds are inclusive.
    overlap: Duration = Field(default=timedelta(seconds=1), ge=timedelta(seconds=1))
    #: How often a listing is begun anew where rows came or went between its pages.
    restarts: int = Field(default=4, ge=0)
    #: A window that holds more rows is halved.
    most_rows: int = Field(default=100_000, ge=1)
    #: Each listing also reads the longest_call before it, so long windows ask for less.
    window: Duration = timedelta(hours=24)


class Imagicle:
    """Lists by the end of the call; a recording has one medium, ``audio``."""

    Options: ClassVar[type[ImagicleOptions]] = ImagicleOptions
    listing_key: ClassVar[ListingKey] = ListingKey.END

    def __init__(self, name: str, options: ImagicleOptions, http: Client) -> None:
        self._name = name
        self._options = options
        self._http = http
        self._list = options.list_path.rstrip("/")
        http.authorise(basic(options.username, options.password.get_secret_value()))

    async def check(self) -> str:
        """Lists one short page; the line begins with ``warning:`` where the account seems to see too little."""
        account = self._options.username
        rows, total = await self._page({"page": 0, "pageSize": min(25, self._options.page_size)})
        owners = {text(row.get("ownerUsername")) for row in rows if isinstance(row, dict)}
        owner = next(iter(owners)) if len(owners) == 1 else None
        if owner is not None and _bare(owner) == _bare(account):
            _, own = await self._page({"page": 0, "pageSize": 1, "ownerUsername": owner})
            if own is not None and own == total:
                return f"warning: only recordings of {account} are visible: the account needs the administrator role"
        if not rows:
            return f"warning: {account} sees no recordings: if there are any, the account needs the administrator role"
        told = f"logged in as {account}: {'some' if total is None else total} recordings visible"
        if any(guid(row) and not has_zone(row) for row in rows):
            told += f", times without a zone are read as {self._options.zone.key} (timezone)"
        return told

    async def list(self, window: Window) -> Listing:
        """Rows by end time, newest first; begun anew where some came or went between two pages."""
        for _ in range(self._options.restarts):
            with suppress(_Moved):
                return self._listing(await self._rows(self._filters(window)), window)
        return self._listing(await self._rows(self._filters(window)), window)

    async def detail(self, recording: Recording) -> Recording:
        """Adds size, hash, owner, note, preserving user and the PBX's call id. Raises NotReady, BadData, Refused."""
        answer = await self._get(self._of(recording.media[0]))
        if not isinstance(answer, dict) or "id" not in answer:
            raise TryAgain("the answer holds no recording")
        try:
            whole = self._recording({**recording.raw, **answer})
        except UNREADABLE as error:
            raise BadData(f"its detail can't be read ({error})") from None
        if whole.recording_id != recording.recording_id:
            raise BadData("it answered with the detail of another recording")
        return whole

    def expected(self, medium: Medium) -> Medium:
        """With the facts that bind under the hash_check of now, wherever that of its listing kept them."""
        if self._options.hash_check != "strict":
            return replace(medium, size=None, sha256=None)
        size = medium.ref.get("size") if medium.size is None else medium.size
        sha256 = medium.ref.get("sha256") if medium.sha256 is None else medium.sha256
        return replace(medium, size=size, sha256=sha256)

    async def fetch(self, medium: Medium, into: Sink) -> None:
        """One GET and no other: the vendor writes an audit event for each."""
        path = f"{self._of(medium)}/{self._options.media_path}"
        if self._options.media_path.startswith("/"):
            path = self._options.media_path.replace("{id}", _quoted(medium))
        if "sha256" not in medium.ref and "size" not in medium.ref:
            await self._http.download(path, into)
            return
        measured = Measured(into)
        await self._http.download(path, measured)
        found = {"size": measured.size, "sha256": measured.digest.hexdigest()}
        told = {fact: medium.ref[fact] for fact in found if fact in medium.ref}
        if told != {fact: found[fact] for fact in told}:
            log.warning("imagicle told other facts", source=self._name, id=medium.recording_id, told=told, found=found)

    def _filters(self, window: Window) -> dict[str, str]:
        start = _iso(window.start - self._options.overlap)
        end = _iso(window.end + self._options.overlap + timedelta(microseconds=999_999))
        if self._options.between:
            return {"endTime": "between:" + self._options.between.replace("{start}", start).replace("{end}", end)}
        begun = _iso(window.start - self._options.overlap - self._options.longest_call)
        return {"startTime": f"after:{begun}", "endTime": f"before:{end}"}

    async def _rows(self, filters: Mapping[str, str]) -> Sequence[Any]:
        """Every row, to the list's natural end. Raises _Moved where the pages do not fit together.

        Rows count once by id: one pushed to the next page comes twice, one that slipped to an earlier page is missing.
        """
        rows: dict[str, Any] = {}
        first: int | None = None
        size = self._options.page_size
        for page in count():
            found, total = await self._page({"page": page, "pageSize": size, **filters})
            first = total if page == 0 else first
            if total != first:
                raise _Moved(f"recordings came or went while it listed them (totalCount {first}, then {total})")
            if max(len(rows), total or 0) > self._options.most_rows:
                raise Overflow(f"the window holds more than {self._options.most_rows} rows (most_rows)")
            before = len(rows)
            rows |= {guid(row) or f"{page}/{n}": row for n, row in enumerate(found)}
            # A short page is not the end while totalCount promises more (the recorder may cap pageSize); nor is a
            # full one, whatever totalCount says.
            if not found or (total is not None and len(rows) >= total and len(found) < size):
                break
            if len(rows) == before:
                raise _Moved(f"page {page} repeats earlier ones")
        if first is not None and len(rows) < first:
            raise _Moved(f"the recorder counts {first} recordings, but its pages held {len(rows)}")
        return list(rows.values())

    async def _page(self, params: Mapping[str, str | int]) -> tuple[Sequence[Any], int | None]:
        try:
            answer = await self._get(self._list, params)
        except NotReady as error:
            raise BadData(f"there is no list of recordings here, is list_path right? ({error})") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("recordings"), list):
            raise TryAgain("the answer holds no list of recordings")
        total = answer.get("totalCount")
        return answer["recordings"], total if isinstance(total, int) else None

    async def _get(self, path: str, params: Mapping[str, str | int] | None = None) -> Any:
        try:
            return await self._http.json("GET", path, params=params, headers=_JSON)
        except TryAgain as error:
            if params is not None and error.status == 504:
                raise Overflow(f"{error} (the query took too long)", retry_after=error.retry_after) from None
            if error.status == 501:
                raise Refused(f"{error} (the licence of Call Recording is not valid)") from None
            raise

    def _of(self, medium: Medium) -> str:
        return f"{self._list}/{_quoted(medium)}"

    def _listing(self, rows: Sequence[Any], window: Window) -> Listing:
        def read_if_in(row: Any) -> Recording | None:
            recording = self._recording(row)
            # The filter lets in what ended up to longest_call before; a time without a zone proves nothing.
            ended = recording.ended_at
            inside = ended is None or ended >= window.start - self._options.overlap or not has_zone(row)
            return recording if inside else None

        return listing(rows, read_if_in)

    def _recording(self, row: Mapping[str, Any]) -> Recording:
        return read(row, self._options.zone, self._options.hash_check)


class _Moved(TryAgain):
    """The list changed between its pages."""


def _bare(account: str) -> str:
    return account.split("\\")[-1].split("@")[0].casefold()


def _quoted(medium: Medium) -> str:
    """The id as the vendor wrote it, for a path."""
    return segment(str(medium.ref.get("id", medium.recording_id)))


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
