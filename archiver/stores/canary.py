"""Small objects that prove a store: put, compared and deleted again, unless the process is killed meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ..layout import Ulids
from ..ports import Store

#: Nobody still needs one of that age, also where the clocks of two hosts differ.
_ABANDONED = timedelta(days=1)


def canary_key(prefix: str, age: timedelta = timedelta(0)) -> str:
    """``{prefix}_canary/{ulid}``; sorts by the moment it was made."""
    return f"{prefix}_canary/{Ulids()(datetime.now(UTC) - age)}"


async def clear_canaries(store: Store, prefix: str) -> None:
    """Delete what killed processes left. Raises StoreError."""
    before = canary_key(prefix, _ABANDONED)
    for key in [receipt.key async for receipt in store.list(f"{prefix}_canary/") if receipt.key < before]:
        await store.delete(key)
