"""What a store says about itself: JSON lines, one recording a line, that describe every copy beside them.

A later line for the same recording replaces an earlier one (contract: "Inside a store").
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from .layout import manifest_key
from .model import Body
from .ports import Store
from .spool import Spool


async def write(store: Store, prefix: str, source: str, documents: Sequence[Mapping[str, Any]], now: datetime) -> str:
    """One manifest of these recordings, all of one source; its key. Raises StoreError."""
    lines = b"".join(line(document) for document in documents)
    key = manifest_key(prefix, source, now)
    await store.put(key, Body.of(lines))
    return key


def line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def read(
    store: Store, prefix: str, spool: Spool, after: str = ""
) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Every manifest's key and recordings, by source, oldest first. Raises StoreError; ValueError for damage."""
    async for found in store.list(f"{prefix}_manifests/", after):
        if not found.key.endswith(".jsonl"):
            continue
        with spool.sink() as sink:
            await store.get(found.key, sink)
            body = await sink.body()
            text = await asyncio.to_thread(body.read)
        yield found.key, [json.loads(row) for row in text.splitlines() if row.strip()]
