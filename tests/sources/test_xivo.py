"""XiVO: the contract, the vendor's page statement by statement, and the quirks of a recorder without time zones."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import ClassVar
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

import aiohttp
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from archiver.errors import BadData, Gone, NotReady, Overflow, Refused, TryAgain, WrongZone
from archiver.model import Availability, Chapter, Direction, Listing, Medium, Window
from archiver.ports import Acknowledges, Details, Follows, LooksUp
from archiver.simulators.base import Clock
from archiver.simulators.xivo import TOKEN, XivoSimulator
from archiver.sources import xivo
from archiver.sources.xivo import Xivo, XivoOptions
from archiver.testing.sources import NOW, Kept, SourceContract, build, opened

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
PARIS = ZoneInfo("Europe/Paris")


class TestXivo(SourceContract):
    simulator = XivoSimulator
    source = Xivo


class TestXivoInSmallPages(SourceContract):
    simulator = XivoSimulator
    source = Xivo
    changes: ClassVar = {"page_size": 3}


class TestXivoOf2017(SourceContract):
    """Its paths had no prefix."""

    class simulator(XivoSimulator):  # noqa: N801
        prefix = ""

    source = Xivo
    changes: ClassVar = {"path_prefix": ""}


class TestXivoWithChannelEventsAndMarks(SourceContract):
    simulator = XivoSimulator
    source = Xivo
    changes: ClassVar = {"cel": True, "attach": "archived"}


@pytest.fixture
async def sim():
    async with XivoSimulator(seed=3, clock=Clock(NOW)) as simulator:
        yield simulator


@pytest.fixture
async def live():
    """A recorder whose clock is the real one."""
    async with XivoSimulator(seed=4) as simulator:
        yield simulator


def reading(sim, **more):
    return opened(Xivo, {**sim.options(), "timeout": "2s", **more})


def around(moment, by=HOUR):
    return Window(moment - by, moment + by)


def an_option_set(**changes):
    return XivoOptions(
        **{"kind": "xivo", "base_url": "http://x:9400", "token": "t", "timezone": "Europe/Paris"} | changes
    )


def a_source(**changes):
    source, _ = build(Xivo, an_option_set(**changes).model_dump() | {"token": "t"})
    return source


def a_row(**changes):
    """The first row of the vendor's page."""
    return {
        "agent": "Joe Dalton (1573)",
        "attached_data": {"recording": "xivocc_gateway-1459433866.13971"},
        "dst_num": "73555",
        "duration": "00:00:20",
        "id": "xivocc_gateway-1459433866.13971",
        "queue": "oneforone (3555)",
        "src_num": "loadtester",
        "start": "2016-03-31 16:17:46",
        "status": "answered",
    } | changes


def read(row, **options):
    listing = a_source(**options)._listing([row])
    assert not listing.rejected, listing.rejected
    return listing.recordings[0]


