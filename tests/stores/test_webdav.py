"""The WebDAV store: the contract against Apache mod_dav and SeaweedFS, and servers without manners."""

import asyncio
import contextlib
import secrets
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from urllib.parse import quote, unquote, urlparse

import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import ValidationError

from archiver.errors import ObjectFailed, StoreConflict, StoreDown, StoreFull, StoreMissing, StoreRefused
from archiver.model import Body
from archiver.stores.names import is_temporary
from archiver.stores.webdav import WebDavOptions, WebDavStore
from archiver.testing.stores import StoreContract, keys, read
from tests import servers
from tests.stores import canaries
from tests.stores.rude import RudeDav


def a_store(**options) -> WebDavStore:
    return WebDavStore("dav", WebDavOptions(**({"kind": "webdav", "timeout": "20s"} | options)))


def an_apache_store(server: servers.Apache, **changes) -> WebDavStore:
    return a_store(**({"url": server.url, "username": server.username, "password": server.password} | changes))


class WebDavContract(StoreContract):
    #: RFC 4918 does not ask MOVE for atomicity, and neither server gives it.
    atomic = False

    @asynccontextmanager
    async def unreachable(self):
        (port,) = servers.free_ports(1)
        store = a_store(url=f"http://127.0.0.1:{port}/", timeout="2s")
        yield store
        await store.close()


class TestApache(WebDavContract):
    @pytest_asyncio.fixture
    async def store(self, apache):
        store = an_apache_store(apache)
        yield store
        await store.close()

    @pytest.fixture(autouse=True)
    def _server(self, apache):
        self.apache = apache

    @asynccontextmanager
    async def refusing(self):
        store = an_apache_store(self.apache, password="wrong-but-still-secret")
        yield store, "wrong-but-still-secret"
        await store.close()

    files = ""

    async def leftovers(self, store, under):
        below = self.apache.files / self.files / under
        return [str(path) for path in below.rglob(".*") if is_temporary(path.name)]

    async def test_canaries_that_killed_processes_left_are_cleared(self, store):
        await canaries.left_by_killed_processes_are_cleared(store)


class TestApacheBelowAPathWithSizesOnly(TestApache):
    """A base URL with a path that needs encoding; nothing is read back but sizes."""

    files = "a base ü"

    @pytest_asyncio.fixture
    async def store(self, apache):
        base = an_apache_store(apache)
        await base._make("a base ü/")
        await base.close()
        store = an_apache_store(apache, url=f"{apache.url}a%20base%20%C3%BC", read_back=False)
        yield store
        await store.close()

    async def test_bytes_that_lack_the_announced_hash_are_refused(self):
        pytest.skip("read_back = false trusts the wire")

    async def test_a_long_body_that_lacks_the_announced_hash_is_refused(self):
        pytest.skip("read_back = false trusts the wire")


class TestSeaweed(WebDavContract):
    @pytest_asyncio.fixture
    async def store(self, seaweed):
        store = a_store(url=seaweed.webdav_url)
        yield store
        await store.close()

    async def test_what_lies_in_the_place_of_a_folder_is_of_no_concern_to_others(self):
        pytest.skip("SeaweedFS makes a folder of the file, whose bytes are gone; no key of ours asks for that")


@pytest_asyncio.fixture
async def store(apache):
    store = an_apache_store(apache)
    yield store
    await store.close()


async def test_a_second_put_does_not_write_again(store, apache):
    key = f"again/{secrets.token_hex(4)}"
    await store.put(key, Body.of(b"x"))
    before = (apache.files / key).stat()
    await store.put(key, Body.of(b"x"))
    assert (apache.files / key).stat().st_ino == before.st_ino


async def test_a_key_is_encoded_exactly_once(store, apache):
    await store.put("once/a%2Fb%25.wav", Body.of(b"x"))
    assert (apache.files / "once/a%2Fb%25.wav").read_bytes() == b"x"


async def test_a_folder_that_vanished_is_made_again(store, apache):
    await store.put("vanish/ed/a", Body.of(b"x"))
    (apache.files / "vanish/ed/a").unlink()
    (apache.files / "vanish/ed").rmdir()
    (apache.files / "vanish").rmdir()
    await store.put("vanish/ed/b", Body.of(b"y"))
    assert await keys(store, "vanish/") == ["vanish/ed/b"]


