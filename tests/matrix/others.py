"""The store servers of `make stores`, as tests/servers.py starts its own: Ceph stands in ceph.py.

Each says what it lacks and what to set; docs/stores.md gets both, and the run sees that `check` says so, too.

What comes from PyPI beside the development dependencies lies in a venv of its own, .venv/others; the Makefile makes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3

from tests.servers import Apache, Seaweed, Server, _status, free_ports

USERNAME = "archiver"
PASSWORD = "of-this-test-only"
_BIN = Path(sys.executable).parent
_OTHERS = Path(sys.prefix) / "others" / "bin"


def program(name: str) -> str:
    """Where this program is; raises FileNotFoundError."""
    found = shutil.which(name, path=os.pathsep.join((str(_BIN), str(_OTHERS), os.environ.get("PATH", ""), "/usr/sbin")))
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


def told(*command: str) -> str:
    """The first line of what a command prints, as "rclone v1.75.2"."""
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def package(name: str) -> str:
    """A package of .venv/others with its version."""
    code = f"from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([_OTHERS / "python", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return f"{name} {done.stdout.strip()}"


#: Of WebDAV: no server tells a hash.
READ_BACK = "no hash of what it keeps: each put is read back"

DAV = ("read back and hashed",)


class Told:
    """What the table tells of a server beside its tests."""

    lacks = "–"
    to_set = "–"
    #: What `check` says where it lacks something; the run looks for it.
    checked: tuple[str, ...] = ()
    #: S3: does it lock objects?
    locks = False


class Other(Told, Server):
    """A server over the folder ``files``, on one port."""

    name = ""
    #: Debian's account for a server that leaves root; its folders are given to it.
    account: str | None = None

    def __init__(self, folder: Path) -> None:
        super().__init__(self.name, folder)
        (self._port,) = free_ports(1)
        self.files = folder / "files"
        self.body = folder / "body"
        self.other = folder / "other"
        for path in (self.files, self.body, self.other):
            path.mkdir()
            if self.account is not None and os.geteuid() == 0:
                shutil.chown(path, self.account, self.account)

    @staticmethod
    def version() -> str:
        """Its name and version."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def _is_ready(self) -> bool:
        return _status(self.url) is not None


def client_of(server: S3Bucket | SeaweedS3) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


class S3Bucket(Other):
    """A server that speaks S3 and is given a bucket when it starts."""

    access_key, secret_key = USERNAME, PASSWORD

    def client(self) -> Any:
        """An S3 client of boto3, to be closed."""
        return client_of(self)

    def start(self, patience: float = 60.0) -> None:
        super().start(patience)
        client = self.client()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="calls")
        finally:
            client.close()


class Moto(S3Bucket):
    name = "moto"
    locks = True
    lacks = "each put is read back; no limit to a name; nothing outlives it"
    to_set = "for tests only"
    checked = ("verifies no SHA-256: reading back",)

    @staticmethod
    def version() -> str:
        return package("moto")

    def _command(self) -> list[str]:
        return [program("moto_server"), "-H", "127.0.0.1", "-p", str(self._port)]


class RcloneS3(S3Bucket):
    name = "rclone-s3"
    lacks = (
        "each put is read back, and looked for before; a `GET` may break off while the same key is put again; "
        "no object lock; no object with the name of a folder"
    )
    to_set = "`--auth-key`; a folder is a bucket"
    checked = ("verifies no SHA-256: reading back", "no conditional writes")

    @staticmethod
    def version() -> str:
        return told("rclone", "version").replace("rclone", "rclone serve s3")

    def _command(self) -> list[str]:
        return [
            program("rclone"), "serve", "s3", str(self.files), f"--addr=127.0.0.1:{self._port}",
            f"--auth-key={USERNAME},{PASSWORD}", "--config=none",
        ]  # fmt: skip


class RcloneDav(Other):
    name = "rclone-dav"
    lacks = READ_BACK
    to_set = "`--user` and `--pass`"
    checked = DAV

    @staticmethod
    def version() -> str:
        return told("rclone", "version").replace("rclone", "rclone serve webdav")

    def _command(self) -> list[str]:
        return [
            program("rclone"), "serve", "webdav", str(self.files), f"--addr=127.0.0.1:{self._port}",
            f"--user={USERNAME}", f"--pass={PASSWORD}", "--config=none",
        ]  # fmt: skip


