"""Several processes, on as many hosts, share one database, one recorder and the same stores: no leader, no broker."""

import asyncio
import contextlib
import random
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from archiver.model import State
from archiver.proof import manifests
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync import engine, shares, transfer
from archiver.sync.commit import describe_changes
from archiver.sync.engine import Engine
from archiver.sync.lane import Lane
from tests.engine import HOUR, MINUTE, Rig, a_recorder, archiving, assert_archived, audio_requests, eventually
from tests.factories import NOON

SECOND = timedelta(seconds=1)


class Watched(XivoSimulator):
    """Counts listings that run at once, notes when requests came, and holds downloads back while told to."""

    def __init__(self, **how):
        super().__init__(**how)
        self.listing = self.most_listing = 0
        self.came: list[float] = []
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0

    async def _search(self, request):
        self.came.append(asyncio.get_running_loop().time())
        self.listing += 1
        self.most_listing = max(self.most_listing, self.listing)
        try:
            await asyncio.sleep(0.02)
            return await super()._search(request)
        finally:
            self.listing -= 1

    async def _audio(self, request):
        self.came.append(asyncio.get_running_loop().time())
        if not self.open.is_set():
            self.waiting += 1
            try:
                await self.open.wait()
            finally:
                self.waiting -= 1
        else:
            await asyncio.sleep(0.03)
        return await super()._audio(request)


@contextlib.asynccontextmanager
async def processes(count, tmp_path, database, sim, clock=None, **options):
    """So many archives with nothing in common but the database, the recorder and the store."""
    stores = {"shared": {"kind": "file", "path": str(tmp_path / "shared")}}
    async with AsyncExitStack() as stack:
        rigs: list[Rig] = []
        for number in range(count):
            folder = tmp_path / f"host-{number}"
            folder.mkdir()
            opened = archiving(folder, database, sim, stores=stores, clock=clock, **options)
            rigs.append(await stack.enter_async_context(opened))
        assert len({rig.catalog.process for rig in rigs}) == count
        yield rigs


def killed(at_work: Engine, run: asyncio.Task) -> None:
    """The process is gone: nothing is given back."""

    async def nothing() -> None:
        pass

    at_work._abandon = nothing
    run.cancel()


@pytest.fixture
def _short_shares(monkeypatch):
    """A newcomer's share comes after half a second, not after five."""
    monkeypatch.setattr(shares, "SHARE", 2 * SECOND)


@pytest.mark.usefixtures("_short_shares")
async def test_three_processes_fetch_everything_once_within_the_source_s_limit(tmp_path, database):
    sim = a_recorder(Watched, 200, live=True, longest=2.0)
    async with processes(3, tmp_path, database, sim, concurrency=5, timeout="10s") as rigs, AsyncExitStack() as stack:
        first = await stack.enter_async_context(rigs[0].running())
        await eventually(lambda: _truly(sim.count("audio") > 20), within=20)
        at_work = [first, *[await stack.enter_async_context(rig.running()) for rig in rigs[1:]]]

        async def all_archived() -> bool:
            return await rigs[0].states() == {"archived": 200}

        await eventually(all_archived, within=40)
        assert await assert_archived(rigs[0]) == 200
        assert set(audio_requests(sim).values()) == {1}
        assert len(await rigs[0].media_keys("shared")) == 200
        assert 4 <= sim.most_running <= 5
        assert sim.most_listing == 1
        done = [d.engine.tally.states["pbx", State.ARCHIVED] for d in at_work]
        assert sum(done) == 200
        assert min(done) > 10
        assert (await rigs[0].catalog.totals())["pbx", "shared"][0] == 200


