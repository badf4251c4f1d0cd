"""Chronicall against its simulator: the contract in every configuration, then its quirks and the vendor's page."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from archiver.audio import inspect
from archiver.errors import BadData, NotReady, Overflow, Refused, TooSlow, TryAgain
from archiver.model import Availability, Body, Direction, Medium, Party, Recording, Window
from archiver.ports import Details, FetchesBatches, LooksUp
from archiver.simulators.base import Call, Clock, Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.sources.chronicall import Chronicall, ChronicallOptions
from archiver.sources.chronicall_rows import recording
from archiver.sources.kit.zips import unpack
from archiver.testing.sources import NOW, Kept, SourceContract, opened

KEY = "83849370-5753-4186-9fc5-9c069e615734-1568735345298"
#: As printed on the vendor's page.
ROW = {
    "recordingKey": KEY,
    "startTime": 1568735345298,
    "duration": 48974,
    "poolId": "d25839a1-2916-4825-8a36-299a1119f732",
    "size": 42443,
    "eventId": 50165,
    "recordingSystemId": 1,
    "status": "SAVED",
}
#: As printed for v2.
ROW_V2 = {
    "recordingKey": "91a1e1e8-1dd0-gg18-9fc5-9c069e615734-1707770449131",
    "callKey": "1dd0gg18-5753-4186-9fc5-9c069e615734-1707770438499-1707770497510",
    "startTime": 1707770449131,
    "duration": 3606,
    "size": 9111,
    "eventId": 99181,
    "recordingSystemId": 0,
    "status": "SAVED",
    "callingParty": "18885553794",
    "receivingParty": "Spencer Porter(253)",
    "tenantName": "acme-ns",
    "tagData": "Default",
    "callDirection": "INBOUND",
    "skill": "CC Sales",
    "agent": "Spencer Porter(253)",
}
HOUR = Window(NOW - timedelta(hours=2), NOW - timedelta(hours=1))
AT = NOW - timedelta(minutes=90)


class WavRecorder(ChronicallSimulator):
    format = "wav"


class ZipRecorder(ChronicallSimulator):
    fetch = "zip"


class WavZipRecorder(ZipRecorder):
    format = "wav"


class CloudRecorder(ChronicallSimulator):
    api_version = "v2"


class CloudZipRecorder(CloudRecorder):
    fetch = "zip"


class TestV1Spx(SourceContract):
    simulator = ChronicallSimulator
    source = Chronicall


class TestV1Wav(SourceContract):
    simulator = WavRecorder
    source = Chronicall


class TestV2(SourceContract):
    simulator = CloudRecorder
    source = Chronicall


class ZipContract(SourceContract):
    """The contract, and the bytes by batches as well."""

    source = Chronicall

    async def test_every_medium_arrives_byte_for_byte_in_a_batch(self, sim: Simulator) -> None:
        truth = sim.truth()
        async with self.reading(sim) as source:
            found = await self.everything(source, self.span())
            media = [m for r in found.values() for m in r.media]
            sinks = {m.media_id: Kept() for m in media}
            assert isinstance(source, FetchesBatches)
            for at in range(0, len(media), source.batch):
                batch = media[at : at + source.batch]
                assert await source.fetch_batch(batch, sinks) == {m.media_id for m in batch}
        assert {k: bytes(s.data) for k, s in sinks.items()} == {k: e.audio[k] for k, e in truth.items()}
        assert sim.count("audio") == 0


class TestV1Zip(ZipContract):
    simulator = ZipRecorder


class TestV1WavZip(ZipContract):
    simulator = WavZipRecorder


class TestV2Zip(ZipContract):
    simulator = CloudZipRecorder


@asynccontextmanager
async def recorder(kind: type[ChronicallSimulator] = ChronicallSimulator, calls: int = 6, **attributes: Any):
    """A recorder with so many calls in HOUR."""
    sim = kind(seed=7, clock=Clock(NOW))
    for name, value in attributes.items():
        setattr(sim, name, value)
    sim.add_calls(HOUR.start + timedelta(minutes=1), HOUR.end - timedelta(minutes=1), calls)
    async with sim:
        yield sim


def reading(sim: ChronicallSimulator, **more: Any):
    return opened(Chronicall, {**sim.options(), "timeout": "2s", **more})


def query(sim: ChronicallSimulator, on: str = "list") -> dict[str, list[str]]:
    return parse_qs(next(s.query for s in reversed(sim.seen) if s.on == on))


async def listed(source: Chronicall, window: Window = HOUR) -> list[Recording]:
    return list((await source.list(window)).recordings)


async def media(source: Chronicall, window: Window = HOUR) -> list[Medium]:
    return [m for r in await listed(source, window) for m in r.media]


# -- asking for a list -------------------------------------------------------------------------------------------------


async def test_v1_is_asked_in_milliseconds_with_a_bearer_token() -> None:
    async with recorder() as sim, reading(sim) as source:
        await source.list(HOUR)
        seen = sim.seen[-1]
        asked = {k: int(v[0]) for k, v in query(sim).items()}
    assert (seen.method, seen.path) == ("GET", "/rest/api/v1/recordings")
    assert seen.headers["Authorization"] == f"Bearer {sim.token}"
    assert asked["startTime"] <= HOUR.start.timestamp() * 1000
    assert asked["endTime"] >= HOUR.end.timestamp() * 1000


async def test_v2_is_asked_in_iso_times_whose_offset_survives_the_query() -> None:
    async with recorder(CloudRecorder) as sim, reading(sim) as source:
        await source.list(HOUR)
        assert sim.seen[-1].path == "/rest/api/v2/recordings"
        asked = query(sim)
    assert datetime.fromisoformat(asked["startTime"][0]) <= HOUR.start
    assert asked["endTime"][0].endswith("+00:00")


async def test_the_way_times_are_written_is_an_option() -> None:
    async with recorder() as sim, reading(sim, time_format="iso") as source:
        with pytest.raises(BadData, match="400"):
            await source.list(HOUR)
        assert "T" in query(sim)["startTime"][0]


async def test_a_list_that_is_not_there_is_said_with_the_option_that_mends_it() -> None:
    """The page does not print the path of the list."""
    async with recorder() as sim:
        async with reading(sim, list_path="/api/elsewhere") as source:
            with pytest.raises(BadData, match="list_path"):
                await source.list(HOUR)
        async with reading(sim, list_path="/rest/api/v1/recordings") as source:
            assert len(await listed(source)) == len(sim.truth())


async def test_the_audio_path_is_an_option() -> None:
    async with recorder() as sim, reading(sim, audio_path="/elsewhere/{key}.spx") as source:
        medium = (await media(source))[0]
        with pytest.raises(NotReady):
            await source.fetch(medium, Kept())
        assert sim.seen[-1].path == f"/elsewhere/{medium.recording_id}.spx"


@pytest.mark.parametrize("options", [{"audio_path": "/x"}, {"list_path": "x"}, {"batch": 1}, {"format": "mp3"}])
def test_an_option_that_can_t_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChronicallOptions(kind="chronicall", base_url="http://pbx:9080", token="t", **options)


def test_a_tenant_of_the_cloud_is_asked_once_in_three_seconds_and_a_pbx_gently() -> None:
    cloud = ChronicallOptions(kind="chronicall", base_url="https://acme.xima.cloud", token="t", api_version="v2")
    faster = ChronicallOptions(kind="chronicall", base_url="https://a.b", token="t", api_version="v2", rate="1/s")
    local = ChronicallOptions(kind="chronicall", base_url="http://10.0.0.101:9080", token="t")
    assert cloud.rate is not None
    assert cloud.rate.interval == timedelta(seconds=3)
    assert faster.rate is not None
    assert faster.rate.interval == timedelta(seconds=1)
    assert local.concurrency == 2


# -- windows -----------------------------------------------------------------------------------------------------------


async def test_a_list_that_takes_too_long_is_asked_for_less() -> None:
    async with recorder() as sim, reading(sim, timeout="200ms") as source:
        sim.fault("limit", value=timedelta(minutes=40), times=-1)
        with pytest.raises(TooSlow):
            await source.list(HOUR)
        half = HOUR.start + HOUR.length / 2
        pieces = [await listed(source, w) for w in (Window(HOUR.start, half), Window(half, HOUR.end))]
    assert {r.recording_id for piece in pieces for r in piece} == set(sim.truth())


@pytest.mark.parametrize(("status", "halve"), [(500, True), (502, True), (504, True), (503, False), (429, False)])
async def test_a_server_that_breaks_over_a_window_is_asked_for_less(status: int, halve: bool) -> None:
    async with recorder() as sim, reading(sim) as source:
        sim.fault("status", "list", value=status)
        with pytest.raises(TryAgain) as caught:
            await source.list(HOUR)
    assert isinstance(caught.value, TooSlow) is halve


@pytest.mark.parametrize("rule", ["end", "inside"])
async def test_overlap_finds_what_a_list_by_end_or_by_containment_would_drop(rule: str) -> None:
    async with recorder(calls=0, rule=rule) as sim:
        call = sim.add_call(HOUR.end - timedelta(minutes=5), timedelta(minutes=20), index=1)
        async with reading(sim) as source:
            assert not await listed(source)
        async with reading(sim, overlap="30m") as source:
            assert {r.recording_id for r in await listed(source)} == set(sim.expected(call))


@pytest.mark.parametrize("rule", ["start", "after"])
async def test_milliseconds_at_both_edges_are_inside(rule: str) -> None:
    async with recorder(calls=0, rule=rule) as sim, reading(sim) as source:
        for moment in (HOUR.start, HOUR.end - timedelta(milliseconds=1)):
            sim.add_call(moment, timedelta(seconds=3), index=1)
        assert len(await listed(source)) == 2


# -- check -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def live(kind: type[ChronicallSimulator] = ChronicallSimulator, **attributes: Any):
    """A recorder of today, with three calls half an hour ago."""
    sim = kind(seed=7)
    for name, value in attributes.items():
        setattr(sim, name, value)
    before = datetime.now(UTC) - timedelta(minutes=30)
    for index in (1, 2, 3):
        sim.add_call(before + timedelta(minutes=index), timedelta(seconds=8), index=index)
    async with sim:
        yield sim


async def test_check_tells_how_many_recordings_it_saw() -> None:
    async with live() as sim, reading(sim) as source:
        assert await source.check() == "Chronicall v1: 3 recordings in the last hour"


async def test_check_wonders_at_an_empty_list_since_rights_hide_rows_silently() -> None:
    async with recorder() as sim, reading(sim) as source:
        assert "may not see them" in await source.check()


async def test_check_finds_out_that_a_list_does_not_go_by_the_start() -> None:
    async with live(rule="inside") as sim:
        async with reading(sim) as source:
            assert "set overlap" in await source.check()
        async with reading(sim, overlap="8h") as source:
            assert "set overlap" not in await source.check()


async def test_check_fetches_one_recording_of_the_cloud_and_says_what_came() -> None:
    async with live(api_version="v2") as sim:
        async with reading(sim, rate="100/s") as source:
            said = await source.check()
            call = sim.calls[0]
            size = len(sim.parts(call)[0].sound("spx"))
            kbits = f"{size * 8 / 1000 / call.duration.total_seconds():.0f} kbit/s"
            assert said.startswith("Chronicall v2: 3 recordings in the last hour; one was fetched: audio/ogg")
            assert said.endswith(f", {size} bytes ({kbits}), its row tells {sim.told_size(sim.parts(call)[0])}")
            await source.check()
            assert sim.count("audio") == 1, "the tenant's allowance is small"
        async with reading(sim, rate="100/s") as source:
            sim.fault("status", "audio", value=509, times=-1)
            assert "the audio of one can't be had: the tenant's allowance" in await source.check()
        async with reading(sim, rate="100/s", format="wav") as source:
            assert (await source.check()).startswith('warning: format = "wav" is 128 kbit/s')
    async with live() as sim, reading(sim) as source:
        await source.check()
        assert sim.count("audio") == 0


async def test_check_looks_at_a_day_of_the_cloud_where_the_last_hour_is_quiet() -> None:
    sim = ChronicallSimulator(seed=7, api_version="v2")
    sim.add_call(datetime.now(UTC) - timedelta(hours=9), timedelta(seconds=8), index=1)
    async with sim, reading(sim, rate="100/s") as source:
        assert "1 recordings in the last day; one was fetched" in await source.check()


async def test_the_size_of_the_cloud_s_rows_is_compared_only_if_asked_for() -> None:
    """The vendor's sample row tells three times what its Speex takes: each download would be refused."""
    async with live(api_version="v2") as sim:
        for wanted, told in ((None, None), (True, sim.told_size(sim.parts(sim.calls[0])[0]))):
            more = {"check_size": wanted} if wanted is not None else {}
            async with reading(sim, rate="100/s", **more) as source:
                now = datetime.now(UTC)
                found = await source.list(Window(now - timedelta(hours=1), now))
            assert min(found.recordings, key=lambda r: r.started_at).media[0].size == told


