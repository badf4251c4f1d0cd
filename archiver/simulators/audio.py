"""Real audio for simulated calls: any length, each call its own bytes, the same ones every time.

The samples (two sentences of synthetic speech) are begun at a place that the seed picks and repeated.
Nothing is encoded here: whole samples, packets and frames are laid out anew, each container with its sizes,
numbers and checksums in order. Every file names its seed, save raw GSM, which has no place for text.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, partial
from hashlib import blake2b
from importlib.resources import files

from ..audio import ogg_checksum


def make(fmt: str, *, seconds: float, seed: str) -> bytes:
    """Audio of about ``seconds`` (to the nearest frame, at least one); a pure function of its arguments.

    ``fmt``: wav (PCM, 16 bits), ulaw and alaw (WAV too), all 8 kHz; spx; opus; mp3 (40 kbit/s); gsm (raw).
    Raises ValueError for any other.
    """
    maker = _MAKERS.get(fmt)
    if maker is None:
        raise ValueError(f"no such format: {fmt}; there are {', '.join(_MAKERS)}")
    return maker(seconds, seed)


@cache
def sample(name: str) -> bytes:
    """One of the sample files, ``speech.wav`` and so on (see samples/README.md)."""
    return (files("archiver.simulators") / "samples" / name).read_bytes()


def _text(seed: str) -> bytes:
    return b"seed=" + seed.encode(errors="backslashreplace")


def _number(seed: str) -> int:
    """128 bits that the seed decides."""
    return int.from_bytes(blake2b(_text(seed), digest_size=16).digest(), "big")


def _looped(speech: bytes, unit: int, start: int, count: int) -> bytes:
    """``count`` units of so many bytes, begun at unit ``start`` of the speech and round again."""
    at = start * unit % len(speech)
    turned = speech[at:] + speech[:at]
    times, rest = divmod(count * unit, len(turned))
    return turned * times + turned[:rest]


# WAV


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", name, len(body)) + body + bytes(len(body) & 1)


def _wav(name: str, coding: int, width: int, seconds: float, seed: str) -> bytes:
    speech = sample(name)
    speech = speech[speech.index(b"data") + 8 :]
    count = max(1, round(seconds * 8000))
    data = _looped(speech, width, _number(seed), count)
    fmt = struct.pack("<HHIIHH", coding, 1, 8000, 8000 * width, width, 8 * width)
    chunks = [
        b"WAVE",
        _chunk(b"fmt ", fmt if coding == 1 else fmt + bytes(2)),
        b"" if coding == 1 else _chunk(b"fact", struct.pack("<I", count)),
        _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", _text(seed) + b"\x00")),
        struct.pack("<4sI", b"data", len(data)),
        data,
        bytes(len(data) & 1),
    ]
    return b"".join([b"RIFF", struct.pack("<I", sum(map(len, chunks))), *chunks])


# Ogg


def _ogg_page(serial: int, sequence: int, flags: int, granule: int, packets: list[bytes]) -> bytes:
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, sequence, 0, len(lacing))
    page = b"".join([head, lacing, *packets])
    return page[:22] + ogg_checksum(page) + page[26:]


@cache
def _ogg_packets(name: str) -> list[bytes]:
    """The packets of a sample; none of them crosses from one page to the next."""
    data, packets, pos = sample(name), [], 0
    while pos < len(data):
        segments = data[pos + 26]
        lacing = data[pos + 27 : pos + 27 + segments]
        pos += 27 + segments
        start = pos
        for size in lacing:
            pos += size
            if size < 255:
                packets.append(data[start:pos])
                start = pos
    return packets


def _ogg(name: str, tags: bytes, ticks: int, skip: int, seconds: float, seed: str) -> bytes:
    """``ticks`` of the granule clock to a packet of 20 ms; a decoder drops ``skip`` of them at the start.

    A page holds a second: 50 packets, of which the sample has more.
    """
    first, _, *speech = _ogg_packets(name)
    count = max(1, round(seconds * 50) + -(-skip // ticks))
    number = _number(seed)
    serial, start = number & 0xFFFFFFFF, number >> 32
    comment = tags + b"".join([struct.pack("<I", 8), b"archiver", struct.pack("<II", 1, len(_text(seed))), _text(seed)])
    pages = [_ogg_page(serial, 0, 2, 0, [first]), _ogg_page(serial, 1, 0, 0, [comment])]
    start %= len(speech)
    twice = speech[start:] + speech + speech[:start]
    for done in range(0, count, 50):
        until = min(done + 50, count)
        at = done % len(speech)
        packets = twice[at : at + until - done]
        last = until == count
        granule = min(until * ticks, round(seconds * 50 * ticks) + skip) if last else until * ticks
        pages.append(_ogg_page(serial, len(pages), 4 if last else 0, granule, packets))
    return b"".join(pages)


# MP3: frames of 180 bytes and 36 ms, each standing for itself

_MP3_FRAME = 180


def _mp3(seconds: float, seed: str) -> bytes:
    speech = sample("speech.mp3")[_MP3_FRAME:]
    count = max(1, round(seconds / 0.036))
    text = b"\x00eng\x00" + _text(seed)
    frame = struct.pack(">4sIH", b"COMM", len(text), 0) + text
    size = len(frame)
    tag = b"ID3\x03\x00\x00" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame
    # Header, empty side information, and how many frames and bytes there shall be.
    info = sample("speech.mp3")[:4] + bytes(9) + struct.pack(">4sIII", b"Info", 3, count, (count + 1) * _MP3_FRAME)
    return b"".join([tag, info.ljust(_MP3_FRAME, b"\x00"), _looped(speech, _MP3_FRAME, _number(seed), count)])


# Raw GSM: frames of 33 bytes and 20 ms

_GSM_FRAME = 33


def _gsm(seconds: float, seed: str) -> bytes:
    """The seed lies in the last pulse of the first frames, three bits in each, where nobody hears it."""
    count = max(1, round(seconds * 50))
    number = _number(seed)
    data = bytearray(_looped(sample("speech.gsm"), _GSM_FRAME, number, count))
    for frame in range(min(count, 43)):
        data[frame * _GSM_FRAME + _GSM_FRAME - 1] ^= number >> 3 * frame & 7
    return bytes(data)


_MAKERS: dict[str, Callable[[float, str], bytes]] = {
    "wav": partial(_wav, "speech.wav", 1, 2),
    "ulaw": partial(_wav, "speech-ulaw.wav", 7, 1),
    "alaw": partial(_wav, "speech-alaw.wav", 6, 1),
    "spx": partial(_ogg, "speech.spx", b"", 160, 0),
    "opus": partial(_ogg, "speech.opus", b"OpusTags", 960, 312),
    "mp3": _mp3,
    "gsm": _gsm,
}
