"""Each condition of the one list fires by its real cause, shows everywhere alike, and is over when its cause is."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from aiohttp import web

from archiver.catalog.catalog import Catalog, Entry
from archiver.common import disks
from archiver.model import State, Window
from archiver.service import checks, watch, wiring
from archiver.service import daemon as daemons
from archiver.service.conditions import CONDITIONS, Condition, Of, found, table
from archiver.simulators.xivo import XivoSimulator
from archiver.sync import poll
from tests import commands
from tests.engine import HOUR, MINUTE, eventually, s3_table
from tests.prometheus import ROOT, RULES, page, scrape
from tests.refusing import Refusing
from tests.scenes import Scene, scene
from tests.servers import Seaweed
from tests.servers import seaweed as a_seaweed

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Listings that fail are tried again at once; what is asked every few minutes is asked at once."""
    monkeypatch.setattr(poll, "poll", functools.partial(poll.poll, pause=0.001))
    monkeypatch.setattr(daemons, "WATCH", 0.3)
    monkeypatch.setattr(watch, "LOOK", 0.05)


class Stage(Scene):
    """A scene, and what stands around it."""

    def __init__(self, it: Scene, patch: Any, status: list[int], proxy: Refusing | None) -> None:
        """``status``: what the web server outside answers (to heartbeat and alerts)."""
        super().__init__(it.rig, it.daemon)
        self.patch, self.status, self.proxy = patch, status, proxy

    async def sql(self, statement: str, *values: Any) -> None:
        async with self.rig.catalog._connection() as c:
            await c.execute(statement, *values)

    @property
    def store(self) -> str:
        (name,) = self.rig.archive.outlets
        return name


Cause = Callable[[Stage], AbstractAsyncContextManager[None]]
#: By name how it comes about. It lasts while the context does.
CAUSES: dict[str, Cause] = {}
#: Those that need more around them: a store behind a proxy, options of the source.
FAR: set[str] = set()
OPTIONS: dict[str, dict[str, Any]] = {}


def causes(
    *names: str, far: bool = False, **options: Any
) -> Callable[[Callable[[Stage], AsyncIterator[None]]], Callable[[Stage], AsyncIterator[None]]]:
    def made(how: Callable[[Stage], AsyncIterator[None]]) -> Callable[[Stage], AsyncIterator[None]]:
        for name in names:
            CAUSES[name] = asynccontextmanager(how)
            FAR.update([name] * far)
            OPTIONS[name] = options
        return how

    return made


# -- the host ----------------------------------------------------------------------------------------------------------


@causes("Stuck")
async def a_poll_hangs(it: Stage) -> AsyncIterator[None]:
    surveyor, source, hangs = it.daemon.watch.surveyor, it.rig.feed.source, asyncio.Event()
    listed, patience = source.list, surveyor.stuck_after

    async def list_(window: Window) -> Any:
        await hangs.wait()
        return await listed(window)

    it.patch.setattr(source, "list", list_)
    surveyor.timeouts, surveyor.stuck_after = 0, timedelta(seconds=-1)
    yield
    surveyor.stuck_after = patience
    it.patch.setattr(source, "list", listed)
    hangs.set()


@causes("DiskFull")
async def the_disk_fills(it: Stage) -> AsyncIterator[None]:
    usage = disks.shutil.disk_usage
    it.patch.setattr(disks.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30, total=100 << 30))
    yield
    it.patch.setattr(disks.shutil, "disk_usage", usage)


@causes("ConfigNotLoaded")
async def the_config_on_disk_is_broken(it: Stage) -> AsyncIterator[None]:
    path = it.rig.archive.config.path
    good = path.read_text()
    path.write_text(good + "\nnonsense = 1\n")
    yield
    path.write_text(good)


@causes("HeartbeatMissing")
async def the_monitor_outside_is_away(it: Stage) -> AsyncIterator[None]:
    watching = it.daemon.watch

    async def sent() -> bool:
        return watching._heartbeat_at is not None

    await eventually(sent)
    it.status[0] = 500
    watching._heartbeat_at -= 2 * 3600
    yield
    it.status[0] = 200
    it.rig.advance(20 * MINUTE)


@causes("AlertsUndelivered")
async def nobody_takes_the_alerts(it: Stage) -> AsyncIterator[None]:
    it.status[0] = 500
    await it.rig.mark("unchecked", 1)
    yield
    await it.rig.mark(None, 3)
    it.status[0] = 200
    it.rig.advance(20 * MINUTE)


