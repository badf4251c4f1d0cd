"""`rename`: a store or a source has another name in the config; catalog, manifests and ledgers follow.

Objects stay where they are: a copy's key is data. Each store is told of the renaming first, so that what was written
there under the old name is read as the new one's; then the catalog; then each recording is described anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

from ..catalog.catalog import Catalog
from ..errors import ConfigError, StoreError
from ..proof import manifests
from ..proof.layout import ulid
from ..sync.commit import describe_changes, write_ledgers
from ..sync.feeds import Feed, Outlet

#: Recordings described by one manifest.
DESCRIBED = 2000


@dataclass(frozen=True, slots=True)
class Renamed:
    #: Recordings that the stores describe under the new name.
    described: int
    ledgers: int


async def rename_store(
    catalog: Catalog, outlets: dict[str, Outlet], feeds: dict[str, Feed], old: str, new: str
) -> Renamed:
    """``new`` is in the config, ``old`` is not. Raises ConfigError, StoreError, CatalogDown; run again it goes on."""
    held = {store for _, store in await catalog.totals() if store}
    if old not in held:
        raise ConfigError([f"the catalog knows no copy in a store {old}{_known(held - {new})}"])
    await _demand_there(catalog, outlets[new], old)
    await _tell(outlets.values(), catalog, "store", old, new)
    await catalog.rename_store(old, new)
    return await _describe(catalog, feeds)


async def rename_source(
    catalog: Catalog, outlets: dict[str, Outlet], feeds: dict[str, Feed], old: str, new: str
) -> Renamed:
    """``new`` is in the config, ``old`` is not. Raises ConfigError, StoreError, CatalogDown; run again it goes on."""
    known = {row["name"] for row in await catalog.sources()}
    if old not in known:
        raise ConfigError([f"the catalog knows no source {old}{_known(known - {new})}"])
    if count := await catalog.recordings_of(new):
        raise ConfigError(
            [f"source {new} has {count} recordings of its own in the catalog: two sources can't become one"]
        )
    async with AsyncExitStack() as stack:
        for name in (old, new):
            if not await stack.enter_async_context(catalog.only_one(f"poll:{name}")):
                raise ConfigError([f"source {name} is being polled: let every host have the new config first"])
        await _tell(outlets.values(), catalog, "source", old, new)
        await catalog.rename_source(old, new)
    return await _describe(catalog, feeds)


def _known(names: Iterable[str]) -> str:
    told = ", ".join(sorted(names))
    return f"; it knows {told}" if told else ""


async def _demand_there(catalog: Catalog, outlet: Outlet, old: str) -> None:
    """Raises ConfigError where the store does not hold what the other one did."""
    for key, size in (await catalog.some_copies(old)).items():
        found = await outlet.store.stat(key)
        if found is None or found.size != size:
            what = "is not there" if found is None else f"has {found.size} bytes there, not {size}"
            raise ConfigError(
                [f"store {outlet.name} is not the place that was called {old}: {key} {what}; mend its place or prefix"]
            )


async def _tell(
    outlets: Iterable[Outlet], catalog: Catalog, what: Literal["source", "store"], old: str, new: str
) -> None:
    stamp = ulid(catalog.clock.now())
    for outlet in outlets:
        try:
            await manifests.write_renamed(outlet.store, outlet.prefix, what, old, new, stamp)
        except StoreError as error:
            raise type(error)(f"store {outlet.name}: {error}") from error


async def _describe(catalog: Catalog, feeds: dict[str, Feed]) -> Renamed:
    described = await describe_changes(feeds, catalog, limit=DESCRIBED)
    return Renamed(described, await write_ledgers(feeds, catalog))


def refusal(what: str, old: str, new: str, configured: Sequence[str]) -> str | None:
    """Why the config is not yet as it must be, if so."""
    if new not in configured:
        return (
            f'there is no {what} "{new}" in the config: rename it there first; it has {", ".join(sorted(configured))}'
        )
    if old in configured:
        return f'{what} "{old}" is still in the config: rename it there first'
    return None
