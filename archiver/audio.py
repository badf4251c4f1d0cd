"""What are these bytes: sniff, check, duration.

"200 OK" with an error page, 44 bytes of header or half a file is not a recording, so each container is
walked to its end before anything is stored. Nothing is decoded; what a header of the answer said of the
type is never believed.

What a container cannot tell, this cannot see: an MP3 without a Xing/Info frame that is cut exactly between
two frames, raw GSM cut between two frames, a chained Ogg file cut between two of its links, a WAV that was
streamed with an open length (0xFFFFFFFF), the missing last pad byte of a WAV. Nor is damage seen inside the
audio of a WAV, GSM, MP3 or FLAC file. There the length and hash of the answer have to do.

Facts: RIFF/WAVE and RF64 (EBU Tech 3306), RFC 3533 and 5334 (Ogg), RFC 7845 (Opus), ISO 11172-3 and
13818-3 (MPEG audio), id3.org, RFC 9639 (FLAC), ETSI GSM 06.10 as Asterisk writes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from io import FileIO
from itertools import product
from struct import Struct, unpack, unpack_from

from .errors import Empty, TryAgain
from .model import CHUNK, Body, Verdict

_LONGEST = timedelta(days=3660).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """What bytes turned out to be."""

    #: ``audio/wav``, ``audio/ogg; codecs=speex`` …; ``application/octet-stream`` for what is opaque.
    content_type: str
    #: One of wav mp3 spx ogg opus flac gsm, else bin.
    ext: str
    #: Where the container tells it.
    duration: timedelta | None
    #: How its samples are coded (RFC 2361's and RFC 4856's names, lower case: contract.md); None: unknown.
    coding: str | None = None
    verdict: Verdict = Verdict.GOOD
    #: What is wrong, where the verdict is not good: ``the Ogg file's last page lacks its end mark``.
    reason: str | None = None


def inspect(body: Body, *, opaque: bool = False, told_type: str | None = None) -> Audio:
    """What a body is, after walking it to its end.

    ``opaque``: it may be something that is no audio we know (encrypted, a log); it then passes as ``bin``
    under the type the source told, but what does look like audio is checked all the same. Blocking where
    the body lies in a file; memory stays flat whatever its size.

    Raises TryAgain where the bytes are no whole recording, Empty where a sound container holds no audio.
    """
    with _opened(body) as it:
        if it.length == 0:
            raise TryAgain("the source answered 200 with no bytes")
        head = it.at(0, 512)
        audio = _by_magic(it, head, opaque=opaque)
        if audio is None and not opaque and (text := _text(head)):
            raise TryAgain(f"these bytes are {text}, not audio")
        audio = audio or _by_rhythm(it, opaque=opaque)
    if audio is None and not opaque:
        raise TryAgain(f"these bytes are no audio we know (first bytes {head[:16].hex(' ')})")
    return audio or Audio(content_type=told_type or "application/octet-stream", ext="bin", duration=None)


def plausible(audio: Audio, told: timedelta | None) -> str | None:
    """A warning where the audio's duration is grossly not the told one (over 2 s and over 20 % off).

    No failure: recorders trim silence, and some count the ringing.
    """
    if audio.duration is None or told is None:
        return None
    if abs(audio.duration - told) <= max(timedelta(seconds=2), told * 0.2):
        return None
    return f"the audio is {audio.duration.total_seconds():.1f} s long, the source said {told.total_seconds():.1f} s"


class _Bytes:
    """Random access to a body, in memory or in a file, a window at a time."""

    def __init__(self, data: bytes, file: FileIO | None) -> None:
        self._file = file
        self._base = 0
        self._data = data
        self.length = file.seek(0, 2) if file else len(data)

    def window(self, pos: int, need: int) -> tuple[bytes, int]:
        """A buffer and the position of its first byte; it holds ``need`` bytes from ``pos`` on, or all there are."""
        if self._file and not self._base <= pos <= min(pos + need, self.length) <= self._base + len(self._data):
            self._file.seek(pos)
            self._base, self._data = pos, self._file.read(max(need, CHUNK))
        return self._data, self._base

    def at(self, pos: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``pos`` on; fewer at the end."""
        data, base = self.window(pos, size)
        return data[pos - base : pos - base + size]


