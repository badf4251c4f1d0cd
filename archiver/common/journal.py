"""What systemd hears: its journal, where standard error leads there, and sd_notify.

A log event goes there with fields of its own to search by.

The native protocol is documented in systemd's "Native Journal Protocol" (JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SOCKET", "fields", "is_stderr", "notify", "send"]

SOCKET = Path("/run/systemd/journal/socket")
#: As syslog(3) numbers them.
_PRIORITIES = {"critical": "2", "error": "3", "warning": "4", "info": "6", "debug": "7"}
#: What of an event may be searched by.
_SEARCHED = ("event", "source", "store", "recording_id")


def is_stderr() -> bool:
    """Whether standard error is the journal's stream, as systemd says in JOURNAL_STREAM (device:inode)."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def fields(event: Mapping[str, object]) -> dict[str, str]:
    """What the journal keeps of an event beside its line."""
    told = {"PRIORITY": _PRIORITIES.get(str(event.get("level")), "6"), "SYSLOG_IDENTIFIER": "archiver"}
    return told | {f"ARCHIVER_{name.upper()}": str(event[name]) for name in _SEARCHED if event.get(name) is not None}


def send(entry: Mapping[str, str], path: Path = SOCKET) -> None:
    """One entry. Raises OSError at once where the journal can't take it: not there, full, or the entry is too long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.setblocking(False)
        journal.sendto(b"".join(_field(name, value) for name, value in entry.items()), str(path))


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%b=%b\n" % (name.encode(), data)


def notify(message: str) -> None:
    """sd_notify(3): tell systemd; nothing where it is not there."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        # Whoever does not read may not hold up the loop.
        s.settimeout(0.2)
        s.connect("\0" + address[1:] if address.startswith("@") else address)
        s.sendall(message.encode())
