"""Names inside a store: no vendor names a path, no two ids one name, nothing too long for a disk."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from archiver.proof.layout import manifest_key, media_key, safe, ulid
from tests.factories import NOON

IDS = st.text(st.characters(), min_size=1, max_size=400) | st.sampled_from(
    ["..", ".", "a/b", "../../etc/passwd", "%2E", "a" * 150, "a" * 151, "é" * 40, "\0", "\ud800", "~", "a\\b", "con."]
)
SHA = "ab" * 32


@given(IDS)
def test_an_id_is_one_plain_name(identifier):
    name = safe(identifier)
    assert re.fullmatch(r"(?!\.)[A-Za-z0-9_.~%-]+", name)
    assert len(name) <= 167
    assert not re.search("%(?![0-9A-F]{2})", name)


@given(IDS, IDS)
@example("a" * 151, "a" * 152)
@example("." * 3, "%2E..")
@example("é" * 150, "é" * 149 + "è")
def test_two_ids_are_two_names(one, other):
    assert (safe(one) == safe(other)) == (one == other)


@given(st.text(min_size=1, max_size=16))
def test_a_short_id_can_be_read_back(identifier):
    assert unquote(safe(identifier)) == identifier


def test_ids_of_our_vendors_stay_readable():
    assert safe("1716040000.1234") == "1716040000.1234"
    assert safe("6fbc0ef2-29ae-4b34-9f47-b2fd0a3f8b61") == "6fbc0ef2-29ae-4b34-9f47-b2fd0a3f8b61"


def test_the_key_of_a_medium_is_the_contract_s():
    key = media_key("archive/", "hq", datetime(2024, 5, 7, 23, 59, tzinfo=UTC), "call 1", "leg/2", SHA, "wav")
    assert key == "archive/hq/2024/05/07/call%201/leg%2F2-abababababab.wav"


def test_a_year_of_three_digits_sorts_too():
    assert "/0987/01/01/" in media_key("", "hq", datetime(987, 1, 1, tzinfo=UTC), "r", "m", SHA, "bin")


@given(IDS, IDS)
def test_each_part_of_a_key_fits_a_file_system(recording_id, media_id):
    key = media_key("", "hq", NOON, recording_id, media_id, SHA, "opus")
    assert key.count("/") == 5
    assert all(0 < len(part.encode()) <= 255 and part not in {".", ".."} for part in key.split("/"))


def test_the_key_of_a_manifest_is_the_contract_s():
    key = manifest_key("archive/", "hq", moment := datetime(2024, 5, 7, 1, 2, 3, tzinfo=UTC), ulid(moment))
    assert re.fullmatch(r"archive/_manifests/hq/2024/05/07/[0-9A-HJKMNP-TV-Z]{26}\.jsonl", key)


@pytest.mark.parametrize("step", [timedelta(milliseconds=1), timedelta(days=1), timedelta(days=365)], ids=str)
def test_manifests_sort_by_the_moment_they_were_written(step):
    keys = [manifest_key("", "hq", NOON + n * step, ulid(NOON + n * step)) for n in range(20)]
    assert keys == sorted(keys)


def test_ulids_of_one_moment_differ():
    assert len({ulid(NOON) for _ in range(1000)}) == 1000


def test_a_ulid_tells_its_milliseconds():
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    number = 0
    for letter in ulid(NOON + timedelta(milliseconds=7)):
        number = number * 32 + alphabet.index(letter)
    assert number >> 80 == int(NOON.timestamp() * 1000) + 7
