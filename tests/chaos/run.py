"""The chaos run: ``python -m tests.chaos.run [--seed N]``, or ``make chaos``.

Five simulated recorders, two daemons, PostgreSQL, S3 and WebDAV, each in processes of its own, which are killed and
stopped while connections between them are slow, late, silent and cut. Of one recording in forty the audio can't be had
meanwhile, and each store refuses one object. Afterwards everything must be archived in both stores, byte for byte and
field for field, once; a catalog made again from either store alone must list the same; and a copy that can't be read
keeps no other from being verified.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from archiver.model import Body
from archiver.proof import layout
from archiver.service import wiring
from archiver.settings import config as configuration
from archiver.simulators.base import Simulator
from tests import servers
from tests.chaos.links import Link
from tests.chaos.plan import DAEMONS, RECORDERS, Event, plan
from tests.chaos.recorder import Settings, bad, made
from tests.commands import ROOT, Place, until
from tests.engine import Rig, assert_archived, show_all

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("ARCHIVER_")} | {
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}


@dataclass(slots=True)
class Report:
    """What a run did and what came of it."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    recordings: int = 0
    media: int = 0
    archived_in_the_storm: int = 0
    #: Recordings whose audio could not be had during the storm, objects that a store refused, copies that can't be
    #: read.
    bad: int = 0
    refused: int = 0
    unreadable: int = 0
    #: How long the others waited from their first listing until they were archived, in seconds: half, 99 of 100, all.
    waits: tuple[float, float, float] = (0.0, 0.0, 0.0)
    #: Media that are not archived in the end, objects and copies beyond one, by whatever else is wrong.
    stuck: int = 0
    lost: int = 0
    doubled: int = 0
    #: Objects that SeaweedFS served and did not list: no fault of ours, see show_all.
    hidden: int = 0
    wrong: list[str] = field(default_factory=list)
    rebuilt: dict[str, bool] = field(default_factory=dict)
    storm: float = 0.0
    calm: float = 0.0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return (
            not (self.stuck or self.lost or self.doubled or self.wrong or self.crashes)
            and self.hidden <= self.kills["seaweed"]
            and all(self.rebuilt.values())
        )

    def rows(self) -> list[tuple[str, str]]:
        def told(counter: Counter[str]) -> str:
            return f"{counter.total()}: " + ", ".join(f"{name} {n}" for name, n in sorted(counter.items()))

        return [
            ("seed", str(self.seed)),
            ("kills", told(self.kills)),
            ("stops (SIGSTOP)", told(self.stops)),
            ("connections", told(self.troubles)),
            ("recorders' faults", told(self.faults)),
            ("starts that failed, and were tried again", told(self.exits)),
            ("recordings, media", f"{self.recordings}, {self.media}, in two stores"),
            ("archived during the storm", str(self.archived_in_the_storm)),
            (
                "single bad things: recordings, refused objects, unreadable copies",
                f"{self.bad}, {self.refused}, {self.unreadable}",
            ),
            ("the others waited, in seconds: half, 99 of 100, all", ", ".join(f"{wait:.1f}" for wait in self.waits)),
            ("lost, doubled, stuck", f"{self.lost}, {self.doubled}, {self.stuck}"),
            ("served by SeaweedFS, and not listed", str(self.hidden)),
            ("crashes", str(len(self.crashes))),
            ("rebuilt, the same list", ", ".join(f"{n}: {'yes' if s else 'NO'}" for n, s in self.rebuilt.items())),
            ("seconds", f"{self.seconds:.0f}: storm {self.storm:.0f}, calm until all was archived {self.calm:.0f}"),
        ]


class Still(Rig):
    """An archive that nobody works on: its stores are listed once."""

    listed: dict[str, dict[str, int]] | None = None

    async def objects(self, store: str) -> dict[str, int]:
        self.listed = self.listed or {}
        if store not in self.listed:
            outlet = self.archive.outlets[store]
            self.listed[store] = {r.key: r.size async for r in outlet.store.list(outlet.prefix)}
        return self.listed[store]


