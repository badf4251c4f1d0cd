"""The pages in a real browser: every coding is heard, the keyboard suffices, axe and the CSP find nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import axe_playwright_python
import pytest

from tests.audio.test_codings import ALL, LENGTHS, RATE, made
from tests.web.browser import browsing
from tests.web.firefox import firefox
from tests.web.stage import call, medium, staged
from tests.web.test_playback import wav

__all__ = ["made"]

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
SAMPLES = LENGTHS[1]
#: What the recorders and Asterisk write, each container and coding once, and all that is played as it is.
HEARD = [
    *(f"sox-{name}.wav" for name in ("u8", "s16", "ulaw", "alaw", "gsm", "ima")),
    *(f"ffmpeg-{name}.wav" for name in ("s24", "f32", "ulaw", "gsm", "ms", "g722", "g723", "g726-32", "rf64", "mp3")),
    *(f"others-{name}.mp3" for name in ("cbr", "vbr", "44100", "untold")),
    *(f"ffmpeg-{name}" for name in ("flac.flac", "vorbis.ogg", "opus.ogg", "aac.m4a", "opus.webm")),
    *("sox-gsm.gsm", "sox-ulaw.au", "sox-amr.amr-nb", "others-speex.spx", "others-dtx.spx", "others-opus.opus"),
]


@pytest.fixture
async def stage(tmp_path):
    async with staged(tmp_path) as it:
        yield it


async def listen(page, url, path="/calls/hq/one"):
    await page.goto(url + path)
    await page.get_by_label("Reason (required)").fill("complaint")
    await page.get_by_role("button", name="Listen").click()
    await page.locator("audio").first.wait_for()


async def until(page, condition):
    """Playwright's own waiting evaluates texts in the page, which its content security policy forbids."""
    end = time.monotonic() + 25
    while not await page.evaluate(condition):
        assert time.monotonic() < end, condition
        await asyncio.sleep(0.05)


PLAY = """async () => {
  const until = async (true_, what) => {
    const end = performance.now() + 40000;
    while (!true_()) {
      if (performance.now() > end) throw new Error("waited too long until " + what);
      await new Promise(ok => setTimeout(ok, 20));
    }
  };
  const heard = async (box) => {
    const sound = box.querySelector("audio");
    sound.muted = true;
    await until(() => sound.readyState >= 1 || sound.error, "its length is known");
    if (sound.error) return {error: sound.error.message};
    const duration = sound.duration;
    await sound.play();
    await until(() => sound.currentTime > 0.15, "it plays");
    sound.currentTime = duration * 0.8;
    await until(() => !sound.seeking, "it has sought");
    const sought = sound.currentTime;
    await until(() => sound.currentTime > duration * 0.8 + 0.1 || sound.ended, "it goes on");
    sound.pause();
    return {duration, sought, at: sound.currentTime, told: Number(box.dataset.duration), error: sound.error};
  };
  return Promise.all([...document.querySelectorAll(".player")].map(heard));
}"""


def staged_codings(stage, made):
    """One call with a medium of each coding; returns their true lengths in seconds."""
    cases, media, truths = dict(ALL), [], []
    for name in HEARD:
        data = (made / f"{SAMPLES}-{name}").read_bytes()
        stage.desk.add(call("one"), data)
        media.append(medium(data, cases[name].ext))
        truths.append(cases[name].held(SAMPLES) / RATE)
    stage.desk.calls["one"] = call("one", *media)
    return truths


def all_heard(stage, truths, results):
    for name, truth, heard in zip(HEARD, truths, results, strict=True):
        assert heard["error"] is None, (name, heard)
        assert abs(heard["duration"] - truth) <= 0.05, (name, heard, truth)
        assert abs(heard["told"] - truth) <= 0.05, (name, heard, truth)
        assert heard["sought"] >= heard["duration"] * 0.8 - 0.05, (name, heard)
    statuses = {status for method, path, status in stage.seen if path.endswith((".wav", ".mp3"))}
    assert statuses == {206}


async def test_every_coding_is_heard_in_chromium_with_its_true_length_and_can_be_sought(stage, made):
    truths = staged_codings(stage, made)
    async with browsing() as page:
        await page.goto(f"{stage.url}/calls/hq/one")
        await page.get_by_label("Reason (required)").fill("complaint")
        await page.get_by_role("button", name="Listen").click()
        while await page.locator(".player").count() < len(truths):
            # Some are made ready still.
            await page.wait_for_timeout(500)
            await page.reload()
        results = await page.evaluate(PLAY)
    all_heard(stage, truths, results)


async def test_every_coding_is_heard_in_firefox_with_its_true_length_and_can_be_sought(stage, made, tmp_path):
    truths = staged_codings(stage, made)
    async with aiohttp.ClientSession(stage.url) as http:
        # Made ready before: what is tested here is Firefox.
        grant = stage.calls.grants.give("one", stage.desk.calls["one"])
        for sha256 in grant.media:
            async with http.get(f"/media/{grant.token}/{sha256}.svg") as drawn:
                assert drawn.status == 200
    async with firefox(tmp_path) as tab:
        await tab.goto(f"{stage.url}/calls/hq/one")
        results = await tab.evaluate(PLAY)
    all_heard(stage, truths, results)


