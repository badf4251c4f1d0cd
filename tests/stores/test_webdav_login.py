"""Log-ins of WebDAV: Digest beside Basic, against Apache's mod_auth_digest and a server that counts."""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aiohttp import web

from archiver.errors import StoreRefused
from archiver.model import Body
from archiver.stores.webdav import WebDavOptions, WebDavStore
from archiver.testing.stores import read
from archiver.wire.login import Digest, Login, schemes
from tests import servers
from tests.stores.rude import RudeDav
from tests.stores.test_webdav import WebDavContract, an_apache_store


@pytest.fixture(scope="module")
def digesting():
    with servers.apache("Digest") as server:
        yield server


class TestApacheWithDigest(WebDavContract):
    @pytest_asyncio.fixture
    async def store(self, digesting):
        store = an_apache_store(digesting)
        yield store
        await store.close()

    @pytest.fixture(autouse=True)
    def _server(self, digesting):
        self.apache = digesting

    @asynccontextmanager
    async def refusing(self):
        store = an_apache_store(self.apache, password="wrong-but-still-secret")
        yield store, "wrong-but-still-secret"
        await store.close()

    async def test_many_at_once_are_each_let_in(self, store):
        await asyncio.gather(*(store.put(f"many/{n}", Body.of(bytes(100_000))) for n in range(24)))
        assert {hashlib.sha256(await read(store, f"many/{n}")).digest() for n in range(24)} == {
            hashlib.sha256(bytes(100_000)).digest()
        }


class Challenging(RudeDav):
    """Checks each answer by RFC 7616; a nonce lasts for so many requests."""

    def __init__(self, *offers: str, lasts: int = 1000, basic: bool = False) -> None:
        super().__init__()
        self.offers, self.lasts, self.basic = offers, lasts, basic
        self.nonce, self.used, self.seen = 0, 0, set()

    async def answer(self, request, path, body):
        told = request.headers.get("Authorization", "")
        stale = ""
        if told.startswith("Basic ") and self.basic:
            return await super().answer(request, path, body)
        if told.startswith("Digest "):
            fields = {k: q or p for k, q, p in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]*))', told)}
            if fields["response"] == self.expected(request, fields):
                if fields["nonce"] == str(self.nonce) and self.used < self.lasts and fields.get("nc") not in self.seen:
                    self.used += 1
                    self.seen.add(fields.get("nc", self.used))
                    return await super().answer(request, path, body)
                stale = ", stale=true"
        self.nonce, self.used, self.seen = self.nonce + 1, 0, set()
        headers = [
            ("WWW-Authenticate", f'Digest realm="a \\"b\\", c", nonce="{self.nonce}"{more}{stale}')
            for more in self.offers
        ]
        headers += [("WWW-Authenticate", 'Basic realm="x"')] * self.basic
        return web.Response(status=401, headers=headers)

    def expected(self, request, fields):
        names = {"MD5": "md5", "SHA-256": "sha256", "SHA-512-256": "sha512_256"}
        algorithm = fields.get("algorithm", "MD5").upper()

        def h(text):
            return hashlib.new(names[algorithm.removesuffix("-SESS")], text.encode()).hexdigest()

        assert fields["uri"] == request.rel_url.raw_path
        a1 = h('u:a "b", c:p')
        if algorithm.endswith("-SESS"):
            a1 = h(f"{a1}:{fields['nonce']}:{fields['cnonce']}")
        a2 = h(f"{request.method}:{fields['uri']}")
        if fields.get("qop"):
            return h(f"{a1}:{fields['nonce']}:{fields['nc']}:{fields['cnonce']}:auth:{a2}")
        return h(f"{a1}:{fields['nonce']}:{a2}")


@asynccontextmanager
async def challenged(server, **options):
    async with server.serving():
        how = {"kind": "webdav", "url": server.url, "username": "u", "password": "p", "timeout": "5s"} | options
        store = WebDavStore("dav", WebDavOptions(**how))
        yield store
        await store.close()


@pytest.mark.parametrize(
    "offers",
    [
        [', qop="auth"'], [', qop="auth,auth-int", opaque="xyz"'], [""], [", algorithm=MD5, qop=auth"],
        [', algorithm=SHA-256, qop="auth"', ', algorithm=MD5, qop="auth"'], [", algorithm=MD5-sess, qop=auth"],
        [", algorithm=sha-256-sess, qop=auth"], [', qop="auth-int"', ', algorithm=SHA-256, qop="auth"'],
    ],
    ids=str,
)  # fmt: skip
async def test_each_form_of_digest_is_answered(offers):
    async with challenged(server := Challenging(*offers)) as store:
        assert "put, get, list, compare and delete work" in await store.check()
        await store.put("a~b/%41/c d", Body.of(b"x" * 1000))
        assert await read(store, "a~b/%41/c d") == b"x" * 1000
        # The password went out in no form.
        assert not any(told and told.startswith("Basic") for told in server.authorizations)
        strongest = next((name for name in ("sha-256", "md5") if name in str(offers).lower()), "")
        assert strongest in server.authorizations[-1].lower()


async def test_a_nonce_that_is_over_costs_one_more_request_and_no_upload():
    async with challenged(server := Challenging(', qop="auth"', lasts=3)) as store:
        for n in range(8):
            await store.put(f"a/{n}", Body.of(bytes(300_000)))
        assert len([path for path in server.objects if path.startswith("/a/")]) == 8


async def test_over_plain_http_digest_goes_before_basic_and_over_tls_what_is_simpler():
    async with challenged(server := Challenging(', qop="auth"', basic=True)) as store:
        await store.put("a/b", Body.of(b"x"))
        assert not any(told and told.startswith("Basic") for told in server.authorizations)
    for plain, told, by_digest in (
        (True, ['Digest realm="r", nonce="n", qop="auth"', "Basic realm=x"], True),
        (False, ['Digest realm="r", nonce="n", qop="auth"', "Basic realm=x"], False),
        (False, ['Digest realm="r", nonce="n", qop="auth"'], True),
    ):
        login = Login("u", "p", open_to_all=plain)
        login.challenged(told)
        assert login.headers("GET", "/")["Authorization"].startswith("Digest" if by_digest else "Basic")


async def test_a_wrong_password_is_tried_once_and_called_so():
    async with challenged(server := Challenging(', qop="auth"'), password="wrong") as store:
        with pytest.raises(StoreRefused, match="check username and password"):
            await store.stat("a/b")
        # Without a log-in, with it, and once more by the new challenge.
        assert len(server.requests) <= 3


async def test_a_server_that_lets_all_in_is_told_by_basic_as_ever():
    async with challenged(server := RudeDav()) as store:
        await store.put("a/b", Body.of(b"x"))
        assert server.authorizations[-1] == "Basic dTpw"


@pytest.mark.parametrize(
    "told",
    ["", ",", "Digest", "Digest ,", "Digest =", "Digest nonce", 'Digest nonce="', "Digest " + "a=b," * 5000, "=" * 9000,
     'Digest realm="' + "\\\\" * 5000, "Negotiate abc==", "Basic realm=\u00e9", "a" * 60000],
)  # fmt: skip
def test_a_challenge_of_nonsense_is_none(told):
    assert not Digest("u", "p").challenged([told])
    assert all(isinstance(scheme, str) for scheme, _ in schemes([told]))
