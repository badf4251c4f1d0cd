"""`archiver serve` on a real archive: who gets in, what each role may, what is written down, what may be away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import aiohttp
import asyncpg
import pytest
from yarl import URL

from archiver.catalog.face import FaceCatalog
from archiver.errors import CatalogDown
from archiver.settings import config as configuration
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.web import accounts, api, application, pages_own, serving
from archiver.web.desk import accounts_file
from tests import commands

PASSWORD = "correct horse battery"
HASHED = accounts.hashed(PASSWORD)
ROLES = {
    "ada": ("compliance", accounts.Scope()),
    "bea": ("supervisor", accounts.Scope(sources=("hq",))),
    "cem": ("agent", accounts.Scope(agents=("1573",))),
    "dora": ("auditor", accounts.Scope()),
    "emil": ("admin", accounts.Scope()),
}
RIGHTS = {
    "compliance": {"find", "hear", "download"},
    "supervisor": {"find", "hear"},
    "agent": {"find", "hear"},
    "auditor": {"find", "audit", "tokens"},
    "admin": {"tokens"},
}


async def build(place):
    """Two recorders of which every call is archived; they are gone afterwards."""
    now = datetime.now(UTC).replace(microsecond=0)
    for name, kind, calls in (("hq", ChronicallSimulator, 4), ("branch", XivoSimulator, 6)):
        simulator = kind(seed=3)
        simulator.add_calls(now - timedelta(hours=2), now - timedelta(hours=1), calls, longest=3.0)
        await place.add(name, simulator)
    try:
        await place.run("sync", "--wait", "30s")
    finally:
        await place.close()


@pytest.fixture(scope="module")
def built(postgres, tmp_path_factory):
    """One archive for all tests here."""
    url = postgres.create()
    place = commands.Place(tmp_path_factory.mktemp("built"), url)
    place.config["web"] = {"listen": "127.0.0.1:0"}
    asyncio.run(build(place))
    yield place
    postgres.drop(url)


@pytest.fixture
async def place(built, tmp_path):
    """It, with nobody logged in, nothing written down, and files of its own."""
    shutil.copytree(built.store, tmp_path / "store", copy_function=os.link)
    connection = await asyncpg.connect(built.database)
    await connection.execute("TRUNCATE sessions, audit")
    await connection.close()
    async with commands.place(tmp_path, built.database) as it:
        it.config |= built.config | {"stores": {"disk": {"kind": "file", "path": "store"}}}
        it.config["web"] = dict(built.config["web"])
        yield it


@pytest.fixture
async def face(place):
    """Its address, and its parts."""
    config = configuration.load(place.write())
    file = accounts_file(config)
    made = datetime.now(UTC)
    file.write(
        accounts.Accounts(
            users={
                name: accounts.Account(name=name, role=role, scope=scope, secret=HASHED, made=made)
                for name, (role, scope) in ROLES.items()
            }
        )
    )
    kept = {}
    opened = serving.opened

    @contextlib.asynccontextmanager
    async def remembered(*how):
        async with opened(*how) as face:
            kept["face"] = face
            yield face

    serving.opened = remembered
    try:
        async with serving.served(config) as url:
            yield SimpleNamespace(url=url, file=file, face=kept["face"], desk=kept["face"].desk, place=place)
    finally:
        serving.opened = opened


@contextlib.asynccontextmanager
async def anybody(url, **headers):
    """A client that behaves as a page of ours."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(url, cookie_jar=jar, headers={"Origin": url, **headers}) as session:
        yield session


async def log_in(session, name, password=PASSWORD, **more):
    async with session.post("/login", data={"name": name, "password": password, **more}) as answer:
        return answer.status, str(answer.url)


@contextlib.asynccontextmanager
async def somebody(face, name, **headers):
    async with anybody(face.url, **headers) as session:
        assert (await log_in(session, name))[0] == 200
        yield session


async def page(session, path, **how):
    async with session.get(path, **how) as answer:
        return answer.status, await answer.text()


async def events(place, **where):
    connection = await asyncpg.connect(place.database)
    try:
        rows = [dict(row) for row in await connection.fetch("SELECT * FROM audit ORDER BY at, id")]
    finally:
        await connection.close()
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


async def calls(session, path="/"):
    """Addresses of the calls that a search shows, over all its pages."""
    found = []
    while path:
        status, shown = await page(session, path)
        assert status == 200, shown
        found += re.findall(r'<a href="(/calls/[^"]+)"', shown)
        following = re.search(r'rel="next" href="([^"]+)"', shown)
        path = following[1].replace("&amp;", "&") if following else None
    return found


async def heard(session, call, **form):
    async with session.post(f"{call}/listen", data={"reason": "complaint", **form}) as answer:
        return answer.status, await answer.text()


def media(shown):
    return re.findall(r'<audio[^>]* src="(/media/[^"]+)"', shown)


# -- getting in ------------------------------------------------------------------------------------------------------


async def test_nobody_gets_in_without_logging_in(face):
    async with anybody(face.url) as session:
        for path in ("/", "/audit", "/me", "/tokens", "/calls/hq/x"):
            async with session.get(path, allow_redirects=False) as answer:
                assert answer.status == 303, path
                assert answer.headers["Location"].startswith("/login?next=")
        assert (await page(session, "/media/x/y.wav"))[0] == 404
        assert (await page(session, "/static/style.css"))[0] == 200


async def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(face):
    async with anybody(face.url) as session:
        assert (await log_in(session, "ada", "wrong password"))[0] == 401
        assert (await log_in(session, "nobody"))[0] == 401
    assert [row["who"] for row in await events(face.place, action="login.failed")] == ["ada", "nobody"]
    assert PASSWORD not in str(await events(face.place))