@contextmanager
def _opened(body: Body) -> Iterator[_Bytes]:
    if body.data is None and body.path is not None:
        with body.path.open("rb", buffering=0) as file:
            yield _Bytes(b"", file)
    else:
        yield _Bytes(body.data or b"", None)


def _by_magic(it: _Bytes, head: bytes, *, opaque: bool) -> Audio | None:
    match head[:4]:
        case b"RIFF" | b"RIFX" | b"RF64" | b"BW64":
            return _wav(it)
        case b"OggS":
            return _ogg(it)
        case b"fLaC":
            return _flac(it)
    if head[:3] == b"ID3":
        return _mp3(it, _after_tags(it, 0))
    if head[0] == 0xFF and _mp3_frames_follow(it, 0, whole=opaque):
        return _mp3(it, 0)
    return None


def _by_rhythm(it: _Bytes, *, opaque: bool) -> Audio | None:
    """Formats without a magic: raw GSM, and MP3 after some garbage (an opaque body must not fall for chance)."""
    if (gsm := _gsm(it, surely=opaque)) is not None:
        return gsm
    found = None if opaque else _mp3_sync(it, 0)
    return None if found is None else _mp3(it, found)


_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\r\n\f"


def _text(head: bytes) -> str | None:
    """What kind of page or message the bytes are, if they are one."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        wide = head[2 + (head[0] == 0xFF) :: 2]
        if wide.count(0) * 2 < len(wide):
            return None
        head = head[2:].replace(b"\x00", b"")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"<"):
        return "an HTML page" if b"<html" in start.lower() or b"<!doctype" in start.lower() else "an XML document"
    if start.startswith((b"{", b"[")):
        return "a JSON document"
    if len(start.translate(None, _PRINTABLE)) * 7 <= len(start):
        return "plain text"
    return None


def _span(units: int, rate: int) -> timedelta | None:
    """So many units at so many a second; None where a header's numbers make no sense."""
    if units <= 0 or rate <= 0 or units / rate > _LONGEST:
        return None
    return timedelta(seconds=units / rate)


# WAV

_MAX_CHUNKS = 1000
_PLAIN_CODINGS = {1, 3, 6, 7}  # PCM, IEEE float, A-law, µ-law: so many bits a sample


def _open_ended(size: int) -> bool:
    """What writers put for a length they do not know yet (sox: 0x7FFFF000 and less, to fit whole blocks)."""
    return 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000


def _wav(it: _Bytes) -> Audio | None:
    if it.length < 12:
        raise TryAgain(f"the WAV is cut in its header, after {it.length} bytes")
    magic, form = it.at(0, 4), it.at(8, 4)
    if form != b"WAVE":
        return None
    order = ">" if magic == b"RIFX" else "<"
    (whole,) = unpack(order + "I", it.at(4, 4))
    chunk = Struct(order + "4sI")
    fmt = b""
    long_data = None
    pos = 12
    for _ in range(_MAX_CHUNKS):
        head = it.at(pos, 8)
        if len(head) < 8:
            break
        name, size = chunk.unpack(head)
        if name == b"data":
            start = pos + 8
            if long_data is None:
                size, whole = _real_size(size, it.length - start), 0 if _open_ended(whole) else whole
            elif size == 0xFFFFFFFF:
                size = long_data
            return _wav_data(it, order, fmt, start=start, size=size, whole=whole)
        if name == b"fmt ":
            fmt = it.at(pos + 8, min(size, 40))
        elif name == b"ds64" and size >= 16 and len(long := it.at(pos + 8, 16)) == 16:
            whole, long_data = unpack(order + "QQ", long)
        pos += 8 + size + (size & 1)
    else:
        raise TryAgain("the WAV has a thousand chunks and no audio among them")
    if pos == it.length == whole + 8:
        raise Empty("the WAV holds no audio: it has no data chunk")
    raise TryAgain(f"the WAV is cut before its audio, after {it.length} bytes")


