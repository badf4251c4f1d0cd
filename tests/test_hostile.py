"""Whoever answers may be hostile: what comes ends in a valid result or one clear refusal, in bounded memory and time.

Audio, the config, CMS and single rows have such tests beside their own; here are the listings of every recorder, what
stores say of themselves, answers without measure, and names that are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver.audio.spool import Spool
from archiver.catalog.catalog import Query
from archiver.errors import SourceError
from archiver.model import Listing, Receipt, Recording, Window
from archiver.proof import manifests
from archiver.service import wiring
from archiver.settings import config
from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.base import Simulator
from archiver.sync import commit
from archiver.sync.windows import subtract
from archiver.upkeep import orphans
from archiver.upkeep import rebuild as rebuilding
from archiver.upkeep.rebuild import Rebuilt
from archiver.wire.recorder import Client
from tests.engine import HOUR, MINUTE, Rig, a_recorder, archiving
from tests.factories import MANIFEST_LINE, MANIFEST_MEDIUM
from tests.wire.test_http import Server, answer, serving

NOON = datetime(2024, 5, 18, 12, tzinfo=UTC)
WINDOW = Window(NOON - HOUR, NOON)

DEEP: Any = "x"
for _ in range(200):
    DEEP = {"a": [DEEP]}

JUNK: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**63, -(2**63), 10**40, 1e308, float("nan"), float("inf"), "", " ", "x" * 5000,
    "\0", "a\nb", "\u202egpj", "\ud800", "../../etc/passwd", "[red]x[/]", "9" * 30, "-1", "1e999", "NaN",
    "PT9223372036854775808S", "P99999999999D", "99999:59:59", "9999-12-31T23:59:59.999999-14:00",
    "0001-01-01T00:00:00+14:00", "Tue Sep 14 15:03:30 AEST 20211", "http://u:p@evil.example/x", "file:///etc/passwd",
    [], {}, [None], [[]], {"": {}}, {"id": None}, DEEP,
]  # fmt: skip
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def mutated(page: Any, choose: Callable[[int], int]) -> Any:
    """The page with a few of its values replaced, taken out, doubled or moved."""
    page = json.loads(json.dumps(page))
    for _ in range(1 + choose(3)):
        places = list(_places(page))
        if not places:
            return JUNK[choose(len(JUNK))]
        holder, key = places[choose(len(places))]
        what = choose(8)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif what == 2:
            other, name = places[choose(len(places))]
            holder[key] = json.loads(json.dumps(other[name] if choose(2) else [other[name]]))
        else:
            holder[key] = JUNK[choose(len(JUNK))]
    return page if choose(20) else JUNK[choose(len(JUNK))]


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, level = [], [value]
    while level:
        holder = level.pop()
        if len(found) > 5000:
            break
        for key, child in holder.items() if isinstance(holder, dict) else enumerate(holder):
            found.append((holder, key))
            if isinstance(child, dict | list):
                level.append(child)
    return found


# -- listings --------------------------------------------------------------------------------------------------------


class Tape(Client):
    """Remembers every answer by its path."""

    def __init__(self, *how: Any, **more: Any) -> None:
        super().__init__(*how, **more)
        self.pages: dict[str, Any] = {}

    async def json(self, method: str, path: str, **how: Any) -> Any:
        page = await super().json(method, path, **how)
        path = path.split("?")[0]
        self.pages[path] = max(self.pages.get(path, page), page, key=lambda told: len(json.dumps(told)))
        return page


class Fuzzed:
    """A recorder whose every answer is one that its simulator gave, and then changed."""

    def __init__(self, kind: str, server: Server, pages: dict[str, Any], options: dict[str, Any], ids: list[str]):
        self.kind, self.server, self.pages, self.ids = kind, server, pages, ids
        cls = ENTRIES[kind].load()
        parsed = cls.Options(**options)
        self.client = Client.of(parsed, cookies=getattr(cls, "cookies", False))
        self.source = cls("pbx", parsed, self.client)
        server.answer = self.respond
        self.choose: Callable[[int], int] = lambda _n: 0

    async def respond(self, request: Any, _writer: Any) -> bytes:
        path = request.target.split("?")[0]
        if path.endswith("/Time"):
            return answer(body=str(NOON_MS + self.choose(2)).encode())
        known = [page for told, page in self.pages.items() if path.endswith(told)] or list(self.pages.values())
        page = mutated(known[self.choose(len(known))], self.choose)
        return answer(body=json.dumps(page).encode(), Content_Type="application/json")

    async def asked(self, choose: Callable[[int], int]) -> Listing:
        """What it makes of all that can be asked, each with one refusal at the most."""
        self.choose = choose
        recordings, rejected, said = list[Recording](), [], []
        source = self.source
        asks: list[Callable[[], Any]] = [lambda: source.list(WINDOW), source.check]
        if hasattr(source, "look_up"):
            asks.append(lambda: source.look_up(self.ids))
        if hasattr(source, "follow"):
            asks.append(lambda: source.follow(["0", "", "{}", "[1]", "-1", '{"open": 3}'][choose(6)]))
        for ask in asks:
            try:
                async with asyncio.timeout(60):
                    told = await ask()
            except SourceError as error:
                said.append(str(error))
                continue
            listing = getattr(told, "listing", told)
            if isinstance(listing, Listing):
                recordings += listing.recordings
                rejected += listing.rejected
        if hasattr(source, "detail"):
            for recording in recordings[:2]:
                with contextlib.suppress(SourceError):
                    recordings.append(await source.detail(recording))
        for recording in recordings:
            assert recording.started_at.utcoffset() == timedelta()
            recording.digest()
            recording.problem()
        assert all(len(row.raw) <= 4096 and row.reason for row in rejected)
        assert all(line and line.isprintable() for line in said), said
        return Listing(recordings, rejected)


ENTRIES = config.kinds("archiver.sources")
SIMULATORS = config.kinds("archiver.simulators")
NOON_MS = int(NOON.timestamp() * 1000)
MORE: dict[str, dict[str, Any]] = {
    "xivo": {"cel": True, "history": True},
    "imagicle": {"restarts": 1},
    "noojee": {"listing": "hour", "hour_interval": "0s"},
}


@asynccontextmanager
async def fuzzed(kind: str) -> AsyncIterator[Fuzzed]:
    sim: Simulator = SIMULATORS[kind].load()(seed=5, clock=RecorderClock(NOON, speed=0))
    sim.add_calls(NOON - HOUR, NOON - 10 * MINUTE, 3)
    async with sim:
        options = {**sim.options(), **MORE.get(kind, {}), "timeout": "20s"}
        cls = ENTRIES[kind].load()
        parsed = cls.Options(**options)
        tape = Tape.of(parsed, cookies=getattr(cls, "cookies", False))
        assert isinstance(tape, Tape)
        source = cls("pbx", parsed, tape)
        found = (await source.list(Window(NOON - 2 * HOUR, NOON))).recordings
        ids = [i for i in dict.fromkeys(r.call_id or r.recording_id for r in found) if i][:2]
        await source.check()
        for ask in ("look_up", "follow", "detail"):
            if hasattr(source, ask):
                told = {"look_up": ids, "follow": None, "detail": found[0]}[ask]
                with contextlib.suppress(SourceError):
                    await getattr(source, ask)(told)
        await tape.close()
        base = str(sim.base_url)
    async with serving() as server:
        options["base_url"] = options["base_url"].replace(base, server.url)
        fuzz = Fuzzed(kind, server, tape.pages, options, ids)
        yield fuzz
        await fuzz.client.close()
        # The server's own ends follow.
        if ends := [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]:
            await asyncio.wait(ends, timeout=10)


@pytest.mark.parametrize("kind", sorted(ENTRIES))
def test_any_mutation_of_a_recorder_s_answers_gives_a_listing_or_one_clear_refusal(kind):
    with asyncio.Runner() as runner:
        opened = fuzzed(kind)
        fuzz = runner.run(opened.__aenter__())
        read = 0

        @FUZZ
        @given(st.integers(0, 1 << 32))
        def attempt(seed: int) -> None:
            nonlocal read
            read += len(runner.run(fuzz.asked(random.Random(seed).randrange)).recordings)

        attempt()
        runner.run(opened.__aexit__(None, None, None))
    assert read > 20, "nothing was read at all: the pages no longer fit"


# -- what a store says of itself ---------------------------------------------------------------------------------------

#: Values for a field of a line that no version of us ever wrote there.
WRONG: list[Any] = [
    *JUNK, -5, 2**70, 10**400, "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00", "2024-05-18T12:00:00", "a,b", "{}",
    "../../etc/passwd", "pbx/2024/05/18/../../x/audio-000000000000.wav", "a" * 64, ["x"], [["x", "y"]], {"a": DEEP},
]  # fmt: skip
GARBAGE = [
    b"", b"\n\n", b"{", b"null\n", b"[]\n", b"{}\n", b"\0" * 99, b"\xff\xfe\n", b"\x1f\x8b\x08" + b"\x9c" * 400,
    b"[" * 100_000 + b"\n", b'{"source":"pbx"}\n', b"9" * 5000 + b"\n", b"x" * 70_000, b'"\\ud800"\n', b"\xef\xbb\xbf",
]  # fmt: skip


def damaged(data: bytes, choose: Callable[[int], int]) -> tuple[bytes, bool]:
    """An object of lines, spoilt; and whether anybody can see that it is."""
    lines = data.splitlines(keepends=True)
    at = choose(len(lines))
    match choose(9):
        case 0:
            place = choose(len(data))
            return data[:place] + bytes([data[place] ^ (1 << choose(8))]) + data[place + 1 :], False
        case 1:
            return data[: max(choose(len(data)), 1)], False
        case 2:
            return b"".join([*lines, lines[at]]), False
        case 3:
            half = len(lines[at]) // 2
            return b"".join([*lines[:at], lines[at][:half], *lines[at + 1 :], lines[at][half:]]), True
        case 4:
            return b"".join([*lines[:at], GARBAGE[choose(len(GARBAGE) - 1) + 1].strip() + b"\n", *lines[at:]]), True
        case 5:
            return GARBAGE[choose(len(GARBAGE))], True
        case 6:
            return b"".join(lines).replace(b'"source":"pbx"', b'"source":"other"'), True
        case _:
            document = json.loads(lines[at])
            lines[at] = json.dumps(mutated_at(document, WRONG[choose(len(WRONG))], choose)).encode() + b"\n"
            return b"".join(lines), False


def mutated_at(document: Any, value: Any, choose: Callable[[int], int]) -> Any:
    places = list(_places(document))
    holder, key = places[choose(len(places))]
    if choose(4):
        holder[key] = value
    else:
        del holder[key]
    return document


MEDIUM, LINE = MANIFEST_MEDIUM, MANIFEST_LINE


class Told:
    """An archive of two recorders and all that its store says of it, to be spoilt and read again and again."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder = rig, folder
        self.keys = {name: feed.source.listing_key for name, feed in rig.archive.feeds.items()}
        self.outlet = rig.archive.outlets["disk"]
        paths = sorted(folder.glob("_*/**/*.json*"))
        # Of its ledgers only a source's newest counts.
        newest = {path.parent: path for path in paths}
        self.files = {path: path.read_bytes() for path in paths if path.suffix == ".jsonl" or path in newest.values()}

    async def begin(self) -> None:
        for path in self.files:
            path.chmod(0o600)
        self.before = await self.documents()
        self.covered = await self.ledgers()

    async def documents(self) -> dict[tuple[str, str], Any]:
        return {(d["source"], d["recording_id"]): d async for d in self.rig.catalog.find(Query())}

    async def ledgers(self) -> dict[str, tuple[Any, Any, Any]]:
        return {s["name"]: (s["start_at"], s["covered"], s["cursor"]) for s in await self.rig.catalog.sources()}

    async def emptied(self) -> None:
        async with self.rig.catalog._connection() as c:
            await c.execute("TRUNCATE sources, recordings, media, copies, totals, rebuilding CASCADE")

    async def rebuilt(self) -> Rebuilt:
        await self.emptied()
        return await rebuilding.rebuild(self.rig.catalog, self.outlet, self.keys, self.rig.archive.spool)

    async def drilled(self, choose: Callable[[int], int]) -> tuple[rebuilding.Drilled, bool]:
        """How a rebuild from one spoilt object would differ from the whole; and whether anybody can see the damage."""
        await self.rebuilt()
        path = list(self.files)[choose(len(self.files))]
        data, seen = damaged(self.files[path], choose)
        path.write_bytes(data)
        try:
            report = await rebuilding.drill(self.rig.catalog, self.outlet, self.keys, self.rig.archive.spool)
        finally:
            path.write_bytes(self.files[path])
        return report, seen and data != self.files[path]

    async def spoilt(self, choose: Callable[[int], int]) -> int:
        """Spoil one object, rebuild, compare; how many recordings came back."""
        path = list(self.files)[choose(len(self.files))]
        data, seen = damaged(self.files[path], choose)
        path.write_bytes(data)
        try:
            return await self.compared(path, data, seen and data != self.files[path])
        finally:
            path.write_bytes(self.files[path])

    async def compared(self, path: Path, data: bytes, seen: bool) -> int:
        report = await self.rebuilt()
        after = await self.documents()
        key = str(path.relative_to(self.folder))
        assert all(line.startswith(f"{key}: ") and line.isprintable() for line in report.damaged), report.damaged
        assert len(report.damaged) <= 1
        assert report.damaged or not seen
        assert set(after) <= set(self.before), "invented"
        kept = set(data.split(b"\n"))
        lines = [row for row in self.files[path].splitlines() if row not in kept]
        lost = {told[0] for row in lines if (told := ids_of(row))}
        for identity, document in self.before.items():
            if identity not in lost:
                again = after[identity] | {"kind": document["kind"]}
                assert unverified(again) == unverified(document), identity
        ledgers = await self.ledgers()
        for source, (start, covered, cursor) in self.covered.items():
            if report.damaged and key.startswith(f"_manifests/{source}/"):
                assert ledgers[source] == (start, (), None), "what was lost would never be listed again"
            elif report.damaged and key.startswith(f"_ledger/{source}/"):
                assert not subtract(ledgers[source][1], covered)
            else:
                assert ledgers[source] == (start, covered, cursor)
        return len(after)