class TestTheVendorsPage:
    def test_the_example_row_becomes_a_recording(self):
        got = read(a_row())
        assert got.recording_id == "xivocc_gateway-1459433866.13971"
        assert got.started_at == datetime.fromtimestamp(1459433866, UTC)
        assert got.ended_at - got.started_at == got.duration == timedelta(seconds=20)
        assert (got.caller, got.callee) == ("loadtester", "73555")
        assert (got.agent, got.queue) == ("Joe Dalton (1573)", "oneforone (3555)")
        assert got.direction is Direction.UNKNOWN
        assert got.attributes == {"status": "answered", "recording": got.recording_id}
        assert got.raw == a_row()
        assert [(p.role, p.number, p.name) for p in got.parties] == [
            ("caller", "loadtester", None),
            ("callee", "73555", None),
            ("agent", "1573", "Joe Dalton"),
        ]

    def test_the_example_of_a_running_call_is_not_ready(self):
        start = datetime.now(PARIS).strftime("%Y-%m-%d %H:%M:%S")
        got = read(a_row(duration="", start=start))
        assert got.media[0].availability is Availability.NOT_READY
        assert got.ended_at is got.duration is None

    def test_a_call_whose_duration_never_came_is_tried_once_it_can_not_run_any_more(self):
        assert read(a_row(duration="")).media[0].availability is Availability.READY

    async def test_every_statement_of_the_simulator_s_strictness(self, sim):
        """Wrong token, method, parameter, field name, date or content type is the vendor's error."""
        sim.tells_call_data_id = True
        call = sim.add_call(NOW - HOUR, MINUTE)
        ok = {"X-Auth-Token": TOKEN}
        file_id = sim.file_id(call)
        table = [
            ("POST", "/records/search", {}, {"json": {"agent": "1573"}}, 401),
            ("POST", "/records/search", {"X-Auth-Token": "x"}, {"json": {}}, 403),
            ("GET", "/records/search", ok, {}, 405),
            ("POST", "/records/search?pageSize=3", ok, {"json": {"agent": call.agent[1]}}, 200),
            ("POST", "/records/search?page=0", ok, {"json": {}}, 400),
            ("POST", "/records/search?limit=3", ok, {"json": {}}, 400),
            ("POST", "/records/search", ok, {"json": {"from": "x"}}, 400),
            ("POST", "/records/search", ok, {"json": [1]}, 400),
            ("POST", "/records/search", ok, {"data": "{}"}, 415),
            ("POST", "/records/search", ok, {"json": {"start": "yesterday"}}, 400),
            ("POST", "/records/search", ok, {"json": {"direction": "sideways"}}, 400),
            ("POST", "/records/search", ok, {"json": {"queueCallStatus": "lost"}}, 400),
            ("POST", "/records/search", ok, {"json": {"key": "recording"}}, 400),
            ("POST", "/records/search", ok, {"json": {"key": "recording", "value": file_id, "callee": "%"}}, 200),
            ("POST", f"/records/callid_search?callid={sim.call_id(call)}", ok, {}, 200),
            ("GET", f"/records/{file_id}/audio/result", ok, {}, 200),
            ("GET", f"/records/{file_id}/audio/listen", ok, {}, 200),
            ("GET", f"/records/{file_id}/audio/download", ok, {}, 200),
            ("GET", f"/records/{file_id}/audio/delete", ok, {}, 400),
            ("GET", "/records/nothing-1.1/audio/download", ok, {}, 404),
            ("POST", "/call_data/761000/attached_data", ok, {"json": [{"key": "color", "value": "green"}]}, 200),
            ("POST", "/call_data/1/attached_data", ok, {"json": [{"key": "color", "value": "green"}]}, 404),
            ("POST", "/call_data/761000/attached_data", ok, {"json": {"color": "green"}}, 400),
            ("POST", "/history", ok, {"json": {"interface": f"SIP/{call.agent[1]}"}}, 200),
            ("POST", "/history?days=7&size=3", ok, {"json": {"interface": "SIP/az9kf7"}}, 500),
            ("POST", "/history/agent?days=7", ok, {"json": {"agentNum": "1573"}}, 200),
            ("POST", "/history/customer", ok, {"json": {"filters": [], "size": 2}}, 200),
            ("POST", "/history/customer", ok, {"json": {"filters": [{"field": "dst"}]}}, 400),
            ("GET", f"/last_agent?callerNo={call.caller}&since=100", ok, {}, 200),
            ("GET", "/cel?from=1&limit=10", ok, {}, 200),
            ("GET", "/cel?from=1", ok, {}, 400),
            ("POST", "/cel?from=1&limit=10", ok, {}, 405),
        ]
        async with aiohttp.ClientSession() as session:
            for method, path, headers, how, status in table:
                async with session.request(method, f"{sim.base_url}/recording{path}", headers=headers, **how) as answer:
                    assert answer.status == status, (method, path, await answer.text())
        assert [action for action, _ in sim.access_log] == ["result", "listen", "download", "download"]

    async def test_the_token_with_shell_special_characters_goes_out_as_it_stands(self, sim):
        async with reading(sim) as source:
            await source.list(around(NOW))
        assert sim.token == "u@pf#41[gYHJm<]9N[a0iWDQQ7`e9k"
        assert {s.headers["X-Auth-Token"] for s in sim.seen} == {sim.token}

    async def test_a_search_names_page_size_direction_and_both_bounds(self, sim):
        bodies = []
        sim._check_filter = bodies.append
        async with reading(sim, page_size=7) as source:
            await source.list(around(NOW))
        week = {"start": "2024-05-11 14:59:59", "end": "2024-05-18 15:00:00", "direction": "all"}
        assert bodies == [{"start": "2024-05-18 12:59:59", "end": "2024-05-18 15:00:00", "direction": "all"}, week]
        assert sim.seen[0].method == "POST"
        assert sim.seen[0].query == "page=1&pageSize=7"
        assert sim.seen[0].headers["Accept"] == sim.seen[0].headers["Content-Type"] == "application/json"

    async def test_only_answered_calls_are_searched_and_the_others_found_by_their_call_id(self, sim):
        missed = sim.add_call(NOW - HOUR, MINUTE, extra={"answered": False})
        taken = sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim) as source:
            listed = await source.list(around(NOW - HOUR))
            ids = [sim.call_id(missed), sim.call_id(taken), sim.call_id(taken), "nobody", "", " "]
            found = await source.look_up(ids)
        assert [r.recording_id for r in listed.recordings] == [sim.file_id(taken)]
        assert {r.recording_id: r.call_id for r in found.recordings} == {
            sim.file_id(missed): sim.call_id(missed),
            sim.file_id(taken): sim.call_id(taken),
        }
        assert sim.count("look_up") == 3

    async def test_a_call_of_more_recordings_than_one_answer_holds_is_said(self, sim):
        """The look-up by call id has no pages, but its answer has the search's hasNext."""
        call = sim.add_call(NOW - HOUR, MINUTE)
        sim.fault("phantom_page", "look_up")
        async with reading(sim) as source:
            found = await source.look_up([sim.call_id(call)])
        assert [r.recording_id for r in found.recordings] == [sim.file_id(call)]
        assert [(r.raw, "more recordings" in r.reason) for r in found.rejected] == [(sim.call_id(call), True)]

    async def test_a_call_id_is_sent_as_data_and_never_as_syntax(self, sim):
        async with reading(sim) as source:
            assert not (await source.look_up(["1&callid=2#+ %"])).recordings
        assert sim.seen[-1].status == 200

    async def test_a_file_id_can_not_name_another_path(self, sim):
        call = sim.add_call(NOW - HOUR, MINUTE, extra={"file_id": "../a b/é?x=%2e#-1459433866.1"})
        async with reading(sim) as source:
            (got,) = (await source.list(around(NOW - HOUR))).recordings
            kept = Kept()
            await source.fetch(got.media[0], kept)
        assert bytes(kept.data) == sim.sound(call, "wav")

    async def test_a_call_that_fails_alone_is_named_and_holds_up_no_other(self, sim):
        calls = [sim.add_call(NOW - HOUR, MINUTE) for _ in range(3)]
        known = [sim.call_id(call) for call in calls]
        sim.fault("status", "look_up", value=500, match=known[1], times=-1)
        async with reading(sim, cel=True) as source:
            told = await source.look_up(known)
            assert [r.call_id for r in told.recordings] == [known[0], known[2]]
            assert [i for i, _ in told.failed] == [known[1]]
            # Nor do the channel events wait for it.
            chapter = await source.follow(None)
            assert [i for i, _ in chapter.listing.failed] == [known[1]]
            assert len(chapter.listing.recordings) == 3
            sim.fault("status", "look_up", value=503, times=-1)
            with pytest.raises(TryAgain):
                await source.look_up(known[:1])

    async def test_a_call_id_is_asked_for_as_it_is_told(self, sim):
        async with reading(sim) as source:
            await source.look_up([" 1.1 ", "  "])
        assert [parse_qs(seen.query)["callid"] for seen in sim.seen] == [[" 1.1 "]]

    async def test_each_download_writes_one_line_of_the_access_log_and_nothing_else_does(self, sim):
        call = sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, cel=True) as source:
            await source.check()
            (got,) = (await source.list(around(NOW - HOUR))).recordings
            await source.look_up([sim.call_id(call)])
            await source.fetch(got.media[0], Kept())
        assert sim.access_log == [("download", sim.file_id(call))]

    async def test_audio_lies_where_audio_path_says_and_is_asked_for_as_accept_says(self, sim):
        call = sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, audio_path="/records/{id}/audio/result", accept="application/json") as source:
            (got,) = (await source.list(around(NOW - HOUR))).recordings
            kept = Kept()
            await source.fetch(got.media[0], kept)
        assert json.loads(bytes(kept.data))["id"] == sim.file_id(call)
        assert sim.seen[-1].headers["Accept"] == "application/json"

    async def test_a_missing_file_says_whether_it_may_still_come(self, live):
        now = live.clock.now()
        live.add_call(now - 4 * MINUTE, MINUTE, ready_at=now + HOUR)
        live.add_call(now - 2 * HOUR, MINUTE, ready_at=now + HOUR)
        async with reading(live) as source:
            old, fresh = sorted((await source.list(around(now, 3 * HOUR))).recordings, key=lambda r: r.started_at)
            with pytest.raises(NotReady, match="not copied"):
                await source.fetch(fresh.media[0], Kept())
            with pytest.raises(NotReady, match="purged"):
                await source.fetch(old.media[0], Kept())

    async def test_a_running_call_becomes_ready_when_it_has_ended(self, live):
        now = live.clock.now()
        call = live.add_call(now - MINUTE, 3 * MINUTE, listed_at=now - MINUTE)
        async with reading(live) as source:
            (running,) = (await source.list(around(now))).recordings
            live.clock.advance(5 * MINUTE)
            (ended,) = (await source.list(around(now))).recordings
        assert running.media[0].availability is Availability.NOT_READY
        assert ended.media[0].availability is Availability.READY
        assert ended.duration == call.duration
        assert running.digest() != ended.digest()


