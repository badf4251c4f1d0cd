"""What is archived from any recorder is told to a source that wants to hear of it, with the place of each copy."""

from __future__ import annotations

from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.xivo import XivoSimulator
from tests.engine import a_recorder, archiving, eventually, s3_table
from tests.servers import seaweed


async def test_recordings_of_every_recorder_are_registered_with_the_place_of_their_copy(tmp_path, database):
    pbx, web = a_recorder(XivoSimulator, 4, live=True), a_recorder(GenesysSimulator, 0, live=True)
    options = web.options
    web.options = lambda: {**options(), "register": True, "region": web.region, "skip_registered": True}
    with seaweed() as s3:
        stores = {"main": s3_table(s3, "registered", prefix="archive/")}
        async with archiving(tmp_path, database, {"pbx": pbx, "web": web}, stores=stores) as rig:
            await rig.sync()
            documents = await rig.documents("pbx")
            assert len(documents) == 4

            async def all_told():
                return [s for s in web.seen if s.method == "POST" and s.status in {200, 201}][3:]

            await rig.transfer()
            await eventually(all_told, within=5, why="not all were registered")
            before = web.count("post") if hasattr(web, "count") else 0
            await rig.sync()
            assert web.count("post") == before, "each is told once"