async def test_wrong_passwords_lock_their_own_address_out_and_nobody_else(face):
    async with anybody(face.url, **{"X-Forwarded-For": "203.0.113.9"}) as attacker:
        for _ in range(application.TRIES):
            assert (await log_in(attacker, "ada", "wrong password"))[0] == 401
        async with attacker.post("/login", data={"name": "ada", "password": PASSWORD}) as answer:
            assert answer.status == 429
            assert application.TRIES_WITHIN - 60 < int(answer.headers["Retry-After"]) <= application.TRIES_WITHIN
        assert (await log_in(attacker, "bea"))[0] == 200
    async with anybody(face.url, **{"X-Forwarded-For": "198.51.100.7"}) as session:
        assert (await log_in(session, "ada"))[0] == 200


async def test_many_wrong_passwords_at_once_are_tried_no_more_often_than_one_after_the_other(face, monkeypatch):
    tried, fits = [], accounts.fits
    monkeypatch.setattr(accounts, "fits", lambda account, password: tried.append(password) or fits(account, password))
    async with anybody(face.url) as session:
        said = await asyncio.gather(*(log_in(session, "ada", f"wrong password {n}") for n in range(20)))
    assert sorted(status for status, _ in said) == [401] * application.TRIES + [429] * (20 - application.TRIES)
    assert len(tried) == application.TRIES


async def test_one_password_is_compared_at_a_time_for_each_takes_64_mb(face, monkeypatch):
    under_way, most, fits = 0, 0, accounts.fits

    def counted(account, password):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return fits(account, password)
        finally:
            under_way -= 1

    monkeypatch.setattr(accounts, "fits", counted)
    async with anybody(face.url) as session:
        said = await asyncio.gather(*(log_in(session, name) for name in ROLES))
    assert ([status for status, _ in said], most) == ([200] * 5, 1)


async def test_right_passwords_use_up_no_tries(face, monkeypatch):
    monkeypatch.setattr(application, "TRIES_OF_ADDRESS", 2)
    for _ in range(4):
        async with anybody(face.url) as session:
            assert (await log_in(session, "ada"))[0] == 200


async def test_after_the_log_in_one_is_where_one_wanted_to_be_and_never_at_another_site(face):
    for wanted, reached in (("/me", "/me"), ("//evil.example", "/"), ("https://evil.example/", "/"), ("/\\evil", "/")):
        async with anybody(face.url) as session:
            assert (await log_in(session, "ada", next=wanted))[1] == face.url + reached


async def test_the_cookie_is_for_the_server_alone_and_new_with_each_log_in(face):
    cookies = set()
    for _ in range(2):
        async with (
            anybody(face.url) as session,
            session.post("/login", data={"name": "ada", "password": PASSWORD}, allow_redirects=False) as answer,
        ):
            told = answer.headers["Set-Cookie"]
            assert "HttpOnly" in told
            assert "SameSite=Lax" in told
            cookies.add(told.split(";")[0])
    assert len(cookies) == 2
    connection = await asyncpg.connect(face.place.database)
    stored = await connection.fetch("SELECT encode(id, 'hex') || name FROM sessions")
    await connection.close()
    assert not any(cookie.partition("=")[2] in str(stored) for cookie in cookies)


async def test_a_session_ends_by_logging_out_by_age_and_by_a_change_of_the_account(face, monkeypatch):
    async with somebody(face, "ada") as session:
        saved = [(c.key, c.value) for c in session.cookie_jar]
        async with session.post("/logout") as answer:
            assert str(answer.url).endswith("/login")
        async with anybody(face.url) as thief:
            thief.cookie_jar.update_cookies(dict(saved))
            assert "Log in" in (await page(thief, "/me"))[1]
    async with somebody(face, "ada") as session:
        assert (await page(session, "/me", allow_redirects=False))[0] == 200
        changed = accounts.Account(name="ada", role="admin", secret=HASHED, made=datetime.now(UTC))
        face.file.write(accounts.with_user(face.file.read(), changed))
        assert (await page(session, "/me", allow_redirects=False))[0] == 303
    async with somebody(face, "bea") as session:
        face.file.write(accounts.without_user(face.file.read(), "bea"))
        assert (await page(session, "/me", allow_redirects=False))[0] == 303
    async with somebody(face, "dora") as session:
        now = face.desk.catalog.clock.now()
        monkeypatch.setattr(face.desk.catalog.clock, "now", lambda: now + timedelta(minutes=31))
        assert (await page(session, "/me", allow_redirects=False))[0] == 303


async def test_a_foreign_host_and_a_foreign_site_are_refused(face):
    async with somebody(face, "ada") as session:
        assert (await page(session, "/", headers={"Host": "evil.example"}))[0] == 400
        for headers in (
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": ""},
        ):
            async with session.post("/logout", headers=headers) as answer:
                assert answer.status == 403, headers
        assert (await page(session, "/me", allow_redirects=False))[0] == 200


async def test_the_host_is_ours_in_any_case_and_with_the_usual_port(face, monkeypatch):
    for origin, good, bad in (
        ("https://calls.example.com", ("Calls.Example.COM", "calls.example.com:443"), ("calls.example.com:80",)),
        ("http://calls.example.com", ("calls.example.com:80",), ("calls.example.com:443", "calls.example.com.evil")),
        ("http://calls.example.com:8411", ("CALLS.example.com:8411",), ("calls.example.com", "x.example.com:8411")),
    ):
        monkeypatch.setattr(face.face, "origins", {origin})
        async with anybody(face.url) as session:
            for hosts, status in ((good, 200), (bad, 400)):
                for host in hosts:
                    assert (await page(session, "/healthz", headers={"Host": host}))[0] == status, (origin, host)


