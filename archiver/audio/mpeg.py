"""MP3 (and its elder layers) and AAC in ADTS: frames one after the other, from the first to the last.

What neither can tell: an MP3 without a Xing, Info or VBRI frame, or AAC, that is cut exactly between two frames.
Without a LAME tag an MP3's duration holds what its encoder put before and behind the audio (up to 0.1 s each).

Facts: ISO 11172-3 and 13818-3 (MPEG audio), ISO 14496-3 (ADTS), id3.org, the "MP3 Info Tag" of LAME (delay and padding
of 12 bits each, in samples).
"""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from struct import unpack_from
from typing import NamedTuple

from .base import GOOD, TAIL, Audio, Bytes, Finding, cut, empty, made, span, unfinished

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


def after_tags(it: Bytes, pos: int) -> int:
    """The position after any ID3v2, APEv2, Lyrics3v2 and ID3v1 tags: beyond the end where one is cut."""
    for _ in range(_MAX_TAGS):
        head = it.at(pos, 32)
        if head[:3] == b"ID3" and len(head) >= 10 and not (head[6] | head[7] | head[8] | head[9]) & 0x80:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            pos += 10 + size + (10 if head[5] & 0x10 else 0)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            pos += 32 + unpack_from("<I", head, 12)[0]
        elif head[:11] == b"LYRICSBEGIN" and (end := it.at(pos, 65536).find(b"LYRICS200")) > 0:
            pos += end + 9
        elif head[:4] == b"TAG+":
            pos += 227
        elif head[:3] == b"TAG":
            pos += 128
        else:
            return pos
    return pos


def mp3_frames_follow(it: Bytes, pos: int, *, whole: bool) -> bool:
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


def _is_tail(it: Bytes, pos: int) -> bool:
    """Is what is left here a tag, or less than a frame of zeros?"""
    rest = it.at(pos, _LONGEST_FRAME)
    return rest[:3] in (b"TAG", b"ID3") or rest[:8] == b"APETAGEX" or (pos + len(rest) == it.length and not any(rest))


def mp3_sync(it: Bytes, start: int) -> int | None:
    """Where the first frame begins, not farther than a little garbage from the start."""
    garbage = it.at(start, _GARBAGE)
    at = garbage.find(b"\xff")
    while at >= 0:
        if mp3_frames_follow(it, start + at, whole=True):
            return start + at
        at = garbage.find(b"\xff", at + 1)
    return None


class _Promise(NamedTuple):
    """What the first frame of an MP3 tells of the others, where it is no audio itself."""

    #: How many there are, and bytes with this one (0: not told).
    frames: int = 0
    size: int = 0
    #: Samples that the encoder put before and behind the audio.
    padding: int = 0


def read_mp3(it: Bytes, pos: int) -> Audio:
    """Walks the frames that begin at ``pos`` (or after a little garbage there), and the tags among and after them."""
    if pos > it.length:
        return _mp3(cut(f"the MP3 is cut in a tag, after {it.length} bytes"))
    if pos == it.length:
        return _mp3(empty("the MP3 holds no audio: it is tags only"))
    head = it.at(pos, 4)
    # LAME begins with zeros in the place of its Info frame, which it writes last.
    placeholder = pos == 0 and len(head) == 4 and not any(head)
    if len(head) < 4 or head[0] != 0xFF or (head[1] << 8 | head[2]) not in _FRAMES:
        found = mp3_sync(it, pos)
        if found is None:
            return _mp3(cut("the MP3 is cut or damaged: no frame follows its tags"))
        placeholder = placeholder and not any(it.at(pos, found - pos))
        pos = found
    head = it.at(pos, 4)
    coding = {1: "mp3", 2: "mp2", 3: "mp1"}[head[1] >> 1 & 3]
    rate = (44100, 48000, 32000)[head[2] >> 2 & 3] // {3: 1, 2: 2, 0: 4}[head[1] >> 3 & 3]
    promise = _promise(it, pos)
    frames, seconds, end, finding = _frames(it, pos + _FRAMES[head[1] << 8 | head[2]][0] if promise else pos, promise)
    if promise:
        finding = _kept(promise, frames, end - pos, finding)
        if frames >= promise.frames:
            seconds -= promise.padding / rate
    if not frames and finding is GOOD:
        finding = empty("the MP3 holds no audio: it is a header only")
    if placeholder and finding is GOOD:
        finding = unfinished("the MP3's first frame was never filled in")
    return _mp3(finding, coding, span(seconds, 1))


def _mp3(finding: Finding, coding: str = "mp3", duration: timedelta | None = None) -> Audio:
    return made("audio/mpeg", "mp3", finding, coding=coding, duration=duration)


