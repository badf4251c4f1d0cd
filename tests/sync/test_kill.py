"""Processes that are killed at any moment: what is run again converges, and nothing is lost, doubled or asked anew."""

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import boto3
import pytest

from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.stores.names import is_ours
from tests import commands, servers
from tests.commands import DAY, HOUR, WHOLE_DAY, Finished, Place, Running

#: Recordings of a backfill that is killed so often.
SIZES = {"file": (2000, 10), "s3": (160, 2)}


class Bucket:
    """What lies in a bucket, and how a config names it."""

    def __init__(self, server: servers.Seaweed, name: str) -> None:
        keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
        self._client = boto3.client("s3", endpoint_url=server.s3_url, region_name="us-east-1", **keys)
        self._name = server.make_bucket(name)
        self.table = {
            "kind": "s3",
            "bucket": name,
            "endpoint_url": server.s3_url,
            "region": "us-east-1",
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
        }

    def objects(self) -> dict[str, bytes]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name)
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return {key: self._client.get_object(Bucket=self._name, Key=key)["Body"].read() for key in keys}

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def seaweed() -> Iterator[servers.Seaweed]:
    with servers.seaweed() as server:
        yield server


async def time_passes(database: str) -> None:
    """The leases and shares of killed processes have run out: three minutes in no time."""
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("UPDATE shares SET until = until - interval '3 minutes'")
        await connection.execute("UPDATE claims SET until = until - interval '3 minutes'")
    finally:
        await connection.close()


async def backfills(place: Place) -> list[Running]:
    return [await place.start("backfill", "--source", name, *WHOLE_DAY, "--json") for name in place.simulators]


async def run_and_kill(place: Place, at: int) -> None:
    """Until so many requests have arrived in all; then both processes are gone, as by a power cut."""
    running = await backfills(place)
    while place.requests() < at and not all(each.over for each in running):
        await asyncio.sleep(0.001)
    for each in running:
        with contextlib.suppress(ProcessLookupError):
            each.signal(signal.SIGKILL)
    ended = await asyncio.gather(*(each.end() for each in running))
    assert {each.code for each in ended} <= {-signal.SIGKILL, 0}, ended
    assert any(each.code == -signal.SIGKILL for each in ended), "they had ended before they were killed"


async def run_to_the_end(place: Place) -> list[Finished]:
    return await asyncio.gather(*(each.end() for each in await backfills(place)))


