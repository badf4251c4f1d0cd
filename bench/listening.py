"""The pages with many listeners at once: the memory of `archiver serve`, its decoders beside it.

Everybody logs in at the same moment, opens a call of their own (a Speex one, that no browser plays as it is), listens,
and holds the answer open until all of them have begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

from archiver.simulators.chronicall import ChronicallSimulator
from archiver.web import accounts
from tests.servers import free_ports

from .cases import Result
from .lab import BIN, SPAN, Place, memory_of

PASSWORD = "correct horse battery"
#: Of a call.
LENGTH = timedelta(minutes=5)
#: Seconds that something may take before the case is given up.
PATIENCE = 300.0


def listeners(place: Place, people: int) -> list[Result]:
    """The peak of the process itself, from its start on, log-ins included."""
    folder, port = place.work(), free_ports(1)[0]
    place.config(folder, "none", "file", more=f'[web]\nlisten = "127.0.0.1:{port}"')
    own, all_of_it, seconds = asyncio.run(_listening(folder, f"http://127.0.0.1:{port}", people))
    told = (
        f"{all_of_it:.0f} MB with its decoders; all of them hear {LENGTH.seconds // 60} minutes after {seconds:.0f} s"
    )
    return [Result(f"{people} listeners at once: MB of serve", 200, own, "", told, rss=all_of_it, ceiling=True)]


async def _listening(folder: Path, url: str, people: int) -> tuple[float, float, float]:
    await _archived(folder, people)
    secret, made = accounts.hashed(PASSWORD), datetime.now(UTC)
    names = [f"person{n}" for n in range(people)]
    accounts.AccountsFile(folder / "accounts.toml").write(
        accounts.Accounts({n: accounts.Account(name=n, role="compliance", secret=secret, made=made) for n in names})
    )
    async with _running(folder, "serve") as serve:
        peaks = [0.0, 0.0]
        watching = asyncio.create_task(_watch(serve.pid, peaks))
        await _there(url)
        began = time.monotonic()
        all_hear = asyncio.Barrier(people)
        await asyncio.gather(*(_listen(url, name, n, all_hear) for n, name in enumerate(names)))
        seconds = time.monotonic() - began
        watching.cancel()
    return peaks[0], peaks[1], seconds


async def _archived(folder: Path, calls: int) -> None:
    """So many calls from a recorder that is gone afterwards."""
    simulator = ChronicallSimulator(seed=1)
    for n in range(calls):
        simulator.add_call(datetime(2024, 5, 17, 8, tzinfo=UTC) + n * timedelta(minutes=6), LENGTH)
    await simulator.start()
    try:
        config = folder / "archiver.toml"
        text = re.sub(r"(?m)^base_url = .*", f'base_url = "{simulator.base_url}"', config.read_text())
        config.write_text(text.replace('token = "bench"', f'token = "{simulator.token}"').replace('"wav"', '"spx"'))
        async with _running(folder, "backfill", "--source", "hq", *SPAN) as backfill:
            if await asyncio.wait_for(backfill.wait(), PATIENCE):
                raise SystemExit(f"the calls were not archived: {(folder / 'backfill.log').read_text()[-2000:]}")
    finally:
        await simulator.stop()


@contextlib.asynccontextmanager
async def _running(folder: Path, command: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    with (folder / f"{command}.log").open("w") as said:
        line = [str(BIN / "archiver"), "--log-level", "error", command, *arguments]
        process = await asyncio.create_subprocess_exec(*line, cwd=folder, stdout=said, stderr=said)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _watch(pid: int, peaks: list[float]) -> None:
    """The peaks of the process, and of it and those that it starts."""
    page = os.sysconf("SC_PAGESIZE") / 1e6
    while True:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        peaks[:] = max(peaks[0], own), max(peaks[1], memory_of(pid))
        await asyncio.sleep(0.05)


async def _there(url: str) -> None:
    async with aiohttp.ClientSession(url) as session, asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get("/healthz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


async def _listen(url: str, name: str, number: int, all_hear: asyncio.Barrier) -> None:
    """What a browser does: log in, search, open the call of that number, give a reason, play it."""
    jar = aiohttp.CookieJar(unsafe=True)
    patience = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(url, cookie_jar=jar, headers={"Origin": url}, timeout=patience) as session:
        await _page(session, "POST", "/login", name=name, password=PASSWORD)
        path, calls = "/?order=oldest", list[str]()
        while len(calls) <= number:
            shown = await _page(session, "GET", path)
            calls += re.findall(r'<a href="(/calls/[^"]+)"', shown)
            path = (re.search(r'rel="next" href="([^"]+)"', shown) or [""])[1].replace("&amp;", "&")
        shown = await _page(session, "POST", f"{calls[number]}/listen", reason="bench")
        while not (sounds := re.findall(r'<audio[^>]* src="(/media/[^"]+)"', shown)):
            await asyncio.sleep(1)
            shown = await _page(session, "GET", calls[number])
        await _page(session, "GET", sounds[0].rpartition(".")[0] + ".svg")
        for start in (0, 1_000_000):
            async with session.get(sounds[0], headers={"Range": f"bytes={start}-"}) as answer:
                assert answer.status == 206
                await answer.content.readexactly(100_000)
                # Now everybody's answer is under way.
                await asyncio.wait_for(all_hear.wait(), PATIENCE)
                async for _ in answer.content.iter_chunked(1 << 16):
                    pass


async def _page(session: aiohttp.ClientSession, method: str, path: str, **form: str) -> str:
    async with session.request(method, path, data=form or None) as answer:
        shown = await answer.text()
        if answer.status != 200:
            raise SystemExit(f"{method} {path} answered {answer.status}: {shown[-2000:]}")
        return shown