class TestRows:
    @pytest.mark.parametrize(
        "row",
        [
            None,
            7,
            [],
            {},
            a_row(id=None),
            a_row(id=".."),
            a_row(id="a\x00b"),
            a_row(id="\ud800"),
            a_row(start="yesterday"),
            a_row(start=None),
            a_row(start="0001-01-01 00:00:00"),
            a_row(duration="soon"),
            a_row(duration=7),
        ],
    )
    def test_a_row_that_can_not_be_read_is_kept_as_it_came_and_spoils_no_other(self, row):
        listing = a_source()._listing([row, a_row()])
        assert len(listing.recordings) == 1
        assert json.loads(listing.rejected[0].raw) == row
        assert listing.rejected[0].reason

    def test_a_monstrous_row_is_kept_to_four_kilobytes(self):
        assert len(a_source()._listing([{"x": "é" * 9999}]).rejected[0].raw) == 4096

    async def test_a_bad_row_of_the_recorder_is_rejected_and_the_rest_listed(self, sim):
        sim.add_calls(NOW - HOUR, NOW - 2 * MINUTE, 3)
        sim.fault("bad_row", "list", value={"id": "x"})
        async with reading(sim) as source:
            listing = await source.list(around(NOW))
        assert (len(listing.recordings), len(listing.rejected)) == (3, 1)

    def test_blanks_are_nothing(self):
        got = read(a_row(agent="", queue=None, src_num=" ", status="", attached_data=None))
        assert got.agent is got.queue is got.caller is None
        assert got.attributes == {}
        assert [p.role for p in got.parties] == ["callee"]

    def test_attached_data_are_attributes(self):
        assert read(a_row(attached_data={"color": "green", "n": 1})).attributes == {
            "status": "answered",
            "color": "green",
            "n": 1,
        }

    @pytest.mark.parametrize("start", ["1970-01-01 01:00:00", "2099-01-01 00:00:00"])
    def test_a_strange_year_is_a_normal_row(self, start):
        assert read(a_row(start=start)).started_at.year in {1970, 2098}

    @pytest.mark.parametrize(
        ("text", "expected"), [("00:00:00", 0), ("27:46:40", 100_000), (" 00:01:01 ", 61), ("100:00:00", 360_000)]
    )
    def test_durations_are_hours_minutes_seconds(self, text, expected):
        assert read(a_row(duration=text)).duration == timedelta(seconds=expected)

    def test_a_time_that_does_carry_a_zone_is_believed(self):
        assert read(a_row(start="2016-03-31T14:17:46Z")).started_at == datetime.fromtimestamp(1459433866, UTC)


