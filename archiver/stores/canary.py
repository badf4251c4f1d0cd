"""Small objects that prove a store: put, compared and deleted again, unless the process is killed meanwhile."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta

from ..errors import ObjectFailed, StoreDown, StoreError, StoreMissing, StoreRefused
from ..model import Body, Receipt
from ..ports import Store
from ..proof.layout import Ulids, safe
from ..wire.store import Digest

#: Nobody still needs one of that age, also where the clocks of two hosts differ.
_ABANDONED = timedelta(days=1)


def canary_key(prefix: str, age: timedelta = timedelta(0)) -> str:
    """``{prefix}_canary/{ulid}``; sorts by the moment it was made."""
    return f"{prefix}_canary/{Ulids()(datetime.now(UTC) - age)}"


#: What ids bring into names, in the form that layout.safe gives them: ``%3A``, ``%20``, ``~``, ``%C3%A9``.
_ODD = safe("a:b c~é+d/e")


async def rehearse_names(prefix: str, act: Callable[[str], Awaitable[None]]) -> str | None:
    """``act`` with a key named like a medium: odd, and as long as one can be.

    Returns what is to be said where only the long one does not work. Raises StoreError.
    """
    long = safe("a:b c~é" + "x" * 200)
    try:
        await act(f"{canary_key(prefix)}-{long}-0123456789ab.wav")
    except StoreError as error:
        try:
            await act(f"{canary_key(prefix)}-{_ODD}.wav")
        except StoreError as odd:
            # Or did it just go down?
            await act(canary_key(prefix))
            raise StoreRefused(f"it can't hold names like those of recordings ({_ODD}): {odd}") from None
        return f"WARNING: takes no names of {len(long)} letters, as a recording's with a very long id is ({error})"
    return None


@contextlib.contextmanager
def of_the_store() -> Iterator[None]:
    """What fails for a canary concerns the store, whatever it would mean for an object."""
    try:
        yield
    except StoreMissing as error:
        raise StoreDown(f"{error}, which was just put") from None
    except ObjectFailed as error:
        raise StoreRefused(str(error)) from None


async def prove(
    store: Store,
    prefix: str,
    *,
    put: Callable[[str, Body], Awaitable[Receipt]] | None = None,
    delete: Callable[[str], Awaitable[object]] | None = None,
    reads: bool = True,
) -> None:
    """Put a canary, get it (unless nothing can be read at once), compare and delete it. Raises StoreError."""
    key, body = canary_key(prefix), Body.of(b"archiver canary " + secrets.token_bytes(32))
    with of_the_store():
        try:
            await (put or store.put)(key, body)
            digest = Digest()
            if reads:
                await store.get(key, digest)
        finally:
            with contextlib.suppress(StoreError):
                await (delete or store.delete)(key)
    if reads and digest.sha256 != body.sha256:
        raise StoreDown("the canary came back with other bytes")


async def clear_canaries(
    store: Store, prefix: str, *, delete: Callable[[str], Awaitable[object]] | None = None
) -> None:
    """Delete what killed processes left, or a lock kept. Raises StoreError."""
    before = canary_key(prefix, _ABANDONED)
    for key in [receipt.key async for receipt in store.list(f"{prefix}_canary/") if receipt.key < before]:
        await (delete or store.delete)(key)
