"""Amazon S3 and what speaks its language (Ceph, MinIO, SeaweedFS, Garage, OVH …).

An object goes up in one signed request that carries its SHA-256 twice: ``x-amz-content-sha256`` signs
it, ``x-amz-checksum-sha256`` makes the server check and keep it. ``If-None-Match: *`` keeps the server
from overwriting. Neither is believed: canaries show per process what this server really takes and does;
what it refuses is left out, and where it falls short we read back, or look before we write.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, unquote, urlencode
from xml.etree.ElementTree import Element, SubElement, tostring  # for writing; read_xml reads

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from ..common.words import one_line, reason_of
from ..errors import (
    ObjectFailed,
    Scope,
    StoreCold,
    StoreConflict,
    StoreDown,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreRefused,
)
from ..model import CHUNK, Body, Receipt
from ..ports import Sink
from ..proof.layout import DESCRIBING
from ..settings.options import Size, StoreOptions, Strict
from ..wire.exchange import Answer
from ..wire.sigv4 import Signer
from ..wire.store import Digest, HttpOptions, Upload, Wire, failure, limited, origin, read_xml
from .canary import canary_key, clear_canaries, of_the_store, prove, rehearse_names

_XML_LIMIT = 16 << 20
_PARTS = 10_000
#: So many pages of a listing are sorted in memory at most.
_HELD_PAGES = 10
#: The lock of an object counts from a moment shortly before its copy does, by another clock.
_LOCK_SLACK = timedelta(hours=1)
#: The shortest part that is not the last one, by Amazon's rule.
_PART = 5 << 20
#: Longer than this a rehearsal does not wait for two parts.
_PATIENCE = 10.0
#: Locks of a canary; a policy may ask for days. The clocks of server and client may differ by some seconds.
_SHORT_LOCKS = (timedelta(minutes=1), timedelta(days=1))
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

#: Of what describes recordings all that tells of people: phone numbers, names, and keys with a recorder's ids.
_PERSONAL = ("_audit/", "_ledger/", "_manifests/", "_verified/")
#: Classes whose objects must be restored before they can be read.
_COLD = {"DEEP_ARCHIVE", "GLACIER"}
#: What a server says of one object only, whatever its status: of its size, its name, its class.
_OF_THE_OBJECT = {
    "EntityTooLarge": "",
    "ExistingObjectIsDirectory": "a folder lies under that name",
    "ExistingObjectIsFile": "an object lies where its folder should be",
    "InvalidObjectName": "",
    "InvalidURI": "",
    "KeyTooLong": "",
    "KeyTooLongError": "",
    "MaxMessageLengthExceeded": "",
    "MetadataTooLarge": "",
    "XMinioInvalidObjectName": "",
    "XMinioObjectExistsAsDirectory": "a folder lies under that name",
    "XMinioParentIsObject": "an object lies where its folder should be",
}
#: How servers that keep keys as files answer a put below the name of an object, where they have no code for it.
_OF_THE_NAME = {400, 404, 405, 409, 422, 500}
_FULL = {"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioBucketQuotaExceeded", "XMinioStorageFull"}
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
#: Codes that pass by themselves although their status says otherwise.
_PASSING = {
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottlingException",
    "TooManyRequests",
}
_REMEDIES = {
    "AccessDenied": "allow the account s3:PutObject, s3:GetObject and s3:ListBucket here",
    "AuthorizationHeaderMalformed": "set region to the bucket's",
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidAccessKeyId": "check access_key_id",
    "InvalidStorageClass": "correct storage_class, or leave it out",
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
    #: It takes x-amz-checksum-sha256.
    checksums: bool = True


@dataclass(frozen=True, slots=True)
class _How:
    """What a put asks for beside its bytes."""

    storage_class: str | None = None
    #: Locked until then.
    until: datetime | None = None


class _Problem(Exception):  # carries an answer to the place that knows what it means
    """An answer that is no success."""

    def __init__(self, status: int, code: str, message: str, region: str | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.region = region

    @property
    def is_of_a_header(self) -> bool:
        """May another request without some header do? Not where account or bucket are wrong, nor while it is busy."""
        return self.status not in {401, 404, 408, 429, 503, 507} and (
            self.code not in _REMEDIES or self.code in {"AccessDenied", "SignatureDoesNotMatch"}
        )

    @property
    def is_refusal(self) -> bool:
        """It did not like what it was sent (whatever the status says beside), and is not just busy."""
        return 400 <= self.status < 500 and self.status not in {401, 404, 408, 429}

    def error(self, what: str) -> StoreError:
        said = ": ".join(filter(None, [self.code or f"status {self.status}", self.message]))
        text = f"{what}: {said}"
        if self.code == "InvalidObjectState":
            return StoreCold(f"{text}; it lies in a cold class: restore it first")
        if self.code in _OF_THE_OBJECT:
            return ObjectFailed("; ".join(filter(None, [text, _OF_THE_OBJECT[self.code]])))
        if self.code in _FULL:
            return StoreFull(text)
        if self.code in _DAMAGED:
            return StoreDown(f"{what}: the bytes were damaged on the way ({said})")
        if self.code in _PASSING:
            return StoreDown(text)
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
        #: Whether a put in one request keeps its lock, once that is known.
        self._keeps_lock: bool | None = None
        #: The bucket locks by itself what is put without a lock.
        self._default_lock = False
        #: See :class:`..ports.LocksApart`.
        self.worm: Callable[[], Collection[str]] = frozenset

    def location(self, key: str) -> dict[str, str]:
        return {"kind": "s3", "bucket": self.options.bucket, "key": key}

    async def close(self) -> None:
        if self._wire is not None:
            await self._wire.close()

    async def check(self) -> str:
        """Find out what the server does, then put what a recording's put looks like: class, lock, name, parts.

        A canary with a lock stays until a check a day later; in a bucket with a default retention its version stays
        for that long.
        """
        self._traits, self._keeps_lock = None, None
        if self.options.object_lock is not None:
            await self._check_lock()
        traits = await self._known()
        if self.options.storage_class in _COLD and not traits.verifies:
            raise StoreRefused(
                f"storage_class {self.options.storage_class} can't be read back, and this server verifies no SHA-256: "
                "nobody could tell what it holds; take another class"
            )
        rehearsal = _Rehearsal(self, traits)
        notes = [f"bucket {self.options.bucket}: put, get, list and compare work"]
        notes.append("verifies SHA-256" if traits.verifies else "verifies no SHA-256: reading back")
        notes.append("never overwrites" if traits.conditional else "no conditional writes: looking before each put")
        with of_the_store():
            notes += await rehearsal.run()
            await clear_canaries(self, self.options.prefix, delete=self._forget)
        notes += self._wire.way if self._wire is not None else []
        if not self.options.verify_tls:
            notes.append("TLS is NOT verified")
        return "; ".join(notes)

    async def alive(self) -> None:
        # A lock would keep the canary; whether the bucket still has one can be asked.
        if self.options.object_lock is not None:
            await self._check_lock()
        traits = self._traits or await self._known()

        async def put(key: str, body: Body) -> Receipt:
            return await self._put_whole(key, body, traits, _How(self.options.storage_class))

        reads = self.options.storage_class not in _COLD
        await prove(self, self.options.prefix, put=put, delete=self._forget, reads=reads)

    async def put(self, key: str, body: Body) -> Receipt:
        """One request where the body is short and the server is good; see :class:`..ports.Store`."""
        traits = self._traits or await self._known()
        lock = self.options.object_lock if self._locks(key) else None
        until = datetime.now(UTC) + timedelta(days=lock.days) if lock is not None else None
        # From a cold class nothing can be read, and these archiver reads again itself.
        ours = key.removeprefix(self.options.prefix).startswith(DESCRIBING)
        how = _How(None if ours else self.options.storage_class, until)
        if body.length > self.options.multipart_threshold:
            return await self._put_parts(key, body, traits, how)
        return await self._put_whole(key, body, traits, how)

    def _locks(self, key: str) -> bool:
        """Is it to be locked, where anything is? What tells of people only where their source's policy is worm."""
        told, _, rest = key.removeprefix(self.options.prefix).partition("/")
        if f"{told}/" not in _PERSONAL:
            return True
        # Below _audit/ the folders are years: no source's.
        return told != "_audit" and rest.partition("/")[0] in self.worm()

    async def stat(self, key: str) -> Receipt | None:
        # Who takes no checksum takes no question for one either; nothing is put to find that out.
        asks = self._traits is None or self._traits.checksums
        for headers in ({"x-amz-checksum-mode": "ENABLED"}, {}) if asks else ({},):
            try:
                async with self._ask("HEAD", key, headers=headers) as response:
                    return _receipt(key, response)
            except _Problem as problem:
                if problem.status == 404:
                    break
                if not headers or not problem.is_of_a_header:
                    raise problem.error(f"can't look at {key}") from None
        return None

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
        return await self._lock_fault(key, wanted)

    async def lock(self, key: str, since: datetime) -> None:
        assert self.options.object_lock is not None
        await self._retain(key, since + timedelta(days=self.options.object_lock.days))

    async def _put_whole(self, key: str, body: Body, traits: _Traits, how: _How) -> Receipt:
        if not traits.conditional and (there := await self._already(key, body, traits, how)):
            return there
        headers = self._headers(key, body.sha256, how)
        if traits.checksums:
            headers["x-amz-checksum-sha256"] = _base64(body.sha256)
        if traits.conditional:
            headers["If-None-Match"] = "*"
        if how.until is not None:
            headers["Content-MD5"] = await asyncio.to_thread(_md5, body)
        upload = Upload(body)
        damaged = False
        for attempt in range(4):
            try:
                async with self._ask("PUT", key, headers=headers, upload=upload, sha256=body.sha256):
                    break
            except _Problem as problem:
                # Amazon: another conditional write to this key was under way.
                if problem.code == "ConditionalRequestConflict" and attempt < 3:
                    await asyncio.sleep(0.05 * 2**attempt)
                elif problem.code in _DAMAGED and not damaged:
                    damaged = True
                elif problem.code in _DAMAGED:
                    raise ObjectFailed(
                        f"can't put {key}: its bytes were refused twice ({problem.code}); "
                        "they were damaged on the way, or since they were fetched"
                    ) from None
                else:
                    return await self._taken(key, body, traits, how, problem, f"can't put {key}")
        return await self._settled(key, body, how, verified=traits.verifies, whole=True)

    async def _put_parts(self, key: str, body: Body, traits: _Traits, how: _How, *, size: int | None = None) -> Receipt:
        if there := await self._already(key, body, traits, how):
            return there
        headers = self._headers(key, body.sha256, how)
        if traits.checksums:
            headers["x-amz-checksum-algorithm"] = "SHA256"
        try:
            async with self._ask("POST", key, query={"uploads": ""}, headers=headers) as response:
                upload_id = read_xml(await limited(response, _XML_LIMIT)).findtext("UploadId")
        except _Problem as problem:
            raise await self._blamed(key, problem, f"can't begin to put {key} in parts") from None
        if not upload_id:
            raise StoreDown("the server began an upload without an id")
        try:
            size = max(size or self.options.part_size, -(-body.length // _PARTS))
            parts, verified = await self._send_parts(key, body, upload_id, traits, how, size)
            await self._complete(key, upload_id, parts, traits)
        except BaseException as error:
            with contextlib.suppress(StoreError, _Problem):
                async with self._ask("DELETE", key, query={"uploadId": upload_id}):
                    pass
            if isinstance(error, _Problem):
                return await self._taken(key, body, traits, how, error, f"can't finish {key}")
            raise
        return await self._settled(key, body, how, verified=traits.verifies and verified, whole=False)

    async def _send_parts(
        self, key: str, body: Body, upload_id: str, traits: _Traits, how: _How, size: int
    ) -> tuple[Element, bool]:
        """Each part with its own hash; the parts' bytes together must have the body's.

        The canary says nothing about parts: True where the server named the hash of each.
        """
        whole = hashlib.sha256()
        verified = True
        manifest = Element("CompleteMultipartUpload", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        for number, offset in enumerate(range(0, body.length, size), start=1):
            length = min(size, body.length - offset)
            part, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
            digests = [part, whole, *([md5] if how.until is not None else [])]
            await asyncio.to_thread(_hash, body, offset, length, digests)
            sha256 = part.hexdigest()
            headers = {"x-amz-checksum-sha256": _base64(sha256)} if traits.checksums else {}
            if how.until is not None:
                headers["Content-MD5"] = base64.b64encode(md5.digest()).decode()
            try:
                async with self._ask(
                    "PUT",
                    key,
                    query={"partNumber": str(number), "uploadId": upload_id},
                    headers=headers,
                    upload=Upload(body, offset, length),
                    sha256=sha256,
                ) as response:
                    etag = response.headers.get("ETag", "")
                    verified &= response.headers.get("x-amz-checksum-sha256") == _base64(sha256)
            except _Problem as problem:
                raise await self._blamed(key, problem, f"can't put part {number} of {key}") from None
            told = SubElement(manifest, "Part")
            SubElement(told, "PartNumber").text = str(number)
            SubElement(told, "ETag").text = etag
            if traits.checksums:
                SubElement(told, "ChecksumSHA256").text = _base64(sha256)
        if whole.hexdigest() != body.sha256:
            raise ObjectFailed(f"the bytes of {key} do not have the hash they were announced with; nothing was put")
        return manifest, verified

    async def _complete(self, key: str, upload_id: str, parts: Element, traits: _Traits) -> None:
        """Make the parts one object. Raises _Problem."""
        text = tostring(parts)
        headers = {"If-None-Match": "*"} if traits.conditional else {}
        async with self._ask(
            "POST",
            key,
            query={"uploadId": upload_id},
            headers=headers,
            upload=Upload(Body.of(text)),
            sha256=hashlib.sha256(text).hexdigest(),
        ) as response:
            answer = read_xml(await limited(response, _XML_LIMIT))
        # A status of 200 may still carry an error: the server answers before it is done.
        if answer.tag == "Error":
            raise _problem(200, answer, None)

    async def _taken(self, key: str, body: Body, traits: _Traits, how: _How, problem: _Problem, what: str) -> Receipt:
        """A put was refused: success where the same bytes lie there. Raises StoreConflict for others, else the error.

        412 is the answer by the book; some servers say otherwise that a name is taken, or locked.
        """
        if problem.status == 412:
            return await self._already(key, body, traits, how) or await self._vanished(key)
        if problem.is_refusal and problem.code not in _OF_THE_OBJECT:
            try:
                if there := await self._already(key, body, traits, how):
                    return there
            except StoreConflict:
                raise
            except StoreError:
                pass
        raise await self._blamed(key, problem, what)

    async def _blamed(self, key: str, problem: _Problem, what: str) -> StoreError:
        """ObjectFailed where an object has the name of a folder of the key's, which some servers can't hold.

        Each has an answer of its own for it (rclone: 500), which concerns the whole store elsewhere.
        """
        error = problem.error(what)
        if problem.status in _OF_THE_NAME and error.scope is Scope.STORE and not isinstance(error, StoreFull):
            above = key
            with contextlib.suppress(StoreError):
                while above := above.rpartition("/")[0]:
                    if await self.stat(above) is not None:
                        return ObjectFailed(f"{error}; an object lies where the folder {above} should be")
        return error

    async def _settled(self, key: str, body: Body, how: _How, *, verified: bool, whole: bool) -> Receipt:
        """What was just put, believed only where the server verified it."""
        if not verified and await self._digest(key) != (body.length, body.sha256):
            await self._try_delete(key)
            raise StoreDown(f"{key} came back with other bytes than were put")
        # Some servers keep the lock of a put in one request, and drop that of an upload in parts.
        if how.until is not None and not (whole and self._keeps_lock):
            kept = await self._locked(key, how.until)
            if whole:
                self._keeps_lock = kept
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    async def _already(self, key: str, body: Body, traits: _Traits, how: _How) -> Receipt | None:
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

    async def _forget(self, key: str) -> bool:
        """Delete a canary with its version, so that a bucket with versions keeps nothing of it; False: may not be."""
        try:
            async with self._ask("HEAD", key) as response:
                version = response.headers.get("x-amz-version-id", "null")
            if version != "null":
                async with self._ask("DELETE", key, query={"versionId": version}):
                    return True
        except _Problem as problem:
            if problem.status == 404:
                return True
            # A mark of deletion would hide what a lock keeps for a while.
            if problem.status < 500 and self.options.object_lock is not None:
                return False
        return await self._try_delete(key)

    async def _known(self) -> _Traits:
        """Once per process: what it takes, and whether it refuses a second write and a wrong hash."""
        async with self._probing:
            if self._traits is None:
                keys = canary_key(self.options.prefix), canary_key(self.options.prefix)
                try:
                    self._traits = await self._probe(*keys)
                finally:
                    for key in keys:
                        with contextlib.suppress(StoreError):
                            await self._forget(key)
            return self._traits

    async def _probe(self, key: str, other: str) -> _Traits:
        """The true canary first: whatever comes of the deliberately wrong ones is then their own."""
        first, again = Body.of(b"archiver canary, first"), Body.of(b"archiver canary, again")
        for checksums, conditional in ((True, True), (False, True), (True, False), (False, False)):
            trial = _Traits(verifies=False, conditional=conditional, checksums=checksums)
            problem = await self._try_put(key, first, first, trial)
            if problem is None or not problem.is_of_a_header:
                break
        if problem is not None:
            raise problem.error("can't put a canary")
        if conditional:
            problem = await self._try_put(key, again, again, trial)
            conditional = problem is not None and problem.is_refusal
        verifies = False
        if checksums:
            told, sent = Body.of(b"archiver canary, told"), Body.of(b"archiver canary, sent")
            for _ in range(2):
                try:
                    problem = await self._try_put(other, sent, told, trial)
                except StoreDown:
                    break
                # An answer of 500 may be a refusal, or an accident: not twice.
                verifies = problem is not None
                if problem is None or problem.is_refusal:
                    break
        return _Traits(verifies=verifies, conditional=conditional, checksums=checksums)

    async def _try_put(self, key: str, sent: Body, told: Body, trial: _Traits) -> _Problem | None:
        headers = {"If-None-Match": "*"} if trial.conditional else {}
        if trial.checksums:
            headers["x-amz-checksum-sha256"] = _base64(told.sha256)
        try:
            async with self._ask("PUT", key, headers=headers, upload=Upload(sent), sha256=told.sha256):
                return None
        except _Problem as problem:
            return problem

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
                        await self._forget(key)
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
        self._default_lock = answer.find("Rule/DefaultRetention") is not None

    async def _locked(self, key: str, until: datetime, *, any_end: bool = False) -> bool:
        """See to it that an object is locked until then (``any_end``: locked at all).

        True where it was already. Raises StoreError where it can't be.
        """
        wanted = datetime.min.replace(tzinfo=UTC) if any_end else until
        if (fault := await self._lock_fault(key, wanted)) is None:
            return True
        try:
            # A server that knows no locks may take the request for an object of that name.
            await self._check_lock()
            await self._retain(key, until)
            again = await self._lock_fault(key, wanted)
        except StoreRefused as error:
            raise StoreRefused(f"{key} is {fault}, and that can't be mended: {error}") from None
        if again is not None:
            raise StoreRefused(f"{key} is {again}, though it was put and set with the lock that object_lock asks for")
        return False

    async def _lock_fault(self, key: str, wanted: datetime) -> str | None:
        """What is wrong with an object's lock, or None."""
        lock = self.options.object_lock
        assert lock is not None
        mode, until = await self._lock_of(key)
        if mode is None or until is None:
            return "not locked against deletion"
        if mode not in {lock.mode, "COMPLIANCE"}:
            return f"locked as {one_line(mode, 20)} in place of {lock.mode}"
        if wanted - until > _LOCK_SLACK:
            return f"locked until {until:%Y-%m-%d} in place of {wanted:%Y-%m-%d}"
        return None

    async def _retain(self, key: str, until: datetime) -> None:
        lock = self.options.object_lock
        assert lock is not None
        retention = Element("Retention", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        SubElement(retention, "Mode").text = lock.mode
        SubElement(retention, "RetainUntilDate").text = f"{until:%Y-%m-%dT%H:%M:%SZ}"
        body = Body.of(tostring(retention))
        headers = {"Content-MD5": _md5(body)}
        if self._traits is None or self._traits.checksums:
            headers["x-amz-checksum-sha256"] = _base64(body.sha256)
        try:
            async with self._ask(
                "PUT", key, query={"retention": ""}, headers=headers, upload=Upload(body), sha256=body.sha256
            ):
                pass
        except _Problem as problem:
            raise problem.error(f"can't lock {key}") from None

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

    def _headers(self, key: str, sha256: str, how: _How) -> dict[str, str]:
        headers = {
            "Content-Type": _CONTENT_TYPES.get(PurePosixPath(key).suffix, "application/octet-stream"),
            "x-amz-meta-sha256": sha256,
        }
        if how.storage_class is not None:
            headers["x-amz-storage-class"] = how.storage_class
        if how.until is not None:
            assert self.options.object_lock is not None
            headers["x-amz-object-lock-mode"] = self.options.object_lock.mode
            headers["x-amz-object-lock-retain-until-date"] = f"{how.until:%Y-%m-%dT%H:%M:%SZ}"
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
            raise StoreRefused(f"no credentials: {reason_of(error)}") from None
        return frozen.access_key, frozen.secret_key, frozen.token


class _Rehearsal:
    """The part of S3Store.check that puts what a recording's put looks like."""

    def __init__(self, store: S3Store, traits: _Traits) -> None:
        self._store = store
        self._options = store.options
        self._traits = traits
        self._deletes = True
        #: It answered that it lies in a cold class.
        self._cold = store.options.storage_class in _COLD
        self._lock_for: timedelta | None = None

    async def run(self) -> list[str]:
        """What there is to say. Raises StoreError."""
        notes: list[str] = []
        options = self._options
        await self._as_configured()
        if note := await rehearse_names(options.prefix, self._named):
            notes.append(note)
        if options.object_lock is not None:
            notes.append(f"object lock on, {options.object_lock.mode} {options.object_lock.days} days")
            worm = sorted(self._store.worm())
            notes.append(
                f"manifests and ledgers are locked of {', '.join(worm)}" if worm else "manifests are not locked"
            )
            if self._store._default_lock:
                notes.append(
                    "WARNING: the bucket's default retention locks whatever is put, manifests too: nobody can erase a "
                    "person's data before its end; take the default retention off the bucket"
                )
            if self._store._keeps_lock is False:
                notes.append("it drops the lock of a put: each is locked by a second request")
            else:
                # The first true put is looked at as well: its lock is another, and longer.
                self._store._keeps_lock = None
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
        await self._whole(key, _How())

    async def _whole(self, key: str, how: _How) -> None:
        body = Body.of(b"archiver canary " + secrets.token_bytes(32))
        await self._around(key, body, how, lambda: self._store._put_whole(key, body, self._traits, how))

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
                    key, body, how, lambda: self._store._put_parts(key, body, self._traits, how, size=_PART)
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

    async def _around(self, key: str, body: Body, how: _How, put: Callable[[], Awaitable[Receipt]]) -> None:
        store = self._store
        try:
            await put()
            if not (self._cold and how.storage_class):
                await self._compare(key, body)
            if [receipt.key async for receipt in store.list(key)] != [key]:
                raise StoreRefused("the listing does not show an object that was just put; is this an S3 bucket?")
        finally:
            # What is locked stays visible, so that a later check can delete it.
            if how.until is None:
                with contextlib.suppress(StoreDown):
                    self._deletes = await store._forget(key)

    async def _compare(self, key: str, body: Body) -> None:
        digest = Digest()
        try:
            async with self._store._ask("GET", key) as response:
                await self._store._served().receive(response, digest)
        except _Problem as problem:
            if problem.code != "InvalidObjectState":
                raise problem.error(f"can't get {key}") from None
            self._cold = True
        else:
            if (digest.length, digest.sha256) != (body.length, body.sha256):
                raise StoreDown("the canary came back with other bytes")

    def _how(self) -> _How:
        until = None if self._lock_for is None else datetime.now(UTC) + self._lock_for
        return _How(self._options.storage_class, until)


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
    return _Problem(status, one_line(code, 60), one_line(message, 200), region)