class TestPaging:
    async def test_rows_that_arrive_while_paging_lose_nothing(self, sim):
        sim.add_calls(NOW - 3 * HOUR, NOW - 2 * HOUR, 20)
        truth = set(sim.truth())
        sim.after_page = lambda _: sim.add_call(NOW - 2 * HOUR - MINUTE, MINUTE)
        async with reading(sim, page_size=4) as source:
            listing = await source.list(Window(NOW - 3 * HOUR, NOW - HOUR))
        ids = [r.recording_id for r in listing.recordings]
        assert truth <= set(ids)
        assert len(ids) == len(set(ids))

    async def test_rows_that_are_deleted_while_paging_lose_no_other(self, sim):
        calls = sim.add_calls(NOW - 3 * HOUR, NOW - 2 * HOUR, 20)
        newest = max(calls, key=lambda c: c.start)

        def purge(page):
            if page == 1:
                newest.deleted_at = NOW - HOUR

        sim.after_page = purge
        async with reading(sim, page_size=4) as source:
            listing = await source.list(Window(NOW - 3 * HOUR, NOW - HOUR))
        assert {r.recording_id for r in listing.recordings} == {sim.file_id(c) for c in calls}

    async def test_a_listing_that_never_stands_still_is_tried_again(self, sim):
        sim.add_calls(NOW - 3 * HOUR, NOW - 2 * HOUR, 60)

        def purge(page):
            if page == 1:
                newest = max((c for c in sim.calls if c.deleted_at is None), key=lambda c: c.start)
                newest.deleted_at = NOW - HOUR

        sim.after_page = purge
        async with reading(sim, page_size=20) as source:
            with pytest.raises(TryAgain, match="deleted"):
                await source.list(Window(NOW - 3 * HOUR, NOW - HOUR))

    async def test_one_page_is_read_once(self, sim):
        sim.add_calls(NOW - HOUR, NOW - 2 * MINUTE, 5)
        async with reading(sim) as source:
            await source.list(around(NOW))
        assert sim.count("list") == 1

    async def test_an_empty_page_that_promises_more_ends_the_listing(self, sim):
        sim.fault("phantom_page", "list", times=-1)
        async with reading(sim) as source:
            listing = await source.list(around(NOW))
        assert listing == Listing([], [])
        assert [s.query for s in sim.seen] == ["page=1&pageSize=100", "page=1&pageSize=20"], "and a look at the week"

    async def test_a_short_page_that_promises_more_is_not_the_end(self, sim):
        sim.add_calls(NOW - HOUR, NOW - 2 * MINUTE, 3)
        sim.fault("phantom_page", "list")
        async with reading(sim) as source:
            await source.list(around(NOW))
        assert "page=2&pageSize=100" in [s.query for s in sim.seen]

    async def test_a_page_that_repeats_for_ever_is_tried_again(self, sim):
        sim.add_calls(NOW - HOUR, NOW - 2 * MINUTE, 3)
        sim.fault("same_page", "list", times=-1)
        async with reading(sim, page_size=3) as source:
            with pytest.raises(TryAgain, match="same"):
                await source.list(around(NOW))
        assert sim.count("list") < 10

    async def test_too_many_pages_ask_for_a_shorter_window(self, sim, monkeypatch):
        monkeypatch.setattr(xivo, "_PAGES", 3)
        sim.add_calls(NOW - HOUR, NOW - 2 * MINUTE, 9)
        async with reading(sim, page_size=2) as source:
            with pytest.raises(Overflow):
                await source.list(around(NOW))

    @pytest.mark.parametrize("path", ["/elsewhere", "/recording/x"])
    async def test_a_wrong_path_prefix_is_said(self, sim, path):
        async with reading(sim, path_prefix=path) as source:
            with pytest.raises(TryAgain, match="path_prefix"):
                await source.check()

    async def test_a_date_that_the_server_can_not_read_is_said(self, sim):
        async with reading(sim, filter_time_format="%d.%m.%Y %H:%M:%S") as source:
            with pytest.raises(BadData, match="400"):
                await source.list(around(NOW))


NIGHTS = {"spring": datetime(2024, 3, 31, 1, tzinfo=UTC), "autumn": datetime(2024, 10, 27, 1, tzinfo=UTC)}