def ids_of(row: bytes) -> list[tuple[str, str]]:
    told = json.loads(row)
    return [(told["source"], told["recording_id"])] if "recording_id" in told else []


def unverified(document: Any) -> Any:
    media = [m | {"copies": [c | {"verified_at": None} for c in m["copies"]]} for m in document["media"]]
    return document | {"media": media}


@asynccontextmanager
async def told(folder: Path, database: str) -> AsyncIterator[Told]:
    sims = {
        "pbx": a_recorder(SIMULATORS["xivo"].load(), 3, live=True),
        "legs": a_recorder(SIMULATORS["noojee"].load(), 3, live=True),
    }
    async with archiving(folder, database, sims) as rig:
        await rig.sync()
        sims["pbx"].add_calls(sims["pbx"].clock.now() - 10 * MINUTE, sims["pbx"].clock.now() - 5 * MINUTE, 2, longest=3)
        await rig.sync()
        async with rig.archive.engine().shares.sharing():
            await wiring.verifier(rig.archive, rig.archive.engine(), "disk").stalest()
        await commit.write_verified(rig.archive.feeds, rig.catalog)
        for sim in sims.values():
            await sim.stop()
        opened = Told(rig, folder / "disk")
        await opened.begin()
        yield opened


def test_any_damage_to_what_a_store_tells_costs_its_own_lines_only_and_is_named(tmp_path, database):
    with asyncio.Runner() as runner:
        opened = told(tmp_path, database)
        archive = runner.run(opened.__aenter__())
        assert {path.relative_to(tmp_path / "disk").parts[0] for path in archive.files} == {
            "_manifests",
            "_ledger",
            "_verified",
        }
        back = 0

        @settings(FUZZ, max_examples=60)
        @given(st.integers(0, 1 << 32))
        def attempt(seed: int) -> None:
            nonlocal back
            back += runner.run(archive.spoilt(random.Random(seed).randrange))

        attempt()
        assert back > 200
        for seed in range(3):
            report, seen = runner.run(archive.drilled(random.Random(seed).randrange))
            assert report.compared == 8
            assert report.damaged or not seen
            assert report.complete or report.same < 8 or report.damaged
        runner.run(opened.__aexit__(None, None, None))


