"""boto3 as the S3 store's translator: what it asks, what it may not do, and what is left when it is interrupted."""

import asyncio
import gc
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from archiver.errors import ObjectFailed, StoreDown, StoreError, StoreRefused
from archiver.model import Body
from archiver.stores import s3_boto
from archiver.stores.s3 import S3Options, S3Store
from archiver.stores.s3_problems import Problem
from archiver.testing.stores import keys
from tests.certificates import a_house, presenting
from tests.proxy import ForwardProxy
from tests.stores.rude import RudeS3, document, error

LOCK = {"object_lock": {"mode": "COMPLIANCE", "days": 1}}
LONG = Body.of(bytes((5 << 20) + 1))

#: What boto3 has to do with, each as a request or more.
CALLS = {
    "list": lambda store: keys(store, ""),
    "delete": lambda store: store.delete("a/b"),
    "lock": lambda store: store.lock("a/b", datetime.now(UTC)),
    "bucket": lambda store: store.check_lock(),
    "parts": lambda store: store.put("a/long", LONG),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def a_store(server, **changes):
    options = {
        "kind": "s3",
        "bucket": "calls",
        "endpoint_url": server.url,
        "access_key_id": "key-id",
        "secret_access_key": "secret-key",
        "timeout": "20s",
        "multipart_threshold": "5MiB",
        "part_size": "5MiB",
    }
    return S3Store("main", S3Options(**(options | changes)))


@asynccontextmanager
async def rude(**changes):
    """A server, and a store that knows it already and holds ``a/b``."""
    server = RudeS3()
    async with server.serving():
        store = a_store(server, **changes)
        await store.put("a/b", Body.of(b"x"))
        server.requests.clear()
        server.headers.clear()
        yield server, store
        await store.close()


@pytest.fixture(autouse=True)
def _nothing_goes_past_our_client(monkeypatch):
    """boto3's own HTTP client sends nothing, in any of these tests."""

    def refuse(_, request):
        raise AssertionError(f"boto3 itself asked for {request.url}")

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", refuse)


# Once, to one address, with nothing added


@every_call
@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_nothing_is_asked_again_behind_our_back(call, status):
    async with rude(**LOCK) as (server, store):
        answer, asked = server.answer, []

        async def busy(request, path, body):
            if request.method == "HEAD":
                return await answer(request, path, body)
            asked.append(request.path_qs)
            return web.Response(status=status)

        server.answer = busy
        with pytest.raises(StoreDown):
            await call(store)
        # A listing is tried folder by folder as well.
        assert len(asked) == len(set(asked))


@every_call
@pytest.mark.parametrize("how", ["307 elsewhere", "301 of a region", "400 of a region", "301 elsewhere"])
async def test_no_credentials_go_to_the_host_that_an_answer_names(call, how):
    """boto3 by itself follows a bucket to the region that an answer names."""
    elsewhere = RudeS3()
    async with rude(**LOCK) as (server, store), elsewhere.serving():
        status = int(how[:3])

        async def moved(request, path, body):
            told = error(status, "AuthorizationHeaderMalformed" if status == 400 else "PermanentRedirect")
            if "elsewhere" in how:
                told.headers["Location"] = f"{elsewhere.url}calls"
            told.headers["x-amz-bucket-region"] = "eu-west-3"
            text = f"<Region>eu-west-3</Region><Endpoint>{elsewhere.url}</Endpoint></Error>"
            told.text = told.text.replace("</Error>", text)
            return told

        server.answer = moved
        with pytest.raises(StoreRefused, match="eu-west-3" if "region" in how else elsewhere.url.rstrip("/")) as caught:
            await call(store)
        assert elsewhere.requests == []
        assert "secret-key" not in str(caught.value)
        # Nor does a later request go elsewhere, or with another region.
        asked = len(server.authorizations)
        with pytest.raises(StoreRefused):
            await call(store)
        assert len(server.authorizations) > asked
        assert all("/us-east-1/s3/" in told for told in server.authorizations)


@every_call
async def test_boto3_adds_no_header_that_other_servers_refuse(call):
    async with rude(**LOCK) as (server, store):
        await call(store)
        assert server.headers
        for method, path, headers in server.headers:
            odd = [name for name in headers if name.lower().startswith(("amz-sdk", "x-amz-sdk", "x-amz-checksum-crc"))]
            assert odd == [], (method, path)
            assert headers["User-Agent"].startswith("archiver/")
            assert "boto" not in headers["User-Agent"].lower()
            assert "Expect" not in headers
            # Each is signed, and the signature covers the body.
            assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=key-id/")
            assert len(headers["X-Amz-Content-SHA256"]) == 64


async def test_a_server_without_checksums_is_not_asked_for_one_by_boto3():
    async with rude(**LOCK) as (server, store):
        server.refuses["x-amz-checksum"] = (400, "InvalidArgument")
        store.traits = None
        for call in CALLS.values():
            await call(store)


async def test_the_account_s_own_settings_for_boto3_change_nothing(monkeypatch, tmp_path):
    (tmp_path / "config").write_text(
        "[default]\nregion = eu-north-1\nendpoint_url = http://127.0.0.1:9\nretry_mode = adaptive\nmax_attempts = 9\n"
        "s3 =\n  addressing_style = virtual\n  use_accelerate_endpoint = true\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "of-nobody")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    monkeypatch.setenv("AWS_DEFAULTS_MODE", "mobile")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    monkeypatch.setenv("AWS_AUTH_SCHEME_PREFERENCE", "sigv4a")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none"))
    s3_boto._made.cache_clear()
    try:
        async with rude(**LOCK) as (server, store):
            for call in CALLS.values():
                await call(store)
            assert all("eu-north-1" not in told for told in server.authorizations)
            assert {path.split("/")[1] for _, path in server.requests} == {"calls"}
    finally:
        s3_boto._made.cache_clear()


