"""syncfs(2): all that a file system holds in memory goes to its disk, in one call in place of three fsyncs a file.

It stands for an fsync only where it tells of errors (Linux 5.8 and later, for those since the descriptor was opened)
and where the file system writes down folders and files alike: not on network and FUSE mounts, most of which take it
for a wish.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs"}
_FIRST_TO_TELL = (5, 8)


@cache
def _ctypes() -> tuple[Any, Any]:
    """It and the C library. Not for those who never need it: hardened systems may refuse it (MemoryError)."""
    import ctypes

    return ctypes, ctypes.CDLL(None, use_errno=True)


def syncfs(descriptor: int) -> None:
    """Wait until the file system of an open file or folder is on its disk. Raises OSError."""
    ctypes, library = _ctypes()
    if library.syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def stands_for_fsync(folder: str) -> bool:
    """Whether syncfs of an existing folder promises what fsync does of each of its files. Blocking."""
    if sys.platform != "linux" or _kernel() < _FIRST_TO_TELL:
        return False
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _file_system(os.fstat(descriptor).st_dev) not in _FILE_SYSTEMS:
            return False
        syncfs(descriptor)
    except (OSError, AttributeError, ImportError, MemoryError):
        return False
    finally:
        os.close(descriptor)
    return True


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _file_system(device: int) -> str | None:
    """Its name in /proc/self/mountinfo (proc_pid_mountinfo(5)), None where it is not there."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            return kind.split()[0]
    return None
