"""Acme Voice: lists calls by their start, 500 a page at most; one WAV a call."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import quote

from archiver.errors import Overflow, TryAgain
from archiver.model import Availability, Direction, Listing, ListingKey, Medium, Recording, Rejected, Window
from archiver.ports import Sink
from archiver.settings.options import SecretStr, SourceOptions
from archiver.wire.recorder import Client
from pydantic import Field

EPOCH, MS, SECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1), timedelta(seconds=1)
DIRECTIONS = {"in": Direction.INBOUND, "out": Direction.OUTBOUND, "internal": Direction.INTERNAL}
STATES = {"done": Availability.READY, "deleted": Availability.DELETED}


class AcmeOptions(SourceOptions):
    #: The key of an account that may hear every call.
    token: SecretStr
    page_size: int = Field(default=500, ge=1, le=500)


class Acme:
    Options: ClassVar[type[AcmeOptions]] = AcmeOptions
    listing_key: ClassVar[ListingKey] = ListingKey.START

    def __init__(self, name: str, options: AcmeOptions, http: Client) -> None:
        self._options, self._http = options, http
        http.authorise({"X-Acme-Key": options.token.get_secret_value()})

    async def check(self) -> str:
        page = await self._page({"limit": 1})
        return "logged in, " + ("sees calls" if page["calls"] else "sees no calls; may this account hear every call?")

    async def list(self, window: Window) -> Listing:
        # Nobody says whether the bounds belong to the span: ask for a second more on both sides.
        asked = {"from": (window.start - SECOND - EPOCH) // MS, "to": (window.end + SECOND - EPOCH) // MS}
        asked["limit"] = self._options.page_size
        onward: dict[str, str] = {}
        recordings, rejected = [], []
        for _ in range(1000):
            page = await self._page({**asked, **onward})
            for row in page["calls"]:
                try:
                    recordings.append(recording(row))
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    rejected.append(Rejected(raw=json.dumps(row)[:4096], reason=f"{type(error).__name__}: {error}"))
            if page.get("next") is None:
                return Listing(recordings, rejected)
            onward = {"after": str(page["next"])}
        raise Overflow("the listing has more than 1000 pages")

    async def fetch(self, medium: Medium, into: Sink) -> None:
        await self._http.download(f"/api/calls/{quote(medium.recording_id, safe='')}/audio", into)

    async def _page(self, params: dict[str, Any]) -> dict[str, Any]:
        page = await self._http.json("GET", "/api/calls", params=params)
        if isinstance(page, dict) and isinstance(page.get("calls"), list):
            return page
        raise TryAgain("the answer is no page of calls")


def recording(row: dict[str, Any]) -> Recording:
    """Raises KeyError, TypeError, ValueError, OverflowError where the row can't be read."""
    call_id, start, length = str(row["id"]), EPOCH + row["start_ms"] * MS, row["length_ms"] * MS
    caller, callee, agent = (None if row.get(n) is None else str(row[n]) for n in ("from", "to", "agent"))
    told = {"size": int(row["bytes"]), "sha256": str(row["sha256"]), "duration": length}
    state = STATES.get(row["state"], Availability.NOT_READY)
    return Recording(
        recording_id=call_id, call_id=call_id, started_at=start, ended_at=start + length, duration=length,
        direction=DIRECTIONS.get(str(row.get("direction")), Direction.UNKNOWN), caller=caller, callee=callee,
        agent=agent, media=(Medium(recording_id=call_id, media_id="audio", availability=state, **told),), raw=row,
    )  # fmt: skip
