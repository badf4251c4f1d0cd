"""The commands as users run them: `python -m archiver` on a config of one's own, against simulators in this process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import asyncpg

from archiver.simulators.base import Simulator

#: The day of the calls in these tests, long past: nothing of it changes any more.
DAY = datetime(2024, 5, 17, tzinfo=UTC)
WHOLE_DAY = ("--from", "2024-05-17", "--to", "2024-05-18")
#: Of no command here; the machine may be busy.
PATIENCE = 90.0
HOUR = timedelta(hours=1)
ROOT = Path(__file__).resolve().parent.parent
S = TypeVar("S", bound=Simulator)


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left behind."""

    code: int
    raw: bytes
    err: str
    seconds: float

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        """The one JSON document on standard output; fails where anything else stands there."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        """One JSON document a line, and nothing else."""
        return [json.loads(line) for line in self.out.splitlines()]

    def __str__(self) -> str:
        return f"exit code {self.code} after {self.seconds:.1f} s\n--- out\n{self.out}\n--- err\n{self.err}"


class Running:
    """A command under way; whatever it writes is kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.began = time.monotonic()
        assert process.stdout is not None
        assert process.stderr is not None
        self._out, self._err = bytearray(), bytearray()
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self._out)),
            asyncio.create_task(self._read(process.stderr, self._err)),
        ]

    @staticmethod
    async def _read(stream: asyncio.StreamReader, into: bytearray) -> None:
        while chunk := await stream.read(1 << 16):
            into += chunk

    @property
    def err(self) -> str:
        return self._err.decode("utf-8", "replace")

    @property
    def over(self) -> bool:
        return self.process.returncode is not None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def said(self, text: str, patience: float = PATIENCE) -> None:
        """Wait until its standard error holds the text."""
        await until(lambda: text in self.err or self.over, patience)
        assert text in self.err, f"it never said {text!r}:\n{self.err}"

    async def end(self, number: int | None = None, patience: float = PATIENCE) -> Finished:
        """Wait until it has ended, after a signal where one is given."""
        began = time.monotonic()
        if number is not None:
            self.signal(number)
        try:
            await asyncio.wait_for(self.process.wait(), patience)
            await asyncio.wait_for(asyncio.gather(*self._readers), 10)
        except TimeoutError:
            raise AssertionError(f"it did not end within {patience:.0f} s:\n{self.err}") from None
        assert self.process.returncode is not None
        return Finished(self.process.returncode, bytes(self._out), self.err, time.monotonic() - began)

    async def abandon(self) -> None:
        if not self.over:
            self.process.kill()
            await self.process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


async def until(is_so: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Look often until something is so."""
    end = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < end, f"not so within {patience:.0f} s"
        await asyncio.sleep(0.02)


@dataclass(slots=True)
class Place:
    """A folder with a config; its sources are simulators. ``config`` is written anew by each command."""

    folder: Path
    database: str
    simulators: dict[str, Simulator] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    log_level: str | None = None
    _running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = {
            "data_dir": "var",
            "database": {"url": self.database},
            "http": {"listen": ""},
            "stores": {"disk": {"kind": "file", "path": "store"}},
            "sources": {},
        } | self.config

    @property
    def path(self) -> Path:
        return self.folder / "archiver.toml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    async def add(self, name: str, simulator: S, **options: Any) -> S:
        """Start a recorder and name it in the config: its windows are an hour long, and nothing waits."""
        await simulator.start()
        self.simulators[name] = simulator
        start = datetime.now(UTC) - 3 * HOUR
        quick = {"start": start, "settle": "1s", "lookback": "1h", "longest_call": "1h", "retry": {"first": "1s"}}
        self.config["sources"][name] = simulator.options() | quick | options
        return simulator

    async def mark(self, recording_id: str, *flags: str, note: str | None = None) -> None:
        """Its media are kept as evidence."""
        connection = await asyncpg.connect(self.database)
        try:
            statement = "UPDATE media SET flags = $2, note = $3 WHERE recording_id = $1"
            await connection.execute(statement, recording_id, flags, note)
        finally:
            await connection.close()

    def write(self) -> Path:
        text = toml(self.config)
        # Not under the eyes of a command that reads it.
        if not self.path.exists() or self.path.read_text("utf-8") != text:
            self.path.write_text(text, "utf-8")
            self.path.chmod(0o600)
        return self.path

    def _line(self, arguments: Iterable[str], config: bool) -> list[str]:
        options = ("--config", str(self.write())) if config else ()
        return [*options, *(("--log-level", self.log_level) if self.log_level else ()), *arguments]

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ARCHIVER_")}
        # What it keeps in the home folder by default is no other test's.
        home = {"HOME": str(self.folder / "home")}
        return inherited | home | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"} | self.env | dict(env or {})

    async def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Running:
        """Start ``python -m archiver``; it is killed at the end of the test, where it still runs."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "archiver",
            *self._line(arguments, config=True),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(env),
            cwd=self.folder,
        )
        self._running.append(Running(process))
        return self._running[-1]

    async def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        code: int | None = 0,
        config: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Finished:
        """Run a command to its end in a process of its own. Whatever it comes to, nobody is shown a traceback."""
        asked = {"line": self._line(arguments, config), "env": self._environment(env), "cwd": str(cwd or self.folder)}
        finished = await nursery().run(asked, stdin)
        assert "Traceback" not in finished.err, finished
        assert code is None or finished.code == code, finished
        return finished

    async def json(self, *arguments: str, **how: Any) -> Any:
        return (await self.run(*arguments, "--json", **how)).json

    async def close(self) -> None:
        for running in self._running:
            await running.abandon()
        for simulator in self.simulators.values():
            await simulator.stop()

    # -- what came of it -----------------------------------------------------------------------------------------------

    def truth(self) -> dict[tuple[str, str, str], bytes]:
        """By (source, recording_id, media_id) the bytes that the recorders hold."""
        return {
            (name, recording_id, media_id): data
            for name, simulator in self.simulators.items()
            for recording_id, expected in simulator.truth().items()
            for media_id, data in expected.audio.items()
        }

    async def held(self) -> dict[tuple[str, str, str], bytes]:
        """The same, as the catalog tells and the file store holds it."""
        found = (await self.run("list", "--json")).rows
        return {
            (r["source"], r["recording_id"], m["media_id"]): (self.store / m["copies"][0]["key"]).read_bytes()
            for r in found
            for m in r["media"]
            if m["state"] == "archived"
        }

    def objects(self) -> dict[str, bytes]:
        """Every file of the store by its key, manifests and temporaries included."""
        return {
            str(path.relative_to(self.store)): path.read_bytes() for path in self.store.rglob("*") if path.is_file()
        }

    def requests(self, *on: str) -> int:
        """How many requests arrived at the recorders; only of these routes, where named."""
        return sum(seen.on in on or not on for s in self.simulators.values() for seen in s.seen)


