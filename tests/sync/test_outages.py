"""What the archive depends on goes away in the middle of its work and comes back: the daemon goes on by itself."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from archiver.catalog.embedded import Embedded
from archiver.errors import CatalogDown
from archiver.service.daemon import Daemon
from archiver.sync import engine
from tests import servers
from tests.engine import (
    Rig,
    a_recorder,
    archiving,
    assert_archived,
    audio_requests,
    dav_table,
    eventually,
    hasten,
    s3_table,
    show_all,
)

CALLS = 300
#: Downloads beyond one a recording: what was under way, and a try now and then.
WASTE = 40
#: What the daemon says about an outage: not a line a recording.
LINES = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one, so that a socket's name fits, and open to the account that PostgreSQL runs under."""
    folder = Path(tempfile.mkdtemp(prefix="out-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def seaweed() -> Iterator[servers.Seaweed]:
    """Started first and used last: its first seconds are slow."""
    with servers.seaweed() as server:
        yield server


async def archived(rig: Rig) -> int:
    """How many media are archived; -1 while the database is away."""
    with contextlib.suppress(CatalogDown):
        return (await rig.catalog.totals()).get(("pbx", ""), (0, 0))[0]
    return -1


async def reached(rig: Rig, count: int) -> None:
    async def far_enough() -> bool:
        return await archived(rig) >= count

    await eventually(far_enough, within=60, every=0.02, why=f"{count} were never archived")


async def assert_whole(rig: Rig, at_work: Daemon) -> None:
    """Everything is archived, once, and the recorder was hardly asked twice for anything."""
    assert await assert_archived(rig) == CALLS
    assert set(await rig.states()) == {"archived"}
    for store in rig.archive.outlets:
        assert len(await rig.media_keys(store)) == CALLS
    asked = audio_requests(rig.sim)
    assert len(asked) == CALLS
    assert sum(asked.values()) <= CALLS + WASTE
    assert max(asked.values()) <= 4
    assert at_work.engine.busy == 0


async def test_the_database_is_killed_twice_and_comes_back(folder, monkeypatch):
    monkeypatch.setattr(engine, "LEASE", timedelta(seconds=4))
    database = Embedded(folder / "db", {"fsync": "off"})
    url = await database.start()
    sim = a_recorder(calls=CALLS, live=True, longest=2.0)
    try:
        async with archiving(folder, url, sim, timeout="5s") as rig:
            await rig.catalog.migrate()
            with capture_logs() as said:
                async with rig.running() as at_work:
                    # One that we only use: somebody else starts it again.
                    await reached(rig, CALLS // 5)
                    _kill(database, folder)
                    await asyncio.sleep(2.5)
                    assert at_work.engine.busy <= 16
                    await database.start()
                    # One of our own: the daemon starts it again.
                    rig.archive.database = database
                    await reached(rig, CALLS // 2)
                    _kill(database, folder)
                    await reached(rig, CALLS)
            await assert_whole(rig, at_work)
            down = [line for line in said if line["event"] == "catalog.down"]
            assert 2 <= len(down) <= LINES
            assert "database.restarting" in {line["event"] for line in said}
    finally:
        await database.stop()


def _kill(database: Embedded, folder: Path) -> None:
    assert database.alive()
    os.kill(int((folder / "db/pgdata/postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    end = asyncio.get_running_loop().time() + 2
    while database.alive():
        assert asyncio.get_running_loop().time() < end


async def _is(value: bool) -> bool:
    return value


async def test_the_recorder_is_stopped_and_comes_back(tmp_path, database):
    sim = a_recorder(calls=CALLS - 10, live=True, longest=2.0)
    async with archiving(tmp_path, database, sim, retry={"first": "1s", "cap": "2s"}) as rig:
        hasten(rig.archive)
        with capture_logs() as said:
            async with rig.running() as at_work:
                await reached(rig, CALLS // 4)
                await sim.stop()
                now = sim.clock.now()
                sim.add_calls(now - timedelta(minutes=4), now - timedelta(minutes=1), 10, longest=2.0)
                await eventually(lambda: _is(rig.feed.health.probing), within=10)
                await asyncio.sleep(2)
                status = (await rig.status())["sources"]["pbx"]
                assert status["pending"] > CALLS // 4
                assert status["failed"] == 0
                await sim.start()
                await reached(rig, CALLS)
                await eventually(lambda: _no_error(rig), within=10)
        await assert_whole(rig, at_work)
        attempts = [m["attempts"] for d in (await rig.documents()).values() for m in d["media"]]
        assert sum(attempts) <= CALLS + WASTE
        assert sum(1 for line in said if line["log_level"] in {"warning", "error"}) <= LINES


async def _no_error(rig: Rig) -> bool:
    return (await rig.status())["sources"]["pbx"]["last_error"] is None


async def test_the_s3_server_is_killed_and_the_webdav_server_is_stopped_and_both_come_back(tmp_path, database, seaweed):
    sim = a_recorder(calls=CALLS, live=True, longest=2.0)
    with servers.apache() as apache:
        stores = {
            "near": {"kind": "file", "path": str(tmp_path / "near")},
            "s3": s3_table(seaweed, "calls", timeout="5s"),
            "dav": dav_table(apache, timeout="5s"),
        }
        async with archiving(tmp_path, database, sim, stores=stores, timeout="5s") as rig:
            hasten(rig.archive)
            with capture_logs() as said:
                async with rig.running() as at_work:
                    await reached(rig, CALLS // 5)
                    await _goes_away(rig, at_work, "s3", seaweed.kill, seaweed.start)
                    await reached(rig, CALLS // 2)
                    await _goes_away(rig, at_work, "dav", apache.stop, apache.start)
                    await reached(rig, CALLS)
            # What was being put when it was killed: the media of the transfers that can run at once.
            assert await show_all(rig, "s3") <= 16
            await assert_whole(rig, at_work)
    assert sum(1 for line in said if line["event"] == "store.down") <= LINES
    assert {line["store"] for line in said if line["event"] == "store.up"} == {"s3", "dav"}


async def _goes_away(rig: Rig, at_work: Daemon, store: str, end: Callable[[], None], begin: Callable[[], None]) -> None:
    """Meanwhile transfers pause: nothing is fetched that could not be stored."""
    await asyncio.to_thread(end)
    await eventually(lambda: _is(rig.archive.outlets[store].health.probing), within=10)
    await eventually(lambda: _is(at_work.engine.busy == 0), within=10)
    asked = rig.sim.count("audio")
    await asyncio.sleep(1)
    assert rig.sim.count("audio") == asked
    assert await archived(rig) < CALLS
    await asyncio.to_thread(begin)
