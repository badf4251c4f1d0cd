"""What a log line holds, and what it never holds."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import sys
import time
import urllib.parse
import warnings
from datetime import timedelta

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from archiver.common import log
from archiver.common.log import Repeats, add_secrets, configure, redact

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


@pytest.fixture
def lines(capsys):
    """Everything logged so far, as parsed JSON; nothing may have gone to standard output."""

    def read() -> list[dict]:
        out, err = capsys.readouterr()
        assert not out
        return [json.loads(line) for line in err.splitlines()]

    return read


def text_of(secret: str) -> str:
    """Where the secret may hide, in one text."""
    login = base64.b64encode(f"archiver:{secret}".encode()).decode()
    return "\n".join([
        secret, repr(secret), json.dumps(secret), urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret), f"Basic {login}", repr({"token": secret}), f"x{secret}y",
    ])  # fmt: skip


def test_off_a_terminal_a_line_is_json_with_event_level_and_utc_time(lines):
    configure(level="info")
    structlog.get_logger().info("poll.done", source="hq", new=3)
    (line,) = lines()
    assert line.pop("at").endswith("Z")
    assert line == {"event": "poll.done", "level": "info", "source": "hq", "new": 3}


def test_on_a_terminal_it_is_coloured_text(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    configure()
    structlog.get_logger().warning("poll.failed", source="hq")
    assert "\x1b[" in sys.stderr.getvalue()
    assert "poll.failed" in sys.stderr.getvalue()


def test_text_from_outside_can_neither_steer_a_terminal_nor_forge_a_line(monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    configure(json=False)
    structlog.get_logger().info("a\nforged [error] line", name="\x1b[2J\x9b2J", deep={"more": ["\x07"]})
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not set(err) & {"\x1b", "\x9b", "\x07"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("GET /rest/leg?uniqueId=7&hash=ab failed", "GET /rest/leg?… failed"),
        ("https://pbx.example.com/a?b=c", "https://pbx.example.com/a?…"),
        ("no call from +1 (650) 466-8888 today", "no call from +… today"),
        ("no call from 06504668888", "no call from …"),
        ("the source says 123456789 bytes, 4 came", "the source says 123456789 bytes, 4 came"),
        ("[2024-05-17T11:45:32.000Z, 2024-05-17T12:00:00.000Z): what? no", None),
    ],
)
def test_no_line_holds_a_phone_number_or_a_query_string(lines, said, told):
    configure()
    structlog.get_logger().warning("poll.failed", error=said, recording_id="gateway-1795316918.13000", bytes=123456789)
    (line,) = lines()
    assert line["error"] == (told or said)
    assert (line["recording_id"], line["bytes"]) == ("gateway-1795316918.13000", 123456789)


def test_levels_below_the_configured_one_are_silent(lines):
    configure(level="warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("anything").info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines()] == ["loud"]


def test_the_standard_librarys_logging_takes_the_same_way(lines):
    configure(secrets=["hunter2!"])
    logging.getLogger("asyncio").warning("slow %s", "hunter2!")
    logging.getLogger("botocore.auth").info("a line for each request")
    logging.getLogger("some.package").info("100%", "broken")
    try:
        raise RuntimeError("hunter2!")
    except RuntimeError:
        logging.getLogger("apscheduler").exception("job failed")
    said = lines()
    assert [(line["event"], line["logger"]) for line in said] == [
        ("slow ***", "asyncio"),
        ("100%", "some.package"),
        ("job failed", "apscheduler"),
    ]
    assert "RuntimeError: ***" in said[2]["exception"]


def test_python_warnings_become_log_lines(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        configure()
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    assert "this is old" in lines()[0]["event"]


def test_a_secret_is_hidden_wherever_it_stands(lines):
    class Odd:
        def __str__(self) -> str:
            return SECRET

    configure(secrets=[SECRET, "87654321"])
    try:
        try:
            raise ValueError(f"bad {SECRET!r}")
        except ValueError as error:
            raise RuntimeError(text_of(SECRET)) from error
    except RuntimeError:
        structlog.get_logger().exception(
            f"with {SECRET}", deep={"list": [{"in": (SECRET, {SECRET})}], SECRET: 1}, raw=SECRET.encode(),
            text=text_of(SECRET), error=RuntimeError(SECRET), odd=Odd(), number=87654321, url=text_of(SECRET).encode(),
        )  # fmt: skip
    (line,) = lines()
    shown = json.dumps(line, ensure_ascii=False)
    assert "p4ss" not in shown
    assert "wörd" not in shown
    assert "87654321" not in shown
    assert base64.b64encode(SECRET.encode()).decode()[4:12] not in shown
    assert line["event"] == "with ***"
    assert line["level"] == "error"


@pytest.mark.parametrize("user", ["", "a", "ab", "abc", "some.user@example.com"])
@pytest.mark.parametrize("secret", ["abcd", "hunter2", "ünïcödé", "a-longer-secret-0123456789"])
def test_base64_of_user_and_password_is_hidden_whatever_the_users_length(user, secret):
    add_secrets([secret])
    whole = f"{user}:{secret}"
    shown = redact(f"Authorization: Basic {base64.b64encode(whole.encode()).decode()}")
    left = shown.removeprefix("Authorization: Basic ").replace("***", "")
    # Nothing that follows the password's first character is left.
    assert len(left) <= -(-(len(user.encode()) + 2) * 8 // 6)


@given(st.text(min_size=4).filter(lambda text: "*" not in text), st.text(), st.text())
def test_no_secret_survives_redaction(secret, before, after):
    known = log._Redactor()
    known.add([secret])
    assert secret not in known.redact(before + secret + after)


def test_short_secrets_would_hide_half_the_words_and_are_left():
    add_secrets(["", "a", "abc"])
    assert redact("abc") == "abc"


def test_keys_levels_and_times_stay_whatever_the_secrets_are(lines):
    configure(secrets=["event", "info", "2024", "2025", "2026", "level"])
    structlog.get_logger().info("an event", level_of="info")
    (line,) = lines()
    assert line["event"] == "an ***"
    assert line["level"] == "info"
    assert line["at"].startswith("20")


def test_secrets_can_be_added_at_run_time(lines):
    configure(secrets=["first-secret"])
    structlog.get_logger().info("first-secret second-secret")
    add_secrets(["second-secret"])
    structlog.get_logger().info("first-secret second-secret")
    assert [line["event"] for line in lines()] == ["*** second-secret", "*** ***"]


def test_of_a_long_value_both_ends_are_logged_at_once_and_no_half_of_a_secret(lines):
    configure(secrets=["the-password"])
    began = time.monotonic()
    for before in range(4_980, 5_040):
        text = "b" * before + "the-password" + "c" * 8_000_000 + "the-password" + "d" * before
        structlog.get_logger().info("answer", body=text, raw=text.encode(), why=[text])
    assert time.monotonic() - began < 60
    for line in lines():
        for told in (line["body"], line["raw"], *line["why"]):
            assert 9_000 < len(told) < 10_200
            assert told.startswith("b" * 4_900)
            assert told.endswith("d" * 4_900)
            assert re.fullmatch(r"b+\*{0,3}c*… \(\d+ characters\) …c*\*{0,3}d+", told)


def test_a_secret_that_begins_another_hides_both_whole():
    add_secrets(["hunter", "hunter2-and-more"])
    assert redact("hunter2-and-more, hunter") == "***, ***"


def test_what_json_can_not_hold_is_logged_all_the_same(lines):
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError

    loop: list = []
    loop.append(loop)
    configure()
    structlog.get_logger().info("odd", nan=float("nan"), bad=Bad(), loop=loop, lone="\ud800", when=timedelta(1), n=None)
    (line,) = lines()
    assert line["bad"] == "<Bad>"
    assert line["nan"] == "nan"
    assert line["n"] is None


def test_a_full_or_closed_standard_error_stops_nobody(monkeypatch):
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    configure(json=True)
    monkeypatch.setattr(sys, "stderr", Full())
    structlog.get_logger().info("lost")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    structlog.get_logger().info("lost")


class TestRepeats:
    def setup_method(self):
        self.now = 0.0
        self.repeats = Repeats(timedelta(seconds=60), clock=lambda: self.now, most=3)

    def passes(self, event: str = "fetch.failed", level: str = "warning", **more) -> dict | None:
        try:
            return dict(self.repeats(None, level, {"event": event, "level": level, **more}))
        except structlog.DropEvent:
            return None

    def test_within_the_window_a_repetition_is_dropped_and_counted_later(self):
        assert "repeated" not in self.passes(source="hq", error="x")
        for self.now in (1.0, 30.0, 59.9):
            assert self.passes(source="hq", error="x", attempt=self.now) is None
        self.now = 60.0
        assert self.passes(source="hq", error="x")["repeated"] == 3
        self.now = 121.0
        assert self.passes(source="hq", error="x") is None
        self.now = 600.0
        assert self.passes(source="hq", error="x")["repeated"] == 1
        self.now = 900.0
        assert "repeated" not in self.passes(source="hq", error="x")

    def test_a_store_that_is_down_for_a_day_is_a_few_lines(self):
        passed = []
        for second in range(86400):
            self.now = float(second)
            passed.append(self.passes("store.down", store="main", error="no route to host"))
        told = [line for line in passed if line]
        assert len(told) < 40
        assert sum(line.get("repeated", 0) + 1 for line in told) > 80000

    def test_even_ever_new_errors_of_one_kind_are_bounded(self):
        told = 0
        for second in range(4 * 3600):
            self.now = float(second)
            told += self.passes("store.down", store="main", error=f"request {second} failed") is not None
        assert told == 400
        assert self.passes("store.down", store="other", error="request 1 failed")

    def test_another_source_error_or_exception_is_no_repetition(self):
        assert self.passes(source="hq", error="x")
        assert self.passes(source="branch", error="x")
        assert self.passes(source="hq", store="main", error="x")
        assert self.passes(source="hq", error="y")
        assert self.passes(source="hq", error="x", exc_info=ValueError("z"))

    def test_what_is_no_warning_always_passes(self):
        assert self.passes(level="info")
        assert self.passes(level="info")

    def test_what_it_remembers_is_bounded(self):
        for i in range(100):
            assert self.passes(error=str(i))
        assert len(self.repeats._seen) == 3
        assert self.passes(error="99") is None

    def test_it_is_part_of_the_setup(self, lines):
        configure()
        for _ in range(3):
            structlog.get_logger().error("store.down", source=None, error="refused")
        assert len(lines()) == 1


async def test_an_exception_that_nobody_awaited_is_logged_without_its_secret(lines):
    configure(secrets=["hunter2!"])
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "lost", "exception": RuntimeError("hunter2!")})
    (line,) = lines()
    assert line["logger"] == "asyncio"
    assert "hunter2!" not in json.dumps(line)
