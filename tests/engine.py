"""A whole archive for tests: simulated recorders, real stores and database, the real wiring; and what it must hold."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from archiver.audio.spool import Spool
from archiver.catalog.catalog import Catalog, Query
from archiver.common.clock import Clock
from archiver.model import Body, utc_text
from archiver.ports import Store
from archiver.proof import layout
from archiver.service import daemon, once, report, wiring
from archiver.service.once import Summary
from archiver.service.wiring import Archive
from archiver.settings import config
from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.base import Expected, Simulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync import feeds, poll
from archiver.sync.engine import Engine
from archiver.sync.feeds import Health
from archiver.sync.record import Polled
from archiver.testing.sources import FIELDS
from archiver.testing.stores import read
from tests.factories import NOON, ManualClock
from tests.servers import Apache, Seaweed

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)

Table = Mapping[str, Any]
Document = dict[str, Any]


def a_recorder(
    kind: type[Simulator] = XivoSimulator, calls: int = 0, *, live: bool = False, longest: float = 3.0, seed: int = 7
) -> Simulator:
    """A recorder with so many calls of the hour before noon of 18 May 2024, where its clock stands; ``live``: of the
    last hour of real time.
    """
    sim = kind(seed=seed, clock=RecorderClock() if live else RecorderClock(NOON, speed=0))
    now = sim.clock.now().replace(microsecond=0)
    sim.add_calls(now - HOUR, now - 5 * MINUTE, calls, longest=longest)
    return sim


def s3_table(seaweed: Seaweed, bucket: str, **more: Any) -> Table:
    return {
        "kind": "s3",
        "bucket": seaweed.make_bucket(bucket),
        "endpoint_url": seaweed.s3_url,
        "access_key_id": seaweed.access_key,
        "secret_access_key": seaweed.secret_key,
        "timeout": "20s",
        **more,
    }


def dav_table(apache: Apache, folder: str = "", **more: Any) -> Table:
    return {
        "kind": "webdav",
        "url": apache.url,
        "username": apache.username,
        "password": apache.password,
        "prefix": folder,
        "timeout": "20s",
        **more,
    }


@dataclass(slots=True)
class Rig:
    """An open archive and the recorders that it archives from."""

    archive: Archive
    sims: Mapping[str, Simulator]

    @property
    def catalog(self) -> Catalog:
        return self.archive.catalog

    @property
    def sim(self) -> Simulator:
        """The only recorder."""
        (sim,) = self.sims.values()
        return sim

    @property
    def feed(self) -> feeds.Feed:
        """The only source."""
        (feed,) = self.archive.feeds.values()
        return feed

    def advance(self, by: timedelta) -> None:
        """Time goes by, here and at the recorders."""
        assert isinstance(self.catalog.clock, ManualClock)
        self.catalog.clock.advance(by)
        for sim in self.sims.values():
            sim.clock.advance(by)

    # -- doing --------------------------------------------------------------------------------------------------------

    async def sync(self, wait: timedelta = timedelta()) -> dict[str, Summary]:
        """One pass, as `archiver sync` does it."""
        return await once.run_once(self.archive, list(self.archive.feeds), wait=wait)

    async def poll(self, name: str = "pbx", **how: Any) -> Polled:
        """List only; a listing that fails is tried again at once."""
        try:
            async with self.archive.engine([name]).shares.polling(name):
                return await poll.poll(self.archive.feeds[name], self.catalog, pause=0.001, **how)
        finally:
            await self.catalog.unshare([name])

    async def transfer(self) -> Engine:
        """Transfer what is due by now, and nothing more."""
        engine = self.archive.engine()
        await engine.run(until=self.catalog.clock.now)
        return engine

    @asynccontextmanager
    async def running(self) -> AsyncIterator[daemon.Daemon]:
        """The daemon at work; what ends it early is raised."""
        at_work = daemon.Daemon(self.archive)
        task = asyncio.create_task(at_work.run())
        try:
            yield at_work
            if task.done():
                await task
        finally:
            if not task.done():
                at_work.stop()
            await task

    async def mark(self, flag: str | None, count: int, name: str = "pbx") -> None:
        """So many of a source's archived media are kept as evidence for that reason; None: not any more."""
        async with self.catalog._connection() as c:
            await c.execute(
                "UPDATE media SET flags = $3 WHERE (source, recording_id, media_id) IN (SELECT source, recording_id,"
                " media_id FROM media WHERE source = $1 AND state = 'archived' ORDER BY 2, 3 LIMIT $2)",
                name,
                count,
                [flag] if flag else [],
            )

    # -- looking ------------------------------------------------------------------------------------------------------

    async def documents(self, name: str = "pbx") -> dict[str, Document]:
        """By recording_id, what `list --json` prints."""
        return {d["recording_id"]: json.loads(json.dumps(d)) async for d in self.catalog.find(Query(source=name))}

    async def medium(self, recording_id: str | None = None, name: str = "pbx") -> Document:
        """The only medium of that (or the only) recording."""
        documents = await self.documents(name)
        (medium,) = documents[recording_id or next(iter(documents))]["media"]
        return dict(medium)

    async def states(self, name: str = "pbx") -> dict[str, int]:
        """How many media are in each state."""
        counted: dict[str, int] = defaultdict(int)
        for document in (await self.documents(name)).values():
            for medium in document["media"]:
                counted[medium["state"]] += 1
        return dict(counted)

    async def status(self) -> Document:
        return await report.status(self.archive.config, self.catalog)

    async def happened(self, recording_id: str, name: str = "pbx") -> dict[str, int]:
        """What its history holds, and how often."""
        counted: dict[str, int] = defaultdict(int)
        for event in await self.catalog.history(name, recording_id):
            counted[event["what"]] += event["times"]
        return dict(counted)

    async def objects(self, store: str) -> dict[str, int]:
        """Everything in a store: sizes by key."""
        outlet = self.archive.outlets[store]
        return {r.key: r.size async for r in outlet.store.list(outlet.prefix)}

    async def media_keys(self, store: str, name: str = "pbx") -> list[str]:
        """The keys of a source's audio."""
        own = f"{self.archive.outlets[store].prefix}{layout.safe(name)}/"
        return [key for key in await self.objects(store) if key.startswith(own)]

    async def manifest_lines(self, store: str, name: str = "pbx") -> dict[str, list[Document]]:
        """By recording_id its lines in the store's manifests, oldest first."""
        outlet = self.archive.outlets[store]
        lines: dict[str, list[Document]] = defaultdict(list)
        for key in sorted(await self.objects(store)):
            if key.startswith(f"{outlet.prefix}_manifests/{name}/"):
                for row in (await read(outlet.store, key)).splitlines():
                    document = json.loads(row)
                    lines[document["recording_id"]].append(document)
        return dict(lines)


