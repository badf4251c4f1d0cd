"""What XiVO's call history adds to a search row: names of both parties, and how long the caller waited."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from ..errors import BadData, NotReady
from ..model import Recording
from ..wire.recorder import Client
from .kit.localtime import utc
from .kit.rows import EPOCH, UNREADABLE, full_name, text
from .xivo_rows import numbered

#: How long an answer serves the calls that ended before it.
log = structlog.get_logger()

_KEPT = timedelta(minutes=10)
_SECOND = timedelta(seconds=1)


class Once:
    """A log that says each event once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._said: set[str] = set()

    def __call__(self, event: str, **facts: Any) -> None:
        if event not in self._said:
            self._said.add(event)
            log.warning(event, source=self._source, **facts)


class History:
    """The history of agents and customers. ``warn`` is told the event of a history that can't be read."""

    def __init__(
        self, http: Client, path: str, zone: ZoneInfo, *, days: int, size: int, warn: Callable[..., None]
    ) -> None:
        self._http = http
        self._path = path
        self._zone = zone
        self._days = days
        self._size = size
        self._warn = warn
        self._heard: dict[tuple[str, str], tuple[datetime, list[dict[str, Any]]]] = {}

    async def add_to(self, call: Recording) -> Recording:
        """The call with what its rows in either history tell; as it was where there are none."""
        number = numbered(call.agent)[1]
        told: dict[str, dict[str, Any] | None] = {}
        if number and datetime.now(UTC) - call.started_at < timedelta(days=self._days):
            # Never days and size at once: the vendor's page says that it is an error.
            rows = await self._ask(call, "agent", {"agentNum": number}, params={"days": self._days})
            ends = call.caller, call.callee
            told["agent"] = next((r for r in rows if (text(r.get("src_num")), text(r.get("dst_num"))) == ends), None)
        if call.queue and call.caller:
            by = {"field": "src_num", "operator": "=", "value": call.caller}
            rows = await self._ask(call, "customer", {"filters": [by], "size": self._size})
            told["customer"] = next((r for r in rows if text(r.get("agent_num")) == number), None)
        held = {of: row for of, row in told.items() if row}
        if not held:
            return call
        agent = held.get("agent", {})
        names = {
            role: full_name(agent, f"{end}_firstname", f"{end}_lastname")
            for role, end in (("caller", "src"), ("callee", "dst"))
        }
        waited = text(held.get("customer", {}).get("wait_time"))
        return replace(
            call,
            parties=tuple(replace(p, name=p.name or names.get(p.role or "")) for p in call.parties),
            attributes={**call.attributes, **({"wait_time": waited} if waited else {})},
            raw={**call.raw, "history": held},
        )

    async def _ask(self, call: Recording, of: str, asked: dict[str, Any], **how: Any) -> list[dict[str, Any]]:
        """The rows that begin when the call does, to the second."""
        now = datetime.now(UTC)
        key = of, json.dumps(asked)
        when, rows = self._heard.get(key, (EPOCH, []))
        if when < (call.ended_at or now) or now - when > _KEPT:
            headers = {"Accept": "application/json"}
            try:
                answer = await self._http.json("POST", f"{self._path}/{of}", json=asked, headers=headers, **how)
            except (NotReady, BadData) as error:
                self._warn("source.history_unreadable", of=of, error=type(error).__name__)
                return []
            listed = answer.get("list") if isinstance(answer, dict) else answer
            rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
            self._heard = {k: heard for k, heard in self._heard.items() if now - heard[0] < _KEPT}
            self._heard[key] = now, rows
        return [row for row in rows if self._begins_with(row, call)]

    def _begins_with(self, row: Mapping[str, Any], call: Recording) -> bool:
        try:
            return abs(utc(row.get("start"), self._zone, call.started_at)[0] - call.started_at) <= _SECOND
        except UNREADABLE:
            return False