# -- many short commands: importing everything anew for each would take most of the tests' time ------------------------


class Nursery:
    """A process that has the whole program imported, and is forked for each command."""

    def __init__(self) -> None:
        self._address = f"\0archiver-tests-{os.getpid()}-{time.monotonic_ns()}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands", self._address[1:]], cwd=ROOT, stdin=subprocess.PIPE
        )

    def end(self) -> None:
        self._process.communicate()

    async def run(self, asked: Mapping[str, Any], stdin: bytes) -> Finished:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(stdin)
            files[0].seek(0)
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            await self._connect(connection)
            question = json.dumps(asked).encode()
            socket.send_fds(connection, [len(question).to_bytes(4, "big")], [file.fileno() for file in files])
            await loop.sock_sendall(connection, question)
            try:
                code = await asyncio.wait_for(loop.sock_recv(connection, 16), PATIENCE)
            except TimeoutError:
                code = b""
            out, err = (os.pread(file.fileno(), 64 << 20, 0) for file in files[1:])
            finished = Finished(int(code or -1), out, err.decode("utf-8", "replace"), time.monotonic() - began)
            assert code, f"{asked['line']} did not end, or was killed: {finished}"
            return finished

    async def _connect(self, connection: socket.socket) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return await asyncio.get_running_loop().sock_connect(connection, self._address)
            except (ConnectionRefusedError, BlockingIOError):
                assert time.monotonic() < end
                assert self._process.poll() is None
                await asyncio.sleep(0.05)


@functools.cache
def nursery() -> Nursery:
    """This process's own."""
    made = Nursery()
    atexit.register(made.end)
    return made


def _serve(address: str) -> None:
    """Fork for each connection, until standard input ends."""
    from archiver.commands import render  # noqa: F401
    from archiver.settings import config

    for group in ("archiver.sources", "archiver.stores"):
        for kind in config.kinds(group).values():
            kind.load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(f"\0{address}")
        listening.listen(64)
        selector.register(listening, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if listening not in ready:
                return
            connection, _ = listening.accept()
            if os.fork() == 0:
                selector.close()
                listening.close()
                _become(connection)
            connection.close()


def _become(connection: socket.socket) -> NoReturn:
    """Run one command as a fresh process would, tell its exit code, and end."""
    from archiver import cli

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    question = bytearray()
    while len(question) < int.from_bytes(size, "big"):
        question += connection.recv(1 << 20)
    asked = json.loads(question)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = ["archiver", *asked["line"]]
    code: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        connection.sendall(str(code).encode())
        os._exit(0)


# -- a place -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def place(folder: Path, database: str, **how: Any) -> AsyncIterator[Place]:
    made = Place(folder, database, **how)
    try:
        yield made
    finally:
        await made.close()


async def tables(database: str) -> dict[str, list[str]]:
    """Every row of every table, as JSON text."""
    connection = await asyncpg.connect(database)
    try:
        names = [
            row[0] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ]
        return {
            name: [row[0] for row in await connection.fetch(f'SELECT to_jsonb(t)::text FROM "{name}" t')]
            for name in names
        }
    finally:
        await connection.close()


# -- TOML ------------------------------------------------------------------------------------------------------------


def toml(document: Mapping[str, Any]) -> str:
    """Plain values first, then each table of tables."""
    plain = {k: v for k, v in document.items() if not isinstance(v, Mapping)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for section, table in document.items():
        if not isinstance(table, Mapping):
            continue
        if section not in {"stores", "sources"}:
            lines += ["", f"[{section}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
            continue
        for name, options in table.items():
            lines += ["", f"[{section}.{name}]", *(f"{key} = {_value(value)}" for key, value in options.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str | bool | int | float):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


if __name__ == "__main__":
    _serve(sys.argv[1])
