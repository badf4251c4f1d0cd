"""Parts of the archiver alone, each a process of its own: ``bench/steps.py STEP [ARGUMENT]`` in a config's folder.

Each prints one JSON document.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from archiver.catalog.catalog import Limits, Query
from archiver.catalog.face import FaceCatalog
from archiver.commands.common import run
from archiver.common import log
from archiver.model import Body, Window
from archiver.service import searching
from archiver.service.wiring import Archive, opened
from archiver.settings import config
from archiver.sync import commit, poll


async def discovery(archive: Archive, _: str) -> dict[str, float]:
    """From the request for a listing to the last row's commit."""
    feed = archive.feeds["hq"]
    feed.gate.limit = 4
    wanted = Window(datetime(2024, 5, 17, tzinfo=UTC), datetime(2024, 5, 18, tzinfo=UTC))
    began = time.monotonic()
    polled = await poll.poll(feed, archive.catalog, wanted=wanted)
    return {"rows": polled.new, "seconds": time.monotonic() - began}


async def describe(archive: Archive, _: str) -> dict[str, float]:
    """Manifests for every recording."""
    began = time.monotonic()
    done = await commit.describe_changes(archive.feeds, archive.catalog, limit=1000)
    await commit.write_ledgers(archive.feeds, archive.catalog)
    return {"recordings": done, "seconds": time.monotonic() - began}


async def puts(archive: Archive, recorder: str) -> dict[str, float]:
    """The store alone: the same recordings, from memory, nothing else done."""
    store = archive.outlets["main"].store
    await store.check()
    bodies = {file.parent.name: Body.of(file.read_bytes()) for file in Path(recorder).glob("rest/api/v1/*/*/audio")}
    left = iter(bodies.items())

    async def worker() -> None:
        for name, body in left:
            await store.put(f"{archive.outlets['main'].prefix}puts/{name}/{name}.wav", body)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(24):
            group.create_task(worker())
    return {"files": len(bodies), "seconds": time.monotonic() - began}


async def catalog(archive: Archive, _: str) -> dict[str, float]:
    """Milliseconds that the everyday statements take."""
    c, feed = archive.catalog, archive.feeds["hq"]
    feed.gate.limit = 4

    async def claim() -> None:
        claims = await c.claim({"hq": 72}, timedelta(minutes=2))
        assert len(claims) == 72
        await c.release(claims)

    async def listed() -> None:
        query = Query(source="hq", start=datetime(2023, 2, 1, tzinfo=UTC), caller="+1000000046*", limit=50)
        assert [d async for d in c.find(query)]

    async def polled() -> None:
        await poll.poll(feed, c)

    found = {}
    for name, step, times, percent in (("claim", claim, 300, 99), ("list", listed, 60, 95), ("poll", polled, 40, 50)):
        taken = []
        for _ in range(times):
            began = time.monotonic()
            await step()
            taken.append((time.monotonic() - began) * 1000)
        found[name] = statistics.quantiles(taken, n=100)[percent - 1]
    return found


async def search(archive: Archive, count: str) -> dict[str, float]:
    """Milliseconds, the 95th percentile, that a page of a search takes."""
    calls, chance = int(count), random.Random(1)
    scope = Limits(agents=tuple(f"Agent {n}" for n in range(100, 400)))
    cases: dict[str, Callable[[], tuple[Limits, Query]]] = {
        "text that occurs once": lambda: (Limits(), Query(text=f"needle{chance.randint(1, calls)}")),
        "text that occurs nowhere": lambda: (Limits(), Query(text=f"absent{chance.randint(1, calls)}")),
        "a word that is frequent": lambda: (Limits(), Query(text=f"word{chance.randint(0, 50)}")),
        "number by its last digits": lambda: (
            Limits(),
            Query(number=f"{chance.randint(0, calls // 20 - 1) * 104729 % 10**10:010}"[-7:]),
        ),
        "rare agent": lambda: (Limits(), Query(agent="rare bird")),
        "frequent agent": lambda: (Limits(), Query(agent=f"agent {chance.randint(100, 2999)}")),
        "newest of everything": lambda: (Limits(), Query()),
        "newest of one source": lambda: (Limits(), Query(source=f"s{chance.randint(0, 19)}")),
        "newest of a rare source": lambda: (Limits(), Query(source="s20")),
        "newest of a scope of 300 agents": lambda: (scope, Query()),
    }
    face = await FaceCatalog.open(archive.config.database_url.get_secret_value())
    found = {}
    for name, make in cases.items():
        taken = []
        for _ in range(100):
            limits, query = make()
            began = time.monotonic()
            rows, _ = await face.look(limits, replace(query, newest=True))
            taken.append((time.monotonic() - began) * 1000)
            assert bool(rows) == (name != "text that occurs nowhere"), (name, query)
        found[name] = statistics.quantiles(taken, n=100)[94]
    await face.close()
    return found


async def search_filled(archive: Archive, count: str) -> dict[str, float]:
    """Calls that the search takes in each second, of such as have changed."""
    some = f"SELECT md5(n::text) FROM generate_series(1, {int(count)}) n"
    async with archive.catalog._transaction() as c:
        await c.execute(f"UPDATE recordings SET queue = 'other' WHERE recording_id IN ({some})")
    began, done = time.monotonic(), 0
    while taken := await archive.catalog.index():
        done += taken
    return {"rate": done / (time.monotonic() - began)}


async def discovery_beside(archive: Archive, how: str) -> dict[str, float]:
    """As discovery, while the search is filled; ``off``: without anything of it."""
    if how == "off":
        async with archive.catalog._transaction() as c:
            await c.execute("ALTER TABLE recordings DISABLE TRIGGER USER")
        return await discovery(archive, "")
    filling = asyncio.create_task(searching.keep(archive.catalog))
    found = await discovery(archive, "")
    filling.cancel()
    return found


def naive(listing: str, given: str) -> dict[str, float]:
    """What one would write in an afternoon: one recording at a time, nothing checked, nothing remembered."""
    import boto3
    import requests

    told = json.loads(given)
    client = boto3.client("s3", **told["client"])
    began = time.monotonic()
    for row in requests.get(listing, timeout=60).json()[: told["files"]]:
        audio = requests.get(f"{listing}/{row['recordingKey']}/audio", timeout=60).content
        client.put_object(Bucket="bench", Key=f"{told['prefix']}{row['recordingKey']}.wav", Body=audio)
    return {"files": told["files"], "seconds": time.monotonic() - began}


async def main() -> None:
    log.configure(level="error")
    async with opened(config.load(config.find(None))) as archive:
        print(json.dumps(await globals()[sys.argv[1]](archive, [*sys.argv, ""][2])))


if __name__ == "__main__":
    if sys.argv[1] == "naive":
        print(json.dumps(naive(sys.argv[2], sys.argv[3])))
    else:
        run(main())