async def test_a_newcomer_gets_its_share_without_waiting_for_the_others_to_renew_theirs(
    tmp_path, database, monkeypatch
):
    """Also where nobody heard of it, as while the connection that listens is made anew."""
    monkeypatch.setattr(shares, "SHARE", HOUR)
    monkeypatch.setattr(shares.Shares, "take_soon", lambda self, name: None)
    sim = a_recorder(Watched, 400, live=True, longest=2.0)
    sim.open.clear()
    async with processes(2, tmp_path, database, sim, concurrency=4, timeout="60s") as (one, other), one.running():
        await eventually(lambda: _truly(sim.waiting == 4))
        async with other.running():

            async def limits(*wanted: int) -> bool:
                return (one.feed.gate.limit, other.feed.gate.limit) == wanted

            await eventually(lambda: limits(2, 0))
            sim.open.set()
            await eventually(lambda: limits(2, 2))
    assert sim.most_running <= 4


async def test_shares_are_settled_at_once_when_one_comes_and_when_it_leaves(tmp_path, database, monkeypatch):
    monkeypatch.setattr(shares, "SHARE", HOUR)
    monkeypatch.setattr(engine, "ALIVE", HOUR.total_seconds())
    sim = a_recorder(Watched, 400, live=True, longest=2.0)
    sim.open.clear()
    async with (
        processes(2, tmp_path, database, sim, concurrency=4, poll="1h", timeout="60s") as (one, other),
        one.running(),
    ):
        await eventually(lambda: _truly(sim.waiting == 4))

        async def limits(*wanted: int) -> bool:
            return (one.feed.gate.limit, other.feed.gate.limit) == wanted

        async with other.running():
            await eventually(lambda: limits(2, 0))
            assert sim.waiting == 4
            sim.open.set()
            await eventually(lambda: limits(2, 2))
            await eventually(lambda: _truly(sum(audio_requests(sim).values()) > 40))
        await eventually(lambda: _truly(one.feed.gate.limit == 4))
    assert sim.most_running <= 4


async def test_what_may_begin_while_a_share_is_asked_for_is_nobody_else_s(tmp_path, database, monkeypatch):
    """Its question tells of what runs; by the time it has the answer, more may."""
    sim = a_recorder(Watched, 1)
    async with processes(2, tmp_path, database, sim, concurrency=4) as (one, other):
        asking, newcomer = (rig.archive.engine() for rig in (one, other))
        await asking.shares.take(["pbx"])
        await newcomer.shares.take(["pbx"])
        assert (one.feed.gate.limit, other.feed.gate.limit) == (4, 0)
        answered, go_on, share = asyncio.Event(), asyncio.Event(), asking.catalog.share

        async def slowly(*args):
            shares = await share(*args)
            answered.set()
            await go_on.wait()
            return shares

        monkeypatch.setattr(asking.catalog, "share", slowly)
        task = asyncio.create_task(asking.shares.take(["pbx"]))
        await answered.wait()
        await newcomer.shares.take(["pbx"])
        assert one.feed.gate.limit + other.feed.gate.limit == 4
        go_on.set()
        await task
        await newcomer.shares.take(["pbx"])
        assert (one.feed.gate.limit, other.feed.gate.limit) == (2, 0)
        await asking.shares.take(["pbx"])
        await newcomer.shares.take(["pbx"])
        assert (one.feed.gate.limit, other.feed.gate.limit) == (2, 2)


async def test_claims_are_for_a_quarter_of_a_second_or_for_every_slot(tmp_path, database, monkeypatch):
    sim = a_recorder(Watched, 1)
    async with processes(1, tmp_path, database, sim, concurrency=4) as (one,):
        (lane,) = one.archive.engine().lanes.values()
        lane.feed.gate.limit = 4
        now = 1000.0
        # Nothing here waits: asyncio goes by the same clock.
        with monkeypatch.context() as patched:
            patched.setattr(engine.time, "monotonic", lambda: now)
            lane.claimed()
            assert lane.room() == 20
            for begun, room in ((79, 20), (400, 100), (1000, 250), (10, 20)):
                now += 1.0
                lane.begun = begun
                lane.claimed()
                assert lane.room() == room
            # A slow recorder's first claim of the day: others may take what it does not get to.
            now += 86400.0
            lane.claimed()
            assert lane.room() == 20


