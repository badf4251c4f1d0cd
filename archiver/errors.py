"""What can go wrong: each class says whom it concerns (its ``scope``) and what can be done about it.

What follows from a failure depends on its scope alone (docs/reliability.md has the table): what concerns one item
never opens a breaker, never pauses a source, never ends a verification. A docstring is the default message.

ArchiverError
├── ConfigError             CONFIG    mend the config file (exit code 2)
├── CatalogDown             DATABASE  the database can't be reached (exit code 3, or 1 where it was lost on the way)
│   ├── CatalogBusy         DATABASE  no connection, memory or time left for us
│   ├── CatalogFull         DATABASE  its disk is full
│   ├── CatalogReadOnly     DATABASE  a standby, or set read-only
│   ├── CatalogDamaged      DATABASE  its files are damaged, or their disk fails
│   ├── CatalogRefused      DATABASE  URL, user, password or database name (exit code 2: waiting mends none of these)
│   │   ├── CatalogForbidden          the role lacks rights
│   │   └── CatalogPooled             a pooler that gives each transaction another session
│   └── CatalogMisfit       DATABASE  tables missing, or of another version (exit code 2)
├── SourceError
│   ├── TryAgain            ITEM      will pass by itself: a cut body, a status, a page in place of audio
│   │   ├── Mismatch        ITEM      not the bytes that the source told of: it is asked anew what it tells
│   │   ├── Overflow        ITEM      ask for less: the listing is too long
│   │   │   └── TooSlow     ITEM      ask for less: an answer that stalls
│   │   │       └── NoAnswer  RECORDER  no answer in time
│   │   └── RecorderDown    RECORDER  no connection, or it ended before an answer
│   │       └── Busy        RECORDER  429, 503: it asks for fewer requests
│   ├── NotReady            ITEM      not there yet (404 on a fresh call, still running)
│   │   └── Doubtful        ITEM      audio that may not be whole: looked at again, then kept as evidence
│   ├── Refused             ACCOUNT   our account is refused (401, 403), unless a log-in shows that it is welcome
│   │   └── WrongZone       CONFIG    the recorder's ids prove its timezone wrong: nothing is asked until it is right
│   ├── Gone                ITEM      the source says that it was deleted
│   ├── Empty               ITEM      there is no audio in it
│   └── BadData             ITEM      an answer that nobody can read
└── StoreError              STORE
    ├── StoreDown           STORE     will pass by itself: unreachable, 5xx
    │   ├── StoreFull       STORE     no room
    │   └── SpoolDown       HOST      the spool's disk is full or broken
    ├── StoreRefused        STORE     our account, bucket or path is refused: an operator must act
    └── ObjectFailed        OBJECT    this object can't be put or read: 413, 400, damaged, in a cold class
        ├── StoreMissing    OBJECT    no object under that key
        ├── StoreConflict   OBJECT    other bytes lie under that key
        └── StoreCold       OBJECT    it lies in a class that can't be read at once

ITEM is the medium or the window that was asked for. A source raises SourceErrors and a store StoreErrors, each
translated at its edge. Where an answer alone can't tell whom it concerns (a 500 to one put, no answer to one request),
the class says the larger one, and the engine asks: while a canary or ``check()`` works, it was the item's.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import ClassVar


class Scope(StrEnum):
    """Whom a failure concerns."""

    #: The medium or the window that was asked for.
    ITEM = "item"
    OBJECT = "object"
    STORE = "store"
    RECORDER = "recorder"
    ACCOUNT = "account"
    DATABASE = "database"
    #: The machine that archiver runs on: its spool.
    HOST = "host"
    CONFIG = "config"


class ArchiverError(Exception):
    """Something went wrong."""

    scope: ClassVar[Scope]

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").strip()


class ConfigError(ArchiverError):
    """The config can't be used."""

    scope = Scope.CONFIG

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CatalogDown(ArchiverError):
    """The database can't be reached."""

    scope = Scope.DATABASE

    #: False: it may pass while nobody touches config or database. True: only an operator's hand mends it.
    lasting = False
    #: It had been in use before.
    lost = False

    def __init__(self, message: str = "", remedy: str | None = None) -> None:
        super().__init__(message)
        #: What to do about it, where that is not what :func:`advice` says of its class.
        self.remedy = remedy


class CatalogBusy(CatalogDown):
    """The database has nothing left for us."""


class CatalogFull(CatalogDown):
    """The disk of the database is full."""


class CatalogReadOnly(CatalogDown):
    """The database can only be read."""


class CatalogDamaged(CatalogDown):
    """The database is damaged."""


class CatalogRefused(CatalogDown):
    """The database refuses us."""

    lasting = True


class CatalogForbidden(CatalogRefused):
    """The role of [database] url lacks rights in the database."""


class CatalogPooled(CatalogRefused):
    """A pooler gives each transaction another session of the database."""


class CatalogMisfit(CatalogDown):
    """The tables of the database are not those of this version."""

    lasting = True


