"""Ogg: every page is walked and its checksum compared; durations come from granule positions.

A killed writer leaves whole pages and no end mark: unfinished. A page that is cut, damaged or missing: cut.

Facts: RFC 3533 and 5334 (Ogg), RFC 7845 (Opus: pre-skip, a first granule above zero, trimming at the end), the Speex
manual (header; its encoder counts granules less the look-ahead), the Vorbis I specification, RFC 9639 §10.1 (FLAC).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from struct import Struct, unpack_from

from .base import GOOD, Audio, Bytes, Finding, cut, empty, made, span, unfinished
from .codings import opus_samples
from .flac import frame_samples

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
    #: Samples of a packet where they all have as many (Speex, mostly FLAC), or at most (Vorbis).
    packet: int = 0
    packets: int = 0
    #: The granule at which its audio begins; None until a page of audio was seen.
    begin: int | None = None
    granule: int = 0
    ended: bool = False

    @classmethod
    def begun_by(cls, packet: bytes, sequence: int) -> _Stream:
        """What the first packet says; a codec nobody knows has no rate."""
        if packet.startswith(b"Speex   ") and len(packet) >= 72:
            rate, frame, frames, extra = (unpack_from("<i", packet, at)[0] for at in (36, 56, 64, 68))
            samples = max(frame, 0) * max(frames, 1)
            return cls("speex", rate, 2 + min(max(extra, 0), 16), 0, sequence, samples)
        if packet.startswith(b"OpusHead") and len(packet) >= 19:
            return cls("opus", 48000, 2, unpack_from("<H", packet, 10)[0], sequence)
        if packet.startswith(b"\x01vorbis") and len(packet) >= 29:
            longest = 1 << (packet[28] >> 4)
            return cls("vorbis", unpack_from("<i", packet, 12)[0], 3, 0, sequence, longest // 2)
        if packet.startswith(b"\x7fFLAC") and len(packet) >= 30:
            count = unpack_from(">H", packet, 7)[0]
            rate, block = int.from_bytes(packet[27:30], "big") >> 4, unpack_from(">H", packet, 17)[0]
            return cls("flac", rate, 1 + count, 0, sequence, block)
        return cls("", 0, 1, 0, sequence)

    def begins(self, granule: int, lacing: bytes, body: bytes) -> int:
        """The granule before the first page of audio, of which this is what it says: mostly zero.

        A recorder that cuts calls out of a running stream leaves its clock in them.
        """
        audio = self.packets - self.headers
        if self.codec == "opus":
            samples = _opus_page(lacing, body, audio)
        elif self.codec == "vorbis":
            # Its packets have two lengths, which nothing outside of them tells: only what can't be zero is taken off.
            samples = audio * self.packet
            return 0 if granule <= 2 * samples else granule - samples + self.packet
        elif self.codec == "flac":
            told = frame_samples(body[:16].ljust(16, b"\0"), self.packet)
            samples = audio * (told[1] - told[0]) if told else granule
        else:
            samples = audio * self.packet or granule
        return max(0, granule - samples)

    @property
    def seconds(self) -> float:
        length = span(self.granule - (self.begin or 0) - self.skip, self.rate)
        return length.total_seconds() if length else 0.0


def _opus_page(lacing: bytes, body: bytes, packets: int) -> int:
    """Samples in the last ``packets`` packets that end on a page (the first of them may have begun before it)."""
    starts, size, at = [0], 0, 0
    for length in lacing:
        size += length
        if length < 255:
            at += size
            size = 0
            starts.append(at)
    return sum(opus_samples(body[start : start + 2]) for start in starts[:-1][-packets:])


@dataclass(slots=True)
class _OggFile:
    """Logical streams that run side by side; when all have ended, others may follow (a chain)."""

    open: dict[int, _Stream] = field(default_factory=dict)
    codecs: set[str] = field(default_factory=set)
    audio_packets: int = 0
    seconds: float = 0.0

    def page(self, serial: int, sequence: int, flags: int, granule: int, lacing: bytes, body: bytes) -> str | None:
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
        if body:
            stream.packets += len(lacing) - lacing.count(255)
        # -1 says that no packet ends on this page.
        if stream.begin is None and granule > 0 and stream.packets > stream.headers:
            stream.begin = stream.begins(granule, lacing, body)
        stream.granule = max(stream.granule, granule)
        stream.ended = bool(flags & _LAST)
        return None

    def link_ends(self) -> None:
        self.seconds += max((s.seconds for s in self.open.values()), default=0.0)
        self.audio_packets += sum(max(0, s.packets - s.headers) for s in self.open.values())
        self.open.clear()


def read_ogg(it: Bytes) -> Audio:
    """What an Ogg file is."""
    ogg = _OggFile()
    finding = _walked(it, ogg)
    ended = bool(ogg.codecs) and all(stream.ended for stream in ogg.open.values())
    ogg.link_ends()
    if finding is GOOD and not ended:
        finding = unfinished("the Ogg file's last page lacks its end mark")
    elif finding is GOOD and not ogg.audio_packets:
        finding = empty("the Ogg file holds no audio: it is headers only")
    return _ogg_audio(ogg, finding)


def _walked(it: Bytes, ogg: _OggFile) -> Finding:
    pos = 0
    while pos < it.length:
        data, base = it.window(pos, _OGG_LONGEST_PAGE)
        start = pos - base
        if len(data) - start < 27:
            return _broken(it, ogg, pos, f"the Ogg file is cut, after {it.length} bytes")
        magic, version, flags, granule, serial, sequence, _, segments = _OGG_PAGE.unpack_from(data, start)
        if magic != b"OggS" or version != 0:
            return _broken(it, ogg, pos, f"the Ogg file is damaged: no page begins at byte {pos}")
        lacing = data[start + 27 : start + 27 + segments]
        page = data[start : start + 27 + segments + sum(lacing)]
        if len(lacing) < segments or len(page) < 27 + segments + sum(lacing):
            return cut(f"the Ogg file is cut, after {it.length} bytes")
        if ogg_checksum(page) != page[22:26]:
            return cut(f"the Ogg file is damaged: the checksum of the page at byte {pos} is wrong")
        if wrong := ogg.page(serial, sequence, flags, granule, lacing, page[27 + segments :]):
            return cut(f"the Ogg file is damaged: {wrong} (byte {pos})")
        pos += len(page)
    return GOOD


def _broken(it: Bytes, ogg: _OggFile, pos: int, reason: str) -> Finding:
    """Padding may follow the last page."""
    ended = bool(ogg.open) and all(stream.ended for stream in ogg.open.values())
    return GOOD if ended and it.are_zeros(pos) else cut(reason)


def _ogg_audio(ogg: _OggFile, finding: Finding) -> Audio:
    known = sorted(ogg.codecs - {""})
    if len(known) == 1:
        content_type = f"audio/ogg; codecs={known[0]}"
    else:
        content_type = f'audio/ogg; codecs="{",".join(known)}"' if known else "application/ogg"
    only = known[0] if ogg.codecs == {*known[:1]} and known else ""
    ext = {"speex": "spx", "opus": "opus"}.get(only, "ogg")
    return made(content_type, ext, finding, coding=only or None, duration=span(ogg.seconds, 1))
