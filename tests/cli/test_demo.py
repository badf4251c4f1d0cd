"""The demo: what a newcomer sees first works without a terminal, leaves others' folders alone, and can fail."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.commands import demo
from tests import commands
from tests.commands import ROOT

KINDS = ("chronicall", "genesys", "imagicle", "noojee", "xivo")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to the account that an embedded database runs under, and short enough for its socket."""
    with tempfile.TemporaryDirectory(prefix="demo-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def run(*arguments: str, cwd: Path, script: str = "") -> subprocess.CompletedProcess[str]:
    """``archiver`` without a terminal; ``script`` runs before it, in the same process."""
    program = ["-m", "archiver"] if not script else ["-c", f"{script}\nfrom archiver.cli import main\nmain()"]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        stdin=subprocess.DEVNULL,
        check=False,
    )


async def test_the_demo_archives_every_call_in_spite_of_its_faults_and_says_so(folder):
    done = run("demo", "--folder", "it", "--calls", "40", cwd=folder)
    assert done.returncode == 0, done
    assert "Traceback" not in done.stdout + done.stderr, done
    assert "5 simulated recorders hold 40 calls of yesterday" in done.stdout
    assert "archived and compared byte for byte" in done.stdout
    assert "0 not healed yet" in done.stdout
    # Its pages, and an account for them.
    assert re.search(r"Open http://127\.0\.0\.1:\d+ to find a call and hear it\nname demo, password \S+", done.stdout)
    assert "missing:" not in done.stdout
    assert all(kind in done.stdout for kind in KINDS)
    assert "\x1b" not in done.stdout
    # What it leaves is an archive like any other.
    async with commands.place(folder / "it", "embedded") as place:
        assert place.path.stat().st_mode & 0o077 == 0
        told = await place.run("--config", "archiver.toml", "status", "--json", config=False)
        sources = told.json["sources"]
        assert set(sources) == set(KINDS)
        assert all((s["pending"], s["failed"], s["rejected_rows"]) == (0, 0, 0) for s in sources.values()), sources
        rows = (await place.run("--config", "archiver.toml", "list", "--json", config=False)).rows
        assert len({row["recording_id"] for row in rows}) >= 40
        assert {row["state"] for row in rows} == {"archived"}
        keys = {copy["key"] for row in rows for medium in row["media"] for copy in medium["copies"]}
        assert {key for key in place.objects() if not key.startswith(("_", "."))} == keys
        assert sum(s["archived"] for s in sources.values()) == len(keys)


def test_the_demo_touches_no_folder_that_holds_something_else(folder):
    # Not even where somebody's own archive is.
    for name in ("mine.txt", "archiver.toml"):
        (folder / name).write_text("mine")
        refused = run("demo", "--folder", ".", cwd=folder)
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [". holds something that is not a demo; name another --folder"]
        assert (folder / name).read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {"mine.txt", "archiver.toml"}
    few = run("demo", "--calls", "3", cwd=folder)
    assert few.returncode == 2
    assert "--calls" in few.stderr


def test_the_demo_ends_with_1_where_a_recorder_never_recovers(folder):
    script = """
from archiver.commands import demo
demo.FAULTS = (("status", "audio", -1, 500, "every download answers 500"),)
demo.PATIENCE = 3.0
"""
    done = run("demo", "--folder", "it", "--calls", "10", cwd=folder, script=script)
    assert done.returncode == 1, done
    assert "\n0 recordings archived" in done.stdout
    assert done.stdout.count("missing:") == 10  # the first ten
    assert "Traceback" not in done.stdout + done.stderr, done


def test_every_fault_of_the_demo_heals():
    assert demo.FAULTS
    assert all(times > 0 for _, _, times, _, _ in demo.FAULTS)
