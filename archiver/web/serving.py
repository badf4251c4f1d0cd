"""`archiver serve`: the face over an archive, until it is ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from aiohttp import web

from ..catalog.catalog import Catalog, Need
from ..catalog.embedded import Embedded
from ..catalog.face import FaceCatalog
from ..errors import ConfigError
from ..ports import Decrypts
from ..service.wiring import make_feed, open_outlets
from ..settings.config import Config
from .application import Face
from .desk import ArchiveDesk, accounts_file
from .playback import Playback

log = structlog.get_logger()

#: Connections to the database.
CONNECTIONS = 8


@asynccontextmanager
async def opened(config: Config, listen: tuple[str, int]) -> AsyncIterator[Face]:
    """The face with its database and stores; recorders are never asked. Raises CatalogDown, ConfigError, OSError."""
    async with AsyncExitStack() as stack:
        url = config.database_url.get_secret_value()
        if url == "embedded":
            database = Embedded(config.data_dir / "postgres")
            stack.push_async_callback(database.stop)
            url = await database.start()
        # The tables may be an older version's still.
        first = await Catalog.open(url, size=1)
        try:
            await first.ready(Need.MIGRATED)
        finally:
            await first.close()
        catalog = await FaceCatalog.open(url, size=CONNECTIONS)
        stack.push_async_callback(catalog.close)
        outlets = open_outlets(config, stack, catalog)
        sources = {
            name: make_feed(source, outlets, None, stack).source
            for name, source in config.sources.items()
            if issubclass(source.cls, Decrypts)
        }
        playback = Playback(config.data_dir / "web", config.web.cache, reserve=config.reserve)
        await playback.open()
        stack.push_async_callback(playback.close)
        stores = {name: outlet.store for name, outlet in outlets.items()}
        face = Face(ArchiveDesk(config, catalog, stores, sources, accounts_file(config)), playback, listen)
        stack.callback(face.calls.grants.close)
        yield face


@asynccontextmanager
async def served(config: Config, listen: tuple[str, int] | None = None) -> AsyncIterator[str]:
    """The same at its address, which is yielded (``http://127.0.0.1:8411``)."""
    where = listen or config.web.listen
    if where is None:
        raise ConfigError([f'{config.path.name}: web.listen: is empty; say where, like listen = "127.0.0.1:8411"'])
    async with opened(config, where) as face:
        runner = web.AppRunner(face.application(), access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, *where).start()
            host, port = runner.addresses[0][:2]
            face.listening(port)
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("face.listening", address=address, url=config.web.url or address)
            yield config.web.url or address
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await runner.cleanup()


async def serve(config: Config, listen: tuple[str, int] | None, tell: Callable[[str], None]) -> None:
    """Until cancelled; ``tell`` hears the address."""
    async with served(config, listen) as address:
        tell(address)
        await asyncio.Event().wait()
