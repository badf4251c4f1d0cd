"""Everything that can go wrong, row by row of the table in docs/reliability.md, through real HTTP into real stores."""

import asyncio
import hashlib
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from structlog.testing import capture_logs

from archiver.errors import Refused
from archiver.model import Outcome, State, Window
from archiver.service import report
from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.base import Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync.failures import FRESH, GONE_AFTER
from archiver.sync.feeds import REFUSALS
from archiver.sync.poll import PARTS
from archiver.sync.transfer import transfer
from archiver.sync.windows import subtract
from tests.engine import HOUR, MINUTE, Rig, a_recorder, archiving, assert_archived, audio_requests, eventually
from tests.factories import NOON

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


def file_of(sim: Simulator, number: int = 0) -> str:
    return XivoSimulator.file_id(sim.calls[number])


# -- what why tells ---------------------------------------------------------------------------------------------------


async def test_why_tells_the_fingerprint_of_what_was_answered_and_no_word_of_it(tmp_path, database, clock):
    sim = a_recorder(calls=4)
    whole = {name: told.audio["audio"] for name, told in sim.truth().items()}
    cut, page, refused, lost = (file_of(sim, n) for n in range(4))
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        sim.fault("truncate", "audio", times=1, match=cut)
        sim.fault("html", "audio", times=1, match=page)
        sim.fault("status", "audio", times=1, match=refused, value=503)
        sim.fault("reset", "audio", times=2, match=lost)
        await rig.sync()

        async def answer(recording_id: str) -> str | None:
            told = await report.why(rig.catalog, "pbx", recording_id)
            (answer,) = [event["answer"] for event in told["story"] if event["what"] == "failed"]
            assert all(event["answer"] is None for event in told["story"] if event["what"] != "failed")
            return answer

        told = re.fullmatch(r"200, audio/[a-z-]+, ([0-9]+) bytes, SHA-256 ([0-9a-f]{12})", await answer(cut))
        came = whole[cut][: int(told[1])]
        assert 0 < len(came) < len(whole[cut])
        assert told[2] == hashlib.sha256(came).hexdigest()[:12]
        assert re.fullmatch(r"200, text/html, [0-9]+ bytes, SHA-256 [0-9a-f]{12}", await answer(page))
        assert re.fullmatch(r"503, [a-z/]+, [0-9]+ bytes, SHA-256 [0-9a-f]{12}", await answer(refused))
        assert await answer(lost) is None


async def test_an_error_page_that_differs_each_time_adds_no_row_and_the_last_is_told(tmp_path, database, clock):
    sim = a_recorder(calls=1)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.poll()
        for attempt in range(3):
            (claim,) = await rig.catalog.claim({"pbx": 1}, MINUTE)
            outcome = Outcome(
                claim=claim,
                state=State.PENDING,
                due_at=clock.now(),
                error="failed: these bytes are HTML, not audio",
                attempts=attempt + 1,
                failing_since=clock.now(),
                what="failed",
                answer=f"200, text/html, {attempt} bytes, SHA-256 {attempt:012x}" if attempt < 2 else None,
            )
            await rig.catalog.settle([], [outcome], revisions={}, targets={})
        (event,) = await rig.catalog.history("pbx", file_of(sim))
        assert event["times"] == 3
        assert event["answer"] == "200, text/html, 1 bytes, SHA-256 000000000001"


async def test_a_medium_that_one_process_had_in_hand_twice_is_counted_once(tmp_path, database, clock):
    """As it may be after an outage of the database that lasted longer than a lease."""
    sim = a_recorder(calls=1)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.poll()
        transferred = []
        for _ in range(2):
            (claim,) = await rig.catalog.claim({"pbx": 1}, MINUTE)
            transferred.append(await transfer(rig.feed, claim, rig.catalog, rig.archive.spool))
            rig.advance(MINUTE)
        engine = rig.archive.engine()
        await engine._commit([(rig.feed, result) for result in transferred], "commit")
        assert engine.tally.states == {("pbx", State.ARCHIVED): 1}
        assert engine.tally.bytes["pbx"] == transferred[0].size
        assert await assert_archived(rig) == 1


# -- try again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("stall", "sent nothing for 0.3 s"),
        ("reset", "connection"),
        ("truncate", "cut off"),
        ("clean_cut", "WAV"),
        ("html", "HTML"),
        ("json", "JSON"),
        ("status", "503"),
        ("redirect", "web address"),
    ],
)
async def test_a_broken_download_is_stored_nowhere_and_tried_again_later(tmp_path, database, clock, kind, said):
    sim = a_recorder(calls=3)
    victim = file_of(sim, 1)
    async with archiving(tmp_path, database, sim, clock=clock, timeout="300ms") as rig:
        # aiohttp repeats a GET once whose kept-alive connection turns out to be dead.
        times = 2 if kind == "reset" else 1
        value = {"status": 503, "redirect": "ftp://example.com/x"}.get(kind)
        fault = sim.fault(kind, "audio", times=times, match=victim, value=value)
        await rig.sync()
        assert fault.hits == times
        medium = await rig.medium(victim)
        # What may be a recording that is still written is looked at again, and no attempt is counted.
        what = "cut" if kind == "clean_cut" else "failed"
        assert (medium["state"], medium["copies"]) == ("pending", [])
        assert (medium["attempts"], medium["error"].partition(": ")[0]) == (int(what == "failed"), what)
        assert said.lower() in medium["error"].lower()
        assert await rig.states() == {"archived": 2, "pending": 1}
        assert len(await rig.media_keys("disk")) == 2

        # Not before it is due, and then at once.
        asked = sim.count("audio")
        await rig.sync()
        assert sim.count("audio") == asked
        rig.advance(2 * SECOND if what == "failed" else HOUR)
        await rig.sync()
        assert sim.count("audio") == asked + 1
        assert await assert_archived(rig) == 3
        assert await rig.happened(victim) == {what: 1}


