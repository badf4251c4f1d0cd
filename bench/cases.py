"""The cases of `make bench`: something of ours against something of the same machine, in alternating pairs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .lab import BIN, OURS, Build, Place, Timing, cpu_of, memory_of, timed


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table."""

    case: str
    #: What must be reached, as a number and as it is read; ``ratio`` is what was.
    must: float
    reached: float
    spread: str
    told: str
    cpu: str = ""
    rss: float = 0.0
    #: Less is better.
    ceiling: bool = False
    #: The same of this build ÷ of the build before, side by side in this run; empty where that can't do it.
    before: str = ""

    @property
    def ok(self) -> bool:
        return self.reached <= self.must if self.ceiling else self.reached >= self.must


def pairs(place: Place, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, str]:
    """Runs of both in turn: the median of ours ÷ theirs (rates), and its spread."""
    ratios = [ours() / theirs() for _ in range(place.runs)]
    return statistics.median(ratios), f"{min(ratios):.2f}–{max(ratios):.2f}"


def step(folder: Path, name: str, argument: str = "", build: Build = OURS) -> tuple[dict[str, float], Timing]:
    timing = timed([str(build.bin / "python"), str(build.steps), name, argument], folder)
    return json.loads(timing.output), timing


def _builds(place: Place) -> list[Build]:
    """Ours, and the one before where there is one."""
    return [OURS, *([place.before] if place.before else [])]


def _against(found: dict[Build, list[float]], unit: str = "") -> str:
    """The median of the paired ratios ours ÷ before."""
    others = [values for build, values in found.items() if build is not OURS]
    if not others:
        return ""
    ratios = [ours / before for ours, before in zip(found[OURS], others[0], strict=True)]
    return f"{statistics.median(ratios):.2f} ×{unit}"


def copying(place: Place, kind: str, recorder: str, files: int, size: int, must: float) -> list[Result]:
    """A whole `archiver backfill` of a fresh archive against `rclone copy` of the same files."""
    builds = _builds(place)
    timings: dict[Build, list[Timing]] = {build: [] for build in builds}
    copied: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(place.runs):
        for build in builds:
            folder = place.work()
            place.config(folder, recorder, kind, build=build)
            timing = place.backfill(folder, build)
            assert json.loads(timing.output)["sources"]["hq"]["archived"] == files, timing.output
            timings[build].append(timing)
        for onto_disk in (False, True) if kind == "file" else (False,):
            copied[onto_disk].append(files / place.rclone(place.work(), recorder, kind, onto_disk=onto_disk).wall)
    mine = timings[OURS]
    rates = {build: [files / t.wall for t in took] for build, took in timings.items()}
    cpus = {build: [t.cpu for t in took] for build, took in timings.items()}
    cpu = statistics.median(cpus[OURS])
    per, unit = (size / 1e6, "MB/s") if size > 10e6 else (1.0, "files/s")
    mine_per = statistics.median(rates[OURS]) * per
    before = ", ".join(filter(None, (_against(rates), _against(cpus, " CPU"))))
    results = []
    # What counts with us is on the disk; what is in memory only is the harder comparison.
    for onto_disk, words, limit in ((True, " until it is on the disk", 0.75), (False, "", must)):
        if not copied[onto_disk]:
            continue
        ratios = [ours / theirs for ours, theirs in zip(rates[OURS], copied[onto_disk], strict=True)]
        results.append(
            Result(
                f"{files:,} × {size / 1e6:.1f} MB → {kind} ÷ rclone{words}",
                limit,
                statistics.median(ratios),
                f"{min(ratios):.2f}–{max(ratios):.2f}",
                f"{mine_per:.0f} against {statistics.median(copied[onto_disk]) * per:.0f} {unit}",
                f"{cpu:.1f} s ({cpu / files * 1000:.2f} ms each)",
                max(t.rss for t in mine),
                before=before,
            )
        )
    return results


def ceiling(place: Place, recorder: str, files: int) -> Result:
    """The store alone, as fast as we can put the same recordings, is what no archive can exceed."""

    def ours() -> float:
        folder = place.work()
        place.config(folder, recorder, "s3")
        return files / place.backfill(folder).wall

    def theirs() -> float:
        folder = place.work()
        place.config(folder, recorder, "s3")
        found, _ = step(folder, "puts", str(place.nginx.root / recorder))
        return found["files"] / found["seconds"]

    ratio, spread = pairs(place, ours, theirs)
    return Result("S3 ÷ puts alone from memory", 0.7, ratio, spread, "whole process against the loop alone")


