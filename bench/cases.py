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

from .lab import BIN, Place, Timing, cpu_of, memory_of, timed

STEPS = str(Path(__file__).with_name("steps.py"))


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

    @property
    def ok(self) -> bool:
        return self.reached <= self.must if self.ceiling else self.reached >= self.must


def pairs(place: Place, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, str]:
    """Runs of both in turn: the median of ours ÷ theirs (rates), and its spread."""
    ratios = [ours() / theirs() for _ in range(place.runs)]
    return statistics.median(ratios), f"{min(ratios):.2f}–{max(ratios):.2f}"


def step(folder: Path, name: str, argument: str = "") -> tuple[dict[str, float], Timing]:
    timing = timed([sys.executable, STEPS, name, argument], folder)
    return json.loads(timing.output), timing


def copying(place: Place, kind: str, recorder: str, files: int, size: int, must: float) -> Result:
    """A whole `archiver backfill` of a fresh archive against `rclone copy` of the same files."""
    mine: list[Timing] = []
    others: list[float] = []

    def ours() -> float:
        folder = place.work()
        place.config(folder, recorder, kind)
        timing = place.backfill(folder)
        assert json.loads(timing.output)["sources"]["hq"]["archived"] == files, timing.output
        mine.append(timing)
        return files / timing.wall

    def theirs() -> float:
        folder = place.work()
        others.append(files / place.rclone(folder, recorder, kind).wall)
        return others[-1]

    ratio, spread = pairs(place, ours, theirs)
    rate = files / statistics.median(t.wall for t in mine)
    per = size / 1e6 if size > 10e6 else 1.0
    unit = "MB/s" if size > 10e6 else "files/s"
    cpu = statistics.median(t.cpu for t in mine)
    return Result(
        f"{files:,} × {size / 1e6:.1f} MB → {kind} ÷ rclone",
        must,
        ratio,
        spread,
        f"{rate * per:.0f} against {statistics.median(others) * per:.0f} {unit}",
        f"{cpu:.1f} s ({cpu / files * 1000:.2f} ms each)",
        max(t.rss for t in mine),
    )


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
        found = json.loads(timed([sys.executable, STEPS, "naive", listing, given], place.folder).output)
        return found["files"] / found["seconds"]

    ratio, spread = pairs(place, ours, theirs)
    return Result("S3 ÷ a naive script", 5.0, ratio, spread, "requests and boto3, one at a time, no start-up counted")


def discovery(place: Place, rows: int) -> list[Result]:
    """Listing, then what `rebuild` makes of it."""
    place.nginx.recorder("many", rows, 0)
    listed, built, timings = [], [], []
    for _ in range(min(3, place.runs)):
        folder = place.work()
        url = place.config(folder, "many", "file")
        found, timing = step(folder, "discovery")
        listed.append(found["rows"] / found["seconds"])
        timings.append(timing)
        step(folder, "describe")
        place.config(folder, "many", "file", store=f'kind = "file"\npath = "{folder}/archive"')
        # Nothing of what went before is still to be tidied up.
        place.database.drop(url)
        place.database.execute("CHECKPOINT")
        began = place.archiver(folder, "rebuild", "--store", "main", "--json")
        built.append(rows / began.wall)
        timings.append(began)
        shutil.rmtree(folder)
    rss = max(t.rss for t in timings)
    m = statistics.median
    return [
        Result(name, 20_000, m(rates), f"{min(rates):,.0f}–{max(rates):,.0f}", told, rss=rss)
        for name, rates, told in (
            ("discovery, rows/s", listed, f"{rows:,} in one window"),
            ("rebuild, recordings/s", built, "whole process"),
        )
    ]


def verify(place: Place, recorder: str, files: int, size: int) -> Result:
    folder = place.work()
    place.config(folder, recorder, "file")
    place.backfill(folder)
    mine: list[Timing] = []

    def ours() -> float:
        mine.append(place.archiver(folder, "verify", "--json"))
        return 1 / mine[-1].wall

    def theirs() -> float:
        command = f"find {folder}/archive/hq -type f -print0 | xargs -0 sha256sum"
        return 1 / timed(["sh", "-c", command], folder).wall

    ratio, spread = pairs(place, ours, theirs)
    shutil.rmtree(folder)
    total = files * size / 1e6
    told = f"{total / statistics.median(t.wall for t in mine):.0f} MB/s, whole process"
    return Result("verify ÷ sha256sum", 0.7, ratio, spread, told, rss=max(t.rss for t in mine))


def two(place: Place, files: int, seconds: float) -> Result:
    """Two daemons that share one queue, each on a core of its own, against one on one core.

    They run already when the recordings appear; the rate is from the first row to the last copy.
    """
    place.nginx.recorder("shared", files, seconds, begin=datetime.now(UTC) - timedelta(hours=6))
    listing = place.nginx.root / "shared/list.json"
    rows = listing.read_text()
    cores = sorted(os.sched_getaffinity(0))

    def run(processes: int) -> float:
        folders = [place.work() for _ in range(processes)]
        store = place.store("file", folders[0])
        database: str | None = None
        listing.write_text("[]")
        for folder in folders:
            start = f"{datetime.now(UTC) - timedelta(hours=8):%Y-%m-%dT%H:%M:%SZ}"
            database = place.config(
                folder, "shared", "file", database=database, store=store, start=start, more='poll = "20s"'
            )
        os.sync()
        command = [str(BIN / "archiver"), "--log-level", "error", "run"]
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

    ratio, spread = pairs(place, lambda: run(2), lambda: run(1))
    return Result("two daemons ÷ one (file), a core each", 1.3, ratio, spread, "from the first row to the last copy")


def starts(place: Place, recorder: str) -> list[Result]:
    folder = place.work()
    place.config(folder, recorder, "file")
    version = [timed([str(BIN / "archiver"), "--version"], folder).wall for _ in range(max(5, place.runs))]
    status = [place.archiver(folder, "status", "--json").wall for _ in range(max(5, place.runs))]
    return [
        Result(f"{name}, s", must, statistics.median(took), f"{min(took):.2f}–{max(took):.2f}", "", ceiling=True)
        for name, must, took in (("--version", 0.3, version), ("status", 0.8, status))
    ]


_FILL = """
SET maintenance_work_mem = '512MB';
SET synchronous_commit = off;
CREATE TEMP TABLE defined AS SELECT indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename IN ('recordings', 'media', 'copies') AND indexname <> 'copies_pkey';
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
