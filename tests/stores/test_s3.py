"""The S3 store: the contract against SeaweedFS, and servers without manners."""

import asyncio
import hashlib
import os
import secrets
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import boto3
import pytest
import pytest_asyncio
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import ValidationError

from archiver.errors import (
    ObjectFailed,
    StoreConflict,
    StoreDown,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreRefused,
)
from archiver.model import Body
from archiver.proof.layout import DESCRIBING
from archiver.stores.s3 import S3Options, S3Store
from archiver.stores.s3_bucket import Traits, base64_of
from archiver.stores.s3_problems import Problem
from archiver.testing.stores import StoreContract, keys, read, spooled
from archiver.wire.sigv4 import Signer
from archiver.wire.store import Upload
from tests import servers
from tests.stores import canaries
from tests.stores.rude import RudeS3, error


def a_store(server: servers.Seaweed, **changes) -> S3Store:
    options = {
        "kind": "s3",
        "bucket": "calls",
        "endpoint_url": server.s3_url,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "timeout": "20s",
    }
    return S3Store("main", S3Options(**(options | changes)))


def a_client(server: servers.Seaweed):
    return boto3.client(
        "s3",
        endpoint_url=server.s3_url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


@pytest.fixture(scope="session")
def bucket(seaweed) -> str:
    return seaweed.make_bucket("calls")


@pytest.fixture(scope="session")
def locking(seaweed) -> str:
    """A bucket with object lock."""
    return seaweed.make_bucket("locked", object_lock=True)


@pytest_asyncio.fixture
async def store(seaweed, bucket):
    store = a_store(seaweed)
    yield store
    await store.close()


class TestContract(StoreContract):
    #: SeaweedFS makes a slash of it.
    unholdable = frozenset({"back\\slash.wav"})
    long_length = 12_000_000

    @pytest_asyncio.fixture
    async def store(self, seaweed, bucket):
        store = a_store(seaweed, multipart_threshold="5MiB", part_size="5MiB", page_size=5)
        yield store
        await store.close()

    @pytest.fixture(autouse=True)
    def _server(self, seaweed, bucket):
        self.seaweed = seaweed

    @asynccontextmanager
    async def unreachable(self):
        (port,) = servers.free_ports(1)
        store = a_store(self.seaweed, endpoint_url=f"http://127.0.0.1:{port}", timeout="2s")
        yield store
        await store.close()

    @asynccontextmanager
    async def refusing(self):
        store = a_store(self.seaweed, secret_access_key="wrong-but-still-secret")
        yield store, "wrong-but-still-secret"
        await store.close()

    async def leftovers(self, store, under):
        client = a_client(self.seaweed)
        found = await asyncio.to_thread(client.list_multipart_uploads, Bucket="calls")
        client.close()
        return [upload["Key"] for upload in found.get("Uploads", []) if upload["Key"].startswith(under)]


class TestWithoutHelp(TestContract):
    """The same where the server neither verifies hashes nor honours conditions, as far as we know."""

    atomic = False

    @pytest_asyncio.fixture
    async def store(self, seaweed, bucket):
        store = a_store(seaweed, multipart_threshold="5MiB", part_size="5MiB", page_size=1000)
        store.traits = Traits(verifies=False, conditional=False)
        yield store
        await store.close()


async def test_canaries_that_killed_processes_left_are_cleared(store):
    await canaries.left_by_killed_processes_are_cleared(store)


async def test_seaweed_verifies_and_never_overwrites(store):
    said = await store.check()
    assert "verifies SHA-256" in said
    assert "never overwrites" in said


async def test_the_server_refuses_an_object_of_another_hash(store):
    """What makes the receipt worth anything. SeaweedFS checks the checksum header, not x-amz-content-sha256 alone."""
    sent, told = Body.of(b"wrong"), Body.of(b"right")
    headers = {"x-amz-checksum-sha256": base64_of(told.sha256)}
    upload = Upload(sent)
    with pytest.raises(Problem) as caught:
        async with store.client.ask("PUT", "wrong/hash", headers=headers, upload=upload, sha256=sent.sha256):
            pass
    assert isinstance(caught.value.error("put"), StoreDown)
    assert await store.stat("wrong/hash") is None


async def test_the_server_refuses_a_part_of_another_hash(store, seaweed):
    client = a_client(seaweed)
    upload_id = client.create_multipart_upload(Bucket="calls", Key="wrong/part", ChecksumAlgorithm="SHA256")["UploadId"]
    sent, told = Body.of(b"wrong"), Body.of(b"right")
    headers = {"x-amz-checksum-sha256": base64_of(told.sha256)}
    upload = Upload(sent)
    query = {"partNumber": "1", "uploadId": upload_id}
    with pytest.raises(Problem):
        async with store.client.ask(
            "PUT", "wrong/part", query=query, headers=headers, upload=upload, sha256=sent.sha256
        ):
            pass
    client.abort_multipart_upload(Bucket="calls", Key="wrong/part", UploadId=upload_id)
    client.close()


async def test_a_second_put_does_not_write_again(store, seaweed):
    client = a_client(seaweed)
    client.put_bucket_versioning(Bucket=seaweed.make_bucket("versioned"), VersioningConfiguration={"Status": "Enabled"})
    store = a_store(seaweed, bucket="versioned")
    for _ in range(3):
        await store.put("a/b", Body.of(b"x"))
    with pytest.raises(StoreConflict):
        await store.put("a/b", Body.of(b"y"))
    versions = client.list_object_versions(Bucket="versioned", Prefix="a/b")["Versions"]
    client.close()
    await store.close()
    assert len(versions) == 1


async def test_the_object_carries_its_hash_and_its_type(store, seaweed):
    body = Body.of(b"RIFF")
    await store.put("typed/a.wav", body)
    client = a_client(seaweed)
    head = client.head_object(Bucket="calls", Key="typed/a.wav", ChecksumMode="ENABLED")
    client.close()
    assert head["Metadata"] == {"sha256": body.sha256}
    # RFC 2361; what others call audio/wav SeaweedFS would compress.
    assert head["ContentType"] == "audio/vnd.wave"
    assert (await store.stat("typed/a.wav")).sha256 == body.sha256


async def test_an_object_in_parts_carries_the_hash_of_the_whole(seaweed, bucket, tmp_path):
    store = a_store(seaweed, multipart_threshold="5MiB", part_size="5MiB")
    body = spooled(tmp_path, os.urandom(11 << 20))
    await store.put("parts/a.wav", body)
    assert (await store.stat("parts/a.wav")).sha256 == body.sha256
    client = a_client(seaweed)
    head = client.head_object(Bucket="calls", Key="parts/a.wav", PartNumber=1)
    client.close()
    await store.close()
    assert head.get("PartsCount", 3) == 3


async def test_anothers_object_without_our_hash_is_compared_byte_by_byte(store, seaweed):
    client = a_client(seaweed)
    client.put_object(Bucket="calls", Key="foreign/a", Body=b"same bytes")
    client.close()
    await store.put("foreign/a", Body.of(b"same bytes"))
    with pytest.raises(StoreConflict):
        await store.put("foreign/a", Body.of(b"diff bytes"))


async def test_object_lock_is_set_and_checked(seaweed, locking, tmp_path):
    lock = {"mode": "GOVERNANCE", "days": 2}
    store = a_store(seaweed, bucket=locking, object_lock=lock, multipart_threshold="5MiB", part_size="5MiB")
    assert "object lock on" in await store.check()
    await store.put("a/short.wav", Body.of(b"x"))
    await store.put("a/long.wav", spooled(tmp_path, os.urandom(6 << 20)))
    client = a_client(seaweed)
    for key in ("a/short.wav", "a/long.wav"):
        head = client.head_object(Bucket=locking, Key=key)
        assert head["ObjectLockMode"] == "GOVERNANCE"
        left = head["ObjectLockRetainUntilDate"] - datetime.now(UTC)
        assert timedelta(days=1.9) < left <= timedelta(days=2)
    client.close()
    await store.close()


async def test_what_tells_of_people_is_not_locked_unless_its_source_is_worm(seaweed, locking):
    store = a_store(seaweed, bucket=locking, prefix="in/", object_lock={"mode": "GOVERNANCE", "days": 2})
    assert "manifests are not locked" in await store.check()
    store.worm = lambda: {"kept"}
    assert "manifests and ledgers are locked of kept" in await store.check()
    locked = {"in/pbx/a.wav", "in/_proof/log/a", "in/_renamed/a.jsonl", "in/_manifests/kept/a.jsonl"}
    locked |= {f"in/{folder}/kept/a.json" for folder in ("_ledger", "_verified")}
    free = {f"in/{folder}/pbx/a.jsonl" for folder in ("_manifests", "_ledger", "_verified")}
    free |= {"in/_manifests/kept2/a.jsonl", "in/_audit/2026/01/01/a.jsonl"}
    client = a_client(seaweed)
    for key in locked | free:
        await store.put(key, Body.of(b"x"))
        assert ("ObjectLockMode" in client.head_object(Bucket=locking, Key=key)) == (key in locked), key
    client.close()
    await store.close()


async def test_a_bucket_that_locks_by_itself_is_warned_of():
    async with rude(changes={"object_lock": LOCK}) as (server, store):
        assert "default retention" not in await store.check()
        server.default_retention = True
        assert "WARNING: the bucket's default retention locks whatever is put" in await store.check()


async def test_object_lock_on_a_bucket_without_it_is_refused(seaweed, bucket):
    store = a_store(seaweed, object_lock={"mode": "COMPLIANCE", "days": 1})
    with pytest.raises(StoreRefused, match="object lock"):
        await store.check()
    with pytest.raises(StoreRefused):
        await store.put(f"lock/{secrets.token_hex(4)}", Body.of(b"x"))
    await store.close()


async def test_a_missing_bucket_is_refused_with_a_remedy(seaweed):
    store = a_store(seaweed, bucket="no-such-bucket")
    for use in (store.put("a/b", Body.of(b"x")), store.check(), keys(store, "")):
        with pytest.raises(StoreRefused, match="bucket"):
            await use
    await store.close()


async def test_an_unknown_account_is_refused_and_not_repeated(seaweed, bucket):
    store = a_store(seaweed, access_key_id="AKIAUNKNOWN")
    with pytest.raises(StoreRefused, match="access_key_id") as caught:
        await store.put("a/b", Body.of(b"x"))
    assert "AKIAUNKNOWN" not in str(caught.value)
    await store.close()


async def test_a_server_that_comes_back_is_used_again(seaweed, bucket, store):
    await store.put("back/a", Body.of(b"before"))
    await asyncio.to_thread(seaweed.stop)
    with pytest.raises(StoreDown):
        await store.put("back/b", Body.of(b"meanwhile"))
    await asyncio.to_thread(seaweed.start)
    for _ in range(100):
        try:
            await store.put("back/b", Body.of(b"after"))
            break
        except StoreDown:
            await asyncio.sleep(0.1)
    assert await read(store, "back/a") == b"before"
    assert await read(store, "back/b") == b"after"


async def test_a_clock_that_is_wrong_is_named(seaweed, bucket, monkeypatch):
    sign = Signer.sign
    monkeypatch.setattr(Signer, "sign", lambda *told: sign(*told, now=datetime(2001, 1, 1, tzinfo=UTC)))
    store = a_store(seaweed)
    with pytest.raises(StoreRefused, match="clock"):
        await store.put("a/b", Body.of(b"x"))
    await store.close()


@pytest.mark.parametrize("method", ["PUT", "GET"])
@pytest.mark.parametrize("token", ["token", None])
@pytest.mark.parametrize(
    "target",
    [
        "/calls/a%2520b/%C3%A9~?list-type=2&prefix=a%2Fb",
        "/calls/?uploads=",
        "/calls/x?uploadId=b%3D&partNumber=10&partNumber=9",
        "/",
    ],
)
def test_the_signature_is_botocores_own(method, token, target, monkeypatch):
    """The signer is told the hash that botocore would have read from the body."""
    now, body, keys = datetime(2024, 5, 18, 12, tzinfo=UTC), b"body", Credentials("key", "secret", token)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now)
    headers = {"If-None-Match": "*", "x-amz-meta-sha256": "  a   b ", "Content-Type": "audio/wav"}
    theirs = AWSRequest(method, f"http://127.0.0.1:8333{target}", headers=headers, data=body)
    S3SigV4Auth(keys, "s3", "eu-west-3").add_auth(theirs)
    signer = Signer("key", "secret", token, "eu-west-3")
    for _ in range(2):
        ours = signer.sign(method, "127.0.0.1:8333", target, headers, hashlib.sha256(body).hexdigest(), now=now)
        assert ours == dict(theirs.headers)


