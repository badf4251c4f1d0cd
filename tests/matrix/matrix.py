"""The store contract, forty calls of hard ids and what proves them, and an object of 70 MB, server by server:
`make stores`.

Not collected by `make test`: it takes long, and most of these servers fail some test by what they lack.
"""

import hashlib
import json
import secrets
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from archiver.audio.spool import Spool
from archiver.catalog.catalog import Catalog, Query
from archiver.errors import ObjectFailed, StoreError, StoreRefused
from archiver.model import Body
from archiver.service import wiring
from archiver.stores.s3 import S3Options, S3Store
from archiver.stores.webdav import WebDavOptions, WebDavStore
from archiver.testing.sources import ODD_IDS
from archiver.testing.stores import StoreContract, keys, read, spooled
from archiver.upkeep import orphans
from archiver.upkeep.rebuild import rebuild
from tests import servers
from tests.engine import HOUR, MINUTE, a_recorder, archiving, assert_archived, eventually, without_verified_at
from tests.factories import NOON
from tests.matrix.ceph import Ceph
from tests.matrix.others import (
    PASSWORD,
    USERNAME,
    Copyparty,
    Httpd,
    Lighttpd,
    Moto,
    Nginx,
    RcloneDav,
    RcloneS3,
    SeaweedDav,
    SeaweedS3,
    WsgiDav,
)


@pytest.fixture(scope="class")
def running(request):
    """The server of this class."""
    with servers._serving(request.cls.server) as server:
        yield server


async def answers(store):
    try:
        await store.alive()
    except StoreError:
        return False
    return True


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

    @asynccontextmanager
    async def forty(self, running, folder, database, clock):
        """Forty archived calls of hard ids, with the number of their media."""
        sim = a_recorder(calls=40 - len(ODD_IDS))
        for number, odd in enumerate(ODD_IDS):
            sim.add_call(NOON - HOUR - number * MINUTE, 10 * MINUTE / 60, extra={"id": odd})
        table = self.table(running) | {"prefix": f"backfill{secrets.token_hex(4)}"}
        async with archiving(folder, database, sim, clock=clock, stores={"main": table}) as rig:
            (summary,) = (await rig.sync()).values()
            assert summary.complete
            count = await assert_archived(rig)
            assert count >= 40
            yield rig, count

    async def test_forty_calls_of_hard_ids_are_archived(self, running, tmp_path, database, clock):
        async with self.forty(running, tmp_path, database, clock):
            pass

    async def test_they_are_there_after_a_restart(self, running, tmp_path, database, clock):
        async with self.forty(running, tmp_path, database, clock) as (rig, count):
            running.stop()
            running.start()
            outlet = rig.archive.outlets["main"]
            # It may listen before it serves.
            await eventually(lambda: answers(outlet.store), within=60)
            assert await assert_archived(rig) == count

    async def test_verify_reads_them_back_and_tells_what_is_lost(self, running, tmp_path, database, clock):
        async with self.forty(running, tmp_path, database, clock) as (rig, count):
            rig.advance(MINUTE)
            found = await self.verified(rig)
            assert (found.read, found.good, found.complete) == (count, count, True)
            lost = min(await rig.media_keys("main"))
            await rig.archive.outlets["main"].store.delete(lost)
            rig.advance(MINUTE)
            found = await self.verified(rig)
            # From the recorder, which has it still.
            assert (found.read, found.bad, found.repaired, found.complete) == (count, 1, 1, True)
            assert await assert_archived(rig) == count

    async def verified(self, rig):
        engine = rig.archive.engine()
        reader = wiring.verifier(rig.archive, engine, "main")
        async with engine.shares.sharing():
            return await reader.stalest()

    async def test_rebuild_makes_the_same_catalog_of_them(self, running, tmp_path, database, postgres, clock):
        async with self.forty(running, tmp_path, database, clock) as (rig, _):
            new = postgres.create()
            catalog = await Catalog.open(new, clock=clock)
            try:
                spool = Spool(tmp_path / "rebuilding", 1 << 26)
                outlet = rig.archive.outlets["main"]
                found = await rebuild(catalog, outlet, {"pbx": rig.feed.source.listing_key}, spool)
                assert (found.recordings, found.damaged, found.untold) == (40, [], [])
                again = {d["recording_id"]: without_verified_at(d) async for d in catalog.find(Query())}
                known = {key: without_verified_at(d) for key, d in (await rig.documents()).items()}
                assert json.loads(json.dumps(again)) == known
                ((mine,), (old,)) = await catalog.sources(), await rig.catalog.sources()
                assert mine["covered"] == old["covered"]
            finally:
                await catalog.close()
                postgres.drop(new)

    async def test_orphans_are_only_what_nothing_describes(self, running, tmp_path, database, clock):
        async with self.forty(running, tmp_path, database, clock) as (rig, count):
            outlet, archive = rig.archive.outlets["main"], rig.archive
            found = await orphans.find(rig.catalog, outlet, archive.feeds, archive.spool)
            assert (found.objects, found.left, found.unlisted, found.error) == (count, [], [], None)
            stray = f"{outlet.prefix}pbx/2024/05/18/a%3Ab/a%20stray-0123456789ab.wav"
            await outlet.store.put(stray, Body.of(b"RIFF"))
            found = await orphans.find(rig.catalog, outlet, archive.feeds, archive.spool)
            assert [(key, size) for key, size, _ in found.left] == [(stray, 4)]

    async def test_check_says_what_the_table_tells_of_it(self, store, running):
        said = await store.check()
        for words in running.checked:
            assert words in said


