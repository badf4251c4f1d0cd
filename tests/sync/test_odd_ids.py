"""Whatever a recorder calls its recordings: they are archived under that name, and found by it."""

import pytest

from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.testing.sources import ODD_IDS
from tests.engine import HOUR, MINUTE, a_recorder, archiving, assert_archived
from tests.factories import NOON


@pytest.mark.parametrize("kind", [ChronicallSimulator, GenesysSimulator, NoojeeSimulator, XivoSimulator])
async def test_a_recording_of_any_id_is_archived(kind, tmp_path, database, clock):
    sim = a_recorder(kind)
    for number, odd in enumerate(ODD_IDS):
        sim.add_call(NOON - HOUR - number * MINUTE, 10 * MINUTE / 60, extra={"id": odd})
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        (summary,) = (await rig.sync()).values()
        assert summary.complete
        assert await assert_archived(rig) >= len(ODD_IDS)
        assert set(ODD_IDS) <= set(await rig.documents())