class TestLocalTime:
    @pytest.mark.parametrize("night", NIGHTS.values(), ids=NIGHTS.keys())
    @pytest.mark.parametrize("length", [10 * MINUTE, 30 * MINUTE, HOUR, 90 * MINUTE, 6 * HOUR], ids=str)
    async def test_one_call_a_minute_through_a_clock_change_is_found_whole_and_in_utc(self, night, length):
        """Each window alone holds every call that begins in it."""
        begin, end = night - 3 * HOUR, night + 3 * HOUR
        sim = XivoSimulator(clock=Clock(end + HOUR))
        calls = [sim.add_call(begin + n * MINUTE, timedelta(seconds=40)) for n in range(360)]
        async with sim, reading(sim) as source:
            at = begin
            while at < end:
                window = Window(at, min(at + length, end))
                found = {r.recording_id: r for r in (await source.list(window)).recordings}
                for call in calls:
                    got = found.get(sim.file_id(call))
                    assert got is not None or call.start not in window, (window, call.start)
                    assert got is None or got.started_at == call.start
                    assert got is None or "start_ambiguous" not in got.attributes
                at = window.end

    @pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"])
    def test_no_window_of_a_year_sends_a_local_time_that_does_not_exist_or_leaves_a_moment_out(self, zone):
        source = a_source(timezone=zone)
        local = ZoneInfo(zone)
        year = [datetime(2024, 1, 1, tzinfo=UTC) + HOUR * n for n in range(8784)]
        changes = [m for m in year if m.astimezone(local).utcoffset() != (m + HOUR).astimezone(local).utcoffset()]
        moments = [*year[::37], *(m + 10 * MINUTE * n for m in changes for n in range(-30, 30))]
        for at in moments:
            for length in (20 * MINUTE, 5 * HOUR, timedelta(days=300)):
                sent = source._filter(Window(at, at + length))
                first, last = (datetime.fromisoformat(sent[k]) for k in ("start", "end"))
                for naive in (first, last):
                    assert naive.replace(tzinfo=local).astimezone(UTC).astimezone(local).replace(tzinfo=None) == naive
                inside = [(at + length * n / 8).astimezone(local).replace(tzinfo=None) for n in range(9)]
                assert first < min(inside)
                assert max(inside[:-1]) < last
                assert inside[-1] <= last

    async def test_the_bounds_of_an_ordinary_window_are_its_own(self):
        sent = a_source()._filter(
            Window(datetime(2024, 5, 1, 12, tzinfo=UTC), datetime(2024, 5, 1, 13, 0, 0, 1, tzinfo=UTC))
        )
        assert sent == {"start": "2024-05-01 13:59:59", "end": "2024-05-01 15:00:01", "direction": "all"}

    def test_a_double_hour_is_told_apart_by_the_epoch_of_the_file_id(self):
        for epoch in (1729989000, 1729992600):  # 00:30Z and 01:30Z: both are 02:30 in Paris
            got = read(a_row(start="2024-10-27 02:30:00", id=f"gw-{epoch}.7"))
            assert got.started_at == datetime.fromtimestamp(epoch, UTC)

    @pytest.mark.parametrize("wait", [0, 1, 60, 1500])
    def test_a_call_that_waited_before_its_start_keeps_its_hour(self, wait):
        for epoch in (1729989000, 1729992600):
            got = read(a_row(start="2024-10-27 02:30:00", id=f"gw-{epoch - wait}.7"))
            assert got.started_at == datetime.fromtimestamp(epoch, UTC)

    @pytest.mark.parametrize("file_id", ["plain", "gw-7.7", "gw-1459433866.13971", "gw-99999999999.1"])
    def test_a_double_hour_without_a_usable_epoch_is_listed_as_the_first_and_says_so(self, file_id):
        got = read(a_row(start="2024-10-27 02:30:00", id=file_id))
        assert got.started_at == datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
        assert got.attributes["start_ambiguous"] is True

    async def test_a_call_across_the_edge_of_a_window_is_in_both(self, sim):
        call = sim.add_call(NOW - 2 * HOUR - MINUTE, 2 * MINUTE)
        async with reading(sim) as source:
            for window in (Window(NOW - 3 * HOUR, NOW - 2 * HOUR), Window(NOW - 2 * HOUR, NOW - HOUR)):
                assert [r.recording_id for r in (await source.list(window)).recordings] == [sim.file_id(call)]

    @pytest.mark.parametrize(("zone", "off"), [("UTC", "+2:00:00"), ("Asia/Kolkata", "-3:30:00")])
    async def test_a_source_with_a_wrong_time_zone_is_refused_until_it_is_right(self, live, zone, off):
        live.timezone = "Etc/GMT-2"
        now = live.clock.now()
        live.add_calls(now - 10 * HOUR, now - 9 * HOUR, 6)
        async with reading(live, timezone=zone) as source:
            for _ in range(2):
                with pytest.raises(WrongZone, match=re.escape(f"timezone {zone} is off by {off}")):
                    await source.list(around(now, timedelta(days=1)))
                with pytest.raises(WrongZone):
                    await source.check()
            # Somebody sets the recorder's clock to it.
            live.timezone = zone
            assert len((await source.list(around(now, timedelta(days=1)))).recordings) == 6

    async def test_a_wrong_time_zone_is_proved_by_calls_of_several_windows_each_counted_once(self, live):
        live.timezone = "Etc/GMT-2"
        now = live.clock.now()
        for hours in (10, 8, 6):
            live.add_call(now - hours * HOUR, MINUTE)
        async with reading(live, timezone="UTC") as source:
            for hours in (10, 8, 10, 8):
                at = now - (hours - 2) * HOUR
                assert len((await source.list(Window(at - MINUTE, at + MINUTE))).recordings) == 1
            at = now - 4 * HOUR
            with pytest.raises(WrongZone):
                await source.list(Window(at - MINUTE, at + MINUTE))

    async def test_a_right_time_zone_is_not_doubted(self, live):
        now = live.clock.now()
        live.add_calls(now - 10 * HOUR, now - 9 * HOUR, 6)
        async with reading(live) as source:
            with capture_logs() as logs:
                await source.list(around(now, timedelta(days=1)))
            assert await source.check() == "6 calls in the last 7 days"
        assert not logs

    @pytest.mark.parametrize(
        "changes",
        [
            {"timezone": None},
            {"timezone": "Mars/Olympus"},
            {"filter_time_format": "%Y-%m-%d"},
            {"filter_time_format": "now"},
            {"audio_path": "/audio"},
            {"page_size": 0},
            {"attach": ""},
        ],
    )
    def test_options_that_could_lose_calls_are_refused(self, changes):
        with pytest.raises(ValidationError):
            an_option_set(**changes)

    def test_the_time_zone_is_required(self):
        with pytest.raises(ValidationError, match="timezone"):
            XivoOptions(kind="xivo", base_url="http://x:9400", token="t")