async def test_every_answer_carries_the_security_headers(face):
    async with somebody(face, "ada") as session:
        (call, *_) = await calls(session)
        (address, *_) = media((await heard(session, call))[1])
        for path in ("/", "/login", "/nothing", "/static/app.js", "/healthz", call, address):
            async with session.get(path) as answer:
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"], path
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                wanted = "immutable" if path.startswith("/static") else "no-store"
                assert wanted in answer.headers["Cache-Control"], path


# -- rights and scope ------------------------------------------------------------------------------------------------


def routes(face):
    app = face.face.application()
    return [
        (route.method, route.resource.canonical, getattr(route.handler, application._RIGHT, None))
        for route in app.router.routes()
    ]


def test_a_route_without_a_right_can_not_be_added():
    from aiohttp import web

    with pytest.raises(ValueError, match="needs a right"):
        application.add(web.Application(), "GET", "/x", lambda request: None, "")


@pytest.mark.parametrize("name", ROLES)
async def test_each_route_is_open_to_the_roles_that_have_its_right_and_to_no_other(face, name):
    async with somebody(face, "ada") as session:
        (call, *_) = await calls(session, "/?source=hq")
    role = ROLES[name][0]
    async with somebody(face, name) as session:
        for method, path, right in routes(face):
            assert right in application.RIGHTS, path
            if path in ("/login", "/logout", "/me/sessions", "/static/{name}"):
                continue
            real = path.replace("/calls/{source}/{recording_id}", call).replace("{grant}/{name}", "a/b.wav")
            real = real.replace("/{source}/{recording_id}", call.removeprefix("/calls")).replace("{media_id}", "none")
            async with session.request(method, real, data={"reason": "x", "media_id": "none"}) as answer:
                status = answer.status
            if right in (application.PUBLIC, application.LOGGED_IN) or right in RIGHTS[role]:
                assert status in ((200, 404) if "{" in path else (200,)), (method, path, status)
            else:
                assert status == 403, (method, path, role, status)
    denied = await events(face.place, who=name, action="access.denied")
    assert bool(denied) == (RIGHTS[role] != {"find", "hear", "download", "audit", "tokens"})


async def test_what_is_out_of_scope_is_nowhere(face):
    async with somebody(face, "ada") as session:
        everything = await calls(session)
        hq = await calls(session, "/?source=hq")
    assert 0 < len(hq) < len(everything)
    async with somebody(face, "bea") as session:
        assert sorted(await calls(session)) == sorted(hq)
        assert await calls(session, "/?source=branch") == []
        other = max(set(everything) - set(hq))
        assert (await page(session, other))[0] == 404
        assert (await heard(session, other))[0] == 404
        assert "branch" not in (await page(session, "/"))[1]
    async with somebody(face, "cem") as session:
        mine = await calls(session)
        assert mine
        assert len(mine) < len(everything)
        for call in mine:
            assert "1573" in (await page(session, call))[1]
        for call in set(everything) - set(mine):
            assert (await page(session, call))[0] == 404


async def test_whoever_asks_for_a_call_that_is_not_theirs_or_nowhere_is_written_down_alike(face):
    async with somebody(face, "ada") as session:
        hidden = (await calls(session, "/?source=branch"))[0].removeprefix("/calls/branch/")
        (known, *_) = await calls(session, "/?source=hq")
    told = []
    for recording_id in (hidden, "none"):
        said = []
        async with somebody(face, "bea") as session:
            path = f"/calls/branch/{recording_id}"
            for method, address in (("GET", path), ("POST", f"{path}/listen")):
                async with session.request(method, address, data={"reason": "x"}) as got:
                    shown = re.sub(r"\d\d:\d\d:\d\d(\.\d+)?", "TIME", await got.text())
                    said.append((got.status, shown.replace(recording_id, "ID")))
        async with program(face, "compliance", sources=("hq",)) as session:
            path = f"/api/v1/recordings/branch/{recording_id}"
            for more in ("", "/events", "/media/audio"):
                async with session.get(path + more, headers={"X-Reason": "x"}) as got:
                    said.append((got.status, await got.text()))
        assert {status for status, _ in said} == {404}
        rows = await events(face.place, action="access.denied", source="branch", recording_id=recording_id)
        seen = [(row["who"], row["outcome"], row["details"].replace(recording_id, "ID")) for row in rows]
        assert [who for who, *_ in seen] == ["bea", "bea", "crm", "crm", "crm"]
        told.append((said, seen))
    for one, other in zip(*told, strict=True):
        assert one == other
    form = {"reason": "x", "media_id": "none"}
    async with somebody(face, "ada") as session, session.post(f"{known}/download", data=form) as got:
        assert got.status == 404
    (row,) = await events(face.place, action="access.denied", who="ada")
    assert (row["source"], row["outcome"]) == ("hq", "not found")


async def test_who_asks_for_a_call_without_the_right_is_found_at_that_call(face):
    async with somebody(face, "emil") as session:
        assert (await page(session, "/calls/hq/x"))[0] == 403
        assert (await page(session, "/calls/hq/" + "x" * 3000))[0] == 403
    rows = await events(face.place, action="access.denied", who="emil", outcome="denied")
    assert [(row["source"], row["recording_id"]) for row in rows] == [("hq", "x"), ("hq", "x" * 500)]