async def test_other_bytes_than_the_vendor_told_of_are_stored_nowhere(tmp_path, database, clock):
    faults = ("flip", "clean_cut", "html", "empty", "header_only")
    sim = a_recorder(ImagicleSimulator, 12)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        rig.feed.health.allowed = 1000
        for number, kind in enumerate(faults):
            # Of calls with odd numbers it tells the id in lower case.
            sim.fault(kind, "audio", times=1, match=sim.calls[2 * number + 1].uuid)
        await rig.sync()
        assert await rig.states() == {"archived": 7, "pending": 5}
        for number, kind in enumerate(faults):
            medium = await rig.medium(sim.calls[2 * number + 1].uuid)
            assert (medium["state"], medium["attempts"], medium["copies"]) == ("pending", 1, []), kind
            assert medium["error"].startswith("mismatch: the source says "), kind
        assert len(await rig.media_keys("disk")) == 7
        rig.advance(2 * SECOND)
        await rig.sync()
        assert await assert_archived(rig) == 12


async def test_bytes_that_are_not_those_the_vendor_hashed_are_stored_nowhere(tmp_path, database, clock):
    sim = a_recorder(ImagicleSimulator, 1)
    sim.fault("wrong_hash", "detail", times=-1)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        for wait in (0, 2, 3, 5):
            rig.advance(wait * SECOND)
            await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["attempts"]) == ("pending", 4)
        assert "SHA-256" in medium["error"]
        assert await rig.media_keys("disk") == []


async def test_a_hash_that_the_vendor_told_wrongly_once_is_asked_anew_before_the_next_attempt(
    tmp_path, database, clock
):
    sim = a_recorder(ImagicleSimulator, 3)
    sim.fault("wrong_hash", "detail", times=1)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await rig.states() == {"archived": 2, "pending": 1}
        details = sim.count("detail")
        rig.advance(2 * SECOND)
        # No poll: what asks anew is the attempt itself, and it asks for this recording alone.
        await rig.transfer()
        await rig.transfer()
        assert sim.count("detail") == details + 1
        assert await assert_archived(rig) == 3


async def test_a_number_of_bytes_that_the_vendor_did_not_tell_is_stored_nowhere(tmp_path, database, clock):
    sim = a_recorder(ChronicallSimulator, 2)
    sim.calls[1].extra["row"] = {"size": 4711}
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        (bad,) = [m for d in (await rig.documents()).values() for m in d["media"] if m["state"] == "pending"]
        assert "4711 bytes" in bad["error"]
        assert bad["copies"] == []
        assert len(await rig.media_keys("disk")) == (await rig.states())["archived"] == 2


async def test_each_failure_doubles_the_wait_up_to_the_cap(tmp_path, database, clock):
    sim = a_recorder(calls=1)
    sim.fault("status", "audio", times=-1, value=500)
    async with archiving(tmp_path, database, sim, clock=clock, retry={"first": "10s", "cap": "40s"}) as rig:
        rig.feed.health.allowed = 1000
        waits = []
        for _ in range(5):
            await rig.sync()
            due = (await rig.catalog.due(["pbx"]))["pbx"]
            waits.append((due - clock.now()).total_seconds())
            rig.advance(due - clock.now())
        assert sim.count("audio") == 5
        for wait, expected in zip(waits, (10, 20, 40, 40, 40), strict=True):
            assert 0.75 * expected <= wait <= 1.25 * expected
        assert len({round(w / e, 4) for w, e in zip(waits, (10, 20, 40, 40, 40), strict=True)}) > 1, "no jitter"


async def test_retry_after_is_honoured(tmp_path, database, clock):
    sim = a_recorder(calls=1)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        sim.fault("retry_after", "audio", times=1, value=600)
        await rig.sync()
        assert "429" in (await rig.medium())["error"]
        rig.advance(599 * SECOND)
        await rig.sync()
        assert sim.count("audio") == 1
        rig.advance(2 * SECOND)
        await rig.sync()
        assert sim.count("audio") == 2
        assert await assert_archived(rig) == 1


