"""Connections that are used again, and answers that come when nobody thought they would."""

import asyncio
import gc
import random
import socket
import struct
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from archiver.wire.client import Transport
from archiver.wire.exchange import Broken, Cut, NoConnection, NoHttp, Origin

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
async def serving(script, **how):
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
    transport = Transport(**({"timeout": 5, "connect_timeout": 5} | how))
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
        (b"HTTP/1.1 204 None\r\nContent-Length: 2\r\n\r\nhi", b""),
    ],
)
@pytest.mark.parametrize("piece", [1, 1 << 20], ids=["byte by byte", "at once"])
async def test_a_body_ends_where_its_framing_says(said, expected, piece):
    async def in_pieces(server, number, reader, writer):
        await server.request(reader)
        for at in range(0, len(said), piece):
            writer.write(said[at : at + piece])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(in_pieces) as (_, transport, origin):
        assert (await ask(transport, origin))[1] == expected


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 3\r\nno header here", b"hi!"),
        (b"no header here\r\n and more of it\r\nContent-Length: 3", b"hi!"),
        (b"Content-Length : 3\r\nX-A\t: b", b"hi!"),
        (b"X-A: b\r\n  c\r\n\td\r\nContent-Length: 3", b"hi!"),
        (b"Transfer-Encoding: identity", b"hi!"),
        (b"Transfer-Encoding: identity\r\nContent-Length: 3", b"hi!"),
        (b"Transfer-Encoding: Identity, Chunked", b"3\r\nhi!\r\n0\r\n\r\n"),
        (b"Content-Length: 9\r\nTransfer-Encoding: chunked", b"3\r\nhi!\r\n0\r\n\r\n"),
        (b"Content-Length: 3\r\ncontent-length: 3", b"hi!"),
        (b"Content-Length: 3, 3", b"hi!"),
        (b"X Y: z\r\n: z\r\nX@Y: z\r\nContent-Length: 3", b"hi!"),
        (b"X: \xe9\xff\r\nContent-Length: 3", b"hi!"),
    ],
    ids=["no colon", "no colon, folded", "space before the colon", "folded", "identity", "identity and a length",
         "identity and chunks", "a length beside chunks", "two equal lengths", "in one line", "odd names", "no text"],
)  # fmt: skip
async def test_a_sloppy_head_is_read_as_browsers_do(head, body):
    async def sloppy(server, number, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nX-Last: z\r\n\r\n" + body)

    async with serving(sloppy) as (_, transport, origin), await transport.send("GET", origin, "/", {}) as answer:
        assert (answer.status, answer.headers["x-last"]) == (200, "z")
        assert answer.headers.get("x-a") in {None, "b", "b c d"}
        assert b"".join([chunk async for chunk in answer]) == b"hi!"


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong", b"junk", b"\r\n"])
async def test_what_nobody_asked_for_is_no_answer_to_the_next_request(more):
    told = asyncio.Event()

    async def talkative(server, number, reader, writer):
        await server.request(reader)
        writer.write(OK)
        if number == 1:
            await told.wait()
            writer.write(more)
        await reader.read()

    async with serving(talkative) as (_, transport, origin):
        assert await ask(transport, origin) == (200, b"hi")
        told.set()
        await asyncio.sleep(0.05)
        assert await ask(transport, origin) == (200, b"hi")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", Cut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", Cut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nhi\r\n", NoHttp),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhim\r\n0\r\n\r\n", NoHttp),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", NoHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", NoHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nhi!", NoHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nhi", NoHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi", NoHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhi", NoHttp),
        (b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", NoHttp),
        (b"HTTP/1.1 OK\r\n\r\n", NoHttp),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000, NoHttp),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40000 + b"\r\n", NoHttp),
        (b"SSH-2.0-OpenSSH\r\n\r\n", NoHttp),
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


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1, 3_000_000])
async def test_a_body_that_was_whole_before_anybody_read_it_ends(chunked, length):
    """The reading is paused in the midst of what came, and its end comes to light when it goes on."""

    async def quick(server, number, reader, writer):
        await server.request(reader)
        if chunked:
            pieces = [b"1000\r\n" + bytes(4096) + b"\r\n"] * (length // 4096) + [b"1\r\n\0\r\n"] * (length % 4096)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(pieces) + b"0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + bytes(length))
        await reader.read()

    async with serving(quick, timeout=2) as (_, transport, origin), asyncio.timeout(30):
        async with await transport.send("GET", origin, "/", {}) as answer:
            received = 0
            await asyncio.sleep(0.2)
            while chunk := await answer.read():
                received += len(chunk)
        assert received == length


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
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(server, number, reader, writer):
        await server.request(reader)
        asked.set()
        await reader.read()
        gone.set()

    async with serving(silent) as (_, transport, origin):
        task = asyncio.create_task(ask(transport, origin))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 10)
    gc.collect()


class Dripping:
    """A body in pieces, each of which is long in coming."""

    def __init__(self, pieces, pause, size=1 << 16):
        self.pieces, self.pause, self.piece = pieces, pause, bytes(size)
        self.size = pieces * size

    async def chunks(self):
        for _ in range(self.pieces):
            await asyncio.sleep(self.pause)
            yield self.piece


