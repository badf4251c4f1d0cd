"""Every command as users run it: what it prints, where, and the exit code (contract: "Commands")."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from archiver import __version__
from archiver.audio.spool import Spool
from archiver.catalog.catalog import Catalog
from archiver.cli import cli
from archiver.model import Direction
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync.engine import Engine
from tests import commands
from tests.commands import DAY, HOUR, ROOT, WHOLE_DAY, Place, until
from tests.factories import ManualClock
from tests.servers import free_ports

RECORDING = {
    "source", "kind", "recording_id", "call_id", "state", "started_at", "ended_at", "duration", "direction", "caller",
    "callee", "agent", "queue", "parties", "events", "attributes", "media", "raw",
}  # fmt: skip
MEDIUM = {
    "media_id",
    "state",
    "content_type",
    "size",
    "sha256",
    "duration",
    "coding",
    "flags",
    "note",
    "attempts",
    "error",
    "copies",
}
SMALL_HOURS = ("--from", "2024-05-17", "--to", "2024-05-17T03:00")
COUNTS = {"windows", "listed", "new", "archived", "pending", "failed", "gone", "empty", "bytes"}
HOSTILE = "[bold red]1[/] \x1b]0;owned\x07\x1b[2J\r\n:warning: \u202e[link=file:///etc]2\\"
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,6}Z")


@pytest.fixture
async def place(tmp_path, database):
    async with commands.place(tmp_path, database) as made:
        yield made


@pytest.fixture
def short_folder():
    """Open to the account that an embedded database runs under, and short enough for its socket."""
    with tempfile.TemporaryDirectory(prefix="cli-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


class Filled(Place):
    """What the recorders held, and what the command said that archived it."""

    truth_then: dict[tuple[str, str, str], bytes]
    synced: commands.Finished


@pytest.fixture(scope="module")
def archive(tmp_path_factory, postgres):
    """An archive that only reading commands may use: a Chronicall and a XiVO whose callers are hostile."""
    url = postgres.create()
    made = Filled(tmp_path_factory.mktemp("archive"), url)

    async def fill() -> None:
        hq = await made.add("hq", ChronicallSimulator(api_version="v2"), rate="1000/s")
        pbx = await made.add("pbx", XivoSimulator(), timezone="Europe/Paris")
        at = datetime.now(UTC) - 2 * HOUR
        for i in range(8):
            direction = (Direction.INBOUND, Direction.OUTBOUND)[i % 2]
            outside, inside = f"+1650466888{i}", "1573"
            caller, callee = (outside, inside) if i % 2 == 0 else (inside, outside)
            how = {"direction": direction, "caller": caller, "callee": callee, "note": f"tag-{i}"}
            hq.add_call(at + timedelta(minutes=i), timedelta(seconds=2), **how)
        for i in range(3):
            pbx.add_call(at + timedelta(minutes=i, seconds=1), timedelta(seconds=1), caller=HOSTILE, note=HOSTILE)
        made.truth_then = made.truth()
        made.synced = await made.run("sync", "--json")
        await made.close()

    asyncio.run(fill())
    yield made
    postgres.drop(url)


def assert_no_control_characters(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)


# -- without an archive ----------------------------------------------------------------------------------------------


def test_the_version_needs_nothing_heavy():
    heavy = (
        "aiohttp asyncpg boto3 pydantic rich apscheduler structlog archiver.catalog.catalog archiver.settings.config"
    )
    script = f"import sys, archiver.cli; print([m for m in {heavy.split()!r} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
    told = subprocess.run(
        [sys.executable, "-m", "archiver", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert __version__ in told.stdout


def test_every_command_of_the_contract_is_there_with_its_options():
    contract = {
        "run": "",
        "sync": "--wait --json",
        "backfill": "--source --from --to --relist --dry-run --ids --wait --json",
        "check": "--offline --json",
        "init": "--answers --force --no-check",
        "completion": "",
        "status": "--watch --json",
        "list": "--source --from --to --caller --callee --direction --state --text --longer-than --limit --json",
        "show": "--json",
        "why": "--json",
        "get": "-o --listed --raw",
        "bundle": "-o --listed --source --from --to --number --wav --reason --case --recipient --purpose",
        "retry": "--source --state",
        "verify": "--store --source --budget --orphans --json",
        "rebuild": "--store --drill --sample --json",
        "reconcile": "--source --from --to --dry-run --json",
        "migrate": "",
        "demo": "",
    }
    for name, options in contract.items():
        assert name in cli.commands, name
        known = {o for parameter in cli.commands[name].params for o in parameter.opts}
        assert known >= set(options.split()), name
        assert cli.commands[name].help, name


async def test_wrong_usage_exits_2_and_says_how_it_is_meant(archive):
    wrong = {
        "nonsense": "No such command",
        "": "Usage:",
        "sync nowhere": 'there is no source "nowhere"; the config has hq, pbx',
        "sync --wait soon": "is not a duration",
        "backfill --source hq": "--from T --to T (or --ids FILE)",
        "backfill --source hq --from tomorrow --to 2024-05-18": "write it like 2024-05-17",
        "backfill --source hq --from 2024-05-18 --to 2024-05-17": "--from must lie before --to",
        "backfill --source hq --from 2124-05-17 --to 2124-05-18": "before now",
        "backfill --from 2024-05-17 --to 2024-05-18": "--source",
        "backfill --source hq --ids /nowhere/ids": "No such file",
        "backfill --source pbx --ids - --relist": "--ids goes alone",
        "list --state lost": "'lost'",
        "list --limit 0": "--limit",
        "show hq": "RECORDING_ID",
        "get hq 1": "--output",
        "rejected nowhere": 'there is no source "nowhere"',
        "retry --source nowhere": 'there is no source "nowhere"',
        "retry --state archived": "'archived'",
        "verify --store nowhere": 'there is no store "nowhere"',
        "verify --budget much": "--budget is not a size",
        "rebuild": "--store",
        "--log-level loud status": "'loud'",
    }
    for some in (list(wrong)[0::4], list(wrong)[1::4], list(wrong)[2::4], list(wrong)[3::4]):
        for line, done in zip(
            some, await asyncio.gather(*(archive.run(*s.split(), code=2) for s in some)), strict=True
        ):
            assert wrong[line] in done.err, done
            assert not done.raw, done


async def test_the_config_is_found_by_option_then_environment_then_in_the_working_folder(archive, tmp_path):
    async def used(*options: str, **how: object) -> str:
        done = await archive.run(*options, "check", "--offline", "--json", config=False, **how)
        (result,) = done.json["checks"]
        assert (result["what"], result["ok"]) == ("config", True)
        return result["line"].split(":")[0]

    names = {}
    for name in ("option", "environment", "working"):
        (tmp_path / name).mkdir()
        names[name] = tmp_path / name / "archiver.toml"
        names[name].write_text(archive.write().read_text())
    env, cwd = {"ARCHIVER_CONFIG": str(names["environment"])}, names["working"].parent
    option = ("--config", str(names["option"]))
    assert await asyncio.gather(used(*option, env=env, cwd=cwd), used(env=env, cwd=cwd), used(cwd=cwd)) == [
        str(names["option"]),
        str(names["environment"]),
        str(names["working"]),
    ]
    nothing = {"ARCHIVER_CONFIG": str(tmp_path / "none.toml")}
    lost, named = await asyncio.gather(
        archive.run("status", config=False, cwd=cwd, env=nothing, code=2),
        archive.run("--config", "none.toml", "status", config=False, cwd=cwd, code=2),
    )
    todo = "; `archiver init` writes a first config\n"
    assert lost.err == f"$ARCHIVER_CONFIG: there is no file {tmp_path}/none.toml{todo}"
    assert named.err == f"--config: there is no file none.toml{todo}"


async def test_five_mistakes_in_the_config_are_five_lines(place):
    await place.add("hq", ChronicallSimulator(), window="an hour", stores=["dsk"])
    place.config |= {"transfers": 0, "http": {"listen": "nowhere"}}
    place.config["stores"]["disk"]["colour"] = "red"
    for command in (["check"], ["run"]):
        done = await place.run(*command, code=2)
        lines = done.err.splitlines()
        assert len(lines) == 5, done
        assert all(line.startswith("archiver.toml: ") for line in lines), done
        for key in ("transfers", "http.listen", "stores.disk.colour", "sources.hq.window", "sources.hq.stores"):
            assert sum(f" {key}: " in line for line in lines) == 1, key
        assert not done.raw


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_sync_tells_one_document_of_the_contracts_shape(archive):
    assert archive.synced.out.count("\n") == 1
    document = archive.synced.json
    assert set(document) == {"sources", "complete"}
    assert document["complete"] is True
    truth = archive.truth_then
    for name, recordings in (("hq", 10), ("pbx", 3)):
        told = document["sources"][name]
        assert set(told) >= COUNTS
        assert all(isinstance(told[key], int) for key in COUNTS)
        media = [data for (source, _, _), data in truth.items() if source == name]
        assert (told["new"], told["archived"], told["bytes"]) == (recordings, len(media), sum(map(len, media)))
        assert (told["pending"], told["failed"], told["gone"], told["empty"]) == (0, 0, 0, 0)
        assert told["windows"] >= 3
        assert told["listed"] >= recordings
    assert await archive.held() == truth


async def test_list_tells_one_recording_a_line_and_filters(archive):
    pivot = f"{datetime.now(UTC) - 2 * HOUR + timedelta(minutes=3, seconds=30):%Y-%m-%dT%H:%M:%S}"
    east = datetime.fromisoformat(f"{pivot}+00:00").astimezone(tz=None).isoformat()
    asked = {
        "all": "",
        "hq": "--source hq",
        "early": f"--to {pivot}Z",
        "late": f"--from {pivot}Z",
        "late by a zone": f"--from {datetime.fromisoformat(east).isoformat()}",
        "from one": "--caller +16504668880",
        "from several": "--caller +1650466888*",
        "to one": "--callee 1573 --source hq",
        "out": "--direction outbound",
        "archived": "--state archived",
        "failed": "--state failed",
        "text": "--text tag-5",
        "two": "--limit 2",
    }
    found = {}
    for name, options in asked.items():
        found[name] = (await archive.run("list", "--json", *options.split())).rows
    for recording in found["all"]:
        assert set(recording) >= RECORDING
        for medium in recording["media"]:
            assert set(medium) >= MEDIUM
            assert (
                medium["sha256"]
                == hashlib.sha256(
                    archive.truth_then[recording["source"], recording["recording_id"], medium["media_id"]]
                ).hexdigest()
            )
            assert medium["copies"][0]["store"] == "disk"
            assert UTC_TIME.fullmatch(medium["copies"][0]["archived_at"])
        assert UTC_TIME.fullmatch(recording["started_at"])
    ids = {name: [(r["source"], r["recording_id"]) for r in rows] for name, rows in found.items()}
    assert len(ids["all"]) == 13
    assert [r["started_at"] for r in found["all"]] == sorted(r["started_at"] for r in found["all"])
    assert set(ids["early"]) | set(ids["late"]) == set(ids["all"])
    assert set(ids["early"]).isdisjoint(ids["late"])
    assert 0 < len(ids["late"]) < 13
    assert ids["late by a zone"] == ids["late"]
    assert len(ids["hq"]) == 10
    assert {r["caller"] for r in found["from one"]} == {"+16504668880"}
    assert {r["caller"] for r in found["from several"]} == {f"+1650466888{i}" for i in (0, 2, 4, 6)}
    assert {r["direction"] for r in found["to one"]} == {"inbound"}
    assert {r["direction"] for r in found["out"]} == {"outbound"}
    assert ids["archived"] == ids["all"]
    assert ids["failed"] == []
    assert len(ids["text"]) == 1
    assert ids["two"] == ids["all"][:2]


async def test_people_get_tables_and_whatever_a_vendor_wrote_is_harmless_in_them(archive):
    (recording, *_) = (await archive.run("list", "--json", "--source", "pbx")).rows
    assert recording["caller"] == HOSTILE
    who = ("pbx", recording["recording_id"])
    listed, shown, why, status = await asyncio.gather(
        archive.run("list", "--source", "pbx"),
        archive.run("show", *who),
        archive.run("why", *who),
        archive.run("status"),
    )
    for done in (listed, shown, why, status):
        assert_no_control_characters(done.out)
        assert not done.err, done
    assert len(listed.out.splitlines()) == 4
    for done in (listed, shown):
        assert "[bold red]1[/]" in done.out
        assert ":warning:" in done.out
        assert "[link=file:///etc]2\\" in done.out
    assert recording["media"][0]["sha256"] in shown.out
    assert recording["media"][0]["copies"][0]["key"] in shown.out
    assert recording["media"][0]["sha256"] in why.out
    assert "listed with [" in why.out
    assert re.search(r"^hq +chronicall .* 10 +0 +0 +0 +0 ", status.out, re.MULTILINE), status
    assert re.search(r"^disk +file +13 ", status.out, re.MULTILINE), status


async def test_show_why_and_status_tell_json(archive):
    (recording, *_) = (await archive.run("list", "--json", "--source", "hq")).rows
    who = ("hq", recording["recording_id"])
    shown, why, status = await asyncio.gather(
        archive.json("show", *who), archive.json("why", *who), archive.json("status")
    )
    assert {key: shown[key] for key in recording} == recording
    assert (why["source"], why["recording_id"], why["state"]) == (*who, "archived")
    assert why["windows"]
    for window in why["windows"]:
        assert window["start"] <= recording["started_at"] < window["end"]
    assert [event["what"] for event in why["story"]] == ["first listed", "archived"]
    hq = status["sources"]["hq"]
    assert (hq["archived"], hq["pending"], hq["failed"], hq["gone"], hq["empty"]) == (10, 0, 0, 0, 0)
    assert (hq["gaps"], hq["last_error"]) == ([], None)
    assert 0 < hq["lag"] < 600
    assert UTC_TIME.fullmatch(hq["covered_to"])
    size = sum(map(len, archive.truth_then.values()))
    assert status["stores"] == {"disk": {"kind": "file", "copies": 13, "bytes": size}} or (
        status["stores"]["disk"]["copies"],
        status["stores"]["disk"]["bytes"],
    ) == (13, size)


async def test_a_recording_that_nobody_knows_is_told_in_one_line(archive):
    lines = [("show", "hq", "x"), ("why", "pbx", "x"), ("get", "hq", "x", "-o", "-"), ("show", "hq", "x", "--json")]
    for done in await asyncio.gather(*(archive.run(*line, code=1) for line in lines)):
        assert "there is no recording" in done.err
        assert len(done.err.splitlines()) == 1
        assert not done.raw


async def test_get_writes_the_bytes_to_a_file_or_to_standard_output(archive, tmp_path):
    (_, recording_id, media_id), data = next(iter(archive.truth_then.items()))
    who = ("get", "hq", recording_id)
    target = tmp_path / "call.spx"
    to_file, to_stdout, no_medium, no_folder = await asyncio.gather(
        archive.run(*who, "-o", str(target)),
        archive.run(*who, media_id, "-o", "-"),
        archive.run(*who, "other", "-o", "-", code=1),
        archive.run(*who, "-o", str(tmp_path / "none" / "call.spx"), code=1),
    )
    assert target.read_bytes() == data
    assert not to_file.raw
    assert to_stdout.raw == data
    assert 'no medium "other"' in no_medium.err
    assert not no_medium.raw
    lost = f"archiver: No such file or directory: {tmp_path / 'none'} → make it, or name another place\n"
    assert no_folder.err == lost
    assert list(tmp_path.iterdir()) == [target]


async def test_a_reader_that_leaves_early_or_knows_no_umlauts_sees_no_traceback(archive):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = f"{sys.executable} -m archiver --config {archive.write()}"

    def shell(script: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["/bin/bash", "-c", script], capture_output=True, check=False, env=environment | env)

    left = await asyncio.gather(
        asyncio.to_thread(shell, f"{program} list | head -n 1"),
        asyncio.to_thread(shell, f"{program} list --json | true"),
        asyncio.to_thread(shell, f"{program} status | true"),
    )
    for done in left:
        assert b"Traceback" not in done.stderr, done
        assert b"BrokenPipe" not in done.stderr, done
    ascii_only = await asyncio.to_thread(shell, f"{program} show hq x; {program} list --json", PYTHONIOENCODING="ascii")
    assert b"Traceback" not in ascii_only.stderr
    assert [json.loads(line)["caller"] for line in ascii_only.stdout.splitlines()].count(HOSTILE) == 3


def on_a_terminal(command: list[str], stream: str) -> tuple[int, str, str]:
    """Exit code, what the terminal showed of that stream, and the other stream (a pipe)."""
    ours, theirs = os.openpty()
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "150"}
    streams = {stream: theirs, other: subprocess.PIPE}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **streams)
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        # The terminal hangs up (EIO) when the command has ended.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 1 << 16):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    out, err = process.communicate(timeout=60)
    reader.join()
    os.close(ours)
    return process.returncode, shown.decode(), (out if other == "stdout" else err).decode()


async def test_a_terminal_gets_a_progress_bar_and_a_list_that_ends(place):
    pbx = await place.add("pbx", XivoSimulator(), timezone="Europe/Paris")
    pbx.add_calls(DAY, DAY + 2 * HOUR, 105, shortest=1, longest=2)
    program = [sys.executable, "-m", "archiver", "--config", str(place.write())]
    line = ["--log-level", "info", "backfill", "--source", "pbx", *SMALL_HOURS, "--json"]
    code, progress, answer = await asyncio.to_thread(on_a_terminal, [*program, *line], "stderr")
    assert code == 0
    assert json.loads(answer)["sources"]["pbx"]["archived"] == 105
    # The bar stands below the log, and breaks none of its lines.
    assert re.search(r"archived .*105/105.* MiB/s|archived .*/", progress), progress
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in progress.splitlines()]
    logged = [line for line in lines if "recording.archived" in line]
    assert len(logged) == 105
    assert all(re.match(r"\d{4}-\d\d-\d\dT.*\[info", line) for line in logged), logged[:3]
    code, table, hint = await asyncio.to_thread(on_a_terminal, [*program, "list"], "stdout")
    assert code == 0
    assert table.count("xivocc_gateway-") == 100
    assert hint == "there are more: give a --limit, or filters\n"
    everything = await place.run("list")
    assert everything.out.count("xivocc_gateway-") == 105
    assert "\x1b" not in everything.out
    assert not everything.err


# -- doing: backfill -------------------------------------------------------------------------------------------------


async def test_backfill_lists_once_archives_all_and_then_asks_for_nothing(place):
    hq = await place.add("hq", ChronicallSimulator())
    calls = hq.add_calls(DAY, DAY + 23 * HOUR, 12, shortest=1, longest=2)
    backfill = ("backfill", "--source", "hq", *WHOLE_DAY)

    planned = await place.run(*backfill, "--dry-run", "--json")
    truth = place.truth()
    size = sum(map(len, truth.values()))
    assert planned.json == {
        "source": "hq",
        "windows": 24,
        "recordings": len(truth),
        "bytes": size,
        "bytes_complete": True,
        "media": len(truth),
        "rejected": 0,
        "requests": 24 + len(truth),
        # A download was not seen, so how long 12 of them take can't be told.
        "seconds": None,
        "error": None,
    }
    assert (hq.count("list"), hq.count("audio")) == (24, 0)
    assert not (await place.run("list", "--json")).rows
    assert (await place.json("status"))["sources"]["hq"]["covered_to"] is None
    assert not place.store.exists()
    assert {name for name, rows in (await commands.tables(place.database)).items() if rows} == {"schema_version"}
    for_people = await place.run(*backfill, "--dry-run")
    assert re.search(rf"^recordings +{len(truth)} \({len(truth)} media\) *$", for_people.out, re.MULTILINE), for_people
    assert re.search(rf"^requests +about {24 + len(truth)} ", for_people.out, re.MULTILINE), for_people
    assert "nothing was written" in for_people.out
    assert re.search(r"^time +can't be told", for_people.out, re.MULTILINE), for_people
    place.config["sources"]["hq"]["rate"] = "20/s"
    assert (await place.json(*backfill, "--dry-run"))["seconds"] >= (24 + len(truth)) / 20
    assert re.search(r"^time +at least \d+s at 20/s", (await place.run(*backfill, "--dry-run")).out, re.MULTILINE)
    del place.config["sources"]["hq"]["rate"]

    hq.seen.clear()
    done = await place.json(*backfill)
    assert done["complete"] is True
    told = done["sources"]["hq"]
    assert [told[key] for key in ("windows", "listed", "new", "archived", "pending", "failed", "bytes")] == [
        24,
        len(truth),
        len(truth),
        len(truth),
        0,
        0,
        size,
    ]
    assert await place.held() == truth
    assert (hq.count("list"), hq.count("audio"), len(hq.seen)) == (24, len(truth), 24 + len(truth))

    hq.seen.clear()
    again = await place.run(*backfill)
    assert "complete" in again.out
    assert hq.seen == []

    # A call that the recorder tells of late is found by listing anew only.
    late = hq.add_call(DAY + 5 * HOUR, timedelta(seconds=1))
    assert late.index == len(calls)
    assert (await place.json(*backfill))["sources"]["hq"]["new"] == 0
    assert hq.seen == []
    relisted = (await place.json(*backfill, "--relist"))["sources"]["hq"]
    assert (relisted["windows"], relisted["archived"], hq.count("list")) == (24, relisted["new"], 24)
    assert relisted["new"] > 0
    assert await place.held() == place.truth()
    narrow = ("backfill", "--source", "hq", "--from", "2024-05-16T23:00:00-03:00", "--to", "2024-05-17T06:00+02:00")
    hq.seen.clear()
    assert (await place.json(*narrow))["sources"]["hq"]["windows"] == 0
    assert hq.seen == []


@pytest.mark.parametrize(
    ("number", "code", "background"),
    [
        pytest.param(signal.SIGINT, 130, False, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, False, id="kill"),
        pytest.param(signal.SIGTERM, 143, True, id="kill in the background of a script"),
    ],
)
async def test_backfill_goes_on_at_once_where_it_was_interrupted(place, number, code, background):
    hq = await place.add("hq", ChronicallSimulator(), concurrency=4)
    # Whichever hour is listed last, much is left to do then, and takes longer than all that follows here.
    for hour in (0, 23):
        hq.add_calls(DAY + hour * HOUR, DAY + (hour + 1) * HOUR, 40, shortest=1, longest=2)
    media = len(place.truth())
    slow = hq.fault("drip", "audio", times=-1, value=0.03)
    backfill = ("backfill", "--source", "hq", *WHOLE_DAY)
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
    try:
        running = await place.start(*backfill, "--json")
    finally:
        signal.signal(signal.SIGINT, heard)
    await until(lambda: hq.count("audio") >= 25 and hq.count("list") == 24)
    slow.value = 0.5
    connection = await asyncpg.connect(place.database)
    async with asyncio.timeout(20):
        while await connection.fetchval("SELECT count(*) FROM listings") < 24:
            await asyncio.sleep(0.05)
    await connection.close()
    if background:
        # Ctrl-C is meant for what runs in front.
        running.signal(signal.SIGINT)
        await asyncio.sleep(1)
        assert not running.over
    running.signal(number)
    # It heard: what runs may end.
    await asyncio.sleep(1)
    slow.value = 0.03
    interrupted = await running.end(patience=14)
    assert interrupted.code == code, interrupted
    assert "interrupted; the same command goes on where it stopped" in interrupted.err
    assert "Traceback" not in interrupted.err, interrupted
    assert not interrupted.raw
    before = len((await place.run("list", "--json", "--state", "archived")).rows)
    assert 0 < before < media

    slow.times = 0
    done = await place.run(*backfill, "--json")
    assert done.json["complete"] is True
    assert done.json["sources"]["hq"]["archived"] == media - before
    # Nothing waited for a lease to run out.
    assert done.seconds < 30
    assert hq.count("list") == 24
    assert await place.held() == place.truth()


async def test_an_interruption_that_comes_with_other_news_is_not_lost():
    """asyncio.wait_for of Python 3.11 loses it: Ctrl-C was passed over now and then."""
    engine = Engine(Catalog("", None, ManualClock(), uuid4()), {}, Spool(Path(tempfile.gettempdir()), 0))
    for hops in range(4):
        waiting = asyncio.create_task(engine._pause(30))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        engine._wake.set()
        for _ in range(hops):
            await asyncio.sleep(0)
        if waiting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await waiting
        engine._wake.clear()


async def test_backfill_archives_every_call_that_began_in_its_span_whatever_the_recorder_lists_by(place):
    """By the end: one that began before the span's end, and ended after it, is listed later than that."""
    hq = await place.add("hq", ImagicleSimulator(), longest_call="2h")
    first = hq.add_call(DAY, timedelta(seconds=2))
    crosses = hq.add_call(DAY + timedelta(minutes=50), 2 * HOUR)
    before = hq.add_call(DAY - timedelta(minutes=30), HOUR)
    after = hq.add_call(DAY + HOUR, timedelta(seconds=2))
    backfill = ("backfill", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-17T01:00")
    planned = (await place.run(*backfill, "--dry-run", "--json")).json
    assert (planned["recordings"], planned["media"]) == (2, 2)
    done = await place.json(*backfill)
    assert done["complete"] is True
    shown = await place.run("list", "--from", "2024-05-17", "--to", "2024-05-17T01:00", "--json")
    assert {row["recording_id"]: row["state"] for row in shown.rows} == {
        first.uuid.lower(): "archived",
        crosses.uuid.lower(): "archived",
    }
    assert done["sources"]["hq"]["listed"] == 4, f"{before.uuid} and {after.uuid} end in what was listed"
    hq.seen.clear()
    await place.run(*backfill)
    assert (await place.run(*backfill, "--dry-run", "--json")).json["windows"] == 0
    assert hq.seen == []
    relisted = await place.json(*backfill, "--relist")
    assert (relisted["sources"]["hq"]["windows"], relisted["sources"]["hq"]["new"]) == (1, 0)


async def test_backfill_of_a_call_that_crosses_the_end_and_fails_is_not_complete(place):
    hq = await place.add("hq", ImagicleSimulator())
    hq.add_call(DAY + timedelta(minutes=50), HOUR)
    hq.fault("status", "audio", value=500, times=-1)
    backfill = ("backfill", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-17T01:00", "--json")
    assert (await place.run(*backfill, code=1)).json["sources"]["hq"]["pending"] == 1


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
async def test_backfill_by_time_of_a_source_that_can_t_list_says_how_to_name_calls(place, more):
    await place.add("pbx", NoojeeSimulator(), listing="none")
    refused = await place.run("backfill", "--source", "pbx", *WHOLE_DAY, *more, code=2)
    assert "pbx has no listing by time (noojee): name the calls by `backfill --ids FILE`" in refused.err


async def test_backfill_fetches_calls_by_their_ids(place):
    pbx = await place.add("pbx", XivoSimulator(), timezone="Europe/Paris")
    await place.add("hq", ImagicleSimulator())
    calls = [pbx.add_call(DAY + i * HOUR, timedelta(seconds=1)) for i in range(6)]
    ids = [pbx.call_id(call) for call in calls]
    odd = pbx.add_call(DAY + 7 * HOUR, timedelta(seconds=1), extra={"call_id": " 7 "})
    lines = ["\ufeff# yesterday's", f"{ids[0]}\r", "", f"  {ids[1]}  # late", json.dumps(" 7 ")]
    (place.folder / "ids").write_text("\n".join(lines), newline="")
    by_file = await place.json("backfill", "--source", "pbx", "--ids", "ids")
    assert by_file["sources"]["pbx"]["archived"] == 3
    assert pbx.file_id(odd) in {row["recording_id"] for row in (await place.run("list", "--json")).rows}
    wrong = await place.run("backfill", "--source", "pbx", "--ids", "-", stdin=b"1.1\n\x1b[2J\n", code=2)
    assert r"line 2 of --ids is no id: '\x1b[2J'" in wrong.err
    by_pipe = await place.json("backfill", "--source", "pbx", "--ids", "-", stdin=f"{ids[2]}\nnobody\n".encode())
    assert (by_pipe["sources"]["pbx"]["archived"], by_pipe["complete"]) == (1, True)
    assert pbx.count("list") == 0
    wanted = {pbx.file_id(call) for call in [*calls[:3], odd]}
    assert set(await place.held()) == {("pbx", recording_id, "audio") for recording_id in wanted}
    impossible = await place.run("backfill", "--source", "hq", "--ids", "-", stdin=b"1\n", code=2)
    assert "hq can't be asked for single call ids (imagicle)" in impossible.err


async def test_what_is_pending_is_waited_for_when_asked_and_what_failed_is_retried(place):
    hq = await place.add("hq", ChronicallSimulator(), retry={"first": "5s"})
    hq.add_calls(DAY, DAY + HOUR, 5, shortest=1, longest=2)
    media = len(place.truth())
    backfill = ("backfill", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-17T02:00")
    hq.fault("status", "audio", value=503)
    pending = await place.run(*backfill, "--json", code=1)
    assert pending.json["complete"] is False
    assert (pending.json["sources"]["hq"]["archived"], pending.json["sources"]["hq"]["pending"]) == (media - 1, 1)
    waited = await place.run(*backfill, "--wait", "30s")
    assert "complete" in waited.out
    assert hq.count("audio") == media + 1
    assert await place.held() == place.truth()

    refused = hq.add_call(DAY + HOUR / 2, timedelta(seconds=1))
    hq.fault("status", "audio", value=403)
    failed = await place.run(*backfill, "--relist", code=1)
    assert "not complete" in failed.out
    status = (await place.json("status"))["sources"]["hq"]
    assert (status["failed"], status["pending"]) == (1, 0)
    assert "403" in status["reasons"][0]["error"]
    assert (await place.json("retry", "--state", "gone")) == {"due": 0}
    assert (await place.json("retry", "--source", "hq")) == {"due": 1}
    done = await place.run(*backfill, "--json")
    assert (done.json["sources"]["hq"]["archived"], done.json["complete"]) == (1, True)
    assert await place.held() == place.truth()
    why = await place.json("why", "hq", next(iter(hq.expected(refused))))
    assert {"first listed", "refused", "asked for again", "archived"} >= {event["what"] for event in why["story"]}
    told = {event["what"] for w in [why] for event in w["story"]}
    assert "archived" in told

    # What the source deleted is no failure: there is nothing more to get.
    refused.extra["status"] = "DELETED_TIME"
    hq.add_call(DAY + HOUR / 3, timedelta(seconds=1), extra={"status": "DELETED_TIME"}, index=1)
    gone = await place.json(*backfill, "--relist")
    assert gone["complete"] is True
    assert (await place.json("status"))["sources"]["hq"]["gone"] == 1


async def test_rows_that_nobody_can_read_are_kept_shown_and_no_success(place):
    hq = await place.add("hq", ChronicallSimulator())
    hq.add_call(DAY + timedelta(minutes=1), timedelta(seconds=1))
    hq.fault("row", "list", value={"recordingKey": "\x1b[31mx", "startTime": "yesterday"})
    backfill = ("backfill", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-17T01:00")
    done = await place.run(*backfill, "--json", code=1)
    assert (done.json["sources"]["hq"]["rejected"], done.json["sources"]["hq"]["archived"]) == (1, 2)
    (row,) = await place.json("rejected", "hq")
    assert "yesterday" in row["raw"]
    assert row["times"] == 1
    shown, status = await asyncio.gather(place.run("rejected", "hq"), place.run("status"))
    assert "yesterday" in shown.out
    assert_no_control_characters(shown.out)
    assert "archiver rejected hq" in status.out


# -- what can't be reached -------------------------------------------------------------------------------------------


async def test_exit_code_3_where_database_store_or_source_is_not_there_from_the_start(place, make_place):
    hq = await place.add("hq", ChronicallSimulator())
    hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
    (port,) = free_ports(1)
    no_database, no_store, no_source, half = [make_place() for _ in range(4)]
    for other in (no_database, no_store, no_source, half):
        other.config["sources"]["hq"] = dict(place.config["sources"]["hq"])
    no_database.config["database"] = {"url": f"postgresql://archiver@127.0.0.1:{port}/archiver"}
    no_store.config["stores"]["disk"]["path"] = "nowhere/store"
    start = datetime.now(UTC) - timedelta(minutes=10)
    down = {"base_url": f"http://127.0.0.1:{port}", "start": start}
    no_source.config["sources"]["hq"] |= down
    half.config["sources"]["old"] = half.config["sources"]["hq"] | down

    *without_database, run, sync, nobody, one = await asyncio.gather(
        *(no_database.run(*line, code=3) for line in (["run"], ["sync", "--json"], ["status"])),
        no_store.run("run", code=3),
        no_store.run("sync", code=3),
        no_source.run("sync", "--json", code=3),
        half.run("sync", "--json", code=1),
    )
    for done in without_database:
        assert done.err.splitlines()[-1].startswith("archiver: the database can't be reached: "), done
        assert not done.raw
    for done in (run, sync):
        assert "store disk: " in done.err.splitlines()[-1]
        assert "mount its disk" in done.err
    assert "can't connect" in nobody.json["sources"]["hq"]["error"]
    assert nobody.json["complete"] is False
    assert one.json["complete"] is False
    assert one.json["sources"]["hq"]["archived"] == 2
    assert await half.held() == place.truth()


async def test_check_tries_everything_and_says_each_in_one_line(place, make_place):
    hq = await place.add("hq", ChronicallSimulator(), rate="100/s")
    await place.add("off", XivoSimulator(), enabled=False)
    (port,) = free_ports(1)
    bad = make_place(database=place.database.replace("/test_", "/nowhere_"))
    bad.config["stores"] |= {"lost": {"kind": "file", "path": "nowhere/store"}}
    options = place.config["sources"]["hq"]
    bad.config["sources"] = {
        "hq": dict(options),
        "gone": options | {"base_url": f"http://127.0.0.1:{port}"},
        "refused": options | {"token": "not-the-token"},
        "tls": options | {"ca_file": "none.pem"},
    }
    requests = len(hq.seen)
    offline = await bad.run("check", "--offline")
    assert len(offline.out.splitlines()) == 1
    assert len(hq.seen) == requests
    good, spoilt, table = await asyncio.gather(
        place.run("check"), bad.run("check", "--json", code=3), bad.run("check", code=3)
    )
    names = [line.split(":")[0] for line in good.out.splitlines()]
    assert names == [f"ok      {what}" for what in ("config", "database", "store disk", "source hq", "source off")]
    results = {result["what"]: result for result in spoilt.json["checks"]}
    assert spoilt.json["ok"] is False
    assert {what for what, result in results.items() if not result["ok"]} == {
        "database",
        "store lost",
        "source gone",
        "source refused",
        "source tls",
    }
    assert "can't connect to 127.0.0.1" in results["source gone"]["line"]
    assert "401" in results["source refused"]["line"]
    assert "none.pem" in results["source tls"]["line"]
    assert "nowhere" in results["database"]["line"]
    lines = table.out.splitlines()
    assert len(lines) == 8
    assert sum(line.startswith("FAILED ") for line in lines) == 5
    assert bad.objects() == {}, "a canary was left behind"


async def test_an_empty_database_is_told_by_check_and_filled_by_migrate(place, postgres, make_place):
    url = postgres.url_of("empty_one")
    postgres.execute("CREATE DATABASE empty_one")
    empty = make_place(database=url)
    hq = await place.add("hq", ChronicallSimulator())
    empty.config["sources"]["hq"] = place.config["sources"]["hq"] | {"rate": "10/s"}
    try:
        told = await empty.run("check")
        assert "given by url, still empty" in told.out
        first, second = await empty.json("migrate"), await empty.run("migrate")
        assert first["version"] >= 1
        assert second.out == f"the schema is at version {first['version']}\n"
        assert hq.count("audio") == 0
    finally:
        postgres.drop(url)


async def test_a_refused_account_ends_a_sync_with_3_and_shows_in_status(place):
    hq = await place.add("hq", ChronicallSimulator())
    hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
    place.config["sources"]["hq"]["token"] = "yesterdays-token"
    done = await place.run("sync", code=3)
    assert "401" in done.out
    assert "not complete" in done.out
    status = await place.run("status")
    assert "the recorder refuses the account" in status.out
    place.config["sources"]["hq"]["token"] = hq.token
    assert (await place.json("sync"))["complete"] is True
    assert (await place.json("status"))["sources"]["hq"]["paused_why"] is None


# -- get, verify, rebuild --------------------------------------------------------------------------------------------


async def test_get_passes_over_a_spoilt_copy_and_verify_mends_it(place):
    place.config["stores"]["twin"] = {"kind": "file", "path": "twin", "prefix": "copy/"}
    hq = await place.add("hq", ChronicallSimulator())
    hq.add_call(DAY + timedelta(minutes=1), timedelta(seconds=2), index=1)
    await place.run("backfill", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-17T01:00")
    ((_, recording_id, _), data), *_ = place.truth().items()
    (recording,) = (await place.run("list", "--json")).rows
    copies = {c["store"]: place.folder / {"disk": "store"}.get(c["store"], c["store"]) / c["key"]
              for c in recording["media"][0]["copies"]}  # fmt: skip
    assert {name: path.read_bytes() for name, path in copies.items()} == {"disk": data, "twin": data}
    assert (place.folder / "twin" / "copy").is_dir()

    def flip(path: Path) -> None:
        path.chmod(0o600)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    for spoilt, other in (("disk", "twin"), ("twin", "disk")):
        copies[other].write_bytes(data)
        flip(copies[spoilt])
        assert (await place.run("get", "hq", recording_id, "-o", "-")).raw == data
    flip(copies["disk"])
    lost = await place.run("get", "hq", recording_id, "-o", "call.spx", code=1)
    assert lost.err.count("are not those that were archived") == 2
    assert not [path for path in place.folder.iterdir() if "call.spx" in path.name]
    mended = await place.json("verify")
    assert mended["complete"] is True
    assert [mended["stores"][name]["repaired"] for name in ("disk", "twin")] == [1, 1]
    assert copies["twin"].read_bytes() == data
    assert copies["disk"].read_bytes() == data
    assert (await place.run("get", "hq", recording_id, "-o", "-")).raw == data


async def test_rebuild_fills_an_empty_catalog_from_the_store(place, make_place):
    hq = await place.add("hq", ChronicallSimulator())
    hq.add_calls(DAY, DAY + HOUR, 4, shortest=1, longest=2)
    backfill = ("backfill", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-17T02:00")
    await place.run(*backfill)
    before = (await place.run("list", "--json")).rows
    hq.seen.clear()
    fresh = make_place()
    fresh.config = place.config | {"database": {"url": fresh.database}}
    fresh.config["stores"]["disk"]["path"] = str(place.store)
    told = await fresh.json("rebuild", "--store", "disk")
    assert (told["recordings"], told["complete"]) == (len(before), True)
    after = (await fresh.run("list", "--json")).rows
    assert [r["media"][0]["copies"][0]["key"] for r in after] == [r["media"][0]["copies"][0]["key"] for r in before]
    assert (await fresh.json(*backfill))["complete"] is True
    assert hq.seen == []
    drill = await fresh.json("rebuild", "--store", "disk", "--drill", "--sample", "3")
    assert (drill["compared"], drill["same"], drill["complete"]) == (3, 3, True)
    stray = place.store / "hq" / "stray.wav"
    stray.write_bytes(b"RIFF")
    found = await fresh.json("verify", "--orphans", code=1)
    assert found["stores"]["disk"]["orphans"] == [{"key": "hq/stray.wav", "size": 4, "why": "no name that we give"}]
    assert "hq/stray.wav: no name that we give" in (await fresh.run("verify", "--orphans", code=1)).out


# -- the daemon ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def make_place(tmp_path, postgres):
    """Further places beside ``place``, each with a database of its own."""
    made: list[tuple[Place, str | None]] = []

    def make(database: str | None = None, folder: Path | None = None) -> Place:
        folder = folder or tmp_path / f"other{len(made)}"
        folder.mkdir(exist_ok=True)
        url = None if database else postgres.create()
        made.append((Place(folder, database or url or ""), url))
        return made[-1][0]

    yield make
    for other, url in made:
        await other.close()
        if url is not None:
            postgres.drop(url)


async def test_the_daemon_ends_in_order_on_a_signal_and_at_once_on_a_second(place, make_place):
    hq = await place.add("hq", ChronicallSimulator(), poll="1s")
    hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
    twice = make_place()
    twice.config["sources"]["hq"] = dict(place.config["sources"]["hq"])
    idle = make_place()
    idle.config["sources"]["hq"] = dict(place.config["sources"]["hq"])

    quiet = await idle.start("run")
    await until(lambda: hq.count("audio") >= 2)
    await quiet.said('"recording.archived"')
    quick = await quiet.end(signal.SIGINT)
    assert (quick.code, quick.raw) == (0, b""), quick
    assert quick.seconds < 5

    hq.fault("stall", "audio", times=-1)
    hq.seen.clear()
    once, hurried = await asyncio.gather(place.start("run"), twice.start("run"))
    await until(lambda: hq.running >= 4)
    hurried.signal(signal.SIGTERM)
    await hurried.said('"daemon.stopping"')
    at_once, in_order = await asyncio.gather(
        hurried.end(signal.SIGTERM, patience=3), once.end(signal.SIGTERM, patience=10)
    )
    assert at_once.code == 1
    assert (in_order.code, in_order.raw) == (0, b""), in_order
    assert "Traceback" not in in_order.err + at_once.err + quick.err
    assert '"daemon.stopped"' in in_order.err


async def test_commands_work_beside_a_daemon_with_an_embedded_database(short_folder):
    async with commands.place(short_folder, "embedded") as place:
        hq = await place.add("hq", ChronicallSimulator(), poll="1s", concurrency=4)
        pbx = await place.add("pbx", XivoSimulator(), timezone="Europe/Paris", poll="1h")
        for recorder in (hq, pbx):
            recorder.add_calls(datetime.now(UTC) - 2 * HOUR, datetime.now(UTC) - HOUR, 20, shortest=1, longest=2)
        hq.fault("drip", "audio", times=-1, value=0.05)
        running = await place.start("run")
        await running.said('"daemon.ready"')
        # What the daemon has in hand is not given up on: the pass ends when all is archived.
        passed = await place.run("sync", "--json")
        assert passed.json["complete"] is True
        assert await place.held() == place.truth()
        assert hq.count("audio") + pbx.count("audio") == len(place.truth())
        late = hq.add_call(datetime.now(UTC) - timedelta(minutes=50), timedelta(seconds=1), index=1)
        recording_id, expected = next(iter(hq.expected(late).items()))
        await until(lambda: recording_id in running.err)
        status, got = await asyncio.gather(place.json("status"), place.run("get", "hq", recording_id, "-o", "-"))
        assert status["sources"]["hq"]["archived"] + status["sources"]["pbx"]["archived"] == len(place.truth())
        assert got.raw == expected.audio[recording_id]
        assert not running.over
        ended = await running.end(signal.SIGTERM, patience=10)
        assert ended.code == 0, ended
        assert "Traceback" not in ended.err
        # The last one to leave stops the database; the next command starts it again by itself.
        assert not (short_folder / "var/postgres/pgdata/postmaster.pid").exists()
        assert len((await place.run("list", "--json")).rows) == len(place.truth())


async def test_a_pass_ends_only_when_what_another_process_had_in_hand_is_archived(place):
    hq = await place.add("hq", ChronicallSimulator(), retry={"first": "1h"})
    hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1), index=1)
    hq.fault("status", "audio", value=503)
    assert (await place.json("sync", code=1))["sources"]["hq"]["pending"] == 1
    # A process claimed it and was killed: nobody knows before its lease has run out.
    connection = await asyncpg.connect(place.database)
    await connection.execute(
        "INSERT INTO claims (source, recording_id, media_id, generation, until, holder)"
        " SELECT source, recording_id, media_id, generation, now() + interval '4 seconds', gen_random_uuid() FROM media"
    )
    await connection.execute("UPDATE media SET due_at = now()")
    await connection.close()
    passed = await place.run("sync", "--json")
    assert (passed.json["sources"]["hq"]["archived"], passed.json["complete"]) == (1, True)
    assert await place.held() == place.truth()


async def test_a_medium_of_a_source_with_hashes_and_names_beyond_ascii_goes_round(place):
    im = await place.add("büro".encode("idna").decode(), ImagicleSimulator())
    im.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1), note="Grüße, 世界")
    await place.run("sync")
    table, rows = await asyncio.gather(place.run("list", "--text", "世界"), place.run("list", "--json"))
    assert len(table.out.splitlines()) == 2
    assert rows.rows[0]["attributes"]["note"] == "Grüße, 世界"
