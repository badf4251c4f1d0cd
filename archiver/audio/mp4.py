"""MP4, M4A, 3GP and QuickTime: boxes to the end, durations from ``moov`` or its fragments.

``moov`` is written last by most: a file without it was never closed. Facts: ISO 14496-12 (boxes, edit lists,
fragments), ISO 14496-1 (``esds``), Apple's QuickTime File Format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import unpack, unpack_from

from .base import GOOD, MAX_CHUNKS, Audio, Bytes, Finding, cut, empty, made, span, unchecked, unfinished

MP4_BEGINS = (b"ftyp", b"styp", b"moov", b"mdat", b"wide")
#: Boxes of the whole file: a fragmented one of a day has two each second.
_MOST_BOXES = 200_000
_MOST_TRACKS = 16
_CODINGS = {
    b"samr": "amr",
    b"sawb": "amr_wb",
    b"alaw": "alaw",
    b"ulaw": "ulaw",
    b"sowt": "pcm_s16le",
    b"twos": "pcm_s16be",
    b"in24": "pcm_s24be",
    b"fl32": "pcm_f32be",
    b"Opus": "opus",
    b"fLaC": "flac",
    b".mp3": "mp3",
    b"ima4": "ima_adpcm",
    b"agsm": "gsm",
    b"ms\x00\x02": "ms_adpcm",
    b"ms\x00\x11": "ima_adpcm",
    b"ms\x00\x31": "gsm",
    b"ms\x00\x55": "mp3",
}
#: In an ``esds`` box the object type follows the tags and lengths of two descriptors.
_OBJECT_TYPE = re.compile(rb"esds.{4}\x03[\x80-\xff]{0,3}.{4}\x04[\x80-\xff]{0,3}.(.)", re.DOTALL)


@dataclass(slots=True)
class _Track:
    number: int = 0
    kind: bytes = b""
    coding: str | None = None
    scale: int = 0
    ticks: int = 0
    #: Ticks of the movie that the edit list shows; 0: all.
    shown: int = 0
    #: Bytes of all samples.
    size: int = 0
    #: Ticks of a sample in a fragment, where it is not told there.
    default: int = 0
    fragments: int = 0


@dataclass(slots=True)
class _Movie:
    scale: int = 0
    indexed: bool = False
    fragmented: bool = False
    #: Bytes of all media data that are here.
    data: int = 0
    tracks: list[_Track] = field(default_factory=list)

    def track(self, number: int) -> _Track | None:
        return next((t for t in self.tracks if t.number == number), None)


def _boxes(it: Bytes, pos: int, end: int, most: int = MAX_CHUNKS) -> Iterator[tuple[bytes, int, int]]:
    """Names, and where their contents begin and end: a last one may end beyond ``end``."""
    for _ in range(most):
        if pos >= end:
            return
        head = it.at(pos, 16)
        size, start = int.from_bytes(head[:4], "big"), pos + 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), pos + 16
        elif size == 0:
            size = end - pos
        if len(head) < 8 or start - pos > size:
            # No box at all, or the beginning of one.
            yield b"", pos, end + 1
            return
        yield head[4:8], start, pos + size
        pos += size
    yield b"", pos, pos


def read_mp4(it: Bytes) -> Audio:
    """What such a file is."""
    movie = _Movie()
    finding = _walked(it, movie)
    sounds = [t for t in movie.tracks if t.kind == b"soun"]
    if finding is GOOD:
        finding = _whole(movie, sounds)
    seconds = max((_seconds(movie, t) for t in sounds), default=0.0)
    codings = {t.coding for t in sounds}
    coding = codings.pop() if len(codings) == 1 else None
    if any(t.kind == b"vide" for t in movie.tracks):
        return made("video/mp4", "mp4", finding, coding=coding, duration=span(seconds, 1))
    return made("audio/mp4", "m4a", finding, coding=coding, duration=span(seconds, 1))


def _walked(it: Bytes, movie: _Movie) -> Finding:
    for name, start, end in _boxes(it, 0, it.length, _MOST_BOXES):
        if name == b"mdat":
            movie.data += min(end, it.length) - start
        if not name and start == end:
            return unchecked("the MP4 file has more boxes than anybody would write")
        if end > it.length:
            if not name and it.are_zeros(start):
                return GOOD
            return cut(f"the MP4 file is cut or damaged in the box before byte {min(end, it.length)}")
        if name == b"moov":
            movie.indexed = True
            _movie(it, start, end, movie)
        elif name == b"moof":
            for inner, at, stop in _boxes(it, start, end):
                if inner == b"traf" and stop <= end:
                    _fragment(it, at, stop, movie)
    return GOOD


def _whole(movie: _Movie, sounds: list[_Track]) -> Finding:
    if not movie.indexed:
        return unfinished("the MP4 file's index (moov) is missing: its writer is still at work, or was killed")
    promised = sum(t.size for t in movie.tracks)
    if promised > movie.data:
        return cut(f"the MP4 file is cut: {movie.data} of its {promised} bytes of media are here")
    if not sounds:
        return unchecked("the MP4 file has no track of sound")
    if not movie.data or not any(t.size or t.fragments for t in sounds):
        return empty("the MP4 file holds no audio: it is headers only")
    return GOOD


def _seconds(movie: _Movie, track: _Track) -> float:
    if track.fragments:
        return track.fragments / track.scale if track.scale else 0.0
    if track.shown and movie.scale:
        return track.shown / movie.scale
    return track.ticks / track.scale if track.scale else 0.0


def _times(it: Bytes, start: int) -> tuple[int, int]:
    """Ticks a second and ticks, of an ``mvhd`` or ``mdhd`` box."""
    body = it.at(start, 32).ljust(32, b"\0")
    scale, ticks = unpack_from(">IQ", body, 20) if body[0] == 1 else unpack_from(">II", body, 12)
    return scale, 0 if ticks in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else ticks


def _movie(it: Bytes, start: int, end: int, movie: _Movie) -> None:
    for name, at, stop in _boxes(it, start, end):
        if stop > end:
            return
        if name == b"mvhd":
            movie.scale, _ = _times(it, at)
        elif name == b"trak" and len(movie.tracks) < _MOST_TRACKS:
            track = _Track()
            _track(it, at, stop, track)
            movie.tracks.append(track)
        elif name == b"mvex":
            movie.fragmented = True
            for inner, trex, _ in _boxes(it, at, stop):
                number, _, default = unpack(">III", it.at(trex + 4, 12).ljust(12, b"\0"))
                if inner == b"trex" and (found := movie.track(number)):
                    found.default = default


def _track(it: Bytes, start: int, end: int, track: _Track) -> None:
    """The boxes of a ``trak``; those that only hold others are stepped into, each at its own depth."""
    for name, at, stop in _boxes(it, start, end):
        if stop > end:
            return
        if name == b"tkhd":
            wide = it.at(at, 1) == b"\x01"
            track.number = int.from_bytes(it.at(at + (20 if wide else 12), 4), "big")
        elif name == b"edts":
            for inner, elst, last in _boxes(it, at, stop):
                if inner == b"elst":
                    track.shown = _shown(it, elst, min(last, stop))
        elif name == b"mdia":
            _media(it, at, stop, track)


def _media(it: Bytes, start: int, end: int, track: _Track) -> None:
    for name, at, stop in _boxes(it, start, end):
        if name == b"mdhd":
            track.scale, track.ticks = _times(it, at)
        elif name == b"hdlr":
            # QuickTime has a second handler, of the data, within minf.
            track.kind = it.at(at + 8, 4)
        elif name == b"minf":
            for inner, table, last in _boxes(it, at, min(stop, end)):
                if inner == b"stbl":
                    _table(it, table, min(last, end), track)


def _table(it: Bytes, start: int, end: int, track: _Track) -> None:
    for name, at, stop in _boxes(it, start, end):
        if stop > end:
            return
        if name == b"stsd":
            entry = it.at(at + 8, min(stop - at - 8, 512))
            track.coding = _coding(entry)
        elif name == b"stsz":
            size, count = unpack(">II", it.at(at + 4, 8).ljust(8, b"\0"))
            track.size = size * count if size else _sum(it, at + 12, min(count, (stop - at - 12) // 4))


def _coding(entry: bytes) -> str | None:
    kind = entry[4:8]
    if kind == b"mp4a" and (told := _OBJECT_TYPE.search(entry)):
        return {0x69: "mp3", 0x6B: "mp3"}.get(told[1][0], "aac")
    if kind == b"sowt" and entry[26:28] == b"\x00\x08":
        return "pcm_s8"
    return "aac" if kind == b"mp4a" else _CODINGS.get(kind)


def _sum(it: Bytes, pos: int, count: int) -> int:
    """The sum of so many numbers of four bytes."""
    total = 0
    while count > 0:
        many = min(count, 1 << 14)
        part = it.at(pos, 4 * many)
        total += sum(unpack(f">{len(part) // 4}I", part[: len(part) & ~3]))
        pos, count = pos + 4 * many, count - many
    return total


def _shown(it: Bytes, at: int, stop: int) -> int:
    """Ticks of the movie that an edit list shows, without its empty edits."""
    head = it.at(at, 8).ljust(8, b"\0")
    wide, count = head[0] == 1, int.from_bytes(head[4:], "big")
    size = 20 if wide else 12
    total = 0
    for n in range(min(count, MAX_CHUNKS, max(0, stop - at - 8) // size)):
        entry = it.at(at + 8 + n * size, size).ljust(size, b"\0")
        ticks, begin = unpack_from(">Qq" if wide else ">Ii", entry)
        total += ticks if begin != -1 else 0
    return total


def _fragment(it: Bytes, start: int, end: int, movie: _Movie) -> None:
    track, default = None, 0
    for name, at, stop in _boxes(it, start, end):
        if stop > end:
            return
        if name == b"tfhd":
            body = it.at(at, 32).ljust(32, b"\0")
            flags, number = unpack_from(">II", body)
            track = movie.track(number)
            default = track.default if track else 0
            if flags & 8:
                (default,) = unpack_from(">I", body, 8 + (8 if flags & 1 else 0) + (4 if flags & 2 else 0))
        elif name == b"trun" and track is not None:
            track.fragments += _run(it, at, stop, default)


def _run(it: Bytes, at: int, stop: int, default: int) -> int:
    """Ticks of the samples of a ``trun``."""
    flags, count = unpack(">II", it.at(at, 8).ljust(8, b"\0"))
    if not flags & 0x100:
        return int(default * count)
    width = 4 * sum(bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800))
    pos = at + 8 + (4 if flags & 1 else 0) + (4 if flags & 4 else 0)
    count = min(count, max(0, stop - pos) // width)
    body = it.at(pos, count * width) if count <= 1 << 16 else b""
    return sum(int.from_bytes(body[n : n + 4], "big") for n in range(0, len(body) - 3, width))
