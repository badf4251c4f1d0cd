"""Debian's Firefox for tests of playback, by WebDriver BiDi, which it speaks itself; without a driver beside it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

_PREFERENCES = {
    "media.autoplay.default": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "app.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
}


class Firefox:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._tab = ""

    async def ask(self, method: str, **params: Any) -> Any:
        """What it answers to a command. Raises RuntimeError where that is an error."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(120):
            while True:
                told = await self._socket.receive_json()
                if told.get("id") == number:
                    if told["type"] == "error":
                        raise RuntimeError(told)
                    return told["result"]

    async def begin(self) -> None:
        await self.ask("session.new", capabilities={})
        self._tab = (await self.ask("browsingContext.getTree"))["contexts"][0]["context"]

    async def goto(self, url: str) -> None:
        await self.ask("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    async def evaluate(self, function: str) -> Any:
        """What an async function of JavaScript returns, through JSON."""
        told = await self.ask(
            "script.callFunction",
            functionDeclaration=f"async () => JSON.stringify(await ({function})())",
            target={"context": self._tab},
            awaitPromise=True,
        )
        if told["type"] != "success":
            raise RuntimeError(told["exceptionDetails"]["text"])
        return json.loads(told["result"].get("value", "null"))


@asynccontextmanager
async def firefox(folder: Path) -> AsyncIterator[Firefox]:
    """A fresh profile in the folder; gone at the end, with all its processes."""
    program = shutil.which("firefox-esr")
    assert program, "there is no firefox-esr; sh tests/need.sh installs it"
    profile = folder / "profile"
    profile.mkdir()
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in _PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    process = await asyncio.create_subprocess_exec(
        program, "--headless", "--no-remote", "--remote-debugging-port", "0", "--profile", str(profile), "about:blank",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        start_new_session=True, env={**os.environ, "HOME": str(folder), "MOZ_DISABLE_CONTENT_SANDBOX": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    drained = None
    try:
        async with asyncio.timeout(120):
            while not (found := re.search(rb"ws://\S+", line := await process.stderr.readline())):
                assert line, "it ended at once"
        drained = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as session, session.ws_connect(found[0].decode() + "/session") as socket:
            tab = Firefox(socket)
            await tab.begin()
            yield tab
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if drained is not None:
            await drained