@causes("DatabaseDown")
async def a_table_is_gone(it: Stage) -> AsyncIterator[None]:
    await it.sql("ALTER TABLE outbox RENAME TO mislaid")
    yield
    await it.sql("ALTER TABLE mislaid RENAME TO outbox")


# -- the source --------------------------------------------------------------------------------------------------------


@causes("SourceRefused")
async def the_password_changes(it: Stage) -> AsyncIterator[None]:
    token, it.rig.sim.token = it.rig.sim.token, "another"
    yield
    it.rig.sim.token = token
    it.rig.advance(16 * MINUTE)


@causes("WrongTimezone")
async def the_recorder_s_clock_is_of_another_zone(it: Stage) -> AsyncIterator[None]:
    sim: Any = it.rig.sim
    zone, sim.timezone = sim.timezone, "Europe/London"
    yield
    sim.timezone = zone
    it.rig.advance(16 * MINUTE)


@causes("NeverPolled")
async def another_process_has_it(it: Stage) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:

        async def mine() -> bool:
            taken: bool = await stack.enter_async_context(it.rig.catalog.only_one("poll:pbx"))
            return taken

        await eventually(mine)
        await it.sql("UPDATE sources SET polled_at = NULL")
        yield


@causes("SourceStale", "BreakerOpen", "ListingFails")
async def the_recorder_is_switched_off(it: Stage) -> AsyncIterator[None]:
    await it.rig.sim.stop()
    it.rig.advance(2 * HOUR)
    yield
    await it.rig.sim.start()
    it.rig.advance(11 * MINUTE)


@causes("LookupsFailing")
async def a_call_id_can_t_be_looked_up(it: Stage) -> AsyncIterator[None]:
    await it.rig.catalog.look_up_later("pbx", [("1", "it answered 500")], it.rig.catalog.clock.now() + HOUR)
    yield
    await it.rig.catalog.looked_up("pbx", "1")


@causes("SourceOdd")
async def its_list_shrinks(it: Stage) -> AsyncIterator[None]:
    hidden, it.rig.sim.calls = it.rig.sim.calls, []
    yield
    it.rig.sim.calls = hidden


@causes("AudioShort", "MediaFlagged")
async def recordings_are_short(it: Stage) -> AsyncIterator[None]:
    it.call(5)

    async def archived() -> bool:
        return await it.rig.states() == {"archived": 8}

    await eventually(archived)
    await it.rig.mark("short", 6)
    yield
    await it.rig.mark(None, 8)


@causes("MediaFailed")
async def one_recording_is_refused(it: Stage) -> AsyncIterator[None]:
    refusal = it.rig.sim.fault("status", "audio", value=403, times=-1)
    it.call()
    yield
    it.rig.sim.faults.remove(refusal)
    await it.rig.catalog.retry("pbx", State.FAILED)


@causes("MediaFailing")
async def the_audio_fails(it: Stage) -> AsyncIterator[None]:
    refusal = it.rig.sim.fault("status", "audio", value=500, times=-1)
    it.call()

    async def failed() -> bool:
        media = [m for d in (await it.rig.documents()).values() for m in d["media"]]
        return any((m["error"] or "").startswith("failed") for m in media)

    await eventually(failed)
    it.rig.advance(25 * HOUR)
    yield
    it.rig.sim.faults.remove(refusal)
    it.rig.advance(HOUR)


@causes("ExpiringUnarchived", retention="1d")
async def nothing_is_archived_and_time_runs_out(it: Stage) -> AsyncIterator[None]:
    refusal = it.rig.sim.fault("status", "audio", value=500, times=-1)
    it.call()
    it.rig.advance(5 * HOUR)
    yield
    it.rig.sim.faults.remove(refusal)
    it.rig.advance(HOUR)


@causes("RowsRejected")
async def it_lists_a_row_that_nobody_can_read(it: Stage) -> AsyncIterator[None]:
    row = it.rig.sim.fault("bad_row", "list", times=-1, value={"id": None, "start": "the day before yesterday"})
    yield
    it.rig.sim.faults.remove(row)
    # Its call is not archived for that: the row is kept, and shown, until somebody takes it away.
    await it.sql("DELETE FROM rejected")


