"""One medium's audio made playable: a program of its own, for bytes that come from outside and may be hostile.

    python -I -m archiver.web.decoder  <job as JSON on standard input>  >answer as JSON

The job names a file with the bytes, a file to write to, and the extension that the bytes are archived under. The
answer says how long they are, what a browser can play (the bytes as they are, or the PCM WAV that was written), and
what is needed to draw the waveform and to skip silence. What it can't decode it says as ``{"error": …}``.

Once it has opened both files it can open no more: it may make no file descriptor, so no file and no connection, may
start no process, and has bounded memory, CPU time and output. It is killed by whoever started it when it takes long.
"""

from __future__ import annotations

import io
import json
import re
import resource
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error

from archiver.audio import Audio, inspect, raw_format
from archiver.errors import SourceError
from archiver.model import Body, Verdict

from ..common.words import reason_of

#: Pairs of lowest and highest sample that a waveform is drawn from, for each channel.
PEAKS = 1800
#: Seconds of CPU; bytes of memory and of the WAV that is written.
CPU, MEMORY, LARGEST = 60, 1 << 30, (4 << 30) - (1 << 20)
#: Rates that every browser plays.
SLOWEST, FASTEST = 6000, 48000
#: Seconds that a decoder may give more (the padding of a last frame) or less than the container tells.
PADDING = 1.0
#: Silence: so quiet (of 32768) for so many seconds, of which this many at each end are still heard.
QUIET, SILENCE, MARGIN = 330, 1.5, 0.25
#: Seconds of the blocks that silence is looked for in.
BLOCK = 0.1
_DEMUXERS = {
    "wav": "wav",
    "w64": "w64",
    "mp3": "mp3",
    "flac": "flac",
    "spx": "ogg",
    "ogg": "ogg",
    "opus": "ogg",
    "gsm": "gsm",
    "au": "au",
    "aiff": "aiff",
    "caf": "caf",
    "amr": "amr",
    "awb": "amr",
    "aac": "aac",
    "m4a": "mov",
    "mp4": "mov",
    "webm": "matroska",
    "mka": "matroska",
    "mkv": "matroska",
}
#: Of bytes without a container, by the extension that they are archived under (audio/raw.py).
_RAW = {
    "ulaw": ("ulaw", "mulaw"),
    "alaw": ("alaw", "alaw"),
    "sln": ("slin", "s16le"),
    "l16": ("pcm_s16be", "s16be"),
    "g722": ("g722", "g722"),
    "g723": ("g723_1", "g723_1"),
    "g726": ("g726", "g726"),
    "g729": ("g729", "g729"),
}
_PCM = struct.Struct("<4sI4s4sIHHIIHH4sI")


class Unplayable(Exception):
    """Why there is nothing to hear; said to the person who asked."""


def main() -> None:
    json.dump(answered(json.load(sys.stdin), confined=True), sys.stdout, separators=(",", ":"))


def answered(job: dict[str, Any], *, confined: bool) -> dict[str, Any]:
    """What a job comes to; ``confined``: this process can do nothing else afterwards."""
    try:
        with Path(job["target"]).open("r+b") as target, Path(job["source"]).open("rb") as source:
            body = Body(job["size"], "", path=Path(job["source"]))
            found = _known(body, job["ext"], job.get("content_type"))
            if confined:
                _rehearse()
                _confine()
            return _made(source, target, found)
    except Unplayable as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "decoding it takes too much memory"}


def _known(body: Body, ext: str, content_type: str | None) -> Audio:
    """What the bytes are. Raises Unplayable."""
    told = None
    name = "sln" if ext.startswith("sln") else ext
    if name in _RAW:
        told = f"raw:{_RAW[name][0]}"
        for key, value in (part.strip().split("=", 1) for part in (content_type or "").split(";")[1:] if "=" in part):
            if key in ("rate", "channels") and value.isdigit():
                told += f":{value}"
    try:
        found = inspect(body, raw=raw_format(told) if told else None)
    except (SourceError, ValueError) as error:
        raise Unplayable(str(error)) from error
    if found.verdict is Verdict.EMPTY:
        raise Unplayable("it holds no audio")
    return found


