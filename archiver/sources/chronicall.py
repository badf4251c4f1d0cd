"""Xima Chronicall (API v1, on premises) and its successor Xima CCaaS (v2).

Recordings are listed by their start; audio comes one file a request, or many in a ZIP. What neither the vendor's
page (guide.ximasoftware.com/docs/recording-data) nor guide.xima.cloud tells is an option.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..errors import BadData, Busy, NotReady, Overflow, Refused, SourceError, TooSlow, TryAgain
from ..model import Availability, Listing, ListingKey, Medium, Recording, Rejected, Window
from ..ports import Sink
from ..settings.options import Duration, SecretStr, Size, SourceOptions
from ..wire.recorder import Client
from .chronicall_rows import recording
from .kit.rows import EPOCH, MS, integer, listing, looked_up, rejected, segment
from .kit.sinks import Capped, sampled
from .kit.zips import unpack

_SECOND = timedelta(seconds=1)
#: Between two audio requests of a v2 tenant, and until it is worth asking again about an allowance of five days.
_PAUSE, _HOUR = timedelta(seconds=3), timedelta(hours=1)


class ChronicallOptions(SourceOptions):
    #: The authentication key of a Service User.
    token: SecretStr
    #: v1: Chronicall on premises; v2: Xima CCaaS.
    api_version: Literal["v1", "v2"] = "v1"
    #: spx: the recorder's own file; wav: made from it for each request, on the recorder's CPU.
    format: Literal["spx", "wav"] = "spx"
    #: single: one request a recording; zip: one for up to ``batch`` of them.
    fetch: Literal["single", "zip"] = "single"
    batch: int = Field(default=50, ge=2, le=1000)
    #: The longest ZIP, packed or unpacked; it lies in the directory for temporary files meanwhile.
    batch_largest: Size = 2 << 30
    #: Creates a public link that never expires for each recording: off for that reason.
    listen_links: bool = False
    #: How far past a window's end to ask: the longest recording's duration, should the list not go by the start.
    overlap: Duration = _SECOND
    #: None: epoch_ms for v1, iso for v2.
    time_format: Literal["epoch_ms", "iso"] | None = None
    #: Must a downloaded spx have the size that its row tells? Default: with v1.
    check_size: bool = True
    #: None: /rest/api/{api_version}/recordings
    list_path: str | None = Field(default=None, pattern=r"^/[^\s?#]*$")
    #: None: /rest/api/{api_version}/recordings/{key}/audio
    audio_path: str | None = Field(default=None, pattern=r"^/[^\s?#]*\{key\}[^\s?#]*$")
    #: Small: the recorder serves beside recording calls.
    concurrency: int = Field(default=2, ge=1, le=1000)

    @property
    def many_tenants(self) -> bool:
        return self.api_version == "v2"

    @model_validator(mode="before")
    @classmethod
    def _v2_is_another_service(cls, given: Any) -> Any:
        """Xima CCaaS allows one audio request in 3 s per tenant; the sizes of its rows are hardly those of an spx."""
        v2 = isinstance(given, dict) and given.get("api_version") == "v2"
        return {"rate": "1/3s", "check_size": False, **given} if v2 else given


class Chronicall:
    """A recording's id is its recordingKey, ``{uuid}-{start ms}``; its one medium bears the same, unique in a batch."""

    Options: ClassVar[type[ChronicallOptions]] = ChronicallOptions
    listing_key: ClassVar[ListingKey] = ListingKey.START

    def __init__(self, name: str, options: ChronicallOptions, http: Client) -> None:
        self.name = name
        self.batch = options.batch if options.fetch == "zip" else 1
        self.asks_details = options.listen_links
        self._options = options
        self._sized = options.check_size and options.format == "spx"
        #: Has audio ever come? Then check need not try one more, which a tenant's allowance would pay for.
        self._heard = False
        self._api = f"/rest/api/{options.api_version}"
        self._http = http
        http.authorise({"Authorization": f"Bearer {options.token.get_secret_value().strip()}"})

    async def check(self) -> str:
        """List the last hour, and try on one of its recordings what the vendor does not document."""
        now = datetime.now(UTC)
        v2 = self._options.api_version == "v2"
        found, span = (await self.list(Window(now - _HOUR, now))).recordings, "hour"
        if not found and v2:
            # Polled each night, and tried by day: the last hour may well be quiet.
            found, span = (await self.list(Window(now - timedelta(days=1), now))).recordings, "day"
        said = f"Chronicall {self._options.api_version}: {len(found)} recordings in the last {span}"
        if v2 and self._options.format == "wav":
            said = f'warning: format = "wav" is 128 kbit/s, and a tenant\'s allowance is soon used up; {said}'
        if not found:
            return f"{said}; if there were calls, the service user may not see them"
        long = next((r for r in found if (r.duration or timedelta()) >= _SECOND), None)
        if long and self._options.overlap <= _SECOND:
            rows = await self._rows(long.started_at, long.started_at + MS)
            if all(r.recording_id != long.recording_id for r in self._listing(rows).recordings):
                said += "; its list does not go by the start: set overlap to the longest recording's duration"
        ready = next((m for r in found for m in r.media if m.availability is Availability.READY), None)
        nowhere = Capped(io.BytesIO(), self._options.batch_largest, "medium", "batch_largest")
        if ready and self.batch > 1 and not await self.fetch_batch([ready], {ready.media_id: nowhere}):
            said += "; its ZIP export is of no use here: audio will come one by one"
        if ready and v2 and not self._heard:
            said += await self._sample(next(r for r in found if ready in r.media))
        return said

    async def _sample(self, one: Recording) -> str:
        """What comes for a recording, since no page tells what v2 stores."""
        try:
            size, found = await sampled(partial(self.fetch, one.media[0]))
        except (NotReady, TryAgain, BadData) as error:
            return f"; the audio of one can't be had: {error}"
        seconds = (one.duration or found.duration or timedelta()).total_seconds()
        rate = f" ({size / 125 / seconds:.0f} kbit/s)" if seconds else ""
        return (
            f"; one was fetched: {found.content_type}, {size} bytes{rate}, its row tells {integer(one.raw.get('size'))}"
        )

    async def list(self, window: Window) -> Listing:
        """Every recording that starts in the window. There is no paging; too wide a window times out (TooSlow)."""
        try:
            with _statuses(wide=True):
                return self._listing(await self._rows(window.start - _SECOND, window.end + self._options.overlap))
        except NotReady as error:
            if error.status == 204:
                return Listing()
            raise BadData("there is no such list (404): are base_url, list_path and api_version right?") from None

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        """By call keys, ``{uuid}-{start ms}-{end ms}``. Raises Refused where not one call may be seen."""
        refused: list[Rejected] = []
        wanted = {call_id for call_id in call_ids if call_id.strip()}

        async def of_call(call_id: str) -> Listing:
            try:
                with _statuses():
                    rows = await self._http.json("GET", f"{self._api}/calls/{segment(call_id)}/recordings")
            except Refused as error:
                if error.status != 403 or len(refused) + 1 == len(wanted):
                    raise
                refused.append(rejected({"callKey": call_id}, str(error)))
                return Listing()
            return self._listing(rows, call_id)

        answers, failed = await looked_up(call_ids, of_call)
        found = {r.recording_id: r for told in answers.values() for r in told.recordings}
        return Listing([*found.values()], [*refused, *(r for told in answers.values() for r in told.rejected)], failed)

    async def detail(self, recording: Recording) -> Recording:
        """With a new listen link, where those are wanted; that one can't be had keeps no recording back."""
        if not self._options.listen_links or recording.media[0].availability is not Availability.READY:
            return recording
        path = f"{self._api}/recordings/{segment(recording.recording_id)}/external-listen-link"
        try:
            with _statuses():
                answer = await self._http.json("POST", path, limit=1 << 16)
            link = answer.get("listenLink") if isinstance(answer, dict) else None
            told = {"listen_link": link} if link else {"listen_link_error": "the answer holds no listenLink"}
        except SourceError as error:
            told = {"listen_link_error": str(error)}
        return replace(recording, attributes={**recording.attributes, **told})

    def expected(self, medium: Medium) -> Medium:
        """With its size where the options of now compare it."""
        return medium if self._sized else replace(medium, size=None)

    async def fetch(self, medium: Medium, into: Sink) -> None:
        path = self._options.audio_path or f"{self._api}/recordings/{{key}}/audio"
        with _statuses():
            await self._http.download(
                path.replace("{key}", segment(medium.recording_id)), into, params={"format": self._options.format}
            )
        self._heard = True

    async def fetch_batch(self, media: Sequence[Medium], into: Mapping[str, Sink]) -> set[str]:
        """Many media by one ZIP. What is refused, unreadable or doubtful is left for :meth:`fetch`.

        Where the export is too much for the recorder (Overflow), later batches are half as long, at last 1.
        """
        keys, params = {"recordingKeys": [m.recording_id for m in media]}, {"format": self._options.format}
        path, largest = f"{self._api}/recordings/audio", self._options.batch_largest
        with tempfile.TemporaryFile() as file:
            packed = Capped(file, largest, "ZIP", "batch_largest")
            try:
                with _statuses(wide=True):
                    await self._http.download(path, packed, method="POST", json=keys, params=params)
            except Overflow:
                self.batch = max(1, self.batch // 2)
                raise
            except (BadData, NotReady, Refused) as error:
                if isinstance(error, Refused) and error.status != 403:
                    raise
                return set()
            self.batch = min(self._options.batch, self.batch + 1)
            return await unpack(file, media, into, largest)

    async def _rows(self, start: datetime, end: datetime) -> Any:
        default = "epoch_ms" if self._options.api_version == "v1" else "iso"
        iso = (self._options.time_format or default) == "iso"
        span = {"startTime": start, "endTime": end + MS}
        params = {k: t.isoformat(timespec="milliseconds") if iso else (t - EPOCH) // MS for k, t in span.items()}
        return await self._http.json("GET", self._options.list_path or f"{self._api}/recordings", params=params)

    def _listing(self, rows: Any, call_id: str | None = None) -> Listing:
        if not isinstance(rows, list):
            raise TryAgain("the answer is no list of recordings")
        return listing(rows, lambda row: recording(row, call_id=call_id, sized=self._sized))


@contextmanager
def _statuses(*, wide: bool = False) -> Iterator[None]:
    """What statuses mean here, beyond what they mean everywhere. ``wide``: it broke, perhaps, over the long answer."""
    try:
        yield
    except Overflow:
        raise
    except (TryAgain, BadData) as error:
        status, wait = error.status, getattr(error, "retry_after", None)
        if status == 509:
            said = "the tenant's allowance of downloads in five days is used up (509); only Xima's support resets it"
            raise Busy(said, retry_after=max(wait or _HOUR, _HOUR)) from None
        if status == 429:
            raise Busy(str(error), retry_after=max(wait or _PAUSE, _PAUSE)) from None
        if status in {202, 204}:
            waiting = NotReady(str(error))
            waiting.status = status
            raise waiting from None
        if wide and status in {500, 502}:
            raise TooSlow(str(error), retry_after=wait) from None
        raise
