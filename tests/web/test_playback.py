"""What is archived, made playable: true lengths, limits for hostile audio, a cache that is bounded and private."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from archiver.errors import StoreDown
from archiver.web import decoder, playback
from archiver.web.playback import NotPlayable, Playback, Unavailable, Wanted
from archiver.web.waveform import svg
from tests.audio.test_codings import ALL, LENGTHS, RATE, RAW, made

__all__ = ["made"]

SAMPLES = LENGTHS[1]


@pytest.fixture
async def player(tmp_path):
    it = Playback(tmp_path / "web", 1 << 30, reserve=0)
    await it.open()
    yield it
    await it.close()


class Copy:
    """Bytes in a store that counts how often it is read."""

    def __init__(self, data, name="main"):
        self.data, self.name, self.reads = data, name, 0

    async def read(self, into):
        self.reads += 1
        if isinstance(self.data, Exception):
            raise self.data
        await into.write(self.data)

    @property
    def pair(self):
        return self.name, self.read


def wanted(data, ext="wav"):
    return Wanted(sha256=hashlib.sha256(data).hexdigest(), ext=ext)


def wav(seconds=2.0, *, channels=1, loud=lambda n: 8000):
    """PCM: a square wave as loud as told for each channel and sample."""
    count = int(seconds * 8000)
    samples = [(loud(n) if n % 8 < 4 else -loud(n)) for n in range(count) for _ in range(channels)]
    size = len(samples) * 2
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, channels, 8000, 16000 * channels,
        2 * channels, 16, b"data", size,
    )  # fmt: skip
    return head + struct.pack(f"<{len(samples)}h", *samples)


def job(path, ext, tmp_path):
    target = tmp_path / "target"
    target.touch()
    return {"source": str(path), "target": str(target), "size": path.stat().st_size, "ext": ext}


@pytest.mark.parametrize(
    ("name", "case"),
    [*ALL, *((f"raw-{case.name}", case) for case in RAW)],
    ids=[name for name, _ in ALL] + [f"raw-{case.name}" for case in RAW],
)
def test_every_coding_becomes_sound_of_its_true_length(made, tmp_path, name, case):
    answer = decoder.answered(job(made / f"{SAMPLES}-{name}", case.ext, tmp_path), confined=False)
    assert "error" not in answer
    truth = case.held(SAMPLES) / RATE
    assert abs(answer["duration"] - truth) <= case.bound + 1e-6
    assert answer["missing"] == 0
    with wave.open(str(tmp_path / "target"), "rb") as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(answer["duration"], abs=1e-9)
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        # A sine at half of full scale, whatever the coding made of it.
        heard = sound.readframes(sound.getnframes())
    assert max(abs(s) for (s,) in struct.iter_unpack("<h", heard)) > 8000
    assert len(heard) + 44 == (tmp_path / "target").stat().st_size
    assert len(answer["peaks"]) == 1
    assert len(answer["peaks"][0]) == decoder.PEAKS


AS_THEY_ARE = {
    *(f"{by}-{name}.wav" for by in ("ffmpeg", "sox") for name in ("u8", "s16", "ulaw", "alaw")),
    "ffmpeg-xing.mp3",
    *(f"others-{name}.mp3" for name in ("cbr", "vbr", "abr", "44100")),
}


def test_plain_wav_and_mp3_that_tell_their_length_are_played_as_they_are_and_everything_else_is_converted(
    made, tmp_path
):
    kept = {
        name
        for name, case in ALL
        if case.ext in ("wav", "mp3")
        and decoder.answered(job(made / f"{SAMPLES}-{name}", case.ext, tmp_path), confined=False)["as_is"]
    }
    assert kept == AS_THEY_ARE


async def test_what_is_played_once_comes_from_the_cache_afterwards(player, made):
    data = (made / f"{SAMPLES}-others-speex.spx").read_bytes()
    copy = Copy(data)
    first = await player.playable(wanted(data, "spx"), [copy.pair])
    again = await player.playable(wanted(data, "spx"), [copy.pair])
    assert copy.reads == 1
    assert first == again
    assert (first.content_type, first.as_is, first.coding) == ("audio/wav", False, "speex")
    assert first.path.stat().st_size == 44 + 2 * round(first.duration * first.rate)
    assert not list(first.path.parent.glob("making-*"))


async def test_files_of_the_cache_are_for_this_account_alone(player):
    data = wav()
    found = await player.playable(wanted(data), [Copy(data).pair])
    assert found.as_is
    assert found.path.read_bytes() == data
    for path in found.path.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert found.path.parent.stat().st_mode & 0o777 == 0o700


async def test_many_who_ask_for_the_same_cost_one_conversion(player):
    data = wav()
    copy = Copy(data)
    found = await asyncio.gather(*(player.playable(wanted(data), [copy.pair]) for _ in range(10)))
    assert copy.reads == 1
    assert len({id(f) for f in found}) == 1


async def test_who_goes_away_does_not_take_it_from_the_others(player):
    data = wav()
    copy = Copy(data)
    gone = asyncio.create_task(player.playable(wanted(data), [copy.pair]))
    stays = asyncio.create_task(player.playable(wanted(data), [copy.pair]))
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    gone.cancel()
    assert (await stays).duration == 2
    assert copy.reads == 1


async def test_bytes_with_another_hash_are_never_played_and_the_next_store_is_asked(player):
    data = wav()
    spoilt = bytearray(data)
    spoilt[1000] ^= 1
    bad, good = Copy(bytes(spoilt), "bad"), Copy(data, "good")
    assert (await player.playable(wanted(data), [bad.pair, good.pair])).path.read_bytes() == data
    other = wav(1.0)
    with pytest.raises(Unavailable, match="store bad: the bytes are not those that were archived"):
        await player.playable(wanted(other), [bad.pair])


async def test_a_store_that_is_away_is_named_and_asked_again_next_time(player):
    data = wav()
    away = Copy(StoreDown("no connection"))
    with pytest.raises(Unavailable, match="store main: no connection"):
        await player.playable(wanted(data), [away.pair])
    away.data = data
    assert (await player.playable(wanted(data), [away.pair])).duration == 2


async def test_the_cache_holds_no_more_than_it_may(tmp_path):
    player = Playback(tmp_path / "web", 300_000, reserve=0)
    await player.open()
    made = []
    for number in range(6):
        data = wav(4 + number / 8000)
        made.append(wanted(data))
        await player.playable(made[-1], [Copy(data).pair])
        assert player.cache.size() <= 300_000
    assert player._cached(made[-1].sha256) is not None
    assert player._cached(made[0].sha256) is None


async def test_what_is_erased_leaves_the_cache(player):
    data = wav()
    found = await player.playable(wanted(data), [Copy(data).pair])
    player.cache.forget(found.sha256)
    assert list(player.cache.folder.iterdir()) == []


async def test_decrypted_audio_leaves_nothing_on_disk(player, made):
    clear = (made / f"{SAMPLES}-others-speex.spx").read_bytes()
    for plain in (clear, wav()):
        envelope = bytes(b ^ 0x55 for b in plain)
        found = await player.private(
            wanted(envelope, "bin"), [Copy(envelope).pair], lambda data: bytes(b ^ 0x55 for b in data)
        )
        assert found.handle is not None
        assert list(player.cache.folder.iterdir()) == []
        assert list((player.cache.folder.parent / "spool").iterdir()) == []
        assert found.path.read_bytes()[:4] == b"RIFF"
        assert found.path.stat().st_size >= 44 + found.duration * 8000
        found.handle.close()


async def test_two_channels_have_a_lane_each(player):
    data = wav(3, channels=2)
    found = await player.playable(wanted(data), [Copy(data).pair])
    assert (found.channels, len(found.peaks)) == (2, 2)
    assert found.peaks[0][100] == [-8000, 8000]
    picture = svg(found.peaks)
    assert picture.count("<path") == 2
    assert 'viewBox="0 0 1800 128"' in picture


async def test_silence_is_found_to_be_skipped(player):
    data = wav(12, loud=lambda n: 100 if 3 * 8000 <= n < 9 * 8000 else 9000)
    found = await player.playable(wanted(data), [Copy(data).pair])
    ((start, end),) = found.silences
    assert start == pytest.approx(3.25, abs=0.05)
    assert end == pytest.approx(8.75, abs=0.05)


HOSTILE = {
    "nothing but noise": (bytes(range(256)) * 40, "bin"),
    "an ogg of random pages": (b"OggS" + bytes(range(256)) * 100, "ogg"),
    "a page": (b"<html>no</html>", "wav"),
    "a playlist that names a file": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", "mp3"),
    "a header without audio": (wav(0), "wav"),
    "a rate of nothing": (wav()[:24] + bytes(4) + wav()[28:], "wav"),
    "65,535 channels": (wav()[:22] + b"\xff\xff" + wav()[24:], "wav"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_audio_is_refused_in_words(player, name):
    data, ext = HOSTILE[name]
    with pytest.raises(NotPlayable, match=r"\w"):
        await player.playable(wanted(data, ext), [Copy(data).pair])
    good = wav()
    assert (await player.playable(wanted(good), [Copy(good).pair])).duration == 2


async def test_a_refusal_is_remembered_for_a_while(player):
    data, ext = HOSTILE["nothing but noise"]
    copy = Copy(data)
    for _ in range(3):
        with pytest.raises(NotPlayable):
            await player.playable(wanted(data, ext), [copy.pair])
    assert copy.reads == 1


async def test_a_decoder_that_does_not_end_is_killed(player, monkeypatch):
    monkeypatch.setattr(playback, "PATIENCE", 0.001)
    data = wav(60)
    with pytest.raises(NotPlayable, match="longer than"):
        await player.playable(wanted(data), [Copy(data).pair])
    assert list(player.cache.folder.iterdir()) == []


def test_the_decoder_can_open_nothing_once_it_has_the_bytes():
    tried = (
        "import socket, os, archiver.web.decoder as d\n"
        "d._rehearse(); d._confine()\n"
        "for what in (lambda: open('/etc/passwd'), lambda: socket.socket(), lambda: os.pipe()):\n"
        "    try: what(); print('did')\n"
        "    except OSError as e: print(e.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "24", "24"]


async def test_the_decoder_gets_no_environment_of_ours(player, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_OF_A_STORE", "hush")
    kept = asyncio.create_subprocess_exec
    seen = {}

    async def spying(*command, **how):
        seen.update(how["env"])
        return await kept(*command, **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spying)
    data = wav()
    await player.playable(wanted(data), [Copy(data).pair])
    assert seen
    assert "SECRET_OF_A_STORE" not in seen


def test_an_answer_is_json_that_holds_only_numbers_and_our_words(made, tmp_path):
    path = made / f"{SAMPLES}-ffmpeg-gsm.wav"
    done = subprocess.run(
        [sys.executable, "-I", "-m", "archiver.web.decoder"],
        input=json.dumps(job(path, "wav", tmp_path)).encode(),
        capture_output=True,
        check=True,
        cwd=Path("/"),
    )
    assert json.loads(done.stdout)["coding"] == "gsm"
    assert done.stderr == b""
