"""What `report` and `why --at` tell: what a span of time brought, and what is known of one moment of a source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..catalog.catalog import Catalog, Document
from ..model import ListingKey, utc_text
from ..settings.config import Config, SourceConfig
from . import report

#: Calls so near to the moment that is asked about are shown; people remember times roughly.
NEAR = timedelta(minutes=15)
MOST_CALLS = 50

_OF_SOURCE = ("windows", "listed", "new", "archived", "bytes", "healed", "failed", "gone", "empty", "rejected")
_OF_STORE = ("copies", "bytes", "verified", "damaged", "repaired")


async def happened(config: Config, catalog: Catalog, since: datetime, until: datetime) -> Document:
    """By source and store what came about in [since, until), and what is wrong now.

    Listed, new count recordings; archived, healed, failed, gone, empty count media; healed: archived after it failed.
    """
    sources, stores = await catalog.happened(since, until)
    now = await report.status(config, catalog)
    return {
        "since": utc_text(since),
        "until": utc_text(until),
        "sources": {
            name: {key: sources.get(name, {}).get(key, 0) for key in _OF_SOURCE}
            | {"trouble": sources.get(name, {}).get("trouble", [])}
            for name in [*config.sources, *(n for n in sources if n not in config.sources)]
        },
        "stores": {
            name: {key: stores.get(name, {}).get(key, 0) for key in _OF_STORE}
            for name in [*config.stores, *(n for n in stores if n not in config.stores)]
        },
        "problems": [problem for problem in now["problems"] if problem["level"] != "note"],
    }


async def moment(config: Config, catalog: Catalog, source: str, at: datetime, number: str | None) -> Document:
    """What is known of a moment: when its window was listed, which calls were told, which of them fit, what is unknown.

    A call fits that ran at the moment and, where a number is given, has it as caller, callee or party.
    """
    row = next((row for row in await catalog.sources([source])), None)
    here = config.sources.get(source)
    longest = here.options.longest_call if here is not None else timedelta(hours=8)
    windows, ids, rejected = await catalog.around(source, at, NEAR, longest + NEAR, MOST_CALLS)
    found = await catalog.documents([(source, recording_id) for recording_id in ids])
    calls = [_call(found[source, i][0], at, number) for i in ids if (source, i) in found]
    covered = row is not None and any(w.start <= at < w.end for w in row["covered"])
    return {
        "source": source,
        "at": utc_text(at),
        "number": number,
        "listed": covered,
        "windows": [_texts(window) for window in windows],
        "calls": calls,
        "fitting": sum(call["fits"] for call in calls),
        "rejected": [_texts(each) for each in rejected],
        "unknown": _unknown(row, here, at, catalog.clock.now(), covered=covered, calls=calls, rejected=rejected),
    }


def _call(document: Document, at: datetime, number: str | None) -> Document:
    begins, ends = document["started_at"], document["ended_at"]
    moment = utc_text(at)
    running = begins <= moment <= (ends or begins)
    numbers = [document["caller"], document["callee"], *(party.get("number") for party in document["parties"])]
    return {
        "recording_id": document["recording_id"],
        "started_at": begins,
        "ended_at": ends,
        "caller": document["caller"],
        "callee": document["callee"],
        "agent": document["agent"],
        "state": document["state"],
        "fits": running and (number is None or any(same_number(number, told) for told in numbers)),
    }


def same_number(asked: str, told: str | None) -> bool:
    """May they be one number, however written? Signs and what stands before the national number do not count."""
    here, there = (re.sub(r"\D", "", text or "").lstrip("0") for text in (asked, told))
    short, long = sorted((here, there), key=len)
    return bool(short) and (short == long or (len(short) >= 6 and long.endswith(short)))


def _unknown(
    row: Mapping[str, Any] | None,
    source: SourceConfig | None,
    at: datetime,
    now: datetime,
    *,
    covered: bool,
    calls: Sequence[Document],
    rejected: Sequence[Any],
) -> list[str]:
    """Each a sentence: what is not known of the moment, why, and what to do."""
    told: list[str] = []
    name = source.name if source is not None else "this source"
    if row is None:
        return [f"{name} was never polled: start the daemon, or run `archiver sync {name}`"]
    newest = max((w.end for w in row["covered"]), default=None)
    error = f" (its last poll: {row['poll_error']})" if row["poll_error"] else ""
    paused = f"; the source is paused: {row['paused_why']}" if row["paused_until"] else ""
    if at >= now:
        told.append("the moment is still to come")
    elif at < row["start_at"]:
        told.append(
            f"it lies before the source's start, {utc_text(row['start_at'])}: `archiver backfill --source {name}"
            f" --from {utc_text(at - NEAR)} --to {utc_text(at + NEAR)}` lists it"
        )
    elif newest is None:
        told.append(
            f"nothing was listed by time so far{error}{paused}: see `archiver status`; where its recorder can't list by"
            " time, a call that no id names is unknown here"
        )
    elif not covered:
        where = "it was not listed yet" if at >= newest else "it lies in a gap: its window could not be listed so far"
        told.append(f"{where}{error}{paused}; see `archiver status`")
    if rejected:
        told.append(f"{len(rejected)} rows of its listings could not be read: `archiver rejected {name}` shows them")
    if source is not None and source.cls.listing_key is ListingKey.END:
        told.append("the recorder tells of a call when it ends: one that runs still is not told of yet")
    if covered and not any(call["fits"] for call in calls):
        told.append(
            "the recorder told of no such call when it was asked: it may not have recorded it, or our account may"
            " not see it"
        )
    return told


def _texts(row: Mapping[str, Any]) -> Document:
    return {k: utc_text(v) if isinstance(v, datetime) else v for k, v in row.items()}
