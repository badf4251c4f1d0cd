"""`archiver demo`: simulated recorders of every kind, a fresh archive, faults that heal; nothing to configure."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.tree import Tree

from ..catalog.catalog import Query
from ..common import log
from ..common.words import size
from ..model import Download, Outcome, State
from ..service import report
from ..service.daemon import Daemon
from ..service.wiring import Archive, opened
from ..settings import config as configuration
from ..simulators.base import Simulator
from ..sync.engine import Engine
from . import render

#: How a demo's config begins.
_WRITTEN = "# Written by `archiver demo`"
#: How long the archive may take to hold everything, in seconds.
PATIENCE = 170.0
#: What goes wrong on the way: kind, where, how often, value.
FAULTS: tuple[tuple[str, str, int, object, str], ...] = (
    ("status", "list", 1, 503, "a listing answered 503"),
    ("truncate", "audio", 2, None, "downloads cut off half-way"),
    ("html", "audio", 1, None, "a log-in page in place of audio"),
    ("reset", "audio", 1, None, "a connection reset"),
    ("retry_after", "audio", 1, 1, "429, slow down"),
)


def main(folder: Path, calls: int) -> int:
    """Run the demo in ``folder`` (made anew); the exit code: 0 when every call was archived."""
    if folder.exists() and any(folder.iterdir()) and not _is_demo(folder):
        click.echo(f"{folder} holds something that is not a demo; name another --folder", err=True)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return asyncio.run(_demo(folder.resolve(), calls))


def _is_demo(folder: Path) -> bool:
    """Did a demo make it? A folder with a config of somebody's own is not made anew."""
    config = folder / "archiver.toml"
    return config.is_file() and config.read_text("utf-8", "replace").startswith(_WRITTEN)


async def _demo(folder: Path, calls: int) -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    async with contextlib.AsyncExitStack() as stack:
        simulators = await _recorders(stack, calls)
        path = folder / "archiver.toml"
        path.write_text(_config(simulators), "utf-8")
        path.chmod(0o600)
        loaded = configuration.load(path)
        log.configure(level="error", json=None, secrets=loaded.secrets)
        console.print(f"[bold]{len(simulators)} simulated recorders[/] hold {calls} calls of yesterday: ", end="")
        console.print(", ".join(simulators))
        console.print(f"[bold]a fresh archive[/] in {folder}: PostgreSQL of its own, a file store\n")
        archive = await stack.enter_async_context(opened(loaded))
        return await _run(console, archive, simulators, folder)


