"""Noojee: the contract, the vendor's pages statement by statement, clock changes, and ids from a file."""

import asyncio
import hashlib
import json
import shutil
import time
import zlib
from datetime import UTC, date, datetime, timedelta
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

import aiohttp
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from archiver.errors import BadData, Gone, NotReady, Refused, TryAgain, WrongZone
from archiver.model import Availability, Direction, ListingKey, Medium, Recording, Window
from archiver.ports import Follows, LooksUp, lists_by_time
from archiver.simulators.base import Clock
from archiver.simulators.noojee import ROUTE_USER, NoojeeSimulator
from archiver.sources import noojee_legs as legs
from archiver.sources.kit.idfile import Feed, line_id
from archiver.sources.kit.localtime import clock_hours, epoch
from archiver.sources.noojee import Noojee, NoojeeOptions
from archiver.sources.noojee_api import meaning, message, unwrapped
from archiver.testing.sources import NOW, Kept, SourceContract, build, opened
from tests.commands import until

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
MELBOURNE = ZoneInfo("Australia/Melbourne")
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}
MINIMAL = {
    "kind": "noojee",
    "base_url": "https://pbx.example.com",
    "api_key": "k-1234567",
    "timezone": "Australia/Perth",
}
#: The vendor's own examples.
PAGE = {
    "Source": "400", "Leg": "1", "Start": "2014-02-13 17:06:52.0", "Tag": "1234", "Duration": "4", "Username": "Fred",
    "CallRecordId": "198348", "UniqueId": "1392271611.238", "DID": "internal", "Direction": "2", "Destination": "410",
}  # fmt: skip
HOURLY = {
    "Destination": "123", "UniqueId": "1631595787.5", "Username": "NoojeeAdmin", "Tag": "", "Duration": "4",
    "Start": "Tue Sep 14 15:03:30 AEST 2021", "Direction": "Inbound", "CallRecordId": "6468", "DID": "7601",
    "Source": "500", "callend": "Tue Sep 14 15:03:34 AEST 2021", "Leg": "1",
}  # fmt: skip


class Hash(NoojeeSimulator):
    auth = "hash"


class Ids(Hash):
    """As the vendor's page has it: no listing at all."""

    listing = "none"


class TestNoojeeByKey(SourceContract):
    simulator = NoojeeSimulator
    source = Noojee


class TestNoojeeByHash(SourceContract):
    simulator = Hash
    source = Noojee


class TestNoojeeWithErrorsInside200(SourceContract):
    class simulator(NoojeeSimulator):  # noqa: N801
        errors_in_200 = True
        words_everywhere = True

    source = Noojee


@pytest.fixture
async def sim():
    async with NoojeeSimulator(seed=3, clock=Clock(NOW)) as simulator:
        yield simulator


@pytest.fixture
async def hashed():
    async with Hash(seed=3, clock=Clock(NOW)) as simulator:
        yield simulator


@pytest.fixture
async def live():
    """A server without a listing, in the present."""
    async with Ids(seed=3) as simulator:
        yield simulator


def settings(sim, **more):
    return {**sim.options(), "timeout": "2s", **more}


def reading(sim, **more):
    return opened(Noojee, settings(sim, **more))


def read(row, zone=MELBOURNE, now=NOW, ended=()):
    reader = legs.Reader(zone, ROUTE_USER, 8 * HOUR)
    rows = row if isinstance(row, list) else [row]
    return reader.recording(rows[0]["UniqueId"], rows, now, ended)


def a_call(sim, **changes):
    how = {"duration": timedelta(seconds=40), "direction": Direction.INBOUND, "extra": {"legs": 3, "tag": "case 7"}}
    how |= changes
    start = how.pop("start", NOW - 2 * HOUR)
    return sim.add_call(start, how.pop("duration"), **how)


async def one(source, sim, call):
    (found,) = (await source.look_up([sim.unique_id(call)])).recordings
    return found


def leg_of(unique_id="1392271611.238", leg="1", tag="case 7"):
    ref = {"uniqueId": unique_id, "leg": leg, "tag": tag, "callRecordId": "1"}
    return Medium(recording_id=unique_id, media_id="1", ref=ref)


# -- "4.1 Retrieve Meta Data", statement by statement ----------------------------------------------------------------


def test_the_page_s_example_is_read_field_by_field():
    """17:06:52 in Melbourne's summer is 06:06:52 UTC, 41 s after the second in the UniqueId."""
    recording, rejected = read(PAGE)
    assert not rejected
    assert recording.recording_id == recording.call_id == "1392271611.238"
    assert recording.started_at == datetime(2014, 2, 13, 6, 6, 52, tzinfo=UTC)
    assert recording.ended_at == datetime(2014, 2, 13, 6, 6, 56, tzinfo=UTC)
    assert recording.duration == timedelta(seconds=4)
    assert recording.direction is Direction.INTERNAL
    assert (recording.caller, recording.callee, recording.agent) == ("400", "410", "Fred")
    assert recording.attributes == {"tags": ["1234"]}
    assert recording.raw == {"legs": [PAGE]}
    (medium,) = recording.media
    assert medium.media_id == "198348"
    assert medium.duration == timedelta(seconds=4)
    assert medium.ref == {"uniqueId": "1392271611.238", "leg": "1", "tag": "1234", "callRecordId": "198348"}


def test_the_hour_listing_s_example_is_read_field_by_field():
    recording, rejected = read(HOURLY)
    assert not rejected
    assert recording.started_at == datetime(2021, 9, 14, 5, 3, 30, tzinfo=UTC)
    assert recording.ended_at == datetime(2021, 9, 14, 5, 3, 34, tzinfo=UTC)
    assert recording.direction is Direction.INBOUND
    assert recording.attributes == {"did": "7601"}


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("0", Direction.INBOUND),
        ("1", Direction.OUTBOUND),
        ("2", Direction.INTERNAL),
        ("Inbound", Direction.INBOUND),
        ("OUTBOUND", Direction.OUTBOUND),
        ("internal", Direction.INTERNAL),
        ("3", Direction.UNKNOWN),
        ("", Direction.UNKNOWN),
    ],
)
def test_a_direction_is_a_digit_or_a_word(told, meant):
    assert read(PAGE | {"Direction": told})[0].direction is meant


async def test_only_posts_are_accepted_and_only_posts_are_sent(sim):
    call = a_call(sim)
    async with aiohttp.ClientSession() as session:
        for path in ("retrieveMetaDataByUniqueId?uniqueId=1.2", "retrieveByUniqueId?uniqueId=1.2&leg=1"):
            async with session.get(f"{sim.base_url}{sim.prefix}/RecordingAPI/{path}&apiKey={sim.api_key}") as response:
                assert response.status == 405
    sim.seen.clear()
    async with reading(sim) as source:
        await source.check()
        await source.list(Window(NOW - 2 * HOUR, NOW))
        await source.fetch((await one(source, sim, call)).media[0], Kept())
    assert {seen.method for seen in sim.seen} == {"POST"}
    assert {seen.headers["Content-Type"] for seen in sim.seen} == {FORM["Content-Type"]}
    assert {seen.headers["Content-Length"] for seen in sim.seen} == {"0"}
    assert {seen.status for seen in sim.seen} == {200}


async def test_every_leg_is_a_medium_with_its_own_audio(sim):
    call = a_call(sim, extra={"legs": 5})
    async with reading(sim) as source:
        recording = await one(source, sim, call)
        sounds = {}
        for medium in recording.media:
            kept = Kept()
            await source.fetch(medium, kept)
            sounds[medium.media_id] = bytes(kept.data)
    assert sounds == sim.expected(call)[recording.recording_id].audio
    assert len(set(sounds.values())) == 5


