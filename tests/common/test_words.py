"""Others' text and errors as messages show them: each kind is made in one place."""

from __future__ import annotations

import errno
import re
import ssl

import pytest

from archiver.common.words import one_line, plain, reason_of, visible
from tests.commands import ROOT


def test_what_steers_a_terminal_is_blank_and_spaces_stay():
    assert plain("a\x1b[2Jb\n\u202ec  d") == "a [2Jb  c  d"
    assert plain(None) == "–"


def test_a_server_s_words_are_one_short_line():
    assert one_line("  No\r\n\tsuch \x07 key ", 100) == "No such   key"
    assert one_line("x" * 500) == "x" * 160


def test_a_mistake_is_shown_with_what_can_t_be_printed():
    assert visible("sources.\x1bhq:\r\n no") == "sources.\\u001bhq:  no"
    assert visible("x" * 900) == "x" * 499 + "…"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/srv/calls"), "Permission denied"),
        (OSError("[Errno 111] Connect call failed ('127.0.0.1', 9)"), "Connect call failed ('127.0.0.1', 9)"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "wrong version number"),
        (OSError("[Errno 1] [SSL] broken"), "broken"),
        (ValueError("one\ntwo \x1b[31m"), "one two  [31m"),
        (ValueError("a list [1] stays"), "a list [1] stays"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_the_reason_of_an_error_has_no_number_and_is_one_line(error, said):
    assert reason_of(error) == said


def test_no_other_module_makes_these():
    for file in sorted((ROOT / "archiver").rglob("*.py")):
        text = file.read_text("utf-8")
        # The stranger's script needs nothing else of ours.
        if file.name != "words.py" and file != ROOT / "archiver/proof/verify.py":
            assert not re.search(r"if c\.isprintable\(\) else", text), file
            assert not re.search(r"error\.strerror|getattr\(error, .strerror", text), file