async def _recorders(stack: contextlib.AsyncExitStack, calls: int) -> dict[str, Simulator]:
    """One recorder of each kind there is, with its share of yesterday's calls."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    simulators: dict[str, Simulator] = {}
    kinds = sorted(entry_points(group="archiver.simulators"), key=lambda kind: kind.name)
    for number, kind in enumerate(kinds):
        simulator: Simulator = kind.load()(seed=number + 1)
        share = calls // len(kinds) + (number < calls % len(kinds))
        simulator.add_calls(today - timedelta(hours=23), today - timedelta(minutes=30), share)
        simulators[kind.name] = await stack.enter_async_context(simulator)
    return simulators


def _config(simulators: dict[str, Simulator]) -> str:
    start = (datetime.now(UTC) - timedelta(days=1)).date()
    lines = [
        f"{_WRITTEN}. Try, from another terminal:",
        "#   archiver --config THIS_FILE status",
        "",
        'data_dir = "var"',
        "",
        "[stores.disk]",
        'kind = "file"',
        'path = "store"',
        "",
        "# Pages: archiver --config THIS_FILE serve",
        "[web]",
        'listen = "127.0.0.1:8411"',
    ]
    for name, simulator in simulators.items():
        lines += ["", f"[sources.{name}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in simulator.options().items()]
        lines += [f"start = {start}", 'poll = "2s"', 'settle = "1s"', 'retry = { first = "1s" }']
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


async def _run(console: Console, archive: Archive, simulators: dict[str, Simulator], folder: Path) -> int:
    daemon = Daemon(archive)
    seen = _Seen(console, daemon.engine)
    _break_things(console, simulators)
    running = asyncio.create_task(daemon.run())
    began = time.monotonic()
    _new_calls(console, simulators)
    missing: list[str] = []
    try:
        while time.monotonic() - began < PATIENCE and not running.done():
            await asyncio.sleep(1)
            missing = await _missing(archive, simulators)
            if not missing and not any(f.times for s in simulators.values() for f in s.faults):
                break
        if running.done():
            await running
        seen.healed(simulators)
        held = sum(len(s.truth()) for s in simulators.values()) - len({line.rpartition(" ")[0] for line in missing})
        console.print(
            f"\n[bold]{held} recordings archived and compared byte for byte[/] in {time.monotonic() - began:.1f} s"
        )
        for line in missing[:10]:
            console.print(f"[red]missing:[/] {render.clean(line)}")
        await _show(console, archive, folder)
        async with _face(console, archive.config):
            if sys.stdout.isatty() and not missing:
                console.print("\nNew calls keep coming. [bold]Ctrl-C[/] ends the demo.")
                while not running.done():
                    await asyncio.sleep(5)
                    for simulator in simulators.values():
                        _call_now(simulator)
    finally:
        daemon.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    return 1 if missing else 0


@contextlib.asynccontextmanager
async def _face(console: Console, config: configuration.Config) -> AsyncIterator[None]:
    """The pages, with an account made for them, until the demo ends; where the extra for them is installed."""
    try:
        from ..web import accounts
        from ..web.desk import accounts_file
        from ..web.serving import served
    except ModuleNotFoundError as error:
        console.print(f'\nNo pages: {error.name} is missing; pip install "archiver\\[web]" brings them.')
        yield
        return
    password = "-".join(secrets.token_hex(2) for _ in range(4))
    account = accounts.Account(name="demo", role="compliance", secret=accounts.hashed(password), made=datetime.now(UTC))
    file = accounts_file(config)
    file.write(accounts.with_user(file.read(), account))
    async with contextlib.AsyncExitStack() as stack:
        try:
            address = await stack.enter_async_context(served(config))
        except OSError:
            # Another demo's, say.
            address = await stack.enter_async_context(served(config, ("127.0.0.1", 0)))
        console.print(f"\n[bold]Open {address}[/] to find a call and hear it")
        console.print(f"name [bold]demo[/], password [bold]{password}[/]")
        yield


class _Seen:
    """Prints what the daemon does, now and then."""

    def __init__(self, console: Console, engine: Engine) -> None:
        self.console = console
        self.archived: Counter[str] = Counter()
        self.deferred: dict[tuple[str, str, str], str] = {}
        engine.on_settled = self.settled

    def settled(self, finished: Download | Outcome, state: State) -> None:
        claim = finished.claim
        if state is State.ARCHIVED:
            self.archived[claim.source] += 1
            if sum(self.archived.values()) % 50 == 0:
                self.console.print(
                    "  archived " + ", ".join(f"{n} {count}" for n, count in sorted(self.archived.items()))
                )
            if claim.id in self.deferred:
                self.console.print(f"  [green]healed[/] {claim.source}: {render.clean(self.deferred.pop(claim.id))}")
        elif finished.error:
            self.deferred[claim.id] = finished.error

    def healed(self, simulators: dict[str, Simulator]) -> None:
        hits = sum(f.hits for s in simulators.values() for f in s.faults)
        self.console.print(f"  {hits} faults met, {len(self.deferred)} not healed yet")


def _break_things(console: Console, simulators: dict[str, Simulator]) -> None:
    console.print("On the way these go wrong, at every recorder:")
    for kind, on, times, value, told in FAULTS:
        console.print(f"  {times} × {told}")
        for simulator in simulators.values():
            simulator.fault(kind, on, times=times, value=value)


def _new_calls(console: Console, simulators: dict[str, Simulator]) -> None:
    console.print("Meanwhile new calls come in.\n")
    for simulator in simulators.values():
        for _ in range(2):
            _call_now(simulator)


def _call_now(simulator: Simulator) -> None:
    """A call that has just ended, for recorders that list by the minute (one that lists by the hour tells it later)."""
    if not simulator.lists_closed_hours:
        simulator.add_call(simulator.clock.now() - timedelta(seconds=8), timedelta(seconds=4))


async def _missing(archive: Archive, simulators: dict[str, Simulator]) -> list[str]:
    """What the recorders hold and the archive does not, byte for byte."""
    problems = []
    for name, simulator in simulators.items():
        held = {d["recording_id"]: d async for d in archive.catalog.find(Query(source=name))}
        for recording_id, expected in simulator.truth().items():
            media = {m["media_id"]: m for m in held.get(recording_id, {"media": []})["media"]}
            for media_id, audio in expected.audio.items():
                copies = media.get(media_id, {"copies": []})["copies"]
                if not any(_same(archive, copy, audio) for copy in copies):
                    problems.append(f"{name} {recording_id} {media_id}")
    return problems


def _same(archive: Archive, copy: dict[str, Any], audio: bytes) -> bool:
    file = Path(getattr(archive.config.stores[copy["store"]].options, "path", "")) / copy["key"]
    told: str = copy["sha256"]
    return told == hashlib.sha256(audio).hexdigest() and file.is_file() and file.read_bytes() == audio


async def _show(console: Console, archive: Archive, folder: Path) -> None:
    console.print("\n[bold]The store[/] (what you would find without us)")
    store = folder / "store"
    tree = Tree(str(store))
    _grow(tree, sorted(store.iterdir()), depth=0)
    console.print(tree)
    console.print("\n[bold]$ archiver status[/]")
    render.status(console, await report.status(archive.config, archive.catalog))
    async for document in archive.catalog.find(Query(state="archived", limit=1)):
        console.print(f"\n[bold]$ archiver show {document['source']} {document['recording_id']}[/]")
        render.recording(console, document)
    console.print(f"\nconfig: {folder / 'archiver.toml'} · store: {store} · database: {folder / 'var' / 'postgres'}")


def _grow(tree: Tree, entries: Iterable[Path], depth: int) -> None:
    """The first of each folder; the rest is counted."""
    entries = list(entries)
    shown = entries if depth == 0 else entries[:1]
    for entry in shown:
        branch = tree.add(entry.name + ("/" if entry.is_dir() else f"  {size(entry.stat().st_size)}"))
        if entry.is_dir():
            _grow(branch, sorted(entry.iterdir()), depth + 1)
    if len(entries) > len(shown):
        tree.add(f"… and {len(entries) - len(shown)} more")