async def test_the_owner_of_an_unanswered_leg_is_no_agent(sim):
    call = a_call(sim)
    async with reading(sim) as source:
        recording = await one(source, sim, call)
    assert recording.raw["legs"][0]["Username"] == ROUTE_USER
    assert recording.agent == call.agent[0]
    assert recording.callee == call.agent[1]
    assert ROUTE_USER not in {p.user for p in recording.parties}
    assert recording.events[0].party == ROUTE_USER


async def test_the_owner_of_unanswered_legs_is_an_option(sim):
    """Administrator is what the route's default user is called typically."""
    call = a_call(sim)
    async with reading(sim, default_user=call.agent[0]) as source:
        recording = await one(source, sim, call)
    assert recording.agent == ROUTE_USER
    assert call.agent[0] not in {p.user for p in recording.parties}


@pytest.mark.parametrize("told", ["", None])
def test_a_caller_id_that_is_not_available_is_none(told):
    recording, rejected = read(HOURLY | {"Source": told})
    assert (recording.caller, rejected) == (None, [])
    assert [p.role for p in recording.parties] == ["agent"]


def test_an_outbound_call_goes_from_the_agent_s_extension_to_the_dialled_number():
    recording, _ = read(PAGE | {"Direction": "1", "Source": "400", "Destination": "0386001234", "DID": ""})
    assert (recording.caller, recording.callee, recording.agent) == ("400", "0386001234", "Fred")
    assert [(p.role, p.number) for p in recording.parties] == [("caller", "400"), ("agent", "400")]


async def test_recording_that_was_switched_on_late_starts_late(sim):
    call = a_call(sim, duration=timedelta(minutes=10), extra={"legs": 2, "late": 400})
    with capture_logs() as logs:
        async with reading(sim) as source:
            recording = await one(source, sim, call)
    assert recording.started_at == call.start.replace(microsecond=0) + timedelta(seconds=400)
    assert not logs


def test_a_map_is_as_good_as_an_array_of_one():
    assert unwrapped(PAGE, "x") == [PAGE]


def test_legs_are_told_in_their_order_and_once():
    rows = [
        PAGE | {"Leg": str(n), "CallRecordId": str(n), "Start": f"2014-02-13 17:{n:02}:00.0"} for n in (10, 2, 9, 2)
    ]
    recording, _ = read(rows)
    assert [m.ref["leg"] for m in recording.media] == ["2", "9", "10"]


def test_a_leg_without_a_record_id_is_known_by_its_number():
    assert read(PAGE | {"CallRecordId": ""})[0].media[0].media_id == "leg-1"


def test_values_are_read_whether_they_are_texts_or_numbers():
    as_numbers = PAGE | {"Leg": 1, "Duration": 4, "CallRecordId": 198348, "Direction": 2}
    assert read(as_numbers)[0].media == read(PAGE)[0].media


# -- the hour listing ------------------------------------------------------------------------------------------------


async def test_a_window_asks_for_each_hour_of_the_server_s_clock_that_it_touches(sim):
    async with reading(sim) as source:
        await source.list(Window(datetime(2021, 9, 14, 5, tzinfo=UTC), datetime(2021, 9, 14, 6, tzinfo=UTC)))
        await source.list(
            Window(datetime(2021, 9, 14, 13, 50, tzinfo=UTC), datetime(2021, 9, 14, 15, 0, 1, tzinfo=UTC))
        )
    assert sim.hours_asked == [("2021/09/14", 15), ("2021/09/14", 23), ("2021/09/15", 0), ("2021/09/15", 1)]


