"""The embedded PostgreSQL: real servers, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from archiver.catalog import embedded
from archiver.catalog.embedded import Embedded
from archiver.errors import CatalogDown

FAST = {"fsync": "off"}
ROOT = os.geteuid() == 0
HOLDER = """
import asyncio, sys
from pathlib import Path
from archiver.catalog.embedded import Embedded
async def main():
    embedded = Embedded(Path(sys.argv[1]), {"fsync": "off"})
    print(await embedded.start(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await embedded.stop()
asyncio.run(main())
"""


@pytest.fixture
def folder():
    """Short, unlike pytest's own, so that the socket fits."""
    made = Path(tempfile.mkdtemp(prefix="emb-"))
    made.chmod(0o755)
    yield made / "db"
    for pid in made.rglob("postmaster.pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(pid.read_text().split()[0]), signal.SIGQUIT)
    shutil.rmtree(made, ignore_errors=True)


@asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[tuple[Embedded, str]]:
    server = Embedded(folder, {**FAST, **settings})
    url = await server.start()
    try:
        yield server, url
    finally:
        await server.stop()


async def query(url: str, sql: str):
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that uses the folder until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


async def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


async def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    await asyncio.to_thread(process.wait, 60)
    process.stdout.close()


def postmaster(folder: Path) -> int:
    return int((folder / "pgdata" / "postmaster.pid").read_text().split()[0])


def said_so(file: Path, words: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return words in file.read_text()
    return False


def runs(pid: int) -> bool:
    """Whether a process is there and more than a zombie that its new parent has not collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while runs(pid):
            await asyncio.sleep(0.02)


async def test_data_outlives_a_stop(folder):
    async with running(folder) as (embedded, url):
        assert embedded.alive()
        await query(url, "CREATE TABLE kept AS SELECT 42 AS n")
        pid = postmaster(folder)
    assert not embedded.alive()
    await gone(pid)
    async with running(folder) as (_, url):
        assert await query(url, "SELECT n FROM kept") == 42


async def test_it_is_durable_quiet_and_closed_to_the_network(folder):
    embedded = Embedded(folder)
    url = await embedded.start()
    try:
        wanted = {
            "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "data_checksums": "on",
            "listen_addresses": "", "jit": "off", "TimeZone": "UTC", "server_encoding": "UTF8",
            "shared_buffers": "64MB", "max_connections": "100", "lc_collate": None,
        }  # fmt: skip
        told = {name: await query(url, f"SELECT current_setting('{name}', true)") for name in wanted}
        assert told == wanted
        assert (folder / "socket").stat().st_mode & 0o777 == 0o700
        assert (folder / "pgdata").stat().st_mode & 0o777 == 0o700
        with pytest.raises(asyncpg.PostgresError):
            await query(url, "SELECT 'x4912345'::int")
        logs = [*(folder / "pgdata" / "log").iterdir(), folder / "pgdata" / "start.log"]
        assert not any("SELECT" in file.read_text() for file in logs)
    finally:
        await embedded.stop()


async def test_starting_twice_and_stopping_twice_is_harmless(folder):
    embedded = Embedded(folder, FAST)
    assert await embedded.start() == await embedded.start()
    await embedded.stop()
    await embedded.stop()
    assert not embedded.alive()


async def test_the_last_of_several_users_stops_the_server(folder):
    first, second = Embedded(folder, FAST), Embedded(folder, FAST)
    url = await first.start()
    assert await second.start() == url
    await first.stop()
    assert second.alive()
    assert await query(url, "SELECT 1") == 1
    await second.stop()
    assert not second.alive()


async def test_all_users_stopping_at_once_leave_no_server_behind(folder):
    users = [Embedded(folder, FAST) for _ in range(4)]
    for user in users:
        await user.start()
    pid = postmaster(folder)
    await asyncio.gather(*(user.stop() for user in users))
    await gone(pid)


async def test_two_processes_that_start_first_at_once_share_one_server(folder):
    processes = [holder(folder), holder(folder)]
    first, second = await asyncio.gather(*map(said, processes))
    assert first == second
    pid = postmaster(folder)
    await let_go(processes[0])
    assert await query(first, "SELECT 1") == 1
    await let_go(processes[1])
    await gone(pid)
    assert not list(folder.glob("initdb-*"))


async def test_a_killed_user_leaves_a_server_that_the_next_one_finds(folder):
    process = holder(folder)
    url = await said(process)
    pid = postmaster(folder)
    process.kill()
    process.communicate()
    assert await query(url, "SELECT 1") == 1
    async with running(folder):
        assert postmaster(folder) == pid
    await gone(pid)


async def test_signals_to_our_process_group_do_not_reach_the_server(folder):
    process = holder(folder)
    url = await said(process)
    pid = postmaster(folder)
    assert os.getsid(pid) != process.pid
    assert os.getpgid(pid) != process.pid
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, sent)
    process.communicate()
    assert await query(url, "SELECT 1") == 1
    async with running(folder):
        assert postmaster(folder) == pid


async def test_the_server_holds_none_of_our_pipes(folder):
    process = holder(folder)
    await said(process)
    process.kill()
    assert await asyncio.to_thread(process.communicate, None, 10) == ("", None)
    async with running(folder):
        pass


async def test_a_killed_server_is_recovered(folder):
    async with running(folder, fsync="on") as (embedded, url):
        await query(url, "CREATE TABLE kept AS SELECT 42 AS n")
        open_one = await asyncpg.connect(url, timeout=10)
        os.kill(postmaster(folder), signal.SIGKILL)
        async with asyncio.timeout(10):
            while embedded.alive():
                await asyncio.sleep(0.01)
        async with running(folder) as (_, again):
            assert await query(again, "SELECT n FROM kept") == 42
        open_one.terminate()


async def test_a_start_that_failed_before_the_log_says_why_is_tried_again(folder):
    class SaysNothingYet(Embedded):
        tries = 0

        async def _launch(self, programs, account):
            self.tries += 1
            if self.tries == 1:
                return "LOG:  redirecting log output to logging collector process\n"
            return await super()._launch(programs, account)

    server = SaysNothingYet(folder, FAST)
    try:
        assert await query(await server.start(), "SELECT 1") == 1
        assert server.tries == 2
    finally:
        await server.stop()


async def test_processes_that_outlive_a_killed_server_are_waited_for(folder):
    async with running(folder) as (embedded, url):
        connection = await asyncpg.connect(url, timeout=10)
        backend = connection.get_server_pid()
        os.kill(backend, signal.SIGSTOP)
        os.kill(postmaster(folder), signal.SIGKILL)
        async with asyncio.timeout(10):
            while embedded.alive():
                await asyncio.sleep(0.01)
        start = asyncio.create_task(Embedded(folder, FAST).start())
        while not start.done() and not said_so(folder / "pgdata" / "start.log", "shared memory"):
            await asyncio.sleep(0.005)
        os.kill(backend, signal.SIGCONT)
        connection.terminate()
        assert await query(await start, "SELECT 1") == 1
        await start


async def test_a_pid_file_whose_number_another_process_has_does_not_block(folder):
    async with running(folder):
        stale = (folder / "pgdata" / "postmaster.pid").read_text()
    with subprocess.Popen(["sleep", "60"], **({"user": (folder / "pgdata").owner()} if ROOT else {})) as other:
        _, rest = stale.split("\n", 1)
        file = folder / "pgdata" / "postmaster.pid"
        file.write_text(f"{other.pid}\n{rest}")
        try:
            async with running(folder) as (_, url):
                assert await query(url, "SELECT 1") == 1
                assert postmaster(folder) != other.pid
            assert other.poll() is None
        finally:
            other.kill()


async def test_a_pid_file_that_names_the_server_of_another_folder_does_not_block(folder):
    async with running(folder), running(folder.with_name("other")):
        stale = (folder / "pgdata" / "postmaster.pid").read_text()
        elsewhere = postmaster(folder.with_name("other"))
        os.kill(postmaster(folder), signal.SIGKILL)
        await gone(int(stale.split()[0]))
        file = folder / "pgdata" / "postmaster.pid"
        file.write_text(stale.replace(stale.split()[0], str(elsewhere), 1))
        async with running(folder) as (_, url):
            assert await query(url, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["x" * 120, "with a 'quote', a \"$(touch no)\" and ünïcode"], ids=["long", "odd"])
async def test_any_folder_name_will_do(folder, name):
    odd = folder.parent / name
    async with running(odd) as (embedded, url):
        assert await query(url, "SELECT 1") == 1
        sockets = Path(await query(url, "SHOW unix_socket_directories"))
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not embedded.alive()
    assert not list(folder.parent.rglob("no"))
    shutil.rmtree(sockets)


async def test_a_socket_folder_of_somebody_else_is_refused(folder):
    long = folder.parent / ("x" * 120)
    embedded = Embedded(long, FAST)
    target = folder.parent / "theirs"
    target.mkdir()
    embedded._sockets.symlink_to(target)
    try:
        with pytest.raises(CatalogDown, match="belongs to somebody else"):
            await embedded.start()
    finally:
        embedded._sockets.unlink()


@pytest.mark.skipif(not ROOT, reason="only root may give a folder away")
async def test_a_socket_folder_that_another_user_made_first_is_refused(folder):
    embedded = Embedded(folder.parent / ("x" * 120), FAST)
    embedded._sockets.mkdir(mode=0o777)
    os.chown(embedded._sockets, 12345, 12345)
    try:
        with pytest.raises(CatalogDown, match="belongs to somebody else"):
            await embedded.start()
    finally:
        embedded._sockets.rmdir()


async def test_a_start_while_the_last_user_stops_gets_a_server(folder):
    first = Embedded(folder, FAST)
    await first.start()
    second = Embedded(folder, FAST)
    _, url = await asyncio.gather(first.stop(), second.start())
    assert await query(url, "SELECT 1") == 1
    await second.stop()


async def test_power_cut_while_the_cluster_is_made_is_survived(folder):
    process = holder(folder)
    async with asyncio.timeout(30):
        while not list(folder.glob("*/base")):
            await asyncio.sleep(0.005)
    process.kill()
    for other in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (other / "cwd").readlink().is_relative_to(folder):
                os.kill(int(other.name), signal.SIGKILL)
    process.communicate()
    async with running(folder) as (_, url):
        assert await query(url, "SELECT 1") == 1


async def test_a_half_made_cluster_is_made_again(folder):
    half = folder / "initdb-half"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with running(folder) as (_, url):
        assert await query(url, "SELECT 1") == 1
    assert not half.exists()


async def test_a_start_that_is_called_off_can_be_repeated(folder):
    for seconds in (0.05, 0.4):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await Embedded(folder, FAST).start()
    async with running(folder) as (_, url):
        assert await query(url, "SELECT 1") == 1


async def test_a_folder_that_is_a_file_is_one_clear_sentence(folder):
    folder.write_text("")
    with pytest.raises(CatalogDown, match=r"db can't hold a database: Not a directory"):
        await Embedded(folder).start()


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
async def test_a_folder_that_may_not_be_written_is_one_clear_sentence():
    with pytest.raises(CatalogDown, match=r"can't hold a database: Permission denied"):
        await Embedded(Path("/nowhere/db")).start()


async def test_a_server_that_refuses_its_settings_says_why(folder):
    with pytest.raises(CatalogDown, match=r"does not start: .*contains errors"):
        await Embedded(folder, {"no_such_setting": "1"}).start()


async def test_a_platform_without_the_wheel_is_one_clear_sentence(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CatalogDown, match=r"database\.url"):
        await Embedded(folder).start()


async def test_a_callers_postgres_variables_change_nothing(folder, monkeypatch):
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGDATA": "/none", "PGOPTIONS": "-c x=y"}.items():
        monkeypatch.setenv(name, value)
    embedded = Embedded(folder, FAST)
    url = await embedded.start()
    try:
        monkeypatch.delenv("PGOPTIONS")
        assert await query(url, "SELECT 1") == 1
    finally:
        await embedded.stop()


@pytest.mark.skipif(not ROOT, reason="only root may change users")
async def test_below_a_closed_folder_root_still_gets_a_server(folder):
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    async with running(closed / "db") as (_, url):
        assert await query(url, "SELECT 1") == 1
        assert Path(f"/proc/{postmaster(closed / 'db')}").stat().st_uid != 0


@pytest.mark.skipif(not ROOT, reason="only root may change users")
async def test_programs_in_a_folder_closed_to_others_serve_root_too(folder, monkeypatch):
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    programs = embedded._programs()
    package = programs.parent.parent
    for part in (programs.parent, package.with_name(f"{package.name}.libs")):
        target = closed / part.relative_to(package.parent)
        shutil.copytree(part, target, symlinks=True, copy_function=hard_link)
    monkeypatch.setattr(embedded, "_programs", lambda: closed / programs.relative_to(package.parent))
    async with running(folder) as (_, url):
        assert await query(url, "SELECT 1") == 1


def hard_link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.mark.skipif(not ROOT, reason="only root may change users")
async def test_root_runs_the_server_as_the_owner_of_the_folder_above(folder):
    nobody = pwd.getpwnam("nobody")
    os.chown(folder.parent, nobody.pw_uid, nobody.pw_gid)
    async with running(folder):
        assert Path(f"/proc/{postmaster(folder)}").stat().st_uid == nobody.pw_uid
    assert {file.stat().st_uid for file in (folder, *folder.iterdir())} == {nobody.pw_uid}


@pytest.mark.skipif(not ROOT, reason="is what root runs")
@pytest.mark.timeout(240)
def test_all_of_this_holds_for_an_ordinary_user():
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="as-nobody-") as home:
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        # The capability is for a Python that lies in a folder of root's.
        ran = subprocess.run(
            ["setpriv", "--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups",
             "--securebits", "+no_setuid_fixup", "--inh-caps", "+dac_read_search",
             "--ambient-caps", "+dac_read_search",
             sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
             "--basetemp", f"{home}/pytest", __file__],
            cwd=Path(__file__).parents[2], env={"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": "/tmp"},
            capture_output=True, text=True, timeout=230, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
