"""A file of call ids that is followed as it grows, is rotated or replaced; and the ids that are to be asked again.

What was rotated away is read to its end: it is found beside the new file, by its inode where it was renamed, by what
it begins with where it was copied. Where it is not to be found, a rejected row says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Self

from ...common.words import reason_of
from ...errors import BadData
from ...model import LONGEST_ID, Rejected, holdable

#: Bytes read, and ids asked, at a time.
_READ, _ASK = 1 << 13, 500
_MARK = 64
#: Who wrote a file may have it open for a while after it was renamed.
_SETTLED = timedelta(hours=1)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")


def line_id(line: str) -> str | None:
    """The id on a line, None where there is none. Raises ValueError for what is no id.

    Spaces around it and a comment (``#`` at the beginning or after a space) do not count. An id that has such is
    written in double quotes, as JSON writes a text.
    """
    told = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
    quoted = line.strip()
    if len(quoted) > 2 and quoted[0] == quoted[-1] == '"':
        try:
            told = json.loads(quoted)
        except ValueError:
            pass
        else:
            quoted = ""
    if not told:
        return None
    if len(told.encode(errors="replace")) > LONGEST_ID or holdable(told) != told or (quoted and not told.isprintable()):
        raise ValueError("a line that is no id")
    return told


def last_id(path: Path) -> str | None:
    """The last id of a file; blocking. Raises BadData."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _READ))
            ids, _ = _ids(file.read(_READ))
    except OSError as error:
        raise _unreadable(path, error) from None
    return ids[-1] if ids else None


@dataclass(slots=True)
class Place:
    """How far a file is read: its ``inode``, its ``size`` then, and the ``offset``."""

    inode: int = 0
    size: int = 0
    offset: int = 0
    #: Hash of the last bytes before ``offset``, and a sum of all of them: a file that was written anew has others.
    mark: str = ""
    #: None: the cursor of an earlier version does not tell.
    crc: int | None = 0
    #: ``offset`` lies within a line that is too long to hold an id.
    within: bool = False

    def goes_on_in(self, file: IO[bytes]) -> bool:
        """Is this the file, with all that was read of it?"""
        found = os.fstat(file.fileno())
        return found.st_ino == self.inode and found.st_size >= self.offset and _mark(file, self.offset) == self.mark

    def begins(self, file: IO[bytes]) -> bool:
        """Does this (other) file begin with all that was read?"""
        return (
            self.offset > 0
            and os.fstat(file.fileno()).st_size >= self.offset
            and _mark(file, self.offset) == self.mark
            and self.crc in {None, _sum(file, self.offset)}
        )

    def take(self, file: IO[bytes]) -> tuple[bytes, list[Rejected], bool]:
        """The next whole lines, what in them is far too long, and whether there is more.

        A last line without its end is taken once the file has stood still between two reads.
        """
        found = os.fstat(file.fileno())
        crc = self.crc if self.crc is not None else _sum(file, self.offset)
        file.seek(self.offset)
        data = file.read(_READ)
        at_end = self.offset + len(data) >= found.st_size
        whole = data[: data.rfind(b"\n") + 1]
        if at_end and (found.st_ino, found.st_size) == (self.inode, self.size):
            whole = data
        lines, rejected = whole, []
        if self.within:
            # The rest of a line that was rejected.
            whole = whole or data
            _, ended, lines = whole.partition(b"\n")
            self.within = not ended
        elif not whole and len(data) == _READ:
            whole, lines, self.within = data, b"", True
            rejected.append(_rejected(data))
        self.inode, self.size = found.st_ino, found.st_size
        self.offset += len(whole)
        self.mark, self.crc = _mark(file, self.offset), zlib.crc32(whole, crc)
        return lines, rejected, not at_end


@dataclass(slots=True)
class Feed:
    """How far the file, and those that it replaced, are read, and the calls that may go on."""

    at: Place = field(default_factory=Place)
    #: Files that were rotated away and may not be read to their end yet, the oldest first.
    old: list[Place] = field(default_factory=list)
    #: By id: when to ask again, and from when on for the last time (epoch seconds).
    open: dict[str, tuple[float, float]] = field(default_factory=dict)
    more: bool = False
    #: Why there is no file, if so.
    missing: BadData | None = None

    @classmethod
    def parse(cls, cursor: str | None) -> Self:
        """The state a cursor tells; from the beginning where there is none, or nobody can read it."""
        try:
            told: dict[str, Any] = json.loads(cursor or "{}")
            waiting = {str(i): (float(at), float(until)) for i, (at, until) in dict(told.pop("open", {})).items()}
            old = [Place(*place) for place in told.pop("old", [])]
            return cls(Place(**{"crc": None, **told}) if told else Place(), old, waiting)
        except (ValueError, TypeError, AttributeError):
            return cls()

    def text(self) -> str:
        """The cursor."""
        at = {name: getattr(self.at, name) for name in ("inode", "size", "offset", "mark", "crc", "within")}
        told = {**at, "old": [astuple(place) for place in self.old], "open": self.open}
        return json.dumps(told, separators=(",", ":"))

    def read(self, path: Path) -> tuple[list[str], list[Rejected]]:
        """The ids of the next whole lines, and the lines that are none; blocking. Raises BadData.

        ``missing`` says why there is no file: what was read of it before is gone on with all the same.
        """
        ids: list[str] = []
        rejected: list[Rejected] = []
        self.more, self.missing = False, None
        try:
            try:
                file = path.open("rb")
            except OSError as error:
                self.missing = _unreadable(path, error)
                # Renamed, and the new one is not there yet?
                renamed = next((n for n in _neighbours(path) if self.at.inode and n.inode == self.at.inode), None)
                if renamed is None:
                    return ids, self._read_old(path, ids)
                file = renamed.path.open("rb")
            with file:
                if self.at.inode and not self.at.goes_on_in(file):
                    rejected += self._turned(path, file)
                rejected += self._read_old(path, ids)
                self._take(self.at, file, ids, rejected)
        except OSError as error:
            raise _unreadable(path, error) from None
        return ids, rejected

    def _turned(self, path: Path, file: IO[bytes]) -> list[Rejected]:
        """Another file lies there, or the same was written anew: look for the one that was read until now."""
        was, self.at = self.at, Place()
        others = [n for n in _neighbours(path) if n.inode != os.fstat(file.fileno()).st_ino]
        kept = next((n for n in others if n.inode == was.inode and n.holds(was.goes_on_in)), None)
        kept = kept or next((n for n in others if n.rotated and n.holds(was.begins)), None)
        if kept is not None:
            self.old.append(replace(was, inode=kept.inode))
            # There may have been several rotations since the last look.
            since = [n for n in others if n.rotated and n is not kept and n.changed_at >= kept.changed_at]
            self.old += [Place(inode=n.inode) for n in since if not n.packed]
            packed = [n.path.name for n in since if n.packed]
            return [_lost(path, was, f"{', '.join(packed)} can't be read: packed too early")] if packed else []
        if was.begins(file):
            # Replaced by one that goes on where it ended: an editor does so.
            self.at = replace(was, inode=os.fstat(file.fileno()).st_ino)
            return []
        return [_lost(path, was, "the file before it is not to be found")] if was.size or was.offset else []

    def _read_old(self, path: Path, ids: list[str]) -> list[Rejected]:
        rejected: list[Rejected] = []
        places, self.old = self.old, []
        there = {n.inode: n for n in _neighbours(path)} if places else {}
        for place in places:
            if (found := there.get(place.inode)) is None:
                if place.offset < place.size:
                    rejected.append(_lost(path, place, "the file before it was removed before it was read to its end"))
                continue
            with found.path.open("rb") as file:
                if place.offset and not place.goes_on_in(file):
                    rejected.append(_lost(path, place, "the file before it was written anew"))
                    continue
                read_before = place.offset
                more = self._take(place, file, ids, rejected)
                still = place.offset == read_before and time.time() - found.changed_at > _SETTLED.total_seconds()
                if more or not still or place.offset < place.size:
                    self.old.append(place)
        return rejected

    def _take(self, place: Place, file: IO[bytes], ids: list[str], rejected: list[Rejected]) -> bool:
        lines, unread, more = place.take(file)
        found, wrong = _ids(lines)
        ids += found
        rejected += [*unread, *wrong]
        self.more = self.more or more
        return more

    def due(self, now: float) -> list[str]:
        """The ids to ask now: those first that have waited longest, and before them those that were never asked."""
        due = [i for i, (at, _) in sorted(self.open.items(), key=lambda entry: entry[1][0]) if at <= now]
        self.more = self.more or len(due) > _ASK
        return due[:_ASK]

    def add(self, i: str, until: float) -> None:
        """Ask for this id at once, and until that moment."""
        self.open.setdefault(i, (0.0, until))

    def failed(self, i: str, now: float) -> None:
        """Somebody else asks for it again (Listing.failed); here only when its call can't last any longer."""
        until = self.open.pop(i)[1]
        if now < until:
            self.open[i] = (until, until)

    def answered(self, i: str, now: float, again: timedelta) -> bool:
        """Plan when to ask again, the last time when no call can last longer; was this it?"""
        until = self.open[i][1]
        if now >= until:
            del self.open[i]
            return True
        self.open[i] = (min(now + again.total_seconds(), until), until)
        return False


@dataclass(frozen=True, slots=True)
class _Neighbour:
    path: Path
    inode: int
    changed_at: float
    #: Is it named like the followed file, with a number or a date?
    rotated: bool

    @property
    def packed(self) -> bool:
        return self.path.name.endswith(_PACKED)

    def holds(self, what: Any) -> bool:
        try:
            with self.path.open("rb") as file:
                return bool(what(file))
        except OSError:
            return False


def _neighbours(path: Path) -> Iterable[_Neighbour]:
    """The files of its folder, the one that was changed last at the end."""
    real = path.resolve()
    name, stem, ending = (re.escape(part) for part in (real.name, real.stem, real.suffix))
    pattern = re.compile(rf"(?:{name}[.-]\d[\d.-]*|{stem}[.-]\d[\d.-]*{ending})(?:\.[a-z0-9]{{2,4}})?")
    return sorted(_files(real.parent, pattern), key=lambda n: n.changed_at)


def _files(folder: Path, pattern: re.Pattern[str]) -> Iterator[_Neighbour]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    rotated = pattern.fullmatch(entry.name) is not None
                    yield _Neighbour(Path(entry.path), found.st_ino, found.st_mtime, rotated)
    except OSError:
        return


def _mark(file: IO[bytes], offset: int) -> str:
    file.seek(max(0, offset - _MARK))
    return hashlib.blake2b(file.read(min(_MARK, offset)), digest_size=8).hexdigest() if offset else ""


def _sum(file: IO[bytes], length: int) -> int:
    file.seek(0)
    crc = 0
    while length and (data := file.read(min(length, 1 << 20))):
        crc, length = zlib.crc32(data, crc), length - len(data)
    return crc


def _ids(lines: bytes) -> tuple[list[str], list[Rejected]]:
    ids, rejected = [], []
    for line in lines.decode("utf-8-sig", "replace").split("\n"):
        try:
            told = line_id(line)
        except ValueError:
            rejected.append(_rejected(line.encode(errors="replace")))
        else:
            ids += [told] if told else []
    return ids, rejected


def _rejected(line: bytes) -> Rejected:
    return Rejected(raw=line[:4096].decode("utf-8", "replace"), reason="a line of ids_file that is no id")


def _lost(path: Path, was: Place, why: str) -> Rejected:
    told = {"ids_file": str(path), "inode": was.inode, "read_to": was.offset}
    what = "what was appended to it since the last look is not read: give those ids to backfill --ids"
    return Rejected(raw=json.dumps(told), reason=f"ids_file was replaced, and {why}: {what}")


def _unreadable(path: Path, error: OSError) -> BadData:
    return BadData(f"can't read ids_file {path}: {reason_of(error)}")