@asynccontextmanager
async def archiving(
    folder: Path,
    database: str,
    sims: Simulator | Mapping[str, Simulator],
    *,
    stores: Mapping[str, Table] | None = None,
    clock: Clock | None = None,
    transfers: int = 16,
    top: Table | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """An archive of these recorders (one alone is called ``pbx``) on an existing database.

    ``options`` go to every source; times are short. Without ``stores`` there is one folder, ``disk``. ``top``: what
    else stands in the config; unless it says so, nothing is served by HTTP.
    """
    sims = {"pbx": sims} if isinstance(sims, Simulator) else sims
    stores = stores or {"disk": {"kind": "file", "path": str(folder / "disk")}}
    for sim in sims.values():
        if sim._runner is None:
            await sim.start()
    path = folder / "archiver.toml"
    top = {"database": {"url": database}, "http": {"listen": ""}, **(top or {})}
    path.write_text(_toml(top, stores, sims, transfers, options))
    loaded = config.load(path)
    async with AsyncExitStack() as stack:
        for sim in sims.values():
            stack.push_async_callback(sim.stop)
        catalog = await Catalog.open(database, clock=clock)
        stack.push_async_callback(catalog.close)
        outlets = wiring.open_outlets(loaded, stack)
        feeds = {name: wiring.make_feed(source, outlets, catalog, stack) for name, source in loaded.sources.items()}
        spool = Spool(loaded.data_dir / "spool", loaded.memory)
        archive = Archive(config=loaded, catalog=catalog, database=None, outlets=outlets, feeds=feeds, spool=spool)
        yield Rig(archive, sims)
        assert spool.used == 0
        assert not list(spool.folder.iterdir())


def hasten(archive: Archive) -> None:
    """Breakers of sources and stores that half-open after tenths of a second."""
    for feed in archive.feeds.values():
        feed.health = Health(5, timedelta(seconds=0.2), timedelta(seconds=1))
    for outlet in archive.outlets.values():
        outlet.health = Health(1, timedelta(seconds=0.2), timedelta(seconds=1))


def _toml(
    top: Table, stores: Mapping[str, Table], sims: Mapping[str, Simulator], transfers: int, options: Table
) -> str:
    lines = ['data_dir = "var"', f"transfers = {transfers}"]
    lines += [f"{name} = {_value(value)}" for name, value in top.items()]
    for name, table in stores.items():
        lines += [f"[stores.{name}]", *(f"{k} = {_value(v)}" for k, v in table.items())]
    for name, sim in sims.items():
        common = {
            "start": sim.clock.now() - 3 * HOUR,
            "poll": "1s",
            "settle": "1s",
            "lookback": "2h",
            "longest_call": "10m",
            "concurrency": 4,
            "timeout": "2s",
            "retry": {"first": "1s", "cap": "1m"},
        }
        lines += [
            f"[sources.{name}]",
            *(f"{k} = {_value(v)}" for k, v in {**sim.options(), **common, **options}.items()),
        ]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False)