async def test_check_size_counts_as_it_is_set_now() -> None:
    (medium,) = recording(ROW).media
    for options, size in (({}, 42443), ({"check_size": False}, None), ({"format": "wav"}, None)):
        async with opened(
            Chronicall, {"kind": "chronicall", "base_url": "http://h", "token": "t", **options}
        ) as source:
            assert source.expected(medium).size == size  # type: ignore[attr-defined]


async def test_check_tries_the_zip_where_it_is_wanted() -> None:
    async with live(ZipRecorder) as sim, reading(sim) as source:
        assert "ZIP" not in await source.check()
        sim.zip_name = "someone/{format}"
        assert "ZIP export is of no use" in await source.check()
    assert sim.count("zip") == 2


# -- rows --------------------------------------------------------------------------------------------------------------


def test_the_vendor_s_sample_row_is_read() -> None:
    one = recording(ROW)
    start = datetime(2019, 9, 17, 15, 49, 5, 298000, UTC)
    assert (one.recording_id, one.started_at, one.duration) == (KEY, start, timedelta(milliseconds=48974))
    assert one.ended_at == start + timedelta(milliseconds=48974)
    assert one.raw == ROW
    assert (one.call_id, one.direction, one.caller, one.parties) == (None, Direction.UNKNOWN, None, ())
    assert [(m.media_id, m.size, m.availability) for m in one.media] == [(KEY, 42443, Availability.READY)]