@pytest.mark.parametrize("addressing", ["path", "virtual"])
async def test_both_ways_of_asking_use_one_address(addressing, monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *how, **more: look_up(str(host).removeprefix("calls."), *how, **more)
    )
    async with rude() as (server, _):
        port = server.url.rpartition(":")[2].rstrip("/")
        endpoint = server.url if addressing == "path" else f"http://localhost:{port}"
        store = a_store(server, addressing=addressing, endpoint_url=endpoint, proxy=None)
        for use in (store.stat("x/y"), store.delete("x/y"), keys(store, "x")):
            await use
        await store.close()
        asked = [path for _, path, _ in server.headers]
        start = "/calls/" if addressing == "path" else "/"
        assert [path.partition("?")[0] for path in asked] == [f"{start}x/y", f"{start}x/y", start]
        hosts = {headers["Host"] for _, _, headers in server.headers}
        assert hosts == {f"127.0.0.1:{port}" if addressing == "path" else f"calls.localhost:{port}"}


# The way there is the same


async def test_boto3_s_requests_go_through_the_proxy():
    async with RudeS3().serving() as server, ForwardProxy("user:geheim").serving() as proxy:
        store = a_store(server, proxy=proxy.url.replace("//", "//user:geheim@"))
        assert f"through the proxy 127.0.0.1:{proxy.port}" in await store.check()
        await store.close()
        for call, method in ((CALLS["delete"], "DELETE"), (CALLS["list"], "GET")):
            # A new connection: the proxy tells of a connection's first request.
            proxy.asked.clear()
            await call(store)
            assert [line.split(" ")[0] for line in proxy.asked] == [method]
            await store.close()
        proxy.login = "user:other"
        with pytest.raises(StoreRefused, match="407") as caught:
            await store.delete("a/b")
        assert "geheim" not in str(caught.value)
        await store.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return a_house(tmp_path_factory.mktemp("house"))


