"""What is wrong although nothing fails: too few calls or too little audio, a list that shrank, a queue that stands
still, a lost race.

Nothing is stored for it: the catalog's own history says what is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ..catalog.catalog import LATELY, Catalog
from ..model import Flag, ListingKey, Window, utc_text
from ..settings.options import SourceOptions
from ..sync.windows import last_hours, losses, subtract

#: Of alarms: too few calls, a list that shrank, a queue that stands still, ids that do not come, recordings with far
#: less audio than told, a race being lost.
KINDS = ("quiet", "shrunk", "still", "untold", "short", "losing")
#: Hours looked at, and weeks before them that say what is usual; so many of these must have been listed.
HOURS, WEEKS, ENOUGH = 24, 8, 4
#: An hour is watched where it never had fewer calls; it is too quiet with less than a quarter of the fewest.
FEWEST = 3
#: A list shrank where at least so many, and at least a quarter, of what it showed lately are gone from it.
SHRUNK = 3
#: A queue stands still where something was due for so long, and nothing was archived for as long.
STILL = timedelta(hours=1)
#: Too many are short where at least so many of the last day are, and more than one in twenty.
SHORT, SHORT_SHARE = 5, 20


@dataclass(frozen=True, slots=True)
class Alarm:
    #: One of KINDS.
    kind: str
    text: str


@dataclass(slots=True)
class Watched:
    """What there is to say of one source."""

    alarms: list[Alarm] = field(default_factory=list)
    #: The race against its deletion, where its retention is known.
    retention: dict[str, Any] | None = None


async def watch(
    catalog: Catalog,
    name: str,
    options: SourceOptions,
    listing_key: ListingKey,
    stores: Sequence[str],
    covered: Sequence[Window],
) -> Watched:
    """Look at one source. ``covered``: its ledger."""
    watched, now = Watched(), catalog.clock.now()
    for alarm in (
        await _quiet(catalog, name, options, covered, now),
        await _shrunk(catalog, name, options, listing_key, now),
        await _still(catalog, name, stores, now),
        await _untold(catalog, options),
        await _short(catalog, name, stores, now),
    ):
        if alarm is not None:
            watched.alarms.append(alarm)
    if options.retention is not None:
        watched.retention, losing = await _race(catalog, name, options.retention, stores, now)
        watched.alarms += [losing] if losing is not None else []
    return watched


async def _quiet(
    catalog: Catalog, name: str, options: SourceOptions, covered: Sequence[Window], now: datetime
) -> Alarm | None:
    rows = [
        (hours[0], [hour for hour in hours[1:] if not subtract([hour], covered)])
        for hours in last_hours(now - options.settle, options.zone, HOURS, WEEKS)
        if not subtract([hours[0]], covered)
    ]
    rows = [(hour, before) for hour, before in rows if len(before) >= ENOUGH]
    counts = iter(await catalog.counts_in(name, [w for hour, before in rows for w in (hour, *before)]))
    found = [(hour, next(counts), [next(counts) for _ in before]) for hour, before in rows]
    quiet = [(hour, n, usual) for hour, n, usual in found if min(usual) >= FEWEST and n * 4 < min(usual)]
    if not quiet:
        return None
    hour, n, usual = quiet[0]
    more = f", and {len(quiet) - 1} more of the last {HOURS} hours were as quiet" if len(quiet) > 1 else ""
    return Alarm(
        "quiet",
        f"only {n} calls from {utc_text(hour.start)} to {utc_text(hour.end)}, where this hour of the last {len(usual)}"
        f" weeks had {min(usual)} to {max(usual)}{more}; does the recorder still record, and show all to the account?",
    )


async def _shrunk(
    catalog: Catalog, name: str, options: SourceOptions, listing_key: ListingKey, now: datetime
) -> Alarm | None:
    reach = options.relisted(listing_key)
    if options.retention is not None:
        reach = min(reach, options.retention)
    known, missing, since = await catalog.shrunk(name, now - reach)
    if missing < SHRUNK or missing * 4 < known or since is None:
        return None
    return Alarm(
        "shrunk",
        f"{missing} of the {known} newest recordings are no longer listed since {utc_text(since)}; was a permission"
        " taken away, or were they deleted?",
    )


async def _still(catalog: Catalog, name: str, stores: Sequence[str], now: datetime) -> Alarm | None:
    count, since = await catalog.standing(name, now - STILL)
    if not count or since is None:
        return None
    archived, _ = await catalog.archived_since(name, stores, now - STILL)
    if archived:
        return None
    return Alarm("still", f"the queue stands still: {count} media due since {utc_text(since)}; does the daemon run?")


async def _untold(catalog: Catalog, options: SourceOptions) -> Alarm | None:
    other = getattr(options, "ids_from", None)
    if other is None or not await catalog.tells_no_call_ids(other):
        return None
    return Alarm("untold", f"{other} has told recordings and not one call id, so none is looked up here (ids_from)")


async def _short(catalog: Catalog, name: str, stores: Sequence[str], now: datetime) -> Alarm | None:
    _, short = (await catalog.flagged(now - LATELY, [name])).get((name, Flag.SHORT), (0, 0))
    if short < SHORT:
        return None
    archived, _ = await catalog.archived_since(name, stores, now - LATELY)
    if short * SHORT_SHARE <= archived:
        return None
    return Alarm(
        "short",
        f"{short} of the {archived} media archived in the last day hold far less audio than the recorder told of;"
        " does it still record to the end?",
    )


async def _race(
    catalog: Catalog, name: str, retention: timedelta, stores: Sequence[str], now: datetime
) -> tuple[dict[str, Any], Alarm | None]:
    expiring = await catalog.expiring(name)
    archived, first = await catalog.archived_since(name, stores, now - timedelta(hours=1))
    rate = archived / max((now - first).total_seconds(), 60.0) if first is not None else 0.0
    lost, when = losses(expiring, rate, now)
    told = {
        "seconds": retention.total_seconds(),
        "waiting": sum(count for _, count in expiring),
        "first_expires_at": utc_text(expiring[0][0]) if expiring else None,
        "per_hour": round(rate * 3600, 1),
        "would_be_lost": lost,
        "first_lost_at": utc_text(when) if when is not None else None,
    }
    if when is None:
        return told, None
    return told, Alarm(
        "losing",
        f"at the present rate ({told['per_hour']} an hour) {lost} of {told['waiting']} waiting media will be lost to"
        f" the recorder's retention, the first at {utc_text(when)}",
    )