class Peer:
    """A process that may be killed, and is started again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = False
        self.starts = 0
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        raise NotImplementedError

    def kill(self, how: str) -> None:
        raise NotImplementedError

    def signal(self, number: int) -> None:
        raise NotImplementedError

    async def ensure(self) -> None:
        """Start it unless it is up; once, whoever else wants that at the same time."""
        async with self._starting:
            while not self.up:
                try:
                    await self.start()
                    self.up = True
                except RuntimeError as error:
                    print(f"{self.name} did not start: {str(error)[-300:]}", file=sys.stderr)
                    await asyncio.sleep(0.5)


class ServerPeer(Peer):
    """PostgreSQL or a store's server."""

    def __init__(self, name: str, server: servers.Server) -> None:
        super().__init__(name)
        self.server = server
        self.up = True

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)
        self.starts += 1

    def kill(self, how: str) -> None:
        if how == "kill one" and isinstance(self.server, servers.Postgres):
            children = self.server.children()
            with contextlib.suppress(ProcessLookupError):
                os.kill(max(children, default=0) or self.server.pid, signal.SIGKILL)
        elif how == "abort" and isinstance(self.server, servers.Postgres):
            self.server.abort()
            self.up = False
        else:
            self.server.kill()
            self.up = False

    def signal(self, number: int) -> None:
        pids = [self.server.pid, *(self.server.children() if isinstance(self.server, servers.Postgres) else ())]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, number)
            for pid in pids:
                os.kill(pid, number)


class ProcessPeer(Peer):
    """A recorder or a daemon: whatever ends by itself is started again, as systemd would."""

    def __init__(self, name: str, command: Callable[[int], list[str]], folder: Path, report: Report) -> None:
        super().__init__(name)
        self.command = command
        self.folder = folder
        self.report = report
        self.output = folder / f"{name.replace(' ', '-')}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.killed = self.keep = False
        self._at = 0

    async def start(self) -> None:
        self._at = self.output.stat().st_size if self.output.exists() else 0
        with self.output.open("ab") as output:
            self.process = await asyncio.to_thread(self._spawn, output)
        self.killed = False
        self.starts += 1

    def _spawn(self, output: Any) -> subprocess.Popen[bytes]:
        how: dict[str, Any] = {"cwd": self.folder, "env": ENVIRONMENT, "start_new_session": True}
        return servers._SPAWNER.submit(
            subprocess.Popen,
            self.command(self.starts),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=servers._kill_with_parent,
            **how,
        ).result()

    def said(self) -> str:
        """What it wrote since it was last started."""
        with self.output.open("rb") as output:
            output.seek(self._at)
            return output.read().decode("utf-8", "replace")

    def kill(self, how: str) -> None:
        self.killed = True
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.up = False
        self.count()

    def count(self) -> None:
        """Note what a recorder did wrong until now."""
        if self.name in RECORDERS:
            told = [line for line in self.said().splitlines() if line.startswith("{") and len(line) > 2]
            self.report.faults.update(json.loads(told[-1]) if told else {})

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    async def look_after(self) -> None:
        """Start it again where it ended by itself."""
        while True:
            await asyncio.sleep(0.1)
            process = self.process
            if not self.up or process is None or process.poll() is None or self.killed:
                continue
            said = self.said()
            self.report.exits[f"{self.name.split()[0]}, exit code {process.returncode}"] += 1
            if process.returncode != 3 or "Traceback" in said:
                self.report.crashes.append(f"{self.name}, exit code {process.returncode}: {said[-3000:]}")
            self.up = False
            await asyncio.sleep(1)
            if not self.up:
                await self.ensure()