def _rehearse() -> None:
    """A moment of sound of our own, so that whatever is loaded at the first use is loaded."""
    sound = Audio(content_type="audio/wav", ext="wav", duration=None, coding="pcm_s16le")
    _decode(io.BytesIO(_header(8000, 1, 320) + bytes(320)), io.BytesIO(), sound)


def _confine() -> None:
    """From here on there is nothing to reach: what is open stays open, and nothing more can be opened or started."""
    for what, most in (
        (resource.RLIMIT_CPU, CPU),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, LARGEST),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))


def _made(source: BinaryIO, target: BinaryIO, found: Audio) -> dict[str, Any]:
    """The answer, once the target holds the decoded audio as WAV."""
    rate, channels, samples = _decode(source, target, found)
    told = found.duration.total_seconds() if found.duration is not None else samples / rate
    wanted = round(told * rate)
    missing = 0.0
    if wanted < samples <= wanted + PADDING * rate or samples < wanted <= samples + PADDING * rate / 2:
        samples = wanted
    elif samples < wanted:
        missing = (wanted - samples) / rate
    size = samples * channels * 2
    target.truncate(_PCM.size + size)
    target.seek(0)
    target.write(_header(rate, channels, size))
    peaks, silences = _drawn(target, rate, channels, samples)
    kept = _as_it_is(source, found)
    return {
        "type": kept or "audio/wav",
        "as_is": kept is not None,
        "duration": samples / rate,
        "missing": round(missing, 3),
        "rate": rate,
        "channels": channels,
        "coding": found.coding,
        "peaks": peaks,
        "silences": silences,
    }


def _header(rate: int, channels: int, size: int) -> bytes:
    frame = channels * 2
    return _PCM.pack(
        b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, channels, rate, rate * frame, frame, 16, b"data", size
    )


