"""Whose failure is it: the object's, or the whole store's? (errors.py: the scopes)"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from .errors import Scope, StoreError
from .ports import Store

#: So many different objects that fail, and none that works in between, are the store's failure.
IN_A_ROW = 5


@dataclass(slots=True)
class Row:
    """The objects of one store that failed one after the other, though its canary worked.

    Kept for as long as objects are worked on; one for what is put, another for what is read: a store may do one only.
    """

    keys: set[str] = field(default_factory=set)
    #: Who fails while the canary is asked need not ask again.
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asked_at: float = float("-inf")
    _answer: StoreError | None = None

    def worked(self) -> None:
        """An object was put, or read."""
        self.keys.clear()

    async def canary(self, store: Store) -> StoreError | None:
        """What a canary that was begun from now on says: None where the store works."""
        failed_at = time.monotonic()
        async with self._asking:
            if self._asked_at <= failed_at:
                began = time.monotonic()
                self._answer = await canary(store)
                self._asked_at = began
            return self._answer


class _Outlet(Protocol):
    @property
    def store(self) -> Store: ...


async def canary(store: Store) -> StoreError | None:
    """What is wrong with the store as a whole, if anything."""
    ask: Callable[[], Awaitable[object]] = getattr(store, "alive", None) or store.check
    try:
        await ask()
    except StoreError as error:
        return error
    return None


async def concerns_store(outlet: _Outlet, error: StoreError, key: str = "", row: Row | None = None) -> bool:
    """Is this failure the store's, and not that of the object with this key?

    Where the error does not say it, a canary does. ``row``: what failed before; without it the canary alone decides.
    """
    if error.scope is not Scope.STORE:
        return False
    if await (row.canary(outlet.store) if row is not None else canary(outlet.store)) is not None:
        return True
    if row is not None:
        row.keys.add(key)
    return row is not None and len(row.keys) >= IN_A_ROW
