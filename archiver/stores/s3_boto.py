"""boto3 as the translator: it writes requests in S3's language and reads the answers. It sends nothing itself.

boto3 blocks, so it works in threads. What it would send is handed back to the event loop, which signs it and sends it
as it sends a recording: to the same address, with the same proxy, certificates and limits, once. So boto3 needs no
credentials and no server's address, and has none; it can repeat nothing and follow no redirect.

https://boto3.amazonaws.com/v1/documentation/api/latest/guide/events.html
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from functools import cache
from typing import Any, NamedTuple

from ..common.words import one_line
from ..errors import ObjectFailed, StoreDown
from .s3_problems import Problem

#: Where boto3 believes the bucket to be. Names that end in .invalid never lead anywhere (RFC 2606).
_ENDPOINT = "https://boto3.invalid"
_BUCKET = "bucket"
#: So many calls of one store at a time; others wait.
_THREADS = 4
#: So often a thread that waits for an answer looks whether the event loop still runs, in seconds.
_LOOK = 5.0
_MAKING = threading.Lock()
#: What boto3 adds and we don't send: a name and a length of its own, counters for Amazon, and checksums that others
#: don't know.
_DROPPED = {"user-agent", "content-length", "amz-sdk-invocation-id", "amz-sdk-request", "x-amz-sdk-checksum-algorithm"}
#: boto3's checksum, where S3 demands one. We tell Content-MD5 in its place, which every server knows.
_CHECKSUM = "x-amz-checksum-crc32"
#: Without this an answer is none: boto3 would read a login page as a listing of nothing.
_NEEDED = {"ListObjectsV2": b"ListBucketResult", "CompleteMultipartUpload": b"<"}


class Request(NamedTuple):
    """What boto3 would send. ``target``: path and query below the bucket's own address."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Answered(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


#: Sends a request. Raises StoreError, and Problem where the answer is no success.
Send = Callable[[Request], Awaitable[Answered]]


class Boto:
    """boto3 in threads, for one store."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Let the threads end."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """boto3's answer to a method of its S3 client. Raises StoreError, and Problem for what is no success.

        Cancelled, it ends the request that is under way.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="boto3")
        call = _Call(asyncio.get_running_loop(), self._send)
        context = copy_context()
        context.run(_CALL.set, call)
        try:
            return await asyncio.wrap_future(self._threads.submit(context.run, _translate, operation, parameters))
        finally:
            call.end()


class _Call:
    """One call: between the thread in which boto3 works and the event loop, where its request is sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._send = send
        self._task: asyncio.Task[Any] | None = None
        self._ended = False
        #: Why there is no answer.
        self.error: BaseException | None = None

    def end(self) -> None:
        """In the event loop: nobody waits for it any longer."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()

    def answer(self, request: Request) -> Answered:
        """In the thread: the answer to a request. Raises what its sending did."""
        future: Future[Answered] = asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)
        while not wait([future], _LOOK).done:
            if self._loop.is_closed():
                raise StoreDown("archiver ends")
        return future.result()

    async def _answer(self, request: Request) -> Answered:
        if self._ended:
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        return await self._send(request)


_CALL: ContextVar[_Call] = ContextVar("call")


def _translate(operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """In a thread of a call's: let boto3 ask and read. Blocking."""
    from botocore.exceptions import ClientError, ParamValidationError

    call = _CALL.get()
    try:
        answer: Mapping[str, Any] = getattr(_client(), operation)(Bucket=_BUCKET, **parameters)
    except Exception as error:  # noqa: BLE001  # its parser may raise anything
        if call.error is not None:
            raise call.error from None
        if isinstance(error, ClientError):
            # A status of 200 may still carry an error: the server answers before it is done. boto3 makes a 500 of it.
            told = error.response.get("Error", {})
            code, status = str(told.get("Code", "")), error.response["ResponseMetadata"]["HTTPStatusCode"]
            raise Problem(status, "" if code == str(status) else code, str(told.get("Message", ""))) from None
        if isinstance(error, ParamValidationError):
            raise ObjectFailed(f"boto3 can't ask for that: {one_line(str(error), 200)}") from None
        raise StoreDown(f"the answer can't be read ({type(error).__name__})") from None
    return answer


def _carry(request: Any, event_name: str, **_: Any) -> Any:
    """What boto3 calls before it would send: an answer from here takes the place of its own client's."""
    from botocore.awsrequest import AWSResponse, HeadersDict

    call = _CALL.get()
    try:
        answered = call.answer(_readable(request))
        _inspect(event_name.rpartition(".")[2], answered.body)
    except BaseException as error:
        call.error = error
        raise
    return AWSResponse(request.url, answered.status, HeadersDict(answered.headers), _Raw(answered.body))


def _readable(request: Any) -> Request:
    base, url = f"{_ENDPOINT}/{_BUCKET}", str(request.url)
    if not url.startswith(base):
        raise StoreDown(f"boto3 would ask {one_line(url, 60)}")
    body = request.body or b""
    body = body if isinstance(body, bytes) else bytes(body.read())
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        if name.lower() == _CHECKSUM:
            md5 = hashlib.md5(body, usedforsecurity=False).digest()
            headers["Content-MD5"] = base64.b64encode(md5).decode()
        elif name.lower() not in _DROPPED:
            headers[name] = value.decode() if isinstance(value, bytes) else str(value)
    target = url.removeprefix(base)
    return Request(request.method, target if target.startswith("/") else f"/{target}", headers, body)


def _inspect(operation: str, body: bytes) -> None:
    """Raises StoreDown for what boto3 would misread, or must not read: no entity is ever expanded."""
    if b"<!DOCTYPE" in body:
        raise StoreDown("the answer is no usable XML: it has a document type")
    needed = _NEEDED.get(operation, b"")
    if needed not in body and b"<Error" not in body:
        raise StoreDown(f"what came is no answer to {operation}")


class _Raw(io.BytesIO):
    """A body as boto3 reads it from its own client."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


def _client() -> Any:
    """The process's boto3 client; thread-safe. Blocking: it takes a third of a second to be imported and made."""
    with _MAKING:
        return _made()


@cache
def _made() -> Any:
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    # Nothing of the account's own settings for boto3 changes what is asked.
    nothing = dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    session = botocore.session.Session(session_vars={**nothing, "profile": (None, None, None, None)})
    # Moments are not read where nobody wants them; servers write them in many ways.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    client = boto3.session.Session(botocore_session=session).client(
        "s3",
        region_name="us-east-1",
        endpoint_url=_ENDPOINT,
        # Without some it looks for credentials; these are never sent.
        aws_access_key_id="none",
        aws_secret_access_key="none",  # noqa: S106
        config=Config(
            signature_version=UNSIGNED,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path", "use_accelerate_endpoint": False},
            use_dualstack_endpoint=False,
            use_fips_endpoint=False,
            defaults_mode="legacy",
            proxies={},
        ),
    )
    client.meta.events.register("before-send.s3", _carry)
    return client
