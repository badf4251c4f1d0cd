"""Who is who: a recorder that was replaced, and stores and sources that have another name."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from archiver.common.room import NoRoom, lacking, reserve_of, taken
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sources.xivo import XivoOptions
from archiver.stores.names import MARKER
from tests import commands
from tests.commands import DAY, Place

HOURS = ("--from", "2024-05-17", "--to", "2024-05-17T03:00")


@pytest.fixture
async def place(tmp_path, database):
    async with commands.place(tmp_path, database) as made:
        yield made


def calls(sim: Any, count: int, *, after: timedelta = timedelta(), tag: str = "a") -> None:
    for i in range(count):
        sim.add_call(DAY + after + timedelta(minutes=10 * i + 1), timedelta(seconds=2), caller=f"+1555000{tag}{i}")


async def filled(place: Place, sim: Any, count: int = 5, name: str = "hq", **options: Any) -> Any:
    await place.add(name, sim, start=DAY, **options)
    calls(sim, count)
    await place.run("backfill", "--source", name, *HOURS)
    return sim


async def listed(place: Place, *more: str) -> list[Any]:
    return (await place.run("list", "--json", *more)).rows


# -- stores and sources with another name ----------------------------------------------------------------------------


def move_store(place: Place, old: str, new: str) -> None:
    place.config["stores"] = {new if name == old else name: t for name, t in place.config["stores"].items()}


async def empty_database(place: Place, postgres: Any) -> None:
    place.config["database"] = {"url": postgres.create()}


async def test_a_store_that_left_the_config_is_an_error_everywhere(place):
    await filled(place, XivoSimulator())
    move_store(place, "disk", "archive")
    said = "5 media have no copy in any store of this config; they lie in disk"
    checked = await place.run("check", code=1)
    assert f"WARNING config: {said}" in checked.out
    assert "`archiver rename store disk archive`" in checked.out
    problems = (await place.json("status"))["problems"]
    assert [(p["level"], p["what"]) for p in problems if p["of"] == "config"] == [("error", said)]
    for command in (["verify"], ["rebuild", "--store", "archive", "--drill"]):
        told = await place.run(*command, "--json", code=1)
        assert [line.startswith(said) for line in told.json["elsewhere"]] == [True]
        assert not told.json["complete"]
        assert said in (await place.run(*command, code=1)).out
    orphans = await place.json("verify", "--orphans", code=1)
    assert {o["why"] for o in orphans["stores"]["archive"]["orphans"]} == {
        "a copy in store disk, as the catalog has it; was that renamed?"
    }


async def test_a_renamed_store_is_taken_over_whole_and_nothing_is_stored_or_fetched_twice(place, postgres):
    sim = await filled(place, XivoSimulator())
    await place.run("verify")
    move_store(place, "disk", "archive")
    before, audio = {k for k in place.objects() if not k.startswith("_")}, place.requests("audio")
    done = await place.json("rename", "store", "disk", "archive")
    assert (done["described"], done["ledgers"]) == (5, 1)
    assert {k for k in place.objects() if not k.startswith("_")} == before
    await place.run("check")
    document = await place.json("status")
    assert [p for p in document["problems"] if p["of"] in {"config", "store"}] == []
    assert document["stores"]["archive"]["copies"] == 5
    verified = await place.json("verify")
    assert (verified["stores"]["archive"]["good"], verified["complete"]) == (5, True)
    assert (await place.run("verify", "--orphans")).code == 0
    assert (await place.json("rebuild", "--store", "archive", "--drill"))["same"] == 5
    first = await listed(place)
    assert {c["store"] for r in first for m in r["media"] for c in m["copies"]} == {"archive"}
    assert await place.held() == place.truth()
    await place.run("backfill", "--source", "hq", *HOURS)
    assert place.requests("audio") == audio
    # Nothing of the old name is left for who has the store alone.
    await empty_database(place, postgres)
    await place.run("rebuild", "--store", "archive")
    assert without_times(await listed(place)) == without_times(first)
    again = await place.run("rename", "store", "disk", "archive", code=2)
    assert "the catalog knows no copy in a store disk" in again.err
    assert sim is not None


def without_times(rows: list[Any]) -> list[Any]:
    rows = json.loads(json.dumps(rows))
    for copy in (c for r in rows for m in r["media"] for c in m["copies"]):
        copy["verified_at"] = None
    return rows


async def test_what_was_put_under_the_new_name_before_the_renaming_is_kept_once(place, postgres):
    sim = await filled(place, XivoSimulator())
    move_store(place, "disk", "archive")
    calls(sim, 2, after=timedelta(hours=1), tag="b")
    await place.run("backfill", "--source", "hq", *HOURS, "--relist")
    # The same place under another name: what lies there counts a second time.
    await place.run("copy", "--to", "archive", code=None)
    await place.run("rename", "store", "disk", "archive")
    first = await listed(place)
    assert [len(m["copies"]) for r in first for m in r["media"]] == [1] * 7
    assert (await place.json("status"))["stores"]["archive"]["copies"] == 7
    await empty_database(place, postgres)
    await place.run("rebuild", "--store", "archive")
    assert without_times(await listed(place)) == without_times(first)


async def test_a_store_that_does_not_hold_what_the_old_one_did_does_not_get_its_name(place):
    await filled(place, XivoSimulator())
    place.config["stores"] = {"archive": {"kind": "file", "path": "elsewhere"}}
    refused = await place.run("rename", "store", "disk", "archive", code=2)
    assert "store archive is not the place that was called disk" in refused.err
    move_store(place, "archive", "disk")
    assert "is still in the config" in (await place.run("rename", "store", "disk", "disk", code=2)).err
    assert "there is no store" in (await place.run("rename", "store", "disk", "cloud", code=2)).err


async def test_a_renamed_source_is_asked_about_then_taken_over_and_nothing_is_fetched_twice(place, postgres):
    sim = await filled(place, XivoSimulator())
    place.config["sources"]["paris"] = place.config["sources"].pop("hq")
    place.simulators = {"paris": sim}
    audio, searches = place.requests("audio"), place.requests()
    asked = await place.run("sync", "paris", code=None)
    assert asked.code in {1, 3}
    assert "`archiver rename source hq paris`" in asked.out + asked.err
    assert place.requests() == searches
    await place.run("rename", "source", "hq", "paris")
    first = await listed(place)
    assert {r["source"] for r in first} == {"paris"}
    assert await place.held() == place.truth()
    assert (await place.json("status"))["sources"]["paris"]["archived"] == 5
    assert (await place.json("verify"))["complete"]
    assert (await place.run("verify", "--orphans")).code == 0
    # What was listed counts.
    searches = place.requests()
    await place.run("backfill", "--source", "paris", *HOURS)
    assert (place.requests("audio"), place.requests()) == (audio, searches)
    await empty_database(place, postgres)
    report = await place.json("rebuild", "--store", "disk")
    assert (report["recordings"], report["damaged"]) == (5, [])
    assert without_times(await listed(place)) == without_times(first)
    searches = place.requests()
    await place.run("backfill", "--source", "paris", *HOURS)
    assert (place.requests("audio"), place.requests()) == (audio, searches)


async def test_a_store_that_came_after_a_renaming_is_enough_to_rebuild_from(place):
    sim = await filled(place, XivoSimulator())
    place.config["sources"]["paris"] = place.config["sources"].pop("hq")
    place.simulators = {"paris": sim}
    await place.run("rename", "source", "hq", "paris")
    # What it is told of lies in the other store under the old name, and it never heard of that.
    place.config["stores"]["more"] = {"kind": "file", "path": "more"}
    await place.run("copy", "--to", "more")
    assert (await place.json("rebuild", "--store", "more", "--drill"))["same"] == 5
    verified = await place.json("verify", "--store", "more")
    assert (verified["stores"]["more"]["good"], verified["stores"]["more"]["findings"]) == (5, [])


async def test_a_source_that_gets_the_old_name_of_another_keeps_its_own_calls(place, postgres):
    sim = await filled(place, XivoSimulator())
    place.config["sources"] = {"old": place.config["sources"]["hq"]}
    await place.run("rename", "source", "hq", "old")
    other = XivoSimulator(seed=9)
    await filled(place, other, 3)
    place.simulators = {"old": sim, "hq": other}
    first = await listed(place)
    assert sorted(r["source"] for r in first) == ["hq"] * 3 + ["old"] * 5
    await empty_database(place, postgres)
    await place.run("rebuild", "--store", "disk")
    assert without_times(await listed(place)) == without_times(first)
    assert await place.held() == place.truth()


async def test_two_sources_with_recordings_of_their_own_do_not_become_one(place):
    await filled(place, XivoSimulator())
    await filled(place, ChronicallSimulator(), 2, name="other")
    del place.config["sources"]["hq"]
    refused = await place.run("rename", "source", "hq", "other", code=2)
    assert "recordings of its own in the catalog" in refused.err
    assert "is still in the config" in (await place.run("rename", "source", "other", "other", code=2)).err


async def test_a_renaming_that_was_cut_off_before_the_catalog_heard_of_it_is_done_by_the_same_command(place, postgres):
    await filled(place, XivoSimulator())
    place.config["stores"]["extra"] = {"kind": "file", "path": "nowhere/store"}
    move_store(place, "disk", "archive")
    await place.run("rename", "store", "disk", "archive", code=3)
    # One of the stores could not be told; the catalog is as it was.
    assert {c["store"] for r in await listed(place) for m in r["media"] for c in m["copies"]} == {"disk"}
    (place.folder / "nowhere").mkdir()
    await place.run("rename", "store", "disk", "archive")
    assert (await place.json("verify", "--store", "archive"))["stores"]["archive"]["good"] == 5


# -- another recorder under the same name ----------------------------------------------------------------------------


async def replaced(place: Place, sim: Any, **options: Any) -> Any:
    """The config names another recorder; the old one is off."""
    old = place.simulators.pop("hq")
    table = place.config["sources"]["hq"]
    await old.stop()
    kept = {n: table[n] for n in ("start", "settle", "lookback", "longest_call", "retry")}
    await place.add("hq", sim, **kept | options)
    return old


async def sync_asks(place: Place) -> str:
    asked = await place.run("backfill", "--source", "hq", *HOURS, code=None)
    assert asked.code in {1, 3}
    return asked.out + asked.err


@pytest.mark.parametrize("kind", [XivoSimulator, ChronicallSimulator])
async def test_a_replaced_recorder_is_a_question_and_inherits_nothing(place, kind):
    await filled(place, XivoSimulator())
    kept = await place.held()
    old = await replaced(place, kind(seed=77))
    new = place.simulators["hq"]
    calls(new, 7, after=timedelta(minutes=5), tag="n")
    question = "is it still the recorder that was listed before?"
    assert question in await sync_asks(place)
    assert question in (await place.run("check", code=1)).out
    problems = (await place.json("status"))["problems"]
    (problem,) = [p for p in problems if question in p["what"]]
    assert (problem["level"], problem["name"]) == ("error", "hq")
    assert "`archiver source hq --same`" in problem["do"]
    # Nothing counts as covered anew, nothing was asked.
    audio = sum(seen.on == "audio" for seen in new.seen)
    assert audio == 0
    assert question in (await place.run("source", "hq")).out
    done = await place.json("source", "hq", "--another")
    assert (done["answer"], done["gone"]) == ("another", 0)
    await place.run("backfill", "--source", "hq", *HOURS)
    held = await place.held()
    assert {key: held[key] for key in kept} == kept
    assert {key: data for key, data in held.items() if key not in kept} == place.truth()
    assert "nothing is to be answered" in (await place.run("source", "hq")).out
    assert [p for p in (await place.json("status"))["problems"] if question in p["what"]] == []
    await place.run("source", "hq", "--another", code=2)
    assert old.truth()


async def test_the_same_recorder_at_a_new_address_goes_on_where_it_was(place):
    sim = await filled(place, XivoSimulator())
    port = place.config["sources"]["hq"]["base_url"].rpartition(":")[2]
    place.config["sources"]["hq"]["base_url"] = f"http://localhost:{port}"
    assert "its address was http://127.0.0.1" in await sync_asks(place)
    await place.run("source", "hq", "--same")
    before = len(sim.seen)
    await place.run("backfill", "--source", "hq", *HOURS)
    assert len(sim.seen) == before
    assert await place.held() == place.truth()


async def test_another_call_with_the_id_of_an_old_one_does_not_take_its_place(place, postgres):
    await filled(place, XivoSimulator())
    kept = sorted((await place.held()).values())
    before = await listed(place)
    new = XivoSimulator(seed=77)
    await replaced(place, new)
    calls(new, 5, tag="x")
    for mine, of in zip(new.calls, before, strict=True):
        mine.extra["file_id"] = of["recording_id"]
    await place.run("source", "hq", "--another")
    await place.run("backfill", "--source", "hq", *HOURS)
    rows = await listed(place)
    assert len(rows) == 10
    assert sorted({r["caller"] for r in rows}) == sorted(
        {r["caller"] for r in before} | {f"+1555000x{i}" for i in range(5)}
    )
    held = await place.held()
    assert sorted(held.values()) == sorted([*kept, *place.truth().values()])
    assert {key: held[key] for key in place.truth()} == place.truth()
    assert (await place.json("verify"))["complete"]
    await empty_database(place, postgres)
    assert (await place.json("rebuild", "--store", "disk"))["damaged"] == []
    assert without_times(await listed(place)) == without_times(rows)


async def test_what_waits_of_the_old_recorder_waits_for_the_answer_and_is_never_fetched_from_another(place):
    old = XivoSimulator()
    await place.add("hq", old, start=DAY)
    calls(old, 3)
    old.fault("status", "audio", times=-1, value=500)
    await place.run("backfill", "--source", "hq", *HOURS, code=1)
    new = XivoSimulator(seed=77)
    await replaced(place, new)
    calls(new, 3, tag="x")
    for mine, of in zip(new.calls, old.calls, strict=True):
        mine.extra["file_id"] = old.file_id(of)
    connection = await asyncpg.connect(place.database)
    await connection.execute(
        "INSERT INTO audit (id, at, who, role, means, address, action, source, recording_id)"
        " SELECT recording_id, now(), 'ada', 'compliance', 'session', '', 'see', source, recording_id FROM recordings"
    )
    await sync_asks(place)
    await place.run("retry", "--source", "hq", code=None)
    await place.run("sync", "--wait", "3s", code=None)
    assert place.requests("audio") == 0
    done = await place.json("source", "hq", "--another")
    assert done["gone"] == 3
    await place.run("backfill", "--source", "hq", *HOURS)
    states = [(r["state"], r["caller"]) for r in await listed(place)]
    assert sorted(states) == sorted(
        [("gone", f"+1555000a{i}") for i in range(3)] + [("archived", f"+1555000x{i}") for i in range(3)]
    )
    # Who saw a call of the old one did not see the new one that has its id.
    seen = "SELECT caller FROM audit a JOIN recordings r USING (source, recording_id) ORDER BY 1"
    assert [row[0] for row in await connection.fetch(seen)] == [f"+1555000a{i}" for i in range(3)]
    await connection.close()
    assert await place.held() == place.truth()


async def test_the_same_calls_on_another_recorder_are_the_same_recordings_and_what_waited_comes_from_there(place):
    old = XivoSimulator()
    await place.add("hq", old, start=DAY)
    calls(old, 4)
    old.fault("status", "audio", times=-1, value=500, match=old.file_id(old.calls[0]))
    await place.run("backfill", "--source", "hq", *HOURS, code=1)
    new = XivoSimulator(seed=77)
    await replaced(place, new)
    # All that it had was moved, and tells a little more than before.
    new.calls += [dataclasses.replace(call, note="moved") for call in old.calls]
    await place.run("source", "hq", "--another")
    await place.run("backfill", "--source", "hq", *HOURS)
    assert [r["state"] for r in await listed(place)] == ["archived"] * 4
    assert await place.held() == place.truth()


async def test_another_token_or_password_is_no_question_and_another_user_is(place):
    sim = await filled(place, ImagicleSimulator(), 2)
    sim.password = place.config["sources"]["hq"]["password"] = "a-new-one"
    await place.run("backfill", "--source", "hq", *HOURS, "--relist")
    sim.username = place.config["sources"]["hq"]["username"] = "somebody-else"
    assert "its account is another one" in await sync_asks(place)
    assert "somebody-else" not in json.dumps(await commands.tables(place.database))


async def test_an_archive_of_an_earlier_version_is_bound_to_the_present_recorder_without_a_question(place, postgres):
    sim = await filled(place, XivoSimulator())
    await postgres_execute(place, "UPDATE sources SET origin = NULL, account = NULL")
    await place.run("backfill", "--source", "hq", *HOURS, "--relist")
    place.config["sources"]["hq"]["base_url"] = sim.base_url.replace("127.0.0.1", "localhost")
    assert "is it still the recorder" in await sync_asks(place)


async def postgres_execute(place: Place, statement: str) -> None:
    connection = await commands.asyncpg.connect(place.database)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_the_ledger_in_the_store_tells_from_whom_it_was_listed(place, postgres):
    await filled(place, XivoSimulator())
    await empty_database(place, postgres)
    await place.run("rebuild", "--store", "disk")
    place.config["sources"]["hq"]["base_url"] = "http://127.0.0.2:1"
    assert "is it still the recorder" in await sync_asks(place)


async def test_the_same_recorder_under_two_names_is_warned_of(place):
    await filled(place, XivoSimulator())
    place.config["sources"]["twin"] = dict(place.config["sources"]["hq"])
    told = await place.run("check")
    assert "NOTE    source twin: it is the same recorder and account as source hq" in told.out


async def test_a_running_daemon_asks_when_its_config_names_another_recorder(place):
    now = commands.datetime.now(commands.UTC)
    old = await place.add("hq", XivoSimulator(), poll="1s")
    old.add_call(now - timedelta(hours=2), timedelta(seconds=2))
    running = await place.start("run")
    await commands.until(lambda: any(key.endswith(".wav") for key in place.objects()))
    new = XivoSimulator(seed=77)
    for i in range(4):
        new.add_call(now - timedelta(minutes=100 + i), timedelta(seconds=2))
    await replaced(place, new, poll="1s")
    reloaded = await place.run("reload")
    assert "source hq: is it still the recorder that was listed before?" in reloaded.out
    assert place.requests("audio") == 0
    await place.run("source", "hq", "--another")
    await commands.until(lambda: place.requests("audio") >= 4)
    assert (await running.end(commands.signal.SIGTERM)).code == 0


def test_an_origin_is_the_same_however_it_is_written():
    def origin(url: str) -> str:
        return XivoOptions(kind="xivo", base_url=url, token="t", timezone="UTC").origin

    assert origin("http://PBX.example/") == origin("http://pbx.example:80") == "http://pbx.example:80"
    assert origin("https://pbx.example") == "https://pbx.example:443"
    assert origin("http://[::1]:8080/api/") == "http://[::1]:8080/api"


async def test_a_recorder_that_was_set_up_anew_at_the_same_address_is_noticed(place):
    now = commands.datetime.now(commands.UTC)
    sim = await place.add("hq", XivoSimulator())
    for i in range(4):
        sim.add_call(now - timedelta(minutes=40 + i), timedelta(seconds=2))
    await place.run("sync")
    for i, call in enumerate(sim.calls):
        call.extra["file_id"] = f"anew-{i}"
    sim._files.clear()
    await place.run("sync", code=None)
    told = await place.run("check", code=1)
    assert "4 calls that are no longer listed are listed under other ids" in told.out
    assert (await place.json("source", "hq", "--another"))["answer"] == "another"
    await place.run("sync")
    assert [len(await listed(place)), (await place.run("check")).code] == [8, 0]


# -- another disk ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_disk(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own, mounted there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


async def test_nothing_goes_to_another_disk_than_the_one_that_was_there(place):
    with a_disk(place.store, "32m"):
        sim = await filled(place, XivoSimulator())
        checked = await place.run("check")
        assert f"on tmpfs, mounted at {place.store.resolve()}" in checked.out
        assert (place.store / MARKER).is_file()
        assert (await place.run("verify", "--orphans")).code == 0
        first = place.objects()
    # The mount point is there, and empty.
    calls(sim, 2, after=timedelta(hours=1), tag="b")
    refused = await place.run("backfill", "--source", "hq", *HOURS, "--relist", code=3)
    assert "another disk?" in refused.err
    assert place.objects() == {}
    assert "another disk?" in (await place.run("check", code=3)).out
    told = await place.json("verify", code=3)
    assert (told["stores"]["disk"]["bad"], told["stores"]["disk"]["missing"]) == (0, 0)
    assert "another disk" in (await place.run("store", "disk", code=1)).out
    with a_disk(place.store, "32m"):
        assert "another disk?" in (await place.run("sync", code=3)).err
        for key, data in first.items():
            (place.store / key).parent.mkdir(parents=True, exist_ok=True)
            (place.store / key).write_bytes(data)
        # Moved with all that is on it.
        await place.run("backfill", "--source", "hq", *HOURS, "--relist")
        assert await place.held() == place.truth()


async def test_a_new_disk_is_taken_once_somebody_says_so(place):
    await filled(place, XivoSimulator())
    shutil.rmtree(place.store)
    place.store.mkdir()
    assert "another disk?" in (await place.run("sync", code=3)).err
    assert (await place.json("store", "disk", "--accept"))["right"]
    await place.run("verify", "--even-if-empty")
    assert await place.held() == place.truth()


async def test_a_store_of_an_earlier_version_gets_its_marker_silently_and_only_where_its_copies_are(place):
    await filled(place, XivoSimulator())
    (place.store / MARKER).unlink()
    await postgres_execute(place, "DELETE FROM stores")
    kept = place.folder / "kept"
    place.store.rename(kept)
    place.store.mkdir()
    assert "another disk?" in (await place.run("sync", code=3)).err
    place.store.rmdir()
    kept.rename(place.store)
    await place.run("backfill", "--source", "hq", *HOURS, "--relist")
    assert (place.store / MARKER).is_file()
    assert "its own disk" in (await place.run("store", "disk")).out


async def test_a_disk_that_is_taken_away_under_a_running_daemon_stops_its_puts_until_it_is_back(place):
    now = commands.datetime.now(commands.UTC)
    with a_disk(place.store, "32m"):
        sim = await place.add("hq", XivoSimulator(), poll="1s")
        sim.add_call(now - timedelta(hours=2), timedelta(seconds=2))
        running = await place.start("run")
        await commands.until(lambda: any(key.endswith(".wav") for key in place.objects()))
        away = place.folder / "away"
        away.mkdir()
        subprocess.run(["mount", "--bind", str(place.store), str(away)], check=True)
        subprocess.run(["umount", "-l", str(place.store)], check=True)
        try:
            sim.add_call(now - timedelta(hours=1), timedelta(seconds=2))
            await running.said("another disk?")
            assert place.objects() == {}
            subprocess.run(["mount", "--bind", str(away), str(place.store)], check=True)
            await commands.until(lambda: sum(key.endswith(".wav") for key in place.objects()) == 2)
        finally:
            subprocess.run(["umount", "-l", str(away)], check=False)
        assert (await running.end(commands.signal.SIGTERM)).code == 0


# -- room ------------------------------------------------------------------------------------------------------------


def test_the_reserve_is_a_gibibyte_or_two_percent_and_of_a_small_disk_a_tenth():
    assert reserve_of(100 << 30) == 2 * reserve_of(10 << 30) == 2 << 30
    assert reserve_of(10 << 30) == 1 << 30
    assert reserve_of(1000 << 30) == (1000 << 30) // 50
    assert reserve_of(10 << 20) == 1 << 20


async def test_a_disk_is_never_filled_below_its_reserve_and_it_goes_on_by_itself(place):
    now = commands.datetime.now(commands.UTC)
    with a_disk(place.store, "4m"):
        place.config["stores"]["disk"]["reserve"] = "3MiB"
        sim = await place.add("hq", XivoSimulator(), poll="1s")
        for i in range(12):
            sim.add_call(now - timedelta(minutes=100 + i), timedelta(seconds=9))
        running = await place.start("run")
        await running.said("stay free")
        await asyncio.sleep(3)
        assert shutil.disk_usage(place.store).free >= 3 << 20
        subprocess.run(["mount", "-o", "remount,size=32m", str(place.store)], check=True)
        await commands.until(lambda: sum(key.endswith(".wav") for key in place.objects()) == 12)
        assert (await running.end(commands.signal.SIGTERM)).code == 0


async def test_nothing_is_downloaded_while_the_disk_of_data_dir_is_filled_to_its_reserve(place):
    now = commands.datetime.now(commands.UTC)
    with a_disk(place.folder / "var", "8m"):
        place.config["reserve"] = "9MiB"
        sim = await place.add("hq", XivoSimulator())
        sim.add_call(now - timedelta(hours=1), timedelta(seconds=2))
        done = await place.run("sync", code=1)
        assert done.err.count("disk.reserve") == 1
        assert place.requests("audio") == 0
        assert "stay free" in (await listed(place))[0]["media"][0]["error"]
        place.config["reserve"] = "1MiB"
        await place.run("sync", "--wait", "2m")
        assert await place.held() == place.truth()


async def test_who_writes_at_the_same_time_counts_against_the_reserve(tmp_path):
    with a_disk(tmp_path / "disk", "8m") as disk:
        with taken(disk, 4 << 20, 3 << 20):
            with pytest.raises(NoRoom, match="stay free"), taken(disk / "new" / "folder", 4 << 20, 2 << 20):
                pass
            with taken(disk, 4 << 20, 512 << 10):
                pass
        with taken(disk, 4 << 20, 3 << 20):
            pass


async def test_a_disk_without_room_for_more_files_is_full(tmp_path):
    with a_disk(tmp_path / "disk", "8m,nr_inodes=50") as disk:
        assert lacking(disk, None) is None
        for i in range(200):
            try:
                (disk / str(i)).touch()
            except OSError:
                break
        assert "room for 0 files only" in (lacking(disk, None) or "")
