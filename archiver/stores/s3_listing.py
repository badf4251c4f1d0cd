"""What lies in a bucket, in the order of keys, whatever order its server has.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..errors import StoreDown, StoreError
from ..model import Receipt
from .canary import canary_key
from .s3_client import S3Client, S3Options
from .s3_problems import Problem

#: So many pages of a listing are sorted in memory at most.
_HELD_PAGES = 10


class Listing:
    """Lists one bucket. Raises only errors.StoreError."""

    def __init__(self, client: S3Client, options: S3Options, forget: Callable[[str], Awaitable[object]]) -> None:
        """``forget``: deletes a canary."""
        self._client = client
        self._options = options
        self._forget = forget
        #: Whether the server lists in the order of keys, once that is known.
        self._sorted: bool | None = None

    async def all(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        """Page by page; where that fails, folder by folder: perhaps only one can't be listed."""
        try:
            async for receipt in self._flat(prefix, after):
                after = receipt.key
                yield receipt
        except StoreError as error:
            if error.folder is not None:
                raise
        else:
            return
        async for receipt in self._by_folder(prefix, after):
            yield receipt

    async def _flat(self, prefix: str, after: str) -> AsyncIterator[Receipt]:
        """All pages of one listing, sorted.

        Amazon sorts by key, but servers that keep folders (SeaweedFS) put ``a/c`` before ``a-b``: there
        we sort ourselves, folder by folder, where a listing is too long to be held.
        """
        most = _HELD_PAGES * self._options.page_size
        sorts = await self._sorts() if after else None
        held: list[Receipt] = []
        async for page in self._pages(prefix, StartAfter=after if sorts else ""):
            held += _objects(page, prefix)
            if sorts is None and len(held) > most:
                sorts = await self._sorts()
            if sorts:
                for receipt in held:
                    if receipt.key <= after:
                        raise StoreDown("a listing is out of order")
                    after = receipt.key
                    yield receipt
                held = []
            elif len(held) > most:
                held.clear()
                break
        else:
            for receipt in sorted(held, key=lambda receipt: receipt.key):
                if receipt.key > after:
                    yield receipt
            return
        async for receipt in self._by_folder(prefix, after):
            yield receipt

    async def _by_folder(self, prefix: str, after: str) -> AsyncIterator[Receipt]:
        try:
            level = await self._level(prefix)
        except StoreError as error:
            error.folder = prefix[: prefix.rfind("/") + 1]
            raise
        for key, size in sorted(level):
            if size >= 0:
                if key > after:
                    yield Receipt(key=key, size=size)
            elif key > after or after.startswith(key):
                async for receipt in self.all(key, after if after.startswith(key) else ""):
                    yield receipt

    async def _level(self, prefix: str) -> Sequence[tuple[str, int]]:
        """What lies between the prefix and the next slash: objects with their size, folders with -1."""
        level: list[tuple[str, int]] = []
        async for page in self._pages(prefix, Delimiter="/"):
            level += [(receipt.key, receipt.size) for receipt in _objects(page, prefix)]
            level += [(entry.get("Prefix", ""), -1) for entry in page.get("CommonPrefixes", ())]
        if any(not key.startswith(prefix) or (size < 0 and len(key) <= len(prefix)) for key, size in level):
            raise StoreDown("a listing shows what was not asked for")
        return level

    async def _pages(self, prefix: str, **how: str) -> AsyncIterator[Mapping[str, Any]]:
        asked: dict[str, Any] = {"Prefix": prefix, "MaxKeys": self._options.page_size}
        asked |= {name: value for name, value in how.items() if value}
        while True:
            try:
                page = await self._client.call("list_objects_v2", **asked)
            except Problem as problem:
                raise problem.error(f"can't list {prefix or 'the bucket'}") from None
            yield page
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == asked.get("ContinuationToken"):
                raise StoreDown("a listing breaks off without a continuation")
            asked["ContinuationToken"] = token

    async def _sorts(self) -> bool:
        """Does the server list in the order of keys? Once per process; without leave to write: assume not."""
        if self._sorted is None:
            if self._options.endpoint_url is None:
                self._sorted = True
                return True
            start = canary_key(self._options.prefix)
            keys = [f"{start}-", f"{start}/a"]
            try:
                for key in keys:
                    async with self._client.ask("PUT", key):
                        pass
                found = [receipt.key async for page in self._pages(start) for receipt in _objects(page, start)]
                self._sorted = found == keys
            except Problem:
                self._sorted = False
            finally:
                for key in keys:
                    with contextlib.suppress(StoreError):
                        await self._forget(key)
        return self._sorted


def _objects(page: Mapping[str, Any], prefix: str) -> Sequence[Receipt]:
    return [_listed(entry, prefix) for entry in page.get("Contents", ())]


def _listed(entry: Mapping[str, Any], prefix: str) -> Receipt:
    key, size = entry.get("Key", ""), entry.get("Size", -1)
    if size < 0 or not key.startswith(prefix):
        raise StoreDown("a listing can't be read")
    return Receipt(key=key, size=size)
