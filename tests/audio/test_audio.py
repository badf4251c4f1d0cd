"""What bytes are: every sample is good, every cut is seen, nothing hostile gets through."""

import struct
import time
import tracemalloc
from datetime import timedelta
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver.audio import Audio, inspect, ogg_checksum, plausible, raw_format
from archiver.audio.wav import W64_RIFF
from archiver.errors import TryAgain
from archiver.model import Body, Verdict

GOOD, UNFINISHED, UNCHECKED, CUT, EMPTY = Verdict

SAMPLES = {
    "speech.wav": ("audio/wav", "wav", 6.0, "pcm_s16le"),
    "speech-ulaw.wav": ("audio/wav", "wav", 3.0, "ulaw"),
    "speech-alaw.wav": ("audio/wav", "wav", 3.0, "alaw"),
    "speech.spx": ("audio/ogg; codecs=speex", "spx", 10.0, "speex"),
    "speech.opus": ("audio/ogg; codecs=opus", "opus", 2.0, "opus"),
    "speech.ogg": ("audio/ogg; codecs=vorbis", "ogg", 2.0, "vorbis"),
    "speech.mp3": ("audio/mpeg", "mp3", 6.0, "mp3"),
    "speech.flac": ("audio/flac", "flac", 1.0, "flac"),
    "speech.gsm": ("audio/x-gsm", "gsm", 3.0, "gsm"),
}


def sample(name):
    return (files("archiver.simulators") / "samples" / name).read_bytes()


def look(data, **options):
    return inspect(Body(len(data), "", data), **options)


def verdict(data, **options):
    """The verdict; None where it is no audio at all. Any error but that one escapes."""
    try:
        audio = look(data, **options)
    except TryAgain:
        return None
    assert (audio.reason is None) == (audio.verdict is GOOD)
    return audio.verdict


def is_good(data, **options):
    return verdict(data, **options) is GOOD


def a_wav(audio=b"\x01\x02" * 800, *, size=None, riff=None, fmt=None, before=b"", after=b"", magic=b"RIFF"):
    order = ">" if magic == b"RIFX" else "<"
    fmt = struct.pack(order + "HHIIHH", 1, 1, 8000, 16000, 2, 16) if fmt is None else fmt
    body = b"WAVE" + (struct.pack(order + "4sI", b"fmt ", len(fmt)) + fmt if fmt else b"") + before
    body += struct.pack(order + "4sI", b"data", len(audio) if size is None else size) + audio + after
    return magic + struct.pack(order + "I", len(body) if riff is None else riff) + body


def pages(data):
    """The pages of an Ogg file."""
    found = []
    while data:
        size = 27 + data[26] + sum(data[27 : 27 + data[26]])
        found.append(data[:size])
        data = data[size:]
    return found


def changed(page, **fields):
    """The page with other fields, and a checksum that fits."""
    names = ["magic", "version", "flags", "granule", "serial", "sequence", "crc", "segments"]
    told = dict(zip(names, struct.unpack_from("<4sBBqIIIB", page), strict=True)) | fields
    page = struct.pack("<4sBBqIIIB", *told.values()) + page[27:]
    return page[:22] + ogg_checksum(page) + page[26:]


def a_frame(header, length):
    return bytes.fromhex(header).ljust(length, b"\x00")


MP3_FRAME = a_frame("fffb9000", 417)  # MPEG 1, layer III, 128 kbit/s, 44.1 kHz


# Every sample


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_known_by_its_bytes(name):
    content_type, ext, seconds, coding = SAMPLES[name]
    assert look(sample(name), told_type="text/html") == Audio(
        content_type=content_type, ext=ext, duration=timedelta(seconds=seconds), coding=coding
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_known_where_the_source_may_send_anything(name):
    assert look(sample(name), opaque=True).ext == SAMPLES[name][1]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_of_the_spool_is_read_like_memory(name, tmp_path):
    (tmp_path / "x").write_bytes(sample(name))
    assert inspect(Body(len(sample(name)), "", path=tmp_path / "x")) == look(sample(name))


@pytest.mark.parametrize("name", [n for n in SAMPLES if n not in ("speech.wav", "speech.gsm")])
def test_a_sample_cut_anywhere_is_not_good(name):
    data = sample(name)
    assert [n for n in range(len(data)) if is_good(data[:n])] == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(a_wav(), id="plain"),
        pytest.param(a_wav(after=b"LIST\x0c\x00\x00\x00INFOISFT\x00\x00\x00\x00"), id="with a chunk after the audio"),
        pytest.param(a_wav(before=b"junk\x03\x00\x00\x00abc\x00"), id="with an odd chunk before the audio"),
        pytest.param(a_wav(magic=b"RIFX"), id="big-endian"),
    ],
)
def test_a_wav_cut_anywhere_is_not_good(data):
    assert look(data).duration == timedelta(seconds=0.1)
    assert [n for n in range(len(data)) if is_good(data[:n])] == []


def test_raw_gsm_is_not_good_unless_it_is_cut_between_two_frames():
    data = sample("speech.gsm")
    assert [n for n in range(len(data)) if is_good(data[:n])] == [*range(33, len(data), 33)]


def test_an_mp3_that_promises_nothing_is_not_good_unless_it_is_cut_between_two_frames():
    data = sample("speech.mp3")[180 : 40 * 180]
    assert [n for n in range(len(data)) if is_good(data[:n])] == [*range(180, len(data), 180)]


# Not audio


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<!DOCTYPE html><html><body>Login</body></html>", "an HTML page"),
        (b"\n\n  <HTML>\n<head>", "an HTML page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><TwilioResponse/>', "an XML document"),
        ('<?xml version="1.0" encoding="utf-16"?><a/>'.encode("utf-16"), "an XML document"),
        ("<html>".encode("utf-16-be").join([b"\xfe\xff", b""]), "an HTML page"),
        (b'{"error": "not found"}', "a JSON document"),
        (b" [1, 2]", "a JSON document"),
        (b"Internal Server Error\r\n", "plain text"),
        ("Erreur interne : clé refusée".encode(), "plain text"),
        ("Внутренняя ошибка сервера. Повторите попытку позже.".encode(), "plain text"),
        ("内部エラー".encode() * 60, "plain text"),  # cut within a character
        (b"   \n", "plain text"),
    ],
)
def test_a_page_in_place_of_audio_is_named(data, kind):
    with pytest.raises(TryAgain, match=f"these bytes are {kind}, not audio"):
        look(data)


