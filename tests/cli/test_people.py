"""What is made for people: the status and its advice, the live view, first configs, completion, the manual page."""

from __future__ import annotations

import asyncio
import io
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from archiver.cli import cli
from archiver.commands import render
from archiver.commands.completing import page
from archiver.errors import StoreFull, WrongZone
from archiver.model import Window
from archiver.service import report
from archiver.service.conditions import found
from archiver.service.facts import SourceView, StoreView, Survey
from archiver.service.schedule import late
from archiver.settings.config import Alerts
from archiver.settings.options import descriptions
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sources.chronicall import ChronicallOptions
from tests import commands
from tests.commands import DAY, HOUR, ROOT
from tests.servers import free_ports
from tests.terminal import Terminal

NOW = datetime(2024, 5, 18, 12, tzinfo=UTC)


@pytest.fixture
async def place(tmp_path, database):
    async with commands.place(tmp_path, database) as made:
        yield made


def quiet(**changes):
    """A source in a status where nothing is wrong."""
    return {
        "kind": "chronicall", "enabled": True, "lag": 130.0, "covered_to": "2024-05-18T11:57:50.000Z",
        "start": "2024-05-17T00:00:00.000Z", "gaps": [], "archived": 12345, "pending": 0, "failed": 0, "gone": 3,
        "empty": 0, "bytes": 123456789, "rejected_rows": 0, "polled_at": "2024-05-18T11:59:00.000Z",
        "last_error": None, "paused_until": None, "paused_why": None, "reasons": [], "warnings": [],
        "flags": {"unfinished": 0, "unchecked": 0, "short": 0},
    } | changes  # fmt: skip


# -- status ------------------------------------------------------------------------------------------------------------

GAP = Window(DAY + HOUR, DAY + 2 * HOUR)
#: By what is wrong: what is known of the source then, its condition, and what to do about it.
TROUBLE = {
    "nothing": ({}, None, []),
    "paused": ({"paused_why": "401", "paused_until": NOW}, "SourceRefused", ["`archiver check`"]),
    "zone": ({"paused_why": str(WrongZone("Asia/Tokyo", "+6:00:00"))}, "WrongTimezone", ["timezone"]),
    "never polled": ({"polled_at": None}, "NeverPolled", ["`archiver run`", "`archiver sync hq`"]),
    "no daemon": ({"missed": True}, "SourceStale", ["systemctl status archiver", "`archiver sync hq`"]),
    "unreachable": ({"error": "can't connect"}, "ListingFails", ["`archiver check`"]),
    "failed": (
        {"queue": {("failed", "refused"): 2}, "reasons": ({"state": "failed", "count": 2, "error": "403"},)},
        "MediaFailed",
        ["`archiver retry --source hq`", "`archiver list --source hq --state failed`"],
    ),
    "failed lately": ({"queue": {("failed", "refused"): 2}}, "MediaFailed", ["`archiver retry --source hq`"]),
    "window": (
        {"error": "[2024-05-17T01:00:00.000Z, 2024-05-17T02:00:00.000Z): it answered 500"},
        "ListingFails",
        ["`archiver backfill --source hq --from 2024-05-17T01:00:00.000Z --to 2024-05-17T02:00:00.000Z --relist`"],
    ),
    "short": ({"warnings": {"short": "9 of 10"}}, "AudioShort", ["`archiver list --source hq --flag short`"]),
    "flagged": (
        {"flagged": {"unfinished": (1, 0)}},
        "MediaFlagged",
        ["`archiver list --source hq --flag unfinished`", "compare"],
    ),
    "waiting": (
        {"queue": {("pending", "other"): 1}, "reasons": ({"state": "pending", "count": 1, "error": "503"},)},
        "MediaFailing",
        ["tried again by itself"],
    ),
    "unreadable": ({"rejected": 1, "rejected_ago": 9e9}, "RowsRejected", ["`archiver rejected hq`"]),
    "look-ups": ({"lookups": (2, "it answered 500")}, "LookupsFailing", ["tried again by itself"]),
    "quiet": ({"warnings": {"quiet": "only 1 call"}}, "SourceOdd", ["`archiver check`"]),
    "losing": ({"warnings": {"losing": "9 will be lost"}}, "ExpiringUnarchived", ["more concurrency or rate"]),
    "still": ({"warnings": {"still": "9 due"}}, "SourceOdd", ["`archiver sync hq`"]),
    "untold": ({"warnings": {"untold": "not one id"}}, "SourceOdd", ["docs/sources"]),
    "gap": ({"gaps": 1, "first_gap": GAP, "gap_seconds": 3600.0}, "LedgerGaps", ["`archiver sync hq`"]),
}


