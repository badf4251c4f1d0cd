"""The HTTP client against real servers on the loopback: what is refused, what is cut off, where secrets go."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import html
import json
import random
import re
import socket
import ssl
import subprocess
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from archiver.errors import BadData, Busy, Gone, NotReady, Overflow, Refused, Scope, TooSlow, TryAgain
from archiver.settings.options import SourceOptions
from archiver.wire.gate import Gate
from archiver.wire.recorder import Client
from tests.certificates import a_house, presenting
from tests.servers import free_ports

#: A vendor's example key, with all that can go wrong on the way into a header.
KEY = "u@pf#41[gYHJm<]9N[a0iWDQQ7`e9k"


@dataclass(frozen=True)
class Request:
    """A request as its bytes came."""

    method: str
    target: str
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        found = re.search(rf"(?im)^{re.escape(name)}: *(.*?)\r$", self.head.decode("latin-1"))
        return found[1] if found else None


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[bytes | None]]


class Server:
    """Answers with the bytes it is given; a handler that returns None has answered itself and hangs up."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: bytes | Handler = b""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, target, _ = head.split(b" ", 2)
                request = Request(method.decode(), target.decode("latin-1"), head, body)
                self.requests.append(request)
                answer = self.answer if isinstance(self.answer, bytes) else await self.answer(request, writer)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()


def answer(status: str = "200 OK", body: bytes = b"", **headers: str) -> bytes:
    told = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in told.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Kept:
    """A sink that keeps what it was given, or only counts it."""

    def __init__(self, *, count_only: bool = False) -> None:
        self.data = bytearray()
        self.length = 0
        self.longest = 0
        self.content_type: str | None = None
        self._count_only = count_only

    async def write(self, chunk: bytes) -> None:
        self.length += len(chunk)
        self.longest = max(self.longest, len(chunk))
        if not self._count_only:
            self.data += chunk

    def told(self, *, content_type: str | None = None) -> None:
        self.content_type = content_type

    async def restart(self) -> None:
        self.data.clear()


@asynccontextmanager
async def speaking(server: Server | str, **how) -> AsyncIterator[Client]:
    how.setdefault("timeout", timedelta(seconds=5))
    client = Client(server if isinstance(server, str) else server.url, **how)
    try:
        yield client
    finally:
        await client.close()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


@pytest_asyncio.fixture
async def elsewhere() -> AsyncIterator[Server]:
    """The same host, another port: another origin."""
    async with serving() as server:
        yield server


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with speaking(server) as client:
        client.authorise({"Authorization": "Bearer geheim"})
        yield client


async def get(client: Client, path: str = "/", **how) -> bytes:
    kept = Kept()
    await client.download(path, kept, **how)
    return bytes(kept.data)


class TestStatus:
    async def test_each_status_says_what_can_be_done_about_it(self, server, client, subtests):
        wanted = {
            400: BadData, 401: Refused, 402: BadData, 403: Refused, 404: NotReady, 405: BadData, 406: BadData,
            408: TryAgain, 409: BadData, 410: Gone, 411: BadData, 413: BadData, 414: BadData, 416: BadData,
            418: BadData, 422: BadData, 425: TryAgain, 429: Busy, 431: BadData, 451: BadData, 500: TryAgain,
            501: TryAgain, 502: TryAgain, 503: Busy, 504: TooSlow, 507: TryAgain, 599: TryAgain,
            201: BadData, 202: BadData, 204: BadData, 206: BadData, 300: BadData, 304: BadData,
        }  # fmt: skip
        for status, error in wanted.items():
            with subtests.test(status):
                server.answer = answer(f"{status} Odd", b"" if status in {204, 304} else b"because")
                with pytest.raises(error) as raised:
                    await get(client)
                assert type(raised.value) is error
                assert str(status) in str(raised.value)
                assert status in {204, 304} or "because" in str(raised.value)

    async def test_a_status_that_is_accepted_is_an_answer(self, server, client):
        server.answer = answer("204 No Content", Content_Length="")
        async with client.request("DELETE", "/x", accept=frozenset({204, 404})) as response:
            assert response.status == 204

    async def test_a_long_page_in_place_of_an_answer_is_quoted_in_short(self, server, client):
        server.answer = answer("500 Oops", b"<html>\n<b>\x1b[31m\x00 line\r\n" + b"x" * 100_000)
        with pytest.raises(TryAgain) as raised:
            await get(client)
        assert len(str(raised.value)) < 220
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("120", 120), ("0", 0), ("-5", None), (" 7 ", 7), ("999999999", 86400), ("9" * 400, 86400), ("soon", None),
            ("1.5", None), ("²", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 86400),
            ("Fri, 99 Dec 2024 23:59:59 GMT", None), ("", None),
        ],
    )  # fmt: skip
    async def test_retry_after_is_read_and_bounded(self, server, client, value, seconds):
        server.answer = answer("429 Slow down", Retry_After=value)
        with pytest.raises(TryAgain) as raised:
            await get(client)
        expected = None if seconds is None else timedelta(seconds=seconds)
        assert raised.value.retry_after == expected

    @pytest.mark.parametrize("status", ["429 Slow down", "503 Busy"])
    async def test_retry_after_may_be_a_date(self, server, client, status):
        then = datetime.now(UTC) + timedelta(seconds=90)
        server.answer = answer(status, Retry_After=format_datetime(then, usegmt=True))
        with pytest.raises(TryAgain) as raised:
            await get(client)
        assert timedelta(seconds=80) < raised.value.retry_after <= timedelta(seconds=90)