def naive(place: Place, recorder: str, files: int) -> Result:
    few = max(20, files // 20)

    def ours() -> float:
        folder = place.work()
        place.config(folder, recorder, "s3")
        return files / place.backfill(folder).wall

    def theirs() -> float:
        place.made += 1
        given = json.dumps({"client": place.client, "files": few, "prefix": f"naive-{place.made}/"})
        listing = f"{place.nginx.url}/{recorder}/rest/api/v1/recordings"
        found = json.loads(timed([sys.executable, str(OURS.steps), "naive", listing, given], place.folder).output)
        return found["files"] / found["seconds"]

    ratio, spread = pairs(place, ours, theirs)
    return Result("S3 ÷ a naive script", 5.0, ratio, spread, "requests and boto3, one at a time, no start-up counted")


def discovery(place: Place, rows: int) -> list[Result]:
    """Listing, then what `rebuild` makes of it."""
    place.nginx.recorder("many", rows, 0)
    builds = _builds(place)
    listed, built = ({build: [] for build in builds} for _ in range(2))
    peaks: dict[str, list[float]] = {"listed": [], "built": []}
    for _ in range(min(3, place.runs)):
        for build in builds:
            folder = place.work()
            url = place.config(folder, "many", "file", build=build)
            found, timing = step(folder, "discovery", build=build)
            listed[build].append(found["rows"] / found["seconds"])
            step(folder, "describe", build=build)
            place.config(folder, "many", "file", store=f'kind = "file"\npath = "{folder}/archive"', build=build)
            # Nothing of what went before is still to be tidied up.
            place.database.drop(url)
            place.database.execute("CHECKPOINT")
            began = place.archiver(folder, "rebuild", "--store", "main", "--json", build=build)
            built[build].append(rows / began.wall)
            if build is OURS:
                peaks["listed"].append(timing.rss)
                peaks["built"].append(began.rss)
            shutil.rmtree(folder)
    m = statistics.median
    return [
        Result(
            name, 20_000, m(rates[OURS]), f"{min(rates[OURS]):,.0f}–{max(rates[OURS]):,.0f}", told,
            rss=max(rss), before=_against(rates),
        )
        for name, rates, told, rss in (
            ("discovery, rows/s", listed, f"{rows:,} in one window", peaks["listed"]),
            ("rebuild, recordings/s", built, "whole process", peaks["built"]),
        )
    ] + [
        Result(f"discovery of {rows:,}: MB at the peak", 120, max(peaks["listed"]), "", "", ceiling=True),
    ]  # fmt: skip


def windows(place: Place, years: int) -> Result:
    """A source whose windows are empty and asked for already: how fast its past is found to need nothing."""
    place.nginx.recorder("empty", 0, 0)
    rates: dict[Build, list[float]] = {build: [] for build in _builds(place)}
    for _ in range(min(3, place.runs)):
        for build in rates:
            folder = place.work()
            place.config(folder, "empty", "file", start=f"{2024 - years}-01-01", more='lookback = "1h"', build=build)
            config = folder / "archiver.toml"
            config.write_text(config.read_text().replace('window = "1d"', 'window = "1h"'))
            place.archiver(folder, "sync", "--json", build=build)
            took = place.archiver(folder, "sync", "--json", build=build).wall
            rates[build].append(years * 365.25 * 24 / took)
    rate = rates[OURS]
    return Result(
        f"{years} years of empty hours, read before: windows/s", 20_000, statistics.median(rate),
        f"{min(rate):,.0f}–{max(rate):,.0f}", "whole process, one poll", before=_against(rates),
    )  # fmt: skip


def verify(place: Place, recorder: str, files: int, size: int) -> Result:
    folders = {build: place.work() for build in _builds(place)}
    for build, folder in folders.items():
        place.config(folder, recorder, "file", build=build)
        place.backfill(folder, build)
    mine: list[Timing] = []
    rates: dict[Build, list[float]] = {build: [] for build in folders}

    def ours() -> float:
        for build, folder in folders.items():
            took = place.archiver(folder, "verify", "--json", build=build)
            rates[build].append(1 / took.wall)
            if build is OURS:
                mine.append(took)
        return rates[OURS][-1]

    def theirs() -> float:
        command = f"find {folders[OURS]}/archive/hq -type f -print0 | xargs -0 sha256sum"
        return 1 / timed(["sh", "-c", command], folders[OURS]).wall

    ratio, spread = pairs(place, ours, theirs)
    for folder in folders.values():
        shutil.rmtree(folder)
    total = files * size / 1e6
    told = f"{total / statistics.median(t.wall for t in mine):.0f} MB/s, whole process"
    rss = max(t.rss for t in mine)
    return Result("verify ÷ sha256sum", 0.7, ratio, spread, told, rss=rss, before=_against(rates))


def two(place: Place, files: int, seconds: float) -> Result:
    """Two daemons that share one queue, each on a core of its own, against one on one core.

    They run already when the recordings appear; the rate is from the first row to the last copy.
    """
    place.nginx.recorder("shared", files, seconds, begin=datetime.now(UTC) - timedelta(hours=6))
    listing = place.nginx.root / "shared/list.json"
    rows = listing.read_text()
    cores = sorted(os.sched_getaffinity(0))

    def run(processes: int, build: Build = OURS) -> float:
        folders = [place.work() for _ in range(processes)]
        store = place.store("file", folders[0])
        database: str | None = None
        listing.write_text("[]")
        for folder in folders:
            start = f"{datetime.now(UTC) - timedelta(hours=8):%Y-%m-%dT%H:%M:%SZ}"
            database = place.config(
                folder, "shared", "file", database=database, store=store, start=start, more='poll = "20s"', build=build
            )
        os.sync()
        command = [str(build.bin / "archiver"), "--log-level", "error", "run"]
        running = []
        for number, folder in enumerate(folders):
            core = cores[number % len(cores)]
            how = {"stdout": subprocess.DEVNULL, "preexec_fn": lambda core=core: os.sched_setaffinity(0, {core})}
            running.append(subprocess.Popen(command, cwd=folder, **how))
        try:
            time.sleep(5)
            new = listing.with_suffix(".new")
            new.write_text(rows)
            new.rename(listing)
            deadline = time.monotonic() + 600
            while place.database.value("SELECT count(*) FROM media WHERE state = 'archived'", database) < files:
                assert time.monotonic() < deadline
                # Asking takes from two daemons, which leave no core idle, and nothing from one.
                time.sleep(2)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        took = "SELECT (SELECT max(archived_at) FROM media) - (SELECT min(first_listed_at) FROM recordings)"
        return files / place.database.value(took, database).total_seconds()

    both: dict[Build, list[float]] = {build: [] for build in _builds(place)}

    def ours() -> float:
        for build, rates in both.items():
            rates.append(run(2, build))
        return both[OURS][-1]

    ratio, spread = pairs(place, ours, lambda: run(1))
    told = "from the first row to the last copy"
    return Result("two daemons ÷ one (file), a core each", 1.4, ratio, spread, told, before=_against(both))


def starts(place: Place, recorder: str) -> list[Result]:
    folders = {build: place.work() for build in _builds(place)}
    for build, folder in folders.items():
        place.config(folder, recorder, "file", build=build)
    results = []
    for command, must in ((("--version",), 0.3), (("status", "--json"), 0.8)):
        took: dict[Build, list[float]] = {build: [] for build in folders}
        for _ in range(max(5, place.runs)):
            for build, folder in folders.items():
                took[build].append(place.archiver(folder, *command, build=build).wall)
        mine = took[OURS]
        results.append(
            Result(
                f"{command[0]}, s",
                must,
                statistics.median(mine),
                f"{min(mine):.2f}–{max(mine):.2f}",
                "",
                ceiling=True,
                before=_against(took),
            )
        )
    return results


_FILL = """
SET maintenance_work_mem = '512MB';
SET synchronous_commit = off;
CREATE TEMP TABLE defined AS SELECT indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename IN ('recordings', 'media', 'copies') AND indexname <> 'copies_pkey';
ALTER TABLE recordings DISABLE TRIGGER USER;
ALTER TABLE recordings DROP CONSTRAINT recordings_pkey;
ALTER TABLE media DROP CONSTRAINT media_pkey;
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT indexname FROM defined LOOP EXECUTE 'DROP INDEX IF EXISTS ' || name; END LOOP; END $$;
INSERT INTO sources (name, kind, start_at, covered)
VALUES ('hq', 'chronicall', '2020-01-01', '{[2020-01-01, 2100-01-01)}');
INSERT INTO recordings (source, recording_id, key_at, started_at, ended_at, duration, direction, caller, callee, digest,
    undescribed, first_listed_at, by_window)
SELECT 'hq', md5(n::text), at, at, at + interval '1 minute', interval '1 minute', 'inbound',
    '+1' || lpad((n * 7919 %% (%(count)d / 20))::text, 10, '0'), '+14155551234', '\\x00', false, at, true
FROM (SELECT n, timestamptz '2023-01-01' + n * 360.0 / %(count)d * interval '1 day' AS at
      FROM generate_series(1::bigint, %(count)d) n) t;
INSERT INTO media (source, recording_id, media_id, state, due_at, stores, held, size, sha256, archived_at)
SELECT 'hq', md5(n::text), 'audio', CASE WHEN old THEN 'archived' ELSE 'pending' END, '2024-01-01', '{main}',
    CASE WHEN old THEN '{main}'::text[] ELSE '{}' END, CASE WHEN old THEN 200120 END,
    CASE WHEN old THEN repeat(md5(n::text), 2) END, CASE WHEN old THEN now() END
FROM (SELECT n, n %% 1000 > 9 AS old FROM generate_series(1::bigint, %(count)d) n) t;
INSERT INTO copies (store, key, source, recording_id, media_id, size, sha256, archived_at)
SELECT 'main', 'hq/2023/' || to_char(n, 'FM000000000') || '/' || md5(n::text), 'hq', md5(n::text), 'audio', 200120,
    repeat(md5(n::text), 2), now()
FROM generate_series(1::bigint, %(count)d) n WHERE n %% 1000 > 9;
ALTER TABLE recordings ADD PRIMARY KEY (source, recording_id);
ALTER TABLE media ADD PRIMARY KEY (source, recording_id, media_id);
DO $$ DECLARE made text; BEGIN
    FOR made IN SELECT indexdef FROM defined WHERE indexname NOT IN ('recordings_pkey', 'media_pkey')
    LOOP EXECUTE made; END LOOP; END $$;
"""


def growth(place: Place, small: int, large: int) -> list[Result]:
    """The everyday statements on a large catalog against a small one.

    A hundredth of the media waits, a number called 20 times; what is listed is one number's calls since some day.
    """
    place.nginx.recorder("grown", 0, 0)
    folders = {}
    for count in (small, large):
        folders[count] = place.work()
        url = place.config(folders[count], "grown", "file")
        for statement in (_FILL % {"count": count}, "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"):
            place.database.execute(statement, url)
    tries = {count: [step(folder, "catalog")[0] for _ in range(3)] for count, folder in folders.items()}
    found = {n: {name: statistics.median(t[name] for t in told) for name in told[0]} for n, told in tries.items()}
    return [
        Result(
            f"{name} at {large:,} ÷ {small:,} recordings", 1.5, found[large][name] / found[small][name], "",
            f"{found[large][name]:.1f} against {found[small][name]:.1f} ms", ceiling=True,
        )
        for name in found[small]
    ]  # fmt: skip


def quiet(place: Place, sources: int, seconds: float) -> list[Result]:
    """A daemon with many sources in which nothing happens."""
    place.nginx.recorder("quiet", 0, 0)
    folder = place.work()
    one = f'kind = "chronicall"\nbase_url = "{place.nginx.url}/quiet"\ntoken = "bench"\npoll = "1m"\nwindow = "1d"\n'
    place.config(folder, "quiet", "file", more="\n".join(f"[sources.s{n}]\n{one}" for n in range(sources)))
    with (folder / "log").open("w") as said:
        command = [str(BIN / "archiver"), "--log-level", "error", "run"]
        daemon = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
    try:
        time.sleep(90)
        before, began = cpu_of(daemon.pid), time.monotonic()
        time.sleep(seconds)
        share, rss = (cpu_of(daemon.pid) - before) / (time.monotonic() - began) * 100, memory_of(daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait()
    return [
        Result(f"{sources:,} quiet sources a minute: % of a core", 20, share, "", "", rss=rss, ceiling=True),
        Result(f"{sources:,} quiet sources: MB", 400, rss, "", "", rss=rss, ceiling=True),
    ]
