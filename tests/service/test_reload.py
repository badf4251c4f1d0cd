"""A config that is edited under a running daemon: taken as a whole or not at all, and no transfer is dropped."""

import asyncio
import hashlib
import json
import os
import signal
from collections import Counter
from datetime import timedelta

import asyncpg
import pytest

from archiver.service import live, reload
from archiver.service.reload import Watch
from archiver.settings import config
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.xivo import XivoSimulator
from tests import commands
from tests.commands import HOUR, Place, until
from tests.engine import archiving, audio_requests, eventually


@pytest.fixture
async def place(tmp_path, database):
    async with commands.place(tmp_path, database) as made:
        yield made


class Gated(ChronicallSimulator):
    """Delivers one recording for each permit, and knows several tokens."""

    def __init__(self, **how):
        super().__init__(**how)
        self.permits = asyncio.Semaphore(0)
        self.tokens = {self.token}

    def _is_authorised(self, request):
        return request.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens

    async def _audio(self, request):
        response = await super()._audio(request)
        if response.status == 200:
            await self.permits.acquire()
        return response


class Edited:
    """A running daemon whose config is edited."""

    def __init__(self, place: Place, running: commands.Running) -> None:
        self.place, self.running = place, running

    @property
    def told(self) -> dict:
        """What the daemon tells of itself."""
        return live.daemon(self.place.folder / "var") or {}

    def write(self, text: str | bytes | None = None) -> None:
        """As an editor does that writes beside and renames."""
        new = self.place.path.with_suffix(".new")
        data = commands.toml(self.place.config) if text is None else text
        new.write_bytes(data.encode() if isinstance(data, str) else data)
        new.chmod(0o600)
        new.replace(self.place.path)

    @property
    def digest(self) -> str | None:
        return hashlib.sha256(self.place.path.read_bytes()).hexdigest() if self.place.path.exists() else None

    async def good(self, number: int | None = signal.SIGHUP) -> None:
        """The config as it is now is taken: on a signal, or because the file changed."""
        self.write()
        await self.is_taken(number)

    async def is_taken(self, number: int | None = None) -> None:
        if number is not None:
            self.running.signal(number)

        def so() -> bool:
            return self.told["config"]["sha256"] == self.digest and self.told["refused"] is None

        await until(lambda: self.running.over or so())
        assert not self.running.over, self.running.err

    async def bad(self, text: str | bytes | None, number: int | None = signal.SIGHUP) -> list[str]:
        """This text is refused; the lines that say why, which are in the log too."""
        before = self.told["refused"]
        if text is not None:
            self.write(text)
        if number is not None:
            self.running.signal(number)

        def so() -> bool:
            now = self.told["refused"]
            return now is not None and now["sha256"] == self.digest and (not before or now["at"] != before["at"])

        await until(lambda: self.running.over or so())
        assert not self.running.over, self.running.err
        lines: list[str] = self.told["refused"]["problems"]
        for line in lines:
            await self.running.said(f'"error": {json.dumps(line)}')
        return lines


