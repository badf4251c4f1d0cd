"""The nouns: what they refuse, and how moments, texts and changes are written."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.model import Availability, Body, ListingKey, Window, holdable, holdable_tree, utc_text
from tests.factories import NOON, a_medium, a_recording, a_window

MOMENTS = st.datetimes(timezones=st.just(UTC))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class TestWindow:
    def test_its_end_is_outside(self):
        window = a_window("10:00", "11:00")
        assert window.start in window
        assert window.end - timedelta(microseconds=1) in window
        assert window.end not in window
        assert window.start - timedelta(microseconds=1) not in window

    @pytest.mark.parametrize("length", [0, -1])
    def test_an_empty_one_is_refused(self, length):
        with pytest.raises(ValueError, match="starts before it ends"):
            Window(NOON, NOON + timedelta(seconds=length))

    def test_bounds_without_a_zone_are_refused(self):
        with pytest.raises(ValueError, match="time zone"):
            Window(NOON.replace(tzinfo=None), NOON)
        with pytest.raises(ValueError, match="time zone"):
            Window(NOON, NOON.replace(tzinfo=None))

    def test_it_reads_well(self):
        assert str(a_window("10:00", "11:00")) == "[2024-05-18T10:00:00.000Z, 2024-05-18T11:00:00.000Z)"


class TestRecording:
    def test_no_id_and_no_zone_are_refused(self):
        with pytest.raises(ValueError, match="has an id"):
            a_recording(recording_id="", media=())
        with pytest.raises(ValueError, match="time zone"):
            a_recording(started_at=NOON.replace(tzinfo=None), ended_at=None)
        with pytest.raises(ValueError, match="time zone"):
            a_recording(ended_at=NOON.replace(tzinfo=None))

    def test_its_key_is_what_the_listing_looks_at(self):
        recording = a_recording(started_at=NOON, ended_at=NOON + timedelta(minutes=9))
        assert recording.key(ListingKey.START) == NOON
        assert recording.key(ListingKey.END) == NOON + timedelta(minutes=9)
        assert a_recording(started_at=NOON, ended_at=None).key(ListingKey.END) == NOON

    @pytest.mark.parametrize(
        "change",
        [
            {"availability": Availability.NOT_READY}, {"size": 7}, {"sha256": "ab"}, {"content_type": "audio/wav"},
            {"opaque": True}, {"urgent": True}, {"ref": {"path": "x"}}, {"media_id": "m2"},
        ],
        ids=lambda change: next(iter(change)),
    )  # fmt: skip
    def test_its_digest_changes_with_anything_told_of_a_medium(self, change):
        plain = a_recording(recording_id="r1")
        changed = a_recording(recording_id="r1", media=(a_medium(**change),))
        assert plain.digest() != changed.digest()

    @given(JSON.map(lambda value: {"v": value}), JSON.map(lambda value: {"v": value}))
    def test_its_digest_is_the_same_exactly_for_the_same_raw(self, one, other):
        digests = [a_recording(recording_id="r1", raw=raw).digest() for raw in (one, other)]
        assert (digests[0] == digests[1]) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))

    @given(
        st.dictionaries(
            st.text(), JSON | st.text() | st.integers() | st.floats() | st.sampled_from(("\x7f", "é", "\ud800"))
        )
    )
    def test_its_digest_is_that_of_python_s_json_whatever_wrote_it(self, raw):
        medium = a_medium(recording_id="r1", media_id="m1", size=7, ref=raw if len(raw) < 2 else {})
        media = [["m1", "ready", 7, None, None, False, False, dict(medium.ref)]]
        told = json.dumps([raw, media], sort_keys=True, separators=(",", ":"))
        digest = a_recording(recording_id="r1", raw=raw, media=(medium,)).digest()
        assert digest == hashlib.blake2b(told.encode(), digest_size=16).digest()

    def test_its_digest_does_not_depend_on_the_order_of_keys(self):
        assert a_recording(recording_id="r", raw={"a": 1, "b": 2}).digest() == (
            a_recording(recording_id="r", raw={"b": 2, "a": 1}).digest()
        )


class TestUtcText:
    @given(MOMENTS)
    def test_it_can_be_read_back_exactly(self, moment):
        assert datetime.fromisoformat(utc_text(moment)) == moment

    @given(st.lists(MOMENTS.map(lambda m: m.replace(microsecond=m.microsecond // 1000 * 1000)), min_size=2, max_size=2))
    def test_it_sorts_as_time_does(self, moments):
        assert sorted(moments) == sorted(moments, key=utc_text)

    def test_microseconds_appear_only_where_there_are_any(self):
        assert utc_text(NOON) == "2024-05-18T12:00:00.000Z"
        assert utc_text(NOON.replace(microsecond=5000)) == "2024-05-18T12:00:00.005Z"
        assert utc_text(NOON.replace(microsecond=5001)) == "2024-05-18T12:00:00.005001Z"

    @pytest.mark.parametrize("zone", [timezone(timedelta(hours=-8)), ZoneInfo("Europe/Paris")], ids=str)
    def test_another_zone_is_brought_to_utc(self, zone):
        assert utc_text(NOON.astimezone(zone)) == "2024-05-18T12:00:00.000Z"


class TestHoldable:
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_what_postgresql_can_hold_stays_as_it_is(self, text):
        clean = text.replace("\0", "")
        assert holdable(clean) == clean

    @given(st.text(st.characters(categories=["Cs", "Lu", "Cc"])))
    def test_what_it_cannot_hold_is_written_out(self, text):
        held = holdable(text)
        held.encode()
        assert "\0" not in held
        assert len(held) == len(text) + 5 * sum(c == "\0" or "\ud800" <= c <= "\udfff" for c in text)

    def test_a_tree_is_walked_whole(self):
        assert holdable_tree({"a\0": ["x\ud800", {"b": ("y\0", 1, None, True, 1.5)}]}) == {
            "a\\u0000": ["x\\ud800", {"b": ["y\\u0000", 1, None, True, 1.5]}]
        }


class TestBody:
    @given(st.binary(max_size=100), st.integers(1, 40))
    def test_its_chunks_are_its_bytes(self, data, size):
        assert b"".join(Body.of(data).chunks(size)) == Body.of(data).read() == data

    def test_it_can_be_read_again_from_a_file(self, tmp_path):
        file = tmp_path / "x"
        file.write_bytes(b"abcdef")
        body = Body(6, "", path=file)
        assert [list(body.chunks(4)), list(body.chunks(4))] == [[b"abcd", b"ef"]] * 2
        assert body.read() == b"abcdef"