async def test_search_finds_by_number_agent_and_word_and_pages_to_the_end(face, monkeypatch):
    async with somebody(face, "ada") as session:
        everything = await calls(session)
        shown = (await page(session, "/?source=branch"))[1]
        number = re.search(r"<bdi>(\+\d{8,})</bdi>", shown)[1]
        for typed in (number, f"{number[:3]} {number[3:6]}-{number[6:]}", number[-7:]):
            found = await calls(session, f"/?number={typed.replace('+', '%2B')}")
            assert found, typed
            for call in found:
                assert number in (await page(session, call))[1]
        assert await calls(session, "/?agent=1573") != []
        assert await calls(session, "/?agent=nobody") == []
        assert await calls(session, "/?text=nothing-says-this") == []
        assert (await page(session, "/?number=1"))[0] == 400
        assert (await page(session, "/?state=odd"))[0] == 400
        assert (await page(session, "/?after=damaged"))[0] == 400
        look = FaceCatalog.look
        monkeypatch.setattr(
            FaceCatalog, "look", lambda it, limits, query, _, **after: look(it, limits, query, 3, **after)
        )
        assert await calls(session) == everything
        assert await calls(session, "/?order=oldest") == everything[::-1]


async def test_a_search_that_takes_too_long_ends_and_says_what_to_do(face):
    async with somebody(face, "ada") as session:
        connection = await asyncpg.connect(face.place.database)
        try:
            async with connection.transaction():
                # As long as it takes: nobody reads what is locked.
                await connection.execute("LOCK TABLE recordings IN ACCESS EXCLUSIVE MODE")
                status, shown = await page(session, "/?agent=1573")
        finally:
            await connection.close()
        assert status == 400
        assert "takes too long: name a shorter span" in shown
        assert await calls(session) != []


# -- hearing, and what is written down -------------------------------------------------------------------------------


async def test_every_call_of_the_recorders_is_heard(face):
    async with somebody(face, "ada") as session:
        for call in await calls(session):
            status, shown = await heard(session, call)
            assert status == 200
            (address,) = media(shown)
            async with session.get(address, headers={"Range": "bytes=0-"}) as answer:
                assert answer.status == 206
                assert (await answer.read())[:4] == b"RIFF"


async def test_without_a_reason_there_is_no_sound_where_the_role_needs_one(face):
    async with somebody(face, "bea") as session:
        (call, *_) = await calls(session)
        status, shown = await heard(session, call, reason="")
        assert (status, media(shown)) == (422, [])
    async with somebody(face, "cem") as session:
        (call, *_) = await calls(session)
        assert media((await heard(session, call, reason=""))[1])
    assert [row["who"] for row in await events(face.place, action="listen")] == ["cem"]


async def test_no_audit_event_no_sound(face, monkeypatch):
    async with somebody(face, "ada") as session:
        (call, *_) = await calls(session)

        async def down(*_):
            raise CatalogDown("no room")

        monkeypatch.setattr(FaceCatalog, "write_down", down)
        assert (await heard(session, call))[0] == 503
        assert face.face.calls.grants._grants == {}
        assert (await page(session, call))[0] == 503


async def test_a_media_address_is_good_for_its_own_log_in(face):
    async with somebody(face, "ada") as session, somebody(face, "bea") as other:
        (call, *_) = await calls(session, "/?source=hq")
        (address,) = media((await heard(session, call))[1])
        assert (await page(other, address))[0] == 404
        async with session.post("/logout"):
            pass
        assert (await page(session, address))[0] == 404


async def test_bytes_that_are_not_the_archived_ones_are_not_played(face):
    for file in face.place.store.rglob("*.spx"):
        spoilt = bytearray(file.read_bytes())
        spoilt[-10] ^= 1
        # Another file in its place: the other tests have the same one.
        file.unlink()
        file.write_bytes(spoilt)
    async with somebody(face, "ada") as session:
        (call, *_) = await calls(session, "/?source=hq")
        status, shown = await heard(session, call)
        assert (status, media(shown)) == (200, [])
        assert "not those that were archived" in shown


async def test_the_audit_shows_all_to_the_auditor_and_to_others_their_own(face):
    async with somebody(face, "ada") as session:
        (call, *_) = await calls(session, "/?source=hq")
        await heard(session, call)
        assert "<td><bdi>ada</bdi></td>" in (await page(session, "/audit"))[1]
    async with somebody(face, "bea") as session:
        shown = (await page(session, "/audit?who=ada"))[1]
        assert "<td><bdi>ada</bdi></td>" not in shown
    async with somebody(face, "dora") as session:
        shown = (await page(session, "/audit?action=listen"))[1]
        assert "<td><bdi>ada</bdi></td>" in shown
        assert "complaint" in shown
    told = (await face.place.run("audit", "--action", "listen", "--json")).rows
    assert [(row["who"], row["reason"], row["outcome"]) for row in told] == [("ada", "complaint", "ok")]
    assert "ada" in (await face.place.run("audit", "--csv")).out


async def test_who_reads_the_audit_is_in_it(face):
    async with somebody(face, "dora") as session:
        assert 'href="/audit.csv?who=ada&amp;tz=UTC"' in (await page(session, "/audit?who=ada"))[1]
        async with session.get("/audit.csv?action=login") as answer:
            assert answer.content_type == "text/csv"
            assert "attachment" in answer.headers["Content-Disposition"]
            heading, *rows = (await answer.text()).splitlines()
        assert heading.startswith("at,who,role,")
        assert [row.split(",")[1] for row in rows] == ["dora"]
        assert (await page(session, "/audit.csv?from=yesterday"))[0] == 400
    async with program(face, "auditor") as session:
        assert (await answer_of(session, "/api/v1/audit?who=ada"))[0] == 200
    await face.place.run("audit", "--who", "ada", "--from", "2024-05-17", "--json")
    rows = await events(face.place, action="audit.read")
    told = [(row["means"], json.loads(row["details"])) for row in rows]
    assert told == [
        ("session", {"who": "ada"}),
        ("session", {"action": "login", "as": "csv"}),
        ("token", {"who": "ada"}),
        ("command", {"who": "ada", "start": "2024-05-17T00:00:00+00:00"}),
    ]


