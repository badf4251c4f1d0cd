"""Each alert rule fires by its real cause, seen through a daemon's own /metrics, and clears by itself."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
import yaml
from aiohttp import web

from archiver.common import disks
from archiver.errors import TryAgain
from archiver.model import State, Window
from archiver.service import daemon as daemons
from archiver.service import watch, wiring
from archiver.sync import poll
from tests.engine import HOUR, MINUTE, dav_table, eventually
from tests.prometheus import NOTHING, RULES, Story, assert_fires, page, scrape, wrong
from tests.scenes import scene
from tests.servers import Apache, apache


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Listings that fail are tried again at once."""
    monkeypatch.setattr(poll, "poll", functools.partial(poll.poll, pause=0.001))


@pytest.fixture
def dav() -> Iterator[Apache]:
    with apache() as server:
        yield server


async def test_a_recorder_in_trouble(tmp_path, database, clock, monkeypatch):
    async with scene(tmp_path, database, clock) as it:
        rig, sim = it.rig, it.rig.sim

        # It is switched off for two hours.
        await sim.stop()
        rig.advance(2 * HOUR)
        await it.troubled("SourceStale", "BreakerOpen")
        await sim.start()
        rig.advance(11 * MINUTE)
        it.call()
        await it.over()

        # It refuses our account.
        token, sim.token = sim.token, "another"
        it.call()
        await it.troubled("SourceRefused")
        sim.token = token
        rig.advance(16 * MINUTE)
        await it.over()

        # It refuses one recording.
        refusal = sim.fault("status", "audio", value=403, times=-1)
        it.call()
        await it.troubled("MediaFailed")
        sim.faults.remove(refusal)
        await rig.catalog.retry("pbx", State.FAILED)
        await it.over()

        # It answers nothing but errors.
        sim.fault("status", value=500, times=-1)
        it.call(6)
        rig.advance(MINUTE)
        await it.troubled("BreakerOpen")
        sim.faults.clear()
        rig.advance(11 * MINUTE)
        await it.over()

        # Its audio fails for more than a day.
        sim.fault("status", "audio", value=500, times=-1)
        it.call(6)

        async def failed() -> bool:
            media = [medium for document in (await rig.documents()).values() for medium in document["media"]]
            return any((medium["error"] or "").startswith("failed") for medium in media)

        await eventually(failed)
        rig.advance(25 * HOUR)
        await it.troubled("MediaFailing")
        sim.faults.clear()
        rig.advance(11 * MINUTE)
        await it.over()

        # It lists a row that nobody can read.
        bad = {"id": None, "start": "the day before yesterday"}
        row = sim.fault("bad_row", "list", times=-1, value=bad)
        await it.troubled("RowsRejected")
        sim.faults.remove(row)
        rig.advance(61 * MINUTE)
        await it.over()

        # It can't list one hour.
        hole, listed = clock.now() + HOUR, rig.feed.source.list

        async def list_(window: Window) -> Any:
            if hole in window:
                raise TryAgain("not that hour")
            return await listed(window)

        monkeypatch.setattr(rig.feed.source, "list", list_)
        rig.advance(3 * HOUR)
        await it.troubled("LedgerGaps")
        monkeypatch.setattr(rig.feed.source, "list", listed)
        # Tried again on its own schedule.
        rig.advance(2 * HOUR)
        await it.over()

        await assert_fires(tmp_path, *it.stories)


async def test_recordings_that_are_kept_as_evidence(tmp_path, database, clock, monkeypatch):
    monkeypatch.setattr(daemons, "WATCH", 0.3)
    async with scene(tmp_path, database, clock) as it:
        rig = it.rig
        it.call(5)

        async def archived() -> bool:
            return await rig.states() == {"archived": 8}

        await eventually(archived)
        await it.calm()

        # One is of a kind that nobody knows.
        await rig.mark("unchecked", 1)
        await it.troubled("MediaFlagged")
        assert await wrong(it.daemon) == {"MediaFlagged"}

        # More than half are far too short.
        await rig.mark("short", 5)
        await it.troubled("MediaFlagged", "AudioShort")
        await rig.mark(None, 8)
        await it.over()

        # Those of days ago are no news.
        await rig.mark("short", 5)
        rig.advance(timedelta(hours=25))
        await it.calm()
        await assert_fires(tmp_path, *it.stories)