def test_the_signing_key_is_that_of_the_day():
    signer, headers = Signer("key", "secret", None, "eu-west-3"), {}
    for day in (17, 18, 17):
        now = datetime(2024, 5, day, tzinfo=UTC)
        fresh = Signer("key", "secret", None, "eu-west-3").sign("GET", "host", "/", headers, now=now)
        assert signer.sign("GET", "host", "/", headers, now=now) == fresh


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"endpoint_url": None}, "https://calls.s3.eu-west-3.amazonaws.com"),
        ({"endpoint_url": None, "bucket": "a.b.c"}, "https://s3.eu-west-3.amazonaws.com/a.b.c"),
        ({"endpoint_url": None, "region": "cn-north-1"}, "https://calls.s3.cn-north-1.amazonaws.com.cn"),
        ({"endpoint_url": None, "addressing": "path"}, "https://s3.eu-west-3.amazonaws.com/calls"),
        ({"endpoint_url": "https://s3.example.com/"}, "https://s3.example.com/calls"),
        ({"endpoint_url": "https://s3.example.com:9", "addressing": "virtual"}, "https://calls.s3.example.com:9"),
    ],
)
def test_a_bucket_has_one_address(changes, expected):
    options = {"kind": "s3", "bucket": "calls", "region": "eu-west-3"}
    assert S3Store("main", S3Options(**(options | changes))).client.bucket_url() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"bucket": "a/b"},
        {"bucket": "a..b"},
        {"endpoint_url": "s3.example.com"},
        {"endpoint_url": "https://user:secret@example.com"},
        {"access_key_id": "alone"},
        {"object_lock": {"mode": "MAYBE", "days": 1}},
        {"object_lock": {"mode": "COMPLIANCE", "days": 0}},
        {"multipart_threshold": "1kB"},
        {"acces_key_id": "x"},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        S3Options(**({"kind": "s3", "bucket": "calls"} | wrong))


