"""A proxy before a store's server: it answers as told where a request fits, and hands on all others as they came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL


@dataclass(slots=True)
class Refusing:
    """``refuses``: by a part of the raw path and query, what such requests get."""

    server: str
    url: str = ""
    refuses: dict[str, tuple[set[str], int, int, str]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def refuse(
        self, part: str, *methods: str, status: int = 500, code: str = "InternalError", longer_than: int = -1
    ) -> None:
        """These methods there get a status and an S3 error code, where their body is longer."""
        self.refuses[part] = (set(methods), longer_than, status, code)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Refusing]:
        async with aiohttp.ClientSession(auto_decompress=False) as client:

            async def answer(request: web.BaseRequest) -> web.Response:
                body = await request.read()
                for part, (methods, longest, status, code) in self.refuses.items():
                    if part in request.raw_path and request.method in methods and len(body) > longest:
                        self.refused.append((request.method, request.raw_path))
                        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message/></Error>"
                        return web.Response(status=status, text=text, content_type="application/xml")
                # The host that was signed: it goes on as it is.
                address = URL(self.server.rstrip("/") + request.raw_path, encoded=True)
                hop = {"Connection", "Transfer-Encoding", "Keep-Alive"}
                sent = {k: v for k, v in request.headers.items() if k not in hop}
                async with client.request(request.method, address, headers=sent, data=body or None) as got:
                    told = {k: v for k, v in got.headers.items() if k not in {*hop, "Date", "Server"}}
                    answered = web.Response(status=got.status, body=await got.read())
                    if request.method == "HEAD" and "Content-Length" in told:
                        answered = web.Response(status=got.status)
                    answered.headers.clear()
                    answered.headers.update(told)
                    return answered

            runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                yield self
            finally:
                await runner.cleanup()
