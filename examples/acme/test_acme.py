"""The contract's tests, run against the simulator; then Acme's own quirks."""

from archiver.testing.sources import SourceContract

from acme_archiver import Acme
from acme_simulator import AcmeSimulator


class TestAcme(SourceContract):
    simulator = AcmeSimulator
    source = Acme

    async def test_a_row_that_can_t_be_read_is_shown_and_the_others_are_listed(self, sim: AcmeSimulator) -> None:
        sim.fault("bad_row", "list")
        async with self.reading(sim) as source:
            listing = await source.list(self.span())
        assert len(listing.recordings) == len(sim.calls) - 1
        assert [row.reason.split(":")[0] for row in listing.rejected] == ["TypeError"]
