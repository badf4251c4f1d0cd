"""Speech codecs in frames of 20 ms, one after the other: raw GSM 06.10, AMR and AMR-WB.

Facts: ETSI GSM 06.10 as Asterisk writes it (33 bytes that begin with 0xD), RFC 4867 §5 (the file format of AMR).
"""

from __future__ import annotations

from datetime import timedelta

from .base import GOOD, Audio, Bytes, cut, empty, made, unfinished

GSM_FRAME = 33
_FRAME = timedelta(milliseconds=20)
_AMR = (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1)
_AMR_WB = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1)


def read_gsm(it: Bytes, *, surely: bool) -> Audio | None:
    """Frames of 33 bytes and 20 ms that begin with 0xD: no more of a magic than that."""
    frames, rest = divmod(it.length, GSM_FRAME)
    if frames < (10 if surely or rest else 1):
        return None
    first = it.at(0, 50 * GSM_FRAME)[: frames * GSM_FRAME : GSM_FRAME]
    last = it.at(max(0, frames - 5) * GSM_FRAME, 5 * GSM_FRAME)[: min(frames, 5) * GSM_FRAME : GSM_FRAME]
    if any(byte >> 4 != 0xD for byte in first + last):
        return None
    finding = unfinished("the GSM file's last frame is not whole") if rest else GOOD
    return made("audio/x-gsm", "gsm", finding, coding="gsm", duration=frames * _FRAME)


def read_amr(it: Bytes, magic: bytes) -> Audio:
    """AMR and AMR-WB: each frame's first byte tells its length."""
    wide = b"-WB" in magic
    sizes = _AMR_WB if wide else _AMR
    pos, frames, finding = len(magic), 0, GOOD
    if pos >= it.length:
        finding = empty("the AMR file holds no audio: it is a header only")
    while pos < it.length:
        data, base = it.window(pos, 64)
        head = data[pos - base]
        # Three bits are zero; they and the eight modes that nobody has show what is no frame.
        size = 0 if head & 0x83 else sizes[head >> 3 & 15]
        if not size:
            finding = cut(f"the AMR file is damaged: no frame begins at byte {pos}")
            break
        if pos + size > it.length:
            finding = unfinished("the AMR file's last frame is not whole")
            break
        pos += size
        frames += 1
    return made(
        "audio/amr-wb" if wide else "audio/amr",
        "awb" if wide else "amr",
        finding,
        coding="amr_wb" if wide else "amr",
        duration=frames * _FRAME or None,
    )