def _frames(it: Bytes, pos: int, promise: _Promise | None) -> tuple[int, float, int, Finding]:
    """Whole frames from ``pos`` to the end, their seconds, where the last one ends, and what follows it."""
    frames, seconds = 0, 0.0
    length = _LONGEST_FRAME
    while True:
        pos, more, longer, length = _walk(it, pos, length)
        frames, seconds = frames + more, seconds + longer
        if pos > it.length:
            return frames, seconds, it.length, unfinished("the MP3's last frame is not whole")
        after = after_tags(it, pos)
        if after > it.length:
            return frames, seconds, pos, unfinished(f"the MP3 is cut in a tag, after {it.length} bytes")
        if after == it.length:
            return frames, seconds, pos, GOOD
        if after == pos or _no_frame(it, after):
            return frames, seconds, pos, _rest(it, after, length, promise, frames)
        pos = after


def _no_frame(it: Bytes, pos: int) -> bool:
    head = it.at(pos, 3)
    return len(head) < 3 or head[0] != 0xFF or (head[1] << 8 | head[2]) not in _FRAMES


def _rest(it: Bytes, pos: int, length: int, promise: _Promise | None, frames: int) -> Finding:
    """What to think of bytes in which no frame begins."""
    rest = it.length - pos
    if rest <= length + 1 and it.are_zeros(pos):
        return GOOD
    told = promise is not None and promise.frames and frames >= promise.frames
    if rest <= TAIL and mp3_sync(it, pos) is None:
        return GOOD if told else unfinished(f"the MP3's last {rest} bytes are no frame")
    return cut(f"the MP3 is cut or damaged: no frame begins at byte {pos}")


def _walk(it: Bytes, pos: int, length: int) -> tuple[int, int, float, int]:
    """Where the unbroken chain of frames ends, how many they are, how many seconds; the last one's bytes.

    It ends beyond the file where the last frame is not whole; that one does not count.
    """
    frames, seconds, longer = 0, 0.0, 0.0
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
        if pos > it.length and frames:
            return pos, frames - 1, seconds - longer, length
        if here < stop or it.length - pos < 4:
            return pos, frames, seconds, length


def _promise(it: Bytes, pos: int) -> _Promise | None:
    """What a Xing, Info or VBRI frame tells, where the first one is such."""
    head = it.at(pos, 256)
    for magic in (b"Xing", b"Info"):
        # After the side information, whose length depends on version and channels.
        at = head.find(magic, 4 + 9, 4 + 2 + 32 + 4)
        if at > 0 and len(head) >= at + 16:
            flags, first, second = unpack_from(">III", head, at + 4)
            frames = first if flags & 1 else 0
            size = (second if flags & 1 else first) if flags & 2 else 0
            at += 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
            padding = 0
            if head[at : at + 4] in (b"LAME", b"Lavf", b"Lavc") and len(head) >= at + 24:
                both = int.from_bytes(head[at + 21 : at + 24], "big")
                padding = (both >> 12) + (both & 0xFFF)
            return _Promise(frames, size, padding)
    if head[36:40] == b"VBRI" and len(head) >= 54:
        size, frames = unpack_from(">II", head, 46)
        return _Promise(frames, size)
    return None


def _kept(promise: _Promise, frames: int, size: int, finding: Finding) -> Finding:
    # Some encoders count the Info frame itself; then the bytes, if they are told, are all there.
    short = promise.frames - frames
    if short > 1 or (short == 1 and not 0 < promise.size <= size):
        return cut(f"the MP3 is cut: {frames} of its {promise.frames} frames are here")
    return finding


# AAC in ADTS

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


def _adts(head: bytes) -> tuple[int, int, int] | None:
    """Bytes of an ADTS frame, samples in it, and the rate."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or (head[2] >> 2 & 15) >= len(_AAC_RATES):
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return (length, 1024 * ((head[6] & 3) + 1), _AAC_RATES[head[2] >> 2 & 15]) if length >= 7 else None


def adts_frames_follow(it: Bytes, pos: int, *, whole: bool) -> bool:
    """As :func:`mp3_frames_follow`."""
    for seen in range(4):
        if pos >= it.length or (frame := _adts(it.at(pos, 7))) is None:
            return not whole and seen > 1 and it.length - pos < 7
        pos += frame[0]
    return True


def read_adts(it: Bytes, pos: int) -> Audio:
    """What AAC in ADTS is, from a first frame at ``pos`` on."""
    seconds, finding = 0.0, GOOD
    while pos < it.length:
        frame = _adts(it.at(pos, 7))
        if frame is None:
            after = after_tags(it, pos)
            if after == pos or after > it.length:
                rest = it.length - pos
                if not it.are_zeros(pos):
                    finding = cut(f"the AAC file is damaged: no frame begins at byte {pos}")
                if rest < 7 or after > it.length:
                    finding = unfinished("the AAC file's last frame is not whole")
                break
            pos = after
            continue
        length, samples, rate = frame
        if pos + length > it.length:
            finding = unfinished("the AAC file's last frame is not whole")
            break
        pos += length
        seconds += samples / rate
    return made("audio/aac", "aac", finding, coding="aac", duration=span(seconds, 1))
