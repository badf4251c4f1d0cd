"""Connections that are used again, and answers that come when nobody thought they would."""

import asyncio
import gc
import socket
import struct
from contextlib import asynccontextmanager

import pytest

from archiver.wire.transport import Broken, Cut, NoConnection, Origin, Transport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Speaks by a script: one function a connection, told its number."""

    def __init__(self):
        self.connections = 0
        self.requests = []

    async def request(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                self.requests[-1] += await reader.readexactly(int(line.split(b":")[1]))
        return head


@asynccontextmanager
async def serving(script):
    server = Server()

    async def accept(reader, writer):
        server.connections += 1
        try:
            await script(server, server.connections, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    transport = Transport(timeout=5, connect_timeout=5)
    try:
        yield server, transport, Origin("http", "127.0.0.1", listener.sockets[0].getsockname()[1])
    finally:
        await transport.close()
        listener.close()
        await listener.wait_closed()


async def ask(transport, origin, method="GET", body=None):
    async with await transport.send(method, origin, "/", {}, body) as answer:
        return answer.status, b"".join([chunk async for chunk in answer])


async def polite(server, number, reader, writer):
    while True:
        await server.request(reader)
        writer.write(OK)


async def test_a_connection_is_used_again():
    async with serving(polite) as (server, transport, origin):
        for _ in range(3):
            assert await ask(transport, origin) == (200, b"hi")
        assert (server.connections, len(server.requests)) == (1, 3)


async def test_one_with_bytes_left_to_come_is_not():
    async def slow(server, number, reader, writer):
        await server.request(reader)
        writer.write(OK[:-1] if number == 1 else OK)
        await reader.read()

    async with serving(slow) as (server, transport, origin):
        async with await transport.send("GET", origin, "/", {}) as answer:
            assert answer.status == 200
        assert await ask(transport, origin) == (200, b"hi")
        assert server.connections == 2


async def once(server, number, reader, writer):
    await server.request(reader)
    writer.write(OK)


@pytest.mark.parametrize("method", ["GET", "PUT", "MOVE"])
async def test_what_a_closed_connection_did_not_answer_is_sent_again_on_a_new_one(method):
    closed = asyncio.Event()

    async def silent_at_the_second(server, number, reader, writer):
        await once(server, number, reader, writer)
        if number == 1:
            await server.request(reader)
            closed.set()

    async with serving(silent_at_the_second) as (server, transport, origin):
        await ask(transport, origin, method, b"body")
        assert await ask(transport, origin, method, b"body") == (200, b"hi")
        assert closed.is_set()
        assert server.connections == 2
        assert all(request.endswith(b"body") for request in server.requests)


async def test_a_post_is_not_sent_twice():
    async def silent(server, number, reader, writer):
        await once(server, number, reader, writer)
        await server.request(reader)

    async with serving(silent) as (server, transport, origin):
        await ask(transport, origin, "POST", b"body")
        with pytest.raises(Broken):
            await ask(transport, origin, "POST", b"body")
        assert len(server.requests) == 2


async def test_an_answer_that_comes_before_all_was_sent_is_taken():
    async def hasty(server, number, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(30)

    class Endless:
        size = 1 << 40

        async def chunks(self):
            while True:
                yield bytes(1 << 20)

    async with serving(hasty) as (_, transport, origin):
        assert await ask(transport, origin, "PUT", Endless()) == (413, b"")


async def test_what_comes_before_the_answer_is_passed_over():
    async def early(server, number, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK)

    async with serving(early) as (_, transport, origin):
        assert await ask(transport, origin) == (200, b"hi")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", b"hi"),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi and more", b"hi"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n1 \r\n!\r\n0\r\nT: x\r\n\r\n", b"hi!"),
        (b"HTTP/1.1 204 None\r\n\r\n", b""),
    ],
)
async def test_a_body_ends_where_its_framing_says(said, expected):
    async def byte_by_byte(server, number, reader, writer):
        await server.request(reader)
        for at in range(len(said)):
            writer.write(said[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(byte_by_byte) as (_, transport, origin):
        assert (await ask(transport, origin))[1] == expected


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", Cut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", Cut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nhi\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhim\r\n0\r\n\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", Broken),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nhi", Broken),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000, Broken),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Broken),
        (b"HTTP/1.1 200 O", Broken),
        (b"", Broken),
    ],
)
async def test_what_is_no_http_or_no_whole_body_is_an_error(said, error):
    async def odd(server, number, reader, writer):
        await server.request(reader)
        writer.write(said)

    async with serving(odd) as (_, transport, origin):
        with pytest.raises(error):
            await ask(transport, origin)


async def test_a_slow_reader_makes_the_server_wait():
    sent = 0

    async def generous(server, number, reader, writer):
        nonlocal sent
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(100):
            writer.write(bytes(1_000_000))
            await writer.drain()
            sent += 1

    async with serving(generous) as (_, transport, origin), await transport.send("GET", origin, "/", {}) as answer:
        first = await answer.read()
        before = -1
        while sent > before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 50
        assert len(first) + sum([len(chunk) async for chunk in answer]) == 100_000_000


@pytest.mark.parametrize(("promised", "whole"), [(2, True), (3, False)])
async def test_a_connection_that_is_reset_after_the_last_byte_costs_nothing(promised, whole):
    heard, reset = asyncio.Event(), asyncio.Event()

    async def script(server, number, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nhi" % promised)
        await heard.wait()
        # So that closing it is a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        reset.set()

    async with (
        serving(script) as (_, transport, origin),
        await transport.send("GET", origin, "/", {}, None) as answer,
    ):
        heard.set()
        await reset.wait()
        if whole:
            assert b"".join([chunk async for chunk in answer]) == b"hi"
        else:
            with pytest.raises(Cut):
                assert [chunk async for chunk in answer] == []


async def test_nobody_there_is_no_connection():
    transport = Transport(timeout=5, connect_timeout=5)
    with pytest.raises(NoConnection):
        await ask(transport, Origin("http", "127.0.0.1", 1))
    await transport.close()


async def test_a_cancelled_request_leaves_nothing_open():
    asked = asyncio.Event()

    async def silent(server, number, reader, writer):
        await server.request(reader)
        asked.set()
        await reader.read()

    async with serving(silent) as (_, transport, origin):
        task = asyncio.create_task(ask(transport, origin))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert not transport._all
    gc.collect()
