"""What a store says about itself: JSON lines, one recording a line, that describe every copy beside them.

A later line for the same recording replaces an earlier one (contract: "Inside a store").
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from .layout import ledger_key, manifest_key, verified_key
from .model import Body, utc_text
from .ports import Store
from .spool import Spool

#: Manifests read at once.
_WIDTH = 8


async def write(
    store: Store, prefix: str, source: str, documents: Sequence[Mapping[str, Any]], now: datetime, stamp: str
) -> str:
    """One manifest of these recordings, all of one source; its key. ``stamp``: its ULID. Raises StoreError."""
    lines = b"".join(line(document) for document in documents)
    key = manifest_key(prefix, source, now, stamp)
    await store.put(key, Body.of(lines))
    return key


def line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def write_ledger(store: Store, prefix: str, ledger: Mapping[str, Any], now: datetime) -> str:
    """What of a source was listed, beside the manifests that describe what was found; its key. Raises StoreError."""
    key = ledger_key(prefix, ledger["source"], now)
    await store.put(key, Body.of(line(ledger)))
    return key


async def write_verified(
    store: Store, prefix: str, source: str, copies: Sequence[tuple[str, str, datetime]], now: datetime
) -> str:
    """Which copies (store, key, when) of a source were read back and found right; its key. Raises StoreError.

    A line for all that were found at one moment, far shorter than the recordings' own.
    """
    lines = [
        line({"source": source, "store": of, "verified_at": utc_text(at), "keys": [key for _, key, _ in found]})
        for (of, at), found in itertools.groupby(copies, key=lambda copy: (copy[0], copy[2]))
    ]
    key = verified_key(prefix, source, now)
    await store.put(key, Body.of(b"".join(lines)))
    return key


async def read_verified(store: Store, prefix: str, spool: Spool) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """What :func:`write_verified` wrote: keys and lines, by source, oldest first. Raises StoreError."""
    async for found in store.list(f"{prefix}_verified/"):
        yield found.key, _parsed(await _bytes(store, found.key, spool))[0]


async def read(
    store: Store, prefix: str, spool: Spool, *, after: str = ""
) -> AsyncIterator[tuple[str, list[dict[str, Any]], str | None]]:
    """Every manifest's key, recordings and what is wrong with it, by source, oldest first, from behind a key on.

    Raises StoreError.
    """
    async for keys in _several(store, f"{prefix}_manifests/", after):
        for key, data in zip(keys, await asyncio.gather(*(_bytes(store, key, spool) for key in keys)), strict=True):
            documents, problem = _parsed(data)
            yield key, documents, problem


async def _several(store: Store, prefix: str, after: str) -> AsyncIterator[list[str]]:
    """Keys of manifests, as many at a time as are read at once."""
    keys: list[str] = []
    async for found in store.list(prefix, after):
        if found.key.endswith(".jsonl"):
            keys.append(found.key)
        if len(keys) == _WIDTH:
            yield keys
            keys = []
    if keys:
        yield keys


async def count(store: Store, prefix: str) -> int:
    """How many manifests there are. Raises StoreError."""
    return sum([found.key.endswith(".jsonl") async for found in store.list(f"{prefix}_manifests/")])


async def read_ledgers(store: Store, prefix: str, spool: Spool) -> AsyncIterator[dict[str, Any]]:
    """The newest ledger of each source. Raises StoreError."""
    newest: dict[str, str] = {}
    async for found in store.list(f"{prefix}_ledger/"):
        newest[found.key.rsplit("/", 1)[0]] = found.key
    for key in newest.values():
        documents, _ = _parsed(await _bytes(store, key, spool))
        for document in documents:
            yield document


async def _bytes(store: Store, key: str, spool: Spool) -> bytes:
    with spool.sink() as sink:
        await store.get(key, sink)
        body = await sink.body()
        return await asyncio.to_thread(body.read)


def _parsed(data: bytes) -> tuple[list[dict[str, Any]], str | None]:
    """The lines that can be read; the first reason where some can't."""
    documents, problem = [], None
    for number, row in enumerate(data.splitlines(), 1):
        try:
            document = json.loads(row)
            if not isinstance(document, dict) or "source" not in document:
                raise ValueError("is no recording")
        except (ValueError, RecursionError) as error:
            problem = problem or f"line {number} {error}"
        else:
            documents.append(document)
    return documents, problem