def test_what_a_page_says_is_not_repeated():
    with pytest.raises(TryAgain) as error:
        look(b'{"error": "bad key hunter2"}')
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("opaque", [False, True])
def test_no_bytes_are_no_recording(opaque):
    assert look(b"", opaque=opaque, told_type="audio/wav") == Audio(
        content_type="audio/wav",
        ext="bin",
        duration=None,
        verdict=EMPTY,
        reason="the source answered with no bytes",
    )


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04" + bytes(range(256)),
        bytes(4096),
        b"\xff" * 9000,
        b"\xff\xf1\x50\x80" + bytes(500),  # the beginning of AAC
        b"RIFF\x10\x00\x00\x00AVI LIST\x00\x00\x00\x00",
        b"\x30\x82\x01\x0a\x02\x82" * 40,
    ],
)
def test_unknown_bytes_are_kept_unchecked_or_as_opaque(data):
    for told in (None, "audio/x-unheard-of", "video/mp4", "application/octet-stream"):
        audio = look(data, told_type=told)
        assert (audio.verdict, audio.ext, audio.coding, audio.duration) == (UNCHECKED, "bin", None, None)
        assert audio.content_type == (told or "application/octet-stream")
        assert audio.reason is not None
        assert f"first bytes {data[:4].hex(' ')}" in audio.reason
    for told in ("text/html", "application/json; charset=utf-8", "image/png"):
        with pytest.raises(TryAgain, match=f"first bytes {data[:4].hex(' ')}"):
            look(data, told_type=told)
    assert look(data, opaque=True) == Audio(content_type="application/octet-stream", ext="bin", duration=None)
    assert look(data, opaque=True, told_type="application/pkcs7-mime").content_type == "application/pkcs7-mime"


@pytest.mark.parametrize(
    "told", ["audio/x\r\nEvil: 1", "audio", "audio/ü", "audio/" + "x" * 300, "", 'audio/wav; a="\n"']
)
def test_a_type_that_is_none_is_not_repeated(told):
    for data, opaque in ((bytes(4096), False), (bytes(4096), True), (b"", False)):
        assert look(data, told_type=told, opaque=opaque).content_type == "application/octet-stream"
    assert look(bytes(4096), told_type='audio/x-vendor; codecs="a, b"').content_type == 'audio/x-vendor; codecs="a, b"'


def test_an_opaque_body_may_be_text():
    assert look(b'{"event": "ANSWER"}\n', opaque=True, told_type="application/json") == Audio(
        content_type="application/json", ext="bin", duration=None
    )


def test_an_opaque_body_does_not_fall_for_a_header_by_chance():
    for length in (1, 9):
        data = b"\xff\xfb\x90\x00" + bytes(range(1, 255)) * length
        assert look(data, opaque=True).ext == "bin"
    assert look(b"\xd1" * 33, opaque=True).ext == "bin"


@pytest.mark.parametrize("name", SAMPLES)
def test_known_audio_is_checked_where_the_source_may_send_anything_too(name):
    assert look(sample(name)[:-1], opaque=True).verdict in (CUT, UNFINISHED)


# WAV


def test_a_header_without_audio_is_empty():
    assert len(a_wav(b"")) == 44
    for data in (
        a_wav(b""),
        a_wav(b"", riff=0),
        a_wav(b"", riff=62),
        a_wav(b"", size=0xFFFFFFFF),
        a_wav(b"", after=b"LIST\x04\x00\x00\x00INFO"),
        b"RIFF\4\0\0\0WAVE",
    ):
        assert verdict(data) is EMPTY


def test_a_wav_of_countless_chunks_is_given_up():
    audio = look(a_wav(before=b"junk\0\0\0\0" * 1000))
    assert (audio.verdict, audio.reason) == (UNCHECKED, "the WAV has a thousand chunks and no audio among them")


def test_a_header_that_promises_audio_is_cut():
    audio = look(a_wav(b"", size=960_000, riff=960_036))
    assert (audio.verdict, audio.reason) == (CUT, "the WAV is cut: 0 of its 960000 bytes of audio are here")


@pytest.mark.parametrize("audio", [b"\x01\x02" * 800, bytes(1600)])
@pytest.mark.parametrize("riff", [None, 0, 36])
def test_a_wav_whose_sizes_were_never_filled_in_is_unfinished(audio, riff):
    found = look(a_wav(audio, size=0, riff=riff))
    assert (found.verdict, found.duration, found.coding) == (UNFINISHED, timedelta(seconds=0.1), "pcm_s16le")
    assert "not finalised" in (found.reason or "")


@pytest.mark.parametrize("open_length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFDB])
def test_a_streamed_wav_is_as_long_as_it_is(open_length):
    for riff in (0, open_length, 0xFFFFFFFF):
        assert look(a_wav(size=open_length, riff=riff)).duration == timedelta(seconds=0.1)


@pytest.mark.parametrize(
    ("fmt", "seconds"),
    [
        (struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8), 0.2),
        (struct.pack("<HHIIHH", 1, 2, 8000, 0, 0, 16), 0.05),
        (struct.pack("<HHIIHHH", 6, 1, 8000, 8000, 1, 8, 0), 0.2),
        (struct.pack("<HHIIHHH", 7, 2, 8000, 16000, 2, 8, 0), 0.1),
        (struct.pack("<HHIIHHH", 7, 1, 8000, 16000, 2, 16, 0), 0.2),  # µ-law, whatever the bits are said to be
        (struct.pack("<HHIIHHHH", 0x31, 1, 8000, 1625, 65, 0, 2, 320), (24 * 320 + 160) / 8000),
        (
            struct.pack("<HHIIHHHH", 0x11, 1, 8000, 99, 256, 4, 2, 505),
            (6 * 505 + 121) / 8000,
        ),  # the last block is short
        (struct.pack("<HHIIHHHH", 2, 1, 8000, 4096, 256, 4, 32, 500), (6 * 500 + 116) / 8000),
        (struct.pack("<HHIIHH", 0x45, 1, 8000, 2000, 1, 2), 0.8),
        (struct.pack("<HHIIHH", 0x55, 1, 8000, 2000, 1, 0), 0.8),
        (struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 24000, 3, 24, 22, 24, 4) + b"\1\0" + bytes(14), 533 / 8000),
        (struct.pack("<HHIIHH", 0x1234, 1, 8000, 1000, 1, 0), 1.6),
    ],
)
def test_a_wav_of_any_coding_tells_its_duration(fmt, seconds):
    duration = look(a_wav(fmt=fmt)).duration
    assert duration is not None
    assert abs(duration - timedelta(seconds=seconds)) < timedelta(microseconds=2)