def _real_size(size: int, here: int) -> int:
    if not _open_ended(size) or size <= here:
        return size
    if here == 0:
        raise TryAgain("the WAV was streamed and broke off before its audio")
    return here


def _wav_data(it: _Bytes, order: str, fmt: bytes, *, start: int, size: int, whole: int) -> Audio:
    here = it.length - start
    if size > here:
        raise TryAgain(f"the WAV is cut: {here} of its {size} bytes of audio are here")
    # Some writers count the 8 bytes of the RIFF header too, or a pad byte that they did not write.
    sloppy = here - size <= 1 and whole <= it.length
    if whole + 8 > it.length and not sloppy:
        raise TryAgain(f"the WAV is cut: {it.length} of its {whole + 8} bytes are here")
    if size == 0:
        if _only_chunks_follow(it, order, start):
            raise Empty("the WAV holds no audio: it is a header only")
        raise TryAgain("the WAV is not finalised yet: its header says 0 bytes of audio, but bytes follow")
    if len(fmt) < 16:
        raise TryAgain("the WAV does not say in which format its audio is")
    coding, channels, rate, byte_rate, _, bits = unpack_from(order + "HHIIHH", fmt)
    if coding == 0xFFFE and len(fmt) >= 26:
        (coding,) = unpack_from(order + "H", fmt, 24)
    if coding in _PLAIN_CODINGS:
        byte_rate = rate * channels * ((bits + 7) // 8) or byte_rate
    return Audio(content_type="audio/wav", ext="wav", duration=_span(size, byte_rate))


def _only_chunks_follow(it: _Bytes, order: str, pos: int) -> bool:
    for _ in range(_MAX_CHUNKS):
        if it.length - pos <= 1:
            return pos <= it.length + 1
        head = it.at(pos, 8)
        if len(head) < 8 or not head[:4].isascii() or not head[:4].decode().isprintable():
            return False
        (size,) = unpack_from(order + "I", head, 4)
        pos += 8 + size + (size & 1)
    return False


# Ogg

_OGG_PAGE = Struct("<4sBBqIIIB")
_OGG_LONGEST_PAGE = 27 + 255 + 255 * 255
_MOST_STREAMS = 16
_FIRST, _LAST = 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> bytes:
    """The four checksum bytes of a whole Ogg page; what lies in their place is taken for zero.

    Ogg's CRC-32 has the polynomial of zlib's, the bits the other way round, and starts at zero. So the
    page's bits are turned around, and zlib does it hundreds of times faster than a table in Python.
    """
    crc = zlib.crc32(page[:22].translate(_REVERSED), 0xFFFFFFFF)
    crc = zlib.crc32(page[26:].translate(_REVERSED), zlib.crc32(bytes(4), crc))
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "big").translate(_REVERSED)


@dataclass(slots=True)
class _Stream:
    codec: str
    rate: int
    #: Packets before the first one of audio.
    headers: int
    skip: int
    sequence: int
    packets: int = 0
    granule: int = 0
    ended: bool = False

    @classmethod
    def begun_by(cls, packet: bytes, sequence: int) -> _Stream:
        """What the first packet says; a codec nobody knows has no rate."""
        if packet.startswith(b"Speex   ") and len(packet) >= 72:
            rate, extra = unpack_from("<i", packet, 36)[0], unpack_from("<i", packet, 68)[0]
            return cls("speex", rate, 2 + min(max(extra, 0), 16), 0, sequence)
        if packet.startswith(b"OpusHead") and len(packet) >= 19:
            return cls("opus", 48000, 2, unpack_from("<H", packet, 10)[0], sequence)
        if packet.startswith(b"\x01vorbis") and len(packet) >= 16:
            return cls("vorbis", unpack_from("<i", packet, 12)[0], 3, 0, sequence)
        if packet.startswith(b"\x7fFLAC") and len(packet) >= 30:
            count = unpack_from(">H", packet, 7)[0]
            return cls("flac", int.from_bytes(packet[27:30], "big") >> 4, 1 + count, 0, sequence)
        return cls("", 0, 1, 0, sequence)

    @property
    def seconds(self) -> float:
        span = _span(self.granule - self.skip, self.rate)
        return span.total_seconds() if span else 0.0


