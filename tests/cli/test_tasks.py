"""docs/tasks.md: each block of the page is run, as it stands there, on a small archive with simulated recorders."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import tomllib
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from archiver.catalog.embedded import _programs as programs
from archiver.simulators.base import Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from tests import commands, servers
from tests.commands import ROOT
from tests.proxy import ForwardProxy

PAGE = (ROOT / "docs" / "tasks.md").read_text("utf-8")
BY_HAND = re.compile(r"<!-- by hand: (.+) -->")
#: What a test can't run, and how many blocks of the page are that. A block that is marked must hold what it names.
NOT_RUN = {"systemctl": 4, "make install": 1, "df": 1, "docker": 1}
#: The day of the calls: the page's 17 May.
DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    text: str
    by_hand: str | None


def sections(page: str) -> dict[str, list[Block]]:
    """By heading its blocks, in order."""
    found: dict[str, list[Block]] = {}
    blocks: list[Block] = []
    marker: str | None = None
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith("## "):
            blocks = found[line.removeprefix("## ")] = []
        elif marked := BY_HAND.fullmatch(line):
            marker = marked[1]
        elif line.startswith("```"):
            inside: list[str] = []
            while (inner := next(lines)) != "```":
                inside.append(inner)
            blocks.append(Block(line.removeprefix("```"), "\n".join(inside), marker))
            marker = None
        else:
            assert marker is None, f"a marker without a block before {line!r}"
    return found


SECTIONS = sections(PAGE)


@dataclass(slots=True)
class Reader:
    """Does what the page says, with this test's folders, addresses and days in place of the page's."""

    place: commands.Place
    instead: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    ran: list[str] = field(default_factory=list)
    said: str = ""

    def here(self, text: str) -> str:
        folder = str(self.place.folder)
        days = {f"2026-05-{day:02}": f"{DAY + timedelta(days=day - 17):%Y-%m-%d}" for day in range(1, 32)}
        for written, meant in ({"sudo ": "", "/etc/archiver": folder, "/srv": folder} | days | self.instead).items():
            text = text.replace(written, meant)
        return text

    async def follow(self, title: str, first: int = 0, last: int | None = None) -> None:
        for block in SECTIONS[title][first:last]:
            if block.by_hand is not None or block.kind == "ini":
                continue
            text = self.here(block.text)
            if block.kind == "toml":
                self.edit(tomllib.loads(text))
            else:
                for line in text.splitlines():
                    await self.do(line)

    def edit(self, asked: dict[str, Any]) -> None:
        """Write the sections into the config, as who reads the page does."""
        for section, tables in asked.items():
            held = self.place.config.setdefault(section, {})
            for key, value in tables.items():
                if section in {"stores", "sources"}:
                    held.setdefault(key, {}).update(value)
                else:
                    held[key] = value

    async def do(self, line: str) -> None:
        """Run one line. It must end with the code that its comment says, or 0."""
        command, _, comment = line.partition("  #")
        told = re.search(r"exit code (\d)", comment)
        code = int(told[1]) if told else 0
        self.ran.append(command.strip())
        if command.startswith("archiver ") and not set("|<>$") & set(command):
            finished = await self.place.run(*shlex.split(command)[1:], code=code)
            self.said += finished.out + finished.err
            return
        self.place.write()
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            command,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.place.folder,
            env=dict(os.environ) | self.env,
        )
        _, err = await asyncio.wait_for(process.communicate(self.stdin), commands.PATIENCE)
        assert process.returncode == code, f"{command}: {err.decode()}"
        self.place.config = tomllib.loads(self.place.path.read_text("utf-8"))

    async def problems(self) -> list[str]:
        """What status says is wrong, notes left out."""
        document = await self.place.json("status")
        return [f"{p['name']}: {p['what']}" for p in document["problems"] if p["level"] != "note"]

    async def is_whole(self) -> None:
        """Every call of the recorders that run is archived, and nothing is wrong."""
        rows = (await self.place.run("list", "--json")).rows
        held = {(r["source"], r["recording_id"]) for r in rows if r["state"] == "archived"}
        missing = {key[:2] for key in self.place.truth()} - held
        assert not missing
        assert await self.problems() == []


@pytest_asyncio.fixture
async def reader(tmp_path: Path, database: str) -> AsyncIterator[Reader]:
    """An archive of one recorder with five calls, in the store disk, as the page supposes."""
    (tmp_path / "credentials").mkdir()
    async with commands.place(tmp_path, database) as place:
        sim = await place.add("hq", ChronicallSimulator(), start=DAY, window="1d")
        (tmp_path / "credentials" / "hq").write_text(place.config["sources"]["hq"]["token"])
        place.config["sources"]["hq"]["token"] = {"file": "credentials/hq"}
        calls(sim)
        await place.run("sync")
        yield Reader(place)


@pytest.fixture(scope="module")
def seaweed() -> Iterator[servers.Seaweed]:
    with servers.seaweed() as server:
        yield server


def calls(sim: Simulator, count: int = 5, at: datetime = DAY + timedelta(hours=11, minutes=44)) -> None:
    for i in range(count):
        sim.add_call(at + timedelta(minutes=3 * i), timedelta(seconds=90), caller=f"+1555010{i}")


async def other_recorder(reader: Reader, sim: Simulator) -> None:
    """It runs at the address that the page names for it."""
    await sim.start()
    reader.place.simulators["new"] = sim
    reader.instead["http://10.0.0.102:9080"] = sim.options()["base_url"]


def test_every_block_is_run_or_marked_and_counted():
    marked = [block for blocks in SECTIONS.values() for block in blocks if block.by_hand]
    assert Counter(block.by_hand for block in marked) == NOT_RUN
    for block in marked:
        assert block.by_hand in block.text
        # Nothing that could be tried hides behind a marker.
        assert not any(line.startswith(("archiver ", "sudo archiver ")) for line in block.text.splitlines())
    for block in (block for blocks in SECTIONS.values() for block in blocks if not block.by_hand):
        assert block.kind in {"console", "toml", "ini"}
        assert not re.search(r"\b(systemctl|mkfs|mount|docker)\b", block.text)


def test_each_section_has_a_test_and_is_in_the_list_at_the_head():
    here = Path(__file__).read_text("utf-8")
    for title in SECTIONS:
        anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        assert f"[{title}](#{anchor})" in PAGE
        # Said by a call of follow(), or all of it is by hand.
        assert f'"{title}"' in here or all(block.by_hand for block in SECTIONS[title]), title


async def test_hand_over_calls(reader):
    await reader.follow("Hand over calls")
    with zipfile.ZipFile(reader.place.folder / "case-7.zip") as file:
        audio = [name for name in file.namelist() if name.startswith("case-7/data/audio/")]
    assert len(audio) == len(reader.place.truth())
    assert reader.said.count("  export  ") == len(audio)


async def test_what_last_night_did(reader):
    await reader.follow("What last night did")
    assert "nothing is wrong now" in reader.said


async def test_why_a_call_is_missing(reader):
    await reader.follow("Why a call is missing")
    assert "fits" in reader.said
    await reader.is_whole()


async def test_replace_a_recorder(reader):
    new = ChronicallSimulator(seed=77)
    await other_recorder(reader, new)
    calls(new, 4, DAY + timedelta(hours=13))
    kept = {r["recording_id"] for r in (await reader.place.run("list", "--json")).rows}
    await reader.follow("Replace a recorder", last=1)
    await reader.place.simulators.pop("hq").stop()
    reader.place.simulators = {"hq": new}
    await reader.follow("Replace a recorder", first=1)
    assert kept < {r["recording_id"] for r in (await reader.place.run("list", "--json")).rows}
    await reader.is_whole()


async def test_a_recorder_at_a_new_address(reader):
    old = reader.place.simulators["hq"]
    new = ChronicallSimulator()
    await other_recorder(reader, new)
    calls(new)
    await old.stop()
    reader.place.simulators = {"hq": new}
    await reader.follow("A recorder at a new address")
    await reader.is_whole()
    assert not any(seen.on == "audio" for seen in new.seen)


async def test_change_a_recorders_password(reader):
    sim = reader.place.simulators["hq"]
    sim.token = "another-key-of-the-service-user"
    await reader.place.run("check", code=3)
    reader.stdin = sim.token.encode() + b"\n"
    await reader.follow("Change a recorder's password")
    calls(sim, 1, DAY + timedelta(hours=15))
    day = ("--from", f"{DAY:%Y-%m-%d}", "--to", f"{DAY:%Y-%m-%dT20:00}")
    await reader.place.run("backfill", "--source", "hq", *day, "--relist")
    await reader.is_whole()


async def test_rename_a_source(reader):
    sim = reader.place.simulators["hq"]
    before = reader.place.requests("audio")
    await reader.follow("Rename a source")
    reader.place.simulators = {"paris": sim}
    await reader.is_whole()
    assert reader.place.requests("audio") == before


async def test_rename_a_store(reader):
    await reader.follow("Rename a store")
    await reader.is_whole()
    assert await reader.place.held() == reader.place.truth()


async def test_move_a_folder_to_s3(reader, seaweed):
    bucket = seaweed.make_bucket("moved")
    (reader.place.folder / "credentials" / "s3-id").write_text(seaweed.access_key)
    (reader.place.folder / "credentials" / "s3-key").write_text(seaweed.secret_key)
    reader.instead |= {"https://s3.example.com": seaweed.s3_url, '"calls"': f'"{bucket}"'}
    await reader.follow("Move a folder to S3")
    assert list(reader.place.config["stores"]) == ["cloud"]
    await reader.is_whole()


def name_database(reader: Reader, url: str) -> None:
    path = reader.place.folder / "credentials" / "database"
    path.write_text(url)
    path.chmod(0o600)


async def test_move_to_another_postgresql(reader, postgres):
    old, new = reader.place.database, postgres.create()
    postgres.drop(new)
    name = new.split("?")[0].rpartition("/")[2]
    postgres.execute(f"CREATE DATABASE {name}")
    # Tools of the server's own version, as an administrator has them.
    reader.env = {"OLD": old, "NEW": new, "PATH": f"{programs()}:{os.environ['PATH']}"}
    name_database(reader, new)
    before = (await reader.place.run("list", "--json")).rows
    await reader.follow("Move to another PostgreSQL")
    assert (await reader.place.run("list", "--json")).rows == before
    await reader.is_whole()


async def test_the_host_is_lost(reader, postgres):
    sim = reader.place.simulators["hq"]
    reader.place.config["database"] = {"url": postgres.create()}
    calls(sim, 2, datetime.now(UTC) - timedelta(minutes=30))
    await reader.follow("The host is lost")
    await reader.is_whole()
    assert await reader.place.held() == reader.place.truth()


async def test_read_a_week_again(reader):
    before = reader.place.requests("audio")
    await reader.follow("Read a week again")
    await reader.is_whole()
    assert reader.place.requests("audio") == before


async def test_fetch_audio_again(reader):
    key = min(key for key in reader.place.objects() if key.startswith("hq/"))
    damaged = reader.place.store / key
    damaged.chmod(0o600)
    damaged.write_bytes(b"OggS, and no more")
    await reader.follow("Fetch audio again")
    # What was found stays told for a while, so that somebody looks at that disk.
    assert await reader.problems() == ["disk: verify found 1 spoilt copy, 1 of them repaired"]
    assert await reader.place.held() == reader.place.truth()


async def test_a_disk_is_full(reader):
    before = len(reader.place.truth())
    calls(reader.place.simulators["hq"], 2, datetime.now(UTC) - timedelta(minutes=30))
    await reader.follow("A disk is full")
    await reader.is_whole()
    stores = (await reader.place.json("status"))["stores"]
    # What came since is in the new store alone, and what was there before in both.
    assert stores["more"]["copies"] == len(reader.place.truth())
    assert stores["disk"]["copies"] == before


@pytest.mark.parametrize("title", ["Two hosts", "Behind a pooler"])
async def test_a_database_that_is_named_by_a_file(reader, title):
    name_database(reader, reader.place.database)
    await reader.follow(title)
    await reader.is_whole()


async def test_through_a_proxy(reader):
    async with ForwardProxy().serving() as proxy:
        reader.instead = {"http://proxy.example.com:3128": proxy.url}
        await reader.follow("Through a proxy")
        assert proxy.asked
        assert proxy.url.removeprefix("http://") in reader.said
        await reader.is_whole()


def test_a_page_with_a_wrong_command_fails(tmp_path):
    """What keeps the page true: a line that does not work is not passed over."""
    reader = Reader(commands.Place(tmp_path, "postgresql:///nothing"))
    with pytest.raises(AssertionError, match="exit code 2"):
        asyncio.run(reader.do("archiver rebiuld --store disk"))
    with pytest.raises(AssertionError, match="false"):
        asyncio.run(reader.do("false"))