async def test_boto3_s_requests_use_ca_file_and_our_own_certificate(house):
    context = presenting(house / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(house / "root.pem")
    server = RudeS3()
    runner = web.ServerRunner(web.Server(server), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        store = a_store(server, ca_file=house / "root.pem", client_cert=house / "server.pem")
        for call in (CALLS["list"], CALLS["delete"], CALLS["parts"]):
            await call(store)
        await store.close()
        store = a_store(server, ca_file=house / "alone.pem", client_cert=house / "server.pem")
        for call in (CALLS["list"], CALLS["delete"]):
            with pytest.raises(StoreRefused, match="holds another issuer"):
                await call(store)
        await store.close()
        # asyncio's server hangs up on who shows none.
        store, before = a_store(server, ca_file=house / "root.pem"), len(server.requests)
        with pytest.raises(StoreError):
            await store.delete("a/b")
        await store.close()
        assert len(server.requests) == before
    finally:
        await runner.cleanup()


@every_call
@pytest.mark.timeout(60)
async def test_a_server_that_hangs_is_down_after_the_timeout_for_boto3_too(call):
    async with rude(**LOCK, timeout="300ms") as (server, store):
        server.hangs = True
        with pytest.raises(StoreDown, match="no progress"):
            await call(store)


# Odd answers


AT_ITS_END = "</ListBucketResult>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "<html><body>log in here</body></html>",
        "<?xml version='1.0'?><Nothing/>",
        "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>elsewhere</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>a",
        "<ListBucketResult><CommonPrefixes/><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<!DOCTYPE a [<!ENTITY b 'a'>]><ListBucketResult><Contents><Key>&b;</Key><Size>1</Size></Contents>"
        + AT_ITS_END,
        "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/hostname'>]><ListBucketResult>&b;</ListBucketResult>",
        "<?xml version='1.0' encoding='UTF-16'?><ListBucketResult/>".encode("utf-16"),
    ],
    ids=range(13),
)
async def test_what_is_no_listing_is_never_an_empty_bucket(text):
    async with rude() as (server, store):
        body = text if isinstance(text, bytes) else text.encode()
        server.says = web.Response(body=body, content_type="application/xml")
        with pytest.raises(StoreDown):
            await keys(store, "a")


@pytest.mark.parametrize("moment", ["yesterday", "", "99999999999999999999", "2024-13-45T99:99:99Z"])
async def test_a_listing_is_read_whatever_its_server_makes_of_moments(moment):
    async with rude() as (server, store):
        entry = f"<Contents><Key>a/b</Key><LastModified>{moment}</LastModified><Size>1</Size></Contents>"
        server.says = document(f"<ListBucketResult>{entry}</ListBucketResult>")
        assert await keys(store, "a") == ["a/b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<Error><Code>InternalError</Code><Message>try again</Message></Error>", StoreDown),
        ("<Error><Code>AccessDenied</Code></Error>", StoreRefused),
        ("", StoreDown),
        ("<html>", StoreDown),
    ],
    ids=["passing", "refused", "nothing", "a page"],
)
async def test_an_upload_whose_end_fails_with_a_status_of_200_did_not_happen(text, expected):
    async with rude() as (server, store):
        parts = server.parts

        def end(request, path, body):
            if request.method == "POST" and "uploadId" in request.query:
                return document(text)
            return parts(request, path, body)

        server.parts = end
        with pytest.raises(expected):
            await store.put("a/long", LONG)
        assert [method for method, path, _ in server.headers if method == "POST" and "uploadId" in path] == ["POST"]
        assert server.uploads == {}
        assert list(server.held()) == ["/calls/a/b"]


async def test_an_upload_that_another_finished_first_is_compared_whatever_the_status():
    async with rude() as (server, store):
        parts = server.parts

        def taken(request, path, body):
            if request.method == "POST" and "uploadId" in request.query:
                server.put(path, LONG.read(), {})
                return document("<Error><Code>PreconditionFailed</Code></Error>")
            return parts(request, path, body)

        server.parts = taken
        assert (await store.put("a/long", LONG)).sha256 == LONG.sha256
        assert server.uploads == {}


async def test_what_boto3_will_not_ask_for_concerns_that_object():
    async with rude() as (server, store):
        with pytest.raises(ObjectFailed, match="boto3"):
            await store.delete("")
        assert server.requests == []


async def test_secrets_that_a_server_repeats_are_not_told():
    async with rude() as (server, store):
        server.says = error(403, "Odd", "the key key-id may not")
        with pytest.raises(StoreRefused, match=r"the key \*\*\* may not") as caught:
            await store.delete("a/b")
        assert "key-id" not in repr(caught.value.__cause__) + repr(caught.value.__context__)


# Threads, and what is left of a call that is interrupted


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("boto3")]