def told(*views):
    sources = {view.name: view for view in views if isinstance(view, SourceView)}
    stores = {view.name: view for view in views if isinstance(view, StoreView)}
    return report.problems(found(Survey(at=NOW, sources=sources, stores=stores), Alerts()))


@pytest.mark.parametrize("name", TROUBLE)
def test_each_trouble_of_a_source_is_told_with_what_to_do(name):
    changes, condition, commands_told = TROUBLE[name]
    known = {"polled_at": NOW} | changes
    problems = told(SourceView(name="hq", kind="chronicall", **known))
    assert [p["condition"] for p in problems] == [condition] * bool(condition)
    for command in commands_told:
        assert command in problems[0]["do"]


@pytest.mark.parametrize(
    ("poll", "minutes", "missed"),
    [
        ("5m", 15, False),
        ("5m", 21, True),
        ("1h", 125, False),
        ("1h", 131, True),
        ("0 * * * *", 100, False),
        ("0 * * * *", 131, True),
        ("0 3 * * *", 60 * 30, False),
        ("0 3 * * *", 60 * 60, True),
    ],
)
def test_a_poll_is_missed_when_two_beats_and_some_minutes_have_passed(poll, minutes, missed):
    assert late(poll, NOW - timedelta(minutes=minutes), NOW) is missed


def shown(document, **how):
    target = io.StringIO()
    render.status(Console(file=target, highlight=False, emoji=False, **how), document)
    return target.getvalue()


def test_the_status_fits_80_columns_and_says_everything_off_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    reasons = ({"state": "failed", "count": 2, "error": "it answered 403 " + "x" * 90},)
    known = {"queue": {("failed", "refused"): 2}, "reasons": reasons, "gaps": 1, "first_gap": GAP}
    gap = {"from": "2024-05-17T01:00:00.000Z", "to": "2024-05-17T02:00:00.000Z"}
    document = {
        "sources": {"hq": quiet(failed=2, gaps=[gap]), "off": quiet(enabled=False)},
        "stores": {"disk": {"kind": "file", "copies": 12345, "bytes": 123456789, "bad": 0}},
        "problems": told(SourceView(name="hq", kind="chronicall", polled_at=NOW, **known)),
    }
    narrow = shown(document, width=80, force_terminal=True, color_system="standard")
    assert "\x1b[31m" in narrow
    lines = re.sub(r"\x1b\[[0-9;]*m", "", narrow).splitlines()
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"hq +2m 10s +1 +12345 +0 +2 +3 +0 +117.7 MiB", lines[1].strip()), lines
    wide = shown(document, width=250)
    assert "\x1b" not in wide
    assert re.search(
        r"^hq +chronicall +2m 10s +2024-05-18 11:57:50 +1 +12345 +0 +2 +3 +0 +117.7 MiB", wide, re.MULTILINE
    )
    lines = wide.splitlines()
    for problem in document["problems"]:
        assert f"  → {problem['do']}" in lines
    assert "nothing is wrong" in shown(document | {"problems": []}, width=80)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(document, width=80, force_terminal=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain), plain