async def test_temporaries_are_not_listed(store, apache):
    await store.put("temporary/a", Body.of(b"x"))
    (apache.files / "temporary/.0123456789abcdef.tmp").write_bytes(b"half")
    assert await keys(store, "temporary/") == ["temporary/a"]


async def test_a_base_collection_that_is_missing_is_refused(apache):
    store = an_apache_store(apache, url=f"{apache.url}not/there/")
    with pytest.raises(StoreRefused, match="collection"):
        await store.put("a/b", Body.of(b"x"))
    with pytest.raises(StoreRefused):
        await store.check()
    await store.close()


async def test_a_server_that_comes_back_is_used_again(apache, store):
    await store.put("back/a", Body.of(b"before"))
    await asyncio.to_thread(apache.stop)
    with pytest.raises(StoreDown):
        await store.put("back/b", Body.of(b"meanwhile"))
    await asyncio.to_thread(apache.start)
    await store.put("back/b", Body.of(b"after"))
    assert await keys(store, "back/") == ["back/a", "back/b"]


async def test_a_killed_server_comes_back_with_what_it_had(apache, store):
    await store.put("killed/a", Body.of(b"before"))
    await asyncio.to_thread(apache.kill)
    with pytest.raises(StoreDown):
        await store.stat("killed/a")
    await asyncio.to_thread(apache.start)
    assert await read(store, "killed/a") == b"before"


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "dav.example.com"},
        {"url": "https://user:secret@dav.example.com/"},
        {"url": "https://dav.example.com/?x=1"},
        {"username": "alone"},
        {"username": "a:b", "password": "c"},
        {"passwort": "x"},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError) as caught:
        WebDavOptions(**({"kind": "webdav", "url": "https://dav.example.com/"} | wrong))
    assert "secret" not in str(caught.value)


# Servers without manners


@asynccontextmanager
async def rude(**changes):
    server = RudeDav()
    async with server.serving():
        store = a_store(**({"url": server.url, "username": "u", "password": "p", "timeout": "300ms"} | changes))
        yield server, store
        await store.close()


@pytest.mark.parametrize("read_back", [True, False])
async def test_a_server_that_keeps_fewer_bytes_is_found_out(read_back):
    async with rude(read_back=read_back) as (server, store):
        server.keeps = 100
        with pytest.raises(StoreDown, match="damaged"):
            await store.put("a/b", Body.of(bytes(1000)))
        assert server.objects == {}
        server.keeps = None
        await store.put("a/b", Body.of(bytes(1000)))
        assert server.objects == {"/a/b": bytes(1000)}


async def test_a_put_takes_no_more_requests_than_it_needs():
    async with rude() as (server, store):
        await store.stat("x")
        server.requests.clear()
        await store.put("a/b", Body.of(b"x"))
        assert [method for method, _ in server.requests] == ["MKCOL", "PUT", "GET", "MOVE"]
        server.requests.clear()
        await store.put("a/c", Body.of(b"x"))
        assert [method for method, _ in server.requests] == ["PUT", "GET", "MOVE"]


async def test_a_server_that_overwrites_in_spite_of_us_fails_the_check(monkeypatch):
    async with rude() as (server, store):
        answer = server.answer

        async def overwriting(request, path, body):
            if request.method == "MOVE":
                server.objects.pop("/" + request.headers["Destination"].split("/", 3)[3], None)
            return await answer(request, path, body)

        monkeypatch.setattr(server, "answer", overwriting)
        with pytest.raises(StoreRefused, match="Overwrite"):
            await store.check()
        assert server.objects == {}


async def test_a_server_that_is_overloaded_is_down_and_then_up():
    async with rude() as (server, store):
        await store.put("a/warm", Body.of(b"x"))
        for status in (500, 503, 507, 429):
            server.next = [status]
            with pytest.raises(StoreDown, match=str(status)):
                await store.put("a/b", Body.of(b"x"))
        await store.put("a/b", Body.of(b"x"))
        assert sorted(server.objects) == ["/a/b", "/a/warm"]


