"""What `status`, `why` and the summaries say: plain dicts, made from the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..catalog.catalog import Catalog, Document, Numbers
from ..common import disks
from ..model import Flag, Window, utc_text
from ..settings.config import Config
from ..sync.windows import merge, subtract
from ..upkeep.verify import owed
from . import conditions, identity, live, proof
from .alarms import Watched, watch
from .conditions import Found, Level
from .facts import Seen, Survey, source_view, store_view

#: Findings of `verify` are told for so long after they were repaired.
FOUND_LATELY = timedelta(days=30)


async def status(config: Config, catalog: Catalog) -> Document:
    """Per source: lag, newest covered moment, gaps, counts, last error; per store: copies, bytes; what to do."""
    now = catalog.clock.now()
    numbers = await catalog.numbers(list(config.sources), list(config.stores))
    counts = await catalog.counts()
    totals = numbers.totals
    reasons = await catalog.reasons()
    sources: dict[str, Any] = {}
    for name, source in config.sources.items():
        row = numbers.sources.get(name)
        states = {state: count for state, (count, _) in counts.get(name, {}).items()}
        archived, size = totals.get((name, ""), (0, 0))
        options, watched = source.options, Watched()
        if row is not None and options.enabled:
            how = source.cls.listing_key, source.stores, row["covered"]
            watched = await watch(catalog, name, options, *how)
        sources[name] = {
            "kind": source.options.kind,
            "enabled": source.options.enabled,
            **_coverage(row, now),
            "archived": archived,
            "pending": states.get("pending", 0),
            "failed": states.get("failed", 0),
            "gone": states.get("gone", 0),
            "empty": states.get("empty", 0),
            "bytes": size,
            "flags": {flag.value: numbers.flagged.get((name, flag), (0, 0))[0] for flag in Flag},
            "rejected_rows": numbers.rejected[name][0] if name in numbers.rejected else 0,
            "failed_lookups": numbers.lookups.get(name, (0, ""))[0],
            "polled_at": _text(row["polled_at"]) if row else None,
            "last_error": row["poll_error"] if row else None,
            "warnings": [{"kind": alarm.kind, "text": alarm.text} for alarm in watched.alarms],
            "retention": watched.retention,
            "paused_until": _text(row["paused_until"]) if row else None,
            "paused_why": row["paused_why"] if row else None,
            "reasons": [
                {"state": r["state"], "error": r["error"], "count": r["count"]} for r in reasons if r["source"] == name
            ][:5],
        }
    waiting = await catalog.waiting_for(list(config.stores))
    stores: dict[str, Any] = {}
    verify = config.verify
    for name, store in config.stores.items():
        held = [value for (_, of), value in totals.items() if of == name]
        stores[name] = {
            "kind": store.options.kind,
            "copies": sum(count for count, _ in held),
            "bytes": sum(size for _, size in held),
            "bad": numbers.bad.get(name, 0),
            "waiting": waiting.get(name, {"count": 0, "error": None, "media": []}),
        }
        # Late by a day is what waits for its turn.
        read = await catalog.verify_state(name, now - verify.cycle - verify.period, now - FOUND_LATELY)
        about = {"enabled": verify.enabled, "cycle": verify.cycle.total_seconds()}
        stores[name]["verify"] = about | read | {"behind": owed(verify, stores[name]["bytes"])}
        # Of the sources that use it. A changed recording counts twice, so it may be more.
        using = [of for of, source in config.sources.items() if name in source.stores]
        counts_of = [(totals.get((of, ""), (0, 0))[0], totals.get((of, name), (0, 0))[0]) for of in using]
        stores[name]["lacking"] = sum(max(0, archived - copies) for archived, copies in counts_of)
    daemon = _daemon(config)
    who = [*await identity.problems(config, catalog), *await proof.problems(config, catalog)]
    for name, source in sources.items():
        source["asked"] = any((p["condition"], p["of"]) == ("SourceChanged", name) for p in who)
    document: Document = {"at": utc_text(now), "daemon": daemon, "sources": sources, "stores": stores, "identity": who}
    found = conditions.found(await _survey(config, numbers, document, now), config.alerts)
    return document | {"problems": problems(found)}


async def _survey(config: Config, numbers: Numbers, document: Document, now: datetime) -> Survey:
    """What is known here: from the catalog, of the disks of this host, and what its daemon tells."""
    daemon = document["daemon"]
    seen = Seen.read(daemon.get("seen", {}) if daemon is not None else {})
    options = {name: getattr(store.options, "path", None) for name, store in config.stores.items()}
    paths = {name: path for name, path in options.items() if isinstance(path, Path)}
    rooms = await disks.rooms([config.data_dir, *paths.values()])
    sources = {
        name: source_view(
            name,
            source.options,
            numbers,
            now,
            began=now,
            stores=config.stores,
            told=document["sources"][name],
            breaker_why=seen.sources.get(name),
        )
        for name, source in config.sources.items()
        if source.options.enabled
    }
    stores = {
        name: store_view(
            name,
            numbers,
            now,
            config.verify,
            told=document["stores"][name],
            down_why=seen.stores.get(name),
            disk=rooms.get(paths[name]) if name in paths else None,
            reserve=getattr(store.options, "reserve", None),
        )
        for name, store in config.stores.items()
    }
    return Survey(
        at=now,
        database=seen.database,
        sources=sources,
        stores=stores,
        stuck=seen.stuck,
        disk=rooms.get(config.data_dir),
        reserve=config.reserve,
        stale_config=tuple(daemon["stale"]) if daemon is not None else (),
        identity=tuple(document["identity"]),
        died=daemon is None and live.died(config.data_dir),
        heartbeat_missing=seen.heartbeat_missing,
        undelivered=seen.undelivered,
    )


def problems(found: Iterable[Found]) -> list[Document]:
    """What is wrong, each with what to do about it; notes come last."""
    told = [_problem(each) for each in found]
    return sorted(told, key=lambda problem: problem["level"] == Level.NOTE)


def _problem(each: Found) -> Document:
    condition, finding = each.condition, each.finding
    document = {
        "of": condition.of.value,
        "name": each.of or condition.of.value,
        "level": condition.level.value,
        "what": finding.what,
        "do": finding.do,
        "condition": condition.name,
        "kind": finding.kind or None,
        "runbook": condition.runbook,
    }
    return document | ({"details": list(finding.details)} if finding.details else {})


def _daemon(config: Config) -> Document | None:
    """What the daemon of this host runs with, and why that is not the config on disk, if it is not."""
    found = live.daemon(config.data_dir)
    return found | {"stale": live.stale(found, config.sha256)} if found is not None else None


def _coverage(row: Mapping[str, Any] | None, now: datetime) -> Document:
    if row is None:
        return {"lag": None, "covered_to": None, "start": None, "gaps": []}
    covered = merge(row["covered"])
    newest = covered[-1].end if covered else None
    wanted = [Window(row["start_at"], newest)] if newest is not None and newest > row["start_at"] else []
    gaps = subtract(wanted, covered)
    return {
        "lag": round((now - newest).total_seconds(), 1) if newest else None,
        "covered_to": _text(newest),
        "start": _text(row["start_at"]),
        "gaps": [{"from": _text(gap.start), "to": _text(gap.end)} for gap in gaps],
    }


def _text(moment: datetime | None) -> str | None:
    return utc_text(moment) if moment is not None else None


async def show(catalog: Catalog, source: str, recording_id: str) -> Document | None:
    """One recording's JSON with what happened to it, or None."""
    found = (await catalog.documents([(source, recording_id)])).get((source, recording_id))
    if found is None:
        return None
    return found[0] | {"history": await catalog.history(source, recording_id)}


