"""The stranger's script: what it says of a good copy, and that it finds and names each change that was made to one."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from archiver.proof import certificates, handout, log, note, verify
from archiver.proof.certificates import Gap, Leaf, Leaves
from archiver.proof.note import Checkpoint
from tests.commands import ROOT
from tests.proof.build import FIRST, HOUR, SOURCES, Archive, Call, build, calls_of, key_of, midnight, night

SCRIPT = ROOT / "archiver" / "proof" / "verify.py"
#: A day in the middle; `hq` certified it twice (see build), and the one after once.
TWICE, ONCE = FIRST + timedelta(days=2), FIRST + timedelta(days=3)
WHOLE = "90 recordings listed, 89 media with 60520 bytes: 89 found as signed"


def run(copy: Path, vkey: str, *words: str) -> tuple[int, list[str]]:
    """The exit code, and what is printed; in this process, for speed."""
    out, before = io.StringIO(), sys.argv
    sys.argv = ["verify.py", str(copy), vkey, *words]
    try:
        with redirect_stdout(out), redirect_stderr(out):
            code = verify.main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue().splitlines()


def problems(copy: Path, vkey: str, *words: str) -> list[str]:
    """The lines before those that are always there."""
    code, lines = run(copy, vkey, *words)
    end = next(
        (n for n, line in enumerate(lines) if re.match(r"\S+: \d{4}-\d\d-\d\d to |\d+ recordings listed", line)), -1
    )
    assert (code, lines[-1]) == ((1, f"problems: {end}") if end else (0, "good"))
    return lines[:end]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return build(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(made: Archive, tmp_path: Path) -> Archive:
    """A copy that a test may spoil."""
    archive = Archive.__new__(Archive)
    archive.__dict__.update(made.__dict__)
    archive.folder = tmp_path / "copy"
    shutil.copytree(made.folder, archive.folder)
    return archive


# -- a good copy -------------------------------------------------------------------------------------------------------


def test_a_good_copy_is_called_good_and_what_is_vouched_for_is_told(made: Archive):
    assert run(made.folder, made.vkey, "--media") == (
        0,
        [
            "branch: 2024-05-14 to 2024-05-23, 10 days, 10 complete",
            "hq: 2024-05-14 to 2024-05-23, 10 days, 10 complete",
            "paper: 2024-05-14 to 2024-05-23, 10 days, listed by call ids: they claim no completeness",
            "quiet: 2024-05-14 to 2024-05-23, 10 days, 10 complete",
            WHOLE,
            "moved to other days: 1; entries of other kinds, not looked at: 0",
            "vouches for calls.example.com/archive up to entry 41, certificates up to 2024-05-25T02:41:00.000Z",
            "a log that was cut back looks the same: keep the newest checkpoint, name it next time: --expect-since",
            "good",
        ],
    )


def test_a_strangers_machine_needs_python_and_nothing_else(made: Archive, tmp_path: Path):
    """Isolated, without packages, without asserts, in an empty folder; the script is the one that the store holds."""
    script = tmp_path / "verify.py"
    shutil.copy(made.folder / "_proof" / "verify.py", script)
    kept = made.folder / "_proof/log/checkpoint/000000000021"
    (tmp_path / "vkey").write_text(made.vkey + "\n")
    words = [
        sys.executable,
        "-I",
        "-S",
        "-O",
        str(script),
        str(made.folder),
        "vkey",
        "--media",
        "--expect-since",
        str(kept),
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={})
    assert (done.returncode, done.stderr) == (0, "")
    assert WHOLE in done.stdout
    assert "cut back" not in done.stdout
    assert done.stdout.endswith("good\n")


def test_the_folder_of_proofs_alone_is_enough_without_the_audio(made: Archive):
    code, lines = run(made.folder / "_proof", made.vkey)
    assert code == 0
    assert "not read without --media" in "\n".join(lines)
    code, lines = run(made.folder / "_proof", made.vkey, "--media")
    assert (code, "needs a copy of the whole store" in lines[-1]) == (2, True)


def test_a_prefix_without_a_slash_is_a_part_of_the_names(made: Archive, tmp_path: Path):
    for path in made.folder.iterdir():
        shutil.copytree(path, tmp_path / f"calls-{path.name}")
    assert WHOLE in run(tmp_path, made.vkey, "--media")[1]
    (tmp_path / "old_proof").mkdir()
    assert problems(tmp_path, made.vkey, "--media") == []


def test_only_the_audio_of_one_store_is_expected_where_it_is_named(tmp_path: Path):
    archive = Archive(tmp_path)
    archive.certify("hq", FIRST, calls_of("hq", FIRST), stores=["main"])
    archive.certify("branch", FIRST, calls_of("branch", FIRST), stores=["dav"], put_media=False)
    archive.checkpoint()
    assert len(problems(tmp_path, archive.vkey, "--media")) == 3
    assert problems(tmp_path, archive.vkey, "--media", "--store", "main") == []
    assert len(problems(tmp_path, archive.vkey, "--media", "--store", "main", "--store", "dav")) == 3


def test_an_empty_log_vouches_for_nothing_and_says_so(tmp_path: Path):
    archive = Archive(tmp_path)
    archive.checkpoint()
    code, lines = run(tmp_path, archive.vkey)
    assert (code, lines[-1]) == (0, "good")
    assert lines[1] == f"vouches for {note.Verifier.parse(archive.vkey).name} up to entry 0, certificates up to none"


def test_a_log_of_several_tiles_is_read_across_them(tmp_path: Path):
    archive = Archive(tmp_path)
    for n in range(300):
        archive.certify("quiet", FIRST + timedelta(days=n), [])
        if n % 100 == 0:
            archive.checkpoint()
    kept = archive.checkpoint()
    assert problems(tmp_path, archive.vkey, "--expect-since", str(kept)) == []
    assert "300 days, 300 complete" in run(tmp_path, archive.vkey)[1][0]
    bundle = archive.files("_proof/log/tile/entries/000")[0]
    bundle.write_bytes(bundle.read_bytes().replace(b'"rows":0', b'"rows":9', 1))
    told = problems(tmp_path, archive.vkey)
    assert "checkpoint 000000000001: another log was signed than is in this copy: entries 1 to 1 differ" in told


# -- a copy that was changed -------------------------------------------------------------------------------------------

#: What is done to a copy, by whom, and what the script says first; the page docs/proof.md shows all three.
TAMPERINGS: list[tuple[str, Callable[[Archive], list[str]], str]] = []


def tampering(what: str, says: str) -> Callable[[Callable[[Archive], list[str] | None]], None]:
    def add(do: Callable[[Archive], list[str] | None]) -> None:
        TAMPERINGS.append((what, lambda archive: do(archive) or ["--media"], says))

    return add


def edit(path: Path, old: str | bytes, new: str | bytes) -> None:
    old, new = (text.encode() if isinstance(text, str) else text for text in (old, new))
    data = path.read_bytes()
    assert data.count(old) >= 1, (path, old)
    path.write_bytes(data.replace(old, new, 1))


def again(archive: Archive, do: Callable[[Archive], None]) -> None:
    """The owner of the key makes the archive anew, and signs what is not so."""
    shutil.rmtree(archive.folder)
    fresh = Archive(archive.folder)
    do(fresh)
    if fresh.entries:
        fresh.checkpoint()


def forged(archive: Archive, change: Callable[[dict[str, Any]], None], **other: Any) -> None:
    """Day one is certified as it was; of day two the certificate of `hq` is changed before it is signed."""

    def do(fresh: Archive) -> None:
        night(fresh, FIRST)
        fresh.forge = change
        fresh.certify("hq", FIRST + timedelta(days=1), calls_of("hq", FIRST + timedelta(days=1)), **other)

    again(archive, do)


@tampering("a recording's audio is deleted", "hq 2024-05-17: recording {}: {} bytes are missing, those with SHA-256 {}")
def _(archive: Archive) -> None:
    archive.audio_of(Call("hq", ONCE, 1)).unlink()


@tampering(
    "one byte of a recording's audio is changed",
    "hq 2024-05-17: recording {}: hq/2024/05/17/call%2F1/part0-{}.wav holds other bytes, not those with SHA-256 {}",
)
def _(archive: Archive) -> None:
    edit(archive.audio_of(Call("hq", ONCE, 1)), b"RIFF", b"RIFE")


@tampering(
    "audio is replaced by another recording's, its name with it",
    "hq 2024-05-17: recording {}: {} bytes are missing, those with SHA-256 {}",
)
def _(archive: Archive) -> None:
    archive.audio_of(Call("hq", ONCE, 1)).unlink()
    other = archive.audio_of(Call("hq", ONCE, 2))
    shutil.copy(other, other.with_name("copy-" + other.name))


@tampering(
    "of two recordings with the same audio one file is deleted",
    "hq 2024-05-14: recording {}: {} bytes are missing, those with SHA-256 {}",
)
def _(archive: Archive) -> None:
    calls = [Call("hq", FIRST, 1), Call("hq", FIRST, 2)]
    calls[1].bodies = calls[0].bodies
    again(archive, lambda fresh: fresh.certify("hq", FIRST, calls))
    archive.audio_of(calls[1]).unlink()


@tampering(
    "a line is removed from a list",
    "hq 2024-05-17: the list is not the one that was signed: 4 lines, signed 5; archived 2, signed 3; {}",
)
def _(archive: Archive) -> None:
    path = archive.list_of("hq", ONCE)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if Call("hq", ONCE, 1).handle.encode() not in line))


@tampering(
    "a list is deleted",
    "hq 2024-05-17: the list can't be read: days/hq/2024/05/17/{}.leaves.jsonl is missing",
)
def _(archive: Archive) -> None:
    archive.list_of("hq", ONCE).unlink()


@tampering(
    "`empty` (there was no audio) is shown as `gone` (the recorder had deleted it)",
    "hq 2024-05-17: the list is not the one that was signed: 5 lines, signed 5; empty 0, signed 1; gone 2, signed 1",
)
def _(archive: Archive) -> None:
    edit(archive.list_of("hq", ONCE), '"state":"empty"', '"state":"gone"')


@tampering(
    "a count is changed in a certificate",
    "hq 2024-05-17: days/hq/2024/05/17/{}.certificate.json is not the certificate that is in the log",
)
def _(archive: Archive) -> None:
    edit(archive.files("_proof/days/hq/2024/05/17/*.certificate.json")[0], '"gone":1', '"gone":0')


@tampering(
    "a certificate is deleted",
    "hq 2024-05-17: days/hq/2024/05/17/{}.certificate.json is missing",
)
def _(archive: Archive) -> None:
    archive.files("_proof/days/hq/2024/05/17/*.certificate.json")[0].unlink()


@tampering(
    "a gap is hidden: it is cut out of the certificate and of the log",
    "checkpoint 000000000005: another log was signed than is in this copy: entries 5 to 5 differ",
)
def _(archive: Archive) -> None:
    day = FIRST + timedelta(days=1)

    def with_gap(fresh: Archive) -> None:
        night(fresh, FIRST)
        fresh.checkpoint()
        fresh.certify("hq", day, [], gaps=[Gap(midnight(day), midnight(day) + HOUR, "recorder unreachable")])

    again(archive, with_gap)
    for path in archive.files("_proof/days/hq/2024/05/15/*.certificate.json"):
        entry = path.read_bytes().rstrip(b"\n")
        told = json.loads(entry)
        told["coverage"]["gaps"], told["complete"] = [], True
        path.write_bytes(certificates._json(told) + b"\n")
        bundle = archive.files("_proof/log/tile/entries/000.p/5")[0]
        other = certificates._json(told)
        edit(bundle, len(entry).to_bytes(2, "big") + entry, len(other).to_bytes(2, "big") + other)


@tampering(
    "an entry of the log is changed",
    "checkpoint 000000000012: another log was signed than is in this copy: entries 9 to 12 differ",
)
def _(archive: Archive) -> None:
    entry = archive.files("_proof/days/quiet/2024/05/16/*.certificate.json")[0].read_bytes().rstrip(b"\n")
    edit(archive.files("_proof/log/tile/entries/000.p/41")[0], entry, entry.replace(b'"times":48', b'"times":49'))


@tampering(
    "something is put behind the entries of the log",
    "the log: log/tile/entries/000.p/41 holds more than its entries",
)
def _(archive: Archive) -> None:
    path = archive.files("_proof/log/tile/entries/000.p/41")[0]
    path.write_bytes(path.read_bytes() + b"\0\2{}")


@tampering("the entries of the log are deleted", "the log: log/tile/entries/000.p/41 is missing")
def _(archive: Archive) -> None:
    archive.files("_proof/log/tile/entries/000.p/41")[0].unlink()


@tampering(
    "all is signed anew with another key",
    "checkpoint 000000000004: it is not signed by calls.example.com/archive with this key",
)
def _(archive: Archive) -> None:
    shutil.rmtree(archive.folder)
    build(archive.folder, key_of(2))


@tampering(
    "the same key signs for another archive, and that is put in its place",
    "checkpoint 000000000041: it is not signed by calls.example.com/archive with this key",
)
def _(archive: Archive) -> None:
    text = Checkpoint("calls.example.com/other", archive.log.size, archive.log.root).text()
    path = archive.files("_proof/log/checkpoint/000000000041")[0]
    path.write_bytes(note.sign(text, "calls.example.com/archive", archive.signers))


@tampering("the root in a checkpoint is changed", "checkpoint 000000000041: the signature is wrong")
def _(archive: Archive) -> None:
    path = archive.files("_proof/log/checkpoint/000000000041")[0]
    path.write_bytes(path.read_bytes().replace(b"\n41\nok3", b"\n41\nok4"))


@tampering("a checkpoint is put under another size", "checkpoint 000000000040: it tells of 41 entries")
def _(archive: Archive) -> None:
    path = archive.files("_proof/log/checkpoint/000000000041")[0]
    shutil.copy(path, path.with_name("000000000040"))


@tampering("all checkpoints are deleted", "there is no checkpoint: nothing in this copy is signed")
def _(archive: Archive) -> None:
    for path in archive.files("_proof/log/checkpoint/*"):
        path.unlink()


@tampering(
    "an old checkpoint is put back as the newest (with `--expect-since` and one that was kept)",
    "checkpoint kept: the log was cut back: it had 41 entries then, here it has 4",
)
def _(archive: Archive) -> list[str]:
    shutil.copy(archive.files("_proof/log/checkpoint/000000000041")[0], archive.folder.parent / "kept")
    shutil.rmtree(archive.folder)
    build(archive.folder, nights=1)
    return ["--media", "--expect-since", "kept"]


@tampering(
    "a second history is signed, without a recording (with `--expect-since` and a checkpoint that was kept)",
    "checkpoint kept: another log was signed than is in this copy: entries 1 to 4 differ",
)
def _(archive: Archive) -> list[str]:
    shutil.copy(archive.files("_proof/log/checkpoint/000000000004")[0], archive.folder.parent / "kept")

    def other(fresh: Archive) -> None:
        for source in SOURCES:
            fresh.certify(source, FIRST, calls_of(source, FIRST)[1:])

    again(archive, other)
    return ["--media", "--expect-since", "kept"]


@tampering("the owner certifies no day in the middle", "hq: days without a certificate: 1, the first is 2024-05-17")
def _(archive: Archive) -> None:
    def without(fresh: Archive) -> None:
        for n in (0, 1, 2, 4, 5):
            fresh.certify("hq", FIRST + timedelta(days=n), calls_of("hq", FIRST + timedelta(days=n)))

    again(archive, without)


def left_out(archive: Archive, of: slice) -> None:
    calls = sorted(calls_of("hq", FIRST), key=lambda call: call.handle)

    def twice(fresh: Archive) -> None:
        fresh.certify("hq", FIRST, calls)
        fresh.told["hq", FIRST] = (1, [])
        fresh.certify("hq", FIRST, calls[of])

    again(archive, twice)


@tampering(
    "the owner leaves a recording out when a day is certified again",
    "hq 2024-05-14: recordings missing that an earlier certificate of this day told of: 1",
)
def _(archive: Archive) -> None:
    left_out(archive, slice(1, None))


@tampering(
    "the owner leaves out the last two of a list",
    "hq 2024-05-14: recordings missing that an earlier certificate of this day told of: 2",
)
def _(archive: Archive) -> None:
    left_out(archive, slice(0, -2))


@tampering(
    "the owner counts a recording twice",
    "hq 2024-05-14: the list is out of order, or holds recording {} twice",
)
def _(archive: Archive) -> None:
    def twice(fresh: Archive) -> None:
        fresh.leaves = Unordered
        fresh.certify("hq", FIRST, [*calls_of("hq", FIRST), Call("hq", FIRST, 1)])

    again(archive, twice)


class Unordered(Leaves):
    """Takes any order."""

    def add(self, leaf: Leaf) -> bytes:
        self._last = ""
        return super().add(leaf)


@tampering("the owner signs counts that do not add up", "hq 2024-05-15: the counts do not add up")
def _(archive: Archive) -> None:
    forged(archive, lambda told: told["counts"].update(gone=0))


@tampering("the owner signs another length of the list", "hq 2024-05-15: the counts do not add up")
def _(archive: Archive) -> None:
    forged(archive, lambda told: told["leaves"].update(size=6))


@tampering(
    "the owner keeps quiet about what is odd",
    "hq 2024-05-15: the counts are not those of the list: flags {'unchecked': 1}, signed {}",
)
def _(archive: Archive) -> None:
    forged(archive, lambda told: told.update(flags={}))


@tampering(
    "the owner signs counts that add up and are not those of the list",
    "hq 2024-05-15: the counts are not those of the list: empty 1, signed 2; gone 1, signed 0",
)
def _(archive: Archive) -> None:
    forged(archive, lambda told: told["counts"].update(gone=0, empty=2))


@tampering(
    "the owner signs a day with a gap as complete",
    "hq 2024-05-15: it says complete: True, which its own numbers do not: gaps 1 (no answer)",
)
def _(archive: Archive) -> None:
    start = midnight(FIRST + timedelta(days=1))
    forged(archive, lambda told: told.update(complete=True), gaps=[Gap(start, start + HOUR, "no answer")])


@tampering(
    "the owner signs a part of a day as complete",
    "hq 2024-05-15: it says complete: True, which its own numbers do not: part of the day was not covered",
)
def _(archive: Archive) -> None:
    forged(archive, lambda told: told["coverage"].update({"from": "2024-05-15T06:00:00.000Z"}))


@tampering(
    "the owner certifies a day twice for the first time",
    "hq 2024-05-14: revision 1 follows on revision 1",
)
def _(archive: Archive) -> None:
    def twice(fresh: Archive) -> None:
        for _ in range(2):
            fresh.told.clear()
            fresh.certify("hq", FIRST, calls_of("hq", FIRST))

    again(archive, twice)


@tampering(
    "the owner takes a certificate out of a source's chain",
    "hq 2024-05-15: the certificate is not chained to the one before it",
)
def _(archive: Archive) -> None:
    forged(archive, lambda told: told.update(previous="00" * 32))


@tampering(
    "an honest day that is not complete is shown as what it is",
    "hq 2024-05-15: not complete, as the certificate says itself: gaps 1 (no answer), failed 1",
)
def _(archive: Archive) -> None:
    day = FIRST + timedelta(days=1)

    def do(fresh: Archive) -> None:
        night(fresh, FIRST)
        gaps = [Gap(midnight(day), midnight(day) + HOUR, "no answer")]
        fresh.certify("hq", day, [Call("hq", day, 1, "failed")], gaps=gaps)

    again(archive, do)


def said(archive: Archive, do: Callable[[Archive], list[str]]) -> list[str]:
    words, before = do(archive), Path.cwd()
    os.chdir(archive.folder.parent)
    try:
        return problems(archive.folder, archive.vkey, *words)
    finally:
        os.chdir(before)


def as_pattern(says: str) -> str:
    return ".*".join(map(re.escape, says.split("{}")))


@pytest.mark.parametrize(("what", "do", "says"), TAMPERINGS, ids=[what for what, _, _ in TAMPERINGS])
def test_each_change_is_found_and_named(store: Archive, what: str, do: Callable[[Archive], list[str]], says: str):
    told = said(store, do)
    assert any(re.fullmatch(as_pattern(says), line) for line in told), "\n".join(told)


def test_a_log_that_was_cut_back_looks_good_without_a_checkpoint_that_was_kept(store: Archive):
    """What nobody can see from a copy: the script says so in its last lines."""
    shutil.rmtree(store.folder)
    build(store.folder, nights=1)
    code, lines = run(store.folder, store.vkey, "--media")
    assert code == 0
    assert "a log that was cut back looks the same" in lines[-2]


def test_the_page_shows_each_change_and_what_is_said_of_it():
    rows = [f"| {what} | `{says.replace('{}', '…')}` |" for what, _, says in TAMPERINGS]
    page = (ROOT / "docs" / "proof.md").read_text("utf-8")
    assert "\n".join(rows) in page, "docs/proof.md shows another table than this:\n" + "\n".join(rows)


# -- what a hostile copy may hold --------------------------------------------------------------------------------------


def test_any_changed_byte_of_what_is_proved_is_found(tmp_path: Path):
    """A bit of the first, the middle and the last byte of each file below _proof, in turn."""
    archive = build(tmp_path, nights=2)
    for path in archive.files("_proof/**/*"):
        name, data = path.relative_to(tmp_path / "_proof").as_posix(), path.read_bytes()
        # What is there for others: time stamps, SSH signatures, tiles, and bundles of checkpoints that were.
        proved = re.fullmatch(r"days/.*|log/checkpoint/\d+|log/tile/entries/000\.p/8", name)
        for at in {0, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            code, lines = run(tmp_path, archive.vkey)
            assert code == (1 if proved else 0), (name, at, lines)
        path.write_bytes(data)


def test_names_that_lead_out_of_the_copy_are_not_followed(store: Archive, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()

    def links(fresh: Archive) -> None:
        fresh.certify("hq", FIRST, calls_of("hq", FIRST))
        fresh.forge = lambda told: told.update(folders=["../outside", "/", "a/../../outside", "linked"])
        fresh.certify("branch", FIRST, calls_of("branch", FIRST))
        fresh.forge = lambda told: told.update(name="../../outside/list")
        fresh.certify("paper", FIRST, calls_of("paper", FIRST), basis="ids")

    again(store, links)
    for call in calls_of("branch", FIRST):
        shutil.copy(store.audio_of(call), outside)
        store.audio_of(call).unlink()
    (store.folder / "linked").symlink_to(outside)
    audio = store.audio_of(Call("hq", FIRST, 1))
    shutil.move(audio, outside / "audio")
    audio.symlink_to(outside / "audio")
    told = problems(store.folder, store.vkey, "--media")
    assert sum("bytes are missing" in line for line in told) == 4
    assert "paper 2024-05-14: ../../outside/list.certificate.json leads out of the copy" in told
    lists = store.list_of("hq", FIRST)
    shutil.move(lists, outside / "list")
    lists.symlink_to(outside / "list")
    assert any(f"{lists.name} leads out of the copy" in line for line in problems(store.folder, store.vkey))


@pytest.mark.parametrize(
    "entry",
    [
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 60_000,
        b'{"type":"archiver/certificate/v1"}',
        b'{"type":"archiver/certificate/v1","source":[],"day":"2024-05-14"}',
        b'{"type":"archiver/certificate/v1","source":5,"day":"2024-05-14","previous":null,"revision":1,"issued_at":"2"}',
        b'{"type":"archiver/certificate/v1","source":"hq","day":"9999-99-99"}',
        b'{"type":"archiver/certificate/v1","source":"hq","day":"2024-05-14","previous":null,"revision":"1"}',
        b'{"type":"archiver/certificate/v1","source":"hq","day":"9999-12-31","previous":null,"revision":1,"issued_at":1}',
    ],
)
def test_an_entry_that_nobody_can_read_is_named_and_the_rest_is_checked(tmp_path: Path, entry: bytes):
    archive = Archive(tmp_path)
    archive.certify("quiet", FIRST, [])
    archive.entries.append(entry)
    archive.certify("quiet", FIRST + timedelta(days=1), [])
    archive.checkpoint()
    told = problems(tmp_path, archive.vkey)
    assert sum(line.startswith("entry 2 of the log can't be read") for line in told) == 1, told


@pytest.mark.parametrize(
    "spoil", ["", "{", "[]", "null", '{"recording":1}', "x" * 2_000_000, '{"recording":"1","state":[]}']
)
def test_a_list_that_nobody_can_read_is_named(store: Archive, spoil: str):
    path = store.list_of("hq", ONCE)
    path.write_text(spoil)
    assert any(line.startswith("hq 2024-05-17: the list") for line in problems(store.folder, store.vkey))


def test_an_entry_of_another_kind_is_counted_and_not_judged(tmp_path: Path):
    archive = Archive(tmp_path)
    archive.certify("quiet", FIRST, [])
    archive.entries.append(b'{"type":"archiver/hold/v1"}')
    archive.checkpoint()
    code, lines = run(tmp_path, archive.vkey)
    assert code == 0
    assert "moved to other days: 0; entries of other kinds, not looked at: 1" in lines


def test_what_is_printed_holds_no_control_characters(tmp_path: Path):
    archive = Archive(tmp_path)
    archive.forge = lambda told: told.update(source="hq\x1b[2J", complete=False)
    archive.certify("hq", FIRST, [])
    archive.checkpoint()
    assert "\x1b" not in "".join(run(tmp_path, archive.vkey)[1])


def test_a_day_that_was_not_complete_and_is_now_is_no_problem(tmp_path: Path):
    archive = Archive(tmp_path)
    archive.certify("hq", FIRST, [Call("hq", FIRST, 1, "pending")])
    archive.certify("hq", FIRST, [Call("hq", FIRST, 1)])
    archive.checkpoint()
    assert problems(tmp_path, archive.vkey, "--media") == []


def test_many_gaps_beside_a_certificate_are_checked_too(tmp_path: Path):
    archive, start = Archive(tmp_path), midnight(FIRST)
    gaps = [Gap(start + timedelta(seconds=n), start + timedelta(seconds=n + 1), "no answer") for n in range(2000)]
    archive.certify("hq", FIRST, [], gaps=gaps)
    archive.checkpoint()
    name = "days/hq/2024/05/14/01HY0000000000000000000001.gaps.jsonl"
    honest = "hq 2024-05-14: not complete, as the certificate says itself: gaps 2000 (no answer)"
    assert problems(tmp_path, archive.vkey) == [honest]
    path = tmp_path / "_proof" / name
    edit(path, "no answer", "no reason")
    assert f"hq 2024-05-14: {name} does not hold the gaps that were signed" in problems(tmp_path, archive.vkey)
    path.unlink()
    assert f"hq 2024-05-14: {name} is missing" in problems(tmp_path, archive.vkey)


# -- keys --------------------------------------------------------------------------------------------------------------


def rotated(folder: Path, *, both: bool) -> Archive:
    """A new key is told of in the log; the checkpoint over that is signed by both, the ones after by the new one."""
    archive = Archive(folder)
    old, new = archive.signers[0], key_of(2)
    archive.certify("quiet", FIRST, [])
    archive.checkpoint()
    archive.entries.append(
        certificates.key_entry(note.vkey(note.Verifier.parse(archive.vkey).name, new.public), midnight(FIRST))
    )
    archive.signers = [old, new] if both else [new]
    archive.checkpoint()
    archive.signers = [new]
    archive.certify("quiet", FIRST + timedelta(days=1), [])
    archive.checkpoint()
    archive.signers = [old]
    return archive


def test_a_key_that_the_old_one_introduced_is_taken_and_another_is_not(tmp_path: Path):
    archive = rotated(tmp_path / "good", both=True)
    assert problems(archive.folder, archive.vkey) == []
    archive = rotated(tmp_path / "stolen", both=False)
    assert [line.partition(":")[0] for line in problems(archive.folder, archive.vkey)] == [
        "checkpoint 000000000002",
        "checkpoint 000000000003",
    ]


def test_several_keys_in_a_file_are_all_trusted(tmp_path: Path):
    archive = rotated(tmp_path / "store", both=False)
    keys = tmp_path / "keys"
    keys.write_text(f"{archive.vkey}\n{note.vkey('calls.example.com/archive', key_of(2).public)}\n")
    assert problems(archive.folder, str(keys)) == []


def test_its_own_ed25519_agrees_with_a_library_also_on_odd_signatures():
    key = key_of(7)
    for n in range(12):
        text = b"text %d" % n
        good = key.sign(text)
        assert verify.is_signed(key.public, text, good)
        s = int.from_bytes(good[32:], "little")
        for bad in (
            good[:32] + (s + verify.L).to_bytes(32, "little"),
            good[:63],
            good + b"\0",
            bytes([good[0] ^ 1]) + good[1:],
            good[:32] + bytes(32),
            b"\xff" * 64,
        ):
            assert not verify.is_signed(key.public, text, bad)
            assert not note.Verifier("a", key.public).verifies(text, bad)
        assert not verify.is_signed(key_of(8).public, text, good)
    assert not verify.is_signed(b"\xff" * 32, b"text", key.sign(b"text"))


# -- usage, and what it may need ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["nowhere"], ["{}", "no key"], ["{}", "a+b+c"], ["{}/verify.py"], ["{}", "--oops"]])
def test_wrong_usage_is_two(made: Archive, tmp_path: Path, words: list[str]):
    words = [word.format(made.folder) for word in words]
    code, _ = run(Path(words[0]), *(words[1:] or [made.vkey]))
    assert code == 2


def test_a_checkpoint_to_expect_that_is_not_there_or_is_none_is_told(made: Archive, tmp_path: Path):
    assert run(made.folder, made.vkey, "--expect-since", str(tmp_path / "none"))[0] == 2
    (tmp_path / "none").write_text("nonsense")
    assert problems(made.folder, made.vkey, "--expect-since", str(tmp_path / "none")) != []


def test_it_is_one_file_of_python_38_and_the_standard_library():
    text = SCRIPT.read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= set(sys.stdlib_module_names)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    # Newer than 3.8, and easy to write by mistake: str.removeprefix, dict | dict, zip(strict), file_digest, match …
    for newer in ("removeprefix", "removesuffix", "strict=", "file_digest", "fromisoformat", "bit_count", "pairwise"):
        assert newer not in text
    assert handout.script().decode() == text
    assert len(text.splitlines()) < 520


def test_the_page_in_the_store_tells_key_and_command(made: Archive):
    text = (made.folder / "_proof" / "README.txt").read_text("utf-8")
    assert made.vkey in text
    assert "python3 _proof/verify.py COPY VKEY --media" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_days_of_a_source_are_kept_in_any_order():
    days, first = verify.Days(), date(2024, 5, 14)
    for n in (0, 5, -3, 2, -10, 7):
        at = days.at((first + timedelta(days=n)).isoformat())
        days.entries[at] = n + 100
    found = {days.day(at): n - 100 for at, n in enumerate(days.entries) if n}
    assert found == {(first + timedelta(days=n)).isoformat(): n for n in (0, 5, -3, 2, -10, 7)}
    assert (days.day(0), len(days.entries)) == ("2024-05-04", 18)


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10", "3.12", "3.13", "3.14"])
def test_it_runs_under_other_versions_of_python(made: Archive, version: str):
    """Those that this machine has, pyenv's among them."""
    env = {**os.environ, "PYENV_VERSION": version}
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], env=env, capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    words = [python, "-I", "-S", "-W", "error", str(SCRIPT), str(made.folder), made.vkey, "--media"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "good")


