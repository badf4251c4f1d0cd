"""The pages over HTTP: what they say, what they withhold, what hostile text comes to, Range and HEAD of media."""

from __future__ import annotations

import re
from io import BytesIO

import aiohttp
import pytest
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from jinja2 import Environment

from archiver.web import pages, pages_text
from tests.web.stage import CSP, call, medium, staged
from tests.web.test_playback import wav

TEMPLATES = sorted((pages_text.FOLDER / "templates").glob("*.html"))


@pytest.fixture
async def stage(tmp_path):
    async with staged(tmp_path) as it:
        data = wav(10)
        it.desk.add(call("one", medium(data, "wav")), data)
        yield it


@pytest.fixture
async def http(stage):
    async with aiohttp.ClientSession(stage.url) as session:
        yield session


async def page(http, path, **how):
    async with http.get(path, **how) as response:
        return response.status, await response.text()


async def listened(http, path="/calls/hq/one", **form):
    async with http.post(f"{path}/listen", data={"reason": "complaint", **form}) as response:
        return response.status, await response.text()


async def test_a_call_is_found_by_its_number_and_its_page_tells_its_facts(http):
    status, found = await page(http, "/?number=650466")
    assert status == 200
    assert 'href="/calls/hq/one"' in found
    assert "The search is 0:12 behind" in found
    status, shown = await page(http, "/calls/hq/one", cookies={"tz": "Europe/Berlin"})
    assert status == 200
    for fact in (
        "2024-05-17 13:45:32 +02:00",
        "2024-05-17 05:45:32 -06:00",
        "+16504668888",
        "Joe Dalton",
        "joined",
        "green",
    ):
        assert fact in shown
    assert "<audio" not in shown


async def test_what_is_typed_in_a_zone_is_asked_in_utc(http, stage):
    await page(http, "/?from=2024-05-17T00:00&tz=Europe/Berlin")
    assert stage.desk.events[-1]["details"]["from"] == "2024-05-16T22:00:00.000Z"


async def test_a_call_that_is_not_there_is_not_found(http):
    assert (await page(http, "/calls/hq/two"))[0] == 404
    assert (await page(http, "/calls/other/one"))[0] == 404


async def test_without_a_reason_nothing_plays_and_nothing_is_read(http, stage):
    status, said = await listened(http, reason="  ")
    assert status == 422
    assert "Your role needs a reason" in said
    assert "<audio" not in said
    assert stage.desk.reads_done == 0
    assert "listen" not in [event["action"] for event in stage.desk.events]


async def test_the_listen_is_written_down_before_a_byte_is_read(http, stage):
    status, said = await listened(http, case="C-7")
    assert status == 200
    (event,) = [event for event in stage.desk.events if event["action"] == "listen"]
    assert (event["reason"], event["case"], event["reads"]) == ("complaint", "C-7", 0)
    assert "<audio" in said
    assert "complaint (<bdi>C-7" in said.replace("</bdi> (", " (").replace("<bdi>complaint", "complaint")


async def test_a_listen_that_can_not_be_written_down_plays_nothing(http, stage, monkeypatch):
    async def fails(*_, **__):
        raise RuntimeError("no database")

    monkeypatch.setattr(stage.desk, "record", fails)
    assert (await listened(http))[0] == 500
    assert stage.calls.grants.of_call("one", "hq", "one") is None


def media_address(said):
    return re.search(r'src="(/media/[^"]+\.wav)"', said)[1]


async def test_media_answer_ranges_and_head_with_the_true_length(http):
    address = media_address((await listened(http))[1])
    data = wav(10)
    async with http.head(address) as head:
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(data)))
        assert head.headers["Content-Type"] == "audio/wav"
        assert head.headers["Accept-Ranges"] == "bytes"
    for asked, status, first, last in (
        ("bytes=0-", 206, 0, len(data) - 1),
        ("bytes=100-199", 206, 100, 199),
        ("bytes=-50", 206, len(data) - 50, len(data) - 1),
        (f"bytes={len(data)}-", 416, None, None),
    ):
        async with http.get(address, headers={"Range": asked}) as part:
            assert part.status == status
            if status == 206:
                assert part.headers["Content-Range"] == f"bytes {first}-{last}/{len(data)}"
                assert await part.read() == data[first : last + 1]
    async with http.get(address) as whole:
        assert await whole.read() == data


async def test_ranges_of_one_call_have_one_etag(http):
    address = media_address((await listened(http))[1])
    tags = set()
    for _ in range(3):
        async with http.get(address, headers={"Range": "bytes=0-9"}) as part:
            tags.add(part.headers["ETag"])
    assert len(tags) == 1


async def test_a_media_address_is_good_for_its_own_log_in_alone(http):
    address = media_address((await listened(http))[1])
    assert (await page(http, address.replace(".wav", ".svg")))[0] == 200
    assert (await page(http, address, cookies={"session": "another"}))[0] == 404
    grant, name = address.split("/")[2:]
    assert (await page(http, f"/media/{grant}x/{name}"))[0] == 404
    assert (await page(http, f"/media/{grant}/{'0' * 64}.wav"))[0] == 404


async def test_a_media_address_ends(http, monkeypatch):
    from archiver.web import pages_call

    address = media_address((await listened(http))[1])
    later = pages_call.time.monotonic() + 900 + 2 * 10 + 1
    monkeypatch.setattr(pages_call.time, "monotonic", lambda: later)
    assert (await page(http, address))[0] == 404
    assert "<audio" not in (await page(http, "/calls/hq/one"))[1]


