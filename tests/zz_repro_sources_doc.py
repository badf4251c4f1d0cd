import asyncio, pytest
from tests.engine import *
from tests.conftest import *

@pytest.mark.parametrize("n", [8,9,10,11,12,13,14,16,20])
async def test_hang(tmp_path, database, clock, n):
    sim = a_recorder(XivoSimulator, n)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.poll()
        sim.fault("status", "audio", value=500, times=-1)
        await asyncio.wait_for(rig.transfer(), 10)