@pytest.mark.timeout(400)
async def test_twenty_edits_of_a_live_config_lose_nothing_and_drop_no_transfer(place):
    secret = place.folder / "hq.token"
    secret.write_text(ChronicallSimulator.token)
    hq = await place.add(
        "hq", Gated(), concurrency=3, poll="1s", timeout="10m", token={"file": "hq.token"}, stores=["disk"]
    )
    pbx = await place.add("pbx", XivoSimulator(), timezone="Europe/Paris", poll="1s", enabled=False, stores=["disk"])
    now = hq.clock.now()
    hq.add_calls(now - 2 * HOUR, now - HOUR, 40, shortest=1, longest=2)
    pbx.add_calls(now - 2 * HOUR, now - HOUR, 5, shortest=1, longest=2)
    sources = place.config["sources"]
    place.config["stores"]["extra"] = {"kind": "file", "path": "extra"}
    place.write()
    running = await place.start("run")
    await running.said('"daemon.ready"')
    await until(lambda: hq.running >= 3)
    edited = Edited(place, running)
    whole = commands.toml(place.config)

    def on_their_way() -> None:
        """Two recordings more may come; others wait for the next edit."""
        assert not running.over
        hq.permits.release()
        hq.permits.release()

    # 1: a source is switched on; by the file alone, with no signal.
    sources["pbx"]["enabled"] = True
    await edited.good(None)
    await running.said('"source": "pbx"')
    on_their_way()
    # 2: garbage. 3: half of it. 4: nothing.
    (line,) = await edited.bad(b"\x00\xff[[[")
    assert "archiver.toml: line 1: is not UTF-8" in line
    await edited.bad(whole[: whole.index("base_url") + 12])
    assert await edited.bad("") == [
        "archiver.toml: there is no store: add a section [stores.NAME]",
        "archiver.toml: there is no source: add a section [sources.NAME]",
    ]
    on_their_way()
    # 5: the file is gone; 6: and there again, as it was.
    place.path.unlink()
    assert await edited.bad(None) == ["archiver.toml: can't be read: No such file or directory"]
    await edited.good()
    # 7: a key that is mistyped: the daemon says what `check` says, and `reload` too.
    sources["hq"]["concurency"] = 4
    said = await edited.bad(commands.toml(place.config), None)
    check = await place.run("check", code=2)
    assert check.err.splitlines() == said
    told = await place.run("reload", code=2)
    assert told.err.splitlines()[:-1] == said
    assert "the daemon goes on with" in told.err.splitlines()[-1]
    del sources["hq"]["concurency"]
    on_their_way()
    # 8: re-timed; `reload` says that it was taken.
    sources["hq"] |= {"window": "30m", "lookback": "2h", "settle": "2s", "poll": "2s"}
    edited.write()
    assert (await place.json("reload"))["daemon"]["changes"] == {"sources_changed": ["hq"]}
    # 9: other limits.
    sources["hq"] |= {"concurrency": 2, "rate": "100/s"}
    place.config |= {"transfers": 8, "memory": "64MiB", "log_level": "debug"}
    await edited.good()
    on_their_way()
    # 10: what can't change under way is refused, with all that came with it.
    at = place.config["data_dir"]
    place.config["data_dir"] = "elsewhere"
    (line,) = await edited.bad(commands.toml(place.config))
    assert line == "archiver.toml: data_dir: needs a restart, it can't change while running"
    place.config["data_dir"] = at
    # 11: a store that does not work.
    (place.folder / "file").write_text("")
    place.config["stores"]["broken"] = {"kind": "file", "path": "file/below"}
    (line,) = await edited.bad(commands.toml(place.config))
    assert line.startswith("archiver.toml: stores.broken: ")
    # 12: one that does, and a source that uses it from now on.
    place.config["stores"]["broken"] = {"kind": "file", "path": "second"}
    sources["hq"]["stores"] = ["disk", "broken"]
    await edited.good()
    on_their_way()
    # 13: a secret is empty while it is written. 14: it is rotated.
    secret.write_text("")
    assert "file hq.token is empty" in (await edited.bad(None, None))[0]
    hq.tokens.add("a-new-token-of-today")
    secret.write_text("a-new-token-of-today")
    assert (await place.json("reload"))["daemon"]["changes"] == {"sources_changed": ["hq"]}
    on_their_way()
    # 15: its store goes again; 16: a source goes; 17: it comes back; 18: paused; 19: goes on.
    del place.config["stores"]["broken"]
    sources["hq"]["stores"] = ["disk"]
    await edited.good()
    removed = sources.pop("hq")
    await edited.good()
    on_their_way()
    sources["hq"] = removed
    await edited.good()
    sources["hq"]["enabled"] = False
    await edited.good()
    on_their_way()
    sources["hq"]["enabled"] = True
    await edited.good()
    # 20: written in place, as it is.
    place.path.write_text(commands.toml(place.config) + "# all is well\n")
    running.signal(signal.SIGHUP)
    await edited.is_taken()

    for _ in range(200):
        hq.permits.release()
    truth = place.truth()
    await until(lambda: all(f'"{r}"' in running.err for r in {i[1] for i in truth}) or running.over)

    async def all_archived() -> bool:
        counts = (await place.json("status"))["sources"]
        return sum(s["archived"] for s in counts.values()) == len(truth)

    while not await all_archived():
        assert not running.over
    status = await place.json("status")
    ended = await running.end(signal.SIGTERM, patience=20)
    assert ended.code == 0, ended
    assert await place.held() == truth
    asked = Counter((seen.path, seen.status) for s in (hq, pbx) for seen in s.seen if seen.on == "audio")
    assert {status for _, status in asked} == {200}
    assert len(asked) == len(truth)
    assert set(asked.values()) == {1}
    assert hq.seen[-1].headers["Authorization"] == "Bearer a-new-token-of-today"
    assert "a-new-token-of-today" not in ended.err
    live_one = status["daemon"]
    assert live_one["refused"] is None
    assert live_one["pid"] == running.process.pid
    assert "Traceback" not in ended.err


async def test_sigterm_ends_it_within_ten_seconds_although_the_database_answers_nothing_more(place):
    hq = await place.add("hq", ChronicallSimulator(), poll="1s")
    hq.add_call(hq.clock.now() - HOUR, timedelta(seconds=1))
    running = await place.start("run")
    await running.said('"recording.archived"')
    connection = await asyncpg.connect(place.database)
    mine = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    pids = [row[0] for row in await connection.fetch(mine)]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        ended = await running.end(signal.SIGTERM)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await connection.close()
    assert pids
    assert ended.code == 0, ended
    # Ten, and the time that a busy machine takes to say so.
    assert ended.seconds < 15


