"""`make soak`: half an hour of a daemon with 50 simulated recorders that keep failing; does anything grow?

One real daemon (embedded PostgreSQL, a file store and an S3 store); the recorders live in this process. Memory and file
descriptors of the last third are held against the first, rows and log bytes against recordings. `--minutes 3` is a
short look: the figures of the first minutes are still those of a process that warms up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import asyncpg

sys.path.insert(0, str(Path(__file__).parent.parent))

from archiver.catalog.embedded import Embedded
from archiver.simulators.base import Simulator
from tests.servers import Seaweed, free_ports, seaweed

#: kind, where, how likely at each request, value
FAULTS: tuple[tuple[str, str, float, object], ...] = (
    ("status", "list", 0.02, 503),
    ("torn", "list", 0.005, None),
    ("reset", "*", 0.005, None),
    ("stall", "*", 0.001, None),
    ("truncate", "audio", 0.02, None),
    ("html", "audio", 0.01, None),
    ("status", "audio", 0.01, 500),
    ("retry_after", "audio", 0.01, 2),
    ("drip", "audio", 0.01, 0.2),
)
#: Not looked at, in seconds: caches fill, connections open, the first lookback passes.
WARM_UP = 360.0
SAMPLE = 5.0
ALLOWED = 1.05
MOST_THREADS = 64


@dataclass(slots=True)
class Sample:
    """What the daemon holds at one moment."""

    at: float
    rss: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Count:
    """What has come together by one moment."""

    at: float
    recordings: int
    log: int
    rows: dict[str, int]
    manifests: int
    database: int


@dataclass(slots=True)
class Soak:
    folder: Path
    s3: Seaweed
    port: int
    minutes: float
    every: float
    recorders: dict[str, Simulator] = field(default_factory=dict)
    ids: dict[str, Path] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    #: Not a day before it: listing that would be most of what the first minutes do.
    start: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    outages: int = 0
    #: Calls found archived whole.
    proved: set[tuple[str, str]] = field(default_factory=set)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    # -- the recorders -------------------------------------------------------------------------------------------------

    async def begin(self, stack: contextlib.AsyncExitStack, number: int) -> None:
        kinds = sorted(entry_points(group="archiver.simulators"), key=lambda kind: kind.name)
        for index in range(number):
            kind = kinds[index % len(kinds)]
            name = f"{kind.name}{index // len(kinds):02}"
            simulator = kind.load()(seed=index + 1)
            await stack.enter_async_context(simulator)
            self.recorders[name] = simulator
            if kind.name == "noojee":
                self.ids[name] = self.folder / f"{name}.ids"
                self.ids[name].touch()
        (self.folder / "archiver.toml").write_text(self.config(), "utf-8")
        (self.folder / "archiver.toml").chmod(0o600)

    def config(self) -> str:
        tables: dict[str, dict[str, Any]] = {
            "http": {"listen": f"127.0.0.1:{self.port}"},
            "stores.disk": {"kind": "file", "path": "store"},
            "stores.main": {
                "kind": "s3",
                "bucket": self.s3.make_bucket("soak"),
                "endpoint_url": self.s3.s3_url,
                "access_key_id": self.s3.access_key,
                "secret_access_key": self.s3.secret_key,
            },
        }
        for name, simulator in self.recorders.items():
            tables[f"sources.{name}"] = simulator.options() | {
                "poll": "10s", "settle": "1s", "window": "5m", "lookback": "5m", "longest_call": "1m", "timeout": "10s",
            }  # fmt: skip
            if name in self.ids:
                tables[f"sources.{name}"] |= {"listing": "none", "ids_file": str(self.ids[name])}
        lines = ['data_dir = "var"']
        for table, options in tables.items():
            lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
            if table.startswith("sources."):
                lines += ['retry = { first = "2s", cap = "30s" }', f"start = {self.start}"]
        return "\n".join(lines) + "\n"

    async def call(self) -> None:
        """At every recorder a call ends each so many seconds, for ever."""
        names = list(self.recorders)
        pause = self.every / len(names)
        due = time.monotonic()
        while True:
            for name in names:
                simulator = self.recorders[name]
                length = timedelta(seconds=round(self.random.uniform(2, 6), 3))
                call = simulator.add_call(simulator.clock.now() - length, length)
                if name in self.ids:
                    with self.ids[name].open("a", encoding="utf-8") as ids:
                        ids.write(f"{simulator.unique_id(call)}\n")  # type: ignore[attr-defined]
                simulator.seen.clear()
                due += pause
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def spoil(self) -> None:
        """Some requests go wrong always; each half minute one recorder is away for a while."""
        for simulator in self.recorders.values():
            for kind, on, chance, value in FAULTS:
                simulator.fault(kind, on, times=-1, chance=chance, value=value)
        while True:
            await asyncio.sleep(30)
            simulator = self.random.choice(list(self.recorders.values()))
            await simulator.stop()
            self.outages += 1
            try:
                await asyncio.sleep(15)
            finally:
                await simulator.start()

    # -- watching ------------------------------------------------------------------------------------------------------

    async def sample(self, pid: int, began: float) -> None:
        while True:
            told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            self.samples.append(
                Sample(
                    time.monotonic() - began,
                    int(told["VmRSS"].split()[0]) * 1024,
                    sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
                    int(told["Threads"]),
                )
            )
            await asyncio.sleep(SAMPLE)

    async def count(self, url: str, began: float) -> None:
        while True:
            self.counts.append(await self.counted(url, began))
            last, now = self.samples[-1], self.counts[-1]
            print(
                f"{now.at / 60:5.1f} min  {now.recordings:6} recordings  RSS {last.rss / 2**20:6.1f} MiB"
                f"  {last.descriptors:3} descriptors  log {now.log / 2**20:6.2f} MiB",
                flush=True,
            )
            await asyncio.sleep(min(60.0, self.minutes * 3))

    async def counted(self, url: str, began: float) -> Count:
        connection = await asyncpg.connect(url)
        try:
            names = [r[0] for r in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname='public'")]
            rows = {name: await connection.fetchval(f'SELECT count(*) FROM "{name}"') for name in names}
            database = await connection.fetchval("SELECT pg_database_size(current_database())")
        finally:
            await connection.close()
        manifests = await asyncio.to_thread(lambda: sum(1 for _ in self.folder.glob("store/_manifests/**/*.jsonl")))
        at = time.monotonic() - began
        return Count(at, rows["recordings"], self.log.stat().st_size, rows, manifests, database)

    async def missing(self, url: str) -> list[str]:
        """What the recorders hold and the file store does not, byte for byte; what S3 holds is counted."""
        connection = await asyncpg.connect(url)
        try:
            rows = await connection.fetch("SELECT source, recording_id, media_id, store, key, sha256 FROM copies")
        finally:
            await connection.close()
        held: dict[tuple[str, str, str], dict[str, Any]] = {}
        for row in rows:
            held.setdefault((row["source"], row["recording_id"], row["media_id"]), {})[row["store"]] = row
        lost = []
        for name, simulator in self.recorders.items():
            for call in [c for c in simulator.calls if (name, c.uuid) not in self.proved]:
                # The recorders must go on answering.
                await asyncio.sleep(0)
                media = [
                    (name, recording_id, media_id, audio)
                    for recording_id, expected in simulator.expected(call).items()
                    for media_id, audio in expected.audio.items()
                ]
                lacking = [" ".join(what) for *what, audio in media if not self._same(held.get(tuple(what), {}), audio)]
                lost += lacking
                if not lacking:
                    self.proved.add((name, call.uuid))
        return lost

    def _same(self, copies: dict[str, Any], audio: bytes) -> bool:
        if set(copies) != {"disk", "main"} or {c["sha256"] for c in copies.values()} != {_sha256(audio)}:
            return False
        return (self.folder / "store" / copies["disk"]["key"]).read_bytes() == audio

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def verdict(self) -> list[tuple[str, str, str, bool]]:
        """What was measured, in the first and in the last third, and whether that is well."""
        begin = min(WARM_UP, self.minutes * 60 / 4)
        first, last = _thirds(self.samples, begin)
        told = []
        for what, of, unit in (
            ("resident memory, MiB", "rss", 2**20),
            ("file descriptors", "descriptors", 1),
            ("threads", "threads", 1),
        ):
            one, other = (statistics.fmean(getattr(s, of) for s in part) / unit for part in (first, last))
            # Pools fill one by one, up to what they may have.
            well = other <= MOST_THREADS if of == "threads" else other <= one * ALLOWED
            told.append((what, f"{one:.1f}", f"{other:.1f}", well))
        first_counts, last_counts = _thirds(self.counts, begin)
        values = {"log bytes": lambda c: c.log, "manifest files": lambda c: c.manifests}
        values |= {f"rows of {name}": _rows(name) for name in sorted(self.counts[-1].rows)}
        for what, value in values.items():
            one, other = (_each(part, value) for part in (first_counts, last_counts))
            # A row more or less in a small table is no trend.
            told.append((f"{what} per recording", f"{one:.3f}", f"{other:.3f}", other <= one * 1.1 + 0.01))
        return told


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _rows(name: str) -> Any:
    return lambda count: count.rows[name]


def _thirds(measured: list[Any], begin: float) -> tuple[list[Any], list[Any]]:
    warm = [m for m in measured if m.at >= begin]
    third = (warm[-1].at - begin) / 3
    return [m for m in warm if m.at <= begin + third], [m for m in warm if m.at >= warm[-1].at - third]


def _each(counts: list[Count], value: Any) -> float:
    return float(value(counts[-1]) - value(counts[0])) / max(1, counts[-1].recordings - counts[0].recordings)


async def soak(folder: Path, s3: Seaweed, asked: argparse.Namespace) -> int:
    made = Soak(folder, s3, free_ports(1)[0], asked.minutes, asked.every)
    async with contextlib.AsyncExitStack() as stack:
        await made.begin(stack, asked.recorders)
        with made.log.open("wb") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "archiver", "--config", str(folder / "archiver.toml"), "run"],
                stderr=log, stdout=log, cwd=folder, start_new_session=True,
                # As the unit has it.
                env={**os.environ, "MALLOC_ARENA_MAX": "2", "PYTHONPATH": str(Path(__file__).parent.parent)},
            )  # fmt: skip
        stack.callback(daemon.kill)
        while "daemon.ready" not in made.log.read_text():
            if daemon.poll() is not None:
                raise SystemExit(f"the daemon ended: {made.log.read_text()[-2000:]}")
            await asyncio.sleep(0.2)
        database = Embedded(folder / "var" / "postgres")
        url = await database.start()
        stack.push_async_callback(database.stop)
        began = time.monotonic()
        work = [
            asyncio.create_task(job)
            for job in (made.call(), made.spoil(), made.sample(daemon.pid, began), made.count(url, began))
        ]
        await asyncio.wait(work, timeout=asked.minutes * 60, return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        if daemon.poll() is not None:
            raise SystemExit(f"the daemon ended: {made.log.read_text()[-2000:]}")
        made.counts.append(await made.counted(url, began))
        hits = sum(fault.hits for simulator in made.recorders.values() for fault in simulator.faults)
        for simulator in made.recorders.values():
            simulator.faults.clear()
            # It may have been away just now; started again it keeps its port.
            await simulator.stop()
            await simulator.start()
        lost = await made.missing(url)
        end = time.monotonic() + 660
        while lost and time.monotonic() < end:
            await asyncio.sleep(5)
            lost = await made.missing(url)
        daemon.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(daemon.wait, 30)
    spool = sum(1 for path in (folder / "var" / "spool").rglob("*") if path.is_file())
    recordings = made.counts[-1].recordings
    print(f"\n{recordings} recordings of {len(made.recorders)} recorders in {asked.minutes:g} minutes;", end=" ")
    print(f"{hits} requests went wrong on purpose, {made.outages} outages of a recorder;", end=" ")
    print(f"{len(lost)} media not archived byte for byte in both stores; {spool} files left in the spool;", end=" ")
    print(f"database {made.counts[-1].database / 2**20:.0f} MiB; the daemon ended with {code}\n")
    print("| | first third | last third | |\n|---|---:|---:|---|")
    verdict = made.verdict()
    for what, one, other, well in verdict:
        print(f"| {what} | {one} | {other} | {'flat' if well else 'GROWS'} |")
    for line in lost[:10]:
        print("missing:", line)
    return 0 if all(well for *_, well in verdict) and not lost and not spool and code == 0 else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--recorders", type=int, default=50)
    parser.add_argument("--every", type=float, default=10.0, help="seconds from one call to the next at each recorder")
    parser.add_argument("--keep", help="work in this folder, and leave it")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(asked.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="archiver-soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        # Root's PostgreSQL runs as somebody else, who must get through.
        folder.chmod(0o755)
        s3 = stack.enter_context(seaweed())
        code = asyncio.run(soak(folder, s3, asked))
    sys.exit(code)


if __name__ == "__main__":
    main()
