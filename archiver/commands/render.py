"""The same documents for people: tables and lines on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ..catalog.catalog import Document
from ..common.words import plain, size, span
from ..model import Window
from ..settings.config import SourceConfig


def clean(text: object) -> str:
    """The same for rich: no markup either."""
    return escape(plain(text))


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in set(right) else "left", overflow="fold")
    return table


#: By the level of a problem.
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
#: Narrower terminals are shown less.
WIDE = 110


def status(console: Console, document: Document) -> None:
    """The tables, and below them what is wrong and what to do about it."""
    for part in status_parts(console, document):
        # Others grep these lines: off a terminal they are as long as they are.
        console.print(part, soft_wrap=isinstance(part, str) and not console.is_terminal)


def status_parts(console: Console, document: Document) -> list[RenderableType]:
    """What :func:`status` prints, for a live view too."""
    wide = console.width >= WIDE
    problems = document["problems"]
    parts: list[RenderableType] = [_sources(document["sources"], problems, wide=wide), "", _stores(document["stores"])]
    for p in problems:
        colour = _COLOURS[p["level"]]
        what = f"[{colour}]{clean(p['name'])}:[/] {clean(p['what'])}"
        do = f"→ {clean(p['do'])}"
        below = [*map(clean, p.get("details", [])), do]
        parts += ["", what, *(Padding(line, (0, 0, 0, 2)) if console.is_terminal else f"  {line}" for line in below)]
    if all(p["level"] == "note" for p in problems):
        parts += ["", "[green]nothing is wrong[/]"]
    return parts


def _sources(sources: Mapping[str, Any], problems: Iterable[Document], *, wide: bool) -> Table:
    numbers = ("lag", "gaps", "archived", "pending", "failed", "gone", "empty", "size")
    columns = ("source", "kind", "lag", "covered to (UTC)", *numbers[1:])
    shown = [c for c in columns if wide or c not in {"kind", "covered to (UTC)"}]
    table = _table(*shown, right=numbers)
    levels = {p["name"]: p["level"] for p in reversed(list(problems)) if p["of"] == "source" and p["level"] != "note"}
    for name, s in sources.items():
        colour = _COLOURS.get(levels.get(name, ""), "green")
        cells = {
            "source": f"[{colour}]{clean(name)}[/]" if s["enabled"] else f"[dim]{clean(name)} (off)[/]",
            "kind": clean(s["kind"]),
            "lag": span(s["lag"]),
            "covered to (UTC)": (s["covered_to"] or "–")[:19].replace("T", " "),
            "gaps": f"[yellow]{len(s['gaps'])}[/]" if s["gaps"] else "0",
            "archived": str(s["archived"]),
            "pending": str(s["pending"]),
            "failed": f"[red]{s['failed']}[/]" if s["failed"] else "0",
            "gone": str(s["gone"]),
            "empty": str(s["empty"]),
            "size": size(s["bytes"]),
        }
        table.add_row(*(cells[c] for c in shown))
    return table


def _stores(stores: Mapping[str, Any]) -> Table:
    table = _table("store", "kind", "copies", "bad", "size", right=("copies", "bad", "size"))
    for name, s in stores.items():
        bad = f"[red]{s['bad']}[/]" if s["bad"] else "0"
        table.add_row(clean(name), clean(s["kind"]), str(s["copies"]), bad, size(s["bytes"]))
    return table


def checks(console: Console, results: Iterable[tuple[str, str, str]]) -> None:
    """Whether it works (ok, WARNING, FAILED), what was tried, and what was seen or what to do."""
    table = _table("", "")
    colours = {"ok": "green", "WARNING": "yellow", "NOTE": "cyan"}
    for mark, what, line in results:
        table.add_row(f"[{colours.get(mark, 'red')}]{mark}[/]", f"[bold]{clean(what)}[/]: {clean(line)}")
    console.print(table)


def recordings(console: Console, documents: Iterable[Document]) -> None:
    table = _table("started (UTC)", "source", "recording", "dir", "from", "to", "length", "state")
    # An id in pieces could not be copied.
    table.columns[2].no_wrap, table.columns[2].overflow = True, "ignore"
    colours = {"archived": "green", "failed": "red", "pending": "yellow"}
    for d in documents:
        colour = colours.get(d["state"], "dim")
        flags = sorted({flag for medium in d["media"] for flag in medium["flags"]})
        odd = f" [yellow]{clean(', '.join(flags))}[/]" if flags else ""
        table.add_row(
            d["started_at"][:19].replace("T", " "),
            clean(d["source"]),
            clean(d["recording_id"]),
            d["direction"][:3],
            clean(d["caller"]),
            clean(d["callee"]),
            span(d["duration"]),
            f"[{colour}]{d['state']}[/]{odd}",
        )
    console.print(table)


def recording(console: Console, d: Document) -> None:
    table = _table("", "")
    told = ("source", "recording_id", "call_id", "state", "started_at", "ended_at", "duration", "direction", "caller")
    for name in (*told, "callee", "agent", "queue", "missing_since"):
        table.add_row(f"[bold]{name}[/]", clean(d[name]))
    for name, value in d["attributes"].items():
        table.add_row(
            clean(name), clean(json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value)
        )
    console.print(table)
    for party in d["parties"]:
        told_party = ", ".join(clean(v) for v in party.values() if v)
        console.print(f"  party: {told_party}")
    for medium in d["media"]:
        length = span(medium["duration"])
        held = size(medium["size"]) if medium["size"] is not None else "–"
        kind = clean(medium["content_type"]) + (f" ({clean(medium['coding'])})" if medium["coding"] else "")
        console.print(f"\n[bold]{clean(medium['media_id'])}[/] {medium['state']}, {kind}, {held}, {length}")
        if medium["sha256"]:
            console.print(f"  SHA-256 {medium['sha256']}", soft_wrap=True)
        if medium["error"]:
            console.print(f"  [yellow]{clean(medium['error'])}[/]", soft_wrap=True)
        if medium["flags"]:
            console.print(f"  {_flagged(medium)}", soft_wrap=True)
        for copy in medium["copies"]:
            console.print(f"  {clean(copy['store'])}: {clean(copy['key'])}  {copy['archived_at']}", soft_wrap=True)


def _flagged(medium: Document) -> str:
    note = f": {clean(medium['note'])}" if medium["note"] else ""
    return f"[yellow]flagged {clean(', '.join(medium['flags']))}[/]{note}"


def story(console: Console, d: Document) -> None:
    console.print(f"[bold]{clean(d['source'])} {clean(d['recording_id'])}[/]: {d['state']}", soft_wrap=True)
    for window in d["windows"]:
        console.print(
            f"  listed with [{window['start']}, {window['end']}): {window['times']}×, first {window['first_at']},"
            f" last {window['last_at']}, {window['listed']} recordings",
            markup=False,
            soft_wrap=True,
        )
    for event in d["story"]:
        times = f" ({event['times']}×, last {event.get('last_at')})" if event["times"] > 1 else ""
        medium = f" {event['media_id']}" if event["media_id"] and len(d["media"]) > 1 else ""
        detail = f": {event['detail']}" if event["detail"] else ""
        answer = f" [answer: {event['answer']}]" if event["answer"] else ""
        console.print(clean(f"  {event['at']}{medium} {event['what']}{detail}{answer}{times}"), soft_wrap=True)
    for medium in d["media"]:
        if medium["flags"]:
            console.print(f"  {clean(medium['media_id'])} is {_flagged(medium)}", soft_wrap=True)
    if d["missing_since"]:
        console.print(f"  the source no longer lists it since {d['missing_since']}")


def around(console: Console, d: Document) -> None:
    """What is known of a moment."""
    console.print(f"[bold]{clean(d['source'])} at {d['at']}[/]: {'listed' if d['listed'] else 'not listed'}")
    for w in d["windows"]:
        odd = f", {w['rejected']} rows that can't be read" if w["rejected"] else ""
        told = f"{w['times']}×, first {w['first_at']}, last {w['last_at']}: {w['listed']} recordings{odd}"
        console.print(f"  window [{w['from']}, {w['to']}) listed {told}", markup=False, soft_wrap=True)
    if d["calls"]:
        table = _table("", "started (UTC)", "ended", "from", "to", "recording", "state")
        for call in d["calls"]:
            ended = call["ended_at"][11:19] if call["ended_at"] else "–"
            mark = "[green]fits[/]" if call["fits"] else "[dim]near[/]"
            cells = clean(call["caller"]), clean(call["callee"]), clean(call["recording_id"]), call["state"]
            table.add_row(mark, call["started_at"][:19].replace("T", " "), ended, *cells)
        console.print(table)
    else:
        console.print("  no call that the recorder told of lies within a quarter of an hour")
    for line in d["unknown"]:
        console.print(f"[yellow]not known:[/] {clean(line)}", soft_wrap=True)


def happened(console: Console, d: Document) -> None:
    """What a span of time brought."""
    console.print(f"[bold]{d['since']} to {d['until']}[/]")
    numbers = ("listed", "new", "archived", "size", "healed", "failed", "gone", "empty")
    table = _table("source", *numbers, right=numbers)
    for name, s in d["sources"].items():
        table.add_row(clean(name), *(size(s["bytes"]) if n == "size" else str(s[n]) for n in numbers))
    console.print(table)
    console.print()
    kept = ("copies", "size", "read back", "damaged", "repaired")
    table = _table("store", *kept, right=kept)
    for name, s in d["stores"].items():
        counts = s["copies"], size(s["bytes"]), s["verified"], s["damaged"], s["repaired"]
        table.add_row(clean(name), *map(str, counts))
    console.print(table)
    for name, s in d["sources"].items():
        for trouble in s["trouble"]:
            example = f", such as: {trouble['example']}" if trouble["example"] else ""
            console.print(clean(f"{name}: {trouble['what']}: {trouble['media']} media{example}"), soft_wrap=True)
    if not d["problems"]:
        console.print("[green]nothing is wrong now[/]")
    for p in d["problems"]:
        console.print(f"[red]now: {clean(p['name'])}:[/] {clean(p['what'])}", soft_wrap=True)
        console.print(f"  → {clean(p['do'])}", soft_wrap=True)


def summary(console: Console, document: Document) -> None:
    numbers = ("windows", "listed", "new", "archived", "pending", "failed", "gone", "empty", "size")
    table = _table("source", *numbers, right=numbers)
    for name, s in document["sources"].items():
        table.add_row(clean(name), *(str(s[n]) for n in numbers[:-1]), size(s["bytes"]))
    console.print(table)
    for name, s in document["sources"].items():
        if s.get("error"):
            console.print(f"[red]{clean(name)}:[/] {clean(s['error'])}", soft_wrap=True)
    if document["complete"]:
        console.print("[green]complete[/]: nothing is pending, nothing failed")
    else:
        console.print("[yellow]not complete[/]: run the same command again, or see `archiver status`")


def cost(console: Console, d: Document, wanted: Window, source: SourceConfig) -> None:
    """What a backfill would take."""
    if d["bytes"] is None:
        held = "the source does not tell sizes"
    else:
        least = "" if d["bytes_complete"] else "at least "
        held = f"{least}{size(d['bytes'])} in each of: {', '.join(source.stores)}"
    options = source.options
    if d["seconds"] is None:
        took = "can't be told: no recording was fetched, and no `rate` is set; it is shown while a backfill runs"
    else:
        took = f"at least {span(max(d['seconds'], 1))} at {options.rate}; the recorder and the stores decide"
    table = _table("", "")
    for name, value in (
        ("span", f"{moment(wanted.start)} to {moment(wanted.end)} UTC"),
        ("windows", f"{d['windows']} not yet listed"),
        ("recordings", f"{d['recordings']} ({d['media']} media)"),
        ("size", held),
        ("requests", f"about {d['requests']} to the source, those of this listing included"),
        ("time", took),
    ):
        table.add_row(f"[bold]{name}[/]", clean(value))
    console.print(f"[bold]{clean(source.name)}[/]: what this backfill would take; nothing was written")
    console.print(table)
    if d["rejected"]:
        console.print(f"[yellow]{d['rejected']} rows of its listings can't be read[/]; a backfill keeps and shows them")
    if d["error"]:
        console.print(f"[red]the listing stopped at[/] {clean(d['error'])}", soft_wrap=True)
        console.print("  → `archiver check` tries the source; then ask again")


def moment(at: datetime) -> str:
    """``2024-05-17 11:45`` with the seconds only where there are any."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" + (f":{at.second:02d}" if at.second else "")