async def test_a_source_that_leaves_while_claims_are_prepared_ends_nothing(tmp_path, database, monkeypatch):
    sim = a_recorder(Watched, 1)
    async with processes(1, tmp_path, database, sim, concurrency=4) as (one,):
        at_work = one.archive.engine()
        await at_work.shares.take(["pbx"])
        at_work.lanes |= {name: Lane(one.feed, due_at=NOON) for name in ("pbx", "branch")}

        async def share(names):
            assert names == ["branch"]
            await at_work.remove("pbx")

        monkeypatch.setattr(at_work.shares, "take", share)
        assert await at_work._claim() == 0
        assert list(at_work.lanes) == ["branch"]


async def _truly(value: bool) -> bool:
    return value


@pytest.mark.usefixtures("_short_shares")
async def test_the_rate_of_a_source_holds_over_all_processes(tmp_path, database):
    sim = a_recorder(Watched, 60, live=True, longest=2.0)
    async with (
        processes(3, tmp_path, database, sim, rate="25/s", concurrency=10, window="1d") as rigs,
        AsyncExitStack() as stack,
    ):
        for rig in rigs:
            await stack.enter_async_context(rig.running())

        async def all_archived() -> bool:
            return await rigs[0].states() == {"archived": 60}

        await eventually(all_archived, within=30)
    came = sorted(sim.came)
    assert len(came) > 60  # each file once, and the listings of whichever processes had their turn
    # One in 40 ms. What a busy machine delays may come in a bunch; three limits would need a third of it.
    assert came[-1] - came[0] >= (len(came) - 1) * 0.04 * 0.6
    assert min(later - earlier for earlier, later in zip(came, came[30:], strict=False)) >= 30 * 0.04 * 0.4


async def test_what_a_killed_process_had_in_hand_comes_back_after_its_lease(tmp_path, database, clock):
    sim = a_recorder(Watched, 40)
    async with processes(2, tmp_path, database, sim, clock) as (killed_one, other):
        await killed_one.poll()
        sim.open.clear()
        at_work = killed_one.archive.engine()
        run = asyncio.create_task(at_work.run())
        await eventually(lambda: _truly(sim.waiting == 4))
        in_hand = len(at_work._claims)
        assert 4 <= in_hand < 40
        killed(at_work, run)
        with contextlib.suppress(asyncio.CancelledError):
            await run
        await eventually(lambda: _truly(sim.waiting == 0))
        sim.open.set()

        # Its share of the source goes first, its media later.
        clock.advance(shares.SHARE + SECOND)
        await other.transfer()
        assert await other.states() == {"archived": 40 - in_hand, "pending": in_hand}
        clock.advance(engine.LEASE - shares.SHARE - 2 * SECOND)
        await other.transfer()
        assert (await other.states())["pending"] == in_hand
        clock.advance(2 * SECOND)
        await other.transfer()
        assert await assert_archived(other) == 40
        asked = audio_requests(sim)
        assert Counter(asked.values()) == {1: 36, 2: 4}
        assert {m["attempts"] for d in (await other.documents()).values() for m in d["media"]} == {1}


async def test_a_living_process_renews_what_it_has_in_hand(tmp_path, database, clock, monkeypatch):
    monkeypatch.setattr(engine, "LEASE", 0.6 * SECOND)
    sim = a_recorder(Watched, 8)
    async with processes(2, tmp_path, database, sim, clock, timeout="20s") as (slow, other):
        await slow.poll()
        sim.open.clear()
        run = asyncio.create_task(slow.archive.engine().run(until=clock.now))
        await eventually(lambda: _truly(sim.waiting == 4))
        for _ in range(4):
            clock.advance(0.3 * SECOND)
            # Two renewals of real time.
            await asyncio.sleep(0.35)
            await other.transfer()
        sim.open.set()
        await run
        assert await assert_archived(other) == 8
        assert set(audio_requests(sim).values()) == {1}


