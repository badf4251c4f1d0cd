"""The story: hours pass, calls come late, change, grow and vanish; peers flap and lie; power is cut at any await;
clocks jump; the catalog is lost; single things are bad for ever. Afterwards everything that could be listed is
archived, or really gone, and no single bad thing kept another from it.

A Hypothesis state machine drives two hosts with the real algorithm over a real PostgreSQL. What they talk to is
scripted here, so that it can be as rude as the story needs: a recorder, and two stores.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from archiver.audio.spool import Spool
from archiver.catalog.catalog import Catalog
from archiver.common.scope import canary
from archiver.errors import (
    Gone,
    NotReady,
    ObjectFailed,
    Overflow,
    Refused,
    StoreConflict,
    StoreDown,
    StoreRefused,
    TryAgain,
)
from archiver.model import Body, Listing, ListingKey, Medium, Receipt, Recording, Rejected, Window
from archiver.settings.options import Retry, SourceOptions
from archiver.simulators import audio
from archiver.sync import commit, failures, poll, transfer
from archiver.sync.engine import LEASE
from archiver.sync.feeds import Feed, Outlet
from archiver.sync.windows import subtract
from archiver.upkeep.rebuild import rebuild
from archiver.upkeep.verify import Verified, Verifier
from archiver.wire.gate import Gate
from tests.conftest import Postgres
from tests.factories import NOON, ManualClock

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SETTLE = 2 * MINUTE
#: The most by which the fleet's clock is wrong.
SKEW = 10 * MINUTE
NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


@functools.cache
def sound(seed: str) -> bytes:
    return audio.make("ulaw", seconds=0.05, seed=seed)


# -- what there truly is ---------------------------------------------------------------------------------------------


@dataclass
class Call:
    id: str
    start: datetime
    shown_at: datetime
    ready_at: datetime
    #: Does the recorder tell size and hash?
    hashed: bool
    #: By medium, the seed of what it sounds like now.
    media: dict[str, str] = field(default_factory=dict)
    agent: str = "A"
    vanished: bool = False
    #: Says "deleted" for what vanished, or just "not found".
    honest: bool = True
    #: Its audio is answered with an error, for ever.
    poison: bool = False
    #: Its row can't be read, for ever.
    odd: bool = False
    #: Every content that was ever served, by medium.
    served: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def row(self) -> Recording:
        media = tuple(
            Medium(
                recording_id=self.id,
                media_id=name,
                size=len(sound(seed)) if self.hashed else None,
                sha256=hashlib.sha256(sound(seed)).hexdigest() if self.hashed else None,
            )
            for name, seed in self.media.items()
        )
        end = self.start + MINUTE
        raw = {"id": self.id, "agent": self.agent, "media": sorted(self.media)}
        return Recording(
            recording_id=self.id, started_at=self.start, ended_at=end, media=media, agent=self.agent, raw=raw
        )


class World:
    """The recorder and the stores as they are, whoever looks."""

    def __init__(self) -> None:
        self.now = NOON
        self.calls: dict[str, Call] = {}
        #: What goes wrong next, by place; each once.
        self.troubles: dict[str, list[str]] = defaultdict(list)
        self.refused = False
        #: Moments that break every listing that holds them.
        self.breaking: list[datetime] = []
        #: By store, the recordings of which it takes no object, and those of which it gives none.
        self.unputtable: dict[str, set[str]] = defaultdict(set)
        self.ungettable: dict[str, set[str]] = defaultdict(set)
        self.stores: dict[str, dict[str, bytes]] = {"one": {}, "two": {}}
        #: By store, the audio that its manifests tell of.
        self.described: dict[str, set[str]] = {"one": set(), "two": set()}
        self.reached: Counter[str] = Counter()

    def trouble(self, place: str) -> str:
        if not self.troubles[place]:
            return ""
        what = self.troubles[place].pop(0)
        self.reached[f"{place}: {what}"] += 1
        return what

    def listed(self, window: Window) -> list[Call]:
        return [
            call
            for call in sorted(self.calls.values(), key=lambda c: c.start)
            if call.start in window and call.shown_at <= self.now and not call.vanished
        ]


# -- a host: its view of the recorder and the stores, its database connections, its memory ---------------------------


class Line:
    """A ports.Source: the recorder as a host sees it."""

    listing_key = ListingKey.START

    def __init__(self, host: Host) -> None:
        self.host, self.world = host, host.world

    async def check(self) -> str:
        await self._reach("check")
        return "fine"

    async def _reach(self, place: str) -> str:
        await asyncio.sleep(0)
        if self.host.dead:
            raise TryAgain("no power")
        if self.world.refused:
            self.world.reached["account refused"] += 1
            raise Refused("no more welcome")
        trouble = self.world.trouble(place)
        if trouble == "broken":
            raise TryAgain("the connection broke")
        return trouble

    async def list(self, window: Window) -> Listing:
        trouble = await self._reach("list")
        found: list[Recording] = []
        if any(moment in window for moment in self.world.breaking):
            self.world.reached["a window broke"] += 1
            raise TryAgain("500")
        rejected = [Rejected(raw=call.id, reason="odd") for call in self.world.listed(window) if call.odd]
        for call in self.world.listed(window):
            if call.odd:
                self.world.reached["an odd row"] += 1
                continue
            found.append(call.row())
            await asyncio.sleep(0)
            if trouble == "torn" and len(found) > 1:
                raise TryAgain("the page's token has died")
        if trouble == "too long" and window.length > 5 * MINUTE:
            raise Overflow("more than one page holds")
        if self.host.dead:
            raise TryAgain("no power")
        return Listing(found, rejected)

    async def fetch(self, medium: Medium, into: Any) -> None:
        trouble = await self._reach("fetch")
        call = self.world.calls[medium.recording_id]
        if call.poison:
            self.world.reached["a poisoned medium"] += 1
            raise TryAgain("500")
        if call.vanished and call.honest:
            raise Gone("it was deleted")
        if call.vanished or call.ready_at > self.world.now:
            self.world.reached["not there"] += 1
            raise NotReady("404")
        data = sound(call.media[medium.media_id])
        if trouble == "page":
            data = b"<!DOCTYPE html><html>Please log in</html>"
        elif trouble == "half":
            data = data[: len(data) // 2]
        elif trouble == "other" and call.hashed:
            data = sound("another call")
        else:
            call.served[medium.media_id].add(hashlib.sha256(data).hexdigest())
        for at in range(0, len(data), 400):
            await into.write(data[at : at + 400])
            await asyncio.sleep(0)


class Shelf:
    """A ports.Store: a store as a host sees it."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.world, self.name = host, host.world, name

    async def check(self) -> str:
        return "fine"

    async def alive(self) -> None:
        if self.host.dead or self.world.trouble(self.name) == "away":
            raise StoreDown("unreachable")

    async def put(self, key: str, body: Body) -> Receipt:
        await asyncio.sleep(0)
        # Manifests fail by themselves: after the audio, before the catalog.
        place = f"{self.name}'s manifests" if key.startswith("_manifests/") else self.name
        trouble = "" if self.host.dead else self.world.trouble(place)
        if self.host.dead or trouble == "away":
            raise StoreDown("unreachable")
        if any(f"/{name}/" in key for name in self.world.unputtable[self.name]):
            self.world.reached["an object was refused"] += 1
            # As servers do: some say what they refuse, of others only a canary shows that they take the rest.
            raise (ObjectFailed if len(key) % 2 else StoreRefused)("not that one")
        objects, data = self.world.stores[self.name], body.read()
        await asyncio.sleep(0)
        if self.host.dead:
            raise StoreDown("no power")
        if key in objects and objects[key] != data:
            raise StoreConflict(f"other bytes lie under {key}")
        objects[key] = data
        if key.startswith("_manifests/"):
            rows = [json.loads(line) for line in data.splitlines()]
            self.world.described[self.name] |= {
                c["key"] for r in rows for m in r["media"] for c in m["copies"] if c["store"] == self.name
            }
        await asyncio.sleep(0)
        if trouble == "lost answer":
            raise StoreDown("stored, but the answer was lost")
        return Receipt(key=key, size=len(data), sha256=body.sha256)

    async def stat(self, key: str) -> Receipt | None:
        data = self.world.stores[self.name].get(key)
        return None if data is None else Receipt(key=key, size=len(data))

    async def get(self, key: str, into: Any) -> None:
        await asyncio.sleep(0)
        if self.host.dead:
            raise StoreDown("no power")
        if any(f"/{name}/" in key for name in self.world.ungettable[self.name]):
            self.world.reached["a copy was not given"] += 1
            raise StoreDown("500")
        await into.write(self.world.stores[self.name][key])

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        for key in sorted(self.world.stores[self.name]):
            if key.startswith(prefix) and key > after:
                yield Receipt(key=key, size=len(self.world.stores[self.name][key]))

    async def delete(self, key: str) -> None:
        raise AssertionError("nothing is ever deleted")

    def location(self, key: str) -> dict[str, str]:
        return {}

    async def close(self) -> None: ...