class TestAttach:
    def document(self, got, at="2024-05-18T11:00:00.000Z"):
        copies = [{"store": "main", "archived_at": "2024-05-18T10:00:00.000Z"}, {"store": "dav", "archived_at": at}]
        return {"recording_id": got.recording_id, "raw": dict(got.raw), "media": [{"copies": copies}]}

    async def test_an_archived_call_is_marked_with_the_moment(self, sim):
        sim.tells_call_data_id = True
        call = sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, attach="archived") as source:
            assert isinstance(source, Acknowledges)
            assert source.acknowledges
            (got,) = (await source.list(around(NOW - HOUR))).recordings
            await source.acknowledge(self.document(got))
            await source.acknowledge(self.document(got))
        assert sim.attached == {call.index: {"archived": "2024-05-18T11:00:00.000Z"}}

    async def test_our_own_mark_is_no_change_of_the_call(self, sim):
        """Else each mark would be news, the news would be archived, and the archived call marked again."""
        sim.tells_call_data_id = True
        call = sim.add_call(NOW - HOUR, MINUTE, note="green")
        async with reading(sim, attach="archived") as source:
            (before,) = (await source.list(around(NOW - HOUR))).recordings
            await source.acknowledge(self.document(before))
            (after,) = (await source.list(around(NOW - HOUR))).recordings
        assert sim.attached[call.index]
        assert before.digest() == after.digest()
        assert after.attributes["note"] == "green"

    async def test_a_row_without_a_call_data_id_is_left_alone_and_said_once(self, live):
        now = live.clock.now()
        live.add_calls(now - 2 * HOUR, now - HOUR, 2)
        async with reading(live, attach="archived") as source:
            listed = (await source.list(around(now, 3 * HOUR))).recordings
            with capture_logs() as logs:
                for got in listed:
                    await source.acknowledge(self.document(got))
            assert "attach can't be written back: the rows hold no call_data_id" in await source.check()
        assert [w["event"] for w in logs] == ["source.attach_impossible"]
        assert not live.attached
        assert not live.count("attach")

    async def test_without_attach_nothing_is_written(self, sim):
        sim.tells_call_data_id = True
        sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim) as source:
            assert not source.acknowledges
            (got,) = (await source.list(around(NOW - HOUR))).recordings
            await source.acknowledge(self.document(got))
        assert not sim.attached

    async def test_the_id_s_field_has_the_configured_name_and_can_not_name_another_path(self, sim):
        document = {"raw": {"cd": "1/../2"}, "media": [{"copies": [{"archived_at": "x"}]}]}
        async with reading(sim, attach="archived", call_data_id_field="cd") as source:
            with pytest.raises(NotReady):
                await source.acknowledge(document)
        assert sim.seen[-1].on == "attach"