class TestProgress:
    async def test_a_slow_drip_that_goes_on_is_no_stall(self, server):
        async def drip(request, writer):
            writer.write(answer(Content_Length="10"))
            for _ in range(10):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)

        server.answer = drip
        async with speaking(server, timeout=timedelta(seconds=0.8)) as client:
            assert await get(client) == b"x" * 10

    @pytest.mark.parametrize("sent", [b"", answer(Content_Length="8") + b"xxx"], ids=["before the answer", "midway"])
    async def test_no_progress_is_too_slow(self, server, sent):
        async def stall(request, writer):
            writer.write(sent)
            await asyncio.sleep(5)

        server.answer = stall
        async with speaking(server, timeout=timedelta(seconds=0.2)) as client, asyncio.timeout(3):
            with pytest.raises(TooSlow, match=r"sent nothing for 0\.2 s"):
                await get(client)

    async def test_a_server_that_stalls_in_its_excuse_is_still_understood(self, server):
        async def stall(request, writer):
            writer.write(answer("503 Busy", Content_Length="100"))
            await asyncio.sleep(5)

        server.answer = stall
        async with speaking(server, timeout=timedelta(seconds=0.2)) as client, asyncio.timeout(3):
            with pytest.raises(TryAgain, match="503 Busy"):
                await get(client)

    async def test_an_excuse_that_drips_for_ever_is_not_waited_for(self, server):
        async def drip(request, writer):
            writer.write(answer("503 Busy", Content_Length="100000"))
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)

        server.answer = drip
        async with speaking(server, timeout=timedelta(seconds=0.3)) as client, asyncio.timeout(3):
            with pytest.raises(TryAgain, match="503 Busy"):
                await get(client)

    async def test_nobody_there_is_to_be_tried_again(self):
        async with speaking("http://127.0.0.1:1") as client:
            with pytest.raises(TryAgain, match=r"can't connect to 127\.0\.0\.1:1"):
                await get(client)

    async def test_a_name_that_nobody_knows_is_to_be_tried_again(self):
        async with speaking("http://recorder.invalid") as client:
            with pytest.raises(TryAgain, match=r"can't connect to recorder\.invalid:80"):
                await get(client)

    async def test_a_connection_that_is_reset_is_to_be_tried_again(self, server, client):
        async def reset(request, writer):
            writer.transport.abort()

        server.answer = reset
        with pytest.raises(TryAgain, match="broke"):
            await get(client)

    async def test_an_answer_that_is_no_http_is_to_be_tried_again(self, server, client):
        server.answer = b"SSH-2.0-OpenSSH_9.6\r\n\r\n"
        with pytest.raises(TryAgain):
            await get(client)


class TestNoValidHttp:
    """It concerns that request, is no fault of the network, and is called what it is."""

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", r"it does not begin like one; port \d+ speaks no plain HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", "it tells two lengths"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhi!", "it tells no usable length"),
            (b"HTTP/1.1 OK\r\n\r\n", "status"),
            (b"HTTP/1.1 200 OK\r\nX-Key: geheim\0\r\n\r\n", "header"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n", "chunk size"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer encoding"),
            (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, "its head is longer than 65536 bytes"),
        ],
        ids=["no HTTP", "two lengths", "no length", "no status", "a NUL", "no chunk", "packed chunks", "a long head"],
    )
    async def test_it_is_told_so(self, server, client, said, why):
        server.answer = said
        with pytest.raises(TryAgain, match=f"its answer is no valid HTTP: .*{why}") as raised:
            await get(client)
        assert type(raised.value) is TryAgain
        assert raised.value.scope is Scope.ITEM
        assert client.gate.broken in {0, 1}
        assert "geheim" not in str(raised.value)
        assert str(raised.value).isprintable()
        server.answer = answer(body=b"there")
        assert await get(client) == b"there"

    @pytest.mark.parametrize(
        "chunk", [b"zz\r\nhi\r\n", b"2\r\nhim\r\n", b"2;" + b"x" * 100_000], ids=["size", "end", "head"]
    )
    async def test_a_body_that_is_none_midway_is_told_so_too(self, server, client, chunk):
        async def midway(request, writer):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(chunk)
            await asyncio.sleep(5)

        server.answer = midway
        with pytest.raises(TryAgain, match="its answer is no valid HTTP: "):
            await get(client)


