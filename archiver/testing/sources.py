"""The contract of a source, as tests. A vendor's own test file subclasses it and supplies construction and quirks.

class TestAcme(SourceContract):
    simulator = AcmeSimulator
    source = Acme
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from ..errors import BadData, NotReady, Refused, SourceError, TryAgain
from ..model import Medium, Recording, Window
from ..ports import Details, Source
from ..simulators.base import Clock, Simulator
from ..wire.gate import Gate
from ..wire.recorder import Client

#: The fields of a recording that must equal the truth.
FIELDS = (
    "call_id", "started_at", "ended_at", "duration", "direction", "caller", "callee",
    "agent", "queue", "parties", "events", "attributes",
)  # fmt: skip
#: What a vendor may call a recording: spaces at the ends, quoting and case are part of an id.
ODD_IDS = (" lead and trail ", "a\tb", "e\u0301", "\u00e9", "50%2F1%", "007", "A/b?c#d&e=f+g;h", "..%2f", "a\\b'c\"")
NOW = datetime(2024, 5, 18, 12, 0, tzinfo=UTC)


class Kept:
    """A sink that keeps what it was given."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.content_type: str | None = None

    async def write(self, chunk: bytes) -> None:
        self.data += chunk

    def told(self, *, content_type: str | None = None) -> None:
        self.content_type = content_type

    async def restart(self) -> None:
        self.data.clear()


def build(source: type[Any], options: dict[str, Any], name: str = "pbx") -> tuple[Source, Client]:
    """A source of that class with those options, and its client."""
    parsed = source.Options(**options)
    client = Client.of(parsed, Gate(parsed.concurrency), cookies=getattr(source, "cookies", False))
    return source(name, parsed, client), client


@asynccontextmanager
async def opened(source: type[Any], options: dict[str, Any]) -> AsyncIterator[Source]:
    """A source that is closed at the end."""
    built, client = build(source, options)
    try:
        yield built
    finally:
        await client.close()


