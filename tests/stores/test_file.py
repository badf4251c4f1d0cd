"""The file store: the contract, and what disks and hostile keys do."""

import asyncio
import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from archiver.errors import ObjectFailed, StoreConflict, StoreDown, StoreFull, StoreMissing, StoreRefused
from archiver.model import Body
from archiver.stores import disk as module
from archiver.stores.file import FileOptions, FileStore
from archiver.stores.names import temporary_name
from archiver.testing.stores import StoreContract, keys, read, spooled
from tests.stores import canaries


def a_store(path: Path, **changes) -> FileStore:
    return FileStore("disk", FileOptions(kind="file", path=path, **changes))


@pytest_asyncio.fixture
async def store(tmp_path):
    store = a_store(tmp_path / "store")
    yield store
    await store.close()


class TestContract(StoreContract):
    many = 1100

    @pytest_asyncio.fixture
    async def store(self, tmp_path):
        store = a_store(tmp_path / "store")
        yield store
        await store.close()

    async def leftovers(self, store, under):
        return [str(path) for path in (store.options.path / under).rglob(".*")]


async def test_canaries_that_killed_processes_left_are_cleared(store):
    await canaries.left_by_killed_processes_are_cleared(store)


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/x", "a//b", "a/./b", "..", "", "a/", "a\0b", "a\nb", "\udc80"]
)
async def test_a_key_that_is_no_path_below_the_root_is_refused(store, key):
    with pytest.raises(ObjectFailed):
        await store.put(key, Body.of(b"x"))
    with pytest.raises(ObjectFailed):
        await store.stat(key)
    with pytest.raises(ObjectFailed):
        await read(store, key)
    with pytest.raises(ObjectFailed):
        await store.delete(key)