class TestBody:
    async def test_it_comes_as_it_was_sent_with_its_type(self, server, client):
        data = random.Random(1).randbytes(700_000)
        server.answer = answer(body=data, Content_Type="audio/wav")
        kept = Kept()
        headers = await client.download("/x", kept)
        assert hashlib.sha256(kept.data).digest() == hashlib.sha256(data).digest()
        assert kept.content_type == headers["content-type"] == "audio/wav"
        assert server.requests[0].header("Accept-Encoding") == "identity"

    async def test_a_body_that_ends_early_is_cut_off(self, server, client):
        async def cut(request, writer):
            writer.write(answer(Content_Length="100") + b"x" * 40)

        server.answer = cut
        with pytest.raises(TryAgain, match="cut off after 40 of 100 bytes"):
            await get(client)

    async def test_a_body_of_which_nothing_comes_is_cut_off(self, server, client):
        async def cut(request, writer):
            writer.write(answer(Content_Length="100"))

        server.answer = cut
        with pytest.raises(TryAgain, match="cut off after 0 of 100 bytes"):
            await get(client)

    async def test_chunks_that_never_end_are_cut_off(self, server, client):
        async def cut(request, writer):
            writer.write(answer(Content_Length="", Transfer_Encoding="chunked") + b"4\r\nabcd\r\n")

        server.answer = cut
        with pytest.raises(TryAgain, match="cut off after 4 of an unknown number"):
            await get(client)

    async def test_chunks_that_end_are_whole(self, server, client):
        server.answer = answer(Content_Length="", Transfer_Encoding="chunked") + b"4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"
        assert await get(client) == b"abcdef"

    async def test_a_body_longer_than_the_largest_is_given_up(self, server):
        async def endless(request, writer):
            writer.write(answer(Content_Length=""))
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

        server.answer = endless
        async with speaking(server, largest=1_000_000) as client, asyncio.timeout(5):
            with pytest.raises(TryAgain, match="longer than 1000000 bytes"):
                await get(client)


def members(*parts: bytes) -> bytes:
    return b"".join(gzip.compress(part) for part in parts)


class TestCompressedAlthoughNotAskedFor:
    data = random.Random(2).randbytes(50_000) * 30

    @pytest.mark.parametrize(
        ("encoding", "packed"),
        [
            ("gzip", gzip.compress(data)), ("GZIP", gzip.compress(data)), ("deflate", zlib.compress(data)),
            ("gzip", members(data[:7], data[7:])),
        ],
        ids=["gzip", "in capitals", "deflate", "two members"],
    )  # fmt: skip
    async def test_it_is_unpacked(self, server, client, encoding, packed):
        server.answer = answer(body=packed, Content_Encoding=encoding)
        assert await get(client) == self.data

    @pytest.mark.parametrize("cut", [1, 8, 2000], ids=str)
    async def test_a_stream_that_was_cut_before_it_was_sent_is_noticed(self, server, client, cut):
        server.answer = answer(body=gzip.compress(self.data)[:-cut], Content_Encoding="gzip")
        with pytest.raises(TryAgain, match="cut off"):
            await get(client)

    async def test_a_second_member_that_was_cut_is_noticed(self, server, client):
        server.answer = answer(body=members(b"one", self.data)[:-9], Content_Encoding="gzip")
        with pytest.raises(TryAgain, match="cut off"):
            await get(client)

    @pytest.mark.parametrize(
        "body", [b"no gzip at all", gzip.compress(data)[:500] + b"!" * 500], ids=["none", "spoilt"]
    )
    async def test_what_is_no_gzip_is_to_be_tried_again(self, server, client, body):
        server.answer = answer(body=body, Content_Encoding="gzip")
        with pytest.raises(TryAgain, match=r"no valid gzip|gzip body was cut off"):
            await get(client)

    async def test_an_encoding_that_nobody_asked_for_is_to_be_tried_again(self, server, client):
        server.answer = answer(body=b"\x0b\x02\x80hello\x03", Content_Encoding="br")
        with pytest.raises(TryAgain, match="no valid br"):
            await get(client)

    @pytest.mark.parametrize("name", ["utf-8", "none", "identity", "binary", "", "identity, none"])
    async def test_an_encoding_of_a_name_that_is_none_changes_nothing(self, server, client, name):
        server.answer = answer(body=b"as it is").replace(
            b"\r\n\r\n", f"\r\nContent-Encoding: {name}\r\n\r\n".encode(), 1
        )
        assert await get(client) == b"as it is"

    async def test_a_bomb_meets_a_flat_memory_and_the_limit(self, server):
        packer = zlib.compressobj(9, wbits=31)
        packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
        server.answer = answer(body=packed, Content_Encoding="gzip")
        kept = Kept(count_only=True)
        async with speaking(server, largest=256 << 20) as client:
            tracemalloc.start()
            try:
                with pytest.raises(TryAgain, match="longer than"):
                    await client.download("/x", kept)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert kept.length >= 255 << 20
        assert kept.longest <= 1 << 20
        assert peak < 16 << 20


