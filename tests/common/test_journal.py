"""What systemd's journal gets where standard error leads there; a socket stands for journald."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from archiver.common import log

SECRET = "p4ss/wörd\"+'\\ &%"


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setattr(log, "_redactor", log._Redactor())
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    for name in log._CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Journal:
    """journald's socket, and the stream that services get as standard error."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.path = folder / "socket"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.setblocking(False)
        self._stderr = (folder / "stderr").open("w+", encoding="utf-8")

    def close(self) -> None:
        self.socket.close()
        self._stderr.close()

    def configure(self, stream: str | None = None, **how: Any) -> None:
        """As under systemd, where ``stream`` does not say otherwise."""
        found = os.fstat(self._stderr.fileno())
        self._monkeypatch.setattr(sys, "stderr", self._stderr)
        self._monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}" if stream is None else stream)
        log.configure(journal_socket=self.path, **how)

    def datagrams(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 20))
            except BlockingIOError:
                return found

    def entries(self) -> list[dict[str, str]]:
        return [entry(datagram) for datagram in self.datagrams()]

    def lines(self) -> list[str]:
        """What came to standard error."""
        return Path(self._stderr.name).read_text("utf-8").splitlines()


def entry(data: bytes) -> dict[str, str]:
    """As the documentation of the native protocol says that a datagram is to be read."""
    fields: dict[str, str] = {}
    while data:
        head, _, data = data.partition(b"\n")
        name, is_text, value = head.partition(b"=")
        if not is_text:
            length = int.from_bytes(data[:8], "little")
            value, end, data = data[8 : 8 + length], data[8 + length : 9 + length], data[9 + length :]
            assert end == b"\n"
        assert name.decode() not in fields
        fields[name.decode()] = value.decode("utf-8")
    return fields


@pytest.fixture
def journal(tmp_path, monkeypatch):
    there = Journal(tmp_path, monkeypatch)
    yield there
    there.close()


def test_an_event_is_its_json_line_with_level_and_fields_to_search_by(journal):
    journal.configure()
    structlog.get_logger().warning("copy.unreadable", source="hq", store="disk", recording_id="r/1", error="no")
    structlog.get_logger().info("daemon.ready", sources=["hq"])
    copy, ready = journal.entries()
    line = json.loads(copy.pop("MESSAGE"))
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "copy.unreadable",
        "level": "warning",
        "source": "hq",
        "store": "disk",
        "recording_id": "r/1",
        "error": "no",
    }
    assert copy == {
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "archiver",
        "ARCHIVER_EVENT": "copy.unreadable",
        "ARCHIVER_SOURCE": "hq",
        "ARCHIVER_STORE": "disk",
        "ARCHIVER_RECORDING_ID": "r/1",
    }
    assert set(ready) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "ARCHIVER_EVENT"}
    assert journal.lines() == []


def test_each_level_has_syslogs_number(journal):
    journal.configure(level="debug")
    for level in ("debug", "info", "warning", "error", "critical", "exception"):
        getattr(structlog.get_logger(), level)(f"an.{level}")
    logging.getLogger("anything").error("of the standard library")
    assert [entry["PRIORITY"] for entry in journal.entries()] == ["7", "6", "4", "3", "2", "3", "3"]


@pytest.mark.parametrize("name", ["\n", "a\nPRIORITY=0\nMESSAGE=forged", "ends\n", "=", "", "ü\x00\ud800"])
def test_a_value_of_any_kind_is_one_field(journal, name):
    journal.configure()
    structlog.get_logger().info("poll.done", source=name)
    (said,) = journal.entries()
    assert said["ARCHIVER_SOURCE"] == name.replace("\ud800", "\\ud800")
    assert json.loads(said["MESSAGE"])["source"] == name
    assert (said["PRIORITY"], len(said)) == ("6", 5)


def test_no_field_holds_a_secret_a_phone_number_or_a_query_string(journal):
    journal.configure(secrets=[SECRET])
    login = base64.b64encode(f"archiver:{SECRET}".encode()).decode()
    for said in (SECRET, f"a\n{SECRET}", login, "+14155551234", "/rest/leg?hash=4155551234"):
        structlog.get_logger().error(f"lost {said}", source=said, store=said, recording_id=said)
    told = journal.datagrams()
    assert len(told) == 5
    assert all(datagram.count(b"***") == 8 for datagram in told[:3])
    for datagram in told:
        for hidden in (SECRET.encode(), json.dumps(SECRET)[1:-1].encode(), login[-12:].encode(), b"4155551234"):
            assert hidden not in datagram


def test_what_the_journal_can_not_take_goes_to_standard_error_at_once(journal):
    journal.configure()
    room = journal.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    structlog.get_logger().info("too.long", names=["x" * 9000] * (room // 9000 + 1))
    assert '"too.long"' in journal.lines()[0]
    # Nobody reads: the socket is full sooner or later, and logging goes on.
    events = [f"event.{i}" for i in range(int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 50)]
    for event in events:
        structlog.get_logger().info(event, name="x" * 4096)
    taken = [entry["ARCHIVER_EVENT"] for entry in journal.entries()]
    assert taken
    assert [json.loads(line)["event"] for line in journal.lines()[1:]] == events[len(taken) :] != []
    structlog.get_logger().info("read.again")
    assert [entry["ARCHIVER_EVENT"] for entry in journal.entries()] == ["read.again"]
    journal.path.unlink()
    structlog.get_logger().info("gone")
    assert '"gone"' in journal.lines()[-1]


def test_standard_error_that_leads_elsewhere_gets_the_lines(journal):
    journal.configure(stream="1:2")
    structlog.get_logger().info("redirected")
    journal.configure(stream="")
    structlog.get_logger().info("no.systemd")
    journal.configure(json=False)
    structlog.get_logger().info("for people")
    assert [json.loads(line)["event"] for line in journal.lines()[:2]] == ["redirected", "no.systemd"]
    assert "for people" in journal.lines()[2]
    assert journal.entries() == []
