"""Converted audio and waveforms on disk: by content, bounded, readable by this account alone.

What is here can be made again from a store at any time. A name is the SHA-256 of the archived bytes and a suffix, so
an entry never goes stale; the least recently used go first. Everything here blocks: call it off the event loop.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

#: How the names of files begin that nobody has finished.
_TEMPORARY = "making-"


class Cache:
    """A folder of files named ``{sha256}.{suffix}`` that hold at most so many bytes together."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most

    def open(self) -> None:
        """Make the folder, and remove what a killed process left half made. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        for left in self.folder.glob(f"{_TEMPORARY}*"):
            left.unlink(missing_ok=True)

    def temporary(self) -> Path:
        """A new, empty file in the same folder, with mode 0600. Raises OSError."""
        handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.folder)
        os.close(handle)
        return Path(name)

    def find(self, sha256: str, suffix: str) -> Path | None:
        """Where it lies, now the most recently used; None where it is not there."""
        path = self._path(sha256, suffix)
        try:
            # Its time of change stays: an answer's ETag is made of it, and ranges of one file must agree.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except FileNotFoundError:
            return None
        return path

    def keep(self, made: Path, sha256: str, suffix: str) -> Path:
        """A finished file takes its name at once, and what is too much goes. Raises OSError."""
        path = self._path(sha256, suffix)
        made.chmod(0o600)
        os.utime(made)
        made.replace(path)
        self._evict(spare=sha256)
        return path

    def forget(self, sha256: str) -> None:
        """Remove all that was made from these bytes: they were erased, or a call is under way that needs them gone."""
        for path in self.folder.glob(f"{sha256}.*"):
            path.unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes that all entries hold."""
        return sum(size for _, size, _ in self._entries())

    def _path(self, sha256: str, suffix: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError("an entry is named by a SHA-256")
        return self.folder / f"{sha256}.{suffix}"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """When each was last used, its bytes, and where it lies."""
        entries = []
        for entry in os.scandir(self.folder):
            if entry.name.startswith(_TEMPORARY):
                continue
            with contextlib.suppress(FileNotFoundError):
                told = entry.stat()
                entries.append((told.st_atime, told.st_size, Path(entry.path)))
        return entries

    def _evict(self, *, spare: str) -> None:
        entries = sorted(self._entries())
        held = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if held <= self.most:
                return
            if not path.name.startswith(spare):
                # A player that has it open goes on: only the name goes.
                path.unlink(missing_ok=True)
                held -= size
