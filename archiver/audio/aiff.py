"""Files whose header tells it all: AU, AIFF and AIFC, CAF.

Facts: the Sun/NeXT audio file format, Apple's AIFF 1.3 and AIFF-C, Apple's Core Audio Format 1.0.
"""

from __future__ import annotations

from datetime import timedelta
from struct import unpack, unpack_from

from .base import GOOD, MAX_CHUNKS, Audio, Bytes, Finding, cut, empty, held, made, span, unchecked, unfinished
from .codings import block_samples, pcm

# AU

#: Coding and bits of a sample by AU's number.
_AU = {
    1: ("ulaw", 8),
    2: ("pcm_s8", 8),
    3: ("pcm_s16", 16),
    4: ("pcm_s24", 24),
    5: ("pcm_s32", 32),
    6: ("pcm_f32", 32),
    7: ("pcm_f64", 64),
    23: ("g726", 4),
    24: ("g722", 4),
    25: ("g726", 3),
    26: ("g726", 5),
    27: ("alaw", 8),
}


def read_au(it: Bytes) -> Audio:
    """What an AU file is (``dns.``: little-endian)."""
    head = it.at(0, 24)
    if len(head) < 24:
        return _au(cut(f"the AU file is cut in its header, after {it.length} bytes"))
    little = head[:4] == b"dns."
    start, size, number, rate, channels = unpack_from("<5I" if little else ">5I", head, 4)
    if start > it.length:
        return _au(cut(f"the AU file is cut in its header, after {it.length} bytes"))
    coding, bits = _AU.get(number, (None, 0))
    here = it.length - start
    length, finding = held("AU file", None if size == 0xFFFFFFFF else size, here)
    if finding is GOOD and here - length >= 8 and not it.are_zeros(start + length):
        finding = unfinished(f"{here - length} bytes follow the audio that the AU file's header counts")
    if coding and coding.startswith("pcm_") and bits > 8:
        coding += "le" if little else "be"
    samples = length * 8 // bits // channels if bits and channels else 0
    return _au(finding, coding, span(samples, rate))


def _au(finding: Finding, coding: str | None = None, duration: timedelta | None = None) -> Audio:
    return made("audio/basic", "au", finding, coding=coding, duration=duration)


# AIFF

_AIFC = {b"alaw": "alaw", b"ALAW": "alaw", b"ulaw": "ulaw", b"ULAW": "ulaw", b"GSM ": "gsm", b"ima4": "ima_adpcm"}


def read_aiff(it: Bytes) -> Audio | None:
    """What an AIFF or AIFC file is; None: a FORM of another kind."""
    if it.length < 12:
        return _aiff(cut(f"the AIFF file is cut in its header, after {it.length} bytes"))
    if it.at(8, 4) not in (b"AIFF", b"AIFC"):
        return None
    common, sound, pos = _aiff_chunks(it)
    if sound is None:
        if pos == it.length == int.from_bytes(it.at(4, 4), "big") + 8:
            return _aiff(empty("the AIFF file holds no audio: it has no SSND chunk"))
        return _aiff(cut(f"the AIFF file is cut before its audio, after {it.length} bytes"))
    start, size = sound
    here = max(0, it.length - start)
    if len(common) < 18:
        if size > here:
            return _aiff(cut(f"the AIFF file is cut: {here} of its {size} bytes of audio are here"))
        return _aiff(unchecked("the AIFF file does not say in which format its audio is"))
    channels, frames, bits = unpack_from(">HIH", common)
    # What sox puts for a length that it does not know yet.
    length, finding = held("AIFF file", None if size >= 0x7F000000 - 8 and size > here else size, here)
    coding, samples = _aiff_samples(common, channels, frames, bits, length)
    if not (finding is GOOD and samples >= frames):
        frames = samples or frames
    return _aiff(finding, coding, span(frames, _extended(common[8:18])))