def test_what_a_store_does_not_take_is_told_once_with_its_commonest_reason_and_named():
    refused = "refused this object: it answered 413"
    medium = {"source": "hq", "recording_id": "1", "media_id": "audio", "error": refused}
    waiting = {"count": 3, "error": refused, "media": [medium]}
    (problem,) = told(StoreView(name="main", waiting=waiting))
    assert (problem["condition"], problem["what"]) == ("ObjectsRefused", f"3 media wait for it: {refused}")
    assert problem["details"] == [f"hq 1 audio: {refused}", "and 2 more"]
    assert "it takes the others" in problem["do"]
    waiting = {"count": 1, "error": "no connection", "media": [medium | {"error": "no connection"}]}
    (problem,) = told(StoreView(name="main", waiting=waiting))
    assert (problem["condition"], problem["what"]) == ("StoreWaiting", "1 medium waits for it: no connection")
    assert "`archiver check`" in problem["do"]
    full = str(StoreFull("the disk has no room"))
    waiting = {"count": 1, "error": full, "media": [medium | {"error": full}]}
    (problem,) = told(StoreView(name="main", waiting=waiting))
    assert (problem["condition"], problem["what"]) == ("StoreFull", f"1 medium waits for it: {full}")
    assert "make room" in problem["do"]


async def test_flagged_media_are_counted_found_and_explained(place):
    hq = await place.add("hq", XivoSimulator())
    for n in range(3):
        hq.add_call(datetime.now(UTC) - HOUR + n * timedelta(minutes=1), timedelta(seconds=1))
    await place.run("sync")
    first, second, third = [r["recording_id"] for r in (await place.run("list", "--json")).rows]
    none = {"unfinished": 0, "unchecked": 0, "short": 0}
    status = await place.json("status")
    assert (status["sources"]["hq"]["flags"], status["problems"]) == (none, [])
    await place.mark(first, "short", note="3 s of audio, the source said [bold]23 min[/]")
    await place.mark(second, "short", "unchecked", note="nobody knows this kind")
    status = await place.json("status")
    assert status["sources"]["hq"]["flags"] == none | {"short": 2, "unchecked": 1}
    assert [(p["level"], p["what"].partition(":")[0]) for p in status["problems"]] == [
        ("note", "1 medium is flagged unchecked"),
        ("note", "2 media are flagged short"),
    ]
    told = (await place.run("status")).out
    assert "`archiver list --source hq --flag short` names the calls" in told
    assert "nothing is wrong" in told
    for flag, ids in {"short": [first, second], "unchecked": [second], "unfinished": []}.items():
        rows = (await place.run("list", "--json", "--flag", flag)).rows
        assert [r["recording_id"] for r in rows] == ids
        assert all(flag in r["media"][0]["flags"] for r in rows)
    listed = (await place.run("list")).out.splitlines()
    assert [line.split()[-2:] for line in listed[2:]] == [["short,", "unchecked"], ["1s", "archived"]]
    wrong = await place.run("list", "--flag", "long", code=2)
    assert all(flag in wrong.err for flag in none)
    for command in ("show", "why"):
        assert (
            "flagged short: 3 s of audio, the source said [bold]23 min[/]"
            in (await place.run(command, "hq", first)).out
        )
        assert "flagged" not in (await place.run(command, "hq", third)).out
    assert (await place.json("why", "hq", second))["media"][0]["flags"] == ["short", "unchecked"]


async def test_the_live_view_goes_on_without_the_database_and_ends_on_ctrl_c(place, postgres):
    place.config["sources"]["hq"] = {"kind": "chronicall", "base_url": "http://127.0.0.1:1", "token": "secret-token"}
    before = await commands.tables(place.database)
    async with Terminal("--config", str(place.write()), "status", "--watch", cwd=place.folder) as screen:
        await screen.shows("every 2 s; Ctrl-C ends")
        await screen.shows("hq")
        name = place.database.split("?")[0].rpartition("/")[2]
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            await screen.shows("the database can't be reached")
            await screen.shows("hq")
        finally:
            postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await screen.shows("every 2 s; Ctrl-C ends")
        assert await screen.interrupted() == 0
        assert "Traceback" not in screen.text
    assert await commands.tables(place.database) == before
    refused = await place.run("status", "--watch", code=2)
    assert "`archiver status --json`" in refused.err


# -- progress ----------------------------------------------------------------------------------------------------------