async def test_the_audit_is_read_on_a_standby_too_which_takes_no_entry(place):
    await place.run("token", "add", "crm", "--role", "auditor")
    name = place.database.partition("?")[0].rpartition("/")[2]
    connection = await asyncpg.connect(place.database)
    try:
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        assert [row["action"] for row in (await place.run("audit", "--json")).rows] == ["token.made"]
    finally:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await connection.close()


async def test_the_csv_of_the_audit_has_every_page_of_it(face, monkeypatch):
    monkeypatch.setattr(pages_own, "MOST", 2)
    async with somebody(face, "dora") as session:
        for _ in range(4):
            await page(session, "/?number=1")
        rows = (await page(session, "/audit.csv"))[1].splitlines()
    assert [row.split(",")[5] for row in rows[1:]] == ["audit.read", *["search"] * 4, "login"]


async def test_an_auditor_of_one_recorder_sees_the_audit_of_its_calls_and_their_own_entries(face):
    async with somebody(face, "ada") as session:
        for found in ("source=hq", "source=branch&agent=("):
            (call, *_) = await calls(session, f"/?{found}")
            await page(session, call)
    for scope, wanted in (
        ({"sources": ("branch",)}, {("ada", "view", "branch"), ("crm", "audit.read", None)}),
        ({"queues": ("no such queue",)}, {("crm", "audit.read", None)}),
        ({"sources": ("hq", "branch"), "agents": ("*",)}, {("ada", "view", "branch"), ("crm", "audit.read", None)}),
    ):
        connection = await asyncpg.connect(face.place.database)
        await connection.execute("DELETE FROM audit WHERE who = 'crm'")
        await connection.close()
        async with program(face, "auditor", **scope) as session:
            _, told, _ = await answer_of(session, "/api/v1/audit?limit=500")
            assert {(e["who"], e["action"], e["source"]) for e in told["events"]} == wanted
            _, told, _ = await answer_of(session, "/api/v1/audit?who=ada&action=login")
            assert told["events"] == []
    async with program(face, "auditor") as session:
        _, told, _ = await answer_of(session, "/api/v1/audit?who=ada&action=login")
        assert len(told["events"]) == 1


# -- the native API ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def program(face, role="compliance", *, expires=None, name="crm", **scope):
    """A client with a token."""
    secret, digest = accounts.new_token()
    made = datetime.now(UTC)
    token = accounts.Account(
        name=name, role=role, scope=accounts.Scope(**scope), secret=digest, made=made, expires=expires
    )
    face.file.write(accounts.with_token(face.file.read(), token))
    async with aiohttp.ClientSession(face.url, headers={"Authorization": f"Bearer {secret}"}) as session:
        yield session


async def answer_of(session, path, **how):
    async with session.get(path, **how) as told:
        return told.status, await told.json(content_type=None), told.headers


async def test_a_program_finds_calls_reads_one_and_gets_its_bytes(face):
    async with program(face) as session:
        status, first, headers = await answer_of(session, "/api/v1/recordings?limit=3")
        assert (status, len(first["recordings"])) == (200, 3)
        assert headers["Link"] == f'<{first["next"]}>; rel="next"'
        everything, following = first["recordings"], first["next"]
        while following:
            _, told, _ = await answer_of(session, following)
            everything, following = everything + told["recordings"], told["next"]
        listed = [
            {name: value for name, value in row.items() if name != "salt"}
            for row in (await face.place.run("list", "--json")).rows
        ]
        assert sorted(map(str, everything)) == sorted(map(str, listed))
        for call in everything:
            address = f"/api/v1/recordings/{call['source']}/{call['recording_id']}"
            status, one, headers = await answer_of(session, address)
            assert (status, one) == (200, call)
            async with session.get(address, headers={"If-None-Match": headers["ETag"]}) as same:
                assert same.status == 304
            for medium in call["media"]:
                bytes_ = f"{address}/media/{medium['media_id']}"
                assert (await answer_of(session, bytes_))[0] == 422
                async with session.get(bytes_, headers={"X-Reason": "court"}) as got:
                    data = await got.read()
                assert hashlib.sha256(data).hexdigest() == medium["sha256"]
                part = {"X-Reason": "court", "Range": "bytes=10-19"}
                async with session.get(bytes_, headers=part) as got:
                    assert (got.status, await got.read()) == (206, data[10:20])
                async with session.head(f"{bytes_}?as=wav", headers={"X-Reason": "court"}) as got:
                    assert (got.status, got.headers["Content-Type"]) == (200, "audio/wav")
        status, told, _ = await answer_of(session, "/api/v1/audit?action=download&limit=500")
        assert {(e["who"], e["means"], e["reason"]) for e in told["events"]} == {("crm", "token", "court")}


