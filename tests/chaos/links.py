"""TCP in between: forwards what peers say, unless told to be slow, late, silent, or to cut them off."""

from __future__ import annotations

import asyncio
import contextlib

#: Bytes a second of a slow connection; how late what comes late is, in seconds.
SLOW = 30_000
LATE = 0.25


class Link:
    """Listens on a free port (the same for good) and connects each client to the target."""

    def __init__(self, name: str, target: int) -> None:
        self.name = name
        self.target = target
        self.port = 0
        self.trouble = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, now."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def troubled(self, how: str, seconds: float) -> None:
        """Be bad for so long; ``cut`` also refuses those who come meanwhile."""
        self.trouble = how
        if how == "cut":
            self.cut()
        await asyncio.sleep(seconds)
        self.trouble = ""

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.trouble == "cut":
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            far, other = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(other)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, other))
                group.create_task(self._forward(far, writer))
        except* OSError:
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, other):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, into: asyncio.StreamWriter) -> None:
        while chunk := await source.read(1 << 16):
            while self.trouble == "hang":
                await asyncio.sleep(0.1)
            if self.trouble == "late":
                await asyncio.sleep(LATE)
            elif self.trouble == "slow":
                await asyncio.sleep(len(chunk) / SLOW)
            into.write(chunk)
            await into.drain()
        with contextlib.suppress(OSError):
            into.write_eof()