@pytest.mark.parametrize("zone", ["Australia/Adelaide", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_zones_with_broken_hours_miss_no_clock_hour(zone):
    """Lord Howe's clock changes by half an hour."""
    here = ZoneInfo(zone)
    for start in (datetime(2024, 4, 6, 12, tzinfo=UTC), datetime(2024, 10, 5, 12, tzinfo=UTC)):
        asked = clock_hours(Window(start, start + 8 * HOUR), here)
        minutes = [(start + n * MINUTE).astimezone(here) for n in range(8 * 60)]
        assert asked == list(dict.fromkeys((m.date(), m.hour) for m in minutes))


def test_a_skipped_hour_is_never_asked_and_a_doubled_one_once():
    spring = clock_hours(
        Window(datetime(2024, 10, 5, 14, tzinfo=UTC), datetime(2024, 10, 5, 18, tzinfo=UTC)), MELBOURNE
    )
    assert spring == [(date(2024, 10, 6), h) for h in (0, 1, 3, 4)]
    autumn = clock_hours(Window(datetime(2024, 4, 6, 14, tzinfo=UTC), datetime(2024, 4, 6, 18, tzinfo=UTC)), MELBOURNE)
    assert autumn == [(date(2024, 4, 7), h) for h in (1, 2, 3)]


@pytest.mark.parametrize("simulator", [NoojeeSimulator, Hash])
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize(
    "midnight", [datetime(2024, 4, 6, 13, tzinfo=UTC), datetime(2024, 10, 5, 13, tzinfo=UTC)], ids=["autumn", "spring"]
)
async def test_a_call_a_minute_through_a_clock_change_is_all_there_with_the_right_times(simulator, words, midnight):
    """Six hours around 02:00/03:00 in Melbourne; legs of up to half an hour cross the change."""
    async with simulator(seed=5, clock=Clock(midnight + timedelta(days=1))) as sim:
        sim.words_everywhere = words
        for n in range(0, 360, 1 if simulator is NoojeeSimulator else 4):
            length = timedelta(minutes=29) if n % 7 == 0 else timedelta(seconds=20)
            sim.add_call(midnight + n * MINUTE, length)
        found = {}
        with capture_logs() as logs:
            async with reading(sim) as source:
                for h in range(8):
                    window = Window(midnight + h * HOUR, midnight + (h + 1) * HOUR)
                    found |= {r.recording_id: r for r in (await source.list(window)).recordings}
        truth = sim.truth()
        assert set(found) == set(truth)
        for i, expected in truth.items():
            assert found[i].started_at == expected.fields["started_at"], found[i].raw
            assert found[i].ended_at == expected.fields["ended_at"], found[i].raw
            assert [e.at for e in found[i].events] == [e.at for e in expected.fields["events"]]
            assert {m.media_id for m in found[i].media} == set(expected.audio)
        assert not logs


async def test_a_call_reads_the_same_in_whichever_hour_it_is_met(sim):
    """Else each re-listing of a long call would look like a change."""
    call = a_call(sim, start=NOW - 4 * HOUR, duration=3 * HOUR, extra={"legs": 4})
    async with reading(sim) as source:
        met = [
            recording
            for h in range(5)
            for recording in (await source.list(Window(NOW - (5 - h) * HOUR, NOW - (4 - h) * HOUR))).recordings
        ]
    assert len(met) > 1
    assert {m.digest() for m in met} == {met[0].digest()}
    assert len(met[0].media) == len(sim.legs(call))


async def test_a_call_that_goes_on_is_told_again_when_its_next_leg_ends(sim):
    call = a_call(sim, start=NOW - 50 * MINUTE, duration=90 * MINUTE, extra={"legs": 4})
    async with reading(sim) as source:
        before = await one(source, sim, call)
        sim.clock.advance(HOUR)
        (after,) = (await source.list(Window(NOW, NOW + HOUR))).recordings
    assert len(before.media) < 4 == len(after.media)
    assert before.media == after.media[: len(before.media)]


async def test_hours_are_asked_no_faster_than_the_interval():
    async with NoojeeSimulator(seed=3, clock=Clock(NOW)) as sim:
        sim.hour_interval = 0.15
        async with reading(sim) as source:
            began = time.monotonic()
            await asyncio.gather(*(source.list(Window(NOW - n * HOUR, NOW - (n - 1) * HOUR)) for n in (1, 2, 3)))
        assert time.monotonic() - began >= 0.3
        assert [s.status for s in sim.seen if s.on == "list"] == [200] * 3


@pytest.mark.parametrize("status", [400, 409, 429, 503])
async def test_an_hour_asked_too_early_is_asked_again_after_the_interval(sim, status):
    """Another process may have asked just before; which status that gets is not published."""
    sim.hour_interval, sim.too_often = 60, status
    async with reading(sim, hour_interval="0s") as source, reading(sim) as other:
        await source.list(Window(NOW - HOUR, NOW))
        with pytest.raises(TryAgain) as caught:
            await other.list(Window(NOW - HOUR, NOW))
    assert caught.value.retry_after == MINUTE


async def test_an_hour_long_past_is_not_asked_twice_by_neighbouring_windows(sim):
    """A second call a minute saved: half of a backfill's time where windows and clock hours do not meet."""
    a_call(sim, start=NOW - 90 * MINUTE)
    async with reading(sim, hour_interval="50ms") as source:
        windows = [Window(NOW - n * HOUR - 30 * MINUTE, NOW - (n - 1) * HOUR - 30 * MINUTE) for n in (1, 2, 3)]
        found = [r.recording_id for w in windows for r in (await source.list(w)).recordings]
    assert len(sim.hours_asked) == len(set(sim.hours_asked)) == 4
    assert len(found) == 2


@pytest.mark.parametrize(
    "told",
    ["service not available", "method not found", "The recording store was not found", "no longer supported", ""],
)
async def test_an_error_is_never_a_quiet_hour(sim, told):
    async with reading(sim) as source:
        sim.fault("error_in_200", "list", value=told)
        with pytest.raises((TryAgain, BadData)):
            await source.list(Window(NOW - HOUR, NOW))


async def test_an_hour_that_is_said_to_hold_nothing_is_empty(sim):
    async with reading(sim) as source:
        sim.fault("error_in_200", "list", value="No matching recordings were found")
        assert not (await source.list(Window(NOW - HOUR, NOW))).recordings


async def test_a_wrong_prefix_is_never_a_quiet_hour(sim):
    async with reading(sim, prefix="/elsewhere") as source:
        with pytest.raises(TryAgain, match="404"):
            await source.list(Window(NOW - HOUR, NOW))


async def test_legs_that_the_look_up_does_not_tell_are_taken_from_the_hour(sim):
    call = a_call(sim)
    sim.fault("status", "unique_id", value=404, times=-1)
    async with reading(sim) as source:
        (recording,) = (await source.list(Window(NOW - 2 * HOUR, NOW - HOUR))).recordings
    assert len(recording.media) == 3
    assert recording.started_at == sim.legs(call)[0].start


async def test_a_look_up_that_fails_leaves_the_window_open(sim):
    a_call(sim)
    async with reading(sim) as source:
        sim.fault("status", "unique_id", value=500, times=-1)
        with pytest.raises(TryAgain):
            await source.list(Window(NOW - 2 * HOUR, NOW - HOUR))


async def test_a_list_of_another_kind_is_read(sim):
    """``{"type":…,"code":0,"message":…,"entities":[…]}``"""
    assert unwrapped({"type": "x", "code": 0, "message": "", "entities": [PAGE]}, "x") == [PAGE]
    assert unwrapped({"Code": 3, "Message": "a notice", "entities": [PAGE]}, "x") == [PAGE]
    with pytest.raises(TryAgain):
        unwrapped({"code": -3, "message": "broken", "entities": []}, "x")


# -- rows that can't be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start", ["31st of never", "", "2014-02-13", "Tue Foo 14 15:03:30 AEST 2021", "0000-00-00 00:00:00.0"]
)
def test_a_leg_with_an_unreadable_date_is_rejected_alone(start):
    recording, rejected = read([PAGE | {"Start": start}, PAGE | {"Leg": "2", "CallRecordId": "198349"}])
    assert [m.media_id for m in recording.media] == ["198349"]
    assert "date" in rejected[0].reason
    assert json.loads(rejected[0].raw)["CallRecordId"] == "198348"


@pytest.mark.parametrize("leg", ["", "one", "-1", "9" * 5000])
def test_a_leg_without_a_number_is_rejected(leg):
    recording, rejected = read(PAGE | {"Leg": leg})
    assert recording is None
    assert len(rejected[0].raw) <= 4096


async def test_a_row_without_a_unique_id_is_rejected(sim):
    a_call(sim)
    sim.fault("no_id", "row", times=1)
    async with reading(sim) as source:
        listing = await source.list(Window(NOW - 2 * HOUR, NOW - HOUR))
    assert len(listing.recordings) == len(listing.rejected) == 1
    assert len(listing.recordings[0].media) == 3


async def test_a_bad_row_of_a_listing_spoils_no_other(sim):
    calls = [a_call(sim) for _ in range(4)]
    sim.fault("bad_row", "row", times=-1, match=sim.unique_id(calls[0]))
    async with reading(sim) as source:
        listing = await source.list(Window(NOW - 2 * HOUR, NOW - HOUR))
    assert {r.recording_id for r in listing.recordings} == {sim.unique_id(c) for c in calls[1:]}
    assert len(listing.rejected) == 3


@pytest.mark.parametrize("rows", [[None], ["x"], [[PAGE]], [{}], [{"UniqueId": None}], [{"UniqueId": "  "}]])
def test_things_that_are_no_rows_are_rejected(rows):
    calls, rejected = legs.by_call(rows)
    assert not calls
    assert len(rejected) == 1


@pytest.mark.parametrize("year", ["1970-01-01 10:00:00.0", "2199-01-01 00:00:00.0"])
def test_a_date_beyond_belief_is_a_normal_row(year):
    assert read(PAGE | {"Start": year})[0].started_at.year in {1970, 2198, 2199}


# -- legs that run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["0", "", None, "running"])
def test_a_leg_without_a_duration_is_not_ready_until_no_call_can_last_longer(told):
    start = datetime(2014, 2, 13, 6, 6, 52, tzinfo=UTC)
    young, _ = read(PAGE | {"Duration": told}, now=start + HOUR)
    old, _ = read(PAGE | {"Duration": told}, now=start + 9 * HOUR)
    assert young.media[0].availability is Availability.NOT_READY
    assert old.media[0].availability is Availability.READY
    assert young.media[0].duration is None


def test_a_leg_that_the_hour_listing_told_has_ended_whatever_its_duration():
    start = datetime(2014, 2, 13, 6, 6, 52, tzinfo=UTC)
    recording, _ = read(PAGE | {"Duration": "0"}, now=start + HOUR, ended={"198348"})
    assert recording.media[0].availability is Availability.READY


def test_an_end_without_a_duration_is_the_row_s_own():
    recording, _ = read(HOURLY | {"Duration": ""})
    assert recording.ended_at == datetime(2021, 9, 14, 5, 3, 34, tzinfo=UTC)


async def test_a_running_leg_in_a_look_up_waits_for_its_end(live):
    live.shows_running = True
    call = a_call(live, start=datetime.now(UTC) - 10 * MINUTE, duration=30 * MINUTE, extra={"legs": 1})
    async with reading(live) as source:
        assert (await one(source, live, call)).media[0].availability is Availability.NOT_READY
        live.clock.advance(HOUR)
        assert (await one(source, live, call)).media[0].availability is Availability.READY


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "after", "meant"),
    [
        ("Sun Apr 07 02:30:00 AEDT 2024", None, "2024-04-06T15:30"),
        ("Sun Apr 07 02:30:00 AEST 2024", None, "2024-04-06T16:30"),
        ("Sun Apr 07 02:30:00 EST 2024", "2024-04-06T16:29", "2024-04-06T16:30"),
        ("Sun Apr 07 02:30:00 EST 2024", "2024-04-06T15:29", "2024-04-06T15:30"),
        ("2024-04-07 02:30:00.0", "2024-04-06T15:29", "2024-04-06T15:30"),
        ("2024-04-07 02:30:00.0", "2024-04-06T16:29", "2024-04-06T16:30"),
        ("2024-04-07 02:30:00.0", "2024-04-06T16:31", "2024-04-06T16:30"),
        ("2024-04-07 02:30:00.0", None, "2024-04-06T15:30"),
        ("2024-04-07 02:30:00", "2024-04-06T16:29", "2024-04-06T16:30"),
        ("Sun Apr 07 12:30:00 EST 2024", None, "2024-04-07T02:30"),
    ],
)
def test_the_doubled_hour_is_told_apart_by_its_letters_else_by_what_came_before(told, after, meant):
    before = datetime.fromisoformat(after).replace(tzinfo=UTC) if after else None
    assert legs.moment(told, MELBOURNE, before) == datetime.fromisoformat(meant).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("unique_id", "second"),
    [("1392271611.238", 1392271611), ("pbx1-1392271611.238", 1392271611), ("12.3", None), ("x", None), ("", None)],
)
def test_a_unique_id_begins_with_a_second(unique_id, second):
    assert epoch(unique_id) == second


