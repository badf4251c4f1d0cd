"""`rebuild` in large batches: what is told twice or there already, what is odd in a line, and what is broken off."""

import asyncio
import json
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from archiver.audio.spool import Spool
from archiver.catalog.catalog import Catalog, Query
from archiver.errors import StoreDown, StoreError
from archiver.model import ListingKey, Receipt
from archiver.proof import manifests
from archiver.upkeep import rebuild
from tests.factories import MANIFEST_LINE, MANIFEST_MEDIUM

MEDIUM: dict[str, Any] = MANIFEST_MEDIUM | {"state": "pending"}
LINE: dict[str, Any] = MANIFEST_LINE | {"started_at": "2024-05-18T11:30:00.000Z", "media": [MEDIUM]}
SHA = "ab" * 32


def told(recording_id: str, *, prefix: str = "", source: str = "pbx", archived: bool = False, **fields: Any) -> bytes:
    medium = dict(MEDIUM)
    if archived:
        key = f"{prefix}pbx/2024/05/18/{recording_id}/audio-{SHA[:12]}.wav"
        at = "2024-05-19T00:00:00.000Z"
        copy = {"store": "disk", "key": key, "archived_at": at, "verified_at": None, "size": 5, "sha256": SHA}
        medium |= {"state": "archived", "size": 5, "sha256": SHA, "copies": [copy | fields.pop("copy", {})]}
    medium |= fields.pop("medium", {})
    return manifests.line(LINE | {"source": source, "recording_id": recording_id, "media": [medium], **fields})


class Held:
    """A store of manifests: by name of its source and its place their bytes; an exception is raised in their place."""

    def __init__(self, *objects: bytes | Exception, source: str = "pbx") -> None:
        self.objects = {f"_manifests/{source}/2024/05/18/{n:02}.jsonl": data for n, data in enumerate(objects)}
        #: It can't be reached any more once this object is asked for.
        self.lost_at = ""
        self._lost = False

    async def check(self) -> str:
        if self._lost:
            raise StoreDown("away")
        return "here"

    def location(self, key: str) -> dict[str, str]:
        return {"kind": "held", "path": key}

    async def list(self, prefix: str, after: str = ""):
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after:
                yield Receipt(key=key, size=1)

    async def get(self, key: str, into: Any) -> None:
        self._lost = bool(self.lost_at) and (self._lost or key == self.lost_at)
        await self.check()
        if isinstance(data := self.objects[key], Exception):
            raise data
        await into.write(data)


class Made:
    def __init__(self, catalog: Catalog, spool: Spool) -> None:
        self.catalog, self.spool = catalog, spool

    async def __call__(self, store: Held, key: ListingKey = ListingKey.START) -> rebuild.Rebuilt:
        outlet: Any = SimpleNamespace(name="disk", store=store, prefix="")
        return await rebuild.rebuild(self.catalog, outlet, {"pbx": key, "xpbx": key}, self.spool)

    async def again(self, store: Held) -> rebuild.Rebuilt:
        async with self.catalog._connection() as c:
            await c.execute("TRUNCATE sources, recordings, media, copies, totals, rebuilding CASCADE")
        return await self(store)

    async def documents(self) -> dict[str, Any]:
        return {d["recording_id"]: d async for d in self.catalog.find(Query())}


@pytest.fixture
async def made(database, tmp_path):
    @asynccontextmanager
    async def opened():
        catalog = await Catalog.open(database)
        try:
            await catalog.migrate()
            yield Made(catalog, Spool(tmp_path / "spool", 1 << 20))
        finally:
            await catalog.close()

    async with opened() as one:
        yield one


@pytest.fixture
def batches(monkeypatch):
    """How many recordings each batch had."""
    whole, seen = Catalog.rebuild, []

    async def counted(self, retold, progress):
        seen.append(len(retold.told))
        return await whole(self, retold, progress)

    monkeypatch.setattr(Catalog, "rebuild", counted)
    return seen