class SourceContract:
    """Subclass it; set ``simulator`` and ``source``, and ``changes`` where options must differ from the simulator's."""

    simulator: ClassVar[type[Simulator]]
    source: ClassVar[type[Any]]
    changes: ClassVar[dict[str, Any]] = {}

    @pytest_asyncio.fixture
    async def sim(self) -> AsyncIterator[Simulator]:
        """A recorder with sixty calls of the last six hours, at noon UTC of a Saturday in May."""
        simulator = self.simulator(seed=7, clock=Clock(NOW))
        simulator.add_calls(NOW - timedelta(hours=6), NOW - timedelta(minutes=1), 60)
        async with simulator:
            yield simulator

    def settings(self, sim: Simulator, **more: Any) -> dict[str, Any]:
        return {**sim.options(), "timeout": "2s", **self.changes, **more}

    @asynccontextmanager
    async def reading(self, sim: Simulator, **more: Any) -> AsyncIterator[Source]:
        async with opened(self.source, self.settings(sim, **more)) as source:
            yield source

    async def everything(self, source: Source, window: Window) -> dict[str, Recording]:
        """Every recording of the window by id, details included, listed hour by hour."""
        found: dict[str, Recording] = {}
        at = window.start
        while at < window.end:
            piece = Window(at, min(at + timedelta(hours=1), window.end))
            found |= {r.recording_id: r for r in (await source.list(piece)).recordings}
            at = piece.end
        if isinstance(source, Details):
            found = {i: await source.detail(r) for i, r in found.items()}
        return found

    def span(self) -> Window:
        return Window(NOW - timedelta(hours=7), NOW + timedelta(hours=1))

    async def first_medium(self, source: Source) -> Medium:
        found = await self.everything(source, self.span())
        return next(m for r in found.values() for m in r.media if r.media)

    # -- listing -----------------------------------------------------------------------------------------------------

    async def test_every_call_is_listed_with_every_field_as_the_recorder_told_it(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            found = await self.everything(source, self.span())
        truth = sim.truth()
        assert set(found) == set(truth)
        for recording_id, expected in truth.items():
            got = found[recording_id]
            told = {name: getattr(got, name) for name in FIELDS if name in expected.fields}
            assert told == {name: expected.fields[name] for name in told}, recording_id
            assert {m.media_id for m in got.media} == set(expected.audio)
            assert got.raw

    async def test_adjacent_windows_leave_no_gap_at_any_edge(self, sim: Simulator) -> None:
        truth = set(sim.truth())
        async with self.reading(sim) as source:
            whole = await self.everything(source, self.span())
            for edge in sorted(r.key(source.listing_key) for r in whole.values())[::7]:
                found = set()
                for window in (Window(self.span().start, edge), Window(edge, self.span().end)):
                    found |= set(await self.everything(source, window))
                assert found == truth, edge

    async def test_every_recording_lies_in_the_window_of_its_listing_key(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            for recording in (await self.everything(source, self.span())).values():
                key = recording.key(source.listing_key).replace(microsecond=0)
                around = await self.everything(source, Window(key, key + timedelta(seconds=1)))
                assert recording.recording_id in around

    async def test_a_call_that_crosses_a_window_s_edge_is_found(self, sim: Simulator) -> None:
        call = sim.add_call(NOW - timedelta(hours=3, minutes=30), timedelta(minutes=95))
        async with self.reading(sim) as source:
            assert set(sim.expected(call)) <= set(await self.everything(source, self.span()))

    async def test_an_empty_window_is_an_empty_listing(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            quiet = Window(NOW - timedelta(days=9), NOW - timedelta(days=9) + timedelta(hours=1))
            listing = await source.list(quiet)
        assert not listing.recordings
        assert not listing.rejected

    async def test_a_row_that_comes_late_is_listed_from_then_on(self, sim: Simulator) -> None:
        late = sim.add_call(NOW - timedelta(hours=2), timedelta(seconds=9), listed_at=NOW + timedelta(minutes=30))
        async with self.reading(sim) as source:
            before = await self.everything(source, self.span())
            sim.clock.advance(timedelta(hours=1))
            after = await self.everything(source, self.span())
        assert not set(sim.expected(late)) & set(before)
        assert set(sim.expected(late)) <= set(after)

    async def test_ids_are_kept_and_asked_for_exactly_as_they_are_told(self, sim: Simulator) -> None:
        if not sim.takes_any_id:
            pytest.skip("its ids are all of one form")
        begun, lasted = NOW - timedelta(hours=2), timedelta(seconds=9)
        calls = [sim.add_call(begun, lasted, extra={"id": odd}) for odd in ODD_IDS]
        truth = {i: told for call in calls for i, told in sim.expected(call).items()}
        async with self.reading(sim) as source:
            found = await self.everything(source, self.span())
            assert set(ODD_IDS) <= set(truth) <= set(found)
            for recording_id, expected in truth.items():
                assert {m.media_id for m in found[recording_id].media} == set(expected.audio)
                for medium in found[recording_id].media:
                    kept = Kept()
                    await source.fetch(medium, kept)
                    assert bytes(kept.data) == expected.audio[medium.media_id], recording_id

    async def test_check_logs_in(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            assert await source.check()

    @pytest.mark.parametrize("kind", ["reset", "stall", "html", "torn", "truncate"])
    async def test_a_listing_that_breaks_is_tried_again(self, sim: Simulator, kind: str) -> None:
        async with self.reading(sim, timeout="300ms") as source:
            sim.fault(kind, "list", times=-1)
            with pytest.raises(TryAgain):
                await self.everything(source, self.span())

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    async def test_a_busy_recorder_is_asked_again(self, sim: Simulator, status: int) -> None:
        async with self.reading(sim) as source:
            sim.fault("status", "list", value=status, times=-1)
            with pytest.raises(TryAgain):
                await self.everything(source, self.span())

    async def test_retry_after_is_heard(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            sim.fault("retry_after", "list", value=17, times=-1)
            with pytest.raises(TryAgain) as caught:
                await self.everything(source, self.span())
        assert caught.value.retry_after == timedelta(seconds=17)

    @pytest.mark.parametrize("status", [401, 403])
    async def test_a_refused_account_is_said(self, sim: Simulator, status: int) -> None:
        async with self.reading(sim) as source:
            sim.fault("status", "*", value=status, times=-1)
            with pytest.raises(Refused):
                await self.everything(source, self.span())

    # -- fetching ----------------------------------------------------------------------------------------------------

    async def test_every_medium_arrives_byte_for_byte(self, sim: Simulator) -> None:
        truth = sim.truth()
        async with self.reading(sim) as source:
            found = await self.everything(source, self.span())
            for recording_id, expected in list(truth.items())[:12]:
                for medium in found[recording_id].media:
                    kept = Kept()
                    await source.fetch(medium, kept)
                    assert bytes(kept.data) == expected.audio[medium.media_id]
                    if medium.size is not None:
                        assert medium.size == len(kept.data)
                    if medium.sha256 is not None:
                        assert medium.sha256 == hashlib.sha256(kept.data).hexdigest()

    @pytest.mark.parametrize("kind", ["reset", "stall", "truncate"])
    async def test_a_download_that_breaks_is_tried_again(self, sim: Simulator, kind: str) -> None:
        async with self.reading(sim) as source:
            medium = await self.first_medium(source)
        # Only what stalls on purpose is to be found slow.
        async with self.reading(sim, timeout="300ms") as source:
            sim.fault(kind, "audio", times=-1)
            with pytest.raises(TryAgain):
                await source.fetch(medium, Kept())

    @pytest.mark.parametrize(
        ("status", "error"),
        [(401, Refused), (403, Refused), (404, NotReady), (429, TryAgain), (500, TryAgain), (503, TryAgain)],
    )
    async def test_a_status_says_what_can_be_done(self, sim: Simulator, status: int, error: type[SourceError]) -> None:
        async with self.reading(sim) as source:
            medium = await self.first_medium(source)
            sim.fault("status", "audio", value=status, times=-1)
            with pytest.raises(error):
                await source.fetch(medium, Kept())

    # -- safety ------------------------------------------------------------------------------------------------------

    async def test_credentials_do_not_follow_a_redirect(self, sim: Simulator) -> None:
        elsewhere = self.simulator(seed=8)
        async with elsewhere, self.reading(sim) as source:
            medium = await self.first_medium(source)
            sim.fault("redirect", "*", times=-1, value=f"{elsewhere.base_url}/stolen")
            with pytest.raises(SourceError):
                await source.fetch(medium, Kept())
            with pytest.raises(SourceError):
                await self.everything(source, self.span())
        secrets = self.secrets(sim)
        for seen in elsewhere.seen:
            sent = f"{seen.path}?{seen.query} {dict(seen.headers)}"
            assert not any(secret in sent for secret in secrets)
            assert "Authorization" not in seen.headers

    def secrets(self, sim: Simulator) -> list[str]:
        return [str(v) for k, v in sim.options().items() if k in {"token", "password", "api_key"}]

    async def test_no_error_tells_a_secret(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            medium = await self.first_medium(source)
            for status in (400, 401, 403, 404, 500):
                sim.faults.clear()
                sim.fault("status", "*", value=status, times=-1)
                for attempt in (
                    source.list(Window(NOW - timedelta(hours=1), NOW)),
                    source.fetch(medium, Kept()),
                    source.check(),
                ):
                    with pytest.raises(SourceError) as caught:
                        await attempt
                    assert not any(secret in f"{caught.value!s} {caught.value!r}" for secret in self.secrets(sim))

    async def test_wrong_credentials_are_refused(self, sim: Simulator) -> None:
        wrong = {k: "wrong-1234567" for k in ("token", "password", "api_key") if k in sim.options()}
        async with self.reading(sim, **wrong) as source:
            with pytest.raises(Refused):
                await source.check()

    async def test_an_unreachable_recorder_is_said_in_one_line(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            await sim.stop()
            with pytest.raises(TryAgain, match="connect") as caught:
                await source.check()
        assert "\n" not in str(caught.value)

    async def test_a_cancelled_fetch_leaves_the_source_usable(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            medium = await self.first_medium(source)
            sim.fault("stall", "audio")
            task = asyncio.create_task(source.fetch(medium, Kept()))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            kept = Kept()
            await source.fetch(medium, kept)
            assert kept.data

    async def test_garbage_is_bad_data_or_tried_again(self, sim: Simulator) -> None:
        async with self.reading(sim) as source:
            sim.fault("json", "list", times=-1)
            with pytest.raises((BadData, TryAgain)):
                await self.everything(source, self.span())
