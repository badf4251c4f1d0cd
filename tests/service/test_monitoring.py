"""The daemon watched from outside: HTTP, systemd, heartbeat, webhook and mail, with real servers at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult
from structlog.testing import capture_logs

from archiver.service import health, watch
from archiver.service.alerts import Alerter
from archiver.service.delivery import Undelivered, send_mail
from archiver.service.facts import StoreView, Survey
from archiver.settings.config import Alerts, Email
from tests.certificates import a_house, presenting
from tests.engine import HOUR, MINUTE, Rig, a_recorder, archiving, eventually
from tests.factories import NOON
from tests.prometheus import ROOT, page, scrape

HTTP = {"listen": "127.0.0.1:0"}


class Outside:
    """A web server that others are told by: what came, and what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.heard: list[tuple[str, str, Any]] = []

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.heard.append((request.method, request.path_qs, json.loads(body) if body else None))
        return web.Response(status=self.status)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    made = Outside()
    async with made.open() as made.url:
        yield made


def surveyed(minutes: float = 0, *, down: bool = False, database: str | None = None, bad: int = 0) -> Survey:
    """An archive with one store, so many minutes past noon."""
    store = StoreView(name="main", down_why="no connection" if down else None, bad=bad)
    at, blind = NOON + timedelta(minutes=minutes), database is not None
    return Survey(at=at, database=database, blind=blind, stores={"main": store})


# -- HTTP ------------------------------------------------------------------------------------------------------------


async def test_no_call_is_to_be_recognised_in_what_is_served(tmp_path, database, clock):
    sim = a_recorder(calls=5)
    for number, call in enumerate(sim.calls):
        # Not to be mistaken for an amount, as an extension may be.
        call.caller, call.callee = f"0033170189{number:03}", f"004930555{number:04}"
    async with archiving(tmp_path, database, sim, clock=clock, top={"http": HTTP}) as rig, rig.running() as daemon:
        await eventually(lambda: _archived(rig, 5))
        metrics = await scrape(daemon)
        assert metrics['archiver_media{source="pbx",state="archived",job="archiver",instance="here:8410"}'] == 5
        await rig.mark("short", 2)
        metrics = await scrape(daemon)
        for flag, count in {"unfinished": 0, "unchecked": 0, "short": 2}.items():
            labels = f'flag="{flag}",source="pbx",job="archiver",instance="here:8410"'
            assert metrics[f"archiver_flagged_media{{{labels}}}"] == count
        assert metrics['archiver_store_up{store="disk",job="archiver",instance="here:8410"}'] == 1
        told = "".join([(await page(daemon, path))[1] for path in ("/metrics", "/readyz", "/healthz")])
        for document in (await rig.documents()).values():
            for secret in (document["recording_id"], document["caller"], document["callee"], rig.sim.token):
                assert secret not in told
        assert {document["caller"] for document in (await rig.documents()).values()} == {c.caller for c in sim.calls}
        # The dashboard shows nothing that is not there.
        board = json.loads((ROOT / "monitoring" / "archiver.dashboard.json").read_text())
        shown = {t["expr"] for panel in board["panels"] for t in panel["targets"]}
        named = {name for expr in shown for name in re.findall(r"\b(?:archiver|process)_\w+", expr)}
        served = set(re.findall(r"^((?:archiver|process)_\w+)", told, re.MULTILINE))
        served |= set(re.findall(r"^# TYPE (\w+)", told, re.MULTILINE))
        assert named <= served
        # Labels are names of the config and words of ours.
        labels = set(re.findall(r'(\w+)="', told)) - {"le"}
        assert labels - {"reason"} == {
            *("source", "store", "state", "kind", "flag", "outcome", "code", "version"),
            *("name", "scope", "of"),
        }


async def _archived(rig: Rig, count: int) -> bool:
    return await rig.states() == {"archived": count}


async def test_a_port_that_is_taken_is_one_line_and_archiving_goes_on(tmp_path, database, clock, monkeypatch):
    monkeypatch.setattr(health, "AGAIN", 0.05)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        top = {"http": {"listen": taken}}
        sim = a_recorder(calls=2)
        with capture_logs() as said:
            async with archiving(tmp_path, database, sim, clock=clock, top=top) as rig, rig.running() as daemon:
                await eventually(lambda: _archived(rig, 2))
                (line,) = [line for line in said if line["event"] == "http.failed"]
                assert line["listen"] == taken
                assert "in use" in line["error"]
                assert "[http] listen" in line["error"]
                other.close()

                async def listening() -> bool:
                    return daemon.watch.address() is not None

                await eventually(listening)
                assert (await page(daemon, "/healthz"))[0] == 200