class TestJson:
    async def test_an_answer_is_read(self, server, client):
        server.answer = answer(body='{"a": ["é", 1, null]}'.encode())
        assert await client.json("GET", "/x") == {"a": ["é", 1, None]}

    async def test_a_long_answer_is_read(self, server, client):
        rows = [{"n": n, "text": "x" * 50} for n in range(30_000)]
        server.answer = answer(body=json.dumps(rows).encode())
        assert await client.json("GET", "/x") == rows

    async def test_what_is_sent_is_json(self, server, client):
        server.answer = answer(body=b"{}")
        await client.json("POST", "/x", json={"ä": 1}, params={"n": 5, "q": "a b&c"})
        (request,) = server.requests
        assert (request.method, request.target) == ("POST", "/x?n=5&q=a+b%26c")
        assert json.loads(request.body) == {"ä": 1}
        assert request.header("Content-Type") == "application/json"

    async def test_more_than_the_limit_is_an_overflow(self, server, client):
        server.answer = answer(body=b'"' + b"x" * 1000 + b'"')
        assert await client.json("GET", "/x", limit=1002) == "x" * 1000
        with pytest.raises(Overflow, match="longer than 1001 bytes"):
            await client.json("GET", "/x", limit=1001)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>Login</html>",
            b"{",
            b'{"a": 1}}',
            b"\xff\xfe\xfa",
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b"9" * 9000,
        ],
        ids=["nothing", "a page", "half", "too much", "no text", "deep lists", "deep objects", "a long number"],
    )
    async def test_what_is_no_json_is_to_be_tried_again(self, server, client, body):
        server.answer = answer(body=body)
        with pytest.raises(TryAgain, match="no JSON"):
            await client.json("GET", "/x")

    async def test_a_page_in_place_of_json_is_quoted(self, server, client):
        server.answer = answer(body=b"<html>Please log in</html>")
        with pytest.raises(TryAgain, match="Please log in"):
            await client.json("GET", "/x")