@causes("LedgerGaps")
async def a_span_is_not_listed(it: Stage) -> AsyncIterator[None]:
    await it.rig.sim.stop()
    now = it.rig.catalog.clock.now()
    await it.rig.catalog.uncover("pbx", Window(now - 2 * HOUR, now - HOUR))
    yield
    await it.rig.sim.start()
    it.rig.advance(11 * MINUTE)


@causes("SourceChanged")
async def it_was_listed_at_another_address(it: Stage) -> AsyncIterator[None]:
    origin = it.rig.feed.options.origin
    await it.sql("UPDATE sources SET origin = 'http://10.0.0.1:9400'")
    yield
    await it.sql("UPDATE sources SET origin = $1", origin)


@causes("RecorderAnew")
async def the_recorder_is_set_up_anew(it: Stage) -> AsyncIterator[None]:
    sim: Any = it.rig.sim
    before, sim.calls = sim.calls, []
    for number, call in enumerate(before):
        sim.add_call(call.start, call.duration, index=900 + number)
    it.rig.advance(HOUR)
    yield
    sim.calls = before
    it.rig.advance(HOUR)


@causes("SourceTwice")
async def the_recorder_has_two_names(it: Stage) -> AsyncIterator[None]:
    config = it.rig.archive.config
    twin = dataclasses.replace(config.sources["pbx"], name="twin")
    it.rig.archive.config = dataclasses.replace(config, sources={**config.sources, "twin": twin})
    yield
    it.rig.archive.config = config


# -- the store ---------------------------------------------------------------------------------------------------------


@causes("CopiesElsewhere")
async def the_store_has_another_name_in_the_config(it: Stage) -> AsyncIterator[None]:
    await it.rig.catalog.rename_store(it.store, "lost")
    yield
    await it.rig.catalog.rename_store("lost", it.store)


@causes("StoreForgotten")
async def a_store_left_the_config(it: Stage) -> AsyncIterator[None]:
    await it.sql("INSERT INTO totals (source, store, count, bytes) VALUES ('pbx', 'old', 3, 3)")
    yield
    await it.sql("DELETE FROM totals WHERE store = 'old'")


@causes("StoreDown", "StoreWaiting", "ArchiveLag", far=True)
async def the_store_s_server_fails(it: Stage) -> AsyncIterator[None]:
    assert it.proxy is not None
    it.proxy.refuse("/", "PUT", status=503, code="ServiceUnavailable")
    it.call()

    async def waits() -> bool:
        media = [m for d in (await it.rig.documents()).values() for m in d["media"]]
        return any("store far" in (m["error"] or "") for m in media)

    await eventually(waits)
    it.rig.advance(5 * HOUR)
    yield
    it.proxy.refuses.clear()


@causes("StoreFull", far=True)
async def the_store_is_full(it: Stage) -> AsyncIterator[None]:
    assert it.proxy is not None
    it.proxy.refuse("/", "PUT", status=507, code="XMinioStorageFull")
    it.call()
    yield
    it.proxy.refuses.clear()


@causes("ObjectsRefused", far=True)
async def one_object_is_too_large(it: Stage) -> AsyncIterator[None]:
    assert it.proxy is not None
    it.proxy.refuse("/pbx/", "PUT", status=413, code="EntityTooLarge", longer_than=10_000)
    it.call()
    yield
    it.proxy.refuses.clear()
    it.rig.advance(DAY)


@causes("StoreLacking")
async def some_were_archived_before(it: Stage) -> AsyncIterator[None]:
    await it.sql("UPDATE totals SET count = count - 1 WHERE store <> ''")
    yield
    await it.sql("UPDATE totals SET count = count + 1 WHERE store <> ''")


@causes("BadCopies", "CopiesSpoilt")
async def somebody_deletes_a_file(it: Stage) -> AsyncIterator[None]:
    no_help = it.rig.sim.fault("status", "audio", value=500, times=-1)
    root = it.rig.archive.config.stores[it.store].options.path
    lost = root / (await it.rig.media_keys(it.store))[0]
    content = lost.read_bytes()
    lost.unlink()

    async def read_back() -> None:
        it.rig.advance(timedelta(seconds=1))
        await wiring.verifier(it.rig.archive, it.daemon.engine, it.store).stalest()

    await read_back()
    yield
    lost.write_bytes(content)
    it.rig.sim.faults.remove(no_help)
    await read_back()
    await it.sql("UPDATE findings SET first_at = first_at - interval '31 days', last_at = last_at - interval '31 days'")