async def test_get_writes_many_to_a_folder_and_bars_count_bytes_and_manifests(place, postgres):
    pbx = await place.add("pbx", XivoSimulator(), timezone="Europe/Paris")
    for i in range(4):
        pbx.add_call(DAY + i * HOUR, timedelta(seconds=1 + i), caller=f"+3311111111{i}")
    span = ("--from", "2024-05-17", "--to", "2024-05-17T06:00")
    await place.run("backfill", "--source", "pbx", *span)
    everything = await place.run("list", "--json")
    long = (await place.run("list", "--json", "--longer-than", "2s")).rows
    assert sorted(r["duration"] for r in long) == [r["duration"] for r in everything.rows if r["duration"] > 2]
    assert 0 < len(long) < 4

    audio = sorted(place.truth().values())
    await place.run("get", "--listed", "-", "-o", "calls/", stdin=everything.raw)
    got = list((place.folder / "calls").iterdir())
    assert sorted(path.read_bytes() for path in got) == audio
    assert all(re.match(r"20240517T\d{6}Z-audio-", path.name) for path in got)
    unknown = b'{"source": "pbx", "recording_id": "x"}\n' + everything.raw
    some = await place.run("get", "--listed", "-", "-o", "some/", stdin=unknown, code=1)
    assert some.err == 'there is no recording "x" of source "pbx"; `archiver list --source pbx` shows them\n'
    assert sorted(path.read_bytes() for path in (place.folder / "some").iterdir()) == audio
    nonsense = await place.run("get", "--listed", "-", "-o", "some/", stdin=b"nonsense\n", code=2)
    assert "line 1 is no line of `archiver list --json`" in nonsense.err

    program = ("--config", str(place.write()))
    async with Terminal(*program, "verify", cwd=place.folder) as screen:
        assert await screen.ends() == 0, screen.text
    assert re.search(r"read .*[\d.]+/[\d.]+ [kK]i?B", screen.text), screen.text
    place.config["database"]["url"] = postgres.create()
    async with Terminal("--config", str(place.write()), "rebuild", "--store", "disk", cwd=place.folder) as screen:
        assert await screen.ends() == 0, screen.text
    assert re.search(r"read manifests .*\d/\d", screen.text), screen.text
    assert "4 recordings from" in screen.text


async def test_one_long_window_and_many_call_ids_show_how_often_the_recorder_was_asked(place):
    pbx = await place.add("pbx", NoojeeSimulator(), listing="hour", hour_interval="150ms", window="7d", rate="100/s")
    pbx.add_call(DAY + HOUR, timedelta(seconds=1))
    backfill = ("--config", str(place.write()), "backfill", "--source", "pbx")
    day = ("--from", "2024-05-17", "--to", "2024-05-18")
    (place.folder / "ids").write_text("".join(f"{1e9 + n:.0f}.{n}\n" for n in range(300)))
    for more, what in (
        ((*day, "--dry-run"), "listed windows"),
        (day, "listing"),
        (("--ids", str(place.folder / "ids")), "listing"),
    ):
        async with Terminal(*backfill, *more, cwd=place.folder, columns=120) as screen:
            await screen.ends()
        shown = [int(count) for count in re.findall(rf"{what} \((\d+) requests\)", screen.text)]
        assert max(shown, default=0) > 3, screen.text[-2000:]


# -- completion and the manual page ------------------------------------------------------------------------------------