async def test_a_source_with_a_wrong_time_zone_is_refused_until_it_is_right(live, tmp_path):
    ids = tmp_path / "ids"
    calls = [a_call(live, start=datetime.now(UTC) - n * HOUR) for n in (2, 3, 4)]
    ids.write_text("".join(f"{live.unique_id(c)}\n" for c in calls))
    async with reading(live, timezone="Australia/Perth", ids_file=ids) as source:
        # One call may look like it by chance.
        await source.look_up([live.unique_id(calls[0])])
        with pytest.raises(WrongZone, match=r"timezone Australia/Perth is off by \+[23]:00:00"):
            await source.look_up([live.unique_id(c) for c in calls])
        with pytest.raises(WrongZone):
            await source.follow(None)


async def test_the_right_time_zone_is_not_warned_about(live, tmp_path):
    ids = tmp_path / "ids"
    call = a_call(live, start=datetime.now(UTC) - HOUR)
    ids.write_text(f"{live.unique_id(call)}\n")
    async with reading(live, ids_file=ids) as source:
        said = await source.check()
    assert "off timezone" not in said
    assert "of 1 id tried 1 known" in said


# -- authentication --------------------------------------------------------------------------------------------------


async def test_a_hash_is_the_sha256_of_the_key_and_the_server_s_time_verbatim(hashed):
    async with reading(hashed, listing="none") as source:
        await source.check()
    asked = parse_qs(hashed.seen[-1].query)
    (stamp,) = asked["timeStamp"]
    assert asked["hash"] == [hashlib.sha256(f"{hashed.api_key}:{stamp}".encode()).hexdigest()]
    assert asked["uniqueId"] == ["0.0"]
    assert [seen.on for seen in hashed.seen] == ["time", "unique_id"]
    assert hashed.api_key not in hashed.seen[-1].query


async def test_each_call_has_a_time_of_its_own(hashed):
    for _ in range(6):
        a_call(hashed)
    async with reading(hashed) as source:
        await source.list(Window(NOW - 2 * HOUR, NOW))
    calls = [seen for seen in hashed.seen if seen.on != "time"]
    assert hashed.count("time") == len(calls)
    assert len({parse_qs(seen.query)["timeStamp"][0] for seen in calls}) == len(calls)
    assert all(seen.status == 200 for seen in hashed.seen)


async def test_never_more_than_four_authentications_wait_at_once(hashed):
    call = a_call(hashed)
    async with reading(hashed, concurrency=50) as source:
        media = (await one(source, hashed, call)).media
        await asyncio.gather(*(source.fetch(medium, Kept()) for medium in media * 15))
    assert 1 < hashed.most_waiting <= 4
    assert all(seen.status == 200 for seen in hashed.seen)


async def test_a_narrowed_gate_makes_no_time_stamp_wait(hashed):
    """A stamp lives ten seconds: whoever has one must find a place at once."""
    call = a_call(hashed)
    built, client = build(Noojee, settings(hashed, concurrency=4))
    media = (await one(built, hashed, call)).media
    client.gate.limit = 1
    await asyncio.gather(*(built.fetch(medium, Kept()) for medium in media * 3))
    await client.close()
    order = [seen.on for seen in hashed.seen[2:]]
    assert order == ["time", "audio"] * 9


async def test_an_expired_time_stamp_is_tried_again(hashed):
    hashed.stamp_life = 0.0
    async with reading(hashed) as source:
        with pytest.raises(TryAgain, match="expired"):
            await source.check()


async def test_too_many_authentications_are_tried_again(hashed):
    hashed.at_once = 0
    async with reading(hashed) as source:
        with pytest.raises(TryAgain, match="too many"):
            await source.check()


async def test_a_used_time_stamp_is_refused(hashed):
    """The simulator's own strictness."""
    async with aiohttp.ClientSession(headers=FORM) as session:
        async with session.post(f"{hashed.base_url}/servicemanager/rest/Time", data=b"") as response:
            stamp = (await response.text()).strip()
        digest = hashlib.sha256(f"{hashed.api_key}:{stamp}".encode()).hexdigest()
        signed = f"uniqueId=0.0&timeStamp={stamp}&hash={digest}"
        url = f"{hashed.base_url}/rest/RecordingAPI/retrieveMetaDataByUniqueId?{signed}"
        for status in (200, 401):
            async with session.post(url, data=b"") as response:
                assert response.status == status


@pytest.mark.parametrize("told", ["status", "html", "empty", "json"])
async def test_a_time_that_is_none_says_nothing_of_a_call_or_its_audio(hashed, told):
    """A 404 or 410 of the time must never read as "no such call" or "this leg was deleted"."""
    call = a_call(hashed)
    async with reading(hashed) as source:
        medium = (await one(source, hashed, call)).media[0]
        for value in (404, 410):
            hashed.fault(told, "time", value=value, times=-1)
            with pytest.raises(TryAgain, match="time_path"):
                await source.look_up(["1.2"])
            with pytest.raises(TryAgain, match="time_path"):
                await source.fetch(medium, Kept())
            hashed.faults.clear()


async def test_the_key_goes_with_each_call(sim):
    async with reading(sim) as source:
        await source.check()
    assert sim.count("time") == 0
    assert parse_qs(sim.seen[0].query)["apiKey"] == [sim.api_key]


@pytest.mark.parametrize("auth", ["key", "hash"])
async def test_a_secret_that_the_server_echoes_enters_no_message(auth):
    key = "f863246a-973e-11e6-8784-08002718f5b5"
    digest = hashlib.sha256(b"x").hexdigest()
    simulator = NoojeeSimulator if auth == "key" else Hash
    async with simulator(seed=3, clock=Clock(NOW)) as sim, reading(sim) as source:
        for text in (
            f"no call for uniqueId=0.0&apiKey={key}&hash={digest}",
            f"broken at /x?hash={digest}",
            "y" * 140 + f" {key}",
            f"apiKey: {key[:12]}",
            f"access denied {key} {digest}",
        ):
            for on in ("unique_id", "list"):
                sim.fault("error_in_200", on, value=text)
            with capture_logs() as logs, pytest.raises((TryAgain, Refused)) as caught:
                await source.list(Window(NOW - HOUR, NOW))
            said = f"{caught.value!s} {caught.value!r} {logs}"
            assert key[:10] not in said
            assert digest[:20] not in said
            sim.faults.clear()


