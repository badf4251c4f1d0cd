"""Through a proxy or past it: what config and environment say, for recorders, stores and messages."""

from __future__ import annotations

import asyncio
import os

import pytest
from pydantic import SecretStr

from archiver.errors import ConfigError, RecorderDown, Refused, StoreDown, StoreRefused
from archiver.service.delivery import Undelivered, ping, send_webhook
from archiver.settings import config
from archiver.settings.options import SourceOptions
from archiver.stores.webdav import WebDavOptions, WebDavStore
from archiver.wire.exchange import Origin
from archiver.wire.proxies import proxy_for, way
from archiver.wire.recorder import Client
from tests.certificates import a_house, presenting
from tests.proxy import ForwardProxy
from tests.servers import free_ports
from tests.stores.rude import RudeDav
from tests.wire.test_http import answer, get, serving


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return a_house(tmp_path_factory.mktemp("house"))


async def ask(url: str, **options) -> bytes:
    client = Client.of(SourceOptions(kind="x", base_url=url, timeout="5s", **options))
    client.authorise({"Authorization": "Bearer geheim"})
    try:
        return await get(client, "/a%2Fb/../c?d=%20e")
    finally:
        await client.close()


class TestWhich:
    @pytest.mark.parametrize(
        ("environment", "url", "proxy"),
        [
            ({"https_proxy": "http://p:1"}, "https://h/", "p:1"),
            ({"HTTPS_PROXY": "http://p:1"}, "https://h/", "p:1"),
            ({"HTTPS_PROXY": "http://p:1"}, "http://h/", None),
            ({"HTTP_PROXY": "p:1"}, "http://h/", "p:1"),
            ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://h/", None),
            ({"http_proxy": "http://p:1", "HTTP_PROXY": "http://q:1"}, "http://h/", "p:1"),
            ({"ALL_PROXY": "http://p:1"}, "https://h/", "p:1"),
            ({"ALL_PROXY": "socks5://p:1"}, "https://h/", None),
            ({"HTTPS_PROXY": "https://p"}, "https://h/", "p:443"),
            ({"HTTPS_PROXY": ""}, "https://h/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "h"}, "https://h/", None),
            ({"HTTPS_PROXY": "http://p:1", "no_proxy": "x, .example.com ,y"}, "https://a.example.com/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com"}, "https://a.Example.com/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*.example.com"}, "https://a.example.com/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com"}, "https://anexample.com/", "p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "h:8443"}, "https://h:8443/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "h:8443"}, "https://h/", "p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3/", "p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.1.2.3:443"}, "https://10.1.2.3/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "fd00::/8,[fe80::1]:443"}, "https://[fd00::1]/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "fd00::/8,[fe80::1]:443"}, "https://[fe80::1]/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://h/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ",,.,:1,[],/8"}, "https://h/", "p:1"),
            ({"HTTPS_PROXY": "http://p:1"}, "https://localhost/", None),
            ({"HTTPS_PROXY": "http://p:1"}, "https://127.0.0.9/", None),
            ({"HTTPS_PROXY": "http://p:1"}, "https://[::1]/", None),
        ],
    )  # fmt: skip
    def test_the_environment_names_it_as_for_other_programs(self, environment, url, proxy):
        from yarl import URL

        found = proxy_for(Origin.of(URL(url)), None, environment)
        assert (found and found.name) == proxy

    def test_the_config_has_the_last_word(self, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
        monkeypatch.setenv("NO_PROXY", "*")
        there = Origin("https", "h", 443)
        assert way(there, SecretStr("http://user:geheim@q:3128")) == "through the proxy q:3128 (proxy in the config)"
        assert way(there, SecretStr("none")) is None
        monkeypatch.setenv("NO_PROXY", "")
        assert way(there, None) == "through the proxy p:1 (HTTPS_PROXY)"
        assert way(there, SecretStr("none")) is None

    def test_one_of_a_kind_that_is_not_known_is_said(self, monkeypatch):
        monkeypatch.setenv("ALL_PROXY", "socks5://p:1080")
        assert way(Origin("https", "h", 443), None) == (
            "directly: ALL_PROXY names a proxy that is neither http:// nor https://"
        )

    @pytest.mark.parametrize(
        "bad", ["p:3128", "socks5://p:1080", "http://", "http://p:port", "http://p/x", "http://p q"]
    )
    def test_what_is_none_is_a_mistake_in_the_config_that_repeats_no_password(self, tmp_path, bad):
        path = tmp_path / "archiver.toml"
        path.write_text(
            '[stores.d]\nkind = "file"\npath = "x"\n[sources.s]\nkind = "xivo"\nbase_url = "http://h"\n'
            f'token = "0123456789"\ntimezone = "UTC"\nproxy = "{bad}"\n'
        )
        with pytest.raises(ConfigError, match=r"sources\.s\.proxy: is no proxy; write it like"):
            config.load(path)

    def test_only_one_with_a_password_is_a_secret_of_the_config(self, tmp_path):
        path = tmp_path / "archiver.toml"
        for user, secret in (("", False), ("user:geheim@", True)):
            path.write_text(
                '[stores.d]\nkind = "file"\npath = "x"\n[sources.s]\nkind = "xivo"\nbase_url = "http://h"\n'
                'token = { env = "HOME" }\ntimezone = "UTC"\n'
                f'[alerts]\nproxy = "http://{user}p:3128"\n'
            )
            assert ("alerts.proxy" in config.load(path).literal_secrets) == secret
            assert ("geheim" in config.load(path).secrets) == secret


class TestRecorders:
    async def test_a_plain_one_is_asked_through_it_by_its_whole_address(self):
        async with serving() as server, ForwardProxy().serving() as proxy:
            server.answer = answer(body=b"there")
            assert await ask(server.url, proxy=proxy.url) == b"there"
            assert proxy.asked == [f"GET {server.url}/a%2Fb/../c?d=%20e HTTP/1.1"]
            assert server.requests[0].target == "/a%2Fb/../c?d=%20e"

    async def test_one_with_tls_is_reached_through_a_tunnel_that_sees_no_credential(self, house):
        async with serving(presenting(house / "server.pem")) as server, ForwardProxy("us er:pä@ss€").serving() as proxy:
            server.answer = answer(body=b"there")
            by = proxy.url.replace("//", "//us%20er:p%C3%A4%40ss%E2%82%AC@")
            assert await ask(server.url, proxy=by, ca_file=house / "root.pem") == b"there"
            assert [line.split(" ")[0] for line in proxy.asked] == ["CONNECT"]
            assert b"geheim" not in b"".join(proxy.heads)
            assert server.requests[0].header("Proxy-Authorization") is None
            with pytest.raises(Refused, match="holds another issuer"):
                await ask(server.url, proxy=by, ca_file=house / "alone.pem")

    @pytest.mark.parametrize("tls", [False, True])
    async def test_a_log_in_that_it_wants_is_asked_for_and_never_told(self, house, tls):
        async with (
            serving(presenting(house / "server.pem") if tls else None) as server,
            ForwardProxy("user:pass").serving() as proxy,
        ):
            for login in ("", "user:wrongpass@"):
                with pytest.raises(Refused, match=r"407.*proxy") as raised:
                    await ask(server.url, proxy=proxy.url.replace("//", f"//{login}"), verify_tls=False)
                assert "wrongpass" not in str(raised.value)
            assert server.requests == []

    async def test_one_that_is_not_there_is_named(self, house):
        (port,) = free_ports(1)
        for url in ("http://h.invalid", "https://h.invalid"):
            with pytest.raises(RecorderDown, match=rf"the proxy 127\.0\.0\.1:{port}: ") as raised:
                await ask(url, proxy=f"http://user:geheim@127.0.0.1:{port}")
            assert "geheim" not in str(raised.value)

    async def test_one_that_can_t_reach_the_recorder_says_so(self):
        async with ForwardProxy().serving() as proxy:
            proxy.says = "502 Bad Gateway"
            with pytest.raises(RecorderDown, match=rf"the proxy 127\.0\.0\.1:{proxy.port} answered 502 Bad Gateway"):
                await ask("https://h.invalid", proxy=proxy.url)
            proxy.says = "403 Forbidden"
            with pytest.raises(Refused, match="answered 403 Forbidden; mend proxy"):
                await ask("https://h.invalid", proxy=proxy.url)

    async def test_the_environment_s_is_used_and_this_host_is_not_asked_through_it(self, monkeypatch):
        async with serving() as server, ForwardProxy().serving() as proxy:
            server.answer = answer(body=b"there")
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            assert await ask(server.url) == b"there"
            assert proxy.asked == []
            proxy.says = "502 Bad Gateway"
            with pytest.raises(Exception, match="502"):
                await ask("http://h.invalid")
            assert proxy.asked == ["GET http://h.invalid/a%2Fb/../c?d=%20e HTTP/1.1"]
            with pytest.raises(RecorderDown, match=r"can't connect to h\.invalid"):
                await ask("http://h.invalid", proxy="none")


class TestStoresAndMessages:
    async def test_a_store_is_reached_through_it_and_check_says_so(self):
        async with RudeDav().serving() as server, ForwardProxy("user:pass").serving() as proxy:
            login = proxy.url.replace("//", "//user:pass@")
            store = WebDavStore("dav", WebDavOptions(kind="webdav", url=server.url, proxy=login, timeout="5s"))
            told = await store.check()
            await store.close()
            assert f"through the proxy 127.0.0.1:{proxy.port} (proxy in the config)" in told
            assert "pass" not in told.replace("through", "")
            assert any(line.startswith("MKCOL http://127.0.0.1:") for line in proxy.asked)

    async def test_one_that_refuses_a_store_is_the_operator_s_to_mend(self):
        async with RudeDav().serving() as server, ForwardProxy("user:pass").serving() as proxy:
            for url, error in ((server.url, StoreRefused), ("https://h.invalid/", StoreRefused)):
                store = WebDavStore("dav", WebDavOptions(kind="webdav", url=url, proxy=proxy.url, timeout="5s"))
                with pytest.raises(error, match="407"):
                    await store.stat("a/b")
                await store.close()
            proxy.login, proxy.says = None, "503 Service Unavailable"
            store = WebDavStore("dav", WebDavOptions(kind="webdav", url="https://h.invalid/", proxy=proxy.url))
            with pytest.raises(StoreDown, match="answered 503"):
                await store.stat("a/b")
            await store.close()

    async def test_a_webhook_and_a_heartbeat_go_through_it(self):
        async with serving() as server, ForwardProxy().serving() as proxy:
            server.answer = answer()
            url, by = SecretStr(f"{server.url}/hook?key=geheim"), SecretStr(proxy.url)
            await send_webhook(url, {"text": "x"}, by)
            await ping(url, by)
            await ping(url)
            assert [line.split(" ")[0] for line in proxy.asked] == ["POST", "GET"]
            assert len(server.requests) == 3
            proxy.says = "407 No"
            with pytest.raises(Undelivered) as raised:
                await ping(url, by)
            assert "geheim" not in str(raised.value)


async def test_a_tunnel_that_is_cancelled_leaves_nothing_open():
    gone = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ask("https://h.invalid", proxy=f"http://127.0.0.1:{port}")
        await asyncio.wait_for(gone.wait(), 10)
