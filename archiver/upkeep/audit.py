"""The audit of the face on its way to every store, and back from one: it outlives the database.

``{prefix}_audit/{YYYY}/{MM}/{DD}/{ulid}.jsonl``, an event a line, each with the SHA-256 of its JSON. Which store holds
which event is a mark at the event: neither a clock nor the order of commits decides. A crash between a store and the
catalog ships events twice; who reads them back takes each once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from contextlib import aclosing
from datetime import datetime

import structlog

from ..audio.spool import Spool
from ..catalog import face
from ..catalog.catalog import Catalog, Document
from ..common.scope import Unlisted, listed
from ..errors import StoreError
from ..model import Body
from ..proof import manifests
from ..proof.layout import ulid
from ..sync.feeds import Outlet

log = structlog.get_logger()

#: Events of one object.
BATCH = 1000


def key(prefix: str, now: datetime) -> str:
    """Of a new object."""
    return f"{prefix}_audit/{now:%Y/%m/%d}/{ulid(now)}.jsonl"


async def ship(catalog: Catalog, outlets: Mapping[str, Outlet]) -> int:
    """Put what each store does not hold yet; how many events that were. What fails is put the next time.

    Raises CatalogDown.
    """
    count = 0
    async with catalog.only_one("audit") as mine:
        if not mine:
            return 0
        await face.expect(catalog, list(outlets))
        for name, outlet in outlets.items():
            try:
                count += await _ship_to(catalog, outlet)
            except StoreError as error:
                log.warning("audit.not_shipped", store=name, error=str(error))
    return count


async def _ship_to(catalog: Catalog, outlet: Outlet) -> int:
    count = 0
    while True:
        events = await face.unshipped(catalog, outlet.name, BATCH)
        if not events:
            return count
        lines = await asyncio.to_thread(lambda told: "".join(map(_line, told)).encode(), events)
        await outlet.store.put(key(outlet.prefix, catalog.clock.now()), await asyncio.to_thread(Body.of, lines))
        await face.shipped(catalog, outlet.name, [event["id"] for event in events])
        count += len(events)


async def read_back(catalog: Catalog, outlet: Outlet, spool: Spool) -> list[str]:
    """Take every event that the store holds; what could not be read, and why. Raises StoreError, CatalogDown."""
    problems = []
    names = await manifests.renamings(outlet.store, outlet.prefix, spool)
    async with aclosing(listed(outlet.store, f"{outlet.prefix}_audit/")) as found:
        async for receipt in found:
            if isinstance(receipt, Unlisted):
                problems.append(f"{receipt.key}: {receipt.why}")
                continue
            with spool.sink() as sink:
                try:
                    await outlet.store.get(receipt.key, sink)
                except StoreError as error:
                    problems.append(f"{receipt.key}: {error}")
                    continue
                body = await sink.body()
                events, damaged = await asyncio.to_thread(lambda held: _read(held.read()), body)
            if damaged:
                problems.append(f"{receipt.key}: {damaged} of its lines are not as they were written")
            for event in events:
                if event["source"] is not None:
                    event["source"] = names.now("source", event["source"], manifests.stamp_of(receipt.key))
            await face.take(catalog, outlet.name, events)
    return problems


def _line(event: Document) -> str:
    text = json.dumps(event, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256":"{digest}","event":{text}}}\n'


def _read(data: bytes) -> tuple[list[Document], int]:
    """The events whose lines are as they were written, and how many are not."""
    events, damaged = [], 0
    for line in data.decode("utf-8", "replace").split("\n")[:-1]:
        try:
            event = json.loads(line)["event"]
            right = _line(event).rstrip("\n") == line
        except (ValueError, KeyError, TypeError):
            right = False
        if right:
            events.append(event)
        else:
            damaged += 1
    return events, damaged