class World:
    """Everything there is, and what happens to it."""

    def __init__(
        self, folder: Path, seed: int, recordings: int, seconds: float, report: Report, *, bad_each: int
    ) -> None:
        self.folder = folder
        self.report = report
        self.seconds = seconds
        self.bad_each = bad_each
        #: By store, the key of an object that it refuses for now.
        self.refused: dict[str, str] = {}
        # To the second: recorders tell no microseconds.
        self.began = datetime.now(UTC).replace(microsecond=0)
        self.settings = {
            kind: Settings(
                kind,
                seed,
                -(-recordings // len(RECORDERS)),
                self.began.isoformat(),
                seconds,
                servers.free_ports(1)[0],
                bad_each=bad_each,
            )
            for kind in RECORDERS
        }
        self.calm = False
        self.links: dict[str, Link] = {}
        self.peers: dict[str, Peer] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        opening = [asyncio.to_thread(stack.enter_context, make()) for make in _servers()]
        self.postgres, self.seaweed, self.apache = await asyncio.gather(*opening)
        self.postgres.execute("CREATE DATABASE archiver")
        self.peers |= {name: ServerPeer(name, getattr(self, name)) for name in ("postgres", "seaweed", "apache")}
        self.bucket = self.seaweed.make_bucket("chaos")
        targets = {f"{name} to postgres": self.postgres.port for name in DAEMONS}
        targets |= {"to seaweed": self.seaweed._ports["s3"], "to apache": self.apache._port}
        targets |= {f"to {kind}": settings.port for kind, settings in self.settings.items()}
        for name, port in targets.items():
            self.links[name] = Link(name, port)
            await self.links[name].start()
            stack.push_async_callback(self.links[name].stop)
        for name in RECORDERS:
            self.peers[name] = ProcessPeer(name, self._recorder(name), self.folder, self.report)
        for name in DAEMONS:
            self.peers[f"daemon {name}"] = ProcessPeer(f"daemon {name}", self._daemon(name), self.folder, self.report)
        stack.callback(self._end)
        await asyncio.gather(*(peer.ensure() for peer in self.peers.values() if isinstance(peer, ProcessPeer)))

    def _end(self) -> None:
        for peer in self.peers.values():
            if isinstance(peer, ProcessPeer) and peer.process is not None and peer.process.poll() is None:
                peer.signal(signal.SIGCONT)
                peer.kill("kill")

    def _recorder(self, kind: str) -> Callable[[int], list[str]]:
        def command(start: int) -> list[str]:
            settings = replace(self.settings[kind], start=-1 if self.calm else start)
            return [sys.executable, "-m", "tests.chaos.recorder", settings.text()]

        return command

    def _daemon(self, name: str) -> Callable[[int], list[str]]:
        place = self.place(name, f"{name} to postgres")
        path = str(place.write())
        return lambda _: [sys.executable, "-m", "archiver", "--config", path, "run"]

    def place(self, name: str, database: str | None = None, catalog: str = "archiver") -> Place:
        """A folder and config of one's own; ``database`` names the link to it. Without one, nothing is in between."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        through = {n: link.port for n, link in self.links.items()} if database else {}
        s3 = through.get("to seaweed", self.seaweed._ports["s3"])
        dav = through.get("to apache", self.apache._port)
        place = Place(folder, self.postgres.url(catalog, port=through[database] if database else None))
        place.config["transfers"] = 16
        place.config["http"] = {"listen": f"127.0.0.1:{servers.free_ports(1)[0]}"}
        place.config["stores"] = {
            "main": {
                "kind": "s3",
                "bucket": self.bucket,
                "prefix": "archive/",
                "endpoint_url": f"http://127.0.0.1:{s3}",
                "region": "us-east-1",
                "access_key_id": self.seaweed.access_key,
                "secret_access_key": self.seaweed.secret_key,
                "timeout": "10s",
            },
            "dav": {
                "kind": "webdav",
                "url": f"http://127.0.0.1:{dav}/",
                "username": self.apache.username,
                "password": self.apache.password,
                "timeout": "10s",
            },
        }
        for kind, settings in self.settings.items():
            sim = made(replace(settings, recordings=0))
            sim._port = through.get(f"to {kind}", settings.port)
            place.config["sources"][kind] = sim.options() | {
                "start": self.began - timedelta(hours=9),
                "poll": "8s",
                "settle": "2s",
                "lookback": "3m",
                "longest_call": "1m",
                "concurrency": 6,
                "timeout": "6s",
                "retry": {"first": "1s", "cap": "10s"},
            }
        return place

    # -- single bad things ---------------------------------------------------------------------------------------------

    async def refuse(self) -> None:
        """In each store something else lies where one recording is to go: what is put there is refused."""
        if not self.bad_each:
            return
        sim = self.truth()["xivo"]
        loaded = configuration.load(self.place("audit").write())
        async with AsyncExitStack() as stack:
            outlets = wiring.open_outlets(loaded, stack)
            for number, name in enumerate(outlets, 1):
                ((recording_id, told),) = sim.expected(sim.calls[number]).items()
                ((media_id, sound),) = told.audio.items()
                digest = hashlib.sha256(sound).hexdigest()
                key = layout.media_key(
                    outlets[name].prefix, "xivo", told.fields["started_at"], recording_id, media_id, digest, "wav"
                )
                await outlets[name].store.put(key, Body.of(b"something else"))
                self.refused[name] = key
        self.report.refused = len(self.refused)

    async def give_way(self) -> None:
        """What lay in the way is gone."""
        loaded = configuration.load(self.place("audit").write())
        async with AsyncExitStack() as stack:
            outlets = wiring.open_outlets(loaded, stack)
            for name, key in self.refused.items():
                await outlets[name].store.delete(key)

    async def let_hours_pass(self) -> None:
        """For what waits on its own slow schedule: what was refused, not there, or not whole."""
        connection = await asyncpg.connect(self.postgres.url(), timeout=20)
        try:
            await connection.execute(
                "UPDATE media SET due_at = now() WHERE state = 'pending' AND due_at > now() + interval '20 seconds'"
            )
        finally:
            await connection.close()

    async def waited(self) -> None:
        """How long those waited that nothing was wrong with."""
        names = {kind: bad(sim, self.settings[kind]) for kind, sim in self.truth().items()}
        self.report.bad = sum(len(of) for of in names.values())
        connection = await asyncpg.connect(self.postgres.url(), timeout=20)
        try:
            row = await connection.fetchrow(
                "SELECT percentile_disc(ARRAY[0.5, 0.99, 1.0]) WITHIN GROUP (ORDER BY"
                " extract(epoch FROM m.archived_at - r.first_listed_at)::float8) AS waits"
                " FROM media m JOIN recordings r USING (source, recording_id)"
                " WHERE NOT (source || ' ' || recording_id) = ANY($1) AND NOT recording_id = ANY($2)",
                [f"{kind} {name}" for kind, of in names.items() for name in of],
                [key.split("/")[-2] for key in self.refused.values()],
            )
        finally:
            await connection.close()
        self.report.waits = tuple(row["waits"])

    async def verify_around_an_unreadable_copy(self) -> None:
        """A folder lies under the name of one copy: that is found, and all others are read and good."""
        if not self.bad_each:
            return
        place = self.place("audit")
        path = min((self.apache.files / "xivo").rglob("*.wav"))
        aside = path.with_name("aside")
        path.rename(aside)
        path.mkdir()
        told = await place.run("verify", "--store", "dav", "--json", code=1)
        (found,) = told.json["stores"].values()
        path.rmdir()
        aside.rename(path)
        self.report.unreadable = 1
        if (found["bad"], found["good"], found["error"]) != (1, self.report.media - 1, None):
            self.report.wrong.append(f"verify beside an unreadable copy: {found}")

    async def ready(self) -> None:
        """Both daemons are at work."""
        for name in DAEMONS:
            peer = self.peers[f"daemon {name}"]
            assert isinstance(peer, ProcessPeer)
            await until(lambda peer=peer: "daemon.ready" in peer.said(), 120)

    # -- the storm ----------------------------------------------------------------------------------------------------

    async def storm(self, events: Sequence[Event], began: float) -> None:
        """All events, those of each in their order; each kill falls on something that is up."""
        by_whom: dict[str, list[Event]] = {}
        for event in events:
            by_whom.setdefault(event.whom, []).append(event)
        async with asyncio.TaskGroup() as group:
            for whom, own in by_whom.items():
                group.create_task(self._suffer(whom, own, began))

    async def _suffer(self, whom: str, events: Sequence[Event], began: float) -> None:
        for event in events:
            await asyncio.sleep(max(0.0, began + event.at - time.monotonic()))
            if whom in self.links:
                self.report.troubles[event.what] += 1
                await self.links[whom].troubled(event.what, event.lasting)
                continue
            peer = self.peers[whom]
            await peer.ensure()
            if isinstance(peer, ProcessPeer) and whom not in RECORDERS and event.lasting > 0.4:
                # Most of them while they work; the others may die on their way up.
                with contextlib.suppress(AssertionError):
                    await until(lambda peer=peer: "daemon.ready" in peer.said(), 30)
                await asyncio.sleep(2 * event.lasting)
            if event.what == "stop":
                self.report.stops[whom] += 1
                peer.signal(signal.SIGSTOP)
                await asyncio.sleep(event.lasting)
                peer.signal(signal.SIGCONT)
                continue
            self.report.kills[whom if event.what == "kill" else f"{whom} ({event.what})"] += 1
            await asyncio.to_thread(peer.kill, event.what)
            await asyncio.sleep(event.lasting)
            await peer.ensure()

    # -- the calm -----------------------------------------------------------------------------------------------------

    def truth(self) -> dict[str, Simulator]:
        """The recorders as they are now, in this process; not started."""
        return {kind: made(replace(settings, start=-1)) for kind, settings in self.settings.items()}

    async def soothe(self) -> None:
        """Nothing goes wrong any more; what is down is started, the recorders anew without their faults."""
        self.calm = True
        for name in RECORDERS:
            await asyncio.to_thread(self.peers[name].kill, "kill")
        await asyncio.gather(*(peer.ensure() for peer in self.peers.values()))

    async def archived(self) -> tuple[int, int]:
        """How many media are archived, and how many there are; as the database says."""
        connection = await asyncpg.connect(self.postgres.url(), timeout=20)
        try:
            row = await connection.fetchrow("SELECT count(*) FILTER (WHERE state = 'archived'), count(*) FROM media")
            return row[0], row[1]
        finally:
            await connection.close()

    async def end_leases(self) -> None:
        """Three minutes pass in no time for what killed processes held."""
        connection = await asyncpg.connect(self.postgres.url(), timeout=20)
        try:
            await connection.execute("UPDATE shares SET until = until - interval '3 minutes'")
            await connection.execute("UPDATE claims SET until = until - interval '3 minutes'")
            await connection.execute("UPDATE media SET due_at = due_at - interval '3 minutes' WHERE state = 'pending'")
        finally:
            await connection.close()

    async def stop_daemons(self) -> None:
        """In order: what is left to tell the stores is told."""
        for name in DAEMONS:
            peer = self.peers[f"daemon {name}"]
            assert isinstance(peer, ProcessPeer)
            assert peer.process is not None
            await until(lambda peer=peer: "daemon.ready" in peer.said(), 120)
            # What ends now was told to.
            peer.killed = True
            peer.signal(signal.SIGTERM)
            code = await asyncio.to_thread(peer.process.wait, 120)
            if code != 0:
                self.report.crashes.append(f"{peer.name}, exit code {code} on SIGTERM: {peer.said()[-3000:]}")

    # -- the audit ----------------------------------------------------------------------------------------------------

    async def audit(self) -> bytes:
        """Every byte and field against the recorders' truth, in both stores; what ``list --json`` says."""
        place, report = self.place("audit"), self.report
        sims = self.truth()
        loaded = configuration.load(place.write())
        async with wiring.opened(loaded) as archive:
            rig = Still(archive, sims)
            for name in sims:
                report.hidden += await show_all(rig, "main", name)
            objects = {store: await rig.objects(store) for store in archive.outlets}
            for name, sim in sims.items():
                truth = sim.truth()
                report.recordings += len(truth)
                media = sum(len(expected.audio) for expected in truth.values())
                report.media += media
                documents = await rig.documents(name)
                found = {(i, m["media_id"]): m for i, d in documents.items() for m in d["media"]}
                told = {(i, m) for i, expected in truth.items() for m in expected.audio}
                report.lost += len(told - set(found))
                report.stuck += sum(found[each]["state"] != "archived" for each in told & set(found))
                for store, outlet in archive.outlets.items():
                    own = [key for key in objects[store] if key.startswith(f"{outlet.prefix}{name}/")]
                    report.doubled += max(0, len(own) - media)
                    report.lost += max(0, media - len(own))
                try:
                    await assert_archived(rig, name, truth)
                except AssertionError as error:
                    report.wrong.append(f"{name}: {str(error)[:2000]}")
            totals = await archive.catalog.totals()
            for store in ("", *archive.outlets):
                counted = sum(count for (_, of), (count, _) in totals.items() if of == store)
                if counted != report.media:
                    report.wrong.append(f"status counts {counted} media in store {store!r}, not {report.media}")
        return (await place.run("list", "--json")).raw

    async def rebuild(self, before: bytes) -> None:
        """The catalog is dropped, and made again from one store alone."""
        for store in ("main", "dav"):
            catalog = f"rebuilt_{store}"
            await asyncio.to_thread(self.postgres.execute, f"CREATE DATABASE {catalog}")
            place = self.place(f"rebuilt-{store}", catalog=catalog)
            await place.run("rebuild", "--store", store)
            after = (await place.run("list", "--json")).raw
            self.report.rebuilt[store] = after == before
            if after != before:
                self.report.wrong.append(_difference(before, after))


def _servers() -> Sequence[Callable[[], Any]]:
    return servers.postgres, servers.seaweed, servers.apache


def _difference(before: bytes, after: bytes) -> str:
    one, other = before.splitlines(), after.splitlines()
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
    first = "".join(f"\n- {a.decode()}\n+ {b.decode()}" for a, b in pairs[:3])
    return f"{len(one)} lines before, {len(other)} after the rebuild, {len(pairs)} differ:{first}"


@asynccontextmanager
async def looked_after(world: World) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(p.look_after()) for p in world.peers.values() if isinstance(p, ProcessPeer)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def run(
    seed: int,
    *,
    recordings: int = 5000,
    kills: int = 210,
    seconds: float = 300.0,
    patience: float = 900.0,
    hurry: bool = False,
    bad_each: int = 40,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """One run. ``hurry``: leases and waits of what was killed are shortened afterwards, as if time had passed.

    ``bad_each``: of so many recordings the audio of one can't be had during the storm.
    """
    report, began = Report(seed), time.monotonic()
    events = plan(seed, kills=kills, seconds=seconds, longest_stop=min(30.0, seconds / 4))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o755)
    try:
        async with AsyncExitStack() as stack:
            world = World(folder, seed, recordings, seconds, report, bad_each=bad_each)
            await world.open(stack)
            async with looked_after(world):
                await world.refuse()
                await world.ready()
                say(f"{len(events)} events in {seconds:.0f} s, seed {seed}")
                start = time.monotonic()
                telling = asyncio.create_task(_tell(world, say))
                await world.storm(events, start)
                await world.soothe()
                report.storm = time.monotonic() - start
                report.archived_in_the_storm = (await world.archived())[0]
                await world.give_way()
                start = time.monotonic()
                if hurry:
                    for name in DAEMONS:
                        world.peers[f"daemon {name}"].kill("kill")
                    await world.end_leases()
                    await asyncio.gather(*(world.peers[f"daemon {name}"].ensure() for name in DAEMONS))
                await _all_is_archived(world, patience, hurry=hurry)
                report.calm = time.monotonic() - start
                telling.cancel()
                await world.waited()
                await world.stop_daemons()
                say(f"calm after {report.calm:.0f} s; the audit begins")
            before = await world.audit()
            say("the audit is done; the catalog is made again")
            await world.rebuild(before)
            await world.verify_around_an_unreadable_copy()
    finally:
        report.seconds = time.monotonic() - began
        if report.rebuilt and report.good:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"what the processes said lies in {folder}")
    return report