async def test_without_credentials_anywhere_it_says_what_to_set(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    store = S3Store("main", S3Options(kind="s3", bucket="calls", endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(StoreRefused, match="access_key_id"):
        await store.stat("a/b")
    await store.close()


async def test_credentials_come_from_boto3s_chain(seaweed, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text(
        f"[archive]\naws_access_key_id = {seaweed.access_key}\naws_secret_access_key = {seaweed.secret_key}\n"
    )
    store = a_store(seaweed, access_key_id=None, secret_access_key=None, profile="archive")
    await store.put("chain/a", Body.of(b"x"))
    assert await read(store, "chain/a") == b"x"
    await store.close()
    store = a_store(seaweed, access_key_id=None, secret_access_key=None, profile="unheard-of")
    with pytest.raises(StoreRefused, match="profile"):
        await store.put("chain/a", Body.of(b"x"))
    await store.close()


async def test_a_body_of_the_spool_is_streamed(seaweed, bucket, tmp_path):
    upload = Upload(spooled(tmp_path, bytes(5 << 20)))
    sizes = [len(chunk) async for chunk in upload.chunks()]
    assert sum(sizes) == 5 << 20
    assert max(sizes) <= 1 << 20


# Servers without manners

LOCK = {"mode": "COMPLIANCE", "days": 1}


@asynccontextmanager
async def rude(*, changes=None, **how):
    """``changes``: of the options."""
    server = RudeS3(**how)
    async with server.serving():
        options = S3Options(
            kind="s3",
            bucket="calls",
            endpoint_url=server.url,
            access_key_id="key-id",
            secret_access_key="secret-key",
            **({"timeout": "300ms", "multipart_threshold": "5GiB"} | (changes or {})),
        )
        store = S3Store("main", options)
        yield server, store
        await store.close()


async def test_a_server_that_keeps_fewer_bytes_is_found_out():
    async with rude(verifies=False) as (server, store):
        server.keeps = 100
        with pytest.raises(StoreDown, match="other bytes"):
            await store.put("a/b", Body.of(bytes(1000)))
        assert server.held() == {}
        server.keeps = None
        await store.put("a/b", Body.of(bytes(1000)))
        assert server.held() == {"/calls/a/b": bytes(1000)}


async def test_a_server_that_ignores_the_lock_is_found_out():
    async with rude(changes={"object_lock": LOCK}) as (server, store):
        server.locks, server.knows_retention = set(), False
        for _ in range(2):
            with pytest.raises(StoreRefused, match="not locked"):
                await store.put("a/b", Body.of(b"x"))


async def test_a_server_that_verifies_is_not_read_back():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        server.requests.clear()
        await store.put("a/c", Body.of(b"x"))
        assert [method for method, _ in server.requests] == ["PUT"]


@pytest.mark.parametrize("conditional", ["ignored", "refused"])
async def test_a_server_without_conditions_is_looked_at_before_each_put(conditional):
    async with rude(conditional=conditional) as (server, store):
        await store.put("a/b", Body.of(b"x"))
        await store.put("a/b", Body.of(b"x"))
        with pytest.raises(StoreConflict):
            await store.put("a/b", Body.of(b"y"))
        assert server.held() == {"/calls/a/b": b"x"}


async def test_a_server_that_is_overloaded_is_down_and_then_up():
    async with rude() as (server, store):
        server.next = [503]
        with pytest.raises(StoreDown, match="503"):
            await store.put("a/b", Body.of(b"x"))
        await store.put("a/b", Body.of(b"x"))
        for status in (500, 429):
            server.next = [status]
            with pytest.raises(StoreDown, match=str(status)):
                await store.put("a/c", Body.of(b"x"))
        assert list(server.held()) == ["/calls/a/b"]


async def test_credentials_do_not_follow_a_redirect():
    elsewhere = RudeS3()
    async with rude() as (server, store), elsewhere.serving():
        server.redirects_to = elsewhere.url
        for use in (store.put("a/b", Body.of(b"x")), store.stat("a/b"), read(store, "a/b"), keys(store, "")):
            with pytest.raises(StoreRefused, match=elsewhere.url.rstrip("/")):
                await use
        assert elsewhere.requests == []


@pytest.mark.timeout(20)
async def test_a_server_that_hangs_is_down_after_the_timeout():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        server.hangs = True
        for use in (store.put("a/c", Body.of(b"x")), store.stat("a/b"), read(store, "a/b"), keys(store, "")):
            started = time.monotonic()
            with pytest.raises(StoreDown, match="no progress"):
                await use
            assert time.monotonic() - started < 5


@pytest.mark.timeout(20)
async def test_a_server_that_takes_no_bytes_is_down_after_the_timeout():
    """aiohttp's read time-out does not run while it still writes."""
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        server.never_reads = True
        with pytest.raises(StoreDown):
            await store.put("a/c", Body.of(bytes(30_000_000)))


async def test_connections_cut_in_the_midst_are_down():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(bytes(100_000)))
        server.cuts_downloads = True
        with pytest.raises(StoreDown, match="cut off"):
            await read(store, "a/b")
        server.cuts_uploads = True
        with pytest.raises(StoreDown):
            await store.put("a/c", Body.of(bytes(100_000)))
        assert list(server.held()) == ["/calls/a/b"]


@pytest.mark.parametrize(
    ("says", "expected", "word"),
    [
        (error(400, "BadDigest"), ObjectFailed, "damaged"),
        (error(403, "RequestTimeTooSkewed"), StoreRefused, "clock"),
        (error(403, "SignatureDoesNotMatch"), StoreRefused, "secret_access_key"),
        (error(403, "AccessDenied", "no way, key-id"), StoreRefused, "allow the account"),
        (error(404, "NoSuchBucket"), StoreRefused, "create the bucket"),
        (error(503, "SlowDown"), StoreDown, "SlowDown"),
        (error(507, "XMinioStorageFull"), StoreFull, "Full"),
        (error(403, "QuotaExceeded"), StoreFull, "Quota"),
        (error(507, "Odd"), StoreFull, "Odd"),
        (error(413, ""), ObjectFailed, "413"),
        (error(400, "EntityTooLarge"), ObjectFailed, "TooLarge"),
        (error(400, "KeyTooLongError"), ObjectFailed, "KeyTooLong"),
        (error(400, "InvalidStorageClass"), StoreRefused, "storage_class"),
        (error(400, "Mystery", "a&lt;b"), StoreRefused, "Mystery"),
    ],
    ids=lambda value: getattr(value, "text", None) and value.text[32:60],
)
async def test_what_the_server_says_becomes_what_to_do(says, expected, word):
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        server.says = says
        with pytest.raises(expected, match=word) as caught:
            await store.put("a/c", Body.of(b"x"))
        assert "key-id" not in str(caught.value)
        assert "secret-key" not in str(caught.value)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;">]>'
    "<ListBucketResult><Contents><Key>&lol2;</Key><Size>1</Size></Contents></ListBucketResult>"
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "<html>",
        "",
        "not XML",
        "<ListBucketResult><Contents><Key>a</Key><Size>many</Size></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    ],
    ids=range(6),
)
async def test_a_listing_that_is_hostile_or_broken_is_down(text):
    from aiohttp import web

    async with rude() as (server, store):
        server.says = web.Response(text=text, content_type="application/xml")
        with pytest.raises(StoreDown):
            await keys(store, "")


async def test_missing_is_told_from_refused():
    async with rude() as (server, store):
        with pytest.raises(StoreMissing):
            await read(store, "a/b")
        server.says = error(404, "NoSuchBucket")
        with pytest.raises(StoreRefused):
            await read(store, "a/b")


async def test_an_object_in_a_cold_class_is_named_and_is_of_no_concern_to_others():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        answer = server.answer

        async def cold(request, path, body):
            if request.method == "GET" and path.endswith("/a/b"):
                return error(403, "InvalidObjectState")
            return await answer(request, path, body)

        server.answer = cold
        with pytest.raises(ObjectFailed, match="restore it first"):
            await read(store, "a/b")
        await store.alive()


async def test_what_fails_for_a_canary_is_the_store_s():
    async with rude() as (server, store):
        await store.alive()
        server.says = error(413, "EntityTooLarge")
        with pytest.raises(StoreRefused):
            await store.alive()
        assert server.held() == {}


async def test_bytes_that_are_refused_twice_are_of_no_concern_to_others():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        answer, left = server.answer, [2]

        async def damaging(request, path, body):
            if request.method == "PUT" and path.endswith("/a/c") and left[0]:
                left[0] -= 1
                return error(400, "BadDigest")
            return await answer(request, path, body)

        server.answer = damaging
        with pytest.raises(ObjectFailed, match="refused twice"):
            await store.put("a/c", Body.of(b"y"))
        left[0] = 1
        await store.put("a/c", Body.of(b"y"))
        assert server.held() == {"/calls/a/b": b"x", "/calls/a/c": b"y"}


# What check finds out, and what becomes of it


async def all_of_it(server, store, said):
    """A store proved like that keeps what it is given, and nothing else."""
    assert server.objects == {}, said
    await store.put("a/b", Body.of(b"x"))
    await store.put("a/b", Body.of(b"x"))
    with pytest.raises(StoreConflict):
        await store.put("a/b", Body.of(b"y"))
    assert await read(store, "a/b") == b"x"
    await store.alive()
    assert server.objects == {"/calls/a/b": b"x"}


@pytest.mark.parametrize(
    "answer",
    [
        (400, "InvalidArgument"), (400, "InvalidRequest"), (400, ""), (501, "NotImplemented"), (403, "AccessDenied"),
        (403, "SignatureDoesNotMatch"), (500, "InternalError"), (405, "MethodNotAllowed"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("conditional", ["yes", "ignored", "refused"])
async def test_where_a_header_with_the_hash_is_refused_it_is_left_out_and_the_bytes_are_read_back(answer, conditional):
    async with rude(conditional=conditional) as (server, store):
        server.refuses["x-amz-checksum"] = answer
        said = await store.check()
        assert "reading back" in said
        assert ("never overwrites" in said) == (conditional == "yes")
        await all_of_it(server, store, said)
        server.requests.clear()
        await store.put("a/c", Body.of(b"z"))
        assert ("GET", "/calls/a/c") in server.requests


@pytest.mark.parametrize("answer", [(400, "InvalidArgument"), (501, "NotImplemented"), (403, "AccessDenied")], ids=str)
async def test_a_condition_that_is_refused_is_left_out(answer):
    async with rude() as (server, store):
        server.refuses["if-none-match"] = answer
        said = await store.check()
        assert "verifies SHA-256" in said
        assert "looking before each put" in said
        await all_of_it(server, store, said)


@pytest.mark.parametrize(
    "answer",
    [(400, "BadDigest"), (400, "Odd"), (403, "SignatureDoesNotMatch"), (403, ""), (422, ""), (500, "Odd"), (502, "")],
    ids=str,
)
async def test_however_it_refuses_a_wrong_hash_it_refuses_it(answer):
    async with rude() as (server, store):
        server.on_damage = answer
        said = await store.check()
        assert "verifies SHA-256" in said
        await all_of_it(server, store, said)


@pytest.mark.parametrize("how", ["503", "cut"])
async def test_a_server_that_is_down_for_a_moment_is_not_taken_for_one_that_verifies(how):
    async with rude(verifies=False) as (server, store):
        answer, left = server.answer, [2 if how == "cut" else 1]

        async def sometimes(request, path, body):
            if body == b"archiver canary, sent" and left[0]:
                left[0] -= 1
                if how == "503":
                    return error(503, "SlowDown")
                request.transport.abort()
            return await answer(request, path, body)

        server.answer = sometimes
        assert "reading back" in await store.check()


@pytest.mark.parametrize(
    "answer", [(403, "AccessDenied"), (409, "ObjectAlreadyExists"), (400, "InvalidRequest")], ids=str
)
async def test_however_it_refuses_what_is_there_already_the_key_is_looked_at(answer):
    async with rude() as (server, store):
        server.on_taken = answer
        said = await store.check()
        assert "never overwrites" in said
        await all_of_it(server, store, said)


@pytest.mark.parametrize(
    "answer", [(500, "InternalError"), (404, "NoSuchKey"), (409, ""), (400, "Odd"), (405, "MethodNotAllowed")]
)
async def test_a_key_below_the_name_of_an_object_is_of_no_concern_to_others(answer):
    async with rude(changes={"multipart_threshold": "5MiB"}) as (server, store):
        await store.put("a/b", Body.of(b"an object"))
        server.on_object_above = answer
        for key in ("a/b/c", "a/b/c/d/e"):
            with pytest.raises(ObjectFailed, match="an object lies where the folder a/b should be"):
                await store.put(key, Body.of(b"x"))
        with pytest.raises(ObjectFailed, match="an object lies where the folder a/b should be"):
            await store.put("a/b/long", Body.of(bytes((5 << 20) + 1)))
        await store.alive()
        await store.put("a/c/d", Body.of(b"y"))
        assert set(server.held()) == {"/calls/a/b", "/calls/a/c/d"}


@pytest.mark.parametrize("answer", [(500, "InternalError"), (404, "NoSuchBucket"), (409, ""), (400, "Odd")])
async def test_what_concerns_the_bucket_is_not_blamed_on_an_object_above(answer):
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"an object"))
        server.refuses = {"if-none-match": answer}
        with pytest.raises((StoreDown, StoreRefused), match=answer[1] or "409"):
            await store.put("a/c/d/e", Body.of(b"x"))


async def test_check_puts_with_the_class_that_a_recording_gets():
    async with rude(changes={"storage_class": "NO_SUCH"}) as (server, store):
        for use in (store.check, store.alive):
            with pytest.raises(StoreRefused, match=r"InvalidStorageClass.*correct storage_class"):
                await use()
        assert server.objects == {}
    async with rude(changes={"storage_class": "STANDARD_IA"}) as (server, store):
        said = await store.check()
        assert "storage class STANDARD_IA is taken" in said
        assert "WARNING" not in said
        await all_of_it(server, store, said)


async def test_a_class_that_can_not_be_read_at_once_is_warned_of():
    async with rude(changes={"storage_class": "GLACIER"}) as (_, store):
        assert "WARNING: what lies in that class can't be read until it is restored" in await store.check()
        await store.alive()
        await store.put("a/b", Body.of(b"x"))
        with pytest.raises(ObjectFailed, match="restore it first"):
            await read(store, "a/b")
        # What archiver must read again itself never goes there.
        for key in (f"{folder}hq/1.jsonl" for folder in DESCRIBING):
            await store.put(key, Body.of(b"{}"))
            assert await read(store, key) == b"{}"


async def test_a_cold_class_where_nothing_verifies_what_lies_there_is_refused():
    async with rude(verifies=False, changes={"storage_class": "GLACIER"}) as (server, store):
        with pytest.raises(StoreRefused, match="take another class"):
            await store.check()
        assert server.objects == {}


async def test_what_is_locked_carries_its_md5_and_check_says_where_it_must():
    lock = {"object_lock": LOCK, "multipart_threshold": "5MiB", "part_size": "5MiB", "timeout": "20s"}
    async with rude(changes=lock) as (server, store):
        server.wants_md5 = True
        assert "object lock on, COMPLIANCE 1 days" in await store.check()
        await store.put("a/b", Body.of(b"x"))
        server.about["/calls/a/b"].clear()
        await store.lock("a/b", datetime.now(UTC))
        assert await store.lock_problem("a/b", datetime.now(UTC)) is None
        await store.put("a/c", Body.of(bytes(6 << 20)))
        sent = [headers for method, path, headers in server.headers if method == "PUT" and "partNumber" in path]
        assert all("Content-MD5" in headers for headers in sent)


async def test_the_shortest_lock_is_tried_so_that_little_stays():
    async with rude(changes={"object_lock": {"mode": "GOVERNANCE", "days": 700}}) as (server, store):
        await store.check()
        ends = [about["x-amz-object-lock-retain-until-date"] for about in server.about.values() if len(about) > 1]
        assert ends
        assert all(datetime.fromisoformat(end) < datetime.now(UTC) + timedelta(minutes=2) for end in ends)
        # Where a policy wants more, the whole of it is tried.
        server.shortest_lock = timedelta(days=365)
        assert "object lock on" in await store.check()
        await store.alive()
        server.shortest_lock = timedelta(days=800)
        with pytest.raises(StoreRefused, match="AccessDenied"):
            await store.check()


@pytest.mark.parametrize("drops", ["whole", "parts"])
async def test_a_lock_that_is_dropped_on_the_way_is_set_afterwards(drops):
    lock = {"object_lock": LOCK, "multipart_threshold": "5MiB", "part_size": "5MiB", "timeout": "20s"}
    async with rude(changes=lock) as (server, store):
        server.locks.discard(drops)
        said = await store.check()
        assert ("by a second request" in said) == (drops == "whole")
        for n in range(2):
            await store.put(f"a/short{n}.wav", Body.of(b"x"))
            await store.put(f"a/long{n}.wav", Body.of(bytes(6 << 20)))
        for path in server.held():
            assert server.about[path]["x-amz-object-lock-mode"] == "COMPLIANCE", path
        # What another left unlocked is locked when it is put again.
        server.about["/calls/a/short0.wav"].clear()
        await store.put("a/short0.wav", Body.of(b"x"))
        assert server.about["/calls/a/short0.wav"]["x-amz-object-lock-mode"] == "COMPLIANCE"


async def test_an_upload_in_parts_that_can_not_be_locked_is_an_error_that_names_it():
    lock = {"object_lock": LOCK, "multipart_threshold": "5MiB", "part_size": "5MiB", "timeout": "20s"}
    async with rude(changes=lock) as (server, store):
        server.locks.discard("parts")
        await store.put("a/b", Body.of(b"x"))
        server.refuses["content-md5"] = (403, "AccessDenied")
        for _ in range(2):
            with pytest.raises(StoreError, match=r"a/long\.wav"):
                await store.put("a/long.wav", Body.of(bytes(6 << 20)))
        with pytest.raises(StoreRefused):
            await store.check()


async def test_check_tries_uploads_in_parts():
    async with rude(changes={"multipart_threshold": "5MiB", "timeout": "20s"}) as (server, store):
        server.has_parts = False
        said = await store.check()
        assert "WARNING: uploads in parts fail" in said
        assert "multipart_threshold" in said
        await all_of_it(server, store, said)
    async with rude() as (server, store):
        server.has_parts = False
        assert "did not try uploads in parts" in await store.check()
    async with rude(changes={"multipart_threshold": "5MiB", "timeout": "20s"}) as (server, store):
        assert "uploads in parts work" in await store.check()
        sent = [headers for method, path, headers in server.headers if method == "PUT" and "partNumber" in path]
        assert [int(headers["Content-Length"]) > 0 for headers in sent] == [True, True]
        assert server.objects == {}
        assert server.uploads == {}


@pytest.mark.parametrize(
    "named",
    [
        lambda path: path.replace("%253A", ":"),
        lambda path: path.replace("%257E", "~").replace("~", "_"),
        lambda path: path.replace("%2520", "+"),
        lambda path: unquote(path),
    ],
    ids=["colon", "tilde", "space", "twice"],
)
async def test_a_server_that_mishandles_names_like_those_of_recordings_fails_the_check(named):
    async with rude() as (server, store):
        server.named = named
        with pytest.raises(StoreRefused, match="names like those of recordings"):
            await store.check()
        await store.alive()


async def test_a_server_that_takes_no_long_names_is_warned_of_and_used():
    async with rude() as (server, store):
        answer = server.answer

        async def short(request, path, body):
            if len(path.rpartition("/")[2]) > 150:
                return error(400, "KeyTooLongError")
            return await answer(request, path, body)

        server.answer = short
        said = await store.check()
        assert "no names of 167 letters" in said
        await all_of_it(server, store, said)


async def test_a_bucket_in_another_region_is_named():
    async with rude() as (server, store):
        server.says = error(301, "PermanentRedirect")
        with pytest.raises(StoreRefused, match="region"):
            await store.put("a/b", Body.of(b"x"))


async def test_in_a_bucket_with_versions_nothing_stays_of_a_canary(seaweed):
    client = a_client(seaweed)
    name = seaweed.make_bucket(f"versions-{secrets.token_hex(4)}")
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    store = a_store(seaweed, bucket=name)
    await store.check()
    await store.alive()
    left = client.list_object_versions(Bucket=name)
    client.close()
    await store.close()
    assert (left.get("Versions", []), left.get("DeleteMarkers", [])) == ([], [])


async def test_a_lock_that_a_server_cuts_short_is_found_though_the_canary_s_was_short_enough():
    async with rude(changes={"object_lock": {"mode": "COMPLIANCE", "days": 700}}) as (server, store):
        kept = server.told

        def cut(request, how):
            about = kept(request, how)
            if "x-amz-object-lock-mode" in about:
                about["x-amz-object-lock-retain-until-date"] = (
                    f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
                )
            return about

        server.told = cut
        await store.check()
        await store.put("a/b", Body.of(b"x"))
        assert await store.lock_problem("a/b", datetime.now(UTC)) is None