def test_the_sample_row_of_v2_is_read_with_its_call_parties_queue_and_tag() -> None:
    """Its uuid holds letters that no uuid has."""
    one = recording(ROW_V2)
    assert one.call_id == ROW_V2["callKey"]
    assert (one.direction, one.caller, one.callee) == (Direction.INBOUND, "18885553794", "253")
    assert (one.agent, one.queue) == ("Spencer Porter (253)", "CC Sales")
    assert one.parties == (
        Party(number="18885553794", role="caller"),
        Party(number="253", name="Spencer Porter", role="callee"),
        Party(number="253", name="Spencer Porter", role="agent"),
    )
    assert one.attributes == {"tagData": "Default", "tenantName": "acme-ns"}


@pytest.mark.parametrize(
    ("told", "number", "name"),
    [
        ("Porter (Sales)(253)", "253", "Porter (Sales)"),
        ("(253)", "253", None),
        (" Anonymous ", None, "Anonymous"),
        ("Porter (Sales)", None, "Porter (Sales)"),
        (18885553794, "18885553794", None),
        ("+44*1#", "+44*1#", None),
    ],
)
def test_a_party_is_a_name_a_number_or_both(told: Any, number: str | None, name: str | None) -> None:
    assert recording({**ROW_V2, "callingParty": told}).parties[0] == Party(number=number, name=name, role="caller")


@pytest.mark.parametrize(
    ("told", "direction"),
    [("OUTBOUND", "outbound"), ("internal", "internal"), ("TANDEM", "unknown"), (None, "unknown")],
)
def test_a_direction_that_nobody_knows_is_unknown(told: Any, direction: str) -> None:
    assert recording({**ROW_V2, "callDirection": told}).direction == direction


