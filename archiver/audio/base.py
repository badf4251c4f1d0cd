"""What every reader of a container uses: the bytes, a window at a time, and the words for what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import FileIO
from typing import NamedTuple

from ..model import CHUNK, Body, Verdict

_LONGEST = timedelta(days=3660).total_seconds()
#: More chunks, boxes or blocks of metadata than any writer makes: a reader gives up there.
MAX_CHUNKS = 1000
#: So many bytes behind the audio may be padding or somebody's remark.
TAIL = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """What bytes turned out to be."""

    #: ``audio/wav``, ``audio/ogg; codecs=speex`` …; ``application/octet-stream`` for what is opaque.
    content_type: str
    #: wav mp3 spx ogg opus flac gsm au aiff w64 caf amr awb aac m4a mp4 webm mka mkv, an extension of a raw coding
    #: (``raw.py``), else bin.
    ext: str
    #: Of the audio that is here; None where the container does not tell it.
    duration: timedelta | None
    #: How its samples are coded (RFC 2361's and RFC 4856's names, lower case: contract.md); None: unknown.
    coding: str | None = None
    verdict: Verdict = Verdict.GOOD
    #: What is wrong, where the verdict is not good: ``the Ogg file's last page lacks its end mark``.
    reason: str | None = None


class Finding(NamedTuple):
    """A verdict and its reason."""

    verdict: Verdict = Verdict.GOOD
    reason: str | None = None


GOOD = Finding()
#: Its writer left the length open, as one to a pipe must. A writer to a file that was killed may have left the same,
#: but whole sources have nothing else: it is as good as the length and hash of the answer.
OPEN = GOOD


def unfinished(reason: str) -> Finding:
    """Readable to its last byte, but the mark of its end is missing."""
    return Finding(Verdict.UNFINISHED, reason)


def unchecked(reason: str) -> Finding:
    """Nobody here can walk it."""
    return Finding(Verdict.UNCHECKED, reason)


def cut(reason: str) -> Finding:
    """Less than its own header promises, or damaged."""
    return Finding(Verdict.CUT, reason)


def empty(reason: str) -> Finding:
    """A header without audio."""
    return Finding(Verdict.EMPTY, reason)


def made(
    content_type: str, ext: str, finding: Finding, *, coding: str | None = None, duration: timedelta | None = None
) -> Audio:
    """What a reader returns."""
    return Audio(
        content_type=content_type,
        ext=ext,
        duration=duration,
        coding=coding,
        verdict=finding.verdict,
        reason=finding.reason,
    )


class Bytes:
    """Random access to a body, in memory or in a file, a window at a time."""

    def __init__(self, data: bytes, file: FileIO | None) -> None:
        self._file = file
        self._base = 0
        self._data = data
        self.length = file.seek(0, 2) if file else len(data)

    def window(self, pos: int, need: int) -> tuple[bytes, int]:
        """A buffer and the position of its first byte; it holds ``need`` bytes from ``pos`` on, or all there are."""
        if self._file and not self._base <= pos <= min(pos + need, self.length) <= self._base + len(self._data):
            self._file.seek(min(pos, self.length))
            self._base, self._data = pos, self._file.read(max(need, CHUNK))
        return self._data, self._base

    def at(self, pos: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``pos`` on; fewer at the end."""
        data, base = self.window(pos, size)
        return data[pos - base : pos - base + size]

    def are_zeros(self, pos: int) -> bool:
        """Is there nothing but a few zeros from ``pos`` to the end?"""
        return self.length - pos <= TAIL and not any(self.at(pos, TAIL))


@contextmanager
def opened(body: Body) -> Iterator[Bytes]:
    """The bytes of a body; blocking where it lies in a file."""
    if body.data is None and body.path is not None:
        with body.path.open("rb", buffering=0) as file:
            yield Bytes(b"", file)
    else:
        yield Bytes(body.data or b"", None)


def span(units: float, rate: float) -> timedelta | None:
    """So many units at so many a second; None where a header's numbers make no sense."""
    if not (units > 0 and rate > 0 and units / rate <= _LONGEST):
        return None
    return timedelta(seconds=units / rate)


def held(name: str, promised: int | None, here: int) -> tuple[int, Finding]:
    """How many bytes of audio there are, of those that a header promises (None: it leaves that open)."""
    if not here and not promised:
        return 0, empty(f"the {name} holds no audio: it is a header only")
    if promised is None:
        return here, OPEN
    if promised == 0:
        return here, unfinished(f"the {name} is not finalised: its header says 0 bytes of audio, but {here} follow")
    if promised > here:
        return here, cut(f"the {name} is cut: {here} of its {promised} bytes of audio are here")
    return promised, GOOD