@dataclass(slots=True)
class _OggFile:
    """Logical streams that run side by side; when all have ended, others may follow (a chain)."""

    open: dict[int, _Stream] = field(default_factory=dict)
    codecs: set[str] = field(default_factory=set)
    audio_packets: int = 0
    seconds: float = 0.0

    def page(self, serial: int, sequence: int, flags: int, granule: int, packets: int, body: bytes) -> str | None:
        """Takes one page; says what is wrong with it."""
        stream = self.open.get(serial)
        if flags & _FIRST:
            if all(s.ended for s in self.open.values()):
                self.link_ends()
            if serial in self.open or len(self.open) == _MOST_STREAMS:
                return "a stream begins where none may"
            stream = self.open[serial] = _Stream.begun_by(body[:80], sequence)
            self.codecs.add(stream.codec)
        elif stream is None or stream.ended:
            return "a page belongs to no stream"
        elif sequence != (stream.sequence + 1) & 0xFFFFFFFF:
            return "pages are missing"
        stream.sequence = sequence
        stream.packets += packets if body else 0
        # -1 says that no packet ends on this page.
        stream.granule = max(stream.granule, granule)
        stream.ended = bool(flags & _LAST)
        return None

    def link_ends(self) -> None:
        self.seconds += max((s.seconds for s in self.open.values()), default=0.0)
        self.audio_packets += sum(max(0, s.packets - s.headers) for s in self.open.values())
        self.open.clear()


def _ogg(it: _Bytes) -> Audio:
    ogg = _OggFile()
    pos = 0
    while pos < it.length:
        data, base = it.window(pos, _OGG_LONGEST_PAGE)
        start = pos - base
        if len(data) - start < 27:
            raise TryAgain(f"the Ogg file is cut, after {it.length} bytes")
        magic, version, flags, granule, serial, sequence, _, segments = _OGG_PAGE.unpack_from(data, start)
        if magic != b"OggS" or version != 0:
            raise TryAgain(f"the Ogg file is damaged: no page begins at byte {pos}")
        lacing = data[start + 27 : start + 27 + segments]
        page = data[start : start + 27 + segments + sum(lacing)]
        if len(lacing) < segments or len(page) < 27 + segments + sum(lacing):
            raise TryAgain(f"the Ogg file is cut, after {it.length} bytes")
        if ogg_checksum(page) != page[22:26]:
            raise TryAgain(f"the Ogg file is damaged: the checksum of the page at byte {pos} is wrong")
        packets = segments - lacing.count(255)
        if wrong := ogg.page(serial, sequence, flags, granule, packets, page[27 + segments :]):
            raise TryAgain(f"the Ogg file is damaged: {wrong} (byte {pos})")
        pos += len(page)
    if not all(stream.ended for stream in ogg.open.values()):
        raise TryAgain("the Ogg file is cut: its last page is missing")
    ogg.link_ends()
    if ogg.audio_packets == 0:
        raise Empty("the Ogg file holds no audio: it is headers only")
    return _ogg_audio(ogg.codecs, ogg.seconds)


def _ogg_audio(codecs: set[str], seconds: float) -> Audio:
    known = sorted(codecs - {""})
    if len(known) == 1:
        content_type = f"audio/ogg; codecs={known[0]}"
    else:
        content_type = f'audio/ogg; codecs="{",".join(known)}"' if known else "application/ogg"
    ext = {"speex": "spx", "opus": "opus"}.get(known[0] if codecs == {*known[:1]} else "", "ogg")
    duration = timedelta(seconds=seconds) if 0 < seconds < _LONGEST else None
    return Audio(content_type=content_type, ext=ext, duration=duration)


