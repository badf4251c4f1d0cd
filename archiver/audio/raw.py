"""Audio without a container, as an option of the source declares it: ``audio = "raw:ulaw:8000"``.

Bytes alone tell nothing of it, so durations are arithmetic, and all that can be checked is whether the last frame is
whole. Facts: RFC 3551 §4.5 (frames of telephone codecs), ITU-T G.722, G.723.1, G.726 and G.729, RFC 3951 (iLBC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .base import GOOD, Audio, Bytes, made, span, unchecked, unfinished
from .frames import GSM_FRAME


class _Coding(NamedTuple):
    coding: str
    #: Asterisk's extension.
    ext: str
    content_type: str
    #: Bytes of a frame, the samples in it, and the rate where none is told.
    frame: int
    samples: int
    rate: int = 8000
    #: May it be another rate?
    fixed: bool = False


_CODINGS = {
    "ulaw": _Coding("ulaw", "ulaw", "audio/pcmu", 1, 1),
    "alaw": _Coding("alaw", "alaw", "audio/pcma", 1, 1),
    "slin": _Coding("pcm_s16le", "sln", "audio/x-slin", 2, 1),
    "pcm_s16be": _Coding("pcm_s16be", "l16", "audio/l16", 2, 1),
    "g722": _Coding("g722", "g722", "audio/g722", 1, 2, 16000, fixed=True),
    "g723_1": _Coding("g723_1", "g723", "audio/g723", 0, 240, fixed=True),
    "g726": _Coding("g726", "g726", "audio/g726-32", 1, 2, fixed=True),
    "g729": _Coding("g729", "g729", "audio/g729", 10, 80, fixed=True),
    "gsm": _Coding("gsm", "gsm", "audio/x-gsm", GSM_FRAME, 160, fixed=True),
    "ilbc": _Coding("ilbc", "ilbc", "audio/ilbc", 50, 240, fixed=True),
    "oki_adpcm": _Coding("oki_adpcm", "vox", "audio/x-vox", 1, 2),
}
_ALIASES = {"mulaw": "ulaw", "pcmu": "ulaw", "pcma": "alaw", "pcm_s16le": "slin", "g723": "g723_1", "vox": "oki_adpcm"}
#: Bytes of a G.723.1 frame by the two lowest bits of its first one.
_G723_1 = (24, 20, 4, 1)
_RATES = (6000, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFormat:
    """What bytes without a container are."""

    coding: str
    rate: int
    channels: int
    ext: str
    content_type: str
    #: Bytes and samples of a frame of all channels; 0 bytes: each frame tells its own.
    frame: int
    samples: int


def raw_format(text: str) -> RawFormat:
    """Reads ``[raw:]CODING[:RATE[:CHANNELS]]`` (``raw:ulaw:8000``). Raises ValueError, which says what is wrong."""
    name, *numbers = text.strip().lower().removeprefix("raw:").split(":")
    known = _CODINGS.get(_ALIASES.get(name, name))
    if known is None:
        raise ValueError(f"{text!r}: no such raw coding: {name!r}; there are {', '.join(_CODINGS)}")
    if len(numbers) > 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"{text!r}: write it as raw:CODING:RATE, such as raw:{name}:{known.rate}")
    rate = int(numbers[0]) if numbers else known.rate
    channels = int(numbers[1]) if len(numbers) > 1 else 1
    if known.fixed and rate != known.rate:
        raise ValueError(f"{text!r}: {name} has a rate of {known.rate}")
    if rate not in _RATES:
        raise ValueError(f"{text!r}: no such rate; there are {', '.join(map(str, _RATES))}")
    if channels not in ((1,) if known.fixed else (1, 2)):
        raise ValueError(f"{text!r}: {name} has 1 channel" + ("" if known.fixed else " or 2"))
    ext = known.ext
    if ext == "sln" and rate != 8000:
        ext = f"sln{rate // 1000}"
    content_type = known.content_type
    if not known.fixed:
        content_type += f"; rate={rate}" + (f"; channels={channels}" if channels > 1 else "")
    return RawFormat(
        coding=known.coding,
        rate=rate,
        channels=channels,
        ext=ext,
        content_type=content_type,
        frame=known.frame * channels,
        samples=known.samples,
    )


def read_raw(it: Bytes, raw: RawFormat) -> Audio:
    """What such bytes are."""
    finding = GOOD
    if raw.coding == "g723_1":
        frames, rest = _g723_1(it)
    else:
        frames, rest = divmod(it.length, raw.frame)
    # In G.729 a frame of two bytes tells of silence (Annex B), mostly the last one.
    if rest and not (raw.coding == "g729" and rest == 2):
        finding = unfinished(f"the last frame of {raw.coding} is not whole")
    if raw.coding == "gsm" and any(byte >> 4 != 0xD for byte in it.at(0, 50 * GSM_FRAME)[::GSM_FRAME]):
        finding = unchecked("the source's option says raw GSM, but its frames do not begin with 0xD")
    return made(raw.content_type, raw.ext, finding, coding=raw.coding, duration=span(frames * raw.samples, raw.rate))


def _g723_1(it: Bytes) -> tuple[int, int]:
    """Whole frames, and bytes of one that is not."""
    pos, frames = 0, 0
    while pos < it.length:
        data, base = it.window(pos, 24)
        size = _G723_1[data[pos - base] & 3]
        if pos + size > it.length:
            return frames, it.length - pos
        pos += size
        frames += 1
    return frames, 0