def test_a_wav_without_sensible_numbers_has_no_duration():
    assert look(a_wav(fmt=bytes(16))).duration is None
    assert verdict(a_wav(fmt=b"")) is UNCHECKED


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_a_long_wav_keeps_its_sizes_in_64_bits(magic):
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, 1600 + 36 + 36, 1600, 800, 0)
    data = a_wav(before=b"", size=0xFFFFFFFF, riff=0xFFFFFFFF, magic=magic)
    data = data[:12] + ds64 + data[12:]
    assert look(data).duration == timedelta(seconds=0.1)
    assert not any(is_good(data[:n]) for n in range(len(data)))


LIST = b"LIST\x0c\x00\x00\x00INFOISFT\x00\x00\x00\x00"
ODD_LIST = b"LIST\x0d\x00\x00\x00INFOICMT\x01\x00\x00\x00x"
ULAW = struct.pack("<HHIIHHH", 7, 1, 8000, 8000, 1, 8, 0)
GSM = struct.pack("<HHIIHHHH", 0x31, 1, 8000, 1625, 65, 0, 2, 320)


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        pytest.param(a_wav(riff=1600 + 44), 0.1, id="the RIFF size is the file's"),
        pytest.param(a_wav(riff=1600 + 44 + 20, after=LIST), 0.1, id="the RIFF size is the file's, a LIST behind"),
        pytest.param(a_wav(riff=0), 0.1, id="no RIFF size"),
        pytest.param(a_wav(riff=36), 0.1, id="the RIFF size is that of a header"),
        pytest.param(a_wav(b"\x01" * 1601, riff=1602 + 36, fmt=ULAW), 1601 / 8000, id="no pad at the end"),
        pytest.param(
            a_wav(b"\x01" * 1601, size=1602, fmt=ULAW, before=b"fact\4\0\0\0\x41\6\0\0"),
            1601 / 8000,
            id="rounded to even",
        ),
        pytest.param(a_wav(after=b"\x00" * 7), 0.1, id="zeros behind"),
        pytest.param(a_wav(before=ODD_LIST), 0.1, id="an odd LIST without its pad byte"),
        pytest.param(
            a_wav(b"\x01" * 1601, fmt=ULAW, after=LIST), 1601 / 8000, id="odd audio without its pad byte, a LIST behind"
        ),
    ],
)
def test_a_wav_that_holds_what_its_data_chunk_promises_is_good(data, seconds):
    found = look(data)
    assert (found.verdict, found.duration) == (GOOD, timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(a_wav(riff=1600 + 36 + 20), "cut behind its audio", id="the LIST behind was cut off"),
        pytest.param(a_wav(after=LIST)[:-9], "cut behind its audio", id="the LIST behind was cut"),
        pytest.param(a_wav(size=800, riff=836), "800 bytes follow", id="a header that was filled in earlier"),
        pytest.param(a_wav(b"\x01" * 195, size=196, fmt=GSM), "never closed", id="odd blocks of GSM and no pad"),
        pytest.param(a_wav(b"\x01" * 1601, size=1602, fmt=ULAW), "a pad, or a sample", id="a byte less, and no fact"),
        pytest.param(
            a_wav(b"\x01" * 1601, size=0xFFFFFFFF), "last sample", id="streamed, and half a sample at the end"
        ),
        pytest.param(a_wav(size=1644), "counts itself", id="the size is the file's"),
    ],
)
def test_a_wav_that_was_not_closed_is_unfinished(data, reason):
    found = look(data)
    assert (found.verdict, found.ext) == (UNFINISHED, "wav")
    assert reason in (found.reason or "")
    assert found.duration is not None


