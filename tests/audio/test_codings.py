"""Durations and codings of what sox, ffmpeg, lame, speexenc, opusenc make; their files cut anywhere.

Each file is made of 10.000 s and of 10.003 s of sound at 8 kHz. What it then holds is told by the table: as many
samples as went in, or as many as fill its last frame, with the encoder's own in front where the format has no word for
those. A decoder counts the same, but where OTHERWISE says why not.
"""

import subprocess
from collections.abc import Callable
from typing import NamedTuple

import pytest

from archiver.audio import inspect
from archiver.errors import TryAgain
from archiver.model import Body, Verdict

RATE = 8000
LENGTHS = (80_000, 80_024)
#: Seconds that a duration may be off.
CLOSE = 0.005


def exactly(samples: int) -> int:
    """The file says how many samples went in: ``fact``, a LAME tag, an edit list, pre-skip and end trimming."""
    return samples


def frames_of(size: int, *, before: int = 0) -> Callable[[int], int]:
    """The last frame of so many samples is filled up, and nothing tells it; ``before``: nor what the encoder needs."""
    return lambda samples: -(-(samples + before) // size) * size


class Case(NamedTuple):
    name: str
    how: str
    ext: str
    coding: str | None
    held: Callable[[int], int] = exactly
    #: Seconds that it may be off where the format tells no more.
    bound: float = CLOSE


GSM_WAV = frames_of(320)  # blocks of 65 bytes hold two frames
GSM = frames_of(160)
MP3 = frames_of(576, before=1105)  # without a tag: 576 of the encoder, 529 of the decoder
AAC = frames_of(1024, before=1024)
#: AAC and MP3 in a container that tells the time of the last frame and not how much of it is sound.
AAC_FRAME, MP3_FRAME, VORBIS_PACKET = 1024 / RATE, 576 / RATE, 256 / RATE

FFMPEG = [
    Case("u8.wav", "-c:a pcm_u8", "wav", "pcm_u8"),
    Case("s16.wav", "-c:a pcm_s16le", "wav", "pcm_s16le"),
    Case("s24.wav", "-c:a pcm_s24le", "wav", "pcm_s24le"),
    Case("s32.wav", "-c:a pcm_s32le", "wav", "pcm_s32le"),
    Case("f32.wav", "-c:a pcm_f32le", "wav", "pcm_f32le"),
    Case("f64.wav", "-c:a pcm_f64le", "wav", "pcm_f64le"),
    Case("ulaw.wav", "-c:a pcm_mulaw", "wav", "ulaw"),
    Case("alaw.wav", "-c:a pcm_alaw", "wav", "alaw"),
    # Its fact counts whole blocks of 1024 bytes.
    Case("ima.wav", "-c:a adpcm_ima_wav", "wav", "ima_adpcm", frames_of(2041)),
    Case("ms.wav", "-c:a adpcm_ms", "wav", "ms_adpcm", frames_of(2036)),
    Case("yamaha.wav", "-c:a adpcm_yamaha", "wav", None, frames_of(2048)),
    Case("gsm.wav", "-c:a libgsm_ms", "wav", "gsm", GSM_WAV),
    Case("g722.wav", "-c:a g722", "wav", "g722"),
    Case("g723.wav", "-c:a g723_1 -b:a 6300", "wav", "g723_1", frames_of(240)),
    *(Case(f"g726-{kbps}.wav", f"-c:a g726 -b:a {kbps}k", "wav", "g726") for kbps in (16, 24, 32, 40)),
    # fact counts what went in and the encoder's delay; the frames hold up to one more.
    Case("mp3.wav", "-c:a libmp3lame", "wav", "mp3", MP3, MP3_FRAME),
    Case("flac.wav", "-c:a flac", "wav", "flac"),
    Case("rf64.wav", "-rf64 always", "wav", "pcm_s16le"),
    Case("s16.w64", "", "w64", "pcm_s16le"),
    Case("ulaw.w64", "-c:a pcm_mulaw", "w64", "ulaw"),
    Case("ima.w64", "-c:a adpcm_ima_wav", "w64", "ima_adpcm", frames_of(2041)),
    Case("s16.aiff", "", "aiff", "pcm_s16be"),
    Case("ulaw.aiff", "-c:a pcm_mulaw", "aiff", "ulaw"),
    Case("s16.au", "", "au", "pcm_s16be"),
    Case("ulaw.au", "-c:a pcm_mulaw", "au", "ulaw"),
    Case("alaw.au", "-c:a pcm_alaw", "au", "alaw"),
    Case("g722.au", "-c:a g722", "au", "g722"),
    Case("s16.caf", "", "caf", "pcm_s16be"),
    Case("ulaw.caf", "-c:a pcm_mulaw", "caf", "ulaw"),
    Case("ima.caf", "-c:a adpcm_ima_qt", "caf", "ima_adpcm", frames_of(64)),
    # No packet table: whole packets of 20 ms, the pre-skip of 312 samples (at 48 kHz) among them.
    Case("opus.caf", "-c:a libopus", "caf", "opus", frames_of(160, before=52)),
    Case("flac.flac", "", "flac", "flac"),
    Case("vorbis.ogg", "-c:a libvorbis", "ogg", "vorbis"),
    Case("opus.ogg", "-c:a libopus", "opus", "opus"),
    Case("opus60.opus", "-c:a libopus -frame_duration 60", "opus", "opus"),
    # Its granules count whole frames, less the encoder's look-ahead of 40 samples.
    Case("speex.ogg", "-c:a libspeex", "spx", "speex", lambda n: GSM(n) - 40),
    Case("flac.ogg", "-c:a flac", "ogg", "flac"),
    Case("xing.mp3", "", "mp3", "mp3"),
    Case("untold.mp3", "-write_xing 0", "mp3", "mp3", MP3),
    Case("adts.aac", "-c:a aac", "aac", "aac", AAC),
    # An edit list; ffmpeg itself decodes the padding of the last frame too.
    Case("aac.m4a", "-c:a aac", "m4a", "aac"),
    Case("fast.m4a", "-c:a aac -movflags +faststart", "m4a", "aac"),
    Case("aac.mp4", "-c:a aac", "m4a", "aac"),
    Case("opus.mp4", "-c:a libopus", "m4a", "opus"),
    # Without an edit list: what the encoder needs in front counts.
    Case("fragments.mp4", "-c:a aac -movflags frag_keyframe+empty_moov", "m4a", "aac", lambda n: n + 1024),
    Case("ulaw.mov", "-c:a pcm_mulaw", "m4a", "ulaw"),
    Case("ima.mov", "-c:a adpcm_ima_qt", "m4a", "ima_adpcm", frames_of(64)),
    Case("s16.mov", "-c:a pcm_s16le", "m4a", "pcm_s16le"),
    # Its CodecDelay is a sixth of what it should be; the pre-skip in its OpusHead is right.
    Case("opus.webm", "-c:a libopus", "webm", "opus"),
    Case("vorbis.webm", "-c:a libvorbis", "webm", "vorbis", exactly, 2 * VORBIS_PACKET),
    Case("opus.mka", "-c:a libopus", "mka", "opus"),
    Case("mp3.mka", "-c:a libmp3lame", "mka", "mp3", MP3, MP3_FRAME),
    Case("s16.mka", "-c:a pcm_s16le", "mka", "pcm_s16le"),
    Case("ulaw.mka", "-c:a pcm_mulaw", "mka", "ulaw"),
    Case("aac.mka", "-c:a aac", "mka", "aac", AAC, AAC_FRAME),
    Case("flac.mka", "-c:a flac", "mka", "flac"),
    Case("gsm.gsm", "-c:a libgsm", "gsm", "gsm", GSM),
]
SOX = [
    Case("u8.wav", "-b 8", "wav", "pcm_u8"),
    Case("s16.wav", "-b 16", "wav", "pcm_s16le"),
    Case("s24.wav", "-b 24", "wav", "pcm_s24le"),
    Case("s32.wav", "-b 32", "wav", "pcm_s32le"),
    Case("f32.wav", "-e float", "wav", "pcm_f32le"),
    Case("ulaw.wav", "-e u-law", "wav", "ulaw"),
    Case("alaw.wav", "-e a-law", "wav", "alaw"),
    # fact is right; sox and ffmpeg decode the padding of the last block too.
    Case("ima.wav", "-e ima-adpcm", "wav", "ima_adpcm"),
    Case("ms.wav", "-e ms-adpcm", "wav", "ms_adpcm"),
    Case("gsm.wav", "-e gsm", "wav", "gsm"),
    Case("s16.w64", "", "w64", "pcm_s16le"),
    Case("s16.aiff", "", "aiff", "pcm_s16be"),
    Case("s8.aiff", "-b 8", "aiff", "pcm_s8"),
    Case("s16.aifc", "", "aiff", "pcm_s16be"),
    Case("s16.au", "", "au", "pcm_s16be"),
    Case("ulaw.au", "-e u-law", "au", "ulaw"),
    Case("alaw.au", "-e a-law", "au", "alaw"),
    Case("s24.au", "-b 24", "au", "pcm_s24be"),
    Case("f32.au", "-e float", "au", "pcm_f32be"),
    Case("s16.caf", "", "caf", "pcm_s16be"),
    Case("ulaw.caf", "-e u-law", "caf", "ulaw"),
    Case("flac.flac", "", "flac", "flac"),
    Case("vorbis.ogg", "", "ogg", "vorbis"),
    Case("gsm.gsm", "", "gsm", "gsm", GSM),
    Case("amr.amr-nb", "", "amr", "amr", GSM),
    # At 8 kbit/s a frame has no room for a tag.
    Case("untold.mp3", "", "mp3", "mp3", MP3),
]
OTHERS = [
    Case("cbr.mp3", "lame --quiet -b 32 {} {}", "mp3", "mp3"),
    Case("vbr.mp3", "lame --quiet -V 4 {} {}", "mp3", "mp3"),
    Case("abr.mp3", "lame --quiet --abr 24 {} {}", "mp3", "mp3"),
    Case("44100.mp3", "lame --quiet --resample 44.1 -b 64 {} {}", "mp3", "mp3"),
    Case("untold.mp3", "lame --quiet -t -b 32 {} {}", "mp3", "mp3", MP3),
    Case("speex.spx", "speexenc --quiet {} {}", "spx", "speex"),
    Case("speex3.spx", "speexenc --quiet --nframes 3 {} {}", "spx", "speex"),
    Case("dtx.spx", "speexenc --quiet --vbr --dtx {} {}", "spx", "speex"),
    Case("opus.opus", "opusenc --quiet {} {}", "opus", "opus"),
    Case("opus60.opus", "opusenc --quiet --framesize 60 {} {}", "opus", "opus"),
]
RAW = [
    Case("slin.raw", "-f s16le", "sln", "pcm_s16le"),
    Case("ulaw.raw", "-f mulaw", "ulaw", "ulaw"),
    Case("alaw.raw", "-f alaw", "alaw", "alaw"),
    Case("g722.raw", "-ar 16000 -c:a g722 -f g722", "g722", "g722"),
    Case("g723_1.raw", "-c:a g723_1 -b:a 6300 -f g723_1", "g723", "g723_1", frames_of(240)),
    Case("g726.raw", "-c:a g726 -b:a 32k -f g726", "g726", "g726"),
    Case("gsm.raw", "-c:a libgsm -f gsm", "gsm", "gsm", GSM),
]
ALL = [
    (f"{by}-{case.name}", case)
    for by, cases in (("ffmpeg", FFMPEG), ("sox", SOX), ("others", OTHERS))
    for case in cases
]
#: Where ffmpeg decodes more than the file says that it holds.
OTHERWISE = {
    "sox-ima.wav": "it decodes the padding of the last block, which fact leaves out",
    "sox-ms.wav": "the same",
    "sox-gsm.wav": "the same",
    "ffmpeg-aac.m4a": "ffmpeg 5.1 does not end where the edit list ends",
    "ffmpeg-fast.m4a": "the same",
    "ffmpeg-aac.mp4": "the same",
    "ffmpeg-opus.mp4": "the same",
    "ffmpeg-fragments.mp4": "it decodes the padding of the last frame",
    "others-speex.spx": "it decodes the look-ahead and the padding of the last frame, which the granules leave out",
    "others-speex3.spx": "the same",
    "others-dtx.spx": "the same",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with a file for each case and length; ffmpeg makes all of its own at once."""
    folder = tmp_path_factory.mktemp("made")

    def run(*command):
        subprocess.run(list(command), cwd=folder, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

    for samples in LENGTHS:
        source = f"{samples}.wav"
        run(
            "sox",
            "-R",
            "-r",
            "8000",
            "-n",
            "-c",
            "1",
            "-b",
            "16",
            source,
            *f"synth {samples}s sine 300-3000 gain -6".split(),
        )
        ffmpeg = ["ffmpeg", "-y", "-loglevel", "error", "-i", source]
        for by, cases in (("ffmpeg", FFMPEG), ("raw", RAW)):
            for case in cases:
                ffmpeg += [*case.how.split(), f"{samples}-{by}-{case.name}"]
        run(*ffmpeg)
        for case in SOX:
            run("sox", "-D", source, *case.how.split(), f"{samples}-sox-{case.name}")
        for case in OTHERS:
            run(*case.how.format(source, f"{samples}-others-{case.name}").split())
    return folder


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize(("name", "case"), ALL, ids=[name for name, _ in ALL])
def test_a_file_is_known_with_its_coding_and_its_duration(made, name, case, samples):
    found = inspect(Body.of((made / f"{samples}-{name}").read_bytes()))
    assert (found.verdict, found.reason) == (Verdict.GOOD, None)
    assert (found.ext, found.coding) == (case.ext, case.coding)
    assert found.duration is not None
    assert abs(found.duration.total_seconds() - case.held(samples) / RATE) <= case.bound + 1e-6


@pytest.mark.parametrize("samples", LENGTHS)
def test_a_decoder_counts_as_many_samples_as_the_table_tells(made, samples):
    cases = [(name, case) for name, case in ALL if name not in OTHERWISE]
    command = ["ffmpeg", "-y", "-loglevel", "error"]
    for name, _ in cases:
        command += ["-i", f"{samples}-{name}"]
    for number, (name, _) in enumerate(cases):
        command += ["-map", str(number), "-ac", "1", "-ar", str(RATE), "-f", "s16le", f"{samples}-{name}.decoded"]
    subprocess.run(command, cwd=made, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for name, case in cases:
        decoded = (made / f"{samples}-{name}.decoded").stat().st_size / 2
        assert abs(decoded - case.held(samples)) / RATE <= case.bound + 1e-6, name


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("case", RAW, ids=[case.name for case in RAW])
def test_raw_audio_is_as_long_as_its_bytes_say(made, case, samples):
    data = (made / f"{samples}-raw-{case.name}").read_bytes()
    found = inspect(Body.of(data), raw=f"raw:{case.name.removesuffix('.raw')}")
    assert (found.verdict, found.reason, found.ext, found.coding) == (Verdict.GOOD, None, case.ext, case.coding)
    assert found.duration is not None
    assert abs(found.duration.total_seconds() - case.held(samples) / RATE) <= CLOSE


#: Where the end of a frame, and in these files of a page or block, is as good an end as any.
FRAMED = ("mp3", "aac", "amr", "awb", "gsm")


@pytest.mark.parametrize(("name", "case"), ALL, ids=[name for name, _ in ALL])
def test_a_file_cut_anywhere_is_not_good_where_it_says_how_long_it_is(made, name, case):
    data = (made / f"{LENGTHS[1]}-{name}").read_bytes()
    size = len(data)
    places = {*range(min(size, 100)), *range(max(0, size - 100), size), *range(0, size, max(1, size // 150))}
    whole = inspect(Body.of(data)).duration
    for place in sorted(places - {size}):
        try:
            found = inspect(Body(place, "", data[:place]))
        except TryAgain:
            continue
        if found.verdict is Verdict.GOOD:
            assert case.ext in FRAMED or found.duration == whole, place


def test_a_wav_of_open_length_is_as_long_as_it_is(made):
    command = ["ffmpeg", "-loglevel", "error", "-i", f"{LENGTHS[0]}.wav", "-c:a", "pcm_mulaw", "-f", "wav", "-"]
    found = inspect(Body.of(subprocess.run(command, cwd=made, check=True, capture_output=True).stdout))
    assert (found.verdict, found.coding) == (Verdict.GOOD, "ulaw")
    assert found.duration is not None
    assert found.duration.total_seconds() == 10
