"""The units as systemd reads them, and what `make install` puts where. tests/systemd/boot.py runs them for real."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from archiver.simulators.chronicall import ChronicallSimulator
from tests import commands

ROOT = Path(__file__).resolve().parent.parent
UNITS = sorted((ROOT / "systemd").glob("*.service"))
#: The command that the units name is there on hosts only.
COMMAND = "/opt/archiver/current/bin/archiver"
#: Directives that systemd of Debian 12 (252) does not know.
NEWER = {"RestartSteps", "RestartMaxDelaySec"}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}
    line = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=env, check=False, timeout=100)


@pytest.fixture(scope="module")
def units(tmp_path_factory) -> Path:
    """The units with a command that exists here."""
    folder = tmp_path_factory.mktemp("units")
    for unit in [*UNITS, *(ROOT / "systemd").glob("*.timer")]:
        text = unit.read_text("utf-8")
        assert unit.suffix == ".timer" or COMMAND in text
        (folder / unit.name).write_text(text.replace(COMMAND, "/bin/true"), "utf-8")
    return folder


def directives(unit: Path) -> list[str]:
    return [line for line in unit.read_text("utf-8").splitlines() if re.match(r"[A-Za-z]+=", line)]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_exposes_next_to_nothing_of_its_host(unit):
    said = analyze("security", "--offline=true", str(unit))
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", said.stdout)
    assert found, said
    assert float(found[1]) <= 1.5, said.stdout


def test_systemd_finds_nothing_to_say_about_the_units(units):
    said = analyze("verify", "--man=no", *sorted(str(unit) for unit in units.iterdir()))
    # Other units of the machine may be odd; ours are not.
    ours = [line for line in (said.stdout + said.stderr).splitlines() if "archiver" in line]
    assert not ours
    assert {unit.name for unit in units.iterdir()} == {
        "archiver.service",
        "archiver-backfill@.service",
        "archiver-verify.service",
        "archiver-verify.timer",
        "archiver-web.service",
    }


def test_a_misspelt_directive_would_be_found(units, tmp_path):
    spoilt = tmp_path / "archiver-spoilt.service"
    spoilt.write_text((units / "archiver.service").read_text().replace("Restart=always", "Restrat=always"))
    assert "Restrat" in analyze("verify", "--man=no", str(spoilt)).stderr


def test_all_units_share_one_sandbox():
    blocks = {
        unit.read_text("utf-8").partition("# -- the same in every unit")[2].partition("\n[")[0].strip()
        for unit in UNITS
    }
    assert len(blocks) == 1
    assert "SystemCallFilter" in blocks.pop()


def test_what_older_systemd_does_not_know_stands_in_the_drop_in_alone():
    names = {line.partition("=")[0] for unit in UNITS for line in directives(unit)}
    assert not names & NEWER
    assert {line.partition("=")[0] for line in directives(ROOT / "systemd/archiver-backoff.conf")} == NEWER


#: Directives for which systemd makes a mount, user or host name namespace (systemd.exec(5), "Sandboxing").
NAMESPACED = {
    "PrivateDevices", "PrivateMounts", "PrivateTmp", "PrivateUsers", "ProcSubset", "ProtectControlGroups",
    "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "ProtectProc", "ProtectSystem",
}  # fmt: skip


def test_the_drop_in_for_containers_leaves_out_what_needs_a_namespace_and_nothing_else(units, tmp_path):
    loosened = dict(line.split("=") for line in directives(ROOT / "systemd/archiver-container.conf"))
    assert set(loosened) == {line.partition("=")[0] for unit in UNITS for line in directives(unit)} & NAMESPACED
    assert set(loosened.values()) == {"no", "default", "all"}
    unit = tmp_path / "archiver.service"
    unit.write_text((units / unit.name).read_text())
    (tmp_path / "archiver.service.d").mkdir()
    (tmp_path / "archiver.service.d/container.conf").write_text(
        (ROOT / "systemd/archiver-container.conf").read_text("utf-8")
    )
    said = analyze("verify", "--man=no", str(unit))
    assert not [line for line in (said.stdout + said.stderr).splitlines() if "archiver" in line]


def test_the_pages_can_have_a_user_of_their_own_who_gets_nothing_of_the_daemons(units, tmp_path):
    unit = tmp_path / "archiver-web.service"
    unit.write_text((units / unit.name).read_text())
    (tmp_path / "archiver-web.service.d").mkdir()
    drop_in = ROOT / "systemd/archiver-web-user.conf"
    (tmp_path / "archiver-web.service.d/user.conf").write_text(drop_in.read_text("utf-8"))
    said = analyze("verify", "--man=no", str(unit))
    assert not [line for line in (said.stdout + said.stderr).splitlines() if "archiver" in line]
    # systemd gives a state directory to the unit's user, with all that lies in it: the daemon's is taken off the list.
    told = directives(drop_in)
    assert told == ["User=archiver-web", "Group=archiver-web", "StateDirectory=", "StateDirectory=archiver/web"]
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    subprocess.run(["systemd-sysusers", f"--root={root}", str(ROOT / "systemd/archiver.sysusers")], check=True)
    groups = dict(line.split(":", 1) for line in (root / "etc/group").read_text().splitlines())
    assert groups["archiver"].endswith(":archiver-web")
    assert groups["archiver-web"].endswith(":")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_waits_for_the_clock_to_be_right_but_does_not_pull_that_in(unit):
    after = [line for line in directives(unit) if line.startswith("After=")]
    assert ["time-sync.target" in line for line in after] == [True]
    assert not [line for line in directives(unit) if line.startswith("Wants=") and "time-sync" in line]


# -- make install ----------------------------------------------------------------------------------------------------


def install(what: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "DESTDIR": str(folder), **env}
    line = ["sh", "packaging/install.sh", what]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100)


def test_install_writes_units_that_name_its_prefix_and_a_config_that_loads(tmp_path, monkeypatch):
    from archiver.settings.config import load

    assert install("units", tmp_path, PREFIX="/srv/archiver").returncode == 0
    placed = tmp_path / "usr/lib/systemd/system"
    for unit in UNITS:
        commands = re.findall(r"^Exec\w+=(\S+)", (placed / unit.name).read_text("utf-8"), re.MULTILINE)
        assert {c for c in commands if "archiver" in c} == {"/srv/archiver/current/bin/archiver"}
    assert "/srv/archiver/current/bin/archiver" in (tmp_path / "usr/local/bin/archiver").read_text("utf-8")
    assert os.access(tmp_path / "usr/local/bin/archiver", os.X_OK)
    config = tmp_path / "etc/archiver/archiver.toml"
    assert config.stat().st_mode & 0o777 == 0o640
    monkeypatch.setenv("CHRONICALL_TOKEN", "secret")
    loaded = load(config)
    # The service and whoever calls `archiver` by hand must come to the same place.
    assert loaded.data_dir == Path("/var/lib/archiver")
    assert str(loaded.stores["disk"].options.path) == "/var/lib/archiver/calls"


def test_install_leaves_an_administrators_config_alone_and_uninstall_too(tmp_path):
    config = tmp_path / "etc/archiver/archiver.toml"
    config.parent.mkdir(parents=True)
    config.write_text("# mine\n")
    assert install("units", tmp_path).returncode == 0
    assert config.read_text() == "# mine\n"
    assert (config.parent / "archiver.toml.example").is_file()
    assert install("uninstall", tmp_path).returncode == 0
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["etc/archiver/archiver.toml"]


def test_install_refuses_a_python_that_the_service_may_not_run(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *realpath*) echo /root/.pyenv/bin/python3.12 ;; esac\n')
    python.chmod(0o755)
    refused = install("install", tmp_path, PYTHON=str(python))
    assert refused.returncode == 2
    assert "make install PYTHON=/usr/bin/python3" in refused.stderr


# -- sd_notify ---------------------------------------------------------------------------------------------------------


class Init:
    """What systemd hears."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def hears(self, word: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard += self._socket.recv(1 << 16).decode().splitlines()
        return any(line.startswith(word) for line in self.heard)

    def close(self) -> None:
        self._socket.close()