@causes("VerificationFailing")
async def reading_back_ends_early(it: Stage) -> AsyncIterator[None]:
    await it.rig.catalog.verify_ended(it.store, "no connection")
    yield
    await it.rig.catalog.verify_ended(it.store, None)


@causes("VerificationBehind")
async def the_budget_is_small(it: Stage) -> AsyncIterator[None]:
    config = it.rig.archive.config
    verify = config.verify.model_copy(update={"budget": 1})
    it.rig.archive.config = dataclasses.replace(config, verify=verify)
    yield
    it.rig.archive.config = config


@causes("VerificationOverdue")
async def nobody_has_read_anything_back(it: Stage) -> AsyncIterator[None]:
    await it.sql("UPDATE copies SET archived_at = archived_at - interval '100 days', read_at = NULL")
    yield
    await it.sql("UPDATE copies SET archived_at = archived_at + interval '100 days'")


async def certified(it: Stage, error: str | None) -> None:
    await it.rig.catalog.certified(it.rig.catalog.clock.now(), error)


async def forget_certificates(it: Stage) -> None:
    await it.sql("DELETE FROM certificates")
    await it.sql("DELETE FROM checkpoint")


async def know_certificate(it: Stage, age: timedelta, *, complete: bool) -> None:
    day = (it.rig.catalog.clock.now() - age).date()
    await it.rig.catalog.take_entries(0, [Entry(b"{}", it.rig.feed.name, day, 1, complete)])
    await certified(it, None)


@causes("ProofFailed")
async def a_certificate_can_not_be_signed(it: Stage) -> AsyncIterator[None]:
    await certified(it, "two histories")
    yield
    await certified(it, None)


@causes("DaysUncertified")
async def nobody_issues_certificates(it: Stage) -> AsyncIterator[None]:
    await know_certificate(it, timedelta(days=30), complete=True)
    yield
    await forget_certificates(it)


@causes("DaysIncomplete")
async def a_day_is_not_complete(it: Stage) -> AsyncIterator[None]:
    await know_certificate(it, timedelta(days=1), complete=False)
    yield
    await forget_certificates(it)


# -- the walk ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seaweed() -> Iterator[Seaweed]:
    with a_seaweed() as server:
        yield server


INSIDE = [condition for condition in CONDITIONS if not condition.outside]


def test_each_condition_has_a_cause_here():
    assert set(CAUSES) == {condition.name for condition in INSIDE}


@pytest.mark.parametrize("condition", INSIDE, ids=lambda c: c.name)
async def test_a_condition_fires_by_its_cause_shows_everywhere_and_clears_by_itself(
    tmp_path, database, clock, monkeypatch, request, condition
):
    around: dict[str, Any] = {"status": [200], "proxy": None, "patch": monkeypatch}

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=around["status"][0])

    async with AsyncExitStack() as stack:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        outside = f"http://127.0.0.1:{runner.addresses[0][1]}"
        top: dict[str, Any] = {"alerts": {"webhook": f"{outside}/hook", "after": "0s"}}
        top["heartbeat_url"] = f"{outside}/ping"
        how = dict(OPTIONS[condition.name])
        if condition.name in FAR:
            server = request.getfixturevalue("seaweed")
            proxy = around["proxy"] = await stack.enter_async_context(Refusing(server.s3_url).serving())
            how["stores"] = {"far": s3_table(server, condition.name.lower(), endpoint_url=proxy.url)}
        it = Stage(await stack.enter_async_context(scene(tmp_path, database, clock, top=top, **how)), **around)
        # What its first moments bring about is over first.
        await eventually(lambda: nowhere(it, condition), within=90, every=0.2, why=f"{condition.name} came by itself")
        async with CAUSES[condition.name](it):
            await eventually(
                lambda: everywhere(it, condition), within=90, every=0.2, why=f"{condition.name} never came"
            )
        await eventually(lambda: nowhere(it, condition), within=90, every=0.2, why=f"{condition.name} never ended")