def test_a_huge_wav_in_the_spool_takes_no_memory(tmp_path):
    path = tmp_path / "huge.wav"
    with path.open("wb") as file:
        file.write(a_wav(b"", size=1 << 30, riff=(1 << 30) + 36))
        file.truncate((1 << 30) + 44)
    tracemalloc.start()
    audio = inspect(Body((1 << 30) + 44, "", path=path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert audio.duration == timedelta(seconds=(1 << 30) / 16000)
    assert peak < 2 << 20


# Ogg


def test_an_ogg_checksum_is_that_of_the_libraries():
    for name in ("speech.spx", "speech.opus", "speech.ogg"):
        assert all(ogg_checksum(page) == page[22:26] for page in pages(sample(name)))


@pytest.mark.parametrize("name", ["speech.spx", "speech.opus", "speech.ogg"])
def test_an_ogg_of_headers_only_is_empty(name):
    head = [page for page in pages(sample(name)) if page[6:14] == bytes(8)]
    assert verdict(b"".join(head)) is UNFINISHED
    assert verdict(b"".join([*head[:-1], changed(head[-1], flags=4)])) is EMPTY


def test_an_ogg_that_lacks_a_page_in_the_middle_is_cut():
    whole = pages(sample("speech.spx"))
    for missing in range(len(whole) - 1):
        assert verdict(b"".join(whole[:missing] + whole[missing + 1 :])) is CUT


@pytest.mark.parametrize("name", ["speech.spx", "speech.opus", "speech.ogg"])
def test_an_ogg_of_whole_pages_without_the_last_mark_is_unfinished(name):
    whole = pages(sample(name))
    unmarked = look(b"".join([*whole[:-1], changed(whole[-1], flags=0)]))
    assert (unmarked.verdict, unmarked.reason) == (UNFINISHED, "the Ogg file's last page lacks its end mark")
    assert unmarked.duration == timedelta(seconds=SAMPLES[name][2])
    for n in range(3, len(whole)):
        assert verdict(b"".join(whole[:n])) is UNFINISHED


@pytest.mark.parametrize("name", ["speech.spx", "speech.opus"])
def test_an_ogg_cut_within_a_page_is_cut_and_tells_how_long_it_is(name):
    whole = look(sample(name))
    half = look(sample(name)[: len(sample(name)) * 2 // 3])
    assert (half.verdict, half.ext, half.coding) == (CUT, whole.ext, whole.coding)
    assert half.duration is not None
    assert timedelta() < half.duration < whole.duration


def test_an_ogg_that_was_cut_out_of_a_running_stream_is_as_long_as_its_audio():
    whole = pages(sample("speech.opus"))
    later = [*whole[:2], *(changed(p, granule=struct.unpack_from("<q", p, 6)[0] + 4_800_000) for p in whole[2:])]
    assert look(b"".join(later)).duration == timedelta(seconds=2)
    whole = pages(sample("speech.spx"))
    later = [*whole[:2], *(changed(p, granule=struct.unpack_from("<q", p, 6)[0] + 800_000) for p in whole[2:])]
    # The encoder's look-ahead of 5 ms is part of what such a piece holds.
    assert look(b"".join(later)).duration == timedelta(seconds=10.005)


def test_zeros_behind_the_last_page_of_an_ogg_are_padding():
    assert is_good(sample("speech.spx") + bytes(100))
    assert verdict(sample("speech.spx") + b"junk") is CUT


def test_every_flipped_bit_of_an_ogg_is_seen():
    data = bytearray(sample("speech.spx"))
    for at in range(0, len(data), 7):
        data[at] ^= 1 << at % 8
        assert verdict(bytes(data)) in (CUT, UNCHECKED, None), at
        data[at] ^= 1 << at % 8


def test_a_cut_ogg_is_not_called_damaged():
    assert "is cut" in (look(sample("speech.spx")[:-1]).reason or "")


def test_ogg_streams_may_follow_each_other():
    chain = look(sample("speech.spx") + sample("speech.spx"))
    assert (chain.ext, chain.duration) == ("spx", timedelta(seconds=20))
    mixed = look(sample("speech.spx") + sample("speech.opus"))
    assert (mixed.content_type, mixed.ext) == ('audio/ogg; codecs="opus,speex"', "ogg")


def test_ogg_streams_may_run_side_by_side():
    ours = pages(sample("speech.spx"))
    others = [changed(page, serial=7) for page in ours]
    both = [page for pair in zip(ours, others, strict=True) for page in pair]
    assert look(b"".join(both)).duration == timedelta(seconds=10)
    assert verdict(b"".join(both[:-1])) is UNFINISHED


def test_ogg_pages_of_no_stream_are_damage():
    whole = pages(sample("speech.spx"))
    assert verdict(b"".join([*whole, changed(whole[-1], serial=99)])) is CUT
    assert verdict(b"".join([*whole, changed(whole[-1], sequence=len(whole))])) is CUT


def test_an_ogg_has_no_more_than_a_handful_of_streams():
    whole = pages(sample("speech.spx"))
    for streams in (16, 17):
        together = b"".join(changed(page, serial=n) for page in whole for n in range(streams))
        assert is_good(together) == (streams <= 16)


def test_an_ogg_clock_that_makes_no_sense_gives_no_duration():
    whole = pages(sample("speech.spx"))
    assert look(b"".join([*whole[:-1], changed(whole[-1], granule=(1 << 63) - 1)])).duration is None


def test_an_ogg_of_an_unknown_codec_is_still_ogg():
    first, *rest = pages(sample("speech.spx"))
    first = changed(first.replace(b"Speex   ", b"Fresh   "))
    assert look(first + b"".join(rest)) == Audio(content_type="application/ogg", ext="ogg", duration=None)


# MP3


@pytest.mark.parametrize(
    ("header", "length", "samples", "rate"),
    [
        ("fffb9000", 417, 1152, 44100),
        ("fffb9200", 418, 1152, 44100),
        ("fffa1400", 96, 1152, 48000),
        ("fffda400", 576, 1152, 48000),
        ("ffff1800", 48, 384, 32000),
        ("fff38000", 208, 576, 22050),
        ("fff358c4", 180, 576, 16000),
        ("ffe318c4", 72, 576, 8000),
        ("fff51400", 48, 1152, 24000),
    ],
)
def test_frames_of_every_version_and_layer_are_walked(header, length, samples, rate):
    duration = look(a_frame(header, length) * 50).duration
    assert duration is not None
    assert abs(duration.total_seconds() - 50 * samples / rate) < 1e-5
    short = look((a_frame(header, length) * 50)[:-1])
    assert (short.verdict, short.reason) == (UNFINISHED, "the MP3's last frame is not whole")
    assert short.duration is not None
    assert abs(short.duration.total_seconds() - 49 * samples / rate) < 1e-5


def test_an_mp3_may_change_its_bit_rate():
    assert look(MP3_FRAME * 3 + a_frame("fffb5000", 208) * 5).duration == timedelta(seconds=8 * 1152 / 44100)


def a_tag(size, *, footer=False):
    lengths = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00" + (b"\x10" if footer else b"\x00") + lengths + b"\xff" * size + b"3DI".ljust(10) * footer


APE = b"APETAGEX" + struct.pack("<IIII", 2000, 32 + 5, 1, 0xA0000000) + bytes(8) + b"hello"
APE += b"APETAGEX" + struct.pack("<IIII", 2000, 32 + 5, 1, 0x80000000) + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(a_tag(300) + MP3_FRAME * 9, id="ID3v2"),
        pytest.param(a_tag(300, footer=True) + MP3_FRAME * 9, id="ID3v2 with a footer"),
        pytest.param(a_tag(0) + a_tag(1) + MP3_FRAME * 9, id="two of them"),
        pytest.param(a_tag(9) + bytes(1000) + MP3_FRAME * 9, id="zeros after it"),
        pytest.param(MP3_FRAME * 9 + b"TAG".ljust(128), id="ID3v1"),
        pytest.param(MP3_FRAME * 9 + APE + b"TAG".ljust(128), id="APE and ID3v1"),
        pytest.param(MP3_FRAME * 4 + a_tag(9) + MP3_FRAME * 5, id="joined"),
        pytest.param(b"\x00\xff\xfb\x12garbage" * 200 + MP3_FRAME * 9, id="garbage before"),
        pytest.param(MP3_FRAME * 9 + bytes(400), id="zeros behind"),
    ],
)
def test_tags_and_a_little_garbage_are_no_part_of_an_mp3(data):
    assert look(data) == Audio(
        content_type="audio/mpeg", ext="mp3", duration=timedelta(seconds=round(9 * 1152 / 44100, 6)), coding="mp3"
    )


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(MP3_FRAME * 9 + b"\x00" * 500, UNFINISHED, id="more zeros than a frame"),
        pytest.param(MP3_FRAME * 9 + b"junk", UNFINISHED, id="junk behind"),
        pytest.param(MP3_FRAME * 9 + b"junk" + MP3_FRAME * 9, CUT, id="junk within"),
        pytest.param(MP3_FRAME * 9 + b"TAG".ljust(127), UNFINISHED, id="a cut tag behind"),
        pytest.param(MP3_FRAME * 9 + MP3_FRAME[:3], UNFINISHED, id="a cut header behind"),
        pytest.param(MP3_FRAME * 9 + b"\x01" * 5000, CUT, id="much garbage behind"),
        pytest.param(bytes(417) + MP3_FRAME * 9, UNFINISHED, id="zeros in the place of LAME's first frame"),
        pytest.param(b"\x01" * 5000 + MP3_FRAME * 9, UNCHECKED, id="too much garbage before"),
        pytest.param(a_tag(300)[:-1], CUT, id="a cut tag"),
        pytest.param(a_tag(300) + b"\x01" * 900, CUT, id="no frame after the tag"),
        pytest.param(a_tag(0) * 1000 + MP3_FRAME * 9, CUT, id="countless tags"),
        pytest.param(MP3_FRAME * 2 + b"\x01" * 600, UNCHECKED, id="two frames and noise"),
    ],
)
def test_a_broken_mp3_is_not_good(data, found):
    assert verdict(data) is found