def test_empty_texts_are_nothing() -> None:
    one = recording({**ROW_V2, "callKey": " ", "skill": "", "agent": "", "tagData": "", "callingParty": ""})
    assert (one.call_id, one.queue, one.agent, one.caller) == (None, None, None, None)
    assert one.attributes == {"tenantName": "acme-ns"}


@pytest.mark.parametrize(
    ("status", "availability", "urgent"),
    [
        ("SAVED", Availability.READY, False),
        (" saved ", Availability.READY, False),
        ("PENDING", Availability.NOT_READY, False),
        ("PENDING_DELETE_SPACE", Availability.READY, True),
        ("PENDING_DELETE_TIME", Availability.READY, True),
        ("DELETED_USER", Availability.DELETED, False),
        ("DELETED_SPACE", Availability.DELETED, False),
        ("DELETED_TIME", Availability.DELETED, False),
        ("DELETED_UNKNOWN", Availability.DELETED, False),
        ("COOKING", Availability.NOT_READY, False),
        (None, Availability.NOT_READY, False),
    ],
)
def test_a_status_gates_the_download(status: Any, availability: Availability, urgent: bool) -> None:
    (medium,) = recording({**ROW, "status": status}).media
    assert (medium.availability, medium.urgent) == (availability, urgent)
    assert medium.size == (42443 if availability is Availability.READY else None)


@pytest.mark.parametrize("start", [None, "", "soon", True, 1.5])
def test_the_key_s_tail_tells_the_start_where_the_row_does_not(start: Any) -> None:
    assert recording({**ROW, "startTime": start}).started_at == recording(ROW).started_at


@pytest.mark.parametrize("start", ["1568735345298", 1568735345298.0])
def test_a_start_in_quotes_or_as_a_float_is_a_start(start: Any) -> None:
    assert recording({**ROW, "startTime": start, "recordingKey": "x"}).started_at == recording(ROW).started_at


@pytest.mark.parametrize("start", [0, 4102444800000])
def test_a_row_of_1970_or_of_the_future_is_a_row(start: int) -> None:
    assert recording({**ROW, "startTime": start}).started_at == datetime.fromtimestamp(start / 1000, UTC)


def test_a_uuid_s_last_group_is_not_taken_for_a_start() -> None:
    with pytest.raises(ValueError, match="began"):
        recording({"recordingKey": "83849370-5753-4186-9fc5-123456789012", "status": "SAVED"})


@pytest.mark.parametrize("length", [None, "", -1, True, 10**30])
def test_a_duration_that_is_none_is_left_out(length: Any) -> None:
    one = recording({**ROW, "duration": length})
    assert (one.duration, one.ended_at) == (None, None)


@pytest.mark.parametrize(
    "row",
    [
        None,
        "row",
        {**ROW, "recordingKey": None},
        {**ROW, "recordingKey": ".."},
        {**ROW, "recordingKey": "a\x00b"},
        {**ROW, "recordingKey": "\ud800"},
        {**ROW, "startTime": 10**30},
        {"recordingKey": "x", "status": "SAVED"},
    ],
)
async def test_a_row_that_can_t_be_read_is_shown_and_the_others_are_listed(row: Any) -> None:
    async with recorder() as sim, reading(sim) as source:
        sim.fault("row", value=row)
        listing = await source.list(HOUR)
    assert len(listing.recordings) == len(sim.truth())
    assert [json.loads(r.raw) for r in listing.rejected] == [row]
    assert listing.rejected[0].reason


async def test_a_rejected_row_is_kept_no_longer_than_4_kb() -> None:
    async with recorder() as sim, reading(sim) as source:
        sim.fault("row", value={"junk": "x" * 10000})
        listing = await source.list(HOUR)
    assert len(listing.rejected[0].raw) == 4096


async def test_a_recording_told_twice_is_one() -> None:
    async with recorder() as sim, reading(sim) as source:
        first = sim.parts(sim.calls[0])[0]
        sim.fault("row", value=sim._row(first))
        assert len(await listed(source)) == len(sim.truth())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("1568735345298"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ROW_V2)), json_values))
def test_no_row_breaks_its_reader(changes: dict[str, Any]) -> None:
    try:
        one = recording({**ROW_V2, **changes})
    except (ValueError, OverflowError):
        return
    assert one.recording_id
    assert one.digest()


# -- statuses, end to end ----------------------------------------------------------------------------------------------


async def test_a_pending_recording_is_listed_as_such_and_ready_once_it_is_saved() -> None:
    async with recorder(calls=0) as sim, reading(sim) as source:
        sim.add_call(AT, timedelta(seconds=5), index=1, ready_at=NOW + timedelta(minutes=5))
        (medium,) = await media(source)
        assert medium.availability is Availability.NOT_READY
        with pytest.raises(NotReady):
            await source.fetch(medium, Kept())
        sim.clock.advance(timedelta(minutes=6))
        (medium,) = await media(source)
        await source.fetch(medium, Kept())


async def test_a_recording_marked_for_deletion_is_urgent_and_one_deleted_is_gone() -> None:
    async with recorder(calls=0) as sim, reading(sim) as source:
        call = sim.add_call(AT, timedelta(seconds=5), index=1, extra={"status": "PENDING_DELETE_SPACE"})
        (medium,) = await media(source)
        assert medium.urgent
        await source.fetch(medium, Kept())
        call.extra["status"] = "DELETED_SPACE"
        (medium,) = await media(source)
        assert medium.availability is Availability.DELETED
        with pytest.raises(NotReady):
            await source.fetch(medium, Kept())