async def test_an_upload_that_moves_slowly_is_not_cut():
    """Also where all of it waits in the kernel already."""

    async def slow(server, number, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(24):
            await asyncio.sleep(0.12)
            await reader.readexactly(1 << 17)
        writer.write(OK)

    async with serving(slow, timeout=1.5) as (_, transport, origin):
        assert await ask(transport, origin, "PUT", Dripping(24, 0, 1 << 17)) == (200, b"hi")


@pytest.mark.parametrize("size", [1 << 16, 1 << 25], ids=["all sent", "midway"])
async def test_an_upload_that_stands_still_is_given_up_and_holds_up_no_stop(size):
    async def never(server, number, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(30)

    async with serving(never, timeout=0.3) as (_, transport, origin), asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            await ask(transport, origin, "PUT", Dripping(size >> 16, 0))
        await transport.close()


async def test_a_body_that_is_long_in_coming_is_not_the_server_s_fault():
    async with serving(polite, timeout=0.4) as (_, transport, origin):
        assert await ask(transport, origin, "PUT", Dripping(2, 1.0)) == (200, b"hi")


async def test_a_reader_that_takes_its_time_is_not_the_server_s_fault():
    async def generous(server, number, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n")
        for _ in range(8):
            writer.write(bytes(1_000_000))
            await writer.drain()

    async with serving(generous, timeout=0.4) as (_, transport, origin):
        async with await transport.send("GET", origin, "/", {}) as answer:
            received = len(await answer.read())
            await asyncio.sleep(1)
            async for chunk in answer:
                received += len(chunk)
        assert received == 8_000_000


async def test_a_connection_that_does_not_come_about_is_given_up():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        transport = Transport(timeout=60, connect_timeout=0.3)
        async with asyncio.timeout(20):
            with pytest.raises(TimeoutError):
                await ask(transport, Origin("http", *full.getsockname()))
        await transport.close()
        for each in waiting:
            each.close()


async def test_a_body_of_another_length_than_told_is_an_error_and_no_request_follows_it():
    class Lying(Dripping):
        @property
        def size(self):
            return 3 << 16

        @size.setter
        def size(self, _):
            pass

    async with serving(polite) as (server, transport, origin):
        with pytest.raises(OSError, match=r"has 131072 bytes in place of 196608"):
            await ask(transport, origin, "POST", Lying(2, 0))
        assert await ask(transport, origin) == (200, b"hi")
        assert server.connections == 2


async def test_a_body_that_can_t_be_read_says_why():
    class Spoilt(Dripping):
        async def chunks(self):
            yield self.piece
            raise OSError(5, "Input/output error")

    async with serving(polite) as (_, transport, origin):
        with pytest.raises(OSError, match="Input/output error"):
            await ask(transport, origin, "PUT", Spoilt(2, 0))


@pytest.mark.parametrize("target", ["", "x", "http://h/", "/a b", "/a\r\nX: y", "/a#b", "/a\0"])
async def test_what_is_no_path_is_refused_before_it_is_sent(target):
    async with serving(polite) as (server, transport, origin):
        with pytest.raises(ValueError, match="no path"):
            await transport.send("GET", origin, target, {})
        assert server.connections == 0


async def test_cancelled_requests_leave_descriptors_memory_and_threads_as_they_were():
    began = b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n"

    async def silent_or_not(server, number, reader, writer):
        while await reader.read(1 << 16):
            if random.random() < 0.5:
                writer.write(began + bytes(random.choice([0, 9, 200_000])))

    async def cancelled(transport, origin, n):
        task = asyncio.create_task(ask(transport, origin, *(("PUT", Dripping(4, 0)) if n % 3 else ())))
        for _ in range(n % 17):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    def held():
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), len(asyncio.all_tasks())

    async with serving(silent_or_not) as (_, transport, origin):
        sizes = []
        for rounds in (3, 10, 10):
            for _ in range(rounds):
                await asyncio.gather(*(cancelled(transport, origin, n) for n in range(100)))
            for _ in range(1000):
                await asyncio.sleep(0.01)
                if len(asyncio.all_tasks()) == 1:
                    break
            sizes.append((*held(), len(gc.get_objects())))
        (fds, threads, tasks, objects), *later = sizes
        for now in later:
            assert abs(now[0] - fds) <= 2, sizes
            assert now[1] <= threads + 1, sizes
            assert now[2] == tasks == 1, sizes
            assert now[3] < objects + 3000, sizes


async def test_a_process_that_is_started_meanwhile_inherits_no_connection():
    ended = asyncio.Event()

    async def watching(server, number, reader, writer):
        await server.request(reader)
        writer.write(OK)
        await reader.read()
        ended.set()

    async with serving(watching) as (_, transport, origin):
        await ask(transport, origin)
        child = await asyncio.create_subprocess_exec("sleep", "30", close_fds=False)
        await transport.close()
        await asyncio.wait_for(ended.wait(), 10)
        child.kill()
        await child.wait()
