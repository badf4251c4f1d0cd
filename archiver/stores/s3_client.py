"""One bucket at its server: the options, the address, the credentials, and signed requests.

Requests with the bytes of objects are written here (:meth:`S3Client.ask`), in all others boto3 does the talking
(:meth:`S3Client.call`). Both are signed and sent here.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from ..common.words import reason_of
from ..errors import StoreDown, StoreRefused
from ..ports import Sink
from ..settings.options import Size, Strict
from ..wire.exchange import Answer
from ..wire.sigv4 import EMPTY, Signer
from ..wire.store import HttpOptions, Upload, Wire, limited, origin
from .s3_boto import Answered, Boto, Request
from .s3_problems import read_problem

#: The longest answer that boto3 gets to read.
_LONGEST = 16 << 20
#: boto3 renews what expires; asked this often, it does so well before the end. In seconds.
_CREDENTIALS_LAST = 60.0


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


class S3Client:
    """Raises errors.StoreError, and Problem for an answer that is no success."""

    def __init__(self, name: str, options: S3Options) -> None:
        self._name = name
        self._options = options
        self._region = options.region
        self._wire: Wire | None = None
        #: The bucket's path at its server.
        self._bucket_path = ""
        self._credentials: Any = None
        self._signer: Signer | None = None
        self._signer_until = 0.0
        self._signing = asyncio.Lock()
        self._boto = Boto(self._carry)

    @property
    def way(self) -> list[str]:
        """What there is to say of a proxy, for people."""
        return self._wire.way if self._wire is not None else []

    async def close(self) -> None:
        self._boto.close()
        if self._wire is not None:
            await self._wire.close()

    def ask(
        self,
        method: str,
        key: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        upload: Upload | None = None,
        sha256: str = EMPTY,
    ) -> AbstractAsyncContextManager[Answer]:
        """One request for an object; ``sha256``: of what is uploaded."""
        target = f"/{quote(key, safe='/~')}"
        if query is not None:
            target += "?" + urlencode(query, quote_via=quote, safe="~")
        return self._send(method, target, headers or {}, upload, sha256)

    async def call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """What a method of boto3's S3 client returns; the bucket need not be named."""
        return await self._boto.call(operation, **parameters)

    async def receive(self, answer: Answer, into: Sink) -> None:
        """The body of an answer into a sink. Raises StoreDown where it was cut."""
        await self._served().receive(answer, into)

    async def _carry(self, request: Request) -> Answered:
        """A request of boto3's."""
        sha256 = hashlib.sha256(request.body).hexdigest()
        async with self._send(request.method, request.target, request.headers, request.body or None, sha256) as answer:
            return Answered(answer.status, dict(answer.headers), await limited(answer, _LONGEST))

    @asynccontextmanager
    async def _send(
        self, method: str, target: str, headers: Mapping[str, str], body: Upload | bytes | None, sha256: str
    ) -> AsyncIterator[Answer]:
        """One signed request. Raises Problem for any status but 2xx, and StoreError."""
        signer = self._signer if time.monotonic() < self._signer_until else None
        signer = signer or await self._renewed_signer()
        wire = self._served()
        target = f"{self._bucket_path}{target}"
        signed = signer.sign(method, wire.authority, target, headers, sha256)
        async with wire.request(method, target, signed, body) as answer:
            if answer.status >= 300:
                raise await read_problem(answer, (signer.access_key, signer.token))
            yield answer

    def _served(self) -> Wire:
        """The server; which one may be known only with the region of the credentials' profile."""
        if self._wire is None:
            scheme, _, rest = self.bucket_url().partition("://")
            authority, slash, path = rest.partition("/")
            self._bucket_path = slash + path
            self._wire = Wire(self._name, self._options, f"{scheme}://{authority}/")
        return self._wire

    def bucket_url(self) -> str:
        """The bucket's address, without a slash at its end."""
        region, bucket = self._region or "us-east-1", self._options.bucket
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        endpoint = (self._options.endpoint_url or f"https://s3.{region}.{domain}").rstrip("/")
        # A dot in a bucket's name does not fit Amazon's wildcard certificate.
        path_style = self._options.endpoint_url is not None or "." in bucket
        if self._options.addressing == "path" or (self._options.addressing == "auto" and path_style):
            return f"{endpoint}/{bucket}"
        scheme, _, rest = endpoint.partition("://")
        return f"{scheme}://{bucket}.{rest}"

    async def _renewed_signer(self) -> Signer:
        async with self._signing:
            if self._signer is None or time.monotonic() >= self._signer_until:
                options = self._options
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
                session = boto3.Session(profile_name=self._options.profile)
                self._region = self._region or session.region_name
                self._credentials = session.get_credentials()
            if self._credentials is None:
                return None, None, None
            frozen = self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise StoreRefused(f"no credentials: {reason_of(error)}") from None
        return frozen.access_key, frozen.secret_key, frozen.token