async def test_many_scrapes_at_once_ask_the_database_once(tmp_path, database, clock):
    sim = a_recorder(calls=0)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        surveyor = watch.Watch(rig.archive, rig.archive.engine(), lambda _: None).surveyor
        asked = 0
        numbers = rig.catalog.numbers

        async def counting(*names: Any) -> Any:
            nonlocal asked
            asked += 1
            return await numbers(*names)

        rig.catalog.numbers = counting  # type: ignore[method-assign]
        surveyor.keep = HOUR
        surveys = await asyncio.gather(*(surveyor.look() for _ in range(20)))
        assert asked == 1
        # What is kept grows older all the same.
        rig.advance(10 * MINUTE)
        later = await surveyor.look()
        assert later.sources["pbx"].lag - surveys[0].sources["pbx"].lag == 600
        assert asked == 1


async def test_readyz_finds_what_a_read_does_not(tmp_path, database, clock):
    """A table of which no number is made is gone, and nothing is written to it just now."""
    async with archiving(tmp_path, database, a_recorder(), clock=clock, top={"http": HTTP}) as rig, rig.running() as at:
        at.watch.surveyor.keep = timedelta()

        async def ready(wanted: int) -> bool:
            return at.watch.address() is not None and (await page(at, "/readyz"))[0] == wanted

        await eventually(lambda: ready(200))
        async with rig.catalog._connection() as c:
            await c.execute("ALTER TABLE lookups RENAME TO mislaid")
        await eventually(lambda: ready(503))
        assert "lacks tables of ours: lookups → " in (await at.watch.surveyor.look()).database
        async with rig.catalog._connection() as c:
            await c.execute("ALTER TABLE mislaid RENAME TO lookups")
        await eventually(lambda: ready(200))


# -- systemd ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def systemd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is told to systemd, as it comes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(folder / "n"))
        s.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "80000")

        lines: list[str] = []

        def told() -> list[str]:
            taken, lines[:] = list(lines), []
            return taken

        # Read at once, as systemd does: a full socket holds up who writes to it.
        loop = asyncio.get_running_loop()
        loop.add_reader(s, lambda: lines.extend(s.recv(4096).decode().splitlines()))
        try:
            yield told
        finally:
            loop.remove_reader(s)


async def test_the_watchdog_is_fed_by_progress_and_not_by_a_timer(tmp_path, database, clock, monkeypatch):
    monkeypatch.setattr(watch, "TELL", 0.05)
    sim = a_recorder(calls=2)
    with systemd(tmp_path, monkeypatch) as told, capture_logs() as said:
        async with archiving(tmp_path, database, sim, clock=clock) as rig, rig.running() as daemon:
            heard: list[str] = []

            async def hears(text: str) -> bool:
                heard.extend(told())
                return any(text in line for line in heard)

            await eventually(lambda: hears("WATCHDOG=1"))
            await eventually(lambda: hears("STATUS=lag "))
            await eventually(lambda: hears("2 archived since start, 0 waiting"))

            # A poll hangs; all else goes on.
            hangs, listed = asyncio.Event(), rig.feed.source.list

            async def list_(window: Any) -> Any:
                await hangs.wait()
                return await listed(window)

            rig.feed.source.list = list_
            daemon.watch.surveyor.timeouts = 0
            patience, daemon.watch.surveyor.stuck_after = daemon.watch.surveyor.stuck_after, timedelta(seconds=6)

            async def silent() -> bool:
                return any(line["event"] == "daemon.stuck" and "poll pbx" in line["parts"] for line in said)

            await eventually(silent, within=90)
            told()
            # Whatever still comes are status lines.
            heard.clear()
            await eventually(lambda: hears("not ready: stuck: poll pbx"))
            assert "WATCHDOG=1" not in heard
            hangs.set()
            daemon.watch.surveyor.stuck_after = patience
            await eventually(lambda: hears("WATCHDOG=1"))


async def test_a_source_whose_wake_up_is_lost_is_found_by_the_watchdog(tmp_path, database, clock, monkeypatch):
    monkeypatch.setattr(watch, "TELL", 0.05)
    with systemd(tmp_path, monkeypatch) as told, capture_logs() as said:
        async with archiving(tmp_path, database, a_recorder(), clock=clock) as rig, rig.running() as daemon:
            heard: list[str] = []

            async def hears(text: str) -> bool:
                heard.extend(told())
                return any(text in line for line in heard)

            async def polled() -> bool:
                return any(line["event"] == "poll.done" for line in said)

            await eventually(polled)
            await eventually(lambda: hears("WATCHDOG=1"))
            # Nobody rings any more; all else goes on.
            for job in daemon._scheduler.get_jobs():
                if "ring" in job.name:
                    job.remove()
            daemon.watch.surveyor.stuck_after = timedelta(seconds=6)

            async def found() -> bool:
                return any(line["event"] == "daemon.stuck" and "schedule pbx" in line["parts"] for line in said)

            await eventually(found, within=90)
            assert "schedule pbx" in daemon.watch.surveyor.stuck()


