"""Servers that ask who we are: the certificate that they are shown, and what is said where they are shown none."""

from __future__ import annotations

import asyncio
import ssl
import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key

from archiver.errors import Refused, StoreRefused
from archiver.settings import config
from archiver.settings.options import SourceOptions
from archiver.stores.webdav import WebDavOptions, WebDavStore
from archiver.wire.recorder import Client
from archiver.wire.tls import BadFile
from tests.certificates import a_house
from tests.wire.test_http import answer, get, old_server, serving


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """``alone.pem`` holds a certificate of ours and its key; in ``cert.pem`` and ``key.pem`` they are apart."""
    folder = a_house(tmp_path_factory.mktemp("house"))
    both = (folder / "alone.pem").read_text()
    end = both.index("-----BEGIN CERTIFICATE")
    (folder / "key.pem").write_text(both[:end])
    (folder / "cert.pem").write_text(both[end:])
    locked = PrivateFormat.PKCS8, BestAvailableEncryption(b"geheim")
    (folder / "locked.pem").write_bytes(load_key(both[:end].encode(), None).private_bytes(Encoding.PEM, *locked))
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-out", folder / "other.pem"], check=True)
    return folder


def asking(house, version=None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(house / "server.pem")
    context.load_verify_locations(house / "cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    if version:
        context.maximum_version = version
    return context


async def ask(house, url: str, **names: str) -> bytes:
    paths = {option: house / name for option, name in names.items()}
    client = Client.of(SourceOptions(kind="x", base_url=url, timeout="5s", ca_file=house / "root.pem", **paths))
    try:
        return await get(client)
    finally:
        await client.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_recorder_that_asks_for_a_certificate_is_shown_ours(house, version):
    async with serving(asking(house, version)) as server:
        server.answer = answer(body=b"there")
        assert await ask(house, server.url, client_cert="cert.pem", client_key="key.pem") == b"there"
        assert await ask(house, server.url, client_cert="alone.pem") == b"there"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_one_that_is_shown_none_or_another_s_says_what_to_set(house, version):
    """OpenSSL's server: asyncio's own sends no alert."""
    asks = ["-Verify", "1", "-verify_return_error", "-CAfile", house / "cert.pem"]

    async def look(url):
        for shown in ({}, {"client_cert": "early.pem"}):
            with pytest.raises(Refused, match=r"set client_cert and client_key"):
                await ask(house, url, **shown)
        store = WebDavStore("dav", WebDavOptions(kind="webdav", url=f"{url}/", ca_file=house / "root.pem"))
        with pytest.raises(StoreRefused, match=r"set client_cert and client_key"):
            await store.stat("a/b")
        await store.close()

    with old_server(house, version, *asks) as url:
        asyncio.run(look(url))


async def test_a_store_is_shown_ours(house):
    async with serving(asking(house)) as server:
        server.answer = answer("404 Not Found")
        options = {"client_cert": house / "cert.pem", "client_key": house / "key.pem", "ca_file": house / "root.pem"}
        store = WebDavStore("dav", WebDavOptions(kind="webdav", url=f"{server.url}/", timeout="5s", **options))
        assert await store.stat("a/b") is None
        await store.close()


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("none.pem", None, r"client_cert .*none\.pem: No such file"),
        ("cert.pem", "none.pem", r"client_key .*none\.pem: No such file"),
        ("cert.pem", None, r"client_cert .*cert\.pem: it does not hold a certificate and its key"),
        ("cert.pem", "locked.pem", r"client_key .*locked\.pem: .*the key without a password"),
        ("cert.pem", "other.pem", r"client_key .*other\.pem: it is not the key of client_cert"),
        ("key.pem", "key.pem", r"key\.pem: it does not hold a certificate"),
    ],
)
async def test_files_that_can_t_be_used_are_named_and_nobody_is_asked_for_a_password(house, cert, key, words):
    options = {"client_cert": house / cert} | ({"client_key": house / key} if key else {})
    with pytest.raises(BadFile, match=words):
        Client.of(SourceOptions(kind="x", base_url="https://h", **options))
    store = WebDavStore("dav", WebDavOptions(kind="webdav", url="https://h/", **options))
    with pytest.raises(StoreRefused, match=words):
        await store.stat("a/b")
    await store.close()


def test_a_key_without_its_certificate_is_a_mistake(house):
    for build in (
        lambda: SourceOptions(kind="x", base_url="https://h", client_key=house / "key.pem"),
        lambda: WebDavOptions(kind="webdav", url="https://h/", client_key=house / "key.pem"),
    ):
        with pytest.raises(ValueError, match="client_key needs client_cert"):
            build()


@pytest.mark.parametrize("which", ["client_cert", "client_key"])
def test_another_certificate_of_ours_in_the_same_file_is_a_change(tmp_path, which):
    path = tmp_path / "archiver.toml"
    path.write_text(
        '[stores.dav]\nkind = "webdav"\nurl = "https://h/"\nclient_cert = "a.pem"\nclient_key = "b.pem"\n'
        '[sources.hq]\nkind = "chronicall"\ntoken = "0123456789"\nbase_url = "https://h"\n'
        'client_cert = "a.pem"\nclient_key = "b.pem"\n'
    )
    files = {"client_cert": tmp_path / "a.pem", "client_key": tmp_path / "b.pem"}
    for file in files.values():
        file.write_text("one")
    old = config.load(path)
    files[which].write_text("another")
    changes = config.diff(old, config.load(path))
    assert (changes.sources_changed, changes.stores_changed) == (("hq",), ("dav",))