class TestCredentials:
    async def test_they_go_to_the_origin_raw(self, server):
        server.answer = answer()
        async with speaking(server) as client:
            client.authorise({"X-Api-Key": KEY})
            await get(client)
        assert server.requests[0].header("X-Api-Key") == KEY
        assert f"X-Api-Key: {KEY}\r\n".encode() in server.requests[0].head

    async def test_new_ones_take_the_place_of_old_ones(self, server, client):
        server.answer = answer()
        client.authorise({"Authorization": "Bearer new"})
        await get(client)
        assert server.requests[0].header("Authorization") == "Bearer new"

    async def test_a_redirect_within_the_origin_keeps_them(self, server, client):
        async def redirect(request, writer):
            if request.target == "/a/b?x=1":
                return answer("302 Found", Location="../c%2Fd?sig=a%2Bb")
            return answer(body=b"there")

        server.answer = redirect
        assert await get(client, "/a/b", params={"x": 1}) == b"there"
        assert [r.target for r in server.requests] == ["/a/b?x=1", "/c%2Fd?sig=a%2Bb"]
        assert server.requests[1].header("Authorization") == "Bearer geheim"

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_to_another_origin_gets_none_of_them(self, server, elsewhere, status):
        server.answer = answer(
            f"{status} Over there", Location=f"{elsewhere.url}/x", Set_Cookie="session=geheim; Path=/"
        )
        elsewhere.answer = answer(body=b"there")
        async with speaking(server, cookies=True) as client:
            client.authorise({"Authorization": "Bearer geheim", "X-Api-Key": KEY})
            assert await get(client) == b"there"
            assert await get(client) == b"there"
        assert b"geheim" in server.requests[1].head
        for request in elsewhere.requests:
            assert b"geheim" not in request.head
            assert KEY.encode() not in request.head

    async def test_a_way_back_gets_them_again(self, server, elsewhere, client):
        elsewhere.answer = answer("302 Found", Location=f"{server.url}/end")

        async def redirect(request, writer):
            return answer(body=b"there") if request.target == "/end" else answer("302 Found", Location=elsewhere.url)

        server.answer = redirect
        assert await get(client, "/begin") == b"there"
        assert [r.header("Authorization") for r in server.requests] == ["Bearer geheim"] * 2
        assert elsewhere.requests[0].header("Authorization") is None

    async def test_an_address_that_an_answer_named_gets_none_of_them(self, server, elsewhere, client):
        server.answer = elsewhere.answer = answer(body=b"there")
        await get(client, f"{elsewhere.url}/file")
        assert elsewhere.requests[0].header("Authorization") is None
        await get(client, f"{server.url}/file")
        assert server.requests[0].header("Authorization") == "Bearer geheim"

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "127.0.0.1.nip.invalid", "127.0.0.1@127.0.0.2"])
    def test_another_host_is_another_origin(self, host):
        client = Client("http://127.0.0.1:80")
        assert client.is_ours(client.url("http://127.0.0.1/x"))
        assert not client.is_ours(client.url(f"http://{host}:80/x"))
        assert not client.is_ours(client.url("https://127.0.0.1:80/x"))
        assert not client.is_ours(client.url("http://127.0.0.1:81/x"))

    async def test_a_cookie_is_kept_for_a_source_that_wants_it_only(self, server):
        server.answer = answer(Set_Cookie="session=1; Path=/")
        for cookies in (True, False):
            server.requests.clear()
            async with speaking(server, cookies=cookies) as client:
                await get(client)
                await get(client)
            assert [bool(r.header("Cookie")) for r in server.requests] == [False, cookies]

    @pytest.mark.parametrize("bad", ["a\r\nX-Evil: 1", "a\nb", "a\0b"], ids=repr)
    async def test_a_value_that_is_no_header_is_refused_before_it_is_sent(self, server, client, bad):
        server.answer = answer()
        with pytest.raises(BadData):
            await get(client, headers={"X-Id": bad})
        assert not any(b"X-Evil" in request.head for request in server.requests)

    @pytest.mark.parametrize(
        "echo",
        [
            lambda s: s, lambda s: f"\r\n{' ' * 200}{s}", lambda s: html.escape(s), lambda s: json.dumps({"key": s}),
            lambda s: quote(s, safe=""), lambda s: quote(s), lambda s: f"key {s}, key {s}!",
            lambda s: f"{' ' * (300 - len(s) // 2)}{s}", lambda s: f"<b>{html.escape(s, quote=False)}</b>",
        ],
        ids=["plain", "behind spaces", "html", "json", "url", "url path", "twice", "cut in two", "html text"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "secret", [KEY, "ab\"c'd\\e&f" * 3, "sec ret + gehe%im" * 2], ids=["key", "quotes", "spaces"]
    )
    async def test_a_server_that_repeats_them_is_not_repeated(self, server, echo, secret):
        async with speaking(server) as client:
            client.authorise({"Authorization": f"Bearer {secret}"})
            for status in ("403 Forbidden", "500 Oops"):
                server.answer = answer(status, echo(secret).encode())
                with pytest.raises((Refused, TryAgain)) as raised:
                    await get(client)
                self.assert_hidden(secret, str(raised.value))
            server.answer = answer(body=echo(secret).encode() + b"<")
            with pytest.raises(TryAgain) as raised:
                await client.json("GET", "/x")
            self.assert_hidden(secret, str(raised.value))

    async def test_a_password_that_travels_in_base64_is_hidden_in_both_forms(self, server):
        login = base64.b64encode(f"archiver:{KEY}".encode()).decode()
        async with speaking(server) as client:
            client.authorise({"Authorization": f"Basic {login}"})
            server.answer = answer("401 No", f"wrong password {KEY} for archiver ({login})".encode())
            with pytest.raises(Refused) as raised:
                await get(client)
        self.assert_hidden(KEY, str(raised.value))
        self.assert_hidden(login, str(raised.value))

    async def test_a_reason_phrase_that_repeats_them_is_not_repeated(self, server, client):
        server.answer = answer("401 no such token geheim " + "x" * 3000)
        with pytest.raises(Refused) as raised:
            await get(client)
        assert "geheim" not in str(raised.value)
        assert len(str(raised.value)) < 400

    @staticmethod
    def assert_hidden(secret: str, text: str) -> None:
        told = html.unescape(text) + text + text.replace("\\\\", "\\").replace('\\"', '"')
        pieces = {secret[i : i + 8] for i in range(len(secret) - 7)}
        assert not [piece for piece in pieces if piece in told], text


class TestRedirects:
    async def test_a_circle_ends(self, server, client):
        server.answer = answer("302 Found", Location="/again")
        with pytest.raises(TryAgain, match="circle"):
            await get(client)
        assert len(server.requests) == 6

    async def test_five_are_followed(self, server, client):
        async def redirect(request, writer):
            n = int(request.target[1:])
            return answer("302 Found", Location=f"/{n + 1}") if n < 5 else answer(body=b"there")

        server.answer = redirect
        assert await get(client, "/0") == b"there"

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
    async def test_only_a_get_is_redirected(self, server, client, method):
        server.answer = answer("302 Found", Location="/x")
        with pytest.raises(Refused, match=rf"redirects a {method} \(302\); is base_url right"):
            async with client.request(method, "/", data=b"secret"):
                pass
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "location",
        [
            "",
            "ftp://127.0.0.1/x",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "http://",
            "http://[::1",
            "http://h:port/",
        ],
    )
    async def test_a_redirect_to_nowhere_is_to_be_tried_again(self, server, client, location):
        server.answer = answer("302 Found", Location=location)
        with pytest.raises(TryAgain):
            await get(client)
        assert all(request.target == "/" for request in server.requests)


