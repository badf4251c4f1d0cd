"""No secret of a config is ever shown or kept: not on any stream, in any answer, file of a store or database column."""

import asyncio
import base64
import html
import itertools
import json
import secrets
import signal
import string
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from urllib.parse import quote, quote_plus, unquote_plus

import pytest
from aiohttp import web
from pydantic import BaseModel, SecretStr

from archiver.settings import config
from archiver.simulators.base import Call, Fault, Handler, Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from tests import commands
from tests.commands import HOUR, Finished, Place
from tests.proxy import ForwardProxy

#: Of any secret so many characters in a row are too many.
ENOUGH = 10


def a_secret(name: str) -> str:
    """Distinct, long, and different once it is encoded for a URL or JSON."""
    return f'{name}+/&=%"#{"".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))}'


class Echo(Simulator):
    """Its own fault ``echo``: an error (``value``) whose page shows the whole request, credentials in the clear."""

    async def _spoil(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        if fault.kind != "echo":
            return await super()._spoil(fault, request, handler)
        return web.Response(status=fault.value, text=await echo(request))


_turns = itertools.count()


async def echo(request: web.Request) -> str:
    """What came, as a chatty server would print it: each time something else of it comes first.

    Things are told several times, so that an excerpt that is cut off ends within a secret.
    """
    told = [f"{k}: {v}" for k, v in request.headers.items() if k in {"Authorization", "X-Auth-Token", "Cookie"}]
    told += [repr(dict(request.headers)), request.path_qs, unquote_plus(request.path_qs)]
    told += [(await request.read()).decode("utf-8", "replace")[:200]]
    for header in ("Authorization", "X-Auth-Token"):
        given = request.headers.get(header, "")
        told += [given.rpartition(" ")[2] * 12]
        if given.startswith("Basic "):
            decoded = base64.b64decode(given[6:]).decode()
            told += [decoded, decoded.partition(":")[2] * 12, f"no such user or wrong password: {decoded}"]
    told = [text for text in told if text]
    first = next(_turns) % len(told)
    return "\n".join([*told[first:], *told[:first]])


class EchoingChronicall(Echo, ChronicallSimulator):
    pass


class EchoingXivo(Echo, XivoSimulator):
    pass


class EchoingImagicle(Echo, ImagicleSimulator):
    pass


class EchoingNoojee(Echo, NoojeeSimulator):
    listing = "hour"


class EchoingGenesys(Echo, GenesysSimulator):
    pass


class Hoard:
    """The secrets of a test, and everything that was said and kept."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}
        self.said: dict[str, str] = {}

    def make(self, name: str) -> str:
        self.secrets[name] = a_secret(name)
        return self.secrets[name]

    def heard(self, what: str, done: Finished) -> None:
        self.said[f"standard output of {what}"] = done.out
        self.said[f"standard error of {what}"] = done.err

    def assert_unknown(self) -> None:
        """No form of any secret is in anything that was said, nor a good part of one."""
        found = [
            (name, form, where)
            for name, secret in self.secrets.items()
            for form, parts in forms(secret).items()
            for where, text in self.said.items()
            if any(part in text for part in parts)
        ]
        shown = [f"{where}: {name} ({form})" for name, form, where in found]
        assert not found, "\n".join([*shown, self._around(*found[0])])

    def _around(self, name: str, form: str, where: str) -> str:
        text = self.said[where]
        at = min(text.index(part) for part in forms(self.secrets[name])[form] if part in text)
        return text[max(0, at - 300) : at + 100]


def forms(secret: str) -> dict[str, list[str]]:
    """How a secret may be written; of each the parts that give it away."""
    # The name of the secret begins it, and is no secret.
    token = secret[secret.index("#") + 1 :]
    plain = [token[i : i + ENOUGH] for i in range(len(token) - ENOUGH + 1)]
    found = {"as it is": plain, "in a URL": [quote(secret, safe=""), quote_plus(secret)], "hex": [token.encode().hex()]}
    for before in range(3):
        data = b"\0" * before + token.encode()
        text = base64.b64encode(data).decode()[4:-4]
        found[f"base64, {before}"] = [text[i : i + 16] for i in range(0, len(text) - 15, 4)]
    return found


def secret_fields(model: type[BaseModel]) -> set[str]:
    def mentions(annotation: Any) -> bool:
        return annotation is SecretStr or any(map(mentions, get_args(annotation)))

    return {name for name, field in model.model_fields.items() if mentions(field.annotation)}


@pytest.fixture
async def place(tmp_path, database) -> AsyncIterator[Place]:
    async with commands.place(tmp_path, database, log_level="debug") as made:
        yield made


@pytest.fixture
def hoard() -> Hoard:
    return Hoard()


def a_call(simulator: Simulator, minutes: int) -> Call:
    return simulator.add_call(datetime.now(UTC) - 2 * HOUR + timedelta(minutes=minutes), timedelta(seconds=1))


async def add_every_source(place: Place, hoard: Hoard) -> None:
    """One of each kind, and way to log in; its secrets from the file, a variable, another file and a credential."""
    chronicall, xivo, imagicle = EchoingChronicall(), EchoingXivo(), EchoingImagicle()
    by_hash, by_key, genesys = EchoingNoojee(), EchoingNoojee(), EchoingGenesys()
    chronicall.token, xivo.token = hoard.make("chronicall.token"), hoard.make("xivo.token")
    imagicle.password, genesys.password = hoard.make("imagicle.password"), hoard.make("genesys.password")
    by_hash.auth, by_key.auth = "hash", "key"
    by_hash.api_key, by_key.api_key = hoard.make("noojee.hash"), hoard.make("noojee.key")
    place.env["CHRONICALL_TOKEN"] = chronicall.token
    credentials = place.folder / "credentials"
    credentials.mkdir()
    (credentials / "pbx").write_text(f"{xivo.token}\n")
    (place.folder / "password.txt").write_text(f"{imagicle.password}\n")
    place.env["CREDENTIALS_DIRECTORY"] = str(credentials)
    more = {
        name: hoard.make(f"genesys.{name}")
        for name in ("webdav_password", "s3_access_key_id", "s3_secret_access_key", "decrypt_key", "decrypt_password")
    }
    retry = {"retry": {"first": "1s"}}
    await place.add("chronicall", chronicall, token={"env": "CHRONICALL_TOKEN"}, **retry)
    await place.add("xivo", xivo, token={"credential": "pbx"}, timezone="Europe/Paris", **retry)
    await place.add("imagicle", imagicle, password={"file": "password.txt"}, **retry)
    await place.add("njhash", by_hash, **retry)
    await place.add("njkey", by_key, **retry)
    await place.add("genesys", genesys, webdav_username="dav", webdav_url="http://127.0.0.1:9", **more, **retry)
    for simulator in place.simulators.values():
        for minutes in range(3):
            a_call(simulator, minutes)


def test_every_secret_option_there_is_is_tried_here():
    kinds = {**config.kinds("archiver.sources"), **config.kinds("archiver.stores")}
    known = {name: secret_fields(entry.load().Options) for name, entry in kinds.items()}
    genesys = {"password", "webdav_password", "s3_access_key_id", "s3_secret_access_key"}
    # Each that asks over HTTP has one; a password in it is tried with a recorder, and in test_proxies.
    assert {name for name, fields in known.items() if "proxy" in fields} == kinds.keys() - {"file"}
    assert {name: told for name, fields in known.items() if (told := fields - {"proxy"})} == {
        "chronicall": {"token"},
        "xivo": {"token"},
        "imagicle": {"password"},
        "noojee": {"api_key"},
        "genesys": genesys | {"decrypt_key", "decrypt_password"},
        "s3": {"access_key_id", "secret_access_key", "session_token"},
        "webdav": {"password"},
    }


async def test_recorders_that_print_our_requests_learn_nothing_for_others(place, hoard):
    proxied = ForwardProxy(f"archiver:{(password := hoard.make('proxy'))}")
    async with proxied.serving():
        await add_every_source(place, hoard)
        login = f"//archiver:{quote(password, safe='')}@"
        place.config["sources"]["chronicall"]["proxy"] = proxied.url.replace("//", login)
        await learn_nothing(place, hoard)
        assert len(proxied.asked) > 5


async def learn_nothing(place, hoard):
    url, parameters = place.database.split("?")
    password = quote(hoard.make("database.password"), safe="")
    place.env["DATABASE"] = f"{url.replace('archiver@', f'archiver:{password}@')}?{parameters}"
    place.config["database"] = {"url": {"env": "DATABASE"}}
    place.config["heartbeat_url"] = f"https://hc.example.com/{quote(hoard.make('heartbeat'), safe='')}"

    async def listen(*line: str, code: int | None = None) -> Finished:
        done = await place.run(*line, code=code)
        hoard.heard(" ".join(line), done)
        return done

    def break_all(on: str, status: int, times: int) -> None:
        for simulator in place.simulators.values():
            simulator.faults.clear()
            simulator.fault("echo", on, value=status, times=times)

    assert place.config["sources"]["njhash"]["auth"] == "hash"
    break_all("*", 500, -1)
    spoilt = await listen("check", code=3)
    assert spoilt.out.count("FAILED") == 6
    assert spoilt.out.count("it answered 500") == 6, spoilt.out
    break_all("*", 401, -1)
    assert (await listen("check", "--json", code=3)).json["ok"] is False
    refused = await listen("sync", "--json", code=3)
    assert all("401" in told["error"] for told in refused.json["sources"].values())
    await listen("status")
    break_all("*", 200, 1)
    await listen("check")
    break_all("audio", 403, 1)
    for simulator in place.simulators.values():
        simulator.fault("echo", "audio", value=500, times=1)
    part = await listen("sync", "--json", code=1)
    # Of accounts that got no audio yet, a first refusal is one to try again.
    assert sum(told["pending"] for told in part.json["sources"].values()) >= 5
    # The reasons are kept, without what must not be.
    listed = (await listen("list", "--json")).rows
    assert len({recording["source"] for recording in listed}) == 6
    reasons = {medium["error"] for recording in listed for medium in recording["media"] if medium["error"]}
    assert all(any(code in reason for reason in reasons) for code in ("403", "500")), reasons
    for line in (["retry"], ["sync", "--json"]):
        await listen(*line)
    for simulator in place.simulators.values():
        simulator.faults.clear()
    for source in place.simulators:
        recording = next(r for r in listed if r["source"] == source)
        await listen("show", source, recording["recording_id"], "--json")
        told = await listen("why", source, recording["recording_id"])
        assert recording["recording_id"] in told.out
    break_all("list", 500, 3)
    running = await place.start("run")
    await running.said('"poll.done"')
    await asyncio.sleep(2)
    hoard.heard("run", await running.end(signal.SIGTERM, patience=20))
    assert '"recording.archived"' in hoard.said["standard error of run"] or listed
    for line in (["status"], ["status", "--json"], ["list"], ["verify", "--json"], ["rejected", "xivo"]):
        await listen(*line)

    hoard.said |= {f"column {where}": text for where, text in (await texts(place.database)).items()}
    hoard.said |= {f"object {key}": f"{key} {data.decode('utf-8', 'replace')}" for key, data in place.objects().items()}
    assert any("_manifests" in what for what in hoard.said)
    assert len(hoard.said["column media"]) > 1000
    hoard.assert_unknown()


async def test_stores_that_print_our_requests_learn_nothing_for_others(place, hoard):
    status = 500

    async def refuse(request: web.Request) -> web.Response:
        told = await echo(request)
        if request.query_string or request.path.startswith("/bucket"):
            told = f"<Error><Code>Trouble</Code><Message>{html.escape(told)}</Message></Error>"
        return web.Response(status=status, text=told, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        hq = await place.add("hq", ChronicallSimulator(), stores=["s3", "dav"])
        a_call(hq, 1)
        place.config["stores"] = {
            "s3": {
                "kind": "s3",
                "bucket": "bucket",
                "region": "us-east-1",
                "endpoint_url": address,
                "timeout": "5s",
                **{key: hoard.make(f"s3.{key}") for key in ("access_key_id", "secret_access_key", "session_token")},
            },
            "dav": {
                "kind": "webdav",
                "url": f"{address}/dav/",
                "timeout": "5s",
                "username": "archiver",
                "password": hoard.make("webdav.password"),
            },
        }
        for status in (500, 403, 401):
            for line in (["check"], ["check", "--json"], ["sync"], ["run"]):
                done = await place.run(*line, code=3)
                hoard.heard(f"{' '.join(line)} ({status})", done)
                assert "store s3" in done.out + done.err or "store dav" in done.out + done.err, done
        hoard.heard("verify", await place.run("verify", code=None))
    finally:
        await runner.cleanup()
    hoard.said |= {f"column {where}": text for where, text in (await texts(place.database)).items()}
    hoard.assert_unknown()


async def test_a_config_that_is_wrong_is_refused_without_its_secrets(place, hoard):
    await add_every_source(place, hoard)
    for options in place.config["sources"].values():
        options["colour"] = "red"
        options["window"] = "long"
    place.config["sources"]["genesys"]["decrypt_iv"] = hoard.secrets["genesys.password"]
    password = quote(hoard.make("database.password"), safe="")
    place.config["database"] = {"url": f"mysql://archiver:{password}@127.0.0.1/archiver"}
    for line in (["check"], ["run"], ["sync", "--json"]):
        done = await place.run(*line, code=2)
        assert done.err.count("colour") == 6
        hoard.heard(" ".join(line), done)
    place.config["database"] = {"url": f"postgresql://archiver:{password}@127.0.0.1:1/archiver"}
    for options in place.config["sources"].values():
        del options["colour"], options["window"]
    del place.config["sources"]["genesys"]["decrypt_iv"]
    for line in (["run"], ["sync", "--json"], ["status"], ["check"]):
        hoard.heard(f"{line} without a database", await place.run(*line, code=3))
    hoard.assert_unknown()


async def texts(database: str) -> dict[str, str]:
    """By table all that it holds, as it was written."""
    found = await commands.tables(database)
    return {
        name: "\n".join(json.dumps(json.loads(row), ensure_ascii=False) for row in rows) for name, rows in found.items()
    }


def test_what_is_looked_for_would_be_found(hoard):
    secret = hoard.make("some")
    for shown in (
        secret,
        f"… {secret[12:30]} …",
        quote(secret, safe=""),
        base64.b64encode(f"user:{secret}".encode()).decode(),
        base64.b64encode(f"archiver:{secret}".encode()).decode(),
        base64.b64encode(f"ab:{secret}".encode()).decode(),
    ):
        hoard.said = {"somewhere": f"it answered 500: {shown}"}
        with pytest.raises(AssertionError, match="somewhere: some"):
            hoard.assert_unknown()
    hoard.said = {"somewhere": "it answered 500: ***"}
    hoard.assert_unknown()