async def test_names_in_a_store_that_nobody_gave_are_listed_as_orphans(tmp_path, database):
    names = [
        "%00/audio",
        "%ED%A0%80/audio",
        "..%2F..%2Fx/audio",
        "[red]x/audio",
        "\u202egpj/audio",
        "'; DROP/audio",
        "1/%00",
    ]
    async with archiving(tmp_path, database, a_recorder(calls=1, live=True)) as rig:
        await rig.sync()
        for name in names:
            path = tmp_path / f"disk/pbx/2024/05/18/{name}-{'0' * 12}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"RIFF")
        found = await orphans.find(rig.catalog, rig.archive.outlets["disk"], rig.archive.feeds, rig.archive.spool)
        assert found.error is None
        assert {why for _, _, why in found.left} == {"of a recording that is not in the catalog"}
        assert len(found.left) == len(names)


class Endless:
    """A store that holds one manifest: whole lines around one of so many bytes."""

    def __init__(self, whole: bytes, size: int) -> None:
        self.whole, self.size = whole, size

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        if prefix.endswith("_manifests/"):
            yield Receipt(key=f"{prefix}pbx/2024/05/18/x.jsonl", size=self.size)

    async def get(self, key: str, into: Any) -> None:
        await into.write(self.whole)
        for _ in range(self.size >> 20):
            await into.write(b"[" * (1 << 20))
        await into.write(b"\n" + self.whole)


