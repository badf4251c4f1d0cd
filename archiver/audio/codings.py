"""Names of codings, and how many samples so many bytes of one are.

Facts: RFC 2361 (WAVE format tags), RFC 4856 and 3551 (names and frame lengths of telephone codecs), RFC 6716 §3.1
(an Opus packet's first byte), Microsoft's "New Multimedia Data Types and Data Techniques" (blocks of ADPCM and GSM).
"""

from __future__ import annotations

#: By the format tag of WAVEFORMATEX. PCM and IEEE float are named by their width: :func:`pcm`.
WAVE_TAGS = {
    0x0002: "ms_adpcm",
    0x0006: "alaw",
    0x0007: "ulaw",
    0x0010: "oki_adpcm",
    0x0011: "ima_adpcm",
    0x0017: "oki_adpcm",
    0x0022: "truespeech",
    0x0031: "gsm",
    0x0040: "g726",
    0x0042: "g723_1",
    0x0045: "g726",
    0x0050: "mp2",
    0x0055: "mp3",
    0x0059: "g723_1",
    0x0064: "g726",
    0x0065: "g722",
    0x0083: "g729",
    0x0085: "g726",
    0x0086: "gsm",
    0x00FF: "aac",
    0x0111: "g723_1",
    0x0133: "g729",
    0x0134: "g729",
    0x0140: "g726",
    0x028F: "g722",
    0x1600: "aac",
    0x1610: "aac",
    0x704F: "opus",
    0x7A21: "amr",
    0x7A22: "amr",
    0xA100: "g723_1",
    0xA103: "g729",
    0xA104: "amr_wb",
    0xA105: "g726",
    0xA106: "aac",
    0xA107: "g726",
    0xA109: "speex",
    0xF1AC: "flac",
}


def pcm(bits: int, *, big: bool = False, real: bool = False, unsigned: bool = False) -> str | None:
    """The name of plain samples: ``pcm_s16le``, ``pcm_u8``, ``pcm_f32be`` …"""
    if not 0 < bits <= 64:
        return None
    width = 8 * -(-bits // 8)
    order = "be" if big else "le"
    if real:
        return f"pcm_f{width}{order}" if width in (32, 64) else None
    if width == 8:
        return "pcm_u8" if unsigned else "pcm_s8"
    return f"pcm_s{width}{order}" if width in (16, 24, 32, 64) else None


def block_samples(coding: str, size: int, channels: int, told: int) -> int:
    """Samples of each channel in a block (or what is left of the last one) of so many bytes.

    ``told`` is what the header says that a whole block holds. 0: a coding without blocks.
    """
    if coding == "ima_adpcm":
        # A block begins with a predictor for each channel, which is its first sample.
        fits = (size - 4 * channels) // (4 * channels) * 8 + 1 if size >= 4 * channels else 0
    elif coding == "ms_adpcm":
        fits = (size - 7 * channels) * 2 // channels + 2 if size >= 7 * channels else 0
    elif coding == "gsm":
        # Two frames of 260 bits; what is left of them may hold the first.
        fits = size // 65 * 320 + (160 if size % 65 >= 33 else 0)
    else:
        return 0
    return min(fits, told) if told > 1 else fits


def opus_samples(packet: bytes) -> int:
    """Samples at 48 kHz in an Opus packet, by its first two bytes."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    return frame * frames
