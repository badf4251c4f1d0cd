"""The other direction: what was archived from any recorder becomes a recording of Web Services."""

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import pytest_asyncio
from aiohttp import web

from archiver.errors import BadData, Refused, TryAgain
from archiver.model import CallEvent, Direction, Party, Window, utc_text
from archiver.simulators.base import Clock
from archiver.simulators.genesys import GenesysSimulator
from archiver.sources.genesys import Genesys, GenesysOptions
from archiver.sources.genesys_register import Registrar, posting
from archiver.sources.kit.descriptors import aws_s3, web_dav
from archiver.testing.sources import NOW, Kept, opened
from archiver.wire.recorder import Client
from tests.sources.test_genesys import scripted

HOUR = timedelta(hours=1)
AUDIO = b"RIFF" + bytes(range(256)) * 8
SHA = hashlib.sha256(AUDIO).hexdigest()


def a_document(**changes) -> dict:
    """A recording's JSON, as archived from some other recorder."""
    return {
        "source": "hq", "kind": "chronicall", "recording_id": "4711", "call_id": "call-1", "state": "archived",
        "started_at": utc_text(NOW - HOUR), "ended_at": utc_text(NOW - HOUR + timedelta(seconds=49)),
        "duration": 48.974, "direction": "inbound", "caller": "+16504668888", "callee": "+14155551234",
        "agent": "Joe Dalton (1573)", "queue": "hotline (3556)",
        "parties": [
            {"number": "+16504668888", "name": None, "user": None, "role": "caller"},
            {"number": "1573", "name": "Joe Dalton", "user": "joe", "role": "agent"},
        ],
        "events": [], "attributes": {"color": "green"}, "raw": {},
        "media": [a_medium()],
    } | changes  # fmt: skip


def a_medium(media_id="audio", **changes) -> dict:
    return {
        "media_id": media_id, "state": "archived", "content_type": "audio/wav", "size": len(AUDIO), "sha256": SHA,
        "duration": 48.974, "attempts": 1, "error": None, "copies": [],
    } | changes  # fmt: skip


S3 = {"audio": aws_s3("calls", "archive/hq/2024/05/18/4711/audio-0123456789ab.wav")}


@pytest_asyncio.fixture
async def sim():
    async with GenesysSimulator(seed=3, clock=Clock(NOW)) as simulator:
        yield simulator


@asynccontextmanager
async def registering(base, **more):
    options = GenesysOptions(**{"region": "development", "timeout": "2s", **base, **more})
    client = Client.of(options, cookies=Genesys.cookies)
    try:
        yield Registrar(options, client)
    finally:
        await client.close()


async def read(sim, **more):
    """What Web Services now tells of everything, by id, and its bytes."""
    async with opened(Genesys, {**sim.options(), **more}) as source:
        found = {r.recording_id: r for r in (await source.list(Window(NOW - 9 * HOUR, NOW + HOUR))).recordings}
        audio = {}
        for recording in found.values():
            for medium in recording.media:
                kept = Kept()
                await source.fetch(medium, kept)
                audio[recording.recording_id, medium.media_id] = bytes(kept.data)
        return found, audio


@pytest.mark.parametrize("ops", [False, True])
async def test_an_archived_recording_can_be_found_and_played_in_web_services(sim, ops):
    sim.objects["calls/archive/hq/2024/05/18/4711/audio-0123456789ab.wav"] = AUDIO
    more = {"contact_center": sim.contact_center} if ops else {}
    async with registering(sim.options(), **more) as registrar:
        assert await registrar.register(a_document(), S3)
    found, audio = await read(sim)
    (told,) = found.values()
    assert told.recording_id == "hq~4711"
    assert told.started_at == NOW - HOUR
    assert told.ended_at == NOW - HOUR + timedelta(seconds=48.974)
    assert (told.caller, told.callee, told.direction) == ("+16504668888", "+14155551234", Direction.INBOUND)
    assert told.call_id == "call-1"
    assert told.agent == "Joe Dalton (1573)"
    assert told.parties[1] == Party(number="1573", name="Joe Dalton", user="joe", role="agent")
    assert told.events[0] == CallEvent(at=NOW - HOUR, event="joined", party="+16504668888")
    assert len(told.events) == 4
    (kept,) = told.attributes["media"].values()
    assert kept["parameters"]["queue"] == "hotline (3556)"
    assert kept["parameters"]["sha256"] == SHA
    assert kept["parameters"]["archiver"] == "hq"
    assert list(audio.values()) == [AUDIO]
    assert told.media[0].size == len(AUDIO)