async def test_no_log_line_holds_a_secret(hashed, tmp_path):
    ids = tmp_path / "ids"
    ids.write_text("1.1\n1.2\n")
    hashed.fault("error_in_200", "unique_id", value=f"broken: {hashed.api_key}", match="uniqueId=1.1")
    with capture_logs() as logs:
        async with reading(hashed, ids_file=ids) as source:
            await source.follow(None)
    assert any(entry["event"] == "source.id_failed" for entry in logs)
    assert hashed.api_key not in str(logs)


# -- errors inside 200 OK --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("Invalid hash", Refused),
        ("Authentication failed", Refused),
        ("The apiKey is unknown", Refused),
        ("your address is not white-listed", Refused),
        ("the hash has expired", TryAgain),
        ("too many authentication attempts", TryAgain),
        ("recording not found", NotReady),
        ("the call is still in progress", NotReady),
        ("The recording was deleted", Gone),
        ("The recording API is no longer supported", TryAgain),
        ("service not found", BadData),
        ("java.lang.NullPointerException", TryAgain),
        ("", TryAgain),
    ],
)
async def test_the_words_of_an_error_decide(sim, told, error):
    call = a_call(sim)
    async with reading(sim) as source:
        medium = (await one(source, sim, call)).media[0]
        sim.fault("error_in_200", "audio", value=told)
        kept = Kept()
        with pytest.raises(error) as caught:
            await source.fetch(medium, kept)
    assert type(caught.value) is error
    assert not kept.data


@pytest.mark.parametrize("kind", ["html", "json"])
async def test_an_error_page_is_never_audio(sim, kind):
    call = a_call(sim)
    async with reading(sim) as source:
        medium = (await one(source, sim, call)).media[0]
        sim.fault(kind, "audio")
        kept = Kept()
        with pytest.raises(TryAgain):
            await source.fetch(medium, kept)
    assert not kept.data


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("Invalid hash", Refused),
        ("hash expired", TryAgain),
        ("Recording service not available", TryAgain),
        ("", TryAgain),
    ],
)
async def test_an_error_of_a_look_up_is_raised(sim, told, error):
    async with reading(sim) as source:
        sim.fault("error_in_200", "unique_id", value=told, times=-1)
        with pytest.raises(error):
            await source.look_up(["1.2"])


@pytest.mark.parametrize("told", ["Call not found", "no such call", "no recordings", "the call was deleted"])
async def test_an_error_that_says_there_is_none_is_none(sim, told):
    async with reading(sim) as source:
        sim.fault("error_in_200", "unique_id", value=told)
        assert not (await source.look_up(["1.2"])).recordings


def test_both_envelopes_are_understood():
    assert message(b'{"Code":-1,"Message":"a\\nb"}') == "a b"
    assert message(b'{"code":-1,"message":"x"}') == "x"
    assert message(b"<html> no </html>") == "<html> no </html>"
    assert isinstance(meaning("x"), TryAgain)
    assert unwrapped(None, "x") == []
    with pytest.raises(BadData):
        unwrapped(7, "x")


async def test_audio_may_come_in_any_pieces_and_with_any_label(sim):
    call = a_call(sim)
    async with reading(sim) as source:
        recording = await one(source, sim, call)
        sim.fault("drip", "audio", value=0.001)
        sim.fault("mislabel", "audio")
        for medium in recording.media[:2]:
            kept = Kept()
            await source.fetch(medium, kept)
            assert bytes(kept.data) == sim.expected(call)[recording.recording_id].audio[medium.media_id]


# -- look-ups --------------------------------------------------------------------------------------------------------


async def test_a_look_up_that_begins_without_a_share_of_the_recorder_goes_on_when_there_is_one(live):
    calls = [a_call(live, start=datetime.now(UTC) - HOUR) for _ in range(6)]
    source, client = build(Noojee, settings(live))
    try:
        # As the engine does while the database answers too late for the share to be renewed.
        client.gate.limit = 0
        asked = asyncio.create_task(source.look_up([live.unique_id(c) for c in calls]))
        await until(lambda: client.gate.waiting or source._api._turns.waiting)
        client.gate.limit = 2
        assert len((await asyncio.wait_for(asked, 60)).recordings) == 6
    finally:
        await client.close()


async def test_calls_are_looked_up_by_unique_id(live):
    calls = [a_call(live, start=datetime.now(UTC) - HOUR) for _ in range(9)]
    async with reading(live) as source:
        assert isinstance(source, LooksUp)
        wanted = [live.unique_id(c) for c in calls]
        listing = await source.look_up([*wanted, wanted[0], " ", "1392271611.999"])
        assert not (await source.list(Window(NOW, NOW + HOUR))).recordings
    assert sorted(r.recording_id for r in listing.recordings) == sorted(wanted)
    truth = live.truth()
    for recording in listing.recordings:
        assert {m.media_id for m in recording.media} == set(truth[recording.recording_id].audio)
    assert live.count("list") == 0


async def test_calls_are_looked_up_by_tag(live):
    first, second = (a_call(live, start=datetime.now(UTC) - HOUR) for _ in range(2))
    untagged = a_call(live, start=datetime.now(UTC) - HOUR, extra={"tag": "", "legs": 1})
    async with reading(live, lookup="tag") as source:
        listing = await source.look_up(["case 7", "case 8"])
    assert {r.recording_id for r in listing.recordings} == {live.unique_id(first), live.unique_id(second)}
    assert live.unique_id(untagged) not in str(listing)
    assert all(len(r.media) == 3 for r in listing.recordings)


async def test_audio_by_tag_where_that_is_all_the_server_has(live):
    call = a_call(live, start=datetime.now(UTC) - HOUR, extra={"tag": "a & b/ü?", "legs": 2})
    bare = a_call(live, start=datetime.now(UTC) - HOUR, extra={"tag": "", "legs": 1})
    async with reading(live, audio_path="{prefix}/RecordingAPI/retrieve?tag={tag}&leg={leg}") as source:
        recording = await one(source, live, call)
        kept = Kept()
        await source.fetch(recording.media[1], kept)
        assert bytes(kept.data) == live.expected(call)[recording.recording_id].audio[recording.media[1].media_id]
        with pytest.raises(BadData, match="no tag"):
            await source.fetch((await one(source, live, bare)).media[0], Kept())


async def test_a_404_is_no_such_call_only_once_a_look_up_has_worked(live):
    """Before, it may as well be a wrong prefix, and no id may be lost to that."""
    async with reading(live) as source:
        fault = live.fault("status", "unique_id", value=404, times=-1)
        with pytest.raises(TryAgain, match="prefix"):
            await source.look_up(["1.1"])
        fault.match = "uniqueId=1.1"
        await source.look_up(["1.2"])
        assert not (await source.look_up(["1.1"])).recordings


async def test_a_hopeless_batch_is_given_up_early(live):
    live.fault("status", "unique_id", value=500, times=-1)
    async with reading(live) as source:
        with pytest.raises(TryAgain):
            await source.look_up([f"1.{n}" for n in range(500)])
    assert live.count("unique_id") < 20


async def test_check_tries_the_audio_of_the_last_id(live, ids):
    old = a_call(live, start=datetime.now(UTC) - 300 * HOUR, deleted_at=datetime.now(UTC))
    new = a_call(live, start=datetime.now(UTC) - 3 * HOUR)
    ids.write_text(f"{live.unique_id(old)}\n" + "# filled up\n" * 2000 + f"{live.unique_id(new)}")
    async with reading(live, ids_file=ids) as source:
        assert (await source.check()).endswith("of 1 id tried 1 known; audio comes as audio/wav")
        await source.check()
    assert live.count("audio") == 1, "once is enough"
    async with reading(live, ids_file=ids, audio_path="{prefix}/RecordingAPI/wrong?uniqueId={uniqueId}") as source:
        said = await source.check()
    assert said.startswith("warning: the audio of leg 1 of call ")
    assert "is audio_path right?" in said


