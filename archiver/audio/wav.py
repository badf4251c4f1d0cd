"""WAV in all its shapes: RIFF, RIFX, RF64, BW64 and Sony Wave64.

``data`` decides: a file that holds all the audio which its ``data`` chunk promises is good, whatever else is odd about
it; the RIFF size and the chunks around are hints. A length that was left open on purpose (0xFFFFFFFF and the like,
by a writer to a pipe) promises nothing: such a file is as long as it is.

Facts: Microsoft's RIFF and "New Multimedia Data Types" (``fact`` tells the samples of each channel of a compressed
coding), EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64), Sony's Wave64 (sizes count the header of their chunk, chunks
begin at multiples of eight).
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from struct import Struct, unpack, unpack_from
from typing import NamedTuple

from .base import GOOD, MAX_CHUNKS, OPEN, Audio, Bytes, Finding, cut, empty, made, span, unchecked, unfinished
from .codings import WAVE_TAGS, block_samples, pcm

#: Names of chunks that tell where one begins when a pad byte is missing.
_KNOWN = frozenset(
    (
        b"data",
        b"fact",
        b"LIST",
        b"fmt ",
        b"JUNK",
        b"junk",
        b"bext",
        b"cue ",
        b"smpl",
        b"id3 ",
        b"ID3 ",
        b"PEAK",
        b"iXML",
    )
)
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
#: A header that counts some bytes too few, and less than a chunk's header of remarks behind the audio.
_SLACK = 8


class _Format(NamedTuple):
    """What the ``fmt`` chunk tells."""

    coding: str | None
    channels: int
    rate: int
    byte_rate: int
    align: int
    bits: int
    #: Samples of each channel in a block, where that is told.
    per_block: int
    #: Bytes of a sample of all channels, of codings with samples of one width.
    frame: int

    @classmethod
    @lru_cache(maxsize=32)
    def read(cls, fmt: bytes, order: str) -> _Format:
        """A recorder has one or two, so they are kept."""
        tag, channels, rate, byte_rate, align, bits = unpack_from(order + "HHIIHH", fmt)
        if tag == 0xFFFE and len(fmt) >= 26:
            (tag,) = unpack_from(order + "H", fmt, 24)
        coding, frame = WAVE_TAGS.get(tag), 0
        if tag in (1, 3):
            coding = pcm(bits, big=order == ">", real=tag == 3, unsigned=True)
            frame = channels * ((bits + 7) // 8) or align
        elif tag in (6, 7):
            # A byte each, whatever the bits are said to be.
            frame = channels
        per_block = unpack_from(order + "H", fmt, 18)[0] if len(fmt) >= 20 and tag not in (1, 3, 0xFFFE) else 0
        return cls(coding, channels, rate, byte_rate, align, bits, per_block, frame)

    def samples(self, size: int) -> tuple[int, int]:
        """Samples of each channel in so many bytes, and how many of them may be padding of the last block."""
        if self.frame:
            return size // self.frame, 1
        if self.coding and self.channels and self.align and block_samples(self.coding, self.align, self.channels, 0):
            whole = block_samples(self.coding, self.align, self.channels, self.per_block)
            blocks, rest = divmod(size, self.align)
            return blocks * whole + block_samples(self.coding, rest, self.channels, self.per_block), whole
        if self.coding == "g726" and 2 <= self.bits <= 5 and self.channels:
            return size * 8 // self.bits // self.channels, 8
        return 0, 0

    def duration(self, size: int, fact: int) -> timedelta | None:
        """``fact``: the samples that the header tells, 0 where it does not."""
        most, padding = self.samples(size)
        if most:
            return span(fact if most - padding <= fact <= most else most, self.rate)
        by_bytes = size / self.byte_rate if self.byte_rate else 0.0
        # Byte rates of compressed codings are off by a factor of four with some writers.
        if fact and self.rate and (not by_bytes or by_bytes / 8 < fact / self.rate < by_bytes * 8):
            return span(fact, self.rate)
        return span(by_bytes, 1)


class _Layout(NamedTuple):
    """Where the audio lies."""

    order: str
    fmt: bytes
    fact: int
    start: int
    #: Bytes of audio that are promised; None: left open.
    size: int | None
    #: Bytes of the whole file that are promised, less eight; 0: left open.
    whole: int


def _open_ended(size: int) -> bool:
    """What writers put for a length they do not know yet (sox: 0x7FFFF000 and less, to fit whole blocks)."""
    return 0x7FFF0000 <= size <= 0x80000000 or 0xFFFF0000 <= size <= 0xFFFFFFFF or size >= 1 << 62


def read_wav(it: Bytes) -> Audio | None:
    """What a RIFF file is; None where it is no WAVE."""
    if it.length < 12:
        return _wav(cut(f"the WAV is cut in its header, after {it.length} bytes"))
    magic, form = it.at(0, 4), it.at(8, 4)
    if form != b"WAVE":
        return None
    order = ">" if magic == b"RIFX" else "<"
    (whole,) = unpack(order + "I", it.at(4, 4))
    chunk = Struct(order + "4sI")
    fmt = b""
    fact = 0
    long_data = None
    pos = 12
    for _ in range(MAX_CHUNKS):
        head = it.at(pos, 8)
        if len(head) < 8:
            break
        name, size = chunk.unpack(head)
        if name == b"data":
            if long_data is not None and size == 0xFFFFFFFF:
                size = long_data
            promised = None if _open_ended(size) and size > it.length - pos - 8 else size
            whole = 0 if _open_ended(whole) and whole > it.length else whole
            return _judged(it, _Layout(order, fmt, fact, pos + 8, promised, whole))
        if name == b"fmt ":
            fmt = it.at(pos + 8, min(size, 40))
        elif name == b"fact" and size >= 4 and len(told := it.at(pos + 8, 4)) == 4:
            (fact,) = unpack(order + "I", told)
        elif name == b"ds64" and size >= 16 and len(long := it.at(pos + 8, 16)) == 16:
            whole, long_data = unpack(order + "QQ", long)
        pos = _after_chunk(it, pos + 8 + size, odd=size & 1)
    else:
        return _wav(unchecked("the WAV has a thousand chunks and no audio among them"))
    if pos == it.length == whole + 8:
        return _wav(empty("the WAV holds no audio: it has no data chunk"))
    return _wav(cut(f"the WAV is cut before its audio, after {it.length} bytes"))


def _wav(finding: Finding, coding: str | None = None, duration: timedelta | None = None) -> Audio:
    return made("audio/wav", "wav", finding, coding=coding, duration=duration)


def _after_chunk(it: Bytes, end: int, *, odd: int) -> int:
    """Where the next chunk begins: an odd one is padded to even, which some writers forget."""
    if not odd:
        return end
    names = it.at(end, 5)
    here, padded = names[:4], names[1:]
    if padded not in _KNOWN and (here in _KNOWN or (_is_name(here) and not _is_name(padded))):
        return end
    return end + 1


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and name.isascii() and name.decode().isprintable()


def _judged(it: Bytes, layout: _Layout) -> Audio:
    if len(layout.fmt) < 16:
        here = it.length - layout.start
        if layout.size is not None and layout.size > here:
            return _wav(cut(f"the WAV is cut: {here} of its {layout.size} bytes of audio are here"))
        return _wav(unchecked("the WAV does not say in which format its audio is"))
    form = _Format.read(layout.fmt, layout.order)
    size, finding = _verdict(it, layout, form)
    # What is told beforehand of a file that has another length does not count.
    fact = layout.fact if layout.size and size + 1 >= layout.size else 0
    return _wav(finding, form.coding, form.duration(size, fact))


def _verdict(it: Bytes, layout: _Layout, form: _Format) -> tuple[int, Finding]:
    """Bytes of audio that are here, and what to think of them."""
    here, size = it.length - layout.start, layout.size
    if size is None:
        if here == 0:
            return 0, empty("the WAV holds no audio: its writer broke off before the first sample")
        if form.frame and (rest := here % form.frame) and not (rest == 1 and it.at(it.length - 1, 1) == b"\0"):
            return here, unfinished("the WAV's last sample is not whole")
        return here, OPEN
    if size > here:
        return here, _less(it.length, here, size, layout.fact, form)
    if size == 0:
        if here <= 1 or _tail(it, layout, 0, exact=True) == "chunks":
            return 0, empty("the WAV holds no audio: it is a header only")
        return here, unfinished("the WAV is not finalised: its header says 0 bytes of audio, but bytes follow")
    return size, _behind(it, layout, size)


def _less(length: int, here: int, size: int, fact: int, form: _Format) -> Finding:
    """Fewer bytes than promised: is it only padding that lacks?"""
    unit = form.frame or form.align or 1
    if here + 1 == size and not size & 1:
        # Some round the size up to even, and add the byte for it last (Asterisk's GSM), or never.
        if here // unit == size // unit if unit > 1 else 0 < fact <= here:
            return GOOD if form.frame else unfinished("the WAV's last byte, a pad, is missing: it was never closed")
        if unit == 1:
            return unfinished("the last byte that the WAV's header counts is missing: a pad, or a sample")
    if here and size in (length, length - 8):
        return unfinished("the WAV's header counts itself as audio")
    return cut(f"the WAV is cut: {here} of its {size} bytes of audio are here")


def _behind(it: Bytes, layout: _Layout, size: int) -> Finding:
    """All audio that is promised is here; what else is there, or lacks?"""
    tail = _tail(it, layout, size)
    if tail == "bytes":
        rest = it.length - layout.start - size
        return unfinished(f"{rest} bytes follow the audio that the WAV's header counts")
    # Some count the header of the RIFF chunk too, or a pad byte that they did not write.
    if layout.whole > it.length or (tail == "cut chunks" and layout.whole + 8 > it.length):
        return unfinished(f"the WAV is cut behind its audio: {it.length} of its {layout.whole + 8} bytes are here")
    return GOOD


def _tail(it: Bytes, layout: _Layout, size: int, *, exact: bool = False) -> str:
    """What follows so many bytes of audio: nothing, chunks, cut chunks, or bytes; ``exact``: no padding at the end."""
    end, odd = layout.start + size, size & 1
    if it.length - end <= odd:
        return "nothing"
    for _ in range(MAX_CHUNKS):
        pos = _after_chunk(it, end, odd=odd)
        rest = it.length - pos
        if rest < _SLACK or (not exact and it.are_zeros(pos)):
            return "bytes" if exact and rest > 1 else "chunks"
        head = it.at(pos, 8)
        if not _is_name(head[:4]):
            return "bytes"
        (length,) = unpack_from(layout.order + "I", head, 4)
        end, odd = pos + 8 + length, length & 1
        if it.length - end <= odd:
            return "chunks" if end <= it.length else "cut chunks"
    return "bytes"


def read_w64(it: Bytes) -> Audio:
    """What a Sony Wave64 file is."""
    pos, fmt, fact, whole = 40, b"", 0, 0
    if it.length >= 40:
        (whole,) = unpack("<Q", it.at(16, 8))
    for _ in range(MAX_CHUNKS):
        head = it.at(pos, 24)
        if len(head) < 24:
            return _w64(cut(f"the W64 file is cut before its audio, after {it.length} bytes"))
        name, size = head[:4] if head[4:16] == _W64_TAIL else b"", unpack_from("<Q", head, 16)[0]
        here = it.length - pos - 24
        if name == b"data":
            promised = None if _open_ended(size) and size - 24 > here else max(0, size - 24)
            break
        if name == b"fmt ":
            fmt = it.at(pos + 24, 40)
        elif name == b"fact" and len(told := it.at(pos + 24, 8)) == 8:
            (fact,) = unpack("<Q", told)
        pos += max(24, size) + 7 & ~7
    else:
        return _w64(unchecked("the W64 file has a thousand chunks and no audio among them"))
    if len(fmt) < 16:
        return _w64(unchecked("the W64 file does not say in which format its audio is"))
    form = _Format.read(fmt, "<")
    held, finding = here if promised is None else min(promised or here, here), GOOD
    if not here:
        finding = cut("the W64 file is cut before its audio") if promised else empty("the W64 file holds no audio")
    elif promised == 0:
        finding = unfinished("the W64 file is not finalised: its header says 0 bytes of audio, but bytes follow")
    elif promised and promised > here:
        finding = cut(f"the W64 file is cut: {here} of its {promised} bytes of audio are here")
    elif whole > it.length + 7 and not _open_ended(whole):
        finding = unfinished(f"the W64 file is cut behind its audio: {it.length} of its {whole} bytes are here")
    return _w64(finding, form.coding, form.duration(held, fact if held == promised else 0))


def _w64(finding: Finding, coding: str | None = None, duration: timedelta | None = None) -> Audio:
    return made("audio/x-w64", "w64", finding, coding=coding, duration=duration)