async def test_a_copy_on_webdav_is_played_from_there(sim):
    async with scripted(lambda _: web.Response(body=AUDIO)) as (base, seen):
        url = base["base_url"] + "/calls/hq/4711/audio-0123.wav"
        async with registering(sim.options()) as registrar:
            assert await registrar.register(a_document(), {"audio": web_dav(url)})
        _, audio = await read(sim)
    assert list(audio.values()) == [AUDIO]
    assert seen


async def test_registering_twice_changes_nothing(sim):
    async with registering(sim.options()) as registrar:
        await registrar.register(a_document(), S3)
        first = json.dumps(sim.posted)
        await registrar.register(a_document(), S3)
    assert json.dumps(sim.posted) == first


async def test_media_that_come_later_join_the_ones_before(sim):
    later = aws_s3("calls", "archive/hq/2024/05/18/4711/second-ba9876543210.wav")
    async with registering(sim.options()) as registrar:
        await registrar.register(a_document(), S3)
        await registrar.register(a_document(media=[a_medium("second", size=5)]), {"second": later})
        await registrar.register(a_document(media=[a_medium("second", size=7)]), {"second": later})
    (posted,) = sim.posted.values()
    assert [f["size"] for f in posted["mediaFiles"]] == [str(len(AUDIO)), "7"]


async def test_only_archived_media_that_have_a_place_are_told(sim):
    media = [a_medium(), a_medium("pending", state="pending"), a_medium("elsewhere")]
    async with registering(sim.options()) as registrar:
        assert await registrar.register(a_document(media=media), {**S3, "pending": S3["audio"]})
        assert len(sim.posted["hq~4711"]["mediaFiles"]) == 1
        posts = sim.count("post")
        assert not await registrar.register(a_document(media=[]), S3)
        assert not await registrar.register(a_document(), {})
        assert sim.count("post") == posts


async def test_what_was_registered_is_not_registered_again(sim):
    """Else a source that is archived and registered in would grow for ever."""
    sim.objects[f"calls/{S3['audio']['path']}"] = AUDIO
    async with registering(sim.options()) as registrar:
        await registrar.register(a_document(), S3)
        (told,) = (await read(sim))[0].values()
        archived_again = a_document(
            kind="genesys", source="gws", recording_id=told.recording_id, attributes=told.attributes,
            media=[a_medium(m.media_id) for m in told.media],
        )  # fmt: skip
        assert not await registrar.register(archived_again, {m.media_id: S3["audio"] for m in told.media})
    assert list(sim.posted) == ["hq~4711"]
    assert (await read(sim, skip_registered=True))[0] == {}


async def test_what_web_services_itself_once_told_goes_back_with_its_rights_and_its_envelope(sim):
    call = sim.add_call(NOW - 2 * HOUR, timedelta(seconds=9), index=2, extra={"encrypted": True})
    (told,) = (await read(sim))[0].values()
    media_id = told.media[0].media_id
    document = a_document(
        kind="genesys", source="gws", recording_id=told.recording_id, started_at=utc_text(told.started_at),
        ended_at=utc_text(told.ended_at), attributes=told.attributes, media=[a_medium(media_id, duration=None)],
    )  # fmt: skip
    async with registering(sim.options()) as registrar:
        assert await registrar.register(document, {media_id: S3["audio"]})
    (posted,) = sim.posted.values()
    (file,) = posted["mediaFiles"]
    before = told.raw["mediaFiles"][0]
    for name in (
        "pkcs7", "certAlias", "partitions", "accessgroup", "tenant", "ivrprofile", "masks", "callUUID", "startTime",
        "stopTime",
    ):  # fmt: skip
        assert file[name] == before[name]
        assert file[name]
    assert file["parameters"]["recorddn"] == call.agent[1]


