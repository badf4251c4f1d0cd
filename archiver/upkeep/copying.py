"""`copy`: what is archived elsewhere, brought into a store that came later.

As a transfer does it: bytes, then manifest, then catalog; ended at any moment it goes on there the next time.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

import structlog

from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Document, copy_document
from ..common.scope import Row
from ..errors import SpoolDown, StoreError
from ..model import Copy
from ..proof import layout, manifests
from ..sync.feeds import Outlet

log = structlog.get_logger()

Identity = tuple[str, str, str]
#: Media copied at once, and committed at a time.
WIDTH = 16
PAGE = 200


@dataclass(slots=True)
class Copied:
    """What came of one source. ``failed``: media that are still only elsewhere."""

    copies: int = 0
    bytes: int = 0
    failed: int = 0


@dataclass(slots=True)
class Report:
    sources: dict[str, Copied] = field(default_factory=lambda: defaultdict(Copied))
    #: Why media could not be copied, one line each.
    findings: list[str] = field(default_factory=list)
    #: The store could not be written on.
    error: str | None = None

    @property
    def complete(self) -> bool:
        return self.error is None and not self.findings


class _Ended(Exception):
    """The store that is copied into, or the spool on the way, takes nothing more."""


@dataclass(slots=True, kw_only=True)
class Copier:
    """Copies into ``target`` whatever is archived in other stores and not there, in every version."""

    catalog: Catalog
    target: Outlet
    outlets: Mapping[str, Outlet]
    spool: Spool
    #: The sources whose config names the store: its copies belong to them from now on.
    meant: Collection[str]
    #: Called with the bytes of each copy once it is in the catalog.
    on_copied: Callable[[int], None] | None = None
    report: Report = field(default_factory=Report)
    #: What the target took, and what each giver gave.
    _put: Row = field(default_factory=Row)
    _read: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    #: Givers that can't be reached, and why.
    _lost: dict[str, str] = field(default_factory=dict)

    async def copy(
        self, source: str | None = None, started: tuple[datetime | None, datetime | None] = (None, None)
    ) -> Report:
        """Of one source or all; only recordings that began within ``started``, half-open. Raises CatalogDown."""
        try:
            await self.target.store.check()
        except StoreError as error:
            self.report.error = f"store {self.target.name}: {error}"
        after: Identity = ("", "", "")
        while self.report.error is None:
            page = await self.catalog.lacking(self.target.name, source, started, after, PAGE)
            if not page:
                break
            after = page[-1][0]
            slots, made = asyncio.Semaphore(WIDTH), list[tuple[Copy, Identity]]()
            async with asyncio.TaskGroup() as group:
                for row in page:
                    group.create_task(self._one(slots, made, *row))
            if made:
                await self._commit(made)
        return self.report

    async def _one(
        self,
        slots: asyncio.Semaphore,
        made: list[tuple[Copy, Identity]],
        identity: Identity,
        sha256: str,
        began: datetime,
        copies: Sequence[Copy],
    ) -> None:
        """Every version of one medium that any store holds; ``sha256`` is the one that counts."""
        contents: dict[str, list[Copy]] = {sha256: []}
        for copy in copies:
            contents.setdefault(copy.sha256, []).append(copy)
        async with slots:
            for content, givers in contents.items():
                if self.report.error is not None:
                    return
                there = next((giver for giver in givers if giver.store == self.target.name), None)
                try:
                    brought = there or await self._bring(identity, began, content, givers)
                except _Ended as error:
                    self.report.error = f"store {self.target.name}: {error}"
                    return
                except StoreError as error:
                    self.report.findings.append(f"{' '.join(identity)}: {error}")
                    self.report.sources[identity[0]].failed += content == sha256
                else:
                    made.append((brought, identity))

    async def _bring(self, identity: Identity, began: datetime, sha256: str, givers: Sequence[Copy]) -> Copy:
        """Raises StoreError where no store gives the bytes, or the target does not take them; _Ended."""
        lost = []
        for giver in givers:
            outlet = self.outlets.get(giver.store)
            if outlet is None or giver.store in self._lost:
                lost.append(self._lost.get(giver.store) or f"store {giver.store} is not in the config")
                continue
            with self.spool.sink() as sink:
                try:
                    await outlet.store.get(giver.key, sink)
                    body = await sink.body()
                except SpoolDown as error:
                    raise _Ended(str(error)) from error
                except StoreError as error:
                    lost.append(f"store {giver.store}: {error}")
                    if await self._read[giver.store].concerns_store(outlet.store, error, giver.key):
                        self._lost[giver.store] = lost[-1]
                    continue
                self._read[giver.store].worked(giver.key)
                if body.sha256 != sha256:
                    lost.append(
                        f"store {giver.store} holds other bytes than were archived (`archiver verify` mends them)"
                    )
                    continue
                ext = PurePosixPath(giver.key).suffix.removeprefix(".")
                key = layout.media_key(self.target.prefix, identity[0], began, *identity[1:], sha256, ext)
                try:
                    await self.target.store.put(key, body)
                except StoreError as error:
                    if await self._put.concerns_store(self.target.store, error, key):
                        raise _Ended(str(error)) from error
                    raise
                self._put.worked()
            return Copy(
                store=self.target.name, key=key, size=giver.size, sha256=sha256, archived_at=self.catalog.clock.now()
            )
        raise StoreError("; ".join(lost) or "no store holds it")

    async def _commit(self, made: Sequence[tuple[Copy, Identity]]) -> None:
        """A manifest in every store that knows of the recording, this one first, then the catalog."""
        new: dict[tuple[str, str], list[tuple[Copy, Identity]]] = defaultdict(list)
        for copy, identity in made:
            new[identity[:2]].append((copy, identity))
        known = await self.catalog.documents(sorted(new))
        now = self.catalog.clock.now()
        # Made after the reading, as sync.commit does it.
        stamp = layout.ulid(now)
        lines: dict[tuple[str, str], list[Document]] = defaultdict(list)
        for key, (document, _, stores) in known.items():
            told = self._with(document, new[key])
            for store in {*stores, self.target.name} & self.outlets.keys():
                lines[store, key[0]].append(told)
        unheard: set[str] = set()
        for (store, source), documents in sorted(lines.items(), key=lambda item: item[0][0] != self.target.name):
            outlet = self.outlets[store]
            try:
                await manifests.write(outlet.store, outlet.prefix, source, documents, now, stamp)
            except StoreError as error:
                if store == self.target.name:
                    await self._undescribed(made, error)
                    return
                # The daemon, or the next pass, describes it there.
                log.warning("manifest.failed", store=store, error=str(error))
                unheard.add(source)
        revisions = {key: revision for key, (_, revision, _) in known.items() if key[0] not in unheard}
        await self.catalog.copied(self.target.name, made, meant=sorted(self.meant), revisions=revisions)
        for copy, identity in made:
            count = self.report.sources[identity[0]]
            count.copies += 1
            count.bytes += copy.size
            if self.on_copied is not None:
                self.on_copied(copy.size)

    async def _undescribed(self, made: Sequence[tuple[Copy, Identity]], error: StoreError) -> None:
        """The target did not take their manifest: perhaps it takes a shorter one."""
        if await self._put.concerns_store(self.target.store, error, f"a manifest of {made[0][0].key}"):
            self.report.error = f"store {self.target.name}: no manifest could be written: {error}"
        elif len(recordings := sorted({identity[:2] for _, identity in made})) > 1:
            first = set(recordings[: len(recordings) // 2])
            for half in (True, False):
                if self.report.error is None:
                    await self._commit([one for one in made if (one[1][:2] in first) is half])
        else:
            for _, identity in made:
                self.report.findings.append(f"{' '.join(identity)}: no manifest could be written: {error}")
                self.report.sources[identity[0]].failed += 1

    def _with(self, document: Document, new: Sequence[tuple[Copy, Identity]]) -> Document:
        """The document as it will be once these copies are in the catalog."""
        media = []
        for medium in document["media"]:
            known = {(c["store"], c["key"]) for c in medium["copies"]}
            added = [copy_document(c) for c, identity in new if identity[2] == medium["media_id"]]
            copies = [*medium["copies"], *(c for c in added if (c["store"], c["key"]) not in known)]
            # As the catalog has them.
            copies.sort(key=lambda c: (datetime.fromisoformat(c["archived_at"]), c["store"]))
            wider = {*medium["stores"], self.target.name} if added and document["source"] in self.meant else set()
            media.append(medium | {"copies": copies, "stores": [*medium["stores"], *(wider - {*medium["stores"]})]})
        return document | {"media": media}
