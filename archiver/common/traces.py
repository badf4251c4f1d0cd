"""OpenTelemetry traces, where the config names an endpoint; the SDK is imported only then.

Spans hold names from the config, ids, sizes and what became of it: no text that a recorder or a store wrote, and of an
exception its class.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, TypeAlias

import structlog
from pydantic import SecretStr

from .. import __version__
from .log import private

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Tracer

__all__ = ["exporting", "span"]

log = structlog.get_logger()

#: Takes attributes of a span that are known only later.
Tell: TypeAlias = Callable[..., None]
#: How long an end waits for what is not sent yet, in seconds.
PATIENCE = 1.0

_tracer: Tracer | None = None


def span(name: str, **about: str | int) -> AbstractContextManager[Tell]:
    """Tells of one piece of work, as part of what it is called in; costs next to nothing where nobody listens."""
    return _NOBODY if _tracer is None else _span(_tracer, name, about)


_NOBODY: AbstractContextManager[Tell] = nullcontext(lambda **_: None)


@contextmanager
def _span(tracer: Tracer, name: str, about: dict[str, str | int]) -> Iterator[Tell]:
    from opentelemetry.trace import StatusCode

    # Of themselves exceptions would be told with their text.
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as current:

        def tell(**more: str | int) -> None:
            for key, value in more.items():
                current.set_attribute(f"archiver.{key}", private(value) if isinstance(value, str) else value)

        tell(**about)
        try:
            yield tell
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(StatusCode.ERROR)
            raise


@asynccontextmanager
async def exporting(endpoint: SecretStr | None) -> AsyncIterator[None]:
    """Meanwhile spans are sent there (OTLP over HTTP) by a thread; what it does not take is dropped."""
    global _tracer
    if endpoint is None:
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # It tells of each try, with the address; we tell once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = _telling(OTLPSpanExporter(endpoint.get_secret_value()))
    resource = Resource.create({"service.name": "archiver", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("archiver", __version__)
    try:
        yield
    finally:
        _tracer = None
        await _end(provider.shutdown)
        exporter.shutdown()


def _telling(exporter: SpanExporter) -> SpanExporter:
    """The same, with a line in the log for what is not taken."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Telling(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                log.warning("traces.failed", error="the endpoint does not take them", spans=len(spans))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Telling()


async def _end(shutdown: Callable[[], None]) -> None:
    """In a thread of its own, which nothing waits for longer than that: it sends what is left."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        shutdown()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=work, daemon=True, name="traces").start()
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
