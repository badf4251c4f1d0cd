"""The seams. What a source and a store must do; everything else is theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Protocol, runtime_checkable

from .errors import StoreError
from .model import Body, Chapter, Listing, ListingKey, Medium, Receipt, Recording, Window


class Sink(Protocol):
    """Takes the bytes of one medium: counts, hashes, keeps them in memory or in the spool."""

    async def write(self, chunk: bytes) -> None: ...

    def told(self, *, content_type: str | None = None) -> None:
        """What the answer's headers said of the bytes (kept, not believed)."""

    async def restart(self) -> None:
        """Forget what came: the source begins again from the first byte."""


class Source(Protocol):
    """One configured recorder. Raises only errors.SourceError (and CancelledError).

    One that can't list by time (its ids come from elsewhere) says ``lists_by_time = False``: it has no windows, and
    is never asked for one (see :func:`lists_by_time`).
    """

    listing_key: ClassVar[ListingKey]

    async def check(self) -> str:
        """Log in and list next to nothing; one line saying what was seen."""

    async def list(self, window: Window) -> Listing:
        """Every recording whose listing key lies in the window; more is fine, fewer never.

        Returns only after the listing's natural end. Raises Overflow where the window should be
        halved, TryAgain, Refused, BadData.
        """

    async def fetch(self, medium: Medium, into: Sink) -> None:
        """The source's own bytes of a medium, from the first to the last.

        Raises TryAgain (also for a cut body), NotReady (404), Refused (401, 403), Gone, Empty.
        """


def lists_by_time(source: Source | type[Any]) -> bool:
    """Can it say what calls there were between two moments?"""
    return bool(getattr(source, "lists_by_time", True))


@runtime_checkable
class Details(Protocol):
    """A source whose list rows are short: asked once more for each new or changed recording.

    One whose options turn this off says ``asks_details = False``.
    """

    async def detail(self, recording: Recording) -> Recording:
        """The same recording with what its own page tells beside the list row."""


@runtime_checkable
class Expects(Protocol):
    """A source whose options say which of its promises count."""

    def expected(self, medium: Medium) -> Medium:
        """The medium with the size and hash that its bytes must have under the options of now."""


@runtime_checkable
class Follows(Protocol):
    """A source with something to read by a cursor, beside or in place of a listing by time."""

    async def follow(self, cursor: str | None) -> Chapter:
        """What comes after the cursor (None: from the beginning)."""


@runtime_checkable
class LooksUp(Protocol):
    """A source that finds recordings by the id of a call."""

    async def look_up(self, call_ids: Sequence[str]) -> Listing:
        """The recordings of those calls; an unknown id yields none.

        An id that fails alone is among ``failed``, and holds up no other. Raises what concerns all of them: the
        recorder can't be reached, the account is refused.
        """


@runtime_checkable
class FetchesBatches(Protocol):
    """A source that delivers many media in one answer."""

    #: How many media one batch should hold at most; 1 turns batches off.
    batch: int

    async def fetch_batch(self, media: Sequence[Medium], into: Mapping[str, Sink]) -> set[str]:
        """Fill the sinks (by recording_id: one medium each); returns the ids that were delivered whole.

        What was not delivered is fetched one by one afterwards.
        """


@runtime_checkable
class Acknowledges(Protocol):
    """A source that wants to hear which recordings are safe."""

    #: False where its options turn this off.
    acknowledges: bool

    async def acknowledge(self, document: Mapping[str, Any]) -> None:
        """Tell the source that this recording (its JSON) is archived; may be called again.

        A source with ``hears_all = True`` hears of the recordings of every source. Each copy in the document says
        where it lies (``location``, see Store.location).
        """


@runtime_checkable
class Decrypts(Protocol):
    """A source whose media may be encrypted."""

    def decrypted(self, document: Mapping[str, Any], media_id: str, data: bytes) -> bytes:
        """The clear bytes of an archived medium of this recording (its JSON); as they are where they are clear.

        Blocking. Raises ArchiverError.
        """


@runtime_checkable
class Locks(Protocol):
    """A store that may keep others from deleting what it holds."""

    async def lock_problem(self, key: str, since: datetime) -> str | None:
        """What is wrong with the lock of an object put then, or None (also where none is wanted, or its time is over).

        Raises StoreError.
        """

    async def lock(self, key: str, since: datetime) -> None:
        """Lock an object for as long as one put then should be. Raises StoreError."""


@runtime_checkable
class LocksApart(Protocol):
    """A store that locks recordings, and leaves what describes them so that a person's data can be erased."""

    #: Asks for the folders, as sources' names are written in keys, of those whose manifests and ledgers are locked too.
    worm: Callable[[], Collection[str]]


class Store(Protocol):
    """Where bytes go. Keys are whole names, prefix included. Raises only errors.StoreError."""

    async def check(self) -> str:
        """A rehearsal of all that the config asks of the store, within seconds; one line saying what was seen.

        It names what it did not try, and leaves nothing behind but what a lock forbids to delete.
        """

    async def alive(self) -> None:
        """Put, get, compare and delete one small canary: is a failure the store's, or the object's alone?

        Quick, and named by letters and digits only. Whatever fails here concerns the store: never raises ObjectFailed.
        """

    async def put(self, key: str, body: Body) -> Receipt:
        """Store the bytes durably and checked; returns only then.

        Never overwrites: where the key holds the same bytes already that is success, where it holds
        others it raises StoreConflict. Raises ObjectFailed where it surely concerns this object alone,
        StoreDown and StoreRefused where the store or the object may be meant (``alive`` tells).
        """

    async def stat(self, key: str) -> Receipt | None:
        """What lies under the key, or None."""

    async def get(self, key: str, into: Sink) -> None:
        """The bytes under the key. Raises StoreMissing, and ObjectFailed where it is there and can't be read."""

    def list(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        """Every object whose key starts with the prefix and sorts after ``after``, sorted by key (code points).

        A StoreError of one folder names it (``StoreError.folder``), so that the others can be listed all the same.
        """

    async def delete(self, key: str) -> None:
        """Remove an object (the canary, a spoilt copy's remains); missing is fine."""

    def location(self, key: str) -> dict[str, str]:
        """Where others find the object: ``kind`` and, by kind, ``path``, ``bucket`` and ``key``, or ``url``."""

    async def close(self) -> None: ...


@runtime_checkable
class Marked(Protocol):
    """A store that is a folder: an id in its root tells its disk from another."""

    #: Asks which id it has, as far as the catalog knows.
    known: Callable[[], Awaitable[str | None]] | None

    async def marker(self) -> str | None:
        """The id of what lies there now."""

    async def mark(self) -> str:
        """Give it an id, unless it has one."""

    def stranger(self, found: str | None) -> StoreError:
        """What is to be said where it has that id, and not the one that it should have."""

    async def stat(self, key: str) -> Receipt | None: ...
