"""`make systemd-test`: the service under a real systemd, whatever this machine's init is.

Boots a Debian (debootstrap, kept for the next time) with systemd-nspawn on a throw-away overlay, and does there what
an administrator does: install, edit, reload, backfill, verify, kill, freeze, stop, upgrade, go back, uninstall. Prints
what was typed and what was seen; ends with an AssertionError at the first thing that is not as documented. Needs root,
the packages debootstrap and systemd-container, and `make wheels` before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from tests.servers import free_ports

PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,make,ca-certificates,procps"
#: The machine may be busy.
PATIENCE = 180.0
#: A host with cgroups of version 1 gets a mount namespace in which there are those of version 2.
BOOT = """
mount --make-rprivate /
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q --register=no --keep-unit -b \\
    -D "$2/root" -M archiver-test --bind-ro="$3:/usr/src/archiver" --console=passive
"""


class Machine:
    """A booted Debian."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    async def run(self, command: str, *, code: int | None = 0, show: bool = True, stdin: str = "") -> str:
        """What root's shell says to it; fails where it ends with another code."""
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        clean += ["SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0", "HOME=/root", "COLUMNS=140"]
        enter = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-p", "-n", "--"]
        process = await asyncio.create_subprocess_exec(
            *enter, *clean, "sh", "-c", f"cd; {command}",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said = (await process.communicate(stdin.encode()))[0].decode("utf-8", "replace").rstrip()
        if show:
            print(f"# {command}")
            if said:
                print(said)
            if process.returncode:
                print(f"(exit code {process.returncode})")
            print(flush=True)
        assert code is None or process.returncode == code, f"{command} ended with {process.returncode}:\n{said}"
        return said

    async def write(self, path: str, text: str) -> None:
        await self.run(f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text, show=False)

    async def get(self, name: str, unit: str = "archiver") -> str:
        return await self.run(f"systemctl show -P {name} {unit}", show=False)

    async def until(self, what: str, is_so: Any, patience: float = PATIENCE) -> None:
        end = time.monotonic() + patience
        while not await is_so():
            if time.monotonic() > end:
                print(await self.run("systemctl status archiver; journalctl -n 50 -o cat", code=None, show=False))
                raise AssertionError(f"not within {patience:.0f} s: {what}")
            await asyncio.sleep(0.5)

    async def active(self) -> bool:
        return await self.get("ActiveState") == "active"

    async def archived(self, source: str) -> int:
        told = json.loads(await self.run("archiver status --json 2>/dev/null", code=None, show=False) or "{}")
        return int(told.get("sources", {}).get(source, {}).get("archived", 0))


def say(text: str) -> None:
    print(f"\n=== {text}\n", flush=True)


@contextlib.asynccontextmanager
async def booted(debian: Path, work: Path) -> AsyncIterator[Machine]:
    for name in ("upper", "work", "root"):
        (work / name).mkdir()
    with (work / "console").open("wb") as console:
        nspawn = await asyncio.create_subprocess_exec(
            "unshare", "-m", "sh", "-ec", BOOT, "sh", str(debian), str(work), str(ROOT),
            stdin=asyncio.subprocess.DEVNULL, stdout=console, stderr=console,
        )  # fmt: skip
        try:
            children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
            end = time.monotonic() + PATIENCE
            while True:
                assert nspawn.returncode is None, (work / "console").read_text(errors="replace")
                assert time.monotonic() < end, (work / "console").read_text(errors="replace")
                inits = [int(c) for c in children.read_text().split() if _name(int(c)) == "systemd"]
                machine = Machine(inits[0]) if inits else None
                state = await machine.run("systemctl is-system-running", code=None, show=False) if machine else ""
                if machine is not None and state in {"running", "degraded"}:
                    break
                await asyncio.sleep(0.5)
            yield machine
        finally:
            with contextlib.suppress(ProcessLookupError):
                nspawn.terminate()
            try:
                await asyncio.wait_for(nspawn.wait(), 60)
            except TimeoutError:
                nspawn.kill()
                await nspawn.wait()


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Story:
    """An administrator's day."""

    def __init__(self, machine: Machine) -> None:
        self.m = machine
        self.hq, self.milan = ChronicallSimulator(seed=1), ImagicleSimulator(seed=2)
        self.port = free_ports(1)[0]

    def config(self, *sources: str) -> str:
        text = f'data_dir = "/var/lib/archiver"\n[http]\nlisten = "127.0.0.1:{self.port}"\n'
        for store in ("calls", "spare"):
            name = "disk" if store == "calls" else store
            text += f'[stores.{name}]\nkind = "file"\npath = "/var/lib/archiver/{store}"\n'
        for name in sources:
            simulator = {"hq": self.hq, "milan": self.milan}[name]
            options = {**simulator.options(), "poll": "2s", "settle": "1s", "lookback": "10m"}
            secret = "token" if name == "hq" else "password"
            options.pop(secret)
            text += f"\n[sources.{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in options.items())
            # One secret comes from systemd, the other one from a file.
            text += f"{secret} = " + ('{ credential = "hq" }\n' if name == "hq" else '{ file = "milan.password" }\n')
            text += 'retry = { first = "1s" }\n'
        return text

    async def edit(self, *sources: str, broken: str = "") -> None:
        await self.m.write("/etc/archiver/archiver.toml", self.config(*sources) + broken)
        print(f"# editor /etc/archiver/archiver.toml   ({', '.join(sources)}{', a mistake' if broken else ''})\n")

    async def call(self, name: str) -> None:
        """A call has just ended; wait until it is archived."""
        simulator = {"hq": self.hq, "milan": self.milan}[name]
        simulator.add_call(simulator.clock.now() - timedelta(seconds=4), timedelta(seconds=2))
        wanted = sum(len(e.audio) for e in simulator.truth().values())

        async def archived() -> bool:
            return await self.m.archived(name) >= wanted

        await self.m.until(f"the new call of {name} is archived", archived)
        print(f"(a call ended at {name}: {wanted} of {wanted} archived)\n")

    async def status(self) -> str:
        return await self.m.run("systemctl status archiver | cat", code=None)

    async def journal(self, since: str, holds: str = "") -> str:
        """What the daemon and systemd said since then; waits for what must be there."""
        show = f"journalctl -q -o cat -u archiver --since '{since}'"

        async def there() -> bool:
            return holds in await self.m.run(show, code=None, show=False)

        await self.m.until(f"the journal holds {holds!r}", there)
        return await self.m.run(f"{show} | grep -v poll.done | tail -n 25")

    async def now(self) -> str:
        await asyncio.sleep(1.1)  # the journal is asked by the second
        return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")

    # -- the day -------------------------------------------------------------------------------------------------------

    async def install(self) -> None:
        say("install")
        await self.m.run("systemctl --version | head -1")
        await self.m.run("cd /usr/src/archiver && make -s install")
        await self.m.run("ls -ld /etc/archiver /etc/archiver/* /var/lib/archiver /opt/archiver/*")
        assert await self.m.run("systemd-analyze verify --man=no /usr/lib/systemd/system/archiver*.service") == ""
        await self.m.run("systemd-analyze security archiver | tail -n 1")
        await self.m.run("systemctl start archiver", code=1)
        await self.m.until("a config with a mistake ends it", self._failed)
        await self.journal("today", "archiver.toml")
        assert await self.m.get("ExecMainStatus") == "2"
        assert await self.m.get("NRestarts") == "0", "a config error is not tried again"

    async def _failed(self) -> bool:
        return await self.m.get("ActiveState") == "failed"

    async def begin(self) -> None:
        say("edit the config, start")
        await self.m.write("/etc/archiver/credentials/hq", self.hq.token + "\n")
        await self.m.write("/etc/archiver/milan.password", self.milan.password + "\n")
        await self.m.run("chgrp archiver /etc/archiver/milan.password && chmod 640 /etc/archiver/milan.password")
        await self.m.run("chgrp archiver /etc/archiver/credentials/hq && chmod 640 /etc/archiver/credentials/hq")
        # The test can't wait two minutes for the watchdog.
        drop_in = "[Service]\nLoadCredential=hq:/etc/archiver/credentials/hq\n"
        for unit, more in (("archiver", "WatchdogSec=20\n"), ("archiver-backfill@", ""), ("archiver-verify", "")):
            await self.m.write(f"/etc/systemd/system/{unit}.service.d/local.conf", drop_in + more)
        await self.m.run("systemctl daemon-reload")
        await self.edit("hq")
        await self.m.run("archiver check")
        began = await self.now()
        await self.m.run("systemctl enable --now archiver.service archiver-verify.timer")
        assert await self.m.active()
        await self.call("hq")
        await self.status()
        await self.journal(began, "daemon.ready")
        search = "journalctl -q -o cat -u archiver -p info ARCHIVER_EVENT=recording.archived ARCHIVER_SOURCE=hq"

        async def found() -> bool:
            return '"recording.archived"' in await self.m.run(search, code=None, show=False)

        await self.m.until("the journal can be searched by field", found)
        await self.m.run(search)
        assert await self.m.run(f"{search} ARCHIVER_STORE=none", code=None) == ""
        await self.m.run("archiver status")
        assert "postgres" in await self.m.run("pgrep -u archiver -l | sort -k2 | uniq -c -f1 | head", code=None)

    async def reload(self) -> None:
        say("edit the config, reload")
        pid = await self.m.get("MainPID")
        began = await self.now()
        await self.edit("hq", "milan")
        await self.m.run("systemctl reload archiver")
        await self.call("milan")
        await self.status()
        await self.journal(began, "milan")
        say("a config with a mistake: the old one stays, and the reload says why")
        began = await self.now()
        await self.edit("hq", "milan", broken='pol = "5m"\n')
        await self.m.run("systemctl reload archiver", code=1)
        await self.journal(began, "pol")
        await self.edit("hq", "milan")
        await self.call("hq")
        assert await self.m.get("MainPID") == pid, "all of that by one process"

    async def one_shots(self) -> None:
        say("history, once")
        await self.m.run("systemctl start archiver-backfill@none", code=1)
        day = datetime(2024, 5, 17, tzinfo=UTC)
        self.hq.add_calls(day, day + timedelta(days=1), 20)
        wanted = "SOURCE=hq\nFROM=2024-05-17\nTO=2024-05-18\nOPTIONS=--wait 1m\n"
        await self.m.write("/etc/archiver/backfill/hq-may.conf", wanted)
        await self.m.run("cat /etc/archiver/backfill/hq-may.conf")
        await self.m.run("systemctl start --wait archiver-backfill@hq-may")
        await self.m.run("systemctl status archiver-backfill@hq-may | cat", code=None)
        await self.call("hq")
        say("read back")
        await self.m.run("systemctl start archiver-verify")
        await self.m.run("journalctl -q -o cat -u archiver-verify | tail -n 8")
        await self.m.run("systemctl list-timers archiver-verify.timer | head -2")
        assert await self.m.active()

    async def kill(self) -> None:
        say("kill -9")
        began, pid = await self.now(), await self.m.get("MainPID")
        await self.m.run(f"kill -9 {pid}")
        await self._restarted(pid)
        await self.call("hq")
        await self.status()
        await self.journal(began, "daemon.ready")
        say("it stands still (SIGSTOP): the watchdog ends it")
        began, pid = await self.now(), await self.m.get("MainPID")
        await self.m.run(f"kill -STOP {pid}")
        await self._restarted(pid)
        await self.call("hq")
        await self.status()
        await self.journal(began, "daemon.ready")
        say("its database is killed")
        pid = await self.m.get("MainPID")
        await self.m.run("kill -9 $(head -1 /var/lib/archiver/postgres/pgdata/postmaster.pid)")
        await self.call("hq")
        assert await self.m.get("MainPID") == pid

    async def _restarted(self, pid: str) -> None:
        async def so() -> bool:
            return await self.m.active() and await self.m.get("MainPID") != pid

        await self.m.until("systemd starts it again", so)

    async def stop(self) -> None:
        say("restart, stop")
        began = await self.now()
        await self.m.run("systemctl restart archiver")
        await self.call("hq")
        started = time.monotonic()
        await self.m.run("systemctl stop archiver")
        assert time.monotonic() - started < 60
        await self.status()
        await self.journal(began, "daemon.stopped")
        assert await self.m.get("Result") == "success"
        assert await self.m.run("pgrep -u archiver -l", code=1) == "", "nothing is left behind"

    async def recover(self) -> None:
        """docs/recover.md, as it stands there."""
        await self.m.run("systemctl start archiver")
        await self.call("hq")
        held, asked = await self.held(), self.hq.count("audio") + self.milan.count("audio")
        say("lost database")
        await self.m.run("systemctl stop archiver 'archiver-backfill@*' archiver-verify")
        await self.m.run("mv /var/lib/archiver/postgres /var/lib/archiver/postgres.lost")
        await self.m.run("archiver rebuild --store disk")
        await self.m.run("systemctl start archiver")
        assert await self.held() == held
        say("lost store")
        await self.m.run("systemctl stop archiver; rm -rf /var/lib/archiver/calls; mkdir /var/lib/archiver/calls")
        await self.m.run("chown archiver: /var/lib/archiver/calls; systemctl start archiver")
        await self.m.run("archiver verify --store disk --even-if-empty")
        await self.m.run("archiver status")
        assert await self.held() == held
        say("lost host: a backup of /etc/archiver and one store are left")
        await self.m.run("cp -a /etc/archiver /root/backup && cd /usr/src/archiver && make -s uninstall")
        await self.m.run("rm -rf /etc/archiver /var/lib/archiver/postgres* /var/lib/archiver/calls; userdel archiver")
        await self.m.run("cd /usr/src/archiver && make -s install")
        await self.m.run("chown -R archiver: /var/lib/archiver/spare")
        await self.m.run("cp -a /root/backup/. /etc/archiver/ && chgrp -R archiver /etc/archiver")
        await self.m.run("archiver check")
        await self.m.run("archiver rebuild --store spare")
        await self.m.run("systemctl enable --now archiver")
        await self.m.run("archiver verify --store disk --even-if-empty")
        assert await self.held() == held
        assert self.hq.count("audio") + self.milan.count("audio") == asked, "nothing was fetched again"
        await self.call("hq")

    async def held(self) -> dict[str, list[str]]:
        """By recording the stores and hashes of its copies, as `archiver list` tells them."""
        rows = await self.m.run("archiver list --json --limit 1000 2>/dev/null", show=False)
        return {
            r["recording_id"]: sorted(f"{c['store']} {c['sha256']}" for m in r["media"] for c in m["copies"])
            for r in map(json.loads, rows.splitlines())
        }

    async def upgrade(self) -> None:
        say("upgrade while it runs, and back")
        await self.m.run("systemctl start archiver")
        before = await self.m.run("readlink /opt/archiver/current")
        await self.m.run("cd /usr/src/archiver && make -s install")
        assert await self.m.run("readlink /opt/archiver/current") != before
        await self.call("hq")
        await self.m.run(f"ln -sfn {before} /opt/archiver/current && systemctl restart archiver")
        await self.call("hq")
        say("uninstall")
        await self.m.run("cd /usr/src/archiver && make -s uninstall")
        await self.m.run("systemctl status archiver", code=4)
        await self.m.run("ls /etc/archiver /var/lib/archiver; ls /opt/archiver", code=2)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", type=Path, default=ROOT / "dist" / "debian", help="a Debian's root folder (made)")
    parser.add_argument("--only", help="install and begin, then this chapter alone")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root")
    if not (ROOT / "dist" / "wheels").is_dir():
        sys.exit("run `make wheels` first")
    if not (asked.debian / "usr/lib/systemd/systemd").exists():
        make = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(asked.debian)]
        subprocess.run(make, check=True)
    with tempfile.TemporaryDirectory(prefix="archiver-systemd-") as folder:
        async with booted(asked.debian.resolve(), Path(folder)) as machine:
            story = Story(machine)
            async with story.hq, story.milan:
                await story.install()
                await story.begin()
                for chapter in ("reload", "one_shots", "kill", "stop", "recover", "upgrade"):
                    if asked.only in {None, chapter}:
                        await getattr(story, chapter)()
    say("all as documented")


if __name__ == "__main__":
    asyncio.run(main())