def test_what_is_posted_is_in_the_page_s_tables_and_nothing_else_is():
    """A start is not posted, nor what is for GET only."""
    media = {"audio": {"pkcs7": "x", "certAlias": ["a"], "masks": [{}], "partitions": ["p"], "accessgroups": ["g"]}}
    document = a_document(kind="genesys", attributes={"media": media})
    for body in (posting(a_document(), S3, "r"), posting(document, S3, "r")):
        assert set(body) == {"id", "callerPhoneNumber", "dialedPhoneNumber", "region", "mediaFiles", "eventHistory"}
        mandatory = {"mediaDescriptor", "callUUID", "startTime", "stopTime"}
        optional = {"mediaId", "type", "duration", "size", "tenant", "ivrprofile", "parameters", "masks", "pkcs7"}
        optional |= {"certAlias", "partitions", "accessgroup"}
        (file,) = body["mediaFiles"]
        assert mandatory <= set(file) <= mandatory | optional
        assert set(file["mediaDescriptor"]) == {"storage", "path", "data"}
        for event in body["eventHistory"]:
            assert set(event) == {"occurredAt", "contact", "event"}
            assert set(event["contact"]) == {"phoneNumber", "type", "userName", "firstName", "lastName"}


@pytest.mark.parametrize(
    ("changes", "contacts"),
    [
        ({}, {("External", "+16504668888", "", "", ""), ("User", "1573", "joe", "Joe", "Dalton")}),
        (
            {"parties": []},
            {
                ("External", "+16504668888", "", "", ""),
                ("External", "+14155551234", "", "", ""),
                ("User", "1573", "Joe Dalton", "Joe", "Dalton"),
            },
        ),
        ({"parties": [], "agent": None, "caller": None}, {("External", "+14155551234", "", "", "")}),
        ({"parties": [], "agent": None, "caller": None, "callee": " "}, {("External", "UNKNOWN", "", "", "")}),
        ({"parties": [{"role": "agent", "name": "Cher"}]}, {("User", "UNKNOWN", "Cher", "Cher", "Cher")}),
        ({"parties": [{"role": "agent", "number": "12"}]}, {("External", "12", "", "", "")}),
        ({"parties": [{"role": "external", "number": "12", "name": "Zoé"}]}, {("External", "12", "", "Zoé", "")}),
    ],
)
async def test_everyone_known_joins_and_leaves_where_no_events_are_told(sim, changes, contacts):
    async with registering(sim.options()) as registrar:
        await registrar.register(a_document(**changes), S3)
    (posted,) = sim.posted.values()
    seen = {
        tuple(e["contact"][k] for k in ("type", "phoneNumber", "userName", "firstName", "lastName"))
        for e in posted["eventHistory"]
    }
    assert seen == contacts
    assert {e["event"] for e in posted["eventHistory"]} == {"Joined", "Left"}


def test_events_that_are_told_are_told_on_and_others_than_joined_and_left_are_not():
    at = utc_text(NOW)
    events = [
        {"at": at, "event": "left", "party": "1573"},
        {"at": at, "event": "joined", "party": None},
        {"at": at, "event": "ringing", "party": "1573"},
        {"at": "soon", "event": "left", "party": "1573"},
    ]
    body = posting(a_document(events=events), S3, "development")
    told = [(e["event"], e["contact"]["phoneNumber"], e["contact"]["type"]) for e in body["eventHistory"]]
    assert told == [("Left", "1573", "User"), ("Joined", "UNKNOWN", "External")]


@pytest.mark.parametrize(
    "changes",
    [
        {"caller": None, "callee": None, "call_id": None, "direction": "unknown", "queue": None, "agent": None},
        {"ended_at": None, "duration": None, "media": [a_medium(duration=None, size=None, content_type=None)]},
        {"ended_at": utc_text(NOW - 5 * HOUR)},
        {"recording_id": "a/../b c ü\x00\ud800"},
        {"caller": "  +1 650 "},
        {"agent": "((("},
        {"attributes": None, "events": None, "parties": None},
        {"kind": "genesys", "attributes": {"media": {"audio": None}}},
    ],
)
async def test_whatever_is_missing_the_post_keeps_to_the_page(sim, changes):
    async with registering(sim.options()) as registrar:
        assert await registrar.register(a_document(**changes), S3)


