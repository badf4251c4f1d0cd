"""Several hosts, each a network namespace of its own with a cable to the database and one to the recorder.

One is cut off from the database, another dies; the rest takes over, and what comes too late is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from tests import servers
from tests.chaos.recorder import Settings, made
from tests.commands import ROOT, Place, toml, until
from tests.engine import eventually

CALLS = 30
RECORDER = "10.77.99.1"
#: The product's leases, short enough to be waited for.
DAEMON = """
import sys
from datetime import timedelta
from archiver.catalog import database
from archiver.sync import engine, shares
engine.LEASE, shares.SHARE = timedelta(seconds=6), timedelta(seconds=4)
database.KEEPALIVES = {name: str(max(int(value) // 5, 1)) for name, value in database.KEEPALIVES.items()}
from archiver.cli import main
sys.argv = ["archiver", *sys.argv[1:]]
main()
"""
#: A process that is cut off while PostgreSQL's answer is on its way: that is sent again and again.
HOLDER = """
import asyncio, sys
from archiver.catalog import database
from archiver.catalog.catalog import Catalog
database.KEEPALIVES = {name: str(max(int(value) // 5, 1)) for name, value in database.KEEPALIVES.items()}
async def hold():
    held = await Catalog.open(sys.argv[1])
    async with held._transaction() as transaction:
        await transaction.execute("SELECT pg_advisory_xact_lock(7)")
        await transaction.execute("SELECT pg_sleep(3)")
        await asyncio.sleep(600)
asyncio.run(hold())
"""


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Network:
    """Namespaces ``db``, ``pbx``, ``one`` and ``two``, and cables; all of it goes with its end."""

    def __init__(self) -> None:
        self._mark = f"arc{secrets.token_hex(2)}"
        self._made: list[str] = []

    def name(self, of: str) -> str:
        return f"{self._mark}-{of}"

    def enter(self, of: str) -> list[str]:
        return ["ip", "netns", "exec", self.name(of)]

    def build(self) -> None:
        for of in ("db", "pbx", "one", "two"):
            ip("netns", "add", self.name(of))
            self._made.append(self.name(of))
            ip("-n", self.name(of), "link", "set", "lo", "up")
        for number, (host, peer) in enumerate(((h, p) for h in ("one", "two") for p in ("db", "pbx")), 1):
            near, far = f"{self._mark}{number}a", f"{self._mark}{number}b"
            ip("link", "add", near, "netns", self.name(host), "type", "veth", "peer", "name", far,
               "netns", self.name(peer))  # fmt: skip
            for end, of, last in ((near, host, 2), (far, peer, 1)):
                ip("-n", self.name(of), "addr", "add", f"10.77.{number}.{last}/30", "dev", end)
                ip("-n", self.name(of), "link", "set", end, "up")
            if peer == "pbx":
                # The recorder has one address for all: another one would be another recorder.
                ip("-n", self.name(host), "route", "add", RECORDER, "via", f"10.77.{number}.1")
        ip("-n", self.name("pbx"), "addr", "add", f"{RECORDER}/32", "dev", "lo")

    def address(self, host: str, peer: str) -> str:
        """Where a host finds a peer."""
        return f"10.77.{self._number(host, peer)}.1"

    def cable(self, host: str, peer: str, state: str) -> None:
        ip("-n", self.name(host), "link", "set", f"{self._mark}{self._number(host, peer)}a", state)

    def sent(self, host: str, peer: str) -> int:
        """How many packets went to the peer so far."""
        file = f"/sys/class/net/{self._mark}{self._number(host, peer)}a/statistics/tx_packets"
        return int(subprocess.check_output([*self.enter(host), "cat", file], timeout=30))

    @staticmethod
    def _number(host: str, peer: str) -> int:
        return {"one": 0, "two": 2}[host] + {"db": 1, "pbx": 2}[peer]

    def end(self) -> None:
        for name in self._made:
            with contextlib.suppress(OSError):
                ip("netns", "del", name)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command (iproute2)")
    network = Network()
    try:
        try:
            network.build()
        except OSError as error:
            pytest.skip(f"network namespaces can't be made here: {error}")
        yield network
    finally:
        network.end()


class Hosts:
    """The processes in the namespaces."""

    def __init__(self, network: Network, folder: Path, stack: ExitStack) -> None:
        self.network, self.folder = network, folder
        self.postgres = stack.enter_context(servers.postgres("*", "10.77.0.0/16", network.enter("db")))
        self.postgres.execute("CREATE DATABASE archiver")
        began = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
        (port,) = servers.free_ports(1)
        # Its calls are over; each download takes some two seconds.
        self.settings = Settings("xivo", 5, CALLS, began.isoformat(), 1.0, port, address="0.0.0.0", drip=0.2)
        self.sim = made(self.settings)
        recorder = [sys.executable, "-m", "tests.chaos.recorder", self.settings.text()]
        self.processes = {"pbx": self._start("pbx", recorder)}

    def _start(self, of: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{of}.log").open("ab") as output:
            return servers._SPAWNER.submit(
                subprocess.Popen,
                [*self.network.enter(of), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                preexec_fn=servers._kill_with_parent,
            ).result()

    def daemon(self, of: str) -> None:
        folder = self.folder / of
        folder.mkdir(exist_ok=True)
        url = self.postgres.url(address=self.network.address(of, "db"))
        place = Place(folder, url)
        place.config["stores"] = {"shared": {"kind": "file", "path": str(self.folder / "shared")}}
        place.config["sources"]["pbx"] = self.sim.options() | {
            "base_url": f"http://{RECORDER}:{self.settings.port}",
            "start": datetime.fromisoformat(self.settings.began) - timedelta(hours=9),
            "poll": "1s",
            "settle": "1s",
            "lookback": "1m",
            "longest_call": "1m",
            "window": "24h",
            "concurrency": 4,
            "retry": {"first": "1s", "cap": "2s"},
        }
        (folder / "archiver.toml").write_text(toml(place.config), "utf-8")
        command = [sys.executable, "-c", DAEMON, "--config", str(folder / "archiver.toml"), "run"]
        self.processes[of] = self._start(of, command)

    def said(self, of: str) -> list[dict]:
        lines = (self.folder / f"{of}.log").read_text("utf-8", "replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def events(self, of: str) -> list[str]:
        return [line.get("event", "") for line in self.said(of)]

    async def ask(self, question: str) -> int:
        """From a process of the test's own namespace, by the server's socket."""
        where = {"host": str(self.postgres._sockets), "port": self.postgres.port, "user": "archiver"}
        connection = await asyncpg.connect(database="archiver", timeout=60, **where)
        try:
            return await connection.fetchval(question) or 0
        finally:
            await connection.close()

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def hosts(network: Network) -> AsyncIterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    try:
        with ExitStack() as stack:
            running = await asyncio.to_thread(Hosts, network, folder, stack)
            stack.callback(running.end)
            yield running
    except BaseException:
        # A failed test's output: what each host said at last.
        for log in folder.glob("*.log"):
            print(log.name, *log.read_text("utf-8", "replace").splitlines()[-40:], sep="\n")
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND granted"


@pytest.mark.timeout(300)
async def test_a_transaction_cut_off_with_its_answer_on_the_way_ends_as_soon_as_an_idle_one(network):
    async with hosts(network) as world:
        url = world.postgres.url(address=network.address("one", "db"))
        world.processes["one"] = world._start("one", [sys.executable, "-c", HOLDER, url])
        await eventually(lambda: world.ask(HELD), within=60, why="nobody took the lock")
        network.cable("one", "db", "down")

        async def free() -> bool:
            return not await world.ask(HELD)

        await eventually(free, within=30, every=0.5, why="a host that is gone keeps its lock")


ARCHIVED = "SELECT count(*) FROM media WHERE state = 'archived'"
CLAIMED = "SELECT count(*) FROM claims"


@pytest.mark.timeout(600)
async def test_a_host_cut_off_stops_and_is_refused_a_dead_one_is_replaced_and_nothing_is_doubled(network):
    async with hosts(network) as world:
        most = 0

        async def reached(count: int) -> bool:
            nonlocal most
            most = max(most, await world.ask("SELECT sum(slots) FROM shares WHERE until > now()"))
            return await world.ask(ARCHIVED) >= count

        world.daemon("one")
        await until(lambda: "daemon.ready" in world.events("one"), 120)
        await eventually(lambda: reached(4), within=120, why="host one archived nothing")

        # Host one loses the database, not the recorder: it holds claims, and transfers that it can't commit.
        assert await world.ask(CLAIMED) >= 1
        network.cable("one", "db", "down")
        before = await world.ask(ARCHIVED)
        world.daemon("two")
        await until(lambda: "poll.done" in world.events("two"), 120)

        async def quiet() -> bool:
            sent = network.sent("one", "pbx")
            await asyncio.sleep(1)
            return network.sent("one", "pbx") - sent <= 2

        await eventually(quiet, within=120, why="a host without the database went on asking the recorder")
        # What it had claimed comes back with the end of its leases, and is brought home by the other.
        await eventually(lambda: reached(min(before + 6, CALLS)), within=180, why="host two did not take over")
        network.cable("one", "db", "up")
        await until(lambda: "claim.lost" in world.events("one"), 180)

        # Host two dies at work; its claims return within its lease.
        world.processes["two"].send_signal(signal.SIGKILL)
        await eventually(lambda: reached(CALLS), within=240, why="host one did not take over")
        assert world.processes["one"].poll() is None
        assert most <= 4, "the recorder's limit holds over all hosts"
        assert await world.ask("SELECT count(*) FROM copies") == CALLS
        assert await world.ask("SELECT count FROM totals WHERE store = ''") == CALLS
        files = [file for file in (world.folder / "shared/pbx").rglob("*.wav") if file.is_file()]
        truth = sorted(data for expected in world.sim.truth().values() for data in expected.audio.values())
        assert sorted(file.read_bytes() for file in files) == truth