async def test_a_line_without_end_is_named_in_flat_memory_and_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "_LONGEST_LINE", 1 << 20)
    media = [{**MEDIUM, "media_id": name} for name in ("a", "b")]
    store: Any = Endless(manifests.line(LINE | {"media": media}), 64 << 20)
    tracemalloc.start()
    parts = [part async for part in manifests.read(store, "", Spool(tmp_path, 1 << 20))]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(part.documents) for part in parts] == [2]
    assert parts[-1].problem == "line 2: it is longer than 1048576 bytes"
    assert peak < 16 << 20


# -- answers without measure -----------------------------------------------------------------------------------------

#: A process of its own, so that its memory is that of these answers alone; server and client live in it.
BOMBS = r'''
import asyncio, resource, struct, sys, tempfile, time, zlib
from datetime import timedelta
from archiver.errors import SourceError
from archiver.wire.recorder import Client
from archiver.model import Medium
from archiver.settings.options import SourceOptions
from archiver.sources.chronicall import Chronicall, ChronicallOptions

MiB = 1 << 20
KEY = "e8e25d94-0ed9-4475-9531-985d5d9dc9f8-1716027586938"


class Nowhere:
    length = 0
    async def write(self, chunk): self.length += len(chunk)
    def told(self, *, content_type=None): pass
    async def restart(self): self.length = 0


def silence(wbits):
    """A mebibyte of zeros that may be repeated within one stream of deflate: head, block, end."""
    packer = zlib.compressobj(9, wbits=wbits)
    head = packer.compress(bytes(MiB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head, packer.compress(bytes(MiB)) + packer.flush(zlib.Z_FULL_FLUSH)


def a_zip(told):
    """One member of ten gibibytes that says it is ``told`` bytes long."""
    head, block = silence(-15)
    packed = head + block * (10 * 1024 - 1) + b"\x03\x00"
    name = (KEY + ".spx").encode()
    what = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 0, 0, len(packed), told, len(name), 0)
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + what + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name
    local = b"PK\x03\x04" + what + name
    end = b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(entry), len(local) + len(packed), 0)
    return local + packed + entry + end


HEAD = b"HTTP/1.1 200 OK\r\n"
OPEN = HEAD + b"Connection: close\r\n"
GZIP = b"Content-Encoding: gzip\r\n\r\n"
ONE, MORE = silence(31)
drips = 0.05


async def forever(write, piece, pause=0.0):
    while True:
        await write(piece)
        await asyncio.sleep(pause)


async def gibibytes(write, piece, count=1):
    for _ in range(count * (1 << 30) // len(piece)):
        await write(piece)


async def serve(reader, writer):
    async def write(data):
        writer.write(data)
        await writer.drain()
    try:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].split(b"?")[0].strip(b"/").decode()
        if path.endswith("recordings/audio"):
            data = a_zip((3 << 30) if bomb == "a ZIP that says so" else 1000)
            await write(OPEN + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        elif path == "json":
            await write(OPEN + b"\r\n[")
            await gibibytes(write, b'"' + b"x" * 65532 + b'",\n')
        elif path == "packed":
            await write(OPEN + GZIP + ONE)
            await gibibytes(write, MORE * 64, 10)
        elif path == "endless":
            await write(OPEN + b"\r\n")
            await forever(write, bytes(MiB))
        elif path == "chunks":
            await write(OPEN + b"Transfer-Encoding: chunked\r\n\r\n")
            await forever(write, b"1;" + b"x" * 65536)
        elif path == "bytes":
            await write(OPEN + b"Transfer-Encoding: chunked\r\n\r\n")
            await forever(write, b"1\r\nx\r\n" * 40_000)
        elif path == "trailers":
            await write(OPEN + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
            await forever(write, b"A: " + b"x" * 60 + b"\r\n")
        elif path == "heads":
            await write(OPEN)
            await forever(write, b"X-Flood: " + b"x" * 1000 + b"\r\n")
        elif path == "continues":
            await forever(write, b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        elif path == "slow-head":
            await write(OPEN)
            await forever(write, b"x", drips)
        elif path == "slow-body":
            await write(OPEN + b"\r\n")
            await forever(write, b"x", drips)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    global bomb
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    quick = Client(base, timeout=timedelta(seconds=0.4), largest=64 * MiB)
    tiny = Client(base, timeout=timedelta(seconds=60), largest=MiB // 4)
    calm = Client(base, timeout=timedelta(seconds=60), largest=64 * MiB)
    options = ChronicallOptions(kind="chronicall", base_url=base, token="t", fetch="zip", batch_largest=64 * MiB)
    recorder = Chronicall("pbx", options, calm)

    async def unzip():
        sink = Nowhere()
        medium = Medium(recording_id=KEY, media_id=KEY)
        found = await recorder.fetch_batch([medium], {KEY: sink})
        assert not found and sink.length == 0, (found, sink.length)
        return "nothing of it is taken"

    bombs = {
        "a JSON of a gibibyte": lambda: calm.json("GET", "/json"),
        "ten gibibytes of packed JSON": lambda: calm.json("GET", "/packed"),
        "ten gibibytes of packed audio": lambda: calm.download("/packed", Nowhere()),
        "an endless body": lambda: calm.download("/endless", Nowhere()),
        "an endless chunk's head": lambda: calm.download("/chunks", Nowhere()),
        "endless trailers": lambda: calm.download("/trailers", Nowhere()),
        "chunks of one byte": lambda: tiny.download("/bytes", Nowhere()),
        "endless headers": lambda: calm.json("GET", "/heads"),
        "a ZIP that says so": unzip,
        "a ZIP that lies": unzip,
    }
    slow = {
        "endless interim answers": lambda: quick.json("GET", "/continues"),
        "a head that drips": lambda: quick.json("GET", "/slow-head"),
        "a body that drips": lambda: quick.json("GET", "/slow-body"),
    }

    async def met(name, drop):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            async with asyncio.timeout(300):
                said = await drop()
        except SourceError as error:
            said = error
        except TimeoutError:
            said = "it never ended"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        print(name, type(said).__name__, grown, str(said).replace("\n", "\\n"), sep="\t", flush=True)

    for bomb, drop in bombs.items():
        await met(bomb, drop)
    await asyncio.gather(*(met(name, drop) for name, drop in slow.items()))
    await quick.close()
    await tiny.close()
    await calm.close()


asyncio.run(main())
'''

