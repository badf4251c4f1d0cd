"""The objects of one bucket: how they are put, read, listed, locked and deleted.

An object goes up in one signed request that carries its SHA-256 twice: ``x-amz-content-sha256`` signs
it, ``x-amz-checksum-sha256`` makes the server check and keep it. ``If-None-Match: *`` keeps the server
from overwriting. Neither is believed: s3_check.py finds out per process what this server really takes and does;
what it refuses is left out, and where it falls short we read back, or look before we write.

https://docs.aws.amazon.com/AmazonS3/latest/API/ – PutObject, HeadObject, UploadPart …
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from ..common.words import one_line
from ..errors import ObjectFailed, Scope, StoreConflict, StoreDown, StoreError, StoreFull, StoreMissing, StoreRefused
from ..model import CHUNK, Body, Receipt
from ..ports import Sink
from ..wire.exchange import Answer
from ..wire.store import Digest, Upload
from .s3_client import ObjectLock, S3Client, S3Options
from .s3_listing import Listing
from .s3_problems import DAMAGED, OF_THE_NAME, OF_THE_OBJECT, Problem

#: Numbers and hashes of parts, as boto3 takes them.
_Parts = list[dict[str, Any]]
_PARTS = 10_000
#: So long an upload in parts that is given up is waited for, in seconds.
_LEAVE = 10.0
#: The lock of an object counts from a moment shortly before its copy does, by another clock.
_LOCK_SLACK = timedelta(hours=1)

_CONTENT_TYPES = {
    # As RFC 2361 registered it. What is called audio/wav SeaweedFS compresses, which takes more than all else of a put.
    ".wav": "audio/vnd.wave",
    ".mp3": "audio/mpeg",
    ".spx": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".gsm": "audio/x-gsm",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What this server really does, as a canary showed."""

    #: It refuses bytes whose hash is not the one declared.
    verifies: bool
    #: It honours If-None-Match: * on PUT.
    conditional: bool
    #: It takes x-amz-checksum-sha256.
    checksums: bool = True


@dataclass(frozen=True, slots=True)
class How:
    """What a put asks for beside its bytes."""

    storage_class: str | None = None
    #: Locked until then.
    until: datetime | None = None