@pytest.mark.parametrize("status", [401, 403, 405, 400])
async def test_a_server_that_refuses_is_refused(status):
    async with rude() as (server, store):
        await store.put("a/warm", Body.of(b"x"))
        server.next = [status]
        with pytest.raises(StoreRefused, match=str(status)):
            await store.put("a/b", Body.of(b"x"))


@pytest.mark.parametrize(("status", "expected"), [(413, ObjectFailed), (414, ObjectFailed), (507, StoreFull)])
async def test_a_status_says_whom_it_concerns(status, expected):
    async with rude() as (server, store):
        await store.put("a/warm", Body.of(b"x"))
        server.next = [status]
        with pytest.raises(expected, match=str(status)):
            await store.put("a/b", Body.of(b"x"))
        await store.alive()
        # What fails for a canary is the store's.
        server.next = [413]
        with pytest.raises(StoreRefused):
            await store.alive()
        assert set(server.objects) == {"/a/warm"}


async def test_a_name_that_is_locked_for_a_moment_is_waited_for():
    async with rude() as (server, store):
        await store.put("a/warm", Body.of(b"x"))
        answer, locked = server.answer, [423, 423]

        async def sometimes(request, path, body):
            if request.method in {"MOVE", "MKCOL"} and locked:
                return type(await answer(request, "/none", b""))(status=locked.pop())
            return await answer(request, path, body)

        server.answer = sometimes
        await store.put("a/b", Body.of(b"x"))
        locked[:] = [423]
        await store.put("b/b", Body.of(b"x"))
        assert sorted(server.objects) == ["/a/b", "/a/warm", "/b/b"]


async def test_those_that_wait_for_a_locked_name_do_not_come_again_at_the_same_moment():
    """SeaweedFS locks a name for each MOVE: twenty that came again in step refused each other to the last."""
    async with rude() as (server, store):
        await store.put("a/warm", Body.of(b"x"))
        answer, came = server.answer, defaultdict(list)

        async def never(request, path, body):
            if request.method == "MOVE":
                came[path].append(time.monotonic())
                return type(await answer(request, "/none", b""))(status=423)
            return await answer(request, path, body)

        server.answer = never
        ended = await asyncio.gather(*(store.put("a/b", Body.of(b"x")) for _ in range(12)), return_exceptions=True)
        assert all(isinstance(error, StoreDown) for error in ended), ended
        assert len(came) == 12
        waited = [times[5] - times[4] for times in came.values()]
        assert max(waited) - min(waited) > 0.1


async def test_credentials_do_not_follow_a_redirect():
    elsewhere = RudeDav()
    async with rude() as (server, store), elsewhere.serving():
        server.redirects_to = elsewhere.url
        for use in (store.put("a/b", Body.of(b"x")), store.stat("a/b"), read(store, "a/b"), keys(store, "")):
            with pytest.raises(StoreRefused, match=elsewhere.url.rstrip("/")):
                await use
        assert elsewhere.requests == []
        # First it is asked how it wants to be told who we are.
        assert server.authorizations[0] is None
        assert set(server.authorizations[1:]) <= {"Basic dTpw", None}


@pytest.mark.timeout(20)
async def test_a_server_that_hangs_is_down_after_the_timeout():
    async with rude() as (server, store):
        server.hangs = True
        for use in (store.put("a/c", Body.of(b"x")), store.stat("a/b"), read(store, "a/b"), keys(store, "")):
            started = time.monotonic()
            with pytest.raises(StoreDown, match="no progress"):
                await use
            assert time.monotonic() - started < 5


async def test_connections_cut_in_the_midst_are_down():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(bytes(100_000)))
        server.cuts_downloads = True
        with pytest.raises(StoreDown, match="cut off"):
            await read(store, "a/b")
        server.cuts_downloads, server.cuts_uploads = False, True
        with pytest.raises(StoreDown):
            await store.put("a/c", Body.of(bytes(100_000)))
        assert list(server.objects) == ["/a/b"]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE x [<!ENTITY a "b">]><multistatus xmlns="DAV:"><response><href>/&a;</href></response></multistatus>',
        "<html>",
        "not XML",
        '<multistatus xmlns="DAV:"><response><href>/a</href></response></multistatus>',
    ],
    ids=range(4),
)
async def test_a_listing_that_is_hostile_or_broken_is_down(text):
    async with rude() as (server, store):
        server.multistatus = text
        with pytest.raises(StoreDown):
            await keys(store, "")
        with pytest.raises(StoreDown):
            await store.stat("a")


