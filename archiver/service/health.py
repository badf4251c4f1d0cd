"""``/healthz`` (alive), ``/readyz`` (can work), ``/metrics`` (Prometheus): read-only, without any content of a call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog
from aiohttp import web

from ..common.words import reason_of
from . import metrics
from .conditions import unready
from .survey import Surveyor

log = structlog.get_logger()

#: A port that is taken is tried again so often, in seconds.
AGAIN = 5.0


class Server:
    """Serves one daemon's health until it is cancelled."""

    def __init__(
        self, listen: tuple[str, int], surveyor: Surveyor, more: Callable[[], Mapping[str, float | None]]
    ) -> None:
        self._listen = listen
        self._surveyor = surveyor
        self._more = more
        #: Where it really listens, once it does.
        self.address: tuple[str, int] | None = None

    async def serve(self) -> None:
        """Until cancelled. Where the address is taken it says so once, and tries again: archiving goes on without."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await self._open(runner)
            await asyncio.Event().wait()
        finally:
            self.address = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await runner.cleanup()

    async def _open(self, runner: web.AppRunner) -> None:
        host, port = self._listen
        said = False
        while True:
            try:
                await web.TCPSite(runner, host, port).start()
            except OSError as error:
                if not said:
                    why = reason_of(error).rpartition(": ")[2]
                    log.error(
                        "http.failed",
                        listen=f"{host}:{port}",
                        error=f"no health and no metrics: can't listen ({why}); change [http] listen,"
                        ' or end what uses the port; "" serves nothing',
                    )
                said = True
                await asyncio.sleep(AGAIN)
            else:
                name = runner.addresses[0]
                self.address = str(name[0]), int(name[1])
                log.info("http.listening", address=f"{self.address[0]}:{self.address[1]}")
                return

    async def _healthz(self, _: web.Request) -> web.Response:
        """Is anything stuck? Asks nobody."""
        stuck = sorted(self._surveyor.stuck())
        return web.json_response({"alive": not stuck, "stuck": stuck}, status=503 if stuck else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        alerts = self._surveyor.archive.config.alerts
        because = list(unready(await self._surveyor.look(), alerts))
        return web.json_response({"ready": not because, "because": because}, status=503 if because else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        survey = await self._surveyor.look()
        archive = self._surveyor.archive
        told = metrics.families(survey, archive.config.alerts, self._surveyor.engine, archive.outlets, self._more())
        page, content_type = metrics.exposition(told, request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": content_type})