async def test_rows_beyond_the_service_user_s_rights_are_omitted_silently_and_refused_by_key() -> None:
    async with recorder() as sim, reading(sim) as source:
        all_of_it = await media(source)
        hidden = sim.calls[1]
        hidden.extra["hidden"] = True
        left = {m.recording_id for m in await media(source)}
        (medium,) = (m for m in all_of_it if m.recording_id not in left)
        assert left == set(sim.truth())
        with pytest.raises(Refused):
            await source.fetch(medium, Kept())


# -- audio -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fmt", "magic"), [("spx", b"OggS"), ("wav", b"RIFF")])
async def test_the_format_that_is_wanted_is_asked_for(fmt: str, magic: bytes) -> None:
    async with recorder(format=fmt) as sim, reading(sim) as source:
        kept = Kept()
        await source.fetch((await media(source))[0], kept)
        assert query(sim, "audio") == {"format": [fmt]}
    assert kept.data.startswith(magic)
    assert inspect(Body.of(bytes(kept.data))).ext == fmt


async def test_the_size_of_a_row_holds_for_the_recorder_s_own_file_alone() -> None:
    async with recorder() as sim:
        for options, told in (({}, True), ({"format": "wav"}, False), ({"check_size": False}, False)):
            async with reading(sim, **options) as source:
                assert all((m.size is not None) is told for m in await media(source))


async def test_identity_does_not_depend_on_an_option() -> None:
    async with recorder() as sim:
        seen = []
        for options in ({}, {"format": "wav"}, {"fetch": "zip"}, {"listen_links": True}):
            async with reading(sim, **options) as source:
                seen.append({(m.recording_id, m.media_id) for m in await media(source)})
    assert all(ids == seen[0] for ids in seen)
    assert len({media_id for _, media_id in seen[0]}) == len(seen[0])


async def test_a_spent_allowance_of_downloads_is_said_and_waited_for() -> None:
    async with recorder(CloudRecorder) as sim, reading(sim) as source:
        medium = (await media(source))[0]
        sim.fault("status", "audio", value=509)
        with pytest.raises(TryAgain, match="allowance") as caught:
            await source.fetch(medium, Kept())
    assert caught.value.retry_after == timedelta(hours=1)


async def test_too_many_requests_are_spaced_by_three_seconds_at_least() -> None:
    async with recorder(CloudRecorder) as sim, reading(sim) as source:
        medium = (await media(source))[0]
        for kind, value, wait in (("status", 429, 3), ("retry_after", 1, 3), ("retry_after", 40, 40)):
            sim.fault(kind, "audio", value=value)
            with pytest.raises(TryAgain) as caught:
                await source.fetch(medium, Kept())
            assert caught.value.retry_after == timedelta(seconds=wait)


@pytest.mark.parametrize("status", [202, 204])
async def test_an_answer_without_audio_yet_is_not_ready(status: int) -> None:
    async with recorder(CloudRecorder) as sim, reading(sim) as source:
        medium = (await media(source))[0]
        sim.fault("status", "audio", value=status)
        with pytest.raises(NotReady):
            await source.fetch(medium, Kept())


async def test_no_content_is_an_empty_list() -> None:
    async with recorder(CloudRecorder) as sim, reading(sim) as source:
        sim.fault("no_content", "list")
        assert not await listed(source)


async def test_a_key_is_one_segment_of_the_path_whatever_it_holds() -> None:
    async with recorder() as sim, reading(sim) as source:
        with pytest.raises(NotReady):
            await source.fetch(Medium(recording_id="../../x?y#z", media_id="m"), Kept())
    assert sim.seen[-1].query == "format=spx"
    assert sim.seen[-1].on == "audio"
    assert sim.seen[-1].status == 404


# -- by call -----------------------------------------------------------------------------------------------------------


async def test_recordings_are_looked_up_by_call_key_and_told_their_call() -> None:
    async with recorder() as sim, reading(sim) as source:
        assert isinstance(source, LooksUp)
        keys = [sim.call_key(c) for c in sim.calls[:2]]
        listing = await source.look_up(keys)
        wanted = {k: sim.call_key(c) for c in sim.calls[:2] for k in sim.expected(c)}
    assert {r.recording_id: r.call_id for r in listing.recordings} == wanted
    assert len(wanted) == 3


async def test_an_unknown_call_has_no_recordings() -> None:
    async with recorder() as sim, reading(sim) as source:
        for call_id in ("no-such-call", "..", ""):
            assert not (await source.look_up([call_id])).recordings
        assert sim.count("call") == len(sim.seen) == 1


async def test_a_call_that_fails_alone_is_named_and_holds_up_no_other() -> None:
    async with recorder() as sim, reading(sim) as source:
        keys = [sim.call_key(call) for call in sim.calls[:3]]
        sim.fault("status", "call", value=500, match=keys[0], times=-1)
        told = await source.look_up(keys)
        assert [key for key, _ in told.failed] == keys[:1]
        assert {r.call_id for r in told.recordings} == set(keys[1:])
        sim.fault("status", "call", value=429, times=-1)
        with pytest.raises(TryAgain):
            await source.look_up(keys[1:])