async def test_a_listing_cannot_lead_elsewhere():
    async with rude() as (server, store):
        entries = ("/", "/a", "/../b", "/a/b/c", "http://127.0.0.1:1/c", "/%2e%2e/", "//evil/d", "/x%2Fy")
        server.multistatus = (
            "<multistatus xmlns='DAV:'>"
            + "".join(
                f"<response><href>{href}</href><getcontentlength>1</getcontentlength></response>" for href in entries
            )
            + "</multistatus>"
        )
        assert await keys(store, "") == ["a", "c", "d"]
        assert {path for _, path in server.requests} == {"/"}


async def test_what_is_missing_is_missing():
    async with rude() as (_, store):
        with pytest.raises(StoreMissing):
            await read(store, "a/b")
        assert await store.stat("a/b") is None


async def test_another_who_took_the_name_first_is_compared(monkeypatch):
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"same"))
        await store.put("a/b", Body.of(b"same"))
        with pytest.raises(StoreConflict):
            await store.put("a/b", Body.of(b"diff"))
        assert server.objects == {"/a/b": b"same"}


async def all_of_it(server, store):
    """A store proved like that keeps what it is given, and nothing else."""
    assert server.objects == {}
    for _ in range(2):
        await store.put("a/b", Body.of(b"x"))
    with pytest.raises(StoreConflict):
        await store.put("a/b", Body.of(b"y"))
    assert await keys(store, "") == ["a/b"]
    assert await read(store, "a/b") == b"x"
    await store.alive()
    assert server.objects == {"/a/b": b"x"}


async def test_check_leaves_nothing():
    async with rude() as (server, store):
        said = await store.check()
        assert "WARNING" not in said
        await all_of_it(server, store)


@pytest.mark.parametrize(
    "takes",
    [
        lambda name: not name.startswith("."),
        lambda name: not name.startswith(".") and not name.endswith(".tmp"),
        lambda name: not name.endswith(".tmp"),
    ],
    ids=["no leading dot", "neither", "no such ending"],
)
async def test_where_temporary_names_are_refused_another_form_is_found_once_and_kept(takes):
    async with rude() as (server, store):
        server.takes = takes
        said = await store.check()
        assert "uploads begin as archiver-" in said
        await all_of_it(server, store)
        server.requests.clear()
        await store.put("a/c", Body.of(b"x"))
        assert [method for method, _ in server.requests] == ["PUT", "GET", "MOVE"]
        # What a killed process left of them is not listed.
        server.objects |= {"/a/archiver-0123456789abcdef.tmp": b"half", "/a/archiver-0123456789abcdef-tmp": b"half"}
        assert await keys(store, "") == ["a/b", "a/c"]


async def test_a_temporary_name_that_is_refused_is_the_one_that_is_named():
    async with rude() as (server, store):
        await store.put("a/warm", Body.of(b"x"))
        server.takes = lambda name: not name.endswith("tmp")
        with pytest.raises(StoreRefused, match=r"can't put a/\.[0-9a-f]{16}\.tmp \(the temporary name of a/b\)"):
            await store.put("a/b", Body.of(b"x"))
        assert set(server.objects) == {"/a/warm"}


@pytest.mark.parametrize("status", [400, 403, 405, 409, 412, 422])
async def test_however_a_move_is_refused_the_key_is_looked_at(status):
    async with rude() as (server, store):
        server.on_taken = status
        await store.check()
        await all_of_it(server, store)
        server.folders.add("/a/folder/")
        with pytest.raises(ObjectFailed, match="a folder lies under"):
            await store.put("a/folder", Body.of(b"x"))
        # Nothing there: what the server said.
        answer = server.answer

        async def refusing(request, path, body):
            if request.method == "MOVE":
                return type(await answer(request, "/none", b""))(status=status)
            return await answer(request, path, body)

        server.answer = refusing
        with pytest.raises((StoreRefused, StoreDown), match="its name"):
            await store.put("a/new", Body.of(b"x"))
        assert set(server.objects) == {"/a/b"}


