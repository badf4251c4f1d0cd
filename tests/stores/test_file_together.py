"""The file store where many files come at once: one syncfs for a group, in a process of its own."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_asyncio

from archiver.errors import ObjectFailed, StoreConflict, StoreDown
from archiver.model import Body
from archiver.stores import apart, disk, file, syncfs
from archiver.stores.disk import Disk, File
from archiver.stores.file import FileOptions, FileStore
from archiver.stores.names import is_temporary
from archiver.testing.stores import keys, read, spooled

pytestmark = pytest.mark.skipif(
    not syncfs.stands_for_fsync(str(Path.cwd())), reason="here one syncfs is not as good as an fsync each"
)


@pytest_asyncio.fixture
async def store(tmp_path):
    store = FileStore("disk", FileOptions(kind="file", path=tmp_path / "store", timeout="20s"))
    # The first put makes the root, the second finds out what it is like.
    await store.put("first", Body.of(b"first"))
    await store.put("second", Body.of(b"second"))
    yield store
    await store.close()
    assert children() == []


def children() -> list[int]:
    """The processes that put files for this one, and are not zombies."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            # One may end while we look.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"archiver.stores.apart" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def bodies(count: int, size: int = 20_000) -> dict[str, Body]:
    return {f"2024/{n % 3}/recording-{n}/{n}.wav": Body.of(os.urandom(size)) for n in range(count)}


async def put_all(store: FileStore, wanted: dict[str, Body]) -> list[BaseException | None]:
    ended = await asyncio.gather(*(store.put(key, body) for key, body in wanted.items()), return_exceptions=True)
    return [result if isinstance(result, BaseException) else None for result in ended]


async def holds(store: FileStore, wanted: dict[str, Body]) -> None:
    for key, body in wanted.items():
        assert await read(store, key) == body.data
    assert not temporaries(store)


def temporaries(store: FileStore) -> list[Path]:
    return [path for path in store.options.path.rglob(".*") if is_temporary(path.name)]


