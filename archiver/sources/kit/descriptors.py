"""Media that are described by where they lie ("mediaDescriptor": Amazon S3, WebDAV) and how they are encrypted.

What an answer describes can be fetched straight from that storage; our own copies can be described so to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SecretStr

from ...audio import inspect
from ...errors import BadData, Refused, SourceError
from ...model import Body
from ...ports import Sink
from ...settings.options import SourceOptions, Strict
from ...wire.recorder import Client, basic


class MediaOptions(Strict):
    #: Fetch straight from the storage that an answer names.
    direct: bool = False
    #: The WebDAV credentials go to this origin only; other WebDAV servers are asked without.
    webdav_url: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")
    webdav_username: str = ""
    webdav_password: SecretStr = SecretStr("")
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    #: Without: boto3's own chain (profile, instance role …).
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    #: PEM, or the path of a PEM file: the private keys (old ones too) that open encrypted media on ``get``.
    decrypt_key: SecretStr | None = None
    decrypt_password: SecretStr | None = None
    decrypt_layout: Literal["auto", "body", "detached", "key"] = "auto"
    decrypt_iv: Literal["body", "zero"] = "body"


def opened(options: MediaOptions, told: Mapping[str, Any], data: bytes) -> bytes:
    """The clear bytes of a medium of which so much is told; as they are where they are clear, or there is no key.

    Raises cms.Undecipherable. Blocking.
    """
    if not is_encrypted(told) or options.decrypt_key is None:
        return data
    from ...audio.cms import decrypt, key_pem

    try:
        # A server that decrypts for playback hands out clear audio, and tells of the envelope all the same.
        if inspect(Body.of(data), opaque=True).ext != "bin":
            return data
    except SourceError:
        pass
    secret = options.decrypt_password
    return decrypt(
        data,
        told.get("pkcs7"),
        key_pem(options.decrypt_key.get_secret_value()),
        password=secret.get_secret_value().encode() if secret else None,
        layout=options.decrypt_layout,
        iv=options.decrypt_iv,
    )


def is_encrypted(file: Mapping[str, Any]) -> bool:
    return bool(file.get("pkcs7") or file.get("certAlias"))


def aws_s3(bucket: str, path: str) -> dict[str, Any]:
    return {"storage": "awsS3", "path": path, "data": {"bucket": bucket}}


def web_dav(url: str) -> dict[str, Any]:
    return {"storage": "webDAV", "path": url}


def describe(location: Mapping[str, str]) -> dict[str, Any] | None:
    """The descriptor of one of our copies (see Store.location); None for a store that nobody else can read."""
    match location.get("kind"):
        case "s3":
            return aws_s3(location["bucket"], location["key"])
        case "webdav":
            return web_dav(location["url"])
    return None


def identity(descriptor: Mapping[str, Any]) -> tuple[str, str, str]:
    """Two descriptors of one identity are one resource: S3 by bucket and path, WebDAV by path."""
    data, kind = descriptor.get("data"), str(descriptor.get("storage")).lower()
    bucket = data.get("bucket") if isinstance(data, Mapping) else None
    return kind, str(bucket or "") if kind == "awss3" else "", str(descriptor.get("path"))


class Storage:
    """Fetches what descriptors name. ``client`` reaches any host, and has no credentials for these."""

    def __init__(self, options: MediaOptions, source: SourceOptions, client: Client) -> None:
        self._options = options
        self._source = source
        self._client = client
        self._s3: Any = None

    async def fetch(self, descriptor: Mapping[str, Any], into: Sink) -> None:
        """Raises as Client.download does; Refused without S3 credentials, BadData for a storage nobody knows."""
        kind, bucket, path = identity(descriptor)
        url = self._options.webdav_url
        if kind == "awss3":
            if not bucket:
                raise BadData("the media descriptor names no bucket")
            await self._client.download(await asyncio.to_thread(self._signed, bucket, path), into)
        elif kind != "webdav":
            raise BadData("the media descriptor names a storage that is neither awsS3 nor webDAV")
        elif url:
            # A client of its own: these credentials go to this origin only, along no redirect either.
            client = Client.of(self._source.model_copy(update={"base_url": url}), self._client.gate)
            client.authorise(basic(self._options.webdav_username, self._options.webdav_password.get_secret_value()))
            try:
                await client.download(path, into)
            finally:
                await client.close()
        else:
            await self._client.download(path, into)

    def _signed(self, bucket: str, key: str) -> str:
        """A URL that is good for an hour. Blocking (boto3 reads its data files)."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        o = self._options
        style = "path" if o.s3_endpoint_url else "auto"
        try:
            if self._s3 is None:
                self._s3 = boto3.session.Session().client(
                    "s3",
                    endpoint_url=o.s3_endpoint_url,
                    region_name=o.s3_region,
                    aws_access_key_id=o.s3_access_key_id.get_secret_value() if o.s3_access_key_id else None,
                    aws_secret_access_key=o.s3_secret_access_key.get_secret_value() if o.s3_secret_access_key else None,
                    config=Config(signature_version="s3v4", s3={"addressing_style": style}),
                )
            return str(self._s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}))
        except (BotoCoreError, ValueError) as error:
            raise Refused(f"S3 can't be asked ({type(error).__name__}); see s3_access_key_id and s3_region") from None
