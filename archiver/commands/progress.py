"""A progress bar with rate and time left: on a terminal, on standard error; elsewhere nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import CatalogDown
from .common import console

if TYPE_CHECKING:
    from ..model import Window
    from ..sync.engine import Engine
    from ..sync.feeds import Feed

#: Seconds between two looks at what is left.
EVERY = 2.0


class Bar:
    """Takes what is done; draws nothing where there is no terminal."""

    def __init__(self, bars: Any = None, task: Any = None, size: Any = None) -> None:
        self._bars, self._task, self._size = bars, task, size

    @property
    def shown(self) -> bool:
        return self._bars is not None

    def advance(self, count: int = 1, size: int = 0) -> None:
        """So much more is done, of so many bytes."""
        if self.shown:
            self._bars.advance(self._task, count)
            self._bars.advance(self._size, size)

    def of(self, done: int, total: int) -> None:
        """So much is done, of so much."""
        if self.shown:
            self._bars.update(self._task, completed=done, total=total)

    def says(self, what: str, **total: int | None) -> None:
        """What stands before the bar, and perhaps another ``total``."""
        if self.shown:
            self._bars.update(self._task, description=what, **total)


@contextlib.contextmanager
def bar(what: str, *, of_bytes: bool = False, total: int | None = None) -> Iterator[Bar]:
    """A bar that counts things (with the bytes' rate beside), or ``of_bytes``. Logs appear above it."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    from ..common.words import size, span

    # From the beginning on: things are finished in groups, so a short while says little of the rate.
    def rate(task: Any) -> float:
        return float(task.completed / task.elapsed) if task.elapsed else 0.0

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            held = next((other for other in bars.tasks if not other.visible), task)
            per_second = [] if of_bytes or not task.completed else [f"{rate(task):.3g}/s"]
            per_second += [f"{size(rate(held))}/s"] if held is not task and held.completed else []
            return Text(" ".join([f"{size(rate(task))}/s"] if of_bytes else per_second))

    class Left(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Any) -> Text:
            known = task.total is not None and task.completed
            left = f", {span((task.total - task.completed) / rate(task))} left" if known and rate(task) else ""
            return Text(f"{span(task.elapsed)}{left}")

    counted = DownloadColumn(binary_units=True) if of_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(20), counted, Rate(), Left()
    with Progress(*columns, console=console(err=True), transient=True, redirect_stdout=False) as bars:
        task = bars.add_task(what, total=total)
        yield Bar(bars, task, bars.add_task("bytes", total=None, visible=False))


@contextlib.asynccontextmanager
async def archiving(names: Sequence[str], wanted: Window | None) -> AsyncIterator[Any]:
    """A bar of media archived out of those known by now; yields what ``run_once`` calls with its engine."""
    with bar("archived") as shown:
        if not shown.shown:
            yield None
            return
        looking: list[asyncio.Task[None]] = []

        def begin(engine: Engine) -> None:
            engine.on_settled = lambda finished, _: shown.advance(1, getattr(finished, "size", 0))
            looking.append(asyncio.create_task(_look(shown, engine, names, wanted)))

        try:
            yield begin
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)


def asked_of(feeds: Iterable[Feed]) -> str:
    """How often these recorders were asked for anything so far."""
    count = sum(feed.gate.started for feed in feeds)
    return f"{count} request{'' if count == 1 else 's'}"


@contextlib.asynccontextmanager
async def listing(what: str, feed: Feed) -> AsyncIterator[Bar]:
    """A bar of things listed that tells also how often the recorder was asked."""
    with bar(what) as shown:

        async def look() -> None:
            while True:
                shown.says(f"{what} ({asked_of([feed])})")
                await asyncio.sleep(EVERY)

        looking = asyncio.create_task(look())
        try:
            yield shown
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def _look(shown: Bar, engine: Engine, names: Sequence[str], wanted: Window | None) -> None:
    """How much there is to do grows while sources are listed."""
    while True:
        began = time.monotonic()
        with contextlib.suppress(CatalogDown):
            counts = await engine.catalog.counts(list(names), wanted if len(names) == 1 else None)
            left = sum(states["pending"][0] for states in counts.values() if "pending" in states)
            # One window, or a file of call ids, may take hundreds of requests before anything is to be archived.
            listing = f"listing ({asked_of(engine.feeds.values())}), " if engine.shares.listing else ""
            shown.says(f"{listing}archived", total=left + sum(engine.tally.states.values()))
        # A large catalog is not asked all the time.
        await asyncio.sleep(max(EVERY, 5 * (time.monotonic() - began)))
