"""What an S3 server's refusal means: for one object or for the whole store, and what to do about it.

https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from collections.abc import Iterable

from ..common.words import one_line
from ..errors import ObjectFailed, StoreCold, StoreDown, StoreError, StoreFull, StoreRefused
from ..wire.exchange import Answer
from ..wire.store import failure, limited, read_xml

#: The longest error that is read.
_LONGEST = 1 << 16
#: What a server says of one object only, whatever its status: of its size, its name, its class.
OF_THE_OBJECT = {
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
OF_THE_NAME = {400, 404, 405, 409, 422, 500}
DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_FULL = {"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioBucketQuotaExceeded", "XMinioStorageFull"}
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


class Problem(Exception):  # carries an answer to the place that knows what it means
    """An answer that is no success."""

    def __init__(self, status: int, code: str, message: str, region: str | None = None) -> None:
        """``code`` and ``message``: as the server wrote them."""
        self.status = status
        self.code = one_line(code, 60)
        self.message = one_line(message, 200)
        self.region = region
        super().__init__(self.code)

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

    @property
    def is_of_the_condition(self) -> bool:
        """The name is taken. The end of an upload in parts is told so with a status of 200 as well."""
        return self.status == 412 or self.code == "PreconditionFailed"

    def error(self, what: str) -> StoreError:
        """What follows from it, to be raised; ``what``: what could not be done."""
        said = ": ".join(filter(None, [self.code or f"status {self.status}", self.message]))
        text = f"{what}: {said}"
        if self.code == "InvalidObjectState":
            return StoreCold(f"{text}; it lies in a cold class: restore it first")
        if self.code in OF_THE_OBJECT:
            return ObjectFailed("; ".join(filter(None, [text, OF_THE_OBJECT[self.code]])))
        if self.code in _FULL:
            return StoreFull(text)
        if self.code in DAMAGED:
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


async def read_problem(answer: Answer, secrets: Iterable[str | None]) -> Problem:
    """The problem that an answer tells of, without the secrets that the server may repeat. Raises StoreDown."""
    region = answer.headers.get("x-amz-bucket-region") if answer.status in {301, 400} else None
    text = await limited(answer, _LONGEST)
    try:
        told = read_xml(text)
    except StoreDown:
        return Problem(answer.status, "", "", region)
    message = told.findtext("Message") or ""
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    return Problem(answer.status, told.findtext("Code") or "", message, region)
