"""OpenTelemetry traces, as a collector gets them: a real OTLP receiver, a real archive."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import SecretStr
from structlog.testing import capture_logs

from archiver.common import traces
from archiver.common.log import add_secrets
from archiver.common.traces import exporting, span
from archiver.errors import ConfigError, TryAgain
from archiver.service import once, wiring
from archiver.settings.config import load
from tests.engine import Rig, a_recorder, archiving, assert_archived, eventually
from tests.servers import free_ports


class Collector:
    """Takes what is exported."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[bytes] = []

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        return web.Response(body=b"", content_type="application/x-protobuf")

    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        for group in (group for request in requests for group in request.resource_spans):
            assert ("service.name", "archiver") in {(a.key, a.value.string_value) for a in group.resource.attributes}
        return [s for r in requests for g in r.resource_spans for scope in g.scope_spans for s in scope.spans]

    def by_name(self) -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = defaultdict(list)
        for one in self.spans():
            found[one.name].append(one)
        return found


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    # The machine may be busy, and all is to arrive.
    monkeypatch.setattr(traces, "PATIENCE", 60.0)
    there = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", there.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    there.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield there
    await runner.cleanup()


def told(one: Span) -> dict[str, Any]:
    return {a.key.removeprefix("archiver."): getattr(a.value, a.value.WhichOneof("value")) for a in one.attributes}


def below(parent: Span, spans: Sequence[Span]) -> list[Span]:
    return [one for one in spans if (one.parent_span_id, one.trace_id) == (parent.span_id, parent.trace_id)]


@asynccontextmanager
async def tracing(tmp_path: Any, database: str, clock: Any, url: str) -> AsyncIterator[Rig]:
    """An archive into two stores, of three calls, whose config names the endpoint."""
    stores = {name: {"kind": "file", "path": str(tmp_path / name)} for name in ("disk", "spare")}
    how = {"stores": stores, "clock": clock, "top": {"traces": {"endpoint": url}}}
    async with archiving(tmp_path, database, a_recorder(calls=3), **how) as rig:
        yield rig


async def passed(rig: Rig) -> None:
    """One pass, with the archive opened as the commands open it."""
    async with wiring.opened(rig.archive.config) as archive:
        archive.catalog.clock = rig.catalog.clock
        await once.run_once(archive, ["pbx"])


async def test_a_pass_is_told_listing_by_listing_and_recording_by_recording(tmp_path, database, clock, collector):
    async with tracing(tmp_path, database, clock, collector.url) as rig:
        await passed(rig)
        assert await assert_archived(rig) == 3
        truth = rig.sim.truth()
    spans, by_name = collector.spans(), collector.by_name()
    assert set(by_name) == {"poll", "list", "transfer", "download", "put", "commit"}
    (poll,) = by_name["poll"]
    assert (told(poll)["source"], told(poll)["outcome"], told(poll)["listed"]) == ("pbx", "done", 3)
    assert by_name["list"] == below(poll, spans)
    assert sum(told(one)["listed"] for one in by_name["list"]) >= 3
    sizes = {recording_id: len(audio) for recording_id, e in truth.items() for audio in e.audio.values()}
    assert {told(one)["recording_id"]: told(one)["size"] for one in by_name["transfer"]} == sizes
    for transfer in by_name["transfer"]:
        about = told(transfer)
        assert (about["source"], about["outcome"]) == ("pbx", "stored")
        parts = below(transfer, spans)
        assert sorted(one.name for one in parts) == ["download", "put", "put"]
        assert {told(one)["size"] for one in parts} == {about["size"]}
        assert {told(one).get("store") for one in parts} == {None, "disk", "spare"}
    assert sum(told(one)["media"] for one in by_name["commit"]) == 3
    sent = b"".join(collector.bodies)
    numbers = {n for e in truth.values() for n in (e.fields.get("caller"), e.fields.get("callee")) if n}
    assert len(numbers) > 2
    for hidden in (*numbers, rig.sim.token, rig.sim.base_url):
        assert hidden.encode() not in sent


async def test_a_failure_is_told_by_its_class_and_no_text_of_others_is_sent(collector):
    add_secrets(["hunter2-token"])
    async with exporting(SecretStr(collector.url)):
        with suppress(TryAgain), span("transfer", source="hq", recording_id="+14155551234 hunter2-token /a?b=c"):
            with span("put", store="disk"):
                pass
            raise TryAgain("GET /rest?token=hunter2-token of +14155551234 failed")
    put, transfer = collector.spans()
    assert (transfer.status.code, put.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)
    assert told(transfer) == {"source": "hq", "recording_id": "+… *** /a?…", "error.type": "TryAgain"}
    assert (transfer.status.message, list(transfer.events)) == ("", [])
    for hidden in (b"hunter2", b"4155551234", b"b=c", b"rest"):
        assert hidden not in b"".join(collector.bodies)


async def test_an_endpoint_that_is_down_costs_one_line_and_no_recording(tmp_path, database, clock, caplog):
    url = f"http://127.0.0.1:{free_ports(1)[0]}/v1/traces?token=hunter2-token"
    with capture_logs() as logs:
        async with tracing(tmp_path, database, clock, url) as rig:
            await passed(rig)
            assert await assert_archived(rig) == 3

        async def said() -> list[Any]:
            return [line for line in logs if line["event"] == "traces.failed"]

        # All alike, so that the log tells the first and counts the others.
        assert {(line["log_level"], line["error"]) for line in await eventually(said)} == {
            ("warning", "the endpoint does not take them")
        }
    assert "hunter2" not in f"{logs}{caplog.text}"
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_an_endpoint_that_hangs_holds_up_no_end(monkeypatch):
    asked, ended = asyncio.Event(), asyncio.Event()

    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    monkeypatch.setattr(traces, "PATIENCE", 0.1)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "600")
    async with asyncio.timeout(None) as limit:
        async with exporting(SecretStr(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces")):
            with span("commit", media=1):
                pass
            await asked.wait()
            limit.reschedule(asyncio.get_running_loop().time() + 20)
    ended.set()
    server.close()
    await server.wait_closed()


CONFIG = '[stores.disk]\nkind="file"\npath="c"\n[sources.hq]\nkind="chronicall"\nbase_url="http://h"\ntoken="t0ken"\n'


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "archiver.toml"
    path.write_text('[traces]\nendpoint = "http://127.0.0.1:4318/v1/traces"\n' + CONFIG)
    endpoint = load(path).traces_endpoint
    assert endpoint is not None
    assert endpoint.get_secret_value().endswith("/v1/traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem == (
        f"archiver.toml: traces.endpoint: needs the extra archiver[traces]: {sys.executable} -m pip install"
        " opentelemetry-exporter-otlp-proto-http opentelemetry-sdk"
    )
    path.write_text(CONFIG)
    assert load(path).traces_endpoint is None