class TestAddresses:
    @pytest.mark.parametrize(
        ("base", "path", "target"),
        [
            ("", "/x", "/x"), ("", "/a%2Fb?c=%20d", "/a%2Fb?c=%20d"), ("/api/v2", "/x", "/api/v2/x"),
            ("/api/v2/", "/x", "/api/v2/x"), ("", "//evil.invalid/x", "//evil.invalid/x"),
            ("/a", "/..%2f..%2fx", "/a/..%2f..%2fx"), ("", "/a b", "/a%20b"), ("", "/a/../b", "/a/../b"),
            ("/a", "/%2e%2e/b", "/a/%2e%2e/b"), ("", "/a/./b//c/", "/a/./b//c/"),
            ("", "/a'(\"|^`{}<>~\\", "/a'(\"|^`{}<>~\\"),
            ("", "/a?b='\"|^`{}<>", "/a?b='\"|^`{}<>"), ("", "/a%5c%E9%zz%", "/a%5c%E9%zz%"),
        ],
    )  # fmt: skip
    async def test_a_path_lies_below_the_base_as_it_is_written(self, server, base, path, target):
        server.answer = answer()
        async with speaking(server.url + base) as client:
            await get(client, path)
        assert server.requests[0].target == target

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "x",
            "x/y",
            "ftp://h/x",
            "file:///etc/passwd",
            "http://",
            "http:///x",
            "http://[::1",
            "javascript:1",
            "http://h:port/x",
        ],
    )
    async def test_what_is_no_web_address_is_bad_data(self, server, client, url):
        with pytest.raises(BadData):
            await get(client, url)
        assert server.requests == []

    @pytest.mark.parametrize(
        "path", ["/x HTTP/1.1\r\nX-Evil: 1\r\n\r\n", "/x\r\nX-Evil: 1", "/x\ny", "/x\0", "/x\ty"], ids=repr
    )
    async def test_a_path_cannot_smuggle_a_header(self, server, client, path):
        server.answer = answer()
        for address in (path, server.url + path):
            with pytest.raises(BadData):
                await get(client, address)
        assert server.requests == []

    async def test_a_user_in_an_address_that_an_answer_named_changes_nothing_for_us(self, server, client):
        server.answer = answer()
        with pytest.raises(BadData):
            await get(client, server.url.replace("//", "//user:word@") + "/x")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=recorder", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def expired(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that was good for a day, long ago, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "recorder")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2020, 1, 2, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "old.pem").write_bytes(private + made.public_bytes(Encoding.PEM))
    return folder / "old.pem"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """An authority of a company's own, as its tools make one: no key identifier anywhere."""
    return a_house(tmp_path_factory.mktemp("house"))


@contextmanager
def old_server(house: Path, version: str, *more: str | Path) -> Iterator[str]:
    """OpenSSL's own, which speaks that version of TLS and no other."""
    (port,) = free_ports(1)
    server = house / "server.pem"
    line = ["openssl", "s_server", "-www", version, "-cipher", "DEFAULT:@SECLEVEL=0", "-accept", f"127.0.0.1:{port}"]
    line += ["-cert", server, "-key", server, "-cert_chain", house / "between.pem", "-quiet", *more]
    with subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + 30
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < end
                time.sleep(0.05)
            yield f"https://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


