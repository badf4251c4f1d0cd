"""Room on the disks that are written to: a reserve stays free, for what else lives there."""

from __future__ import annotations

import os
from pathlib import Path

from .words import size

#: Of any disk …
_LEAST, _SHARE = 1 << 30, 50
#: … but no more than this part of a small one.
_MOST_SHARE = 10
#: Files that must still be possible, or this part of all, where that is less.
_FILES, _FILES_SHARE = 1000, 100


def reserve_of(total: int) -> int:
    """How much stays free of a disk of so many bytes: 1 GiB or 2 %, whichever is more, and never more than a tenth."""
    return min(max(_LEAST, total // _SHARE), total // _MOST_SHARE)


def lacking(path: Path, reserve: int | None, wanted: int = 0) -> str | None:
    """Why nothing more (of ``wanted`` bytes) may be written below there, if so. Blocks while the disk answers.

    ``reserve``: None: as :func:`reserve_of` says. What does not tell its size (some network file systems) has room.
    """
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        disk = os.statvfs(there)
    except OSError:
        return None
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    keep = reserve_of(total) if reserve is None else reserve
    if total and free - wanted < keep:
        return f"the disk of {path} has {size(free)} free, and {size(keep)} of it stay free (reserve)"
    if disk.f_files and disk.f_favail < max(1, min(_FILES, disk.f_files // _FILES_SHARE)):
        return f"the disk of {path} has room for {disk.f_favail} files only (df -i {there})"
    return None
