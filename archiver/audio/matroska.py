"""Matroska and WebM: elements to the end, durations from the blocks of the first track of sound.

Masters are stepped into wherever they are met, so an unknown length, as writers to a pipe leave it, needs nothing of
its own. Facts: RFC 8794 (EBML), RFC 9559 (Matroska), the WebM container guidelines, RFC 7845 (Opus).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import unpack

from .base import GOOD, Audio, Bytes, Finding, cut, empty, made, span, unchecked, unfinished
from .codings import WAVE_TAGS, opus_samples, pcm

MATROSKA_BEGINS = b"\x1aE\xdf\xa3"
_HEADER, _DOC_TYPE = 0x1A45DFA3, 0x4282
_SEGMENT, _CLUSTER, _GROUP = 0x18538067, 0x1F43B675, 0xA0
_INFO, _SCALE, _DURATION = 0x1549A966, 0x2AD7B1, 0x4489
_TRACKS, _ENTRY, _AUDIO = 0x1654AE6B, 0xAE, 0xE1
_NUMBER, _TYPE, _CODEC, _PRIVATE, _DELAY, _FRAME = 0xD7, 0x83, 0x86, 0x63A2, 0x56AA, 0x23E383
_RATE, _CHANNELS, _BITS = 0xB5, 0x9F, 0x6264
_TIME, _SIMPLE, _BLOCK, _DISCARD = 0xE7, 0xA3, 0xA1, 0x75A2
_VALUES = {_DOC_TYPE, _SCALE, _DURATION, _NUMBER, _TYPE, _CODEC, _PRIVATE, _DELAY, _FRAME, _RATE, _CHANNELS, _BITS}
_VALUES |= {_TIME, _DISCARD}
_MASTERS = {_HEADER, _SEGMENT, _CLUSTER, _GROUP, _INFO, _TRACKS, _ENTRY, _AUDIO}
#: A day in blocks of 10 ms, and as many again.
_MOST_ELEMENTS = 20_000_000
_CODECS = {
    "A_OPUS": "opus",
    "A_VORBIS": "vorbis",
    "A_FLAC": "flac",
    "A_MPEG/L3": "mp3",
    "A_MPEG/L2": "mp2",
}


@dataclass(slots=True)
class _Track:
    number: int = 0
    kind: int = 0
    codec: str = ""
    private: bytes = b""
    delay: int = 0
    frame: int = 0
    rate: float = 8000.0
    channels: int = 1
    bits: int = 0

    @property
    def coding(self) -> str | None:
        if self.codec.startswith("A_AAC"):
            return "aac"
        if self.codec == "A_MS/ACM" and len(self.private) >= 16:
            tag, bits = int.from_bytes(self.private[:2], "little"), int.from_bytes(self.private[14:16], "little")
            return WAVE_TAGS.get(tag) or (pcm(bits, unsigned=True) if tag == 1 else None)
        if self.codec.startswith("A_PCM/"):
            return pcm(self.bits, big=self.codec.endswith("BIG"), real="FLOAT" in self.codec, unsigned=True)
        return _CODECS.get(self.codec)


@dataclass(slots=True)
class _File:
    doc: str = ""
    scale: int = 1_000_000
    told: float = 0.0
    tracks: list[_Track] = field(default_factory=list)
    sound: _Track | None = None
    time: int = 0
    blocks: int = 0
    #: Samples of all Opus packets; None where some are laced, which hides them.
    opus: int | None = 0
    first: int = 0
    last: int = 0
    #: Nanoseconds of the last block, and of its end that shall not be played.
    length: int = 0
    discard: int = 0

    def value(self, name: int, body: bytes) -> None:
        """Takes an element that holds a number or a text."""
        number = int.from_bytes(body[:8], "big")
        if name == _DOC_TYPE:
            self.doc = body[:16].rstrip(b"\0").decode("ascii", "replace")
        elif name == _SCALE:
            self.scale = number or 1_000_000
        elif name == _DURATION:
            self.told = _real(body)
        elif name == _TIME:
            self.time = number
        elif name == _DISCARD:
            self.discard = max(0, int.from_bytes(body[:8], "big", signed=True))
        elif self.tracks:
            self._of_track(self.tracks[-1], name, body, number)

    @staticmethod
    def _of_track(track: _Track, name: int, body: bytes, number: int) -> None:
        match name:
            case 0xD7:
                track.number = number
            case 0x83:
                track.kind = number
            case 0x86:
                track.codec = body[:32].rstrip(b"\0").decode("ascii", "replace")
            case 0x63A2:
                track.private = body[:32]
            case 0x56AA:
                track.delay = number
            case 0x23E383:
                track.frame = number
            case 0xB5:
                track.rate = _real(body) or 8000.0
            case 0x9F:
                track.channels = number
            case 0x6264:
                track.bits = number

    def block(self, head: bytes, size: int) -> None:
        """Takes the beginning of a block: its track, its time after its cluster's, flags, and frames."""
        if self.sound is None:
            self.sound = next((t for t in self.tracks if t.kind == 2), None)
        number, width = _number(head, 0)
        track = self.sound
        if track is None or number != track.number or len(head) < width + 3:
            return
        at = (self.time + int.from_bytes(head[width : width + 2], "big", signed=True)) * self.scale
        self.first = at if not self.blocks else min(self.first, at)
        self.blocks += 1
        if self.opus is not None and track.codec == "A_OPUS":
            self.opus = None if head[width + 2] & 6 else self.opus + opus_samples(head[width + 3 : width + 5])
        if at >= self.last:
            # Laced: several frames in a block, of which a byte tells how many there are besides the first.
            frames = head[width + 3] + 1 if head[width + 2] & 6 and len(head) > width + 3 else 1
            self.last, self.length, self.discard = at, track.frame * frames, 0
            if track.codec.startswith("A_PCM/") and track.bits and track.channels and track.rate > 0:
                samples = (size - width - 3 - 2 * (frames - 1)) * 8 // track.bits // track.channels
                self.length = int(samples / track.rate * 1e9)

    @property
    def seconds(self) -> float:
        """Of the track's blocks, less what its decoder drops; where their last length is unknown, as the file tells."""
        if not self.blocks or self.sound is None:
            return 0.0
        head = self.sound.private
        if self.opus and head.startswith(b"OpusHead") and len(head) >= 12:
            # Not CodecDelay: some writers count it at another rate than 48 kHz.
            return (self.opus - int.from_bytes(head[10:12], "little")) / 48000 - self.discard / 1e9
        if not self.length:
            told = int(self.told * self.scale) if 0 < self.told < 1e15 else 0
            return (max(self.last, told) - self.first - self.sound.delay) / 1e9
        return (self.last + self.length - self.first - self.sound.delay - self.discard) / 1e9