@pytest.mark.parametrize("below", ["", "calls/of%20hq/"])
@pytest.mark.parametrize("root", ["/", "/internal/dav/"])
async def test_a_listing_whose_root_a_proxy_moved_is_read_all_the_same(below, root):
    async with rude() as (server, store):
        await store.close()
        store = a_store(url=server.url + below, timeout="2s")
        server.folders |= {"/calls/", "/calls/of%20hq/"}
        server.shown = lambda path: root + path.removeprefix(f"/{below}")
        await store.check()
        for key in ("a/b", "a/c/d", "e"):
            await store.put(key, Body.of(b"x"))
        assert await keys(store, "a/") == ["a/b", "a/c/d"]
        assert await keys(store, "") == ["a/b", "a/c/d", "e"] if below else sorted(["a/b", "a/c/d", "e"])
        await store.close()


async def test_a_listing_without_the_folder_itself_is_no_empty_folder():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        # One that a proxy moved, and one whose entries all lie elsewhere.
        server.lists_itself, server.shown = False, lambda path: f"/moved{path}"
        with pytest.raises(StoreDown, match="does not hold the folder itself"):
            await keys(store, "")
        server.multistatus = "<multistatus xmlns='DAV:'></multistatus>"
        with pytest.raises(StoreDown, match="does not hold the folder itself"):
            await keys(store, "")


@pytest.mark.parametrize(
    "named",
    [lambda path: path.replace("%253A", ":"), lambda path: path.replace("%2520", "%20"), unquote],
    ids=["colon", "space", "twice"],
)
async def test_a_server_that_mishandles_names_like_those_of_recordings_fails_the_check(named):
    async with rude() as (server, store):
        server.named = named
        with pytest.raises(StoreRefused, match="names like those of recordings"):
            await store.check()
        await store.alive()


async def test_a_server_that_takes_no_long_names_is_warned_of_and_used():
    async with rude() as (server, store):
        server.takes = lambda name: len(name) < 150
        assert "WARNING: takes no names of 167 letters" in await store.check()
        await all_of_it(server, store)


@pytest.mark.parametrize(
    ("challenges", "expected"),
    [
        (["Digest realm=a, nonce=b, qop=auth"], "check username and password"),
        (["Digest realm=a, nonce=b, qop=auth-int"], "only Digest"),
        (["Digest realm=a, nonce=b, qop=auth, algorithm=ROT13"], "only Digest"),
        (["Digest realm=a, qop=auth"], "only Digest"),
        (["Digest realm=a, nonce=b, stale=true"], "another log-in for each request"),
        (["Negotiate", "NTLM"], "only Negotiate and Ntlm"),
        (["Negotiate, digest realm=a"], "only Digest and Negotiate"),
        (["Digest realm=a", "Basic realm=b"], "check username and password"),
        (['Digest realm="a", basic realm="b"'], "check username and password"),
        ([], "check username and password"),
    ],
    ids=str,
)
async def test_what_a_server_offers_for_a_log_in_is_told(challenges, expected):
    async with rude() as (server, store):

        async def unwelcome(request, path, body):
            return web.Response(status=401, headers=[("WWW-Authenticate", told) for told in challenges])

        server.answer = unwelcome
        for use in (store.check(), store.put("a/b", Body.of(b"x")), read(store, "a/b"), keys(store, "")):
            with pytest.raises((StoreRefused, StoreDown), match=expected):
                await use
        assert len(server.requests) < 20


async def test_without_a_log_in_one_that_is_wanted_is_told():
    async with rude(username=None, password=None) as (server, store):
        server.next = [401]
        with pytest.raises(StoreRefused, match="set username and password"):
            await store.stat("a/b")


def cut(path):
    """The Destination as WsgiDAV reads it: decoded first, then parted at the marks that were names' own."""
    return quote(urlparse(unquote(path), allow_fragments=False).path)