def verified(console: Console, stores: Mapping[str, Any], complete: bool) -> None:
    numbers = ("read", "good", "bad", "missing", "unreadable", "repaired")
    table = _table("store", *numbers, "size", right=(*numbers, "size"))
    for name, found in stores.items():
        table.add_row(clean(name), *(str(found[n]) for n in numbers), size(found["bytes"]))
    console.print(table)
    for name, found in stores.items():
        for line in [*found["findings"], *filter(None, [found["error"]])]:
            console.print(f"[red]{clean(line)}[/]", soft_wrap=True)
        if found["cold"]:
            told = f"{clean(name)}: {found['cold']} copies are unreadable now: in a cold class"
            console.print(f"[yellow]{told}[/]; restore them first to have them read", soft_wrap=True)
        elif not found["read"] and not found["error"]:
            console.print(f"[yellow]{clean(name)}: it holds no copy that could be read[/]", soft_wrap=True)
    if complete:
        console.print("[green]every copy that was read is good[/]")
    elif not any(found["read"] or found["error"] for found in stores.values()):
        console.print("[red]nothing was read[/]: that proves nothing")
    else:
        console.print("[red]not every copy is good[/]: mend the store, then run `archiver verify` again")


def copied(console: Console, store: str, sources: Mapping[str, Any], problems: Iterable[str]) -> None:
    table = _table("source", "copied", "failed", "size", right=("copied", "failed", "size"))
    for name, found in sources.items():
        table.add_row(clean(name), str(found["copies"]), str(found["failed"]), size(found["bytes"]))
    if sources:
        console.print(table)
    lines = [clean(problem) for problem in problems]
    for line in lines:
        console.print(f"[red]{line}[/]", soft_wrap=True)
    if lines:
        console.print("[yellow]not complete[/]: mend that, then run the same command again")
    else:
        console.print(f"[green]complete[/]: {clean(store)} holds all that was asked for")
