"""Certificates: a stranger's script says good of what the daemon put, and nothing is signed that contradicts it."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from archiver.errors import ObjectFailed, StoreDown
from archiver.proof import tree
from archiver.proof.certificates import about
from archiver.proof.note import ProofError, Verifier, open_checkpoint, read_tlog_proof
from archiver.service import proof as of_service
from archiver.upkeep.certify import Report, certify
from archiver.upkeep.proofs import Proofs
from archiver.upkeep.public_log import BehindError, drill, identity
from archiver.upkeep.rebuild import rebuild
from tests.engine import Rig, a_recorder, archiving

DAY = timedelta(days=1)


async def issue(rig: Rig, **how) -> Report:
    archive = rig.archive
    return await certify(archive.config, archive.catalog, archive.spool, archive.outlets, archive.feeds, **how)


async def stranger(rig: Rig, folder: Path, *more: str) -> tuple[int, str]:
    """What verify.py says of a copy, as the store hands it out."""
    vkey = identity(rig.archive.config).verifier.vkey
    script = folder / "_proof" / "verify.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        str(script),
        str(folder),
        vkey,
        "--media",
        *more,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def store_of(rig: Rig, name: str = "disk") -> Path:
    options = rig.archive.config.stores[name].options
    return Path(options.path) / options.prefix


async def later(rig: Rig, days: int) -> None:
    """So many days go by, each polled."""
    for _ in range(days * 2):
        rig.advance(DAY / 2)
        await rig.sync()


TWO = {
    "disk": {"kind": "file", "path": "DISK"},
    "spare": {"kind": "file", "path": "SPARE", "prefix": "archive/"},
}


def two_stores(folder: Path) -> dict[str, dict[str, str]]:
    return {name: table | {"path": str(folder / table["path"])} for name, table in TWO.items()}


async def test_a_stranger_finds_each_day_complete_in_each_store(tmp_path, database, clock):
    sim = a_recorder(calls=5)
    async with archiving(tmp_path, database, sim, clock=clock, stores=two_stores(tmp_path), start="2024-05-16") as rig:
        await rig.sync()
        await later(rig, 3)
        report = await issue(rig)
        assert (report.issued, report.incomplete) == ({"pbx": 5}, {})
        assert (report.size, report.stores, report.away) == (5, ["disk", "spare"], {})
        for store in ("disk", "spare"):
            code, said = await stranger(rig, store_of(rig, store))
            assert code == 0, said
            assert "2024-05-16 to 2024-05-20, 5 days, 5 complete" in said
        rows = await of_service.status(rig.catalog, rig.archive.feeds)
        assert [(row["day"], row["counts"]["listed"], row["complete"], row["checkpoint"]) for row in rows] == [
            ("2024-05-16", 0, True, 5),
            ("2024-05-17", 0, True, 5),
            ("2024-05-18", 5, True, 5),
            ("2024-05-19", 0, True, 5),
            ("2024-05-20", 0, True, 5),
        ]
        # Nothing has changed: nothing is issued, and nothing is put.
        before = await rig.objects("disk")
        assert (await issue(rig)).issued == {}
        assert await rig.objects("disk") == before
        held = b"".join(path.read_bytes() for path in (store_of(rig) / "_proof").rglob("*") if path.is_file())
        for document in (await rig.documents()).values():
            for told in (document["recording_id"], document["caller"], document["callee"], document["salt"]):
                assert not told or str(told).encode() not in held


async def test_what_is_not_archived_or_listed_is_not_called_complete_and_a_later_revision_is(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-17T06:00:00Z", lookback="1h") as rig:
        await rig.poll()
        rig.advance(DAY)
        assert (await issue(rig)).incomplete == {"pbx": 1}
        rows = await of_service.status(rig.catalog, rig.archive.feeds)
        assert [(row["day"], row["complete"]) for row in rows] == [("2024-05-17", True), ("2024-05-18", False)]
        code, said = await stranger(rig, store_of(rig))
        assert code == 1
        assert "pbx 2024-05-18: not complete, as the certificate says itself: gaps 1 (not listed), pending 3" in said
        await rig.sync()
        await later(rig, 1)
        report = await issue(rig)
        assert report.incomplete == {}
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said
        assert "complete" in said


async def test_a_call_that_is_listed_late_gets_its_day_another_certificate(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-18", lookback="1h") as rig:
        await rig.sync()
        await later(rig, 2)
        first = await issue(rig)
        assert first.issued == {"pbx": 2}
        sim.add_call(datetime(2024, 5, 18, 10, 0, 30, tzinfo=UTC), timedelta(seconds=2))
        span = datetime(2024, 5, 18, tzinfo=UTC), datetime(2024, 5, 19, tzinfo=UTC)
        async with rig.catalog._connection() as c:
            await c.execute("UPDATE sources SET covered = covered - tstzmultirange(tstzrange($1, $2))", *span)
        await rig.sync()
        second = await issue(rig, thorough=False)
        assert second.issued == {"pbx": 1}
        (row,) = [row for row in await of_service.status(rig.catalog, rig.archive.feeds) if row["day"] == "2024-05-18"]
        assert (row["counts"]["archived"], row["certificate"]["revision"], row["complete"]) == (4, 2, True)
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said


async def test_a_day_that_is_over_can_be_certified_before_its_lookback_has_passed(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-17", lookback="24h") as rig:
        await rig.sync()
        rig.advance(timedelta(hours=13))
        await rig.sync()
        day = datetime(2024, 5, 18, tzinfo=UTC).date()
        assert (await issue(rig)).issued == {"pbx": 1}
        assert (await issue(rig, days=[day + DAY])).issued == {"pbx": 1}
        assert (await issue(rig, days=[day])).issued == {}
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said
        assert "2024-05-17 to 2024-05-18, 2 days, 2 complete" in said


async def test_a_store_that_was_away_is_brought_up(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, stores=two_stores(tmp_path), start="2024-05-18") as rig:
        await rig.sync()
        await later(rig, 2)
        await issue(rig)
        spare = store_of(rig, "spare")
        (spare / "_proof").rename(tmp_path / "kept")
        (spare / "_proof").write_text("no folder")
        await later(rig, 2)
        report = await issue(rig)
        assert report.issued == {"pbx": 2}
        assert report.stores == ["disk"]
        assert set(report.away) == {"spare"}
        (spare / "_proof").unlink()
        (tmp_path / "kept").rename(spare / "_proof")
        report = await issue(rig)
        assert (report.stores, report.issued) == (["disk", "spare"], {})
        for store in ("disk", "spare"):
            code, said = await stranger(rig, store_of(rig, store))
            assert code == 0, said
            assert "4 days, 4 complete" in said


async def test_where_the_only_store_was_lost_the_log_goes_on_and_what_is_lost_is_named(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-18") as rig:
        await rig.sync()
        await later(rig, 2)
        await issue(rig)
        (store_of(rig) / "_proof").rename(tmp_path / "lost")
        await later(rig, 1)
        assert (await issue(rig)).issued == {"pbx": 1}
        code, said = await stranger(rig, store_of(rig))
        assert code == 1
        assert "pbx 2024-05-18" in said
        assert "problems: 1" in said


async def test_a_restored_database_signs_nothing_and_goes_on_after_a_rebuild(tmp_path, database, clock, postgres):
    sim = a_recorder(calls=3)
    how = {"clock": clock, "stores": two_stores(tmp_path), "start": "2024-05-18"}
    async with archiving(tmp_path, database, sim, **how) as rig:
        await rig.sync()
        await later(rig, 2)
        await issue(rig)
        async with rig.catalog._connection() as c:
            saved = [await c.fetch(f"SELECT * FROM {table}") for table in ("certificates", "checkpoint")]
        await later(rig, 1)
        assert (await issue(rig)).issued == {"pbx": 1}
        handles = {each: document["handle"] for each, document in (await rig.documents()).items()}
        vkey = identity(rig.archive.config).verifier.vkey
        # As a backup from before has it.
        async with rig.catalog._connection() as c:
            await c.execute("DELETE FROM certificates WHERE position >= $1", len(saved[0]))
            await c.execute("UPDATE checkpoint SET size = $1, note = $2", saved[1][0]["size"], saved[1][0]["note"])
        await later(rig, 1)
        before = await rig.objects("disk")
        with pytest.raises(BehindError, match="archiver rebuild --store"):
            await issue(rig)
        assert not {key for key in set(await rig.objects("disk")) - set(before) if "_proof" in key}
        (problem,) = [p for p in await of_service.problems(rig.archive.config, rig.catalog) if p["of"] == ""]
        assert problem["condition"] == "ProofFailed"
    new = postgres.create()
    async with archiving(tmp_path, new, sim, **how) as rig:
        # An empty database knows nothing of the log either.
        with pytest.raises(BehindError, match="archiver rebuild --store"):
            await issue(rig)
        outlet, keys = rig.archive.outlets["disk"], {"pbx": rig.feed.source.listing_key}
        assert (await rebuild(rig.catalog, outlet, keys, rig.archive.spool)).recordings == 3
        # What was certified is as it was: only the day that came meanwhile gets a certificate.
        assert (await issue(rig)).issued == {"pbx": 1}
        assert {each: document["handle"] for each, document in (await rig.documents()).items()} == handles
        assert identity(rig.archive.config).verifier.vkey == vkey
        for store in ("disk", "spare"):
            code, said = await stranger(rig, store_of(rig, store))
            assert code == 0, said
            assert "4 days, 4 complete" in said
            assert "moved" not in said
    postgres.drop(new)


async def test_a_day_is_certified_again_whatever_changes_of_it(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-17", lookback="1h") as rig:
        await rig.sync()
        await later(rig, 2)
        await issue(rig)

        async def day(name: str) -> dict:
            (row,) = [r for r in await of_service.status(rig.catalog, rig.archive.feeds) if r["day"] == name]
            return row

        async def sql(statement: str) -> None:
            async with rig.catalog._connection() as c:
                await c.execute(statement)

        assert (await day("2024-05-18"))["complete"] is True
        # An hour that was listed can't be listed any more.
        await sql(
            "UPDATE sources SET covered = covered - tstzmultirange(tstzrange('2024-05-18 03:00Z', '2024-05-18 04:00Z'))"
        )
        assert (await issue(rig)).incomplete == {"pbx": 1}
        assert "03:00:00 to 04:00:00" in (await day("2024-05-18"))["why"][0]
        await sql(
            "UPDATE sources SET covered = covered + tstzmultirange(tstzrange('2024-05-18 03:00Z', '2024-05-18 04:00Z'))"
        )
        assert (await issue(rig)).incomplete == {}
        # A row that nobody can read.
        await sql(
            "INSERT INTO rejected (source, digest, raw, reason, span, first_at, last_at) VALUES ('pbx', 'x', 'raw',"
            " 'no id', tstzrange('2024-05-17 03:00Z', '2024-05-17 04:00Z'), now(), now())"
        )
        assert (await issue(rig)).issued == {"pbx": 1}
        assert (await day("2024-05-17"))["why"] == ["1 row that nobody could read"]
        await sql("DELETE FROM rejected")
        await issue(rig)
        # A call that is listed on another day now; no night has to pass.
        await sql(
            "UPDATE recordings SET key_at = key_at - interval '1 day', undescribed = true, revision = revision + 1"
            " WHERE recording_id = (SELECT min(recording_id) FROM recordings)"
        )
        await rig.sync()
        assert (await issue(rig, thorough=False)).issued == {"pbx": 2}
        assert (await day("2024-05-18"))["counts"]["moved"] == 1
        assert (await day("2024-05-17"))["counts"]["listed"] == 1
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said
        assert (await issue(rig)).issued == {}


async def test_what_changes_while_a_day_is_certified_is_certified_the_next_time(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-18", lookback="1h") as rig:
        await rig.sync()
        await later(rig, 1)
        await issue(rig)
        recordings = sorted(await rig.documents())

        async def changed(recording_id: str) -> None:
            async with rig.catalog._connection() as c:
                await c.execute("UPDATE recordings SET agent = 'Joe' WHERE recording_id = $1", recording_id)
            await rig.catalog.described({("pbx", recording_id): 1})

        await changed(recordings[0])
        take = rig.catalog.take_entries

        async def taken(first, entries):
            await changed(recordings[1])
            await take(first, entries)

        rig.catalog.take_entries = taken
        assert (await issue(rig, thorough=False)).issued == {"pbx": 1}
        rig.catalog.take_entries = take
        assert (await issue(rig, thorough=False)).issued == {"pbx": 1}
        assert (await issue(rig, thorough=False)).issued == {}


async def test_what_is_wrong_with_one_source_holds_up_no_other(tmp_path, database, clock):
    sims = {"bad": a_recorder(calls=2), "good": a_recorder(calls=3, seed=9)}
    async with archiving(tmp_path, database, sims, clock=clock, start="2024-05-18") as rig:
        await rig.sync()
        await later(rig, 2)
        store, put = rig.archive.outlets["disk"].store, rig.archive.outlets["disk"].store.put

        async def refusing(key, body):
            if "_proof/days/bad" in key:
                raise ObjectFailed(f"{key}: the name is too long")
            return await put(key, body)

        store.put = refusing
        report = await issue(rig)
        assert (report.issued, set(report.failed)) == ({"good": 2}, {"bad"})
        told = {p["condition"]: p["what"] for p in await of_service.problems(rig.archive.config, rig.catalog)}
        assert "source bad: " in told["ProofFailed"]
        store.put = put
        report = await issue(rig)
        assert (report.issued, report.failed) == ({"bad": 2}, {})
        assert await of_service.problems(rig.archive.config, rig.catalog) == []
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said


async def test_a_store_that_fails_while_it_is_brought_up_holds_up_no_other(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, stores=two_stores(tmp_path), start="2024-05-18") as rig:
        await rig.sync()
        await later(rig, 2)
        store, put = rig.archive.outlets["disk"].store, rig.archive.outlets["disk"].store.put

        async def failing(key, body):
            if key.endswith(".certificate.json"):
                raise StoreDown("the disk made no progress")
            return await put(key, body)

        store.put = failing
        report = await issue(rig)
        assert (report.issued, report.stores, set(report.away)) == ({"pbx": 2}, ["spare"], {"disk"})
        code, said = await stranger(rig, store_of(rig, "spare"))
        assert code == 0, said
        store.put = put
        assert (await issue(rig)).stores == ["disk", "spare"]
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said


async def test_a_source_that_never_got_a_certificate_is_told_of_and_one_that_was_removed_is_shown(
    tmp_path, database, clock
):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-10") as rig:
        await rig.sync()
        await later(rig, 3)
        assert await of_service.problems(rig.archive.config, rig.catalog) == []
        await rig.catalog.certified(rig.catalog.clock.now(), None)
        (problem,) = await of_service.problems(rig.archive.config, rig.catalog)
        assert (problem["condition"], problem["what"]) == ("DaysUncertified", "no day has a certificate")
        await issue(rig)
        assert await of_service.problems(rig.archive.config, rig.catalog) == []
        assert len(await of_service.status(rig.catalog, {})) == len(
            await of_service.status(rig.catalog, rig.archive.feeds)
        )


async def test_two_histories_are_told_and_nothing_is_signed(tmp_path, database, clock, postgres):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, stores=two_stores(tmp_path), start="2024-05-18") as rig:
        await rig.sync()
        await later(rig, 2)
        await issue(rig)
        # Another archive with the same key wrote into the second store.
        proof = store_of(rig, "spare") / "_proof"
        (proof).rename(tmp_path / "ours")
        other = postgres.create()
        folder = tmp_path / "other"
        folder.mkdir()
        (folder / "var").symlink_to(rig.archive.config.data_dir)
        only = {"spare": two_stores(tmp_path)["spare"]}
        async with archiving(
            folder, other, a_recorder(calls=9, seed=9), clock=clock, stores=only, start="2024-05-18"
        ) as second:
            await second.sync()
            if second.archive.config.data_dir != rig.archive.config.data_dir:
                for name in ("origin", "key"):
                    there = second.archive.config.data_dir / "proof"
                    there.mkdir(parents=True, exist_ok=True)
                    (there / name).write_bytes((rig.archive.config.data_dir / "proof" / name).read_bytes())
            await issue(second)
        postgres.drop(other)
        before = await rig.objects("disk")
        await later(rig, 1)
        with pytest.raises(ProofError, match="two histories"):
            await issue(rig)
        assert not {key for key in set(await rig.objects("disk")) - set(before) if "_proof" in key}


async def test_a_log_of_another_key_is_not_gone_on_with(tmp_path, database, clock):
    sim = a_recorder(calls=1)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-18") as rig:
        await rig.sync()
        await later(rig, 2)
        await issue(rig)
        (rig.archive.config.data_dir / "proof" / "key").unlink()
        with pytest.raises(ProofError, match="is not ours"):
            await issue(rig)


async def test_a_crash_at_any_write_leaves_one_history(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, stores=two_stores(tmp_path), start="2024-05-17") as rig:
        await rig.sync()
        await later(rig, 2)
        store = rig.archive.outlets["spare"].store
        whole = store.put
        for survives in range(30):
            left = survives

            async def put(key, body):
                nonlocal left
                if "_proof/" in key:
                    left -= 1
                    if left < 0:
                        raise asyncio.CancelledError
                return await whole(key, body)

            store.put = put
            try:
                await asyncio.create_task(issue(rig))
            except asyncio.CancelledError:
                continue
            finally:
                store.put = whole
            break
        assert survives > 5
        await later(rig, 1)
        await issue(rig)
        for name in ("disk", "spare"):
            code, said = await stranger(rig, store_of(rig, name))
            assert code == 0, said
        days = [json.loads(entry)["day"] for entry in await rig.catalog.entries(0, 100)]
        assert len(set(days)) == len(days)


async def test_one_recording_is_proved_by_files_that_need_no_archive(tmp_path, database, clock):
    sim = a_recorder(calls=7)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-18") as rig:
        archive = rig.archive
        await rig.sync()
        proofs = Proofs(rig.catalog, archive.spool, identity(archive.config), archive.outlets)
        documents = await rig.documents()
        assert not [files for each in documents if (files := await proofs.of("pbx", each))]
        await later(rig, 2)
        await issue(rig)
        for recording_id, document in documents.items():
            files = dict(await proofs.of("pbx", recording_id))
            verifier = Verifier.parse(files["key.vkey"].decode())
            checkpoint = open_checkpoint(files["checkpoint"], [verifier])
            (in_log,) = [held for name, held in files.items() if name.endswith(".tlog-proof")]
            (certificate,) = [held[:-1] for name, held in files.items() if name.endswith(".certificate.json")]
            index, path, note = read_tlog_proof(in_log)
            assert note == files["checkpoint"]
            assert tree.included(tree.leaf_hash(certificate), index, checkpoint.size, path) == checkpoint.root
            line = files[f"{document['handle']}.leaf.json"][:-1]
            told = json.loads(files[f"{document['handle']}.leaf-proof.json"])
            path = [base64.b64decode(part) for part in told["path"]]
            root = bytes.fromhex(json.loads(certificate)["leaves"]["root"])
            assert tree.included(tree.leaf_hash(line), told["index"], told["size"], path) == root
            opened = files[f"{document['handle']}.disclosure.txt"].decode().strip()
            assert about(opened) == json.loads(line)["about"]
            assert document["media"][0]["sha256"] == json.loads(line)["media"][0]["sha256"]


async def test_a_drill_tells_where_a_store_lacks_the_log(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, stores=two_stores(tmp_path), start="2024-05-18") as rig:
        archive = rig.archive

        async def drilled(store: str) -> list[str]:
            return await drill(archive.config, rig.catalog, archive.spool, archive.outlets[store])

        await rig.sync()
        assert await drilled("disk") == []
        await later(rig, 2)
        await issue(rig)
        assert [await drilled("disk"), await drilled("spare")] == [[], []]
        (bundle,) = (store_of(rig, "spare") / "_proof/log/tile/entries").rglob("*.p/*")
        held = bundle.read_bytes()
        bundle.write_bytes(held.replace(b'"listed":3', b'"listed":2'))
        assert "is not the one that this catalog knows" in (await drilled("spare"))[0]
        bundle.unlink()
        assert "no object" in (await drilled("spare"))[0] or "_proof/" in (await drilled("spare"))[0]


async def test_two_that_certify_at_once_issue_each_day_once(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-10") as rig:
        await rig.sync()
        await later(rig, 2)
        reports = await asyncio.gather(*(issue(rig) for _ in range(3)))
        assert sorted(report.busy for report in reports) == [False, True, True]
        days = [json.loads(entry)["day"] for entry in await rig.catalog.entries(0, 100)]
        assert len(set(days)) == len(days)


async def test_what_an_earlier_version_took_in_gets_a_handle(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-18") as rig:
        await rig.sync()
        async with rig.catalog._connection() as c:
            await c.execute("UPDATE recordings SET handle = NULL, salt = NULL")
        await later(rig, 2)
        await issue(rig)
        await rig.sync()
        told = await rig.manifest_lines("disk")
        for recording_id, document in (await rig.documents()).items():
            assert document["handle"]
            assert told[recording_id][-1]["handle"] == document["handle"]
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said


async def test_a_source_by_call_ids_claims_no_completeness(tmp_path, database, clock):
    sim = a_recorder(calls=2)
    async with archiving(tmp_path, database, sim, clock=clock, start="2024-05-18") as rig:
        await rig.sync()
        await later(rig, 2)
        rig.feed.source.lists_by_time = False
        report = await issue(rig)
        assert report.issued
        assert report.incomplete == {}
        rows = await of_service.status(rig.catalog, rig.archive.feeds)
        assert {row["complete"] for row in rows} == {None}
        code, said = await stranger(rig, store_of(rig))
        assert code == 0, said
