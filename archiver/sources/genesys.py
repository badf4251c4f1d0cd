"""Genesys Web Services and Interaction Recording Web Services: ``GET /recordings`` (the vendor's page of Nov 2013).

A search finds what started after ``startTime`` and ended before ``endTime``, both: a call that crosses a window's edge
needs a span that begins ``longest_call`` earlier. Rows come by the hundred, in no stated order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self
from urllib.parse import unquote

from pydantic import Field, model_validator

from ..errors import NotReady, SourceError, TryAgain
from ..model import Listing, ListingKey, Medium, Recording, Window
from ..ports import Sink
from ..settings.options import Duration, SourceOptions
from ..wire.recorder import Client, basic
from .genesys_addresses import address
from .genesys_register import AccountOptions, Registrar, judged
from .genesys_rows import recording, registered, rows_of, stopped
from .genesys_search import Search
from .kit.descriptors import MediaOptions, Storage, opened
from .kit.rows import listing, looked_up, segment, text
from .kit.sinks import AudioOnly

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
    #: Tell Web Services of what was archived from any recorder, as recordings of ``region`` (genesys_register.py).
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
        self._search = Search(options, http)

    async def check(self) -> str:
        rows = rows_of(await self._search.page(self._search.path, {"startTime": 0, "limit": 1}))
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
            steady = await self._search.read(window, rows)
            # Where rows moved once, only a pass that brings nothing new ends it.
            if len(rows) == known or (steady and not again):
                break
        else:
            raise TryAgain("rows keep moving from page to page")

        def read_if_in(row: Any) -> Recording | None:
            found, ended = self._recording(row), stopped(row, self._options.zone)
            early = ended is not None and ended < window.start - self._options.overlap
            return None if early or (self._options.skip_registered and registered(row)) else found

        told = listing((row for row in rows.values() if not isinstance(row, SourceError)), read_if_in)
        failed = [(unquote(key), str(error)) for key, error in rows.items() if isinstance(error, SourceError)]
        return Listing(told.recordings, told.rejected, failed)

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        """By recording id. NOT_FOUND yields none: the id is unknown, or of another region."""
        path = self._search.one_path
        rows, failed = await looked_up(call_ids, lambda call_id: self._search.one(f"{path}/{segment(call_id)}"))
        told = listing(filter(None, rows.values()), self._recording)
        return Listing(told.recordings, told.rejected, failed)

    def expected(self, medium: Medium) -> Medium:
        """With its size where the options of now compare it."""
        compared = self._options.sizes == "always" or (self._options.sizes == "clear" and not medium.opaque)
        return medium if compared else replace(medium, size=None)

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

    def _recording(self, row: Any) -> Recording:
        o, base = self._options, self._http.base

        def where(recording_id: str, file: Mapping[str, Any]) -> str | None:
            def play(name: str) -> str:
                return o.play_path.format(id=segment(recording_id), name=name)

            return address(base, file, play, foreign=o.foreign_media)

        return recording(row, where, sizes=o.sizes, zone=o.zone)