async def test_retry_after_of_a_listing_is_waited_for(tmp_path, database, clock):
    sim = a_recorder(calls=2)
    async with archiving(tmp_path, database, sim, clock=clock, window="6h") as rig:
        sim.fault("retry_after", "list", times=1, value=1)
        began = asyncio.get_running_loop().time()
        polled = await rig.poll()
        assert asyncio.get_running_loop().time() - began >= 1
        assert (polled.error, polled.new) == (None, 2)


async def test_a_recorder_that_breaks_while_it_lists_leaves_a_gap_that_the_next_poll_closes(tmp_path, database, clock):
    sim = a_recorder(calls=20)
    async with archiving(tmp_path, database, sim, clock=clock, window="30m", lookback="1s") as rig:
        # Each window is tried three times; then the recorder is asked whether it works at all.
        sim.fault("torn", "list", times=4)
        polled = await rig.poll()
        assert polled.down
        assert polled.more
        assert "[2024-05-18T" in (polled.error or "")
        status = (await rig.status())["sources"]["pbx"]
        assert status["last_error"] == polled.error
        (ledger,) = await rig.catalog.sources(["pbx"])
        assert sum((w.length for w in ledger["covered"]), timedelta()) < 3 * HOUR - SECOND
        again = await rig.poll()
        assert (again.error, again.more) == (None, False)
        (ledger,) = await rig.catalog.sources(["pbx"])
        assert sum((w.length for w in ledger["covered"]), timedelta()) == 3 * HOUR - SECOND
        await rig.transfer()
        assert await assert_archived(rig) == 20


async def test_a_window_that_is_too_much_for_a_recorder_is_halved_and_listed_whole_by_the_same_poll(
    tmp_path, database, clock
):
    sim = a_recorder(ChronicallSimulator, 20)
    sim.fault("limit", value=25 * MINUTE, times=-1)
    async with archiving(tmp_path, database, sim, clock=clock, window="1h", lookback="1s", timeout="500ms") as rig:
        polled = await rig.poll()
        assert (polled.error, polled.new) == (None, len(sim.truth()))
        (ledger,) = await rig.catalog.sources(["pbx"])
        assert sum((w.length for w in ledger["covered"]), timedelta()) == 3 * HOUR - SECOND


async def test_a_second_that_can_t_be_listed_is_a_named_gap_and_holds_up_nothing(tmp_path, database, clock):
    sim = a_recorder(ChronicallSimulator, 3)
    sim.add_call(NOON - 30 * MINUTE, 4 * SECOND, index=5, listed_at=NOON + 10 * MINUTE)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        # Up to noon, where one window ends and the next begins.
        rig.advance(SECOND)
        await rig.poll()
        # Nobody looks for a while; then a second breaks every listing that holds it, also the one of the late row.
        rig.advance(9 * HOUR)
        bad = NOON - HOUR
        broken = sim.fault("torn", "list", times=-1, match=f"startTime={int((bad - SECOND).timestamp() * 1000)}")
        polled = await rig.poll()
        assert polled.new == 1
        assert (polled.more, polled.down) == (False, False)
        assert "[2024-05-18T11:00:00.000Z, " in (polled.error or "")
        await rig.transfer()
        await assert_archived(rig)
        # What was listed there before does not count any more: nobody knows what came late.
        (ledger,) = await rig.catalog.sources(["pbx"])
        assert subtract([Window(NOON - 3 * HOUR, NOON + 9 * HOUR)], ledger["covered"]) == [Window(bad, bad + SECOND)]
        # It is not asked for with each poll, but on its own schedule; and said with each.
        hits = broken.hits
        again = await rig.poll()
        assert again.error == polled.error
        assert broken.hits == hits
        rig.advance(MINUTE)
        await rig.poll()
        assert hits < broken.hits <= hits + 2 * 3
        # And it closes by itself.
        broken.times = 0
        rig.advance(5 * MINUTE)
        assert (await rig.poll()).error is None
        (ledger,) = await rig.catalog.sources(["pbx"])
        assert len(ledger["covered"]) == 1


async def test_a_window_in_which_nothing_can_be_listed_costs_few_listings(tmp_path, database, clock):
    sim = a_recorder(calls=20)
    async with archiving(tmp_path, database, sim, clock=clock, lookback="1s", window="3h") as rig:
        check = rig.feed.source.check

        async def works() -> str:
            broken.times = 0
            try:
                return await check()
            finally:
                broken.times = -1

        rig.feed.source.check = works
        broken = sim.fault("status", "list", times=-1, value=500)
        polled = await rig.poll()
        assert not polled.down
        assert sim.count("list") <= 2 * (PARTS + 3 + 2)
        (ledger,) = await rig.catalog.sources(["pbx"])
        assert not ledger["covered"]
        asked = sim.count("list")
        await rig.poll()
        assert sim.count("list") == asked
        broken.times = 0
        rig.advance(MINUTE)
        await rig.poll()
        await rig.transfer()
        assert await assert_archived(rig) == 20


