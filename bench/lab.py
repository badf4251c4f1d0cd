"""What the benchmarks stand on: servers on loopback, a recorder of static files, a clock for process trees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import asyncpg
import boto3

from archiver.catalog.catalog import Catalog
from archiver.catalog.embedded import Embedded
from archiver.simulators import audio
from tests.servers import Seaweed, Server, free_ports, seaweed

BIN = Path(sys.executable).parent
#: The first call of every recorder here, in ms since 1970.
BEGIN_MS = 1_715_904_001_000
#: A window that holds them all.
SPAN = ("--from", "2024-05-17", "--to", "2024-05-18")
TRANSFERS = 24


@dataclass(frozen=True, slots=True)
class Timing:
    """What a process and all that it started took: seconds, CPU seconds, MB of memory at the peak."""

    wall: float
    cpu: float
    rss: float
    output: str = ""


class Nginx(Server):
    """Static files that look like a Chronicall, and their folders to whoever wants to see them."""

    def __init__(self, folder: Path) -> None:
        super().__init__("nginx", folder)
        (self.port,) = free_ports(1)
        self.root = folder / "www"
        self.root.mkdir()
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log; {user}
events {{ worker_connections 512; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000; default_type audio/wav;
  server {{ listen 127.0.0.1:{self.port}; root {self.root}; autoindex on;
    location ~ ^(/[^/]+)/rest/api/v1/recordings$ {{ try_files $1/list.json =404; }} }} }}""")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(self.folder / "nginx.conf")]

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def recorder(self, name: str, files: int, seconds: float, begin: datetime | None = None) -> int:
        """``files`` calls half a second apart, each a WAV of so many seconds (16 kB each); the bytes of one."""
        first = BEGIN_MS if begin is None else int(begin.timestamp() * 1000)
        api = self.root / name / "rest/api/v1/recordings"
        api.mkdir(parents=True)
        rows, size, rnd = [], 0, random.Random(name)
        for number in range(files):
            start = first + number * 500
            key = f"{uuid.UUID(int=rnd.getrandbits(128))}-{start}"
            row = {"recordingKey": key, "startTime": start, "duration": int(seconds * 1000), "status": "SAVED"}
            rows.append(row)
            if seconds:
                data = audio.make("wav", seconds=seconds, seed=key)
                size = len(data)
                (api / key).mkdir()
                (api / key / "audio").write_bytes(data)
        (self.root / name / "list.json").write_text(json.dumps(rows))
        return size