async def test_a_commit_under_a_lost_claim_is_refused_and_harms_nothing(tmp_path, database, clock):
    sim = a_recorder(Watched, 1)
    async with processes(2, tmp_path, database, sim, clock) as (frozen, other):
        await frozen.poll()
        sim.open.clear()
        at_work = frozen.archive.engine()
        settled = []
        at_work.on_settled = lambda finished, state: settled.append((finished, state))
        run = asyncio.create_task(at_work.run(until=clock.now))
        await eventually(lambda: _truly(sim.waiting == 1))
        # It hangs for longer than its lease (a suspended host), and another takes over.
        clock.advance(engine.LEASE + SECOND)
        sim.open.set()
        with capture_logs() as said:
            other_engine = other.archive.engine()
            fetched = asyncio.create_task(other_engine.run(until=clock.now))
            await asyncio.gather(fetched, run)
        assert [line["event"] for line in said].count("claim.lost") + len(settled) == 1
        assert await assert_archived(other) == 1
        medium = await other.medium()
        assert medium["attempts"] == 1
        assert len(medium["copies"]) == 1
        assert (await other.catalog.totals())["pbx", ""] == (1, medium["size"])
        assert (await other.catalog.totals())["pbx", "shared"] == (1, medium["size"])


async def test_the_slower_one_of_two_that_hold_one_medium_is_refused(tmp_path, database, clock):
    sim = a_recorder(Watched, 1)
    async with processes(2, tmp_path, database, sim, clock) as (frozen, other):
        await frozen.poll()
        sim.open.clear()
        at_work = frozen.archive.engine()
        settled = []
        at_work.on_settled = lambda finished, state: settled.append(state)
        run = asyncio.create_task(at_work.run(until=clock.now))
        await eventually(lambda: _truly(sim.waiting == 1))
        clock.advance(engine.LEASE + SECOND)
        held = asyncio.Event()
        commit, at_work._commit = at_work._commit, None

        async def late(group, name):
            held.set()
            await done.wait()
            await commit(group, name)

        done = asyncio.Event()
        at_work._commit = late
        sim.open.set()
        await held.wait()
        await other.transfer()
        assert await assert_archived(other) == 1
        before = await other.documents()
        with capture_logs() as said:
            done.set()
            await run
        assert settled == []
        assert [line["event"] for line in said if line["log_level"] == "warning"] == ["claim.lost"]
        # Its manifest says the same of the same bytes; the catalog counts them once.
        assert await other.documents() == before
        assert len(await other.media_keys("shared")) == 1
        assert (await other.catalog.totals())["pbx", "shared"][0] == 1
        assert sim.count("audio") == 2


async def test_a_process_without_a_share_does_not_hold_the_listing_up(tmp_path, database, clock):
    sim = a_recorder(Watched, 6)
    async with (
        asyncio.timeout(10),
        processes(2, tmp_path, database, sim, clock, concurrency=1) as (first, second),
        first.archive.engine().shares.polling("pbx"),
    ):
        assert first.feed.gate.limit == 1
        report = await second.poll()
        assert second.feed.gate.limit == 0
        assert report.busy
        assert sim.count("list") == 0
        assert (await first.poll()).new == 6


async def test_one_poll_at_a_time_whoever_begins_it(tmp_path, database, clock):
    sim = a_recorder(Watched, 10)
    async with processes(3, tmp_path, database, sim, clock, concurrency=30, window="10m") as rigs:
        reports = await asyncio.gather(*(rig.poll() for rig in rigs))
        assert sorted(report.busy for report in reports) == [False, True, True]
        assert sum(report.new for report in reports) == 10
        assert sim.most_listing == 1


async def test_the_pause_that_a_recorder_wants_between_listings_holds_over_all_processes(tmp_path, database, clock):
    sim = a_recorder(NoojeeSimulator, 6)
    sim.hour_interval = 1.5
    # Its clock and ours are two; and a request takes its time.
    how = {"listing": "hour", "hour_interval": "1800ms", "window": "1h", "lookback": "1h", "start": NOON - 3 * HOUR}
    async with processes(3, tmp_path, database, sim, clock, **how) as rigs:
        for rig in rigs:
            polled = await rig.poll()
            assert polled.error is None
    assert sim.count("list") >= 5
    assert sim.refused_hours == 0