class TestTls:
    async def ask(self, url: str, **options) -> bytes:
        client = Client.of(SourceOptions(kind="x", base_url=url, timeout="5s", **options))
        client.authorise({"Authorization": "Bearer geheim"})
        try:
            return await get(client)
        finally:
            await client.close()

    async def test_a_stranger_s_certificate_is_refused_and_the_remedy_named(self, tls):
        async with serving(tls) as server:
            with pytest.raises(Refused, match="ca_file") as raised:
                await self.ask(server.url)
        assert "self-signed certificate" in str(raised.value)
        assert server.requests == []

    async def test_its_issuer_in_ca_file_makes_it_welcome(self, tls, certificate):
        async with serving(tls) as server:
            server.answer = answer(body=b"there")
            assert await self.ask(server.url, ca_file=certificate / "cert.pem") == b"there"

    async def test_ca_file_does_not_make_another_name_welcome(self, tls, certificate):
        async with serving(tls) as server:
            with pytest.raises(Refused):
                await self.ask(server.url.replace("127.0.0.1", "localhost"), ca_file=certificate / "cert.pem")
        assert server.requests == []

    async def test_a_certificate_of_another_name_or_time_is_told_so_and_not_to_trust_its_issuer(
        self, tmp_path, certificate, tls
    ):
        async with serving(tls) as server:
            with pytest.raises(Refused, match="base_url must name the host as its certificate does") as named:
                await self.ask(server.url.replace("127.0.0.1", "localhost"), ca_file=certificate / "cert.pem")
        old = expired(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(old)
        async with serving(context) as server:
            with pytest.raises(Refused, match=r"certificate has expired.*renew its certificate") as late:
                await self.ask(server.url, ca_file=old)
        assert all(str(raised.value).isprintable() for raised in (named, late))
        assert server.requests == []

    async def test_who_wants_no_check_gets_none(self, tls):
        async with serving(tls) as server:
            server.answer = answer(body=b"there")
            assert await self.ask(server.url, verify_tls=False) == b"there"

    async def test_an_authority_without_key_identifiers_is_trusted_where_python_asks_for_them(self, house, monkeypatch):
        """As Python does by default from 3.13 on."""
        made = ssl.create_default_context

        def strict(**how):
            context = made(**how)
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            return context

        monkeypatch.setattr(ssl, "create_default_context", strict)
        async with serving(presenting(house / "server.pem")) as server:
            server.answer = answer(body=b"there")
            assert await self.ask(server.url, ca_file=house / "root.pem") == b"there"
            with pytest.raises(Refused, match="base_url must name the host"):
                await self.ask(server.url.replace("127.0.0.1", "localhost"), ca_file=house / "root.pem")

    async def test_an_issuer_in_between_is_enough(self, house):
        async with serving(presenting(house / "server.pem")) as server:
            server.answer = answer(body=b"there")
            assert await self.ask(server.url, ca_file=house / "between.pem") == b"there"

    @pytest.mark.parametrize(
        ("presented", "trusted", "words"),
        [
            ("alone.pem", None, r"self-signed certificate\); set ca_file to that certificate"),
            ("alone.pem", "root.pem", r"root\.pem holds another certificate"),
            ("server.pem", None, r"set ca_file to the certificate of its issuer"),
            ("server.pem", "alone.pem", r"alone\.pem holds another issuer"),
            ("early.pem", "early.pem", r"begins in the future: set this host's clock right"),
        ],
    )
    async def test_the_remedy_depends_on_the_reason(self, house, presented, trusted, words):
        async with serving(presenting(house / presented)) as server:
            with pytest.raises(Refused, match=words):
                await self.ask(server.url, ca_file=house / trusted if trusted else None)
        assert server.requests == []

    @pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
    async def test_a_recorder_that_speaks_old_tls_only_is_served_where_that_is_wanted(self, house, version):
        trusted = {"ca_file": house / "root.pem"}
        with old_server(house, version) as url:
            with pytest.raises(Refused, match=r"old TLS only.* legacy_tls = true"):
                await self.ask(url, **trusted)
            assert b"Cipher" in await self.ask(url, **trusted, legacy_tls=True)
            # Old is not unchecked.
            with pytest.raises(Refused, match="holds another issuer"):
                await self.ask(url, ca_file=house / "alone.pem", legacy_tls=True)

    async def test_a_server_that_ends_the_handshake_without_a_word_may_only_be_old(self):
        async def silent(reader, writer):
            await reader.read(1)
            writer.transport.abort()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
            with pytest.raises(TryAgain, match=r"during the TLS handshake; .*legacy_tls = true"):
                await self.ask(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}")

    async def test_plain_http_to_a_tls_port_is_to_be_tried_again(self, tls):
        async with serving(tls) as server:
            with pytest.raises(TryAgain):
                await self.ask(server.url.replace("https", "http"))

    async def test_tls_to_a_plain_http_port_is_refused(self):
        async def deny(reader, writer):
            await reader.read(1)
            writer.write(answer("400 Bad Request"))
            writer.close()

        listening = await asyncio.start_server(deny, "127.0.0.1", 0)
        async with listening:
            with pytest.raises(Refused, match="that port speaks no TLS: write http:// in base_url"):
                await self.ask(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}")

    async def test_a_redirect_down_to_plain_http_gets_no_credentials(self, tls, certificate, server):
        server.answer = answer(body=b"there")
        async with serving(tls) as secret:
            secret.answer = answer("302 Found", Location=server.url)
            assert await self.ask(secret.url, ca_file=certificate / "cert.pem") == b"there"
        assert server.requests[0].header("Authorization") is None


class TestGate:
    async def test_no_more_than_the_limit_run(self):
        gate, most = Gate(3), 0

        async def work():
            nonlocal most
            async with gate.slot():
                most = max(most, gate.running)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(work() for _ in range(30)))
        assert (most, gate.running, gate.waiting) == (3, 0, 0)

    async def test_places_go_to_those_who_came_first(self):
        gate, order = Gate(1), []

        async def work(n: int):
            async with gate.slot():
                order.append(n)
                await asyncio.sleep(0)

        await asyncio.gather(*(work(n) for n in range(10)))
        assert order == list(range(10))

    async def test_a_raised_limit_lets_those_who_wait_in_at_once(self):
        gate, release = Gate(1), asyncio.Event()

        async def work():
            async with gate.slot():
                await release.wait()

        tasks = [asyncio.create_task(work()) for _ in range(5)]
        await asyncio.sleep(0)
        assert (gate.running, gate.waiting) == (1, 4)
        gate.limit = 4
        assert (gate.running, gate.waiting) == (4, 1)
        release.set()
        await asyncio.gather(*tasks)

    async def test_a_lowered_limit_lets_those_finish_who_run_and_admits_fewer(self):
        gate, most = Gate(4), []

        async def work():
            async with gate.slot():
                most.append(gate.running)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work()) for _ in range(12)]
        await asyncio.sleep(0)
        assert gate.running == 4
        gate.limit = 1
        await asyncio.gather(*tasks)
        assert most[4:] == [1] * 8

    async def test_a_limit_of_nothing_holds_all_until_it_is_raised(self):
        gate = Gate(0)
        task = asyncio.create_task(self.through(gate))
        await asyncio.sleep(0.01)
        assert not task.done()
        gate.limit = 1
        await task

    @staticmethod
    async def through(gate: Gate) -> None:
        async with gate.slot():
            pass

    async def test_the_rate_is_waited_for_within_the_place(self):
        loop, starts = asyncio.get_running_loop(), []
        pauses = iter([0.0, 0.05, 0.1])

        async def reserve() -> timedelta:
            return timedelta(seconds=next(pauses))

        gate = Gate(3, reserve)
        began = loop.time()

        async def work():
            async with gate.slot():
                starts.append(loop.time() - began)

        await asyncio.gather(*(work() for _ in range(3)))
        assert [round(s, 2) >= wanted for s, wanted in zip(starts, (0, 0.05, 0.1), strict=True)] == [True] * 3
        assert gate.started == 3

    async def test_a_rate_that_fails_gives_the_place_back(self):
        async def reserve() -> timedelta:
            raise RuntimeError("no database")

        gate = Gate(1, reserve)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await self.through(gate)
        assert gate.running == 0

    @pytest.mark.parametrize("seed", range(20))
    async def test_whoever_is_cancelled_whenever_no_place_is_lost(self, seed):
        """Workers come, wait, run and are cancelled at random while the limit changes."""
        dice = random.Random(seed)

        async def reserve() -> timedelta:
            for _ in range(dice.randrange(2)):
                await asyncio.sleep(0)
            return timedelta(microseconds=dice.choice([0, 0, 1]))

        gate = Gate(3, reserve)
        tasks: list[asyncio.Task[None]] = []
        inside = 0

        async def work():
            nonlocal inside
            async with gate.slot():
                inside += 1
                try:
                    assert inside <= gate.running
                    for _ in range(dice.randrange(4)):
                        await asyncio.sleep(0)
                    if dice.random() < 0.1:
                        raise ZeroDivisionError
                finally:
                    inside -= 1

        for _ in range(150):
            tasks.append(asyncio.create_task(work()))
            if dice.random() < 0.5:
                dice.choice(tasks).cancel()
            if dice.random() < 0.2:
                gate.limit = dice.randrange(6)
                before = gate.running
            if dice.random() < 0.5:
                await asyncio.sleep(0)
                assert gate.running <= max(gate.limit, before if gate.running > gate.limit else 0)
        gate.limit = 2
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(e) for e in ended} <= {type(None), asyncio.CancelledError, ZeroDivisionError}
        assert (gate.running, gate.waiting, inside) == (0, 0, 0)
        await asyncio.gather(*(self.through(gate) for _ in range(5)))

    async def test_a_client_s_requests_pass_through_it(self, server):
        running = []

        async def note(request, writer):
            running.append(gate.running)
            await asyncio.sleep(0.005)
            return answer(body=b"x")

        server.answer = note
        gate = Gate(2)
        async with speaking(server, gate=gate) as client:
            await asyncio.gather(*(get(client) for _ in range(12)))
        assert max(running) == 2
        assert (gate.running, gate.started) == (0, 12)