async def _tell(world: World, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(15)
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            archived, known = await world.archived()
            say(f"{world.report.kills.total()} kills, {archived} archived of {known} known")


async def _all_is_archived(world: World, patience: float, *, hurry: bool) -> None:
    """Until every medium of the truth is archived, or nothing helps."""
    end = time.monotonic() + patience
    # The last call, and the last medium that comes later.
    shown = world.began + timedelta(seconds=world.seconds * 1.1 + 3)
    wanted = None
    while time.monotonic() < end:
        if wanted is None and datetime.now(UTC) > shown:
            wanted = sum(len(e.audio) for sim in world.truth().values() for e in sim.truth().values())
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            archived, _ = await world.archived()
            if wanted is not None and archived >= wanted:
                return
            if hurry:
                await world.end_leases()
            await world.let_hours_pass()
        await asyncio.sleep(1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="repeats the run of that seed; else a new one is drawn")
    parser.add_argument("--recordings", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=210)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the storm lasts")
    parser.add_argument(
        "--bad-each", type=int, default=40, help="of so many recordings one can't be had during the storm; 0: of none"
    )
    parser.add_argument("--plan", action="store_true", help="only print what would happen")
    asked = parser.parse_args(arguments)
    seed = asked.seed if asked.seed is not None else random.randrange(1 << 32)
    if asked.plan:
        print(*plan(seed, kills=asked.kills, seconds=asked.seconds), sep="\n")
        return 0
    print(f"seed {seed}; the same again: make chaos SEED={seed}", flush=True)
    report = asyncio.run(
        run(
            seed,
            recordings=asked.recordings,
            kills=asked.kills,
            seconds=asked.seconds,
            bad_each=asked.bad_each,
            say=lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True),
        )
    )
    for name, value in report.rows():
        print(f"| {name} | {value} |")
    for line in (*report.wrong, *report.crashes):
        print(f"\nWRONG: {line}")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
