"""Searching Genesys Web Services: pages, rows that move between them, rows that are but addresses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from yarl import URL

from ..errors import BadData, NotReady, Overflow, SourceError, TryAgain
from ..model import Window
from ..wire.recorder import Client, below
from .genesys_addresses import named_id, next_page
from .genesys_register import judged, moment_text
from .genesys_rows import merged, row_id, rows_of
from .kit.rows import alone

if TYPE_CHECKING:
    from .genesys import GenesysOptions


class Search:
    """The list of one server."""

    def __init__(self, options: GenesysOptions, http: Client) -> None:
        self._options = options
        self._http = http
        self._secret = options.password.get_secret_value()
        self.path = options.recordings_path
        # The page asks for lists at /recordings/recordings too, for one recording at /recordings/{id} only.
        self.one_path = re.sub(r"(/recordings)+$", "/recordings", self.path)

    async def read(self, window: Window, rows: dict[str, Any]) -> bool:
        """One pass over all pages into ``rows`` (by id). False where a row may have slipped between two pages."""
        o, offset, seen, back, steady = self._options, 0, 0, 0, True
        asked = {
            "startTime": self._moment(window.start - o.longest_call - o.overlap),
            "endTime": self._moment(window.end + o.overlap),
            **({"fields": o.fields} if o.fields else {}),
            "limit": o.page_size,
        }
        path, params, before = self.path, {**asked, "offset": 0}, list[str]()
        while True:
            answer = await self.page(path, params)
            page = rows_of(answer)
            ids = [row_id(row) for row in page]
            if page and ids == before:
                raise TryAgain("the next page is the same again")
            steady &= not back or goes_on(before, ids)
            for key, row in zip(ids, await self._whole(page), strict=True):
                if not isinstance(row, SourceError):
                    rows[key] = merged(rows[key], row) if key in rows else row
                else:
                    rows.setdefault(key, row)
            # A partial success (7) names what failed: no recordings, so they end among the rejected rows.
            rows.update({json.dumps(entry): entry for entry in answer.get("failed") or ()})
            onward = next_page(self._http.base, self.path, answer.get("nextUri"))
            if not page or (onward is None and len(page) < o.page_size):
                return steady
            offset, seen = offset + len(page), seen + len(page)
            if offset >= o.deepest_offset or seen > 2 * o.deepest_offset:
                raise too_deep(window, o.longest_call, o.deepest_offset)
            # A page begins with the last row of the one before: is it not there, then rows have moved up.
            offset -= (back := 1 if len(page) > 1 else 0)
            path, params, before = self.path, {**asked, "offset": offset}, ids
            if onward is not None:
                there = URL(onward, encoded=True).query.get("offset")
                if there is not None and (not there.isdecimal() or int(there) < offset + back):
                    raise TryAgain("nextUri leads back")
                back = back if there is not None else 0
                path = onward if there is None else str(URL(onward, encoded=True).update_query(offset=offset))
                params = {}

    async def page(self, path: str, params: Mapping[str, str | int]) -> Mapping[str, Any]:
        try:
            return judged(await self._http.json("GET", path, params=params), self._secret)
        except NotReady as error:
            raise BadData(f"no recordings there ({error}); see base_url, list_path, contact_center") from None

    async def _whole(self, page: Iterable[Any]) -> Sequence[Any]:
        """The rows; what is but a URI (``uris``) is read by itself, and an error stands for one that fails alone."""

        async def entry(row: Any) -> Any:
            try:
                return await self._entry(row)
            except SourceError as error:
                if not alone(error):
                    raise
                return error

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(entry(row)) for row in page]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        rows = [task.result() for task in tasks]
        if len(rows) > 1 and all(isinstance(row, SourceError) for row in rows):
            raise rows[0]
        return rows

    async def _entry(self, row: Any) -> Any:
        if not isinstance(row, str):
            return row
        told = named_id(row)
        for path in filter(None, (told and f"{self.one_path}/{told}", below(self._http.base, row))):
            if (found := await self.one(path)) is not None:
                return found
        return f"it was listed, but is not found: {row}"

    async def one(self, path: str) -> Any:
        try:
            answer = judged(await self._http.json("GET", path), self._secret)
        except NotReady:
            return None
        return answer.get("recording", answer)

    def _moment(self, at: datetime) -> str | int:
        at = max(at, datetime.fromtimestamp(0, UTC))
        return moment_text(at) if self._options.time_format == "iso" else int(at.timestamp() * 1000)


def goes_on(before: Sequence[str], after: Sequence[str]) -> bool:
    """Does a page go on where the one before left off, its last row told again, perhaps below new ones in front?"""
    if before[-1] not in after:
        return False
    again = after.index(before[-1]) + 1
    return list(after[:again]) == list(before[-again:])


def too_deep(window: Window, longest_call: timedelta, deepest: int) -> TryAgain:
    """Overflow; plain TryAgain where halving would not help, since the span begins longest_call earlier anyhow."""
    what = f"more than {deepest} recordings from {window.start - longest_call} to {window.end}"
    if window.length * 4 <= longest_call:
        return TryAgain(f"{what}; shorten longest_call, or raise deepest_offset if the server allows it")
    return Overflow(what)