@pytest.mark.parametrize("batch", [1, 5000])
async def test_the_last_telling_counts_within_a_batch_and_over_batches(made, monkeypatch, batch):
    monkeypatch.setattr(rebuild, "BATCH", batch)
    first = told("1", agent="Ann", parties=[{"number": "1"}]) + told("2", archived=True) + told("3", archived=True)
    other = {"archived_at": "2024-05-20T00:00:00.000Z", "verified_at": "2024-05-21T00:00:00.000Z"}
    later = told("1", agent="Bob", archived=True) + told("2", agent="Cid", archived=True, copy=other) + told("4")
    report = await made(Held(first, later))
    assert (report.lines, report.recordings, report.damaged) == (6, 4, [])
    found = await made.documents()
    assert {i: (d["agent"], d["state"]) for i, d in found.items()} == {
        "1": ("Bob", "archived"),
        "2": ("Cid", "archived"),
        "3": (None, "archived"),
        "4": (None, "pending"),
    }
    assert found["1"]["parties"] == []
    (copy,) = found["2"]["media"][0]["copies"]
    assert copy.items() >= other.items()
    assert (await made.catalog.totals())["pbx", "disk"] == (3, 15)


async def test_what_was_archived_stays_so_where_a_later_batch_tells_it_pending(made, monkeypatch):
    monkeypatch.setattr(rebuild, "BATCH", 1)
    await made(Held(told("1", archived=True), told("1", agent="Bob")))
    (found,) = (await made.documents()).values()
    assert (found["agent"], found["state"], found["media"][0]["size"]) == ("Bob", "archived", 5)


@pytest.mark.parametrize("batch", [1, 5000])
async def test_a_copy_of_a_name_that_another_recording_has_is_no_hindrance(made, monkeypatch, batch):
    monkeypatch.setattr(rebuild, "BATCH", batch)
    # The key ends as that of either source would.
    store = Held(told("1", source="pbx", prefix="x", archived=True), told("2", archived=True))
    other = Held(told("1", source="xpbx", archived=True, prefix="x") + told("3", source="xpbx"), source="xpbx")
    store.objects |= other.objects
    assert (await made(store)).damaged == []
    async with made.catalog._connection() as c:
        assert await c.fetchval("SELECT count(*) FROM recordings") == 4
        rows = await c.fetch("SELECT recording_id, key FROM copies ORDER BY key")
    assert [tuple(row) for row in rows] == [
        ("2", f"pbx/2024/05/18/2/audio-{SHA[:12]}.wav"),
        ("1", f"xpbx/2024/05/18/1/audio-{SHA[:12]}.wav"),
    ]


