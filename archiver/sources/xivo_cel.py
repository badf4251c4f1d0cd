"""XiVO's channel events (CEL), read by id: pages of rows become documents of JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any
from zoneinfo import ZoneInfo

from ..errors import BadData, Gone, TryAgain
from ..model import Medium, Recording, Rejected
from ..ports import Sink
from ..wire.recorder import Client
from .kit.localtime import made_at, utc
from .kit.rows import EPOCH, UNREADABLE, as_told, rejected, text

_NDJSON = "application/x-ndjson"
#: Asterisk's name of the event, and the one in the vendor's example.
_ENDS = {"LINKEDID_END", "LINKED_END"}

#: Each with its id, in the order of ids.
Rows = list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    document: Recording
    #: The linkedids of the calls that ended within it.
    ended: list[str]
    rejected: list[Rejected]
    #: The id after its last row, and whether rows may follow it that can be read at once.
    next: int
    more: bool


class ChannelEvents:
    def __init__(self, http: Client, path: str, zone: ZoneInfo, limit: int) -> None:
        self._http = http
        self._path = path
        self._zone = zone
        self._limit = limit

    async def page(self, at: int, settle: timedelta) -> Page | None:
        """The rows from that id up to the first that is younger than ``settle``; None where there is none.

        An id is given out before its row is written: a row beside the newest may still be missing.
        """
        rows, rejected = await self.rows(at, self._limit)
        now = datetime.now(UTC)
        times = {number: self._time(row) for number, row in rows}
        taken = list(takewhile(lambda r: abs(now - times[r[0]]) >= settle, rows))
        if not taken:
            return None
        first, last = taken[0][0], taken[-1][0]
        span = sorted(times[number] for number, _ in taken)
        medium = Medium(
            recording_id=f"cel-{first}-{last}",
            media_id="cel",
            opaque=True,
            content_type=_NDJSON,
            ref={"from": first, "last": last, "count": len(taken)},
        )
        document = Recording(
            recording_id=medium.recording_id,
            started_at=span[0],
            ended_at=span[-1],
            media=(medium,),
            raw={"cel": {"first": first, "last": last, "count": len(taken)}},
        )
        ended = [i for _, row in taken if text(row.get("eventtype")) in _ENDS and (i := as_told(row.get("linkedid")))]
        # Not "a full page": a server may hold a page shorter than it was asked for.
        more = len(taken) == len(rows)
        return Page(document=document, ended=ended, rejected=rejected, next=last + 1, more=more)

    async def rows(self, at: int, limit: int) -> tuple[Rows, list[Rejected]]:
        """At most so many rows from that id on, and what nobody could read.

        Asked from one id before: the vendor's example has from=10 and answers 11, so it may mean "after".
        """
        params = {"from": max(at - 1, 0), "limit": limit + 1}
        answer = await self._http.json("GET", self._path, params=params, headers={"Accept": "application/json"})
        if not isinstance(answer, list):
            raise BadData("its answer holds no list of channel events")
        rows, odd = [], []
        for row in answer:
            number = text(row.get("id")) if isinstance(row, dict) else None
            if number and re.fullmatch(r"\d{1,18}", number, re.ASCII):
                rows.append((int(number), row))
            else:
                odd.append(rejected(row, "the channel event has no usable id"))
        rows.sort(key=lambda row: row[0])
        if rows[0][0] < at - 1 if rows else odd:
            raise TryAgain("its channel events are not those that were asked for")
        return [row for row in rows if row[0] >= at][:limit], odd

    def _time(self, row: Mapping[str, Any]) -> datetime:
        """When it happened; where it does not say, its channel's epoch, or 1970."""
        made = made_at(str(row.get("uniqueid") or ""))
        try:
            return utc(row.get("eventtime"), self._zone, made)[0]
        except UNREADABLE:
            return made or EPOCH

    async def fetch(self, medium: Medium, into: Sink) -> None:
        """The rows of a document as JSON lines, with any that was written late between them.

        Raises Gone where all were purged, TryAgain where some are missing.
        """
        # A catalog that was rebuilt from manifests knows the ids only.
        _, first, final = medium.recording_id.split("-")
        known = {"from": first, "last": final, "count": 1, **medium.ref}
        at, last, count = (int(known[k]) for k in ("from", "last", "count"))
        into.told(content_type=_NDJSON)
        found, answered = 0, False
        while at <= last:
            rows, _ = await self.rows(at, min(self._limit, last - at + 2))
            if not rows:
                break
            answered = True
            wanted = [row for number, row in rows if number <= last]
            await into.write("".join(json.dumps(row, sort_keys=True) + "\n" for row in wanted).encode())
            found += len(wanted)
            at = rows[-1][0] + 1
        if answered and not found:
            raise Gone("the recorder has purged these channel events")
        if found < count:
            raise TryAgain(f"it holds {found} of these {count} channel events")
