"""What are these bytes: kind, coding, duration, and whether they are whole.

"200 OK" with an error page, 44 bytes of header or half a file is not a recording, so each container is walked to its
end before anything is stored. Nothing is decoded; what a header of the answer said of the type is never believed.
A reader a container; each says what it found as a verdict (``model.Verdict``), and none judges: what follows from an
unfinished or cut recording is for the transfer to decide.

What a container can't tell, this can't see: an MP3 without a Xing or Info frame that is cut exactly between two
frames, raw audio, GSM, AMR and AAC cut between two frames, a chained Ogg file cut between two of its links, a WAV, AU
or Matroska file of open length (written to a pipe) or a fragmented MP4 cut between two blocks. Nor is damage seen
inside the audio of a file without checksums. There the length and hash of the answer have to do.
"""

from __future__ import annotations

import codecs
import re
from datetime import timedelta

from ..errors import TryAgain
from ..model import Body, Verdict
from .aiff import read_aiff, read_au, read_caf
from .base import Audio, Bytes, opened
from .flac import read_flac
from .frames import read_amr, read_gsm
from .matroska import MATROSKA_BEGINS, read_matroska
from .mp4 import MP4_BEGINS, read_mp4
from .mpeg import adts_frames_follow, after_tags, mp3_frames_follow, mp3_sync, read_adts, read_mp3
from .ogg import ogg_checksum, read_ogg
from .raw import RawFormat, raw_format, read_raw
from .wav import W64_RIFF, read_w64, read_wav

__all__ = ["Audio", "RawFormat", "inspect", "ogg_checksum", "plausible", "raw_format"]

_UNTOLD = "application/octet-stream"
_CONTENT_TYPE = re.compile(
    r'[\w.+-]{1,60}/[\w.+-]{1,60}(; ?[\w-]{1,30}=("[\w.,+ -]{0,60}"|[\w.+-]{1,60})){0,4}', re.ASCII
)
#: Types that say that these bytes are no audio, whatever they are.
_NO_AUDIO = re.compile(r"(text|image|font|model|message|multipart)/|application/([\w.-]+\+)?(json|xml|javascript)\b")


def inspect(
    body: Body, *, opaque: bool = False, told_type: str | None = None, raw: RawFormat | str | None = None
) -> Audio:
    """What a body is, after walking it to its end.

    ``opaque``: it may be something that is no audio we know (encrypted, a log); it then passes as ``bin``
    under the type the source told, but what does look like audio is checked all the same. ``raw``: what bytes
    without a container are, as the source's option says. Blocking where the body lies in a file; memory stays
    flat whatever its size.

    What is odd about a recording is a verdict. Raises TryAgain only where the bytes are no audio at all: a page or a
    message, or unknown ones of a type that is none.
    """
    with opened(body) as it:
        if it.length == 0:
            return _bin(told_type, Verdict.EMPTY, "the source answered with no bytes")
        head = it.at(0, 512)
        audio = _by_magic(it, head, opaque=opaque, raw=raw is not None)
        if audio is None and not opaque and (text := _text(head, surely=raw is not None)):
            raise TryAgain(f"these bytes are {text}, not audio")
        if audio is None and raw is not None and not opaque:
            audio = read_raw(it, raw_format(raw) if isinstance(raw, str) else raw)
        audio = audio or _by_rhythm(it, opaque=opaque)
    if audio is not None:
        return audio
    if opaque:
        return _bin(told_type)
    begin = f"first bytes {head[:16].hex(' ')}"
    if told_type is not None and _NO_AUDIO.match(told_type.strip().lower()):
        raise TryAgain(f"these bytes are no audio we know ({begin}), and the source calls them {sound_type(told_type)}")
    return _bin(told_type, Verdict.UNCHECKED, f"it is in no container that we know ({begin})")


def plausible(audio: Audio, told: timedelta | None) -> str | None:
    """A warning where the audio's duration is grossly not the told one (over 2 s and over 20 % off).

    No failure: recorders trim silence, and some count the ringing.
    """
    if audio.duration is None or told is None:
        return None
    if abs(audio.duration - told) <= max(timedelta(seconds=2), told * 0.2):
        return None
    return f"the audio is {audio.duration.total_seconds():.1f} s long, the source said {told.total_seconds():.1f} s"


def sound_type(told: str | None) -> str:
    """A content type as it was told, where it is one."""
    return told.strip() if told is not None and _CONTENT_TYPE.fullmatch(told.strip()) else _UNTOLD


def _bin(told_type: str | None, verdict: Verdict = Verdict.GOOD, reason: str | None = None) -> Audio:
    return Audio(content_type=sound_type(told_type), ext="bin", duration=None, verdict=verdict, reason=reason)


def _by_magic(it: Bytes, head: bytes, *, opaque: bool, raw: bool) -> Audio | None:
    match head[:4]:
        case b"RIFF" | b"RIFX" | b"RF64" | b"BW64":
            return read_wav(it)
        case b"OggS":
            return read_ogg(it)
        case b"fLaC":
            return read_flac(it)
        case b".snd" | b"dns.":
            return read_au(it)
        case b"FORM":
            return read_aiff(it)
        case b"caff":
            return read_caf(it)
        case b"#!AM":
            if magic := re.match(rb"#!AMR(-WB)?\n", head):
                return read_amr(it, magic[0])
    if head.startswith(MATROSKA_BEGINS):
        return read_matroska(it)
    if head.startswith(W64_RIFF):
        return read_w64(it)
    if head[4:8] in MP4_BEGINS:
        return read_mp4(it)
    return None if raw else _by_frames(it, head, opaque=opaque)


def _by_frames(it: Bytes, head: bytes, *, opaque: bool) -> Audio | None:
    """MP3 and AAC: tags, or frames from the first byte on."""
    start = after_tags(it, 0) if head[:3] == b"ID3" else 0
    if start >= it.length or it.at(start, 1) != b"\xff":
        return read_mp3(it, start) if start else None
    if adts_frames_follow(it, start, whole=opaque):
        return read_adts(it, start)
    if start or mp3_frames_follow(it, start, whole=opaque):
        return read_mp3(it, start)
    return None


def _by_rhythm(it: Bytes, *, opaque: bool) -> Audio | None:
    """Formats without a magic: raw GSM, and MP3 after some garbage (an opaque body must not fall for chance)."""
    if (gsm := read_gsm(it, surely=opaque)) is not None:
        return gsm
    return None if opaque or mp3_sync(it, 0) is None else read_mp3(it, 0)


_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\r\n\f"


def _text(head: bytes, *, surely: bool) -> str | None:
    """What kind of page or message the bytes are, if they are one; ``surely``: they may be raw samples."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        wide = head[2 + (head[0] == 0xFF) :: 2]
        if wide.count(0) * 2 < len(wide):
            return None
        head = head[2:].replace(b"\x00", b"")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if surely and not (_is_readable(head) and len(set(head)) >= 10):
        return None
    if start.startswith(b"<"):
        return "an HTML page" if b"<html" in start.lower() or b"<!doctype" in start.lower() else "an XML document"
    if start.startswith((b"{", b"[")):
        return "a JSON document"
    is_text = len(start.translate(None, _PRINTABLE)) * 7 <= len(start) or _is_readable(head)
    return "plain text" if is_text else None


def _is_readable(head: bytes) -> bool:
    """Is this UTF-8 without control characters (the last character may be cut)?"""
    try:
        text, _ = codecs.utf_8_decode(head, "strict", False)
    except UnicodeDecodeError:
        return False
    return not any((c < " " and c not in "\t\r\n\f") or c == "\x7f" for c in text)