async def test_a_call_is_another_for_a_program_when_a_copy_was_read_back(face):
    async with program(face) as session:
        (call, *_) = (await answer_of(session, "/api/v1/recordings"))[1]["recordings"]
        address = f"/api/v1/recordings/{call['source']}/{call['recording_id']}"
        _, one, headers = await answer_of(session, address)
        known = {"If-None-Match": f'"x", W/{headers["ETag"]}'}
        async with session.get(address, headers=known) as got:
            assert (got.status, got.headers["ETag"], await got.read()) == (304, headers["ETag"], b"")
        # Also this is looking at a call.
        assert len(await events(face.place, action="view", recording_id=call["recording_id"])) == 2
        connection = await asyncpg.connect(face.place.database)
        await connection.execute("UPDATE copies SET verified_at = now() WHERE recording_id = $1", call["recording_id"])
        await connection.close()
        async with session.get(address, headers=known) as got:
            assert (got.status, await got.json() == one) == (200, False)


async def test_a_program_reads_what_happened_to_a_call_and_who_heard_it(face):
    async with program(face, sources=("branch",)) as session:
        _, told, _ = await answer_of(session, "/api/v1/recordings?limit=1")
        call = told["recordings"][0]
        address = f"/api/v1/recordings/branch/{call['recording_id']}"
        for reason in ("one", "two"):
            bytes_ = f"{address}/media/{call['media'][0]['media_id']}?as=wav"
            async with session.get(bytes_, headers={"X-Reason": reason}) as got:
                assert got.status == 200
        status, told, headers = await answer_of(session, f"{address}/events?limit=2")
        assert status == 200
        story = (await face.place.json("why", "branch", call["recording_id"])) | {"audit": told["audit"]}
        assert {**story, "next": told["next"]} == told
        assert [event["what"] for event in told["story"]][:1] == ["first listed"]
        assert [(e["action"], e["reason"]) for e in told["audit"]] == [("view", None), ("listen", "two")]
        assert headers["Link"] == f'<{told["next"]}>; rel="next"'
        assert [e["reason"] for e in (await answer_of(session, told["next"]))[1]["audit"]] == ["one"]
        for query in ("limit=0", "after=damaged", "colour=red"):
            assert (await answer_of(session, f"{address}/events?{query}"))[0] == 400
    async with program(face, "supervisor", sources=("hq",)) as session:
        assert (await answer_of(session, f"{address}/events"))[0] == 404
    async with program(face, "supervisor", sources=("branch",), name="other") as session:
        _, told, _ = await answer_of(session, f"{address}/events")
        assert {event["who"] for event in told["audit"]} == {"other"}
        assert all("listed" in window for window in told["windows"])
    async with program(face, "supervisor", agents=("*",)) as session:
        (call, *_) = (await answer_of(session, "/api/v1/recordings"))[1]["recordings"]
        _, told, _ = await answer_of(session, f"/api/v1/recordings/{call['source']}/{call['recording_id']}/events")
        assert told["windows"]
        assert not any("listed" in window or "rejected" in window for window in told["windows"])


async def test_a_connection_is_good_for_the_next_request_after_each_answer_with_bytes(face, caplog):
    async with program(face) as session:
        call = (await answer_of(session, "/api/v1/recordings"))[1]["recordings"][0]
        address = f"/api/v1/recordings/{call['source']}/{call['recording_id']}/media/{call['media'][0]['media_id']}"
        for range_, status in (("bytes=0-", 206), ("bytes=5-9", 206), ("bytes=99999999-", 416)):
            for method in ("GET", "HEAD"):
                for shape in ("", "?as=wav"):
                    headers = {"X-Reason": "court", "Range": range_}
                    async with session.request(method, address + shape, headers=headers) as got:
                        await got.read()
                        assert got.status == status
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_method_that_is_not_there_is_refused_with_those_that_are(face):
    async with program(face) as session, session.delete("/api/v1/recordings", headers={"Origin": face.url}) as got:
        assert (got.status, got.headers["Allow"]) == (405, "GET,HEAD")
    async with somebody(face, "ada") as session, session.post("/audit") as got:
        assert (got.status, got.headers["Allow"]) == (405, "GET,HEAD")


async def test_the_api_refuses_in_problems(face):
    async with aiohttp.ClientSession(face.url) as nobody:
        status, told, headers = await answer_of(nobody, "/api/v1/recordings")
        assert (status, told["status"], headers["WWW-Authenticate"]) == (401, 401, "Bearer")
        wrong = {"Authorization": "Bearer arch_wrong"}
        assert (await answer_of(nobody, "/api/v1/recordings", headers=wrong))[0] == 401
    async with program(face) as session:
        for path, wanted in (
            ("/api/v1/recordings?limit=0", 400),
            ("/api/v1/recordings?limit=501", 400),
            ("/api/v1/recordings?colour=red", 400),
            ("/api/v1/recordings?from=yesterday", 400),
            ("/api/v1/recordings?longer_than=long", 400),
            ("/api/v1/recordings?limit=", 400),
            ("/api/v1/recordings?direction=", 400),
            ("/api/v1/recordings?text=&from=", 200),
            ("/api/v1/recordings?after=damaged", 400),
            ("/api/v1/recordings/hq/none", 404),
            ("/api/v1/nothing", 404),
        ):
            status, told, headers = await answer_of(session, path)
            assert status == wanted, path
            if status == 200:
                continue
            assert told["status"] == wanted, path
            assert headers["Content-Type"].startswith("application/problem+json")
    async with program(face, expires=datetime.now(UTC) - timedelta(days=1)) as session:
        assert (await answer_of(session, "/api/v1/recordings"))[0] == 401


def place_of(*parts):
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