# MP3 (and its elder layers)

_GARBAGE = 4096
_MAX_TAGS = 64
_LONGEST_FRAME = 2881
_BITRATES = {  # kbit/s by (is it MPEG 1, layer)
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _frame_table() -> dict[int, tuple[int, float]]:
    """Bytes and seconds of a frame, by its header's second and third byte."""
    table = {}
    for (version, divisor), layer, protection in product(((3, 1), (2, 2), (0, 4)), (1, 2, 3), (0, 1)):
        mpeg1 = version == 3
        samples = 384 if layer == 1 else 576 if layer == 3 and not mpeg1 else 1152
        second = 0xE0 | version << 3 | (4 - layer) << 1 | protection
        rates = enumerate(_BITRATES[mpeg1, layer], 1)
        for (code, kbps), (rate_code, hertz), padding, private in product(
            rates, enumerate((44100, 48000, 32000)), (0, 1), (0, 1)
        ):
            rate = hertz // divisor
            if layer == 1:
                length = (12 * kbps * 1000 // rate + padding) * 4
            else:
                length = samples // 8 * kbps * 1000 // rate + padding
            table[second << 8 | code << 4 | rate_code << 2 | padding << 1 | private] = length, samples / rate
    return table


_FRAMES = _frame_table()


def _after_tags(it: _Bytes, pos: int) -> int:
    """The position after any ID3v2, APEv2 and ID3v1 tags."""
    for _ in range(_MAX_TAGS):
        head = it.at(pos, 32)
        if head[:3] == b"ID3" and len(head) >= 10 and not (head[6] | head[7] | head[8] | head[9]) & 0x80:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            pos += 10 + size + (10 if head[5] & 0x10 else 0)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            pos += 32 + unpack_from("<I", head, 12)[0]
        elif head[:4] == b"TAG+":
            pos += 227
        elif head[:3] == b"TAG":
            pos += 128
        else:
            return pos
        if pos > it.length:
            raise TryAgain(f"the MP3 is cut in a tag, after {it.length} bytes")
    raise TryAgain("the MP3 has more tags than anybody would write")


def _mp3_frames_follow(it: _Bytes, pos: int, *, whole: bool) -> bool:
    """Do four frames of one kind follow each other here; ``whole``: the file's end is no excuse."""
    kind = None
    for _ in range(4):
        head = it.at(pos, 4)
        if len(head) < 4:
            return not whole and kind is not None
        frame = _FRAMES.get(head[1] << 8 | head[2]) if head[0] == 0xFF else None
        if frame is None:
            return not whole and kind is not None and _is_tail(it, pos)
        if kind not in (None, (head[1] & 0xFE, head[2] & 0x0C)):
            return False
        kind = (head[1] & 0xFE, head[2] & 0x0C)
        pos += frame[0]
    return True


def _is_tail(it: _Bytes, pos: int) -> bool:
    """Is what is left here a tag, or less than a frame of zeros?"""
    rest = it.at(pos, _LONGEST_FRAME)
    return rest[:3] in (b"TAG", b"ID3") or rest[:8] == b"APETAGEX" or (pos + len(rest) == it.length and not any(rest))


def _mp3_sync(it: _Bytes, start: int) -> int | None:
    """Where the first frame begins, not farther than a little garbage from the start."""
    garbage = it.at(start, _GARBAGE)
    at = garbage.find(b"\xff")
    while at >= 0:
        if _mp3_frames_follow(it, start + at, whole=True):
            return start + at
        at = garbage.find(b"\xff", at + 1)
    return None


def _mp3(it: _Bytes, pos: int) -> Audio:
    """Walks the frames that begin at ``pos`` (or after a little garbage there), and the tags among and after them."""
    if pos >= it.length:
        raise Empty("the MP3 holds no audio: it is tags only")
    head = it.at(pos, 4)
    if len(head) == 4 and (head[0] != 0xFF or (head[1] << 8 | head[2]) not in _FRAMES):
        found = _mp3_sync(it, pos)
        if found is None:
            raise TryAgain("no MP3 frame follows the tags")
        pos = found
    first = pos
    frames, seconds = 0, 0.0
    told_frames, told_bytes, is_info = _info(it, pos)
    while pos < it.length:
        pos, more, longer, length = _walk(it, pos)
        frames, seconds = frames + more, seconds + longer
        after = _after_tags(it, pos)
        if after == pos:
            rest = it.at(pos, length + 1)
            if len(rest) <= length and not any(rest):
                break
            raise TryAgain(f"the MP3 is cut or damaged: no frame begins at byte {pos}")
        pos = after
    _enough_frames(frames - is_info, pos - first, told_frames, told_bytes)
    if frames == is_info:
        raise Empty("the MP3 holds no audio: it is a header only")
    if is_info:
        seconds *= (frames - 1) / frames
    return Audio(content_type="audio/mpeg", ext="mp3", duration=timedelta(seconds=seconds))


def _walk(it: _Bytes, pos: int) -> tuple[int, int, float, int]:
    """Where the unbroken chain of frames ends, how many they are, how many seconds; the last one's bytes."""
    frames, seconds, length = 0, 0.0, 0
    known = _FRAMES.get
    while True:
        data, base = it.window(pos, 4)
        here, stop = pos - base, len(data) - 3
        while here < stop and data[here] == 0xFF:
            frame = known(data[here + 1] << 8 | data[here + 2])
            if frame is None:
                break
            length, longer = frame
            here += length
            frames += 1
            seconds += longer
        pos = here + base
        if pos > it.length:
            raise TryAgain(f"the MP3 is cut: its last frame needs {pos - it.length} bytes more")
        if here < stop or it.length - pos < 4:
            return pos, frames, seconds, length


def _info(it: _Bytes, pos: int) -> tuple[int, int, bool]:
    """How many frames and bytes a Xing or Info frame promises (0: it does not), and whether there is one."""
    head = it.at(pos, 64)
    for magic in (b"Xing", b"Info"):
        # After the side information, whose length depends on version and channels.
        at = head.find(magic, 4 + 9, 4 + 2 + 32 + 4)
        if at > 0 and len(head) >= at + 16:
            flags, first, second = unpack_from(">III", head, at + 4)
            frames = first if flags & 1 else 0
            size = (second if flags & 1 else first) if flags & 2 else 0
            return frames, size, True
    return 0, 0, False


def _enough_frames(frames: int, size: int, told_frames: int, told_size: int) -> None:
    # Some encoders count the Info frame itself; then the bytes, if they are told, are all there.
    short = told_frames - frames
    if short > 1 or (short == 1 and not 0 < told_size <= size):
        raise TryAgain(f"the MP3 is cut: {frames} of its {told_frames} frames are here")


# FLAC

_FLAC_WINDOW = 1 << 18
_FLAC_TRIES = 8


def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1) ^ (polynomial if crc >> (bits - 1) else 0)
            crc &= (1 << bits) - 1
        table.append(crc)
    return table


_CRC8 = _crc_table(0x07, 8)
_CRC16 = _crc_table(0x8005, 16)


def _flac(it: _Bytes) -> Audio:
    """Metadata blocks to the first frame; then the last frame, found from the end by its checksums.

    Frames do not tell their length, so those in between are not seen without decoding them.
    """
    info = it.at(4, 38)
    if len(info) < 38:
        raise TryAgain(f"the FLAC file is cut in its header, after {it.length} bytes")
    if info[0] & 0x7F != 0 or info[1:4] != b"\x00\x00\x22":
        raise TryAgain("the FLAC file is damaged: its stream information is missing")
    block_size = unpack_from(">H", info, 4 + 2)[0]
    longest_frame = int.from_bytes(info[4 + 7 : 4 + 10], "big")
    packed = int.from_bytes(info[4 + 10 : 4 + 18], "big")
    rate, samples = packed >> 44, packed & 0xFFFFFFFFF
    start = _flac_audio_start(it)
    end = it.length
    if it.at(end - 128, 3) == b"TAG":
        end -= 128
    if start >= end:
        if samples:
            raise TryAgain("the FLAC file is cut before its audio")
        raise Empty("the FLAC file holds no audio: it is a header only")
    sync = it.at(start, 2)
    if sync not in (b"\xff\xf8", b"\xff\xf9"):
        raise TryAgain(f"the FLAC file is damaged: no frame begins at byte {start}")
    size = min(end - start, min(max(longest_frame, _FLAC_WINDOW), 4 * _FLAC_WINDOW))
    if not _flac_ends(it.at(end - size, size), sync, block_size, samples):
        raise TryAgain("the FLAC file is cut or damaged: its last frame is not whole")
    return Audio(content_type="audio/flac", ext="flac", duration=_span(samples, rate))


def _flac_audio_start(it: _Bytes) -> int:
    pos = 4
    for _ in range(_MAX_CHUNKS):
        head = it.at(pos, 4)
        pos += 4 + int.from_bytes(head[1:], "big")
        if len(head) < 4 or pos > it.length:
            raise TryAgain(f"the FLAC file is cut in its header, after {it.length} bytes")
        if head[0] & 0x80:
            return pos
    raise TryAgain("the FLAC file has a thousand blocks of metadata and no audio")


def _flac_ends(tail: bytes, sync: bytes, block_size: int, samples: int) -> bool:
    """Does the tail end with a whole frame that is the stream's last?"""
    tries = 0
    at = len(tail)
    while tries < _FLAC_TRIES and (at := tail.rfind(sync, 0, at)) >= 0:
        last = _flac_last_sample(tail[at : at + 16].ljust(16, b"\x00"), block_size)
        if last is not None and samples in (0, last):
            crc = 0
            for byte in tail[at:]:
                crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
            # A checksum over a message and its own checksum is zero.
            if crc == 0:
                return True
            tries += 1
    return False


def _flac_last_sample(head: bytes, block_size: int) -> int | None:
    """How many samples have been told when this frame ends; None if it is no frame's header (RFC 9639 §9.1)."""
    code, lead = head[2] >> 4, head[4]
    # The number is written like UTF-8, up to seven bytes long.
    length = 1 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length()
    if lead >= 0x80 and not 2 <= length <= 7:
        return None
    number = lead & (0x7F >> length if length > 1 else 0x7F)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    at = 4 + length
    if code == 0 or head[3] & 1:
        return None
    if code in (6, 7):
        count = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        count = 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    crc = 0
    for byte in head[: at + 1]:
        crc = _CRC8[crc ^ byte]
    return None if crc else count + (number if head[1] & 1 else number * block_size)


# Raw GSM 06.10

_GSM_FRAME = 33


def _gsm(it: _Bytes, *, surely: bool) -> Audio | None:
    """Frames of 33 bytes and 20 ms that begin with 0xD: no more of a magic than that."""
    frames, rest = divmod(it.length, _GSM_FRAME)
    if frames < (10 if surely or rest else 1):
        return None
    first = it.at(0, 50 * _GSM_FRAME)[: frames * _GSM_FRAME : _GSM_FRAME]
    last = it.at(max(0, frames - 5) * _GSM_FRAME, 5 * _GSM_FRAME)[: min(frames, 5) * _GSM_FRAME : _GSM_FRAME]
    if any(byte >> 4 != 0xD for byte in first + last):
        return None
    if rest:
        raise TryAgain(f"the GSM file is cut in its last frame, after {it.length} bytes")
    return Audio(content_type="audio/x-gsm", ext="gsm", duration=timedelta(milliseconds=20 * frames))
