"""Noojee Admin's recording API: a call is one recording, each leg of it one medium.

Facts: the vendor's pages "4.1 Retrieve Meta Data", "9.4 Retrieve recording list", "1.0 Authentication"; what those
leave open is an option. Secrets travel in the query string, so no address ever enters a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import starmap
from pathlib import Path
from typing import Any, ClassVar, Literal

import structlog
from pydantic import Field, field_validator, model_validator

from ..errors import BadData, NotReady, TryAgain, WrongZone
from ..model import Chapter, Listing, ListingKey, Medium, Recording, Window
from ..ports import Sink
from ..settings.options import Duration, SecretStr, SourceOptions
from ..wire.recorder import Client
from . import noojee_legs as legs
from .kit.idfile import Feed, last_id
from .kit.localtime import ZoneProof, clock_hours, epoch
from .kit.rows import rejected, segment
from .noojee_api import Api
from .noojee_check import audio_problem
from .noojee_lookups import NOBODY, LookUps

log = structlog.get_logger()

_SELDOM = 3
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
        self.lists_by_time = options.listing == "hour"
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
        self._look_ups = LookUps(self._api, options.concurrency)
        #: Has audio ever come? Then audio_path is right.
        self._heard = False
        # A call may have rung for a while before its first leg is recorded.
        self._zone = ZoneProof(late=timedelta(seconds=90))

    async def check(self) -> str:
        """Looks up a call that can't exist; then, until audio came once, tries a leg's: no page tells its address."""
        try:
            await self._look_ups.by_unique_id(NOBODY)
        except NotReady as error:
            raise BadData(f"nothing answers below {self._options.root}; is prefix right? ({error})") from None
        said = [f"meta data answers, authentication by {self._options.auth}"]
        known = await self._some(said)
        wrong = await audio_problem(self.fetch, known, said) if known and not self._heard else None
        return f"warning: {wrong} ({'; '.join(said)})" if wrong else "; ".join(said)

    async def _some(self, said: list[str]) -> Sequence[Recording]:
        """Calls to try: that of the last id of ids_file or, until audio came once, those of the last whole hour."""
        o = self._options
        if o.ids_file is not None:
            last = await asyncio.to_thread(last_id, o.ids_file)
            found = (await self.look_up([last] if last else [])).recordings
            said.append(f"ids_file: of {1 if last else 0} id tried {len(found)} known")
            return found
        if o.listing == "none":
            if o.ids_from is None:
                said.append("finds no calls by itself: set listing, ids_file or ids_from, or use backfill --ids")
            return ()
        if self._heard:
            return ()
        over = (datetime.now(UTC) - o.settle).astimezone(o.zone).replace(minute=0, second=0, microsecond=0)
        hour = Window(over.astimezone(UTC) - timedelta(hours=1), over.astimezone(UTC))
        try:
            found = (await self.list(hour)).recordings
        except TryAgain as error:
            said.append(f"the last hour can't be listed ({error})")
            return ()
        said.append(f"{len(found)} calls in the last whole hour")
        return found

    async def list(self, window: Window) -> Listing:
        """The calls of which a leg ended in any hour of the server's clock that the window touches, whole.

        A call's other legs are looked up, so that it reads the same in whichever hour it is met.
        """
        if self._options.listing == "none":
            return Listing()
        rows: list[Any] = []
        for day, hour in clock_hours(window, self._options.zone):
            rows += await self._api.hour(day, hour)
        # A prefix below which this is answered is right.
        self._look_ups.proven = True
        ended, nameless = legs.by_call(rows)
        found = await self._look_ups.find(ended, "unique_id")
        if found.broken is not None:
            raise found.broken
        # What the hour tells of a call is kept, whatever becomes of its look-up.
        told = [row for uid, its in ended.items() for row in legs.merged(found.rows.get(uid, []), its)]
        listing = self._listing(told, {legs.leg_id(row) for its in ended.values() for row in its})
        failed = [(i, why) for i, why in found.failures() if not isinstance(found.failed[i], NotReady)]
        if self._options.lookup == "tag":
            # These ids are none that a look-up by tag would find again.
            return Listing(listing.recordings, [*nameless, *listing.rejected, *starmap(rejected, failed)])
        return Listing(listing.recordings, [*nameless, *listing.rejected], failed)

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        found = await self._look_ups.find([i for i in call_ids if i.strip()], self._options.lookup)
        if found.broken is not None:
            raise found.broken
        told = self._listing([row for rows in found.rows.values() for row in rows])
        return Listing(told.recordings, told.rejected, found.failures())

    async def follow(self, cursor: str | None) -> Chapter:
        """The calls of the ids that ``ids_file`` has gained, and of earlier ids whose calls may have gained legs.

        A leg is told only once it has ended, so an id is asked again, more and more seldom, until no call can last any
        longer; one that fails alone is told as failed, and does not hold up the others.
        """
        if self._options.ids_file is None:
            return Chapter(Listing(), cursor or "", more=False)
        feed, now = Feed.parse(cursor), time.time()
        again = max(timedelta(minutes=1), self._options.settle)
        ids, unread = await asyncio.to_thread(feed.read, self._options.ids_file)
        for i in ids:
            feed.add(i, (epoch(i) or now) + self._options.longest_call.total_seconds())
        due = feed.due(now)
        if feed.missing is not None:
            if not due and not ids:
                raise feed.missing
            log.warning("source.ids_file_missing", source=self._name, error=str(feed.missing))
        found = await self._look_ups.find(due, self._options.lookup)
        if found.broken is not None and not found.rows:
            raise found.broken
        recordings: list[Recording] = []
        unknown = 0
        for i, rows in found.rows.items():
            listing = self._listing(rows)
            recordings += listing.recordings
            unread += listing.rejected
            began = datetime.fromtimestamp(feed.open[i][1], UTC) - self._options.longest_call
            idle = legs.quiet(listing.recordings, began, datetime.fromtimestamp(now, UTC))
            unknown += feed.answered(i, now, max(again, _SELDOM * idle)) and not listing.recordings
        if unknown:
            log.warning("source.ids_unknown", source=self._name, count=unknown)
        if found.broken is not None:
            # Whatever was not answered is asked again at once, and says why that can't be.
            return Chapter(Listing(recordings, unread), feed.text(), more=True)
        failed = found.failures()
        for i, why in failed:
            log.warning("source.id_failed", source=self._name, id=i, error=why)
            feed.failed(i, now)
        return Chapter(Listing(recordings, unread, failed), feed.text(), more=feed.more)

    async def fetch(self, medium: Medium, into: Sink) -> None:
        names = {name: segment(str(medium.ref.get(name) or "")) for name in _PLACEHOLDERS}
        if "{tag}" in self._options.audio_path and not names["tag"]:
            raise BadData("the leg has no tag, and audio_path finds audio by tag")
        await self._api.audio(self._options.audio_path.format(**names | {"prefix": self._options.root}), into)
        self._heard = True

    # -- reading -----------------------------------------------------------------------------------------------------

    def _listing(self, rows: Iterable[Any], ended: Collection[str] = ()) -> Listing:
        calls, unreadable = legs.by_call(rows)
        recordings: list[Recording] = []
        for unique_id, its in calls.items():
            recording, unread = self._reader.recording(unique_id, its, datetime.now(UTC), ended)
            unreadable += unread
            recordings += [recording] if recording else []
        if off := self._zone.wrong((r.recording_id, r.started_at) for r in recordings if legs.begins(r)):
            raise WrongZone(self._options.timezone, off)
        return Listing(recordings, unreadable)