ODD = [
    "/api/v1/audit?who=%00",
    "/api/v1/audit?action=%00&source=%00&recording=%00",
    "/audit?who=%00",
    "/api/v1/recordings?from=0001-01-01T00:00:00%2B05:00",
    "/api/v1/recordings?to=9999-12-31T23:59:59-05:00",
    "/?from=0001-01-01T00:00&tz=Asia/Tokyo",
    "/?to=9999-12-31T23:59&tz=America/New_York",
    "/audit?from=0001-01-01T00:00&tz=Asia/Tokyo",
    "/api/v1/recordings?to=0001-01-02&text=x",
    "/?to=0001-01-02T00:00&number=12345",
    *(
        f"{path}?after={after}"
        for path, rest in (("/", 2), ("/audit", 1), ("/api/v1/recordings", 2), ("/api/v1/audit", 1))
        for after in (
            base64.urlsafe_b64encode(b"[" * 3000).decode(),
            place_of("9999-12-31T23:59:59-23:59", *["a"] * rest),
            place_of("0001-01-01T00:00:00+23:59", *["a"] * rest),
            place_of("0001-01-01T00:00:00", *["a"] * rest),
        )
    ),
]


async def test_an_odd_address_is_answered_in_words_and_the_next_request_as_ever(face):
    async with somebody(face, "dora") as session:
        for address in ODD:
            async with session.get(URL(face.url + address, encoded=True)) as got:
                assert got.status in (200, 400), address
            # Nor is a connection to the database left behind that fails once more.
            assert (await page(session, "/me"))[0] == 200, address


async def test_a_token_sees_what_its_role_and_scope_say_and_no_page(face):
    async with program(face, "supervisor", sources=("branch",)) as session:
        _, told, _ = await answer_of(session, "/api/v1/recordings?limit=500")
        assert {call["source"] for call in told["recordings"]} == {"branch"}
        call = told["recordings"][0]
        address = f"/api/v1/recordings/branch/{call['recording_id']}/media/{call['media'][0]['media_id']}"
        assert (await answer_of(session, address, headers={"X-Reason": "x"}))[0] == 403
        async with session.get(f"{address}?as=wav", headers={"X-Reason": "x"}) as got:
            assert got.status == 200
        async with session.get("/", allow_redirects=False) as got:
            assert got.status == 303
    async with program(face, "auditor") as session:
        assert (await answer_of(session, f"{address}?as=wav", headers={"X-Reason": "x"}))[0] == 403


async def test_the_description_names_every_route_of_the_api_and_its_parameters(face):
    async with program(face) as session:
        _, told, _ = await answer_of(session, "/api/v1/openapi.json")
    described = {("GET", api.PREFIX + path) for path in told["paths"]}
    assert described == {(m, p) for m, p, _ in routes(face) if p.startswith(api.PREFIX) and m != "HEAD"}
    for path, known in (
        ("/recordings", api._SEARCH),
        ("/recordings/{source}/{recording_id}/events", api._EVENTS),
        ("/audit", api._AUDIT),
    ):
        names = {p["name"] for p in told["paths"][path]["get"]["parameters"] if p["in"] == "query"}
        assert names == set(known)


async def test_the_running_server_answers_as_its_description_says(face, tmp_path):
    """schemathesis asks what the description allows, and what it does not."""
    async with program(face) as session:
        call = (await answer_of(session, "/api/v1/recordings"))[1]["recordings"][0]
        token = session.headers["Authorization"]
    names = {"source": call["source"], "recording_id": call["recording_id"], "media_id": call["media"][0]["media_id"]}
    config = tmp_path / "schemathesis.toml"
    # What can't be made up: ids, a number, the place of a page, a part that there is, and a reason.
    fixed = {f"path.{key}": value for key, value in names.items()} | {
        "query.number": "1573",
        "query.after": "",
        "header.Range": "bytes=0-9",
        "header.X-Reason": "test",
    }
    config.write_text("[parameters]\n" + "".join(f'"{key}" = "{value}"\n' for key, value in fixed.items()))
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "--no-color",
        "run", f"{face.url}/api/v1/openapi.json", "--header", f"Authorization: {token}",
        "--phases", "examples,coverage,fuzzing", "--max-examples", "30", "--seed", "1", "--continue-on-failure",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
    )  # fmt: skip
    said = (await asyncio.wait_for(running.communicate(), 300))[0].decode()
    assert running.returncode == 0, said


# -- what is away, and comes back ------------------------------------------------------------------------------------


async def test_a_store_that_is_away_is_named_and_comes_back(face):
    away = face.place.folder / "away"
    async with somebody(face, "ada") as session:
        (call, *_) = await calls(session, "/?source=hq")
        face.place.store.rename(away)
        status, shown = await heard(session, call)
        assert status == 200
        assert "can&#39;t be had just now: store disk" in shown
        shutil.rmtree(face.place.store, ignore_errors=True)
        away.rename(face.place.store)
        assert media((await page(session, call))[1])


async def test_a_database_that_is_away_is_told_and_comes_back(face, postgres):
    async with somebody(face, "ada") as session:
        assert (await page(session, "/"))[0] == 200
        await asyncio.to_thread(postgres.stop)
        try:
            status, shown = await page(session, "/")
            assert status == 503
            assert "database of the archive can&#39;t be reached" in shown
            assert (await page(session, "/login"))[0] == 200
        finally:
            await asyncio.to_thread(postgres.start)
        end = time.monotonic() + 60
        while (await page(session, "/", allow_redirects=False))[0] != 200:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


# -- commands --------------------------------------------------------------------------------------------------------