async def test_a_call_beyond_the_rights_is_shown_and_the_others_are_looked_up() -> None:
    async with recorder() as sim, reading(sim) as source:
        sim.calls[1].extra["hidden"] = True
        keys = [sim.call_key(c) for c in sim.calls]
        listing = await source.look_up(keys)
        assert {r.recording_id for r in listing.recordings} == set(sim.truth())
        assert [json.loads(r.raw) for r in listing.rejected] == [{"callKey": keys[1]}]
        with pytest.raises(Refused):
            await source.look_up(keys[1:2])
        sim.fault("status", "call", value=401)
        with pytest.raises(Refused):
            await source.look_up(keys)


# -- listen links ------------------------------------------------------------------------------------------------------


async def test_no_link_is_made_unless_asked_for() -> None:
    async with recorder() as sim, reading(sim) as source:
        assert isinstance(source, Details)
        for one in await listed(source):
            assert await source.detail(one) is one
    assert sim.count("link") == 0


async def test_a_link_is_made_for_what_can_be_heard() -> None:
    async with recorder(calls=0) as sim, reading(sim, listen_links=True) as source:
        ready = sim.add_call(AT, timedelta(seconds=5), index=1)
        sim.add_call(AT, timedelta(seconds=5), index=2, extra={"status": "PENDING"})
        found = [await source.detail(one) for one in await listed(source)]
        links = [one.attributes.get("listen_link") for one in found]
    assert sorted(links, key=str) == sorted([None, ready.extra["links"][0]], key=str)
    assert sim.count("link") == 1
    assert all(one.raw["status"] for one in found)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_a_link_that_can_t_be_had_keeps_no_recording_back(status: int) -> None:
    async with recorder() as sim, reading(sim, listen_links=True) as source:
        sim.fault("status", "link", value=status)
        told = (await source.detail((await listed(source))[0])).attributes
    assert str(status) in told["listen_link_error"]


async def test_a_recorder_without_an_external_address_says_so() -> None:
    async with recorder(listen_address=None) as sim, reading(sim, listen_links=True) as source:
        told = (await source.detail((await listed(source))[0])).attributes
    assert "Externally Accessible Address" in told["listen_link_error"]


async def test_an_answer_without_a_link_is_told() -> None:
    async with recorder() as sim, reading(sim, listen_links=True) as source:
        sim.fault("json", "link")
        assert "listen_link_error" in (await source.detail((await listed(source))[0])).attributes


# -- the ZIP export ----------------------------------------------------------------------------------------------------


class Counting(Kept):
    restarts = 0

    async def restart(self) -> None:
        self.restarts += 1
        await super().restart()


class Batch:
    """What a batch of everything in HOUR brought."""

    def __init__(self, delivered: set[str], sinks: dict[str, Counting], batch: list[Medium]) -> None:
        self.delivered = delivered
        self.sinks = sinks
        self.missing = {m.media_id for m in batch} - delivered


async def batched(sim: ChronicallSimulator, source: Chronicall) -> Batch:
    """Fetch everything; what was delivered has the true bytes, and all else has none."""
    batch = await media(source)
    sinks = {m.media_id: Counting() for m in batch}
    found = Batch(await source.fetch_batch(batch, sinks), sinks, batch)
    truth = sim.truth()
    for media_id, sink in sinks.items():
        assert bytes(sink.data) == (truth[media_id].audio[media_id] if media_id in found.delivered else b"")
    return found


async def test_a_batch_is_one_request_that_names_the_recordings() -> None:
    async with recorder(ZipRecorder, calls=9) as sim, reading(sim) as source:
        assert source.batch == 50
        found = await batched(sim, source)
        assert not found.missing
        seen = sim.seen[-1]
    assert (seen.on, seen.query, sim.count("audio")) == ("zip", "format=spx", 0)
    assert seen.headers["Content-Type"] == "application/json"


async def test_batches_are_off_by_default() -> None:
    async with recorder() as sim, reading(sim) as source:
        assert source.batch == 1


@pytest.mark.parametrize("name", ["{uuid}.{format}", "x/{key}/audio.{format}", "Joe_{key}_in.{format}", "{key}"])
async def test_a_member_is_known_by_its_key_or_uuid_wherever_they_stand_in_its_name(name: str) -> None:
    async with recorder(ZipRecorder, zip_name=name) as sim, reading(sim) as source:
        assert not (await batched(sim, source)).missing


async def test_members_that_name_no_recording_are_left_for_single_requests() -> None:
    async with recorder(ZipRecorder, zip_name="{format}") as sim, reading(sim) as source:
        with pytest.warns(UserWarning, match="Duplicate name"):
            assert not (await batched(sim, source)).delivered


@pytest.mark.parametrize(
    "fault",
    [
        "zip_hostile",
        "zip_absolute",
        "zip_twice",
        "zip_missing",
        "zip_encrypted",
        "zip_crc",
        "zip_lies",
        "zip_bomb",
        "zip_other",
    ],
)
async def test_a_doubtful_member_is_left_for_a_single_request_and_the_others_are_delivered(fault: str) -> None:
    for options in ({}, {"check_size": False}):
        async with recorder(ZipRecorder) as sim, reading(sim, **options) as source:
            sim.fault(fault, "zip", value=1)
            assert len((await batched(sim, source)).missing) == 1, options


@pytest.mark.parametrize("fault", ["zip_torn", "html", "json", "empty", "clean_cut"])
async def test_a_zip_that_can_t_be_read_leaves_everything_for_single_requests(fault: str) -> None:
    async with recorder(ZipRecorder) as sim, reading(sim) as source:
        sim.fault(fault, "zip")
        assert not (await batched(sim, source)).delivered