class TestChannelEvents:
    async def follow(self, source, cursor=None):
        chapters = []
        while True:
            chapter = await source.follow(cursor)
            chapters.append(chapter)
            assert not chapter.more or int(chapter.cursor) > int(cursor or 0)
            if not chapter.more:
                return chapters
            cursor = chapter.cursor

    async def documents(self, source, chapters):
        lines = []
        for recording in (r for c in chapters for r in c.listing.recordings if "cel" in r.raw):
            kept = Kept()
            await source.fetch(recording.media[0], kept)
            assert kept.content_type == "application/x-ndjson"
            new = [json.loads(line) for line in bytes(kept.data).splitlines()]
            assert len(new) == recording.raw["cel"]["count"]
            lines += new
        return lines

    async def test_off_nothing_is_asked(self, sim):
        async with reading(sim) as source:
            assert isinstance(source, Follows)
            assert await source.follow("7") == Chapter(Listing(), "7", more=False)
            assert await source.follow(None) == Chapter(Listing(), "", more=False)
        assert not sim.seen

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("most", [100_000, 5])
    @pytest.mark.parametrize("limit", [1, 10, 1000])
    async def test_every_row_is_archived_once_whatever_from_and_limit_mean(self, sim, after, most, limit):
        sim.cel_after, sim.cel_most = after, most
        calls = sim.add_calls(NOW - 3 * HOUR, NOW - HOUR, 9)
        async with reading(sim, cel=True, cel_limit=limit, cel_look_up=False) as source:
            chapters = await self.follow(source)
            rows = await self.documents(source, chapters)
        assert rows == sim.cel
        assert len(rows) == 4 * len(calls)

    async def test_a_document_tells_its_span_and_is_the_same_bytes_each_time(self, sim):
        call = sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, cel=True) as source:
            document = (await source.follow(None)).listing.recordings[0]
            bodies = []
            for _ in range(2):
                kept = Kept()
                await source.fetch(document.media[0], kept)
                bodies.append(bytes(kept.data))
                sim.add_call(NOW - HOUR, MINUTE)
        assert document.recording_id == "cel-1-4"
        assert (document.started_at, document.ended_at) == (call.start, call.end)
        assert document.raw == {"cel": {"first": 1, "last": 4, "count": 4}}
        (medium,) = document.media
        assert (medium.media_id, medium.opaque, medium.content_type) == ("cel", True, "application/x-ndjson")
        assert bodies[0] == bodies[1]
        lines = bodies[0].decode().splitlines()
        assert lines[0] == json.dumps(sim.cel[0], sort_keys=True)

    async def test_a_medium_that_only_knows_its_ids_can_still_be_fetched(self, sim):
        """As after a rebuild of the catalog from manifests."""
        call = sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, cel=True) as source:
            kept = Kept()
            await source.fetch(Medium(recording_id="cel-1-4", media_id="cel"), kept)
            assert len(bytes(kept.data).splitlines()) == 4
            await source.fetch(Medium(recording_id=sim.file_id(call), media_id="audio"), Kept())
            with pytest.raises(NotReady, match="purged"):
                await source.fetch(Medium(recording_id="x", media_id="audio"), Kept())

    async def test_the_cursor_goes_on_behind_the_last_row(self, sim):
        sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, cel=True) as source:
            first = await source.follow(None)
            assert await source.follow(first.cursor) == Chapter(Listing(), first.cursor, more=False)
            sim.add_call(NOW - HOUR, MINUTE)
            second = await source.follow(first.cursor)
        assert first.cursor == "5"
        assert second.listing.recordings[0].raw["cel"]["first"] == 5

    async def test_fresh_rows_wait_until_they_have_settled(self, live):
        now = live.clock.now()
        live.add_call(now - HOUR, timedelta(minutes=58))
        async with reading(live, cel=True) as source:
            chapter = await source.follow(None)
            assert chapter.listing.recordings[0].raw["cel"]["count"] == 2
            assert not chapter.more
            later = await source.follow(chapter.cursor)
            assert later == Chapter(Listing(), chapter.cursor, more=False)
        async with reading(live, cel=True, cel_settle="1s") as source:
            assert (await source.follow(chapter.cursor)).listing.recordings[0].raw["cel"]["count"] == 2

    async def test_a_row_of_the_future_stops_nothing(self, sim):
        sim.add_call(NOW - HOUR, MINUTE)
        sim._log_events()
        sim.cel[1]["eventtime"] = "2999-01-01 00:00:00.000000"
        async with reading(sim, cel=True) as source:
            assert (await source.follow(None)).cursor == "5"

    async def test_unanswered_calls_are_found_by_the_end_of_their_linkedid(self, sim):
        missed = sim.add_call(NOW - HOUR, MINUTE, extra={"answered": False})
        taken = sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, cel=True) as source:
            recordings = (await source.follow(None)).listing.recordings
            kept = Kept()
            got = {r.recording_id: r for r in recordings}[sim.file_id(missed)]
            await source.fetch(got.media[0], kept)
        assert [r.recording_id for r in recordings if "cel" in r.raw] == [f"cel-1-{sim.cel[-1]['id']}"]
        assert {r.recording_id for r in recordings if "cel" not in r.raw} == {sim.file_id(missed), sim.file_id(taken)}
        assert got.call_id == sim.call_id(missed)
        assert got.attributes["status"] == "abandoned"
        assert bytes(kept.data) == sim.sound(missed, "wav")
        assert isinstance(source, LooksUp)

    async def test_the_event_is_also_known_by_the_vendor_page_s_name(self, sim):
        missed = sim.add_call(NOW - HOUR, MINUTE, extra={"answered": False})
        sim._log_events()
        for row in sim.cel:
            row["eventtype"] = row["eventtype"].replace("LINKEDID_END", "LINKED_END")
        async with reading(sim, cel=True) as source:
            found = (await source.follow(None)).listing.recordings
        assert sim.file_id(missed) in {r.recording_id for r in found}

    async def test_looking_up_can_be_turned_off(self, sim):
        sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim, cel=True, cel_look_up=False) as source:
            assert len((await source.follow(None)).listing.recordings) == 1
        assert not sim.count("look_up")

    async def test_what_is_older_than_the_start_is_passed_over(self, sim):
        sim.add_call(NOW - 3 * HOUR, MINUTE)
        async with reading(sim, cel=True, start=(NOW - HOUR).isoformat()) as source:
            chapter = await source.follow(None)
        assert chapter.cursor == "5"
        assert not chapter.listing.recordings

    async def test_purged_rows_are_gone_when_later_ones_are_still_there(self, sim):
        sim.add_calls(NOW - 3 * HOUR, NOW - HOUR, 3)
        async with reading(sim, cel=True, cel_limit=6, cel_look_up=False) as source:
            medium = (await source.follow(None)).listing.recordings[0].media[0]
            del sim.cel[:6]
            with pytest.raises(Gone):
                await source.fetch(medium, Kept())

    @pytest.mark.parametrize("left", [0, 3])
    async def test_rows_that_are_missing_otherwise_are_tried_again(self, sim, left):
        sim.add_calls(NOW - 3 * HOUR, NOW - HOUR, 3)
        async with reading(sim, cel=True, cel_limit=6, cel_look_up=False) as source:
            medium = (await source.follow(None)).listing.recordings[0].media[0]
            del sim.cel[left:]
            with pytest.raises(TryAgain, match=f"{left} of these 6"):
                await source.fetch(medium, Kept())

    async def test_a_row_that_was_written_late_between_the_others_is_archived_with_them(self, sim):
        sim.add_call(NOW - HOUR, MINUTE)
        sim._log_events()
        late = sim.cel.pop(1)
        async with reading(sim, cel=True) as source:
            medium = (await source.follow(None)).listing.recordings[0].media[0]
            sim.cel.insert(1, late)
            kept = Kept()
            await source.fetch(medium, kept)
        assert [json.loads(line)["id"] for line in bytes(kept.data).splitlines()] == ["1", "2", "3", "4"]

    @pytest.mark.parametrize("odd", [3, {}, {"id": "x"}, {"id": None}, {"id": "-1"}, {"id": "9" * 30}], ids=str)
    async def test_a_row_without_a_usable_id_is_rejected_and_the_rest_archived(self, sim, odd):
        sim.add_call(NOW - HOUR, MINUTE)
        sim.fault("bad_row", "cel", value=odd)
        async with reading(sim, cel=True) as source:
            chapter = await source.follow(None)
        assert chapter.cursor == "5"
        assert [json.loads(r.raw) for r in chapter.listing.rejected] == [odd]

    @pytest.mark.parametrize(("unique_id", "expected"), [("1716026400.1", 1716026400), ("", 0)])
    async def test_a_row_without_a_time_counts_by_its_channel_s_epoch(self, sim, unique_id, expected):
        sim.add_call(NOW - HOUR, MINUTE)
        sim._log_events()
        sim.cel[0] |= {"eventtime": "never", "uniqueid": unique_id}
        async with reading(sim, cel=True) as source:
            document = (await source.follow(None)).listing.recordings[0]
        assert document.started_at == datetime.fromtimestamp(expected, UTC)
        assert document.raw["cel"]["count"] == 4

    async def test_an_answer_broken_on_the_way_is_tried_again(self, sim):
        sim.fault("html", "cel")
        async with reading(sim, cel=True) as source:
            with pytest.raises(TryAgain):
                await source.follow(None)

    async def test_a_recorder_that_ignores_from_is_tried_again(self, sim):
        medium = Medium(recording_id="cel-90-99", media_id="cel", ref={"from": 90, "last": 99, "count": 3})
        sim.add_call(NOW - HOUR, MINUTE)
        sim._log_events()
        sim.cel_after = -100
        async with reading(sim, cel=True) as source:
            with pytest.raises(TryAgain, match="asked for"):
                await source.fetch(medium, Kept())
            with pytest.raises(TryAgain, match="asked for"):
                await source.follow("90")

    async def test_garbage_is_bad_data(self, sim):
        sim.fault("json", "cel")
        async with reading(sim, cel=True) as source:
            with pytest.raises(BadData):
                await source.follow(None)

    async def test_check_reads_one_event(self, sim):
        async with reading(sim, cel=True) as source:
            assert "it holds no channel events" in await source.check()
            sim.add_call(NOW - HOUR, MINUTE)
            assert await source.check() == "0 calls in the last 7 days"
            sim.fault("status", "cel", value=403)
            with pytest.raises(Refused):
                await source.check()


