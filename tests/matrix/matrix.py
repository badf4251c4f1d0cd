"""The store contract, forty calls of hard ids and an object of 70 MB, server by server: `make stores`.

Not collected by `make test`: it takes long, and most of these servers fail some test by what they lack.
"""

import hashlib
import secrets
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from archiver.errors import ObjectFailed
from archiver.model import Body
from archiver.stores.s3 import S3Options, S3Store
from archiver.stores.webdav import WebDavOptions, WebDavStore
from archiver.testing.sources import ODD_IDS
from archiver.testing.stores import StoreContract, read, spooled
from tests import servers
from tests.engine import HOUR, MINUTE, a_recorder, archiving, assert_archived
from tests.factories import NOON
from tests.matrix.others import PASSWORD, USERNAME, Copyparty, Lighttpd, Moto, Nginx, RcloneDav, RcloneS3, WsgiDav


@pytest.fixture(scope="class")
def running(request):
    """The server of this class."""
    with servers._serving(request.cls.server) as server:
        yield server


class Matrix(StoreContract):
    """A subclass names its server."""

    #: Whether exactly one of many writers wins is each server's own; keys of media hold a hash.
    atomic = False
    server = None

    @pytest.fixture(autouse=True)
    def _remember(self, running):
        self.at = running

    @pytest_asyncio.fixture
    async def store(self, running):
        store = self.a_store(self.table(running))
        yield store
        await store.close()

    @asynccontextmanager
    async def unreachable(self):
        (port,) = servers.free_ports(1)
        address = f"http://127.0.0.1:{port}/"
        where = {"endpoint_url" if "endpoint_url" in self.table(self.at) else "url": address}
        store = self.a_store(self.table(self.at) | where | {"timeout": "2s"})
        yield store
        await store.close()

    async def test_an_object_of_70_mb_comes_back_as_it_was(self, store, under, tmp_path):
        data = secrets.token_bytes(70_000_000)
        await store.put(f"{under}large.wav", spooled(tmp_path, data))
        assert hashlib.sha256(await read(store, f"{under}large.wav")).digest() == hashlib.sha256(data).digest()

    async def test_forty_calls_of_hard_ids_are_archived_and_are_so_after_a_restart(
        self, running, tmp_path, database, clock
    ):
        sim = a_recorder(calls=40 - len(ODD_IDS))
        for number, odd in enumerate(ODD_IDS):
            sim.add_call(NOON - HOUR - number * MINUTE, 10 * MINUTE / 60, extra={"id": odd})
        table = self.table(running) | {"prefix": f"backfill{secrets.token_hex(4)}"}
        async with archiving(tmp_path, database, sim, clock=clock, stores={"main": table}) as rig:
            (summary,) = (await rig.sync()).values()
            assert summary.complete
            assert await assert_archived(rig) >= len(ODD_IDS)
            running.stop()
            running.start()
            assert await assert_archived(rig) >= len(ODD_IDS)


class S3(Matrix):
    long_length = 12_000_000

    def table(self, running):
        return {
            "kind": "s3",
            "bucket": "calls",
            "endpoint_url": running.url,
            "access_key_id": USERNAME,
            "secret_access_key": PASSWORD,
            "timeout": "30s",
        }

    def a_store(self, table):
        return S3Store("main", S3Options(**table))


class Dav(Matrix):
    def table(self, running):
        return {"kind": "webdav", "url": running.url, "timeout": "30s"}

    def a_store(self, table):
        return WebDavStore("main", WebDavOptions(**table))


class DavWithAccount(Dav):
    def table(self, running):
        return super().table(running) | {"username": USERNAME, "password": PASSWORD}


class TestMoto(S3):
    server = Moto

    async def test_forty_calls_of_hard_ids_are_archived_and_are_so_after_a_restart(self):
        pytest.skip("moto keeps everything in memory")


class TestRcloneS3(S3):
    server = RcloneS3


class TestRcloneDav(DavWithAccount):
    server = RcloneDav


class TestNginx(Dav):
    server = Nginx


class TestLighttpd(Dav):
    server = Lighttpd


class TestWsgiDav(Dav):
    server = WsgiDav
    #: It cuts them at ; and ?.
    unholdable = frozenset({"=equals&and;semi,comma:colon@at$dollar.wav", "what?#hash.wav"})

    @pytest.mark.parametrize("name", sorted(unholdable), ids=["semicolon", "question mark"])
    async def test_a_name_that_it_cuts_was_not_put(self, store, under, name):
        with pytest.raises(ObjectFailed, match="its name"):
            await store.put(f"{under}{name}", Body.of(b"x"))
        assert await store.stat(f"{under}{name}") is None


class TestCopyparty(DavWithAccount):
    server = Copyparty
