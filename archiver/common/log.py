"""Logs: one event a line to standard error, JSON for machines, colours for a terminal, secrets for nobody.

Where standard error is systemd's journal, an event goes there with fields to search by; its text is the same line.

By convention phone numbers are never passed as keys or in events: a log outlives what it is about.
"""

from __future__ import annotations

import base64
import json as jsonlib
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

if "structlog" in sys.modules or "rich" in sys.modules:
    import structlog
else:
    # It imports rich wherever that is installed, for tracebacks that are not ours: a fifth of each command's start.
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python spells "not installed"
    try:
        import structlog
    finally:
        del sys.modules["rich"]

from structlog.typing import EventDict, Processor

from . import journal

__all__ = ["Repeats", "add_secrets", "configure", "private", "redact"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
#: They tell of each request, or of each tick.
_CHATTY = ("aiohttp", "apscheduler", "asyncio", "boto3", "botocore", "urllib3")
_SHORTEST = 4
_DEEPEST = 12
#: Characters of one value.
_MOST = 10_000
_HIDDEN = "***"
#: Set by us, never by others.
_OWN = {"at", "level"}
_HOUR = 3600.0
_K = TypeVar("_K")
_V = TypeVar("_V")
#: A query string; a phone number as the world writes it; what may be one as a country writes it, in text that others
#: wrote (sizes are told from it by their unit).
_QUERY = re.compile(r"\?[^\s?\"'<>]*=[^\s\"'<>]*")
_NUMBER = re.compile(r"(?<![\w.])\+\d(?:[ ().-]{0,2}\d){5,14}")
_DIGITS = re.compile(r"(?<![\w.:/-])\d{7,15}(?![\w:]| bytes)")
_FOREIGN = {"error", "text", "detail", "reason", "exception", "event"}


def configure(
    *,
    level: str = "info",
    json: bool | None = None,
    secrets: Iterable[str] = (),
    journal_socket: Path = journal.SOCKET,
) -> None:
    """Set up structlog, and the standard library's logging through it; may be called again.

    ``json`` None: JSON unless standard error is a terminal (under systemd it is not). The secrets
    are added to those known already.
    """
    add_secrets(secrets)
    as_json = not sys.stderr.isatty() if json is None else json
    to_journal = as_json and journal.is_stderr()
    last: list[Processor] = (
        [structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [
            _printable,
            structlog.dev.ConsoleRenderer(
                colors="NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
                timestamp_key="at",
            ),
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            Repeats(),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _redacted,
            *([_with_fields(last.pop())] if to_journal else []),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=(lambda *_: _Journal(journal_socket)) if to_journal else _Stderr,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(_LEVELS[level])
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))
    # What the pool wonders at the catalog raises, in plain words.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def add_secrets(secrets: Iterable[str]) -> None:
    """From now on these are hidden too (a reload may bring new ones); shorter ones than 4 characters are not."""
    _redactor.add(secrets)


def redact(text: str) -> str:
    """The text with *** for every secret in it."""
    return _redactor.redact(text)


def private(text: str) -> str:
    """The text as a log line would hold it: without secrets, phone numbers and query strings."""
    return str(_private(redact(text), foreign=False))


class Repeats:
    """Drops a warning or error that only repeats itself; the next that passes says how many it stands for.

    The same are those of equal event, source, store and error. While they go on they pass less and less often, at
    last once an hour; and of one event of a source or store, whatever its errors, no more than ``many`` an hour.
    """

    def __init__(
        self,
        window: timedelta = timedelta(seconds=60),
        clock: Callable[[], float] = time.monotonic,
        most: int = 1000,
        many: int = 100,
    ) -> None:
        self._window = window.total_seconds()
        self._clock = clock
        self._most = most
        self._many = many
        #: When one last passed, how many were dropped since, and how long they are dropped.
        self._seen: dict[tuple[str, ...], tuple[float, int, float]] = {}
        #: By all but the error: since when they are counted, how many passed, and how many were dropped.
        self._kinds: dict[tuple[str, ...], tuple[float, int, int]] = {}
        self._lock = threading.Lock()

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        if event.get("level") not in {"warning", "error", "critical"}:
            return event
        raised = event.get("exc_info")
        told = sys.exc_info()[1] if raised is True else raised[1] if isinstance(raised, tuple) else raised
        kind = tuple(str(event.get(part)) for part in ("event", "source", "store"))
        with self._lock:
            repeated = self._passes(kind, (*kind, str(event.get("error")), repr(told)))
        if repeated is None:
            raise structlog.DropEvent
        if repeated:
            event["repeated"] = repeated
        return event

    def _passes(self, kind: tuple[str, ...], key: tuple[str, ...]) -> int | None:
        """How many it stands for; None: it is dropped."""
        now = self._clock()
        passed, dropped, window = self._seen.get(key, (float("-inf"), 0, self._window))
        if now - passed < window:
            self._seen[key] = (passed, dropped + 1, window)
            return None
        since, count, lost = self._kinds.get(kind, (now, 0, 0))
        if now - since >= _HOUR:
            since, count = now, 0
        if count >= self._many:
            self._kinds[kind] = (since, count, lost + 1)
            return None
        longer = min(2 * window, _HOUR) if dropped else self._window
        _remember(self._seen, key, (now, 0, longer), self._most)
        _remember(self._kinds, kind, (since, count + 1, 0), self._most)
        return dropped + lost


def _remember(known: dict[_K, _V], key: _K, value: _V, most: int) -> None:
    """As the newest; the oldest is forgotten beyond ``most``."""
    known.pop(key, None)
    known[key] = value
    if len(known) > most:
        del known[next(iter(known))]


class _Redactor:
    """Knows the secrets, and the forms in which they turn up."""

    def __init__(self) -> None:
        self._known: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None
        self._longest = 0

    def add(self, secrets: Iterable[str]) -> None:
        known = self._known | {secret for secret in secrets if len(secret) >= _SHORTEST}
        if known == self._known:
            return
        plain = {form for secret in known for form in _forms(secret)}
        encoded = {form for secret in known for form in _base64_forms(secret)}
        # The longest first: one secret may begin another.
        alternatives = [re.escape(form) for form in sorted(plain, key=len, reverse=True)]
        alternatives += [f"{re.escape(form)}[A-Za-z0-9+/_=-]*" for form in sorted(encoded, key=len, reverse=True)]
        self._longest = max(map(len, plain | encoded))
        self._known, self._pattern = known, re.compile("|".join(alternatives))

    def redact(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(_HIDDEN, text)

    def clean(self, value: Any, depth: int = 0) -> Any:
        """The same, without secrets, as what JSON can hold."""
        if depth > _DEEPEST:
            return "…"
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int | float):
            text = str(value)
            shown = text == self.redact(text)
            return (value if math.isfinite(value) else text) if shown else _HIDDEN
        if isinstance(value, bytes | bytearray | memoryview):
            return self._text(bytes(value).decode("utf-8", "backslashreplace"))
        if isinstance(value, Mapping):
            return {self._text(str(key)): self.clean(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.clean(item, depth + 1) for item in value]
        try:
            return self._text(str(value))
        except Exception:  # noqa: BLE001 - a log line must not fail for what it tells of
            return f"<{type(value).__name__}>"

    def _text(self, text: str) -> str:
        """Redacted; of a long one its two ends, since a log tells of an answer and a traceback ends with its reason.

        What a cut may have halved is left out, in base64 with the characters that stand beside it.
        """
        if len(text) <= _MOST:
            return self.redact(text)
        half, halved = _MOST // 2, self._longest + 8
        head, tail = self.redact(text[: half + halved]), self.redact(text[-half - halved :])
        return f"{head[:-halved]}… ({len(text)} characters) …{tail[halved:]}"


_redactor = _Redactor()


def _forms(secret: str) -> set[str]:
    """As it is, in a URL, in JSON, in a repr."""
    safe = secret.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return {
        secret,
        quote(safe, safe=""),
        quote(safe),
        quote_plus(safe),
        quote(safe, safe="").lower(),
        jsonlib.dumps(secret)[1:-1],
        jsonlib.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(secret.encode("utf-8", "surrogatepass"))[2:-1],
    }


def _base64_forms(secret: str) -> set[str]:
    """What base64 makes of it wherever it stands in a longer text, as in ``user:password``.

    Three bytes become four characters, so there are three forms; the characters that neighbours have
    a part in are left out.
    """
    data = secret.encode("utf-8", "surrogatepass")
    found: set[str] = set()
    for before in range(3):
        first = -(-before * 8 // 6)
        last = (before + len(data)) * 8 // 6
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            form = encode(b"\0" * before + data).decode("ascii")[first:last]
            if len(form) >= _SHORTEST:
                found.add(form)
    return found


def _redacted(_logger: Any, _method: str, event: EventDict) -> EventDict:
    return {
        str(key): value if key in _OWN else _private(_redactor.clean(value), foreign=str(key) in _FOREIGN)
        for key, value in event.items()
    }


def _private(value: Any, *, foreign: bool) -> Any:
    """Without query strings and phone numbers: recorders put both into what they answer."""
    if isinstance(value, str):
        text = _NUMBER.sub("+…", _QUERY.sub("?…", value))
        return _DIGITS.sub("…", text) if foreign else text
    if isinstance(value, dict):
        return {_private(key, foreign=foreign): _private(item, foreign=foreign) for key, item in value.items()}
    if isinstance(value, list):
        return [_private(item, foreign=foreign) for item in value]
    return value


def _printable(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Vendors' text must not steer a terminal."""
    lines = {key: event.pop(key).split("\n") for key in ("exception", "stack") if isinstance(event.get(key), str)}
    return {**_escaped(event), **{key: "\n".join(_escaped(text)) for key, text in lines.items()}}


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"\\x{ord(found[0]):02x}", value)
    if isinstance(value, MutableMapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value


class _Stderr:
    """Writes lines to standard error. Where that is full or gone the work goes on."""

    def __init__(self, *_: Any) -> None:
        pass

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = exception = fatal = log = msg


def _with_fields(render: Processor) -> Processor:
    """The line, and what the journal keeps beside it."""

    def rendered(logger: Any, method: str, event: EventDict) -> Any:
        told = journal.fields(event)
        return (render(logger, method, event),), told

    return rendered


class _Journal:
    """Writes to the journal; where it takes nothing, or not so much, to standard error."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def msg(self, line: str, **told: str) -> None:
        try:
            journal.send({"MESSAGE": line, **told}, self._path)
        except OSError:
            _Stderr().msg(line)

    debug = info = warning = error = critical = exception = fatal = log = msg


class _ToStructlog(logging.Handler):
    """Hands the standard library's records on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit their format are others' mistake
            message = str(record.msg)
        about: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            about["exc_info"] = record.exc_info
        level = max(level for level in _LEVELS.values() if level <= max(record.levelno, logging.DEBUG))
        structlog.get_logger().log(level, message, **about)