async def test_a_store_in_trouble(tmp_path, database, clock, dav, monkeypatch):
    stores = {"dav": dav_table(dav, timeout="5s")}
    monkeypatch.setattr(daemons, "WATCH", 0.3)
    async with scene(tmp_path, database, clock, stores=stores, retention="1d") as it:
        rig = it.rig

        # Its server is killed.
        dav.kill()
        it.call()
        await it.troubled("StoreDown")
        assert (await page(it.daemon, "/readyz")) == (503, '{"ready": false, "because": ["store dav"]}')
        rig.advance(5 * HOUR)
        await it.troubled("ArchiveLag", "ExpiringUnarchived", "SourceOdd")
        dav.start()
        rig.advance(20 * MINUTE)
        await it.over()
        assert (await page(it.daemon, "/readyz"))[0] == 200

        async def read_back() -> None:
            rig.advance(timedelta(seconds=1))
            await wiring.verifier(rig.archive, it.daemon.engine, "dav").stalest()

        # Somebody deletes a file there, and the recorder can't help.
        no_help = rig.sim.fault("status", "audio", value=500, times=-1)
        lost = next(path for path in dav.files.rglob("*") if re.search(r"\.(wav|spx|mp3|ogg)$", path.name))
        lost.rename(tmp_path / "kept")
        await read_back()
        await it.troubled("BadCopies")
        (tmp_path / "kept").rename(lost)
        rig.sim.faults.remove(no_help)
        await read_back()
        connection = await asyncpg.connect(database)
        # What was repaired is told for 30 days.
        await connection.execute(
            "UPDATE findings SET first_at = first_at - interval '31 days', last_at = last_at - interval '31 days',"
            " repaired_at = repaired_at - interval '31 days'"
        )
        await it.over()

        # Nobody has read anything back for a hundred days.
        await connection.execute("UPDATE copies SET archived_at = archived_at - interval '100 days', read_at = NULL")
        await connection.close()
        await it.troubled("VerificationOverdue")
        await read_back()
        await it.over()

        # The disk of data_dir is nearly full.
        usage = disks.shutil.disk_usage
        full = SimpleNamespace(free=1 << 30, total=100 << 30)
        monkeypatch.setattr(disks.shutil, "disk_usage", lambda _: full)
        await it.troubled("DiskFull")
        monkeypatch.setattr(disks.shutil, "disk_usage", usage)
        await it.over()

        await assert_fires(tmp_path, *it.stories)


async def test_a_daemon_in_trouble(tmp_path, postgres, database, clock, monkeypatch):
    status = 500
    heard: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        heard.append(request.path)
        return web.Response(status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    outside = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setattr(watch, "LOOK", 0.05)
    monkeypatch.setattr(watch, "HEARTBEATS", 0.05)
    top = {"heartbeat_url": f"{outside}/ping", "alerts": {"webhook": f"{outside}/hook", "after": "0s"}}
    name = database.split("?")[0].rpartition("/")[2]
    status = 200
    try:
        async with scene(tmp_path, database, clock, top=top) as it:
            daemon = it.daemon

            # It is killed: nobody answers.
            it.stories.append(Story(("Down",), it._calm, NOTHING, it._calm))

            # The monitor outside does not take the heartbeat, nor the chat the news; then there are some.
            status = 500
            heartbeats = heard.count("/ping")
            await eventually(lambda: _true(heard.count("/ping") > heartbeats))
            assert daemon.watch._heartbeat_at is not None
            daemon.watch._heartbeat_at -= 2 * 3600

            # A poll hangs.
            patience, daemon.watch.surveyor.stuck_after = daemon.watch.surveyor.stuck_after, timedelta(seconds=-1)
            listed, hangs = it.rig.feed.source.list, asyncio.Event()

            async def list_(window: Window) -> Any:
                await hangs.wait()
                return await listed(window)

            monkeypatch.setattr(it.rig.feed.source, "list", list_)
            daemon.watch.surveyor.timeouts = 0
            await it.troubled("Stuck")
            code, _ = await page(daemon, "/healthz")
            assert code == 503
            await eventually(lambda: _true(daemon.watch.alerter.failing))
            await it.told("HeartbeatMissing", "AlertsUndelivered")
            daemon.watch.surveyor.stuck_after = patience
            hangs.set()
            status = 200

            it.rig.advance(11 * MINUTE)

            async def told() -> bool:
                found = await scrape(daemon)
                values = {key.partition("{")[0]: value for key, value in found.items()}
                return values["archiver_alerts_undelivered"] == 0 and values["archiver_heartbeat_age_seconds"] < 3600

            await eventually(told, within=60)
            await it.over()

            # The database goes away.
            await _rename(postgres, name, f"{name}_away")
            try:
                await it.troubled("DatabaseDown")
                assert "database" in (await page(daemon, "/readyz"))[1]
            finally:
                await _rename(postgres, f"{name}_away", name)
            await it.over()
            await assert_fires(tmp_path, *it.stories)
    finally:
        await runner.cleanup()


async def _rename(postgres: Any, name: str, to: str) -> None:
    """For those who use it the database is gone."""

    async def done() -> bool:
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            postgres.execute(f"ALTER DATABASE {name} RENAME TO {to}")
        except asyncpg.ObjectInUseError:
            # Somebody came back in between.
            return False
        return True

    await eventually(done)


async def _true(value: bool) -> bool:
    return value


def test_each_rule_has_a_story_here_or_reads_the_one_metric():
    rules = {r["alert"]: r["expr"] for r in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    told = set(re.findall(r'"([A-Z][a-z]+[A-Za-z]*)"', Path(__file__).read_text())) & rules.keys()
    assert {name for name, expr in rules.items() if "archiver_condition{" not in expr} <= told
