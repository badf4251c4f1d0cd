"""What can go wrong, named by what can be done about it. A docstring is the default message.

ArchiverError
├── ConfigError             mend the config file (exit code 2)
├── CatalogDown             the database can't be reached
├── SourceError
│   ├── TryAgain            will pass by itself: time-outs, resets, cut bodies, 429, 5xx, wrong bytes
│   │   └── Overflow        ask for less: the listing is too long
│   │       └── TooSlow     ask for less: no answer in time
│   ├── NotReady            not there yet (404 on a fresh call, still running)
│   ├── Refused             our account is refused (401, 403)
│   ├── Gone                the source says that it was deleted
│   ├── Empty               there is no audio in it
│   └── BadData             an answer that nobody can read
└── StoreError
    ├── StoreDown           will pass by itself: unreachable, full, 5xx
    │   └── SpoolDown       the spool's disk is full or broken
    ├── StoreRefused        our account, bucket or path is refused: an operator must act
    ├── StoreMissing        no object under that key
    └── StoreConflict       other bytes lie under that key

A source raises SourceErrors and a store StoreErrors, each translated at its edge; the engine in the
middle has one place that decides what follows.
"""

from __future__ import annotations

from datetime import timedelta


class ArchiverError(Exception):
    """Something went wrong."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").strip()


class ConfigError(ArchiverError):
    """The config can't be used."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CatalogDown(ArchiverError):
    """The database can't be reached."""


class SourceError(ArchiverError):
    """The source failed."""

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


class NotReady(SourceError):
    """It is not there yet."""


class Refused(SourceError):
    """The source refused our account."""


class Gone(SourceError):
    """The source says that it was deleted."""


class Empty(SourceError):
    """There is no audio in it."""


class BadData(SourceError):
    """The answer can't be read."""


class StoreError(ArchiverError):
    """The store failed."""


class StoreDown(StoreError):
    """The store can't be reached."""


class SpoolDown(StoreDown):
    """The spool can't take it."""


class StoreRefused(StoreError):
    """The store refused us."""


class StoreMissing(StoreError):
    """The store has no such object."""


class StoreConflict(StoreError):
    """Other bytes lie under that key."""


_ADVICE: tuple[tuple[type[ArchiverError], str], ...] = (
    (CatalogDown, "see that PostgreSQL runs and [database] url is right, then `archiver check`"),
    (Refused, "mend the account, its key or its rights (docs/sources.md tells which), then `archiver check`"),
    (SourceError, "see that the recorder runs and base_url is right, then `archiver check`"),
    (SpoolDown, "make room under data_dir, then run it again"),
    (StoreDown, "see that the store runs and can be reached from here, then `archiver check`"),
    (StoreError, "mend the store's options, account or rights, then `archiver check`"),
)


def advice(error: BaseException) -> str:
    """What to do next about it; nothing where only its own text can tell."""
    return next((text for kind, text in _ADVICE if isinstance(error, kind)), "")


def with_advice(error: BaseException) -> str:
    """Its text and what to do next, in one line."""
    return " → ".join(filter(None, [" ".join(str(error).split()), advice(error)]))