def test_an_mp3_of_tags_only_is_empty():
    for data in (a_tag(100), a_tag(100) + b"TAG".ljust(128)):
        assert verdict(data) is EMPTY


def an_info_frame(frames, size=None, magic=b"Info"):
    told = struct.pack(">4sII", magic, 1, frames) if size is None else struct.pack(">4sIII", magic, 3, frames, size)
    return (MP3_FRAME[:4] + bytes(32) + told).ljust(417, b"\x00")


@pytest.mark.parametrize("magic", [b"Info", b"Xing"])
def test_an_mp3_holds_the_frames_that_its_first_one_promises(magic):
    assert look(an_info_frame(9, magic=magic) + MP3_FRAME * 9).duration == timedelta(seconds=round(9 * 1152 / 44100, 6))
    for missing in range(1, 9):
        short = look(an_info_frame(9, 417 * 10, magic) + MP3_FRAME * (9 - missing))
        assert (short.verdict, short.reason) == (CUT, f"the MP3 is cut: {9 - missing} of its 9 frames are here")
        assert is_good(an_info_frame(9, 417 * 10, magic) + MP3_FRAME * 9 + b"junk behind")


def a_lame_tag(delay, padding):
    told = b"LAME3.100".ljust(21, b"\0") + (delay << 12 | padding).to_bytes(3, "big")
    return (MP3_FRAME[:4] + bytes(32) + struct.pack(">4sIII", b"Info", 15, 9, 4170) + bytes(104) + told).ljust(
        417, b"\0"
    )


def test_what_the_encoder_put_around_the_audio_of_an_mp3_is_no_part_of_it():
    assert look(a_lame_tag(576, 1000) + MP3_FRAME * 9).duration == timedelta(
        seconds=round((9 * 1152 - 1576) / 44100, 6)
    )
    assert look(a_lame_tag(0xFFF, 0xFFF) + MP3_FRAME * 9).duration == timedelta(
        seconds=round((9 * 1152 - 8190) / 44100, 6)
    )


def test_a_vbri_frame_promises_frames_too():
    vbri = (MP3_FRAME[:4] + bytes(32) + struct.pack(">4sHHHII", b"VBRI", 1, 0, 75, 4170, 9)).ljust(417, b"\0")
    assert look(vbri + MP3_FRAME * 9).duration == timedelta(seconds=round(9 * 1152 / 44100, 6))
    assert verdict(vbri + MP3_FRAME * 8) is CUT


def test_an_mp3_whose_promise_counts_itself_is_forgiven_where_its_bytes_are_all_here():
    assert look(an_info_frame(10, 417 * 10) + MP3_FRAME * 9).ext == "mp3"
    assert verdict(an_info_frame(10) + MP3_FRAME * 9) is CUT


def test_an_mp3_of_nothing_but_its_promise_is_empty_or_cut():
    assert verdict(an_info_frame(0)) is EMPTY
    assert verdict(an_info_frame(9)) is CUT


def test_a_long_mp3_in_the_spool_takes_little_memory(tmp_path):
    (tmp_path / "long.mp3").write_bytes(MP3_FRAME * 20_000)
    tracemalloc.start()
    audio = inspect(Body(417 * 20_000, "", path=tmp_path / "long.mp3"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert audio.duration is not None
    assert abs(audio.duration.total_seconds() - 20_000 * 1152 / 44100) < 0.001
    assert peak < 2 << 20


# FLAC


def test_a_flac_header_without_frames_is_empty_or_cut():
    info = bytearray(sample("speech.flac")[:42])
    info[4] |= 0x80
    assert verdict(bytes(info)) is CUT
    info[21:26] = bytes([info[21] & 0xF0, 0, 0, 0, 0])
    assert verdict(bytes(info)) is EMPTY


def test_garbage_after_a_flac_header_is_damage():
    data = sample("speech.flac")
    start = data.index(b"\xff\xf8")
    for garbage in (b"<html>" * 500, bytes(3000), data[start : start + 9] + bytes(3000)):
        assert verdict(data[:start] + garbage) is CUT


def test_a_flac_that_was_streamed_is_as_long_as_its_last_frame_tells():
    data = sample("speech.flac")
    streamed = data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]
    assert look(streamed).duration == timedelta(seconds=1)
    short = look(streamed[:-1])
    assert (short.verdict, short.reason) == (UNFINISHED, "the FLAC file's last frame is not whole")
    assert short.duration is not None
    assert timedelta(seconds=0.3) < short.duration < timedelta(seconds=1)


# Other containers


def a_box(name, *inside):
    body = b"".join(inside)
    return struct.pack(">I", 8 + len(body)) + name + body


def an_mp4(*, data=bytes(1000), size=None, video=False):
    def track(kind, coding):
        mdhd = a_box(b"mdhd", struct.pack(">IIIII", 0, 0, 0, 8000, 81024))
        stsd = a_box(b"stsd", struct.pack(">II", 0, 1), a_box(coding, bytes(28)))
        stsz = a_box(b"stsz", struct.pack(">IIIII", 0, 0, 2, 600, len(data) - 600))
        minf = a_box(b"minf", a_box(b"stbl", stsd, stsz if kind == b"soun" else b""))
        elst = a_box(b"edts", a_box(b"elst", struct.pack(">IIIiI", 0, 1, 10_000, 1024, 1 << 16)))
        return a_box(b"trak", elst, a_box(b"mdia", mdhd, a_box(b"hdlr", bytes(8), kind, bytes(13)), minf))

    tracks = track(b"soun", b"alaw") + (track(b"vide", b"avc1") if video else b"")
    moov = a_box(b"moov", a_box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, 1000, 10_000)), tracks)
    mdat = struct.pack(">I", 8 + len(data) if size is None else size) + b"mdat" + data
    return a_box(b"ftyp", b"M4A \0\0\0\0isom"), moov, mdat