@pytest.mark.parametrize("at", range(5, 100, 6))
async def test_a_changed_byte_anywhere_never_becomes_a_delivered_recording(at: int) -> None:
    async with recorder(ZipRecorder, calls=3) as sim, reading(sim, check_size=False) as source:
        batch = await media(source)
        packed = bytearray(sim._packed([p for c in sim.calls for p in sim.parts(c)], "spx", None))
        packed[len(packed) * at // 100] ^= 0xFF
        sim._packed = lambda *_: bytes(packed)
        sinks = {m.media_id: Kept() for m in batch}
        delivered = await source.fetch_batch(batch, sinks)
        assert all(bytes(sinks[i].data) == sim.truth()[i].audio[i] for i in delivered)


async def test_a_member_of_another_size_than_its_row_told_is_left_out() -> None:
    async with recorder(ZipRecorder) as sim, reading(sim) as source:
        sim.calls[1].extra["row"] = {"size": 77}
        assert len((await batched(sim, source)).missing) == 1


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_a_batch_that_is_refused_is_fetched_one_by_one(status: int) -> None:
    async with recorder(ZipRecorder) as sim, reading(sim) as source:
        sim.fault("status", "zip", value=status)
        assert not (await batched(sim, source)).delivered
        assert source.batch == 50


async def test_one_forbidden_recording_does_not_hold_up_its_batch() -> None:
    async with recorder(ZipRecorder) as sim, reading(sim) as source:
        batch = await media(source)
        sim.calls[1].extra["hidden"] = True
        assert await source.fetch_batch(batch, {m.media_id: Kept() for m in batch}) == set()


async def test_a_refused_key_is_said_of_a_batch_too() -> None:
    async with recorder(ZipRecorder) as sim, reading(sim) as source:
        sim.fault("status", "zip", value=401)
        with pytest.raises(Refused):
            await batched(sim, source)


async def test_an_export_that_is_too_much_makes_batches_shorter_until_there_are_none() -> None:
    async with recorder(ZipRecorder) as sim, reading(sim, batch=8) as source:
        sim.fault("status", "zip", value=500, times=2)
        for batch in (4, 2):
            with pytest.raises(Overflow):
                await batched(sim, source)
            assert source.batch == batch
        assert not (await batched(sim, source)).missing
        assert source.batch == 3
        sim.fault("status", "zip", value=504, times=2)
        for _ in range(2):
            with pytest.raises(Overflow):
                await batched(sim, source)
        assert source.batch == 1


@pytest.mark.parametrize(("status", "wait"), [(503, None), (429, timedelta(seconds=3)), (509, timedelta(hours=1))])
async def test_a_recorder_that_is_busy_or_spent_is_not_asked_for_shorter_batches(
    status: int, wait: timedelta | None
) -> None:
    async with recorder(ZipRecorder) as sim, reading(sim) as source:
        sim.fault("status", "zip", value=status)
        with pytest.raises(TryAgain) as caught:
            await batched(sim, source)
    assert caught.value.retry_after == wait
    assert source.batch == 50


async def test_a_zip_that_never_ends_is_cut_off() -> None:
    async with recorder(ZipRecorder) as sim, reading(sim, batch_largest="1kB") as source:
        with pytest.raises(Overflow, match="batch_largest"):
            await batched(sim, source)


async def test_members_that_unpack_to_more_than_a_batch_may_hold_are_left_out() -> None:
    batch = [Medium(recording_id=f"{KEY}{n}", media_id=f"{n}") for n in range(3)]
    sinks = {m.media_id: Kept() for m in batch}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for medium in batch:
            archive.writestr(f"{medium.recording_id}.wav", b"RIFF" + bytes(996))
    assert await unpack(packed, batch, sinks, 2500) == {"0", "1"}
    assert not sinks["2"].data


async def test_what_came_of_a_long_member_before_its_crc_failed_is_forgotten() -> None:
    async with recorder(WavZipRecorder, calls=0) as sim, reading(sim) as source:
        sim.add_call(AT, timedelta(seconds=40), index=1)
        sim.fault("zip_crc", "zip")
        found = await batched(sim, source)
    assert len(found.missing) == 1
    assert all(s.restarts == 1 for s in found.sinks.values())


async def test_a_directory_that_would_fill_the_memory_is_not_read() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{KEY}.spx", b"OggS")
        for number in range(5000):
            archive.writestr(f"{number:01000}", b"")
    medium, kept = Medium(recording_id=KEY, media_id=KEY), Kept()
    assert not await unpack(packed, [medium], {KEY: kept}, 1 << 30)


async def test_a_directory_told_elsewhere_by_zip64_is_not_read() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{KEY}.spx", b"OggS")
    medium = Medium(recording_id=KEY, media_id=KEY)
    assert await unpack(packed, [medium], {KEY: Kept()}, 1 << 30) == {KEY}
    body = packed.getvalue()
    end = body.rfind(b"PK\5\6")
    (size, start) = struct.unpack_from("<LL", body, end + 12)
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    zip64 = io.BytesIO(body[:end] + record + locator + body[end:])
    assert zipfile.ZipFile(zip64).namelist() == [f"{KEY}.spx"]
    assert not await unpack(zip64, [medium], {KEY: Kept()}, 1 << 30)


async def test_a_sink_that_fails_is_not_taken_for_a_bad_zip() -> None:
    class Full(Kept):
        async def write(self, chunk: bytes) -> None:
            raise OSError(28, "No space left on device")

    async with recorder(ZipRecorder) as sim, reading(sim) as source:
        batch = await media(source)
        with pytest.raises(OSError, match="No space"):
            await source.fetch_batch(batch, {m.media_id: Full() for m in batch})


async def test_credentials_do_not_follow_a_redirected_export() -> None:
    async with recorder(ZipRecorder) as sim, recorder(ZipRecorder) as elsewhere, reading(sim) as source:
        batch = await media(source)
        sim.fault("redirect", "zip", value=f"{elsewhere.base_url}/rest/api/v1/recordings/audio")
        with pytest.raises(Refused, match="base_url"):
            await source.fetch_batch(batch, {m.media_id: Kept() for m in batch})
    assert not elsewhere.seen


# -- the simulator holds to the vendor's page --------------------------------------------------------------------------

API = "/rest/api/v1"


async def answer(sim: ChronicallSimulator, method: str, path: str, **how: Any) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {sim.token}", **how.pop("headers", {})}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{sim.base_url}{API}{path}", headers=headers, **how) as response,
    ):
        return response.status, await response.read()


