"""Whose failure is it: the object's, or the whole store's? (errors.py: the scopes)"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import Scope, StoreError, StoreFull
from ..model import Receipt
from ..ports import Store

#: So many different objects that fail, and none that works in between, are the store's failure.
IN_A_ROW = 5


@dataclass(slots=True)
class Row:
    """The objects of one store that failed one after the other, though its canary worked.

    Kept for as long as objects are worked on; one for what is put, another for what is read: a store may do one only.
    """

    keys: set[str] = field(default_factory=set)
    #: One that could be read: while it still can be, those that can't are to blame themselves, however many they are.
    good: str | None = None
    #: Who fails while the canary is asked need not ask again.
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asked_at: float = float("-inf")
    _answer: bool = True

    def worked(self, read: str | None = None) -> None:
        """An object was put, or the one with this key was read."""
        self.keys.clear()
        self.good = read or self.good

    async def concerns_store(self, store: Store, error: StoreError, key: str) -> bool:
        """Is this failure the store's, and not that of the object with this key?

        Where the error does not say it, a canary does, or how many failed in a row.
        """
        if error.scope is not Scope.STORE:
            return False
        if isinstance(error, StoreFull):
            # A canary is small: it fits where recordings do not.
            return True
        if not await self._works(store):
            return True
        self.keys.add(key)
        async with self._asking:
            if self.exceeded and await self._gives(store):
                self.keys.clear()
        return self.exceeded

    @property
    def exceeded(self) -> bool:
        """Have so many failed, though a canary works, that the store is to blame all the same?"""
        return len(self.keys) >= IN_A_ROW

    async def _works(self, store: Store) -> bool:
        """What a canary says that is begun from now on; one that takes nothing more may still give what it holds."""
        failed_at = time.monotonic()
        async with self._asking:
            if self._asked_at <= failed_at:
                began = time.monotonic()
                self._answer = await canary(store) is None or await self._gives(store)
                self._asked_at = began
            return self._answer

    async def _gives(self, store: Store) -> bool:
        return self.good is not None and await readable(store, self.good)


class _Outlet(Protocol):
    @property
    def store(self) -> Store: ...


async def concerns_store(outlet: _Outlet, error: StoreError, key: str = "", row: Row | None = None) -> bool:
    """As :meth:`Row.concerns_store`; without a row the error and the canary alone decide."""
    return await (row or Row()).concerns_store(outlet.store, error, key)


async def canary(store: Store) -> StoreError | None:
    """What is wrong with the store as a whole, if anything."""
    ask: Callable[[], Awaitable[object]] = getattr(store, "alive", None) or store.check
    try:
        await ask()
    except StoreError as error:
        return error
    return None


async def readable(store: Store, key: str) -> bool:
    """Can this object be read to its end?"""
    try:
        await store.get(key, _Nowhere())
    except StoreError:
        return False
    return True


class _Nowhere:
    """A sink that keeps nothing."""

    async def write(self, chunk: bytes) -> None:
        pass

    def told(self, *, content_type: str | None = None) -> None:
        pass

    async def restart(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder of a store that could not be listed, with its final slash; what lies in it is not known."""

    key: str
    why: str


async def listed(
    store: Store, prefix: str, after: str = "", row: Row | None = None
) -> AsyncGenerator[Receipt | Unlisted, None]:
    """As :meth:`Store.list`, but one folder that can't be listed does not end it. Raises StoreError of the store."""
    row = row or Row()
    while True:
        try:
            async for receipt in store.list(prefix, after):
                row.worked()
                after = receipt.key
                yield receipt
        except StoreError as error:
            folder = error.folder
            if folder is None or prefix.startswith(folder) or await row.concerns_store(store, error, folder):
                raise
            yield Unlisted(folder, str(error))
            # It sorts behind all of the folder's, for 0 comes after the slash; no key of ours is called so.
            after = folder[:-1] + "0"
        else:
            return
