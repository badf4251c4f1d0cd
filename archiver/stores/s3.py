"""Amazon S3 and what speaks its language (Ceph, MinIO, SeaweedFS, Garage, OVH …): the store.

s3_client.py sends, s3_bucket.py puts and reads objects, s3_listing.py lists, s3_check.py finds out what a server really
does, s3_problems.py says what its refusals mean, s3_boto.py is the way to boto3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from ..errors import StoreRefused
from ..model import Body, Receipt
from ..proof.layout import DESCRIBING
from ..settings.options import StoreOptions
from .canary import clear_canaries, of_the_store, prove
from .s3_bucket import Bucket, How, Traits
from .s3_check import COLD, Rehearsal, find_out
from .s3_client import S3Options

#: Of what describes recordings all that tells of people: phone numbers, names, and keys with a recorder's ids.
_PERSONAL = ("_audit/", "_ledger/", "_manifests/", "_verified/")


class S3Store(Bucket):
    """One bucket. Raises only errors.StoreError."""

    Options: ClassVar[type[StoreOptions]] = S3Options

    def __init__(self, name: str, options: StoreOptions) -> None:
        assert isinstance(options, S3Options)
        super().__init__(name, options)
        self.name = name
        self._probing = asyncio.Lock()
        #: See :class:`..ports.LocksApart`.
        self.worm: Callable[[], Collection[str]] = frozenset

    def location(self, key: str) -> dict[str, str]:
        return {"kind": "s3", "bucket": self.options.bucket, "key": key}

    async def close(self) -> None:
        await self.client.close()

    async def check(self) -> str:
        """Find out what the server does, then put what a recording's put looks like: class, lock, name, parts.

        A canary with a lock stays until a check a day later; in a bucket with a default retention its version stays
        for that long.
        """
        self.traits, self.keeps_lock = None, None
        if self.options.object_lock is not None:
            await self.check_lock()
        traits = await self._known()
        if self.options.storage_class in COLD and not traits.verifies:
            raise StoreRefused(
                f"storage_class {self.options.storage_class} can't be read back, and this server verifies no SHA-256: "
                "nobody could tell what it holds; take another class"
            )
        rehearsal = Rehearsal(self, traits)
        notes = [f"bucket {self.options.bucket}: put, get, list and compare work"]
        notes.append("verifies SHA-256" if traits.verifies else "verifies no SHA-256: reading back")
        notes.append("never overwrites" if traits.conditional else "no conditional writes: looking before each put")
        with of_the_store():
            notes += await rehearsal.run(self.worm())
            await clear_canaries(self, self.options.prefix, delete=self.forget)
        notes += self.client.way
        if not self.options.verify_tls:
            notes.append("TLS is NOT verified")
        return "; ".join(notes)

    async def alive(self) -> None:
        # A lock would keep the canary; whether the bucket still has one can be asked.
        if self.options.object_lock is not None:
            await self.check_lock()
        traits = self.traits or await self._known()

        async def put(key: str, body: Body) -> Receipt:
            return await self.put_whole(key, body, traits, How(self.options.storage_class))

        reads = self.options.storage_class not in COLD
        await prove(self, self.options.prefix, put=put, delete=self.forget, reads=reads)

    async def put(self, key: str, body: Body) -> Receipt:
        """One request where the body is short and the server is good; see :class:`..ports.Store`."""
        traits = self.traits or await self._known()
        lock = self.options.object_lock if self._locks(key) else None
        until = datetime.now(UTC) + timedelta(days=lock.days) if lock is not None else None
        # From a cold class nothing can be read, and these archiver reads again itself.
        ours = key.removeprefix(self.options.prefix).startswith(DESCRIBING)
        how = How(None if ours else self.options.storage_class, until)
        if body.length > self.options.multipart_threshold:
            return await self.put_parts(key, body, traits, how)
        return await self.put_whole(key, body, traits, how)

    def _locks(self, key: str) -> bool:
        """Is it to be locked, where anything is? What tells of people only where their source's policy is worm."""
        told, _, rest = key.removeprefix(self.options.prefix).partition("/")
        if f"{told}/" not in _PERSONAL:
            return True
        # Below _audit/ the folders are years: no source's.
        return told != "_audit" and rest.partition("/")[0] in self.worm()

    async def _known(self) -> Traits:
        """Found out once per process."""
        async with self._probing:
            if self.traits is None:
                self.traits = await find_out(self)
            return self.traits