def test_ids_are_unique_over_sources_and_plain_enough_for_a_path():
    seen = set()
    for source, recording_id in (("hq", "a/b"), ("hq", "a-b"), ("hq", "a\\b"), ("lab", "a-b"), ("hq", "x" * 300)):
        body = posting(a_document(source=source, recording_id=recording_id), S3, "r")
        assert set(body["id"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-~._")
        assert len(body["id"]) < 120
        seen.add(body["id"])
    assert len(seen) == 5


def test_a_recording_without_a_start_is_bad_data():
    with pytest.raises(BadData):
        posting(a_document(started_at=None), S3, "r")


async def test_a_region_is_mandatory():
    options = GenesysOptions(kind="genesys", base_url="http://h/api/v2", username="u", password="p")
    with pytest.raises(BadData, match="region"):
        await Registrar(options, Client("http://h/api/v2")).register(a_document(), S3)


# -- the CSRF token ----------------------------------------------------------------------------------------------------


async def test_the_token_is_asked_for_once_and_sent_with_the_session_s_cookie(sim):
    async with registering(sim.options()) as registrar:
        for number in range(3):
            await registrar.register(a_document(recording_id=str(number)), S3)
    assert sim.count("me") == 1
    posts = [s for s in sim.seen if s.on == "post"]
    assert [s.status for s in posts] == [200] * 3
    assert all("JSESSIONID" in s.headers["Cookie"] for s in posts)


async def test_a_server_without_such_protection_is_sent_no_token(sim):
    sim.csrf = False
    async with registering(sim.options()) as registrar:
        await registrar.register(a_document(), S3)
    assert "X-CSRF-TOKEN" not in sim.seen[-1].headers


async def test_a_session_that_ended_is_begun_anew(sim):
    async with registering(sim.options()) as registrar:
        await registrar.register(a_document(), S3)
        sim._sessions.clear()
        assert await registrar.register(a_document(recording_id="2"), S3)
    assert set(sim.posted) == {"hq~4711", "hq~2"}


async def test_two_at_once_do_not_disturb_each_other(sim):
    async with registering(sim.options()) as registrar:
        await asyncio.gather(*(registrar.register(a_document(recording_id=str(n)), S3) for n in range(6)))
    assert len(sim.posted) == 6
    assert sim.count("me") == 1


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "X Y", "host", "Content-Length"])
async def test_a_header_that_is_none_for_a_token_is_not_sent(name):
    def answer(_):
        return web.json_response({}, headers={"X-CSRF-HEADER": name, "X-CSRF-TOKEN": "t"})

    async with scripted(answer) as (base, _), registering(base) as registrar:
        with pytest.raises(BadData, match="X-CSRF-HEADER"):
            await registrar.register(a_document(), S3)


# -- what can go wrong -------------------------------------------------------------------------------------------------


async def test_missing_rights_are_refused_and_asked_for_twice_at_most(sim):
    sim.ops = False
    async with registering(sim.options(), contact_center=sim.contact_center) as registrar:
        for _ in range(3):
            with pytest.raises(Refused):
                await registrar.register(a_document(), S3)
    assert sim.count("post") <= 6


@pytest.mark.parametrize(
    ("code", "error"), [(1, BadData), (10, BadData), (3, Refused), (20, Refused), (4, TryAgain), (9, TryAgain)]
)
async def test_a_status_code_says_what_can_be_done(sim, code, error):
    sim.fault("status_code", "post", value=code, times=-1)
    async with registering(sim.options()) as registrar:
        with pytest.raises(error):
            await registrar.register(a_document(), S3)


@pytest.mark.parametrize("kind", ["reset", "stall", "html"])
async def test_a_post_that_breaks_is_tried_again_and_does_no_harm(sim, kind):
    async with registering(sim.options(), timeout="300ms") as registrar:
        sim.fault(kind, "post")
        with pytest.raises(TryAgain):
            await registrar.register(a_document(), S3)
        assert await registrar.register(a_document(), S3)
    assert len(sim.posted) == 1


async def test_no_error_tells_the_password(sim):
    async with registering(sim.options(), password="wrong-1234567") as registrar:
        with pytest.raises(Refused) as caught:
            await registrar.register(a_document(), S3)
    assert "wrong-1234567" not in str(caught.value)


async def test_a_post_is_not_redirected_elsewhere(sim):
    async with GenesysSimulator(seed=9) as elsewhere, registering(sim.options()) as registrar:
        sim.fault("redirect", "post", value=f"{elsewhere.base_url}/stolen", times=-1)
        with pytest.raises(Refused):
            await registrar.register(a_document(), S3)
        assert not elsewhere.seen
