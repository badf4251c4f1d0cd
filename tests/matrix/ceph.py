"""Ceph's S3 gateway (RGW) over a cluster of one monitor and one OSD, from Debian's packages.

The monitor and the OSD stay while the gateway is stopped and started. Nothing of it leaves its folder.
"""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from tests.matrix.others import PASSWORD, USERNAME, S3Bucket, program, told
from tests.servers import Server, free_ports

#: Who may what, as the monitor learns it.
_ACCOUNTS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
}


class _Part(Server):
    """A daemon of the cluster. ``ready``: a command that says so."""

    def __init__(self, name: str, folder: Path, command: list[str], ready: list[str], said: str) -> None:
        super().__init__(name, folder)
        self._line, self._asked, self._said = command, ready, said

    def _command(self) -> list[str]:
        return self._line

    def _is_ready(self) -> bool:
        done = subprocess.run(self._asked, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder)
        return self._said in done.stdout


class Ceph(S3Bucket):
    name = "ceph"
    locks = True
    checked = ("verifies SHA-256", "never overwrites", "uploads in parts work")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._conf = folder / "ceph.conf"
        self._parts: list[_Part] = []

    @staticmethod
    def version() -> str:
        return "Ceph RGW " + told("radosgw", "--version").split()[2]

    def start(self, patience: float = 120.0) -> None:
        if not self._parts:
            self._make()
        super().start(patience)

    def kill(self) -> None:
        super().kill()
        for part in reversed(self._parts):
            part.kill()

    def _command(self) -> list[str]:
        return [*self._of("radosgw"), "-f", "-n", "client.rgw"]

    def _of(self, name: str) -> list[str]:
        return [program(name), "-c", str(self._conf)]

    def _make(self) -> None:
        (port,) = free_ports(1)
        monitor, cluster, disk = f"[v2:127.0.0.1:{port}/0]", str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        self._conf.write_text(f"""
[global]
fsid = {cluster}
mon host = {monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
mon data = {self.folder}/mon
osd data = {self.folder}/osd
rgw data = {self.folder}/rgw
keyring = {self.folder}/keyring
run dir = {self.folder}
admin socket = {self.folder}/$name.asok
log file = {self.folder}/$name.ceph.log
mon cluster log file = {self.folder}/cluster.log
mon allow pool size one = true
mon data avail warn = 1
mon data avail crit = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd memory target = 1073741824
bluestore block size = 4294967296
bluestore block wal path =
bluestore block db path =
rgw frontends = beast endpoint=127.0.0.1:{self._port}
""")
        for who, may in _ACCOUNTS.items():
            caps = [word for where, what in may.items() for word in ("--cap", where, what)]
            create = [] if (self.folder / "keyring").exists() else ["-C"]
            self._run("ceph-authtool", *create, "keyring", "--gen-key", "-n", who, *caps)
        self._run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", monitor, "monmap")
        self._run(*self._of("ceph-mon"), "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        ask = [*self._of("ceph"), "--connect-timeout", "5"]
        self._part("ceph-mon", "a", [*ask, "mon", "stat"], "quorum 0 a")
        self._run(*ask, "osd", "new", disk)
        self._run(*self._of("ceph-osd"), "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._part("ceph-osd", "0", [*ask, "osd", "stat"], "1 up")
        self._run(
            *self._of("radosgw-admin"), "user", "create", "--uid", "archiver", "--display-name", "archiver",
            "--access-key", USERNAME, "--secret", PASSWORD,
        )  # fmt: skip

    def _part(self, name: str, number: str, ready: list[str], said: str) -> None:
        part = _Part(name, self.folder, [*self._of(name), "-i", number, "-f"], ready, said)
        self._parts.append(part)
        part.start()

    def _run(self, name: str, *arguments: str) -> None:
        command = [program(name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{Path(name).name} ended with {done.returncode}: {done.stderr[-1000:]}")
