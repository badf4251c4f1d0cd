"""Noojee Admin's recording API: a call is one recording, each leg of it one medium.

Facts: the vendor's pages "4.1 Retrieve Meta Data", "9.4 Retrieve recording list", "1.0 Authentication"; what those
leave open is an option. Secrets travel in the query string, so no address ever enters a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import structlog
from pydantic import Field, field_validator, model_validator

from ..errors import BadData, NotReady, Refused, SourceError, TryAgain, WrongZone
from ..http import Client
from ..idfile import Feed
from ..localtime import ZoneProof, clock_hours, epoch
from ..model import Chapter, Listing, ListingKey, Medium, Recording, Window
from ..options import Duration, SecretStr, SourceOptions
from ..ports import Sink
from ..rows import segment
from . import noojee_legs as legs
from .noojee_api import Api
from .noojee_legs import Rows

log = structlog.get_logger()

_ENOUGH, _SELDOM = 5, 3
_PLACEHOLDERS = ("prefix", "uniqueId", "leg", "tag", "callRecordId")


class NoojeeOptions(SourceOptions):
    #: The global key (from Noojee support): signs with hash, is sent with key.
    api_key: SecretStr = Field(min_length=1)
    #: IANA zone of the server's clock: its times carry none.
    timezone: str
    #: hash (every version) or key (Noojee Admin 4.9.0.10 and later).
    auth: Literal["hash", "key"] = "hash"
    #: Before /RecordingAPI; default /rest with hash, /njadmin/rest with key.
    prefix: str | None = None
    #: Where the server tells its time, for hash.
    time_path: str = "/servicemanager/rest/Time"
    #: hour: ask for the legs that ended in each hour (4.9.0.10 and later); none: ids come from elsewhere.
    listing: Literal["none", "hour"] = "none"
    #: The server allows one listing a minute.
    hour_interval: Duration = timedelta(seconds=60)
    #: A file with one id a line, followed as it grows.
    ids_file: Path | None = None
    #: The name of another source whose call ids are looked up here.
    ids_from: str | None = None
    #: What those ids are.
    lookup: Literal["unique_id", "tag"] = "unique_id"
    #: Where a leg's audio is; knows {prefix} {uniqueId} {leg} {tag} {callRecordId}.
    audio_path: str = "{prefix}/RecordingAPI/retrieveByUniqueId?uniqueId={uniqueId}&leg={leg}"
    #: Who owns a leg that nobody has answered.
    default_user: str = "Administrator"
    window: Duration = timedelta(hours=1)
    settle: Duration = timedelta(minutes=5)
    lookback: Duration = timedelta(hours=2)

    @model_validator(mode="before")
    @classmethod
    def _hours_are_asked_once_closed(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("ids_file") and given.get("ids_from"):
            raise ValueError("has ids_file and ids_from; choose one of them")
        hourly = isinstance(given, dict) and given.get("listing") == "hour"
        return {"poll": "7 * * * *", **given} if hourly else given

    @field_validator("audio_path")
    @classmethod
    def _placeholders_are_known(cls, path: str) -> str:
        try:
            known = path.format(**dict.fromkeys(_PLACEHOLDERS, "/x")).startswith("/")
        except (KeyError, IndexError, ValueError, AttributeError):
            known = False
        if not known:
            raise ValueError('is no path; write it like "{prefix}/…?uniqueId={uniqueId}&leg={leg}"')
        return path

    @property
    def root(self) -> str:
        return self.prefix if self.prefix is not None else {"hash": "/rest", "key": "/njadmin/rest"}[self.auth]


class Noojee:
    Options: ClassVar[type[NoojeeOptions]] = NoojeeOptions
    listing_key: ClassVar[ListingKey] = ListingKey.END

    def __init__(self, name: str, options: NoojeeOptions, http: Client) -> None:
        self._name = name
        self._options = options
        self._api = Api(
            http,
            key=options.api_key.get_secret_value(),
            by_hash=options.auth == "hash",
            root=options.root,
            time_path=options.time_path,
            hour_interval=options.hour_interval,
        )
        self._reader = legs.Reader(options.zone, options.default_user, options.longest_call)
        #: Has a look-up ever been answered? Until then a 404 may mean a wrong prefix.
        self._proven = False
        # A call may have rung for a while before its first leg is recorded.
        self._zone = ZoneProof(late=timedelta(seconds=90))

    async def check(self) -> str:
        try:
            await self._by_unique_id("0.0")
        except NotReady as error:
            raise BadData(f"nothing answers below {self._options.root}; is prefix right? ({error})") from None
        said = [f"meta data answers, authentication by {self._options.auth}"]
        if self._options.ids_file is not None:
            ids = (await asyncio.to_thread(Feed().read, self._options.ids_file))[0][-1:]
            known = len((await self.look_up(ids)).recordings)
            said.append(f"ids_file: of {len(ids)} id tried {known} known")
        elif self._options.listing == "none" and self._options.ids_from is None:
            said.append("finds no calls by itself: set listing, ids_file or ids_from, or use backfill --ids")
        return "; ".join(said)

    async def list(self, window: Window) -> Listing:
        """The calls of which a leg ended in any hour of the server's clock that the window touches, whole.

        A call's other legs are looked up, so that it reads the same in whichever hour it is met.
        """
        if self._options.listing == "none":
            return Listing()
        rows: list[Any] = []
        for day, hour in clock_hours(window, self._options.zone):
            rows += await self._api.hour(day, hour)
        ended, nameless = legs.by_call(rows)
        found = await self._find(ended, "unique_id")
        told: list[Any] = []
        for unique_id, answer in found.items():
            if isinstance(answer, SourceError) and not isinstance(answer, NotReady):
                raise answer
            told += legs.merged([] if isinstance(answer, SourceError) else answer, ended[unique_id])
        listing = self._listing(told, {legs.leg_id(row) for its in ended.values() for row in its})
        return Listing(listing.recordings, [*nameless, *listing.rejected])

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        found = await self._find([i for i in map(str.strip, call_ids) if i], self._options.lookup)
        for error in (f for f in found.values() if isinstance(f, SourceError)):
            if not self._is_none(error):
                raise self._unproven(error)
        return self._listing([row for rows in found.values() if not isinstance(rows, SourceError) for row in rows])

    async def follow(self, cursor: str | None) -> Chapter:
        """The calls of the ids that ``ids_file`` has gained, and of earlier ids whose calls may have gained legs.

        A leg is told only once it has ended, so an id is asked again, more and more seldom, until no call can last any
        longer; one that fails alone is kept, and does not hold up the others.
        """
        if self._options.ids_file is None:
            return Chapter(Listing(), cursor or "", more=False)
        feed, now = Feed.parse(cursor), time.time()
        again = max(timedelta(minutes=1), self._options.settle)
        ids, rejected = await asyncio.to_thread(feed.read, self._options.ids_file)
        for i in ids:
            feed.add(i, (epoch(i) or now) + self._options.longest_call.total_seconds())
        found = await self._find(feed.due(now), self._options.lookup)
        failed = {i: f for i, f in found.items() if isinstance(f, SourceError) and not self._is_none(f)}
        for error in failed.values():
            if len(failed) == len(found) or isinstance(error, Refused):
                raise self._unproven(error)
        recordings: list[Recording] = []
        unknown = 0
        for i, answer in found.items():
            if i in failed:
                log.warning("source.id_failed", source=self._name, id=i, error=str(failed[i]))
                feed.failed(i, now, again)
                continue
            listing = self._listing([] if isinstance(answer, SourceError) else answer)
            recordings += listing.recordings
            rejected += listing.rejected
            began = datetime.fromtimestamp(feed.open[i][1], UTC) - self._options.longest_call
            idle = legs.quiet(listing.recordings, began, datetime.fromtimestamp(now, UTC))
            unknown += feed.answered(i, now, max(again, _SELDOM * idle)) and not listing.recordings
        if unknown:
            log.warning("source.ids_unknown", source=self._name, count=unknown)
        return Chapter(Listing(recordings, rejected), feed.text(), more=feed.more)

    async def fetch(self, medium: Medium, into: Sink) -> None:
        names = {name: segment(str(medium.ref.get(name) or "")) for name in _PLACEHOLDERS}
        if "{tag}" in self._options.audio_path and not names["tag"]:
            raise BadData("the leg has no tag, and audio_path finds audio by tag")
        await self._api.audio(self._options.audio_path.format(**names | {"prefix": self._options.root}), into)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _listing(self, rows: Iterable[Any], ended: Collection[str] = ()) -> Listing:
        calls, rejected = legs.by_call(rows)
        recordings: list[Recording] = []
        for unique_id, its in calls.items():
            recording, unread = self._reader.recording(unique_id, its, datetime.now(UTC), ended)
            rejected += unread
            recordings += [recording] if recording else []
        if off := self._zone.wrong((r.recording_id, r.started_at) for r in recordings if legs.begins(r)):
            raise WrongZone(self._options.timezone, off)
        return Listing(recordings, rejected)

    async def _find(self, ids: Iterable[str], by: str) -> dict[str, Rows | SourceError]:
        """By id, in their order, its rows, or why there are none; five failures end it for the rest."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Rows | SourceError] = {}
        failures: list[SourceError] = []
        turns = asyncio.Semaphore(self._options.concurrency)

        async def find(i: str) -> None:
            async with turns:
                try:
                    if len(failures) >= _ENOUGH:
                        raise failures[-1]
                    found[i] = await (self._by_tag(i) if by == "tag" else self._by_unique_id(i))
                except SourceError as error:
                    found[i] = error
                    failures.extend([] if self._is_none(error) else [error])

        async with asyncio.TaskGroup() as group:
            for i in wanted:
                group.create_task(find(i))
        return {i: found[i] for i in wanted}

    async def _by_unique_id(self, unique_id: str) -> Rows:
        return await self._rows("retrieveMetaDataByUniqueId", {"uniqueId": unique_id})

    async def _by_tag(self, tag: str) -> Rows:
        """The calls of which any leg bears the tag, with their other legs."""
        tagged, _ = legs.by_call(rows := await self._rows("retrieveMetaData", {"tag": tag}))
        whole = [row for unique_id in tagged for row in await self._by_unique_id(unique_id)]
        return legs.merged(whole, [row for row in rows if isinstance(row, dict)])

    async def _rows(self, method: str, asked: dict[str, str]) -> Rows:
        rows = await self._api.rows(method, asked)
        self._proven = True
        return rows

    def _is_none(self, error: SourceError) -> bool:
        return self._proven and isinstance(error, NotReady)

    def _unproven(self, error: SourceError) -> SourceError:
        wrong = f"no look-up was answered yet; is prefix right? ({error})"
        return TryAgain(wrong) if isinstance(error, NotReady) else error
