"""Evidence bundles: what a stranger's tools say of them, on a machine without this program."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from archiver.catalog.face import Event
from archiver.commands import bundling as commanded
from archiver.errors import StoreError
from archiver.proof import bundle, cover, note
from archiver.proof.bundle import Call, Heard
from archiver.proof.note import FileKey
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.upkeep import bundling
from archiver.upkeep.bundling import Bundler, Signing
from tests.audio.test_cms import OTHER, OWNER, detached
from tests.commands import HOUR, ROOT, Place, until
from tests.engine import a_recorder, archiving, dav_table, s3_table
from tests.proof.vcon_schema import SCHEMA
from tests.servers import apache as apaches
from tests.servers import seaweed as seaweeds

#: A number that a spreadsheet would compute, and a name that breaks pages, tables and load files.
FORMULA = '=HYPERLINK("http://evil","x")'
HOSTILE = '<script>x</script>\x14þ\r\n,"; þór® \u202e'


class Filled(Place):
    held_then: dict[tuple[str, str, str], bytes]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, postgres: Any) -> Iterator[Filled]:
    """Two stores; a Chronicall (Speex) and a XiVO (WAV) whose callers are hostile."""
    url = postgres.create()
    made = Filled(tmp_path_factory.mktemp("archive"), url)
    made.config["stores"] = {name: {"kind": "file", "path": name} for name in ("store", "second")}

    async def fill() -> None:
        hq = await made.add("hq", ChronicallSimulator(api_version="v2"), rate="1000/s")
        pbx = await made.add("pbx", XivoSimulator(), timezone="Europe/Paris")
        at = datetime.now(UTC) - 2 * HOUR
        for i in range(6):
            hq.add_call(at + timedelta(minutes=i), timedelta(seconds=2), caller=f"+1650466888{i}", callee="1573")
        for i, caller in enumerate((FORMULA, HOSTILE, "+33123456789")):
            pbx.add_call(at + timedelta(minutes=i, seconds=1), timedelta(seconds=1), caller=caller, note=HOSTILE)
        made.held_then = made.truth()
        await made.run("sync")
        await made.close()

    asyncio.run(fill())
    yield made
    postgres.drop(url)


def tool(*line: str, cwd: Path, stdin: bytes = b"") -> str:
    """What a stranger's tool says; fails where it ends with an error."""
    done = subprocess.run(line, cwd=cwd, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, (line, done.stdout[-3000:], done.stderr[-3000:])
    return (done.stdout + done.stderr).decode()


def validate(bag: Path) -> None:
    """As a stranger would: sha256sum, bagit, and every file listed."""
    tool("sha256sum", "-c", "--strict", bundle.MANIFEST, cwd=bag)
    tool("sha256sum", "-c", "--strict", bundle.TAG_MANIFEST, cwd=bag)
    tool(sys.executable, "-m", "bagit", "--validate", str(bag), cwd=bag)
    assert (bag / "bagit.txt").read_text().startswith("BagIt-Version: 1.0\n")
    listed = {line.split("  ", 1)[1] for line in (bag / bundle.MANIFEST).read_text().splitlines()}
    files = {path.relative_to(bag).as_posix() for path in bag.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith("data/")} == listed
    assert not [name for name in files if re.search(r'[%:<>|"?*\\ ]', name)]


def recordings(bag: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((bag / "data/recordings.json").read_bytes())
    return found


def rows(bag: Path) -> list[dict[str, str]]:
    """As a spreadsheet opens it."""
    text = (bag / "data/recordings.csv").read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def loaded(data: bytes) -> list[dict[str, str]]:
    """As a review platform opens a Concordance load file with its standard marks."""
    assert data.startswith(b"\xef\xbb\xbf")
    lines = data.decode("utf-8-sig").split("\r\n")
    assert lines.pop() == ""
    cells = []
    for line in lines:
        fields = line.split("\x14")
        assert all(len(field) >= 2 and field[0] == field[-1] == "þ" and "þ" not in field[1:-1] for field in fields)
        cells.append([field[1:-1] for field in fields])
    assert len({len(row) for row in cells}) == 1
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def vcons(bag: Path) -> list[dict[str, Any]]:
    checker = jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER)
    found = []
    for path in sorted((bag / "data/vcon").iterdir()):
        found.append(json.loads(path.read_bytes()))
        checker.validate(found[-1])
    return found


class _Page(HTMLParser):
    """The texts and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def page(bag: Path) -> _Page:
    return _Page((bag / "data/cover.html").read_text("utf-8"))


# -- a bundle of a small archive -------------------------------------------------------------------------------------


async def test_a_bundle_holds_every_call_as_recorded_and_strangers_tools_say_good(archive: Filled, tmp_path: Path):
    said = await archive.run("bundle", "-o", str(tmp_path / "case"), "--from", "2020-01-01", "--reason", "a claim")
    bag = tmp_path / "case"
    validate(bag)
    told = recordings(bag)
    held = {
        (one["source"], one["recording_id"], m["media_id"]): (bag / m["file"]).read_bytes()
        for one in told
        for m in one["media"]
    }
    assert held == archive.held_then
    assert [one["number"] for one in told] == list(range(1, len(told) + 1))
    assert said.out.startswith(f"{bag}: {len(told)} calls, {len(held)} recordings")
    assert "not signed" in said.out
    assert not (bag / bundle.SIGNATURE).exists()
    assert re.search(r"^Payload-Oxum: [0-9]+\.[0-9]+$", (bag / "bag-info.txt").read_text(), re.MULTILINE)
    # Nothing is left beside it.
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


async def test_a_zip_is_the_same_bag_in_one_folder(archive: Filled, tmp_path: Path):
    await archive.run("bundle", "-o", str(tmp_path / "case 50%.zip"), "--source", "hq")
    with zipfile.ZipFile(tmp_path / "case 50%.zip") as file:
        assert file.testzip() is None
        assert {name.split("/")[0] for name in file.namelist()} == {"case_50"}
        file.extractall(tmp_path / "out")
    validate(tmp_path / "out" / "case_50")
    tool("python3", "-m", "zipfile", "-t", "case 50%.zip", cwd=tmp_path)
    assert {one["source"] for one in recordings(tmp_path / "out" / "case_50")} == {"hq"}


async def test_calls_are_named_by_id_or_by_a_list_too_and_each_is_there_once(archive: Filled, tmp_path: Path):
    listed = (await archive.run("list", "--json", "--source", "hq")).rows
    ids = [one["recording_id"] for one in listed]
    await archive.run("bundle", "-o", str(tmp_path / "a"), "hq", ids[2], ids[0], ids[2])
    assert [one["recording_id"] for one in recordings(tmp_path / "a")] == [ids[2], ids[0]]
    lines = "".join(json.dumps(one) + "\n" for one in listed[:2]).encode()
    await archive.run("bundle", "-o", str(tmp_path / "b"), "--listed", "-", stdin=lines)
    assert [one["recording_id"] for one in recordings(tmp_path / "b")] == ids[:2]
    await archive.run("bundle", "-o", str(tmp_path / "c"), "--source", "hq", "--newest", "--limit", "1")
    assert [one["recording_id"] for one in recordings(tmp_path / "c")] == ids[-1:]


async def test_the_table_opens_in_a_spreadsheet_that_computes_nothing_of_it(archive: Filled, tmp_path: Path):
    await archive.run("bundle", "-o", str(tmp_path / "case"), "--from", "2020-01-01")
    table = rows(tmp_path / "case")
    assert len(table) == len(archive.held_then)
    callers = {row["caller"] for row in table}
    assert f"'{FORMULA}" in callers
    assert "'+33123456789" in callers
    for row in table:
        assert None not in row
        for name, cell in row.items():
            assert cell.isprintable(), (name, cell)
            assert not cell.lstrip().startswith(("=", "+", "-", "@")), (name, cell)
        data = (tmp_path / "case" / row["file"]).read_bytes()
        assert (row["size"], row["sha256"]) == (str(len(data)), hashlib.sha256(data).hexdigest())
        assert row["proof"] == "not certified yet"


async def test_the_load_file_opens_in_a_review_platform_and_leads_to_each_recording(archive: Filled, tmp_path: Path):
    await archive.run("bundle", "-o", str(tmp_path / "case"), "--from", "2020-01-01")
    data = tmp_path / "case" / "data"
    table = loaded((data / "load.dat").read_bytes())
    assert len({row["DOCID"] for row in table}) == len(table) == len(archive.held_then)
    for row in table:
        native = data.joinpath(*row["NATIVEPATH"].split("\\"))
        assert hashlib.sha256(native.read_bytes()).hexdigest() == row["SHA256"]
        assert native.name == row["FILENAME"]
        assert row["BEGATTACH"] <= row["DOCID"] <= row["ENDATTACH"]
    assert FORMULA in {row["FROM"] for row in table}
    # The format's own marks are written otherwise; the true text is in the JSON.
    (hostile,) = (row for row in table if "script" in row["FROM"])
    assert hostile["FROM"].startswith("<script>x</script> th®,")
    assert any("þór" in json.dumps(one, ensure_ascii=False) for one in recordings(tmp_path / "case"))


async def test_each_vcon_is_one_by_the_draft_and_holds_the_recorded_bytes(archive: Filled, tmp_path: Path):
    await archive.run("bundle", "-o", str(tmp_path / "case"), "--from", "2020-01-01")
    told = recordings(tmp_path / "case")
    made = vcons(tmp_path / "case")
    assert len(made) == len(told)
    assert len({one["uuid"] for one in made}) == len(made)
    for vcon, recording in zip(made, told, strict=True):
        assert recording["vcon"] == f"data/vcon/{recording['number']:06}.json"
        bodies = [base64.urlsafe_b64decode(d["body"] + "=" * (-len(d["body"]) % 4)) for d in vcon["dialog"]]
        assert bodies == [(tmp_path / "case" / m["file"]).read_bytes() for m in recording["media"]]
        assert vcon["parties"][0]["tel"] == recording["caller"]
        for dialog in vcon["dialog"]:
            indices = dialog["parties"] if isinstance(dialog["parties"][0], int) else dialog["parties"][0]
            assert indices == list(range(len(vcon["parties"])))


async def test_the_cover_says_what_is_in_it_and_no_vendor_text_becomes_a_tag(archive: Filled, tmp_path: Path):
    options = ("--case", "7/<b>2026", "--recipient", "Dr. Jones", "--purpose", "treatment", "--reason", "a request")
    await archive.run("bundle", "-o", str(tmp_path / "case"), "--from", "2020-01-01", *options)
    shown = page(tmp_path / "case")
    assert not {"script", "b", "img", "link", "iframe", "form"} & set(shown.tags) - {"b"}
    assert shown.tags.count("b") == 2
    for text in ("7/<b>2026", "Dr. Jones", "treatment", "a request", "not certified yet", "902(14)", "<script>"):
        assert text in shown.text
    assert "\u202e" not in shown.text
    for one in recordings(tmp_path / "case"):
        assert one["media"][0]["sha256"] in shown.text
    assert "What is missing" not in shown.text.split("Template")[0]
    line = next(line for line in shown.text.splitlines() if line.startswith("sha256sum"))
    tool("sh", "-c", line, cwd=tmp_path / "case")


async def test_each_call_is_written_down_before_it_is_taken_out_with_whom_and_what_for(archive: Filled, tmp_path: Path):
    options = ("--case", "7/2026", "--recipient", "Dr. Jones", "--purpose", "treatment", "--reason", "a request")
    await archive.run("bundle", "-o", str(tmp_path / "audited"), "--source", "pbx", *options)
    ids = {one["recording_id"] for one in recordings(tmp_path / "audited")}
    events = (await archive.run("audit", "--json", "--action", "export")).rows
    mine = [e for e in events if e["details"]["output"] == "audited"]
    assert {e["recording_id"] for e in mine} == ids
    assert len(mine) == len(ids)
    for event in mine:
        assert (event["source"], event["reason"], event["case"]) == ("pbx", "a request", "7/2026")
        assert (event["details"]["recipient"], event["details"]["purpose"]) == ("Dr. Jones", "treatment")
    trail = [json.loads(line) for line in (tmp_path / "audited/data/audit.jsonl").read_text().splitlines()]
    assert {e["id"] for e in mine} <= {e["id"] for e in trail}
    assert {e["recording_id"] for e in trail} == ids


async def test_wav_lies_beside_what_can_be_decoded(archive: Filled, tmp_path: Path):
    await archive.run("bundle", "-o", str(tmp_path / "case"), "hq", "--wav", code=2)
    one = (await archive.run("list", "--json", "--source", "hq", "--limit", "1")).rows[0]["recording_id"]
    said = await archive.run("bundle", "-o", str(tmp_path / "case"), "hq", one, "--wav")
    validate(tmp_path / "case")
    (medium,) = recordings(tmp_path / "case")[0]["media"]
    assert medium["wav"] == medium["file"] + ".wav"
    wav = (tmp_path / "case" / medium["wav"]).read_bytes()
    assert wav[:4] + wav[8:16] == b"RIFFWAVEfmt "
    assert "1 WAV file" in said.out


async def test_encrypted_audio_is_taken_out_as_recorded_and_decoded_where_there_is_the_key(
    tmp_path: Path, database: str, clock: Any
):
    sim = a_recorder(GenesysSimulator, 0)
    owners = iter((OWNER, OTHER))
    clear: list[bytes] = []

    def encrypt(data: bytes) -> tuple[bytes, str]:
        clear.append(data)
        envelope, content = detached(next(owners).envelope(data))
        return content, base64.b64encode(envelope).decode()

    sim.encrypt = encrypt
    for minutes in (30, 20):
        sim.add_call(sim.clock.now() - timedelta(minutes=minutes), timedelta(seconds=2), extra={"encrypted": True})
    async with archiving(tmp_path, database, sim, clock=clock, decrypt_key=OWNER.pem().decode()) as rig:
        await rig.sync()
        notes: list[str] = []
        keys = {"pbx": rig.feed.source.decrypted}
        made = bundler(rig, decode=commanded._decode, clear=keys, on_note=notes.append)
        assert await made.write(tmp_path / "case", calls_of(rig))
    bag = tmp_path / "case"
    validate(bag)
    first, second = (one["media"][0] for one in recordings(bag))
    for medium in (first, second):
        held = (bag / medium["file"]).read_bytes()
        assert held not in clear
        assert hashlib.sha256(held).hexdigest() == medium["sha256"]
    assert (bag / first["wav"]).read_bytes()[:4] == b"RIFF"
    # What can't be decoded is worth a note, and nothing is missing.
    assert second["wav"] is None
    assert (made.problems, len(notes)) == (0, 1)
    assert notes[0] in page(bag).text


# -- what goes wrong -------------------------------------------------------------------------------------------------


async def test_what_one_store_spoilt_comes_from_another_and_what_none_has_is_named(
    tmp_path: Path, database: str, clock: Any
):
    sim = a_recorder(calls=3)
    stores = {name: {"kind": "file", "path": str(tmp_path / name)} for name in ("near", "far")}
    async with archiving(tmp_path, database, sim, stores=stores, clock=clock) as rig:
        await rig.sync()
        documents = sorted((await rig.documents()).values(), key=lambda d: d["started_at"])
        copies = [{c["store"]: c["key"] for c in d["media"][0]["copies"]} for d in documents]
        for name in ("near", "far"):
            path = tmp_path / name / copies[0][name]
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        (tmp_path / "near" / copies[1]["near"]).unlink()
        problems: list[str] = []
        made = bundler(rig, on_problem=problems.append)
        assert await made.write(tmp_path / "case", calls_of(rig))
    validate(tmp_path / "case")
    told = recordings(tmp_path / "case")
    assert [bool(one["media"][0]["file"]) for one in told] == [False, True, True]
    assert (made.problems, len(problems)) == (1, 1)
    assert documents[0]["recording_id"] in problems[0]
    assert "near" in problems[0]
    assert "far" in problems[0]
    assert problems[0] in page(tmp_path / "case").text
    assert rows(tmp_path / "case")[0]["missing"]
    assert len(vcons(tmp_path / "case")) == len(loaded((tmp_path / "case/data/load.dat").read_bytes())) == 2


async def test_what_is_missing_makes_exit_code_1_and_a_bundle_that_is_whole_otherwise(archive: Filled, tmp_path: Path):
    one = (await archive.run("list", "--json", "--source", "hq", "--limit", "1")).rows[0]["recording_id"]
    said = await archive.run("bundle", "-o", str(tmp_path / "case"), "hq", one, "nobody", code=1)
    validate(tmp_path / "case")
    assert 'there is no recording "nobody"' in said.err
    assert "nobody" in page(tmp_path / "case").text


async def test_bad_input_is_one_clear_line_and_leaves_nothing(archive: Filled, tmp_path: Path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    out = str(tmp_path / "out")
    for line, code, words in (
        (("-o", out), 2, "say which calls"),
        (("-o", out, "hq"), 2, "say which calls"),
        (("-o", out, "hq", "x", "--queue", "q"), 2, "in one way"),
        (("-o", out, "nohq", "x"), 2, 'the nearest is "hq"'),
        (("-o", out, "--source", "nohq"), 2, 'the nearest is "hq"'),
        (("-o", out, "hq", "x", "--recipient", "Dr. Jones"), 2, "--purpose go together"),
        (("-o", out, "--number", "nobody"), 2, "--number"),
        (("-o", out, "hq", "nobody"), 1, 'there is no recording "nobody"'),
        (("-o", out, "--caller", "no-such-number"), 1, "no recording matches"),
        (("-o", str(taken), "--source", "hq"), 1, "something of that name"),
        (("-o", str(tmp_path / "no" / "where"), "--source", "hq"), 1, "No such file or directory"),
    ):
        said = await archive.run("bundle", *line, code=code)
        assert words in said.err, (line, said)
        assert not said.out
        assert [path.name for path in tmp_path.iterdir()] == ["taken"], line


async def test_what_can_not_be_written_down_is_not_taken_out(tmp_path: Path, database: str, clock: Any):
    sim = a_recorder(calls=1)
    stores = {"near": {"kind": "file", "path": str(tmp_path / "near")}}
    async with archiving(tmp_path, database, sim, stores=stores, clock=clock) as rig:
        await rig.sync()
        async with rig.catalog._transaction() as c:
            # It can be read all the while.
            await c.execute("ALTER TABLE audit ADD CONSTRAINT nobody CHECK (action <> 'export')")
        made, read = bundler(rig), list[Call]()
        made.on_call = read.append
        with pytest.raises(Exception, match="nobody"):
            await made.write(tmp_path / "case", calls_of(rig))
        assert (read, made.counts.media) == ([], 0)
        assert not [path.name for path in tmp_path.iterdir() if "case" in path.name]


async def test_bytes_that_change_while_they_are_written_are_not_taken(tmp_path: Path):
    bag = bundling._Folder(tmp_path)
    with pytest.raises(StoreError, match="changed"):
        await bag.add("data/x", lambda: (b"other",), 5, hashlib.sha256(b"bytes").hexdigest())
    bag.close()


# -- proof and signature ---------------------------------------------------------------------------------------------


class Some:
    """Proofs of every call but the first that is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    async def of(self, source: str, recording_id: str) -> list[tuple[str, bytes]]:
        self.asked += 1
        if self.asked == 1:
            return []
        return [("leaf.json", b'{"recording":"x"}\n'), ("days/p%20x/leaf.tlog-proof", recording_id.encode())]


async def calls_of(rig: Any):
    for document in sorted((await rig.documents()).values(), key=lambda d: d["started_at"]):
        yield document


def bundler(rig: Any, **how: Any) -> Bundler:
    told = cover.Told(id="01", made_at=datetime.now(UTC), made_by="me", software="archiver")
    event = Event(who="me", role="", means="command", address="", action="export")
    archive = rig.archive
    return Bundler(catalog=archive.catalog, outlets=archive.outlets, spool=archive.spool, told=told, event=event, **how)


@pytest.fixture(scope="module")
def seaweed():
    with seaweeds() as server:
        yield server


@pytest.fixture(scope="module")
def apache():
    with apaches() as server:
        yield server


async def test_from_s3_and_webdav_a_signed_bundle_with_proofs_is_checked_by_ssh_keygen(
    tmp_path: Path, database: str, seaweed: Any, apache: Any
):
    sim = a_recorder(calls=4, live=True)
    stores = {"s3": s3_table(seaweed, "bundles"), "dav": dav_table(apache, "bundles/")}
    key = FileKey.generate()
    origin = "calls.example.com/archive"
    async with archiving(tmp_path, database, sim, stores=stores) as rig:
        await rig.sync()
        made = bundler(rig, signing=Signing(origin, key), proofs=Some())
        assert await made.write(tmp_path / "case", calls_of(rig))
    bag = tmp_path / "case"
    validate(bag)
    # The key from elsewhere, not from the bundle.
    signers = tmp_path / "signers"
    signers.write_text(note.allowed_signers(origin, key.public))
    check = ("ssh-keygen", "-Y", "verify", "-I", origin, "-n", "archiver", "-s", bundle.SIGNATURE, "-f")
    tags = (bag / bundle.TAG_MANIFEST).read_bytes()
    assert "Good" in tool(*check, str(signers), cwd=bag, stdin=tags)
    assert subprocess.run(
        [*check, str(signers)], cwd=bag, input=tags + b"x", capture_output=True, check=False
    ).returncode
    # And as the cover page says it.
    line = next(line for line in page(bag).text.splitlines() if line.startswith("ssh-keygen"))
    assert "Good" in tool("sh", "-c", line, cwd=bag)
    assert note.vkey(origin, key.public) in page(bag).text
    assert "3 of 4; 1 not certified yet" in page(bag).text
    told = recordings(bag)
    assert [len(one["proof"]) for one in told] == [0, 2, 2, 2]
    assert told[1]["proof"] == ["data/proof/000002/leaf.json", "data/proof/000002/days/p=20x/leaf.tlog-proof"]
    assert (bag / told[1]["proof"][1]).read_text() == told[1]["recording_id"]


def test_no_file_of_a_bundle_has_a_name_that_a_vendor_chose():
    document = {"started_at": "2024-05-17T11:45:32.000Z", "source": "../h q%ü"}
    assert (
        bundle.audio_name(1, document, 2, "a/b/../x.%2e/wav.W%AV") == "data/audio/000001-_h_q_-20240517T114532Z-2.wav"
    )
    assert bundle.audio_name(1, document, 2, "x") == "data/audio/000001-_h_q_-20240517T114532Z-2.bin"
    for name in ("../x", "/x", "x//y", ".x", "a b", "x\n", "a/../b", "", "a%b", "-x"):
        with pytest.raises(ValueError, match="no name"):
            bundle.checked(name)
    assert bundle.base("50%/..") == "50"
    assert bundle.base("…") == "bundle"


DOCUMENT: dict[str, Any] = {
    "source": "hq",
    "kind": "xivo",
    "recording_id": "r",
    "call_id": None,
    "state": "archived",
    "started_at": "2024-05-17T11:45:32.000Z",
    "ended_at": None,
    "duration": None,
    "direction": "inbound",
    "caller": "+1",
    "callee": None,
    "agent": "Joe",
    "queue": None,
    "parties": [{"number": "+2", "name": "Ann", "user": None, "role": None}, {"number": "+1", "name": "Bob"}, {}],
    "media": [{"media_id": "m", "duration": None, "state": "archived", "content_type": "audio/wav"}],
}


def test_a_vcon_names_the_caller_first_each_party_once_and_claims_no_channel_for_anybody():
    heard = Heard(media_id="m", file="data/audio/x.wav", content_type="audio/wav", channels=2)
    made = bundle.vcon(Call(number=1, document=DOCUMENT, media=[heard]), made_at=datetime.now(UTC), uuid="u")
    assert made["parties"] == [{"tel": "+1", "name": "Bob"}, {"tel": "+2", "name": "Ann"}, {"name": "Joe"}]
    (dialog,) = made["dialog"]
    assert dialog["parties"] == [[0, 1, 2]] * 2
    assert "duration" not in dialog
    body = os.urandom(2 * bundle.STEP + 100)
    pieces = [body[i : i + bundle.STEP] for i in range(0, len(body), bundle.STEP)]
    told = json.loads(b"".join(bundle.vcon_chunks(made, [pieces])))["dialog"][0]["body"]
    assert base64.urlsafe_b64decode(told + "=" * (-len(told) % 4)) == body
    mono = bundle.vcon(
        Call(number=1, document=DOCUMENT, media=[replace(heard, channels=1)]), made_at=datetime.now(UTC), uuid="u"
    )
    assert mono["dialog"][0]["parties"] == [0, 1, 2]


# -- many calls ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory, postgres: Any) -> Iterator[Filled]:
    """1,000 short calls."""
    url = postgres.create()
    made = Filled(tmp_path_factory.mktemp("thousand"), url)

    async def fill() -> None:
        pbx = await made.add("pbx", XivoSimulator(), timezone="Europe/Paris")
        at = datetime.now(UTC) - 2 * HOUR
        for i in range(1000):
            pbx.add_call(at + timedelta(seconds=3 * i), timedelta(seconds=1))
        await made.run("sync")
        await made.close()

    asyncio.run(fill())
    yield made
    postgres.drop(url)


_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


async def test_a_thousand_calls_are_bundled_in_flat_memory_and_strangers_tools_say_good(
    thousand: Filled, tmp_path: Path
):
    # Through a small process: a child begins with the peak of whoever started it.
    line = [
        "-m",
        "archiver",
        "--config",
        str(thousand.write()),
        "bundle",
        "-o",
        str(tmp_path / "case"),
        "--source",
        "pbx",
    ]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _MEASURED, sys.executable, *line],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) >> 10
    assert peak < 250, f"{peak} MiB"
    validate(tmp_path / "case")
    assert len(recordings(tmp_path / "case")) == 1000
    assert len(vcons(tmp_path / "case")) == 1000


@pytest.mark.parametrize(("out", "ends"), [("case", (signal.SIGINT, signal.SIGKILL)), ("case.zip", (signal.SIGINT,))])
async def test_what_is_ended_by_ctrl_c_or_killed_leaves_no_half_bundle_under_the_name(
    thousand: Filled, tmp_path: Path, out: str, ends: tuple[signal.Signals, ...]
):
    for number in ends:
        running = await thousand.start("bundle", "-o", str(tmp_path / out), "--source", "pbx")
        begun = "bag/data/audio/*" if out == "case" else "bag"
        await until(lambda: list(tmp_path.glob(f".{out}.*.part/{begun}")) or running.over)  # noqa: B023
        ended = await running.end(number)
        assert ended.code == (130 if number == signal.SIGINT else -9)
        left = [path.name for path in tmp_path.iterdir()]
        assert out not in left
        assert len(left) == (0 if number == signal.SIGINT else 1), left
    # The same command goes well afterwards.
    await thousand.run("bundle", "-o", str(tmp_path / out), "--source", "pbx", "--limit", "2")