async def test_shells_complete_commands_options_and_the_names_in_the_config(place):
    place.config["sources"] = {"hq": {"kind": "chronicall"}, "paris": {"kind": "xivo"}}
    place.write()

    async def completed(line: str, **env: str) -> list[str]:
        asked = {"_ARCHIVER_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        done = await place.run(config=False, env=asked | env)
        return [row.partition(",")[2] for row in done.out.split("\n")][: done.out.count("\n")]

    assert "status" in await completed("archiver sta")
    assert await completed("archiver status --wa") == ["--watch"]
    assert await completed("archiver sync ") == ["hq", "paris"]
    assert await completed("archiver list --source p") == ["paris"]
    assert await completed("archiver verify --store ") == ["disk"]
    assert await completed("archiver list --flag un") == ["unfinished", "unchecked"]
    elsewhere = place.folder / "other.toml"
    elsewhere.write_text("[sources.rome]\n")
    assert await completed(f"archiver --config {elsewhere} why ") == ["rome"]
    assert await completed("archiver sync ", ARCHIVER_CONFIG="/nowhere") == [""]
    for shell in ("bash", "zsh", "fish"):
        script = (await place.run("completion", shell, config=False)).out
        assert "_ARCHIVER_COMPLETE" in script
    script = (await place.run("completion", "bash", config=False)).raw
    checked = await asyncio.create_subprocess_exec("bash", "-n", stdin=asyncio.subprocess.PIPE)
    await checked.communicate(script)
    assert checked.returncode == 0


def test_the_manual_page_is_in_step_with_the_commands():
    written = (ROOT / "docs" / "archiver.1").read_text("utf-8")
    assert written == page(cli), "write it anew: .venv/bin/archiver manual > docs/archiver.1"
    for name in cli.commands:
        assert cli.commands[name].hidden or f"\n.SS {name} " in written


def test_every_command_is_in_a_section_of_the_help():
    from archiver.cli import COMMANDS

    listed = {command.name for commands in COMMANDS.values() for command in commands}
    assert listed == {name for name, command in cli.commands.items() if not command.hidden}


# -- mistakes ----------------------------------------------------------------------------------------------------------

GOOD = """\
[stores.disk]
kind = "file"
path = "store"
[sources.hq]
kind = "chronicall"
base_url = "http://127.0.0.1:{port}"
"""
DAY_OF = "--from 2024-05-17 --to 2024-05-18"
NO_DATABASE = '[database]\nurl = "postgresql://127.0.0.1:{port}/x"\n'
TOKEN = 'token = "secret-token"\n'
#: What the config holds, what is asked, what must be told.
MISTAKES = {
    "no source": ('[stores.disk]\nkind = "file"\npath = "x"\n', "check", "add a section [sources.NAME]"),
    "a typing error": (GOOD + TOKEN + 'windw = "1h"\n', "check", 'did you mean "window"?'),
    "a wrong kind": (GOOD.replace("chronicall", "chronical") + TOKEN, "check", "known are chronicall"),
    "a wrong duration": (GOOD + TOKEN + 'window = "an hour"\n', "check", 'write it like "90s"'),
    "a wrong rate": (GOOD + TOKEN + 'rate = "fast"\n', "check", 'write it like "10/s"'),
    "a wrong zone": (GOOD + TOKEN + 'timezone = "Paris"\n', "check", 'write it like "Europe/Paris"'),
    "a wrong start": (GOOD + TOKEN + 'start = "soon"\n', "check", "write it like 2024-01-31"),
    "a store that is not there": (GOOD + TOKEN + 'stores = ["dsk"]\n', "check", 'did you mean "disk"?'),
    "a secret without its variable": (GOOD + 'token = { env = "NOT_SET" }\n', "check", "set it"),
    "a secret without its file": (GOOD + 'token = { file = "none" }\n', "check", "make it"),
    "no token": (GOOD, "check", "add it"),
    "no config": (None, "status", "`archiver init`"),
    "an unknown source": (GOOD + TOKEN, "sync paris", "the config has hq"),
    "a source that is off": (GOOD + TOKEN + "enabled = false\n", "sync hq", "set enabled = true"),
    "an unknown store": (GOOD + TOKEN, "verify --store tape", "the config has disk"),
    "no budget": (GOOD + TOKEN, "verify --budget much", 'write it like "64MiB"'),
    "no time": (GOOD + TOKEN, "backfill --source hq", "--from T --to T"),
    "a wrong time": (GOOD + TOKEN, "list --from soon", "write it like 2024-05-17"),
    "an unknown recording": (GOOD + TOKEN, "show hq 1", "`archiver list --source hq`"),
    "an unknown recording to get": (GOOD + TOKEN, "get hq 1 -o -", "`archiver list --source hq`"),
    "a recorder that is not there": (GOOD + TOKEN, "check", "see that the recorder runs and base_url is right"),
    "a folder that is not there": (
        GOOD.replace('"store"', '"none/store"') + TOKEN, "sync", "mount its disk"
    ),
    "no recorder to list": (GOOD + TOKEN, "backfill --dry-run --source hq " + DAY_OF, "`archiver check` tr"),
    "no database": (NO_DATABASE + GOOD + TOKEN, "status", "see that PostgreSQL runs and [database] url is right"),
    "a URL with a wrong database": ('database.url = "mysql://x"\n' + GOOD + TOKEN, "status", '"embedded"'),
}  # fmt: skip


async def test_every_mistake_is_answered_by_what_to_do_next(place):
    (port,) = free_ports(1)
    folders = {}
    for number, (name, (text, *_)) in enumerate(MISTAKES.items()):
        folders[name] = place.folder / str(number)
        folders[name].mkdir()
        if text is not None:
            text = text.replace("{port}", str(port))
            database = "" if "database" in text else f'[database]\nurl = "{place.database}"\n'
            (folders[name] / "archiver.toml").write_text(database + text)
            (folders[name] / "archiver.toml").chmod(0o600)

    async def tried(name: str) -> None:
        _, line, wanted = MISTAKES[name]
        done = await place.run(*line.split(), config=False, cwd=folders[name], code=None)
        assert done.code in {1, 2, 3}, (name, done)
        told = done.err + done.out
        assert wanted in told, (name, done)
        assert "secret-token" not in told, name

    for name in MISTAKES:
        await tried(name)


# -- the first config --------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_options_are_described_by_their_own_class():
    told = descriptions(ChronicallOptions)
    assert told["token"] == "The authentication key of a Service User."
    assert told["window"] == "The longest span one listing asks for."
    # A class that says it anew is believed.
    assert told["concurrency"] == "Small: the recorder serves beside recording calls."
    assert set(told) == {about.alias or name for name, about in ChronicallOptions.model_fields.items()}


async def test_init_asks_tries_and_writes_a_config_that_works(place):
    hq = await place.add("hq", ChronicallSimulator())
    hq.add_call(datetime.now(UTC) - timedelta(minutes=30), timedelta(seconds=1))
    token = hq.options()["token"]
    async with Terminal("init", cwd=place.folder) as person:
        await person.answers(("kind: ", "asterisk"), ("known are chronicall", "chronicall"), ("name [hq]", ""))
        await person.answers(("base_url: ", "10.0.0.1"), ("is no base URL", hq.base_url), ("token: ", "wrong"))
        await person.answers(("start: ", "2024-05-01"), ("options to set", "?"), ("The longest span", ""))
        await person.answers(("FAILED  source hq: ", "a"), (f"base_url [{hq.base_url}]", ""), ("token: ", token))
        await person.answers(("start [2024-05-01]", ""), ("options to set", "window"), ("window: ", "30m"))
        await person.answers(("ok      source hq: ", "n"))
        await person.answers(("kind: ", "file"), ("name [main]", "disk"), ("path: ", "none/calls"), ("to set", ""))
        await person.answers(("FAILED  store disk", "a"), ("path [none/calls]", "calls"), ("to set", ""))
        await person.answers(("ok      store disk", "n"), ("database [embedded]", place.database))
        await person.shows("ok      database")
        await person.shows("next:")
        assert await person.ends() == 0
        assert token not in person.text
        assert "Traceback" not in person.text
        assert max(map(len, person.text.splitlines())) <= 80 + len(place.database)
    written = place.folder / "archiver.toml"
    text = written.read_text()
    assert token not in text
    assert 'token = { file = "hq.token" }' in text
    assert "start = 2024-05-01" in text
    assert (place.folder / "hq.token").read_text() == token + "\n"
    assert (mode(written), mode(place.folder / "hq.token")) == (0o600, 0o600)
    assert not list(place.folder.glob(".archiver-*"))
    checked = await place.run("check", "--json", config=False)
    assert checked.json["ok"] is True
    assert not checked.err
    # What is there is not written over without being asked, and a secret of somebody else's never.
    answered = ("init", "--answers", "archiver.toml")
    assert "--force writes over it" in (await place.run(*answered, config=False, code=2)).err
    refused = await place.run("init", config=False, stdin=b"n\n", code=2)
    assert "--force writes over it" in refused.err
    assert written.read_text() == text


async def test_a_second_init_gets_a_data_dir_of_its_own_and_says_so(place):
    hq = await place.add("hq", ChronicallSimulator())
    home = {"HOME": str(place.folder / "home"), "STATE_DIRECTORY": ""}
    table = {"kind": "chronicall", "base_url": hq.base_url, "token": hq.token}
    for name in ("one", "two", "three"):
        (place.folder / name).mkdir()
        document = {
            **({"data_dir": "../home/.local/share/archiver"} if name == "three" else {}),
            "database": {"url": place.database},
            "stores": {"disk": {"kind": "file", "path": "calls"}},
            "sources": {name: table},
        }
        (place.folder / name / "answers").write_text(commands.toml(document))

    async def init(name: str, *more: str, code: int = 0) -> str:
        config = ("--config", f"{name}/archiver.toml")
        return (
            await place.run(*config, "init", "--answers", f"{name}/answers", *more, config=False, env=home, code=code)
        ).err

    first = place.folder / "home/.local/share/archiver"
    said = f"{first} is the data_dir of {place.folder / 'one/archiver.toml'}: this archive gets {first}-2"
    assert said not in await init("one")
    assert said in (await init("two")).splitlines()
    assert f'data_dir = "{first}-2"' in (place.folder / "two/archiver.toml").read_text()
    assert "data_dir" not in (place.folder / "one/archiver.toml").read_text()
    # Written again it keeps what it has.
    assert said not in await init("one", "--force")
    assert "is that of" in await init("three", code=2)
    # Who wrote it by hand is warned.
    three = place.folder / "three/archiver.toml"
    three.write_text((place.folder / "three/answers").read_text())
    three.chmod(0o600)
    checked = await place.run("--config", str(three), "check", "--offline", config=False, env=home)
    assert "is that of" in checked.out + checked.err


async def test_init_takes_piped_answers_and_a_file_of_them(place):
    hq = await place.add("hq", ChronicallSimulator())
    token = hq.options()["token"]
    lines = ["chronicall", "hq", hq.base_url, "env:HQ_TOKEN", "", "none", "n", "file", "disk", "calls", "none", "n", ""]
    env = {"HQ_TOKEN": token}
    piped = "\n".join([*lines[:-1], place.database, ""]).encode()
    asked = await place.run("--config", "piped.toml", "init", stdin=piped, config=False, env=env)
    assert asked.err.count("ok      ") == 6
    assert "archiver --config piped.toml sync hq" in asked.err
    assert not asked.raw
    assert 'token = { env = "HQ_TOKEN" }' in (place.folder / "piped.toml").read_text()
    half = await place.run("--config", "half.toml", "init", stdin=b"chronicall\nhq\n", config=False, code=2)
    assert 'standard input ended before an answer to "base_url"; nothing was written' in half.err
    assert not (place.folder / "half.toml").exists()

    def answers(**changes: str) -> None:
        table = {"kind": "chronicall", "base_url": hq.base_url, "token": token} | changes
        place.folder.joinpath("answers").write_text(
            commands.toml(
                {
                    "data_dir": "made",
                    "transfers": 4,
                    "database": {"url": place.database},
                    "stores": {"disk": {"kind": "file", "path": "calls"}},
                    "sources": {"hq": table},
                }
            )
        )

    init = ("--config", "made.toml", "init", "--answers", "answers")
    answers(token="wrong-token")
    failed = await place.run(*init, config=False, code=3)
    assert "nothing was written" in failed.err
    answers(windw="1h")
    mistaken = await place.run(*init, config=False, code=2)
    assert mistaken.err.splitlines() == ['made.toml: sources.hq.windw: unknown key; did you mean "window"?']
    assert {path.name for path in place.folder.glob("*made*")} == set()
    answers()
    (place.folder / "hq.token").write_text("somebody else's")
    made = await place.run(*init, config=False)
    assert token not in made.err
    assert (place.folder / "hq.token").read_text() == "somebody else's"
    assert (place.folder / "hq.token2").read_text() == token + "\n"
    again = await place.run("--config", "made.toml", "check", "--json", config=False)
    assert again.json["ok"] is True