class Bucket:
    """The objects of one bucket. Raises only errors.StoreError."""

    def __init__(self, name: str, options: S3Options) -> None:
        self.options = options
        self.client = S3Client(name, options)
        #: None until s3_check.py has found them out.
        self.traits: Traits | None = None
        #: Whether a put in one request keeps its lock, once that is known.
        self.keeps_lock: bool | None = None
        #: The bucket locks by itself what is put without a lock.
        self.default_lock = False
        self._listing = Listing(self.client, options, self.forget)

    @property
    def _lock(self) -> ObjectLock:
        """The configured one, where there is one."""
        assert self.options.object_lock is not None
        return self.options.object_lock

    async def stat(self, key: str) -> Receipt | None:
        # Who takes no checksum takes no question for one either; nothing is put to find that out.
        asks = self.traits is None or self.traits.checksums
        for headers in ({"x-amz-checksum-mode": "ENABLED"}, {}) if asks else ({},):
            try:
                async with self.client.ask("HEAD", key, headers=headers) as response:
                    return _receipt(key, response)
            except Problem as problem:
                if problem.status == 404:
                    break
                if not headers or not problem.is_of_a_header:
                    raise problem.error(f"can't look at {key}") from None
        return None

    async def get(self, key: str, into: Sink) -> None:
        try:
            async with self.client.ask("GET", key) as response:
                into.told(content_type=response.headers.get("Content-Type"))
                await self.client.receive(response, into)
        except Problem as problem:
            if problem.code in {"NoSuchKey", ""} and problem.status == 404:
                raise StoreMissing(f"no object {key}") from None
            raise problem.error(f"can't get {key}") from None

    def list(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        return self._listing.all(prefix, after)

    async def delete(self, key: str) -> None:
        try:
            await self.client.call("delete_object", Key=key)
        except Problem as problem:
            if problem.status != 404:
                raise problem.error(f"can't delete {key}") from None

    async def put_whole(self, key: str, body: Body, traits: Traits, how: How) -> Receipt:
        if not traits.conditional and (there := await self._already(key, body, traits, how)):
            return there
        headers = self._headers(key, body.sha256, how)
        if traits.checksums:
            headers["x-amz-checksum-sha256"] = base64_of(body.sha256)
        if traits.conditional:
            headers["If-None-Match"] = "*"
        if how.until is not None:
            headers["Content-MD5"] = await asyncio.to_thread(_md5, body)
        upload = Upload(body)
        damaged = False
        for attempt in range(4):
            try:
                async with self.client.ask("PUT", key, headers=headers, upload=upload, sha256=body.sha256):
                    break
            except Problem as problem:
                # Amazon: another conditional write to this key was under way.
                if problem.code == "ConditionalRequestConflict" and attempt < 3:
                    await asyncio.sleep(0.05 * 2**attempt)
                elif problem.code in DAMAGED and not damaged:
                    damaged = True
                elif problem.code in DAMAGED:
                    raise ObjectFailed(
                        f"can't put {key}: its bytes were refused twice ({problem.code}); "
                        "they were damaged on the way, or since they were fetched"
                    ) from None
                else:
                    return await self._taken(key, body, traits, how, problem, f"can't put {key}")
        return await self._settled(key, body, how, verified=traits.verifies, whole=True)

    async def put_parts(self, key: str, body: Body, traits: Traits, how: How, *, size: int | None = None) -> Receipt:
        if there := await self._already(key, body, traits, how):
            return there
        begun = asyncio.create_task(self._begin_parts(key, body, traits, how))
        try:
            upload_id = await asyncio.shield(begun)
        except asyncio.CancelledError:
            # What the server has begun is known by its answer only.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_LEAVE):
                    upload_id = await begun
                await self._abort_parts(key, upload_id)
            raise
        try:
            size = max(size or self.options.part_size, -(-body.length // _PARTS))
            parts, verified = await self._send_parts(key, body, upload_id, traits, how, size)
            condition = {"IfNoneMatch": "*"} if traits.conditional else {}
            await self.client.call(
                "complete_multipart_upload", Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException as error:
            await self._abort_parts(key, upload_id)
            if isinstance(error, Problem):
                return await self._taken(key, body, traits, how, error, f"can't finish {key}")
            raise
        return await self._settled(key, body, how, verified=traits.verifies and verified, whole=False)

    async def _begin_parts(self, key: str, body: Body, traits: Traits, how: How) -> str:
        """The id of a new upload."""
        asked: dict[str, Any] = {"ContentType": _content_type(key), "Metadata": {"sha256": body.sha256}}
        if how.storage_class is not None:
            asked["StorageClass"] = how.storage_class
        if how.until is not None:
            asked |= {"ObjectLockMode": self._lock.mode, "ObjectLockRetainUntilDate": how.until}
        if traits.checksums:
            asked["ChecksumAlgorithm"] = "SHA256"
        try:
            begun = await self.client.call("create_multipart_upload", Key=key, **asked)
        except Problem as problem:
            raise await self._blamed(key, problem, f"can't begin to put {key} in parts") from None
        upload_id: str | None = begun.get("UploadId")
        if not upload_id:
            raise StoreDown("the server began an upload without an id")
        return upload_id

    async def _abort_parts(self, key: str, upload_id: str) -> None:
        """Best effort: the upload may be over, or the server down."""
        with contextlib.suppress(StoreError, Problem, TimeoutError):
            async with asyncio.timeout(_LEAVE):
                await self.client.call("abort_multipart_upload", Key=key, UploadId=upload_id)

    async def _send_parts(
        self, key: str, body: Body, upload_id: str, traits: Traits, how: How, size: int
    ) -> tuple[_Parts, bool]:
        """Each part with its own hash; the parts' bytes together must have the body's.

        The canary says nothing about parts: True where the server named the hash of each.
        """
        whole = hashlib.sha256()
        verified = True
        parts: _Parts = []
        for number, offset in enumerate(range(0, body.length, size), start=1):
            length = min(size, body.length - offset)
            part, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
            digests = [part, whole, *([md5] if how.until is not None else [])]
            await asyncio.to_thread(_hash, body, offset, length, digests)
            sha256 = part.hexdigest()
            headers = {"x-amz-checksum-sha256": base64_of(sha256)} if traits.checksums else {}
            if how.until is not None:
                headers["Content-MD5"] = base64.b64encode(md5.digest()).decode()
            try:
                async with self.client.ask(
                    "PUT",
                    key,
                    query={"partNumber": str(number), "uploadId": upload_id},
                    headers=headers,
                    upload=Upload(body, offset, length),
                    sha256=sha256,
                ) as response:
                    etag = response.headers.get("ETag", "")
                    verified &= response.headers.get("x-amz-checksum-sha256") == base64_of(sha256)
            except Problem as problem:
                raise await self._blamed(key, problem, f"can't put part {number} of {key}") from None
            parts.append({"PartNumber": number, "ETag": etag})
            if traits.checksums:
                parts[-1]["ChecksumSHA256"] = base64_of(sha256)
        if whole.hexdigest() != body.sha256:
            raise ObjectFailed(f"the bytes of {key} do not have the hash they were announced with; nothing was put")
        return parts, verified

    async def _taken(self, key: str, body: Body, traits: Traits, how: How, problem: Problem, what: str) -> Receipt:
        """A put was refused: success where the same bytes lie there. Raises StoreConflict for others, else the error.

        412 is the answer by the book; some servers say otherwise that a name is taken, or locked.
        """
        if problem.is_of_the_condition:
            return await self._already(key, body, traits, how) or await self._vanished(key)
        if problem.is_refusal and problem.code not in OF_THE_OBJECT:
            try:
                if there := await self._already(key, body, traits, how):
                    return there
            except StoreConflict:
                raise
            except StoreError:
                pass
        raise await self._blamed(key, problem, what)

    async def _blamed(self, key: str, problem: Problem, what: str) -> StoreError:
        """ObjectFailed where an object has the name of a folder of the key's, which some servers can't hold.

        Each has an answer of its own for it (rclone: 500), which concerns the whole store elsewhere.
        """
        error = problem.error(what)
        if problem.status in OF_THE_NAME and error.scope is Scope.STORE and not isinstance(error, StoreFull):
            above = key
            with contextlib.suppress(StoreError):
                while above := above.rpartition("/")[0]:
                    if await self.stat(above) is not None:
                        return ObjectFailed(f"{error}; an object lies where the folder {above} should be")
        return error

    async def _settled(self, key: str, body: Body, how: How, *, verified: bool, whole: bool) -> Receipt:
        """What was just put, believed only where the server verified it."""
        if not verified and await self._digest(key) != (body.length, body.sha256):
            await self._try_delete(key)
            raise StoreDown(f"{key} came back with other bytes than were put")
        # Some servers keep the lock of a put in one request, and drop that of an upload in parts.
        if how.until is not None and not (whole and self.keeps_lock):
            kept = await self._locked(key, how.until)
            if whole:
                self.keeps_lock = kept
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    async def _already(self, key: str, body: Body, traits: Traits, how: How) -> Receipt | None:
        """The object where it holds the same bytes, None where there is none. Raises StoreConflict."""
        there = await self.stat(key)
        if there is None:
            return None
        same = there.size == body.length
        if same and (there.sha256 is None or not traits.verifies):
            same = await self._digest(key) == (body.length, body.sha256)
        elif same:
            same = there.sha256 == body.sha256
        if not same:
            raise StoreConflict(f"{key} holds other bytes ({there.size} of them) and is not overwritten")
        if how.until is not None:
            await self._locked(key, how.until, any_end=True)
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    async def _vanished(self, key: str) -> Receipt:
        raise ObjectFailed(
            f"{key} is taken, and yet nothing can be read there: is it a folder, or does another write here?"
        )

    async def _digest(self, key: str) -> tuple[int, str]:
        digest = Digest()
        try:
            await self.get(key, digest)
        except StoreMissing:
            return -1, ""
        return digest.length, digest.sha256

    async def _try_delete(self, key: str) -> bool:
        try:
            await self.delete(key)
        except StoreRefused:
            return False
        return True

    async def forget(self, key: str) -> bool:
        """Delete a canary with its version, so that a bucket with versions keeps nothing of it; False: may not be."""
        try:
            async with self.client.ask("HEAD", key) as response:
                version = response.headers.get("x-amz-version-id", "null")
            if version != "null":
                await self.client.call("delete_object", Key=key, VersionId=version)
                return True
        except Problem as problem:
            if problem.status == 404:
                return True
            # A mark of deletion would hide what a lock keeps for a while.
            if problem.status < 500 and self.options.object_lock is not None:
                return False
        return await self._try_delete(key)

    async def check_lock(self) -> None:
        """Raises StoreRefused where the bucket can lock no object, and StoreError."""
        try:
            answer = await self.client.call("get_object_lock_configuration")
        except Problem as problem:
            if problem.status == 404:
                raise StoreRefused(
                    f"bucket {self.options.bucket} has no object lock; make a bucket with object lock, "
                    "or take object_lock out of the config"
                ) from None
            raise problem.error("can't read the bucket's object lock") from None
        told = answer.get("ObjectLockConfiguration", {})
        if told.get("ObjectLockEnabled") != "Enabled":
            raise StoreRefused(f"object lock is not enabled on bucket {self.options.bucket}")
        self.default_lock = "DefaultRetention" in told.get("Rule", {})

    async def lock_problem(self, key: str, since: datetime) -> str | None:
        lock = self.options.object_lock
        if lock is None or (wanted := since + timedelta(days=lock.days)) <= datetime.now(UTC):
            return None
        return await self._lock_fault(key, wanted)

    async def lock(self, key: str, since: datetime) -> None:
        await self._retain(key, since + timedelta(days=self._lock.days))

    async def _locked(self, key: str, until: datetime, *, any_end: bool = False) -> bool:
        """See to it that an object is locked until then (``any_end``: locked at all).

        True where it was already. Raises StoreError where it can't be.
        """
        wanted = datetime.min.replace(tzinfo=UTC) if any_end else until
        if (fault := await self._lock_fault(key, wanted)) is None:
            return True
        try:
            # A server that knows no locks may take the request for an object of that name.
            await self.check_lock()
            await self._retain(key, until)
            again = await self._lock_fault(key, wanted)
        except StoreRefused as error:
            raise StoreRefused(f"{key} is {fault}, and that can't be mended: {error}") from None
        if again is not None:
            raise StoreRefused(f"{key} is {again}, though it was put and set with the lock that object_lock asks for")
        return False

    async def _lock_fault(self, key: str, wanted: datetime) -> str | None:
        """What is wrong with an object's lock, or None."""
        lock = self._lock
        mode, until = await self._lock_of(key)
        if mode is None or until is None:
            return "not locked against deletion"
        if mode not in {lock.mode, "COMPLIANCE"}:
            return f"locked as {one_line(mode, 20)} in place of {lock.mode}"
        if wanted - until > _LOCK_SLACK:
            return f"locked until {until:%Y-%m-%d} in place of {wanted:%Y-%m-%d}"
        return None

    async def _retain(self, key: str, until: datetime) -> None:
        retention = {"Mode": self._lock.mode, "RetainUntilDate": until}
        try:
            await self.client.call("put_object_retention", Key=key, Retention=retention)
        except Problem as problem:
            raise problem.error(f"can't lock {key}") from None

    async def _lock_of(self, key: str) -> tuple[str | None, datetime | None]:
        """Mode and end of an object's lock, as a read-back tells them."""
        try:
            async with self.client.ask("HEAD", key) as response:
                mode = response.headers.get("x-amz-object-lock-mode")
                until = response.headers.get("x-amz-object-lock-retain-until-date")
        except Problem as problem:
            raise problem.error(f"can't read the lock of {key}") from None
        try:
            moment = datetime.fromisoformat(until) if until else None
        except ValueError:
            moment = None
        return mode, moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)

    def _headers(self, key: str, sha256: str, how: How) -> dict[str, str]:
        headers = {"Content-Type": _content_type(key), "x-amz-meta-sha256": sha256}
        if how.storage_class is not None:
            headers["x-amz-storage-class"] = how.storage_class
        if how.until is not None:
            headers["x-amz-object-lock-mode"] = self._lock.mode
            headers["x-amz-object-lock-retain-until-date"] = f"{how.until:%Y-%m-%dT%H:%M:%SZ}"
        return headers


def _md5(body: Body) -> str:
    """As Content-MD5 tells it (RFC 1864). Blocking."""
    md5 = hashlib.md5(usedforsecurity=False)
    _hash(body, 0, body.length, [md5])
    return base64.b64encode(md5.digest()).decode()


def _hash(body: Body, offset: int, length: int, digests: Sequence[Any]) -> None:
    """Take a part of it into each digest. Blocking."""
    if body.data is not None:
        for digest in digests:
            digest.update(memoryview(body.data)[offset : offset + length])
    elif body.path is not None:
        with body.path.open("rb") as file:
            file.seek(offset)
            while length and (chunk := file.read(min(length, 4 * CHUNK))):
                length -= len(chunk)
                for digest in digests:
                    digest.update(chunk)


def _content_type(key: str) -> str:
    return _CONTENT_TYPES.get(PurePosixPath(key).suffix, "application/octet-stream")


def base64_of(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _receipt(key: str, response: Answer) -> Receipt:
    size = response.headers.get("Content-Length", "")
    if not size.isdigit():
        raise StoreDown(f"the server tells no size of {key}")
    # A checksum of checksums (of an object that came in parts) ends in -N; ours lies beside it.
    checksum = response.headers.get("x-amz-checksum-sha256", "")
    sha256 = response.headers.get("x-amz-meta-sha256")
    if len(checksum) == 44:
        with contextlib.suppress(ValueError):
            sha256 = base64.b64decode(checksum, validate=True).hex()
    return Receipt(key=key, size=int(size), sha256=sha256)