def test_the_check_by_hand_works_as_the_page_shows_it(store: Archive):
    (script,) = re.findall(r"(?ms)^```sh\n(cd copy.*?)^```$", (ROOT / "docs" / "proof.md").read_text("utf-8"))
    (store.folder.parent / "vkey").write_text(store.vkey + "\n")

    def by_hand() -> list[str]:
        words = ["sh", "-c", script]
        done = subprocess.run(words, cwd=store.folder.parent, capture_output=True, text=True, timeout=60)
        return done.stdout.splitlines()

    good = by_hand()
    assert good[:4] == ["audio: good", "list: good", "certificate: good", "log: good"]
    assert good[4].startswith('Good "archiver" signature for calls.example.com/archive')
    assert good[5] == "Signature Verified Successfully"
    for path in store.files("hq/2024/05/17/*/*.wav"):
        edit(path, b"RIFF", b"RIFE")
    edit(store.list_of("hq", ONCE), '"state":"empty"', '"state":"gone"')
    edit(store.files("_proof/log/checkpoint/000000000041")[0], b"\n41\no", b"\n41\np")
    assert [line for line in by_hand() if "good" in line.lower()] == ["certificate: good"]


def test_bundles_are_named_as_the_log_names_them_beyond_a_thousand_too(made: Archive, monkeypatch: pytest.MonkeyPatch):
    size, asked = 256 * 1001 + 5, []

    def read(folder: str, name: str) -> bytes:
        asked.append(name)
        return b"\0\1x" * (5 if name.endswith(".p/5") else 256)

    monkeypatch.setattr(verify, "read", read)
    check = verify.Check(str(made.folder), [verify.key_of(made.vkey)], set(), media=False)
    check.size = size
    assert sum(1 for _ in check.entries(0)) == size
    assert asked == log.entry_names(0, size, size)
    assert asked[-1] == "log/tile/entries/x001/001.p/5"