class Host:
    """One daemon's memory and connections; a power cut takes both."""

    def __init__(self, world: World, catalog: Catalog, options: SourceOptions, spool: Path) -> None:
        self.world = world
        self.catalog = catalog
        self.dead = False
        self.steps = 0
        #: The power is cut at so many steps of its tasks.
        self.cut_at: int | None = None
        outlets = {name: Outlet(name, Shelf(self, name), "") for name in world.stores}
        self.feed = Feed("pbx", "story", Line(self), options, outlets, Gate(4))
        self.spool = Spool(spool, 1 << 20)

    def tick(self) -> bool:
        """One step of one of its tasks; was it the last?"""
        self.steps += 1
        if self.cut_at is None or self.steps < self.cut_at or self.dead:
            return False
        self.die()
        return True

    def die(self) -> None:
        """Nothing that it still does has any effect: its connections are gone, peers don't hear it."""
        self.dead = True
        self.catalog._url = NOWHERE
        if self.catalog._locks is not None:
            self.catalog._locks.terminate()
        self.catalog._pool.terminate()

    # -- what a host does --------------------------------------------------------------------------------------------

    async def poll(self) -> None:
        try:
            await poll.poll(self.feed, self.catalog, pause=0.0)
        except Refused:
            self.world.reached["a poll was refused"] += 1

    async def fetch(self) -> list[Any]:
        """Claim what is due and bring it to the stores; what is to be committed."""
        claims = await self.catalog.claim({"pbx": 50}, LEASE)
        return list(
            await asyncio.gather(*(transfer.transfer(self.feed, claim, self.catalog, self.spool) for claim in claims))
        )

    async def commit(self, results: list[Any]) -> int:
        settled = await commit.commit({"pbx": self.feed}, self.catalog, results)
        return len(results) - len(settled)

    async def transfer(self) -> None:
        if self.feed.paused_until is not None and self.catalog.clock.now() < self.feed.paused_until:
            return
        if not await self.healed():
            return
        results = await self.fetch()
        if results:
            await self.commit(results)

    async def healed(self) -> bool:
        """As the engine does it: nothing is transferred while a breaker is open; then a question decides."""
        now = self.catalog.clock.now()
        things = [self.feed, *self.feed.outlets.values()]
        if any(thing.health.open(now) for thing in things):
            self.world.reached["a breaker was open"] += 1
            return False
        if self.feed.health.probing:
            await failures.heal(self.feed, self.catalog)
        for outlet in self.feed.outlets.values():
            if outlet.health.probing and (error := await canary(outlet.store)) is not None:
                outlet.health.opens(now, str(error))
            outlet.health.trying = outlet.health.probing
        return not any(thing.health.open(now) for thing in things)

    async def verify(self, store: str) -> Verified:
        @asynccontextmanager
        async def lend(_: str) -> AsyncIterator[None]:
            yield

        verifier = Verifier(
            catalog=self.catalog,
            outlet=self.feed.outlets[store],
            outlets=self.feed.outlets,
            feeds={"pbx": self.feed},
            spool=self.spool,
            lend=lend,
        )
        return await verifier.stalest()

    async def describe(self) -> None:
        await commit.describe_changes({"pbx": self.feed}, self.catalog)
        await commit.write_ledgers({"pbx": self.feed}, self.catalog)


