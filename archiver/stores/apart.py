"""A process of its own that puts files, so that neither the event loop nor the disk waits for Python's interpreter.

A system call gives the interpreter up and wants it back, and a put makes a dozen: with both in one process, each waits
for the other half of the time (docs/performance.md). The bytes go over in memory that both hold (``memfd_create(2)``),
names and hashes through a socket; the answer is what went wrong with each file. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from .disk import Disk, File

#: Bytes of one group.
ROOM = 16 << 20
_NUMBER = 8


class Unavailable(Exception):
    """There is no such process here, or it ended before its answer."""


class Apart:
    """The parent's end: one group of files at a time; the first starts the process. Blocking."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        #: Where the bytes lie; its pages are used again and again.
        self._memory = -1

    def put_all(self, files: Sequence[File]) -> None:
        """As Disk.put_all. Raises Unavailable: then some may have been put, and all may be put again."""
        try:
            connection = self._socket or self._start()
            _fill(self._memory, files)
            _send(connection, [(file.key, file.size, file.sha256) for file in files])
            failed = _receive(connection)
        except (OSError, EOFError, AttributeError) as error:
            self.close()
            raise Unavailable(str(error)) from error
        for file, its in zip(files, failed, strict=True):
            file.failed = its

    def close(self) -> None:
        """End the process; the next group starts another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            os.close(self._memory)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _start(self) -> socket.socket:
        with contextlib.ExitStack() as undo:
            memory = os.memfd_create("archiver-put")
            undo.callback(os.close, memory)
            os.ftruncate(memory, ROOM)
            ours, its = socket.socketpair()
            undo.callback(ours.close)
            with its:
                passed = (its.fileno(), memory)
                command = [sys.executable, "-P", "-m", __name__, *map(str, passed), self._path]
                self._process = subprocess.Popen(  # noqa: S603
                    command, pass_fds=passed, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
            undo.pop_all()
        self._memory, self._socket = memory, ours
        return ours


def _fill(memory: int, files: Sequence[File]) -> None:
    left = [memoryview(chunk) for file in files for chunk in file.chunks() if len(chunk)]
    offset = 0
    while left:
        written = os.pwritev(memory, left[:512], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def _send(connection: socket.socket, what: object) -> None:
    data = pickle.dumps(what)
    connection.sendall(len(data).to_bytes(_NUMBER, "big") + data)


def _receive(connection: socket.socket) -> Any:
    """Raises EOFError where the other end is gone."""
    size = int.from_bytes(_exactly(connection, _NUMBER), "big")
    return pickle.loads(_exactly(connection, size))  # noqa: S301 - the other end is ours, and nobody else has it


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise EOFError("it ended")
        data += chunk
    return data


def _serve(connection: socket.socket, memory: memoryview, disk: Disk) -> None:
    with contextlib.suppress(ConnectionError, EOFError):
        while True:
            files: list[File] = []
            offset = 0
            for key, size, sha256 in _receive(connection):
                files.append(File(key, size, sha256, partial(iter, [memory[offset : offset + size]])))
                offset += size
            try:
                disk.put_all(files)
            except Exception as error:  # noqa: BLE001 - its parent raises it
                _send(connection, [error] * len(files))
            else:
                _send(connection, [file.failed for file in files])


def main() -> None:
    # A stop is its parent's to decide: who is told to end together with it may still be asked.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        _serve(connection, memoryview(mmap.mmap(int(sys.argv[2]), ROOM, prot=mmap.PROT_READ)), Disk(sys.argv[3]))


if __name__ == "__main__":
    main()
