"""The cases of `make bench` for the proof: how long a stranger's check of a store takes, and in how much memory."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from datetime import timedelta
from pathlib import Path

from archiver.proof.certificates import Leaf, Medium, about, disclosure
from tests.proof.build import FIRST, Archive, Call

from .cases import Result, pairs
from .lab import Place, Timing, timed

SCRIPT = Path(__file__).parent.parent / "archiver" / "proof" / "verify.py"
#: Of the lists: recordings a day.
A_DAY = 100_000


class Given(Call):
    """A recording that only its line tells of, or whose audio is as long as wanted."""

    def __init__(self, number: int, size: int = 0) -> None:
        super().__init__("hq", FIRST, number % 15)
        self.handle, self.number = os.urandom(12).hex(), number
        self.bodies = [os.urandom(size)] if size else []
        self.digest = os.urandom(32).hex()

    def leaf(self, stores: list[str]) -> Leaf:
        if self.bodies:
            return super().leaf(stores)
        return Leaf(self.handle, "archived", ABOUT, [], [Medium(size=200_000, sha256=self.digest)], ["dav", "main"])


ABOUT = about(disclosure(bytes(16), {}))


def _check(folder: Path, vkey: str, *words: str) -> Timing:
    timing = timed([sys.executable, "-I", "-S", str(SCRIPT), str(folder), vkey, *words], folder)
    assert timing.output.endswith("good\n"), timing.output[-500:]
    return timing


def lists(place: Place, count: int) -> Result:
    """verify.py without --media: so many recordings, whose lists lie on the disk."""
    folder = place.work()
    archive = Archive(folder)
    for n in range(count // A_DAY):
        archive.certify("hq", FIRST + timedelta(days=n), [Given(m) for m in range(A_DAY)])
        archive.told.clear()
        archive.checkpoint()
    timing = _check(folder, archive.vkey)
    shutil.rmtree(folder)
    told = f"{timing.wall / count * 1e6:.1f} µs a recording"
    return Result(
        f"verify.py, {count:,} recordings, seconds",
        600 * count / 10_000_000,
        timing.wall,
        "one run",
        told,
        cpu=f"{timing.cpu:.0f} s",
        rss=timing.rss,
        ceiling=True,
    )


def media(place: Place, files: int, size: int) -> Result:
    """verify.py --media against sha256sum of the same files."""
    folder = place.work()
    archive = Archive(folder)
    archive.certify("hq", FIRST, [Given(n, size) for n in range(files)])
    archive.checkpoint()
    mine: list[Timing] = []

    def ours() -> float:
        mine.append(_check(folder, archive.vkey, "--media"))
        return 1 / mine[-1].wall

    def theirs() -> float:
        return 1 / timed(["sh", "-c", "find hq -type f -print0 | xargs -0 sha256sum"], folder).wall

    ratio, spread = pairs(place, ours, theirs)
    shutil.rmtree(folder)
    told = f"{files * size / 1e6 / statistics.median(t.wall for t in mine):.0f} MB/s, whole process"
    return Result("verify.py --media ÷ sha256sum", 0.7, ratio, spread, told, rss=max(t.rss for t in mine))