async def test_whatever_the_schedule_calls_runs_on_the_loop(tmp_path, database, clock):
    """In a thread, as it calls plain functions, setting an event loses wake-ups now and then."""
    async with archiving(tmp_path, database, a_recorder(), clock=clock) as rig, rig.running() as daemon:

        async def scheduled() -> bool:
            return len(daemon._scheduler.get_jobs()) >= 3

        await eventually(scheduled)
        assert [job.name for job in daemon._scheduler.get_jobs() if not inspect.iscoroutinefunction(job.func)] == []


# -- heartbeat -------------------------------------------------------------------------------------------------------


async def test_the_heartbeat_is_sent_only_while_all_is_fresh(tmp_path, database, clock, monkeypatch, outside):
    monkeypatch.setattr(watch, "HEARTBEATS", 0.0)
    sims = {"one": a_recorder(calls=1), "two": a_recorder(calls=1, seed=8)}
    top = {"heartbeat_url": f"{outside.url}/ping/token?key=hidden"}
    with capture_logs() as said:
        async with archiving(tmp_path, database, sims, clock=clock, top=top) as rig, rig.running():

            async def sent(count: int) -> bool:
                return len(outside.heard) >= count

            await eventually(lambda: sent(2))
            assert outside.heard[0] == ("GET", "/ping/token?key=hidden", None)
            # One source hangs back for longer than it may: rounds of the other go on, and nothing is sent.
            await sims["two"].stop()
            rig.advance(HOUR)
            done = len([line for line in said if line["event"] == "poll.done" and line["source"] == "one"])
            outside.heard.clear()

            async def rounds() -> bool:
                polled = [line for line in said if line["event"] == "poll.done" and line["source"] == "one"]
                return len(polled) >= done + 3

            await eventually(rounds, within=60)
            # One may have been on its way.
            assert len(outside.heard) <= 1
            await sims["two"].start()
            outside.heard.clear()
            outside.status = 500

            async def failed() -> bool:
                rig.advance(timedelta(seconds=20))
                return any(line["event"] == "heartbeat.failed" for line in said)

            await eventually(failed, within=60, every=0.3)
            assert "hidden" not in str(said)


# -- alerts ----------------------------------------------------------------------------------------------------------


async def test_a_problem_is_told_once_and_its_end_once_over_a_restart(tmp_path, outside):
    alerts = Alerts.model_validate({"webhook": f"{outside.url}/hook?token=hidden", "after": "5m"})
    alerter = Alerter(tmp_path / "alerts.json")
    await alerter.tell(surveyed(0, down=True), alerts)
    await alerter.tell(surveyed(4, down=True), alerts)
    assert outside.heard == []
    for minute in range(5, 60, 5):
        await alerter.tell(surveyed(minute, down=True), alerts)
    ((_, path, told),) = outside.heard
    assert path == "/hook?token=hidden"
    (alert,) = told["alerts"]
    assert (alert["status"], alert["alert"], alert["subject"]) == ("firing", "StoreDown", "main")
    assert alert["runbook"] == "docs/monitoring.md#storedown"
    assert "StoreDown main" in told["text"]

    alerter = Alerter(tmp_path / "alerts.json")
    await alerter.load()
    await alerter.tell(surveyed(60, down=True), alerts)
    # It comes and goes: still the same problem.
    await alerter.tell(surveyed(62), alerts)
    await alerter.tell(surveyed(63, down=True), alerts)
    assert len(outside.heard) == 1
    await alerter.tell(surveyed(64), alerts)
    await alerter.tell(surveyed(68), alerts)
    await alerter.tell(surveyed(69), alerts)
    await alerter.tell(surveyed(90), alerts)
    assert [each["status"] for _, _, told in outside.heard for each in told["alerts"]] == ["firing", "resolved"]


