import pytest, asyncio
from tests import commands
from tests.commands import *
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.xivo import XivoSimulator

@pytest.fixture
async def place(tmp_path, database):
    async with commands.place(tmp_path, database) as p:
        yield p

async def test_probe(place):
    hq = await place.add("hq", ChronicallSimulator())
    pbx = await place.add("pbx", XivoSimulator(), timezone="Europe/Paris")
    for s in (hq, pbx):
        s.add_calls(DAY + HOUR, DAY + 20*HOUR, 20, shortest=2, longest=3)
    for cmd in (["check"], ["status"], ["backfill","--source","hq",*WHOLE_DAY,"--dry-run"], ["backfill","--source","hq",*WHOLE_DAY,"--json"], ["backfill","--source","hq",*WHOLE_DAY], ["status"], ["list"], ["list","--limit","1"], ["status", "--json"], ["check","--offline"],["migrate"],["retry"]):
        n = place.requests()
        r = await place.run(*cmd, code=None)
        print(cmd, place.requests()-n, r)
    rec = (await place.run("list","--json","--limit","1")).rows[0]
    for cmd in (["show", "hq", rec["recording_id"]], ["why", "hq", rec["recording_id"]], ["get", "hq", rec["recording_id"], "-o", "x.spx"], ["get", "hq", "nix", "-o", "x.spx"], ["show", "hq", "nix"], ["rejected", "hq"], ["rejected", "nix"]):
        r = await place.run(*cmd, code=None)
        print(cmd, r)
    assert 0