def test_an_mp4_shows_what_its_edit_list_shows_wherever_its_index_is():
    for order in ((0, 1, 2), (0, 2, 1)):
        found = look(b"".join(an_mp4()[n] for n in order))
        assert (found.verdict, found.ext, found.content_type, found.coding) == (GOOD, "m4a", "audio/mp4", "alaw")
        assert found.duration == timedelta(seconds=10)
    screen = look(b"".join(an_mp4(video=True)))
    assert (screen.verdict, screen.ext, screen.content_type) == (GOOD, "mp4", "video/mp4")


def test_an_mp4_without_its_index_is_unfinished_and_one_without_its_data_cut():
    ftyp, moov, mdat = an_mp4()
    assert verdict(ftyp + mdat) is UNFINISHED
    assert verdict(ftyp + an_mp4(size=0)[2]) is UNFINISHED  # as its writer leaves it when killed
    assert verdict(ftyp + moov + mdat[:-1]) is CUT
    # The last box may be open to the file's end: then the table of samples tells.
    assert is_good(ftyp + moov + an_mp4(size=0)[2])
    assert verdict(ftyp + moov + an_mp4(size=0)[2][:-1]) is CUT


def an_ebml(name, *inside, size=None):
    body = b"".join(inside)
    return name + (b"\x01" + len(body).to_bytes(7, "big") if size is None else size) + body


UNKNOWN = b"\x01" + b"\xff" * 7


def a_webm(*, size=None, doc=b"webm", blocks=5, discard=b""):
    """Opus packets of 20 ms, with a pre-skip of 312 samples."""
    head = b"OpusHead\x01\x01" + struct.pack("<HIHB", 312, 8000, 0, 0)
    track = an_ebml(
        b"\xae",
        an_ebml(b"\xd7", b"\1"),
        an_ebml(b"\x83", b"\2"),
        an_ebml(b"\x86", b"A_OPUS"),
        an_ebml(b"\x63\xa2", head),
    )
    packets = [an_ebml(b"\xa3", b"\x81", struct.pack(">h", 20 * n), b"\x80\x08packet") for n in range(blocks)]
    cluster = an_ebml(b"\x1f\x43\xb6\x75", an_ebml(b"\xe7", b"\0"), *packets, discard, size=size)
    segment = an_ebml(b"\x18\x53\x80\x67", an_ebml(b"\x16\x54\xae\x6b", track), cluster if blocks else b"", size=size)
    return an_ebml(b"\x1a\x45\xdf\xa3", an_ebml(b"\x42\x82", doc)) + segment


def test_a_webm_is_walked_block_by_block_and_so_is_one_of_unknown_size():
    for size in (None, UNKNOWN):
        found = look(a_webm(size=size))
        assert (found.verdict, found.ext, found.content_type, found.coding) == (GOOD, "webm", "audio/webm", "opus")
        assert found.duration == timedelta(seconds=0.1 - 312 / 48000)
        assert verdict(a_webm(size=size)[:-1]) is CUT
        # Between two blocks only a size that is known tells that some are missing.
        assert verdict(a_webm(size=size)[: a_webm(size=size).rindex(b"\xa3")]) is (CUT if size is None else GOOD)
        assert verdict(a_webm(blocks=0, size=size)) is EMPTY
    assert look(a_webm(doc=b"matroska")).ext == "mka"
    assert verdict(a_webm(size=None) + b"\0" * 40) is UNFINISHED
    assert verdict(a_webm(size=None) + b"\0\1junkjunkjunkjunk") is CUT


def an_au(audio=bytes(1600), size=None, magic=b".snd"):
    order = "<" if magic == b"dns." else ">"
    return magic + struct.pack(order + "5I", 24, len(audio) if size is None else size, 3, 8000, 1) + audio