async def test_a_recorder_that_takes_long_to_list_again_still_gets_its_history_listed(tmp_path, database, clock):
    class Slow(XivoSimulator):
        """Each listing takes two minutes."""

        async def _search(self, request):
            clock.advance(2 * MINUTE)
            return await super()._search(request)

    sim = a_recorder(Slow, 20)
    options = {"start": NOON - 10 * HOUR, "window": "30m", "lookback": "2h"}
    async with archiving(tmp_path, database, sim, clock=clock, **options) as rig:
        polls = 1
        while (await rig.poll(budget=5 * MINUTE)).more:
            polls += 1
            assert polls < 30, "the lookback and the newest moments took all of the time, each time"
        (ledger,) = await rig.catalog.sources(["pbx"])
        (covered,) = ledger["covered"]
        assert covered.start == NOON - 10 * HOUR
        assert polls > 2, "it goes on after the budget"


async def test_a_recorder_that_works_no_more_opens_its_breaker_and_is_asked_whether_it_does(tmp_path, database, clock):
    sim = a_recorder(calls=40)
    async with archiving(tmp_path, database, sim, clock=clock, retry={"first": "1s", "cap": "2s"}) as rig:
        await rig.poll()
        rig.advance(MINUTE)
        outage = sim.fault("status", times=-1, value=502)
        await rig.transfer()
        # After five failures it is asked itself; only what was under way already is wasted.
        asked = sim.count("audio")
        assert 5 <= asked <= 5 + 4
        first = rig.feed.health.until
        assert first is not None
        assert 5 * SECOND <= first - clock.now() <= MINUTE
        assert sum(m["attempts"] for d in (await rig.documents()).values() for m in d["media"]) == asked

        # Half open: a question decides, no download is spent on it, and the wait grows.
        rig.advance(first - clock.now() + SECOND)
        await _engine_for(rig, 1.2)
        assert sim.count("audio") == asked
        second = rig.feed.health.until
        assert second is not None
        assert second - clock.now() > 9 * SECOND

        outage.times = 0
        rig.advance(second - clock.now() + SECOND)
        await rig.transfer()
        assert rig.feed.health.until is None
        assert await assert_archived(rig) == 40
        assert sim.count("audio") == asked + 40


async def test_downloads_that_fail_while_the_recorder_works_open_no_breaker(tmp_path, database, clock):
    sim = a_recorder(calls=40)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        outage = sim.fault("status", "audio", times=-1, value=502)
        await rig.sync()
        assert rig.feed.health.until is None
        # Each was tried once, and waits for its own next time.
        assert sim.count("audio") == 40
        assert {m["attempts"] for d in (await rig.documents()).values() for m in d["media"]} == {1}
        outage.times = 0
        rig.advance(MINUTE)
        await rig.sync()
        assert await assert_archived(rig) == 40


async def _engine_for(rig: Rig, seconds: float) -> None:
    engine = asyncio.create_task(rig.archive.engine().run(until=lambda: None))
    await asyncio.sleep(seconds)
    engine.cancel()
    await asyncio.gather(engine, return_exceptions=True)


# -- not ready -------------------------------------------------------------------------------------------------------


async def test_a_404_on_a_fresh_call_is_no_attempt_and_has_its_own_slow_schedule(tmp_path, database, clock):
    sim = a_recorder()
    sim.add_call(NOON - 3 * MINUTE, 4 * SECOND, ready_at=NOON + HOUR)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        asked = []
        for _ in range(70):
            await rig.sync() if not asked else await rig.transfer()
            asked.append(sim.count("audio"))
            medium = await rig.medium()
            if medium["state"] == "archived":
                break
            assert (medium["state"], medium["attempts"]) == ("pending", 0)
            assert medium["error"].startswith("not ready: ")
            due = (await rig.catalog.due(["pbx"]))["pbx"]
            assert due - clock.now() >= 45 * SECOND
            rig.advance(due - clock.now())
        assert await assert_archived(rig) == 1
        # An hour of waiting, a quarter of its age each time.
        assert 6 <= sim.count("audio") <= 16
        assert (await rig.medium())["attempts"] == 1
        assert rig.feed.health.failures == 0


async def test_a_pending_call_is_waited_for_and_then_archived(tmp_path, database, clock):
    sim = a_recorder(ChronicallSimulator)
    call = sim.add_call(NOON - 10 * MINUTE, 4 * SECOND, index=1, ready_at=NOON + 5 * MINUTE)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        ((recording_id, _),) = sim.expected(call).items()
        medium = await rig.medium(recording_id)
        assert (medium["state"], medium["attempts"]) == ("pending", 0)
        assert medium["error"].startswith("not ready")
        assert sim.count("audio") == 0
        rig.advance(6 * MINUTE)
        await rig.sync()
        assert await assert_archived(rig) == 1
        assert sim.count("audio") == 1


async def test_a_call_that_still_runs_is_archived_once_it_has_ended(tmp_path, database, clock):
    # Now by the real clock: whether a call may still run the source judges by it.
    clock.set(datetime.now(UTC).replace(microsecond=0))
    sim = NoojeeSimulator(clock=RecorderClock(clock.now(), speed=0))
    sim.shows_running = True
    sim.add_call(clock.now() - 5 * MINUTE, 8 * MINUTE, extra={"legs": 3})
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await rig.states() != {"archived": 3}
        rig.advance(2 * HOUR)
        await rig.sync()
        assert await assert_archived(rig) == 3
        assert sim.count("audio") == 3