async def shown(it: Stage, condition: Condition) -> dict[str, bool]:
    """Where it shows just now."""
    daemon, config = it.daemon, it.rig.archive.config
    metrics = await scrape(daemon)
    told = {
        p.finding.news for p in found(await daemon.watch.surveyor.look(), config.alerts) if p.condition is condition
    }
    status = await it.rig.status()
    checked = await checks._conditions(config, it.rig.catalog, set())
    problems = [p for p in status["problems"] if p["condition"] == condition.name]
    lines = {f"{p['what']} → {p['do']}" for p in problems}
    places = {
        "alerts": True in told,
        "metrics": any(v == 1 for k, v in metrics.items() if f'archiver_condition{{name="{condition.name}"' in k),
        "status": bool(problems),
        "check": bool(lines & {result.line for result in checked}),
    }
    if condition.idle:
        assert not places.pop("check")
    if condition.unready is not None:
        code, text = await page(daemon, "/readyz")
        wanted = condition.unready.format(it.store if condition.of is Of.STORE else "")
        places["readyz"] = code == 503 and wanted in text
    return {place: True for place, there in places.items() if there} | ({"all": True} if all(places.values()) else {})


async def everywhere(it: Stage, condition: Condition) -> bool:
    return "all" in await shown(it, condition)


async def nowhere(it: Stage, condition: Condition) -> bool:
    places = await shown(it, condition)
    if places:
        # What was tried too early is tried again.
        it.rig.advance(timedelta(seconds=20))
    return not places


async def test_a_daemon_that_was_killed_is_told_until_one_runs_or_all_is_listed_without(tmp_path, database):
    async with commands.place(tmp_path, database) as place:
        hq = await place.add("hq", XivoSimulator())
        hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
        running = await place.start("run")

        async def archived() -> bool:
            return bool((await place.json("status"))["sources"]["hq"]["archived"])

        await eventually(archived, within=60)
        await running.abandon()

        async def told() -> list[str]:
            return [p["condition"] for p in (await place.json("status"))["problems"]]

        assert "Down" not in await told(), "it may be started again at once"
        catalog = await Catalog.open(place.database)
        async with catalog._connection() as c:
            await c.execute("UPDATE sources SET polled_at = polled_at - interval '2 hours'")
        await catalog.close()
        assert (await told())[0] == "Down"
        await place.run("check")
        await place.run("sync")
        assert "Down" not in await told()


# -- what is made from it ----------------------------------------------------------------------------------------------


def test_the_table_in_the_docs_is_the_list():
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert table() in page, f"docs/monitoring.md lacks this table:\n{table()}"


def test_each_condition_has_a_runbook_and_no_other_stands_there():
    runbooks = re.findall(r"^### (\w+)$", (ROOT / "docs" / "monitoring.md").read_text(), re.MULTILINE)
    assert sorted(runbooks) == sorted(condition.name for condition in CONDITIONS)


def test_the_rules_for_prometheus_are_those_of_the_list():
    rules = {rule["alert"]: rule for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    assert rules.keys() == {condition.name for condition in CONDITIONS}
    for condition in CONDITIONS:
        rule = rules[condition.name]
        assert rule["labels"]["severity"] == condition.severity
        assert rule["annotations"]["runbook"] == condition.runbook
        if condition.after is not None:
            amount, unit = re.fullmatch(r"(\d+)([mh])", rule["for"]).groups()
            assert condition.after == int(amount) * {"m": MINUTE, "h": HOUR}[unit], condition.name
        asked = re.findall(r'archiver_condition\{name="(\w+)"\}', rule["expr"])
        assert asked in ([], [condition.name])


async def test_nothing_is_listed_by_a_wrong_clock(tmp_path, database):
    async with commands.place(tmp_path, database) as place:
        hq = await place.add("hq", XivoSimulator())
        for minutes in (50, 40, 30):
            hq.add_call(datetime.now(UTC) - minutes * MINUTE, timedelta(seconds=1))
        zone = place.config["sources"]["hq"]["timezone"]
        place.config["sources"]["hq"]["timezone"] = "Asia/Kolkata"
        told = await place.run("check", code=1)
        assert re.search(r"^FAILED +source hq: timezone Asia/Kolkata is off by -[34]:30:00", told.out, re.MULTILINE)
        await place.run("sync", code=3)
        status = await place.json("status")
        assert (status["sources"]["hq"]["covered_to"], status["sources"]["hq"]["archived"]) == (None, 0)
        assert [p["condition"] for p in status["problems"]] == ["WrongTimezone", "SourceStale"]
        place.config["sources"]["hq"]["timezone"] = zone
        await place.run("check", code=1)
        await place.run("sync")
        status = await place.json("status")
        assert (status["sources"]["hq"]["archived"], status["problems"]) == (3, [])