@pytest.mark.parametrize("read_back", [True, False])
@pytest.mark.parametrize("key", ["a/b;c", "a/b?c", "a/b?c/d", "a/&;,:@$.wav", "a/what?#hash.wav"])
async def test_a_key_whose_destination_the_server_cuts_was_not_put(key, read_back):
    async with rude(read_back=read_back) as (server, store):
        server.aimed = cut
        # The second time the server says that the name is taken: the wrong one is.
        for _ in range(2):
            with pytest.raises(ObjectFailed, match="its name"):
                await store.put(key, Body.of(b"x"))
            assert await store.stat(key) is None
        assert not [path for path in server.objects if is_temporary(path.rpartition("/")[2])]
        await store.alive()
        await store.put("a/plain", Body.of(b"y"))
        assert server.objects["/a/plain"] == b"y"


async def test_a_prefix_whose_destination_the_server_cuts_fails_the_check():
    async with rude() as (server, store):
        await store.close()
        store = a_store(url=server.url, prefix="what?/", timeout="2s")
        server.aimed = cut
        with pytest.raises(StoreRefused, match="its name"):
            await store.check()
        await store.close()


@pytest.mark.parametrize("key", ["a/back\\slash", "back\\slash/a"])
async def test_a_key_that_the_server_shows_under_another_name_was_not_put(key):
    async with rude() as (server, store):
        server.named = lambda path: path.replace("%5C", "/")
        server.folders |= {"/a/back/", "/back/"}
        with pytest.raises(ObjectFailed, match="its name"):
            await store.put(key, Body.of(b"x"))


async def test_a_key_of_other_characters_is_looked_at_once_and_no_plain_one_is():
    async with rude() as (server, store):
        server.shown = lambda path: f"/moved{unquote(path)}".replace("é", "e\u0301")
        await store.put("a/warm", Body.of(b"x"))
        server.requests.clear()
        await store.put("a/é:;.wav", Body.of(b"x"))
        assert [method for method, _ in server.requests] == ["PUT", "GET", "MOVE", "PROPFIND"]
        server.requests.clear()
        await store.put("a/%3A_~b-%C3%A9.wav", Body.of(b"x"))
        assert [method for method, _ in server.requests] == ["PUT", "GET", "MOVE"]


async def test_a_file_that_move_brought_into_a_folder_was_not_put():
    async with rude() as (server, store):
        server.moves_into_folders = True
        await store.put("a/b/c", Body.of(b"x"))
        with pytest.raises(ObjectFailed, match="a folder lies under"):
            await store.put("a/b", Body.of(b"x"))
        assert server.objects == {"/a/b/c": b"x"}


async def test_a_move_that_names_something_new_may_be_204():
    async with rude() as (server, store):
        answer = server.answer

        async def replaced(request, path, body):
            said = await answer(request, path, body)
            return web.Response(status=204) if request.method == "MOVE" and said.status == 201 else said

        server.answer = replaced
        await store.check()
        await all_of_it(server, store)


@pytest.mark.parametrize(
    ("mkcol", "put", "elsewise"),
    [
        (405, 404, None),
        (405, 409, None),
        (405, 500, 409),
        (405, 409, 403),
        (409, 409, None),
        (403, 403, 403),
        (400, 400, 400),
        (500, 500, 500),
    ],
    ids=["rclone", "WsgiDAV", "nginx", "lighttpd", "by the book", "403", "400", "500"],
)
async def test_a_key_below_a_file_is_of_no_concern_to_others(mkcol, put, elsewise):
    async with rude(timeout="20s") as (server, store):
        server.below_a_file, server.else_below_a_file = {"MKCOL": mkcol, "PUT": put}, elsewise
        await store.put("a/b", Body.of(b"a file"))
        for key in ("a/b/c", "a/b/c/d/e"):
            with pytest.raises(ObjectFailed, match="a file lies where the folder a/b should be"):
                await store.put(key, Body.of(b"x"))
            with pytest.raises(ObjectFailed):
                await read(store, key)
            with contextlib.suppress(ObjectFailed):
                assert await store.stat(key) is None
            with contextlib.suppress(ObjectFailed):
                await store.delete(key)
            with contextlib.suppress(ObjectFailed):
                assert await keys(store, f"{key}/") == []
        assert server.objects == {"/a/b": b"a file"}