async def test_a_download_is_the_archived_bytes_written_down_first(http, stage):
    media_id = stage.desk.calls["one"]["media"][0]["media_id"]
    async with http.post("/calls/hq/one/download", data={"media_id": media_id, "reason": "court"}) as answer:
        assert await answer.read() == wav(10)
        assert re.fullmatch(
            r'attachment; filename="20240517T114532Z-[0-9a-f]{12}\.wav"', answer.headers["Content-Disposition"]
        )
    assert stage.desk.events[-1]["action"] == "download"
    async with http.post("/calls/hq/one/download", data={"media_id": media_id}) as answer:
        assert answer.status == 422


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("pending", "not archived yet. the recorder is away"),
        ("failed", "could not be archived"),
        ("gone", "it was deleted"),
        ("empty", "no sound for it"),
    ],
)
async def test_what_can_not_be_heard_says_why_in_place_of_a_dead_player(http, stage, state, said):
    silent = medium(b"", "wav", state=state, error="the recorder is away", copies=[], sha256=None)
    stage.desk.add(call("silent", silent, state=state))
    _, shown = await listened(http, "/calls/hq/silent")
    assert said in shown
    assert "<audio" not in shown


async def test_bytes_that_no_store_has_as_they_were_say_so(http, stage):
    document = call("spoilt", medium(b"other bytes", "wav"))
    stage.desk.add(document)
    stage.desk.bytes[document["media"][0]["sha256"]] = wav(1)
    shown = (await listened(http, "/calls/hq/spoilt"))[1]
    assert "can&#39;t be had just now: store main: the bytes are not those that were archived" in shown


HOSTILE = "<script>alert(1)</script>\u202egnp.exe\x07&\"'"


async def test_hostile_text_shows_as_text(http, stage):
    stage.desk.add(
        call(
            "bad</a>/../x",
            caller=HOSTILE,
            agent=HOSTILE,
            queue=HOSTILE,
            parties=[dict.fromkeys(("number", "name", "user", "role"), HOSTILE)],
            events=[{"at": "nonsense", "event": HOSTILE, "party": HOSTILE}],
            attributes={HOSTILE: HOSTILE},
            raw={"a": HOSTILE},
        )
    )
    for path in ("/?number=", "/calls/hq/bad%3C%2Fa%3E%2F..%2Fx", "/audit"):
        status, shown = await page(http, path)
        assert status == 200
        assert "<script>alert" not in shown
        assert "\u202e" not in shown
        assert "\x07" not in shown
    assert '/calls/hq/bad%3C%2Fa%3E%2F..%2Fx"' in (await page(http, "/"))[1]


async def test_pages_carry_nothing_inline(http):
    await listened(http)
    for path in ("/", "/calls/hq/one", "/audit", "/tokens", "/me", "/login", "/nothing"):
        async with http.get(path) as answer:
            assert answer.headers["Content-Security-Policy"] == CSP
            shown = await answer.text()
        assert not re.search(r"<[^>]+\s(style|on\w+)=", shown), path
        assert not re.search(r"<script(?![^>]*\ssrc=)", shown), path
        assert "<style" not in shown


async def test_pages_speak_german_where_that_is_wanted(http):
    said = (await page(http, "/", headers={"Accept-Language": "de-AT,de;q=0.9,en;q=0.8"}))[1]
    assert '<html lang="de"' in said
    assert "Anruf finden" in said
    assert "Find a call" in (await page(http, "/", headers={"Accept-Language": "de"}, cookies={"lang": "en"}))[1]


def texts() -> set[str]:
    """Every text that templates and modules mark for translation."""
    found = []
    for template in TEMPLATES:
        reader = Environment(extensions=["jinja2.ext.i18n"], autoescape=True)
        found += [said for _, _, said in reader.extract_translations(template.read_text("utf-8"))]
    for module in pages_text.FOLDER.glob("pages*.py"):
        found += [said for _, said, _, _ in extract("python", BytesIO(module.read_bytes()), keywords={"N_": None})]
    return {said if isinstance(said, str) else said[0] for said in found}


def test_every_text_is_there_in_german_with_the_same_places():
    german = pages_text.translations("de")
    for text in texts():
        said = german.gettext(text)
        assert said != text or text in SAME, text
        assert sorted(re.findall(r"%\(\w+\)s", said)) == sorted(re.findall(r"%\(\w+\)s", text)), text


#: Words that are the same in both.
SAME = {"Name", "Agent", "Medium", "Position", "Compliance", "compliance"}


def test_german_says_nothing_that_is_not_asked_for():
    with (pages_text.FOLDER / "locale" / "de.po").open("rb") as file:
        assert {message.id for message in read_po(file) if message.id} == texts()


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [("de-DE,de;q=0.9", "de"), ("fr,de;q=0.3,en;q=0.5", "en"), ("", "en"), ("de;q=x", "en"), ("*", "en")],
)
def test_the_language_is_the_first_that_there_is(accepted, chosen):
    assert pages_text.chosen_language(None, accepted) == chosen


def test_an_hour_that_exists_twice_is_told_apart():
    first, second = (
        str(pages_text.when(at, "Europe/Berlin")) for at in ("2024-10-27T00:30:00Z", "2024-10-27T01:30:00Z")
    )
    assert "02:30:00 +02:00" in first
    assert "02:30:00 +01:00" in second


def test_a_file_beside_the_pages_is_the_only_one_that_is_served():
    assert pages._names() == {"app.js", "style.css", "icon.svg"}
