"""What `status`, `why` and the summaries say: plain dicts, made from the catalog."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from apscheduler.triggers.cron import CronTrigger

from . import identity, live
from .alarms import Watched, watch
from .catalog import LATELY, Catalog, Document
from .config import Config
from .model import Flag, Window, utc_text
from .options import duration
from .verify import owed
from .windows import merge, subtract

#: A poll that is so much later than its schedule says was not made.
LATE = timedelta(minutes=10)
#: Findings of `verify` are told for so long after they were repaired.
FOUND_LATELY = timedelta(days=30)


async def status(config: Config, catalog: Catalog) -> Document:
    """Per source: lag, newest covered moment, gaps, counts, last error; per store: copies, bytes; what to do."""
    now = catalog.clock.now()
    known = {row["name"]: row for row in await catalog.sources()}
    counts = await catalog.counts()
    totals = await catalog.totals()
    rejected = await catalog.rejected_counts()
    reasons = await catalog.reasons()
    flagged = await catalog.flagged(now - LATELY)
    sources: dict[str, Any] = {}
    for name, source in config.sources.items():
        row = known.get(name)
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
            "flags": {flag.value: flagged.get((name, flag), (0, 0))[0] for flag in Flag},
            "rejected_rows": rejected.get(name, 0),
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
    bad = await catalog.bad_copies()
    waiting = await catalog.waiting_for(list(config.stores))
    stores: dict[str, Any] = {}
    verify = config.verify
    for name, store in config.stores.items():
        held = [value for (_, of), value in totals.items() if of == name]
        stores[name] = {
            "kind": store.options.kind,
            "copies": sum(count for count, _ in held),
            "bytes": sum(size for _, size in held),
            "bad": sum(count for (_, of), count in bad.items() if of == name),
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
    who = await identity.problems(config, catalog)
    # A poll that waits for an answer says the same.
    asked = {problem["what"] for problem in who}
    found = [
        *daemon_problems(daemon),
        *who,
        *(
            problem
            for name, s in sources.items()
            for problem in problems_of(name, s, config, now)
            if not any(what in problem["what"] for what in asked)
        ),
        *(p for name, s in stores.items() for p in store_problems(name, s)),
    ]
    found.sort(key=lambda problem: problem["level"] == "note")
    return {"at": utc_text(now), "daemon": daemon, "sources": sources, "stores": stores, "problems": found}


def _daemon(config: Config) -> Document | None:
    """What the daemon of this host runs with, and why that is not the config on disk, if it is not."""
    found = live.daemon(config.data_dir)
    return found | {"stale": live.stale(found, config.sha256)} if found is not None else None


def daemon_problems(daemon: Document | None) -> list[Document]:
    """What the daemon runs with that is not what the file says."""
    stale = daemon["stale"] if daemon is not None else []
    do = "`archiver check --offline` reads the file, `archiver reload` has the daemon take it"
    told = "the daemon does not run with the config on disk: "
    return [_problem("config", "config", "error", told + line, do) for line in stale]


def _problem(of: str, name: str, level: str, what: str, do: str) -> Document:
    return {"of": of, "name": name, "level": level, "what": what, "do": do}


def store_problems(name: str, s: Document) -> list[Document]:
    """What is wrong with a store, each with what to do about it; ``details`` are findings, a line each."""
    found: list[Document] = []
    read = s["verify"]
    verify = f"`archiver verify --store {name}`"
    if s["bad"]:
        what = f"{number(s['bad'], 'copy is', 'copies are')} bad or missing"
        found.append(_problem("store", name, "error", what, f"{verify} repairs what another store or the source has"))
    if read["error"]:
        told = f"its copies could not be read on: {read['error']}"
        found.append(_problem("store", name, "error", told, f"`archiver check` tries the store, {verify} goes on"))
    if s["waiting"]["count"]:
        found.append(_waiting(name, s["waiting"]))
    if s["lacking"]:
        what = f"{number(s['lacking'], 'medium was', 'media were')} archived before it was a store of their source"
        found.append(_problem("store", name, "warning", what, f"`archiver copy --to {name}` brings them there"))
    if read["behind"]:
        found.append(
            _problem("store", name, "warning", read["behind"], "give [verify] a larger budget or a longer cycle")
        )
    if read["enabled"] and read["overdue"]:
        what = f"{number(read['overdue'], 'copy was', 'copies were')} not read back for longer than the verify cycle"
        found.append(_problem("store", name, "warning", what, f"the daemon does it bit by bit; {verify} does it now"))
    if read["found"]:
        spoilt = number(read["found"], "spoilt copy", "spoilt copies")
        what = f"verify found {spoilt}, {read['repaired']} of them repaired"
        found.append(_problem("store", name, "warning", what, "see what happens to that disk or bucket"))
        found[-1]["details"] = [_told_finding(finding) for finding in read["findings"]]
    return found


#: How a store's error begins where it is one object that it does not take (sync.deliver).
_REFUSED = "refused this object"


def _waiting(name: str, waiting: Document) -> Document:
    """What this store did not take; the details name some."""
    media = number(waiting["count"], "medium waits", "media wait")
    what = f"{media} for it: {waiting['error']}"
    do = "`archiver check` tries the store now; what waits goes on by itself once it is back"
    if waiting["error"].startswith(_REFUSED):
        do = (
            "it takes the others; mend what it says (its limit of size, names or rights), or give the source another"
            " store; tried again by itself"
        )
    problem = _problem("store", name, "error", what, do)
    problem["details"] = [f"{m['source']} {m['recording_id']} {m['media_id']}: {m['error']}" for m in waiting["media"]]
    if (more := waiting["count"] - len(waiting["media"])) > 0:
        problem["details"].append(f"and {more} more")
    return problem


def _told_finding(f: Document) -> str:
    ended = f"repaired by {f['repaired_by']}" if f["repaired_at"] else "not repaired"
    return f"{f['last_at'][:19]} {f['key']}: {f['problem']}; {ended}"


#: What a flag says of a medium.
_FLAGGED = {
    Flag.UNFINISHED: "the end mark is missing, and perhaps the last seconds of the call",
    Flag.UNCHECKED: "nobody could check that it is whole audio",
    Flag.SHORT: "far less audio than the recorder told of",
}
#: By kind of an alarm.
_TO_DO = {
    "quiet": "see that the recorder records, and that the account may see all of it; `archiver check` asks it now",
    "shrunk": "mend the account's rights, then `archiver check`; what is listed again comes by itself",
    "still": "see that the daemon runs (`systemctl status archiver`); `archiver sync {}` does it now",
    "short": "`archiver list --source {} --flag short` names the calls; listen to some, and see whether the recorder"
    " itself plays them whole",
    "untold": "see on the page of that recorder's kind in docs/sources what makes it tell call ids",
    "losing": "give the source more concurrency or rate, or have the recorder keep its calls for longer",
}


def problems_of(name: str, s: Document, config: Config, now: datetime) -> list[Document]:
    """What is wrong with a source, the worst first, each with what to do about it."""
    found: list[tuple[str, str, str]] = []
    if not s["enabled"]:
        return []
    if s["paused_why"]:
        found.append(
            (
                "error",
                f"the recorder refuses the account: {s['paused_why']}",
                f"mend the account or the options, then `archiver check`; tried again by itself at {s['paused_until']}",
            )
        )
    elif s["polled_at"] is None:
        now_or_always = f"`archiver run` (the daemon), or `archiver sync {name}` once"
        found.append(("warning", "it was never polled", now_or_always))
    elif late(config.sources[name].options.poll, datetime.fromisoformat(s["polled_at"]), now):
        found.append(
            (
                "error",
                f"it was last polled at {s['polled_at']}",
                f"see that the daemon runs (`systemctl status archiver`, `archiver run`), or `archiver sync {name}`",
            )
        )
    if s["last_error"] and not s["paused_why"]:
        found.append(_poll_trouble(name, s["last_error"]))
    found += [("error", warning["text"], _TO_DO[warning["kind"]].format(name)) for warning in s["warnings"]]
    # What a store did not take is told once, there.
    held_up = tuple(f"store {store}: " for store in config.stores)
    found += [
        _reason(name, reason)
        for reason in s["reasons"]
        if reason["state"] == "failed" or not reason["error"].startswith(held_up)
    ]
    if s["rejected_rows"]:
        rows = number(s["rejected_rows"], "row of its listings", "rows of its listings")
        found.append(("error", f"{rows} could not be read", f"`archiver rejected {name}` shows what came"))
    if s["gaps"]:
        first = s["gaps"][0]
        what = (
            f"{number(len(s['gaps']), 'gap', 'gaps')} not listed yet, the first from {first['from']} to {first['to']}"
        )
        found.append(("warning", what, f"listed by itself with the next polls; `archiver sync {name}` does it now"))
    for flag, words in _FLAGGED.items():
        if count := s["flags"][flag]:
            what = f"{number(count, 'medium is', 'media are')} flagged {flag}: {words}"
            listed = f"`archiver list --source {name} --flag {flag}` names the calls"
            found.append(("note", what, f"{listed}; listen to them, and compare them with the recorder's"))
    return [_problem("source", name, *problem) for problem in found]


#: As sync.poll writes it.
_WINDOW = re.compile(r"\[(\S+), (\S+)\): (.*)", re.DOTALL)


def _poll_trouble(name: str, error: str) -> tuple[str, str, str]:
    window = _WINDOW.fullmatch(error)
    if window is None:
        return "warning", f"the last poll had trouble: {error}", "tried again at each poll; `archiver check` tries now"
    start, end, why = window.groups()
    tries = f"`archiver backfill --source {name} --from {start} --to {end} --relist` tries now"
    what = f"its calls from {start} to {end} can't be listed: {why}"
    return "warning", what, f"tried again at each poll; {tries}"


def _reason(name: str, reason: Document) -> tuple[str, str, str]:
    what = f"{number(reason['count'], 'medium', 'media')} {reason['state']}: {reason['error']}"
    if reason["state"] == "failed":
        listed = f"`archiver list --source {name} --state failed` names the calls"
        return "error", what, f"{listed}; `archiver retry --source {name}` tries again"
    return "warning", what, f"tried again by itself; `archiver list --source {name} --state pending` names the calls"


def number(count: int, one: str, many: str = "") -> str:
    """``1 copy``, ``2 copies``; without ``many`` by an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def late(poll: str, polled_at: datetime, now: datetime) -> bool:
    """Has a poll been left out? One may take as long as the next beat is away."""
    if len(poll.split()) == 5:
        cron = CronTrigger.from_crontab(poll, timezone="UTC")
        due = cron.get_next_fire_time(None, polled_at + timedelta(seconds=1))
        due = cron.get_next_fire_time(None, due + timedelta(seconds=1)) if due else None
        return due is not None and now > due + LATE
    return now > polled_at + 2 * duration(poll) + LATE


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