#: What `why` tells of a medium beside its story.
_OF_MEDIUM = ("media_id", "state", "attempts", "error", "flags", "note")


async def why(catalog: Catalog, source: str, recording_id: str) -> Document | None:
    """A recording's history: the windows that should have seen it, each attempt and what came of it, or None."""
    found = (await catalog.documents([(source, recording_id)])).get((source, recording_id))
    listings = await catalog.listings(source, recording_id)
    if found is None or listings is None:
        return None
    first, missing, windows = listings
    document = found[0]
    story: list[Document] = [_event(utc_text(first), "first listed")]
    for event in await catalog.history(source, recording_id):
        last = {"last_at": event["last_at"], "times": event["times"], "answer": event["answer"]}
        story.append(_event(event["first_at"], event["what"], event["detail"], event["media_id"]) | last)
    for medium in document["media"]:
        for copy in medium["copies"]:
            detail = f"store {copy['store']}, {copy['size']} bytes, SHA-256 {copy['sha256']}, key {copy['key']}"
            story.append(_event(copy["archived_at"], "archived", detail, medium["media_id"]))
            if copy["verified_at"]:
                detail = f"store {copy['store']}, key {copy['key']}"
                story.append(_event(copy["verified_at"], "read back and found right", detail, medium["media_id"]))
    for bad in await catalog.findings_of(source, recording_id):
        if bad["repaired_at"]:
            was = f"store {bad['store']}, key {bad['key']}: was {bad['problem']}"
            detail = f"{was}, repaired by {bad['repaired_by']}"
            story.append(_event(bad["repaired_at"], "right again", detail, bad["media_id"]))
    return {
        "source": source,
        "recording_id": recording_id,
        "state": document["state"],
        "missing_since": _text(missing),
        "windows": windows,
        "story": sorted(story, key=lambda event: str(event["at"])),
        "media": [{k: medium[k] for k in _OF_MEDIUM} for medium in document["media"]],
    }


def _event(at: str, what: str, detail: str | None = None, media_id: str | None = None) -> Document:
    event = {"at": at, "last_at": at, "times": 1, "what": what, "detail": detail}
    return event | {"answer": None, "media_id": media_id}


def summary(summaries: Mapping[str, Any]) -> Document:
    """The JSON of `sync` and `backfill`."""
    return {
        "sources": {name: s.document() for name, s in summaries.items()},
        "complete": all(s.complete for s in summaries.values()),
    }
