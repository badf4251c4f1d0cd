"""`rebuild`: an empty catalog filled from what one store says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from . import manifests
from .catalog import Catalog
from .errors import ConfigError
from .layout import safe
from .model import ListingKey
from .spool import Spool
from .sync import Outlet


@dataclass(slots=True)
class Rebuilt:
    manifests: int = 0
    lines: int = 0
    recordings: int = 0
    ledgers: int = 0
    #: Manifests that could not be read, and why.
    damaged: list[str] | None = None


async def rebuild(
    catalog: Catalog,
    outlet: Outlet,
    keys: Mapping[str, ListingKey],
    spool: Spool,
    *,
    on_lines: Callable[[int], None] | None = None,
) -> Rebuilt:
    """Read every manifest and ledger of the store. ``keys``: by source, what its listings go by.

    Raises ConfigError where the catalog holds recordings already, StoreError.
    """
    if not await catalog.is_empty():
        raise ConfigError(["the catalog is not empty: rebuild fills an empty one only (point [database] at a new one)"])
    report = Rebuilt(damaged=[])
    assert report.damaged is not None
    distrusted: set[str] = set()
    async for key, documents, problem in manifests.read(outlet.store, outlet.prefix, spool):
        if problem is not None:
            report.damaged.append(f"{key}: {problem}")
            distrusted.add(key.removeprefix(f"{outlet.prefix}_manifests/").split("/")[0])
        report.recordings += await catalog.rebuild(documents, keys)
        report.manifests += 1
        report.lines += len(documents)
        if on_lines is not None:
            on_lines(len(documents))
    async for key, lines in manifests.read_verified(outlet.store, outlet.prefix, spool):
        for line in lines:
            try:
                verified = (
                    str(line["store"]),
                    [str(k) for k in line["keys"]],
                    datetime.fromisoformat(line["verified_at"]),
                )
            except (KeyError, TypeError, ValueError):
                report.damaged.append(f"{key}: a line can't be read")
            else:
                await catalog.rebuild_verified(*verified)
    async for ledger in manifests.read_ledgers(outlet.store, outlet.prefix, spool):
        # What a damaged manifest told is unknown: its source is listed again from its start.
        lost = safe(ledger["source"]) in distrusted
        await catalog.rebuild_ledger(ledger | {"covered": [], "cursor": None} if lost else ledger)
        report.ledgers += 1
    await catalog.rebuilt()
    return report