async def test_check_tries_the_audio_of_the_last_hour(sim):
    sim.clock = Clock()
    over = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - HOUR
    a_call(sim, start=over - timedelta(minutes=20))
    a_call(sim, start=over + timedelta(minutes=20), duration=timedelta(seconds=4))
    async with reading(sim, settle="0s") as source:
        assert (await source.check()).endswith("1 calls in the last whole hour; audio comes as audio/wav")
        await source.check()
    assert (sim.count("list"), sim.count("audio")) == (1, 1)
    async with reading(sim, settle="0s", audio_path="{prefix}/RecordingAPI/wrong?x={callRecordId}") as source:
        assert "is audio_path right?" in await source.check()
    sim.fault("status", "list", value=429, times=-1)
    async with reading(sim, settle="0s") as source:
        assert "the last hour can't be listed" in await source.check()


@pytest.mark.parametrize("kind", ["html", "json", "empty"])
async def test_check_says_that_something_else_comes_than_audio(live, ids, kind):
    ids.write_text(live.unique_id(a_call(live, start=datetime.now(UTC) - 3 * HOUR)))
    live.fault(kind, "audio", times=-1)
    async with reading(live, ids_file=ids) as source:
        assert (await source.check()).startswith("warning: the audio of leg 1 of call ")


async def test_a_source_without_a_listing_says_so(live, sim):
    async with reading(live) as source:
        assert not lists_by_time(source)
    async with reading(sim) as source:
        assert lists_by_time(source)


async def test_check_says_what_would_never_be_found(live):
    async with reading(live) as source:
        assert "finds no calls by itself" in await source.check()
    async with reading(live, ids_from="xivo-source") as source:
        assert "finds no calls by itself" not in await source.check()
    async with reading(live, prefix="/elsewhere") as source:
        with pytest.raises(BadData, match="prefix"):
            await source.check()


# -- ids from a file -------------------------------------------------------------------------------------------------


@pytest.fixture
def ids(tmp_path):
    return tmp_path / "ids.txt"


def append(path, *lines):
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


async def followed(source, cursor=None):
    """Everything up to where there is no more at once."""
    found, rejected = [], []
    for _ in range(100):
        chapter = await source.follow(cursor)
        found += [r.recording_id for r in chapter.listing.recordings]
        rejected += chapter.listing.rejected
        cursor = chapter.cursor
        if not chapter.more:
            return found, rejected, cursor
    raise AssertionError("it never ends")


def past(sim, count, age=timedelta(days=30), **how):
    """Ids of calls that ended long ago."""
    calls = [a_call(sim, start=datetime.now(UTC) - age, **how) for _ in range(count)]
    return [sim.unique_id(c) for c in calls]


async def test_ids_that_are_appended_are_looked_up_once(live, ids):
    """However old their calls are; comments and blank lines are none."""
    known = past(live, 4)
    append(ids, "# calls of May", "", known[0], f"  {known[1]}  # late")
    async with reading(live, ids_file=ids) as source:
        assert isinstance(source, Follows)
        found, _, cursor = await followed(source)
        assert found == known[:2]
        append(ids, known[2], known[3])
        found, _, cursor = await followed(source, cursor)
        assert found == known[2:]
        asked = live.count("unique_id")
        assert (await followed(source, cursor))[0] == []
    assert live.count("unique_id") == asked == 4


async def test_half_a_line_waits_for_its_rest_and_a_last_line_needs_no_end(live, ids):
    known = past(live, 2)
    append(ids, known[0])
    with ids.open("a") as file:
        file.write(known[1][:5])
    async with reading(live, ids_file=ids) as source:
        found, _, cursor = await followed(source)
        assert found == known[:1]
        with ids.open("a") as file:
            file.write(known[1][5:])
        found, _, cursor = await followed(source, cursor)
        assert found == []
        assert (await followed(source, cursor))[0] == known[1:]


async def test_a_replaced_file_is_read_from_its_beginning(live, ids, tmp_path):
    known = past(live, 3)
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        new = tmp_path / "new"
        append(new, known[1], known[2])
        new.rename(ids)
        found, _, cursor = await followed(source, cursor)
        assert found == known[1:]
        ids.write_text(f"{known[0]}\n")
        found, _, cursor = await followed(source, cursor)
        assert found == known[:1]


async def test_a_file_that_is_written_anew_in_place_and_longer_is_noticed(live, ids):
    known = past(live, 3)
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        ids.write_text("".join(f"{i}\n" for i in (known[1], known[2])))
        assert (await followed(source, cursor))[0] == known[1:]


async def test_a_long_file_is_read_in_pieces(live, ids):
    known = past(live, 30, extra={"legs": 1}, duration=timedelta(seconds=5))
    append(ids, *[f"# {'x' * 900}\n{i}" for i in known])
    async with reading(live, ids_file=ids) as source:
        first = await source.follow(None)
        assert first.more
        assert 0 < len(first.listing.recordings) < 30
        assert (await followed(source))[0] == known


async def test_lines_that_are_no_ids_are_rejected(live, ids):
    (known,) = past(live, 1)
    ids.write_bytes(b"\x00\x01\x02\n" + b"z" * 20_000 + b"\n\xff\xfe\x07\n" + known.encode() + b"\n")
    async with reading(live, ids_file=ids) as source:
        found, rejected, _ = await followed(source)
    assert found == [known]
    assert len(rejected) >= 3
    assert live.count("unique_id") == 1


async def test_a_missing_file_is_said(live, ids):
    async with reading(live, ids_file=ids) as source:
        with pytest.raises(BadData, match=r"ids_file .*No such file"):
            await source.follow(None)
        with pytest.raises(BadData, match=r"ids_file .*No such file"):
            await source.check()


async def test_without_a_file_there_is_nothing_to_follow(live):
    async with reading(live) as source:
        chapter = await source.follow(None)
    assert not chapter.listing.recordings
    assert not chapter.more


async def test_a_file_that_was_renamed_is_read_to_its_end_before_the_new_one(live, ids):
    known = past(live, 4)
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        append(ids, known[1])
        ids.rename(ids.with_name("ids.txt.1"))
        append(ids, known[2])
        found, rejected, cursor = await followed(source, cursor)
        assert (found, rejected) == (known[1:3], [])
        # Who writes it had it open until now.
        append(ids.with_name("ids.txt.1"), known[3])
        found, rejected, cursor = await followed(source, cursor)
        assert (found, rejected) == (known[3:], [])
        assert (await followed(source, cursor))[:2] == ([], [])
    assert live.count("unique_id") == 4


@pytest.mark.parametrize("read_before", [True, False])
async def test_a_file_that_was_copied_and_truncated_is_read_to_its_end(live, ids, read_before):
    known = past(live, 4)
    append(ids, known[0], known[1])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        append(ids, known[2])
        shutil.copy(ids, ids.with_name("ids.txt-20261130"))
        ids.write_text("")
        if read_before:
            found, rejected, cursor = await followed(source, cursor)
            assert (found, rejected) == (known[2:3], [])
        append(ids, known[3])
        found, rejected, _ = await followed(source, cursor)
        assert (found, rejected) == (known[3:] if read_before else known[2:], [])
    assert live.count("unique_id") == 4


async def test_several_rotations_between_two_looks_lose_nothing(live, ids):
    known = past(live, 5)
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        append(ids, known[1])
        ids.rename(ids.with_name("ids.txt.1"))
        append(ids, known[2])
        ids.with_name("ids.txt.1").rename(ids.with_name("ids.txt.2"))
        ids.rename(ids.with_name("ids.txt.1"))
        append(ids, known[3])
        found, rejected, cursor = await followed(source, cursor)
        assert (sorted(found), rejected) == (known[1:4], [])
        append(ids, known[4])
        assert (await followed(source, cursor))[0] == known[4:]