async def test_a_404_that_stays_is_gone_only_once_the_list_agrees_and_days_have_passed(tmp_path, database, clock):
    sim = a_recorder()
    call = sim.add_call(NOON - 30 * MINUTE, 4 * SECOND, ready_at=NOON + 400 * DAY)
    async with archiving(tmp_path, database, sim, clock=clock, window="5d") as rig:
        await rig.sync()
        # Listed it is: however long that lasts, it is not given up.
        for _ in range(6):
            rig.advance(5 * DAY)
            await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["attempts"]) == ("pending", 0)
        # The recorder purges it; a listing must notice, and then days pass.
        call.deleted_at = clock.now()
        rig.advance(HOUR)
        await rig.sync()
        document = (await rig.documents())[file_of(sim)]
        assert document["missing_since"] is not None
        assert document["media"][0]["state"] == "pending"
        rig.advance(GONE_AFTER - HOUR)
        await rig.sync()
        assert (await rig.medium())["state"] == "pending"
        rig.advance(GONE_AFTER)
        await rig.sync()
        medium = await rig.medium()
        assert medium["state"] == "gone"
        assert "404" in medium["error"]
        assert (await rig.status())["sources"]["pbx"]["gone"] == 1
        assert (await rig.manifest_lines("disk"))[file_of(sim)][-1]["state"] == "gone"
        # For good: nothing asks for it any more.
        asked = sim.count("audio")
        rig.advance(DAY)
        (summary,) = (await rig.sync()).values()
        assert summary.complete
        assert sim.count("audio") == asked
        # But should it turn up again, it is archived.
        call.deleted_at, call.ready_at = None, call.end
        polled = await rig.poll(wanted=None, relist=True)
        assert polled.error is None
        await rig.transfer()
        assert await assert_archived(rig) == 1


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "calls"), [(401, 40), (403, 6)])
async def test_a_refused_account_pauses_the_source_with_one_reason_and_touches_no_medium(
    tmp_path, database, clock, status, calls
):
    sim = a_recorder(calls=calls)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.poll()
        refusal = sim.fault("status", "*", times=-1, value=status)
        listed = sim.count("list")
        with capture_logs() as said:
            await rig.transfer()
        # One login tells for all that were refused at the same time.
        assert sim.count("list") == listed + 1
        loud = [line for line in said if line["event"] == "source.refused"]
        assert len(loud) == 1
        assert loud[0]["log_level"] == "error"
        assert str(status) in loud[0]["error"]
        assert rig.feed.pauses == 1
        assert sim.count("audio") <= 2 * 4
        source = (await rig.status())["sources"]["pbx"]
        assert str(status) in source["paused_why"]
        assert source["paused_until"] == "2024-05-18T12:01:00.000Z"
        assert await rig.states() == {"pending": calls}
        assert {m["attempts"] for d in (await rig.documents()).values() for m in d["media"]} == {0}

        # Nothing is asked while it is paused; then one look, which lengthens the pause.
        asked = len(sim.seen)
        rig.advance(59 * SECOND)
        await rig.transfer()
        assert len(sim.seen) == asked
        rig.advance(2 * SECOND)
        with pytest.raises(Refused):
            await rig.poll()
        assert len(sim.seen) == asked + 1
        assert rig.feed.paused_until == clock.now() + 2 * MINUTE

        refusal.times = 0
        rig.advance(2 * MINUTE + SECOND)
        (summary,) = (await rig.sync()).values()
        assert summary.complete
        assert await assert_archived(rig) == calls
        source = (await rig.status())["sources"]["pbx"]
        assert (source["paused_until"], source["paused_why"]) == (None, None)


async def test_a_listing_and_downloads_that_are_refused_together_are_one_pause(tmp_path, database, clock):
    sim = a_recorder(calls=6)
    async with archiving(tmp_path, database, sim, clock=clock, concurrency=20) as rig:
        await rig.poll()
        sim.fault("status", "*", times=-1, value=401)
        with capture_logs() as said:
            (summary,) = (await rig.sync()).values()
        assert "401" in (summary.polled.error or "")
        assert [line["event"] for line in said].count("source.refused") == 1
        assert rig.feed.paused_until == clock.now() + MINUTE
        assert await rig.states() == {"pending": 6}


