"""Amazon S3 and what speaks its language (Ceph, MinIO, SeaweedFS, Garage, OVH …).

An object goes up in one signed request that carries its SHA-256 twice: ``x-amz-content-sha256`` signs
it, ``x-amz-checksum-sha256`` makes the server check and keep it. ``If-None-Match: *`` keeps the server
from overwriting. Neither is believed: a canary with a wrong hash, and one sent twice, show per process
what this server really does; where it falls short we read back, or look before we write.

https://docs.aws.amazon.com/AmazonS3/latest/API/ – PutObject, HeadObject, ListObjectsV2, UploadPart …
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, unquote, urlencode
from xml.etree.ElementTree import Element, SubElement, tostring  # for writing; read_xml reads

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from ..errors import StoreCold, StoreConflict, StoreDown, StoreError, StoreMissing, StoreRefused
from ..model import CHUNK, Body, Receipt
from ..options import Size, StoreOptions, Strict
from ..ports import Sink
from ..transport import Answer
from .canary import canary_key, clear_canaries
from .sigv4 import Signer
from .wire import Digest, HttpOptions, Upload, Wire, failure, limited, origin, printable, read_xml

_XML_LIMIT = 16 << 20
_PARTS = 10_000
#: So many pages of a listing are sorted in memory at most.
_HELD_PAGES = 10
#: The lock of an object counts from a moment shortly before its copy does, by another clock.
_LOCK_SLACK = timedelta(hours=1)
#: botocore renews what expires; asked this often, it does so well before the end.
_CREDENTIALS_LAST = 60.0

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

#: Codes that pass by themselves although their status says otherwise.
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_PASSING = {
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "QuotaExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottlingException",
    "TooManyRequests",
    "XMinioStorageFull",
}
_REMEDIES = {
    "AccessDenied": "allow the account s3:PutObject, s3:GetObject and s3:ListBucket here",
    "AuthorizationHeaderMalformed": "set region to the bucket's",
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidAccessKeyId": "check access_key_id",
    "InvalidToken": "check session_token",
    "NoSuchBucket": "create the bucket, or correct its name",
    "PermanentRedirect": "set region or endpoint_url to the bucket's",
    "RequestTimeTooSkewed": "this host's clock is wrong; set it (NTP)",
    "SignatureDoesNotMatch": "check secret_access_key",
}


class ObjectLock(Strict):
    mode: Literal["COMPLIANCE", "GOVERNANCE"]
    days: int = Field(ge=1, le=36500)


class S3Options(HttpOptions):
    bucket: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,62}$")
    #: None: Amazon's, by region.
    endpoint_url: Annotated[str, BeforeValidator(origin)] | None = None
    region: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9-]+$")
    #: None: boto3's own chain (environment, profile, instance role …).
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    profile: str | None = None
    #: path: endpoint/bucket/key; virtual: bucket.endpoint/key; auto: path where endpoint_url is given.
    addressing: Literal["auto", "path", "virtual"] = "auto"
    #: Needs a bucket that was made with object lock.
    object_lock: ObjectLock | None = None
    storage_class: str | None = Field(default=None, pattern=r"^[A-Z0-9_]+$")
    #: Longer bodies go up in parts.
    multipart_threshold: Size = Field(default=64 << 20, ge=5 << 20, le=5 << 30)
    part_size: Size = Field(default=16 << 20, ge=5 << 20, le=5 << 30)
    #: Keys to one page of a listing.
    page_size: int = Field(default=1000, ge=1, le=1000)

    @field_validator("bucket")
    @classmethod
    def _bucket_is_no_path(cls, bucket: str) -> str:
        if ".." in bucket:
            raise ValueError("is no bucket name")
        return bucket

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> S3Options:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("needs access_key_id and secret_access_key together, or neither")
        return self


@dataclass(frozen=True, slots=True)
class _Traits:
    """What this server really does, as a canary showed."""

    #: It refuses bytes whose hash is not the one declared.
    verifies: bool
    #: It honours If-None-Match: * on PUT.
    conditional: bool


class _Problem(Exception):  # carries an answer to the place that knows what it means
    """An answer that is no success."""

    def __init__(self, status: int, code: str, message: str, region: str | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.region = region

    def error(self, what: str) -> StoreError:
        said = ": ".join(filter(None, [self.code or f"status {self.status}", self.message]))
        text = f"{what}: {said}"
        if self.code in _DAMAGED:
            return StoreDown(f"{what}: the bytes were damaged on the way ({said})")
        if self.code in _PASSING:
            return StoreDown(text)
        if self.code == "InvalidObjectState":
            return StoreCold(f"{text}; it lies in a cold class: restore it first")
        remedy = _REMEDIES.get(self.code)
        if remedy is None and self.status == 403:
            remedy = _REMEDIES["AccessDenied"]
        if self.region:
            remedy = f"the bucket is in region {self.region}"
        if remedy:
            return StoreRefused(f"{text}; {remedy}")
        return failure(self.status, text)


class S3Store:
    """One bucket. Raises only errors.StoreError."""

    Options: ClassVar[type[StoreOptions]] = S3Options

    def __init__(self, name: str, options: StoreOptions) -> None:
        assert isinstance(options, S3Options)
        self.name = name
        self.options = options
        self._region = options.region
        self._wire: Wire | None = None
        #: The bucket's path at its server.
        self._bucket_path = ""
        self._credentials: Any = None
        self._signer: Signer | None = None
        self._signer_until = 0.0
        self._signing = asyncio.Lock()
        self._traits: _Traits | None = None
        self._probing = asyncio.Lock()
        self._sorted: bool | None = None
        self._lock_seen = options.object_lock is None

    def location(self, key: str) -> dict[str, str]:
        return {"kind": "s3", "bucket": self.options.bucket, "key": key}

    async def close(self) -> None:
        if self._wire is not None:
            await self._wire.close()

    async def check(self) -> str:
        """Put, get, compare, list and delete a canary, and old ones; find out what the server verifies.

        The canary carries no lock of ours; in a bucket with a default retention its old version stays
        for that long.
        """
        self._traits = None
        traits = await self._known()
        body = Body.of(b"archiver canary " + secrets.token_bytes(32))
        key = canary_key(self.options.prefix)
        await self._put_whole(key, body, traits, kept=False)
        if await self._digest(key) != (body.length, body.sha256):
            raise StoreDown("the canary came back with other bytes")
        if [receipt.key async for receipt in self.list(key)] != [key]:
            raise StoreRefused("the listing does not show an object that was just put; is this an S3 bucket?")
        deletes = await self._try_delete(key)
        if deletes:
            await clear_canaries(self, self.options.prefix)
        notes = [f"bucket {self.options.bucket}: put, get, list and compare work"]
        notes.append("verifies SHA-256" if traits.verifies else "verifies no SHA-256: reading back")
        notes.append("never overwrites" if traits.conditional else "no conditional writes: looking before each put")
        if not deletes:
            notes.append("this account may not delete")
        if self.options.object_lock is not None:
            await self._check_lock()
            notes.append(f"object lock on, {self.options.object_lock.mode} {self.options.object_lock.days} days")
        if not self.options.verify_tls:
            notes.append("TLS is NOT verified")
        return "; ".join(notes)

    async def put(self, key: str, body: Body) -> Receipt:
        """One request where the body is short and the server is good; see :class:`..ports.Store`."""
        traits = self._traits or await self._known()
        if body.length > self.options.multipart_threshold:
            return await self._put_parts(key, body, traits)
        return await self._put_whole(key, body, traits)

    async def stat(self, key: str) -> Receipt | None:
        try:
            async with self._ask("HEAD", key, headers={"x-amz-checksum-mode": "ENABLED"}) as response:
                return _receipt(key, response)
        except _Problem as problem:
            if problem.status == 404:
                return None
            raise problem.error(f"can't look at {key}") from None

    async def get(self, key: str, into: Sink) -> None:
        try:
            async with self._ask("GET", key) as response:
                into.told(content_type=response.headers.get("Content-Type"))
                await self._served().receive(response, into)
        except _Problem as problem:
            if problem.code in {"NoSuchKey", ""} and problem.status == 404:
                raise StoreMissing(f"no object {key}") from None
            raise problem.error(f"can't get {key}") from None

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        """ListObjectsV2, page by page; where that fails, folder by folder: perhaps only one can't be listed."""
        try:
            async for receipt in self._flat(prefix, after):
                after = receipt.key
                yield receipt
        except StoreError as error:
            if error.folder is not None:
                raise
        else:
            return
        async for receipt in self._by_folder(prefix, after):
            yield receipt

    async def _flat(self, prefix: str, after: str) -> AsyncIterator[Receipt]:
        """All pages of one listing, sorted.

        Amazon sorts by key, but servers that keep folders (SeaweedFS) put ``a/c`` before ``a-b``: there
        we sort ourselves, folder by folder, where a listing is too long to be held.
        """
        most = _HELD_PAGES * self.options.page_size
        sorts = await self._sorts() if after else None
        held: list[Receipt] = []
        async for page in self._pages(prefix, after if sorts else ""):
            held += page
            if sorts is None and len(held) > most:
                sorts = await self._sorts()
            if sorts:
                for receipt in held:
                    if receipt.key <= after:
                        raise StoreDown("a listing is out of order")
                    after = receipt.key
                    yield receipt
                held = []
            elif len(held) > most:
                held.clear()
                break
        else:
            for receipt in sorted(held, key=lambda receipt: receipt.key):
                if receipt.key > after:
                    yield receipt
            return
        async for receipt in self._by_folder(prefix, after):
            yield receipt

    async def delete(self, key: str) -> None:
        try:
            async with self._ask("DELETE", key):
                pass
        except _Problem as problem:
            if problem.status != 404:
                raise problem.error(f"can't delete {key}") from None

    async def lock_problem(self, key: str, since: datetime) -> str | None:
        lock = self.options.object_lock
        if lock is None or (wanted := since + timedelta(days=lock.days)) <= datetime.now(UTC):
            return None
        mode, until = await self._lock_of(key)
        if mode is None or until is None:
            return "not locked against deletion"
        if mode != lock.mode and mode != "COMPLIANCE":
            return f"locked as {printable(mode, 20)} in place of {lock.mode}"
        if until < wanted - _LOCK_SLACK:
            return f"locked until {until:%Y-%m-%d} in place of {wanted:%Y-%m-%d}"
        return None

    async def lock(self, key: str, since: datetime) -> None:
        lock = self.options.object_lock
        assert lock is not None
        until = since + timedelta(days=lock.days)
        retention = Element("Retention", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        SubElement(retention, "Mode").text = lock.mode
        SubElement(retention, "RetainUntilDate").text = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        body = Body.of(tostring(retention))
        headers = {"x-amz-checksum-sha256": _base64(body.sha256)}
        upload = Upload(body)
        try:
            async with self._ask(
                "PUT", key, query={"retention": ""}, headers=headers, upload=upload, sha256=body.sha256
            ):
                pass
        except _Problem as problem:
            raise problem.error(f"can't lock {key}") from None

    async def _put_whole(self, key: str, body: Body, traits: _Traits, *, kept: bool = True) -> Receipt:
        if not traits.conditional and (there := await self._already(key, body, traits)):
            return there
        headers = self._headers(key, body.sha256, kept=kept)
        headers["x-amz-checksum-sha256"] = _base64(body.sha256)
        if traits.conditional:
            headers["If-None-Match"] = "*"
        upload = Upload(body)
        for attempt in range(4):
            try:
                async with self._ask("PUT", key, headers=headers, upload=upload, sha256=body.sha256):
                    break
            except _Problem as problem:
                if problem.status == 412:
                    return await self._already(key, body, traits) or await self._vanished(key)
                # Amazon: another conditional write to this key was under way.
                if problem.code != "ConditionalRequestConflict" or attempt == 3:
                    raise problem.error(f"can't put {key}") from None
                await asyncio.sleep(0.05 * 2**attempt)
        return await self._settled(key, body, traits, kept=kept)

    async def _put_parts(self, key: str, body: Body, traits: _Traits) -> Receipt:
        if there := await self._already(key, body, traits):
            return there
        headers = {**self._headers(key, body.sha256, kept=True), "x-amz-checksum-algorithm": "SHA256"}
        try:
            async with self._ask("POST", key, query={"uploads": ""}, headers=headers) as response:
                upload_id = read_xml(await limited(response, _XML_LIMIT)).findtext("UploadId")
        except _Problem as problem:
            raise problem.error(f"can't begin to put {key} in parts") from None
        if not upload_id:
            raise StoreDown("the server began an upload without an id")
        try:
            parts, verified = await self._send_parts(key, body, upload_id)
            completed = await self._complete(key, upload_id, parts, traits)
        except BaseException:
            with contextlib.suppress(StoreError, _Problem):
                async with self._ask("DELETE", key, query={"uploadId": upload_id}):
                    pass
            raise
        if not completed:
            return await self._already(key, body, traits) or await self._vanished(key)
        return await self._settled(key, body, replace(traits, verifies=traits.verifies and verified), kept=True)

    async def _send_parts(self, key: str, body: Body, upload_id: str) -> tuple[Element, bool]:
        """Each part with its own hash; the parts' bytes together must have the body's.

        The canary says nothing about parts: True where the server named the hash of each.
        """
        size = max(self.options.part_size, -(-body.length // _PARTS))
        whole = hashlib.sha256()
        verified = True
        manifest = Element("CompleteMultipartUpload", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        for number, offset in enumerate(range(0, body.length, size), start=1):
            length = min(size, body.length - offset)
            sha256 = await asyncio.to_thread(_hash_part, body, offset, length, whole)
            try:
                async with self._ask(
                    "PUT",
                    key,
                    query={"partNumber": str(number), "uploadId": upload_id},
                    headers={"x-amz-checksum-sha256": _base64(sha256)},
                    upload=Upload(body, offset, length),
                    sha256=sha256,
                ) as response:
                    etag = response.headers.get("ETag", "")
                    verified &= response.headers.get("x-amz-checksum-sha256") == _base64(sha256)
            except _Problem as problem:
                raise problem.error(f"can't put part {number} of {key}") from None
            part = SubElement(manifest, "Part")
            SubElement(part, "PartNumber").text = str(number)
            SubElement(part, "ETag").text = etag
            SubElement(part, "ChecksumSHA256").text = _base64(sha256)
        if whole.hexdigest() != body.sha256:
            raise StoreDown(f"the bytes of {key} do not have the hash they were announced with; nothing was put")
        return manifest, verified

    async def _complete(self, key: str, upload_id: str, parts: Element, traits: _Traits) -> bool:
        """Make the parts one object; False where the key is taken."""
        text = tostring(parts)
        headers = {"If-None-Match": "*"} if traits.conditional else {}
        try:
            async with self._ask(
                "POST",
                key,
                query={"uploadId": upload_id},
                headers=headers,
                upload=Upload(Body.of(text)),
                sha256=hashlib.sha256(text).hexdigest(),
            ) as response:
                answer = read_xml(await limited(response, _XML_LIMIT))
        except _Problem as problem:
            if problem.status == 412:
                return False
            raise problem.error(f"can't finish {key}") from None
        # A status of 200 may still carry an error: the server answers before it is done.
        if answer.tag == "Error":
            raise _problem(200, answer, None).error(f"can't finish {key}")
        return True

    async def _settled(self, key: str, body: Body, traits: _Traits, *, kept: bool) -> Receipt:
        """What was just put, believed only where the server verifies."""
        if not traits.verifies and await self._digest(key) != (body.length, body.sha256):
            await self._try_delete(key)
            raise StoreDown(f"{key} came back with other bytes than were put")
        if kept and not self._lock_seen:
            await self._see_lock(key)
            self._lock_seen = True
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    async def _already(self, key: str, body: Body, traits: _Traits) -> Receipt | None:
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
        if self.options.object_lock is not None:
            await self._see_lock(key)
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    async def _vanished(self, key: str) -> Receipt:
        raise StoreDown(f"{key} was there and is gone again; something else writes here")

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

    async def _known(self) -> _Traits:
        """Once per process: does the server refuse a wrong hash, and a second write?"""
        async with self._probing:
            if self._traits is None:
                self._traits = _Traits(verifies=await self._refuses_damage(), conditional=await self._refuses_again())
            return self._traits

    async def _refuses_damage(self) -> bool:
        key, told = canary_key(self.options.prefix), Body.of(b"archiver canary, told")
        sent = Upload(Body.of(b"archiver canary, sent"))
        headers = {"x-amz-checksum-sha256": _base64(told.sha256)}
        try:
            async with self._ask("PUT", key, headers=headers, upload=sent, sha256=told.sha256):
                pass
        except _Problem as problem:
            if problem.status == 400 and (problem.code in _DAMAGED or problem.code == "InvalidRequest"):
                return True
            raise problem.error("can't put a canary") from None
        await self._try_delete(key)
        return False

    async def _refuses_again(self) -> bool:
        key = canary_key(self.options.prefix)
        try:
            for body in (Body.of(b"archiver canary, first"), Body.of(b"archiver canary, again")):
                async with self._ask(
                    "PUT",
                    key,
                    headers={"If-None-Match": "*", "x-amz-checksum-sha256": _base64(body.sha256)},
                    upload=Upload(body),
                    sha256=body.sha256,
                ):
                    pass
        except _Problem as problem:
            if problem.status == 412:
                return True
            if problem.status == 501 or problem.code == "NotImplemented":
                return False
            raise problem.error("can't put a canary") from None
        finally:
            with contextlib.suppress(StoreError):
                await self.delete(key)
        return False

    async def _sorts(self) -> bool:
        """Does the server list in the order of keys? Once per process; without leave to write: assume not."""
        if self._sorted is None:
            if self.options.endpoint_url is None:
                self._sorted = True
                return True
            start = canary_key(self.options.prefix)
            keys = [f"{start}-", f"{start}/a"]
            try:
                for key in keys:
                    async with self._ask("PUT", key):
                        pass
                found = [receipt.key async for page in self._pages(start, "") for receipt in page]
                self._sorted = found == keys
            except _Problem:
                self._sorted = False
            finally:
                for key in keys:
                    with contextlib.suppress(StoreError):
                        await self.delete(key)
        return self._sorted

    async def _pages(self, prefix: str, after: str) -> AsyncIterator[Sequence[Receipt]]:
        async for page, encoded in self._raw_pages({"prefix": prefix, "start-after": after}):
            yield [_listed(entry, prefix, encoded) for entry in page.iterfind("Contents")]

    async def _level(self, prefix: str) -> Sequence[tuple[str, int]]:
        """What lies between the prefix and the next slash: objects with their size, folders with -1."""
        level: list[tuple[str, int]] = []
        async for page, encoded in self._raw_pages({"prefix": prefix, "delimiter": "/"}):
            found = [_listed(entry, prefix, encoded) for entry in page.iterfind("Contents")]
            level += [(receipt.key, receipt.size) for receipt in found]
            level += [(_key(entry.findtext("Prefix"), encoded), -1) for entry in page.iterfind("CommonPrefixes")]
        if any(not key.startswith(prefix) or (size < 0 and len(key) <= len(prefix)) for key, size in level):
            raise StoreDown("a listing shows what was not asked for")
        return level

    async def _by_folder(self, prefix: str, after: str) -> AsyncIterator[Receipt]:
        try:
            level = await self._level(prefix)
        except StoreError as error:
            error.folder = prefix[: prefix.rfind("/") + 1]
            raise
        for key, size in sorted(level):
            if size >= 0:
                if key > after:
                    yield Receipt(key=key, size=size)
            elif key > after or after.startswith(key):
                async for receipt in self.list(key, after if after.startswith(key) else ""):
                    yield receipt

    async def _raw_pages(self, query: dict[str, str]) -> AsyncIterator[tuple[Element, bool]]:
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(self.options.page_size)} | query
        while True:
            try:
                async with self._ask("GET", query=query) as response:
                    page = read_xml(await limited(response, _XML_LIMIT))
            except _Problem as problem:
                raise problem.error(f"can't list {query['prefix'] or 'the bucket'}") from None
            yield page, page.findtext("EncodingType") == "url"
            if page.findtext("IsTruncated") != "true":
                return
            token = page.findtext("NextContinuationToken")
            if not token or token == query.get("continuation-token"):
                raise StoreDown("a listing breaks off without a continuation")
            query["continuation-token"] = token

    async def _check_lock(self) -> None:
        try:
            async with self._ask("GET", query={"object-lock": ""}) as response:
                answer = read_xml(await limited(response, _XML_LIMIT))
        except _Problem as problem:
            if problem.status == 404:
                raise StoreRefused(
                    f"bucket {self.options.bucket} has no object lock; make a bucket with object lock, "
                    "or take object_lock out of the config"
                ) from None
            raise problem.error("can't read the bucket's object lock") from None
        if answer.findtext("ObjectLockEnabled") != "Enabled":
            raise StoreRefused(f"object lock is not enabled on bucket {self.options.bucket}")

    async def _see_lock(self, key: str) -> None:
        lock = self.options.object_lock
        assert lock is not None
        mode, until = await self._lock_of(key)
        if mode != lock.mode or until is None:
            raise StoreRefused(
                f"{key} is not locked as object_lock says; does bucket {self.options.bucket} have object lock?"
            )

    async def _lock_of(self, key: str) -> tuple[str | None, datetime | None]:
        """Mode and end of an object's lock, as a read-back tells them."""
        try:
            async with self._ask("HEAD", key) as response:
                mode = response.headers.get("x-amz-object-lock-mode")
                until = response.headers.get("x-amz-object-lock-retain-until-date")
        except _Problem as problem:
            raise problem.error(f"can't read the lock of {key}") from None
        try:
            moment = datetime.fromisoformat(until) if until else None
        except ValueError:
            moment = None
        return mode, moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)

    def _headers(self, key: str, sha256: str, *, kept: bool) -> dict[str, str]:
        headers = {
            "Content-Type": _CONTENT_TYPES.get(PurePosixPath(key).suffix, "application/octet-stream"),
            "x-amz-meta-sha256": sha256,
        }
        if self.options.storage_class is not None and kept:
            headers["x-amz-storage-class"] = self.options.storage_class
        if self.options.object_lock is not None and kept:
            until = datetime.now(UTC) + timedelta(days=self.options.object_lock.days)
            headers["x-amz-object-lock-mode"] = self.options.object_lock.mode
            headers["x-amz-object-lock-retain-until-date"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        key: str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        upload: Upload | None = None,
        sha256: str = hashlib.sha256().hexdigest(),
    ) -> AsyncIterator[Answer]:
        """One signed request. Raises _Problem for any status but 2xx, and StoreError."""
        signer = self._signer if time.monotonic() < self._signer_until else None
        signer = signer or await self._renewed_signer()
        wire = self._served()
        target = f"{self._bucket_path}/{quote(key, safe='/~') if key is not None else ''}"
        if query is not None:
            target += "?" + urlencode(query, quote_via=quote, safe="~")
        signed = signer.sign(method, wire.authority, target, headers or {}, sha256)
        async with wire.request(method, target, signed, upload) as response:
            if response.status >= 300:
                raise await _read_problem(response, signer)
            yield response

    def _served(self) -> Wire:
        """The server; which one may be known only with the region of the credentials' profile."""
        if self._wire is None:
            scheme, _, rest = self._bucket_url().partition("://")
            authority, slash, path = rest.partition("/")
            self._bucket_path = slash + path
            self._wire = Wire(self.name, self.options, f"{scheme}://{authority}/")
        return self._wire

    def _bucket_url(self) -> str:
        region, bucket = self._region or "us-east-1", self.options.bucket
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        endpoint = (self.options.endpoint_url or f"https://s3.{region}.{domain}").rstrip("/")
        # A dot in a bucket's name does not fit Amazon's wildcard certificate.
        path_style = self.options.endpoint_url is not None or "." in bucket
        if self.options.addressing == "path" or (self.options.addressing == "auto" and path_style):
            return f"{endpoint}/{bucket}"
        scheme, _, rest = endpoint.partition("://")
        return f"{scheme}://{bucket}.{rest}"

    async def _renewed_signer(self) -> Signer:
        async with self._signing:
            if self._signer is None or time.monotonic() >= self._signer_until:
                options = self.options
                if options.access_key_id is not None and options.secret_access_key is not None:
                    keys = (options.access_key_id, options.secret_access_key, options.session_token)
                    found = tuple(key.get_secret_value() if key is not None else None for key in keys)
                else:
                    try:
                        found = await asyncio.wait_for(asyncio.to_thread(self._found_credentials), 60)
                    except TimeoutError:
                        raise StoreDown("the credentials did not come within 60 s") from None
                access_key, secret_key, token = found
                if access_key is None or secret_key is None:
                    raise StoreRefused("no credentials: set access_key_id and secret_access_key, or a profile or role")
                self._signer = Signer(access_key, secret_key, token, self._region or "us-east-1")
                self._signer_until = time.monotonic() + _CREDENTIALS_LAST
            return self._signer

    def _found_credentials(self) -> tuple[str | None, str | None, str | None]:
        """What boto3's chain finds and renews. Blocking; boto3 takes a third of a second to be imported."""
        import boto3
        from botocore.exceptions import BotoCoreError

        try:
            if self._credentials is None:
                session = boto3.Session(profile_name=self.options.profile)
                self._region = self._region or session.region_name
                self._credentials = session.get_credentials()
            if self._credentials is None:
                return None, None, None
            frozen = self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise StoreRefused(f"no credentials: {printable(str(error))}") from None
        return frozen.access_key, frozen.secret_key, frozen.token


def _hash_part(body: Body, offset: int, length: int, whole: Any) -> str:
    part = hashlib.sha256()
    if body.data is not None:
        piece = memoryview(body.data)[offset : offset + length]
        part.update(piece)
        whole.update(piece)
    elif body.path is not None:
        with body.path.open("rb") as file:
            file.seek(offset)
            while length and (chunk := file.read(min(length, 4 * CHUNK))):
                length -= len(chunk)
                part.update(chunk)
                whole.update(chunk)
    return part.hexdigest()


def _key(text: str | None, encoded: bool) -> str:
    return unquote((text or "").replace("+", " ")) if encoded else text or ""


def _listed(entry: Element, prefix: str, encoded: bool) -> Receipt:
    key, size = _key(entry.findtext("Key"), encoded), entry.findtext("Size") or ""
    if not size.isdecimal() or not key.startswith(prefix):
        raise StoreDown("a listing can't be read")
    return Receipt(key=key, size=int(size))


def _base64(sha256: str) -> str:
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


async def _read_problem(response: Answer, signer: Signer) -> _Problem:
    region = response.headers.get("x-amz-bucket-region") if response.status in {301, 400} else None
    try:
        problem = _problem(response.status, read_xml(await limited(response, 1 << 16)), region)
    except StoreDown:
        return _Problem(response.status, "", "", region)
    for secret in (signer.access_key, signer.token):
        if secret:
            problem.message = problem.message.replace(secret, "***")
    return problem


def _problem(status: int, answer: Element, region: str | None) -> _Problem:
    code, message = answer.findtext("Code") or "", answer.findtext("Message") or ""
    return _Problem(status, printable(code, 60), printable(message), region)
