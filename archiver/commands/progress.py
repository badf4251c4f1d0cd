"""Progress on a terminal's standard error."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from .common import console

if TYPE_CHECKING:
    from ..engine import Engine


@contextlib.contextmanager
def progress() -> Any:
    """On a terminal a bar that counts finished media; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TransferSpeedColumn(), console=console(err=True), transient=True) as bars:
        bar = bars.add_task("archived", total=None)

        def watch(engine: Engine) -> None:
            engine.on_settled = lambda *_: bars.advance(bar)

        yield watch