async def test_the_lock_of_a_process_that_dies_while_it_lists_is_free_at_once(tmp_path, database, clock):
    sim = a_recorder(Watched, 10)
    async with processes(2, tmp_path, database, sim, clock, timeout="30s") as (dying, other):
        sim.fault("stall", "list")
        listing = asyncio.create_task(dying.poll())
        await eventually(lambda: _truly(sim.running == 1))
        clock.advance(shares.SHARE + SECOND)
        assert (await other.poll()).busy
        assert other.feed.gate.limit > 0
        # As the kernel does it for a killed process: its connections are closed.
        dying.catalog._locks.terminate()
        await eventually(lambda: _not_busy(other), within=5)
        listing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listing
        await other.transfer()
        assert await assert_archived(other) == 10
        (ledger,) = await other.catalog.sources(["pbx"])
        assert sum((w.length for w in ledger["covered"]), timedelta()) == clock.now() - SECOND - (NOON - 180 * MINUTE)


async def _not_busy(rig: Rig) -> bool:
    return not (await rig.poll()).busy


async def test_a_description_that_was_begun_before_a_commit_and_never_ended_is_not_the_last_word(
    tmp_path, database, clock
):
    sim = a_recorder(Watched, 3)
    async with processes(2, tmp_path, database, sim, clock) as (slow, other):
        await slow.poll()
        clock.advance(SECOND)
        read, go_on = asyncio.Event(), asyncio.Event()
        slow.catalog.documents = held_after(slow.catalog.documents, read, go_on)
        slow.catalog.described = killed_instead
        describing = asyncio.create_task(describe_changes(slow.archive.feeds, slow.catalog))
        await read.wait()
        await other.transfer()
        assert await other.states() == {"archived": 3}
        go_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await describing
        await other.transfer()
        assert await assert_archived(other) == 3


async def test_a_description_that_was_begun_amid_a_commit_and_never_ended_is_not_the_last_word(
    tmp_path, database, clock
):
    sim = a_recorder(Watched, 3)
    async with processes(2, tmp_path, database, sim, clock) as (slow, other):
        await slow.poll()
        clock.advance(SECOND)
        told, go_on, settle = asyncio.Event(), asyncio.Event(), other.catalog.settle

        async def settle_later(*what, **how):
            told.set()
            await go_on.wait()
            return await settle(*what, **how)

        other.catalog.settle = settle_later
        slow.catalog.described = killed_instead
        fetching = asyncio.create_task(other.transfer())
        await told.wait()
        with contextlib.suppress(asyncio.CancelledError):
            await describe_changes(slow.archive.feeds, slow.catalog)
        go_on.set()
        await fetching
        await other.transfer()
        assert await assert_archived(other) == 3


@pytest.mark.parametrize("second", [0, 1], ids=["one process", "two processes"])
async def test_two_that_describe_the_same_recordings_at_once_both_end(tmp_path, database, clock, second):
    sim = a_recorder(Watched, 12)
    async with processes(2, tmp_path, database, sim, clock) as rigs:
        await rigs[0].poll()
        clock.advance(SECOND)
        for rig in rigs:
            rig.catalog.documents = slowly(rig.catalog.documents, 0.2)
        async with asyncio.timeout(20), asyncio.TaskGroup() as both:
            for rig in (rigs[0], rigs[second]):
                both.create_task(describe_changes(rig.archive.feeds, rig.catalog, limit=3))
                # Each reads before the other one marks what it read.
                await asyncio.sleep(0.1)
        await rigs[0].transfer()
        assert await assert_archived(rigs[0]) == 12


def slowly(call, seconds: float):
    """The call, whose answer takes its time."""

    async def slow(*arguments):
        answer = await call(*arguments)
        await asyncio.sleep(seconds)
        return answer

    return slow


def held_after(call, done: asyncio.Event, go_on: asyncio.Event):
    """The call, whose answer is held back."""

    async def held(*arguments):
        answer = await call(*arguments)
        done.set()
        await go_on.wait()
        return answer

    return held


async def killed_instead(*_):
    raise asyncio.CancelledError