async def test_reload_of_many_sources_tells_what_changed_and_asks_the_catalog_for_them_once(
    place, tmp_path, database, monkeypatch
):
    await place.add("hq", ChronicallSimulator())
    running = await place.start("run")
    await running.said("poll.done")
    table = place.config["sources"]["hq"]
    place.config["sources"] |= {f"s{n:03}": table | {"enabled": False} for n in range(299)}
    told = await place.run("reload")
    assert "the last edit: sources added: s000, s001, s002, s003, s004 and 294 more" in told.out
    # Read again without an edit, it is still what the last one changed.
    assert "sources added: s000" in (await place.run("reload")).out
    await running.end(signal.SIGTERM)

    sims = {f"s{n}": XivoSimulator() for n in range(8)}
    (tmp_path / "many").mkdir()
    async with archiving(tmp_path / "many", database, sims) as rig:
        asked = []
        sources = rig.catalog.sources

        async def counted(*names):
            asked.append(names)
            return await sources(*names)

        monkeypatch.setattr(rig.catalog, "sources", counted)
        await reload.take(rig.archive, rig.archive.engine(), rig.archive.config)
        assert asked == [()]


async def test_no_daemon_is_exit_code_3_and_says_how_to_start_one(place):
    await place.add("hq", ChronicallSimulator())
    told = await place.run("reload", code=3)
    assert "no daemon runs with" in told.err
    assert (await place.json("reload", code=3)) == {"taken": False, "daemon": None}


async def test_what_was_replaced_is_closed_after_its_last_transfer_and_nothing_piles_up(tmp_path, database):
    sim = Gated()
    sim.add_calls(sim.clock.now() - HOUR, sim.clock.now() - HOUR / 2, 3, shortest=1, longest=2)
    async with archiving(tmp_path, database, sim, timeout="10m") as rig, rig.running() as daemon:
        archive = rig.archive
        path = archive.config.path

        async def edit(line: str) -> None:
            path.write_text(path.read_text() + line + "\n")
            daemon._asked.set()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()

            async def taken() -> bool:
                return archive.config.sha256 == digest

            await eventually(taken, 60)

        async def held() -> bool:
            return sim.running >= 2

        await edit("largest = 1000000")
        await eventually(held, 60)
        first, gate = rig.feed, rig.feed.gate
        await edit("# again")
        # Nothing changed for it: the same one goes on.
        assert rig.feed is first
        for number in range(5):
            path.write_text(path.read_text().replace("largest = ", f"largest = {number + 1}"))
            await edit("#")
        assert rig.feed is not first
        assert rig.feed.gate is gate
        assert first.users > 0
        assert len(archive._closers) > 1
        for _ in range(len(sim.truth())):
            sim.permits.release()

        async def all_archived() -> bool:
            return await rig.states() == {"archived": len(sim.truth())}

        async def alone() -> bool:
            return len(archive._closers) == 1 and first.users == 0

        await eventually(all_archived, 60)
        await eventually(alone, 60)
        assert set(audio_requests(sim).values()) == {1}


def test_a_change_is_one_once_the_file_stays_as_it_is(tmp_path):
    path, missing = tmp_path / "archiver.toml", tmp_path / "secret"
    path.write_text("half")
    watch = Watch({path: config.stamp(path), missing: config.stamp(missing)})
    assert [watch.changed(), watch.changed()] == [False, False]
    path.write_text("half a file")
    assert not watch.changed()
    path.write_text("half a file more")
    assert [watch.changed(), watch.changed()] == [False, True]
    watch.files = {p: config.stamp(p) for p in watch.files}
    assert not watch.changed()
    missing.write_text("there")
    assert [watch.changed(), watch.changed()] == [False, True]


def test_a_daemon_is_known_by_its_lock_and_answers_for_its_own_config(tmp_path):
    path = tmp_path / "archiver.toml"
    told = {"config": {"path": str(path)}}
    beacon, other = live.Beacon(tmp_path), live.Beacon(tmp_path)
    assert live.daemon(tmp_path) is None
    assert beacon.lit()
    assert not other.lit()
    beacon.tell(told)
    other.tell({"config": {"path": "another"}})
    path.write_text('data_dir = "."\n[[')
    assert live.find(path) == (tmp_path, told)
    assert live.find(tmp_path / "other.toml", tmp_path) is None
    # It never answers: whoever asks is not kept for ever.
    assert live.ask(tmp_path, 0.1) is None
    assert beacon.requests() == []
    beacon.close()
    assert live.daemon(tmp_path) is None
    # What a killed one left behind is nobody's word.
    (tmp_path / "run" / "daemon.json").write_text(json.dumps(told))
    assert live.find(path) is None
    assert other.lit()


def test_another_certificate_in_the_same_file_is_a_change(tmp_path):
    path, issuer = tmp_path / "archiver.toml", tmp_path / "ca.pem"
    path.write_text(
        '[stores.disk]\nkind = "file"\npath = "x"\n[sources.hq]\nkind = "chronicall"\ntoken = "0123456789"\n'
        'base_url = "https://127.0.0.1"\nca_file = "ca.pem"\n'
    )
    issuer.write_text("one")
    old = config.load(path)
    issuer.write_text("another")
    new = config.load(path)
    assert config.diff(old, new).sources_changed == ("hq",)
    assert issuer in new.files
    assert not config.diff(new, config.load(path))
    assert old.sha256 == new.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
