"""Whose calls an account finds: by recorder, queue and agent."""

from __future__ import annotations

import pytest

from archiver.catalog.catalog import Query
from archiver.catalog.face import FaceCatalog, Limits
from archiver.model import ListingKey, Party
from tests.factories import a_listing, a_recording, at

CALLS = {
    "labelled": {"agent": "Joe Dalton (1573)"},
    "of an agent": {"parties": (Party(number="1573", name="Joe Dalton", user="jd", role="agent"),)},
    "of the second agent": {
        "parties": (Party(number="1601", name="Averell", role="agent"), Party(number="1573", role="agent")),
    },
    "of an extension": {"parties": (Party(number="1573", role="callee"), Party(number="+4930901820", role="caller"))},
    "of a customer with the name": {"parties": (Party(number="+4930901820", name="Joe Dalton", role="caller"),)},
    "of a customer with the user": {"parties": (Party(number="+4930901821", user="jd", role="external"),)},
    "of a customer whose number begins so": {"parties": (Party(number="15731112222", role="caller"),)},
    "of nobody": {},
}


@pytest.fixture
async def face(database, catalog):
    await catalog.source("hq", "chronicall", default_start=at("00:00"), start=None)
    recordings = [a_recording(recording_id=name, **told) for name, told in CALLS.items()]
    listing = a_listing(*recordings)
    news = await catalog.unknown("hq", listing.recordings)
    await catalog.record("hq", listing, news, listing_key=ListingKey.START, stores=("main",))
    opened = await FaceCatalog.open(database)
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    ("agent", "found"),
    [
        ("1573", {"of an agent", "of the second agent", "of an extension"}),
        ("Joe Dalton", {"of an agent"}),
        ("joe dalton*", {"labelled", "of an agent"}),
        ("jd", {"of an agent"}),
        ("157*", {"of an agent", "of the second agent"}),
        ("*", {"labelled", "of an agent", "of the second agent"}),
        ("157%", set()),
    ],
)
async def test_an_agents_calls_are_those_of_the_agent_and_of_no_party_that_is_alike(face, agent, found):
    rows, _ = await face.look(Limits(agents=(agent,)), Query())
    assert {row["recording_id"] for row in rows} == found
    for name in CALLS:
        assert (await face.call(Limits(agents=(agent,)), "hq", name) is not None) == (name in found)