def _decode(source: BinaryIO, target: BinaryIO, found: Audio) -> tuple[int, int, int]:
    """Writes the samples behind where the header will stand; returns rate, channels and samples. Raises Unplayable."""
    demuxer, options = _reader(found)
    source.seek(0)
    target.seek(_PCM.size)
    out = _Samples(target)
    try:
        with av.open(source, format=demuxer, options=options, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise Unplayable("there is no audio in it")
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1
            for frame in _frames(container, stream):
                out.take(frame)
            out.end()
    except av.error.FFmpegError as error:
        raise Unplayable(f"it can't be decoded ({reason_of(error)})") from error
    except OSError as error:
        # Of the target: the disk is full, or it would be larger than a WAV can be.
        raise Unplayable(f"what it decodes to can't be written ({reason_of(error)})") from error
    if not out.written:
        raise Unplayable("no sound could be decoded from it")
    return out.rate, out.channels, out.written


def _reader(found: Audio) -> tuple[str, dict[str, str]]:
    """The one demuxer that may read it, so that none guesses, and its options. Raises Unplayable."""
    name = "sln" if found.ext.startswith("sln") else found.ext
    if name in _DEMUXERS:
        return _DEMUXERS[name], {}
    if name not in _RAW:
        raise Unplayable("it is in no format that can be played here")
    options: dict[str, str] = {}
    for part in found.content_type.split(";")[1:]:
        key, _, value = part.strip().partition("=")
        options |= {"rate": {"sample_rate": value}, "channels": {"ch_layout": f"{value}C"}}.get(key, {})
    return _RAW[name][1], options


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame that can be decoded; a packet that can't is left out, as a player would."""
    packets = container.demux(stream)
    bad = 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            # The end of what can be read; what is decoded still counts.
            yield from _flushed(stream)
            return
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            bad += 1
            if bad > 10_000:
                return


def _flushed(stream: Any) -> list[Any]:
    try:
        return list(stream.decode(None))
    except av.error.FFmpegError:
        return []


class _Samples:
    """Frames of any shape, written as interleaved 16-bit samples of one or two channels."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._fifo = av.AudioFifo()
        self._resampler: Any = None
        self.rate = self.channels = self.written = 0

    def take(self, frame: Any) -> None:
        if self._resampler is None:
            self.channels = 1 if frame.layout.nb_channels == 1 else 2
            self.rate = min(max(frame.sample_rate, SLOWEST), FASTEST)
            self._resampler = av.AudioResampler("s16", "mono" if self.channels == 1 else "stereo", self.rate)
        frame.pts = None
        try:
            self._fifo.write(frame)
        except ValueError:
            # The coding changes rate or channels in the middle: what it changes to is left out.
            return
        # Many frames at once: a step costs the same for 20 ms as for two seconds.
        if self._fifo.samples >= 1 << 14:
            self._write(self._fifo.read())

    def end(self) -> None:
        if self._resampler is not None:
            if (rest := self._fifo.read()) is not None:
                self._write(rest)
            self._write(None)

    def _write(self, frame: Any) -> None:
        for made in self._resampler.resample(frame):
            self._target.write(memoryview(made.planes[0])[: made.samples * self.channels * 2])
            self.written += made.samples


def _drawn(target: BinaryIO, rate: int, channels: int, samples: int) -> tuple[list[list[list[int]]], list[list[float]]]:
    """Lowest and highest sample of each of 1,800 parts, a channel at a time; and the spans without sound."""
    parts = min(PEAKS, samples)
    finer = max(1, -(-int(samples / rate / BLOCK) // PEAKS)) if samples > PEAKS else 1
    blocks = parts * finer
    peaks: list[list[list[int]]] = [[] for _ in range(channels)]
    quiet: list[bool] = []
    target.seek(_PCM.size)
    for block in range(blocks):
        size = samples * (block + 1) // blocks - samples * block // blocks
        data = array("h")
        data.frombytes(target.read(size * channels * 2))
        if sys.byteorder == "big":
            data.byteswap()
        loudest = 0
        for channel in range(channels):
            one = data[channel::channels]
            least, most = (min(one), max(one)) if one else (0, 0)
            loudest = max(loudest, -least, most)
            if block % finer == 0:
                peaks[channel].append([least, most])
            else:
                pair = peaks[channel][-1]
                pair[:] = min(pair[0], least), max(pair[1], most)
        quiet.append(loudest < QUIET)
    return peaks, _silences(quiet, samples / rate / blocks)


def _silences(quiet: list[bool], seconds: float) -> list[list[float]]:
    """Spans that may be skipped, in seconds."""
    spans, start = [], None
    for number, still in enumerate([*quiet, False]):
        if still and start is None:
            start = number
        elif not still and start is not None:
            if (number - start) * seconds >= SILENCE:
                spans.append([round(start * seconds + MARGIN, 3), round(number * seconds - MARGIN, 3)])
            start = None
    return spans


def _as_it_is(source: BinaryIO, found: Audio) -> str | None:
    """The type under which every browser plays these very bytes, with the right length; None: it needs the WAV."""
    if found.verdict is not Verdict.GOOD:
        return None
    source.seek(0)
    if found.ext == "wav" and found.coding in ("pcm_u8", "pcm_s16le", "ulaw", "alaw"):
        return "audio/wav" if _is_plain(source) else None
    # Without this tag a player guesses the length from the first frames, 196 s for 90.
    if found.ext == "mp3" and re.search(rb"Xing|Info", source.read(4096)):
        return "audio/mpeg"
    return None


def _is_plain(source: BinaryIO) -> bool:
    """A RIFF header as the first books show it, of one or two channels at a usual rate, and no length left open."""
    head = source.read(36)
    if len(head) < 36 or head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt ":
        return False
    size, tag, channels, rate, _, _, bits = struct.unpack_from("<IHHIIHH", head, 16)
    if size not in (16, 18) or channels not in (1, 2) or not SLOWEST <= rate <= FASTEST:
        return False
    if (tag, bits) not in ((1, 8), (1, 16), (6, 8), (7, 8)):
        return False
    length = source.seek(0, 2)
    pos = 20 + size
    for _ in range(20):
        source.seek(pos)
        chunk = source.read(8)
        if len(chunk) < 8:
            return False
        (size,) = struct.unpack_from("<I", chunk, 4)
        if chunk[:4] == b"data":
            return bool(0 < size <= length - pos - 8)
        pos += 8 + size + (size & 1)
    return False


if __name__ == "__main__":
    main()