def a_key(sim: ChronicallSimulator, call: Call | None = None) -> str:
    return sim.parts(call or sim.calls[1])[0].key


async def test_page_every_request_needs_a_valid_authentication_key() -> None:
    async with recorder() as sim:
        key = a_key(sim)
        span = "startTime=0&endTime=9999999999999"
        requests = [
            ("GET", f"/recordings?{span}"),
            ("GET", f"/recordings/{key}/audio"),
            ("GET", f"/calls/{sim.call_key(sim.calls[1])}/recordings"),
            ("POST", "/recordings/audio"),
            ("POST", f"/recordings/{key}/external-listen-link"),
        ]
        for method, path in requests:
            for header in ("", "Bearer wrong", sim.token, f"Basic {sim.token}"):
                assert (await answer(sim, method, path, headers={"Authorization": header}))[0] == 401, path


async def test_page_spx_is_the_default_format_and_others_than_spx_and_wav_are_bad_requests() -> None:
    async with recorder() as sim:
        path, keys = f"/recordings/{a_key(sim)}/audio", {"recordingKeys": [a_key(sim)]}
        assert (await answer(sim, "GET", path))[1] == (await answer(sim, "GET", f"{path}?format=spx"))[1]
        assert (await answer(sim, "GET", f"{path}?format=wav"))[1].startswith(b"RIFF")
        assert (await answer(sim, "GET", f"{path}?format=mp3"))[0] == 400
        assert (await answer(sim, "POST", "/recordings/audio?format=mp3", json=keys))[0] == 400


async def test_page_an_unknown_key_is_404_and_a_recording_out_of_rights_is_403() -> None:
    async with recorder() as sim:
        sim.calls[2].extra["hidden"] = True
        hidden, call = a_key(sim, sim.calls[2]), sim.call_key(sim.calls[2])
        assert (await answer(sim, "GET", "/recordings/nonsense/audio"))[0] == 404
        assert (await answer(sim, "GET", f"/recordings/{hidden}/audio"))[0] == 403
        assert (await answer(sim, "GET", f"/calls/{call}/recordings"))[0] == 403
        assert (await answer(sim, "POST", "/recordings/nonsense/external-listen-link"))[0] == 404
        assert (await answer(sim, "POST", f"/recordings/{hidden}/external-listen-link"))[0] == 403
        assert (await answer(sim, "POST", "/recordings/audio", json={"recordingKeys": [hidden]}))[0] == 403


async def test_page_an_export_takes_keys_or_a_time_frame_in_json_and_returns_audio_and_details() -> None:
    async with recorder() as sim:
        frame = {"startTime": str(int(HOUR.start.timestamp() * 1000)), "endTime": str(int(NOW.timestamp() * 1000))}
        for body, count in (({"recordingKeys": [a_key(sim)]}, 1), (frame, len(sim.truth()))):
            status, packed = await answer(sim, "POST", "/recordings/audio", json=body)
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                assert (status, len(archive.namelist())) == (200, count + 1)
        for body in (b"", b"{", b"[]", b'{"recordingKeys":"x"}', b'{"startTime":"1"}'):
            assert (await answer(sim, "POST", "/recordings/audio", data=body))[0] == 400, body


async def test_page_a_listen_link_is_json() -> None:
    async with recorder() as sim:
        status, body = await answer(sim, "POST", f"/recordings/{a_key(sim)}/external-listen-link")
    assert status == 200
    assert b"index.html?id\\u003d" in body
    assert json.loads(body)["listenLink"].startswith("http://www.my-chronicall.com/extlisten/recording/index.html?id")


async def test_page_a_list_may_be_empty_and_holds_just_the_fields_of_the_sample() -> None:
    async with recorder() as sim:
        assert await answer(sim, "GET", "/recordings?startTime=0&endTime=1") == (200, b"[]")
        rows = json.loads((await answer(sim, "GET", "/recordings?startTime=0&endTime=9999999999999"))[1])
        assert all(set(row) == set(ROW) for row in rows)
    async with recorder(CloudRecorder) as sim:
        assert set(sim._row(sim.parts(sim.calls[1])[0])) == set(ROW_V2)