def an_aiff(audio=b"\1\2" * 800, size=None, frames=None):
    comm = struct.pack(">4sIHIH", b"COMM", 18, 1, len(audio) // 2 if frames is None else frames, 16)
    comm += bytes.fromhex("400bfa00000000000000")
    body = b"AIFF" + comm + struct.pack(">4sIII", b"SSND", (8 + len(audio)) if size is None else size, 0, 0) + audio
    return b"FORM" + struct.pack(">I", len(body)) + body


def a_w64(audio=bytes(1600), size=None):
    tail = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    fmt = b"fmt " + tail + struct.pack("<QHHIIHH", 40, 1, 1, 8000, 16000, 2, 16)
    data = b"data" + tail + struct.pack("<Q", 24 + len(audio) if size is None else size) + audio
    return W64_RIFF + struct.pack("<Q", 40 + len(fmt) + len(data)) + b"wave" + tail + fmt + data


def a_caf(audio=bytes(1600), size=None):
    desc = struct.pack(">4sqd4sIIIII", b"desc", 32, 8000.0, b"lpcm", 2, 2, 1, 1, 16)
    return b"caff\0\1\0\0" + desc + struct.pack(">4sqI", b"data", 4 + len(audio) if size is None else size, 0) + audio


@pytest.mark.parametrize(
    ("make", "ext", "coding", "none", "unknown"),
    [
        (an_au, "au", "pcm_s16be", 0, 0xFFFFFFFF),
        (lambda *a, **k: an_au(*a, **k, magic=b"dns."), "au", "pcm_s16be", 0, 0xFFFFFFFF),
        (an_aiff, "aiff", "pcm_s16be", 0, 0x7F000000),
        (a_w64, "w64", "pcm_s16le", 24, (1 << 63) - 1),
        (a_caf, "caf", "pcm_s16le", 4, -1),
    ],
    ids=["au", "little-endian au", "aiff", "w64", "caf"],
)
def test_a_header_that_tells_all_is_held_against_the_bytes(make, ext, coding, none, unknown):
    found = look(make())
    assert (found.verdict, found.ext, found.duration) == (GOOD, ext, timedelta(seconds=0.1))
    assert found.coding in (coding, "pcm_s16le")
    assert [n for n in range(len(make())) if is_good(make()[:n])] == []
    assert verdict(make(b"")) is EMPTY
    never = look(make(size=none))
    assert (never.verdict, never.duration) == (UNFINISHED, timedelta(seconds=0.1))
    streamed = look(make(size=unknown))
    assert (streamed.verdict, streamed.duration) == (GOOD, timedelta(seconds=0.1))


def test_an_au_with_more_than_its_header_counts_is_unfinished():
    assert verdict(an_au(b"\1\2" * 800, size=800)) is UNFINISHED


@pytest.mark.parametrize(
    ("data", "ext", "coding"),
    [
        (b"#!AMR\n" + (b"\x04" + bytes(12)) * 10, "amr", "amr"),
        (b"#!AMR-WB\n" + (b"\x04" + bytes(17)) * 10, "awb", "amr_wb"),
    ],
)
def test_amr_is_walked_frame_by_frame(data, ext, coding):
    found = look(data)
    assert (found.verdict, found.ext, found.coding, found.duration) == (GOOD, ext, coding, timedelta(seconds=0.2))
    short = look(data[:-1])
    assert (short.verdict, short.duration) == (UNFINISHED, timedelta(seconds=0.18))
    assert verdict(data + b"\xff" * 40) is CUT
    assert verdict(data[: data.index(b"\n") + 1]) is EMPTY


def an_adts(length=100):
    return bytes([0xFF, 0xF1, 0x6C, 0x40, length >> 3, (length & 7) << 5 | 0x1F, 0xFC]) + bytes(length - 7)


def test_adts_is_walked_frame_by_frame():
    found = look(an_adts() * 10)
    assert (found.verdict, found.ext, found.coding) == (GOOD, "aac", "aac")
    assert found.duration == timedelta(seconds=10 * 1024 / 8000)
    assert look(a_tag(300) + an_adts() * 10) == found
    assert verdict((an_adts() * 10)[:-1]) is UNFINISHED
    assert verdict(an_adts() * 10 + b"junk" * 100) is CUT


# Raw


@pytest.mark.parametrize(
    ("option", "data", "seconds", "ext", "coding"),
    [
        ("raw:ulaw:8000", b"\xff" * 8000, 1.0, "ulaw", "ulaw"),
        ("ulaw", b"\xff" * 8000, 1.0, "ulaw", "ulaw"),
        ("raw:ulaw:8000:2", b"\xff" * 8000, 0.5, "ulaw", "ulaw"),
        ("raw:alaw:8000", b"\x55" * 8000, 1.0, "alaw", "alaw"),
        ("raw:slin:8000", b"\1\2" * 8000, 1.0, "sln", "pcm_s16le"),
        ("raw:slin:16000", b"\1\2" * 8000, 0.5, "sln16", "pcm_s16le"),
        ("raw:g722", b"\1" * 8000, 1.0, "g722", "g722"),
        ("raw:g726", b"\1" * 4000, 1.0, "g726", "g726"),
        ("raw:g729:8000", b"\1" * 1000, 1.0, "g729", "g729"),
        ("raw:g729:8000", b"\1" * 1002, 1.0, "g729", "g729"),  # a frame of silence at the end
        ("raw:g723_1", (b"\0" * 24 + b"\1" * 20 + b"\2" * 4) * 10, 0.9, "g723", "g723_1"),
        ("raw:gsm", b"\xd1".ljust(33, b"\0") * 50, 1.0, "gsm", "gsm"),
        ("raw:ilbc", b"\1" * 1000, 0.6, "ilbc", "ilbc"),
        ("raw:oki_adpcm:8000", b"\1" * 4000, 1.0, "vox", "oki_adpcm"),
    ],
)
def test_raw_audio_is_what_the_option_says(option, data, seconds, ext, coding):
    found = look(data, raw=raw_format(option))
    assert (found.verdict, found.reason, found.ext, found.coding) == (GOOD, None, ext, coding)
    assert found.duration == timedelta(seconds=seconds)
    assert look(data, raw=option) == found


@pytest.mark.parametrize("option", ["slin", "g729", "g723_1", "gsm", "ilbc", "ulaw:8000:2"])
def test_raw_audio_whose_last_frame_is_cut_is_unfinished(option):
    assert verdict(b"\xd0" * (33 * 20 * 50 + 1), raw=option) is UNFINISHED


def test_raw_gsm_that_is_none_is_unchecked():
    assert verdict(b"\x11" * 330, raw="gsm") is UNCHECKED


def test_a_source_of_raw_audio_may_still_answer_with_a_container_or_a_page():
    assert look(sample("speech.wav"), raw="ulaw").ext == "wav"
    assert verdict(b"", raw="ulaw") is EMPTY
    for page in (b"<html><body>Log in, please</body></html>", b'{"error": "not found"}', b"Internal Server Error"):
        assert verdict(page, raw="ulaw") is None
    for quiet in (b"\xff", b"\x7f", b"\xd5", b"\x55", b"<", b"{"):
        assert is_good(quiet * 4000, raw="ulaw")


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("raw:", "no such raw coding: ''"),
        ("raw:opus:48000", "no such raw coding: 'opus'; there are ulaw, alaw, slin"),
        ("raw:ulaw:fast", "write it as raw:CODING:RATE, such as raw:ulaw:8000"),
        ("raw:ulaw:8000:1:1", "write it as"),
        ("raw:ulaw:8001", "no such rate"),
        ("raw:ulaw:0", "no such rate"),
        ("raw:g729:16000", "g729 has a rate of 8000"),
        ("raw:g722:16000:2", "g722 has 1 channel"),
        ("raw:slin:8000:9", "slin has 1 channel or 2"),
    ],
)
def test_a_raw_option_that_can_not_be_is_refused_in_words(option, problem):
    with pytest.raises(ValueError, match=problem) as error:
        raw_format(option)
    assert repr(option) in str(error.value)


# Hostile bytes