async def ended(condition):
    for _ in range(200):
        if condition():
            return True
        await asyncio.sleep(0.05)
    return False


async def test_many_calls_at_once_share_a_few_threads():
    async with rude() as (_, store):
        listings = await asyncio.gather(*(keys(store, "a") for _ in range(60)))
        assert listings == [["a/b"]] * 60
        assert 1 <= len(threads()) <= 4
        await store.close()
        assert await ended(lambda: not threads())


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if name != "parts"])
async def test_a_call_that_is_cancelled_ends_its_request_and_frees_its_thread(call):
    async with rude(**LOCK, timeout="10m") as (server, store):
        came = asyncio.Event()

        async def silent(request, path, body):
            came.set()
            await asyncio.sleep(30)

        server.answer = silent
        # More than there are threads.
        for _ in range(6):
            came.clear()
            asked = asyncio.ensure_future(call(store))
            await asyncio.wait_for(came.wait(), 20)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            assert asked.cancelled()
        del server.answer
        async with asyncio.timeout(20):
            await call(store)
        await store.close()
        assert await ended(lambda: not threads())


@pytest.mark.parametrize("moment", ["begin", "part", "end"])
async def test_an_upload_in_parts_that_is_cancelled_leaves_no_parts(moment):
    async with rude() as (server, store):
        parts, came, go_on = server.parts, asyncio.Event(), asyncio.Event()

        async def held(request, path, body):
            query = request.query
            at = "begin" if "uploads" in query else "part" if request.method == "PUT" else "end"
            if ("uploads" in query or "uploadId" in query) and request.method != "DELETE" and at == moment:
                if moment != "end":
                    told = parts(request, path, body)
                came.set()
                await go_on.wait()
                return told if moment != "end" else web.Response(status=500)
            return await type(server).answer(server, request, path, body)

        server.answer = held
        put = asyncio.ensure_future(store.put("a/long", LONG))
        await asyncio.wait_for(came.wait(), 20)
        assert len(server.uploads) == 1
        put.cancel()
        await asyncio.sleep(0.1)
        go_on.set()
        await asyncio.gather(put, return_exceptions=True)
        assert put.cancelled()
        assert server.uploads == {}
        assert list(server.held()) == ["/calls/a/b"]


async def test_a_thousand_cancelled_calls_leave_neither_threads_nor_descriptors():
    async with rude() as (_, store):
        await keys(store, "a")

        async def once(n):
            async with asyncio.timeout(0.0005 * (n % 20)):
                await store.delete("a/none")

        async def burst():
            await asyncio.gather(*(once(n) for n in range(100)), return_exceptions=True)
            await store.delete("a/none")

        await burst()
        gc.collect()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(10):
            await burst()
        gc.collect()
        assert len(threads()) <= 4
        # Some connections may be kept for the next.
        assert await ended(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 20)
        assert await keys(store, "a") == ["a/b"]


async def test_a_store_that_was_closed_can_be_used_again():
    async with rude() as (_, store):
        assert await keys(store, "a") == ["a/b"]
        await store.close()
        assert await keys(store, "a") == ["a/b"]


def test_a_program_that_ends_in_the_midst_of_a_call_ends():
    """asyncio.run cancels what is left; Python waits for every thread before it ends."""
    program = """
import asyncio
from archiver.stores.s3 import S3Options, S3Store

async def main():
    asked = asyncio.Event()

    async def silent(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        asked.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    store = S3Store("main", S3Options(kind="s3", bucket="calls", endpoint_url=url, timeout="10m", **keys))
    task = asyncio.ensure_future(store.delete("a/b"))
    await asked.wait()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_outside_of_a_call_boto3_can_send_nothing():
    with pytest.raises(LookupError):
        s3_boto._client().list_objects_v2(Bucket="bucket")
    with pytest.raises(StoreDown, match=r"boto3 would ask https://elsewhere"):
        s3_boto._readable(type("Request", (), {"url": "https://elsewhere.example/bucket", "body": b""}))


def test_a_problem_is_one_line_whatever_the_server_wrote():
    told = Problem(400, "a\nb" * 100, "c\x1b[31m\n" * 100)
    assert "\n" not in told.code + told.message
    assert len(told.message) <= 200
