"""What is archived from any recorder is told to a source that wants to hear of it, with the place of each copy."""

from __future__ import annotations

import pytest

from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.xivo import XivoSimulator
from tests.engine import a_recorder, archiving, assert_archived, dav_table, eventually, s3_table
from tests.servers import apache, seaweed


@pytest.mark.parametrize("storage", ["awsS3", "webDAV"])
async def test_recordings_of_every_recorder_are_registered_with_the_place_of_their_copy(storage, tmp_path, database):
    pbx, web = a_recorder(XivoSimulator, 4, live=True), a_recorder(GenesysSimulator, 0, live=True)
    options = web.options
    web.options = lambda: {**options(), "register": True, "region": web.region, "skip_registered": True}
    with seaweed() if storage == "awsS3" else apache() as server:
        there = s3_table(server, "registered", prefix="archive/") if storage == "awsS3" else dav_table(server, "a b/")
        # Nobody can play from a folder: it is told of nowhere.
        stores = {"disk": {"kind": "file", "path": str(tmp_path / "disk")}, "main": there}

        def place(key: str) -> dict:
            if storage == "awsS3":
                return {"storage": "awsS3", "path": key, "data": {"bucket": there["bucket"]}}
            return {"storage": "webDAV", "path": server.url + key.replace(" ", "%20")}

        async with archiving(tmp_path, database, {"pbx": pbx, "web": web}, stores=stores) as rig:
            await rig.sync()
            assert await assert_archived(rig) == 4

            async def all_told():
                await rig.transfer()
                return len(web.posted) >= 4

            await eventually(all_told, why="not all were registered")
            told = [web.posted[f"pbx~{i}"]["mediaFiles"] for i in await rig.documents()]
            keys = [m["copies"] for d in (await rig.documents()).values() for m in d["media"]]
            expected = [[place(c["key"]) for c in copies if c["store"] == "main"] for copies in keys]
            assert [[f["originalMediaDescriptor"] for f in files] for files in told] == expected
            before = web.count("post")
            await rig.sync()
            assert web.count("post") == before, "each is told once"


async def test_what_lies_in_a_folder_alone_is_not_registered(tmp_path, database):
    pbx, web = a_recorder(XivoSimulator, 1, live=True), a_recorder(GenesysSimulator, 0, live=True)
    options = web.options
    web.options = lambda: {**options(), "register": True, "region": web.region}
    async with archiving(tmp_path, database, {"pbx": pbx, "web": web}) as rig:
        await rig.sync()
        await rig.transfer()
        assert await assert_archived(rig) == 1
        assert web.count("post") == 0
