"""A command on a terminal of its own, as a person sits before it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Self

from tests.commands import PATIENCE, ROOT, until

#: Takes the terminal as its own, so that what asks for secrets finds it.
_BEGIN = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv[0] = 'archiver';"
    "from archiver.cli import main; main()"
)


class Terminal:
    """Starts ``archiver`` with these arguments; use as an async context, which kills what still runs."""

    def __init__(self, *arguments: str, cwd: Path, columns: int = 80, rows: int = 40, **env: str) -> None:
        self._arguments, self._cwd, self._size, self._env = arguments, cwd, (rows, columns), env
        self._shown = bytearray()
        self._read_to = 0

    async def __aenter__(self) -> Self:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *self._size, 0, 0))
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("ARCHIVER_") and k not in {"COLUMNS", "LINES"}
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, *self._arguments],
            cwd=self._cwd,
            env=inherited
            | {"HOME": str(self._cwd / "home"), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
            | self._env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = asyncio.create_task(asyncio.to_thread(self._read))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        await asyncio.to_thread(self.process.wait)
        await self._reader
        os.close(self._ours)

    def _read(self) -> None:
        # The terminal hangs up (EIO) when the command has ended.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._ours, 1 << 16):
                self._shown += chunk

    @property
    def text(self) -> str:
        """All that was shown, without what steers the terminal."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self._shown.decode("utf-8", "replace"))

    @property
    def raw(self) -> str:
        return self._shown.decode("utf-8", "replace")

    async def shows(self, text: str) -> None:
        """Wait until it appears, behind what was waited for before."""

        def there() -> bool:
            return self.text.find(text, self._read_to) >= 0 or self._reader.done()

        await until(there, PATIENCE)
        at = self.text.find(text, self._read_to)
        assert at >= 0, f"{text!r} never came; it showed:\n{self.text}"
        self._read_to = at + len(text)

    async def types(self, text: str) -> None:
        os.write(self._ours, text.encode() + b"\n")

    async def answers(self, *pairs: tuple[str, str]) -> None:
        """Wait for each question, then answer it."""
        for question, answer in pairs:
            await self.shows(question)
            await self.types(answer)

    async def interrupted(self) -> int:
        """Ctrl-C; the exit code."""
        os.write(self._ours, b"\x03")
        return await self.ends()

    async def ends(self) -> int:
        await until(lambda: self.process.poll() is not None, PATIENCE)
        await self._reader
        assert self.process.returncode is not None
        return self.process.returncode