class TestHistory:
    async def test_off_nothing_is_asked(self, sim):
        sim.add_call(NOW - HOUR, MINUTE)
        async with reading(sim) as source:
            assert isinstance(source, Details)
            (got,) = (await source.list(around(NOW - HOUR))).recordings
            assert await source.detail(got) is got
        assert sim.count("list") == len(sim.seen)

    async def call(self, live, source, **changes):
        now = live.clock.now()
        facts = {
            "direction": Direction.INBOUND,
            "caller": "+16505551234",
            "callee": "1564",
            "agent": ("Dino Falconetti", "1564"),
            "queue": ("hotline", "3556"),
        }
        call = live.add_call(now - HOUR, MINUTE, **facts | changes)
        (got,) = (await source.list(around(now, 2 * HOUR))).recordings
        return call, await source.detail(got)

    async def test_names_and_waiting_time_are_added(self, live):
        live.add_call(live.clock.now() - 9 * HOUR, MINUTE)
        async with reading(live, history=True) as source:
            call, got = await self.call(live, source)
        names = {p.role: p.name for p in got.parties}
        assert names == {"caller": "Poste +16505551234", "callee": "Dino Falconetti", "agent": "Dino Falconetti"}
        assert got.attributes["wait_time"] == "00:00:01"
        assert set(got.raw["history"]) == {"agent", "customer"}
        assert got.raw["id"] == live.file_id(call)

    async def test_size_and_days_are_never_sent_together(self, live):
        async with reading(live, history=True, history_days=30) as source:
            await self.call(live, source)
        (agent,) = (s for s in live.seen if s.on == "history_agent")
        assert agent.query == "days=30"
        (customer,) = (s for s in live.seen if s.on == "history_customer")
        assert customer.query == ""

    async def test_an_old_call_does_not_ask_for_the_agent_s_history(self, live):
        now = live.clock.now()
        live.add_call(now - timedelta(days=9), MINUTE, queue=None)
        async with reading(live, history=True) as source:
            (got,) = (await source.list(around(now - timedelta(days=9)))).recordings
            assert await source.detail(got) == got
        assert {s.on for s in live.seen} == {"list"}

    async def test_one_answer_serves_all_calls_that_ended_before_it(self, live):
        now = live.clock.now()
        for n in range(9):
            live.add_call(now - HOUR + n * MINUTE, timedelta(seconds=5), agent=("Joe Dalton", "1573"), queue=None)
        async with reading(live, history=True) as source:
            for got in (await source.list(around(now, 2 * HOUR))).recordings:
                assert "history" in (await source.detail(got)).raw
        assert live.count("history_agent") == 1

    async def test_a_call_that_ended_after_an_answer_is_asked_for_anew(self, live):
        facts = {"agent": ("Joe Dalton", "1573"), "queue": None}
        async with reading(live, history=True) as source:
            now = live.clock.now()
            live.add_call(now - HOUR, timedelta(seconds=5), **facts)
            (first,) = (await source.list(around(now, 2 * HOUR))).recordings
            await source.detail(first)
            live.add_call(live.clock.now() - timedelta(seconds=1), 2 * timedelta(seconds=1), **facts)
            live.clock.advance(MINUTE)
            listed = (await source.list(around(now, 2 * HOUR))).recordings
            second = next(r for r in listed if r.recording_id != first.recording_id)
            assert "history" in (await source.detail(second)).raw

    @pytest.mark.parametrize(("status", "raises"), [(404, False), (400, False), (503, True), (403, True)])
    async def test_a_server_without_history_still_gives_its_calls(self, live, status, raises):
        live.fault("status", "history_agent", value=status, times=-1)
        live.fault("status", "history_customer", value=status, times=-1)
        async with reading(live, history=True) as source:
            with capture_logs() as logs:
                if raises:
                    with pytest.raises((TryAgain, Refused)):
                        await self.call(live, source)
                    return
                _, got = await self.call(live, source)
        assert "history" not in got.raw
        assert [w["event"] for w in logs] == ["source.history_unreadable"]

    async def test_a_call_of_another_second_is_not_mistaken_for_it(self, live):
        async with reading(live, history=True) as source:
            _, got = await self.call(live, source)
            other = type(got)(
                recording_id="x",
                started_at=got.started_at + timedelta(seconds=5),
                media=(),
                caller=got.caller,
                callee=got.callee,
                agent=got.agent,
                queue=got.queue,
            )
            assert "history" not in (await source.detail(other)).raw
