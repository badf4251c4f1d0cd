"""Which config the daemon of a data_dir runs with, and the request to read it again: files in ``data_dir/run``.

``daemon.lock`` is locked as long as the daemon lives, ``daemon.json`` tells what it runs with, and a file ``reload-*``
asks it to look at its config now: it is gone once ``daemon.json`` tells the answer. No process id is trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from .. import __version__
from ..model import utc_text
from ..settings.config import Config, data_dir_of

Document = dict[str, Any]

#: Where a service keeps it whose config names none.
_SYSTEM = Path("/var/lib/archiver")
_LOCK, _RECORD, _REQUESTS = "daemon.lock", "daemon.json", "reload-*"


class Beacon:
    """The daemon's side. Another daemon of the same data_dir may hold the lock: then this one says nothing there."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "run"
        self._lock: BinaryIO | None = None
        self._told: Document | None = None

    def lit(self) -> bool:
        """Hold the lock, taken now where it was not held yet. Raises OSError."""
        if self._lock is not None:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / _LOCK).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def tell(self, document: Document) -> None:
        """Publish what the daemon runs with, where that changed. Raises OSError."""
        if self._lock is None or document == self._told:
            return
        temporary = self.folder / f".{_RECORD}.{os.getpid()}"
        temporary.write_text(json.dumps(document, indent=1), "utf-8")
        temporary.replace(self.folder / _RECORD)
        self._told = document

    def requests(self) -> list[Path]:
        return list(self.folder.glob(_REQUESTS)) if self._lock is not None else []

    def close(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.folder / _RECORD).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def record(
    config: Config,
    loaded_at: datetime,
    started_at: datetime,
    changes: Mapping[str, Sequence[str]],
    refused: tuple[datetime, str | None, Sequence[str]] | None,
    *,
    seen: Document,
    questions: Mapping[str, str],
) -> Document:
    """``questions``: by source what is to be answered before it is polled.

    ``changes``: by kind, the names that differ from the config before. ``refused``: when which file (its SHA-256) could
    not be taken, and why. ``seen``: what only the daemon sees.
    """
    at, sha256, problems = refused or (None, None, ())
    return {
        "pid": os.getpid(),
        "version": __version__,
        "started_at": utc_text(started_at),
        "config": {"path": str(config.path), "sha256": config.sha256, "loaded_at": utc_text(loaded_at)},
        "changes": {kind: list(names) for kind, names in changes.items()},
        "refused": {"at": utc_text(at), "sha256": sha256, "problems": list(problems)} if at is not None else None,
        "seen": seen,
        "questions": dict(questions),
    }


# -- the side of those who ask -----------------------------------------------------------------------------------------


def find(config: Path, data_dir: Path | None = None) -> tuple[Path, Document] | None:
    """The data_dir and the record of the daemon that runs with a config file, also where that can't be loaded now.

    ``data_dir``: where the file says it is, if that is known.
    """
    for folder in filter(None, (data_dir or data_dir_of(config), _SYSTEM)):
        found = daemon(folder)
        if found is not None and Path(found["config"]["path"]).resolve() == config.resolve():
            return folder, found
    return None


def daemon(data_dir: Path) -> Document | None:
    """What the running daemon of a data_dir tells of itself (see :func:`record`); None where none runs."""
    folder = data_dir / "run"
    try:
        with (folder / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found: Document = json.loads((folder / _RECORD).read_text("utf-8"))
                return found
    except (OSError, ValueError):
        # Nothing there, nothing for our eyes, or a daemon that has only just begun.
        return None
    return None


def died(data_dir: Path) -> bool:
    """Was the last daemon of a data_dir killed, and none runs now? One that ends in order takes its record along."""
    return daemon(data_dir) is None and (data_dir / "run" / _RECORD).exists()


def stale(found: Document, sha256: str | None) -> list[str]:
    """Why the config on disk (its SHA-256) is not the live one, one line each; empty where it is."""
    live, refused = found["config"], found["refused"]
    if refused is not None:
        return list(refused["problems"])
    if sha256 != live["sha256"]:
        return [f"{Path(live['path']).name}: has changed; the daemon takes it within seconds, or `archiver reload` now"]
    return []


def ask(data_dir: Path, patience: float) -> Document | None:
    """Have the daemon look at its config now; what it tells then, None where it ended or did not answer in time.

    Raises OSError where this account may not ask.
    """
    request = data_dir / "run" / f"reload-{secrets.token_hex(8)}"
    request.touch()
    end = time.monotonic() + patience
    try:
        while request.exists():
            if time.monotonic() > end or daemon(data_dir) is None:
                return None
            time.sleep(0.05)
    finally:
        request.unlink(missing_ok=True)
    return daemon(data_dir)