async def test_a_batch_is_bounded_by_the_bytes_of_its_lines(made, monkeypatch, batches):
    monkeypatch.setattr(rebuild, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(manifests, "_PART_BYTES", 10_000)
    lines = [told(str(n), raw={"pad": "x" * 3000}) for n in range(50)]
    report = await made(Held(b"".join(lines)))
    assert report.recordings == sum(batches) == 50
    assert max(batches) <= 10
    assert len(await made.documents()) == 50


async def test_small_manifests_share_a_batch(made, batches):
    assert (await made(Held(*[told(str(n)) for n in range(20)]))).recordings == 20
    assert batches == [20]


async def test_an_error_while_reading_ends_the_rebuild_and_the_next_goes_on(made, monkeypatch, batches):
    monkeypatch.setattr(rebuild, "BATCH", 1)
    check, broken = manifests._recording, True

    def breaking(folder: str, row: bytes) -> manifests.Recording:
        if broken and b'"recording_id":"3"' in row:
            raise ZeroDivisionError
        return check(folder, row)

    monkeypatch.setattr(manifests, "_recording", breaking)
    store = Held(*[told(str(n)) for n in range(5)])
    with pytest.raises(ZeroDivisionError):
        await made(store)
    assert len(asyncio.all_tasks()) == 1, "nothing works on"
    broken = False
    del batches[:]
    report = await made(store)
    assert report.resumed
    assert report.recordings == report.lines == 5
    assert sum(batches) < 5, "not from the start"
    assert sorted(await made.documents()) == list("01234")


async def test_a_store_that_fails_meanwhile_leaves_what_was_read_and_is_asked_again(made, monkeypatch):
    monkeypatch.setattr(rebuild, "BATCH", 1)
    store = Held(*[told(str(n)) for n in range(20)])
    key = list(store.objects)[17]
    store.lost_at = key
    with pytest.raises(StoreError):
        await made(store)
    store.lost_at = ""
    report = await made(store)
    assert report.resumed
    assert report.recordings == report.lines == 20
    assert len(await made.documents()) == 20


async def test_an_error_of_the_catalog_ends_the_rebuild(made, monkeypatch):
    monkeypatch.setattr(rebuild, "BATCH", 1)

    async def failing(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Catalog, "rebuild", failing)
    with pytest.raises(ZeroDivisionError):
        await made(Held(*[told(str(n)) for n in range(5)]))
    assert len(asyncio.all_tasks()) == 1


async def test_a_cancelled_rebuild_leaves_nothing_behind_and_goes_on_where_it_stopped(made, monkeypatch):
    monkeypatch.setattr(rebuild, "BATCH", 1)
    whole, done, begun = Catalog.rebuild, 0, asyncio.Event()

    async def hanging(self, retold, progress):
        nonlocal done
        if done == 2:
            begun.set()
            await asyncio.sleep(60)
        done += 1
        return await whole(self, retold, progress)

    monkeypatch.setattr(Catalog, "rebuild", hanging)
    store = Held(*[told(str(n)) for n in range(5)])
    task = asyncio.create_task(made(store))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1
    monkeypatch.setattr(Catalog, "rebuild", whole)
    assert sorted(await made.documents()) == ["0", "1"]
    report = await made(store)
    assert report.resumed
    assert report.recordings == report.lines == 5


# -- odd lines ---------------------------------------------------------------------------------------------------------


def with_text(name: str, text: str) -> bytes:
    """The line with this JSON text as a field's value."""
    return told(**{"recording_id": "1", name: "@"}).replace(b'"@"', text.encode("utf-8", "surrogatepass"))


DEEP = "[" * 300 + "]" * 300


@pytest.mark.parametrize(
    ("line", "field", "kept"),
    [
        (with_text("raw", r'{"a":"x\u0000y","b\ud800":1}'), "raw", {"a": r"x\u0000y", r"b\ud800": 1}),
        (with_text("raw", '{"a":"\ud800"}'), "raw", {"a": r"\ud800"}),
        (with_text("raw", r'{"a":"\u00e9\ud83d\ude00\\u0041\n\t"}'), "raw", {"a": "é😀\\u0041\n\t"}),
        (with_text("raw", '{"a":"é😀"}'), "raw", {"a": "é😀"}),
        (with_text("raw", '{"a":NaN,"b":-Infinity,"c":1e400}'), "raw", {"a": "nan", "b": "-inf", "c": "inf"}),
        (with_text("raw", f'{{"a":{2**70},"b":{10**999},"c":-1}}'), "raw", {"a": 2**70, "b": 10**999, "c": -1}),
        (with_text("raw", '{"a":1,"a":2}'), "raw", {"a": 2}),
        (with_text("raw", '{"a":' + "[" * 80 + "]" * 80 + "}"), "raw", None),
        (with_text("raw", '{"a":[' + "{}," * 300 + "{}]}"), "raw", {"a": [{}] * 301}),
        (with_text("attributes", '{"a":1e400}'), "attributes", {"a": "inf"}),
        (with_text("attributes", f'{{"a":{10**999}}}'), "attributes", {"a": 10**999}),
        (with_text("agent", '"first","agent":"second"'), "agent", "second"),
        (with_text("agent", '"x","unheard":{"a":["\\ud800"]}'), "agent", "x"),
        (with_text("agent", r'"x\\y\"z\u00e9"'), "agent", 'x\\y"zé'),
        (with_text("agent", '"a\\tb\\nc\\\\N"'), "agent", "a\tb\nc\\N"),
        (b"\xef\xbb\xbf" + told("1", agent="x"), "agent", "x"),
        (b" " + told("1", agent="x").replace(b",", b" , "), "agent", "x"),
        (told("1", started_at="2024-05-18 13:30:00.5+02:00"), "started_at", "2024-05-18T11:30:00.500Z"),
        (told("1", started_at="20240518T113000Z"), "started_at", "2024-05-18T11:30:00.000Z"),
        (told("1", started_at="2024-05-18T11:30:00.123456Z"), "started_at", "2024-05-18T11:30:00.123456Z"),
        (told("1", duration=1), "duration", 1.0),
        (told("1", duration=-0.25), "duration", -0.25),
        (told("1", duration=1e13), "duration", 1e13),
        (told("1", flags=["null"]), "flags", ["null"]),
    ],
)
async def test_an_odd_line_is_kept(made, line, field, kept):
    assert (await made(Held(told("0") + line))).damaged == []
    found = await made.documents()
    assert sorted(found) == ["0", "1"]
    assert kept is None or found["1"][field] == kept
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (with_text("agent", r'"\u0000"'), "agent holds what no database can"),
        (with_text("agent", r'"\ud800"'), "agent holds what no database can"),
        (with_text("agent", '"\ud800"'), "agent holds what no database can"),
        (with_text("source", r'"p\u0000bx"'), "a name holds what no database can"),
        (told("1").replace(b'"disk"', rb'"\u0000"'), "media.0: a name holds what no database can"),
        (with_text("raw", '"x"'), "raw: Expected `object`, got `str`"),
        (with_text("raw", '{"a":' + "9" * 5000 + "}"), None),
        (with_text("raw", '{"a":' + DEEP + "}"), "it nests too deeply"),
        (with_text("raw", '{"a":' + DEEP * 500 + "}"), None),
        (with_text("agent", '"x","unheard":' + DEEP), "it nests too deeply"),
        (with_text("parties", "{}"), "parties: Expected `array`, got `object`"),
        (with_text("parties", "[1]"), "parties.0: Expected `object`, got `int`"),
        (with_text("duration", "NaN"), "duration: Expected `float` >= -10000000000000.0"),
        (with_text("duration", "1e400"), "duration: Expected `float` <= 10000000000000.0"),
        (with_text("direction", '"sideways"'), "direction: Invalid enum value"),
        (with_text("flags", r'["a\n"]'), "flags.0: Expected `str` matching regex"),
        (with_text("source", r'""'), "a name is empty or holds a comma"),
        (with_text("kind", '"a,b"'), "a name is empty or holds a comma"),
        (with_text("recording_id", '""'), "recording_id: Expected `str` of length >= 1"),
        (told("1" * 801), "recording_id is longer than 800 bytes"),
        (told("é" * 401), "recording_id is longer than 800 bytes"),
        (with_text("ended_at", '"2024-05-18T12:00:00"'), "ended_at is no moment"),
        (with_text("ended_at", '"0001-01-01T00:00:00+14:00"'), "ended_at is no moment"),
        (with_text("ended_at", '"2024-05-18T12:00:00,000Zx"'), "ended_at is no moment"),
        (told("1").replace(b'"size":null', b'"size":5.0'), "media.0.size: Expected `int | null`, got `float`"),
        (told("1").replace(b'"size":null', b'"size":true'), "media.0.size: Expected `int | null`, got `bool`"),
        (told("1", archived=True, copy={"sha256": "\n"}), "media.0.copies.0.sha256: Expected `str` matching regex"),
        (told("1", archived=True, copy={"verified_at": ""}), "media.0.copies.0: verified_at is no moment"),
        (told("1", archived=True, copy={"key": "x"}), "a copy's key is not the one that it would get"),
        (told("1")[:-40] + b"\n", "it is no JSON"),
        (told("1").replace(b"inbound", b"inb\xffund"), "it is no JSON"),
        (told("1", agent="x").replace(b'"x"', b'"x","unheard":"\xff"'), "it is no JSON"),
        (b"[]\n", "it is no object"),
    ],
)  # fmt: skip
async def test_a_line_that_can_not_be_is_named_and_costs_itself_only(made, line, why):
    (damage,) = (await made(Held(told("0") + line + told("2")))).damaged
    _, _, problem = damage.partition(".jsonl: ")
    assert problem.startswith("line 2: ")
    assert problem.isprintable()
    assert why is None or problem == f"line 2: {why}"
    assert sorted(await made.documents()) == ["0", "2"]


