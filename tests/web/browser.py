"""A real browser for tests of pages: Debian's Chromium, driven by playwright; what it complains of fails the test."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Page, async_playwright

#: Milliseconds; the machine may be busy.
PATIENCE = 60_000
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
]


@asynccontextmanager
async def browsing(**how: Any) -> AsyncIterator[Page]:
    """A page of a fresh profile; ``how``: options of its context. What was on its console fails at the end."""
    program = shutil.which("chromium")
    assert program, "there is no chromium; sh tests/need.sh installs it"
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            context = await browser.new_context(locale="en-GB", timezone_id="Europe/London", **how)
            page = await context.new_page()
            page.set_default_timeout(PATIENCE)
            # Violations of the content security policy are told there.
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            yield page
        finally:
            await browser.close()
    assert not complaints