class _Counted:
    """Runs a coroutine and counts its steps."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], tick: Callable[[], bool]) -> None:
        self._coroutine, self._tick = coroutine, tick

    def __await__(self) -> Iterator[Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            if self._tick():
                value, step = asyncio.CancelledError(), self._coroutine.throw
            try:
                waiting = step(value)
            except StopIteration as end:
                return end.value
            try:
                value = yield waiting
                step = self._coroutine.send
            except BaseException as error:
                value, step = error, self._coroutine.throw


async def _counted(coroutine: Coroutine[Any, Any, Any], tick: Callable[[], bool]) -> Any:
    return await _Counted(coroutine, tick)


# -- the story -------------------------------------------------------------------------------------------------------


class Story(RuleBasedStateMachine):
    """One example; the class attributes are set by the test."""

    database: str
    folder: Path
    lookback: timedelta
    reached: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.world.reached = type(self).reached
        self.clock = ManualClock(NOON)
        self.options = SourceOptions(
            kind="story",
            base_url="http://127.0.0.1",
            start=NOON - 2 * HOUR,
            window=timedelta(minutes=30),
            settle=SETTLE,
            lookback=self.lookback,
            longest_call=timedelta(),
            retry=Retry(first=timedelta(seconds=30), cap=HOUR),
        )
        #: How wrong the fleet's clock is.
        self.skew = timedelta()
        #: Results that a slow host has not committed yet.
        self.held: list[tuple[Host, list[Any]]] = []
        self.hosts: list[Host] = []
        self._made = 0
        self.made_again = False
        #: The storyteller's own look at the database.
        self.eye = self.run(asyncpg.connect(self.database))

    def teardown(self) -> None:
        try:
            if self.hosts:
                self.all_is_archived_or_gone()
        finally:
            for host in {*self.hosts, *(host for host, _ in self.held)}:
                self.run(self.close(host))
            self.run(self.eye.close())
            self.loop.close()

    async def close(self, host: Host) -> None:
        if not host.dead:
            await host.catalog.close()

    def run(self, what: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(what)

    cuts = st.one_of(st.none(), st.none(), st.integers(1, 200))
    who = st.integers(0, 1)
    #: What goes wrong with the next listings, downloads, and what is put into each store.
    listing = st.one_of(
        st.just([]),
        # A window is tried three times.
        st.sampled_from((["broken"] * 3, ["torn"] * 3, ["torn"] * 6)),
        st.lists(st.sampled_from(("broken", "torn", "too long")), min_size=1, max_size=5),
    )
    fetching = st.lists(st.sampled_from(("broken", "page", "half", "other", "")), max_size=3)
    putting = st.one_of(st.just([]), st.lists(st.sampled_from(("away", "lost answer", "")), min_size=1, max_size=3))

    @initialize(bad=st.booleans(), cut=cuts, listing=listing, fetching=fetching, one=putting, two=putting, told=putting)
    def begin(
        self,
        bad: bool,
        cut: int | None,
        listing: list[str],
        fetching: list[str],
        one: list[str],
        two: list[str],
        told: list[str],
    ) -> None:
        self.run(self.forget())
        self.hosts = [self.run(self.boot()), self.run(self.boot())]
        for number in range(6):
            self.a_call(0, 0, 0, 0, hashed=number % 2 == 0)
            self.pass_by(7 * MINUTE)
        for number, what in enumerate(("audio", "object", "object", "copy", "second", "row") if bad else ()):
            self.bad_for_ever(what, 7 * number + 1)
        # Each story begins with some trouble, for not every rule comes up in each.
        self.world.troubles["list"] = listing
        self.act(0, Host.poll, cut)
        self._transfer(1, cut, fetching, one, two, told)

    async def forget(self) -> None:
        """The catalog is lost."""
        tables = "sources, recordings, media, copies, totals, listings, history, rejected, shares, outbox"
        for table in tables.split(", ")[::-1]:
            await self.eye.execute(f"DELETE FROM {table}")

    async def boot(self) -> Host:
        catalog = await Catalog.open(self.database, clock=self.clock, size=3)
        return Host(self.world, catalog, self.options, self.folder)

    def act(self, number: int, what: Callable[[Host], Awaitable[Any]], cut: int | None = None) -> Any:
        """A host does something; with ``cut`` its power goes after so many steps, and it starts anew."""
        host = self.hosts[number]
        host.steps, host.cut_at = 0, cut

        def counting(loop: Any, coroutine: Any, **how: Any) -> asyncio.Task[Any]:
            task = asyncio.Task(_counted(coroutine, host.tick), loop=loop, **how)
            # One that is called off before its first step would complain.
            task.add_done_callback(lambda _: coroutine.close())
            return task

        self.loop.set_task_factory(counting)
        try:
            # Itself not counted: it is not the host's.
            return self.run(asyncio.Task(self.powered(host, what(host)), loop=self.loop))
        finally:
            self.loop.set_task_factory(None)
            host.cut_at = None
            if host.dead:
                self.reached["power cut"] += 1
                self.hosts[number] = self.run(self.restarted())

    async def powered(self, host: Host, what: Awaitable[Any]) -> Any:
        task = asyncio.ensure_future(what)
        while not task.done():
            await asyncio.wait([task], timeout=0.05)
            if host.dead:
                task.cancel()
        try:
            return task.result()
        except BaseException:
            if not host.dead:
                raise
        return None

    async def restarted(self) -> Host:
        """The database has noticed; then the host is back, with nothing in its memory."""
        for _ in range(1000):
            others = await self.eye.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND state <> 'idle'"
            )
            if not others:
                break
            await asyncio.sleep(0.005)
        return await self.boot()

    def pass_by(self, time: timedelta) -> None:
        self.world.now += time
        self.clock.set(self.world.now + self.skew)

    # -- the world changes -------------------------------------------------------------------------------------------

    @rule(minutes=st.sampled_from((1, 1, 5, 20, 45, 100, 300)))
    def time_passes(self, minutes: int) -> None:
        self.pass_by(minutes * MINUTE)

    call = st.tuples(
        st.integers(0, 90),
        st.sampled_from((0, 30, 90)),
        st.sampled_from((0, 0, 0, 15, 60, 200)),
        st.sampled_from((0, 0, 0, 10, 100)),
        st.booleans(),
    )

    @rule(calls=st.lists(call, min_size=1, max_size=4))
    def calls_come(self, calls: list[tuple[int, int, int, int, bool]]) -> None:
        for call in calls:
            self.a_call(*call)

    def a_call(self, ago: int, lag: int, late: int, unready: int, hashed: bool) -> None:
        """It began so many seconds ago; the recorder shows it within its settling time, or late (in minutes)."""
        self._made += 1
        start = self.world.now - timedelta(seconds=ago)
        # What comes later than the lookback is found by no poll; nor may the clock's error add to it.
        possible = max(timedelta(), self.lookback - 2 * SKEW - SETTLE)
        behind = min(late * MINUTE, possible) or timedelta(seconds=min(lag, 100))
        shown = max(start + behind, self.world.now)
        call = Call(f"c{self._made}", start, shown, shown + unready * MINUTE, hashed)
        call.media["m1"] = f"{call.id}/m1/0"
        self.world.calls[call.id] = call
        self.reached["a late call"] += behind > 2 * SETTLE

    def _recent(self) -> list[Call]:
        """Calls of which a poll will still see that they changed."""
        least = self.world.now - (self.lookback - 2 * SKEW - SETTLE)
        return [c for c in self.world.calls.values() if c.start > least and not c.vanished]

    @precondition(lambda self: self._recent())
    @rule(data=st.data())
    def a_call_gets_other_content(self, data: Any) -> None:
        call = data.draw(st.sampled_from(self._recent()))
        if call.hashed:
            self._made += 1
            call.media["m1"] = f"{call.id}/m1/{self._made}"
            self.reached["other content"] += 1
        call.agent = data.draw(st.sampled_from("ABC"))

    @precondition(lambda self: self._recent())
    @rule(data=st.data())
    def a_call_grows(self, data: Any) -> None:
        call = data.draw(st.sampled_from(self._recent()))
        name = f"m{len(call.media) + 1}"
        call.media[name] = f"{call.id}/{name}/0"
        self.reached["grown"] += 1

    @precondition(lambda self: self.world.calls)
    @rule(data=st.data(), honest=st.booleans())
    def a_call_vanishes(self, data: Any, honest: bool) -> None:
        call = data.draw(st.sampled_from(list(self.world.calls.values())))
        if len(self.world.calls) > 2 and not call.vanished:
            call.vanished, call.honest = True, honest
            self.reached["vanished"] += 1

    # -- single things that are bad for ever --------------------------------------------------------------------------

    @rule(what=st.sampled_from(("audio", "object", "object", "copy", "second", "row")), ago=st.integers(1, 90))
    def something_is_bad_for_ever(self, what: str, ago: int) -> None:
        self.bad_for_ever(what, ago)

    def bad_for_ever(self, what: str, ago: int) -> None:
        if what == "second":
            if len(self.world.breaking) < 3:
                self.world.breaking.append(self.world.now - ago * MINUTE + timedelta(milliseconds=500))
            return
        self.a_call(ago, 0, 0, 0, hashed=what == "copy")
        call = self.world.calls[f"c{self._made}"]
        call.poison, call.odd = what == "audio", what == "row"
        if what == "object":
            self.world.unputtable["one" if ago % 2 else "two"].add(call.id)
        elif what == "copy":
            self.world.ungettable["two"].add(call.id)

    # -- peers flap and lie, clocks jump -----------------------------------------------------------------------------

    @rule(refused=st.sampled_from((True, False, False)))
    def the_account(self, refused: bool) -> None:
        self.world.refused = refused

    @rule(minutes=st.sampled_from((-10, -3, 0, 3, 10)))
    def the_clock_jumps(self, minutes: int) -> None:
        if not self.lookback:
            # One that runs ahead lists moments that are not over yet; the lookback is what mends that.
            minutes = min(minutes, 0)
        self.skew = minutes * MINUTE
        self.pass_by(timedelta())
        self.reached["the clock jumped"] += minutes != 0

    # -- the archive works -------------------------------------------------------------------------------------------

    @rule(number=who, cut=cuts, listing=listing)
    def poll(self, number: int, cut: int | None, listing: list[str]) -> None:
        self.world.troubles["list"] = listing
        self.act(number, Host.poll, cut)

    def _transfer(
        self, number: int, cut: int | None, fetching: list[str], one: list[str], two: list[str], told: list[str]
    ) -> None:
        self.world.troubles |= {"fetch": fetching, "one": one, "two": two, "one's manifests": told}
        self.act(number, Host.transfer, cut)

    @rule(number=who, cut=cuts, fetching=fetching, one=putting, two=putting, told=putting)
    def transfer(
        self, number: int, cut: int | None, fetching: list[str], one: list[str], two: list[str], told: list[str]
    ) -> None:
        self._transfer(number, cut, fetching, one, two, told)

    @rule(number=who, cut=cuts, fetching=fetching, one=putting, two=putting, told=putting)
    def poll_and_transfer(
        self, number: int, cut: int | None, fetching: list[str], one: list[str], two: list[str], told: list[str]
    ) -> None:
        self.act(number, Host.poll)
        self._transfer(number, cut, fetching, one, two, told)

    @rule(number=who, cut=cuts, one=putting)
    def describe(self, number: int, cut: int | None, one: list[str]) -> None:
        self.world.troubles["one's manifests"] = one
        self.act(number, Host.describe, cut)

    @rule(
        number=who, minutes=st.sampled_from((3, 3, 0)), other=st.sampled_from((True, True, False)), soon=st.booleans()
    )
    def a_host_is_slow(self, number: int, minutes: int, other: bool, soon: bool) -> None:
        """It fetches, and commits another time, perhaps after its lease, perhaps after another did its work."""
        self.act(number, Host.poll)
        results = self.act(number, Host.fetch)
        if results:
            self.held.append((self.hosts[number], results))
            self.pass_by(minutes * MINUTE)
            if other:
                self.act(1 - number, Host.transfer)
            if soon:
                self.the_slow_host_commits()

    @precondition(lambda self: self.held)
    @rule()
    def it_commits_at_last(self) -> None:
        self.the_slow_host_commits()

    def the_slow_host_commits(self) -> None:
        host, results = self.held.pop(0)
        if host.dead:
            return
        stale = self.run(self.stale([result.claim for result in results]))
        refused = self.run(host.commit(results))
        assert refused >= stale, "a commit counted whose claim had passed to another"
        self.reached["a late commit was refused"] += refused > 0
        self.reached["a late commit held"] += refused < len(results)

    async def stale(self, claims: list[Any]) -> int:
        """How many of these claims are no longer their medium's."""
        held = {tuple(row) for row in await self.eye.fetch("SELECT recording_id, media_id, token FROM claims")}
        return sum((*claim.id[1:], claim.token) not in held for claim in claims)

    @rule(store=st.sampled_from(("one", "two")))
    def the_catalog_is_lost_and_made_again(self, store: str) -> None:
        self.held.clear()
        self.run(self.forget())
        host = self.hosts[0]
        self.run(rebuild(host.catalog, host.feed.outlets[store], {"pbx": ListingKey.START}, host.spool))
        # Its manifests may tell of a copy in the other store whose own manifest was still to be written.
        for row in self.run(self.archived()):
            self.world.described[row["store"]].add(row["key"])
        self.reached["rebuilt"] += 1
        self.made_again = True

    # -- what holds at any time --------------------------------------------------------------------------------------

    @invariant()
    def archived_means_held_and_described_everywhere(self) -> None:
        if not self.hosts:
            return
        for row in self.run(self.archived()):
            data = self.world.stores[row["store"]].get(row["key"], b"")
            assert hashlib.sha256(data).hexdigest() == row["sha256"], f"archived, but not held: {dict(row)}"
            assert row["key"] in self.world.described[row["store"]], f"archived, but not described: {dict(row)}"
            call = self.world.calls[row["recording_id"]]
            assert row["sha256"] in call.served[row["media_id"]], f"bytes that no call has: {dict(row)}"

    async def archived(self) -> list[Any]:
        rows = await self.eye.fetch(
            "SELECT m.recording_id, m.media_id, s.store, c.key, m.sha256 FROM media m"
            " CROSS JOIN unnest(m.stores) AS s (store)"
            " LEFT JOIN copies c ON (c.source, c.recording_id, c.media_id, c.store, c.sha256)"
            "     = (m.source, m.recording_id, m.media_id, s.store, m.sha256)"
            " WHERE m.state = 'archived'"
        )
        return list(rows)

    # -- how it ends -------------------------------------------------------------------------------------------------

    def all_is_archived_or_gone(self) -> None:
        self.world.troubles.clear()
        self.world.refused = False
        self.skew = timedelta()
        self.pass_by(timedelta())
        while self.held:
            self.the_slow_host_commits()
        # The same time as without what is bad.
        steps = [SETTLE, LEASE, HOUR, HOUR, 2 * HOUR, 3 * HOUR, 3 * HOUR]
        if any(c.vanished and not c.honest for c in self.world.calls.values()):
            steps += [12 * HOUR] * 8
        for number, step in enumerate(steps):
            self.pass_by(step)
            self.act(number % 2, Host.poll)
            self.act(number % 2, Host.transfer)
            if number > 4 and not self.run(self.unfinished()):
                break
        self.act(0, Host.describe)
        self.archived_means_held_and_described_everywhere()
        documents = self.run(self.documents())
        for call in self.world.calls.values():
            self.it_is_archived_or_gone(call, documents.pop(call.id, None))
        assert documents == {}, "recordings that no recorder has"
        for name, objects in self.world.stores.items():
            contents = Counter(
                (key.rsplit("/", 1)[0], hashlib.sha256(data).hexdigest())
                for key, data in objects.items()
                if key.startswith("pbx/")
            )
            assert set(contents.values()) <= {1}, f"doubled in {name}"
        (ledger,) = self.run(self.hosts[0].catalog.sources(["pbx"]))
        gaps = subtract([Window(NOON - 2 * HOUR, self.clock.now() - SETTLE)], ledger["covered"])
        for gap in gaps:
            assert self.named(gap), f"a gap that nothing bad explains: {gap}"
        self.all_that_can_be_read_is_verified()
        self.reached["examples"] += 1
        self.reached["calls"] += len(self.world.calls)

    def in_a_gap(self, call: Call) -> bool:
        """Does it lie in a second of which nothing can be listed?"""
        return any(moment - timedelta(seconds=1) < call.start <= moment for moment in self.world.breaking)

    def named(self, gap: Window) -> bool:
        """Is it a second that breaks every listing, or a window of which no row can be read?"""
        calls = [c for c in self.world.calls.values() if c.start in gap and not self.in_a_gap(c)]
        breaking = [moment for moment in self.world.breaking if moment in gap]
        if calls:
            return all(c.odd or c.vanished for c in calls)
        return bool(breaking) and gap.length <= timedelta(seconds=len(breaking))

    def all_that_can_be_read_is_verified(self) -> None:
        self.pass_by(MINUTE)
        found = self.act(0, lambda host: host.verify("two"))
        bad = self.world.ungettable["two"]
        rows = self.run(
            self.eye.fetch("SELECT recording_id, verified_at, archived_at, bad FROM copies WHERE store = 'two'")
        )
        assert found.error is None, found
        for row in rows:
            assert (row["bad"] is None) == (row["recording_id"] not in bad), dict(row)
            assert (row["verified_at"] is not None) or row["recording_id"] in bad, dict(row)

    def it_is_archived_or_gone(self, call: Call, document: dict[str, Any] | None) -> None:
        if call.poison or call.odd or self.in_a_gap(call) or (call.vanished and document is None):
            # What was archived before it went bad stays; nothing more is asked of it.
            return
        assert document is not None, f"lost: {call}"
        media = {m["media_id"]: m for m in document["media"]}
        refusing = {name for name, ids in self.world.unputtable.items() if call.id in ids}
        if call.vanished:
            # After a rebuild nobody knows that a window once told of it: what is only "not found" stays visible.
            waiting = {"pending"} if refusing or (self.made_again and not call.honest) else set()
            assert {m["state"] for m in media.values()} <= {"archived", "gone"} | waiting, (call, media)
            return
        assert document["agent"] == call.agent, (call, document)
        assert set(media) == set(call.media), (call, document)
        for name, seed in call.media.items():
            medium = media[name]
            held = {c["store"] for c in medium["copies"] if c["sha256"] == medium["sha256"]}
            if refusing:
                # The other one has it.
                assert (medium["state"], held) == ("pending", set(self.world.stores) - refusing), (call, medium)
                assert "refused this object" in medium["error"], (call, medium)
                continue
            assert (medium["state"], medium["error"]) == ("archived", None), (call, medium)
            assert medium["sha256"] == hashlib.sha256(sound(seed)).hexdigest(), (call, medium)
            assert held == set(self.world.stores), (call, medium)

    async def unfinished(self) -> bool:
        counts = await self.hosts[0].catalog.counts(["pbx"])
        return "pending" in counts.get("pbx", {})

    async def documents(self) -> dict[str, Any]:
        ids = [("pbx", row[0]) for row in await self.eye.fetch("SELECT recording_id FROM recordings")]
        found = await self.hosts[0].catalog.documents(ids)
        return {key[1]: document for key, (document, *_) in found.items()}