async def test_what_reaches_nobody_is_tried_again_less_and_less_often(tmp_path, outside):
    alerts = Alerts.model_validate({"webhook": f"{outside.url}/hook?token=hidden", "after": "0s"})
    alerter = Alerter(tmp_path / "alerts.json")
    outside.status = 503
    with capture_logs() as said:
        for second in range(0, 3600, 15):
            await alerter.tell(surveyed(second / 60, down=True), alerts)
        assert alerter.failing
        assert 5 <= len(outside.heard) <= 15
        outside.status = 204
        await alerter.tell(surveyed(90, down=True), alerts)
    assert not alerter.failing
    assert outside.heard[-1][2]["alerts"][0]["status"] == "firing"
    assert "hidden" not in str(said)


async def test_without_the_database_nothing_else_is_thought_over(tmp_path, outside):
    alerts = Alerts.model_validate({"webhook": f"{outside.url}/hook", "after": "0s"})
    alerter = Alerter(tmp_path / "alerts.json")
    await alerter.tell(surveyed(0, bad=3), alerts)
    await alerter.tell(surveyed(10, database="gone"), alerts)
    await alerter.tell(surveyed(20, database="gone"), alerts)
    await alerter.tell(surveyed(30), alerts)
    news = [(each["alert"], each["status"]) for _, _, told in outside.heard for each in told["alerts"]]
    assert news == [
        ("BadCopies", "firing"),
        ("DatabaseDown", "firing"),
        ("BadCopies", "resolved"),
        ("DatabaseDown", "resolved"),
    ]


class Mailbox:
    """What a mail server takes."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append(envelope)
        return "250 OK"

    def authenticate(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"right-password", handled=False)


async def test_alerts_go_by_mail_with_a_login(tmp_path):
    box = Mailbox()
    loop = asyncio.get_running_loop()
    how = {"authenticator": box.authenticate, "auth_require_tls": False}
    serving = await loop.create_server(lambda: SMTP(box, loop=loop, **how), "127.0.0.1", 0)
    try:
        port = serving.sockets[0].getsockname()[1]
        email = {
            "to": ["ops@example.com", "boss@example.com"],
            "from": "archiver@example.com",
            "server": f"127.0.0.1:{port}",
            "tls": "none",
            "username": "archiver",
            "password": "wrong-password",
        }
        alerter = Alerter(tmp_path / "alerts.json")
        with capture_logs() as said:
            await alerter.tell(surveyed(0, down=True), Alerts.model_validate({"email": email, "after": "0s"}))
            assert box.mails == []
            (line,) = said
            assert "535" in line["error"]
            assert "wrong-password" not in str(said)
            email["password"] = "right-password"
            await alerter.tell(surveyed(10, down=True), Alerts.model_validate({"email": email, "after": "0s"}))
        (mail,) = box.mails
        assert mail.rcpt_tos == ["ops@example.com", "boss@example.com"]
        assert mail.mail_from == "archiver@example.com"
        assert b"StoreDown main" in mail.content
        assert b"Auto-Submitted: auto-generated" in mail.content
        read = message_from_bytes(mail.content)
        assert abs(parsedate_to_datetime(read["Date"]) - datetime.now(UTC)) < timedelta(hours=1)
        assert re.fullmatch(r"<[^<>@\s]+@example\.com>", read["Message-ID"])
    finally:
        serving.close()


@pytest.mark.parametrize("how", ["starttls", "tls"])
async def test_a_mail_server_with_a_certificate_of_its_own_is_trusted_where_that_is_wanted(tmp_path, how):
    house, box, loop = a_house(tmp_path), Mailbox(), asyncio.get_running_loop()
    secure = presenting(house / "server.pem")
    about: dict[str, Any] = {"loop": loop} | ({"tls_context": secure} if how == "starttls" else {})
    wrapped = {"ssl": secure} if how == "tls" else {}
    serving = await loop.create_server(lambda: SMTP(box, **about), "127.0.0.1", 0, **wrapped)
    async with serving:
        server = f"127.0.0.1:{serving.sockets[0].getsockname()[1]}"
        email = {"to": ["ops@example.com"], "from": "archiver@example.com", "server": server, "tls": how}
        for ca_file, words in ((None, "set ca_file to the certificate of its issuer"), ("alone.pem", "another issuer")):
            told = Email.model_validate(email | ({"ca_file": house / ca_file} if ca_file else {}))
            with pytest.raises(Undelivered, match=words):
                await send_mail(told, "subject", "text")
        with pytest.raises(Undelivered, match=r"ca_file .*none\.pem: No such file"):
            await send_mail(Email.model_validate(email | {"ca_file": house / "none.pem"}), "subject", "text")
        assert box.mails == []
        await send_mail(Email.model_validate(email | {"ca_file": house / "root.pem"}), "subject", "text")
    assert len(box.mails) == 1