async def test_who_gets_less_than_was_asked_for_looks_again_at_once(tmp_path, database, monkeypatch):
    """Two that claim at the same moment want the same media: who comes second gets few, and there are more."""
    monkeypatch.setattr(engine, "LOOK", 60.0)
    sim = a_recorder(Watched, 12, live=True)
    async with archiving(tmp_path, database, sim) as rig:
        claim = rig.catalog.claim

        async def one_each(wanted, *how, **more):
            return await claim(dict.fromkeys(wanted, 1), *how, **more)

        monkeypatch.setattr(rig.catalog, "claim", one_each)
        await rig.poll()
        run = asyncio.create_task(rig.archive.engine().run())

        async def all_archived() -> bool:
            return await rig.states() == {"archived": 12}

        await eventually(all_archived, within=20)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_what_one_process_lists_another_hears_of_at_once(tmp_path, database, monkeypatch):
    monkeypatch.setattr(engine, "LOOK", 60.0)
    sim = a_recorder(Watched, 12, live=True)
    async with processes(2, tmp_path, database, sim) as (lister, other):
        at_work = other.archive.engine()
        run = asyncio.create_task(at_work.run())
        await eventually(lambda: _truly(at_work._looked > 0))
        await asyncio.sleep(0.5)
        await lister.poll()

        async def all_archived() -> bool:
            return await other.states() == {"archived": 12}

        await eventually(all_archived, within=20)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_what_is_claimed_begins_while_the_next_claim_is_under_way(tmp_path, database, monkeypatch):
    sim = a_recorder(Watched, 60, live=True)
    async with archiving(tmp_path, database, sim) as rig:
        claim, claimed, go_on = rig.catalog.claim, [], asyncio.Event()

        async def slow(*how, **more):
            if claimed:
                await go_on.wait()
            claimed.extend(await claim(*how, **more))
            return claimed

        monkeypatch.setattr(rig.catalog, "claim", slow)
        await rig.poll()
        run = asyncio.create_task(rig.archive.engine().run())
        await eventually(lambda: _truly(bool(claimed)))
        first = len(claimed)
        assert 8 < first < 60
        await eventually(lambda: _truly(sim.count("audio") == first))
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_a_run_that_is_ended_begins_nothing_more(tmp_path, database, caplog):
    sim = a_recorder(Watched, 60, live=True)
    sim.open.clear()
    async with archiving(tmp_path, database, sim) as rig:
        await rig.poll()
        run = asyncio.create_task(rig.archive.engine().run())
        await eventually(lambda: _truly(sim.waiting == 4))
        run.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(run, return_exceptions=True)
        assert sim.count("audio") == 4
        assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_a_defect_in_one_transfer_ends_the_run_and_begins_nothing_more(tmp_path, database, monkeypatch, caplog):
    real, begun = transfer.transfer, 0

    async def broken(*how):
        nonlocal begun
        begun += 1
        if begun == 3:
            raise RuntimeError("a defect")
        return await real(*how)

    monkeypatch.setattr(transfer, "transfer", broken)
    sim = a_recorder(calls=60, live=True)
    async with archiving(tmp_path, database, sim) as rig:
        await rig.poll()
        with pytest.raises(BaseExceptionGroup) as ended:
            await rig.archive.engine().run()
        assert [str(error) for error in ended.value.exceptions] == ["a defect"]
        assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
        assert begun <= 8


async def test_commits_at_once_of_one_call_s_legs_leave_it_described_as_it_is(tmp_path, database, monkeypatch):
    monkeypatch.setattr(engine, "GROUP", 1)
    monkeypatch.setattr(engine, "COMMITS", 4)
    write, most, now = manifests.write, 0, 0

    async def slow(*how):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(random.uniform(0, 0.05))
        await write(*how)
        now -= 1

    monkeypatch.setattr(manifests, "write", slow)
    sim = a_recorder(NoojeeSimulator, 12, live=True)
    async with archiving(tmp_path, database, sim) as rig:
        await rig.sync()
        assert most > 1
        assert await assert_archived(rig) > 12