async def test_the_keyboard_alone_finds_a_call_and_plays_it(stage):
    data = wav(30, channels=2)
    stage.desk.add(call("one", medium(data, "wav")), data)
    async with browsing() as page:
        await page.goto(stage.url)

        async def tab_to(what, most=40):
            for _ in range(most):
                await page.keyboard.press("Tab")
                if await page.evaluate("what => document.activeElement.matches(what)", what):
                    return
            raise AssertionError(f"{what} can't be reached by the Tab key")

        await tab_to("#number")
        await page.keyboard.type("650 466 8888")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**number=650*")
        await tab_to(".results a")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/calls/hq/one")
        await tab_to("#reason")
        await page.keyboard.type("complaint")
        await page.keyboard.press("Enter")
        await page.locator("audio").wait_for()
        await until(page, "document.querySelector('audio').readyState >= 1")
        await tab_to(".seek")
        await page.keyboard.press("Space")
        await until(page, "document.querySelector('audio').currentTime > 0.1")
        await page.keyboard.press("5")
        await until(page, "document.querySelector('audio').currentTime > 14.9")
        assert "15 s" in await page.locator(".seek").get_attribute("aria-valuetext")
        await page.keyboard.press("ArrowRight")
        await until(page, "document.querySelector('audio').currentTime > 19.9")
        await page.keyboard.press(">")
        assert await page.evaluate("document.querySelector('audio').playbackRate") == 1.25
        await page.keyboard.press("c")
        assert await page.locator(".channel").input_value() == "0"
        await page.keyboard.press("Space")
        assert await page.evaluate("document.querySelector('audio').paused")


async def test_silence_is_skipped_where_that_is_wanted(stage):
    data = wav(40, loud=lambda n: 100 if 1 * 8000 <= n < 36 * 8000 else 9000)
    stage.desk.add(call("one", medium(data, "wav")), data)
    async with browsing() as page:
        await listen(page, stage.url)
        await page.get_by_label("Skip silence").check()
        await page.evaluate("document.querySelector('audio').play()")
        # Played to there it would take half a minute; the test's own time-out is not the measure.
        await until(page, "document.querySelector('audio').currentTime > 35")


LOUD = """async (which) => {
  const select = document.querySelector(".channel"), sound = document.querySelector("audio");
  window.kept ??= AudioNode.prototype.connect;
  window.graph = [];
  AudioNode.prototype.connect = function (to, output) {
    window.graph.push([this.constructor.name, output ?? null]);
    return window.kept.call(this, to, ...(output === undefined ? [] : [output]));
  };
  select.value = which;
  select.dispatchEvent(new Event("change"));
  return window.graph;
}"""


async def test_the_two_sides_can_be_heard_apart(stage):
    data = wav(5, channels=2)
    stage.desk.add(call("one", medium(data, "wav")), data)
    async with browsing() as page:
        await listen(page, stage.url)
        assert ["ChannelSplitterNode", 0] in await page.evaluate(LOUD, "0")
        assert ["ChannelSplitterNode", 1] in await page.evaluate(LOUD, "1")
        assert await page.evaluate(LOUD, "both") == [["MediaElementAudioSourceNode", None]]
        await page.evaluate("document.querySelector('audio').play()")
        await until(page, "document.querySelector('audio').currentTime > 0.2")


VIEWS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
}


@pytest.mark.parametrize("view", VIEWS)
async def test_axe_finds_nothing_serious_and_nothing_runs_out_of_the_page(stage, view):
    data = wav(10, channels=2)
    stage.desk.add(call("one", medium(data, "wav"), raw={"a": "x" * 3000}), data)
    async with browsing(bypass_csp=False, **VIEWS[view]) as page:
        await listen(page, stage.url)
        for path in ("/login", "/?number=650", "/calls/hq/one", "/audit", "/tokens", "/me", "/nothing"):
            if path == "/nothing":
                continue
            await page.goto(stage.url + path)
            # By the driver's own channel, which the content security policy does not concern.
            await page.evaluate(AXE)
            found = await page.evaluate("axe.run()")
            bad = [
                (v["id"], [n["html"][:200] for n in v["nodes"]])
                for v in found["violations"]
                if v["impact"] in ("serious", "critical")
            ]
            assert not bad, (path, bad)
            wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, path


async def test_a_page_in_print_has_the_facts_and_no_controls(stage):
    data = wav(10)
    stage.desk.add(call("one", medium(data, "wav")), data)
    async with browsing() as page:
        await listen(page, stage.url)
        await page.emulate_media(media="print")
        for what in ("nav", "audio", ".controls", "form"):
            assert not await page.locator(what).first.is_visible(), what
        for what in ("#facts", ".id", ".wave img", ".print-only"):
            assert await page.locator(what).first.is_visible(), what


async def test_without_script_a_call_is_found_and_the_browsers_own_player_is_there(stage):
    data = wav(10)
    stage.desk.add(call("one", medium(data, "wav")), data)
    async with browsing(java_script_enabled=False) as page:
        await page.goto(stage.url)
        await page.get_by_label("Number").fill("650 466 8888")
        await page.get_by_role("button", name="Search", exact=True).click()
        await page.locator(".results a").first.click()
        await listen(page, stage.url)
        assert await page.locator("audio[controls]").is_visible()
        assert not await page.locator(".controls").is_visible()


async def test_hostile_text_of_a_vendor_runs_nothing(stage):
    bad = '"><img src=x onerror="document.title=1"><script>document.title=1</script>'
    party = dict.fromkeys(("number", "name", "user", "role"), bad)
    stage.desk.add(call("one", caller=bad, agent=bad, raw={bad: bad}, parties=[party]))
    async with browsing() as page:
        for path in ("/", "/calls/hq/one"):
            await page.goto(stage.url + path)
            assert "Call archive" in await page.title()
            assert await page.locator("img[src=x]").count() == 0