async def eventually(
    holds: Callable[[], Awaitable[Any]], within: float = 30.0, every: float = 0.05, why: str = ""
) -> Any:
    """Ask until the answer is true; what it was."""
    end = time.monotonic() + within
    while not (answer := await holds()):
        assert time.monotonic() < end, why or "it never came true"
        await asyncio.sleep(every)
    return answer


# -- what an archive must hold ---------------------------------------------------------------------------------------


async def assert_archived(rig: Rig, name: str = "pbx", truth: Mapping[str, Expected] | None = None) -> int:
    """Everything that the recorder serves lies in every store, byte for byte, named and described as promised.

    Returns the number of media. ``truth``: what to expect in place of all that the recorder lists now.
    """
    truth = rig.sims[name].truth() if truth is None else truth
    documents = await rig.documents(name)
    assert set(documents) == set(truth)
    outlets = rig.archive.feeds[name].outlets
    objects = {store: await rig.objects(store) for store in outlets}
    lines = {store: await rig.manifest_lines(store, name) for store in outlets}
    described = {store: set[str]() for store in outlets}
    reading: list[tuple[Store, str, bytes]] = []
    for recording_id, expected in truth.items():
        document = documents[recording_id]
        assert fields_of(document) == fields_told(expected), recording_id
        assert (document["source"], document["kind"]) == (name, rig.sims[name].kind)
        assert document["raw"]
        assert {m["media_id"] for m in document["media"]} == set(expected.audio)
        for medium in document["media"]:
            audio = expected.audio[medium["media_id"]]
            assert (medium["state"], medium["error"]) == ("archived", None), (recording_id, medium)
            assert (medium["size"], medium["sha256"]) == (len(audio), hashlib.sha256(audio).hexdigest())
            of_now = [c for c in medium["copies"] if c["sha256"] == medium["sha256"]]
            assert {c["store"] for c in of_now} == set(outlets)
            for copy in of_now:
                outlet = outlets[copy["store"]]
                assert copy["key"] == key_of(outlet.prefix, document, medium["media_id"], copy["key"])
                if objects[copy["store"]].get(copy["key"]) != len(audio):
                    found = await outlet.store.stat(copy["key"])
                    raise AssertionError(f"{copy} is listed with {objects[copy['store']].get(copy['key'])}; {found}")
                reading.append((outlet.store, copy["key"], audio))
        assert document["state"] == "archived"
        for store in outlets:
            assert without_verified_at(lines[store][recording_id][-1]) == without_verified_at(document), store
            described[store] |= {c["key"] for m in document["media"] for c in m["copies"] if c["store"] == store}
    for start in range(0, len(reading), 16):
        await asyncio.gather(*(assert_holds(*held) for held in reading[start : start + 16]))
    for store, outlet in outlets.items():
        assert set(lines[store]) == set(truth)
        ours = {k for k in objects[store] if k.startswith(f"{outlet.prefix}{layout.safe(name)}/")}
        assert ours == described[store], "an object that nothing describes"
    return sum(len(expected.audio) for expected in truth.values())