class Nginx(Other):
    name = "nginx"
    account = "www-data"
    lacks = f"{READ_BACK}; `MOVE` is always 204: looked at under its key"
    to_set = "`dav_methods PUT DELETE MKCOL COPY MOVE`, `dav_ext_methods PROPFIND OPTIONS`, `client_max_body_size 0`"
    checked = DAV

    @staticmethod
    def version() -> str:
        return told("nginx", "-v").removeprefix("nginx version: ") + " with dav-ext"

    def _command(self) -> list[str]:
        temporary = "".join(f"{kind}_temp_path {self.other};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (self.folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {self.folder}/pid; error_log {self.folder}/log;
load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
{"user www-data;" if os.geteuid() == 0 else ""}
events {{ }}
http {{
  access_log off; client_body_temp_path {self.body}; client_max_body_size 0; {temporary}
  server {{
    listen 127.0.0.1:{self._port}; root {self.files};
    location / {{ dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS; }}
  }}
}}
""")
        return [program("nginx"), "-e", str(self.folder / "log"), "-c", str(self.folder / "nginx.conf")]


class Lighttpd(Other):
    name = "lighttpd"
    lacks = READ_BACK
    to_set = "`webdav.activate`; `server.upload-dirs` on a disk with room"
    checked = DAV

    @staticmethod
    def version() -> str:
        return told("lighttpd", "-v").split(" (")[0]

    def _command(self) -> list[str]:
        (self.folder / "lighttpd.conf").write_text(f"""
server.modules = ("mod_webdav")
server.document-root = "{self.files}"
server.bind = "127.0.0.1"
server.port = {self._port}
server.upload-dirs = ("{self.body}")
webdav.activate = "enable"
""")
        return [program("lighttpd"), "-D", "-f", str(self.folder / "lighttpd.conf")]


class WsgiDav(Other):
    name = "wsgidav"
    lacks = f"{READ_BACK}; names are cut at `?` and `;`"
    to_set = "no `?` or `;` in `prefix`"
    checked = DAV

    @staticmethod
    def version() -> str:
        return package("WsgiDAV")

    def _command(self) -> list[str]:
        return [
            program("wsgidav"), "--host=127.0.0.1", f"--port={self._port}", f"--root={self.files}",
            "--auth=anonymous", "--server=cheroot", "--no-config", "--quiet",
        ]  # fmt: skip


class Copyparty(Other):
    name = "copyparty"
    lacks = READ_BACK
    to_set = "`--daw`; the account needs the right `A`"
    checked = DAV

    @staticmethod
    def version() -> str:
        return package("copyparty")

    def _command(self) -> list[str]:
        return [
            program("copyparty"), "-q", "-i", "127.0.0.1", "-p", str(self._port), "--daw",
            "-a", f"{USERNAME}:{PASSWORD}", "-v", f"{self.files}::A,{USERNAME}",
        ]  # fmt: skip


class SeaweedS3(Told, Seaweed):
    name = "seaweedfs"
    locks = True
    lacks = "`\\` in a name is `/`"
    to_set = "an account in `-s3.config`; the bucket, made beforehand"

    @staticmethod
    def version() -> str:
        return "SeaweedFS " + told("weed", "version").split()[2]

    @property
    def url(self) -> str:
        return self.s3_url

    def client(self) -> Any:
        return client_of(self)

    def start(self, patience: float = 60.0) -> None:
        super().start(patience)
        if not (self.folder / "made").exists():
            self.make_bucket("calls")
            (self.folder / "made").touch()


class SeaweedDav(SeaweedS3):
    lacks = f"{READ_BACK}; no accounts; a file becomes a folder when something is put below its name"
    to_set = "let nobody else reach its port"
    checked = DAV

    @staticmethod
    def version() -> str:
        return SeaweedS3.version()

    @property
    def url(self) -> str:
        return self.webdav_url


class Httpd(Told, Apache):
    name = "apache"
    lacks = READ_BACK
    to_set = "`Dav On`; `DavLockDB` in a folder that it may write"
    checked = DAV

    @staticmethod
    def version() -> str:
        return told("apache2", "-v").split(": ")[1].split(" (")[0]
