"""The spool: a cap on memory over all sinks, files beyond it, and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.audio.spool import Spool
from archiver.errors import SpoolDown
from archiver.model import Body

DATA = random.Random(3).randbytes(3 << 20)


@pytest.fixture
def spool(tmp_path) -> Spool:
    return Spool(tmp_path / "spool", 100_000)


def parts(data: bytes, *cuts: int) -> list[bytes]:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


async def filled(sink, *chunks: bytes) -> Body:
    for chunk in chunks:
        await sink.write(chunk)
    return await sink.body()


def files(spool: Spool) -> list[Path]:
    return sorted(spool.folder.iterdir())


def is_right(body: Body, data: bytes) -> bool:
    return (body.length, body.sha256, body.read()) == (len(data), hashlib.sha256(data).hexdigest(), data)


async def test_what_fits_stays_in_memory(spool):
    with spool.sink() as sink:
        body = await filled(sink, b"ab", b"", b"cd")
        assert (body.path, spool.used) == (None, 4)
        assert is_right(body, b"abcd")
    assert spool.used == 0


async def test_nothing_at_all_is_a_body_too(spool):
    with spool.sink() as sink:
        assert is_right(await sink.body(), b"")


async def test_what_does_not_fit_goes_to_a_file_that_is_gone_afterwards(spool):
    with spool.sink() as sink:
        body = await filled(sink, DATA[:90_000], DATA[90_000:])
        assert body.data is None
        assert files(spool) == [body.path]
        assert is_right(body, DATA)
        assert b"".join(body.chunks()) == DATA
        assert spool.used == 0
    assert files(spool) == []


async def test_exactly_the_cap_fits_and_a_byte_more_does_not(spool):
    with spool.sink() as sink:
        assert (await filled(sink, bytes(100_000))).path is None
    with spool.sink() as sink:
        assert (await filled(sink, bytes(100_000), b"x")).path is not None


async def test_the_cap_is_shared_by_all_sinks(spool):
    with spool.sink() as one, spool.sink() as other:
        await one.write(bytes(60_000))
        body = await filled(other, bytes(60_000))
        assert (body.path is not None, spool.used) == (True, 60_000)
    with spool.sink() as again:
        assert (await filled(again, bytes(60_000))).path is None


async def test_many_sinks_at_once_keep_the_cap_and_their_bytes_apart(spool):
    most = 0

    async def fill(seed: int) -> bool:
        nonlocal most
        dice = random.Random(seed)
        data = dice.randbytes(dice.randrange(200_000))
        with spool.sink() as sink:
            for part in parts(data, *(dice.randrange(200_000) for _ in range(10))):
                await sink.write(part)
                most = max(most, spool.used)
                await asyncio.sleep(0)
            return is_right(await sink.body(), data)

    assert all(await asyncio.gather(*(fill(seed) for seed in range(40))))
    assert most <= spool.memory
    assert (spool.used, files(spool)) == (0, [])


@given(st.lists(st.integers(0, len(DATA)), max_size=12), st.integers(0, len(DATA)), st.integers(0, 1 << 20))
def test_the_hash_is_right_however_the_bytes_are_cut(tmp_path_factory, cuts, length, memory):
    async def run() -> bool:
        spool = Spool(tmp_path_factory.getbasetemp() / "cuts", memory)
        data = DATA[:length]
        with spool.sink() as sink:
            right = is_right(await filled(sink, *parts(data, *cuts)), data)
        return right and spool.used == 0 and not files(spool)

    assert asyncio.run(run())


@pytest.mark.parametrize("first", [1000, 400_000], ids=["in memory", "in a file"])
async def test_a_source_may_begin_again(spool, first):
    with spool.sink() as sink:
        sink.told(content_type="audio/wav")
        await sink.write(bytes(first))
        await sink.restart()
        assert (spool.used, sink.length, files(spool)) == (0, 0, [])
        assert is_right(await filled(sink, b"abc", b"def"), b"abcdef")
        assert sink.content_type == "audio/wav"


async def test_a_body_can_be_read_before_a_source_begins_again(spool):
    with spool.sink() as sink:
        assert is_right(await filled(sink, DATA), DATA)
        await sink.restart()
        assert is_right(await filled(sink, b"other"), b"other")


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_an_error_leaves_nothing_behind(spool, error):
    for size in (10, 400_000):
        with pytest.raises(error), spool.sink() as sink:  # noqa: PT012
            await sink.write(bytes(size))
            raise error
    assert (spool.used, files(spool)) == (0, [])


async def test_being_cancelled_while_a_thread_opens_a_file_leaves_nothing_behind(spool, monkeypatch):
    make = tempfile.mkstemp

    def slowly(*args, **how):
        time.sleep(0.05)
        return make(*args, **how)

    monkeypatch.setattr(tempfile, "mkstemp", slowly)

    async def fill() -> None:
        with spool.sink() as sink:
            await filled(sink, bytes(90_000), bytes(20_000))

    task = asyncio.create_task(fill())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    assert (spool.used, files(spool)) == (0, [])


async def test_being_cancelled_at_any_moment_leaves_nothing_behind(spool):
    dice = random.Random(4)

    async def fill() -> None:
        with spool.sink() as sink:
            while True:
                await sink.write(DATA[: dice.randrange(1, 400_000)])
                await asyncio.sleep(0)

    for _ in range(60):
        task = asyncio.create_task(fill())
        await asyncio.sleep(dice.random() * 0.003)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (spool.used, files(spool)) == (0, [])


@pytest.mark.parametrize(
    "chunks",
    [(190_000, 6_000), (190_000, 60_000), (190_000, *([100_000] * 20)), (300_000,)],
    ids=["while the last is flushed", "at the end", "midway", "with the first"],
)
async def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, chunks):
    spool = Spool(tmp_path / "spool", 190_000)
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (193_000, most))
    try:
        with pytest.raises(SpoolDown, match="File too large"), spool.sink() as sink:
            await filled(sink, *map(bytes, chunks))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (spool.used, files(spool)) == (0, [])


HOLDER = """
import asyncio, sys
from pathlib import Path
from archiver.audio.spool import Spool
async def main():
    spool = Spool(Path(sys.argv[1]), 0)
    with spool.sink() as sink:
        await sink.write(bytes(100_000))
        print("ready", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""


@pytest.fixture
def holder(spool):
    """Another process with a file in the same spool."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(spool.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


async def test_a_file_of_a_killed_process_is_cleared_and_that_of_a_living_one_is_not(spool, holder):
    (file,) = files(spool)
    spool.clear()
    assert files(spool) == [file]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    spool.clear()
    assert files(spool) == []


async def test_our_own_files_are_not_cleared_while_they_are_in_use(spool):
    with spool.sink() as sink:
        body = await filled(sink, DATA)
        spool.clear()
        Spool(spool.folder, 0).clear()
        assert is_right(body, DATA)


async def test_a_file_left_by_a_process_that_had_our_number_is_cleared(spool):
    """In a container every start has the same process number."""
    left = spool.folder / f"{os.getpid()}-left.part"
    left.write_bytes(b"x")
    (spool.folder / "1-left.part").write_bytes(b"x")
    kept = spool.folder / "not-ours.txt"
    kept.write_bytes(b"x")
    spool.clear()
    assert files(spool) == [kept]


async def test_a_large_body_needs_little_memory(spool):
    chunk = DATA[: 1 << 16]
    tracemalloc.start()
    try:
        with spool.sink() as sink:
            for _ in range(800):
                await sink.write(chunk)
            body = await sink.body()
            assert body.length == 50 << 20
            hashed = hashlib.sha256()
            for piece in body.chunks():
                hashed.update(piece)
            assert hashed.hexdigest() == body.sha256
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


async def test_writing_to_a_file_does_not_hold_up_the_loop(spool):
    """A slow disk is waited for in a thread."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    with spool.sink() as sink:
        await sink.write(bytes(90_000))
        before = ticks
        await sink.write(bytes(20_000))
        assert ticks > before
        before = ticks
        await sink.write(bytes(2 << 20))
        assert ticks > before
    ticking.cancel()
