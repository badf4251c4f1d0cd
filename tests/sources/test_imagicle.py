"""Imagicle: the contract for both releases, and the vendor's quirks one by one."""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

import aiohttp
import pytest
from aiohttp import web
from pydantic import ValidationError
from structlog.testing import capture_logs

from archiver.errors import BadData, NotReady, Overflow, Refused, TryAgain
from archiver.model import Direction, Party, Recording, Window
from archiver.simulators.base import Call, Clock, Simulator, refused
from archiver.simulators.imagicle import ROOT, ImagicleSimulator
from archiver.sources.imagicle import Imagicle, ImagicleOptions
from archiver.sources.imagicle_rows import duration, read
from archiver.testing.sources import NOW, Kept, SourceContract, opened

ID = "75A90276-E47E-4e9e-B463-E3C743D5FF3A"


class Recorder2025(ImagicleSimulator):
    """The newer names, hashes in base64, and a cap on pageSize that no page tells of."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.release = 2025
        self.encoding = "base64"
        self.largest_page = 13


class StuckRecorder(ImagicleSimulator):
    """Answers every page with the first one."""

    async def _list(self, request: Any) -> Any:
        return await super()._list(request.clone(rel_url=request.rel_url.update_query(page="0")))


class ForeverRecorder(ImagicleSimulator):
    """Counts one recording more than it lists."""

    def _visible(self) -> list[Call]:
        return [*super()._visible(), *super()._visible()[-1:]]


class TestImagicle2025(SourceContract):
    simulator = Recorder2025
    source = Imagicle


class TestImagicle(SourceContract):
    simulator = ImagicleSimulator
    source = Imagicle

    def pages(self, sim: Simulator) -> list[str]:
        return [parse_qs(s.query)["page"][0] for s in sim.seen if s.on == "list"]

    async def ids(self, sim: Simulator, **more: Any) -> set[str]:
        async with self.reading(sim, **more) as source:
            return {r.recording_id for r in (await source.list(self.span())).recordings}

    async def detailed(self, sim: Simulator, call: Call | None = None, **more: Any) -> Recording:
        """One recording with its detail: of that call, else of any."""
        async with self.reading(sim, **more) as source:
            found = (await source.list(self.span())).recordings
            return await source.detail(next(r for r in found if call is None or r.recording_id == call.uuid))

    # -- listing -----------------------------------------------------------------------------------------------------

    async def test_it_asks_as_the_vendor_s_page_says(self, sim: ImagicleSimulator) -> None:
        window = Window(datetime(2024, 5, 18, 10, 0, 0, 250_000, UTC), datetime(2024, 5, 18, 11, 0, tzinfo=UTC))
        async with self.reading(sim) as source:
            await source.list(window)
        (seen,) = sim.seen
        assert (seen.method, seen.path) == ("GET", ROOT)
        assert parse_qs(seen.query) == {
            "page": ["0"],
            "pageSize": ["100"],
            "startTime": ["after:2024-05-18T01:59:59Z"],
            "endTime": ["before:2024-05-18T11:00:01Z"],
        }
        assert seen.headers["Content-Type"] == "application/json"
        assert seen.headers["Accept"] == "application/json"
        assert seen.headers["Authorization"].startswith("Basic ")

    async def test_it_asks_for_a_detail_and_its_media_as_the_vendor_s_pages_say(self, sim: ImagicleSimulator) -> None:
        async with self.reading(sim) as source:
            await source.fetch(await self.first_medium(source), Kept())
        audio = sim.seen[-1]
        # The recorder writes an id in other letters in its detail than in its list.
        (detail,) = [s for s in sim.seen if f"{s.path}/media".lower() == audio.path.lower()]
        assert re.fullmatch(f"{ROOT}/[0-9A-Fa-f-]{{36}}/Media", audio.path)
        for seen in (detail, audio):
            assert (seen.method, seen.query) == ("GET", "")
            assert seen.headers["Authorization"].startswith("Basic ")
            # The page: no request body.
            assert not {"Content-Length", "Transfer-Encoding"} & set(seen.headers)
        assert detail.headers["Content-Type"] == detail.headers["Accept"] == "application/json"

    async def test_scheme_host_and_path_are_the_administrator_s(self, sim: ImagicleSimulator) -> None:
        root, _, rest = ROOT[1:].partition("/")
        assert await self.ids(sim, base_url=f"{sim.base_url}/{root}", list_path=f"/{rest}/") == set(sim.truth())

    async def test_pages_count_from_zero_to_the_last(self, sim: ImagicleSimulator) -> None:
        assert await self.ids(sim, page_size=7) == set(sim.truth())
        assert self.pages(sim) == [str(n) for n in range(9)]

    async def test_a_full_last_page_is_not_taken_for_the_end(self, sim: ImagicleSimulator) -> None:
        assert await self.ids(sim, page_size=20) == set(sim.truth())
        assert self.pages(sim) == ["0", "1", "2", "3"]

    async def test_a_recorder_that_caps_the_page_size_is_read_to_the_end(self, sim: ImagicleSimulator) -> None:
        sim.largest_page = 11
        assert await self.ids(sim) == set(sim.truth())

    @pytest.mark.parametrize("cap", [None, 11])
    async def test_without_totalcount_only_an_empty_page_ends_it(self, sim: ImagicleSimulator, cap: int | None) -> None:
        sim.counts = False
        sim.largest_page = cap
        assert await self.ids(sim) == set(sim.truth())

    async def test_a_recording_that_arrives_while_paging_begins_it_anew(self, sim: ImagicleSimulator) -> None:
        def arrive() -> None:
            sim.add_call(NOW - timedelta(seconds=40), timedelta(seconds=5))

        sim.fault("before", "list", match="page=3", value=arrive)
        assert await self.ids(sim, page_size=7) == set(sim.truth())
        assert len(sim.truth()) == 61
        assert self.pages(sim).count("0") == 2

    async def test_a_recording_deleted_while_paging_hides_no_other(self, sim: ImagicleSimulator) -> None:
        newest = max(sim.calls, key=lambda c: c.start)

        def expire() -> None:
            newest.deleted_at = NOW - timedelta(days=1)

        sim.fault("before", "list", match="page=3", value=expire)
        assert await self.ids(sim, page_size=7) == set(sim.truth())
        assert len(sim.truth()) == 59

    async def test_what_slips_past_unchanged_counts_is_found_by_the_next_listing(self, sim: ImagicleSimulator) -> None:
        """A newer one deleted and an older one completed between the same two pages: totalCount can't tell."""
        newest = max(sim.calls, key=lambda c: c.start)

        def swap() -> None:
            newest.deleted_at = NOW - timedelta(days=1)
            sim.add_call(NOW - timedelta(hours=6, minutes=5), timedelta(seconds=5))

        sim.fault("before", "list", match="page=3", value=swap)
        first = await self.ids(sim, page_size=7)
        assert len(set(sim.truth()) - first) == 1
        assert await self.ids(sim, page_size=7) == set(sim.truth())

    async def test_rows_that_come_twice_are_told_once(self, sim: ImagicleSimulator) -> None:
        """One added and an older one deleted: the rows between them move down, and one comes on two pages."""
        oldest = min(sim.calls, key=lambda c: c.start)

        def swap() -> None:
            oldest.deleted_at = NOW - timedelta(days=1)
            sim.add_call(NOW - timedelta(seconds=40), timedelta(seconds=5))

        sim.fault("before", "list", match="page=3", value=swap)
        assert await self.ids(sim, page_size=7) == set(sim.truth())
        assert self.pages(sim).count("0") == 2

    async def test_a_list_that_never_stands_still_is_tried_again_later(self, sim: ImagicleSimulator) -> None:
        def arrive() -> None:
            sim.add_call(NOW - timedelta(seconds=40), timedelta(seconds=5))

        sim.fault("before", "list", match="page=1&", times=-1, value=arrive)
        with pytest.raises(TryAgain, match=r"came or went .*totalCount 64, then 65"):
            await self.ids(sim, page_size=7)
        assert self.pages(sim) == ["0", "1"] * 5

    async def test_a_page_that_repeats_for_ever_is_tried_again_later(self) -> None:
        async with StuckRecorder(seed=7, clock=Clock(NOW)) as sim:
            sim.add_calls(NOW - timedelta(hours=6), NOW - timedelta(minutes=1), 20)
            with pytest.raises(TryAgain, match="page 1 repeats"):
                await self.ids(sim, page_size=7)
            assert len(sim.seen) == 10

    async def test_fewer_rows_than_totalcount_are_no_listing(self) -> None:
        async with ForeverRecorder(seed=7, clock=Clock(NOW)) as sim:
            sim.add_calls(NOW - timedelta(hours=6), NOW - timedelta(minutes=1), 20)
            with pytest.raises(TryAgain, match="counts 21 recordings, but its pages held 20"):
                await self.ids(sim, page_size=50)

    async def test_too_many_rows_ask_for_a_shorter_window(self, sim: ImagicleSimulator) -> None:
        with pytest.raises(Overflow, match="most_rows"):
            await self.ids(sim, page_size=7, most_rows=59)
        assert len(sim.seen) == 1
        sim.counts = False
        with pytest.raises(Overflow, match="most_rows"):
            await self.ids(sim, page_size=7, most_rows=30)

    async def test_a_call_that_ends_on_a_window_s_very_edge_is_found(self, sim: ImagicleSimulator) -> None:
        """The simulator's bounds are exclusive; nobody says what the vendor's are."""
        call = sim.add_call(NOW - timedelta(hours=2, seconds=10), timedelta(seconds=10))
        async with self.reading(sim) as source:
            for window in (Window(call.end, NOW), Window(call.end, call.end + timedelta(seconds=1))):
                assert call.uuid in {r.recording_id for r in (await source.list(window)).recordings}

    async def test_it_lists_what_ended_in_the_window_and_little_else(self, sim: ImagicleSimulator) -> None:
        window = Window(NOW - timedelta(hours=2), NOW - timedelta(hours=1))
        async with self.reading(sim) as source:
            found = {r.recording_id for r in (await source.list(window)).recordings}
        assert found == {c.uuid for c in sim.calls if c.end in window}

    async def test_between_asks_by_the_end_alone(self, sim: ImagicleSimulator) -> None:
        call = sim.add_call(NOW - timedelta(hours=11), timedelta(hours=10))
        window = Window(NOW - timedelta(hours=2), NOW)
        for more, found in (({}, False), ({"longest_call": "12h"}, True), ({"between": "{start},{end}"}, True)):
            async with self.reading(sim, **more) as source:
                listed = {r.recording_id for r in (await source.list(window)).recordings}
            assert (call.uuid in listed) is found, more
            assert {c.uuid for c in sim.calls if c.end in window} - {call.uuid} <= listed
        assert parse_qs(sim.seen[-1].query)["endTime"] == ["between:2024-05-18T09:59:59Z,2024-05-18T12:00:01Z"]

    async def test_only_completed_recordings_are_listed(self, sim: ImagicleSimulator) -> None:
        call = sim.add_call(NOW - timedelta(seconds=30), timedelta(minutes=2))
        assert call.uuid not in await self.ids(sim)
        sim.clock.advance(timedelta(minutes=2))
        assert call.uuid in await self.ids(sim)

    async def test_a_slow_query_asks_for_a_shorter_window(self, sim: ImagicleSimulator) -> None:
        sim.fault("status", "list", value=504)
        with pytest.raises(Overflow, match="504"):
            await self.ids(sim)

    @pytest.mark.parametrize("on", ["list", "detail"])
    async def test_an_invalid_licence_is_said(self, sim: ImagicleSimulator, on: str) -> None:
        sim.fault("status", on, value=501)
        with pytest.raises(Refused, match="licence"):
            await self.detailed(sim)

    async def test_a_refused_filter_is_told_with_the_vendor_s_message(self, sim: ImagicleSimulator) -> None:
        with pytest.raises(BadData, match="Invalid filter endTime"):
            await self.ids(sim, between="{start}..{end}")

    async def test_a_refused_page_is_told_with_the_vendor_s_message(self) -> None:
        class Modest(ImagicleSimulator):
            async def _list(self, request: web.Request) -> web.StreamResponse:
                if int(request.query["pageSize"]) > 50:
                    return refused(400, reason=1, message="Invalid paging: at most 50 rows")
                return await super()._list(request)

        async with Modest(seed=7, clock=Clock(NOW)) as sim:
            sim.add_calls(NOW - timedelta(hours=6), NOW - timedelta(minutes=1), 20)
            with pytest.raises(BadData, match="at most 50 rows"):
                await self.ids(sim)
            assert await self.ids(sim, page_size=50) == set(sim.truth())

    async def test_a_wrong_list_path_is_named(self, sim: ImagicleSimulator) -> None:
        with pytest.raises(BadData, match="list_path"):
            await self.ids(sim, list_path="/elsewhere")

    async def test_an_unreadable_row_is_kept_as_it_came_and_hides_no_other(self, sim: ImagicleSimulator) -> None:
        sim.fault("bad_row", "list")
        async with self.reading(sim) as source:
            listing = await source.list(self.span())
        assert len(listing.recordings) == 59
        (rejected,) = listing.rejected
        assert '"startTime": "yesterday"' in rejected.raw
        assert "yesterday" in rejected.reason

    @pytest.mark.parametrize(
        "row",
        [
            None,
            "text",
            [],
            {},
            {"id": None},
            {"id": "../../Users"},
            {"id": ID},
            {"id": ID, "startTime": None},
            {"id": ID, "startTime": "2024-05-17T25:00:00Z"},
            {"id": ID, "startTime": "2024-05-17T11:00:00Z", "duration": "90"},
            {"id": ID, "startTime": "2024-05-17T11:00:00Z", "duration": 90},
            {"id": ID, "startTime": "9999-12-31T11:00:00Z", "duration": "P9999999D"},
            {"id": ID, "startTime": "2024-05-17T11:00:00Z", "note": {"text": "x" * 9000}, "duration": "?"},
        ],
    )
    async def test_no_row_breaks_a_listing(self, sim: ImagicleSimulator, row: Any) -> None:
        async with self.reading(sim) as source:
            assert isinstance(source, Imagicle)
            listing = source._listing([row, {"id": ID, "startTime": "2024-05-18T11:00:00Z"}], self.span())
        assert [r.recording_id for r in listing.recordings] == [ID.lower()]
        assert len(listing.rejected[0].raw) <= 4096
        assert listing.rejected[0].reason

    # -- reading -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("told", "meant"),
        [
            ("2018-09-25T13:00:00.0000000Z", datetime(2018, 9, 25, 13, tzinfo=UTC)),
            ("2018-09-25T13:00:00.1234567Z", datetime(2018, 9, 25, 13, 0, 0, 123_456, UTC)),
            ("2018-09-25T13:00:00.12Z", datetime(2018, 9, 25, 13, 0, 0, 120_000, UTC)),
            ("2018-09-25T15:00:00+02:00", datetime(2018, 9, 25, 13, tzinfo=UTC)),
            ("2018-09-25T15:00:00.5", datetime(2018, 9, 25, 13, 0, 0, 500_000, UTC)),
            ("2018-12-25T15:00:00", datetime(2018, 12, 25, 14, tzinfo=UTC)),
            ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
            ("2099-01-01T00:00:00Z", datetime(2099, 1, 1, tzinfo=UTC)),
        ],
    )
    def test_times_of_net_are_utc_inside(self, told: str, meant: datetime) -> None:
        row = {"id": ID, "startTime": told, "duration": "PT1M"}
        recording = read(row, ZoneInfo("Europe/Rome"), "strict")
        assert recording.started_at == meant
        assert recording.started_at.tzinfo is UTC
        assert recording.ended_at == meant + timedelta(minutes=1)

    @pytest.mark.parametrize(
        ("told", "seconds"),
        [
            (None, None), ("PT1M30S", 90), ("PT2M5S", 125), ("PT0S", 0), ("PT1H2M3.456S", 3723.456), ("PT36H", 129600),
            ("PT3.4567891S", 3.456789), ("P1DT2H", 93600), ("PT0.5S", 0.5), ("PT1,5S", 1.5),
        ],
    )  # fmt: skip
    def test_durations_are_iso_8601(self, told: str | None, seconds: float | None) -> None:
        assert duration(told) == (None if seconds is None else timedelta(seconds=seconds))

    @pytest.mark.parametrize("told", ["", "P", "PT", "P1DT", "90", "00:01:30", "-PT5S", "PT5", "PT1..5S", "P1Y"])
    def test_what_is_no_duration_is_not_guessed(self, told: str) -> None:
        with pytest.raises(ValueError):
            duration(told)

    async def test_times_without_a_zone_are_the_configured_one_s_and_no_call_is_filtered_by_them(
        self, sim: ImagicleSimulator
    ) -> None:
        """With a wrong ``timezone`` a call seems to end elsewhere: the recorder's own filter chose it, so it stays."""
        sim.zone = ""
        for zone in ("America/Denver", "Asia/Tokyo"):
            async with self.reading(sim, timezone=zone) as source:
                found = {r.recording_id for r in (await source.list(Window(NOW - timedelta(hours=6), NOW))).recordings}
            assert set(sim.truth()) <= found
        found = await self.detailed(sim, sim.calls[0], timezone="America/Denver")
        assert found.started_at == sim.calls[0].start + timedelta(hours=6)

    async def test_ids_are_lower_case_inside_and_as_the_vendor_wrote_them_outside(self, sim: ImagicleSimulator) -> None:
        async with self.reading(sim) as source:
            found = (await source.list(self.span())).recordings
            for recording in found[:8]:
                await source.fetch((await source.detail(recording)).media[0], Kept())
        given = [r.media[0].ref["id"] for r in found]
        assert {i.isupper() for i in given} == {True, False}
        assert [r.recording_id for r in found] == [i.lower() for i in given]
        assert [s.path for s in sim.seen if s.on == "detail"] == [f"{ROOT}/{i}" for i in given[:8]]

    async def test_the_detail_adds_owner_note_and_who_preserves_it(self, sim: ImagicleSimulator) -> None:
        call = sim.add_call(
            NOW - timedelta(hours=1), timedelta(seconds=9), note=" Refund agreed ", agent=("Joe Dalton", "1573"),
            index=62, direction=Direction.INBOUND, caller="+16505550100", callee="1573", extra={"pbx_call_id": 77},
        )  # fmt: skip
        found = await self.detailed(sim, call)
        assert found.call_id == "77"
        assert found.direction is Direction.INBOUND
        assert (found.caller, found.callee) == ("+16505550100", "1573")
        assert found.agent == "Joe Dalton (1573)"
        assert found.queue is None
        assert found.parties == (
            Party(number="1573", name="Joe Dalton", user="joe_dalton", role="agent"),
            Party(number="+16505550100", role="caller"),
        )
        assert found.attributes == {
            "referenceNumber": "20240518000062", "group": "sales", "department": "IT", "note": "Refund agreed",
            "noteOwner": "admin", "preservingUser": "joe_dalton",
        }  # fmt: skip
        assert found.raw["ownerUsername"] == "joe_dalton"
        assert found.raw["preservingUser"]["department"] == "IT"

    async def test_recordings_of_one_conversation_share_its_call_id(self, sim: ImagicleSimulator) -> None:
        calls = [
            sim.add_call(NOW - timedelta(minutes=m), timedelta(seconds=9), extra={"pbx_call_id": 5}) for m in (9, 8)
        ]
        assert [(await self.detailed(sim, c)).call_id for c in calls] == ["5", "5"]

    @pytest.mark.parametrize("told", [ID, ID.lower(), f" {ID} ", "{" + ID + "}"])
    def test_one_guid_is_one_recording_however_it_is_written_and_asked_for_as_it_is_told(self, told: str) -> None:
        found = read({"id": told, "startTime": "2024-05-18T11:00:00Z", "pbxCallId": " 5 "}, UTC, "strict")
        assert (found.recording_id, found.media[0].ref["id"], found.call_id) == (ID.lower(), told, " 5 ")

    @pytest.mark.parametrize(
        ("told", "direction", "caller", "callee", "role"),
        [
            (1, Direction.INBOUND, "+39", "225", "caller"),
            (2, Direction.OUTBOUND, "225", "+39", "callee"),
            (0, Direction.UNKNOWN, None, None, None),
            (7, Direction.UNKNOWN, None, None, None),
        ],
    )
    @pytest.mark.parametrize("field", ["remotePartyNumber", "remoteParty"])
    def test_the_direction_says_who_called(
        self, told: int, direction: Direction, caller: str | None, callee: str | None, role: str | None, field: str
    ) -> None:
        row = {"id": ID, "startTime": "2024-05-18T11:00:00Z", "direction": told, "localPartyNumber": "225"}
        found = read({**row, field: "+39"}, UTC, "strict")
        assert (found.direction, found.caller, found.callee) == (direction, caller, callee)
        assert found.parties == (Party(number="225", role="agent"), Party(number="+39", role=role))

    @pytest.mark.parametrize(
        ("owner", "agent"),
        [
            (None, "john_doe"),
            ({"username": "john_doe"}, "john_doe"),
            ({"username": "john_doe", "firstName": "John", "lastName": "Doe", "phoneNumber": "225"}, "John Doe (225)"),
            ({"username": "john_doe", "firstName": "John", "lastName": " ", "phoneNumber": ""}, "John"),
            ({"username": "john_doe", "phoneNumber": "225"}, "john_doe"),
        ],
    )
    def test_the_agent_is_the_owner(self, owner: dict[str, Any] | None, agent: str) -> None:
        row = {"id": ID, "startTime": "2024-05-18T11:00:00Z", "ownerUsername": "john_doe", "owner": owner}
        assert read(row, UTC, "strict").agent == agent

    async def test_a_recording_gone_meanwhile_is_not_ready(self, sim: ImagicleSimulator) -> None:
        async with self.reading(sim) as source:
            found = (await source.list(self.span())).recordings[0]
            next(c for c in sim.calls if c.uuid == found.recording_id).deleted_at = NOW - timedelta(days=1)
            with pytest.raises(NotReady):
                await source.detail(found)
            with pytest.raises(NotReady):
                await source.fetch(found.media[0], Kept())

    async def test_a_detail_of_another_recording_is_refused(self, sim: ImagicleSimulator) -> None:
        async with self.reading(sim) as source:
            one, other = (await source.list(self.span())).recordings[:2]
            mixed = Recording(recording_id=one.recording_id, started_at=one.started_at, media=other.media)
            with pytest.raises(BadData, match="another recording"):
                await source.detail(mixed)

    @pytest.mark.parametrize("kind", ["json", "html", "torn", "empty"])
    async def test_a_broken_detail_is_tried_again(self, sim: ImagicleSimulator, kind: str) -> None:
        sim.fault(kind, "detail")
        with pytest.raises(TryAgain):
            await self.detailed(sim)

    # -- hash and size -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("encoding", ["hex", "base64"])
    async def test_strict_binds_the_bytes_to_the_vendor_s_hash_and_size(
        self, sim: ImagicleSimulator, encoding: str
    ) -> None:
        sim.encoding = encoding
        found = await self.detailed(sim, sim.calls[0])
        audio = sim.expected(sim.calls[0])[found.recording_id].audio["audio"]
        assert found.media[0].sha256 == hashlib.sha256(audio).hexdigest()
        assert found.media[0].size == len(audio)
        assert "source_sha256" not in found.attributes

    @pytest.mark.parametrize("write", [
        lambda d: d.hex(), lambda d: d.hex().upper(), lambda d: d.hex("-").upper(), lambda d: f" {d.hex()}\n",
        lambda d: base64.b64encode(d).decode(),
        lambda d: base64.urlsafe_b64encode(d).decode().rstrip("="),
    ])  # fmt: skip
    def test_the_hash_is_read_however_it_is_written(self, write: Any) -> None:
        digest = hashlib.sha256(b"x").digest()
        row = {"id": ID, "startTime": "2024-05-18T11:00:00Z", "hash": {"SHA256": write(digest)}}
        assert read(row, UTC, "strict").media[0].sha256 == digest.hex()

    @pytest.mark.parametrize(
        ("told", "size"),
        [(651264, 651264), (2**40, 2**40), ("651264", 651264), (None, None), (-1, None), (True, None), ("?", None)],
    )
    def test_the_size_is_bytes_however_many(self, told: Any, size: int | None) -> None:
        row = {"id": ID, "startTime": "2024-05-18T11:00:00Z", "size": told}
        assert read(row, UTC, "strict").media[0].size == size

    async def test_strict_tells_other_bytes_from_the_right_ones(self, sim: ImagicleSimulator) -> None:
        """The engine compares; the source only says what the vendor told."""
        sim.fault("wrong_hash", "detail")
        found = await self.detailed(sim, sim.calls[0])
        audio = sim.expected(sim.calls[0])[found.recording_id].audio["audio"]
        assert found.media[0].sha256 not in {None, hashlib.sha256(audio).hexdigest()}

    async def test_strict_takes_no_hash_that_it_can_t_read(self, sim: ImagicleSimulator) -> None:
        sim.encoding = "odd"
        with pytest.raises(BadData, match=r"neither hex nor base64.*warn"):
            await self.detailed(sim)
        assert (await self.detailed(sim, hash_check="warn")).attributes["source_sha256"] == "(odd)"
        assert "source_sha256" not in (await self.detailed(sim, hash_check="off")).attributes

    async def test_hash_check_counts_as_it_is_set_now(self) -> None:
        """Of what was listed before it was changed, too."""
        row = {"id": ID, "startTime": "2024-05-18T11:00:00Z", "size": 7, "hash": {"SHA256": "0" * 64}}
        for before in ("strict", "warn"):
            (medium,) = read(row, UTC, before).media
            for now, facts in (("strict", (7, "0" * 64)), ("warn", (None, None)), ("off", (None, None))):
                options = {"kind": "imagicle", "base_url": "http://h", "username": "u", "password": "p"}
                async with opened(Imagicle, {**options, "hash_check": now}) as source:
                    expected = source.expected(medium)  # type: ignore[attr-defined]
                assert (expected.size, expected.sha256) == facts, (before, now)

    @pytest.mark.parametrize("hash_check", ["strict", "warn", "off"])
    async def test_a_recording_without_a_hash_is_read(self, sim: ImagicleSimulator, hash_check: str) -> None:
        sim.encoding = "none"
        found = await self.detailed(sim, hash_check=hash_check)
        assert found.media[0].sha256 is None
        assert "source_sha256" not in found.attributes

    @pytest.mark.parametrize(("fault", "warned"), [(None, False), ("wrong_hash", True), ("wrong_size", True)])
    async def test_warn_binds_nothing_and_logs_what_differs(
        self, sim: ImagicleSimulator, fault: str | None, warned: bool
    ) -> None:
        if fault:
            sim.fault(fault, "detail")
        async with self.reading(sim, hash_check="warn") as source:
            found = await source.detail((await source.list(self.span())).recordings[0])
            kept = Kept()
            with capture_logs() as logs:
                await source.fetch(found.media[0], kept)
        assert (found.media[0].sha256, found.media[0].size) == (None, None)
        assert bytes(kept.data) == sim.truth()[found.recording_id].audio["audio"]
        assert kept.content_type == "audio/mpeg"
        assert len(found.attributes["source_sha256"]) == 64
        assert [(e["log_level"], e["id"]) for e in logs] == [("warning", found.recording_id)] * warned

    async def test_off_ignores_hash_and_size(self, sim: ImagicleSimulator) -> None:
        sim.fault("wrong_hash", "detail")
        async with self.reading(sim, hash_check="off") as source:
            found = await source.detail((await source.list(self.span())).recordings[0])
            with capture_logs() as logs:
                await source.fetch(found.media[0], Kept())
        assert (found.media[0].sha256, found.media[0].size, logs) == (None, None, [])

    # -- downloads ---------------------------------------------------------------------------------------------------

    async def test_each_recording_is_downloaded_exactly_once(self, sim: ImagicleSimulator) -> None:
        """The vendor writes an audit event for each download."""
        async with self.reading(sim) as source:
            await source.check()
            found = await self.everything(source, self.span())
            assert sim.audit == []
            for recording in found.values():
                await source.fetch(recording.media[0], Kept())
        assert sorted(i for _, i in sim.audit) == sorted(found)
        assert sim.count("audio") == len(found) == 60

    @pytest.mark.parametrize("kind", ["truncate", "flip", "empty"])
    async def test_a_failed_download_is_not_repeated_by_itself(self, sim: ImagicleSimulator, kind: str) -> None:
        async with self.reading(sim, hash_check="warn") as source:
            medium = await self.first_medium(source)
            sim.fault(kind, "audio", times=-1)
            with suppress(TryAgain):
                await source.fetch(medium, Kept())
        assert sim.count("audio") == 1

    async def test_bytes_that_are_no_mp3_arrive_as_they_are(self, sim: ImagicleSimulator) -> None:
        """Uploads may be WAV; the page says audio/mpeg all the same."""
        call = sim.add_call(NOW - timedelta(minutes=9), timedelta(seconds=3), extra={"format": "wav"})
        found = await self.detailed(sim, call)
        assert found.media[0].content_type is None
        kept = Kept()
        async with self.reading(sim) as source:
            await source.fetch(found.media[0], kept)
        assert kept.data.startswith(b"RIFF")

    @pytest.mark.parametrize("media_path", ["Media", f"{ROOT}/{{id}}/Media"])
    async def test_the_media_path_is_an_option(self, sim: ImagicleSimulator, media_path: str) -> None:
        async with self.reading(sim, media_path=media_path) as source:
            kept = Kept()
            await source.fetch(await self.first_medium(source), kept)
            assert kept.data

    # -- the account -------------------------------------------------------------------------------------------------

    async def test_check_says_how_many_recordings_it_sees(self, sim: ImagicleSimulator) -> None:
        async with self.reading(sim) as source:
            assert await source.check() == "logged in as archive: 60 recordings visible"
        assert sim.count("list") == 1

    @pytest.mark.parametrize("written", ["joe_dalton", "JOE_DALTON", "EXAMPLE\\joe_dalton", "joe_dalton@example.com"])
    async def test_check_warns_where_the_account_sees_only_its_own(self, sim: ImagicleSimulator, written: str) -> None:
        sim.level, sim.username = "own", written
        async with self.reading(sim) as source:
            line = await source.check()
        assert line.startswith(f"warning: only recordings of {written} are visible")
        assert "administrator role" in line

    async def test_a_partial_list_is_silent_and_no_other_id_is_reachable(self, sim: ImagicleSimulator) -> None:
        hidden = next(c for c in sim.calls if c.agent[0] != "Joe Dalton")
        found = await self.detailed(sim, hidden)
        sim.level, sim.username = "own", "joe_dalton"
        assert hidden.uuid not in await self.ids(sim)
        async with self.reading(sim) as source:
            with pytest.raises(Refused):
                await source.detail(found)
            with pytest.raises(Refused):
                await source.fetch(found.media[0], Kept())

    async def test_check_does_not_suspect_an_account_that_sees_others_too(self, sim: ImagicleSimulator) -> None:
        sim.level, sim.username = "group", "joe_dalton"
        async with self.reading(sim) as source:
            assert (await source.check()).startswith("logged in as joe_dalton: ")

    async def test_check_warns_where_nothing_is_visible(self, sim: ImagicleSimulator) -> None:
        sim.level, sim.username = "own", "nobody"
        async with self.reading(sim) as source:
            assert (await source.check()).startswith("warning: nobody sees no recordings")

    async def test_check_says_that_times_carry_no_zone(self, sim: ImagicleSimulator) -> None:
        sim.zone = ""
        async with self.reading(sim) as source:
            assert "times without a zone are read as UTC" in await source.check()

    async def test_check_does_not_compare_counts_that_are_not_told(self, sim: ImagicleSimulator) -> None:
        sim.level, sim.username, sim.counts = "own", "joe_dalton", False
        async with self.reading(sim) as source:
            assert await source.check() == "logged in as joe_dalton: some recordings visible"

    async def test_an_account_below_base_access_is_refused(self, sim: ImagicleSimulator) -> None:
        sim.level = "none"
        async with self.reading(sim) as source:
            with pytest.raises(Refused, match="Base Access"):
                await source.check()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"username": "a:b"}, "username"),
        ({"username": ""}, "username"),
        ({"hash_check": "lenient"}, "hash_check"),
        ({"media_path": "/api/Media"}, "media_path"),
        ({"media_path": "a/../b"}, "media_path"),
        ({"list_path": "Recordings"}, "list_path"),
        ({"overlap": "0s"}, "overlap"),
        ({"page_size": 0}, "page_size"),
        ({"pagesize": 5}, "pagesize"),
    ],
)
def test_options_that_can_t_work_are_refused(change: dict[str, Any], says: str) -> None:
    good = {"kind": "imagicle", "base_url": "http://pbx", "username": "a", "password": "secret-word"}
    assert ImagicleOptions(**good).hash_check == "strict"  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=says) as caught:
        ImagicleOptions(**{**good, **change})
    assert "secret-word" not in str(caught.value)