async def test_accounts_are_made_listed_changed_and_removed_by_commands(place):
    made = ("user", "add", "ada", "--role", "compliance", "--source", "hq", "--password-file", "-")
    await place.run(*made, stdin=b"long enough it is\n")
    file = place.folder / "accounts.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "long enough" not in file.read_text()
    (listed,) = await place.json("user", "list")
    assert (listed["name"], listed["role"], listed["sources"]) == ("ada", "compliance", ["hq"])
    assert "is an account" in (await place.run(*made, stdin=b"long enough it is\n", code=2)).err
    assert (
        "10 characters"
        in (await place.run("user", "passwd", "ada", "--password-file", "-", stdin=b"short", code=2)).err
    )
    await place.run("user", "passwd", "ada", "--password-file", "-", stdin=b"another one, also long")
    await place.run("user", "remove", "ada")
    assert await place.json("user", "list") == []
    assert "no role" in (await place.run("user", "add", "x", "--role", "adminn", code=2)).err
    secret = (await place.run("token", "add", "crm", "--role", "auditor", "--expires", "90d")).out.strip()
    assert secret.startswith("arch_")
    assert secret not in file.read_text()
    assert [token["name"] for token in await place.json("token", "list")] == ["crm"]
    await place.run("token", "revoke", "crm")
    told = [row["action"] for row in (await place.run("audit", "--json")).rows]
    made = ["token.revoked", "token.made", "account.removed", "account.changed", "account.made"]
    # The reading itself, too.
    assert told == ["audit.read", *made]


async def test_an_account_and_a_token_never_share_a_name(place):
    await place.run("user", "add", "ada", "--role", "admin", "--password-file", "-", stdin=b"long enough it is")
    await place.run("token", "add", "crm", "--role", "auditor")
    assert 'an account "ada"' in (await place.run("token", "add", "ada", "--role", "auditor", code=2)).err
    said = await place.run(
        "user", "add", "crm", "--role", "admin", "--password-file", "-", stdin=b"long enough", code=2
    )
    assert 'a token "crm"' in said.err
    assert [user["name"] for user in await place.json("user", "list")] == ["ada"]
    assert [token["name"] for token in await place.json("token", "list")] == ["crm"]


async def test_a_token_of_an_agent_is_theirs(place):
    assert "--agent" in (await place.run("token", "add", "softphone", "--role", "agent", code=2)).err
    await place.run("token", "add", "softphone", "--role", "agent", "--agent", "1573", "--queue", "Berlin *")
    (told,) = await place.json("token", "list")
    assert (told["role"], told["agents"], told["queues"]) == ("agent", ["1573"], ["Berlin *"])


async def test_serve_says_where_it_is_and_ends_when_asked(place):
    running = await place.start("serve", "--listen", "127.0.0.1:0")
    await running.said("open http://127.0.0.1:")
    address = re.search(r"open (\S+)", running.err)[1]
    async with aiohttp.ClientSession() as session:
        assert (await page(session, address + "/healthz"))[0] == 200
    assert (await running.end(signal.SIGTERM)).code == 0


async def test_serve_needs_no_secret_of_a_recorder_nor_of_an_alert(place):
    place.config["sources"]["hq"] |= {"token": {"credential": "hq"}}
    place.config["sources"]["branch"] |= {"token": {"env": "NOT_SET"}}
    place.config["alerts"] = {
        "webhook": {"file": "none"},
        "email": {"to": ["ops@example.com"], "from": "archiver@example.com", "server": "smtp.example.com:587"}
        | {"username": "archiver", "password": {"credential": "mail"}},
    }
    place.config["heartbeat_url"] = {"credential": "heartbeat"}
    assert "no credential hq" in (await place.run("sync", code=2)).err
    await place.run("user", "add", "ada", "--role", "admin", "--password-file", "-", stdin=b"long enough it is")
    running = await place.start("serve", "--listen", "127.0.0.1:0")
    await running.said("open http://127.0.0.1:")
    address = re.search(r"open (\S+)", running.err)[1]
    async with anybody(address) as session:
        assert (await log_in(session, "ada", "long enough it is"))[0] == 200
    assert (await running.end(signal.SIGTERM)).code == 0
    assert "withheld" not in running.err
    # Those of the stores it does need.
    keys = {"access_key_id": "archiver", "secret_access_key": {"credential": "s3"}}
    place.config["stores"]["cloud"] = {"kind": "s3", "bucket": "calls", **keys}
    assert "no credential s3" in (await place.run("serve", code=2)).err


async def test_serve_without_an_address_or_reachable_by_others_without_an_origin_says_what_to_write(place):
    place.config["web"] = {}
    assert "web.listen" in (await place.run("serve", code=2)).err
    place.config["web"] = {"listen": "0.0.0.0:8411"}
    assert "url: is missing" in (await place.run("serve", code=2)).err


def test_an_accounts_file_that_others_may_read_is_refused(tmp_path):
    file = accounts.AccountsFile(tmp_path / "accounts.toml")
    file.write(accounts.Accounts())
    file.path.chmod(0o644)
    with pytest.raises(Exception, match="others may read it"):
        file.read()


def test_accounts_come_back_from_their_file_as_they_were(tmp_path):
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    odd = accounts.Scope(queues=('Berlin "*"\\ ü\x7f',), agents=("1573", "Joe Dalton (1573)"))
    one = accounts.Account(name="a.b@c", role="agent", scope=odd, secret="x", made=made, expires=made)
    file = accounts.AccountsFile(tmp_path / "accounts.toml")
    file.write(accounts.with_token(accounts.with_user(accounts.Accounts(), one), one))
    read = accounts.AccountsFile(file.path).read()
    assert read.users == {"a.b@c": one}
    assert read.tokens == {"a.b@c": one}


def test_a_password_too_short_is_refused():
    with pytest.raises(Exception, match="10 characters"):
        accounts.hashed("short")
    assert not accounts.fits(None, PASSWORD)
