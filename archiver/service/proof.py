"""What the certificates say, for `proof status` and for the list of conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, timedelta
from typing import Any

from ..catalog.catalog import Catalog, Document
from ..common.words import number
from ..ports import lists_by_time
from ..settings.config import Config
from ..sync.feeds import Feed
from ..upkeep import certify

#: Certificates are issued each night: what is older than this was not.
OVERDUE = timedelta(days=2)


async def status(
    catalog: Catalog,
    feeds: Mapping[str, Feed],
    sources: Sequence[str] | None = None,
    first: date | None = None,
    last: date | None = None,
) -> list[Document]:
    """A document a source and day, oldest first: coverage, counts, complete or why not, certificate, checkpoint.

    ``feeds``: of whose days some may be due. ``sources``: None: all that have certificates, also what left the config.
    """
    state = await catalog.log_state()
    days = {(row["source"], row["day"]): row for row in await catalog.certificates(sources, first, last)}
    wanted = {*days}
    for name, feed in feeds.items():
        of = await certify.listed(catalog, feed) if sources is None or name in sources else None
        waiting = await certify.due(catalog, feed, of, thorough=False) if of is not None else []
        wanted |= {(name, day) for day in waiting if (first is None or day >= first) and (last is None or day <= last)}
    return [_row(*key, days.get(key), state.size) for key in sorted(wanted)]


def _row(source: str, day: date, row: Mapping[str, Any] | None, size: int) -> Document:
    if row is None:
        return {
            "source": source,
            "day": day.isoformat(),
            "certificate": None,
            "complete": None,
            "why": ["no certificate"],
        }
    told = json.loads(row["entry"])
    return {
        "source": source,
        "day": day.isoformat(),
        "complete": told["complete"],
        "why": reasons(told),
        "coverage": told["coverage"],
        "counts": told["counts"],
        "media": told["media"],
        "bytes": told["bytes"],
        "certificate": {
            "revision": told["revision"],
            "position": row["position"],
            "issued_at": told["issued_at"],
            "name": told["name"],
        },
        # Under which it lies; None: the next one.
        "checkpoint": size if row["position"] < size else None,
    }


def reasons(told: Document) -> list[str]:
    """Why a certificate is not complete, in words."""
    if told["complete"] is None:
        return ["listed by call ids: no completeness is claimed"]
    why = []
    gaps = told["coverage"]["gaps"]
    if isinstance(gaps, dict):
        why.append(number(gaps["size"], "gap", "gaps"))
    else:
        why += [f"{gap['from'][11:19]} to {gap['to'][11:19]}: {gap['why']}" for gap in gaps[:3]]
        why += [f"and {len(gaps) - 3} more gaps"] if len(gaps) > 3 else []
    why += [f"{told['counts'][state]} {state}" for state in ("failed", "pending") if told["counts"][state]]
    if unreadable := told["listings"]["unreadable"]:
        why.append(f"{number(unreadable, 'row', 'rows')} that nobody could read")
    return why


def line(row: Document) -> str:
    """A row of :func:`status` for people."""
    where = f"{row['source']} {row['day']}"
    if row["certificate"] is None:
        return f"{where}: no certificate yet (`archiver certify` issues it)"
    counts = ", ".join(f"{count} {state}" for state, count in row["counts"].items() if count and state != "listed")
    listed = f"{row['counts']['listed']} listed" + (f" ({counts})" if counts else "")
    how = "complete" if row["complete"] else "; ".join(row["why"]) or "not complete"
    revision = row["certificate"]["revision"]
    return f"{where}: {listed}; {how}" + (f"; revision {revision}" if revision > 1 else "")


async def problems(config: Config, catalog: Catalog) -> list[Document]:
    """What is wrong with the certificates, as entries of the list of conditions: condition, of, what, do."""
    state = await catalog.log_state()
    if state.run_at is None and state.error is None:
        # Nobody issues any: a daemon does.
        return []
    found: list[Document] = []
    if state.error is not None:
        do = "mend what it says; the next hour's run goes on by itself, `archiver certify` at once"
        found.append({"condition": "ProofFailed", "of": "", "what": state.error, "do": do})
    now = catalog.clock.now()
    starts = {row["name"]: row["start_at"] for row in await catalog.sources(list(config.sources))}
    last_days = await catalog.last_days(list(starts))
    for name, start in starts.items():
        source = config.sources[name]
        waits = OVERDUE + source.options.relisted(source.cls.listing_key)
        due, last = (now - waits).astimezone(UTC).date() - certify.DAY, last_days[name]
        # By call ids there is a first day only once there is a call.
        begins = last or (start.astimezone(UTC).date() if lists_by_time(source.cls) else None)
        if source.options.enabled and begins is not None and begins < due:
            what = f"no day after {last} has a certificate" if last else "no day has a certificate"
            do = "`archiver certify` issues them now and says what keeps them"
            found.append({"condition": "DaysUncertified", "of": name, "what": what, "do": do})
    for name, (count, first) in (await catalog.incomplete_days(list(starts))).items():
        days = number(count, "day is", "days are")
        what = f"{days} not complete in their certificates, the first is {first}"
        do = f"`archiver proof status --source {name}` tells why; a day that is mended gets another certificate"
        found.append({"condition": "DaysIncomplete", "of": name, "what": what, "do": do})
    return found