async def test_one_refused_recording_fails_with_that_reason_and_the_rest_goes_on(tmp_path, database, clock):
    sim = a_recorder(calls=8)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        sim.fault("status", "audio", times=-1, value=403, match=file_of(sim, 3))
        (summary,) = (await rig.sync()).values()
        assert not summary.complete
        # Refused before any audio ever came, it is looked at once more.
        rig.advance(2 * MINUTE)
        await rig.transfer()
        assert summary.archived == 7
        medium = await rig.medium(file_of(sim, 3))
        assert (medium["state"], medium["copies"]) == ("failed", [])
        assert medium["error"].startswith("refused: ")
        assert "403" in medium["error"]
        assert rig.feed.pauses == 0
        status = (await rig.status())["sources"]["pbx"]
        assert status["failed"] == 1
        assert [r["error"] for r in status["reasons"]] == [medium["error"]]
        assert (await rig.manifest_lines("disk"))[file_of(sim, 3)][-1]["state"] == "failed"
        # No failure expires: it stays until somebody asks for it again.
        rig.advance(400 * DAY)
        await rig.transfer()
        assert await rig.states() == {"archived": 7, "failed": 1}
        sim.faults.clear()
        assert await rig.catalog.retry("pbx", State.FAILED) == 1
        await rig.transfer()
        assert await assert_archived(rig) == 8


@pytest.mark.parametrize("before", [0, 3], ids=["never got any", "got some before"])
async def test_an_account_that_may_list_but_gets_no_audio_is_one_loud_pause_and_no_failure(
    before, tmp_path, database, clock
):
    sim = a_recorder(calls=before)
    async with archiving(tmp_path, database, sim, clock=clock, lookback="6h") as rig:
        await rig.sync()
        archived = {"archived": before} if before else {}
        rig.advance(HOUR)
        late = [sim.add_call(clock.now() - (n + 1) * MINUTE, 2 * SECOND) for n in range(12)]
        refusal = sim.fault("status", "audio", times=-1, value=403)
        with capture_logs() as said:
            await rig.sync()
        (loud,) = [line for line in said if line["event"] == "source.refused"]
        assert "may list recordings, but is refused the audio of each" in loud["error"]
        assert "403" in loud["error"]
        source = (await rig.status())["sources"]["pbx"]
        assert source["paused_why"] == loud["error"]
        assert source["failed"] < REFUSALS

        # That it lists shows nothing: each look at the audio is a few requests, and lengthens the pause.
        for wait in (2, 4):
            rig.advance(timedelta(minutes=wait))
            assert (await rig.poll()).error is None
            asked = sim.count("audio")
            await rig.transfer()
            assert asked < sim.count("audio") <= asked + 2 * 4
            assert await rig.states() == {**archived, "pending": 12}
        assert rig.feed.pauses == 3

        # Those that are refused hold no other up, and what is refused in the end fails alone.
        (refusal.match,) = sim.expected(late[3])
        for _ in range(20):
            rig.advance(10 * MINUTE)
            await rig.transfer()
        assert await rig.states() == {"archived": before + 11, "failed": 1}
        assert (await rig.status())["sources"]["pbx"]["paused_why"] is None


# -- gone and empty --------------------------------------------------------------------------------------------------


async def test_what_the_source_says_was_deleted_is_gone_and_kept_as_evidence(tmp_path, database, clock):
    sim = a_recorder(ChronicallSimulator)
    told = sim.add_call(NOON - 30 * MINUTE, 4 * SECOND, index=1, extra={"status": "DELETED_TIME"})
    later = sim.add_call(NOON - 20 * MINUTE, 4 * SECOND, index=2)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        sim.fault("status", "audio", times=1, value=410)
        (summary,) = (await rig.sync()).values()
        assert summary.complete
        media = {d["recording_id"]: d["media"][0] for d in (await rig.documents()).values()}
        assert len(media) == 2
        assert {m["state"] for m in media.values()} == {"gone"}
        assert "deleted" in media[f"{told.uuid}-{int(told.start.timestamp() * 1000)}"]["error"]
        assert "410" in media[f"{later.uuid}-{int(later.start.timestamp() * 1000)}"]["error"]
        assert {lines[-1]["state"] for lines in (await rig.manifest_lines("disk")).values()} == {"gone"}
        assert (await rig.status())["sources"]["pbx"]["gone"] == 2


async def test_audio_of_a_header_alone_is_empty_once_it_is_not_fresh_any_more(tmp_path, database, clock):
    sim = a_recorder()
    sim.add_call(NOON - 5 * MINUTE, 4 * SECOND)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        sim.fault("header_only", "audio", times=-1)
        await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["attempts"]) == ("pending", 0)
        assert medium["error"].startswith("not ready: ")
        rig.advance(FRESH)
        (summary,) = (await rig.sync()).values()
        medium = await rig.medium()
        assert (medium["state"], medium["copies"]) == ("empty", [])
        assert summary.complete
        assert summary.empty == 1
        assert await rig.media_keys("disk") == []
        assert (await rig.manifest_lines("disk"))[file_of(sim)][-1]["state"] == "empty"
        asked = sim.count("audio")
        rig.advance(DAY)
        await rig.sync()
        assert sim.count("audio") == asked


# -- giving up -------------------------------------------------------------------------------------------------------