#: What the rules must have brought about, or they prove nothing: of each line at least one.
REACHES = (
    {"examples"},
    {"power cut"},
    {"a late commit was refused", "a late commit held"},
    {"account refused", "not there"},
    {"vanished"},
    {"the clock jumped"},
    {"rebuilt"},
    {"a poisoned medium"},
    {"an object was refused"},
    {"a copy was not given"},
    {"a window broke"},
    {"an odd row"},
    {f"list: {what}" for what in ("broken", "torn", "too long")},
    {f"fetch: {what}" for what in ("broken", "page", "half", "other")},
    *({f"{place}: {what}" for what in ("away", "lost answer")} for place in ("one", "two", "one's manifests")),
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("lookback", [timedelta(), 6 * HOUR], ids=["no lookback", "lookback"])
def test_whatever_happens_in_the_end_all_that_was_listable_is_archived_or_gone(
    lookback: timedelta, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lookback too: what is listed twice hides what was not recorded when it should have been."""
    monkeypatch.setattr("archiver.catalog.ledger.REVISIT_AFTER", ())
    url, reached = postgres.create(), Counter[str]()
    known = hypothesis.settings()
    how = hypothesis.settings(
        max_examples=20 if known.derandomize else 300,
        stateful_step_count=25,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        # Minutes of shrinking tell little that the first failure does not.
        phases=(Phase.generate,) if known.derandomize else (Phase.generate, Phase.shrink),
    )
    with tempfile.TemporaryDirectory() as folder, capture_logs():
        facts = {"database": url, "folder": Path(folder), "lookback": lookback, "reached": reached}
        hypothesis.stateful.run_state_machine_as_test(type("Told", (Story,), facts), settings=how)
    postgres.drop(url)
    print(dict(sorted(reached.items())))
    wanted = [*REACHES, *([{"a late call"}, {"other content"}, {"grown"}] if lookback else [])]
    assert [names for names in wanted if not any(reached[name] for name in names)] == []
