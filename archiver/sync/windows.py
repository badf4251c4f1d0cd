"""Arithmetic on windows and waits. Pure: times go in, times come out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ..model import Window
from ..settings.options import Retry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Piece:
    """One listing to make. ``opens`` says which part of it the ledger lacks; none: a re-listing."""

    window: Window
    opens: tuple[Window, ...] = ()


def merge(windows: Iterable[Window]) -> list[Window]:
    """The same moments as sorted, disjoint windows with a gap between any two."""
    merged: list[Window] = []
    for window in sorted(windows):
        if merged and window.start <= merged[-1].end:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged


def subtract(wanted: Iterable[Window], covered: Iterable[Window]) -> list[Window]:
    """The moments that are wanted and not covered."""
    left: list[Window] = []
    holes = merge(covered)
    for window in merge(wanted):
        at = window.start
        for hole in holes:
            if hole.end <= at or hole.start >= window.end:
                continue
            if hole.start > at:
                left.append(Window(at, hole.start))
            at = hole.end
        if at < window.end:
            left.append(Window(at, window.end))
    return left


def intersect(one: Iterable[Window], other: Iterable[Window]) -> list[Window]:
    """The moments that lie in both."""
    others = merge(other)
    return [
        Window(max(a.start, b.start), min(a.end, b.end))
        for a in merge(one)
        for b in others
        if max(a.start, b.start) < min(a.end, b.end)
    ]


def cut(span: Window, longest: timedelta) -> list[Window]:
    """The span in pieces no longer than ``longest``, cut at its multiples since 1970.

    Fixed cuts make the windows of one poll those of the next, so that they fall together.
    """
    pieces = []
    at = span.start
    while at < span.end:
        border = EPOCH + ((at - EPOCH) // longest + 1) * longest
        pieces.append(Window(at, min(border, span.end)))
        at = border
    return pieces


def halve(window: Window) -> tuple[Window, Window] | None:
    """Two halves, cut at a whole second; None where the window is too short to be cut."""
    middle = (window.start + window.length / 2).replace(microsecond=0)
    if middle <= window.start:
        return None
    return Window(window.start, middle), Window(middle, window.end)


def plan(
    covered: Sequence[Window],
    wanted: Window,
    *,
    longest: timedelta,
    lookback: timedelta,
    recent: bool = True,
    doubtful: Sequence[datetime] = (),
    without: Sequence[Window] = (),
    horizon: datetime | None = None,
) -> list[Piece]:
    """What to list: first again what may have changed, then what the ledger lacks, newest first.

    Listed again is the ``lookback`` before each gap (calls that came late while nobody looked) and, when ``recent``,
    before the end of ``wanted``; also the windows around ``doubtful`` moments. No piece is longer than ``longest``, and
    none holds a moment of ``without``.
    Where the source deletes what is older than ``horizon``, the newest piece is followed by those that expire first.
    """
    gaps = subtract([wanted], [*covered, *without])
    again = [_before(gap.start, lookback, wanted) for gap in gaps]
    if recent and lookback:
        # From a fixed cut on, so that the windows of one poll are those of the next.
        start = EPOCH + (wanted.end - lookback - EPOCH) // longest * longest
        again.append(_before(wanted.end, wanted.end - start, wanted))
    again += [_around(moment, longest, wanted) for moment in doubtful]
    spans = merge([*gaps, *(window for window in again if window is not None)])
    windows = [
        piece for span in subtract(spans, without) for part in _parted(span, gaps) for piece in cut(part, longest)
    ]
    pieces = [Piece(window, tuple(intersect([window], gaps))) for window in windows]
    newest = max((piece.window.start for piece in pieces), default=EPOCH)

    def order(piece: Piece) -> tuple[bool, bool, timedelta]:
        start = piece.window.start
        expiring = horizon is not None and piece.window.end > horizon and start != newest
        return bool(piece.opens), start != newest and not expiring, start - EPOCH if expiring else EPOCH - start

    return sorted(pieces, key=order)


def _parted(span: Window, gaps: Sequence[Window]) -> list[Window]:
    """The span cut where a gap ends: what follows is a newer gap's lookback and may not wait for the older gap."""
    edges = [span.start, *sorted(gap.end for gap in gaps if span.start < gap.end < span.end), span.end]
    return [Window(start, end) for start, end in itertools.pairwise(edges)]


def _before(moment: datetime, lookback: timedelta, within: Window) -> Window | None:
    start = max(within.start, moment - lookback)
    return Window(start, moment) if start < moment else None


def _around(moment: datetime, longest: timedelta, within: Window) -> Window | None:
    start = EPOCH + (moment - EPOCH) // longest * longest
    around = Window(start, start + longest)
    return next(iter(intersect([around], [within])), None)


def next_try(attempts: int, retry: Retry, jitter: float, asked: timedelta | None = None) -> timedelta:
    """How long to wait after so many attempts: exponential from ``first`` to ``cap``; ``jitter`` in [0, 1).

    What the source asked for (Retry-After) is the least, whatever ``cap`` says.
    """
    doublings = min(max(attempts - 1, 0), 40)
    wait = min(retry.cap.total_seconds(), retry.first.total_seconds() * float(2**doublings))
    pause = timedelta(seconds=wait * (0.75 + 0.5 * jitter))
    return max(pause, asked) if asked is not None else pause


def next_look(age: timedelta, jitter: float) -> timedelta:
    """How long to wait for a medium that is not ready, by how long ago its call was: a quarter of that."""
    wait = min(max(age / 4, timedelta(minutes=1)), timedelta(hours=6))
    return wait * (0.75 + 0.5 * jitter)


def losses(expiring: Iterable[tuple[datetime, int]], per_second: float, now: datetime) -> tuple[int, datetime | None]:
    """How many of what expires will be lost at that rate, and when the first.

    ``expiring``: moments in order, and how many expire then at the latest.
    """
    fetched, lost, first = 0, 0, None
    for moment, count in expiring:
        in_time = int(max((moment - now).total_seconds(), 0.0) * per_second) - fetched
        kept = min(max(in_time, 0), count)
        fetched += kept
        if kept < count:
            lost += count - kept
            first = first or moment
    return lost, first


def last_hours(until: datetime, zone: ZoneInfo, hours: int, weeks: int) -> list[list[Window]]:
    """Whole local hours that ended by then, newest first; each with the same hour of the weeks before it."""
    end = until.astimezone(zone).replace(minute=0, second=0, microsecond=0)
    rows = []
    for n in range(1, hours + 1):
        # Back by true hours, then by local weeks: a clock change moves no working day.
        start = (end.astimezone(UTC) - n * timedelta(hours=1)).astimezone(zone)
        same = [(start - week * timedelta(days=7)).astimezone(UTC) for week in range(weeks + 1)]
        rows.append([Window(moment, moment + timedelta(hours=1)) for moment in same])
    return rows