@pytest.mark.parametrize("kind", ["file", "s3"])
async def test_a_backfill_that_is_killed_again_and_again_archives_everything_once(kind, tmp_path, database, request):
    recordings, kills = SIZES[kind]
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    print(f"seed {seed}")
    async with commands.place(tmp_path, database) as place:
        hq = await place.add("hq", ChronicallSimulator(), concurrency=4)
        pbx = await place.add("pbx", XivoSimulator(), timezone="Europe/Paris", concurrency=4)
        # Every fourth Chronicall call has two recordings.
        hq.add_calls(DAY, DAY + 23 * HOUR, recordings * 4 // 10, shortest=2, longest=3)
        pbx.add_calls(DAY, DAY + 23 * HOUR, recordings // 2, shortest=2, longest=3)
        objects = place.objects
        if kind == "s3":
            bucket = Bucket(request.getfixturevalue("seaweed"), "calls")
            place.config["stores"] = {"disk": bucket.table}
            objects = bucket.objects
        truth = place.truth()
        assert len(truth) == recordings
        planned = [(await place.json("backfill", "--source", s, *WHOLE_DAY, "--dry-run")) for s in place.simulators]
        windows = sum(plan["windows"] for plan in planned)
        lists = place.requests()
        for simulator in place.simulators.values():
            simulator.seen.clear()

        # Some of them while it still lists, the others at any time.
        some = [dice.randrange(1, lists) for _ in range(-(-kills * 3 // 10))]
        moments = sorted([*some, *(dice.randrange(lists, lists + recordings - 40) for _ in range(kills - len(some)))])
        for number, at in enumerate(moments, 1):
            await run_and_kill(place, at)
            await time_passes(database)
            print(f"kill {number} after {at}: {place.requests('list')} listings, {place.requests('audio')} downloads")
        for done in await run_to_the_end(place):
            assert done.code == 0, done
            assert json.loads(done.out)["complete"] is True
        listings, downloads = place.requests("list"), place.requests("audio")
        print(f"{kills} kills: {windows} windows, {listings} listings; {recordings} media, {downloads} downloads")

        # A window whose listing was cut off is listed again, one of each source a kill; no other. Each process may look
        # at the XiVO's week before, once, to see that its timezone is right.
        assert lists <= listings <= lists + 2 * kills + kills + 1
        assert recordings <= downloads < recordings * 2
        assert_whole(place, objects(), truth, (await place.run("list", "--json")).rows, processes=2 * kills)
        for simulator in place.simulators.values():
            simulator.seen.clear()
        assert [done.code for done in await run_to_the_end(place)] == [0, 0]
        assert place.requests() == 0
        if kind == "s3":
            bucket.close()


def assert_whole(
    place: Place, objects: dict[str, bytes], truth: dict[tuple[str, str, str], bytes], rows: list, *, processes: int
) -> None:
    """Every medium lies in the store once, with its bytes; a manifest tells of each.

    Nothing else is there but what so many killed processes had in hand, which later ones clear away in time.
    """
    catalog = {
        medium["copies"][0]["key"]: (recording["source"], recording["recording_id"], medium["media_id"])
        for recording in rows
        for medium in recording["media"]
        if medium["state"] == "archived" and len(medium["copies"]) == 1
    }
    assert set(catalog.values()) == set(truth)
    for key, identity in catalog.items():
        assert objects[key] == truth[identity], key
    stray = set(objects) - set(catalog)
    told = {key for key in stray if key.startswith("_manifests/") and key.endswith(".jsonl")}
    temporary = {key for key in stray if is_ours(key.rpartition("/")[2])}
    canaries = {key for key in stray if key.startswith("_canary/")}
    print(f"{len(catalog)} media, {len(told)} manifests; of killed processes {len(temporary)} temporaries, {canaries}")
    assert len(canaries) <= processes
    ledgers = {key for key in stray if key.startswith("_ledger/") and key.endswith(".json")}
    assert stray == told | temporary | ledgers | canaries, sorted(stray - told - temporary - ledgers - canaries)
    lines = [json.loads(line) for key in told for line in objects[key].splitlines()]
    described = {copy["key"] for line in lines for medium in line["media"] for copy in medium["copies"]}
    assert described == set(catalog)


async def test_an_embedded_database_that_is_killed_comes_back_by_itself():
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        # Open to the account that the database runs under.
        folder.chmod(0o755)
        async with commands.place(folder, "embedded") as place:
            hq = await place.add("hq", ChronicallSimulator(), poll="1s", concurrency=4)
            hq.add_calls(datetime.now(UTC) - 2 * HOUR, datetime.now(UTC) - HOUR, 60, shortest=1, longest=2)
            slow = hq.fault("drip", "audio", times=-1, value=0.03)
            running = await place.start("run")
            pids = []
            for count in (10, 40):
                await commands.until(lambda count=count: hq.count("audio") >= count or running.over)
                pids.append(server_of(folder) or 0)
                assert pids[-1] > 1
                os.kill(pids[-1], signal.SIGKILL)
                await running.said('"database.restarting"')
                await commands.until(lambda: server_of(folder) not in {None, pids[-1]}, 30)
            slow.times = 0
            late = hq.add_call(datetime.now(UTC) - timedelta(minutes=50), timedelta(seconds=1), index=1)
            await running.said(next(iter(hq.expected(late))))
            # What the killed server never committed is fetched again once its lease has run out; that takes minutes.
            await time_passes(embedded_url(folder))
            await commands.until(lambda: all(r in running.err for r in hq.truth()), 60)
            ended = await running.end(signal.SIGTERM, patience=15)
            assert ended.code == 0, ended
            # The driver logs by itself that it lost its connections; our own code has nothing to be surprised at.
            surprises = [event for event in map(json.loads, ended.err.splitlines()) if "exception" in event]
            assert {event["logger"] for event in surprises} <= {"asyncpg.pool"}, surprises
            assert await place.held() == place.truth()
            assert (await place.json("status"))["sources"]["hq"]["archived"] == len(place.truth())


def server_of(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((folder / "var/postgres/pgdata/postmaster.pid").read_text().split()[0])
    return None


def embedded_url(folder: Path) -> str:
    return f"postgresql://archiver@/archiver?host={folder}/var/postgres/socket&port=5432"
