"""How much room the disks of this host have; one that hangs (a lost network share) holds up nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

#: In seconds; what answers later is not known.
PATIENCE = 1.0

Room = tuple[int, int]
_asked: dict[Path, asyncio.Future[Room | None]] = {}


async def rooms(paths: Iterable[Path]) -> dict[Path, Room]:
    """Free and all bytes by path, of those that can be told; at most one thread waits for each."""
    loop = asyncio.get_running_loop()
    for path in (wanted := set(paths)):
        if path not in _asked or _asked[path].get_loop() is not loop:
            answer = _asked[path] = loop.create_future()
            # A daemon's thread: the end of the program does not wait for it.
            threading.Thread(target=_ask, args=(path, loop, answer), daemon=True).start()
    answers = {path: _asked[path] for path in wanted}
    if answers:
        await asyncio.wait(answers.values(), timeout=PATIENCE)
    found = {}
    for path, answer in answers.items():
        if answer.done():
            _asked.pop(path, None)
            if (room := answer.result()) is not None:
                found[path] = room
    return found


def _ask(path: Path, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Room | None]) -> None:
    room = None
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(path)
        room = usage.free, usage.total
    # The loop may have ended meanwhile.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_answer, answer, room)


def _answer(answer: asyncio.Future[Room | None], room: Room | None) -> None:
    if not answer.done():
        answer.set_result(room)