async def until(so: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not so():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_many_at_once_are_put_by_another_process_whole_and_under_their_names(store):
    wanted = bodies(150)
    assert await put_all(store, wanted) == [None] * 150
    assert children()
    await holds(store, wanted)
    assert await keys(store, "2024") == sorted(wanted)


async def test_few_are_put_without_another_process(store):
    wanted = bodies(3)
    assert await put_all(store, wanted) == [None] * 3
    assert children() == []
    await holds(store, wanted)


async def test_long_ones_and_those_in_files_go_alone(store, tmp_path):
    wanted = {f"long/{n}": Body.of(os.urandom(file._LARGE + 1)) for n in range(4)}
    in_files = {f"spooled/{n}": spooled(tmp_path, os.urandom(10_000)) for n in range(8)}
    assert await put_all(store, wanted | in_files) == [None] * 12
    assert children() == []
    await holds(store, wanted)


async def test_a_group_is_never_more_than_there_is_room_for(store, monkeypatch):
    groups: list[list[int]] = []
    original = apart.Apart.put_all
    monkeypatch.setattr(
        apart.Apart, "put_all", lambda self, files: (groups.append([f.size for f in files]), original(self, files))
    )
    wanted = bodies(12, 3_900_000) | {f"small/{n}": Body.of(b"%d" % n) for n in range(200)}
    assert await put_all(store, wanted) == [None] * 212
    assert groups
    assert all(len(group) <= file._GROUP_FILES and sum(group) <= apart.ROOM for group in groups)
    await holds(store, wanted)


async def test_what_is_wrong_with_one_is_told_of_that_one_alone(store):
    await store.put("2024/taken", Body.of(b"other bytes"))
    await store.put("2024/there", Body.of(b"the same"))
    wanted = bodies(20)
    wrong = {
        "2024/taken": Body.of(b"mine"),
        "2024/../../out": Body.of(b"x"),
        "2024/lying": Body(4, "0" * 64, data=b"four"),
        "2024/" + "n" * 300: Body.of(b"x"),
        "first/below-a-file": Body.of(b"x"),
    }
    ended = await put_all(store, wanted | wrong | {"2024/there": Body.of(b"the same"), "empty": Body.of(b"")})
    assert children()
    kinds = [StoreConflict, ObjectFailed, ObjectFailed, ObjectFailed, ObjectFailed]
    assert [type(error) for error in ended] == [type(None)] * 20 + kinds + [type(None)] * 2
    await holds(store, wanted)
    assert await read(store, "2024/taken") == b"other bytes"
    assert await read(store, "empty") == b""


async def test_a_link_that_leads_out_of_the_root_is_refused_in_a_group_too(store, tmp_path):
    (tmp_path / "outside").mkdir()
    (store.options.path / "2023").symlink_to(tmp_path / "outside")
    ended = await put_all(store, bodies(10) | {"2023/a/b.wav": Body.of(b"x"), "2023/b.wav": Body.of(b"x")})
    assert [type(error) for error in ended] == [type(None)] * 10 + [ObjectFailed] * 2
    assert list((tmp_path / "outside").iterdir()) == []


async def test_two_of_one_recording_in_a_group_are_both_there(store):
    wanted = {f"2024/one/{n}.wav": Body.of(b"%d" % n * 1000) for n in range(30)}
    assert await put_all(store, wanted) == [None] * 30
    await holds(store, wanted)


async def test_the_same_key_twice_in_a_group_is_there_once(store):
    body = Body.of(os.urandom(10_000))
    assert await asyncio.gather(*(store.put("2024/twice/a.wav", body) for _ in range(20)))
    await holds(store, {"2024/twice/a.wav": body})


async def test_killed_in_the_midst_nothing_is_lost(store):
    """kill -9 of the other process, again and again."""
    wanted = bodies(600)
    killed = 0

    async def kill() -> None:
        nonlocal killed
        while True:
            await asyncio.sleep(0.02)
            for child in children():
                os.kill(child, signal.SIGKILL)
                killed += 1

    killer = asyncio.create_task(kill())
    try:
        for begin in range(0, 600, 100):
            part = dict(list(wanted.items())[begin : begin + 100])
            assert await put_all(store, part) == [None] * 100
    finally:
        killer.cancel()
    assert killed
    for key, body in wanted.items():
        assert await read(store, key) == body.data
    before = set(children())
    assert await put_all(store, {f"later/{key}": body for key, body in bodies(50).items()}) == [None] * 50
    assert set(children()) - before


async def test_where_no_process_can_be_started_files_are_put_all_the_same(store, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    wanted = bodies(100)
    assert await put_all(store, wanted) == [None] * 100
    await holds(store, wanted)


async def test_one_that_hangs_is_down_after_the_timeout_and_works_when_it_goes_on(tmp_path):
    store = FileStore("disk", FileOptions(kind="file", path=tmp_path / "store", timeout="1s"))
    await store.put("first", Body.of(b"first"))
    await store.put("second", Body.of(b"second"))
    assert await put_all(store, bodies(100)) == [None] * 100
    for child in children():
        os.kill(child, signal.SIGSTOP)
    wanted = {f"later/{n}/a.wav": Body.of(b"%d" % n) for n in range(40)}
    # The first finds nobody to go with, and goes by itself.
    ended = (await put_all(store, wanted))[1:]
    assert [type(error) for error in ended] == [StoreDown] * len(ended)
    assert "no progress" in str(ended[0])
    for child in children():
        os.kill(child, signal.SIGCONT)
    assert await put_all(store, wanted) == [None] * 40
    await holds(store, wanted)
    await store.close()


async def test_after_a_rest_no_process_is_left_and_the_next_files_start_another(store, monkeypatch):
    monkeypatch.setattr(file, "_REST", 0.2)
    for begin in range(2):
        wanted = {f"{begin}/{n}/a.wav": Body.of(b"%d" % n) for n in range(50)}
        assert await put_all(store, wanted) == [None] * 50
        assert children()
        await until(lambda: not children())
        await holds(store, wanted)


async def test_it_may_rest_after_a_group_that_took_longer_than_the_rest(store, monkeypatch):
    monkeypatch.setattr(file, "_REST", 0.05)
    put_all_there = file.FileStore._put_all
    monkeypatch.setattr(file.FileStore, "_put_all", lambda self, files: (put_all_there(self, files), time.sleep(0.2)))
    assert await put_all(store, bodies(50)) == [None] * 50
    assert children()
    await until(lambda: not children())


async def test_a_signal_to_all_does_not_end_it_before_its_parent(store):
    """systemd tells every process of a service to end; the archiver finishes what it has in hand."""
    assert await put_all(store, bodies(50)) == [None] * 50
    before = children()
    for child in before:
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGINT)
    await asyncio.sleep(0.2)
    assert await put_all(store, {f"later/{key}": body for key, body in bodies(50).items()}) == [None] * 50
    assert set(before) <= set(children())


async def test_it_ends_with_its_parent(tmp_path):
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from archiver.model import Body\n"
        "from archiver.stores.file import FileOptions, FileStore\n"
        "async def main():\n"
        "    store = FileStore('disk', FileOptions(kind='file', path=Path(sys.argv[1])))\n"
        "    await store.put('first', Body.of(b'first'))\n"
        "    await store.put('second', Body.of(b'second'))\n"
        "    await asyncio.gather(*(store.put(f'{n}/a', Body.of(b'x')) for n in range(40)))\n"
        "    print(store._apart._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "store")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    started = [int(pid) for pid in (await asyncio.to_thread(process.stdout.readline)).split()]
    assert started
    process.kill()
    process.wait()
    process.stdout.close()
    await until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and is_running(pid) for pid in started))


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def test_a_cancelled_put_harms_nobody_else(store):
    wanted = bodies(100)
    running = [asyncio.create_task(store.put(key, body)) for key, body in wanted.items()]
    await asyncio.sleep(0)
    for task in running[::3]:
        task.cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in ended[::3]] == [True] * 34
    kept = {key: body for n, (key, body) in enumerate(wanted.items()) if n % 3}
    assert not any(isinstance(one, BaseException) for n, one in enumerate(ended) if n % 3)
    await holds(store, kept)
    # Those that waited still were not put any more.
    assert set(await keys(store, "2024")) <= set(kept) | {next(iter(wanted))}


