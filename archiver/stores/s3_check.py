"""What an S3 server really does, found out with canaries; and a rehearsal of what a recording's put looks like."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta

from ..errors import ObjectFailed, StoreDown, StoreError, StoreRefused
from ..model import Body, Receipt
from ..wire.store import Digest, Upload
from .canary import canary_key, rehearse_names
from .s3_bucket import Bucket, How, Traits, base64_of
from .s3_problems import Problem

#: Classes whose objects must be restored before they can be read.
COLD = {"DEEP_ARCHIVE", "GLACIER"}
#: The shortest part that is not the last one, by Amazon's rule.
_PART = 5 << 20
#: Longer than this a rehearsal does not wait for two parts.
_PATIENCE = 10.0
#: Locks of a canary; a policy may ask for days. The clocks of server and client may differ by some seconds.
_SHORT_LOCKS = (timedelta(minutes=1), timedelta(days=1))


async def find_out(bucket: Bucket) -> Traits:
    """What the server takes, and whether it refuses a second write and a wrong hash. Raises StoreError."""
    keys = canary_key(bucket.options.prefix), canary_key(bucket.options.prefix)
    try:
        return await _probe(bucket, *keys)
    finally:
        for key in keys:
            with contextlib.suppress(StoreError):
                await bucket.forget(key)


async def _probe(bucket: Bucket, key: str, other: str) -> Traits:
    """The true canary first: whatever comes of the deliberately wrong ones is then their own."""
    first, again = Body.of(b"archiver canary, first"), Body.of(b"archiver canary, again")
    for checksums, conditional in ((True, True), (False, True), (True, False), (False, False)):
        trial = Traits(verifies=False, conditional=conditional, checksums=checksums)
        problem = await _try_put(bucket, key, first, first, trial)
        if problem is None or not problem.is_of_a_header:
            break
    if problem is not None:
        raise problem.error("can't put a canary")
    if conditional:
        problem = await _try_put(bucket, key, again, again, trial)
        conditional = problem is not None and problem.is_refusal
    verifies = False
    if checksums:
        told, sent = Body.of(b"archiver canary, told"), Body.of(b"archiver canary, sent")
        for _ in range(2):
            try:
                problem = await _try_put(bucket, other, sent, told, trial)
            except StoreDown:
                break
            # An answer of 500 may be a refusal, or an accident: not twice.
            verifies = problem is not None
            if problem is None or problem.is_refusal:
                break
    return Traits(verifies=verifies, conditional=conditional, checksums=checksums)


async def _try_put(bucket: Bucket, key: str, sent: Body, told: Body, trial: Traits) -> Problem | None:
    headers = {"If-None-Match": "*"} if trial.conditional else {}
    if trial.checksums:
        headers["x-amz-checksum-sha256"] = base64_of(told.sha256)
    try:
        async with bucket.client.ask("PUT", key, headers=headers, upload=Upload(sent), sha256=told.sha256):
            return None
    except Problem as problem:
        return problem


class Rehearsal:
    """Puts what a recording's put looks like."""

    def __init__(self, bucket: Bucket, traits: Traits) -> None:
        self._bucket = bucket
        self._options = bucket.options
        self._traits = traits
        self._deletes = True
        #: It answered that it lies in a cold class.
        self._cold = bucket.options.storage_class in COLD
        self._lock_for: timedelta | None = None

    async def run(self, worm: Collection[str]) -> list[str]:
        """What there is to say. ``worm``: the folders whose manifests are locked as well. Raises StoreError."""
        notes: list[str] = []
        options = self._options
        await self._as_configured()
        if note := await rehearse_names(options.prefix, self._named):
            notes.append(note)
        if options.object_lock is not None:
            notes.append(f"object lock on, {options.object_lock.mode} {options.object_lock.days} days")
            folders = ", ".join(sorted(worm))
            notes.append(f"manifests and ledgers are locked of {folders}" if worm else "manifests are not locked")
            if self._bucket.default_lock:
                notes.append(
                    "WARNING: the bucket's default retention locks whatever is put, manifests too: nobody can erase a "
                    "person's data before its end; take the default retention off the bucket"
                )
            if self._bucket.keeps_lock is False:
                notes.append("it drops the lock of a put: each is locked by a second request")
            else:
                # The first true put is looked at as well: its lock is another, and longer.
                self._bucket.keeps_lock = None
        if options.storage_class is not None:
            notes.append(f"storage class {options.storage_class} is taken")
        if self._cold:
            notes.append(
                "WARNING: what lies in that class can't be read until it is restored: get, verify and repair fail on it"
            )
        notes.append(await self._parts())
        if not self._deletes:
            notes.append("this account may not delete")
        return notes

    async def _as_configured(self) -> None:
        """With class and lock: the shortest lock that the server takes, since what is tried now stays for that long."""
        lock = self._options.object_lock
        spans = [None] if lock is None else [*_SHORT_LOCKS, timedelta(days=lock.days)]
        for span in spans:
            self._lock_for = span
            try:
                await self._whole(canary_key(self._options.prefix), self._how())
            except (ObjectFailed, StoreRefused):
                if span == spans[-1]:
                    raise
            else:
                return

    async def _named(self, key: str) -> None:
        await self._whole(key, How())

    async def _whole(self, key: str, how: How) -> None:
        body = Body.of(b"archiver canary " + secrets.token_bytes(32))
        await self._around(key, body, how, lambda: self._bucket.put_whole(key, body, self._traits, how))

    async def _parts(self) -> str:
        """Two parts where that costs nothing that stays, else a single small one."""
        options = self._options
        if options.multipart_threshold >= 5 << 30:
            return "did not try uploads in parts (no recording is longer than multipart_threshold)"
        small = options.endpoint_url is None or options.storage_class is not None or not self._deletes
        small = small or self._lock_for is not None
        body = Body.of(secrets.token_bytes(48 if small else _PART + 48))
        key = f"{canary_key(options.prefix)}-parts.wav"

        how = self._how()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._around(
                    key, body, how, lambda: self._bucket.put_parts(key, body, self._traits, how, size=_PART)
                )
        except TimeoutError:
            return f"did not try two parts: {_PART >> 20} MiB took longer than {_PATIENCE:g} s"
        except StoreError as error:
            # What is shorter can be kept all the same.
            return (
                f"WARNING: uploads in parts fail, which what is longer than multipart_threshold needs ({error}); "
                'mend that, or set multipart_threshold = "5GiB", then nothing goes up in parts'
            )
        return "uploads in parts work" + (" (tried with a single small one)" if small else "")

    async def _around(self, key: str, body: Body, how: How, put: Callable[[], Awaitable[Receipt]]) -> None:
        bucket = self._bucket
        try:
            await put()
            if not (self._cold and how.storage_class):
                await self._compare(key, body)
            if [receipt.key async for receipt in bucket.list(key)] != [key]:
                raise StoreRefused("the listing does not show an object that was just put; is this an S3 bucket?")
        finally:
            # What is locked stays visible, so that a later check can delete it.
            if how.until is None:
                with contextlib.suppress(StoreDown):
                    self._deletes = await bucket.forget(key)

    async def _compare(self, key: str, body: Body) -> None:
        digest = Digest()
        try:
            async with self._bucket.client.ask("GET", key) as response:
                await self._bucket.client.receive(response, digest)
        except Problem as problem:
            if problem.code != "InvalidObjectState":
                raise problem.error(f"can't get {key}") from None
            self._cold = True
        else:
            if (digest.length, digest.sha256) != (body.length, body.sha256):
                raise StoreDown("the canary came back with other bytes")

    def _how(self) -> How:
        until = None if self._lock_for is None else datetime.now(UTC) + self._lock_for
        return How(self._options.storage_class, until)
