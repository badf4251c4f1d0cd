"""What an entry of the list is, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from ...settings.config import Alerts
from ..facts import SourceView, StoreView, Survey


class Of(StrEnum):
    """What a condition is a condition of."""

    HOST = "host"
    DATABASE = "database"
    CONFIG = "config"
    SOURCE = "source"
    STORE = "store"


class Level(StrEnum):
    """In `status`: ``error`` makes `check` exit with 1; a note is nothing wrong."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Severity(StrEnum):
    """Of alerts."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a condition's test found."""

    #: What is wrong, and what to do about it.
    what: str
    do: str
    #: Which of several that one condition tells of the same source or store.
    kind: str = ""
    #: Of what, where the test is one of the whole survey (``host``).
    of: str = ""
    #: A line each.
    details: tuple[str, ...] = ()
    #: For those who are told by mail and chat, in place of ``what``, which may quote a recorder or name a call.
    told: str = ""
    #: Are they told, or is it known and only shown?
    news: bool = True
    #: Where this shrinks, it is being mended, and the wait until they are told begins anew.
    size: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """An entry. Its name is that of its alert, of its rule, and of its section in docs/monitoring.md."""

    name: str
    of: Of
    level: Level
    severity: Severity
    #: For the table in docs/monitoring.md.
    about: str
    #: One of these, by ``of``.
    host: Callable[[Survey], Iterator[Finding]] | None = None
    source: Callable[[SourceView, Alerts], Iterator[Finding]] | None = None
    store: Callable[[StoreView], Iterator[Finding]] | None = None
    #: How long it must last before anybody is told; None: as [alerts] after says.
    after: timedelta | None = None
    #: It can be seen while the database is away.
    local: bool = False
    #: What ``/readyz`` says while it lasts; None: the daemon can work all the same. ``{}``: whose it is.
    unready: str | None = None
    #: `check` tries for itself whether it is so.
    tried: bool = False
    #: It may mean no more than that nobody runs it: `check`, which asks anyway, leaves it out.
    idle: bool = False
    #: It can only be seen from outside.
    outside: bool = False

    @property
    def runbook(self) -> str:
        return f"docs/monitoring.md#{self.name.lower()}"

    def of_host(self, survey: Survey) -> Iterator[Found]:
        for finding in self.host(survey) if self.host is not None else ():
            yield Found(self, finding.of, finding)

    def of_source(self, view: SourceView, alerts: Alerts) -> Iterator[Found]:
        for finding in self.source(view, alerts) if self.source is not None else ():
            yield Found(self, view.name, finding)

    def of_store(self, view: StoreView) -> Iterator[Found]:
        for finding in self.store(view) if self.store is not None else ():
            yield Found(self, view.name, finding)


@dataclass(frozen=True, slots=True)
class Found:
    condition: Condition
    #: The source, store, part or disk; "" for the whole.
    of: str
    finding: Finding

    @property
    def subject(self) -> str:
        """As alerts name it."""
        return f"{self.of} {self.finding.kind}".strip()