async def test_what_fails_for_too_long_is_given_up_visibly_and_can_be_replayed(tmp_path, database, clock):
    sim = a_recorder(calls=2)
    async with archiving(
        tmp_path, database, sim, clock=clock, retry={"first": "1h", "cap": "6h", "give_up_after": "1d"}
    ) as rig:
        sim.fault("html", "audio", times=-1, match=file_of(sim, 1))
        began = clock.now()
        while (medium := await rig.medium(file_of(sim, 1)) if await rig.documents() else {}).get("state") != "failed":
            assert clock.now() - began < 4 * DAY
            await rig.sync()
            due = (await rig.catalog.due(["pbx"])).get("pbx")
            rig.advance((due or clock.now()) - clock.now())
        assert DAY <= clock.now() - began <= DAY + 8 * HOUR
        assert medium["error"].startswith("gave up: ")
        assert "HTML" in medium["error"]
        assert medium["attempts"] == audio_requests(sim)[f"/recording/records/{file_of(sim, 1)}/audio/download?"]
        assert 5 <= medium["attempts"] <= 10
        assert (await rig.status())["sources"]["pbx"]["failed"] == 1
        assert (await rig.manifest_lines("disk"))[file_of(sim, 1)][-1]["state"] == "failed"
        happened = await rig.happened(file_of(sim, 1))
        assert (happened["gave up"], happened["failed"]) == (1, medium["attempts"] - 1)

        sim.faults.clear()
        rig.advance(30 * DAY)
        await rig.transfer()
        assert (await rig.states())["failed"] == 1
        assert await rig.catalog.retry(None, State.FAILED) == 1
        assert await rig.catalog.due(["pbx"]) == {"pbx": clock.now()}
        await rig.transfer()
        assert await rig.states() == {"archived": 2}
        assert (await rig.happened(file_of(sim, 1)))["asked for again"] == 1


# -- a store is down -------------------------------------------------------------------------------------------------


def _full(folder):
    """The folder, on a disk that is about to be full."""
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")


async def test_a_full_disk_pauses_transfers_and_loses_nothing(tmp_path, database, clock):
    sim = a_recorder(calls=30)
    disk = tmp_path / "disk"
    _full(disk)
    try:
        async with archiving(tmp_path, database, sim, clock=clock) as rig:
            await rig.poll()
            await rig.transfer()
            states = await rig.states()
            assert states.get("archived", 0) < 30
            assert states["pending"] == 30 - states.get("archived", 0)
            # Every object that is there is whole.
            objects = await rig.objects("disk")
            assert all(size > 0 for size in objects.values())
            # What was under way when the disk was found to be full is all that is wasted.
            asked = sim.count("audio")
            assert asked <= len(await rig.media_keys("disk")) + 2 * 4
            reasons = [r["error"] for r in (await rig.status())["sources"]["pbx"]["reasons"]]
            assert any(" is full" in (reason or "") for reason in reasons)
            # A canary still fits; it lets one download through each time, and waits grow.
            for _ in range(2):
                rig.advance(2 * MINUTE)
                await _engine_for(rig, 0.9)
            assert asked < sim.count("audio") <= asked + 2

            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            rig.advance(2 * MINUTE)
            await rig.sync()
            await rig.sync()
            assert await assert_archived(rig) == 30
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


async def _emptied(database):
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("TRUNCATE sources, recordings, media, copies, totals, shares CASCADE")
    finally:
        await connection.close()