async def test_a_linked_folder_that_leads_out_of_the_root_is_refused(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    await store.put("a/b", Body.of(b"x"))
    (tmp_path / "store/out").symlink_to(outside)
    (tmp_path / "store/file").symlink_to(outside / "secret")
    for key in ("out/new", "out/deep/er/new", "out/secret", "file"):
        with pytest.raises(ObjectFailed):
            await store.put(key, Body.of(b"x"))
        with pytest.raises(ObjectFailed):
            await read(store, key)
        with pytest.raises(ObjectFailed):
            await store.delete(key)
    assert await keys(store, "") == ["a/b"]
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


async def test_a_root_that_is_a_link_itself_is_fine(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    store = a_store(tmp_path / "linked")
    await store.put("a/b", Body.of(b"x"))
    assert (tmp_path / "disk/a/b").read_bytes() == b"x"
    await store.close()


async def test_what_lies_at_the_root_may_change(tmp_path):
    for disk in ("one", "two"):
        (tmp_path / disk).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "one")
    store = a_store(tmp_path / "linked")
    await store.put("a/b", Body.of(b"x"))
    (tmp_path / "linked").unlink()
    (tmp_path / "linked").symlink_to(tmp_path / "two")
    await store.put("a/b", Body.of(b"x"))
    assert [(tmp_path / disk / "a/b").read_bytes() for disk in ("one", "two")] == [b"x", b"x"]
    await store.close()


class TestSharedSync:
    """The fsync of a folder for all who asked before it began."""

    @pytest.fixture
    def begun(self, monkeypatch):
        """Each fsync waits to be told how it ends."""
        begun: list[Future[None]] = []

        def sync(folder: str) -> None:
            begun.append(Future())
            begun[-1].result(20)

        monkeypatch.setattr(module, "_sync", sync)
        return begun

    def test_who_comes_while_one_runs_waits_for_the_next_and_all_of_them_share_it(self, begun):
        shared = module.SharedSync()
        with ThreadPoolExecutor(8) as threads:
            first = threads.submit(shared.sync, "day")
            until(lambda: len(begun) == 1)
            later = [threads.submit(shared.sync, "day") for _ in range(5)]
            time.sleep(0.2)
            assert len(begun) == 1
            begun[0].set_result(None)
            first.result(20)
            until(lambda: len(begun) == 2)
            assert not any(waiting.done() for waiting in later)
            begun[1].set_result(None)
            assert [waiting.result(20) for waiting in later] == [None] * 5
            assert len(begun) == 2
        assert not shared._running
        assert not shared._next

    def test_one_that_fails_fails_for_those_who_waited_for_it_and_for_nobody_else(self, begun):
        shared = module.SharedSync()
        with ThreadPoolExecutor(8) as threads:
            first = threads.submit(shared.sync, "day")
            until(lambda: len(begun) == 1)
            later = [threads.submit(shared.sync, "day") for _ in range(3)]
            time.sleep(0.2)
            begun[0].set_exception(OSError(errno.EIO, "the disk is gone"))
            with pytest.raises(OSError, match="the disk is gone"):
                first.result(20)
            until(lambda: len(begun) == 2)
            begun[1].set_result(None)
            assert [waiting.result(20) for waiting in later] == [None] * 3

    def test_folders_do_not_wait_for_each_other(self, begun):
        shared = module.SharedSync()
        with ThreadPoolExecutor(8) as threads:
            both = [threads.submit(shared.sync, day) for day in ("monday", "tuesday")]
            until(lambda: len(begun) == 2)
            for one in begun:
                one.set_result(None)
            assert [one.result(20) for one in both] == [None, None]


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not so():
        assert time.monotonic() < end
        time.sleep(0.005)


async def test_files_and_folders_are_closed_to_others(store, tmp_path):
    before = os.umask(0o022)
    try:
        await store.put("a/b", Body.of(b"x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "store/a/b").stat().st_mode) == 0o440
    assert stat.S_IMODE((tmp_path / "store/a").stat().st_mode) == 0o750


async def test_a_second_put_does_not_write_again(store, tmp_path):
    await store.put("a/b", Body.of(b"x"))
    before = (tmp_path / "store/a/b").stat()
    await store.put("a/b", Body.of(b"x"))
    after = (tmp_path / "store/a/b").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


async def test_bytes_are_on_the_disk_before_the_name_is(store, monkeypatch):
    """fsync of the file, then link, then fsync of its folder; each new folder's parent before that."""
    steps = []

    def watched(name, call):
        def wrapper(*args, **kwargs):
            what = str(Path(f"/proc/self/fd/{args[0]}").readlink() if name == "fsync" else args[-1])
            steps.append((name, what.split("/store", 1)[-1].lstrip("/")))
            return call(*args, **kwargs)

        return wrapper

    for name in ("fsync", "link"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    await store.put("a/b/c", Body.of(b"x"))
    made, file, link, folder = steps[:3], steps[3], steps[4], steps[5:]
    assert [what for _, what in made][1:] == ["", "a"]
    assert file[0] == "fsync"
    assert file[1].startswith("a/b/.")
    assert link == ("link", "a/b/c")
    assert folder == [("fsync", "a/b")]


async def test_a_folder_that_vanished_is_made_again(store, tmp_path):
    await store.put("a/b", Body.of(b"x"))
    (tmp_path / "store/a/b").unlink()
    (tmp_path / "store/a").rmdir()
    await store.put("a/c", Body.of(b"y"))
    assert await keys(store, "") == ["a/c"]


@pytest.mark.parametrize(
    "number",
    [errno.EPERM, errno.EACCES, errno.EIO, errno.EINVAL, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK],
    ids=errno.errorcode.get,
)
async def test_without_hard_links_the_file_is_renamed_but_never_over_another(store, monkeypatch, number):
    tried = []

    def unsupported(*_, **__):
        tried.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", unsupported)
    await store.put("a/b", Body.of(b"x"))
    await store.put("a/b", Body.of(b"x"))
    await store.put("a/c", Body.of(b"x"))
    with pytest.raises(StoreConflict):
        await store.put("a/b", Body.of(b"y"))
    assert await read(store, "a/b") == b"x"
    assert sorted(path.name for path in (store.options.path / "a").iterdir()) == ["b", "c"]
    assert len(tried) == 1
    assert "this file system takes no hard links" in await store.check()
    monkeypatch.undo()
    assert "hard links" not in await store.check()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF], ids=errno.errorcode.get)
async def test_a_folder_that_can_not_be_fsynced_is_no_failure(store, monkeypatch, number):
    fsync = os.fsync

    def unsupported(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", unsupported)
    await store.put("a/b", Body.of(b"x"))
    await store.put("a/b", Body.of(b"x"))
    assert await read(store, "a/b") == b"x"
    assert "this file system can't fsync a folder" in await store.check()
    await store.delete("a/b")
    monkeypatch.undo()
    assert "fsync" not in await store.check()


async def test_a_file_that_can_not_be_fsynced_is_no_failure_and_is_told(store, monkeypatch):
    def unsupported(_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", unsupported)
    await store.put("a/b", Body.of(b"x"))
    assert "can't fsync a file" in await store.check()


@pytest.mark.parametrize("which", [stat.S_ISDIR, stat.S_ISREG], ids=["folder", "file"])
async def test_an_fsync_that_fails_is_a_failure(store, monkeypatch, which):
    fsync = os.fsync

    def failing(descriptor):
        if which(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreDown, match="failed"):
        await store.put("a/b", Body.of(b"x"))


async def test_a_root_below_a_folder_that_we_may_not_read_is_fine(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "closed/store").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o300)
    store = a_store(tmp_path / "closed/store")
    await store.put("a/b", Body.of(b"x"))
    await store.close()
    (tmp_path / "closed").chmod(0o700)


async def test_names_that_the_file_system_mishandles_fail_the_check(store, monkeypatch):
    listed = os.scandir

    class Entry:
        def __init__(self, entry):
            self.name, self.is_dir, self.is_file, self.stat = (
                entry.name.replace("%3A", ":"), entry.is_dir, entry.is_file, entry.stat,
            )  # fmt: skip

    @contextlib.contextmanager
    def other(path):
        with listed(path) as found:
            yield map(Entry, found)

    monkeypatch.setattr(os, "scandir", other)
    with pytest.raises(StoreRefused, match="names like those of recordings"):
        await store.check()
    await store.alive()


async def test_a_file_system_of_short_names_is_warned_of_and_used(store, monkeypatch):
    link = os.link

    def short(source, target, **how):
        if len(Path(target).name) > 143:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        link(source, target, **how)

    monkeypatch.setattr(os, "link", short)
    assert "WARNING: takes no names of 167 letters" in await store.check()
    await store.put("a/b", Body.of(b"x"))
    assert await keys(store, "") == ["a/b"]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount anything here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_really_full_disk_is_full_and_keeps_what_it_had(small_disk):
    store = a_store(small_disk / "store")
    await store.put("a/small", Body.of(b"x" * 50_000))
    with pytest.raises(StoreFull):
        await store.put("a/large", Body.of(b"x" * 500_000))
    await store.alive()
    assert await keys(store, "") == ["a/small"]
    await store.close()


@pytest.mark.parametrize(
    ("number", "expected", "word"),
    [
        (errno.ENOSPC, StoreFull, "full"),
        (errno.EDQUOT, StoreFull, "full"),
        (errno.EFBIG, ObjectFailed, "too large"),
        (errno.EIO, StoreDown, "failed"),
        (errno.EROFS, StoreDown, "read-only"),
        (errno.EACCES, StoreRefused, "access"),
    ],
)
async def test_what_the_disk_says_becomes_what_to_do(store, monkeypatch, number, expected, word):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(expected, match=word):
        await store.put("a/b", Body.of(b"x"))
    monkeypatch.undo()
    assert await keys(store, "") == []
    assert list((store.options.path / "a").iterdir()) == []


async def test_a_file_that_is_too_large_for_its_disk_is_of_no_concern_to_others(tmp_path):
    """A file size limit stands for a file system's: the kernel refuses the write in its midst."""
    script = (
        "import asyncio, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from archiver.errors import ObjectFailed\n"
        "from archiver.model import Body\n"
        "from archiver.stores.file import FileOptions, FileStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "async def main():\n"
        "    store = FileStore('disk', FileOptions(kind='file', path=Path(sys.argv[1])))\n"
        "    await store.put('a/small', Body.of(b'x' * 50_000))\n"
        "    try:\n"
        "        await store.put('a/large', Body.of(b'x' * 500_000))\n"
        "    except ObjectFailed as error:\n"
        "        print(error)\n"
        "    await store.alive()\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, str(tmp_path / "store")], capture_output=True, text=True
    )
    assert "too large" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "store/a").iterdir()] == ["small"]


async def test_a_root_whose_parent_is_missing_is_refused(tmp_path):
    store = a_store(tmp_path / "not/mounted")
    with pytest.raises(StoreRefused, match="mount"):
        await store.put("a/b", Body.of(b"x"))
    with pytest.raises(StoreRefused, match="mount"):
        await keys(store, "")
    with pytest.raises(StoreRefused, match="mount"):
        await store.check()
    with pytest.raises(StoreRefused, match="mount"):
        await store.stat("a/b")
    await store.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_file_in_the_place_of_the_root_is_the_store_s_trouble_and_nothing_is_missing(store, tmp_path):
    await store.put("a/b", Body.of(b"x"))
    (tmp_path / "store").rename(tmp_path / "aside")
    (tmp_path / "store").write_bytes(b"")
    for use in (
        store.put("a/b", Body.of(b"x")),
        store.put("c", Body.of(b"x")),
        store.stat("a/b"),
        read(store, "a/b"),
        keys(store, ""),
        store.check(),
        store.alive(),
    ):
        with pytest.raises(StoreRefused, match="is no folder"):
            await use


async def test_what_is_no_regular_file_is_not_read(store, tmp_path):
    await store.put("a/b", Body.of(b"x"))
    os.mkfifo(tmp_path / "store/a/pipe")
    with pytest.raises(ObjectFailed):
        await read(store, "a/pipe")
    with pytest.raises(ObjectFailed):
        await read(store, "a")
    assert await store.stat("a/pipe") is None
    assert await keys(store, "") == ["a/b"]


async def test_temporaries_are_not_listed_and_go_when_they_are_old(store, tmp_path):
    await store.put("a/b", Body.of(b"x"))
    old, new, foreign = (tmp_path / "store/a" / name for name in (temporary_name(), temporary_name(), ".x.tmp"))
    for path in (old, new, foreign):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert await keys(store, "") == ["a/.x.tmp", "a/b"]
    assert "1 stale" in await store.check()
    assert not old.exists()
    assert new.exists()
    assert foreign.exists()
    with pytest.raises(ObjectFailed):
        await store.put(f"a/{temporary_name()}", Body.of(b"x"))


async def test_a_name_that_is_no_text_is_not_listed(store, tmp_path):
    await store.put("a/b", Body.of(b"x"))
    Path(os.fsdecode(os.fsencode(tmp_path / "store/a/") + b"/\xff")).write_bytes(b"x")
    assert await keys(store, "") == ["a/b"]


async def test_a_killed_put_leaves_nothing_under_its_key(tmp_path):
    """kill -9 in the midst of writing; the next put is whole."""
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from archiver.model import Body\n"
        "from archiver.stores.file import FileOptions, FileStore\n"
        "async def main():\n"
        "    store = FileStore('disk', FileOptions(kind='file', path=Path(sys.argv[1])))\n"
        "    print('go', flush=True)\n"
        "    for n in range(10_000):\n"
        "        await store.put(f'a/{n:05}', Body.of(b'%d' % n * 100_000))\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "store")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    await asyncio.to_thread(until, lambda: any((tmp_path / "store").glob("a/0*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = a_store(tmp_path / "store")
    found = [receipt async for receipt in store.list("")]
    assert found
    for receipt in found:
        assert await read(store, receipt.key) == b"%d" % int(receipt.key[2:]) * 100_000
    following = f"a/{len(found):05}"
    await store.put(following, Body.of(b"next"))
    assert await read(store, following) == b"next"
    await store.close()


async def test_a_disk_that_hangs_is_down_after_the_timeout(tmp_path):
    """A named pipe in place of the spool file: its open waits like a dead network mount."""
    os.mkfifo(tmp_path / "hangs")
    store = a_store(tmp_path / "store", timeout="200ms")
    with pytest.raises(StoreDown, match="no progress"):
        await store.put("a/b", Body(3, "0" * 64, path=tmp_path / "hangs"))
    await asyncio.to_thread((tmp_path / "hangs").write_bytes, b"abc")
    await store.close()
    assert not (tmp_path / "store/a/b").exists()


async def test_the_key_of_a_missing_file_is_named(store):
    with pytest.raises(StoreMissing, match="a/b"):
        await read(store, "a/b")


async def test_a_long_spool_file_is_not_read_whole_into_memory(store, tmp_path):
    body = spooled(tmp_path, os.urandom(3_000_000))
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda file, data: sizes.append(len(data)) or write(file, data))
        await store.put("a/b", body)
    assert max(sizes) <= 1 << 20


async def test_a_sector_that_can_not_be_read_is_of_no_concern_to_other_files(store, monkeypatch):
    for key in ("a/bad", "a/good"):
        await store.put(key, Body.of(key.encode()))
    pread, bad = os.pread, (store.options.path / "a/bad").stat().st_ino

    def failing(descriptor, *how):
        if os.fstat(descriptor).st_ino == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, *how)

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(ObjectFailed, match="a/bad can't be read"):
        await read(store, "a/bad")
    assert await read(store, "a/good") == b"a/good"
    await store.alive()


async def test_a_folder_under_the_name_of_a_file_is_of_no_concern_to_others(store, tmp_path):
    (tmp_path / "store/a/b").mkdir(parents=True)
    with pytest.raises(ObjectFailed):
        await store.put("a/b", Body.of(b"x"))
    with pytest.raises(ObjectFailed):
        await read(store, "a/b")
    assert await store.stat("a/b") is None
    await store.alive()
