"""Small objects that prove a store: put, compared and deleted again, unless the process is killed meanwhile."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta

from ..errors import ObjectFailed, StoreDown, StoreError, StoreMissing, StoreRefused
from ..layout import Ulids
from ..model import Body, Receipt
from ..ports import Store
from .wire import Digest

#: Nobody still needs one of that age, also where the clocks of two hosts differ.
_ABANDONED = timedelta(days=1)


def canary_key(prefix: str, age: timedelta = timedelta(0)) -> str:
    """``{prefix}_canary/{ulid}``; sorts by the moment it was made."""
    return f"{prefix}_canary/{Ulids()(datetime.now(UTC) - age)}"


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
    store: Store, prefix: str, *, put: Callable[[str, Body], Awaitable[Receipt]] | None = None, reads: bool = True
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
                await store.delete(key)
    if reads and digest.sha256 != body.sha256:
        raise StoreDown("the canary came back with other bytes")


async def clear_canaries(store: Store, prefix: str) -> None:
    """Delete what killed processes left. Raises StoreError."""
    before = canary_key(prefix, _ABANDONED)
    for key in [receipt.key async for receipt in store.list(f"{prefix}_canary/") if receipt.key < before]:
        await store.delete(key)