def basic(username: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"}


async def test_a_list_that_is_text_is_tried_again() -> None:
    async with ImagicleSimulator(seed=7, clock=Clock(NOW)) as sim, opened(Imagicle, sim.options()) as source:
        sim._list = answering({"totalCount": 4, "recordings": "none"})  # type: ignore[method-assign]
        await sim.stop()
        await sim.start()
        with pytest.raises(TryAgain, match="no list of recordings"):
            await source.list(Window(NOW - timedelta(hours=1), NOW))


def answering(body: Any) -> Any:
    async def answer(_: Any) -> web.Response:
        return web.json_response(body)

    return answer


class TestTheSimulator:
    """Is it as strict as the vendor's pages?"""

    async def ask(self, sim: ImagicleSimulator, path: str = "", method: str = "GET", **how: Any) -> tuple[int, Any]:
        how = {"headers": basic(sim.username, sim.password), **how}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{sim.base_url}{ROOT}{path}", **how) as response,
        ):
            body = await (response.json() if response.content_type == "application/json" else response.read())
            return response.status, body

    @pytest.fixture
    async def sim(self) -> Any:
        async with ImagicleSimulator(seed=3, clock=Clock(NOW)) as sim:
            sim.add_calls(NOW - timedelta(hours=6), NOW - timedelta(minutes=1), 30)
            yield sim

    @pytest.mark.parametrize("path", ["", "/", f"/{ID}", f"/{ID}/Media"])
    @pytest.mark.parametrize("headers", [{}, basic("archive", "guess"), {"Authorization": "Bearer x"}])
    async def test_every_page_wants_the_right_credentials(
        self, sim: ImagicleSimulator, path: str, headers: Any
    ) -> None:
        assert (await self.ask(sim, path, headers=headers))[0] == 401

    @pytest.mark.parametrize("query", [
        "?sort=asc", "?startTime=yesterday", "?startTime=since:2024-05-18T00:00:00Z", "?endTime=after:2024-05-18",
        "?endTime=between:2024-05-18T00:00:00Z", "?direction=3", "?remoteParty=1",
        "?endTime=after:2024-05-18T00:00:00Z&endTime=before:2024-05-19T00:00:00Z",
    ])  # fmt: skip
    async def test_a_wrong_filter_is_reason_0(self, sim: ImagicleSimulator, query: str) -> None:
        status, body = await self.ask(sim, query)
        assert (status, body["reason"]) == (400, 0)
        assert body["message"]

    @pytest.mark.parametrize("query", ["?page=-1&pageSize=5", "?page=a&pageSize=5", "?page=0&pageSize=0"])
    async def test_a_wrong_page_is_reason_1(self, sim: ImagicleSimulator, query: str) -> None:
        status, body = await self.ask(sim, query)
        assert (status, body["reason"]) == (400, 1)

    async def test_without_a_page_size_everything_comes_newest_first(self, sim: ImagicleSimulator) -> None:
        _, body = await self.ask(sim)
        assert body["totalCount"] == len(body["recordings"]) == 30
        starts = [r["startTime"] for r in body["recordings"]]
        assert [s[:19] for s in starts] == sorted((s[:19] for s in starts), reverse=True)

    async def test_every_filter_filters(self, sim: ImagicleSimulator) -> None:
        told = [c for c in sim.calls if c.index % 13 != 4 and c.index % 11 != 5]
        call = next(c for c in told if c.direction is Direction.INBOUND)
        user = call.agent[0].lower().replace(" ", "_")
        at = call.start.isoformat().replace("+00:00", "Z")
        for query in (
            f"startTime={at}", f"localPartyNumber={call.callee}", f"remotePartyNumber=%2B{call.caller[1:]}",
            f"remotePartyNumber=contains:{call.caller[-7:]}", f"ownerUsername={user}", "direction=1",
        ):  # fmt: skip
            _, body = await self.ask(sim, f"?{query}")
            assert call.uuid in {r["id"].lower() for r in body["recordings"]}, query
            assert 0 < body["totalCount"] < 30, query

    async def test_pages_of_single_recordings_answer_as_documented(self, sim: ImagicleSimulator) -> None:
        known = sim.calls[0].uuid
        for path in (known.upper(), known):
            assert (await self.ask(sim, f"/{path}"))[0] == 200
        for tail in ("", "/Media"):
            assert (await self.ask(sim, f"/not-a-guid{tail}"))[0] == 400
            assert (await self.ask(sim, f"/{ID}{tail}"))[0] == 404
            assert (await self.ask(sim, f"/{known}{tail}", method="POST"))[0] == 405
        assert sim.audit == []
        status, body = await self.ask(sim, f"/{known}/Media")
        assert status == 200
        assert hashlib.sha256(body).hexdigest() == (await self.ask(sim, f"/{known}"))[1]["hash"]["SHA256"].lower()
        assert sim.audit == [("archive", known)]