MAGICS = [
    b"RIFF\xff\xff\xff\x7fWAVE",
    a_wav(b"")[:40],
    b"OggS\x00\x02",
    b"fLaC\x00\x00\x00\x22",
    b"ID3\x04\x00\x00",
    b"",
]
MAGICS += [
    b".snd\0\0\0\x18",
    b"FORM\0\0\1\0AIFFCOMM",
    b"caff\0\1\0\0desc",
    b"#!AMR\n",
    b"#!AMR-WB\n",
    b"\xff\xf1\x60\x40",
]
MAGICS += [b"\0\0\0\x18ftypM4A ", b"\0\0\0\x18ftypM4A \0\0\0\0M4A isom\0\0\1\0moov\0\0\0\x80trak\0\0\0\x70mdia"]
MAGICS += [
    b"\0\0\0\x40moof\0\0\0\x38traf\0\0\0\x10tfhd",
    b"\x1aE\xdf\xa3\x84\x42\x82\x81w\x18S\x80g\xff",
    W64_RIFF + b"\xff" * 8,
]
MAGICS += [b"\xff\xfb\x90\x00", b"\xff\xf3X\xc4", b"RF64\xff\xff\xff\xffWAVEds64", b"APETAGEX", b"\xd0" * 33]
MAGICS += [sample(name)[:200] for name in SAMPLES]
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.sampled_from(MAGICS), st.binary(max_size=400), st.booleans())
def test_any_bytes_give_a_verdict_or_are_no_audio(head, tail, opaque):
    verdict(head + tail, opaque=opaque)


@FUZZ
@given(
    st.sampled_from([sample(name)[:6000] if "wav" in name else sample(name) for name in SAMPLES] + [a_wav()]),
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_any_mutation_of_a_sample_gives_a_verdict(data, patches, from_the_end, opaque):
    mutant = bytearray(data)
    for at, patch in patches:
        at = max(0, len(mutant) - at - len(patch)) if from_the_end else at
        mutant[at : at + len(patch)] = patch
    verdict(bytes(mutant), opaque=opaque)


@FUZZ
@given(st.integers(0, 10_000), st.data())
def test_any_mutation_of_an_ogg_with_sound_checksums_gives_a_verdict(seed, data):
    whole = pages(sample("speech.opus"))
    at = seed % len(whole)
    fields = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "flags": st.integers(0, 7),
                "granule": st.integers(-(1 << 63), (1 << 63) - 1),
                "serial": st.integers(0, 3),
                "sequence": st.integers(0, 9),
            },
        )
    )
    verdict(b"".join([*whole[:at], changed(whole[at], **fields), *whole[at + 1 :]]))


FLAC_HEAD = sample("speech.flac")[: sample("speech.flac").index(b"\xff\xf8")]
FLAC_FRAME = sample("speech.flac")[len(FLAC_HEAD) :][:16]
ENDLESS_FLAC_HEAD = FLAC_HEAD[:22] + bytes(4) + FLAC_HEAD[26:]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"RIFF\x00\x00\x00\x00WAVE" + bytes(1_000_000), id="empty chunks"),
        pytest.param(a_wav(b"LIST\0\0\0\0" * 100_000, size=0), id="empty chunks after no audio"),
        pytest.param(b"fLaC\x00\x00\x00\x22" + bytes(1_000_000), id="empty blocks"),
        pytest.param(FLAC_HEAD + b"\xff\xf8" * 500_000, id="nothing but sync codes"),
        pytest.param(ENDLESS_FLAC_HEAD + FLAC_FRAME * 60_000, id="nothing but FLAC frame headers"),
        pytest.param(b"\x01" + b"\xff\xfb\x90" * 300_000, id="nothing but MP3 headers"),
        pytest.param((MP3_FRAME[:417] + a_tag(0)) * 2_000 + b"x", id="a tag after each frame"),
        pytest.param(b"OggS".ljust(27, b"\x00") * 40_000, id="empty pages"),
        pytest.param(b"\xd0" * 33 * 30_000 + b"x", id="long and almost GSM"),
        pytest.param(a_box(b"ftyp", b"M4A ") + b"\0\0\0\x08free" * 120_000, id="empty boxes"),
        pytest.param(a_box(b"ftyp", b"M4A ") + b"\0\0\0\0moov" * 100_000, id="boxes in boxes"),
        pytest.param(
            an_mp4()[0] + a_box(b"moov", a_box(b"trak", a_box(b"mdia", b"\0\0\0\x08minf" * 100_000))), id="empty tables"
        ),
        pytest.param(
            a_box(b"moov", a_box(b"mvex", b"\0\0\0\x08trex" * 100_000)) + a_box(b"moof", b"\0\0\0\x08traf" * 100_000),
            id="empty fragments",
        ),
        pytest.param(
            a_box(b"moov", a_box(b"trak", a_box(b"edts", (b"\0\0\0\x10elst\0\0\0\0\xff\xff\xff\xff" * 60_000)))),
            id="edit lists longer than their boxes",
        ),
        pytest.param(b"\x1aE\xdf\xa3\x80" + b"\xec\x80" * 150_000 + b"\x18\x53\x80\x67\x81", id="empty elements"),
        pytest.param(b"\x1aE\xdf\xa3\x80" * 100_000, id="masters in masters"),
        pytest.param(b"\x1aE\xdf\xa3\xff" + b"\xae\x80" * 100_000, id="countless tracks"),
        pytest.param(b"#!AMR\n" + b"\x7c" * 200_000 + b"\xff", id="empty AMR frames"),
        pytest.param(b"FORM\0\0\0\0AIFF" + b"junk\0\0\0\0" * 100_000, id="empty AIFF chunks"),
        pytest.param(b"caff\0\1\0\0" + b"free\0\0\0\0\0\0\0\0" * 80_000, id="empty CAF chunks"),
        pytest.param(W64_RIFF + bytes(1_000_000), id="empty W64 chunks"),
        pytest.param(b"\xff\xf1\x6c\x40\0\xff\xfc" * 70_000 + b"x", id="empty AAC frames"),
    ],
)
def test_hostile_bytes_are_judged_soon(data, tmp_path):
    (tmp_path / "hostile").write_bytes(data)
    began = time.process_time()
    found = look(data)
    assert found.verdict is not GOOD
    assert inspect(Body(len(data), "", path=tmp_path / "hostile")) == found
    assert time.process_time() - began < 3


# Durations


@pytest.mark.parametrize(
    ("audio", "told", "fits"),
    [
        (60, 60, True),
        (60, 61.9, True),
        (49, 60, True),
        (47, 60, False),
        (1, 3, True),
        (1, 3.1, False),
        (60, 0, False),
        (None, 60, True),
        (60, None, True),
    ],
)
def test_a_duration_far_from_the_told_one_is_warned_of(audio, told, fits):
    def span(seconds):
        return None if seconds is None else timedelta(seconds=seconds)

    warning = plausible(Audio(content_type="audio/wav", ext="wav", duration=span(audio)), span(told))
    assert (warning is None) == fits
    if warning is not None:
        assert f"{audio:.1f} s" in warning
        assert f"{told:.1f} s" in warning
