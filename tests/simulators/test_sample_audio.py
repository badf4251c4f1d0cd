"""Audio for simulated calls: sound, of the wanted length, unique, always the same."""

from contextlib import suppress
from datetime import timedelta
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.audio import inspect
from archiver.errors import TryAgain
from archiver.model import Body, Verdict
from archiver.simulators.audio import make, sample

FORMATS = {"wav": "wav", "ulaw": "wav", "alaw": "wav", "spx": "spx", "opus": "opus", "mp3": "mp3", "gsm": "gsm"}


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("seconds", [1, 1.37, 9.99, 3600])
def test_made_audio_is_sound_and_as_long_as_wanted(fmt, seconds):
    audio = inspect(Body.of(make(fmt, seconds=seconds, seed="call 4711")))
    assert audio.ext == FORMATS[fmt]
    assert audio.duration is not None
    assert abs(audio.duration.total_seconds() - seconds) <= 0.036


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=20, deadline=None)
@given(st.floats(1, 30), st.text(max_size=300))
def test_any_length_and_any_seed_make_sound_audio(fmt, seconds, seed):
    data = make(fmt, seconds=seconds, seed=seed)
    duration = inspect(Body.of(data)).duration
    assert duration is not None
    assert abs(duration - timedelta(seconds=seconds)) <= timedelta(seconds=0.1)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_seed_always_makes_the_same_bytes_and_another_seed_others(fmt):
    made = [make(fmt, seconds=1, seed=f"call {n}") for n in range(300)]
    assert len({sha256(data).digest() for data in made}) == 300
    assert made == [make(fmt, seconds=1, seed=f"call {n}") for n in range(300)]


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f != "gsm"])
def test_made_audio_cut_anywhere_is_not_good(fmt):
    data = make(fmt, seconds=1, seed="cut")
    for n in range(len(data)):
        with suppress(TryAgain):
            assert inspect(Body(n, "", data[:n])).verdict is not Verdict.GOOD, n


def test_an_unknown_format_is_refused_by_name():
    with pytest.raises(ValueError, match="no such format: aiff"):
        make("aiff", seconds=1, seed="")


def test_samples_come_with_the_package():
    assert sample("speech.wav").startswith(b"RIFF")