def _aiff_chunks(it: Bytes) -> tuple[bytes, tuple[int, int] | None, int]:
    """What COMM says, where the audio of SSND begins and how long it is, and where the chunks end."""
    common, sound, pos = b"", None, 12
    for _ in range(MAX_CHUNKS):
        head = it.at(pos, 8)
        if len(head) < 8:
            break
        name, size = head[:4], int.from_bytes(head[4:], "big")
        if name == b"COMM":
            common = it.at(pos + 8, min(size, 64))
        elif name == b"SSND":
            sound = pos + 16, max(0, size - 8)
            if common and size <= 8:
                break
        pos += 8 + size + (size & 1)
    return common, sound, pos


def _aiff_samples(common: bytes, channels: int, frames: int, bits: int, length: int) -> tuple[str | None, int]:
    """The coding, and how many samples of each channel so many bytes are."""
    kind = common[18:22] if len(common) >= 22 else b"NONE"
    if kind in _AIFC:
        coding: str | None = _AIFC[kind]
        if coding == "gsm":
            return coding, length // 33 * 160
        if coding == "ima_adpcm":
            # Apple's: packets of 34 bytes and 64 samples; COMM counts packets with some writers, samples with others.
            samples = length // 34 // max(channels, 1) * 64
            return coding, samples
        bits = 8
    else:
        real = kind in (b"fl32", b"FL32", b"fl64", b"FL64")
        coding = pcm(bits, big=kind != b"sowt", real=real) if real or kind in (b"NONE", b"twos", b"sowt") else None
    width = (bits + 7) // 8 * channels
    return coding, length // width if coding and width else frames


def _extended(ten: bytes) -> float:
    """An 80-bit number; 0 where it is none that a rate is."""
    exponent, mantissa = unpack(">HQ", ten)
    return float(mantissa * 2.0 ** (exponent - 16383 - 63)) if 16383 <= exponent < 16383 + 32 else 0.0


def _aiff(finding: Finding, coding: str | None = None, duration: timedelta | None = None) -> Audio:
    return made("audio/aiff", "aiff", finding, coding=coding, duration=duration)


# CAF

_CAF = {
    b"alaw": "alaw",
    b"ulaw": "ulaw",
    b"ima4": "ima_adpcm",
    b"aac ": "aac",
    b"opus": "opus",
    b".mp3": "mp3",
    b"flac": "flac",
    b"agsm": "gsm",
    b"samr": "amr",
}


def read_caf(it: Bytes) -> Audio:
    """What a Core Audio file is."""
    described, valid, sound, pos = b"", 0, None, 8
    for _ in range(MAX_CHUNKS):
        head = it.at(pos, 12)
        if len(head) < 12:
            break
        name, size = head[:4], int.from_bytes(head[4:], "big", signed=True)
        if name == b"desc":
            described = it.at(pos + 12, 32)
        elif name == b"pakt":
            # Packets, then samples without those that the coding needs before and behind.
            (valid,) = unpack(">q", it.at(pos + 20, 8).ljust(8, b"\0"))
        elif name == b"data":
            sound = pos + 16, None if size == -1 else size - 4
        if size < 0:
            break
        pos += 12 + size
    if sound is None:
        return _caf(cut(f"the CAF file is cut before its audio, after {it.length} bytes"))
    if len(described) < 32:
        return _caf(unchecked("the CAF file does not say in which format its audio is"))
    here = max(0, it.length - sound[0])
    length, finding = held("CAF file", None if sound[1] is None else max(0, sound[1]), here)
    if finding is GOOD and sound[1] is not None and pos > it.length:
        finding = unfinished("the CAF file is cut behind its audio")
    rate, kind, flags, packet, per_packet, channels, bits = unpack(">d4sIIIII", described)
    coding = _CAF.get(kind)
    if kind == b"lpcm":
        coding = pcm(bits, big=not flags & 2, real=bool(flags & 1))
    samples = length // packet * per_packet if packet else 0
    if kind == b"ima4" and channels and not packet:
        samples = block_samples("ima_adpcm", length, channels, 0)
    return _caf(finding, coding, span(valid if valid > 0 and finding is GOOD else samples, rate))


def _caf(finding: Finding, coding: str | None = None, duration: timedelta | None = None) -> Audio:
    return made("audio/x-caf", "caf", finding, coding=coding, duration=duration)
