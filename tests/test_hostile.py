"""Whoever answers may be hostile: what comes ends in a valid result or one clear refusal, in bounded memory and time.

Audio, the config, CMS and single rows have such tests beside their own; here are the listings of every recorder, what
stores say of themselves, answers without measure, and names that are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver import config
from archiver.errors import SourceError
from archiver.http import Client
from archiver.model import Listing, Recording, Window
from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.base import Simulator
from tests.engine import HOUR, MINUTE
from tests.test_http import Server, answer, serving

NOON = datetime(2024, 5, 18, 12, tzinfo=UTC)
WINDOW = Window(NOON - HOUR, NOON)

DEEP: Any = "x"
for _ in range(200):
    DEEP = {"a": [DEEP]}

JUNK: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**63, -(2**63), 10**40, 1e308, float("nan"), float("inf"), "", " ", "x" * 5000,
    "\0", "a\nb", "\u202egpj", "\ud800", "../../etc/passwd", "[red]x[/]", "9" * 30, "-1", "1e999", "NaN",
    "PT9223372036854775808S", "P99999999999D", "99999:59:59", "9999-12-31T23:59:59.999999-14:00",
    "0001-01-01T00:00:00+14:00", "Tue Sep 14 15:03:30 AEST 20211", "http://u:p@evil.example/x", "file:///etc/passwd",
    [], {}, [None], [[]], {"": {}}, {"id": None}, DEEP,
]  # fmt: skip
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def mutated(page: Any, choose: Callable[[int], int]) -> Any:
    """The page with a few of its values replaced, taken out, doubled or moved."""
    page = json.loads(json.dumps(page))
    for _ in range(1 + choose(3)):
        places = list(_places(page))
        if not places:
            return JUNK[choose(len(JUNK))]
        holder, key = places[choose(len(places))]
        what = choose(8)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif what == 2:
            other, name = places[choose(len(places))]
            holder[key] = json.loads(json.dumps(other[name] if choose(2) else [other[name]]))
        else:
            holder[key] = JUNK[choose(len(JUNK))]
    return page if choose(20) else JUNK[choose(len(JUNK))]


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, level = [], [value]
    while level:
        holder = level.pop()
        if len(found) > 5000:
            break
        for key, child in holder.items() if isinstance(holder, dict) else enumerate(holder):
            found.append((holder, key))
            if isinstance(child, dict | list):
                level.append(child)
    return found


# -- listings --------------------------------------------------------------------------------------------------------


class Tape(Client):
    """Remembers every answer by its path."""

    def __init__(self, *how: Any, **more: Any) -> None:
        super().__init__(*how, **more)
        self.pages: dict[str, Any] = {}

    async def json(self, method: str, path: str, **how: Any) -> Any:
        page = await super().json(method, path, **how)
        path = path.split("?")[0]
        self.pages[path] = max(self.pages.get(path, page), page, key=lambda told: len(json.dumps(told)))
        return page


class Fuzzed:
    """A recorder whose every answer is one that its simulator gave, and then changed."""

    def __init__(self, kind: str, server: Server, pages: dict[str, Any], options: dict[str, Any], ids: list[str]):
        self.kind, self.server, self.pages, self.ids = kind, server, pages, ids
        cls = ENTRIES[kind].load()
        parsed = cls.Options(**options)
        self.client = Client.of(parsed, cookies=getattr(cls, "cookies", False))
        self.source = cls("pbx", parsed, self.client)
        server.answer = self.respond
        self.choose: Callable[[int], int] = lambda _n: 0

    async def respond(self, request: Any, _writer: Any) -> bytes:
        path = request.target.split("?")[0]
        if path.endswith("/Time"):
            return answer(body=str(NOON_MS + self.choose(2)).encode())
        known = [page for told, page in self.pages.items() if path.endswith(told)] or list(self.pages.values())
        page = mutated(known[self.choose(len(known))], self.choose)
        return answer(body=json.dumps(page).encode(), Content_Type="application/json")

    async def asked(self, choose: Callable[[int], int]) -> Listing:
        """What it makes of all that can be asked, each with one refusal at the most."""
        self.choose = choose
        recordings, rejected, said = list[Recording](), [], []
        source = self.source
        asks: list[Callable[[], Any]] = [lambda: source.list(WINDOW), source.check]
        if hasattr(source, "look_up"):
            asks.append(lambda: source.look_up(self.ids))
        if hasattr(source, "follow"):
            asks.append(lambda: source.follow(["0", "", "{}", "[1]", "-1", '{"open": 3}'][choose(6)]))
        for ask in asks:
            try:
                async with asyncio.timeout(60):
                    told = await ask()
            except SourceError as error:
                said.append(str(error))
                continue
            listing = getattr(told, "listing", told)
            if isinstance(listing, Listing):
                recordings += listing.recordings
                rejected += listing.rejected
        if hasattr(source, "detail"):
            for recording in recordings[:2]:
                with contextlib.suppress(SourceError):
                    recordings.append(await source.detail(recording))
        for recording in recordings:
            assert recording.started_at.utcoffset() == timedelta()
            recording.digest()
            recording.problem()
        assert all(len(row.raw) <= 4096 and row.reason for row in rejected)
        assert all(line and line.isprintable() for line in said), said
        return Listing(recordings, rejected)


ENTRIES = config.kinds("archiver.sources")
SIMULATORS = config.kinds("archiver.simulators")
NOON_MS = int(NOON.timestamp() * 1000)
MORE: dict[str, dict[str, Any]] = {
    "xivo": {"cel": True, "history": True},
    "imagicle": {"restarts": 1},
    "noojee": {"listing": "hour", "hour_interval": "0s"},
}


@asynccontextmanager
async def fuzzed(kind: str) -> AsyncIterator[Fuzzed]:
    sim: Simulator = SIMULATORS[kind].load()(seed=5, clock=RecorderClock(NOON, speed=0))
    sim.add_calls(NOON - HOUR, NOON - 10 * MINUTE, 3)
    async with sim:
        options = {**sim.options(), **MORE.get(kind, {}), "timeout": "20s"}
        cls = ENTRIES[kind].load()
        parsed = cls.Options(**options)
        tape = Tape.of(parsed, cookies=getattr(cls, "cookies", False))
        assert isinstance(tape, Tape)
        source = cls("pbx", parsed, tape)
        found = (await source.list(Window(NOON - 2 * HOUR, NOON))).recordings
        ids = [i for i in dict.fromkeys(r.call_id or r.recording_id for r in found) if i][:2]
        await source.check()
        for ask in ("look_up", "follow", "detail"):
            if hasattr(source, ask):
                told = {"look_up": ids, "follow": None, "detail": found[0]}[ask]
                with contextlib.suppress(SourceError):
                    await getattr(source, ask)(told)
        await tape.close()
        base = str(sim.base_url)
    async with serving() as server:
        options["base_url"] = options["base_url"].replace(base, server.url)
        fuzz = Fuzzed(kind, server, tape.pages, options, ids)
        yield fuzz
        await fuzz.client.close()
        # The server's own ends follow.
        await asyncio.wait([t for t in asyncio.all_tasks() if t is not asyncio.current_task()], timeout=10)


@pytest.mark.parametrize("kind", sorted(ENTRIES))
def test_any_mutation_of_a_recorder_s_answers_gives_a_listing_or_one_clear_refusal(kind):
    with asyncio.Runner() as runner:
        opened = fuzzed(kind)
        fuzz = runner.run(opened.__aenter__())
        read = 0

        @FUZZ
        @given(st.integers(0, 1 << 32))
        def attempt(seed: int) -> None:
            nonlocal read
            read += len(runner.run(fuzz.asked(random.Random(seed).randrange)).recordings)

        attempt()
        runner.run(opened.__aexit__(None, None, None))
    assert read > 20, "nothing was read at all: the pages no longer fit"
