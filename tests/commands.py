"""The commands as users run them: `python -m archiver` on a config of one's own, against simulators in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

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

    def write(self) -> Path:
        text = toml(self.config)
        # Not under the eyes of a command that reads it.
        if not self.path.exists() or self.path.read_text("utf-8") != text:
            self.path.write_text(text, "utf-8")
            self.path.chmod(0o600)
        return self.path

    async def start(
        self, *arguments: str, config: bool = True, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Running:
        """Start a command; it is killed at the end of the test, where it still runs."""
        if config:
            self.write()
        options = [*(("--config", str(self.path)) if config else ()), *self._level()]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ARCHIVER_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "archiver",
            *options,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"} | self.env | dict(env or {}),
            cwd=cwd or self.folder,
        )
        self._running.append(Running(process))
        return self._running[-1]

    def _level(self) -> Iterable[str]:
        return ("--log-level", self.log_level) if self.log_level else ()

    async def run(self, *arguments: str, stdin: bytes = b"", code: int | None = 0, **how: Any) -> Finished:
        """Run a command to its end. Whatever it comes to, nobody is shown a traceback."""
        running = await self.start(*arguments, **how)
        assert running.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            running.process.stdin.write(stdin)
            running.process.stdin.close()
        finished = await running.end()
        self._running.remove(running)
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


@contextlib.asynccontextmanager
async def place(folder: Path, database: str, **how: Any) -> AsyncIterator[Place]:
    made = Place(folder, database, **how)
    try:
        yield made
    finally:
        await made.close()


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