async def test_while_the_new_file_is_not_there_yet_the_old_one_is_read_on(live, ids):
    known = past(live, 3)
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        append(ids, known[1])
        ids.rename(ids.with_name("ids.txt.1"))
        found, rejected, cursor = await followed(source, cursor)
        assert (found, rejected) == (known[1:2], [])
        append(ids, known[2])
        found, rejected, cursor = await followed(source, cursor)
        assert (found, rejected) == (known[2:], [])


async def test_a_file_that_an_editor_replaced_is_read_from_where_it_was_read_to(live, ids, tmp_path):
    known = past(live, 3)
    append(ids, known[0], known[1])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        new = tmp_path / "new"
        append(new, *known)
        ids.unlink()
        new.rename(ids)
        found, rejected, _ = await followed(source, cursor)
    assert (found, rejected) == (known[2:], [])
    assert live.count("unique_id") == 3


@pytest.mark.parametrize("how", ["removed", "rewritten", "packed"])
async def test_what_can_t_be_read_to_its_end_is_said(live, ids, how):
    known = past(live, 3)
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        append(ids, known[1])
        if how == "rewritten":
            ids.write_text("")
        else:
            # Kept from being used again: a new file could get its number.
            ids.rename(ids.with_name("elsewhere"))
            if how == "packed":
                ids.with_name("ids.txt.1.gz").write_bytes(b"packed")
                ids.with_name("elsewhere").write_text("")
            else:
                ids.with_name("elsewhere").rename(ids.parent.parent / f"elsewhere-{ids.parent.name}")
        append(ids, known[2])
        found, rejected, cursor = await followed(source, cursor)
        assert found == known[2:]
        assert [("ids_file was replaced" in r.reason, str(ids) in r.raw) for r in rejected] == [(True, True)]
        assert (await followed(source, cursor))[:2] == ([], [])


async def test_an_old_file_that_is_packed_while_it_is_read_is_said(live, ids):
    known = past(live, 2, extra={"legs": 1})
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        append(ids, *[f"# {'x' * 900}" for _ in range(20)], known[1])
        ids.rename(ids.with_name("ids.txt.1"))
        append(ids, "# new")
        chapter = await source.follow(cursor)
        assert chapter.more
        ids.with_name("ids.txt.1").rename(ids.parent.parent / f"gone-{ids.parent.name}")
        found, rejected, _ = await followed(source, chapter.cursor)
    assert (found, len(rejected)) == ([], 1)
    assert "removed before it was read to its end" in rejected[0].reason


async def test_a_cursor_of_an_earlier_version_is_read_on(live, ids):
    known = past(live, 3)
    append(ids, known[0])
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        told = json.loads(cursor)
        cursor = json.dumps({name: told[name] for name in ("inode", "size", "offset", "mark", "open")})
        append(ids, known[1])
        found, rejected, newer = await followed(source, cursor)
        assert (found, rejected) == (known[1:2], [])
        assert json.loads(newer)["crc"] == zlib.crc32(ids.read_bytes())
        # And where the first look with it finds the file rotated.
        ids.rename(ids.with_name("ids.txt.1"))
        append(ids, known[2])
        found, rejected, _ = await followed(source, cursor)
        assert (sorted(found), rejected) == (known[1:], [])


async def test_a_missing_file_holds_up_no_id_that_is_known(live, ids, monkeypatch):
    now = time.time()
    monkeypatch.setattr("archiver.sources.noojee.time.time", lambda: now)
    call = a_call(live, start=datetime.now(UTC) - 10 * MINUTE, duration=MINUTE)
    append(ids, live.unique_id(call))
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        away = ids.parent.parent / f"away-{ids.parent.name}"
        ids.rename(away)
        with pytest.raises(BadData, match="No such file"):
            await source.follow(cursor)
        now += 86400
        found, rejected, cursor = await followed(source, cursor)
        assert (found, rejected) == ([live.unique_id(call)], [])
        asked = live.count("unique_id")
        away.rename(ids)
        assert (await followed(source, cursor))[:2] == ([], [])
    assert live.count("unique_id") == asked, "it is the same file again"


async def test_a_line_that_never_ends_is_rejected_once_and_its_rest_is_no_id(live, ids):
    known = past(live, 2)
    ids.write_bytes(f"{known[0]}\n".encode() + b"z" * (3 * 8192 + 5) + f"\n{known[1]}\n".encode())
    async with reading(live, ids_file=ids) as source:
        found, rejected, _ = await followed(source)
    assert (found, len(rejected)) == (known, 1)
    assert live.count("unique_id") == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("1.1", "1.1"),
        ("  1.1\t\r", "1.1"),
        ("# 1.1", None),
        ("1.1 # late", "1.1"),
        ("1.1\t#late", "1.1"),
        ("case#7", "case#7"),
        ('" lead and trail "', " lead and trail "),
        ('"case #7"', "case #7"),
        (r'"a\tb\""', 'a\tb"'),
        ('"half', '"half'),
        ("é e\u0301", "é e\u0301"),
        ("007", "007"),
        ('"  "', "  "),
        ("", None),
        ("   ", None),
    ],
)
def test_a_line_holds_an_id(line, told):
    assert line_id(line) == told


@pytest.mark.parametrize("line", ["a\0b", "a\x1b[2J", "z" * 801, r'"a\u0000b"', r'"\ud800"'])
def test_a_line_that_is_no_id_is_refused(line):
    with pytest.raises(ValueError, match="no id"):
        line_id(line)


async def test_lines_of_any_system_are_read(live, ids):
    known = past(live, 3)
    ids.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(known).encode() + b"\r\n")
    async with reading(live, ids_file=ids) as source:
        assert (await followed(source))[:2] == (known, [])


@pytest.mark.parametrize("cursor", ["", "x", "[]", '{"offset":3,"what":1}', '{"open":7}', "null"])
async def test_a_cursor_nobody_can_read_begins_anew(live, ids, cursor):
    known = past(live, 1)
    append(ids, *known)
    async with reading(live, ids_file=ids) as source:
        assert (await followed(source, cursor))[0] == known


async def test_an_id_that_comes_before_its_call_has_ended_is_asked_until_no_call_can_last_longer(
    live, ids, monkeypatch
):
    """Its legs appear one by one, the last one an hour after the first two."""
    now = time.time()
    monkeypatch.setattr("archiver.sources.noojee.time.time", lambda: now)
    call = a_call(live, start=datetime.now(UTC) - MINUTE, duration=90 * MINUTE, extra={"legs": 3})
    append(ids, live.unique_id(call))
    told, asked = [], []
    async with reading(live, ids_file=ids, settle="5m", longest_call="3h") as source:
        cursor = None
        for _ in range(60):
            before = live.count("unique_id")
            chapter = await source.follow(cursor)
            cursor = chapter.cursor
            asked.append(live.count("unique_id") - before)
            told += [len(r.media) for r in chapter.listing.recordings]
            now += 300
            live.clock.advance(5 * MINUTE)
    assert json.loads(cursor)["open"] == {}
    assert told[-1] == 3
    assert sum(asked) <= 10
    assert asked[35] + asked[36] == 1, "once more when no call can last any longer"
    assert sum(asked[37:]) == 0