async def show_all(rig: Rig, store: str, name: str = "pbx") -> int:
    """Make a SeaweedFS that was killed list all that it serves; returns how many objects it did not list.

    Killed in the midst of a put it may keep the object without its folder's entry (seen with 4.48): served, and
    refused to If-None-Match, but in no listing until something else is put into the folder.
    """
    held = rig.archive.outlets[store].store
    listed = {found.key async for found in held.list("")}
    hidden = 0
    for document in (await rig.documents(name)).values():
        for copy in (copy for medium in document["media"] for copy in medium["copies"] if copy["store"] == store):
            if copy["key"] not in listed and await held.stat(copy["key"]) is not None:
                hidden += 1
                await held.put(f"{copy['key']}.beside", Body.of(b"beside"))
                await held.delete(f"{copy['key']}.beside")
    return hidden


async def assert_holds(store: Store, key: str, audio: bytes) -> None:
    assert await read(store, key) == audio, key


def key_of(prefix: str, document: Document, media_id: str, key: str) -> str:
    """The copy's key by contract: ``{prefix}{source}/{YYYY}/{MM}/{DD}/{recording}/{medium}-{12 hex}.{ext}``."""
    (sha256,) = {c["sha256"] for m in document["media"] for c in m["copies"] if c["key"] == key}
    day = document["started_at"][:10].replace("-", "/")
    names = (layout.safe(document["recording_id"]), layout.safe(media_id))
    ext = re.search(r"\.(wav|mp3|spx|ogg|opus|flac|gsm)$", key)
    assert ext, key
    return f"{prefix}{document['source']}/{day}/{names[0]}/{names[1]}-{sha256[:12]}{ext[0]}"


def fields_of(document: Document) -> Document:
    return {name: document[name] for name in FIELDS}


def fields_told(expected: Expected) -> Document:
    """The truth, as the recording's JSON spells it."""
    told = {name: expected.fields.get(name) for name in FIELDS}
    for name in ("started_at", "ended_at"):
        told[name] = utc_text(told[name]) if told[name] else None
    told["duration"] = told["duration"].total_seconds() if told["duration"] is not None else None
    told["direction"] = told["direction"].value
    told["parties"] = [{"number": p.number, "name": p.name, "user": p.user, "role": p.role} for p in told["parties"]]
    told["events"] = [{"at": utc_text(e.at), "event": e.event, "party": e.party} for e in told["events"]]
    found: Document = json.loads(json.dumps(told))
    return found


def without_verified_at(document: Document) -> Document:
    bare: Document = json.loads(json.dumps(document))
    for medium in bare["media"]:
        for copy in medium["copies"]:
            del copy["verified_at"]
    return bare


def audio_requests(sim: Simulator) -> dict[str, int]:
    """By path and query, how often a medium was asked for."""
    counted: dict[str, int] = defaultdict(int)
    for seen in sim.seen:
        if seen.on == "audio":
            counted[f"{seen.path}?{seen.query}"] += 1
    return dict(counted)


def kinds() -> Sequence[str]:
    """The installed recorders, by name."""
    return sorted(config.kinds("archiver.sources"))