async def test_lines_of_the_first_version_are_kept(made):
    document = json.loads(told("1", archived=True))
    del document["media"][0]["stores"]
    assert not {"flags", "missing_since"} & set(document)
    assert not {"coding", "flags", "note"} & set(document["media"][0])
    assert (await made(Held(manifests.line(document)))).damaged == []
    (found,) = (await made.documents()).values()
    assert found["media"][0].items() >= {"stores": ["disk"], "coding": None, "flags": [], "note": None}.items()
    assert found["flags"] == []


async def test_what_is_odd_about_a_medium_comes_back_also_where_a_later_line_tells_it(made, monkeypatch):
    monkeypatch.setattr(rebuild, "BATCH", 1)
    odd = {"coding": "ulaw", "flags": ["short", "not_heard_of_yet"], "note": "it is\ttold\nso"}
    await made(Held(told("1", archived=True) + told("2", archived=True, medium=odd), told("1", medium=odd)))
    found = {i: d["media"][0] for i, d in (await made.documents()).items()}
    assert found["2"].items() >= odd.items()
    # What is archived stays as it was.
    assert found["1"].items() >= {"coding": None, "flags": [], "note": None, "state": "archived"}.items()
    later = odd | {"flags": [], "note": None}
    await made.again(Held(told("2", archived=True, medium=odd), told("2", archived=True, medium=later)))
    assert (await made.documents())["2"]["media"][0].items() >= later.items()