class TestSteps:
    """Bytes are on the disk before names are, and names before anybody is told."""

    @pytest.fixture
    def steps(self, monkeypatch):
        steps: list[tuple[str, str]] = []

        def watch(module, name):
            call = getattr(module, name)

            def wrapper(*args, **kwargs):
                where = args[1] if name == "link" else path_of(args[0])
                steps.append((name, str(where).split("/root", 1)[-1].lstrip("/")))
                return call(*args, **kwargs)

            monkeypatch.setattr(module, name, wrapper)

        watch(disk, "syncfs")
        for name in ("write", "fsync", "link"):
            watch(os, name)
        return steps

    @pytest.fixture
    def root(self, tmp_path):
        root = Disk(str(tmp_path / "root"))
        # The first makes the root, the second finds out what it is like.
        root.put(a_file("first"))
        root.put(a_file("second"))
        assert root.together
        return root

    def test_one_syncfs_after_all_bytes_and_one_after_all_names(self, root, steps):
        root.put(a_file("day/before/x"))
        steps.clear()
        root.put_all([a_file(f"day/{n}/x") for n in range(6)])
        assert [name for name, _ in steps] == ["write"] * 6 + ["syncfs"] + ["link"] * 6 + ["syncfs"]
        assert [what for name, what in steps if name == "link"] == [f"day/{n}/x" for n in range(6)]

    def test_what_is_there_already_costs_no_syncfs(self, root, steps):
        for again in (False, True):
            steps.clear()
            files = [a_file(f"day/{n}/x") for n in range(6)]
            root.put_all(files)
            assert [(one.failed, one.found) for one in files] == [(None, again)] * 6
            assert ("syncfs" in [name for name, _ in steps]) is not again

    def test_few_are_fsynced_each(self, root, steps):
        root.put(a_file("day/before/x"))
        steps.clear()
        root.put_all([a_file("day/1/x"), a_file("day/2/x")])
        assert [name for name, _ in steps if name in {"syncfs", "link"}] == ["link", "link"]
        assert [what for name, what in steps if name == "fsync"][-2:] == ["day/1", "day/2"]
        assert len([name for name, what in steps if name == "fsync" and "/." in what]) == 2

    def test_a_disk_that_fails_before_the_names_leaves_nothing(self, root, monkeypatch, tmp_path):
        monkeypatch.setattr(disk, "syncfs", failing)
        files = [a_file(f"day/{n}/x") for n in range(6)]
        root.put_all(files)
        assert [getattr(one.failed, "errno", None) for one in files] == [errno.EIO] * 6
        assert [path for path in (tmp_path / "root/day").rglob("*") if path.is_file()] == []
        monkeypatch.undo()
        again = [a_file(f"day/{n}/x") for n in range(6)]
        root.put_all(again)
        assert [one.failed for one in again] == [None] * 6

    def test_a_disk_that_fails_after_the_names_is_told_and_the_next_try_finds_them(self, root, monkeypatch):
        real = disk.syncfs
        calls: list[int] = []

        def second_fails(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 2:
                failing(descriptor)
            real(descriptor)

        monkeypatch.setattr(disk, "syncfs", second_fails)
        files = [a_file(f"day/{n}/x") for n in range(6)]
        root.put_all(files)
        assert [getattr(one.failed, "errno", None) for one in files] == [errno.EIO] * 6
        again = [a_file(f"day/{n}/x") for n in range(6)]
        root.put_all(again)
        assert [(one.failed, one.found) for one in again] == [(None, True)] * 6

    def test_what_lies_on_another_disk_below_the_root_is_fsynced(self, root, monkeypatch, steps):
        """A syncfs of the root's disk says nothing of one that is mounted below it."""
        fstat = os.fstat

        def elsewhere(descriptor: int) -> object:
            told = fstat(descriptor)
            other = "/mounted" in path_of(descriptor)
            return os.stat_result((*told[:2], told.st_dev + other, *told[3:10]))

        monkeypatch.setattr(os, "fstat", elsewhere)
        root.put_all([a_file(f"{'mounted' if n < 2 else 'day'}/{n}/x") for n in range(6)])
        synced = [what for name, what in steps if name == "fsync"]
        for n in range(2):
            assert len([what for what in synced if what.startswith(f"mounted/{n}/.")]) == 1
            assert f"mounted/{n}" in synced
        assert synced.count("mounted") >= 1
        assert [what for what in synced if what.startswith("day/")] == []
        order = [(name, what) for name, what in steps if "mounted/1" in what and name in {"fsync", "link"}]
        assert [name for name, _ in order] == ["fsync", "link", "fsync"]

    @pytest.mark.parametrize("count", [1, 6])
    def test_what_was_written_does_not_stay_in_memory(self, root, tmp_path, count):
        root.put_all([a_file(f"day/{n}/x") for n in range(count)])
        with (tmp_path / "root/day/0/x").open("rb") as there, pytest.raises(BlockingIOError):
            os.preadv(there.fileno(), [bytearray(4)], 0, os.RWF_NOWAIT)

    def test_what_can_not_be_closed_gets_no_name(self, root, monkeypatch, tmp_path):
        """A network mount may tell of a lost write only then."""
        close = os.close

        def fails(descriptor: int) -> None:
            wrong = "day/3/." in path_of(descriptor)
            close(descriptor)
            if wrong:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "close", fails)
        files = [a_file(f"day/{n}/x") for n in range(6)]
        root.put_all(files)
        assert [getattr(one.failed, "errno", None) for one in files] == [None] * 3 + [errno.EIO] + [None] * 2
        assert list((tmp_path / "root/day/3").iterdir()) == []

    def test_folders_are_taken_for_durable_only_when_they_are(self, root, monkeypatch, steps):
        monkeypatch.setattr(disk, "syncfs", failing)
        root.put_all([a_file(f"day/{n}/x") for n in range(6)])
        monkeypatch.undo()
        steps.clear()
        monkeypatch.setattr(os, "fsync", lambda number: steps.append(("fsync", path_of(number))))
        root.put(a_file("day/3/y"))
        assert "day" in [what.rsplit("/", 1)[-1] for _, what in steps], steps

    def test_errors_from_before_the_first_byte_are_told(self, root, monkeypatch):
        """syncfs tells of errors since its descriptor was opened."""
        order: list[str] = []
        opened, create = disk._open_folder, disk._create
        monkeypatch.setattr(disk, "_open_folder", lambda path: (order.append("open"), opened(path))[1])
        monkeypatch.setattr(disk, "_create", lambda path: (order.append("create"), create(path))[1])
        root.put_all([a_file(f"day/{n}/x") for n in range(6)])
        assert order[0] == "open"

    def test_where_others_keep_the_disk_busy_each_file_is_fsynced_for_a_while(self, root, monkeypatch, steps):
        monkeypatch.setattr(disk, "_LONG", -1.0)
        root.put_all([a_file(f"day/{n}/x") for n in range(6)])
        steps.clear()
        root.put_all([a_file(f"day/{n}/y") for n in range(6)])
        names = [name for name, _ in steps]
        assert "syncfs" not in names
        assert names.count("fsync") >= 12
        later = time.monotonic() + disk._WHILE + 1
        monkeypatch.setattr(disk.time, "monotonic", lambda: later)
        steps.clear()
        root.put_all([a_file(f"day/{n}/z") for n in range(6)])
        assert "syncfs" in [name for name, _ in steps]