async def test_systemd_hears_ready_then_stopping(tmp_path, database):
    # As systemd has it in a container; on a host it is a path.
    init = Init(f"@archiver-test-{os.getpid()}")
    async with commands.place(tmp_path, database) as place:
        await place.add("hq", ChronicallSimulator())
        daemon = await place.start("run", env={"NOTIFY_SOCKET": init.address})
        await commands.until(lambda: init.hears("READY=1") or daemon.over)
        assert not init.hears("STOPPING=1")
        assert (await daemon.end(signal.SIGTERM)).code == 0
        assert init.hears("STOPPING=1")
    init.close()


@pytest.mark.parametrize("lacking", ["database", "store", "config"])
async def test_systemd_never_hears_ready_while_something_is_missing(lacking, tmp_path, database):
    init = Init(str(tmp_path / "notify"))
    async with commands.place(tmp_path, database) as place:
        await place.add("hq", ChronicallSimulator())
        match lacking:
            case "database":
                place.config["database"]["url"] = "postgresql://nobody@127.0.0.1:1/none"
            case "store":
                place.config["stores"]["disk"]["path"] = "no/such/folder/store"
            case "config":
                place.config["sources"]["hq"]["pol"] = "5m"
        # RestartPreventExitStatus=2 in the unit: only a wrong config ends it for good.
        code = 2 if lacking == "config" else 3
        await place.run("run", code=code, env={"NOTIFY_SOCKET": init.address})
        assert not init.hears("READY=1")
    init.close()