@pytest.mark.parametrize("status", [400, 403, 404, 409, 500])
async def test_what_concerns_the_store_is_not_blamed_on_a_file_above(status):
    async with rude() as (server, store):
        await store.put("a/b/warm", Body.of(b"x"))
        answer = server.answer

        async def refusing(request, path, body):
            return web.Response(status=status) if request.method == "PUT" else await answer(request, path, body)

        server.answer = refusing
        with pytest.raises((StoreRefused, StoreDown), match=str(status)):
            await store.put("a/b/c", Body.of(b"x"))

        async def unlisted(request, path, body):
            refuses = request.headers.get("Depth") == "1"
            return web.Response(status=status) if refuses else await answer(request, path, body)

        server.answer = unlisted
        for prefix in ("", "a/b/") if status != 404 else ():
            with pytest.raises((StoreRefused, StoreDown), match=str(status)):
                await keys(store, prefix)


async def test_a_proxy_in_between_is_named():
    async with rude() as (server, store):
        server.next = [407]
        with pytest.raises(StoreRefused, match="a proxy in between wants a log-in"):
            await store.stat("a/b")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 207 Multi\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
        b"HTTP/1.1 207 Multi\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_an_answer_that_is_no_valid_http_concerns_what_was_asked_for(said):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        store = a_store(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout="2s")
        with pytest.raises(ObjectFailed, match="its answer is no valid HTTP: "):
            await store.stat("a/b")
        await store.close()


async def test_https_to_a_port_that_speaks_http_is_told():
    async with rude() as (server, _):
        store = a_store(url=server.url.replace("http:", "https:"), timeout="2s")
        with pytest.raises(StoreRefused, match="speaks no TLS: write http://"):
            await store.stat("a/b")
        await store.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nThe plain HTTP request was sent to HTTPS port",
    ],
    ids=["an alert", "Go", "nginx"],
)
async def test_http_to_a_port_that_speaks_https_is_told(answer):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        store = a_store(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout="2s")
        with pytest.raises((StoreRefused, StoreDown), match="write https:// in the config"):
            await store.stat("a/b")
        await store.close()


async def test_a_folder_under_the_name_of_a_file_is_of_no_concern_to_others(store, apache):
    await store.put("folders/a", Body.of(b"x"))
    (apache.files / "folders/b").mkdir()
    with pytest.raises(ObjectFailed, match="a folder lies under"):
        await store.put("folders/b", Body.of(b"x"))
    with pytest.raises(ObjectFailed):
        await read(store, "folders/b")
    assert await store.stat("folders/b") is None
    assert await read(store, "folders/a") == b"x"


async def test_a_redirect_to_the_same_name_with_a_slash_means_a_folder():
    async with rude() as (server, store):
        await store.put("a/b", Body.of(b"x"))
        for location in ("/a/c%2541/", f"{server.url}a/c%2541/"):
            answer = server.answer

            async def slashing(request, path, body, location=location):
                return web.Response(status=301, headers={"Location": location})

            server.answer = slashing
            with pytest.raises(ObjectFailed, match="a folder lies under"):
                await read(store, "a/c%41")
            server.answer = answer
        await store.alive()


async def test_a_proxy_that_rewrites_paths_but_not_destinations_fails_the_check():
    async with rude() as (server, store):
        await store.close()
        store = a_store(url=f"{server.url}outside/", timeout="2s")
        # The backend knows nothing of /outside, but has such a folder.
        server.named = lambda path: path.removeprefix("/outside") if path in server.asked else path
        answer, server.asked = server.answer, set()
        server.folders |= {"/outside/", "/outside/_canary/"}

        async def rewritten(request, path, body):
            server.asked = {path}
            try:
                return await answer(request, path, body)
            finally:
                server.asked = set()

        server.answer = rewritten
        with pytest.raises(StoreRefused, match="Destination header"):
            await store.check()
        await store.close()
