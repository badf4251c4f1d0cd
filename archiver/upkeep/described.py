"""Does a store describe what it holds? Copies that were read back are looked up in the store's manifests.

A manifest's name tells when it was made: that of a copy is made right after the copy, or when it is described again.
So it is looked for there first, and only what is not found in all the others. What no manifest describes is written
into a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from ..audio.spool import Spool
from ..catalog.catalog import Catalog
from ..common.scope import Row
from ..errors import StoreError
from ..model import Copy
from ..proof import layout, manifests
from ..sync.feeds import Outlet

log = structlog.get_logger()

#: So many copies are remembered before they are looked up, to hold memory down.
MOST = 100_000
#: A manifest is made so soon after its copies, and clocks are set right by so much; nearer ones are read in one go.
SOON, SLACK = timedelta(hours=1), timedelta(minutes=1)
#: Recordings described again by one manifest.
PAGE = 200
PROBLEM = "described by no manifest of its store"
_DAY = timedelta(days=1)


@dataclass(slots=True)
class Described:
    """What came of it, in recordings."""

    #: No manifest told of a copy that is there.
    lacking: int = 0
    #: Of these, what is told again.
    again: int = 0
    #: One line each.
    findings: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.lacking == self.again


@dataclass(slots=True, kw_only=True)
class Describer:
    """Looks up copies of one store in its manifests. Raises StoreError where the store can't be read."""

    catalog: Catalog
    outlet: Outlet
    spool: Spool
    row: Row
    report: Described = field(default_factory=Described)
    #: By source and key, the recording's id: what is there and was not looked up yet.
    _copies: dict[str, dict[str, str]] = field(default_factory=dict)
    _made: dict[str, list[datetime]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def add(self, source: str, recording_id: str, copy: Copy) -> None:
        """A copy that is there."""
        self._copies.setdefault(source, {})[copy.key] = recording_id
        self._made.setdefault(source, []).append(copy.archived_at)

    @property
    def full(self) -> bool:
        return sum(map(len, self._copies.values())) >= MOST

    async def settle(self, *, at_once: bool) -> None:
        """Look up what was added, and describe again what no manifest does.

        What is not found where it must be is looked for in all manifests of its source: ``at_once``, or with all else
        of a day.
        """
        copies, made = self._copies, self._made
        self._copies, self._made = {}, {}
        for source, wanted in copies.items():
            await self._tell_ledger(source)
            await self._strike_near(source, wanted, made[source])
            if wanted:
                again = await self.catalog.repaired(self.outlet.name, list(wanted))
                await self._strike_near(source, wanted, again.values())
            self.outlet.doubtful.setdefault(source, {}).update(wanted)
        now = self.catalog.clock.now()
        doubtful = {source: wanted for source, wanted in self.outlet.doubtful.items() if wanted}
        sought_at = self.outlet.sought_at
        if not doubtful or not (at_once or sought_at is None or now - sought_at >= _DAY):
            return
        self.outlet.sought_at = now
        for source, wanted in doubtful.items():
            await self._strike(source, wanted)
            if wanted:
                await self._again(source, wanted)
            del self.outlet.doubtful[source]

    async def _strike_near(self, source: str, wanted: dict[str, str], moments: Iterable[datetime]) -> None:
        """Forget those that manifests of about these moments describe."""
        spans: list[list[datetime]] = []
        for moment in sorted(moments):
            if spans and moment - spans[-1][1] < _DAY:
                spans[-1][1] = moment + SOON
            else:
                spans.append([moment - SLACK, moment + SOON])
        for start, end in spans:
            if wanted:
                await self._strike(source, wanted, self._key(source, start), self._key(source, end))

    def _key(self, source: str, moment: datetime) -> str:
        """Manifests of that moment and later sort behind it."""
        return layout.manifest_key(self.outlet.prefix, source, moment, layout.first_ulid(moment))

    async def _strike(self, source: str, wanted: dict[str, str], after: str = "", end: str | None = None) -> None:
        """Forget those that manifests between two keys describe, of all or from the first one on."""
        outlet, under = self.outlet, f"{layout.safe(source)}/"
        read = manifests.read(outlet.store, outlet.prefix, self.spool, under=under, after=after, row=self.row)
        async with aclosing(read) as parts:
            async for part in parts:
                if not wanted or (end is not None and part.key > end):
                    return
                if part.problem is not None and part.key not in self._told:
                    self._told.add(part.key)
                    self.report.findings.append(f"{outlet.name} {part.key}: {part.problem}")
                    log.error("manifest.bad", store=outlet.name, key=part.key, problem=part.problem)
                for recording in part.documents:
                    for medium in recording.media:
                        for copy in medium.copies:
                            wanted.pop(copy.key, None)

    async def _again(self, source: str, lacking: dict[str, str]) -> None:
        name, now = self.outlet.name, self.catalog.clock.now()
        recordings = sorted(set(lacking.values()))
        done: set[str] = set()
        for start in range(0, len(recordings), PAGE):
            done |= await self._write(source, recordings[start : start + PAGE])
        self.report.lacking += len(recordings)
        self.report.again += len(done)
        await self.catalog.described_again(name, [key for key, of in lacking.items() if of in done], PROBLEM, now)
        told = f"{name} {source}: {len(recordings)} recordings were described by no manifest there"
        self.report.findings.append(f"{told}; {len(done)} of them are now")
        log.error("manifest.lacking", store=name, source=source, recordings=len(recordings), described=len(done))

    async def _write(self, source: str, recording_ids: Sequence[str]) -> set[str]:
        """Describe these recordings in this store; those that it took.

        The order is that of sync.describe_changes, and for its reasons. What other stores hold stays as it was.
        """
        catalog, outlet = self.catalog, self.outlet
        keys = [(source, recording_id) for recording_id in recording_ids]
        now = catalog.clock.now()
        stamp = layout.ulid(now)
        described = await catalog.revise(keys)
        known = await catalog.documents(keys)
        try:
            documents = [document for document, _, _ in known.values()]
            key = await manifests.write(outlet.store, outlet.prefix, source, documents, now, stamp)
        except StoreError as error:
            if await self.row.concerns_store(outlet.store, error, f"a manifest {stamp}"):
                raise
            if len(recording_ids) > 1:
                # A shorter one it may take.
                half = len(recording_ids) // 2
                return await self._write(source, recording_ids[:half]) | await self._write(source, recording_ids[half:])
            self.report.findings.append(f"{outlet.name} {source} {recording_ids[0]}: no manifest was written: {error}")
            return set()
        log.info("manifest.again", store=outlet.name, key=key, recordings=len(documents))
        await catalog.described({key: known[key][1] for key in described if key in known})
        return {recording_id for _, recording_id in known}

    async def _tell_ledger(self, source: str) -> None:
        """A store that lost its ledgers gets the next one though nothing new was listed."""
        base = f"{self.outlet.prefix}_ledger/{layout.safe(source)}/"
        async for _ in self.outlet.store.list(base):
            return
        await self.catalog.untell(source)
