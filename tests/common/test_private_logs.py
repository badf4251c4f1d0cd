"""A whole run at debug level, among recorders that put callers and addresses into their errors, tells neither."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from aiohttp import web

from archiver.simulators.base import Fault, Handler, Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.xivo import XivoSimulator
from tests import commands
from tests.commands import HOUR


class Gossip(Simulator):
    """Its own fault ``gossip``: an error that tells who called whom, and what was asked for."""

    async def _spoil(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        if fault.kind != "gossip":
            return await super()._spoil(fault, request, handler)
        call = self.calls[0]
        told = f"{call.caller} ({call.caller.lstrip('+')}) called {call.callee}; {request.path}?token=1&page=2"
        return web.Response(status=fault.value, text=told, reason=f"Sorry, {call.caller}")


class GossipingChronicall(Gossip, ChronicallSimulator):
    pass


class GossipingXivo(Gossip, XivoSimulator):
    pass


async def test_no_phone_number_and_no_query_string_is_logged(tmp_path, database):
    async with commands.place(tmp_path, database, log_level="debug") as place:
        await place.add("hq", GossipingChronicall())
        await place.add("paris", GossipingXivo(), timezone="Europe/Paris")
        for simulator in place.simulators.values():
            for minutes in range(3):
                simulator.add_call(datetime.now(UTC) - 2 * HOUR + timedelta(minutes=minutes), timedelta(seconds=1))
            simulator.fault("gossip", "list", value=500, times=1)
            simulator.fault("gossip", "audio", value=500, times=2)
        said = (await place.run("sync", "--wait", "5s", code=None)).err
        assert "it answered 500" in said
        assert "called" in said
        numbers = {
            number.lstrip("+")
            for simulator in place.simulators.values()
            for call in simulator.calls
            for number in (call.caller, call.callee)
            if len(number) > 6
        }
        assert len(numbers) >= 3
        assert [number for number in numbers if number in said] == []
        assert re.findall(r"\?\w+=", said) == []