class Database:
    """A PostgreSQL as a user has it (nothing tuned), driven from a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._embedded = Embedded(folder)
        self._url = self.run(self._embedded.start())
        self._made = 0

    def run(self, what):
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(3600)

    def fresh(self) -> str:
        """The URL of a new database without a schema."""
        self._made += 1
        name = f"bench_{self._made}"
        self.execute(f"CREATE DATABASE {name}")
        before, after = self._url.split("?")
        return f"{before.rpartition('/')[0]}/{name}?{after}"

    def drop(self, url: str) -> None:
        self.execute(f"DROP DATABASE {url.partition('?')[0].rpartition('/')[2]}")

    def migrated(self) -> str:
        url = self.fresh()

        async def migrate() -> None:
            catalog = await Catalog.open(url, size=1)
            await catalog.migrate()
            await catalog.close()

        self.run(migrate())
        return url

    def execute(self, statement: str, url: str | None = None) -> None:
        async def once() -> None:
            connection = await asyncpg.connect(url or self._url)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        self.run(once())

    def value(self, query: str, url: str):
        """One value of one row."""

        async def once():
            connection = await asyncpg.connect(url)
            try:
                return await connection.fetchval(query)
            finally:
                await connection.close()

        return self.run(once())

    def stop(self) -> None:
        self.run(self._embedded.stop())


def timed(command: Sequence[str], cwd: Path, *, expect: int = 0) -> Timing:
    """Run it to its end. Raises SystemExit where it ends otherwise than expected."""
    # Nobody is to write what another left in memory. (Nor is anything deleted between two runs: for minutes ext4 looks
    # at each deleted file's place before it makes a new one.)
    os.sync()
    # Compiled modules are kept, as they are wherever it is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0.0
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as wrong:
        process = subprocess.Popen(command, cwd=cwd, stdout=said, stderr=wrong, env=environment)
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        said.seek(0)
        wrong.seek(0)
        if process.returncode != expect:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {wrong.read().decode()[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Timing(wall, cpu, peak, said.read().decode())


def memory_of(pid: int) -> float:
    """MB that a process and those below it hold."""
    total = 0.0
    with contextlib.suppress(OSError):
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory_of(int(child)) for child in (task / "children").read_text().split())
    return total


def cpu_of(pid: int) -> float:
    """CPU seconds that a running process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Place:
    """A folder, the servers, and what a user types."""

    folder: Path
    nginx: Nginx
    database: Database
    runs: int
    scale: float
    made: int = 0
    seaweed: Seaweed = field(init=False)
    stores: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def tidy(self) -> None:
        """Before a case: what the last one made goes, and the next gets a SeaweedFS of its own.

        All cases together are more than one of them holds, and than some disks do.
        """
        for folder in self.folder.glob("work-*"):
            shutil.rmtree(folder)
        self.stores.close()
        self.seaweed = self.stores.enter_context(seaweed())
        self.seaweed.make_bucket("bench")
        # The first object makes volumes, which takes seconds.
        boto3.client("s3", **self.client).put_object(Bucket="bench", Key="first", Body=b"first")

    @property
    def client(self) -> dict[str, str]:
        """What boto3 needs to know of the S3 store."""
        return {
            "endpoint_url": self.seaweed.s3_url,
            "region_name": "us-east-1",
            "aws_access_key_id": self.seaweed.access_key,
            "aws_secret_access_key": self.seaweed.secret_key,
        }

    def work(self) -> Path:
        """A new empty folder for one run."""
        self.made += 1
        folder = self.folder / f"work-{self.made}"
        folder.mkdir()
        return folder

    def store(self, kind: str, folder: Path) -> str:
        """A new empty store, as the config describes it."""
        s3, prefix = self.seaweed, f"run-{self.made}/"
        if kind == "s3":
            keys = f'access_key_id = "{s3.access_key}"\nsecret_access_key = "{s3.secret_key}"'
            return f'kind = "s3"\nbucket = "bench"\nprefix = "{prefix}"\nendpoint_url = "{s3.s3_url}"\n{keys}'
        if kind == "webdav":
            return f'kind = "webdav"\nurl = "{s3.webdav_url}"\nprefix = "{prefix}"'
        return f'kind = "file"\npath = "{folder}/archive"'

    def config(
        self,
        folder: Path,
        recorder: str,
        kind: str,
        *,
        database: str | None = None,
        store: str = "",
        start: str = "2024-05-17",
        more: str = "",
    ) -> str:
        """Writes archiver.toml; returns the database's URL."""
        database = database or self.database.migrated()
        file = folder / "archiver.toml"
        file.write_text(f"""
data_dir = "var"
transfers = 32
[database]
url = "{database}"
[http]
listen = "127.0.0.1:{free_ports(1)[0]}"
[stores.main]
{store or self.store(kind, folder)}
[sources.hq]
kind = "chronicall"
format = "wav"
base_url = "{self.nginx.url}/{recorder}"
token = "bench"
concurrency = {TRANSFERS}
window = "1d"
start = {start}
{more}
""")
        file.chmod(0o600)
        return database

    def archiver(self, folder: Path, *arguments: str) -> Timing:
        return timed([str(BIN / "archiver"), "--log-level", "error", *arguments], folder)

    def backfill(self, folder: Path) -> Timing:
        return self.archiver(folder, "backfill", "--source", "hq", *SPAN, "--json")

    def rclone(self, folder: Path, recorder: str, kind: str) -> Timing:
        s3 = self.seaweed
        (folder / "rclone.conf").write_text(f"""
[web]
type = http
url = {self.nginx.url}/{recorder}/rest/
[s3]
type = s3
provider = SeaweedFS
access_key_id = {s3.access_key}
secret_access_key = {s3.secret_key}
endpoint = {s3.s3_url}
[webdav]
type = webdav
url = {s3.webdav_url}
""")
        target = {"s3": "s3:bench/", "webdav": "webdav:", "file": f"{folder}/"}[kind] + f"rclone-{self.made}"
        how = ["--transfers", str(TRANSFERS), "--checkers", str(TRANSFERS), "--stats", "0"]
        return timed(
            [str(BIN / "rclone"), "--config", str(folder / "rclone.conf"), "copy", "web:", target, *how], folder
        )


@contextlib.contextmanager
def place(runs: int, scale: float) -> Iterator[Place]:
    """Everything started; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)
    (folder / "nginx").mkdir()
    nginx = Nginx(folder / "nginx")
    try:
        nginx.start()
        database = Database(folder / "postgres")
        try:
            lab = Place(folder, nginx, database, runs, scale)
            with lab.stores:
                lab.tidy()
                yield lab
        finally:
            database.stop()
    finally:
        nginx.stop()
        shutil.rmtree(folder, ignore_errors=True)