class SourceError(ArchiverError):
    """The source failed."""

    scope = Scope.ITEM

    #: The HTTP status that said so, where one did.
    status: int | None = None


class TryAgain(SourceError):
    """It failed in a way that passes by itself."""

    def __init__(self, message: str = "", *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        #: How long the source asked us to wait, where it did.
        self.retry_after = retry_after


class Overflow(TryAgain):
    """The listing is too long for one answer."""


class TooSlow(Overflow):
    """It took too long to answer."""


class NoAnswer(TooSlow):
    """It did not answer in time."""

    scope = Scope.RECORDER


class RecorderDown(TryAgain):
    """The recorder can't be reached."""

    scope = Scope.RECORDER


class Busy(RecorderDown):
    """The recorder asks for fewer requests."""


class Mismatch(TryAgain):
    """These are not the bytes that the source told of."""


class NotReady(SourceError):
    """It is not there yet."""


class Doubtful(NotReady):
    """The audio may not be whole yet."""

    def __init__(self, message: str = "", *, what: str, sha256: str | None = None) -> None:
        super().__init__(message)
        #: The class of what is odd: unfinished, unchecked, short.
        self.what = what
        #: Of the bytes that came: those that come again are kept.
        self.sha256 = sha256


class Refused(SourceError):
    """The source refused our account."""

    scope = Scope.ACCOUNT


#: How the text of a WrongZone begins.
WRONG_ZONE = "timezone "


class WrongZone(Refused):
    """The source's timezone is wrong: what is listed would be taken for other moments."""

    scope = Scope.CONFIG

    def __init__(self, zone: str | None, off: str) -> None:
        proved = "so say the recorder's ids; nothing is listed until it is right"
        super().__init__(f"{WRONG_ZONE}{zone} is off by {off}, {proved}")


class Gone(SourceError):
    """The source says that it was deleted."""


class Empty(SourceError):
    """There is no audio in it."""


class BadData(SourceError):
    """The answer can't be read."""


class StoreError(ArchiverError):
    """The store failed."""

    scope = Scope.STORE

    #: The folder (with its final slash) that could not be listed, where the others may be.
    folder: str | None = None


class StoreDown(StoreError):
    """The store can't be reached."""


#: A word in the text of each StoreFull.
FULL = "full"


class StoreFull(StoreDown):
    """The store is full."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message if FULL in message.split() or not message else f"it is {FULL}: {message}")


class SpoolDown(StoreDown):
    """The spool can't take it."""

    scope = Scope.HOST


class StoreRefused(StoreError):
    """The store refused us."""


class ObjectFailed(StoreError):
    """The store can't put or read this object."""

    scope = Scope.OBJECT


class StoreMissing(ObjectFailed):
    """The store has no such object."""


class StoreConflict(ObjectFailed):
    """Other bytes lie under that key."""


class StoreCold(ObjectFailed):
    """The object lies in a cold class: restore it first."""


_ADVICE: tuple[tuple[type[ArchiverError], str], ...] = (
    (CatalogBusy, "it goes on by itself; see the load and the limits of PostgreSQL"),
    (CatalogFull, "make room on the disk of PostgreSQL; it goes on by itself"),
    (CatalogReadOnly, "name the primary in [database] url, or all hosts with target_session_attrs=read-write"),
    (
        CatalogDamaged,
        "see PostgreSQL's log and its disk; restore the database, or make the catalog again: docs/recover.md",
    ),
    (CatalogForbidden, "let that role own the database and its tables (docs/install.md), then `archiver check`"),
    (CatalogPooled, "name PostgreSQL itself in [database] url, or set pool_mode = session in the pooler"),
    (CatalogRefused, "mend user, password and database name in [database] url, then `archiver check`"),
    (CatalogMisfit, "restore the database, or make the catalog again: `archiver rebuild`, into an empty database"),
    (CatalogDown, "see that PostgreSQL runs and [database] url is right, then `archiver check`"),
    (WrongZone, "set timezone to the zone of the recorder's clock, then `archiver check`"),
    (Refused, "mend the account, its key or its rights (docs/sources.md tells which), then `archiver check`"),
    (SourceError, "see that the recorder runs and base_url is right, then `archiver check`"),
    (SpoolDown, "make room under data_dir, then run it again"),
    (StoreFull, "make room there, or raise its quota; it goes on by itself"),
    (StoreDown, "see that the store runs and can be reached from here, then `archiver check`"),
    (ObjectFailed, "the others go on; `archiver status` names it"),
    (StoreError, "mend the store's options, account or rights, then `archiver check`"),
)


def advice(error: BaseException) -> str:
    """What to do next about it; nothing where only its own text can tell."""
    if isinstance(error, CatalogDown) and error.remedy is not None:
        return error.remedy
    return next((text for kind, text in _ADVICE if isinstance(error, kind)), "")


def with_advice(error: BaseException) -> str:
    """Its text and what to do next, in one line."""
    return " → ".join(filter(None, [" ".join(str(error).split()), advice(error)]))
