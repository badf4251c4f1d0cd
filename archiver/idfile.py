"""A file of call ids that is followed as it grows, and the ids in it that are to be asked again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from .errors import BadData
from .model import Rejected

#: Bytes read, and ids asked, at a time.
_READ, _ASK = 1 << 13, 500
_MARK = 64
_LONGEST_ID = 128


@dataclass(slots=True)
class Feed:
    """How far the file is read (its ``inode``, ``size`` then, ``offset``), and the calls that may go on."""

    inode: int = 0
    size: int = 0
    offset: int = 0
    #: Hash of the bytes before ``offset``: a file that was written anew in place has others there.
    mark: str = ""
    #: By id: when to ask again, and from when on for the last time (epoch seconds).
    open: dict[str, tuple[float, float]] = field(default_factory=dict)
    more: bool = False

    @classmethod
    def parse(cls, cursor: str | None) -> Self:
        """The state a cursor tells; from the beginning where there is none, or nobody can read it."""
        try:
            told: dict[str, Any] = json.loads(cursor or "{}")
            waiting = {str(i): (float(at), float(until)) for i, (at, until) in dict(told.pop("open", {})).items()}
            return cls(open=waiting, **told)
        except (ValueError, TypeError, AttributeError):
            return cls()

    def text(self) -> str:
        """The cursor."""
        return json.dumps(
            {"inode": self.inode, "size": self.size, "offset": self.offset, "mark": self.mark, "open": self.open},
            separators=(",", ":"),
        )

    def read(self, path: Path) -> tuple[list[str], list[Rejected]]:
        """The ids of the next whole lines, and the lines that are none; blocking. Raises BadData.

        A last line without its end is taken once the file has stood still between two reads.
        """
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if (
                    stat.st_ino != self.inode
                    or stat.st_size < self.offset
                    or self._mark(file, self.offset) != self.mark
                ):
                    self.offset = 0
                file.seek(self.offset)
                data = file.read(_READ)
                whole = data[: data.rfind(b"\n") + 1]
                at_end = self.offset + len(data) >= stat.st_size
                if (at_end and (stat.st_ino, stat.st_size) == (self.inode, self.size)) or (
                    not whole and len(data) == _READ
                ):
                    whole = data
                self.inode, self.size = stat.st_ino, stat.st_size
                self.offset += len(whole)
                self.mark = self._mark(file, self.offset)
        except OSError as error:
            raise BadData(f"can't read ids_file {path}: {error.strerror or error}") from None
        self.more = not at_end
        return _ids(whole)

    def due(self, now: float) -> list[str]:
        """The ids to ask now."""
        due = [i for i, (at, _) in self.open.items() if at <= now]
        self.more = self.more or len(due) > _ASK
        return due[:_ASK]

    def add(self, i: str, until: float) -> None:
        """Ask for this id at once, and until that moment."""
        self.open.setdefault(i, (0.0, until))

    def failed(self, i: str, now: float, again: timedelta) -> None:
        self.open[i] = (now + again.total_seconds(), self.open[i][1])

    def answered(self, i: str, now: float, again: timedelta) -> bool:
        """Plan when to ask again, the last time when no call can last longer; was this it?"""
        until = self.open[i][1]
        if now >= until:
            del self.open[i]
            return True
        self.open[i] = (min(now + again.total_seconds(), until), until)
        return False

    @staticmethod
    def _mark(file: Any, offset: int) -> str:
        file.seek(max(0, offset - _MARK))
        return hashlib.blake2b(file.read(min(_MARK, offset)), digest_size=8).hexdigest() if offset else ""


def _ids(lines: bytes) -> tuple[list[str], list[Rejected]]:
    ids, rejected = [], []
    for line in lines.decode("utf-8-sig", "replace").splitlines():
        told = line.split("#", 1)[0].strip()
        if told and (len(told) > _LONGEST_ID or not told.isprintable()):
            rejected.append(Rejected(raw=line[:4096], reason="a line of ids_file that is no id"))
        elif told:
            ids.append(told)
    return ids, rejected
