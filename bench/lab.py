"""What the benchmarks stand on: servers on loopback, a recorder of static files, a clock for process trees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shlex
import shutil
import socket
import struct
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

from archiver.catalog.embedded import Embedded
from tests.servers import Seaweed, Server, free_ports, seaweed

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
#: What the column "÷ before" compares with: the last build before recordings, windows and objects were told apart.
EARLIER = "caea6f1"
#: The first call of every recorder here, in ms since 1970.
BEGIN_MS = 1_715_904_001_000
#: A window that holds them all.
SPAN = ("--from", "2024-05-17", "--to", "2024-05-18")
TRANSFERS = 24
#: The head of a WAV file.
WAV_HEAD = struct.Struct("<4sI4s4sIHHIIHH4sI")


@dataclass(frozen=True, slots=True)
class Timing:
    """What a process and all that it started took: seconds, CPU seconds, MB of memory at the peak."""

    wall: float
    cpu: float
    rss: float
    output: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """One build of the archiver: its commands, and the steps that its own bench knows."""

    bin: Path = BIN
    steps: Path = ROOT / "bench" / "steps.py"


OURS = Build()


def earlier(folder: Path) -> Build | None:
    """The build of ``EARLIER`` with its own locked packages; None where the history or the packages can't be had."""
    tree = folder / "earlier"
    git = ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), EARLIER]
    pip = [str(tree / ".venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    steps = (
        git,
        [sys.executable, "-m", "venv", str(tree / ".venv")],
        # What its bench needs is more than what it needs itself.
        [*pip, "--require-hashes", "-r", str(tree / "requirements-dev.lock")],
        [*pip, "--no-deps", "--no-build-isolation", str(tree)],
    )
    for command in steps:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            print(f"Nothing to compare with: the build of {EARLIER} can't be made ({said})", file=sys.stderr)
            return None
    return Build(tree / ".venv" / "bin", tree / "bench" / "steps.py")


def forget_earlier(folder: Path) -> None:
    command = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder / "earlier")]
    subprocess.run(command, capture_output=True, check=False)


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
        """``files`` calls half a second apart, each a WAV of so many seconds (16 kB each); the bytes of one.

        They hold noise: what a store could compress on the way would measure its compression.
        """
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
                noise = rnd.randbytes(int(seconds * 16_000))
                size = len(noise)
                head = (b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16_000, 2, 16, b"data", size)
                data = WAV_HEAD.pack(*head) + noise
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
    #: The build to compare with, where there is one.
    before: Build | None = None
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
        build: Build = OURS,
    ) -> str:
        """Writes archiver.toml; returns the database's URL. A new database gets the build's own schema."""
        made = database is None
        database = database or self.database.fresh()
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
        if made:
            self.archiver(folder, "migrate", build=build)
        return database

    def archiver(self, folder: Path, *arguments: str, build: Build = OURS) -> Timing:
        return timed([str(build.bin / "archiver"), "--log-level", "error", *arguments], folder)

    def backfill(self, folder: Path, build: Build = OURS) -> Timing:
        return self.archiver(folder, "backfill", "--source", "hq", *SPAN, "--json", build=build)

    def rclone(self, folder: Path, recorder: str, kind: str, *, onto_disk: bool = False) -> Timing:
        """``onto_disk``: until its files are on the disk, which is what our copies are when they count."""
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
        # The media type is the same on both sides: by it some stores choose whether to compress.
        how = ["--transfers", str(TRANSFERS), "--checkers", str(TRANSFERS), "--stats", "0"]
        how += ["--header-upload", "Content-Type: audio/wav"]
        command = [str(BIN / "rclone"), "--config", str(folder / "rclone.conf"), "copy", "web:", target, *how]
        if onto_disk:
            command = ["sh", "-c", f"{shlex.join(command)} && sync -f {shlex.quote(target)}"]
        return timed(command, folder)


@contextlib.contextmanager
def place(runs: int, scale: float, *, compare: bool = True) -> Iterator[Place]:
    """Everything started; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)
    (folder / "nginx").mkdir()
    nginx = Nginx(folder / "nginx")
    try:
        nginx.start()
        database = Database(folder / "postgres")
        try:
            lab = Place(folder, nginx, database, runs, scale, before=earlier(folder) if compare else None)
            with lab.stores:
                lab.tidy()
                yield lab
        finally:
            database.stop()
            forget_earlier(folder)
    finally:
        nginx.stop()
        shutil.rmtree(folder, ignore_errors=True)