@pytest.mark.parametrize(
    ("field", "text", "why"),
    [
        ("note", r'"\u0000"', "note holds what no database can"),
        ("coding", r'"\ud800"', "coding holds what no database can"),
        ("flags", r'["a\n"]', "media.0.flags.0: Expected `str` matching regex"),
        ("flags", r'["x,y"]', "media.0.flags.0: Expected `str` matching regex"),
        ("flags", "null", "media.0.flags: Expected `array`, got `null`"),
    ],
)
async def test_what_no_medium_can_have_costs_its_line(made, field, text, why):
    line = told("1", medium={field: "@"}).replace(b'"@"', text.encode())
    (damage,) = (await made(Held(line))).damaged
    assert damage.partition(".jsonl: line 1: ")[2] == why


async def test_a_number_is_kept_as_it_was_told(made):
    await made(Held(with_text("raw", '{"a":1.10,"b":12345678901234567890.123456789}')))
    async with made.catalog._connection() as c:
        text = await c.fetchval("SELECT raw::text FROM recordings")
    assert text == '{"a":1.10,"b":12345678901234567890.123456789}'


async def test_a_source_begins_with_its_first_call_and_lists_by_what_its_recorder_goes_by(made):
    lines = told("1", started_at="1900-01-01T00:00:00Z") + told("2", ended_at="2024-05-18T12:00:00Z")
    await made(Held(lines + told("3", started_at="2024-05-18T11:45:00Z")), ListingKey.END)
    async with made.catalog._connection() as c:
        keys = dict(await c.fetch("SELECT recording_id, key_at FROM recordings"))
    assert keys["2"].isoformat() == "2024-05-18T12:00:00+00:00"
    (source,) = await made.catalog.sources()
    assert source["start_at"].isoformat() == "2024-05-18T11:45:00+00:00"