def _real(body: bytes) -> float:
    if len(body) not in (4, 8):
        return 0.0
    number = float(unpack(">f" if len(body) == 4 else ">d", body)[0])
    return number if number == number and abs(number) != float("inf") else 0.0


def _number(data: bytes, at: int, *, marked: bool = False) -> tuple[int, int]:
    """A number of variable length and its bytes; no bytes: there is none. ``marked``: an id, which keeps its mark."""
    if at >= len(data) or not (first := data[at]):
        return 0, 0
    if first & 0x80:
        return first if marked else first & 0x7F, 1
    width = 9 - first.bit_length()
    if at + width > len(data):
        return 0, 0
    number = int.from_bytes(data[at : at + width], "big")
    return number if marked else number & ((1 << 7 * width) - 1), width


def read_matroska(it: Bytes) -> Audio:
    """What a Matroska or WebM file is."""
    file = _File()
    finding = _walked(it, file)
    sound = next((t for t in file.tracks if t.kind == 2), None)
    if finding is GOOD:
        if file.tracks and sound is None:
            finding = unchecked("the Matroska file has no track of sound")
        elif not file.blocks:
            finding = empty("the Matroska file holds no audio: it is headers only")
    kind = "video" if any(t.kind == 1 for t in file.tracks) else "audio"
    web = file.doc == "webm"
    ext = "webm" if web else "mkv" if kind == "video" else "mka"
    return made(
        f"{kind}/webm" if web else f"{kind}/x-matroska",
        ext,
        finding,
        coding=sound.coding if sound else None,
        duration=span(file.seconds, 1),
    )


def _walked(it: Bytes, file: _File) -> Finding:
    pos, promised = 0, 0
    for _ in range(_MOST_ELEMENTS):
        if pos >= it.length:
            break
        data, base = it.window(pos, 64)
        at = pos - base
        name, width = _number(data, at, marked=True)
        size, more = _number(data, at + width) if width else (0, 0)
        if not width or width > 4 or not more:
            return _broken(it, pos)
        start = pos + width + more
        unknown = size == (1 << 7 * more) - 1
        if name in _MASTERS:
            if not unknown:
                promised = max(promised, start + size)
            if name == _ENTRY and len(file.tracks) < 64:
                file.tracks.append(_Track())
            pos = start
            continue
        if unknown:
            return cut(f"the Matroska file is damaged: an element without an end begins at byte {pos}")
        if start + size > it.length:
            return cut(f"the Matroska file is cut, after {it.length} bytes")
        if name in (_SIMPLE, _BLOCK):
            file.block(it.at(start, min(size, 16)), size)
        elif name in _VALUES:
            file.value(name, it.at(start, min(size, 40)))
        pos = start + size
    else:
        return unchecked("the Matroska file has more elements than anybody would write")
    if promised > it.length:
        return cut(f"the Matroska file is cut: {it.length} of its {promised} bytes are here")
    return GOOD


def _broken(it: Bytes, pos: int) -> Finding:
    if it.length - pos < 12:
        return cut(f"the Matroska file is cut, after {it.length} bytes")
    if it.are_zeros(pos):
        return unfinished("zeros follow the Matroska file's last element")
    return cut(f"the Matroska file is damaged: no element begins at byte {pos}")
