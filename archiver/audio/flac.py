"""FLAC: blocks of metadata to the first frame; then the last frame, found from the end by its checksums.

Frames do not tell their length, so those in between are not seen without decoding them. Facts: RFC 9639.
"""

from __future__ import annotations

from struct import unpack_from

from .base import GOOD, MAX_CHUNKS, Audio, Bytes, Finding, cut, empty, made, span, unfinished

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


def read_flac(it: Bytes) -> Audio:
    """What a FLAC file is."""
    info = it.at(4, 38)
    if len(info) < 38:
        return _flac(cut(f"the FLAC file is cut in its header, after {it.length} bytes"))
    if info[0] & 0x7F != 0 or info[1:4] != b"\x00\x00\x22":
        return _flac(cut("the FLAC file is damaged: its stream information is missing"))
    block_size = unpack_from(">H", info, 4 + 2)[0]
    longest_frame = int.from_bytes(info[4 + 7 : 4 + 10], "big")
    packed = int.from_bytes(info[4 + 10 : 4 + 18], "big")
    rate, samples = packed >> 44, packed & 0xFFFFFFFFF
    start = _audio_start(it)
    if start is None:
        return _flac(cut(f"the FLAC file is cut in its header, after {it.length} bytes"))
    end = it.length
    if it.at(end - 128, 3) == b"TAG":
        end -= 128
    if start >= end:
        return _flac(cut("the FLAC file is cut before its audio") if samples else empty("the FLAC file holds no audio"))
    sync = it.at(start, 2)
    if sync not in (b"\xff\xf8", b"\xff\xf9"):
        return _flac(cut(f"the FLAC file is damaged: no frame begins at byte {start}"))
    size = min(end - start, min(max(longest_frame, _FLAC_WINDOW), 4 * _FLAC_WINDOW))
    last, whole = _last_frame(it.at(end - size, size), sync, block_size, samples)
    if whole and samples in (0, last):
        return _flac(GOOD, last, rate)
    if samples:
        return _flac(
            cut(f"the FLAC file is cut or damaged: its last frame is not the one of sample {samples}"), last, rate
        )
    if last is None:
        return _flac(cut("the FLAC file is cut or damaged: no frame is near its end"))
    return _flac(unfinished("the FLAC file's last frame is not whole"), last, rate)


def _flac(finding: Finding, samples: int | None = None, rate: int = 0) -> Audio:
    return made("audio/flac", "flac", finding, coding="flac", duration=span(samples or 0, rate))


def _audio_start(it: Bytes) -> int | None:
    """Where the metadata ends; None: not in this file."""
    pos = 4
    for _ in range(MAX_CHUNKS):
        head = it.at(pos, 4)
        pos += 4 + int.from_bytes(head[1:], "big")
        if len(head) < 4 or pos > it.length:
            return None
        if head[0] & 0x80:
            return pos
    return None


def _last_frame(tail: bytes, sync: bytes, block_size: int, samples: int) -> tuple[int | None, bool]:
    """The sample at which the last frame of a tail ends, and whether that frame is whole.

    Where it is not, the sample is the one at which the frame before it ends.
    """
    tries = 0
    at = len(tail)
    begun = None
    while tries < _FLAC_TRIES and (at := tail.rfind(sync, 0, at)) >= 0:
        told = frame_samples(tail[at : at + 16].ljust(16, b"\x00"), block_size)
        if told is not None and (samples == 0 or told[1] <= samples):
            crc = 0
            for byte in tail[at:]:
                crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
            # A checksum over a message and its own checksum is zero.
            if crc == 0:
                return told[1], True
            begun = told[0] if begun is None else begun
            tries += 1
    return begun, False


def frame_samples(head: bytes, block_size: int) -> tuple[int, int] | None:
    """At which samples this frame begins and ends; None if it is no frame's header (RFC 9639 §9.1)."""
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
    begin = number if head[1] & 1 else number * block_size
    return None if crc else (begin, begin + count)