@asynccontextmanager
async def _unwritable(folder):
    """The folder with a file in its place, which nobody can write below, root included."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_bytes(b"")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


@asynccontextmanager
async def _near_and_far(tmp_path, database, sim, clock):
    """Polled; what is due goes into two folders."""
    stores = {name: {"kind": "file", "path": str(tmp_path / name)} for name in ("near", "far")}
    async with archiving(tmp_path, database, sim, stores=stores, clock=clock) as rig:
        await rig.poll()
        (tmp_path / "far").mkdir()
        yield rig


async def test_one_store_that_fails_keeps_no_other_from_its_copy_and_costs_no_second_download(
    tmp_path, database, clock
):
    sim = a_recorder(calls=6)
    async with _near_and_far(tmp_path, database, sim, clock) as rig:
        async with _unwritable(tmp_path / "far"):
            await rig.transfer()
            held = [m for d in (await rig.documents()).values() for m in d["media"] if m["copies"]]
            assert 1 <= len(held) <= 6
            assert {m["state"] for m in held} == {"pending"}
            assert all("store far: " in m["error"] for m in held)
            assert all([c["store"] for c in m["copies"]] == ["near"] for m in held)
            assert await rig.states() == {"pending": 6}
            for copies in (m["copies"] for m in held):
                body = (tmp_path / "near" / copies[0]["key"]).read_bytes()
                assert hashlib.sha256(body).hexdigest() == copies[0]["sha256"]
            asked = sim.count("audio")
            assert asked == len(held)
        rig.advance(2 * MINUTE)
        await rig.sync()
        assert await assert_archived(rig) == 6
        # What one store held already came from there.
        assert sim.count("audio") == 6


async def test_a_copy_that_was_spoilt_meanwhile_is_not_copied_on(tmp_path, database, clock):
    sim = a_recorder(calls=1)
    async with _near_and_far(tmp_path, database, sim, clock) as rig:
        async with _unwritable(tmp_path / "far"):
            await rig.transfer()
        (near,) = (await rig.medium())["copies"]
        spoilt = tmp_path / "near" / near["key"]
        audio = spoilt.read_bytes()
        spoilt.chmod(0o600)
        spoilt.write_bytes(audio[:-1] + bytes([audio[-1] ^ 1]))
        rig.advance(2 * MINUTE)
        await rig.sync()
        assert [(tmp_path / "far" / key).read_bytes() for key in await rig.media_keys("far")] == [audio]
        assert sim.count("audio") == 2


async def test_audio_without_a_manifest_is_not_archived(tmp_path, database, clock):
    sim = a_recorder(calls=4)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.poll()
        (tmp_path / "disk").mkdir()
        (tmp_path / "disk" / "_manifests").write_bytes(b"in the way")
        await rig.transfer()
        assert await rig.states() == {"pending": 4}
        assert {m["attempts"] for d in (await rig.documents()).values() for m in d["media"]} == {0}
        (tmp_path / "disk" / "_manifests").unlink()
        rig.advance(2 * MINUTE)
        await rig.sync()
        assert await assert_archived(rig) == 4


async def test_other_bytes_under_a_medium_s_name_concern_that_medium_alone(tmp_path, database, clock):
    sim = a_recorder(calls=5)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        (spoilt,) = (await rig.medium(file_of(sim, 2)))["copies"]
        path = tmp_path / "disk" / spoilt["key"]
    audio = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(audio[:-1] + b"?")
    # Another catalog knows nothing of what the store holds.
    await _emptied(database)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        with capture_logs() as said:
            (summary,) = (await rig.sync()).values()
        assert (summary.archived, summary.pending) == (4, 1)
        assert "store.down" not in {line["event"] for line in said}
        medium = await rig.medium(file_of(sim, 2))
        assert (medium["state"], medium["attempts"]) == ("pending", 1)
        assert "holds other bytes" in medium["error"]
        assert path.read_bytes() == audio[:-1] + b"?"
        # It takes an operator, so it is not asked for every few seconds.
        asked = sim.count("audio")
        rig.advance(50 * MINUTE)
        await rig.sync()
        assert sim.count("audio") == asked
        path.unlink()
        rig.advance(11 * MINUTE)
        await rig.sync()
        assert await assert_archived(rig) == 5


async def test_folders_removed_behind_our_back_are_made_again(tmp_path, database, clock):
    sim = a_recorder(calls=2)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        shutil.rmtree(tmp_path / "disk" / "pbx")
        shutil.rmtree(tmp_path / "disk" / "_manifests")
        sim.add_call(NOON - 20 * MINUTE, 3 * SECOND)
        rig.advance(SECOND)
        await rig.sync()
        assert await rig.states() == {"archived": 3}
        assert len(await rig.media_keys("disk")) == 1


async def test_media_on_their_way_as_their_source_leaves_the_config_are_archived_and_described(
    tmp_path, database, clock
):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.poll()
        sim.fault("drip", "audio", times=3, value=0.1)
        engine = rig.archive.engine()
        run = asyncio.create_task(engine.run())
        await eventually(lambda: _truly(sim.running == 3))
        await engine.remove("pbx")
        engine.stop()
        await run
        assert await assert_archived(rig) == 3
        # It comes back.
        rig.advance(SECOND)
        await rig.sync()
        assert sim.count("audio") == 3


async def _truly(value: bool) -> bool:
    return value


async def test_a_store_that_is_gone_from_the_config_keeps_its_media_pending(tmp_path, database, clock):
    sim = a_recorder(calls=2)
    stores = {name: {"kind": "file", "path": str(tmp_path / name)} for name in ("near", "far")}
    async with archiving(tmp_path, database, sim, stores=stores, clock=clock) as rig:
        await rig.poll()
    async with archiving(tmp_path, database, sim, stores={"near": stores["near"]}, clock=clock) as rig:
        await rig.transfer()
        assert await rig.states() == {"pending": 2}
        assert all(
            "store far is not in the config" in m["error"] for d in (await rig.documents()).values() for m in d["media"]
        )


# -- bad data --------------------------------------------------------------------------------------------------------


async def test_an_unreadable_row_is_quarantined_once_and_counted_each_time(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, window="6h") as rig:
        sim.fault("bad_row", "list", times=-1, value={"id": None, "start": "2024-05-18 13:00:00", "evil": "\x00\ud800"})
        for _ in range(3):
            (summary,) = (await rig.sync()).values()
            assert summary.polled.rejected >= 1
            assert not summary.complete
        (row,) = await rig.catalog.rejected("pbx")
        assert row["times"] >= 3
        assert "evil" in row["raw"]
        assert await assert_archived(rig) == 3


async def test_a_recorder_that_answers_nonsense_is_said_and_closes_no_window(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        sim.fault("json", "list", times=-1)
        polled = await rig.poll()
        assert polled.error is not None
        (ledger,) = await rig.catalog.sources(["pbx"])
        assert ledger["covered"] == ()
        assert (await rig.status())["sources"]["pbx"]["last_error"] == polled.error
        (summary,) = (await rig.sync()).values()
        assert not summary.complete