@pytest.mark.parametrize("bad", [1, 30])
async def test_ids_that_fail_alone_are_told_and_hold_up_no_other(live, ids, bad):
    """However many: more than are tried before the server is asked whether it works."""
    failing, fine = past(live, bad, extra={"legs": 1}), past(live, 5, extra={"legs": 1})
    append(ids, *failing, *fine)
    for i in failing:
        live.fault("status", "unique_id", value=500, match=f"={i}&", times=-1)
    async with reading(live, ids_file=ids) as source:
        with capture_logs() as logs:
            chapter = await source.follow(None)
        assert [r.recording_id for r in chapter.listing.recordings] == fine
        assert chapter.listing.failed == [(i, "it answered 500 Internal Server Error: out of order") for i in failing]
        assert {entry["id"] for entry in logs} == set(failing)
        asked = live.count("unique_id")
        assert (await source.follow(chapter.cursor)).listing.failed == []
        assert live.count("unique_id") == asked, "who keeps them asks for them"


async def test_an_only_id_that_fails_each_time_does_not_hold_up_what_comes_later(live, ids):
    bad, fine = past(live, 2)
    live.fault("status", "unique_id", value=500, match=f"={bad}&", times=-1)
    append(ids, bad)
    async with reading(live, ids_file=ids) as source:
        chapter = await source.follow(None)
        assert [i for i, _ in chapter.listing.failed] == [bad]
        append(ids, fine)
        assert (await followed(source, chapter.cursor))[0] == [fine]


async def test_an_id_that_failed_while_its_call_may_go_on_is_asked_once_more_at_the_end(live, ids, monkeypatch):
    now = time.time()
    monkeypatch.setattr("archiver.sources.noojee.time.time", lambda: now)
    call = a_call(live, start=datetime.now(UTC) - 10 * MINUTE, duration=MINUTE)
    append(ids, live.unique_id(call))
    live.fault("status", "unique_id", value=500, match=f"={live.unique_id(call)}&", times=1)
    async with reading(live, ids_file=ids, longest_call="3h") as source:
        _, _, cursor = await followed(source)
        now += 3600
        assert (await followed(source, cursor))[0] == []
        now += 7200
        assert (await followed(source, cursor))[0] == [live.unique_id(call)]


async def test_one_that_fails_is_named_among_those_that_are_looked_up(live):
    known = past(live, 3)
    live.fault("status", "unique_id", value=500, match=f"={known[1]}&", times=-1)
    async with reading(live) as source:
        told = await source.look_up(known)
    assert [r.recording_id for r in told.recordings] == [known[0], known[2]]
    assert [i for i, _ in told.failed] == [known[1]]


@pytest.mark.parametrize("lookup", ["unique_id", "tag"])
async def test_a_call_whose_look_up_fails_is_told_as_the_hour_tells_it(sim, lookup):
    calls = [a_call(sim), a_call(sim)]
    bad, fine = (sim.unique_id(call) for call in calls)
    sim.fault("status", "unique_id", value=500, match=f"={bad}&", times=-1)
    async with reading(sim, lookup=lookup) as source:
        told = await source.list(Window(NOW - 2 * HOUR, NOW - HOUR))
    assert {r.recording_id: len(r.media) for r in told.recordings} == {bad: 3, fine: 3}
    assert [*told.failed, *((r.raw, r.reason) for r in told.rejected)][0][0].strip('"') == bad
    assert bool(told.failed) == (lookup == "unique_id"), "a look-up by tag would not find it again"


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_while_all_fail_no_id_is_passed_over(live, ids, status):
    known = past(live, 3)
    append(ids, *known)
    async with reading(live, ids_file=ids) as source:
        fault = live.fault("status", "unique_id", value=status, times=-1)
        with pytest.raises((TryAgain, Refused)):
            await source.follow(None)
        live.faults.remove(fault)
        assert (await followed(source))[0] == known


async def test_ids_that_no_call_answers_to_are_counted(live, ids):
    append(ids, "1392271611.1", "1392271611.2", *past(live, 1))
    with capture_logs() as logs:
        async with reading(live, ids_file=ids) as source:
            await followed(source)
    assert [entry["count"] for entry in logs if entry["event"] == "source.ids_unknown"] == [2]


async def test_tags_can_be_fed_too(live, ids):
    (known,) = past(live, 1)
    append(ids, "case 7")
    async with reading(live, ids_file=ids, lookup="tag", longest_call="0s") as source:
        assert (await followed(source))[0] == [known]


def test_ids_that_were_never_asked_come_first():
    feed = Feed(open={**{f"old {n}": (5.0, 9.0) for n in range(600)}, "new": (0.0, 9.0)})
    assert feed.due(10.0)[0] == "new"


def test_many_ids_that_are_due_are_asked_in_turns():
    feed = Feed(open={str(n): (0.0, 0.0) for n in range(1200)})
    assert len(feed.due(1.0)) == 500
    assert feed.more
    assert Feed.parse(feed.text()).open == feed.open


# -- options ---------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_contract_s():
    options = NoojeeOptions(**MINIMAL)
    assert (options.auth, options.listing, options.lookup, options.root) == ("hash", "none", "unique_id", "/rest")
    assert (options.window, options.settle, options.lookback) == (HOUR, 5 * MINUTE, 2 * HOUR)
    assert options.hour_interval == MINUTE
    assert NoojeeOptions(**MINIMAL, auth="key").root == "/njadmin/rest"
    assert NoojeeOptions(**MINIMAL, auth="key", prefix="").root == ""
    assert NoojeeOptions(**MINIMAL, listing="hour").poll == "7 * * * *"
    assert NoojeeOptions(**MINIMAL, listing="hour", poll="1h").poll == "1h"
    assert Noojee.listing_key is ListingKey.END


@pytest.mark.parametrize(
    "wrong",
    [
        {"timezone": None},
        {"timezone": "Mars/Olympus"},
        {"api_key": ""},
        {"auth": "basic"},
        {"ids_file": "ids.txt", "ids_from": "xivo-source"},
        {"listing": "day"},
        {"lookup": "name"},
        {"audio_path": "{prefix}/x?{secret}"},
        {"audio_path": "{prefix"},
        {"audio_path": "https://elsewhere/x"},
        {"audio_path": "{0}"},
        {"audio_path": "{leg.__class__}"},
    ],
)
def test_options_that_can_t_work_are_refused(wrong):
    with pytest.raises(ValidationError):
        NoojeeOptions(**{**MINIMAL, **wrong})


def test_time_zone_and_key_are_required_and_the_key_is_never_shown():
    for name in ("timezone", "api_key"):
        with pytest.raises(ValidationError):
            NoojeeOptions(**{k: v for k, v in MINIMAL.items() if k != name})
    assert MINIMAL["api_key"] not in repr(NoojeeOptions(**MINIMAL))


def test_the_audio_path_s_fields_can_name_no_other_path():
    options = NoojeeOptions(**MINIMAL)
    source = Noojee("pbx", options, None)
    asked = []

    class Api:
        async def audio(self, path, into):
            asked.append(path)

    source._api = Api()
    asyncio.run(source.fetch(leg_of("../../x?a=1&b#", "1"), Kept()))
    assert asked == ["/rest/RecordingAPI/retrieveByUniqueId?uniqueId=..%2F..%2Fx%3Fa%3D1%26b%23&leg=1"]


def test_a_recording_says_its_listing_key():
    recording = read(PAGE)[0]
    assert isinstance(recording, Recording)
    assert recording.key(Noojee.listing_key) == recording.ended_at


async def test_a_file_that_was_replaced_by_one_with_the_same_end_is_noticed(live, ids, tmp_path):
    known = past(live, 2)
    same = f"# {'the same ' * 12}"
    append(ids, known[0], same)
    async with reading(live, ids_file=ids) as source:
        _, _, cursor = await followed(source)
        new = tmp_path / "new"
        append(new, known[1], same)
        new.rename(ids)
        assert (await followed(source, cursor))[0] == [known[1]]


async def test_a_410_of_a_look_up_is_no_answer(live):
    async with reading(live) as source:
        live.fault("status", "unique_id", value=410, times=-1)
        with pytest.raises(TryAgain):
            await source.look_up(["1.1"])