REFUSALS = {
    "a JSON of a gibibyte": ("Overflow", "longer than"),
    "ten gibibytes of packed JSON": ("Overflow", "longer than"),
    "ten gibibytes of packed audio": ("TryAgain", "longer than"),
    "an endless body": ("TryAgain", "longer than"),
    "an endless chunk's head": ("TryAgain", "its answer is no valid HTTP: a chunk's head"),
    "endless trailers": ("TryAgain", "its trailers are longer"),
    "chunks of one byte": ("TryAgain", "longer than"),
    "endless headers": ("TryAgain", "its head is longer"),
    "a ZIP that says so": ("str", "nothing of it is taken"),
    "a ZIP that lies": ("str", "nothing of it is taken"),
    "endless interim answers": ("NoAnswer", ""),
    "a head that drips": ("NoAnswer", ""),
    "a body that drips": ("TooSlow", ""),
}


def test_an_answer_without_measure_is_one_clear_refusal_in_flat_memory():
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    told = [line.split("\t") for line in done.stdout.splitlines()]
    assert {bomb for bomb, *_ in told} == REFUSALS.keys()
    for bomb, kind, grown, said in told:
        expected, words = REFUSALS[bomb]
        assert said != "it never ended", bomb
        assert kind == expected, (bomb, kind, said)
        assert words in said, (bomb, said)
        assert said.isprintable(), bomb
        # Of a JSON all is held that is allowed; buffers grow by halves.
        assert int(grown) < 160, (bomb, grown)