class S3(Matrix):
    long_length = 12_000_000

    def table(self, running):
        return {
            "kind": "s3",
            "bucket": "calls",
            "endpoint_url": running.url,
            "access_key_id": running.access_key,
            "secret_access_key": running.secret_key,
            "timeout": "30s",
        }

    def a_store(self, table):
        return S3Store("main", S3Options(**table))

    async def test_object_lock_is_set_or_refused_by_check(self, running):
        bucket = f"locked-{secrets.token_hex(4)}"
        client = running.client()
        try:
            try:
                client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
            except ClientError:
                assert not running.locks
                return
            store = self.a_store(
                self.table(running) | {"bucket": bucket, "object_lock": {"mode": "GOVERNANCE", "days": 2}}
            )
            try:
                if not running.locks:
                    with pytest.raises(StoreRefused, match="object lock"):
                        await store.check()
                    return
                assert "object lock on" in await store.check()
                await store.put("a/b.wav", Body.of(b"RIFF"))
            finally:
                await store.close()
            until = client.head_object(Bucket=bucket, Key="a/b.wav")["ObjectLockRetainUntilDate"]
            assert timedelta(days=1.9) < until - datetime.now(UTC) <= timedelta(days=2)
        finally:
            client.close()


class Dav(Matrix):
    def table(self, running):
        return {"kind": "webdav", "url": running.url, "timeout": "30s"}

    def a_store(self, table):
        return WebDavStore("main", WebDavOptions(**table))


class DavWithAccount(Dav):
    def table(self, running):
        return super().table(running) | {"username": USERNAME, "password": PASSWORD}


class TestCeph(S3):
    server = Ceph


class TestMoto(S3):
    server = Moto

    async def test_they_are_there_after_a_restart(self):
        pytest.skip("moto keeps everything in memory")


class TestSeaweedS3(S3):
    server = SeaweedS3
    unholdable = frozenset({"back\\slash.wav"})

    async def test_a_backslash_becomes_a_slash(self, store, under):
        with suppress(StoreError):
            await store.put(f"{under}back\\slash.wav", Body.of(b"x"))
        assert await keys(store, under) in ([f"{under}back/slash.wav"], [])


class TestSeaweedDav(Dav):
    server = SeaweedDav

    async def test_what_lies_in_the_place_of_a_folder_is_of_no_concern_to_others(self):
        pytest.skip("it makes a folder of the file, whose bytes are gone; no key of ours asks for that")


class TestApache(Dav):
    server = Httpd

    def table(self, running):
        return super().table(running) | {"username": running.username, "password": running.password}


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
