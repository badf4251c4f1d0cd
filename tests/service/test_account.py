"""`report`: what a span of time brought; `why --at`: what is known of a moment."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from rich.console import Console

from archiver.commands import render
from archiver.service.account import same_number
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from tests import commands
from tests.engine import HOUR, MINUTE


@pytest_asyncio.fixture
async def place(tmp_path: Path, database: str) -> AsyncIterator[commands.Place]:
    async with commands.place(tmp_path, database) as made:
        yield made


async def test_report_tells_what_came_what_failed_and_what_was_healed(place):
    sim = await place.add("hq", ImagicleSimulator(), retry={"first": "1s"}, start="2026-01-01")
    sim.add_calls(sim.clock.now() - 5 * HOUR, sim.clock.now() - HOUR, 6, shortest=1, longest=2)
    sim.fault("status", "audio", times=1, value=500)
    before = sim.clock.now() - MINUTE
    await place.run("sync", "--wait", "30s")
    told = await place.json("report")
    hq = told["sources"]["hq"]
    assert (hq["new"], hq["archived"], hq["healed"], hq["failed"]) == (6, 6, 1, 0)
    assert hq["bytes"] > 0
    assert hq["listed"] >= 6
    assert [trouble["media"] for trouble in hq["trouble"]] == [1]
    assert {store["copies"] for store in told["stores"].values()} == {6}
    assert told["problems"] == []
    # Of another time it tells nothing, and says so by zeros.
    earlier = await place.json("report", "--until", before.isoformat(), "--since", (before - HOUR).isoformat())
    assert (earlier["sources"]["hq"]["new"], earlier["sources"]["hq"]["archived"]) == (0, 0)
    shown = await place.run("report")
    assert "hq" in shown.out
    assert "nothing is wrong now" in shown.out


async def test_report_tells_of_damage_and_who_repaired_it(place):
    sim = await place.add("hq", ChronicallSimulator())
    sim.add_calls(sim.clock.now() - 5 * HOUR, sim.clock.now() - HOUR, 2, shortest=1, longest=2)
    await place.run("sync")
    name = min(key for key in place.objects() if key.startswith("hq/"))
    damaged = next(path for path in place.folder.rglob("*.spx") if str(path).endswith(name.rpartition("/")[2]))
    damaged.chmod(0o600)
    damaged.write_bytes(b"OggS, and no more")
    await place.run("verify")
    stores = (await place.json("report"))["stores"]
    assert sum(store["damaged"] for store in stores.values()) == 1
    assert sum(store["repaired"] for store in stores.values()) == 1
    assert sum(store["verified"] for store in stores.values()) >= 1


async def test_why_at_a_moment_tells_which_calls_fit_and_when_it_was_listed(place):
    sim = await place.add("hq", ImagicleSimulator())
    now = sim.clock.now().replace(microsecond=0)
    call = sim.add_call(now - 2 * HOUR, timedelta(seconds=40))
    sim.add_call(now - 2 * HOUR + 5 * MINUTE, timedelta(seconds=40))
    await place.run("sync")
    at = (now - 2 * HOUR + timedelta(seconds=20)).isoformat()
    told = await place.json("why", "--source", "hq", "--at", at)
    assert told["listed"] is True
    assert told["windows"][0]["times"] >= 1
    assert [c["fits"] for c in told["calls"]][:2] == [True, False]
    assert told["fitting"] == 1
    number = told["calls"][0]["caller"]
    for written in (number, number.lstrip("+"), " ".join(number), number[-9:]):
        again = await place.json("why", "hq", "--at", at, "--number", written)
        assert again["fitting"] == 1, written
    assert (await place.json("why", "hq", "--at", at, "--number", "+999999999"))["fitting"] == 0
    shown = await place.run("why", "--source", "hq", "--at", at)
    assert "fits" in shown.out
    assert call.start.strftime("%H:%M") in shown.out


async def test_why_at_a_moment_says_what_is_not_known_of_it(place):
    sim = await place.add("hq", ChronicallSimulator())
    now = sim.clock.now()
    await place.run("sync")

    async def unknown(at, code=0):
        told = await place.run("why", "--source", "hq", "--at", at.isoformat(), "--json", code=code)
        return told.json["listed"], " ".join(told.json["unknown"])

    assert await unknown(now + HOUR) == (False, "the moment is still to come")
    listed, said = await unknown(now - timedelta(days=900))
    assert not listed
    assert "archiver backfill --source hq --from" in said
    listed, said = await unknown(now - 2 * HOUR)
    assert listed
    assert "the recorder told of no such call" in said


async def test_why_and_report_refuse_what_makes_no_sense(place):
    await place.add("hq", ChronicallSimulator())
    await place.run("sync")
    for arguments in (
        ("why", "hq"),
        ("why", "hq", "x", "--number", "1"),
        ("why", "--at", "2026-01-01"),
        ("why", "hq", "x", "--at", "2026-01-01"),
        ("why", "--source", "hk", "--at", "2026-01-01"),
        ("report", "--since", "2026-01-02", "--until", "2026-01-01"),
        ("report", "--since", "yesterday"),
    ):
        done = await place.run(*arguments, code=2)
        assert "Traceback" not in done.err
        assert done.err.strip()


async def test_list_finds_a_number_however_it_was_typed(place):
    sim = await place.add("hq", ImagicleSimulator())
    sim.add_calls(sim.clock.now() - 2 * HOUR, sim.clock.now() - HOUR, 3, shortest=1, longest=2)
    await place.run("sync")
    row = next(row for row in (await place.run("list", "--json")).rows if (row["caller"] or "").startswith("+"))
    digits = row["caller"].removeprefix("+")
    for typed in (
        row["caller"],
        digits,
        f"00{digits}",
        f"+{digits[:3]} ({digits[3:6]}) {digits[6:]}",
        digits[:-1] + "*",
    ):
        found = (await place.run("list", "--json", "--caller", typed)).rows
        assert row["recording_id"] in {each["recording_id"] for each in found} or typed.endswith("*"), typed
    assert (await place.run("list", "--json", "--caller", digits + "9")).rows == []


async def test_list_finds_either_party_agents_and_queues_newest_first(place):
    sim = await place.add("hq", ImagicleSimulator())
    sim.add_calls(sim.clock.now() - 2 * HOUR, sim.clock.now() - HOUR, 6, shortest=1, longest=9)
    await place.run("sync")

    async def found(*filters):
        return [row["recording_id"] for row in (await place.run("list", "--json", *filters)).rows]

    rows = (await place.run("list", "--json")).rows
    assert await found("--newest") == [row["recording_id"] for row in reversed(rows)]
    assert await found("--newest", "--limit", "2") == [row["recording_id"] for row in rows[:-3:-1]]
    row = next(row for row in rows if (row["caller"] or "").startswith("+"))
    digits = row["caller"].removeprefix("+")
    for typed in (row["caller"], f"00{digits}", digits[-9:], f"{digits[:-4]} {digits[-4:]}"):
        assert row["recording_id"] in await found("--number", typed), typed
    half = sorted(row["duration"] for row in rows)[3]
    shorter = {row["recording_id"] for row in rows if row["duration"] < half}
    assert set(await found("--shorter-than", f"{half}s")) == shorter
    agent = next(row["agent"] for row in rows if row["agent"])
    assert {row["recording_id"] for row in rows if row["agent"] == agent} <= set(await found("--agent", agent[:4]))
    assert await found("--agent", "nobody of that name") == []
    assert await found("--queue", "no such queue") == []
    refused = await place.run("list", "--number", "x1", code=2)
    assert "too few digits" in refused.err


async def test_ids_are_shown_whole_on_a_narrow_terminal(place):
    sim = await place.add("hq", ImagicleSimulator())
    sim.add_calls(sim.clock.now() - 2 * HOUR, sim.clock.now() - HOUR, 2, shortest=1, longest=2)
    await place.run("sync")
    rows = (await place.run("list", "--json")).rows
    screen = io.StringIO()
    render.recordings(Console(file=screen, width=80, force_terminal=True, color_system=None), rows)
    assert all(row["recording_id"] in screen.getvalue() for row in rows)


async def test_a_file_that_is_named_otherwise_than_it_is_coded_is_told(place, tmp_path):
    sim = await place.add("hq", ChronicallSimulator())
    sim.add_calls(sim.clock.now() - 2 * HOUR, sim.clock.now() - HOUR, 1, shortest=1, longest=2)
    await place.run("sync")
    (row, *_) = (await place.run("list", "--json")).rows
    done = await place.run("get", "hq", row["recording_id"], "-o", str(tmp_path / "call.wav"))
    assert "holds spx audio" in done.err
    assert "call.spx" in done.err
    assert not (await place.run("get", "hq", row["recording_id"], "-o", str(tmp_path / "call.spx"))).err


async def test_a_store_in_the_data_dir_an_empty_secret_and_a_short_retention_are_told(place):
    await place.add("hq", ChronicallSimulator())
    stores, sources = place.config["stores"], place.config["sources"]
    for path, said in (("var", "holds data_dir"), (".", "holds data_dir"), ("var/spool/x", "archiver itself uses")):
        place.config |= {"data_dir": "var", "stores": stores | {"odd": {"kind": "file", "path": path}}}
        place.write()
        assert said in (await place.run("check", "--offline", code=2)).err, path
    place.config["stores"] = stores
    token = sources["hq"]["token"]
    sources["hq"]["token"] = ""
    place.write()
    assert "sources.hq.token: is empty" in (await place.run("check", "--offline", code=2)).err
    sources["hq"] |= {"token": token, "retention": "12h", "lookback": "24h"}
    place.write()
    assert "retention is shorter than its lookback" in (await place.run("check", "--offline")).err


@pytest.mark.parametrize(
    ("asked", "told", "same"),
    [
        ("+49 30 1234567", "+49301234567", True),
        ("0049301234567", "+49301234567", True),
        ("030 1234567", "+49301234567", True),
        ("(650) 466-8888", "+16504668888", True),
        ("1573", "1573", True),
        ("1573", "+4930121573", False),
        ("+49301234567", "1234567", True),
        ("", "1573", False),
        ("anonymous", None, False),
    ],
)
def test_numbers_are_compared_however_they_are_written(asked, told, same):
    assert same_number(asked, told) is same