def a_file(key: str) -> File:
    body = Body.of(key.encode())
    return File(key, body.length, body.sha256, body.chunks)


def path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def failing(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class TestWhereOneSyncfsIsAsGood:
    @pytest.mark.parametrize(
        ("kind", "good"),
        [("ext4", True), ("xfs", True), ("nfs4", False), ("fuse.sshfs", False), ("cifs", False), ("overlay", False)],
    )
    def test_by_the_file_system(self, tmp_path, monkeypatch, kind, good):
        device = tmp_path.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        lines = f"22 1 0:77 / /proc rw - proc proc rw\n36 35 {number} /a /b\\040c rw,noatime master:1 - {kind} x rw\n"
        self.told(monkeypatch, lines)
        assert syncfs.stands_for_fsync(str(tmp_path)) is good

    @pytest.mark.parametrize("lines", ["", "22 1 0:77 / /proc rw - proc proc rw\n"])
    def test_not_where_it_is_not_known(self, tmp_path, monkeypatch, lines):
        self.told(monkeypatch, lines)
        assert not syncfs.stands_for_fsync(str(tmp_path))

    @staticmethod
    def told(monkeypatch, lines: str) -> None:
        original = Path.read_text
        monkeypatch.setattr(
            Path, "read_text", lambda self, **how: lines if self.name == "mountinfo" else original(self, **how)
        )

    def test_not_on_a_kernel_that_hides_errors(self, tmp_path, monkeypatch):
        monkeypatch.setattr(syncfs, "_kernel", lambda: (5, 4))
        assert not syncfs.stands_for_fsync(str(tmp_path))

    def test_its_errors_are_told(self):
        with pytest.raises(OSError, match="Bad file descriptor"):
            syncfs.syncfs(-1)

    @pytest.mark.parametrize("error", [PermissionError(errno.EPERM, "no"), AttributeError("syncfs"), MemoryError()])
    def test_not_where_the_call_is_forbidden(self, tmp_path, monkeypatch, error):
        def forbidden(_: int) -> None:
            raise error

        monkeypatch.setattr(syncfs, "syncfs", forbidden)
        assert not syncfs.stands_for_fsync(str(tmp_path))

    async def test_elsewhere_files_go_by_themselves(self, tmp_path, monkeypatch):
        monkeypatch.setattr(disk, "stands_for_fsync", lambda _: False)
        store = FileStore("disk", FileOptions(kind="file", path=tmp_path / "store"))
        wanted = {f"{n}/a": Body.of(b"%d" % n) for n in range(50)}
        assert await put_all(store, wanted) == [None] * 50
        assert children() == []
        await holds(store, wanted)
        await store.close()
